"""The Markdown that MLflow shows on a model version's page: the verdict, what it stands on, and the contact sheet.

Addresses in it are relative to MLflow's own page, whose routes lie behind ``#``: so they hold on every host and port,
and below a path where a proxy puts MLflow.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from eval import markdown, wording
from eval.markdown import text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eval.comparison import Names, Sheet
    from eval.reports import Reports
    from eval.wording import Row
    from wwts_ops.verdict import Verdict

#: Characters. MLflow's database has room for 5,000 (``VARCHAR(5000)`` in ``mlflow/store/model_registry/dbmodels``); on
#: SQLite nobody counts, PostgreSQL and MySQL refuse.
LONGEST = 4_900
#: Characters that our part has at least; notes of people that leave less are kept with the run instead.
_LEAST = 2_400
#: Ends our part. A comment: MLflow does not show it.
_END = "<!-- wwts: above is written by evaluate_model, below is yours -->"
_LINK = "[全部指标、图表和逐条结果见这次评测的记录]"
NOTES_FILE = "earlier-description.md"
#: Reasons and names shown, before anything is left out for want of room.
_REASONS, _NAMED = 8, 12
_REASON_LONGEST = 140


@dataclass(frozen=True)
class Shown:
    """What the description shows besides the verdict.

    Attributes:
        experiment_id: where the run is.
        sheet: changed cases.
        sheet_file: artifact of the run with their picture; empty when nothing changed.
        names: of labels, when the picture could not be lettered in Chinese; else None.
        made_at: when, in the shop's time zone.
    """

    experiment_id: str
    sheet: Sheet
    sheet_file: str
    names: Names | None
    made_at: datetime


def notes(old: str) -> str:
    """What people wrote into the description ``old``: all of it, or what stands below our part."""
    if _END in old:
        return old.partition(_END)[2].strip()
    # Somebody took the comment out while editing: our part still ends with its link.
    return re.split(rf"{re.escape(_LINK)}\(\S*\)", old)[-1].strip()


def kept(notes: str, run_id: str) -> str:
    """``notes``, or where they are when they leave too little room for us."""
    if room(notes) >= _LEAST:
        return notes
    return f"（原有的说明太长，已存为评测记录 {run_id} 的 {NOTES_FILE}）"


def room(notes: str) -> int:
    """Characters that our part may have above ``notes``."""
    return LONGEST - len(above("", notes))


def above(ours: str, notes: str) -> str:
    """The whole description."""
    return f"{ours}\n\n{_END}\n\n{notes}"


def build(verdict: Verdict, reports: Reports, shown: Shown, longest: int = LONGEST) -> str:
    """The description, in at most ``longest`` characters.

    Rules that passed give way first, then names, then reasons; what was left out is said, and the run has it all.
    """
    rows = wording.rows(verdict.rules, reports)
    told = tuple(row for row in rows if row.telling)
    against = sum(row.outcome in ("failed", "insufficient") for row in rows)
    for kept, reasons, named in _budgets(len(told), against):
        made = _build(verdict, told[:kept], shown, (reasons, named))
        if len(made) <= longest:
            return made
    return _build(verdict, (), shown, (1, 0))


def _budgets(rules: int, against: int) -> Sequence[tuple[int, int, int]]:
    """Rows, reasons and names to try, from all there are to the least that still says why."""
    budgets = [(kept, _REASONS, _NAMED) for kept in range(rules, against - 1, -1)]
    budgets += [(against, _REASONS, 0)]
    return budgets + [(min(against, 2 * reasons), reasons, 0) for reasons in range(_REASONS, 0, -1)]


def _build(verdict: Verdict, rows: Sequence[Row], shown: Shown, room: tuple[int, int]) -> str:
    reasons, named = room
    link = f"#/experiments/{quote(shown.experiment_id)}/runs/{quote(verdict.run_id)}"
    parts = [headline(verdict), _against(verdict, shown.made_at), _table(verdict, rows)]
    parts += [_reasons(verdict, reasons), _sheet(verdict, shown), _names(shown, named)]
    parts.append(f"{_LINK}({link})")
    return "\n\n".join(part for part in parts if part)


def headline(verdict: Verdict) -> str:
    """The verdict in one line."""
    outcome = "✅ 通过门禁" if verdict.passed else "❌ 未通过门禁"
    return f"## **{outcome}**（{wording.MODES[verdict.mode]}）"


def _against(verdict: Verdict, made_at: datetime) -> str:
    return (
        f"候选 v{text(verdict.model_version)}，对比当前启用的 v{text(verdict.champion_version)}；"
        f"坏例快照 {text(verdict.badcases)}；{made_at:%Y-%m-%d %H:%M}"
    )


def _table(verdict: Verdict, rows: Sequence[Row]) -> str:
    versions = (text(verdict.champion_version), text(verdict.model_version))
    head = ("门禁规则", f"当前启用 v{versions[0]}", f"候选 v{versions[1]}", "要求", "结论")
    cells = (
        (text(row.title, 60), text(row.champion), text(row.challenger), text(row.threshold), _unbroken(row.verdict))
        for row in rows
    )
    table = f"{markdown.table(head, cells)}\n\n" if rows else ""
    return table + _others(verdict, rows)


def _others(verdict: Verdict, rows: Sequence[Row]) -> str:
    """How many rules the table leaves out, by outcome."""
    left = Counter(rule.outcome for rule in verdict.rules)
    left.subtract(row.outcome for row in rows)
    parts = [f"{wording.OUTCOMES[outcome]} {left[outcome]} 条" for outcome in wording.URGENCY if left[outcome]]
    return f"未列出的门禁规则：{'，'.join(parts)}" if parts else ""


def _unbroken(words: str) -> str:
    """``words`` with signs between their letters that keep a narrow column from breaking them."""
    return "\u2060".join(words.replace(" ", "\u00a0"))


def _reasons(verdict: Verdict, count: int) -> str:
    if not verdict.reasons:
        return ""
    lines = [f"- {text(reason, _REASON_LONGEST)}" for reason in verdict.reasons[:count]]
    left = len(verdict.reasons) - len(lines)
    lines += [f"- 另有 {left} 条原因，见评测记录。"] if left else []
    return "**未通过的原因**\n\n" + "\n".join(lines)


def _sheet(verdict: Verdict, shown: Shown) -> str:
    if not shown.sheet_file:
        return ""
    counts = f"**变错 {shown.sheet.lost_total} 条，变对 {shown.sheet.won_total} 条**"
    picture = f"get-artifact?path={quote(shown.sheet_file)}&run_uuid={quote(verdict.run_id)}"
    return f"{counts}\n\n![变错和变对的坏例]({picture})"


def _names(shown: Shown, count: int) -> str:
    """The names that go with the numbers on the pictures, when those could not be lettered in Chinese."""
    if shown.names is None or not count:
        return ""
    lines = [
        (
            str(number),
            text(shown.names.right(one.case), 24),
            text(shown.names.chinese(one.champion.label_id), 24),
            text(shown.names.chinese(one.challenger.label_id), 24),
        )
        for number, one in enumerate(shown.sheet.shown[:count], 1)
    ]
    return markdown.table(("图号", "正确", "当前启用", "候选"), lines)
