"""The review page: what waits, who looks at it, and what people decide besides answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SQLITE = (
    """CREATE TRIGGER review_events_no_update BEFORE UPDATE ON review_events
    BEGIN SELECT RAISE(ABORT, 'review_events is append-only'); END""",
    """CREATE TRIGGER review_events_no_delete BEFORE DELETE ON review_events
    BEGIN SELECT RAISE(ABORT, 'review_events is append-only'); END""",
    # INSERT OR REPLACE deletes without asking the trigger above.
    """CREATE TRIGGER review_events_no_replace BEFORE INSERT ON review_events
    WHEN EXISTS (SELECT 1 FROM review_events WHERE number = NEW.number)
    BEGIN SELECT RAISE(ABORT, 'review_events is append-only'); END""",
)
_POSTGRESQL = (
    """CREATE FUNCTION review_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'review_events is append-only'; END $$""",
    """CREATE TRIGGER review_events_no_change BEFORE UPDATE OR DELETE ON review_events
    FOR EACH ROW EXECUTE FUNCTION review_events_append_only()""",
    """CREATE TRIGGER review_events_no_truncate BEFORE TRUNCATE ON review_events
    FOR EACH STATEMENT EXECUTE FUNCTION review_events_append_only()""",
)


def upgrade() -> None:
    """Makes the tables, and what keeps the events append-only."""
    _make_items()
    _make_answers()
    _make_records()
    op.create_index("ix_corrections_retracts", "corrections", ["retracts"])
    op.create_index("ix_corrections_answered_at", "corrections", ["answered_at"])
    op.create_index("corrections_of_person", "corrections", ["answered_by", "number"])
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def _make_items() -> None:
    op.create_table(
        "review_items",
        sa.Column("content_sha256", sa.Text, primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False, index=True),
        sa.Column("date", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("sku_id", sa.Text, index=True),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("label_id", sa.Text, index=True),
        sa.Column("label_zh", sa.Text),
        sa.Column("confidence", sa.REAL),
        sa.Column("category_path", sa.Text),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("decision_reason", sa.Text),
        sa.Column("model_version", sa.Text),
        sa.Column("shown_because", sa.Text, nullable=False),
        sa.Column("sampling_probability", sa.Double, nullable=False),
        sa.Column("copies", sa.Integer, nullable=False),
        sa.Column("skus", sa.Integer, nullable=False),
        sa.Column("near_group", sa.Text, index=True),
        sa.Column("near", sa.Integer, nullable=False),
        sa.Column("siblings", sa.JSON, nullable=False),
        sa.Column("priority", sa.Integer),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("needed", sa.Integer, nullable=False),
        sa.Column("blind", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("leased_by", sa.Text),
        sa.Column("leased_until", sa.DateTime(timezone=True)),
        sa.CheckConstraint("state IN ('open', 'later', 'second', 'disputed', 'done')", name="review_items_state"),
    )
    op.create_index("review_items_order", "review_items", ["state", "value"])
    leased = sa.text("leased_by IS NOT NULL")
    op.create_index("review_items_leases", "review_items", ["leased_by"], sqlite_where=leased, postgresql_where=leased)
    op.create_table(
        "review_loaded",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("loaded_at", sa.DateTime(timezone=True), nullable=False),
    )


def _make_answers() -> None:
    op.create_table(
        "review_opinions",
        sa.Column("answer_id", sa.Text, primary_key=True),
        sa.Column("content_sha256", sa.Text, nullable=False, index=True),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.Column("agrees", sa.Boolean),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "review_marks",
        sa.Column("answer_id", sa.Text, primary_key=True),
        sa.Column("content_sha256", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("never_regress", sa.Boolean, nullable=False),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("marked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("done_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.Text),
    )


def _make_records() -> None:
    op.create_table(
        "review_people",
        sa.Column("person", sa.Text, primary_key=True),
        sa.Column("categories", sa.JSON, nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "label_proposals",
        sa.Column("proposal_id", sa.Text, primary_key=True),
        sa.Column("label_zh", sa.Text, nullable=False),
        sa.Column("label_en", sa.Text, nullable=False),
        sa.Column("synonyms_zh", sa.Text, nullable=False),
        sa.Column("category_path", sa.Text, nullable=False),
        sa.Column("content_sha256", sa.Text),
        sa.Column("answer_id", sa.Text),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("proposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("label_id", sa.Text),
        sa.Column("decided_by", sa.Text),
        sa.Column("decided_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("state IN ('open', 'accepted', 'merged', 'refused')", name="label_proposals_state"),
    )
    op.create_table(
        "review_events",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("happened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )
