"""``wwts taxonomy``: look at labels and versions, change them one by one or by spreadsheet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wwts_ops.cli.console import out, settings, tables
from wwts_ops.errors import WwtsError

if TYPE_CHECKING:
    from wwts_ops.settings import Settings
    from wwts_ops.storage import Store
    from wwts_ops.taxonomy import Label, Taxonomy
    from wwts_ops.taxonomy_changes import Applied, Change, Difference, Edit

app = typer.Typer(help="Label names, categories and rules; every change is a new version.", no_args_is_help=True)
_SHOWN = 50
_NONE = "none"

_LabelId = Annotated[str, typer.Argument(help="such as imagenet:n07745940")]
_LabelIds = Annotated[list[str], typer.Argument(help="one or more label ids")]
_Category = Annotated[str, typer.Option(help="path, levels joined by ' > '")]


@app.command("list")
def list_labels(
    text: Annotated[str, typer.Argument(help="part of a name, synonym, id or category; default: all")] = "",
    count: Annotated[int, typer.Option(min=1, help="labels shown at most")] = _SHOWN,
) -> None:
    """Labels with their categories and rules, those that are off too."""
    _, _, names = _in_force()
    found = [label for label in names.labels if _matches(label, text.casefold())]
    _print_table(
        ("label", "name", "English", "synonyms", "category", "rules"), (_row(names, one) for one in found[:count])
    )
    more = f", {count:,} shown" if len(found) > count else ""
    out.print(f"{names.version}: {len(found):,} of {len(names.labels):,} labels{more}.", markup=False)


@app.command("show")
def show_label(label_id: _LabelId) -> None:
    """Everything about one label."""
    _, _, names = _in_force()
    label = _label(names, label_id)
    about = {**vars(label), "a person looks": names.forced_reason(label_id) or "", "taxonomy": names.version}
    about["mapped to it"] = ", ".join(one.label_id for one in names.labels if one.maps_to == label_id)
    _print_table(("", label.label_zh), ([key, str(value)] for key, value in about.items() if value != ""))


@app.command("add")
def add_label(
    name: Annotated[str, typer.Argument(help="Chinese name")],
    category: _Category,
    label_id: Annotated[str, typer.Option("--id", help="default: made of the name")] = "",
    english: Annotated[str, typer.Option(help="English name")] = "",
    synonyms: Annotated[str, typer.Option(help="joined by '|'")] = "",
    forced: Annotated[bool, typer.Option("--forced", help="a person always looks")] = False,  # noqa: FBT002
) -> None:
    """Add a label."""
    from wwts_ops.taxonomy_changes import Add

    label = Add(
        label_id=label_id,
        label_zh=name,
        label_en=english,
        synonyms_zh=synonyms,
        category_path=category,
        forced_review=forced,
    )
    _apply([label])


@app.command("set")
def set_label(
    label_id: _LabelId,
    name: Annotated[str | None, typer.Option(help="new Chinese name")] = None,
    synonyms: Annotated[str | None, typer.Option(help="all of them, joined by '|'")] = None,
    category: Annotated[str | None, typer.Option(help="new path, levels joined by ' > '")] = None,
    forced: Annotated[bool | None, typer.Option("--forced/--unforced", help="a person always looks")] = None,
    enabled: Annotated[bool | None, typer.Option("--on/--off", help="an off label is never given")] = None,
) -> None:
    """Rename, move, force or switch off one label."""
    from wwts_ops.taxonomy_changes import Enable, Force, Move, Rename, Synonyms

    changes: list[Change] = []
    if name is not None:
        changes.append(Rename(label_id=label_id, label_zh=name))
    if synonyms is not None:
        changes.append(Synonyms(label_id=label_id, synonyms_zh=synonyms))
    if category is not None:
        changes.append(Move(label_ids=(label_id,), category_path=category))
    if forced is not None:
        changes.append(Force(label_ids=(label_id,), forced_review=forced))
    if enabled is not None:
        changes.append(Enable(label_ids=(label_id,), enabled=enabled))
    _apply(changes)


@app.command("move")
def move_labels(label_ids: _LabelIds, to: Annotated[str, typer.Option(help="path of the category")]) -> None:
    """Move labels into a category."""
    from wwts_ops.taxonomy_changes import Move

    _apply([Move(label_ids=tuple(label_ids), category_path=to)])


@app.command("move-category")
def move_category(
    category: Annotated[str, typer.Argument(help="its path")],
    to: Annotated[str, typer.Option(help="its path from now on")],
) -> None:
    """Rename a category, or move it with all below it; forced ones stay forced."""
    from wwts_ops.taxonomy_changes import MoveCategory

    _apply([MoveCategory(category_path=category, to=to)])


@app.command("merge")
def merge_labels(label_ids: _LabelIds, into: Annotated[str, typer.Option(help="label id that stays")]) -> None:
    """Merge labels into one: they are switched off, what got them gets it, their names become its synonyms."""
    from wwts_ops.taxonomy_changes import Merge

    _apply([Merge(label_ids=tuple(label_ids), into=into)])


@app.command("map")
def map_label(
    label_id: _LabelId, to: Annotated[str, typer.Option(help=f"label id that is given instead; '{_NONE}': itself")]
) -> None:
    """Let what gets one label get another."""
    from wwts_ops.taxonomy_changes import Map

    _apply([Map(label_id=label_id, maps_to="" if to == _NONE else to)])


@app.command("force-category")
def force_category(
    category: Annotated[str, typer.Argument(help="its path")],
    forced: Annotated[bool, typer.Option("--forced/--unforced", help="a person always looks")] = True,  # noqa: FBT002
) -> None:
    """Say whether a person always looks at labels of a category."""
    from wwts_ops.taxonomy_changes import ForceCategory

    _apply([ForceCategory(category_path=category, forced_review=forced)])


@app.command("history")
def print_history(count: Annotated[int, typer.Option(min=1, help="versions shown at most")] = _SHOWN) -> None:
    """Who changed the labels, when, and how much, newest first."""
    from zoneinfo import ZoneInfo

    from wwts_ops import taxonomy_changes

    found, store, _ = _in_force()
    zone = ZoneInfo(found.timezone)
    rows = (
        [
            one.version,
            f"{one.made_at.astimezone(zone):%Y-%m-%d %H:%M}",
            one.author,
            f"{one.labels:,}",
            ", ".join(f"{field} {number:,}" for field, number in one.counts.items()),
        ]
        for one in taxonomy_changes.history(store, count)
    )
    _print_table(("version", "when", "who", "labels", "changes"), rows)


@app.command("diff")
def print_diff(
    before: Annotated[str, typer.Argument(help="version; default: the one before the one in force")] = "",
    after: Annotated[str, typer.Argument(help="version; default: the one in force")] = "",
) -> None:
    """What changed from one version to another."""
    from wwts_ops import taxonomy_changes

    _, store, names = _in_force()
    if not before:
        versions = taxonomy_changes.history(store, 2)
        if len(versions) < 2:
            raise WwtsError("There is one version only; nothing has changed yet.")
        before = versions[1].version
    now = _version(store, after) if after else names
    _print_differences(taxonomy_changes.diff(_version(store, before), now))


@app.command("export")
def export_taxonomy(
    target: Annotated[Path, typer.Argument(help=".csv or .xlsx file to write")] = Path("taxonomy.csv"),
) -> None:
    """Write all labels of the version in force as a spreadsheet that Chinese Excel opens."""
    from wwts_ops.taxonomy_changes import labelsheet

    _, _, names = _in_force()
    suffix = target.suffix.lower()
    if suffix not in labelsheet.SUFFIXES:
        raise WwtsError(f"{target} ends in neither of {', '.join(labelsheet.SUFFIXES)}; name another file.")
    data = labelsheet.to_xlsx(names) if suffix == ".xlsx" else labelsheet.to_csv(names)
    try:
        target.write_bytes(data)
    except OSError as error:
        raise WwtsError(f"{target} cannot be written: {error.strerror}; name another file.") from error
    out.print(f"{names.version}: {len(names.labels):,} labels → {target}", markup=False)


@app.command("import")
def import_taxonomy(
    source: Annotated[Path, typer.Argument(help=".csv or .xlsx file as `export` writes it")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would change")] = False,  # noqa: FBT002
) -> None:
    """Put the labels of a file in force; labels it does not name stay, and so do rules that it leaves empty.

    In maps_to, 'none' takes a mapping away.
    """
    from wwts_ops import taxonomy_changes

    try:
        data = source.read_bytes()
    except OSError as error:
        raise WwtsError(f"{source} cannot be read: {error.strerror}.") from error
    _, store, _ = _in_force()
    with _in_english():
        edit = taxonomy_changes.labelsheet.edit(data, str(source))
        if not dry_run:
            _write(edit)
            return
        found = taxonomy_changes.preview(store, None, edit)
    _print_differences(found.differences)


def _in_force() -> tuple[Settings, Store, Taxonomy]:
    from wwts_ops import taxonomy
    from wwts_ops.storage import Store

    found = settings()
    store = Store.of(found)
    return found, store, taxonomy.ensure(store, found.forced_review)


def _apply(changes: Sequence[Change]) -> None:
    from wwts_ops import taxonomy_changes

    _write(taxonomy_changes.by(changes))


def _write(edit: Edit) -> None:
    from wwts_ops import taxonomy_changes
    from wwts_ops.provenance import user

    found, store, _ = _in_force()
    with _in_english():
        done: Applied = taxonomy_changes.write(store, found, user(), None, edit)
    _print_differences(done.differences)
    out.print(f"Taxonomy {done.after.version} is in force; the next run uses it.", markup=False)
    out.print("`wwts run retag_catalog` brings what is tagged already up to date.")


@contextmanager
def _in_english() -> Iterator[None]:
    """What the page says in Chinese."""
    from wwts_ops.taxonomy_changes import FaultError

    try:
        yield
    except FaultError as error:
        raise WwtsError(error.english) from error


def _version(store: Store, version: str) -> Taxonomy:
    from wwts_ops import taxonomy

    try:
        return taxonomy.read(store, version)
    except FileNotFoundError:
        raise WwtsError(f"There is no version {version!r}; see `wwts taxonomy history`.") from None


def _label(names: Taxonomy, label_id: str) -> Label:
    label = names.by_id.get(label_id)
    if label is None:
        raise WwtsError(f"There is no label {label_id!r}; see `wwts taxonomy list`.")
    return label


def _matches(label: Label, text: str) -> bool:
    texts = (label.label_id, label.label_zh, label.label_en, label.synonyms_zh, label.category_path)
    return any(text in one.casefold() for one in texts)


def _row(names: Taxonomy, label: Label) -> list[str]:
    rules = ["forced"] * bool(names.forced_reason(label.label_id)) + ["off"] * (not label.enabled)
    if label.maps_to:
        rules.append(f"→ {label.maps_to}")
    texts = (label.label_id, label.label_zh, label.label_en, label.synonyms_zh, label.category_path)
    return [*texts, ", ".join(rules)]


def _print_differences(found: Sequence[Difference]) -> None:
    rows = ([one.label_id, one.label_zh, one.field, one.before, one.after] for one in found[:_SHOWN])
    _print_table(("label", "name", "what", "before", "after"), rows)
    if len(found) > _SHOWN:
        out.print(f"… and {len(found) - _SHOWN:,} more changes; see `wwts taxonomy export`.")
    out.print(f"{len(found):,} change{'' if len(found) == 1 else 's'}.")


def _print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # never markup, whatever a cell holds
    if table.row_count:
        tables().print(table)
