"""What people marked while they reviewed becomes bad cases, by the same way as a file that somebody imports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
import structlog

from wwts_ops import database, taxonomy
from wwts_ops.badcases import snapshots
from wwts_ops.badcases.drafts import Fault, RefusedError
from wwts_ops.badcases.importing import import_cases
from wwts_ops.badcases.snapshots import MAX_REASON, BadCase
from wwts_ops.corrections import LABELLED
from wwts_ops.corrections.answers import in_force_rows
from wwts_ops.database import corrections, review_items, review_marks, review_opinions
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.review.outcomes import ADDED, RETIRED, UNCHANGED, WAITING, WITHDRAWN, refused
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy

log = structlog.get_logger(__name__)

#: How long a picture that cannot be read is tried again: a share may be away for some days, a deleted file for good.
PATIENCE = timedelta(days=7)
_REASON = "审核时标记"
#: Why a case is retired that came of a mark; what somebody retired for another reason comes back by a new mark only.
_TAKEN_BACK, _CORRECTED = "答案已撤回", "答案已改成别的"
_COLUMNS = pa.schema([(name, pa.string()) for name in ("uri", "content_sha256", "label_id", "reason")])


@dataclass(frozen=True)
class Adopted:
    """What became of marks.

    Attributes:
        added: new bad cases.
        unchanged: were bad cases already, perhaps now such as no model may get wrong again.
        withdrawn: the answer was taken back, or another one counts, and no bad case came of it.
        retired: bad cases whose answer was taken back afterwards, or no longer counts.
        refused: cannot become bad cases; the outcome of each says why.
        waiting: their picture cannot be read at present; they are tried again for ``PATIENCE``.
    """

    added: int = 0
    unchanged: int = 0
    withdrawn: int = 0
    retired: int = 0
    refused: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class _Mark:
    """A mark, where its picture lay, and the answer in force of its content (None: there is none).

    ``gone``: what the mark was made with was taken back.
    """

    answer_id: str
    content_sha256: str
    labels: tuple[str, ...]
    never_regress: bool
    person: str
    marked_at: datetime
    comment: str | None
    outcome: str | None
    uri: str | None
    number: int | None
    kind: str | None
    said: tuple[str, ...] | None
    gone: bool

    def waits(self) -> bool:
        """Whether nobody has confirmed it yet."""
        return self.number is None and not self.gone

    def counts(self, names: Taxonomy | None) -> bool:
        """Whether the answer in force, be it somebody else's, gives the primary label that was marked.

        Of those who agree only one has the answer in force, and a blind second look has none at all.
        """
        if self.gone or self.kind not in LABELLED or not self.said:
            return False
        one, other = self.labels[0], self.said[0]
        # One of the two may have been merged into the other since.
        return one == other or (names is not None and names.given(one) == names.given(other))


def adopt(store: Store, settings: Settings) -> Adopted:
    """Makes bad cases of the marks whose answers count, and retires those whose answers no longer do.

    Each mark by itself, so that a bad one holds up no other. May be killed, and run by two at once: a mark that has
    become a case already is found to be one.

    Raises:
        UnavailableError: when the database or the store does not answer; the marks then wait.
    """
    with database.looking(settings) as connection:
        marks = [_Mark(**row) for row in connection.execute(_known()).mappings()]
        now = database.now(connection)
    names = taxonomy.current(store) if marks else None
    counting = [mark for mark in marks if mark.counts(names)]
    over = [mark for mark in marks if not mark.counts(names) and not mark.waits()]
    # First, for another mark of the same picture may count, which then makes a case of its own.
    outcomes = {mark.answer_id: _ended(store, mark) for mark in over if mark.outcome in (None, ADDED, UNCHANGED)}
    wanted = _wanted(store, counting, {mark.content_sha256 for mark in over if outcomes.get(mark.answer_id) == RETIRED})
    adoption = _Adoption(store, settings, names, now)
    for person, group in groupby(wanted, attrgetter("person")):
        outcomes |= adoption.outcomes(person, list(group))
    _note(settings, outcomes)
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    if outcomes:
        log.info("marks_adopted", **counts)
    return Adopted(**counts)


def _known() -> sa.Select[Any]:
    """Marks that may come to something else than they have, with the answer in force of their content."""
    force = corrections.alias()
    latest = in_force_rows().with_only_columns(sa.func.max(corrections.c.number))
    latest = latest.where(corrections.c.content_sha256 == review_marks.c.content_sha256)
    columns = ("answer_id", "content_sha256", "labels", "never_regress", "person", "marked_at", "comment", "outcome")
    return (
        sa.select(
            *(review_marks.c[name] for name in columns),
            review_items.c.uri,
            force.c.number,
            force.c.kind,
            force.c.labels.label("said"),
            _gone().label("gone"),
        )
        .select_from(review_marks)
        .outerjoin(force, force.c.number == latest.scalar_subquery())
        .outerjoin(review_items, review_items.c.content_sha256 == review_marks.c.content_sha256)
        .where(review_marks.c.done_at.is_(None) | review_marks.c.outcome.in_((ADDED, UNCHANGED, WITHDRAWN, RETIRED)))
    )


def _gone() -> sa.ColumnElement[bool]:
    """Whether the look that a mark was made with was taken back: as an opinion, or all answers recorded of it."""
    given, retract = corrections.alias(), corrections.alias()
    again = review_marks.c.answer_id + ":again"
    recorded = sa.exists().where(
        given.c.content_sha256 == review_marks.c.content_sha256,
        (given.c.answer_id == review_marks.c.answer_id)
        | (sa.func.substr(given.c.answer_id, 1, sa.func.length(again)) == again),
    )
    stands = recorded.where(~sa.exists().where(retract.c.retracts == given.c.number))
    withdrawn = sa.exists().where(
        review_opinions.c.answer_id == review_marks.c.answer_id, review_opinions.c.withdrawn_at.is_not(None)
    )
    return withdrawn | (recorded & ~stands)


def _ended(store: Store, mark: _Mark) -> str:
    """Takes the bad case of ``mark`` out of force, if there is one; one that is no longer its own is left as it is."""
    if mark.outcome is None:
        return WITHDRAWN
    case = _in_force(store).get(mark.content_sha256)
    # Who was killed before noting what they added, or did it at the same time as somebody else, found it unchanged.
    own = case is not None and (mark.outcome == ADDED or case.added_at > mark.marked_at)
    if case is not None and own and case.added_by == mark.person:
        snapshots.retire_exactly(store, mark.person, case, _TAKEN_BACK if mark.gone else _CORRECTED)
        return RETIRED
    return RETIRED if mark.outcome == ADDED else WITHDRAWN


def _wanted(store: Store, counting: Iterable[_Mark], freed: Set[str]) -> list[_Mark]:
    """Of the marks that count, those without a case: new ones, and those whose answer did not count for a while.

    Also those that had found a case where there is none any more (``freed``: their contents).
    """
    now = snapshots.current(store)
    last = {case.content_sha256: case for case in now.cases} if now else {}
    ours = {None, _TAKEN_BACK, _CORRECTED}
    by_hand = {content for content, case in last.items() if case.retired_reason not in ours}
    found = [
        mark
        for mark in counting
        if mark.outcome is None
        or (
            mark.content_sha256 not in by_hand
            and (mark.outcome in (WITHDRAWN, RETIRED) or mark.content_sha256 in freed)
        )
    ]
    return sorted(found, key=attrgetter("person", "number"))


@dataclass(frozen=True)
class _Adoption:
    """Makes bad cases of marks; ``now`` by the database's clock."""

    store: Store
    settings: Settings
    names: Taxonomy | None
    now: datetime

    def outcomes(self, person: str, marks: Sequence[_Mark]) -> dict[str, str]:
        """What becomes of one person's marks."""
        known = _in_force(self.store)
        faults = self._faults(marks)
        made = [mark for mark in marks if mark.answer_id not in faults]
        # Of those that were cases already, too; what somebody else said of them is never taken away.
        kept = {mark.content_sha256 for mark in made if mark.never_regress}
        if kept:
            snapshots.protect(self.store, person, kept)
        found = {mark.answer_id: UNCHANGED if mark.content_sha256 in known else ADDED for mark in made}
        return found | {
            mark.answer_id: self._put_off(mark, faults[mark.answer_id]) for mark in marks if mark.answer_id in faults
        }

    def _faults(self, marks: Sequence[_Mark]) -> dict[str, Fault]:
        """Imports marks; of those that are refused, why."""
        first = self._imported(marks)
        moved = [replace(mark, uri=None) for mark in marks if mark.answer_id in first and mark.uri is not None]
        # Where a picture was shown from it is no longer; another published image may be the same bytes.
        second = self._imported(moved)
        elsewhere = {mark.answer_id for mark in moved} - second.keys()
        return {
            answer_id: _passing([fault, *filter(None, [second.get(answer_id)])])
            for answer_id, fault in first.items()
            if answer_id not in elsewhere
        }

    def _imported(self, marks: Sequence[_Mark]) -> dict[str, Fault]:
        """Imports marks, all at once but for those that are refused; these by answer, with what is wrong."""
        found: dict[str, Fault] = {}
        rest = list(marks)
        while rest:
            try:
                _import(self.store, self.settings, rest)
                break
            except RefusedError as error:
                found |= {rest[row].answer_id: _lasting(faults) for row, faults in error.rows.items()}
                rest = [mark for row, mark in enumerate(rest) if row not in error.rows]
        return found

    def _put_off(self, mark: _Mark, fault: Fault) -> str:
        """The outcome of a mark that cannot become a bad case now."""
        if fault.about in TRANSIENT_REASONS and self.now < mark.marked_at + PATIENCE:
            log.info("mark_waits", content_sha256=mark.content_sha256, reason=fault.text)
            return WAITING
        log.warning("mark_refused", content_sha256=mark.content_sha256, reason=fault.text)
        known = {} if self.names is None else self.names.by_id
        label = "" if all(label in known for label in mark.said or ()) else "label"
        return refused(fault.about or label, fault.text)


def _lasting(faults: Sequence[Fault]) -> Fault:
    """Of all that is wrong with a row, what will not pass by itself if there is any."""
    return next((fault for fault in faults if fault.about not in TRANSIENT_REASONS), faults[0])


def _passing(tries: Sequence[Fault]) -> Fault:
    """Of what was wrong at two places, what may pass: one place is enough."""
    return next((fault for fault in tries if fault.about in TRANSIENT_REASONS), tries[0])


def _import(store: Store, settings: Settings, marks: Sequence[_Mark]) -> None:
    rows = [
        {
            "uri": mark.uri,
            "content_sha256": mark.content_sha256,
            "label_id": "|".join(mark.said or ()),
            "reason": " ".join((mark.comment or _REASON).split())[:MAX_REASON],
        }
        for mark in marks
    ]
    with TemporaryDirectory(prefix="wwts-marks-") as folder:
        path = Path(folder) / "marks.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), path)
        import_cases(store, settings, path, marks[0].person)


def _in_force(store: Store) -> dict[str, BadCase]:
    """The cases in force, by content."""
    now = snapshots.current(store)
    return {case.content_sha256: case for case in now.active} if now else {}


def _note(settings: Settings, outcomes: Mapping[str, str]) -> None:
    decided = {answer_id: outcome for answer_id, outcome in outcomes.items() if outcome != WAITING}
    if not decided:
        return
    with database.transaction(settings) as connection:
        now = database.now(connection)
        for answer_id, outcome in decided.items():
            this = review_marks.c.answer_id == answer_id
            connection.execute(sa.update(review_marks).where(this).values(done_at=now, outcome=outcome))
