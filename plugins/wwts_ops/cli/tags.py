"""``wwts tags``: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wwts_ops.cli.console import out, settings

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
