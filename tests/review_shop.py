"""A shop whose night left much to look at: real pictures, a published snapshot, items routed. No model is run.

There are ``items`` contents that need a person (some copied, some near-duplicates, one placeholder picture that 25 SKUs
share) and half as many that do not, of which ``audit_rate`` are sampled on top.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from wwts_ops import planning, publish, taxonomy
from wwts_ops import settings as settings_module
from wwts_ops.embeddings import EmbeddingWriter, part_key
from wwts_ops.planning import Pin, Plan, Request
from wwts_ops.review import queue
from wwts_ops.schemas import QUARANTINE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import Shard
from wwts_ops.taxonomy import Label, Taxonomy

DATE = date(2026, 3, 1)
BACKBONE = "ab" * 32
DIMENSION = 32
#: Airflow users that the settings know; anybody else is a viewer.
REVIEWERS, ADMIN, VIEWER = ("小李", "小张", "anna"), "主管", "guest"
#: More SKUs than may share a content without being asked.
PLACEHOLDER_SKUS = 25

_FOOD = (
    "红富士苹果",
    "香蕉🍌",
    "库尔勒香梨",
    "巨峰葡萄🍇",
    "麒麟西瓜",
    "上海青",
    "娃娃菜",
    "圣女果",
    "铁棍山药",
    "口蘑",
)
_HOME = ("保温杯", "雨伞☂️", "垃圾袋", "抽纸", "洗洁精", "牙刷🪥", "毛巾", "拖鞋", "衣架", "插线板")
_WINE = ("红酒🍷", "白酒", "精酿啤酒🍺", "黄酒")
LABELS = (
    *(Label(f"shop:f{number}", name, f"food {number}", "", "食品 > 生鲜 > 果蔬") for number, name in enumerate(_FOOD)),
    *(Label(f"shop:h{number}", name, f"home {number}", "", "家居 > 日用") for number, name in enumerate(_HOME)),
    *(
        Label(f"shop:w{number}", name, f"wine {number}", "", "饮料 > 酒类 > 瓶装酒")
        for number, name in enumerate(_WINE)
    ),
    Label("shop:long", '一个名字特别特别长的商品标签（礼盒装）& <b>加粗</b> "引号"', "long", "礼盒|大礼包", "其他"),
)


@dataclass(frozen=True)
class ReviewShop:
    """A shop after its night. ``waiting``: items there are; ``plan``: the night's."""

    folder: Path
    settings: Settings
    plan: Plan
    waiting: int

    @classmethod
    def made(cls, folder: Path, items: int = 200, **more: Any) -> ReviewShop:
        """A shop below ``folder`` (made if need be); ``more`` are settings."""
        pictures = folder / "shop" / "图片"
        pictures.mkdir(parents=True)
        given = {
            "store": str(folder / "store"),
            "catalog": str(folder / "shop" / "list.csv"),
            "release": "live",
            "reviewers": ",".join(REVIEWERS),
            "review_admins": ADMIN,
            "shard_size": 25_000,
        }
        settings = settings_module.load(**{**given, **more})
        rows = _Rows(items, Store.of(settings), pictures).made()
        shop = cls(folder, settings, _night(settings, rows), 0)
        publish.publish(shop.store, settings)
        return cls(folder, settings, shop.plan, queue.route(shop.store, settings, shop.plan))

    @cached_property
    def store(self) -> Store:
        return Store.of(self.settings)

    @cached_property
    def names(self) -> Taxonomy:
        found = taxonomy.current(self.store)
        assert found is not None
        return found

    @property
    def people(self) -> tuple[str, ...]:
        """Who may answer."""
        return REVIEWERS


Row = dict[str, Any]


@dataclass
class _Rows:
    """What the night found, an image after the other; its bytes, thumbnail and embedding are kept on the way."""

    items: int
    store: Store
    pictures: Path

    def made(self) -> list[Row]:
        chance = random.Random(5)
        names = self._labels()
        placeholder = self._content(0, "暂无图片")
        found = (
            [self._row(place, placeholder, names[0], 0.4) for place in range(PLACEHOLDER_SKUS)] if self.items else []
        )
        base: Row = {}
        for number in range(1, self.items + self.items // 2):
            label = names[number % len(names)]
            sure = number >= self.items
            # Every tenth looks like the one before, every fifteenth is another picture of the SKU before.
            like = base if number % 10 == 3 else None
            content = self._content(number, f"{label.label_zh[:4]} {number}", like)
            score = 0.9 + chance.random() / 10 if sure else 0.1 + 0.5 * chance.random()
            row = self._row(len(found), content, label, score)
            if number % 15 == 4 and base:
                row["sku_id"] = base["sku_id"]
            found.append(base := row)
            if number % 7 == 2:  # a copy in another SKU
                found.append(self._row(len(found), content, label, score))
        return found

    def _labels(self) -> list[Label]:
        names = taxonomy.ensure(self.store, ("饮料 > 酒类",))
        names = taxonomy.edit(self.store, "小王", {label.label_id: label for label in LABELS})
        fixed = [label for label in names.labels if label.category_path and label.label_id.startswith("imagenet:")]
        self._names = names
        return [*LABELS, *fixed[:40]]

    def _content(self, number: int, text: str, like: Row | None = None) -> Row:
        data = _jpeg(number % 48, text if number < 400 else "") + f"#{number}".encode()
        sha = hashlib.sha256(data).hexdigest()
        (self.pictures / f"{number:06d}.jpg").write_bytes(data)
        thumbnail = Path(self.store.path(f"thumbnails/{sha[:2]}/{sha}.jpg"))
        thumbnail.parent.mkdir(parents=True, exist_ok=True)
        thumbnail.write_bytes(data)
        vector = np.random.default_rng(number).normal(size=DIMENSION)
        if like is not None:
            vector = like["vector"] + 0.1 * vector
        return {"content_sha256": sha, "uri": f"图片/{number:06d}.jpg", "vector": vector}

    def _row(self, place: int, content: Row, label: Label, score: float) -> Row:
        others = [one for one in LABELS[place % 7 : place % 7 + 5] if one.label_id != label.label_id][:4]
        scores = [score, *(min(score, 1 - score) * part for part in (0.5, 0.25, 0.125, 0.0625))]
        forced = self._names.forced_reason(label.label_id)
        decision = "forced_review" if forced else "auto" if score >= 0.6 else "review"
        return {
            **content,
            "image_id": f"img-{place:06d}",
            "sku_id": f"SKU{place:06d}",
            "title": f"{label.label_zh} 家庭装 {place}",
            "width": 320,
            "height": 240,
            "tags": [
                {"label_id": one.label_id, "label_zh": one.label_zh, "score": part}
                for one, part in zip([label, *others], scores, strict=False)
            ],
            "label_id": label.label_id,
            "label_zh": label.label_zh,
            "confidence": score,
            "category_path": label.category_path,
            "decision": decision,
            "decision_reason": forced or ("confident" if decision == "auto" else "low_confidence"),
        }


_CACHE: dict[tuple[int, str], bytes] = {}


def _jpeg(colour: int, text: str) -> bytes:
    """A small picture; of most there are only as many as colours, and what follows them makes them contents."""
    if (colour, text) not in _CACHE:
        hue = (colour * 37 % 200 + 40, colour * 59 % 200 + 40, colour * 83 % 200 + 40)
        picture = Image.new("RGB", (320, 240), hue)
        draw = ImageDraw.Draw(picture)
        draw.ellipse((80 + colour, 40, 220 + colour, 180), fill=tuple(255 - part for part in hue))
        draw.text((10, 215), text.encode("ascii", "replace").decode(), fill="white")
        held = io.BytesIO()
        picture.save(held, "JPEG", quality=70)
        _CACHE[colour, text] = held.getvalue()
    return _CACHE[colour, text]


def _night(settings: Settings, rows: Sequence[Row]) -> Plan:
    """Plans the rows' images and writes what a night leaves behind."""
    store = Store.of(settings)
    lines = (f'{row["image_id"]},{row["sku_id"]},{row["uri"]},"{_quoted(row["title"])}",1\n' for row in rows)
    manifest = Path(settings.catalog)
    manifest.write_text("image_id,sku_id,uri,title,etag\n" + "".join(lines), encoding="utf-8")
    names = taxonomy.current(store)
    assert names is not None
    pin = Pin("wwts-tagger", "1", "cd" * 32, BACKBONE, names.version)
    plan = planning.commit(store, planning.propose(store, settings, Request(DATE, pin)))
    assert plan is not None
    by_id = {row["image_id"]: row for row in rows}
    for number in range(plan.shards):
        _write_shard(store, plan, number, by_id)
    store.write_json(planning.done_key(plan.run_key), {"images": plan.images})
    return plan


def _quoted(text: str) -> str:
    return text.replace('"', '""')


def _write_shard(store: Store, plan: Plan, number: int, by_id: dict[str, Row]) -> None:
    planned = planning.read_shard(store, plan.run_key, number).select(["image_id", "uri"]).to_pylist()
    common = {
        "source": "model",
        "model_name": plan.model_name,
        "model_version": plan.model_version,
        "model_sha256": plan.model_sha256,
        "backbone_sha256": plan.backbone_sha256,
        "taxonomy_version": plan.taxonomy_version,
        "git_sha": "e" * 40,
        "run_id": plan.run_key,
        "tagged_at": datetime(2026, 3, 1, 20, tzinfo=UTC),
    }
    rows = [{**by_id[one["image_id"]], **common, "uri": one["uri"]} for one in planned]
    shard = Shard(plan, number)
    store.write_table(shard.part("tags"), pa.Table.from_pylist(rows, schema=TAGS))
    store.write_table(shard.part("quarantine"), QUARANTINE.empty_table())
    vectors = {row["content_sha256"]: row["vector"] for row in rows}
    with (
        store.writing(part_key(BACKBONE, plan.date, plan.run_key, number)) as path,
        EmbeddingWriter(path, BACKBONE, DIMENSION) as writer,
    ):
        for content, vector in vectors.items():
            writer.add(content, vector.astype(np.float16))
    store.write_json(shard.marker, {"images": len(rows), "reasons": {}, "seconds": 1.0, "timings": {}})
