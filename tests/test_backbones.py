"""The embedded backbone against its paper, its published weights, Pillow, and what photographs show."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from wwts_ops import backbones, taxonomy
from wwts_ops.backbones import efficientnet_lite
from wwts_ops.backbones.base import Backbone, Recipe
from wwts_ops.errors import WwtsError
from wwts_ops.recognition import Recognizer
from wwts_ops.tagger import Head, Tagger, save

LITE0 = backbones.get("efficientnet-lite0")
LITE2 = backbones.get("efficientnet-lite2")
RECIPE = LITE0.recipe
SKIMAGE = Path(skimage.data.__file__).parent
SKLEARN = Path(str(importlib.resources.files("sklearn"))) / "datasets" / "images"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).copy()


def with_pillow(rgb: np.ndarray) -> np.ndarray:
    """The recipe as its words say it: short side 256 with Pillow's bicubic, the middle 224 × 224."""
    height, width = rgb.shape[:2]
    scale = 256 / min(height, width)
    size = (256, max(256, round(height * scale))) if width < height else (max(256, round(width * scale)), 256)
    picture = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    return np.asarray(picture.crop((left, top, left + 224, top + 224)))


class TestNetwork:
    @pytest.mark.parametrize(
        ("backbone", "millions", "multiplied"), [(LITE0, 4.7, 407), (LITE2, 6.1, 899)], ids=["lite0", "lite2"]
    )
    def test_it_is_as_large_and_as_costly_as_published(
        self, backbone: Backbone, millions: float, multiplied: int
    ) -> None:
        """Millions of parameters and of multiplications (the table in the Lite variants' README)."""
        network, weights, side = backbone.network(), backbone.pretrained(), backbone.recipe.input
        head = weights.head_weight.numel() + weights.head_bias.numel()
        assert round((sum(each.numel() for each in network.parameters()) + head) / 1e6, 1) == millions
        made = []
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(
                    lambda conv, _, out: made.append(conv.weight.numel() * out.shape[2] * out.shape[3])
                )
        with torch.inference_mode():
            network(torch.zeros((1, side, side, 3), dtype=torch.uint8))
        # Theirs counts a few elementwise operations more.
        assert (sum(made) + weights.head_weight.numel()) / 1e6 == pytest.approx(multiplied, rel=0.06)

    @pytest.mark.parametrize("backbone", [LITE0, LITE2], ids=["lite0", "lite2"])
    def test_every_published_weight_has_its_place(self, backbone: Backbone) -> None:
        weights, network, recipe = backbone.pretrained(), backbone.network(), backbone.recipe
        network.load_state_dict(weights.backbone, strict=True)
        assert weights.head_weight.shape == (1000, recipe.dimension)
        with torch.inference_mode():
            found = network(torch.zeros((2, recipe.input, recipe.input, 3), dtype=torch.uint8))
        assert found.shape == (2, recipe.dimension)

    @pytest.mark.parametrize(
        ("side", "kernel", "sums"),
        [
            (4, 3, [[9, 6], [6, 4]]),  # one row and column of zeros, right and below
            (5, 3, [[4, 6, 4], [6, 9, 6], [4, 6, 4]]),  # one on every side
            (4, 5, [[16, 12], [12, 9]]),  # one left and above, two right and below
        ],
    )
    def test_padding_is_tensorflows(self, side: int, kernel: int, sums: list[list[int]]) -> None:
        """SAME with stride 2: of an odd number of zeros, the larger half goes right and below."""
        convolution = efficientnet_lite._SameConv2d(1, 1, kernel, stride=2)
        torch.nn.init.ones_(convolution.weight)
        assert convolution(torch.ones((1, 1, side, side)))[0, 0].tolist() == sums

    @pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
    def test_weights_that_do_not_fit_are_refused_by_name(self, fault: str, tmp_path: Path) -> None:
        state = LITE0.pretrained().backbone
        if fault == "missing":
            name = "_conv_head.weight"
            del state[name]
        elif fault == "extra":
            name = "_blocks.3._se_reduce.weight"
            state[name] = torch.zeros(1)
        else:
            name = "_conv_stem.weight"
            state[name] = state[name][:, :, :1, :1]
        head = Head(("a",), np.ones(1), np.ones((1, RECIPE.dimension)), np.ones(1))
        with pytest.raises(RuntimeError, match=name):
            save(tmp_path / "tagger", LITE0, state, head)
        assert not (tmp_path / "tagger" / "tagger.json").exists()

    def test_an_unknown_name_is_told_with_those_there_are(self) -> None:
        with pytest.raises(WwtsError, match=r"no backbone 'resnest'.*efficientnet-lite0"):
            backbones.get("resnest")


class TestCrop:
    @pytest.mark.parametrize(
        "path",
        [
            *(SKIMAGE / name for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "retina.jpg")),
            *(SKLEARN / name for name in ("china.jpg", "flower.jpg")),
        ],
        ids=lambda path: path.name,
    )
    def test_photographs_are_as_pillow_makes_them(self, path: Path) -> None:
        self.same(pixels(path))

    @pytest.mark.parametrize(
        ("height", "width"),
        [
            (256, 256),
            (224, 224),
            (257, 301),
            (301, 257),
            (255, 1000),
            (999, 256),
            (513, 2049),
            (100, 1600),
            (299, 3001),
        ],
    )
    def test_odd_sizes(self, height: int, width: int) -> None:
        across = np.tile(pixels(SKIMAGE / "retina.jpg"), (1, 3, 1))
        self.same(np.ascontiguousarray(across[300 : 300 + height, 200 : 200 + width]))

    @pytest.mark.parametrize(("height", "width"), [(1, 2000), (2000, 1), (8, 4000), (3, 301)])
    def test_strips(self, height: int, width: int) -> None:
        photo = np.tile(skimage.data.chelsea(), (14, 10, 1))
        self.same(np.ascontiguousarray(photo[100 : 100 + height, :width]))

    @pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 9), (37, 20), (1, 1)])
    def test_small_pictures_grow(self, height: int, width: int) -> None:
        self.same(np.ascontiguousarray(skimage.data.chelsea()[100 : 100 + height, 100 : 100 + width]))

    def same(self, rgb: np.ndarray) -> None:
        found = RECIPE.crop(rgb)
        assert found.shape == (224, 224, 3)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        off = np.abs(found.astype(int) - with_pillow(rgb))
        assert off.mean() < 0.1  # of 255: two fixed-point sums of one kernel round differently here and there
        assert off.max() <= 3

    @pytest.mark.parametrize(
        ("kernel", "mode"), [("bilinear-antialias", "bilinear"), ("bicubic-antialias-torchvision", "bicubic")]
    )
    @pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 1), (1, 0), (2, 0), (3, 5), (0, 140), (37, 2)], ids=str)
    @pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket"])
    def test_torchvisions_recipes_are_torchvisions(
        self, name: str, top: int, left: int, kernel: str, mode: str
    ) -> None:
        """Its resize and centre crop, on photographs cut so that sides and margins come out even and odd."""
        rgb = np.ascontiguousarray(getattr(skimage.data, name)()[top:, left:])
        recipe = Recipe("x", short_side=232, input=225, mean=0.0, std=255.0, dimension=4, kernel=kernel)
        found = recipe.crop(rgb).astype(int)
        how = InterpolationMode(mode)
        wholes = [np.asarray(functional.resize(Image.fromarray(rgb), [232], how))]
        if mode == "bilinear":  # of a tensor, bicubic clips once where of a picture it clips after each direction
            as_tensor = functional.resize(torch.from_numpy(rgb).permute(2, 0, 1), [232], how, antialias=True)
            wholes.append(as_tensor.permute(1, 2, 0).numpy())
        for whole in wholes:
            wanted = functional.center_crop(torch.from_numpy(whole.copy()).permute(2, 0, 1), [225])
            off = np.abs(found - wanted.permute(1, 2, 0).numpy())
            assert off.max() <= (1 if mode == "bilinear" else 3)

    def test_a_very_long_strip_takes_no_more_memory_than_its_middle(self) -> None:
        """Resized in full this would be 256 × 128,000,000 pixels: 98 GB."""
        strip = np.zeros((8, 4_000_000, 3), dtype=np.uint8)
        strip[:, 1_999_900:2_000_100] = (200, 100, 50)
        assert (RECIPE.crop(strip) == (200, 100, 50)).all()

    def test_a_picture_is_not_changed_by_looking_at_it(self) -> None:
        photo = skimage.data.coffee()
        before = photo.copy()
        RECIPE.crop(photo)
        assert (photo == before).all()

    @pytest.mark.parametrize("change", [{"kernel": "nearest"}, {"input": 300}, {"input": 0}])
    def test_a_recipe_this_code_would_not_follow_is_refused(self, change: dict[str, object]) -> None:
        given = {"backbone": "x", "short_side": 256, "input": 224, "mean": 0.0, "std": 1.0, "dimension": 4}
        with pytest.raises(ValueError, match="cannot follow"):
            Recipe(**{**given, **change})  # type: ignore[arg-type]

    def test_the_recipe_of_the_embedded_default_is_written_as_ever(self) -> None:
        """It is hashed as this text: a field more, and no stored embedding of any shop would fit its head."""
        written = (
            '{"backbone": "efficientnet-lite0", "dimension": 1280, "input": 224, "kernel": "bicubic-antialias", '
            '"mean": 127.0, "short_side": 256, "std": 128.0}'
        )
        inner = hashlib.sha256(b"weights").digest()
        assert RECIPE.sha256(b"weights") == hashlib.sha256(written.encode() + b"\0" + inner).hexdigest()

    def test_any_change_of_the_recipe_or_the_weights_is_another_backbone(self) -> None:
        given = {"backbone": "x", "short_side": 256, "input": 224, "mean": 0.0, "std": 1.0, "dimension": 4}
        changes = [{}, {"backbone": "y"}, {"short_side": 255}, {"input": 223}, {"mean": 1.0}, {"std": 2.0}]
        changes += [{"kernel": "bilinear-antialias"}, {"kernel": "bicubic-antialias-torchvision"}]
        recipes = [Recipe(**{**given, **change}) for change in changes]  # type: ignore[arg-type]
        found = {recipe.sha256(b"weights") for recipe in recipes} | {recipes[0].sha256(b"others")}
        assert len(found) == len(changes) + 1


# What a person sees in each photograph, as ImageNet's synsets.
CATS = {"n02123045", "n02123159", "n02123394", "n02123597", "n02124075"}
SHOWN = {
    SKIMAGE / "chelsea.png": CATS,
    SKIMAGE / "coffee.png": {"n07920052", "n07930864", "n03063599"},  # espresso, cup, coffee mug
    SKIMAGE / "rocket.jpg": {"n03773504", "n04008634"},  # missile, projectile
    SKIMAGE / "camera.png": {"n04485082", "n04069434"},  # tripod, reflex camera
    SKIMAGE / "motorcycle_left.png": {"n03785016", "n03791053", "n03208938"},  # moped, motor scooter, disc brake
    SKLEARN / "china.jpg": {"n03877845", "n03781244", "n02825657"},  # palace, monastery, bell tower
    SKLEARN / "flower.jpg": {"n11939491"},  # daisy, the only such flower among the thousand
}
#: Lite2 takes the launch tower for a drilling platform and the petals for a honeycomb; so do its authors' weights in
#: the package efficientnet-lite-pytorch, whose scores are ours within 4e-6.
LITE2_ERRS = {SKIMAGE / "rocket.jpg", SKLEARN / "flower.jpg"}


@pytest.fixture(scope="module")
def recognize(embedded_tagger: Tagger) -> Recognizer:
    return Recognizer(embedded_tagger, taxonomy.embedded(()), "cpu")


class TestRecognition:
    @pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
    def test_photographs_get_the_name_of_what_they_show(self, recognize: Recognizer, path: Path) -> None:
        found = recognize(path.read_bytes())
        assert found.decision.tags[0].label_id.removeprefix("imagenet:") in SHOWN[path]
        with Image.open(path) as picture:
            assert (found.width, found.height) == picture.size

    @pytest.mark.parametrize("path", sorted(SHOWN.keys() - LITE2_ERRS), ids=lambda path: path.name)
    def test_the_larger_network_sees_the_same_things(self, path: Path) -> None:
        weights, network = LITE2.pretrained(), LITE2.network()
        network.load_state_dict(weights.backbone, strict=True)
        crop = torch.from_numpy(LITE2.recipe.crop(pixels(path)))
        with torch.inference_mode():
            scores = network(crop[None]) @ weights.head_weight.T + weights.head_bias
        first = taxonomy.embedded_labels()[int(scores.argmax())].label_id
        assert first.removeprefix("imagenet:") in SHOWN[path]

    @pytest.mark.parametrize(("name", "words"), [("chelsea.png", {"猫"}), ("coffee.png", {"咖啡", "杯"})])
    def test_in_chinese(self, recognize: Recognizer, name: str, words: set[str]) -> None:
        first = recognize((SKIMAGE / name).read_bytes()).decision.tags[0]
        assert any(word in first.label_zh for word in words)

    def test_a_cup_of_coffee_is_sure(self, recognize: Recognizer) -> None:
        assert recognize((SKIMAGE / "coffee.png").read_bytes()).decision.decision == "auto"
