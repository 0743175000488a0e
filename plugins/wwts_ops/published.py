"""The reader of what is published: resolves the pointer, then reads that snapshot and no other.

``published/`` holds several snapshots, each with a row for every image; reading them with one glob would count
images as often as there are snapshots.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wwts_ops.errors import WwtsError
from wwts_ops.schemas import PUBLISHED
from wwts_ops.storage import Pointer, Store

POINTER = "published/current.json"
FORMATS = (".csv", ".parquet", ".xlsx")
_BATCH = 8192
#: Rows an .xlsx sheet can hold below its header.
_XLSX_ROWS = 1_048_575


def current(store: Store) -> Pointer | None:
    """The pointer to the snapshot that consumers read, or None before the first."""
    return store.read_pointer(POINTER)


def kept_key(snapshot: str) -> str:
    """The store key of what the pointer says when it names ``snapshot``; written last, when the snapshot is whole."""
    return f"published/{snapshot}/_snapshot.json"


def kept(store: Store, snapshot: str) -> dict[str, Any] | None:
    """What the pointer says when it names ``snapshot``; None when that is not there, or not whole."""
    pointer = current(store)
    if pointer is not None and pointer.value["snapshot"] == snapshot:
        return pointer.value
    return _kept(store, snapshot)


def _kept(store: Store, snapshot: str) -> dict[str, Any] | None:
    try:
        found = store.read_json(kept_key(snapshot))
    except FileNotFoundError:
        return None
    return found if all(store.exists(part) for part in found["parts"]) else None


def keep(store: Store, pointer: Pointer) -> None:
    """Makes it possible to go back to a snapshot that was written before snapshots had a ``_snapshot.json``."""
    key = kept_key(str(pointer.value["snapshot"]))
    if not store.exists(key):
        store.write_json(key, pointer.value)


def snapshots(store: Store) -> list[dict[str, Any]]:
    """What the pointer says, or said, of every snapshot that is there, oldest first.

    Raises:
        UnavailableError: when the store refuses.
    """
    pointer = current(store)
    found = {} if pointer is None else {str(pointer.value["snapshot"]): pointer.value}
    for key in store.list("published", "/_snapshot.json"):
        name = key.split("/")[1]
        if name not in found and (value := _kept(store, name)) is not None:
            found[name] = value
    return sorted(found.values(), key=lambda value: (value["published_at"], value["snapshot"]))


def batches(store: Store) -> Iterator[pa.RecordBatch]:
    """The current snapshot, some thousand rows at a time (schema ``PUBLISHED``).

    Raises:
        WwtsError: before anything was published.
    """
    pointer = current(store)
    if pointer is None:
        raise WwtsError(f"Nothing is published in {store.root} yet; run the DAG tag_catalog first.")
    for key in pointer.value["parts"]:
        with store.open(key) as file:
            yield from pq.ParquetFile(file).iter_batches(_BATCH)


def read(store: Store) -> pa.Table:
    """The current snapshot as one table; errors as in :func:`batches`."""
    return pa.Table.from_batches(list(batches(store)), schema=PUBLISHED)


def export(store: Store, target: Path) -> int:
    """Writes the current snapshot to ``target`` by its suffix (:data:`FORMATS`); the number of rows.

    CSV begins with a byte-order mark, and lists become ``name:score`` joined by ``|``, so that Excel opens both.

    Raises:
        WwtsError: for another suffix or a missing folder, before anything was published, or when a sheet cannot hold
            all rows.
    """
    writers = {".csv": _to_csv, ".parquet": _to_parquet, ".xlsx": _to_xlsx}
    writer = writers.get(target.suffix.lower())
    if writer is None:
        raise WwtsError(f"{target}: exports end in {', '.join(FORMATS)}.")
    if not target.parent.is_dir():
        raise WwtsError(f"{target}: there is no folder {target.parent}; make it first.")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        count = writer(batches(store), temporary)
        temporary.replace(target)
    except OSError as error:
        raise WwtsError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _to_parquet(source: Iterator[pa.RecordBatch], path: Path) -> int:
    count = 0
    with pq.ParquetWriter(path, PUBLISHED, compression="zstd") as writer:
        for batch in source:
            writer.write_batch(batch.cast(PUBLISHED))
            count += batch.num_rows
    return count


def _to_csv(source: Iterator[pa.RecordBatch], path: Path) -> int:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PUBLISHED.names)
        count = 0
        for row in _flat(source):
            writer.writerow(row)
            count += 1
    return count


def _to_xlsx(source: Iterator[pa.RecordBatch], path: Path) -> int:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet("标签")
    sheet.append(PUBLISHED.names)
    count = 0
    for row in _flat(source):
        if count == _XLSX_ROWS:
            raise WwtsError(f"An .xlsx sheet holds {_XLSX_ROWS:,} rows; export to .csv or .parquet instead.")
        cells = []
        for value in row:
            cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value)
            if isinstance(value, str):
                cell.data_type = "s"  # never a formula, whatever a file name begins with
            cells.append(cell)
        sheet.append(cells)
        count += 1
    book.save(path)
    return count


def _flat(source: Iterator[pa.RecordBatch]) -> Iterator[list[Any]]:
    for batch in source:
        for row in batch.to_pylist():
            tags = row["tags"] or []
            row["tags"] = "|".join(f"{tag['label_zh']}:{tag['score']:.3f}" for tag in tags)
            row["tagged_at"] = row["tagged_at"].isoformat()
            yield [row[name] for name in PUBLISHED.names]
