"""What consumers read: one snapshot with one row an image, and the pointer that names it.

A snapshot is a function of what the done shards wrote, what plans delisted, and whether the shop is live. So
publishing twice gives the same snapshot, and of two publishers at once none loses the other's update.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from wwts_ops import planning, warehouse
from wwts_ops.errors import UnavailableError
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.planning import Plan
from wwts_ops.provenance import user
from wwts_ops.published import POINTER
from wwts_ops.schemas import PUBLISHED, QUARANTINE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import Shard

log = structlog.get_logger(__name__)

_ATTEMPTS = 5
SHADOW = "shadow"
#: Rows sorted at once: about 200 MB.
_SORTED_ROWS = 100_000

#: What a pending row takes over from its last live one: the tag, and what made it.
_TAG_COLUMNS = (
    "tags",
    "label_id",
    "label_zh",
    "confidence",
    "category_path",
    "source",
    "model_name",
    "model_version",
    "model_sha256",
    "backbone_sha256",
    "taxonomy_version",
    "git_sha",
    "run_id",
    "tagged_at",
)
#: Of those, what a row says of its making even when it has no tag yet.
_ALWAYS = frozenset(TAGS.names) - {"tags", "label_id", "label_zh", "confidence", "category_path"}


@dataclass(frozen=True)
class _Inputs:
    """All that a snapshot is a function of."""

    plans: tuple[Plan, ...]
    shards: tuple[Shard, ...]
    release: str

    @property
    def snapshot(self) -> str:
        """Sorts by plan, and differs whenever the rows can."""
        parts = [self.release, *(shard.marker for shard in self.shards), *(plan.run_key for plan in self.plans)]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"s{self.plans[-1].sequence:06d}-{digest[:12]}"


def publish(store: Store, settings: Settings) -> dict[str, Any] | None:
    """Publishes what all done shards found; None while there is nothing to publish.

    Returns:
        The pointer: ``snapshot``, ``rows``, ``live``, ``pending``, ``release``, ``model_version``,
        ``taxonomy_version``, ``parts`` and more.

    Raises:
        UnavailableError: when other publishers were faster five times in a row.
    """
    release = record_release(store, settings)
    for _ in range(_ATTEMPTS):
        pointer = store.read_pointer(POINTER)
        inputs = _inputs(store, release)
        if not inputs.plans:
            return None
        if pointer is not None and pointer.value["snapshot"] == inputs.snapshot:
            return pointer.value
        value = _write(store, inputs)
        if store.replace_pointer(POINTER, value, pointer):
            log.info("published", **{name: value[name] for name in ("snapshot", "rows", "live", "pending", "release")})
            return value
    raise UnavailableError("Other publishers moved the pointer five times meanwhile; run the task again.")


def is_current(store: Store) -> bool:
    """Whether consumers read all that done shards found; not when another process has just finished one more."""
    pointer = store.read_pointer(POINTER)
    inputs = _inputs(store, _last_release(store) or SHADOW)
    return not inputs.plans or (pointer is not None and pointer.value["snapshot"] == inputs.snapshot)


def record_release(store: Store, settings: Settings) -> str:
    """Writes down that the shop went live, or back to shadow: who, when, from what.

    A process without ``WWTS_RELEASE`` changes nothing: a run by hand in a bare shell must not take a shop offline.

    Returns:
        ``shadow`` or ``live``: what is in force now.

    Raises:
        UnavailableError: when others record releases as fast as this one.
    """
    for _ in range(_ATTEMPTS):
        number = len(store.list("releases", ".json")) + 1
        before = _last_release(store)
        release = settings.release or before or SHADOW
        if before == release:
            return release
        act = {
            "release": release,
            "before": before,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "by": f"{user()}@{socket.gethostname()}",
        }
        # Of two that record the same act at once, one does.
        if store.create(f"releases/{number:06d}.json", json.dumps(act, ensure_ascii=False).encode()):
            log.info("release_recorded", **act)
            return release
    raise UnavailableError("Others switch WWTS_RELEASE at this moment; agree on one and run the task again.")


def _last_release(store: Store) -> str | None:
    keys = store.list("releases", ".json")
    return str(store.read_json(keys[-1])["release"]) if keys else None


def _inputs(store: Store, release: str) -> _Inputs:
    plans = tuple(planning.claimed(store))
    shards = tuple(shard for plan in plans for shard in done_shards(store, plan))
    return _Inputs(plans, shards, release)


def done_shards(store: Store, plan: Plan) -> list[Shard]:
    """The shards of ``plan`` whose done-marker is there, in order."""
    markers = set(store.list(f"runs/{plan.run_key}", ".json"))
    return [shard for shard in (Shard(plan, number) for number in range(plan.shards)) if shard.marker in markers]


def _write(store: Store, inputs: _Inputs) -> dict[str, Any]:
    snapshot, newest = inputs.snapshot, inputs.plans[-1]
    key = f"published/{snapshot}/part-00000.parquet"
    with warehouse.connect() as con:
        warehouse.view(con, "tags", store, [shard.part("tags") for shard in inputs.shards], TAGS)
        warehouse.view(con, "quarantine", store, [shard.part("quarantine") for shard in inputs.shards], QUARANTINE)
        con.execute("CREATE TABLE runs (run_id VARCHAR, sequence BIGINT)")
        con.executemany("INSERT INTO runs VALUES (?, ?)", [(plan.run_key, plan.sequence) for plan in inputs.plans])
        con.execute("CREATE TABLE gone (image_id VARCHAR, sequence BIGINT)")
        for plan in inputs.plans:
            if plan.delisted:
                _add_delisted(con, store, plan)
        _choose(con, inputs.release)
        rows = warehouse.write(store, key, _rows(con, snapshot), PUBLISHED)
        live = con.sql("SELECT count(*) FROM chosen WHERE live_run = newest_run").fetchall()[0][0]
    return {
        "snapshot": snapshot,
        "parts": [key],
        "rows": rows,
        "live": live,
        "pending": rows - live,
        "release": inputs.release,
        "model_name": newest.model_name,
        "model_version": newest.model_version,
        "taxonomy_version": newest.taxonomy_version,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _add_delisted(con: Any, store: Store, plan: Plan) -> None:
    gone = planning.read_shard(store, plan.run_key, planning.DELISTED).select(["image_id"])
    con.register("delisted", gone)
    con.execute("INSERT INTO gone SELECT image_id, ? FROM delisted", [plan.sequence])
    con.unregister("delisted")


def _choose(con: Any, release: str) -> None:
    """Table ``chosen``: for every listed image, the run of its newest tags and the run of its last live ones.

    The highest plan sequence counts, not the latest clock. Delisting and unreadable bytes end what was live; a uri
    that could not be reached tonight says nothing of the bytes, and changes nothing.
    """
    transient = ", ".join(f"'{reason}'" for reason in sorted(TRANSIENT_REASONS))
    live = "decision = 'auto'" if release == "live" else "false"
    con.execute(
        f"""
        CREATE TABLE chosen AS
        WITH events AS (
            SELECT image_id, sequence, true AS tagged, {live} AS live FROM tags JOIN runs USING (run_id)
            UNION ALL
            SELECT image_id, sequence, false, false FROM quarantine JOIN runs USING (run_id)
            WHERE reason NOT IN ({transient})
            UNION ALL
            SELECT image_id, sequence, false, false FROM gone
        ), latest AS (
            SELECT
                image_id,
                max(sequence) FILTER (tagged) AS newest,
                max(sequence) FILTER (live) AS live,
                coalesce(max(sequence) FILTER (NOT tagged), 0) AS ended
            FROM events GROUP BY image_id
        )
        SELECT image_id, n.run_id AS newest_run, l.run_id AS live_run
        FROM latest
        JOIN runs n ON n.sequence = newest
        LEFT JOIN runs l ON l.sequence = live AND live > ended
        WHERE newest > ended
        """
    )


def _rows(con: Any, snapshot: str) -> Iterator[Any]:
    """Relations over rows of ``chosen`` in the published schema, by ``image_id``: see :func:`_slice_sql`.

    The order makes two publishers of one snapshot write the same bytes: a reader of the first one's file does not
    notice the second's. Sorted at once, all rows of a large shop would not fit.
    """
    con.execute("CREATE TABLE placed AS SELECT *, row_number() OVER (ORDER BY image_id) AS place FROM chosen")
    count = con.sql("SELECT count(*) FROM placed").fetchall()[0][0]
    for start in range(1, count + 1, _SORTED_ROWS):
        yield con.sql(_slice_sql(snapshot, start, start + _SORTED_ROWS - 1))


def _slice_sql(snapshot: str, first: int, last: int) -> str:
    """Live rows as they are, pending ones with their last live tag."""
    # Pending: what is known of the image and why it waits is new, the tag is the last live one's, or none. Of a live
    # image both are the same row.
    columns = ", ".join(_column(name) for name in TAGS.names)
    return f"""
        WITH c AS MATERIALIZED (FROM placed WHERE place BETWEEN {first} AND {last})
        SELECT {columns}, if(c.live_run = c.newest_run, 'live', 'pending') AS state, '{snapshot}' AS snapshot
        FROM c
        JOIN tags n ON n.image_id = c.image_id AND n.run_id = c.newest_run
        LEFT JOIN tags l ON l.image_id = c.image_id AND l.run_id = c.live_run
        ORDER BY c.place
    """


def _column(name: str) -> str:
    if name not in _TAG_COLUMNS:
        return f"n.{name}"
    # Never column by column: a commit that is unknown must not be another tag's.
    return f"if(c.live_run IS NULL, n.{name}, l.{name}) AS {name}" if name in _ALWAYS else f"l.{name}"
