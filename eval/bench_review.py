"""Eight people on the review page for a minute: ``python -m eval.bench_review`` (needs a checkout: it uses ``tests``).

A real api-server over a shop with 20,000 waiting items. Each person does what the page does in their browser: takes
items ahead, fetches the pictures, answers one after another, and now and then opens what looks alike, clears a grid of
50, takes an answer back, clicks twice, or answers what somebody else is looking at. Measured is each request, from the
first byte sent to the last received; afterwards every acknowledgement is held against the tables.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import sqlalchemy as sa
import typer
from rich.console import Console
from rich.table import Table

from eval import review_scene
from eval.review_scene import Scene
from wwts_ops import database
from wwts_ops.database import corrections, review_items, review_opinions
from wwts_ops.settings import Settings

#: As static/js/queue.js does.
_AHEAD, _REFILL_BELOW = 11, 8
#: How often somebody does something else besides, an answer; most of it oftener than people do. Counts come 0.7 s after
#: an answer, unless the next one was faster.
_ALIKE, _GRID, _UNDO, _TWICE, _FOREIGN, _SUMMARY = 0.2, 0.02, 0.05, 0.05, 0.05, 0.8
_ALL = "all page actions"

out = Console(highlight=False)
app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)


@dataclass
class Ledger:
    """What everybody was told, kept to be held against the tables.

    Attributes:
        seconds: of each request, by action.
        sent: content by answer id.
        told: the statuses that came back, by answer id.
        undone: answer ids whose being taken back was acknowledged.
        failed: requests that no answer came to, or one of status 400 or more, by what it was.
        open_: some contents that are looked at now, with what was shown: for those who answer somebody else's.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sent: dict[str, str] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    undone: set[str] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)
    open_: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=16))
    lock: threading.Lock = field(default_factory=threading.Lock)


class Person:
    """Somebody with a browser."""

    def __init__(
        self, client: httpx.Client, ledger: Ledger, pause: float, seed: int, categories: Sequence[str] = ()
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._pause = pause
        self._filters = {"categories": list(categories)}
        self._chance = random.Random(seed)  # noqa: S311 (the same morning every time, no secret)
        self._items: deque[Mapping[str, Any]] = deque()
        self._mine: list[str] = []
        self._labels: list[str] = []

    def work(self, until: float) -> None:
        """Answers until then, by the monotonic clock."""
        self._ask("me", "GET", "api/me")
        self._count()
        while time.monotonic() < until:
            self._refill()
            if self._items:
                self._one(self._items.popleft())
            time.sleep(self._pause * self._chance.uniform(0.5, 1.5))

    def _one(self, item: Mapping[str, Any]) -> None:
        if item["siblings"] or item["near"] or self._chance.random() < _ALIKE:
            self._ask("item", "GET", f"api/items/{item['content']}")
        self._answer([item])
        if self._chance.random() < _SUMMARY:
            self._count()
        if self._chance.random() < _UNDO and self._mine:
            self._undo(self._mine.pop())
        if self._chance.random() < _FOREIGN and self._ledger.open_:
            self._answer([self._chance.choice(list(self._ledger.open_))])
        if self._chance.random() < _GRID and self._labels:
            self._grid(self._chance.choice(self._labels[:10]))

    def _refill(self) -> None:
        if len(self._items) >= _REFILL_BELOW:
            return
        held = [item["content"] for item in self._items]
        told = self._ask(
            "take", "POST", "api/take", {"filters": self._filters, "count": _AHEAD - len(held), "held": held}
        )
        if told is None:
            return
        fresh = [item for item in told["items"] if item["content"] not in held]
        self._pictures(fresh)
        self._items.extend(fresh)
        self._ledger.open_.extend(fresh[-1:])

    def _pictures(self, items: Sequence[Mapping[str, Any]]) -> None:
        for item in items:
            if item["has_picture"]:
                self._ask("picture", "GET", f"pictures/{item['content']}")

    def _count(self) -> None:
        told = self._ask("summary", "GET", "api/summary", params=self._filters)
        if told is not None:
            self._labels = [one["value"] for one in told["facets"]["label"]]

    def _grid(self, label_id: str) -> None:
        told = self._ask("grid", "POST", "api/grid", {"label_id": label_id, "filters": self._filters, "count": 50})
        if not told or not told["items"]:
            return
        with ThreadPoolExecutor(6) as browser:  # as many requests at once as browsers make
            list(browser.map(lambda item: self._pictures([item]), told["items"]))
        self._answer(told["items"])

    def _answer(self, items: Sequence[Mapping[str, Any]]) -> None:
        actions = [self._action(item) for item in items]
        with self._ledger.lock:
            self._ledger.sent.update({action["answer_id"]: action["content"] for action in actions})
        name = "answer" if len(actions) == 1 else "answer a grid"
        for _ in range(2 if self._chance.random() < _TWICE else 1):
            told = self._ask(name, "POST", "api/answers", {"actions": actions})
            with self._ledger.lock:
                for result in (told or {"results": []})["results"]:
                    self._ledger.told[result["answer_id"]].append(result["status"])
                    if result["status"] == "saved":
                        self._mine.append(result["answer_id"])

    def _action(self, item: Mapping[str, Any]) -> dict[str, Any]:
        others = [tag["label_id"] for tag in item["tags"] if tag["label_id"] != item["label_id"]]
        right = not others or self._chance.random() < 0.8
        return {
            "answer_id": str(uuid.UUID(int=self._chance.getrandbits(128))),
            "content": item["content"],
            "revision": item["revision"],
            "kind": "confirm" if right else "correct",
            "labels": [] if right else [self._chance.choice(others)],
            "shared_ok": True,
        }

    def _undo(self, answer_id: str) -> None:
        told = self._ask("undo", "POST", "api/undo", {"answer_ids": [answer_id]})
        if told and [result["status"] for result in told["results"]] == ["saved"]:
            with self._ledger.lock:
                self._ledger.undone.add(answer_id)
            self._items.extendleft(told["items"])

    def _ask(self, name: str, method: str, path: str, body: object = None, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            answer = self._client.request(method, path, json=body, **more)
        except httpx.HTTPError as error:
            with self._ledger.lock:
                self._ledger.failed[f"{name}: {type(error).__name__}"] += 1
            return None
        took = time.perf_counter() - began
        with self._ledger.lock:
            self._ledger.seconds[name].append(took)
            if answer.status_code >= 400:
                self._ledger.failed[f"{name}: {answer.status_code} {answer.text[:200]}"] += 1
                return None
        return answer.json() if "json" in answer.headers["content-type"] else answer.content


# ------------------------------------------------------------------ nothing lost, nothing doubled


@dataclass(frozen=True)
class Audit:
    """What the tables hold, against what people were told.

    Attributes:
        acknowledged: answers that somebody was told are recorded.
        lost: of these, those that no table holds.
        invented: answers in the tables that nobody sent.
        unacknowledged: answers in the tables whose sender heard nothing of them: sent, but the reply was lost.
        doubled: contents that two answers in force settle, though nobody was to look twice.
        refused: answers that a table holds though everybody was told that they were not recorded.
        undone: answers taken back, as people were told.
        not_undone: of these, those that are in force all the same.
        unsettled: contents with an answer in force that still wait for a first look.
    """

    acknowledged: int
    lost: int
    invented: int
    unacknowledged: int
    doubled: int
    refused: int
    undone: int
    not_undone: int
    unsettled: int

    @property
    def faults(self) -> int:
        """How much went wrong."""
        return self.lost + self.invented + self.doubled + self.refused + self.not_undone + self.unsettled


def audit(settings: Settings, ledger: Ledger) -> Audit:
    """Holds what everybody was told against the tables."""
    taken = corrections.alias()
    gone = sa.select(taken.c.number).where(taken.c.retracts == corrections.c.number).exists()
    asked = sa.select(corrections.c.answer_id, corrections.c.content_sha256, gone.label("gone"))
    with database.reading(settings) as connection:
        rows = connection.execute(asked.where(corrections.c.kind != "retract", corrections.c.source == "page")).all()
        opinions = connection.execute(sa.select(review_opinions)).all()
        states = connection.execute(sa.select(review_items.c.content_sha256, review_items.c.state)).all()
    state = {row.content_sha256: row.state for row in states}
    kept = {row.answer_id for row in rows} | {row.answer_id for row in opinions}
    in_force = {row.answer_id: row.content_sha256 for row in rows if not row.gone}
    looked_twice = {row.content_sha256 for row in opinions}
    settled = Counter(in_force.values())
    recorded = {one for one, told in ledger.told.items() if {"saved", "held", "already"} & set(told)}
    told_no = {one for one, told in ledger.told.items() if told and {"conflict", "refused", "shared"} >= set(told)}
    return Audit(
        acknowledged=len(recorded),
        lost=len(recorded - kept),
        invented=len({one.partition(":again")[0] for one in kept} - set(ledger.sent)),
        unacknowledged=len(kept & set(ledger.sent) - set(ledger.told)),
        doubled=sum(1 for content, count in settled.items() if count > 1 and content not in looked_twice),
        refused=len(told_no & kept),
        undone=len(ledger.undone),
        not_undone=len(ledger.undone & set(in_force)),
        unsettled=sum(1 for content in settled if state.get(content) in ("open", "later")),
    )


# ------------------------------------------------------------------ how it is run and told


@app.command()
def main(
    items: Annotated[int, typer.Option(help="in the queue")] = 20_000,
    people: Annotated[int, typer.Option(help="at the same time")] = 8,
    seconds: Annotated[float, typer.Option(help="that they work")] = 60.0,
    pause: Annotated[float, typer.Option(help="seconds that a person looks at a picture; 0: none")] = 1.0,
    own: Annotated[int, typer.Option(help="categories that each person looks after; 0: all there are")] = 0,
    postgresql: Annotated[bool, typer.Option(help="instead of SQLite")] = False,  # noqa: FBT002 (an option)
) -> None:
    """Let people work, and say how long they waited."""
    with _database(postgresql) as database_url:
        began = time.monotonic()
        extra = {"database_url": database_url} if database_url else {}
        with review_scene.running(items, review_scene.names(people), **extra) as scene:
            load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
            made = time.monotonic() - began
            out.print(f"{scene.waiting:,} items wait; made in {made:.0f} s; load before (1, 5, 15 min): {load}")
            ledger = Ledger()
            worked = _work(scene, ledger, seconds, pause, own)
            found = audit(scene.settings, ledger)
    kind = "PostgreSQL" if postgresql else "SQLite"
    title = f"{people} people, {worked:.0f} s, {pause:g} s a picture, {kind}, {len(os.sched_getaffinity(0))} cores"
    out.print(_table(ledger, f"{title}, {own or 'all'} categories each"))
    told = Counter(status for statuses in ledger.told.values() for status in statuses)
    out.print(f"{found}\nreplies to answers: {dict(told)}\nfailed requests: {dict(ledger.failed) or 'none'}")
    raise typer.Exit(1 if found.faults or ledger.failed else 0)


@contextmanager
def _database(postgresql: bool) -> Iterator[str]:  # noqa: FBT001 (as the option says)
    if not postgresql:
        yield ""
        return
    with review_scene.helper("database_server").running() as server:
        yield server.database()


def _work(scene: Scene, ledger: Ledger, seconds: float, pause: float, own: int) -> float:
    """Everybody's minute; its seconds. The first request of all, which starts the application, is not measured."""
    clients = [scene.served.browser(person) for person in scene.people]
    clients[0].get("api/me").raise_for_status()
    found = clients[0].get("api/summary").raise_for_status().json()["facets"]["category"]
    # Above each other they overlap, as people's do.
    paths = [one["value"] for one in found] if own else []
    staff = [
        Person(client, ledger, pause, seed, [paths[(seed + place) % len(paths)] for place in range(own)])
        for seed, client in enumerate(clients)
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(len(staff)) as office:
        for done in [office.submit(person.work, began + seconds) for person in staff]:
            done.result()
    return time.monotonic() - began


def _table(ledger: Ledger, title: str) -> Table:
    table = Table("page action", "requests", "P50, ms", "P95, ms", "P99, ms", "most, ms", title=title)
    # Pictures are fetched ahead of need and come from files; in one pot they would hide what is slow.
    pooled = [took for name, all_ in ledger.seconds.items() if name != "picture" for took in all_]
    for name, all_ in [*sorted(ledger.seconds.items()), (f"{_ALL} but pictures", pooled)]:
        found = statistics.quantiles(all_, n=100, method="inclusive") if len(all_) > 1 else [all_[0]] * 99
        figures = (f"{1000 * value:.0f}" for value in (found[49], found[94], found[98], max(all_)))
        table.add_row(name, f"{len(all_):,}", *figures)
    return table


if __name__ == "__main__":
    app()
