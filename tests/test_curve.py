"""The learning curve: as many points as it says, each from a draw of its own, and more answers are better."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from taught_world import World, material

from training import curve
from training.curve import _drawn

WORLD = World(old=5, new=10, dimension=24, apart=0.35)
NEW = np.arange(5, 15)
FRESH = NEW.repeat(30)
PICTURES, TARGETS = WORLD.pictures(FRESH, 50), FRESH - 5


def test_five_seeds_a_size_and_more_answers_are_better() -> None:
    points = curve.learn(material(WORLD, NEW.repeat(25)), PICTURES, TARGETS, 0.4)
    assert Counter(point["answers_per_label"] for point in points) == dict.fromkeys((1, 2, 5, 10, 20), 5)
    assert {point["seed"] for point in points} == set(range(5))
    assert all(point["examples"] == 10 * point["answers_per_label"] for point in points)
    means = [np.mean([p["accuracy"] for p in points if p["answers_per_label"] == size]) for size in curve.SIZES]
    assert means == sorted(means)
    assert means[0] + 0.1 < means[-1]
    assert len({point["accuracy"] for point in points if point["answers_per_label"] == 1}) > 1


def test_sizes_that_no_label_has_are_left_out() -> None:
    points = curve.learn(material(WORLD, [*NEW, 5, 5, 5, 5]), PICTURES, TARGETS, 0.4)
    assert sorted({point["answers_per_label"] for point in points}) == [1, 2, 5]
    assert {point["examples"] for point in points if point["answers_per_label"] == 5} == {14}


def test_views_are_not_drawn() -> None:
    made = material(WORLD, NEW.repeat(4))
    points = curve.learn(replace(made, originals=np.arange(40) % 4 == 0), PICTURES, TARGETS, 0.4)
    assert {point["answers_per_label"] for point in points} == {1}


def test_without_pictures_to_measure_on_there_is_none() -> None:
    assert curve.learn(material(WORLD, NEW), PICTURES[:0], TARGETS[:0], 0.4) == []


def test_macro_counts_labels_and_accuracy_pictures() -> None:
    unequal = np.array([5] * 300 + [6] * 3)
    points = curve.learn(material(WORLD, NEW.repeat(5)), WORLD.pictures(unequal, 51), unequal - 5, 0.4)
    for point in points:
        # macro = (a + b) / 2 and accuracy = (300 a + 3 b) / 303, with b a third, two thirds or so.
        first = (303 * point["accuracy"] - 6 * point["macro"]) / 297
        second = 2 * point["macro"] - first
        assert min(abs(second * 3 - whole) for whole in range(4)) < 1e-6


def test_draws_differ_by_seed_and_hold_each_row_once() -> None:
    targets = np.repeat([0, 1, 2], [4, 9, 1])
    drawn = [_drawn(targets, 3, np.random.default_rng(seed)) for seed in range(2)]
    for rows in drawn:
        assert len(set(rows.tolist())) == len(rows)
        assert np.bincount(targets[rows]).tolist() == [3, 3, 1]
    assert sorted(drawn[0].tolist()) != sorted(drawn[1].tolist())


def test_the_same_twice() -> None:
    first, second = (curve.learn(material(WORLD, NEW.repeat(3)), PICTURES, TARGETS, 0.4) for _ in range(2))
    assert first == second
