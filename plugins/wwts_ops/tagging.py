"""One shard of a night: read ► decode ► embed ► head ► decide ► write, overlapped.

Reading threads run ahead of the pool of cores that decode and embed, which runs ahead of this thread, which scores,
decides and writes; every queue between them is bounded, and results keep the order of the plan, so that a shard
that is killed and run again gives the same rows.
"""

from __future__ import annotations

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

from wwts_ops import images, planning
from wwts_ops.decisions import AUTO, Decider, Decision
from wwts_ops.embeddings import EmbeddingWriter, KnownContents, part_key
from wwts_ops.fetch import Fetcher
from wwts_ops.images import Rejected
from wwts_ops.parts import PartWriter
from wwts_ops.planning import Plan
from wwts_ops.provenance import git_sha
from wwts_ops.runtime import Embedder, Scorer, embedder
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
#: Of the images that need nobody, one in so many keeps a thumbnail in mode ``review``: the page's random sample.
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

    ``copy``: the content stood earlier in this shard. ``known``: its ``float16 [dimension]`` from an earlier run.
    """

    row: Row
    data: bytes = b""
    sha: str = ""
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
    def duplicate(self) -> bool:
        return self.read.copy or self.read.known is not None


@dataclass
class _Tally:
    """Counts for the done-marker, and seconds that each kind of work took, summed over threads."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


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
    """
    if store.exists(shard.marker):
        return store.read_json(shard.marker)
    started = time.perf_counter()
    log.info("shard_started", run_id=shard.plan.run_key, shard=shard.number)
    with ExitStack() as stack:
        run = _Run(store, settings, shard, machine(), stack)
        run.all()
    done = {**run.result(), "seconds": round(time.perf_counter() - started, 3)}
    store.write_json(shard.marker, done)
    log.info("shard_done", run_id=shard.plan.run_key, shard=shard.number, **done)
    return done


class _Run:
    """The state of one shard while it is being tagged."""

    def __init__(self, store: Store, settings: Settings, shard: Shard, machine: Machine, stack: ExitStack) -> None:
        plan = shard.plan
        self.store, self.settings, self.shard, self.machine = store, settings, shard, machine
        self.workers = settings.workers or len(os.sched_getaffinity(0))
        self.recipe = machine.tagger.recipe
        self.tally = _Tally()
        self.total = 0
        self.fetcher = stack.enter_context(Fetcher(settings))
        self.readers = stack.enter_context(ThreadPoolExecutor(_READERS, "read"))
        self.cores = stack.enter_context(ThreadPoolExecutor(self.workers, "core"))
        self.known = KnownContents(store, plan.backbone_sha256, plan.known_runs)
        self.memory = stack.enter_context(_ShardMemory(self.recipe.dimension))
        embeddings = part_key(plan.backbone_sha256, plan.date, plan.run_key, shard.number)
        # Entered in this order, published in the reverse one; a marker follows when all three are there.
        self.quarantine = stack.enter_context(PartWriter(store, shard.part("quarantine"), QUARANTINE))
        self.tags = stack.enter_context(PartWriter(store, shard.part("tags"), TAGS))
        path = stack.enter_context(store.writing(embeddings))
        self.vectors = stack.enter_context(EmbeddingWriter(path, plan.backbone_sha256, self.recipe.dimension))
        self.common = {
            "model_name": plan.model_name,
            "model_version": plan.model_version,
            "model_sha256": plan.model_sha256,
            "backbone_sha256": plan.backbone_sha256,
            "taxonomy_version": plan.taxonomy_version,
            "git_sha": git_sha(),
            "run_id": plan.run_key,
            "ocr_text": None,
        }
        self.thumbnails: deque[Future[None]] = deque()

    def all(self) -> None:
        """Every row of the shard, in order."""
        table = planning.read_shard(self.store, self.shard.plan.run_key, self.shard.number)
        self.total = table.num_rows
        reads = _ordered(self.readers, self._read, _rows(table), window=2 * _READERS)
        window = max(8 * self.workers, 2 * self.machine.embed.batch_size)
        seen = _ordered(self.cores, self._see, self._look_up(reads), window=window)
        while batch := list(islice(seen, BATCH)):
            self._finish(batch)
        while self.thumbnails:
            self.thumbnails.popleft().result()

    def result(self) -> Row:
        """What the done-marker says, the wall time aside."""
        counts = self.tally.counts
        names = ("tagged", "duplicates", "quarantined", "auto", "review", "forced_review")
        return {
            "images": self.total,
            **{name: counts[name] for name in names},
            "reasons": dict(self.tally.reasons),
            "timings": {name: round(value, 3) for name, value in self.tally.seconds.items()},
        }

    def _read(self, row: Row) -> _Read:
        """Runs in a reading thread."""
        started = time.perf_counter()
        try:
            data = self.fetcher.read(row["uri"])
        except Rejected as rejected:
            return _Read(row, rejected=rejected, seconds=time.perf_counter() - started)
        return _Read(row, data, images.content_sha256(data), seconds=time.perf_counter() - started)

    def _look_up(self, reads: Iterable[_Read]) -> Iterator[_Read]:
        """Marks what stood earlier in this shard, by the order of the plan, and what earlier runs embedded."""
        contents: set[bytes] = set()
        for read in reads:
            if read.rejected:
                yield read
                continue
            digest = bytes.fromhex(read.sha)
            copy = digest in contents
            contents.add(digest)
            # The bytes of a copy are not needed again: its content's first image says all.
            yield replace(read, copy=True, data=b"") if copy else replace(read, known=self.known.get(read.sha))

    def _see(self, read: _Read) -> _Seen:
        """Decodes and crops; embeds too where the embedder wants one image a call. Runs in a pool thread."""
        if read.rejected or read.copy:
            return _Seen(read, rejected=read.rejected)
        started = time.perf_counter()
        try:
            decoded = images.decode(read.data, self.recipe.short_side, self.settings.max_pixels)
        except Rejected as rejected:
            return _Seen(replace(read, data=b""), rejected=rejected)
        embedding = read.known
        crop = None if read.known is not None else self.recipe.crop(decoded.rgb)
        cropped = time.perf_counter()
        if crop is not None and self.machine.embed.batch_size == 1:
            embedding, crop = self.machine.embed(crop[np.newaxis])[0], None
        embedded = time.perf_counter()
        return _Seen(
            replace(read, data=b""),
            width=decoded.width,
            height=decoded.height,
            crop=crop,
            embedding=embedding,
            small=None if self.settings.thumbnails == "none" else _shrink(decoded.rgb),
            decode_seconds=cropped - started,
            embed_seconds=embedded - cropped,
        )

    def _finish(self, items: list[_Seen]) -> None:
        """Scores, decides and writes one batch, and says how far the shard is."""
        started = time.perf_counter()
        self._embed_crops(items)
        tagged = []
        for item in items:
            remembered = self.memory.recall(item)
            if remembered.rejected:
                self._quarantine(remembered)
            else:
                tagged.append(remembered)
        if tagged:
            scores = self.machine.score(np.stack([_embedding(item) for item in tagged]))
            for item, decision in zip(tagged, self.machine.decide(scores), strict=True):
                self._write(item, decision)
        self._add_seconds(items, time.perf_counter() - started)
        done = self.tally.counts["tagged"] + self.tally.counts["quarantined"]
        log.info("shard_progress", run_id=self.common["run_id"], shard=self.shard.number, done=done, of=self.total)

    def _add_seconds(self, items: list[_Seen], finish: float) -> None:
        seconds = self.tally.seconds
        seconds["read"] += sum(item.read.seconds for item in items)
        seconds["decode"] += sum(item.decode_seconds for item in items)
        seconds["embed"] += sum(item.embed_seconds for item in items)
        seconds["finish"] += finish

    def _embed_crops(self, items: list[_Seen]) -> None:
        waiting = [index for index, item in enumerate(items) if item.crop is not None]
        if not waiting:
            return
        vectors = self.machine.embed(np.stack([items[index].crop for index in waiting]))  # type: ignore[misc]
        for index, vector in zip(waiting, vectors, strict=True):
            items[index] = replace(items[index], crop=None, embedding=vector)

    def _quarantine(self, item: _Seen) -> None:
        assert item.rejected is not None
        reason = item.rejected.reason
        self.tally.counts["quarantined"] += 1
        self.tally.reasons[reason] += 1
        row = {name: item.read.row[name] for name in ("image_id", "sku_id", "uri")}
        found = {"content_sha256": item.read.sha or None, "reason": reason, "detail": item.rejected.detail}
        self.quarantine.add({**row, **found, "run_id": self.common["run_id"], "seen_at": datetime.now(UTC)})
        log.warning("image_quarantined", image_id=row["image_id"], image_hash=item.read.sha, reason=reason)

    def _write(self, item: _Seen, decision: Decision) -> None:
        self.tally.counts.update(["tagged", decision.decision, *(["duplicates"] if item.duplicate else [])])
        if not item.duplicate:
            self.vectors.add(item.read.sha, _embedding(item))
        self.tags.add(self._row(item, decision))
        self._keep_thumbnail(item, decision)
        found = sum(tag.score >= self.settings.threshold for tag in decision.tags)
        latency = round((item.decode_seconds + item.embed_seconds) * 1e3, 2)
        log.info("image_tagged", image_hash=item.read.sha, latency_ms=latency, objects_found=found, **_told(decision))

    def _row(self, item: _Seen, decision: Decision) -> Row:
        first = decision.tags[0] if decision.tags else None
        return {
            **{name: item.read.row[name] for name in ("image_id", "sku_id", "uri")},
            "content_sha256": item.read.sha,
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
            **self.common,
        }

    def _keep_thumbnail(self, item: _Seen, decision: Decision) -> None:
        sampled = int(item.read.sha[:8], 16) % _SAMPLED == 0
        if item.small is None or not (self.settings.thumbnails == "all" or decision.decision != AUTO or sampled):
            return
        self.thumbnails.append(self.cores.submit(_write_thumbnail, self.store, item.read.sha, item.small))
        while len(self.thumbnails) > 2 * BATCH:
            self.thumbnails.popleft().result()


class _ShardMemory:
    """What this shard found out about each content, for its later copies: on disk, so that memory stays flat."""

    def __init__(self, dimension: int) -> None:
        self._record = np.dtype([("size", "<i4", 2), ("embedding", "<f2", dimension)])
        self._file = tempfile.TemporaryFile(prefix="wwts-shard-")  # noqa: SIM115 (closed by __exit__)
        self._places: dict[bytes, int] = {}
        self._rejected: dict[bytes, Rejected] = {}

    def recall(self, item: _Seen) -> _Seen:
        """``item`` itself, remembered; or, for a copy, what its content's first image came to."""
        digest = bytes.fromhex(item.read.sha)
        if not item.read.copy:
            self._remember(digest, item)
            return item
        if digest in self._rejected:
            return replace(item, rejected=self._rejected[digest])
        data = os.pread(self._file.fileno(), self._record.itemsize, self._places[digest] * self._record.itemsize)
        record = np.frombuffer(data, self._record)[0]
        width, height = (int(value) for value in record["size"])
        return replace(item, width=width, height=height, embedding=record["embedding"])

    def _remember(self, digest: bytes, item: _Seen) -> None:
        if item.rejected:
            self._rejected[digest] = item.rejected
            return
        record = np.zeros(1, self._record)
        record["size"], record["embedding"] = (item.width, item.height), item.embedding
        os.pwrite(self._file.fileno(), record.tobytes(), len(self._places) * self._record.itemsize)
        self._places[digest] = len(self._places)

    def __enter__(self) -> _ShardMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _rows(table: pa.Table) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=BATCH):
        yield from batch.to_pylist()


def _ordered(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], *, window: int) -> Iterator[R]:
    """``map`` in a pool that keeps the order and holds no more than ``window`` items."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _embedding(item: _Seen) -> Array:
    assert item.embedding is not None
    return item.embedding


def _shrink(rgb: Array) -> Array:
    """The thumbnail's pixels, so that no full picture waits for its decision."""
    height, width = rgb.shape[:2]
    scale = _THUMBNAIL_SIDE / max(height, width)
    return images.resize(rgb, max(1, round(width * scale)), max(1, round(height * scale))) if scale < 1 else rgb


def _write_thumbnail(store: Store, sha: str, small: Array) -> None:
    key = f"thumbnails/{sha[:2]}/{sha}.jpg"
    if not store.exists(key):
        store.put(key, images.thumbnail(small, _THUMBNAIL_SIDE))


def _told(decision: Decision) -> Row:
    first = decision.tags[0] if decision.tags else None
    return {
        "decision": decision.decision,
        "label_id": first and first.label_id,
        "score": first and round(first.score, 4),
    }
