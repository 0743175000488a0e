"""The figures of a morning: what waits and until when, how often people and the model agree, what the audit says.

Everything is counted from the database by time windows, so that it costs the same in the first week and in the
third year.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from wwts_ops import database, planning
from wwts_ops.corrections.answers import in_force_rows
from wwts_ops.database import corrections, review_items
from wwts_ops.review import items, opinions, people
from wwts_ops.settings import Settings
from wwts_ops.shares import wilson
from wwts_ops.storage import Store
from wwts_ops.tagging import done_shards

#: Agreement is of the last week; the audit, which sees few images a night, of four.
AGREEMENT_DAYS, AUDIT_DAYS = 7, 28
#: Days back in which the last day of work is looked for: the longest Chinese holidays are nine days.
_PACE_DAYS = 14
#: Time in which somebody answered at least once counts as work: breaks do not.
_SLOT = timedelta(minutes=5)
#: A night that was due so shortly ago need not have left anything yet.
_STARTING = timedelta(minutes=10)
#: What people see because the model was not sure, or because of what it shows.
_QUEUE = ("review", "forced_review")


@dataclass(frozen=True)
class Share:
    """A share and its 95 % interval, all 0–1, or None where nothing was counted.

    Attributes:
        rate: the share.
        low: of the interval.
        high: of the interval.
        answered: what it was counted from.
        asked: what it could have been counted from: with what nobody has looked at yet.
    """

    rate: float | None
    low: float | None
    high: float | None
    answered: int
    asked: int


@dataclass(frozen=True)
class PersonDay:
    """How many pictures of the queue one person settled, today and yesterday."""

    person: str
    today: int
    yesterday: int


@dataclass(frozen=True)
class Night:
    """How the last night went.

    Attributes:
        date: on which the schedule asked for it last; today, where there is no schedule.
        state: ``done``; ``unfinished``, when a plan is not; ``absent``, when neither a plan nor a page is there though
            the schedule asked for one; ``unplanned``, when there is no schedule.
        images: in the unfinished plans.
        shards: in the unfinished plans.
        shards_done: of ``shards``.
    """

    date: str
    state: str
    images: int = 0
    shards: int = 0
    shards_done: int = 0


@dataclass(frozen=True)
class Figures:
    """A morning in figures; times and dates are the shop's.

    Attributes:
        date: today, ISO.
        left: pictures that wait for a look of somebody who may give it.
        disputed: of these, those of which two people said different things.
        stuck: besides these, pictures that wait for another one's look, and everybody who may answer has had theirs.
        done_today: pictures of the queue that were settled today.
        done_yesterday: those of the day before.
        per_hour: settled in an hour of work on ``pace_of``; None when nobody worked in the last two weeks.
        pace_of: the last day before today on which anybody worked, ISO.
        done_by: when all will be done at that pace; None when nothing waits or no pace is known.
        agreement: how often a person confirmed the tag that was shown, of pictures of the queue in the last 7 days.
        audit: precision of the tags that go live unseen, estimated from the audit of the last 28 days.
        people: how often two people who looked blind at the same picture said the same, in the last 28 days.
        by_person: who settled how much, the most first.
        night: how the last night went.
    """

    date: str
    left: int
    disputed: int
    stuck: int
    done_today: int
    done_yesterday: int
    per_hour: float | None
    pace_of: str | None
    done_by: datetime | None
    agreement: Share
    audit: Share
    people: Share
    by_person: tuple[PersonDay, ...]
    night: Night


def today(settings: Settings, store: Store, now: datetime) -> Figures:
    """The figures at ``now`` (aware).

    Raises:
        UnavailableError: when the database or the store does not answer.
    """
    database.upgrade(settings)
    now = now.astimezone(ZoneInfo(settings.timezone))
    with database.reading(settings) as connection:
        counted = _counted(connection, settings, now)
    return Figures(date=now.date().isoformat(), night=night(settings, store, now), **counted)


def night(settings: Settings, store: Store, now: datetime) -> Night:
    """How the last night that was due went, as far as the store tells.

    Raises:
        UnavailableError: when the store does not answer.
    """
    now = now.astimezone(ZoneInfo(settings.timezone))
    due = _last_due(settings, now)
    day = (due or now).date().isoformat()
    open_plans = planning.unfinished(store)
    if open_plans:
        done = sum(len(done_shards(store, plan)) for plan in open_plans)
        images, shards = (sum(getattr(plan, name) for plan in open_plans) for name in ("images", "shards"))
        return Night(day, "unfinished", images, shards, done)
    # Without anything new there is no plan, but always a page; what was run by hand since then will do.
    since = (now.date() - timedelta(days=ago) for ago in range((now.date() - date.fromisoformat(day)).days + 1))
    if any(store.exists(f"reports/date={one.isoformat()}/index.html") for one in since):
        return Night(day, "done")
    return Night(day, "unplanned" if due is None else "absent")


def weighted(seen: Iterable[tuple[bool, float]], waiting: int) -> Share:
    """The share of True among all that could have been sampled, from a sample of unequal probabilities.

    Each answer stands for 1 / its probability of having been sampled (D. G. Horvitz and D. J. Thompson, "A
    Generalization of Sampling Without Replacement From a Finite Universe", JASA 47 (1952)), over the sum of these
    weights (J. Hájek, 1971). The interval is Wilson's at the effective number of answers, (Σw)² / Σw² (L. Kish,
    "Survey Sampling", 1965): unequal weights tell less than as many equal ones.

    Args:
        seen: what was found, and the probability (above 0, up to 1) with which it was sampled.
        waiting: sampled, not yet answered.
    """
    rows = [(right, 1 / probability) for right, probability in seen]
    if not rows:
        return Share(None, None, None, 0, waiting)
    total, squares = sum(weight for _, weight in rows), sum(weight * weight for _, weight in rows)
    rate = sum(weight for right, weight in rows if right) / total
    return Share(rate, *wilson(rate, total * total / squares), len(rows), len(rows) + waiting)


def _counted(connection: sa.Connection, settings: Settings, now: datetime) -> dict[str, Any]:
    waiting, states = _waiting(connection), _waiting(connection, _awaited(settings))
    left = states.total()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    looks = _looks(connection, midnight - timedelta(days=1), now)
    mine = [look for look in looks if look.answered_at >= midnight]
    before = [look for look in looks if look.answered_at < midnight]
    pace = _pace(connection, midnight)
    agreed = opinions.agreement(connection, now - timedelta(days=AUDIT_DAYS))
    return {
        "left": left,
        "disputed": states["disputed"],
        "stuck": waiting.total() - left,
        "done_today": _contents(mine),
        "done_yesterday": _contents(before),
        "per_hour": round(pace.per_hour, 1) if pace else None,
        "pace_of": pace.day.isoformat() if pace else None,
        # Before today's first answer, counted from when people usually begin.
        "done_by": pace.done_by(left, now if mine else max(now, pace.begins(now))) if pace and left else None,
        "agreement": _agreement(connection, now - timedelta(days=AGREEMENT_DAYS)),
        "audit": _audit(connection, now - timedelta(days=AUDIT_DAYS)),
        "people": _plain(agreed.agree, agreed.pairs),
        "by_person": _by_person(mine, before),
    }


def _grouped(connection: sa.Connection, asked: sa.Select[Any]) -> Counter[Any]:
    """The counts that ``asked`` gives, by its first column."""
    return Counter({row[0]: row[1] for row in connection.execute(asked)})


def _waiting(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Counter[str]:
    """How many items wait in each state."""
    state = review_items.c.state
    asked = sa.select(state, sa.func.count()).where(state.in_(items.WAITING), *conditions)
    return _grouped(connection, asked.group_by(state))


def _awaited(settings: Settings) -> sa.ColumnElement[bool]:
    """Whether anybody may look: at what is fresh, whoever there is."""
    theirs = [
        (review_items.c.state == state) & items.lookable(settings, person, state)
        for state in (items.SECOND, items.DISPUTED)
        for person in sorted(people.staff(settings))
    ]
    return sa.or_(review_items.c.state.in_((items.OPEN, items.LATER)), *theirs)


def _standing(*columns: Any) -> sa.Select[Any]:
    """``columns`` of the answers that nobody took back."""
    return in_force_rows().with_only_columns(*columns)


def _looks(connection: sa.Connection, since: datetime, until: datetime) -> Sequence[Any]:
    """Answers that were given on the page of what is or was in the queue, by time."""
    asked = (
        _standing(corrections.c.answered_at, corrections.c.answered_by, corrections.c.content_sha256)
        .join(review_items, review_items.c.content_sha256 == corrections.c.content_sha256)
        .where(corrections.c.source == "page")
        .where(corrections.c.answered_at >= since, corrections.c.answered_at < until)
        .order_by(corrections.c.answered_at)
    )
    return connection.execute(asked).all()


def _contents(looks: Iterable[Any]) -> int:
    return len({look.content_sha256 for look in looks})


def _by_person(mine: Iterable[Any], before: Iterable[Any]) -> tuple[PersonDay, ...]:
    counts = [Counter(person for person, _ in {(look.answered_by, look.content_sha256) for look in looks})
              for looks in (mine, before)]  # fmt: skip
    days = [PersonDay(person, counts[0][person], counts[1][person]) for person in counts[0].keys() | counts[1].keys()]
    return tuple(sorted(days, key=lambda day: (-day.today, -day.yesterday, day.person)))


@dataclass(frozen=True)
class _Pace:
    """How fast all people together were on ``day``, and when on that day they began."""

    day: date
    per_hour: float
    began: datetime

    def begins(self, now: datetime) -> datetime:
        """When people begin today, if they do so at the same time."""
        return datetime.combine(now.date(), self.began.astimezone(now.tzinfo).time(), now.tzinfo)

    def done_by(self, left: int, start: datetime) -> datetime:
        """When ``left`` are done by who begins at ``start``, up to the minute."""
        end = start + timedelta(hours=left / self.per_hour)
        return (end + timedelta(seconds=59)).replace(second=0, microsecond=0)


def _pace(connection: sa.Connection, midnight: datetime) -> _Pace | None:
    asked = _standing(sa.func.max(corrections.c.answered_at)).where(
        corrections.c.source == "page",
        corrections.c.answered_at < midnight,
        corrections.c.answered_at >= midnight - timedelta(days=_PACE_DAYS),
    )
    last = connection.execute(asked).scalar()
    if last is None:
        return None
    start = last.astimezone(midnight.tzinfo).replace(hour=0, minute=0, second=0, microsecond=0)
    looks = _looks(connection, start, start + timedelta(days=1))
    if not looks:
        return None
    slots = {int(look.answered_at.timestamp() // _SLOT.total_seconds()) for look in looks}
    hours = len(slots) * _SLOT / timedelta(hours=1)
    return _Pace(start.date(), _contents(looks) / hours, looks[0].answered_at)


def _agreement(connection: sa.Connection, since: datetime) -> Share:
    """A picture of the queue counts once, by the last that was said of it on the page, whoever said how much before.

    Of pictures that people call bad it is not known whether the tag was right: they are not counted. Nor is the audit,
    which is a figure of its own.
    """
    last = (
        _standing(sa.func.max(corrections.c.number))
        .where(corrections.c.answered_at >= since, corrections.c.source == "page")
        .where(corrections.c.shown_because.in_(_QUEUE))
        .group_by(corrections.c.content_sha256)
    )
    asked = sa.select(corrections.c.kind, sa.func.count()).where(corrections.c.number.in_(last))
    counts = _grouped(connection, asked.where(corrections.c.kind != "reject_image").group_by(corrections.c.kind))
    return _plain(counts["confirm"], counts.total())


def _plain(part: int, whole: int) -> Share:
    if not whole:
        return Share(None, None, None, 0, 0)
    return Share(part / whole, *wilson(part / whole, whole), whole, whole)


def _audit(connection: sa.Connection, since: datetime) -> Share:
    """Of the contents that were sampled: whether the answer in force, from wherever it came, names the tag shown.

    It is per content, not per image: a picture counts once, however many images or SKUs show it. Not counted are
    pictures that people call bad, which say nothing of their tag; those that nobody answered, which only ``asked``
    counts; and those that were published no more, or became sure, before anybody looked.
    """
    rows = connection.execute(_sampled(since)).all()
    known = connection.execute(_sampled_once(since)).all()
    answered = [row for row in (*rows, *known) if row.kind is not None]
    seen = [(_right(row), row.probability) for row in answered if row.kind != "reject_image"]
    return weighted(seen, sum(row.kind is None and row.state != "done" for row in rows))


def _sampled(since: datetime) -> sa.Select[Any]:
    """Sampled contents that a night since then found, that were answered since or wait still: the tag that was shown,
    and the answer in force (or None); what a file answers may be dated long before.
    """
    force = corrections.alias()
    columns = (
        review_items.c.state,
        review_items.c.label_id.label("shown"),
        review_items.c.sampling_probability.label("probability"),
        *(force.c[name] for name in ("kind", "labels", "labels_before")),
    )
    joined = review_items.outerjoin(force, force.c.number == _in_force_of(review_items.c.content_sha256))
    asked = sa.select(*columns).select_from(joined)
    recent = (review_items.c.date >= since.date().isoformat()) | (force.c.answered_at >= since)
    return asked.where(review_items.c.shown_because == "audit", recent | force.c.number.is_(None))


def _sampled_once(since: datetime) -> sa.Select[Any]:
    """Sampled contents whose items are forgotten (``WWTS_KEEP_DAYS`` may be few), as their answers tell of them."""
    given, force = corrections.alias(), corrections.alias()
    same = given.c.content_sha256 == force.c.content_sha256
    first = (
        _standing(sa.func.min(corrections.c.number))
        .where(corrections.c.shown_because == "audit", corrections.c.answered_at >= since)
        .where(corrections.c.sampling_probability.is_not(None))
        .where(~sa.exists().where(review_items.c.content_sha256 == corrections.c.content_sha256))
        .group_by(corrections.c.content_sha256)
    )
    columns = (
        given.c.labels_before[0].as_string().label("shown"),
        given.c.sampling_probability.label("probability"),
        *(force.c[name] for name in ("kind", "labels", "labels_before")),
    )
    asked = sa.select(*columns).select_from(given.join(force, same))
    return asked.where(given.c.number.in_(first), force.c.number == _in_force_of(given.c.content_sha256))


def _in_force_of(content: sa.ColumnElement[str]) -> sa.ScalarSelect[Any]:
    """Number of the answer in force of ``content``."""
    said = corrections.alias()
    retracts = corrections.alias()
    taken_back = sa.exists().where(retracts.c.retracts == said.c.number)
    latest = sa.select(sa.func.max(said.c.number)).where(said.c.content_sha256 == content, ~said.c.weak)
    return latest.where(said.c.kind != "retract", ~taken_back).scalar_subquery()


def _right(row: sa.Row[Any]) -> bool:
    """Whether the tag that was shown is among those that the person gave; or was, before labels were merged."""
    return row.shown in row.labels or (row.kind == "confirm" and row.labels_before[:1] == [row.shown])


def _last_due(settings: Settings, now: datetime) -> datetime | None:
    """When the schedule asked for a night last: today early in the morning, yesterday evening or before a holiday."""
    if settings.schedule == "none":
        return None
    from croniter import croniter  # type: ignore[import-untyped]  # Airflow's own reader of such lines

    due: datetime = croniter(settings.schedule, now - _STARTING).get_prev(datetime)
    return due
