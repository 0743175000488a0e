"""The report of one evaluation: a self-contained HTML page in Chinese, kept with its run in MLflow.

As the daily page it asks nobody for anything: styles and pictures are inside it, it runs no script, and its
Content-Security-Policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import jinja2

from eval import figures, markdown, wording
from eval.measures import TITLES
from eval.reports import NEW_LABELS, OLD_LABELS, OVERALL

if TYPE_CHECKING:
    from eval.comparison import Confusion, Names, Sheet
    from eval.reports import AccuracyReport, CaseResult, Reports
    from wwts_ops.verdict import Verdict

#: Mistakes that the page lists; the CSV file beside it has them all.
_CONFUSIONS = 30


@dataclass(frozen=True)
class Facts:
    """Everything that the page says; ``made_at`` in the shop's time zone."""

    verdict: Verdict
    reports: Reports
    sheet: Sheet
    confusions: tuple[Confusion, ...]
    names: Names
    made_at: datetime


@dataclass(frozen=True)
class Group:
    """A group's line of the table of measures, as texts."""

    title: str
    cases: int
    champion: tuple[str, ...]
    challenger: tuple[str, ...]
    paired: str


def render(facts: Facts, thumbnails: Mapping[str, bytes], charts: Mapping[str, bytes]) -> str:
    """The page: one HTML document that loads nothing.

    Args:
        facts: what it says.
        thumbnails: JPEGs by content.
        charts: PNGs by name: ``latency``, ``reliability``, ``confusions``; what is absent is left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": markdown.shown, "data_uri": _data_uri, "csp_hash": _csp_hash, "sure": _sure}
    return environment.get_template("evaluation.html.j2").render(
        facts=facts,
        verdict=facts.verdict,
        rows=wording.rows(facts.verdict.rules, facts.reports),
        groups=_groups(facts.reports.accuracy),
        measures=tuple(TITLES.values()),
        confusions=facts.confusions[:_CONFUSIONS],
        mode=wording.MODES[facts.verdict.mode],
        thumbnails=thumbnails,
        charts=charts,
    )


def _groups(accuracy: AccuracyReport | None) -> list[Group]:
    if accuracy is None:
        return []
    first = (OVERALL, OLD_LABELS, NEW_LABELS)
    names = [*first, *sorted(accuracy.groups.keys() - set(first))]
    return [_group(accuracy, name) for name in names if name in accuracy.groups]


def _group(accuracy: AccuracyReport, name: str) -> Group:
    paired = accuracy.paired.get(name)
    told = wording.NONE
    if paired is not None and paired.n:
        # In a narrow column "p = 0.508" stays on one line.
        chance = "" if paired.p_value is None else f"，{figures.chance(paired.p_value).replace(' ', chr(0xA0))}"
        told = f"变对 {paired.wins} 条，变错 {paired.losses} 条{chance}"
    champion, challenger = (_estimates(report.get(name)) for report in (accuracy.champion, accuracy.challenger))
    return Group(wording.group_title(name), accuracy.groups[name], champion, challenger, told)


def _estimates(metrics: object) -> tuple[str, ...]:
    return tuple(wording.percent(getattr(metrics, measure, None)) for measure in TITLES)


def _sure(result: CaseResult) -> str:
    """A confidence in percent, rounded down as in the daily page."""
    return "" if result.confidence is None else f"{int(result.confidence * 1000 + 3e-5) / 10:.1f}%"


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _csp_hash(css: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()}"
