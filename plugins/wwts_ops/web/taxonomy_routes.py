"""The taxonomy on the page: all of it, its history, changes to it, and spreadsheets of it."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import Field

from wwts_ops import taxonomy_changes
from wwts_ops.review.people import Role
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import POINTER, Taxonomy
from wwts_ops.taxonomy_changes import Applied, Change, Edit, FaultError, labelsheet
from wwts_ops.web import shown
from wwts_ops.web.bodies import Body, Short, reading
from wwts_ops.web.security import Admin, RefusedError, Viewer, settings_of

router = APIRouter(prefix="/api/taxonomy")

#: Bytes of a body that holds a file, which base64 makes a third longer.
_LARGEST_IMPORT = 8 * 2**20
#: Bytes of a body of changes: ids of all labels of a large category.
_LARGEST_CHANGES = 2**20
#: Differences that an answer holds; ``count`` says how many there are.
_SHOWN = 1000
_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


class ChangesBody(Body):
    """Changes to the version that whoever asks has seen."""

    expected: Short
    changes: Annotated[tuple[Change, ...], Field(min_length=1, max_length=1000)]


class ImportBody(Body):
    """A spreadsheet (``data``: its bytes in base64) for the version that whoever asks has seen."""

    name: Short
    data: str
    expected: Short
    dry_run: bool = True


Asked = Annotated[ChangesBody, Depends(reading(ChangesBody, _LARGEST_CHANGES))]
Imported = Annotated[ImportBody, Depends(reading(ImportBody, _LARGEST_IMPORT))]


@router.get("")
def whole(request: Request, visitor: Viewer) -> Response:
    """All labels, on or off, each with why a person always looks at it (``forced_by``), and the tree of categories."""
    settings = settings_of(request)
    names = shown.names(settings)
    pointer = Store.of(settings).read_pointer(POINTER)
    told = {
        "version": names.version,
        "author": "" if pointer is None else pointer.value.get("author", ""),
        "may_change": visitor.role >= Role.ADMIN,
        "labels": [{**vars(label), "forced_by": names.forced_reason(label.label_id) or ""} for label in names.labels],
        "categories": _categories(names),
    }
    # Not through FastAPI's encoder, which takes a second for 20,000 labels.
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


@router.get("/history")
def versions(request: Request, visitor: Viewer, count: Annotated[int, Query(ge=1, le=200)] = 30) -> dict[str, Any]:
    """The last versions, newest first."""
    del visitor
    found = taxonomy_changes.history(Store.of(settings_of(request)), count)
    return {"versions": [{**asdict(one), "made_at": one.made_at.isoformat()} for one in found]}


@router.get("/diff")
def difference(request: Request, visitor: Viewer, before: Short, after: Short) -> dict[str, Any]:
    """What changed from one version to another."""
    del visitor
    settings = settings_of(request)
    found = taxonomy_changes.diff(_version(settings, before), _version(settings, after))
    return {"diff": [asdict(row) for row in found[:_SHOWN]], "count": len(found)}


@router.get("/export.{suffix}")
def export(request: Request, visitor: Viewer, suffix: Literal["csv", "xlsx"]) -> Response:
    """All labels as a spreadsheet."""
    del visitor
    names = shown.names(settings_of(request))
    write = {"csv": labelsheet.to_csv, "xlsx": labelsheet.to_xlsx}[suffix]
    disposition = f'attachment; filename="taxonomy-{names.version}.{suffix}"'
    return Response(write(names), media_type=_TYPES[suffix], headers={"Content-Disposition": disposition})


@router.post("/preview")
def preview(request: Request, visitor: Admin, body: Asked) -> dict[str, Any]:
    """What changes would do, and whether they may."""
    del visitor
    with _told():
        edit = taxonomy_changes.by(body.changes)
        return _done(taxonomy_changes.preview(Store.of(settings_of(request)), body.expected, edit))


@router.post("/changes")
def change(request: Request, visitor: Admin, body: Asked) -> dict[str, Any]:
    """Puts changes in force as a new version."""
    return _write(request, visitor.name, body.expected, taxonomy_changes.by(body.changes))


@router.post("/import")
def import_sheet(request: Request, visitor: Admin, body: Imported) -> dict[str, Any]:
    """Puts the labels of a spreadsheet in force as a new version, or only says what that would do."""
    with _told():
        edit = _sheet(body)
        if body.dry_run:
            return _done(taxonomy_changes.preview(Store.of(settings_of(request)), body.expected, edit))
    return _write(request, visitor.name, body.expected, edit)


def _write(request: Request, author: str, expected: str, edit: Edit) -> dict[str, Any]:
    settings = settings_of(request)
    with _told():
        return _done(taxonomy_changes.write(Store.of(settings), settings, author, expected, edit))


def _done(applied: Applied) -> dict[str, Any]:
    rows = [asdict(row) for row in applied.differences[:_SHOWN]]
    counts = taxonomy_changes.counts(applied.differences)
    return {"version": applied.after.version, "diff": rows, "count": len(applied.differences), "counts": counts}


@contextmanager
def _told() -> Iterator[None]:
    """A change that is refused, as the page's script wants to know it; 409 where somebody else was faster."""
    try:
        yield
    except FaultError as fault:
        raise RefusedError(409 if fault.code == "changed" else 400, fault.code, str(fault)) from fault


def _sheet(body: ImportBody) -> Edit:
    try:
        data = base64.b64decode(body.data, validate=True)
    except binascii.Error:
        raise RefusedError(400, "bad_body", "文件没有完整上传，请再试一次。") from None
    return labelsheet.edit(data, body.name)


def _version(settings: Settings, name: str) -> Taxonomy:
    if not name.replace("-", "").isalnum():
        raise RefusedError(404, "no_version", "没有这个版本的标签体系。")
    try:
        return shown.version(settings, name)
    except FileNotFoundError:
        raise RefusedError(404, "no_version", "没有这个版本的标签体系。") from None


def _categories(names: Taxonomy) -> list[dict[str, Any]]:
    """Every level that holds labels, its own below it; how many labels stand in it or deeper, and whether forced."""
    counts: Counter[str] = Counter()
    for label in names.labels:
        levels = label.category_path.split(" > ") if label.category_path else []
        counts.update(" > ".join(levels[: depth + 1]) for depth in range(len(levels)))
    return [
        {"path": path, "labels": count, "forced": path in names.forced_categories}
        for path, count in sorted(counts.items(), key=lambda one: one[0].split(" > "))
    ]
