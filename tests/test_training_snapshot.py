"""Answers, frozen: the same file for the same answers, and nothing that came later."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from answered_shop import LABELS, AnsweredShop, content

from training import snapshot
from wwts_ops import corrections, publish
from wwts_ops.errors import WwtsError
from wwts_ops.records import ANSWERS


@pytest.fixture
def shop(tmp_path: Path) -> AnsweredShop:
    made = AnsweredShop(tmp_path)
    first = made.answer(
        content("一"), LABELS[0], comment="看清楚了 👀\n第二行", sampling_probability=0.125, confidence=0.1
    )
    made.answer(content("二"), LABELS[1], labels=(LABELS[1], LABELS[0]), labels_before=("别的", ""))
    made.answer(content("二"), LABELS[2], answered_by="小李")
    made.answer(content("三"), LABELS[0], weak=True)
    made.answer(content("一"), LABELS[0], weak=True)
    made.answer(content("一"), None, kind="retract", retracts=first)
    return made


def test_what_is_frozen_is_what_was_answered(shop: AnsweredShop) -> None:
    frozen = snapshot.freeze(shop.settings)
    table = snapshot.read(shop.store, frozen.name)
    assert table.schema.equals(ANSWERS)
    assert table.equals(corrections.frozen(shop.settings))
    assert (frozen.latest, frozen.answers, frozen.weak, frozen.new) == (6, 1, 2, 1)
    assert frozen.name == f"a000006-{frozen.sha256[:12]}"


def test_frozen_twice_it_is_the_same(shop: AnsweredShop) -> None:
    first = snapshot.freeze(shop.settings)
    path = Path(shop.store.path(f"trainings/answers/{first.name}.parquet"))
    os.utime(path, ns=(0, 0))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: snapshot.freeze(shop.settings), range(4))) == {first}
    assert path.stat().st_mtime_ns == 0


def test_later_answers_make_another_snapshot_and_leave_the_first(shop: AnsweredShop) -> None:
    first = snapshot.freeze(shop.settings)
    before = snapshot.read(shop.store, first.name)
    shop.answer(content("四"), LABELS[0])
    second = snapshot.freeze(shop.settings)
    assert (second.latest, second.answers) == (7, 2)
    assert second.name != first.name
    assert snapshot.read(shop.store, first.name).equals(before)


def test_new_is_what_no_training_has_used(shop: AnsweredShop) -> None:
    snapshot.mark_used(shop.store, snapshot.freeze(shop.settings).latest)
    assert snapshot.freeze(shop.settings).new == 0
    shop.answer(content("四"), LABELS[0])
    shop.answer(content("五"), LABELS[0], weak=True)
    assert snapshot.freeze(shop.settings).new == 1


def test_an_answer_that_is_taken_back_is_news_and_publishing_counts_the_same(shop: AnsweredShop) -> None:
    given = shop.settings.model_copy(update={"retrain_answers": 1})
    shop.answer(content("三"), LABELS[0])
    snapshot.mark_used(shop.store, snapshot.freeze(shop.settings).latest)

    def take_back(name: str, number: int) -> int | None:
        shop.answer(content(name), None, kind="retract", retracts=number)
        new, told = snapshot.freeze(shop.settings).new, publish.announce(shop.store, given)
        assert (told["new"] if told else 0) == new
        return new

    assert take_back("二", 3) == 1, "the answer before it counts again"
    assert take_back("二", 2) == 1, "one content, without an answer now"
    assert take_back("三", 7) == 2
    assert take_back("一", 5) == 2, "a weak label is no answer"
    # Answered and taken back since: as if nothing had been said.
    number = shop.answer(content("四"), LABELS[0])
    assert take_back("四", number) == 2


def test_the_state_never_goes_back_and_keeps_what_others_wrote(shop: AnsweredShop) -> None:
    assert snapshot.used(shop.store) == 0
    assert shop.store.replace_pointer(snapshot.STATE, {"announced": 5}, None)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda latest: snapshot.mark_used(shop.store, latest), [3, 9, 4, 7]))
    assert snapshot.used(shop.store) == 9
    pointer = shop.store.read_pointer(snapshot.STATE)
    assert pointer is not None
    assert pointer.value["announced"] == 5


def test_a_shop_without_answers_freezes_nothing_and_makes_no_database(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    frozen = snapshot.freeze(shop.settings)
    assert (frozen.latest, frozen.answers, frozen.weak, frozen.new) == (0, 0, 0, 0)
    assert snapshot.read(shop.store, frozen.name).num_rows == 0
    assert not (shop.settings.state_dir / "wwts.db").exists()


@pytest.mark.parametrize("column", ["labels", "comment", "number", "weak"])
def test_a_changed_cell_is_noticed(shop: AnsweredShop, column: str) -> None:
    frozen = snapshot.freeze(shop.settings)
    path = Path(shop.store.path(f"trainings/answers/{frozen.name}.parquet"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1][column] = {"labels": [LABELS[2]], "comment": "改过", "number": 99, "weak": True}[column]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(WwtsError, match="its SHA-256 differs"):
        snapshot.read(shop.store, frozen.name)


def test_another_snapshot_under_its_name_is_noticed(shop: AnsweredShop) -> None:
    first = snapshot.freeze(shop.settings)
    shop.answer(content("四"), LABELS[0])
    second = snapshot.freeze(shop.settings)
    data = shop.store.read_bytes(f"trainings/answers/{second.name}.parquet")
    shop.store.write_bytes(f"trainings/answers/{first.name}.parquet", data)
    with pytest.raises(WwtsError, match="its SHA-256 differs"):
        snapshot.read(shop.store, first.name)


@pytest.mark.parametrize("name", ["", "../tags/part", "a000001", "a000001-0123456789ab\n", "a000001-0123456789AB"])
def test_only_a_name_is_read(shop: AnsweredShop, name: str) -> None:
    with pytest.raises(WwtsError, match="is no name of frozen answers"):
        snapshot.read(shop.store, name)


def test_a_snapshot_that_is_gone_says_so(shop: AnsweredShop) -> None:
    with pytest.raises(WwtsError, match="no frozen answers a000001-0123456789ab"):
        snapshot.read(shop.store, "a000001-0123456789ab")
