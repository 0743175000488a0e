"""Shares of what was counted, and how far to trust them."""

from __future__ import annotations

import math
from statistics import NormalDist

#: Two-sided 95 %.
_Z = NormalDist().inv_cdf(0.975)


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
