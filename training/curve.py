"""How accuracy grows with the answers a label has: what the next hundred answers are worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from training import head
from training.head import Material

Array = np.ndarray[Any, Any]

SIZES: Final = (1, 2, 5, 10, 20)
SEEDS: Final = 5
#: Pictures that a point of the curve is measured on: a standard error of 1 %.
_MEASURED: Final = 2_500


def learn(material: Material, vectors: Array, targets: Array, shrinkage: float) -> list[dict[str, float | int]]:
    """Accuracy among the answered labels after so many answers a label, for several draws of them.

    Args:
        material: to draw from.
        vectors: float16 ``[n, d]``, of pictures that are not in it.
        targets: theirs, ``int64 [n]``.
        shrinkage: of the covariance.

    Returns:
        One point a size and seed: ``answers_per_label``, ``seed``, ``accuracy``, ``macro`` (0–1), ``examples``. Sizes
        beyond what the largest label has are left out; a label that has fewer gives all it has.
    """
    rows = np.flatnonzero(material.originals)
    most = np.bincount(material.targets[rows]).max(initial=0)
    step = max(1, -(-len(targets) // _MEASURED))
    vectors, targets = vectors[::step], targets[::step]
    points: list[dict[str, float | int]] = []
    for size in SIZES:
        if not len(targets) or size > most:
            break
        for seed in range(SEEDS):
            drawn = _drawn(material.targets[rows], size, np.random.default_rng([seed, size]))
            found = _measured(material, rows[drawn], vectors, targets, shrinkage)
            points.append({"answers_per_label": size, "seed": seed, **found})
    return points


def _drawn(targets: Array, size: int, generator: np.random.Generator) -> Array:
    """Up to ``size`` rows of each label."""
    order = generator.permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    sorted_targets = targets[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_targets, sorted_targets)
    drawn: Array = order[place < size]
    return drawn


def _measured(
    material: Material, rows: Array, vectors: Array, targets: Array, shrinkage: float
) -> dict[str, float | int]:
    few = replace(
        material,
        vectors=material.vectors[rows],
        targets=material.targets[rows],
        weights=np.ones(len(rows), np.float32),
        groups=np.zeros(len(rows), np.int64),
        originals=np.ones(len(rows), bool),
    )
    right = head.evidence(few, shrinkage)(vectors).argmax(axis=1) == targets
    by_label = np.bincount(targets, weights=right) / np.maximum(np.bincount(targets), 1)
    return {
        "accuracy": float(right.mean()),
        "macro": float(by_label[np.unique(targets)].mean()),
        "examples": len(rows),
    }
