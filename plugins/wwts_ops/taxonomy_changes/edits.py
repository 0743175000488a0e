"""Changes to a taxonomy: each makes another taxonomy of one. What they make is not yet checked."""

from __future__ import annotations

import hashlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wwts_ops import sheets, taxonomy
from wwts_ops.taxonomy import Label, Taxonomy
from wwts_ops.taxonomy_changes.faults import FaultError

Edit = Callable[[Taxonomy], Taxonomy]

_Text = Annotated[str, Field(max_length=2000)]
_Id = Annotated[str, Field(max_length=400)]
_Ids = Annotated[tuple[_Id, ...], Field(min_length=1, max_length=20_000)]


class _Change(BaseModel, ABC):
    """One change. ``label_id`` names the label it is made to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @abstractmethod
    def applied(self, names: Taxonomy) -> Taxonomy:
        """``names`` with this change.

        Raises:
            FaultError: when it speaks of labels or categories that are not there.
        """


class Add(_Change):
    """A new label. Without a ``label_id`` it gets one that is made of its name."""

    op: Literal["add"] = "add"
    label_id: _Id = ""
    label_zh: _Text
    label_en: _Text = ""
    synonyms_zh: _Text = ""
    category_path: _Text
    forced_review: bool = False

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        name = plain(self.label_zh)
        label = Label(
            self.label_id.strip() or new_id(names, name),
            name,
            plain(self.label_en),
            joined(self.synonyms_zh, name),
            path_of(self.category_path),
            self.forced_review,
        )
        if label.label_id in names.by_id:
            raise FaultError("twice", label=label.label_id)
        return replace(names, labels=(*names.labels, label))


class Rename(_Change):
    """Another name; the id stays. What is left out stays as it is."""

    op: Literal["rename"] = "rename"
    label_id: _Id
    label_zh: _Text | None = None
    label_en: _Text | None = None

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        given = {"label_zh": self.label_zh, "label_en": self.label_en}
        texts: dict[str, Any] = {field: plain(text) for field, text in given.items() if text is not None}
        return _changed(names, [self.label_id], lambda label: replace(label, **texts))


class Synonyms(_Change):
    """Other words for a label, joined by ``|``: all of them."""

    op: Literal["synonyms"] = "synonyms"
    label_id: _Id
    synonyms_zh: _Text

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        return _changed(
            names,
            [self.label_id],
            lambda label: replace(label, synonyms_zh=joined(self.synonyms_zh, label.label_zh)),
        )


class Move(_Change):
    """Labels into a category."""

    op: Literal["move"] = "move"
    label_ids: _Ids
    category_path: _Text

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        target = path_of(self.category_path)
        return _changed(names, self.label_ids, lambda label: replace(label, category_path=target))


class MoveCategory(_Change):
    """A category with all below it, to another place or under another name; forced ones stay forced."""

    op: Literal["move_category"] = "move_category"
    category_path: _Text
    to: _Text

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        old, new = path_of(self.category_path), path_of(self.to)
        if not new:
            raise FaultError("bad_path", path=self.to)
        if _is_below(new, old) and new != old:
            raise FaultError("below_itself", path=old, target=new)
        moved = {label.label_id for label in names.labels if _is_below(label.category_path, old)}
        if not moved:
            raise FaultError("unknown_category", path=old)

        def there(text: str) -> str:
            return new + text[len(old) :] if _is_below(text, old) else text

        after = _changed(names, moved, lambda label: replace(label, category_path=there(label.category_path)))
        return replace(after, forced_categories=_once(there(entry) for entry in names.forced_categories))


class Merge(_Change):
    """Labels into one: they are switched off, tags of them become tags of it, and their names its synonyms."""

    op: Literal["merge"] = "merge"
    label_ids: _Ids
    into: _Id

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        sources = tuple(dict.fromkeys(self.label_ids))
        *merged, target = _found(names, (*sources, self.into))
        after = _changed(_mapped(names, sources, target), sources, lambda label: replace(label, enabled=False))
        words = (target.synonyms_zh, *(word for label in merged for word in (label.label_zh, label.synonyms_zh)))
        synonyms = joined("|".join(words), target.label_zh)
        return _changed(after, [target.label_id], lambda label: replace(label, synonyms_zh=synonyms))


class Map(_Change):
    """A label's tags become tags of another; empty: no longer."""

    op: Literal["map"] = "map"
    label_id: _Id
    maps_to: _Id

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        if not self.maps_to:
            return _changed(names, [self.label_id], lambda label: replace(label, maps_to=""))
        _, target = _found(names, [self.label_id, self.maps_to])
        return _mapped(names, [self.label_id], target)


class Force(_Change):
    """Whether a person always looks at what gets these labels."""

    op: Literal["force"] = "force"
    label_ids: _Ids
    forced_review: bool

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        return _changed(names, self.label_ids, lambda label: replace(label, forced_review=self.forced_review))


class ForceCategory(_Change):
    """Whether a person always looks at what gets labels of a category."""

    op: Literal["force_category"] = "force_category"
    category_path: _Text
    forced_review: bool

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        entry = path_of(self.category_path)
        if not self.forced_review:
            others = tuple(each for each in names.forced_categories if each != entry)
            return replace(names, forced_categories=others)
        if not any(_is_below(label.category_path, entry) for label in names.labels):
            raise FaultError("unknown_category", path=entry)
        return replace(names, forced_categories=_once((*names.forced_categories, entry)))


class Enable(_Change):
    """Whether labels are given at all."""

    op: Literal["enable"] = "enable"
    label_ids: _Ids
    enabled: bool

    def applied(self, names: Taxonomy) -> Taxonomy:
        """See :class:`_Change`."""
        return _changed(names, self.label_ids, lambda label: replace(label, enabled=self.enabled))


#: Any of them; as JSON, ``op`` tells them apart.
Change = Annotated[
    Add | Rename | Synonyms | Move | MoveCategory | Merge | Map | Force | ForceCategory | Enable,
    Field(discriminator="op"),
]


def edited(names: Taxonomy, changes: Iterable[Change]) -> Taxonomy:
    """``names`` with all ``changes``, one after the other.

    Raises:
        FaultError: when one of them speaks of what is not there; what they make is not looked at.
    """
    for change in changes:
        names = change.applied(names)
    return names


def new_id(names: Taxonomy, label_zh: str) -> str:
    """An id for a new label, the same whenever asked of the same taxonomy."""
    digest = hashlib.sha256(label_zh.encode()).hexdigest()[:12]
    wanted, number = f"shop:{digest}", 1
    while wanted in names.by_id:
        number += 1
        wanted = f"shop:{digest}-{number}"
    return wanted


def plain(text: str) -> str:
    """A name as it is kept: without what nobody sees, such as a zero-width space; emoji may be joined by one."""
    pairs = pairwise(f"{unicodedata.normalize('NFC', text)} ")
    return "".join(one for one, after in pairs if not _is_hidden(one) or _joins(one, after)).strip()


def path_of(text: str) -> str:
    """A category path as it is kept; empty for none."""
    text = plain(text)
    return taxonomy.path_of(text) if text else ""


def joined(text: str, name: str) -> str:
    """Synonyms as they are kept: each once, without ``name`` itself."""
    return "|".join(word for word in sheets.parts(plain(text)) if word != name)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) == "Cf"


def _joins(character: str, following: str) -> bool:
    return character == "\u200d" and unicodedata.category(following) == "So"


def _is_below(text: str, category: str) -> bool:
    """Whether a path is ``category`` or inside of it."""
    return bool(category) and (text == category or text.startswith(f"{category} > "))


def _once(entries: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entries))


def _found(names: Taxonomy, label_ids: Iterable[str]) -> list[Label]:
    """The labels of ``label_ids``, one each."""
    found = []
    for label_id in label_ids:
        if label_id not in names.by_id:
            raise FaultError("unknown_label", label=label_id)
        found.append(names.by_id[label_id])
    return found


def _changed(names: Taxonomy, label_ids: Iterable[str], change: Callable[[Label], Label]) -> Taxonomy:
    changed: Mapping[str, Label] = {label.label_id: change(label) for label in _found(names, label_ids)}
    return replace(names, labels=tuple(changed.get(label.label_id, label) for label in names.labels))


def _mapped(names: Taxonomy, sources: Collection[str], target: Label) -> Taxonomy:
    """``names`` where the labels ``sources`` map to ``target``, and so does what mapped to them."""
    if target.label_id in sources:
        raise FaultError("maps_to_itself", label=f"{target.label_zh} {target.label_id}")
    wanted = set(sources)
    moved = [label.label_id for label in names.labels if label.maps_to in wanted and label is not target]
    after = _changed(names, [*wanted, *moved], lambda label: replace(label, maps_to=target.label_id))
    # A taxonomy forces the target as long as they map to it. Packed code from before there were mappings knows
    # nothing of that, and sees by the label's own mark that a person must look.
    if any(map(names.forced_reason, sources)) and not names.forced_reason(target.label_id):
        after = _changed(after, [target.label_id], lambda label: replace(label, forced_review=True))
    return after
