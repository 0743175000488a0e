"""Items: contents that wait for a look, in the database that all who look share.

A night loads what it routed, and ends the wait of what is published no more (:mod:`wwts_ops.review.loading`); whoever
answers settles an item, in the transaction of the answer (``corrections.answers``).

To look at an item is to lease it for some minutes. Leases run out by the database's clock, and change no revision:
who answers after theirs ran out is heard as long as nobody else answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.corrections import answers
from wwts_ops.database import corrections, review_items, review_opinions
from wwts_ops.review.loading import (
    DISPUTED,
    DONE,
    FRESH,
    LATER,
    OPEN,
    SECOND,
    WAITING,
    close,
    close_unlisted,
    forget,
    forgettable,
    fresh,
    load,
    load_part,
    sync,
)
from wwts_ops.review.people import Role, role
from wwts_ops.settings import Settings

__all__ = [
    "DISPUTED",
    "DONE",
    "LATER",
    "MOST",
    "OPEN",
    "SECOND",
    "WAITING",
    "Filters",
    "Item",
    "alike",
    "any_of",
    "close",
    "close_unlisted",
    "facets",
    "forget",
    "forgettable",
    "fresh",
    "left",
    "load",
    "load_part",
    "lookable",
    "one",
    "peek",
    "peek_label",
    "reason_of",
    "release",
    "renew",
    "sync",
    "take",
    "take_label",
]

#: Whatever a caller asks for: more than a screen shows.
MOST: Final = 200
#: What one person may hold at once, all their pages together.
_MOST_LEASED = 200
_MOST_HELD = 1000

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Filters:
    """What to look at; an empty tuple: all.

    Attributes:
        dates: ISO dates of the nights.
        categories: path prefixes, such as ``食品 > 水果``.
        labels: label ids, of the label shown.
        decisions: ``review``, ``forced_review`` or ``audit``.
        reasons: decision reasons without what follows ``:`` or ``;``.
        states: of :data:`WAITING`.
    """

    dates: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """A content that waits for a look, or did.

    Attributes:
        content_sha256: 64 hex digits.
        run_id: key of the run that asked.
        date: of that run, ISO.
        image_id, sku_id, uri, title: of the image that stands for the content.
        tags: best first, each ``label_id``, ``label_zh``, ``score`` (0-1).
        label_id, label_zh, confidence, category_path, decision, decision_reason, model_version: as the night wrote.
        shown_because: ``review``, ``forced_review`` or ``audit``.
        sampling_probability: chance of having been shown, above 0 up to 1.
        copies: images with this content.
        skus: SKUs with this content.
        near_group: same for what looks alike, None when nothing does.
        near: how many others are in that group.
        siblings: other images of the SKU, one a content, at most 20; as in ``records.REVIEW_ITEMS``.
        priority: the shop's own, None when it has none.
        value: what a look is worth, larger first.
        needed: people who must agree.
        blind: whether somebody else is to look again, without seeing the answer.
        state: ``open``, ``later``, ``second``, ``disputed`` or ``done``.
        revision: grows with every change of state or answer.
        leased_by, leased_until: who looks at it (or did last) and until when, UTC.
    """

    content_sha256: str
    run_id: str
    date: str
    image_id: str
    sku_id: str | None
    uri: str
    title: str | None
    tags: Sequence[Mapping[str, Any]]
    label_id: str | None
    label_zh: str | None
    confidence: float | None
    category_path: str | None
    decision: str
    decision_reason: str | None
    model_version: str | None
    shown_because: str
    sampling_probability: float
    copies: int
    skus: int
    near_group: str | None
    near: int
    siblings: Sequence[Mapping[str, Any]]
    priority: int | None
    value: float
    needed: int
    blind: bool
    state: str
    revision: int
    leased_by: str | None
    leased_until: datetime | None

    @property
    def reason(self) -> str:
        """The decision's reason without what follows ``:`` or ``;``."""
        return reason_of(self.decision_reason)

    @property
    def waits(self) -> bool:
        """Whether a look is still wanted."""
        return self.state != DONE


def reason_of(decision_reason: str | None) -> str:
    """A decision's reason without what follows ``:`` or ``;``: what people filter by."""
    return (decision_reason or "").partition(";")[0].partition(":")[0]


# ------------------------------------------------------------------ to whoever looks


def take(settings: Settings, person: str, filters: Filters, count: int, held: Sequence[str] = ()) -> list[Item]:
    """Leases the next best items that ``person`` may look at to them, and gives them.

    First what somebody else wants labelled later, then by value; last what they could not label themselves. Never what
    somebody else holds, nor what waits for a second look after their own. What they hold already is given again unless
    it is among ``held``; who holds 200 gets nothing more.

    Args:
        settings: the database, and ``lease_minutes``.
        person: Airflow user.
        filters: what to look at.
        count: items at most.
        held: contents that their page has already.

    Raises:
        UnavailableError: when the database does not answer.
    """
    wanted = _next(settings, person, filters, held)
    return _take(
        settings,
        person,
        count,
        _states(filters, WAITING),
        lambda state, moment: _free(wanted(state), person, moment),
    )


def peek(settings: Settings, person: str, filters: Filters, count: int, held: Sequence[str] = ()) -> list[Item]:
    """What :func:`take` would give if nobody held anything; nothing is leased, and nobody waits for it.

    Raises:
        UnavailableError: when the database does not answer.
    """
    return _peek(settings, count, _states(filters, WAITING), _next(settings, person, filters, held))


def take_label(
    settings: Settings, person: str, label_id: str, filters: Filters, count: int, held: Sequence[str] = ()
) -> list[Item]:
    """Leases items that show one label, for a page that settles many at a glance: only those that one look settles.

    Others than those in ``held``, which the page has already.

    Raises:
        UnavailableError: when the database does not answer.
    """
    wanted = _of_label(label_id, filters, held)
    return _take(
        settings,
        person,
        count,
        _states(filters, [OPEN]),
        lambda state, moment: _free(wanted(state), person, moment),
    )


def peek_label(settings: Settings, label_id: str, filters: Filters, count: int) -> list[Item]:
    """What :func:`take_label` would give if nobody held anything; nothing is leased.

    Raises:
        UnavailableError: when the database does not answer.
    """
    return _peek(settings, count, _states(filters, [OPEN]), _of_label(label_id, filters))


#: Items of a state that somebody may want to look at.
_Wanted = Callable[[str], sa.Select[Any]]


def _next(settings: Settings, person: str, filters: Filters, held: Sequence[str]) -> _Wanted:
    def wanted(state: str) -> sa.Select[Any]:
        asked = _passing(filters).where(review_items.c.state == state)
        asked = _others(asked.where(lookable(settings, person, state), *_any_left(filters, state)), held)
        return _own_last(asked, person) if state == LATER else asked

    return wanted


def _of_label(label_id: str, filters: Filters, held: Sequence[str] = ()) -> _Wanted:
    def wanted(state: str) -> sa.Select[Any]:
        asked = _passing(filters).where(review_items.c.state == state)
        return _others(asked.where(review_items.c.label_id == label_id, review_items.c.needed == 1), held)

    return wanted


def _any_left(filters: Filters, state: str) -> Iterator[sa.ColumnElement[bool]]:
    """An index tells that categories are done; to look for their items in order of value is to read all others."""
    if filters.categories:
        some = review_items.alias()
        same = _conditions(some.c, Filters(categories=filters.categories))
        yield sa.exists().where(some.c.state == state, *same)


def _others(asked: sa.Select[Any], held: Sequence[str]) -> sa.Select[Any]:
    """Without what a page has already."""
    held = tuple(held)[:_MOST_HELD]
    return asked.where(review_items.c.content_sha256.not_in(held)) if held else asked


def _states(filters: Filters, states: Sequence[str]) -> list[str]:
    return [state for state in states if _asked(filters, state)]


def _take(
    settings: Settings,
    person: str,
    count: int,
    states: Sequence[str],
    wanted: Callable[[str, datetime], sa.Select[Any]],
) -> list[Item]:
    count = max(0, min(count, MOST))
    with database.transaction(settings) as connection:
        moment = database.now(connection)
        leased = _leased(connection, person, moment)
        room = max(0, _MOST_LEASED - len(leased))
        asked = [wanted(state, moment) for state in states]
        if not room:
            asked = [one_.where(review_items.c.content_sha256.in_(leased)) for one_ in asked]
        # What another taker holds at this moment is passed over.
        locking = (_best(one_, count).with_for_update(skip_locked=True) for one_ in asked)
        best = _first(connection, locking, count)
        new = set([content for content in best if content not in leased][:room])
        contents = [content for content in best if content in leased or content in new]
        until = moment + timedelta(minutes=settings.lease_minutes)
        these = review_items.c.content_sha256.in_(contents)
        connection.execute(sa.update(review_items).where(these).values(leased_by=person, leased_until=until))
        return _in_order(connection, contents)


def _leased(connection: sa.Connection, person: str, moment: datetime) -> set[str]:
    theirs = (review_items.c.leased_by == person, review_items.c.leased_until > moment)
    return set(connection.execute(sa.select(review_items.c.content_sha256).where(*theirs)).scalars())


def _peek(settings: Settings, count: int, states: Sequence[str], wanted: _Wanted) -> list[Item]:
    count = max(0, min(count, MOST))
    with database.reading(settings) as connection:
        contents = _first(connection, (_best(wanted(state), count) for state in states), count)
        return _in_order(connection, contents)


def _best(asked: sa.Select[Any], count: int) -> sa.Select[Any]:
    return asked.order_by(review_items.c.value.desc(), review_items.c.content_sha256.desc()).limit(count)


def _first(connection: sa.Connection, asked: Iterable[sa.Select[Any]], count: int) -> list[str]:
    """The best contents of several states, each of which goes through an index by itself and stops."""
    found = [row for one_ in asked for row in connection.execute(one_)]
    found.sort(key=lambda row: (row.own, row.state != LATER, -row.value))
    return [row.content_sha256 for row in found[:count]]


def _in_order(connection: sa.Connection, contents: Sequence[str]) -> list[Item]:
    """The items of these contents, but for those that are there no more."""
    found = _items(connection, review_items.c.content_sha256.in_(contents))
    by_content = {item.content_sha256: item for item in found}
    return [by_content[content] for content in contents if content in by_content]


def renew(settings: Settings, person: str, contents: Sequence[str]) -> list[str]:
    """Leases those of ``contents`` for longer that ``person`` holds, or held last and nobody took; which.

    A lease that ran out longer ago than a lease lasts is over, and nobody comes to hold more than 200 by it.

    Raises:
        UnavailableError: when the database does not answer.
    """
    lease = timedelta(minutes=settings.lease_minutes)
    with database.transaction(settings) as connection:
        moment = database.now(connection)
        leased = _leased(connection, person, moment)
        room = max(0, _MOST_LEASED - len(leased))
        lapsed = [content for content in dict.fromkeys(contents) if content not in leased][:room]
        kept = [content for content in contents if content in leased or content in lapsed]
        recent = review_items.c.leased_until > moment - lease
        return _own(connection, person, kept, {"leased_until": moment + lease}, recent)


def release(settings: Settings, person: str, contents: Sequence[str]) -> None:
    """Gives those of ``contents`` back that ``person`` holds.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.transaction(settings) as connection:
        _own(connection, person, contents, {"leased_by": None, "leased_until": None})


def _own(
    connection: sa.Connection, person: str, contents: Sequence[str], values: Row, *only: sa.ColumnElement[bool]
) -> list[str]:
    """Changes the leases of ``person``; which of ``contents`` are theirs."""
    given = tuple(dict.fromkeys(contents))[:_MOST_HELD]
    theirs = (review_items.c.content_sha256.in_(given), review_items.c.leased_by == person, *only)
    asked = sa.select(review_items.c.content_sha256).where(*theirs, review_items.c.state != DONE)
    mine = set(connection.execute(asked).scalars())
    # What is locked is being answered or taken at this moment: it needs nothing, and waiting might never end.
    free = connection.execute(asked.with_for_update(skip_locked=True)).scalars().all()
    connection.execute(sa.update(review_items).where(review_items.c.content_sha256.in_(free)).values(**values))
    return [content for content in given if content in mine]


def one(settings: Settings, content: str) -> Item | None:
    """The item of a content, done or not.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.reading(settings) as connection:
        return next(_items(connection, review_items.c.content_sha256 == content), None)


def of_contents(settings: Settings, contents: Sequence[str]) -> list[Item]:
    """The items of some contents, done or not, in their order.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.reading(settings) as connection:
        return _in_order(connection, contents)


def any_of(settings: Settings, contents: Sequence[str]) -> bool:
    """Whether one of ``contents`` is an item, done or not.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.reading(settings) as connection:
        for chunk in database.chunks(contents):
            these = review_items.c.content_sha256.in_(chunk)
            if connection.execute(sa.select(sa.true()).where(sa.exists().where(these))).scalar():
                return True
    return False


def alike(settings: Settings, item: Item, limit: int = 60) -> list[Item]:
    """What looks like ``item`` and that nobody has looked at, best use of a look first.

    Raises:
        UnavailableError: when the database does not answer.
    """
    if item.near_group is None:
        return []
    with database.reading(settings) as connection:
        asked = sa.select(review_items).where(
            review_items.c.near_group == item.near_group,
            review_items.c.state.in_(FRESH),
            review_items.c.content_sha256 != item.content_sha256,
        )
        best = asked.order_by(review_items.c.value.desc(), review_items.c.content_sha256).limit(limit)
        return [Item(**row) for row in connection.execute(best).mappings()]


def _items(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Iterator[Item]:
    for row in connection.execute(sa.select(review_items).where(*conditions)).mappings():
        yield Item(**row)


# ------------------------------------------------------------------ what there is


def left(settings: Settings, person: str, filters: Filters) -> int:
    """How many items wait for a look of ``person``, held by others or not.

    Raises:
        UnavailableError: when the database does not answer.
    """
    count = 0
    with database.reading(settings) as connection:
        for state in _states(filters, WAITING):
            theirs = (review_items.c.state == state, lookable(settings, person, state))
            # Nothing but the count is asked for: an index answers that without the items, which are wide.
            asked = sa.select(sa.func.count()).select_from(review_items).where(*theirs)
            count += connection.execute(asked.where(*_conditions(review_items.c, filters))).scalar_one()
    return count


Facets = dict[str, list[tuple[Any, ...]]]

#: What is counted: by which filter it is left out, and by which column.
_FACETS: Final = {
    "date": ("dates", "date"),
    "category": ("categories", "category_path"),
    "label": ("labels", "label_id"),
    "decision": ("decisions", "shown_because"),
    "reason": ("reasons", "decision_reason"),
}


def facets(settings: Settings, person: str, filters: Filters) -> Facets:
    """How many items wait for a look of ``person`` under each value of each filter, with all other filters in force.

    Returns:
        For ``date``, ``category`` (first level, and first two), ``decision`` and ``reason``: values and counts; for
        ``label``: label id, name and count. Dates newest first, all others by count.

    Raises:
        UnavailableError: when the database does not answer.
    """
    names = [column for _, column in _FACETS.values()]
    states = _states(filters, WAITING)
    asked = sa.select(*(review_items.c[name] for name in (*names, "label_zh")))
    theirs = ((review_items.c.state == state) & lookable(settings, person, state) for state in states)
    # One pass over the items, which are wide; each facet counts what all filters but its own let pass.
    waiting = asked.where(review_items.c.state.in_(states), sa.or_(sa.false(), *theirs)).cte("waiting")
    counted = [_counted(waiting, name, filters) for name in _FACETS]
    with database.reading(settings) as connection:
        rows = connection.execute(sa.union_all(*counted)).all()
    return {name: _listed(name, [row for row in rows if row.facet == name]) for name in _FACETS}


def _counted(waiting: sa.CTE, name: str, filters: Filters) -> sa.Select[Any]:
    own, by = _FACETS[name]
    column = waiting.c[by]
    label = sa.func.max(waiting.c.label_zh) if name == "label" else sa.cast(sa.null(), sa.Text)
    asked = sa.select(
        sa.literal(name).label("facet"), column.label("value"), label.label("name"), sa.func.count().label("number")
    )
    passing = _conditions(waiting.c, replace(filters, **{own: ()}))
    return asked.where(column.is_not(None), *passing).group_by(column)


def _listed(name: str, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    found: Counter[str] = Counter()
    for row in rows:
        for value in _values(name, row.value):
            found[value] += row.number
    if name == "date":
        return sorted(found.items(), reverse=True)
    pairs = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    if name != "label":
        return list(pairs)
    names = {row.value: row.name or row.value for row in rows}
    return [(value, names[value], count) for value, count in pairs]


def _values(name: str, value: str) -> set[str]:
    """What a column's value counts for, under a facet."""
    if name == "category":
        levels = value.split(" > ")
        return {levels[0], " > ".join(levels[:2])} - {""}
    return {reason_of(value)} - {""} if name == "reason" else {value}


def _asked(filters: Filters, state: str) -> bool:
    return not filters.states or state in filters.states


def _passing(filters: Filters) -> sa.Select[Any]:
    """Items that pass all filters but that of states: what :func:`_take` goes by."""
    columns = review_items.c
    asked = sa.select(columns.content_sha256, columns.state, columns.value, sa.false().label("own"))
    return asked.where(*_conditions(columns, filters))


def _conditions(columns: Any, filters: Filters) -> Iterator[sa.ColumnElement[bool]]:
    """All filters but that of states, over columns named as those of items."""
    if filters.dates:
        yield columns.date.in_(filters.dates)
    if filters.labels:
        yield columns.label_id.in_(filters.labels)
    if filters.decisions:
        yield columns.shown_because.in_(filters.decisions)
    if filters.categories:
        yield sa.or_(*(_begins(columns.category_path, path, (" > ",)) for path in filters.categories))
    if filters.reasons:
        yield sa.or_(*(_begins(columns.decision_reason, one_, (":", ";")) for one_ in filters.reasons))


def _begins(column: sa.ColumnElement[Any], text: str, breaks: Sequence[str]) -> sa.ColumnElement[bool]:
    """Whether a text is ``text``, or goes on with one of ``breaks``. SQLite's LIKE would not tell a from A."""
    following = (sa.func.substr(column, 1, len(text) + len(mark)) == text + mark for mark in breaks)
    return sa.or_(column == text, *following)


def _free(asked: sa.Select[Any], person: str, moment: datetime) -> sa.Select[Any]:
    """Without what somebody else looks at."""
    columns = review_items.c
    return asked.where(sa.or_(columns.leased_by.is_(None), columns.leased_by == person, columns.leased_until <= moment))


def lookable(settings: Settings, person: str, state: str) -> sa.ColumnElement[bool]:
    """Whether an item of ``state``, of a query over ``review_items``, is for ``person`` to look at.

    It is not once they have had a look and somebody else is to judge; an admin may settle any dispute.
    """
    if state in FRESH or (state == DISPUTED and role(settings, person) == Role.ADMIN):
        return sa.true()
    content = review_items.c.content_sha256
    held = sa.select(review_opinions.c.answer_id).where(
        review_opinions.c.content_sha256 == content,
        review_opinions.c.person == person,
        review_opinions.c.withdrawn_at.is_(None),
    )
    return ~held.exists() & ~_said(person)


def _own_last(asked: sa.Select[Any], person: str) -> sa.Select[Any]:
    """What ``person`` said something of themselves after all else: they did not know the right label."""
    columns = review_items.c
    own = _said(person)
    return asked.with_only_columns(columns.content_sha256, columns.state, columns.value, own.label("own")).order_by(own)


def _said(person: str) -> sa.Exists:
    """Whether an answer of ``person`` to an item is in force."""
    said = answers.in_force_rows().where(corrections.c.answered_by == person)
    return said.where(corrections.c.content_sha256 == review_items.c.content_sha256).exists()
