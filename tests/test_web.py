"""What the review page's server answers, by people who do their work: a real api-server, asked as browsers ask."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from environment import clean, plain
from fastapi import FastAPI, Request
from review_shop import ADMIN, DATE, REVIEWERS, VIEWER, ReviewShop
from served_pages import Served, serving

from wwts_ops import database, servers, settings, tagdiff, taxonomy
from wwts_ops.database import review_items
from wwts_ops.review.people import Role
from wwts_ops.web import pictures
from wwts_ops.web.security import RefusedError, Visitor

ANNA, LI, ZHANG = REVIEWERS[2], REVIEWERS[0], REVIEWERS[1]
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Scene:
    """A shop and the server over it; what waits is used up by the tests as they go."""

    shop: ReviewShop
    served: Served

    def change(self, content: str, **values: Any) -> None:
        """Sets columns of an item."""
        with database.transaction(self.shop.settings) as connection:
            this = review_items.c.content_sha256 == content
            connection.execute(sa.update(review_items).where(this).values(**values))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("web")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        shop = ReviewShop.made(folder, 120, second_looks=0, forced_answers=2)
        with serving(shop.settings, folder, dict.fromkeys((*REVIEWERS, ADMIN, VIEWER), "viewer")) as served:
            yield Scene(shop, served)


@pytest.fixture
def browse(scene: Scene) -> Iterator[Callable[[str], httpx.Client]]:
    """Makes browsers of users, which give back at the end what they hold."""
    opened: list[httpx.Client] = []

    def make(user: str) -> httpx.Client:
        opened.append(scene.served.browser(user))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
    with database.transaction(scene.shop.settings) as connection:
        connection.execute(sa.update(review_items).values(leased_by=None, leased_until=None))


Browse = Callable[[str], httpx.Client]
REVIEW = {"decisions": ["review"]}


def take(browser: httpx.Client, count: int = 1, **filters: list[str]) -> list[dict[str, Any]]:
    answer = browser.post("api/take", json={"filters": filters or REVIEW, "count": count})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    assert len(found) == count
    return found


def action(item: dict[str, Any], kind: str = "confirm", **more: Any) -> dict[str, Any]:
    named = {"answer_id": str(uuid.uuid4()), "content": item["content"], "revision": item["revision"]}
    return {**named, "kind": kind, "shared_ok": True, **more}


def say(browser: httpx.Client, *actions: dict[str, Any]) -> list[dict[str, Any]]:
    answer = browser.post("api/answers", json={"actions": actions})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def summary(browser: httpx.Client, query: str = "") -> dict[str, Any]:
    answer = browser.get(f"api/summary{query}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# ------------------------------------------------------------------ what is asked for first


@pytest.mark.slow
def test_the_page_learns_who_asks_and_what_there_is(scene: Scene, browse: Browse) -> None:
    told = browse(LI).get("api/me").json()
    assert (told["user"], told["role"], told["timezone"]) == (LI, "reviewer", "Asia/Shanghai")
    assert told["today"] == scene.shop.settings.today().isoformat()
    assert told["lease_seconds"] == 300
    assert told["reasons"]["corrupt"] == "文件已损坏"
    assert {"食品", "食品 > 生鲜", "饮料 > 酒类", "其他"} <= set(told["kept_categories"])
    assert "食品 > 生鲜 > 果蔬" not in told["kept_categories"]
    assert told["taxonomy_version"] == scene.shop.names.version
    assert {user: browse(user).get("api/me").json()["role"] for user in (ADMIN, VIEWER)} == {
        ADMIN: "admin",
        VIEWER: "viewer",
    }


@pytest.mark.slow
def test_categories_that_somebody_looks_after_are_remembered(browse: Browse) -> None:
    browser = browse(ANNA)
    answer = browser.put("api/me/categories", json={"categories": ["饮料>酒类", "食品", "食品"]})
    assert answer.json() == {"categories": ["饮料 > 酒类", "食品"]}
    assert browser.get("api/me").json()["categories"] == ["饮料 > 酒类", "食品"]
    assert browse(LI).get("api/me").json()["categories"] == []
    refused = browser.put("api/me/categories", json={"categories": [""]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "refused")
    assert browser.put("api/me/categories", json={"categories": []}).json() == {"categories": []}


@pytest.mark.slow
def test_before_the_first_night_the_page_opens_and_says_what_is_missing(scene: Scene, browse: Browse) -> None:
    pointer = Path(scene.shop.store.path(taxonomy.POINTER))
    aside = pointer.with_suffix(".aside")
    pointer.rename(aside)
    try:
        told = browse(LI).get("api/me").json()
        assert (told["taxonomy_version"], told["kept_categories"]) == ("", [])
        refused = browse(LI).get("api/taxonomy")
        assert refused.status_code == 400
        assert "标签体系" in refused.json()["error"]["message"]
    finally:
        aside.rename(pointer)


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_told_without_saying_where_it_is(scene: Scene, browse: Browse) -> None:
    browser = browse(LI)
    state = scene.shop.settings.state_dir
    aside = state.with_name("aside")
    state.rename(aside)
    try:
        failing = browser.post("api/take", json={"count": 1})
    finally:
        aside.rename(state)
    assert (failing.status_code, failing.json()["error"]["code"]) == (503, "unavailable")
    assert str(state.parent) not in failing.text
    assert browser.post("api/take", json={"count": 1}).status_code == 200


# ------------------------------------------------------------------ the queue


@pytest.mark.slow
def test_two_people_get_different_items_and_give_them_back(browse: Browse) -> None:
    li, zhang = browse(LI), browse(ZHANG)
    mine, others = take(li, 5), take(zhang, 5)
    contents = [item["content"] for item in mine]
    assert not set(contents) & {item["content"] for item in others}
    renewed = li.post("api/renew", json={"contents": contents}).json()
    assert renewed == {"contents": contents, "items": mine}
    assert zhang.post("api/renew", json={"contents": contents}).json() == {"contents": [], "items": []}
    more = li.post("api/take", json={"filters": REVIEW, "count": 5, "held": contents}).json()["items"]
    assert not set(contents) & {item["content"] for item in more}
    li.post("api/release", json={"contents": contents})
    assert contents[0] in {item["content"] for item in take(zhang, 10)}


@pytest.mark.slow
def test_an_item_has_all_that_the_page_shows(scene: Scene, browse: Browse) -> None:
    browser = browse(LI)
    item = take(browser, 1, categories=["食品"])[0]
    assert item["category_path"].startswith("食品 > ")
    assert item["tags"][0]["label_id"] == item["label_id"]
    assert item["tags"][0]["category_path"] == item["category_path"]
    assert len(item["tags"]) == 5
    assert item["reason_zh"] == "置信度不足"
    assert (item["shown_because"], item["state"], item["has_picture"]) == ("review", "open", True)
    forced = take(browser, 1, decisions=["forced_review"])[0]
    assert forced["reason_zh"] == "按规定，“饮料 > 酒类”类目必须人工审核"
    assert forced["needed"] == 2
    picture = browser.get(f"pictures/{item['content']}")
    assert "immutable" in picture.headers["cache-control"]
    assert picture.headers["cache-control"].startswith("private")
    missing = browser.get(f"pictures/{'0' * 64}")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "no_picture")


@pytest.mark.slow
def test_a_label_is_called_what_it_is_called_now(scene: Scene, browse: Browse) -> None:
    item = take(browse(LI), 1)[0]
    before = scene.shop.store.read_pointer(taxonomy.POINTER)
    assert before is not None
    known = taxonomy.read(scene.shop.store, str(before.value["version"])).by_id[item["label_id"]]
    renamed = taxonomy.Label(**{**vars(known), "label_zh": "改过的名字"})
    taxonomy.edit(scene.shop.store, "test", {known.label_id: renamed})
    try:
        again = browse(LI).get(f"api/items/{item['content']}").json()["item"]
        assert (again["label_zh"], again["tags"][0]["label_zh"]) == ("改过的名字", "改过的名字")
    finally:
        taxonomy.edit(scene.shop.store, "test", {known.label_id: known})


@pytest.mark.slow
def test_what_stands_beside_an_item_comes_with_it(scene: Scene, browse: Browse) -> None:
    browser = browse(LI)
    with database.reading(scene.shop.settings) as connection:
        waiting = connection.execute(sa.select(review_items).where(review_items.c.state == "open")).mappings().all()
    beside = next(row for row in waiting if row["siblings"])
    told = browser.get(f"api/items/{beside['content_sha256']}").json()
    assert told["item"]["siblings"] == len(told["siblings"]) > 0
    assert told["siblings"][0]["content"] == beside["siblings"][0]["content_sha256"]
    assert told["siblings"][0]["has_picture"] is True
    near = next(row for row in waiting if row["near"])
    alike = browser.get(f"api/items/{near['content_sha256']}").json()["alike"]
    assert len(alike) == near["near"]
    assert near["content_sha256"] not in {item["content"] for item in alike}
    assert browser.get(f"api/items/{'0' * 64}").status_code == 404


@pytest.mark.slow
def test_counts_follow_the_filters_and_the_answers(browse: Browse) -> None:
    browser = browse(LI)
    everything = summary(browser)
    assert {facet["value"] for facet in everything["facets"]["date"]} == {DATE.isoformat()}
    labels = everything["facets"]["label"]
    assert labels[0]["name"]
    narrowed = summary(browser, f"?labels={labels[0]['value']}&labels={labels[1]['value']}")
    assert narrowed["left"] == labels[0]["count"] + labels[1]["count"]
    longest = "类" * 500
    assert summary(browser, f"?categories={longest}")["left"] == 0
    assert browser.post("api/take", json={"filters": {"categories": [longest]}, "count": 1}).json()["items"] == []
    reasons = {facet["value"]: facet["name"] for facet in everything["facets"]["reason"]}
    assert reasons["low_confidence"] == "置信度不足"
    assert "必须人工审核" in reasons["forced_category"]
    assert say(browser, action(take(browser)[0]))[0]["status"] == "saved"
    after = summary(browser)
    assert after["left"] == everything["left"] - 1
    assert after["done_today"] == everything["done_today"] + 1
    assert after["mine_today"] == everything["mine_today"] + 1
    assert summary(browse(VIEWER))["mine_today"] == 0


# ------------------------------------------------------------------ answers


@pytest.mark.slow
def test_an_answer_is_kept_shown_and_taken_back(browse: Browse) -> None:
    browser = browse(LI)
    item = take(browser)[0]
    said = action(item, "correct", labels=["shop:f2"], comment="梨 <b>")
    (result,) = say(browser, said)
    assert (result["answer_id"], result["content"], result["status"]) == (said["answer_id"], item["content"], "saved")
    assert say(browser, said)[0]["status"] == "already"
    last = browser.get("api/history?count=1").json()["answers"][0]
    assert (last["answer_id"], last["by"], last["labels_zh"]) == (said["answer_id"], LI, ["库尔勒香梨"])
    assert (last["comment"], last["retracted"]) == ("梨 <b>", False)
    assert browse(ZHANG).get("api/history").json()["answers"] == []
    everybody = browse(ZHANG).get("api/history?everybody=true").json()["answers"]
    assert said["answer_id"] in {one["answer_id"] for one in everybody}
    assert browse(ZHANG).post("api/undo", json={"answer_ids": [said["answer_id"]]}).json()["results"][0]["status"] == (
        "refused"
    )
    undone = browser.post("api/undo", json={"answer_ids": [said["answer_id"]]}).json()
    assert undone["results"][0]["status"] == "saved"
    assert [one["content"] for one in undone["items"]] == [item["content"]]
    assert undone["items"][0]["revision"] > item["revision"]
    assert browser.get("api/history?count=1").json()["answers"][0]["retracted"] is True


@pytest.mark.slow
def test_the_second_of_two_answers_changes_nothing_and_says_who_was_first(browse: Browse) -> None:
    li, zhang = browse(LI), browse(ZHANG)
    item = take(li)[0]
    assert say(li, action(item))[0]["status"] == "saved"
    (late,) = say(zhang, action(item, "reject_image", reason="corrupt"))
    assert (late["status"], late["by"]) == ("conflict", LI)
    assert LI in late["message"]


@pytest.mark.slow
def test_a_grid_is_cleared_in_one_request(browse: Browse) -> None:
    browser = browse(LI)
    label = next(one for one in summary(browser)["facets"]["label"] if one["value"].startswith("shop:f"))
    shown = browser.post("api/grid", json={"label_id": label["value"], "filters": REVIEW}).json()["items"]
    assert shown
    assert {item["label_id"] for item in shown} == {label["value"]}
    wrong, right = shown[0], shown[1:]
    actions = [action(wrong, "wrong_unknown", later=True), *(action(item) for item in right)]
    assert {one["status"] for one in say(browser, *actions)} == {"saved"}
    # What was ticked waits, before all else.
    first = take(browser, 1, states=["later"])[0]
    assert (first["content"], first["state"]) == (wrong["content"], "later")
    assert say(browser, action(first, "reject_image", reason="too_small"))[0]["status"] == "saved"


@pytest.mark.slow
def test_what_a_grid_has_already_is_not_given_again(browse: Browse) -> None:
    browser = browse(LI)
    label = next(one["value"] for one in summary(browser)["facets"]["label"] if one["value"].startswith("shop:f"))
    shown = browser.post("api/grid", json={"label_id": label}).json()["items"]
    assert len(shown) > 1
    held = [item["content"] for item in shown[:1]]
    assert browser.post("api/grid", json={"label_id": label, "held": held}).json()["items"] == shown[1:]
    refused = browser.post("api/grid", json={"label_id": label, "held": held * 1001})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_body")


@pytest.mark.slow
def test_who_only_looks_sees_the_same_and_holds_nothing(scene: Scene, browse: Browse) -> None:
    li, guest = browse(LI), browse(VIEWER)
    taken = take(li, 3)
    found = guest.get("api/peek", params={"decisions": "review", "count": 3}).json()
    assert found["items"] == taken
    assert found["left"] == summary(guest, "?decisions=review")["left"]
    held = [item["content"] for item in taken[:2]]
    rest = guest.get("api/peek", params={"decisions": "review", "count": 1, "held": held}).json()["items"]
    assert rest == taken[2:]
    label = taken[0]["label_id"]
    shown = guest.get("api/grid", params={"label_id": label, "decisions": "review"}).json()["items"]
    assert taken[0] in shown
    assert {item["label_id"] for item in shown} == {label}
    scene.change(taken[2]["content"], state="second", blind=True)
    # Nobody but an admin can ask for what waits for a second look.
    wanted = {"decisions": "review", "states": "second"}
    assert len(guest.get("api/peek", params=wanted).json()["items"]) > 1
    assert summary(guest, "?decisions=review&states=second") == summary(guest, "?decisions=review")
    told = browse(ADMIN).get("api/peek", params=wanted).json()["items"]
    assert [one["content"] for one in told] == [taken[2]["content"]]
    scene.change(taken[2]["content"], state="open", blind=False)
    assert guest.post("api/take", json={"count": 1}).status_code == 403
    assert guest.post("api/grid", json={"label_id": label}).status_code == 403
    for query in ("peek?count=0", "peek?count=101", "peek?held=x", "grid", "grid?label_id=a&count=51"):
        assert guest.get(f"api/{query}").json()["error"]["code"] == "bad_request", query


@pytest.mark.slow
def test_two_must_agree_and_a_third_sees_what_they_said(scene: Scene, browse: Browse) -> None:
    li, zhang, anna = browse(LI), browse(ZHANG), browse(ANNA)
    item = take(li, 1, decisions=["forced_review"])[0]
    address = f"api/items/{item['content']}"
    said = action(item)
    assert say(li, said)[0]["status"] == "held"
    # Until somebody else has looked, nobody is told what was said but its author and who answers for all.
    seen = zhang.get(address).json()
    assert seen["opinions"] is None
    everybody = "api/history?everybody=true"
    readers = {user: browse(user).get(everybody).json()["answers"] for user in (LI, ZHANG, ADMIN)}
    knows = {user: said["answer_id"] in {one["answer_id"] for one in rows} for user, rows in readers.items()}
    assert knows == {LI: True, ZHANG: False, ADMIN: True}
    assert say(zhang, action(seen["item"], "correct", labels=["shop:f1"]))[0]["status"] == "held"
    told = anna.get(address).json()
    assert told["item"]["state"] == "disputed"
    assert told["opinions"] == [
        {"by": LI, "kind": "confirm", "labels_zh": [item["label_zh"]]},
        {"by": ZHANG, "kind": "correct", "labels_zh": ["香蕉🍌"]},
    ]
    assert say(anna, action(told["item"], "correct", labels=["shop:f1"]))[0]["status"] == "saved"
    assert anna.get(address).json()["opinions"] is None


@pytest.mark.slow
def test_a_blind_second_look_is_not_known_to_be_one(scene: Scene, browse: Browse) -> None:
    li, zhang = browse(LI), browse(ZHANG)
    item = take(li)[0]
    scene.change(item["content"], blind=True)
    assert say(li, action(item))[0]["status"] == "saved"
    seen = zhang.get(f"api/items/{item['content']}").json()
    assert (seen["item"], seen["opinions"]) == (item, None)
    rows = {user: browse(user).get("api/history?everybody=true").json()["answers"] for user in (LI, ZHANG, ADMIN)}
    knows = {user: item["content"] in {one["content"] for one in told} for user, told in rows.items()}
    assert knows == {LI: True, ZHANG: False, ADMIN: True}
    assert say(zhang, action(seen["item"], "correct", labels=["shop:h1"]))[0]["status"] == "held"
    told = browse(ANNA).get(f"api/items/{item['content']}").json()
    assert [one["by"] for one in told["opinions"]] == [LI, ZHANG]
    assert say(browse(ANNA), action(told["item"]))[0]["status"] == "saved"


# ------------------------------------------------------------------ labels, reports, who changed what


@pytest.mark.slow
def test_all_labels_come_once_and_packed(scene: Scene, browse: Browse) -> None:
    browser = browse(LI)
    version = browser.get("api/me").json()["taxonomy_version"]
    answer = browser.get(f"api/labels/{version}")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    rows = {row[0]: row for row in answer.json()["labels"]}
    assert rows["shop:w0"][1] == "红酒🍷"
    assert rows["shop:w0"][4] == "饮料 > 酒类 > 瓶装酒"
    assert "hong jiu" in rows["shop:w0"][5]
    plain = browser.get(f"api/labels/{version}", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == answer.json()
    assert browser.get("api/labels/t999999-0").status_code == 404


@pytest.mark.slow
def test_scripts_are_asked_for_again_but_not_sent_again(browse: Browse) -> None:
    browser = browse(LI)
    first = browser.get("static/js/main.js")
    assert first.headers["content-type"].startswith("text/javascript")
    again = browser.get("static/js/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.slow
def test_the_morning_lists_what_can_be_read(scene: Scene, browse: Browse) -> None:
    name = "0123456789ab-0123456789ab-0123456789ab"
    for key in ("reports/date=2026-02-28/index.html", "reports/date=2026-03-01/index.html"):
        scene.shop.store.write_bytes(key, "<!DOCTYPE html><title>日报</title>".encode())
    scene.shop.store.write_bytes(f"tagdiffs/{name}/index.html", b"<!DOCTYPE html>")
    scene.shop.store.write_bytes("tagdiffs/unfinished/changes.parquet", b"")
    told = browse(VIEWER).get("api/morning").json()
    assert told["reports"] == ["2026-03-01", "2026-02-28"]
    assert told["tagdiffs"] == [{"name": name}]
    versions = tagdiff.Versions("tagger", "1", "2", "", "", True, "", "", 0, "live")
    counts = [tagdiff.Count()] * 9
    diff = tagdiff.TagDiff(name, "2026-11-22T19:47:00+00:00", versions, 0, 0, *counts, (), (), tagdiff.Known(), ())
    scene.shop.store.write_json(f"tagdiffs/{name}/summary.json", diff.to_json())
    [told_of] = browse(VIEWER).get("api/morning").json()["tagdiffs"]
    assert told_of == {"name": name, "before": "1", "after": "2", "made_at": diff.made_at}
    assert told["left"] == summary(browse(VIEWER))["left"]
    for path in (f"reports/{told['reports'][0]}/", f"tagdiffs/{name}/"):
        assert browse(VIEWER).get(path).headers["content-type"].startswith("text/html")
    assert browse(VIEWER).get("reports/2020-01-01/").status_code == 404


@pytest.mark.slow
def test_one_bad_morning_is_taken_back_by_an_admin_and_written_down(scene: Scene, browse: Browse) -> None:
    anna, admin = browse(ANNA), browse(ADMIN)
    begun = scene.shop.settings.now()
    done = take(anna, 3)
    assert {one["status"] for one in say(anna, *map(action, done))} == {"saved"}
    until = scene.shop.settings.now()
    chosen = {"person": ANNA, "since": begun.isoformat(), "until": until.isoformat()}
    found = admin.post("api/bulk/preview", json=chosen).json()
    assert found["count"] == 3
    assert sum(label["count"] for label in found["labels"]) == 3
    assert {label["label_zh"] for label in found["labels"]} == {item["label_zh"] for item in done}
    assert set(found["samples"]) == {item["content"] for item in done}
    seen = {name: found[name] for name in ("upto", "at", "count")}
    for missing in seen:
        given = {**chosen, **{name: value for name, value in seen.items() if name != missing}}
        assert admin.post("api/bulk/take-back", json=given).json()["error"]["code"] == "no_preview"
    huge = admin.post("api/bulk/take-back", json={**chosen, **seen, "upto": 10**30})
    assert (huge.status_code, huge.json()["error"]["code"]) == (400, "bad_body")
    changed = admin.post("api/bulk/take-back", json={**chosen, **seen, "count": 2})
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "changed")
    assert "请重新预览" in changed.json()["error"]["message"]
    taken = admin.post("api/bulk/take-back", json={**chosen, **seen})
    assert taken.json() == {"count": 3}
    assert {one["content"] for one in done} <= {one["content"] for one in take(browse(LI), 20)}
    event = browse(VIEWER).get("api/events?count=1").json()["events"][0]
    assert (event["person"], event["action"]) == (ADMIN, "took_back")
    for wrong in ("yesterday", "2026-03-01T08:00:00"):
        answer = admin.post("api/bulk/preview", json={**chosen, "since": wrong})
        assert answer.json()["error"]["code"] == "no_time"


@pytest.mark.slow
def test_a_label_that_was_missed_is_proposed_and_accepted(scene: Scene, browse: Browse) -> None:
    li, admin = browse(LI), browse(ADMIN)
    item = take(li)[0]
    missed = {"label_zh": "人参果", "category_path": "食品 > 生鲜 > 果蔬"}
    (result,) = say(li, action(item, "wrong_unknown", proposal=missed))
    assert result["status"] == "saved"
    (proposal,) = admin.get("api/proposals").json()["proposals"]
    assert (proposal["label_zh"], proposal["person"]) == ("人参果", LI)
    before = li.get("api/me").json()["taxonomy_version"]
    address = f"api/proposals/{proposal['proposal_id']}"
    assert li.post(address, json={"decision": "accept"}).status_code == 403
    assert admin.post(address, json={"decision": "accept", "label_zh": "人参果🍐"}).status_code == 200
    assert admin.get("api/proposals").json()["proposals"] == []
    after = li.get("api/me").json()["taxonomy_version"]
    assert after != before
    labels = li.get(f"api/labels/{after}").json()["labels"]
    assert "人参果🍐" in {row[1] for row in labels}
    assert admin.post(address, json={"decision": "refuse"}).json()["error"]["code"] == "refused"


# ------------------------------------------------------------------ around it


ABSENT = """
import asyncio, importlib.util, json, sys
sys.modules["duckdb"] = None
spec = importlib.util.spec_from_file_location("airflow_plugin", sys.argv[1])
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)
light = sorted(name for name in sys.modules if name.startswith("wwts_ops.web") or name in ("sqlalchemy.orm", "pyarrow"))

async def ask(pages):
    got = []
    async def send(message):
        got.append(message)
    scope = {"type": "http", "method": "GET", "path": "/wwts/", "root_path": "/wwts", "asgi": {"version": "3.0"}}
    await pages({**scope, "headers": [], "query_string": b"", "http_version": "1.1"}, None, send)
    return got[0]["status"], got[1]["body"].decode()

pages = plugin.Pages()
first = asyncio.run(ask(pages))
del sys.modules["duckdb"]
print(json.dumps([[name for name in light if name.startswith("wwts_ops")], first, asyncio.run(ask(pages))[0]]))
"""


def test_without_its_packages_the_page_says_so_and_airflow_goes_on(tmp_path: Path) -> None:
    kept = plain()
    environment = {**kept, "AIRFLOW_HOME": str(tmp_path / "home"), "WWTS_STORE": str(tmp_path / "store")}
    plugin = ROOT / "plugins" / "wwts_ops" / "airflow_plugin.py"
    command = [sys.executable, "-c", ABSENT, str(plugin)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    early, (status, body), later = json.loads(done.stdout.splitlines()[-1])
    assert early == [], "the plugin itself loads none of it"
    assert status == 503
    assert json.loads(body)["error"]["code"] == "not_ready"
    assert "duckdb" not in body
    assert later == 401, "once they are there, the page is"


def test_our_own_airflows_one_user_may_do_everything(tmp_path: Path, clean_environment: None) -> None:
    store = str(tmp_path / "store")
    found = servers.airflow_environment(settings.load(store=store), tmp_path / "home")
    assert (found["WWTS_REVIEWERS"], found["WWTS_REVIEW_ADMINS"]) == ("admin", "admin")
    named = settings.load(store=store, reviewers="小李, 小张")
    found = servers.airflow_environment(named, tmp_path / "home")
    assert (found["WWTS_REVIEWERS"], found["WWTS_REVIEW_ADMINS"]) == ("小李,小张", "admin")


def test_whoever_asks_for_any_original_waits_for_a_turn(tmp_path: Path, clean_environment: None) -> None:
    """What is no item is looked for in all that is published: nobody keeps every thread of the server at that."""
    shop = ReviewShop.made(tmp_path, 5)
    app = FastAPI()
    app.state.settings, app.state.fetcher = shop.settings, pictures.fetcher(shop.settings)
    request, visitor = Request({"type": "http", "app": app}), Visitor(VIEWER, Role.VIEWER)
    with pytest.raises(RefusedError) as refused:
        pictures.original(request, visitor, "0" * 64)
    assert refused.value.status == 404
    with ExitStack() as busy:
        for _ in range(pictures._AT_ONCE):
            busy.enter_context(pictures._in_turn())
        with pytest.raises(RefusedError) as refused:
            pictures.original(request, visitor, "0" * 64)
    assert refused.value.status == 503
