"""Items of the review page put straight into its table, and people who answer: no night, no pictures."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from wwts_ops import database, taxonomy
from wwts_ops.database import corrections, label_proposals, review_items, review_marks, review_opinions
from wwts_ops.review import answering, proposals
from wwts_ops.review.answering import Action, Result
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Label, Taxonomy

LI, ZHANG, ANNA, BOSS = "小李", "小张", "anna", "主管"
WINE, BEER, OFF = "shop:红酒", "shop:啤酒🍺", "shop:停售"
NAMES = Taxonomy(
    "t000001-abc",
    (
        Label(WINE, "红酒🍷", category_path="饮料 > 酒类"),
        Label(BEER, "啤酒", category_path="饮料 > 酒类"),
        Label(OFF, "停售的酒", enabled=False),
    ),
)


def content(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def sibling(name: object, **values: Any) -> dict[str, Any]:
    given = {"image_id": f"图-{name}", "content_sha256": content(name), "label_id": BEER, "label_zh": "啤酒"}
    return {**given, "confidence": 0.875, "model_version": "7", **values}


@dataclass(frozen=True)
class Table:
    """The tables of one shop."""

    settings: Settings

    def put(self, name: object, **values: Any) -> str:
        """An item that waits; its content."""
        return self.put_all([name], **values)[0]

    def put_all(self, names: Iterable[object], **values: Any) -> list[str]:
        """Items that wait; their contents."""
        rows = [self._row(name, **values) for name in names]
        with database.transaction(self.settings) as connection:
            connection.execute(sa.insert(review_items), rows)
        return [row["content_sha256"] for row in rows]

    @staticmethod
    def _row(name: object, **values: Any) -> dict[str, Any]:
        shown = [(WINE, "红酒🍷", 0.5), (BEER, "啤酒", 0.25)]
        if values.get("label_id", WINE) != WINE:
            shown = [(values["label_id"], "啤酒", 0.5), (WINE, "红酒🍷", 0.25)]
        row: dict[str, Any] = {
            "content_sha256": content(name),
            "run_id": "run-1",
            "date": "2026-03-01",
            "image_id": f"图-{name}",
            "sku_id": f"SKU-{name}",
            "uri": f"{name}.jpg",
            "title": "家庭装",
            "tags": [{"label_id": one, "label_zh": name, "score": score} for one, name, score in shown],
            "label_id": WINE,
            "label_zh": "红酒🍷",
            "confidence": 0.5,
            "category_path": "饮料 > 酒类",
            "decision": "review",
            "decision_reason": "low_confidence",
            "model_version": "7",
            "shown_because": "review",
            "sampling_probability": 1.0,
            "copies": 1,
            "skus": 1,
            "near_group": None,
            "near": 0,
            "siblings": [],
            "priority": None,
            "value": 1.0,
            "needed": 1,
            "blind": False,
            "state": "open",
            "revision": 1,
            "leased_by": None,
            "leased_until": None,
        }
        return {**row, **values}

    def say(self, person: str, *actions: Action) -> list[Result]:
        return answering.answer(self.settings, NAMES, person, actions)

    def status(self, person: str, *actions: Action) -> list[str]:
        return [result.status for result in self.say(person, *actions)]

    def undo(self, person: str, *actions: Action) -> list[Result]:
        return answering.undo(self.settings, person, [action.answer_id for action in actions])

    def item(self, of: str) -> Any:
        with database.reading(self.settings) as connection:
            return connection.execute(sa.select(review_items).where(review_items.c.content_sha256 == of)).one()

    def state(self, of: str) -> str:
        return str(self.item(of).state)

    def rows(self, table: sa.Table, **wanted: Any) -> list[dict[str, Any]]:
        order = {corrections: corrections.c.number, review_opinions: review_opinions.c.place}.get(table)
        asked = sa.select(table).filter_by(**wanted).order_by(order)
        with database.reading(self.settings) as connection:
            return [dict(row) for row in connection.execute(asked).mappings()]

    def answers(self, of: str | None = None) -> list[tuple[str, str, tuple[str, ...]]]:
        """Answers that stand, oldest first: who, kind, labels."""
        rows = self.rows(corrections)
        gone = {row["retracts"] for row in rows}
        return [
            (row["answered_by"], row["kind"], tuple(row["labels"]))
            for row in rows
            if row["kind"] != "retract" and row["number"] not in gone and of in (None, row["content_sha256"])
        ]

    def opinions(self, of: str) -> list[tuple[str, int, bool | None]]:
        """Opinions that stand, by place: who, place, agrees."""
        rows = self.rows(review_opinions, content_sha256=of, withdrawn_at=None)
        return [(row["person"], row["place"], row["agrees"]) for row in rows]

    def marks(self) -> list[dict[str, Any]]:
        return self.rows(review_marks)

    def proposals(self) -> list[dict[str, Any]]:
        return self.rows(label_proposals)

    def events(self) -> list[dict[str, Any]]:
        return self.rows(database.review_events)


def act(of: str, kind: str = "confirm", revision: int | None = 1, **values: Any) -> Action:
    labels: Sequence[str] = values.pop("labels", (BEER,) if kind == "correct" else ())
    return Action(values.pop("answer_id", None) or str(uuid.uuid4()), of, revision, kind, tuple(labels), **values)


def accepted(table: Table, proposal_id: str) -> None:
    """An admin says that beer is what a proposed label means."""
    store = Store.of(table.settings)
    if taxonomy.current(store) is None:
        taxonomy.put(store, NAMES, "测试", expected=None)
    proposals.decide(table.settings, store, BOSS, proposal_id, "merge", label_id=BEER)
