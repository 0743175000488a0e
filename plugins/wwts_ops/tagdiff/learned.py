"""Which contents a version has learned from, where its training noted them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import pyarrow as pa
import structlog

from wwts_ops import tracking
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

#: Tags of a model version: the id of the training that made it, and the SHA-256 of the list of what it learned from.
TRAINING, CONTENTS_SHA256 = "training", "training.contents_sha256"
_ID = re.compile(r"[\w.-]{1,128}")


@dataclass(frozen=True)
class Training:
    """The training that made a version, as the version's tags name it."""

    id: str
    contents_sha256: str

    @property
    def key(self) -> str:
        """Store key of the contents that it learned answers of: a SHA-256 a line."""
        return f"trainings/{self.id}/contents.txt"


def contents(store: Store, training: Training | None) -> pa.Array | None:
    """The contents whose answers ``training`` learned from; None when it did not note them, or not these.

    Raises:
        UnavailableError: when the store refuses.
    """
    if training is None:
        return None
    try:
        data = store.read_bytes(training.key)
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != training.contents_sha256:
        log.warning("learned_contents_altered", key=training.key)
        return None
    return pa.array(sorted(set(data.decode("ascii", "replace").split())), pa.string())


def training_of(settings: Settings, model: ModelVersion) -> Training | None:
    """The training that made a version, or None.

    Raises:
        UnavailableError: when MLflow does not answer.
    """
    with tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        tags = client.get_model_version(model.name, model.version).tags
    found = tags.get(TRAINING, "")
    return Training(found, tags.get(CONTENTS_SHA256, "")) if _ID.fullmatch(found) else None
