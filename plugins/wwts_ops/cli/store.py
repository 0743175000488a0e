"""``wwts store``: prune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from wwts_ops.cli.console import out, settings, tables

if TYPE_CHECKING:
    from wwts_ops.prune import Item

app = typer.Typer(help="The store: what lies in it and how long.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A group stays one with a single command in it."""


@app.command("prune")
def prune_store(
    keep_days: Annotated[
        int | None, typer.Option(min=1, help="days for which everything is kept; default: WWTS_KEEP_DAYS")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="delete it; otherwise it is only shown")] = False,  # noqa: FBT002
) -> None:
    """Show what the store no longer needs, and delete it when told to.

    What consumers read, embeddings of registered versions, answers, bad cases, taxonomies, tags and runs always stay.
    Items of the review page that were settled go with the rest; the answers to them stay.
    """
    from wwts_ops import prune

    current = settings()
    days = keep_days or current.keep_days
    found = prune.survey(current, days)
    looked_at = prune.survey_looked_at(current, days)
    if not found and not looked_at:
        out.print(f"There is nothing to delete in {current.store}; everything is kept for {days} days.", markup=False)
        return
    tables().print(_table(found, looked_at))
    if not yes:
        out.print("Nothing was deleted. To delete it: wwts store prune --yes" + _days(keep_days))
        return
    removed = prune.remove(current, found, days)
    files = sum(len(item.files) for item in removed)
    out.print(f"{files:,} files were deleted, {decimal(sum(item.size for item in removed))}.")
    if looked_at:
        out.print(f"{prune.forget_looked_at(current, days):,} settled review items were deleted.")


def _days(keep_days: int | None) -> str:
    return "" if keep_days is None else f" --keep-days {keep_days}"


def _table(found: Sequence[Item], looked_at: int) -> Table:
    table = Table("kind", "how many", "files", "size", "why")
    for kind, reason in dict.fromkeys((item.kind, item.reason) for item in found):
        those = [item for item in found if (item.kind, item.reason) == (kind, reason)]
        files = sum(len(item.files) for item in those)
        many = files if kind == "thumbnails" else len(those)
        table.add_row(kind, f"{many:,}", f"{files:,}", decimal(sum(item.size for item in those)), reason)
    if looked_at:
        table.add_row("review items", f"{looked_at:,}", "", "", "they were settled; the answers to them stay")
    return table
