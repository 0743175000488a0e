"""``wwts models``: list, import, register, history."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer
from rich.table import Table

from wwts_ops.cli.console import out, settings

if TYPE_CHECKING:
    from wwts_ops import checkpoint
    from wwts_ops.settings import Settings

app = typer.Typer(help="Versions in the MLflow registry.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """List the versions of the registered model, newest first."""
    from rich.markup import escape

    from wwts_ops import registry

    found = settings()
    lines = registry.versions(found)
    if not lines:
        out.print(f"No version of {found.model_name} is registered yet; the first night or `wwts init` does it.")
        return
    names = registry.backbone_names(found)
    table = Table("version", "aliases", "gate", "backbone", "model_sha256", "registered", title=found.model_name)
    for entry in lines:
        backbone = escape(f"{names.get(entry.backbone_sha256, '')} {entry.backbone_sha256[:8]}".strip())
        when = _shown(datetime.fromisoformat(entry.registered), found)
        table.add_row(entry.version, ", ".join(entry.aliases), entry.gate, backbone, entry.sha256[:12], when)
    out.print(table)


def _shown(moment: datetime, current: Settings) -> str:
    """In the shop's time zone, to the minute."""
    return f"{moment.astimezone(ZoneInfo(current.timezone)):%Y-%m-%d %H:%M}"


@app.command("import")
def import_model(  # noqa: PLR0913, PLR0917 (one a command-line option)
    arch: Annotated[str, typer.Option(help="architecture, by its name there, such as resnet50")],
    weights: Annotated[Path, typer.Option(help=".pth or .safetensors: a state dict, never code")],
    labels: Annotated[Path, typer.Option(help="a label a line, in the order of training; or id<TAB>name; or CSV")],
    family: Annotated[str, typer.Option(help="where the architecture comes from")] = "torchvision",
    namespace: Annotated[
        str | None, typer.Option(help="before the colon of label ids; default: the labels file's name")
    ] = None,
    threshold: Annotated[float, typer.Option(help="score from which the model is sure, 0 to 1")] = 0.6,
    short_side: Annotated[
        int | None, typer.Option(help="pixels a picture's short side is resized to; default: the architecture's own")
    ] = None,
    input_side: Annotated[
        int | None, typer.Option("--input", help="pixels of the centred square; default: the architecture's own")
    ] = None,
    resize: Annotated[str | None, typer.Option(help="bilinear or bicubic; default: the architecture's own")] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            help="imagenet (mean and deviation of ImageNet), half (-1 to 1; also GoogLeNet and Inception trained on "
            "from torchvision's weights), none (0 to 1); default: the architecture's own"
        ),
    ] = None,
) -> None:
    """Register a checkpoint of yours: any classification architecture of torchvision.

    Weights and labels that do not fit are refused together, before anything is written. The new version is not in use:
    it goes through the gate first.

    Example: wwts models import --arch resnet50 --weights wwts_model.pth --labels labels_zh.txt
    """
    from wwts_ops import checkpoint, registry

    current = settings()
    given = (family, arch, weights, labels, namespace, threshold, short_side, input_side, resize, normalize)
    with checkpoint.prepared(current, checkpoint.Request(*given)) as ready:
        for note in (*ready.notes, *_namesakes(current, ready)):
            out.print(note, markup=False)
        # In an empty registry the embedded default comes first: the gate compares with a champion.
        registry.ensure_champion(current)
        found = checkpoint.register(current, ready)
    new = f"{found.new_labels:,} of them new in taxonomy {found.taxonomy}" if found.new_labels else "all known"
    out.print(
        f"{found.model.name} version {found.model.version} {'was registered before' if found.existed else 'is new'}: "
        f"{ready.tagger.recipe.backbone}, {len(ready.labels):,} labels ({new}), model {found.model.sha256[:12]}.",
        markup=False,
    )
    conf = json.dumps({"version": found.model.version})
    out.print(f"It is not in use. Have it judged next:\n  wwts run evaluate_model --conf '{conf}'", markup=False)


@app.command("register")
def register_model(
    backbone: Annotated[
        str | None,
        typer.Argument(
            help="such as efficientnet-lite2, or lite:lite2@320+lite0@224+flip: networks and the sides in pixels at "
            "which they look, mirrored too; default: WWTS_BACKBONE"
        ),
    ] = None,
) -> None:
    """Register a backbone that comes with its weights as a new version: a stronger one, or the same with new code.

    The new version is not in use: it goes through the gate first. Promoting another backbone means embedding the
    whole catalog again.

    Example: wwts models register efficientnet-lite2
    """
    from wwts_ops import registration, registry

    current = settings()
    # In an empty registry the embedded default comes first: the gate compares with a champion.
    champion = registry.ensure_champion(current)
    found = registration.register_backbone(current, backbone)
    out.print(
        f"{found.model} {'was registered before, with this code' if found.existed else 'is new'}: "
        f"{found.tagger.recipe.backbone}, {len(found.tagger.label_ids):,} labels, model {found.model.sha256[:12]}.",
        markup=False,
    )
    if found.model.version == champion.version:
        out.print("It is the champion.")
        return
    conf = json.dumps({"version": found.model.version})
    out.print(f"It is not in use. Have it judged next:\n  wwts run evaluate_model --conf '{conf}'", markup=False)


def _namesakes(current: Settings, ready: checkpoint.Prepared) -> list[str]:
    """Bad cases and answers go by ids: a label of the same name under another id is another label."""
    from wwts_ops import taxonomy
    from wwts_ops.storage import Store

    names = taxonomy.current(Store.of(current))
    known = {label.label_zh: label.label_id for label in names.labels} if names else {}
    ours = {label.label_id for label in ready.labels}
    others = [label for label in ready.labels if known.get(label.label_zh, label.label_id) not in ours]
    if not others:
        return []
    first = others[0]
    return [
        f"{len(others):,} names exist already under other ids ({first.label_zh}: {known[first.label_zh]}, here "
        f"{first.label_id}). Where the same thing is meant, import with lines `id<TAB>name`: bad cases go by ids."
    ]


@app.command("history")
def show_history(
    from_mlflow: Annotated[  # noqa: FBT002 (a command-line option)
        bool, typer.Option("--from-mlflow", help="rebuild it from MLflow's tags, without our database")
    ] = False,
) -> None:
    """Show who or what moved which alias from which version to which, newest first."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape

    from wwts_ops import promotion

    current = settings()
    moves = promotion.history_from_tags(current) if from_mlflow else promotion.history(current)
    if not moves:
        out.print(f"No alias of {current.model_name} was moved yet.", markup=False)
        return
    table = Table(title=current.model_name, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in ("no.", "time", "alias", "from → to", "action"):
        table.add_column(name, no_wrap=True)
    for name in ("actor", "evidence"):
        table.add_column(name, overflow="fold")
    for move in reversed(moves):
        versions = f"{move.from_version or '–'} → {move.to_version or '–'}"
        cells = (
            _shown(move.moved_at, current),
            move.alias,
            versions,
            move.action,
            move.actor,
            promotion.in_short(move),
        )
        table.add_row(str(move.number), *map(escape, cells))
    if not out.is_terminal:
        out.width = 10_000  # a move a line, for programs
    out.print(table)
