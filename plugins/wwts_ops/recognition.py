"""Bytes in, Chinese tags out: a tagger as it is served, to a person, to a benchmark or through MLflow.

This module and what it imports are packed with every registered model, so it knows no store, settings or Airflow.
"""

from __future__ import annotations

from dataclasses import dataclass

from wwts_ops import images
from wwts_ops.decisions import Decider, Decision
from wwts_ops.runtime import Scorer, embedder
from wwts_ops.tagger import Tagger
from wwts_ops.taxonomy import Taxonomy

#: Larger pictures are refused; what the night allows by default.
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Recognition:
    """What is in a picture. ``width`` and ``height`` in pixels, upright."""

    width: int
    height: int
    decision: Decision


class Recognizer:
    """One tagger, ready to look at pictures one by one."""

    def __init__(
        self,
        tagger: Tagger,
        taxonomy: Taxonomy,
        device: str = "auto",
        top_k: int = 5,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._recipe, self._max_pixels = tagger.recipe, max_pixels
        self._embed = embedder(tagger, device)
        self._score = Scorer(tagger)
        self._decide = Decider(tagger.label_ids, tagger.thresholds, taxonomy, top_k)

    def __call__(self, data: bytes) -> Recognition:
        """Recognises one encoded picture.

        Raises:
            images.Rejected: when it cannot be read in full.
        """
        decoded = images.decode(data, self._recipe.short_side, self._max_pixels)
        scores = self._score(self._embed(self._recipe.crop(decoded.rgb)[None]))
        return Recognition(decoded.width, decoded.height, self._decide(scores)[0])
