"""Answers of the page, the same on SQLite and on a real PostgreSQL: recorded once, by one person, all or nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from database_server import DatabaseServer
from environment import plain
from forkserver import CONTEXT
from review_table import ANNA, BEER, LI, NAMES, OFF, WINE, ZHANG, Table, accepted, act, content, sibling

from wwts_ops import corrections as answers_module
from wwts_ops import database
from wwts_ops import settings as settings_module
from wwts_ops.corrections import Answer
from wwts_ops.database import corrections, label_proposals, review_items, review_marks, review_opinions
from wwts_ops.errors import WwtsError
from wwts_ops.review import answering
from wwts_ops.review.answering import Action, Proposal
from wwts_ops.settings import Settings
from wwts_ops.taxonomy import Label, Taxonomy


def imported(of: str, label: str, now: datetime) -> Answer:
    return Answer(
        answer_id="import-1", answered_at=now, answered_by="老王", content_sha256=of,
        kind="correct", labels=(label,), source="import", shown_because="import",
    )  # fmt: skip


@pytest.fixture
def table(database_url: str, make_settings: Callable[..., Settings]) -> Table:
    settings = make_settings(database_url=database_url)
    database.upgrade(settings)
    return Table(settings)


@pytest.fixture
def local(make_settings: Callable[..., Settings]) -> Table:
    """On SQLite only, for what no database does differently."""
    settings = make_settings()
    database.upgrade(settings)
    return Table(settings)


#: The labels after wine was merged into beer, and liquor mapped to it.
LIQUOR = "shop:白酒"
MERGED = Taxonomy(
    "t000002-abc",
    (
        Label(BEER, "啤酒", category_path="饮料 > 酒类"),
        Label(WINE, "红酒🍷", category_path="饮料 > 酒类", enabled=False, maps_to=BEER),
        Label(LIQUOR, "白酒", category_path="饮料 > 酒类", maps_to=BEER),
        Label(OFF, "停售的酒", enabled=False),
    ),
)


class TestMergedLabels:
    """A page that was opened before a merge still offers the old label, and so does the night that tagged."""

    def say(self, table: Table, *actions: Action, by: str = LI) -> list[str]:
        return [result.status for result in answering.answer(table.settings, MERGED, by, actions)]

    @pytest.mark.parametrize(
        ("kind", "labels", "recorded"),
        [
            ("confirm", (), "confirm"),
            ("confirm", (WINE,), "confirm"),
            ("confirm", (BEER,), "confirm"),
            ("correct", (WINE,), "confirm"),
            ("correct", (LIQUOR,), "confirm"),
            ("correct", (WINE, LIQUOR, BEER), "confirm"),
        ],
    )
    def test_what_is_recorded_is_the_label_that_is_given(
        self, local: Table, kind: str, labels: tuple[str, ...], recorded: str
    ) -> None:
        one = local.put("一")
        assert self.say(local, act(one, kind, labels=labels)) == ["saved"]
        assert local.answers() == [(LI, recorded, (BEER,))]
        assert local.rows(corrections)[0]["labels_before"] == [WINE, BEER]

    def test_what_stands_beside_gets_it_too(self, local: Table) -> None:
        one = local.put("一", siblings=[sibling("二", label_id=LIQUOR)])
        assert self.say(local, act(one, "correct", labels=(WINE,), also=(content("二"),))) == ["saved"]
        assert local.answers(content("二")) == [(LI, "confirm", (BEER,))]

    @pytest.mark.parametrize("labels", [(OFF,), ("shop:nothing",), (WINE, WINE)])
    def test_what_is_off_unknown_or_said_twice_is_refused_as_ever(self, local: Table, labels: tuple[str, ...]) -> None:
        assert self.say(local, act(local.put("一"), "correct", labels=labels)) == ["refused"]
        assert local.answers() == []

    def test_two_who_agree_with_a_merge_between_them_agree(self, local: Table) -> None:
        one = local.put("一", needed=2)
        assert local.status(LI, act(one, "correct", labels=(WINE,))) == ["held"]
        assert self.say(local, act(one, "correct", 2, labels=(BEER,)), by=ZHANG) == ["saved"]
        assert local.state(one) == "done"


class TestOneAnswer:
    def test_a_confirmation_is_recorded_with_all_that_was_shown(self, table: Table) -> None:
        one = table.put("一", shown_because="audit", sampling_probability=0.02)
        action = act(one, comment="  瓶身反光\n但看得清  ")
        (result,) = table.say(LI, action)
        assert (result.answer_id, result.content, result.status, result.by) == (action.answer_id, one, "saved", None)
        (row,) = table.rows(corrections)
        assert {name: row[name] for name in ("answer_id", "answered_by", "image_id", "content_sha256", "kind")} == {
            "answer_id": action.answer_id,
            "answered_by": LI,
            "image_id": "图-一",
            "content_sha256": one,
            "kind": "confirm",
        }
        assert (row["labels"], row["labels_before"]) == ([WINE], [WINE, BEER])
        assert (row["source"], row["shown_because"], row["sampling_probability"]) == ("page", "audit", 0.02)
        assert (row["model_version"], row["confidence"], row["comment"]) == ("7", 0.5, "瓶身反光\n但看得清")
        item = table.item(one)
        assert (item.state, item.revision, item.leased_by) == ("done", 2, None)

    @pytest.mark.parametrize(
        ("kind", "labels", "recorded", "right"),
        [
            ("confirm", (WINE,), "confirm", (WINE,)),
            ("correct", (WINE,), "confirm", (WINE,)),
            ("correct", (BEER,), "correct", (BEER,)),
            ("correct", (WINE, BEER), "correct", (WINE, BEER)),
            ("wrong_unknown", (), "wrong_unknown", ()),
            ("reject_image", (), "reject_image", ()),
        ],
    )
    def test_what_kind_is_recorded(self, local: Table, kind: str, labels: Any, recorded: str, right: Any) -> None:
        one = local.put("一")
        assert local.status(LI, act(one, kind, labels=labels)) == ["saved"]
        assert local.answers() == [(LI, recorded, right)]
        assert local.state(one) == "done"

    def test_a_rejected_picture_has_its_reason(self, local: Table) -> None:
        local.say(LI, act(local.put("一"), "reject_image", reason="corrupt"))
        assert [row["reason"] for row in local.rows(corrections)] == ["corrupt"]

    def test_what_is_wrong_may_be_labelled_later_by_anybody(self, local: Table) -> None:
        one = local.put("一")
        assert local.status(LI, act(one, "wrong_unknown", later=True)) == ["saved"]
        assert (local.state(one), local.item(one).revision) == ("later", 2)
        assert local.status(ZHANG, act(one, "correct", revision=2)) == ["saved"]
        assert local.state(one) == "done"
        assert local.answers() == [(LI, "wrong_unknown", ()), (ZHANG, "correct", (BEER,))]

    def test_a_missing_label_is_proposed(self, local: Table) -> None:
        one = local.put("一")
        action = act(one, "correct", labels=(), proposal=Proposal(" 起泡酒🥂 ", "饮料＞酒类", "香槟|汽酒", "sparkling"))
        assert local.status(LI, action) == ["saved"]
        assert local.answers() == [(LI, "wrong_unknown", ())]
        (row,) = local.proposals()
        wanted = ("label_zh", "category_path", "synonyms_zh", "label_en", "content_sha256", "person", "state")
        assert [row[name] for name in wanted] == [
            "起泡酒🥂", "饮料 > 酒类", "香槟|汽酒", "sparkling", one, LI, "open",
        ]  # fmt: skip
        assert row["answer_id"] == action.answer_id

    def test_a_bad_case_is_marked(self, local: Table) -> None:
        both = [
            act(local.put("一"), "correct", badcase=True, comment="看错了"),
            act(local.put("二"), never_regress=True),
        ]
        assert local.status(LI, *both) == ["saved", "saved"]
        marks = {row["answer_id"]: row for row in local.marks()}
        first, second = (marks[action.answer_id] for action in both)
        assert (first["labels"], first["never_regress"], first["comment"]) == ([BEER], False, "看错了")
        assert (first["image_id"], first["person"], first["done_at"]) == ("图-一", LI, None)
        assert (second["labels"], second["never_regress"]) == ([WINE], True)

    def test_it_takes_no_more_than_200_at_once(self, local: Table) -> None:
        one = local.put("一")
        with pytest.raises(WwtsError, match="200"):
            local.say(LI, *(act(one) for _ in range(201)))
        assert local.say(LI) == []


class TestRefused:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"answer_id": "short"}, "编号"),
            ({"answer_id": "with:colon-and-more"}, "编号"),
            ({"kind": "retract"}, "答案"),
            ({"kind": "correct", "labels": ()}, "选一个标签"),
            ({"kind": "correct", "labels": ("shop:没有",)}, "没有这个标签"),
            ({"kind": "correct", "labels": (OFF,)}, "“停售的酒”已停用"),
            ({"kind": "correct", "labels": (BEER, BEER)}, "两次"),
            ({"kind": "correct", "labels": tuple(f"x{n}" for n in range(11))}, "最多 10 个"),
            ({"kind": "confirm", "labels": (BEER,)}, "再看一眼"),
            ({"kind": "wrong_unknown", "labels": (BEER,)}, "不能再选标签"),
            ({"kind": "wrong_unknown", "badcase": True}, "坏例"),
            ({"kind": "confirm", "later": True}, "都不对"),
            ({"kind": "confirm", "reason": "corrupt"}, "原因"),
            ({"kind": "reject_image", "reason": "ugly"}, "原因"),
            ({"comment": "字" * 1001}, "1000 个字"),
            ({"comment": "a\x00b"}, "备注"),
            ({"also": ("zz",)}, "编号"),
            ({"also": tuple(content(n) for n in range(101))}, "100 张"),
            ({"also": (content("别人的"),)}, "没有关系"),
            ({"also": (content("一"),)}, "没有关系"),
            ({"proposal": Proposal("  ")}, "名称"),
            ({"proposal": Proposal("酒" * 101)}, "100 个字"),
            ({"proposal": Proposal("酒\n水")}, "字符"),
            ({"proposal": Proposal("酒", "饮料 > > 酒")}, "一级"),
            ({"proposal": Proposal("红酒🍷", "饮料>酒类")}, "已经有"),
        ],
    )
    def test_what_cannot_be_says_why_and_the_others_go_on(
        self, local: Table, values: dict[str, Any], words: str
    ) -> None:
        one, two = local.put("一"), local.put("二")
        bad = act(one, **{"kind": "confirm", **values})
        refused, saved = local.say(LI, bad, act(two))
        assert (refused.status, saved.status) == ("refused", "saved")
        assert words in refused.message
        assert local.state(one) == "open"
        assert [row["content_sha256"] for row in local.rows(corrections)] == [two]
        assert not local.proposals()
        assert not local.marks()

    def test_what_is_no_content_or_no_item(self, local: Table) -> None:
        bad, unknown = local.say(LI, act("../../etc/passwd"), act(content("不在")))
        assert (bad.status, unknown.status) == ("refused", "refused")
        assert "待审" in unknown.message

    def test_nothing_was_shown_that_could_be_confirmed(self, local: Table) -> None:
        one = local.put("一", label_id=None, label_zh=None, tags=[])
        (result,) = local.say(LI, act(one))
        assert (result.status, "选一个" in result.message) == ("refused", True)
        assert local.status(LI, act(one, "correct")) == ["saved"]

    def test_a_label_that_was_switched_off_meanwhile_cannot_be_confirmed(self, local: Table) -> None:
        (result,) = local.say(LI, act(local.put("一", label_id=OFF)))
        assert (result.status, "停用" in result.message) == ("refused", True)

    def test_an_id_of_another_answer_hides_nothing(self, table: Table) -> None:
        one, two = table.put("一"), table.put("二")
        first = act(one)
        table.say(LI, first)
        assert table.status(LI, act(two, answer_id=first.answer_id)) == ["refused"]
        assert table.status(ZHANG, replace(first, content=two)) == ["refused"]
        assert table.state(two) == "open"


class TestTwice:
    def test_an_answer_sent_again_is_recorded_once(self, table: Table) -> None:
        one, two = table.put("一"), table.put("二", near_group="g")
        near = table.put("像二", near_group="g")
        sent = [act(one, badcase=True), act(two, "correct", also=(near,)), act(two, answer_id="wish-0001")]
        sent[2] = replace(sent[2], content=table.put("三"), kind="wrong_unknown", proposal=Proposal("起泡酒"))
        assert table.status(LI, *sent) == ["saved"] * 3
        before = [table.rows(of) for of in (corrections, review_items, review_marks, label_proposals)]
        assert table.status(LI, *sent) == ["already"] * 3
        assert [table.rows(of) for of in (corrections, review_items, review_marks, label_proposals)] == before

    def test_twice_in_one_request(self, table: Table) -> None:
        action = act(table.put("一"))
        assert table.status(LI, action, action) == ["saved", "already"]
        assert len(table.rows(corrections)) == 1

    def test_it_stays_taken_back_when_it_is_sent_again(self, table: Table) -> None:
        one = table.put("一")
        action = act(one)
        table.say(LI, action)
        table.undo(LI, action)
        assert table.status(LI, action) == ["already"]
        assert (table.state(one), table.answers()) == ("open", [])


class TestTwoPeople:
    def test_one_is_saved_and_the_other_is_told_politely(self, table: Table) -> None:
        one = table.put("一")
        assert table.status(LI, act(one, "correct")) == ["saved"]
        (late,) = table.say(ZHANG, act(one))
        assert (late.status, late.by) == ("conflict", LI)
        assert late.message == "小李 刚刚已经把这张图片改为“啤酒”，您这次的没有记录，谢谢！"
        assert table.answers() == [(LI, "correct", (BEER,))]

    @pytest.mark.parametrize("kind", ["wrong_unknown", "reject_image"])
    def test_they_are_told_of_every_kind(self, local: Table, kind: str) -> None:
        one = local.put("一")
        local.say(LI, act(one, kind))
        (late,) = local.say(ZHANG, act(one))
        assert {"wrong_unknown": "都不对", "reject_image": "图片有问题"}[kind] in late.message

    def test_who_is_late_may_be_the_same_person_in_another_window(self, local: Table) -> None:
        one = local.put("一")
        local.say(LI, act(one))
        (late,) = local.say(LI, act(one, "correct"))
        assert (late.status, late.by) == ("conflict", LI)
        assert "先撤销" in late.message

    def test_an_item_that_changed_since_it_was_shown(self, local: Table) -> None:
        one = local.put("一", revision=3)
        (late,) = local.say(LI, act(one, revision=2))
        assert (late.status, late.by) == ("conflict", None)
        assert "再看一眼" in late.message
        assert local.status(LI, act(one, revision=None)) == ["saved"]

    def test_a_conflict_does_not_hinder_the_others(self, table: Table) -> None:
        contents = table.put_all(range(4))
        table.say(ZHANG, act(contents[1]))
        results = table.status(LI, *(act(one, "correct") for one in contents))
        assert results == ["saved", "conflict", "saved", "saved"]
        assert [table.answers(one) for one in contents[:2]] == [
            [(LI, "correct", (BEER,))],
            [(ZHANG, "confirm", (WINE,))],
        ]

    def test_an_answer_from_elsewhere_counts_too(self, table: Table) -> None:
        """`wwts corrections import` writes while the page is open."""
        one = table.put("一")
        answered_at = table.rows(corrections) or None
        assert answered_at is None
        with database.reading(table.settings) as connection:
            now = database.now(connection)
        answers_module.record(table.settings, [imported(one, BEER, now)])
        (late,) = table.say(LI, act(one))
        assert (late.status, late.by) == ("conflict", "老王")

    def test_many_at_the_same_moment(self, table: Table) -> None:
        """Eight people in processes of their own answer the same twelve images: each is answered once."""
        contents = table.put_all(range(12))
        people = [f"人{number}" for number in range(4)]
        with ProcessPoolExecutor(4, mp_context=CONTEXT) as pool:
            found = list(pool.map(_race, [(dict_of(table.settings), person, contents) for person in people]))
        outcomes = [outcome for person in found for outcome in person]
        assert sorted(outcomes) == ["conflict"] * 36 + ["saved"] * 12
        assert sorted(row["content_sha256"] for row in table.rows(corrections)) == sorted(contents)
        assert {table.item(one).revision for one in contents} == {2}
        numbers = [row["number"] for row in table.rows(corrections)]
        assert numbers == list(range(1, 13))


def dict_of(settings: Settings) -> dict[str, str]:
    return {"store": settings.store, "database_url": settings.database_url}


def _race(given: tuple[dict[str, str], str, list[str]]) -> list[str]:
    where, person, contents = given
    settings = settings_module.load(**where)
    mixed = random.Random(person).sample(contents, len(contents))
    found = []
    for start in range(0, len(mixed), 3):  # several in one transaction, in another order than others have
        actions = [act(one, "correct") for one in mixed[start : start + 3]]
        found += [result.status for result in answering.answer(settings, NAMES, person, actions)]
    return found


class TestAlso:
    def test_what_looks_alike_and_what_is_of_the_sku_gets_the_same(self, table: Table) -> None:
        one = table.put("一", near_group="g", siblings=[sibling("册"), sibling("册2", label_id=WINE)])
        near = table.put("像一", near_group="g", label_id=BEER, shown_because="audit", sampling_probability=0.02)
        also = (near, content("册"), content("册2"))
        action = act(one, "correct", also=also, badcase=True, comment="同款")
        (result,) = table.say(LI, action)
        assert result.status == "saved"
        assert "另外 3 张" in result.message
        rows = {row["content_sha256"]: row for row in table.rows(corrections)}
        assert {of: (row["kind"], row["labels"]) for of, row in rows.items()} == {
            one: ("correct", [BEER]),
            near: ("confirm", [BEER]),  # the model had said so
            content("册"): ("confirm", [BEER]),
            content("册2"): ("correct", [BEER]),
        }
        assert [rows[of]["answer_id"] for of in also] == [f"{action.answer_id}:{of[:16]}" for of in also]
        assert (rows[near]["shown_because"], rows[near]["sampling_probability"]) == ("audit", 0.02)
        shown = rows[content("册")]
        assert (shown["shown_because"], shown["sampling_probability"]) == ("sibling", None)
        assert (shown["image_id"], shown["labels_before"], shown["model_version"]) == ("图-册", [BEER], "7")
        assert table.state(near) == "done"
        assert len(table.marks()) == 1

    def test_what_somebody_answered_is_left_alone(self, table: Table) -> None:
        one = table.put("一", near_group="g", siblings=[sibling("册"), sibling("册2")])
        near = table.put("像一", near_group="g")
        album = table.put("专辑", siblings=[sibling("册")])
        table.say(ZHANG, act(near), act(album, also=(content("册"),)))
        (result,) = table.say(LI, act(one, "correct", also=(near, content("册"), content("册2"))))
        assert "另外 1 张" in result.message
        assert "2 张已经有人答过" in result.message
        assert table.answers(near) == [(ZHANG, "confirm", (WINE,))]
        assert table.answers(content("册")) == [(ZHANG, "correct", (WINE,))]

    def test_what_is_done_without_an_answer_is_not_left_alone(self, table: Table) -> None:
        """A retag was sure of it, or it was delisted and came back; what somebody answered is."""
        one = table.put("一", siblings=[sibling("册"), sibling("册2"), sibling("册3")])
        closed = table.put("册", state="done")
        answered, blind = table.put("册2"), table.put("册3", blind=True)
        table.say(ZHANG, act(answered), act(blind))
        (result,) = table.say(LI, act(one, "correct", also=(closed, answered, blind)))
        assert "另外 1 张" in result.message
        assert "2 张已经有人答过" in result.message
        assert table.answers(closed) == [(LI, "correct", (BEER,))]
        assert (table.state(closed), table.state(answered), table.state(blind)) == ("done", "done", "second")

    def test_what_is_wrong_waits_with_those_that_look_alike(self, local: Table) -> None:
        one, near = local.put("一", near_group="g"), local.put("像一", near_group="g")
        local.say(LI, act(one, "wrong_unknown", later=True, also=(near,)))
        assert (local.state(one), local.state(near)) == ("later", "later")
        local.say(ZHANG, act(one, "correct", revision=2, also=(near,)))
        assert (local.state(one), local.state(near)) == ("done", "done")

    def test_another_group_is_not_alike(self, local: Table) -> None:
        one, other = local.put("一", near_group="g"), local.put("二", near_group="h")
        alone, lonely = local.put("三"), local.put("四")
        assert local.status(LI, act(one, also=(other,)), act(alone, also=(lonely,))) == ["refused", "refused"]
        assert local.answers() == []


class TestShared:
    def test_a_picture_of_many_skus_asks_first(self, table: Table) -> None:
        one = table.put("一", skus=21)
        action = act(one, "correct")
        (result,) = table.say(LI, action)
        assert (result.status, "21 个商品" in result.message) == ("shared", True)
        assert (table.answers(), table.item(one).revision) == ([], 1)
        assert table.status(LI, replace(action, shared_ok=True)) == ["saved"]

    def test_a_picture_of_twenty_does_not(self, local: Table) -> None:
        assert local.status(LI, act(local.put("一", skus=20))) == ["saved"]

    def test_one_that_looks_alike_asks_too(self, local: Table) -> None:
        one, near = local.put("一", near_group="g"), local.put("像一", near_group="g", skus=1234)
        (result,) = local.say(LI, act(one, also=(near,)))
        assert (result.status, "1,234 个商品" in result.message) == ("shared", True)
        assert local.answers() == []
        other = local.put("二", siblings=[sibling("占位", skus=30)])
        assert local.status(LI, act(other, also=(content("占位"),))) == ["shared"]


class TestUndo:
    def test_it_waits_again_for_who_took_it_back(self, table: Table) -> None:
        one = table.put("一")
        action = act(one, "correct", badcase=True)
        table.say(LI, action)
        (result,) = table.undo(LI, action)
        assert (result.status, result.content) == ("saved", one)
        item = table.item(one)
        assert (item.state, item.revision, item.leased_by) == ("open", 3, LI)
        with database.reading(table.settings) as connection:
            assert timedelta(minutes=4) < item.leased_until - database.now(connection) <= timedelta(minutes=5)
        assert table.answers() == []
        last = table.rows(corrections)[-1]
        assert (last["kind"], last["answered_by"], last["retracts"], last["source"]) == ("retract", LI, 1, "page")
        assert [row["outcome"] for row in table.marks()] == ["taken_back"]
        assert table.status(ZHANG, act(one, revision=3)) == ["saved"]

    def test_all_that_came_of_it(self, table: Table) -> None:
        one = table.put("一", near_group="g", siblings=[sibling("册")])
        near = table.put("像一", near_group="g")
        wish = act(one, "wrong_unknown", also=(near, content("册")), proposal=Proposal("起泡酒"))
        other = act(table.put("二"))
        table.say(LI, wish, other)
        (result,) = table.undo(LI, wish)
        assert "另外 2 张" in result.message
        assert table.answers() == [(LI, "confirm", (WINE,))]
        assert (table.state(one), table.state(near)) == ("open", "open")
        assert [(row["state"], row["decided_by"]) for row in table.proposals()] == [("refused", LI)]

    def test_what_came_of_an_accepted_proposal(self, table: Table) -> None:
        one, near = table.put("一", near_group="g"), table.put("像一", near_group="g")
        wish = act(one, "wrong_unknown", also=(near,), proposal=Proposal("起泡酒"))
        table.say(LI, wish)
        accepted(table, wish.answer_id)
        assert [answer[1:] for answer in table.answers()][2:] == [("correct", (BEER,))] * 2
        (result,) = table.undo(LI, wish)
        assert (result.status, result.message) == ("saved", "已撤销，另外 1 张也一并撤销了。")
        assert (table.answers(), table.state(one), table.state(near)) == ([], "open", "open")
        assert table.undo(LI, wish)[0].status == "already"
        # What somebody said since then stays.
        again = act(one, "wrong_unknown", revision=None, proposal=Proposal("气泡酒"))
        table.say(LI, again)
        accepted(table, again.answer_id)
        answers_module.record(table.settings, [imported(one, WINE, datetime.now(UTC))])
        table.undo(LI, again)
        assert (table.answers(), table.state(one)) == ([("老王", "correct", (WINE,))], "done")

    def test_twice_does_no_more_than_once(self, table: Table) -> None:
        action = act(table.put("一"))
        table.say(LI, action)
        assert [result.status for result in table.undo(LI, action, action)] == ["saved", "saved"]
        assert [result.status for result in table.undo(LI, action)] == ["already"]
        assert len(table.rows(corrections)) == 2

    def test_only_ones_own(self, table: Table) -> None:
        one = table.put("一")
        action = act(one)
        table.say(LI, action)
        theirs, unknown = table.undo(ZHANG, action, act(one))
        assert (theirs.status, unknown.status) == ("refused", "refused")
        assert LI in theirs.message
        assert table.state(one) == "done"

    def test_what_somebody_said_since_then_stays(self, table: Table) -> None:
        one = table.put("一")
        first, second = act(one, "wrong_unknown", later=True), act(one, "correct", revision=2)
        table.say(LI, first)
        table.say(ZHANG, second)
        assert [result.status for result in table.undo(LI, first)] == ["saved"]
        assert (table.state(one), table.answers(one)) == ("done", [(ZHANG, "correct", (BEER,))])

    def test_what_waited_for_a_label_waits_for_it_again(self, table: Table) -> None:
        one = table.put("一")
        first, second = act(one, "wrong_unknown", later=True), act(one, "correct", revision=2)
        table.say(LI, first)
        table.say(ZHANG, second)
        table.undo(ZHANG, second)
        assert (table.state(one), table.item(one).leased_by) == ("later", ZHANG)
        table.undo(LI, first)
        assert (table.state(one), table.item(one).leased_by) == ("open", ZHANG)

    def test_several_of_one_image_at_once(self, table: Table) -> None:
        one = table.put("一")
        first, second = act(one, "wrong_unknown", later=True), act(one, "correct", revision=2)
        table.say(LI, first, second)
        assert [result.status for result in table.undo(LI, first, second)] == ["saved", "saved"]
        assert (table.state(one), table.answers()) == ("open", [])

    def test_a_bad_case_that_is_made_already(self, local: Table) -> None:
        action = act(local.put("一"), badcase=True)
        local.say(LI, action)
        with database.transaction(local.settings) as connection:
            made = {"done_at": database.now(connection), "outcome": "added"}
            connection.execute(sa.update(review_marks).values(**made))
        (result,) = local.undo(LI, action)
        assert "坏例" in result.message
        assert [row["outcome"] for row in local.marks()] == ["added"]

    def test_a_name_like_a_pattern_takes_nothing_else_back(self, local: Table) -> None:
        one = local.put("一", siblings=[sibling("册")])
        plain = act(one, answer_id="abcdefgh_1", also=(content("册"),))
        other = act(local.put("二", siblings=[sibling("册2")]), answer_id="abcdefghX1", also=(content("册2"),))
        local.say(LI, plain, other)
        local.undo(LI, plain)
        assert {answer[0] for answer in local.answers()} == {LI}
        assert len(local.answers()) == 2


class TestHistory:
    def test_the_last_ones_first(self, table: Table) -> None:
        one, two = table.put("一", siblings=[sibling("册")]), table.put("二")
        first, second = act(one, also=(content("册"),)), act(two, "reject_image", reason="corrupt", comment="花了")
        table.say(LI, first)
        table.say(ZHANG, second)
        table.undo(ZHANG, second)
        everybody = answering.history(table.settings, None, 10)
        assert [(line["by"], line["answer_id"], line["retracted"]) for line in everybody] == [
            (ZHANG, second.answer_id, True),
            (LI, first.answer_id, False),
        ]
        (mine,) = answering.history(table.settings, LI, 10)
        assert (mine["number"], mine["kind"], mine["labels"], mine["held"]) == (1, "confirm", [WINE], False)
        assert (mine["content"], mine["image_id"]) == (one, "图-一")
        assert everybody[0]["reason"] == "corrupt"
        assert len(answering.history(table.settings, None, 1)) == 1

    def test_before_anybody_answered(self, make_settings: Callable[..., Settings]) -> None:
        settings = make_settings()
        assert answering.history(settings, None, 10) == []
        assert not settings.state_dir.exists()


class TestKilled:
    """`kill -9` of whoever saves: all of a request is there or none of it, and sending it again heals it."""

    def test_at_any_moment(self, table: Table, tmp_path: Path) -> None:
        batches = _batches(table, 40)
        (tmp_path / "batches.json").write_text(json.dumps(batches), encoding="utf-8")
        rng = random.Random(11)
        for _ in range(4):
            acknowledged = _killed(table.settings, tmp_path, after=rng.randint(1, 5), pause=0.03 * rng.random())
            assert acknowledged <= self._check_whole(table, batches)
        for batch in batches:
            table.say(LI, *_actions(batch))
        assert self._check_whole(table, batches) == set(range(len(batches)))

    def test_after_the_answers_before_the_rest(
        self, make_settings: Callable[..., Settings], postgresql: DatabaseServer, tmp_path: Path
    ) -> None:
        """Somebody else holds the table of bad cases, so that it is stopped there until it is killed."""
        table = Table(make_settings(database_url=postgresql.schema()))
        database.upgrade(table.settings)
        batches = _batches(table, 1)
        (tmp_path / "batches.json").write_text(json.dumps(batches), encoding="utf-8")
        with database.transaction(table.settings) as connection:
            connection.execute(sa.text("LOCK TABLE review_marks IN ACCESS EXCLUSIVE MODE"))
            process = _saving(table.settings, tmp_path)
            waits = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'review_marks'::regclass")
            while process.poll() is None and not connection.execute(waits).scalar():
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.communicate(timeout=600)[0] == ""
            assert process.returncode == -signal.SIGKILL
        assert self._check_whole(table, batches) == set()
        assert set(table.status(LI, *_actions(batches[0]))) == {"saved", "held"}
        assert self._check_whole(table, batches) == {0}

    @staticmethod
    def _check_whole(table: Table, batches: list[list[str]]) -> set[int]:
        """Of which batches there is all; fails when there is a part of one, or anything twice."""
        found = {row["answer_id"]: row for row in table.rows(corrections)}
        states = {row["content_sha256"]: row["state"] for row in table.rows(review_items)}
        marked = {row["answer_id"] for row in table.marks()}
        held = {row["answer_id"] for row in table.rows(review_opinions)}
        whole = set()
        for number, batch in enumerate(batches):
            plain, _, near, asked = batch
            ids = [f"a-{plain[:20]}", f"a-{plain[:20]}:{near[:16]}"]
            there = [ids[0] in found, ids[1] in found, f"a-{asked[:20]}" in held, ids[0] in marked]
            there += [states[plain] == "done", states[near] == "done", states[asked] == "second"]
            assert len(set(there)) == 1, (number, there)
            if there[0]:
                whole.add(number)
        assert len(found) == 3 * len(whole)
        return whole


def _batches(table: Table, count: int) -> list[list[str]]:
    numbers = range(count)
    plain, near = ([table.put(f"{name}{number}", near_group=f"g{number}") for number in numbers] for name in "甲丙")
    other = table.put_all(f"乙{number}" for number in numbers)
    asked = table.put_all((f"丁{number}" for number in numbers), needed=2)
    return [list(batch) for batch in zip(plain, other, near, asked, strict=True)]


def _actions(batch: list[str]) -> list[Action]:
    plain, other, near, asked = batch
    first = act(plain, "correct", answer_id=f"a-{plain[:20]}", also=(near,), badcase=True)
    return [first, *(act(one, answer_id=f"a-{one[:20]}") for one in (other, asked))]


def _saving(settings: Settings, folder: Path) -> subprocess.Popen[str]:
    kept = plain()
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [kept.get("PYTHONPATH")])])
    given = {f"WWTS_{name.upper()}": value for name, value in dict_of(settings).items()}
    return subprocess.Popen(
        [sys.executable, "-c", "import test_answering; test_answering.save_all()", str(folder / "batches.json")],
        env={**kept, **given, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def _killed(settings: Settings, folder: Path, after: int, pause: float) -> set[int]:
    """A process that saves batch after batch is killed; the numbers of those that it was told were saved."""
    process = _saving(settings, folder)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(after)]
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    told += process.communicate(timeout=600)[0].splitlines(keepends=True)
    return {int(line) for line in told if line.endswith("\n")}


def save_all() -> None:
    """What the killed process does; it tells of what was not saved before."""
    settings = settings_module.load()
    batches = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for number, batch in enumerate(batches):
        results = answering.answer(settings, NAMES, LI, _actions(batch))
        if {result.status for result in results} <= {"saved", "held"}:
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


def test_ids_of_browsers_are_accepted(local: Table) -> None:
    assert local.status(ANNA, act(local.put("一"), answer_id=str(uuid.uuid4()).upper())) == ["saved"]
