"""The child process of `eval.serving`: one tagger under the code that was packed with it.

Run as ``python -I -B serving_child.py FOLDER`` where FOLDER holds the packed package ``wwts_ops``. Requests come on
standard input and answers go to standard output, as frames: two lengths, a JSON header, and the bytes it speaks of.
Whatever the packed code prints goes to standard error, so that it cannot be taken for an answer.

Only the recognition closure is imported, and only from FOLDER: nothing of the running checkout answers for it.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from wwts_ops.decisions import Decider, Decision
    from wwts_ops.recognition import Recognizer
    from wwts_ops.runtime import Embedder, Scorer
    from wwts_ops.tagger import Tagger
    from wwts_ops.taxonomy import Taxonomy

    Array = np.ndarray[Any, Any]

Header = dict[str, Any]
Frame = tuple[Header, list[bytes]]

#: Bytes of the header, and how many blobs follow; each blob is led by its own length.
_LENGTHS, _LENGTH = struct.Struct(">II"), struct.Struct(">Q")
#: Tags of a prediction.
TOP = 5


def write_frame(stream: IO[bytes], header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Sends ``header`` (JSON values) and ``blobs``."""
    encoded = json.dumps(header, ensure_ascii=False).encode()
    stream.write(_LENGTHS.pack(len(encoded), len(blobs)) + encoded)
    for blob in blobs:
        stream.write(_LENGTH.pack(len(blob)))
        stream.write(blob)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """What :func:`write_frame` sent; None when the other side is gone.

    Raises:
        EOFError: when it went in the middle of a frame.
    """
    start = stream.read(_LENGTHS.size)
    if not start:
        return None
    size, count = _LENGTHS.unpack(_whole(start, _LENGTHS.size))
    header: Header = json.loads(_whole(stream.read(size), size))
    return header, [_blob(stream) for _ in range(count)]


def _blob(stream: IO[bytes]) -> bytes:
    (size,) = _LENGTH.unpack(_whole(stream.read(_LENGTH.size), _LENGTH.size))
    return _whole(stream.read(size), size)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise EOFError(f"{len(data)} of {size} bytes")
    return data


class _Machine:
    """One tagger, loaded; each part of it when it is first needed."""

    def __init__(self, header: Header, labels: bytes) -> None:
        from wwts_ops import tagger

        self._header, self._labels = header, labels
        self.tagger: Tagger = tagger.load(Path(header["tagger"]))

    @cached_property
    def taxonomy(self) -> Taxonomy:
        from wwts_ops.taxonomy import Taxonomy, from_csv

        return Taxonomy(self._header["taxonomy"], from_csv(self._labels), tuple(self._header["forced_categories"]))

    @cached_property
    def embedder(self) -> Embedder:
        from wwts_ops import runtime

        return runtime.embedder(self.tagger, self._header["device"])

    @cached_property
    def scorer(self) -> Scorer:
        from wwts_ops.runtime import Scorer

        return Scorer(self.tagger)

    @cached_property
    def decider(self) -> Decider:
        from wwts_ops.decisions import Decider

        return Decider(self.tagger.label_ids, self.tagger.thresholds, self.taxonomy, TOP)

    @cached_property
    def recognizer(self) -> Recognizer:
        from wwts_ops.recognition import Recognizer

        sizes = self._header["top_k"], self._header["max_pixels"]
        return Recognizer(self.tagger, self.taxonomy, self._header["device"], *sizes)

    def about(self) -> Header:
        return {
            "sha256": self.tagger.sha256,
            "backbone_sha256": self.tagger.backbone_sha256,
            "dimension": self.tagger.recipe.dimension,
            "device": _device(self._header["device"]),
        }

    def embed(self, images: list[bytes]) -> Frame:
        """Rejected ones by their place; the vectors of the others in one blob, in order."""
        from wwts_ops.images import Rejected

        crops: list[Array] = []
        rejected = {}
        for place, data in enumerate(images):
            try:
                crops.append(self._crop(data))
            except Rejected as error:
                rejected[str(place)] = error.reason
        vectors = b"".join(self.embedder(batch).astype("<f2", copy=False).tobytes() for batch in self._batches(crops))
        return {"rejected": rejected}, [vectors]

    def _crop(self, data: bytes) -> Array:
        from wwts_ops import images

        recipe = self.tagger.recipe
        return recipe.crop(images.decode(data, recipe.short_side, self._header["max_pixels"]).rgb)

    def _batches(self, crops: Sequence[Array]) -> Iterator[Array]:
        import numpy as np

        size = self.embedder.batch_size
        for start in range(0, len(crops), size):
            yield np.stack(crops[start : start + size])

    def predict(self, vectors: bytes) -> Frame:
        import numpy as np

        rows = np.frombuffer(vectors, "<f2").reshape(-1, self.tagger.recipe.dimension)
        return {"rows": [_row(decision) for decision in self.decider(self.scorer(rows))]}, []

    def time(self, data: bytes) -> Frame:
        from wwts_ops.images import Rejected

        recognize = self.recognizer
        started = time.perf_counter()
        try:
            recognize(data)
        except Rejected as error:
            return {"rejected": error.reason}, []
        return {"seconds": time.perf_counter() - started}, []


def _row(decision: Decision) -> Header:
    return {"tags": [[tag.label_id, tag.score] for tag in decision.tags], "decision": decision.decision}


def _device(wanted: str) -> str:
    """What the network runs on, as people read it."""
    import torch

    if wanted == "cpu" or not torch.cuda.is_available():
        return "CPU"
    return str(torch.cuda.get_device_name("cuda" if wanted == "auto" else wanted))


def _answer(machine: _Machine, header: Header, blobs: list[bytes]) -> Frame:
    if header["op"] == "embed":
        return machine.embed(blobs)
    if header["op"] == "predict":
        return machine.predict(blobs[0])
    return machine.time(blobs[0])


def _serve(requests: IO[bytes], answers: IO[bytes], folder: Path) -> None:
    from wwts_ops.errors import WwtsError

    machine: _Machine | None = None
    while frame := read_frame(requests):
        header, blobs = frame
        try:
            if machine is None:
                machine = _Machine(header, blobs[0])
                _check_origin(folder)
                write_frame(answers, machine.about())
            else:
                write_frame(answers, *_answer(machine, header, blobs))
        except WwtsError as error:
            write_frame(answers, {"refused": str(error)})


def _check_origin(folder: Path) -> None:
    """Every module of ours must be the packed one."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "wwts_ops"}
    strangers = [name for name, module in ours.items() if folder not in Path(str(module.__file__)).resolve().parents]
    if not ours or strangers:
        raise ImportError(f"not imported from {folder}: {', '.join(sorted(strangers)) or 'wwts_ops'}")


def main(folder: Path) -> None:
    """Answers until the other side is gone."""
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        # First: the packages of this environment include the running checkout.
        sys.path.insert(0, str(folder))
        from wwts_ops.runtime import one_core

        _check_origin(folder)
        one_core()
        _serve(requests, answers, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
