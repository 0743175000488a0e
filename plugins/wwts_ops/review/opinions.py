"""How far people agree who looked at the same image without knowing of each other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.database import review_opinions
from wwts_ops.settings import Settings


@dataclass(frozen=True)
class Agreement:
    """Of ``pairs`` of looks at the same content by two people, ``agree`` said the same."""

    pairs: int
    agree: int


def agreement(settings: Settings, since: datetime) -> Agreement:
    """How far second looks ``since`` then agreed with the first, blind ones and those that were required.

    Raises:
        UnavailableError: when the database does not answer.
    """
    if not database.exists(settings):
        return Agreement(0, 0)
    database.upgrade(settings)
    compared = review_opinions.c.agrees.is_not(None) & review_opinions.c.withdrawn_at.is_(None)
    agreed = sa.func.count(sa.case((review_opinions.c.agrees, 1)))
    asked = sa.select(sa.func.count(), agreed).where(compared, review_opinions.c.said_at >= since)
    with database.reading(settings) as connection:
        pairs, agree = connection.execute(asked).one()
    return Agreement(pairs, agree)
