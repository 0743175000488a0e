"""Near-duplicates by embedding similarity: for leak-safe splits, and to show a person one of many alike.

Similarity is the cosine of two float16 embeddings, computed in float32. Products are made in blocks, so memory stays
flat however many vectors there are (and however many of them are alike).

Few pairs are alike, and most are so unlike that a glance tells: of each vector (made one long) its part along a few
directions is kept, and how long the rest of it is. What two rests add to a cosine is at most the product of their
lengths, so what stays below the similarity even with that is no pair; all others are computed in full. Nothing is
guessed: the answers are those of computing everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
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

#: Rows and columns of one block of products: 8 MB of float32, and at most 2 million pairs at once.
_ROWS, _COLUMNS = 1024, 2048
#: float32 cosines of one and the same vector differ from 1 by less than this.
_ROUNDING = 1e-5
#: Of a sketch. Of 17 million pairs of 5,872 shop photographs (1,280 numbers each) 128 directions leave 0.04 % to be
#: computed at 0.95 and 0.7 % at 0.85; 64 leave two to three times as many, 256 half as many, at twice the work for all.
_DIRECTIONS = 128
#: Vectors that the directions are found from.
_DRAWN = 512
#: So many times as long takes a product of two rows fetched one by one as one in a product of blocks.
_FETCHED = 40
#: Products up to which a second thread gains less than it waits.
_SMALL = 2**17
#: Fetched at once: few enough for caches to hold.
_TOGETHER = 64


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
    left, right = _sides(vectors, references, min(len(vectors), len(references)))
    return _near(left, right, similarity)


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
    _check(vectors, references, SIMILARITY)
    known = {row.tobytes() for row in references} if vectors.dtype == references.dtype else set()
    # A reference that is among the vectors passes on nothing that it has not as a reference.
    spent = np.array([row.tobytes() in known for row in vectors], dtype=bool)
    everything, right = _sides(vectors, references, len(vectors))
    reached, linked = np.zeros((2, len(vectors)), dtype=bool)
    while len(right.which):
        rest = np.flatnonzero(~reached)
        reached[rest[_near(everything.at(rest), right, SIMILARITY)]] = True
        # What is the same as something is reached by it too: only in there is more that passes on.
        rest = np.flatnonzero(reached & ~linked)
        same = rest[_near(everything.at(rest), right, SAME)]
        linked[same] = True
        right = everything.at(same[~spent[same]])
    return reached


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
    side, _ = _sides(vectors, vectors, len(vectors))
    found = np.arange(len(vectors))
    for rows in _blocks(len(vectors), _ROWS):
        # What lies left of this block was met when that was the block of rows.
        for columns in _blocks(len(vectors), _COLUMNS, int(rows[0])):
            first, second = _alike(side.at(rows), side.at(columns), similarity, found)
            found = _merged(found, found[first], found[second])
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

    if not len(first):
        return found
    concerned, place = _used(np.concatenate([first, second]), int(found.max()) + 1)
    pairs = (np.ones(len(first), dtype=bool), (place[: len(first)], place[len(first) :]))
    size = len(concerned)
    _, number = connected_components(coo_array(pairs, shape=(size, size)), directed=False)
    _, chosen = np.unique(number, return_index=True)
    renamed = np.arange(int(found.max()) + 1)
    renamed[concerned] = concerned[chosen[number]]
    merged: Array = renamed[found]
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


@dataclass(frozen=True)
class _Side:
    """Some vectors of one side of a comparison: which (``int64 [n]``), all of that side, and what is known of them.

    Attributes:
        which: of ``vectors``.
        scales: what makes each row one long, ``float32 [all, 1]``; 0 for a row of zeros.
        sketches: ``float32 [all, directions + 1]``: the part of each (made one long) along each direction, and how long
            the rest of it is. None where there is no use in it.
    """

    which: Array
    vectors: Array
    scales: Array
    sketches: Array | None = None

    def at(self, which: Array) -> _Side:
        return _Side(which, self.vectors, self.scales, self.sketches)

    @property
    def units(self) -> Array:
        made: Array = _floats(self.vectors[self.which])
        made *= self.scales[self.which]
        return made


def _sides(vectors: Array, references: Array, others: int) -> tuple[_Side, _Side]:
    """Both sides of a comparison in which most are compared with so many others."""
    left = _Side(np.arange(len(vectors)), vectors, _scales(vectors))
    right = left
    if references is not vectors:
        right = _Side(np.arange(len(references)), references, _scales(references))
    # To sketch a vector takes about as long as to compare it with so many.
    if others <= 4 * _DIRECTIONS or vectors.shape[1] <= 2 * _DIRECTIONS:
        return left, right
    directions = _directions(np.concatenate([_drawn(left), _drawn(right)]))
    sketched = _sketched(left, directions)
    return sketched, sketched if right is left else _sketched(right, directions)


def _drawn(side: _Side) -> Array:
    return side.at(side.which[:: max(1, 2 * len(side.which) // _DRAWN)]).units


def _directions(units: Array) -> Array:
    """Some along which these differ most, ``float32 [d, directions]``, at right angles: by subspace iteration.

    Any would do: they decide how much is left to compute, not what is found.
    """
    made = np.random.default_rng(0).standard_normal((units.shape[1], _DIRECTIONS), dtype=np.float32)
    with _one_thread():
        for _ in range(2):
            made = np.linalg.qr((units.T @ (units @ made)).astype(np.float64))[0].astype(np.float32)
    return made


def _sketched(side: _Side, directions: Array) -> _Side:
    made: Array = np.empty((len(side.which), directions.shape[1] + 1), dtype=np.float32)
    for rows in _blocks(len(side.which), _ROWS):
        units = side.at(rows).units
        with _one_thread():
            along = units @ directions
        rest = (side.scales[rows, 0] > 0) - np.einsum("nd,nd->n", along, along)
        made[rows, :-1] = along
        # The root of a rest of nothing, wrongly rounded, would be far off: never too short.
        made[rows, -1] = np.sqrt(np.maximum(rest, 0) + _ROUNDING)
    return _Side(side.which, side.vectors, side.scales, made)


def _near(left: _Side, right: _Side, similarity: float) -> Array:
    found = np.zeros(len(left.vectors), dtype=bool)
    for rows in _blocks(len(left.which), _ROWS):
        rest = left.which[rows]
        for columns in _blocks(len(right.which), _COLUMNS):
            met, _ = _alike(left.at(rest), right.at(right.which[columns]), similarity)
            found[met] = True
            rest = rest[~found[rest]]
    near_any: Array = found[left.which]
    return near_any


def _alike(left: _Side, right: _Side, similarity: float, groups: Array | None = None) -> tuple[Array, Array]:
    """Finds the pairs that are at least this similar: which of the left side, and which of the right, ``int64 [k]``.

    Given the ``groups`` of all vectors, only pairs of two groups: where all are alike there are millions of others.
    """
    if left.sketches is None or right.sketches is None:
        maybe, sketched = _products(left.units, right.units) >= similarity - _ROUNDING, False
    else:
        with _one_thread():
            glance = left.sketches[left.which] @ right.sketches[right.which].T
        maybe, sketched = glance >= similarity - 2 * _ROUNDING, True
    first, second = np.divmod(np.flatnonzero(maybe), len(right.which))
    if groups is not None:
        apart = groups[left.which[first]] != groups[right.which[second]]
        first, second = first[apart], second[apart]
    if sketched:
        sure = _sure(left, right, first, second, similarity)
        first, second = first[sure], second[sure]
    return left.which[first], right.which[second]


def _products(one: Array, other: Array) -> Array:
    """``float32 [n, m]``."""
    if len(one) * len(other) > _SMALL:
        made: Array = one @ other.T
        return made
    with _one_thread():
        return one @ other.T


def _one_thread() -> AbstractContextManager[Any]:
    """For small products: where processors are busy, threads wait ten times as long for each other as they work."""
    limited: AbstractContextManager[Any] = _blas().limit(limits=1)
    return limited


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController().select(user_api="blas")


def _sure(left: _Side, right: _Side, first: Array, second: Array, similarity: float) -> Array:
    """Which of the pairs (rows ``first[i]`` of the one and ``second[i]`` of the other side) are so similar, in full."""
    rows, first = _used(first, len(left.which))
    columns, second = _used(second, len(right.which))
    one, other = left.at(left.which[rows]).units, right.at(right.which[columns]).units
    if len(first) * _FETCHED > len(rows) * len(columns):
        products = _products(one, other)[first, second]
    else:
        products = np.empty(len(first), dtype=np.float32)
        for some in _blocks(len(first), _TOGETHER):
            products[some] = np.einsum("nd,nd->n", one[first[some]], other[second[some]])
    sure: Array = products >= similarity - _ROUNDING
    return sure


def _used(places: Array, size: int) -> tuple[Array, Array]:
    """Which of ``size`` places occur, and for each given one, which of these it is."""
    used = np.zeros(size, dtype=bool)
    used[places] = True
    return np.flatnonzero(used), (np.cumsum(used) - 1)[places]


def _scales(vectors: Array) -> Array:
    """What makes each row one long, as ``float32 [n, 1]``; 0 for a row of zeros."""
    norms = np.empty((len(vectors), 1), dtype=np.float32)
    finite = np.empty(len(vectors), dtype=bool)
    for rows in _blocks(len(vectors), _ROWS):
        finite[rows] = np.isfinite(vectors[rows]).all(axis=1)
        made = _floats(vectors[rows])
        norms[rows, 0] = np.sqrt(np.einsum("nd,nd->n", made, made))
    wrong = int((~(finite & np.isfinite(norms[:, 0]))).sum())
    if wrong:
        raise WwtsError(f"{wrong} of {len(vectors)} embeddings hold NaN or infinite numbers; compute them again.")
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _floats(vectors: Array) -> Array:
    """As a new float32 array; NaN and infinite numbers become others.

    float16 takes five times as long by ``astype``, which was half of all the time of comparing.
    """
    if vectors.dtype != np.float16:
        return vectors.astype(np.float32)
    # The sign stays in front, the rest moves to where float32 has the last bits of the exponent, and what remains is
    # the difference of what the two count exponents from, 127 and 15.
    bits = np.ascontiguousarray(vectors).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)
    made = bits.view(np.float32)
    made *= np.float32(2.0**112)
    return made


def _blocks(length: int, size: int, start: int = 0) -> Iterator[Array]:
    return (np.arange(begin, min(begin + size, length)) for begin in range(start, length, size))
