"""How long a tagger takes for one picture, bytes in and Chinese tags out, measured so that noise tells no lies.

Machines are shared and noisy: both models take turns picture by picture in one run, each first every other time, so
that whatever slows the machine slows both; and the median over repeats of a percentile is what counts.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import structlog

from eval.reports import Latency, LatencyReport
from eval.serving import Unreadable
from wwts_ops.errors import WwtsError

log = structlog.get_logger(__name__)

#: Rounds at least and at most; and how long the gate goes on, in seconds. With 5 rounds of a quick model on a busy
#: machine, two equal models differed by half; a few dozen rounds outlast such a moment.
REPEATS, MOST_REPEATS = 5, 40
SECONDS = 8.0
#: Pictures of one repeat (issue: "100 typical images").
PICTURES = 100

T = TypeVar("T")


class Timed(Protocol):
    """What can be measured: `eval.serving.Serving`."""

    device: str

    def time(self, picture: bytes) -> float | Unreadable:
        """Seconds for one picture."""


def measure(
    servings: Mapping[str, Timed], pictures: Sequence[bytes], repeats: int = REPEATS, seconds: float = 0.0
) -> LatencyReport:
    """Measures ``challenger`` and, where there is one, ``champion``.

    Every picture is first looked at once without a clock, to warm up; those that one of them cannot read are left out.

    Args:
        servings: the models by those two names.
        pictures: encoded, a few dozen at least for a 99th percentile that means something.
        repeats: rounds through all pictures, at least.
        seconds: goes on for so long: a model that is quick needs more rounds until a busy moment no longer counts.

    Raises:
        WwtsError: when no picture can be read, or as ``Timed.time``.
    """
    readable = [picture for picture in pictures if all(_warm(timed, picture) for timed in servings.values())]
    if not readable:
        raise WwtsError(f"None of the {len(pictures)} pictures can be read; give others to measure the speed with.")
    rounds: dict[str, list[list[float]]] = {name: [] for name in servings}
    started, repeat = time.monotonic(), 0
    while repeat < repeats or (repeat < MOST_REPEATS and time.monotonic() - started < seconds):
        for name, taken in _round(servings, readable, repeat).items():
            rounds[name].append(taken)
        repeat += 1
        log.info("latency_progress", done=repeat, at_least=repeats, pictures=len(readable))
    return LatencyReport(
        images=len(readable),
        hardware=hardware(servings["challenger"].device),
        challenger=_latency(rounds["challenger"]),
        champion=_latency(rounds["champion"]) if "champion" in rounds else None,
    )


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly spread over them, in their order; the same every time."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def hardware(device: str) -> str:
    """This machine in one line; ``device`` as in `eval.serving.Serving`."""
    cores = len(os.sched_getaffinity(0))
    parts = [_cpu(), f"{cores} core{'s' if cores != 1 else ''} usable, 1 used"]
    return ", ".join(parts if device == "CPU" else [device, *parts])


def _warm(timed: Timed, picture: bytes) -> bool:
    return not isinstance(timed.time(picture), Unreadable)


def _round(servings: Mapping[str, Timed], pictures: Sequence[bytes], repeat: int) -> dict[str, list[float]]:
    """Every picture once; who goes first changes with every picture and, for each picture, with every repeat."""
    names = list(servings)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number, picture in enumerate(pictures):
        order = names if (number + repeat) % 2 == 0 else names[::-1]
        for name in order:
            seconds = servings[name].time(picture)
            if isinstance(seconds, Unreadable):
                raise WwtsError(f"A picture that could be read was then rejected ({seconds.reason}); measure again.")
            taken[name].append(seconds)
    return taken


def _latency(rounds: Sequence[Sequence[float]]) -> Latency:
    percentiles = np.percentile(np.asarray(rounds, dtype=np.float64), [50, 95, 99], axis=1)
    p50, p95, p99 = (float(value) for value in np.median(percentiles, axis=1))
    return Latency(
        p50=p50,
        p95=p95,
        p99=p99,
        images_per_second=statistics.median(len(taken) / sum(taken) for taken in rounds),
        p95_repeats=tuple(float(value) for value in percentiles[1]),
        samples=tuple(seconds for taken in rounds for seconds in taken),
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, "") or platform.processor() or platform.machine()
