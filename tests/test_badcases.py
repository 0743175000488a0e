"""The bad-case store: what people hand in, what is refused, and snapshots that nothing and nobody loses."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forkserver import CONTEXT
from night_run import WWTS
from openpyxl import Workbook
from PIL import Image

from wwts_ops import badcases, demo, images, logs, settings, taxonomy
from wwts_ops.badcases import BadCase, Snapshot, snapshots
from wwts_ops.errors import WwtsError
from wwts_ops.schemas import BADCASES, PUBLISHED
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Label

CUP, CAT, TRIPOD, MOPED = "imagenet:n07930864", "imagenet:n02123045", "imagenet:n04485082", "imagenet:n03785016"
SHOP = (Label("shop:1", "圆领衫"), Label("shop:2", "圆领衫"), Label("a_b:c", "甲"), Label("a:b_c", "乙"))
MOMENT = datetime(2026, 3, 1, 4, 5, 6, 789, tzinfo=UTC)
SECONDS = 600

Rows = Sequence[Sequence[Any]]


class Shop:
    """A folder of photographs, and a store with a taxonomy and the starter set."""

    def __init__(self, folder: Path, found: Settings) -> None:
        self.folder, self.settings, self.store = folder, found, Store.of(found)
        if "shop:1" not in taxonomy.ensure(self.store, ()).by_id:
            taxonomy.edit(self.store, "测试", {label.label_id: label for label in SHOP})
        self.first = badcases.ensure(self.store, taxonomy.ensure(self.store, ()))

    def photo(self, name: str, number: int = 0) -> Path:
        """A crop of a real photograph; another one for every number."""
        source = demo.photographs()[number % 10]
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as opened:
            width, height = opened.size
            opened.convert("RGB").crop((number + 3, 0, width, height)).save(path, quality=80)
        return path

    def csv(self, rows: Rows, name: str = "案例 🍓.csv") -> Path:
        path = self.folder / name
        path.write_bytes(csv_bytes(rows))
        return path

    def add(self, source: Path, author: str = "小王") -> badcases.Imported:
        return badcases.import_cases(self.store, self.settings, source, author)

    def refusal(self, source: Path) -> list[str]:
        """The sentences with which ``source`` is refused; the store must not have changed."""
        before = self.store.list("badcases")
        with pytest.raises(WwtsError) as error:
            self.add(source)
        assert self.store.list("badcases") == before
        return str(error.value).splitlines()

    def added(self) -> tuple[BadCase, ...]:
        """The cases that are not the starter set's."""
        snapshot = badcases.current(self.store)
        assert snapshot is not None
        return tuple(case for case in snapshot.cases if not case.starter)


def csv_bytes(rows: Rows, encoding: str = "utf-8", delimiter: str = ",") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode(encoding)


def sha(path: Path) -> str:
    return images.content_sha256(path.read_bytes())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A shop that nothing is added to: tests that add take a copy."""
    folder = tmp_path_factory.mktemp("案例")
    return Shop(folder, settings.load(store=str(folder / "store")))


@pytest.fixture
def shop(prepared: Shop, make_settings: Callable[..., Settings], tmp_path: Path) -> Shop:
    shutil.copytree(prepared.settings.store, tmp_path / "store")
    return Shop(tmp_path, make_settings())


@pytest.fixture(params=["folder", "s3"])
def any_shop(request: pytest.FixtureRequest, make_settings: Callable[..., Settings], tmp_path: Path) -> Shop:
    if request.param == "folder":
        return Shop(tmp_path, make_settings())
    server = request.getfixturevalue("s3_server")
    root = f"s3://{server.bucket}/案例-{uuid.uuid4().hex[:8]}"
    url = f"sqlite:///{tmp_path / 'wwts.db'}"
    return Shop(tmp_path, make_settings(store=root, s3_endpoint=server.endpoint, database_url=url))


# ------------------------------------------------------------------ the starter set


def test_the_starter_set_ships_twelve_photographs_with_known_labels(shop: Shop) -> None:
    known = taxonomy.ensure(shop.store, ()).by_id
    assert len(shop.first.cases) >= 12
    assert len({case.content_sha256 for case in shop.first.cases}) == len(shop.first.cases)
    for case in shop.first.cases:
        assert case.starter
        assert case.slices == ("starter",)
        assert case.accepted
        assert known.keys() >= set(case.accepted)
        images.decode(badcases.content(shop.store, case.content_sha256), 224, shop.settings.max_pixels)
    assert shop.first == badcases.ensure(shop.store, taxonomy.ensure(shop.store, ())) == badcases.current(shop.store)


def test_the_starter_set_is_the_same_everywhere(shop: Shop, tmp_path: Path) -> None:
    other = badcases.ensure(Store(str(tmp_path / "another")), taxonomy.embedded(()))
    assert [case.content_sha256 for case in other.cases] == [case.content_sha256 for case in shop.first.cases]


@pytest.mark.parametrize("instead", ["no package", "another picture"])
def test_missing_photographs_make_fewer_cases(
    instead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    if instead == "another picture":
        monkeypatch.delitem(sys.modules, "skimage")
        data = tmp_path / "packages" / "skimage" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        shutil.copyfile(next(photo for photo in demo.photographs() if photo.name == "china.jpg"), data / "chelsea.png")
        monkeypatch.syspath_prepend(data.parents[1])
    with caplog.at_level(logging.WARNING):
        found = badcases.ensure(Store(str(tmp_path / "store")), taxonomy.embedded(()))
    assert {CAT, TRIPOD}.isdisjoint({label for case in found.cases for label in case.accepted})
    assert found.cases  # scikit-learn and matplotlib are still there
    assert "skimage/data/chelsea.png" in caplog.text


def test_a_shop_with_labels_of_its_own_starts_with_no_case(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    found = badcases.ensure(store, replace(taxonomy.embedded(()), labels=SHOP))
    assert found.cases == found.active == ()
    assert badcases.current(store) == badcases.read(store, found.name) == found


# ------------------------------------------------------------------ files that people hand in


def given(shop: Shop) -> Rows:
    shop.photo("照片/咖啡 ☕.jpg", 1)
    shop.photo("照片/猫🐱.png", 2)
    return [
        ["图片路径", "标签ID", "禁止标签", "分组", "负责人", "原因", "不许退步", "备注"],
        ["照片/咖啡 ☕.jpg", f"{CUP}|{MOPED}", "", "饮具 ☕ > 杯/碗|夜间 拍摄", "张三", "被标成\n摩托车", "是", "x"],
        [],
        ["照片/猫🐱.png", "", f"{MOPED}｜{CUP}", "", "", "", "0", ""],
    ]


def as_xlsx(rows: Rows) -> bytes:
    book = Workbook()
    for row in rows:
        book.worksheets[0].append([cell or None for cell in row])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def as_parquet(rows: Rows) -> bytes:
    header, *rest = rows
    filled = [row or [None] * len(header) for row in rest]
    columns = {name: [row[place] for row in filled] for place, name in enumerate(header)}
    columns["标签ID"] = [cell.split("|") if cell else None for cell in columns["标签ID"]]
    columns["不许退步"] = [{"是": True, "0": False}.get(cell) for cell in columns["不许退步"]]
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


FILES: dict[str, tuple[str, Callable[[Rows], bytes]]] = {
    "UTF-8": (".csv", csv_bytes),
    "with BOM": (".CSV", lambda rows: csv_bytes(rows, "utf-8-sig")),
    "GB18030": (".csv", lambda rows: csv_bytes(rows, "gb18030")),
    "UTF-16 with tabs": (".csv", lambda rows: csv_bytes(rows, "utf-16", "\t")),
    "TSV": (".tsv", lambda rows: csv_bytes(rows, delimiter="\t")),
    "semicolons": (".csv", lambda rows: csv_bytes(rows, delimiter=";")),
    "XLSX": (".xlsx", as_xlsx),
    "Parquet": (".parquet", as_parquet),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_same_cases(kind: str, shop: Shop) -> None:
    suffix, write = FILES[kind]
    source = shop.folder / f"案例 🍓{suffix}"
    source.write_bytes(write(given(shop)))
    done = shop.add(source)
    assert (done.added, done.unchanged, done.ignored) == (2, 0, ("备注",))
    coffee, cat = shop.added()
    assert coffee == BadCase(
        content_sha256=sha(shop.folder / "照片/咖啡 ☕.jpg"),
        accepted=(CUP, MOPED),
        forbidden=(),
        slices=("饮具 ☕ > 杯/碗", "夜间 拍摄"),
        owner="张三",
        reason="被标成 摩托车",
        never_regress=True,
        starter=False,
        image_id=None,
        uri=str(shop.folder / "照片/咖啡 ☕.jpg"),
        added_at=coffee.added_at,
        added_by="小王",
    )
    assert (cat.accepted, cat.forbidden, cat.slices) == ((), (MOPED, CUP), ())
    assert (cat.owner, cat.reason, cat.never_regress) == ("小王", "", False)
    assert badcases.content(shop.store, cat.content_sha256) == (shop.folder / "照片/猫🐱.png").read_bytes()


def test_a_folder_has_one_subfolder_a_label(shop: Shop) -> None:
    expected = {}
    names = {"杯子": CUP, "imagenet_n02123045": CAT, "imagenet：n04485082": TRIPOD, MOPED: MOPED, "shop_2": "shop:2"}
    for number, (name, label) in enumerate(names.items()):
        expected[sha(shop.photo(f"案例/{name}/照片 {number} 📷.jpg", number))] = label
    expected[sha(shop.photo("案例/杯子/更多/深处.png", 9))] = CUP
    for litter in (".DS_Store", "Thumbs.db", "杯子/.DS_Store", "杯子/desktop.ini"):
        (shop.folder / "案例" / litter).write_bytes(b"\0")
    done = shop.add(shop.folder / "案例")
    assert (done.added, done.unchanged) == (6, 0)
    assert {case.content_sha256: case.accepted for case in shop.added()} == {
        content: (label,) for content, label in expected.items()
    }


def test_folders_whose_label_nobody_can_know_are_refused(shop: Shop) -> None:
    for number, place in enumerate(("圆领衫/一.jpg", "a_b_c/二.jpg", "没有这个/三.jpg", "四.jpg")):
        shop.photo(f"案例/{place}", number)
    (shop.folder / "案例/杯子").mkdir()
    (shop.folder / "案例/杯子/说明.txt").write_text("不是图片", encoding="utf-8")
    first, *rest = shop.refusal(shop.folder / "案例")
    assert "mend 5 rows" in first
    said = dict(line.split(": ", 1) for line in rest)
    assert "shop:1 or shop:2" in said["圆领衫/一.jpg"]
    assert "a_b:c or a:b_c" in said["a_b_c/二.jpg"]
    assert "there is no label '没有这个'" in said["没有这个/三.jpg"]
    assert "subfolder" in said["四.jpg"]
    assert "not_an_image" in said["杯子/说明.txt"]


# ------------------------------------------------------------------ refusals

COLUMNS = ("uri", "label_id", "forbidden", "slice", "owner", "reason", "never_regress", "content_sha256", "image_id")
#: What is wrong with one row, and what is said of it.
WRONG = {
    "no such label": ({"label_id": "imagenet:x"}, "there is no label 'imagenet:x'"),
    "a name for an id": ({"label_id": "杯子"}, f"write its id, {CUP}"),
    "a name that two have": ({"label_id": "圆领衫"}, "write its id, shop:1 or shop:2"),
    "no such forbidden label": ({"forbidden": "imagenet:y"}, "there is no label 'imagenet:y'"),
    "no label at all": ({"label_id": ""}, "label_id is empty"),
    "only separators": ({"label_id": " | "}, "names nothing"),
    "accepted and forbidden": ({"forbidden": f"{CAT}|{CUP}"}, f"杯子 {CUP} is both accepted and forbidden"),
    "an odd flag": ({"never_regress": "maybe"}, "never_regress 'maybe' must be true or false"),
    "a reserved slice": ({"slice": "夜间|Overall"}, "slice 'Overall' is a group that is made by itself"),
    "old_labels": ({"slice": "old_labels"}, "slice 'old_labels'"),
    "new_labels": ({"slice": "new_labels"}, "slice 'new_labels'"),
    "a slice with a bell": ({"slice": "夜\x07间"}, "characters that can be seen"),
    "a long slice": ({"slice": "夜" * 65}, "must be at most 64"),
    "a long owner": ({"owner": "王" * 101}, "owner has 101 characters; 100 are the most"),
    "a long reason": ({"reason": "因" * 1001}, "reason has 1,001 characters"),
    "a control character": ({"reason": "a\x1b[31mb"}, "holds a control character"),
    "many labels": ({"label_id": "|".join(f"x{i}" for i in range(51))}, "label_id holds 51 parts; 50 are the most"),
    "no picture named": ({"uri": ""}, "it names no picture"),
    "no such file": ({"uri": "照片/没有.jpg"}, "没有.jpg could not be read: there is no such file"),
    "a folder": ({"uri": "照片"}, "is a folder"),
    "a cut picture": ({"uri": "cut.jpg"}, "cannot be used as a picture (truncated"),
    "no picture": ({"uri": "text.jpg"}, "cannot be used as a picture (not_an_image"),
    "a strange host": ({"uri": "https://example.com/a.jpg?key=secret"}, "example.com is not on WWTS_HTTPS_HOSTS"),
    "no https": ({"uri": "http://example.com/a.jpg"}, "http:// is not allowed"),
    "half a hash": ({"content_sha256": "abc"}, "content_sha256 'abc' must have 64 hex digits"),
    "bytes that changed": ({"content_sha256": "ab" * 32}, f"have changed: content {'ab' * 32} is now"),
    "an unknown content": ({"uri": "", "content_sha256": "ab" * 32}, "is not published; name its uri"),
    "an unknown image": ({"uri": "", "image_id": "没有 7"}, "image_id '没有 7' is not published"),
}


def rows_of(*changes: dict[str, str]) -> Rows:
    plain = {"uri": "照片/a.jpg", "label_id": CUP}
    return [COLUMNS, *([{**plain, **change}.get(column, "") for column in COLUMNS] for change in changes)]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_row(case: str, prepared: Shop) -> None:
    shop = prepared
    photo = shop.photo("照片/a.jpg", 1)
    shop.photo("照片/b.jpg", 2)
    (shop.folder / "cut.jpg").write_bytes(photo.read_bytes()[:5000])
    (shop.folder / "text.jpg").write_text("没有图片", encoding="utf-8")
    change, sentence = WRONG[case]
    said = shop.refusal(shop.csv(rows_of({"uri": "照片/b.jpg"}, {}, change)))
    assert "nothing was imported; mend 1 row and" in said[0]
    assert len(said) == 2
    assert said[1].startswith("row 4: ")
    assert sentence in said[1]
    assert "secret" not in said[1]
    assert "\x1b" not in said[1]


def test_all_faults_of_a_file_are_told_at_once_in_their_order(shop: Shop) -> None:
    shop.photo("照片/a.jpg", 1)
    changes = [change for change, _ in WRONG.values()]
    path = shop.csv(rows_of(*changes, {"uri": "没有.jpg", "never_regress": "?", "forbidden": CUP}))
    path.write_bytes(path.read_bytes() + b"only,two\r\n")
    said = shop.refusal(path)
    numbers = [int(line.split(":")[0].removeprefix("row ")) for line in said[1:]]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(2, len(changes) + 4))
    assert numbers.count(len(changes) + 2) == 3
    assert said[-1] == f"row {len(changes) + 3}: the row has 2 columns, the header has 9."


def test_the_same_picture_twice_in_a_file_must_say_the_same(shop: Shop) -> None:
    photo = shop.photo("照片/a.jpg", 1)
    shutil.copyfile(photo, shop.folder / "副本.jpg")
    said = shop.refusal(
        shop.csv(
            rows_of(
                {"slice": "夜间", "owner": "张三"},
                {"uri": "副本.jpg", "label_id": CAT},
                {"uri": "副本.jpg", "forbidden": CAT},
                {"slice": "白天", "owner": "李四"},
                {"uri": "副本.jpg"},
            )
        )
    )
    assert said[1:] == [
        "row 3: it shows the same picture as row 2, with another label.",
        "row 4: it shows the same picture as row 2, with another label.",
        "row 5: it shows the same picture as row 2, with another slice, another owner.",
    ]
    done = shop.add(shop.csv(rows_of({"slice": "夜间"}, {"slice": "夜间"}, {"uri": "副本.jpg"})))
    assert (done.added, done.unchanged) == (1, 2)


def test_what_contradicts_a_case_in_force_is_refused_until_that_is_retired(shop: Shop) -> None:
    photo = shop.photo("照片/a.jpg", 1)
    shop.add(shop.csv(rows_of({"slice": "夜间", "never_regress": "true", "label_id": f"{CUP}|{CAT}"})))
    short = sha(photo)[:12]
    for change, sentence in (
        ({"label_id": CAT}, f"with accepted: 杯子 {CUP}, 虎斑猫 {CAT}; forbidden: nothing"),
        ({"label_id": f"{CAT}|{CUP}", "forbidden": MOPED}, "with accepted"),
        ({"label_id": f"{CAT}|{CUP}", "slice": "白天", "never_regress": "0"}, "with another slice and never_regress"),
    ):
        (_, line) = shop.refusal(shop.csv(rows_of(change)))
        assert line.startswith(f"row 2: its picture is bad case {short} already, {sentence}")
        assert f"`wwts badcases retire {short}`" in line
    # What a row leaves out, it does not contradict; nor does the order of labels matter.
    assert shop.add(shop.csv(rows_of({"label_id": f"{CAT}|{CUP}"}))).added == 0
    badcases.retire(shop.store, "小李", short, "看错了")
    assert shop.add(shop.csv(rows_of({"label_id": CAT}))).added == 1
    old, new = shop.added()
    assert (old.retired_by, old.retired_reason, new.accepted) == ("小李", "看错了", (CAT,))


def test_starter_cases_stay_starter_cases(shop: Shop) -> None:
    starter = shop.first.cases[0]
    row = {"uri": "", "content_sha256": starter.content_sha256.upper(), "label_id": "|".join(starter.accepted)}
    source = shop.csv(rows_of({**row, "slice": "我们的", "owner": "张三"}))
    assert shop.add(source).snapshot == shop.first
    badcases.retire(shop.store, "小李", starter.content_sha256, "换个标签")
    again = shop.add(source).snapshot.active[-1]
    assert (again.content_sha256, again.starter, again.owner) == (starter.content_sha256, True, "张三")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("没有.csv", None, "is no file"),
        ("案例.txt", b"uri,label_id\na,b\n", "another suffix"),
        ("案例.csv", b"", "needs a column uri"),
        ("案例.csv", b"uri,label_id\r\n\r\n", "holds no bad case"),
        (
            "案例.csv",
            "图片,标签ID\na,b\n".encode(),
            "needs a column uri, image_id or content_sha256; its first row has",
        ),
        ("案例.csv", b"uri,reason\na,b\n", "needs a column label_id"),
        ("案例.csv", "uri,图片地址,label_id\na,b,c\n".encode(), "two columns for uri"),
        ("案例.csv", b'uri,label_id\na,b\n"a,b\n', "row 3 is no CSV"),
        ("案例.csv", b"uri,label_id\n\xff\xff\xff,b\n", "neither UTF-8 nor GB18030"),
        ("案例.xlsx", b"PK\x03\x04 no", "no whole XLSX"),
        ("案例.parquet", b"PAR1 no", "no whole Parquet"),
        ("案例.csv", b"uri,label_id\n" + b"a,b\n" * 20_001, "holds more than 20,000 bad cases"),
    ],
)
def test_files_that_cannot_be_read_are_refused(name: str, data: bytes | None, sentence: str, prepared: Shop) -> None:
    source = prepared.folder / name
    if data is not None:
        source.write_bytes(data)
    (said,) = prepared.refusal(source)
    assert str(source) in said
    assert sentence in said


def test_a_spreadsheet_that_lost_digits_of_an_id_is_refused(shop: Shop) -> None:
    source = shop.folder / "案例.xlsx"
    source.write_bytes(as_xlsx([["image_id", "label_id"], [12345678901234567890, CUP]]))
    assert "row 2: image_id" in shop.refusal(source)[1]


def test_a_picture_beyond_the_limits_is_refused(shop: Shop) -> None:
    shop.photo("照片/a.jpg", 1)
    source = shop.csv(rows_of({}))
    for limit, sentence in (({"max_image_bytes": 1000}, "WWTS_MAX_IMAGE_BYTES"), ({"max_pixels": 100}, "too_many")):
        with pytest.raises(WwtsError, match=sentence):
            badcases.import_cases(shop.store, shop.settings.model_copy(update=limit), source, "小王")


# ------------------------------------------------------------------ images of the catalog


def publish(store: Store, rows: Sequence[tuple[str, Path, str]]) -> None:
    """A published snapshot of (image id, file, content)."""
    blank = {"decision": "auto", "source": "model", "run_id": "r", "tagged_at": MOMENT, "state": "live"}
    found = [{**blank, "image_id": image, "uri": str(path), "content_sha256": content} for image, path, content in rows]
    store.write_table("published/s1/part-0.parquet", pa.Table.from_pylist(found, schema=PUBLISHED))
    assert store.replace_pointer("published/current.json", {"parts": ["published/s1/part-0.parquet"]}, None)


def test_images_are_found_by_what_is_published(shop: Shop) -> None:
    cup, cat, gone = (shop.photo(f"库/{name}.jpg", number) for number, name in enumerate("杯猫无"))
    copies = [("猫 一", shop.folder / "库/没了.jpg", sha(cat)), ("猫 二", cat, sha(cat))]
    publish(shop.store, [("杯 ☕", cup, sha(cup)), *copies, ("无", gone, sha(gone))])
    by_content = {"uri": "", "label_id": CAT, "content_sha256": sha(cat)}
    source = shop.csv(rows_of({"uri": "", "image_id": "杯 ☕"}, by_content))
    assert shop.add(source).added == 2
    first, second = shop.added()
    assert (first.image_id, first.uri, first.content_sha256) == ("杯 ☕", str(cup), sha(cup))
    assert (second.image_id, second.uri, second.content_sha256) == ("猫 二", str(cat), sha(cat))
    # The catalog loses them, the cases do not; and their contents can be named again.
    data = cat.read_bytes()
    cat.unlink()
    assert badcases.content(shop.store, second.content_sha256) == data
    assert shop.add(shop.csv(rows_of(by_content))).unchanged == 1
    # Bytes that are no longer those which were published are not taken for them.
    shutil.copyfile(cup, gone)
    assert "have changed" in shop.refusal(shop.csv(rows_of({"uri": "", "image_id": "无"})))[1]


# ------------------------------------------------------------------ snapshots


def test_an_import_can_be_run_again(any_shop: Shop) -> None:
    shop = any_shop
    source = shop.csv(given(shop))
    first = shop.add(source)
    assert shop.store.list("badcases")
    again = shop.add(source)
    assert (again.added, again.unchanged, again.snapshot) == (0, 2, first.snapshot)
    assert badcases.current(shop.store) == badcases.read(shop.store, first.snapshot.name) == first.snapshot
    assert first.snapshot.cases[: len(shop.first.cases)] == shop.first.cases
    pointer = shop.store.read_pointer("badcases/current.json")
    assert pointer is not None
    assert pointer.value == {
        "snapshot": first.snapshot.name,
        "sha256": first.snapshot.sha256,
        "author": "小王",
        "previous": shop.first.name,
        "sequence": 2,
    }
    assert first.snapshot.name == f"b000002-{first.snapshot.sha256[:12]}"
    for case in shop.added():
        assert images.content_sha256(badcases.content(shop.store, case.content_sha256)) == case.content_sha256
    damaged = shop.added()[1].content_sha256
    shop.store.write_bytes(snapshots.content_key(damaged), b"half a picture")
    shop.add(source)
    assert images.content_sha256(badcases.content(shop.store, damaged)) == damaged
    retired = badcases.retire(shop.store, "小李", shop.added()[0].content_sha256[:6], "不要了")
    assert len(retired.cases) == len(first.snapshot.cases)
    assert len(retired.active) == len(retired.cases) - 1
    assert badcases.read(shop.store, first.snapshot.name) == first.snapshot


CASE = BadCase("ab" * 32, ("a",), ("b",), ("c",), "d", "e", True, False, "f", "g", MOMENT, "h", MOMENT, "i", "j")


def another(value: object) -> object:
    if isinstance(value, bool):
        return not value
    others = {str: "x", tuple: ("x", "y"), datetime: MOMENT.replace(microsecond=790)}
    return others[type(value)]


def test_the_hash_of_a_snapshot_covers_every_field_and_the_order() -> None:
    changed = [replace(CASE, **{field.name: another(getattr(CASE, field.name))}) for field in fields(BadCase)]
    assert len({snapshots.digest((case,)) for case in (CASE, *changed)}) == 1 + len(fields(BadCase))
    assert snapshots.digest((CASE, changed[0])) != snapshots.digest((changed[0], CASE))


def test_snapshots_that_are_missing_or_damaged_are_told(shop: Shop) -> None:
    for name in ("b000009-000000000000", "../published", "", "b1/../../x"):
        with pytest.raises(WwtsError, match="no snapshot"):
            badcases.read(shop.store, name)
    key = f"badcases/{shop.first.name}/cases.parquet"
    table = shop.store.read_table(key)
    assert (table.schema.metadata or {})[b"sha256"].decode() == shop.first.sha256
    assert table.schema.equals(BADCASES)
    shop.store.write_table(key, table.slice(1))
    with pytest.raises(WwtsError, match="is damaged"):
        badcases.current(shop.store)
    victim = shop.first.cases[0].content_sha256
    shop.store.write_bytes(snapshots.content_key(victim), b"other bytes")
    with pytest.raises(WwtsError, match="is damaged"):
        badcases.content(shop.store, victim)
    with pytest.raises(WwtsError, match="has no picture of bad case"):
        badcases.content(shop.store, "0" * 64)


def test_retiring_needs_one_case_and_a_reason(shop: Shop) -> None:
    twins = tuple(replace(CASE, content_sha256=f"abcdef{n}".ljust(64, "0"), retired_at=None) for n in range(2))
    snapshots.change(shop.store, "小王", lambda cases: (*cases, *twins))
    for prefix, reason, sentence in (
        ("abcde", "x", "six or more"),
        ("xyzxyz", "x", "six or more"),
        ("abcdef", "x", "2 bad cases begin with abcdef"),
        ("000000", "x", "No bad case begins"),
        ("abcdef0", " ", "Say in at most"),
        ("abcdef0", "因" * 1001, "Say in at most"),
    ):
        with pytest.raises(WwtsError, match=sentence):
            badcases.retire(shop.store, "小李", prefix, reason)
    badcases.retire(shop.store, "小李", "ABCDEF0", "看错了")
    with pytest.raises(WwtsError, match="was retired by 小李: 看错了"):
        badcases.retire(shop.store, "小李", "abcdef0", "再来一次")
    badcases.retire(shop.store, "小李", "abcdef", "只剩一个了")


# ------------------------------------------------------------------ two at once, and kills


def import_in_a_process(store: str, source: str, at: int, moment: str, trace: str) -> None:
    """Imports, and dies at change number ``at`` of the store."""
    from night_process import Killer

    logs.configure("json", level=40)
    Killer(store, at, moment, Path(trace)).install()
    found = settings.load(store=store)
    badcases.import_cases(Store.of(found), found, Path(source), "进程")


def ended(processes: Sequence[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            pytest.fail("an import hangs")
    return [process.exitcode for process in processes]


@pytest.mark.slow
def test_imports_at_once_lose_nothing(shop: Shop) -> None:
    sources = []
    for number in range(4):
        photos = [shop.photo(f"照片/{number}-{extra}.jpg", 10 * extra + number) for extra in range(2)]
        photos.append(shop.photo("照片/都有.jpg", 99))
        sources.append(shop.csv(rows_of(*({"uri": str(path)} for path in photos)), f"案例 {number}.csv"))
    arguments = [(shop.settings.store, str(source), 0, "before", str(shop.folder / "trace")) for source in sources]
    processes = [CONTEXT.Process(target=import_in_a_process, args=given_) for given_ in arguments]
    for process in processes:
        process.start()
    assert ended(processes) == [0, 0, 0, 0]
    contents = [case.content_sha256 for case in shop.added()]
    assert len(contents) == len(set(contents)) == 9
    pointer = shop.store.read_pointer("badcases/current.json")
    assert pointer is not None
    assert pointer.sequence == 5


def test_imports_at_once_lose_nothing_on_a_server_either(any_shop: Shop) -> None:
    sources = []
    for number in range(3):
        shared = any_shop.photo("照片/都有.jpg", 9)
        rows = rows_of({"uri": str(any_shop.photo(f"照片/{number}.jpg", number))}, {"uri": str(shared)})
        sources.append(any_shop.csv(rows, f"案例 {number}.csv"))
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(any_shop.add, sources))
    assert sum(one.added for one in done) == len(any_shop.added()) == 4
    assert len({case.content_sha256 for case in any_shop.added()}) == 4


@pytest.mark.slow
def test_an_import_killed_anywhere_is_whole_or_absent(shop: Shop) -> None:
    source = shop.csv(given(shop))
    clean = shop.folder / "clean"
    shutil.copytree(shop.settings.store, clean)

    def run(number: int, at: int, moment: str) -> tuple[Store, int | None, list[str]]:
        root = shop.folder / f"killed-{number}"
        shutil.copytree(clean, root)
        trace = shop.folder / f"trace-{number}"
        process = CONTEXT.Process(target=import_in_a_process, args=(str(root), str(source), at, moment, str(trace)))
        process.start()
        (code,) = ended([process])
        return Store(str(root)), code, trace.read_text(encoding="utf-8").splitlines()

    whole, code, changes = run(0, 0, "before")
    assert code == 0
    count = len(current(whole).cases)
    assert count == len(shop.first.cases) + 2
    assert [change.split()[0] for change in changes].count("rename") == 4  # two pictures, the snapshot, the pointer
    points = [(at, "before") for at, change in enumerate(changes, start=1) if not change.startswith("write")]
    points.append((len(changes), "after"))
    for number, (at, moment) in enumerate(points, start=1):
        store, code, _ = run(number, at, moment)
        assert code == -9
        assert len(current(store).cases) in (len(shop.first.cases), count)
        again = badcases.import_cases(store, shop.settings, source, "重来")
        assert len(again.snapshot.cases) == count
        for case in again.snapshot.cases:
            badcases.content(store, case.content_sha256)


def current(store: Store) -> Snapshot:
    found = badcases.current(store)
    assert found is not None
    return found


# ------------------------------------------------------------------ embeddings


def test_embeddings_are_kept_per_backbone(any_shop: Shop) -> None:
    store, chance = any_shop.store, np.random.default_rng(7)
    backbone, twin = "b" * 64, "b" * 63 + "c"  # the folder's name is the same
    contents = [f"{number:064x}" for number in range(1500)]
    vectors = chance.standard_normal((1500, 8)).astype(np.float16)
    names, empty = badcases.embeddings(store, backbone)
    assert (names, empty.shape, empty.dtype) == ((), (0, 0), np.float16)
    badcases.add_embeddings(store, backbone, contents[:1200], vectors[:1200])
    badcases.add_embeddings(store, backbone, contents[1000:], np.flipud(vectors[1000:]))  # the first 200 are there
    badcases.add_embeddings(store, twin, contents[:1], vectors[1:2, :4])
    badcases.add_embeddings(store, backbone, [], np.empty((0, 8), np.float16))
    names, found = badcases.embeddings(store, backbone)
    assert sorted(names) == contents
    kept = dict(zip(names, found, strict=True))
    for number in range(1500):
        expected = vectors[number] if number < 1200 else vectors[2499 - number]
        assert np.array_equal(kept[contents[number]], expected)
    names, found = badcases.embeddings(store, twin)
    assert (names, found.tolist()) == ((contents[0],), [vectors[1, :4].tolist()])
    parts = store.list("badcases/embeddings", ".parquet")
    assert len(parts) == 3
    badcases.add_embeddings(store, backbone, contents, vectors)
    assert store.list("badcases/embeddings", ".parquet") == parts
    name = re.compile(r"badcases/embeddings/backbone=bbbbbbbbbbbbb/part-[0-9a-f]{12}\.parquet")
    assert all(name.fullmatch(part) for part in parts)


def test_embeddings_that_do_not_fit_are_refused(shop: Shop) -> None:
    badcases.add_embeddings(shop.store, "b" * 64, ["a"], np.ones((1, 8), np.float16))
    for contents, vectors in (
        (["b"], np.ones((1, 8), np.float32)),
        (["b"], np.ones((2, 8), np.float16)),
        (["b"], np.ones(8, np.float16)),
        (["b"], np.ones((1, 9), np.float16)),
    ):
        with pytest.raises(WwtsError):
            badcases.add_embeddings(shop.store, "b" * 64, contents, vectors)
    assert badcases.embeddings(shop.store, "b" * 64)[0] == ("a",)


# ------------------------------------------------------------------ the command


def command(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WWTS_STORE": shop.settings.store, "COLUMNS": "100"}
    return subprocess.run([WWTS, "badcases", *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_imports_lists_and_retires(shop: Shop) -> None:
    source = shop.csv(given(shop))
    done = command(shop, "import", str(source))
    added = shop.added()[0]
    snapshot = current(shop.store)
    assert done.stdout.splitlines() == [
        "Columns that mean nothing here: 备注",
        "2 added, 0 unchanged.",
        f"Snapshot {snapshot.name} is in force, SHA-256 {snapshot.sha256}.",
    ]
    shown = command(shop, "list", "--slice", "夜间 拍摄").stdout
    for text in (
        added.content_sha256[:12],
        f"杯子 {CUP}",
        "饮具 ☕ > 杯/碗, 夜间 拍摄",
        "张三",
        "被标成 摩托车",
        "yes",
        "1 shown; ",
    ):
        assert text in shown
    assert f"in force: 2 curated, {len(shop.first.cases)} starter; 0 retired. Snapshot {snapshot.name}." in shown
    retired = command(shop, "retire", added.content_sha256[:8], "--reason", "[bold]看错了")
    assert retired.returncode == 0
    assert "[bold]看错了" in command(shop, "list", "--all").stdout
    refused = command(shop, "import", str(shop.csv(rows_of({"uri": "没有.jpg"}))))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "row 2: " in refused.stderr
