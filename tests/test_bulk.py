"""One bad morning is taken back: first shown, then just that, by an admin who is written down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from forkserver import CONTEXT
from review_table import ANNA, BEER, BOSS, LI, WINE, ZHANG, Table, accepted, act, content, sibling

from wwts_ops import database, events
from wwts_ops import settings as settings_module
from wwts_ops.database import corrections
from wwts_ops.errors import WwtsError
from wwts_ops.review import bulk
from wwts_ops.review.actions import Proposal
from wwts_ops.review.bulk import ChangedError, Preview, Seen, Selection
from wwts_ops.settings import Settings

ALWAYS = Selection(LI, datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture
def table(database_url: str, make_settings: Callable[..., Settings]) -> Table:
    settings = make_settings(database_url=database_url, review_admins=BOSS)
    database.upgrade(settings)
    return Table(settings)


def take_back(table: Table, selection: Selection = ALWAYS) -> int:
    """What there is at this moment."""
    return bulk.take_back(table.settings, BOSS, selection, bulk.preview(table.settings, selection))


class TestPreview:
    def test_it_tells_what_would_go(self, table: Table) -> None:
        one, two, three, four = table.put_all(range(4))
        undone = act(four)
        table.say(LI, act(one), act(two, "correct"), act(three, "wrong_unknown"), undone)
        table.say(ZHANG, act(table.put("别人")))
        table.undo(LI, undone)
        shown = bulk.preview(table.settings, ALWAYS)
        # The third one was shown as wine, and is no label.
        assert shown == Preview(3, 6, shown.at, [(WINE, 2), (BEER, 1)], [three, two, one], 1)
        assert len(table.answers()) == 4  # nothing was taken back

    def test_by_label_and_time(self, table: Table) -> None:
        one, two = table.put("一"), table.put("二", label_id=BEER)
        table.say(LI, act(one))
        table.say(LI, act(two))
        later = table.rows(corrections)[1]["answered_at"]
        assert bulk.preview(table.settings, replace(ALWAYS, label_id=WINE)).samples == [one]
        assert bulk.preview(table.settings, replace(ALWAYS, label_id="shop:没有")).count == 0
        assert bulk.preview(table.settings, replace(ALWAYS, since=later)).samples == [two]
        assert bulk.preview(table.settings, replace(ALWAYS, until=later)).samples == [one]

    def test_it_shows_no_more_than_24(self, table: Table) -> None:
        table.say(LI, *(act(one) for one in table.put_all(range(30))))
        shown = bulk.preview(table.settings, ALWAYS)
        assert (shown.count, len(shown.samples)) == (30, 24)

    def test_before_there_is_anything(self, make_settings: Callable[..., Settings]) -> None:
        settings = make_settings()
        assert bulk.preview(settings, ALWAYS).count == 0
        assert not settings.state_dir.exists()

    @pytest.mark.parametrize(
        "wrong",
        [{"person": " "}, {"until": ALWAYS.since}, {"since": datetime(2026, 3, 1)}],
    )
    def test_a_selection_that_cannot_be(self, wrong: dict[str, object]) -> None:
        with pytest.raises(WwtsError, match=r"撤回谁|时间范围"):
            replace(ALWAYS, **wrong)


class TestTakeBack:
    def test_what_was_shown_goes_and_is_written_down(self, table: Table) -> None:
        one = table.put("一", near_group="g", siblings=[sibling("册")])
        near, other = table.put("像一", near_group="g"), table.put("别人")
        table.say(LI, act(one, "correct", also=(near, content("册")), badcase=True))
        table.say(LI, act(table.put("二"), "wrong_unknown", proposal=Proposal("起泡酒")))
        table.say(ZHANG, act(other))
        shown = bulk.preview(table.settings, ALWAYS)
        assert shown.count == 4
        assert bulk.take_back(table.settings, BOSS, ALWAYS, shown) == 4
        assert table.answers() == [(ZHANG, "confirm", (WINE,))]
        assert [table.state(of) for of in (one, near, content("二"), other)] == ["open", "open", "open", "done"]
        assert (table.item(one).leased_by, table.item(one).revision) == (None, 3)
        assert [row["outcome"] for row in table.marks()] == ["taken_back"]
        assert [(row["state"], row["decided_by"]) for row in table.proposals()] == [("refused", BOSS)]
        retracts = [row for row in table.rows(corrections) if row["kind"] == "retract"]
        assert {row["answered_by"] for row in retracts} == {BOSS}
        assert all(LI in row["comment"] for row in retracts)
        (event,) = events.recent(table.settings, 10)
        assert (event.person, event.action, event.subject) == (BOSS, events.TOOK_BACK, LI)
        assert (event.detail["count"], event.detail["upto"]) == (4, shown.upto)

    def test_what_came_after_the_preview_stays(self, table: Table) -> None:
        one, two = table.put("一"), table.put("二")
        table.say(LI, act(one))
        shown = bulk.preview(table.settings, ALWAYS)
        table.say(LI, act(two))
        assert bulk.take_back(table.settings, BOSS, ALWAYS, shown) == 1
        assert (table.state(one), table.state(two)) == ("open", "done")

    def test_looks_that_came_after_the_preview_stay(self, table: Table) -> None:
        """They wait for somebody else, and so have no number."""
        first, second = table.put("一", needed=2), table.put("二", needed=2)
        table.say(LI, act(first))
        shown = bulk.preview(table.settings, ALWAYS)
        table.say(LI, act(second))
        assert bulk.take_back(table.settings, BOSS, ALWAYS, shown) == 1
        assert (table.state(first), table.state(second)) == ("open", "second")

    def test_what_changed_since_the_preview_is_previewed_again(self, table: Table) -> None:
        one, two = table.put("一"), table.put("二", needed=2)
        said = act(one)
        table.say(LI, said, act(two))
        shown = bulk.preview(table.settings, ALWAYS)
        table.undo(LI, said)
        with pytest.raises(ChangedError, match="现在会撤回 1 条，请重新预览"):
            bulk.take_back(table.settings, BOSS, ALWAYS, shown)
        assert (table.state(two), table.events()) == ("second", [])
        with pytest.raises(WwtsError, match="预览的时间不对"):
            Seen(1, 1, datetime(2026, 3, 1))

    @pytest.mark.parametrize("decided", ["in time", "later"])
    def test_what_came_of_a_proposed_label_goes_with_it(self, table: Table, decided: str) -> None:
        one, near = table.put("一", near_group="g"), table.put("像一", near_group="g")
        wish = act(one, "wrong_unknown", also=(near,), proposal=Proposal("起泡酒"))
        table.say(LI, wish)
        at = table.rows(corrections)[-1]["answered_at"]
        accepted(table, wish.answer_id)
        assert [answer[1:] for answer in table.answers()][2:] == [("correct", (BEER,))] * 2
        chosen = ALWAYS if decided == "in time" else replace(ALWAYS, until=at + timedelta(microseconds=1))
        shown = bulk.preview(table.settings, chosen)
        assert shown.count == 2
        assert bulk.take_back(table.settings, BOSS, chosen, shown) == 2
        assert (table.answers(), table.state(one), table.state(near)) == ([], "open", "open")

    def test_twice_does_no_more_than_once(self, table: Table) -> None:
        table.say(LI, act(table.put("一")))
        shown = bulk.preview(table.settings, ALWAYS)
        assert bulk.take_back(table.settings, BOSS, ALWAYS, shown) == 1
        with pytest.raises(ChangedError, match="现在会撤回 0 条，请重新预览"):
            bulk.take_back(table.settings, BOSS, ALWAYS, shown)
        assert (len(table.rows(corrections)), len(table.events())) == (2, 1)

    def test_two_admins_at_once(self, table: Table) -> None:
        contents = table.put_all(range(60))
        table.say(LI, *(act(one) for one in contents))
        given = {"store": table.settings.store, "database_url": table.settings.database_url}
        with ProcessPoolExecutor(2, mp_context=CONTEXT) as pool:
            counts = list(pool.map(_take_back, [given] * 2, [BOSS, ANNA]))
        assert sorted(counts) == [0, 60]
        assert (len(table.rows(corrections)), len(table.events())) == (120, 1)

    def test_what_somebody_else_said_before_counts_again(self, table: Table) -> None:
        one = table.put("一")
        table.say(ZHANG, act(one, "wrong_unknown", later=True))
        table.say(LI, act(one, "correct", revision=2))
        assert take_back(table) == 1
        assert (table.state(one), table.answers()) == ("later", [(ZHANG, "wrong_unknown", ())])

    def test_what_somebody_else_said_since_then_stays(self, table: Table) -> None:
        one = table.put("一")
        table.say(LI, act(one, "wrong_unknown", later=True))
        table.say(ZHANG, act(one, "correct", revision=2))
        assert bulk.preview(table.settings, ALWAYS).already == 1
        assert take_back(table) == 0
        assert table.state(one) == "done"

    def test_all_that_one_person_said_of_an_image(self, table: Table) -> None:
        """Else the answer before would count again, of the same bad morning."""
        one = table.put("一")
        table.say(LI, act(one, "wrong_unknown", later=True))
        table.say(LI, act(one, "correct", revision=2))
        assert take_back(table) == 1
        assert (table.state(one), table.answers()) == ("open", [])

    def test_looks_that_wait_for_somebody_else(self, table: Table) -> None:
        first, agreed, differ = (table.put(name, needed=2) for name in ("一", "二", "三"))
        table.say(LI, act(first), act(agreed), act(differ))
        table.say(ZHANG, act(agreed, revision=2), act(differ, "correct", revision=2))
        assert bulk.preview(table.settings, ALWAYS).count == 3
        assert take_back(table, replace(ALWAYS, person=ZHANG)) == 2
        assert [table.state(of) for of in (first, agreed, differ)] == ["second", "second", "second"]
        assert table.answers() == []
        assert take_back(table) == 3
        assert [table.state(of) for of in (first, agreed, differ)] == ["open", "open", "open"]

    def test_the_first_of_two_who_agreed(self, table: Table) -> None:
        one = table.put("一", needed=2)
        table.say(LI, act(one))
        table.say(ZHANG, act(one, revision=2))
        assert take_back(table) == 1
        assert (table.state(one), table.answers(), table.opinions(one)) == ("second", [], [(ZHANG, 1, None)])

    def test_many(self, table: Table) -> None:
        """More than one statement may name."""
        contents = table.put_all(range(1_100))
        for start in range(0, len(contents), 200):
            table.say(LI, *(act(one) for one in contents[start : start + 200]))
        assert take_back(table) == 1_100
        assert {table.state(of) for of in contents[::100]} == {"open"}


def _take_back(given: dict[str, str], admin: str) -> int:
    settings = settings_module.load(**given)
    with contextlib.suppress(ChangedError):
        return bulk.take_back(settings, admin, ALWAYS, Seen(60, 60, datetime.now(UTC)))
    return 0


def test_a_day_later_the_morning_is_still_there(table: Table) -> None:
    table.say(LI, act(table.put("一")))
    at = table.rows(corrections)[0]["answered_at"]
    morning = Selection(LI, at - timedelta(hours=1), at + timedelta(hours=1), WINE)
    assert take_back(table, morning) == 1
