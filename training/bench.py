"""How long a retraining takes, and how much memory: ``python -m training.bench retrain --rows 50000 --labels 1081``.

The head is the embedded default's own; the embeddings are made up, in clusters, because how long matrices take does not
depend on their numbers. Measured is all from a dataset to a head with its thresholds, learning curve and confusions.
Not a test: the machine decides.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from eval.memory import peak_memory_mb
from training import train
from training.dataset import Dataset, Examples
from wwts_ops import logs, registration, settings
from wwts_ops.tagger import Tagger

Array = np.ndarray[Any, Any]

_SHARE: Final = 6  # of the rows, one in so many is for validation, as the dataset has it
_BLOCK: Final = 4_096
#: Standard deviation of a number of an embedding: between labels, and within one.
_BETWEEN, _WITHIN = 0.35, 0.45

out = Console(highlight=False)
app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def _several() -> None:
    """Keeps ``retrain`` a command of its own though it is the only one."""


@app.command()
def retrain(
    rows: Annotated[int, typer.Option(min=1, help="answered pictures, all with a stored embedding")] = 50_000,
    labels: Annotated[int, typer.Option(min=1, help="answered labels; beyond those of the base they are new")] = 1_081,
    views: Annotated[int, typer.Option(min=0, help="further views of each picture that is trained on")] = 0,
    rehearsal: Annotated[
        int | None, typer.Option(min=0, help="catalog contents without an answer; default: the setting")
    ] = None,
) -> None:
    """Measure one retraining of the embedded default: wall seconds and peak memory."""
    logs.configure("json", level=40)
    chosen = settings.load(store=str(Path(tempfile.gettempdir(), "wwts-bench-models")))
    base = registration.embedded(chosen)
    before = chosen.rehearsal if rehearsal is None else rehearsal
    data = with_views(dataset(base, rows, labels, before), views)
    held = peak_memory_mb()
    started, used = time.perf_counter(), time.process_time()
    trained = train.train(data, base, chosen, seed=0)
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    table = Table("", "", title="Retraining", show_header=False)
    table.add_row("embeddings", f"{len(data.train) + len(data.validation):,} and {before:,} of rehearsal")
    table.add_row("labels", f"{len(data.label_ids):,} answered, {len(trained.head.label_ids):,} in the head")
    table.add_row("cores", f"{len(os.sched_getaffinity(0))}; load {os.getloadavg()[0]:.1f}")
    table.add_row("seconds", f"{wall:.1f} ({cpu:.1f} of all cores together)")
    table.add_row("peak memory, MB", f"{peak_memory_mb():,.0f} ({held:,.0f} before the training)")
    table.add_row("accuracy of the validation", f"{trained.validation.get('accuracy', float('nan')):.1%}")
    out.print(table)


def dataset(base: Tagger, rows: int, labels: int, rehearsal: int) -> Dataset:
    """Made-up answers in clusters, a cluster a label; the same numbers every time."""
    known = base.label_ids[:labels]
    label_ids = tuple(sorted([*known, *(f"bench:{number:05d}" for number in range(labels - len(known)))]))
    numbers = np.random.default_rng(1)
    centres = numbers.normal(0, _BETWEEN, (labels, base.recipe.dimension)).astype(np.float32)
    held = rows // _SHARE
    train_rows, validation_rows = _examples(numbers, centres, rows - held, 0), _examples(numbers, centres, held, rows)
    return Dataset(
        label_ids=label_ids,
        train=train_rows,
        validation=validation_rows,
        audit=_examples(numbers, centres, 0, 2 * rows),
        rehearsal=_vectors(numbers, centres, numbers.integers(0, labels, rehearsal)),
        rehearsal_contents=tuple(f"{2 * rows + number:064x}" for number in range(rehearsal)),
        excluded={},
        conflicts=(),
        sha256="",
    )


def _examples(numbers: np.random.Generator, centres: Array, rows: int, first: int) -> Examples:
    targets = np.arange(rows) % len(centres)
    return Examples(
        vectors=_vectors(numbers, centres, targets),
        targets=targets,
        weights=np.ones(rows, np.float32),
        groups=np.arange(first, first + rows),
        contents=tuple(f"{number:064x}" for number in range(first, first + rows)),
        probability=np.full(rows, np.nan),
        shown=("import",) * rows,
        view_of=np.arange(rows),
    )


def _vectors(numbers: np.random.Generator, centres: Array, targets: Array) -> Array:
    """A block at a time, so that the peak is the training's."""
    made = np.empty((len(targets), centres.shape[1]), np.float16)
    for begin in range(0, len(targets), _BLOCK):
        block = targets[begin : begin + _BLOCK]
        noise = numbers.standard_normal((len(block), centres.shape[1]), np.float32)
        made[begin : begin + _BLOCK] = np.clip(centres[block] + _WITHIN * noise, 0, 6)
    return made


def with_views(data: Dataset, views: int) -> Dataset:
    """Each picture that is trained on ``views`` more times, behind the originals, as training has them."""
    examples = data.train
    rows = np.tile(np.arange(len(examples)), views + 1)
    viewed = replace(
        examples,
        vectors=examples.vectors[rows],
        targets=examples.targets[rows],
        weights=examples.weights[rows],
        groups=examples.groups[rows],
        contents=examples.contents * (views + 1),
        probability=examples.probability[rows],
        shown=examples.shown * (views + 1),
        view_of=rows,
    )
    return replace(data, train=viewed)


if __name__ == "__main__":
    app()
