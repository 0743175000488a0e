"""Who changed what on the pages, other than single answers: an append-only table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.database import review_events
from wwts_ops.settings import Settings

#: Taken back in bulk; the taxonomy changed; a proposed label decided upon.
TOOK_BACK, CHANGED_TAXONOMY, DECIDED_PROPOSAL = "took_back", "changed_taxonomy", "decided_proposal"


@dataclass(frozen=True)
class Event:
    """One change. ``subject`` is what it was made to; ``detail`` is what a page shows of it; ``happened_at`` UTC."""

    number: int
    happened_at: datetime
    person: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def record(connection: sa.Connection, person: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
    """Writes an event down, in the transaction of what it tells of."""
    row = {"person": person, "action": action, "subject": subject, "detail": dict(detail)}
    connection.execute(sa.insert(review_events).values(happened_at=database.now(connection), **row))


def recent(settings: Settings, count: int) -> list[Event]:
    """The last ``count`` events, newest first.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.looking(settings) as connection:
        asked = sa.select(review_events).order_by(review_events.c.number.desc()).limit(count)
        return [Event(**row) for row in connection.execute(asked).mappings()]
