"""Embedding and scoring: the same numbers on every way, whatever the batch."""

from __future__ import annotations

import importlib.resources
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tiny_backbone import TINY

from wwts_ops import backbones, runtime, tagger, taxonomy
from wwts_ops.decisions import Decider
from wwts_ops.errors import WwtsError
from wwts_ops.images import Rejected
from wwts_ops.recognition import Recognizer
from wwts_ops.runtime import OnnxEmbedder, Scorer, TorchEmbedder
from wwts_ops.tagger import Head, Tagger

SIZES = (1, 2, 3, 7, 64, 1000)


@cache
def photos() -> tuple[np.ndarray, ...]:
    """Real photographs, each whole, its four quarters turned four ways: 65 pictures."""
    folder, sklearn = Path(skimage.data.__file__).parent, Path(str(importlib.resources.files("sklearn")))
    names = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png")
    paths = [folder / name for name in (*names, "gravel.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg")]
    paths += [sklearn / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]
    made = []
    for path in paths:
        with Image.open(path) as picture:
            rgb = np.asarray(picture.convert("RGB")).copy()
        middle, centre = rgb.shape[0] // 2, rgb.shape[1] // 2
        quarters = (rgb[:middle, :centre], rgb[:middle, centre:], rgb[middle:, :centre], rgb[middle:, centre:])
        made += [rgb, *(np.rot90(quarter, turns) for turns, quarter in enumerate(quarters))]
    return tuple(np.ascontiguousarray(rgb) for rgb in made)


@pytest.fixture(scope="module")
def crops(embedded_tagger: Tagger) -> np.ndarray:
    return np.stack([embedded_tagger.recipe.crop(rgb) for rgb in photos()])


@pytest.fixture(scope="module")
def embed(embedded_tagger: Tagger) -> OnnxEmbedder:
    return OnnxEmbedder(embedded_tagger)


@pytest.fixture(scope="module")
def score(embedded_tagger: Tagger) -> Scorer:
    return Scorer(embedded_tagger)


@pytest.fixture(scope="module")
def embeddings(embed: OnnxEmbedder, crops: np.ndarray) -> np.ndarray:
    """One at a time, as a night does it."""
    return np.concatenate([embed(crop[None]) for crop in crops])


def one_step(values: np.ndarray) -> np.ndarray:
    """The distance to the next float16, and the noise of float32 sums beneath it."""
    return np.spacing(np.abs(values)).astype(np.float32) + 1e-5


class TestEmbedders:
    def test_onnx_runtime_and_torch_agree(
        self, embedded_tagger: Tagger, crops: np.ndarray, embeddings: np.ndarray, score: Scorer
    ) -> None:
        """Within one step of float16; the same labels in the same order unless scores tie within 1e-4."""
        by_torch = TorchEmbedder(embedded_tagger, "cpu")(crops)
        assert by_torch.dtype == embeddings.dtype == np.float16
        assert by_torch.shape == embeddings.shape == (65, embedded_tagger.recipe.dimension)
        off = np.abs(by_torch.astype(np.float32) - embeddings.astype(np.float32))
        assert (off <= one_step(np.maximum(by_torch, embeddings))).all()
        ours, theirs = score(embeddings), score(by_torch)
        assert np.abs(ours - theirs).max() < 1e-3
        decide = Decider(embedded_tagger.label_ids, embedded_tagger.thresholds, taxonomy.embedded(()), 5)
        index = {label_id: column for column, label_id in enumerate(embedded_tagger.label_ids)}
        for row, (one, other) in enumerate(zip(decide(ours), decide(theirs), strict=True)):
            for mine, yours in zip(one.tags, other.tags, strict=True):
                assert mine.label_id == yours.label_id or abs(ours[row, index[yours.label_id]] - mine.score) < 1e-4

    def test_embeddings_tell_photographs_apart(self, embeddings: np.ndarray) -> None:
        assert len({row.tobytes() for row in embeddings}) == len(embeddings)
        assert np.isfinite(embeddings).all()
        assert (embeddings >= 0).all()  # the mean of what ReLU6 lets through
        assert (embeddings <= 6).all()

    @pytest.mark.parametrize("size", [0, 1, 2, 5])
    def test_any_number_of_crops(
        self, embed: OnnxEmbedder, crops: np.ndarray, embeddings: np.ndarray, size: int
    ) -> None:
        found = embed(crops[:size])
        assert found.shape == (size, embeddings.shape[1])
        off = np.abs(found.astype(np.float32) - embeddings[:size].astype(np.float32))
        assert (off <= one_step(embeddings[:size])).all()

    def test_many_threads_get_what_one_gets(
        self, embed: OnnxEmbedder, crops: np.ndarray, embeddings: np.ndarray
    ) -> None:
        with ThreadPoolExecutor(4) as pool:
            found = np.concatenate(list(pool.map(lambda crop: embed(crop[None]), crops[:24])))
        assert found.tobytes() == embeddings[:24].tobytes()

    def test_another_process_s_session_gives_the_same_bits(
        self, embedded_tagger: Tagger, crops: np.ndarray, embeddings: np.ndarray
    ) -> None:
        assert OnnxEmbedder(embedded_tagger)(crops[:1]).tobytes() == embeddings[:1].tobytes()


class TestScorer:
    @pytest.fixture(scope="class")
    @classmethod
    def many(cls, embeddings: np.ndarray) -> np.ndarray:
        """1,003 embeddings: the real ones, and mixtures of them."""
        mixed = np.random.default_rng(5).dirichlet(np.ones(len(embeddings)), 1003 - len(embeddings)) @ embeddings
        return np.concatenate([embeddings, mixed.astype(np.float16)])

    def test_every_batch_size_gives_the_same_bits(self, score: Scorer, many: np.ndarray) -> None:
        whole = score(many)
        for size in SIZES:
            parts = [score(many[start : start + size]) for start in range(0, len(many), size)]
            assert np.concatenate(parts).tobytes() == whole.tobytes(), size

    def test_it_is_the_softmax_of_one_linear_layer(
        self, score: Scorer, embedded_tagger: Tagger, many: np.ndarray
    ) -> None:
        found = score(many)
        logits = many.astype(np.float64) @ embedded_tagger.head_weight.T.astype(np.float64) + embedded_tagger.head_bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=2e-6)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(axis=1, dtype=np.float64), 1, atol=1e-5)

    def test_no_embeddings_no_scores(self, score: Scorer, many: np.ndarray) -> None:
        assert score(many[:0]).shape == (0, 1000)

    def test_stored_embeddings_score_as_fresh_ones(self, score: Scorer, embeddings: np.ndarray) -> None:
        """Rounding comes before the head, so what the store holds is what the head saw."""
        stored = [row.astype("<f2").tobytes() for row in embeddings]
        read = np.stack([np.frombuffer(row, dtype="<f2") for row in stored])
        assert score(read).tobytes() == score(embeddings).tobytes()

    def test_what_float16_rounds_away_never_reaches_the_head(
        self, score: Scorer, embedded_tagger: Tagger, embed: OnnxEmbedder, crops: np.ndarray
    ) -> None:
        from safetensors.torch import load_file

        network = backbones.get(embedded_tagger.recipe.backbone).network()
        network.load_state_dict(load_file(embedded_tagger.weights))
        with torch.inference_mode():
            exact = network(torch.from_numpy(crops[:2])).numpy()
        assert exact.dtype == np.float32
        assert (exact != exact.astype(np.float16)).any()
        assert score(exact).tobytes() == score(exact.astype(np.float16)).tobytes()


class TestDevices:
    def test_auto_takes_what_there_is(self, embedded_tagger: Tagger) -> None:
        expected = TorchEmbedder if torch.cuda.is_available() else OnnxEmbedder
        assert isinstance(runtime.embedder(embedded_tagger, "auto"), expected)

    def test_cpu_is_onnx_runtime_for_one_crop_a_call(self, embedded_tagger: Tagger) -> None:
        found = runtime.embedder(embedded_tagger, "cpu")
        assert isinstance(found, OnnxEmbedder)
        assert found.batch_size == 1

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_cuda_that_is_absent_is_told(self, embedded_tagger: Tagger, device: str) -> None:
        with pytest.raises(WwtsError, match=f"WWTS_DEVICE is {device}, but .* no CUDA"):
            runtime.embedder(embedded_tagger, device)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_cuda_agrees(self, embedded_tagger: Tagger, crops: np.ndarray, embeddings: np.ndarray) -> None:
        found = TorchEmbedder(embedded_tagger, "cuda")(crops)
        off = np.abs(found.astype(np.float32) - embeddings.astype(np.float32))
        assert (off <= one_step(embeddings)).all()


class TestAnotherBackbone:
    """One module and one line in the registry; its dimension and sizes are nowhere in our code."""

    @pytest.fixture
    def tiny(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tagger:
        monkeypatch.setitem(backbones._REGISTRY, "tiny", "tiny_backbone:TINY")
        weights = TINY.pretrained()
        head = Head(("a", "b", "c", "d"), np.full(4, 0.5), weights.head_weight.numpy(), weights.head_bias.numpy())
        return tagger.load(tagger.save(tmp_path, backbones.get("tiny"), weights.backbone, head).folder)

    def test_it_is_saved_loaded_embedded_and_scored(self, tiny: Tagger) -> None:
        crops = np.stack([tiny.recipe.crop(rgb) for rgb in photos()])
        assert crops.shape == (65, 32, 32, 3)
        ours, theirs = OnnxEmbedder(tiny)(crops), TorchEmbedder(tiny, "cpu")(crops)
        assert ours.shape == (65, 6)
        assert (np.abs(ours.astype(np.float32) - theirs.astype(np.float32)) <= one_step(ours)).all()
        score = Scorer(tiny)
        whole = score(ours)
        assert whole.shape == (65, 4)
        for size in SIZES:
            parts = [score(ours[start : start + size]) for start in range(0, 65, size)]
            assert np.concatenate(parts).tobytes() == whole.tobytes()

    def test_it_recognises(self, tiny: Tagger) -> None:
        data = (Path(skimage.data.__file__).parent / "coffee.png").read_bytes()
        found = Recognizer(tiny, taxonomy.Taxonomy("t", (taxonomy.Label("a", "甲"),)), "cpu", top_k=3)(data)
        assert len(found.decision.tags) == 3
        assert {tag.label_zh for tag in found.decision.tags} <= {"甲", "b", "c", "d"}


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"hello", "not_an_image")])
def test_a_recognizer_never_tags_what_it_cannot_read(embedded_tagger: Tagger, data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        Recognizer(embedded_tagger, taxonomy.embedded(()), "cpu")(data)
    assert caught.value.reason == reason
