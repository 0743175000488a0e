"""What an XLSX file may hold, looked at before it is read: a few kilobytes could keep a reader busy for minutes."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from xml.parsers import expat

from wwts_ops.taxonomy_changes.faults import FaultError

#: Bytes of a file that is read.
LARGEST = 6 * 2**20
#: Columns of a sheet, filled or not; of labels there are eight.
MOST_COLUMNS = 64
#: Bytes of all parts together: 20,000 labels need 10 MiB.
_UNPACKED = 24 * 2**20
#: Elements that cells and their texts are made of, 22 a label, which a reader takes 3 µs each for; and all others,
#: such as styles, which it takes 15 µs for.
_MOST_CELLS, _MOST_OTHERS = 1_000_000, 100_000
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main "
_ROW = f"{_MAIN}row"
_OF_CELLS = frozenset(_MAIN + name for name in ("row", "c", "v", "f", "is", "si", "r", "t", "rPh", "phoneticPr"))
#: What an archive raises that is none, or locked, or packed in a way of its own.
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, KeyError)


def check(data: bytes, name: str, max_rows: int) -> None:
    """Refuses an XLSX file that would take a reader too long; one that is no archive is left to the reader.

    Args:
        data: its bytes.
        name: what people call it.
        max_rows: rows of a sheet below the header, filled or not.

    Raises:
        FaultError: too large, too many rows or columns, or no whole archive.
    """
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    scan = _Scan(name, max_rows)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > _UNPACKED:
                raise scan.too_large()
            for info in archive.infolist():
                scan.part(archive, info)
    except _BROKEN as error:
        raise FaultError(
            "file_unreadable", file=name, detail=f"{name} is no whole XLSX file; save it again."
        ) from error


@dataclass
class _Scan:
    """Counts as it goes, so that it ends where the first bound is passed.

    Attributes:
        name: of the file.
        max_rows: see :func:`check`.
        row, column: where it stands in the sheet.
        depth, row_depth: how deep it stands, and how deep the row that it stands in, 0 outside of rows.
        cells, others: elements seen so far in all parts.
    """

    name: str
    max_rows: int
    row: int = 0
    column: int = 0
    depth: int = 0
    row_depth: int = 0
    cells: int = 0
    others: int = 0

    def part(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        """Looks at one part."""
        self.row = self.column = self.depth = self.row_depth = 0
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._doctype
        with archive.open(info) as file:
            try:
                parser.ParseFile(file)
            except expat.ExpatError:
                # A picture, or broken: the reader, which has the same parser, comes no further either.
                return

    def too_large(self) -> FaultError:
        """Why it is refused."""
        return FaultError("file_large", file=self.name, most=LARGEST >> 20)

    def _doctype(self, *_: object) -> None:
        # No spreadsheet program writes one, and it may define entities that multiply.
        raise self.too_large()

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if tag in _OF_CELLS:
            self.cells += 1
        else:
            self.others += 1
        if self.cells > _MOST_CELLS or self.others > _MOST_OTHERS:
            raise self.too_large()
        if tag == _ROW:
            self._next_row(attributes.get("r"))
        elif self.depth == self.row_depth + 1 and self.row_depth:
            # A reader takes whatever stands in a row for a cell.
            self._next_cell(attributes.get("r"))

    def _end(self, tag: str) -> None:
        del tag
        if self.depth == self.row_depth:
            self.row_depth = 0
        self.depth -= 1

    def _next_row(self, stated: str | None) -> None:
        if self.row_depth:
            raise ValueError("a row in a row")
        # A reader fills the rows between with empty ones.
        row = float(stated) if stated is not None else self.row + 1
        if not row <= self.max_rows + 1:
            raise self._out_of_shape()
        self.row, self.column, self.row_depth = int(row), 0, self.depth

    def _next_cell(self, stated: str | None) -> None:
        from openpyxl.utils.cell import coordinate_to_tuple

        self.column = coordinate_to_tuple(stated)[1] if stated else self.column + 1
        if self.column > MOST_COLUMNS:
            raise self._out_of_shape()

    def _out_of_shape(self) -> FaultError:
        return FaultError("file_shape", file=self.name, rows=self.max_rows, columns=MOST_COLUMNS)
