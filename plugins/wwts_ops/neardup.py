"""Near-duplicates by embedding similarity: for leak-safe splits, and to show a person one of many alike.

Similarity is the cosine of two float16 embeddings, computed in float32. Products are made in blocks, so memory stays
flat however many vectors there are (and however many of them are alike).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from wwts_ops.errors import WwtsError

Array = np.ndarray[Any, Any]

SIMILARITY: Final = 0.85
"""From here on a picture may be a copy, and is kept out of training beside what it is like.

Measured with the embedded default on 2,936 shop photographs (``python -m eval.bench_neardup PHOTOS``). So much like
their originals are, of 400 copies a kind: re-encoded, half or twice the size, up to 5 % cut off each side, brighter,
darker, in a frame, mirrored, with text in a corner or a banner below: all; with a watermark right across: 94.5 %; made
smaller, cropped, watermarked and re-encoded, all at once: 74 %. The price: of these photographs, which show 81 products
on their shelves again and again, 69 % are as much like another one of the same product and 2 % like one of another kind
of product, for a crate of apples looks the same from a step further left. As a leak that is no false alarm. What is
known to slip through, besides such reposts: grainy pictures lose their grain (a blurred photograph of a clock,
re-encoded at quality 60, came to 0.83).
"""

SAME: Final = 0.95
"""From here on it is the same picture, or the same scene a moment later.

Measured in the same way: re-encoded, twice the size, brighter, darker: all; with text in a corner 99.8 %, mirrored
95 %, half the size 83.5 %, 3 % cut off each side 80 %; 6 % of the photographs are as much like another one of the same
product, none like one of another product. Where likeness is passed on (:func:`groups`) nothing looser will do: at 0.85
one chain holds 696 of the 2,936 photographs, at 0.90 it is 59, here 9.
"""

#: Rows and columns of one block of products: 16 MB of float32, and at most 4 million pairs at once.
_ROWS, _COLUMNS = 1024, 4096
#: float32 cosines of one and the same vector differ from 1 by less than this.
_ROUNDING = 1e-5


def near(vectors: Array, references: Array, similarity: float = SIMILARITY) -> Array:
    """Whether there is a reference at least this similar.

    Args:
        vectors: float16 or float32 ``[n, d]``; a vector of zeros is near nothing.
        references: the same, ``[m, d]``.
        similarity: cosine, above 0, at most 1.

    Returns:
        ``bool [n]``; all False when there are no references.

    Raises:
        WwtsError: when lengths differ, or a vector holds NaN or infinite numbers.
    """
    _check(vectors, references, similarity)
    found = np.zeros(len(vectors), dtype=bool)
    left, right = _scales(vectors), _scales(references)
    for rows in _blocks(len(vectors), _ROWS):
        unit = _unit(vectors, left, rows)
        for columns in _blocks(len(references), _COLUMNS):
            products = unit @ _unit(references, right, columns).T
            found[rows] |= (products >= similarity - _ROUNDING).any(axis=1)
    return found


def copies(vectors: Array, references: Array) -> Array:
    """What may be a copy of a reference, or a copy of a copy.

    Likeness is passed on only from picture to same picture (``SAME``, any number of times), then reaches one step
    further (``SIMILARITY``): no copy of a copy slips through for being a little less alike, and yet no chain of
    pictures that merely look alike swallows a catalog. Measured as said at :data:`SIMILARITY`, with 5 % of those
    photographs as references: 18 % are found, themselves included, where chains at ``SIMILARITY`` would find 39 %. Of
    copies made in all the ways measured there 98 % are found, of copies of copies 92 %.

    Args:
        vectors: float16 or float32 ``[n, d]``; a vector of zeros is no copy.
        references: the same, ``[m, d]``; those among ``vectors`` are found too.

    Returns:
        ``bool [n]``.

    Raises:
        WwtsError: as :func:`near`.
    """
    linked = fresh = near(vectors, references, SAME)
    while fresh.any():
        rest = np.flatnonzero(~linked)
        reached = rest[near(vectors[rest], vectors[fresh], SAME)]
        fresh = np.zeros_like(linked)
        fresh[reached] = True
        linked = linked | fresh
    return linked | near(vectors, references) | near(vectors, vectors[linked])


def groups(vectors: Array, similarity: float = SAME) -> Array:
    """Numbers the connected components of what is at least this similar: a copy of a copy is in the same group.

    Args:
        vectors: float16 or float32 ``[n, d]``; a vector of zeros is alone.
        similarity: cosine, above 0, at most 1.

    Returns:
        ``int64 [n]``, the group of each row, numbered from 0 in the order in which groups first occur.

    Raises:
        WwtsError: when a vector holds NaN or infinite numbers.
    """
    _check(vectors, vectors, similarity)
    scales = _scales(vectors)
    found = np.arange(len(vectors))
    for rows in _blocks(len(vectors), _ROWS):
        unit = _unit(vectors, scales, rows)
        # What lies left of this block was met when that was the block of rows.
        for columns in _blocks(len(vectors), _COLUMNS, rows.start):
            alike = unit @ _unit(vectors, scales, columns).T >= similarity - _ROUNDING
            # Where all are alike, a pair within a group is not worth a list of millions.
            alike &= found[rows, None] != found[None, columns]
            first, second = np.nonzero(alike)
            if len(first):
                found = _merged(found, found[rows][first], found[columns][second])
    return _in_order(found)


def within(vectors: Array, labels: Array, similarity: float = SIMILARITY) -> Array:
    """Groups as :func:`groups`, of rows of one label alone: what may be one scene, seen again and again.

    A head that is measured on another photograph of a shelf it has seen is flattered: 81 products of a shop, split by
    what is the same (:data:`SAME`), seemed to be told apart in 94 of 100 photographs, split by this in 78, and in a
    shop that none of the photographs came from it were 77.

    Args:
        vectors: float16 or float32 ``[n, d]``.
        labels: ``int64 [n]``.
        similarity: cosine, above 0, at most 1.

    Returns:
        ``int64 [n]``, numbered as by :func:`groups`.
    """
    found = np.empty(len(labels), dtype=np.int64)
    begun = 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        found[rows] = groups(vectors[rows], similarity) + begun
        begun += len(rows)
    return _in_order(found)


def joined(first: Array, second: Array) -> Array:
    """The groups in which rows are together that are so in ``first`` or in ``second`` (``int64 [n]`` each)."""
    if not len(first):
        return first
    second = second + int(first.max()) + 1
    return _in_order(_merged(np.arange(int(second.max()) + 1), first, second)[first])


def _merged(found: Array, first: Array, second: Array) -> Array:
    """``found`` with the groups ``first[i]`` and ``second[i]`` made one, for every i."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(found.max()) + 1
    pairs = (np.ones(len(first), dtype=bool), (first, second))
    _, number = connected_components(coo_array(pairs, shape=(size, size)), directed=False)
    merged: Array = number.astype(np.int64)[found]
    return merged


def _in_order(found: Array) -> Array:
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    ordered: Array = rank[number]
    return ordered


def _check(vectors: Array, references: Array, similarity: float) -> None:
    if not 0 < similarity <= 1:
        raise ValueError(f"a similarity of {similarity} is not above 0 and at most 1")
    if vectors.ndim != 2 or references.ndim != 2 or vectors.shape[1] != references.shape[1]:
        raise WwtsError(
            f"Embeddings of the shapes {vectors.shape} and {references.shape} cannot be compared; "
            "both must come from the same backbone."
        )


def _scales(vectors: Array) -> Array:
    """What makes each row one long, as ``float32 [n, 1]``; 0 for a row of zeros."""
    norms = np.empty((len(vectors), 1), dtype=np.float32)
    for rows in _blocks(len(vectors), _ROWS):
        norms[rows] = np.linalg.norm(vectors[rows].astype(np.float32), axis=1, keepdims=True)
    wrong = int((~np.isfinite(norms)).sum())
    if wrong:
        raise WwtsError(f"{wrong} of {len(vectors)} embeddings hold NaN or infinite numbers; compute them again.")
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _unit(vectors: Array, scales: Array, rows: slice) -> Array:
    unit: Array = vectors[rows].astype(np.float32) * scales[rows]
    return unit


def _blocks(length: int, size: int, start: int = 0) -> Iterator[slice]:
    return (slice(begin, min(begin + size, length)) for begin in range(start, length, size))
