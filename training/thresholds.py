"""From which score a label may go live by itself: learned per label, for a precision that the shop names.

Learned from pictures that the head had not seen, each counted as often as pictures like it stay unseen (one over its
sampling probability: Horvitz and Thompson 1952). What the review queue showed is what the model was unsure of; from
that alone nothing can be learned about what it is sure of, and the old thresholds stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from wwts_ops.decisions import FORCED_REVIEW, REVIEW

Array = np.ndarray[Any, Any]

#: A label's own pictures are joined by what all labels say, as if that were so many more of its own.
_PRIOR: Final = 10.0
#: Below these many pictures nothing is learned.
_LEAST: Final = 30
#: No score is higher: the label goes live only where the head has no doubt at all.
NEVER: Final = 1.0
_DECIMALS: Final = 6


@dataclass(frozen=True)
class Scored:
    """Pictures that a head was measured on.

    Attributes:
        best: row of the head that scored highest, ``int64 [n]``.
        scores: its score, ``float32 [n]``, 0 to 1.
        right: ``bool [n]``.
        probability: with which the picture was shown to a person, ``float64 [n]``; nan when unknown.
        shown: why.
    """

    best: Array
    scores: Array
    right: Array
    probability: Array
    shown: tuple[str, ...]

    @property
    def weights(self) -> Array:
        """One over the sampling probability; 1 where that is unknown."""
        known = np.where(np.isfinite(self.probability) & (self.probability > 0), self.probability, 1.0)
        weights: Array = 1.0 / known
        return weights

    @property
    def only_queue(self) -> bool:
        """Whether all of them were shown because the model was unsure."""
        return all(reason in (REVIEW, FORCED_REVIEW) for reason in self.shown)


@dataclass(frozen=True)
class Learned:
    """The threshold of one row of the head: what it gives on the pictures it was learned from, and how it came to be.

    ``how``: ``own`` (mostly its own pictures), ``pooled`` (mostly what all labels say) or ``kept`` (as it was).
    """

    row: int
    threshold: float
    precision: float | None
    coverage: float | None
    n: int
    how: str


def learn(scored: Scored, before: Array, rows: Array, target: float) -> list[Learned]:
    """Thresholds of ``rows``.

    Args:
        scored: pictures of labels in ``rows`` that the head had not seen.
        before: thresholds in force, ``float32 [labels]``.
        rows: of the head, those to learn.
        target: wanted precision, 0 to 1.
    """
    if len(scored.best) < _LEAST or scored.only_queue:
        return [Learned(int(row), float(before[row]), None, None, 0, "kept") for row in rows]
    order = np.argsort(-scored.scores, kind="stable")
    scores, weights, right = scored.scores[order], scored.weights[order], scored.right[order]
    best = scored.best[order]
    pooled = np.cumsum(weights * right) / np.cumsum(weights)
    found = []
    for row in rows:
        mine = np.where(best == row, weights, 0.0)
        found.append(_learned(int(row), mine, scores, right, pooled, target))
    return found


def _learned(row: int, mine: Array, scores: Array, right: Array, pooled: Array, target: float) -> Learned:
    """The lowest score down to which precision, joined by what all labels say (``pooled``), holds.

    All arrays from the highest score to the lowest; ``mine`` is 0 for pictures of other labels.
    """
    precision = (np.cumsum(mine * right) + _PRIOR * pooled) / (np.cumsum(mine) + _PRIOR)
    enough = np.flatnonzero(precision >= target)
    last = int(enough[-1]) if len(enough) else -1
    threshold = round(float(scores[last]) - 0.5 * 10**-_DECIMALS, _DECIMALS) if last >= 0 else NEVER
    kept = np.arange(len(mine)) <= last
    total, mass = float(mine.sum()), float(mine[kept].sum())
    return Learned(
        row=row,
        threshold=max(threshold, 0.0),
        precision=float((mine * right)[kept].sum() / mass) if mass else None,
        coverage=mass / total if total else None,
        n=int((mine > 0).sum()),
        how="own" if total > _PRIOR else "pooled",
    )
