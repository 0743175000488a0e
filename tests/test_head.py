"""The head keeps what it need not change, learns what it is told, and its mathematics is what it says it is."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from taught_world import World, material

from training import head
from training.head import Answered, Calibration, Material, _Problem
from wwts_ops.tagger import Head

Array = np.ndarray[Any, Any]

WORLD = World(old=30, new=6, dimension=24, apart=0.5, away=0.5)
NEW = np.arange(WORLD.old, WORLD.old + WORLD.new)


def taught(made: Material, calibration: Calibration | None = None) -> Head:
    answered = Answered.of(WORLD.base_head, made.label_ids)
    if calibration is None:
        calibration = head.calibrate(made, answered, head.evidence(made, 0.2), head.unseen(made, 0.2), 1.0)
    return head.merged(answered, made.label_ids, head.evidence(made, 0.2), calibration)


# ------------------------------------------------------------------ what stays, what changes


def test_rows_of_labels_without_an_example_stay_bit_for_bit() -> None:
    answered = [3, 7, *NEW]
    made = taught(material(WORLD, np.repeat(answered, 8)))
    base, kept = WORLD.base_head, np.setdiff1d(np.arange(WORLD.old), answered)
    assert made.label_ids[: WORLD.old] == base.label_ids
    assert made.weight[kept].tobytes() == base.weight[kept].tobytes()
    assert made.bias[kept].tobytes() == base.bias[kept].tobytes()
    assert made.thresholds[: WORLD.old].tobytes() == base.thresholds.tobytes()
    assert (made.weight[[3, 7]] != base.weight[[3, 7]]).all()


def test_new_labels_are_rows_behind_the_old_ones_and_win_on_their_pictures() -> None:
    made = taught(material(WORLD, NEW.repeat(10)))
    assert made.label_ids[WORLD.old :] == tuple(WORLD.label_ids[label] for label in NEW)
    assert made.weight.shape == (WORLD.old + WORLD.new, WORLD.dimension)
    assert made.weight.dtype == made.bias.dtype == made.thresholds.dtype == np.float32
    assert WORLD.top(made, NEW.repeat(50), 91) > 0.85
    olds = np.arange(WORLD.old).repeat(20)
    assert WORLD.top(made, olds, 92) > WORLD.top(WORLD.base_head, olds, 92) - 0.03


def test_an_old_label_that_was_wrong_is_corrected_and_no_other_is_lost() -> None:
    # The old head has no idea what label 5 looks like.
    right = WORLD.base_head
    weight = right.weight.copy()
    weight[5] = weight.mean(axis=0)
    base = Head(right.label_ids, right.thresholds, weight, right.bias)
    made = material(WORLD, [5] * 20)
    answered = Answered.of(base, made.label_ids)
    calibration = head.calibrate(made, answered, head.evidence(made, 0.2), head.unseen(made, 0.2), 1.0)
    found = head.merged(answered, made.label_ids, head.evidence(made, 0.2), calibration)
    others = np.setdiff1d(np.arange(WORLD.old), [5]).repeat(40)
    assert found.label_ids == base.label_ids
    assert WORLD.top(base, [5] * 100, 93) < 0.1
    assert WORLD.top(found, [5] * 100, 93) > 0.9
    # Who knows label 5 takes a few pictures for it that are none; so does the best head there is.
    assert WORLD.top(found, others, 94) > WORLD.top(right, others, 94) - 0.015


def test_a_row_added_to_all_rows_of_the_old_head_changes_nothing() -> None:
    base, made = WORLD.base_head, material(WORLD, np.repeat([2, *NEW], 8))
    moved = Head(base.label_ids, base.thresholds, base.weight - 40, base.bias + 100)
    pictures = WORLD.pictures(np.arange(WORLD.old + WORLD.new).repeat(5), 95).astype(np.float32)
    best = []
    for one in (base, moved):
        answered = Answered.of(one, made.label_ids)
        calibration = head.calibrate(made, answered, head.evidence(made, 0.2), head.unseen(made, 0.2), 1.0)
        found = head.merged(answered, made.label_ids, head.evidence(made, 0.2), calibration)
        best.append((pictures @ found.weight.T + found.bias).argmax(axis=1))
    assert (best[0] == best[1]).mean() > 0.99


def test_views_of_a_picture_count_as_one() -> None:
    plain = material(WORLD, NEW.repeat(4))
    rows = np.concatenate([np.arange(len(plain.targets)), np.zeros(3, int)])
    weights = np.ones(len(rows), np.float32)
    weights[[0, -3, -2, -1]] = 0.25
    arrays = {name: getattr(plain, name)[rows] for name in ("vectors", "targets", "groups")}
    viewed = replace(plain, **arrays, weights=weights, originals=np.arange(len(rows)) < len(plain.targets))
    np.testing.assert_allclose(
        head.evidence(viewed, 0.4).weight, head.evidence(plain, 0.4).weight, rtol=1e-3, atol=1e-3
    )
    assert head.unseen(viewed, 0.4).shape == (len(plain.targets), WORLD.new)


# ------------------------------------------------------------------ mathematics


@pytest.mark.parametrize("shrinkage", [0.1, 0.7])
def test_the_closed_form_is_that_of_scikit_learn(shrinkage: float) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    made = material(WORLD, NEW.repeat(20))
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    theirs.fit(made.vectors.astype(np.float64), made.targets)
    pictures = WORLD.pictures(NEW.repeat(10), 90)
    ours, said = head.evidence(made, shrinkage)(pictures), theirs.decision_function(pictures.astype(np.float64))
    # The background is the same for all labels of a picture; what is left is what tells them apart.
    centred = [values - values.mean(axis=1, keepdims=True) for values in (ours, said)]
    np.testing.assert_allclose(centred[0], centred[1], rtol=1e-3, atol=1e-3 * np.abs(centred[1]).max())


def test_evidence_is_nothing_half_way_between_a_label_and_the_background() -> None:
    made = material(WORLD, NEW.repeat(20))
    found = head.evidence(made, 0.3)
    centre = made.background.mean(axis=0, dtype=np.float64)
    for label in range(WORLD.new):
        mean = made.vectors[made.targets == label].mean(axis=0, dtype=np.float64)
        middle, at_mean, at_centre = (
            found(point[None].astype(np.float32))[0, label] for point in ((mean + centre) / 2, mean, centre)
        )
        assert abs(middle) < 1e-3 * at_mean
        assert at_centre == pytest.approx(-at_mean, rel=1e-3)


def test_the_gradient_of_the_calibration_is_that_of_finite_differences() -> None:
    numbers = np.random.default_rng(0)
    problem = _Problem(
        answered=Answered(WORLD.base_head, np.array([4, -1, 8, -1])),
        evidence=numbers.normal(0, 5, (40, 4)),
        old=numbers.normal(0, 3, (40, 4)),
        rest=numbers.normal(0, 3, 40),
        targets=numbers.integers(0, 4, 25),
        share=numbers.random(40) / 40,
    )
    for at in ([-1.0, 0.5, 2.0], [0.3, -1.0, 0.0]):
        point = np.array(at)
        _, gradient = problem.loss(point)
        for number in range(3):
            step = np.eye(3)[number] * 1e-3
            slope = (problem.loss(point + step)[0] - problem.loss(point - step)[0]) / 2e-3
            assert gradient[number] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_distilling_wants_nothing_changed_where_evidence_says_nothing() -> None:
    numbers = np.random.default_rng(0)
    old, rest = numbers.normal(0, 3, (30, 2)), numbers.normal(0, 3, 30)
    problem = _Problem(
        Answered(WORLD.base_head, np.array([4, 8])), np.zeros((30, 2)), old, rest, np.zeros(0, int), np.ones(30) / 30
    )
    _, gradient = problem.loss(np.zeros(3))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_the_sum_of_powers() -> None:
    from scipy.special import logsumexp

    logits = np.random.default_rng(0).normal(0, 200, (50, 7)).astype(np.float32)
    np.testing.assert_allclose(head.log_sum(logits), logsumexp(logits, axis=1), rtol=1e-6)
    assert (head.log_sum(logits[:, :0]) == head.NOTHING).all()


# ------------------------------------------------------------------ folds


def test_no_group_is_in_two_folds_and_a_label_with_two_groups_is_in_two() -> None:
    numbers = np.random.default_rng(3)
    groups = numbers.permutation(np.repeat(np.arange(60), 3))
    made = material(WORLD, (groups % 30), groups=groups)
    assert {len(np.unique(made.folds[groups == group])) for group in range(60)} == {1}
    assert {len(np.unique(made.folds[made.targets == label])) for label in range(30)} == {2}
    assert np.bincount(made.folds).min() > 0.8 * len(groups) / head.FOLDS


def test_evidence_of_a_row_is_not_made_from_its_group() -> None:
    labels = NEW.repeat(6)
    groups = np.arange(len(labels)) // 2
    made = material(WORLD, labels, groups=groups)
    before = head.unseen(made, 0.3)
    for group in (0, 7):
        mates = np.flatnonzero(groups == group)
        changed = made.vectors.copy()
        changed[mates[1]] = 5.0
        after = head.unseen(replace(made, vectors=changed), 0.3)
        assert after[mates[0]].tobytes() == before[mates[0]].tobytes()
        # Rows of other folds do learn from it.
        assert (after[made.folds != made.folds[mates[0]]] != before[made.folds != made.folds[mates[0]]]).any()


def test_of_a_label_that_only_one_fold_knows_nothing_is_said() -> None:
    labels = np.array([*[NEW[0]] * 6, *[NEW[1]] * 6, NEW[2], NEW[2]])
    groups = np.array([*range(12), 12, 12])
    made = material(WORLD, labels, groups=groups)
    said = head.unseen(made, 0.3)
    assert (said[-2:, 2] == head.NOTHING).all()
    assert (said[:-2, :2] > head.NOTHING).all()
    assert np.isfinite(taught(made).weight).all()


# ------------------------------------------------------------------ few, odd, many


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        pytest.param([NEW[0]], [0], id="one example"),
        pytest.param([NEW[0]] * 5, range(5), id="one label"),
        pytest.param([*NEW], range(6), id="one example a label"),
        pytest.param([*NEW, *NEW], [0] * 12, id="all in one group"),
        pytest.param([1, 1, 2, 2], range(4), id="only old labels"),
        pytest.param([*range(30)] * 2, range(60), id="every old label"),
    ],
)
@pytest.mark.parametrize("rehearsal", [0, 90])
def test_from_the_least_there_is_a_head_that_keeps_the_old(labels: list[int], groups: Any, rehearsal: int) -> None:
    plain = material(WORLD, labels, groups=np.array(groups))
    made = taught(replace(plain, rehearsal=plain.rehearsal[:rehearsal]))
    olds = np.arange(WORLD.old).repeat(20)
    assert np.isfinite(made.weight).all()
    assert np.isfinite(made.bias).all()
    assert WORLD.top(made, olds, 96) > WORLD.top(WORLD.base_head, olds, 96) - 0.05
    best = (plain.vectors.astype(np.float32) @ made.weight.T + made.bias).argmax(axis=1)
    right = [made.label_ids[row] == WORLD.label_ids[label] for row, label in zip(best, labels, strict=True)]
    assert np.mean(right) > 0.9


def test_one_example_a_label_in_many_dimensions_can_be_solved() -> None:
    wide = World(old=5, new=8, dimension=1_280)
    made = material(wide, np.arange(5, 13))
    for shrinkage in (0.0, 0.1, 0.7):
        found = head.evidence(made, shrinkage)
        assert (found(wide.pictures(np.arange(5, 13), 98)).argmax(axis=1) == np.arange(8)).all()


def test_embeddings_may_be_negative() -> None:
    made = material(WORLD, NEW.repeat(10))
    lowered = {name: getattr(made, name) - np.float16(3) for name in ("vectors", "background", "rehearsal")}
    np.testing.assert_allclose(head.unseen(replace(made, **lowered), 0.3), head.unseen(made, 0.3), rtol=0.1, atol=1.0)


def test_the_same_material_gives_the_same_bits() -> None:
    first, second = (taught(material(WORLD, np.repeat([1, *NEW], 9))) for _ in range(2))
    assert first.weight.tobytes() == second.weight.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


def test_memory_does_not_grow_with_the_examples() -> None:
    peaks = []
    for each in (2_000, 8_000):
        made = material(WORLD, NEW.repeat(each))
        _ = made.folds
        tracemalloc.start()
        head.evidence(made, 0.3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Four times as many examples: only numbers of rows and their weights are kept; a copy as float32 would be 96 bytes.
    assert peaks[1] - peaks[0] < 6 * 6_000 * 48
