"""Whether a model version may become champion: reports and rules in, a decision with its reasons out.

:func:`decide` reads nothing and writes nothing. What is missing fails, and so does what could not be judged; a version
passes only when every rule was judged and none stands against it. What the rules mean, and how often they err, is
written beside their numbers in ``gate.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eval.reports import NEW_LABELS, OLD_LABELS, OVERALL, AccuracyReport, Metrics, Paired, Reports
from eval.rules import EvidenceRules, LatencyRules, OverallRules, Rules, SizeRules, SliceRules, load
from wwts_ops.verdict import Outcome, RuleOutcome

__all__ = ["Decision", "Rules", "decide", "expected", "load", "settle"]

#: Shares are quotients of whole cases: what differs by less than this is equal.
_EQUAL = 1e-9
#: Lost cases that are named in the sentence; the report shows them all.
_NAMED = 10


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
        _outcome(name, "failed", "", "", f"规则 {name} 没有得到判定，不能放行；请重新运行 evaluate_model。")
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
        yield _outcome(
            "accuracy_report", "failed", "", "", "没有坏例上的对比结果，准确率无从判断；请重新运行 evaluate_model。"
        )
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
            f"（自带的起步坏例只能拦下模型，不能放行）；请用 wwts badcases import 补充后重新评估。"
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
    value, threshold = f"新模型 {len(mine)} 条，当前模型 {len(theirs)} 条", f"各 {accuracy.cases} 条"
    if accuracy.cases > 0 and set(counts) == {accuracy.cases} and set(mine) == set(theirs):
        return _outcome("case_results", "passed", value, threshold)
    reason = (
        f"坏例集有 {accuracy.cases} 条坏例，但新模型有 {len(mine)} 条逐例结果，当前启用的模型有 {len(theirs)} 条，"
        f"或两者的指标不齐、条数对不上；请重新运行 evaluate_model。"
    )
    return _outcome("case_results", "failed", value, threshold, reason)


def _never_regress(accuracy: AccuracyReport) -> RuleOutcome:
    mine = {result.content_sha256: result for result in accuracy.challenger_results}
    theirs = {result.content_sha256: result for result in accuracy.champion_results}
    threshold = "不丢一条"
    missing = [content for content in accuracy.never_regress if content not in mine or content not in theirs]
    lost = [
        f"{content[:12]}（原为 {theirs[content].label_id}，现为 {mine[content].label_id or '无标签'}）"
        for content in accuracy.never_regress
        if content not in missing and theirs[content].right and not mine[content].right
    ]
    value = f"{len(accuracy.never_regress)} 条中丢了 {len(lost)} 条"
    sentences = []
    if lost:
        more = f"等 {len(lost)} 条" if len(lost) > _NAMED else ""
        sentences.append(
            f"{len(lost)} 条“不许退步”的坏例当前启用的模型判对、新模型判错：{'、'.join(lost[:_NAMED])}{more}；"
            f"请补充同类图片重新训练，确实不再要求的用 wwts badcases retire 撤下。"
        )
    if missing:
        sentences.append(
            f"{len(missing)} 条“不许退步”的坏例缺少结果，例如 {missing[0][:12]}，无法判断；请重新运行 evaluate_model。"
        )
    return _outcome("never_regress", "failed" if sentences else "passed", value, threshold, "".join(sentences))


# ------------------------------------------------------------------ all cases


def _overall(accuracy: AccuracyReport, rules: OverallRules) -> Iterator[RuleOutcome]:
    mine, theirs = accuracy.challenger.get(OVERALL), accuracy.champion.get(OVERALL)
    train = "请检查标签表和训练数据，补充图片重新训练"
    top1 = Limit("overall.top1", "全部坏例的首位准确率", _percent, train)
    top5 = Limit("overall.top5", "全部坏例的前五准确率", _percent, train)
    yield top1.at_least(_value(mine, "top1"), rules.min_top1)
    yield top5.at_least(_value(mine, "top5"), rules.min_top5)
    yield _auto_precision(mine, theirs, rules.min_auto_precision)
    bounds = _Bounds(rules.margin, rules.tolerated_cases, rules.alpha, rules.interval_margin)
    yield _non_inferiority("overall.non_inferiority", "全部坏例", accuracy.paired.get(OVERALL), bounds)
    forbidden = Limit(
        "overall.forbidden",
        "打出禁用标签的比例相对当前启用模型的增幅",
        _points,
        "请查看报告里打出禁用标签的坏例，补充反例重新训练",
    )
    yield forbidden.at_most(
        _difference(_value(mine, "forbidden"), _value(theirs, "forbidden")), rules.max_forbidden_increase
    )
    yield from _automation(mine, theirs, rules)
    yield from _calibration(mine, theirs, rules)


def _auto_precision(mine: Metrics | None, theirs: Metrics | None, floor: float) -> RuleOutcome:
    limit = Limit(
        "overall.auto_precision",
        "自动通过的坏例中判对的比例",
        _percent,
        "直接上线的标签错得太多，请调高阈值或重新训练",
    )
    none_live = [part is not None and part.coverage.value == 0 for part in (mine, theirs)]
    if mine is not None and mine.auto_precision.value is None and all(none_live):
        reason = "两个模型都没有自动通过任何坏例，自动通过的准确率无从计算，仅作提示；坏例多了以后会有。"
        return _outcome(limit.rule, "advisory", "", f"≥ {_percent(floor, 1)}", reason)
    return limit.at_least(_value(mine, "auto_precision"), floor)


def _automation(mine: Metrics | None, theirs: Metrics | None, rules: OverallRules) -> Iterator[RuleOutcome]:
    """What goes live without a person: rightly, it may hardly fall; wrongly, hardly grow."""
    (right, wrong), (right_before, wrong_before) = _live(mine), _live(theirs)
    review = "送人工审核的会明显变多，请检查阈值和置信度校准"
    fall = Limit("overall.auto_right_fall", "自动通过且判对的比例相对当前启用模型的降幅", _points, review)
    yield fall.at_most(_difference(right_before, right), rules.max_auto_right_fall)
    kept = Limit("overall.auto_right_kept", "自动通过且判对的坏例与当前启用模型之比", _percent, review)
    # Where the champion has none, all of them are kept.
    yield kept.at_least(
        1.0 if right_before == 0 and right is not None else _ratio(right, right_before), rules.min_auto_right_kept
    )
    grown = Limit(
        "overall.auto_wrong_increase",
        "自动通过却判错的比例相对当前启用模型的增幅",
        _points,
        "错标签会直接上线，请调高阈值或重新训练",
    )
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
    advice = "置信度不可信，阈值也就不可靠，请重新校准"
    yield Limit("ece", "期望校准误差（ECE）", _percent, advice).at_most(error, rules.max_ece)
    increase = Limit("ece_increase", "期望校准误差（ECE）相对当前启用模型的增幅", _points, advice)
    yield increase.at_most(_difference(error, before), rules.max_ece_increase)


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

    @property
    def net_text(self) -> str:
        return f"{_points(self.margin, 1)}（至少容许 {self.tolerated_cases} 条）"

    @property
    def text(self) -> str:
        interval = "" if self.interval_margin is None else f"，95% 区间下限 ≥ {_signed(-self.interval_margin)}"
        return f"净输 ≤ {self.net_text}，无显著变差（p ≥ {self.alpha:g}）{interval}"


def _non_inferiority(rule: str, title: str, paired: Paired | None, bounds: _Bounds) -> RuleOutcome:
    threshold = bounds.text
    if paired is None or not paired.n or paired.p_value is None:
        return _missing(rule, f"{title}与当前启用模型的输赢对比", threshold)
    difference = paired.difference
    if difference.value is None or difference.low is None:
        return _missing(rule, f"{title}与当前启用模型的差距", threshold)
    value = f"{_signed(difference.value)}（赢 {paired.wins}，输 {paired.losses}，p = {paired.p_value:.3f}）"
    told = (
        f"{title}共 {paired.n} 条，其中只有新模型判对的 {paired.wins} 条，只有当前启用的模型判对的 {paired.losses} 条"
    )
    retrain = "请查看报告里输掉的坏例，补充同类图片重新训练。"
    if max(paired.losses - paired.wins, -difference.value * paired.n) > bounds.allowed(paired.n) + _EQUAL:
        reason = f"{told}，净输超过允许的 {bounds.net_text}；{retrain}"
        return _outcome(rule, "failed", value, threshold, reason)
    if paired.losses > paired.wins and paired.p_value < bounds.alpha:
        reason = f"{told}，变差是显著的（精确 McNemar 检验 p = {paired.p_value:.4f}，低于 {bounds.alpha:g}）；{retrain}"
        return _outcome(rule, "failed", value, threshold, reason)
    if bounds.interval_margin is not None and difference.low < -bounds.interval_margin - _EQUAL:
        reason = (
            f"{told}，坏例太少而变化太多，说不准：差距的 95% 区间低至 {_signed(difference.low)}，"
            f"至少要能排除 {_points(bounds.interval_margin, 1)}的退步；请补充坏例后重新评估。"
        )
        return _outcome(rule, "insufficient", value, threshold, reason)
    return _outcome(rule, "passed", value, threshold)


# ------------------------------------------------------------------ slices


def _slice(accuracy: AccuracyReport, name: str, rules: SliceRules) -> Iterator[RuleOutcome]:
    title = {OLD_LABELS: "旧标签（old_labels）", NEW_LABELS: "新标签（new_labels）"}.get(name, f"“{name}”")
    yield _slice_cases(accuracy, name, f"切片{title}", rules)
    if not accuracy.groups.get(name):
        return  # nothing to judge, as the rule before has said
    mine = accuracy.challenger.get(name)
    top1 = Limit(f"slice.{name}.top1", f"切片{title}的首位准确率", _percent, "请补充这一切片的图片重新训练")
    yield top1.at_least(_value(mine, "top1"), rules.min_top1)
    bounds = _Bounds(rules.margin, rules.tolerated_cases, rules.alpha)
    yield _non_inferiority(f"slice.{name}.non_inferiority", f"切片{title}", accuracy.paired.get(name), bounds)


def _slice_cases(accuracy: AccuracyReport, name: str, title: str, rules: SliceRules) -> RuleOutcome:
    rule, cases = f"slice.{name}.cases", accuracy.groups.get(name, 0)
    value, threshold = f"{cases} 条", f"≥ {rules.min_cases} 条"
    parts = (accuracy.challenger.get(name), accuracy.champion.get(name), accuracy.paired.get(name))
    counts = {part.n for part in parts if part is not None}
    if counts - {cases} or (cases and None in parts):
        reason = f"{title}有 {cases} 条坏例，但两个模型的指标或输赢对比不齐、条数对不上；请重新运行 evaluate_model。"
        return _outcome(rule, "failed", value, threshold, reason)
    if cases >= rules.min_cases:
        return _outcome(rule, "passed", value, threshold)
    lacking = f"{title}只有 {cases} 条坏例，至少要 {rules.min_cases} 条才好判断，还差 {rules.min_cases - cases} 条"
    if rules.advisory:
        return _outcome(rule, "advisory", value, threshold, f"{lacking}；这一切片只作提示，不影响结论。")
    reason = f"{lacking}；请补充坏例，或在门禁规则的 slices.by_name 里给它写上 advisory: true。"
    return _outcome(rule, "insufficient", value, threshold, reason)


# ------------------------------------------------------------------ time and size


def _latency(reports: Reports, rules: LatencyRules) -> Iterator[RuleOutcome]:
    measured = reports.latency
    mine = _positive(measured.challenger.p95) if measured else None
    theirs = _positive(measured.champion.p95) if measured and measured.champion else None
    advice = "请换用更小的骨干网络，或检查测量时机器是否空闲"
    yield Limit("p95", "单张图片的 P95 延迟", _seconds, advice).at_most(mine, rules.max_p95_seconds)
    ratio = Limit("p95_ratio", "P95 延迟与当前启用模型之比", _times, advice)
    yield ratio.at_most(_ratio(mine, theirs), rules.max_p95_ratio)


def _size(accuracy: AccuracyReport, rules: SizeRules) -> RuleOutcome:
    limit = Limit("size", "模型文件的大小", _megabytes, "请换用更小的骨干网络")
    return limit.at_most(_positive(accuracy.challenger_model.megabytes), rules.max_megabytes)


# ------------------------------------------------------------------ one number against one limit


@dataclass(frozen=True)
class Limit:
    """A rule that compares one number with a limit.

    Attributes:
        rule: its name.
        title: what is measured, in Chinese, so that the number can follow.
        text: writes a number with so many decimals.
        advice: what to do when it fails, in Chinese.
    """

    rule: str
    title: str
    text: Callable[[float, int], str]
    advice: str

    def at_least(self, value: float | None, floor: float) -> RuleOutcome:
        """Passes from ``floor`` on; fails below, and when there is no value."""
        if value is None:
            return _missing(self.rule, self.title, f"≥ {self.text(floor, 1)}")
        number, bound = self._texts(value, floor)
        if value >= floor - _EQUAL:
            return _outcome(self.rule, "passed", number, f"≥ {bound}")
        reason = f"{self.title} {number}，低于下限 {bound}；{self.advice}。"
        return _outcome(self.rule, "failed", number, f"≥ {bound}", reason)

    def at_most(self, value: float | None, ceiling: float) -> RuleOutcome:
        """Passes up to ``ceiling``; fails above, and when there is no value."""
        if value is None:
            return _missing(self.rule, self.title, f"≤ {self.text(ceiling, 1)}")
        number, bound = self._texts(value, ceiling)
        if value <= ceiling + _EQUAL:
            return _outcome(self.rule, "passed", number, f"≤ {bound}")
        reason = f"{self.title} {number}，超过上限 {bound}；{self.advice}。"
        return _outcome(self.rule, "failed", number, f"≤ {bound}", reason)

    def _texts(self, value: float, limit: float) -> tuple[str, str]:
        """Both with as few decimals as tell them apart; equal ones with the fewest."""
        if abs(value - limit) <= _EQUAL:
            return self.text(limit, 1), self.text(limit, 1)
        for decimals in range(1, 6):
            number, bound = self.text(value, decimals), self.text(limit, decimals)
            if number != bound:
                break
        return number, bound


def _percent(value: float, decimals: int) -> str:
    return f"{value:.{decimals}%}"


def _points(value: float, decimals: int) -> str:
    return f"{value * 100:.{decimals}f} 个百分点"


def _signed(value: float) -> str:
    return f"{value * 100:+.1f} 个百分点"


def _seconds(value: float, decimals: int) -> str:
    return f"{value:.{decimals + 2}f} 秒"


def _times(value: float, decimals: int) -> str:
    return f"{value:.{decimals + 1}f} 倍"


def _megabytes(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f} MB"


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


def _missing(rule: str, title: str, threshold: str) -> RuleOutcome:
    return _outcome(
        rule, "failed", "", threshold, f"没有测到“{title}”，规则 {rule} 无法判断；请重新运行 evaluate_model。"
    )


def _outcome(rule: str, outcome: Outcome, value: str, threshold: str, reason: str = "") -> RuleOutcome:
    return RuleOutcome(rule=rule, outcome=outcome, value=value, threshold=threshold, reason=reason)
