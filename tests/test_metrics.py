"""Metrics against numbers worked by hand, published examples, and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gate_reports import FORBIDDEN, NEW, OLD_LABELS, RIGHT, WRONG, answered, bad_case, result
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from eval import metrics
from eval.reports import CaseResult, Estimate
from wwts_ops.errors import WwtsError

# ------------------------------------------------------------------ what is right


@pytest.mark.parametrize(
    ("accepted", "forbidden", "label_id", "right"),
    [
        (("a", "b"), (), "b", True),
        (("a", "b"), (), "c", False),
        ((), ("x",), "c", True),
        ((), ("x",), "x", False),
        (("a",), ("a",), "a", False),
        (("a",), (), None, False),
        ((), ("x",), None, False),
    ],
)
def test_right_is_accepted_and_not_forbidden(
    accepted: tuple[str, ...], forbidden: tuple[str, ...], label_id: str | None, right: bool
) -> None:
    assert metrics.is_right(bad_case(1, accepted=accepted, forbidden=forbidden), label_id) is right


def test_every_group_is_there_and_a_case_may_be_in_several() -> None:
    known, unknown = bad_case(1, "水果", "夜间"), bad_case(2, "夜间", accepted=("nobody",))
    new, either, only_forbids = (
        bad_case(3, accepted=(NEW,)),
        bad_case(4, accepted=(NEW, RIGHT)),
        bad_case(5, accepted=()),
    )
    cases = [known, unknown, new, either, only_forbids]
    assert metrics.groups(cases, OLD_LABELS, OLD_LABELS | {NEW}) == {
        "overall": cases,
        "old_labels": [known, either],
        "new_labels": [new],
        "夜间": [known, unknown],
        "水果": [known],
    }


def test_the_label_groups_are_there_without_a_case() -> None:
    assert metrics.groups([], (), ()) == {"overall": [], "old_labels": [], "new_labels": []}


def test_a_slice_named_like_a_group_is_refused() -> None:
    with pytest.raises(WwtsError, match="overall"):
        metrics.groups([bad_case(1, "overall")], (), ())


# ------------------------------------------------------------------ one model


def near(estimate: Estimate) -> list[float]:
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return [estimate.value, estimate.low, estimate.high]


def test_every_measure_by_hand() -> None:
    cases = [bad_case(number) for number in range(4)] + [bad_case(4, accepted=())]
    said = [
        result(cases[0], RIGHT, 0.9, "auto"),
        result(cases[1], WRONG, 0.8, "auto").model_copy(update={"top5": (WRONG, "t:x", RIGHT)}),
        result(cases[2], FORBIDDEN, 0.3, "review").model_copy(update={"top5": (FORBIDDEN, RIGHT)}),
        result(cases[3], None),
        result(cases[4], WRONG, 0.5, "auto"),
    ]
    measured = metrics.measure(cases, list(reversed(said)))
    assert measured.n == 5
    assert (measured.top1.value, measured.top1.n) == (2 / 5, 5)
    assert measured.top5.value == 3 / 5
    assert (measured.auto_precision.value, measured.auto_precision.n) == (2 / 3, 3)
    assert measured.coverage.value == 3 / 5
    assert measured.forbidden.value == 1 / 5
    # Four cases are of RIGHT, one is named so: precision 1, recall 1/4.
    assert (measured.macro_f1.value, measured.macro_f1.n) == (pytest.approx(2 * 1 * 0.25 / 1.25), 4)
    # Four confidences, each alone in its bin: 0.1 short, 0.8 over, 0.3 over, 0.5 short.
    assert (measured.ece.value, measured.ece.n) == (pytest.approx((0.1 + 0.8 + 0.3 + 0.5) / 4), 4)


def test_one_of_the_first_five_and_no_later_one() -> None:
    case = bad_case(1)
    fifth = result(case, WRONG).model_copy(update={"top5": (WRONG, "t:1", "t:2", "t:3", RIGHT)})
    sixth = result(case, WRONG).model_copy(update={"top5": (WRONG, "t:1", "t:2", "t:3", "t:4", RIGHT)})
    assert metrics.measure([case], [fifth]).top5.value == 1
    assert metrics.measure([case], [sixth]).top5.value == 0


@pytest.mark.parametrize(
    ("right", "cases", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares_have_the_published_wilson_intervals(right: int, cases: int, low: float, high: float) -> None:
    group = [bad_case(number) for number in range(cases)]
    found = metrics.measure(group, answered(group, range(right, cases)))
    assert near(found.top1) == pytest.approx([right / cases, low, high], abs=5e-5)
    assert near(found.coverage) == pytest.approx([1, 1 / (1 + 1.959964**2 / cases), 1], abs=5e-5)


def test_calibration_is_weighted_by_the_cases_of_a_bin() -> None:
    group = [bad_case(number) for number in range(10)]
    # Six at 0.95 of which three are right; four at 0.15 of which one is.
    said = [
        result(case, RIGHT if n in {0, 1, 2, 6} else WRONG, 0.95 if n < 6 else 0.15) for n, case in enumerate(group)
    ]
    assert metrics.measure(group, said).ece.value == pytest.approx(0.6 * (0.95 - 0.5) + 0.4 * (0.25 - 0.15))


def test_a_model_that_is_as_right_as_it_is_sure_is_calibrated() -> None:
    group = [bad_case(number) for number in range(8)]
    said = [result(case, RIGHT if number < 6 else WRONG, 0.75) for number, case in enumerate(group)]
    assert metrics.measure(group, said).ece.value == pytest.approx(0, abs=1e-12)
    sure = [result(case, RIGHT, 1.0) for case in group]
    assert near(metrics.measure(group, sure).ece) == [0, 0, 0]


@pytest.mark.parametrize("confidence", [-0.1, 1.1])
def test_a_confidence_that_is_no_share_is_refused(confidence: float) -> None:
    with pytest.raises(WwtsError, match="confidence"):
        metrics.measure([bad_case(1)], [result(bad_case(1), RIGHT, confidence)])


def test_the_truth_of_several_is_the_predicted_one() -> None:
    cases = [bad_case(1, accepted=("a", "b")), bad_case(2, accepted=("a", "b")), bad_case(3, accepted=("b",))]
    said = [result(cases[0], "b"), result(cases[1], "c"), result(cases[2], "b")]
    # Truths are b, a, b: F1 of b is 1 and of a is 0; c is nobody's truth.
    assert metrics.measure(cases, said).macro_f1.value == pytest.approx(0.5)


def test_nothing_to_measure_is_none_and_not_zero() -> None:
    empty = metrics.measure([], [])
    nothing = Estimate(value=None, low=None, high=None, n=0)
    assert empty.model_dump() == {"n": 0} | {name: nothing.model_dump() for name in empty.model_dump() if name != "n"}
    cases = [bad_case(1, accepted=()), bad_case(2, accepted=())]
    silent = metrics.measure(cases, [result(case, None) for case in cases])
    assert (silent.top1.value, silent.coverage.value) == (0, 0)
    assert silent.macro_f1 == silent.auto_precision == silent.ece == nothing


def test_samples_without_spread_have_intervals_without_width() -> None:
    one = [bad_case(1)]
    assert near(metrics.measure(one, answered(one)).macro_f1) == [1, 1, 1]
    many = [bad_case(number) for number in range(5)]
    measured = metrics.measure(many, answered(many))
    assert near(measured.macro_f1) == [1, 1, 1]
    assert near(measured.ece) == pytest.approx([0.25, 0.25, 0.25])


def test_a_case_without_a_result_is_never_dropped() -> None:
    cases = [bad_case(1), bad_case(2)]
    said = answered(cases)
    with pytest.raises(WwtsError, match=f"1 bad cases have no result, such as {cases[1].content_sha256[:12]}"):
        metrics.measure(cases, said[:1])
    with pytest.raises(WwtsError, match="has one already"):
        metrics.measure(cases, [*said, said[0]])
    with pytest.raises(WwtsError, match="against their bad case"):
        metrics.measure(cases, [said[0], said[1].model_copy(update={"right": False})])


LABELS = st.sampled_from(["a", "b", "c", "d"])


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_resample_is_scored_as_scikit_learn_scores_it(pairs: list[tuple[str, str]], seed: int) -> None:
    truth, said = (np.array(column) for column in zip(*pairs, strict=True))
    classes = sorted(set(truth.tolist()))
    number = {label: index for index, label in enumerate(classes)}
    codes = [np.array([number.get(label, len(classes)) for label in column.tolist()]) for column in (truth, said)]
    chosen = np.random.default_rng(seed).integers(0, len(pairs), (7, len(pairs)))
    rows = metrics._macro_f1_rows(len(classes), codes[0][chosen], codes[1][chosen])
    for row, score in zip(chosen, rows, strict=True):
        there = sorted(set(truth[row].tolist()))
        plain = f1_score(truth[row], said[row], labels=there, average="macro", zero_division=0)
        assert score == pytest.approx(plain)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_every_estimate_lies_in_its_interval_and_every_time_the_same(rows: list[tuple[bool, float, bool]]) -> None:
    cases = [bad_case(number) for number in range(len(rows))]
    said = [
        result(case, RIGHT if right else WRONG, score, "auto" if auto else "review")
        for case, (right, score, auto) in zip(cases, rows, strict=True)
    ]
    measured = metrics.measure(cases, said)
    for name, estimate in measured:
        if name != "n" and estimate.value is not None:
            value, low, high = near(estimate)
            assert 0 <= low <= value + 1e-12
            assert value <= high + 1e-12 <= 1 + 2e-12
    assert measured == metrics.measure(cases, said)


# ------------------------------------------------------------------ two models


def pair(wins: int, losses: int, ties: int) -> tuple[list[CaseResult], list[CaseResult]]:
    cases = [bad_case(number) for number in range(wins + losses + ties)]
    return answered(cases, range(wins, wins + losses)), answered(cases, range(wins))


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"),
    [
        # Twice the chance of so few heads, or fewer, in wins + losses throws: sums of binomial coefficients over 2^n.
        (1, 9, 2 * (1 + 10) / 2**10),
        (9, 1, 2 * (1 + 10) / 2**10),
        (0, 6, 2 / 2**6),
        (0, 5, 2 / 2**5),
        (2, 6, 2 * (1 + 8 + 28) / 2**8),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(wins: int, losses: int, p_value: float) -> None:
    found = metrics.compare(*pair(wins, losses, 10))
    assert (found.n, found.wins, found.losses) == (wins + losses + 10, wins, losses)
    assert found.p_value == pytest.approx(p_value)
    assert found.difference.value == pytest.approx((wins - losses) / (wins + losses + 10))


def test_the_bootstrap_interval_is_that_of_the_normal_approximation_when_there_are_many() -> None:
    found = metrics.compare(*pair(40, 20, 340))
    spread = math.sqrt((60 / 400 - 0.05**2) / 400)
    assert near(found.difference) == pytest.approx([0.05, 0.05 - 1.96 * spread, 0.05 + 1.96 * spread], abs=0.006)


def test_the_order_of_the_results_does_not_matter() -> None:
    challenger, champion = pair(4, 9, 20)
    assert metrics.compare(challenger, champion) == metrics.compare(challenger[::-1], champion)


def test_nothing_to_compare() -> None:
    nothing = metrics.compare([], [])
    assert (nothing.n, nothing.wins, nothing.losses, nothing.p_value) == (0, 0, 0, 1.0)
    assert nothing.difference == Estimate(value=None, low=None, high=None, n=0)


def test_two_models_on_other_cases_are_not_compared() -> None:
    challenger, champion = pair(1, 1, 1)
    with pytest.raises(WwtsError, match="only one of the two"):
        metrics.compare(challenger, champion[:2])
    with pytest.raises(WwtsError, match="has one already"):
        metrics.compare([*challenger, challenger[0]], champion)
