"""How nights become items of the review page, once, and what ends their wait; on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
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
    item,
    load,
    row,
    taken,
)
from review_shop import REVIEWERS, ReviewShop
from written_nights import Nights, review

from wwts_ops import corrections, database, publish, taxonomy
from wwts_ops.database import review_items, review_loaded
from wwts_ops.errors import WwtsError
from wwts_ops.records import REVIEW_ITEMS
from wwts_ops.review import items, queue
from wwts_ops.review.items import Item
from wwts_ops.schemas import REVIEW_QUEUE
from wwts_ops.settings import Settings


@pytest.fixture
def shop(database_url: str, make_settings: Make) -> Settings:
    return empty(make_settings, database_url)


class TestLoad:
    def test_what_is_there_is_not_there_twice(self, shop: Settings) -> None:
        assert load(shop, row(1), row(2)) == 2
        assert load(shop, row(1), row(2), row(3)) == 1
        assert item(shop, 1).revision == 1

    def test_a_newer_run_replaces_what_is_still_open(self, shop: Settings) -> None:
        load(shop, row(1))
        taken(shop, "小李")
        newer = row(1, run_id="2026-03-02-bbbbbbbbbbbb", label_id="t:b", confidence=0.5, model_version="2")
        assert load(shop, newer, date="2026-03-02") == 1
        found = item(shop, 1)
        assert (found.date, found.label_id, found.confidence, found.model_version) == ("2026-03-02", "t:b", 0.5, "2")
        assert (found.revision, found.state, found.leased_by) == (2, "open", "小李")
        assert load(shop, row(1)) == 0, "the older one comes too late"
        assert item(shop, 1) == found

    @pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0, 1), (1, 0, 0)])
    def test_of_two_runs_of_a_day_the_same_one_counts_in_any_order(self, shop: Settings, order: Sequence[int]) -> None:
        runs = [row(1), row(1, run_id=f"{DATE}-bbbbbbbbbbbb", label_id="t:b")]
        for number in order:
            load(shop, runs[number])
        assert item(shop, 1).label_id == "t:b"
        assert load(shop, *runs[:1]) == load(shop, *runs[1:]) == 0

    def test_a_retag_replaces_what_is_there_and_later_days_replace_it(self, shop: Settings) -> None:
        older, newer = {"run_id": "rbbbbbbbbbbbb", "label_zh": "乙"}, {"run_id": "raaaaaaaaaaaa", "label_zh": "丙"}
        load(shop, row(1), date="2026-03-02")
        for asked, date, shown in [
            (older, "2026-03-01", "乙"),
            (newer, "2026-03-01", "丙"),
            ({"run_id": "2026-03-01-ffffffffffff"}, "2026-03-01", "丙"),  # a night of its day
            ({"run_id": "2026-03-02-ffffffffffff"}, "2026-03-02", "甲"),
        ]:
            load(shop, row(1, **asked), date=date)
            assert item(shop, 1).label_zh == shown
        load(shop, row(1, **newer), date="2026-03-03")
        change(shop, 1, state="done")
        load(shop, row(1), date="2026-03-03")
        assert item(shop, 1).state == "done"
        load(shop, row(1, **newer), date="2026-03-01")
        assert item(shop, 1).state == "open"

    def test_more_shards_of_the_run_change_figures_and_not_what_is_decided_upon(self, shop: Settings) -> None:
        load(shop, row(1))
        assert load(shop, row(1, copies=9, value=5.0, near_group="r:1", near=2)) == 1
        found = item(shop, 1)
        assert (found.copies, found.value, found.near, found.revision) == (9, 5.0, 2, 1)

    @pytest.mark.parametrize(
        ("label_id", "state", "revision"),
        [
            ("t:a", "open", 1),
            ("t:a", "later", 1),
            ("t:b", "open", 2),
            ("t:b", "later", 2),
            ("t:a", "done", 2),
        ],
    )
    def test_an_answer_on_its_way_is_heard_when_the_same_tag_is_asked_for_again(
        self, shop: Settings, label_id: str, state: str, revision: int
    ) -> None:
        load(shop, row(1))
        change(shop, 1, state=state)
        newer = row(1, run_id="2026-03-02-b", label_id=label_id, confidence=0.5, model_version="2")
        assert load(shop, newer, date="2026-03-02") == 1
        found = item(shop, 1)
        assert (found.date, found.model_version, found.confidence) == ("2026-03-02", "2", 0.5)
        assert found.revision == revision

    @pytest.mark.parametrize("state", ["later", "second", "disputed"])
    def test_what_people_said_half_of_stays_so(self, make_settings: Make, database_url: str, state: str) -> None:
        shop = make_settings(database_url=database_url, forced_answers=2)
        forced = {"decision": "forced_review", "shown_because": "forced_review"}
        load(shop, row(1, **forced))
        assert item(shop, 1).needed == 2
        change(shop, 1, state=state)
        load(shop, row(1, run_id="2026-03-02-b"), date="2026-03-02")
        found = item(shop, 1)
        assert (found.state, found.decision) == (state, "review")
        assert (found.needed, found.revision) == ((1, 1) if state == "later" else (2, 2))

    def test_what_is_answered_is_asked_no_more(self, shop: Settings) -> None:
        load(shop, row(1))
        corrections.record(shop, [answer(1), answer(2), answer(3, weak=True)])
        assert load(shop, row(1, run_id="2026-03-02-b"), row(2), row(3), date="2026-03-02") == 1
        assert item(shop, 1).state == "done"
        assert items.one(shop, content(2)) is None
        assert item(shop, 3).state == "open"

    def test_what_went_unanswered_waits_again_when_a_night_finds_it(self, shop: Settings) -> None:
        load(shop, row(1), date="2026-03-02")
        change(shop, 1, state="done")
        assert load(shop, row(1, run_id="2026-03-01-b")) == 0
        assert load(shop, row(1, run_id="2026-03-02-0"), date="2026-03-02") == 1
        assert (item(shop, 1).state, item(shop, 1).revision) == ("open", 2)

    def test_a_share_gets_a_second_look_that_is_the_same_for_all(self, make_settings: Make, database_url: str) -> None:
        shop = make_settings(database_url=database_url, second_looks=0.3, forced_answers=2)
        forced = {"decision": "forced_review", "shown_because": "forced_review"}
        load(shop, *(row(number) for number in range(1, 501)), *(row(number, **forced) for number in range(501, 601)))
        with database.reading(shop) as connection:
            asked = sa.select(review_items.c.blind, review_items.c.needed).order_by(review_items.c.content_sha256)
            found = connection.execute(asked).all()
        blind = [number for number, one in enumerate(found, 1) if one.blind]
        assert 90 < len(blind) < 210
        assert max(blind) <= 500, "what two look at anyhow"
        assert [one.needed for one in found] == [1] * 500 + [2] * 100

    @pytest.mark.parametrize(
        ("reviewers", "admins", "asked"), [("", "", 1), ("甲", "", 0), ("甲", "乙", 1), ("甲", "甲", 0)]
    )
    def test_who_is_alone_is_not_asked_to_wait_for_another(
        self, make_settings: Make, reviewers: str, admins: str, asked: int
    ) -> None:
        shop = make_settings(second_looks=1, reviewers=reviewers, review_admins=admins)
        load(shop, row(1))
        assert item(shop, 1).blind == bool(asked)


# ------------------------------------------------------------------ nights


@pytest.fixture
def made(clean_environment: None, tmp_path: Path, database_url: str) -> ReviewShop:
    return ReviewShop.made(tmp_path / "店", 60, database_url=database_url, audit_rate=0.3)


class TestNights:
    def test_a_routed_night_is_what_can_be_taken(self, made: ReviewShop) -> None:
        rows = made.store.read_table(queue.queue_key(made.plan)).to_pylist()
        found = items.take(made.settings, REVIEWERS[0], ALL, items.MOST)
        assert [one.content_sha256 for one in found] == [one["content_sha256"] for one in rows]
        assert {one.shown_because for one in found} == {"review", "forced_review", "audit"}
        assert any(one.near_group for one in found)
        assert any(one.siblings for one in found)
        assert max(one.skus for one in found) == 25

    def test_a_night_that_was_killed_while_it_loaded_comes_to_the_same(self, made: ReviewShop) -> None:
        before = items.take(made.settings, REVIEWERS[0], ALL, items.MOST)
        with database.transaction(made.settings) as connection:
            connection.execute(sa.delete(review_items).where(review_items.c.content_sha256 > "8"))
        assert len(items.take(made.settings, REVIEWERS[0], ALL, items.MOST)) < len(before)
        queue.route(made.store, made.settings, made.plan)
        after = items.take(made.settings, REVIEWERS[0], ALL, items.MOST)
        assert [shown(one) for one in after] == [shown(one) for one in before]

    def test_what_was_renamed_since_a_night_began_goes_by_its_name_now(self, made: ReviewShop) -> None:
        label = next(one for one in made.names.labels if one.label_id == "shop:f1")
        renamed = replace(label, label_zh="国产香蕉", category_path="生鲜 > 水果")
        taxonomy.edit(made.store, "小王", {label.label_id: renamed})
        with database.transaction(made.settings) as connection:
            connection.execute(sa.delete(review_items))
        queue.route(made.store, made.settings, made.plan)
        found = [one for one in waiting(made) if one.label_id == label.label_id]
        assert {(one.label_zh, one.category_path) for one in found} == {("国产香蕉", "生鲜 > 水果")}

    def test_two_that_route_at_once_do_no_harm(self, made: ReviewShop) -> None:
        before = {one.content_sha256: shown(one) for one in items.take(made.settings, "x", ALL, items.MOST)}
        with database.transaction(made.settings) as connection:
            connection.execute(sa.delete(review_items))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: queue.route(made.store, made.settings, made.plan), range(2)))
        assert {one.content_sha256: shown(one) for one in items.take(made.settings, "x", ALL, items.MOST)} == before

    def test_stores_of_before_there_were_items(self, made: ReviewShop) -> None:
        key = queue.queue_key(made.plan)
        old = made.store.read_table(key).select(REVIEW_QUEUE.names)
        made.store.write_table(key, old)
        made.store.write_table("review/date=2026-02-28/part-2026-02-28-0.parquet", old.slice(0, 0))
        lose(made.settings)
        assert items.sync(made.store, made.settings) == old.num_rows
        assert items.sync(made.store, made.settings) == 0
        found = items.take(made.settings, "x", ALL, items.MOST)
        assert {one.content_sha256 for one in found} == set(old["content_sha256"].to_pylist())
        assert found[0].shown_because == "forced_review"
        assert all(one.siblings == [] and one.near == 0 for one in found)

    def test_a_queue_is_loaded_once_whatever_became_of_its_items(self, made: ReviewShop) -> None:
        """A later run asked for all of them, they were pruned, or there were none: nobody waits for another look."""
        made.store.write_table(f"review/date={DATE}/part-{DATE}-empty.parquet", REVIEW_ITEMS.empty_table())
        items.sync(made.store, made.settings)
        rows = made.store.read_table(queue.queue_key(made.plan))
        later = rows.set_column(rows.schema.get_field_index("run_id"), "run_id", pa.array(["z"] * len(rows)))
        assert items.load(made.settings, later.cast(REVIEW_ITEMS), "2026-03-02") == len(rows)
        with unanswerable(made.settings):
            assert items.sync(made.store, made.settings) == 0
        corrections.record(made.settings, [answer(int(one, 16)) for one in rows["content_sha256"].to_pylist()[1:]])
        items.close(made.settings, {one.content_sha256: (one.revision, one.run_id) for one in waiting(made)}, "x", DATE)
        assert items.forget(made.settings, "2099-01-01") == len(rows)
        assert items.sync(made.store, made.settings) == 0
        assert waiting(made) == []

    def test_who_is_killed_while_a_queue_is_loaded_loads_the_rest_next_time(self, made: ReviewShop) -> None:
        """Rows are committed a thousand at a time, so that answers wait for no more than those."""
        key = f"review/date={DATE}/part-{DATE}-cccccccccccc.parquet"
        good = [row(number) for number in range(1, 1501)]
        made.store.write_table(key, pa.Table.from_pylist([*good[:-1], row(1500, value=None)], schema=LOOSE))
        with pytest.raises(WwtsError):
            items.sync(made.store, made.settings)
        assert items.one(made.settings, content(1000)) is not None
        assert items.one(made.settings, content(1001)) is None
        made.store.write_table(key, pa.Table.from_pylist(good, schema=REVIEW_ITEMS))
        assert items.sync(made.store, made.settings) == 500
        assert items.sync(made.store, made.settings) == 0

    def test_a_store_without_queues_is_in_sync(self, shop: Settings, tmp_path: Path) -> None:
        assert items.sync(Nights(tmp_path, tmp_path / "store").store, shop) == 0


LOOSE = pa.schema([field.with_nullable(True) for field in REVIEW_ITEMS])


def lose(shop: Settings) -> None:
    """A database that was lost and made anew."""
    with database.transaction(shop) as connection:
        connection.execute(sa.delete(review_items))
        connection.execute(sa.delete(review_loaded))


def waiting(made: ReviewShop) -> list[Item]:
    return items.peek(made.settings, "guest", ALL, items.MOST)


@contextmanager
def unanswerable(shop: Settings) -> Iterator[None]:
    """Whoever would read a queue to load it is refused: what it is loaded into has another name."""
    with database.transaction(shop) as connection:
        connection.execute(sa.text("ALTER TABLE review_items RENAME TO hidden"))
    yield
    with database.transaction(shop) as connection:
        connection.execute(sa.text("ALTER TABLE hidden RENAME TO review_items"))


def shown(one: Item) -> dict[str, Any]:
    return {name: cell for name, cell in vars(one).items() if name != "leased_until"}


class TestUnlisted:
    def test_what_is_published_no_more_waits_no_more_until_it_is_again(
        self, clean_environment: None, tmp_path: Path, database_url: str
    ) -> None:
        nights = Nights(tmp_path, tmp_path / "store")
        given = nights.settings(database_url=database_url)

        def live(catalog: dict[str, str], found: Sequence[str]) -> list[str]:
            """A whole night; what waits then."""
            plan = nights.plan(catalog)
            nights.write(plan, {name: review("x") for name in found}, sku_id=None)
            publish.publish(nights.store, given)
            queue.route(nights.store, given, plan)
            return sorted(one.image_id for one in items.take(given, "小李", ALL, 50))

        assert live({"a": "1", "b": "1", "c": "1"}, "abc") == ["a", "b", "c"]
        (kept,) = [one for one in items.take(given, "小李", ALL, 50) if one.image_id == "a"]
        # b's bytes are replaced, c is off the list.
        assert live({"a": "1", "b": "2", "d": "1"}, "bd") == ["a", "b", "d"]
        found = {one.image_id: one for one in items.take(given, "小李", ALL, 50)}
        assert shown(found["a"]) == shown(kept), "an older night's item that still is published"
        with database.reading(given) as connection:
            asked = sa.select(review_items.c.image_id, review_items.c.state).where(review_items.c.revision == 2)
            assert sorted(map(tuple, connection.execute(asked))) == [("b", "done"), ("c", "done")]

    def test_what_was_answered_and_is_listed_no_more_stays_done(self, made: ReviewShop) -> None:
        (first,) = items.take(made.settings, "小李", ALL, 1)
        corrections.record(made.settings, [answer(int(first.content_sha256, 16))])
        assert items.close_unlisted(made.store, made.settings) == 0

    def test_what_a_run_asked_for_meanwhile_stays(self, shop: Settings) -> None:
        load(shop, row(1), row(2), row(3))
        seen = {one["content_sha256"]: (one["revision"], one["run_id"]) for one in items.fresh(shop).to_pylist()}
        load(shop, row(1, run_id="2026-03-02-b"), date="2026-03-02")
        change(shop, 2, revision=2)
        assert items.close(shop, seen, "r1", "2026-03-02") == 1
        assert [item(shop, number).state for number in (1, 2, 3)] == ["open", "open", "done"]

    def test_nothing_published_closes_nothing(self, shop: Settings, tmp_path: Path) -> None:
        load(shop, row(1))
        assert items.close_unlisted(Nights(tmp_path, tmp_path / "store").store, shop) == 0
        assert taken(shop) == [1]

    def test_what_was_done_long_ago_can_be_forgotten(self, shop: Settings) -> None:
        load(shop, row(1), row(2), row(4))
        load(shop, row(3), date="2026-03-05")
        midnight = datetime(2026, 3, 5, tzinfo=ZoneInfo("Asia/Shanghai"))
        before = {"answered_at": midnight - timedelta(seconds=1)}
        corrections.record(shop, [answer(1, **before), answer(3, **before), answer(4, answered_at=midnight)])
        assert items.forgettable(shop, "2026-03-05") == items.forget(shop, "2026-03-05") == 1
        kept = [items.one(shop, content(number)) is None for number in (1, 2, 3, 4)]
        assert kept == [True, False, False, False], "what was answered since can still be taken back"
        assert load(shop, row(1)) == 0, "its answer stays in force"
