"""The review queue: what must be seen first, one look for all copies of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written_nights import NOON, Nights, Outcome, auto, forced, review, tag_row

from wwts_ops.planning import Plan
from wwts_ops.review import queue
from wwts_ops.schemas import QUARANTINE, REVIEW_QUEUE, TAGS


@pytest.fixture
def nights(clean_environment: None, tmp_path: Path) -> Nights:
    return Nights(tmp_path, tmp_path / "store")


def night(
    nights: Nights,
    outcomes: dict[str, Outcome],
    priority: dict[str, int] | None = None,
    copies: dict[str, str] | None = None,
) -> Plan:
    """A night in which ``copies`` (image to image) have the same content."""
    plan = nights.plan(dict.fromkeys(outcomes, "1"), priority)
    rows = []
    for name in nights.images(plan):
        content = (copies or {}).get(name, name)
        rows.append(tag_row(plan, name, outcomes[name], NOON, {"content_sha256": content * 8}))
    nights.put(plan, 0, "tags", rows, TAGS)
    nights.put(plan, 0, "quarantine", [], QUARANTINE)
    nights.mark(plan, 0)
    return plan


def queued(nights: Nights, plan: Plan) -> list[dict[str, Any]]:
    count = queue.route(nights.store, nights.settings(), plan)
    table = nights.store.read_table(queue.queue_key(plan))
    assert table.schema.equals(REVIEW_QUEUE)
    found: list[dict[str, Any]] = table.to_pylist()
    assert [row["rank"] for row in found] == list(range(1, count + 1))
    return found


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["image_id"] for row in rows]


def test_only_what_needs_a_person(nights: Nights) -> None:
    plan = night(nights, {"a": auto("红酒"), "b": review("苹果"), "c": forced("步枪")})
    assert names(queued(nights, plan)) == ["c", "b"]


def test_the_order(nights: Nights) -> None:
    """Each image stands before the next for one reason only, and every later reason speaks against it."""
    outcomes = {
        "z forced": forced("步枪", 0.99),
        "y urgent": review("x", 0.5),
        "x less urgent": review("x", 0.4),
        "v copied": review("x", 0.3),
        "w copy": review("x", 0.3),
        "u no label at all": review(""),
        "t least sure": review("x", 0.1),
        "r surer and first by name": review("x", 0.2),
        "s surer": review("x", 0.2),
    }
    plan = night(nights, outcomes, {"y urgent": 9, "x less urgent": 2}, {"w copy": "v copied"})
    assert names(queued(nights, plan)) == [name for name in outcomes if name != "w copy"]


def test_forced_ones_are_in_that_order_too(nights: Nights) -> None:
    outcomes = {"a": forced("步枪", 0.9), "b": forced("步枪", 0.8), "c": review("x", 0.1)}
    plan = night(nights, outcomes, {"c": 100, "a": -1})
    assert names(queued(nights, plan)) == ["a", "b", "c"]


def test_one_row_a_content_with_its_copies_counted(nights: Nights) -> None:
    outcomes: dict[str, Outcome] = {name: review("苹果") for name in ("a", "b", "c", "d")}
    plan = night(nights, outcomes, {"c": 5}, {"b": "a", "c": "a"})
    first, second = queued(nights, plan)
    # The most urgent of the copies stands for them.
    assert (first["image_id"], first["copies"], first["priority"]) == ("c", 3, 5)
    assert (second["image_id"], second["copies"], second["priority"]) == ("d", 1, None)


def test_a_row_says_what_the_page_shows(nights: Nights) -> None:
    plan = night(nights, {"中文 😀": forced("步枪", 0.75)})
    (row,) = queued(nights, plan)
    assert row == {
        "rank": 1,
        "image_id": "中文 😀",
        "sku_id": "sku-中文 😀",
        "uri": "中文 😀.jpg",
        "content_sha256": "中文 😀" * 8,
        "tags": [
            {"label_id": "t:步枪", "label_zh": "步枪", "score": 0.75},
            {"label_id": "t:rest", "label_zh": "其他", "score": 0.1875},
        ],
        "label_id": "t:步枪",
        "label_zh": "步枪",
        "confidence": 0.75,
        "category_path": "类 > 步枪",
        "decision": "forced_review",
        "decision_reason": "reason-1",
        "run_id": plan.run_key,
        "copies": 1,
        "priority": None,
        "shown_because": "forced_review",
        "sampling_probability": 1.0,
    }
    assert queue.queue_key(plan) == f"review/date=2026-03-01/part-{plan.run_key}.parquet"


def test_a_night_without_doubt_has_an_empty_queue(nights: Nights) -> None:
    assert queued(nights, night(nights, {"a": auto("红酒")})) == []


def test_a_night_without_images_has_an_empty_queue(nights: Nights) -> None:
    nights.night({"a": "1", "b": "1"}, {"a": auto("红酒"), "b": auto("苹果")})
    gone = nights.night({"b": "1"}, {})
    assert gone.shards == 0
    assert queued(nights, gone) == []


def test_each_run_has_its_own_queue(nights: Nights) -> None:
    first = nights.night({"a": "1"}, {"a": review("苹果")})
    second = nights.night({"a": "2", "b": "1"}, {"a": auto("苹果"), "b": review("梨")})
    assert names(queued(nights, first)) == ["a"]
    assert names(queued(nights, second)) == ["b"]


def test_shards_that_come_later_are_added(nights: Nights) -> None:
    plan = nights.plan({"a": "1", "b": "1"}, shard_size=1)
    for number in range(2):
        nights.write_parts(plan, number, {"a": review("苹果"), "b": review("梨")})
    nights.mark(plan, 1)
    assert names(queued(nights, plan)) == ["b"]
    nights.mark(plan, 0)
    assert names(queued(nights, plan)) == ["a", "b"]


@pytest.mark.parametrize("name", ["[商店] 什么?*", "decision=auto"])
def test_the_stores_folder_may_have_any_name(clean_environment: None, tmp_path: Path, name: str) -> None:
    nights = Nights(tmp_path, tmp_path / name / "store")
    assert names(queued(nights, night(nights, {"a": auto("红酒"), "b": review("苹果")}))) == ["b"]
