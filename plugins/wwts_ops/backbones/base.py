"""What every backbone is: a recipe from pixels to network input, a network, and weights to begin with."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class _Kernel:
    """How a picture is made smaller.

    Attributes:
        mode: torch's name of the interpolation; always antialiased.
        torchvision: the long side is cut to whole pixels and an odd margin of the square is split half to even, as
            ``torchvision.transforms`` does; otherwise the one is rounded, and the larger margin is right and below.
    """

    mode: str
    torchvision: bool


_KERNELS = {
    "bicubic-antialias": _Kernel("bicubic", torchvision=False),
    "bilinear-antialias": _Kernel("bilinear", torchvision=True),
    "bicubic-antialias-torchvision": _Kernel("bicubic", torchvision=True),
}
#: Long side over short side that is ever resized: far more than the centred square needs, whatever its size.
_MAX_ASPECT = 32


@dataclass(frozen=True)
class Recipe:
    """How pixels become an embedding; a part of the backbone's hash, so that no two recipes are ever mixed.

    Attributes:
        backbone: name in the registry.
        short_side: pixels the picture's short side is resized to.
        input: pixels of the centred square that is cut out of it.
        kernel: resampling and geometry. ``bicubic-antialias``: equal to Pillow's BICUBIC within 1/255;
            ``bilinear-antialias`` and ``bicubic-antialias-torchvision``: as torchvision's ``resize`` and
            ``center_crop``, to the same pixel.
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
    kernel: str = "bicubic-antialias"

    def __post_init__(self) -> None:
        """Refuses a recipe that this code would not follow, with a ValueError."""
        if self.kernel not in _KERNELS or not 0 < self.input <= self.short_side:
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
        kernel = _KERNELS[self.kernel]
        size = self._size(*rgb.shape[:2])
        pixels = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)
        if size != rgb.shape[:2]:
            pixels = torch.nn.functional.interpolate(pixels, size=size, mode=kernel.mode, antialias=True)
        margins = (size[0] - self.input, size[1] - self.input)
        top, left = (round(margin / 2) if kernel.torchvision else margin // 2 for margin in margins)
        square = pixels[0, :, top : top + self.input, left : left + self.input]
        return np.ascontiguousarray(square.permute(1, 2, 0).numpy())

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture of ``height`` × ``width`` is resized to."""
        short = min(height, width)
        if _KERNELS[self.kernel].torchvision:
            return self.short_side * height // short, self.short_side * width // short
        scale = self.short_side / short
        return max(self.short_side, round(height * scale)), max(self.short_side, round(width * scale))


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
