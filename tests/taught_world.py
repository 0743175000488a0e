"""A world of made-up embeddings: clusters a label, a head that knows the old labels, answers that teach new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from training.dataset import Dataset, Examples
from training.head import Material
from training.imagined import _POOLED
from wwts_ops import backbones
from wwts_ops.tagger import Head, Tagger

Array = np.ndarray[Any, Any]

#: What the last normalisation of the world's network gives before ReLU6: mean and standard deviation of each number.
_BIAS, _SCALE = 0.5, 1.0


@dataclass(frozen=True)
class World:
    """``old`` labels that the base head knows and ``new`` ones, all of them clusters in ``dimension`` numbers.

    ``apart``: the share of the variance of embeddings that lies between labels. ``away``: how far photographs of the
    shop lie from those that the network was trained on, in standard deviations of each number.
    """

    old: int = 100
    new: int = 20
    dimension: int = 32
    apart: float = 0.5
    away: float = 0.0

    @cached_property
    def label_ids(self) -> tuple[str, ...]:
        """Old ones, then new ones."""
        return (*(f"old:{number:04d}" for number in range(self.old)), *(f"new:{n:04d}" for n in range(self.new)))

    @cached_property
    def _points(self) -> Array:
        points = np.random.default_rng(11).normal(_BIAS, _SCALE, 100_000)
        return np.clip(points, 0, 6)

    @cached_property
    def spread(self) -> float:
        """Standard deviation of one number of an embedding."""
        return float(np.sqrt(_POOLED * self._points.var()))

    @cached_property
    def centres(self) -> Array:
        """Of each label, ``[labels, d]``."""
        numbers = np.random.default_rng(12)
        places = np.sqrt(self.apart) * numbers.standard_normal((self.old + self.new, self.dimension))
        places[self.old :] += self.away * np.sign(numbers.standard_normal(self.dimension))
        centres: Array = self._points.mean() + self.spread * places
        return centres

    def pictures(self, labels: Sequence[int] | Array, seed: int) -> Array:
        """Embeddings of fresh pictures of ``labels``, ``float16 [n, d]``."""
        numbers = np.random.default_rng(seed)
        noise = numbers.standard_normal((len(labels), self.dimension)) * self.spread * np.sqrt(1 - self.apart)
        found: Array = np.clip(self.centres[np.asarray(labels, int)] + noise, 0, 6).astype(np.float16)
        return found

    @cached_property
    def base_head(self) -> Head:
        """The best linear head for the old labels."""
        within = self.spread**2 * (1 - self.apart)
        weight = (self.centres[: self.old] / within).astype(np.float32)
        bias = (-0.5 * (self.centres[: self.old] ** 2).sum(axis=1) / within).astype(np.float32)
        return Head(self.label_ids[: self.old], np.full(self.old, 0.6, np.float32), weight, bias)

    def base(self, folder: Path) -> Tagger:
        """A tagger with that head; of its backbone there is only what is remembered of its last layer."""
        from safetensors.numpy import save_file

        state = {"_bn1.bias": np.full(self.dimension, _BIAS), "_bn1.weight": np.full(self.dimension, _SCALE)}
        folder.mkdir(exist_ok=True)
        save_file({name: value.astype(np.float32) for name, value in state.items()}, folder / "backbone.safetensors")
        head = self.base_head
        return Tagger(
            folder=folder,
            sha256="0" * 64,
            backbone_sha256="1" * 64,
            recipe=replace(backbones.get("efficientnet-lite0").recipe, dimension=self.dimension),
            label_ids=head.label_ids,
            thresholds=head.thresholds,
            head_weight=head.weight,
            head_bias=head.bias,
        )

    def examples(self, labels: Sequence[int] | Array, seed: int, **other: Any) -> Examples:
        """Answered pictures of ``labels`` (of all labels, by number); ``other``: fields that are not as usual."""
        places = {int(label): place for place, label in enumerate(other.pop("among", np.unique(labels)))}
        count = len(labels)
        usual: dict[str, Any] = {
            "vectors": self.pictures(labels, seed),
            "targets": np.array([places[int(label)] for label in labels], np.int64),
            "weights": np.ones(count, np.float32),
            "groups": np.arange(count, dtype=np.int64),
            "contents": tuple(f"{seed:032x}{number:032x}" for number in range(count)),
            "probability": np.full(count, np.nan),
            "shown": ("audit",) * count,
            "view_of": np.arange(count, dtype=np.int64),
        }
        return Examples(**(usual | other))

    def dataset(self, train: Array, validation: Array, rehearsal: Array) -> Dataset:
        """Of answers about pictures of these labels; ``rehearsal``: labels of what the catalog shows unanswered.

        Labels are numbered so that their ids are sorted, as in a real dataset.
        """
        answered = sorted(np.unique(train).tolist(), key=lambda label: self.label_ids[label])
        return Dataset(
            label_ids=tuple(self.label_ids[label] for label in answered),
            train=self.examples(train, 1, among=answered),
            validation=self.examples(validation, 2, among=answered),
            audit=self.examples([], 3, among=answered),
            rehearsal=self.pictures(rehearsal, 4) if len(rehearsal) else np.empty((0, 0), np.float16),
            rehearsal_contents=tuple(f"{number:064x}" for number in range(len(rehearsal))),
            excluded={},
            conflicts=(),
            sha256="2" * 64,
        )

    def top(self, head: Head, labels: Sequence[int] | Array, seed: int) -> float:
        """Share of fresh pictures of ``labels`` that ``head`` takes for what they are."""
        best = (self.pictures(labels, seed).astype(np.float32) @ head.weight.T + head.bias).argmax(axis=1)
        return float(
            np.mean([head.label_ids[row] == self.label_ids[label] for row, label in zip(best, labels, strict=True)])
        )


def material(world: World, labels: Sequence[int] | Array, seed: int = 1, **other: Any) -> Material:
    """Answered pictures of ``labels``; background are pictures of other old labels, the catalog shows all old ones."""
    made = world.examples(labels, seed)
    others = np.setdiff1d(np.arange(world.old), labels)
    usual: dict[str, Any] = {
        "vectors": made.vectors,
        "targets": made.targets,
        "weights": made.weights,
        "groups": made.groups,
        "originals": np.ones(len(labels), bool),
        "label_ids": tuple(world.label_ids[label] for label in np.unique(labels)),
        "background": world.pictures(others if len(others) else np.arange(world.old), 5),
        "rehearsal": world.pictures(np.arange(world.old).repeat(3), 6),
    }
    return Material(**(usual | other))
