"""The whole catalog tagged anew by the champion's head over stored embeddings.

survey ► embed ► plan ► retag ► finish ► route.

What passes between stages is small and plain, as in ``night``. A retag is named by the digest of all that its rows
follow from: version, taxonomy, embedding parts. After a rollback the earlier one is found whole, and only the pointer
moves. Each stage can be killed and started again, and two at once write the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from wwts_ops import (
    backfill,
    embeddings,
    packed,
    planning,
    promotion,
    publish,
    published,
    registry,
    retags,
    taxonomy,
    warehouse,
)
from wwts_ops.decisions import Decider, Decision
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.planning import Plan
from wwts_ops.provenance import git_sha
from wwts_ops.records import RETAGGED
from wwts_ops.registry import CHAMPION
from wwts_ops.retags import Retag
from wwts_ops.review import queue
from wwts_ops.runtime import Scorer
from wwts_ops.schemas import EMBEDDINGS, PUBLISHED
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import done_shards, ordered
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

Stage = dict[str, Any]

#: Row groups of embeddings that make one of tags: 4,096 rows, 10 MB of embeddings at 1,280 numbers.
_GROUPS = 4
#: Rows that the head sees at once, four of them as fast as a thousand one by one: the scores stay in a core's memory.
_SCORED_ROWS = 256
#: Rows of a shard, about; fewer with little to do, more beyond the most shards: a million rows take a minute.
_SHARD_ROWS = 50_000
_FEWEST_SHARDS, _MOST_SHARDS = 8, 64
#: Uris that are tried for one content.
_URIS = 3
_ATTEMPTS = 5
#: Columns with few values; a dictionary of the others would only slow down the writing.
_DICTIONARY = ["label_id", "label_zh", "category_path", "decision", "decision_reason"]
_DICTIONARY += ["tags.list.element.label_id", "tags.list.element.label_zh"]
_WANTED = pa.schema([EMBEDDINGS.field("content_sha256"), PUBLISHED.field("uri"), pa.field("shard", pa.int32())])


@dataclass(frozen=True)
class Order:
    """The form of a manual trigger.

    Attributes:
        snapshot: let consumers read the tags of this published snapshot again, instead of tagging anew.
        dry_run: only say what would be done.
    """

    snapshot: str | None = None
    dry_run: bool = False


def order(params: Mapping[str, Any]) -> Order:
    """Reads the form."""
    snapshot = params.get("snapshot")
    return Order(str(snapshot) if snapshot else None, bool(params.get("dry_run")))


# ------------------------------------------------------------------ what is there


@dataclass(frozen=True)
class _Census:
    """What there is to tag, and with what.

    Attributes:
        model: the champion.
        plans: all nights.
        parts: embedding parts of its backbone that are final, by name.
    """

    model: ModelVersion
    plans: tuple[Plan, ...]
    parts: tuple[str, ...]


def obstacle(settings: Settings) -> str | None:
    """Why there is nothing to tag anew, in one Chinese sentence; None when there is."""
    if published.current(Store.of(settings)) is None:
        return "还没有发布过标签，没有可以重新打标的内容；请先运行 tag_catalog"
    if not registry.exists(settings) or registry.champion(settings) is None:
        return f"模型 {settings.model_name} 还没有启用的版本（{CHAMPION}），无法重新打标"
    return None


def _census(store: Store, settings: Settings) -> _Census:
    # Before the champion is asked for: whatever was planned by now was planned with this champion or an earlier one.
    plans = tuple(planning.claimed(store))
    model = registry.champion(settings)
    if model is None:
        raise WwtsError(f"No version of {settings.model_name} is {CHAMPION}; promote one first.")
    final = set(backfill.done_parts(store, model.backbone_sha256))
    for plan in plans:
        if plan.backbone_sha256 == model.backbone_sha256:
            named = (plan.backbone_sha256, plan.date, plan.run_key)
            final |= {embeddings.part_key(*named, shard.number) for shard in done_shards(store, plan)}
    parts = [key for key in embeddings.parts(store, model.backbone_sha256) if key in final]
    return _Census(model, plans, tuple(parts))


@contextmanager
def _tables(store: Store, census: _Census) -> Iterator[Any]:
    """DuckDB with ``catalog`` (content, uri) of published images, and ``embedded`` (content)."""
    pointer = published.current(store)
    with warehouse.connect() as con:
        warehouse.view(con, "published", store, pointer.value["parts"] if pointer else [], PUBLISHED)
        warehouse.view(con, "parts", store, census.parts, EMBEDDINGS)
        con.execute("CREATE VIEW catalog AS SELECT DISTINCT content_sha256, uri FROM published")
        con.execute("CREATE VIEW embedded AS SELECT DISTINCT content_sha256 FROM parts")
        yield con


def _count(con: Any, what: str) -> int:
    return int(con.sql(f"SELECT count(*) FROM {what}").fetchall()[0][0])


_LACKING = "(SELECT DISTINCT content_sha256 FROM catalog ANTI JOIN embedded USING (content_sha256))"


# ------------------------------------------------------------------ contents without an embedding


def survey(settings: Settings, wanted: Order) -> list[Stage] | None:
    """Lists the published contents that the champion's backbone has not embedded, frozen into a backfill.

    What an earlier backfill of this version has left to do is done first, so that one that was killed ends the same.

    Returns:
        The shards to embed, each ``key`` and ``shard``; None on a dry run.

    Raises:
        WwtsError: when there is no champion.
        UnavailableError: when MLflow or the store does not answer.
    """
    store = Store.of(settings)
    census = _census(store, settings)
    with _tables(store, census) as con:
        log.info(
            "retag_surveyed",
            version=census.model.version,
            backbone=census.model.backbone_sha256[:12],
            embedded=_count(con, "embedded"),
            missing=_count(con, _LACKING),
            dry_run=wanted.dry_run,
        )
        if wanted.dry_run:
            return None
        begun = _begun(store, census.model)
        return begun + _freeze(store, settings, census.model, con, begun)


def _begun(store: Store, model: ModelVersion) -> list[Stage]:
    """The shards that earlier backfills of this version have left."""
    keys = set(store.list("backfills", ".json"))
    left = []
    for plan_key in sorted(key for key in keys if key.endswith("/plan.json")):
        bound, key = store.read_json(plan_key), plan_key.split("/")[1]
        if {name: bound.get(name) for name in asdict(model)} == asdict(model):
            open_ = (number for number in range(bound["shards"]) if backfill.marker_key(key, number) not in keys)
            left += [{"key": key, "shard": number} for number in open_]
    return left


def _freeze(store: Store, settings: Settings, model: ModelVersion, con: Any, begun: Sequence[Stage]) -> list[Stage]:
    """A backfill of what has no embedding and is not among the shards that are ``begun``."""
    warehouse.view(con, "earlier", store, sorted({_wanted_key(part["key"]) for part in begun}), _WANTED)
    con.execute(
        "CREATE TABLE left_over AS "
        "SELECT DISTINCT content_sha256 FROM earlier ANTI JOIN embedded USING (content_sha256)"
    )
    lacking = _count(con, f"{_LACKING} ANTI JOIN left_over USING (content_sha256)")
    if not lacking:
        return []
    shards = min(planning.MAX_SHARDS, -(-lacking // settings.shard_size))
    con.execute(
        f"""
        CREATE TABLE wanted AS
        SELECT content_sha256, uri, ('0x' || content_sha256[:8])::BIGINT % {shards} AS shard
        FROM catalog ANTI JOIN embedded USING (content_sha256) ANTI JOIN left_over USING (content_sha256)
        QUALIFY row_number() OVER (PARTITION BY content_sha256 ORDER BY uri) <= {_URIS}
        """
    )
    # Whatever the order of the rows. The day is part of it: what could not be read is tried again tomorrow.
    rows = con.sql("SELECT bit_xor(md5_number(content_sha256 || uri)) FROM wanted").fetchall()[0][0]
    bound = {**asdict(model), "date": settings.today().isoformat(), "shards": shards}
    key = f"f{_digest({**bound, 'rows': str(rows)})}"
    table = con.sql(
        "SELECT content_sha256, uri, shard::INTEGER AS shard FROM wanted ORDER BY shard, content_sha256, uri"
    )
    warehouse.write(store, _wanted_key(key), [table], _WANTED)
    store.create(backfill.plan_key(key), json.dumps(bound).encode())
    left = [number for number in range(shards) if not store.exists(backfill.marker_key(key, number))]
    return [{"key": key, "shard": number} for number in left]


def _wanted_key(key: str) -> str:
    return f"backfills/{key}/wanted.parquet"


def embed_missing(settings: Settings, key: str, shard: int) -> dict[str, Any]:
    """Embeds one shard of backfill ``key`` (see :func:`wwts_ops.backfill.embed`), under the version's own code."""
    store = Store.of(settings)
    model = _bound_model(store.read_json(backfill.plan_key(key)))
    marker = backfill.marker_key(key, shard)
    if not packed.differs(model) or store.exists(marker):
        return embed_here(settings, key, shard)
    packed.run_module(settings, model, "retagprocess", ("embed", key, str(shard)))
    return store.read_json(marker)


def embed_here(settings: Settings, key: str, shard: int) -> dict[str, Any]:
    """Embeds one shard of a backfill under the running code, whatever was packed with the version."""
    store = Store.of(settings)
    model = _bound_model(store.read_json(backfill.plan_key(key)))
    with store.open(_wanted_key(key)) as file:
        wanted = pq.read_table(file, filters=[("shard", "=", shard)])
    return backfill.embed(store, settings, registry.fetch(settings, model), wanted, key, shard)


def _bound_model(values: Mapping[str, Any]) -> ModelVersion:
    return ModelVersion(
        **{name: values[name] for name in ("name", "version", "sha256", "backbone_sha256", "code_sha256")}
    )


# ------------------------------------------------------------------ the plan


def plan(settings: Settings) -> Stage | None:
    """Freezes what the champion is to tag anew; adopts the plan that is there for the same.

    Returns:
        ``retag`` (key) and ``shards`` (those to do, each ``key`` and ``shard``); None when nothing is published, and
        no content has an embedding.

    Raises:
        WwtsError: when there is no champion, or not one published content has an embedding of its backbone.
        UnavailableError: when MLflow, the database or the store does not answer.
    """
    store = Store.of(settings)
    census = _census(store, settings)
    sizes = _sizes(store, census.parts)
    parts = tuple(key for key, rows in sizes.items() if rows)
    if not parts:
        _counts(store, census)
        return None
    names = taxonomy.ensure(store, settings.forced_review)
    bound = {
        "sequence": census.plans[-1].sequence,
        "model_name": census.model.name,
        "model_version": census.model.version,
        "model_sha256": census.model.sha256,
        "backbone_sha256": census.model.backbone_sha256,
        "code_sha256": census.model.code_sha256,
        "taxonomy_version": names.version,
        "parts": list(parts),
        "distrusted": _distrusted(settings, census),
        "top_k": settings.top_k,
        "edges": edges([sizes[key] for key in parts]),
    }
    key = f"r{_digest(bound)}"
    if not store.exists(retags.plan_key(key)):
        _put_plan(store, census, key, bound)
    found = retags.read(store, key)
    markers = set(store.list(f"retags/{key}", ".json"))
    left = [number for number in range(found.shards) if retags.marker_key(key, number) not in markers]
    log.info(
        "retag_planned",
        retag=key,
        version=found.model_version,
        taxonomy_version=found.taxonomy_version,
        images=found.images,
        missing=found.missing,
        shards=found.shards,
        shards_left=len(left),
    )
    return {"retag": key, "shards": [{"key": key, "shard": number} for number in left]}


def _put_plan(store: Store, census: _Census, key: str, bound: Mapping[str, Any]) -> None:
    counts = _counts(store, census)
    made = {"git_sha": git_sha(), "planned_at": datetime.now(UTC).isoformat(), "shards": len(bound["edges"]) - 1}
    # Of two that plan the same at once, one does.
    store.create(retags.plan_key(key), json.dumps({**bound, **counts, **made}, ensure_ascii=False, indent=1).encode())


def _counts(store: Store, census: _Census) -> dict[str, int]:
    """``images``: contents with an embedding; ``missing``: published ones without; refused when those are all."""
    with _tables(store, census) as con:
        images, missing = _count(con, "embedded"), _count(con, _LACKING)
        listed = _count(con, "(SELECT DISTINCT content_sha256 FROM catalog)")
    if listed and missing == listed:
        raise WwtsError(
            f"None of the {listed:,} published contents has an embedding of backbone "
            f"b{census.model.backbone_sha256[:12]}; see the logs of embed_missing for why, and run retag_catalog again."
        )
    return {"images": images, "missing": missing}


def _distrusted(settings: Settings, census: _Census) -> list[str]:
    """``model_sha256`` of the versions that tagged something and were rolled back from, and never promoted again."""
    left: set[str | None] = set()
    for move in promotion.history(settings):
        if move.alias == CHAMPION:
            left |= {move.from_version} if move.action == "rollback" else set()
            left -= {move.to_version}
    name = settings.model_name
    found = {one.model_sha256 for one in census.plans if one.model_name == name and one.model_version in left}
    return sorted(found - {census.model.sha256})


def _sizes(store: Store, parts: Sequence[str]) -> dict[str, int]:
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(parts, pool.map(lambda key: embeddings.rows(store, key), parts), strict=True))


def edges(sizes: Sequence[int]) -> list[int]:
    """Where each shard's parts begin, and the end of the last: neighbours, about as many rows a shard."""
    wanted = min(_MOST_SHARDS, max(_FEWEST_SHARDS, -(-sum(sizes) // _SHARD_ROWS)), len(sizes))
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.arange(1, wanted) * ends[-1] / wanted) + 1
    return sorted({0, *cuts.tolist(), len(sizes)})


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


# ------------------------------------------------------------------ one shard


def retag(settings: Settings, key: str, shard: int) -> dict[str, Any]:
    """Tags one shard of retag ``key`` anew, under the code packed with its version.

    Returns:
        What its marker says: ``images``, ``auto``, ``review``, ``forced_review`` (counts) and ``seconds``.

    Raises:
        WwtsError: when an embedding part is damaged, or the version's code does not fit this release.
        UnavailableError: when the store or MLflow does not answer.
    """
    store = Store.of(settings)
    marker = retags.marker_key(key, shard)
    model = _model(retags.read(store, key))
    if not packed.differs(model) or store.exists(marker):
        return retag_here(settings, key, shard)
    packed.run_module(settings, model, "retagprocess", ("retag", key, str(shard)))
    return store.read_json(marker)


def retag_here(settings: Settings, key: str, shard: int) -> dict[str, Any]:
    """Tags one shard anew under the running code, whatever was packed with the version."""
    store = Store.of(settings)
    marker = retags.marker_key(key, shard)
    if store.exists(marker):
        return store.read_json(marker)
    started = time.perf_counter()
    found, bound = retags.read(store, key), store.read_json(retags.plan_key(key))
    first, end = bound["edges"][shard : shard + 2]
    head = _head(settings, _model(found), found.taxonomy_version, int(bound["top_k"]))
    counts = write_part(store, retags.part_key(key, shard), found.parts[first:end], head, workers(settings))
    done = {**counts, "seconds": round(time.perf_counter() - started, 3)}
    store.write_json(marker, done)
    log.info("retag_shard_done", retag=key, shard=shard, **done)
    return done


@dataclass(frozen=True)
class Head:
    """What tags stored embeddings: the function that computes the head, and what decides on its scores."""

    score: Scorer
    decide: Decider

    def __call__(self, vectors: np.ndarray[Any, Any]) -> pa.Table:
        """``float16 [n, dimension]`` to the columns of ``RETAGGED`` but the content."""
        blocks = (vectors[start : start + _SCORED_ROWS] for start in range(0, len(vectors), _SCORED_ROWS))
        return pa.Table.from_batches([_columns(self.decide, self.score(block)) for block in blocks])


def _columns(decide: Decider, scores: np.ndarray[Any, Any]) -> pa.RecordBatch:
    """As :meth:`Decider.columns`; code that was packed before there was one decides row by row."""
    if hasattr(decide, "columns"):
        return decide.columns(scores)
    schema = pa.schema([field for field in RETAGGED if field.name != "content_sha256"])
    return pa.RecordBatch.from_pylist([_row(decision) for decision in decide(scores)], schema=schema)


def _row(decision: Decision) -> dict[str, Any]:
    first = decision.tags[0] if decision.tags else None
    return {
        "tags": [vars(tag) for tag in decision.tags],
        "label_id": first and first.label_id,
        "label_zh": first and first.label_zh,
        "confidence": first and first.score,
        "category_path": decision.category_path or None,
        "decision": decision.decision,
        "decision_reason": decision.reason,
    }


def write_part(store: Store, key: str, parts: Sequence[str], head: Head, threads: int) -> dict[str, int]:
    """Tags every content of embedding ``parts`` once, the first one counting, into Parquet ``key``.

    Memory grows with none of them: some row groups are under way at a time.

    Returns:
        ``images`` and how many were decided ``auto``, ``review`` and ``forced_review``.
    """

    def tagged(piece: tuple[str, range]) -> pa.Table:
        contents, vectors = embeddings.read_groups(store, *piece)
        return head(vectors).add_column(0, RETAGGED.field(0), pa.array(contents, pa.string()))

    counts = Counter(images=0, auto=0, review=0, forced_review=0)
    seen: set[bytes] = set()
    with (
        ThreadPoolExecutor(threads, "head") as pool,
        store.writing(key) as path,
        pq.ParquetWriter(path, RETAGGED, compression="zstd", use_dictionary=_DICTIONARY) as writer,
    ):
        for table in ordered(pool, tagged, _pieces(store, parts), window=2 * threads):
            fresh = _unseen(table, seen)
            writer.write_table(fresh)
            counts["images"] += fresh.num_rows
            for found in pc.value_counts(fresh["decision"]).to_pylist():
                counts[found["values"]] += found["counts"]
    return dict(counts)


def _pieces(store: Store, parts: Sequence[str]) -> Iterator[tuple[str, range]]:
    for part in parts:
        groups = embeddings.row_groups(store, part)
        for start in range(0, groups, _GROUPS):
            yield part, range(start, min(groups, start + _GROUPS))


def _unseen(table: pa.Table, seen: set[bytes]) -> pa.Table:
    """``table`` without contents that came before, which are ``seen`` from now on."""
    digests = [bytes.fromhex(content) for content in table["content_sha256"].to_pylist()]
    if seen.isdisjoint(digests) and len(set(digests)) == len(digests):
        seen.update(digests)
        return table
    fresh = []
    for digest in digests:
        fresh.append(digest not in seen)
        seen.add(digest)
    return table.filter(pa.array(fresh))


def workers(settings: Settings) -> int:
    """Threads that score and decide at once."""
    return settings.workers or len(os.sched_getaffinity(0))


def _model(found: Retag) -> ModelVersion:
    return ModelVersion(
        found.model_name, found.model_version, found.model_sha256, found.backbone_sha256, found.code_sha256
    )


@lru_cache(maxsize=1)
def _head(settings: Settings, model: ModelVersion, taxonomy_version: str, top_k: int) -> Head:
    """Loaded once a process: shards of one retag share it."""
    tagger = registry.fetch(settings, model)
    names = taxonomy.read(Store.of(settings), taxonomy_version)
    return Head(Scorer(tagger), Decider(tagger.label_ids, tagger.thresholds, names, top_k))


# ------------------------------------------------------------------ in force


def finish(settings: Settings, key: str) -> dict[str, Any] | None:
    """Puts retag ``key`` in force and publishes.

    Returns:
        The published pointer; None when another version became champion meanwhile, whose own retag follows.

    Raises:
        WwtsError: when shards are left.
        UnavailableError: when MLflow, the database or the store does not answer.
    """
    store = Store.of(settings)
    found = retags.read(store, key)
    markers = set(store.list(f"retags/{key}", ".json"))
    left = [number for number in range(found.shards) if retags.marker_key(key, number) not in markers]
    if left:
        raise WwtsError(
            f"Shards {left} of retag {key} are not done; see the logs of retag, and run retag_catalog again."
        )
    sums: Counter[str] = Counter()
    for number in range(found.shards):
        sums.update(store.read_json(retags.marker_key(key, number)))
    store.write_json(retags.done_key(key), dict(sums))
    if registry.champion(settings) != _model(found):
        log.warning("retag_outdated", retag=key, version=found.model_version)
        return None
    _put_in_force(store, key)
    pointer = publish.publish(store, settings)
    _warn_of_open_nights(store, found)
    log.info("retag_done", retag=key, version=found.model_version, missing=found.missing, **sums)
    return pointer


def route(settings: Settings) -> int | None:
    """Asks people for a look at what the published retag is not sure of; see :func:`wwts_ops.review.queue.route_retag`.

    Returns:
        How many contents wait; None when consumers read what the nights wrote.

    Raises:
        WwtsError: when the retag's files are gone, or a part of embeddings is damaged.
        UnavailableError: when the database or the store does not answer.
    """
    store = Store.of(settings)
    pointer = published.current(store)
    key = None if pointer is None else pointer.value.get("retag")
    return None if key is None else queue.route_retag(store, settings, retags.read(store, str(key)))


def _put_in_force(store: Store, key: str) -> None:
    for _ in range(_ATTEMPTS):
        pointer = retags.current(store)
        if retags.put_in_force(store, key, pointer):
            return
    raise UnavailableError("Others put retags in force at this moment; run the task again.")


def _warn_of_open_nights(store: Store, found: Retag) -> None:
    """A night that was planned with another version and still goes on brings more of that version's tags."""
    for night in planning.unfinished(store):
        if night.sequence <= found.sequence and night.model_sha256 != found.model_sha256:
            log.warning("night_with_another_version", run_id=night.run_key, version=night.model_version)


def restore(settings: Settings, wanted: Order) -> dict[str, Any] | None:
    """Goes back to a published snapshot; see :func:`wwts_ops.publish.restore`. None on a dry run."""
    assert wanted.snapshot is not None
    store = Store.of(settings)
    if wanted.dry_run:
        log.info(
            "restore_proposed", snapshot=wanted.snapshot, known=[one["snapshot"] for one in published.snapshots(store)]
        )
        return None
    return publish.restore(store, settings, wanted.snapshot)
