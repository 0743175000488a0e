"""A shop with something to teach: tiles of three photographs, each photograph a label that no model knows yet.

Half of the tiles are in the catalog, tagged in one real night and answered by a person; the other half are bad cases.
Tiles of other photographs are in the catalog too, and nobody answers them.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import skimage
import yaml
from night_process import one_night
from PIL import Image

import eval as evaluation
from wwts_ops import badcases, corrections, taxonomy, tracking
from wwts_ops.corrections import Answer
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Label

#: Label: photograph, name. None is in the starter set of bad cases.
LABELS = {
    "shop:coins": ("coins.png", "古钱币"),
    "shop:fundus": ("retina.jpg", "眼底照片"),
    "shop:launch": ("rocket.jpg", "=火箭发射"),  # a formula in a spreadsheet
}
#: Photographs of what nobody asks about.
OTHERS = ("clock_motion.png", "page.png", "brick.png")
TILES = 5
ANSWERED = datetime(2026, 3, 2, 9, tzinfo=UTC)


@dataclass(frozen=True)
class Tile:
    """A piece of a photograph on disk."""

    path: Path
    label_id: str

    @cached_property
    def content(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class RetrainShop:
    """A shop below ``folder`` after its first night, with the embedded default as champion."""

    settings: Settings
    folder: Path

    @classmethod
    def made(cls, found: Settings, folder: Path) -> RetrainShop:
        """With an answer for every image, and bad cases; their first snapshot is the starter set, retired since."""
        shop = cls(found, folder)
        _ = shop.catalog, shop.cases, shop.others
        one_night(found)
        taxonomy.add(shop.store, "小王", [Label(label_id, name) for label_id, (_, name) in LABELS.items()])
        starter = badcases.ensure(shop.store, taxonomy.ensure(shop.store, ()))
        shop.curate(shop.cases)
        for case in starter.active:
            badcases.retire(shop.store, "小王", case.content_sha256, "有了自己的坏例")
        shop.answer(shop.catalog)
        return shop

    @cached_property
    def store(self) -> Store:
        return Store.of(self.settings)

    @cached_property
    def catalog(self) -> list[Tile]:
        """What is answered."""
        return [tile for label_id, (photo, _) in LABELS.items() for tile in self._tiles("图库", 0, photo, label_id)]

    @cached_property
    def others(self) -> list[Tile]:
        """What is in the catalog unanswered."""
        return [tile for photo in OTHERS for tile in self._tiles("图库", 0, photo, "")]

    @cached_property
    def cases(self) -> list[Tile]:
        return [tile for label_id, (photo, _) in LABELS.items() for tile in self._tiles("坏例", 1, photo, label_id)]

    def answer(self, tiles: list[Tile], start: int = 0, **more: Any) -> None:
        """Says what each of ``tiles`` is; answers are numbered by their place, counted from ``start``."""
        corrections.record(
            self.settings,
            [
                Answer(
                    answer_id=f"test-{number}",
                    answered_at=ANSWERED + timedelta(minutes=number),
                    answered_by="小李",
                    content_sha256=tile.content,
                    kind="correct",
                    source="page",
                    shown_because="audit",
                    labels=(tile.label_id,),
                    sampling_probability=0.5,
                    **more,
                )
                for number, tile in enumerate(tiles, start)
            ],
        )

    def curate(self, tiles: list[Tile]) -> None:
        """Makes bad cases of ``tiles``."""
        badcases.import_cases(self.store, self.settings, self._case_file(tiles), "小王")

    def versions(self) -> list[Any]:
        """MLflow's own entities, oldest first."""
        with tracking.connected(self.settings) as client:
            found = client.search_model_versions(f"name='{self.settings.model_name}'")
        return sorted(found, key=lambda entry: int(entry.version))

    def aliases(self) -> dict[str, str]:
        with tracking.connected(self.settings) as client:
            model = client.get_registered_model(self.settings.model_name)
        return {alias: str(version) for alias, version in model.aliases.items()}

    def _tiles(self, name: str, parity: int, photo: str, label_id: str) -> Iterator[Tile]:
        """Every other tile of a photograph, as a chessboard has its colours."""
        with Image.open(Path(skimage.__file__).parent / "data" / photo) as opened:
            whole = opened.convert("RGB")
        width, height = whole.size[0] // TILES, whole.size[1] // TILES
        for number in range(parity, TILES * TILES, 2):
            left, top = width * (number % TILES), height * (number // TILES)
            path = self.folder / name / f"{Path(photo).stem} {number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                whole.crop((left, top, left + width, top + height)).resize((288, 288)).save(path)
            yield Tile(path, label_id)

    def _case_file(self, tiles: list[Tile]) -> Path:
        target = self.folder / "坏例.csv"
        with target.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["uri", "label_id", "slice", "owner", "reason"])
            writer.writerows([tile.path, tile.label_id, "新品", "小王", "认不出"] for tile in tiles)
        return target


def patient_rules(folder: Path) -> Path:
    """The shipped rules of the gate without what chance decides here: a busy machine's speed, calibration."""
    rules = yaml.safe_load(Path(evaluation.__file__).with_name("gate.yaml").read_text(encoding="utf-8"))
    rules["latency"] = {"max_p95_seconds": 600.0, "max_p95_ratio": 100.0}
    rules["overall"] |= {"max_auto_wrong_increase": 1.0, "max_ece": 1.0, "max_ece_increase": 1.0}
    rules["overall"] |= {"min_auto_precision": 0.0}
    # No bad case in force is of a label that the champion knows.
    rules["slices"]["by_name"]["old_labels"] = {"advisory": True}
    target = folder / "gate.yaml"
    target.write_text(yaml.safe_dump(rules, allow_unicode=True), encoding="utf-8")
    return target
