"""The bad cases' embeddings, kept per backbone so that a picture is embedded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wwts_ops.embeddings import EmbeddingWriter
from wwts_ops.errors import WwtsError
from wwts_ops.storage import Store

Array = np.ndarray[Any, Any]


def embeddings(store: Store, backbone_sha256: str, code_sha256: str = "") -> tuple[tuple[str, ...], Array]:
    """What is kept of ``backbone_sha256``: contents, each once, and their vectors in that order.

    Args:
        store: where.
        backbone_sha256: of recipe and weights.
        code_sha256: only what this recognition code made; empty: by whatever code.

    Returns:
        The contents' SHA-256, and ``float16 [n, d]``; of nothing, ``()`` and ``[0, 0]``.

    Raises:
        WwtsError: when two parts hold vectors of different lengths.
    """
    found: dict[str, bytes] = {}
    for key in store.list(_folder(backbone_sha256, code_sha256), ".parquet"):
        table = store.read_table(key)
        rows = zip(*(table.column(name).to_pylist() for name in table.schema.names), strict=True)
        for content, backbone, vector in rows:
            if backbone == backbone_sha256:  # the folder's name holds only its first digits
                found.setdefault(content, vector)
    if len({len(vector) for vector in found.values()}) > 1:
        raise WwtsError(
            f"{store.path(_folder(backbone_sha256))} holds vectors of different lengths; remove that folder."
        )
    if not found:
        return (), np.empty((0, 0), np.float16)
    return tuple(found), np.frombuffer(b"".join(found.values()), "<f2").reshape(len(found), -1)


def add_embeddings(
    store: Store, backbone_sha256: str, contents: Sequence[str], vectors: Array, code_sha256: str = ""
) -> None:
    """Keeps ``vectors`` (``float16 [n, d]``) of ``contents``, made by the code ``code_sha256``.

    What that code made before is left as it is.

    Raises:
        WwtsError: when their number, type or length do not fit each other and what is kept.
    """
    if vectors.dtype != np.float16 or vectors.ndim != 2 or len(vectors) != len(contents):
        raise WwtsError(
            f"{len(contents)} contents need a float16 vector each, not {vectors.dtype} {list(vectors.shape)}."
        )
    known, kept = embeddings(store, backbone_sha256, code_sha256)
    if known and kept.shape[1] != vectors.shape[1]:
        raise WwtsError(f"Backbone b{backbone_sha256[:12]} gives {kept.shape[1]} numbers, not {vectors.shape[1]}.")
    new = {content: vector for content, vector in zip(contents, vectors, strict=True) if content not in set(known)}
    if not new:
        return
    # Named by what it holds: two at once, or one that starts again, write the same part.
    name = hashlib.sha256("\n".join(sorted(new)).encode()).hexdigest()[:12]
    with (
        store.writing(f"{_folder(backbone_sha256, code_sha256)}/part-{name}.parquet") as path,
        EmbeddingWriter(path, backbone_sha256, vectors.shape[1]) as writer,
    ):
        for content in sorted(new):
            writer.add(content, new[content])


def _folder(backbone_sha256: str, code_sha256: str = "") -> str:
    code = f"/code=c{code_sha256[:12]}" if code_sha256 else ""
    return f"badcases/embeddings/backbone=b{backbone_sha256[:12]}{code}"
