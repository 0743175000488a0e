"""The ``wwts`` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wwts_ops.cli import backtest, badcases, corrections, models, store, tags, taxonomy
from wwts_ops.cli.console import out, settings
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings

if TYPE_CHECKING:
    from wwts_ops.recognition import Recognition, Recognizer

app = typer.Typer(
    help="Operate image tagging: run DAGs, start servers, look at pictures. Settings come from WWTS_* variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tags.app, name="tags")
app.add_typer(taxonomy.app, name="taxonomy")
app.add_typer(models.app, name="models")
app.add_typer(badcases.app, name="badcases")
app.add_typer(corrections.app, name="corrections")
app.add_typer(store.app, name="store")
app.command("backtest")(backtest.backtest)

#: Why a picture named on the command line cannot be opened.
_UNOPENED: dict[type[OSError], str] = {
    FileNotFoundError: "没有这个文件",
    IsADirectoryError: "这是文件夹，不是图片",
    PermissionError: "没有读取权限",
}


def main() -> None:
    """Entry point: a failure that a person can mend is one sentence and exit code 2, never a traceback."""
    try:
        app()
    except WwtsError as error:
        print(f"wwts: {error}", file=sys.stderr)
        sys.exit(2)


@app.command("run")
def run_dag(
    dag_id: Annotated[str, typer.Argument(help="such as tag_catalog")],
    conf: Annotated[str, typer.Option(help="the form's values, as a JSON object")] = "{}",
) -> None:
    """Run one DAG in one process, without any server; exits non-zero when it fails."""
    from wwts_ops import dagrun

    try:
        values = json.loads(conf)
    except ValueError as error:
        raise WwtsError(f"--conf is no JSON ({error}); write it like '{{\"limit\": 100}}'.") from error
    if not isinstance(values, dict):
        raise WwtsError("--conf must be a JSON object; write it like '{\"limit\": 100}'.")
    raise typer.Exit(dagrun.run(settings(), dag_id, values))


@app.command()
def up(
    port: Annotated[int, typer.Option(help="of the Airflow page")] = 8080,
    mlflow_port: Annotated[int, typer.Option(help="of the MLflow page")] = 5000,
) -> None:
    """Start Airflow and MLflow on this machine; Ctrl-C stops all of it."""
    from wwts_ops import servers

    raise typer.Exit(servers.up(settings(), port, mlflow_port))


@app.command()
def init() -> None:
    """Prepare the store, the database, the model registry and Airflow's pool; what exists is left as it is."""
    from wwts_ops import badcases, database, registry, servers, taxonomy
    from wwts_ops.storage import Store

    found = settings()
    names = taxonomy.ensure(Store.of(found), found.forced_review)
    out.print(f"Taxonomy {names.version} is in force.")
    cases = badcases.ensure(Store.of(found), names)
    out.print(f"Bad cases {cases.name} are in force ({len(cases.active)} cases).")
    database.upgrade(found)
    out.print("The database's tables are up to date.")
    model = registry.ensure_champion(found)
    out.print(f"Model {model.name} version {model.version} is champion.")
    created = servers.init_airflow(found)
    out.print(f"Airflow pool {found.pool} {'was created' if created else 'exists'}.")


@app.command()
def doctor() -> None:
    """Say what is set, what is reachable and what is missing; exits 1 when something must be mended."""
    from wwts_ops import doctor as doctor_module

    raise typer.Exit(doctor_module.run(settings()))


@app.command()
def demo(
    catalog: Annotated[str, typer.Option(help="a folder or manifest of your own")] = "",
    folder: Annotated[Path, typer.Option(help="where the demo keeps everything")] = Path(".wwts/demo"),
) -> None:
    """Tag photographs that installed packages carry, or a catalog of yours, and show where the results are."""
    from wwts_ops import demo as demo_module

    raise typer.Exit(demo_module.run(catalog, folder))


@app.command()
def recognize(
    images: Annotated[list[Path], typer.Argument(help="picture files")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line, for machines")] = False,  # noqa: FBT002
) -> None:
    """Print what is in pictures: the main object and the top labels, in Chinese."""
    from wwts_ops.images import REASONS, Rejected

    current = settings()
    look = _recognizer(current)
    failed = False
    for path in images:
        try:
            found = look(_picture(path, current.max_image_bytes))
        except (OSError, Rejected) as error:
            failed = True
            reason = REASONS[error.reason] if isinstance(error, Rejected) else _unopened(error)
            _print_failure(path, reason, as_json)
            continue
        _print_recognition(path, found, as_json)
    raise typer.Exit(1 if failed else 0)


def _unopened(error: OSError) -> str:
    return _UNOPENED.get(type(error)) or error.strerror or str(error)


def _picture(path: Path, limit: int) -> bytes:
    from wwts_ops.images import Rejected

    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Rejected("too_large", f"more than {limit:,} bytes")
    return data


def _recognizer(found: Settings) -> Recognizer:
    from wwts_ops import registration, registry, taxonomy
    from wwts_ops.recognition import Recognizer
    from wwts_ops.storage import Store

    model = registry.champion(found) if registry.exists(found) else None
    tagger = registry.fetch(found, model) if model else registration.embedded(found)
    names = taxonomy.current(Store.of(found)) or taxonomy.embedded(found.forced_review)
    return Recognizer(tagger, names, found.device, found.top_k, found.max_pixels)


def _print_failure(path: Path, reason: str, as_json: bool) -> None:  # noqa: FBT001
    if as_json:
        print(json.dumps({"image": str(path), "error": reason}, ensure_ascii=False))
    else:
        print(f"{path}：无法识别（{reason}）", file=sys.stderr)


def _print_recognition(path: Path, found: Recognition, as_json: bool) -> None:  # noqa: FBT001
    decision = found.decision
    if as_json:
        tags = [vars(tag) for tag in decision.tags]
        first = tags[0] if tags else {"label_id": None, "label_zh": None, "score": None}
        print(
            json.dumps(
                {
                    "image": str(path),
                    "width": found.width,
                    "height": found.height,
                    "label_id": first["label_id"],
                    "label_zh": first["label_zh"],
                    "confidence": first["score"],
                    "category_path": decision.category_path,
                    "decision": decision.decision,
                    "decision_reason": decision.reason,
                    "tags": tags,
                },
                ensure_ascii=False,
            )
        )
        return
    if not decision.tags:
        out.print(f"{path}：所有标签都已停用", markup=False)
        return
    first_tag = decision.tags[0]
    names = {"auto": "自动通过", "review": "待审核", "forced_review": "强制审核"}
    out.print(f"{path}", style="bold", markup=False)
    out.print(f"  首选标签：{first_tag.label_zh}（{first_tag.score:.1%}，{names[decision.decision]}）", markup=False)
    out.print(f"  类目：{decision.category_path or '未归类'}", markup=False)
    for tag in decision.tags:
        out.print(f"  {tag.score:6.1%}  {tag.label_zh}", markup=False)
