"""The figures of a morning and the message made of them: pace, agreement, what the audit says, how the night went."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import sqlalchemy as sa
from review_shop import ReviewShop
from scipy.stats import binomtest

from wwts_ops import corrections, database, planning, shares
from wwts_ops.corrections import Answer
from wwts_ops.database import review_items, review_opinions
from wwts_ops.review import figures, message
from wwts_ops.review.figures import Figures, Night, Share
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import Shard

Make = Callable[..., Settings]
SHANGHAI = ZoneInfo("Asia/Shanghai")
#: A Monday, when the message goes out.
NOW = datetime(2026, 11, 23, 7, 30, tzinfo=SHANGHAI)
YESTERDAY = NOW.replace(hour=9, minute=0) - timedelta(days=1)
NOTHING = Share(None, None, None, 0, 0)


class Desk:
    """A queue, and people who answer at given times."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        database.upgrade(settings)
        self.said = 0

    def items(self, *names: str, state: str = "open", because: str = "review") -> None:
        rows = [
            {
                "content_sha256": content(name),
                "run_id": "r",
                "date": "2026-11-22",
                "image_id": name,
                "uri": f"{name}.jpg",
                "tags": [],
                "label_id": "t:梨",
                "decision": because,
                "shown_because": because,
                "sampling_probability": 0.02 if because == "audit" else 1.0,
                "copies": 1,
                "skus": 1,
                "near": 0,
                "siblings": [],
                "value": 1.0,
                "needed": 1,
                "blind": False,
                "state": state,
                "revision": 1,
            }
            for name in names
        ]
        with database.transaction(self.settings) as connection:
            connection.execute(sa.insert(review_items), rows)

    def answer(self, name: str, at: datetime, by: str = "小李", **more: Any) -> None:
        self.said += 1
        given: dict[str, Any] = {"kind": "confirm", "source": "page", "shown_because": "review", "labels": ("t:梨",)}
        given |= {"labels_before": ("t:梨",), "sampling_probability": 1.0} | more
        if given["kind"] in ("wrong_unknown", "reject_image", "retract"):
            given["labels"] = ()
        one = Answer(answer_id=f"a{self.said}", answered_at=at, answered_by=by, content_sha256=content(name), **given)
        corrections.record(self.settings, [one])

    def opinion(self, name: str, at: datetime, **more: Any) -> None:
        self.said += 1
        row = {"answer_id": f"o{self.said}", "content_sha256": content(name), "person": "小张", "said_at": at}
        with database.transaction(self.settings) as connection:
            connection.execute(sa.insert(review_opinions).values(**{**row, "place": 2, "answer": {}, **more}))

    def seen(self, now: datetime = NOW) -> Figures:
        return figures.today(self.settings, Store.of(self.settings), now)


def content(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def desk(database_url: str, make_settings: Make) -> Desk:
    return Desk(make_settings(database_url=database_url))


@pytest.fixture
def lite(make_settings: Make) -> Desk:
    return Desk(make_settings())


def worked(desk: Desk, begin: datetime, count: int, minutes: int, prefix: str) -> None:
    """Two people settle ``count`` pictures, evenly over ``minutes``."""
    names = [f"{prefix}{number}" for number in range(count)]
    desk.items(*names)
    for number, name in enumerate(names):
        at = begin + timedelta(minutes=minutes) * number / count
        desk.answer(name, at, by=("小李", "小张")[number % 2])


def waits(desk: Desk, count: int) -> None:
    desk.items(*(f"w{number}" for number in range(count)))


class TestPace:
    def test_it_counts_from_when_people_began_yesterday(self, desk: Desk) -> None:
        worked(desk, YESTERDAY, count=30, minutes=15, prefix="y")  # 120 an hour
        waits(desk, 80)
        seen = desk.seen()
        assert (seen.left, seen.done_yesterday, seen.done_today, seen.per_hour) == (80, 30, 0, 120.0)
        assert seen.done_by == datetime(2026, 11, 23, 9, 40, tzinfo=SHANGHAI)
        assert [(one.person, one.today, one.yesterday) for one in seen.by_person] == [("小张", 0, 15), ("小李", 0, 15)]
        assert message.waiting(seen) == "80 张待审，按昨天的速度 9:40 完成。"

    def test_once_people_have_begun_it_counts_from_now(self, lite: Desk) -> None:
        worked(lite, YESTERDAY, count=30, minutes=15, prefix="y")
        waits(lite, 80)
        lite.answer("w0", NOW - timedelta(minutes=5))
        seen = lite.seen()
        assert (seen.left, seen.done_today) == (79, 1)
        assert seen.done_by == datetime(2026, 11, 23, 8, 10, tzinfo=SHANGHAI)  # 39.5 minutes, up to the minute

    def test_a_break_is_no_work(self, lite: Desk) -> None:
        worked(lite, YESTERDAY, count=15, minutes=15, prefix="a")
        worked(lite, YESTERDAY + timedelta(hours=5), count=15, minutes=15, prefix="b")
        assert lite.seen().per_hour == 60.0

    def test_after_a_weekend_it_is_the_last_day_of_work(self, lite: Desk) -> None:
        worked(lite, YESTERDAY - timedelta(days=2), count=30, minutes=15, prefix="y")
        waits(lite, 20)
        seen = lite.seen()
        assert (seen.done_yesterday, seen.pace_of) == (0, "2026-11-20")
        assert message.waiting(seen) == "20 张待审，按 11月20日的速度 9:10 完成。"

    def test_what_will_not_be_done_today_is_said_in_hours(self, lite: Desk) -> None:
        worked(lite, YESTERDAY, count=5, minutes=5, prefix="y")  # 60 an hour
        waits(lite, 1200)
        assert message.waiting(lite.seen()) == "1,200 张待审，按昨天的速度（每小时 60 张）今天审不完，还要约 20 小时。"

    def test_without_any_work_nothing_is_promised(self, make_settings: Make) -> None:
        lite = Desk(make_settings(review_admins="主管"))
        waits(lite, 3)
        lite.items("d", state="disputed")
        seen = lite.seen()
        assert (seen.per_hour, seen.done_by, seen.pace_of) == (None, None, None)
        assert message.waiting(seen) == "4 张待审，其中 1 张两人意见不同，需要第三人定。"

    def test_what_everybody_has_looked_at_waits_for_nobody(self, make_settings: Make, database_url: str) -> None:
        """Second looks and disputes count as long as somebody who may answer has not had theirs."""
        settings = make_settings(database_url=database_url, reviewers="小李,小张")
        desk = Desk(settings)
        desk.items("a", "b", state="second")
        desk.items("c", state="disputed")
        desk.items("d")
        for name, people in (("a", ["小李"]), ("b", ["小李", "小张"]), ("c", ["小李", "小张", "走了的"])):
            for person in people:
                desk.opinion(name, YESTERDAY, person=person)
        seen = desk.seen()
        assert (seen.left, seen.disputed, seen.stuck) == (2, 0, 2)
        with_admin = settings.model_copy(update={"review_admins": ("小李",)})
        seen = figures.today(with_admin, Store.of(settings), NOW)
        assert (seen.left, seen.disputed, seen.stuck) == (3, 1, 1)

    def test_an_empty_queue(self, lite: Desk) -> None:
        assert message.waiting(lite.seen()) == "没有待审的图片。"

    def test_what_was_taken_back_imported_or_not_in_the_queue_is_no_pace(self, lite: Desk) -> None:
        worked(lite, YESTERDAY, count=5, minutes=5, prefix="y")
        lite.items("back", "bulk")
        lite.answer("back", YESTERDAY)
        lite.answer("back", YESTERDAY, kind="retract", retracts=6)
        lite.answer("bulk", YESTERDAY, source="import")
        lite.answer("elsewhere", YESTERDAY)
        lite.answer(
            "y0", YESTERDAY + timedelta(minutes=2), kind="correct", labels=("t:桃",)
        )  # again: still one picture
        seen = lite.seen()
        assert (seen.done_yesterday, seen.per_hour, seen.left) == (5, 60.0, 1)


class TestAgreement:
    def test_bad_pictures_and_other_ways_to_be_shown_do_not_count(self, desk: Desk) -> None:
        for number, kind in enumerate(["confirm"] * 6 + ["correct", "wrong_unknown", "reject_image"]):
            desk.answer(f"i{number}", NOW - timedelta(days=1), kind=kind)
        desk.answer("search", NOW - timedelta(days=1), kind="correct", shown_because="search")
        desk.answer("old", NOW - timedelta(days=8), kind="correct")
        seen = desk.seen().agreement
        expected = binomtest(6, 8).proportion_ci(method="wilson")
        assert (seen.rate, seen.answered) == (0.75, 8)
        assert (seen.low, seen.high) == (pytest.approx(expected.low), pytest.approx(expected.high))

    def test_a_picture_counts_once(self, desk: Desk) -> None:
        """Called wrong in the grid and then labelled it is one disagreement; two who agree are one agreement."""
        at = NOW - timedelta(days=1)
        desk.answer("ticked", at, kind="wrong_unknown")
        desk.answer("ticked", at + timedelta(minutes=5), by="小张", kind="correct", labels=("t:桃",))
        desk.answer("both", at, shown_because="forced_review")
        desk.answer("both", at, by="小张", shown_because="forced_review")
        desk.answer("rejected", at)
        desk.answer("rejected", at, by="小张", kind="reject_image")
        seen = desk.seen().agreement
        assert (seen.rate, seen.answered) == (0.5, 2)

    def test_the_audit_is_another_figure(self, lite: Desk) -> None:
        lite.answer("hard", NOW - timedelta(days=1), kind="wrong_unknown")
        lite.answer("sampled", NOW - timedelta(days=1), shown_because="audit", sampling_probability=0.02)
        assert (lite.seen().agreement.rate, lite.seen().agreement.answered) == (0.0, 1)

    def test_people_who_looked_blind(self, desk: Desk) -> None:
        for number in range(4):
            desk.opinion(f"i{number}", NOW - timedelta(days=2), agrees=number > 0)
        desk.opinion("first", NOW - timedelta(days=2), agrees=None)
        desk.opinion("gone", NOW - timedelta(days=2), agrees=False, withdrawn_at=NOW)
        desk.opinion("old", NOW - timedelta(days=29), agrees=False)
        seen = desk.seen().people
        assert (seen.rate, seen.answered) == (0.75, 4)


class TestAudit:
    def audited(self, desk: Desk, name: str, **more: Any) -> None:
        given = {"shown_because": "audit", "sampling_probability": 0.02} | more
        desk.answer(name, more.pop("at", NOW - timedelta(days=3)), **{k: v for k, v in given.items() if k != "at"})

    def test_what_counts_as_right(self, desk: Desk) -> None:
        desk.items("waits", "waits too", because="audit")
        self.audited(desk, "right")
        self.audited(desk, "second label", kind="correct", labels=("t:桃", "t:梨"))
        self.audited(desk, "wrong", kind="correct", labels=("t:桃",))
        self.audited(desk, "unknown", kind="wrong_unknown")
        self.audited(desk, "bad picture", kind="reject_image")
        self.audited(desk, "old", at=NOW - timedelta(days=29))
        desk.answer("review", NOW - timedelta(days=3))
        seen = desk.seen().audit
        expected = binomtest(2, 4).proportion_ci(method="wilson")
        assert (seen.rate, seen.answered, seen.asked) == (0.5, 4, 6)
        assert (seen.low, seen.high) == (pytest.approx(expected.low), pytest.approx(expected.high))

    def test_a_picture_counts_once_by_the_last_word(self, lite: Desk) -> None:
        self.audited(lite, "a")
        self.audited(lite, "a", kind="wrong_unknown", by="小张")
        self.audited(lite, "b")
        self.audited(lite, "b", kind="wrong_unknown", by="小张")
        self.audited(lite, "b", kind="retract", retracts=4)
        seen = lite.seen().audit
        assert (seen.rate, seen.answered) == (0.5, 2)

    def test_an_answer_counts_wherever_it_came_from(self, desk: Desk) -> None:
        """Else a sample that somebody answers by a file would be one of those that people found right."""
        at = NOW - timedelta(hours=20)
        desk.items("right", "imported", "overridden", "rejected", because="audit", state="done")
        desk.items("open", because="audit")
        desk.items("closed", because="audit", state="done")
        desk.items("second", because="audit", state="second")
        self.audited(desk, "right", at=at)
        for name in ("overridden", "second"):
            self.audited(desk, name, at=at)
        elsewhere: dict[str, Any] = {"source": "import", "shown_because": "import", "sampling_probability": None}
        for name in ("imported", "overridden"):
            desk.answer(name, at, by="老王", kind="correct", labels=("t:桃",), labels_before=(), **elsewhere)
        desk.answer("rejected", at, by="老王", kind="reject_image", **elsewhere)
        desk.answer("open", at, by="旧标签", weak=True, **elsewhere)
        seen = desk.seen().audit
        assert (seen.rate, seen.answered, seen.asked) == (0.5, 4, 5)

    def test_it_is_judged_by_the_tag_that_was_shown(self, lite: Desk) -> None:
        """Not by what a file says was there before; a label that was merged since is the one that was shown."""
        lite.items("file", "merged", because="audit", state="done")
        at = NOW - timedelta(hours=20)
        lite.answer("file", at, by="老王", labels=("t:桃",), labels_before=("t:桃",), source="import")
        self.audited(lite, "merged", at=at, labels=("t:水果梨",))
        seen = lite.seen().audit
        assert (seen.rate, seen.answered) == (0.5, 2)

    def test_what_was_found_and_answered_long_ago_does_not_count(self, lite: Desk) -> None:
        """A file of this week may tell what somebody said last year."""
        lite.items("old", "old, answered now", because="audit", state="done")
        lite.items("old, waits", because="audit")
        with database.transaction(lite.settings) as connection:
            connection.execute(sa.update(review_items).values(date="2026-10-25"))
        lite.items("new, answered by an old file", because="audit", state="done")
        self.audited(lite, "old", at=NOW - timedelta(days=29))
        self.audited(lite, "old, answered now")
        lite.answer("new, answered by an old file", NOW - timedelta(days=300), kind="correct", labels=("t:桃",))
        seen = lite.seen().audit
        assert (seen.rate, seen.answered, seen.asked) == (0.5, 2, 3)

    def test_what_is_forgotten_is_judged_by_the_last_word_too(self, lite: Desk) -> None:
        self.audited(lite, "gone")
        lite.answer("gone", NOW, by="老王", kind="correct", labels=("t:桃",), source="import", shown_because="import")
        seen = lite.seen().audit
        assert (seen.rate, seen.answered) == (0.0, 1)

    def test_nothing_seen_is_no_figure(self, lite: Desk) -> None:
        assert lite.seen().audit == NOTHING

    def test_unequal_chances_are_weighed(self) -> None:
        # 10 wrong of 100 that were sampled at 2 %, all right of 100 that were sampled at 20 %: they stand for 5,000
        # and 500 pictures of which 500 are wrong.
        seen = [(number >= 10, 0.02) for number in range(100)] + [(True, 0.2)] * 100
        share = figures.weighted(seen, 7)
        assert share.rate == pytest.approx(5000 / 5500)
        # Kish: (100 * 50 + 100 * 5)² / (100 * 50² + 100 * 5²)
        expected = shares.wilson(5000 / 5500, 5500**2 / 252_500)
        assert (share.low, share.high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
        assert (share.answered, share.asked) == (200, 207)

    @pytest.mark.parametrize(("right", "of"), [(0, 1), (1, 1), (0, 30), (30, 30), (97, 100), (1, 2000)])
    def test_the_interval_is_wilsons(self, right: int, of: int) -> None:
        expected = binomtest(right, of).proportion_ci(method="wilson")
        assert shares.wilson(right / of, of) == (
            pytest.approx(expected.low, abs=1e-12),
            pytest.approx(expected.high, abs=1e-12),
        )

    def test_the_interval_covers_the_truth_as_often_as_it_says(self) -> None:
        """A shop of 20,000 pictures of which 3 % are wrong, most of them where few are sampled; 400 audits of it."""
        rng = np.random.default_rng(7)
        often = np.arange(20_000) < 4_000
        chance = np.where(often, 0.08, 0.02)
        right = rng.random(20_000) > np.where(often, 0.01, 0.035)
        truth, covered = right.mean(), 0
        for _ in range(400):
            drawn = rng.random(20_000) < chance
            share = figures.weighted(list(zip(right[drawn].tolist(), chance[drawn].tolist(), strict=True)), 0)
            assert share.low is not None
            assert share.high is not None
            covered += share.low <= truth <= share.high
        # 95 % of 400, less four standard errors.
        assert covered >= 400 * (0.95 - 4 * (0.95 * 0.05 / 400) ** 0.5)


class TestNight:
    def night(self, settings: Settings, now: datetime = NOW) -> Night:
        return figures.night(settings, Store.of(settings), now)

    def test_a_schedule_that_was_due_and_left_nothing(self, make_settings: Make) -> None:
        assert self.night(make_settings()) == Night("2026-11-23", "absent")
        assert self.night(make_settings(), NOW.replace(hour=1)) == Night("2026-11-22", "absent")
        assert self.night(make_settings(schedule="none")) == Night("2026-11-23", "unplanned")
        assert self.night(make_settings(schedule="0 2 * * 2-6")) == Night("2026-11-21", "absent")  # not on Mondays
        assert self.night(make_settings(schedule="0 22 * * *")) == Night("2026-11-22", "absent")
        assert self.night(make_settings(schedule="0 22 * * *"), NOW.replace(hour=22, minute=30)).date == "2026-11-23"

    def test_what_has_only_just_begun_is_not_missed(self, make_settings: Make) -> None:
        settings = make_settings(schedule="0 22 * * *")
        Store.of(settings).write_bytes("reports/date=2026-11-22/index.html", b"page")
        assert self.night(settings, NOW.replace(hour=22, minute=5)) == Night("2026-11-22", "done")
        assert self.night(settings, NOW.replace(hour=22, minute=15)) == Night("2026-11-23", "absent")

    def test_the_date_is_the_shops(self, make_settings: Make) -> None:
        there = self.night(make_settings(timezone="America/New_York"), NOW.astimezone(UTC))
        assert there.date == "2026-11-22"

    def test_a_night_with_nothing_new_has_a_page(self, make_settings: Make) -> None:
        settings = make_settings()
        Store.of(settings).write_bytes("reports/date=2026-11-23/index.html", b"page")
        assert self.night(settings) == Night("2026-11-23", "done")
        Store.of(settings).delete("reports/date=2026-11-23/index.html")
        Store.of(settings).write_bytes("reports/date=2026-11-22/index.html", b"page")
        assert self.night(settings).state == "absent"
        assert self.night(make_settings(schedule="0 22 * * *")) == Night("2026-11-22", "done")
        # Saturday's came; what was run by hand on the day after it counts as much.
        assert self.night(make_settings(schedule="0 2 * * 6")) == Night("2026-11-21", "done")

    def test_what_a_plan_still_owes(self, clean_environment: None, tmp_path: Any) -> None:
        shop = ReviewShop.made(tmp_path, items=40, shard_size=20)
        assert shop.plan.shards > 1
        shop.store.delete(planning.done_key(shop.plan.run_key))
        shop.store.delete(Shard(shop.plan, 0).marker)
        seen = self.night(shop.settings)
        plan = shop.plan
        assert seen == Night("2026-11-23", "unfinished", plan.images, plan.shards, plan.shards - 1)


MORNING = Figures(
    date="2026-11-23",
    left=2140,
    disputed=0,
    stuck=0,
    done_today=0,
    done_yesterday=3500,
    per_hour=3210.0,
    pace_of="2026-11-22",
    done_by=datetime(2026, 11, 23, 9, 40, tzinfo=SHANGHAI),
    agreement=Share(0.934, 0.92, 0.95, 900, 900),
    audit=Share(0.971, 0.952, 0.983, 412, 430),
    people=NOTHING,
    by_person=(),
    night=Night("2026-11-23", "done"),
)


class TestMessage:
    def test_as_people_read_it(self, make_settings: Make) -> None:
        told = message.text(MORNING, make_settings(public_url="https://airflow.shop.example/"))
        assert told.splitlines() == [
            "2,140 张待审，按昨天的速度 9:40 完成。",
            "昨天审了 3,500 张；近 7 天人工认可模型标签 93%；"
            "自动上线的标签准确率约 97.1%（95% 区间 95.2%–98.3%，抽查 412 张）。",
            "去审核：https://airflow.shop.example/plugin/wwts",
        ]
        assert message.title(MORNING) == "图片审核 11月23日"

    def test_looks_that_nobody_is_left_to_give(self, make_settings: Make) -> None:
        told = message.text(replace(MORNING, left=0, stuck=3), make_settings()).splitlines()
        assert told[:2] == [
            "没有待审的图片。",
            "另有 3 张要换一个人再看，但能审核的人都已经看过；请管理员增加审核人员。",
        ]

    def test_without_an_address_there_is_no_link(self, make_settings: Make) -> None:
        assert "去审核" not in message.text(MORNING, make_settings())

    @pytest.mark.parametrize(
        ("night", "running", "expected"),
        [
            (
                Night("2026-11-23", "unfinished", 5000, 10, 7),
                1,
                "注意：昨夜的打标到现在没有完成：还有 3 批（共 10 批）没有打标，正在运行，完成后会补进队列。",
            ),
            (
                Night("2026-11-23", "unfinished", 5000, 10, 7),
                0,
                "注意：昨夜的打标到现在没有完成：还有 3 批（共 10 批）没有打标，"
                "已经停了，做完的部分已经发布；请管理员在 Airflow 里查看并重跑。",
            ),
            (
                Night("2026-11-23", "absent"),
                0,
                "注意：2026-11-23 的打标没有运行，或者一开始就失败了；请管理员在 Airflow 里查看。"
                "待审的是以前留下的图片。",
            ),
        ],
    )
    def test_a_night_that_is_late(self, make_settings: Make, night: Night, running: int, expected: str) -> None:
        morning = replace(MORNING, night=night)
        assert message.text(morning, make_settings(), running).splitlines()[1] == expected
        assert message.title(morning) == "图片审核 11月23日（打标未完成）"

    def test_the_deadline_is_named_once_it_has_passed(self, make_settings: Make) -> None:
        night = Night("2026-11-23", "unfinished", 5000, 10, 7)
        told = message.late(night, make_settings(deadline="00:00"), 1)
        assert told[0].startswith("注意：昨夜的打标过了 00:00 的时限仍没有完成：")
