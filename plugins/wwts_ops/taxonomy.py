"""The taxonomy: names, synonyms, category paths, forced-review and switched-off labels, versioned in the store.

``taxonomy/<version>/taxonomy.parquet`` never changes once written; ``taxonomy/current.json`` names the version in
force. A Chinese name is never a key: labels are known by ``label_id``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from wwts_ops.errors import WwtsError
from wwts_ops.schemas import MAPPED_TAXONOMY

if TYPE_CHECKING:
    from wwts_ops.storage import Pointer, Store

#: Names the version in force.
POINTER = "taxonomy/current.json"
CSV_COLUMNS = ("label_id", "label_zh", "label_en", "synonyms_zh", "category_path")


class ChangedError(WwtsError):
    """The version in force is no longer the one that a change was made from."""


@dataclass(frozen=True)
class Label:
    """One label.

    Attributes:
        label_id: what it is known by, for ever.
        label_zh, label_en: its names.
        synonyms_zh: joined by ``|``.
        category_path: levels joined by `` > ``.
        forced_review: a person always looks.
        enabled: False: it is never given.
        maps_to: the id of the label that is given in its stead; empty: none.
    """

    label_id: str
    label_zh: str
    label_en: str = ""
    synonyms_zh: str = ""
    category_path: str = ""
    forced_review: bool = False
    enabled: bool = True
    maps_to: str = ""


_NO_LABELS: Mapping[str, Label] = MappingProxyType({})


@dataclass(frozen=True)
class Taxonomy:
    """All labels of one version; ``forced_categories`` are path prefixes a person always sees."""

    version: str
    labels: tuple[Label, ...]
    forced_categories: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Label]:
        """Labels by ``label_id``."""
        return {label.label_id: label for label in self.labels}

    def given(self, label_id: str) -> str:
        """The id of the label that is given where this one is meant: what it maps to, else itself."""
        label = self.by_id.get(label_id)
        return label_id if label is None else label.maps_to or label_id

    @cached_property
    def _standing_for(self) -> dict[str, list[Label]]:
        """The labels that map to each label."""
        found: dict[str, list[Label]] = {}
        for label in self.labels:
            if label.maps_to:
                found.setdefault(label.maps_to, []).append(label)
        return found

    def forced_reason(self, label_id: str) -> str | None:
        """Why a person must see this label (``forced_label`` or ``forced_category:<path>``), or None.

        A label is forced, too, by what forces any label that maps to it: what a person always saw is not let through
        because it goes by another name.
        """
        label = self.by_id.get(label_id)
        meant = [] if label is None else [label]
        reasons = map(self._own_reason, meant + self._standing_for.get(label_id, []))
        return next((reason for reason in reasons if reason is not None), None)

    def _own_reason(self, label: Label) -> str | None:
        if label.forced_review:
            return "forced_label"
        for category in self.forced_categories:
            if label.category_path == category or label.category_path.startswith(f"{category} > "):
                return f"forced_category:{category}"
        return None


def embedded_labels() -> tuple[Label, ...]:
    """The 1,000 labels of the embedded default, in the order of its head."""
    return from_csv(files("wwts_ops").joinpath("data/labels_zh.csv").read_bytes())


def current(store: Store) -> Taxonomy | None:
    """The version in force, or None before the first night."""
    pointer = store.read_pointer(POINTER)
    return None if pointer is None else read(store, str(pointer.value["version"]))


def read(store: Store, version: str) -> Taxonomy:
    """One version.

    Raises:
        FileNotFoundError: when there is none of that name.
    """
    table = store.read_table(f"taxonomy/{version}/taxonomy.parquet")
    forced = (table.schema.metadata or {}).get(b"forced_categories", b"").decode()
    known = table.select([name for name in MAPPED_TAXONOMY.names if name in table.column_names])
    # An empty text may be null, and a version from before there was `maps_to` has none.
    rows = ({name: value for name, value in row.items() if value is not None} for row in known.to_pylist())
    labels = tuple(Label(**row) for row in rows)
    return Taxonomy(version, labels, tuple(part for part in forced.split("\n") if part))


def embedded(forced_review: tuple[str, ...]) -> Taxonomy:
    """The embedded labels with ``forced_review`` (label ids and path prefixes) in force, not yet in any store."""
    labels = embedded_labels()
    known = {label.label_id for label in labels}
    return Taxonomy(
        "embedded",
        tuple(replace(label, forced_review=label.label_id in forced_review) for label in labels),
        tuple(path_of(entry) for entry in forced_review if entry not in known),
    )


def ensure(store: Store, forced_review: tuple[str, ...]) -> Taxonomy:
    """The version in force; on the first night, the embedded labels with ``forced_review`` in force."""
    found = current(store)
    if found is not None:
        return found
    try:
        return put(store, embedded(forced_review), author="wwts", expected=None)
    except ChangedError:
        # Another night began at the same moment and was first.
        return ensure(store, forced_review)


def put(store: Store, taxonomy: Taxonomy, author: str, expected: Pointer | None, note: str = "") -> Taxonomy:
    """Writes ``taxonomy`` as a new version and puts it in force.

    Who made it, when (UTC), from which version and ``note`` stand in the schema metadata of its table, and so outlive
    the pointer.

    Raises:
        WwtsError: when it contradicts itself.
        ChangedError: when the version in force is no longer ``expected``.
    """
    check(taxonomy.labels)
    number = (expected.sequence if expected else 0) + 1
    previous = str(expected.value["version"]) if expected else None
    table = pa.Table.from_pylist([vars(label) for label in taxonomy.labels], schema=MAPPED_TAXONOMY)
    about = {"author": author, "made_at": datetime.now(UTC).isoformat(), "previous": previous or "", "note": note}
    table = table.replace_schema_metadata({"forced_categories": "\n".join(taxonomy.forced_categories), **about})
    # Two people who make the same change at once write a table each: one of them gets the pointer, and the credit.
    version = f"t{number:06d}-{_digest(taxonomy, author)[:12]}"
    store.write_table(f"taxonomy/{version}/taxonomy.parquet", table)
    pointer = {"version": version, "author": author, "previous": previous}
    if not store.replace_pointer(POINTER, pointer, expected):
        raise ChangedError("Somebody else changed the taxonomy meanwhile; look at their change and try again.")
    return replace(taxonomy, version=version)


def edit(store: Store, author: str, changes: dict[str, Label]) -> Taxonomy:
    """Puts ``changes`` (by ``label_id``, new or replacing) in force as a new version.

    Raises:
        WwtsError: before the first night, or as :func:`put`.
    """
    pointer = store.read_pointer(POINTER)
    if pointer is None:
        raise WwtsError("There is no taxonomy yet; run `wwts init` first.")
    before = read(store, str(pointer.value["version"]))
    kept = tuple(changes.get(label.label_id, label) for label in before.labels)
    added = tuple(label for label_id, label in changes.items() if label_id not in before.by_id)
    return put(store, replace(before, labels=kept + added), author, pointer)


def add(store: Store, author: str, labels: Iterable[Label]) -> tuple[str, ...]:
    """Puts those of ``labels`` whose id is not there yet in force as a new version; what is there stays as it is.

    Returns:
        The ids that were added.

    Raises:
        WwtsError: before the first night, or as :func:`put`.
    """
    pointer = store.read_pointer(POINTER)
    if pointer is None:
        raise WwtsError("There is no taxonomy yet; run `wwts init` first.")
    before = read(store, str(pointer.value["version"]))
    added = tuple(label for label in labels if label.label_id not in before.by_id)
    if added:
        put(store, replace(before, labels=before.labels + added), author, pointer)
    return tuple(label.label_id for label in added)


def check(labels: Iterable[Label]) -> None:
    """Refuses duplicate ids, empty names and malformed paths (no forced category would match those), naming the label.

    Raises:
        WwtsError: for the first fault found.
    """
    seen: set[str] = set()
    for label in labels:
        if not label.label_id or label.label_id in seen:
            raise WwtsError(
                f"label_id {label.label_id!r} is empty or occurs twice; every label needs an id of its own."
            )
        if not label.label_zh.strip():
            raise WwtsError(f"Label {label.label_id} has no Chinese name; fill in label_zh.")
        path = label.category_path
        if path and (path != path_of(path) or not all(path.split(" > "))):
            raise WwtsError(
                f"Label {label.label_id}: category_path {path!r} must read 一级 > 二级 > 三级, no level empty."
            )
        seen.add(label.label_id)


def path_of(text: str) -> str:
    """``text`` with its levels joined by `` > ``, however people type that."""
    return " > ".join(part.strip() for part in re.split("[>＞]", text))


def to_csv(taxonomy: Taxonomy) -> bytes:
    """All labels as CSV with a byte-order mark, which Chinese Excel needs."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*CSV_COLUMNS, "forced_review", "enabled", "maps_to"], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(vars(label) for label in taxonomy.labels)
    return out.getvalue().encode("utf-8-sig")


def from_csv(data: bytes, before: Mapping[str, Label] = _NO_LABELS) -> tuple[Label, ...]:
    """Labels from CSV as :func:`to_csv` writes it.

    ``forced_review``, ``enabled`` and ``maps_to`` may be left out or empty: they are then those of the label
    ``before``, since a file of names must not lift what somebody forbade; of a new label, false, true and none.

    Raises:
        WwtsError: naming the line, when it is no CSV, a column is missing, or a flag is neither true nor false.
    """
    reader = csv.DictReader(io.StringIO(_text(data), newline=""))
    try:
        missing = [name for name in CSV_COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise WwtsError(f"The label file lacks the column(s) {', '.join(missing)}.")
        labels = tuple(_label(row, reader.line_num, before) for row in reader)
    except csv.Error as error:
        raise WwtsError(f"The label file is no CSV, after line {reader.line_num}: {error}.") from error
    check(labels)
    return labels


def _text(data: bytes) -> str:
    # Chinese Excel saves its plain "CSV" in GB18030.
    for encoding in ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    raise WwtsError('The label file is neither UTF-8 nor GB18030 text; in Excel, save it as "CSV UTF-8".')


def _label(row: dict[str, str], line: int, before: Mapping[str, Label]) -> Label:
    texts = {name: (row[name] or "").strip() for name in CSV_COLUMNS}
    texts["category_path"] = path_of(texts["category_path"])
    old = before.get(texts["label_id"], Label("", ""))
    return Label(
        **texts,
        forced_review=_flag(row.get("forced_review") or str(old.forced_review), line),
        enabled=_flag(row.get("enabled") or str(old.enabled), line),
        maps_to=(row.get("maps_to") or old.maps_to).strip(),
    )


def _flag(text: str, line: int) -> bool:
    try:
        return {"true": True, "false": False, "1": True, "0": False}[text.strip().lower()]
    except KeyError:
        raise WwtsError(f"Line {line}: {text!r} is neither true nor false.") from None


def _digest(taxonomy: Taxonomy, author: str) -> str:
    content = to_csv(taxonomy) + "\n".join([*taxonomy.forced_categories, "", author]).encode()
    return hashlib.sha256(content).hexdigest()
