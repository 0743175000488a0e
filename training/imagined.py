"""Embeddings of pictures at large, imagined from the weights: what stands in for photographs that nobody has here.

A catalog shows what a shop sells, so a head taught on it alone would call a dog a melon and nobody would notice. The
photographs that the network was trained on are not here; but its last normalisation remembers how each number of an
embedding was spread over them, and its old head in which direction each label lies.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from training.head import log_sum
from wwts_ops.tagger import Tagger

Array = np.ndarray[Any, Any]

#: Imagined pictures a label.
_EACH: Final = 2
#: Until the old head is this sure of the label.
_SURE: Final = 0.6
#: Variance of an embedding's number over that of single points of the feature map: photographs gave 0.17.
_POOLED: Final = 0.15
_STEP, _STEPS = 1.15, 80
_DRAWS: Final = 4_000
_CEILING: Final = 6.0  # ReLU6


def imagined(tagger: Tagger, vectors: Array, labels: Array) -> Array:
    """Embeddings that the old head takes for ``labels``.

    Args:
        tagger: its head and, where its family is known, its last normalisation.
        vectors: float16 ``[n, d]``, ``n`` at least 1, whatever embeddings there are; their spread is used where the
            network does not tell its own.
        labels: ``int64``, rows of the head.

    Returns:
        ``float16 [m, d]``, ``m`` at least 1: what could be imagined, and the centre.
    """
    told = _told(tagger)
    mean, variance = told or _spread(vectors)
    # What no embedding is: below what is seen nowhere, above what the network cuts off.
    limits = (0.0 if vectors.min() >= 0 else -np.inf, _CEILING if told else np.inf)
    generator = np.random.default_rng(0)
    # Without the roots, which follow from the other half.
    towards = (tagger.head_weight - tagger.head_weight.mean(axis=0))[labels, : len(mean)] * variance
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
    found = [_whole(tagger, mean[None])]
    for _ in range(_EACH):
        noise = np.sqrt(_POOLED * variance) * generator.standard_normal(towards.shape).astype(np.float32)
        found.append(_pushed(tagger, np.clip(mean + noise, *limits), towards, labels, limits))
    return np.concatenate(found).astype(np.float16)


def _pushed(tagger: Tagger, start: Array, towards: Array, labels: Array, limits: tuple[float, float]) -> Array:
    """``start`` moved ``towards`` each label until the head is sure of it; those that never are, left out."""
    far = np.full(len(labels), 0.1, np.float32)
    unsure = np.ones(len(labels), bool)
    for _ in range(_STEPS):
        at = np.flatnonzero(unsure)
        here = np.clip(start[at] + far[at, None] * towards[at], *limits)
        logits = _whole(tagger, here) @ tagger.head_weight.T + tagger.head_bias
        own = logits[np.arange(len(at)), labels[at]]
        unsure[at] = own - log_sum(logits) < np.log(_SURE)
        if not unsure.any():
            break
        far[unsure] *= _STEP
    return _whole(tagger, np.clip(start + far[:, None] * towards, *limits)[~unsure])


def _whole(tagger: Tagger, vectors: Array) -> Array:
    """``vectors``, with their roots behind them where the backbone puts those there."""
    from wwts_ops.backbones.joined import ROOT_SCALE

    if vectors.shape[1] == tagger.recipe.dimension:
        return vectors
    return np.concatenate([vectors, np.float32(ROOT_SCALE) * np.sqrt(vectors)], axis=1)


def _told(tagger: Tagger) -> tuple[Array, Array] | None:
    """Mean and variance of an embedding's numbers over the network's own training; None where they are not told.

    Roots of numbers are left out.

    Of EfficientNet-Lite an embedding is the mean of ReLU6 of what its last batch normalisation gives; that is about
    normal, with the bias as its mean and the weight as its standard deviation.
    """
    from safetensors.numpy import load_file

    from wwts_ops import backbones
    from wwts_ops.backbones.efficientnet_lite import EfficientNetLite
    from wwts_ops.backbones.joined import Joined

    backbone = backbones.get(tagger.recipe.backbone)
    if isinstance(backbone, EfficientNetLite):
        prefixes = [""]
    elif isinstance(backbone, Joined):
        prefixes = [f"{view.network}." for view in backbone.views]
    else:
        return None
    state = load_file(tagger.weights)
    normal = np.random.default_rng(0).standard_normal((_DRAWS, 1)).astype(np.float32)
    means, variances = [], []
    for prefix in prefixes:
        points = np.clip(state[f"{prefix}_bn1.bias"] + np.abs(state[f"{prefix}_bn1.weight"]) * normal, 0, _CEILING)
        means.append(points.mean(axis=0))
        variances.append(points.var(axis=0))
    return np.concatenate(means), np.concatenate(variances)


def _spread(vectors: Array) -> tuple[Array, Array]:
    known = vectors[:: max(1, len(vectors) // _DRAWS)].astype(np.float32)
    return known.mean(axis=0), known.var(axis=0) / np.float32(_POOLED) + np.float32(1e-6)
