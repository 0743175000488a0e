"""The search measures on what it did not fit, and prefers what is simpler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from taught_world import World, material

from training import head, search

WORLD = World(old=5, new=8, dimension=32, apart=0.3)
NEW = np.arange(5, 13)


def test_accuracies_are_of_folds_that_were_not_fitted_to() -> None:
    made = material(WORLD, NEW.repeat(6))
    found = search.choose(made)
    assert set(found.accuracies) == set(search.SHRINKAGES)
    for shrinkage, accuracy in found.accuracies.items():
        said = head.unseen(made, shrinkage)
        assert accuracy == pytest.approx((said.argmax(axis=1) == made.targets).mean())
    assert found.unseen.tobytes() == head.unseen(made, found.shrinkage).tobytes()


def test_labels_by_lot_are_not_learned() -> None:
    # Fitted to itself, the smallest shrinkage would be right about nearly all of these.
    numbers = np.random.default_rng(0)
    made = material(WORLD, NEW.repeat(6))
    found = search.choose(replace(made, targets=numbers.permutation(made.targets)))
    assert max(found.accuracies.values()) < 0.4


def test_the_largest_within_a_standard_error_is_chosen() -> None:
    made = material(WORLD, NEW.repeat(10))
    found = search.choose(made)
    best = max(found.accuracies.values())
    error = np.sqrt(best * (1 - best) / len(made.targets))
    good = [each for each, accuracy in found.accuracies.items() if accuracy >= best - error]
    assert found.shrinkage == max(good)


def test_a_direction_of_much_noise_asks_for_little_shrinkage() -> None:
    # One number says nothing and varies a hundredfold; only who knows the covariance can look past it.
    made = material(WORLD, NEW.repeat(60))
    vectors = made.vectors.astype(np.float32) * 0.1
    vectors[:, 0] = np.random.default_rng(1).normal(0, 10, len(vectors))
    found = search.choose(replace(made, vectors=vectors, background=made.background * np.float16(0.1)))
    assert found.shrinkage == min(search.SHRINKAGES)
    assert found.accuracies[min(search.SHRINKAGES)] > found.accuracies[max(search.SHRINKAGES)]


@pytest.mark.parametrize(
    ("labels", "groups"), [([5], [0]), ([5, 6, 7], [0, 1, 2]), ([5, 5, 6, 6], [0, 0, 0, 0])], ids=str
)
def test_with_nothing_to_choose_by_it_says_so(labels: list[int], groups: list[int]) -> None:
    found = search.choose(material(WORLD, labels, groups=np.array(groups)))
    assert found.accuracies == {}
    assert found.shrinkage in search.SHRINKAGES
    assert found.unseen.shape == (len(labels), len(set(labels)))


def test_views_are_learned_from_and_never_measured_by() -> None:
    made = material(WORLD, NEW.repeat(6))
    originals = np.arange(len(made.targets)) % 2 == 0
    found = search.choose(replace(made, originals=originals))
    assert found.unseen.shape == (int(originals.sum()), len(NEW))
