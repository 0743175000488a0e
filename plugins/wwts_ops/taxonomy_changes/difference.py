"""What changed from one taxonomy to another, a row a field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from wwts_ops.taxonomy import Label, Taxonomy

#: Fields of a difference that are no fields of a label: it came or went; why a person always looks at it; a category
#: that is forced as a whole.
ADDED, REMOVED, FORCED_BY, FORCED_CATEGORY = "added", "removed", "forced_by", "forced_category"
_FIELDS = tuple(field.name for field in fields(Label) if field.name != "label_id")


@dataclass(frozen=True)
class Difference:
    """One field that changed. ``label_id`` and ``label_zh`` (as it is now) are empty where it is of no label."""

    label_id: str
    label_zh: str
    field: str
    before: str
    after: str


def diff(before: Taxonomy, after: Taxonomy) -> list[Difference]:
    """All that changed, labels in the order of ``after``."""
    found = [row for label in after.labels for row in _of(before, after, label)]
    gone = (label for label in before.labels if label.label_id not in after.by_id)
    found.extend(Difference(label.label_id, label.label_zh, REMOVED, label.category_path, "") for label in gone)
    for entry in (*before.forced_categories, *after.forced_categories):
        was, now = entry in before.forced_categories, entry in after.forced_categories
        if was != now:
            found.append(Difference("", "", FORCED_CATEGORY, entry if was else "", entry if now else ""))
    return found


def counts(found: Iterable[Difference]) -> dict[str, int]:
    """How many differences there are of each field."""
    return dict(Counter(row.field for row in found))


def _of(before: Taxonomy, after: Taxonomy, label: Label) -> Iterator[Difference]:
    old = before.by_id.get(label.label_id)
    if old is None:
        yield Difference(label.label_id, label.label_zh, ADDED, "", label.category_path)
        return
    if old != label:
        for field in _FIELDS:
            values = _text(getattr(old, field)), _text(getattr(label, field))
            if values[0] != values[1]:
                yield Difference(label.label_id, label.label_zh, field, *values)
    was, now = before.forced_reason(label.label_id) or "", after.forced_reason(label.label_id) or ""
    if bool(was) != bool(now):
        yield Difference(label.label_id, label.label_zh, FORCED_BY, was, now)


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value).lower()
