"""Snapshots of bad cases, their pictures, and how one snapshot follows another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Set
from dataclasses import astuple, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.images import content_sha256
from wwts_ops.schemas import BADCASES
from wwts_ops.storage import Pointer, Store

_POINTER = "badcases/current.json"
_NAME = re.compile(r"b\d{6,}-[0-9a-f]{12}")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_LISTS = ("accepted", "forbidden", "slices")
#: Characters of a reason.
MAX_REASON = 1000
#: Changes by others, one right after another, before a change of ours counts as unavailable.
_TRIES = 50


class ChangedError(WwtsError):
    """The snapshot in force is no longer the one that a change was made from."""


@dataclass(frozen=True)
class BadCase:
    """One picture with its truth.

    Attributes:
        content_sha256: of the picture's bytes; at most one case in force has it.
        accepted: label ids that are right, the best first; empty when only ``forbidden`` is known.
        forbidden: label ids that are worse than wrong.
        slices: groups in which it is counted, besides all cases.
        owner: who answers for the truth.
        reason: why it is a case; may be empty.
        never_regress: no model may get it wrong that replaces one which got it right.
        starter: shipped with the project, not added by the shop.
        image_id: of the catalog, when it came from there.
        uri: where its bytes were read, when they were.
        added_at: UTC.
        retired_at: UTC; None while in force.
    """

    content_sha256: str
    accepted: tuple[str, ...]
    forbidden: tuple[str, ...]
    slices: tuple[str, ...]
    owner: str
    reason: str
    never_regress: bool
    starter: bool
    image_id: str | None
    uri: str | None
    added_at: datetime
    added_by: str
    retired_at: datetime | None = None
    retired_by: str | None = None
    retired_reason: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """All cases there ever were, in the order they were added; ``sha256`` is over all of them."""

    name: str
    sha256: str
    cases: tuple[BadCase, ...]

    @property
    def active(self) -> tuple[BadCase, ...]:
        """The cases in force."""
        return tuple(case for case in self.cases if case.retired_at is None)


def now() -> datetime:
    """UTC, to the microsecond that the store keeps."""
    return datetime.now(UTC)


def current(store: Store) -> Snapshot | None:
    """The snapshot in force, or None before the first."""
    return _in_force(store)[1]


def read(store: Store, name: str) -> Snapshot:
    """One snapshot.

    Raises:
        WwtsError: when there is none of that name, or it is not what was written.
    """
    # The name may come from a form: nothing else than a name becomes a path.
    key = f"badcases/{name}/cases.parquet" if _NAME.fullmatch(name) else ""
    try:
        table = store.read_table(key) if key else None
    except FileNotFoundError:
        table = None
    if table is None:
        raise WwtsError(f"There is no snapshot {name!r} of bad cases; see `wwts badcases list`.")
    cases = tuple(_case(row) for row in table.select(BADCASES.names).to_pylist())
    stated = (table.schema.metadata or {}).get(b"sha256", b"").decode()
    if not stated or stated != digest(cases):
        raise WwtsError(f"{store.path(f'badcases/{name}')} is damaged (its SHA-256 differs); restore it from a backup.")
    return Snapshot(name, stated, cases)


def put(store: Store, author: str, cases: tuple[BadCase, ...], expected: Pointer | None) -> Snapshot:
    """Writes ``cases`` as a new snapshot and puts it in force; their contents are in the store already.

    Raises:
        ChangedError: when the snapshot in force is no longer ``expected``.
    """
    sha256 = digest(cases)
    name = f"b{(expected.sequence if expected else 0) + 1:06d}-{sha256[:12]}"
    table = pa.Table.from_pylist([vars(case) for case in cases], schema=BADCASES)
    store.write_table(f"badcases/{name}/cases.parquet", table.replace_schema_metadata({"sha256": sha256}))
    previous = expected.value["snapshot"] if expected else None
    pointer = {"snapshot": name, "sha256": sha256, "author": author, "previous": previous}
    if not store.replace_pointer(_POINTER, pointer, expected):
        raise ChangedError("Somebody else changed the bad cases meanwhile; look at their change and try again.")
    return Snapshot(name, sha256, cases)


def change(store: Store, author: str, make: Callable[[tuple[BadCase, ...]], tuple[BadCase, ...]]) -> Snapshot:
    """Puts ``make(cases in the snapshot in force)`` in force, again from the start when somebody else was first.

    What equals the cases before it makes no new snapshot.

    Raises:
        UnavailableError: when others change them all the time.
    """
    for _ in range(_TRIES):
        pointer, before = _in_force(store)
        cases = before.cases if before else ()
        after = make(cases)
        if before is not None and after == cases:
            return before
        try:
            return put(store, author, after, pointer)
        except ChangedError:
            continue
    raise UnavailableError("The bad cases are changed faster than we can add to them; run again later.")


def retire(store: Store, author: str, content: str, reason: str) -> Snapshot:
    """Takes the case of ``content`` (its SHA-256 or the first six or more digits of it) out of force.

    Raises:
        WwtsError: when no case or several in force begin so, or ``reason`` is empty.
    """
    prefix, reason = content.strip().lower(), " ".join(reason.split())
    if not _PREFIX.fullmatch(prefix):
        raise WwtsError(f"{content!r} is no beginning of a SHA-256: give six or more of its hex digits.")
    if not 0 < len(reason) <= MAX_REASON:
        raise WwtsError(f"Say in at most {MAX_REASON:,} characters why the case is retired; the reason stays with it.")
    moment = now()

    def retired(cases: tuple[BadCase, ...]) -> tuple[BadCase, ...]:
        if any((case.retired_at, case.retired_by) == (moment, author) for case in cases):
            return cases  # ours already: the server did it, and its answer was lost on the way
        case = _only(cases, prefix)
        gone = replace(case, retired_at=moment, retired_by=author, retired_reason=reason)
        return tuple(gone if other is case else other for other in cases)

    return change(store, author, retired)


def retire_exactly(store: Store, author: str, case: BadCase, reason: str) -> Snapshot:
    """Takes that very case out of force; one that is no longer as it was is left as it is."""
    gone = replace(case, retired_at=now(), retired_by=author, retired_reason=reason)
    return change(store, author, lambda cases: tuple(gone if one == case else one for one in cases))


def protect(store: Store, author: str, contents: Set[str]) -> Snapshot:
    """From now on no model may get the cases in force of ``contents`` wrong that replaces one which got them right."""

    def protected(cases: tuple[BadCase, ...]) -> tuple[BadCase, ...]:
        meant = (case.retired_at is None and case.content_sha256 in contents for case in cases)
        return tuple(replace(case, never_regress=True) if one else case for one, case in zip(meant, cases, strict=True))

    return change(store, author, protected)


def content(store: Store, sha256: str) -> bytes:
    """The bytes of a case's picture.

    Raises:
        WwtsError: when there are none of that SHA-256, or they are no longer what they were.
    """
    try:
        data = store.read_bytes(content_key(sha256))
    except FileNotFoundError:
        raise WwtsError(f"The store has no picture of bad case {sha256}; restore badcases/ from a backup.") from None
    if content_sha256(data) != sha256:
        raise WwtsError(
            f"{store.path(content_key(sha256))} is damaged (its SHA-256 differs); restore it from a backup."
        )
    return data


def content_key(sha256: str) -> str:
    """The store key of a case's picture."""
    return f"badcases/contents/{sha256[:2]}/{sha256}"


def digest(cases: tuple[BadCase, ...]) -> str:
    """SHA-256 of ``cases``: of one JSON list a case, its values in the order of the schema, times in ISO 8601."""
    lines = (json.dumps(astuple(case), ensure_ascii=False, separators=(",", ":"), default=_iso) for case in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds")


def _in_force(store: Store) -> tuple[Pointer | None, Snapshot | None]:
    pointer = store.read_pointer(_POINTER)
    return pointer, None if pointer is None else read(store, str(pointer.value["snapshot"]))


def _case(row: dict[str, Any]) -> BadCase:
    values: dict[str, Any] = {name: tuple(value) if name in _LISTS else value for name, value in row.items()}
    return BadCase(**values)


def _only(cases: tuple[BadCase, ...], prefix: str) -> BadCase:
    found = [case for case in cases if case.content_sha256.startswith(prefix)]
    active = [case for case in found if case.retired_at is None]
    if len(active) == 1:
        return active[0]
    if active:
        those = ", ".join(case.content_sha256 for case in active[:5])
        raise WwtsError(f"{len(active)} bad cases begin with {prefix}: {those}; give more digits.")
    if found:
        last = found[-1]
        raise WwtsError(f"Bad case {last.content_sha256[:12]} was retired by {last.retired_by}: {last.retired_reason}.")
    raise WwtsError(f"No bad case begins with {prefix}; see `wwts badcases list`.")


assert [field.name for field in fields(BadCase)] == BADCASES.names
