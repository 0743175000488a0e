"""Answers, frozen: what a training learns from is a file with a SHA-256, never the table that people still add to.

``trainings/answers/<name>.parquet`` never changes once written; ``trainings/state.json`` says which answers a training
has used already.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from wwts_ops import corrections, digest
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.records import ANSWERS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

#: ``answers``: number of the newest answer that a training has used; ``announced``: kept by ``publish``.
STATE: Final = "trainings/state.json"

_NAME = re.compile(r"a\d{6,}-[0-9a-f]{12}")
#: Others who write the state, one right after another, before it counts as unavailable.
_TRIES = 20


@dataclass(frozen=True)
class Snapshot:
    """Frozen answers.

    Attributes:
        name: ``a``, the number of the latest answer, and the first digits of ``sha256``.
        sha256: of all rows.
        latest: number of the latest answer; 0 when there is none.
        answers: contents with an answer in force.
        weak: contents with an imported old tag only.
        new: contents whose answer in force is another, or gone, since the last training.
    """

    name: str
    sha256: str
    latest: int
    answers: int
    weak: int
    new: int


def freeze(settings: Settings) -> Snapshot:
    """Freezes all answers there are now; those that are frozen already are found again.

    Raises:
        UnavailableError: when database or store do not answer.
    """
    store = Store.of(settings)
    latest = corrections.latest(settings)
    table = corrections.frozen(settings, upto=latest)
    sha256 = _sha256(table)
    name = f"a{latest:06d}-{sha256[:12]}"
    if not store.exists(_key(name)):
        store.write_table(_key(name), table.replace_schema_metadata({"sha256": sha256}))
    return Snapshot(
        name=name,
        sha256=sha256,
        latest=latest,
        answers=corrections.in_force(table).num_rows,
        weak=corrections.weak(table).num_rows,
        new=corrections.changed(table, used(store)),
    )


def read(store: Store, name: str) -> pa.Table:
    """The answers of one snapshot, schema ``ANSWERS``, by number.

    Raises:
        WwtsError: when there is none of that name, or it is not what was frozen.
    """
    # The name may come from a form: nothing else than a name becomes a path.
    if not _NAME.fullmatch(name):
        raise WwtsError(f"{name!r} is no name of frozen answers; it reads like a000123-0123456789ab.")
    try:
        table = store.read_table(_key(name))
    except FileNotFoundError:
        raise WwtsError(f"There are no frozen answers {name}; freeze them again.") from None
    stated = (table.schema.metadata or {}).get(b"sha256", b"").decode()
    if table.schema.names != ANSWERS.names or stated[:12] != name[-12:] or _sha256(table) != stated:
        raise WwtsError(f"{store.path(_key(name))} is damaged (its SHA-256 differs); delete it and freeze again.")
    return table.cast(ANSWERS)


def used(store: Store) -> int:
    """Number of the newest answer that a training has used; 0 before the first."""
    pointer = store.read_pointer(STATE)
    return int(pointer.value.get("answers", 0)) if pointer else 0


def mark_used(store: Store, latest: int) -> None:
    """Notes that a training has used all answers up to ``latest``; never goes back.

    Raises:
        UnavailableError: when others write the state all the time.
    """
    for _ in range(_TRIES):
        pointer = store.read_pointer(STATE)
        value = pointer.value if pointer else {}
        if int(value.get("answers", 0)) >= latest:
            return
        if store.replace_pointer(STATE, {**value, "answers": latest}, pointer):
            return
    raise UnavailableError(f"{store.path(STATE)} is changed faster than we can note what was used; run again later.")


def _key(name: str) -> str:
    return f"trainings/answers/{name}.parquet"


def _sha256(table: pa.Table) -> str:
    """Over values, not over a file's bytes: another version of Arrow may write those otherwise."""
    flat = table.select(ANSWERS.names)
    for place, field in enumerate(ANSWERS):
        if pa.types.is_list(field.type):
            texts = [json.dumps(value, ensure_ascii=False) for value in flat[field.name].to_pylist()]
            flat = flat.set_column(place, field.name, pa.array(texts, pa.string()))
    return digest.sha256("\n".join(ANSWERS.names).encode(), flat)
