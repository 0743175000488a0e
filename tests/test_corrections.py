"""Answers, the same on SQLite and on a real PostgreSQL: kept for ever, numbered as committed, the latest one counts."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from forkserver import CONTEXT
from hypothesis import given
from hypothesis import strategies as st

from wwts_ops import corrections, database
from wwts_ops import settings as settings_module
from wwts_ops.corrections import Answer, Recorded
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.records import ANSWERS
from wwts_ops.settings import Settings

Make = Callable[..., Settings]
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def content(number: int) -> str:
    return f"{number:064x}"


def answer(answer_id: str, about: int = 1, **values: Any) -> Answer:
    labels = values.pop("labels", ("grocery:1",) if values.get("kind", "correct") in corrections.LABELLED else ())
    given: dict[str, Any] = {
        "answered_at": NOON,
        "answered_by": "li",
        "kind": "correct",
        "source": "page",
        "shown_because": "review",
    }
    return Answer(answer_id=answer_id, content_sha256=content(about), labels=labels, **given | values)


def retract(answer_id: str, number: int, about: int = 1) -> Answer:
    return answer(answer_id, about, kind="retract", retracts=number)


@pytest.fixture
def shop(database_url: str, make_settings: Make) -> Settings:
    """Settings of a database with nothing in it."""
    return make_settings(database_url=database_url)


def said(table: pa.Table) -> dict[str, list[str]]:
    """Content to labels."""
    return {row["content_sha256"]: row["labels"] for row in table.to_pylist()}


class TestRecord:
    def test_an_answer_comes_back_as_it_was_given(self, shop: Settings) -> None:
        full = Answer(
            answer_id="页面/1 🍎",
            answered_at=NOON.astimezone(timezone(timedelta(hours=8))),
            answered_by="老王 🚒",
            image_id="水果/苹果 1.jpg",
            content_sha256=content(7),
            kind="correct",
            labels_before=("imagenet:n07745940", "imagenet:n07742313"),
            labels=("grocery:1", "grocery:2"),
            comment="不是草莓，\n是苹果 🍏",
            source="page",
            weak=False,
            shown_because="audit",
            sampling_probability=0.02,
            model_version="3",
            confidence=0.5,
        )
        assert corrections.record(shop, [full]) == Recorded(added=1, unchanged=0)
        (row,) = corrections.frozen(shop).to_pylist()
        assert row == vars(full) | {
            "number": 1,
            "answered_at": NOON,
            "labels": ["grocery:1", "grocery:2"],
            "labels_before": ["imagenet:n07745940", "imagenet:n07742313"],
        }

    def test_an_answer_has_the_columns_of_the_schema(self) -> None:
        assert {field.name for field in fields(Answer)} == set(ANSWERS.names) - {"number"}

    def test_numbers_grow_by_one_in_the_given_order(self, shop: Settings) -> None:
        corrections.record(shop, [answer("b"), answer("a")])
        corrections.record(shop, [answer("d", 2), answer("c", 3)])
        table = corrections.frozen(shop)
        assert table["number"].to_pylist() == [1, 2, 3, 4]
        assert table["answer_id"].to_pylist() == ["b", "a", "d", "c"]
        assert corrections.latest(shop) == 4

    def test_an_id_that_is_there_is_not_added_again(self, shop: Settings) -> None:
        corrections.record(shop, [answer("a", labels=("grocery:1",))])
        again = [answer("a", labels=("grocery:2",)), answer("b", 2), answer("b", 3)]
        assert corrections.record(shop, again) == Recorded(added=1, unchanged=2)
        assert said(corrections.frozen(shop)) == {content(1): ["grocery:1"], content(2): ["grocery:1"]}

    def test_nothing_is_nothing(self, shop: Settings) -> None:
        assert corrections.record(shop, []) == Recorded(0, 0)

    def test_all_or_none(self, shop: Settings) -> None:
        with pytest.raises(WwtsError, match="no answer 9 of content"):
            corrections.record(shop, [answer("a"), retract("r", 9)])
        assert corrections.latest(shop) == 0

    def test_a_retract_must_name_an_answer_of_its_content(self, shop: Settings) -> None:
        corrections.record(shop, [answer("a", 1), answer("b", 2)])
        with pytest.raises(WwtsError, match="no answer 2 of content"):
            corrections.record(shop, [retract("r", 2, about=1)])
        corrections.record(shop, [retract("r", 2, about=2)])
        with pytest.raises(WwtsError, match="no answer 3 of content"):
            corrections.record(shop, [retract("r2", 3, about=2)])

    def test_processes_at_once_lose_and_double_nothing(self, shop: Settings) -> None:
        with ProcessPoolExecutor(4, mp_context=CONTEXT) as pool:
            done = list(pool.map(_record_many, [(shop.resolved_database_url, worker) for worker in range(4)]))
        assert sum(added for added, _ in done) == 4 * 20 + 20
        table = corrections.frozen(shop)
        assert table["number"].to_pylist() == list(range(1, 101))
        assert len(set(table["answer_id"].to_pylist())) == 100

    def test_a_reader_does_not_wait_for_a_writer_and_sees_only_what_is_committed(self, shop: Settings) -> None:
        corrections.record(shop, [answer("a")])
        with corrections.answers.appending(shop) as appender:
            appender.add([answer("b")])
            with database.reading(shop) as connection:
                assert corrections.answers.read(connection, 0).num_rows == 1
        assert corrections.latest(shop) == 2


def _record_many(work: tuple[str, int]) -> tuple[int, int]:
    """Twenty answers of this worker's own, and twenty that all workers give; twenty times."""
    url, worker = work
    found = settings_module.load(database_url=url)
    done = [
        corrections.record(found, [answer(f"{worker}-{number}"), answer(f"all-{number}", 2)]) for number in range(20)
    ]
    return sum(one.added for one in done), sum(one.unchanged for one in done)


class TestReading:
    def test_looking_makes_no_database(self, make_settings: Make, tmp_path: Path) -> None:
        found = make_settings(database_url=f"sqlite:///{tmp_path / 'none' / 'wwts.db'}")
        assert corrections.latest(found) == 0
        table = corrections.frozen(found)
        assert table.num_rows == 0
        assert table.schema == ANSWERS
        assert not (tmp_path / "none").exists()

    def test_what_is_frozen_stays_the_same(self, shop: Settings) -> None:
        corrections.record(shop, [answer("a"), answer("b", 2)])
        before = corrections.frozen(shop, 2)
        corrections.record(shop, [retract("r", 1), answer("c", 2)])
        assert corrections.frozen(shop, 2).equals(before)
        assert corrections.frozen(shop, 0).num_rows == 0
        assert corrections.frozen(shop, 100).num_rows == corrections.frozen(shop).num_rows == 4

    def test_more_than_one_piece(self, shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corrections.answers, "_ROWS", 7)
        monkeypatch.setattr(database, "_NAMED_AT_ONCE", 3)
        many = [answer(str(number), number) for number in range(50)]
        assert corrections.record(shop, many) == Recorded(50, 0)
        assert corrections.record(shop, [*many, answer("new")]) == Recorded(1, 50)
        table = corrections.frozen(shop)
        assert table["content_sha256"].to_pylist() == [*map(content, range(50)), content(1)]


class TestAppendOnly:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE corrections SET answered_by = 'nobody'",
            "DELETE FROM corrections",
            "DELETE FROM corrections WHERE number = 1",
            "TRUNCATE corrections",
            "INSERT OR REPLACE INTO corrections SELECT * FROM corrections",
        ],
    )
    def test_nothing_is_changed_or_deleted(self, shop: Settings, statement: str) -> None:
        corrections.record(shop, [answer("a")])
        with pytest.raises((WwtsError, UnavailableError)), database.transaction(shop) as connection:
            connection.execute(sa.text(statement))
        assert corrections.frozen(shop)["answered_by"].to_pylist() == ["li"]

    @pytest.mark.parametrize("changed", [{"number": 2}, {"answer_id": "b"}])
    def test_no_second_row_of_a_number_or_an_id(self, shop: Settings, changed: dict[str, Any]) -> None:
        corrections.record(shop, [answer("a")])
        row = vars(answer("a")) | {"number": 1, "labels": ["grocery:9"]} | changed
        with pytest.raises(WwtsError), database.transaction(shop) as connection:
            connection.execute(sa.insert(database.corrections), row)
        assert said(corrections.frozen(shop)) == {content(1): ["grocery:1"]}


class TestAway:
    def test_a_full_disk_is_told_and_nothing_is_half_there(self, make_settings: Make, tmp_path: Path) -> None:
        found = make_settings(database_url=f"sqlite:///{tmp_path / 'wwts.db'}")
        corrections.record(found, [answer("a")])
        with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
            told = pool.submit(_record_on_a_full_disk, found.resolved_database_url).result()
        assert "does not answer" in told
        assert corrections.frozen(found)["answer_id"].to_pylist() == ["a"]
        assert corrections.record(found, [answer("b")]) == Recorded(1, 0)

    def test_a_locked_database_is_told(
        self, make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "_BUSY_S", 0.2)
        found = make_settings(database_url=f"sqlite:///{tmp_path / 'wwts.db'}")
        corrections.record(found, [answer("a")])
        with database.transaction(found), pytest.raises(UnavailableError, match="locked"):
            corrections.record(found, [answer("b")])
        assert corrections.record(found, [answer("b")]) == Recorded(1, 0)


def _record_on_a_full_disk(url: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    try:
        corrections.record(settings_module.load(database_url=url), [answer(str(one)) for one in range(5000)])
    except UnavailableError as error:
        return str(error)
    return "it was recorded"


def table(*answers: Answer) -> pa.Table:
    """Answers numbered from 1."""
    rows = [{**vars(one), "number": number} for number, one in enumerate(answers, 1)]
    return pa.Table.from_pylist(rows, schema=ANSWERS)


def counted(found: pa.Table) -> list[str]:
    ids: list[str] = found["answer_id"].to_pylist()
    return ids


class TestInForce:
    def test_the_latest_of_each_content_counts(self) -> None:
        found = table(answer("a", 1), answer("b", 2), answer("c", 1), answer("d", 3, kind="reject_image"))
        assert counted(corrections.in_force(found)) == ["b", "c", "d"]
        assert corrections.in_force(found).schema == ANSWERS

    def test_the_number_counts_not_the_clock(self) -> None:
        found = table(answer("later"), answer("earlier", answered_at=NOON - timedelta(days=900)))
        assert counted(corrections.in_force(found)) == ["earlier"]

    def test_a_retract_brings_back_the_answer_before(self) -> None:
        found = [answer("a"), answer("b"), retract("r", 2)]
        assert counted(corrections.in_force(table(*found))) == ["a"]
        assert counted(corrections.in_force(table(*found, retract("r1", 1)))) == []
        assert counted(corrections.in_force(table(*found, retract("r1", 1), answer("c")))) == ["c"]

    def test_taking_back_an_older_answer_leaves_the_latest(self) -> None:
        assert counted(corrections.in_force(table(answer("a"), answer("b"), retract("r", 1)))) == ["b"]

    def test_old_tags_never_override(self) -> None:
        found = table(answer("a"), answer("old", weak=True), answer("b", 2, weak=True), answer("c", 2, weak=True))
        assert counted(corrections.in_force(found)) == ["a"]
        assert counted(corrections.weak(found)) == ["c"]

    def test_an_old_tag_counts_again_once_the_answer_is_taken_back(self) -> None:
        found = [answer("old", weak=True), answer("a")]
        assert counted(corrections.weak(table(*found))) == []
        assert counted(corrections.weak(table(*found, retract("r", 2)))) == ["old"]
        assert counted(corrections.weak(table(*found, retract("r", 2), retract("r1", 1)))) == []

    def test_without_answers(self) -> None:
        empty = ANSWERS.empty_table()
        assert corrections.in_force(empty).num_rows == corrections.weak(empty).num_rows == 0

    @given(
        st.lists(
            st.tuples(st.integers(1, 3), st.sampled_from(["answer", "weak", "retract"]), st.integers(0, 20)),
            max_size=20,
        )
    )
    def test_it_is_what_going_through_them_one_by_one_gives(self, events: Sequence[tuple[int, str, int]]) -> None:
        answers: list[Answer] = []
        standing: dict[int, list[tuple[int, bool]]] = {1: [], 2: [], 3: []}
        for number, (about, what, at) in enumerate(events, 1):
            if what == "retract":
                if not standing[about]:
                    answers.append(answer(str(number), 4))  # keeps the numbers in step
                    continue
                target = standing[about].pop(at % len(standing[about]))
                answers.append(retract(str(number), target[0], about))
            else:
                answers.append(answer(str(number), about, weak=what == "weak"))
                standing[about].append((number, what == "weak"))
        strong = {about: [one for one, is_weak in all_ if not is_weak] for about, all_ in standing.items()}
        old = {about: [one for one, is_weak in all_ if is_weak] for about, all_ in standing.items()}
        of_three = [
            row for row in corrections.in_force(table(*answers)).to_pylist() if row["content_sha256"][-1] != "4"
        ]
        assert [row["number"] for row in of_three] == sorted(max(numbers) for numbers in strong.values() if numbers)
        expected = sorted(max(old[about]) for about in old if old[about] and not strong[about])
        assert corrections.weak(table(*answers))["number"].to_pylist() == expected


class TestAnswer:
    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"kind": "maybe"}, "there are confirm, correct"),
            ({"labels": ()}, "with 0 labels"),
            ({"kind": "wrong_unknown"}, "with 1 labels"),
            ({"kind": "retract", "labels": ()}, "says of which answer"),
            ({"retracts": 3}, "says of which answer"),
            ({"labels": ("a", "a")}, "twice"),
            ({"labels": ("a", "")}, "without an id"),
            ({"content_sha256": "A" * 64}, "names no content"),
            ({"answered_at": datetime(2026, 3, 1)}, "without a zone"),
            ({"answered_by": " "}, "lacks who"),
            ({"reason": "corrupt"}, "has no reason"),
            ({"kind": "reject_image", "labels": (), "reason": "ugly"}, "no known reason"),
            ({"sampling_probability": 0.0}, "not 0 to 1"),
            ({"sampling_probability": float("nan")}, "not 0 to 1"),
            ({"comment": "a\0b"}, "control character"),
            ({"labels": ("\ud800",)}, "control character"),
        ],
    )
    def test_one_that_contradicts_itself_cannot_be_made(self, change: dict[str, Any], told: str) -> None:
        with pytest.raises(WwtsError, match=told):
            replace(answer("a"), **change)
