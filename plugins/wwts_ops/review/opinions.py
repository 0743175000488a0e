"""What people said of the same image without knowing of each other: how far they agree, and what they differ in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.database import corrections, review_opinions
from wwts_ops.settings import Settings


@dataclass(frozen=True)
class Agreement:
    """Of ``pairs`` of looks at the same content by two people, ``agree`` said the same."""

    pairs: int
    agree: int


def agreement(connection: sa.Connection, since: datetime) -> Agreement:
    """How far second looks ``since`` then agreed with the first, blind ones and those that were required."""
    compared = review_opinions.c.agrees.is_not(None) & review_opinions.c.withdrawn_at.is_(None)
    agreed = sa.func.count(sa.case((review_opinions.c.agrees, 1)))
    asked = sa.select(sa.func.count(), agreed).where(compared, review_opinions.c.said_at >= since)
    pairs, agree = connection.execute(asked).one()
    return Agreement(pairs, agree)


@dataclass(frozen=True)
class Look:
    """What one person said; ``labels`` are label ids."""

    person: str
    kind: str
    labels: tuple[str, ...]


def looks(settings: Settings, content: str) -> list[Look]:
    """The two looks of the last round that ended in a dispute, in their order: what a third one is to decide.

    Raises:
        UnavailableError: when the database does not answer.
    """
    said = sa.select(review_opinions).where(
        review_opinions.c.content_sha256 == content, review_opinions.c.withdrawn_at.is_(None)
    )
    with database.reading(settings) as connection:
        rows = connection.execute(said.order_by(review_opinions.c.said_at, review_opinions.c.place)).mappings().all()
        second = next((row for row in reversed(rows) if row["place"] == 2 and row["agrees"] is False), None)
        if second is None:
            return []
        began = second["answer"]["round"]
        first = next((row for row in rows if row["answer_id"] == began), None)
        if first is not None:
            return [_look(first), _look(second)]
        # Of a blind second look the first one is an answer like any other.
        asked = sa.select(corrections).where(corrections.c.answer_id == began)
        answer = connection.execute(asked).mappings().one_or_none()
    given = [] if answer is None else [Look(answer["answered_by"], answer["kind"], tuple(answer["labels"]))]
    return [*given, _look(second)]


def _look(row: sa.RowMapping) -> Look:
    return Look(row["person"], row["answer"]["kind"], tuple(row["answer"]["labels"]))
