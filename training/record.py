"""What MLflow shows of a training: all of it in the run that registered its model, and a description on the version.

The version is registered first, with its tags; then everything else is added to its run, and ``training.recorded`` on
the version last. Recording again what was cut off ends the same: names and times are the training's own.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import structlog

from eval import charts, comparison, fonts, markdown
from eval.markdown import text
from training import conflicts, lineage
from wwts_ops import sheets, taxonomy, tracking
from wwts_ops.storage import Store

if TYPE_CHECKING:
    from eval.comparison import Names
    from training.order import Made
    from wwts_ops.settings import Settings
    from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

#: Tag of the version, set when all of its training is recorded.
RECORDED = "training.recorded"
#: Folder of the run's artifacts.
FOLDER = "training"
#: Characters of a tag with label ids; MLflow's own limit is 5,000.
_LONGEST = 2_000
#: Rows of a table in the description: the gate's verdict, which will stand above it, needs the room.
_SHOWN = 5
_BATCH = 500
#: Ends the description, so that it is found again; MLflow does not show comments.
_MARK = "<!-- wwts: training {} -->"

#: Measures that people are shown, by their names in ``Trained.validation``.
_MEASURES = {
    "accuracy": "首位准确率",
    "macro": "各标签平均准确率",
    "auto_precision": "自动通过的准确率",
    "precision": "自动通过的准确率",
    "coverage": "自动通过的占比",
    "top5": "前五准确率",
}


def tags(made: Made) -> dict[str, str]:
    """Of the version: what it was trained from, and by which training."""
    order = made.order
    shown = ",".join(made.new_labels)
    return {
        "training": order.training,
        "training.snapshot": order.snapshot,
        "training.snapshot_sha256": order.snapshot_sha256,
        "training.dataset_sha256": made.dataset.sha256,
        "training.contents_sha256": made.contents_sha256,
        lineage.BASE_VERSION: order.base_version,
        lineage.BASE_SHA256: order.base_sha256,
        "training.badcases": order.badcases,
        "training.new_labels": str(len(made.new_labels)),
        "training.new_label_ids": shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…",
    }


def params(made: Made) -> dict[str, object]:
    """Of the run: what was chosen by people and by the search."""
    order, dataset = made.order, made.dataset
    chosen = {f"chosen.{name}": str(value)[:500] for name, value in made.trained.chosen.items()}
    return {
        "training": order.training,
        "snapshot": order.snapshot,
        "base_version": order.base_version,
        "backbone_name": order.backbone,
        "seed": order.seed,
        "answers": order.answers,
        "new_answers": order.new,
        "answered_labels": len(dataset.label_ids),
        "new_labels": len(made.new_labels),
        "train_examples": len(dataset.train),
        "validation_examples": len(set(dataset.validation.contents)),
        "rehearsal_examples": len(dataset.rehearsal),
        "conflicts": len(made.conflicts),
        **{f"setting.{name}": value for name, value in order.settings.items()},
        **chosen,
    }


def write(settings: Settings, model: ModelVersion, made: Made) -> None:
    """Adds all of a training to the run of its version, unless it is there.

    Raises:
        UnavailableError: when MLflow does not answer; recorded again, it ends the same.
    """
    store = Store.of(settings)
    names = comparison.names(store)
    with tracking.connected(settings) as client:
        entry = client.get_model_version(model.name, model.version)
        if entry.tags.get(RECORDED) == made.order.training:
            return
        if RECORDED in entry.tags and entry.tags.get("training.dataset_sha256") == made.dataset.sha256:
            # Trained again from the same, it is the same version: all of this is there.
            return
        run = client.get_run(_run_id(client, entry))
        place = _Place(client, run.info.experiment_id, run.info.run_id)
        _log_numbers(place, made)
        _log_inputs(place, made)
        with tempfile.TemporaryDirectory(prefix="wwts-training-") as folder:
            for name, data in _files(store, made, names).items():
                Path(folder, name).write_bytes(data)
            client.log_artifacts(place.run_id, folder, FOLDER)
        shown = describe(made, names, place.link, ZoneInfo(settings.timezone))
        client.set_tag(place.run_id, "mlflow.note.content", shown)
        if _MARK.format(made.order.training) not in (entry.description or ""):
            whole = f"{shown}\n\n{entry.description}" if entry.description else shown
            client.update_model_version(model.name, model.version, whole)
        client.set_model_version_tag(model.name, model.version, RECORDED, made.order.training)
    log.info("training_recorded", training=made.order.training, version=model.version, run_id=place.run_id)


@dataclass(frozen=True)
class _Place:
    """The run that is written to."""

    client: Any
    experiment_id: str
    run_id: str

    @property
    def link(self) -> str:
        """Its artifacts, on MLflow's own page: see ``eval.description``."""
        return f"#/experiments/{quote(self.experiment_id)}/runs/{quote(self.run_id)}/artifacts"


def _run_id(client: Any, entry: Any) -> str:
    """The run that logged the model behind a version."""
    if entry.run_id:
        return str(entry.run_id)
    return str(client.get_logged_model(str(entry.source).removeprefix("models:/")).source_run_id)


# ------------------------------------------------------------------ numbers


def _log_numbers(place: _Place, made: Made) -> None:
    from mlflow.entities import Metric

    at = int(datetime.fromisoformat(made.order.ordered_at).timestamp() * 1000)
    found = iter([Metric(name, value, at, step) for name, value, step in _metrics(made)])
    while batch := list(islice(found, _BATCH)):
        place.client.log_batch(place.run_id, metrics=batch)


def _metrics(made: Made) -> Iterable[tuple[str, float, int]]:
    for name, value in _flat("validation", made.trained.validation):
        yield name, value, 0
    for name in ("accuracy", "macro"):
        for size, values in _by_size(made.trained.curve, name).items():
            yield f"curve.{name}", sum(values) / len(values), size
    for reason, count in made.dataset.excluded.items():
        yield f"excluded.{reason}", float(count), 0
    yield "conflicts", float(len(made.conflicts)), 0


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}.{name}", value)
        elif isinstance(value, int | float):
            yield f"{prefix}.{name}", float(value)


def _by_size(curve: Sequence[Mapping[str, Any]], name: str) -> dict[int, list[float]]:
    """Values of all seeds by the number of answers a label."""
    found: dict[int, list[float]] = {}
    for point in curve:
        if point.get(name) is not None:
            found.setdefault(int(point["answers_per_label"]), []).append(float(point[name]))
    return dict(sorted(found.items()))


def _log_inputs(place: _Place, made: Made) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    order = made.order
    # MLflow keeps 36 characters of a digest; the version's tags have them all.
    given = (
        (order.snapshot, order.snapshot_sha256, f"trainings/answers/{order.snapshot}.parquet"),
        (f"{order.training} dataset", made.dataset.sha256, made.dataset_key),
        (f"{order.training} contents", made.contents_sha256, order.key("contents.txt")),
    )
    inputs = [
        DatasetInput(Dataset(name, sha256[:36], "wwts", where), [InputTag("mlflow.data.context", "training")])
        for name, sha256, where in given
    ]
    place.client.log_inputs(place.run_id, inputs)


# ------------------------------------------------------------------ files


def _files(store: Store, made: Made, names: Names) -> dict[str, bytes]:
    """Artifacts by name."""
    trained, font = made.trained, fonts.best()
    files = {
        "order.json": json.dumps(asdict(made.order), ensure_ascii=False, indent=1).encode(),
        "hashes.json": json.dumps(_hashes(made), indent=1).encode(),
        "contents.txt": made.contents,
        "rehearsal.txt": "".join(f"{content}\n" for content in made.dataset.rehearsal_contents).encode(),
        "thresholds.csv": _csv(_labelled(trained.thresholds, names)),
        "conflicts.csv": conflicts.to_csv(made.conflicts, taxonomy.current(store)),
        "learning_curve.csv": _csv(trained.curve),
        "confusions.csv": _csv(_labelled(trained.confusions, names)),
    }
    if trained.curve:
        files["learning_curve.png"] = charts.learning_curve(trained.curve, font)
    if trained.confusions:
        files["confusions.png"] = charts.mistakes(trained.confusions, names, font)
    return files


def _hashes(made: Made) -> dict[str, str]:
    return {
        "snapshot": made.order.snapshot_sha256,
        "dataset": made.dataset.sha256,
        "base_model": made.order.base_sha256,
        "backbone": made.order.backbone_sha256,
        "contents.txt": made.contents_sha256,
    }


def _labelled(rows: Iterable[Mapping[str, Any]], names: Names) -> list[dict[str, Any]]:
    """``rows`` with the Chinese name behind every label id."""
    found = []
    for row in rows:
        told: dict[str, Any] = {}
        for key, value in row.items():
            told[key] = value
            if key in ("label_id", "predicted"):
                told[f"{key.removesuffix('_id')}_zh"] = names.chinese(value)
        found.append(told)
    return found


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """With a byte-order mark, which Chinese Excel needs; empty where there is no row."""
    out = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: sheets.cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue().encode("utf-8-sig")


# ------------------------------------------------------------------ the description


def describe(made: Made, names: Names, link: str, zone: ZoneInfo) -> str:
    """What a person reads of a training on the version's page: Markdown, Chinese first, at most about 2,000 characters.

    Args:
        made: the training.
        names: of labels.
        link: to the run's artifacts.
        zone: of the shop.
    """
    order = made.order
    at = datetime.fromisoformat(order.ordered_at).astimezone(zone)
    parts = [
        f"## 🎓 用人工答案训练：{text(order.training)}",
        f"{order.answers:,} 张图有人工答案（上次训练以来变了 {order.new:,} 张），"
        f"从最初的版本 {text(order.base_version)} 开始；骨干网络 {text(order.backbone)}；{at:%Y-%m-%d %H:%M}",
        markdown.table(("", ""), _facts(made)),
        _worst(made, names),
        _added(made, names),
        f"[参数、学习曲线、混淆、各标签阈值、冲突的答案和数据指纹见这次训练的记录]({link})",
        f"*A head trained on {order.answers:,} answers ({order.snapshot}), starting from version "
        f"{text(order.base_version)}, {len(made.new_labels)} labels more than that; all about it is in the run.*",
        _MARK.format(order.training),
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(made: Made) -> Iterable[tuple[str, str]]:
    dataset = made.dataset
    yield "训练 / 验证", f"{len(set(dataset.train.contents)):,} 张 / {len(set(dataset.validation.contents)):,} 张"
    new = f"比版本 {text(made.order.base_version)} 多 {len(made.new_labels):,} 个"
    yield "标签", f"{len(made.trained.head.label_ids):,} 个，{new}"
    yield "互相矛盾或可疑的答案", f"{len(made.conflicts):,} 处"
    # With few answers none are set aside: each is then judged by a head that has not learned from it.
    on = "验证集" if made.trained.validation.get("on") == "validation" else "交叉验证"
    for name, title in _MEASURES.items():
        value = made.trained.validation.get(name)
        if isinstance(value, int | float):
            yield f"{on}：{title}", f"{value:.1%}"
    curve = _by_size(made.trained.curve, "accuracy")
    if curve:
        yield "每个标签答案数 → 准确率", "，".join(f"{n} → {sum(v) / len(v):.0%}" for n, v in curve.items())


def _worst(made: Made, names: Names) -> str:
    shown = made.trained.confusions[:_SHOWN]
    rows = [
        (*(text(names.chinese(one[key]), 24) for key in ("label_id", "predicted")), f"{one['count']} / {one['of']}")
        for one in shown
    ]
    return markdown.table(("最易混淆：正确", "误判为", "张数 / 共"), rows) if rows else ""


def _added(made: Made, names: Names) -> str:
    if not made.new_labels:
        return ""
    shown = "、".join(text(names.chinese(label), 16) for label in made.new_labels[:12])
    return f"**比版本 {text(made.order.base_version)} 新增的标签**：{shown}{'…' if len(made.new_labels) > 12 else ''}"
