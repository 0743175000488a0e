"""``wwts taxonomy``: export, import, set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wwts_ops.cli.console import out, settings
from wwts_ops.errors import WwtsError

if TYPE_CHECKING:
    from wwts_ops.taxonomy import Label

app = typer.Typer(help="Label names, categories and rules; every change is a new version.", no_args_is_help=True)


@app.command("export")
def export_taxonomy(target: Annotated[Path, typer.Argument(help="CSV file to write")] = Path("taxonomy.csv")) -> None:
    """Write all labels of the version in force as CSV that Chinese Excel opens."""
    from wwts_ops import taxonomy
    from wwts_ops.storage import Store

    found = settings()
    names = taxonomy.ensure(Store.of(found), found.forced_review)
    try:
        target.write_bytes(taxonomy.to_csv(names))
    except OSError as error:
        raise WwtsError(f"{target} cannot be written: {error.strerror}; name another file.") from error
    out.print(f"{names.version}: {len(names.labels):,} labels → {target}", markup=False)


@app.command("import")
def import_taxonomy(source: Annotated[Path, typer.Argument(help="CSV file as `export` writes it")]) -> None:
    """Put the labels of a CSV in force; labels it does not name stay, and so do flags that it leaves out."""
    from wwts_ops import taxonomy
    from wwts_ops.storage import Store

    if not source.is_file():
        raise WwtsError(f"{source} is no file.")
    found = settings()
    before = taxonomy.ensure(Store.of(found), found.forced_review).by_id
    labels = taxonomy.from_csv(source.read_bytes(), before)
    _edit({label.label_id: label for label in labels})


@app.command("set")
def set_label(
    label_id: Annotated[str, typer.Argument(help="such as imagenet:n07745940")],
    name: Annotated[str | None, typer.Option(help="new Chinese name")] = None,
    category: Annotated[str | None, typer.Option(help="new path, levels joined by ' > '")] = None,
    forced: Annotated[bool | None, typer.Option("--forced/--unforced", help="a person always looks")] = None,
    enabled: Annotated[bool | None, typer.Option("--on/--off", help="an off label is never given")] = None,
) -> None:
    """Rename, move, force or switch off one label."""
    from wwts_ops import taxonomy
    from wwts_ops.storage import Store

    found = settings()
    label = taxonomy.ensure(Store.of(found), found.forced_review).by_id.get(label_id)
    if label is None:
        raise WwtsError(f"There is no label {label_id!r}; see `wwts taxonomy export`.")
    given = {"label_zh": name, "category_path": category, "forced_review": forced, "enabled": enabled}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    _edit({label_id: replace(label, **changes)})


def _edit(changes: dict[str, Label]) -> None:
    from wwts_ops import taxonomy
    from wwts_ops.provenance import user
    from wwts_ops.storage import Store

    found = settings()
    store = Store.of(found)
    taxonomy.ensure(store, found.forced_review)
    after = taxonomy.edit(store, user(), changes)
    out.print(f"Taxonomy {after.version} is in force; the next run uses it.")
