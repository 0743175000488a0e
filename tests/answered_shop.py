"""A shop of made-up embeddings: what people answered, what the catalog holds, what is held out; no picture is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from training import snapshot
from training.dataset import Order
from wwts_ops import badcases, corrections, holdout, taxonomy
from wwts_ops.corrections import Answer
from wwts_ops.embeddings import EmbeddingWriter, part_key
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Label, Taxonomy
from wwts_ops.tracking import ModelVersion

Array = np.ndarray[Any, Any]

BACKBONE = "ab" * 32
DIMENSION = 64
BASE = ModelVersion("wwts-tagger", "1", "cd" * 32, BACKBONE, "ef" * 32)
LABELS = ("shop:苹果", "shop:梨", "shop:香蕉🍌")
#: Switched off in the taxonomy.
OFF = "shop:停售"
START = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def content(name: object, *, audit: bool = False) -> str:
    """A SHA-256 that is in the audit, or not."""
    for number in range(1000):
        found = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
        if holdout.in_audit(found, 0.05) is audit:
            return found
    raise AssertionError("no number puts the content there")


def vector(seed: int) -> Array:
    """Like no other: made-up vectors of 64 numbers have cosines far below 0.85."""
    return np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float16)


def copy_of(original: Array, seed: int, likeness: float = 0.99) -> Array:
    """A vector with about that cosine to ``original``."""
    one = original.astype(np.float64) / np.linalg.norm(original.astype(np.float64))
    other = np.random.default_rng(10**6 + seed).normal(size=DIMENSION)
    other -= (other @ one) * one
    other /= np.linalg.norm(other)
    mixed: Array = (8 * (likeness * one + (1 - likeness**2) ** 0.5 * other)).astype(np.float16)
    return mixed


def cosines(first: Array, second: Array) -> Array:
    """``float64 [n, m]``."""
    left, right = (array.astype(np.float64) for array in (first, second))
    products: Array = left @ right.T
    scale = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return products / scale


@dataclass
class AnsweredShop:
    """Nothing to begin with."""

    folder: Path
    more: Mapping[str, Any] = field(default_factory=dict)
    name: str = "仓库 store"
    said: int = 0

    @cached_property
    def settings(self) -> Settings:
        return Settings(store=str(self.folder / self.name), **self.more)

    @cached_property
    def store(self) -> Store:
        return Store.of(self.settings)

    @cached_property
    def names(self) -> Taxonomy:
        """The taxonomy in force: the embedded labels and our own, and the starter bad cases embedded."""
        taxonomy.ensure(self.store, self.settings.forced_review)
        changes = {label: Label(label, label.removeprefix("shop:"), category_path="食品 > 水果") for label in LABELS}
        changes[OFF] = Label(OFF, "停售商品", enabled=False)
        found = taxonomy.edit(self.store, "小王", changes)
        cases = [case.content_sha256 for case in badcases.ensure(self.store, found).cases]
        vectors = np.stack([vector(10_000 + place) for place in range(len(cases))])
        badcases.add_embeddings(self.store, BACKBONE, cases, vectors)
        return found

    @property
    def bad(self) -> tuple[tuple[str, ...], Array]:
        """Contents and embeddings of all bad cases."""
        return badcases.embeddings(self.store, BACKBONE)

    def embed(self, vectors: Mapping[str, Array], name: str = "20260301-000000000001", shard: int = 0) -> None:
        """Stores embeddings as a night does."""
        with (
            self.store.writing(part_key(BACKBONE, "2026-03-01", name, shard)) as path,
            EmbeddingWriter(path, BACKBONE, DIMENSION) as writer,
        ):
            for one, values in vectors.items():
                writer.add(one, values)

    def answer(self, one: str, label: str | None, **more: Any) -> int:
        """Records an answer, a correction unless said otherwise; its number."""
        self.said += 1
        given = {
            "answer_id": f"答 {self.said}",
            "answered_at": START + timedelta(minutes=self.said),
            "answered_by": "小王",
            "content_sha256": one,
            "kind": "correct" if label else "wrong_unknown",
            "labels_before": (),
            "labels": (label,) if label else (),
            "source": "import",
            "shown_because": "import",
        }
        corrections.record(self.settings, [Answer(**{**given, **more})])
        return self.said

    def answers(self, given: Mapping[str, str], **more: Any) -> None:
        """Records many at once."""
        made = []
        for one, label in given.items():
            self.said += 1
            at = START + timedelta(minutes=self.said)
            fixed = {"answer_id": f"答 {self.said}", "answered_at": at, "answered_by": "小王", "kind": "confirm"}
            about = {"content_sha256": one, "labels": (label,), "labels_before": (label,)}
            made.append(Answer(**{**fixed, **about, "source": "import", "shown_because": "review", **more}))
        corrections.record(self.settings, made)

    def order(self, seed: int = 0) -> Order:
        """Freezes what was answered so far."""
        assert self.names
        return Order(snapshot.freeze(self.settings).name, BASE, BACKBONE, seed)


def many(count: int, name: str, first: int) -> dict[str, Array]:
    """Contents and unlike embeddings."""
    return {content(f"{name} {number}"): vector(first + number) for number in range(count)}


def labelled(contents: Iterable[str]) -> dict[str, str]:
    """Each label in turn."""
    return {one: LABELS[place % len(LABELS)] for place, one in enumerate(contents)}
