"""Puts changes in force: a new version of the taxonomy, with who made it and what changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from wwts_ops import database, events, taxonomy
from wwts_ops.settings import Settings
from wwts_ops.storage import Pointer, Store
from wwts_ops.taxonomy import POINTER, ChangedError, Taxonomy
from wwts_ops.taxonomy_changes import followers
from wwts_ops.taxonomy_changes.checks import check
from wwts_ops.taxonomy_changes.difference import Difference, counts, diff
from wwts_ops.taxonomy_changes.edits import Change, Edit, edited
from wwts_ops.taxonomy_changes.faults import FaultError

#: Differences that stand in the event of a change; the two versions tell the rest.
_KEPT = 50


@dataclass(frozen=True)
class Applied:
    """What changes made of one version. ``after.version`` is still that of ``before`` where nothing was written."""

    before: Taxonomy
    after: Taxonomy
    differences: tuple[Difference, ...]


def by(changes: Sequence[Change]) -> Edit:
    """All ``changes`` as one."""
    return lambda names: edited(names, changes)


def preview(store: Store, expected: str | None, edit: Edit) -> Applied:
    """What ``edit`` would make of the version in force.

    Args:
        store: holds it.
        expected: the version that whoever asks has seen; None: whichever is in force.
        edit: such as :func:`by` makes.

    Raises:
        FaultError: when the change is refused, or another version than ``expected`` is in force.
    """
    return _planned(store, expected, edit)[1]


def apply(store: Store, settings: Settings, author: str, expected: str | None, changes: Sequence[Change]) -> Applied:
    """Puts ``changes`` in force as a new version; see :func:`write`."""
    return write(store, settings, author, expected, by(changes))


def write(store: Store, settings: Settings, author: str, expected: str | None, edit: Edit) -> Applied:
    """Puts what ``edit`` makes of the version in force in force as a new version, and writes down who did so.

    What waits for a look, and what people look after, goes where its labels go.

    Args:
        store: holds the versions.
        settings: name the database that the event goes to.
        author: who changes it.
        expected: the version that the author has seen; None: whichever is in force.
        edit: such as :func:`by` makes.

    Raises:
        FaultError: as :func:`preview`, or when nothing changes.
        UnavailableError: when store or database refuse; nothing has changed then.
    """
    pointer, planned = _planned(store, expected, edit)
    if not planned.differences:
        raise FaultError("nothing")
    note = counts(planned.differences)
    database.upgrade(settings)
    # The database is asked first, since a version that is in force cannot be taken back.
    with database.transaction(settings) as connection:
        followers.follow(connection, planned.before, planned.after)
        try:
            after = taxonomy.put(store, planned.after, author, pointer, json.dumps(note))
        except ChangedError:
            raise FaultError("changed") from None
        first = [asdict(row) for row in planned.differences[:_KEPT]]
        detail = {"previous": planned.before.version, "counts": note, "differences": first}
        events.record(connection, author, events.CHANGED_TAXONOMY, after.version, detail)
    return Applied(planned.before, after, planned.differences)


def _planned(store: Store, expected: str | None, edit: Edit) -> tuple[Pointer, Applied]:
    pointer = store.read_pointer(POINTER)
    if pointer is None:
        raise FaultError("no_taxonomy")
    version = str(pointer.value["version"])
    if expected is not None and expected != version:
        raise FaultError("changed")
    before = taxonomy.read(store, version)
    after = edit(before)
    check(before, after)
    return pointer, Applied(before, after, tuple(diff(before, after)))
