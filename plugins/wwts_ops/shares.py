"""Shares of what was counted, and how far to trust them."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

#: Two-sided 95 %.
_Z = NormalDist().inv_cdf(0.975)
#: No picture stands for more than a million: what is divided by a chance of being drawn must stay a number.
LEAST_CHANCE: Final = 1e-6


def wilson(rate: float, n: float) -> tuple[float, float]:
    """The 95 % interval, within 0–1, of a share ``rate`` that was seen in ``n`` (above 0, need not be whole) trials.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927): unlike the
    usual interval it holds near 0 and 1, where a good model is.
    """
    square = _Z * _Z / n
    middle = (rate + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(rate * (1 - rate) / n + square / (4 * n))
    # At the ends the formula gives 0 and 1 themselves, but for rounding.
    return 0.0 if rate == 0 else max(0.0, middle - half), 1.0 if rate == 1 else min(1.0, middle + half)


def interval(right: int, n: int) -> tuple[float, float] | None:
    """:func:`wilson` of ``right`` in ``n``; None for none."""
    return wilson(right / n, n) if n else None
