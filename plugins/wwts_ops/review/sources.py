"""Who asks people for a look: a night, and a retag of the catalog.

Each lays table ``asked`` (one row an image) and table ``listed`` (schema ``PUBLISHED`` or ``TAGS``: what copies and
siblings are counted among) for :mod:`wwts_ops.review.queue`, which does the rest for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa

from wwts_ops import audit, overlays, planning, published, retags, warehouse
from wwts_ops.planning import Plan
from wwts_ops.retags import Retag
from wwts_ops.schemas import PLAN, PUBLISHED, TAGS
from wwts_ops.storage import Store
from wwts_ops.tagging import done_shards

AUDIT: Final = "audit"
#: What an image that is asked for says of itself, but for why and how likely it was asked for.
_IMAGE = ("image_id", "sku_id", "uri", "content_sha256")
_TAG = ("tags", "label_id", "label_zh", "confidence", "category_path", "decision", "decision_reason")
_NEEDS = "decision IN ('review', 'forced_review')"


@dataclass(frozen=True)
class Source:
    """Who asks.

    Attributes:
        key: of the run or retag.
        date: under which it is shown, ISO.
        backbone_sha256: whose embeddings say what looks alike.
        parts: of what is published; empty where that knows nothing of the images.
    """

    key: str
    date: str
    backbone_sha256: str
    parts: tuple[str, ...]

    @property
    def queue(self) -> str:
        """The store key of what is asked for."""
        return f"review/date={self.date}/part-{self.key}.parquet"


# ------------------------------------------------------------------ a night


def night(store: Store, plan: Plan) -> Source:
    """A night; what was published before it was planned knows nothing of its images."""
    pointer = published.current(store)
    known = pointer is not None and int(str(pointer.value["snapshot"])[1:].partition("-")[0]) >= plan.sequence
    return Source(plan.run_key, plan.date, plan.backbone_sha256, _parts(store) if known else ())


def lay_night(con: duckdb.DuckDBPyConnection, store: Store, source: Source, plan: Plan, audit_rate: float) -> None:
    """What a night is not sure of, and a sample of what it is; but not what a retag in force says anew."""
    warehouse.view(con, "tags", store, [shard.part("tags") for shard in done_shards(store, plan)], TAGS)
    warehouse.view(con, "planned", store, [planning.plan_key(plan.run_key)], PLAN)
    retag = retags.in_force(store)
    overlays.lay_retagged(con, store, retag if retag is not None and retag.sequence >= plan.sequence else None)
    con.execute(
        f"""
        CREATE TABLE asked AS
        SELECT
            {_columns("t", (*_IMAGE, *_TAG, "run_id", "model_version"))}, p.title, p.priority,
            if(t.{_NEEDS}, t.decision, '{AUDIT}') AS shown_because,
            if(t.{_NEEDS}, 1, $rate)::DOUBLE AS sampling_probability
        FROM tags t LEFT JOIN planned p ON p.image_id = t.image_id AND p.action = 'tag'
        WHERE (t.{_NEEDS} OR {audit.condition("t.content_sha256")})
            AND t.content_sha256 NOT IN (SELECT content_sha256 FROM retag_index)
        """,
        {"run": plan.run_key, "rate": audit_rate, "share": audit.bound(audit_rate)},
    )
    if source.parts:
        warehouse.view(con, "listed", store, source.parts, PUBLISHED)
    else:
        con.execute("CREATE VIEW listed AS FROM tags")


# ------------------------------------------------------------------ a retag


def retag(store: Store, found: Retag, date: str) -> Source:
    """A retag that consumers read."""
    return Source(found.key, date, found.backbone_sha256, _parts(store))


def lay_retag(con: duckdb.DuckDBPyConnection, store: Store, source: Source, found: Retag, audited: pa.Table) -> None:
    """What a retag is not sure of, and what is ``audited`` (``content_sha256``, ``sampling_probability``) already.

    No sample of its own: what it is sure of was sampled by the night that found it, and stays so with the new tag.
    Images that a later night tagged are that night's. Makes table ``sure`` (``content_sha256``), too: what it is sure
    of and nobody was to look at.
    """
    con.register("audited", audited)
    warehouse.view(con, "listed", store, source.parts, PUBLISHED)
    overlays.lay_retagged(con, store, found)
    plans = planning.claimed(store)
    later = [plan for plan in plans if plan.sequence > found.sequence]
    shards = [shard.part("tags") for plan in later for shard in done_shards(store, plan)]
    warehouse.view(con, "later", store, shards, TAGS)
    con.execute(
        f"""
        CREATE TABLE covered AS
        SELECT {_columns("p", _IMAGE)}, s.part, s.decision, a.sampling_probability
        FROM listed p JOIN retag_index s USING (content_sha256) LEFT JOIN audited a USING (content_sha256)
        WHERE p.image_id NOT IN (SELECT image_id FROM later);

        CREATE TABLE sure AS
        SELECT DISTINCT content_sha256 FROM covered WHERE decision = 'auto' AND sampling_probability IS NULL;

        DELETE FROM covered WHERE decision = 'auto' AND sampling_probability IS NULL
        """
    )
    _lay_planned(con, store, [plan for plan in plans if plan.sequence <= found.sequence])
    con.execute(
        f"""
        CREATE TABLE asked AS
        SELECT
            {_columns("c", _IMAGE)}, {_columns("r", _TAG)}, $run AS run_id, $version AS model_version,
            p.title, p.priority,
            if(r.{_NEEDS}, r.decision, '{AUDIT}') AS shown_because,
            if(r.{_NEEDS}, 1, c.sampling_probability)::DOUBLE AS sampling_probability
        FROM covered c JOIN retagged r ON r.content_sha256 = c.content_sha256 AND r.part = c.part
        LEFT JOIN planned p USING (image_id)
        """,
        {"run": found.key, "version": found.model_version},
    )


def _lay_planned(con: duckdb.DuckDBPyConnection, store: Store, plans: Sequence[Plan]) -> None:
    """What the last plan that tagged each covered image said of it. One plan after the other: they may be many."""
    con.execute("CREATE TABLE planned (image_id VARCHAR, title VARCHAR, priority INTEGER)")
    for number, plan in enumerate(reversed(plans)):
        warehouse.view(con, f"plan_{number}", store, [planning.plan_key(plan.run_key)], PLAN)
        con.execute(
            f"INSERT INTO planned SELECT image_id, title, priority FROM plan_{number} "
            "SEMI JOIN covered USING (image_id) ANTI JOIN planned USING (image_id) WHERE action = 'tag'"
        )


def _columns(table: str, names: Sequence[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in names)


def _parts(store: Store) -> tuple[str, ...]:
    pointer = published.current(store)
    return () if pointer is None else tuple(pointer.value["parts"])
