"""What people hand in as rows of text: a CSV, TSV, Parquet or XLSX file, or a folder with one subfolder a label."""

from __future__ import annotations

import csv
import io
import math
import os
import unicodedata
import zipfile
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wwts_ops import manifests
from wwts_ops.errors import WwtsError

PICTURES = ("uri", "image_id", "content_sha256")
COLUMNS = (*PICTURES, "label_id", "forbidden", "slice", "owner", "reason", "never_regress")
SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")

#: Other headers that people write, after NFKC and case folding.
ALIASES = {
    **{alias: column for alias, column in manifests.ALIASES.items() if column in PICTURES},
    "sha256": "content_sha256",
    "内容哈希": "content_sha256",
    "标签id": "label_id",
    "标签编号": "label_id",
    "标签": "label_id",
    "正确标签": "label_id",
    "禁止标签": "forbidden",
    "错误标签": "forbidden",
    "slices": "slice",
    "分组": "slice",
    "切片": "slice",
    "负责人": "owner",
    "原因": "reason",
    "理由": "reason",
    "不许退步": "never_regress",
    "不可退步": "never_regress",
    "绝不退步": "never_regress",
}

#: Curated by people: more rows than this are no bad cases but a catalog.
MAX_ROWS = 20_000
MAX_BYTES = 64 * 2**20
#: What .xlsx or .parquet may unpack to.
_MAX_UNPACKED = 2**29
#: What systems leave in folders.
_NOT_OURS = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        place: what people find it by: ``row 7`` as a spreadsheet counts, or ``folder/picture.jpg``.
        cells: by column; empty ones are left out.
        problem: why the row cannot be used, as far as the format can tell.
    """

    place: str
    cells: dict[str, str]
    problem: str = ""


@dataclass(frozen=True)
class Sheet:
    """All rows; ``ignored`` are headers that mean nothing here."""

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()


def read(source: Path) -> Sheet:
    """The rows of a file; of a folder, one a picture, its ``label_id`` the name of the subfolder as it is written.

    Raises:
        WwtsError: when it cannot be read at all, lacks a column, or holds no rows or more than ``MAX_ROWS``.
    """
    try:
        sheet = _folder(source) if source.is_dir() else _file(source)
    except OSError as error:
        raise WwtsError(f"{source} cannot be read: {error.strerror or error}.") from error
    if not sheet.rows:
        raise WwtsError(f"{source} holds no bad case; add rows below its header, or pictures to its subfolders.")
    return sheet


def _file(source: Path) -> Sheet:
    readers: dict[str, Callable[[Path], Iterator[Sequence[Any]]]]
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows, ".xlsx": _xlsx_rows}
    reader = readers.get(source.suffix.lower())
    if reader is None or not source.is_file():
        what = "is no file" if reader or not source.exists() else "has another suffix"
        raise WwtsError(f"{source} {what}; bad cases come in {', '.join(SUFFIXES)}, or as a folder with one a label.")
    if source.stat().st_size > MAX_BYTES:
        raise WwtsError(f"{source} has more than {MAX_BYTES >> 20} MiB; split it.")
    found = reader(source)
    header = [_header(name) for name in next(found, ())]
    columns = [ALIASES.get(name.casefold(), name.casefold()) for name in header]
    _check_columns(source, columns)
    ignored = tuple(name for name, column in zip(header, columns, strict=True) if column not in COLUMNS and name)
    return Sheet(tuple(_rows(source, found, columns)), ignored)


def _header(cell: object) -> str:
    return unicodedata.normalize("NFKC", str(cell if cell is not None else "")).strip("\ufeff \t\r\n")


def _check_columns(source: Path, columns: Sequence[str]) -> None:
    has = f"its first row has {', '.join(name for name in columns if name)[:500] or 'nothing'}"
    twice = next((name for name in COLUMNS if columns.count(name) > 1), None)
    if twice:
        raise WwtsError(f"{source} has two columns for {twice}; remove one.")
    if not set(PICTURES) & set(columns):
        raise WwtsError(f"{source} needs a column uri, image_id or content_sha256; {has}.")
    if not {"label_id", "forbidden"} & set(columns):
        raise WwtsError(f"{source} needs a column label_id (or forbidden); {has}.")


def _rows(source: Path, found: Iterable[Sequence[Any]], columns: Sequence[str]) -> Iterator[Row]:
    count = 0
    for line, values in enumerate(found, start=2):
        filled = [_blank(value) for value in values]
        if all(filled):
            continue
        count += 1
        _check_count(source, count)
        if len(values) < len(columns) or not all(filled[len(columns) :]):
            yield Row(f"row {line}", {}, f"the row has {len(values)} columns, the header has {len(columns)}")
            continue
        yield _row(f"row {line}", dict(zip(columns, values, strict=False)))


def _check_count(source: Path, count: int) -> None:
    if count > MAX_ROWS:
        raise WwtsError(f"{source} holds more than {MAX_ROWS:,} bad cases; split it.")


def _blank(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)  # how pandas writes a missing text
    return value is None or (isinstance(value, str) and not value.strip())


def _row(place: str, values: dict[str, Any]) -> Row:
    cells, problem = {}, ""
    for column in COLUMNS:
        value = values.get(column)
        if column == "image_id" and isinstance(value, int | float) and not (_blank(value) or _is_exact(value)):
            problem = f"image_id {value} is a number, of which a spreadsheet loses digits; enter it again as text"
        text = _text(value)
        if text:
            cells[column] = text
    return Row(place, cells, problem)


def _is_exact(value: float) -> bool:
    return math.isfinite(value) and value == int(value) and abs(value) < manifests.EXACT_INTEGERS


def _text(value: object) -> str:
    if _blank(value):
        return ""
    if isinstance(value, float) and _is_exact(value):
        return str(int(value))
    if isinstance(value, list | tuple):
        return "|".join(str(part) for part in value)
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return unicodedata.normalize("NFC", str(value)).strip()


def _csv_rows(source: Path) -> Iterator[Sequence[Any]]:
    text = _decoded(source)
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",\t;", key=first.count), strict=True)
    number = 0
    try:
        for row in reader:
            number += 1
            yield row
    except csv.Error as error:
        raise WwtsError(f"{source}: row {number + 1} is no CSV: {error}; look at its quotes.") from error


def _decoded(source: Path) -> str:
    data = source.read_bytes()
    # Excel's "Unicode text" is UTF-16, and its plain "CSV" GB18030 on Chinese Windows.
    utf16 = data.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    raise WwtsError(f'{source} is neither UTF-8 nor GB18030 text; in Excel, save it as "CSV UTF-8".')


def _parquet_rows(source: Path) -> Iterator[Sequence[Any]]:
    try:
        with pq.ParquetFile(source) as file:
            _check_count(source, file.metadata.num_rows)
            groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > _MAX_UNPACKED:
                raise WwtsError(f"{source} unpacks to more than {_MAX_UNPACKED >> 20} MiB; split it.")
            yield file.schema_arrow.names
            for batch in file.iter_batches(1024):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except pa.ArrowException as error:
        raise WwtsError(f"{source} is no whole Parquet file: {manifests.first_line(error)}.") from error


def _xlsx_rows(source: Path) -> Iterator[Sequence[Any]]:
    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(source) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MAX_UNPACKED:
                raise WwtsError(f"{source} unpacks to more than {_MAX_UNPACKED >> 20} MiB; split it.")
        book = load_workbook(source, read_only=True, data_only=True)
        try:
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # some programs state them wrong
            yield from _padded(sheet.iter_rows(values_only=True))
        finally:
            book.close()
    except (zipfile.BadZipFile, zlib.error, LookupError, ValueError, TypeError, SyntaxError) as error:
        raise WwtsError(f"{source} is no whole XLSX file ({manifests.first_line(error)}); save it again.") from error


def _padded(rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """``rows`` at least as wide as the first: a sheet ends each row behind its last filled cell."""
    width = 0
    for row in rows:
        width = width or len(row)
        yield (*row, *(None,) * (width - len(row)))


def _folder(source: Path) -> Sheet:
    rows: list[Row] = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if _is_ours(name))
        for name in sorted(filter(_is_ours, names)):
            path = Path(folder, name)
            parts = path.relative_to(source).parts
            label = unicodedata.normalize("NFC", parts[0]).strip()
            problem = "" if len(parts) > 1 else "it lies in no subfolder; the subfolder's name says which label it has"
            rows.append(Row("/".join(parts), {"uri": str(path.absolute()), "label_id": label}, problem))
        _check_count(source, len(rows))
    return Sheet(tuple(rows))


def _is_ours(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _NOT_OURS
