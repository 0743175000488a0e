"""A training from a dataset to a head: new labels are learned, old ones kept, and what is said of it is true."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from taught_world import World, material

from training import bench, head, thresholds, train
from training import dataset as dataset_module
from training.dataset import Dataset, Examples
from training.head import Answered, Calibration
from training.train import Trained
from wwts_ops import settings
from wwts_ops.decisions import AUTO, Decider
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.taxonomy import Label, Taxonomy

Array = np.ndarray[Any, Any]

#: Old labels as hard to tell apart as new ones, and the shop's pictures a little unlike those of the network.
LARGE = World(old=150, new=81, dimension=48, apart=0.3, away=0.6)
SMALL = World(old=30, new=6, dimension=24, apart=0.5, away=0.5)
NEW = np.arange(SMALL.old, SMALL.old + SMALL.new)
NOBODY = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings.load(store=str(tmp_path_factory.mktemp("store")))


def trained(world: World, chosen: Settings, folder: Path, dataset: Dataset) -> Trained:
    return train.train(dataset, world.base(folder), chosen, seed=3)


def usual(world: World = SMALL) -> Dataset:
    """Twelve answers of each new label, and two old ones; the catalog shows everything."""
    answered = np.array([4, 9, *range(world.old, world.old + world.new)])
    everything = np.arange(world.old + world.new).repeat(3)
    return world.dataset(answered.repeat(12), answered.repeat(6), everything)


@pytest.fixture(scope="module")
def made(chosen: Settings, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(SMALL, chosen, tmp_path_factory.mktemp("base"), usual())


# ------------------------------------------------------------------ forgetting


@pytest.mark.parametrize("catalog", ["everything", "only new products", "nothing"])
def test_what_was_right_stays_right_after_81_new_labels(catalog: str, chosen: Settings, tmp_path: Path) -> None:
    new = np.arange(LARGE.old, LARGE.old + LARGE.new)
    shows = {
        "everything": np.arange(LARGE.old + LARGE.new).repeat(4),
        "only new products": new.repeat(12),
        "nothing": NOBODY,
    }
    found = trained(LARGE, chosen, tmp_path, LARGE.dataset(new.repeat(12), new.repeat(3), shows[catalog])).head
    olds = np.arange(LARGE.old).repeat(30)
    before = LARGE.top(LARGE.base_head, olds, 99)
    assert 0.8 < before < 0.99
    assert LARGE.top(found, olds, 99) > before - 0.005
    assert LARGE.top(found, new.repeat(10), 98) > 0.85


def test_without_calibration_much_would_be_forgotten() -> None:
    """So the test above can fail: new labels that are merely found are bought with old ones."""
    new = np.arange(LARGE.old, LARGE.old + LARGE.new)
    answers = material(LARGE, new.repeat(12))
    answered = Answered.of(LARGE.base_head, answers.label_ids)
    greedy = head.merged(answered, answers.label_ids, head.evidence(answers, 0.4), Calibration(1.0, 0.0, 20.0))
    olds = np.arange(LARGE.old).repeat(30)
    assert LARGE.top(greedy, olds, 99) < LARGE.top(LARGE.base_head, olds, 99) - 0.05


def test_labels_without_an_answer_keep_their_rows_bit_for_bit(made: Trained) -> None:
    base, kept = SMALL.base_head, np.setdiff1d(np.arange(SMALL.old), [4, 9])
    assert made.head.label_ids == SMALL.label_ids
    for name in ("weight", "bias", "thresholds"):
        assert getattr(made.head, name)[kept].tobytes() == getattr(base, name)[kept].tobytes()


def test_the_base_is_not_written_to(chosen: Settings, tmp_path: Path) -> None:
    base = SMALL.base(tmp_path)
    before = [array.tobytes() for array in (base.thresholds, base.head_weight, base.head_bias)]
    train.train(usual(), base, chosen, seed=0)
    assert [array.tobytes() for array in (base.thresholds, base.head_weight, base.head_bias)] == before


# ------------------------------------------------------------------ what is said of it


def test_new_labels_win_on_their_pictures(made: Trained) -> None:
    assert SMALL.top(made.head, NEW.repeat(50), 97) > 0.85


def test_the_validation_is_measured_before_it_is_learned_from(made: Trained, chosen: Settings, tmp_path: Path) -> None:
    said = made.validation
    assert (said["on"], said["n"], said["audit"]) == ("validation", 6 * 8, {"n": 0})
    assert said["low"] < said["accuracy"] < said["high"]
    assert 0.7 < said["macro"] <= 1
    # Another validation: the measured head was the same, the registered one is not.
    dataset = usual()
    other = trained(
        SMALL,
        chosen,
        tmp_path,
        replace(dataset, validation=replace(dataset.validation, vectors=dataset.train.vectors[:48])),
    )
    assert other.chosen["accuracies"] == made.chosen["accuracies"]
    assert (other.head.weight[NEW] != made.head.weight[NEW]).any()


def test_audit_pictures_are_reported_and_change_nothing(made: Trained, chosen: Settings, tmp_path: Path) -> None:
    dataset = usual()
    audit = SMALL.examples(NEW.repeat(4), 31, among=[*NEW, 4, 9])
    found = trained(SMALL, chosen, tmp_path, replace(dataset, audit=audit))
    assert found.validation["audit"]["n"] == 24
    assert found.validation["audit"]["accuracy"] > 0.7
    assert found.head.weight.tobytes() == made.head.weight.tobytes()
    assert found.head.thresholds.tobytes() == made.head.thresholds.tobytes()


def test_the_curve_grows(made: Trained) -> None:
    sizes = Counter(point["answers_per_label"] for point in made.curve)
    assert sizes == {1: 5, 2: 5, 5: 5, 10: 5}
    means = [np.mean([p["accuracy"] for p in made.curve if p["answers_per_label"] == size]) for size in sizes]
    assert means[0] < means[-1]


def test_thresholds_are_those_of_the_head(made: Trained) -> None:
    place = {label_id: row for row, label_id in enumerate(made.head.label_ids)}
    assert {one["label_id"] for one in made.thresholds} == set(usual().label_ids)
    for one in made.thresholds:
        assert made.head.thresholds[place[one["label_id"]]] == np.float32(one["threshold"])
        assert one["how"] in ("own", "pooled")


def test_the_worst_pair_is_named(chosen: Settings, tmp_path: Path) -> None:
    dataset = usual()
    answers = dataset.validation
    first, second = (dataset.label_ids.index(SMALL.label_ids[label]) for label in NEW[:2])
    vectors = answers.vectors.copy()
    vectors[answers.targets == first] = SMALL.pictures([NEW[1]] * 6, 41)
    found = trained(SMALL, chosen, tmp_path, replace(dataset, validation=replace(answers, vectors=vectors)))
    worst = found.confusions[0]
    assert (worst["label_id"], worst["predicted"]) == (dataset.label_ids[first], dataset.label_ids[second])
    assert worst["count"] > 3
    assert worst["of"] == 6


# ------------------------------------------------------------------ as it decides

#: An old label that is called by a new name since, and one that is no longer sold.
GONE, OFF = "old:0020", "old:0021"
INTO = "new:0000"


def merged() -> Taxonomy:
    """The taxonomy after that."""
    labels = {label_id: Label(label_id, label_id) for label_id in SMALL.label_ids}
    labels[GONE] = replace(labels[GONE], enabled=False, maps_to=INTO)
    labels[OFF] = replace(labels[OFF], enabled=False)
    return Taxonomy("合并", tuple(labels.values()))


@pytest.fixture(scope="module")
def renamed() -> Dataset:
    """Half of what people call :data:`INTO` looks as :data:`GONE` did; and one of another label as what is off does."""
    dataset = usual()

    def shown(part: Examples, seed: int) -> Examples:
        vectors, own = part.vectors.copy(), part.targets == dataset.label_ids.index(INTO)
        rows = np.flatnonzero(own)[::2]
        vectors[rows] = SMALL.pictures([int(GONE[-4:])] * len(rows), seed)
        vectors[np.flatnonzero(~own)[0]] = SMALL.pictures([int(OFF[-4:])], seed)[0]
        return replace(part, vectors=vectors)

    return replace(dataset, train=shown(dataset.train, 31), validation=shown(dataset.validation, 32))


def test_measures_and_thresholds_are_of_what_would_be_decided(
    chosen: Settings, tmp_path: Path, renamed: Dataset
) -> None:
    """Exactly as the decider decides, whose own tests say what that is; and no confusion with what is the same."""
    found = train.train(renamed, SMALL.base(tmp_path), chosen, 3, merged())
    blind = train.train(renamed, SMALL.base(tmp_path), chosen, 3)
    said = [{one["predicted"] for one in each.confusions} for each in (blind, found)]
    assert (said[0] >= {GONE, OFF}, said[1] & {GONE, OFF}) == (True, set())
    assert found.validation["accuracy"] > blind.validation["accuracy"]
    # All of the validation was measured on a head fitted to the training part alone, which is this one's.
    unchecked = replace(renamed, validation=SMALL.examples([], 3, among=[]))
    alone = train.train(unchecked, SMALL.base(tmp_path), chosen, 3, merged())
    logits = renamed.validation.vectors.astype(np.float32) @ alone.head.weight.T + alone.head.bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    decided = Decider(alone.head.label_ids, alone.head.thresholds, merged(), 1).columns(scores)
    truth = [renamed.label_ids[target] for target in renamed.validation.targets]
    right = np.array([one == label for one, label in zip(truth, decided["label_id"].to_pylist(), strict=True)])
    auto = np.array([one == AUTO for one in decided["decision"].to_pylist()])
    assert found.validation["accuracy"] == pytest.approx(right.mean())
    assert found.validation["coverage"] == pytest.approx(auto.mean())
    assert found.validation["auto_precision"] == pytest.approx(right[auto].mean())


def test_a_wrong_answer_is_suspected(chosen: Settings, tmp_path: Path) -> None:
    dataset = usual()
    targets = dataset.train.targets.copy()
    first, second = (dataset.label_ids.index(SMALL.label_ids[label]) for label in NEW[:2])
    wrong = int(np.flatnonzero(targets == first)[0])
    targets[wrong] = second
    found = trained(SMALL, chosen, tmp_path, replace(dataset, train=replace(dataset.train, targets=targets)))
    assert found.suspects[0].contents == (dataset.train.contents[wrong],)
    assert found.suspects[0].suggested == dataset.label_ids[first]


def test_the_same_dataset_gives_the_same_bits(made: Trained, chosen: Settings, tmp_path: Path) -> None:
    again = trained(SMALL, chosen, tmp_path, usual())
    for name in ("weight", "bias", "thresholds"):
        assert getattr(again.head, name).tobytes() == getattr(made.head, name).tobytes()
    assert (again.chosen, again.validation, again.curve) == (made.chosen, made.validation, made.curve)
    assert (again.confusions, again.thresholds, again.suspects) == (made.confusions, made.thresholds, made.suspects)


# ------------------------------------------------------------------ odd datasets


def few(labels: list[int], **other: Any) -> Dataset:
    plain = SMALL.dataset(np.array(labels), NOBODY, NOBODY)
    return replace(plain, train=replace(plain.train, **other))


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param(few([NEW[0]]), id="one example"),
        pytest.param(few([NEW[0]] * 6), id="one label"),
        pytest.param(few([*NEW]), id="one example a label"),
        pytest.param(few([*NEW, *NEW], groups=np.zeros(12, np.int64)), id="one group"),
        pytest.param(few([1, 1, 1, 2, 2, 2]), id="only old labels"),
        pytest.param(few([*range(30)] * 3), id="every old label"),
        pytest.param(few([*NEW] * 3, shown=("weak",) * 18, weights=np.full(18, 0.2, np.float32)), id="only old tags"),
        pytest.param(few([*NEW] * 6, shown=("review",) * 36), id="only the queue"),
        pytest.param(few([*NEW] * 6, probability=np.full(36, 1e-12)), id="huge weights"),
    ],
)
def test_from_the_least_there_is_comes_a_head_that_keeps_the_old(
    dataset: Dataset, chosen: Settings, tmp_path: Path
) -> None:
    found = trained(SMALL, chosen, tmp_path, dataset)
    olds = np.arange(SMALL.old).repeat(20)
    for array in (found.head.weight, found.head.bias, found.head.thresholds):
        assert np.isfinite(array).all()
    assert SMALL.top(found.head, olds, 96) > SMALL.top(SMALL.base_head, olds, 96) - 0.03
    assert found.validation["on"] == "folds"
    assert found.curve == []
    vectors = dataset.train.vectors.astype(np.float32)
    best = (vectors @ found.head.weight.T + found.head.bias).argmax(axis=1)
    right = [
        found.head.label_ids[row] == dataset.label_ids[target]
        for row, target in zip(best, dataset.train.targets, strict=True)
    ]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("shown", ["review", "weak"])
def test_thresholds_are_not_learned_from_the_queue_or_from_old_tags(
    shown: str, chosen: Settings, tmp_path: Path
) -> None:
    labels = [4, *NEW]
    found = trained(SMALL, chosen, tmp_path, few(labels * 10, shown=(shown,) * 70))
    # Of new labels, no threshold was ever good.
    assert sorted(one["how"] for one in found.thresholds) == ["kept"] + ["unproven"] * len(NEW)
    assert set(found.head.thresholds[: SMALL.old]) == {np.float32(0.6)}
    assert set(found.head.thresholds[SMALL.old :]) == {np.float32(thresholds.NEVER)}


def test_views_count_as_their_picture(made: Trained, chosen: Settings, tmp_path: Path) -> None:
    dataset = usual()
    rows = np.tile(np.arange(len(dataset.train)), 3)
    arrays = {
        name: getattr(dataset.train, name)[rows] for name in ("vectors", "targets", "weights", "groups", "probability")
    }
    texts = {name: getattr(dataset.train, name) * 3 for name in ("contents", "shown")}
    viewed = replace(dataset, train=replace(dataset.train, **arrays, **texts, view_of=rows))
    found = trained(SMALL, chosen, tmp_path, viewed)
    # Views that are the picture itself tell nothing new; the calibration stops a hair earlier or later.
    pictures = SMALL.pictures(np.arange(SMALL.old + SMALL.new).repeat(20), 88).astype(np.float32)
    best = [(pictures @ one.head.weight.T + one.head.bias).argmax(axis=1) for one in (found, made)]
    assert np.mean(best[0] == best[1]) > 0.98
    assert found.validation["n"] == made.validation["n"]


def test_without_an_answer_there_is_nothing_to_train(chosen: Settings, tmp_path: Path) -> None:
    empty = replace(usual(), train=SMALL.examples([], 1), excluded={"held_out": 4})
    with pytest.raises(WwtsError, match=r"No answer is left to train from.*held_out"):
        trained(SMALL, chosen, tmp_path, empty)


# ------------------------------------------------------------------ the benchmark


def test_the_benchmark_builds_its_dataset_and_trains_on_it(tmp_path: Path) -> None:
    base = World(old=30, dimension=400).base(tmp_path / "base")
    chosen = settings.load(store=str(tmp_path / "店 store"), rehearsal=30)
    data = dataset_module.build(chosen, bench.stored(base, chosen, rows=720, labels=36), base)
    assert len(data.train) + len(data.validation) + len(data.audit) + sum(data.excluded.values()) == 720
    # Nothing but what the audit holds out is lost to likeness.
    assert len(data.train) + len(data.validation) > 600
    assert len(data.validation) > 60
    assert len(data.rehearsal) == 30
    assert sum(label_id.startswith("bench:") for label_id in data.label_ids) == 6
    viewed, rows = bench.with_views(data, 1), [*range(len(data.train))]
    assert viewed.train.view_of.tolist() == rows * 2
    assert train.train(viewed, base, chosen, seed=0).validation["n"] == len(data.validation)


def test_the_benchmark_says_what_it_takes() -> None:
    command = [sys.executable, "-m", "training.bench", "retrain", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env=os.environ | {"COLUMNS": "200"}
    )
    for option in ("--rows", "--labels", "--views", "--rehearsal"):
        assert option in done.stdout
