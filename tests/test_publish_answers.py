"""What people said is what consumers read: at once, of every copy, for good, whoever publishes and whoever dies."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import overlaid_nights
import pytest
from conftest import free_ports
from forkserver import CONTEXT
from overlaid_nights import ANSWERED_AT, EMPTY, OverlaidNights, Scene, expected, sha
from written_nights import Outcome, auto, forced, review

from wwts_ops import corrections, database, overlays, publish, published, taxonomy
from wwts_ops.corrections import Answer
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.planning import Plan
from wwts_ops.review import queue
from wwts_ops.taxonomy import Label, Taxonomy

NAMES = Taxonomy(
    "new",
    (
        Label("shop:juice", "葡萄汁", category_path="饮料 > 果汁"),
        Label("shop:wine", "红酒", category_path="饮料 > 酒类", forced_review=True),
        Label("shop:other", "杂物"),
    ),
)


@pytest.fixture
def nights(clean_environment: None, tmp_path: Path) -> OverlaidNights:
    made = OverlaidNights(tmp_path, tmp_path / "store")
    taxonomy.put(made.store, NAMES, "小王", None)
    return made


def one_night(nights: OverlaidNights, etag: str = "1") -> Plan:
    """A night of copies: ``b`` is the content of ``a``; the model is sure of neither ``c`` nor ``d``."""
    outcomes: dict[str, tuple[str, Outcome]] = {
        "a": ("苹果", auto("梨", 0.75)),
        "b": ("苹果", auto("梨", 0.75)),
        "c": ("汁", review("红酒", 0.25)),
        "d": ("枪", forced("步枪", 0.75)),
    }
    return nights.tagged(dict.fromkeys("abcd", etag), outcomes)


# ------------------------------------------------------------------ one answer


def test_an_answer_is_what_every_copy_says(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.publish()
    before = nights.rows()
    nights.answer("correct", "苹果", "shop:juice", "shop:wine")
    pointer = nights.publish()
    names = taxonomy.current(nights.store)
    assert names is not None
    found = nights.rows()
    for name in "ab":
        assert found[name] == {
            **before[name],
            "tags": [
                {"label_id": "shop:juice", "label_zh": "葡萄汁", "score": 1.0},
                {"label_id": "shop:wine", "label_zh": "红酒", "score": 1.0},
            ],
            "label_id": "shop:juice",
            "label_zh": "葡萄汁",
            "confidence": 1.0,
            "category_path": "饮料 > 果汁",
            "decision": "human",
            "decision_reason": "correct",
            "source": "correction",
            "model_name": None,
            "model_version": None,
            "model_sha256": None,
            "backbone_sha256": None,
            "git_sha": None,
            "taxonomy_version": names.version,
            "tagged_at": ANSWERED_AT.replace(minute=1),
            "state": "live",
            "snapshot": pointer["snapshot"],
        }
    assert {name: found[name] for name in "cd"} == {
        name: {**before[name], "snapshot": pointer["snapshot"]} for name in "cd"
    }
    counted = {name: pointer[name] for name in ("rows", "live", "pending", "answered", "answers", "model_versions")}
    assert counted == {"rows": 4, "live": 2, "pending": 2, "answered": 2, "answers": 1, "model_versions": {"1": 2}}
    assert (pointer["taxonomy_version"], pointer["answers_taxonomy_version"]) == ("t000001", names.version)


def test_a_confirmed_tag_goes_live(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("confirm", "汁", "shop:wine")
    nights.answer("confirm", "枪", "gun:1")
    nights.publish()
    # A label that the taxonomy does not list goes by its id; that a person must see wine is done with.
    assert nights.states() == {
        "a": ("live", "梨"),
        "b": ("live", "梨"),
        "c": ("live", "红酒"),
        "d": ("live", "gun:1"),
    }
    row = nights.rows()["d"]
    assert (row["label_id"], row["category_path"], row["decision_reason"]) == ("gun:1", None, "confirm")


def test_in_shadow_an_answer_is_shown_and_not_live(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("correct", "苹果", "shop:juice")
    pointer = nights.publish("shadow")
    assert nights.states() == {
        "a": ("pending", "葡萄汁"),
        "b": ("pending", "葡萄汁"),
        "c": ("pending", None),
        "d": ("pending", None),
    }
    assert (pointer["live"], pointer["answered"]) == (0, 2)


def test_wrong_and_nobody_knows_what_is_right(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("wrong_unknown", "苹果")
    nights.publish()
    row = nights.rows()["a"]
    assert [row[name] for name in EMPTY] == [None] * 5
    told = [row[name] for name in ("decision", "decision_reason", "state", "source", "model_version")]
    assert told == ["review", "wrong_unknown", "pending", "correction", None]


def test_a_rejected_image_leaves(nights: OverlaidNights) -> None:
    one_night(nights)
    number = nights.answer("reject_image", "苹果")
    assert nights.publish()["rows"] == 2
    assert set(nights.rows()) == set("cd")
    nights.answer("retract", "苹果", retracts=number)
    nights.publish()
    assert nights.states()["a"] == ("live", "梨")


def test_a_retract_brings_back_what_was_said_before(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("correct", "苹果", "shop:juice")
    second = nights.answer("correct", "苹果", "shop:wine")
    nights.publish()
    assert nights.states()["a"] == ("live", "红酒")
    nights.answer("retract", "苹果", retracts=second)
    nights.publish()
    assert nights.states()["a"] == ("live", "葡萄汁")
    nights.answer("retract", "苹果", retracts=1)
    nights.publish()
    assert nights.states()["a"] == ("live", "梨")


def test_weak_labels_override_nothing(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.publish()
    before = nights.rows()
    nights.answer("confirm", "苹果", "shop:wine", weak=True)
    pointer = nights.publish()
    assert nights.rows() == {name: {**row, "snapshot": pointer["snapshot"]} for name, row in before.items()}


def test_new_bytes_do_not_bring_back_what_a_person_took_back(nights: OverlaidNights) -> None:
    """The model called the old bytes a pear and is not sure of the new ones: the last live tag is the person's."""
    one_night(nights)
    nights.answer("correct", "苹果", "shop:juice")
    nights.tagged(dict.fromkeys("abcd", "2"), {name: (f"新{name}", review("瓶", 0.25)) for name in "abcd"})
    nights.publish()
    assert nights.states() == {
        "a": ("pending", "葡萄汁"),
        "b": ("pending", "葡萄汁"),
        "c": ("pending", None),
        "d": ("pending", None),
    }
    nights.answer("wrong_unknown", "苹果")
    nights.publish()
    assert nights.states()["a"] == ("pending", None)


def test_the_night_does_not_overwrite_an_answer(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("correct", "苹果", "shop:juice")
    one_night(nights, "2")
    nights.publish()
    assert nights.states()["a"] == ("live", "葡萄汁")


def test_a_new_name_reaches_the_answers(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("correct", "苹果", "shop:juice")
    nights.publish()
    taxonomy.edit(nights.store, "小王", {"shop:juice": Label("shop:juice", "纯葡萄汁")})
    assert publish.refresh(nights.store, nights.settings()) is not None
    assert nights.states()["a"] == ("live", "纯葡萄汁")


# ------------------------------------------------------------------ many answers


@pytest.mark.parametrize(("seed", "release"), [(1, "live"), (2, "live"), (3, "shadow")])
def test_against_the_life_of_every_image(nights: OverlaidNights, seed: int, release: str) -> None:
    history(nights, seed)
    answers = random_answers(seed)
    nights.answer_all(answers)
    pointer = nights.publish(release)
    table = [{**vars(one), "number": number} for number, one in enumerate(answers, 1)]
    names = taxonomy.current(nights.store)
    wanted = expected(Scene(nights.acts, table, names=names, release=release))
    found = {name: without(row, "snapshot") for name, row in nights.rows().items()}
    assert found == wanted
    kinds = {row["decision_reason"] for row in wanted.values()}
    assert kinds >= {"confirm", "correct", "wrong_unknown"}, "the scene is too tame"
    check_counts(pointer, wanted)


def history(nights: OverlaidNights, seed: int, count: int = 300) -> None:
    """Five nights of ``count`` images, of few contents: tagged, unreadable, not to be reached, delisted, back again."""
    rng = random.Random(seed)
    etags = {f"i{number:03d}": 0 for number in range(count)}
    for _ in range(5):
        listed = {name: str(etag) for name, etag in etags.items() if rng.random() > 0.1}
        outcomes = {name: (f"c{rng.randrange(count // 2)}", random_outcome(rng)) for name in etags}
        nights.tagged(listed, outcomes)
        etags = {name: etag + (rng.random() < 0.6) for name, etag in etags.items()}


def random_outcome(rng: random.Random) -> Outcome:
    label = rng.choice(["梨", "瓶", "红酒", "书"])
    choices: list[Outcome] = [auto(label, 0.75), auto(label, 0.5), review(label, 0.25), forced(label, 0.75)]
    return rng.choice([*choices, *choices, "truncated", min(TRANSIENT_REASONS)])


def random_answers(seed: int, contents: int = 150, count: int = 120) -> list[Answer]:
    """All kinds, several of one content, retracts of the first, the last and of what was taken back before."""
    rng = random.Random(seed)
    made: list[Answer] = []
    for number in range(1, count + 1):
        kind = rng.choice(["confirm", "correct", "wrong_unknown", "reject_image", "retract"])
        earlier = [one for one in made if one.kind != "retract"]
        taken = rng.choice(earlier) if kind == "retract" and earlier else None
        kind = "correct" if kind == "retract" and taken is None else kind
        labels = rng.sample(["shop:juice", "shop:wine", "shop:other", "unlisted:1"], rng.randint(1, 3))
        one = Answer(
            answer_id=f"random-{number}",
            answered_at=ANSWERED_AT.replace(microsecond=number),
            answered_by="小李",
            content_sha256=taken.content_sha256 if taken else sha(f"c{rng.randrange(contents)}"),
            kind=kind,
            source="import",
            shown_because="import",
            labels=tuple(labels) if kind in ("confirm", "correct") else (),
            weak=kind in ("confirm", "correct") and rng.random() < 0.2,
            retracts=made.index(taken) + 1 if taken else None,
        )
        made.append(one)
    return made


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def check_counts(pointer: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> None:
    """What the pointer counts is what the rows say."""
    live = sum(row["state"] == "live" for row in wanted.values())
    answered = sum(row["decision_reason"] in ("confirm", "correct", "wrong_unknown") for row in wanted.values())
    assert (pointer["rows"], pointer["live"], pointer["answered"]) == (len(wanted), live, answered)
    versions = [row["model_version"] for row in wanted.values() if row["model_version"] is not None]
    assert pointer["model_versions"] == {version: versions.count(version) for version in set(versions)}


# ------------------------------------------------------------------ the database


def test_without_a_database_there_are_no_answers_and_none_is_made(nights: OverlaidNights) -> None:
    one_night(nights)
    pointer = nights.publish()
    assert publish.refresh(nights.store, nights.settings()) is None
    assert publish.announce(nights.store, nights.settings()) is None
    assert publish.is_current(nights.store, nights.settings())
    assert (pointer["answers"], pointer["answered"], pointer["answers_taxonomy_version"]) == (0, 0, None)
    assert not database.exists(nights.settings())


def test_no_snapshot_without_the_answers_of_a_database_that_is_away(nights: OverlaidNights) -> None:
    plan = one_night(nights)
    (port,) = free_ports(1)
    away = nights.settings(release="live", database_url=f"postgresql://wwts:geheim@127.0.0.1:{port}/wwts")
    calls = (
        lambda: publish.publish(nights.store, away),
        lambda: publish.is_current(nights.store, away),
        lambda: queue.route(nights.store, away, plan),
    )
    for call in calls:
        with pytest.raises(UnavailableError, match="does not answer") as caught:
            call()
        assert "geheim" not in str(caught.value)
    assert nights.store.list("published") == []


def test_a_lost_database_takes_nothing_from_consumers(nights: OverlaidNights) -> None:
    one_night(nights)
    nights.answer("correct", "苹果", "shop:juice")
    nights.publish()
    before = nights.rows()
    shutil.rmtree(nights.settings().state_dir)
    one_night(nights, "2")
    with pytest.raises(WwtsError, match="up to number 1, and the database only up to 0"):
        nights.publish()
    with pytest.raises(WwtsError, match="restore the database"):
        publish.refresh(nights.store, nights.settings(release="live"))
    assert nights.rows() == before
    # Who means it says so.
    nights.store.delete(publish.POINTER)
    nights.publish()
    assert nights.states()["a"] == ("live", "梨")


# ------------------------------------------------------------------ what is new, and for whom


def test_only_what_is_new_is_published(nights: OverlaidNights) -> None:
    given = nights.settings(release="live")
    assert publish.refresh(nights.store, given) is None
    one_night(nights)
    nights.answer("correct", "苹果", "shop:juice")
    assert publish.refresh(nights.store, given) is None, "the first snapshot is the night's"
    nights.publish()
    assert publish.refresh(nights.store, given) is None
    nights.answer("correct", "汁", "shop:juice")
    assert not publish.is_current(nights.store, given)
    pointer = publish.refresh(nights.store, given)
    assert pointer is not None
    assert (pointer["answers"], nights.states()["c"]) == (2, ("live", "葡萄汁"))
    assert publish.is_current(nights.store, given)


def test_a_training_hears_of_the_same_answers_once(nights: OverlaidNights) -> None:
    given = nights.settings(retrain_answers=3)
    for content in ("一", "二"):
        nights.answer("correct", content, "shop:juice")
    nights.answer("confirm", "三", "shop:juice", weak=True)
    assert publish.announce(nights.store, given) is None, "a weak label is no answer"
    nights.answer("correct", "二", "shop:wine")
    assert publish.announce(nights.store, given) is None, "the second answer of a content makes no third"
    upto = nights.answer("wrong_unknown", "四")
    told = {"new": 3, "upto": upto}
    # Until it is noted: who was killed before that tells it again.
    assert [publish.announce(nights.store, given) for _ in range(2)] == [told, told]
    publish.announced(nights.store, upto)
    publish.announced(nights.store, upto)
    assert publish.announce(nights.store, given) is None
    assert nights.store.read_json(publish.TRAININGS) == {"answers": 0, "announced": upto, "sequence": 1}
    for content in ("五", "六", "七"):
        nights.answer("correct", content, "shop:juice")
    assert publish.announce(nights.store, given) == {"new": 3, "upto": upto + 3}


def test_answers_that_a_training_used_are_not_new(nights: OverlaidNights) -> None:
    given = nights.settings(retrain_answers=2)
    for content in ("一", "二"):
        nights.answer("correct", content, "shop:juice")
    nights.store.replace_pointer(publish.TRAININGS, {"answers": 2, "announced": 0, "training": "x"}, None)
    assert publish.announce(nights.store, given) is None
    nights.answer("correct", "三", "shop:juice")
    assert publish.announce(nights.store, given) is None
    nights.answer("correct", "四", "shop:juice")
    assert publish.announce(nights.store, given) == {"new": 2, "upto": 4}
    publish.announced(nights.store, 4)
    # What the training wrote there stays.
    assert nights.store.read_json(publish.TRAININGS) == {
        "answers": 2,
        "announced": 4,
        "training": "x",
        "sequence": 2,
    }


def test_an_answered_content_is_not_queued_again(nights: OverlaidNights) -> None:
    plan = one_night(nights)
    given = nights.settings()
    assert queue.route(nights.store, given, plan) == 2
    number = nights.answer("confirm", "汁", "shop:wine")
    nights.answer("confirm", "枪", "gun:1", weak=True)
    assert queue.route(nights.store, given, plan) == 1
    nights.answer("wrong_unknown", "枪")
    assert queue.route(nights.store, given, plan) == 0
    nights.answer("retract", "汁", retracts=number)
    assert queue.route(nights.store, given, plan) == 1
    table = nights.store.read_table(queue.queue_key(plan))
    assert table["image_id"].to_pylist() == ["c"]


# ------------------------------------------------------------------ killed, and at once


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_anywhere_and_started_again(nights: OverlaidNights, moment: str, tmp_path: Path) -> None:
    one_night(nights)
    nights.publish()
    nights.answer("correct", "苹果", "shop:juice")
    undisturbed = copied(nights, tmp_path / "whole").publish()
    (part,) = undisturbed["parts"]
    died = 0
    for at in range(1, 20):
        one = copied(nights, tmp_path / f"killed-{at}")
        process = CONTEXT.Process(target=overlaid_nights.publish_dying, args=(str(one.root), at, moment))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        died += 1
        assert one.states()["a"][1] in {"梨", "葡萄汁"}, "consumers read a whole snapshot"
        assert one.publish()["snapshot"] == undisturbed["snapshot"]
        assert one.store.read_bytes(part) == (tmp_path / "whole" / part).read_bytes()
        kept = one.store.read_json(published.kept_key(undisturbed["snapshot"]))
        assert without(kept, "published_at") == without(undisturbed, "published_at")
    # Part, _snapshot.json and pointer: each is written, renamed, and its folder written.
    assert died == 9


def copied(nights: OverlaidNights, root: Path) -> OverlaidNights:
    """The same shop in another place."""
    shutil.copytree(nights.root, root)
    shutil.copytree(nights.settings().state_dir, f"{root}.state")
    return OverlaidNights(nights.folder, root)


@pytest.fixture
def publishers(nights: OverlaidNights) -> Iterator[list[BaseProcess]]:
    """Two processes that publish all the time."""
    both = [CONTEXT.Process(target=overlaid_nights.publish_for_ever, args=(str(nights.root),)) for _ in range(2)]
    for process in both:
        process.start()
    yield both
    for process in both:
        process.kill()
        process.join()


def test_what_was_live_stays_while_others_publish(nights: OverlaidNights, publishers: list[BaseProcess]) -> None:
    """Each answer is live once a publish that began after it has ended, and in all that anybody publishes then."""
    names = [f"i{number}" for number in range(8)]
    nights.tagged(dict.fromkeys(names, "1"), {name: (name, review("瓶", 0.25)) for name in names})
    live: set[str] = set()
    for name in names:
        nights.answer("correct", name, "shop:juice")
        while True:
            try:
                nights.publish()
                break
            except UnavailableError:
                continue
        live.add(name)
        for _ in range(3):
            found = {image for image, state in nights.states().items() if state == ("live", "葡萄汁")}
            assert found >= live
    assert all(process.is_alive() for process in publishers), "a publisher failed"


def test_an_answer_that_comes_while_a_publish_runs_is_in_the_next(
    nights: OverlaidNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_night(nights)
    lay = overlays.lay

    def slow(*given: Any) -> None:
        monkeypatch.setattr(overlays, "lay", lay)
        nights.answer("correct", "苹果", "shop:juice")
        lay(*given)

    monkeypatch.setattr(overlays, "lay", slow)
    assert nights.publish()["answers"] == 0
    assert nights.states()["a"] == ("live", "梨")
    pointer = publish.refresh(nights.store, nights.settings(release="live"))
    assert pointer is not None
    assert nights.states()["a"] == ("live", "葡萄汁")


def test_the_same_answers_are_the_same_bytes(nights: OverlaidNights) -> None:
    history(nights, 4, 60)
    nights.answer_all(random_answers(4, 30, 40))
    first = nights.publish()
    data = nights.store.read_bytes(first["parts"][0])
    for key in (first["parts"][0], publish.POINTER):
        nights.store.delete(key)
    again = nights.publish()
    assert (again["snapshot"], nights.store.read_bytes(again["parts"][0])) == (first["snapshot"], data)
    # In force are answers, not numbers alone: the table is read up to the number that the name was made of.
    table = corrections.frozen(nights.settings(), again["answers"])
    assert table["number"].to_pylist() == list(range(1, 41))


def test_one_more_answer_is_another_snapshot(nights: OverlaidNights) -> None:
    one_night(nights)
    names = [nights.publish()["snapshot"]]
    for label in ("shop:juice", "shop:juice"):
        nights.answer("correct", "苹果", label)
        names.append(nights.publish()["snapshot"])
    assert len(set(names)) == 3
    assert [one["snapshot"] for one in published.snapshots(nights.store)] == names
