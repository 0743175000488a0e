"""Labels as a spreadsheet: CSV and XLSX that Chinese Excel opens, and back again."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wwts_ops import sheets
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.sheets import CONTROL, Form, Row
from wwts_ops.taxonomy import CSV_COLUMNS, Label, Taxonomy
from wwts_ops.taxonomy_changes import bounds, edits
from wwts_ops.taxonomy_changes.faults import FaultError

if TYPE_CHECKING:
    from openpyxl.cell import Cell

SUFFIXES = (".csv", ".xlsx")
_RULES = ("forced_review", "enabled", "maps_to")
_COLUMNS = (*CSV_COLUMNS, *_RULES)
_ALIASES = {
    **sheets.LABEL_ALIASES,
    "编号": "label_id",
    "中文名": "label_zh",
    "名称": "label_zh",
    "英文名": "label_en",
    "同义词": "synonyms_zh",
    "类目": "category_path",
    "强制审核": "forced_review",
    "必看": "forced_review",
    "启用": "enabled",
    "映射到": "maps_to",
}
_FORM = Form(
    noun="labels",
    columns=_COLUMNS,
    aliases=_ALIASES,
    needed=tuple((column,) for column in CSV_COLUMNS),
    max_rows=100_000,
    max_bytes=bounds.LARGEST,
)
_FLAGS = {"true": True, "false": False, "1": True, "0": False, "是": True, "否": False}
#: In column ``maps_to``: no longer to any.
_NONE = ("无", "none")
#: Characters that a column is wide in Excel.
_WIDTHS = (26, 18, 22, 34, 34, 14, 10, 26)


def to_csv(names: Taxonomy) -> bytes:
    """All labels as CSV with the byte-order mark that Chinese Excel needs; no cell is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    writer.writerows([_guarded(text) for text in _cells(label)] for label in names.labels)
    return out.getvalue().encode("utf-8-sig")


def to_xlsx(names: Taxonomy) -> bytes:
    """All labels as XLSX, every cell a text, the header in sight."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet("标签")
    sheet.freeze_panes = "C2"
    for letter, width in zip("ABCDEFGH", _WIDTHS, strict=True):
        sheet.column_dimensions[letter].width = width
    sheet.append(_COLUMNS)
    for label in names.labels:
        sheet.append([_cell(sheet, CONTROL.sub(" ", text)) for text in _cells(label)])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def _cell(sheet: object, text: str) -> Cell | str | None:
    """``text`` as a cell that is a text, whatever it looks like: one that begins with "=" would run."""
    from openpyxl.cell import WriteOnlyCell

    # What begins with a letter is a text in any case, and a cell with a style takes five times as long.
    if not text or text[0].isalpha():
        return text or None
    cell = WriteOnlyCell(sheet, text)
    # A quote keeps it a text when somebody edits it.
    cell.data_type, cell.number_format, cell.quotePrefix = "s", "@", _guarded(text) != text
    return cell


def edit(data: bytes, name: str) -> edits.Edit:
    """The change that a file makes: labels it does not name stay, and so do rules that it leaves empty.

    Args:
        data: its bytes.
        name: what people call it; its suffix says which of ``SUFFIXES`` it is.

    Raises:
        FaultError: when it cannot be read; the change raises it for a row that cannot be used.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise FaultError("file_kind", file=name)
    if len(data) > bounds.LARGEST:
        raise FaultError("file_large", file=name, most=bounds.LARGEST >> 20)
    if suffix == ".xlsx":
        bounds.check(data, name, _FORM.max_rows)
    rows = _rows(data, name, suffix)
    # Only a CSV file needs a guard against formulas; XLSX knows what is a text.
    bare = rows if suffix == ".xlsx" else [replace(row, cells=_all_bare(row.cells)) for row in rows]
    return lambda names: _edited(names, bare)


def _rows(data: bytes, name: str, suffix: str) -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="wwts-labels-") as folder:
        path = Path(folder, f"labels{suffix}")
        path.write_bytes(data)
        try:
            return sheets.read(path, _FORM).rows
        except UnavailableError:
            raise
        except WwtsError as error:
            raise FaultError("file_unreadable", file=name, detail=str(error).replace(str(path), name)) from error


def _edited(names: Taxonomy, rows: Sequence[Row]) -> Taxonomy:
    changed: dict[str, Label] = {}
    for row in rows:
        if row.problem:
            raise FaultError("file_row", line=row.line, problem=row.problem)
        label_id = row.cells.get("label_id")
        if not label_id:
            raise FaultError("file_id", line=row.line)
        if label_id in changed:
            raise FaultError("file_twice", line=row.line, label=label_id)
        changed[label_id] = _label(row, names.by_id.get(label_id, Label(label_id, "")))
    kept = tuple(changed.get(label.label_id, label) for label in names.labels)
    return replace(names, labels=kept + tuple(new for key, new in changed.items() if key not in names.by_id))


def _label(row: Row, old: Label) -> Label:
    """Texts are as the row has them, empty or not; rules that it leaves empty are those of ``old``."""
    cells = row.cells
    name = edits.plain(cells.get("label_zh", ""))
    maps_to = cells.get("maps_to", old.maps_to)
    return Label(
        old.label_id,
        name,
        edits.plain(cells.get("label_en", "")),
        edits.joined(cells.get("synonyms_zh", ""), name),
        edits.path_of(cells.get("category_path", "")),
        _flag(row, "forced_review") if "forced_review" in cells else old.forced_review,
        _flag(row, "enabled") if "enabled" in cells else old.enabled,
        "" if maps_to.casefold() in _NONE else maps_to,
    )


def _flag(row: Row, column: str) -> bool:
    text = row.cells[column]
    if text.casefold() not in _FLAGS:
        raise FaultError("file_flag", line=row.line, text=text)
    return _FLAGS[text.casefold()]


def _cells(label: Label) -> Iterator[str]:
    for column in _COLUMNS:
        value = getattr(label, column)
        yield value if isinstance(value, str) else str(value).lower()


def _guarded(text: str) -> str:
    """``text`` for a CSV cell; what looks like a guarded one gets a quote too, so that every text comes back."""
    return f"'{text}" if _runs(text.lstrip("'")) else text


def _bare(text: str) -> str:
    """What :func:`_guarded` was given; what it did not write stays as it is."""
    return text[1:] if text.startswith("'") and _runs(text.lstrip("'")) else text


def _all_bare(cells: Mapping[str, str]) -> dict[str, str]:
    return {column: _bare(text) for column, text in cells.items()}


def _runs(text: str) -> bool:
    return sheets.cell(text) != text
