"""No leakage, proved by hash: what is judged by never enters training, and ordinary photographs do."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import skimage
import sklearn
import structlog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wwts_ops import badcases, holdout, images, neardup, runtime, taxonomy
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger

Array = np.ndarray[Any, Any]
BACKBONE = "ab" * 32
CONTENTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


def content(number: int) -> str:
    return hashlib.sha256(f"content {number}".encode()).hexdigest()


# ------------------------------------------------------------------ the audit


@given(CONTENTS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_contains_the_smaller(one: str, share: float, other: float) -> None:
    assert holdout.in_audit(one, max(share, other)) >= holdout.in_audit(one, min(share, other))


@given(CONTENTS)
def test_no_share_holds_nothing_and_the_whole_everything(one: str) -> None:
    assert not holdout.in_audit(one, 0)
    assert holdout.in_audit(one, 1)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_audit_is_as_large_as_it_should_be(share: float) -> None:
    count = 40_000
    found = sum(holdout.in_audit(content(number), share) for number in range(count))
    assert abs(found - share * count) < 5 * (share * (1 - share) * count) ** 0.5


def test_the_audit_never_drifts() -> None:
    """As it was when the first model was trained: salt, hash and order of bytes are for ever."""
    for number in range(500):
        digest = hashlib.sha256(b"wwts audit holdout 1\0" + bytes.fromhex(content(number))).hexdigest()
        assert holdout.in_audit(content(number), 0.25) == (digest[0] in "0123")


@pytest.mark.parametrize("wrong", ["", "ab" * 31, "AB" * 32, "xy" * 32, "ab" * 32 + "\n", "photo.jpg"])
def test_what_is_no_hash_is_refused(wrong: str) -> None:
    with pytest.raises(WwtsError, match="is no SHA-256"):
        holdout.in_audit(wrong, 0.05)


# ------------------------------------------------------------------ made-up embeddings


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the starter set, one of it retired, and embeddings of all of it in eight dimensions."""
    store = Store(str(tmp_path_factory.mktemp("started") / "store"))
    cases = badcases.ensure(store, taxonomy.embedded(())).cases
    badcases.retire(store, "小王", cases[0].content_sha256, "不再出售")
    vectors = np.random.default_rng(3).integers(-2, 3, (len(cases), 8)).astype(np.float16)
    badcases.add_embeddings(store, BACKBONE, [case.content_sha256 for case in cases], vectors)
    return store


def sharing(store: Store, share: float = 0.05) -> Settings:
    return Settings(store=store.root, holdout_share=share)


def candidates(count: int, seed: int) -> tuple[list[str], Array]:
    vectors = np.random.default_rng(seed).integers(-2, 3, (count, 8)).astype(np.float16)
    return [content(number) for number in range(count)], vectors


@given(seed=st.integers(0, 10**6), count=st.integers(0, 60), share=st.sampled_from([0.0, 0.05, 0.3]))
def test_held_out_is_what_the_definition_says(started: Store, seed: int, count: int, share: float) -> None:
    contents, vectors = candidates(count, seed)
    cases, references = badcases.embeddings(started, BACKBONE)
    contents[:3] = cases[: len(contents[:3])]
    audit = [one for one in contents if holdout.in_audit(one, share)]
    seeds = np.concatenate([references, vectors[[one in {*audit, *cases} for one in contents]]])
    copies = neardup.copies(vectors, seeds) | ~vectors.any(axis=1)
    expected = {*audit, *contents[:3], *np.array(contents, dtype=object)[copies]}
    assert holdout.held_out(started, sharing(started, share), BACKBONE, contents, vectors) == expected


@given(seed=st.integers(0, 10**6), chance=st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(started: Store, seed: int, chance: Any) -> None:
    contents, vectors = candidates(50, seed)
    order = chance.sample(range(50), 50)
    shuffled = [contents[place] for place in order]
    settings = sharing(started, 0.2)
    assert holdout.held_out(started, settings, BACKBONE, shuffled, vectors[order]) == holdout.held_out(
        started, settings, BACKBONE, contents, vectors
    )


@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.5), other=st.floats(0, 0.5))
def test_a_larger_share_never_frees_anything(started: Store, seed: int, share: float, other: float) -> None:
    contents, vectors = candidates(50, seed)
    less, more = (
        holdout.held_out(started, sharing(started, one), BACKBONE, contents, vectors) for one in sorted((share, other))
    )
    assert less <= more


def test_without_bad_cases_only_the_audit_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    contents, vectors = [content(number) for number in range(200)], np.eye(200, dtype=np.float16)
    found = holdout.held_out(store, sharing(store), BACKBONE, contents, vectors)
    assert found == {one for one in contents if holdout.in_audit(one, 0.05)}
    assert found


def test_a_bad_case_that_cannot_be_compared_stops_everything(started: Store) -> None:
    cases, _ = badcases.embeddings(started, BACKBONE)
    contents, vectors = candidates(4, 1)
    with pytest.raises(WwtsError, match=rf"^{len(cases)} of {len(cases)} bad cases have no embedding of backbone cdcd"):
        holdout.held_out(started, sharing(started), "cd" * 32, contents, vectors)
    # One that is a candidate brings its own embedding.
    with pytest.raises(WwtsError, match=rf"^{len(cases) - 1} of {len(cases)} .*; run evaluate_model"):
        holdout.held_out(started, sharing(started), "cd" * 32, [cases[0], *contents[1:]], vectors)
    everything = np.ones((len(cases), 8), np.float16)
    assert holdout.held_out(started, sharing(started), "cd" * 32, cases, everything) == set(cases)


def test_what_does_not_fit_is_refused(started: Store) -> None:
    contents, vectors = candidates(4, 1)
    with pytest.raises(WwtsError, match="3 contents came with 4 embeddings"):
        holdout.held_out(started, sharing(started), BACKBONE, contents[:3], vectors)
    with pytest.raises(WwtsError, match=r"\(4, 7\) are not of backbone abababababab, whose bad cases have 8 numbers"):
        holdout.held_out(started, sharing(started), BACKBONE, contents, vectors[:, :7])
    vectors[2, 3] = np.nan
    with pytest.raises(WwtsError, match="1 of 4 embeddings hold NaN"):
        holdout.held_out(started, sharing(started), BACKBONE, contents, vectors)


def test_nothing_of_nothing_is_held_out(started: Store) -> None:
    assert holdout.held_out(started, sharing(started), BACKBONE, [], np.empty((0, 8), np.float16)) == frozenset()


def test_an_embedding_of_zeros_which_nothing_can_be_compared_with_is_held_out(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    vectors = np.eye(3, dtype=np.float16)
    vectors[1] = 0
    contents = [content(number) for number in range(3)]
    assert holdout.held_out(store, sharing(store, 0), BACKBONE, contents, vectors) == {contents[1]}


def test_the_log_says_how_many_and_warns_when_little_is_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    contents = [content(number) for number in range(40)]
    audit = [holdout.in_audit(one, 0.1) for one in contents]
    assert 0 < sum(audit) < 20
    with structlog.testing.capture_logs() as logged:
        holdout.held_out(store, sharing(store, 0.1), BACKBONE, contents, np.eye(40, dtype=np.float16))
        holdout.held_out(store, sharing(store, 0.1), BACKBONE, contents, np.ones((40, 3), np.float16))
    apart, alike = logged
    assert (apart["log_level"], apart["candidates"], apart["audit"], apart["kept"]) == (
        "info",
        40,
        sum(audit),
        40 - sum(audit),
    )
    assert (alike["log_level"], alike["like_audit"], alike["kept"]) == ("warning", 40 - sum(audit), 0)


def test_the_log_counts_each_candidate_under_its_first_reason(started: Store) -> None:
    cases, vectors = badcases.embeddings(started, BACKBONE)
    contents = [*cases[:3], *(content(number) for number in range(3))]
    with structlog.testing.capture_logs() as logged:
        holdout.held_out(started, sharing(started, 0), BACKBONE, contents, np.concatenate([vectors[:3], vectors[:3]]))
    assert {"bad_cases": 3, "audit": 0, "like_bad_cases": 3, "like_audit": 0}.items() <= logged[0].items()


# ------------------------------------------------------------------ real photographs

_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
_MATPLOTLIB = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data"
CURATED = (_SKIMAGE / "coins.png", _SKIMAGE / "motorcycle_left.png", _SKIMAGE / "hubble_deep_field.jpg")
RETIRED = _SKIMAGE / "ihc.png"
STARTER = _SKIMAGE / "coffee.png"
AUDITED = (_SKIMAGE / "rocket.jpg", _SKLEARN / "flower.jpg", _SKIMAGE / "retina.jpg")
ORDINARY = (
    *(_SKIMAGE / name for name in ("brick.png", "grass.png", "moon.png", "page.png", "cell.png")),
    _MATPLOTLIB / "Minduka_Present_Blue_Pack.png",
)
LABEL = "imagenet:n07930864"


def opened(data: bytes | Path) -> Image.Image:
    with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def jpeg(picture: Image.Image, quality: int, *, audit: bool) -> bytes:
    """A file that is in the audit, or not: its comment is changed until it is."""
    for number in range(1000):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, comment=str(number))
        if holdout.in_audit(images.content_sha256(file.getvalue()), 0.05) is audit:
            return file.getvalue()
    raise AssertionError("no number puts the file there")


def _smaller(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))


def _cropped(picture: Image.Image) -> Image.Image:
    x, y = picture.width // 33, picture.height // 33
    return picture.crop((x, y, picture.width - x, picture.height - y))


def copies(picture: Image.Image) -> list[bytes]:
    """None of them in the audit by its own hash; the last is a copy of a copy."""
    first = jpeg(_smaller(picture), 70, audit=False)
    return [jpeg(picture, 60, audit=False), first, jpeg(_cropped(opened(first)), 80, audit=False)]


@dataclass(frozen=True)
class Shop:
    """A store with bad cases of every sort, and the embedded default to see with."""

    settings: Settings
    store: Store
    backbone: str
    embed: Callable[[Sequence[bytes]], Array]
    bad: tuple[bytes, ...]

    def training_set(self, files: Sequence[bytes]) -> list[bytes]:
        contents = [images.content_sha256(data) for data in files]
        held = holdout.held_out(self.store, self.settings, self.backbone, contents, self.embed(files))
        return [data for data, one in zip(files, contents, strict=True) if one not in held]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    settings = Settings(store=str(folder / "store"))
    store = Store.of(settings)
    own = [jpeg(opened(path), 90, audit=False) for path in (*CURATED, RETIRED)]
    pictures = folder / "cases" / LABEL.replace(":", "_")
    pictures.mkdir(parents=True)
    for number, data in enumerate(own):
        (pictures / f"{number}.jpg").write_bytes(data)
    badcases.import_cases(store, settings, folder / "cases", "小王")
    snapshot = badcases.retire(store, "小王", images.content_sha256(own[-1]), "不再出售")
    embedder, recipe = runtime.OnnxEmbedder(embedded_tagger), embedded_tagger.recipe

    def embed(files: Sequence[bytes]) -> Array:
        decoded = [images.decode(data, recipe.short_side, settings.max_pixels).rgb for data in files]
        return embedder(np.stack([recipe.crop(rgb) for rgb in decoded]))

    contents = [case.content_sha256 for case in snapshot.cases]
    vectors = embed([badcases.content(store, one) for one in contents])
    badcases.add_embeddings(store, embedded_tagger.backbone_sha256, contents, vectors)
    return Shop(settings, store, embedded_tagger.backbone_sha256, embed, (*own, STARTER.read_bytes()))


def test_no_bad_case_no_audit_picture_and_no_copy_of_either_is_ever_trained_on(shop: Shop) -> None:
    audited = [jpeg(opened(path), 90, audit=True) for path in AUDITED]
    held = [*shop.bad, *audited]
    copied = [copy for data in held for copy in copies(opened(data))]
    ordinary = [jpeg(opened(path), 90, audit=False) for path in ORDINARY]

    training_set = shop.training_set([*ordinary, *copied, *held])

    trained = {hashlib.sha256(data).hexdigest() for data in training_set}
    snapshot = badcases.current(shop.store)
    assert snapshot is not None
    assert len(snapshot.cases) > len(snapshot.active) > len(CURATED)
    assert trained.isdisjoint(case.content_sha256 for case in snapshot.cases)
    assert trained.isdisjoint(hashlib.sha256(data).hexdigest() for data in (*held, *copied))
    assert trained == {hashlib.sha256(data).hexdigest() for data in ordinary}


def test_only_what_is_like_them_is_held_out(shop: Shop) -> None:
    """The same pictures, none of them in the audit, and none a bad case of this shop: all may be learned from."""
    files = [jpeg(opened(path), 90, audit=False) for path in (*AUDITED, *ORDINARY)]
    assert shop.training_set(files) == files
