"""DuckDB over the store's Parquet parts, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from wwts_ops.storage import Store

#: Beyond this DuckDB spills to a temporary folder.
_MEMORY = "1GB"
#: Rows of a row group, and so the rows held in memory.
_GROUP_ROWS = 16_384
_PATTERN = frozenset("[]?*")


@contextmanager
def connect() -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory database that spills to disk and speaks UTC."""
    with TemporaryDirectory(prefix="wwts-duckdb-") as spill, duckdb.connect() as con:
        con.execute(f"SET memory_limit = '{_MEMORY}'")
        con.execute("SET temp_directory = $folder", {"folder": spill})
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET preserve_insertion_order = false")
        yield con


def view(con: duckdb.DuckDBPyConnection, name: str, store: Store, keys: Iterable[str], schema: pa.Schema) -> None:
    """Makes the parts ``keys`` readable as table ``name``; without any part it is empty, not missing."""
    paths = [store.path(key) for key in keys]
    if not paths:
        con.register(name, schema.empty_table())
    elif store.is_local and not _PATTERN.intersection(store.root):
        con.read_parquet(paths).create_view(name)
    else:
        # DuckDB's S3 reader would be a download at run time, and it takes some path characters for patterns.
        bare = [path.removeprefix("s3://") for path in paths]
        con.register(name, ds.dataset(bare, schema=schema, format="parquet", filesystem=store.fs))


def write(store: Store, key: str, pieces: Iterable[duckdb.DuckDBPyRelation], schema: pa.Schema) -> int:
    """Streams ``pieces`` (columns named and ordered as ``schema``) into the zstd Parquet file ``key``; their rows."""
    count = 0
    with store.writing(key) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _groups(batch for piece in pieces for batch in piece.to_arrow_reader(_GROUP_ROWS)):
            writer.write_table(table.cast(schema))
            count += table.num_rows
    return count


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """``batches`` cut anew: how DuckDB cuts them depends on the number of cores, and the file shall not."""
    held: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        held = table if held is None else pa.concat_tables([held, table])
        while held.num_rows >= _GROUP_ROWS:
            yield held.slice(0, _GROUP_ROWS).combine_chunks()
            held = held.slice(_GROUP_ROWS)
    if held is not None and held.num_rows:
        yield held.combine_chunks()
