"""Bad cases that a version has learned from: curated after its training, they say nothing of it."""

from __future__ import annotations

from collections.abc import Sequence

from wwts_ops.badcases import BadCase, Snapshot
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagdiff import learned
from wwts_ops.tracking import ModelVersion

#: Cases that a sentence names.
_NAMED = 5


def found(settings: Settings, model: ModelVersion, snapshot: Snapshot) -> list[BadCase]:
    """The cases in force whose answers ``model`` has learned from, as far as its training noted them.

    Raises:
        UnavailableError: when MLflow or the store does not answer.
    """
    contents = learned.contents(Store.of(settings), learned.training_of(settings, model))
    known = set() if contents is None else set(contents.to_pylist())
    return [case for case in snapshot.active if case.content_sha256 in known]


def named(cases: Sequence[BadCase]) -> str:
    """The first of ``cases``, each as `wwts badcases retire` takes it and as the shop knows it."""
    first = [f"{case.content_sha256[:12]} ({case.image_id or case.uri or 'no image'})" for case in cases[:_NAMED]]
    return ", ".join([*first, *([f"and {len(cases) - _NAMED} more"] if len(cases) > _NAMED else [])])
