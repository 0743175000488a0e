"""EfficientNet-Lite looking more than once: at several sides, mirrored, and with two networks joined.

A name is ``lite:`` and the views, joined by ``+``: a network and the side in pixels that it looks at, the largest side
first; then ``flip``, which looks at each view mirrored too, and ``root``, which adds the square roots of all numbers.
``lite:lite2@320`` is Lite2 at 320 pixels; ``lite:lite2@320+lite2@260+lite0@224+flip`` looks six times at each picture,
and costs accordingly; ``lite:lite0@224+root`` costs what Lite0 costs, and twice the bytes.

To everything else it is one network: one crop of the largest side goes in, the views are made of it inside, and their
embeddings come out behind each other (mirrored ones averaged), each as its network gives it. A network's weights are
there once, however many sides it looks at. A view shows what the whole crop shows, only smaller. Square roots tell a
linear head of what is faint: learned from one shop's photographs and measured on another's, they were worth 1 to 2
points (``python -m training.bench_accuracy``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from wwts_ops.backbones.base import Backbone, Pretrained, Recipe
from wwts_ops.backbones.efficientnet_lite import LITE0, LITE2, EfficientNetLite
from wwts_ops.errors import WwtsError

FAMILY = "lite"
_NETWORKS = {"lite0": LITE0, "lite2": LITE2}
_FLIP, _ROOT = "flip", "root"
#: Times the square root: then both halves of an embedding are spread about as wide.
ROOT_SCALE = 2.0
_VIEW = re.compile(r"(?P<network>\w+)@(?P<side>[1-9]\d{0,3})")
#: Pixels. Below, the last feature map is a single point; above, an image takes seconds.
_SIDES = range(64, 1025)
#: Each adds 1,280 numbers to every stored embedding and every row of the head.
_MOST_VIEWS = 8


@dataclass(frozen=True)
class View:
    """One look at the crop.

    Attributes:
        network: a key of ``_NETWORKS``.
        side: pixels of the square that it sees.
    """

    network: str
    side: int

    def __str__(self) -> str:
        return f"{self.network}@{self.side}"


@dataclass(frozen=True)
class Joined(Backbone):
    """Several views of one crop, their embeddings behind each other.

    Attributes:
        views: in the order of their embeddings.
        flip: whether each view is looked at mirrored too.
        root: whether the square roots of all numbers, times :data:`ROOT_SCALE`, stand behind them.
    """

    recipe: Recipe
    views: tuple[View, ...]
    flip: bool
    root: bool

    def network(self) -> nn.Module:
        """See :meth:`Backbone.network`; the weights are those of each network once, below its name."""
        return _Network(self.views, self.flip, self.root).eval()

    def pretrained(self) -> Pretrained:
        """See :meth:`Backbone.pretrained`; the head gives the mean of what the views' own heads say."""
        weights = {name: _NETWORKS[name].pretrained() for name in _names(self.views)}
        state = {f"{name}.{key}": value for name, found in weights.items() for key, value in found.backbone.items()}
        heads = [weights[view.network] for view in self.views]
        weight = torch.cat([each.head_weight for each in heads], dim=1) / len(heads)
        if self.root:  # of which these heads know nothing
            weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
        return Pretrained(state, weight, torch.stack([each.head_bias for each in heads]).mean(dim=0))


class _Network(nn.Module):
    def __init__(self, views: tuple[View, ...], flip: bool, root: bool) -> None:  # noqa: FBT001 (of the name)
        super().__init__()
        self.views, self.flip, self.root = views, flip, root
        for name in _names(views):
            self.add_module(name, _NETWORKS[name].network())
        whole = views[0].side
        for side in sorted({view.side for view in views} - {whole}):
            # Computed, not learned: out of the weights and their hash, where the name already says it.
            self.register_buffer(f"smaller_{side}", resizing(whole, side), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``uint8 [n, input, input, 3]`` → ``float32 [n, dimension]``."""
        whole = pixels.permute(0, 3, 1, 2).to(next(self.parameters()).dtype)
        found = torch.cat([self._view(whole, view) for view in self.views], dim=1)
        # Means of ReLU6: never below zero.
        return torch.cat([found, ROOT_SCALE * found.sqrt()], dim=1) if self.root else found

    def _view(self, whole: torch.Tensor, view: View) -> torch.Tensor:
        levels = whole
        if view.side != whole.shape[-1]:
            matrix = self.get_buffer(f"smaller_{view.side}")
            levels = (matrix @ whole @ matrix.T).clamp(0, 255)  # bicubic overshoots at edges
        if self.flip:  # one batch, so that an exported graph goes through the network once
            levels = torch.cat([levels, levels.flip(3)])
        found: torch.Tensor = self.get_submodule(view.network).embedded(levels)  # type: ignore[operator] # our class
        return found.view(2, -1, found.shape[1]).mean(dim=0) if self.flip else found


def resizing(whole: int, side: int) -> torch.Tensor:
    """``float32 [side, whole]``: times a column of ``whole`` pixels, what torch's antialiased bicubic makes of it.

    A picture is ``matrix @ picture @ matrix.T``: the same on a CPU, on CUDA and in an exported graph, which torch's own
    function is not.
    """
    each = torch.eye(whole, dtype=torch.float64).view(1, 1, whole, whole)
    made = nn.functional.interpolate(each, size=(side, whole), mode="bicubic", antialias=True)
    return made[0, 0].to(torch.float32)


def named(member: str) -> Joined:
    """The backbone of a name, without the family.

    Raises:
        WwtsError: when it is no such name, or names a network or a side that there is none of.
    """
    parts = member.split("+")
    root = parts[-1] == _ROOT
    parts = parts[: len(parts) - root]
    flip = parts[-1:] == [_FLIP]
    views = tuple(_view(part, member) for part in parts[: len(parts) - flip])
    ordered = tuple(sorted(set(views), key=lambda view: (-view.side, view.network)))
    written = "+".join([*map(str, ordered), *[_FLIP] * flip, *[_ROOT] * root])
    if not 0 < len(ordered) <= _MOST_VIEWS:
        raise WwtsError(f"{FAMILY}:{member} has {len(ordered)} views; it can be 1 to {_MOST_VIEWS}.")
    if written != member:
        raise WwtsError(f"{FAMILY}:{member} is written {FAMILY}:{written}.")
    side = ordered[0].side
    own: EfficientNetLite = LITE0
    recipe = Recipe(
        backbone=f"{FAMILY}:{member}",
        # The margin that the networks were published with at 224 pixels.
        short_side=round(side * own.recipe.short_side / own.recipe.input),
        input=side,
        mean=own.recipe.mean,
        std=own.recipe.std,
        dimension=(1 + root) * sum(_NETWORKS[view.network].recipe.dimension for view in ordered),
    )
    return Joined(recipe, ordered, flip, root)


def _view(text: str, member: str) -> View:
    found = _VIEW.fullmatch(text)
    if found is None or found["network"] not in _NETWORKS or int(found["side"]) not in _SIDES:
        raise WwtsError(
            f"There is no backbone '{FAMILY}:{member}': {text!r} is no view. A name reads like "
            f"{FAMILY}:lite2@320+lite0@224+flip+root, with networks {' and '.join(sorted(_NETWORKS))} and sides from "
            f"{_SIDES[0]} to {_SIDES[-1]} pixels."
        )
    return View(found["network"], int(found["side"]))


def _names(views: tuple[View, ...]) -> list[str]:
    return sorted({view.network for view in views})
