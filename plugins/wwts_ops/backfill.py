"""Embeddings of contents that were seen before, but never by this backbone: read again and embedded, nothing else.

A shard of backfill ``<key>`` leaves ``embeddings/…/part-<key>-<shard>.parquet`` and, last, its marker
``backfills/<key>/shard-<shard>.json``. ``backfills/<key>/plan.json`` holds the date below which its parts lie and the
backbone; ``backfills/<key>/unreached-<shard>.json`` since which date which contents could not be reached.

While the host of the images is away, no shard is done: one of which too much could not be reached is to be run again,
and goes on where it was. What could not be reached on an earlier day either is gone, and holds nothing up.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from wwts_ops import embeddings, images
from wwts_ops.embeddings import EmbeddingWriter
from wwts_ops.errors import UnavailableError
from wwts_ops.fetch import Fetcher
from wwts_ops.images import Rejected
from wwts_ops.runtime import Embedder, embedder, one_core
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.tagging import ordered

log = structlog.get_logger(__name__)

Array = np.ndarray[Any, Any]

#: The uri holds other bytes by now; every other reason is one of ``images.REASONS``.
CHANGED = "changed"
_READERS = 16
_BATCH = 64
#: A few uris of a catalog are always dead; a host that is away takes more than these, and more than this share.
_DEAD, _DEAD_SHARE = 2, 0.05
_PART = re.compile(r"/part-(?P<key>[^/]+)-(?P<shard>\d+)\.parquet$")


@dataclass(frozen=True)
class _Wanted:
    """A content on its way: its bytes, then its crop, then its ``float16 [dimension]``; or why it cannot be had."""

    content: str
    uri: str
    data: bytes = b""
    reason: str = ""
    crop: Array | None = None
    embedding: Array | None = None


def plan_key(key: str) -> str:
    """The store key of what a backfill is bound to."""
    return f"backfills/{key}/plan.json"


def marker_key(key: str, shard: int) -> str:
    """The store key that says that one shard is done."""
    return f"backfills/{key}/shard-{shard:05d}.json"


def _unreached_key(key: str, shard: int) -> str:
    """The store key of the contents of one shard that could not be reached, each with the date since when."""
    return f"backfills/{key}/unreached-{shard:05d}.json"


def missing(store: Store, backbone_sha256: str, contents: Sequence[str]) -> list[str]:
    """Those of ``contents`` that no part of a backbone holds, in their order, each once.

    Raises:
        WwtsError: when a part is damaged.
    """
    left = dict.fromkeys(contents)
    for key in embeddings.parts(store, backbone_sha256):
        if not left:
            break
        for content in store.read_table(key, ["content_sha256"]).column(0).to_pylist():
            left.pop(content, None)
    return list(left)


def done_parts(store: Store, backbone_sha256: str) -> list[str]:
    """The keys of the parts that finished shards of backfills wrote for a backbone, by name."""
    markers = set(store.list("backfills", ".json"))
    found = []
    for part in embeddings.parts(store, backbone_sha256):
        named = _PART.search(part)
        if named and marker_key(named["key"], int(named["shard"])) in markers:
            found.append(part)
    return found


def embed(store: Store, settings: Settings, tagger: Tagger, wanted: pa.Table, key: str, shard: int) -> dict[str, Any]:
    """Embeds what one shard of a backfill wants, unless that is done; what its part holds already is kept.

    Args:
        store: where the part goes.
        settings: threads, limits, device.
        tagger: whose backbone.
        wanted: columns ``content_sha256`` and ``uri``; a content with several uris takes the first that still has it.
        key: names the backfill; letters, digits and dashes.
        shard: number of this part of it, from 0.

    Returns:
        What its marker says: ``embedded`` (count), ``seconds``, ``part`` (store key) and ``unreadable``, a list of
        ``content_sha256``, ``uri`` and ``reason``: ``changed``, or one of ``images.REASONS``.

    Raises:
        UnavailableError: when the store refuses; when the host of the images seems to be away: more than two of the
            contents, and more than 5 % of them, could not be reached today, though never missed on an earlier day.
    """
    marker = marker_key(key, shard)
    if store.exists(marker):
        return store.read_json(marker)
    started = time.perf_counter()
    part = embeddings.part_key(tagger.backbone_sha256, _date(store, settings, tagger, key), key, shard)
    embedded, unreadable = _write_part(store, settings, tagger, wanted, part)
    _refuse_outage(store, settings, key, shard, unreadable, embedded + len(unreadable))
    seconds = round(time.perf_counter() - started, 3)
    done = {"embedded": embedded, "unreadable": unreadable, "part": part, "seconds": seconds}
    store.write_json(marker, done)
    log.info("embedded_again", backfill=key, shard=shard, embedded=embedded, unreadable=len(unreadable))
    return done


def _write_part(
    store: Store, settings: Settings, tagger: Tagger, wanted: pa.Table, part: str
) -> tuple[int, list[dict[str, str]]]:
    """Writes what ``part`` holds and what it lacks of ``wanted``; the number of its rows, and what could not be had."""
    unreadable: list[dict[str, str]] = []
    with (
        _Pipeline(settings, tagger) as pipeline,
        store.writing(part) as path,
        EmbeddingWriter(path, tagger.backbone_sha256, tagger.recipe.dimension) as writer,
    ):
        kept = _kept(store, part, writer)
        embedded = len(kept)
        for one in pipeline.embedded(_without(wanted, kept)):
            if one.embedding is None:
                unreadable.append({"content_sha256": one.content, "uri": one.uri, "reason": one.reason})
                log.warning("content_not_embedded", image_hash=one.content, reason=one.reason)
            else:
                writer.add(one.content, one.embedding)
                embedded += 1
    return embedded, unreadable


def _kept(store: Store, part: str, writer: EmbeddingWriter) -> set[str]:
    """Writes the rows of ``part`` again, which one that was killed or refused has left; their contents."""
    contents: set[str] = set()
    if store.exists(part):
        for names, vectors in embeddings.batches(store, part):
            for content, vector in zip(names, vectors, strict=True):
                writer.add(content, vector)
            contents.update(names)
    return contents


def _without(wanted: pa.Table, contents: set[str]) -> pa.Table:
    there = pc.is_in(wanted["content_sha256"], value_set=pa.array(sorted(contents), pa.string()))
    return wanted.filter(pc.invert(there))


def _refuse_outage(
    store: Store, settings: Settings, key: str, shard: int, unreadable: Sequence[dict[str, str]], contents: int
) -> None:
    """Notes what could not be reached, and refuses to call that done when it may be back in an hour."""
    away = [row["content_sha256"] for row in unreadable if row["reason"] in images.TRANSIENT_REASONS]
    if not away:
        return
    today, note = settings.today().isoformat(), _unreached_key(key, shard)
    given_up = _given_up(store, today)
    since = store.read_json(note)["since"] if store.exists(note) else {}
    store.write_json(note, {"since": {**dict.fromkeys(away, today), **since}})
    missed = [content for content in away if content not in given_up]
    if len(missed) > max(_DEAD, _DEAD_SHARE * contents):
        raise UnavailableError(
            f"{len(missed)} of {contents} images of backfill {key} could not be reached ({settings.catalog}); see that "
            "their host answers, and run the task again. From tomorrow on it goes on without those."
        )


def _given_up(store: Store, today: str) -> set[str]:
    """Contents that some backfill missed on an earlier day, or went on without."""
    keys = set(store.list("backfills", ".json"))
    found: set[str] = set()
    for key in keys:
        folder, _, name = key.rpartition("/")
        if name.startswith("unreached-"):
            went_on = f"{folder}/{name.replace('unreached-', 'shard-')}" in keys
            since = store.read_json(key)["since"].items()
            found.update(content for content, date in since if went_on or date < today)
    return found


def _date(store: Store, settings: Settings, tagger: Tagger, key: str) -> str:
    """The date of the backfill's first start: a shard that is run again after midnight replaces its part."""
    plan = {"date": settings.today().isoformat(), "backbone_sha256": tagger.backbone_sha256}
    store.create(plan_key(key), json.dumps(plan).encode())
    return str(store.read_json(plan_key(key))["date"])


class _Pipeline:
    """From wanted contents to embeddings, in the order of the table; bounded queues between reading and embedding."""

    def __init__(self, settings: Settings, tagger: Tagger) -> None:
        self._settings, self._recipe = settings, tagger.recipe
        self._embed: Embedder = embedder(tagger, settings.device)
        self._workers = settings.workers or len(os.sched_getaffinity(0))

    def __enter__(self) -> _Pipeline:
        with ExitStack() as stack:
            self._fetcher = stack.enter_context(Fetcher(self._settings))
            self._readers = ThreadPoolExecutor(_READERS, "read")
            self._cores = ThreadPoolExecutor(self._workers, "core", initializer=one_core)
            for pool in (self._readers, self._cores):
                stack.callback(pool.shutdown, cancel_futures=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def embedded(self, wanted: pa.Table) -> Iterator[_Wanted]:
        """Every content once, with its embedding or with why there is none."""
        reads = ordered(self._readers, self._read, _contents(wanted), window=2 * _READERS)
        window = max(8 * self._workers, 2 * self._embed.batch_size)
        seen = ordered(self._cores, self._see, reads, window=window)
        while batch := list(islice(seen, _BATCH)):
            yield from self._with_embeddings(batch)

    def _read(self, content: tuple[str, list[str]]) -> _Wanted:
        """The bytes of a content, from the first of its uris that still has them. Runs in a reading thread."""
        sha, uris = content
        reason = ""
        for uri in uris:
            try:
                data = self._fetcher.read(uri)
            except Rejected as rejected:
                reason = rejected.reason
                continue
            if images.content_sha256(data) == sha:
                return _Wanted(sha, uri, data)
            reason = CHANGED
        return _Wanted(sha, uris[-1], reason=reason)

    def _see(self, one: _Wanted) -> _Wanted:
        """Decodes and crops; embeds too where the embedder wants one image a call. Runs in a pool thread."""
        if one.reason:
            return one
        bare = replace(one, data=b"")
        try:
            decoded = images.decode(one.data, self._recipe.short_side, self._settings.max_pixels)
        except Rejected as rejected:
            return replace(bare, reason=rejected.reason)
        crop = self._recipe.crop(decoded.rgb)
        if self._embed.batch_size == 1:
            return replace(bare, embedding=self._embed(crop[np.newaxis])[0])
        return replace(bare, crop=crop)

    def _with_embeddings(self, batch: list[_Wanted]) -> list[_Wanted]:
        crops = [one.crop for one in batch if one.crop is not None]
        vectors = iter(self._embed(np.stack(crops)) if crops else ())
        return [one if one.crop is None else replace(one, crop=None, embedding=next(vectors)) for one in batch]


def _contents(wanted: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """Every content with its uris."""
    rows = wanted.select(["content_sha256", "uri"]).sort_by([("content_sha256", "ascending"), ("uri", "ascending")])
    pairs = (pair for batch in rows.to_batches() for pair in zip(*batch.to_pydict().values(), strict=True))
    for content, group in groupby(pairs, key=itemgetter(0)):
        yield content, [uri for _, uri in group]
