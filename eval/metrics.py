"""What a model makes of bad cases, as numbers: shares, macro-F1, calibration, and a paired comparison of two models.

The statistics are SciPy's and scikit-learn's; here stands only what is counted. Sources: Wilson intervals, Brown, Cai
and DasGupta 2001, "Interval Estimation for a Binomial Proportion"; expected calibration error, Guo et al. 2017, "On
Calibration of Modern Neural Networks"; exact McNemar test, McNemar 1947 (a binomial test of the discordant pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.reports import NEW_LABELS, OLD_LABELS, OVERALL, CaseResult, Estimate, Metrics, Paired
from wwts_ops import shares
from wwts_ops.decisions import AUTO
from wwts_ops.errors import WwtsError

if TYPE_CHECKING:
    from wwts_ops.badcases import BadCase

Array = np.ndarray[Any, Any]

#: Equal-width bins of confidence; Guo et al. show 15 on thousands of pictures, bad cases are fewer.
BINS = 10
_RESAMPLES = 1000
#: The same cases give the same interval, whoever computes it and when.
_SEED = 20170619
#: Resampled cases held at once: bounds the memory of the bootstrap, whatever the size of the snapshot.
_AT_ONCE = 500_000
_NOTHING = Estimate(value=None, low=None, high=None, n=0)


def is_right(case: BadCase, label_id: str | None) -> bool:
    """Whether a first tag is right: accepted, and not forbidden.

    A case without accepted labels says only what the picture is not: everything else is right. No tag is never right.
    """
    if label_id is None or label_id in case.forbidden:
        return False
    return not case.accepted or label_id in case.accepted


def groups(
    cases: Sequence[BadCase], champion_labels: Collection[str], challenger_labels: Collection[str]
) -> dict[str, list[BadCase]]:
    """The cases of every group: ``overall``, the two label groups (empty ones too), and each slice by name.

    A case of which the champion knows an accepted label is of ``old_labels``; one of which only the challenger does is
    of ``new_labels``; one that neither can get right, or that only forbids, is of neither.

    Raises:
        WwtsError: when a slice bears the name of one of our own groups.
    """
    old, new = frozenset(champion_labels), frozenset(challenger_labels)
    found: dict[str, list[BadCase]] = {OVERALL: list(cases), OLD_LABELS: [], NEW_LABELS: []}
    slices: dict[str, list[BadCase]] = {}
    for case in cases:
        if not old.isdisjoint(case.accepted):
            found[OLD_LABELS].append(case)
        elif not new.isdisjoint(case.accepted):
            found[NEW_LABELS].append(case)
        for name in set(case.slices):
            slices.setdefault(name, []).append(case)
    taken = sorted(found.keys() & slices.keys())
    if taken:
        raise WwtsError(f"The slice name {', '.join(taken)} is one of our own groups; import it by another.")
    return found | dict(sorted(slices.items()))


def measure(cases: Sequence[BadCase], results: Sequence[CaseResult]) -> Metrics:
    """One model on one group of cases, with 95 % intervals.

    Args:
        cases: the group; may be empty, then every value is None.
        results: of at least these cases, in any order; those of other cases are left alone.

    Raises:
        WwtsError: when a case has no result or two, or a result's ``right`` is not what the case says.
    """
    found = _matched(cases, results)
    right = np.asarray([result.right for result in found], dtype=bool)
    auto = np.asarray([result.decision == AUTO for result in found], dtype=bool)
    pairs = list(zip(cases, found, strict=True))
    return Metrics(
        n=len(cases),
        top1=_share(right),
        top5=_share([_in_five(case, result) for case, result in pairs]),
        macro_f1=_macro_f1(pairs),
        auto_precision=_share(right[auto]),
        coverage=_share(auto),
        ece=_ece(found),
        forbidden=_share([result.label_id in case.forbidden for case, result in pairs]),
    )


def compare(challenger: Sequence[CaseResult], champion: Sequence[CaseResult]) -> Paired:
    """Two models on the same cases, by whether the first tag is right.

    Args:
        challenger: one result a case.
        champion: of the same cases, in any order.

    Returns:
        Without any case: no wins, no losses, a p of 1, and a difference of None.

    Raises:
        WwtsError: when the two are not of the same cases, or a case has two results.
    """
    from scipy.stats import binomtest

    mine, theirs = _by_content(challenger), _by_content(champion)
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())
        raise WwtsError(
            f"{len(odd)} cases have a result of only one of the two models, such as {odd[0][:12]}; evaluate both again."
        )
    difference = np.asarray([int(mine[key].right) - int(theirs[key].right) for key in sorted(mine)], dtype=float)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    p_value = float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    return Paired(n=len(mine), wins=wins, losses=losses, p_value=p_value, difference=_bootstrap(_mean, difference))


# ------------------------------------------------------------------ matching


def _by_content(results: Sequence[CaseResult]) -> dict[str, CaseResult]:
    found = {result.content_sha256: result for result in results}
    if len(found) != len(results):
        raise WwtsError(f"{len(results) - len(found)} results are of a case that has one already; evaluate again.")
    return found


def _matched(cases: Sequence[BadCase], results: Sequence[CaseResult]) -> list[CaseResult]:
    """The result of each case, in the order of the cases."""
    known = _by_content(results)
    missing = [case.content_sha256[:12] for case in cases if case.content_sha256 not in known]
    if missing:
        raise WwtsError(f"{len(missing)} bad cases have no result, such as {missing[0]}; evaluate this version again.")
    found = [known[case.content_sha256] for case in cases]
    wrong = [
        case.content_sha256[:12]
        for case, result in zip(cases, found, strict=True)
        if result.right != is_right(case, result.label_id)
    ]
    if wrong:
        raise WwtsError(
            f"{len(wrong)} results say right or wrong against their bad case, such as {wrong[0]}; evaluate again."
        )
    return found


def _in_five(case: BadCase, result: CaseResult) -> bool:
    """One of the first five is accepted (or nothing is asked), and the first is not forbidden."""
    if result.label_id is None or result.label_id in case.forbidden:
        return False
    return not case.accepted or not set(case.accepted).isdisjoint(result.top5[:5])


# ------------------------------------------------------------------ estimates


def _share(hits: Sequence[bool] | Array) -> Estimate:
    """A share with its Wilson interval."""
    count, total = int(np.count_nonzero(hits)), len(hits)
    if not total:
        return _NOTHING
    low, high = shares.wilson(count / total, total)
    return Estimate(value=count / total, low=low, high=high, n=total)


def _macro_f1(pairs: Sequence[tuple[BadCase, CaseResult]]) -> Estimate:
    """Of the cases that have an accepted label; the truth among several is the predicted one, else the first."""
    from sklearn.metrics import f1_score

    asked = [(case.accepted, result.label_id or "") for case, result in pairs if case.accepted]
    if not asked:
        return _NOTHING
    truth = [said if said in accepted else accepted[0] for accepted, said in asked]
    said = [label for _, label in asked]
    labels = sorted(set(truth))
    value = float(f1_score(truth, said, labels=labels, average="macro", zero_division=0))
    number = {label: index for index, label in enumerate(labels)}
    # A label that is nobody's truth costs its case the recall, and no label the precision: it shares one last number.
    codes = [np.asarray([number.get(label, len(labels)) for label in column]) for column in (truth, said)]
    return _bootstrap(partial(_macro_f1_rows, len(labels)), *codes, value=value)


def _macro_f1_rows(classes: int, truth: Array, said: Array) -> Array:
    """scikit-learn's macro-F1 of each row of label numbers (``int [..., cases]``), over the labels true in that row.

    The number ``classes`` stands for every label that is nobody's truth.
    """
    rows = truth.reshape(-1, truth.shape[-1])
    guesses = said.reshape(rows.shape)
    offset = np.arange(len(rows))[:, None] * (classes + 1)
    size = len(rows) * (classes + 1)

    def counted(codes: Array) -> Array:
        return np.bincount(codes.ravel(), minlength=size).reshape(len(rows), classes + 1)[:, :classes]

    support, named = counted(rows + offset), counted(guesses + offset)
    hit = counted(np.where(rows == guesses, rows, classes) + offset)
    f1 = 2 * hit / np.maximum(support + named, 1)
    there = support > 0
    mean: Array = (f1 * there).sum(axis=1) / there.sum(axis=1)
    return mean.reshape(truth.shape[:-1])


def _ece(results: Sequence[CaseResult]) -> Estimate:
    """Expected calibration error of the first tag: the mean gap of a bin, weighted by its cases.

    A result without a tag has no confidence and is left out; ``n`` says how many are in.
    """
    said = [(result.confidence, result.right) for result in results if result.confidence is not None]
    if not said:
        return _NOTHING
    confidence = np.asarray([score for score, _ in said], dtype=float)
    if confidence.min() < 0 or confidence.max() > 1 + 1e-6:  # float32 scores may add up to a hair over 1
        raise WwtsError("A model gave a confidence outside 0 to 1; its scores are no probabilities, so check its head.")
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gap = np.asarray([right for _, right in said], dtype=float) - confidence
    return _bootstrap(_ece_rows, bins, gap)


def _ece_rows(bins: Array, gap: Array) -> Array:
    """The error of each row: bin numbers (``int [..., cases]``) and right (0, 1) less confidence (``float``)."""
    rows = bins.reshape(-1, bins.shape[-1])
    offset = np.arange(len(rows))[:, None] * BINS
    sums = np.bincount((rows + offset).ravel(), weights=gap.ravel(), minlength=len(rows) * BINS)
    error: Array = np.abs(sums.reshape(len(rows), BINS)).sum(axis=1) / bins.shape[-1]
    return error.reshape(bins.shape[:-1])


def _mean(values: Array) -> Array:
    mean: Array = values.mean(axis=-1)
    return mean


def _bootstrap(statistic: Callable[..., Array], *columns: Array, value: float | None = None) -> Estimate:
    """A statistic of cases (``[cases]`` a column) with its percentile interval, which always holds the value itself.

    A resample of few cases is biased (a bin or a label drops out), so the plain percentiles of macro-F1 and of the
    calibration error can miss the very number they are for.
    """
    from scipy.stats import bootstrap

    cases = len(columns[0])
    if not cases:
        return _NOTHING
    exact = float(statistic(*(column[None] for column in columns))[0]) if value is None else value
    if cases == 1:  # nothing to resample
        return Estimate(value=exact, low=exact, high=exact, n=1)
    interval = bootstrap(
        (np.arange(cases),),
        lambda chosen, axis=-1: statistic(*(column[chosen] for column in columns)),  # noqa: ARG005
        n_resamples=_RESAMPLES,
        batch=max(1, _AT_ONCE // cases),
        vectorized=True,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Estimate(value=exact, low=min(float(interval.low), exact), high=max(float(interval.high), exact), n=cases)
