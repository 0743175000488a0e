"""Torchvision's classification architectures, each cut in two: a network that gives an embedding, and a linear head.

The cut is before the last linear layer. SqueezeNet has none (its classifier is a convolution and a ReLU): there the
logits themselves are the embedding, in two halves so that float16 keeps them, and the head adds the halves up.

A name is ``torchvision:<architecture>``, with what differs from the architecture's own in order behind a ``?``:
``torchvision:resnet50?short_side=320&input=288``. Recipe (sides, kernel) and normalisation are those of the weights
that torchvision publishes (``IMAGENET1K_V1``, else ``DEFAULT``): facts in its code, nothing is downloaded. The means
and deviations of channels lie among the weights, so that they are part of the backbone's hash.
"""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from wwts_ops.backbones.base import Backbone, Pretrained, Recipe
from wwts_ops.errors import WwtsError

FAMILY = "torchvision"
KERNELS = {"bilinear": "bilinear-antialias", "bicubic": "bicubic-antialias-torchvision"}
#: Mean and deviation of each channel, of pixels from 0 to 1. ``imagenet`` is torchvision's own; ``half`` also what its
#: GoogLeNet and Inception make of it inside (``transform_input``) once they begin with published weights.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
#: Weights of the extra classifiers that these two have while they are trained, and never use afterwards.
_TRAINING_ONLY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
#: Architectures that are built for one input side, and the builder's argument for it.
_SIDE_ARGUMENT = {"vit_": ("image_size", lambda side: side), "maxvit_": ("input_size", lambda side: (side, side))}
#: Names in files that torchvision published before it renamed the layers.
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_LARGEST_SIDE = 2048  # pixels; the largest that torchvision's own recipes use is 600
_NAME = re.compile(
    r"(?P<arch>\w+)(?:\?(?=.)(?:short_side=(?P<short_side>\d{1,5}))?(?:&?input=(?P<input>\d{1,5}))?"
    r"(?:&?kernel=(?P<kernel>\w+))?(?:&?labels=(?P<labels>\d{1,6}))?)?"
)
#: One float16 embedding of two halves and one row a label: beyond this, the head alone is 134 MB.
_MOST_LOGITS = 4096


@dataclass(frozen=True)
class Variant:
    """One architecture and what is different from its own recipe.

    Attributes:
        arch: torchvision's name, such as ``resnet50``.
        short_side: pixels, or None for the architecture's own; so are the next two.
        input: pixels of the square.
        kernel: a key of ``KERNELS``.
    """

    arch: str
    short_side: int | None = None
    input: int | None = None
    kernel: str | None = None


@dataclass(frozen=True)
class TorchvisionModel(Backbone):
    """One architecture without its last linear layer.

    Attributes:
        labels: rows of the head; known only where the logits are the embedding.
    """

    recipe: Recipe
    arch: str
    labels: int | None = None

    def network(self) -> nn.Module:
        """See :meth:`Backbone.network`; ``mean`` and ``std`` of the channels are among its weights."""
        body = build(self.arch, self.labels or 1, self.recipe.input)
        return Network(body, head_of(body)).eval()

    def pretrained(self) -> Pretrained:
        """There are none: `wwts models import` brings them."""
        raise WwtsError(f"{self.recipe.backbone} comes without weights; register some with `wwts models import`.")


class Network(nn.Module):
    """Pixels to embedding: an architecture whose last linear layer lets everything through.

    Args:
        body: the architecture, changed by this.
        head: name of that layer; None when it has none.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: nn.Module, head: str | None) -> None:
        super().__init__()
        self.halves = head is None
        if head is not None:
            body.set_submodule(head, nn.Identity())
        self.body = body
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: FBT001, FBT002 (torch's)
        """See :meth:`torch.nn.Module.load_state_dict`; the weights are taken to be of the present layout.

        Some architectures ask for the version of their layout, which safetensors does not keep.
        """
        return super().load_state_dict(of_present_layout(self, state_dict), strict, assign)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``uint8 [n, input, input, 3]`` → ``float32 [n, dimension]``."""
        found = self.body(normalized(pixels, self.mean, self.std))
        if not self.halves:
            return found  # type: ignore[no-any-return]
        rounded = found.to(torch.float16).to(found.dtype)
        return torch.cat([rounded, found - rounded], dim=1)


def normalized(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """``uint8 [n, side, side, 3]`` → ``float32 [n, 3, side, side]`` as torchvision's ``normalize`` makes it."""
    return (pixels.permute(0, 3, 1, 2).to(mean.dtype) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def of_present_layout(network: nn.Module, state: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """``state`` with the versions that ``network`` gives to the layout of its own weights."""
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined] # torch's own place for it
    return versioned


def named(member: str) -> TorchvisionModel:
    """The backbone of a name, without the family.

    Raises:
        WwtsError: when torchvision has none of that name, or it says what this version does not know.
    """
    found = _NAME.fullmatch(member)
    if found is None:
        raise WwtsError(f"There is no backbone '{FAMILY}:{member}'; a name reads like {FAMILY}:resnet50.")
    sides = {key: int(found[key]) if found[key] else None for key in ("short_side", "input")}
    labels = int(found["labels"]) if found["labels"] else None
    made = _made(Variant(found["arch"], kernel=found["kernel"], **sides), labels)
    if made.recipe.backbone != f"{FAMILY}:{member}":
        raise WwtsError(f"{FAMILY}:{member} is written {made.recipe.backbone}.")
    return made


def made(variant: Variant, labels: int) -> TorchvisionModel:
    """The backbone for a head of ``labels`` rows.

    Raises:
        WwtsError: when torchvision has no such architecture, or it cannot work with such sides or so many labels.
    """
    check(variant.arch)
    return _made(variant, labels if _dimension(variant.arch) is None else None)


@cache
def architectures() -> tuple[str, ...]:
    """Names of all classification architectures, sorted."""
    return tuple(models.list_models(module=models))


def check(arch: str) -> None:
    """Refuses a name that torchvision does not know.

    Raises:
        WwtsError: with the names that look like it.
    """
    if arch not in architectures():
        near = difflib.get_close_matches(arch.lower(), architectures(), n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"some are {', '.join(architectures()[::9])}."
        raise WwtsError(f"torchvision has no classification architecture {arch!r}; {hint}")


def default_normalization(arch: str) -> str:
    """Which of ``NORMALIZATIONS`` torchvision's own weights of ``arch`` were trained with."""
    transforms = _transforms(arch)
    own = (tuple(transforms.mean), tuple(transforms.std))
    return next(name for name, values in NORMALIZATIONS.items() if values == own)


def normalizes_itself(arch: str) -> bool:
    """Whether torchvision makes ``half`` of ``imagenet`` inside ``arch``, if and only if it begins with its weights."""
    return arch in _TRAINING_ONLY


def build(arch: str, labels: int, side: int) -> nn.Module:
    """The whole architecture for ``labels``, its weights not filled in, without what only training uses."""
    extra: dict[str, Any] = {"init_weights": False, "aux_logits": False} if arch in _TRAINING_ONLY else {}
    for prefix, (argument, value) in _SIDE_ARGUMENT.items():
        if arch.startswith(prefix):
            extra[argument] = value(side)  # type: ignore[no-untyped-call]
    try:
        with _Unfilled():
            body: nn.Module = models.get_model(arch, weights=None, num_classes=labels, **extra)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise WwtsError(f"{arch} cannot be built for an input of {side} pixels: {_first_line(error)}") from error
    return _laid_out(body).eval()


def head_of(body: nn.Module) -> str | None:
    """Name of the layer that makes logits: the last linear one; None when ``body`` has none."""
    found = [name for name, module in body.named_modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None


def training_only(arch: str, key: str) -> bool:
    """Whether weight ``key`` belongs to a classifier that is used in training alone."""
    return key.startswith(_TRAINING_ONLY.get(arch, ()))


def renamed(key: str) -> str:
    """The present name of a weight that torchvision once published under another."""
    for pattern, replacement in _OLD_NAMES:
        key = pattern.sub(replacement, key)
    return key


def _made(variant: Variant, labels: int | None) -> TorchvisionModel:
    check(variant.arch)
    transforms = _transforms(variant.arch)
    own: dict[str, Any] = {
        "short_side": transforms.resize_size[0],
        "input": transforms.crop_size[0],
        "kernel": transforms.interpolation.value,
    }
    given = {key: getattr(variant, key) for key in own}
    different = {key: value for key, value in given.items() if value not in (None, own[key])}
    short_side, side, kernel = (own | different).values()
    if not 0 < side <= short_side <= _LARGEST_SIDE or kernel not in KERNELS:
        raise WwtsError(
            f"{variant.arch} cannot look at a square of {side} pixels in pictures of short side {short_side} "
            f"({kernel}); the square is at most the short side, and that at most {_LARGEST_SIDE}."
        )
    dimension = _dimension(variant.arch)
    if dimension is None:
        if labels is None or not 0 < labels <= _MOST_LOGITS:
            raise WwtsError(
                f"{variant.arch} has no linear layer to cut off, which works up to {_MOST_LOGITS:,} labels and not for "
                f"{labels}; take another architecture."
            )
        dimension, different["labels"] = 2 * labels, labels
    name = "&".join(f"{key}={value}" for key, value in different.items())
    return TorchvisionModel(
        Recipe(
            backbone=f"{FAMILY}:{variant.arch}" + (f"?{name}" if name else ""),
            short_side=short_side,
            input=side,
            mean=0.0,
            std=255.0,
            dimension=dimension,
            kernel=KERNELS[kernel],
        ),
        variant.arch,
        labels,
    )


@cache
def _dimension(arch: str) -> int | None:
    """Inputs of the layer that makes logits; None without one."""
    body = build(arch, 1, _transforms(arch).crop_size[0])
    head = head_of(body)
    return None if head is None else int(body.get_submodule(head).in_features)  # type: ignore[arg-type]


def _transforms(arch: str) -> Any:
    """What torchvision does to pictures before ``arch`` with its published weights."""
    weights = models.get_model_weights(arch).__members__
    first = next(iter(weights.values()))
    return weights.get("IMAGENET1K_V1", weights.get("DEFAULT", first)).transforms()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _Unfilled(TorchFunctionMode):
    """Lays no weights out while layers are made: torch then draws no random numbers for them, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = dict(kwargs or {})
        if func is torch.empty:  # all that a layer's weights begin as; what is computed stays
            given["device"] = "meta"
        return func(*args, **given)


def _laid_out(body: nn.Module) -> nn.Module:
    """Gives weights without memory some, as it is."""
    for module in body.modules():
        for name, value in module.named_parameters(recurse=False):
            if value.is_meta:
                setattr(module, name, nn.Parameter(torch.empty_like(value, device="cpu"), requires_grad=False))
    return body
