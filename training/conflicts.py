"""Answers that contradict each other: found and listed for people, never silently averaged."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.places import NOWHERE, Place
from wwts_ops import corrections, neardup, sheets
from wwts_ops.taxonomy import Taxonomy

Array = np.ndarray[Any, Any]

PEOPLE: Final = "people"
COPIES: Final = "copies"
SUSPECT: Final = "suspect"
_KINDS_ZH = {PEOPLE: "同一张图，不同的人回答不同", COPIES: "几乎相同的图，标签不同", SUSPECT: "疑似标错"}
_ANSWERS_ZH = {"wrong_unknown": "（标签不对，正确的不知道）", "reject_image": "（图片有问题）"}
_HEADER = ["序号", "类型", "图片编号", "图片地址", "内容 SHA-256", "标签", "标签名", "回答人", "回答时间（UTC）"]
_HEADER += ["更像的标签", "更像的标签名", "所给标签的概率"]

#: A label with fewer answers is unlike itself wherever it is predicted from the others: it says nothing of its answers.
_FEW: Final = 5
#: Probabilities are sums of float32.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Said:
    """One answer of a conflict: who said what of which picture, and when.

    Attributes:
        content_sha256: of the picture.
        label_id: the primary label; None when the answer was none.
        kind: of the answer, such as ``correct``.
        by: who.
        at: UTC; None when unknown.
        image_id: of the catalog; None when the content is not in it.
        uri: where the picture is.
        weak: an imported old tag.
    """

    content_sha256: str
    label_id: str | None
    kind: str = ""
    by: str = ""
    at: datetime | None = None
    image_id: str | None = None
    uri: str | None = None
    weak: bool = False


@dataclass(frozen=True)
class Conflict:
    """Answers that contradict each other, or that all other answers contradict.

    Attributes:
        kind: ``people`` (one picture, different people, different answers), ``copies`` (the same picture twice,
            different labels) or ``suspect`` (a label that all the other answers speak against).
        said: what was said.
        suggested: of a ``suspect``, the label that the other answers speak for; else None.
        score: of a ``suspect``, the probability of the given label, 0–1; else None.
    """

    kind: str
    said: tuple[Said, ...]
    suggested: str | None = None
    score: float | None = None

    @property
    def contents(self) -> tuple[str, ...]:
        """Each picture once."""
        return tuple(dict.fromkeys(said.content_sha256 for said in self.said))

    def to_json(self) -> dict[str, Any]:
        """Plain values; :func:`from_json` takes them back."""
        value = asdict(self)
        for said in value["said"]:
            said["at"] = said["at"].isoformat() if said["at"] else None
        return value


def from_json(value: Mapping[str, Any]) -> Conflict:
    """A conflict from what :meth:`Conflict.to_json` gave."""
    said = (Said(**{**one, "at": datetime.fromisoformat(one["at"]) if one["at"] else None}) for one in value["said"])
    return Conflict(**{**value, "said": tuple(said)})


# ------------------------------------------------------------------ people


def people(answers: pa.Table, names: Taxonomy) -> tuple[Conflict, ...]:
    """Contents of which different people say different things, counting what each of them said last.

    Who said "wrong, but I do not know what it is" before another one knew does not contradict.

    Args:
        answers: schema ``ANSWERS``; weak ones and those taken back do not count.
        names: labels that were merged into one do not contradict each other.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in _several(_last_of_each(answers)).sort_by("number").to_pylist():
        rows.setdefault(row["content_sha256"], []).append(row)
    return tuple(
        Conflict(PEOPLE, tuple(_said(row) for row in told)) for _, told in sorted(rows.items()) if _differ(told, names)
    )


def _last_of_each(answers: pa.Table) -> pa.Table:
    """For every person and content, the answer that would be in force if nobody else had said anything."""
    retracts = pc.equal(answers["kind"], "retract")
    persons = sorted(pc.unique(answers["answered_by"]).to_pylist())
    own = (answers.filter(pc.or_(pc.equal(answers["answered_by"], person), retracts)) for person in persons)
    return pa.concat_tables([answers.schema.empty_table(), *(corrections.in_force(table) for table in own)])


def _several(answers: pa.Table) -> pa.Table:
    """Those whose content occurs more than once."""
    counts = answers.group_by("content_sha256").aggregate([([], "count_all")])
    several = counts.filter(pc.field("count_all") > 1)["content_sha256"]
    return answers.filter(pc.is_in(answers["content_sha256"], value_set=several))


def _differ(told: Sequence[Mapping[str, Any]], names: Taxonomy) -> bool:
    """Whether answers to one content, oldest first, contradict each other."""
    while told and told[0]["kind"] == "wrong_unknown":
        told = told[1:]
    return len({names.given(row["labels"][0]) if row["labels"] else row["kind"] for row in told}) > 1


def _said(row: Mapping[str, Any]) -> Said:
    return Said(
        content_sha256=row["content_sha256"],
        label_id=row["labels"][0] if row["labels"] else None,
        kind=row["kind"],
        by=row["answered_by"],
        at=row["answered_at"],
        image_id=row["image_id"],
        weak=row["weak"],
    )


# ------------------------------------------------------------------ copies


@dataclass(frozen=True)
class Clashes:
    """Rows whose label the copy of their picture contradicts; each ``bool [n]``, no row in both.

    Attributes:
        open: nobody knows which is right.
        overruled: an old tag against a person's answer, which counts.
    """

    open: Array
    overruled: Array


def clashes(vectors: Array, groups: Array, targets: Array, weak: Array) -> Clashes:
    """Finds rows that are the same picture (``neardup.SAME``) as one with another label.

    Args:
        vectors: ``float16 [n, d]``.
        groups: of ``neardup.groups(vectors)``, ``int64 [n]``.
        targets: label of each row, ``int64 [n]``.
        weak: whether it is an old tag, ``bool [n]``.
    """
    found = Clashes(np.zeros(len(groups), dtype=bool), np.zeros(len(groups), dtype=bool))
    for rows in _mixed(groups, targets):
        for target in np.unique(targets[rows]):
            same = targets[rows] == target
            _compare(found, vectors, weak, (rows[same], rows[~same]))
    found.open[found.overruled] = False
    return found


def _compare(found: Clashes, vectors: Array, weak: Array, sides: tuple[Array, Array]) -> None:
    """Marks rows of the first side that have a copy on the second: an answer only against an answer."""
    mine, others = sides
    answered = vectors[others[~weak[others]]]
    by_answer = neardup.near(vectors[mine], answered, neardup.SAME)
    found.open[mine[by_answer & ~weak[mine]]] = True
    found.overruled[mine[by_answer & weak[mine]]] = True
    old = mine[weak[mine]]
    found.open[old[neardup.near(vectors[old], vectors[others[weak[others]]], neardup.SAME)]] = True


def _mixed(groups: Array, targets: Array) -> Iterator[Array]:
    """The rows of each group that holds more than one label."""
    pairs = np.unique(np.stack([groups, targets]), axis=1)
    mixed = np.flatnonzero(np.bincount(pairs[0], minlength=1) > 1) if len(groups) else np.empty(0, np.int64)
    rows = np.flatnonzero(np.isin(groups, mixed))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    _, starts = np.unique(groups[rows], return_index=True)
    yield from (piece for piece in np.split(rows, starts[1:]) if len(piece))


def copies(answers: pa.Table, groups: Array, found: Array) -> tuple[Conflict, ...]:
    """What :func:`clashes` left open, a conflict for each group.

    Args:
        answers: schema ``ANSWERS``, one row a content.
        groups: of each row, ``int64 [n]``.
        found: :attr:`Clashes.open`, ``bool [n]``.
    """
    rows = answers.filter(pa.array(found)).to_pylist()
    by_group: dict[int, list[Said]] = {}
    for row, group in zip(rows, groups[found].tolist(), strict=True):
        by_group.setdefault(group, []).append(_said(row))
    return tuple(Conflict(COPIES, tuple(said)) for said in by_group.values())


# ------------------------------------------------------------------ suspects


def suspects(
    contents: Sequence[str], targets: Array, probabilities: Array, label_ids: Sequence[str]
) -> tuple[Conflict, ...]:
    """Labels that all the other answers speak against, the most suspicious first.

    Confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068): a label is *confidently* predicted where
    its probability reaches the mean that it has over its own examples; an example whose most probable confidently
    predicted label is another one is a candidate (off the diagonal of the confident joint), and candidates are
    ranked by how far their given label lies behind the best other one (normalised margin). An example whose given
    label is the most probable one all the same is none, nor one whose label has fewer than five examples.

    Args:
        contents: SHA-256 of each row.
        targets: the given labels, ``int64 [n]``, index into ``label_ids``.
        probabilities: ``[n, k]``, made out of fold: no row by a model that learned from it. Rows sum to 1.
        label_ids: the k labels.

    Returns:
        One conflict of kind ``suspect`` each; who gave the label is filled in by :func:`attributed`.

    Raises:
        ValueError: when shapes do not fit each other, or a probability is no number.
    """
    if probabilities.shape != (len(contents), len(label_ids)) or targets.shape != (len(contents),):
        raise ValueError(f"{len(contents)} contents, {targets.shape} targets, {probabilities.shape} probabilities")
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is no number")
    if not len(contents):
        return ()
    rows = np.arange(len(contents))
    given = probabilities[rows, targets].astype(np.float64)
    counts = np.bincount(targets, minlength=len(label_ids))
    sums = np.bincount(targets, weights=given, minlength=len(label_ids))
    # A label without examples is never predicted confidently.
    bars = np.divide(sums, counts, out=np.full(len(label_ids), np.inf), where=counts > 0)
    confident = np.where(probabilities >= bars - _ROUNDING, probabilities, -1)
    other = confident.argmax(axis=1)
    reached = confident[rows, other] >= 0
    best = np.where(np.arange(len(label_ids)) == targets[:, None], -1, probabilities).max(axis=1)
    found = reached & (other != targets) & (best > given) & (counts[targets] >= _FEW)
    order = sorted(np.flatnonzero(found).tolist(), key=lambda row: (given[row] - best[row], contents[row]))
    return tuple(
        Conflict(
            kind=SUSPECT,
            said=(Said(contents[row], label_ids[targets[row]]),),
            suggested=label_ids[other[row]],
            score=round(float(given[row]), 6),
        )
        for row in order
    )


# ------------------------------------------------------------------ for people


def attributed(found: Iterable[Conflict], answers: pa.Table, places: Mapping[str, Place]) -> tuple[Conflict, ...]:
    """``found`` with who said it and where the pictures are filled in.

    Args:
        found: of any kind.
        answers: schema ``ANSWERS``; the answer that counts is taken where only a label is known.
        places: by content.
    """
    found = tuple(found)
    wanted = pa.array({content for conflict in found for content in conflict.contents}, pa.string())
    counting = pa.concat_tables([corrections.weak(answers), corrections.in_force(answers)])
    rows = counting.filter(pc.is_in(counting["content_sha256"], value_set=wanted)).to_pylist()
    known = {row["content_sha256"]: _said(row) for row in rows}

    def complete(said: Said) -> Said:
        filled = said if said.by else known.get(said.content_sha256, said)
        place = places.get(said.content_sha256, NOWHERE)
        return replace(filled, image_id=filled.image_id or place.image_id, uri=place.uri)

    return tuple(replace(one, said=tuple(complete(said) for said in one.said)) for one in found)


def to_csv(found: Iterable[Conflict], names: Taxonomy | None) -> bytes:
    """A row an answer, with a byte-order mark, which Chinese Excel needs; no text is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_HEADER)
    for number, conflict in enumerate(found, 1):
        for said in conflict.said:
            writer.writerow(sheets.cell(value) for value in _line(number, conflict, said, names))
    return out.getvalue().encode("utf-8-sig")


def _line(number: int, conflict: Conflict, said: Said, names: Taxonomy | None) -> tuple[object, ...]:
    label = said.label_id or _ANSWERS_ZH.get(said.kind, said.kind)
    who = f"{said.by}（旧标签）" if said.weak else said.by
    when = said.at.isoformat(sep=" ", timespec="seconds") if said.at else ""
    place = (said.image_id or "", said.uri or "", said.content_sha256)
    suggested = conflict.suggested or ""
    ends = (suggested, _name(suggested, names), "" if conflict.score is None else conflict.score)
    return (number, _KINDS_ZH[conflict.kind], *place, label, _name(said.label_id or "", names), who, when, *ends)


def _name(label_id: str, names: Taxonomy | None) -> str:
    label = names.by_id.get(label_id) if names else None
    return label.label_zh if label else ""
