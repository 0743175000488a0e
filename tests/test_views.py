"""Further views of answered pictures: what they show, that each is made once, and what they add to a dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from PIL import Image
from shard_shop import Shop, make_photos
from structlog.testing import capture_logs
from tiny_backbone import TINY

from training import dataset, views
from training.dataset import WEAK, Dataset, Examples
from training.views import Views
from wwts_ops import images, tagging
from wwts_ops.runtime import OnnxEmbedder
from wwts_ops.tagger import Head, Tagger, save
from wwts_ops.tagging import Shard

Array = np.ndarray[Any, Any]
FOUR = Views.of(4)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    ids = tuple(f"imagenet:n{number:08d}" for number in range(4))
    head = Head(ids, np.full(4, 0.6), np.zeros((4, TINY.recipe.dimension)), np.zeros(4))
    return save(tmp_path_factory.mktemp("tagger") / "tiny", TINY, TINY.network().state_dict(), head)


@dataclass(frozen=True)
class Answered:
    """A catalog of photographs that a night has tagged; ``contents`` by file name."""

    shop: Shop
    contents: dict[str, str]

    def dataset(self, weak: str = "") -> Dataset:
        """All photographs in train, one of them by an old tag."""
        contents = tuple(dict.fromkeys(self.contents.values()))
        count = len(contents)
        train = Examples(
            vectors=np.arange(6 * count).reshape(count, 6).astype(np.float16),
            targets=np.arange(count) % 2,
            weights=np.linspace(0.1, 1, count).astype(np.float32),
            groups=np.arange(count) + 10,
            contents=contents,
            probability=np.linspace(0.1, 1, count),
            shown=tuple(WEAK if content == weak else f"因为 {content[:4]}" for content in contents),
            view_of=np.arange(count),
        )
        none = Examples(*(array[:0] for array in vars(train).values()))
        vectors = np.zeros((0, 6), np.float16)
        return Dataset(("a", "b"), train, none, none, vectors, (), {"held_out": 3}, (), "").sealed()


@pytest.fixture
def answered(tmp_path: Path, tagger: Tagger) -> Answered:
    folder = tmp_path / "货架 📷"
    folder.mkdir()
    make_photos(folder)
    shop = Shop(folder, tmp_path / "store", tagger)
    shard = Shard(shop.plan(), 0)
    tagging.tag(shop.store, shop.settings(), shard, shop.machine)
    rows = shop.part(shard, "tags").to_pylist()
    return Answered(shop, {row["image_id"]: row["content_sha256"] for row in rows})


def test_each_view_is_behind_its_original(answered: Answered, tagger: Tagger) -> None:
    before = answered.dataset()
    after = views.extended(answered.shop.settings(), tagger, before, FOUR)
    count, train = len(before.train), after.train
    assert len(train) == 5 * count
    assert train.view_of.tolist() == [*range(count), *np.repeat(np.arange(count), 4).tolist()]
    for name in ("targets", "weights", "groups", "probability"):
        np.testing.assert_array_equal(getattr(train, name), getattr(before.train, name)[train.view_of])
    for name in ("contents", "shown"):
        assert getattr(train, name) == tuple(getattr(before.train, name)[row] for row in train.view_of)
    np.testing.assert_array_equal(train.vectors[:count], before.train.vectors)
    assert after.excluded == {"held_out": 3, "no_views": 0}
    assert after.sha256 != before.sha256
    dataset.save(answered.shop.store, "trainings/练习", after)
    assert dataset.load(answered.shop.store, "trainings/练习").sha256 == after.sha256


def test_the_first_view_is_the_mirror_of_what_the_night_saw(answered: Answered, tagger: Tagger) -> None:
    found = views.extended(answered.shop.settings(), tagger, answered.dataset(), Views.of(1)).train
    embed, recipe = OnnxEmbedder(tagger), tagger.recipe
    for name in ("a1 咖啡 ☕.jpg", "a6 tiny.png", "a7 large.jpg"):
        data = (answered.shop.folder / name).read_bytes()
        crop = recipe.crop(images.decode(data, recipe.short_side, 10**8).rgb)
        place = len(found) // 2 + found.contents.index(answered.contents[name])
        np.testing.assert_array_equal(found.vectors[place], embed(np.ascontiguousarray(crop[None, :, ::-1]))[0])


def test_views_are_made_once_and_the_same_in_any_order(answered: Answered, tagger: Tagger) -> None:
    """As after a kill: some parts are there, the others are made, and what is there is not read again."""
    settings, before = answered.shop.settings(), answered.dataset()
    contents = before.train.contents
    first = views.embed(settings, tagger, contents[:3], FOUR)
    with capture_logs() as events:
        second = views.embed(settings, tagger, contents[::-1], FOUR)
    assert (first["embedded"], second["stored"], second["embedded"]) == (3, 3, len(contents) - 3)
    assert [event["done"] for event in events if event["event"] == "views_progress"] == [len(contents) - 3]
    piecewise = views.extended(settings, tagger, before, FOUR)

    fresh = answered.shop.settings()
    for key in answered.shop.store.list("views", ".parquet"):
        answered.shop.store.delete(key)
    whole = views.extended(fresh, tagger, before, FOUR)
    assert whole.sha256 == piecewise.sha256
    for path in answered.shop.folder.rglob("*.*"):
        path.unlink()
    assert views.extended(fresh, tagger, before, FOUR).sha256 == whole.sha256


def test_other_recipes_are_kept_apart(answered: Answered, tagger: Tagger) -> None:
    settings, before = answered.shop.settings(), answered.dataset()
    found = [
        views.extended(settings, tagger, before, recipe).train.vectors[len(before.train) :]
        for recipe in (Views(("crop",)), Views(("crop",), seed=1), Views(("crop",), least=0.9), Views(("mirror",)))
    ]
    assert all(not np.array_equal(one, other) for place, one in enumerate(found) for other in found[:place])
    assert len({key.split("/")[2] for key in answered.shop.store.list("views", ".parquet")}) == 4


def test_a_picture_that_is_not_there_any_more_has_no_views(answered: Answered, tagger: Tagger) -> None:
    gone, changed, cut = "a3.png", "a5.jpg", "a9.jpg"
    (answered.shop.folder / gone).unlink()
    Image.new("RGB", (50, 50), "red").save(answered.shop.folder / changed)
    # A copy of it is still where it was.
    (answered.shop.folder / "a1 咖啡 ☕.jpg").unlink()
    before = answered.dataset()
    counts = views.embed(answered.shop.settings(), tagger, [*before.train.contents, "ab" * 32], FOUR)
    assert counts["unreadable_uri"] == counts["changed"] == counts["not_in_catalog"] == 1
    assert counts["embedded"] == len(before.train) - 2
    after = views.extended(answered.shop.settings(), tagger, before, FOUR)
    assert after.excluded["no_views"] == 2
    without = {answered.contents[gone], answered.contents[changed]}
    viewed = {after.train.contents[row] for row in after.train.view_of[len(before.train) :]}
    assert viewed == set(before.train.contents) - without
    assert answered.contents[cut] in viewed


def test_old_tags_have_no_views(answered: Answered, tagger: Tagger) -> None:
    weak = answered.contents["a5.jpg"]
    before = answered.dataset(weak)
    after = views.extended(answered.shop.settings(), tagger, before, FOUR)
    assert after.train.contents.count(weak) == 1
    assert after.excluded["no_views"] == 0
    stored = [
        content
        for key in answered.shop.store.list("views", ".parquet")
        for content in answered.shop.store.read_table(key).column("content_sha256").to_pylist()
    ]
    assert sorted(stored) == sorted(set(before.train.contents) - {weak})


def test_no_views_wanted_none_made(answered: Answered, tagger: Tagger) -> None:
    before = answered.dataset()
    assert views.extended(answered.shop.settings(training_views=0), tagger, before) is before
    assert answered.shop.store.list("views") == []
    assert len(views.extended(answered.shop.settings(training_views=2), tagger, before).train) == 3 * len(before.train)


def test_training_gets_its_cores_back(answered: Answered, tagger: Tagger) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        views.extended(answered.shop.settings(), tagger, answered.dataset(), FOUR)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------ crops


@limits(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.floats(1, 3), st.integers(0, 99))
def test_a_crop_lies_in_the_picture(height: int, width: int, least: float, aspect: float, seed: int) -> None:
    recipe = Views(("crop",), least, aspect)
    top, left, rows, columns = views._box(height, width, recipe, np.random.default_rng(seed))
    assert 0 <= top <= top + rows <= height
    assert 0 <= left <= left + columns <= width
    assert min(rows, columns) >= 1
    # Within the rounding of a side to whole pixels, as far as the picture itself allows.
    strip = max(height / width, width / height) > aspect
    assert rows <= aspect * columns + aspect + 1
    assert columns <= aspect * rows + aspect + 1
    assert strip or (rows + 1) * (columns + 1) >= min(least, 1 / aspect) * height * width


def test_crops_are_of_every_size_and_place() -> None:
    recipe = Views(("crop",))
    lots = [np.random.default_rng(views._lot(f"{number:064x}", 1, 0)) for number in range(2000)]
    boxes = np.array([views._box(400, 600, recipe, one) for one in lots])
    shares = boxes[:, 2] * boxes[:, 3] / (400 * 600)
    assert shares.min() < 0.37
    assert 0.8 < shares.max() < 8 / 9 + 0.01  # all of its height, 4:3
    assert (shares >= 0.349).all()
    assert np.log(boxes[:, 3] / boxes[:, 2]).max() < math.log(4 / 3) + 0.01
    assert boxes[:, 0].min() == 0
    assert boxes[:, 0].max() > 100


def test_about_half_of_the_crops_are_mirrored(tagger: Tagger) -> None:
    """A picture that is dark on its left and bright on its right."""
    ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (150, 1, 3))
    data = images.thumbnail(ramp)
    mirrored = 0
    for number in range(400):
        lots = np.random.default_rng(views._lot(f"{number:064x}", 0, 0))
        crop = views._crop(data, views._View(tagger.recipe, Views(("crop",)), 10**6, lots))
        assert crop.shape == (32, 32, 3)
        mirrored += int(crop[:, 0].mean() > crop[:, -1].mean())
    assert abs(mirrored - 200) < 50  # five standard deviations


@pytest.mark.parametrize("wrong", [{"kinds": ("sideways",)}, {"kinds": (), "least": 0}, {"kinds": (), "aspect": 0.5}])
def test_views_that_cannot_be_made_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no such views"):
        Views(**wrong)


def test_views_of_a_count() -> None:
    assert Views.of(0).kinds == ()
    assert Views.of(1).kinds == ("mirror",)
    assert Views.of(3).kinds == ("mirror", "crop", "crop")
    assert len({Views.of(count).sha256 for count in range(5)}) == 5
