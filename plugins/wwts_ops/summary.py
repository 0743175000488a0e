"""What the terminal says of a night, a verdict or a training, in Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wwts_ops.images import REASONS
from wwts_ops.verdict import OUTCOMES


def planned(event: Mapping[str, Any]) -> str:
    """One line: what will be done."""
    text = f"发现 {event['images']:,} 张新图片" if event["images"] else "没有发现新图片"
    extras = (
        ("carried_over", "张顺延到下一晚"),
        ("delisted", "张已下架"),
        ("broken_rows", "条记录有误"),
        ("skipped", "个非图片文件未处理"),
    )
    parts = [f"{event[name]:,} {words}" for name, words in extras if event.get(name)]
    return "，".join([text, *parts])


def night(event: Mapping[str, Any]) -> str:
    """A few lines: what the night did, and where it lies."""
    images = event.get("images", 0)
    lines = ["", "本次打标结果"]
    if images:
        lines += [
            f"  图片        {images:,} 张",
            f"  自动通过    {event['auto']:,}",
            f"  待审核      {event['review']:,}",
            f"  强制审核    {event['forced_review']:,}",
            f"  重复内容    {event['duplicates']:,}（沿用已有结果）",
            f"  隔离        {event['quarantined']:,}{_reasons(event['reasons'])}",
            f"  速度        每秒 {event['images_per_second']:,} 张",
        ]
    else:
        lines.append("  没有图片完成打标" if event.get("planned") else "  没有新图片，无需打标")
    extras = (("carried_over", "顺延"), ("delisted", "下架"), ("broken_rows", "有误记录"))
    lines += [f"  {words:　<5}  {event[name]:,}" for name, words in extras if event.get(name)]
    if event.get("published"):
        release = "正式运行" if event["published_release"] == "live" else "试运行，标签不上线"
        lines.append(
            f"  已发布      {event['published_rows']:,} 张（已上线 {event['published_live']:,}，"
            f"待上线 {event['published_pending']:,}；{release}）"
        )
        lines.append(f"  标签数据    {event['published']}")
    lines.append(f"  日报        {event['report']}")
    lines += [f"  注意        {notice}" for notice in event.get("notices", ())]
    return "\n".join(lines)


def verdict(event: Mapping[str, Any]) -> str:
    """What the gate said of a version: every rule, those against it first, and why."""
    marks = {"passed": "✓", "advisory": "·"}
    order = list(OUTCOMES)
    against = f"候选版本 {event['version']}，对比当前启用的版本 {event['champion']}"
    lines = ["", f"门禁结论：{'通过' if event['passed'] else '未通过'}（{against}；坏例快照 {event['badcases']}）"]
    for rule in sorted(event["rules"], key=lambda rule: order.index(rule["outcome"])):
        wanted = f"  要求：{rule['threshold']}" if rule["threshold"] else ""
        lines.append(f"  {marks.get(rule['outcome'], '✗')} {rule['title']}  {rule['value'] or '未测得'}{wanted}")
    lines += ["未通过的原因："] if event["reasons"] else []
    lines += [f"  {number}. {reason}" for number, reason in enumerate(event["reasons"], 1)]
    if event["mode"] == "dry_run":
        lines.append("  仅演练：结论已记录，但不作为上线依据")
    return "\n".join(lines)


def training_skipped(event: Mapping[str, Any]) -> str:
    """Why nothing was trained."""
    found = f"有 {event['new']:,} 条新答案，不到 {event['least']:,} 条" if event["new"] else "没有新答案"
    return f'\n自上次训练以来{found}，这次不训练。仍要训练，请加上 {{"force": true}}'


def training_ordered(event: Mapping[str, Any]) -> str:
    """One line: what a training begins with."""
    base = f"版本 {event['base_version']}（{event['backbone']}）"
    return f"{event['answers']:,} 条答案（新增 {event['new']:,}），从{base}开始训练，正在整理数据集…"


def dataset_ready(event: Mapping[str, Any]) -> str:
    """One line: what is learned from."""
    text = f"数据集：{event['labels']:,} 个标签，训练 {event['train']:,} 张，验证 {event['validation']:,} 张"
    more = f"，{event['conflicts']:,} 处答案互相矛盾或可疑" if event["conflicts"] else ""
    held = int(event["excluded"].get("held_out", 0))
    kept = f"，{held:,} 张留作抽查或与坏例相同、相近，不参与训练" if held else ""
    return f"{text}{kept}{more}，正在训练…"


def head_trained(event: Mapping[str, Any]) -> str:
    """One line: how good the new head is on what it has not seen."""
    accuracy = event.get("validation_accuracy")
    on = "验证集" if event.get("on") == "validation" else "交叉验证"
    told = "" if accuracy is None else f"，{on}首位准确率 {accuracy:.1%}（{int(event.get('validation_n', 0)):,} 张）"
    return f"分类头已训练：{event['labels']:,} 个标签{told}，正在登记…"


def training_registered(event: Mapping[str, Any]) -> str:
    """One line: what came of a training."""
    added = f"，新增标签 {event['new_labels']:,} 个" if event["new_labels"] else ""
    return f"\n训练 {event['training']} 已登记为版本 {event['version']}{added}"


def tags_compared(event: Mapping[str, Any]) -> str:
    """A few lines: what a version would change across the catalog."""
    head = f"\n版本 {event['version']} 上线后，全库 {event['images']:,} 张图片中"
    return "\n".join(
        (
            head,
            f"  标签改变      {event['changed_label']:,}",
            f"  处理方式改变  {event['changed_decision']:,}",
            f"  新上线        {event['newly_live']:,}",
            f"  不再上线      {event['no_longer_live']:,}",
        )
    )


def promotion_skipped(event: Mapping[str, Any]) -> str:
    """One line: why a version that was to be promoted was not; the run has succeeded all the same."""
    return f"\n没有上线：{event['reason']}"


def published(event: Mapping[str, Any]) -> str:
    """One line: what consumers read from now on."""
    human = f"；其中人工答案 {event['answered']:,} 张" if event.get("answered") else ""
    release = "（试运行，暂不上线）" if event["release"] == "shadow" else ""
    text = f"已发布快照 {event['snapshot']}：已上线 {event['live']:,} 张，待上线 {event['pending']:,} 张"
    return f"{text}{human}{release}"


def retag_surveyed(event: Mapping[str, Any]) -> str:
    """One line: what is to be tagged anew."""
    missing = f"，{event['missing']:,} 张图片还没有特征向量，需要重新读图" if event["missing"] else ""
    act = "仅预演，不写入：将" if event["dry_run"] else ""
    return f"{act}用版本 {event['version']} 为 {event['embedded']:,} 张图片的特征向量重新打标{missing}"


def retag_done(event: Mapping[str, Any]) -> str:
    """One line: what was tagged anew."""
    left = f"；{event['missing']:,} 张读不到，保留原标签" if event["missing"] else ""
    return f"\n全库已用版本 {event['version']} 重新打标{left}。人工答案不受影响"


def _reasons(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    told = "；".join(f"{REASONS[code]}：{count}" for code, count in sorted(reasons.items(), key=lambda item: -item[1]))
    return f"（{told}）"
