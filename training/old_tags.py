"""Which of a shop's imported old tags are learned from: a shop may have one for each image it ever had."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import pyarrow as pa

from wwts_ops.taxonomy import Taxonomy

Array = np.ndarray[Any, Any]

#: Learned from at most: as many as a catalog rehearses. They count little (100 of them as 20 answers), and to find the
#: near-duplicates among all takes time that grows with their square: 20,000 beside 50,000 answers take twice as long,
#: 100,000 would take nine times as long.
MOST: Final = 20_000
#: Of its own, so that no other choice by hash is tied to this one.
_SALT: Final = b"wwts old tags 1\0"


def dealt(tags: pa.Table, names: Taxonomy) -> pa.Table:
    """At most :data:`MOST` of ``tags``: as many of each label as of any other, those with the lowest hashes.

    Args:
        tags: schema ``ANSWERS``, one row a content.
        names: what labels were merged into counts as one.
    """
    if tags.num_rows <= MOST:
        return tags
    given = [names.given(labels[0]) if labels else "" for labels in tags["labels"].to_pylist()]
    _, label = np.unique(np.array(given, dtype=object), return_inverse=True)
    hashes = [hashlib.sha256(_SALT + bytes.fromhex(one)).digest() for one in tags["content_sha256"].to_pylist()]
    hashed = np.array(hashes, dtype="S32")
    order = np.lexsort((hashed, label))
    # How many of its label come before each row.
    before = np.empty(len(order), np.int64)
    before[order] = np.arange(len(order)) - np.searchsorted(label[order], label[order])
    return tags.take(pa.array(np.lexsort((hashed, before))[:MOST]))
