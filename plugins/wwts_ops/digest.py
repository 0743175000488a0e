"""SHA-256: how one is written, and of rows: the same for the same values, however their table came to be."""

from __future__ import annotations

import hashlib
import re

import pyarrow as pa
import pyarrow.compute as pc

#: How a SHA-256 is written, of rows or of bytes.
SHA256 = re.compile(r"[0-9a-f]{64}")
_ROWS = 65_536


def sha256(head: bytes, table: pa.Table) -> str:
    """Hex digest over ``head`` and the rows of ``table``, whose columns are texts, numbers and timestamps.

    Columns are hashed as lengths and bytes, in pieces of a fixed size, because Arrow's own bytes depend on how a
    table came to be.
    """
    digest = hashlib.sha256(head)
    for start in range(0, table.num_rows, _ROWS):
        piece = table.slice(start, _ROWS)
        for name in table.column_names:
            text = piece[name].cast(pa.int64()) if pa.types.is_timestamp(piece[name].type) else piece[name]
            text = text.cast(pa.string())
            digest.update(pc.fill_null(pc.binary_length(text), -1).to_numpy().astype("<i4").tobytes())
            digest.update("".join(pc.fill_null(text, "").to_pylist()).encode())
    return digest.hexdigest()
