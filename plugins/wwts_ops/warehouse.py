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
_BATCH_ROWS = 16_384
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
        # A folder above the store may be called `source=oss`: that is no column of ours.
        con.read_parquet(paths, hive_partitioning=False).create_view(name)
    else:
        # DuckDB's S3 reader would be a download at run time, and it takes some path characters for patterns.
        bare = [path.removeprefix("s3://") for path in paths]
        con.register(name, ds.dataset(bare, schema=schema, format="parquet", filesystem=store.fs))


def write(store: Store, key: str, rows: duckdb.DuckDBPyRelation, schema: pa.Schema) -> int:
    """Streams ``rows`` (columns named and ordered as ``schema``) into the zstd Parquet file ``key``; their number."""
    count = 0
    with store.writing(key) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in rows.to_arrow_reader(_BATCH_ROWS):
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            count += batch.num_rows
    return count
