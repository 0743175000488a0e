"""Folders and manifests as people really make them."""

from __future__ import annotations

import gzip
import os
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wwts_ops import catalog, settings
from wwts_ops.catalog import Source
from wwts_ops.errors import WwtsError
from wwts_ops.schemas import CATALOG
from wwts_ops.storage import s3_options

Loaded = tuple[Source, list[dict[str, Any]], list[tuple[int, str | None, str]]]
Load = Callable[..., Loaded]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a catalog: the source, its rows by line, the broken rows by line."""

    def run(path: Path | str, **more: Any) -> Loaded:
        chosen = settings.load(catalog=str(path), store=str(tmp_path / "the store"), **more)
        with duckdb.connect() as con:
            source = catalog.load(con, chosen)
            rows = con.sql("SELECT * FROM catalog ORDER BY line").to_arrow_table()
            assert set(rows.column_names) == {*CATALOG.names, "line"}
            broken = con.execute("SELECT line, image_id, reason FROM broken ORDER BY line, reason").fetchall()
        return source, rows.to_pylist(), broken

    return run


def csv(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["image_id"] for row in rows]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folder_of_any_depth_and_name(load: Load, tmp_path: Path) -> None:
    root = tmp_path / "商品 图片"
    for name in ("a.JPG", "红酒/长城 🍷.png", "红酒/2019/x'y[1].webp", "no suffix"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    os.utime(root / "a.JPG", ns=(0, 1_700_000_000_123_456_789))
    source, rows, broken = load(root)
    assert source == Source(str(root), "folder", complete=True)
    assert sorted(ids(rows)) == sorted(["a.JPG", "红酒/长城 🍷.png", "红酒/2019/x'y[1].webp", "no suffix"])
    assert not broken
    row = next(row for row in rows if row["image_id"] == "a.JPG")
    assert row["uri"] == str(root / "a.JPG")
    assert row["sku_id"] is None
    assert row["size"] == 5
    assert row["mtime"] == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


def test_folder_leaves_out_hidden_and_foreign_files_and_linked_folders(load: Load, tmp_path: Path) -> None:
    root, outside = tmp_path / "in", tmp_path / "out"
    for folder in (root / ".git", root / "__MACOSX", outside):
        folder.mkdir(parents=True)
    for name in (".git/a.jpg", "__MACOSX/._a.jpg", ".b.jpg", "list.csv", "Thumbs.db", "c.jpg"):
        (root / name).write_bytes(b"x")
    (outside / "d.jpg").write_bytes(b"four")
    (root / "loop").symlink_to(root)
    (root / "album").symlink_to(outside)
    (root / "link.jpg").symlink_to(outside / "d.jpg")
    (root / "dangling.jpg").symlink_to(outside / "nothing.jpg")
    os.mkfifo(root / "pipe.jpg")
    source, rows, _ = load(root)
    assert ids(rows) == ["c.jpg", "dangling.jpg", "link.jpg"]
    assert [row["size"] for row in rows] == [1, None, 4]
    assert source.skipped == 2


def test_folder_leaves_out_our_own_store(load: Load, tmp_path: Path) -> None:
    thumbnail = tmp_path / "the store/thumbnails/ab/c.jpg"
    thumbnail.parent.mkdir(parents=True)
    thumbnail.write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert ids(load(tmp_path)[1]) == ["a.jpg"]


def test_one_name_in_two_normal_forms_is_one_image(load: Load, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    for name in (composed, decomposed):
        (tmp_path / name).write_bytes(b"x")
    _, rows, broken = load(tmp_path)
    assert ids(rows) == [composed]
    assert [(image_id, "already used" in reason) for _, image_id, reason in broken] == [(composed, True)]


def test_name_that_is_not_utf8_is_reported(load: Load, tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xb5\xe7.jpg", "wb"):
        pass
    (tmp_path / "good.jpg").write_bytes(b"x")
    _, rows, broken = load(tmp_path)
    assert ids(rows) == ["good.jpg"]
    assert "not UTF-8" in broken[0][2]


def test_unreadable_folder_is_not_an_empty_one(load: Load, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    if os.access(tmp_path / "locked", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(WwtsError, match="No permission to list"):
        load(tmp_path)


# --- what cannot be a catalog ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("", None, "WWTS_CATALOG is not set"),
        ("absent", None, "does not exist"),
        ("list.json", b"[]", "neither a folder nor one of"),
        ("empty.csv", b"", "is empty"),
        ("no-uri.csv", b"image_id,sku_id\n1,2\n", "needs a column uri"),
        ("blank.csv", b"\n\n", "needs a column uri"),
        ("twice.csv", "uri,图片地址\n1,2\n".encode(), "two columns for uri"),
        ("text.parquet", b"uri\na.jpg\n", "could not be read as Parquet"),
        ("text.xlsx", b"uri\na.jpg\n", "is no XLSX file"),
        ("cut.csv.gz", gzip.compress(b"uri\n" + os.urandom(9999).hex().encode())[:-100], "no whole gzip file"),
    ],
)
def test_unusable_catalog_is_told(load: Load, tmp_path: Path, name: str, data: bytes | None, sentence: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(WwtsError, match=sentence) as caught:
        load(path if name else "")
    assert name in str(caught.value)


@pytest.mark.parametrize("uri", ["http://shop.example/list.csv", "ftp://x/y"])
def test_catalog_of_an_unknown_scheme(load: Load, uri: str) -> None:
    with pytest.raises(WwtsError, match="not supported for a catalog"):
        load(uri)


def test_a_folder_over_https_is_told(load: Load) -> None:
    with pytest.raises(WwtsError, match=r"https://shop\.example/photos is no manifest"):
        load("https://shop.example/photos")


# --- manifests -------------------------------------------------------------------------------------------------------

CHINESE = '图片ID,商品编码,图片地址,标题,类目,价格,优先级\n007,0012,图/红 酒.jpg,"长城,干红",酒,12.50,3\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_csv_encodings_and_chinese_headers(load: Load, tmp_path: Path, encoding: str) -> None:
    source, rows, broken = load(csv(tmp_path / "清单.csv", CHINESE, encoding))
    assert source == Source(str(tmp_path / "清单.csv"), "manifest", complete=True, version=source.version)
    assert not broken
    assert rows == [
        {
            "image_id": "007",
            "sku_id": "0012",
            "uri": f"{tmp_path}/图/红 酒.jpg",
            "title": "长城,干红",
            "category": "酒",
            "price": 12.5,
            "priority": 3,
            "size": None,
            "mtime": None,
            "etag": None,
            "line": 2,
        }
    ]


def test_one_wrong_byte_does_not_turn_utf8_into_gb18030(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes("image_id,uri,title\n1,一.jpg,红酒\n".encode() + b"\xff,2.jpg,x\n" + "3,三.jpg,白酒\n".encode())
    _, rows, broken = load(path)
    assert [(row["line"], row["image_id"], row["title"]) for row in rows] == [(2, "1", "红酒"), (4, "3", "白酒")]
    assert [line for line, *_ in broken] == [3]


@pytest.mark.parametrize("name", ["m.csv.gz", "m.tsv", "m.csv"])
def test_packed_and_tab_separated(load: Load, tmp_path: Path, name: str) -> None:
    text = b"IMAGE_ID \tURI\tsize\n01\ta.jpg\t7\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    _, rows, _ = load(tmp_path / name)
    assert [(row["image_id"], row["uri"], row["size"]) for row in rows] == [("01", f"{tmp_path}/a.jpg", 7)]


def test_lines_are_a_spreadsheets_rows(load: Load, tmp_path: Path) -> None:
    text = 'image_id,uri,title\n1,1.jpg,"two\r\nlines"\n2,2.jpg\n\n4,4.jpg,x,y\n5,5.jpg,ok\n,,\n6,6.jpg,\n'
    source, rows, broken = load(csv(tmp_path / "m.csv", text))
    assert [(row["line"], row["image_id"]) for row in rows] == [(2, "1"), (6, "5"), (8, "6")]
    assert rows[0]["title"] == "two\r\nlines"
    assert [(line, image_id) for line, image_id, _ in broken] == [(3, "2"), (5, "4")]
    assert "has 2 columns, the header has 3" in broken[0][2]
    assert source.complete


def test_lines_stay_right_over_many_blocks(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wwts_ops.manifests._CSV_BLOCK", 4096)
    wrong = {n for n in range(2, 3000) if n % 7 == 0 or 500 < n < 800}
    text = "image_id,uri\n" + "".join(f"{n},{n}.jpg{',extra' if n in wrong else ''}\n" for n in range(2, 3000))
    _, rows, broken = load(csv(tmp_path / "m.csv", text))
    assert all(row["image_id"] == str(row["line"]) for row in rows)
    assert {line for line, *_ in broken} == wrong
    assert len(rows) + len(broken) == 2998


@pytest.mark.parametrize("title", ['"open', '"open""'])
def test_unclosed_quote_withholds_delisting(load: Load, tmp_path: Path, title: str) -> None:
    source, rows, broken = load(csv(tmp_path / "m.csv", f"image_id,uri,title\n1,1.jpg,a\n2,2.jpg,{title}\n3,3.jpg,c\n"))
    assert ids(rows) == ["1"]
    assert broken
    assert not source.complete


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",1,a.jpg", "image_id is empty"),
        ("  ,1,a.jpg", "image_id is empty"),
        ("x,1,", "uri is empty"),
        ("6.92E+12,1,a.jpg", "image_id 6.92E+12 was mangled by a spreadsheet; format the column as text"),
        ("x,6.92123456e+12,a.jpg", "sku_id 6.92123456e+12 was mangled"),
        ("x,#N/A,a.jpg", "sku_id is the spreadsheet error #N/A"),
        ('"x\ny",1,a.jpg', "image_id holds a control character"),
        ("x\x00y,1,a.jpg", "image_id holds a control character"),
        ("x,1,a\x7f.jpg", "uri holds a control character"),
        ("y" * 2049 + ",1,a.jpg", "image_id is longer than 2048 characters"),
        ("x,1,../a.jpg", "uri leads out of the image root"),
        ("x,1,a/../../b.jpg", "uri leads out of the image root"),
        ("x,1,a/..", "uri leads out of the image root"),
        ("x,1,//cdn.example/a.jpg", "uri begins with //"),
        ("x,1,images\\a.jpg", "uri contains a backslash"),
        ("x,1,C:/images/a.jpg", "neither an absolute path nor"),
        ("x,1,http://good.example/a.jpg", "http:// is not allowed"),
        ("x,1,https://evil.example/a.jpg", "evil.example is not on WWTS_HTTPS_HOSTS"),
        ("x,1,https://good.example@evil.example/a.jpg", "holds a user name or password"),
        ("x,1,https://good.example.evil.example/a.jpg", "is not on WWTS_HTTPS_HOSTS"),
        ("x,1,https://good.example:8443/a.jpg", "good.example:8443 is not on WWTS_HTTPS_HOSTS"),
        ("x,1,s3://bucket/", "uri names no object"),
        ("x,1,s3://bucket", "uri names no object"),
        ("good,1,a.jpg", "image_id is already used in line 2"),
    ],
)
def test_broken_row_is_reported_and_stops_nothing(load: Load, tmp_path: Path, row: str, reason: str) -> None:
    text = f"image_id,sku_id,uri\ngood,1,https://good.example/1.jpg\n{row}\nlast,1,a b/../c.jpg\n"
    _, rows, broken = load(csv(tmp_path / "m.csv", text), https_hosts=("good.example",))
    assert [(item["line"], item["uri"]) for item in rows] == [
        (2, "https://good.example/1.jpg"),
        (4, f"{tmp_path}/c.jpg"),
    ]
    assert [line for line, *_ in broken] == [3]
    assert reason in broken[0][2]


@pytest.mark.parametrize(
    ("column", "good", "value", "bad"),
    [
        ("price", "0.5", 0.5, "¥12"),
        ("price", "1e3", 1000.0, "nan"),
        ("priority", "-2", -2, "1.7"),
        ("priority", " 4 ", 4, "high"),
        ("size", "10", 10, "10 KB"),
        ("mtime", "2026-01-02 03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "yesterday"),
        ("mtime", "2026-01-02T03:04:05+08:00", datetime(2026, 1, 1, 19, 4, 5, tzinfo=UTC), "-5"),
        ("mtime", "1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), "1700000000000"),
    ],
)
def test_typed_columns(load: Load, tmp_path: Path, column: str, good: str, value: object, bad: str) -> None:
    _, rows, broken = load(csv(tmp_path / "m.csv", f"uri,{column}\n1.jpg,{good}\n2.jpg,{bad}\n3.jpg,\n"))
    assert [(row["line"], row[column]) for row in rows] == [(2, value), (4, None)]
    assert [(line, f"{column} is not a" in reason) for line, _, reason in broken] == [(3, True)]


def test_image_id_defaults_to_the_uri_as_given(load: Load, tmp_path: Path) -> None:
    _, rows, _ = load(csv(tmp_path / "m.csv", "uri\n ./图/1.jpg \n/abs/2.jpg\n"))
    assert [(row["image_id"], row["uri"]) for row in rows] == [
        ("./图/1.jpg", f"{tmp_path}/图/1.jpg"),
        ("/abs/2.jpg", "/abs/2.jpg"),
    ]


@pytest.mark.parametrize("root", ["s3://bucket/photos", "https://good.example/photos/"])
def test_image_root(load: Load, tmp_path: Path, root: str) -> None:
    path = csv(tmp_path / "m.csv", "uri,etag\na/../1.jpg,x\n../2.jpg,x\n/local/3.jpg,x\n")
    _, rows, broken = load(path, image_root=root, https_hosts=("good.example",))
    assert [row["uri"] for row in rows] == [f"{root.rstrip('/')}/1.jpg", "/local/3.jpg"]
    assert [line for line, *_ in broken] == [3]


def test_image_root_on_a_host_that_is_not_allowed(load: Load, tmp_path: Path) -> None:
    _, rows, broken = load(csv(tmp_path / "m.csv", "uri\n1.jpg\n/local/2.jpg\n"), image_root="https://evil.example")
    assert [row["uri"] for row in rows] == ["/local/2.jpg"]
    assert [line for line, *_ in broken] == [2]


def test_fingerprints_of_local_files_are_looked_up(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "a b.jpg", (0, 1_700_000_000))
    text = f"uri\na b.jpg\nabsent.jpg\nno/such/folder.jpg\nfile://{tmp_path}/a%20b.jpg\nhttps://good.example/1.jpg\n"
    _, rows, _ = load(csv(tmp_path / "m.csv", text), https_hosts=("good.example",))
    assert [row["size"] for row in rows] == [5, None, None, 5, None]
    assert rows[0]["mtime"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_columns_of_the_manifest_go_before_the_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    _, rows, _ = load(csv(tmp_path / "m.csv", "uri,etag\na.jpg,v1\n"))
    assert (rows[0]["etag"], rows[0]["size"]) == ("v1", None)


def test_colliding_hashes_hide_no_image(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_HASH", "(strlen({}) * 0)")
    _, rows, broken = load(
        csv(tmp_path / "m.csv", "image_id,uri\n" + "".join(f"{n % 9},x{n}.jpg\n" for n in range(12)))
    )
    assert ids(rows) == [str(n) for n in range(9)]
    assert [(line, image_id) for line, image_id, _ in broken] == [(11, "0"), (12, "1"), (13, "2")]


def test_delta_is_never_complete(load: Load, tmp_path: Path) -> None:
    assert not load(csv(tmp_path / "m.csv", "uri\n1.jpg\n"), catalog_mode="delta")[0].complete


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_keeps_types(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "m[1]*.parquet"  # DuckDB takes such a name for a pattern
    columns = {
        "Image_ID": pa.array([7, 8, 9]),
        "sku_id": pa.array([6921234567890.0, None, float("nan")]),
        "uri": ["1.jpg", " 2.jpg ", "3.jpg"],
        "price": pa.array([1.5, None, float("nan")]),
        "priority": pa.array([1.0, 2.0, float("nan")]),
        "mtime": pa.array([datetime(2026, 1, 2, 3, 4, 5)] * 3, pa.timestamp("us")),
        "unknown": [[1], [2], [3]],
    }
    pq.write_table(pa.table(columns), path)
    _, rows, broken = load(path)
    assert not broken
    assert [(row["line"], row["image_id"], row["sku_id"]) for row in rows] == [
        (2, "7", "6921234567890"),
        (3, "8", None),
        (4, "9", None),
    ]
    assert [(row["price"], row["priority"]) for row in rows] == [(1.5, 1), (None, 2), (None, None)]
    assert [row["uri"] for row in rows] == [f"{tmp_path}/{n}.jpg" for n in (1, 2, 3)]
    assert rows[0]["mtime"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_parquet_numbers_that_lost_digits(load: Load, tmp_path: Path) -> None:
    table = pa.table({"uri": ["1.jpg", "2.jpg", "3.jpg"], "sku_id": [1e15, 0.5, 12.0], "priority": [1.0, 1.0, 1.5]})
    pq.write_table(table, tmp_path / "m.parquet")
    _, rows, broken = load(tmp_path / "m.parquet")
    assert not rows
    assert [(line, "digits" in reason, "whole number" in reason) for line, _, reason in broken] == [
        (2, True, False),
        (3, True, False),
        (4, False, True),
    ]


@pytest.mark.parametrize("column", ["uri", "image_id"])
def test_parquet_column_that_cannot_be_text(load: Load, tmp_path: Path, column: str) -> None:
    pq.write_table(pa.table({"uri": ["a"], column: [b"a"]}), tmp_path / "m.parquet")
    with pytest.raises(WwtsError, match=f"column {column} holds BLOB; write it as text"):
        load(tmp_path / "m.parquet")


def test_parquet_replaced_while_it_is_read(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": ["1.jpg"]}), path)
    source, *_ = load(path)
    catalog.check_unchanged(source)
    pq.write_table(pa.table({"uri": ["1.jpg", "2.jpg"]}), path)
    with pytest.raises(WwtsError, match="was replaced while it was read"):
        catalog.check_unchanged(source)


# --- XLSX ------------------------------------------------------------------------------------------------------------


def test_xlsx_as_excel_writes_it(load: Load, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["图片 ID".replace(" ", ""), "SKU编码", "链接", "价格", "优先级", "备注"])
    sheet.append(["001", 6921234567890, " 1.jpg ", 9.9, 2.0, "x"])
    sheet.append([2, 12.0, "2.jpg", None, None, None])
    sheet.append([])
    sheet.append(["3", 0.5, "3.jpg"])
    sheet.append(["4", 10**15, "4.jpg"])
    sheet.append([datetime(2026, 1, 2), "x", "5.jpg"])
    sheet.append(["6.92E+12", "x", "6.jpg"])
    sheet.append(["7", "x", None])
    book.save(tmp_path / "清单.xlsx")
    _, rows, broken = load(tmp_path / "清单.xlsx")
    assert [(row["line"], row["image_id"], row["sku_id"], row["price"], row["priority"]) for row in rows] == [
        (2, "001", "6921234567890", 9.9, 2),
        (3, "2", "12", None, None),
    ]
    assert rows[0]["uri"] == f"{tmp_path}/1.jpg"
    found = [
        (line, next(word for word in ("digits", "made", "mangled", "empty") if word in text))
        for line, _, text in broken
    ]
    assert found == [(5, "digits"), (6, "digits"), (7, "made"), (8, "mangled"), (9, "empty")]


# --- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_server: Any) -> tuple[fsspec.AbstractFileSystem, str, str]:
    fs = fsspec.filesystem("s3", **s3_options(s3_server.endpoint))
    return fs, f"s3://{s3_server.bucket}/catalog", s3_server.endpoint


@pytest.mark.slow
def test_s3_folder(load: Load, bucket: tuple[Any, str, str]) -> None:
    fs, root, endpoint = bucket
    names = ["folder/a.jpg", "folder/红酒/长城 🍷.png", "folder/.hidden/b.jpg", "folder/list.csv"]
    for name in names:
        fs.pipe_file(f"{root}/{name}", b"12345")
    source, rows, broken = load(f"{root}/folder/", s3_endpoint=endpoint)
    assert source == Source(f"{root}/folder", "folder", complete=True, skipped=1)
    assert not broken
    assert [(row["image_id"], row["uri"], row["size"]) for row in rows] == [
        ("a.jpg", f"{root}/folder/a.jpg", 5),
        ("红酒/长城 🍷.png", f"{root}/folder/红酒/长城 🍷.png", 5),
    ]
    assert rows[0]["etag"] == "827ccb0eea8a706c4c34a16891f84e7b"  # MD5 of 12345
    with pytest.raises(WwtsError, match="nothing below"):
        load(f"{root}/absent", s3_endpoint=endpoint)
    with pytest.raises(WwtsError, match="no-such-bucket"):
        load("s3://no-such-bucket/x", s3_endpoint=endpoint)


@pytest.mark.slow
@pytest.mark.parametrize("most", [256, 0])
def test_s3_manifest_looks_up_etags(
    load: Load, bucket: tuple[Any, str, str], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_MAX_LISTINGS", most)
    fs, root, endpoint = bucket
    for name in ("m/p/1.jpg", "m/q/2.jpg", "m/q/unlisted.jpg"):
        fs.pipe_file(f"{root}/{name}", b"12345")
    fs.pipe_file(f"{root}/m/list.csv", b"uri\np/1.jpg\nq/2.jpg\nq/absent.jpg\ns3://no-such-bucket/x/3.jpg\n")
    _, rows, broken = load(f"{root}/m/list.csv", s3_endpoint=endpoint)
    assert not broken
    assert [row["uri"] for row in rows[:3]] == [f"{root}/m/{name}" for name in ("p/1.jpg", "q/2.jpg", "q/absent.jpg")]
    assert [row["size"] for row in rows] == [5, 5, None, None]
    assert rows[1]["etag"] == "827ccb0eea8a706c4c34a16891f84e7b"
