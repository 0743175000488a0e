"""A review page to measure and to photograph: a shop that waits for people, and a real api-server over it.

Both come from this checkout's ``tests`` folder, so that what is measured is what is tested; a wheel has neither.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wwts_ops import logs
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings

TESTS = Path(__file__).resolve().parents[1] / "tests"
ADMIN, VIEWER = "admin", "guest"


@dataclass(frozen=True)
class Scene:
    """A running review page.

    Attributes:
        settings: of the shop.
        waiting: items in the queue.
        served: the api-server, as ``tests/served_pages.Served``.
        people: who may answer, besides ``ADMIN``; ``VIEWER`` may look.
    """

    settings: Settings
    waiting: int
    served: Any
    people: tuple[str, ...]


def names(count: int) -> tuple[str, ...]:
    """``count`` people who may answer."""
    return tuple(f"reviewer{number}" for number in range(1, count + 1))


def helper(module: str) -> Any:
    """A module of the ``tests`` folder.

    Raises:
        WwtsError: when there is no such folder beside this one.
    """
    if not TESTS.joinpath(f"{module}.py").is_file():
        raise WwtsError(f"{TESTS} holds no {module}.py; run this from a checkout of the repository.")
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(module)


@contextmanager
def running(items: int, people: Sequence[str], **settings: Any) -> Iterator[Scene]:
    """A shop of ``items`` and the page over it, in a folder that is gone afterwards."""
    with folder() as made:
        shop = helper("review_shop").ReviewShop.made(made / "shop", items, **given(people), **settings)
        with over(shop.settings, made, people, shop.waiting) as scene:
            yield scene


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder, removed at the end."""
    logs.configure("json", level=40)
    # Settings come from the arguments alone: nobody's own shop is touched.
    for name in [name for name in os.environ if name.startswith("WWTS_")]:
        del os.environ[name]
    made = Path(tempfile.mkdtemp(prefix="wwts-review-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def given(people: Sequence[str]) -> dict[str, str]:
    """Settings that let ``people`` answer."""
    return {"reviewers": ",".join(people), "review_admins": ADMIN}


@contextmanager
def over(settings: Settings, made: Path, people: Sequence[str], waiting: int) -> Iterator[Scene]:
    """The page over a shop that is there already; ``made`` is the folder for Airflow."""
    users: Mapping[str, str] = dict.fromkeys([*people, ADMIN], "user") | {VIEWER: "viewer"}
    airflow = made / "airflow"
    airflow.mkdir()
    helper("airflow_template").share(made)
    with ExitStack() as held:
        served = held.enter_context(helper("served_pages").serving(settings, airflow, users))
        yield Scene(settings, waiting, served, tuple(people))
