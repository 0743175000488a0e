"""Scores to decisions: which label an image gets, and whether a person must look first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from wwts_ops.schemas import TAG, TAGS
from wwts_ops.taxonomy import Label, Taxonomy

AUTO, REVIEW, FORCED_REVIEW = "auto", "review", "forced_review"
CONFIDENT, LOW_CONFIDENCE, UNLISTED_LABEL = "confident", "low_confidence", "unlisted_label"

Array = np.ndarray[Any, Any]
#: A decision and its reason.
Outcome = tuple[str, str]

#: Rows ranked at once: their scores stay in a core's own memory.
_RANKED_ROWS = 64
_COLUMNS = pa.schema(
    [
        TAGS.field(name)
        for name in ("tags", "label_id", "label_zh", "confidence", "category_path", "decision", "decision_reason")
    ]
)


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
        taxonomy: names, paths, forced and switched-off labels; a label it lacks goes by its id, to review. The score
            of a label that maps to another is added to that one's. Of a label that is not in ``label_ids`` but mapped
            to, the threshold is the highest of those that map to it. What forces one of those forces it too.
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

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables.of(self)

    @cached_property
    def _mapping(self) -> _Mapping | None:
        return _Mapping.of(self)

    def __call__(self, scores: Array) -> list[Decision]:
        """One decision a row of ``scores`` (``float32 [n, labels]``)."""
        if self._mapping is not None:
            return self._mapping.decider(self._mapping.added(scores))
        top = scores.argmax(axis=1)
        return [self._decide(*row) for row in zip(scores, self._ranked(scores), top.tolist(), strict=True)]

    def columns(self, scores: Array) -> pa.RecordBatch:
        """The same decisions, all at once: the columns of ``TAGS`` that say what was decided, a row a row of scores.

        Args:
            scores: ``float32 [n, labels]``.
        """
        if self._mapping is not None:
            return self._mapping.decider.columns(self._mapping.added(scores))
        best = self._ranked(scores)
        values = np.take_along_axis(scores, best, axis=1)
        tables = self._tables
        if not best.shape[1]:
            first, sure = np.full(len(scores), len(self.label_ids)), np.zeros(len(scores), bool)
            confidence = pa.nulls(len(scores), pa.float32())
        else:
            first, confidence = best[:, 0], pa.array(values[:, 0], pa.float32())
            sure = values[:, 0] >= self.thresholds[first]
        kind = np.where(sure, tables.if_sure[first], tables.if_not[first])
        reason = tables.reasons.take(pa.array(kind))
        return pa.RecordBatch.from_arrays(
            [
                tables.tags(best, values),
                tables.label_ids.take(pa.array(first)),
                tables.names.take(pa.array(first)),
                confidence,
                tables.paths.take(pa.array(first)),
                tables.decisions.take(pa.array(kind)),
                self._with_skipped(reason, scores.argmax(axis=1)),
            ],
            schema=_COLUMNS,
        )

    def _ranked(self, scores: Array) -> Array:
        """Where the best enabled labels of each row stand (``[n, at most top_k]``), best first; of equals the first."""
        count = min(self.top_k, int(np.count_nonzero(~self._off)))
        best = np.empty((len(scores), count), np.intp)
        for start in range(0, len(scores), _RANKED_ROWS):
            part = np.where(self._off, -np.inf, scores[start : start + _RANKED_ROWS])
            rows = np.arange(len(part))
            # The best one five times: sorting all labels of every image would take as long as all other steps together.
            for place in range(count):
                best[start : start + len(part), place] = found = part.argmax(axis=1)
                part[rows, found] = -np.inf
        return best

    def _with_skipped(self, reasons: pa.Array, top: Array) -> pa.Array:
        """``reasons``, those of rows whose very best label is switched off with its id."""
        skipped = np.flatnonzero(self._off[top])
        if not len(skipped):
            return reasons
        told = reasons.to_pylist()
        for row in skipped.tolist():
            told[row] += self._suffix(int(top[row]))
        return pa.array(told, pa.string())

    def _suffix(self, top: int) -> str:
        return f";skipped_off:{self.label_ids[top]}" if self._off[top] else ""

    def _decide(self, scores: Array, best: Array, top: int) -> Decision:
        suffix = self._suffix(top)
        if not len(best):
            return Decision((), "", REVIEW, LOW_CONFIDENCE + suffix)
        tags = tuple(Tag(self.label_ids[i], self._labels[i].label_zh, float(scores[i])) for i in best)
        first = int(best[0])
        outcome, sure = self._outcomes(first)
        if scores[first] >= self.thresholds[first]:
            outcome = sure
        decision, reason = outcome
        return Decision(tags, self._labels[first].category_path, decision, reason + suffix)

    def _outcomes(self, first: int) -> tuple[Outcome, Outcome]:
        """Decision and reason where label ``first`` is the best enabled one: below its threshold, and from it on."""
        if forced := self._forced[first]:
            return ((FORCED_REVIEW, forced),) * 2
        if self.label_ids[first] not in self.taxonomy.by_id:
            # A name and its rules are missing: nobody decided that it may go live.
            return ((REVIEW, UNLISTED_LABEL),) * 2
        return (REVIEW, LOW_CONFIDENCE), (AUTO, CONFIDENT)


@dataclass(frozen=True)
class _Given(Decider):
    """Decides by labels that are given as they are: one step and no more, so that no circle could trap a night."""

    @cached_property
    def _mapping(self) -> None:
        return None


@dataclass(frozen=True)
class _Mapping:
    """Labels of a head that stand for others.

    Attributes:
        decider: decides by the labels that are given.
        firsts: the column of the head that each of those labels begins with, ``int [given labels]``.
        others: a given label's place and a further column that is added to it, in the order of the head.
    """

    decider: Decider
    firsts: Array
    others: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, decider: Decider) -> _Mapping | None:
        """None where no label maps to another."""
        taxonomy, thresholds = decider.taxonomy, decider.thresholds
        if not any(label.maps_to for label in decider._labels):
            return None
        sources: dict[str, list[int]] = {}
        for column, label_id in enumerate(decider.label_ids):
            sources.setdefault(taxonomy.given(label_id), []).append(column)
        places = {label_id: column for column, label_id in enumerate(decider.label_ids)}
        sure = [
            thresholds[places[label_id]] if label_id in places else thresholds[columns].max()
            for label_id, columns in sources.items()
        ]
        given = _Given(tuple(sources), np.asarray(sure, thresholds.dtype), taxonomy, decider.top_k)
        firsts = np.asarray([columns[0] for columns in sources.values()], np.intp)
        others = tuple((place, column) for place, columns in enumerate(sources.values()) for column in columns[1:])
        return cls(given, firsts, others)

    def added(self, scores: Array) -> Array:
        """``float32 [n, labels]`` of the head → of the labels that are given; sums are at most 1."""
        found = scores.take(self.firsts, axis=1)
        # One column after the other, so that a row has the same bits whatever its batch.
        for place, column in self.others:
            found[:, place] += scores[:, column]
        return np.minimum(found, 1, out=found)


@dataclass(frozen=True)
class _Tables:
    """What :meth:`Decider.columns` looks up, a label or an outcome an entry; after the last label stands "none".

    Attributes:
        label_ids, names, paths: of each label; null where a row has none.
        decisions, reasons: of each outcome that occurs.
        if_sure, if_not: each label to its outcome.
    """

    label_ids: pa.Array
    names: pa.Array
    paths: pa.Array
    decisions: pa.Array
    reasons: pa.Array
    if_sure: Array
    if_not: Array

    @classmethod
    def of(cls, decider: Decider) -> _Tables:
        outcomes = [decider._outcomes(number) for number in range(len(decider.label_ids))]
        outcomes.append(((REVIEW, LOW_CONFIDENCE),) * 2)
        places = {found: place for place, found in enumerate(dict.fromkeys(one for pair in outcomes for one in pair))}
        return cls(
            pa.array([*decider.label_ids, None], pa.string()),
            pa.array([*(label.label_zh for label in decider._labels), None], pa.string()),
            pa.array([*(label.category_path or None for label in decider._labels), None], pa.string()),
            pa.array([decision for decision, _ in places], pa.string()),
            pa.array([reason for _, reason in places], pa.string()),
            np.array([places[sure] for _, sure in outcomes]),
            np.array([places[unsure] for unsure, _ in outcomes]),
        )

    def tags(self, best: Array, values: Array) -> pa.Array:
        """The lists of tags of rows whose best labels and their scores are ``[n, k]`` each."""
        rows, count = best.shape
        found = pa.array(best.reshape(-1))
        fields = [self.label_ids.take(found), self.names.take(found), pa.array(values.reshape(-1), pa.float32())]
        tags = pa.StructArray.from_arrays(fields, fields=list(TAG))
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * count), tags)
