"""Runs a tagger: crops → embeddings (ONNX Runtime on a CPU, torch on CUDA), embeddings → scores.

Embeddings are rounded to float16 before the head sees them, and one function computes the head wherever
scores are made, so that re-tagging from stored embeddings gives the very same scores as tagging from pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np

from wwts_ops.errors import WwtsError
from wwts_ops.tagger import Tagger

Array = np.ndarray[Any, Any]


class Embedder(ABC):
    """Crops to embeddings.

    Attributes:
        batch_size: crops that one call is best given; 1 means that callers should run it from many threads.
    """

    batch_size: int

    @abstractmethod
    def __call__(self, crops: Array) -> Array:
        """``uint8 [n, input, input, 3]`` → ``float16 [n, dimension]``."""


class OnnxEmbedder(Embedder):
    """ONNX Runtime on the CPU. One session serves many threads, each call using one core.

    Calls of one image from as many threads as cores were 5.9 times as fast as eager torch; batches added nothing.
    """

    batch_size = 1

    def __init__(self, tagger: Tagger) -> None:
        self._session = _session(tagger.graph.read_bytes())

    def __call__(self, crops: Array) -> Array:
        """See :class:`Embedder`; any number of crops, best one."""
        return np.asarray(self._session.run(None, {"pixels": crops})[0], dtype=np.float16)


class TorchEmbedder(Embedder):
    """torch on a device, in batches."""

    batch_size = 64

    def __init__(self, tagger: Tagger, device: str) -> None:
        import torch
        from safetensors.torch import load_file

        from wwts_ops import backbones

        self._device = torch.device(device)
        network = backbones.get(tagger.recipe.backbone).network()
        network.load_state_dict(load_file(tagger.weights), strict=True)
        self._network = network.to(self._device)

    def __call__(self, crops: Array) -> Array:
        """See :class:`Embedder`."""
        import torch

        # TF32, which torch allows convolutions by default, would be off by more than a step of float16.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            pixels = torch.from_numpy(crops).to(self._device, non_blocking=True)
            embedding: Array = self._network(pixels).to(torch.float16).cpu().numpy()
        return embedding


class Scorer:
    """Embeddings to scores: a softmax over one matrix product, in ONNX Runtime at float32.

    An ONNX Runtime Gemm gives identical bits at every batch size; numpy's and torch's do not.
    """

    def __init__(self, tagger: Tagger) -> None:
        self._tagger = tagger

    @cached_property
    def _session(self) -> Any:
        return _session(_head_graph(self._tagger.head_weight, self._tagger.head_bias))

    def __call__(self, embeddings: Array) -> Array:
        """``float16 [n, dimension]`` (others are rounded to it) → ``float32 [n, labels]``, rows summing to 1."""
        rounded = embeddings.astype(np.float16, copy=False).astype(np.float32)
        return np.asarray(self._session.run(None, {"embedding": rounded})[0])


def one_core() -> None:
    """Keeps OpenCV and torch to the calling thread: the pool of threads is the parallelism, two of them are a crowd."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def embedder(tagger: Tagger, device: str) -> Embedder:
    """The embedder for ``device`` (``auto`` takes CUDA when there is one).

    Raises:
        WwtsError: when CUDA is asked for and absent.
    """
    import torch

    available = torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise WwtsError(f"WWTS_DEVICE is {device}, but torch sees no CUDA device here; set it to auto or cpu.")
    if device == "cpu" or not available:
        return OnnxEmbedder(tagger)
    return TorchEmbedder(tagger, "cuda" if device == "auto" else device)


def _session(graph: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    # One core a call: the pipeline's threads are the parallelism, and results do not depend on how many there are.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _head_graph(weight: Array, bias: Array) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    labels, dimension = weight.shape
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        "head",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dimension])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", labels])],
        [
            numpy_helper.from_array(np.ascontiguousarray(weight, dtype=np.float32), "weight"),
            numpy_helper.from_array(np.ascontiguousarray(bias, dtype=np.float32), "bias"),
        ],
    )
    # The oldest pair that has everything used here, so that any supported ONNX Runtime reads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
