"""Contradicting answers are found, each kind of them, and nothing else is."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answered_shop import LABELS, AnsweredShop, content, copy_of, vector
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from training import conflicts
from training.conflicts import Conflict, Said
from training.places import Place
from wwts_ops import corrections, neardup
from wwts_ops.taxonomy import Label, Taxonomy

APPLE, PEAR, BANANA = LABELS
ONE = content("一")
#: A label that was merged into the apple since.
OLD_NAME = "shop:旧名"
MERGED = Taxonomy("合并", (Label(OLD_NAME, "旧名", enabled=False, maps_to=APPLE), Label(APPLE, "苹果")))


def found(folder: Path, *said: tuple[str, str | None, dict[str, Any]]) -> tuple[Conflict, ...]:
    """What contradicts, when these people say these labels of one content, one after another."""
    shop = AnsweredShop(folder)
    for person, label, more in said:
        shop.answer(ONE, label, answered_by=person, **more)
    return conflicts.people(corrections.frozen(shop.settings), MERGED)


# ------------------------------------------------------------------ people


def test_two_people_with_two_labels_contradict(tmp_path: Path) -> None:
    (conflict,) = found(tmp_path, ("小王", APPLE, {}), ("小李 🙂", PEAR, {"image_id": "图/一.jpg"}))
    assert (conflict.kind, conflict.contents) == ("people", (ONE,))
    assert [(said.by, said.label_id, said.kind) for said in conflict.said] == [
        ("小王", APPLE, "correct"),
        ("小李 🙂", PEAR, "correct"),
    ]
    assert conflict.said[1].image_id == "图/一.jpg"
    first, second = (said.at for said in conflict.said)
    assert first is not None
    assert second is not None
    assert first < second


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([("小王", APPLE, {}), ("小李", APPLE, {"kind": "confirm"})], id="both the same"),
        pytest.param([("小王", APPLE, {}), ("小王", PEAR, {})], id="one who thought again"),
        pytest.param([("小王", APPLE, {}), ("小李", PEAR, {}), ("小王", PEAR, {})], id="convinced"),
        pytest.param(
            [("小王", APPLE, {}), ("小李", PEAR, {}), ("小李", None, {"kind": "retract", "retracts": 1})],
            id="taken back",
        ),
        pytest.param([("小王", None, {}), ("小李", PEAR, {})], id="one did not know"),
        pytest.param([("旧系统", APPLE, {"weak": True}), ("小李", PEAR, {})], id="an old tag"),
        pytest.param([("小王", APPLE, {}), ("小李", APPLE, {"labels": (APPLE, PEAR)})], id="the same primary label"),
        pytest.param([("小王", OLD_NAME, {}), ("小李", APPLE, {})], id="merged since"),
    ],
)
def test_this_is_no_contradiction(tmp_path: Path, said: list[tuple[str, str | None, dict[str, Any]]]) -> None:
    assert found(tmp_path, *said) == ()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([("小王", APPLE, {}), ("小李", None, {"kind": "reject_image"})], id="no picture at all"),
        pytest.param([("小王", APPLE, {}), ("小李", None, {})], id="wrong for the other"),
        pytest.param([("小王", None, {}), ("小李", PEAR, {}), ("小张", APPLE, {})], id="three people"),
        pytest.param([("小王", OLD_NAME, {}), ("小李", PEAR, {})], id="merged into another"),
        pytest.param(
            [
                ("小王", APPLE, {}),
                ("小李", PEAR, {}),
                ("小李", None, {"kind": "retract", "retracts": 2}),
                ("小张", PEAR, {}),
            ],
            id="another one says the same again",
        ),
    ],
)
def test_this_is_a_contradiction(tmp_path: Path, said: list[tuple[str, str | None, dict[str, Any]]]) -> None:
    assert len(found(tmp_path, *said)) == 1


def test_no_answers_do_not_contradict(tmp_path: Path) -> None:
    assert found(tmp_path) == ()


# ------------------------------------------------------------------ copies


@limits(deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40))
def test_clashes_are_what_the_definition_says(seed: int, count: int) -> None:
    chance = np.random.default_rng(seed)
    # Four numbers each: many are alike, in chains.
    vectors = chance.integers(1, 5, (count, 4)).astype(np.float16)
    targets, weak = chance.integers(0, 3, count), chance.random(count) < 0.4
    groups = neardup.groups(vectors)
    result = conflicts.clashes(vectors, groups, targets, weak)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    against = (unit @ unit.T >= neardup.SAME - 1e-5) & (targets[:, None] != targets)
    by_answer, by_weak = (against & ~weak).any(axis=1), (against & weak).any(axis=1)
    np.testing.assert_array_equal(result.overruled, weak & by_answer)
    np.testing.assert_array_equal(result.open, np.where(weak, by_weak & ~by_answer, by_answer))


def test_a_copy_of_a_copy_with_the_same_label_is_kept() -> None:
    """The first and the last are not alike enough themselves."""
    first = vector(1)
    chain = [first, copy_of(first, 2, 0.96)]
    chain.append(copy_of(chain[1], 3, 0.96))
    vectors = np.stack(chain)
    groups = neardup.groups(vectors)
    assert groups.tolist() == [0, 0, 0]
    result = conflicts.clashes(vectors, groups, np.array([0, 0, 1]), np.zeros(3, dtype=bool))
    assert result.open.tolist() == [False, True, True]


def test_nothing_clashes_with_nothing() -> None:
    empty = np.zeros(0, np.int64)
    result = conflicts.clashes(np.zeros((0, 4), np.float16), empty, empty, np.zeros(0, dtype=bool))
    assert (len(result.open), len(result.overruled)) == (0, 0)


# ------------------------------------------------------------------ suspects


def noisy(count: int, seed: int, noise: float = 1) -> tuple[list[str], Any, Any, set[str]]:
    """Labels of which one in ten is wrong, probabilities by the right ones, and the contents of the wrong ones."""
    chance = np.random.default_rng(seed)
    right = chance.integers(0, 4, count)
    wrong = chance.random(count) < 0.1
    given = np.where(wrong, (right + chance.integers(1, 4, count)) % 4, right)
    logits = chance.normal(scale=noise, size=(count, 4))
    logits[np.arange(count), right] += 5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    contents = [content(f"{seed} {number}") for number in range(count)]
    return contents, given, probabilities, {one for one, bad in zip(contents, wrong, strict=True) if bad}


def test_wrong_labels_are_found_and_right_ones_are_not() -> None:
    contents, given, probabilities, wrong = noisy(600, 1, 0.2)
    told = conflicts.suspects(contents, given, probabilities, ["a", "b", "c", "d"])
    hit = {one for conflict in told for one in conflict.contents}
    assert hit == wrong
    scores = {one: row[target] for one, row, target in zip(contents, probabilities, given, strict=True)}
    assert all(conflict.score == pytest.approx(scores[conflict.contents[0]], abs=1e-6) for conflict in told)
    assert {conflict.kind for conflict in told} == {"suspect"}


def test_the_most_suspicious_comes_first() -> None:
    contents, given, probabilities, _ = noisy(300, 2)
    told = conflicts.suspects(contents, given, probabilities, ["a", "b", "c", "d"])
    rows = [contents.index(conflict.contents[0]) for conflict in told]
    behind = [probabilities[row].max() - probabilities[row, given[row]] for row in rows]
    assert behind == sorted(behind, reverse=True)
    assert all(
        conflict.suggested == "abcd"[probabilities[row].argmax()] for conflict, row in zip(told, rows, strict=True)
    )


def test_they_are_the_off_diagonal_of_the_confident_joint() -> None:
    """By the definition of the paper, row by row."""
    contents, given, probabilities, _ = noisy(200, 3)
    probabilities = probabilities**0.3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    bars = [probabilities[given == label, label].mean() for label in range(4)]
    expected = set()
    for one, target, row in zip(contents, given, probabilities, strict=True):
        over = [label for label in range(4) if row[label] >= bars[label]]
        if over and max(over, key=lambda label: row[label]) != target and row.argmax() != target:
            expected.add(one)
    told = conflicts.suspects(contents, given, probabilities, list("abcd"))
    assert {conflict.contents[0] for conflict in told} == expected
    assert expected


def test_of_a_label_with_few_answers_none_is_suspect() -> None:
    contents = [content(number) for number in range(24)]
    given = np.array([0] * 20 + [1] * 4)
    probabilities = np.tile([0.9, 0.1], (24, 1))
    assert conflicts.suspects(contents, given, probabilities, ["a", "b"]) == ()
    enough = np.array([0] * 19 + [1] * 5)
    told = conflicts.suspects(contents, enough, probabilities, ["a", "b"])
    assert {conflict.contents[0] for conflict in told} == set(contents[19:])


def test_the_most_probable_label_is_not_suspect() -> None:
    """Though it is less probable than usual, and another label more than usual."""
    contents = [content(number) for number in range(15)]
    given = np.array([0] * 10 + [1] * 5)
    first = np.array([0.9] * 9 + [0.55] + [0.6] * 5)
    assert conflicts.suspects(contents[:10], given[:10], np.stack([first, 1 - first], axis=1)[:10], ["a", "b"]) == ()
    told = conflicts.suspects(contents, given, np.stack([first, 1 - first], axis=1), ["a", "b"])
    assert contents[9] not in {conflict.contents[0] for conflict in told}


def test_probabilities_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 contents"):
        conflicts.suspects(["a", "b"], np.array([0, 1]), np.ones((2, 3)), ["x", "y"])
    with pytest.raises(ValueError, match="no number"):
        conflicts.suspects(["a"], np.array([0]), np.array([[np.nan]]), ["x"])
    assert conflicts.suspects([], np.empty(0, np.int64), np.empty((0, 1)), ["x"]) == ()


# ------------------------------------------------------------------ for people


def test_who_said_it_and_where_it_lies_is_filled_in(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    shop.answer(ONE, APPLE)
    shop.answer(ONE, PEAR, answered_by="小李", comment="是梨")
    shop.answer(content("旧"), APPLE, weak=True, answered_by="旧系统")
    suspects = [Conflict("suspect", (Said(one, PEAR),), APPLE, 0.01) for one in (ONE, content("旧"), content("没有"))]
    places = {ONE: Place("图 一.jpg", ("/货架/图 一.jpg", "/别处.jpg"))}
    known, old, unknown = conflicts.attributed(suspects, corrections.frozen(shop.settings), places)
    (said,) = known.said
    assert (said.by, said.label_id, said.image_id, said.uri) == ("小李", PEAR, "图 一.jpg", "/货架/图 一.jpg")
    assert (old.said[0].by, old.said[0].weak, old.said[0].uri) == ("旧系统", True, None)
    assert unknown == suspects[2]
    assert (known.suggested, known.score) == (APPLE, 0.01)


@limits(deadline=None)
@given(st.integers(0, 10**6))
def test_json_takes_it_back(seed: int) -> None:
    chance = np.random.default_rng(seed)
    said = Said(
        ONE, None if seed % 2 else PEAR, "correct", "小王 👩", at=None, image_id="a", weak=bool(chance.integers(2))
    )
    conflict = Conflict("suspect", (said, said), PEAR, float(chance.random()))
    assert conflicts.from_json(conflict.to_json()) == conflict


def test_no_cell_of_the_table_is_a_formula() -> None:
    texts = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1")
    said = [Said(ONE, text, "correct", text, at=None, image_id=text, uri=text) for text in texts]
    names = Taxonomy("t", tuple(Label(text, text) for text in texts))
    data = conflicts.to_csv([Conflict("suspect", tuple(said), "=1+1", 0.25)], names)
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        columns = ("图片编号", "图片地址", "标签", "标签名", "回答人")
        assert [row[name] for name in columns] == [f"'{text}"] * len(columns)
        assert (row["更像的标签"], row["更像的标签名"], row["所给标签的概率"]) == ("'=1+1", "'=1+1", "0.25")


def test_people_read_it_in_a_table(tmp_path: Path) -> None:
    told = found(tmp_path, ("小王", APPLE, {}), ("小李", None, {"kind": "reject_image", "reason": "corrupt"}))
    names = Taxonomy("t", (Label(APPLE, "苹果，红的", category_path="食品 > 水果"), Label(PEAR, "梨")))
    suspect = Conflict("suspect", (Said(ONE, APPLE, "correct", "旧系统", weak=True),), PEAR, 0.25)
    data = conflicts.to_csv([*told, suspect], names)
    assert data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert [row["序号"] for row in rows] == ["1", "1", "2"]
    assert [row["标签名"] for row in rows] == ["苹果，红的", "", "苹果，红的"]
    assert [row["标签"] for row in rows] == [APPLE, "（图片有问题）", APPLE]
    assert rows[0]["回答时间（UTC）"] == "2026-03-01 02:01:00+00:00"
    assert (rows[2]["更像的标签名"], rows[2]["所给标签的概率"], rows[2]["回答人"]) == ("梨", "0.25", "旧系统（旧标签）")
