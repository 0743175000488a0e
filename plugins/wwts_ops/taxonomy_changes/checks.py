"""What a taxonomy must not hold. Only what a change brings in is refused: a store may hold old faults."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from wwts_ops.sheets import CONTROL
from wwts_ops.taxonomy import Label, Taxonomy, path_of
from wwts_ops.taxonomy_changes.faults import FaultError

#: Levels of the tree of categories.
LEVELS = 3
#: Characters that a text may have, with its name on the page.
_LONGEST = {"label_zh": (100, "中文名"), "label_en": (200, "英文名"), "synonyms_zh": (2000, "同义词")}
_LONGEST_PATH = 500
_ID = re.compile(r"\S{1,200}")

#: What is wrong with whom, and what a sentence of it needs.
Key = tuple[str, ...]
Found = tuple[Key, dict[str, Any]]


def check(before: Taxonomy, after: Taxonomy) -> None:
    """Refuses faults of ``after`` that ``before`` has not.

    Raises:
        FaultError: the first of them.
    """
    known = {key for key, _ in _faults(before)}
    for key, about in _faults(after):
        if key not in known:
            raise FaultError(key[0], **about)


def check_alone(label: Label) -> None:
    """Refuses what no label may be called, whatever else there is.

    Raises:
        FaultError: the first fault.
    """
    for key, about in _texts(label):
        raise FaultError(key[0], **about)
    if label.category_path and not _is_path(label.category_path):
        raise FaultError("bad_path", path=label.category_path)


def _faults(names: Taxonomy) -> Iterator[Found]:
    seen: set[str] = set()
    for label in names.labels:
        if label.label_id in seen:
            yield ("twice", label.label_id), {"label": label.label_id}
        seen.add(label.label_id)
        yield from _texts(label)
        yield from _place(label)
        if label.maps_to:
            yield from _target(label, names)
    yield from _duplicates(names)
    for entry in names.forced_categories:
        if not _is_path(entry):
            yield ("bad_path", "forced", entry), {"path": entry}


def _texts(label: Label) -> Iterator[Found]:
    if not _ID.fullmatch(label.label_id) or CONTROL.search(label.label_id):
        yield ("bad_id", label.label_id), {"label": label.label_id}
    if not label.label_zh.strip():
        yield ("no_name", label.label_id), {"label": label.label_id}
    for field, (most, chinese) in _LONGEST.items():
        text = getattr(label, field)
        if len(text) > most or CONTROL.search(text):
            about = {"label": label.label_id, "field": field, "field_zh": chinese, "most": most}
            yield ("bad_text", label.label_id, field, text), about


def _place(label: Label) -> Iterator[Found]:
    if label.category_path:
        if not _is_path(label.category_path):
            yield ("bad_path", label.label_id, label.category_path), {"path": label.category_path}
    elif _is_given(label):
        yield ("no_category", label.label_id), {"label": shown(label)}


def _is_path(text: str) -> bool:
    levels = text.split(" > ")
    return (
        text == path_of(text)
        and all(levels)
        and len(levels) <= LEVELS
        and len(text) <= _LONGEST_PATH
        and not CONTROL.search(text)
    )


def _target(label: Label, names: Taxonomy) -> Iterator[Found]:
    target = names.by_id.get(label.maps_to)
    about = {"label": shown(label), "target": label.maps_to if target is None else shown(target)}
    key = (label.label_id, label.maps_to)
    if label.maps_to == label.label_id:
        yield ("maps_to_itself", *key), about
    elif target is None:
        yield ("maps_to_missing", *key), about
    elif target.maps_to:
        yield ("cycle" if _circles(label, names) else "maps_to_mapped", *key), about
    elif not target.enabled:
        yield ("maps_to_off", *key), about


def _circles(label: Label, names: Taxonomy) -> bool:
    """Whether following from ``label`` comes to a label for the second time."""
    seen: set[str] = set()
    found: Label | None = label
    while found is not None and found.maps_to and found.label_id not in seen:
        seen.add(found.label_id)
        found = names.by_id.get(found.maps_to)
    return found is not None and found.label_id in seen


def _duplicates(names: Taxonomy) -> Iterator[Found]:
    """Labels that people could not tell apart: what is off or maps elsewhere is never shown to them."""
    same: dict[tuple[str, str], list[Label]] = defaultdict(list)
    for label in names.labels:
        if _is_given(label):
            same[label.category_path, _alike(label.label_zh)].append(label)
    for (path, alike), labels in same.items():
        if len(labels) > 1:
            ids = ", ".join(label.label_id for label in labels[:5])
            about = {"path": path or "—", "name": labels[0].label_zh, "label": ids}
            for label in labels:
                yield ("duplicate", path, alike, label.label_id), about


def _alike(name: str) -> str:
    seen = "".join(one for one in name if unicodedata.category(one) != "Cf")
    return unicodedata.normalize("NFKC", seen).casefold().strip()


def _is_given(label: Label) -> bool:
    return label.enabled and not label.maps_to


def shown(label: Label) -> str:
    """A label as people know it."""
    return f"{label.label_zh} {label.label_id}"
