"""Charts of an evaluation or a training as PNG: latency, reliability, confusions, learning curve.

Drawn without pyplot, so that nothing stays open; on paper of their own, as the contact sheet. The champion is always
grey and dashed, the challenger teal and solid: they differ in lightness and shape, not in colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eval.comparison import Confusion, Names
    from eval.fonts import Font
    from eval.reports import AccuracyReport, CaseResult, Latency, LatencyReport

_PAPER, _INK, _SOFT, _LINE = "#fbfaf7", "#1b1d21", "#51565f", "#d8d4ca"
_CHALLENGER, _CHAMPION = "#1f7a72", "#7a7f88"
_DPI = 160
_BINS = 10
#: Pairs that the chart of confusions shows.
CONFUSIONS = 12

_ENGLISH = {
    "候选": "challenger",
    "当前启用": "champion",
    "单张延迟分布": "Latency of one picture",
    "毫秒": "milliseconds",
    "次数": "count",
    "可靠性曲线": "Reliability",
    "置信度": "confidence",
    "实际正确率": "share that is right",
    "完全校准": "perfectly calibrated",
    "坏例数": "cases",
    "最常见的混淆（正确 → 误判）": "Most frequent confusions (right → said)",
    "最右一格含更慢的 {} 次": "the last bar includes {} slower ones",
    "学习曲线": "Learning curve",
    "每个标签的人工答案数": "answers a label",
    "验证集准确率": "accuracy on the validation part",
    "各标签平均准确率": "mean accuracy of the labels",
    "阴影为各随机种子的最低到最高": "shaded: lowest to highest of all seeds",
    "验证集上最常见的混淆（正确 → 误判）": "Most frequent confusions in validation (right → said)",
    "误判张数 / 该标签张数": "mistaken / pictures of the label",
}


def latency(report: LatencyReport, font: Font) -> bytes:
    """Histogram of every time taken, of which there is at least one, with the P95 of each model."""
    say = _Speech(font)
    figure, axes = _figure(say, "单张延迟分布", (8.0, 3.8))
    champion = [(report.champion, "当前启用")] if report.champion and report.champion.samples else []
    both = [(report.challenger, "候选"), *champion]
    longest = 1.35 * max(one.p99 for one, _ in both)
    edges = 1000 * np.linspace(0.9 * min(min(one.samples) for one, _ in both), longest, 41)
    for one, name in both:
        _times(axes, one, edges, say, name)
    slower = sum(seconds > longest for one, _ in both for seconds in one.samples)
    note = say("最右一格含更慢的 {} 次").format(slower)
    _labels(axes, say, say.noted("毫秒", note) if slower else say("毫秒"), say("次数"))
    _legend(axes, say)
    return _png(figure)


def reliability(report: AccuracyReport, font: Font) -> bytes:
    """How often first tags of a confidence are right, with the number of cases of each tenth below."""
    say = _Speech(font)
    figure, axes = _figure(say, "可靠性曲线", (6.4, 6.2), rows=(3.4, 1.0))
    curve, counts = axes
    curve.plot([0, 1], [0, 1], color=_LINE, linewidth=1.2, label=say("完全校准"))
    both = (
        (report.champion_results, "当前启用", {"color": _CHAMPION, "linestyle": "--", "marker": "s"}),
        (report.challenger_results, "候选", {"color": _CHALLENGER, "linestyle": "-", "marker": "o"}),
    )
    for place, (results, name, style) in enumerate(both):
        sure, right = _scored(results)
        if len(sure):
            _calibration(curve, sure, right, {**style, "label": say(name)})
        heights, edges = np.histogram(sure, bins=_BINS, range=(0, 1))
        left = edges[:-1] + 0.008 + place * 0.043
        counts.bar(left, heights, width=0.04, align="edge", color=style["color"])
    curve.set(xlim=(0, 1), ylim=(0, 1.02), xticklabels=[])
    counts.set(xlim=(0, 1))
    _labels(curve, say, "", say("实际正确率"))
    _labels(counts, say, say("置信度"), say("坏例数"))
    # Above the plot: points lie anywhere in it.
    _legend(curve, say, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return _png(figure)


def confusions(found: Sequence[Confusion], names: Names, font: Font) -> bytes:
    """Bars of the challenger's most frequent mistakes, each above the champion's count of the same."""
    say = _Speech(font)
    shown = found[:CONFUSIONS]
    figure, axes = _figure(say, "最常见的混淆（正确 → 误判）", (8.0, 1.3 + 0.46 * len(shown)))
    rows = _pairs(axes, say, [names.pair(one) if font.is_chinese else names.pair_latin(one) for one in shown])
    axes.barh(rows - 0.19, [one.challenger for one in shown], 0.34, color=_CHALLENGER, label=say("候选"))
    counts = [one.champion for one in shown]
    theirs = {"facecolor": _PAPER, "edgecolor": _CHAMPION, "hatch": "////"}
    axes.barh(
        rows + 0.19, counts, 0.34, linewidth=[float(count > 0) for count in counts], label=say("当前启用"), **theirs
    )
    axes.set_xlabel(say("坏例数"), fontproperties=say.font(10), color=_SOFT)
    _legend(axes, say, loc="lower right")
    return _png(figure)


def mistakes(found: Sequence[Mapping[str, Any]], names: Names, font: Font) -> bytes:
    """Bars of a training's most frequent mistakes on its validation part.

    Args:
        found: with ``label_id``, ``predicted``, ``count`` and ``of``, the pictures of that label; worst first.
        names: of the labels.
        font: to letter it with.
    """
    say = _Speech(font)
    shown = found[:CONFUSIONS]
    figure, axes = _figure(say, "验证集上最常见的混淆（正确 → 误判）", (8.0, 1.3 + 0.4 * len(shown)))
    name = names.chinese if font.is_chinese else names.latin
    rows = _pairs(axes, say, [(name(one["label_id"]), name(one["predicted"])) for one in shown])
    counts = [int(one["count"]) for one in shown]
    axes.barh(rows, counts, 0.5, color=_CHALLENGER)
    for row, one in zip(rows, shown, strict=True):
        told = f" {one['count']} / {one['of']}"
        axes.text(int(one["count"]), row, told, va="center", fontproperties=say.font(9.5), color=_INK)
    axes.set_xlim(0, 1.15 * max(counts, default=1))
    axes.set_xlabel(say("误判张数 / 该标签张数"), fontproperties=say.font(10), color=_SOFT)
    return _png(figure)


def learning_curve(points: Sequence[Mapping[str, Any]], font: Font) -> bytes:
    """How accuracy grows with the answers a label has, over all seeds that were tried.

    Args:
        points: with ``answers_per_label``, ``seed``, ``accuracy`` and ``macro`` (0 to 1); at least one.
        font: to letter it with.
    """
    say = _Speech(font)
    figure, axes = _figure(say, "学习曲线", (8.0, 4.2))
    sizes = sorted({int(one["answers_per_label"]) for one in points})
    places = np.arange(len(sizes))
    both = (
        ("accuracy", "验证集准确率", {"color": _CHALLENGER, "linestyle": "-", "marker": "o"}),
        ("macro", "各标签平均准确率", {"color": _CHAMPION, "linestyle": "--", "marker": "s"}),
    )
    for key, name, style in both:
        found = [[one[key] for one in points if int(one["answers_per_label"]) == size] for size in sizes]
        lowest, highest = ([end(values) for values in found] for end in (min, max))
        axes.fill_between(places, lowest, highest, color=style["color"], alpha=0.15, linewidth=0)
        means = [float(np.mean(values)) for values in found]
        axes.plot(places, means, linewidth=1.8, markersize=6, label=say(name), **style)
    axes.set_xticks(places, [str(size) for size in sizes])
    axes.set_ylim(0, 1.02)
    _labels(axes, say, say.noted("每个标签的人工答案数", say("阴影为各随机种子的最低到最高")), "")
    _legend(axes, say, loc="lower right")
    return _png(figure)


class _Speech:
    """The words of a chart, in Chinese or, without a Chinese font, in English."""

    def __init__(self, font: Font) -> None:
        self._font = font

    def __call__(self, text: str) -> str:
        return text if self._font.is_chinese else _ENGLISH[text]

    def noted(self, text: str, note: str) -> str:
        """``text`` in the chart's language with ``note`` in brackets."""
        return f"{self(text)}（{note}）" if self._font.is_chinese else f"{self(text)} ({note})"

    def writable(self, text: str) -> str:
        """``text`` without what the chart's font does not have."""
        return self._font.writable(text)

    def font(self, size: float) -> Any:
        """Matplotlib's word for the font at ``size`` points."""
        from matplotlib import font_manager

        path: Any = self._font.path
        if hasattr(font_manager, "FontPath"):  # before 3.11 only the first face of a file could be had
            path = font_manager.FontPath(path, self._font.face)
        return font_manager.FontProperties(fname=path, size=size)


def _figure(say: _Speech, title: str, size: tuple[float, float], rows: tuple[float, ...] = (1,)) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 1, gridspec_kw={"height_ratios": rows})
    figure.suptitle(say(title), fontproperties=say.font(14), color=_INK, x=0.02, ha="left")
    for one in np.atleast_1d(axes):
        one.set_facecolor(_PAPER)
        one.spines[["top", "right", "left"]].set_visible(False)
        one.spines["bottom"].set_color(_SOFT)
        one.grid(visible=True, color=_LINE, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def _times(axes: Any, one: Latency, edges: Any, say: _Speech, name: str) -> None:
    times = np.clip(1000 * np.asarray(one.samples), edges[0], edges[-1])
    p95 = 1000 * one.p95
    label = say.noted(name, f"P95 {p95:.1f} ms")
    if name == "候选":
        axes.hist(times, bins=edges, color=_CHALLENGER, alpha=0.75, label=label)
        axes.axvline(p95, color=_CHALLENGER, linewidth=1.6)
    else:
        style = {"histtype": "step", "color": _CHAMPION, "linestyle": "--", "linewidth": 1.6}
        axes.hist(times, bins=edges, label=label, **style)
        axes.axvline(p95, color=_CHAMPION, linewidth=1.6, linestyle="--")


def _calibration(axes: Any, sure: Any, right: Any, style: dict[str, Any]) -> None:
    from sklearn.calibration import calibration_curve

    shares, means = calibration_curve(right, sure, n_bins=_BINS)
    axes.plot(means, shares, linewidth=1.8, markersize=6, **style)


def _scored(results: Sequence[CaseResult]) -> tuple[Any, Any]:
    scored = [(one.confidence, one.right) for one in results if one.confidence is not None]
    sure = np.clip(np.array([confidence for confidence, _ in scored], dtype=np.float64), 0, 1)
    return sure, np.array([right for _, right in scored], dtype=bool)


def _labels(axes: Any, say: _Speech, x: str, y: str) -> None:
    axes.set_xlabel(x, fontproperties=say.font(10), color=_SOFT)
    axes.set_ylabel(y, fontproperties=say.font(10), color=_SOFT)
    _ticks(axes, say)


def _ticks(axes: Any, say: _Speech) -> None:
    axes.tick_params(colors=_SOFT, labelsize=9.5, length=0)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontproperties(say.font(9.5))


def _legend(axes: Any, say: _Speech, loc: str = "upper right", **placed: Any) -> None:
    style = {"frameon": True, "facecolor": _PAPER, "edgecolor": "none", "labelcolor": _INK}
    axes.legend(prop=say.font(10), loc=loc, **style, **placed)


def _pairs(axes: Any, say: _Speech, pairs: Sequence[tuple[str, str]]) -> Any:
    """Names a row for each pair of what is right and what was said, the first on top; the places of the rows."""
    rows = np.arange(len(pairs))
    axes.set_yticks(rows)
    _ticks(axes, say)
    told = [say.writable(f"{_short(truth)} → {_short(said)}") for truth, said in pairs]
    axes.set_yticklabels(told, fontproperties=say.font(10.5), parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return rows


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor=_PAPER)
    return out.getvalue()
