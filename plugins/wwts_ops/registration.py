"""From a tagger's folder to a registered MLflow version: packed with its own code, verified, never half there."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import structlog

from wwts_ops import taxonomy as taxonomies
from wwts_ops import tracking
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
)


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


def embedded(settings: Settings) -> Tagger:
    """The embedded default without any registry, built into the cache once."""
    labels = taxonomies.embedded_labels()
    key = f"{settings.threshold}\n" + "\n".join(label.label_id for label in labels) + code_sha256()
    target = settings.state_dir / "models" / f"embedded-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.exists():
        with appearing(target) as folder:
            build_embedded(folder, tuple(label.label_id for label in labels), settings.threshold)
    return load(target)


def register_embedded(settings: Settings) -> ModelVersion:
    """Registers the embedded default as a new version, without an alias."""
    log.info("registering_embedded_default", model=settings.model_name)
    return register(
        settings, Candidate(embedded(settings), _embedded_labels(settings), "embedded default", {EMBEDDED_TAG: "true"})
    )


def register(settings: Settings, candidate: Candidate) -> ModelVersion:
    """Registers ``candidate`` as a new version, without an alias.

    Raises:
        UnavailableError: when MLflow does not answer; nothing is registered then.
    """
    import mlflow

    tagger = candidate.tagger
    with tracking.connected(settings) as client, tempfile.TemporaryDirectory(prefix="wwts-model-") as name:
        staged = Path(name)
        (staged / "labels.csv").write_bytes(taxonomies.to_csv(Taxonomy("packed", candidate.labels)))
        stage_code(staged / "code")
        experiment = tracking.experiment(client, settings, EXPERIMENT)
        with mlflow.start_run(experiment_id=experiment, run_name=candidate.origin):
            mlflow.set_tags({"mlflow.source.git.commit": git_sha() or "", "wwts.stage": candidate.origin})
            mlflow.log_params({"backbone": tagger.recipe.backbone, "labels": len(tagger.label_ids), **candidate.params})
            logged = _log(tagger, staged)
        tags = {
            **candidate.tags,
            "model_sha256": tagger.sha256,
            "backbone_sha256": tagger.backbone_sha256,
            "code_sha256": code_sha256(),
            "git_sha": git_sha() or "",
        }
        return ModelVersion.of(mlflow.register_model(logged.model_uri, settings.model_name, tags=tags))


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
