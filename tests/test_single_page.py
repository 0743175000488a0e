"""One picture after another, in a real browser: the page never runs dry, tells what was done, and changes no picture
under the fingers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect
from review_shop import REVIEWERS
from scenes import Scene, shown

from wwts_ops import database
from wwts_ops.database import review_items

pytestmark = pytest.mark.slow

LI, ZHANG, ANNA = REVIEWERS
#: Items that a page holds.
HELD = 11
NEXT = "(before) => document.querySelector('[data-testid=photo]')?.dataset.content !== before"
#: Presses a key in the very moment at which a message appears; what the page does is set off by it.
STARTLED = """([told, key]) => new Promise((resolve) => {
    new MutationObserver((_, observer) => {
        if (!document.querySelector('[data-testid=toast]').textContent.includes(told)) return;
        observer.disconnect();
        document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
        resolve();
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
    dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }));
})"""
DEAF_MS = 800
#: How many times its own size a picture is shown.
ENLARGED = """(image) => {
    const { width, height } = image.getBoundingClientRect();
    return Math.min(width / image.naturalWidth, height / image.naturalHeight);
}"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene.opened(tmp_path_factory.mktemp("single"), 200, dict.fromkeys(REVIEWERS, "viewer")) as opened:
        yield opened


Enters = Callable[..., Page]


@pytest.fixture
def enter(scene: Scene) -> Iterator[Enters]:
    """Somebody opens the page, in a browser of their own."""
    # The placeholder picture asks first; of that there are tests elsewhere.
    scene.change(review_items.c.skus > 1, skus=1)
    with scene.visits() as come:
        yield come
    scene.change(review_items.c.state != "open", state="done")  # each test begins with what nobody has looked at


def say(page: Page, *keys: str) -> str:
    """Answers what is shown by these keys, once the next picture is there; which content that was."""
    content = shown(page)
    for key in keys:
        page.keyboard.press(key)
        if key == "0":
            page.wait_for_selector("[data-testid=none-sheet]")
    page.wait_for_function(NEXT, arg=content)
    return content


def saved(page: Page) -> None:
    expect(page.locator("[data-testid=pending]")).to_have_attribute("data-pending", "0", timeout=60_000)


def last(page: Page) -> Locator:
    """The line of the last answer."""
    return page.locator("[data-testid=last]")


# ------------------------------------------------------------------ never dry while something waits


def test_who_leaves_many_for_later_goes_on_and_others_get_those_first(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    left = []
    for _ in range(HELD + 2):
        left.append(say(page, "0", "l"))
        saved(page)
        assert shown(page) not in left
    mine = {scene.item(content).leased_by for content in left}
    assert mine == {None}, "colleagues get none of these otherwise"
    assert shown(enter(ZHANG)) in left
    # Nothing else is left: then those after all, and only when asked.
    scene.change(review_items.c.state == "open", leased_by=ZHANG, leased_until=datetime.now(UTC) + timedelta(hours=1))
    page.reload()
    page.wait_for_selector("[data-testid=photo]")
    assert say(page, "0", "l") in left
    assert say(page, "0", "l") in left
    page.locator("[data-testid=again]").click()
    page.wait_for_selector("[data-testid=photo]")
    assert shown(page) in left


def test_what_changed_while_it_was_held_comes_again_and_can_be_answered(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    changed = {shown(page)}
    mine = review_items.c.leased_by == LI
    with database.reading(scene.shop.settings) as connection:
        changed |= set(connection.execute(sa.select(review_items.c.content_sha256).where(mine)).scalars())
    assert len(changed) == HELD
    scene.change(mine, revision=review_items.c.revision + 1)  # a night or a retag gave them other labels
    for _ in range(3 * HELD):
        say(page, "Enter")
        saved(page)
    assert {content: scene.said(content) for content in changed} == {one: [(LI, "confirm")] for one in changed}


def test_what_changed_is_fetched_anew_before_it_is_answered(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    scene.change(review_items.c.leased_by == LI, revision=review_items.c.revision + 1)
    content = shown(page)
    page.evaluate(STARTLED, ["标签刚刚有更新", "Enter"])
    page.wait_for_timeout(DEAF_MS)
    assert shown(page) == content
    assert say(page, "Enter") == content
    other = say(page, "Enter")
    saved(page)
    assert scene.said(content) == scene.said(other) == [(LI, "confirm")]


# ------------------------------------------------------------------ nothing under the fingers


def test_a_key_does_not_answer_a_picture_that_came_by_itself(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    lost = shown(page)
    later = datetime.now(UTC) + timedelta(hours=1)
    scene.change(review_items.c.content_sha256 == lost, leased_by=ZHANG, leased_until=later)
    page.keyboard.press("x")
    page.wait_for_selector("[data-testid=reject-sheet]")
    page.evaluate(STARTLED, ["已经交给别人", "1"])
    page.wait_for_timeout(DEAF_MS)
    expect(page.locator("[data-testid=reject-sheet]")).to_have_count(0)
    content = shown(page)
    assert content != lost
    saved(page)
    assert scene.said(lost) == scene.said(content) == []
    say(page, "Enter")
    saved(page)
    assert scene.said(content) == [(LI, "confirm")]


def test_what_is_refused_comes_right_after_the_picture_that_is_looked_at(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    refused: list[str] = []

    def refuse(route: Route) -> None:
        if refused:
            return route.continue_()
        [action] = json.loads(route.request.post_data or "")["actions"]
        result = {name: action[name] for name in ("answer_id", "content")}
        refused.append(action["content"])
        return route.fulfill(
            json={"results": [{**result, "status": "refused", "message": "这个标签已经停用。", "by": None}]}
        )

    page.route("**/api/answers", refuse)
    content = say(page, "2")
    looked_at = shown(page)
    expect(page.locator("[data-testid=toast]")).to_contain_text("这个标签已经停用。")
    assert shown(page) == looked_at
    assert say(page, "Enter") == looked_at
    assert say(page, "Enter") == content
    saved(page)
    assert scene.said(content) == scene.said(looked_at) == [(LI, "confirm")]


# ------------------------------------------------------------------ what was done, and no more


def test_the_page_claims_no_more_than_the_server_did(scene: Scene, enter: Enters) -> None:
    scene.change(review_items.c.state == "open", needed=2)
    try:
        page = enter(LI)
        for _ in range(40):
            page.wait_for_selector(".strip:not([aria-busy])")
            alike = page.locator("[data-testid=alike] .thumb").first
            if alike.count():
                break
            say(page, "s")
        content, other = shown(page), str(alike.get_attribute("data-content"))
        scene.change(review_items.c.content_sha256 == other, value=2e9)
        alike.click()
        page.locator("[data-testid=together]").click()
        page.wait_for_function(NEXT, arg=content)
        expect(last(page)).to_contain_text("还需要另一位同事确认")
        expect(last(page)).not_to_contain_text("连同")
        expect(page.locator("[data-testid=toast]")).to_contain_text("另外 1 张没有一起处理")
        assert (scene.item(content).state, scene.item(other).state) == ("second", "open")
        for _ in range(HELD + 2):  # it waits for a look of its own, and gets it
            if say(page, "Enter") == other:
                break
        saved(page)
        assert scene.item(other).state == "second"
    finally:
        scene.change(review_items.c.state == "open", needed=1)


def test_nothing_tells_a_blind_second_look_from_any_other(scene: Scene, enter: Enters) -> None:
    first = enter(ZHANG)
    content = shown(first)
    scene.change(review_items.c.content_sha256 == content, blind=True)
    say(first, "Enter")
    saved(first)
    assert scene.item(content).state == "second"
    scene.change(review_items.c.content_sha256 == content, value=2e9)
    page = enter(LI)
    assert say(page, "2") == content
    saved(page)
    expect(last(page)).to_contain_text("已改为")
    assert scene.item(content).state == "disputed"
    assert page.locator("[data-testid=toast]").inner_text() == ""
    assert "同事" not in last(page).inner_text()


# ------------------------------------------------------------------ after a lost connection


@pytest.mark.parametrize("failures", [3, 5, 8])
def test_what_corrects_an_undone_answer_is_never_sent_before_the_undo(
    scene: Scene, enter: Enters, failures: int
) -> None:
    page = enter(ANNA)
    page.clock.install()
    tries: list[str] = []

    def lose(route: Route) -> None:
        tries.append(route.request.url)
        if len(tries) == 1:
            assert route.fetch().ok  # it is recorded; nobody is told
        if len(tries) <= failures:
            return route.abort()
        return route.continue_()

    for path in ("**/api/answers", "**/api/undo"):
        page.route(path, lose)
    with page.expect_request("**/api/answers"):
        content = say(page, "Enter")
    page.keyboard.press("u")
    page.wait_for_selector(f"[data-testid=photo][data-content='{content}']")
    say(page, "2")
    for _ in range(failures + 3):
        page.clock.run_for(30_000)
        page.wait_for_timeout(100)
    saved(page)
    assert scene.said(content) == [(ANNA, "correct")]


# ------------------------------------------------------------------ small things


def searched(page: Page, rows: list[list[str]], asked: list[str]) -> dict[str, list[list[str | None]]]:
    """What each text finds among labels of ``rows`` (``review.labels.LabelRow``): ids, and synonyms that were found."""
    found: dict[str, list[list[str | None]]] = page.evaluate(
        """async ([rows, asked]) => {
            const labels = await import(`./static/js/labels.js?${crypto.randomUUID()}`);
            await labels.use(rows);
            const told = ([label], one) => [label.label_id, labels.synonymOf(label, one)];
            return Object.fromEntries(asked.map((one) => [one, labels.search(one).map((hit) => told(hit, one))]));
        }""",
        [rows, asked],
    )
    return found


def test_english_is_found_however_its_words_are_joined(enter: Enters) -> None:
    rows = [
        ["t:shirt", "T恤", "t-shirt", "", "服装", "", ""],
        ["t:kart", "卡丁车", "go_kart", "", "玩具", "ka ding che", ""],
        ["t:dog", "德国短毛指示犬", "German short-haired pointer", "", "宠物", "", ""],
        ["t:none", "杯子", "", "", "家居", "bei zi", ""],
    ]
    asked = ["t-shirt", "t shirt", "go-kart", "go_k", "german short-haired pointer", "short-h", "-"]
    dog = ["t:dog"]
    assert {one: [label for label, _ in hits] for one, hits in searched(enter(LI), rows, asked).items()} == {
        "t-shirt": ["t:shirt"],
        "t shirt": ["t:shirt"],
        "go-kart": ["t:kart"],
        "go_k": ["t:kart"],
        "german short-haired pointer": dog,
        "short-h": dog,
        "-": [],
    }


def test_names_come_before_synonyms_and_the_synonym_that_was_found_is_told(enter: Enters) -> None:
    rows = [
        ["t:player", "随身听", "iPod", "苹果播放器|MP3", "数码", "sui shen ting|ping guo bo fang qi", ""],
        ["t:green", "青苹果", "", "", "水果", "qing ping guo", ""],
        ["t:juice", "苹果汁", "", "", "饮料", "ping guo zhi", ""],
        ["t:tomato", "西红柿", "", "番茄", "蔬菜", "xi hong shi|fan qie", ""],
        ["t:sauce", "番茄酱", "", "", "调料", "fan qie jiang", ""],
    ]
    apples = [["t:juice", None], ["t:green", None], ["t:player", "苹果播放器"]]
    assert searched(enter(LI), rows, ["pingguo", "苹果", "fanqie", "mp3"]) == {
        "pingguo": apples,
        "苹果": apples,
        "fanqie": [["t:tomato", "番茄"], ["t:sauce", None]],
        "mp3": [["t:player", "MP3"]],
    }


@pytest.mark.parametrize("title", ["日期", "类目", "标签", "审核类型", "判定依据"])
def test_a_filter_is_chosen_by_its_words(enter: Enters, title: str) -> None:
    page = enter(LI)
    page.get_by_test_id("filters").get_by_role("button", name=title, exact=True).click()
    sheet = page.get_by_role("dialog", name=title)
    sheet.locator(".choices-name").first.click()
    expect(sheet.get_by_role("checkbox").first).to_be_checked()
    expect(page.get_by_role("list", name="正在筛选").get_by_role("button")).to_have_count(1)
    sheet.locator(".choices-count").first.click()
    expect(sheet.get_by_role("checkbox").first).not_to_be_checked()
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)


def test_what_one_looks_after_is_chosen_by_its_words(enter: Enters) -> None:
    page = enter(LI)
    page.get_by_role("button", name="我负责").click()
    sheet = page.get_by_role("dialog", name="我负责的类目")
    sheet.locator(".choices-name").nth(1).click()
    expect(sheet.get_by_role("checkbox").nth(1)).to_be_checked()


def test_escape_leaves_the_search_at_once(enter: Enters) -> None:
    page = enter(LI)
    content = shown(page)
    page.keyboard.press("/")
    page.wait_for_selector("[data-testid=search]:focus")
    page.keyboard.type("/hong")
    expect(page.get_by_test_id("search")).to_have_value("hong")
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("search")).to_have_value("")
    page.keyboard.press("s")
    page.wait_for_function(NEXT, arg=content)


def test_what_a_proposal_lacks_is_said_at_the_field(enter: Enters) -> None:
    page = enter(LI)
    page.keyboard.press("0")
    page.get_by_test_id("none-propose").click()
    page.get_by_test_id("propose-name").fill("无花果")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("请填写类目：可以选已有的，也可以写新的，各级之间用 > 分开。")
    expect(page.get_by_test_id("propose-category")).to_be_focused()
    example = str(page.get_by_test_id("propose-category").get_attribute("placeholder")).removeprefix("例如：")
    assert page.locator(f"#propose-categories option[value='{example}']").count() == 1


def test_zooming_fetches_the_original_and_keeps_the_thumbnail_until_it_is_there(enter: Enters) -> None:
    page = enter(LI)
    page.set_viewport_size({"width": 1600, "height": 1000})
    page.reload()
    photo = page.get_by_test_id("photo")
    expect(page.get_by_test_id("finer")).to_have_text("按 z 放大看原图")
    assert photo.evaluate(ENLARGED) == pytest.approx(2, abs=0.01)
    asked: list[Route] = []

    def held_back(route: Route) -> None:
        asked.append(route)

    page.route("**/originals/*", held_back)
    page.keyboard.press("z")
    expect(page.get_by_test_id("finer")).to_have_text("正在取原图……")
    assert photo.get_attribute("data-original") == "no"
    assert photo.evaluate(ENLARGED) > 4
    picture = io.BytesIO()
    Image.new("RGB", (1600, 1200), "red").save(picture, "JPEG")
    asked[0].fulfill(body=picture.getvalue(), content_type="image/jpeg")
    expect(photo).to_have_attribute("data-original", "yes")
    expect(page.get_by_test_id("finer")).to_have_count(0)


def test_without_its_original_a_picture_stays_and_can_be_answered(enter: Enters) -> None:
    page = enter(LI)
    page.route("**/originals/*", lambda route: route.fulfill(status=404))
    page.mouse.move(400, 400)
    page.mouse.wheel(0, -400)
    expect(page.get_by_test_id("finer")).to_have_text("原图打不开，这是缩略图")
    assert page.get_by_test_id("photo").get_attribute("data-original") == "no"
    say(page, "Enter")


@pytest.mark.parametrize(
    ("count", "width", "height", "columns", "size"),
    [(50, 1122, 500, 10, 240), (28, 1122, 540, 9, 119), (4, 1122, 540, 4, 240), (1, 1122, 540, 1, 240)],
)
def test_few_thumbnails_are_shown_larger(
    enter: Enters, count: int, width: int, height: int, columns: int, size: int
) -> None:
    told = enter(LI).evaluate(
        "async (given) => (await import('./static/js/grid_board.js?apart')).fitting(...given)", [count, width, height]
    )
    assert (told["columns"], int(told["size"])) == (columns, size)


def test_escape_closes_what_is_open_beside_the_labels(enter: Enters) -> None:
    page = enter(LI)
    page.goto(f"{page.url.partition('#')[0]}#/taxonomy")
    page.get_by_test_id("taxonomy-history").click()
    drawer = page.get_by_role("complementary", name="编辑")
    expect(drawer).to_be_focused()
    expect(page.get_by_test_id("taxonomy-xlsx")).to_be_visible()
    page.get_by_test_id("taxonomy-search").click()
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)


def test_filters_are_of_who_chose_them(scene: Scene, enter: Enters) -> None:
    page = enter(LI)
    page.locator("[data-testid=filters]").get_by_role("button", name="日期").click()
    page.locator(".choices input[type=checkbox]").first.check()
    chips = page.get_by_role("list", name="正在筛选").get_by_role("button")
    expect(chips).to_have_count(1)
    page.reload()
    expect(chips).to_have_count(1)
    scene.sign_in(page.context, ZHANG)
    page.reload()
    page.wait_for_selector("[data-testid=photo]")
    expect(page.locator("[data-testid=filters]")).to_be_visible()
    expect(chips).to_have_count(0)
    scene.sign_in(page.context, LI)
    page.reload()
    expect(chips).to_have_count(1)
