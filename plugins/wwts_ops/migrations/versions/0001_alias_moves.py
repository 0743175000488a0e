"""Who moves the aliases of a registered model, and every move there ever was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_SQLITE = (
    """CREATE TRIGGER alias_moves_no_update BEFORE UPDATE ON alias_moves
    BEGIN SELECT RAISE(ABORT, 'alias_moves is append-only'); END""",
    """CREATE TRIGGER alias_moves_no_delete BEFORE DELETE ON alias_moves
    BEGIN SELECT RAISE(ABORT, 'alias_moves is append-only'); END""",
    # INSERT OR REPLACE deletes without asking the trigger above.
    """CREATE TRIGGER alias_moves_no_replace BEFORE INSERT ON alias_moves
    WHEN EXISTS (SELECT 1 FROM alias_moves WHERE model_name = NEW.model_name AND number = NEW.number)
    BEGIN SELECT RAISE(ABORT, 'alias_moves is append-only'); END""",
)
_POSTGRESQL = (
    """CREATE FUNCTION alias_moves_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'alias_moves is append-only'; END $$""",
    """CREATE TRIGGER alias_moves_no_change BEFORE UPDATE OR DELETE ON alias_moves
    FOR EACH ROW EXECUTE FUNCTION alias_moves_append_only()""",
    """CREATE TRIGGER alias_moves_no_truncate BEFORE TRUNCATE ON alias_moves
    FOR EACH STATEMENT EXECUTE FUNCTION alias_moves_append_only()""",
)


def upgrade() -> None:
    """Makes both tables and what keeps the second append-only."""
    op.create_table(
        "alias_states",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("intent", sa.JSON),
        sa.Column("run", sa.Text),
        sa.Column("holder", sa.Text),
        sa.Column("expires_at", _TIME),
        sa.CheckConstraint("state IN ('idle', 'moving')", name="alias_states_state"),
    )
    op.create_table(
        "alias_moves",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("moved_at", _TIME, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("from_version", sa.Text),
        sa.Column("to_version", sa.Text),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
