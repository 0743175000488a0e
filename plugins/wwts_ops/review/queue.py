"""The review queue: what a person should look at, best use of a look first.

What a look is worth: ``(1 - confidence) * (copies + near / 2) * 2 ** priority``. That is how likely the model is wrong,
times the images that one answer settles (a near-duplicate by half: it is offered, not settled), times what the shop
calls urgent. At least 0.01 counts as doubt and priorities count from -8 to 8. What a person must always see is worth a
thousand million more. An image of the audit sample is worth what another image is that a hash picks: so it comes up in
passing, at any place of the queue with the same chance, and whoever stops early has seen their share of the sample.

All of it is a function of what the done shards wrote, of what is published and of which contents have an answer, not
of clocks or of the order of anything: a night that was killed and starts again routes the same. A retag, which says
anew what nights said, is routed the same way; see :mod:`wwts_ops.review.sources` for what each asks for.
"""

from __future__ import annotations

from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from wwts_ops import corrections, database, embeddings, neardup, warehouse
from wwts_ops.planning import Plan
from wwts_ops.records import REVIEW_ITEMS
from wwts_ops.retags import Retag
from wwts_ops.review import items, sources
from wwts_ops.review.sources import AUDIT, Source
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

log = structlog.get_logger(__name__)

#: Cosine from which a picture is shown beside another. Chains are longer than at ``neardup.SAME``, but here a person
#: looks at each: of 2,936 shop photographs the longest held 59.
ALIKE: Final = 0.90
#: Contents compared with each other at once: 128 MB of embeddings of 1,280 numbers, and some seconds.
_COMPARED = 50_000
#: Above every other value: 2 ** 8 times some million copies.
_FORCED = 1e9
_SIBLINGS = 20
_NEAR = pa.schema([("content_sha256", pa.string()), ("near_group", pa.string()), ("near", pa.int32())])

# One row a content: one answer settles all its copies, and the most urgent of them stands for it.
_WAITING = f"""
    CREATE TABLE waiting AS
    WITH shown AS (
        SELECT * FROM asked WHERE content_sha256 NOT IN (SELECT content_sha256 FROM answers)
    ), numbered AS (
        SELECT *, count(*) OVER content AS copies, row_number() OVER content AS copy
        FROM shown SEMI JOIN listed USING (content_sha256)
        WINDOW content AS (
            PARTITION BY content_sha256 ORDER BY shown_because = '{AUDIT}', priority DESC NULLS LAST, image_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        )
    )
    SELECT * EXCLUDE (copy) FROM numbered WHERE copy = 1
"""

# A SKU may have any number of images: few enough to join are kept. An image without one counts as a SKU of its own.
_AROUND = f"""
    CREATE TABLE few AS
    SELECT
        sku_id, content_sha256, min(image_id) AS image_id,
        arg_min({{'label_id': label_id, 'label_zh': label_zh, 'confidence': confidence,
                  'model_version': model_version}}, image_id) AS tag
    FROM listed SEMI JOIN waiting USING (sku_id) GROUP BY sku_id, content_sha256
    QUALIFY row_number() OVER (PARTITION BY sku_id ORDER BY min(image_id)) <= {_SIBLINGS + 1};

    CREATE TABLE spread AS
    WITH shown AS (SELECT content_sha256 FROM waiting UNION SELECT content_sha256 FROM few)
    SELECT content_sha256, count(*) AS images, count(DISTINCT coalesce(sku_id, image_id))::INTEGER AS skus
    FROM listed SEMI JOIN shown USING (content_sha256) GROUP BY content_sha256;

    CREATE TABLE siblings AS
    SELECT
        w.content_sha256,
        list({{'image_id': f.image_id, 'content_sha256': f.content_sha256, 'label_id': f.tag.label_id,
               'label_zh': f.tag.label_zh, 'confidence': f.tag.confidence, 'model_version': f.tag.model_version,
               'skus': s.skus}} ORDER BY f.image_id)[:{_SIBLINGS}] AS siblings
    FROM waiting w JOIN few f ON f.sku_id = w.sku_id AND f.content_sha256 <> w.content_sha256
    JOIN spread s ON s.content_sha256 = f.content_sha256
    GROUP BY w.content_sha256
"""

_VALUED = f"""
    CREATE TABLE valued AS
    WITH known AS (
        SELECT
            w.* REPLACE (greatest(w.copies, s.images)::INTEGER AS copies),
            s.skus, n.near_group, coalesce(n.near, 0)::INTEGER AS near
        FROM waiting w JOIN spread s USING (content_sha256) LEFT JOIN near n USING (content_sha256)
    )
    SELECT *,
        greatest(0.01, 1 - coalesce(confidence, 0)::DOUBLE) * (copies + near / 2)
        * pow(2::DOUBLE, least(8, greatest(-8, coalesce(priority, 0))))
        + if(decision = 'forced_review', {_FORCED}, 0) AS worth
    FROM known
"""

_QUEUE = f"""
    WITH others AS (
        SELECT worth, row_number() OVER (ORDER BY worth DESC, content_sha256) AS place
        FROM valued WHERE shown_because <> '{AUDIT}'
    ), picked AS (
        SELECT *,
            -- 48 bits of a hash of its own: 0 up to 1
            ('0x' || left(sha256('audit place:' || $run || content_sha256), 12))::BIGINT / pow(2::DOUBLE, 48) AS chance
        FROM valued
    ), ranked AS (
        SELECT p.*, if(p.shown_because = '{AUDIT}', coalesce(o.worth, p.chance), p.worth) AS value
        FROM picked p LEFT JOIN others o
            ON o.place = 1 + floor(p.chance * (SELECT count(*) FROM others)) AND p.shown_because = '{AUDIT}'
    )
    SELECT
        row_number() OVER (ORDER BY value DESC, content_sha256 DESC)::INTEGER AS rank,
        image_id, sku_id, uri, content_sha256, tags, label_id, label_zh, confidence, category_path, decision,
        decision_reason, run_id, copies, priority, shown_because,
        sampling_probability, title, model_version, value, skus, near_group, near, coalesce(siblings, []) AS siblings
    FROM ranked LEFT JOIN siblings USING (content_sha256) ORDER BY rank
"""


def queue_key(plan: Plan) -> str:
    """The store key of the queue of one run."""
    return Source(plan.run_key, plan.date, plan.backbone_sha256, ()).queue


def route(store: Store, settings: Settings, plan: Plan) -> int:
    """Writes the queue of ``plan`` (schema ``REVIEW_ITEMS``) and loads it for the page; how many contents are in it.

    What needs a person is in it, and of what does not a sample of ``WWTS_AUDIT_RATE``. A content that a person has
    answered is not asked for again. Once ``plan`` is published, a content that no published image has any more
    (delisted, or its bytes replaced, by a later plan) is left out, and waits no longer where it did.

    Raises:
        UnavailableError: when the database does not answer.
        WwtsError: when a part of embeddings is damaged.
    """
    answers = _answered(settings)
    source = sources.night(store, plan)
    with warehouse.connect() as con:
        sources.lay_night(con, store, source, plan, settings.audit_rate)
        waiting = _write(con, store, source, answers)
    items.load_part(store, settings, source.queue)
    if source.parts:
        items.close_unlisted(store, settings)
    log.info("routed_to_review", run_id=plan.run_key, waiting=waiting)
    return waiting


def route_retag(store: Store, settings: Settings, retag: Retag) -> int:
    """The same of a published ``retag``: what the new head is not sure of waits, with its tags; how many contents.

    What waited, and it is sure of, waits no more, but for what two people are at already. What is in the audit sample
    of a night stays there; a retag has none of its own. Today is its date.

    Raises:
        UnavailableError: when the database does not answer.
        WwtsError: when a part of embeddings is damaged.
    """
    database.upgrade(settings)
    answers, fresh = _answered(settings), items.fresh(settings)
    source = sources.retag(store, retag, settings.today().isoformat())
    audited = fresh.filter(pc.equal(fresh["shown_because"], AUDIT))
    with warehouse.connect() as con:
        sources.lay_retag(con, store, source, retag, audited)
        waiting = _write(con, store, source, answers)
        con.register("fresh", fresh)
        found = con.sql("SELECT content_sha256, revision, run_id FROM fresh SEMI JOIN sure USING (content_sha256)")
        sure = {content: (revision, run) for content, revision, run in found.fetchall()}
    items.load_part(store, settings, source.queue)
    closed = items.close(settings, sure, source.key, source.date)
    items.close_unlisted(store, settings)
    log.info("retag_routed_to_review", retag=retag.key, waiting=waiting, closed=closed)
    return waiting


def _answered(settings: Settings) -> pa.Table:
    return corrections.in_force(corrections.frozen(settings)).select(["content_sha256"])


def _write(con: duckdb.DuckDBPyConnection, store: Store, source: Source, answers: pa.Table) -> int:
    """Writes what was ``asked`` for, in order; its rows."""
    con.register("answers", answers)
    con.execute(_WAITING)
    con.execute(_AROUND)
    con.register("near", _near(con, store, source))
    con.execute(_VALUED)
    queue = con.sql(_QUEUE, params={"run": source.key})
    return warehouse.write(store, source.queue, [queue], REVIEW_ITEMS)


def _near(con: duckdb.DuckDBPyConnection, store: Store, source: Source) -> pa.Table:
    """What looks alike, without what is alone. By label, so that of more than fit those most likely alike meet."""
    contents = con.sql("SELECT content_sha256 FROM waiting ORDER BY label_id, content_sha256").to_arrow_table()
    named = contents["content_sha256"].to_pylist()
    tables = [_NEAR.empty_table()]
    count = 0
    for start in range(0, len(named), _COMPARED):
        tables.append(_grouped(store, source, named[start : start + _COMPARED], count))
        count += _COMPARED
    return pa.concat_tables(tables)


def _grouped(store: Store, source: Source, contents: list[str], first: int) -> pa.Table:
    found, vectors = embeddings.take(store, source.backbone_sha256, contents)
    embedded = np.asarray(contents)[found]
    numbers = neardup.groups(vectors, ALIKE) if len(embedded) else np.empty(0, np.int64)
    sizes = np.bincount(numbers)[numbers] if len(numbers) else numbers
    together = sizes > 1
    rows = [
        embedded[together].tolist(),
        [f"{source.key}:{first + number}" for number in numbers[together].tolist()],
        (sizes[together] - 1).astype(np.int32),
    ]
    return pa.Table.from_arrays(
        [pa.array(cells, field.type) for cells, field in zip(rows, _NEAR, strict=True)], schema=_NEAR
    )
