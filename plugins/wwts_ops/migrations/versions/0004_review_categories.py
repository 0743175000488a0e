"""What waits is counted by category without reading the items."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the index."""
    op.create_index("review_items_categories", "review_items", ["state", "category_path"])
