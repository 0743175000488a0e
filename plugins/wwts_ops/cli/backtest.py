"""``wwts backtest``: the answers of the last weeks, replayed against a version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from wwts_ops.cli.console import out, settings

if TYPE_CHECKING:
    from wwts_ops.backtest import Backtest, Measures, Weighted

_NONE = "–"
_TITLES = {"all": "all answers", "learned": "  learned from", "not learned": "  not learned from"}


def backtest(
    version: Annotated[str, typer.Argument(help="number of the model version, or champion")],
    since: Annotated[str, typer.Option(help="how far back: hours, days or weeks, such as 12h, 30d or 4w")] = "30d",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, for machines")] = False,  # noqa: FBT002
) -> None:
    """Say how right a version is on what people answered lately, and what the champion says of the same answers.

    Computed from stored embeddings: no picture is read. Only answers in force that name a label count.
    """
    from wwts_ops import backtest as backtests
    from wwts_ops.registry import CHAMPION

    length = backtests.duration(since)
    found = backtests.run(settings(), None if version == CHAMPION else version, length)
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
        return
    _print(found, since)


def _print(found: Backtest, since: str) -> None:
    against = f", champion is version {found.champion}" if found.champion else ", which is champion"
    title = f"Version {found.version}{against}: {found.answers:,} answers of the last {since}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("answers", overflow="fold", min_width=13)
    table.add_column("version", no_wrap=True)
    for head in ("n", "accuracy", "95 %", "macro", "auto right", "coverage"):
        table.add_column(head, justify="right", no_wrap=True)
    part = ""
    for group in found.groups if found.answers else ():
        if group.of in ("kind", "category") and group.of != part:
            part = group.of
            table.add_section()
        name = _TITLES.get(group.of) or group.name or "(no category)"
        table.add_row(escape(name), found.version, *_cells(group.version))
        if group.champion is not None:
            table.add_row("", found.champion, *_cells(group.champion), style="dim")
    if not out.is_terminal:
        out.width = 10_000  # a row a line, for programs
    out.print(table)
    for line in _notes(found):
        out.print(line, markup=False)


def _cells(found: Measures) -> tuple[str, ...]:
    interval = _NONE if found.interval is None else "{:.0f}–{:.0f} %".format(*(100 * end for end in found.interval))
    shares = (found.macro, found.auto_precision, found.coverage)
    return (f"{found.n:,}", _percent(found.accuracy), interval, *map(_percent, shares))


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _notes(found: Backtest) -> list[str]:
    if not found.answers:
        return ["No answer in force that names a label was given in that time; try a longer --since."]
    return [*_weights(found), *_against(found), *_gaps(found)]


def _weights(found: Backtest) -> Iterator[str]:
    if found.weighted is None:
        yield "Not weighted: of none of these answers is it known how likely its image was shown."
        return
    yield f"Weighted by 1 / sampling probability, version {found.version}: {_told(found.weighted)}"
    if found.champion_weighted:
        yield f"The same for version {found.champion}: {_told(found.champion_weighted)}"


def _against(found: Backtest) -> Iterator[str]:
    if found.gained is not None:
        yield f"Against the champion, {found.gained:,} answers become right and {found.lost:,} wrong."


def _gaps(found: Backtest) -> Iterator[str]:
    missing = {found.version: found.without_embedding, found.champion: found.champion_without_embedding}
    for version, count in missing.items():
        if count:
            yield f"Left out for version {version}: {count:,} answers without a stored embedding."
    unknown = found.groups[0].version.unknown
    if unknown:
        yield f"Of these, {unknown:,} name labels that version {found.version} does not know."
    if found.learned is None:
        yield "Which of these answers the version has learned from is not known; on those it looks too good."
    elif found.learned:
        yield f"The version has learned from {found.learned:,} of these answers; judge it by the others."


def _told(found: Weighted) -> str:
    shares = (found.accuracy, found.auto_precision, found.coverage)
    accuracy, precision, coverage = map(_percent, shares)
    return (
        f"accuracy {accuracy}, auto precision {precision}, coverage {coverage} "
        f"({found.n:,} answers, worth {found.effective:,.0f})."
    )
