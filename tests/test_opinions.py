"""Images that two people look at: blind second looks, two who must agree, a third who decides; and undoing each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from review_table import ANNA, BEER, BOSS, LI, WINE, ZHANG, Table, act

from wwts_ops import corrections as answers_module
from wwts_ops import database
from wwts_ops.database import corrections, review_opinions
from wwts_ops.review import answering, bulk, opinions
from wwts_ops.review.actions import Action, Proposal, shown_revision
from wwts_ops.review.bulk import Selection
from wwts_ops.review.opinions import Agreement
from wwts_ops.settings import Settings

EVER = datetime(2020, 1, 1, tzinfo=UTC)
ALWAYS = Selection(LI, EVER, datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture
def table(database_url: str, make_settings: Callable[..., Settings]) -> Table:
    settings = make_settings(database_url=database_url, reviewers=f"{LI},{ZHANG},{ANNA}", review_admins=BOSS)
    database.upgrade(settings)
    return Table(settings)


def look(table: Table, of: str, kind: str = "confirm", **values: object) -> Action:
    """An action on the item as it is now."""
    return act(of, kind, table.item(of).revision, **values)


def agreement(table: Table, since: datetime) -> Agreement:
    with database.reading(table.settings) as connection:
        return opinions.agreement(connection, since)


class TestTwoAreNeeded:
    def test_the_first_look_is_no_answer_yet(self, table: Table) -> None:
        one = table.put("药", needed=2)
        (result,) = table.say(LI, look(table, one, "correct", badcase=True))
        assert (result.status, "另一位" in result.message) == ("held", True)
        assert (table.state(one), table.item(one).revision) == ("second", 2)
        assert (table.answers(), table.marks()) == ([], [])
        assert table.opinions(one) == [(LI, 1, None)]

    def test_a_second_who_agrees_makes_it_two_answers(self, table: Table) -> None:
        one = table.put("药", needed=2, shown_because="forced_review")
        (first,) = table.say(LI, look(table, one, "correct", badcase=True, comment="药盒"))
        (result,) = table.say(ZHANG, look(table, one, "correct"))
        assert result.status == "saved"
        assert table.answers() == [(LI, "correct", (BEER,)), (ZHANG, "correct", (BEER,))]
        rows = table.rows(corrections)
        assert rows[0]["answer_id"] == first.answer_id
        assert rows[0]["answered_at"] < rows[1]["answered_at"]
        assert [row["comment"] for row in rows] == ["药盒", None]
        assert {row["shown_because"] for row in rows} == {"forced_review"}
        assert table.opinions(one) == [(LI, 1, None), (ZHANG, 2, True)]
        assert (table.state(one), agreement(table, EVER)) == ("done", Agreement(1, 1))
        assert [row["person"] for row in table.marks()] == [LI]

    def test_a_confirmation_and_the_same_label_agree(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one))
        assert table.status(ZHANG, look(table, one, "correct", labels=(WINE,))) == ["saved"]

    @pytest.mark.parametrize("kind", ["wrong_unknown", "reject_image"])
    def test_two_agree_without_a_label(self, table: Table, kind: str) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one, kind, later=kind == "wrong_unknown"))
        assert table.status(ZHANG, look(table, one, kind)) == ["saved"]
        assert table.state(one) == ("later" if kind == "wrong_unknown" else "done")

    def test_another_primary_label_is_no_agreement(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one, "correct", labels=(WINE, BEER)))
        assert table.status(ZHANG, look(table, one, "correct", labels=(BEER, WINE))) == ["held"]

    def test_nobody_is_the_second_to_themselves(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one))
        stale, again = table.say(LI, act(one, "correct", revision=1), look(table, one, "correct"))
        assert (stale.status, stale.by) == ("conflict", LI)
        assert (again.status, "另一位同事" in again.message) == ("refused", True)
        assert table.opinions(one) == [(LI, 1, None)]

    def test_who_comes_late_learns_who_but_not_what(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one, "correct"))
        (late,) = table.say(ZHANG, act(one, "correct", revision=1))
        assert (late.status, late.by) == ("conflict", LI)
        assert "啤酒" not in late.message

    def test_sent_again_it_is_one_opinion(self, table: Table) -> None:
        one = table.put("药", needed=2)
        action = look(table, one, "wrong_unknown", proposal=Proposal("新药"))
        assert table.status(LI, action) == ["held"]
        assert table.status(LI, action) == ["already"]
        assert (table.opinions(one), len(table.proposals())) == ([(LI, 1, None)], 1)


class TestTheyDiffer:
    def test_a_third_decides(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one, badcase=True))
        (differs,) = table.say(ZHANG, look(table, one, "correct", never_regress=True))
        assert (differs.status, "第三位" in differs.message) == ("held", True)
        assert (table.state(one), table.answers()) == ("disputed", [])
        assert table.status(LI, look(table, one, "correct")) == ["refused"]
        assert table.status(ZHANG, look(table, one)) == ["refused"]
        assert table.status(ANNA, look(table, one, "correct")) == ["saved"]
        assert (table.state(one), table.answers()) == ("done", [(ANNA, "correct", (BEER,))])
        assert [(row["person"], row["never_regress"]) for row in table.marks()] == [(ZHANG, True)]
        assert agreement(table, EVER) == Agreement(1, 0)

    def test_an_admin_may_be_one_of_the_two(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(BOSS, look(table, one))
        assert table.status(BOSS, look(table, one)) == ["refused"]  # the second look is somebody else's even so
        table.say(ZHANG, look(table, one, "correct"))
        assert table.status(BOSS, look(table, one)) == ["saved"]
        assert table.answers() == [(BOSS, "confirm", (WINE,))]


class TestBlind:
    def test_the_first_look_is_an_answer_and_the_second_an_opinion(self, table: Table) -> None:
        one = table.put("酒", blind=True)
        assert table.status(LI, look(table, one)) == ["saved"]
        assert (table.state(one), table.answers()) == ("second", [(LI, "confirm", (WINE,))])
        assert table.status(LI, look(table, one)) == ["refused"]
        assert table.status(ZHANG, look(table, one)) == ["saved"]
        assert (table.state(one), table.answers()) == ("done", [(LI, "confirm", (WINE,))])
        assert table.opinions(one) == [(ZHANG, 2, True)]
        assert agreement(table, EVER) == Agreement(1, 1)

    def test_the_page_shows_the_revision_from_before_the_first_look(self, table: Table) -> None:
        """Else a number would tell who looks second; and who was shown it before the first look is no late comer."""
        one = table.put("酒", blind=True)
        assert table.status(LI, act(one, revision=1)) == ["saved"]
        item = table.item(one)
        assert (item.revision, shown_revision(item.state, item.blind, item.revision)) == (2, 1)
        assert table.status(LI, act(one, revision=1)) == ["refused"]
        assert table.status(ZHANG, act(one, revision=1)) == ["saved"]
        assert table.opinions(one) == [(ZHANG, 2, True)]
        assert table.status(ANNA, act(one, revision=1)) == ["conflict"]

    def test_a_third_overrules(self, table: Table) -> None:
        one = table.put("酒", blind=True)
        table.say(LI, look(table, one, badcase=True))
        assert table.status(ZHANG, look(table, one, "correct")) == ["held"]
        assert (table.state(one), table.answers()) == ("disputed", [(LI, "confirm", (WINE,))])
        assert table.status(ANNA, look(table, one, "correct", badcase=True)) == ["saved"]
        assert table.answers()[-1] == (ANNA, "correct", (BEER,))
        assert {row["person"]: row["outcome"] for row in table.marks()} == {LI: "overruled", ANNA: None}
        assert table.state(one) == "done"

    def test_what_needs_a_label_first_is_not_compared(self, table: Table) -> None:
        one = table.put("酒", blind=True)
        table.say(LI, look(table, one, "wrong_unknown", later=True))
        assert table.state(one) == "later"
        table.say(ZHANG, look(table, one, "correct"))
        assert table.state(one) == "second"
        table.say(ANNA, look(table, one, "correct"))
        assert (table.state(one), agreement(table, EVER)) == ("done", Agreement(1, 1))

    def test_an_answer_from_the_command_line_that_is_taken_back(self, table: Table) -> None:
        one = table.put("酒", blind=True)
        table.say(LI, look(table, one))
        answers_module.retract(table.settings, [one], "老王")
        assert table.status(LI, look(table, one, "correct")) == ["saved"]
        assert table.answers() == [(LI, "correct", (BEER,))]

    def test_agreement_is_of_a_time(self, table: Table) -> None:
        one = table.put("酒", blind=True)
        table.say(LI, look(table, one))
        table.say(ZHANG, look(table, one, "correct"))
        (said,) = table.rows(review_opinions)
        assert agreement(table, said["said_at"]) == Agreement(1, 0)
        assert agreement(table, datetime(2100, 1, 1, tzinfo=UTC)) == Agreement(0, 0)


class TestUndo:
    def undone(self, table: Table, person: str, action: Action) -> str:
        (result,) = table.undo(person, action)
        return str(result.status)

    def test_the_first_of_two(self, table: Table) -> None:
        one = table.put("药", needed=2)
        first = look(table, one, "wrong_unknown", proposal=Proposal("新药"))
        table.say(LI, first)
        assert self.undone(table, LI, first) == "saved"
        assert (table.state(one), table.opinions(one), table.item(one).leased_by) == ("open", [], LI)
        assert [row["state"] for row in table.proposals()] == ["refused"]
        assert self.undone(table, LI, first) == "already"
        assert table.status(LI, look(table, one)) == ["held"]

    @pytest.mark.parametrize("who", [LI, ZHANG])
    def test_one_of_two_who_agreed(self, table: Table, who: str) -> None:
        """What the other one said waits for a second look again, and then counts again."""
        one = table.put("药", needed=2)
        said = {LI: look(table, one, "correct")}
        table.say(LI, said[LI])
        said[ZHANG] = look(table, one, "correct")
        table.say(ZHANG, said[ZHANG])
        assert self.undone(table, who, said[who]) == "saved"
        (other,) = {LI, ZHANG} - {who}
        assert (table.state(one), table.answers()) == ("second", [])
        assert table.opinions(one) == [(other, 1, None)]
        assert table.item(one).leased_by is None
        lines = answering.history(table.settings, other, 5)
        assert [(line["answer_id"], line["retracted"], line["held"]) for line in lines] == [
            (said[other].answer_id, False, True)
        ]
        assert table.status(ANNA, look(table, one, "correct")) == ["saved"]
        assert table.answers() == [(other, "correct", (BEER,)), (ANNA, "correct", (BEER,))]
        # Once more, under the id that it was recorded with anew.
        assert self.undone(table, other, said[other]) == "saved"
        assert (table.answers(), table.opinions(one)) == ([], [(ANNA, 1, None)])

    def test_one_of_two_who_differ(self, table: Table) -> None:
        one = table.put("药", needed=2)
        first = look(table, one)
        table.say(LI, first)
        table.say(ZHANG, look(table, one, "correct"))
        assert self.undone(table, LI, first) == "saved"
        assert (table.state(one), table.opinions(one)) == ("second", [(ZHANG, 1, None)])
        assert agreement(table, EVER) == Agreement(0, 0)

    def test_what_was_to_become_a_bad_case_goes_and_comes_with_its_answer(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one, "correct", badcase=True))
        assert table.marks() == []
        for person in (ZHANG, ANNA):
            second = look(table, one, "correct")
            table.say(person, second)
            assert [(row["person"], row["outcome"]) for row in table.marks()] == [(LI, None)]
            table.undo(person, second)
            assert [(row["person"], row["outcome"]) for row in table.marks()] == [(LI, "taken_back")]
        blind = table.put("酒", blind=True)
        table.say(LI, look(table, blind, badcase=True))
        table.say(ZHANG, look(table, blind, "correct"))
        third = look(table, blind, "reject_image")
        table.say(ANNA, third)
        assert table.marks()[-1]["outcome"] == "overruled"
        table.undo(ANNA, third)
        assert (table.marks()[-1]["outcome"], table.marks()[-1]["done_at"]) == (None, None)

    @pytest.mark.parametrize("needed", [1, 2])
    def test_the_third_and_one_of_the_two(self, table: Table, needed: int) -> None:
        one = table.put("药", needed=needed, blind=needed == 1)
        table.say(LI, look(table, one))
        second = look(table, one, "correct")
        table.say(ZHANG, second)
        third = look(table, one, "reject_image")
        table.say(ANNA, third)
        assert (self.undone(table, ZHANG, second), table.state(one)) == ("saved", "done")
        assert (self.undone(table, ANNA, third), table.state(one)) == ("saved", "second")
        assert table.status(BOSS, look(table, one)) == ["saved"]
        assert table.state(one) == "done"

    @pytest.mark.parametrize("needed", [1, 2])
    def test_the_third_who_decided(self, table: Table, needed: int) -> None:
        one = table.put("药", needed=needed, blind=needed == 1)
        table.say(LI, look(table, one))
        table.say(ZHANG, look(table, one, "correct"))
        third = look(table, one, "reject_image")
        table.say(ANNA, third)
        assert self.undone(table, ANNA, third) == "saved"
        assert table.state(one) == "disputed"
        assert table.answers() == ([(LI, "confirm", (WINE,))] if needed == 1 else [])
        assert table.status(BOSS, look(table, one)) == ["saved"]
        assert table.state(one) == "done"

    def test_one_of_the_two_after_a_third_decided(self, table: Table) -> None:
        one = table.put("药", needed=2)
        first = look(table, one)
        table.say(LI, first)
        table.say(ZHANG, look(table, one, "correct"))
        table.say(ANNA, look(table, one, "correct"))
        assert self.undone(table, LI, first) == "saved"
        assert (table.state(one), table.answers()) == ("done", [(ANNA, "correct", (BEER,))])

    def test_both_of_the_two_after_a_third_decided(self, table: Table) -> None:
        """What two must agree on does not stay done by the word of one."""
        one = table.put("药", needed=2)
        said = [look(table, one)]
        table.say(LI, said[0])
        said.append(look(table, one, "correct"))
        table.say(ZHANG, said[1])
        table.say(ANNA, look(table, one, "correct", badcase=True))
        for person, action in zip((LI, ZHANG), said, strict=True):
            assert self.undone(table, person, action) == "saved"
        assert (table.state(one), table.answers(), table.opinions(one)) == ("second", [], [(ANNA, 1, None)])
        assert [row["outcome"] for row in table.marks()] == ["taken_back"]
        assert table.status(ZHANG, look(table, one, "correct")) == ["saved"]
        assert table.answers() == [(ANNA, "correct", (BEER,)), (ZHANG, "correct", (BEER,))]

    def test_a_blind_first_look(self, table: Table) -> None:
        one = table.put("酒", blind=True)
        first = look(table, one)
        table.say(LI, first)
        table.say(ZHANG, look(table, one, "correct"))
        assert self.undone(table, LI, first) == "saved"
        assert (table.state(one), table.answers(), table.opinions(one)) == ("open", [], [])

    def test_a_blind_second_look(self, table: Table) -> None:
        one = table.put("酒", blind=True)
        table.say(LI, look(table, one))
        second = look(table, one, "correct")
        table.say(ZHANG, second)
        assert self.undone(table, ZHANG, second) == "saved"
        assert (table.state(one), table.answers()) == ("second", [(LI, "confirm", (WINE,))])
        assert table.opinions(one) == []

    def test_a_look_of_a_later_round_waits_for_a_label_again(self, table: Table) -> None:
        one = table.put("药", needed=2)
        table.say(LI, look(table, one, "wrong_unknown", later=True))
        table.say(ZHANG, look(table, one, "wrong_unknown"))
        assert table.state(one) == "later"
        first = look(table, one, "correct")
        assert table.status(LI, first) == ["held"]
        assert self.undone(table, LI, first) == "saved"
        assert table.state(one) == "later"
        assert table.status(LI, look(table, one, "correct")) == ["held"]
        assert table.status(ZHANG, look(table, one, "correct")) == ["saved"]
        assert table.answers()[2:] == [(LI, "correct", (BEER,)), (ZHANG, "correct", (BEER,))]


class TestWhatElseWasClicked:
    def test_an_opinion_holds_for_nothing_else_yet(self, table: Table) -> None:
        one, near = table.put("药", needed=2, near_group="g"), table.put("像药", near_group="g")
        first = look(table, one, "correct", also=(near,))
        (held,) = table.say(LI, first)
        assert (held.status, "另外 1 张没有一起处理" in held.message) == ("held", True)
        assert (table.state(one), table.state(near), table.answers()) == ("second", "open", [])
        (agreed,) = table.say(ZHANG, look(table, one, "correct", also=(near,)))
        assert (agreed.status, "另外 1 张也一并处理了" in agreed.message) == ("saved", True)
        assert table.answers(near) == [(ZHANG, "correct", (BEER,))]

    def test_nor_does_one_that_is_disputed(self, table: Table) -> None:
        one, near = table.put("酒", blind=True, near_group="g"), table.put("像酒", near_group="g")
        table.say(LI, look(table, one))
        (held,) = table.say(ZHANG, look(table, one, "correct", also=(near,)))
        assert (held.status, table.state(one), table.state(near)) == ("held", "disputed", "open")
        assert table.answers(near) == []

    def test_what_two_must_agree_on_is_said_to_wait(self, table: Table) -> None:
        one, near = table.put("像药", near_group="g"), table.put("药", needed=2, near_group="g")
        plain = table.put("像药2", near_group="g")
        first = look(table, one, "correct", also=(near, plain))
        (saved,) = table.say(LI, first)
        assert saved.message == "已保存。另外 1 张也一并处理了。另外 1 张还需要另一位同事确认。"
        assert [table.state(of) for of in (one, near, plain)] == ["done", "second", "done"]
        assert table.undo(LI, first)[0].message == "已撤销，另外 2 张也一并撤销了。"
        assert [table.state(of) for of in (one, near, plain)] == ["open", "open", "open"]
        assert (table.answers(), table.opinions(near)) == ([], [])


class TestAnyOrder:
    """Whatever several people do in whatever order, the queue and the answers tell the same story."""

    PEOPLE = (LI, ZHANG, ANNA, BOSS)

    @pytest.mark.parametrize("seed", [1, 2])
    def test_the_state_follows_from_the_answers(self, make_settings: Callable[..., Settings], seed: int) -> None:
        settings = make_settings(review_admins=BOSS)
        database.upgrade(settings)
        table, rng = Table(settings), random.Random(seed)
        contents = [
            *table.put_all(["一", "二"], near_group="g"),
            *table.put_all(["药", "药2"], needed=2, near_group="g"),
            *table.put_all(["酒", "酒2"], blind=True),
        ]
        sent: list[tuple[str, Action]] = []
        for _ in range(80):
            self.step(table, rng, contents, sent)
            for of in contents:
                self.check(table, of)

    def step(self, table: Table, rng: random.Random, contents: list[str], sent: list[tuple[str, Action]]) -> None:
        person, turn = rng.choice(self.PEOPLE), rng.random()
        if turn < 0.3 and sent:
            person, action = rng.choice(sent[-12:])
            table.undo(person, action)
        elif turn < 0.35:
            chosen = replace(ALWAYS, person=person)
            shown = bulk.preview(table.settings, chosen)
            assert bulk.take_back(table.settings, BOSS, chosen, shown) == shown.count
            assert bulk.preview(table.settings, chosen).count == 0
        elif turn < 0.4:
            standing = sorted({row["content_sha256"] for row in table.rows(corrections)})
            for of in standing[:1] if table.answers(standing[0] if standing else "") else ():
                answers_module.retract(table.settings, [of], "老王")
        else:
            of = rng.choice(contents)
            kind = rng.choice(["confirm", "confirm", "correct", "wrong_unknown", "reject_image"])
            wishes = {"later": kind == "wrong_unknown" and rng.random() < 0.5, "badcase": kind == "correct"}
            near = [one for one in contents[:4] if one != of] if of in contents[:4] and rng.random() < 0.2 else []
            action = look(table, of, kind, also=tuple(near), **wishes)
            if table.status(person, action)[0] in ("saved", "held"):
                sent.append((person, action))

    def check(self, table: Table, of: str) -> None:
        item, answers = table.item(of), table.answers(of)
        last = answers[-1] if answers else None
        people = [answer[0] for answer in answers]
        told = (item.state, item.needed, answers, table.opinions(of))
        if item.state == "open":
            assert last is None or last[1] != "wrong_unknown", told
        elif item.state == "later":
            assert last is None or last[1] == "wrong_unknown", told
        elif item.state == "done" or item.needed == 1:
            assert last is not None, told
        if item.needed == 2 and item.state == "done" and last is not None and last[1] != "wrong_unknown":
            third = any(place == 3 and person == last[0] for person, place, _ in table.opinions(of))
            assert third or len(set(people)) >= 2, told
        rows = table.rows(corrections, content_sha256=of)
        gone = {row["retracts"] for row in rows if row["source"] == "page"}
        undone = {row["answer_id"] for row in rows if row["number"] in gone}
        waiting = {row["answer_id"] for row in table.marks() if row["done_at"] is None}
        assert item.needed == 2 or not waiting & undone, told
