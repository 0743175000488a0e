"""The shape of the code: which way imports point, how long files are, what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import conftest
import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "plugins"
LONGEST_FILE, LONGEST_TEST = 600, 800

#: Data flows downwards: catalog ► plan ► tag ► publish ► review, report ► night ► command. A module imports from its
#: own layer or from one above it, never from one below. A new module takes its place here.
LAYERS = (
    # Words that everything uses; they know nothing of ours.
    {"", "errors", "schemas", "records", "health", "logins", "watchdog", "logs", "provenance", "shares", "verdict"},
    # What surrounds a run.
    {"settings", "addresses", "deployment", "dag_defaults"},
    # Where things lie, and the ways to read and write them.
    {
        "storage",
        "audit",
        "cache",
        "digest",
        "warehouse",
        "parts",
        "embeddings",
        "manifests",
        "sheets",
        "database",
        "migrations",
        "migrations.*",
        "migrations.versions.*",
    },
    # Pictures and what is known of labels.
    {"images", "backbones", "backbones.*", "taxonomy", "neardup"},
    # From a picture to a decision; packed with every model.
    {"tagger", "runtime", "decisions", "recognition", "mlflow_model"},
    # From a tagger to a version, its aliases, and back.
    {"tracking"},
    {"registration", "checkpoint"},
    {"registry"},
    {"packed", "isolation", "isolated"},
    {"moves"},
    # From a catalog to a plan.
    {"fetch", "catalog", "planning"},
    # From a plan to rows.
    {"tagging", "published"},
    # What people said, and what heads say of stored embeddings.
    {"events"},
    {"taxonomy_changes", "taxonomy_changes.*"},
    {"corrections", "corrections.*"},
    {"retags", "backfill"},
    # From rows to what people and shops read.
    {"overlays"},
    {"publish", "webpage", "review", "review.*", "report", "summary"},
    # What a model is judged by.
    {"badcases", "badcases.*", "holdout"},
    # Who may become champion.
    {"promotion"},
    {"retagging", "tagdiff", "tagdiff.*", "lessons", "backtest", "prune"},
    # All stages together.
    {"night", "rollout"},
    # What people see and do in a browser.
    {"web", "web.*"},
    # How it is driven.
    {"servers", "dagprocess", "dagrun", "doctor", "demo", "shardprocess", "retagprocess", "dag_promotion"},
    {"links", "airflow_plugin"},
    {"cli", "cli.*"},
)


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    found = {}
    for path in (PLUGINS / "wwts_ops").rglob("*.py"):
        parts = path.relative_to(PLUGINS).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Full names that a file imports anywhere, inside functions too, but not for type checkers only."""
    for node in _run_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_nodes(child)


def graph() -> dict[str, set[str]]:
    """Module to the modules of ours that it imports; a submodule's package is imported with it."""
    known = modules()
    return {name: {found for found in _ours(path, known) if found != name} for name, path in known.items()}


def _ours(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for full in imports(path):
        parts = full.split(".")
        # `from wwts_ops.storage import Store` names a module and something in it.
        prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        module = next((prefix for prefix in prefixes if prefix in known), None)
        if module is None:
            continue
        yield module
        package = module.rpartition(".")[0]
        if package not in ("", "wwts_ops") and package in known and path.parent != known[package].parent:
            yield package


def layer(module: str) -> int:
    """Where a module stands in LAYERS; -1 when it does not."""
    short = module.removeprefix("wwts_ops").removeprefix(".")
    package = f"{short.rpartition('.')[0]}.*"
    return next((number for number, names in enumerate(LAYERS) if short in names or package in names), -1)


def test_imports_form_no_cycle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" ► ".join(error.args[1]))


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    known = modules()
    assert [name for name in known if layer(name) == -1] == []
    shorts = {name.removeprefix("wwts_ops").removeprefix(".") for name in known}
    assert {name for names in LAYERS for name in names if not name.endswith("*")} - shorts == set()


def test_nothing_upstream_imports_what_is_downstream() -> None:
    wrong = [
        f"{module} imports {target}, which is downstream of it"
        for module, targets in graph().items()
        for target in targets
        if layer(target) > layer(module)
    ]
    assert wrong == []


def test_the_library_knows_nothing_of_what_uses_it() -> None:
    for name, path in modules().items():
        roots = {full.partition(".")[0] for full in imports(path)}
        assert roots.isdisjoint({"training", "eval", "dags", "tests"}), name


def test_training_and_evaluation_know_nothing_of_the_dags() -> None:
    for folder in ("training", "eval"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "dags" not in {full.partition(".")[0] for full in imports(path)}, path


def test_nobody_imports_the_plugin() -> None:
    """Airflow loads that file under another name: whoever imported it would hold a second copy."""
    files = [
        path for folder in ("plugins", "dags", "training", "eval", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 30
    for path in files:
        assert not any(full.startswith("wwts_ops.airflow_plugin") for full in imports(path)), path


# ------------------------------------------------------------------ files


def tracked() -> list[Path]:
    """Files that belong to the repository, those not yet added too."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a Git checkout to know which files belong to the repository")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")
    return [path for name in names if name and (path := ROOT / name.decode()).is_file()]


def test_no_file_is_too_long() -> None:
    code = [path for path in tracked() if path.suffix in {".py", ".html", ".js", ".css", ".yml", ".yaml", ".toml"}]
    assert len(code) > 30
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    limit = {path: LONGEST_TEST if path.parts[0] == "tests" else LONGEST_FILE for path in lengths}
    assert {str(path): length for path, length in lengths.items() if length > limit[path]} == {}


def test_the_longest_test_files_are_there() -> None:
    assert [name for name in conftest.LONGEST if not (ROOT / "tests" / name).exists()] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    here = [re.escape(f"{place}/") for place in (ROOT, sys.prefix, Path.home()) if str(place) != "/"]
    pattern = re.compile(rf"(?<![\w.}}$])(?:{'|'.join(here)}|/(?:work|workspace|mnt|Users)/\w)")
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            lines = data.decode("utf-8").splitlines()
            hits = (f"{path.name}:{number}: {line}" for number, line in enumerate(lines, 1) if pattern.search(line))
            found.extend(hits)
    assert found == []


# ------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that this checkout builds."""
    folder = tmp_path_factory.mktemp("wheel")
    # Without the build tool here, pip fetches it from the index, as `make setup` does.
    isolation = [] if find_spec("hatchling") is None else ["--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("wwts_ops-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_all_that_runs_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    here = {
        str(path.relative_to(base))
        for base, package in ((PLUGINS, "wwts_ops"), (ROOT, "training"), (ROOT, "eval"))
        for path in (base / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert here - names == set()
    assert {"wwts_ops/data/labels_zh.csv", "wwts_ops/py.typed", "training/__init__.py", "eval/__init__.py"} <= names
    assert [name for name in names if name.startswith("wwts_ops/templates/")]
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"wwts_ops", "training", "eval"}


def test_the_wheel_is_light_without_extras(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    always = [line.split()[1] for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    names = {re.split(r"[<>=!~\[;]", name)[0] for name in always}
    providers = {f"apache-airflow-providers-{name}" for name in ("apprise", "standard")}
    assert names == {"apache-airflow", "pydantic-settings", "structlog"} | providers
    (entry,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "wwts = wwts_ops.cli:main" in wheel.read(entry).decode()
