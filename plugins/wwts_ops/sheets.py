"""What people hand in as rows of text: CSV, TSV, Parquet and XLSX files with a header, as spreadsheets write them.

And the other way round: a cell of a CSV file that a spreadsheet will open.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
import zipfile
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wwts_ops import manifests
from wwts_ops.errors import WwtsError

SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")
#: How people say which picture a row is about, and other headers for that, after NFKC and case folding.
PICTURES = ("uri", "image_id", "content_sha256")
PICTURE_ALIASES = {
    **{alias: column for alias, column in manifests.ALIASES.items() if column in PICTURES},
    "sha256": "content_sha256",
    "内容哈希": "content_sha256",
}
LABEL_ALIASES = {"标签id": "label_id", "标签编号": "label_id"}

#: What no cell may hold, and no database or page could show.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: Columns that must not be numbers with a part lost.
_IDS = ("image_id", "label_id")
#: The line by which Excel tells itself how cells are separated.
_TOLD = re.compile("sep=.?", re.IGNORECASE)

#: A row's number, as a spreadsheet counts, and its values.
Line = tuple[int, Sequence[Any]]

#: What .xlsx or .parquet may unpack to.
_MAX_UNPACKED = 2**29
_SEPARATOR = re.compile("[|｜]")
#: What a formula begins with; full-width ones too, as Chinese Excel reads them.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True)
class Form:
    """What a file must look like.

    Attributes:
        noun: what its rows are, in the plural.
        columns: those that mean something.
        aliases: other headers for them, after NFKC and case folding.
        needed: of each of these groups, at least one column must be there.
        max_rows: a file with more is refused, and so is one of more than ``max_bytes``.
        max_bytes: see there.
        otherwise: how rows may come other than in a file, for the sentence that says what can be read.
    """

    noun: str
    columns: tuple[str, ...]
    aliases: Mapping[str, str]
    needed: tuple[tuple[str, ...], ...]
    max_rows: int
    max_bytes: int
    otherwise: str = ""

    def check_count(self, source: Path, count: int) -> None:
        """Refuses more rows than there may be.

        Raises:
            WwtsError: ``count`` is above ``max_rows``.
        """
        if count > self.max_rows:
            raise WwtsError(f"{source} holds more than {self.max_rows:,} {self.noun}; split it.")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        place: what people find it by: ``row 7`` as a spreadsheet counts, or ``folder/picture.jpg``.
        cells: by column; empty ones are left out.
        problem: why the row cannot be used, as far as the format can tell.
        line: the row as a spreadsheet counts, the header being 1; of a folder's pictures, from 1.
    """

    place: str
    cells: dict[str, str]
    problem: str = ""
    line: int = 0


@dataclass(frozen=True)
class Sheet:
    """All rows; ``ignored`` are headers that mean nothing here."""

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()


def read(source: Path, form: Form) -> Sheet:
    """The rows of a file; blank ones are left out.

    Raises:
        WwtsError: when it cannot be read at all, or is not as ``form`` says.
    """
    try:
        return _read(source, form)
    except OSError as error:
        raise WwtsError(f"{source} cannot be read: {error.strerror or error}.") from error


def parts(cell: str) -> tuple[str, ...]:
    """The parts of a cell, which are joined by ``|``, each once, in their order."""
    found = (part.strip() for part in _SEPARATOR.split(cell))
    return tuple(dict.fromkeys(part for part in found if part))


def cell(value: object) -> object:
    """A value for a CSV file: a spreadsheet runs a text that begins like a formula (OWASP, "CSV Injection")."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _read(source: Path, form: Form) -> Sheet:
    readers: dict[str, Callable[[Path, Form], Iterator[Sequence[Any]]]]
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows, ".xlsx": _xlsx_rows}
    reader = readers.get(source.suffix.lower())
    if reader is None or not source.is_file():
        what = "is no file" if reader or not source.exists() else "has another suffix"
        raise WwtsError(f"{source} {what}; {form.noun} come in {', '.join(SUFFIXES)}{form.otherwise}.")
    if source.stat().st_size > form.max_bytes:
        raise WwtsError(f"{source} has more than {form.max_bytes >> 20} MiB; split it.")
    found = reader(source, form)
    line, first = _first(found)
    header = [_header(name) for name in first]
    columns = [form.aliases.get(name.casefold(), name.casefold()) for name in header]
    _check_columns(source, columns, form)
    ignored = tuple(name for name, column in zip(header, columns, strict=True) if column not in form.columns and name)
    return Sheet(tuple(_rows(source, enumerate(found, start=line + 1), columns, form)), ignored)


def _first(found: Iterator[Sequence[Any]]) -> Line:
    """The row of the header, and its line: there may be blank ones above it, and one for Excel alone."""
    for line, values in enumerate(found, start=1):
        if not all(_blank(value) for value in values) and not _TOLD.fullmatch(str(values[0])):
            return line, values
    return 1, ()


def _header(cell: object) -> str:
    return unicodedata.normalize("NFKC", str(cell if cell is not None else "")).strip("\ufeff \t\r\n")


def _check_columns(source: Path, columns: Sequence[str], form: Form) -> None:
    has = f"its first row has {', '.join(name for name in columns if name)[:500] or 'nothing'}"
    twice = next((name for name in form.columns if columns.count(name) > 1), None)
    if twice:
        raise WwtsError(f"{source} has two columns for {twice}; remove one.")
    for group in form.needed:
        if not set(group) & set(columns):
            *others, last = group
            choice = f"{', '.join(others)} or {last}" if others else last
            raise WwtsError(f"{source} needs a column {choice}; {has}.")


def _rows(source: Path, found: Iterable[Line], columns: Sequence[str], form: Form) -> Iterator[Row]:
    count = 0
    for line, values in found:
        filled = [_blank(value) for value in values]
        if all(filled):
            continue
        count += 1
        form.check_count(source, count)
        if len(values) < len(columns) or not all(filled[len(columns) :]):
            problem = f"the row has {len(values)} columns, the header has {len(columns)}"
            yield Row(f"row {line}", {}, problem, line)
            continue
        yield _row(line, dict(zip(columns, values, strict=False)), form)


def _blank(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)  # how pandas writes a missing text
    return value is None or (isinstance(value, str) and not value.strip())


def _row(line: int, values: dict[str, Any], form: Form) -> Row:
    cells, problem = {}, ""
    for column in form.columns:
        value = values.get(column)
        if column in _IDS and isinstance(value, int | float) and not (_blank(value) or _is_exact(value)):
            problem = f"{column} {value} is a number, of which a spreadsheet loses digits; enter it again as text"
        text = _text(value)
        if text:
            cells[column] = text
    return Row(f"row {line}", cells, problem, line)


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


def _csv_rows(source: Path, form: Form) -> Iterator[Sequence[Any]]:
    del form
    text = _decoded(source)
    lines = (line for line in text.splitlines() if line.strip() and not _TOLD.fullmatch(line.strip()))
    first = next(lines, "")
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


def _parquet_rows(source: Path, form: Form) -> Iterator[Sequence[Any]]:
    try:
        with pq.ParquetFile(source) as file:
            form.check_count(source, file.metadata.num_rows)
            groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > _MAX_UNPACKED:
                raise WwtsError(f"{source} unpacks to more than {_MAX_UNPACKED >> 20} MiB; split it.")
            yield file.schema_arrow.names
            for batch in file.iter_batches(1024):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except pa.ArrowException as error:
        raise WwtsError(f"{source} is no whole Parquet file: {manifests.first_line(error)}.") from error


def _xlsx_rows(source: Path, form: Form) -> Iterator[Sequence[Any]]:
    from openpyxl import load_workbook

    del form
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
