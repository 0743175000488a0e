"""``wwts corrections``: import, list, retract."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wwts_ops.cli.console import out, settings, tables
from wwts_ops.errors import UnavailableError, WwtsError

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

    from wwts_ops.corrections import Imported
    from wwts_ops.storage import Store
    from wwts_ops.taxonomy import Taxonomy

app = typer.Typer(
    help="What people say of images: their answers are read by consumers within minutes, and teach the next model.",
    no_args_is_help=True,
)
_SHOWN_REFUSALS = 100
_HEADERS = ("number", "when", "who", "said", "labels", "before", "content", "image", "status", "source", "comment")


@app.command("import")
def import_corrections(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV, TSV, Parquet or XLSX with uri, image_id or content_sha256, and label_id or label_zh (further "
            "labels joined by | after the primary). Optionally kind (confirm, correct, wrong_unknown, reject_image, "
            "retract), comment, reason, shown_because, sampling_probability, answered_by, answered_at; of a new label, "
            "label_id and label_zh, and if wanted label_en, synonyms_zh, category_path"
        ),
    ],
    weak: Annotated[bool, typer.Option("--weak", help="old tags, which never override an answer")] = False,  # noqa: FBT002
) -> None:
    """Add what a file says; rows that cannot be used are listed, all others count. Again, it adds nothing.

    Exits 1 when the file cannot be read or every row was refused.
    """
    from wwts_ops import corrections
    from wwts_ops.provenance import user
    from wwts_ops.storage import Store

    found = settings()
    run = corrections.import_weak if weak else corrections.import_answers
    try:
        done = run(Store.of(found), found, source, user())
    except UnavailableError:
        raise
    except WwtsError as error:
        print(f"wwts: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    _print_import(done, source, "old tags" if weak else "answers")
    _print_namesakes(Store.of(found), done.labels_added)
    if done.added and not weak:
        out.print("Consumers read them once publish_tags has run: within minutes, or now by `wwts run publish_tags`.")
    raise typer.Exit(1 if done.refused and not done.added + done.unchanged else 0)


def _print_import(done: Imported, source: Path, noun: str) -> None:
    if done.ignored:
        out.print(f"Columns that mean nothing here: {', '.join(done.ignored)}", markup=False)
    if done.labels_added:
        out.print(f"New labels ({len(done.labels_added):,}): {', '.join(done.labels_added)}", markup=False)
    for refusal in done.refused[:_SHOWN_REFUSALS]:
        out.print(f"Row {refusal.line} refused: {refusal.reason}.", markup=False)
    if len(done.refused) > _SHOWN_REFUSALS:
        out.print(f"… and {len(done.refused) - _SHOWN_REFUSALS:,} more refused rows.")
    rows = f"{len(done.refused):,} row{'' if len(done.refused) == 1 else 's'} refused"
    out.print(f"{done.added:,} {noun} added, {done.unchanged:,} rows unchanged, {rows}.")
    if done.superseded:
        out.print(f"{done.superseded:,} of those unchanged were answered anew or taken back since, and stay so.")
    if done.refused:
        out.print(f"Mend the refused rows and import {source.name} again; the others stay as they are.", markup=False)


def _print_namesakes(store: Store, added: tuple[str, ...]) -> None:
    """Says which new labels are called what another one is called: two labels for one thing split every count."""
    from wwts_ops import taxonomy

    names = taxonomy.current(store) if added else None
    if names is None:
        return
    by_name: dict[str, list[str]] = {}
    for label in names.labels:
        if label.enabled:
            by_name.setdefault(label.label_zh, []).append(label.label_id)
    for label_id in added:
        name = names.by_id[label_id].label_zh
        others = [other for other in by_name.get(name, []) if other != label_id]
        if others:
            out.print(
                f"Note: {label_id} is called {name}, and so is {', '.join(others)}, which was there before. If they "
                "are one thing, switch one off (wwts taxonomy set) and leave label_id empty in the next file.",
                markup=False,
            )


@app.command("list")
def list_corrections(
    limit: Annotated[int, typer.Option(min=1, help="how many, newest first")] = 50,
) -> None:
    """Show the newest answers, and which of them count."""
    from wwts_ops import corrections, taxonomy
    from wwts_ops.storage import Store

    found = settings()
    table = corrections.frozen(found)
    in_force, weak = corrections.in_force(table), corrections.weak(table)
    names = taxonomy.current(Store.of(found)) or taxonomy.embedded(found.forced_review)
    shown = table.slice(max(table.num_rows - limit, 0)).to_pylist()[::-1]
    status = dict.fromkeys(in_force["number"].to_pylist(), "in force")
    status |= dict.fromkeys(weak["number"].to_pylist(), "old tag")
    status |= dict.fromkeys(table["retracts"].drop_null().to_pylist(), "taken back")
    tables().print(_table([_row(row, status, names, found.timezone) for row in shown]), soft_wrap=False)
    out.print(_counts(table, in_force, weak))


def _counts(table: pa.Table, in_force: pa.Table, weak: pa.Table) -> str:
    return (
        f"{table.num_rows:,} answers in all; in force of {in_force.num_rows:,} contents, "
        f"and old tags of {weak.num_rows:,} more."
    )


@app.command("retract")
def retract_corrections(
    contents: Annotated[
        list[str] | None, typer.Argument(help="contents as listed; their first six or more digits will do")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(help="image_id, instead of the content it shows")] = None,
    comment: Annotated[str, typer.Option(help="why; stays with it")] = "",
) -> None:
    """Take back the answer that counts of each content; the one before it counts again, or else the model's tag."""
    from wwts_ops import corrections
    from wwts_ops.provenance import user
    from wwts_ops.storage import Store

    found = settings()
    store = Store.of(found)
    wanted = [*(contents or []), *(corrections.content_of(store, found, one) for one in image or [])]
    if not wanted:
        raise WwtsError("Name contents as `wwts corrections list` shows them, or --image ID.")
    done = corrections.retract(found, wanted, user(), comment or None)
    out.print(f"{done.added:,} taken back{f', {done.unchanged:,} already were' if done.unchanged else ''}.")


def _table(rows: list[list[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Narrow terminals need the room of what is empty.
    filled = [place for place in range(len(_HEADERS)) if any(row[place] for row in rows)]
    for place in filled:
        table.add_column(_HEADERS[place], overflow="fold", no_wrap=_HEADERS[place] in ("number", "when", "content"))
    for row in rows:
        table.add_row(*(Text(row[place]) for place in filled))  # never markup, whatever a cell holds
    return table


def _row(row: dict[str, Any], status: dict[int, str], names: Taxonomy, timezone: str) -> list[str]:
    from zoneinfo import ZoneInfo

    of_retract = f"of {row['retracts']}" if row["retracts"] else ""
    return [
        str(row["number"]),
        f"{row['answered_at'].astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M}",
        row["answered_by"],
        row["kind"] + (f" ({row['reason']})" if row["reason"] else ""),
        _named(row["labels"], names),
        _named(row["labels_before"][:1], names),
        row["content_sha256"][:12],
        row["image_id"] or "",
        of_retract or status.get(row["number"], "superseded"),
        row["source"],
        row["comment"] or "",
    ]


def _named(label_ids: list[str], names: Taxonomy) -> str:
    known = names.by_id
    return "\n".join(f"{known[one].label_zh} {one}" if one in known else one for one in label_ids)
