"""What is measured of a version, as the gate reads it: frozen, checked, and the same after JSON.

A number that could not be measured is None, never 0 or NaN: the gate fails what is missing.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

#: The group of all cases; the others are slices.
OVERALL = "overall"
#: Cases with an accepted label that the champion knows; and those whose accepted labels only the challenger knows.
OLD_LABELS, NEW_LABELS = "old_labels", "new_labels"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Frozen):
    """A measure with its 95 % interval.

    Attributes:
        value: None when there was nothing to measure.
        low: lower end of the interval.
        high: upper end.
        n: cases it stands on.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


class Metrics(_Frozen):
    """One model on one group of cases; all shares 0–1.

    Attributes:
        n: cases in the group.
        top1: first tag is accepted and not forbidden.
        top5: one of the first five is accepted, and the first is not forbidden.
        macro_f1: mean over the accepted labels of the harmonic mean of precision and recall.
        auto_precision: of the cases decided ``auto``, how many are right.
        coverage: share of cases decided ``auto``.
        ece: expected calibration error of the first tag's score; lower is better.
        forbidden: share of cases whose first tag is forbidden.
    """

    n: int
    top1: Estimate
    top5: Estimate
    macro_f1: Estimate
    auto_precision: Estimate
    coverage: Estimate
    ece: Estimate
    forbidden: Estimate


class Paired(_Frozen):
    """Challenger against champion on the same cases of one group, by top-1.

    Attributes:
        n: cases in the group.
        wins: only the challenger is right.
        losses: only the champion is.
        p_value: exact McNemar test, two-sided.
        difference: of top-1, challenger less champion, with a 95 % bootstrap interval.
    """

    n: int
    wins: int
    losses: int
    p_value: float | None
    difference: Estimate


class CaseResult(_Frozen):
    """What one model made of one bad case.

    Attributes:
        content_sha256: which case.
        label_id: first tag; None when every label is switched off.
        confidence: its score, 0–1.
        top5: label ids, best first.
        decision: ``auto``, ``review`` or ``forced_review``.
        right: first tag is accepted and not forbidden.
    """

    content_sha256: str
    label_id: str | None
    confidence: float | None
    top5: tuple[str, ...]
    decision: str
    right: bool


class Model(_Frozen):
    """Which version a report speaks of; ``megabytes`` of all its tagger's files (10^6 bytes)."""

    version: str
    sha256: str
    backbone_sha256: str
    labels: int
    megabytes: float


class AccuracyReport(_Frozen):
    """Both models on one snapshot of bad cases.

    Attributes:
        badcases: name of the snapshot.
        badcases_sha256: of it.
        cases: how many it holds.
        curated: how many of them people added (the rest is the starter set).
        groups: ``overall`` and every slice of the snapshot, always with the two label slices, and its number of cases.
            Written down before anything is measured, so that a group whose measures are missing is noticed.
        never_regress: contents that may never be lost.
        challenger, champion: metrics by group.
        paired: by group.
        challenger_results, champion_results: one a case.
    """

    badcases: str
    badcases_sha256: str
    cases: int
    curated: int
    groups: dict[str, int]
    never_regress: tuple[str, ...]
    challenger_model: Model
    champion_model: Model
    challenger: dict[str, Metrics]
    champion: dict[str, Metrics]
    paired: dict[str, Paired]
    challenger_results: tuple[CaseResult, ...]
    champion_results: tuple[CaseResult, ...]


class Latency(_Frozen):
    """One model, one picture at a time, bytes in and Chinese tags out, warm; all in seconds.

    Attributes:
        p50, p95, p99: medians over the repeats.
        images_per_second: one after another on one core.
        p95_repeats: of each repeat.
        samples: every time taken, for the histogram.
    """

    p50: float
    p95: float
    p99: float
    images_per_second: float
    p95_repeats: tuple[float, ...]
    samples: tuple[float, ...]


class LatencyReport(_Frozen):
    """Both models measured in turns in one run, so that a slow machine is not blamed on a model.

    Attributes:
        images: pictures in one repeat.
        hardware: what it ran on, as people read it.
    """

    images: int
    hardware: str
    challenger: Latency
    champion: Latency | None


class Reports(_Frozen):
    """All that the gate judges by; None is what was not measured."""

    accuracy: AccuracyReport | None
    latency: LatencyReport | None
