"""What answers are worth, on photographs: ``python -m training.bench_accuracy PHOTOS``.

PHOTOS holds ``train.txt`` (what people answered) and ``val.txt`` (what is measured), each line ``path, label number,
coarse number``, and ``labels_zh.csv`` with ``class_id``, ``label_zh`` and ``category_path``. The way is the shop's own:
a night embeds all photographs, the answers are imported from a file, and the stages of ``retrain_head`` make the head.
Beside it stands the plain probe: a logistic regression on the very same embeddings, standardised.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from training import dataset as datasets
from training import retrain
from training.order import Order
from wwts_ops import corrections, embeddings, images, night, registry, shares
from wwts_ops import settings as settings_module
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Head, Tagger

Array = np.ndarray[Any, Any]

PREFIX = "bench:"
_DATE = "2026-01-05"

out = Console(highlight=False, width=140)
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Photo:
    """One line of a list: content, and the numbers of its fine and its coarse label."""

    path: Path
    content: str
    fine: int
    coarse: int


@dataclass(frozen=True)
class Outcome:
    """What a head said of the measured photographs; ``bool [n]`` each."""

    fine: Array
    coarse: Array
    auto: Array
    truth: Array

    def figures(self) -> dict[str, Any]:
        """Shares with 95 % Wilson intervals."""
        by_label = [float(self.fine[self.truth == label].mean()) for label in np.unique(self.truth)]
        return {
            "n": len(self.fine),
            "fine": _share(self.fine),
            "coarse": _share(self.coarse),
            "macro": float(np.mean(by_label)),
            "auto_precision": _share(self.fine[self.auto]) if self.auto.any() else None,
            "coverage": float(self.auto.mean()),
        }


def _share(right: Array) -> tuple[float, float, float]:
    rate = float(right.mean())
    return rate, *shares.wilson(rate, len(right))


def listed(folder: Path, name: str) -> list[Photo]:
    """The photographs of one list."""
    found = []
    for line in (folder / name).read_text(encoding="utf-8").splitlines():
        if line.strip():
            path, fine, coarse = (part.strip() for part in line.rsplit(",", 2))
            content = images.content_sha256((folder / path).read_bytes())
            found.append(Photo(folder / path, content, int(fine), int(coarse)))
    return found


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _names(folder: Path) -> dict[int, dict[str, str]]:
    with (folder / "labels_zh.csv").open(encoding="utf-8-sig", newline="") as file:
        return {int(row["class_id"]): row for row in csv.DictReader(file)}


def tagged(settings: Settings, backbone_sha256: str) -> float:
    """A whole night; images per second of its shards, 0 where all was done before."""
    import datetime as dt

    planned = night.plan(settings, night.Order(dt.date.fromisoformat(_DATE)), "LocalExecutor")
    assert planned is not None
    started = time.perf_counter()
    for shard in planned["shards"]:
        night.tag_shard(settings, shard["run_key"], shard["shard"])
    seconds = time.perf_counter() - started
    night.publish_tags(settings)
    night.finish(settings, planned["run_keys"])
    store = Store.of(settings)
    rows = sum(embeddings.rows(store, key) for key in embeddings.parts(store, backbone_sha256))
    return rows / seconds if planned["shards"] else 0.0


def learned(settings: Settings) -> tuple[Head, Tagger, datasets.Dataset, dict[str, Any], float]:
    """The stages of ``retrain_head`` up to the head; with the seconds that the last of them took."""
    order = Order(**(retrain.prepare(settings, {"force": True}) or {}))
    retrain.build_dataset(settings, order)
    started = time.perf_counter()
    retrain.train(settings, order)
    seconds = time.perf_counter() - started
    store = Store.of(settings)
    trained = retrain.trained(store, order)
    base = registry.fetch(settings, registry.resolve(settings, order.base_version))
    return trained.head, base, retrain.dataset(store, order), vars(trained), seconds


def judged(head: Head, vectors: Array, photos: list[Photo], coarse: Mapping[int, int]) -> Outcome:
    """What ``head`` says of ``photos``, whose embeddings are ``vectors``; one of the old labels is never right."""
    logits = vectors.astype(np.float32) @ head.weight.T + head.bias
    best = logits.argmax(axis=1)
    score = np.exp(logits[np.arange(len(best)), best] - np.logaddexp.reduce(logits, axis=1))
    said = [_number(head.label_ids[row]) for row in best]
    return Outcome(
        fine=np.array([one == photo.fine for one, photo in zip(said, photos, strict=True)]),
        coarse=np.array([coarse.get(one, -1) == photo.coarse for one, photo in zip(said, photos, strict=True)]),
        auto=score >= head.thresholds[best],
        truth=np.array([photo.fine for photo in photos]),
    )


def _number(label_id: str) -> int:
    return int(label_id.removeprefix(PREFIX)) if label_id.startswith(PREFIX) else -1


def probed(examples: tuple[Array, Array], vectors: Array, photos: list[Photo], coarse: Mapping[int, int]) -> Outcome:
    """The plain probe on the same photographs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    given, targets = examples
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    probe.fit(given.astype(np.float32), targets)
    said = probe.predict(vectors.astype(np.float32))
    truth = np.array([photo.fine for photo in photos])
    wanted = np.array([photo.coarse for photo in photos])
    found = np.array([coarse[int(one)] for one in said])
    return Outcome(said == truth, found == wanted, np.zeros(len(truth), bool), truth)


def _settings(folder: Path, catalog: Path, given: Mapping[str, Any]) -> Settings:
    # Nothing of the shop's own surroundings: what is measured is what is shipped.
    return settings_module.load(
        store=str(folder / "store"),
        catalog=str(catalog),
        database_url=f"sqlite:///{folder / 'wwts.db'}",
        mlflow_tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        **given,
    )


@app.command()
def main(
    photos: Annotated[Path, typer.Argument(help="folder with train.txt, val.txt and labels_zh.csv")],
    backbone: Annotated[str, typer.Option(help="such as efficientnet-lite0, or lite:lite2@320+lite2@260+flip")] = "",
    views: Annotated[int, typer.Option(help="further views of each answered photograph, for training only")] = 4,
    holdout: Annotated[
        float, typer.Option(help="share kept from training for the audit; a shop's default is 0.05")
    ] = 0,
    reverse: Annotated[bool, typer.Option(help="learn from val.txt, measure on train.txt")] = False,  # noqa: FBT002
    work: Annotated[Path | None, typer.Option(help="folder to keep the store in, to go on from; default: none")] = None,
) -> None:
    """Measure accuracy, macro-accuracy, auto precision and coverage after learning from answers, and their price."""
    given = {"backbone": backbone or None, "training_views": views, "holdout_share": holdout}
    with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as folder:
        place = Path(folder).absolute()
        place.mkdir(parents=True, exist_ok=True)
        lists = ("val.txt", "train.txt") if reverse else ("train.txt", "val.txt")
        found = measured(photos.absolute(), place, lists, given)
    out.print(_table(found))
    out.print_json(json.dumps(found, ensure_ascii=False))


def measured(photos: Path, place: Path, lists: tuple[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """All figures, as :func:`main` prints them."""
    taught, asked = (listed(photos, name) for name in lists)
    names = _names(photos)
    every = {photo.content: photo for photo in (*taught, *asked)}.values()
    rows = ({"image_id": str(one.path.relative_to(photos)), "uri": str(one.path)} for one in every)
    settings = _settings(place, _write_csv(place / "catalog.csv", rows), given)
    champion = registry.ensure_champion(settings)
    speed = tagged(settings, champion.backbone_sha256)
    told = corrections.import_answers(
        Store.of(settings), settings, _write_csv(place / "answers.csv", _answers(taught, names)), "bench"
    )
    out.print(f"{told.added:,} answers, {len(told.refused):,} refused, {len(told.labels_added):,} new labels")
    head, base, dataset, trained, seconds = learned(settings)
    vectors, known = _vectors(settings, base, asked)
    coarse = {photo.fine: photo.coarse for photo in (*taught, *asked)}
    figures: dict[str, Any] = {
        "backbone": base.recipe.backbone,
        "images_per_second_of_the_night": round(speed, 1),
        "bytes_per_embedding": 2 * base.recipe.dimension,
        "seconds_of_training": round(seconds, 1),
        "learned_from": len(set(dataset.train.contents) | set(dataset.validation.contents)),
        "excluded": dataset.excluded,
        "head": judged(head, vectors, known, coarse).figures(),
        "own_estimate": trained["validation"],
        "chosen": trained["chosen"],
        "curve": _curve(trained["curve"]),
    }
    figures["plain_probe"] = probed(_all(settings, base, taught), vectors, known, coarse).figures()
    return figures


def _answers(taught: Iterable[Photo], names: Mapping[int, Mapping[str, str]]) -> Iterable[dict[str, Any]]:
    for photo in taught:
        name = names[photo.fine]
        told = {"label_zh": name["label_zh"], "category_path": name["category_path"]}
        yield {"uri": str(photo.path), "label_id": f"{PREFIX}{photo.fine}", **told}


def _vectors(settings: Settings, base: Tagger, photos: list[Photo]) -> tuple[Array, list[Photo]]:
    """Embeddings of those photographs that have one, and these."""
    found, vectors = embeddings.take(Store.of(settings), base.backbone_sha256, [photo.content for photo in photos])
    return vectors, [photo for photo, there in zip(photos, found, strict=True) if there]


def _all(settings: Settings, base: Tagger, photos: list[Photo]) -> tuple[Array, Array]:
    vectors, known = _vectors(settings, base, photos)
    return vectors, np.array([photo.fine for photo in known])


def _curve(points: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for point in points:
        found.setdefault(str(point["answers_per_label"]), []).append(float(point["accuracy"]))
    return {size: round(float(np.mean(values)), 4) for size, values in found.items()}


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(title=f"{found['backbone']}: {found['images_per_second_of_the_night']} images/s")
    for column in ("", "n", "fine", "coarse", "macro", "auto precision", "coverage"):
        table.add_column(column)
    for name in ("plain_probe", "head"):
        if name in found:
            row = found[name]
            cells = (_told(row[key]) for key in ("fine", "coarse", "macro", "auto_precision", "coverage"))
            table.add_row(name.replace("_", " "), str(row["n"]), *cells)
    return table


def _told(value: float | tuple[float, float, float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:.1%} ({value[1]:.1%}–{value[2]:.1%})"
    return f"{value:.1%}"


if __name__ == "__main__":
    app()
