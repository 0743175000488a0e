"""The audit sample: Python and SQL draw the same, as often as they are asked to."""

from __future__ import annotations

import hashlib

import duckdb
import pytest

from wwts_ops import audit

CONTENTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]
RUN = "2026-03-01-0123456789ab"


def by_python(rate: float, run_key: str = RUN) -> set[str]:
    return {content for content in CONTENTS if audit.sampled(run_key, content, rate)}


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.02, 1 / 3, 0.999, 1.0])
def test_both_forms_are_one_rule(rate: float) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE contents AS SELECT unnest($1) AS content_sha256", [CONTENTS])
        asked = f"SELECT content_sha256 FROM contents WHERE {audit.condition('content_sha256')}"
        found = con.execute(asked, {"run": RUN, "share": audit.bound(rate)}).fetchall()
    assert {content for (content,) in found} == by_python(rate)


def test_it_is_a_share_that_grows_with_the_rate_and_another_one_in_each_run() -> None:
    assert by_python(0) == set()
    assert by_python(1) == set(CONTENTS)
    small, large = by_python(0.05), by_python(0.2)
    assert small < large
    # 4,000 draws: five standard deviations.
    assert 0.05 * 4000 - 69 < len(small) < 0.05 * 4000 + 69
    other = by_python(0.2, "2026-03-02-0123456789ab")
    assert 0.04 * 4000 - 62 < len(large & other) < 0.04 * 4000 + 62
