"""Pictures that people marked while they reviewed become bad cases, once, and only while their answer counts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from environment import clean
from review_shop import ReviewShop

from wwts_ops import badcases, corrections, database
from wwts_ops.badcases import marks
from wwts_ops.badcases.marks import Adopted
from wwts_ops.badcases.snapshots import BadCase
from wwts_ops.corrections import Answer
from wwts_ops.database import review_items, review_marks, review_opinions
from wwts_ops.errors import UnavailableError
from wwts_ops.review import answering
from wwts_ops.review.answering import Action

LI, ZHANG = "小李", "小张"


class Marked:
    """A shop of which people mark pictures."""

    def __init__(self, shop: ReviewShop) -> None:
        self.shop = shop
        with database.reading(shop.settings) as connection:
            rows = connection.execute(sa.select(review_items).order_by(review_items.c.image_id)).mappings()
            #: Pictures that nobody else shows.
            self.items = [dict(row) for row in rows if row["copies"] == 1 and row["skus"] <= 1]
        self.said = 0

    def say(self, number: int, labels: tuple[str, ...], by: str = LI, **more: Any) -> str:
        """An answer of picture ``number``; its id."""
        self.said += 1
        given: dict[str, Any] = {"kind": "correct" if labels else "retract", "labels": labels, **more}
        one = Answer(
            answer_id=f"a{self.said}",
            answered_at=self.shop.settings.now(),
            answered_by=by,
            content_sha256=self.items[number]["content_sha256"],
            image_id=self.items[number]["image_id"],
            source="page",
            shown_because="review",
            **given,
        )
        corrections.record(self.shop.settings, [one])
        return one.answer_id

    def mark(self, number: int, label: str, by: str = LI, **more: Any) -> str:
        """A marked answer; its id."""
        answer_id = self.say(number, (label,), by)
        self.only_mark(answer_id, number, label, by, **more)
        return answer_id

    def only_mark(self, answer_id: str, number: int, label: str, by: str, **more: Any) -> None:
        row = {
            "answer_id": answer_id,
            "content_sha256": self.items[number]["content_sha256"],
            "labels": [label],
            "person": by,
            "never_regress": False,
            "marked_at": self.shop.settings.now(),
        }
        with database.transaction(self.shop.settings) as connection:
            connection.execute(sa.insert(review_marks).values(**{**row, **more}))

    def take_back(self, answer_id: str) -> None:
        rows = corrections.frozen(self.shop.settings).to_pylist()
        (row,) = [row for row in rows if row["answer_id"] == answer_id]
        (number,) = [n for n, item in enumerate(self.items) if item["content_sha256"] == row["content_sha256"]]
        self.say(number, (), by=row["answered_by"], retracts=row["number"])

    def adopted(self, number: int, label: str, **more: Any) -> str:
        """A marked answer whose picture is a bad case now; its id."""
        answer_id = self.mark(number, label, **more)
        assert self.adopt() == Adopted(added=1)
        return answer_id

    def adopt(self) -> Adopted:
        return marks.adopt(self.shop.store, self.shop.settings)

    def cases(self) -> dict[str, BadCase]:
        """Cases of the shop in force, by content."""
        found = badcases.current(self.shop.store)
        assert found is not None
        return {case.content_sha256: case for case in found.active if not case.starter}

    def case(self, number: int) -> BadCase | None:
        return self.cases().get(self.items[number]["content_sha256"])

    def truth(self, number: int) -> tuple[tuple[str, ...], bool] | None:
        """What is right of the case in force, and whether no model may get it wrong again."""
        case = self.case(number)
        return None if case is None else (case.accepted, case.never_regress)

    def last(self, number: int) -> BadCase:
        """The last case of that picture, in force or not."""
        found = badcases.current(self.shop.store)
        assert found is not None
        return [case for case in found.cases if case.content_sha256 == self.items[number]["content_sha256"]][-1]

    def told(self, answer_id: str) -> str | None:
        """What the records say of why it is no bad case."""
        lines = answering.history(self.shop.settings, None, 500)
        return next(line["no_badcase"] for line in lines if line["answer_id"] == answer_id)

    def outcomes(self) -> dict[str, str | None]:
        with database.reading(self.shop.settings) as connection:
            rows = connection.execute(sa.select(review_marks.c.answer_id, review_marks.c.outcome))
            return {row.answer_id: row.outcome for row in rows}

    def picture(self, number: int) -> Path:
        return Path(self.items[number]["uri"])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewShop]:
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        yield ReviewShop.made(tmp_path_factory.mktemp("marks"), items=40)


@pytest.fixture
def marked(shop: ReviewShop) -> Marked:
    """The shop without marks, answers and cases."""
    with database.transaction(shop.settings) as connection:
        connection.execute(sa.delete(review_marks))
        connection.execute(sa.delete(review_opinions))
        answered = connection.execute(sa.text("select number, content_sha256 from corrections where kind <> 'retract'"))
        retracted = set(connection.execute(sa.text("select retracts from corrections")).scalars())
        standing = [row for row in answered if row.number not in retracted]
    fresh = Marked(shop)
    fresh.said = 1000 * len(corrections.frozen(shop.settings))
    by_content = {item["content_sha256"]: number for number, item in enumerate(fresh.items)}
    for row in standing:
        fresh.say(by_content[row.content_sha256], (), retracts=row.number)
    found = badcases.current(shop.store)
    for case in found.active if found else ():
        badcases.retire(shop.store, "测试", case.content_sha256, "重来")
    return fresh


def test_nothing_marked_is_nothing_done(marked: Marked) -> None:
    before = badcases.current(marked.shop.store)
    assert marked.adopt() == Adopted()
    assert badcases.current(marked.shop.store) == before


def test_marks_become_bad_cases_of_who_marked_them(marked: Marked) -> None:
    marked.mark(0, "shop:f1", comment="包装\n反光，认成了梨")
    marked.mark(1, "shop:f2", by=ZHANG, never_regress=True)
    assert marked.adopt() == Adopted(added=2)
    first, second = marked.case(0), marked.case(1)
    assert first is not None
    assert second is not None
    assert (first.accepted, first.owner, first.added_by, first.reason) == (
        ("shop:f1",),
        LI,
        LI,
        "包装 反光，认成了梨",
    )
    assert (first.never_regress, second.never_regress) == (False, True)
    assert (second.owner, second.reason) == (ZHANG, "审核时标记")
    stored = badcases.content(marked.shop.store, first.content_sha256)
    assert stored == marked.picture(0).read_bytes()
    assert set(marked.outcomes().values()) == {"added"}


def test_again_does_nothing_more(marked: Marked) -> None:
    marked.mark(0, "shop:f1")
    marked.adopt()
    before = badcases.current(marked.shop.store)
    assert marked.adopt() == Adopted()
    assert badcases.current(marked.shop.store) == before


def test_who_was_killed_before_writing_it_down_finds_the_case(marked: Marked) -> None:
    answer = marked.mark(0, "shop:f1")
    marked.adopt()
    with database.transaction(marked.shop.settings) as connection:
        connection.execute(sa.update(review_marks).values(done_at=None, outcome=None))
    assert marked.adopt() == Adopted(unchanged=1)
    assert marked.outcomes() == {answer: "unchanged"}


def test_a_picture_that_cannot_be_had_holds_up_no_other(marked: Marked) -> None:
    gone, fine = marked.mark(2, "shop:f1"), marked.mark(3, "shop:f2")
    path = marked.picture(2)
    data = path.read_bytes()
    path.write_bytes(data + b"changed")
    try:
        assert marked.adopt() == Adopted(added=1, refused=1)
    finally:
        path.write_bytes(data)
    outcomes = marked.outcomes()
    assert outcomes[fine] == "added"
    assert (outcomes[gone] or "").startswith("refused: ")
    assert "have changed" in (outcomes[gone] or "")
    assert marked.told(gone) == "原图已经换成了别的内容"
    assert marked.adopt() == Adopted()  # what was refused is not tried every five minutes


def test_a_label_that_is_gone_is_refused_and_said(marked: Marked) -> None:
    answer = marked.mark(4, "shop:missing")
    assert marked.adopt() == Adopted(refused=1)
    assert "there is no label 'shop:missing'" in (marked.outcomes()[answer] or "")


def test_a_picture_that_moved_is_found_by_what_is_published(marked: Marked) -> None:
    marked.mark(5, "shop:f1")
    with database.transaction(marked.shop.settings) as connection:
        this = review_items.c.content_sha256 == marked.items[5]["content_sha256"]
        connection.execute(sa.update(review_items).where(this).values(uri="/elsewhere/gone.jpg"))
    assert marked.adopt() == Adopted(added=1)


def test_an_answer_that_no_longer_counts_makes_no_case(marked: Marked) -> None:
    taken_back, overruled = marked.mark(6, "shop:f1"), marked.mark(7, "shop:f1")
    number = next(
        row["number"] for row in corrections.frozen(marked.shop.settings).to_pylist() if row["answer_id"] == taken_back
    )
    marked.say(6, (), retracts=number)
    marked.say(7, ("shop:f2",), by=ZHANG)
    assert marked.adopt() == Adopted(withdrawn=2)
    assert marked.outcomes() == {taken_back: "withdrawn", overruled: "withdrawn"}
    assert not marked.cases()


def test_what_a_second_person_must_confirm_waits(marked: Marked) -> None:
    marked.only_mark("held", 8, "shop:f1", LI)
    assert marked.adopt() == Adopted()
    assert marked.outcomes() == {"held": None}


class TestSecondLooks:
    """What two people looked at; one answer at most is in force, and both may want a bad case."""

    def look(self, marked: Marked, number: int, by: str, **more: Any) -> str:
        content = marked.items[number]["content_sha256"]
        action = Action(uuid.uuid4().hex, content, None, "correct", ("shop:f1",), **more)
        (result,) = answering.answer(marked.shop.settings, marked.shop.names, by, [action])
        assert result.status in ("saved", "held"), result
        return action.answer_id

    def item(self, marked: Marked, number: int, **values: Any) -> None:
        with database.transaction(marked.shop.settings) as connection:
            this = review_items.c.content_sha256 == marked.items[number]["content_sha256"]
            connection.execute(sa.update(review_items).where(this).values(state="open", **values))

    def test_who_agrees_blind(self, marked: Marked) -> None:
        self.item(marked, 11, needed=1, blind=True)
        self.look(marked, 11, LI)
        second = self.look(marked, 11, ZHANG, badcase=True, never_regress=True)
        assert marked.adopt() == Adopted(added=1)
        case = marked.case(11)
        assert case is not None
        assert (case.added_by, case.never_regress, case.accepted) == (ZHANG, True, ("shop:f1",))
        # Who takes the look back takes the case back, though the first answer stands.
        answering.undo(marked.shop.settings, ZHANG, [second])
        assert marked.adopt() == Adopted(retired=1)
        assert marked.case(11) is None

    def test_who_a_third_agrees_with(self, marked: Marked) -> None:
        self.item(marked, 12, needed=1, blind=True)
        content = marked.items[12]["content_sha256"]
        said = Action(uuid.uuid4().hex, content, None, "reject_image")
        assert answering.answer(marked.shop.settings, marked.shop.names, LI, [said])[0].status == "saved"
        self.look(marked, 12, ZHANG, badcase=True)
        assert marked.outcomes() == {}
        self.look(marked, 12, "anna")
        assert marked.adopt() == Adopted(added=1)
        case = marked.case(12)
        assert case is not None
        assert case.added_by == ZHANG

    def test_the_first_of_two_that_must_agree(self, marked: Marked) -> None:
        """The answer in force is the second one's; and it may be recorded anew."""
        self.item(marked, 13, needed=2, blind=False)
        self.look(marked, 13, LI, badcase=True)
        second = self.look(marked, 13, ZHANG)
        assert marked.adopt() == Adopted(added=1)
        answering.undo(marked.shop.settings, ZHANG, [second])
        assert marked.adopt() == Adopted(retired=1)
        self.look(marked, 13, "anna")
        assert marked.adopt() == Adopted(added=1)
        assert marked.case(13) is not None
        assert marked.adopt() == Adopted()

    def test_who_agreed_and_was_overruled(self, marked: Marked) -> None:
        self.item(marked, 14, needed=1, blind=True)
        self.look(marked, 14, LI)
        second = self.look(marked, 14, ZHANG, badcase=True)
        marked.say(14, ("shop:f2",), by="老王")
        assert marked.adopt() == Adopted(withdrawn=1)
        assert marked.outcomes() == {second: "withdrawn"}


def test_a_case_whose_answer_is_taken_back_later_is_retired(marked: Marked) -> None:
    answer = marked.mark(9, "shop:f1")
    marked.adopt()
    number = next(
        row["number"] for row in corrections.frozen(marked.shop.settings).to_pylist() if row["answer_id"] == answer
    )
    marked.say(9, (), retracts=number)
    assert marked.adopt() == Adopted(retired=1)
    assert marked.case(9) is None
    found = badcases.current(marked.shop.store)
    assert found is not None
    retired = [case for case in found.cases if case.content_sha256 == marked.items[9]["content_sha256"]]
    assert (retired[-1].retired_by, retired[-1].retired_reason) == (LI, "答案已撤回")
    assert marked.adopt() == Adopted()


def test_a_case_of_somebody_elses_is_not_retired(marked: Marked) -> None:
    """Both had marked the picture; the case is the first one's."""
    first = marked.mark(10, "shop:f1")
    marked.adopt()
    second = marked.mark(10, "shop:f1", by=ZHANG)
    assert marked.adopt() == Adopted(unchanged=1)
    marked.take_back(second)
    assert marked.adopt() == Adopted(withdrawn=1)
    assert marked.case(10) is not None
    assert marked.outcomes() == {first: "added", second: "withdrawn"}
    assert marked.adopt() == Adopted()


class TestAnsweredAgain:
    """A bad case follows the answer in force, whichever mark it came of."""

    def test_the_same_again(self, marked: Marked) -> None:
        marked.take_back(marked.adopted(15, "shop:f1"))
        again = marked.mark(15, "shop:f1")
        assert marked.adopt() == Adopted(added=1, retired=1)
        assert marked.case(15) is not None
        assert marked.adopt() == Adopted()
        # It is the new one's case, and goes with it.
        marked.take_back(again)
        assert marked.adopt() == Adopted(retired=1)
        assert marked.case(15) is None

    def test_another_label_that_may_never_be_wrong_again(self, marked: Marked) -> None:
        marked.take_back(marked.adopted(15, "shop:f1"))
        marked.mark(15, "shop:f2", never_regress=True)
        assert marked.adopt() == Adopted(added=1, retired=1)
        assert marked.truth(15) == (("shop:f2",), True)
        assert marked.adopt() == Adopted()

    def test_somebody_else_still_wants_it(self, marked: Marked) -> None:
        first = marked.adopted(15, "shop:f1", never_regress=True)
        marked.mark(15, "shop:f1", by=ZHANG)
        assert marked.adopt() == Adopted(unchanged=1)
        marked.take_back(first)
        assert marked.adopt() == Adopted(added=1, retired=1)
        assert marked.truth(15) == (("shop:f1",), False)
        assert marked.last(15).added_by == ZHANG

    def test_another_label_by_who_wants_no_bad_case(self, marked: Marked) -> None:
        marked.adopted(15, "shop:f1")
        correction = marked.say(15, ("shop:f2",), by="主管")
        assert marked.adopt() == Adopted(retired=1)
        assert (marked.case(15), marked.last(15).retired_reason) == (None, "答案已改成别的")
        assert marked.adopt() == Adopted()
        # And back: the first answer is in force again.
        marked.take_back(correction)
        assert marked.adopt() == Adopted(added=1)
        assert marked.truth(15) == (("shop:f1",), False)

    def test_a_picture_that_somebody_calls_bad(self, marked: Marked) -> None:
        marked.adopted(15, "shop:f1")
        marked.say(15, (), by="主管", kind="reject_image")
        assert marked.adopt() == Adopted(retired=1)
        assert marked.case(15) is None

    def test_another_label_by_who_wants_one_too(self, marked: Marked) -> None:
        marked.adopted(15, "shop:f1")
        marked.mark(15, "shop:f2", by=ZHANG)
        assert marked.adopt() == Adopted(added=1, retired=1)
        assert marked.truth(15) == (("shop:f2",), False)

    def test_what_was_retired_by_hand_stays_so(self, marked: Marked) -> None:
        marked.adopted(15, "shop:f1")
        badcases.retire(marked.shop.store, "主管", marked.items[15]["content_sha256"], "照片有误")
        correction = marked.say(15, ("shop:f2",), by="主管")
        marked.adopt()
        marked.take_back(correction)
        assert marked.adopt() == Adopted()
        assert marked.case(15) is None
        marked.mark(15, "shop:f1", by=ZHANG)  # but by a new wish
        assert marked.adopt() == Adopted(added=1)

    def test_who_was_killed_before_writing_it_down(self, marked: Marked) -> None:
        answer = marked.adopted(15, "shop:f1")
        with database.transaction(marked.shop.settings) as connection:
            connection.execute(sa.update(review_marks).values(done_at=None, outcome=None))
        assert marked.adopt() == Adopted(unchanged=1)
        marked.take_back(answer)
        assert marked.adopt() == Adopted(retired=1)
        assert marked.case(15) is None


class TestNeverRegress:
    def test_on_a_bad_case_that_is_there(self, marked: Marked) -> None:
        marked.adopted(16, "shop:f1")
        marked.mark(16, "shop:f1", by=ZHANG, never_regress=True)
        assert marked.adopt() == Adopted(unchanged=1)
        assert marked.truth(16) == (("shop:f1",), True)
        assert marked.last(16).added_by == LI

    def test_who_does_not_ask_for_it_takes_it_from_nobody(self, marked: Marked) -> None:
        marked.adopted(16, "shop:f1", never_regress=True)
        marked.mark(16, "shop:f1", by=ZHANG)
        assert marked.adopt() == Adopted(unchanged=1)
        assert marked.truth(16) == (("shop:f1",), True)

    def test_on_one_with_another_label(self, marked: Marked) -> None:
        """What a file says is right is for who imported it to change."""
        sheet = marked.shop.folder / "file.csv"
        sheet.write_text(f"uri,label_id\n{marked.items[16]['uri']},shop:f2\n", encoding="utf-8")
        badcases.import_cases(marked.shop.store, marked.shop.settings, sheet, "老王")
        answer = marked.mark(16, "shop:f1", never_regress=True)
        assert marked.adopt() == Adopted(refused=1)
        assert marked.truth(16) == (("shop:f2",), False)
        assert marked.told(answer) == "它已经是坏例，但正确标签不一样"


class TestPicturesThatAreAway:
    """Each test has its own: what was a bad case once is in the store."""

    @pytest.fixture
    def away(self, marked: Marked) -> Iterator[Path]:
        """The folder of all pictures, which is not there; to be moved back."""
        here = marked.picture(0).parent
        there = here.rename(here.with_name("unmounted"))
        yield there
        if there.exists():
            there.rename(here)

    def test_it_is_tried_again(self, marked: Marked, away: Path) -> None:
        marks_here = {marked.mark(17, "shop:f1"), marked.mark(18, "shop:f2", by=ZHANG)}
        assert marked.adopt() == Adopted(waiting=2)
        assert marked.outcomes() == dict.fromkeys(marks_here)
        away.rename(marked.picture(0).parent)
        assert marked.adopt() == Adopted(added=2)

    def test_it_holds_up_no_other(self, marked: Marked, tmp_path: Path) -> None:
        lost, fine = marked.mark(20, "shop:f1"), marked.mark(21, "shop:f2")
        path = marked.picture(20)
        kept = path.rename(tmp_path / "kept")
        try:
            assert marked.adopt() == Adopted(added=1, waiting=1)
        finally:
            kept.rename(path)
        assert marked.outcomes() == {lost: None, fine: "added"}

    def test_it_is_given_up_after_a_week_and_said(self, marked: Marked, away: Path) -> None:
        del away
        week_ago = marked.shop.settings.now() - marks.PATIENCE
        old = marked.mark(22, "shop:f1", marked_at=week_ago - timedelta(minutes=1))
        new = marked.mark(23, "shop:f1", marked_at=week_ago + timedelta(hours=1))
        assert marked.adopt() == Adopted(refused=1, waiting=1)
        assert marked.told(old) == "一周里都读不到原图"
        assert marked.told(new) is None

    def test_a_label_that_is_gone_does_not_wait(self, marked: Marked, away: Path) -> None:
        del away
        answer = marked.mark(22, "shop:missing")
        assert marked.adopt() == Adopted(refused=1)
        assert marked.told(answer) == "这个标签已经不在了"


def test_undoing_says_what_becomes_of_the_case(marked: Marked) -> None:
    first = marked.adopted(19, "shop:f1")
    second = marked.mark(19, "shop:f1", by=ZHANG)
    marked.adopt()
    (of_second,) = answering.undo(marked.shop.settings, ZHANG, [second])
    assert of_second.message == "已撤销。它的图片原来就是坏例，仍会保留。"
    (of_first,) = answering.undo(marked.shop.settings, LI, [first])
    assert of_first.message == "已撤销。它的图片已经收为坏例，会随下一次发布自动撤下。"
    marked.adopt()
    assert marked.case(19) is None


def test_a_database_that_is_away_is_tried_again(marked: Marked) -> None:
    away = marked.shop.settings.model_copy(update={"database_url": "postgresql://127.0.0.1:1/wwts"})
    with pytest.raises(UnavailableError):
        marks.adopt(marked.shop.store, away)
