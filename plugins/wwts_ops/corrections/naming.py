"""The labels that drafts name: found in the taxonomy, or new ones that the file itself introduces."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from wwts_ops import sheets
from wwts_ops.corrections.drafts import Draft
from wwts_ops.errors import WwtsError
from wwts_ops.taxonomy import Label, Taxonomy
from wwts_ops.taxonomy_changes import checks
from wwts_ops.taxonomy_changes.faults import FaultError

#: What ids of the embedded labels begin with; a new one there would be a slip of the hand.
_EMBEDDED = "imagenet:"
_DETAILS = ("label_zh", "label_en", "synonyms_zh", "category_path")


class Names:
    """Finds labels as people write them.

    Args:
        known: the taxonomy in force.
        drafts: all rows of a file: a label that is not in force is new when they name it, and agree on it.
    """

    def __init__(self, known: Taxonomy, drafts: Iterable[Draft]) -> None:
        self._known = known
        self._written = {_plain(label.label_id): label.label_id for label in known.labels}
        self._details: dict[str, dict[str, set[str]]] = {}
        for draft in drafts:
            self._note(draft)
        self._new = {label_id: label for label_id in self._details if (label := self._made(label_id)) is not None}
        self._by_name: dict[str, list[Label]] = defaultdict(list)
        self._by_synonym: dict[str, list[Label]] = defaultdict(list)
        for label in (*known.labels, *self._new.values()):
            self._by_name[_plain(label.label_zh)].append(label)
            for synonym in sheets.parts(label.synonyms_zh):
                self._by_synonym[_plain(synonym)].append(label)

    def label_ids(self, draft: Draft) -> tuple[str, ...]:
        """The labels of a draft, the primary first; they may be new.

        Raises:
            WwtsError: when one is unknown, ambiguous, contradictory or switched off.
        """
        if not draft.label_ids:
            found = [self._named(name) for name in draft.names]
        else:
            found = [self._identified(label_id) for label_id in draft.label_ids]
            for label, name in zip(found, draft.names, strict=False):
                _check_name(label, name)
        for label in found:
            if not label.enabled:
                shown = f"{label.label_zh} {label.label_id}"
                raise WwtsError(f"label {shown} is switched off; `wwts taxonomy set {label.label_id} --on` first")
        return tuple(dict.fromkeys(label.label_id for label in found))

    def new(self, label_ids: Iterable[str]) -> list[Label]:
        """Those of ``label_ids`` that are not in force, in the order of the file."""
        wanted = set(label_ids)
        return [label for label_id, label in self._new.items() if label_id in wanted]

    def shown(self, label_ids: Iterable[str]) -> str:
        """Names and ids as people read them."""
        labels = {**self._known.by_id, **self._new}
        return ", ".join(f"{labels[one].label_zh} {one}" if one in labels else one for one in label_ids)

    def _note(self, draft: Draft) -> None:
        for place, label_id in enumerate(draft.label_ids):
            if label_id in self._known.by_id:
                continue
            details = self._details.setdefault(label_id, {name: set() for name in _DETAILS})
            if place < len(draft.names):
                details["label_zh"].add(draft.names[place])
            if place == 0:
                for name in _DETAILS[1:]:
                    details[name].add(getattr(draft, name))

    def _made(self, label_id: str) -> Label | None:
        """The new label, or None while the rows do not agree or it could not be one."""
        try:
            self._check_new(label_id)
        except WwtsError:
            return None
        names: dict[str, Any] = {name: "".join(found - {""}) for name, found in self._details[label_id].items()}
        return Label(label_id, **names)

    def _check_new(self, label_id: str) -> None:
        details = {name: sorted(found - {""}) for name, found in self._details[label_id].items()}
        same = self._written.get(_plain(label_id))
        if same is not None:
            raise WwtsError(f"there is no label {label_id!r}; {same!r} is written almost like it")
        if not details["label_zh"]:
            raise WwtsError(
                f"there is no label {label_id!r}; fill in label_zh to make it, or see `wwts taxonomy export`"
            )
        for name, found in details.items():
            if len(found) > 1:
                each = " and ".join(repr(text) for text in found[:3])
                raise WwtsError(f"label {label_id!r} is new, and rows give it {name} {each}; they must agree")
        if label_id.startswith(_EMBEDDED):
            raise WwtsError(f"there is no label {label_id!r}; ids of yours must not begin with {_EMBEDDED}")
        texts: dict[str, Any] = {name: "".join(found) for name, found in details.items()}
        try:
            checks.check_alone(Label(label_id, **texts))
        except FaultError as error:
            raise WwtsError(error.english) from error

    def _identified(self, label_id: str) -> Label:
        label = self._known.by_id.get(label_id) or self._new.get(label_id)
        if label is None:
            self._check_new(label_id)
            raise WwtsError(f"there is no label {label_id!r}")
        return label

    def _named(self, name: str) -> Label:
        same = self._by_name.get(_plain(name)) or self._by_synonym.get(_plain(name), [])
        on = [label for label in same if label.enabled]
        if len(on) > 1:
            ids = ", ".join(label.label_id for label in on)
            raise WwtsError(f"{name!r} is the name of several labels ({ids}); fill in label_id")
        if not same:
            raise WwtsError(f"no label is called {name!r}; fill in label_id too to make it a new one")
        return (on or same)[0]


def _check_name(label: Label, name: str) -> None:
    """A name beside an id is only a check, for a column that slipped."""
    if _plain(name) not in {_plain(one) for one in (label.label_zh, *sheets.parts(label.synonyms_zh))}:
        raise WwtsError(
            f"label_id {label.label_id!r} is {label.label_zh!r}, not {name!r}; correct one, or empty label_zh"
        )


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
