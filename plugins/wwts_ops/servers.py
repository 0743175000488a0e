"""``wwts up``: Airflow's parts and MLflow on this machine, started together and stopped together.

All listen on 127.0.0.1 only. Airflow has a home, a database and secrets of its own below ``state_dir``, so no
Airflow that is already on the machine is touched. A watchdog process (see :mod:`wwts_ops.watchdog`) ends
everything when ``wwts up`` is killed in a way that it cannot answer.

MLflow's artifacts are plain files below ``state_dir/mlartifacts``, written by the clients themselves
(``--no-serve-artifacts``): ``wwts run`` opens the same SQLite registry without any server, and could not read
the ``mlflow-artifacts:`` addresses that a serving MLflow would record.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rich.console import Console

import wwts_ops
from wwts_ops import health, tracking, watchdog
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

HOST = "127.0.0.1"
USER = "admin"
#: Seconds until all parts must be healthy; the slowest start measured was MLflow's, 90 s on two busy cores.
START_LIMIT_S = 300.0
#: Missed 5-second heartbeats after which Airflow kills a task; 3 by default, which a busy core can miss.
#: 60 are Airflow's own 300 s of ``task_instance_heartbeat_timeout``.
MAX_FAILED_HEARTBEATS = 60
_TAIL_LINES = 15
_SECRETS = "secrets.json"
_PASSWORDS = "passwords.json"
_DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INSERT_POOL = "import sys; from wwts_ops.servers import insert_pool; print(insert_pool(sys.argv[1], int(sys.argv[2])))"

#: Sections of another Airflow's configuration that must not reach ours: its database, its addresses, its secrets.
_FOREIGN = re.compile(r"AIRFLOW_CONFIG$|AIRFLOW__(DATABASE|API|API_AUTH|SECRETS)__")


# ------------------------------------------------------------------ environments


def repository() -> Path:
    """The checkout that this package is part of: the folder with ``dags/`` and ``plugins/``.

    Raises:
        WwtsError: when the package was installed without one.
    """
    root = Path(wwts_ops.__file__).resolve().parents[2]
    if not (root / "dags").is_dir():
        raise WwtsError(
            f"No dags/ folder in {root}: run from a checkout of wwts-ops (make setup), "
            "or name the folder in AIRFLOW__CORE__DAGS_FOLDER."
        )
    return root


def up_home(settings: Settings) -> Path:
    """The AIRFLOW_HOME of ``wwts up`` (``wwts run`` has another, or two of them would reset each other's runs)."""
    return settings.state_dir / "airflow-up"


def airflow_environment(settings: Settings, home: Path) -> dict[str, str]:
    """The environment of every process of an Airflow of our own in ``home``.

    Makes ``home`` (mode 0700) with its secrets and the password of user ``admin`` (0600) when they are not there
    yet; they stay the same afterwards. Of the caller's own ``AIRFLOW__…`` variables those about database,
    api-server and secrets are dropped, the other ones win over ours (``AIRFLOW__CORE__DAGS_FOLDER``, for example).

    Raises:
        WwtsError: when no dags folder is found.
    """
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    kept = _kept(home / _SECRETS, _new_secrets)
    _kept(home / _PASSWORDS, _new_password)
    inherited = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return {**_defaults(), **inherited, **_people(settings), **_exported(settings), **_owned(home, kept)}


def _defaults() -> dict[str, str]:
    return {
        **_folders(),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",  # 2 GB of memory instead of 6
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": str(MAX_FAILED_HEARTBEATS),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its default of 7 is four minutes of silence
    }


def _people(settings: Settings) -> dict[str, str]:
    """Our Airflow has one user: where nobody is named, that one may do everything on the review page."""
    found = {"WWTS_REVIEWERS": settings.reviewers, "WWTS_REVIEW_ADMINS": settings.review_admins}
    return {name: USER for name, people in found.items() if not people}


def _folders() -> dict[str, str]:
    if "AIRFLOW__CORE__DAGS_FOLDER" in os.environ:
        plugins = Path(wwts_ops.__file__).resolve().parents[1]
        # Installed from a wheel, that is site-packages, which Airflow would load from end to end.
        return {"AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins)} if plugins.name == "plugins" else {}
    root = repository()
    return {
        "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(root / "plugins"),
    }


def _exported(settings: Settings) -> dict[str, str]:
    """The settings as the child processes read them, those given on a command line too."""
    found = {"WWTS_STORE": settings.store}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        alias = type(settings).model_fields[name].validation_alias
        key = alias if isinstance(alias, str) else f"WWTS_{name}".upper()
        if value is not None:
            found[key] = ",".join(value) if isinstance(value, tuple) else str(value)
    return found


def _owned(home: Path, kept: Mapping[str, str]) -> dict[str, str]:
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), HOST, "localhost"]))
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / _PASSWORDS),
        "AIRFLOW__CORE__FERNET_KEY": kept["fernet_key"],
        "AIRFLOW__API__SECRET_KEY": kept["secret_key"],
        "AIRFLOW__API_AUTH__JWT_SECRET": kept["jwt_secret"],
        "NO_PROXY": no_proxy,  # a proxy of the machine must not stand between the parts
        "no_proxy": no_proxy,
        "PYTHONSAFEPATH": "1",  # a folder called `training` where the command was typed must not shadow ours
        "PYTHONUNBUFFERED": "1",
        "SPT_NOENV": "1",  # see watchdog
    }


def _new_secrets() -> dict[str, str]:
    return {
        "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "secret_key": secrets.token_hex(32),
        "jwt_secret": secrets.token_hex(64),  # HS512 wants 64 bytes
    }


def _new_password() -> dict[str, str]:
    return {USER: secrets.token_urlsafe(12)}


def _kept(path: Path, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The JSON object in ``path``, made first (0600, whole or not at all, once for all processes) if absent."""
    if not path.exists():
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(make(), file)
            with suppress(FileExistsError):  # another process was quicker: use its secrets
                os.link(name, path)
        finally:
            os.unlink(name)
    try:
        return {str(key): str(value) for key, value in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise WwtsError(f"{path} is damaged (no JSON object); delete it, a new one is made") from error


def is_guest() -> bool:
    """Whether the environment names an Airflow that is somebody else's (a home or a database of its own)."""
    return "AIRFLOW_HOME" in os.environ or any(
        name.startswith("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN") for name in os.environ
    )


def guest_environment(settings: Settings) -> dict[str, str]:
    """The environment that reaches the Airflow our DAGs live in: the one this environment names, else our own."""
    return dict(os.environ) if is_guest() else airflow_environment(settings, up_home(settings))


# ------------------------------------------------------------------ Airflow's database


def migrate(environment: Mapping[str, str]) -> None:
    """Makes or upgrades Airflow's tables; three seconds on a fresh SQLite.

    Raises:
        UnavailableError: when Airflow could not; with its last words.
    """
    _airflow(["-m", "airflow", "db", "migrate"], environment, "Airflow's tables could not be made")


def create_pool(settings: Settings, environment: Mapping[str, str]) -> bool:
    """Creates the Airflow pool ``settings.pool``; False when it was there, which leaves it as it was.

    A real scheduler never runs a task whose pool does not exist, and only warns.

    Raises:
        UnavailableError: when Airflow's database refused; with its last words.
    """
    command = ["-c", _INSERT_POOL, settings.pool, str(settings.pool_slots)]
    told = _airflow(command, environment, f"The Airflow pool {settings.pool} could not be created")
    return told.splitlines()[-1:] == ["True"]


def init_airflow(settings: Settings) -> bool:
    """What `wwts init` does in Airflow: the pool; our own Airflow's tables too, never another one's.

    Returns:
        Whether the pool is new.
    """
    environment = guest_environment(settings)
    if not is_guest():
        migrate(environment)
    return create_pool(settings, environment)


def insert_pool(name: str, slots: int) -> bool:
    """Inserts a pool into the database of the Airflow of this process; False when the name is taken.

    A plain insert: ``airflow pools set`` and ``Pool.create_or_update_pool`` would change one that exists.
    """
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import IntegrityError

    try:
        with create_session() as session:
            if session.scalar(select(Pool.id).where(Pool.pool == name)) is not None:
                return False
            description = "wwts-ops: shards that tag images at the same time"
            session.add(Pool(pool=name, slots=slots, description=description, include_deferred=False))
    except IntegrityError:  # somebody else was quicker
        return False
    return True


def _airflow(arguments: Sequence[str], environment: Mapping[str, str], failure: str) -> str:
    """Runs Python with ``arguments`` in a session of its own, so that a Ctrl-C does not cut a migration in two."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{failure}: no answer in {START_LIMIT_S:.0f} s. Is its database locked?") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no words").splitlines()[-1]
        raise UnavailableError(f"{failure}: {last}. Is `airflow db migrate` done and the database reachable?")
    return done.stdout


# ------------------------------------------------------------------ wwts up


@dataclass(frozen=True)
class _Addresses:
    """Where the servers listen; ``mlflow`` is None when MLflow is somebody else's and only used."""

    api_port: int
    mlflow_port: int | None
    tracking_uri: str

    @property
    def airflow(self) -> str:
        return f"http://{HOST}:{self.api_port}"

    @property
    def ports(self) -> dict[str, int]:
        """Option of `wwts up` → port."""
        found = {"--port": self.api_port}
        return found if self.mlflow_port is None else {**found, "--mlflow-port": self.mlflow_port}


@dataclass
class _Fleet:
    """The child processes of one `wwts up`."""

    environment: Mapping[str, str]
    logs: Path
    stopped: threading.Event
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, arguments: Sequence[str], extra: Mapping[str, str]) -> None:
        """Starts Python with ``arguments`` in a process group of its own, its words in ``<name>.log``."""
        with self.log(name).open("wb") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, *arguments],
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def check(self) -> None:
        """Raises WwtsError when a child has died, with the tail of its log."""
        for name, child in self.children.items():
            if child.poll() is not None:
                lines = self.log(name).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
                tail = "\n".join(f"  {line}" for line in lines)
                raise WwtsError(
                    f"{name} ended unexpectedly (exit status {child.returncode}); the end of {self.log(name)}:\n{tail}"
                )


def up(settings: Settings, api_port: int = 8080, mlflow_port: int = 5000) -> int:
    """Starts api-server, scheduler, dag-processor, triggerer and MLflow on 127.0.0.1 and waits for a signal.

    Ctrl-C, TERM and HUP stop all of them: TERM, after 10 s KILL. Must be called from the main thread.

    Returns:
        0 after a signal; 1 when a part died or did not get healthy, everything else stopped first.

    Raises:
        WwtsError: before anything is started: a port in use, a second `wwts up` on the same store, no DAGs.
    """
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    uri = settings.resolved_tracking_uri
    own = uri.startswith(_DATABASES)
    addresses = _Addresses(api_port, mlflow_port if own else None, f"http://{HOST}:{mlflow_port}" if own else uri)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with _alone(settings) as lock:
        _refuse_taken(addresses)
        environment = airflow_environment(settings, up_home(settings))
        with _signals() as stopped, _fleet(settings, environment, stopped, lock) as fleet:
            try:
                _serve(settings, addresses, fleet, console)
            except WwtsError as error:
                if not stopped.is_set():
                    Console(stderr=True, soft_wrap=True, highlight=False, emoji=False).print(str(error), markup=False)
                    return 1
            console.print("stopping all servers …", markup=False)
    return 0


def _serve(settings: Settings, addresses: _Addresses, fleet: _Fleet, console: Console) -> None:
    started = datetime.now(UTC)
    with console.status("starting …") as status:
        if addresses.mlflow_port is not None:
            fleet.start("mlflow", *_mlflow(settings, addresses.mlflow_port))
        status.update("Airflow: making its tables")
        migrate(fleet.environment)
        create_pool(settings, fleet.environment)
        for name, arguments in _airflow_parts(addresses.api_port).items():
            fleet.start(name, arguments, _addressed(addresses))
        missing = _waiting_for(addresses, started)
        while missing and not fleet.stopped.wait(0.5):
            fleet.check()
            if (datetime.now(UTC) - started).total_seconds() > START_LIMIT_S:
                names = ", ".join(missing)
                raise WwtsError(f"{names} not healthy after {START_LIMIT_S:.0f} s; see the logs in {fleet.logs}")
            still = _waiting_for(addresses, started)
            for name in missing:
                if name not in still:
                    console.print(f"{name}: healthy", markup=False)
            missing = still
            status.update(f"waiting for {', '.join(missing)}")
    if not fleet.stopped.is_set():
        _announce(addresses, fleet, console)
    while not fleet.stopped.wait(1.0):
        fleet.check()


def _airflow_parts(api_port: int) -> dict[str, list[str]]:
    # --skip-serve-logs: those log servers listen on every address; api-server reads the same files anyway.
    airflow = ["-m", "airflow"]
    return {
        "api-server": [*airflow, "api-server", "--host", HOST, "--port", str(api_port), "--workers", "1"],
        "scheduler": [*airflow, "scheduler", "--skip-serve-logs"],
        "dag-processor": [*airflow, "dag-processor"],
        "triggerer": [*airflow, "triggerer", "--skip-serve-logs"],
    }


def _addressed(addresses: _Addresses) -> dict[str, str]:
    return {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{addresses.airflow}/execution/",
        "MLFLOW_TRACKING_URI": addresses.tracking_uri,
    }


def _mlflow(settings: Settings, port: int) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of MLflow's server; the database's address goes by environment, for its password."""
    artifacts = settings.state_dir / "mlartifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    names = f"{HOST}:{port},localhost:{port}"
    arguments = ["-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    arguments += ["--no-serve-artifacts", "--default-artifact-root", artifacts.as_uri(), "--allowed-hosts", names]
    arguments += ["--cors-allowed-origins", ",".join(f"http://{name}" for name in names.split(","))]
    extra = {
        "MLFLOW_BACKEND_STORE_URI": settings.resolved_tracking_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 0.4 GB instead of 1.9
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return arguments, extra


def _waiting_for(addresses: _Addresses, started: datetime) -> list[str]:
    """What is not healthy yet."""
    report = health.answer(addresses.airflow + health.AIRFLOW_PATH)
    missing = ["api-server"] if report is None else []
    missing += health.unwell(report or {}, health.AIRFLOW_COMPONENTS, started)
    if addresses.mlflow_port is not None and health.answer(addresses.tracking_uri + health.MLFLOW_PATH) is None:
        missing.append("mlflow")
    return missing


def _announce(addresses: _Addresses, fleet: _Fleet, console: Console) -> None:
    password_file = Path(fleet.environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    password = json.loads(password_file.read_text())[USER]
    whose = "" if addresses.mlflow_port is not None else "（外部服务，不由本命令启动 / not started here）"
    lines = (
        f"Airflow 地址 (address): {addresses.airflow}",
        f"图片审核 (review page): {addresses.airflow}/wwts/",
        f"用户 (user): {USER}",
        f"密码 (password): {password}",
        f"MLflow 地址 (address): {tracking.without_password(addresses.tracking_uri)}{whose}",
        f"日志 (logs): {fleet.logs}",
        "按 Ctrl-C 停止全部服务 (Ctrl-C stops all of them)",
    )
    for line in lines:
        console.print(line, markup=False)


@contextmanager
def _alone(settings: Settings) -> Iterator[IO[str]]:
    """Holds the lock that refuses a second `wwts up` on this state; the watchdog holds it too, to the very end."""
    path = settings.state_dir / "up.lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise WwtsError(
                f"`wwts up` already runs on {settings.store} (process {holder}); "
                "stop that one first, or set another WWTS_STORE."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


def _refuse_taken(addresses: _Addresses) -> None:
    if len(set(addresses.ports.values())) < len(addresses.ports):
        raise WwtsError(f"Airflow and MLflow cannot share port {addresses.api_port}; give --mlflow-port another.")
    for option, port in addresses.ports.items():
        if not 1 <= port <= 65535:
            raise WwtsError(f"{option} {port} is no port; give one from 1 to 65535.")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                why = error.strerror or str(error)
                raise WwtsError(
                    f"Port {port} on {HOST} cannot be used ({why}); "
                    f"stop what listens there or choose another with {option}."
                ) from error


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C, TERM and HUP set; HUP stays ignored where `nohup` asked for that."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    for number, handler in before.items():
        if not (number == signal.SIGHUP and handler == signal.SIG_IGN):
            signal.signal(number, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _fleet(
    settings: Settings, environment: Mapping[str, str], stopped: threading.Event, lock: IO[str]
) -> Iterator[_Fleet]:
    """A fleet with its watchdog; however the block ends, no process of it is left."""
    logs = settings.state_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    marker = uuid.uuid4().hex
    fleet = _Fleet({**environment, watchdog.MARKER: marker}, logs, stopped)
    with subprocess.Popen(
        [sys.executable, "-m", watchdog.__name__, marker],
        env=dict(environment),  # without the marker: it must not stop itself
        stdin=subprocess.PIPE,  # closed by the kernel when we die, and by this block's end
        pass_fds=[lock.fileno()],
        start_new_session=True,
    ):
        try:
            yield fleet
        finally:
            watchdog.stop(marker)
            for child in fleet.children.values():
                if child.poll() is None:  # its environment could not be read: end the group it leads
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
