"""The script this product replaces: one image at a time, as such tutorials write it. Only benchmarks use it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_SIDE = 224


class OneAtATime:
    """PIL open, convert, numpy crop, OpenCV resize, a torch batch of one, softmax, top 5; with our default network."""

    def __init__(self) -> None:
        import torch

        from wwts_ops import backbones

        backbone = backbones.get(backbones.DEFAULT)
        weights = backbone.pretrained()
        network = backbone.network()
        network.load_state_dict(weights.backbone, strict=True)
        self._torch: Any = torch
        self._network: Any = network
        self._weight, self._bias = weights.head_weight, weights.head_bias

    def use_all_cores(self) -> None:
        """Gives torch its own default back, which the pipeline takes away in this process."""
        self._torch.set_num_threads(len(os.sched_getaffinity(0)))

    def __call__(self, path: Path) -> list[tuple[int, float]]:
        """The five best classes of one image with their scores."""
        import cv2
        from PIL import Image

        torch = self._torch
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB"))
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = cv2.resize(pixels[top : top + side, left : left + side], (_SIDE, _SIDE))
        with torch.no_grad():
            features = self._network(torch.from_numpy(square).unsqueeze(0))
            scores = torch.softmax(features @ self._weight.T + self._bias, dim=1)
            best = scores.topk(5)
        return list(zip(best.indices[0].tolist(), best.values[0].tolist(), strict=True))

    def all(self, paths: Iterable[Path]) -> int:
        """Goes through ``paths``; how many there were."""
        return sum(1 for path in paths if self(path))
