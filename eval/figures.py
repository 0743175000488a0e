"""Numbers as people read them, in Chinese: what is not nothing never looks like nothing, and nothing has no sign."""

from __future__ import annotations

#: Decimals that anything is written with at most.
_DECIMALS = 6
#: Probabilities below this are not told apart.
_RARE = 0.001


def number(value: float, decimals: int) -> str:
    """``value`` with ``decimals``, or as many more as it takes not to be rounded to nothing; nothing is ``0``."""
    for places in range(decimals, _DECIMALS + 1):
        text = f"{value:.{places}f}"
        if float(text):
            return text
    return "0"


def percent(value: float, decimals: int = 1) -> str:
    """A share, 0-1, or a ratio."""
    return f"{number(100 * value, decimals)}%"


def points(value: float, decimals: int = 1) -> str:
    """A difference of shares, without a sign of its own for gains."""
    return f"{number(100 * value, decimals)} 个百分点"


def change(value: float, decimals: int = 1) -> str:
    """What a share has gained or lost, with its sign."""
    text = number(100 * value, decimals)
    return "持平" if text == "0" else f"{'+' if value > 0 else ''}{text} 个百分点"


def seconds(value: float, decimals: int = 1) -> str:
    """To the millisecond."""
    return f"{number(value, decimals + 2)} 秒"


def times(value: float, decimals: int = 1) -> str:
    """A ratio."""
    return f"{number(value, decimals + 1)} 倍"


def megabytes(value: float, decimals: int = 1) -> str:
    """10^6 bytes."""
    return f"{number(value, decimals)} MB"


def chance(p_value: float, decimals: int = 3) -> str:
    """A test's p."""
    return f"p < {_RARE:g}" if p_value < _RARE else f"p = {p_value:.{decimals}f}"
