"""Retags: tags of stored embeddings by another head, and the pointer to the one that consumers read.

A retag is a folder ``retags/<key>/``:

- ``plan.json``: what it covers and what it was made with (the fields of :class:`Retag` but ``key``);
- ``part-<00000>.parquet``, one a shard: schema ``RETAGGED``; a content is in a part at most once, and where several
  parts hold it, the lowest part counts;
- ``shard-<00000>.json``: a shard is done;
- ``done.json``: all of them are.

It is written by ``retagging`` and never changes once done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from wwts_ops.errors import WwtsError
from wwts_ops.storage import Pointer, Store

#: Its value is ``{"retag": key, "distrusted": [model_sha256, …]}``; the key is None where consumers read what the
#: nights wrote. What is distrusted is so whatever is in force: whoever goes back takes it along.
POINTER = "retags/current.json"
_TUPLES = frozenset({"parts", "distrusted"})


@dataclass(frozen=True)
class Retag:
    """One retag.

    Attributes:
        key: names its folder.
        sequence: the highest plan sequence whose rows it covers.
        model_name, model_version, model_sha256, backbone_sha256, code_sha256: what tagged.
        taxonomy_version: by which names, paths and rules.
        git_sha: of the code that tagged; None when unknown.
        planned_at: ISO 8601, UTC.
        parts: keys of the embedding parts that were read, in order.
        shards: how many parts of its own it has.
        images: contents that it covers.
        missing: contents of the catalog without an embedding by this backbone.
        distrusted: ``model_sha256`` of the versions that were rolled back from; their tags are never the last live one.
    """

    key: str
    sequence: int
    model_name: str
    model_version: str
    model_sha256: str
    backbone_sha256: str
    code_sha256: str
    taxonomy_version: str
    git_sha: str | None
    planned_at: str
    parts: tuple[str, ...]
    shards: int
    images: int
    missing: int
    distrusted: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """The store keys of its rows, in the order in which they count."""
        return tuple(part_key(self.key, number) for number in range(self.shards))

    def plain(self) -> dict[str, Any]:
        """The JSON object of ``plan.json``."""
        return {name: value for name, value in asdict(self).items() if name != "key"}


def is_key(name: str) -> bool:
    """Whether ``name`` is a retag's, not a night's, which begins with its date."""
    return name.startswith("r")


def plan_key(key: str) -> str:
    """The store key of what a retag will do."""
    return f"retags/{key}/plan.json"


def part_key(key: str, number: int) -> str:
    """The store key of the rows of one shard."""
    return f"retags/{key}/part-{number:05d}.parquet"


def marker_key(key: str, number: int) -> str:
    """The store key that says that one shard is done."""
    return f"retags/{key}/shard-{number:05d}.json"


def done_key(key: str) -> str:
    """The store key that says that the whole retag is done."""
    return f"retags/{key}/done.json"


def read(store: Store, key: str) -> Retag:
    """The retag ``key``, done or not.

    Raises:
        WwtsError: when there is none, or its plan is damaged.
    """
    try:
        found = store.read_json(plan_key(key))
    except FileNotFoundError:
        raise WwtsError(f"There is no retag {key} in {store.root}; run the DAG retag_catalog.") from None
    names = {field.name for field in fields(Retag)} - {"key"}
    given: dict[str, Any] = {
        name: tuple(value) if name in _TUPLES else value for name, value in found.items() if name in names
    }
    try:
        return Retag(key, **given)
    except TypeError as error:
        raise WwtsError(f"{store.path(plan_key(key))} is damaged ({error}); run the DAG retag_catalog.") from error


def current(store: Store) -> Pointer | None:
    """The pointer to the retag in force, or None before the first."""
    return store.read_pointer(POINTER)


def in_force(store: Store) -> Retag | None:
    """The retag that consumers read, or None where they read what the nights wrote.

    Raises:
        WwtsError: when its files are gone.
    """
    return _named(store, current(store))


def standing(store: Store) -> tuple[Retag | None, tuple[str, ...]]:
    """The retag in force, and the ``model_sha256`` of versions whose tags are never the last live one; sorted.

    Raises:
        WwtsError: when its files are gone.
    """
    pointer = current(store)
    retag = _named(store, pointer)
    return retag, _distrusted(pointer, retag)


def put_in_force(
    store: Store, key: str | None, expected: Pointer | None, distrusted: Iterable[str] | None = None
) -> bool:
    """Makes ``key`` (None: none at all) the retag in force; False when it is no longer ``expected`` that is.

    Args:
        store: of the shop.
        key: of a retag that is done.
        expected: the pointer as it was read.
        distrusted: ``model_sha256`` of versions that are never the last live one. None: what the retag says, which
            knows all rollbacks of before it was planned; without a retag, what ``expected`` says.

    Raises:
        WwtsError: when that retag is not done.
    """
    if key is not None and not store.exists(done_key(key)):
        raise WwtsError(f"Retag {key} is not whole in {store.root}; run the DAG retag_catalog.")
    if distrusted is None:
        distrusted = _distrusted(expected, _named(store, expected)) if key is None else read(store, key).distrusted
    value = {"retag": key, "distrusted": sorted(distrusted)}
    if expected is not None and {name: expected.value.get(name) for name in value} == value:
        return True
    return store.replace_pointer(POINTER, value, expected)


def _named(store: Store, pointer: Pointer | None) -> Retag | None:
    key = None if pointer is None else pointer.value["retag"]
    return None if key is None else read(store, str(key))


def _distrusted(pointer: Pointer | None, retag: Retag | None) -> tuple[str, ...]:
    """What a pointer says of that; one of before it did, what its retag says."""
    said = None if pointer is None else pointer.value.get("distrusted")
    if said is None:
        said = () if retag is None else retag.distrusted
    return tuple(sorted(said))
