"""A shop of which the tests know every image: real photographs, copies, broken files, and one plan over them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import skimage
from night_run import _png_header
from PIL import Image

from wwts_ops import planning, settings, taxonomy
from wwts_ops.planning import Pin, Plan, Request
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.tagging import Machine, Shard

DATE = date(2026, 3, 1)
_PHOTOS = Path(skimage.__file__).parent / "data"
#: Name: source, box, side of the saved picture's long side.
PHOTOS: dict[str, tuple[str, tuple[int, int, int, int], int]] = {
    "a1 咖啡 ☕.jpg": ("coffee.png", (0, 0, 600, 400), 600),
    "a2 猫/Chelsea 🐱.jpg": ("chelsea.png", (0, 0, 451, 300), 451),
    "a3.png": ("rocket.jpg", (0, 0, 640, 427), 300),
    "a4 strip.jpg": ("astronaut.png", (200, 0, 260, 512), 512),
    "a5.jpg": ("coffee.png", (300, 100, 500, 300), 200),
    "a6 tiny.png": ("chelsea.png", (100, 60, 220, 140), 60),
    "a7 large.jpg": ("astronaut.png", (0, 0, 512, 400), 1600),
    "a8.webp": ("rocket.jpg", (200, 0, 500, 427), 427),
    "a9.jpg": ("astronaut.png", (120, 0, 320, 200), 380),
}
#: In the order of the plan each stands behind the photograph that it is a copy of.
COPIES = {"b1 又一张.jpg": "a1 咖啡 ☕.jpg", "b2.dat.jpg": "a8.webp", "b3.jpg": "a1 咖啡 ☕.jpg"}
REASONS = {
    "c1 空.jpg": "empty",
    "c2 截断.jpg": "truncated",
    "c3 网页.jpg": "not_an_image",
    "c4.jpg": "unsupported_format",
    "c5 炸弹.png": "too_many_pixels",
    "c6 gone.jpg": "unreadable_uri",
    "d1 截断 copy.jpg": "truncated",
}


def make_photos(folder: Path) -> None:
    """Only the photographs and their copies."""
    for name, (source, box, side) in PHOTOS.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(_PHOTOS / source) as photo:
            piece = photo.convert("RGB").crop(box)
        scale = side / max(piece.size)
        piece.resize((round(piece.width * scale), round(piece.height * scale))).save(target, quality=90)
    for name, original in COPIES.items():
        shutil.copyfile(folder / original, folder / name)


def make_broken(folder: Path) -> None:
    """One file for each of :data:`REASONS`; the uri that cannot be read is taken away once the plan is made."""
    whole = (folder / "a1 咖啡 ☕.jpg").read_bytes()
    (folder / "c1 空.jpg").write_bytes(b"")
    (folder / "c2 截断.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "c3 网页.jpg").write_text("<!doctype html><title>404</title>页面不存在", encoding="utf-8")
    (folder / "c4.jpg").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n%%EOF\n")
    (folder / "c5 炸弹.png").write_bytes(_png_header(60_000, 60_000))
    (folder / "c6 gone.jpg").write_bytes(whole)
    shutil.copyfile(folder / "c2 截断.jpg", folder / "d1 截断 copy.jpg")


@dataclass(frozen=True)
class Shop:
    """A folder of images, a store, a tagger, and nights one shard long."""

    folder: Path
    root: Path
    tagger: Tagger

    @cached_property
    def store(self) -> Store:
        return Store(str(self.root))

    def settings(self, **more: Any) -> Settings:
        given = {"store": str(self.root), "catalog": str(self.folder), "device": "cpu", "max_delist_share": 1.0}
        return settings.load(**{**given, **more})

    def machine(self, **more: Any) -> Machine:
        return Machine.of(self.tagger, taxonomy.embedded(()), self.settings(**more))

    def plan(self, night: date = DATE, **more: Any) -> Plan:
        """Plans what is new, in the order of the names."""
        for path in self.folder.rglob("*.*"):
            os.utime(path, ns=(0, 1_700_000_000_000_000_000))
        pin = Pin("wwts-tagger", "7", self.tagger.sha256, self.tagger.backbone_sha256, "t1")
        plan = planning.commit(
            self.store, planning.propose(self.store, self.settings(**more), Request(night, pin, None))
        )
        assert plan is not None
        return plan

    def finish(self, plan: Plan) -> None:
        """Ends the run of ``plan``: from now on its contents are known."""
        self.store.write_json(planning.done_key(plan.run_key), {"images": plan.images})

    def part(self, shard: Shard, dataset: str) -> pa.Table:
        return self.store.read_table(shard.part(dataset))

    def embeddings(self, shard: Shard) -> pa.Table:
        (key,) = (key for key in self.store.list("embeddings", ".parquet") if shard.plan.run_key in key)
        return self.store.read_table(key)

    def thumbnails(self) -> dict[str, Path]:
        """Content to file."""
        return {Path(key).stem: self.root / key for key in self.store.list("thumbnails")}


def by_id(table: pa.Table) -> Mapping[str, dict[str, Any]]:
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows
