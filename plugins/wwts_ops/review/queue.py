"""The review queue: what a person should look at, best use of a look first."""

from __future__ import annotations

import structlog

from wwts_ops import corrections, planning, warehouse
from wwts_ops.planning import Plan
from wwts_ops.schemas import PLAN, REVIEW_QUEUE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import done_shards

log = structlog.get_logger(__name__)

# One row a content: one answer settles all its copies. What must be seen comes first, then what the shop calls
# urgent, then what settles most images, then what the model is least sure of. Everything uncertain is shown, so the
# probability of having been sampled is 1.
_QUEUE = """
    WITH waiting AS (
        SELECT t.*, p.priority, count(*) OVER content AS copies, row_number() OVER content AS copy
        FROM tags t LEFT JOIN planned p ON p.image_id = t.image_id AND p.action = 'tag'
        WHERE decision IN ('review', 'forced_review') AND t.content_sha256 NOT IN (SELECT content_sha256 FROM answers)
        WINDOW content AS (PARTITION BY content_sha256 ORDER BY p.priority DESC NULLS LAST, t.image_id
                           ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
    )
    SELECT
        row_number() OVER (
            ORDER BY decision = 'forced_review' DESC, priority DESC NULLS LAST, copies DESC,
                confidence NULLS FIRST, image_id
        )::INTEGER AS rank,
        image_id, sku_id, uri, content_sha256, tags, label_id, label_zh, confidence, category_path, decision,
        decision_reason, run_id, copies::INTEGER AS copies, priority, decision AS shown_because,
        1.0::DOUBLE AS sampling_probability
    FROM waiting WHERE copy = 1 ORDER BY rank
"""


def queue_key(plan: Plan) -> str:
    """The store key of the queue of one run."""
    return f"review/date={plan.date}/part-{plan.run_key}.parquet"


def route(store: Store, settings: Settings, plan: Plan) -> int:
    """Writes the queue of ``plan`` (schema ``REVIEW_QUEUE``); how many contents wait for a person.

    A content that a person has answered is not asked for again.

    Raises:
        UnavailableError: when the database does not answer.
    """
    answers = corrections.in_force(corrections.frozen(settings)).select(["content_sha256"])
    with warehouse.connect() as con:
        warehouse.view(con, "tags", store, [shard.part("tags") for shard in done_shards(store, plan)], TAGS)
        con.register("answers", answers)
        warehouse.view(con, "planned", store, [planning.plan_key(plan.run_key)], PLAN)
        waiting = warehouse.write(store, queue_key(plan), [con.sql(_QUEUE)], REVIEW_QUEUE)
    log.info("routed_to_review", run_id=plan.run_key, waiting=waiting)
    return waiting
