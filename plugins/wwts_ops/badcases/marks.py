"""What people marked while they reviewed becomes bad cases, by the same way as a file that somebody imports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
from wwts_ops.badcases.importing import import_cases
from wwts_ops.badcases.snapshots import MAX_REASON
from wwts_ops.corrections import LABELLED
from wwts_ops.corrections.answers import in_force_rows
from wwts_ops.database import corrections, review_items, review_marks, review_opinions
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.review.cases import RETIRED, WITHDRAWN
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy

log = structlog.get_logger(__name__)

#: What became of a mark, beside ``WITHDRAWN`` and ``RETIRED``; ``refused`` is followed by why.
ADDED, UNCHANGED, REFUSED = "added", "unchanged", "refused"
_REASON = "审核时标记"
_COLUMNS = pa.schema([(name, pa.string()) for name in ("uri", "content_sha256", "label_id", "reason", "never_regress")])


@dataclass(frozen=True)
class Adopted:
    """What became of marks.

    Attributes:
        added: new bad cases.
        unchanged: were bad cases already.
        withdrawn: the answer was taken back, or another one counts, before they became any.
        retired: bad cases whose answer was taken back afterwards.
        refused: cannot become bad cases; the outcome of each says why.
    """

    added: int = 0
    unchanged: int = 0
    withdrawn: int = 0
    retired: int = 0
    refused: int = 0


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
    comment: str | None
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
    """Makes bad cases of the marks whose answers count; each mark by itself, so that a bad one holds up no other.

    May be killed, and run by two at once: a mark that has become a case already is found to be one.

    Raises:
        UnavailableError: when the database, the store or the images' place does not answer; the marks then wait.
    """
    with database.looking(settings) as connection:
        waiting = [_Mark(**row) for row in connection.execute(_waiting()).mappings()]
        undone = connection.execute(_undone()).all()
    names = taxonomy.current(store) if waiting else None
    counting = [mark for mark in waiting if mark.counts(names)]
    outcomes = {mark.answer_id: WITHDRAWN for mark in waiting if mark not in counting and not mark.waits()}
    counting.sort(key=attrgetter("person", "number"))
    for person, marks in groupby(counting, attrgetter("person")):
        outcomes |= _imported(store, settings, person, list(marks))
    outcomes |= {mark.answer_id: _retired(store, mark) for mark in undone}
    _note(settings, outcomes)
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    if outcomes:
        log.info("marks_adopted", **counts)
    return Adopted(**counts)


def _waiting() -> sa.Select[Any]:
    """Marks that are not done, with the answer in force of their content."""
    force = corrections.alias()
    latest = in_force_rows().with_only_columns(sa.func.max(corrections.c.number))
    latest = latest.where(corrections.c.content_sha256 == review_marks.c.content_sha256)
    columns = ("answer_id", "content_sha256", "labels", "never_regress", "person", "comment")
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
        .where(review_marks.c.done_at.is_(None))
    )


def _undone() -> sa.Select[Any]:
    """Marks that became bad cases, and whose answer was taken back since."""
    asked = sa.select(review_marks.c.answer_id, review_marks.c.content_sha256, review_marks.c.person)
    return asked.where(review_marks.c.outcome == ADDED, _gone())


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


def _imported(store: Store, settings: Settings, person: str, marks: Sequence[_Mark]) -> dict[str, str]:
    """What becomes of one person's marks: all in one import, or one by one when that is refused."""
    before = snapshots.current(store)
    known = {case.content_sha256 for case in before.active} if before is not None else set()
    try:
        _import(store, settings, person, marks)
    except UnavailableError:
        raise
    except WwtsError as error:
        if len(marks) == 1:
            return _elsewhere(store, settings, marks[0], error)
        return {name: told for mark in marks for name, told in _imported(store, settings, person, [mark]).items()}
    return {mark.answer_id: UNCHANGED if mark.content_sha256 in known else ADDED for mark in marks}


def _elsewhere(store: Store, settings: Settings, mark: _Mark, refused: WwtsError) -> dict[str, str]:
    """A mark whose picture is no longer where it was shown from, from another published image of the same bytes."""
    if mark.uri is not None:
        found = _imported(store, settings, mark.person, [replace(mark, uri=None)])
        if not found[mark.answer_id].startswith(REFUSED):
            return found
    log.warning("mark_refused", content_sha256=mark.content_sha256, reason=str(refused))
    return {mark.answer_id: f"{REFUSED}: {_why(refused)}"}


def _import(store: Store, settings: Settings, person: str, marks: Iterable[_Mark]) -> None:
    rows = [
        {
            "uri": mark.uri,
            "content_sha256": mark.content_sha256,
            "label_id": "|".join(mark.labels),
            "reason": " ".join((mark.comment or _REASON).split())[:MAX_REASON],
            # Unsaid, not denied: somebody else may have said so of the same case.
            "never_regress": "true" if mark.never_regress else None,
        }
        for mark in marks
    ]
    with TemporaryDirectory(prefix="wwts-marks-") as folder:
        path = Path(folder) / "marks.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), path)
        import_cases(store, settings, path, person)


def _why(error: WwtsError) -> str:
    """The row's own fault: the first line only says that nothing was imported."""
    _, *faults = str(error).splitlines()
    return " ".join(faults) or str(error)


def _retired(store: Store, mark: Any) -> str:
    """Takes the bad case of ``mark`` out of force; one that is no longer its own is left as it is."""
    now = snapshots.current(store)
    case = next((one for one in now.active if one.content_sha256 == mark.content_sha256), None) if now else None
    if case is not None and case.added_by == mark.person:
        snapshots.retire(store, mark.person, mark.content_sha256, "答案已撤回")
    return RETIRED


def _note(settings: Settings, outcomes: dict[str, str]) -> None:
    if not outcomes:
        return
    with database.transaction(settings) as connection:
        now = database.now(connection)
        for answer_id, outcome in outcomes.items():
            this = review_marks.c.answer_id == answer_id
            connection.execute(sa.update(review_marks).where(this).values(done_at=now, outcome=outcome))
