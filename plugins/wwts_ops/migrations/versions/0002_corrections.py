"""Every answer that a person ever gave."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SQLITE = (
    """CREATE TRIGGER corrections_no_update BEFORE UPDATE ON corrections
    BEGIN SELECT RAISE(ABORT, 'corrections is append-only'); END""",
    """CREATE TRIGGER corrections_no_delete BEFORE DELETE ON corrections
    BEGIN SELECT RAISE(ABORT, 'corrections is append-only'); END""",
    # INSERT OR REPLACE deletes without asking the trigger above.
    """CREATE TRIGGER corrections_no_replace BEFORE INSERT ON corrections
    WHEN EXISTS (SELECT 1 FROM corrections WHERE number = NEW.number)
        OR EXISTS (SELECT 1 FROM corrections WHERE answer_id = NEW.answer_id)
    BEGIN SELECT RAISE(ABORT, 'corrections is append-only'); END""",
)
_POSTGRESQL = (
    """CREATE FUNCTION corrections_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'corrections is append-only'; END $$""",
    """CREATE TRIGGER corrections_no_change BEFORE UPDATE OR DELETE ON corrections
    FOR EACH ROW EXECUTE FUNCTION corrections_append_only()""",
    """CREATE TRIGGER corrections_no_truncate BEFORE TRUNCATE ON corrections
    FOR EACH STATEMENT EXECUTE FUNCTION corrections_append_only()""",
)


def upgrade() -> None:
    """Makes the table and what keeps it append-only."""
    op.create_table(
        "corrections",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("answer_id", sa.Text, nullable=False, unique=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_by", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text),
        sa.Column("content_sha256", sa.Text, nullable=False, index=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("labels_before", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("weak", sa.Boolean, nullable=False),
        sa.Column("shown_because", sa.Text, nullable=False),
        sa.Column("sampling_probability", sa.Double),
        sa.Column("retracts", sa.BigInteger),
        sa.Column("model_version", sa.Text),
        sa.Column("confidence", sa.REAL),
        sa.CheckConstraint(
            "kind IN ('confirm', 'correct', 'wrong_unknown', 'reject_image', 'retract')", name="corrections_kind"
        ),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
