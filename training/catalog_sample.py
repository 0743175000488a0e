"""Of the catalog's stored embeddings: what rehearses the old head's knowledge, and what the audit holds out.

Read a row group at a time: memory does not grow with the catalog, but for the audit's share of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from wwts_ops import embeddings, neardup
from wwts_ops.holdout import in_audit
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

Array = np.ndarray[Any, Any]

#: Of its own, so that no other choice by hash is tied to this one.
_SALT: Final = b"wwts rehearsal 1\0"


@dataclass(frozen=True)
class CatalogSample:
    """Contents and their embeddings, each content once.

    Attributes:
        rehearsal_contents: without an answer and not of the audit, chosen and sorted by a hash.
        rehearsal: ``float16 [r, d]``.
        audit_contents: all that there are.
        audit: ``float16 [a, d]``.
    """

    rehearsal_contents: tuple[str, ...]
    rehearsal: Array
    audit_contents: tuple[str, ...]
    audit: Array

    @classmethod
    def of(cls, store: Store, settings: Settings, backbone_sha256: str, answered: Collection[str]) -> CatalogSample:
        """Reads all embeddings of a backbone once.

        Args:
            store: of the catalog.
            settings: ``rehearsal``: how many at most; ``holdout_share``.
            backbone_sha256: whose embeddings.
            answered: contents that rehearse nothing: a person has said what they are.
        """
        rehearsal, audit = _Lowest(settings.rehearsal), _Lowest(None)
        for key in embeddings.parts(store, backbone_sha256):
            for contents, vectors in embeddings.batches(store, key):
                held = np.array([in_audit(content, settings.holdout_share) for content in contents], dtype=bool)
                open_ = np.array([content not in answered for content in contents], dtype=bool) & ~held
                audit.add(contents, vectors, held)
                rehearsal.add(contents, vectors, open_)
        return cls(*rehearsal.taken(), *audit.taken())

    def without(self, held: Collection[str]) -> CatalogSample:
        """Less what is held out: nothing of the audit is left."""
        kept = np.array([content not in held for content in self.rehearsal_contents], dtype=bool)
        return replace(self._only(kept), audit_contents=(), audit=self.audit[:0])

    def unlike(self, vectors: Array) -> CatalogSample:
        """Less what is the same picture as one of ``vectors`` (``float16 [n, d]``)."""
        if not len(self.rehearsal) or not len(vectors):
            return self
        return self._only(~neardup.near(self.rehearsal, vectors, neardup.SAME))

    def _only(self, kept: Array) -> CatalogSample:
        chosen = tuple(content for content, keep in zip(self.rehearsal_contents, kept, strict=True) if keep)
        return replace(self, rehearsal_contents=chosen, rehearsal=self.rehearsal[kept])


class _Lowest:
    """The contents with the lowest salted hashes, however many are added; of one content, the first row counts."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._ranks: list[Array] = []
        self._contents: list[list[str]] = []
        self._vectors: list[Array] = []
        self._held = 0

    def add(self, contents: list[str], vectors: Array, wanted: Array) -> None:
        rows = np.flatnonzero(wanted)
        if self._most == 0 or not len(rows):
            return
        names = [contents[row] for row in rows]
        self._ranks.append(np.array([_rank(name) for name in names], dtype="S32"))
        self._contents.append(names)
        self._vectors.append(vectors[rows])
        self._held += len(rows)
        if self._most is not None and self._held > 2 * self._most:
            self._prune()

    def _prune(self) -> None:
        names = [name for part in self._contents for name in part]
        # Unique gives the first of equal ones, and sorts.
        ranks, first = np.unique(np.concatenate(self._ranks), return_index=True)
        first = first[: self._most]
        self._ranks, self._vectors = [ranks[: self._most]], [np.concatenate(self._vectors)[first]]
        self._contents = [[names[row] for row in first]]
        self._held = len(first)

    def taken(self) -> tuple[tuple[str, ...], Array]:
        if not self._held:
            return (), np.empty((0, 0), np.float16)
        self._prune()
        return tuple(self._contents[0]), self._vectors[0]


def _rank(content_sha256: str) -> bytes:
    return hashlib.sha256(_SALT + bytes.fromhex(content_sha256)).digest()
