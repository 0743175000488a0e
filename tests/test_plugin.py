"""What Airflow loads from ``plugins/``: our plugin, once, and nothing of the library beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from environment import plain

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "plugins"

_CHILD = """
import json, sys
from airflow import plugins_manager
found, errors = plugins_manager._get_plugins()
print(json.dumps({
    "plugins": [[plugin.name, type(plugin).__name__ if not isinstance(plugin, type) else plugin.__name__,
                 str(plugin.source)] for plugin in found],
    "errors": {**errors, **plugins_manager.get_import_errors()},
    "files": {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)},
}))
"""


def loaded(home: Path, folder: Path) -> dict[str, Any]:
    """What Airflow's own plugins manager loads from ``folder``, in a process of its own."""
    kept = plain()
    given = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    command = [sys.executable, "-c", _CHILD]
    done = subprocess.run(command, env={**kept, **given}, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is loaded from our folder."""
    return loaded(tmp_path_factory.mktemp("airflow"), PLUGINS)


def from_our_folder(found: dict[str, Any]) -> dict[str, str]:
    return {name: file for name, file in found["files"].items() if Path(file).is_relative_to(PLUGINS)}


def test_exactly_one_plugin_is_loaded_and_it_is_ours(ours: dict[str, Any]) -> None:
    assert ours["errors"] == {}
    mine = [(name, kind) for name, kind, source in ours["plugins"] if "wwts" in f"{name}{source}"]
    assert mine == [("wwts_ops", "WwtsPlugin")]


def test_no_module_of_the_library_is_loaded_under_its_bare_name(ours: dict[str, Any]) -> None:
    bare = {path.stem for path in PLUGINS.rglob("*.py")} - {"__init__", "airflow_plugin"}
    assert {"settings", "catalog", "night", "queue"} <= bare
    loaded_as = from_our_folder(ours)
    assert [name for name in loaded_as if name in bare] == []
    others = {name for name, file in loaded_as.items() if Path(file).name != "airflow_plugin.py"}
    assert all(name == "wwts_ops" or name.startswith("wwts_ops.") for name in others)


def test_the_plugin_file_is_loaded_once(ours: dict[str, Any]) -> None:
    names = [name for name, file in from_our_folder(ours).items() if Path(file).name == "airflow_plugin.py"]
    assert len(names) == 1
    assert names != ["wwts_ops.airflow_plugin"], "Airflow loads it by its bare file name"


def test_the_ignore_file_is_what_keeps_the_library_out(tmp_path: Path) -> None:
    """Without it Airflow loads every file by its bare name, so the tests above can fail."""
    home, folder = tmp_path / "home", tmp_path / "plugins"
    home.mkdir()
    (folder / "wwts_ops").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "airflow_plugin.py"):
        (folder / "wwts_ops" / name).write_bytes((PLUGINS / "wwts_ops" / name).read_bytes())
    stray = loaded(home, folder)["files"]
    assert any(Path(file) == folder / "wwts_ops" / "errors.py" for file in stray.values())
    (folder / ".airflowignore").write_bytes((PLUGINS / ".airflowignore").read_bytes())
    kept = loaded(home, folder)
    assert [file for file in kept["files"].values() if Path(file) == folder / "wwts_ops" / "errors.py"] == []
    assert [name for name, _, source in kept["plugins"] if "airflow_plugin" in source] == ["wwts_ops"]
