"""Airflow's own parts, where nothing but the base dependencies of wwts-ops is installed.

The api-server, the scheduler and the dag-processor of somebody's Airflow must work without torch, MLflow, OpenCV and
the like. So an environment is made of links to exactly those distributions that `pip install wwts-ops`, without
extras, would install; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(sysconfig.get_path("purelib"))
ABSENT = ("torch", "torchvision", "mlflow", "cv2", "onnx", "onnxruntime", "sklearn", "skimage", "duckdb", "pandas")
ABSENT += ("pyarrow", "numpy", "PIL", "simplejpeg", "safetensors", "s3fs", "matplotlib", "openpyxl")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name: str, extras: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """What pip would install for ``name``: its requirements whose markers hold here, and theirs, and so on."""
    found: dict[str, Distribution] = {}
    todo, seen = [(name, extras)], set()
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        found[canonical(item[0])] = dist = distribution(item[0])
        for text in dist.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *item[1])):
                todo.append((needed.name, frozenset(needed.extras)))
    return found


def link(wanted: dict[str, Distribution], target: Path) -> None:
    """Links all files of ``wanted`` into ``target``: a folder as a whole where nobody else has files in it."""
    owners: defaultdict[Path, set[str]] = defaultdict(set)
    files: list[Path] = []
    for dist in distributions(path=[str(SITE)]):
        name = canonical(dist.metadata["Name"])
        for file in dist.files or ():
            place = Path(*file.parts)
            if ".." in place.parts:
                continue  # commands; `python -m` does without
            if name in wanted:
                files.append(place)
            for folder in (place, *place.parents[:-1]):
                owners[folder].add(name)
    for place in files:
        lineage = [*reversed(place.parents[:-1]), place]
        whole = next(folder for folder in lineage if owners[folder] <= set(wanted))
        if not (target / whole).is_symlink() and (SITE / whole).exists():
            (target / whole).parent.mkdir(parents=True, exist_ok=True)
            (target / whole).symlink_to(SITE / whole)


@dataclass(frozen=True)
class Bare:
    """An Airflow with its own home and database, and nothing else of the developer's environment."""

    python: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "1",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API_AUTH__JWT_SECRET": "0" * 64,
            "AIRFLOW__API__SECRET_KEY": "0" * 64,
            "WWTS_STORE": str(self.home / "store"),
            "NO_PROXY": "127.0.0.1",
        }

    def run(self, *arguments: str) -> str:
        """Runs Python with ``arguments``; its standard output."""
        done = subprocess.run(
            [self.python, *arguments],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def query(self, sql: str) -> list[list[object]]:
        """Rows from Airflow's database."""
        with closing(sqlite3.connect(self.home / "airflow.db")) as connection:
            return [list(row) for row in connection.execute(sql)]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """The environment, with Airflow's tables made."""
    if not (SITE / "airflow").is_dir():
        pytest.skip(f"needs Airflow in {SITE}, as `make setup` installs it")
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    link(closure("wwts-ops"), folder / "venv" / "lib" / version / "site-packages")
    home = folder / "home"
    home.mkdir()
    found = Bare(python, home)
    found.run("-m", "airflow", "db", "migrate")
    return found


def test_the_heavy_packages_are_truly_absent(bare: Bare) -> None:
    code = (
        "import importlib.util, json, sys; print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))"
    )
    assert json.loads(bare.run("-c", code, *ABSENT)) == []
    assert json.loads(bare.run("-c", code, "airflow", "wwts_ops", "structlog")) == ["airflow", "wwts_ops", "structlog"]


def test_the_dag_processor_and_the_scheduler_take_our_dags(bare: Bare) -> None:
    bare.run("-m", "airflow", "dag-processor", "--num-runs", "1")
    assert bare.query("SELECT filename, stacktrace FROM import_error") == []
    expected = sum(path.name != "__init__.py" for path in (ROOT / "dags").glob("*.py"))
    dags = bare.query("SELECT dag_id, has_import_errors, is_stale FROM dag ORDER BY dag_id")
    assert len(dags) == expected
    assert ["tag_catalog", 0, 0] in dags
    assert {tuple(row[1:]) for row in dags} == {(0, 0)}
    assert bare.query("SELECT count(*) FROM serialized_dag") == [[expected]]

    bare.run("-m", "airflow", "scheduler", "--num-runs", "1")
    jobs = bare.query("SELECT job_type, state FROM job WHERE job_type = 'SchedulerJob'")
    assert jobs == [["SchedulerJob", "success"]]
    # Next run: 02:00 in Shanghai, 18:00 in UTC, with the partition of that date.
    ((next_run,),) = bare.query("SELECT next_dagrun_create_after FROM dag WHERE dag_id = 'tag_catalog'")
    assert str(next_run).partition(" ")[2].startswith("18:00:00")


@pytest.fixture
def api_server(bare: Bare) -> Iterator[str]:
    """The address of a running api-server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = bare.home / "api-server.log"
    command = [bare.python, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env=bare.environment, cwd=bare.home, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/v2/monitor/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=120)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while server.poll() is None and time.monotonic() < end:
        try:
            get(url)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the api-server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def get(url: str, token: str = "") -> object:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_the_api_server_starts_with_our_plugin(bare: Bare, api_server: str) -> None:
    token = get(f"{api_server}/auth/token")
    assert isinstance(token, dict)
    access = str(token["access_token"])
    plugins = get(f"{api_server}/api/v2/plugins", access)
    assert isinstance(plugins, dict)
    assert [one["name"] for one in plugins["plugins"]].count("wwts_ops") == 1
    errors = get(f"{api_server}/api/v2/plugins/importErrors", access)
    assert isinstance(errors, dict)
    assert errors["import_errors"] == []
    assert not (bare.home / "store").exists(), "serving must not write to the store"
