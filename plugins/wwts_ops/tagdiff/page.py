"""The tag diff as people see it: a page in Chinese, and a few lines of Markdown for the approval."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from wwts_ops import webpage
from wwts_ops.decisions import AUTO, FORCED_REVIEW
from wwts_ops.storage import Store
from wwts_ops.tagdiff.facts import Category, Change, Count, Known, TagDiff
from wwts_ops.webpage import cell

#: Rows of the approval's table; the page has more.
_TOLD = 8
_SHOWN = 40
DECISIONS = {"auto": "自动通过", "review": "待审核", "forced_review": "强制审核"}
_UNCATEGORISED = "未归类"


def render(store: Store, diff: TagDiff, timezone: str) -> str:
    """The page: one HTML document that loads nothing.

    Raises:
        UnavailableError: when the store refuses a thumbnail.
    """
    environment = webpage.environment()
    environment.filters |= {"fate": fate, "category": category, "interval": _interval}
    moved = [one for one in diff.by_category if one.relabelled or one.redecided]
    return environment.get_template("tagdiff.html.j2").render(
        diff=diff,
        versions=diff.versions,
        known=diff.known,
        fair=diff.known.fair,
        decisions=DECISIONS,
        categories=moved[:_SHOWN],
        unmoved=len(diff.by_category) - len(moved),
        more=max(len(moved) - _SHOWN, 0),
        thumbnails=webpage.thumbnails(store, (change.content_sha256 for change in diff.riskiest)),
        made_at=f"{datetime.fromisoformat(diff.made_at).astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M}",
        timezone=timezone,
    )


def fate(change: Change) -> str:
    """What becomes of the images of a change, for whoever reads the shop's tags."""
    was_live = change.old.decision == AUTO
    if change.unseen and change.old.decision == FORCED_REVIEW:
        return "原来强制审核，换后直接上线"
    if change.unseen:
        return "线上标签直接改变" if was_live else "原来等人审核，换后直接上线"
    return "不再自动上线，改为等人审核" if was_live else "仍然等人审核"


def category(name: str) -> str:
    """A first-level category as it is called."""
    return webpage.text(name, 40) or _UNCATEGORISED


def _interval(found: tuple[float, float]) -> str:
    return f"{found[0]:.1%}–{found[1]:.1%}"


# ------------------------------------------------------------------ the approval


def markdown(diff: TagDiff) -> str:
    """The diff in a few lines of Chinese Markdown; whatever the catalog calls itself, it is shown as written."""
    lines = [f"### 上线后的改动（当前版本 {diff.versions.old} → 候选版本 {diff.versions.new}）", "", *_counts(diff)]
    moved = [one for one in diff.by_category if one.relabelled or one.redecided][:_TOLD]
    if moved:
        lines += ["", *_table(moved)]
    lines += ["", _known(diff.known), "", f"完整对比和风险最高的 {len(diff.riskiest)} 项改动（带图）：{_where(diff)}。"]
    return "\n".join(lines) + "\n"


def unembedded(backbone_sha256: str) -> str:
    """For the approval, when there is nothing that the new head could be tried on."""
    return (
        "### 上线后的改动\n\n"
        f"**这次没有改动对比**：候选模型的骨干网络（`{backbone_sha256[:12]}`）还没有处理过图库里的图片，"
        "没有可用的特征向量，因此无法预先算出哪些标签会变。\n"
    )


def failed(reason: str) -> str:
    """For the approval, when the comparison could not be made."""
    return f"### 上线后的改动\n\n**这次没有改动对比**：对比时出错（{cell(reason)}）。批准前请先排除这个问题。\n"


def _counts(diff: TagDiff) -> list[str]:
    if not diff.contents:
        return ["**没有可以比较的图片**：没有一张图片同时具有两个模型所需的特征向量。"]
    shadow = [] if diff.versions.release == "live" else ["- 目前是试运行：标签照常计算，但都不会上线"]
    missing = [f"- **没有比较**：{_told(diff.missing)}，缺少特征向量"] if diff.missing.contents else []
    answered = [f"- **不受影响**：{_told(diff.answered)}，已有人工答案"] if diff.answered.contents else []
    unforced = [f"- **不再强制审核**：{_told(diff.unforced)}"] if diff.unforced.contents else []
    return [
        f"比较了 {_told(Count(diff.images, diff.contents))}。",
        "",
        f"- **标签会变**：{_told(diff.changed_label)}，占 {_share(diff.changed_label, diff)}",
        f"- **处理方式会变**：{_told(diff.changed_decision)}，占 {_share(diff.changed_decision, diff)}",
        f"- **不经人看就会上线**：{_told(diff.unseen)}，其中 {diff.newly_live.images:,} 张原来要等人审核",
        f"- **不再自动上线**：{_told(diff.no_longer_live)}，改为等人审核",
        *unforced,
        *answered,
        *missing,
        *shadow,
    ]


def _told(count: Count) -> str:
    return f"{count.images:,} 张图片（{count.contents:,} 个不同内容）"


def _share(count: Count, diff: TagDiff) -> str:
    if not diff.images:
        return webpage.percent(count.contents, diff.contents)
    return webpage.percent(count.images, diff.images)


def _table(moved: Sequence[Category]) -> list[str]:
    rows = [
        f"| {cell(category(one.name))} | {one.before:,} → {one.after:,} | {one.live_before:,} → {one.live_after:,} | "
        f"{one.relabelled:,} | {one.redecided:,} |"
        for one in moved
    ]
    return ["| 一级类目 | 图片 | 自动通过 | 换标签 | 换处理方式 |", "| --- | --- | --- | --- | --- |", *rows]


def _known(known: Known) -> str:
    if not known.n:
        return "**改得对不对**：换标签的内容里，还没有一个有人工答案可以对照。"
    learned = f"其中 {known.learned:,} 个候选模型训练时学过，不能用来评判它；" if known.learned else ""
    fair = known.fair
    told = f"**改得对不对**：换标签的内容里有 {known.n:,} 个有人工答案可以对照；{learned}"
    if fair.interval is None:
        return told + "没有剩下的可以对照。"
    return told + (
        f"{'其余 ' + format(fair.n, ',') + ' 个里，' if learned else ''}原来对 {fair.old_right:,} 个，"
        f"换后对 {fair.new_right:,} 个（{webpage.percent(fair.new_right, fair.n)}，"
        f"95% 置信区间 {_interval(fair.interval)}）。"
    )


def _where(diff: TagDiff) -> str:
    return f"MLflow 中候选版本的运行里 `tag_diff/index.html`，或存储中的 `{diff.page}`"
