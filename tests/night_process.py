"""One night in a process of its own that kills itself at a chosen moment; started by ``test_kill.py``.

Every change of the store goes through one of the functions wrapped below. The process dies, by SIGKILL, just before or
just after the n-th of them. Nothing else is replaced: real files, real stages, real model, real registry.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from wwts_ops import logs, night, settings, storage
from wwts_ops.settings import Settings


class Killer:
    """Writes down every change of the store, and dies at number ``at`` (from 1; 0 never)."""

    def __init__(self, root: str, at: int, moment: str, trace: Path) -> None:
        self.root, self.at, self.moment, self.trace, self.seen = f"{root}/", at, moment, trace, 0

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose last argument is a path; calls for paths outside the store do not count."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not str(args[-1]).startswith(self.root):
                return function(*args, **kwargs)
            self.seen += 1
            die = self.seen == self.at
            with self.trace.open("a", encoding="utf-8") as file:
                file.write(f"{name} {args[-1]}\n")
            if die and self.moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def install(self) -> None:
        """From here on every change counts; the process ends with the night, so nothing is put back."""
        os.replace = self.wrap("rename", os.replace)
        os.link = self.wrap("link", os.link)
        storage._sync = self.wrap("write", storage._sync)


def one_night(found: Settings, day: date = date(2026, 3, 1), **wanted: Any) -> dict[str, Any]:
    """All stages in a row, as the DAG runs them; what the first one returned."""
    planned = night.plan(found, night.Order(day, **wanted), "LocalExecutor")
    assert planned is not None
    for shard in planned["shards"]:
        night.tag_shard(found, shard["run_key"], shard["shard"])
    night.publish_tags(found)
    night.route_to_review(found, planned["run_keys"])
    night.build_report(found, planned)
    night.finish(found, planned["run_keys"])
    return planned


def main(environment: Mapping[str, str], at: int, moment: str, trace: str) -> None:
    """Runs a night that dies at change number ``at``."""
    os.environ.update(environment)
    logs.configure("json", level=40)
    Killer(environment["WWTS_STORE"], at, moment, Path(trace)).install()
    one_night(settings.load())
