"""Alembic runs this file: the migrations happen in the transaction that ``wwts_ops.database.upgrade`` began."""

from __future__ import annotations

from alembic import context

from wwts_ops.database import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
