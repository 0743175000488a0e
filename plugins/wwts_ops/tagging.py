"""One shard of a night: read ► decode ► embed ► head ► decide ► write, overlapped.

Reading threads run ahead of the pool of cores that decode and embed, which runs ahead of this thread, which scores,
decides and writes; every queue between them is bounded, and results keep the order of the plan, so that a shard
that is killed and run again gives the same rows.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import structlog

from wwts_ops import audit, images, planning
from wwts_ops.decisions import AUTO, Decider, Decision
from wwts_ops.embeddings import EmbeddingWriter, KnownContents, part_key
from wwts_ops.errors import UnavailableError
from wwts_ops.fetch import Fetcher
from wwts_ops.images import Rejected
from wwts_ops.parts import PartWriter
from wwts_ops.planning import Plan
from wwts_ops.provenance import git_sha
from wwts_ops.runtime import Embedder, Scorer, embedder, one_core
from wwts_ops.schemas import QUARANTINE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.taxonomy import Taxonomy

log = structlog.get_logger(__name__)

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")

#: Images scored, decided and written at once.
BATCH = 64
_READERS = 16
_THUMBNAIL_SIDE = 320
#: Of the images that need nobody, one in so many keeps a thumbnail in mode ``review``: the report's random sample.
#: Those that a person is asked to look at all the same (``audit``) keep theirs, too.
_SAMPLED = 16


@dataclass(frozen=True)
class Shard:
    """Which part of which plan, and where its parts go."""

    plan: Plan
    number: int

    @property
    def marker(self) -> str:
        """Written last: this shard is done."""
        return f"runs/{self.plan.run_key}/shard-{self.number:05d}.json"

    def part(self, dataset: str) -> str:
        """The store key of this shard's part of ``tags`` or ``quarantine``."""
        return f"{dataset}/date={self.plan.date}/part-{self.plan.run_key}-{self.number:05d}.parquet"


def done_shards(store: Store, plan: Plan) -> list[Shard]:
    """The shards of ``plan`` whose done-marker is there, in order."""
    markers = set(store.list(f"runs/{plan.run_key}", ".json"))
    return [shard for shard in (Shard(plan, number) for number in range(plan.shards)) if shard.marker in markers]


@dataclass(frozen=True)
class Machine:
    """What a shard runs with, loaded once a process."""

    tagger: Tagger
    taxonomy: Taxonomy
    embed: Embedder
    score: Scorer
    decide: Decider

    @classmethod
    def of(cls, tagger: Tagger, taxonomy: Taxonomy, settings: Settings) -> Machine:
        """Loads ``tagger`` for the device of ``settings``."""
        decide = Decider(tagger.label_ids, tagger.thresholds, taxonomy, settings.top_k)
        return cls(tagger, taxonomy, embedder(tagger, settings.device), Scorer(tagger), decide)


@dataclass(frozen=True)
class _Read:
    """A row of the plan with its bytes, or why there are none.

    ``digest``: SHA-256 of the bytes. ``copy``: the content stood earlier in this shard. ``known``: its
    ``float16 [dimension]`` from an earlier run.
    """

    row: Row
    data: bytes = b""
    digest: bytes = b""
    rejected: Rejected | None = None
    copy: bool = False
    known: Array | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Seen:
    """What became of a read image: rejected, a copy, or decoded and (unless a batch is wanted) embedded."""

    read: _Read
    rejected: Rejected | None = None
    width: int = 0
    height: int = 0
    crop: Array | None = None
    embedding: Array | None = None
    small: Array | None = None
    decode_seconds: float = 0.0
    embed_seconds: float = 0.0

    @property
    def sha(self) -> str:
        return self.read.digest.hex()

    @property
    def duplicate(self) -> bool:
        return self.read.copy or self.read.known is not None


@dataclass
class _Tally:
    """Counts for the done-marker, and seconds that each kind of work took, summed over threads."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def to_marker(self) -> Row:
        names = ("tagged", "duplicates", "quarantined", "auto", "review", "forced_review")
        return {
            **{name: self.counts[name] for name in names},
            "reasons": dict(self.reasons),
            "timings": {name: round(value, 3) for name, value in self.seconds.items()},
        }


class _DoneMeanwhileError(Exception):
    """Leaves the blocks that would publish this shard's parts."""


def tag(store: Store, settings: Settings, shard: Shard, machine: Callable[[], Machine]) -> Row:
    """Tags one shard, unless it is done, and returns what its done-marker says.

    Args:
        store: where parts go.
        settings: threads, limits, thumbnails.
        shard: which rows.
        machine: called only if there is work.

    Returns:
        ``images``, ``tagged``, ``duplicates``, ``quarantined``, ``auto``, ``review``, ``forced_review`` (counts),
        ``seconds`` (wall), ``reasons`` (quarantine) and ``timings`` (seconds by kind of work).

    Raises:
        UnavailableError: when the store or the temporary folder refuses.
    """
    if store.exists(shard.marker):
        return store.read_json(shard.marker)
    started = time.perf_counter()
    log.info("shard_started", run_id=shard.plan.run_key, shard=shard.number)
    try:
        result = _tag(store, settings, shard, machine())
    except _DoneMeanwhileError:
        return store.read_json(shard.marker)
    done = {**result, "seconds": round(time.perf_counter() - started, 3)}
    store.write_json(shard.marker, done)
    log.info("shard_done", run_id=shard.plan.run_key, shard=shard.number, **done)
    return done


def _tag(store: Store, settings: Settings, shard: Shard, machine: Machine) -> Row:
    plan, tally = shard.plan, _Tally()
    table = planning.read_shard(store, plan.run_key, shard.number)
    # Parts are published when the inner block ends without an error; the marker follows when all three are there.
    with (
        _Pipeline(store, settings, plan, machine) as pipeline,
        _Results(store, shard, machine.tagger, tally) as results,
    ):
        thumbnails = _Thumbnails(store, settings, plan.run_key, pipeline.cores)
        for batch in pipeline.batches(table, tally):
            for item, decision in batch:
                results.add(item, decision)
                thumbnails.add(item, decision)
            done = tally.counts["tagged"] + tally.counts["quarantined"]
            log.info("shard_progress", run_id=plan.run_key, shard=shard.number, done=done, of=table.num_rows)
        thumbnails.wait()
        if store.exists(shard.marker):
            # Another starter was faster. Its parts stay: where a server answered only one of us, ours differ.
            raise _DoneMeanwhileError
    return {"images": table.num_rows, **tally.to_marker()}


class _Pipeline:
    """From rows of the plan to decisions, in the plan's order."""

    def __init__(self, store: Store, settings: Settings, plan: Plan, machine: Machine) -> None:
        self._settings, self._machine = settings, machine
        self._recipe = machine.tagger.recipe
        self._workers = settings.workers or len(os.sched_getaffinity(0))
        self._known = KnownContents(store, plan.backbone_sha256, plan.known_runs)

    def __enter__(self) -> _Pipeline:
        with ExitStack() as stack:
            self._memory = stack.enter_context(_ShardMemory(self._recipe.dimension))
            self._fetcher = stack.enter_context(Fetcher(self._settings))
            self._readers = ThreadPoolExecutor(_READERS, "read")
            self.cores = ThreadPoolExecutor(self._workers, "core", initializer=one_core)
            for pool in (self._readers, self.cores):
                # After an error what was read ahead is no longer wanted.
                stack.callback(pool.shutdown, cancel_futures=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def batches(self, table: pa.Table, tally: _Tally) -> Iterator[list[tuple[_Seen, Decision | None]]]:
        """Up to :data:`BATCH` rows of the plan at a time, each with its decision unless it is rejected."""
        reads = ordered(self._readers, self._read, _rows(table), window=2 * _READERS)
        window = max(8 * self._workers, 2 * self._machine.embed.batch_size)
        seen = ordered(self.cores, self._see, self._look_up(reads), window=window)
        while items := list(islice(seen, BATCH)):
            yield self._decided(items, tally.seconds)

    def _read(self, row: Row) -> _Read:
        """Runs in a reading thread."""
        started = time.perf_counter()
        try:
            data = self._fetcher.read(row["uri"])
        except Rejected as rejected:
            return _Read(row, rejected=rejected, seconds=time.perf_counter() - started)
        digest = bytes.fromhex(images.content_sha256(data))
        return _Read(row, data, digest, seconds=time.perf_counter() - started)

    def _look_up(self, reads: Iterable[_Read]) -> Iterator[_Read]:
        """Marks what stood earlier in this shard, by the order of the plan, and what earlier runs embedded."""
        contents: set[bytes] = set()
        for read in reads:
            if read.rejected:
                yield read
            elif read.digest in contents:
                # Its bytes are not needed again: its content's first image says all.
                yield replace(read, copy=True, data=b"")
            else:
                contents.add(read.digest)
                yield replace(read, known=self._known.get(read.digest.hex()))

    def _see(self, read: _Read) -> _Seen:
        """Decodes and crops; embeds too where the embedder wants one image a call. Runs in a pool thread."""
        if read.rejected or read.copy:
            return _Seen(read, rejected=read.rejected)
        bare = replace(read, data=b"")
        started = time.perf_counter()
        try:
            decoded = images.decode(read.data, self._recipe.short_side, self._settings.max_pixels)
        except Rejected as rejected:
            return _Seen(bare, rejected=rejected, decode_seconds=time.perf_counter() - started)
        small = None if self._settings.thumbnails == "none" else _shrink(decoded.rgb)
        embedding = read.known
        crop = self._recipe.crop(decoded.rgb) if embedding is None else None
        decoding = time.perf_counter() - started
        if crop is not None and self._machine.embed.batch_size == 1:
            embedding, crop = self._machine.embed(crop[np.newaxis])[0], None
        embedding_took = time.perf_counter() - started - decoding
        size = decoded.width, decoded.height
        return _Seen(bare, None, *size, crop, embedding, small, decoding, embedding_took)

    def _decided(self, items: list[_Seen], seconds: defaultdict[str, float]) -> list[tuple[_Seen, Decision | None]]:
        started = time.perf_counter()
        embedded = self._embed_crops(items)
        embedding_took = time.perf_counter() - started
        recalled = [self._memory.recall(item) for item in embedded]
        vectors = [item.embedding for item in recalled if item.embedding is not None]
        decisions = iter(self._machine.decide(self._machine.score(np.stack(vectors))) if vectors else ())
        for item in items:
            seconds["read"] += item.read.seconds
            seconds["decode"] += item.decode_seconds
            seconds["embed"] += item.embed_seconds
        seconds["embed"] += embedding_took
        seconds["decide"] += time.perf_counter() - started - embedding_took
        return [(item, None if item.rejected else next(decisions)) for item in recalled]

    def _embed_crops(self, items: list[_Seen]) -> list[_Seen]:
        """``items``, those embedded that wait for a batch."""
        crops = [item.crop for item in items if item.crop is not None]
        if not crops:
            return items
        started = time.perf_counter()
        vectors = iter(self._machine.embed(np.stack(crops)))
        share = (time.perf_counter() - started) / len(crops)
        return [
            item if item.crop is None else replace(item, crop=None, embedding=next(vectors), embed_seconds=share)
            for item in items
        ]


class _Results:
    """The three parts of one shard: whole when the block ends without an error, else not there."""

    def __init__(self, store: Store, shard: Shard, tagger: Tagger, tally: _Tally) -> None:
        self._store, self._shard, self._tally = store, shard, tally
        self._dimension = tagger.recipe.dimension
        self._thresholds = dict(zip(tagger.label_ids, tagger.thresholds.tolist(), strict=True))
        plan = shard.plan
        self._common = {
            "model_name": plan.model_name,
            "model_version": plan.model_version,
            "model_sha256": plan.model_sha256,
            "backbone_sha256": plan.backbone_sha256,
            "taxonomy_version": plan.taxonomy_version,
            "git_sha": git_sha(),
            "run_id": plan.run_key,
            "ocr_text": None,
        }

    def __enter__(self) -> _Results:
        plan, shard = self._shard.plan, self._shard
        key = part_key(plan.backbone_sha256, plan.date, plan.run_key, shard.number)
        with ExitStack() as stack:
            self._quarantine = stack.enter_context(PartWriter(self._store, shard.part("quarantine"), QUARANTINE))
            self._tags = stack.enter_context(PartWriter(self._store, shard.part("tags"), TAGS))
            path = stack.enter_context(self._store.writing(key))
            self._vectors = stack.enter_context(EmbeddingWriter(path, plan.backbone_sha256, self._dimension))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, item: _Seen, decision: Decision | None) -> None:
        """Writes one image to the tags, or without a ``decision`` to the quarantine."""
        started = time.perf_counter()
        if decision:
            self._add_tagged(item, decision)
        elif item.rejected:
            self._add_rejected(item, item.rejected)
        self._tally.seconds["write"] += time.perf_counter() - started

    def _add_rejected(self, item: _Seen, rejected: Rejected) -> None:
        self._tally.counts["quarantined"] += 1
        self._tally.reasons[rejected.reason] += 1
        row = {name: item.read.row[name] for name in ("image_id", "sku_id", "uri")}
        found = {"content_sha256": item.sha or None, "reason": rejected.reason, "detail": rejected.detail}
        self._quarantine.add({**row, **found, "run_id": self._shard.plan.run_key, "seen_at": datetime.now(UTC)})
        log.warning("image_quarantined", image_id=row["image_id"], image_hash=item.sha or None, reason=rejected.reason)

    def _add_tagged(self, item: _Seen, decision: Decision) -> None:
        self._tally.counts.update(["tagged", decision.decision, *(["duplicates"] if item.duplicate else [])])
        if not item.duplicate and item.embedding is not None:
            self._vectors.add(item.sha, item.embedding)
        self._tags.add(self._row(item, decision))
        first = decision.tags[0] if decision.tags else None
        log.info(
            "image_tagged",
            image_hash=item.sha,
            latency_ms=round((item.decode_seconds + item.embed_seconds) * 1e3, 2),
            # A label that others are mapped to may have no threshold of its own.
            objects_found=sum(tag.score >= self._thresholds.get(tag.label_id, 1.0) for tag in decision.tags),
            decision=decision.decision,
            label_id=first and first.label_id,
            score=first and round(first.score, 4),
        )

    def _row(self, item: _Seen, decision: Decision) -> Row:
        first = decision.tags[0] if decision.tags else None
        return {
            **{name: item.read.row[name] for name in ("image_id", "sku_id", "uri")},
            "content_sha256": item.sha,
            "width": item.width,
            "height": item.height,
            "tags": [vars(tag) for tag in decision.tags],
            "label_id": first and first.label_id,
            "label_zh": first and first.label_zh,
            "confidence": first and first.score,
            "category_path": decision.category_path or None,
            "decision": decision.decision,
            "decision_reason": decision.reason,
            "source": "duplicate" if item.duplicate else "model",
            "tagged_at": datetime.now(UTC),
            **self._common,
        }


class _Thumbnails:
    """Writes small pictures in a pool; no more than some wait at a time."""

    def __init__(self, store: Store, settings: Settings, run_key: str, pool: ThreadPoolExecutor) -> None:
        self._store, self._settings, self._run_key, self._pool = store, settings, run_key, pool
        self._pending: deque[Future[None]] = deque()

    def add(self, item: _Seen, decision: Decision | None) -> None:
        """Keeps the thumbnail of ``item`` where the mode wants it; copies have none of their own."""
        if decision is None or item.small is None or not self._wanted(item, decision):
            return
        self._pending.append(self._pool.submit(_write_thumbnail, self._store, item.sha, item.small))
        while len(self._pending) > 2 * BATCH:
            self._pending.popleft().result()

    def _wanted(self, item: _Seen, decision: Decision) -> bool:
        if self._settings.thumbnails == "all" or decision.decision != AUTO:
            return True
        if int.from_bytes(item.read.digest[:4]) % _SAMPLED == 0:
            return True
        return audit.sampled(self._run_key, item.sha, self._settings.audit_rate)

    def wait(self) -> None:
        """Until all are written."""
        while self._pending:
            self._pending.popleft().result()


class _ShardMemory:
    """What this shard found out about each content, for its later copies: on disk, so that memory stays flat."""

    def __init__(self, dimension: int) -> None:
        self._record = np.dtype([("size", "<i4", 2), ("embedding", "<f2", dimension)])
        self._places: dict[bytes, int] = {}
        self._rejected: dict[bytes, Rejected] = {}

    def __enter__(self) -> _ShardMemory:
        self._file = tempfile.TemporaryFile(prefix="wwts-shard-", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def recall(self, item: _Seen) -> _Seen:
        """``item`` itself, remembered; or, for a copy, what its content's first image came to.

        Raises:
            UnavailableError: when the temporary folder is full.
        """
        digest = item.read.digest
        if not item.read.copy:
            self._remember(digest, item)
            return item
        if digest in self._rejected:
            return replace(item, rejected=self._rejected[digest])
        size = self._record.itemsize
        record = np.frombuffer(os.pread(self._file.fileno(), size, self._places[digest] * size), self._record)[0]
        width, height = (int(value) for value in record["size"])
        return replace(item, width=width, height=height, embedding=record["embedding"])

    def _remember(self, digest: bytes, item: _Seen) -> None:
        if item.embedding is None:
            # A uri that could not be read has no content.
            if digest and item.rejected:
                self._rejected[digest] = item.rejected
            return
        record = np.zeros(1, self._record)
        record["size"], record["embedding"] = (item.width, item.height), item.embedding
        data, place = record.tobytes(), len(self._places)
        try:
            written = os.pwrite(self._file.fileno(), data, place * len(data))
        except OSError as error:
            raise _full(error.strerror) from error
        if written < len(data):
            raise _full(os.strerror(errno.ENOSPC))
        self._places[digest] = place


def _full(why: str | None) -> UnavailableError:
    return UnavailableError(
        f"The temporary folder {tempfile.gettempdir()} refused a shard's notes: {why}. "
        "Free space there or set TMPDIR to another folder, then run again."
    )


def _rows(table: pa.Table) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=BATCH):
        yield from batch.to_pylist()


def ordered(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], *, window: int) -> Iterator[R]:
    """``map`` in a pool that keeps the order and holds no more than ``window`` items."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _shrink(rgb: Array) -> Array:
    """The thumbnail's pixels, so that no full picture waits for its decision."""
    height, width = rgb.shape[:2]
    scale = _THUMBNAIL_SIDE / max(height, width)
    return images.resize(rgb, max(1, round(width * scale)), max(1, round(height * scale))) if scale < 1 else rgb


def _write_thumbnail(store: Store, sha: str, small: Array) -> None:
    key = f"thumbnails/{sha[:2]}/{sha}.jpg"
    if not store.exists(key):
        store.put(key, images.thumbnail(small, _THUMBNAIL_SIDE))
