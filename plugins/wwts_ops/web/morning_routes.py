"""The morning's figures, stored reports and diffs, who changed what, bulk undo and proposed labels."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import Response

from wwts_ops import events, taxonomy_changes
from wwts_ops.events import Event
from wwts_ops.review import bulk, figures, labels, proposals
from wwts_ops.review.bulk import Seen, Selection
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.web import shown
from wwts_ops.web.bodies import DecisionBody, SelectionBody, reading
from wwts_ops.web.security import SANDBOX, Admin, RefusedError, Viewer, settings_of

router = APIRouter()

#: Newest first; older ones are in the store.
_LISTED = 60
_KEPT_VERSIONS = 2
Count = Annotated[int, Query(ge=1, le=500)]
#: Names of stored things: no dot and no slash, so that none leads elsewhere.
Name = Annotated[str, Path(pattern=r"^[0-9A-Za-z_-]{1,120}$")]


@router.get("/api/morning")
def morning(request: Request, visitor: Viewer) -> Response:
    """The figures, and what there is to read."""
    del visitor
    settings = settings_of(request)
    store = Store.of(settings)
    told = dataclasses.asdict(figures.today(settings, store, settings.now()))
    told["reports"] = _reports(store)
    told["tagdiffs"] = _tag_diffs(settings, store)
    return _json(told)


def _reports(store: Store) -> list[str]:
    """Dates that have a page, the last first."""
    parts = [key.split("/") for key in store.list("reports/", "/index.html")]
    found = [part[1].removeprefix("date=") for part in parts if len(part) == 3 and part[1].startswith("date=")]
    return sorted(found, reverse=True)[:_LISTED]


def _tag_diffs(settings: Settings, store: Store) -> list[dict[str, Any]]:
    """Tag diffs that have a page, the last written first: which version was compared with which, and when."""
    files = [file for key, file in store.files("tagdiffs").items() if key.endswith("/index.html")]
    files = sorted(files, key=lambda file: file.modified, reverse=True)[:_LISTED]
    names = [file.key.split("/")[1] for file in files]
    return [{"name": name, **_compared(settings, name)} for name in names]


def _compared(settings: Settings, name: str) -> dict[str, Any]:
    try:
        return _compared_once(settings.store, settings.s3_endpoint, name)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none yet, or damaged: its name has to do
        return {}


@lru_cache(maxsize=4 * _LISTED)
def _compared_once(root: str, s3_endpoint: str, name: str) -> dict[str, Any]:
    """Of a summary, which never changes."""
    found = Store(root, s3_endpoint).read_json(f"tagdiffs/{name}/summary.json")
    return {"before": found["versions"]["old"], "after": found["versions"]["new"], "made_at": found["made_at"]}


@router.get("/reports/{day}/")
def report(request: Request, visitor: Viewer, day: date) -> Response:
    """The stored page of one date."""
    del visitor
    return _stored(request, f"reports/date={day.isoformat()}/index.html")


@router.get("/tagdiffs/{name}/")
def tag_diff(request: Request, visitor: Viewer, name: Name) -> Response:
    """The stored page of one tag diff."""
    del visitor
    return _stored(request, f"tagdiffs/{name}/index.html")


def _stored(request: Request, key: str) -> Response:
    try:
        data = Store.of(settings_of(request)).read_bytes(key)
    except FileNotFoundError:
        raise RefusedError(404, "no_page", "没有这份报告。") from None
    return Response(data, media_type="text/html", headers={"Content-Security-Policy": SANDBOX})


@router.get("/api/labels/{version}")
def all_labels(request: Request, visitor: Viewer, version: Name) -> Response:
    """Everything that the search box searches; a version never changes, so browsers keep it."""
    del visitor
    settings = settings_of(request)
    try:
        data = _labels(settings.store, settings.s3_endpoint, version)
    except FileNotFoundError:
        raise RefusedError(404, "no_version", "没有这个版本的标签体系。") from None
    # Packed once, not for everybody anew.
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(data if packed else gzip.decompress(data), media_type="application/json", headers=headers)


@lru_cache(maxsize=_KEPT_VERSIONS)
def _labels(root: str, s3_endpoint: str, version: str) -> bytes:
    known = shown.read(root, s3_endpoint, version)
    told = {"version": version, "labels": labels.index(known)}
    return gzip.compress(json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(), mtime=0)


# ------------------------------------------------------------------ who changed what


@router.get("/api/events")
def changes(request: Request, visitor: Viewer, count: Count = 50) -> Response:
    """What was changed other than by single answers, newest first."""
    del visitor
    settings = settings_of(request)
    found = events.recent(settings, count)
    found = sorted([*found, *_unwritten(settings, found)], key=lambda event: event.happened_at, reverse=True)
    return _json({"events": [dataclasses.asdict(event) for event in found[:count]]})


def _unwritten(settings: Settings, found: Sequence[Event]) -> Iterator[Event]:
    """Versions of the taxonomy that came of an import or a command, of which there is no event."""
    known = {event.subject for event in found if event.action == events.CHANGED_TAXONOMY}
    for version in taxonomy_changes.history(Store.of(settings), _LISTED):
        if version.previous and version.version not in known:
            detail = {"previous": version.previous, "counts": dict(version.counts)}
            yield Event(0, version.made_at, version.author, events.CHANGED_TAXONOMY, version.version, detail)


@router.post("/api/bulk/preview")
def preview(
    request: Request, visitor: Admin, body: Annotated[SelectionBody, Depends(reading(SelectionBody))]
) -> Response:
    """What a bulk undo would take back."""
    del visitor
    settings = settings_of(request)
    found = bulk.preview(settings, _selection(body))
    return _json({**dataclasses.asdict(found), "labels": _counted(settings, found.labels)})


@router.post("/api/bulk/take-back")
def take_back(
    request: Request, visitor: Admin, body: Annotated[SelectionBody, Depends(reading(SelectionBody))]
) -> dict[str, Any]:
    """Takes back what was previewed, and nothing that was said since."""
    if body.upto is None or body.at is None or body.count is None:
        raise RefusedError(400, "no_preview", "请先预览，再撤回。")
    seen = Seen(body.count, body.upto, _time(body.at))
    try:
        return {"count": bulk.take_back(settings_of(request), visitor.name, _selection(body), seen)}
    except bulk.ChangedError as error:
        raise RefusedError(409, "changed", str(error)) from error


def _selection(body: SelectionBody) -> Selection:
    return Selection(body.person, _time(body.since), _time(body.until), body.label_id or None)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise RefusedError(400, "no_time", "时间格式有误，应为带时区的 ISO 8601。")
    return found


def _counted(settings: Settings, found: Any) -> list[dict[str, Any]]:
    known = shown.names(settings)
    return [
        {"label_id": label_id, "label_zh": shown.name_of(known, label_id), "count": count} for label_id, count in found
    ]


# ------------------------------------------------------------------ proposed labels


@router.get("/api/proposals")
def proposed(request: Request, visitor: Viewer) -> Response:
    """Labels that people missed, not yet decided upon."""
    del visitor
    return _json({"proposals": [dataclasses.asdict(one) for one in proposals.open_(settings_of(request))]})


@router.post("/api/proposals/{number}")
def decide(
    request: Request, visitor: Admin, number: Name, body: Annotated[DecisionBody, Depends(reading(DecisionBody))]
) -> Response:
    """What becomes of one."""
    settings = settings_of(request)
    given = {name: value for name, value in dict(body).items() if name != "decision" and value is not None}
    found = proposals.decide(settings, Store.of(settings), visitor.name, number, body.decision, **given)
    return _json(dataclasses.asdict(found) if dataclasses.is_dataclass(found) else {})


def _json(value: Any) -> Response:
    """Any of our values as JSON: times in ISO 8601."""
    text = json.dumps(jsonable_encoder(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")
