"""How often the gate errs: what ``gate.yaml`` says of it, computed anew from the rules.

A model's wins and losses on n cases follow a multinomial distribution, so the chance that it passes is a sum over all
of them; nothing is simulated but the bootstrap interval.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gate_reports import answered, bad_case, reports
from scipy.stats import binomtest, multinomial

from eval import gate, metrics
from eval.reports import AccuracyReport, Estimate, Metrics, Paired, Reports

RULES, _ = gate.load(None)
TEXT = Path(gate.__file__).with_name("gate.yaml").read_text(encoding="utf-8")
#: Combinations of wins and losses less likely than this are left out.
_RARE = 1e-5


def _report() -> AccuracyReport:
    report = reports().accuracy
    assert report is not None
    return report


ACCURACY = _report()
EMPTY: Metrics = metrics.measure([], [])


@cache
def verdict(group: str, cases: int, wins: int, losses: int) -> str:
    """What the rule of that group comes to."""
    shares = [wins / cases, losses / cases, 1 - (wins + losses) / cases]
    drawn = np.random.default_rng(1).multinomial(cases, shares, 2000)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / cases, [2.5, 97.5])
    p_value = float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    difference = Estimate(value=(wins - losses) / cases, low=float(low), high=float(high), n=cases)
    paired = Paired(n=cases, wins=wins, losses=losses, p_value=p_value, difference=difference)
    small = {"groups": {group: cases}, "challenger": {group: EMPTY}, "champion": {}, "paired": {group: paired}}
    decision = gate.decide(Reports(accuracy=ACCURACY.model_copy(update=small), latency=None), RULES)
    rule = "overall.non_inferiority" if group == "overall" else f"slice.{group}.non_inferiority"
    [outcome] = [outcome.outcome for outcome in decision.rules if outcome.rule == rule]
    return outcome


def chance(group: str, cases: int, changed: float, worse: float) -> float:
    """That a model passes which answers a share ``changed`` of cases otherwise, and is ``worse`` by that share."""
    wins, losses = np.meshgrid(np.arange(cases + 1), np.arange(cases + 1), indexing="ij")
    possible = wins + losses <= cases
    wins, losses = wins[possible], losses[possible]
    shares = [(changed - worse) / 2, (changed + worse) / 2, 1 - changed]
    likely = multinomial.pmf(np.stack([wins, losses, cases - wins - losses], axis=-1), cases, shares)
    kept = likely > _RARE
    assert likely[kept].sum() > 0.99
    triples = zip(wins[kept].tolist(), losses[kept].tolist(), likely[kept].tolist(), strict=True)
    return float(sum(weight for won, lost, weight in triples if verdict(group, cases, won, lost) == "passed"))


CELL = r"\s+(\d+) % \(\s*(\d+) %\)"
TABLE = [[int(text) for text in row] for row in re.findall(rf"^  # +(\d+){CELL * 3}$", TEXT, re.MULTILINE)]


def test_the_table_is_found() -> None:
    assert [row[0] for row in TABLE] == [30, 50, 100, 300]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]} cases")
def test_the_table_beside_the_rules_is_true(row: list[int]) -> None:
    cases, *told = row
    computed = [chance("overall", cases, changed, worse) for worse in (0, 0.05, 0.1) for changed in (0.1, 0.2)]
    assert told == pytest.approx([100 * share for share in computed], abs=1.5)


def test_equal_models_mostly_pass_and_worse_ones_mostly_do_not() -> None:
    """What the margins were chosen for; whoever changes them sees what it costs."""
    for cases in (50, 100, 300):
        assert chance("overall", cases, 0.1, 0) > 0.7
        assert chance("overall", cases, 0.1, 0.1) < 0.05
    assert chance("overall", 300, 0.1, 0.05) < 0.1


def test_slices_as_the_rules_say() -> None:
    assert chance("水果", 20, 0.1, 0) == pytest.approx(0.96, abs=0.01)
    assert chance("水果", 10, 0.3, 0.3) == pytest.approx(0.15, abs=0.01)
    assert verdict("水果", 20, 0, 4) == "failed"
    assert verdict("水果", 20, 4, 0) == "passed"


def test_the_interval_here_is_that_of_the_metrics() -> None:
    cases = [bad_case(number) for number in range(50)]
    found = metrics.compare(answered(cases, range(4)), answered(cases, range(4, 8)))
    assert (found.wins, found.losses) == (4, 4)
    drawn = np.random.default_rng(1).multinomial(50, [0.08, 0.08, 0.84], 2000)
    low = np.percentile((drawn[:, 0] - drawn[:, 1]) / 50, 2.5)
    assert found.difference.low == pytest.approx(low, abs=0.021)  # one case
