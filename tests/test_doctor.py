"""`wwts doctor` on real folders, databases and servers; each finding seen both ways."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from environment import clean

from wwts_ops import deployment, doctor, registration, servers, settings
from wwts_ops.doctor import Check
from wwts_ops.errors import WwtsError
from wwts_ops.storage import Store

GOOD_DAG = "from airflow.sdk import dag\n@dag(schedule=None)\ndef good():\n    pass\ngood()\n"
PLUGIN = "from airflow.plugins_manager import AirflowPlugin\nclass Ours(AirflowPlugin):\n    name = 'ours'\n"


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(monkeypatch, "AWS_")
    monkeypatch.setenv("WWTS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(made(tmp_path / "dags")))
    (tmp_path / "dags" / "good.py").write_text(GOOD_DAG)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def only(found: list[Check], name: str) -> Check:
    [check] = [check for check in found if check.name == name]
    return check


# ------------------------------------------------------------------ executor and places


@pytest.mark.parametrize(
    ("executor", "distributed"),
    [
        ("LocalExecutor", False),
        ("airflow.executors.local_executor.LocalExecutor", False),
        ("CeleryExecutor", True),
        ("airflow.providers.celery.executors.celery_executor.CeleryExecutor", True),
        ("LocalExecutor,KubernetesExecutor", True),
        ("local:airflow.executors.local_executor.LocalExecutor", False),
        ("LocalExecutor;team1=CeleryExecutor", True),
        ("LocalExecutor;team1=LocalExecutor", False),
    ],
)
def test_which_executors_may_use_a_second_machine(executor: str, distributed: bool) -> None:
    assert deployment.is_distributed(executor) is distributed


def test_a_distributed_executor_needs_shared_places(monkeypatch: pytest.MonkeyPatch) -> None:
    local = settings.load()
    deployment.refuse_unshared(local, "LocalExecutor")
    with pytest.raises(WwtsError) as caught:
        deployment.refuse_unshared(local, "CeleryExecutor")
    for name in ("CeleryExecutor", "WWTS_STORE", "WWTS_DATABASE_URL", "MLFLOW_TRACKING_URI"):
        assert name in str(caught.value)
    shared = {"store": "s3://bucket/wwts", "database_url": "postgresql+psycopg://u:p@db/wwts"}
    deployment.refuse_unshared(settings.load(**shared, mlflow_tracking_uri="http://mlflow:5000"), "CeleryExecutor")
    with pytest.raises(WwtsError, match="MLFLOW_TRACKING_URI") as caught:
        deployment.refuse_unshared(settings.load(**shared, mlflow_tracking_uri="/srv/mlruns"), "KubernetesExecutor")
    assert "WWTS_STORE" not in str(caught.value)


# ------------------------------------------------------------------ this machine


def test_packages_here_are_supported() -> None:
    assert {check.status for check in doctor._packages(settings.load())} == {"ok"}


def test_an_unsupported_version_and_a_missing_package_are_told() -> None:
    from packaging.requirements import Requirement

    old = doctor._requirement(Requirement("pytest<1"))
    assert old is not None
    assert (old.status, old.name) == ("fail", "package pytest")
    base = doctor._requirement(Requirement("no-such-package-wwts"))
    worker = doctor._requirement(Requirement("no-such-package-wwts; extra == 'worker'"))
    assert base is not None
    assert worker is not None
    assert (base.status, worker.status) == ("fail", "warn")
    assert doctor._requirement(Requirement("no-such-package-wwts; extra == 'dev'")) is None


def test_a_stray_training_folder_is_found(tmp_path: Path) -> None:
    stray = made(tmp_path / "stray" / "training")
    code = (
        "from wwts_ops import doctor, settings; "
        "print([c.name + ' ' + c.status + ' ' + c.detail for c in doctor._modules(settings.load())])"
    )
    plain = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "modules ok" in plain
    (stray / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(stray.parent)}
    shadowed = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "module training fail" in shadowed.stdout
    assert str(stray) in shadowed.stdout


def test_a_second_opencv_wheel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.status for check in doctor._opencv(settings.load())] == ["ok"]
    info = made(tmp_path / "site" / "opencv_python_headless-4.12.0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: opencv-python-headless\nVersion: 4.12.0\n")
    monkeypatch.syspath_prepend(str(info.parent))
    [check] = doctor._opencv(settings.load())
    assert check.status == "fail"
    assert "opencv-python-headless" in check.detail


def test_a_misspelt_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WWTS_TRESHOLD", "0.5")
    [valid, wrong] = doctor._settings(settings.load())
    assert "WWTS_STORE" in valid.detail
    assert (wrong.status, wrong.advice) == ("warn", "Did you mean WWTS_THRESHOLD?")


# ------------------------------------------------------------------ catalog, store, database, MLflow


def test_nobody_who_may_answer_is_told() -> None:
    (nobody,) = doctor._reviewers(settings.load())
    assert (nobody.status, "WWTS_REVIEWERS" in nobody.advice) == ("warn", True)
    (somebody,) = doctor._reviewers(settings.load(review_admins="主管"))
    assert (somebody.status, "主管" in somebody.detail) == ("ok", True)


def test_catalog(tmp_path: Path) -> None:
    photos = made(tmp_path / "照片")
    assert doctor._catalog(settings.load())[0].status == "warn"
    assert doctor._catalog(settings.load(catalog=str(tmp_path / "absent")))[0].status == "fail"
    assert doctor._catalog(settings.load(catalog="ftp://host/x"))[0].status == "fail"
    assert doctor._catalog(settings.load(catalog=str(photos)))[0].status == "warn"
    (photos / "a.jpg").write_bytes(b"x")
    assert doctor._catalog(settings.load(catalog=str(photos)))[0].status == "ok"


def test_a_store_is_probed_and_left_as_it_was(tmp_path: Path) -> None:
    assert "not there yet" in doctor._store(settings.load())[0].detail
    assert not (tmp_path / "store").exists()
    (made(tmp_path / "store") / "kept.txt").write_text("x")
    [check] = doctor._store(settings.load())
    assert (check.status, "conditional writes hold" in check.detail) == ("ok", True)
    assert [path.name for path in (tmp_path / "store").rglob("*")] == ["kept.txt"]


def test_a_store_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert doctor._store(settings.load(store=str(tmp_path / "file" / "store")))[0].status == "fail"


class OverwritingStore(Store):
    """A real folder behind a server that, like older S3 clones, knows no conditions."""

    def create(self, key: str, data: bytes) -> bool:
        self.write_bytes(key, data)
        return True


class ForgetfulStore(Store):
    """Takes a pointer from anybody."""

    def replace_pointer(self, key: str, value: dict[str, object], expected: object) -> bool:
        self.write_json(key, value)
        return True


@pytest.mark.parametrize(("kind", "word"), [(OverwritingStore, "If-None-Match"), (ForgetfulStore, "If-Match")])
def test_a_store_without_conditional_writes_fails(kind: type[Store], word: str, tmp_path: Path) -> None:
    check = doctor._probe(kind(str(tmp_path / "store")), "_doctor/x/probe.json")
    assert check.status == "fail"
    assert word in check.detail


def test_servers_that_do_not_answer_are_told_in_bounded_time() -> None:
    """One address refuses, one accepts and says nothing: neither may hang the doctor."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        mute = settings.load(
            store="s3://bucket/x",
            s3_endpoint=f"http://127.0.0.1:{port}",
            database_url=f"postgresql+psycopg://u:secret@127.0.0.1:{port}/db",
            mlflow_tracking_uri=f"http://127.0.0.1:{port}",
        )
        begun = time.monotonic()
        found = [
            *doctor._bounded("store", doctor._store, mute, 2.0),
            *doctor._bounded("database", doctor._database, mute, doctor.REACH_S),
            *doctor._bounded("mlflow", doctor._mlflow, mute, doctor.REACH_S),
        ]
    assert [check.status for check in found] == ["fail"] * 3
    assert time.monotonic() - begun < 60  # a hang, not a speed
    assert "secret" not in str(found)


def test_database(tmp_path: Path) -> None:
    assert "not there yet" in doctor._database(settings.load())[0].detail
    assert not list(tmp_path.rglob("*.db"))
    url = f"sqlite:///{tmp_path / 'w.db'}"
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(sqlalchemy.text("create table t (x int)"))
    assert "answers" in doctor._database(settings.load(database_url=url))[0].detail
    assert doctor._database(settings.load(database_url="nosuch://x"))[0].status == "fail"


@pytest.mark.slow
def test_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    held = settings.load(mlflow_tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "not there yet" in doctor._mlflow(held)[0].detail
    client = MlflowClient(held.resolved_tracking_uri)
    client.create_registered_model(held.model_name)
    assert only(doctor._mlflow(held), "champion").status == "warn"
    hashes = {"model_sha256": "a", "backbone_sha256": "b"}
    for tags, status, told in (
        ({}, "fail", "version 1 was not registered by wwts"),
        ({**hashes, "code_sha256": registration.code_sha256()}, "ok", "version 2"),
        ({**hashes, "code_sha256": "c"}, "ok", "version 3, registered with other code"),
    ):
        version = client.create_model_version(held.model_name, str(tmp_path), tags=tags).version
        client.set_registered_model_alias(held.model_name, "champion", version)
        check = only(doctor._mlflow(held), "champion")
        assert (check.status, told in check.detail) == (status, True), check


# ------------------------------------------------------------------ Airflow


@pytest.mark.slow
def test_airflow_before_and_after_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = made(tmp_path / "plugins" / "wwts_ops")
    (plugins / "airflow_plugin.py").write_text(PLUGIN)
    monkeypatch.setenv("AIRFLOW__CORE__PLUGINS_FOLDER", str(plugins.parent))
    (tmp_path / "dags" / "broken.py").write_text("from airflow.sdk import dag\nimport no_such_module\n")
    before = doctor._airflow(settings.load())
    assert only(before, "pool").status == "fail"
    assert "wwts init" in only(before, "pool").advice
    assert only(before, "dags").status == "fail"
    assert "no_such_module" in only(before, "dags").detail
    assert not servers.up_home(settings.load()).exists()  # looking makes nothing

    servers.init_airflow(settings.load())
    (tmp_path / "dags" / "broken.py").unlink()
    (plugins / "stray.py").write_text(PLUGIN.replace("Ours", "Stray"))
    after = doctor._airflow(settings.load())
    assert only(after, "pool").status == "ok"
    assert only(after, "dags").status == "ok"
    assert only(after, "plugin").status == "fail"  # the same plugin twice: .airflowignore is missing

    (plugins / "stray.py").unlink()
    last = doctor._airflow(settings.load())
    assert only(last, "plugin").status == "ok"
    assert only(last, "executor").status == "ok"


@pytest.mark.slow
def test_run_prints_every_finding_and_fails_when_one_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.run(settings.load()) == 1
    shown = capsys.readouterr().out
    for name in ("python", "store", "database", "mlflow", "pool", "device", "onnxruntime"):
        assert re.search(rf"│ {name} +│", shown), name
    assert "wwts init" in shown
