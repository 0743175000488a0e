"""The linear head over frozen embeddings: answered labels learn, all others stay as they are, bit for bit.

What an answered label says is what the old head said of it (of all labels on average, when it is new) plus evidence:
the logarithm of how much more likely the embedding is under that label's examples than among pictures at large. Both
are Gaussians of one covariance, so evidence is linear in the embedding: a regularised linear discriminant analysis
(Friedman 1989, "Regularized Discriminant Analysis"). It has a closed form, works from one example a label on, is not
swayed by how many examples a label has, and on photographs of shops that no example came from it was as good as a
logistic regression or better, at a hundredth of the time. One factor and two constants then set evidence beside the
rows that stay. They are fitted to pictures that the evidence has not seen and, by distillation (Hinton et al. 2015,
arXiv:1503.02531), to what the old head says of a rehearsal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from wwts_ops.tagger import Head

Array = np.ndarray[Any, Any]

#: Rows multiplied at once: 40 MB at 1,280 numbers.
_BLOCK: Final = 8_192
#: Pictures of each kind that the calibration looks at; it has three numbers to find.
_CALIBRATED: Final = 2_048
FOLDS: Final = 5
#: Stands for the logarithm of nothing; twice it is still a float32.
NOTHING: Final = np.float32(-1e30)
#: Of examples' mean squared distance from the background, so much lies within labels at the least; of photographs of
#: groceries it was 0.37.
_LEAST_SPREAD: Final = 0.2
#: Evidence of more than this many powers of e is as good as certain; keeps sums of squares finite.
_MOST: Final = 1e4


@dataclass(frozen=True)
class Material:
    """What a head is fitted to.

    Attributes:
        vectors: float16 or float32 ``[n, d]``, examples.
        targets: ``int64 [n]``, index into ``label_ids``; every label has an example.
        weights: ``float32 [n]``, what each example counts.
        groups: ``int64 [n]``; examples of one group are never on both sides of a fold.
        originals: ``bool [n]``; the others are further views of them, by which nothing is measured.
        label_ids: labels that have examples.
        background: float16 or float32 ``[b, d]``, ``b`` at least 1: embeddings of pictures at large, of which the old
            head knows what they show.
        rehearsal: the same, ``[r, d]``, of the catalog; those that look like an answered label are left out.
    """

    vectors: Array
    targets: Array
    weights: Array
    groups: Array
    originals: Array
    label_ids: tuple[str, ...]
    background: Array
    rehearsal: Array

    @cached_property
    def folds(self) -> Array:
        """``int64 [n]``, the fold of each example: whole groups, and two groups of a label never all in one fold.

        Groups are dealt out label by label, as cards are: scikit-learn's ``StratifiedGroupKFold`` promises nothing to
        a label with fewer examples than folds, which is most labels at first, and takes minutes for 50,000 groups.
        """
        _, first, group = np.unique(self.groups, return_index=True, return_inverse=True)
        fold = np.empty(len(first), np.int64)
        fold[np.argsort(self.targets[first], kind="stable")] = np.arange(len(first)) % FOLDS
        dealt: Array = fold[group]
        return dealt

    @cached_property
    def sums(self) -> tuple[_Sums, ...]:
        """Of every fold; added up they are all examples."""
        return tuple(
            _Sums.of(self, np.flatnonzero(self.folds == number)) for number in range(int(self.folds.max()) + 1)
        )


@dataclass(frozen=True)
class _Sums:
    """Sums over weighted examples: how much, of the vectors by label, and of their products."""

    totals: Array
    firsts: Array
    seconds: Array

    @classmethod
    def of(cls, material: Material, rows: Array) -> _Sums:
        labels, dimension = len(material.label_ids), material.vectors.shape[1]
        firsts, seconds = np.zeros((labels, dimension)), np.zeros((dimension, dimension))
        for begin in range(0, len(rows), _BLOCK):
            at = rows[begin : begin + _BLOCK]
            block, weight = material.vectors[at].astype(np.float32), material.weights[at].astype(np.float32)
            firsts += _by_label(block * weight[:, None], material.targets[at], labels)
            block *= np.sqrt(weight)[:, None]
            seconds += block.T @ block
        weights = material.weights[rows].astype(np.float64)
        return cls(np.bincount(material.targets[rows], weights=weights, minlength=labels), firsts, seconds)

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(self.totals + other.totals, self.firsts + other.firsts, self.seconds + other.seconds)

    @property
    def means(self) -> Array:
        """``float64 [k, d]``; zeros for a label without an example."""
        return self.firsts / np.maximum(self.totals, 1e-12)[:, None]

    @property
    def covariance(self) -> Array:
        """Within labels, ``float64 [d, d]``."""
        means = self.means
        between = (means * self.totals[:, None]).T @ means
        within: Array = (self.seconds - between) / max(float(self.totals.sum()), 1e-12)
        return within

    def scatter(self, centre: Array) -> float:
        """Mean squared distance from ``centre``."""
        total = max(float(self.totals.sum()), 1e-12)
        return float(np.trace(self.seconds) - 2 * self.firsts.sum(axis=0) @ centre) / total + float(centre @ centre)


def _by_label(rows: Array, targets: Array, labels: int) -> Array:
    from scipy.sparse import csr_array

    at = csr_array(
        (np.ones(len(targets), np.float32), (targets, np.arange(len(targets)))), shape=(labels, len(targets))
    )
    summed: Array = at @ rows
    return summed


@dataclass(frozen=True)
class Evidence:
    """``log p(embedding | label) - log p(embedding | background)``, as rows over embeddings.

    Attributes:
        weight: ``float32 [k, d]``.
        bias: ``float32 [k]``.
        known: ``bool [k]``, labels that had an example; of others nothing is said.
    """

    weight: Array
    bias: Array
    known: Array

    def __call__(self, vectors: Array) -> Array:
        """``float32 [n, k]`` for embeddings ``[n, d]``."""
        said = np.empty((len(vectors), len(self.bias)), np.float32)
        for begin in range(0, len(vectors), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            said[rows] = vectors[rows].astype(np.float32) @ self.weight.T + self.bias
        np.clip(said, -_MOST, _MOST, out=said)
        said[:, ~self.known] = NOTHING
        return said


def evidence(material: Material, shrinkage: float) -> Evidence:
    """From all examples."""
    whole = material.sums[0]
    for sums in material.sums[1:]:
        whole = whole.plus(sums)
    return _evidence(whole, material.background, shrinkage)


def unseen(material: Material, shrinkage: float) -> Array:
    """What evidence says of originals that it was not made from.

    Returns:
        ``float32 [m, k]`` for the ``m`` originals in order.
    """
    rows = np.flatnonzero(material.originals)
    said = np.full((len(rows), len(material.label_ids)), NOTHING, np.float32)
    for number, others in _others(material.sums):
        held = material.folds[rows] == number
        if held.any() and others is not None:
            said[held] = _evidence(others, material.background, shrinkage)(material.vectors[rows[held]])
    return said


def _others(sums: tuple[_Sums, ...]) -> Iterator[tuple[int, _Sums | None]]:
    """Each fold's number, and the sums of all other folds."""
    for number in range(len(sums)):
        whole = None
        for other, each in enumerate(sums):
            if other != number:
                whole = each if whole is None else whole.plus(each)
        yield number, whole


def _evidence(sums: _Sums, background: Array, shrinkage: float) -> Evidence:
    from scipy.linalg import cho_factor, cho_solve

    centre = background.mean(axis=0, dtype=np.float64)
    covariance = sums.covariance
    even, diagonal = float(np.trace(covariance)) / len(covariance), np.diag_indices_from(covariance)
    # One example a label has no spread to tell; a share of all there is stands in.
    missing = max(_LEAST_SPREAD * sums.scatter(centre) / len(covariance) - even, 1e-6 - even, 0.0)
    covariance *= 1 - shrinkage
    covariance[diagonal] += shrinkage * even + missing
    means = sums.means
    weight = cho_solve(cho_factor(covariance, check_finite=False), (means - centre).T, check_finite=False).T
    bias = -0.5 * (weight * (means + centre)).sum(axis=1)
    return Evidence(weight.astype(np.float32), bias.astype(np.float32), sums.totals > 0)


@dataclass(frozen=True)
class Calibration:
    """How evidence stands beside the rows that stay: ``factor`` times it, plus a constant for old or new labels."""

    factor: float = 1.0
    old: float = 0.0
    new: float = 0.0


@dataclass(frozen=True)
class Answered:
    """The old head, and which of its rows the labels with examples have (-1: new)."""

    base: Head
    rows: Array

    @classmethod
    def of(cls, base: Head, label_ids: tuple[str, ...]) -> Answered:
        """Labels by their ids."""
        known = {label_id: row for row, label_id in enumerate(base.label_ids)}
        return cls(base, np.array([known.get(label_id, -1) for label_id in label_ids], np.int64))

    @property
    def is_old(self) -> Array:
        """``bool [k]``."""
        return self.rows >= 0

    @cached_property
    def start(self) -> tuple[Array, Array]:
        """What evidence is added to, weight ``float32 [k, d]`` and bias ``[k]``: the old row; of new labels, the mean.

        Logits mean something only beside each other: a head with the same row added to all others is the same head.
        """
        base, old = self.base, self.is_old
        weight = np.repeat(base.weight.mean(axis=0, dtype=np.float64)[None].astype(np.float32), len(old), axis=0)
        bias = np.full(len(old), base.bias.mean(dtype=np.float64), np.float32)
        weight[old], bias[old] = base.weight[self.rows[old]], base.bias[self.rows[old]]
        return weight, bias

    def said(self, vectors: Array) -> tuple[Array, Array]:
        """Logits of the labels before any evidence, ``float32 [n, k]``, and of all others ``[n, labels - old]``.

        The others keep the order of the old head.
        """
        others = np.setdiff1d(np.arange(len(self.base.label_ids)), self.rows)
        weight, bias = self.start
        answered = np.empty((len(vectors), len(self.rows)), np.float32)
        rest = np.empty((len(vectors), len(others)), np.float32)
        for begin in range(0, len(vectors), _BLOCK):
            block = vectors[begin : begin + _BLOCK].astype(np.float32)
            answered[begin : begin + _BLOCK] = block @ weight.T + bias
            rest[begin : begin + _BLOCK] = block @ self.base.weight[others].T + self.base.bias[others]
        return answered, rest

    def together(self, old: Array, said: Array, calibration: Calibration) -> Array:
        """Logits ``[n, k]`` of the labels, from the old ones and from evidence."""
        constant = np.where(self.is_old, calibration.old, calibration.new).astype(np.float32)
        logits: Array = old + np.float32(calibration.factor) * said + constant
        return logits


def calibrate(
    material: Material, answered: Answered, found: Evidence, said: Array, rehearsal_weight: float
) -> Calibration:
    """Sets evidence beside the rows that stay.

    Args:
        material: examples and what is rehearsed.
        answered: the old head.
        found: :func:`evidence` of the same.
        said: :func:`unseen` of the same.
        rehearsal_weight: what the rehearsal as a whole counts beside the examples as a whole.
    """
    from scipy.optimize import minimize

    at, of_examples = _told(material, found, said)
    rehearsed, of_rehearsed = _rehearsed(material, found)
    old, others = answered.said(np.concatenate([material.vectors[at], rehearsed]))
    problem = _Problem(
        answered=answered,
        evidence=np.maximum(np.concatenate([of_examples, of_rehearsed]), -_MOST),
        old=old,
        rest=log_sum(others),
        targets=material.targets[at],
        share=np.concatenate([_shares(material.weights[at], 1.0), _shares(np.ones(len(rehearsed)), rehearsal_weight)]),
    )
    best = minimize(
        problem.loss,
        np.array([np.log(0.1), 0.0, 5.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(np.log(1e-4), np.log(10.0)), (-50, 50), (-50, 50)],
    ).x
    return Calibration(float(np.exp(best[0])), float(best[1]), float(best[2]))


def _told(material: Material, found: Evidence, said: Array) -> tuple[Array, Array]:
    """Rows of originals to calibrate on, and their evidence, which was not made from them where that can be."""
    rows = np.flatnonzero(material.originals)
    # A label whose examples are all in one fold was unknown when they were measured.
    told = _thinned(np.flatnonzero(said[np.arange(len(rows)), material.targets[rows]] > NOTHING / 2))
    if len(told):
        return rows[told], said[told]
    # Nothing is known of fresh pictures, but much of what the old head must not lose.
    rows = _thinned(rows)
    return rows, found(material.vectors[rows])


def _rehearsed(material: Material, found: Evidence) -> tuple[Array, Array]:
    """Embeddings that the old head is to be distilled on, and their evidence."""
    background, catalog = material.background[_thinned(np.arange(len(material.background)))], material.rehearsal
    catalog = catalog[_thinned(np.arange(len(catalog)))]
    about = found(catalog)
    # What looks like something people taught is theirs to judge now, not the old head's.
    foreign = about.max(axis=1, initial=NOTHING) <= 0
    return np.concatenate([background, catalog[foreign]]), np.concatenate([found(background), about[foreign]])


@dataclass(frozen=True)
class _Problem:
    """Examples, then the rehearsal: cross-entropy with labels, then with the old head's probabilities.

    Of the rows that stay only the log of their summed exponentials counts: distilling each of their probabilities, or
    their sum, is the same, because their ratios cannot change.
    """

    answered: Answered
    evidence: Array
    old: Array
    rest: Array
    targets: Array
    share: Array

    @cached_property
    def _goal(self) -> Array:
        """Wanted probabilities ``[n, k + 1]``, last that of all other labels."""
        kept = np.where(self.answered.is_old, self.old, NOTHING)
        goal = np.concatenate([kept, self.rest[:, None]], axis=1)
        goal = np.exp(goal - goal.max(axis=1, keepdims=True))
        goal /= goal.sum(axis=1, keepdims=True)
        goal[: len(self.targets)] = 0
        goal[np.arange(len(self.targets)), self.targets] = 1
        return np.asarray(goal)

    def loss(self, change: Array) -> tuple[float, Array]:
        """Value and gradient at log factor, constant of old and constant of new labels."""
        factor = float(np.exp(change[0]))
        said = self.answered.together(self.old, self.evidence, Calibration(factor, change[1], change[2]))
        value, gradient = self._cross_entropy(said)
        by_label = gradient.sum(axis=0)
        # A weak pull: where few pictures are all told right, the factor would grow without end.
        pull = 1e-3 * change
        slope = [
            float((gradient * self.evidence).sum()) * factor,
            float(by_label[self.answered.is_old].sum()),
            float(by_label[~self.answered.is_old].sum()),
        ]
        return value + 0.5 * float(change @ pull), np.array(slope) + pull

    def _cross_entropy(self, said: Array) -> tuple[float, Array]:
        top = np.maximum(said.max(axis=1), self.rest)
        powers = np.exp(said - top[:, None])
        total = powers.sum(axis=1) + np.exp(self.rest - top)
        wanted = (self._goal[:, :-1] * said).sum(axis=1) + self._goal[:, -1] * self.rest
        value = float((self.share * (np.log(total) + top - wanted)).sum(dtype=np.float64))
        powers /= total[:, None]
        powers -= self._goal[:, :-1]
        powers *= self.share[:, None]
        return value, powers


def _thinned(rows: Array) -> Array:
    return rows[:: max(1, -(-len(rows) // _CALIBRATED))]


def log_sum(logits: Array) -> Array:
    """Logarithm of the sum of the powers of e of each row, ``[n]`` for ``[n, k]``; numpy's own takes ten times as long.

    Of no columns at all it is :data:`NOTHING`.
    """
    top = logits.max(axis=1, initial=NOTHING)
    summed: Array = top + np.log(np.maximum(np.exp(logits - top[:, None]).sum(axis=1), 1e-30))
    return summed


def _shares(weights: Array, total: float) -> Array:
    return (weights * (total / max(float(weights.sum()), 1e-9))).astype(np.float32)


def merged(answered: Answered, label_ids: tuple[str, ...], found: Evidence, calibration: Calibration) -> Head:
    """The new head: rows of labels without an example are those of the old one.

    New labels stand behind the old ones, in the order of ``label_ids``, with the median of the old thresholds.
    """
    base, is_old = answered.base, answered.is_old
    new = [label_id for label_id, old in zip(label_ids, is_old, strict=True) if not old]
    rows = answered.rows.copy()
    rows[~is_old] = len(base.label_ids) + np.arange(len(new))
    weight = np.concatenate([base.weight, np.zeros((len(new), base.weight.shape[1]), np.float32)])
    bias = np.concatenate([base.bias, np.zeros(len(new), np.float32)])
    start_weight, start_bias = answered.start
    constant = np.where(is_old, calibration.old, calibration.new)
    weight[rows] = start_weight + np.float32(calibration.factor) * found.weight
    bias[rows] = start_bias + (calibration.factor * found.bias + constant).astype(np.float32)
    thresholds = np.concatenate([base.thresholds, np.full(len(new), np.median(base.thresholds), np.float32)])
    return Head((*base.label_ids, *new), thresholds, weight, bias)
