"""How long a retraining takes, and how much memory: ``python -m training.bench retrain --rows 50000 --labels 1081``.

The head is the embedded default's own; the embeddings are made up, in clusters that lie along few directions, as those
of photographs do. Measured are both parts apart: from frozen answers and stored embeddings to a dataset, most of which
is looking for near-duplicates, and from there to a head with its thresholds, learning curve and confusions. Not
measured: further views of pictures that were answered since the last training, which are embedded once. Not a test:
the machine decides.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from eval.memory import peak_memory_mb
from training import dataset as datasets
from training import snapshot, train
from training.dataset import Dataset
from wwts_ops import badcases, corrections, logs, registration, settings, taxonomy
from wwts_ops.corrections import Answer
from wwts_ops.embeddings import EmbeddingWriter, part_key
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.taxonomy import Label
from wwts_ops.tracking import ModelVersion

Array = np.ndarray[Any, Any]

_BLOCK: Final = 4_096
#: Standard deviation of a number of an embedding: between labels, and within one.
_BETWEEN, _WITHIN = 0.35, 0.45
#: Directions along which clusters lie, and the share of their variance that lies along all others.
_DIRECTIONS, _REST = 96, 0.1
_RUN: Final = "20260301-000000000001"

out = Console(highlight=False)
app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def _several() -> None:
    """Keeps ``retrain`` a command of its own though it is the only one."""


@app.command()
def retrain(
    rows: Annotated[int, typer.Option(min=1, help="answered pictures, all with a stored embedding")] = 50_000,
    labels: Annotated[int, typer.Option(min=1, help="answered labels; beyond those of the base they are new")] = 1_081,
    views: Annotated[
        int | None, typer.Option(min=0, help="further views of each picture that is trained on; default: the setting")
    ] = None,
    rehearsal: Annotated[
        int | None, typer.Option(min=0, help="catalog contents without an answer; default: the setting")
    ] = None,
) -> None:
    """Measure one retraining of the embedded default, its dataset included: wall seconds and peak memory."""
    logs.configure("json", level=40)
    base = registration.embedded(settings.load(store=str(Path(tempfile.gettempdir(), "wwts-bench-models"))))
    with tempfile.TemporaryDirectory(prefix="wwts-bench-") as folder:
        more = {} if rehearsal is None else {"rehearsal": rehearsal}
        chosen = settings.load(store=folder, **more)
        order = stored(base, chosen, rows, labels)
        held = peak_memory_mb()
        with _timed() as building:
            data = datasets.build(chosen, order, base)
        further = chosen.training_views if views is None else views
        viewed = with_views(data, further)
        with _timed() as training:
            trained = train.train(viewed, base, chosen, seed=0)
    table = Table("", "", title="Retraining", show_header=False)
    seen = f"{len(data.train):,} to train on, each {further + 1} times; {len(data.validation):,} to validate"
    table.add_row("embeddings", f"{rows:,} answered: {seen}; {len(data.rehearsal):,} of rehearsal")
    table.add_row("labels", f"{len(data.label_ids):,} answered, {len(trained.head.label_ids):,} in the head")
    table.add_row("cores", f"{len(os.sched_getaffinity(0))}; load {os.getloadavg()[0]:.1f}")
    table.add_row("seconds for the dataset", str(building))
    table.add_row("seconds for the head", str(training))
    table.add_row("peak memory, MB", f"{peak_memory_mb():,.0f} ({held:,.0f} before)")
    table.add_row("accuracy of the validation", f"{trained.validation.get('accuracy', float('nan')):.1%}")
    out.print(table)


@dataclass
class _Times:
    """Of a block that has ended."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.cpu:.1f} of all cores together)"


@contextmanager
def _timed() -> Iterator[_Times]:
    found = _Times()
    yield found
    found.wall, found.cpu = time.perf_counter() - found.wall, time.process_time() - found.cpu


def stored(base: Tagger, chosen: Settings, rows: int, labels: int) -> datasets.Order:
    """A shop of made-up answers in clusters, a cluster a label, and a catalog without answers; the same every time."""
    store = Store.of(chosen)
    label_ids = [*base.label_ids[:labels], *(f"bench:{number:05d}" for number in range(labels - len(base.label_ids)))]
    taxonomy.ensure(store, chosen.forced_review)
    taxonomy.add(store, "bench", [Label(label_id, label_id) for label_id in label_ids])
    # Of what is in the catalog unanswered, a part is of the audit, and rehearses nothing.
    targets = np.arange(rows + chosen.rehearsal + chosen.rehearsal // 10) % labels
    contents = [hashlib.sha256(f"bench {number}".encode()).hexdigest() for number in range(len(targets))]
    key = part_key(base.backbone_sha256, "2026-03-01", _RUN, 0)
    vectors = _vectors(base.recipe.dimension, labels, targets)
    with store.writing(key) as path, EmbeddingWriter(path, base.backbone_sha256, base.recipe.dimension) as writer:
        for content, vector in zip(contents, vectors, strict=True):
            writer.add(content, vector)
    cases = [case.content_sha256 for case in badcases.ensure(store, taxonomy.ensure(store, ())).cases]
    # Like nothing that is answered: each its own cluster.
    unlike = _vectors(base.recipe.dimension, labels + len(cases), np.arange(labels, labels + len(cases)))
    badcases.add_embeddings(store, base.backbone_sha256, cases, unlike)
    corrections.record(chosen, [_answer(contents[row], label_ids[targets[row]]) for row in range(rows)])
    model = ModelVersion("bench", "1", base.sha256, base.backbone_sha256, "0" * 64)
    return datasets.Order(snapshot.freeze(chosen).name, model, base.backbone_sha256)


def _answer(content: str, label_id: str) -> Answer:
    return Answer(
        answer_id=content,
        answered_at=datetime(2026, 3, 1, tzinfo=UTC),
        answered_by="bench",
        content_sha256=content,
        kind="correct",
        labels=(label_id,),
        source="bench",
        shown_because="audit",
        sampling_probability=0.05,
    )


def _vectors(dimension: int, clusters: int, targets: Array) -> Array:
    """A block at a time, so that the peak is the training's."""
    numbers = np.random.default_rng(1)
    few = min(_DIRECTIONS, dimension)
    directions = numbers.standard_normal((few, dimension), np.float32) * np.float32(np.sqrt((1 - _REST) / few))
    centres = _BETWEEN * numbers.standard_normal((clusters, few), np.float32) @ directions
    made = np.empty((len(targets), dimension), np.float16)
    for begin in range(0, len(targets), _BLOCK):
        block = targets[begin : begin + _BLOCK]
        noise = numbers.standard_normal((len(block), few), np.float32) @ directions
        noise += np.float32(np.sqrt(_REST)) * numbers.standard_normal((len(block), dimension), np.float32)
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
