"""A shop whose review page is served by a real api-server, and a real browser before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import sqlalchemy as sa
from environment import clean
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from review_shop import ReviewShop
from served_pages import COOKIE, Served, serving

from wwts_ops import database
from wwts_ops.corrections.answers import retracted
from wwts_ops.database import corrections, review_items

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: How long a page may take on the slowest machine.
PATIENCE_MS = 120_000
expect.set_options(timeout=PATIENCE_MS)


@dataclass(frozen=True)
class Scene:
    """The shop, its page, and a browser."""

    shop: ReviewShop
    served: Served
    browser: Browser

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, items: int, users: Mapping[str, str], **given: Any) -> Iterator[Self]:
        """A shop of ``items`` with further settings ``given``; ``users``: name to Airflow role."""
        if CHROMIUM is None:
            pytest.skip("no Chromium here; `apt-get install chromium` to use the page in a browser")
        with pytest.MonkeyPatch.context() as patch:
            clean(patch)
            shop = ReviewShop.made(folder / "shop", items, second_looks=0.0, **given)
            folder.joinpath("airflow").mkdir()
            with serving(shop.settings, folder / "airflow", users) as served, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM)
                yield cls(shop, served, browser)
                browser.close()

    def new_context(self, **options: Any) -> BrowserContext:
        """A browser that nobody is signed in to."""
        context = self.browser.new_context(locale="zh-CN", **options)
        context.set_default_timeout(PATIENCE_MS)
        return context

    def sign_in(self, context: BrowserContext, name: str) -> None:
        context.add_cookies([{"name": COOKIE, "value": self.served.token(name), "url": self.served.url}])

    @contextmanager
    def visits(self) -> Iterator[Callable[..., Page]]:
        """Lets people open the page, each in a browser of their own or in another tab of one; afterwards they leave."""
        contexts: list[BrowserContext] = []

        def come(name: str, context: BrowserContext | None = None) -> Page:
            if context is None:
                context = self.new_context()
                contexts.append(context)
                self.sign_in(context, name)
            page = context.new_page()
            page.goto(self.served.pages)
            page.wait_for_selector("[data-testid=photo]")
            return page

        yield come
        for context in contexts:
            context.close()
        self.change(leased_by=None, leased_until=None)

    def answers(self, *contents: str) -> list[Any]:
        """Answers in force, of these contents or of all, in the order in which they were given."""
        asked = sa.select(corrections).where(corrections.c.kind != "retract", ~retracted())
        asked = asked.order_by(corrections.c.number)
        if contents:
            asked = asked.where(corrections.c.content_sha256.in_(contents))
        with database.reading(self.shop.settings) as connection:
            return list(connection.execute(asked).all())

    def said(self, content: str) -> list[tuple[str, str]]:
        """Who said what of it, less what was taken back."""
        return [(one.answered_by, one.kind) for one in self.answers(content)]

    def item(self, content: str) -> Any:
        """The row of a content in the queue."""
        with database.reading(self.shop.settings) as connection:
            return connection.execute(sa.select(review_items).where(review_items.c.content_sha256 == content)).one()

    def change(self, *only: sa.ColumnElement[bool], **values: Any) -> None:
        """What a night or somebody else did, written straight into the table."""
        with database.transaction(self.shop.settings) as connection:
            connection.execute(sa.update(review_items).where(*only).values(**values))


def shown(page: Page) -> str:
    """The content of the picture that is looked at."""
    return str(page.locator("[data-testid=photo]").get_attribute("data-content"))
