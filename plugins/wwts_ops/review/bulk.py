"""Taking back many answers at once, by person, time and label: one bad morning. First a preview, then just that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from wwts_ops import database, events
from wwts_ops.corrections.answers import appending, in_force_rows
from wwts_ops.database import corrections, review_items, review_opinions
from wwts_ops.errors import WwtsError
from wwts_ops.review import proposals, undoing
from wwts_ops.review.cases import Desk
from wwts_ops.settings import Settings

_SAMPLES = 24
#: Answers that people gave on the pages, and what accepted proposals made of them.
_SOURCES = ("page", proposals.SOURCE)


@dataclass(frozen=True)
class Selection:
    """Answers that ``person`` gave on the page from ``since`` until before ``until`` (both with a time zone).

    With a ``label_id``, only those that gave this label, or that were given where the model showed it.
    """

    person: str
    since: datetime
    until: datetime
    label_id: str | None = None

    def __post_init__(self) -> None:
        if not self.person.strip():
            raise WwtsError("请选择要撤回谁的答案。")
        if self.since.tzinfo is None or self.until.tzinfo is None or self.since >= self.until:
            raise WwtsError("时间范围不对：开始时间要早于结束时间。")


class ChangedError(WwtsError):
    """What was previewed is not what would be taken back now."""


@dataclass(frozen=True)
class Seen:
    """What a preview went by, to be given to :func:`take_back`.

    Attributes:
        count: contents whose answer would be taken back, opinions that wait for somebody else among them.
        upto: number of the last answer that was looked at.
        at: when it was looked at, by the database's clock: opinions have no number.
    """

    count: int
    upto: int
    at: datetime

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise WwtsError("预览的时间不对，请重新预览。")


@dataclass(frozen=True)
class Preview(Seen):
    """What would be taken back; :class:`Seen`, and what to show of it.

    Attributes:
        labels: what those answers said, most frequent first: (label id, contents); answers without a label count
            under the label that was shown, or "".
        samples: some of the contents, newest first.
        already: answers of the selection that are in force no longer: taken back or replaced before.
    """

    count: int
    upto: int
    labels: list[tuple[str, int]]
    samples: list[str]
    already: int


@dataclass(frozen=True)
class _Found:
    """One answer or opinion of a selection; ``number`` is None for an opinion; ``stands``: it counts now."""

    answer_id: str
    content: str
    at: datetime
    number: int | None
    label_id: str
    stands: bool


def preview(settings: Settings, selection: Selection) -> Preview:
    """What :func:`take_back` would do.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.looking(settings) as connection:
        at = database.now(connection)
        upto = connection.execute(sa.select(sa.func.max(corrections.c.number))).scalar_one() or 0
        found = _found(connection, selection, upto, at)
    counting = {one.content: one for one in found if one.stands}
    labels = Counter(one.label_id for one in counting.values())
    return Preview(
        count=len(counting),
        upto=upto,
        at=at,
        labels=sorted(labels.items(), key=lambda pair: (-pair[1], pair[0])),
        samples=list(reversed(counting))[:_SAMPLES],
        already=sum(one.content not in counting for one in found),
    )


def take_back(settings: Settings, admin: str, selection: Selection, seen: Seen) -> int:
    """Takes back what a preview showed, in one transaction, and writes down who did it; how many contents it was.

    Of each content whose answer in force is in the selection (or was needed for it, where two must agree), all answers
    of the selection go, with what came of labels that they proposed; what somebody else said before counts again.

    Args:
        settings: the database.
        admin: who takes them back; that they may is not checked here.
        selection: whose answers.
        seen: the preview: answers with a higher number stay, and opinions that were said later.

    Raises:
        ChangedError: when that are not as many as the preview said, as after having been taken back once.
        UnavailableError: when the database does not answer; nothing is taken back then.
    """
    with appending(settings) as appender:
        found = _found(appender.connection, selection, seen.upto, seen.at)
        counting = {one.content for one in found if one.stands}
        if len(counting) != seen.count:
            raise ChangedError(f"预览之后情况有变化：现在会撤回 {len(counting):,} 条，请重新预览后再撤回。")
        gone = [one for one in found if one.content in counting]
        if not gone:
            return 0
        desk = Desk.of(appender, admin, 0)
        desk.load(counting)
        for one in reversed(gone):
            undoing.remove(desk, desk.cases[one.content], one.answer_id, f"批量撤回：{selection.person}")
        undoing.close(desk, [one.answer_id for one in gone])
        desk.write()
        events.record(
            appender.connection, admin, events.TOOK_BACK, selection.person, _detail(selection, seen.upto, gone)
        )
    return len(counting)


def _found(connection: sa.Connection, selection: Selection, upto: int, at: datetime) -> list[_Found]:
    """Answers and waiting opinions of a selection, oldest first."""
    found = [*_answers(connection, selection, upto), *_opinions(connection, selection, at)]
    return sorted(found, key=lambda one: (one.at, one.number or 0))


def _answers(connection: sa.Connection, selection: Selection, upto: int) -> Iterator[_Found]:
    given = (
        corrections.c.source.in_(_SOURCES)
        & (corrections.c.kind != "retract")
        & (corrections.c.answered_by == selection.person)
        & (corrections.c.answered_at >= selection.since)
        & (corrections.c.answered_at < selection.until)
        & (corrections.c.number <= upto)
    )
    counting = _counting(connection, sa.select(corrections.c.content_sha256).where(given))
    for row in map(dict, connection.execute(sa.select(corrections).where(given)).mappings()):
        if _wanted(selection, row):
            first, content, at = (row[name] for name in ("answer_id", "content_sha256", "answered_at"))
            yield _Found(undoing.first_id(first), content, at, row["number"], _label(row), row["number"] in counting)


def _counting(connection: sa.Connection, contents: sa.Select[Any]) -> set[int]:
    """Numbers of the answers in force of ``contents``, and of those that somebody had to agree with for that."""
    standing = in_force_rows().with_only_columns(
        corrections.c.content_sha256, corrections.c.number, corrections.c.answer_id
    )
    standing = standing.where(corrections.c.content_sha256.in_(contents))
    columns = (review_opinions.c.content_sha256, review_opinions.c.answer_id, review_opinions.c.answer)
    looks = sa.select(*columns).where(
        review_opinions.c.content_sha256.in_(contents), review_opinions.c.withdrawn_at.is_(None)
    )
    rounds = {(content, undoing.origin(one)): answer["round"] for content, one, answer in connection.execute(looks)}
    newest: dict[str, tuple[int, str]] = {}
    counting: set[int] = set()
    for content, number, answer_id in connection.execute(standing.order_by(corrections.c.number.desc())):
        # What an accepted proposal made of an answer counts with it.
        came_of = undoing.origin(answer_id)
        began = undoing.origin(rounds.get((content, came_of), came_of))
        last = newest.setdefault(content, (number, began))
        if last[0] == number or last[1] == began:
            counting.add(number)
    return counting


def _opinions(connection: sa.Connection, selection: Selection, at: datetime) -> Iterator[_Found]:
    """Those that still wait for somebody else: what was settled with them is an answer."""
    same = review_items.c.content_sha256 == review_opinions.c.content_sha256
    asked = sa.select(review_opinions).join(review_items, same)
    asked = asked.where(
        review_items.c.state.in_(("second", "disputed")),
        review_opinions.c.withdrawn_at.is_(None),
        review_opinions.c.person == selection.person,
        review_opinions.c.said_at >= selection.since,
        review_opinions.c.said_at < selection.until,
        review_opinions.c.said_at <= at,
    )
    for row in connection.execute(asked).mappings():
        if _wanted(selection, row["answer"]):
            yield _Found(
                row["answer_id"], row["content_sha256"], row["said_at"], None, _label(row["answer"]), stands=True
            )


def _wanted(selection: Selection, row: Mapping[str, Any]) -> bool:
    return selection.label_id is None or selection.label_id in (*row["labels"], *row["labels_before"][:1])


def _label(row: Mapping[str, Any]) -> str:
    return str(next(iter((*row["labels"], *row["labels_before"])), ""))


def _detail(selection: Selection, upto: int, gone: Sequence[_Found]) -> dict[str, Any]:
    """What a page shows of it: contents, not more than some of them."""
    contents = list(dict.fromkeys(one.content for one in gone))
    return {
        "since": selection.since.isoformat(),
        "until": selection.until.isoformat(),
        "label_id": selection.label_id,
        "upto": upto,
        "count": len(contents),
        "contents": contents[:_SAMPLES],
    }
