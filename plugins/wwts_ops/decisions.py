"""Scores to decisions: which label an image gets, and whether a person must look first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from wwts_ops.taxonomy import Label, Taxonomy

AUTO, REVIEW, FORCED_REVIEW = "auto", "review", "forced_review"
CONFIDENT, LOW_CONFIDENCE, UNLISTED_LABEL = "confident", "low_confidence", "unlisted_label"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tag:
    """A label with its score (0–1)."""

    label_id: str
    label_zh: str
    score: float


@dataclass(frozen=True)
class Decision:
    """What was decided of one image.

    Attributes:
        tags: enabled labels, best first; empty when every label is switched off.
        category_path: of the first tag.
        decision: ``auto``, ``review`` or ``forced_review``.
        reason: ``confident``, ``low_confidence``, ``unlisted_label``, ``forced_label`` or ``forced_category:<path>``,
            followed by ``;skipped_off:<label_id>`` when the best label is switched off.
    """

    tags: tuple[Tag, ...]
    category_path: str
    decision: str
    reason: str


@dataclass(frozen=True)
class Decider:
    """Decides by a tagger's thresholds and a taxonomy's rules.

    Attributes:
        label_ids: the label of each score.
        thresholds: ``float32 [labels]``.
        taxonomy: names, paths, forced and switched-off labels; a label it lacks goes by its id, to review.
        top_k: tags kept.
    """

    label_ids: tuple[str, ...]
    thresholds: Array
    taxonomy: Taxonomy
    top_k: int

    @cached_property
    def _labels(self) -> tuple[Label, ...]:
        known = self.taxonomy.by_id
        return tuple(known.get(label_id) or Label(label_id, label_id) for label_id in self.label_ids)

    @cached_property
    def _forced(self) -> tuple[str | None, ...]:
        return tuple(self.taxonomy.forced_reason(label_id) for label_id in self.label_ids)

    @cached_property
    def _off(self) -> Array:
        return np.asarray([not label.enabled for label in self._labels], dtype=bool)

    def __call__(self, scores: Array) -> list[Decision]:
        """One decision a row of ``scores`` (``float32 [n, labels]``)."""
        usable = np.where(self._off, -np.inf, scores)
        count = min(self.top_k, scores.shape[1])
        # Sorting every label of every image would take as long as all other steps of a decision together.
        least = np.partition(usable, -count, axis=1)[:, -count] if count else np.empty(len(scores))
        best = [_best(row, low, count) for row, low in zip(usable, least, strict=True)]
        top = scores.argmax(axis=1)
        return [self._decide(*row) for row in zip(scores, best, top.tolist(), strict=True)]

    def _decide(self, scores: Array, best: Array, top: int) -> Decision:
        kept = [int(index) for index in best if not self._off[index]]
        tags = tuple(Tag(self.label_ids[i], self._labels[i].label_zh, float(scores[i])) for i in kept)
        suffix = f";skipped_off:{self.label_ids[top]}" if self._off[top] else ""
        if not kept:
            return Decision((), "", REVIEW, LOW_CONFIDENCE + suffix)
        first = kept[0]
        path, forced = self._labels[first].category_path, self._forced[first]
        if forced:
            return Decision(tags, path, FORCED_REVIEW, forced + suffix)
        if self.label_ids[first] not in self.taxonomy.by_id:
            # A name and its rules are missing: nobody decided that it may go live.
            return Decision(tags, path, REVIEW, UNLISTED_LABEL + suffix)
        if scores[first] >= self.thresholds[first]:
            return Decision(tags, path, AUTO, CONFIDENT + suffix)
        return Decision(tags, path, REVIEW, LOW_CONFIDENCE + suffix)


def _best(scores: Array, least: float, count: int) -> Array:
    """Where the ``count`` best of ``scores`` stand, best first; of equal ones the one that stands first.

    ``least`` is the last score among them: several may equal it.
    """
    found = np.flatnonzero(scores >= least)
    return found[np.argsort(-scores[found], kind="stable")[:count]]
