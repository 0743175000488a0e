"""Imagined pictures look to the old head like what they are to show, and to the network like what it gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from taught_world import World
from tiny_backbone import TINY

from training.imagined import imagined
from wwts_ops import backbones

WORLD = World(old=40, new=2, dimension=24)
LABELS = np.array([0, 3, 17, 39])
NONE = np.empty(0, np.int64)


def test_the_old_head_takes_them_for_their_labels(tmp_path: Path) -> None:
    base = WORLD.base(tmp_path)
    found = imagined(base, WORLD.pictures([40], 1), LABELS)
    logits = found.astype(np.float32) @ base.head_weight.T + base.head_bias
    sure = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure /= sure.sum(axis=1, keepdims=True)
    # The centre, then twice all labels, in their order.
    assert logits[1:].argmax(axis=1).tolist() == [*LABELS, *LABELS]
    assert sure[1:].max(axis=1).min() > 0.55
    assert found.dtype == np.float16
    assert found.min() >= 0
    assert found.max() <= 6


def test_their_centre_is_what_the_network_remembers(tmp_path: Path) -> None:
    (centre,) = imagined(WORLD.base(tmp_path), WORLD.pictures([40], 1), NONE)
    # The mean of max(x, 0) for x normal with mean 0.5 and deviation 1: 0.5 Φ(0.5) + φ(0.5).
    np.testing.assert_allclose(centre, 0.6978, atol=0.02)


def test_what_is_in_the_catalog_does_not_matter_where_the_network_remembers(tmp_path: Path) -> None:
    base = WORLD.base(tmp_path)
    first, second = (imagined(base, WORLD.pictures(labels, 2), LABELS) for labels in ([40] * 9, [5, 6]))
    assert first.tobytes() == second.tobytes()


def test_a_network_that_remembers_nothing_is_served_by_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backbones._REGISTRY, "tiny", "tiny_backbone:TINY")
    base = replace(WORLD.base(tmp_path), recipe=replace(TINY.recipe, dimension=WORLD.dimension))
    known = WORLD.pictures(np.arange(40).repeat(4), 3)
    for vectors in (known, known - np.float16(1)):
        found = imagined(base, vectors, LABELS)
        np.testing.assert_allclose(found[0], vectors.astype(np.float32).mean(axis=0), rtol=0.01, atol=0.01)
        best = (found[1:].astype(np.float32) @ base.head_weight.T + base.head_bias).argmax(axis=1)
        assert set(best.tolist()) <= set(LABELS.tolist())
        assert len(best) >= len(LABELS)
        assert (found.min() >= 0) == (vectors.min() >= 0)


def test_one_picture_is_spread_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones._REGISTRY, "tiny", "tiny_backbone:TINY")
    base = replace(WORLD.base(tmp_path), recipe=replace(TINY.recipe, dimension=WORLD.dimension))
    assert np.isfinite(imagined(base, WORLD.pictures([40], 3), LABELS)).all()


def test_a_label_that_is_never_sure_is_left_out(tmp_path: Path) -> None:
    base = WORLD.base(tmp_path)
    weight, bias = base.head_weight.copy(), base.head_bias.copy()
    weight[3], bias[3] = weight[0], bias[0] - 5
    found = imagined(replace(base, head_weight=weight, head_bias=bias), WORLD.pictures([40], 1), LABELS)
    assert len(found) == 1 + 2 * (len(LABELS) - 1)
