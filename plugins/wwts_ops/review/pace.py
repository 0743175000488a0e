"""How far today's work has come, cheap enough to be asked after every answer; counted as ``figures`` counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.corrections.answers import in_force_rows
from wwts_ops.database import corrections, review_items
from wwts_ops.settings import Settings

#: Who has just begun has no pace yet.
_LEAST = timedelta(minutes=5)


@dataclass(frozen=True)
class Pace:
    """Pictures of the queue that were settled on the pages since midnight in the shop's time zone.

    ``per_hour``: of the person who asks, since their first one; None before there is anything to measure.
    """

    done_today: int
    mine_today: int
    per_hour: float | None


def today(settings: Settings, person: str) -> Pace:
    """Of everybody and of ``person``.

    Raises:
        UnavailableError: when the database does not answer.
    """
    midnight = settings.now().replace(hour=0, minute=0, second=0, microsecond=0)
    mine = corrections.c.answered_by == person
    contents = sa.func.count(corrections.c.content_sha256.distinct())
    asked = (
        in_force_rows()
        .with_only_columns(contents, contents.filter(mine), sa.func.min(corrections.c.answered_at).filter(mine))
        .join(review_items, review_items.c.content_sha256 == corrections.c.content_sha256)
        .where(corrections.c.source == "page", corrections.c.answered_at >= midnight)
    )
    with database.reading(settings) as connection:
        everybody, own, first = connection.execute(asked).one()
    return Pace(everybody, own, None if first is None else _per_hour(own, first))


def _per_hour(count: int, first: datetime) -> float | None:
    spent = datetime.now(UTC) - first
    return None if spent < _LEAST else round(count / (spent / timedelta(hours=1)), 1)
