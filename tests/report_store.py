"""A store as a night leaves it: real thumbnails of real photographs, rows whose counts the tests know."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wwts_ops import planning, schemas
from wwts_ops.storage import Store

DATE = date(2026, 3, 8)
#: 02:00 in Shanghai, which UTC calls the day before.
START = datetime(2026, 3, 7, 18, 0, 4, tzinfo=UTC)
DRINKS, SNACKS, PHARMACY = "饮料 > 酒类 > 红酒", "食品 > 休闲零食 > 饼干", "医药 > 药品 > 药瓶"


@dataclass(frozen=True)
class Row:
    """One tagged image; ``tags`` are (label_id, label_zh, score), best first."""

    image_id: str
    content: str
    tags: tuple[tuple[str, str, float], ...]
    category: str
    decision: str
    reason: str
    source: str = "model"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True)
class Bad:
    """One image in quarantine."""

    image_id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Night:
    """One run as its plan, its parts and its markers tell it."""

    sequence: int
    rows: Sequence[Row] = ()
    bad: Sequence[Bad] = ()
    day: date = DATE
    shards: int = 2
    shards_done: int | None = None
    seconds: float = 10.0
    header: dict[str, Any] = field(default_factory=dict)

    @property
    def run_key(self) -> str:
        return f"{self.day}-{hashlib.sha256(str(self.sequence).encode()).hexdigest()[:12]}"


def write(store: Store, night: Night) -> None:
    """Plan, parts and markers of one run."""
    write_plan(store, night)
    done = night.shards if night.shards_done is None else night.shards_done
    for shard in range(done):
        rows, bad = night.rows[shard :: night.shards], night.bad[shard :: night.shards]
        part = f"date={night.day}/part-{night.run_key}-{shard:05d}.parquet"
        if rows:
            tags = [_tag_row(night, row, number) for number, row in enumerate(rows)]
            store.write_table(f"tags/{part}", pa.Table.from_pylist(tags, schema=schemas.TAGS))
        if bad:
            quarantine = [_bad_row(night, image) for image in bad]
            store.write_table(f"quarantine/{part}", pa.Table.from_pylist(quarantine, schema=schemas.QUARANTINE))
        marker = {
            "images": len(rows) + len(bad),
            "seconds": night.seconds,
            "tagged": len(rows),
            "duplicates": sum(row.source == "duplicate" for row in rows),
            "quarantined": len(bad),
            "wait": {"read": 0.1},
        }
        store.write_json(f"runs/{night.run_key}/shard-{shard:05d}.json", marker)


def write_plan(store: Store, night: Night) -> None:
    header = {
        "run_key": night.run_key,
        "sequence": night.sequence,
        "date": night.day.isoformat(),
        "catalog": "商品图/三月",
        "model_name": "wwts-tagger",
        "complete": True,
        "model_version": "1",
        "model_sha256": "a" * 64,
        "backbone_sha256": "b" * 64,
        "taxonomy_version": "t000001-5d0c7be1a9f3",
        "known_runs": (),
        "images": len(night.rows) + len(night.bad),
        "shards": night.shards,
        "delisted": 0,
        "carried_over": 0,
        "broken_rows": 0,
        "broken": [],
        "skipped": 0,
        **night.header,
    }
    schema = schemas.PLAN.with_metadata({"wwts": planning.Plan(**header).to_json()})
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    store.write_bytes(planning.plan_key(night.run_key), buffer.getvalue())
    store.write_json(f"runs/_sequence/{night.sequence:012d}.json", {"run_key": night.run_key})


def _tag_row(night: Night, row: Row, number: int) -> dict[str, Any]:
    first = row.tags[0] if row.tags else (None, None, None)
    return {
        "image_id": row.image_id,
        "uri": f"图/{row.image_id}",
        "content_sha256": row.sha256,
        "width": 800,
        "height": 600,
        "tags": [{"label_id": label_id, "label_zh": label, "score": score} for label_id, label, score in row.tags],
        "label_id": first[0],
        "label_zh": first[1],
        "confidence": first[2],
        "category_path": row.category,
        "decision": row.decision,
        "decision_reason": row.reason,
        "source": row.source,
        "model_name": "wwts-tagger",
        "model_version": "1",
        "taxonomy_version": "t000001-5d0c7be1a9f3",
        "run_id": night.run_key,
        "tagged_at": START + timedelta(seconds=number),
    }


def _bad_row(night: Night, bad: Bad) -> dict[str, Any]:
    return {
        "image_id": bad.image_id,
        "uri": f"图/{bad.image_id}",
        "reason": bad.reason,
        "detail": bad.detail,
        "run_id": night.run_key,
        "seen_at": START,
    }


def write_thumbnail(store: Store, row: Row, picture: Image.Image) -> bytes:
    """A thumbnail as the tagging writes it: 320 px at most, JPEG."""
    small = picture.convert("RGB")
    small.thumbnail((320, 320))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    store.write_bytes(f"thumbnails/{row.sha256[:2]}/{row.sha256}.jpg", buffer.getvalue())
    return buffer.getvalue()


def publish(store: Store, release: str, live: int, pending: int) -> None:
    pointer = {
        "snapshot": "s000007-2026-03-08",
        "rows": live + pending,
        "live": live,
        "pending": pending,
        "release": release,
        "model_version": "1",
        "taxonomy_version": "t000001-5d0c7be1a9f3",
    }
    assert store.replace_pointer("published/current.json", pointer, store.read_pointer("published/current.json"))


def photographs() -> list[Image.Image]:
    """Photographs that scikit-image's wheel carries: no download."""
    import skimage.data

    makers = (skimage.data.astronaut, skimage.data.coffee, skimage.data.chelsea, skimage.data.rocket)
    return [Image.fromarray(make()) for make in makers]


def random_rows(seed: int, count: int) -> list[Row]:
    """Rows with every decision, many duplicates and every tenth of confidence.

    Scores are whole hundredths, so that a bin's edge (0.3, 0.7) is hit often.
    """
    dice = random.Random(seed)
    labels = [
        ("grocery:3", "红富士苹果", "生鲜 > 水果 > 苹果"),
        ("grocery:44", "牛奶", "食品 > 乳品 > 鲜奶"),
        ("imagenet:n1", "仙鹤", "动物 > 鸟类 > 鹤"),
        # A Chinese name is no key: two labels share this one.
        ("imagenet:n2", "仙鹤", "工具 > 起重 > 吊车"),
        ("imagenet:n3", "饼干", SNACKS),
        ("imagenet:n4", "红酒", DRINKS),
        ("imagenet:n5", "药瓶", PHARMACY),
        *((f"other:{n}", f"杂货{n}", f"杂货{n % 23} > 其他") for n in range(40)),
    ]
    rows = []
    for number in range(count):
        label_id, label, category = labels[min(int(dice.expovariate(0.15)), len(labels) - 1)]
        score = dice.randint(1, 100) / 100
        decision, reason = "auto" if score >= 0.6 else "review", "confident" if score >= 0.6 else "low_confidence"
        if category in (DRINKS, PHARMACY):
            decision, reason = "forced_review", f"forced_category:{category.split(' > ')[0]}"
        others = tuple((f"x:{n}", f"候选{n}", score / (n + 2)) for n in range(4))
        rows.append(
            Row(
                f"图片/{seed}-{number:05d}.jpg",
                # Two of a content are the same picture, so they have the same tags.
                f"{seed}-{number}",
                ((label_id, label, score), *others),
                category,
                decision,
                reason,
            )
        )
    return list(_with_copies(rows, dice))


def _with_copies(rows: Sequence[Row], dice: random.Random) -> Iterator[Row]:
    from dataclasses import replace

    for row in rows:
        yield row
        for copy in range(dice.choice((0, 0, 0, 0, 1, 3))):
            yield replace(row, image_id=f"{row.image_id}.{copy}.jpg", source="duplicate")


def grocery() -> Path | None:
    """The folder of shop photographs, where a checkout has one beside it."""
    folder = Path(os.environ.get("WWTS_TEST_PHOTOS") or Path(__file__).parents[2] / "shared/data/grocery")
    return folder if (folder / "labels_zh.csv").is_file() else None


def shop_night(store: Store, folder: Path, seed: int = 7) -> None:
    """A night of shop photographs, for eyes: right and wrong labels, copies, broken files, missing thumbnails."""
    dice = random.Random(seed)
    with (folder / "labels_zh.csv").open(encoding="utf-8") as file:
        classes = {row["class_name"]: row for row in csv.DictReader(file)}
    everything = list(classes.values())
    rows = []
    for path in dice.sample(sorted((folder / "val").rglob("*.jpg")), 280):
        row = _shop_row(
            path.relative_to(folder).as_posix(),
            classes[path.parent.name if path.parent.name in classes else path.stem.rsplit("_", 1)[0]],
            everything,
            dice,
        )
        if dice.random() > 0.03:
            with Image.open(path) as picture:
                write_thumbnail(store, row, picture)
        rows.append(row)
    rows = list(_with_copies(rows, dice))
    bad = [Bad(f"val/损坏/图{n:03d}.jpg", "truncated", "只有 12,288 字节，JPEG 在第 3 段中断") for n in range(8)]
    bad += [Bad(f"val/空/空文件 {n}.png", "empty") for n in range(2)]
    bad += [
        Bad("val/" + "很长的目录名/" * 20 + "🍎.jpg", "unreadable_uri", "https://img.example.cn/a.jpg 15 秒没有回应")
    ]
    broken = [
        {"line": 17, "image_id": "SKU-0017", "reason": "uri 是空的"},
        {"line": 233, "image_id": None, "reason": "image_id 是空的"},
        {"line": 1042, "image_id": "6.9012E+12", "reason": "编号被表格软件改成了科学计数法，请把这一列设为文本再导出"},
    ]
    header = {"carried_over": 1200, "delisted": 14, "broken_rows": 3, "broken": broken}
    write(store, Night(1, rows, bad, shards=4, seconds=4.6, header=header))
    publish(store, "shadow", 0, len(rows))


def _shop_row(image_id: str, right: dict[str, str], everything: Sequence[dict[str, str]], dice: random.Random) -> Row:
    label = right if dice.random() < 0.85 else dice.choice(everything)
    score = min(0.999, max(0.04, dice.betavariate(3.2, 1.3)))
    others = dice.sample(everything, 4)
    tags = [(f"grocery:{label['class_id']}", label["label_zh"], score)]
    rest = 1 - score
    for other in others:
        rest *= dice.uniform(0.3, 0.6)
        tags.append((f"grocery:{other['class_id']}", other["label_zh"], min(rest, score)))
    decision, reason = ("auto", "confident") if score >= 0.6 else ("review", "low_confidence")
    if label["coarse_name"] in ("Milk", "Soy-Milk"):
        decision, reason = "forced_review", "forced_category:" + label["category_path"].rsplit(" > ", 1)[0]
    elif label["class_name"] == "Ginger":
        decision, reason = "forced_review", "forced_label"
    return Row(image_id, image_id, tuple(tags), label["category_path"], decision, reason)
