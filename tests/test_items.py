"""Items of the review page, the same on SQLite and on a real PostgreSQL: who gets which, and what answers do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from item_table import (
    ALL,
    DATE,
    Make,
    answer,
    change,
    content,
    empty,
    expire,
    item,
    load,
    numbers,
    opine,
    retract,
    row,
    taken,
)
from pydantic import ValidationError
from review_shop import ADMIN

from wwts_ops import corrections, database
from wwts_ops.errors import WwtsError
from wwts_ops.records import REVIEW_ITEMS
from wwts_ops.review import items
from wwts_ops.review.items import Filters
from wwts_ops.settings import Settings
from wwts_ops.web.bodies import TakeBody


@pytest.fixture
def shop(database_url: str, make_settings: Make) -> Settings:
    return empty(make_settings, database_url)


class TestTake:
    def test_the_best_use_of_a_look_comes_first(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in (3, 1, 2, 4)))
        assert taken(shop, count=3) == [1, 2, 3]

    def test_what_shall_be_labelled_later_comes_before_all(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 6)))
        change(shop, 4, state="later")
        change(shop, 5, state="later")
        change(shop, 2, state="second")
        assert taken(shop) == [4, 5, 1, 2, 3]

    def test_who_could_not_label_it_gets_it_last_and_others_first(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 7)))
        corrections.record(shop, [answer(2, "小李", kind="wrong_unknown"), answer(5, "小张", kind="wrong_unknown")])
        corrections.record(shop, [answer(6, "小李", kind="wrong_unknown")])
        change(shop, 2, 5, 6, state="later")
        assert numbers(items.peek(shop, "小李", ALL, 9)) == [5, 1, 3, 4, 2, 6]
        assert taken(shop, "小李", count=2) == [5, 1]
        assert taken(shop, "小张", count=3) == [2, 6, 3]
        assert taken(shop, "小王") == [4]
        corrections.record(shop, [retract(6, 3)])
        change(shop, 6, state="later", leased_until=None)
        assert taken(shop, "小李", count=1) == [5]
        assert taken(shop, "小李", count=9, held=[content(5)]) == [6, 1]

    def test_nobody_gets_what_somebody_else_looks_at(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 6)))
        assert taken(shop, "小李", count=2) == [1, 2]
        assert taken(shop, "小张", count=2) == [3, 4]
        assert taken(shop, "小李", count=9, held=[content(1), content(2)]) == [5]
        assert taken(shop, "小张", count=9) == [3, 4]

    def test_a_page_that_was_reloaded_gets_its_own_again(self, shop: Settings) -> None:
        load(shop, row(1), row(2))
        assert taken(shop, count=1) == taken(shop, count=1) == [1]

    def test_a_lease_ends(self, shop: Settings) -> None:
        load(shop, row(1))
        before = datetime.now(UTC)
        (found,) = items.take(shop, "小李", ALL, 1)
        assert found.leased_by == "小李"
        assert found.leased_until is not None
        assert timedelta(minutes=4) < found.leased_until - before < timedelta(minutes=6)
        expire(shop, 1)
        assert taken(shop, "小张") == [1]
        assert item(shop, 1).leased_by == "小张"

    def test_a_lease_is_no_change_of_what_is_decided_upon(self, shop: Settings) -> None:
        load(shop, row(1))
        before = item(shop, 1).revision
        taken(shop)
        items.renew(shop, "小李", [content(1)])
        items.release(shop, "小李", [content(1)])
        assert item(shop, 1).revision == before

    def test_done_is_done(self, shop: Settings) -> None:
        load(shop, row(1))
        change(shop, 1, state="done")
        assert taken(shop) == []
        assert taken(shop, filters=Filters(states=("done",))) == []

    @pytest.mark.parametrize(("count", "given"), [(-1, 0), (0, 0), (10**9, items.MOST)])
    def test_there_is_a_most(self, shop: Settings, count: int, given: int) -> None:
        load(shop, *(row(number) for number in range(1, items.MOST + 10)))
        assert len(taken(shop, count=count)) == given

    def test_whatever_a_page_holds_is_not_given_again(self, shop: Settings) -> None:
        """Also what was skipped all morning."""
        load(shop, *(row(number) for number in range(1, 1004)))
        body = TakeBody.model_validate({"count": 10, "held": tuple(content(number) for number in range(1, 1001))})
        assert taken(shop, held=body.held) == [1001, 1002, 1003]
        with pytest.raises(ValidationError, match="held"):
            TakeBody.model_validate({"count": 10, "held": (*body.held, content(1001))})

    def test_an_item_comes_as_the_night_wrote_it(self, shop: Settings) -> None:
        sibling = {"image_id": "别的", "content_sha256": content(9), "label_zh": "乙", "confidence": 0.5, "skus": 3}
        sibling |= {"label_id": "t:b", "model_version": "2"}
        given = row(1, siblings=[sibling], near_group="r:1", near=4, priority=-3, copies=5, skus=2)
        load(shop, given)
        (found,) = items.take(shop, "小李", ALL, 1)
        seen = {name: getattr(found, name) for name in REVIEW_ITEMS.names if name != "rank"}
        assert seen == {name: cell for name, cell in given.items() if name != "rank"}
        told = (found.date, found.state, found.revision, found.needed, found.blind, found.waits, found.reason)
        assert told == (DATE, "open", 1, 1, False, True, "low_confidence")

    def test_eight_at_once_never_get_the_same(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 161)))

        def work(person: str) -> list[int]:
            held: list[int] = []
            for _ in range(4):
                held += taken(shop, person, count=5, held=[content(number) for number in held])
            return held

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, [f"人{number}" for number in range(8)]))
        everything = sorted(number for one in found for number in one)
        assert everything == list(range(1, 161))

    def test_many_take_answer_and_renew_at_once_and_nothing_is_lost(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 65)))

        def work(person: str) -> list[int]:
            done: list[int] = []
            while found := taken(shop, person, count=3):
                items.renew(shop, person, [content(number) for number in reversed(found)])
                corrections.record(shop, [answer(number, person) for number in reversed(found)])
                done += found
            return done

        with ThreadPoolExecutor(8) as pool:
            said = [number for one in pool.map(work, [f"人{number}" for number in range(8)]) for number in one]
        assert sorted(said) == list(range(1, 65))
        assert corrections.latest(shop) == 64
        assert items.left(shop, "小李", ALL) == 0


class TestPeek:
    """Who only looks takes nothing from anybody."""

    def test_it_is_what_would_be_taken_and_nothing_changes(self, shop: Settings) -> None:
        load(shop, *(row(number, label_id=f"t:{number % 2}") for number in range(1, 7)))
        change(shop, 4, state="later")
        change(shop, 6, state="done")
        taken(shop, "小张", count=2)
        before = [item(shop, number) for number in range(1, 7)]
        peeked = items.peek(shop, "guest", ALL, 3)
        assert numbers(peeked) == [4, 1, 2]
        assert peeked[1] == before[0]
        assert peeked[1].leased_by == "小张"
        assert numbers(items.peek(shop, "guest", ALL, 9, [content(4), content(2)])) == [1, 3, 5]
        assert numbers(items.peek(shop, "guest", Filters(labels=("t:0",)), 9)) == [4, 2]
        assert items.peek(shop, "guest", Filters(states=("done",)), 9) == []
        assert [item(shop, number) for number in range(1, 7)] == before
        assert taken(shop, "小李") == [2, 3, 5]

    def test_nobody_sees_beforehand_what_waits_for_a_look_after_their_own(self, shop: Settings) -> None:
        load(shop, row(1))
        change(shop, 1, state="second", needed=2)
        opine(shop, 1, "小李")
        assert items.peek(shop, "小李", ALL, 9) == []
        assert numbers(items.peek(shop, "guest", ALL, 9)) == [1]

    def test_a_label_at_a_glance(self, shop: Settings) -> None:
        load(shop, row(1), row(2, label_id="t:b"), row(3), row(4), row(5))
        change(shop, 3, needed=2)
        change(shop, 4, state="later")
        change(shop, 5, leased_by="小张", leased_until=datetime.now(UTC) + timedelta(hours=1))
        assert numbers(items.peek_label(shop, "t:a", ALL, 50)) == [1, 5]
        assert numbers(items.peek_label(shop, "t:a", ALL, 1)) == [1]
        assert item(shop, 1).leased_by is None

    @pytest.mark.parametrize(("count", "given"), [(-1, 0), (10**9, items.MOST)])
    def test_there_is_a_most(self, shop: Settings, count: int, given: int) -> None:
        load(shop, *(row(number) for number in range(1, items.MOST + 10)))
        assert len(items.peek(shop, "guest", ALL, count)) == given


class TestSecondLooks:
    """Nobody judges their own answer."""

    def test_a_blind_second_look_is_somebody_elses(self, shop: Settings) -> None:
        load(shop, row(1))
        corrections.record(shop, [answer(1, "小李")])
        change(shop, 1, state="second")
        assert taken(shop, "小李") == []
        assert items.left(shop, "小李", ALL) == 0
        assert items.left(shop, "小张", ALL) == 1
        assert taken(shop, "小张") == [1]

    def test_what_is_somebody_elses_is_counted_for_them_alone(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in (1, 2, 3, 4)))
        corrections.record(shop, [answer(1, "小李")])
        change(shop, 1, state="second")
        change(shop, 2, state="second", needed=2)
        opine(shop, 2, "小李")
        change(shop, 3, state="disputed", needed=2)
        opine(shop, 3, "小李")
        for person, count in (("小李", 1), ("小张", 4), (ADMIN, 4)):
            facets = items.facets(shop, person, ALL)
            assert items.left(shop, person, ALL) == count
            assert facets["date"] == [(DATE, count)]
            assert facets["label"] == [("t:a", "甲", count)]
        assert items.facets(shop, "小李", Filters(states=("second",)))["date"] == []

    def test_the_second_of_two_is_somebody_elses(self, shop: Settings) -> None:
        load(shop, row(1))
        change(shop, 1, state="second", needed=2)
        opine(shop, 1, "小李")
        assert taken(shop, "小李") == []
        assert taken(shop, "小张") == [1]

    def test_who_took_their_opinion_back_may_look_again(self, shop: Settings) -> None:
        load(shop, row(1))
        change(shop, 1, state="second", needed=2)
        opine(shop, 1, "小李", datetime.now(UTC))
        assert taken(shop, "小李") == [1]

    def test_a_third_person_settles_a_dispute_or_an_admin(self, shop: Settings) -> None:
        load(shop, row(1))
        change(shop, 1, state="disputed", needed=2)
        opine(shop, 1, "小李")
        opine(shop, 1, ADMIN)
        assert taken(shop, "小李") == []
        assert taken(shop, ADMIN) == [1]
        items.release(shop, ADMIN, [content(1)])
        assert taken(shop, "小张") == [1]

    def test_who_is_an_admin_waits_for_the_second_look_like_all(self, shop: Settings) -> None:
        load(shop, row(1))
        change(shop, 1, state="second", needed=2)
        opine(shop, 1, ADMIN)
        assert taken(shop, ADMIN) == []


class TestLabel:
    def test_only_what_shows_the_label_and_one_look_settles(self, shop: Settings) -> None:
        load(shop, row(1), row(2, label_id="t:b"), row(3), row(4), row(5), row(6))
        change(shop, 3, needed=2)
        change(shop, 4, state="later")
        change(shop, 5, leased_by="小张", leased_until=datetime.now(UTC) + timedelta(hours=1))
        assert numbers(items.take_label(shop, "小李", "t:a", ALL, 50)) == [1, 6]
        assert numbers(items.take_label(shop, "小王", "t:b", ALL, 50)) == [2]
        assert items.take_label(shop, "小李", "t:a", Filters(dates=("2020-01-01",)), 50) == []
        assert items.take_label(shop, "小李", "t:a", Filters(states=("later",)), 50) == []

    def test_the_next_ones_are_as_many_whatever_else_waits_of_the_label(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 161)))
        for number in range(101, 131):
            change(shop, number, state="later")
        for number in range(131, 161):
            change(shop, number, needed=2)
        board = items.take_label(shop, "小李", "t:a", ALL, 50)
        held = [one.content_sha256 for one in board]
        assert numbers(board) == list(range(1, 51))
        assert numbers(items.take_label(shop, "小李", "t:a", ALL, 50, held)) == list(range(51, 101))


class TestLeases:
    def test_what_one_holds_can_be_held_longer(self, shop: Settings) -> None:
        load(shop, row(1), row(2), row(3))
        taken(shop, "小李", count=2)
        taken(shop, "小张")
        expire(shop, 2)
        names = [content(3), content(2), content(1), content(9), content(2)]
        assert items.renew(shop, "小李", names) == [content(2), content(1)]
        assert taken(shop, "小张", held=[content(3)]) == []

    def test_what_somebody_took_meanwhile_is_theirs(self, shop: Settings) -> None:
        load(shop, row(1))
        taken(shop, "小李")
        expire(shop, 1)
        taken(shop, "小张")
        assert items.renew(shop, "小李", [content(1)]) == []
        items.release(shop, "小李", [content(1)])
        assert item(shop, 1).leased_by == "小张"

    def test_what_ran_out_long_ago_is_over(self, shop: Settings) -> None:
        load(shop, row(1), row(2))
        taken(shop, "小李")
        lease = timedelta(minutes=shop.lease_minutes)
        change(shop, 1, leased_until=datetime.now(UTC) - lease + timedelta(seconds=30))
        change(shop, 2, leased_until=datetime.now(UTC) - lease - timedelta(seconds=1))
        assert items.renew(shop, "小李", [content(1), content(2)]) == [content(1)]
        assert taken(shop, "小张") == [2]

    def test_nobody_holds_more_than_a_few_hundred(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 401)))
        everything: list[str] = []
        for _ in range(5):
            found = items.take(shop, "小李", ALL, 60, everything)
            everything += [one.content_sha256 for one in found]
        assert len(everything) == 200
        assert items.take_label(shop, "小李", "t:a", ALL, 50) != [], "their own are given again"
        assert items.take(shop, "小李", ALL, 60, everything) == []
        assert taken(shop, "小张", count=1) == [201]
        for number in range(1, 4):
            expire(shop, number)
        assert taken(shop, "小李", count=200, held=[content(number) for number in range(1, 101)]) == [
            *range(101, 201),
            202,
            203,
            204,
        ]
        assert items.renew(shop, "小李", [content(1), content(200)]) == [content(200)]
        items.release(shop, "小李", [content(200)])
        assert items.renew(shop, "小李", [content(1), content(2)]) == [content(1)]

    def test_what_is_given_back_is_free(self, shop: Settings) -> None:
        load(shop, row(1), row(2))
        taken(shop, "小李")
        items.release(shop, "小李", [content(2)])
        assert taken(shop, "小张") == [2]

    def test_nothing_is_nothing(self, shop: Settings) -> None:
        assert items.renew(shop, "小李", []) == []
        items.release(shop, "小李", [])
        assert taken(shop) == []
        assert items.one(shop, content(1)) is None


class TestAlike:
    def test_what_looks_alike_and_waits(self, shop: Settings) -> None:
        load(shop, *(row(number, near_group="r:1", near=4) for number in range(1, 6)), row(6, near_group="r:2"), row(7))
        change(shop, 2, state="done")
        change(shop, 3, state="later")
        change(shop, 4, state="second")
        assert numbers(items.alike(shop, item(shop, 1))) == [3, 5]
        assert numbers(items.alike(shop, item(shop, 1), limit=1)) == [3]
        assert items.alike(shop, item(shop, 7)) == []

    def test_the_best_of_many_without_reading_all(self, shop: Settings) -> None:
        load(shop, *(row(number, near_group="r:1", near=99) for number in range(1, 101)))
        broken = sa.text("UPDATE review_items SET tags = '不是' WHERE content_sha256 > :content")
        with database.transaction(shop) as connection:
            if connection.dialect.name == "sqlite":  # PostgreSQL keeps no such lists
                connection.execute(broken, {"content": content(61)})
        assert numbers(items.alike(shop, item(shop, 1))) == list(range(2, 62))


VARIED = {
    "date": ["2026-03-01", "2026-03-02"],
    "category_path": [
        "食品",
        "食品 > 水果",
        "食品 > 水果 > 梨",
        "食品 > 水果干",
        "食品店",
        "Food",
        "food",
        "100%",
        None,
    ],
    "label_id": ["t:a", "t:b", "100%", None],
    "decision_reason": ["low_confidence", "forced_category:食品", "forced_label", "low_confidence;skipped_off:x", None],
    "shown_because": ["review", "forced_review", "audit"],
    "state": ["open", "later", "second", "disputed", "done"],
}
FILTERS = [
    ALL,
    Filters(dates=("2026-03-02",)),
    Filters(categories=("食品 > 水果",)),
    Filters(categories=("100%", "food")),
    Filters(labels=("t:a", "100%")),
    Filters(decisions=("audit", "forced_review")),
    Filters(reasons=("low_confidence",)),
    Filters(reasons=("forced", "forced_category")),
    Filters(states=("later", "done")),
    Filters(dates=("2026-03-01",), categories=("食品",), labels=("t:a",), reasons=("low_confidence",)),
    Filters(categories=("没有",)),
]


def fits(filters: Filters, one: dict[str, Any], besides: str = "") -> bool:
    """By the words of what a filter is, an item at a time."""
    path, reason = one["category_path"] or "", (one["decision_reason"] or "").split(";")[0].split(":")[0]
    passed = {
        "dates": one["date"] in filters.dates,
        "categories": any(f"{path} > ".startswith(f"{wanted} > ") for wanted in filters.categories),
        "labels": one["label_id"] in filters.labels,
        "decisions": one["shown_because"] in filters.decisions,
        "reasons": reason in filters.reasons,
        "states": one["state"] in filters.states,
    }
    return one["state"] != "done" and all(
        through or not getattr(filters, name) or name == besides for name, through in passed.items()
    )


@pytest.fixture
def varied(shop: Settings) -> list[dict[str, Any]]:
    """A shop with all kinds of items."""
    chance = random.Random(3)
    made = []
    for number in range(1, 151):
        kind = {name: chance.choice(values) for name, values in VARIED.items()}
        kind["label_zh"] = None if kind["label_id"] is None else f"名 {kind['label_id']}"
        made.append({**row(number), **kind})
    for date in VARIED["date"]:
        rows = [{name: one[name] for name in REVIEW_ITEMS.names} for one in made if one["date"] == date]
        load(shop, *rows, date=str(date))
    for state in VARIED["state"]:
        change(shop, *(one["rank"] for one in made if one["state"] == state), state=state)
    return made


class TestFilters:
    def test_what_is_taken_left_and_counted_agrees(self, shop: Settings, varied: list[dict[str, Any]]) -> None:
        for number, filters in enumerate(FILTERS):
            wanted = {one["rank"] for one in varied if fits(filters, one)}
            assert items.left(shop, "小李", filters) == len(wanted), filters
            assert set(taken(shop, "小李", filters, items.MOST)) == wanted, filters
            assert items.facets(shop, "小李", filters) == counted(varied, filters), filters
            assert wanted or number == len(FILTERS) - 1, "a filter that shows nothing proves nothing"


def counted(rows: Sequence[dict[str, Any]], filters: Filters) -> dict[str, list[tuple[Any, ...]]]:
    """Each facet as a person would count: for every value, the items that remain when it is chosen alone."""
    paths = {
        " > ".join(one["category_path"].split(" > ")[:depth])
        for one in rows
        if one["category_path"]
        for depth in (1, 2)
    }
    labels = {one["label_id"]: one["label_zh"] for one in rows if one["label_id"]}
    reasons = {"low_confidence", "forced_category", "forced_label"}
    choices = {
        "date": ("dates", VARIED["date"]),
        "category": ("categories", paths),
        "label": ("labels", labels),
        "decision": ("decisions", VARIED["shown_because"]),
        "reason": ("reasons", reasons),
    }
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name, (kind, values) in choices.items():
        others = [one for one in rows if fits(filters, one, besides=kind)]
        pairs = [(value, sum(fits(Filters(**{kind: (value,)}), one) for one in others)) for value in values]
        pairs = sorted((pair for pair in pairs if pair[1]), key=lambda pair: (-pair[1], pair[0]))
        found[name] = [(value, labels[value], count) for value, count in pairs] if name == "label" else list(pairs)
    found["date"].sort(reverse=True)
    return found


class TestAnswers:
    """Whoever writes answers keeps the items right, in one transaction."""

    def test_an_answer_settles(self, shop: Settings) -> None:
        load(shop, row(1), row(2))
        taken(shop)
        corrections.record(shop, [answer(1, kind="wrong_unknown")])
        found = item(shop, 1)
        assert (found.state, found.revision, found.leased_by, found.leased_until) == ("done", 2, None, None)
        assert (item(shop, 2).state, item(shop, 2).revision) == ("open", 1)

    def test_an_old_tag_settles_nothing(self, shop: Settings) -> None:
        load(shop, row(1))
        corrections.record(shop, [answer(1, weak=True)])
        assert (item(shop, 1).state, item(shop, 1).revision) == ("open", 1)

    def test_who_takes_it_back_opens_it(self, shop: Settings) -> None:
        load(shop, row(1))
        corrections.record(shop, [answer(1), answer(1, "小张")])
        corrections.record(shop, [retract(1, 2)])
        assert item(shop, 1).state == "done", "the first answer is in force again"
        corrections.record(shop, [retract(1, 1)])
        assert (item(shop, 1).state, item(shop, 1).revision) == ("open", 4)
        assert taken(shop, "小王") == [1]

    def test_all_in_one_go_comes_to_the_same(self, shop: Settings) -> None:
        load(shop, row(1), row(2))
        corrections.record(shop, [answer(1), answer(2)])
        corrections.record(shop, [retract(1, 1), answer(1, "小张"), retract(2, 2)])
        assert (item(shop, 1).state, item(shop, 2).state) == ("done", "open")

    @pytest.mark.parametrize(
        ("state", "needed", "after"),
        [("later", 1, "done"), ("second", 1, "second"), ("second", 2, "done"), ("disputed", 1, "done")],
    )
    def test_an_import_settles_what_is_half_settled(self, shop: Settings, state: str, needed: int, after: str) -> None:
        load(shop, row(1))
        corrections.record(shop, [answer(1)] if needed == 1 else [])
        change(shop, 1, state=state, needed=needed)
        corrections.record(shop, [answer(1, "小张")])
        assert item(shop, 1).state == after

    @pytest.mark.parametrize(
        ("state", "needed", "after"),
        [("later", 1, "later"), ("second", 1, "open"), ("disputed", 1, "open"), ("second", 2, "second")],
    )
    def test_a_retract_of_all_there_is(self, shop: Settings, state: str, needed: int, after: str) -> None:
        load(shop, row(1))
        corrections.record(shop, [answer(1)])
        change(shop, 1, state=state, needed=needed)
        corrections.record(shop, [retract(1, 1)])
        assert item(shop, 1).state == after

    def test_answers_that_are_refused_change_no_item(self, shop: Settings) -> None:
        load(shop, row(1))
        with pytest.raises(WwtsError, match="no answer 7"):
            corrections.record(shop, [answer(1), retract(1, 7)])
        assert (item(shop, 1).state, item(shop, 1).revision) == ("open", 1)

    def test_an_answer_that_was_there_already_changes_nothing(self, shop: Settings) -> None:
        load(shop, row(1))
        corrections.record(shop, [answer(1)])
        before = item(shop, 1)
        corrections.record(shop, [answer(1)])
        assert item(shop, 1) == before

    def test_many_at_once(self, shop: Settings) -> None:
        load(shop, *(row(number) for number in range(1, 2501)))
        corrections.record(shop, [answer(number) for number in range(2, 2503)])
        assert taken(shop) == [1]
