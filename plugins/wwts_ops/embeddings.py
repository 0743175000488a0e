"""The embedding store: one float16 vector a content and backbone, looked up by content."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wwts_ops.errors import WwtsError
from wwts_ops.schemas import embeddings_schema
from wwts_ops.storage import Store

Array = np.ndarray[Any, Any]

#: Rows a row group: small enough to read one for a single look-up (2.6 MB at 1,280 numbers).
ROW_GROUP = 1024
_CACHED_GROUPS = 8


def part_key(backbone_sha256: str, date: str, run_key: str, shard: int) -> str:
    """The store key of one shard's embeddings."""
    return f"embeddings/backbone=b{backbone_sha256[:12]}/date={date}/part-{run_key}-{shard:05d}.parquet"


class EmbeddingWriter:
    """Writes one part, a row group at a time; use as a context manager."""

    def __init__(self, path: Path, backbone_sha256: str, dimension: int) -> None:
        self._schema = embeddings_schema(dimension)
        self._backbone = backbone_sha256
        # Uncompressed: reading back at memory speed is the point, and float16 noise barely compresses.
        self._writer = pq.ParquetWriter(path, self._schema, compression="none", use_dictionary=["backbone_sha256"])
        self._rows: list[tuple[str, bytes]] = []

    def add(self, content_sha256: str, embedding: Array) -> None:
        """Adds one ``float16 [dimension]``."""
        self._rows.append((content_sha256, embedding.astype("<f2", copy=False).tobytes()))
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        shas = pa.array([sha for sha, _ in self._rows], pa.string())
        vectors = pa.array([vector for _, vector in self._rows], pa.binary())
        backbone = pa.array([self._backbone] * len(self._rows), pa.string())
        self._writer.write_table(pa.Table.from_arrays([shas, backbone, vectors], schema=self._schema))
        self._rows.clear()

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writer:
            if kind is None and self._rows:
                self._flush()


class KnownContents:
    """The embeddings of finished runs, by content.

    Holds 16 bytes a content: the first 8 bytes of its SHA-256, sorted, and where its row lies. A hit on those is
    verified against the whole hash in the file, so that two contents are never taken for one.
    """

    def __init__(self, store: Store, backbone_sha256: str, run_keys: Iterable[str]) -> None:
        """Indexes the parts of ``run_keys``; where a content occurs twice, the lowest part name counts."""
        self._store = store
        wanted = set(run_keys)
        keys = store.list(f"embeddings/backbone=b{backbone_sha256[:12]}", ".parquet") if wanted else []
        self._parts = sorted((key for key in keys if _run_of(key) in wanted), key=_name_of)
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._prefixes, self._places = self._index()

    def __len__(self) -> int:
        return len(self._prefixes)

    def _index(self) -> tuple[Array, Array]:
        prefixes, places = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for number, key in enumerate(self._parts):
            shas = self._store.read_table(key, ["content_sha256"]).column(0)
            prefixes.append(np.fromiter((_prefix(sha) for sha in shas.to_pylist()), np.uint64, len(shas)))
            # Part in the upper, row in the lower half.
            places.append((np.uint64(number) << np.uint64(32)) + np.arange(len(shas), dtype=np.uint64))
        all_prefixes, all_places = np.concatenate(prefixes), np.concatenate(places)
        order = np.argsort(all_prefixes, kind="stable")
        return all_prefixes[order], all_places[order]

    def get(self, content_sha256: str) -> Array | None:
        """``float16 [dimension]`` of that content, or None."""
        prefix = np.uint64(_prefix(content_sha256))
        # Not numpy's search: it gives the GIL away, and waits for it as long as a core decodes.
        index = bisect_left(self._prefixes, prefix)
        while index < len(self._prefixes) and self._prefixes[index] == prefix:
            place = int(self._places[index])
            found = self._row(place >> 32, place & 0xFFFFFFFF, content_sha256)
            if found is not None:
                return found
            index += 1
        return None

    def _row(self, part: int, row: int, content_sha256: str) -> Array | None:
        group = self._group(part, row // ROW_GROUP)
        offset = row % ROW_GROUP
        if group["content_sha256"][offset].as_py() != content_sha256:
            return None
        return np.frombuffer(group["embedding"][offset].as_py(), dtype="<f2")

    def _group(self, part: int, number: int) -> pa.Table:
        place = (part, number)
        if place not in self._groups:
            with self._store.open(self._parts[part]) as file:
                columns = ["content_sha256", "embedding"]
                self._groups[place] = pq.ParquetFile(file).read_row_group(number, columns=columns)
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]


def parts(store: Store, backbone_sha256: str) -> tuple[str, ...]:
    """The keys of all parts of a backbone, by name: where a content occurs in several, the first one counts."""
    return tuple(sorted(store.list(f"embeddings/backbone=b{backbone_sha256[:12]}", ".parquet"), key=_name_of))


def batches(store: Store, key: str) -> Iterator[tuple[list[str], Array]]:
    """One part, a row group at a time: the contents, and their ``float16 [n, dimension]`` (read only).

    Raises:
        WwtsError: when the part is damaged.
    """
    for number in range(row_groups(store, key)):
        yield read_groups(store, key, [number])


def rows(store: Store, key: str) -> int:
    """How many rows a part has; errors as in :func:`batches`."""
    with _readable(store, key) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def row_groups(store: Store, key: str) -> int:
    """How many row groups a part has; errors as in :func:`batches`."""
    with _readable(store, key) as file:
        return int(pq.ParquetFile(file).num_row_groups)


def read_groups(store: Store, key: str, numbers: Sequence[int]) -> tuple[list[str], Array]:
    """Some row groups of a part at once; values and errors as in :func:`batches`."""
    # Opened anew for each: what a long-lived reader of one file keeps grew to gigabytes.
    with _readable(store, key) as file:
        opened = pq.ParquetFile(file)
        table = opened.read_row_groups(list(numbers), columns=["content_sha256", "embedding"], use_threads=False)
        dimension = int((opened.schema_arrow.metadata or {}).get(b"dimension", 0))
        return table["content_sha256"].to_pylist(), _vectors(table["embedding"], dimension)


def take(store: Store, backbone_sha256: str, contents: Sequence[str]) -> tuple[Array, Array]:
    """The embeddings of ``contents``, in their order, from all parts of a backbone.

    Memory grows with ``contents``, not with what is stored.

    Returns:
        ``bool [n]``, which of them are stored, and ``float16 [found, dimension]`` of those (``[0, 0]`` of none).

    Raises:
        WwtsError: when a part is damaged.
    """
    place = {content: number for number, content in enumerate(dict.fromkeys(contents))}
    sought = pa.array(list(place), pa.string())
    stored, taken = np.zeros(len(place), dtype=bool), np.empty((0, 0), np.float16)
    for key in parts(store, backbone_sha256):
        if stored.all():
            break
        for group, found_rows, places in _hits(store, key, sought):
            vectors = read_groups(store, key, [group])[1]
            if not taken.size:
                taken = np.zeros((len(place), vectors.shape[1]), np.float16)
            new = ~stored[places]
            taken[places[new]] = vectors[found_rows[new]]
            stored[places] = True
    order = np.array([place[content] for content in contents], dtype=np.intp)
    found = stored[order]
    return found, taken[order[found]]


def _hits(store: Store, key: str, sought: pa.Array) -> Iterator[tuple[int, Array, Array]]:
    """The row groups of a part that hold any of ``sought``, each with the rows in it and their places in ``sought``."""
    with _readable(store, key) as file:
        opened = pq.ParquetFile(file)
        sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
        shas = opened.read(columns=["content_sha256"]).column(0)
    places = pc.fill_null(pc.index_in(shas, value_set=sought), -1).to_numpy()
    for number, (first, end) in enumerate(pairwise([0, *np.cumsum(sizes, dtype=int).tolist()])):
        rows = np.flatnonzero(places[first:end] >= 0)
        if len(rows):
            yield number, rows, places[first:end][rows]


@contextmanager
def _readable(store: Store, key: str) -> Iterator[Any]:
    try:
        with store.open(key) as file:
            yield file
    except pa.ArrowInvalid as error:
        raise WwtsError(f"{store.path(key)} is damaged ({error}); restore it from a backup.") from error


def _vectors(column: pa.ChunkedArray, dimension: int) -> Array:
    """``float16 [n, dimension]`` without a copy a row: in memory, all rows lie one after another.

    Raises:
        pa.ArrowInvalid: when they are not of that length.
    """
    whole = column.combine_chunks()
    _, offsets, data = whole.buffers()
    ends = np.frombuffer(offsets, np.int32)[whole.offset : whole.offset + len(whole) + 1]
    if np.any(np.diff(ends) != 2 * dimension):
        raise pa.ArrowInvalid(f"embeddings of other lengths than {dimension}")
    if not len(whole):
        return np.empty((0, dimension), "<f2")
    return np.frombuffer(data, "<f2", len(whole) * dimension, int(ends[0])).reshape(-1, dimension)


def _prefix(content_sha256: str) -> int:
    return int(content_sha256[:16], 16)


def _name_of(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def _run_of(key: str) -> str:
    return _name_of(key).removeprefix("part-").rsplit("-", 1)[0]
