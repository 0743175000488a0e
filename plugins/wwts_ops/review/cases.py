"""All that is known of the contents of one request, read and written in one transaction in which nobody else answers.

What is decided happens in memory first, so that one action of a request sees what the one before it did; then all of
it is written at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.corrections import LABELLED, Answer
from wwts_ops.corrections.answers import Appender
from wwts_ops.database import corrections, label_proposals, review_items, review_marks, review_opinions
from wwts_ops.review.outcomes import OVERRULED, RETIRED, TAKEN_BACK, WITHDRAWN

_SPOKEN = tuple(name for name in Answer.__dataclass_fields__ if name != "answered_at")

Verdict = tuple[str, frozenset[str]]


def verdict(kind: str, labels: Sequence[str]) -> Verdict:
    """What two people must have in common to agree: the primary label and all others, or the kind."""
    return (labels[0], frozenset(labels)) if kind in LABELLED else (kind, frozenset())


@dataclass(frozen=True)
class Said:
    """An answer that stands: not weak, not taken back. ``number`` is None until it is written."""

    number: int | None
    answer_id: str
    answered_at: datetime
    answered_by: str
    kind: str
    labels: tuple[str, ...]
    labels_before: tuple[str, ...]
    image_id: str | None


@dataclass(frozen=True)
class Opinion:
    """A look that did not settle its content alone, and was not withdrawn; columns as in ``review_opinions``.

    ``answer`` is the answer that was given, with ``round`` (the id of the look with which its round began, even if
    that was withdrawn) and the wishes ``badcase``, ``never_regress`` and ``later``.
    """

    answer_id: str
    content_sha256: str
    person: str
    said_at: datetime
    place: int
    answer: Mapping[str, Any]
    agrees: bool | None

    @property
    def round(self) -> str:
        """The id of the look with which its round began."""
        return str(self.answer["round"])

    @property
    def verdict(self) -> Verdict:
        """See :func:`verdict`."""
        return verdict(self.answer["kind"], self.answer["labels"])

    def spoken(self, answer_id: str | None = None) -> Answer:
        """The answer itself, to be recorded under an id of its own if its first one is taken."""
        kept = {name: self.answer[name] for name in _SPOKEN}
        lists = {name: tuple(kept[name]) for name in ("labels", "labels_before")}
        return Answer(**{**kept, **lists, "answered_at": self.said_at, "answer_id": answer_id or self.answer_id})


@dataclass(frozen=True)
class First:
    """The look that others are compared with: an opinion, or (of a blind second look) an answer in force."""

    answer_id: str
    round: str
    person: str
    verdict: Verdict
    opinion: Opinion | None


@dataclass
class Case:
    """One content.

    Attributes:
        content: its SHA-256.
        item: its row in ``review_items``, or None.
        said: answers that stand, oldest first.
        opinions: opinions that stand, oldest first.
        taken: ids of its answers, those that were taken back too.
    """

    content: str
    item: dict[str, Any] | None = None
    said: list[Said] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    @property
    def in_force(self) -> Said | None:
        """The answer that counts."""
        return self.said[-1] if self.said else None

    @property
    def state(self) -> str:
        """Of the item; ``done`` for what is none."""
        return "done" if self.item is None else str(self.item["state"])

    def first(self) -> First | None:
        """With what a second look is compared."""
        begun = [opinion for opinion in self.opinions if opinion.place == 1]
        spoken, answered = (begun[-1] if begun else None), self.in_force
        if spoken is not None and (answered is None or (self.item or {}).get("needed") == 2):
            return First(spoken.answer_id, spoken.round, spoken.person, spoken.verdict, spoken)
        if answered is not None:
            return First(
                answered.answer_id,
                answered.answer_id,
                answered.answered_by,
                verdict(answered.kind, answered.labels),
                None,
            )
        return None

    def later_looks(self, began: str) -> list[Opinion]:
        """The second and third look of the round that ``began`` with that id, by place."""
        mates = [one for one in self.opinions if one.round == began and one.place > 1]
        return sorted(mates, key=lambda one: one.place)

    def forget(self, gone: Iterable[Said]) -> None:
        """As if those answers had not been given."""
        numbers = {one.number for one in gone}
        self.said = [one for one in self.said if one.number not in numbers]


@dataclass
class Desk:
    """Cases, and what shall be written of them."""

    appender: Appender
    person: str
    now: datetime
    lease: timedelta
    cases: dict[str, Case] = field(default_factory=dict)
    _answers: list[Answer] = field(default_factory=list)
    _items: dict[str, dict[str, Any]] = field(default_factory=dict)
    _opinions: list[dict[str, Any]] = field(default_factory=list)
    _changes: list[sa.Update] = field(default_factory=list)
    _marks: dict[str, dict[str, Any]] = field(default_factory=dict)
    _proposals: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, appender: Appender, person: str, lease_minutes: float) -> Desk:
        """An empty one. ``person`` is who acts; what waits again is theirs for ``lease_minutes``, if above 0."""
        return cls(appender, person, database.now(appender.connection), timedelta(minutes=lease_minutes))

    def load(self, contents: Iterable[str]) -> None:
        """Reads those cases that are not there yet; nobody else changes their items until the transaction ends."""
        wanted = sorted(set(contents) - self.cases.keys())
        self.cases |= {content: Case(content) for content in wanted}
        for chunk in database.chunks(wanted):
            self._load_items(chunk)
            self._load_said(chunk)
            self._load_opinions(chunk)

    def record(self, case: Case, answer: Answer) -> None:
        """An answer that counts from now on."""
        self._answers.append(answer)
        case.taken.add(answer.answer_id)
        if answer.kind != "retract":
            case.said.append(_said(None, vars(answer)))

    def retract(self, case: Case, gone: Sequence[Said], comment: str | None = None) -> None:
        """Takes answers back."""
        for one in gone:
            assert one.number is not None, one
            answer = Answer(
                answer_id=f"retract:{one.number}",  # of two at once, one does
                answered_at=self.now,
                answered_by=self.person,
                image_id=one.image_id,
                content_sha256=case.content,
                kind="retract",
                labels_before=one.labels,
                comment=comment,
                source="page",
                shown_because="retract",
                retracts=one.number,
            )
            self.record(case, answer)
        case.forget(gone)

    def opine(self, case: Case, answer: Answer, place: int, more: Mapping[str, Any]) -> Opinion:
        """An opinion; ``more`` is kept with its answer (and ``agrees`` beside it)."""
        kept = {name: getattr(answer, name) for name in _SPOKEN} | {k: v for k, v in more.items() if k != "agrees"}
        opinion = Opinion(answer.answer_id, case.content, answer.answered_by, self.now, place, kept, more.get("agrees"))
        case.opinions.append(opinion)
        self._opinions.append({**vars(opinion), "withdrawn_at": None})
        return opinion

    def withdraw(self, case: Case, opinion: Opinion) -> None:
        """Takes an opinion back."""
        case.opinions.remove(opinion)
        self._change_opinion(opinion, withdrawn_at=self.now)

    def move(self, case: Case, opinion: Opinion, place: int) -> None:
        """Gives an opinion another place, where it is compared with nothing yet."""
        case.opinions[case.opinions.index(opinion)] = replace(opinion, place=place, agrees=None)
        self._change_opinion(opinion, place=place, agrees=None)

    def settle(self, case: Case, state: str, leased_by: str | None = None) -> None:
        """Sets the state of an item; its revision grows, and whoever had it has it no longer."""
        if case.item is None:
            return
        until = None if leased_by is None else self.now + self.lease
        before = self._items.get(case.content, {}).get("revision", case.item["revision"] + 1)
        change = {"state": state, "revision": before, "leased_by": leased_by, "leased_until": until}
        case.item |= change
        self._items[case.content] = change

    def mark(self, answer: Answer, *, never_regress: bool) -> None:
        """The picture of an answer shall become a bad case, again if that was taken back."""
        row = {name: getattr(answer, name) for name in ("answer_id", "content_sha256", "image_id", "comment")}
        row |= {"labels": list(answer.labels), "person": answer.answered_by, "never_regress": never_regress}
        self._marks[answer.answer_id] = {**row, "marked_at": self.now, "done_at": None, "outcome": None}

    def unmark(self, ids: Iterable[str], outcome: str) -> None:
        """What was to become a bad case and has not yet shall not; ``outcome`` is kept with the mark."""
        waiting = review_marks.c.done_at.is_(None)
        for chunk in database.chunks(sorted(set(ids))):
            named = sa.update(review_marks).where(review_marks.c.answer_id.in_(chunk), waiting)
            self._changes.append(named.values(done_at=self.now, outcome=outcome))

    def remark(self, ids: Iterable[str]) -> None:
        """What was overruled is not any longer."""
        for chunk in database.chunks(sorted(set(ids))):
            named = sa.update(review_marks).where(
                review_marks.c.answer_id.in_(chunk), review_marks.c.outcome == OVERRULED
            )
            self._changes.append(named.values(done_at=None, outcome=None))

    def propose(self, row: Mapping[str, Any]) -> None:
        """A label that is missing."""
        self._proposals.append({**row, "person": self.person, "proposed_at": self.now, "state": "open"})

    def unpropose(self, ids: Iterable[str]) -> None:
        """Labels that were proposed with these answers, and that nobody decided on, are wanted no longer."""
        waiting = label_proposals.c.state == "open"
        for chunk in database.chunks(sorted(set(ids))):
            named = sa.update(label_proposals).where(label_proposals.c.answer_id.in_(chunk), waiting)
            self._changes.append(named.values(state="refused", decided_by=self.person, decided_at=self.now))

    def write(self) -> None:
        """All of it; to be called once, last."""
        connection = self.appender.connection
        if self._answers:
            self.appender.add(self._answers)
        for change in self._changes:
            connection.execute(change)
        marks = self._new_marks()
        tables = ((review_opinions, self._opinions), (review_marks, marks), (label_proposals, self._proposals))
        for table, rows in tables:
            if rows:
                connection.execute(sa.insert(table), rows)
        # After the answers: whoever adds one sets its item to what is usual, and what is decided here is more.
        if self._items:
            named = sa.update(review_items).where(review_items.c.content_sha256 == sa.bindparam("content"))
            rows = [{"content": content, **change} for content, change in sorted(self._items.items())]
            connection.execute(named, rows)

    def _new_marks(self) -> list[dict[str, Any]]:
        """Those that were never there; of the others, those that were taken back wait again."""
        here = self.appender.connection
        known: set[str] = set()
        for chunk in database.chunks(sorted(self._marks)):
            these = review_marks.c.answer_id.in_(chunk)
            known.update(here.execute(sa.select(review_marks.c.answer_id).where(these)).scalars())
            again = sa.update(review_marks).where(
                these, review_marks.c.outcome.in_((TAKEN_BACK, OVERRULED, WITHDRAWN, RETIRED))
            )
            here.execute(again.values(done_at=None, outcome=None))
        return [row for answer_id, row in self._marks.items() if answer_id not in known]

    def _change_opinion(self, opinion: Opinion, **values: Any) -> None:
        named = sa.update(review_opinions).where(review_opinions.c.answer_id == opinion.answer_id)
        self._changes.append(named.values(**values))

    def _load_items(self, contents: Sequence[str]) -> None:
        # In this order, so that two who lock several never wait for each other.
        asked = sa.select(review_items).where(review_items.c.content_sha256.in_(contents))
        ordered = asked.order_by(review_items.c.content_sha256).with_for_update()
        for row in self.appender.connection.execute(ordered).mappings():
            self.cases[row["content_sha256"]].item = dict(row)

    def _load_said(self, contents: Sequence[str]) -> None:
        asked = sa.select(corrections).where(corrections.c.content_sha256.in_(contents), ~corrections.c.weak)
        rows = self.appender.connection.execute(asked.order_by(corrections.c.number)).mappings().all()
        gone = {row["retracts"] for row in rows}
        for row in rows:
            case = self.cases[row["content_sha256"]]
            case.taken.add(row["answer_id"])
            if row["kind"] != "retract" and row["number"] not in gone:
                case.said.append(_said(row["number"], dict(row)))

    def _load_opinions(self, contents: Sequence[str]) -> None:
        asked = sa.select(review_opinions).where(review_opinions.c.content_sha256.in_(contents))
        ordered = asked.order_by(review_opinions.c.said_at, review_opinions.c.place)
        for row in self.appender.connection.execute(ordered).mappings():
            case = self.cases[row["content_sha256"]]
            if row["withdrawn_at"] is None:
                case.opinions.append(Opinion(**{name: row[name] for name in Opinion.__dataclass_fields__}))


def _said(number: int | None, row: Mapping[str, Any]) -> Said:
    kept = {name: row[name] for name in Said.__dataclass_fields__ if name != "number"}
    return Said(number, **{**kept, **{name: tuple(kept[name]) for name in ("labels", "labels_before")}})
