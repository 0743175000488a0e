"""People at the review page, in a real browser before a real api-server: what they do is in the table, once.

One server and one shop for all of these; each test takes items of its own, by the leases that keep people apart.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import scenes
import sqlalchemy as sa
from playwright.sync_api import Frame, Page, Route, expect
from review_shop import ADMIN, REVIEWERS, VIEWER

from wwts_ops import database, publish, published
from wwts_ops.database import review_items, review_marks

LI, ZHANG, ANNA = REVIEWERS
#: A laptop's screen.
SCREEN = {"width": 1366, "height": 768}
#: So many that some labels have more than two grids of 50.
ITEMS = 3600
#: What a page shows once it is there, and what opens a sheet over it.
PAGES = {
    "look": "[data-testid=photo]",
    "grid": "[data-testid=grid-item][data-state=right]",
    "morning": "[data-testid=morning-left]",
    "taxonomy": "[data-testid=taxonomy-row]",
    "records": "[data-testid=answer]",
}
SHEETS = {"?": "help-sheet", "0": "none-sheet", "x": "reject-sheet", "a": "alike-sheet"}
SHOWN = """() => ({
    content: document.querySelector('[data-testid=photo]').dataset.content,
    labels: [...document.querySelectorAll('[data-testid^=choice-]')].map((one) => one.dataset.label),
})"""
#: Keys after which people look before they press another.
_ASKS = {"0": "[data-testid=none-sheet]", "x": "[data-testid=reject-sheet]", "/": "input:focus"}
#: A dialog that appears while people type ahead hears nothing for 0.7 s.
_DEAF_MS = 800
NEXT = """(before) => {
    const photo = document.querySelector('[data-testid=photo]');
    const asked = document.querySelector('[data-testid=shared-sheet]');
    return asked || (photo && photo.dataset.content !== before);
}"""


class Scene(scenes.Scene):
    """One in which people go, and others write."""

    def free(self, person: str) -> None:
        """Time passes: what ``person`` looks at is anybody's again."""
        ago = datetime.now(UTC) - timedelta(minutes=1)
        with database.transaction(self.shop.settings) as connection:
            these = sa.update(review_items).where(review_items.c.leased_by == person)
            connection.execute(these.values(leased_until=ago))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Somebody else writes for as long as the block lasts: who saves an answer has begun, and waits."""
        path = sa.make_url(self.shop.settings.resolved_database_url).database
        with closing(sqlite3.connect(str(path), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")


@dataclass
class Person:
    """Somebody with a browser of their own. ``troubles``: what the browser complained of."""

    name: str
    page: Page
    troubles: list[str] = field(default_factory=list)
    view: Page | Frame | None = None

    @property
    def frame(self) -> Page | Frame:
        """Where the review page is."""
        return self.view or self.page

    def shown(self) -> dict[str, Any]:
        """The picture that is looked at, and the labels to choose from."""
        self.frame.wait_for_selector("[data-testid=photo]")
        return dict(self.frame.evaluate(SHOWN))

    def press(self, *keys: str) -> None:
        for number, key in enumerate(keys, start=1):
            self.page.keyboard.press(key)
            if key in _ASKS and number < len(keys):
                self.frame.wait_for_selector(_ASKS[key])

    def say(self, *keys: str) -> dict[str, Any]:
        """Answers what is shown by these keys, and waits for the next picture; what was shown."""
        shown = self.shown()
        self.press(*keys)
        self.frame.wait_for_function(NEXT, arg=shown["content"])
        asked = self.frame.locator("[data-testid=shared-sheet]")
        if asked.count():
            self.page.wait_for_timeout(_DEAF_MS)
            self.press("2")  # not a placeholder picture: for all of its products
            expect(asked).to_have_count(0)
            self.frame.wait_for_function(NEXT, arg=shown["content"])
        return shown

    def saved(self) -> None:
        """Waits until the server has acknowledged everything."""
        expect(self.frame.locator("[data-testid=pending]")).to_have_attribute("data-pending", "0", timeout=60_000)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    users = {**dict.fromkeys([*REVIEWERS, ADMIN], "user"), VIEWER: "viewer"}
    with Scene.opened(tmp_path_factory.mktemp("e2e"), ITEMS, users) as opened:
        yield opened


Enters = Callable[..., Person]


@pytest.fixture
def enter(scene: Scene) -> Iterator[Enters]:
    """Somebody opens a page of ours; whatever their browser complains of fails the test, unless they expect it."""
    people: list[Person] = []

    def come(name: str, route: str = "look", screen: dict[str, int] = SCREEN, theme: str = "light") -> Person:
        context = scene.new_context(viewport=screen, color_scheme=theme)
        scene.sign_in(context, name)
        person = Person(name, context.new_page())
        people.append(person)
        watch(person)
        person.page.goto(f"{scene.served.pages}#/{route}")
        return person

    yield come
    for person in people:
        person.page.context.close()
        scene.free(person.name)
    assert {person.name: person.troubles for person in people if person.troubles} == {}


def watch(person: Person) -> None:
    """Notes what the browser complains of."""
    person.page.on("pageerror", lambda error: person.troubles.append(str(error)))
    person.page.on("console", lambda told: told.type == "error" and person.troubles.append(told.text))


def said(answers: Sequence[Any]) -> dict[str, tuple[str, list[str], str | None]]:
    """By content: kind, labels and reason; no content twice."""
    assert max(Counter(one.content_sha256 for one in answers).values()) == 1
    return {one.content_sha256: (one.kind, one.labels, one.reason) for one in answers}


# ------------------------------------------------------------------ one picture at a time


def meant(number: int, shown: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, list[str], str | None]]:
    """What the ``number``-th picture gets: which keys, and the answer that they stand for."""
    first, second = shown["labels"][:2]
    pear = "shop:f2"
    return {
        3: (("2",), ("correct", [second], None)),
        5: (("0", "0"), ("wrong_unknown", [], None)),
        7: (("x", "1"), ("reject_image", [], "not_an_image")),
        9: (("/", *"kuerle", "Enter"), ("confirm" if first == pear else "correct", [pear], None)),
        11: (("Space",), ("confirm", [first], None)),
        13: (("1",), ("confirm", [first], None)),
    }.get(number % 20, (("Enter",), ("confirm", [first], None)))


def test_two_hundred_pictures_by_keyboard_alone(scene: Scene) -> None:
    """From Airflow's own sign-in through its menu: the page is in its frame there."""
    context = scene.new_context(viewport=SCREEN)
    person = Person(LI, context.new_page())
    page = person.page
    page.goto(f"{scene.served.url}/")
    page.wait_for_url("**/auth/login**")
    page.locator("input[name=username]").fill(LI)
    page.locator("input[name=password]").fill(scene.served.passwords[LI])
    page.keyboard.press("Enter")
    watch(person)
    page.get_by_role("link", name="图片审核").click()
    person.view = page.wait_for_selector("iframe").content_frame()
    person.shown()
    while not person.view.locator("a.skip:focus").count():  # from the menu into the frame
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expected = {}
    for number in range(200):
        shown = person.shown()
        keys, answer = meant(number, shown)
        person.say(*keys)
        expected[shown["content"]] = answer
    person.saved()
    assert len(expected) == 200
    assert said([one for one in scene.answers() if one.answered_by == LI]) == expected
    assert person.troubles == []
    context.close()
    scene.free(LI)


def test_undo_shows_the_picture_again_and_takes_the_answer_back(scene: Scene, enter: Enters) -> None:
    person = enter(ZHANG)
    first, second = person.say("Enter"), person.say("2")
    person.saved()
    assert len(scene.answers(first["content"], second["content"])) == 2
    third = person.shown()["content"]
    person.press("u")
    person.frame.wait_for_selector(f"[data-testid=photo][data-content='{second['content']}']")
    person.saved()
    assert said(scene.answers(first["content"], second["content"])).keys() == {first["content"]}
    item = scene.item(second["content"])
    assert (item.state, item.leased_by) == ("open", ZHANG)
    person.press("Control+z")
    person.frame.wait_for_selector(f"[data-testid=photo][data-content='{first['content']}']")
    person.saved()
    assert scene.answers(first["content"], second["content"]) == []
    # Said anew, another way round; and what was shown before is next.
    assert person.say("2")["content"] == first["content"]
    assert person.say("Enter")["content"] == second["content"]
    assert person.shown()["content"] == third
    person.saved()
    assert said(scene.answers(first["content"], second["content"])) == {
        first["content"]: ("correct", [first["labels"][1]], None),
        second["content"]: ("confirm", [second["labels"][0]], None),
    }


def with_look_alike(person: Person) -> tuple[dict[str, Any], str]:
    """Skips to a picture that another one looks like; both."""
    for _ in range(60):
        shown = person.shown()
        person.frame.wait_for_selector(".strip:not([aria-busy])")
        others = person.frame.locator("[data-testid=alike] .thumb")
        if others.count():
            return shown, str(others.first.get_attribute("data-content"))
        person.say("s")
    raise AssertionError("nothing looks alike")


def test_what_looks_alike_is_answered_by_a_click_and_never_without(scene: Scene, enter: Enters) -> None:
    person = enter(ANNA)
    shown, other = with_look_alike(person)
    person.say("Enter")
    person.saved()
    assert said(scene.answers(shown["content"], other)).keys() == {shown["content"]}
    person.press("u")
    person.frame.wait_for_selector(f"[data-testid=photo][data-content='{shown['content']}']")
    person.frame.locator(f"[data-testid=alike] [data-content='{other}']").click()
    person.frame.locator("[data-testid=together]").click()
    person.frame.wait_for_function(NEXT, arg=shown["content"])
    person.saved()
    answer = ("confirm", [shown["labels"][0]], None)
    found = said(scene.answers(shown["content"], other))
    assert found[shown["content"]] == answer
    assert found[other][1:] == answer[1:]
    assert scene.item(other).state == scene.item(shown["content"]).state == "done"


# ------------------------------------------------------------------ fifty at a time


class Grid:
    """The page of thumbnails; counts what a person does on it."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.actions = 0
        self.cells = person.frame.locator("[data-testid=grid-item]")

    def contents(self, state: str = "") -> list[str]:
        """What is on the board, in a state or in any."""
        which = f"[data-state={state}]" if state else ""
        found = self.person.frame.locator(f"[data-testid=grid-item]{which}")
        return [str(one) for one in found.evaluate_all("(all) => all.map((one) => one.dataset.content)")]

    def ready(self, count: int) -> list[str]:
        """Waits until ``count`` thumbnails were seen; all that are there."""
        expect(self.person.frame.locator("[data-testid=grid-item][data-state=right]")).to_have_count(count)
        return self.contents()

    def settled(self) -> tuple[list[str], list[str]]:
        """What was seen and what was not, once all that can be seen had its time."""
        before, now = None, self.contents("right")
        while not now or now != before:
            self.person.page.wait_for_timeout(2_000)
            before, now = now, self.contents("right")
        return now, self.contents("unseen")

    def press(self, key: str) -> None:
        self.actions += 1
        self.person.press(key)

    def click(self, selector: str) -> None:
        self.actions += 1
        self.person.frame.locator(selector).first.click()


def test_a_grid_of_fifty_takes_three_actions_at_most(scene: Scene, enter: Enters) -> None:
    grid = Grid(person := enter(ZHANG, "grid"))
    label = str(person.frame.locator("[data-testid=grid-label][aria-current]").get_attribute("data-label"))
    right = grid.ready(50)
    grid.press("Enter")
    person.frame.wait_for_selector(f"[data-content='{right[0]}']", state="detached")
    assert grid.actions == 1
    person.saved()
    assert said(scene.answers(*right)) == dict.fromkeys(right, ("confirm", [label], None))

    person.frame.locator("[data-testid=grid-label]").nth(1).click()
    label = str(person.frame.locator("[data-testid=grid-label]").nth(1).get_attribute("data-label"))
    person.frame.wait_for_selector(f"[data-testid=grid-label][data-label='{label}'][aria-current]")
    grid.actions = 0
    board = grid.ready(50)
    grid.click("[data-testid=grid-item] >> nth=7")
    expect(person.frame.locator("[data-testid=grid-item][data-state=wrong]")).to_have_count(1)
    grid.press("Enter")
    grid.click("[data-testid=grid-later]")
    person.frame.wait_for_selector(f"[data-content='{board[0]}']", state="detached")
    person.saved()
    assert grid.actions == 3
    wrong = board[7]
    expected = dict.fromkeys(board, ("confirm", [label], None)) | {wrong: ("wrong_unknown", [], None)}
    assert said(scene.answers(*board)) == expected
    assert scene.item(wrong).state == "later"
    # Whoever looks next sees it first.
    other = enter(ANNA)
    assert other.say("2")["content"] == wrong
    other.saved()
    assert scene.item(wrong).state == "done"


def test_what_was_not_seen_is_not_answered(scene: Scene, enter: Enters) -> None:
    grid = Grid(person := enter(LI, "grid", {"width": 900, "height": 480}))
    seen, unseen = grid.settled()
    assert unseen
    wrong = seen[:2]
    for content in wrong:
        grid.click(f"[data-testid=grid-item][data-content='{content}']")
    grid.press("Enter")
    person.frame.wait_for_selector("[data-testid=grid-fix]")
    person.press(*"baijiu")
    person.frame.wait_for_selector("[data-testid=grid-pick] [role=option]")
    name = person.frame.locator("[data-testid=grid-pick] [role=option] .name").first.inner_text()
    person.press("Enter")
    person.saved()
    found = said(scene.answers(*seen, *unseen))
    assert found.keys() == set(seen)
    [label] = {tuple(found[content][1]) for content in wrong}
    assert scene.shop.names.by_id[label[0]].label_zh == name
    assert {found[content][0] for content in wrong} == {"correct"}
    assert {found[content][0] for content in seen[2:]} == {"confirm"}


# ------------------------------------------------------------------ who may not


def test_a_viewer_looks_and_is_refused(scene: Scene, enter: Enters) -> None:
    viewer = enter(VIEWER)
    expect(viewer.frame.locator("[data-testid=readonly]").first).to_be_visible()
    for key in ("Enter", "1", "0", "x", "s", "u"):
        viewer.press(key)
    content = scene.shop.store.list("thumbnails", ".jpg")
    some = Path(next(iter(content))).stem
    action = {"answer_id": "a-viewer-tries-it", "content": some, "kind": "wrong_unknown"}
    ask = """async ([path, body]) => (await fetch(path, {
        method: 'POST', body: JSON.stringify(body), headers: {'Content-Type': 'application/json'},
    })).status"""
    bodies = {
        "api/answers": {"actions": [action]},
        "api/take": {"filters": {}, "count": 1, "held": []},
        "api/undo": {"answer_ids": ["a-viewer-tries-it"]},
    }
    assert {path: viewer.frame.evaluate(ask, [path, body]) for path, body in bodies.items()} == dict.fromkeys(
        bodies, 403
    )
    assert [one for one in scene.answers() if one.answered_by == VIEWER] == []
    viewer.page.goto(f"{scene.served.pages}#/morning")
    expect(viewer.frame.locator("[data-testid=morning-left]")).to_be_visible()
    viewer.troubles = [trouble for trouble in viewer.troubles if "403" not in trouble]


# ------------------------------------------------------------------ many at once, and what breaks


def test_two_browsers_on_one_picture_make_one_answer_and_one_polite_notice(scene: Scene, enter: Enters) -> None:
    one = enter(LI)
    content = one.shown()["content"]
    scene.free(LI)  # away for so long that the picture is given to somebody else
    other = enter(ZHANG)
    assert other.shown()["content"] == content
    one.say("Enter")
    one.saved()
    other.say("2")
    expect(other.frame.locator("[data-testid=toast]")).to_contain_text(LI)
    other.saved()
    [answer] = scene.answers(content)
    assert (answer.answered_by, answer.kind) == (LI, "confirm")
    assert other.shown()["content"] != content


def test_reload_double_click_and_a_lost_connection_lose_nothing_and_double_nothing(scene: Scene, enter: Enters) -> None:
    person = enter(ANNA)
    given = [person.say("Enter")["content"]]
    person.page.context.set_offline(True)
    given += [person.say("Enter")["content"] for _ in range(3)]
    expect(person.frame.locator("[data-testid=banner]")).to_be_visible()
    assert len(scene.answers(*given)) <= 1
    person.page.context.set_offline(False)
    person.saved()
    expect(person.frame.locator("[data-testid=banner]")).to_have_count(0)
    given.append(person.shown()["content"])
    person.frame.locator("[data-testid=choice-1]").dblclick()
    person.frame.wait_for_function(NEXT, arg=given[-1])
    with scene.busy():
        given.append(person.say("Enter")["content"])
        person.page.reload()
        person.frame.wait_for_selector("[data-testid=pending]:not([data-pending='0'])")
    person.saved()
    given.append(person.say("Enter")["content"])
    person.page.goto(f"{scene.served.pages}#/grid")
    person.page.go_back()
    given.append(person.say("Enter")["content"])
    person.saved()
    assert len(set(given)) == len(given)
    mine = [one.content_sha256 for one in scene.answers(*given)]
    assert sorted(mine) == sorted(given)
    person.troubles = [trouble for trouble in person.troubles if "ERR_INTERNET_DISCONNECTED" not in trouble]


def test_a_server_that_is_killed_in_the_middle_of_a_save_loses_and_doubles_nothing(scene: Scene, enter: Enters) -> None:
    """One person's save is under way, another's is done and its reply is not: both are sent again."""
    saving, unheard = enter(LI), enter(ZHANG)
    unanswered: list[Route] = []

    def keep(route: Route) -> None:
        if unanswered:
            return route.continue_()
        assert route.fetch().ok  # it is recorded; nobody is told
        return unanswered.append(route)

    unheard.page.route("**/api/answers", keep)
    with unheard.page.expect_request("**/api/answers"):
        given = [unheard.say("Enter")["content"]]
    while not unanswered:
        unheard.page.wait_for_timeout(20)
    assert said(scene.answers(*given)).keys() == set(given)
    with scene.busy():
        with saving.page.expect_request("**/api/answers"):
            given += [saving.say("Enter")["content"] for _ in range(3)]
        scene.served.kill()
    assert len(scene.answers(*given)) == 1
    try:
        unanswered[0].abort()
        # They go on meanwhile: what was fetched ahead is there.
        for person in (saving, unheard):
            given += [person.say("2")["content"] for _ in range(2)]
            expect(person.frame.locator("[data-testid=banner]")).to_be_visible()
    finally:
        scene.served.start()
    for person in (saving, unheard):
        person.saved()
        expect(person.frame.locator("[data-testid=banner]")).to_have_count(0)
        given.append(person.say("Enter")["content"])
        person.saved()
        person.troubles = [trouble for trouble in person.troubles if "ERR_" not in trouble]
    assert len(set(given)) == len(given) == 10
    assert sorted(one.content_sha256 for one in scene.answers(*given)) == sorted(given)


def test_what_people_said_is_what_consumers_read(scene: Scene, enter: Enters) -> None:
    person = enter(ANNA)
    expected = {}
    for keys, place in ((("Enter",), 0), (("2",), 1), (("3",), 2)):
        shown = person.say(*keys)
        expected[shown["content"]] = shown["labels"][place]
    bad = person.say("x", "1")["content"]
    person.saved()
    pointer = publish.refresh(scene.shop.store, scene.shop.settings)
    assert pointer is not None
    rows = published.read(scene.shop.store).to_pylist()
    for content, label in expected.items():
        of_content = [row for row in rows if row["content_sha256"] == content]
        assert of_content
        assert {row["label_id"] for row in of_content} == {label}
        assert {row["source"] for row in of_content} == {"correction"}
    assert not any(row["label_id"] for row in rows if row["content_sha256"] == bad)


def test_the_records_say_why_a_picture_is_no_bad_case(scene: Scene, enter: Enters) -> None:
    person = enter("anna")
    said = person.say("b", "Enter")
    person.say("b", "Enter")
    person.saved()
    content = review_marks.c.content_sha256 == said["content"]
    with database.transaction(scene.shop.settings) as connection:
        refused = {"done_at": database.now(connection), "outcome": "refused: changed: the bytes have changed"}
        assert connection.execute(sa.update(review_marks).where(content).values(**refused)).rowcount == 1
    person.page.goto("about:blank")
    person.page.goto(f"{scene.served.pages}#/records")
    expect(person.frame.get_by_test_id("answer").nth(1)).to_contain_text("没有收为坏例：原图已经换成了别的内容")
    expect(person.frame.get_by_test_id("answer-no-badcase")).to_have_count(1)


# ------------------------------------------------------------------ for everybody


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(scene: Scene, enter: Enters, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe, found = Axe(), {}

    def check(what: str) -> None:
        for fault in axe.run(person.page).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                found[what, fault["id"]] = [node["html"] for node in fault["nodes"]][:3]

    person = enter(ADMIN, theme=theme)
    person.say("Enter")  # so that there is something in the records
    person.saved()
    with_look_alike(person)
    for key, sheet in SHEETS.items():
        person.press(key)
        person.frame.wait_for_selector(f"[data-testid={sheet}]")
        check(sheet)
        person.press("Escape")
        person.frame.wait_for_selector(f"[data-testid={sheet}]", state="detached")
    for route, there in PAGES.items():
        person.page.goto("about:blank")
        person.page.goto(f"{scene.served.pages}#/{route}")
        person.frame.locator(there).first.wait_for()
        assert person.frame.evaluate("document.documentElement.dataset.theme") == theme
        check(route)
    assert found == {}
