"""Rows of text as drafts of bad cases: labels known, flags understood, nothing contradictory within a row."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wwts_ops.badcases.snapshots import MAX_REASON
from wwts_ops.digest import SHA256
from wwts_ops.errors import WwtsError
from wwts_ops.sheets import CONTROL, PICTURES, Row, parts
from wwts_ops.taxonomy import Taxonomy

#: Groups that measuring makes by itself.
RESERVED_SLICES = frozenset({"overall", "old_labels", "new_labels"})
MAX_CHARS = {"owner": 100, "reason": MAX_REASON, "slice": 64, "uri": 4096, "image_id": 2048}
MAX_PARTS = 50

_FLAGS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "是": True, "否": False}
_SHOWN_FAULTS = 200


@dataclass(frozen=True)
class Draft:
    """What a row says; None where it says nothing, or nothing that could be understood."""

    number: int
    place: str
    uri: str | None
    image_id: str | None
    content_sha256: str | None
    accepted: tuple[str, ...]
    forbidden: tuple[str, ...]
    slices: tuple[str, ...] | None
    owner: str | None
    reason: str | None
    never_regress: bool | None


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row.

    Attributes:
        text: for people, with the row's place.
        about: of a picture that cannot be had: a key of ``images.REASONS``, ``changed`` or ``unpublished``; ``case``:
            it contradicts one that is there; empty: what its cells say.
    """

    text: str
    about: str


class RefusedError(WwtsError):
    """Nothing was imported; ``rows`` has all that is wrong, by the number of the row."""

    def __init__(self, text: str, rows: Mapping[int, Sequence[Fault]]) -> None:
        super().__init__(text)
        self.rows = rows


class Faults:
    """What is wrong with which row; told all at once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: dict[int, list[Fault]] = defaultdict(list)

    def add(self, number: int, place: str, what: str, about: str = "") -> None:
        """Row ``number`` (from 0), known to people as ``place``, cannot be imported; ``about`` as in :class:`Fault`."""
        self._found[number].append(Fault(f"{_plain(place)}: {_plain(what)}.", about))

    def has(self, number: int) -> bool:
        """Whether anything is wrong with row ``number``."""
        return number in self._found

    def check(self) -> None:
        """Refuses the import when anything is wrong.

        Raises:
            RefusedError: with a line for each fault, in the order of the rows.
        """
        if not self._found:
            return
        count = len(self._found)
        lines = [fault.text for _, faults in sorted(self._found.items()) for fault in faults]
        more = [f"… and {len(lines) - _SHOWN_FAULTS:,} more."] if len(lines) > _SHOWN_FAULTS else []
        first = (
            f"{self._source}: nothing was imported; mend {count:,} row{'s' if count > 1 else ''} and import it again."
        )
        raise RefusedError("\n".join([first, *lines[:_SHOWN_FAULTS], *more]), dict(self._found))


def parse(rows: Iterable[Row], folder: Path | None, labels: Labels, faults: Faults) -> list[Draft]:
    """What the rows say; what is wrong with them goes to ``faults``.

    Args:
        rows: in the order of the file.
        folder: what a relative uri starts from; None when the rows are a folder's pictures, and so ``label_id`` the
            name of a subfolder.
        labels: the labels there are.
        faults: what is wrong is added to it.
    """
    drafts = []
    for number, row in enumerate(rows):
        if row.problem:
            faults.add(number, row.place, row.problem)
            continue
        parser = _Parser(row.cells, labels)
        drafts.append(parser.draft(number, row.place, folder))
        for problem in parser.problems:
            faults.add(number, row.place, problem)
    return drafts


class Labels:
    """The labels of a taxonomy, found as people write them."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_folder: dict[str, list[str]] = defaultdict(list)
        for label in taxonomy.labels:
            self._by_name[unicodedata.normalize("NFC", label.label_zh.strip())].append(label.label_id)
            self._by_folder[_folder_name(label.label_id)].append(label.label_id)

    def named(self, label_ids: Iterable[str]) -> str:
        """Names and ids as people read them."""
        known = self._taxonomy.by_id
        shown = (f"{known[one].label_zh} {one}" if one in known else one for one in label_ids)
        return ", ".join(shown) or "nothing"

    def known(self, text: str) -> str:
        """``text``, which is a label id.

        Raises:
            WwtsError: when it is none.
        """
        if text in self._taxonomy.by_id:
            return text
        same = self._by_name.get(text, [])
        hint = f"write its id, {' or '.join(same)}" if same else "see `wwts taxonomy export`"
        raise WwtsError(f"there is no label {text!r} in taxonomy {self._taxonomy.version}; {hint}")

    def of_folder(self, name: str) -> str:
        """The label id that a folder's name means: an id, ``:`` perhaps written otherwise, or a name only one has.

        Raises:
            WwtsError: when it means none or several.
        """
        if name in self._taxonomy.by_id:
            return name
        found = self._by_folder.get(_folder_name(name)) or self._by_name.get(name, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise WwtsError(f"the folder's name {name!r} may mean {' or '.join(found)}; name it by the id")
        return self.known(name)


class _Parser:
    """One row's cells, and all that is wrong with them."""

    def __init__(self, cells: Mapping[str, str], labels: Labels) -> None:
        self._cells = cells
        self._known = labels
        self.problems: list[str] = []

    def draft(self, number: int, place: str, folder: Path | None) -> Draft:
        """The draft; ``problems`` then says what is missing from it."""
        accepted = self._labels("label_id", self._known.of_folder if folder is None else self._known.known)
        forbidden = self._labels("forbidden", self._known.known)
        if not self._cells.keys() & {"label_id", "forbidden"}:
            self.problems.append("label_id is empty; say which label is right, or in forbidden which one is wrong")
        if both := sorted(set(accepted) & set(forbidden)):
            self.problems.append(f"{self._known.named(both)} is both accepted and forbidden")
        if not self._cells.keys() & set(PICTURES):
            self.problems.append("it names no picture; fill in uri, image_id or content_sha256")
        return Draft(
            number=number,
            place=place,
            uri=self._uri(folder),
            image_id=self._text("image_id"),
            content_sha256=self._sha256(),
            accepted=accepted,
            forbidden=forbidden,
            slices=self._slices(),
            owner=self._line("owner"),
            reason=self._line("reason"),
            never_regress=self._flag(),
        )

    def _parts(self, column: str) -> tuple[str, ...]:
        """The parts of a cell, each once, in their order."""
        found = parts(self._cells.get(column, ""))
        if len(found) > MAX_PARTS:
            self.problems.append(f"{column} holds {len(found)} parts; {MAX_PARTS} are the most")
            return ()
        if column in self._cells and not found:
            self.problems.append(f"{column} {self._cells[column]!r} names nothing")
        return found

    def _labels(self, column: str, find: Callable[[str], str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for part in self._parts(column):
            try:
                found[find(part)] = None
            except WwtsError as error:
                self.problems.append(str(error))
        return tuple(found)

    def _slices(self) -> tuple[str, ...] | None:
        found = self._parts("slice")
        for name in found:
            if name.casefold() in RESERVED_SLICES:
                self.problems.append(f"slice {name!r} is a group that is made by itself; choose another name")
            elif len(name) > MAX_CHARS["slice"] or CONTROL.search(name):
                most = MAX_CHARS["slice"]
                self.problems.append(f"slice {name[:most]!r} must be at most {most} characters that can be seen")
        return found or None

    def _text(self, column: str) -> str | None:
        text = self._cells.get(column)
        if text is None:
            return None
        if len(text) > MAX_CHARS[column]:
            self.problems.append(f"{column} has {len(text):,} characters; {MAX_CHARS[column]:,} are the most")
            return None
        if CONTROL.search(text):
            self.problems.append(f"{column} {text[:100]!r} holds a control character; remove it")
            return None
        return text

    def _line(self, column: str) -> str | None:
        if column in self._cells:  # people break lines within a cell
            self._cells = {**self._cells, column: " ".join(self._cells[column].split())}
        return self._text(column)

    def _uri(self, folder: Path | None) -> str | None:
        uri = self._text("uri")
        if uri is None or "://" in uri or folder is None:
            return uri
        return os.path.normpath(folder / uri)

    def _sha256(self) -> str | None:
        text = self._cells.get("content_sha256")
        if text is None or SHA256.fullmatch(text.lower()):
            return text and text.lower()
        self.problems.append(f"content_sha256 {text[:100]!r} must have 64 hex digits")
        return None

    def _flag(self) -> bool | None:
        text = self._cells.get("never_regress")
        if text is None:
            return None
        if text.casefold() not in _FLAGS:
            self.problems.append(f"never_regress {text[:100]!r} must be true or false (是 or 否)")
        return _FLAGS.get(text.casefold())


def _folder_name(label_id: str) -> str:
    """What a file system makes of a label id: many take no ``:``."""
    return re.sub("[:：/\\\\]", "_", unicodedata.normalize("NFC", label_id))


def _plain(text: str) -> str:
    return CONTROL.sub("�", text)
