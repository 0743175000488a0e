"""A made-up backbone of another size: all that a new family needs is a module like this and a line in the registry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wwts_ops.backbones.base import Backbone, Pretrained, Recipe


class _Network(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.mean, self.std = recipe.mean, recipe.std
        self.conv = nn.Conv2d(3, recipe.dimension, 5, stride=3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.permute(0, 3, 1, 2).to(self.conv.weight.dtype) - self.mean) / self.std
        return torch.relu(self.conv(x)).mean(dim=(2, 3))


@dataclass(frozen=True)
class Tiny(Backbone):
    recipe: Recipe

    def network(self) -> nn.Module:
        torch.manual_seed(7)
        return _Network(self.recipe).eval()

    def pretrained(self) -> Pretrained:
        torch.manual_seed(8)
        return Pretrained(self.network().state_dict(), torch.randn(4, self.recipe.dimension), torch.randn(4))


TINY = Tiny(Recipe("tiny", short_side=40, input=32, mean=100.0, std=50.0, dimension=6))
