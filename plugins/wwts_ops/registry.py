"""The MLflow model registry: who is champion, which versions there are, their files in the local cache."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from wwts_ops import registration, tracking
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import appearing
from wwts_ops.tagger import Tagger, load
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

CHAMPION = "champion"


@dataclass(frozen=True)
class Listed:
    """A line of `wwts models list`; hashes are empty for versions that wwts did not register."""

    version: str
    aliases: tuple[str, ...]
    sha256: str
    backbone_sha256: str
    registered: str


def champion(settings: Settings) -> ModelVersion | None:
    """The version that alias ``champion`` names now, or None.

    Raises:
        UnavailableError: when MLflow does not answer.
    """
    with tracking.connected(settings) as client:
        return _champion(client, settings.model_name)


def exists(settings: Settings) -> bool:
    """Whether there is a registry to ask: looking at a picture should not create one."""
    uri = settings.resolved_tracking_uri
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def versions(settings: Settings) -> list[Listed]:
    """All registered versions, newest first.

    Raises:
        UnavailableError: when MLflow does not answer.
    """
    if not exists(settings):
        return []
    with tracking.connected(settings) as client:
        aliases: dict[str, list[str]] = {}
        for model in client.search_registered_models(f"name='{settings.model_name}'"):
            for alias, version in model.aliases.items():
                aliases.setdefault(str(version), []).append(alias)
        found = client.search_model_versions(f"name='{settings.model_name}'")
        return [
            Listed(
                version=str(entry.version),
                aliases=tuple(sorted(aliases.get(str(entry.version), []))),
                sha256=entry.tags.get("model_sha256", ""),
                backbone_sha256=entry.tags.get("backbone_sha256", ""),
                registered=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
            )
            for entry in sorted(found, key=lambda entry: -int(entry.version))
        ]


def ensure_champion(settings: Settings) -> ModelVersion:
    """The champion; with an empty registry, the embedded default is registered as one first.

    Raises:
        UnavailableError: when MLflow does not answer.
        WwtsError: when versions exist but none is champion: only a person can say which one to use.
    """
    with _one_at_a_time(settings), tracking.connected(settings) as client:
        found = _champion(client, settings.model_name)
        if found:
            return found
        versions = sorted(client.search_model_versions(f"name='{settings.model_name}'"), key=lambda v: int(v.version))
        embedded = [entry for entry in versions if registration.EMBEDDED_TAG in entry.tags]
        if len(embedded) != len(versions):
            raise WwtsError(
                f"Model {settings.model_name} has versions but no alias '{CHAMPION}'; "
                "set it in MLflow on the version that should tag."
            )
        first = ModelVersion.of(embedded[0]) if embedded else registration.register_embedded(settings)
        client.set_registered_model_alias(settings.model_name, CHAMPION, first.version)
        log.info("champion_set", model=settings.model_name, version=first.version)
        return first


def resolve(settings: Settings, version: str | None) -> ModelVersion:
    """Version number ``version``, or the champion.

    Raises:
        WwtsError: when there is no such version.
    """
    if version is None:
        return ensure_champion(settings)
    from mlflow.exceptions import MlflowException

    with tracking.connected(settings) as client:
        try:
            return ModelVersion.of(client.get_modelModelVersion.of(settings.model_name, version))
        except MlflowException as error:
            if error.error_code not in tracking.ABSENT:
                raise
            raise WwtsError(f"Model {settings.model_name} has no version {version}; see `wwts models list`.") from error


def fetch(settings: Settings, model: ModelVersion) -> Tagger:
    """The tagger's files in the local cache, verified; downloaded when they are not there yet.

    Raises:
        WwtsError: when what MLflow holds is not what was registered.
    """
    target = settings.state_dir / "models" / model.sha256
    if not target.exists():
        # Verified before it is in the cache, where it would otherwise stay wrong after MLflow was mended.
        with tracking.connected(settings), appearing(target) as folder:
            _download(model, folder)
            _verified(folder, model)
    return _verified(target, model)


def _champion(client: Any, name: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return ModelVersion.of(client.get_model_version_by_alias(name, CHAMPION))
    except MlflowException as error:
        if error.error_code in tracking.ABSENT:
            return None
        raise


def _download(model: ModelVersion, folder: Path) -> None:
    import mlflow

    uri = f"models:/{model.name}/{model.version}"
    with tempfile.TemporaryDirectory(prefix="wwts-fetch-") as name:
        path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=name)
        found = [entry.parent for entry in Path(path).rglob("tagger.json")]
        if not found:
            raise WwtsError(f"{uri} holds no tagger; its upload was cut off. Register it again.")
        shutil.copytree(found[0], folder, dirs_exist_ok=True)


def _verified(folder: Path, model: ModelVersion) -> Tagger:
    tagger = load(folder)
    if tagger.sha256 != model.sha256:
        raise WwtsError(f"The files of {model.name} version {model.version} are not those that were registered.")
    return tagger


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    """Two first nights on one machine register one default, not two."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / ".registry.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
