"""Tagging with a version that other code was packed with: under that code, in a process of its own.

A process that has imported our code keeps it, whatever MLflow holds: rolling back a version in it would not roll back
the code. The other process runs this release (planning, reading, writing), its recognition replaced by the packed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import structlog

from wwts_ops import cache, registration, registry, schemas
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.provenance import git_sha
from wwts_ops.settings import Settings
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

Event = dict[str, Any]

#: The event by which the other process says why it ends; see :mod:`wwts_ops.shardprocess`.
REFUSED = "shard_refused"
_LEVELS = ("debug", "info", "warning", "error", "critical")


def differs(model: ModelVersion) -> bool:
    """Whether other code than the running one was packed with a version; not when nobody noted its hash."""
    return model.code_sha256 not in ("", registration.code_sha256())


def overlay(settings: Settings, model: ModelVersion) -> Path:
    """A folder that holds the running package ``wwts_ops``, its files replaced by those packed with ``model``.

    Raises:
        WwtsError: when what MLflow holds is not what was registered.
        UnavailableError: when the packed code is not in the cache and MLflow does not answer.
    """
    ours, theirs = Path(__file__).parent, registry.code(settings, model) / "wwts_ops"
    wanted = registration.file_hashes(ours) | registration.file_hashes(theirs)

    def fill(folder: Path) -> None:
        for source in (ours, theirs):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / "wwts_ops", ignore=ignored, dirs_exist_ok=True)

    def check(folder: Path) -> Path:
        if registration.file_hashes(folder / "wwts_ops") != wanted:
            raise WwtsError(f"{folder} does not hold the code that it should; delete it.")
        return folder

    name = f"{registration.code_sha256(ours)[:12]}-{model.code_sha256[:12]}"
    return cache.kept(settings.state_dir / "overlays" / name, check, fill)


def contract() -> str:
    """SHA-256 of what a shard reads and writes: code must agree on it with this release to tag for it."""
    shared = (schemas.PLAN, schemas.TAXONOMY, schemas.TAGS, schemas.QUARANTINE, schemas.embeddings_schema(1))
    return hashlib.sha256("\n".join(map(str, shared)).encode()).hexdigest()


def run(settings: Settings, model: ModelVersion, run_key: str, shard: int) -> None:
    """Tags a shard in a process of its own, under the code packed with ``model``; errors as in :func:`run_module`."""
    run_module(settings, model, "shardprocess", (run_key, str(shard)))


def run_module(settings: Settings, model: ModelVersion, module: str, arguments: Sequence[str]) -> None:
    """Runs ``wwts_ops.<module>`` in a process of its own, under the code packed with ``model``.

    Args:
        settings: in force there, too.
        model: whose code.
        module: a program as :mod:`wwts_ops.shardprocess`: it takes the overlay's folder, :func:`contract` and
            ``arguments``.
        arguments: say which part of the work to do.

    Raises:
        WwtsError: when that code does not fit this release, or what the module's work raises.
        UnavailableError: when a server or disk does not answer.
        subprocess.CalledProcessError: when the process ended otherwise, such as for want of memory.
    """
    folder = overlay(settings, model)
    log.info("tagging_with_packed_code", version=model.version, code=model.code_sha256[:12], folder=str(folder))
    command = [sys.executable, "-P", "-m", f"wwts_ops.{module}", str(folder), contract(), *arguments]
    with subprocess.Popen(
        command,
        env=_environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as child:
        try:
            refused = _followed(child, settings)
            code = child.wait()
        finally:
            child.kill()
    if refused:
        raise _error(refused, model)
    if code:
        raise subprocess.CalledProcessError(code, command)


def _environment(folder: Path) -> dict[str, str]:
    """Ours, with the overlay first on the path, and without settings: those in force are sent."""
    names = {f"WWTS_{name}".upper() for name in Settings.model_fields} | {"MLFLOW_TRACKING_URI"}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in names}
    path = os.pathsep.join(filter(None, [str(folder), kept.get("PYTHONPATH")]))
    # The overlay is no checkout: this release's commit is to be told.
    return {**kept, "PYTHONPATH": path, "WWTS_GIT_SHA": git_sha() or ""}


def _followed(child: subprocess.Popen[bytes], settings: Settings) -> Event | None:
    """Sends the settings, and hands on what the process says until its end; why it refused, if it did."""
    assert child.stdin is not None
    assert child.stdout is not None
    # The pipe stays open: when we die, its end tells the other process so.
    with suppress(BrokenPipeError):
        child.stdin.write(settings.model_dump_json().encode() + b"\n")
        child.stdin.flush()
    return _handed_on(child.stdout)


def _handed_on(output: IO[bytes]) -> Event | None:
    refused = None
    for raw in output:
        event = _event(raw)
        if event is None:
            sys.stderr.write(raw.decode(errors="replace"))
        elif event["event"] == REFUSED:
            refused = event
        else:
            _log(event)
    return refused


def _event(raw: bytes) -> Event | None:
    with suppress(ValueError):
        event = json.loads(raw)
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return None


def _log(event: Mapping[str, Any]) -> None:
    level = str(event.get("level"))
    told = {name: value for name, value in event.items() if name not in ("event", "level", "timestamp", "logger")}
    getattr(log, level if level in _LEVELS else "info")(event["event"], **told)


def _error(refused: Event, model: ModelVersion) -> WwtsError:
    reason = str(refused.get("reason"))
    if refused.get("kind") == "unfit":
        return WwtsError(
            f"{model} was registered with other recognition code ({model.code_sha256[:12]}), which does not fit this "
            f"release ({reason}). Register it again with this release and evaluate it, or deploy the release that it "
            "was registered with."
        )
    return UnavailableError(reason) if refused.get("kind") == "unavailable" else WwtsError(reason)
