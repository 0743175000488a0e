"""A tagger on disk: what is saved comes back, and whatever is altered is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from tiny_backbone import TINY, Tiny

from wwts_ops import backbones, runtime, tagger
from wwts_ops.errors import WwtsError
from wwts_ops.tagger import Head, Tagger

LABELS = ("shop:茶杯", "shop:椅子", "shop:灯", "shop:鞋")
FILES = ("tagger.json", "tagger.json.sha256", "backbone.safetensors", "backbone.onnx", "head.safetensors")
PRETRAINED = TINY.pretrained()


def head(**changes: Any) -> Head:
    weights = {"weight": PRETRAINED.head_weight.numpy(), "bias": PRETRAINED.head_bias.numpy()}
    return Head(**{"label_ids": LABELS, "thresholds": np.array([0.5, 0.6, 0.7, 0.8]), **weights, **changes})


def seal(folder: Path, **changes: Any) -> None:
    """Rewrites the manifest as somebody would who wants it to fit the altered files."""
    manifest = {**json.loads((folder / "tagger.json").read_bytes()), **changes}
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    raw = json.dumps(manifest).encode()
    (folder / "tagger.json").write_bytes(raw)
    (folder / "tagger.json.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  tagger.json\n")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return tagger.save(tmp_path_factory.mktemp("tagger") / "deep" / "er", TINY, PRETRAINED.backbone, head())


@pytest.fixture
def folder(saved: Tagger, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved.folder, tmp_path / "copy"))


class TestSaved:
    def test_all_of_it_comes_back(self, saved: Tagger) -> None:
        found = tagger.load(saved.folder)
        assert found.label_ids == LABELS
        assert found.recipe == TINY.recipe
        np.testing.assert_array_equal(found.thresholds, np.array([0.5, 0.6, 0.7, 0.8], dtype=np.float32))
        np.testing.assert_array_equal(found.head_weight, PRETRAINED.head_weight.numpy())
        np.testing.assert_array_equal(found.head_bias, PRETRAINED.head_bias.numpy())
        assert found.sha256 == hashlib.sha256((saved.folder / "tagger.json").read_bytes()).hexdigest()

    def test_the_folder_holds_these_files_and_no_other(self, saved: Tagger) -> None:
        assert sorted(path.name for path in saved.folder.iterdir()) == sorted(FILES)

    @pytest.mark.parametrize("lies", ["transposed", "every other", "backwards", "float64"])
    def test_a_head_is_saved_as_it_reads_however_it_lies_in_memory(self, lies: str, tmp_path: Path) -> None:
        wanted = np.arange(24, dtype=np.float32).reshape(4, 6)
        weight, bias = {
            "transposed": (np.ascontiguousarray(wanted.T).T, np.arange(4, dtype=np.float32)),
            "every other": (np.repeat(wanted, 2, axis=1)[:, ::2], np.repeat(np.arange(4, dtype=np.float32), 2)[::2]),
            "backwards": (wanted[::-1].copy()[::-1], np.arange(3, -1, -1, dtype=np.float32)[::-1]),
            "float64": (wanted.astype(np.float64), np.arange(4, dtype=np.float64)),
        }[lies]
        found = tagger.save(tmp_path, TINY, PRETRAINED.backbone, head(weight=weight, bias=bias))
        np.testing.assert_array_equal(found.head_weight, wanted)
        np.testing.assert_array_equal(found.head_bias, np.arange(4))
        assert found.head_weight.dtype == np.float32

    def test_the_same_is_the_same_and_names_what_differs(self, saved: Tagger, tmp_path: Path) -> None:
        again = tagger.save(tmp_path / "again", TINY, PRETRAINED.backbone, head())
        other_threshold = tagger.save(tmp_path / "t", TINY, PRETRAINED.backbone, head(thresholds=np.full(4, 0.9)))
        weights = {name: value * 1.5 for name, value in PRETRAINED.backbone.items()}
        other_weights = tagger.save(tmp_path / "w", TINY, weights, head())
        other_recipe = tagger.save(
            tmp_path / "r", Tiny(dataclasses.replace(TINY.recipe, short_side=41)), PRETRAINED.backbone, head()
        )
        assert (again.sha256, again.backbone_sha256) == (saved.sha256, saved.backbone_sha256)
        assert len({found.sha256 for found in (saved, other_threshold, other_weights, other_recipe)}) == 4
        assert other_threshold.backbone_sha256 == saved.backbone_sha256
        assert len({found.backbone_sha256 for found in (saved, other_weights, other_recipe)}) == 3

    def test_the_graph_holds_no_path_of_the_machine_that_made_it(self, embedded_tagger: Tagger) -> None:
        graph = embedded_tagger.graph.read_bytes()
        assert b".py" not in graph
        assert os.fsencode(Path(tagger.__file__).parent) not in graph


class TestReheaded:
    """The same backbone with another head: what training on corrections makes."""

    def test_the_backbone_stays_to_the_byte_and_the_head_is_the_new_one(self, saved: Tagger, tmp_path: Path) -> None:
        new = Head(("shop:a", "shop:b"), np.array([0.4, 0.9]), np.arange(12.0).reshape(2, 6), np.array([1.0, -1.0]))
        found = tagger.rehead(tmp_path / "new", saved, new)
        for name in ("backbone.safetensors", "backbone.onnx"):
            assert (found.folder / name).read_bytes() == (saved.folder / name).read_bytes()
        assert sorted(path.name for path in found.folder.iterdir()) == sorted(FILES)
        assert (found.recipe, found.backbone_sha256) == (saved.recipe, saved.backbone_sha256)
        assert found.sha256 != saved.sha256
        assert found.label_ids == ("shop:a", "shop:b")
        np.testing.assert_array_equal(found.head_weight, np.arange(12, dtype=np.float32).reshape(2, 6))
        np.testing.assert_array_equal(found.head_bias, [1, -1])
        np.testing.assert_array_equal(found.thresholds, np.array([0.4, 0.9], dtype=np.float32))

    def test_the_old_head_again_is_the_old_tagger(self, saved: Tagger, tmp_path: Path) -> None:
        assert tagger.rehead(tmp_path / "again", saved, head()).sha256 == saved.sha256

    def test_a_head_that_does_not_fit_is_refused_before_anything_is_written(
        self, saved: Tagger, tmp_path: Path
    ) -> None:
        with pytest.raises(WwtsError, match=r"\(4, 7\).*dimension 6"):
            tagger.rehead(tmp_path / "new", saved, head(weight=np.ones((4, 7))))
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["backbone.safetensors", "backbone.onnx", "tagger.json"])
    @pytest.mark.parametrize("fault", ["altered", "gone"])
    def test_a_base_that_changed_since_it_was_loaded_is_refused(
        self, name: str, fault: str, folder: Path, tmp_path: Path
    ) -> None:
        base = tagger.load(folder)
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        if fault == "altered":
            (folder / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        with pytest.raises(WwtsError, match=name):
            tagger.rehead(tmp_path / "new", base, head())
        assert not (tmp_path / "new" / "tagger.json").exists()


class TestRefusedToSave:
    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"weight": np.ones((4, 7))}, r"\(4, 7\)"),
            ({"weight": np.ones((6, 4))}, r"\(6, 4\)"),
            ({"bias": np.ones(3)}, r"\(3,\)"),
            ({"thresholds": np.ones((4, 1))}, r"\(4, 1\)"),
            ({"label_ids": (*LABELS, "one more")}, "5 labels"),
            ({"label_ids": ("a", "b", "c", "a")}, "twice"),
            ({"weight": np.full((4, 6), np.nan)}, "NaN"),
            ({"bias": np.array([0, np.inf, 0, 0])}, "NaN or infinite"),
            ({"thresholds": np.array([0.5, np.nan, 0.5, 0.5])}, "NaN"),
        ],
    )
    def test_a_head_that_does_not_fit(self, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
        with pytest.raises(WwtsError, match=word):
            tagger.save(tmp_path / "new", TINY, PRETRAINED.backbone, head(**changes))
        assert not (tmp_path / "new").exists()


class TestTampered:
    @pytest.mark.parametrize("name", FILES)
    def test_any_byte_flipped(self, folder: Path, name: str) -> None:
        path = folder / name
        whole = path.read_bytes()
        # Every byte of the small files, a few hundred of the others.
        positions = random.Random(1).sample(range(len(whole)), min(len(whole), 400))
        for position in positions:
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(WwtsError, match="tagger.json" if name == FILES[1] else name):
                tagger.load(folder)
        path.write_bytes(whole)
        tagger.load(folder)

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_missing_cut_or_longer(self, folder: Path, name: str) -> None:
        path = folder / name
        whole = path.read_bytes()
        for changed in (b"", whole[: len(whole) // 2], whole[:-1], whole + b"\n"):
            path.write_bytes(changed)
            with pytest.raises(WwtsError, match="tagger.json" if name == FILES[1] else name):
                tagger.load(folder)
        path.unlink()
        with pytest.raises(WwtsError, match=name):
            tagger.load(folder)

    def test_no_folder_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(WwtsError, match="absent"):
            tagger.load(tmp_path / "absent")

    def test_another_format(self, folder: Path) -> None:
        seal(folder, format=2)
        with pytest.raises(WwtsError, match=r"copy is a tagger of format 2; this version reads 1"):
            tagger.load(folder)

    @pytest.mark.parametrize(
        "raw", [b"", b'{"format": 1', b"[]", b"null", b'"x"', b'{"format": 1}', b'{"format": 1, "files": []}', b"\xff"]
    )
    def test_a_manifest_that_is_none_though_sealed(self, folder: Path, raw: bytes) -> None:
        (folder / "tagger.json").write_bytes(raw)
        (folder / "tagger.json.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  tagger.json\n")
        with pytest.raises(WwtsError, match="copy holds no whole tagger"):
            tagger.load(folder)

    def test_a_recipe_of_a_later_version(self, folder: Path) -> None:
        recipe = dataclasses.asdict(TINY.recipe)
        for changed in ({**recipe, "kernel": "lanczos"}, {**recipe, "crops": 5}):
            seal(folder, recipe=changed)
            with pytest.raises(WwtsError, match=r"lanczos|crops"):
                tagger.load(folder)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class TestNoPickle:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(backbones._REGISTRY, "tiny", "tiny_backbone:TINY")

    @pytest.mark.parametrize("name", ["backbone.safetensors", "head.safetensors", "backbone.onnx"])
    @pytest.mark.parametrize("sealed", [False, True])
    def test_a_pickle_in_place_of_a_file_is_never_run(
        self, folder: Path, name: str, sealed: bool, tmp_path: Path
    ) -> None:
        bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
        (folder / name).write_bytes(bomb)
        if sealed:
            seal(folder)
        with pytest.raises(Exception, match=r"safetensors|eader|ONNX|onnx|protobuf|Protobuf"):
            self.run(tagger.load(folder))
        assert not (tmp_path / "exploded").exists()
        pickle.loads(bomb)
        assert (tmp_path / "exploded").exists()

    def test_an_unsealed_one_and_a_head_are_told_in_a_sentence(self, folder: Path, tmp_path: Path) -> None:
        (folder / "head.safetensors").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
        with pytest.raises(WwtsError, match=r"head\.safetensors is not the file that was saved"):
            tagger.load(folder)
        seal(folder)
        with pytest.raises(WwtsError, match="holds no whole tagger"):
            tagger.load(folder)

    def test_nothing_that_unpickles_is_called(self, saved: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
        def tripped(*_: Any, **__: Any) -> Any:
            raise AssertionError("unpickled")

        for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (np, "load")):
            monkeypatch.setattr(module, name, tripped)
        self.run(tagger.load(saved.folder))

    def run(self, found: Tagger) -> None:
        crops = np.zeros((1, 32, 32, 3), dtype=np.uint8)
        runtime.TorchEmbedder(found, "cpu")(crops)
        runtime.Scorer(found)(runtime.OnnxEmbedder(found)(crops))

    def test_the_files_are_what_their_names_say(self, saved: Tagger) -> None:
        assert set(safetensors.numpy.load_file(saved.weights)) == set(PRETRAINED.backbone)
