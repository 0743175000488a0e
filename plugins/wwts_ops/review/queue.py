"""The review queue: what a person should look at, best use of a look first.

What a look is worth: ``(1 - confidence) * (copies + near / 2) * 2 ** priority``. That is how likely the model is wrong,
times the images that one answer settles (a near-duplicate by half: it is offered, not settled), times what the shop
calls urgent. At least 0.01 counts as doubt and priorities count from -8 to 8. What a person must always see is worth a
thousand million more. An image of the audit sample is worth what another image is that a hash picks: so it comes up in
passing, at any place of the queue with the same chance, and whoever stops early has seen their share of the sample.

All of it is a function of what the done shards wrote, of what is published and of which contents have an answer, not
of clocks or of the order of anything: a night that was killed and starts again routes the same.
"""

from __future__ import annotations

from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import structlog

from wwts_ops import corrections, embeddings, neardup, planning, published, warehouse
from wwts_ops.planning import Plan
from wwts_ops.records import REVIEW_ITEMS
from wwts_ops.review import items
from wwts_ops.schemas import PLAN, PUBLISHED, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import done_shards

log = structlog.get_logger(__name__)

AUDIT: Final = "audit"
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
        SELECT
            t.*, p.title, p.priority,
            if(t.decision IN ('review', 'forced_review'), t.decision, '{AUDIT}') AS shown_because
        FROM tags t LEFT JOIN planned p ON p.image_id = t.image_id AND p.action = 'tag'
        WHERE t.content_sha256 NOT IN (SELECT content_sha256 FROM answers)
            AND (t.decision IN ('review', 'forced_review')
                OR '0' || left(sha256('audit:' || $run || t.content_sha256), 16) < $share)
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
        if(shown_because = '{AUDIT}', $rate, 1)::DOUBLE AS sampling_probability,
        title, model_version, value, skus, near_group, near, coalesce(siblings, []) AS siblings
    FROM ranked LEFT JOIN siblings USING (content_sha256) ORDER BY rank
"""


def queue_key(plan: Plan) -> str:
    """The store key of the queue of one run."""
    return f"review/date={plan.date}/part-{plan.run_key}.parquet"


def route(store: Store, settings: Settings, plan: Plan) -> int:
    """Writes the queue of ``plan`` (schema ``REVIEW_ITEMS``) and loads it for the page; how many contents are in it.

    What needs a person is in it, and of what does not a sample of ``WWTS_AUDIT_RATE``. A content that a person has
    answered is not asked for again. Once ``plan`` is published, a content that no published image has any more
    (delisted, or its bytes replaced, by a later plan) is left out, and waits no longer where it did.

    Raises:
        UnavailableError: when the database does not answer.
        WwtsError: when a part of embeddings is damaged.
    """
    answers = corrections.in_force(corrections.frozen(settings)).select(["content_sha256"])
    snapshot = _snapshot(store, plan)
    with warehouse.connect() as con:
        warehouse.view(con, "tags", store, [shard.part("tags") for shard in done_shards(store, plan)], TAGS)
        con.register("answers", answers)
        warehouse.view(con, "planned", store, [planning.plan_key(plan.run_key)], PLAN)
        if snapshot:
            warehouse.view(con, "listed", store, snapshot, PUBLISHED)
        else:
            con.execute("CREATE VIEW listed AS FROM tags")
        waiting = warehouse.write(store, queue_key(plan), [_queue(con, store, settings, plan)], REVIEW_ITEMS)
    items.load_part(store, settings, queue_key(plan))
    if snapshot:
        items.close_unlisted(store, settings)
    log.info("routed_to_review", run_id=plan.run_key, waiting=waiting)
    return waiting


def _snapshot(store: Store, plan: Plan) -> list[str]:
    """The parts of what is published; none of a snapshot made before ``plan``, which knows nothing of its images."""
    pointer = published.current(store)
    if pointer is None or int(str(pointer.value["snapshot"])[1:].partition("-")[0]) < plan.sequence:
        return []
    return list(pointer.value["parts"])


def _queue(con: duckdb.DuckDBPyConnection, store: Store, settings: Settings, plan: Plan) -> duckdb.DuckDBPyRelation:
    share = f"{int(settings.audit_rate * 2**64):017x}"
    con.execute(_WAITING, {"run": plan.run_key, "share": share})
    con.execute(_AROUND)
    con.register("near", _near(con, store, plan))
    con.execute(_VALUED)
    return con.sql(_QUEUE, params={"run": plan.run_key, "rate": settings.audit_rate})


def _near(con: duckdb.DuckDBPyConnection, store: Store, plan: Plan) -> pa.Table:
    """What looks alike, without what is alone. By label, so that of more than fit those most likely alike meet."""
    contents = con.sql("SELECT content_sha256 FROM waiting ORDER BY label_id, content_sha256").to_arrow_table()
    named = contents["content_sha256"].to_pylist()
    tables = [_NEAR.empty_table()]
    count = 0
    for start in range(0, len(named), _COMPARED):
        tables.append(_grouped(store, plan, named[start : start + _COMPARED], count))
        count += _COMPARED
    return pa.concat_tables(tables)


def _grouped(store: Store, plan: Plan, contents: list[str], first: int) -> pa.Table:
    found, vectors = embeddings.take(store, plan.backbone_sha256, contents)
    embedded = np.asarray(contents)[found]
    numbers = neardup.groups(vectors, ALIKE) if len(embedded) else np.empty(0, np.int64)
    sizes = np.bincount(numbers)[numbers] if len(numbers) else numbers
    together = sizes > 1
    rows = [
        embedded[together].tolist(),
        [f"{plan.run_key}:{first + number}" for number in numbers[together].tolist()],
        (sizes[together] - 1).astype(np.int32),
    ]
    return pa.Table.from_arrays(
        [pa.array(cells, field.type) for cells, field in zip(rows, _NEAR, strict=True)], schema=_NEAR
    )
