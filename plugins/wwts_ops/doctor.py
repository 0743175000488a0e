"""``wwts doctor``: what is set, what is reachable, what is missing, and what to do about it.

Every check is bounded in time: the slow ones run in a child process that is killed, the others in a thread that
is left behind. Nothing is made that was not there, but for a probe below ``_doctor/`` in the store, removed again.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

import wwts_ops
from wwts_ops import deployment, health, servers, tracking
from wwts_ops.errors import WwtsError
from wwts_ops.fetch import check_uri
from wwts_ops.settings import Settings
from wwts_ops.storage import Store, s3_options

Status = Literal["ok", "warn", "fail"]

#: Seconds for a server or a disk to answer.
REACH_S = 8.0
#: Seconds for a child process that imports Airflow or torch; 1–6 s on two idle cores.
CHILD_S = 60.0
_COLOURS: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
_GIB = 2**30
#: Free disk below which the night would fail, and below which it may; a million thumbnails and embeddings take 20 GiB.
_DISK_FAIL, _DISK_WARN = 1 * _GIB, 10 * _GIB
_AIRFLOW_FACTS = (
    "import sys; from wwts_ops.doctor import airflow_facts; airflow_facts(sys.argv[1])"  # the words in front are logs
)
#: How MLflow says that there is no such model, and no such alias.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_TORCH_FACTS = (
    "import json, torch; cuda = torch.cuda.is_available(); "
    "print(json.dumps([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []))"
)
_ORT_FACTS = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"


@dataclass(frozen=True)
class Check:
    """One finding. ``advice`` says what to do; empty when nothing is to be done."""

    name: str
    status: Status
    detail: str
    advice: str = ""


def run(settings: Settings) -> int:
    """Prints all checks as a table; 1 when any failed, else 0."""
    console = Console()
    table = Table(show_lines=True)
    table.add_column("检查 check", no_wrap=True)
    table.add_column("结果 result", no_wrap=True)
    table.add_column("详情与建议 detail, → advice", overflow="fold")
    failed = False
    with console.status("checking …") as status:
        for check in checks(settings):
            status.update(f"checked: {check.name}")
            failed |= check.status == "fail"
            result = Text(check.status, style=_COLOURS[check.status])
            advice = f"\n→ {check.advice}" if check.advice else ""
            table.add_row(Text(check.name), result, Text(f"{check.detail}{advice}"))
    console.print(table)
    return int(failed)


def checks(settings: Settings) -> Iterator[Check]:
    """All checks, cheap ones first; each yields at least one finding, in at most :data:`CHILD_S` seconds."""
    quick: dict[str, Callable[[Settings], list[Check]]] = {
        "packages": _packages,
        "modules": _modules,
        "opencv": _opencv,
        "settings": _settings,
        "reviewers": _reviewers,
        "time zone": _timezone,
        "disk": _disk,
        "catalog": _catalog,
        "store": _store,
        "database": _database,
    }
    for name, check in quick.items():
        yield from _bounded(name, check, settings, REACH_S)
    yield from _bounded("mlflow", _mlflow, settings, CHILD_S)  # the import of mlflow alone takes seconds
    yield from _airflow(settings)
    yield from _device(settings)
    yield from _onnxruntime()


def _bounded(name: str, check: Callable[[Settings], list[Check]], settings: Settings, limit_s: float) -> list[Check]:
    """Runs ``check`` in a thread that is left behind when it takes too long; what it raises is a finding."""
    found: list[Check] = []

    def work() -> None:
        try:
            found.extend(check(settings))
        except _failures() as error:
            found.append(Check(name, "fail", str(error)))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [Check(name, "fail", f"no answer in {limit_s:.0f} s", "Check the address, the network and the proxy.")]
    return found or [Check(name, "fail", "the check itself broke; see the traceback above", "Report this as a bug.")]


def _failures() -> tuple[type[Exception], ...]:
    """What a disk or a server may answer with; S3's own errors only where its client is installed."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (WwtsError, OSError)
    return (WwtsError, OSError, BotoCoreError)


# ------------------------------------------------------------------ this machine


def _packages(_: Settings) -> list[Check]:
    found = []
    try:
        own = importlib.metadata.metadata("wwts-ops")
        required = importlib.metadata.requires("wwts-ops") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "warn", "wwts-ops is not installed as a package", "Run `make setup`.")]
    python, wanted = platform.python_version(), str(own["Requires-Python"])
    if SpecifierSet(wanted).contains(python):
        found.append(Check("python", "ok", f"{python} (supported: {wanted})"))
    else:
        found.append(Check("python", "fail", f"{python}, supported is {wanted}", "Run `make setup` with Python 3.11."))
    wrong = [finding for line in required if (finding := _requirement(Requirement(line)))]
    return found + (wrong or [Check("packages", "ok", "all at supported versions")])


def _requirement(requirement: Requirement) -> Check | None:
    """What is wrong with one line of our requirements, if anything; extras `demo` and `dev` are not looked at."""
    base = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    worker = requirement.marker is None or requirement.marker.evaluate({"extra": "worker"})
    if not (base or worker):
        return None
    name = f"package {requirement.name}"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if base:
            return Check(name, "fail", "not installed", "Run `make setup`.")
        return Check(name, "warn", "not installed", "Needed where tasks run: pip install 'wwts-ops[worker]'.")
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return Check(name, "fail", f"{version}, supported is {requirement.specifier}", "Run `make setup`.")


def _modules(_: Settings) -> list[Check]:
    """A stray folder called `training` or `eval` earlier on the path would be imported instead of ours."""
    here = Path(wwts_ops.__file__).resolve().parent
    root = here.parents[1] if here.parent.name == "plugins" else here.parent
    wrong = [finding for name in ("training", "eval") if (finding := _module(name, root))]
    return wrong or [Check("modules", "ok", f"wwts_ops, training and eval all come from {root}")]


def _module(name: str, root: Path) -> Check | None:
    spec = importlib.util.find_spec(name)
    origin = spec.origin if spec else None
    if origin and Path(origin).resolve() == root / name / "__init__.py":
        return None
    where = origin or (f"a folder without __init__.py: {list(spec.submodule_search_locations or [])}" if spec else "")
    advice = f"Rename what shadows {root / name}, or run from another folder." if where else "Run `make setup`."
    return Check(f"module {name}", "fail", f"comes from {where}" if where else "cannot be imported", advice)


def _opencv(_: Settings) -> list[Check]:
    found = [dist for dist in _OPENCV if _version(dist)]
    if len(found) > 1:
        advice = f"pip uninstall {' '.join(found)}, then pip install opencv-python: two of them break each other."
        return [Check("opencv", "fail", f"{len(found)} OpenCV wheels: {', '.join(found)}", advice)]
    if not found:
        return [Check("opencv", "warn", "not installed", "Needed where tasks run: pip install 'wwts-ops[worker]'.")]
    return [Check("opencv", "ok", f"{found[0]} {_version(found[0])}, the only OpenCV wheel")]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _settings(settings: Settings) -> list[Check]:
    fields = type(settings).model_fields
    known = [f"WWTS_{name}".upper() for name, field in fields.items() if field.validation_alias is None]
    known.append("WWTS_GIT_SHA")  # read by provenance
    given = sorted(name for name in os.environ if name.startswith("WWTS_"))
    unknown = [name for name in given if name not in known]
    found = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        found.append(Check("settings", "warn", f"{name} is no setting", f"Did you mean {near[0]}?" if near else ""))
    valid = ", ".join(name for name in given if name in known)
    return [Check("settings", "ok", f"valid; set here: {valid or 'none, all defaults'}"), *found]


def _reviewers(settings: Settings) -> list[Check]:
    named = {"WWTS_REVIEWERS": settings.reviewers, "WWTS_REVIEW_ADMINS": settings.review_admins}
    told = "; ".join(f"{name}: {', '.join(people)}" for name, people in named.items() if people)
    if not told:
        advice = "Name Airflow users in WWTS_REVIEWERS and WWTS_REVIEW_ADMINS (`wwts up` alone names its user admin)."
        return [Check("reviewers", "warn", "nobody may answer on the review page", advice)]
    return [Check("reviewers", "ok", told)]


def _timezone(settings: Settings) -> list[Check]:
    now = settings.now()
    return [Check("time zone", "ok", f"{settings.timezone}: now {now:%Y-%m-%d %H:%M} (UTC{now:%z})")]


def _disk(settings: Settings) -> list[Check]:
    folder = _existing(settings.state_dir)
    free = shutil.disk_usage(folder).free
    detail = f"{free / _GIB:.1f} GiB free in {folder}"
    if free >= _DISK_WARN:
        return [Check("disk", "ok", detail)]
    return [Check("disk", "fail" if free < _DISK_FAIL else "warn", detail, "Free space, or move WWTS_STORE.")]


def _existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _device(settings: Settings) -> list[Check]:
    names = _child(["-c", _TORCH_FACTS], dict(os.environ))
    if isinstance(names, Check):
        status: Status = "fail" if settings.device.startswith("cuda") else "warn"
        return [Check("device", status, f"torch cannot be used: {names.detail}", "Needed where tasks run.")]
    if names:
        return [Check("device", "ok", f"WWTS_DEVICE={settings.device}; CUDA: {', '.join(names)}")]
    if settings.device.startswith("cuda"):
        advice = "Set WWTS_DEVICE=auto, or install the driver and the CUDA build of torch."
        return [Check("device", "fail", f"WWTS_DEVICE={settings.device}, but torch sees no CUDA device", advice)]
    return [Check("device", "ok", f"WWTS_DEVICE={settings.device}; no CUDA device, the CPU is used")]


def _onnxruntime() -> list[Check]:
    providers = _child(["-c", _ORT_FACTS], dict(os.environ))
    if isinstance(providers, Check):
        return [Check("onnxruntime", "warn", f"cannot be used: {providers.detail}", "Needed where tasks run.")]
    if "CPUExecutionProvider" not in providers:
        return [Check("onnxruntime", "fail", f"no CPU provider, only {providers}", "Run `make setup`.")]
    return [Check("onnxruntime", "ok", f"{_version('onnxruntime')}: {', '.join(providers)}")]


def _child(arguments: list[str], environment: Mapping[str, str]) -> Any:
    """The JSON on the last line that Python with ``arguments`` prints, or a failed :class:`Check` saying why not."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=CHILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("", "fail", f"no answer in {CHILD_S:.0f} s")
    words = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    try:
        return json.loads(words[-1])
    except (IndexError, ValueError):
        return Check("", "fail", words[-1] if words else f"exit status {done.returncode}")


# ------------------------------------------------------------------ what we read and write


def _catalog(settings: Settings) -> list[Check]:
    uri = settings.catalog
    if not uri:
        return [Check("catalog", "warn", "WWTS_CATALOG is not set", "Set it to a folder of images or a manifest.")]
    if "://" not in uri:
        return [_local_catalog(Path(uri).expanduser())]
    if uri.startswith("https://"):
        flaw = check_uri(uri, settings)
        shown = uri.partition("?")[0]
        return [Check("catalog", "fail", flaw) if flaw else Check("catalog", "ok", f"{shown} (not fetched now)")]
    if not uri.startswith("s3://"):
        advice = "Set WWTS_CATALOG to one of them."
        return [Check("catalog", "fail", f"{uri} is neither a path nor s3:// nor https://", advice)]
    import fsspec

    there = fsspec.filesystem("s3", **s3_options(settings.s3_endpoint)).exists(uri)
    return [
        Check("catalog", "ok", f"{uri} is there")
        if there
        else Check("catalog", "fail", f"{uri} does not exist", "Correct WWTS_CATALOG.")
    ]


def _local_catalog(path: Path) -> Check:
    if not path.exists():
        return Check("catalog", "fail", f"{path} does not exist", "Correct WWTS_CATALOG.")
    if not os.access(path, os.R_OK):
        return Check("catalog", "fail", f"{path} may not be read", f"chmod a+r {path}")
    if path.is_dir() and not any(path.iterdir()):
        return Check("catalog", "warn", f"{path} is empty", "Put images there, or correct WWTS_CATALOG.")
    return Check("catalog", "ok", f"{path} ({'folder' if path.is_dir() else 'manifest'})")


def _store(settings: Settings) -> list[Check]:
    store = Store.of(settings)
    if store.is_local and not Path(store.root).exists():
        above = _existing(Path(store.root))
        if not (above.is_dir() and os.access(above, os.W_OK)):
            return [Check("store", "fail", f"{store.root} cannot be made in {above}", "Correct WWTS_STORE.")]
        return [Check("store", "ok", f"{store.root} is not there yet; the first run makes it")]
    folder = f"_doctor/{uuid.uuid4().hex}"
    key = f"{folder}/probe.json"
    try:
        return [_probe(store, key)]
    finally:
        store.delete(key)
        if store.is_local:  # the pointer's lock file, and the folder itself when no other doctor is at work
            shutil.rmtree(store.path(folder), ignore_errors=True)
            if not any(Path(store.path("_doctor")).iterdir()):
                Path(store.path("_doctor")).rmdir()


def _probe(store: Store, key: str) -> Check:
    """Makes a file twice and moves a pointer twice: each second time must be refused."""
    if not store.create(key, b'{"sequence": 0}'):
        return Check("store", "fail", f"{store.root}: a new file was taken for an old one", _OTHER_STORE)
    if store.create(key, b"{}"):
        return Check("store", "fail", f"{store.root} ignores If-None-Match: two plans could both win", _OTHER_STORE)
    stale = store.read_pointer(key)
    if not store.replace_pointer(key, {}, stale):
        return Check("store", "fail", f"{store.root} refused the replacement of a current pointer", _OTHER_STORE)
    if store.replace_pointer(key, {}, stale):
        return Check("store", "fail", f"{store.root} ignores If-Match: updates could be lost", _OTHER_STORE)
    return Check("store", "ok", f"{store.root}: writable, conditional writes hold")


_OTHER_STORE = "Use a store with conditional writes: AWS S3, Alibaba OSS, SeaweedFS 4, or a folder."


def _database(settings: Settings) -> list[Check]:
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = sqlalchemy.make_url(settings.resolved_database_url)
        shown = url.render_as_string(hide_password=True)
        if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).exists()):
            return [Check("database", "ok", f"{shown} is not there yet; `wwts init` or the first run makes it")]
        arguments = {"connect_timeout": int(REACH_S / 2)} if url.get_backend_name() == "postgresql" else {}
        engine = sqlalchemy.create_engine(url, connect_args=arguments)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("select 1"))
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        return [Check("database", "fail", first, "Check WWTS_DATABASE_URL and that the server runs.")]
    return [Check("database", "ok", f"{shown} answers")]


def _mlflow(settings: Settings) -> list[Check]:
    uri = settings.resolved_tracking_uri
    if uri.startswith("sqlite:"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            return [Check("mlflow", "ok", f"{path} is not there yet; the first night makes it")]
    elif uri.startswith("http") and health.answer(uri.rstrip("/") + health.MLFLOW_PATH) is None:
        advice = "Start it (`wwts up`), or correct MLFLOW_TRACKING_URI."
        return [Check("mlflow", "fail", f"{tracking.without_password(uri)} does not answer", advice)]
    return _champion(settings, tracking.without_password(uri))


def _champion(settings: Settings, shown: str) -> list[Check]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    name = f"{settings.model_name}@champion"
    try:
        client = MlflowClient(settings.resolved_tracking_uri)
        found = client.get_model_version_by_alias(settings.model_name, "champion")
    except (MlflowException, SQLAlchemyError) as error:
        # MLflow's own words hold the URI, password and all.
        first = tracking.without_password(str(error).splitlines()[0])
        if getattr(error, "error_code", "") not in _ABSENT:
            return [Check("mlflow", "fail", f"{shown}: {first}", "Check MLFLOW_TRACKING_URI and that the server runs.")]
        advice = "The first night registers the embedded default."
        return [Check("mlflow", "ok", f"{shown} answers"), Check("champion", "warn", f"no {name}: {first}", advice)]
    return [Check("mlflow", "ok", f"{shown} answers"), _fitness(found, name)]


def _fitness(found: Any, name: str) -> Check:
    """Whether a version can tag, and under which code."""
    from wwts_ops import packed
    from wwts_ops.tracking import ModelVersion

    try:
        model = ModelVersion.of(found)
    except WwtsError as error:
        return Check("champion", "fail", str(error), "Move the alias in MLflow to a version that wwts registered.")
    told = f"{name} is version {model.version}"
    if packed.differs(model):
        told += ", registered with other code: its shards run under that code, in processes of their own"
    return Check("champion", "ok", told)


# ------------------------------------------------------------------ Airflow


def airflow_facts(pool: str) -> None:
    """Prints, as one line of JSON, what the Airflow of this process has; run in a child process only.

    Keys: ``executor``; ``pool`` (its slots, null when absent); ``database`` (an error, null when it answers);
    ``plugins`` (sources of ours); ``plugin_errors`` (of ours), ``dag_errors`` (file → error); ``dags`` (how many).
    """
    from airflow import plugins_manager
    from airflow.configuration import conf
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag()
    infos = plugins_manager.get_plugin_info(["name", "source"])
    broken = plugins_manager.get_import_errors()
    facts = {
        "executor": conf.get("core", "executor"),
        **_pool_facts(pool),
        "plugins": [str(info["source"]) for info in infos if "wwts_ops" in str(info["source"])],
        "plugin_errors": {str(path): str(error) for path, error in broken.items() if "wwts_ops" in str(path)},
        "dag_errors": {str(path): str(error).strip().splitlines()[-1] for path, error in bag.import_errors.items()},
        "dags": len(bag.dags),
    }
    sys.stdout.write(f"\n{json.dumps(facts)}\n")


def _pool_facts(name: str) -> dict[str, Any]:
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            slots = session.scalar(select(Pool.slots).where(Pool.pool == name))
    except SQLAlchemyError as error:
        return {"pool": None, "database": str(error).splitlines()[0]}
    return {"pool": slots, "database": None}


def _airflow(settings: Settings) -> list[Check]:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            environment = _airflow_environment(settings, Path(scratch))
        except WwtsError as error:
            return [Check("airflow", "fail", str(error))]
        facts = _child(["-c", _AIRFLOW_FACTS, settings.pool], environment)
    if isinstance(facts, Check):
        return [Check("airflow", "fail", facts.detail, "Run `airflow info` to see what is wrong.")]
    whose = environment.get("AIRFLOW_HOME", "~/airflow")
    home = "our own, not made yet" if whose.startswith(scratch) else whose
    return [
        Check("airflow", "ok", f"{_version('apache-airflow')}, {facts['executor']}, home {home}"),
        _executor(settings, facts["executor"]),
        _pool(settings, facts),
        _plugin(facts),
        _dags(facts),
    ]


def _airflow_environment(settings: Settings, scratch: Path) -> dict[str, str]:
    """The environment to look at Airflow with; a home that is not there yet is not made, an empty one stands in."""
    if servers.is_guest() or servers.up_home(settings).exists():
        return servers.guest_environment(settings)
    return servers.airflow_environment(settings, scratch)


def _executor(settings: Settings, executor: str) -> Check:
    try:
        deployment.refuse_unshared(settings, executor)
    except WwtsError as error:
        return Check("executor", "fail", str(error))
    return Check("executor", "ok", f"{executor} and the places we write to fit together")


def _pool(settings: Settings, facts: Mapping[str, Any]) -> Check:
    if facts["pool"] is None:
        detail = facts["database"] or f"no pool {settings.pool}: its tasks would wait for ever"
        return Check("pool", "fail", detail, "Run `wwts init`; it creates the pool.")
    return Check("pool", "ok", f"{settings.pool}: {facts['pool']} slot(s)")


def _plugin(facts: Mapping[str, Any]) -> Check:
    found, errors = facts["plugins"], facts["plugin_errors"]
    if errors:
        detail = _first(errors)
        return Check("plugin", "fail", detail, "See plugins/.airflowignore: only airflow_plugin.py may be loaded.")
    if len(found) != 1:
        advice = "Set AIRFLOW__CORE__PLUGINS_FOLDER to our plugins/ folder, .airflowignore included."
        return Check("plugin", "fail", f"{len(found)} plugins of ours loaded, not one: {found}", advice)
    return Check("plugin", "ok", f"one loaded: {found[0]}")


def _first(errors: Mapping[str, str], shown: int = 3) -> str:
    lines = [f"{path}: {error}" for path, error in list(errors.items())[:shown]]
    more = len(errors) - len(lines)
    return "\n".join([*lines, f"and {more} more"] if more else lines)


def _dags(facts: Mapping[str, Any]) -> Check:
    errors = facts["dag_errors"]
    if errors:
        detail = _first(errors)
        return Check("dags", "fail", detail, "Run `airflow dags list-import-errors` for the whole traceback.")
    if not facts["dags"]:
        return Check("dags", "fail", "no DAG found", "Set AIRFLOW__CORE__DAGS_FOLDER to our dags/ folder.")
    return Check("dags", "ok", f"{facts['dags']} import without an error")
