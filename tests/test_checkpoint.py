"""Checkpoints from elsewhere: the same scores as torchvision's own, and everything that does not fit told at once."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision_checkpoints import LABELS, PHOTOS, photo, probabilities, trained, written

from wwts_ops import backbones, checkpoint, runtime
from wwts_ops.backbones import torchvision_models
from wwts_ops.checkpoint import Request
from wwts_ops.errors import WwtsError
from wwts_ops.tagger import Tagger

IDS = tuple(f"shop:{index}" for index in range(len(LABELS)))
SMALL = "squeezenet1_1"


def request(folder: Path, arch: str, network: Any, **changes: Any) -> Request:
    weights, labels = written(folder, network)
    return Request("torchvision", arch, weights, labels, **changes)


def crops(tagger: Tagger) -> np.ndarray:
    return np.stack([tagger.recipe.crop(photo(name)) for name in PHOTOS])


class TestTheSameAsTorchvision:
    """Both ways of running a tagger against the whole network: exactly, and with float16 embeddings in between."""

    @pytest.mark.parametrize(
        ("arch", "dimension"),
        [
            ("resnet50", 2048),
            ("mobilenet_v3_small", 1024),
            ("efficientnet_b0", 1280),
            ("squeezenet1_1", 2 * len(LABELS)),  # no linear layer: its logits in two halves
        ],
    )
    def test_served(self, arch: str, dimension: int, tmp_path: Path) -> None:
        network = trained(arch)
        found, _ = checkpoint.build(tmp_path / "tagger", request(tmp_path, arch, network), IDS)
        assert found.recipe.dimension == dimension
        assert found.recipe.backbone.split("?")[0] == f"torchvision:{arch}"
        pictures = crops(found)
        wanted = probabilities(network, arch, pictures)
        assert np.ptp(wanted, axis=1).max() > 0.05  # labels are told apart, so that a wrong layer would be seen
        exact = runtime._session(found.graph.read_bytes()).run(None, {"pixels": pictures})[0]
        logits = exact @ found.head_weight.T + found.head_bias
        np.testing.assert_allclose(torch.softmax(torch.from_numpy(logits), dim=1), wanted, rtol=0, atol=1e-5)
        for embed in (runtime.OnnxEmbedder(found), runtime.TorchEmbedder(found, "cpu")):
            np.testing.assert_allclose(runtime.Scorer(found)(embed(pictures)), wanted, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("arch", "side"),
        [("swin_t", 224), ("densenet121", 224), ("convnext_tiny", 224), ("googlenet", 224), ("vit_b_16", 96)],
    )
    def test_cut_in_two(self, arch: str, side: int, tmp_path: Path) -> None:
        """More of them, without their ONNX, which takes long."""
        extra: dict[str, Any] = {"googlenet": {"init_weights": False}, "vit_b_16": {"image_size": side}}
        network = trained(arch, **extra.get(arch, {}))
        variant = torchvision_models.Variant(arch, input=side)
        backbone = torchvision_models.made(variant, len(IDS))
        assert backbones.get(backbone.recipe.backbone) == backbone
        body = torchvision_models.build(arch, len(IDS), side)
        checkpoint._load(body, request(tmp_path, arch, network), len(IDS))
        state, weight, bias = checkpoint._split(backbone, body, torchvision_models.NORMALIZATIONS["imagenet"])
        again = backbones.get(backbone.recipe.backbone).network()
        again.load_state_dict(dict(state), strict=True)
        pictures = np.stack([backbone.recipe.crop(photo(name)) for name in PHOTOS[:2]])
        with torch.inference_mode():
            logits = again(torch.from_numpy(pictures)) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        ours = torch.softmax(logits, dim=1).numpy()
        np.testing.assert_allclose(ours, probabilities(network, arch, pictures), rtol=0, atol=1e-5)

    def test_a_classifier_without_a_bias(self) -> None:
        """As `maxvit_t` has."""
        body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3, bias=False))
        weight, bias = checkpoint._head(body, torchvision_models.head_of(body), 3)
        assert torch.equal(weight, body[1].weight)
        assert bias.tolist() == [0, 0, 0]

    def test_every_architecture_has_a_recipe_and_a_place_to_cut(self) -> None:
        assert len(torchvision_models.architectures()) >= 80
        whole = {"squeezenet1_0", "squeezenet1_1"}
        for arch in torchvision_models.architectures():
            made = torchvision_models.made(torchvision_models.Variant(arch), 5)
            assert (made.labels == 5) == (arch in whole), arch
            assert made.recipe.input <= made.recipe.short_side
            assert torchvision_models.default_normalization(arch) in {"imagenet", "half"}

    def test_normalization_is_told_apart(self, tmp_path: Path) -> None:
        """`half` is what GoogLeNet makes of its input inside, once it begins with published weights."""
        network = trained("googlenet", init_weights=False)
        network.transform_input = True
        body = torchvision_models.build("googlenet", len(IDS), 224)
        checkpoint._load(body, request(tmp_path, "googlenet", network), len(IDS))
        backbone = torchvision_models.made(torchvision_models.Variant("googlenet"), len(IDS))
        pictures = crops(Namespace(recipe=backbone.recipe))  # type: ignore[arg-type]
        state, weight, bias = checkpoint._split(backbone, body, torchvision_models.NORMALIZATIONS["half"])
        again = backbone.network()
        again.load_state_dict(state)
        with torch.inference_mode():
            logits = again(torch.from_numpy(pictures)) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        wanted = probabilities(network, "googlenet", pictures)
        np.testing.assert_allclose(torch.softmax(logits, dim=1).numpy(), wanted, rtol=0, atol=1e-5)


class TestName:
    @pytest.mark.parametrize(
        ("arch", "near"), [("resnet5", "resnet50"), ("ResNet50", "resnet50"), ("efficientnet-b0", "efficientnet_b0")]
    )
    def test_an_unknown_architecture_is_told_with_what_looks_like_it(self, arch: str, near: str) -> None:
        with pytest.raises(WwtsError, match=f"no classification architecture '{arch}'; did you mean .*{near}"):
            torchvision_models.made(torchvision_models.Variant(arch), 5)

    @pytest.mark.parametrize(
        "arch", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "raft_large", "quantized_resnet50"]
    )
    def test_what_does_not_classify_is_unknown(self, arch: str) -> None:
        with pytest.raises(WwtsError, match="no classification architecture"):
            backbones.get(f"torchvision:{arch}")

    @pytest.mark.parametrize(
        "member", ["", "resnet50?", "../resnet50", "resnet50?input=", "resnet50?input=1&short_side=2", "resnet50?x=1"]
    )
    def test_what_is_no_name(self, member: str) -> None:
        with pytest.raises(WwtsError, match=r"no backbone|no classification"):
            backbones.get(f"torchvision:{member}")

    @pytest.mark.parametrize("member", ["resnet50?input=224", "resnet50?kernel=bilinear", "resnet50?input=0192"])
    def test_there_is_one_name_for_one_backbone(self, member: str) -> None:
        with pytest.raises(WwtsError, match="is written torchvision:resnet50"):
            backbones.get(f"torchvision:{member}")

    @pytest.mark.parametrize("member", ["squeezenet1_1", "squeezenet1_1?labels=0", "squeezenet1_1?labels=4097"])
    def test_without_a_linear_layer_labels_are_few_and_known(self, member: str) -> None:
        with pytest.raises(WwtsError, match="no linear layer"):
            backbones.get(f"torchvision:{member}")

    def test_it_is_the_same_in_a_fresh_process(self) -> None:
        name = "torchvision:resnet50?short_side=320&input=288&kernel=bicubic"
        code = f"from wwts_ops import backbones; print(backbones.get({name!r}).recipe)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(backbones.get(name).recipe)
        assert backbones.get(name).recipe.backbone == name

    @pytest.mark.parametrize("change", [{"input": 300}, {"input": 0}, {"short_side": 9000}, {"kernel": "lanczos"}])
    def test_a_square_that_no_picture_has(self, change: dict[str, Any]) -> None:
        with pytest.raises(WwtsError, match="resnet50 cannot look at a square"):
            torchvision_models.made(dataclasses.replace(torchvision_models.Variant("resnet50"), **change), 5)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(models.get_model("mobilenet_v3_small", weights=None, num_classes=len(LABELS)).state_dict())


def load(
    folder: Path, content: Any, arch: str = "mobilenet_v3_small"
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The network's weights once a file with ``content`` was read, and the notes."""
    body = torchvision_models.build(arch, len(LABELS), 224)
    notes = checkpoint._load(body, request(folder, arch, content), len(LABELS))
    return body.state_dict(), notes


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


class TestTakenAsItComes:
    @pytest.mark.parametrize(
        "nesting", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")], ids=".".join
    )
    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod."])
    def test_nested_and_prefixed(
        self, state: dict[str, torch.Tensor], nesting: tuple[str, ...], prefix: str, tmp_path: Path
    ) -> None:
        content: Any = {f"{prefix}{key}": value for key, value in state.items()}
        for key in reversed(nesting):
            content = {key: content, "epoch": 12, "optimizer": {"lr": 0.1}}
        found, notes = load(tmp_path, content)
        assert same(found, state)
        told = " ".join(notes)
        assert all(part in told for part in (*nesting, *(f"{each}." for each in prefix.split(".") if each)))
        assert bool(notes) == bool(nesting or prefix)

    def test_safetensors(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        save_file(state, tmp_path / "w.safetensors")
        found, notes = checkpoint.read_weights(tmp_path / "w.safetensors")
        assert same(found, state)
        assert notes == ()

    def test_the_form_of_torch_before_1_6(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        assert same(checkpoint.read_weights(tmp_path / "old.pth")[0], state)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions(self, state: dict[str, torch.Tensor], dtype: torch.dtype, tmp_path: Path) -> None:
        narrow = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        found, _ = load(tmp_path, narrow)
        assert same(found, {key: value.to(state[key].dtype) for key, value in narrow.items()})

    def test_counters_may_be_absent_and_that_is_told(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        found, notes = load(tmp_path, kept)
        assert same(found, state)
        assert notes == (f"{len(state) - len(kept)} counters (num_batches_tracked) were not in the file, and are 0.",)

    @pytest.mark.parametrize(
        ("arch", "aux", "present"),
        [("googlenet", "aux1.", True), ("googlenet", "aux1.", False), ("inception_v3", "AuxLogits.", True)],
    )
    def test_classifiers_of_training_alone(self, arch: str, aux: str, present: bool, tmp_path: Path) -> None:
        network = models.get_model(arch, weights=None, num_classes=7, init_weights=False, aux_logits=present)
        assert any(key.startswith(aux) for key in network.state_dict()) == present
        found, notes = load(tmp_path, network, arch)
        assert same(
            found, {key: value for key, value in network.state_dict().items() if not key.startswith(("aux", "Aux"))}
        )
        assert ["auxiliary" in note for note in notes] == [True] * present

    @pytest.mark.parametrize(
        ("arch", "new", "old"),
        [
            ("densenet121", "denselayer1.norm1.weight", "denselayer1.norm.1.weight"),
            ("vit_b_32", "encoder_layer_0.mlp.0.weight", "encoder_layer_0.mlp.linear_1.weight"),
            ("vit_b_32", "encoder_layer_0.mlp.3.bias", "encoder_layer_0.mlp.linear_2.bias"),
        ],
    )
    def test_names_that_torchvision_gave_before(self, arch: str, new: str, old: str) -> None:
        keys = [key for key in torchvision_models.build(arch, 2, 224).state_dict() if key.endswith(new)]
        assert keys
        assert [torchvision_models.renamed(key.replace(new, old)) for key in keys] == keys
        assert [torchvision_models.renamed(key) for key in keys] == keys


def refusal(folder: Path, content: Any, arch: str = "mobilenet_v3_small") -> str:
    with pytest.raises(WwtsError) as caught:
        load(folder, content, arch)
    return str(caught.value)


class TestRefusedTogether:
    def test_everything_in_one_error(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        wrong = dict(state)
        del wrong["features.0.0.weight"]
        wrong["fc.weight"] = torch.zeros(4, 2)
        wrong["features.1.block.0.0.weight"] = torch.zeros(16, 1, 5, 5)
        wrong["features.2.block.0.0.weight"] = torch.full_like(state["features.2.block.0.0.weight"], torch.nan)
        wrong["classifier.3.weight"], wrong["classifier.3.bias"] = torch.zeros(9, 1024), torch.zeros(9)
        told = refusal(tmp_path, wrong)
        for words in (
            "wwts_model.pth does not fit mobilenet_v3_small with 7 labels; nothing was registered",
            "classifier classifier.3 has 9 outputs",
            "labels_zh.txt names 7 labels",
            "missing (1): features.0.0.weight [16, 3, 3, 3]",
            "unexpected (1): fc.weight [4, 2]",
            "features.1.block.0.0.weight is [16, 1, 5, 5] and must be [16, 1, 3, 3]",
            "classifier.3.weight is [9, 1024] and must be [7, 1024]",
            "with NaN or infinite numbers (1): features.2.block.0.0.weight",
        ):
            assert words in told

    def test_the_label_count_alone(self, tmp_path: Path) -> None:
        for arch, outputs in (
            ("squeezenet1_1", "classifier.1"),
            ("mnasnet0_5", "classifier.1"),
            ("shufflenet_v2_x0_5", "fc"),
        ):
            told = refusal(tmp_path, models.get_model(arch, weights=None, num_classes=1000), arch)
            assert f"its classifier {outputs} has 1,000 outputs" in told
            assert "missing" not in told

    def test_many_names_are_counted(self, tmp_path: Path) -> None:
        told = refusal(tmp_path, {"only": torch.zeros(3)})
        missing = next(line for line in told.splitlines() if "missing" in line)
        wanted = [
            key for key in torchvision_models.build("mobilenet_v3_small", 7, 224).state_dict() if "num_b" not in key
        ]
        assert f"missing ({len(wanted)})" in missing
        assert f"and {len(wanted) - 20} more" in missing
        assert len(told) < 3000

    @pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
    def test_numbers_that_are_none(self, state: dict[str, torch.Tensor], value: float, tmp_path: Path) -> None:
        bias = state["classifier.3.bias"].clone()
        bias[3] = value
        assert "NaN or infinite numbers (1): classifier.3.bias" in refusal(
            tmp_path, {**state, "classifier.3.bias": bias}
        )

    def test_a_number_too_large_for_single_precision(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        wide = {**state, "classifier.3.bias": torch.full((7,), 1e300, dtype=torch.float64)}
        assert "infinite numbers (1): classifier.3.bias" in refusal(tmp_path, wide)

    @pytest.mark.parametrize("kind", ["sparse", "complex", "whole numbers", "a text", "meta"])
    def test_tensors_of_another_kind(self, state: dict[str, torch.Tensor], kind: str, tmp_path: Path) -> None:
        bias = state["classifier.3.bias"]
        other: Any = {
            "sparse": bias.to_sparse(),
            "complex": bias.to(torch.complex64),
            "whole numbers": bias.to(torch.int8),
            "a text": "seven",
            "meta": bias.to("meta"),
        }[kind]
        assert "of another shape or kind (1): classifier.3.bias" in refusal(
            tmp_path, {**state, "classifier.3.bias": other}
        )

    def test_a_prefix_on_some_names_only(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        half = {(f"module.{key}" if key.startswith("classifier") else key): value for key, value in state.items()}
        told = refusal(tmp_path, half)
        assert "missing (4): classifier.0.weight" in told
        assert "unexpected (4): module.classifier.0.weight" in told

    def test_a_size_that_only_claims_to_be(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        """One number, said to be 40 TB of them: refused by its shape, never laid out."""
        assert "[10000000, 1000000]" in refusal(tmp_path, {**state, "bomb": torch.zeros(1).expand(10**7, 10**6)})

    def test_names_do_not_reach_the_terminal_as_they_are(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        told = refusal(tmp_path, {**state, "\x1b[2Jgone\r" + "x" * 9000: torch.zeros(1)})
        assert "\x1b" not in told
        assert "\r" not in told
        assert len(told) < 1000

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"arch": "resnet5"}, "did you mean"),
            ({"family": "timm"}, "no family 'timm'; this version imports torchvision"),
            ({"threshold": 0.0}, "threshold is 0.0"),
            ({"threshold": 1.5}, "threshold is 1.5"),
            ({"threshold": float("nan")}, "threshold is nan"),
            ({"normalize": "caffe"}, "no normalization 'caffe'; take one of imagenet, half, none"),
            ({"input": 17, "arch": "vit_b_32"}, "vit_b_32 cannot be built for an input of 17 pixels"),
            ({"arch": "regnet_y_128gf"}, "regnet_y_128gf has 2.6 GB of weights"),
        ],
    )
    def test_what_was_asked_for(self, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
        given = dataclasses.replace(request(tmp_path, SMALL, {"a": torch.zeros(1)}), **changes)
        with pytest.raises(WwtsError, match=words.replace("(", r"\(")):
            checkpoint.build(tmp_path / "tagger", given, IDS)
        assert not (tmp_path / "tagger").exists()

    def test_an_input_too_small_for_the_network(self, tmp_path: Path) -> None:
        network = models.get_model(SMALL, weights=None, num_classes=len(LABELS))
        with pytest.raises(WwtsError, match=f"{SMALL} cannot look at a square of 10 pixels"):
            checkpoint.build(tmp_path / "tagger", request(tmp_path, SMALL, network, input=10), IDS)

    def test_embeddings_that_float16_cannot_hold(self, tmp_path: Path) -> None:
        network = trained(SMALL)
        with torch.no_grad():
            network.classifier[1].weight.mul_(1e6)
        with pytest.raises(WwtsError, match="too large for float16"):
            checkpoint.build(tmp_path / "tagger", request(tmp_path, SMALL, network), IDS)
        assert not (tmp_path / "tagger").exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


class TestNeverRun:
    @pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
    @pytest.mark.parametrize("form", ["plain", "new", "old"])
    def test_a_pickle_that_would_do_something(self, form: str, suffix: str, tmp_path: Path) -> None:
        path, mark = tmp_path / f"w.{suffix}", tmp_path / "exploded"
        if form == "plain":
            path.write_bytes(pickle.dumps(_Bomb(mark)))
        else:
            content = {"state_dict": {"a": torch.zeros(1)}, "extra": _Bomb(mark)}
            torch.save(content, path, _use_new_zipfile_serialization=form == "new")
        with pytest.raises(WwtsError) as caught:
            checkpoint.read_weights(path)
        assert not mark.exists()
        if form != "plain" and suffix != "safetensors":
            assert "mkdir" in str(caught.value)
            assert "torch.save(model.state_dict(), …)" in str(caught.value)
        if form == "plain":
            pickle.loads(path.read_bytes())
            assert mark.exists()

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
            ({"model": {"a": torch.zeros(1)}, "args": Namespace(lr=1)}, "argparse.Namespace"),
            ({"model": {"a": torch.zeros(1)}, "best": np.float64(0.9)}, "numpy._core.multiarray.scalar"),
        ],
    )
    def test_what_else_people_save_is_named(self, content: Any, named: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WwtsError, match=f"holds more than weights \\({named}\\)"):
            checkpoint.read_weights(tmp_path / "w.pth")

    def test_an_archive_that_would_unpack_to_more(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "w.pth")
        with (
            zipfile.ZipFile(tmp_path / "w.pth") as whole,
            zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as out,
        ):
            for entry in whole.infolist():
                out.writestr(entry.filename, whole.read(entry))
        assert (tmp_path / "b.pth").stat().st_size < 20_000
        with pytest.raises(WwtsError, match="could unpack to any size"):
            checkpoint.read_weights(tmp_path / "b.pth")

    def test_an_archive_whose_entries_lie_over_each_other(self, tmp_path: Path) -> None:
        """A thousand names for the same bytes: 200 MB in 300 kB, none of it compressed."""
        path = tmp_path / "w.pth"
        with zipfile.ZipFile(path, "w") as out:
            out.writestr("w/data/0", bytes(200_000))
            first = out.infolist()[0]
            for number in range(1, 1000):
                other = zipfile.ZipInfo(f"w/data/{number}")
                for name in ("header_offset", "file_size", "compress_size", "CRC"):
                    setattr(other, name, getattr(first, name))
                out.filelist.append(other)
                out._didModify = True  # type: ignore[attr-defined]
        with pytest.raises(WwtsError, match="could unpack to any size"):
            checkpoint.read_weights(path)


class TestDamaged:
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
    @pytest.mark.parametrize("form", ["new", "old", "safetensors"])
    def test_flipped_and_cut(self, form: str, tmp_path: Path) -> None:
        """Read, or refused in a sentence: nothing else ever comes out."""
        path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
        small = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
        if form == "safetensors":
            save_file(small, path)
        else:
            torch.save(small, path, _use_new_zipfile_serialization=form == "new")
        whole, chance = path.read_bytes(), random.Random(3)
        refused: list[str] = []
        damaged = [whole[:length] for length in range(0, len(whole), max(1, len(whole) // 40))]
        for _ in range(150):
            flipped = bytearray(whole)
            for _ in range(chance.choice((1, 4))):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            damaged.append(bytes(flipped))
        for data in damaged:
            path.write_bytes(data)
            try:
                checkpoint.read_weights(path)
            except WwtsError as error:
                refused.append(str(error))
        assert len(refused) >= 40
        assert all(told.startswith(str(path)) for told in refused)
        assert not [told for told in refused if "weights_only" in told]  # torch advises to switch it off

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "0 bytes"),
            (b"hello", "no file of weights"),
            (bytes(5000), "no file of weights"),
            (struct.pack("<Q", 2**60) + b"{}", "no file of weights"),
        ],
    )
    def test_what_was_never_a_checkpoint(self, data: bytes, words: str, tmp_path: Path) -> None:
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(WwtsError, match=words):
            checkpoint.read_weights(tmp_path / "w.pth")

    @pytest.mark.parametrize(
        "content", [[1, 2], {}, {"epoch": 3, "optimizer": {"lr": 1}}, {"state_dict": {"state_dict": {}}}, 7]
    )
    def test_no_weights_in_it(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WwtsError, match="holds no weights, neither by themselves nor below state_dict"):
            checkpoint.read_weights(tmp_path / "w.pth")

    def test_no_file_or_too_large_a_one(self, tmp_path: Path) -> None:
        with (tmp_path / "large.pth").open("wb") as file:
            file.truncate(9 * 2**30)  # on paper only
        for path, words in (
            (tmp_path, "is no file"),
            (tmp_path / "x", "is no file"),
            (tmp_path / "large.pth", "8,589"),
        ):
            with pytest.raises(WwtsError, match=words):
                checkpoint.read_weights(path)
