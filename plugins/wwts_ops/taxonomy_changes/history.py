"""The versions of the taxonomy: who made each, when, from which one, and how much it changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow.parquet as pq

from wwts_ops import taxonomy
from wwts_ops.storage import File, Store
from wwts_ops.taxonomy import POINTER
from wwts_ops.taxonomy_changes.difference import counts, diff

_NAME = "taxonomy.parquet"


@dataclass(frozen=True)
class Version:
    """One version.

    Attributes:
        version: its name.
        author: who made it; empty where a release that did not note it did.
        made_at: UTC; where it was not noted, when its table was last written.
        previous: the version it was made from; None for the first, and where that is not known.
        labels: how many it has.
        counts: how many differences from ``previous`` there are of each field.
    """

    version: str
    author: str
    made_at: datetime
    previous: str | None
    labels: int
    counts: Mapping[str, int]


def history(store: Store, count: int) -> list[Version]:
    """The last ``count`` versions that were in force, newest first; none before the first night.

    Raises:
        UnavailableError: when the store refuses.
    """
    pointer = store.read_pointer(POINTER)
    if pointer is None:
        return []
    # Releases before this one noted author and predecessor in the pointer only, so only of the version in force.
    known: dict[str, Any] = {"author": pointer.value.get("author"), "previous": pointer.value.get("previous")}
    files = {key.split("/")[1]: file for key, file in store.files("taxonomy").items() if key.endswith(f"/{_NAME}")}
    found: list[Version] = []
    version: str | None = str(pointer.value["version"])
    while version in files and len(found) < count:
        found.append(_read(store, version, files, known))
        version, known = found[-1].previous, {}
    return found


def _read(store: Store, version: str, files: Mapping[str, File], known: Mapping[str, Any]) -> Version:
    with store.open(files[version].key) as file:
        table = pq.ParquetFile(file)
        about = {key.decode(): value.decode() for key, value in (table.schema_arrow.metadata or {}).items()}
        rows = table.metadata.num_rows
    noted = "author" in about
    previous = about["previous"] if noted else known.get("previous") or _before(version, files)
    made_at = datetime.fromisoformat(about["made_at"]) if noted else files[version].modified
    changed = json.loads(about["note"]) if about.get("note") else _counted(store, previous, version, files)
    author = about["author"] if noted else str(known.get("author") or "")
    return Version(version, author, made_at, previous or None, rows, changed)


def _before(version: str, files: Mapping[str, File]) -> str:
    """The version with the number before; of several (somebody was faster, and theirs counted) the first written."""
    if not version[1:7].isdecimal():
        return ""
    number = f"t{int(version[1:7]) - 1:06d}-"
    found = [name for name in files if name.startswith(number)]
    return min(found, key=lambda name: files[name].modified, default="")


def _counted(store: Store, previous: str, version: str, files: Mapping[str, File]) -> dict[str, int]:
    if previous not in files:
        return {}
    return counts(diff(taxonomy.read(store, previous), taxonomy.read(store, version)))
