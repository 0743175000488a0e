"""Decisions: thresholds, forced and switched-off labels, ties; the same however rows are batched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wwts_ops.decisions import Decider, Decision
from wwts_ops.records import RETAGGED
from wwts_ops.taxonomy import Label, Taxonomy

STRAWBERRY = Label("t:strawberry", "草莓", category_path="生鲜 > 水果 > 莓果")
RIFLE = Label("t:rifle", "步枪", category_path="武器 > 枪械 > 步枪")
TOY_GUN = Label("t:toy-gun", "玩具枪", category_path="武器玩具 > 玩具枪")
TOBACCO = Label("t:tobacco", "香烟", category_path="烟草")
LIPSTICK = Label("t:lipstick", "口红", category_path="美妆 > 彩妆", forced_review=True)
OFF = Label("t:off", "停用", category_path="生鲜 > 水果", enabled=False)
OFF_TOO = Label("t:off-too", "也停用", category_path="武器 > 枪械", enabled=False)


def decide(
    labels: list[Label],
    scores: list[float],
    threshold: float = 0.5,
    forced: tuple[str, ...] = ("武器", "烟草"),
    top: int = 5,
) -> Decision:
    thresholds = np.full(len(labels), threshold, np.float32)
    ids = tuple(label.label_id for label in labels)
    [decision] = Decider(ids, thresholds, Taxonomy("t1", tuple(labels), forced), top)(np.array([scores], np.float32))
    return decision


def test_a_confident_label_is_given() -> None:
    decision = decide([RIFLE, STRAWBERRY], [0.25, 0.75])
    assert (decision.decision, decision.reason) == ("auto", "confident")
    assert decision.category_path == "生鲜 > 水果 > 莓果"
    assert [(tag.label_id, tag.label_zh, tag.score) for tag in decision.tags] == [
        ("t:strawberry", "草莓", 0.75),
        ("t:rifle", "步枪", 0.25),
    ]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0])
def test_a_score_at_the_threshold_is_enough(threshold: float) -> None:
    assert decide([STRAWBERRY], [threshold], threshold).decision == "auto"
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    decision = decide([STRAWBERRY], [below], threshold)
    assert (decision.decision, decision.reason) == ("review", "low_confidence")
    assert decision.tags[0].label_id == "t:strawberry"


def test_each_label_has_its_own_threshold() -> None:
    taxonomy = Taxonomy("t1", (STRAWBERRY, TOY_GUN))
    decider = Decider(("t:strawberry", "t:toy-gun"), np.array([0.9, 0.2], np.float32), taxonomy, 5)
    scores = np.array([[0.8, 0.1], [0.1, 0.3], [0.95, 0.3]], np.float32)
    assert [decision.decision for decision in decider(scores)] == ["review", "auto", "auto"]


@pytest.mark.parametrize(
    ("label", "reason"),
    [(RIFLE, "forced_category:武器"), (TOBACCO, "forced_category:烟草"), (LIPSTICK, "forced_label")],
)
@pytest.mark.parametrize("score", [0.01, 1.0])
def test_a_forced_label_is_seen_by_a_person_however_sure(label: Label, reason: str, score: float) -> None:
    decision = decide([STRAWBERRY, label], [0.0, score])
    assert (decision.decision, decision.reason) == ("forced_review", reason)
    assert decision.category_path == label.category_path


def test_a_category_that_begins_with_the_same_characters_is_not_forced() -> None:
    assert decide([TOY_GUN], [0.9]).decision == "auto"


def test_a_forced_category_may_lie_deeper() -> None:
    forced = ("武器 > 枪械",)
    assert decide([RIFLE], [0.9], forced=forced).reason == "forced_category:武器 > 枪械"
    assert decide([TOBACCO], [0.9], forced=forced).decision == "auto"
    # A category above the forced one is not inside of it.
    assert decide([Label("t:weapon", "武器", category_path="武器")], [0.9], forced=forced).decision == "auto"


def test_a_switched_off_label_gives_way_to_the_next() -> None:
    decision = decide([OFF, STRAWBERRY, RIFLE], [0.6, 0.5, 0.1], threshold=0.5)
    assert [tag.label_id for tag in decision.tags] == ["t:strawberry", "t:rifle"]
    assert (decision.decision, decision.reason) == ("auto", "confident;skipped_off:t:off")
    assert decide([OFF, STRAWBERRY], [0.6, 0.4]).reason == "low_confidence;skipped_off:t:off"
    assert decide([OFF, RIFLE], [0.6, 0.4]).reason == "forced_category:武器;skipped_off:t:off"


def test_a_switched_off_label_that_is_not_best_goes_unsaid() -> None:
    decision = decide([STRAWBERRY, OFF, RIFLE], [0.5, 0.4, 0.1], top=2)
    assert decision.reason == "confident"
    assert [tag.label_id for tag in decision.tags] == ["t:strawberry", "t:rifle"]


def test_all_labels_off() -> None:
    decision = decide([OFF, OFF_TOO], [0.1, 0.9])
    assert decision == Decision((), "", "review", "low_confidence;skipped_off:t:off-too")


def test_of_equal_scores_the_first_label_wins() -> None:
    labels = [RIFLE, STRAWBERRY, TOY_GUN, LIPSTICK]
    decision = decide(labels, [0.2, 0.3, 0.3, 0.2])
    assert [tag.label_id for tag in decision.tags] == ["t:strawberry", "t:toy-gun", "t:rifle", "t:lipstick"]


@pytest.mark.parametrize(("top", "kept"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_no_more_tags_than_asked_for_or_there_are(top: int, kept: int) -> None:
    assert len(decide([STRAWBERRY, RIFLE, TOY_GUN], [0.5, 0.3, 0.2], top=top).tags) == kept


def test_a_label_that_the_taxonomy_lacks_goes_by_its_id_to_review() -> None:
    decider = Decider(("t:new",), np.array([0.5], np.float32), Taxonomy("t1", ()), 5)
    [decision] = decider(np.array([[0.75]], np.float32))
    assert [(tag.label_id, tag.label_zh) for tag in decision.tags] == [("t:new", "t:new")]
    assert decision.category_path == ""
    assert (decision.decision, decision.reason) == ("review", "unlisted_label")


def test_no_rows() -> None:
    decider = Decider(("t:strawberry",), np.array([0.5], np.float32), Taxonomy("t1", (STRAWBERRY,)), 5)
    assert decider(np.empty((0, 1), np.float32)) == []


# ------------------------------------------------------------------ labels that map to others

BERRY = Label("t:berry", "野莓", category_path="生鲜", maps_to="t:strawberry")
MERGED = Label("t:merged", "洋莓", category_path="生鲜", enabled=False, maps_to="t:strawberry")


def test_a_label_that_maps_adds_its_score_to_the_other() -> None:
    decision = decide([RIFLE, BERRY, STRAWBERRY, MERGED], [0.375, 0.25, 0.25, 0.125], threshold=0.6)
    assert [(tag.label_id, tag.label_zh, tag.score) for tag in decision.tags] == [
        ("t:strawberry", "草莓", 0.625),
        ("t:rifle", "步枪", 0.375),
    ]
    assert (decision.decision, decision.reason, decision.category_path) == ("auto", "confident", "生鲜 > 水果 > 莓果")


def test_the_threshold_is_that_of_the_label_that_is_given() -> None:
    taxonomy = Taxonomy("t1", (STRAWBERRY, BERRY))
    decider = Decider(("t:berry", "t:strawberry"), np.array([0.9, 0.3], np.float32), taxonomy, 5)
    scores = np.array([[0.4, 0.0], [0.1, 0.1]], np.float32)
    assert [decision.decision for decision in decider(scores)] == ["auto", "review"]


def test_a_label_that_the_head_lacks_has_the_highest_threshold_of_those_that_map_to_it() -> None:
    taxonomy = Taxonomy("t1", (STRAWBERRY, BERRY, MERGED))
    decider = Decider(("t:berry", "t:merged"), np.array([0.5, 0.75], np.float32), taxonomy, 5)
    below, at = decider(np.array([[0.5, 0.125], [0.5, 0.25]], np.float32))
    assert (below.decision, at.decision) == ("review", "auto")
    assert [tag.label_id for tag in at.tags] == ["t:strawberry"]


def test_a_label_mapped_to_is_judged_by_its_own_rules() -> None:
    forced = replace(BERRY, maps_to="t:rifle")
    assert decide([RIFLE, forced], [0.0, 0.9]).reason == "forced_category:武器"
    off = replace(BERRY, maps_to="t:off")
    assert decide([OFF, STRAWBERRY, off], [0.25, 0.25, 0.5]).reason == "low_confidence;skipped_off:t:off"
    unlisted = replace(BERRY, maps_to="t:nowhere")
    decision = decide([unlisted], [0.9])
    assert (decision.tags[0].label_zh, decision.decision, decision.reason) == ("t:nowhere", "review", "unlisted_label")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (replace(RIFLE, maps_to="t:strawberry"), "forced_category:武器"),
        (replace(LIPSTICK, maps_to="t:strawberry", enabled=False), "forced_label"),
    ],
)
@pytest.mark.parametrize("head", [("t:strawberry",), ("t:strawberry", "source"), ("source",)])
def test_a_label_is_forced_if_one_that_maps_to_it_is(source: Label, reason: str, head: tuple[str, ...]) -> None:
    """Whether the head has it or not: people may give it all the same."""
    ids = tuple(source.label_id if one == "source" else one for one in head)
    decider = Decider(ids, np.full(len(ids), 0.5, np.float32), Taxonomy("t1", (STRAWBERRY, source), ("武器",)), 5)
    scores = np.full((2, len(ids)), 0.75, np.float32)
    scores[1] = 0.125
    assert [(one.decision, one.reason) for one in decider(scores)] == [("forced_review", reason)] * 2
    columns = decider.columns(scores)
    assert columns["decision"].to_pylist() == ["forced_review"] * 2
    assert columns["decision_reason"].to_pylist() == [reason] * 2
    assert set(columns["label_id"].to_pylist()) == {"t:strawberry"}


def test_a_circle_ends() -> None:
    """The page refuses one; a store may hold one all the same."""
    first, second = replace(BERRY, maps_to="t:merged"), replace(MERGED, enabled=True, maps_to="t:berry")
    decision = decide([first, second], [0.75, 0.25])
    assert [(tag.label_id, tag.score) for tag in decision.tags] == [("t:merged", 0.75), ("t:berry", 0.25)]


def test_scores_that_add_up_to_more_than_one_are_one() -> None:
    decision = decide([STRAWBERRY, BERRY, RIFLE], [0.75, 0.3, 0.0])
    assert [tag.score for tag in decision.tags] == [1.0, 0.0]


def test_a_sum_does_not_depend_on_its_batch() -> None:
    """Sums of many float32 differ by the order they are added in."""
    labels = [STRAWBERRY, *(replace(BERRY, label_id=f"t:{number}") for number in range(50))]
    scores = np.random.default_rng(7).dirichlet(np.ones(51), 300).astype(np.float32)
    decider = Decider(
        tuple(one.label_id for one in labels), np.full(51, 0.5, np.float32), Taxonomy("t1", tuple(labels)), 5
    )
    together = decider(scores)
    assert together == [decision for row in scores for decision in decider(row[None])]
    assert together == decider(np.asfortranarray(scores))
    assert decider.columns(scores)["confidence"].to_pylist() == [decision.tags[0].score for decision in together]


def test_scores_that_are_no_numbers_are_never_auto() -> None:
    for scores in ([np.nan, np.nan], [np.nan, 0.1]):
        assert decide([STRAWBERRY, TOY_GUN], scores).decision == "review"


# Few values, so that ties and scores at the threshold are common.
SCORES = st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.9, 1.0])
PATHS = st.sampled_from(["", "武器", "武器 > 枪械", "武器玩具", "生鲜 > 水果", "医药 > 药品 > 药瓶", "医药"])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Decider, np.ndarray]:
    flags = draw(st.lists(st.tuples(PATHS, st.booleans(), st.booleans()), min_size=1, max_size=6))
    labels = tuple(
        Label(f"t:{n}", f"名{n}", category_path=path, forced_review=forced, enabled=enabled)
        for n, (path, forced, enabled) in enumerate(flags)
    )
    row = st.lists(SCORES, min_size=len(labels), max_size=len(labels))
    scores = np.array(draw(st.lists(row, min_size=1, max_size=5)), np.float32)
    thresholds = np.array(draw(row), np.float32)
    taxonomy = Taxonomy("t1", labels, ("武器", "医药 > 药品"))
    return Decider(tuple(label.label_id for label in labels), thresholds, taxonomy, draw(st.integers(1, 8))), scores


@given(cases())
def test_auto_means_sure_allowed_and_not_forced(case: tuple[Decider, np.ndarray]) -> None:
    decider, scores = case
    labels = decider.taxonomy.labels
    for row, decision in zip(scores, decider(scores), strict=True):
        enabled = sorted((n for n in range(len(labels)) if labels[n].enabled), key=lambda n: (-row[n], n))
        assert [tag.label_id for tag in decision.tags] == [labels[n].label_id for n in enabled[: decider.top_k]]
        if not enabled:
            assert decision.decision == "review"
            continue
        best = labels[enabled[0]]
        levels = best.category_path.split(" > ")
        forced = best.forced_review or levels[0] == "武器" or levels[:2] == ["医药", "药品"]
        sure = row[enabled[0]] >= decider.thresholds[enabled[0]]
        assert (decision.decision == "forced_review") == forced
        assert (decision.decision == "auto") == (sure and not forced)
        skipped = row.max() > row[enabled[0]]
        assert (";skipped_off:" in decision.reason) >= skipped


@given(cases())
def test_a_decision_does_not_depend_on_its_batch(case: tuple[Decider, np.ndarray]) -> None:
    decider, scores = case
    alone = [decision for row in scores for decision in decider(row[None])]
    assert decider(scores) == alone
    assert decider(scores[::-1]) == alone[::-1]


@settings(deadline=None)
@given(st.data())
def test_all_at_once_is_the_same_as_one_by_one(data: st.DataObject) -> None:
    """With ties, forced, unlisted, mapped and switched-off labels, and more rows than are ranked at once."""
    known = [STRAWBERRY, RIFLE, TOY_GUN, TOBACCO, LIPSTICK, OFF, OFF_TOO, Label("t:plain", "无类目")]
    targets = st.sampled_from(["", "", "t:strawberry", "t:rifle", "t:off", "t:elsewhere"])
    labels = [replace(label, maps_to=data.draw(targets)) for label in known]
    listed = data.draw(st.lists(st.sampled_from(labels), unique=True, min_size=0, max_size=len(labels)))
    ids = tuple(data.draw(st.permutations([label.label_id for label in labels])))[: data.draw(st.integers(1, 8))]
    taxonomy = Taxonomy("t1", tuple(listed), ("武器", "烟草"))
    decider = Decider(ids, np.full(len(ids), 0.5, np.float32), taxonomy, data.draw(st.integers(1, 9)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    numbers = np.random.default_rng(seed)
    # Few different values, so that many are equal, among themselves and to the threshold.
    scores = numbers.choice(
        np.array([0, 0.25, 0.5, 0.7], np.float32), size=(data.draw(st.sampled_from([0, 1, 130])), len(ids))
    )
    found = decider.columns(scores)
    assert found.schema.names == [name for name in RETAGGED.names if name != "content_sha256"]
    assert all(found.schema.field(name).equals(RETAGGED.field(name)) for name in found.schema.names)
    for row, decision in zip(found.to_pylist(), decider(scores), strict=True):
        first = decision.tags[0] if decision.tags else None
        assert row == {
            "tags": [vars(tag) for tag in decision.tags],
            "label_id": first and first.label_id,
            "label_zh": first and first.label_zh,
            "confidence": first and first.score,
            "category_path": decision.category_path or None,
            "decision": decision.decision,
            "decision_reason": decision.reason,
        }
