"""The taxonomy over HTTP: against a real api-server, as the page asks for it."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openpyxl
import pytest
from environment import clean
from served_pages import serving

from wwts_ops import events, settings, taxonomy
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Label, Taxonomy
from wwts_ops.taxonomy_changes import labelsheet

pytestmark = pytest.mark.slow

ADMIN, REVIEWER = "主管", "小李"
LABELS = (
    Label("t:apple", "苹果", "apple", "红富士", "生鲜 > 水果"),
    Label("t:pear", "梨", "pear", "", "生鲜 > 水果"),
    Label("t:cup", "<b>杯子</b>", "=1+1", "", "家居"),
    *(Label(f"t:{number}", f"商品{number}", category_path="杂货 > 其他") for number in range(1200)),
)


@dataclass(frozen=True)
class Page:
    """The page of an admin and that of a reviewer, over one store."""

    found: Settings
    admin: httpx.Client
    reviewer: httpx.Client

    @property
    def version(self) -> str:
        return str(self.admin.get("api/taxonomy").json()["version"])

    def ask(self, what: str, *changes: dict[str, Any], expected: str = "", client: httpx.Client | None = None) -> Any:
        body = {"expected": expected or self.version, "changes": list(changes)}
        return (client or self.admin).post(f"api/taxonomy/{what}", json=body)

    def send(self, data: bytes, *, name: str, dry_run: bool, expected: str = "") -> httpx.Response:
        text = base64.b64encode(data).decode()
        body = {"name": name, "data": text, "expected": expected or self.version, "dry_run": dry_run}
        return self.admin.post("api/taxonomy/import", json=body)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        given = {"store": str(folder / "store"), "reviewers": (REVIEWER,), "review_admins": (ADMIN,)}
        found = settings.load(**given)
        taxonomy.put(Store.of(found), Taxonomy("", LABELS, ("生鲜 > 水果",)), "wwts", None)
        users = {ADMIN: "viewer", REVIEWER: "viewer"}
        with (
            serving(found, folder, users) as served,
            served.browser(ADMIN) as admin,
            served.browser(REVIEWER) as reviewer,
        ):
            yield Page(found, admin, reviewer)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json()["error"]["code"])


def test_the_whole_taxonomy_is_read(page: Page) -> None:
    told = page.reviewer.get("api/taxonomy").json()
    assert told["version"] == page.version
    by_id = {label["label_id"]: label for label in told["labels"]}
    assert list(by_id)[-1] == "t:1199"
    assert set(by_id["t:cup"]) == {*vars(LABELS[0]), "forced_by"}
    assert (by_id["t:cup"]["forced_by"], by_id["t:pear"]["forced_by"]) == ("", "forced_category:生鲜 > 水果")
    assert by_id["t:cup"]["label_zh"] == "<b>杯子</b>"
    tree = {category["path"]: (category["labels"], category["forced"]) for category in told["categories"]}
    assert list(tree) == sorted(tree)
    assert (tree["生鲜"][1], tree["生鲜 > 水果"][1], tree["杂货"]) == (False, True, (1200, False))
    assert (told["may_change"], page.admin.get("api/taxonomy").json()["may_change"]) == (False, True)


def test_a_change_is_seen_first_then_made_and_written_down(page: Page) -> None:
    before = page.version
    changes = [
        {"op": "add", "label_id": "t:peach", "label_zh": "桃", "category_path": "生鲜>水果"},
        {"op": "rename", "label_id": "t:pear", "label_zh": "雪花梨"},
    ]
    seen = page.ask("preview", *changes).json()
    assert seen["version"] == page.version == before
    assert [(row["label_id"], row["field"], row["before"], row["after"]) for row in seen["diff"]] == [
        ("t:pear", "label_zh", "梨", "雪花梨"),
        ("t:peach", "added", "", "生鲜 > 水果"),
    ]
    made = page.ask("changes", *changes, expected=before).json()
    assert made["version"] == page.version != before
    assert (made["diff"], made["count"], made["counts"]) == (seen["diff"], 2, {"label_zh": 1, "added": 1})
    told = page.reviewer.get("api/taxonomy").json()
    assert told["author"] == ADMIN
    newest = page.reviewer.get("api/taxonomy/history", params={"count": 1}).json()["versions"]
    assert [(one["version"], one["author"], one["previous"], one["counts"]) for one in newest] == [
        (made["version"], ADMIN, before, made["counts"])
    ]
    found = page.reviewer.get("api/taxonomy/diff", params={"before": before, "after": made["version"]}).json()
    assert (found["diff"], found["count"]) == (made["diff"], 2)
    [event, *_] = events.recent(page.found, 1)
    assert (event.person, event.subject) == (ADMIN, made["version"])


def test_a_version_made_elsewhere_is_among_the_changes_once(page: Page) -> None:
    page.ask("changes", {"op": "add", "label_id": "t:fig", "label_zh": "无花果", "category_path": "生鲜 > 水果"})
    taxonomy.add(Store.of(page.found), "王芳", [Label("t:leek", "韭葱", category_path="生鲜 > 蔬菜")])
    told = page.reviewer.get("api/events").json()["events"]
    assert [(one["person"], one["action"], one["detail"]["counts"]) for one in told[:2]] == [
        ("王芳", "changed_taxonomy", {"added": 1}),
        (ADMIN, "changed_taxonomy", {"added": 1}),
    ]
    assert told[0]["subject"] == page.version
    versions = page.reviewer.get("api/taxonomy/history").json()["versions"]
    assert [one["subject"] for one in told] == [one["version"] for one in versions if one["previous"]]
    assert len(page.reviewer.get("api/events", params={"count": 1}).json()["events"]) == 1


def test_a_change_of_an_older_version_is_refused(page: Page) -> None:
    before = page.version
    change = {"op": "synonyms", "label_id": "t:apple", "synonyms_zh": f"{before}"}
    assert page.ask("changes", change).status_code == 200
    for what in ("preview", "changes"):
        assert error(page.ask(what, change, expected=before)) == (409, "changed")
    data = labelsheet.to_csv(Taxonomy("", LABELS[:1]))
    assert error(page.send(data, name="a.csv", dry_run=False, expected=before)) == (409, "changed")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"op": "map", "label_id": "t:apple", "maps_to": "t:apple"}, "maps_to_itself", "“苹果 t:apple”"),
        ({"op": "rename", "label_id": "t:1", "label_zh": "商品2"}, "duplicate", "“杂货 > 其他”下会出现重名标签“商品2”"),
        ({"op": "move", "label_ids": ["t:1"], "category_path": ""}, "no_category", "不属于任何类目"),
        ({"op": "move_category", "category_path": "家居", "to": "家居>乙"}, "below_itself", "不能移到它自己下面"),
        ({"op": "enable", "label_ids": ["t:1"], "enabled": True}, "nothing", "没有任何改动"),
    ],
)
def test_a_fault_is_told_in_chinese(page: Page, change: dict[str, Any], code: str, said: str) -> None:
    before = page.version
    answer = page.ask("changes", change)
    assert error(answer) == (400, code)
    assert said in answer.json()["error"]["message"]
    assert page.version == before


def test_only_admins_change(page: Page) -> None:
    change = {"op": "enable", "label_ids": ["t:7"], "enabled": False}
    before = page.version
    for what in ("preview", "changes"):
        assert error(page.ask(what, change, client=page.reviewer)) == (403, "not_admin")
    assert page.reviewer.post("api/taxonomy/import", json={}).status_code == 403
    assert page.version == before


def test_what_is_no_change_is_refused(page: Page) -> None:
    for change in ({"op": "drop"}, {"op": "rename"}, {"op": "enable", "label_ids": "t:1", "enabled": "yes"}):
        assert error(page.ask("changes", change)) == (400, "bad_body")
    assert error(page.ask("changes")) == (400, "bad_body")
    assert error(page.ask("changes", {"op": "add", "label_zh": "x" * 2**20, "category_path": "甲"})) == (
        413,
        "too_large",
    )


def test_spreadsheets_go_out(page: Page) -> None:
    text = page.reviewer.get("api/taxonomy/export.csv")
    assert "attachment" in text.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(text.content.decode("utf-8-sig"))))
    assert next(row for row in rows if row["label_id"] == "t:cup")["label_en"] == "'=1+1"
    book = openpyxl.load_workbook(io.BytesIO(page.reviewer.get("api/taxonomy/export.xlsx").content))
    assert [row[0].value for row in book.worksheets[0].iter_rows(min_row=2)] == [row["label_id"] for row in rows]
    assert page.reviewer.get("api/taxonomy/export.exe").status_code in (400, 404)


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_a_spreadsheet_comes_back(page: Page, suffix: str) -> None:
    data = page.admin.get(f"api/taxonomy/export.{suffix}").content
    before = page.version
    same = page.send(data, name=f"标签.{suffix}", dry_run=True).json()
    assert (same["diff"], same["version"]) == ([], before)
    named = taxonomy.read(Store.of(page.found), before)
    renamed = [Label(**{**vars(one), "label_en": f"{suffix}{one.label_id}"}) for one in named.labels]
    write = {"csv": labelsheet.to_csv, "xlsx": labelsheet.to_xlsx}[suffix]
    data = write(Taxonomy("", tuple(renamed)))
    seen = page.send(data, name=f"标签.{suffix}", dry_run=True).json()
    assert page.version == before
    assert seen["count"] == len(renamed)
    assert len(seen["diff"]) == 1000
    assert page.send(data, name=f"标签.{suffix}", dry_run=False).json()["counts"] == {"label_en": len(renamed)}
    assert taxonomy.read(Store.of(page.found), page.version).by_id["t:cup"].label_en == f"{suffix}t:cup"


def test_a_wrong_spreadsheet_is_told_in_chinese(page: Page) -> None:
    for name, data, code in (
        ("a.pdf", b"x", "file_kind"),
        ("a.xlsx", b"x", "file_unreadable"),
        ("a.csv", b"", "file_unreadable"),
    ):
        answer = page.send(data, name=name, dry_run=False)
        assert error(answer) == (400, code)
        assert name in answer.json()["error"]["message"]
    body = {"name": "a.csv", "data": "no base64!", "expected": page.version, "dry_run": True}
    assert error(page.admin.post("api/taxonomy/import", json=body)) == (400, "bad_body")


def test_versions_are_known_by_their_names_only(page: Page) -> None:
    for name in ("../current.json", "t000009-000000000000", "..", "%2e%2e"):
        asked = {"before": name, "after": page.version}
        assert error(page.admin.get("api/taxonomy/diff", params=asked)) == (404, "no_version")
