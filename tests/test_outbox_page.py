"""What people said and the server has not taken yet: in a real browser, kept until it is, and under their own name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, Request, Route, expect
from review_shop import REVIEWERS
from scenes import Scene, shown

import wwts_ops
from wwts_ops import database
from wwts_ops.database import label_proposals, review_items

pytestmark = pytest.mark.slow

LI, ZHANG, ANNA = REVIEWERS
JS = Path(wwts_ops.__file__).parent / "web" / "static" / "js"
ANSWERS = "**/api/answers"
#: As long as the page believes that a lease lasts; the server's is longer.
LEASE_S = 300
NEXT = """(before) => {
    const photo = document.querySelector('[data-testid=photo]');
    const asked = document.querySelector('[data-testid=shared-sheet]');
    return asked || (photo && photo.dataset.content !== before);
}"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    users = dict.fromkeys(REVIEWERS, "viewer")
    with Scene.opened(tmp_path_factory.mktemp("outbox"), 300, users, lease_minutes=LEASE_S // 60) as opened:
        yield opened


Enters = Callable[..., Page]


@pytest.fixture
def enter(scene: Scene) -> Iterator[Enters]:
    """Somebody opens the page, in a browser of their own or in another tab of one that is open."""
    with scene.visits() as come:
        yield come


def confirm(page: Page) -> str:
    """Confirms what is shown, once the next picture is there; which content that was."""
    content = shown(page)
    page.keyboard.press("Enter")
    page.wait_for_function(NEXT, arg=content)
    if page.locator("[data-testid=shared-sheet]").count():
        page.keyboard.press("2")  # no placeholder picture
        page.wait_for_function(NEXT, arg=content)
    return content


def pending(page: Page, count: int) -> None:
    expect(page.locator("[data-testid=pending]")).to_have_attribute("data-pending", str(count), timeout=60_000)


def answering(status: int, body: dict[str, Any]) -> Callable[[Route], None]:
    """A server, or what stands before it, that says this to whatever is saved."""
    return lambda route: route.fulfill(status=status, content_type="application/json", body=json.dumps(body))


# ------------------------------------------------------------------ kept until it is taken


BROKEN = {
    "Airflow without our plugin": (404, {"detail": "Not Found"}),
    "a proxy": (405, {}),
    "something it cannot do now": (400, {"error": {"code": "refused", "message": "还没有标签体系。"}}),
    "somebody else's yes": (200, {"ok": True}),
}


@pytest.mark.parametrize("trouble", BROKEN)
def test_a_server_that_is_broken_for_a_while_costs_no_answer(scene: Scene, enter: Enters, trouble: str) -> None:
    page = enter(LI)
    page.context.route(ANSWERS, answering(*BROKEN[trouble]))
    content = confirm(page)
    expect(page.locator("[data-testid=banner]")).to_be_visible()
    pending(page, 1)
    page.reload()
    expect(page.locator("[data-testid=banner]")).to_be_visible()
    pending(page, 1)
    page.context.unroute(ANSWERS)
    pending(page, 0)
    assert scene.said(content) == [(LI, "confirm")]


def test_one_that_never_passes_holds_up_no_other(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    page.clock.install()
    page.context.route(ANSWERS, answering(500, {}))
    first, second = confirm(page), confirm(page)

    def only_others(route: Route) -> None:
        if first in (route.request.post_data or ""):
            answering(500, {})(route)
        else:
            route.continue_()

    page.context.unroute(ANSWERS)
    page.context.route(ANSWERS, only_others)
    for _ in range(6):
        page.clock.run_for(30_000)
        page.wait_for_timeout(100)
    pending(page, 1)
    assert (scene.said(first), scene.said(second)) == ([], [(LI, "confirm")])
    page.context.unroute(ANSWERS)


def refusal(route: Route) -> None:
    """The server takes everything but this."""
    [action] = json.loads(route.request.post_data or "")["actions"]
    result = {"answer_id": action["answer_id"], "content": action["content"], "status": "refused"}
    answering(200, {"results": [{**result, "message": "这个标签已经停用。", "by": None}]})(route)


def test_what_is_refused_stays_to_be_read_after_a_reload_and_in_other_tabs(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    other = enter(LI, page.context)
    page.context.route(ANSWERS, refusal)
    content = shown(page)
    page.keyboard.press("x")
    page.locator("[data-testid=reject-sheet] button.option").first.click()
    for one in (page, other):
        expect(one.locator("[data-testid=refused]")).to_contain_text("这个标签已经停用。")
    page.context.unroute(ANSWERS)
    page.reload()
    page.locator("[data-testid=refused] summary").click()
    expect(page.locator("[data-testid=refused-dismiss]")).to_be_visible()
    page.locator("[data-testid=refused-dismiss]").click()
    for one in (page, other):
        expect(one.locator("[data-testid=refused]")).to_have_count(0)
    assert scene.said(content) == []


def test_what_was_cleared_away_while_it_waited_is_sent_all_the_same(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    page.context.route(ANSWERS, lambda route: route.abort())
    content = confirm(page)
    expect(page.locator("[data-testid=banner]")).to_be_visible()
    page.evaluate("localStorage.clear()")
    page.context.unroute(ANSWERS)
    pending(page, 0)
    assert scene.said(content) == [(LI, "confirm")]


def test_what_one_tab_took_back_unsent_does_not_stand_because_another_sent_it(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    waiting: list[Route] | None = []

    def hold(route: Route) -> None:
        if waiting is None:
            return route.continue_()
        return waiting.append(route)

    page.context.route(ANSWERS, hold)
    with page.expect_request(ANSWERS):
        first = confirm(page)
    second = confirm(page)
    other = enter(LI, page.context)  # finds both, and sends both
    pending(other, 2)
    page.keyboard.press("u")
    pending(page, 1)
    pending(other, 2)  # one to say, one to take back
    held, waiting = waiting, None
    for route in held:
        route.continue_()
    for one in (page, other):
        pending(one, 0)
    assert scene.said(first) == [(LI, "confirm")]
    assert scene.said(second) == []


# ------------------------------------------------------------------ under one's own name


def test_a_name_that_begins_as_another_does_not_send_what_that_one_said(enter: Enters) -> None:
    page = enter(ANNA)
    page.context.route(ANSWERS, lambda route: route.abort())
    found = page.evaluate(
        """async () => {
            const counts = {};
            for (const [user, answers] of [['li.wei', 1], ['li', 0], ['li.', 0], ['li%', 0], ['li.wei', 0]]) {
                const outbox = await import(`./static/js/outbox.js?${Math.random()}`);
                outbox.open(user);
                if (answers) outbox.submit([{ answer_id: 'an-answer-of-li-wei', content: '0', kind: 'confirm' }]);
                counts[user] = outbox.state().pending;
            }
            return counts;
        }"""
    )
    assert found == {"li.wei": 1, "li": 0, "li.": 0, "li%": 0}


def test_answers_wait_for_who_gave_them_when_somebody_else_has_signed_in(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    page.context.route(ANSWERS, lambda route: route.abort())
    content = confirm(page)
    scene.sign_in(page.context, ZHANG)
    page.context.unroute(ANSWERS)
    veil = page.locator("[data-testid=other-person]")
    expect(veil).to_contain_text(f"现在登录的是{ZHANG}；{LI}还有 1 条未保存", timeout=60_000)
    page.keyboard.press("Enter")  # whoever sits there now says nothing in the other's name
    pending(page, 1)
    assert scene.said(content) == []
    theirs = enter(ZHANG, page.context)
    pending(theirs, 0)
    theirs.close()
    scene.sign_in(page.context, LI)
    expect(veil).to_have_count(0, timeout=60_000)
    pending(page, 0)
    assert scene.said(content) == [(LI, "confirm")]


def test_the_server_refuses_what_a_page_says_in_another_name(scene: Scene) -> None:
    with scene.served.browser(ZHANG) as browser:
        asked = {"contents": []}
        answer = browser.post("api/release", json=asked, headers={"X-Wwts-User": quote(LI)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_person")
        assert ZHANG in answer.json()["error"]["message"]
        assert browser.post("api/release", json=asked, headers={"X-Wwts-User": quote(ZHANG)}).status_code == 200
        assert browser.get("api/me", headers={"X-Wwts-User": quote(LI)}).status_code == 200


# ------------------------------------------------------------------ leases, and what is held


def test_leases_are_kept_only_while_somebody_is_there(scene: Scene, enter: Enters) -> None:
    context = scene.new_context()
    scene.sign_in(context, ANNA)
    page = context.new_page()
    page.clock.install()
    page.goto(scene.served.pages)
    page.wait_for_selector("[data-testid=photo]")
    renewed: list[str] = []

    def note(request: Request) -> None:
        renewed.extend([request.url] if "api/renew" in request.url else [])

    page.on("request", note)

    def minutes(count: int) -> int:
        """How often leases were renewed while nobody moved."""
        renewed.clear()
        page.clock.run_for(count * 60_000)
        page.wait_for_timeout(200)
        return len(renewed)

    page.mouse.move(50, 50)
    assert minutes(4) >= 1
    minutes(3)
    assert minutes(10) == 0
    with page.expect_request("**/api/renew"):
        page.mouse.move(80, 80)  # back: what nobody took meanwhile is kept
    context.close()


def test_a_grid_that_was_left_is_taken_anew_without_what_others_have(scene: Scene, enter: Enters) -> None:
    page = enter(ANNA)
    page.clock.install()
    page.goto(f"{scene.served.pages}#/grid")
    page.reload()
    first = page.locator("[data-testid=grid-item]").first
    content = str(first.get_attribute("data-content"))
    with database.transaction(scene.shop.settings) as connection:
        this = sa.update(review_items).where(review_items.c.content_sha256 == content)
        connection.execute(this.values(leased_by=ZHANG, leased_until=datetime.now(UTC) + timedelta(minutes=5)))
    page.clock.run_for((LEASE_S + 10) * 1000)
    page.mouse.move(70, 70)
    expect(page.locator(f"[data-testid=grid-item][data-content='{content}']")).to_have_count(0)
    expect(page.locator("[data-testid=grid-item]").first).to_be_visible()


# ------------------------------------------------------------------ the grid

PEAR, APPLE, BANANA = "shop:f2", "shop:f0", "shop:f1"
FEW = 20


@pytest.fixture
def pears(scene: Scene) -> Iterator[Scene]:
    """So many pears that they fill more than two grids, some of them in the queue's own states."""
    columns = review_items.c
    labels = {"label_id": PEAR, "label_zh": "库尔勒香梨"}
    with database.transaction(scene.shop.settings) as connection:
        asked = sa.select(columns.content_sha256, columns.label_id, columns.label_zh)
        asked = asked.where(columns.label_id.not_in([APPLE, BANANA]), columns.state == "open", columns.skus <= FEW)
        before = connection.execute(asked.order_by(columns.content_sha256).limit(170)).all()
        contents = [row.content_sha256 for row in before]
        assert len(contents) == 170
        connection.execute(sa.update(review_items).where(columns.content_sha256.in_(contents)).values(**labels))
        for some, values in ((contents[:20], {"state": "later"}), (contents[20:40], {"needed": 2})):
            connection.execute(sa.update(review_items).where(columns.content_sha256.in_(some)).values(**values))
    yield scene
    with database.transaction(scene.shop.settings) as connection:
        for row in before:
            this = sa.update(review_items).where(columns.content_sha256 == row.content_sha256)
            connection.execute(this.values(label_id=row.label_id, label_zh=row.label_zh))
        connection.execute(sa.update(review_items).values(needed=1))
        waiting = sa.update(review_items).where(columns.content_sha256.in_(contents[:20]), columns.state == "later")
        connection.execute(waiting.values(state="open"))


class Grid:
    """The page of thumbnails, as ANNA sees it."""

    def __init__(self, scene: Scene, page: Page) -> None:
        self.scene = scene
        self.page = page
        self.cells = page.locator("[data-testid=grid-item]")

    def choose(self, label: str) -> None:
        self.page.locator(f"[data-testid=grid-label][data-label='{label}']").click()

    def shown(self, label: str) -> list[str]:
        """Waits until the label's pictures are there; which."""
        expect(self.page.locator(f"[data-testid=grid-label][data-label='{label}'][aria-current]")).to_be_visible()
        expect(self.cells.first).to_be_visible()
        return self.contents()

    def full(self, count: int = 50) -> list[str]:
        """Waits until so many are on the board and were seen; which."""
        expect(self.page.locator("[data-testid=grid-item][data-state=right]")).to_have_count(count)
        return self.contents()

    def contents(self, state: str = "") -> list[str]:
        which = f"[data-testid=grid-item]{f'[data-state={state}]' if state else ''}"
        return [
            str(one) for one in self.page.locator(which).evaluate_all("(all) => all.map((one) => one.dataset.content)")
        ]

    def tick(self, *contents: str) -> None:
        for content in contents:
            self.page.locator(f"[data-testid=grid-item][data-content='{content}']").click()

    def leased(self) -> set[str]:
        """What is leased to ANNA."""
        asked = sa.select(review_items.c.content_sha256).where(review_items.c.leased_by == ANNA)
        with database.reading(self.scene.shop.settings) as connection:
            return set(connection.execute(asked).scalars())

    def holds(self, count: int) -> set[str]:
        """Waits until so many are leased to ANNA; which."""
        for _ in range(100):
            if len(found := self.leased()) == count:
                break
            self.page.wait_for_timeout(100)
        assert len(found) == count
        return found

    def takes(self, content: str) -> None:
        """Somebody else looks at it now."""
        with database.transaction(self.scene.shop.settings) as connection:
            this = sa.update(review_items).where(review_items.c.content_sha256 == content)
            connection.execute(this.values(leased_by=ZHANG, leased_until=datetime.now(UTC) + timedelta(minutes=5)))


@pytest.fixture
def grid(pears: Scene, enter: Enters) -> Grid:
    page = enter(ANNA)
    page.set_viewport_size({"width": 1500, "height": 1400})
    page.clock.install()
    page.goto(f"{pears.served.pages}#/grid")
    page.reload()
    found = Grid(pears, page)
    found.choose(PEAR)
    return found


def test_every_grid_is_full_whatever_else_waits_of_its_label(grid: Grid) -> None:
    first = grid.full()
    grid.holds(100)
    grid.page.keyboard.press("Enter")
    expect(grid.page.locator(f"[data-testid=grid-item][data-content='{first[0]}']")).to_have_count(0)
    second = grid.full()
    assert not {*first} & {*second}
    pending(grid.page, 0)
    assert {content: grid.scene.said(content) for content in first} == {one: [(ANNA, "confirm")] for one in first}
    grid.page.keyboard.press("u")
    expect(grid.page.locator(f"[data-testid=grid-item][data-content='{first[0]}']")).to_have_count(1)
    assert grid.full() == first
    grid.holds(100)
    pending(grid.page, 0)
    assert [content for content in first if grid.scene.said(content)] == []


def test_the_end_of_a_label_is_cleared_by_the_same_key(grid: Grid) -> None:
    with database.transaction(grid.scene.shop.settings) as connection:
        keep = sa.select(review_items.c.content_sha256).where(review_items.c.label_id == BANANA).limit(1)
        rest = sa.update(review_items).where(review_items.c.label_id == BANANA)
        connection.execute(rest.where(review_items.c.content_sha256.not_in(keep)).values(needed=2))
    grid.choose(BANANA)
    [content] = grid.full(1)
    grid.page.keyboard.press("Enter")
    expect(grid.page.locator("[data-testid=grid-finished]")).to_be_visible()
    pending(grid.page, 0)
    assert grid.scene.said(content) == [(ANNA, "confirm")]
    grid.page.keyboard.press("Enter")  # on to the next label
    expect(grid.cells.first).to_be_visible()


def test_a_picture_that_did_not_load_is_not_answered(grid: Grid) -> None:
    board = grid.full()
    grid.page.context.route(re.compile(f"/pictures/{board[3]}"), lambda route: route.abort())
    grid.choose(APPLE)
    grid.shown(APPLE)
    grid.choose(PEAR)
    grid.full(49)
    assert grid.contents("unseen") == [board[3]]
    expect(grid.page.locator(".gridbar")).to_contain_text("1 张看不到图片，不作答")
    grid.page.keyboard.press("Enter")
    pending(grid.page, 0)
    assert grid.scene.said(board[3]) == []


def test_a_grid_holds_its_board_and_the_next_one_and_gives_all_else_back(grid: Grid) -> None:
    board = grid.full()
    held = grid.holds(100)
    assert {*board} < held
    for label in (APPLE, BANANA, APPLE, BANANA, APPLE):
        grid.choose(label)
    apples = grid.shown(APPLE)
    assert grid.holds(len(apples)) == {*apples}
    grid.choose(PEAR)
    grid.full()
    held = grid.holds(100)

    def keeps_all(request: Request) -> bool:
        return "/api/renew" in request.url and set(json.loads(request.post_data or "")["contents"]) == held

    with grid.page.expect_request(keeps_all):
        grid.page.mouse.move(60, 60)
        grid.page.clock.run_for(LEASE_S * 500)
    grid.page.goto("about:blank")
    grid.holds(0)


def test_marks_outlast_what_others_took_and_a_reload(grid: Grid) -> None:
    board = grid.full()
    wrong, lost = board[4:6], board[20]
    grid.tick(*wrong, lost)
    grid.holds(100)
    grid.takes(lost)
    grid.page.clock.run_for((LEASE_S + 10) * 1000)
    grid.page.mouse.move(70, 70)
    expect(grid.page.locator(f"[data-testid=grid-item][data-content='{lost}']")).to_have_count(0)
    assert grid.contents("wrong") == wrong
    assert len(grid.full(47)) == 49
    grid.page.reload()
    grid.choose(PEAR)
    grid.full(48)
    assert grid.contents("wrong") == wrong


def test_marks_are_not_passed_over_when_the_board_is_left(grid: Grid) -> None:
    board = grid.full()
    grid.tick(board[4])
    sheet = grid.page.locator("[data-testid=grid-leaving]")
    grid.choose(APPLE)
    expect(sheet).to_contain_text("标错的 1 张还没有保存")
    grid.page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)
    assert grid.contents("wrong") == board[4:5]
    grid.choose(APPLE)
    grid.page.keyboard.press("2")  # forgotten
    grid.shown(APPLE)
    grid.choose(PEAR)
    board = grid.full()
    grid.tick(board[6])
    grid.choose(APPLE)
    grid.page.keyboard.press("1")  # saved, for later
    grid.shown(APPLE)
    pending(grid.page, 0)
    assert (grid.scene.said(board[4]), grid.scene.said(board[6])) == ([], [(ANNA, "wrong_unknown")])


def test_all_that_was_skipped_is_named(enter: Enters) -> None:
    page = enter(ANNA)
    page.context.route("**/api/take", answering(200, {"items": [], "left": 0}))
    skipped = [f"{number:064x}" for number in range(600)]

    def names_all(request: Request) -> bool:
        return "/api/take" in request.url and set(skipped) <= set(json.loads(request.post_data or "")["held"])

    with page.expect_request(names_all):
        page.evaluate(
            """async (skipped) => {
                const { Queue } = await import('./static/js/queue.js');
                const queue = new Queue({}, { lease_seconds: 300 }, () => {});
                await new Promise((resolve) => setTimeout(resolve, 200));
                queue.skipped = skipped;
                queue.refill();
            }""",
            skipped,
        )


# ------------------------------------------------------------------ small things


def test_a_proposal_goes_with_its_synonyms_apart(scene: Scene, enter: Enters) -> None:
    page = enter(ANNA)
    content = shown(page)
    page.keyboard.press("0")
    page.locator("[data-testid=none-propose]").click()
    page.locator("[data-testid=propose-name]").fill("无花果")
    page.locator("[data-testid=propose-category]").fill("食品 > 水果")
    page.get_by_label("同义词").fill("奶浆果、树地瓜，文仙果")
    page.locator("[data-testid=propose-submit]").click()
    page.wait_for_selector("[data-testid=propose-sheet]", state="detached")
    pending(page, 0)
    with database.reading(scene.shop.settings) as connection:
        asked = sa.select(label_proposals.c.synonyms_zh).where(label_proposals.c.content_sha256 == content)
        assert connection.execute(asked).scalar_one() == "奶浆果|树地瓜|文仙果"
        state = sa.select(review_items.c.state).where(review_items.c.content_sha256 == content)
        assert connection.execute(state).scalar_one() == "done"


def test_no_module_of_the_page_imports_itself_by_way_of_others() -> None:
    pattern = re.compile(r"""^(?:import|export)[^;]*?from\s+["']\./([^"']+)["']""", re.MULTILINE | re.DOTALL)
    imports = {path.name: set(pattern.findall(path.read_text(encoding="utf-8"))) for path in JS.glob("*.js")}
    while leaves := {name for name, needed in imports.items() if not needed & imports.keys()}:
        imports = {name: needed for name, needed in imports.items() if name not in leaves}
    assert sorted(imports) == []
