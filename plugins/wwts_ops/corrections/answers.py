"""Answers of people: an append-only table, and which of them are in force.

An answer is about a content, so that one answer settles all images that are the same bytes. Numbers grow in the order
in which answers are committed: all up to a number is the same for ever, which is what a training freezes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.database import corrections, review_items
from wwts_ops.digest import SHA256
from wwts_ops.errors import WwtsError
from wwts_ops.images import REASONS
from wwts_ops.records import ANSWERS
from wwts_ops.settings import Settings

KINDS = ("confirm", "correct", "wrong_unknown", "reject_image", "retract")
#: Of these the answer is a label.
LABELLED = frozenset({"confirm", "correct"})

#: Neither PostgreSQL nor a page can hold these; line breaks in a comment are none of them.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
#: Rows that are written or read at a time.
_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a person said of an image, or rather of its content.

    Attributes:
        answer_id: the writer's own id: an answer whose id is there already is not added again.
        answered_at: with a time zone.
        answered_by: who said it.
        image_id: the image that was shown; None when only the content is known.
        content_sha256: 64 hex digits.
        kind: one of ``KINDS``.
        labels_before: label ids that consumers or the person saw, best first.
        labels: label ids that are right, the primary first; none unless the kind is in ``LABELLED``.
        comment: the person's own words.
        reason: of ``reject_image``: a quarantine reason code, a key of ``images.REASONS``.
        source: where it was said: ``import``, ``page`` or another writer.
        weak: an old tag, which never overrides anything.
        shown_because: why the image was shown: ``import``, ``review``, ``forced_review``, ``audit`` or other.
        sampling_probability: chance of the image to be shown, above 0 up to 1; None when unknown.
        retracts: number of the answer that a ``retract`` takes back.
        model_version: whose tags were shown.
        confidence: of the shown tag, 0–1.

    Raises:
        WwtsError: when it contradicts itself.
    """

    answer_id: str
    answered_at: datetime
    answered_by: str
    content_sha256: str
    kind: str
    source: str
    shown_because: str
    image_id: str | None = None
    labels_before: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    comment: str | None = None
    reason: str | None = None
    weak: bool = False
    sampling_probability: float | None = None
    retracts: int | None = None
    model_version: str | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        problem = next((text for wrong, text in self._checks() if wrong), None)
        if problem is not None:
            raise WwtsError(f"The answer {self.answer_id!r} {problem}.")

    def _checks(self) -> Iterator[tuple[bool, str]]:
        """What may be wrong, and whether it is; evaluated in turn, so that a later one may build on an earlier."""
        named = {"an id": self.answer_id, "who": self.answered_by, "a source": self.source, "why": self.shown_because}
        for what, text in named.items():
            yield not text.strip(), f"lacks {what}"
        yield self.answered_at.tzinfo is None, "has a time without a zone"
        yield not SHA256.fullmatch(self.content_sha256), "names no content: 64 hex digits are needed"
        yield self.kind not in KINDS, f"is of kind {self.kind!r}; there are {', '.join(KINDS)}"
        yield (self.kind in LABELLED) != bool(self.labels), f"is of kind {self.kind} with {len(self.labels)} labels"
        yield len(set(self.labels)) != len(self.labels), "names a label twice"
        yield not all(self.labels), "has a label without an id"
        yield (self.kind == "retract") != (self.retracts is not None), "must be a retract that says of which answer"
        yield self.reason is not None and self.kind != "reject_image", f"is of kind {self.kind}, which has no reason"
        yield self.reason is not None and self.reason not in REASONS, f"has no known reason ({self.reason!r})"
        probability = self.sampling_probability
        yield probability is not None and not 0 < probability <= 1, f"has the probability {probability}, not 0 to 1"
        texts = (self.answer_id, self.answered_by, self.image_id, self.comment, *self.labels, *self.labels_before)
        yield any(CONTROL.search(text or "") for text in texts), "holds a control character"


@dataclass(frozen=True)
class Recorded:
    """How many answers were added, and how many were there already."""

    added: int
    unchanged: int


def record(settings: Settings, answers: Sequence[Answer]) -> Recorded:
    """Adds answers in the given order, all or none; those whose ``answer_id`` is there already stay as they are.

    Raises:
        WwtsError: when one retracts what is no answer of its content.
        UnavailableError: when the database does not answer.
    """
    if not answers:
        return Recorded(0, 0)
    database.upgrade(settings)
    with appending(settings) as appender:
        return appender.add(answers)


@dataclass(frozen=True)
class Appender:
    """One transaction in which nobody else adds answers.

    Attributes:
        connection: of the transaction.
        latest: the highest number there was when it began.
    """

    connection: sa.Connection
    latest: int

    def add(self, answers: Sequence[Answer]) -> Recorded:
        """Adds answers, and keeps the items of the review page right; to be called once. Errors as :func:`record`."""
        single = {answer.answer_id: answer for answer in reversed(answers)}
        known = self._known(single)
        new = [answer for answer in reversed(single.values()) if answer.answer_id not in known]
        self._check_retracts(new)
        rows = [{**vars(answer), "number": number} for number, answer in enumerate(new, self.latest + 1)]
        for chunk in database.chunks(rows, _ROWS):
            self.connection.execute(sa.insert(corrections), chunk)
        _settle(self.connection, new)
        return Recorded(len(new), len(answers) - len(new))

    def _known(self, ids: dict[str, Answer]) -> set[str]:
        found: set[str] = set()
        for chunk in database.chunks(list(ids)):
            asked = sa.select(corrections.c.answer_id).where(corrections.c.answer_id.in_(chunk))
            found.update(self.connection.execute(asked).scalars())
        return found

    def _check_retracts(self, answers: Sequence[Answer]) -> None:
        wanted = {answer.retracts: answer for answer in answers if answer.retracts is not None}
        contents: dict[int, str] = {}
        for chunk in database.chunks(list(wanted)):
            asked = sa.select(corrections.c.number, corrections.c.content_sha256)
            found = self.connection.execute(
                asked.where(corrections.c.number.in_(chunk), corrections.c.kind != "retract")
            )
            contents.update((row.number, row.content_sha256) for row in found)
        for number, answer in wanted.items():
            if contents.get(number) != answer.content_sha256:
                raise WwtsError(f"There is no answer {number} of content {answer.content_sha256[:12]} to retract.")


def _settle(connection: sa.Connection, new: Sequence[Answer]) -> None:
    """Items of what was answered are done, those whose answer was taken back wait again; whoever wrote the answers."""
    strong = [answer for answer in new if not answer.weak]
    said = {answer.content_sha256 for answer in strong if answer.kind != "retract"}
    for chunk in database.chunks(sorted({answer.content_sha256 for answer in strong})):
        asked = sa.select(review_items).where(review_items.c.content_sha256.in_(chunk))
        # Always in the same order: two that hold items never wait for each other.
        items = connection.execute(asked.order_by(review_items.c.content_sha256).with_for_update()).all()
        answered = standing(connection, [item.content_sha256 for item in items])
        turned: dict[str, list[str]] = {}
        for item in items:
            turned.setdefault(_state(item, answered, said), []).append(item.content_sha256)
        for state, contents in turned.items():
            values = {"revision": review_items.c.revision + 1, "leased_by": None, "leased_until": None}
            these = review_items.c.content_sha256.in_(contents)
            connection.execute(sa.update(review_items).where(these).values(state=state, **values))


def _state(item: sa.Row[Any], answered: Set[str], said: Set[str]) -> str:
    """What state an item comes to; ``answered``: contents with an answer in force, ``said``: with one of these."""
    content, state = item.content_sha256, str(item.state)
    if content not in answered:
        # Where two must agree, the first one's opinion is no answer: it waits for the second as before.
        return state if state == "later" or (state in ("second", "disputed") and item.needed > 1) else "open"
    if content not in said:
        return state  # one was taken back, and another one is in force
    # An answer that was there already is looked at by somebody else: theirs is compared, and does not settle it here.
    return state if state == "second" and item.needed == 1 else "done"


def in_force_rows() -> sa.Select[Any]:
    """Numbers of all answers that are not weak, no retract and not retracted; to be narrowed down by the caller."""
    rows = sa.select(corrections.c.number).where(~corrections.c.weak, corrections.c.kind != "retract")
    return rows.where(~retracted())


def retracted() -> sa.Exists:
    """Whether an answer of a query over ``corrections`` was taken back."""
    retracts = corrections.alias()
    return sa.select(retracts.c.number).where(retracts.c.retracts == corrections.c.number).exists()


def standing(connection: sa.Connection, contents: Sequence[str]) -> set[str]:
    """Those of ``contents`` that have an answer in force."""
    found: set[str] = set()
    for chunk in database.chunks(contents):
        asked = in_force_rows().with_only_columns(corrections.c.content_sha256)
        found.update(connection.execute(asked.where(corrections.c.content_sha256.in_(chunk))).scalars())
    return found


@contextmanager
def appending(settings: Settings) -> Iterator[Appender]:
    """A transaction to add answers in, committed when the block ends, all of it or nothing."""
    with database.transaction(settings) as connection:
        if connection.dialect.name == "postgresql":
            # Readers go on. Without it a lower number could be committed after a higher one had been read.
            connection.execute(sa.text("LOCK TABLE corrections IN EXCLUSIVE MODE"))
        yield Appender(connection, _latest(connection))


def latest(settings: Settings) -> int:
    """The highest number, 0 when there is no answer.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.looking(settings) as connection:
        return _latest(connection)


def _latest(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.max(corrections.c.number))).scalar_one() or 0


def frozen(settings: Settings, upto: int | None = None) -> pa.Table:
    """All answers with a number up to ``upto`` (None: all there are now), by number; schema ``ANSWERS``.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.looking(settings) as connection:
        return read(connection, 0, upto)


def read(connection: sa.Connection, after: int, upto: int | None = None) -> pa.Table:
    """Answers with a number above ``after`` up to ``upto`` (None: without end), by number; schema ``ANSWERS``."""
    asked = sa.select(*(corrections.c[name] for name in ANSWERS.names)).order_by(corrections.c.number)
    asked = asked.where(corrections.c.number > after)
    if upto is not None:
        asked = asked.where(corrections.c.number <= upto)
    found = connection.execution_options(yield_per=_ROWS).execute(asked)
    batches = []
    for rows in found.partitions():
        columns = zip(ANSWERS, zip(*rows, strict=True), strict=True)
        batches.append(
            pa.RecordBatch.from_arrays([pa.array(cells, field.type) for field, cells in columns], schema=ANSWERS)
        )
    return pa.Table.from_batches(batches, schema=ANSWERS)


def in_force(table: pa.Table) -> pa.Table:
    """Of answers (schema ``ANSWERS``), the one that counts for each content, by number.

    That is the latest one that is not weak, not a retract and not retracted.
    """
    return _last(table.filter(pc.and_(pc.invert(table["weak"]), _standing(table))))


def changed(table: pa.Table, since: int) -> int:
    """Of answers (schema ``ANSWERS``), the contents whose answer in force is another, or gone, since number ``since``.

    A retract counts as much as an answer: either is something to learn.
    """
    then, now = in_force(table.filter(pc.field("number") <= since)), in_force(table)
    moved = [
        one.filter(pc.invert(pc.is_in(one["number"], value_set=other["number"])))["content_sha256"].combine_chunks()
        for one, other in ((then, now), (now, then))
    ]
    return int(pc.count_distinct(pa.concat_arrays(moved)).as_py())


def weak(table: pa.Table) -> pa.Table:
    """Of answers (schema ``ANSWERS``), the latest weak one of each content without an answer in force, by number."""
    answered = in_force(table)["content_sha256"]
    open_ = pc.invert(pc.is_in(table["content_sha256"], value_set=answered))
    return _last(table.filter(pc.and_(pc.and_(table["weak"], open_), _standing(table))))


def _standing(table: pa.Table) -> pa.ChunkedArray:
    """Which rows are answers that nobody took back."""
    retracted = pc.is_in(table["number"], value_set=table["retracts"].drop_null())
    return pc.and_(pc.not_equal(table["kind"], "retract"), pc.invert(retracted))


def _last(table: pa.Table) -> pa.Table:
    numbers = table.group_by("content_sha256").aggregate([("number", "max")])["number_max"]
    return table.filter(pc.is_in(table["number"], value_set=numbers)).sort_by("number")
