"""The review queue: what must be seen first, one look for all copies of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_nights import NOON, Nights, Outcome, auto, forced, review, tag_row

from wwts_ops import database, publish
from wwts_ops.embeddings import EmbeddingWriter, part_key
from wwts_ops.planning import Plan
from wwts_ops.records import REVIEW_ITEMS
from wwts_ops.review import queue
from wwts_ops.schemas import QUARANTINE, TAGS


@pytest.fixture
def nights(clean_environment: None, tmp_path: Path) -> Nights:
    return Nights(tmp_path, tmp_path / "store")


def night(
    nights: Nights,
    outcomes: dict[str, Outcome],
    priority: dict[str, int] | None = None,
    copies: dict[str, str] | None = None,
    skus: dict[str, str | None] | None = None,
) -> Plan:
    """A night in which ``copies`` (image to image) have the same content, and some images a SKU of ours."""
    plan = nights.plan(dict.fromkeys(outcomes, str(nights.version)), priority)
    for number in range(plan.shards):
        rows = []
        for name in nights.images(plan, number):
            columns: dict[str, Any] = {"content_sha256": content((copies or {}).get(name, name))}
            columns |= {"sku_id": (skus or {})[name]} if name in (skus or {}) else {}
            rows.append(tag_row(plan, name, outcomes[name], NOON, columns))
        nights.put(plan, number, "tags", rows, TAGS)
        nights.put(plan, number, "quarantine", [], QUARANTINE)
        nights.mark(plan, number)
    return plan


def content(name: str) -> str:
    return name * 8


def queued(nights: Nights, plan: Plan, audit_rate: float = 0) -> list[dict[str, Any]]:
    count = queue.route(nights.store, nights.settings(audit_rate=audit_rate), plan)
    table = nights.store.read_table(queue.queue_key(plan))
    assert table.schema.equals(REVIEW_ITEMS)
    found: list[dict[str, Any]] = table.to_pylist()
    assert [row["rank"] for row in found] == list(range(1, count + 1))
    assert [row["value"] for row in found] == sorted((row["value"] for row in found), reverse=True)
    return found


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["image_id"] for row in rows]


def test_only_what_needs_a_person(nights: Nights) -> None:
    plan = night(nights, {"a": auto("红酒"), "b": review("苹果"), "c": forced("步枪")})
    assert names(queued(nights, plan)) == ["c", "b"]


def test_the_order(nights: Nights) -> None:
    """What a look is worth: doubt, times what one answer settles, times two to the priority."""
    outcomes = {
        "forced surest least urgent": forced("步枪", 0.99),  # whatever else there is
        "urgent": review("x", 0.5),  # 0.5 * 1 * 8
        "copied": review("x", 0.25),  # 0.75 * 3
        "copy": review("x", 0.25),
        "copy again": review("x", 0.25),
        "no label at all": review(""),  # 1 * 1
        "unsure": review("x", 0.25),  # 0.75
        "surer but twice": review("x", 0.65),  # 0.35 * 2
        "surer the other": review("x", 0.65),
        "surer": review("x", 0.5),
        "not urgent": review("x", 0.1),  # 0.9 / 2
    }
    copies = {"copy": "copied", "copy again": "copied", "surer the other": "surer but twice"}
    plan = night(nights, outcomes, {"urgent": 3, "not urgent": -1, "forced surest least urgent": -99}, copies)
    rows = queued(nights, plan)
    assert names(rows) == [name for name in outcomes if name not in copies]
    assert [row["value"] for row in rows][1:] == pytest.approx([4, 2.25, 1, 0.75, 0.7, 0.5, 0.45], abs=1e-6)


def test_forced_ones_are_in_that_order_too(nights: Nights) -> None:
    outcomes = {"a": forced("步枪", 0.9), "b": forced("步枪", 0.8), "c": review("x", 0.1)}
    assert names(queued(nights, night(nights, outcomes, {"c": 100}))) == ["b", "a", "c"]


def test_a_sure_mistake_is_worth_more_with_copies_than_without(nights: Nights) -> None:
    """A score of 1 is no proof: the doubt never is nothing."""
    outcomes = {"a": review("x", 1.0), "b": review("x", 1.0), "c": review("x", 1.0)}
    assert names(queued(nights, night(nights, outcomes, copies={"c": "b"}))) == ["b", "a"]


def test_a_priority_counts_so_far_and_no_further(nights: Nights) -> None:
    outcomes = {"a": review("x", 0.5), "b": review("x", 0.25), "c": review("x", 0.5)}
    rows = queued(nights, night(nights, outcomes, {"a": 10_000, "b": 9, "c": -10_000}))
    assert [(row["image_id"], row["value"]) for row in rows] == [("b", 0.75 * 256), ("a", 128), ("c", 0.5 / 256)]


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
        "title": None,
        "model_version": "1",
        "value": 1e9 + 0.25,
        "skus": 1,
        "near_group": None,
        "near": 0,
        "siblings": [],
    }
    assert queue.queue_key(plan) == f"review/date=2026-03-01/part-{plan.run_key}.parquet"


def test_a_night_without_doubt_has_an_empty_queue(nights: Nights) -> None:
    assert queued(nights, night(nights, {"a": auto("红酒")})) == []
    assert not database.exists(nights.settings())


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
    assert sorted(names(queued(nights, plan))) == ["a", "b"]


@pytest.mark.parametrize("name", ["[商店] 什么?*", "decision=auto"])
def test_the_stores_folder_may_have_any_name(clean_environment: None, tmp_path: Path, name: str) -> None:
    nights = Nights(tmp_path, tmp_path / name / "store")
    assert names(queued(nights, night(nights, {"a": auto("红酒"), "b": review("苹果")}))) == ["b"]


# ------------------------------------------------------------------ the audit sample


def many(count: int, sure: int = 0) -> dict[str, Outcome]:
    """So many images that need a person, then so many that do not."""
    doubtful = {f"r{number:04d}": review("x", 0.1 + number / 10_000) for number in range(count)}
    return doubtful | {f"s{number:04d}": auto("苹果", 0.95) for number in range(sure)}


def sampled(rows: list[dict[str, Any]]) -> set[str]:
    return {row["image_id"] for row in rows if row["shown_because"] == "audit"}


def test_a_sample_of_the_sure_ones_is_looked_at_as_well(nights: Nights) -> None:
    plan = night(nights, many(10, 2000))
    rows = queued(nights, plan, 0.3)
    audit = [row for row in rows if row["shown_because"] == "audit"]
    assert 480 < len(audit) < 720  # six standard deviations
    assert {(row["decision"], row["sampling_probability"]) for row in audit} == {("auto", 0.3)}
    others = [row for row in rows if row["shown_because"] != "audit"]
    assert {(row["decision"], row["sampling_probability"]) for row in others} == {("review", 1.0)}
    assert len(others) == 10


def test_the_sample_is_the_same_whenever_it_is_drawn_and_grows_with_the_rate(nights: Nights) -> None:
    plan = night(nights, many(0, 500))
    none, few, more, all_ = (sampled(queued(nights, plan, rate)) for rate in (0, 0.1, 0.5, 1))
    assert (len(none), len(all_)) == (0, 500)
    assert none < few < more < all_
    assert sampled(queued(nights, plan, 0.1)) == few


def test_another_run_draws_another_sample(nights: Nights) -> None:
    first = sampled(queued(nights, night(nights, many(0, 200)), 0.5))
    second = sampled(queued(nights, night(nights, many(0, 200)), 0.5))
    assert first != second  # of 2 ** 200


def test_what_was_sampled_comes_up_anywhere_in_the_queue(nights: Nights) -> None:
    """Whoever looks at the first half has seen about half of the sample."""
    rows = queued(nights, night(nights, many(1000, 400)), 1.0)
    first = rows[: len(rows) // 2]
    assert len(sampled(rows)) == 400
    assert 140 < len(sampled(first)) < 260
    worth = {row["value"] for row in rows if row["shown_because"] == "review"}
    assert {row["value"] for row in rows if row["shown_because"] == "audit"} <= worth


def test_a_sample_alone_is_a_queue(nights: Nights) -> None:
    rows = queued(nights, night(nights, many(0, 5)), 1.0)
    assert all(0 <= row["value"] < 1 for row in rows)
    assert len({row["value"] for row in rows}) == 5


# ------------------------------------------------------------------ what looks alike


def embed(nights: Nights, plan: Plan, vectors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    key = part_key(plan.backbone_sha256, plan.date, plan.run_key, 0)
    with nights.store.writing(key) as path, EmbeddingWriter(path, plan.backbone_sha256, 8) as writer:
        for name, vector in vectors.items():
            writer.add(content(name), vector.astype(np.float16))


def test_what_looks_alike_is_a_group_and_is_worth_half_of_each_other(nights: Nights) -> None:
    outcomes = {name: review("x", 0.5) for name in "abcdef"} | {"g": auto("x")}
    plan = night(nights, outcomes)
    one, other = np.eye(8)[:2]
    # b is like a, c like b (and not like a): one group. d is like nothing that waits, f has no embedding.
    steps = [one, one + 0.4 * other, one + 1.0 * other]
    cosine = steps[0] @ steps[2] / np.linalg.norm(steps[2])
    assert cosine < queue.ALIKE < steps[1] @ steps[2] / np.linalg.norm(steps[1]) / np.linalg.norm(steps[2])
    embed(
        nights, plan, {**dict(zip("abc", steps, strict=True)), "d": np.eye(8)[3], "e": np.eye(8)[4], "g": np.eye(8)[3]}
    )
    rows = {row["image_id"]: row for row in queued(nights, plan)}
    groups = {name: row["near_group"] for name, row in rows.items()}
    assert groups["a"] == groups["b"] == groups["c"] != None  # noqa: E711
    assert groups["a"].startswith(f"{plan.run_key}:")
    assert (groups["d"], groups["e"], groups["f"]) == (None, None, None)
    assert [rows[name]["near"] for name in "abcdef"] == [2, 2, 2, 0, 0, 0]
    assert [rows[name]["value"] for name in "abcdef"] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_groups_have_names_of_their_own(nights: Nights) -> None:
    plan = night(nights, {name: review(label, 0.5) for name, label in zip("abcd", "xyxy", strict=True)})
    one, other = np.eye(8)[:2]
    embed(nights, plan, {"a": one, "b": other, "c": one, "d": other})
    groups = {row["image_id"]: row["near_group"] for row in queued(nights, plan)}
    assert groups["a"] == groups["c"]
    assert groups["b"] == groups["d"] != groups["a"]


# ------------------------------------------------------------------ what is published


def test_copies_skus_and_siblings_are_those_of_all_that_is_published(nights: Nights) -> None:
    """A night before held other images of the SKU, and copies of the same picture in other SKUs and in none."""
    given = nights.settings(release="live", audit_rate=0)
    before = {
        "a": auto("梨", 0.75),
        "b": auto("梨"),
        "c": auto("梨"),
        "d": auto("梨"),
        "e": auto("梨"),
        "f": auto("梨"),
    }
    shared = {"c": "z", "d": "z", "e": "z", "f": "a"}
    # Of the SKU of "new" there are a and f (one content); z is in two other SKUs and in an image without any.
    plan = night(nights, before, copies=shared, skus={"a": "S", "f": "S", "c": "1", "d": "1", "e": None})
    publish.publish(nights.store, given)
    catalog = {**dict.fromkeys(before, "0"), "new": "1", "z": "1"}
    later = nights.plan(catalog)
    rows = [
        tag_row(later, "new", review("苹果"), NOON, {"content_sha256": content("new"), "sku_id": "S"}),
        tag_row(later, "z", review("梨"), NOON, {"content_sha256": content("z"), "sku_id": "2"}),
    ]
    nights.put(later, 0, "tags", rows, TAGS)
    nights.put(later, 0, "quarantine", [], QUARANTINE)
    nights.mark(later, 0)
    publish.publish(nights.store, given)
    found = {row["image_id"]: row for row in queued(nights, later)}
    assert (found["z"]["copies"], found["z"]["skus"], found["z"]["siblings"]) == (4, 3, [])
    assert (found["new"]["copies"], found["new"]["skus"]) == (1, 1)
    (sibling,) = found["new"]["siblings"]
    wanted = {"image_id": "a", "content_sha256": content("a"), "label_id": "t:梨", "label_zh": "梨"}
    assert sibling == {**wanted, "confidence": 0.75, "model_version": plan.model_version, "skus": 1}


def test_a_sku_of_any_number_of_images_shows_some(nights: Nights) -> None:
    outcomes: dict[str, Outcome] = {f"i{number:03d}": review("x") for number in range(60)}
    plan = night(nights, outcomes, skus=dict.fromkeys(outcomes, "散装"))
    rows = queued(nights, plan)
    assert len(rows) == len(outcomes)
    for row in rows:
        shown = [one["image_id"] for one in row["siblings"]]
        first = [name for name in outcomes if name != row["image_id"]][:20]
        assert shown == first


def test_what_is_published_no_more_is_left_out(nights: Nights) -> None:
    """A run that is routed again after a later one found its images gone, or their bytes replaced."""
    plan = night(nights, {name: review("x") for name in "abc"})
    publish.publish(nights.store, nights.settings())
    assert names(queued(nights, plan)) == ["c", "b", "a"]
    nights.night({"a": "0", "b": "neu"}, {"b": review("y")})  # c is off the list
    assert names(queued(nights, plan)) == ["c", "b", "a"], "the snapshot knows nothing of it yet"
    publish.publish(nights.store, nights.settings())
    assert names(queued(nights, plan)) == ["a"]


def test_a_snapshot_of_before_the_run_says_nothing_of_it(nights: Nights) -> None:
    night(nights, {"a": auto("x")})
    publish.publish(nights.store, nights.settings())
    plan = night(nights, {"a": review("x"), "b": review("y")})
    assert sorted(names(queued(nights, plan))) == ["a", "b"]


def test_routed_again_it_is_the_same_file(nights: Nights) -> None:
    outcomes = many(300, 100)
    plan = night(nights, outcomes, skus={name: f"S{place % 40}" for place, name in enumerate(outcomes)})
    rng = np.random.default_rng(1)
    embed(nights, plan, {name: rng.normal(size=8) for name in outcomes})
    publish.publish(nights.store, nights.settings())
    queued(nights, plan, 0.5)
    first = nights.store.read_bytes(queue.queue_key(plan))
    queued(nights, plan, 0.5)
    assert nights.store.read_bytes(queue.queue_key(plan)) == first
