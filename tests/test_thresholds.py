"""Learned thresholds hold their promise on pictures that nobody learned from, whoever chose what people saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training import thresholds
from training.thresholds import NEVER, Scored

Array = np.ndarray[Any, Any]
LABELS = 12


def world(count: int, seed: int, labels: int = LABELS) -> tuple[Array, Array, Array]:
    """Best rows, scores and whether right; how far a score can be believed differs from label to label."""
    numbers = np.random.default_rng(seed)
    best = numbers.integers(0, labels, count)
    scores = numbers.beta(4, 1.5, count).astype(np.float32)
    honest = np.linspace(0.6, 2.0, labels)[best]
    right = numbers.random(count) < scores.astype(float) ** honest
    return best, scores, right


def seen(best: Array, scores: Array, right: Array, shown: str = "audit", probability: Any = np.nan) -> Scored:
    return Scored(best, scores, right, np.broadcast_to(np.float64(probability), best.shape), (shown,) * len(best))


def learned(scored: Scored, target: float = 0.95, labels: int = LABELS) -> Array:
    before = np.full(labels, 0.6, np.float32)
    return np.array([one.threshold for one in thresholds.learn(scored, before, np.arange(labels), target)], np.float32)


def precision(found: Array, seed: int = 99, labels: int = LABELS) -> tuple[float, float]:
    """Precision and coverage on fresh pictures."""
    best, scores, right = world(200_000, seed, labels)
    auto = scores >= found[best]
    return float(right[auto].mean()), float(auto.mean())


# ------------------------------------------------------------------ the promise


@pytest.mark.parametrize("target", [0.9, 0.95])
@pytest.mark.parametrize("count", [200, 1_000, 20_000])
def test_fresh_pictures_are_as_precise_as_wanted(target: float, count: int) -> None:
    found = [precision(learned(seen(*world(count, seed)), target)) for seed in range(8)]
    reached, coverage = np.mean(found, axis=0)
    # Few pictures are met with caution, never with too much trust.
    assert target - 0.015 < reached < target + 0.03
    assert coverage > 0.02


def test_labels_of_which_scores_say_less_get_higher_thresholds() -> None:
    found = learned(seen(*world(60_000, 1)), 0.9)
    # The first believes too little in itself, the last too much.
    assert found[0] + 0.03 < found[-1]


def test_a_rare_label_goes_by_what_all_labels_say() -> None:
    best, scores, right = world(6_000, 2)
    rare = np.flatnonzero(best == 3)[3:]
    kept = np.setdiff1d(np.arange(len(best)), rare)
    one = thresholds.learn(seen(best[kept], scores[kept], right[kept]), np.full(LABELS, 0.6), np.arange(LABELS), 0.9)[3]
    everything = thresholds.learn(
        seen(np.zeros_like(best), scores, right), np.full(LABELS, 0.6), np.zeros(1, np.int64), 0.9
    )[0]
    assert (one.how, one.n) == ("pooled", 3)
    assert one.threshold == pytest.approx(everything.threshold, abs=0.06)


def test_what_is_told_is_what_the_threshold_gives() -> None:
    best, scores, right = world(5_000, 3)
    for one in thresholds.learn(seen(best, scores, right), np.full(LABELS, 0.6), np.arange(LABELS), 0.9):
        mine = best == one.row
        auto = mine & (scores >= np.float32(one.threshold))
        assert one.n == mine.sum()
        assert one.precision == pytest.approx(right[auto].mean())
        assert one.coverage == pytest.approx(auto.sum() / mine.sum())
        assert one.how == "own"


def test_where_no_score_is_enough_nothing_goes_live() -> None:
    best, scores, _ = world(500, 4)
    found = thresholds.learn(seen(best, scores, np.zeros(500, bool)), np.full(LABELS, 0.6), np.arange(LABELS), 0.9)
    assert {one.threshold for one in found} == {NEVER}
    assert {(one.precision, one.coverage) for one in found} == {(None, 0.0)}


def test_equal_scores_go_live_together_or_not_at_all() -> None:
    scores = np.ones(200, np.float32)
    right = np.arange(200) < 100
    (one,) = thresholds.learn(seen(np.zeros(200, int), scores, right), np.array([0.6]), np.array([0]), 0.9)
    # Half of the pictures that the head has no doubt of are wrong: whichever come first, they are not precise enough.
    assert one.coverage == 0


# ------------------------------------------------------------------ who chose the pictures


@pytest.mark.parametrize(
    ("shown", "probability"),
    [
        ("review", 0.5),
        ("forced_review", 0.5),
        ("weak", 0.5),
        ("sibling", np.nan),
        ("sibling", 1.0),
        ("alike", 1.0),
    ],
)
def test_what_nobody_drew_by_chance_leaves_thresholds_as_they_were(shown: str, probability: float) -> None:
    before = np.linspace(0.3, 0.9, LABELS).astype(np.float32)
    found = thresholds.learn(seen(*world(5_000, 5), shown, probability), before, np.arange(LABELS), 0.95)
    assert [one.threshold for one in found] == pytest.approx(before.tolist())
    assert {(one.how, one.n, one.precision) for one in found} == {("kept", 0, None)}


def test_a_handful_of_others_does_not_make_the_queue_telling() -> None:
    best, scores, right = world(5_000, 5)
    shown = ("audit",) * 10 + ("review",) * 4_990
    scored = Scored(best, scores, right, np.full(5_000, 0.5), shown)
    assert {one.how for one in thresholds.learn(scored, np.full(LABELS, 0.6), np.arange(LABELS), 0.95)} == {"kept"}


@pytest.mark.parametrize("beside", ["sibling", "alike"])
def test_what_came_with_the_queue_does_not_make_it_telling(beside: str) -> None:
    """Below the old threshold all is right, as the queue of a careful model is: no reason to let it all live."""
    scores = np.linspace(0.1, 0.6, 400, dtype=np.float32)
    chance = np.where(np.arange(400) % 10, 1.0, np.nan)
    shown = tuple("review" if number % 10 else beside for number in range(400))
    scored = Scored(np.zeros(400, np.int64), scores, np.ones(400, bool), chance, shown)
    (one,) = thresholds.learn(scored, np.array([0.6]), np.array([0]), 0.95)
    assert (one.threshold, one.how) == (0.6, "kept")


@pytest.mark.parametrize("probability", [0.5, np.nan])
def test_an_import_of_what_was_not_in_the_queue_is_telling(probability: float) -> None:
    found = thresholds.learn(
        seen(*world(5_000, 5), "import", probability), np.full(LABELS, 0.6), np.arange(LABELS), 0.95
    )
    assert {one.how for one in found} <= {"own", "pooled"}


def test_the_queue_counts_only_where_its_chances_are_known() -> None:
    best, scores, right = world(4_000, 6)
    audit = seen(best[:2_000], scores[:2_000], right[:2_000])
    unknown = Scored(
        best,
        scores,
        right & (np.arange(4_000) < 2_000),
        np.full(4_000, np.nan),
        ("audit",) * 2_000 + ("review",) * 2_000,
    )
    np.testing.assert_array_equal(learned(unknown), learned(audit))
    known = Scored(best, scores, unknown.right, np.full(4_000, 1.0), unknown.shown)
    assert (learned(known) >= learned(audit)).all()
    assert (learned(known) > learned(audit)).any()


def test_weights_correct_a_biased_sample() -> None:
    """Wrong pictures were shown ten times as often: taken as they are they deceive, by their chances they do not."""
    best, scores, right = world(400_000, 7)
    chance = np.where(right, 0.02, 0.2)
    drawn = np.random.default_rng(8).random(len(best)) < chance
    sample = best[drawn], scores[drawn], right[drawn]
    shown = ("audit",) * int(drawn.sum())
    weighted = precision(learned(Scored(*sample, chance[drawn], shown), 0.9))
    naive = precision(learned(Scored(*sample, np.full(int(drawn.sum()), np.nan), shown), 0.9))
    assert weighted[0] == pytest.approx(0.9, abs=0.015)
    assert naive[0] > 0.93
    assert weighted[1] > 2 * naive[1]


def test_one_picture_that_stands_for_fifty_is_one_picture() -> None:
    best, scores, right = world(3_000, 9)
    best[best == 4] = 5
    best[0], scores[0], right[0] = 4, 0.2, True
    probability = np.ones(3_000)
    probability[0] = 0.02
    row = np.array([4])
    (one,) = thresholds.learn(
        Scored(best, scores, right, probability, ("audit",) * 3_000), np.full(LABELS, 0.6), row, 0.95
    )
    assert one.how == "pooled"
    assert one.threshold > 0.5


@pytest.mark.parametrize("probability", [np.nan, 0.0, -1.0, np.inf], ids=str)
def test_a_chance_that_is_none_counts_as_one(probability: float) -> None:
    sample = world(2_000, 10)
    np.testing.assert_array_equal(learned(seen(*sample, "audit", probability)), learned(seen(*sample, "audit", 1.0)))


@pytest.mark.parametrize("chance", [1e-12, 1e-320])
def test_chances_below_all_measure_leave_numbers_finite(chance: float) -> None:
    best, scores, right = world(2_000, 11)
    probability = np.ones(2_000)
    probability[:40] = chance
    found = learned(Scored(best, scores, right, probability, ("audit",) * 2_000))
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= NEVER)).all()


@pytest.mark.parametrize("count", [0, 29])
def test_too_few_pictures_leave_thresholds_as_they_were(count: int) -> None:
    found = thresholds.learn(seen(*world(count, 12)), np.full(LABELS, 0.6), np.arange(LABELS), 0.95)
    assert {(one.threshold, one.how) for one in found} == {(0.6, "kept")}


# ------------------------------------------------------------------ new labels


def test_a_new_label_never_goes_live_on_the_word_of_others() -> None:
    """Of label 7 there are four pictures; all labels together would let it go live."""
    best, scores, right = world(2_000, 13)
    kept = (best != 7) | (np.cumsum(best == 7) <= 4)
    pictures = seen(best[kept], scores[kept], right[kept])
    before = np.full(LABELS, 0.6)
    old = thresholds.learn(pictures, before, np.arange(LABELS), 0.95)
    new = thresholds.learn(pictures, before, np.arange(LABELS), 0.95, [7])
    assert (old[7].how, old[7].threshold < NEVER) == ("pooled", True)
    assert (new[7].how, new[7].threshold, new[7].n) == ("unproven", NEVER, 4)
    assert [one for one in new if one.row != 7] == [one for one in old if one.row != 7]


def test_nor_where_nothing_can_be_learned_at_all() -> None:
    found = thresholds.learn(seen(*world(29, 12)), np.full(3, 0.6), np.arange(3), 0.95, [1])
    assert [(one.how, one.threshold) for one in found] == [("kept", 0.6), ("unproven", NEVER), ("kept", 0.6)]
