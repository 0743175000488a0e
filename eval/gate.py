"""Whether a model version may become champion: reports and rules in, a decision with its reasons out.

:func:`decide` reads nothing and writes nothing. What is missing fails, and so does what could not be judged; a version
passes only when every rule was judged and none stands against it. What the rules mean, and how often they err, is
written beside their numbers in ``gate.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from eval import figures
from eval.measures import GROUPS, TITLES
from eval.reports import NEW_LABELS, OLD_LABELS, OVERALL, AccuracyReport, CaseResult, Metrics, Paired, Reports
from eval.rules import EvidenceRules, LatencyRules, OverallRules, Rules, SizeRules, SliceRules, load
from wwts_ops.verdict import Outcome, RuleOutcome

__all__ = ["Decision", "Rules", "decide", "expected", "load", "settle", "sliced", "title"]

#: What the rules are called where people read; a verdict carries these beside the rules' own names.
_RULES = {
    "accuracy_report": "坏例对比结果",
    "curated_cases": "人工添加的坏例",
    "case_results": "逐条结果的条数",
    "never_regress": "不许退步的坏例",
    "overall.top1": TITLES["top1"],
    "overall.top5": TITLES["top5"],
    "overall.auto_precision": TITLES["auto_precision"],
    "overall.non_inferiority": "与当前启用的逐条对比",
    "overall.forbidden": f"{TITLES['forbidden']}的变化",
    "overall.auto_right_fall": "自动通过且判对的占比变化",
    "overall.auto_right_kept": "自动通过且判对的坏例数（以当前启用的为 100%）",
    "overall.auto_wrong_increase": "自动通过却判错的占比变化",
    "ece": TITLES["ece"],
    "ece_increase": f"{TITLES['ece']}的变化",
    "p95": "单张 P95 延迟",
    "p95_ratio": "P95 延迟与当前启用之比",
    "size": "模型大小",
}
_OF_SLICE = {"cases": "坏例数", "top1": TITLES["top1"], "non_inferiority": "与当前启用的逐条对比"}
_AGAIN = "请重新运行“评测模型”（evaluate_model）"

#: Shares are quotients of whole cases: what differs by less than this is equal.
_EQUAL = 1e-9
#: Lost cases that are named in the sentence; the report shows them all.
_NAMED = 10


def title(rule: str) -> str:
    """What a rule is called where people read, in Chinese; a slice has the name that people gave it."""
    group, measure = sliced(rule)
    return f"{GROUPS.get(group, group)}：{_OF_SLICE.get(measure, measure)}" if group else _RULES.get(rule, rule)


def sliced(rule: str) -> tuple[str, str]:
    """Slice and measure of a rule such as ``slice.old_labels.top1``; two empty texts for any other rule."""
    if not rule.startswith("slice.") or rule.count(".") < 2:
        return "", ""
    group, _, measure = rule.removeprefix("slice.").rpartition(".")
    return group, measure


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    Attributes:
        passed: whether the version may become champion.
        reasons: why not, one Chinese sentence for each rule that failed.
        rules: every rule that was applied.
    """

    passed: bool
    reasons: tuple[str, ...]
    rules: tuple[RuleOutcome, ...]


def decide(reports: Reports, rules: Rules) -> Decision:
    """Applies every rule to what was measured; the same reports and rules always give the same decision."""
    return settle(expected(reports, rules), list(_judge(reports, rules)))


def settle(names: Sequence[str], outcomes: Sequence[RuleOutcome]) -> Decision:
    """The decision that outcomes come to: passed when each rule of ``names`` is there, and none has failed."""
    there = {outcome.rule for outcome in outcomes}
    absent = [
        _outcome(name, "failed", "", "", f"门禁规则“{title(name)}”没有得到判定，不能放行；{_AGAIN}。")
        for name in names
        if name not in there
    ]
    rules = (*outcomes, *absent)
    against = tuple(outcome for outcome in rules if outcome.outcome in ("failed", "insufficient"))
    return Decision(not against, tuple(outcome.reason for outcome in against), rules)


def expected(reports: Reports, rules: Rules) -> list[str]:
    """The names of all rules that must be judged before anything may pass."""
    names = [
        *("curated_cases", "case_results", "never_regress", "overall.top1", "overall.top5", "overall.auto_precision"),
        *("overall.non_inferiority", "overall.forbidden", "overall.auto_right_fall", "overall.auto_right_kept"),
        *("overall.auto_wrong_increase", "ece", "ece_increase", "p95", "p95_ratio", "size"),
    ]
    for name in _slices(reports.accuracy, rules):
        names.append(f"slice.{name}.cases")
        if reports.accuracy is not None and reports.accuracy.groups.get(name):
            names += [f"slice.{name}.top1", f"slice.{name}.non_inferiority"]
    return names


def _slices(accuracy: AccuracyReport | None, rules: Rules) -> list[str]:
    """Every slice that anything speaks of, the two of the labels first."""
    named = set(rules.slices.by_name)
    if accuracy is not None:
        named |= {*accuracy.groups, *accuracy.challenger, *accuracy.champion, *accuracy.paired}
    return [OLD_LABELS, NEW_LABELS, *sorted(named - {OVERALL, OLD_LABELS, NEW_LABELS})]


def _judge(reports: Reports, rules: Rules) -> Iterator[RuleOutcome]:
    accuracy = reports.accuracy
    if accuracy is None:
        # settle() fails every rule that needs it; this says why.
        yield _outcome("accuracy_report", "failed", "", "", f"没有坏例上的对比结果，准确率无从判断；{_AGAIN}。")
    else:
        yield from _evidence(accuracy, rules.evidence)
        yield from _overall(accuracy, rules.overall)
        for name in _slices(accuracy, rules):
            yield from _slice(accuracy, name, rules.slices.of(name))
        yield _size(accuracy, rules.size)
    yield from _latency(reports, rules.latency)


# ------------------------------------------------------------------ evidence


def _evidence(accuracy: AccuracyReport, rules: EvidenceRules) -> Iterator[RuleOutcome]:
    value, threshold = f"{accuracy.curated} 条", f"≥ {rules.min_curated_cases} 条"
    lacking = rules.min_curated_cases - accuracy.curated
    if lacking > 0:
        reason = (
            f"人工添加的坏例只有 {accuracy.curated} 条，至少要 {rules.min_curated_cases} 条，还差 {lacking} 条"
            f"（自带的起步坏例只能拦下模型，不能放行）；请用 wwts badcases import 补充，再重新评测。"
        )
        yield _outcome("curated_cases", "insufficient", value, threshold, reason)
    else:
        yield _outcome("curated_cases", "passed", value, threshold)
    yield _case_results(accuracy)
    yield _never_regress(accuracy)


def _case_results(accuracy: AccuracyReport) -> RuleOutcome:
    """One result a case from each model, and the counts of all cases agree."""
    mine = [result.content_sha256 for result in accuracy.challenger_results]
    theirs = [result.content_sha256 for result in accuracy.champion_results]
    counts = [accuracy.groups.get(OVERALL, 0), len(mine), len(set(mine)), len(theirs), len(set(theirs))]
    parts = (accuracy.challenger.get(OVERALL), accuracy.champion.get(OVERALL), accuracy.paired.get(OVERALL))
    counts += [part.n if part else 0 for part in parts]
    value, threshold = f"候选 {len(mine)} 条，当前启用 {len(theirs)} 条", f"各 {accuracy.cases} 条"
    if accuracy.cases > 0 and set(counts) == {accuracy.cases} and set(mine) == set(theirs):
        return _outcome("case_results", "passed", value, threshold)
    reason = (
        f"坏例快照里有 {accuracy.cases} 条坏例，候选的逐条结果有 {len(mine)} 条，当前启用的模型有 {len(theirs)} 条；"
        f"三者对不上，或者指标不齐，无法判断；{_AGAIN}。"
    )
    return _outcome("case_results", "failed", value, threshold, reason)


def _never_regress(accuracy: AccuracyReport) -> RuleOutcome:
    mine = {result.content_sha256: result for result in accuracy.challenger_results}
    theirs = {result.content_sha256: result for result in accuracy.champion_results}
    threshold = "一条都不许变错"
    missing = [content for content in accuracy.never_regress if content not in mine or content not in theirs]
    lost = [
        f"{content[:12]}（{_label(theirs[content])} → {_label(mine[content])}）"
        for content in accuracy.never_regress
        if content not in missing and theirs[content].right and not mine[content].right
    ]
    value = f"{len(accuracy.never_regress)} 条中变错 {len(lost)} 条"
    sentences = []
    if lost:
        more = f"等 {len(lost)} 条" if len(lost) > _NAMED else ""
        sentences.append(
            f"{len(lost)} 条不许退步的坏例，当前启用的模型判对，候选判错：{'、'.join(lost[:_NAMED])}{more}；"
            f"请补充同类图片重新训练；确实不必再守住的，用 wwts badcases retire 撤下。"
        )
    if missing:
        sentences.append(f"{len(missing)} 条不许退步的坏例缺少结果，例如 {missing[0][:12]}，无法判断；{_AGAIN}。")
    return _outcome("never_regress", "failed" if sentences else "passed", value, threshold, "".join(sentences))


def _label(result: CaseResult) -> str:
    """By its id: names are in the store, of which the gate knows nothing."""
    return "无标签" if result.label_id is None else f"标签 {result.label_id}"


# ------------------------------------------------------------------ all cases


def _overall(accuracy: AccuracyReport, rules: OverallRules) -> Iterator[RuleOutcome]:
    mine, theirs = accuracy.challenger.get(OVERALL), accuracy.champion.get(OVERALL)
    train = "请检查标签表和训练数据，补充图片重新训练"
    yield Limit("overall.top1", figures.percent, train).at_least(_value(mine, "top1"), rules.min_top1)
    yield Limit("overall.top5", figures.percent, train).at_least(_value(mine, "top5"), rules.min_top5)
    yield _auto_precision(mine, theirs, rules.min_auto_precision)
    bounds = _Bounds(rules.margin, rules.tolerated_cases, rules.alpha, rules.interval_margin)
    yield _non_inferiority("overall.non_inferiority", "全部", accuracy.paired.get(OVERALL), bounds)
    forbidden = Limit(
        "overall.forbidden",
        figures.change,
        "请在评测报告里找出被打上禁用标签的坏例，补充这类图片重新训练",
    )
    yield forbidden.at_most(
        _difference(_value(mine, "forbidden"), _value(theirs, "forbidden")), rules.max_forbidden_increase
    )
    yield from _automation(mine, theirs, rules)
    yield from _calibration(mine, theirs, rules)


def _auto_precision(mine: Metrics | None, theirs: Metrics | None, floor: float) -> RuleOutcome:
    limit = Limit(
        "overall.auto_precision",
        figures.percent,
        "自动通过的标签会直接上线，请调高阈值或重新训练",
    )
    none_live = [part is not None and part.coverage.value == 0 for part in (mine, theirs)]
    if mine is not None and mine.auto_precision.value is None and all(none_live):
        reason = "两个模型都没有自动通过任何坏例，准确率无从计算，这一条只作提示；可以再补充一些模型有把握的坏例。"
        return _outcome(limit.rule, "advisory", "", f"≥ {figures.percent(floor)}", reason)
    if mine is not None and none_live[0]:
        reason = "候选没有自动通过任何坏例，全部要送人工审核；请检查阈值和置信度校准，或重新训练。"
        return _outcome(limit.rule, "failed", "", f"≥ {figures.percent(floor)}", reason)
    return limit.at_least(_value(mine, "auto_precision"), floor)


def _automation(mine: Metrics | None, theirs: Metrics | None, rules: OverallRules) -> Iterator[RuleOutcome]:
    """What goes live without a person: rightly, it may hardly fall; wrongly, hardly grow."""
    (right, wrong), (right_before, wrong_before) = _live(mine), _live(theirs)
    review = "送审的图片会明显变多，请检查阈值和置信度校准"
    # As what it has gained, so that a sign means the same in every row.
    fall = Limit("overall.auto_right_fall", figures.change, review)
    yield fall.at_least(_difference(right, right_before), -rules.max_auto_right_fall)
    kept = Limit("overall.auto_right_kept", figures.percent, review)
    # Where the champion has none, all of them are kept.
    yield kept.at_least(
        1.0 if right_before == 0 and right is not None else _ratio(right, right_before), rules.min_auto_right_kept
    )
    grown = Limit("overall.auto_wrong_increase", figures.change, "错标签会直接上线，请调高阈值或重新训练")
    yield grown.at_most(_difference(wrong, wrong_before), rules.max_auto_wrong_increase)


def _live(metrics: Metrics | None) -> tuple[float | None, float | None]:
    """Shares of all cases that were decided ``auto`` and are right, and that are wrong; None when unknown."""
    coverage = None if metrics is None else metrics.coverage.value
    if coverage == 0:
        return 0.0, 0.0
    precision = None if metrics is None else metrics.auto_precision.value
    if coverage is None or precision is None:
        return None, None
    return coverage * precision, coverage * (1 - precision)


def _calibration(mine: Metrics | None, theirs: Metrics | None, rules: OverallRules) -> Iterator[RuleOutcome]:
    error, before = _value(mine, "ece"), _value(theirs, "ece")
    advice = "置信度不可信，按它定的阈值也就不可靠，请重新校准"
    yield Limit("ece", figures.percent, advice).at_most(error, rules.max_ece)
    yield Limit("ece_increase", figures.change, advice).at_most(_difference(error, before), rules.max_ece_increase)


# ------------------------------------------------------------------ against the champion


@dataclass(frozen=True)
class _Bounds:
    """When a model counts as worse; ``interval_margin`` None: the interval is not asked."""

    margin: float
    tolerated_cases: int
    alpha: float
    interval_margin: float | None = None

    def allowed(self, cases: int) -> float:
        """How many more losses than wins are still no worse model."""
        return max(self.margin * cases, self.tolerated_cases)

    def net_text(self, cases: int) -> str:
        """How many these are, in words; of no cases: whatever they will be."""
        if cases:
            return f"变错最多比变对多 {int(self.allowed(cases) + _EQUAL)} 条"
        return f"变错最多比变对多坏例数的 {figures.percent(self.margin)}（至少容许 {self.tolerated_cases} 条）"

    def text(self, cases: int) -> str:
        """All that is asked of so many cases."""
        least = None if self.interval_margin is None else figures.points(-self.interval_margin)
        interval = "" if least is None else f"，差距的 95% 区间下限 ≥ {least}"
        return f"{self.net_text(cases)}，变差不显著（p ≥ {self.alpha:g}）{interval}"


def _non_inferiority(rule: str, where: str, paired: Paired | None, bounds: _Bounds) -> RuleOutcome:
    threshold = bounds.text(paired.n if paired else 0)
    if paired is None or not paired.n or paired.p_value is None:
        return _missing(rule, threshold)
    difference = paired.difference
    if difference.value is None or difference.low is None:
        return _missing(rule, threshold)
    net = f"变对 {paired.wins} 条，变错 {paired.losses} 条，{figures.chance(paired.p_value)}"
    value = f"{figures.change(difference.value)}（{net}）"
    told = f"{where} {paired.n} 条坏例中，只有候选判对的 {paired.wins} 条，只有当前启用的模型判对的 {paired.losses} 条"
    retrain = "请查看评测报告里变错的坏例，补充同类图片重新训练。"
    if max(paired.losses - paired.wins, -difference.value * paired.n) > bounds.allowed(paired.n) + _EQUAL:
        reason = f"{told}，变错太多（要求：{bounds.net_text(paired.n)}）；{retrain}"
        return _outcome(rule, "failed", value, threshold, reason)
    if paired.losses > paired.wins and paired.p_value < bounds.alpha:
        chance = figures.chance(paired.p_value, 4)
        reason = f"{told}，变差是显著的（精确 McNemar 检验 {chance}，要求 p ≥ {bounds.alpha:g}）；{retrain}"
        return _outcome(rule, "failed", value, threshold, reason)
    if bounds.interval_margin is not None and difference.low < -bounds.interval_margin - _EQUAL:
        reason = (
            f"{told}，坏例太少而变化太多，说不准：差距的 95% 区间低至 {figures.change(difference.low)}，"
            f"至少要能排除退步 {figures.points(bounds.interval_margin)}；请补充坏例，再重新评测。"
        )
        return _outcome(rule, "insufficient", value, threshold, reason)
    return _outcome(rule, "passed", value, threshold)


# ------------------------------------------------------------------ slices


def _slice(accuracy: AccuracyReport, name: str, rules: SliceRules) -> Iterator[RuleOutcome]:
    yield _slice_cases(accuracy, name, rules)
    if not accuracy.groups.get(name):
        return  # nothing to judge, as the rule before has said
    mine = accuracy.challenger.get(name)
    top1 = Limit(f"slice.{name}.top1", figures.percent, "请补充这一切片的图片重新训练")
    yield top1.at_least(_value(mine, "top1"), rules.min_top1)
    bounds = _Bounds(rules.margin, rules.tolerated_cases, rules.alpha)
    where = f"{_slice_title(name)}的"
    yield _non_inferiority(f"slice.{name}.non_inferiority", where, accuracy.paired.get(name), bounds)


def _slice_title(name: str) -> str:
    return GROUPS.get(name) or f"切片“{name}”"


def _slice_cases(accuracy: AccuracyReport, name: str, rules: SliceRules) -> RuleOutcome:
    where, rule, cases = _slice_title(name), f"slice.{name}.cases", accuracy.groups.get(name, 0)
    value, threshold = f"{cases} 条", f"≥ {rules.min_cases} 条"
    parts = (accuracy.challenger.get(name), accuracy.champion.get(name), accuracy.paired.get(name))
    counts = {part.n for part in parts if part is not None}
    if counts - {cases} or (cases and None in parts):
        reason = f"{where}有 {cases} 条坏例，但两个模型的指标或逐条对比不齐、条数对不上，无法判断；{_AGAIN}。"
        return _outcome(rule, "failed", value, threshold, reason)
    if cases >= rules.min_cases:
        return _outcome(rule, "passed", value, threshold)
    lacking = f"{where}只有 {cases} 条坏例，至少要 {rules.min_cases} 条才好判断，还差 {rules.min_cases - cases} 条"
    if rules.advisory:
        return _outcome(
            rule, "advisory", value, threshold, f"{lacking}；按门禁规则，这一切片的坏例数只作提示，不影响结论。"
        )
    reason = f"{lacking}；请补充坏例，或在门禁规则文件的 slices.by_name 里给 {name} 写上 advisory: true。"
    return _outcome(rule, "insufficient", value, threshold, reason)


# ------------------------------------------------------------------ time and size


def _latency(reports: Reports, rules: LatencyRules) -> Iterator[RuleOutcome]:
    measured = reports.latency
    mine = _positive(measured.challenger.p95) if measured else None
    theirs = _positive(measured.champion.p95) if measured and measured.champion else None
    advice = "请换用更小的骨干网络；若测量时机器正忙，请空闲后重新评测"
    yield Limit("p95", figures.seconds, advice).at_most(mine, rules.max_p95_seconds)
    ratio = Limit("p95_ratio", figures.times, advice)
    yield ratio.at_most(_ratio(mine, theirs), rules.max_p95_ratio)


def _size(accuracy: AccuracyReport, rules: SizeRules) -> RuleOutcome:
    limit = Limit("size", figures.megabytes, "请换用更小的骨干网络")
    return limit.at_most(_positive(accuracy.challenger_model.megabytes), rules.max_megabytes)


# ------------------------------------------------------------------ one number against one limit


@dataclass(frozen=True)
class Limit:
    """A rule that compares one number with a limit.

    Attributes:
        rule: its name.
        text: writes a number with so many decimals.
        advice: what to do when it fails, in Chinese.
    """

    rule: str
    text: Callable[[float, int], str]
    advice: str

    def at_least(self, value: float | None, floor: float) -> RuleOutcome:
        """Passes from ``floor`` on; fails below, and when there is no value."""
        return self._compared("≥", value, floor)

    def at_most(self, value: float | None, ceiling: float) -> RuleOutcome:
        """Passes up to ``ceiling``; fails above, and when there is no value."""
        return self._compared("≤", value, ceiling)

    def _compared(self, sign: Literal["≥", "≤"], value: float | None, limit: float) -> RuleOutcome:
        if value is None:
            return _missing(self.rule, self._wanted(sign, self.text(limit, 1)))
        number, bound = self._texts(value, limit)
        wanted = self._wanted(sign, bound)
        short = limit - value if sign == "≥" else value - limit
        if short <= _EQUAL:
            return _outcome(self.rule, "passed", number, wanted)
        reason = f"{title(self.rule)} {number}（要求：{wanted}）；{self.advice}。"
        return _outcome(self.rule, "failed", number, wanted, reason)

    def _wanted(self, sign: Literal["≥", "≤"], bound: str) -> str:
        if self.text is figures.change and bound == figures.change(0):
            return "不许降低" if sign == "≥" else "不许升高"
        return f"{sign} {bound}"

    def _texts(self, value: float, limit: float) -> tuple[str, str]:
        """Both with as few decimals as tell them apart; equal ones with the fewest."""
        if abs(value - limit) <= _EQUAL:
            return self.text(limit, 1), self.text(limit, 1)
        for decimals in range(1, 6):
            number, bound = self.text(value, decimals), self.text(limit, decimals)
            if number != bound:
                return number, bound
        bound = self.text(limit, 1)
        return f"略{'高' if value > limit else '低'}于 {bound}", bound


def _value(metrics: Metrics | None, name: str) -> float | None:
    value: float | None = None if metrics is None else getattr(metrics, name).value
    return value


def _positive(value: float) -> float | None:
    """Nothing takes no time or no room: such a number was not measured."""
    return value if value > 0 else None


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None or other <= 0 else value / other


def _missing(rule: str, threshold: str) -> RuleOutcome:
    return _outcome(rule, "failed", "", threshold, f"没有测到“{title(rule)}”，无法判断；{_AGAIN}。")


def _outcome(rule: str, outcome: Outcome, value: str, threshold: str, reason: str = "") -> RuleOutcome:
    return RuleOutcome(rule=rule, title=title(rule), outcome=outcome, value=value, threshold=threshold, reason=reason)
