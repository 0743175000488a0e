"""The MLflow model registry: log, register, resolve aliases, fetch a tagger to disk."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import structlog

from wwts_ops import taxonomy as taxonomies
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.provenance import git_sha
from wwts_ops.settings import Settings
from wwts_ops.tagger import Tagger, build_embedded, load

log = structlog.get_logger(__name__)

CHAMPION = "champion"
_EXPERIMENT = "wwts-models"
_EMBEDDED = "wwts.embedded"
#: What MLflow answers when asked for a version or an alias that is not there, or is no number.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: MLflow's error codes that asking again does not change.
_LASTING = frozenset(
    {"BAD_REQUEST", "CUSTOMER_UNAUTHORIZED", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"}
)

#: What recognising a picture needs, and nothing else: packed with every version.
RECOGNITION = (
    "__init__.py",
    "errors.py",
    "schemas.py",
    "taxonomy.py",
    "decisions.py",
    "images.py",
    "tagger.py",
    "runtime.py",
    "recognition.py",
    *(f"backbones/{path.name}" for path in sorted(Path(__file__).parent.glob("backbones/*.py"))),
)
_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "onnx",
    "onnxruntime",
    "opencv-python",
    "pandas",
    "pillow",
    "pyarrow",
    "safetensors",
    "simplejpeg",
    "torch",
)


@dataclass(frozen=True)
class ModelVersion:
    """A registered version, resolved once a run.

    Attributes:
        name: of the registered model.
        version: MLflow's number, as text.
        sha256: of the tagger (``model_sha256`` of the tags).
        backbone_sha256: which embeddings fit its head.
    """

    name: str
    version: str
    sha256: str
    backbone_sha256: str


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
    with _mlflow(settings) as client:
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
    with _mlflow(settings) as client:
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
    with _one_at_a_time(settings), _mlflow(settings) as client:
        found = _champion(client, settings.model_name)
        if found:
            return found
        versions = sorted(client.search_model_versions(f"name='{settings.model_name}'"), key=lambda v: int(v.version))
        embedded = [entry for entry in versions if _EMBEDDED in entry.tags]
        if len(embedded) != len(versions):
            raise WwtsError(
                f"Model {settings.model_name} has versions but no alias '{CHAMPION}'; "
                "set it in MLflow on the version that should tag."
            )
        first = embedded[0] if embedded else _register_embedded(client, settings)
        client.set_registered_model_alias(settings.model_name, CHAMPION, first.version)
        log.info("champion_set", model=settings.model_name, version=first.version)
        return _version(first)


def resolve(settings: Settings, version: str | None) -> ModelVersion:
    """Version number ``version``, or the champion.

    Raises:
        WwtsError: when there is no such version.
    """
    if version is None:
        return ensure_champion(settings)
    from mlflow.exceptions import MlflowException

    with _mlflow(settings) as client:
        try:
            return _version(client.get_model_version(settings.model_name, version))
        except MlflowException as error:
            if error.error_code not in _ABSENT:
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
        with _mlflow(settings), _appearing(target) as folder:
            _download(model, folder)
            _verified(folder, model)
    return _verified(target, model)


def embedded(settings: Settings) -> Tagger:
    """The embedded default without any registry, built into the cache once."""
    labels = taxonomies.embedded_labels()
    key = f"{settings.threshold}\n" + "\n".join(label.label_id for label in labels) + _code_sha256()
    target = settings.state_dir / "models" / f"embedded-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.exists():
        with _appearing(target) as folder:
            build_embedded(folder, tuple(label.label_id for label in labels), settings.threshold)
    return load(target)


def _register_embedded(client: Any, settings: Settings) -> Any:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    log.info("registering_embedded_default", model=settings.model_name)
    tagger = embedded(settings)
    with tempfile.TemporaryDirectory(prefix="wwts-model-") as name:
        staged = Path(name)
        (staged / "labels.csv").write_bytes(_labels(settings))
        _stage_code(staged / "code")
        with mlflow.start_run(experiment_id=_experiment(client, settings), run_name="embedded default"):
            mlflow.set_tags({"mlflow.source.git.commit": git_sha() or "", "wwts.stage": "embedded"})
            mlflow.log_params({"backbone": tagger.recipe.backbone, "labels": len(tagger.label_ids)})
            logged = mlflow.pyfunc.log_model(
                name="tagger",
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={"tagger": str(tagger.folder), "labels": str(staged / "labels.csv")},
                code_paths=[str(staged / "code" / "wwts_ops")],
                pip_requirements=[f"{package}=={installed(package)}" for package in _REQUIREMENTS],
                signature=ModelSignature(Schema([ColSpec("binary", "image")]), None),
                input_example=pd.DataFrame({"image": [_example()]}),
            )
    tags = {
        "model_sha256": tagger.sha256,
        "backbone_sha256": tagger.backbone_sha256,
        "code_sha256": _code_sha256(),
        "git_sha": git_sha() or "",
        _EMBEDDED: "true",
    }
    return mlflow.register_model(logged.model_uri, settings.model_name, tags=tags)


def _labels(settings: Settings) -> bytes:
    """The embedded labels as CSV, each with its own flag: categories that a person must see stay in the store."""
    taxonomy = taxonomies.embedded(settings.forced_review)
    flagged = (
        replace(label, forced_review=taxonomy.forced_reason(label.label_id) is not None) for label in taxonomy.labels
    )
    return taxonomies.to_csv(taxonomies.Taxonomy("packed", tuple(flagged)))


def _stage_code(folder: Path) -> None:
    source = Path(__file__).parent
    for name in RECOGNITION:
        target = folder / "wwts_ops" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)


def _example() -> bytes:
    """A picture for MLflow to show callers how to send one."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(out, "PNG")
    return out.getvalue()


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for name in RECOGNITION:
        digest.update(name.encode() + b"\0" + (Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _experiment(client: Any, settings: Settings) -> str:
    found = client.get_experiment_by_name(_EXPERIMENT)
    if found:
        return str(found.experiment_id)
    location = None
    if settings.resolved_tracking_uri.startswith(("sqlite", "postgresql", "mysql", "mssql")):
        # Without a server MLflow would put artifacts below whatever folder it happens to run in.
        location = (settings.state_dir / "mlartifacts").as_uri()
    return str(client.create_experiment(_EXPERIMENT, artifact_location=location))


def _champion(client: Any, name: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return _version(client.get_model_version_by_alias(name, CHAMPION))
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


def _version(entry: Any) -> ModelVersion:
    try:
        return ModelVersion(entry.name, str(entry.version), entry.tags["model_sha256"], entry.tags["backbone_sha256"])
    except KeyError as error:
        raise WwtsError(
            f"{entry.name} version {entry.version} was not registered by wwts (no tag {error}); it cannot tag."
        ) from error


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
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` at once, unless another process was first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        try:
            os.rename(folder, target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _mlflow(settings: Settings) -> Iterator[Any]:
    """A client of the configured server, with MLflow's own errors told in one sentence."""
    # Four minutes of silence otherwise; Airflow tries again later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = settings.resolved_tracking_uri
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        with _tracking(uri):
            yield mlflow.MlflowClient(tracking_uri=uri)
    # The causes are left out of the traceback: their own words hold the URI with its password.
    except MlflowException as error:
        if error.error_code in _LASTING:
            raise WwtsError(f"MLflow at {_shown(uri)} refuses: {_shown(str(error))}") from None
        raise _unavailable(uri, error) from None
    except (SQLAlchemyError, OSError) as error:
        raise _unavailable(uri, error) from None


@contextmanager
def _tracking(uri: str) -> Iterator[None]:
    """Points MLflow's functions to ``uri``, and afterwards takes back the variable that it sets for child processes."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _unavailable(uri: str, error: Exception) -> UnavailableError:
    return UnavailableError(f"MLflow at {_shown(uri)} does not answer as it should: {_shown(str(error))}")


def _shown(text: str) -> str:
    """``text`` without the user, password or token of any URI in it."""
    return re.sub(r"(?i)(password=)[^&\s]*", r"\1***", re.sub(r"://[^/\s]*@", "://***@", text))


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    """Two first nights on one machine register one default, not two."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / ".registry.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
