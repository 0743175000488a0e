"""Folders that can be had again: made whole or not at all, looked at before each use, made again when damaged."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.storage import appearing

log = structlog.get_logger(__name__)

T = TypeVar("T")


def kept(target: Path, check: Callable[[Path], T], fill: Callable[[Path], None]) -> T:
    """What ``check`` makes of the folder ``target``; it is filled when it is not there, and again when damaged.

    Args:
        target: the folder.
        check: raises WwtsError when a folder is not what it should be.
        fill: puts into an empty folder what belongs there.

    Raises:
        WwtsError: when what ``fill`` brings is not what it should be either; ``target`` stays as it was.
        UnavailableError: when ``fill`` does.
    """
    found = whole(target, check)
    if found is not None:
        return found
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / ".lock"):
        try:
            if target.exists():
                return check(target)
        except WwtsError as damaged:
            log.warning("cache_damaged", folder=str(target), reason=str(damaged))
        try:
            with appearing(target) as folder:
                fill(folder)
                # Before it is in the cache, where it would otherwise stay wrong after its source was mended.
                check(folder)
                _discard(target)
        except UnavailableError as away:
            if not target.exists():
                raise
            raise UnavailableError(f"{target} is damaged and cannot be had again now. {away}") from away
        return check(target)


def whole(target: Path, check: Callable[[Path], T]) -> T | None:
    """What ``check`` makes of the folder ``target``; None when it is not there or damaged."""
    if not target.exists():
        return None
    try:
        return check(target)
    except WwtsError:
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process of this machine at a time is in a block with this ``path``."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _discard(folder: Path) -> None:
    """Takes a damaged folder away at once, so that nobody ever sees half of it."""
    if folder.exists():
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as away:
            folder.rename(Path(away) / "damaged")
