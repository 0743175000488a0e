"""Whether a version works by itself: loaded and run in a fresh process with its own code and requirements only."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import structlog
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from wwts_ops import tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

#: Loading torch and a backbone took 15 s on two busy cores; a slow shared disk takes longer.
TIME_LIMIT_S = 180.0
_TOLD_LINES = 4
#: What a process needs to run at all; no credential, no setting of ours or of MLflow's.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "SYSTEMROOT")


@dataclass(frozen=True)
class Closure:
    """Installed distributions that a list of requirements brings with it.

    Attributes:
        names: canonical ones.
        files: absolute paths of all their files.
        sites: folders that they lie in.
    """

    names: frozenset[str]
    files: frozenset[str]
    sites: tuple[str, ...]


def check(settings: Settings, model: ModelVersion) -> None:
    """Downloads the version, and lets a fresh process load it and look at one picture.

    That process finds the standard library, the closure of the model's own pinned requirements and the code packed
    with it, and can load no pickle.

    Raises:
        WwtsError: when the version does not work so; with the reason.
        UnavailableError: when MLflow does not answer.
    """
    uri = f"models:/{model.name}/{model.version}"
    with tempfile.TemporaryDirectory(prefix="wwts-isolated-") as name:
        folder = Path(name).resolve()
        path = _downloaded(settings, uri, folder / "model")
        try:
            _check_hash(path, model)
            label = _label(_predicted(path, closure(_requirements(path)), folder))
        except UnavailableError:
            raise
        except WwtsError as error:
            raise WwtsError(f"Version {model.version} of {model.name} does not work by itself: {error}") from error
    log.info("isolated_model_works", model=model.name, version=model.version, label_id=label)


def closure(requirements: Iterable[Requirement]) -> Closure:
    """The distributions that ``requirements`` bring with them, as installed here.

    Raises:
        WwtsError: naming every requirement that is not installed, or in another version.
    """
    waiting = list(requirements)
    seen: set[tuple[str, str]] = set()
    found: dict[str, metadata.Distribution] = {}
    wrong = []
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted} is not installed")
            continue
        if not wanted.specifier.contains(found[name].version, prereleases=True):
            wrong.append(f"{wanted} is installed as {found[name].version}")
        for extra in ("", *wanted.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _needed(found[name], extra)
    if wrong:
        raise WwtsError(f"{'; '.join(sorted(set(wrong)))}. Install what it needs, or register the model again here.")
    return _of(found)


def _needed(distribution: metadata.Distribution, extra: str) -> list[Requirement]:
    wanted = (Requirement(line) for line in distribution.requires or ())
    return [entry for entry in wanted if entry.marker is None or entry.marker.evaluate({"extra": extra})]


def _of(found: dict[str, metadata.Distribution]) -> Closure:
    files: set[str] = set()
    sites: set[str] = set()
    for distribution in found.values():
        site = str(Path(str(distribution.locate_file(""))).absolute())
        sites.add(site)
        files.update(f"{site}/{file}" for file in distribution.files or ())
    return Closure(frozenset(found), frozenset(files), tuple(sorted(sites)))


def _downloaded(settings: Settings, uri: str, folder: Path) -> Path:
    """The model's files: the fresh process then needs no credentials."""
    folder.mkdir()
    with tracking.connected(settings):
        import mlflow

        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))).resolve()


def _check_hash(path: Path, model: ModelVersion) -> None:
    found = sorted(path.rglob("tagger.json"))
    if not found:
        raise WwtsError("it holds no tagger; its upload was cut off. Register it again.")
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != model.sha256:
        raise WwtsError("its tagger is not the one that was registered. Register it again.")


def _requirements(path: Path) -> list[Requirement]:
    try:
        lines = (path / "requirements.txt").read_text(encoding="utf-8").splitlines()
        found = [Requirement(line) for line in (line.partition("#")[0].strip() for line in lines) if line]
    except (OSError, UnicodeDecodeError, InvalidRequirement) as error:
        raise WwtsError(f"its requirements.txt cannot be read ({error}). Register it again.") from error
    loose = [str(entry) for entry in found if not _is_pinned(entry)]
    if loose or not found:
        raise WwtsError(f"its requirements must name exact versions (==), not {', '.join(loose) or 'nothing'}.")
    return found


def _is_pinned(requirement: Requirement) -> bool:
    clauses = list(requirement.specifier)
    return len(clauses) == 1 and clauses[0].operator == "==" and "*" not in clauses[0].version


def _predicted(path: Path, admitted: Closure, folder: Path) -> dict[str, Any]:
    """The row that the fresh process predicts.

    Raises:
        WwtsError: with the last lines of what it said.
    """
    work = folder / "work"
    work.mkdir()
    (folder / "picture.png").write_bytes(_picture())
    order = {
        "standard": [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED")],
        "sites": admitted.sites,
        "files": sorted(admitted.files),
        "names": sorted(admitted.names),
        "model": str(path),
        "picture": str(folder / "picture.png"),
        "answer": str(folder / "answer.json"),
    }
    (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
    program = str(Path(__file__).with_name("isolated.py"))
    _run([sys.executable, "-I", "-S", program, str(folder / "order.json")], work)
    try:
        row: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WwtsError("it ended without a prediction.") from error
    return row


def _label(row: Mapping[str, Any]) -> str:
    if not row.get("label_id"):
        raise WwtsError(f"it found no label in a picture ({row.get('error') or 'and told no error'}).")
    return str(row["label_id"])


def _run(command: list[str], work: Path) -> None:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    own = {
        "HOME": str(work),
        "TMPDIR": str(work),
        "MLFLOW_TRACKING_URI": f"sqlite:///{work / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    process = subprocess.Popen(
        command,
        cwd=work,
        env={**kept, **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        _, told = process.communicate(timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"A fresh process predicted nothing within {TIME_LIMIT_S:.0f} seconds.") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
            process.communicate()
    if process.returncode < 0:
        raise UnavailableError(f"A fresh process was killed (signal {-process.returncode}), perhaps out of memory.")
    if process.returncode != 0:
        lines = [line for line in told.splitlines() if line.strip()][-_TOLD_LINES:]
        raise WwtsError("\n".join([f"the fresh process ended with {process.returncode}:", *lines]))


def _picture() -> bytes:
    """A picture with some structure; what is in it does not matter."""
    from PIL import Image

    out = io.BytesIO()
    Image.radial_gradient("L").resize((320, 240)).convert("RGB").save(out, "PNG")
    return out.getvalue()
