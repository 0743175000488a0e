"""``wwts models``: list."""

from __future__ import annotations

import typer
from rich.table import Table

from wwts_ops.cli.console import out, settings

app = typer.Typer(help="Versions in the MLflow registry.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """List the versions of the registered model, newest first."""
    from wwts_ops import registry

    found = settings()
    table = Table("version", "aliases", "backbone", "model_sha256", "registered", title=found.model_name)
    for entry in registry.versions(found):
        aliases = ", ".join(entry.aliases)
        table.add_row(entry.version, aliases, entry.backbone_sha256[:12], entry.sha256[:12], entry.registered)
    out.print(table)
