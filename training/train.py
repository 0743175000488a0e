"""From a dataset to a head with its thresholds, measured on pictures that it has not seen.

    material ─► search ─► calibrate ─► head ─► thresholds ─► measured on the validation ─► the same once more on all

What is registered has learned from the validation too; what is reported was measured before it did.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import structlog

from training import conflicts, curve, head, search, thresholds
from training.conflicts import Conflict
from training.dataset import WEAK, Dataset, Examples
from training.head import Answered, Calibration, Material
from training.imagined import imagined
from training.thresholds import Learned, Scored
from wwts_ops import shares
from wwts_ops.decisions import Decider
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tagger import Head, Tagger
from wwts_ops.taxonomy import Taxonomy

log = structlog.get_logger(__name__)

Array = np.ndarray[Any, Any]

#: What rehearsal and imagined pictures together count beside the answers.
REHEARSAL_WEIGHT: Final = 1.0
_PAIRS: Final = 20
_BLOCK: Final = 8_192
#: No label stands for another, and none is off.
AS_THEY_ARE: Final = Taxonomy("", ())


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        head: with thresholds learned.
        chosen: what the search and the calibration chose, and by what.
        validation: ``accuracy``, ``macro``, ``auto_precision``, ``coverage`` (0–1), ``n``, ``low`` and ``high`` (Wilson
            interval of accuracy), ``on`` (``validation``, or ``folds`` where there was none); of the answered pictures
            of the audit the same under ``audit``.
        curve: see :func:`training.curve.learn`.
        confusions: the worst pairs: ``label_id``, ``predicted``, ``count``, ``of``.
        thresholds: of every answered label: ``label_id``, ``threshold``, ``precision``, ``coverage``, ``n``, ``how``.
        suspects: answers that all others speak against.
    """

    head: Head
    chosen: dict[str, Any]
    validation: dict[str, Any]
    curve: list[dict[str, float | int]]
    confusions: list[dict[str, Any]]
    thresholds: list[dict[str, Any]]
    suspects: tuple[Conflict, ...] = field(default=())


def train(dataset: Dataset, base: Tagger, settings: Settings, seed: int, names: Taxonomy = AS_THEY_ARE) -> Trained:
    """Trains a head that keeps what ``base`` knows.

    Args:
        dataset: views of answered pictures are welcome.
        base: whose backbone made the embeddings.
        settings: ``target_precision``.
        seed: only kept with the result: nothing here is drawn by it, and learning curves use seeds of their own.
        names: which labels are given: what is measured, and thresholds with it, is what would be decided by them.

    Raises:
        WwtsError: when there is nothing to learn from.
    """
    if not len(dataset.train):
        raise WwtsError(
            "No answer is left to train from: all are held out, contradict each other or lack their picture; "
            f"{dict(dataset.excluded)}."
        )
    if not len(dataset.rehearsal):
        dataset = replace(dataset, rehearsal=dataset.train.vectors[:0])
    old = Head(base.label_ids, base.thresholds, base.head_weight, base.head_bias)
    background = _background(base, dataset)
    course = _Course(dataset, old, background, settings.target_precision, names)
    first = _fitted(course, [dataset.train], None)
    log.info("head_searched", shrinkage=first.shrinkage, accuracies=first.accuracies, **vars(first.calibration))
    asked = dataset.validation.originals
    checked = len(asked) > 0
    measured = _scored(first.decided, dataset, asked) if checked else first.measured
    found = _measures(measured, first.decided)
    log.info("head_measured", on="validation" if checked else "folds", **found)
    points = curve.learn(first.material, *_of_labels(first.material, dataset, asked), first.shrinkage)
    parts = [dataset.train, *([dataset.validation] if checked else [])]
    final = _fitted(course, parts, first.shrinkage) if checked else first
    return Trained(
        head=final.decided.head,
        chosen={
            "shrinkage": final.shrinkage,
            "accuracies": {str(key): value for key, value in first.accuracies.items()},
            **vars(final.calibration),
            "rehearsal_weight": REHEARSAL_WEIGHT,
            "target_precision": settings.target_precision,
            "seed": seed,
        },
        validation={
            **found,
            "on": "validation" if checked else "folds",
            "audit": _measures(_scored(first.decided, dataset, dataset.audit), first.decided),
        },
        curve=points,
        confusions=_confusions(measured, first.decided),
        thresholds=[_told(one, final.decided.head) for one in final.learned],
        suspects=_suspects(parts, final),
    )


def _background(base: Tagger, dataset: Dataset) -> Array:
    """Imagined pictures of the labels that nobody answered."""
    answered = set(dataset.label_ids)
    others = np.array([row for row, label_id in enumerate(base.label_ids) if label_id not in answered], np.int64)
    return imagined(base, np.concatenate([dataset.train.vectors, dataset.rehearsal]), others)


@dataclass(frozen=True)
class _Course:
    """What every fit of a training has in common."""

    dataset: Dataset
    old: Head
    background: Array
    target_precision: float
    names: Taxonomy


@dataclass(frozen=True)
class _Decided:
    """A head as it decides: scores of labels that stand for one are added up, and none is given that is off."""

    head: Head
    names: Taxonomy

    @cached_property
    def _decide(self) -> Decider:
        return Decider(self.head.label_ids, self.head.thresholds, self.names, 1)

    @cached_property
    def _rows(self) -> dict[str | None, int]:
        """Of each label that is given the row of the head whose threshold it goes by; -1 where none is given."""
        label_ids, rows = self.head.label_ids, dict[str | None, int]({None: -1})
        for row in np.argsort(self.head.thresholds, kind="stable").tolist():
            rows[self.names.given(label_ids[row])] = row
        # Its own, where it has one; else the highest of those that stand for it.
        return rows | {label_id: row for row, label_id in enumerate(label_ids) if label_id in rows}

    def best(self, logits: Array) -> tuple[Array, Array]:
        """Of each row of logits (``[n, labels]``) the label that is given, as a row of the head, and its score."""
        said = self._decide.columns(np.exp(logits - head.log_sum(logits)[:, None]).astype(np.float32, copy=False))
        rows = np.array([self._rows[label_id] for label_id in said["label_id"].to_pylist()], np.int64)
        return rows, said["confidence"].fill_null(0).to_numpy(zero_copy_only=False)

    def name(self, row: int) -> str:
        """The id of the label that is given by a row."""
        return self.names.given(self.head.label_ids[row]) if row >= 0 else ""


@dataclass(frozen=True)
class _Measured:
    """What a head said of pictures it had not seen; ``truth`` is the row of the head that would be right."""

    scored: Scored
    truth: Array


@dataclass(frozen=True)
class _Fitted:
    """A head, what it was fitted to, and what was found on the way."""

    material: Material
    decided: _Decided
    shrinkage: float
    accuracies: dict[float, float]
    calibration: Calibration
    learned: list[Learned]
    measured: _Measured
    unseen: Array


def _material(dataset: Dataset, parts: list[Examples], background: Array) -> Material:
    """The examples of ``parts``; a picture and its views count as one."""
    present, targets = np.unique(np.concatenate([part.targets for part in parts]), return_inverse=True)
    return Material(
        vectors=np.concatenate([part.vectors for part in parts]),
        targets=targets.astype(np.int64),
        weights=np.concatenate([_weights(part) for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        originals=np.concatenate([_is_original(part) for part in parts]),
        label_ids=tuple(dataset.label_ids[index] for index in present),
        background=background,
        rehearsal=dataset.rehearsal,
    )


def _is_original(part: Examples) -> Array:
    """Pictures to measure by: answered ones, as they are; imported old tags only where there is nothing else."""
    itself = part.view_of == np.arange(len(part))
    answered = itself & np.array([why != WEAK for why in part.shown], bool)
    found: Array = answered if answered.any() else itself
    return found


def _weights(part: Examples) -> Array:
    views = np.bincount(part.view_of, minlength=len(part))
    weights: Array = (part.weights / views[part.view_of]).astype(np.float32)
    return weights


def _fitted(course: _Course, parts: list[Examples], shrinkage: float | None) -> _Fitted:
    """A head with thresholds, from ``parts``; with ``shrinkage`` given, nothing is searched."""
    material = _material(course.dataset, parts, course.background)
    if shrinkage is None:
        chosen = search.choose(material)
        shrinkage, accuracies, unseen = chosen.shrinkage, chosen.accuracies, chosen.unseen
    else:
        accuracies, unseen = {}, head.unseen(material, shrinkage)
    answered = Answered.of(course.old, material.label_ids)
    evidence = head.evidence(material, shrinkage)
    calibration = head.calibrate(material, answered, evidence, unseen, REHEARSAL_WEIGHT)
    made = head.merged(answered, material.label_ids, evidence, calibration)
    measured = _unseen(material, parts, answered, _Decided(made, course.names), unseen, calibration)
    rows = _rows(made, material.label_ids)
    new = rows[~answered.is_old].tolist()
    learned = thresholds.learn(measured.scored, made.thresholds, rows, course.target_precision, new)
    made.thresholds[[one.row for one in learned]] = [one.threshold for one in learned]
    decided = _Decided(made, course.names)
    return _Fitted(material, decided, shrinkage, accuracies, calibration, learned, measured, unseen)


def _rows(made: Head, label_ids: tuple[str, ...]) -> Array:
    place = {label_id: row for row, label_id in enumerate(made.label_ids)}
    return np.array([place[label_id] for label_id in label_ids], np.int64)


def _unseen(
    material: Material,
    parts: list[Examples],
    answered: Answered,
    decided: _Decided,
    unseen: Array,
    calibration: Calibration,
) -> _Measured:
    """What the head would say of its own originals, had it not learned from them."""
    at, made = np.flatnonzero(material.originals), decided.head
    rows = _rows(made, material.label_ids)
    others = np.setdiff1d(np.arange(len(made.label_ids)), rows)
    best, scores = np.empty(len(at), np.int64), np.empty(len(at), np.float32)
    for begin in range(0, len(at), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        old, rest = answered.said(material.vectors[at[block]])
        logits = np.empty((len(old), len(made.label_ids)), np.float32)
        logits[:, rows] = answered.together(old, unseen[block], calibration)
        logits[:, others] = rest
        best[block], scores[block] = decided.best(logits)
    # Of a label that no other fold knew, nothing can be said.
    told = unseen[np.arange(len(at)), material.targets[at]] > head.NOTHING / 2
    probability = np.concatenate([part.probability for part in parts])[at]
    shown = np.array([why for part in parts for why in part.shown], dtype=object)[at]
    truth = rows[material.targets[at]]
    scored = Scored(best[told], scores[told], (best == truth)[told], probability[told], tuple(shown[told].tolist()))
    return _Measured(scored, truth[told])


def _scored(decided: _Decided, dataset: Dataset, examples: Examples) -> _Measured:
    """What a head says of examples that it has not learned from."""
    made = decided.head
    place = {label_id: row for row, label_id in enumerate(made.label_ids)}
    truth = np.array([place.get(dataset.label_ids[target], -1) for target in examples.targets], np.int64)
    best, scores = np.empty(len(examples), np.int64), np.empty(len(examples), np.float32)
    for begin in range(0, len(examples), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        logits = examples.vectors[block].astype(np.float32) @ made.weight.T + made.bias
        best[block], scores[block] = decided.best(logits)
    return _Measured(Scored(best, scores, (best == truth) & (truth >= 0), examples.probability, examples.shown), truth)


def _measures(measured: _Measured, decided: _Decided) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, and what would go live by itself."""
    scored, right = measured.scored, measured.scored.right
    if not len(right):
        return {"n": 0}
    auto = (scored.best >= 0) & (scored.scores >= decided.head.thresholds[scored.best])
    accuracy = float(right.mean())
    low, high = shares.wilson(accuracy, len(right))
    by_label = [float(right[measured.truth == row].mean()) for row in np.unique(measured.truth)]
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "macro": float(np.mean(by_label)),
        "auto_precision": float(right[auto].mean()) if auto.any() else None,
        "coverage": float(auto.mean()),
        "n": len(right),
    }


def _of_labels(material: Material, dataset: Dataset, examples: Examples) -> tuple[Array, Array]:
    """Embeddings and targets (of ``material``) of those examples whose label is in it."""
    place = {label_id: index for index, label_id in enumerate(material.label_ids)}
    targets = np.array([place.get(dataset.label_ids[target], -1) for target in examples.targets], np.int64)
    return examples.vectors[targets >= 0], targets[targets >= 0]


def _confusions(measured: _Measured, decided: _Decided) -> list[dict[str, Any]]:
    """The pairs that are taken for each other most often."""
    truth, wrong = measured.truth, ~measured.scored.right & (measured.truth >= 0)
    pairs = Counter(zip(truth[wrong].tolist(), measured.scored.best[wrong].tolist(), strict=True))
    of = Counter(truth.tolist())
    worst = sorted(pairs.items(), key=lambda pair: (-pair[1], -pair[1] / of[pair[0][0]], pair[0]))[:_PAIRS]
    return [
        {"label_id": decided.name(row), "predicted": decided.name(said), "count": count, "of": of[row]}
        for (row, said), count in worst
    ]


def _told(learned: Learned, made: Head) -> dict[str, Any]:
    told = vars(learned) | {"label_id": made.label_ids[learned.row]}
    return {name: told[name] for name in ("label_id", "threshold", "precision", "coverage", "n", "how")}


def _suspects(parts: list[Examples], fitted: _Fitted) -> tuple[Conflict, ...]:
    """Answers whose label all other answers speak against."""
    material = fitted.material
    at = np.flatnonzero(material.originals)
    told = fitted.unseen[np.arange(len(at)), material.targets[at]] > head.NOTHING / 2
    said = fitted.unseen[told] * np.float32(fitted.calibration.factor)
    powers = np.exp(said - said.max(axis=1, keepdims=True, initial=head.NOTHING))
    contents = [content for part in parts for content in part.contents]
    return conflicts.suspects(
        [contents[row] for row in at[told]],
        material.targets[at[told]],
        powers / np.maximum(powers.sum(axis=1, keepdims=True), 1e-30),
        material.label_ids,
    )
