"""CSV, Parquet and XLSX manifests as the DuckDB relation ``raw``: rows as they were found, nothing judged but form.

``raw`` has ``line`` (as a spreadsheet counts, the header being 1), the catalog columns that the file has, and
``problem`` (why the row cannot be used, as far as only the file format can tell). Everything stays text, so that an
SKU keeps its leading zeros; Parquet keeps its types, save for ids.
"""

from __future__ import annotations

import csv
import gzip
import tempfile
import unicodedata
import zipfile
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from wwts_ops import schemas
from wwts_ops.errors import WwtsError

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".xlsx")
FIELDS = tuple(schemas.CATALOG.names)

#: Other headers that people write, after NFKC and case folding.
ALIASES = {
    "图片id": "image_id",
    "图片编号": "image_id",
    "sku": "sku_id",
    "sku编码": "sku_id",
    "商品编码": "sku_id",
    "商品id": "sku_id",
    "url": "uri",
    "图片地址": "uri",
    "图片链接": "uri",
    "图片路径": "uri",
    "链接": "uri",
    "标题": "title",
    "商品标题": "title",
    "类目": "category",
    "价格": "price",
    "优先级": "priority",
}

MAX_ID_CHARS = 2048
#: A .gz or .xlsx that unpacks to more is refused; a million long rows of text have about 0.5 GiB.
MAX_UNPACKED_BYTES = 2 * 2**30
#: Excel keeps 15 digits of a number: the end of a longer id is lost.
EXACT_INTEGERS = 10**15

_IDS = ("image_id", "sku_id")
_BATCH = 65_536
_CSV_BLOCK = 2**20  # Arrow reads 32 blocks ahead
_GZIP_MAGIC = b"\x1f\x8b"
_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
}
_AS_NUMBER = "is a number, of which a spreadsheet loses digits; format the column as text and enter it again"


@dataclass(frozen=True)
class Read:
    """What :func:`read` found.

    Attributes:
        columns: the catalog columns that ``raw`` has.
        is_whole: False when a quote that nobody closed has swallowed rows.
    """

    columns: tuple[str, ...]
    is_whole: bool = True


def read(con: duckdb.DuckDBPyConnection, path: Path, name: str) -> Read:
    """Makes ``raw`` from the file ``path``, which people know as ``name``.

    Rows of another width than the header go to the table ``broken``, which exists. ``raw`` is a view of a Parquet
    file at its own place, else a table.

    Raises:
        WwtsError: the file cannot be read at all, or has no column ``uri``.
    """
    if not path.stat().st_size:
        raise WwtsError(f"{name} is empty; export the manifest again")
    return {".parquet": _read_parquet, ".xlsx": _read_xlsx}.get(path.suffix.lower(), _read_csv)(con, path, name)


def suffix_of(name: str) -> str:
    """The manifest suffix of ``name``, empty when it has none."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def quoted(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def first_line(error: Exception) -> str:
    """What a library says, without its pages of context."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def create_table(con: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema, batches: Iterable[pa.Table]) -> None:
    """Makes ``table`` from Arrow tables, one in memory at a time."""
    columns = ", ".join(f"{field.name} {_SQL_TYPES[field.type]}" for field in schema)
    con.execute(f"CREATE TABLE {table} ({columns})")
    for batch in batches:
        if batch.num_rows:  # registering loads pandas (40 MB), so not for nothing
            con.register("arrow_rows", batch)
            con.execute(f"INSERT INTO {table} SELECT * FROM arrow_rows")
            con.unregister("arrow_rows")


def batched(rows: Iterable[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Arrow tables of at most 65,536 of ``rows``, each row in the order of ``schema``."""
    columns: list[list[Any]] = [[] for _ in schema]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        if len(columns[0]) >= _BATCH:
            yield pa.table(columns, schema=schema)
            columns = [[] for _ in schema]
    yield pa.table(columns, schema=schema)


def _places(names: Sequence[object], manifest: str) -> dict[str, int]:
    """Where among ``names`` each catalog column stands.

    Raises:
        WwtsError: no column is the uri, or two are the same.
    """
    found: dict[str, int] = {}
    for place, name in enumerate(names):
        folded = unicodedata.normalize("NFKC", str(name or "")).strip("\ufeff \t\r\n").casefold()
        column = ALIASES.get(folded, folded)
        if column in found:
            raise WwtsError(f"{manifest} has two columns for {column}, the second called {name!r}; remove one")
        if column in FIELDS:
            found[column] = place
    if "uri" not in found:
        has = ", ".join(str(name) for name in names if name) or "nothing"
        raise WwtsError(f"{manifest} needs a column uri (图片地址); its first row has {has[:500]}")
    return found


def _raw_schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([("line", pa.int64()), *((name, pa.string()) for name in columns), ("problem", pa.string())])


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(con: duckdb.DuckDBPyConnection, path: Path, name: str) -> Read:
    # DuckDB takes [, ? and * in a path for a pattern, and a temporary copy is gone when we return: copy those rows.
    is_plain = str(path) == name and not any(sign in name for sign in "[]?*")
    with tempfile.TemporaryDirectory(prefix="wwts-manifest-") as folder:
        source = path
        if not is_plain:
            source = Path(folder) / "manifest.parquet"
            source.symlink_to(path)
        # By default DuckDB takes statistics, which leave NaN out, for a proof that there is none (duckdb#25521).
        # And a folder called `category=x` for a column.
        options = "file_row_number = true, can_have_nan = true, hive_partitioning = false"
        scan = f"read_parquet({quoted(str(source))}, {options})"
        try:
            types = {row[0]: row[1] for row in con.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()}
            places = _places(list(types), name)
            headers = {column: list(types)[place] for column, place in places.items()}
            selected = _parquet_columns({column: (header, types[header]) for column, header in headers.items()}, name)
            con.execute(f"CREATE {'VIEW' if is_plain else 'TABLE'} raw AS SELECT {selected} FROM {scan}")
        except (duckdb.InvalidInputException, duckdb.IOException) as error:
            raise WwtsError(f"{name} could not be read as Parquet: {first_line(error)}; export it again") from error
    return Read(tuple(places))


def _parquet_columns(headers: dict[str, tuple[str, str]], name: str) -> str:
    selected, problems = ["file_row_number + 2 AS line"], []
    for column, (header, sql_type) in headers.items():
        quoted_header = '"' + header.replace('"', '""') + '"'
        value = quoted_header
        if sql_type in {"DOUBLE", "FLOAT"}:
            value = f"CASE WHEN NOT isnan({value}) THEN {value} END"  # how pandas writes a missing number
        if column in _IDS or column == "uri":
            value, problem = _parquet_text(column, value, sql_type, name)
            problems += problem
        selected.append(f"{value} AS {column}")
    cases = f"CASE {' '.join(problems)} END" if problems else "CAST(NULL AS VARCHAR)"
    return ", ".join([*selected, f"{cases} AS problem"])


def _parquet_text(column: str, value: str, sql_type: str, name: str) -> tuple[str, list[str]]:
    """SQL of an id or uri as text, and ``WHEN … THEN …`` for what cannot be one."""
    if sql_type == "VARCHAR":
        # trim() is costly, so that it sees only the rows that begin or end with a blank.
        trimmed = f"CASE WHEN {value} < '!' OR {value}[-1] < '!' THEN trim({value}, ' \t\r\n') ELSE {value} END"
        return trimmed if column == "uri" else value, []
    if column in _IDS and sql_type in {"DOUBLE", "FLOAT"}:
        exact = f"({value} = trunc({value}) AND abs({value}) < {EXACT_INTEGERS})"
        text = f"CASE WHEN {exact} THEN CAST(CAST({value} AS BIGINT) AS VARCHAR) END"
        return text, [f"WHEN {value} IS NOT NULL AND NOT {exact} THEN '{column} ' || {value} || ' {_AS_NUMBER}'"]
    if column in _IDS and ("INT" in sql_type or sql_type.startswith("DECIMAL")):
        return f"CAST({value} AS VARCHAR)", []
    raise WwtsError(f"{name}: column {column} holds {sql_type}; write it as text")


# --- XLSX ------------------------------------------------------------------------------------------------------------


def _read_xlsx(con: duckdb.DuckDBPyConnection, path: Path, name: str) -> Read:
    from openpyxl import load_workbook

    _check_zip(path, name)
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        try:
            rows = iter(book.worksheets[0].iter_rows(values_only=True))
            places = _places(next(rows, ()), name)
            schema = _raw_schema(places)
            create_table(con, "raw", schema, batched(_xlsx_rows(rows, places), schema))
        finally:
            book.close()
    except (zipfile.BadZipFile, zlib.error, LookupError, ValueError, TypeError, SyntaxError, OSError) as error:
        raise WwtsError(f"{name} could not be read as XLSX ({first_line(error)}); save it again") from error
    return Read(tuple(places))


def _check_zip(path: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except zipfile.BadZipFile as error:
        raise WwtsError(f"{name} is no XLSX file; save it as an Excel workbook (.xlsx)") from error
    if unpacked > MAX_UNPACKED_BYTES:
        raise WwtsError(f"{name} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB; export it as CSV or Parquet")


def _xlsx_rows(rows: Iterable[tuple[Any, ...]], places: dict[str, int]) -> Iterator[list[Any]]:
    for line, row in enumerate(rows, start=2):
        if all(cell is None for cell in row):
            continue
        cells = {column: row[place] if place < len(row) else None for column, place in places.items()}
        problem = next((flaw for column in _IDS if (flaw := _mangled(column, cells.get(column)))), None)
        texts = {column: _cell_text(cell) for column, cell in cells.items()}
        yield [line, *(texts | {"uri": (texts["uri"] or "").strip()}).values(), problem]


def _mangled(column: str, cell: object) -> str | None:
    if isinstance(cell, bool | datetime | date | time):
        return f"{column} is no text: the spreadsheet made {cell} of it; format the column as text and enter it again"
    if isinstance(cell, int | float) and (cell != int(cell) or abs(cell) >= EXACT_INTEGERS):
        return f"{column} {cell} {_AS_NUMBER}"
    return None


def _cell_text(cell: object) -> str | None:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < EXACT_INTEGERS:
        return str(int(cell))
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ")
    return None if cell is None else str(cell)


# --- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(con: duckdb.DuckDBPyConnection, path: Path, name: str) -> Read:
    try:
        with _as_utf8(path, name) as text:
            rows = _CsvRows(text, name)
            create_table(con, "raw", rows.schema, rows.batches(con))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise WwtsError(f"{name} is no whole gzip file ({error}); export it again") from error
    except (pa.ArrowInvalid, csv.Error) as error:
        raise WwtsError(f"{name} could not be read as CSV: {first_line(error)}") from error
    return Read(tuple(rows.places), rows.is_whole)


class _CsvRows:
    """The rows of a UTF-8 CSV with their lines; those of another width than the header are put aside.

    Arrow parses: DuckDB would not say which rows it left out in a way that keeps the others' line numbers.
    """

    def __init__(self, path: Path, name: str) -> None:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(_CSV_BLOCK)
            self._delimiter = max(",\t;", key=first.count)
            file.seek(0)
            header = next(csv.reader(file, delimiter=self._delimiter), [])
        self._path, self._width = path, len(header)
        self.places = _places(header, name)
        self.schema = _raw_schema(self.places)
        self.is_whole = True
        self._refused: list[tuple[int, str | None, str]] = []
        self._gaps: deque[int] = deque()

    def batches(self, con: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
        """Rows of ``schema``; the refused ones go to ``broken``."""
        line = 1
        for batch in self._open():
            lines = self._lines(line, batch.num_rows)
            rows = self._rows(batch, lines)
            yield rows.slice(1) if line == 1 else rows  # without the header
            line = int(lines[-1]) + 1
            self._report(con)
        self._report(con)

    def _open(self) -> Iterator[pa.RecordBatch]:
        names = [str(place) for place in range(self._width)]
        reader = pacsv.open_csv(
            self._path,
            pacsv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK, column_names=names),
            pacsv.ParseOptions(
                delimiter=self._delimiter,
                newlines_in_values=True,
                ignore_empty_lines=False,  # they count as lines
                invalid_row_handler=self._refuse,
            ),
            pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
        return (batch for batch in reader if batch.num_rows)

    def _rows(self, batch: pa.RecordBatch, lines: Any) -> pa.Table:
        columns = {column: batch.column(place) for column, place in self.places.items()}
        columns["uri"] = pc.utf8_trim_whitespace(columns["uri"])
        table = pa.table([pa.array(lines), *columns.values(), self._unclosed(batch)], schema=self.schema)
        return table.filter(pc.is_valid(pc.coalesce(*batch.columns)))  # a blank line is no row

    def _lines(self, first: int, count: int) -> Any:
        """Lines of the next ``count`` usable rows, int64; those of the refused ones are left out."""
        runs = []
        while count:
            while self._gaps and self._gaps[0] == first:
                self._gaps.popleft()
                first += 1
            length = min(count, self._gaps[0] - first) if self._gaps else count
            runs.append(np.arange(first, first + length))
            first, count = first + length, count - length
        return np.concatenate(runs)

    def _refuse(self, row: Any) -> str:
        self._gaps.append(row.number)
        if "\n" in row.text:
            self.is_whole = False
        reason = f"the row has {row.actual_columns} columns, the header has {row.expected_columns}"
        self._refused.append((row.number, self._image_id(row.text), reason))
        return "skip"

    def _image_id(self, text: str) -> str | None:
        """Which image such a row seems to be about, so that it is not taken for gone."""
        try:
            fields = next(csv.reader([text], delimiter=self._delimiter), [])
        except csv.Error:
            return None
        place = self.places.get("image_id", self.places["uri"])
        return fields[place][:MAX_ID_CHARS] if place < len(fields) else None

    def _unclosed(self, batch: pa.RecordBatch) -> pa.Array:
        """A sentence for each row of which one cell holds whole further rows."""
        found = np.zeros(batch.num_rows, dtype=bool)
        for column in batch.columns:
            for place in np.flatnonzero(pc.coalesce(pc.match_substring(column, "\n"), pa.scalar(value=False))):
                inside = column[int(place)].as_py().splitlines()[1:]
                found[place] |= any(line.count(self._delimiter) == self._width - 1 for line in inside)
        if not found.any():
            return pa.nulls(batch.num_rows, pa.string())
        self.is_whole = False
        sentence = "a quote opened in this row is not closed, so that the rows after it are part of it"
        return pa.array([sentence if flag else None for flag in found], pa.string())

    def _report(self, con: duckdb.DuckDBPyConnection) -> None:
        if self._refused:
            con.register("refused_rows", pa.table(list(zip(*self._refused, strict=True)), names=["0", "1", "2"]))
            con.execute("INSERT INTO broken SELECT * FROM refused_rows")
            con.unregister("refused_rows")
            self._refused.clear()


@contextmanager
def _as_utf8(path: Path, name: str) -> Iterator[Path]:
    """``path`` as plain UTF-8: itself or a copy. What cannot be decoded is U+FFFD there, refused row by row later."""
    encoding = _encoding(path, name)
    with _opened(path) as file:
        is_plain = encoding == "utf-8" and not isinstance(file, gzip.GzipFile)
    with tempfile.TemporaryDirectory(prefix="wwts-manifest-") as folder:
        copy = Path(folder) / "manifest.csv"
        if not is_plain or _damage(path, name, encoding):
            with copy.open("w", encoding="utf-8", newline="") as target:
                target.writelines(_text(path, name, encoding))
        yield copy if copy.exists() else path


def _encoding(path: Path, name: str) -> str:
    with _opened(path) as file:
        start = file.read(2)
    if start in {BOM_UTF16_LE, BOM_UTF16_BE}:
        return "utf-16"
    utf8 = _damage(path, name, "utf-8")
    # One wrong byte does not make a UTF-8 file a GB18030 one: the encoding that explains more wins.
    return "gb18030" if utf8 and _damage(path, name, "gb18030") < utf8 else "utf-8"


def _damage(path: Path, name: str, encoding: str) -> int:
    return sum(chunk.count("\ufffd") for chunk in _text(path, name, encoding))


def _text(path: Path, name: str, encoding: str) -> Iterator[str]:
    decoder = getincrementaldecoder(encoding)(errors="replace")
    size = 0
    with _opened(path) as file:
        while chunk := file.read(_CSV_BLOCK):
            size += len(chunk)
            if size > MAX_UNPACKED_BYTES:
                raise WwtsError(f"{name} has more than {MAX_UNPACKED_BYTES >> 30} GiB of text; split it")
            yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with path.open("rb") as file:
        is_packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not is_packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as packed:
            yield packed
