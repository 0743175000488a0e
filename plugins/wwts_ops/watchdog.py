"""Stops every process that ``wwts up`` started, also when ``wwts up`` itself was killed with -9.

How it finds them: each carries :data:`MARKER` in its environment, which children inherit whatever process group
or session they move to (Airflow gives each running task a group of its own, so signalling groups would miss
them). ``SPT_NOENV`` must be set too, or ``setproctitle`` overwrites the environment that the kernel shows.

How it knows that the parent is gone: it reads from a pipe whose other end only the parent holds; the kernel closes
that end however the parent dies. ``PR_SET_PDEATHSIG`` would tell the direct children only, and Linux alone has it.
"""

from __future__ import annotations

import os
import sys
import time

import psutil  # type: ignore[import-untyped]

#: Environment variable that names one start of ``wwts up``; all its processes have it.
MARKER = "WWTS_UP_ID"
#: Seconds between asking a process to end (TERM) and killing it.
GRACE_S = 10.0
_POLL_S = 0.2
_EMPTY_LOOKS = 2  # a child caught between fork and exec does not carry the marker yet: look again


def family(marker: str) -> list[psutil.Process]:
    """All living processes of one start of ``wwts up``, this one left out."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _carries(process, marker)]


def _carries(process: psutil.Process, marker: str) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARKER) == marker)
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return False


def stop(marker: str, grace: float = GRACE_S) -> None:
    """Asks all of the family to end, kills after ``grace`` seconds what is left, returns when none is."""
    deadline = time.monotonic() + grace
    asked: set[psutil.Process] = set()
    empty = 0
    while empty < _EMPTY_LOOKS:
        alive = family(marker)
        for process in alive:
            _end(process, killing=time.monotonic() > deadline, asked=asked)
        empty = 0 if alive else empty + 1
        time.sleep(_POLL_S)


def _end(process: psutil.Process, *, killing: bool, asked: set[psutil.Process]) -> None:
    try:
        if killing:
            process.kill()
        elif process not in asked:  # once: a second TERM makes some servers skip their clean-up
            asked.add(process)
            process.terminate()
    except psutil.NoSuchProcess:
        asked.discard(process)


def main(marker: str) -> None:
    """Waits for the pipe on stdin to close, then stops the family of ``marker``."""
    while sys.stdin.buffer.read(1):
        continue
    stop(marker)


if __name__ == "__main__":
    main(sys.argv[1])
