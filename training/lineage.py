"""Where a line of trainings began: every training starts from there, never from what an earlier one learned.

A head that knows the answers already would be measured on its own lessons, and would keep what was taken back since.
"""

from __future__ import annotations

from typing import Final

from wwts_ops import tracking
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tracking import ModelVersion

#: Tags of a version that a training made: the version that it started from, and the SHA-256 of that one's tagger.
BASE_VERSION: Final = "training.base_version"
BASE_SHA256: Final = "training.base_sha256"


def root(settings: Settings, model: ModelVersion) -> ModelVersion:
    """The version that the trainings behind ``model`` began with; ``model`` itself when no training made it.

    Raises:
        WwtsError: when a version on the way was deleted, or is another one by now.
        UnavailableError: when MLflow does not answer.
    """
    with tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        found = {str(entry.version): entry for entry in client.search_model_versions(f"name='{model.name}'")}
    version, sha256 = model.version, model.sha256
    while True:
        # Each is taken once: tags that somebody set by hand may lead in a circle.
        entry = found.pop(version, None)
        if entry is None or entry.tags.get("model_sha256") != sha256:
            raise WwtsError(
                f"Version {version} of {model.name}, which {model} was trained from, is no longer in MLflow; "
                "name a backbone in the form of retrain_head to start from the head that it comes with."
            )
        if BASE_VERSION not in entry.tags:
            return ModelVersion.of(entry)
        version, sha256 = entry.tags[BASE_VERSION], entry.tags.get(BASE_SHA256)
