"""`wwts up`, for real: one start for all checks, and what it refuses before it starts anything."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import free_ports
from environment import clean
from gate_shop import GateShop

from wwts_ops import health, promotion, registry, servers, settings, tracking, verdict, watchdog
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tracking import ModelVersion

DRIVER = (
    "import sys; from wwts_ops import servers, settings; "
    "raise SystemExit(servers.up(settings.load(), int(sys.argv[1]), int(sys.argv[2])))"
)
DAG = """
import subprocess, time
from airflow.sdk import dag, task

@dag(dag_id="sleeper", schedule=None, is_paused_upon_creation=False)
def sleeper():
    @task(pool="wwts_gpu")
    def sleep():
        subprocess.Popen(["sleep", "987"], start_new_session=True)  # leaves group and session
        time.sleep(987)
    sleep()

sleeper()
"""
START_S = 240


def clean_environment(folder: Path) -> dict[str, str]:
    names = ("AIRFLOW", "WWTS_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    dags = folder / "dags"
    dags.mkdir(exist_ok=True)
    (dags / "sleeper.py").write_text(DAG)
    (dags / "promote_model.py").write_bytes((Path(__file__).parents[1] / "dags" / "promote_model.py").read_bytes())
    return {**kept, "WWTS_STORE": str(folder / "店 store"), "AIRFLOW__CORE__DAGS_FOLDER": str(dags)}


# ------------------------------------------------------------------ before anything starts


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clean(monkeypatch)
    for name, value in clean_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_secrets_are_private_and_stay_the_same(here: Path) -> None:
    home = here / "home"
    first = servers.airflow_environment(settings.load(), home)
    second = servers.airflow_environment(settings.load(), home)
    assert first == second
    assert home.stat().st_mode & 0o777 == 0o700
    for path in home.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    other = servers.airflow_environment(settings.load(), here / "other")
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY"):
        assert len(first[name]) >= 32
        assert first[name] != other[name]


def test_another_airflow_is_never_touched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", "/srv/airflow")
    monkeypatch.setenv("AIRFLOW_CONFIG", "/srv/airflow/airflow.cfg")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://production/airflow")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC", "postgresql+asyncpg://production/airflow")
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "7")
    found = servers.airflow_environment(settings.load(), here / "home")
    assert not [name for name, value in found.items() if "production" in value or "/srv/" in value]
    assert found["AIRFLOW__CORE__PARALLELISM"] == "7"
    assert servers.guest_environment(settings.load())["AIRFLOW_HOME"] == "/srv/airflow"


def test_children_see_the_settings_of_the_command_line(here: Path) -> None:
    given = settings.load(tags=("a", "b"), deadline="07:00", mlflow_tracking_uri="http://mlflow.example:5000")
    found = servers.airflow_environment(given, here / "home")
    assert found["WWTS_TAGS"] == "a,b"
    assert found["WWTS_DEADLINE"].startswith("07:00")
    assert found["MLFLOW_TRACKING_URI"] == "http://mlflow.example:5000"
    assert found["WWTS_STORE"] == str(here / "店 store")


def test_damaged_secrets_are_named(here: Path) -> None:
    home = here / "home"
    home.mkdir()
    (home / "secrets.json").write_text("not json")
    with pytest.raises(WwtsError, match=r"secrets\.json is damaged"):
        servers.airflow_environment(settings.load(), home)


def test_a_port_in_use_is_refused_before_anything_starts(here: Path) -> None:
    [free] = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WwtsError, match=rf"Port {port} .*--mlflow-port"):
            servers.up(settings.load(), free, port)
    assert not (here / "店 store.state" / "airflow-up").exists()


@pytest.mark.parametrize(("api", "mlflow"), [(70000, 5000), (5000, 5000)])
def test_impossible_ports_are_refused(here: Path, api: int, mlflow: int) -> None:
    with pytest.raises(WwtsError, match="port"):
        servers.up(settings.load(), api, mlflow)


def test_an_old_heartbeat_is_not_health() -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    report = {"scheduler": {"status": "healthy", "latest_scheduler_heartbeat": now.isoformat()}}
    assert health.unwell(report, ["scheduler"], now - timedelta(seconds=1)) == []
    assert health.unwell(report, ["scheduler"], now + timedelta(seconds=1)) == ["scheduler"]
    assert health.unwell(report, ["scheduler", "triggerer"]) == ["triggerer"]


def test_health_check_of_a_closed_port_fails(capsys: pytest.CaptureFixture[str]) -> None:
    [port] = free_ports(1)
    assert health.main([f"http://127.0.0.1:{port}/health"]) == 1
    assert "does not answer" in capsys.readouterr().err


# ------------------------------------------------------------------ one real start


@dataclass
class Running:
    process: subprocess.Popen[str]
    environment: dict[str, str]
    screen: str
    api: str
    mlflow: str
    state: Path

    @property
    def password(self) -> str:
        return re.findall(r"password\): (\S+)", self.screen)[0]

    def token(self) -> str:
        login = {"username": "admin", "password": self.password}
        answer = httpx.post(f"{self.api}/auth/token", json=login, trust_env=False, timeout=60)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["access_token"])


def started(folder: Path, ports: list[int]) -> Running:
    environment = clean_environment(folder)
    command = [sys.executable, "-c", DRIVER, *map(str, ports)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    limit = time.monotonic() + START_S
    screen = ""
    for line in process.stdout:  # ends with the process, so this cannot wait longer than `up` itself does
        screen += line
        if "Ctrl-C" in line:
            break
        assert time.monotonic() < limit, screen
    assert "Ctrl-C" in screen, screen
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    return Running(process, environment, screen, urls[0], urls[1], folder / "店 store.state")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = started(tmp_path_factory.mktemp("up"), free_ports(2))
    yield found
    if found.process.poll() is None:
        found.process.terminate()
    found.process.wait(300)


def tree(running: Running) -> list[psutil.Process]:
    """Everything that `up` started, found by parentage: not the way in which it finds them itself."""
    return psutil.Process(running.process.pid).children(recursive=True)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_anonymous_gets_nothing_and_the_printed_password_a_token(running: Running) -> None:
    assert httpx.get(f"{running.api}/api/v2/dags", trust_env=False, timeout=60).status_code == 401
    wrong = {"username": "admin", "password": "admin"}
    assert httpx.post(f"{running.api}/auth/token", json=wrong, trust_env=False, timeout=60).status_code == 401
    bearer = {"Authorization": f"Bearer {running.token()}"}
    pools = httpx.get(f"{running.api}/api/v2/pools", headers=bearer, trust_env=False, timeout=60).json()["pools"]
    assert {"wwts_gpu": 1}.items() <= {pool["name"]: pool["slots"] for pool in pools}.items()


@pytest.mark.slow
def test_every_part_is_healthy_and_only_on_loopback(running: Running) -> None:
    report = health.answer(running.api + health.AIRFLOW_PATH)
    assert report is not None
    assert health.unwell(report, health.AIRFLOW_COMPONENTS) == []
    assert httpx.get(f"{running.mlflow}/health", trust_env=False, timeout=60).status_code == 200
    listening = {
        connection.laddr.ip
        for process in tree(running)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.slow
def test_no_log_holds_the_password(running: Running) -> None:
    assert running.screen.count(running.password) == 1
    for path in (running.state / "logs").iterdir():
        assert running.password not in path.read_text(errors="replace"), path


@pytest.mark.slow
def test_a_model_registered_over_http_is_readable_without_a_server(running: Running, tmp_path: Path) -> None:
    """What `wwts up` logs, `wwts run` reads from the same SQLite, with no server."""
    import mlflow

    artifact = tmp_path / "标签.txt"
    artifact.write_text("红酒")
    client = mlflow.MlflowClient(running.mlflow)
    run = client.create_run(client.create_experiment("shared"))
    client.log_artifact(run.info.run_id, str(artifact))
    direct = mlflow.MlflowClient(f"sqlite:///{running.state / 'mlflow.db'}")
    there = Path(direct.download_artifacts(run.info.run_id, artifact.name, str(tmp_path)))
    assert there.read_text() == "红酒"
    assert len(list((running.state / "mlartifacts").rglob(artifact.name))) == 1


@pytest.mark.slow
def test_a_second_up_is_refused(running: Running) -> None:
    command = [sys.executable, "-c", DRIVER, *map(str, free_ports(2))]
    second = subprocess.run(command, env=running.environment, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode != 0
    assert f"already runs on {running.environment['WWTS_STORE']} (process {running.process.pid})" in second.stderr
    assert running.process.poll() is None


@pytest.mark.slow
def test_an_existing_pool_is_left_as_it_is(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AIRFLOW_HOME", raising=False)
    assert servers.init_airflow(settings.load(pool="other", pool_slots=3)) is True
    assert servers.init_airflow(settings.load(pool="other", pool_slots=9)) is False
    bearer = {"Authorization": f"Bearer {running.token()}"}
    pool = httpx.get(f"{running.api}/api/v2/pools/other", headers=bearer, trust_env=False, timeout=60).json()
    assert pool["slots"] == 3


# ------------------------------------------------------------------ a promotion waits for a person


@pytest.fixture(scope="module")
def candidate(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Version 1 is champion, version 2 has passed the gate."""
    made = settings.load(store=running.environment["WWTS_STORE"], mlflow_tracking_uri=running.mlflow)
    shop = GateShop(made, tmp_path_factory.mktemp("approval"))
    first = shop.register("first", shop.random_head())
    second = shop.register("second", shop.head([0]))
    with tracking.connected(made) as client:
        client.set_registered_model_alias(made.model_name, "champion", first.version)
        client.set_registered_model_alias(made.model_name, "challenger", second.version)
        client.set_model_version_tag(made.model_name, second.version, verdict.TAG, passed(first, second))
    return made


def passed(champion: ModelVersion, challenger: ModelVersion) -> str:
    """A verdict as the gate records it."""
    return verdict.Verdict(
        passed=True,
        mode="enforced",
        reasons=(),
        rules=(),
        model_version=challenger.version,
        model_sha256=challenger.sha256,
        champion_version=champion.version,
        champion_sha256=champion.sha256,
        badcases="b000001-0123456789ab",
        badcases_sha256="0" * 64,
        rules_sha256="1" * 64,
        run_id="none",
        git_sha="",
        judged_at=datetime.now(UTC),
    ).model_dump_json()


def champion(found: Settings) -> str:
    model = registry.champion(found)
    assert model
    return model.version


def asked(running: Running) -> str:
    """A triggered promotion that has come to the person's question; its address."""
    bearer = {"Authorization": f"Bearer {running.token()}"}
    dag = f"{running.api}/api/v2/dags/promote_model"
    limit = time.monotonic() + 600
    while httpx.patch(dag, json={"is_paused": False}, headers=bearer, trust_env=False, timeout=60).status_code != 200:
        assert time.monotonic() < limit, "the DAG is not there"
        time.sleep(1)
    answer = httpx.post(f"{dag}/dagRuns", json={"logical_date": None}, headers=bearer, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    url = f"{dag}/dagRuns/{answer.json()['dag_run_id']}"
    while True:
        task = httpx.get(f"{url}/taskInstances/approve", headers=bearer, trust_env=False, timeout=60).json()
        if task.get("state") == "awaiting_input":
            # No person answers while the process that asks is still ending; Airflow takes such an answer for a failure.
            time.sleep(5)
            return url
        assert task.get("state") not in ("failed", "upstream_failed", "skipped", "success"), task
        assert time.monotonic() < limit, task
        time.sleep(0.5)


def answer(running: Running, url: str, choice: str) -> dict[str, str]:
    """Answers, and waits for the end; how each task ended."""
    bearer = {"Authorization": f"Bearer {running.token()}"}
    body = {"chosen_options": [choice], "params_input": {}}
    question = f"{url}/taskInstances/approve/-1/hitlDetails"
    limit = time.monotonic() + 600
    while httpx.get(url, headers=bearer, trust_env=False, timeout=60).json()["state"] in ("queued", "running"):
        # On a busy machine Airflow may have taken the answer for a failure all the same, and asks again.
        if httpx.get(question, headers=bearer, trust_env=False, timeout=60).json().get("responded_at") is None:
            given = httpx.patch(question, json=body, headers=bearer, trust_env=False, timeout=60)
            assert given.status_code in (200, 409), given.text
        assert time.monotonic() < limit, "the run does not end"
        time.sleep(0.5)
    tasks = httpx.get(f"{url}/taskInstances", headers=bearer, trust_env=False, timeout=60).json()["task_instances"]
    return {task["task_id"]: task["state"] for task in tasks}


@pytest.mark.slow
def test_a_promotion_waits_for_a_person_who_may_refuse(running: Running, candidate: Settings) -> None:
    url = asked(running)
    bearer = {"Authorization": f"Bearer {running.token()}"}
    asking = httpx.get(
        f"{url}/taskInstances/approve/-1/hitlDetails", headers=bearer, trust_env=False, timeout=60
    ).json()
    assert "b000001-0123456789ab" in asking["body"]
    assert asking["defaults"] == ["Reject"]
    assert champion(candidate) == "1"
    assert answer(running, url, "Reject")["move"] == "skipped"
    assert champion(candidate) == "1"


@pytest.mark.slow
def test_a_promotion_that_a_person_approves_says_who(running: Running, candidate: Settings) -> None:
    assert answer(running, asked(running), "Approve")["move"] == "success"
    assert champion(candidate) == "2"
    (move,) = [move for move in promotion.history(candidate) if (move.alias, move.action) == ("champion", "promote")]
    assert move.evidence["approved_by"] == "admin"


@pytest.mark.slow
def test_term_leaves_no_process_behind(running: Running) -> None:
    """Last: it ends the servers, while a task runs whose child has left its group and session."""
    bearer = {"Authorization": f"Bearer {running.token()}"}
    url = f"{running.api}/api/v2/dags/sleeper/dagRuns"
    limit = time.monotonic() + 600
    while httpx.post(url, json={"logical_date": None}, headers=bearer, trust_env=False, timeout=60).status_code != 200:
        assert time.monotonic() < limit, "the DAG is not there"
        time.sleep(1)
    while not any(process.name() == "sleep" for process in tree(running)):
        assert time.monotonic() < limit, "the task does not run"
        time.sleep(0.5)
    before = tree(running)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(300) == 0
    assert len(before) > 6
    assert [process for process in before if alive(process)] == []


# ------------------------------------------------------------------ the watchdog, without Airflow

PARENT = """
import os, subprocess, sys, time
child = [sys.executable, "-c", sys.argv[2]]
env = {**os.environ, "WWTS_UP_ID": sys.argv[1]}
dog = subprocess.Popen([sys.executable, "-m", "wwts_ops.watchdog", sys.argv[1]], stdin=subprocess.PIPE,
                       start_new_session=True)
subprocess.Popen(child, env=env, start_new_session=True)
print(dog.pid, flush=True)
time.sleep(600)
"""
GRANDPARENT = """
import subprocess, time
subprocess.Popen(["sleep", "986"], start_new_session=True)
time.sleep(600)
"""


def test_kill_9_of_the_parent_ends_the_whole_family() -> None:
    marker = f"test-{os.getpid()}"
    command = [sys.executable, "-c", PARENT, marker, GRANDPARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        dog = psutil.Process(int(parent.stdout.readline()))
        limit = time.monotonic() + 300
        while len(watchdog.family(marker)) < 2:
            assert time.monotonic() < limit, "the family did not start"
            time.sleep(0.1)
        parent.kill()
    dog.wait(120)
    assert watchdog.family(marker) == []


def test_what_ignores_term_is_killed() -> None:
    marker = f"deaf-{os.getpid()}"
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    environment = {**os.environ, watchdog.MARKER: marker}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout
        deaf.stdout.readline()
        watchdog.stop(marker, grace=0.5)
        assert deaf.wait(120) == -signal.SIGKILL


DYING = """
import os, threading
from pathlib import Path
from wwts_ops import servers, settings
held = settings.load()
Path(held.state_dir).mkdir(parents=True)
with servers._alone(held) as lock, servers._fleet(held, dict(os.environ), threading.Event(), lock) as fleet:
    fleet.start("good", ["-c", "import time; time.sleep(600)"], {})
    fleet.start("bad", ["-c", "import sys; print('no such table: dag'); sys.exit(3)"], {})
    fleet.children["bad"].wait()
    print(fleet.children["good"].pid, flush=True)
    fleet.check()
"""


def test_a_child_that_dies_is_named_with_its_last_words_and_stops_the_rest(here: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DYING], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "bad ended unexpectedly (exit status 3)" in done.stderr
    assert "no such table: dag" in done.stderr
    assert not psutil.pid_exists(int(done.stdout))
    assert json.loads((here / "店 store.state" / "up.lock").read_text()) > 0
