"""What every backbone is: a recipe from pixels to network input, a network, and weights to begin with."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

_KERNEL = "bicubic-antialias"
#: Long side over short side that is ever resized: far more than the centred square needs, whatever its size.
_MAX_ASPECT = 32


@dataclass(frozen=True)
class Recipe:
    """How pixels become an embedding; a part of the backbone's hash, so that no two recipes are ever mixed.

    Attributes:
        backbone: name in the registry.
        short_side: pixels the picture's short side is resized to.
        input: pixels of the centred square that is cut out of it.
        kernel: resampling; ``bicubic-antialias`` is the only one (equal to Pillow's BICUBIC within 1/255).
        mean: subtracted from every 0–255 channel.
        std: divides it.
        dimension: length of the embedding.
    """

    backbone: str
    short_side: int
    input: int
    mean: float
    std: float
    dimension: int
    kernel: str = _KERNEL

    def __post_init__(self) -> None:
        """Refuses a recipe that this code would not follow, with a ValueError."""
        if self.kernel != _KERNEL or not 0 < self.input <= self.short_side:
            raise ValueError(f"this version cannot follow {self}")

    def sha256(self, weights: bytes) -> str:
        """Identity of a backbone: this recipe together with its serialised ``weights``."""
        canonical = json.dumps(asdict(self), sort_keys=True).encode()
        return hashlib.sha256(canonical + b"\0" + hashlib.sha256(weights).digest()).hexdigest()

    def crop(self, rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The network's input for one picture.

        Args:
            rgb: ``uint8 [height, width, 3]``, contiguous.

        Returns:
            ``uint8 [input, input, 3]``, contiguous.
        """
        # torch's antialiased uint8 kernel takes a third of Pillow's time for the same pixels, and drops the GIL.
        rgb = _middle(rgb)
        height, width = rgb.shape[:2]
        scale = self.short_side / min(height, width)
        size = (max(self.short_side, round(height * scale)), max(self.short_side, round(width * scale)))
        pixels = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)
        if size != (height, width):
            pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        top, left = (size[0] - self.input) // 2, (size[1] - self.input) // 2
        square = pixels[0, :, top : top + self.input, left : left + self.input]
        return np.ascontiguousarray(square.permute(1, 2, 0).numpy())


def _middle(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The middle of a strip: a rule of 8 × 1,000,000 pixels would take 25 GB once its short side is 256."""
    most = _MAX_ASPECT * min(rgb.shape[:2])
    # As many pixels off one end as off the other, so that the centre stays where it is.
    top, left = (max(0, (side - most + 1) // 2) for side in rgb.shape[:2])
    return rgb[top : rgb.shape[0] - top, left : rgb.shape[1] - left]


@dataclass(frozen=True)
class Pretrained:
    """Weights that a backbone comes with.

    Attributes:
        backbone: the network's state dict, classifier left out.
        head_weight: ``float32 [labels, dimension]``.
        head_bias: ``float32 [labels]``.
    """

    backbone: dict[str, torch.Tensor]
    head_weight: torch.Tensor
    head_bias: torch.Tensor


class Backbone(ABC):
    """One frozen network family member."""

    recipe: Recipe

    @abstractmethod
    def network(self) -> torch.nn.Module:
        """The network, weights not loaded: ``uint8 [n, input, input, 3]`` → ``float32 [n, dimension]``."""

    @abstractmethod
    def pretrained(self) -> Pretrained:
        """The weights it comes with; nothing is downloaded."""
