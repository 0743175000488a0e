"""A shop whose bad cases and model versions are made to measure: each version is right on exactly the cases we say.

Heads are solved for: with more numbers an embedding than cases, a linear head exists that gives every case the label
wanted. So a version that loses exactly one case, or one slice, needs no luck and no training.
"""

from __future__ import annotations

import csv
import shutil
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from wwts_ops import images, registration, taxonomy
from wwts_ops.backbones.base import Backbone, Pretrained, Recipe
from wwts_ops.runtime import OnnxEmbedder
from wwts_ops.settings import Settings
from wwts_ops.tagger import Head, Tagger, load, save
from wwts_ops.tracking import ModelVersion

Array = np.ndarray[Any, Any]

#: Slice: photograph of an installed package, its label. None is of the starter set, so that nothing is right by chance.
KINDS = {
    "钟表 🕰": ("skimage/data/clock_motion.png", "imagenet:n04548280"),
    "车辆 > 摩托": ("skimage/data/motorcycle_left.png", "imagenet:n03791053"),
    "鲜花": ("sklearn/datasets/images/flower.jpg", "imagenet:n11939491"),
    "建材/砖石": ("skimage/data/brick.png", "imagenet:n04326547"),
}
VIEWS = 12
#: What a case is taken for that a version gets wrong.
WRONG = "imagenet:n03223299"
_CHANNELS, _CELLS = 32, 3
_RECIPE = Recipe("tiny", short_side=40, input=32, mean=100.0, std=50.0, dimension=_CHANNELS * _CELLS**2)
#: A right label's logit; all others are 0, so that a softmax over 24 labels is sure of it.
_LOGIT = 8.0


class _Network(nn.Module):
    def __init__(self, rounds: int) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv = nn.Conv2d(3, _CHANNELS, 5)
        self.waste = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.rounds = rounds

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.permute(0, 3, 1, 2).to(self.conv.weight.dtype) - _RECIPE.mean) / _RECIPE.std
        x = torch.relu(self.conv(x))
        wasted = x
        for _ in range(self.rounds):
            wasted = torch.tanh(self.waste(wasted))
        pooled = nn.functional.adaptive_avg_pool2d(x + 1e-30 * wasted, _CELLS)
        return pooled.flatten(1)


@dataclass(frozen=True)
class Made(Backbone):
    """Random convolutions; ``rounds`` of work whose result does not matter make it slow."""

    recipe: Recipe = _RECIPE
    rounds: int = 0

    def network(self) -> nn.Module:
        return _Network(self.rounds).eval()

    def pretrained(self) -> Pretrained:
        raise NotImplementedError


@dataclass(frozen=True)
class Case:
    """One photograph and what it shows."""

    path: Path
    slice: str
    label_id: str
    never_regress: bool


@dataclass
class GateShop:
    """A store, its cases, and versions registered one by one."""

    settings: Settings
    folder: Path
    versions: dict[str, ModelVersion] = field(default_factory=dict)

    @cached_property
    def cases(self) -> list[Case]:
        """Twelve views of each photograph; the first of each kind may never regress."""
        found = []
        for kind, (photo, label_id) in KINDS.items():
            with Image.open(Path(sysconfig.get_path("purelib"), photo)) as opened:
                whole = opened.convert("RGB")
            for view in range(VIEWS):
                path = self.folder / "坏例" / kind.replace("/", "／") / f"视角 {view:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                _view(whole, view).save(path, quality=92)
                found.append(Case(path, kind, label_id, view == 0))
        return found

    def write_cases(self) -> Path:
        """The file that a person would import."""
        target = self.folder / "坏例.csv"
        with target.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["uri", "label_id", "slice", "never_regress", "owner", "reason"])
            for case in self.cases:
                writer.writerow([case.path, case.label_id, case.slice, case.never_regress, "小王", "线上打错过"])
        return target

    def catalog(self, name: str) -> Path:
        """A catalog of the same pictures under other names."""
        folder = self.folder / name
        for number, case in enumerate(self.cases):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(case.path, folder / f"{name}-{number:03d}.jpg")
        return folder

    @cached_property
    def _blank(self) -> Tagger:
        count = len(self.label_ids)
        weight, bias = np.zeros((count, _RECIPE.dimension), np.float32), np.zeros(count, np.float32)
        return self._save("blank", Made(), Head(self.label_ids, np.full(count, 0.6, np.float32), weight, bias))

    @cached_property
    def label_ids(self) -> tuple[str, ...]:
        """The labels of the cases, and some of which nothing is shown."""
        wanted = [label_id for _, label_id in KINDS.values()]
        others = [label.label_id for label in taxonomy.embedded_labels() if label.label_id not in (*wanted, WRONG)]
        return (*wanted, WRONG, *others[:19])

    @cached_property
    def embeddings(self) -> Array:
        """``float16 [cases, dimension]``, as the night would store them."""
        embed = OnnxEmbedder(self._blank)
        crops = [_RECIPE.crop(images.decode(case.path.read_bytes(), 40, 10**8).rgb) for case in self.cases]
        return np.concatenate([embed(crop[None]) for crop in crops])

    def head(self, right: Iterable[int], threshold: float = 0.6) -> Head:
        """A head that gets exactly the cases ``right``, and takes the others for :data:`WRONG`."""
        known, right = {label: row for row, label in enumerate(self.label_ids)}, set(right)
        wanted = np.zeros((len(self.cases), len(self.label_ids)))
        for number, case in enumerate(self.cases):
            wanted[number, known[case.label_id if number in right else WRONG]] = _LOGIT
        weight = np.linalg.lstsq(self.embeddings.astype(np.float64), wanted, rcond=None)[0].T
        count = len(self.label_ids)
        return Head(self.label_ids, np.full(count, threshold, np.float32), weight.astype(np.float32), np.zeros(count))

    def random_head(self) -> Head:
        """What a head is before any training."""
        count = len(self.label_ids)
        weight = np.random.default_rng(11).normal(size=(count, _RECIPE.dimension)).astype(np.float32)
        return Head(self.label_ids, np.full(count, 0.6, np.float32), weight, np.zeros(count, np.float32))

    def register(self, name: str, head: Head, rounds: int = 0) -> ModelVersion:
        """Registers a version with that head, slowed by ``rounds``."""
        known = {label.label_id: label for label in taxonomy.embedded_labels()}
        labels = tuple(known[label_id] for label_id in head.label_ids)
        tagger = self._save(name, Made(rounds=rounds), head)
        self.versions[name] = registration.register(self.settings, registration.Candidate(tagger, labels, name))
        return self.versions[name]

    def _save(self, name: str, backbone: Made, head: Head) -> Tagger:
        folder = self.folder / "taggers" / name
        if folder.exists():
            return load(folder)
        return save(folder, backbone, backbone.network().state_dict(), head)


def _view(whole: Image.Image, number: int) -> Image.Image:
    """Another part of the same photograph, brighter or darker: other bytes, the same thing."""
    width, height = whole.size
    left, top = width * (number % 4) // 12, height * (number // 4) // 9
    piece = whole.crop((left, top, left + width * 2 // 3, top + height * 2 // 3))
    return piece.point(lambda value: min(255, round(value * (0.8 + 0.04 * number))))
