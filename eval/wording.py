"""The gate's rules, with the champion's numbers beside them, in Chinese: for the description and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval import figures
from eval.gate import sliced
from eval.measures import GROUPS
from eval.reports import OVERALL
from wwts_ops import verdict
from wwts_ops.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eval.reports import Estimate, Metrics, Reports
    from wwts_ops.verdict import RuleOutcome

OUTCOMES: dict[Outcome, str] = {
    outcome: f"{verdict.SIGNS[outcome]} {words}" for outcome, words in verdict.OUTCOMES.items()
}
MODES = {"enforced": "正式评测", "dry_run": "仅演练，不作为上线依据"}
#: What a reader looks for first.
URGENCY: tuple[Outcome, ...] = tuple(OUTCOMES)
#: Stands where there is no number.
NONE = "—"

#: Rules whose numbers a reviewer looks at even where they passed.
_TELLING = frozenset(
    {
        *("curated_cases", "never_regress", "overall.top1", "overall.top5", "overall.auto_precision"),
        *("overall.non_inferiority", "ece", "p95", "p95_ratio", "size", "slice.top1"),
    }
)
#: The champion's number beside a rule that speaks of an absolute one.
_CHAMPION: dict[str, Callable[[Metrics], Estimate]] = {
    "overall.top1": lambda metrics: metrics.top1,
    "overall.top5": lambda metrics: metrics.top5,
    "overall.auto_precision": lambda metrics: metrics.auto_precision,
    "ece": lambda metrics: metrics.ece,
}


@dataclass(frozen=True)
class Row:
    """One rule as people read it; texts of people in it are not escaped yet."""

    rule: str
    title: str
    champion: str
    challenger: str
    threshold: str
    outcome: Outcome
    reason: str

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        return OUTCOMES[self.outcome]

    @property
    def telling(self) -> bool:
        """Whether it says more than that all is in order."""
        measure = f"slice.{sliced(self.rule)[1]}" if self.rule.startswith("slice.") else self.rule
        return self.outcome in ("failed", "insufficient") or measure in _TELLING


def rows(rules: Iterable[RuleOutcome], reports: Reports) -> tuple[Row, ...]:
    """The rules that did not pass first, each with the champion's number where there is one."""
    found = [
        Row(
            rule.rule,
            rule.title,
            _champion(rule.rule, reports),
            rule.value or NONE,
            rule.threshold or NONE,
            rule.outcome,
            rule.reason,
        )
        for rule in rules
    ]
    return tuple(sorted(found, key=lambda row: URGENCY.index(row.outcome)))


def group_title(group: str) -> str:
    """What a group is called: slices have the names that people gave them."""
    return GROUPS.get(group, group)


def percent(estimate: Estimate | None) -> str:
    """A share with its 95 % interval."""
    if estimate is None or estimate.value is None:
        return NONE
    low, high = (None if end is None else figures.percent(end) for end in (estimate.low, estimate.high))
    interval = "" if low is None or high is None else f"（{low}–{high}）"
    return f"{figures.percent(estimate.value)}{interval}"


def _champion(rule: str, reports: Reports) -> str:
    accuracy, latency = reports.accuracy, reports.latency
    if rule == "p95" and latency and latency.champion:
        return figures.seconds(latency.champion.p95)
    if accuracy is None:
        return NONE
    if rule == "size":
        return figures.megabytes(accuracy.champion_model.megabytes)
    group, measure = sliced(rule)
    metrics = accuracy.champion.get(group or OVERALL)
    read = _CHAMPION.get(f"overall.{measure}" if group else rule)
    value = read(metrics).value if read and metrics else None
    return NONE if value is None else figures.percent(value)
