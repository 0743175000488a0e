"""From a tagger's folder to a registered MLflow version: packed with its own code, verified, never half there."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import structlog

from wwts_ops import taxonomy as taxonomies
from wwts_ops import tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.provenance import git_sha
from wwts_ops.settings import Settings
from wwts_ops.storage import appearing
from wwts_ops.tagger import Tagger, build_embedded, load
from wwts_ops.taxonomy import Label, Taxonomy
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

EXPERIMENT = "wwts-models"
#: Marks the versions that hold the embedded default.
EMBEDDED_TAG = "wwts.embedded"
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
REQUIREMENTS = (
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
    "torchvision",
)
#: A run that registers takes minutes; one that is still open after this was killed.
_ABANDONED = timedelta(days=1)


@dataclass(frozen=True)
class Candidate:
    """What is to be registered.

    Attributes:
        tagger: saved and verified.
        labels: names and rules of its labels, packed for whoever uses the model without the store.
        origin: how it came to be, such as ``import resnet50``; names the MLflow run.
        tags: further ones of the model version.
        params: further ones of the MLflow run.
    """

    tagger: Tagger
    labels: tuple[Label, ...]
    origin: str
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Registered:
    """What :func:`register_backbone` did.

    Attributes:
        model: the version.
        tagger: what it holds.
        existed: whether these weights were registered with this code before.
    """

    model: ModelVersion
    tagger: Tagger
    existed: bool


def embedded(settings: Settings, backbone: str | None = None) -> Tagger:
    """A backbone with the head it comes with, without any registry; built into the cache once.

    Args:
        settings: the cache, the threshold, and the backbone that a new shop starts with.
        backbone: another one, by its name.

    Raises:
        WwtsError: when there is none of that name, or it comes without weights.
    """
    name = backbone or settings.backbone
    labels = taxonomies.embedded_labels()
    key = f"{name}\n{settings.threshold}\n" + "\n".join(label.label_id for label in labels) + code_sha256()
    target = settings.state_dir / "models" / f"embedded-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.exists():
        with appearing(target) as folder:
            build_embedded(folder, tuple(label.label_id for label in labels), settings.threshold, name)
    return load(target)


def register_embedded(settings: Settings) -> ModelVersion:
    """Registers what a new shop starts with as a new version, without an alias."""
    log.info("registering_embedded_default", model=settings.model_name, backbone=settings.backbone)
    return register(
        settings, Candidate(embedded(settings), _embedded_labels(settings), "embedded default", {EMBEDDED_TAG: "true"})
    )


def register_backbone(settings: Settings, backbone: str | None = None) -> Registered:
    """Registers a backbone with the head it comes with, packed with the running code, without an alias.

    It is not marked as what a new shop starts with: only the gate makes it champion.

    Args:
        settings: which registry, and the backbone that counts without another.
        backbone: its name.

    Raises:
        WwtsError: when there is none of that name, or it comes without weights.
        UnavailableError: when MLflow does not answer.
    """
    tagger = embedded(settings, backbone)
    before = registered(settings, tagger.sha256)
    if before:
        return Registered(before, tagger, existed=True)
    origin = f"embedded {tagger.recipe.backbone}"
    return Registered(register(settings, Candidate(tagger, _embedded_labels(settings), origin)), tagger, existed=False)


def register(settings: Settings, candidate: Candidate) -> ModelVersion:
    """Registers ``candidate`` as a new version, without an alias.

    The version is made last, together with its tags, and only once what lies in the artifact store was read back and
    is whole: killed anywhere, there is no version or a whole one.

    Raises:
        UnavailableError: when MLflow does not answer, or holds other bytes than were sent; nothing is registered then.
    """
    import mlflow

    tagger = candidate.tagger
    with tracking.connected(settings) as client, tempfile.TemporaryDirectory(prefix="wwts-model-") as name:
        staged = Path(name)
        (staged / "labels.csv").write_bytes(taxonomies.to_csv(Taxonomy("packed", candidate.labels)))
        stage_code(staged / "code")
        hashes = {
            "model_sha256": tagger.sha256,
            "backbone_sha256": tagger.backbone_sha256,
            "code_sha256": code_sha256(staged / "code" / "wwts_ops"),
            "git_sha": git_sha() or "",
        }
        with _quiet(), _run(client, tracking.experiment(client, settings, EXPERIMENT), candidate.origin):
            mlflow.set_tags({"mlflow.source.git.commit": hashes["git_sha"], "wwts.stage": candidate.origin, **hashes})
            mlflow.log_params({"backbone": tagger.recipe.backbone, "labels": len(tagger.label_ids), **candidate.params})
            logged = _log(tagger, staged)
            _verify(client, logged, tagger, staged)
            tags = {**candidate.tags, **hashes}
            return ModelVersion.of(_version(client, settings.model_name, logged, tags))


def registered(settings: Settings, sha256: str) -> ModelVersion | None:
    """The newest version that holds the tagger ``sha256`` packed with the running code, or None.

    Raises:
        UnavailableError: when MLflow does not answer.
    """
    wanted = {"model_sha256": sha256, "code_sha256": code_sha256()}
    with tracking.connected(settings) as client:
        found = [
            entry
            for entry in client.search_model_versions(f"name='{settings.model_name}'")
            if wanted.items() <= entry.tags.items()
        ]
    return ModelVersion.of(max(found, key=lambda entry: int(entry.version))) if found else None


def _version(client: Any, name: str, logged: Any, tags: Mapping[str, str]) -> Any:
    """A new version of the registered model ``name``, which is made when there is none.

    As ``mlflow.register_model`` does, which prints what it does on standard error: errors, in Airflow's log of a task.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(name, logged.model_uri, tags=dict(tags), model_id=logged.model_id)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, MLflow says on standard error what is wrong, and not what it does."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _run(client: Any, experiment: str, name: str) -> Iterator[None]:
    """An MLflow run for what the block does: finished, or failed when the block does not end well.

    Runs that a killed process left open are ended first; a server that was away could not be told then.
    """
    import mlflow

    before = int((datetime.now(UTC) - _ABANDONED).timestamp() * 1000)
    abandoned = f"attributes.status = 'RUNNING' and attributes.start_time < {before}"
    for run in client.search_runs([experiment], filter_string=abandoned):
        client.set_terminated(run.info.run_id, status="FAILED")
    # Nested: whoever registers may be in a run of their own.
    with mlflow.start_run(experiment_id=experiment, run_name=name, nested=True):
        yield


def _verify(client: Any, logged: Any, tagger: Tagger, staged: Path) -> None:
    """Reads back what MLflow holds, and refuses it unless it is ready, whole, and what was sent."""
    import mlflow
    from mlflow.entities import LoggedModelStatus

    status = client.get_logged_model(logged.model_id).status
    if status != LoggedModelStatus.READY:
        raise UnavailableError(f"MLflow calls the uploaded model {status}, not ready; nothing was registered.")
    with tempfile.TemporaryDirectory(prefix="wwts-verify-") as name:
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=logged.model_uri, dst_path=name))
        faults = [what for what, same in _compared(root, tagger, staged).items() if not same]
    if faults:
        raise UnavailableError(
            f"MLflow's artifact store did not keep what was sent ({', '.join(faults)}); nothing was registered. "
            "Look after its disk, and try again."
        )


def _compared(root: Path, tagger: Tagger, staged: Path) -> dict[str, bool]:
    """Whether each part of a downloaded model is what was sent."""
    try:
        whole = [load(path.parent).sha256 for path in root.rglob("tagger.json")] == [tagger.sha256]
    except WwtsError:
        whole = False
    packed, labels = root / "code" / "wwts_ops", root / "artifacts" / "labels.csv"
    return {
        "the tagger": whole,
        "its code": packed.is_dir() and code_sha256(packed) == code_sha256(staged / "code" / "wwts_ops"),
        "its label names": labels.is_file() and labels.read_bytes() == (staged / "labels.csv").read_bytes(),
        "the model's description": (root / "MLmodel").is_file() and (root / "mlflow_model.py").is_file(),
    }


def _log(tagger: Tagger, staged: Path) -> Any:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    return mlflow.pyfunc.log_model(
        name="tagger",
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"tagger": str(tagger.folder), "labels": str(staged / "labels.csv")},
        code_paths=[str(staged / "code" / "wwts_ops")],
        pip_requirements=[f"{package}=={installed(package)}" for package in REQUIREMENTS],
        signature=ModelSignature(Schema([ColSpec("binary", "image")]), None),
        input_example=pd.DataFrame({"image": [_example()]}),
    )


def _embedded_labels(settings: Settings) -> tuple[Label, ...]:
    """The embedded labels, each with its own flag: categories that a person must see stay in the store."""
    taxonomy = taxonomies.embedded(settings.forced_review)
    return tuple(
        replace(label, forced_review=taxonomy.forced_reason(label.label_id) is not None) for label in taxonomy.labels
    )


def stage_code(folder: Path) -> None:
    """Copies the recognition closure of the running code into ``folder``, as package ``wwts_ops``."""
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


def code_sha256(package: Path | None = None) -> str:
    """Of a recognition closure: what a version's tags depend on besides its weights.

    SHA-256 over what ``sha256sum`` prints of its files, sorted by name.

    Args:
        package: the packed folder ``wwts_ops``, every file of which counts; without it that of the running code.
    """
    found = file_hashes(Path(__file__).parent, RECOGNITION) if package is None else file_hashes(package)
    return hashlib.sha256("".join(f"{found[name]}  {name}\n" for name in sorted(found)).encode()).hexdigest()


def file_hashes(package: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of files of a package by their relative names: of ``names``, or of all but compiled ones."""
    if names is None:
        found = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
        names = [path.as_posix() for path in found if "__pycache__" not in path.parts]
    return {name: hashlib.sha256((package / name).read_bytes()).hexdigest() for name in names}
