"""How much to shrink the covariance: a small search by cross-validation, inside what is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from training import head
from training.head import Material

Array = np.ndarray[Any, Any]

SHRINKAGES: Final = (0.15, 0.35, 0.7)
#: Where there is nothing to choose by; see :data:`SHRINKAGES`.
_UNTRIED: Final = 0.35


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and by what.

    Attributes:
        shrinkage: the most accurate; of equal ones the largest.
        accuracies: of each shrinkage, on originals of folds that it was not fitted to; empty when there was one fold.
        unseen: ``float32 [m, k]``, what evidence with that shrinkage says of originals it was not made from.
    """

    shrinkage: float
    accuracies: dict[float, float]
    unseen: Array


def choose(material: Material) -> Chosen:
    """Searches :data:`SHRINKAGES`; the same for the same material."""
    targets, weights = material.targets[material.originals], material.weights[material.originals]
    accuracies: dict[float, float] = {}
    for shrinkage in SHRINKAGES:
        said = head.unseen(material, shrinkage)
        right = said.argmax(axis=1) == targets
        told = said[np.arange(len(targets)), targets] > head.NOTHING / 2
        if told.any():
            accuracies[shrinkage] = float(np.average(right[told], weights=weights[told]))
    if not accuracies:
        return Chosen(_UNTRIED, {}, head.unseen(material, _UNTRIED))
    shrinkage = max(accuracies, key=lambda each: (accuracies[each], each))
    return Chosen(shrinkage, accuracies, head.unseen(material, shrinkage))
