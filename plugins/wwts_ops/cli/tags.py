"""``wwts tags``: export, snapshots, restore."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from rich.table import Table

from wwts_ops.cli.console import out, settings, tables

app = typer.Typer(help="What is published.", no_args_is_help=True)


@app.command("export")
def export_tags(
    target: Annotated[
        Path, typer.Argument(help="file to write: .xlsx for Excel; .csv or .parquet for programs")
    ] = Path("tags.csv"),
) -> None:
    """Write the current snapshot to one file."""
    from wwts_ops import published
    from wwts_ops.storage import Store

    rows = published.export(Store.of(settings()), target)
    out.print(f"{rows:,} rows → {target}", markup=False)


@app.command("snapshots")
def list_snapshots() -> None:
    """List the snapshots that are still there, newest last; consumers read the one with the arrow."""
    from wwts_ops import published
    from wwts_ops.storage import Store

    found = settings()
    store, zone = Store.of(found), ZoneInfo(found.timezone)
    pointer = published.current(store)
    current = None if pointer is None else pointer.value["snapshot"]
    numbers = ("rows", "live", "pending", "answered")
    table = Table()
    for header in ("", "snapshot", f"published ({found.timezone})", *numbers, "model version", "taxonomy", "retag"):
        table.add_column(header, overflow="fold", no_wrap=header == "snapshot")  # to be copied whole
    for one in published.snapshots(store):
        at = datetime.fromisoformat(one["published_at"]).astimezone(zone)
        table.add_row(
            "→" if one["snapshot"] == current else "",
            one["snapshot"],
            f"{at:%Y-%m-%d %H:%M}",
            *(f"{one.get(name, 0):,}" for name in numbers),
            ", ".join(sorted(one.get("model_versions") or [one["model_version"]], key=str)),
            one["taxonomy_version"],
            one.get("retag") or "",
        )
    tables().print(table)


@app.command("restore")
def restore_tags(snapshot: Annotated[str, typer.Argument(help="as `wwts tags snapshots` names it")]) -> None:
    """Let consumers read the tags of an earlier snapshot again; answers and nights since then stay on top of them."""
    from wwts_ops import publish
    from wwts_ops.storage import Store

    found = settings()
    value = publish.restore(Store.of(found), found, snapshot)
    if value["snapshot"] == snapshot:
        out.print(f"Consumers read {snapshot} again.", markup=False)
        return
    out.print(
        f"Consumers read {value['snapshot']}: what the model said in {snapshot}, with what came since then on top.",
        markup=False,
    )
