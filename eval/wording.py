"""What the gate's rules, groups and numbers are called in Chinese, for the description, the page and the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.measures import GROUPS
from eval.reports import OVERALL
from wwts_ops.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eval.reports import Estimate, Metrics, Reports
    from wwts_ops.verdict import RuleOutcome

OUTCOMES: dict[Outcome, str] = {
    "passed": "✅ 通过",
    "failed": "❌ 未通过",
    "insufficient": "❌ 坏例太少",
    "advisory": "⚠️ 仅提示",
}
MODES = {"enforced": "正式评测", "dry_run": "仅演练，不作为上线依据"}
#: What a reader looks for first.
URGENCY: tuple[Outcome, ...] = ("failed", "insufficient", "passed", "advisory")
#: Stands where there is no number.
NONE = "—"

#: Rules of :mod:`eval.gate`; one that is not here is called by its name.
_RULES = {
    "accuracy_report": "坏例对比结果",
    "curated_cases": "人工添加的坏例",
    "case_results": "逐条结果齐全",
    "never_regress": "不许退步的坏例",
    "overall.top1": "首位准确率",
    "overall.top5": "前五准确率",
    "overall.auto_precision": "自动通过的准确率",
    "overall.non_inferiority": "与当前启用的逐条对比",
    "overall.forbidden": "禁用标签的增幅",
    "overall.auto_right_fall": "自动通过且判对的降幅",
    "overall.auto_right_kept": "自动通过且判对的保有",
    "overall.auto_wrong_increase": "自动通过却判错的增幅",
    "ece": "校准误差（ECE）",
    "ece_increase": "校准误差的增幅",
    "p95": "单张 P95 延迟",
    "p95_ratio": "P95 延迟之比",
    "size": "模型大小",
}
#: Rules whose numbers a reviewer looks at even where they passed.
_TELLING = frozenset(
    {
        *("curated_cases", "never_regress", "overall.top1", "overall.top5", "overall.auto_precision"),
        *("overall.non_inferiority", "ece", "p95", "p95_ratio", "size", "slice.top1"),
    }
)
_OF_SLICE = {"cases": "坏例数", "top1": "首位准确率", "non_inferiority": "与当前启用的逐条对比"}
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
            title(rule.rule),
            _champion(rule.rule, reports),
            rule.value or NONE,
            rule.threshold or NONE,
            rule.outcome,
            rule.reason,
        )
        for rule in rules
    ]
    return tuple(sorted(found, key=lambda row: URGENCY.index(row.outcome)))


def title(rule: str) -> str:
    """What a rule is called."""
    group, measure = sliced(rule)
    return f"{group_title(group)}：{_OF_SLICE.get(measure, measure)}" if group else _RULES.get(rule, rule)


def group_title(group: str) -> str:
    """What a group is called: slices have the names that people gave them."""
    return GROUPS.get(group, group)


def percent(estimate: Estimate | None) -> str:
    """A share with its 95 % interval."""
    if estimate is None or estimate.value is None:
        return NONE
    interval = "" if estimate.low is None or estimate.high is None else f"（{estimate.low:.1%}–{estimate.high:.1%}）"
    return f"{estimate.value:.1%}{interval}"


def sliced(rule: str) -> tuple[str, str]:
    """Slice and measure of a rule such as ``slice.old_labels.top1``; two empty texts for any other rule."""
    if not rule.startswith("slice.") or rule.count(".") < 2:
        return "", ""
    group, _, measure = rule.removeprefix("slice.").rpartition(".")
    return group, measure


def _champion(rule: str, reports: Reports) -> str:
    accuracy, latency = reports.accuracy, reports.latency
    if rule == "p95" and latency and latency.champion:
        return f"{latency.champion.p95:.3f} 秒"
    if accuracy is None:
        return NONE
    if rule == "size":
        return f"{accuracy.champion_model.megabytes:.1f} MB"
    group, measure = sliced(rule)
    metrics = accuracy.champion.get(group or OVERALL)
    read = _CHAMPION.get(f"overall.{measure}" if group else rule)
    value = read(metrics).value if read and metrics else None
    return NONE if value is None else f"{value:.1%}"
