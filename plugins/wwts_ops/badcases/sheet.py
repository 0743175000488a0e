"""Bad cases as people hand them in: a CSV, TSV, Parquet or XLSX file, or a folder with one subfolder a label."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from wwts_ops import sheets
from wwts_ops.errors import WwtsError
from wwts_ops.sheets import Form, Row, Sheet

#: What systems leave in folders.
_NOT_OURS = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})

FORM = Form(
    noun="bad cases",
    columns=(*sheets.PICTURES, "label_id", "forbidden", "slice", "owner", "reason", "never_regress"),
    aliases={
        **sheets.PICTURE_ALIASES,
        **sheets.LABEL_ALIASES,
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
    },
    needed=(sheets.PICTURES, ("label_id", "forbidden")),
    # Curated by people: more rows than this are no bad cases but a catalog.
    max_rows=20_000,
    max_bytes=64 * 2**20,
    otherwise=", or as a folder with one subfolder a label",
)


def read(source: Path) -> Sheet:
    """The rows of a file; of a folder, one a picture, its ``label_id`` the name of the subfolder as it is written.

    Raises:
        WwtsError: when it cannot be read at all, lacks a column, or holds no rows or too many.
    """
    sheet = _folder(source) if source.is_dir() else sheets.read(source, FORM)
    if not sheet.rows:
        raise WwtsError(f"{source} holds no bad case; add rows below its header, or pictures to its subfolders.")
    return sheet


def _folder(source: Path) -> Sheet:
    rows: list[Row] = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if _is_ours(name))
        for name in sorted(filter(_is_ours, names)):
            path = Path(folder, name)
            parts = path.relative_to(source).parts
            label = unicodedata.normalize("NFC", parts[0]).strip()
            problem = "" if len(parts) > 1 else "it lies in no subfolder; the subfolder's name says which label it has"
            cells = {"uri": str(path.absolute()), "label_id": label}
            rows.append(Row("/".join(parts), cells, problem, len(rows) + 1))
        FORM.check_count(source, len(rows))
    return Sheet(tuple(rows))


def _is_ours(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _NOT_OURS
