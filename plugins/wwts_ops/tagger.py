"""A tagger on disk: backbone, head, label ids and thresholds; saved whole, verified when loaded.

A folder with ``tagger.json`` (recipe, labels, thresholds, and the SHA-256 of every other file),
``backbone.safetensors``, ``backbone.onnx`` and ``head.safetensors``. The SHA-256 of ``tagger.json`` therefore
names the whole of it: the ``model_sha256`` of every tag row. It is kept in ``tagger.json.sha256``, as ``sha256sum``
writes it, so that a flipped bit in ``tagger.json`` is noticed too. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wwts_ops.errors import WwtsError

if TYPE_CHECKING:
    import torch

    from wwts_ops.backbones.base import Backbone, Recipe

FORMAT = 1
#: A score from 0 to 1 is sure from here on, until thresholds are learned (the issue's own default).
DEFAULT_THRESHOLD = 0.60
_MANIFEST, _SEAL = "tagger.json", "tagger.json.sha256"
_BACKBONE, _GRAPH, _HEAD = "backbone.safetensors", "backbone.onnx", "head.safetensors"


@dataclass(frozen=True)
class Tagger:
    """What one model version is, verified.

    Attributes:
        folder: where its files lie.
        sha256: of all of it.
        backbone_sha256: of recipe and backbone weights; embeddings of equal ones are interchangeable.
        recipe: from pixels to the network's input.
        label_ids: the label of each score, in order.
        thresholds: ``float32 [labels]``; a score at or above is sure.
        head_weight: ``float32 [labels, dimension]``.
        head_bias: ``float32 [labels]``.
    """

    folder: Path
    sha256: str
    backbone_sha256: str
    recipe: Recipe
    label_ids: tuple[str, ...]
    thresholds: np.ndarray[Any, Any]
    head_weight: np.ndarray[Any, Any]
    head_bias: np.ndarray[Any, Any]

    @property
    def graph(self) -> Path:
        """The backbone as ONNX."""
        return self.folder / _GRAPH

    @property
    def weights(self) -> Path:
        """The backbone's state dict as safetensors."""
        return self.folder / _BACKBONE


@dataclass(frozen=True)
class Head:
    """A linear head and what its rows mean; shapes as in :class:`Tagger`."""

    label_ids: tuple[str, ...]
    thresholds: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]


def save(folder: Path, backbone: Backbone, state: dict[str, torch.Tensor], head: Head) -> Tagger:
    """Writes a tagger into the empty ``folder`` and reads it back.

    Args:
        folder: made if absent.
        backbone: the network's family member.
        state: the backbone's weights; every key must match.
        head: one row a label.

    Raises:
        WwtsError: when the head does not fit the labels or the backbone, or holds numbers that are none.
        RuntimeError: when ``state`` lacks keys or has others; torch names them.
    """
    from safetensors.torch import save_file

    _check(head, backbone.recipe.dimension)
    folder.mkdir(parents=True, exist_ok=True)
    network = backbone.network()
    network.load_state_dict(state, strict=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / _BACKBONE)
    (folder / _GRAPH).write_bytes(_export(network, backbone.recipe))
    return _sealed(folder, backbone.recipe, backbone.recipe.sha256((folder / _BACKBONE).read_bytes()), head)


def rehead(folder: Path, base: Tagger, head: Head) -> Tagger:
    """Writes the backbone of ``base``, byte for byte, with another head into the empty ``folder`` and reads it back.

    Args:
        folder: made if absent.
        base: loaded; its ``backbone_sha256`` stays, and with it every stored embedding.
        head: one row a label.

    Raises:
        WwtsError: when the head does not fit its labels or the backbone, holds numbers that are none, or the
            files of ``base`` are no longer those that were loaded.
    """
    _check(head, base.recipe.dimension)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files = _files(base)
        for name in (_BACKBONE, _GRAPH):
            shutil.copyfile(base.folder / name, folder / name)
            if _sha256(folder / name) != files[name]:
                raise _altered(base.folder / name)
    except OSError as error:
        raise _not_whole(base.folder, error) from error
    return _sealed(folder, base.recipe, base.backbone_sha256, head)


def load(folder: Path) -> Tagger:
    """Reads a tagger and verifies every file against its SHA-256.

    Raises:
        WwtsError: when a file is missing, altered or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from wwts_ops.backbones.base import Recipe

    try:
        raw = (folder / _MANIFEST).read_bytes()
        if (folder / _SEAL).read_bytes() != _seal(raw):
            raise _altered(folder / _MANIFEST)
        manifest = json.loads(raw)
        if manifest["format"] != FORMAT:
            raise WwtsError(f"{folder} is a tagger of format {manifest['format']}; this version reads {FORMAT}.")
        _verify(folder, manifest["files"])
        tensors = load_file(folder / _HEAD)
        return Tagger(
            folder=folder,
            sha256=hashlib.sha256(raw).hexdigest(),
            backbone_sha256=manifest["backbone_sha256"],
            recipe=Recipe(**manifest["recipe"]),
            label_ids=tuple(manifest["label_ids"]),
            thresholds=np.asarray(manifest["thresholds"], dtype=np.float32),
            head_weight=tensors["weight"],
            head_bias=tensors["bias"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _not_whole(folder, error) from error


def build_embedded(folder: Path, label_ids: tuple[str, ...], threshold: float, backbone: str) -> Tagger:
    """A backbone with the head it was trained with, from the installed weight packages.

    Args:
        folder: where to write it.
        label_ids: one for each row of the pretrained head, in its order.
        threshold: the same for every label.
        backbone: its name, of one that comes with weights.

    Raises:
        WwtsError: when there is none of that name, or it comes without weights.
    """
    from wwts_ops import backbones

    made = backbones.get(backbone)
    weights = made.pretrained()
    head = Head(
        label_ids=label_ids,
        thresholds=np.full(len(label_ids), threshold, dtype=np.float32),
        weight=weights.head_weight.numpy(),
        bias=weights.head_bias.numpy(),
    )
    return save(folder, made, weights.backbone, head)


def _sealed(folder: Path, recipe: Recipe, backbone_sha256: str, head: Head) -> Tagger:
    """Adds ``head`` and the manifest to the backbone's files in ``folder``, and reads all of it back."""
    from safetensors.numpy import save_file

    # safetensors writes the buffer as it lies: of a transposed array that would be another matrix.
    tensors = {"bias": head.bias, "weight": head.weight}
    save_file({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}, folder / _HEAD)
    manifest = {
        "format": FORMAT,
        "recipe": asdict(recipe),
        "backbone_sha256": backbone_sha256,
        "files": {name: _sha256(folder / name) for name in (_BACKBONE, _GRAPH, _HEAD)},
        "label_ids": list(head.label_ids),
        "thresholds": [round(float(value), 6) for value in head.thresholds],
    }
    raw = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()
    (folder / _MANIFEST).write_bytes(raw)
    (folder / _SEAL).write_bytes(_seal(raw))
    return load(folder)


def _check(head: Head, dimension: int) -> None:
    labels = len(head.label_ids)
    found = (head.weight.shape, head.bias.shape, head.thresholds.shape)
    if found != ((labels, dimension), (labels,), (labels,)):
        raise WwtsError(
            f"A head whose weight, bias and thresholds have the shapes {found} "
            f"does not fit {labels} labels and dimension {dimension}."
        )
    if len(set(head.label_ids)) != labels:
        raise WwtsError("A label id occurs twice in the head; every row needs a label of its own.")
    if not all(np.isfinite(values).all() for values in (head.weight, head.bias, head.thresholds)):
        raise WwtsError("The head holds NaN or infinite numbers; train it again.")


def _files(base: Tagger) -> dict[str, str]:
    """The SHA-256 of every file of ``base``, from the manifest that was loaded."""
    raw = (base.folder / _MANIFEST).read_bytes()
    if hashlib.sha256(raw).hexdigest() != base.sha256:
        raise _altered(base.folder / _MANIFEST)
    files: dict[str, str] = json.loads(raw)["files"]
    return files


def _verify(folder: Path, files: dict[str, str]) -> None:
    for name in (_BACKBONE, _GRAPH, _HEAD):
        if _sha256(folder / name) != files[name]:
            raise _altered(folder / name)


def _altered(path: Path) -> WwtsError:
    return WwtsError(f"{path} is not the file that was saved; delete its folder and fetch the model again.")


def _not_whole(folder: Path, error: Exception) -> WwtsError:
    return WwtsError(f"{folder} holds no whole tagger ({error}); delete it and fetch the model again.")


def _seal(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {_MANIFEST}\n".encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _export(network: torch.nn.Module, recipe: Recipe) -> bytes:
    """The network as ONNX, free of the paths and stack traces that the exporter writes into it."""
    import torch

    example = torch.zeros((2, recipe.input, recipe.input, 3), dtype=torch.uint8)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        input_names=["pixels"],
        output_names=["embedding"],
    )
    assert program is not None  # it is None only for the old exporter
    model = program.model_proto
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    data: bytes = model.SerializeToString(deterministic=True)
    return data
