"""Who may do what on the pages, and what each wants to see first. Review rights are not DAG rights."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.database import review_people
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.taxonomy import path_of

_MOST_CATEGORIES, _LONGEST = 100, 500


class Role(IntEnum):
    """What somebody signed in to Airflow may do; each may do what those before may."""

    VIEWER = 0
    REVIEWER = 1
    ADMIN = 2


def role(settings: Settings, person: str) -> Role:
    """The role of the Airflow user ``person``."""
    if person in settings.review_admins:
        return Role.ADMIN
    return Role.REVIEWER if person in settings.reviewers else Role.VIEWER


def staff(settings: Settings) -> frozenset[str]:
    """Everybody who may answer."""
    return frozenset((*settings.reviewers, *settings.review_admins))


def categories(settings: Settings, person: str) -> tuple[str, ...]:
    """The category paths (prefixes) that ``person`` looks after; none: all.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.reading(settings) as connection:
        asked = sa.select(review_people.c.categories).where(review_people.c.person == person)
        return tuple(connection.execute(asked).scalar() or ())


def choose(settings: Settings, person: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Remembers what ``person`` looks after.

    Raises:
        WwtsError: when they are too many, or one is empty or too long.
        UnavailableError: when the database does not answer.
    """
    chosen = tuple(dict.fromkeys(path_of(path) for path in paths))
    if len(chosen) > _MOST_CATEGORIES or not all(0 < len(path) <= _LONGEST for path in chosen):
        raise WwtsError(f"最多选择 {_MOST_CATEGORIES} 个类目，每个不能为空、不超过 {_LONGEST} 个字。")
    with database.transaction(settings) as connection:
        row = {"categories": list(chosen), "changed_at": database.now(connection)}
        changed = connection.execute(sa.update(review_people).where(review_people.c.person == person).values(**row))
        if not changed.rowcount:
            connection.execute(sa.insert(review_people).values(person=person, **row))
    return chosen
