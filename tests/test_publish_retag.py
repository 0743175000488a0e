"""A retag says the catalog's tags anew: above what the nights wrote, below what people said, and back in one move."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from night_run import wwts
from overlaid_nights import EMPTY, MADE_BY, PLANNED_AT, OverlaidNights, Scene, expected, retagged_row
from test_publish_answers import check_counts, history, random_answers, without
from written_nights import Outcome, auto, forced, review

from wwts_ops import publish, published, retags, taxonomy
from wwts_ops.errors import WwtsError
from wwts_ops.taxonomy import Label, Taxonomy


@pytest.fixture
def nights(clean_environment: None, tmp_path: Path) -> OverlaidNights:
    made = OverlaidNights(tmp_path, tmp_path / "store")
    taxonomy.put(made.store, Taxonomy("new", (Label("shop:juice", "葡萄汁"),)), "小王", None)
    return made


def one_night(nights: OverlaidNights, etag: str = "1") -> None:
    """Live, live by a copy, and waiting for a person."""
    outcomes: dict[str, tuple[str, Outcome]] = {
        "a": ("苹果", auto("梨", 0.75)),
        "b": ("苹果", auto("梨", 0.75)),
        "c": ("汁", review("红酒", 0.25)),
    }
    nights.tagged(dict.fromkeys("abc", etag), outcomes)


# ------------------------------------------------------------------ what a retag says


def test_what_the_retag_is_sure_of_goes_live(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.publish()
    before = nights.rows()
    made = nights.retag(1, [{"苹果": auto("苹果", 0.5)}, {"汁": auto("果汁", 0.5), "别的": auto("x", 0.5)}])
    pointer = nights.publish()
    found = nights.rows()
    for name, content, label in (("a", "苹果", "苹果"), ("b", "苹果", "苹果"), ("c", "汁", "果汁")):
        assert found[name] == {
            **before[name],
            **retagged_row(content, auto(label, 0.5)),
            "model_name": "wwts-tagger",
            "model_version": "77",
            "model_sha256": f"{77:064x}",
            "backbone_sha256": "e" * 64,
            "taxonomy_version": "t000009",
            "git_sha": "9" * 40,
            "run_id": made.key,
            "tagged_at": PLANNED_AT,
            "state": "live",
            "snapshot": pointer["snapshot"],
        }
    told = {name: pointer[name] for name in ("retag", "model_version", "taxonomy_version", "model_versions", "live")}
    assert told == {
        "retag": made.key,
        "model_version": "77",
        "taxonomy_version": "t000009",
        "model_versions": {"77": 3},
        "live": 3,
    }


def test_what_the_retag_is_not_sure_of_keeps_its_last_live_tag(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.publish()
    before = nights.rows()
    nights.retag(1, [{"苹果": review("苹果", 0.25), "汁": forced("酒", 0.5)}])
    nights.publish()
    found = nights.rows()
    tags = (*EMPTY, *MADE_BY)
    assert {name: found["a"][name] for name in tags} == {name: before["a"][name] for name in tags}
    assert [found["a"][name] for name in ("decision", "decision_reason", "state")] == ["review", "retagged", "pending"]
    assert [found["c"][name] for name in EMPTY] == [None] * 5
    assert [found["c"][name] for name in ("decision", "model_version", "state")] == ["forced_review", "77", "pending"]


def test_the_tags_of_a_version_that_was_rolled_back_are_nobodys_last_live_ones(nights: OverlaidNights) -> None:
    one_night(nights)
    one_night(nights, "2")
    bad = nights.rows_of(2)["a"]["model_sha256"]
    nights.retag(2, [{"苹果": review("苹果", 0.25)}], [bad])
    nights.publish()
    assert nights.rows()["a"]["model_version"] == "1", "the tag of the version before"
    nights.retag(2, [{"苹果": review("苹果", 0.25)}], [bad, nights.rows_of(1)["a"]["model_sha256"]], version="78")
    nights.publish()
    assert nights.states()["a"] == ("pending", None)


def test_the_next_night_stands_above_the_retag(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.retag(1, [{"苹果": auto("苹果", 0.5), "新": auto("x", 0.5), "汁": auto("果汁", 0.5)}])
    fresh: dict[str, tuple[str, Outcome]] = {
        "a": ("新", auto("新", 0.75)),
        "b": ("不清楚", review("y", 0.25)),
        "c": ("汁", auto("酒", 0.75)),
    }
    nights.tagged({"a": "2", "b": "2", "c": "1"}, fresh)
    pointer = nights.publish()
    # The last live tag of b is the retag's; c has not changed.
    assert nights.states() == {"a": ("live", "新"), "b": ("pending", "苹果"), "c": ("live", "果汁")}
    assert nights.rows()["b"]["run_id"] == pointer["retag"]
    assert (pointer["model_version"], pointer["model_versions"]) == ("2", {"2": 1, "77": 2})


def test_in_shadow_a_retag_is_not_live(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    nights.publish("shadow")
    assert set(nights.states().values()) == {("pending", None)}


def test_of_several_parts_the_lowest_counts(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.retag(1, [{"汁": auto("x", 0.5)}, {"苹果": auto("苹果", 0.5)}, {"苹果": review("梨", 0.5)}])
    nights.publish()
    assert nights.states()["a"] == ("live", "苹果")


def test_an_answer_stands_above_the_retag(nights: OverlaidNights) -> None:
    one_night(nights)
    number = nights.answer("correct", "苹果", "shop:juice")
    nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    nights.publish()
    assert nights.states()["a"] == ("live", "葡萄汁")
    nights.answer("retract", "苹果", retracts=number)
    nights.publish()
    assert nights.states()["a"] == ("live", "苹果")


@pytest.mark.parametrize(("seed", "release", "upto"), [(11, "live", 3), (12, "live", 5), (13, "shadow", 4)])
def test_against_the_life_of_every_image(nights: OverlaidNights, seed: int, release: str, upto: int) -> None:
    history(nights, seed)
    answers = random_answers(seed, count=60)
    nights.answer_all(answers)
    rng = random.Random(seed)
    choices = [auto("重", 0.5), auto("新", 0.75), review("疑", 0.25), forced("枪", 0.5)]
    contents = [f"c{number}" for number in range(150)]
    parts = [{one: rng.choice(choices) for one in rng.sample(contents, 50)} for _ in range(3)]
    distrusted = {row["model_sha256"] for row in nights.rows_of(2).values()}
    retag = nights.retag(upto, parts, sorted(distrusted))
    pointer = nights.publish(release)
    table = [{**vars(one), "number": number} for number, one in enumerate(answers, 1)]
    scene = Scene(nights.acts, table, retag, parts, taxonomy.current(nights.store), release)
    wanted = expected(scene)
    assert {name: without(row, "snapshot") for name, row in nights.rows().items()} == wanted
    seen = {(row["run_id"] == retag.key, row["state"], row["decision"]) for row in wanted.values()}
    assert {(True, "live", "auto"), (True, "pending", "review")} <= seen or release == "shadow", "too tame"
    check_counts(pointer, wanted)


def test_a_damaged_retag_doubles_no_image(nights: OverlaidNights) -> None:
    one_night(nights)
    before = nights.publish()
    nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    key = retags.part_key("r000000000077", 0)
    table = nights.store.read_table(key)
    nights.store.write_table(key, table.take([0, 0]))
    with pytest.raises(WwtsError, match="an image twice"):
        nights.publish()
    assert nights.rows()["a"]["snapshot"] == before["snapshot"]
    assert [one["snapshot"] for one in published.snapshots(nights.store)] == [before["snapshot"]]


# ------------------------------------------------------------------ the pointer to a retag


def test_a_retag_that_is_not_done_is_not_put_in_force(nights: OverlaidNights) -> None:
    made = nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    nights.store.delete(retags.done_key(made.key))
    with pytest.raises(WwtsError, match="not whole"):
        retags.put_in_force(nights.store, made.key, retags.current(nights.store))


def test_of_two_that_put_a_retag_in_force_one_does(nights: OverlaidNights) -> None:
    before = retags.current(nights.store)
    assert retags.in_force(nights.store) is None
    made = nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    assert not retags.put_in_force(nights.store, None, before)
    assert retags.in_force(nights.store) == made
    assert retags.put_in_force(nights.store, None, retags.current(nights.store))
    assert retags.in_force(nights.store) is None


def test_a_retag_that_is_gone_or_damaged_is_told(nights: OverlaidNights) -> None:
    made = nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    nights.store.write_json(retags.plan_key(made.key), {"sequence": 1})
    with pytest.raises(WwtsError, match="damaged"):
        retags.in_force(nights.store)
    nights.store.delete(retags.plan_key(made.key))
    with pytest.raises(WwtsError, match="no retag"):
        retags.in_force(nights.store)


# ------------------------------------------------------------------ back


def restored(nights: OverlaidNights, snapshot: str) -> dict[str, Any]:
    return publish.restore(nights.store, nights.settings(release="live"), snapshot)


def test_going_back_moves_pointers_and_writes_nothing_else(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("correct", "汁", "shop:juice")
    first = nights.publish()
    rows = nights.rows()
    nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    second = nights.publish()
    assert nights.states()["a"] == ("live", "苹果")
    files = written(nights.root)
    assert restored(nights, first["snapshot"])["snapshot"] == first["snapshot"]
    assert nights.rows() == rows
    after = written(nights.root)
    moved = {name for name in after if files.get(name) != after[name]}
    assert moved == {"published/current.json", "retags/current.json"}
    # And forth.
    assert restored(nights, second["snapshot"])["snapshot"] == second["snapshot"]
    assert nights.states() == {"a": ("live", "苹果"), "b": ("live", "苹果"), "c": ("live", "葡萄汁")}


def written(root: Path) -> dict[str, tuple[int, int]]:
    """Every file with its inode and time: one that is written again is another one, whatever is in it."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            told = os.stat(path)
            found[str(path.relative_to(root))] = (told.st_ino, told.st_mtime_ns)
    return found


def test_going_back_takes_back_no_answer_and_no_night(nights: OverlaidNights) -> None:
    one_night(nights)
    first = nights.publish()
    nights.retag(1, [{"苹果": auto("苹果", 0.5), "汁": auto("酒", 0.5)}])
    nights.publish()
    nights.answer("correct", "汁", "shop:juice")
    nights.publish()
    later: dict[str, tuple[str, Outcome]] = {"b": ("新", auto("新", 0.75))}
    nights.tagged({"a": "1", "b": "2", "c": "1"}, later)
    nights.publish()
    value = restored(nights, first["snapshot"])
    assert value["snapshot"] != first["snapshot"]
    assert value["retag"] is None
    assert nights.states() == {"a": ("live", "梨"), "b": ("live", "新"), "c": ("live", "葡萄汁")}
    # It stays so.
    assert publish.refresh(nights.store, nights.settings(release="live")) is None
    assert nights.publish()["snapshot"] == value["snapshot"]


def rolled_back(nights: OverlaidNights) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What was published after a second night, by a version that was wrong, and after its rollback; that version."""
    one_night(nights)
    nights.publish()
    wrong: dict[str, tuple[str, Outcome]] = {"a": ("苹果 2", auto("错", 0.75))}
    nights.tagged({"a": "2", "b": "1", "c": "1"}, wrong)
    (version,) = {row["model_sha256"] for row in nights.rows_of(2).values()}
    assert version not in {row["model_sha256"] for row in nights.rows_of(1).values()}
    before = nights.publish()
    assert nights.states()["a"] == ("live", "错")
    nights.retag(2, [{"苹果 2": review("疑", 0.25)}], [version])
    after = nights.publish()
    assert nights.states()["a"] == ("pending", "梨")
    return before, after, version


@pytest.mark.parametrize("old_pointer", [False, True])
def test_going_back_trusts_no_version_that_was_rolled_back_from(nights: OverlaidNights, old_pointer: bool) -> None:
    before, after, version = rolled_back(nights)
    if old_pointer:
        nights.store.write_json(retags.POINTER, {"retag": after["retag"], "sequence": 9})
    value = restored(nights, before["snapshot"])
    assert (value["retag"], value["distrusted"]) == (None, [version])
    assert value["snapshot"] != before["snapshot"]
    assert nights.states() == {"a": ("pending", "梨"), "b": ("live", "梨"), "c": ("pending", None)}
    # It stays so.
    assert publish.refresh(nights.store, nights.settings(release="live")) is None
    assert nights.publish()["snapshot"] == value["snapshot"]
    # And forth: that retag says so itself.
    assert restored(nights, after["snapshot"])["snapshot"] == after["snapshot"]
    assert restored(nights, before["snapshot"])["snapshot"] == value["snapshot"]


def test_a_version_is_trusted_again_when_the_next_retag_says_so(nights: OverlaidNights) -> None:
    before, _, _ = rolled_back(nights)
    restored(nights, before["snapshot"])
    nights.retag(2, [{"汁": auto("果汁", 0.5)}], version="78")
    assert nights.publish()["distrusted"] is None
    assert nights.states() == {"a": ("live", "错"), "b": ("live", "梨"), "c": ("live", "果汁")}


def test_going_back_to_a_versions_own_retag_trusts_it(nights: OverlaidNights) -> None:
    one_night(nights)
    made = nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    first = nights.publish()
    nights.retag(1, [{"苹果": auto("梨", 0.5)}], [made.model_sha256], version="78")
    nights.publish()
    assert restored(nights, first["snapshot"])["snapshot"] == first["snapshot"]
    assert retags.standing(nights.store) == (made, ())


def test_a_snapshot_that_is_not_whole_is_not_gone_back_to(nights: OverlaidNights) -> None:
    one_night(nights)
    first = nights.publish()
    nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    second = nights.publish()
    for key in (first["parts"][0], published.kept_key(first["snapshot"])):
        data = nights.store.read_bytes(key)
        nights.store.delete(key)
        with pytest.raises(WwtsError, match="no snapshot"):
            restored(nights, first["snapshot"])
        nights.store.write_bytes(key, data)
    with pytest.raises(WwtsError, match="wwts tags snapshots"):
        restored(nights, "s000001-000000000000")
    assert nights.rows()["a"]["snapshot"] == second["snapshot"]


def test_a_snapshot_of_before_there_were_retags_can_be_gone_back_to(nights: OverlaidNights) -> None:
    one_night(nights)
    first = nights.publish()
    # As this was written before: a pointer that says less, and no file beside the part.
    old = ("snapshot", "parts", "rows", "live", "pending", "release", "model_name", "model_version")
    old += ("taxonomy_version", "published_at")
    nights.store.write_json(publish.POINTER, {**{name: first[name] for name in old}, "sequence": 1})
    nights.store.delete(published.kept_key(first["snapshot"]))
    assert nights.publish()["snapshot"] == first["snapshot"], "the same name as then"
    nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    assert publish.refresh(nights.store, nights.settings(release="live")) is not None
    assert restored(nights, first["snapshot"])["snapshot"] == first["snapshot"]


# ------------------------------------------------------------------ the command


def test_the_command(nights: OverlaidNights) -> None:
    one_night(nights)
    first = nights.publish()
    nights.retag(1, [{"苹果": auto("苹果", 0.5)}])
    second = nights.publish()
    listed = wwts(nights.root, "tags", "snapshots").out
    lines = [line for line in listed.splitlines() if re.search(r"s000001-\w{12}", line)]
    assert [first["snapshot"] in lines[0], second["snapshot"] in lines[1]] == [True, True]
    assert ["→" in line for line in lines] == [False, True]
    assert "r000000000077" in lines[1]
    done = wwts(nights.root, "tags", "restore", first["snapshot"])
    assert (done.code, done.out.splitlines()[-1]) == (0, f"Consumers read {first['snapshot']} again.")
    assert nights.states()["a"] == ("live", "梨")
    nights.answer("correct", "苹果", "shop:juice")
    done = wwts(nights.root, "tags", "restore", second["snapshot"])
    assert f"what the model said in {second['snapshot']}" in done.out
    assert nights.states()["a"] == ("live", "葡萄汁")
    refused = wwts(nights.root, "tags", "restore", "s0")
    assert (refused.code, "There is no snapshot s0" in refused.err) == (2, True)
