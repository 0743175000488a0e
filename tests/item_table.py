"""Rows of the review page's queue, written and changed straight in its table; on SQLite or a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from review_shop import ADMIN

from wwts_ops import corrections, database
from wwts_ops.corrections import Answer
from wwts_ops.database import review_items, review_opinions
from wwts_ops.records import REVIEW_ITEMS
from wwts_ops.review import items
from wwts_ops.review.items import Filters, Item
from wwts_ops.settings import Settings

Make = Callable[..., Settings]
ALL = Filters()
DATE, RUN = "2026-03-01", "2026-03-01-aaaaaaaaaaaa"


def empty(make_settings: Make, database_url: str) -> Settings:
    """Settings of a shop whose table has no rows."""
    found = make_settings(database_url=database_url, review_admins=ADMIN, second_looks=0)
    database.upgrade(found)
    return found


def content(number: int) -> str:
    return f"{number:064x}"


def row(number: int, **more: Any) -> dict[str, Any]:
    """What a night asks of a content; worth less the higher its number."""
    image = {"image_id": f"图 {number}", "sku_id": f"S{number}", "uri": f"{number}.jpg", "title": "标题 😀"}
    tag = {"label_id": "t:a", "label_zh": "甲", "confidence": 0.25, "category_path": "食品 > 水果"}
    why = {"decision": "review", "decision_reason": "low_confidence", "shown_because": "review"}
    numbers = {"rank": number, "copies": 1, "skus": 1, "near": 0, "sampling_probability": 1.0, "value": 1 / number}
    tags = [{"label_id": "t:a", "label_zh": "甲", "score": 0.25}]
    known = {"content_sha256": content(number), "run_id": RUN, "tags": tags, "siblings": [], "model_version": "1"}
    return {**dict.fromkeys(REVIEW_ITEMS.names), **image, **tag, **why, **numbers, **known, **more}


def load(shop: Settings, *rows: dict[str, Any], date: str = DATE) -> int:
    return items.load(shop, pa.Table.from_pylist(list(rows), schema=REVIEW_ITEMS), date)


def numbers(found: Sequence[Item]) -> list[int]:
    return [int(item.content_sha256, 16) for item in found]


def taken(shop: Settings, person: str = "小李", filters: Filters = ALL, count: int = 10, **more: Any) -> list[int]:
    return numbers(items.take(shop, person, filters, count, **more))


def item(shop: Settings, number: int) -> Item:
    found = items.one(shop, content(number))
    assert found is not None
    return found


def change(shop: Settings, *changed: int, **values: Any) -> None:
    """What somebody else did, written straight into the table."""
    with database.transaction(shop) as connection:
        these = review_items.c.content_sha256.in_([content(number) for number in changed])
        connection.execute(sa.update(review_items).where(these).values(**values))


def expire(shop: Settings, number: int) -> None:
    change(shop, number, leased_until=datetime.now(UTC) - timedelta(seconds=1))


def opine(shop: Settings, number: int, person: str, withdrawn_at: datetime | None = None) -> None:
    with database.transaction(shop) as connection:
        row = {"answer_id": f"{person} {number} {withdrawn_at}", "content_sha256": content(number), "person": person}
        row |= {"said_at": datetime.now(UTC), "place": 1, "answer": {}, "withdrawn_at": withdrawn_at}
        connection.execute(sa.insert(review_opinions).values(**row))


def answer(number: int, by: str = "小李", **more: Any) -> Answer:
    given = {"kind": "correct", "source": "import", "shown_because": "import", "answered_by": by, **more}
    given.setdefault("labels", ("t:b",) if given["kind"] in corrections.LABELLED else ())
    named = f"{number} {by} {given['kind']} {given.get('retracts')}"
    return Answer(**{"answer_id": named, "answered_at": datetime.now(UTC), "content_sha256": content(number), **given})


def retract(number: int, of: int) -> Answer:
    return answer(number, kind="retract", retracts=of)
