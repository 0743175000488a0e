"""What counts as a copy: against plain definitions on small sets, and on real photographs with the embedded default."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import sklearn
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image, ImageEnhance, ImageOps

from wwts_ops import images, neardup, runtime
from wwts_ops.errors import WwtsError
from wwts_ops.tagger import Tagger

Array = np.ndarray[Any, Any]
BLOCK = {"_ROWS": neardup._ROWS, "_COLUMNS": neardup._COLUMNS, "_DIRECTIONS": neardup._DIRECTIONS}
#: Few directions in few dimensions, so that there are copies, chains and strangers in any small set.
SETS = npst.arrays(np.float16, st.tuples(st.integers(0, 24), st.just(3)), elements=st.integers(-3, 3).map(float))
SIMILARITIES = st.sampled_from([0.30, 0.50, 0.72, 0.85, 0.95, 1.0])


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks of another size each way, so that small sets have many of them, and rests at the ends; and sketches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neardup, "_ROWS", 3)
        patch.setattr(neardup, "_COLUMNS", 5)
        patch.setattr(neardup, "_DIRECTIONS", 1)
        yield


@pytest.fixture
def real_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in BLOCK.items():
        monkeypatch.setattr(neardup, name, size)


def cosines(vectors: Array, references: Array) -> Array:
    """By the definition, in float64; 0 for what has no direction."""
    left, right = vectors.astype(np.float64), references.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None]
    found: Array = np.divide(left @ right.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return found


def alike(vectors: Array, references: Array, similarity: float) -> Array:
    found = cosines(vectors, references)
    assume(not (np.abs(found - similarity) < 1e-4).any() or similarity == 1)
    return found >= similarity - 1e-6


def partition(vectors: Array, similarity: float) -> set[frozenset[int]]:
    """Walks from each vector to all that can be reached."""
    edges = alike(vectors, vectors, similarity)
    parts: set[frozenset[int]] = set()
    for start in range(len(vectors)):
        reached, todo = {start}, [start]
        while todo:
            fresh = set(np.flatnonzero(edges[todo.pop()]).tolist()) - reached
            reached |= fresh
            todo.extend(fresh)
        parts.add(frozenset(reached))
    return parts


def as_sets(numbers: Array) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(numbers == number).tolist()) for number in np.unique(numbers)}


@given(SETS, SETS, SIMILARITIES)
def test_near_is_what_the_definition_says(vectors: Array, references: Array, similarity: float) -> None:
    expected = alike(vectors, references, similarity).any(axis=1)
    assert neardup.near(vectors, references, similarity).tolist() == expected.tolist()


@given(SETS, SIMILARITIES)
def test_groups_are_the_connected_components_numbered_as_they_occur(vectors: Array, similarity: float) -> None:
    numbers = neardup.groups(vectors, similarity)
    assert as_sets(numbers) == partition(vectors, similarity)
    assert list(dict.fromkeys(numbers.tolist())) == list(range(len(set(numbers.tolist()))))


@given(SETS, SIMILARITIES, st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order(vectors: Array, similarity: float, chance: Any) -> None:
    order = chance.sample(range(len(vectors)), len(vectors))
    shuffled = as_sets(neardup.groups(vectors[order], similarity)) if order else set()
    assert {frozenset(order[place] for place in part) for part in shuffled} == as_sets(
        neardup.groups(vectors, similarity)
    )


@given(SETS, SETS)
def test_copies_are_chains_of_the_same_picture_and_one_looser_step(vectors: Array, references: Array) -> None:
    together = np.concatenate([references, vectors])
    seeds = set(range(len(references)))
    same = {one for part in partition(together, neardup.SAME) if part & seeds for one in part}
    reached = alike(vectors, together[sorted(same)], neardup.SIMILARITY).any(axis=1)
    reached |= np.array([one + len(references) in same for one in range(len(vectors))], dtype=bool)
    # Nothing is a copy of zeros, nor are zeros.
    reached &= vectors.any(axis=1)
    assert neardup.copies(vectors, references).tolist() == reached.tolist()


@given(SETS, SETS, SETS)
def test_more_references_never_free_a_copy(vectors: Array, references: Array, more: Array) -> None:
    few = neardup.copies(vectors, references)
    many = neardup.copies(vectors, np.concatenate([references, more]))
    assert (many >= few).all()


def circle(*degrees: float) -> Array:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float16)


def test_a_copy_of_a_copy_of_a_copy_is_found_and_what_is_merely_alike_passes_nothing_on() -> None:
    # 18 degrees are a cosine of 0.951, 30 of 0.866, 33 of 0.839.
    chain = circle(17, 34, 51, 68, 98, 128, 180)
    found = neardup.copies(chain, circle(0))
    assert found.tolist() == [True, True, True, True, True, False, False]
    assert neardup.near(chain, circle(0)).tolist() == [True] + [False] * 6
    assert not neardup.copies(circle(33), circle(0)).any()


def test_a_vector_of_zeros_is_near_nothing_not_even_itself() -> None:
    zeros = np.zeros((2, 4), np.float16)
    assert not neardup.near(zeros, zeros, 0.01).any()
    assert not neardup.copies(zeros, zeros).any()
    assert neardup.groups(zeros, 0.01).tolist() == [0, 1]


def test_the_very_same_vector_is_near_at_similarity_one() -> None:
    vectors = np.random.default_rng(5).standard_normal((40, 1280)).astype(np.float16)
    assert neardup.near(vectors, vectors[::-1], 1.0).all()
    assert neardup.groups(np.concatenate([vectors, vectors]), 1.0).tolist() == [*range(40), *range(40)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(wrong: float) -> None:
    good = np.ones((4, 3), np.float16)
    bad = good.copy()
    bad[2, 1] = wrong
    told = "1 of 4 embeddings hold NaN or infinite numbers"
    for find in (neardup.near, neardup.copies):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(WwtsError, match=told):
                find(*pair)
    with pytest.raises(WwtsError, match=told):
        neardup.groups(bad)


def test_empty_inputs_are_fine() -> None:
    none, some = np.empty((0, 3), np.float16), np.ones((2, 3), np.float16)
    for find in (neardup.near, neardup.copies):
        assert find(none, some).tolist() == []
        assert find(none, none).tolist() == []
        assert find(some, none).tolist() == [False, False]
    assert neardup.groups(none).tolist() == []
    assert neardup.groups(none).dtype == np.int64


def test_embeddings_of_two_backbones_are_not_compared() -> None:
    with pytest.raises(WwtsError, match=r"\(2, 3\) and \(2, 4\)"):
        neardup.near(np.ones((2, 3), np.float16), np.ones((2, 4), np.float16))


@pytest.mark.parametrize("similarity", [0.0, -0.5, 1.01, float("nan")])
def test_a_similarity_that_everything_or_nothing_has_is_refused(similarity: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        neardup.groups(np.ones((2, 3), np.float16), similarity)


def crowds(kind: str) -> Array:
    """1,200 vectors of 300 numbers: enough of both for sketches of the real size."""
    chance = np.random.default_rng(11)
    strangers = chance.standard_normal((1200, 300))
    some = chance.integers(0, 1200, 1200)
    if kind == "shifted":  # as embeddings are: all of them more or less on one side
        strangers = strangers * 0.5 ** np.arange(300)[None] ** 0.3 + 0.05
    if kind == "clusters":
        strangers = strangers[some % 40] + chance.uniform(0.05, 0.6, (1200, 1)) * strangers
    if kind == "identical":
        strangers = strangers[some % 3]
    if kind == "zeros":
        strangers[some] = 0
    if kind == "flat":  # nothing is left beside the directions of a sketch, but for what rounding leaves
        strangers[:, 100:] = 0
    if kind == "flat and steep":  # half in few directions and near each other, the rest across
        strangers[:600, 2:] *= 1e-3
    if kind == "uneven":
        strangers *= 10.0 ** chance.uniform(-3, 2, (1200, 1))
    return strangers.astype(np.float16)


KINDS = ["strangers", "shifted", "clusters", "identical", "zeros", "flat", "flat and steep", "uneven"]


@pytest.mark.usefixtures("real_blocks")
@pytest.mark.parametrize("kind", KINDS)
def test_glances_lose_and_add_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = crowds(kind)
    some, others = vectors[:700], vectors[600:]
    found = cosines(vectors, vectors)
    upper = found[np.triu_indices(len(found), 1)]
    # In the middle of the widest gap near each, so that no rounding decides.
    for wanted in (0.3, 0.85, 0.95, 0.999):
        close = np.sort(np.append(upper[np.abs(upper - wanted) < 1e-3], [wanted - 1e-3, min(wanted + 1e-3, 0.9999)]))
        widest = int(np.argmax(np.diff(close)))
        similarity = float(close[widest : widest + 2].mean()) + neardup._ROUNDING
        expected = (found[:700, 600:] >= similarity - neardup._ROUNDING).any(axis=1)
        assert neardup.near(some, others, similarity).tolist() == expected.tolist()
        numbers = neardup.groups(vectors, similarity)
        with monkeypatch.context() as patch:
            patch.setattr(neardup, "_DIRECTIONS", len(vectors))  # no sketches
            assert numbers.tolist() == neardup.groups(vectors, similarity).tolist()
    plain = [neardup.copies(some, vectors[start:]).tolist() for start in (690, 1190)]
    monkeypatch.setattr(neardup, "_DIRECTIONS", len(vectors))
    assert plain == [neardup.copies(some, vectors[start:]).tolist() for start in (690, 1190)]


@pytest.mark.usefixtures("real_blocks")
def test_a_pair_at_the_very_similarity_is_found_wherever_it_points() -> None:
    """Pairs in a plane that is among a sketch's directions, across them, or half each: the bound is then the cosine."""
    chance = np.random.default_rng(7)
    many = np.zeros((1200, 300), np.float32)
    many[:, :140] = chance.standard_normal((1200, 140))
    angle = np.arccos(np.float64(neardup.SAME))
    for axes in ((0, 1), (0, 299), (298, 299), (299, 0)):
        pair = np.zeros((2, 300), np.float32)
        pair[:, axes[0]] = 1, np.cos(angle)
        pair[1, axes[1]] = np.sin(angle)
        everything = np.concatenate([many, pair])
        assert neardup.groups(everything)[-1] == neardup.groups(everything)[-2]
        assert neardup.near(everything, everything[::-1][:1000], neardup.SAME)[-2:].all()


def test_float16_is_read_as_it_is_written() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(2, -1)
    for one in (every, every[:, ::3], every.T, every.astype(">f2"), every.astype(np.float32)):
        assert np.array_equal(neardup._floats(one), one.astype(np.float32))
        assert neardup._floats(one).dtype == np.float32


@given(SETS, SIMILARITIES, st.data())
def test_groups_within_a_label_are_those_of_its_rows_alone(vectors: Array, similarity: float, data: Any) -> None:
    drawn = data.draw(st.lists(st.integers(0, 2), min_size=len(vectors), max_size=len(vectors)))
    labels = np.array(drawn, dtype=np.int64)
    expected: set[frozenset[int]] = set()
    for label in set(drawn):
        rows = np.flatnonzero(labels == label)
        expected |= {frozenset(rows[list(part)].tolist()) for part in partition(vectors[rows], similarity)}
    numbers = neardup.within(vectors, labels, similarity)
    assert as_sets(numbers) == expected
    assert list(dict.fromkeys(numbers.tolist())) == list(range(len(expected)))


PARTITIONS = st.integers(0, 12).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 5), min_size=size, max_size=size)] * 2)
)


@given(PARTITIONS)
def test_joined_groups_are_the_least_in_which_both_are_whole(pair: tuple[list[int], list[int]]) -> None:
    first, second = (np.array(one, dtype=np.int64) for one in pair)
    parts = [{row} for row in range(len(first))]
    for given_groups in (first, second):
        for part in as_sets(given_groups):
            met = [one for one in parts if one & part]
            parts = [one for one in parts if not one & part] + [set().union(*met)]
    numbers = neardup.joined(first, second)
    assert as_sets(numbers) == {frozenset(one) for one in parts}
    assert list(dict.fromkeys(numbers.tolist())) == list(range(len(parts)))


@pytest.mark.usefixtures("real_blocks")
@pytest.mark.parametrize("numbers", [16, 264])
def test_memory_stays_flat_where_everything_is_alike(numbers: int) -> None:
    """All pairs are 144 million: as float32 alone 576 MB."""
    vectors = np.ones((12_000, numbers), np.float16)
    tracemalloc.start()
    try:
        found = neardup.groups(vectors)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not found.any()
    assert peak < 400 * 2**20


# ------------------------------------------------------------------ real photographs

PHOTOS = (
    *(Path(skimage.__file__).parent / "data" / name for name in ("astronaut.png", "chelsea.png", "coffee.png")),
    *(Path(skimage.__file__).parent / "data" / name for name in ("rocket.jpg", "motorcycle_left.png", "coins.png")),
    *(Path(sklearn.__file__).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")),
)


def _half(photo: Image.Image) -> Image.Image:
    return photo.resize((photo.width // 2, photo.height // 2))


def _cut(photo: Image.Image) -> Image.Image:
    x, y = photo.width // 25, photo.height // 25
    return photo.crop((x, y, photo.width - x, photo.height - y))


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "re-encoded": (lambda photo: photo, 60),
    "half the size": (_half, 90),
    "cropped": (_cut, 90),
    "brighter": (lambda photo: ImageEnhance.Brightness(photo).enhance(1.15), 90),
    "mirrored": (ImageOps.mirror, 90),
}


def jpeg(photo: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture(scope="module")
def embed(embedded_tagger: Tagger) -> Callable[[list[bytes]], Array]:
    embedder, recipe = runtime.OnnxEmbedder(embedded_tagger), embedded_tagger.recipe

    def run(files: list[bytes]) -> Array:
        decoded = [images.decode(data, recipe.short_side, 10**8).rgb for data in files]
        return embedder(np.stack([recipe.crop(rgb) for rgb in decoded]))

    return run


def test_copies_of_real_photographs_are_near_and_other_photographs_are_not(
    embed: Callable[[list[bytes]], Array],
) -> None:
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    originals = embed([jpeg(photo, 95) for photo in photos])
    for name, (change, quality) in COPIES.items():
        copies = embed([jpeg(change(photo), quality) for photo in photos])
        near = np.array([[neardup.near(copy[None], original[None])[0] for original in originals] for copy in copies])
        assert near.tolist() == np.eye(len(photos), dtype=bool).tolist(), name
