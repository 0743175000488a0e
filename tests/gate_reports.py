"""Reports of models that never were, measured by the real metrics, for tests of the gate and of what comes after it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from eval import metrics
from eval.reports import AccuracyReport, CaseResult, Latency, LatencyReport, Model, Reports
from wwts_ops.badcases import BadCase

RIGHT, WRONG, NEW, FORBIDDEN = "t:right", "t:wrong", "t:new", "t:forbidden"
OLD_LABELS = frozenset({RIGHT, WRONG, FORBIDDEN})


def bad_case(number: int, *slices: str, **changes: Any) -> BadCase:
    """A case in force, whose right label is ``t:right``."""
    given: dict[str, Any] = {
        "content_sha256": f"{number:012x}" + "ab" * 26,
        "accepted": (RIGHT,),
        "forbidden": (FORBIDDEN,),
        "slices": slices,
        "owner": "小王",
        "reason": "线上打错过",
        "never_regress": False,
        "starter": False,
        "image_id": None,
        "uri": None,
        "added_at": datetime(2026, 1, 1, tzinfo=UTC),
        "added_by": "wang",
    }
    return BadCase(**(given | changes))


def result(case: BadCase, label_id: str | None, confidence: float = 0.75, decision: str = "auto") -> CaseResult:
    """What a model made of a case; without a label there is no confidence and nothing goes live."""
    return CaseResult(
        content_sha256=case.content_sha256,
        label_id=label_id,
        confidence=None if label_id is None else confidence,
        top5=() if label_id is None else (label_id,),
        decision="review" if label_id is None else decision,
        right=metrics.is_right(case, label_id),
    )


def answered(cases: Sequence[BadCase], wrong: Collection[int] = ()) -> list[CaseResult]:
    """The results of a model that gets all right but the cases at the positions ``wrong``."""
    return [
        result(case, WRONG if position in wrong else (case.accepted or (RIGHT,))[0])
        for position, case in enumerate(cases)
    ]


def accuracy(
    cases: Sequence[BadCase], challenger: Sequence[CaseResult], champion: Sequence[CaseResult], **changes: Any
) -> AccuracyReport:
    """Both models measured on the cases; the challenger knows one more label, ``t:new``."""
    found = metrics.groups(cases, OLD_LABELS, OLD_LABELS | {NEW})
    mine = {one.content_sha256: one for one in challenger}
    theirs = {one.content_sha256: one for one in champion}
    given: dict[str, Any] = {
        "badcases": "b000007-0123456789ab",
        "badcases_sha256": "0123456789ab" + "0" * 52,
        "cases": len(cases),
        "curated": sum(not case.starter for case in cases),
        "groups": {name: len(group) for name, group in found.items()},
        "never_regress": tuple(case.content_sha256 for case in cases if case.never_regress),
        "challenger_model": Model(version="2", sha256="c" * 64, backbone_sha256="b" * 64, labels=4, megabytes=40.0),
        "champion_model": Model(version="1", sha256="a" * 64, backbone_sha256="b" * 64, labels=3, megabytes=40.0),
        "challenger": {name: metrics.measure(group, challenger) for name, group in found.items()},
        "champion": {name: metrics.measure(group, champion) for name, group in found.items()},
        "paired": {
            name: metrics.compare(
                [mine[case.content_sha256] for case in group], [theirs[case.content_sha256] for case in group]
            )
            for name, group in found.items()
        },
        "challenger_results": tuple(challenger),
        "champion_results": tuple(champion),
    }
    return AccuracyReport(**(given | changes))


def latency(challenger_p95: float = 0.1, champion_p95: float | None = 0.1) -> LatencyReport:
    """Both models' times; None: the champion was not measured."""

    def times(p95: float) -> Latency:
        return Latency(
            p50=p95 / 2,
            p95=p95,
            p99=p95 * 1.1,
            images_per_second=1 / p95,
            p95_repeats=(p95,) * 3,
            samples=(p95 / 2,) * 95 + (p95,) * 5,
        )

    champion = None if champion_p95 is None else times(champion_p95)
    return LatencyReport(images=100, hardware="2 核测试机", challenger=times(challenger_p95), champion=champion)


def shop_cases() -> list[BadCase]:
    """70 cases: 20 of slice 水果, 20 of 饮料, 10 that only the new labels can name, 20 of the starter set.

    Positions 0 and 20 may never regress.
    """
    return [
        *(bad_case(number, "水果", never_regress=number == 0) for number in range(20)),
        *(bad_case(number, "饮料", never_regress=number == 20) for number in range(20, 40)),
        *(bad_case(number, accepted=(NEW,)) for number in range(40, 50)),
        *(bad_case(number, "starter", starter=True, owner="wwts") for number in range(50, 70)),
    ]


#: What the champion of :func:`shop_cases` gets wrong: a few of each slice, and the labels that it does not know.
CHAMPION_WRONG = frozenset({*range(15, 20), *range(35, 40), *range(40, 50), *range(65, 70)})


def reports(challenger_wrong: Collection[int] = CHAMPION_WRONG) -> Reports:
    """A challenger that gets these positions of :func:`shop_cases` wrong, as fast as the champion."""
    cases = shop_cases()
    mine, theirs = answered(cases, challenger_wrong), answered(cases, CHAMPION_WRONG)
    return Reports(accuracy=accuracy(cases, mine, theirs), latency=latency())
