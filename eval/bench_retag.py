"""Tagging from pixels against re-tagging from embeddings: ``python -m eval.bench_retag [PHOTOS]``.

Both in one run and in turn, because machines are shared and noisy: the median of the ratios of neighbours counts.
The photographs are real, the embeddings made up: how long a product of matrices takes does not depend on its numbers.
Memory is the peak of a process of its own that re-tags a whole catalog, shard after shard. Not a test.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from eval.memory import peak_memory_mb
from wwts_ops import demo, embeddings, logs, planning, registration, retagging, settings, tagging, taxonomy
from wwts_ops.decisions import Decider
from wwts_ops.embeddings import EmbeddingWriter
from wwts_ops.errors import WwtsError
from wwts_ops.planning import Pin, Request
from wwts_ops.retagging import Head
from wwts_ops.runtime import Scorer
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.tagging import Machine, Shard

_TOP_K = 5
_PART_ROWS = 8_000  # of a million images in 128 shards

out = Console(highlight=False)
app = typer.Typer(help=__doc__, no_args_is_help=False, pretty_exceptions_enable=False)


@app.command()
def compare(
    photos: Annotated[Path | None, typer.Argument(help="folder of photographs; default: those of the demo")] = None,
    images: Annotated[int, typer.Option(help="photographs a round, at most")] = 300,
    rows: Annotated[int, typer.Option(help="embeddings a round")] = 100_000,
    rounds: int = 5,
    large: Annotated[int, typer.Option(help="embeddings of the larger catalog, for its memory")] = 400_000,
) -> None:
    """Measure the ratio, then the peak memory at two sizes of the catalog."""
    logs.configure("json", level=40)
    with tempfile.TemporaryDirectory(prefix="wwts-bench-") as name:
        folder = Path(name)
        _speed(folder, _catalog(photos, folder), images, rows, rounds)
    _memory(large // 8, large)


def _speed(folder: Path, catalog: Path, images: int, rows: int, rounds: int) -> None:
    tagger, store = _tagger(), Store(str(folder / "embeddings"))
    parts = _make(store, tagger, rows)
    head, workers = _head(tagger), retagging.workers(settings.load())
    found: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        pixels = _pixels(folder / f"store-{number}", catalog, tagger, images)
        started = time.perf_counter()
        retagging.write_part(store, f"retags/bench/part-{number:05d}.parquet", parts, head, workers)
        found.append((pixels, rows / (time.perf_counter() - started)))
    measured = found[1:]  # the first one warmed both up
    table = Table("from pixels, images/s", "from embeddings, images/s", "ratio", title=f"Re-tagging, {workers} threads")
    ratio = statistics.median(retag / pixels for pixels, retag in measured)
    pixels, retag = (statistics.median(column) for column in zip(*measured, strict=True))
    spread = " ".join(f"{one / other:,.0f}" for other, one in measured)
    table.add_row(f"{pixels:,.1f}", f"{retag:,.0f}", f"{ratio:,.0f}× (rounds: {spread})")
    out.print(table)


def _memory(small: int, large: int) -> None:
    peaks = {}
    for rows in (small, large):
        command = [sys.executable, "-m", "eval.bench_retag", "--child", str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[rows] = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
    table = Table("embeddings", "peak memory, MB", title="Memory of re-tagging a catalog")
    for rows, peak in peaks.items():
        table.add_row(f"{rows:,}", f"{peak:,.0f}")
    table.add_row("ratio", f"{peaks[large] / peaks[small]:.3f}")
    out.print(table)


def _retag_all(rows: int) -> None:
    """Re-tags a catalog of ``rows``, shard after shard as they are planned, and prints the peak memory."""
    logs.configure("json", level=40)
    tagger = _tagger()
    with tempfile.TemporaryDirectory(prefix="wwts-bench-") as folder:
        store = Store(folder)
        parts = _make(store, tagger, rows)
        edges = retagging.edges([embeddings.rows(store, key) for key in parts])
        head, workers = _head(tagger), retagging.workers(settings.load())
        for number, first in enumerate(edges[:-1]):
            key = f"retags/bench/part-{number:05d}.parquet"
            retagging.write_part(store, key, parts[first : edges[number + 1]], head, workers)
    print(json.dumps({"peak_mb": peak_memory_mb()}))  # noqa: T201


def _tagger() -> Tagger:
    return registration.embedded(settings.load(store=str(Path(tempfile.gettempdir(), "wwts-bench-models"))))


def _head(tagger: Tagger) -> Head:
    return Head(Scorer(tagger), Decider(tagger.label_ids, tagger.thresholds, taxonomy.embedded(()), _TOP_K))


def _make(store: Store, tagger: Tagger, rows: int) -> list[str]:
    """Parts of made-up embeddings."""
    numbers = np.random.default_rng(1)
    sha, dimension = tagger.backbone_sha256, tagger.recipe.dimension
    parts = []
    for shard, start in enumerate(range(0, rows, _PART_ROWS)):
        count = min(_PART_ROWS, rows - start)
        vectors = np.abs(numbers.normal(0, 0.4, (count, dimension))).astype(np.float16)
        key = embeddings.part_key(sha, "2026-01-01", "bench", shard)
        with store.writing(key) as path, EmbeddingWriter(path, sha, dimension) as writer:
            for number, vector in enumerate(vectors, start):
                writer.add(hashlib.sha256(number.to_bytes(8, "big")).hexdigest(), vector)
        parts.append(key)
    return parts


def _pixels(folder: Path, catalog: Path, tagger: Tagger, images: int) -> float:
    """Images a second of the night's own shard stage, without thumbnails."""
    chosen = settings.load(
        catalog=str(catalog), store=str(folder), thumbnails="none", device="cpu", shard_size=images, release="live"
    )
    machine = Machine.of(tagger, taxonomy.embedded(()), chosen)
    pin = Pin("bench", "1", tagger.sha256, tagger.backbone_sha256, "embedded")
    store = Store.of(chosen)
    plan = planning.commit(store, planning.propose(store, chosen, Request(dt.date(2026, 1, 1), pin, limit=images)))
    assert plan is not None
    done = tagging.tag(store, chosen, Shard(plan, 0), lambda: machine)
    return float(done["images"] / done["seconds"])


def _catalog(photos: Path | None, folder: Path) -> Path:
    if photos is None:
        made = folder / "catalog"
        made.mkdir()
        for photo in demo.photographs():
            (made / photo.name).write_bytes(photo.read_bytes())
        return made
    if not photos.is_dir():
        raise WwtsError(f"{photos} is no folder of photographs.")
    return photos.absolute()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _retag_all(int(sys.argv[2]))
    else:
        app()
