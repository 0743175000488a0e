"""Small taggers with real networks, served as large ones are: quick, slow, and ones whose packed code misbehaves."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from tiny_backbone import TINY
from torch import nn

from eval.serving import Subject
from wwts_ops import registration, tagger
from wwts_ops.backbones.base import Backbone, Pretrained, Recipe
from wwts_ops.tagger import Head, Tagger
from wwts_ops.taxonomy import Label, Taxonomy

LABELS = ("shop:1", "shop:2", "shop:3", "shop:4", "shop:5", "shop:6")
NAMES = Taxonomy(
    "t000001-test",
    tuple(Label(label_id, f"货{label_id[-1]}", category_path="货架 > 上层") for label_id in LABELS),
)
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "brick.png", "grass.png", "gravel.png")


@dataclass(frozen=True)
class Slow(Backbone):
    """Some hundred times the arithmetic of ``TINY`` on the same input."""

    recipe: Recipe

    def network(self) -> nn.Module:
        torch.manual_seed(9)
        return _SlowNetwork(self.recipe).eval()

    def pretrained(self) -> Pretrained:
        return Pretrained(self.network().state_dict(), torch.zeros(1), torch.zeros(1))


SLOW = Slow(replace(TINY.recipe, backbone="slow"))


class _SlowNetwork(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.mean, self.std = recipe.mean, recipe.std
        self.first = nn.Conv2d(3, 256, 3, padding=1)
        self.wide = nn.Sequential(*(nn.Conv2d(256, 256, 5, padding=2) for _ in range(2)))
        self.last = nn.Conv2d(256, recipe.dimension, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.permute(0, 3, 1, 2).to(self.first.weight.dtype) - self.mean) / self.std
        return torch.relu(self.last(self.wide(self.first(x)))).mean(dim=(2, 3))


def head(seed: int = 1, threshold: float = 0.6) -> Head:
    numbers = np.random.default_rng(seed)
    shape = (len(LABELS), TINY.recipe.dimension)
    return Head(LABELS, np.full(len(LABELS), threshold), numbers.normal(size=shape), numbers.normal(size=len(LABELS)))


def save(folder: Path, backbone: Backbone = TINY, wanted: Head | None = None) -> Tagger:
    return tagger.save(folder, backbone, backbone.network().state_dict(), wanted or head())


def subject(made: Tagger, code: Path, **replaced: str) -> Subject:
    """``made`` with the running code staged into ``code``, some modules of it ``replaced`` by other text."""
    registration.stage_code(code)
    for module, text in replaced.items():
        (code / "wwts_ops" / f"{module}.py").write_text(text, encoding="utf-8")
    return Subject("shelf version 7", made, code)


def photographs(count: int) -> Iterator[bytes]:
    """Different pictures cut from real photographs, as JPEG of a phone's thumbnail size."""
    folder = Path(skimage.__file__).parent / "data"
    for number in range(count):
        with Image.open(folder / _PHOTOS[number % len(_PHOTOS)]) as opened:
            photo = opened.convert("RGB")
        left, top = 7 * (number // len(_PHOTOS)), 5 * (number // len(_PHOTOS))
        out = io.BytesIO()
        photo.crop((left, top, left + 200, top + 160)).save(out, "JPEG", quality=90)
        yield out.getvalue()
