"""From which score a label may go live by itself: learned per label, for a precision that the shop names.

Learned from pictures that the head had not seen, each counted as often as pictures like it stay unseen (one over its
sampling probability: Horvitz and Thompson 1952). What the review queue showed, and what was shown beside that for being
alike, is what the model was unsure of; old tags are what nobody looked at. From these alone nothing can be learned
about what the model is sure of, and the old thresholds stay. Where others are there too, such as the audit or an import
of what was not in the queue, pictures of the queue count if their chance is known.

A new label has no old threshold to stay at: until pictures speak for it, it goes live by nobody but people.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from training.dataset import WEAK
from wwts_ops import shares
from wwts_ops.decisions import FORCED_REVIEW, REVIEW

Array = np.ndarray[Any, Any]

#: A label's own pictures are joined by what all labels say, as if that were so many more of its own.
_PRIOR: Final = 10.0
#: Standard errors to stay clear of the target: the lowest of many scores that seem good enough is so partly by luck.
#: Without it simulated shops of 200 to 4,000 pictures fell one to four points short, with it 1.2 points at the most.
_CLEAR: Final = 0.5
#: Below as many pictures (Kish's effective number, where they count unequally) nothing is learned.
_LEAST: Final = 30
#: Below as many pictures of its own, what all labels say is too little to let a new label go live.
_LEAST_OWN: Final = 5
#: Shown for what the model was unsure of, or with that.
_QUEUE: Final = frozenset({REVIEW, FORCED_REVIEW, "sibling", "alike"})
#: No score is higher: the label goes live only where the head has no doubt at all.
NEVER: Final = 1.0
#: Thresholds have six decimals: see ``wwts_ops.tagger``.
_STEPS: Final = 1e6


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
        weights: Array = 1.0 / np.where(self._known, np.maximum(self.probability, shares.LEAST_CHANCE), 1.0)
        return weights

    @property
    def _known(self) -> Array:
        known: Array = np.isfinite(self.probability) & (self.probability > 0)
        return known

    @property
    def telling(self) -> Scored:
        """Less old tags, and less what the queue showed with a chance that nobody knows.

        None at all where too few are of anything but the queue.
        """
        queue = np.array([reason in _QUEUE for reason in self.shown], bool)
        weak = np.array([reason == WEAK for reason in self.shown], bool)
        enough = _effective(self.weights[~queue & ~weak]) >= _LEAST
        return self._only(~weak & (~queue | self._known) & enough)

    def _only(self, kept: Array) -> Scored:
        shown = tuple(reason for reason, keep in zip(self.shown, kept, strict=True) if keep)
        return Scored(self.best[kept], self.scores[kept], self.right[kept], self.probability[kept], shown)


@dataclass(frozen=True)
class Learned:
    """The threshold of one row of the head: what it gives on the pictures it was learned from, and how it came to be.

    ``how``: ``own`` (mostly its own pictures), ``pooled`` (mostly what all labels say), ``kept`` (as it was) or
    ``unproven`` (new, and too few pictures speak for it: never).
    """

    row: int
    threshold: float
    precision: float | None
    coverage: float | None
    n: int
    how: str


def learn(scored: Scored, before: Array, rows: Array, target: float, new: Container[int] = ()) -> list[Learned]:
    """Thresholds of ``rows``.

    Args:
        scored: pictures of labels in ``rows`` that the head had not seen.
        before: thresholds in force, ``float32 [labels]``.
        rows: of the head, those to learn.
        target: wanted precision, 0 to 1.
        new: those of ``rows`` that the head before did not have.
    """
    return [_proven(one) if one.row in new else one for one in _all(scored.telling, before, rows, target)]


def _proven(one: Learned) -> Learned:
    return one if one.n >= _LEAST_OWN else replace(one, threshold=NEVER, coverage=0.0, how="unproven")


def _all(scored: Scored, before: Array, rows: Array, target: float) -> list[Learned]:
    if not len(scored.best):
        return [Learned(int(row), float(before[row]), None, None, 0, "kept") for row in rows]
    ranked = _Ranked.of(scored)
    found = []
    for row in rows:
        mine = np.where(ranked.best == row, ranked.weights, 0.0)
        # As many as they are worth: one picture that stands for a thousand is still one picture.
        mine *= _effective(mine) / max(float(mine.sum()), 1e-300)
        found.append(_learned(int(row), mine, ranked, target))
    return found


@dataclass(frozen=True)
class _Ranked:
    """Pictures from the highest score to the lowest.

    ``pooled``: precision of all down to each; ``last``: the last one of each score, because equal scores go live
    together or not at all.
    """

    best: Array
    scores: Array
    weights: Array
    right: Array
    pooled: Array
    last: Array

    @classmethod
    def of(cls, scored: Scored) -> _Ranked:
        order = np.argsort(-scored.scores, kind="stable")
        scores = np.floor(scored.scores[order].astype(np.float64) * _STEPS) / _STEPS
        weights, right = scored.weights[order], scored.right[order]
        pooled = np.cumsum(weights * right) / np.cumsum(weights)
        last = np.flatnonzero(np.append(scores[:-1] > scores[1:], True))
        return cls(scored.best[order], scores, weights, right, pooled, last)


def _learned(row: int, mine: Array, ranked: _Ranked, target: float) -> Learned:
    """The lowest score down to which precision, joined by what all labels say, holds.

    ``mine``: what each picture counts, 0 for those of other labels.
    """
    summed, right = np.cumsum(mine), np.cumsum(mine * ranked.right)
    precision = (right + _PRIOR * ranked.pooled) / (summed + _PRIOR)
    error = np.sqrt(target * (1 - target) / (summed + _PRIOR))
    enough = ranked.last[(precision - _CLEAR * error)[ranked.last] >= target]
    end = int(enough[-1]) if len(enough) else None
    mass = float(summed[end]) if end is not None else 0.0
    return Learned(
        row=row,
        threshold=float(ranked.scores[end]) if end is not None else NEVER,
        precision=float(right[end]) / mass if mass else None,
        coverage=mass / float(summed[-1]) if summed[-1] else None,
        n=int((mine > 0).sum()),
        how="own" if summed[-1] > _PRIOR else "pooled",
    )


def _effective(weights: Array) -> float:
    """How many equally weighted pictures tell as much (Kish 1965)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0
