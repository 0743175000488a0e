"""One training: what was asked for, and what came of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.conflicts import Conflict
    from training.dataset import Dataset
    from training.train import Trained


def key(training: str, name: str) -> str:
    """Store key of what the training ``training`` calls ``name``."""
    return f"trainings/{training}/{name}"


@dataclass(frozen=True)
class Order:
    """One training, resolved once; plain values, so that it travels between tasks as JSON.

    Attributes:
        training: its id, and its folder below ``trainings/``.
        snapshot: name of the frozen answers.
        snapshot_sha256: of them.
        latest: number of the newest answer among them.
        answers: contents with an answer in force.
        new: contents whose answer changed since the last training.
        base_version: the version that the head starts from, which learned no answer: the one that the champion's
            trainings began with, or another backbone as it comes.
        base_sha256: of that tagger.
        backbone: name of its backbone.
        backbone_sha256: of that backbone.
        seed: of everything that is drawn by lot.
        badcases: snapshot of the bad cases that are kept out of it.
        settings: those that it depends on.
        ordered_at: UTC, ISO 8601.
        taxonomy: version by which answers are read; empty, as in orders of an earlier release: that in force.
    """

    training: str
    snapshot: str
    snapshot_sha256: str
    latest: int
    answers: int
    new: int
    base_version: str
    base_sha256: str
    backbone: str
    backbone_sha256: str
    seed: int
    badcases: str
    settings: dict[str, float]
    ordered_at: str
    taxonomy: str = ""

    def key(self, name: str) -> str:
        """Store key of what this training calls ``name``."""
        return key(self.training, name)

    def dataset_key(self, sha256: str) -> str:
        """Store key of the folder of a dataset; named by what it holds, for two may make one at once."""
        return self.key(f"dataset-{sha256[:12]}")


@dataclass(frozen=True)
class Made:
    """A training whose head is there.

    Attributes:
        order: what was asked for.
        dataset: what was learned from.
        trained: what came of it.
        base_labels: label ids of the head that it started from.
    """

    order: Order
    dataset: Dataset
    trained: Trained
    base_labels: tuple[str, ...]

    @property
    def new_labels(self) -> tuple[str, ...]:
        """Labels that the head that it started from does not know, in its order."""
        known = set(self.base_labels)
        return tuple(label for label in self.trained.head.label_ids if label not in known)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Answers that contradict each other, then those that the training itself found suspect."""
        return (*self.dataset.conflicts, *self.trained.suspects)

    @property
    def dataset_key(self) -> str:
        """Store key of the dataset's folder."""
        return self.order.dataset_key(self.dataset.sha256)

    @property
    def contents(self) -> bytes:
        """Every content whose answer was learned from or chosen by, sorted, one SHA-256 a line; not the audit's."""
        found = {*self.dataset.train.contents, *self.dataset.validation.contents}
        return "".join(f"{content}\n" for content in sorted(found)).encode()

    @property
    def contents_sha256(self) -> str:
        """Of the list of contents."""
        return hashlib.sha256(self.contents).hexdigest()
