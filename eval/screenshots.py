"""The pictures of the review page in the README: ``python -m eval.screenshots`` (needs a checkout, about five minutes).

The demo's photographs, tagged by the embedded model in one real night; three people who answer some of them yesterday
and today; then each page as a laptop shows it inside Airflow, in the themes that the README shows, to ``docs/images``.
"""

from __future__ import annotations

import io
import os
import random
import re
import uuid
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from PIL import Image
from rich.console import Console

from eval import review_scene
from eval.bench_review_page import chromium, enter
from eval.review_scene import Scene
from wwts_ops import corrections, database, demo
from wwts_ops import settings as settings_module
from wwts_ops.corrections import Answer
from wwts_ops.database import review_items
from wwts_ops.errors import WwtsError
from wwts_ops.review import items
from wwts_ops.review.items import Filters
from wwts_ops.settings import Settings

PEOPLE = ("李娜", "王芳", "张伟")
#: On photographs of the demo: what the grid shows, and what is taken for it.
_USUAL, _ASTRAY = "猫", ("咖啡", "摩托车", "大丽花")
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
#: How many answers each gave.
_YESTERDAY, _TODAY = (41, 30, 22), (19, 12, 8)

out = Console(highlight=False)
app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="where the pictures go")] = IMAGES,
    shop: Annotated[Path | None, typer.Option(help="keep the demo's shop here, and use it again")] = None,
) -> None:
    """Make all pictures anew."""
    folder.mkdir(parents=True, exist_ok=True)
    with review_scene.folder() as made:
        found = _shop(shop or made / "demo")
        waiting = items.left(found, review_scene.ADMIN, Filters())
        _yesterday(found)
        with review_scene.over(found, made, PEOPLE, waiting) as scene, chromium() as browser:
            _today(scene)
            for name, themes in _THEMES.items():
                for theme in themes:
                    path = folder / f"review-{name}{'' if theme == 'light' else '-dark'}.png"
                    _shoot(browser, scene, (name, theme, _PAGES[name]), path)
                    out.print(str(path), markup=False)


def _shop(folder: Path) -> Settings:
    """The demo's shop after a night, with people who may answer."""
    # It is about nine in the morning; a demo is so small that hardly anything would be sampled.
    zone = f"Etc/GMT{datetime.now(UTC).hour - 9:+d}"
    os.environ.update(WWTS_TIMEZONE=zone, WWTS_AUDIT_RATE="0.4", WWTS_RELEASE="live")
    given = review_scene.given(PEOPLE)
    if not folder.joinpath("store").exists() and demo.run("", folder):
        raise WwtsError("The demo's night failed; its log says why.")
    found = settings_module.load(store=str(folder / "store"), catalog=str(folder / "catalog"), **given)
    _name(found)
    return found


def _name(settings: Settings) -> None:
    """Gives what waits the titles of a shop's list, for the demo's catalog is a folder of files, and some mistakes.

    Each photograph of the demo is there twenty times, and so a model's label is right for all of them or for none:
    for the grid, a few others are taken for cats.
    """
    with database.transaction(settings) as connection:
        rows = connection.execute(sa.select(review_items).order_by(review_items.c.image_id)).all()
        cat = next(row for row in rows if _USUAL in row.image_id)
        astray = {thing: next(row.image_id for row in rows if thing in row.image_id) for thing in _ASTRAY}
        for row in rows:
            thing, number = _thing(row.image_id), re.search(r"-(\d+)\.", row.image_id)
            wrong = {"label_id": cat.label_id, "label_zh": cat.label_zh, "tags": cat.tags}
            values = {
                "title": f"{thing} {number[1]}" if number else thing,
                "sku_id": f"SKU{zlib.crc32(thing.encode()) % 1_000_000:06d}",
                **(wrong if row.image_id in astray.values() else {}),
            }
            connection.execute(sa.update(review_items).where(review_items.c.image_id == row.image_id).values(**values))


def _thing(image_id: str) -> str:
    """What is on a photograph of the demo, by its file's name."""
    return re.sub(r"[-\d]*\.\w+$", "", image_id.rpartition("/")[2])


# ------------------------------------------------------------------ what people did


def _yesterday(settings: Settings) -> None:
    """Answers of a morning, most of them what the model said."""
    chance = random.Random(3)  # noqa: S311 (the same pictures every time, no secret)
    now = datetime.now(UTC) - timedelta(days=1)
    for person, count in zip(PEOPLE, _YESTERDAY, strict=True):
        found = items.take(settings, person, Filters(), count)
        said = [_said(item, person, now + timedelta(seconds=70 * place), chance) for place, item in enumerate(found)]
        corrections.record(settings, said)


def _said(item: items.Item, person: str, when: datetime, chance: random.Random) -> Answer:
    others = [tag["label_id"] for tag in item.tags if tag["label_id"] != item.label_id]
    label = chance.choice(others) if others and chance.random() < 0.15 else item.label_id
    return Answer(
        answer_id=str(uuid.uuid4()),
        answered_at=when,
        answered_by=person,
        image_id=item.image_id,
        content_sha256=item.content_sha256,
        kind="confirm" if label == item.label_id else "correct",
        labels=(str(label),),
        labels_before=tuple(tag["label_id"] for tag in item.tags),
        source="page",
        shown_because=item.shown_because,
        sampling_probability=item.sampling_probability,
        model_version=item.model_version,
        confidence=item.confidence,
    )


def _today(scene: Scene) -> None:
    for person, count in zip(PEOPLE, _TODAY, strict=True):
        with scene.served.browser(person) as client:
            told = client.post("api/take", json={"filters": {}, "count": count}).raise_for_status()
            actions = [_confirm(item) for item in told.json()["items"]]
            client.post("api/answers", json={"actions": actions}).raise_for_status()


def _confirm(item: Mapping[str, Any]) -> dict[str, Any]:
    known = {"content": item["content"], "revision": item["revision"], "kind": "confirm", "shared_ok": True}
    return {"answer_id": str(uuid.uuid4()), **known}


# ------------------------------------------------------------------ the pages


def _single(frame: Any) -> None:
    """A flower that others look like."""
    frame.wait_for_selector("[data-testid=photo]")
    for _ in range(40):
        frame.wait_for_selector(".strip:not([aria-busy])")
        title = frame.locator(".facts h2").inner_text()
        if "大丽花" in title and frame.locator("[data-testid=alike] .thumb").count() > 2:
            break
        frame.locator("[data-testid=skip]").click()
        frame.page.wait_for_timeout(200)
    frame.locator("[data-testid=alike] .thumb").first.click()
    frame.locator("#stage").focus()


def _grid(frame: Any) -> None:
    """Cats, most of them; marked is what is none."""
    frame.locator("[data-testid=grid-label]", has_text=_USUAL).first.click()
    frame.wait_for_selector(f"h2:has-text('{_USUAL}')")
    frame.wait_for_selector("[data-testid=grid-item][data-state=right]")
    frame.page.wait_for_load_state("networkidle")
    cells = frame.locator("[data-testid=grid-item]")
    for place, told in enumerate(cells.evaluate_all("(all) => all.map((one) => one.ariaLabel)")):
        if any(thing in told for thing in _ASTRAY):
            cells.nth(place).click()
    frame.page.mouse.move(0, 0)


def _morning(frame: Any) -> None:
    frame.wait_for_selector("[data-testid=morning-left]")


def _taxonomy(frame: Any) -> None:
    frame.wait_for_selector("[data-testid=taxonomy-row]")
    frame.locator("[data-testid=taxonomy-search]").fill("mao")


_PAGES: dict[str, Callable[[Any], None]] = {
    "single": _single,
    "grid": _grid,
    "morning": _morning,
    "taxonomy": _taxonomy,
}
#: What the README shows.
_THEMES = {"single": ("light", "dark"), "grid": ("light",), "morning": ("light",), "taxonomy": ("dark",)}
_ROUTES = {"single": "look", "grid": "grid", "morning": "morning", "taxonomy": "taxonomy"}


def _shoot(browser: Any, scene: Scene, what: tuple[str, str, Callable[[Any], None]], path: Path) -> None:
    name, theme, arrange = what
    person = review_scene.ADMIN if name == "taxonomy" else PEOPLE[0]
    page = enter(browser, scene, person, color_scheme=theme)
    page.goto(f"{scene.served.url}/plugin/wwts")
    frame = page.wait_for_selector("iframe").content_frame()
    frame.wait_for_selector("#stage")
    frame.evaluate("(route) => { location.hash = `#/${route}`; }", _ROUTES[name])
    arrange(frame)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)  # what fades in has faded in
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        shot.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    page.context.close()


if __name__ == "__main__":
    app()
