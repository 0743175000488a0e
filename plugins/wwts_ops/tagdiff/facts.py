"""What a tag diff says: plain numbers and rows, written as JSON and read back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wwts_ops import shares


@dataclass(frozen=True)
class Count:
    """How many: ``images`` of the catalog as published, ``contents`` of different bytes."""

    images: int = 0
    contents: int = 0


@dataclass(frozen=True)
class Category:
    """A first-level category; ``name`` is empty for labels without one. All counts are of images.

    Attributes:
        name: as in the taxonomy.
        before: whose label is in it by the old model.
        after: by the new one.
        live_before: of ``before``, decided ``auto``.
        live_after: of ``after``, decided ``auto``.
        relabelled: that get another label, and were in it or come to it.
        redecided: that get another decision, and were in it or come to it.
    """

    name: str
    before: int
    after: int
    live_before: int
    live_after: int
    relabelled: int
    redecided: int


@dataclass(frozen=True)
class Pair:
    """From one label to another: how many do so, and how many images of them go live with nobody looking."""

    old: str
    new: str
    images: int
    contents: int
    unseen: int


@dataclass(frozen=True)
class Known:
    """Changes of label where an answer in force says what is right; all counts are of contents.

    Attributes:
        n: such changes.
        old_right: where the old label is among the answered ones.
        new_right: where the new one is.
        interval: of ``new_right / n``: 95 %, Wilson's score; None for none.
        learned: of ``n``, those that the new version has learned from; None when nobody noted which.
        unlearned_old_right: of the others, where the old label is right.
        unlearned_new_right: of the others, where the new one is.
    """

    n: int = 0
    old_right: int = 0
    new_right: int = 0
    interval: tuple[float, float] | None = None
    learned: int | None = None
    unlearned_old_right: int | None = None
    unlearned_new_right: int | None = None

    @property
    def fair(self) -> Known:
        """Those that can judge the new version: that it has not learned from, or all where nobody noted which."""
        if self.learned is None or self.unlearned_old_right is None or self.unlearned_new_right is None:
            return self
        n, right = self.n - self.learned, self.unlearned_new_right
        return Known(n, self.unlearned_old_right, right, shares.interval(right, n))


@dataclass(frozen=True)
class Side:
    """What one of the two models says of a content; ``score`` is 0–1. No label when all are switched off."""

    label_id: str | None
    label: str | None
    score: float | None
    category_path: str | None
    decision: str
    reason: str | None


@dataclass(frozen=True)
class Change:
    """A content whose label or decision changes.

    Attributes:
        content_sha256: its bytes.
        image_id: one of its images.
        images: how many show it.
        unseen: whether the new tag goes live with nobody looking.
        old: by the champion.
        new: by the challenger.
    """

    content_sha256: str
    image_id: str | None
    images: int
    unseen: bool
    old: Side
    new: Side


@dataclass(frozen=True)
class Versions:
    """What was compared, and with what in force.

    Attributes:
        model_name: of the registered model.
        old: version number of the champion.
        new: of the challenger.
        old_sha256: of its tagger.
        new_sha256: of its tagger.
        same_backbone: whether both read the same embeddings.
        taxonomy: version in force.
        snapshot: published, by which images are counted; empty: nothing was, and every content counts as one image.
        answers: number of the newest answer.
        release: ``shadow`` or ``live``.
    """

    model_name: str
    old: str
    new: str
    old_sha256: str
    new_sha256: str
    same_backbone: bool
    taxonomy: str
    snapshot: str
    answers: int
    release: str


@dataclass(frozen=True)
class TagDiff:
    """What would change if the challenger became champion. Answered contents are in ``answered`` and ``known`` only.

    Attributes:
        folder: in the store.
        made_at: ISO, UTC.
        versions: what was compared.
        images: compared.
        contents: compared.
        missing: listed, but without a stored embedding of both backbones.
        answered: compared, but an answer is in force: what consumers read of them stays.
        changed_label: another first label.
        changed_decision: another decision.
        changed: either.
        unseen: changes after which the tag goes live with nobody looking.
        newly_live: of these, those that waited for a person before.
        no_longer_live: that go live by themselves now, and then would wait for a person.
        unforced: that a person must see by the rules now, and then need not.
        by_category: most changed first.
        pairs: most frequent changes of label.
        known: changes where an answer tells the truth.
        riskiest: at most 200; see :data:`wwts_ops.tagdiff.compare.RISK`.
    """

    folder: str
    made_at: str
    versions: Versions
    images: int
    contents: int
    missing: Count
    answered: Count
    changed_label: Count
    changed_decision: Count
    changed: Count
    unseen: Count
    newly_live: Count
    no_longer_live: Count
    unforced: Count
    by_category: tuple[Category, ...]
    pairs: tuple[Pair, ...]
    known: Known
    riskiest: tuple[Change, ...]

    @property
    def page(self) -> str:
        """Store key of the page."""
        return f"{self.folder}/index.html"

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`of` reads them back."""
        return asdict(self)

    @classmethod
    def of(cls, value: dict[str, Any]) -> TagDiff:
        """From :meth:`to_json`, checked.

        Raises:
            ValueError: when it is something else.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(value)
