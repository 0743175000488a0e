"""How long from a key to the next picture on the screen: ``python -m eval.bench_review_page`` (needs a checkout).

Headless Chromium before a real api-server. Measured in the page: from the key event's own time stamp until the frame
that shows the next picture, complete and decoded, was handed to the screen (``requestAnimationFrame``, and a task
after it). Waiting for the screen is in it: at 60 Hz, half a frame on average.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eval import review_scene
from eval.review_scene import Scene
from wwts_ops.errors import WwtsError

#: A laptop's screen.
SCREEN = {"width": 1366, "height": 768}
_COOKIE = "_token"
_PHOTO = "[data-testid=photo]"
_MEASURE = """() => {
    window.measured = [];
    let pressed = 0;
    let before = null;
    let looking = false;
    addEventListener('keydown', (event) => {
        pressed = event.timeStamp;
        if (looking) return; // a sheet asked for one more key
        looking = true;
        before = document.querySelector('[data-testid=photo]')?.dataset.content;
        requestAnimationFrame(look);
    }, true);
    function look() {
        const photo = document.querySelector('[data-testid=photo]');
        if (!photo || photo.dataset.content === before || !photo.complete || !photo.naturalWidth) {
            return requestAnimationFrame(look);
        }
        looking = false;
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => window.measured.push(performance.now() - pressed);
        port2.postMessage(null); // runs once the frame is done
    }
}"""

out = Console(highlight=False)
app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)


@app.command()
def main(
    pictures: Annotated[int, typer.Option(help="to answer, one key each")] = 100,
    items: Annotated[int, typer.Option(help="in the queue")] = 2_000,
) -> None:
    """Answer pictures by keyboard, at three paces."""
    table = Table("pause after a picture", "pictures", "P50, ms", "P95, ms", "P99, ms", "most, ms")
    with review_scene.running(items, review_scene.names(3)) as scene, chromium() as browser:
        out.print(f"load before (1, 5, 15 min): {', '.join(f'{part:.1f}' for part in os.getloadavg())}")
        for person, pause in zip(scene.people, (1000, 300, 0), strict=True):
            found = _answer(browser, scene, person, pictures, pause)
            cuts = statistics.quantiles(found, n=100, method="inclusive")
            figures = (f"{value:.0f}" for value in (cuts[49], cuts[94], cuts[98], max(found)))
            table.add_row(f"{pause / 1000:g} s", f"{len(found)}", *figures)
    out.print(table)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium of this machine.

    Raises:
        WwtsError: when there is none.
    """
    from playwright.sync_api import sync_playwright

    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        raise WwtsError("This needs Chromium: apt-get install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


def enter(browser: Any, scene: Scene, person: str, **context: Any) -> Any:
    """A browser page of somebody who is signed in, before any address."""
    made = browser.new_context(**{"viewport": SCREEN, "locale": "zh-CN", **context})
    made.add_cookies([{"name": _COOKIE, "value": scene.served.token(person), "url": scene.served.url}])
    return made.new_page()


def _answer(browser: Any, scene: Scene, person: str, pictures: int, pause: int) -> list[float]:
    """Milliseconds of each picture."""
    page = enter(browser, scene, person)
    page.goto(scene.served.pages)
    page.wait_for_selector(_PHOTO)
    page.wait_for_load_state("networkidle")
    page.evaluate(_MEASURE)
    for number in range(1, pictures + 1):
        page.keyboard.press("Enter")
        if page.locator("[data-testid=shared-sheet]").count():
            page.keyboard.press("2")  # counted from this key
        page.wait_for_function("(count) => window.measured.length >= count", arg=number)
        page.wait_for_timeout(pause)
    found = [float(one) for one in page.evaluate("window.measured")]
    page.context.close()
    return found


if __name__ == "__main__":
    app()
