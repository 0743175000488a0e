"""Benchmarks of the night, as ratios measured in one run: ``python -m eval.bench`` (or ``make bench``).

Machines are shared and noisy, so what is compared runs in turn, and the median of the ratios of neighbours counts.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eval.baseline import OneAtATime
from eval.memory import peak_memory_mb
from wwts_ops import demo, images, logs, planning, registration, settings, tagging, taxonomy
from wwts_ops.errors import WwtsError
from wwts_ops.planning import Pin, Request
from wwts_ops.runtime import one_core
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import Machine, Shard

_SMALL, _LARGE = 348, 1600
_MAX_PIXELS = 100_000_000

out = Console(highlight=False)
app = typer.Typer(help=__doc__, no_args_is_help=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def everything(
    context: typer.Context,
    photos: Annotated[Path | None, typer.Option(help="folder of photographs; default: those of the demo")] = None,
) -> None:
    """Measure everything, in about ten minutes."""
    logs.configure("json", level=40)
    os.environ.setdefault("WWTS_RELEASE", "live")
    context.obj = photos
    if context.invoked_subcommand is None:
        speed(context)
        memory(context)
        orchestration(context)


@app.command()
def speed(context: typer.Context, images: int = 400, rounds: int = 5) -> None:
    """Compare the pipeline with the one-at-a-time script, and with the ceiling of its own parts."""
    table = Table(
        "photographs", "one at a time", "pipeline", "ratio", "ceiling", "pipeline / ceiling", title="Speed, images/s"
    )
    for side in (_SMALL, _LARGE):
        for thumbnails in ("none", "all"):
            with _bench(context.obj, side, images, thumbnails) as bench:
                table.add_row(f"{side} px, thumbnails {thumbnails}", *_speed_row(bench, rounds))
    out.print(table)


def _speed_row(bench: _Bench, rounds: int) -> list[str]:
    baseline = OneAtATime()
    runs: list[tuple[float, float, float]] = []
    # A quarter of the images, since it is that much slower; one round unmeasured, to warm both up.
    sample = bench.paths[: max(1, len(bench.paths) // 4)]
    baseline(sample[0])
    bench.pipeline()
    for _ in range(rounds):
        baseline.use_all_cores()
        article = _rate(len(sample), lambda: baseline.all(sample))
        pipeline = len(bench.paths) / bench.pipeline()
        runs.append((article, pipeline, bench.ceiling()))
    article, pipeline, ceiling = (statistics.median(column) for column in zip(*runs, strict=True))
    ratio = statistics.median(run[1] / run[0] for run in runs)
    share = statistics.median(run[1] / run[2] for run in runs)
    return [f"{article:.1f}", f"{pipeline:.1f}", f"{ratio:.2f}×", f"{ceiling:.1f}", f"{share:.2f}"]


@app.command()
def memory(context: typer.Context, small: int = 1_000, large: int = 20_000) -> None:
    """Compare the peak memory of a small and a large shard, each in a process of its own."""
    peaks = {}
    for count in (small, large):
        command = [sys.executable, "-m", "eval.bench", "one-shard", str(count)]
        given = ["--photos", str(context.obj)] if context.obj else []
        command[3:3] = given
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[count] = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
    table = Table("images in the shard", "peak memory, MB", title="Memory of one shard")
    for count, peak in peaks.items():
        table.add_row(f"{count:,}", f"{peak:,.0f}")
    table.add_row("ratio", f"{peaks[large] / peaks[small]:.3f}")
    out.print(table)


@app.command("one-shard", hidden=True)
def one_shard(context: typer.Context, count: int) -> None:
    """Tags one shard and prints this process's peak memory."""
    with _bench(context.obj, _SMALL, count, "all") as bench:
        bench.pipeline()
    print(json.dumps({"peak_mb": peak_memory_mb()}))  # noqa: T201


@app.command()
def orchestration(context: typer.Context, count: int = 10_000, rounds: int = 2) -> None:
    """Compare the wall time of the DAG with the work of its shards; Airflow's fixed start is an empty night's."""
    with tempfile.TemporaryDirectory(prefix="wwts-bench-") as name:
        folder = Path(name)
        _make(_sources(context.obj), folder / "catalog", _SMALL, count)
        environment = {
            **os.environ,
            "WWTS_CATALOG": str(folder / "catalog"),
            "WWTS_STORE": str(folder / "store"),
            "WWTS_DEVICE": "cpu",
        }
        _make(_sources(context.obj)[:1], folder / "first", _SMALL, 1)
        # Registers the model and makes Airflow's database: done once in a shop's life, not every night.
        _night({**environment, "WWTS_CATALOG": str(folder / "first")})
        wall = _night(environment)
        fixed = min(_night(environment) for _ in range(rounds))
        store = Store(str(folder / "store"))
        markers = [key for key in store.list("runs", ".json") if "/shard-" in key]
        shards = sum(store.read_json(key)["seconds"] for key in markers)
    table = Table("images", "DAG, s", "empty night, s", "shards, s", "over the shard work", title="Orchestration")
    table.add_row(f"{count:,}", f"{wall:.1f}", f"{fixed:.1f}", f"{shards:.1f}", f"{(wall - fixed) / shards - 1:+.1%}")
    out.print(table)


def _night(environment: dict[str, str]) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "wwts_ops.cli", "run", "tag_catalog"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WwtsError(f"The night failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


class _Bench:
    """One catalog in one store with one loaded tagger."""

    def __init__(self, folder: Path, thumbnails: str) -> None:
        self.paths = sorted(path for path in (folder / "catalog").iterdir())
        self._settings: Settings = settings.load(
            catalog=str(folder / "catalog"), store=str(folder / "store"), thumbnails=thumbnails, device="cpu"
        )
        self._folder = folder
        self._tagger = registration.embedded(settings.load(store=str(Path(tempfile.gettempdir(), "wwts-bench-models"))))
        self._machine = Machine.of(self._tagger, taxonomy.embedded(()), self._settings)
        self._round = 0

    def pipeline(self) -> float:
        """The whole shard stage over a store that knows nothing yet; its seconds. Planning is another stage."""
        self._round += 1
        store = Store(str(self._folder / f"store-{self._round}"))
        pin = Pin("bench", "1", self._tagger.sha256, self._tagger.backbone_sha256, "embedded")
        bench = self._settings.model_copy(update={"shard_size": len(self.paths)})
        plan = planning.commit(store, planning.propose(store, bench, Request(dt.date(2026, 1, 1), pin)))
        assert plan is not None
        done = tagging.tag(store, bench, Shard(plan, 0), lambda: self._machine)
        assert done["tagged"] == len(self.paths), done
        return float(done["seconds"])

    def ceiling(self) -> float:
        """Images a second that decoding alone and the network alone would allow on the same cores."""
        recipe, cores = self._tagger.recipe, len(os.sched_getaffinity(0))
        data = [path.read_bytes() for path in self.paths]

        def decode(encoded: bytes) -> Any:
            return recipe.crop(images.decode(encoded, recipe.short_side, _MAX_PIXELS).rgb)[None]

        with ThreadPoolExecutor(cores, initializer=one_core) as pool:
            started = time.perf_counter()
            crops = list(pool.map(decode, data))
            decoding = len(crops) / (time.perf_counter() - started)
            embedding = _rate(len(crops), lambda: sum(1 for _ in pool.map(self._machine.embed, crops)))
        return 1 / (1 / decoding + 1 / embedding)


def _rate(count: int, work: Callable[[], int]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


@contextmanager
def _bench(photos: Path | None, side: int, count: int, thumbnails: str) -> Iterator[_Bench]:
    with tempfile.TemporaryDirectory(prefix="wwts-bench-") as name:
        folder = Path(name)
        _make(_sources(photos), folder / "catalog", side, count)
        yield _Bench(folder, thumbnails)


def _sources(photos: Path | None) -> list[Path]:
    if photos is None:
        return demo.photographs()
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not found:
        raise WwtsError(f"{photos} holds no photographs (.jpg, .png, .webp).")
    return found


def _make(sources: list[Path], folder: Path, side: int, count: int) -> None:
    """``count`` JPEG files of different content whose long side is ``side``; bytes after the end make more of few."""
    from PIL import Image

    folder.mkdir(parents=True)
    encoded: list[bytes] = []
    with tempfile.TemporaryDirectory() as scratch:
        for source in sources[: min(count, len(sources), 200)]:
            with Image.open(source) as opened:
                photo = opened.convert("RGB")
            scale = side / max(photo.size)
            photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
            path = Path(scratch, "photo.jpg")
            photo.save(path, quality=90)
            encoded.append(path.read_bytes())
    for number in range(count):
        # What follows a JPEG's end marker is no part of the picture, but of the content's hash.
        (folder / f"{number:06d}.jpg").write_bytes(encoded[number % len(encoded)] + number.to_bytes(4, "big"))


if __name__ == "__main__":
    app()
