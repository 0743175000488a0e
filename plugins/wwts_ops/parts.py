"""Rows into one Parquet part of a dataset."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wwts_ops.storage import Store

#: Rows a row group, and so the rows held in memory.
_ROW_GROUP = 1024


class PartWriter:
    """Writes rows, a row group at a time, into a part that is whole when the block ends or was never there.

    A part without rows is written too: a shard that is run again then replaces all that it wrote before.
    """

    def __init__(self, store: Store, key: str, schema: pa.Schema) -> None:
        self._store, self._key, self._schema = store, key, schema
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> PartWriter:
        with ExitStack() as stack:
            path = stack.enter_context(self._store.writing(self._key))
            self._writer = stack.enter_context(pq.ParquetWriter(path, self._schema, compression="zstd"))
            # Inside of both, so that a full disk is told, and its half file removed, for the last rows too.
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Adds one row, keyed by the schema's names."""
        self._rows.append(row)
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._rows:
            self._flush()

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
