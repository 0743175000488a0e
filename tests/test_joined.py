"""Joined views: one name, one network, one crop; each part what its network alone says of that view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from wwts_ops import backbones, registration, runtime, settings, taxonomy
from wwts_ops.backbones import joined
from wwts_ops.backbones.base import Backbone
from wwts_ops.errors import WwtsError
from wwts_ops.recognition import Recognizer
from wwts_ops.tagger import Tagger

LITE0 = backbones.get("efficientnet-lite0")
LITE2 = backbones.get("efficientnet-lite2")
SKIMAGE = Path(skimage.data.__file__).parent
PHOTOS = ("chelsea", "coffee", "rocket")
SMALL = "lite:lite0@160+lite0@128+flip"


def crops(backbone: Backbone) -> torch.Tensor:
    """Three photographs as the backbone looks at them."""
    made = [backbone.recipe.crop(np.ascontiguousarray(getattr(skimage.data, name)())) for name in PHOTOS]
    return torch.from_numpy(np.stack(made))


def loaded(backbone: Backbone) -> torch.nn.Module:
    network = backbone.network()
    network.load_state_dict(backbone.pretrained().backbone, strict=True)
    return network


def seen(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = loaded(backbone)(pixels)
    return found


def levels(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """What torch's own function makes of floating-point levels."""
    whole = pixels.permute(0, 3, 1, 2).to(torch.float32)
    return torch.nn.functional.interpolate(whole, size=(side, side), mode="bicubic", antialias=True).clamp(0, 255)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class TestName:
    @pytest.mark.parametrize(
        ("name", "side", "short_side", "dimension"),
        [
            ("lite:lite2@320", 320, 366, 1280),
            ("lite:lite0@224", 224, 256, 1280),
            ("lite:lite2@320+lite2@260+lite0@224+flip", 320, 366, 3840),
            ("lite:lite0@260+lite2@260", 260, 297, 2560),
        ],
    )
    def test_it_says_all_of_it(self, name: str, side: int, short_side: int, dimension: int) -> None:
        recipe = backbones.get(name).recipe
        assert (recipe.backbone, recipe.input, recipe.short_side, recipe.dimension) == (
            name,
            side,
            short_side,
            dimension,
        )
        assert backbones.get(recipe.backbone).recipe == recipe

    @pytest.mark.parametrize(
        ("member", "written"),
        [
            ("lite0@224+lite2@320", "lite:lite2@320+lite0@224"),
            ("lite2@260+lite0@260", "lite:lite0@260+lite2@260"),
            ("lite2@320+lite2@320", "lite:lite2@320"),
        ],
    )
    def test_one_backbone_has_one_name(self, member: str, written: str) -> None:
        with pytest.raises(WwtsError, match=f"is written {written.replace('+', '.')}\\."):
            backbones.get(f"lite:{member}")

    @pytest.mark.parametrize(
        "member",
        [
            *("", "flip", "lite9@224", "lite0", "lite0@", "lite0@32", "lite0@5000", "lite0@0224", "LITE0@224"),
            *("flip+lite0@224", "lite0@224+flip+flip", "lite0@224+", "lite0@224,flip", " lite0@224"),
        ],
    )
    def test_no_name(self, member: str) -> None:
        with pytest.raises(WwtsError, match=r"no backbone|0 views"):
            backbones.get(f"lite:{member}")

    def test_so_many_views_that_a_head_would_hardly_fit_are_refused(self) -> None:
        with pytest.raises(WwtsError, match="9 views"):
            backbones.get("lite:" + "+".join(f"lite0@{side}" for side in range(264, 246, -2)))


class TestNetwork:
    @pytest.mark.parametrize(("whole", "side"), [(320, 260), (320, 224), (160, 128), (260, 259)])
    @pytest.mark.parametrize("photo", ["coffee", "rocket"])
    def test_a_smaller_view_is_the_picture_that_pillow_makes(self, photo: str, whole: int, side: int) -> None:
        square = np.ascontiguousarray(getattr(skimage.data, photo)()[:whole, 200 : 200 + whole])
        matrix = joined.resizing(whole, side).numpy()
        found = np.einsum("sh,hwc,tw->stc", matrix, square.astype(np.float32), matrix, optimize=True).clip(0, 255)
        wanted = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
        away = np.abs(found - wanted)
        # Of 255. Pillow rounds and cuts off what overshoots after each direction, not once at the end.
        assert away.mean() < 0.4
        assert np.quantile(away, 0.999) < 1.5

    def test_each_part_is_what_its_network_alone_says_of_that_view(self) -> None:
        backbone = backbones.get("lite:lite2@260+lite0@224")
        pixels = crops(backbone)
        found = seen(backbone, pixels)
        assert off(found[:, :1280], seen(LITE2, pixels)) < 1e-5
        with torch.inference_mode():
            alone = loaded(LITE0).embedded(levels(pixels, 224))
        assert off(found[:, 1280:], alone) < 1e-4

    def test_mirrored_pictures_look_the_same_and_count_half(self) -> None:
        backbone = backbones.get(SMALL)
        pixels = crops(backbone)
        found = seen(backbone, pixels)
        plain = backbones.get(SMALL.removesuffix("+flip"))
        assert off(seen(backbone, pixels.flip(2)), found) < 1e-5
        assert off((seen(plain, pixels) + seen(plain, pixels.flip(2))) / 2, found) < 1e-5
        assert off(seen(plain, pixels.flip(2)), seen(plain, pixels)) > 0.05

    def test_weights_are_there_once_however_often_a_network_looks(self) -> None:
        once = LITE0.pretrained().backbone
        assert set(backbones.get(SMALL).pretrained().backbone) == {f"lite0.{key}" for key in once}
        assert set(backbones.get(SMALL).network().state_dict()) == {f"lite0.{key}" for key in once}

    def test_the_head_says_what_the_networks_say_on_average(self) -> None:
        backbone = backbones.get("lite:lite2@160+lite0@128+lite2@128")
        weights = backbone.pretrained()
        found = seen(backbone, crops(backbone))
        logits = found @ weights.head_weight.T + weights.head_bias
        own = [LITE2.pretrained(), LITE0.pretrained(), LITE2.pretrained()]
        parts = zip(own, found.split(1280, dim=1), strict=True)
        wanted = sum(part @ each.head_weight.T + each.head_bias for each, part in parts)
        assert off(logits, wanted / 3) < 1e-5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WWTS_BACKBONE", SMALL)
        return registration.embedded(settings.load(store=str(tmp_path_factory.mktemp("joined") / "store")))


class TestTagger:
    def test_the_setting_names_what_is_built(self, small: Tagger) -> None:
        assert small.recipe == backbones.get(SMALL).recipe
        assert small.head_weight.shape == (1000, 2560)

    def test_its_graph_says_what_torch_says(self, small: Tagger) -> None:
        pixels = crops(backbones.get(SMALL))
        graph = runtime.OnnxEmbedder(small)(pixels.numpy())
        alone = np.concatenate([runtime.OnnxEmbedder(small)(each[None]) for each in pixels.numpy()])
        eager = runtime.TorchEmbedder(small, "cpu")(pixels.numpy())
        for found in (graph, alone):
            wanted = eager.astype(np.float32)
            assert np.linalg.norm(found.astype(np.float32) - wanted) < 1e-3 * np.linalg.norm(wanted)

    @pytest.mark.parametrize(("name", "word"), [("chelsea.png", "猫"), ("coffee.png", "咖啡")])
    def test_it_recognises_with_the_old_labels_at_once(self, small: Tagger, name: str, word: str) -> None:
        found = Recognizer(small, taxonomy.embedded(()), "cpu")((SKIMAGE / name).read_bytes())
        assert word in found.decision.tags[0].label_zh

    def test_it_is_in_the_cache_under_another_name_than_the_default(self, small: Tagger) -> None:
        cache = small.folder.parent
        found = settings.load(store=str(cache.parent).removesuffix(".state"), backbone=SMALL)
        assert registration.embedded(found).folder == small.folder
        assert [path.name for path in cache.iterdir()] == [small.folder.name]


def test_roots_stand_behind_all_numbers_and_the_old_head_knows_nothing_of_them() -> None:
    plain, rooted = backbones.get("lite:lite0@128"), backbones.get("lite:lite0@128+root")
    assert rooted.recipe.dimension == 2 * plain.recipe.dimension
    pixels = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weights = rooted.pretrained()
    networks = [backbone.network() for backbone in (plain, rooted)]
    for network in networks:
        network.load_state_dict(weights.backbone, strict=True)
    with torch.inference_mode():
        without, found = (network(pixels) for network in networks)
    assert torch.equal(found[:, :1280], without)
    assert torch.allclose(found[:, 1280:], 2 * without.sqrt())
    assert torch.equal(weights.head_weight[:, :1280], plain.pretrained().head_weight)
    assert not weights.head_weight[:, 1280:].any()
