"""Pictures by the id of their content: stored thumbnails, and originals as they are, never decoded here."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from fastapi import APIRouter, Request
from fastapi.responses import Response

from wwts_ops import published, warehouse, webpage
from wwts_ops.fetch import Fetcher
from wwts_ops.images import REASONS, Rejected
from wwts_ops.review import items
from wwts_ops.schemas import PUBLISHED
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.web.bodies import Content
from wwts_ops.web.security import SANDBOX, RefusedError, Viewer

router = APIRouter()

#: What a content is never changes; who may see it does, so no shared cache keeps it.
_FOREVER = "private, max-age=31536000, immutable"
#: Originals that are looked for or in memory at once (each up to ``WWTS_MAX_IMAGE_BYTES``), and seconds to wait for
#: one's turn: who waits holds a thread of those that Airflow's own pages need too.
_AT_ONCE, _PATIENCE_S = 4, 2.0
_turn = threading.BoundedSemaphore(_AT_ONCE)
#: Looked for at once: in a bucket each takes a round trip.
_LOOKERS = 8
#: Contents of a picture's SKUs among which an item is looked for.
_MOST_BESIDE = 20_000


@router.get("/pictures/{content}")
def thumbnail(request: Request, visitor: Viewer, content: Content) -> Response:
    """The stored thumbnail."""
    del visitor
    data = webpage.thumbnail(request.app.state.store, content)
    if data is None:
        raise RefusedError(404, "no_picture", "没有缩略图。")
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": _FOREVER})


@router.get("/originals/{content}")
def original(request: Request, visitor: Viewer, content: Content) -> Response:
    """The bytes that were tagged, of what waits or waited for a look, and of its SKU's other images."""
    del visitor
    with _in_turn():
        uri = _address(request.app.state.settings, content)
        if uri is None:
            raise RefusedError(404, "no_item", "这张图片不在审核队列中。")
        data = _read(request.app.state.fetcher, uri)
        if hashlib.sha256(data).hexdigest() != content:
            raise RefusedError(409, "changed", "原图已被替换，与打标时不是同一张。")
        kind = media_type(data)
        if kind is None:
            raise RefusedError(415, "not_shown", "这种格式的原图不能在浏览器中显示。")
        headers = {"Cache-Control": _FOREVER, "Content-Security-Policy": SANDBOX, "Content-Disposition": "inline"}
        return Response(data, media_type=kind, headers=headers)


def media_type(data: bytes) -> str | None:
    """What a browser should take ``data`` for, by how it begins; None for all but plain kinds of pictures."""
    if data[4:8] == b"ftyp":
        return "image/avif" if data[8:12] in (b"avif", b"avis") else None
    if data[:4] == b"RIFF":
        return "image/webp" if data[8:12] == b"WEBP" else None
    kinds = {
        b"\xff\xd8\xff": "image/jpeg",
        b"\x89PNG\r\n\x1a\n": "image/png",
        b"GIF87a": "image/gif",
        b"GIF89a": "image/gif",
        b"BM": "image/bmp",
    }
    return next((kind for start, kind in kinds.items() if data.startswith(start)), None)


def present(store: Store, contents: Iterable[str]) -> frozenset[str]:
    """Which of ``contents`` have a thumbnail.

    Raises:
        UnavailableError: when the store refuses.
    """
    wanted = list(dict.fromkeys(contents))
    with ThreadPoolExecutor(_LOOKERS) as pool:
        found = pool.map(lambda content: store.exists(webpage.thumbnail_key(content)), wanted)
        return frozenset(content for content, there in zip(wanted, found, strict=True) if there)


def fetcher(settings: Settings) -> Fetcher:
    """What reads originals, for as long as the server runs."""
    return Fetcher(settings)


def _address(settings: Settings, content: str) -> str | None:
    """Where a content is read from; None for what nobody was asked to look at, and what stands beside nothing such."""
    item = items.one(settings, content)
    if item is not None:
        return item.uri
    store = Store.of(settings)
    pointer = published.current(store)
    if pointer is None:
        return None
    with warehouse.connect() as con:
        warehouse.view(con, "published", store, pointer.value["parts"], PUBLISHED)
        con.execute("CREATE TABLE own AS SELECT sku_id, uri FROM published WHERE content_sha256 = $1", [content])
        address = con.sql("SELECT min(uri) FROM own").fetchall()[0][0]
        beside = con.sql("SELECT DISTINCT content_sha256 FROM published SEMI JOIN own USING (sku_id) ORDER BY 1")
        contents = [one for (one,) in beside.limit(_MOST_BESIDE).fetchall()]
    return address if items.any_of(settings, contents) else None


def _read(source: Fetcher, uri: str) -> bytes:
    try:
        return source.read(uri)
    except Rejected as error:
        raise RefusedError(502, "unreadable", f"原图现在读不到：{REASONS[error.reason]}。") from error


@contextmanager
def _in_turn() -> Iterator[None]:
    if not _turn.acquire(timeout=_PATIENCE_S):
        raise RefusedError(503, "busy", "同时打开的原图太多，请稍后再试。")
    try:
        yield
    finally:
        _turn.release()
