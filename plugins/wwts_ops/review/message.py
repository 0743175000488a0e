"""The morning's message to the people who review, in Chinese."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

from wwts_ops.review.figures import Figures, Night, Share
from wwts_ops.settings import Settings

#: Below the address of Airflow: the page inside Airflow's own frame.
PAGE = "/plugin/wwts"


def title(figures: Figures) -> str:
    """The heading."""
    day = date.fromisoformat(figures.date)
    warning = "（打标未完成）" if figures.night.state in ("unfinished", "absent") else ""
    return f"图片审核 {day.month}月{day.day}日{warning}"


def text(figures: Figures, settings: Settings, running: int = 0) -> str:
    """The message: what waits, how the night went, how good the tags are, and where to go.

    Args:
        figures: of the morning.
        settings: deadline, time zone and address.
        running: nights that Airflow has in its queue or runs right now.
    """
    lines = [waiting(figures), *_stuck(figures), *late(figures.night, settings, running), *_quality(figures)]
    if settings.public_url:
        lines.append(f"去审核：{settings.public_url.rstrip('/')}{PAGE}")
    return "\n".join(lines)


def waiting(figures: Figures) -> str:
    """What waits, and until when, such as “2,140 张待审，按昨天的速度 9:40 完成”."""
    if not figures.left:
        return "没有待审的图片。"
    count = f"{figures.left:,} 张待审"
    disputed = f"，其中 {figures.disputed:,} 张两人意见不同，需要第三人定" if figures.disputed else ""
    return f"{count}{_until(figures)}{disputed}。"


def _until(figures: Figures) -> str:
    if figures.done_by is None or figures.per_hour is None or figures.pace_of is None:
        return ""
    speed = f"，按{_called(figures.pace_of, figures.date)}的速度"
    if figures.done_by.date().isoformat() == figures.date:
        return f"{speed} {figures.done_by.hour}:{figures.done_by.minute:02d} 完成"
    return f"{speed}（每小时 {figures.per_hour:,.0f} 张）今天审不完，还要约 {figures.left / figures.per_hour:,.0f} 小时"


def _called(day: str, today: str) -> str:
    there, here = date.fromisoformat(day), date.fromisoformat(today)
    return "昨天" if (here - there).days == 1 else f" {there.month}月{there.day}日"


def _stuck(figures: Figures) -> list[str]:
    if not figures.stuck:
        return []
    return [f"另有 {figures.stuck:,} 张要换一个人再看，但能审核的人都已经看过；请管理员增加审核人员。"]


def late(night: Night, settings: Settings, running: int) -> list[str]:
    """What people should know of a night that is not done; nothing when all is well."""
    if night.state == "unfinished":
        where = (
            "正在运行，完成后会补进队列" if running else "已经停了，做完的部分已经发布；请管理员在 Airflow 里查看并重跑"
        )
        left = night.shards - night.shards_done
        what = f"还有 {left:,} 批（共 {night.shards:,} 批）没有打标" if left else "图片都已打标，还差最后的收尾"
        return [f"注意：昨夜的打标{_deadline(settings)}没有完成：{what}，{where}。"]
    if night.state == "absent":
        where = "刚刚开始，还没有结果" if running else "没有运行，或者一开始就失败了；请管理员在 Airflow 里查看"
        return [f"注意：{night.date} 的打标{where}。待审的是以前留下的图片。"]
    return []


def _deadline(settings: Settings) -> str:
    if settings.deadline is None:
        return "到现在"
    passed = datetime.now(ZoneInfo(settings.timezone)).time() > settings.deadline
    return f"过了 {settings.deadline:%H:%M} 的时限仍" if passed else "到现在"


def _quality(figures: Figures) -> list[str]:
    parts = []
    if figures.done_yesterday:
        parts.append(f"昨天审了 {figures.done_yesterday:,} 张")
    if figures.agreement.rate is not None:
        parts.append(f"近 7 天人工认可模型标签 {figures.agreement.rate:.0%}")
    if figures.audit.rate is not None:
        parts.append(f"自动上线的标签准确率约 {figures.audit.rate:.1%}（{_interval(figures.audit)}）")
    return ["；".join(parts) + "。"] if parts else []


def _interval(share: Share) -> str:
    return f"95% 区间 {share.low:.1%}–{share.high:.1%}，抽查 {share.answered:,} 张"
