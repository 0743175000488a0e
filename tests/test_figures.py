"""How numbers are written for people."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eval import figures


@pytest.mark.parametrize(
    ("written", "value", "decimals", "text"),
    [
        (figures.percent, 0.0, 1, "0%"),
        (figures.percent, -0.0, 1, "0%"),
        (figures.percent, 0.0004, 1, "0.04%"),
        (figures.percent, 1.306, 1, "130.6%"),
        (figures.percent, 1e-12, 1, "0%"),
        (figures.points, 0.15, 1, "15.0 个百分点"),
        (figures.change, 0.0141, 1, "+1.4 个百分点"),
        (figures.change, -0.0141, 1, "-1.4 个百分点"),
        (figures.change, -0.0001, 1, "-0.01 个百分点"),
        (figures.change, -0.0, 3, "持平"),
        (figures.change, -1e-12, 1, "持平"),
        (figures.seconds, 0.31, 1, "0.310 秒"),
        (figures.seconds, 0.00042, 1, "0.0004 秒"),
        (figures.times, 1.5, 1, "1.50 倍"),
        (figures.megabytes, 0.012, 1, "0.01 MB"),
        (figures.chance, 0.0004, 3, "p < 0.001"),
        (figures.chance, 1.0, 3, "p = 1.000"),
    ],
)
def test_numbers_are_written_as_people_read_them(
    written: Callable[[float, int], str], value: float, decimals: int, text: str
) -> None:
    assert written(value, decimals) == text
