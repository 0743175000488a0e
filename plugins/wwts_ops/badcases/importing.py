"""What people hand in becomes bad cases, all of it or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from wwts_ops import taxonomy
from wwts_ops.badcases import drafts, sheet
from wwts_ops.badcases.drafts import Draft, Faults, Labels
from wwts_ops.badcases.pictures import Finder, Picture
from wwts_ops.badcases.snapshots import BadCase, Snapshot, change, content, content_key, now
from wwts_ops.badcases.starter import ensure
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

_Found = tuple[Draft, Picture]
_DETAILS = ("slices", "owner", "reason", "never_regress")


@dataclass(frozen=True)
class Imported:
    """What an import came to; ``ignored`` are the columns of the file that mean nothing here."""

    snapshot: Snapshot
    added: int
    unchanged: int
    ignored: tuple[str, ...] = ()


def import_cases(store: Store, settings: Settings, source: Path, author: str) -> Imported:
    """Adds the cases of ``source`` to those in force, all or none; a case that is there already is left as it is.

    Args:
        store: where the cases are kept.
        settings: what may be read, and how much of it.
        source: a file as :mod:`wwts_ops.badcases.sheet` reads it, or a folder with one subfolder a label.
        author: who imports; owner of the cases that name none.

    Raises:
        WwtsError: the file cannot be read, or (``RefusedError``) with every row that is wrong, and why; the store is
            then as it was.
        UnavailableError: when the store is away, or others change the cases all the time.
    """
    source = source.absolute()
    labels = Labels(names := taxonomy.ensure(store, settings.forced_review))
    before = ensure(store, names)
    read = sheet.read(source)
    faults = Faults(source.name)
    parsed = drafts.parse(read.rows, None if source.is_dir() else source.parent, labels, faults)
    with TemporaryDirectory(prefix="wwts-badcases-") as spool:
        found = Finder(store, settings, before.cases, Path(spool)).find(parsed, faults)
        single = _once_each([(draft, picture) for draft, picture in found if not faults.has(draft.number)], faults)
        _Addition(single, author, labels).after(before.cases, faults)
        faults.check()
        for _, picture in single:
            _keep(store, picture, Path(spool))
    addition = _Addition(single, author, labels)

    def extended(cases: tuple[BadCase, ...]) -> tuple[BadCase, ...]:
        again = Faults(source.name)
        after = addition.after(cases, again)
        again.check()
        return after

    snapshot = change(store, author, extended)
    return Imported(snapshot, addition.added, len(read.rows) - addition.added, read.ignored)


def _keep(store: Store, picture: Picture, spool: Path) -> None:
    if not picture.stored and not _is_kept(store, picture.content_sha256):
        store.write_bytes(content_key(picture.content_sha256), (spool / picture.content_sha256).read_bytes())


def _is_kept(store: Store, sha256: str) -> bool:
    """Whether the store has that content undamaged: importing a picture again mends a copy that is not."""
    try:
        content(store, sha256)
    except UnavailableError:
        raise
    except WwtsError:
        return False
    return True


def _once_each(found: Sequence[_Found], faults: Faults) -> list[_Found]:
    """The first row of each content; further ones must say the same."""
    first: dict[str, _Found] = {}
    for draft, picture in found:
        known, _ = first.setdefault(picture.content_sha256, (draft, picture))
        if not _same_truth(draft, known):
            what = "another label"
        else:
            what = ", ".join(f"another {name}" for name in _differing(draft, known))
        if what:
            faults.add(draft.number, draft.place, f"it shows the same picture as {known.place}, with {what}")
    return list(first.values())


def _same_truth(one: Draft, other: Draft | BadCase) -> bool:
    return set(one.accepted) == set(other.accepted) and set(one.forbidden) == set(other.forbidden)


def _differing(draft: Draft, other: Draft | BadCase) -> list[str]:
    """The details that both state, and differently."""
    pairs = ((name, getattr(draft, name), getattr(other, name)) for name in _DETAILS)
    return [
        {"slices": "slice"}.get(name, name)
        for name, mine, theirs in pairs
        if mine is not None and theirs is not None and _comparable(mine) != _comparable(theirs)
    ]


def _comparable(value: object) -> object:
    return frozenset(value) if isinstance(value, tuple) else value


class _Addition:
    """What an import adds to the cases in force, whichever those are by then."""

    def __init__(self, found: Sequence[_Found], author: str, labels: Labels) -> None:
        self._found = found
        self._author = author
        self._labels = labels
        self._moment = now()
        self.added = 0

    def after(self, cases: tuple[BadCase, ...], faults: Faults) -> tuple[BadCase, ...]:
        """``cases`` with what is new behind them; what contradicts one in force goes to ``faults``."""
        in_force = {case.content_sha256: case for case in cases if case.retired_at is None}
        starters = {case.content_sha256 for case in cases if case.starter}
        new = []
        for draft, picture in self._found:
            case = in_force.get(picture.content_sha256)
            if case is None:
                made = self._case(draft, picture)
                new.append(replace(made, starter=picture.content_sha256 in starters))
            elif problem := self._problem(draft, case):
                faults.add(draft.number, draft.place, problem, "case")
        self.added = len(new)
        return (*cases, *new)

    def _case(self, draft: Draft, picture: Picture) -> BadCase:
        return BadCase(
            content_sha256=picture.content_sha256,
            accepted=draft.accepted,
            forbidden=draft.forbidden,
            slices=draft.slices or (),
            owner=draft.owner or self._author,
            reason=draft.reason or "",
            never_regress=bool(draft.never_regress),
            starter=False,
            image_id=picture.image_id,
            uri=picture.uri,
            added_at=self._moment,
            added_by=self._author,
        )

    def _problem(self, draft: Draft, case: BadCase) -> str:
        short = case.content_sha256[:12]
        first = f"run `wwts badcases retire {short}` first if that is no longer right"
        if not _same_truth(draft, case):
            has = f"accepted: {self._labels.named(case.accepted)}; forbidden: {self._labels.named(case.forbidden)}"
            return f"its picture is bad case {short} already, with {has}; {first}"
        # A starter case stays what it is, whatever the shop would file it under.
        other = [] if case.starter else _differing(draft, case)
        if other:
            return f"its picture is bad case {short} already, with another {' and '.join(other)}; {first}"
        return ""
