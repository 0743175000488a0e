"""``wwts badcases``: import, list, retire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wwts_ops.cli.console import out, settings, tables
from wwts_ops.errors import WwtsError

if TYPE_CHECKING:
    from rich.table import Table

    from wwts_ops.badcases import BadCase, Snapshot
    from wwts_ops.settings import Settings
    from wwts_ops.storage import Store
    from wwts_ops.taxonomy import Taxonomy

app = typer.Typer(
    help="Curated pictures with their right labels, by which the gate judges a model; nothing is ever removed.",
    no_args_is_help=True,
)
_HEADERS = ("content", "accepted", "forbidden", "slices", "owner", "reason", "never_regress", "added", "retired")


@app.command("import")
def import_badcases(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV, TSV, Parquet or XLSX with uri, image_id or content_sha256, and label_id (several joined by |); "
            "optionally forbidden, slice, owner, reason, never_regress. Or a folder with one subfolder a label"
        ),
    ],
) -> None:
    """Add bad cases, all of a file or none; what is there already stays as it is."""
    from wwts_ops import badcases
    from wwts_ops.provenance import user
    from wwts_ops.storage import Store

    found = settings()
    done = badcases.import_cases(Store.of(found), found, source, user())
    if done.ignored:
        out.print(f"Columns that mean nothing here: {', '.join(done.ignored)}", markup=False)
    out.print(f"{done.added:,} added, {done.unchanged:,} unchanged.")
    out.print(f"Snapshot {done.snapshot.name} is in force, SHA-256 {done.snapshot.sha256}.")
    for told in _learned(found, done.snapshot):
        out.print(told, markup=False)


def _learned(current: Settings, snapshot: Snapshot) -> Iterator[str]:
    """Which version of those that would be judged next cannot be, since it has learned from a case."""
    from wwts_ops import lessons, registry

    try:
        others = [line for line in registry.versions(current) if line.sha256 and registry.CHAMPION not in line.aliases]
        for line in [line for line in others if line is others[0] or "challenger" in line.aliases]:
            model = registry.resolve(current, line.version)
            if cases := lessons.found(current, model, snapshot):
                yield (
                    f"{model} has learned from {len(cases):,} of them and can no longer be judged by these: "
                    f"{lessons.named(cases)}. The next version that retrain_head makes can."
                )
    except WwtsError as error:
        yield f"Whether a version has learned from them is not known: {error}"


@app.command("list")
def list_badcases(
    slice_: Annotated[str, typer.Option("--slice", help="only the cases of this slice")] = "",
    all_: Annotated[bool, typer.Option("--all", help="retired ones too")] = False,  # noqa: FBT002
) -> None:
    """Show the bad cases in force, and why each is one."""
    found = settings()
    _, names, snapshot = _in_force()
    cases = [case for case in (snapshot.cases if all_ else snapshot.active) if not slice_ or slice_ in case.slices]
    tables().print(_table([_row(case, names, found.timezone) for case in cases]), soft_wrap=False)
    curated = sum(not case.starter for case in snapshot.active)
    starter = len(snapshot.active) - curated
    retired = len(snapshot.cases) - len(snapshot.active)
    shown = f"{len(cases):,} shown; " if slice_ else ""
    out.print(
        f"{shown}in force: {curated:,} curated, {starter:,} starter; {retired:,} retired. Snapshot {snapshot.name}.",
        markup=False,
    )


@app.command("retire")
def retire_badcase(
    content_sha256: Annotated[str, typer.Argument(help="of the case; its first six or more digits will do")],
    reason: Annotated[str, typer.Option(help="why it is a case no longer; stays with it")],
) -> None:
    """Take one case out of force; it stays in the history."""
    from wwts_ops import badcases
    from wwts_ops.provenance import user

    store, _, _ = _in_force()
    snapshot = badcases.retire(store, user(), content_sha256, reason)
    out.print(f"Retired. Snapshot {snapshot.name} is in force with {len(snapshot.active):,} cases.")


def _in_force() -> tuple[Store, Taxonomy, Snapshot]:
    from wwts_ops import badcases, taxonomy
    from wwts_ops.storage import Store

    found = settings()
    store = Store.of(found)
    names = taxonomy.ensure(store, found.forced_review)
    return store, names, badcases.ensure(store, names)


def _table(rows: list[list[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Narrow terminals need the room of what is empty.
    filled = [place for place in range(len(_HEADERS)) if any(row[place] for row in rows)]
    for place in filled:
        table.add_column(_HEADERS[place], overflow="fold", no_wrap=_HEADERS[place] in ("content", "added"))
    for row in rows:
        table.add_row(*(Text(row[place]) for place in filled))  # never markup, whatever a cell holds
    return table


def _row(case: BadCase, names: Taxonomy, timezone: str) -> list[str]:
    from zoneinfo import ZoneInfo

    zone = ZoneInfo(timezone)
    retired = ""
    if case.retired_at is not None:
        retired = f"{case.retired_at.astimezone(zone):%Y-%m-%d} {case.retired_by}: {case.retired_reason}"
    return [
        case.content_sha256[:12],
        _named(case.accepted, names),
        _named(case.forbidden, names),
        ", ".join(case.slices),
        case.owner,
        case.reason,
        "yes" if case.never_regress else "",
        f"{case.added_at.astimezone(zone):%Y-%m-%d}",
        retired,
    ]


def _named(label_ids: tuple[str, ...], names: Taxonomy) -> str:
    known = names.by_id
    return "\n".join(f"{known[one].label_zh} {one}" if one in known else one for one in label_ids)
