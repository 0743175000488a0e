"""What people say on the page of single images, what they are told, and which of it is refused unheard."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from wwts_ops.corrections import LABELLED
from wwts_ops.corrections.answers import CONTROL
from wwts_ops.digest import SHA256
from wwts_ops.images import REASONS
from wwts_ops.taxonomy import Taxonomy, path_of

#: Actions of one request.
MOST_ACTIONS = 200
#: Other contents that one action may hold for.
MOST_ALSO = 100
#: From more SKUs than this, a content is a placeholder picture rather than a thing: one answer asks first.
SHARED_SKUS = 20

KINDS = ("confirm", "correct", "wrong_unknown", "reject_image")
Status = Literal["saved", "already", "conflict", "shared", "refused", "held"]

_ANSWER_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{7,63}")
_MOST_LABELS = 10
_LONGEST_COMMENT, _LONGEST_NAME, _LONGEST_TEXT = 1000, 100, 500


@dataclass(frozen=True)
class Proposal:
    """A label that somebody missed; ``category_path`` with levels joined by `` > ``, ``synonyms_zh`` by ``|``."""

    label_zh: str
    category_path: str = ""
    synonyms_zh: str = ""
    label_en: str = ""


@dataclass(frozen=True)
class Action:
    """One answer as the browser sends it.

    Attributes:
        answer_id: made by the browser, sent again with every retry: 8 to 64 letters, digits, ``-`` and ``_``.
        content: the SHA-256 that was looked at, 64 hex digits.
        revision: of the item as it was shown; None: whatever it is now.
        kind: one of ``KINDS``.
        labels: label ids that are right, the primary first; may be left out of a ``confirm``.
        reason: of ``reject_image``: a quarantine reason code.
        comment: the person's own words, up to 1,000 characters.
        also: contents that look alike or are of the same SKU, and that the person clicked: up to 100.
        shared_ok: the person knows that more than ``SHARED_SKUS`` SKUs show this picture.
        badcase: the picture shall become a bad case.
        never_regress: it shall become one that no model may get wrong again.
        later: with ``wrong_unknown``: somebody shall find its label, before all else.
        proposal: the label that is missing; the answer is then ``wrong_unknown``.
    """

    answer_id: str
    content: str
    revision: int | None
    kind: str
    labels: tuple[str, ...] = ()
    reason: str | None = None
    comment: str | None = None
    also: tuple[str, ...] = ()
    shared_ok: bool = False
    badcase: bool = False
    never_regress: bool = False
    later: bool = False
    proposal: Proposal | None = None

    @property
    def said(self) -> str:
        """The kind of the answer that is recorded, but for ``correct`` with the shown label."""
        return "wrong_unknown" if self.proposal is not None else self.kind

    @property
    def marked(self) -> bool:
        """Whether the picture shall become a bad case."""
        return self.badcase or self.never_regress


@dataclass(frozen=True)
class Result:
    """What became of an action.

    Attributes:
        answer_id: of the action.
        content: of the action; empty when an answer that should be undone is unknown.
        status: saved: recorded, and this content is settled; held: recorded as an opinion, somebody else must look;
            already: it was recorded before; conflict: somebody else was first; shared: more SKUs than ``SHARED_SKUS``
            show it, and the person should say that they know; refused: it cannot be. The last three record nothing.
        message: for the person, Chinese; may be empty.
        by: who was first, of a conflict.
    """

    answer_id: str
    content: str
    status: Status
    message: str = ""
    by: str | None = None


def shown_revision(state: str, blind: bool, revision: int) -> int:  # noqa: FBT001 (columns of an item)
    """The revision that a page gets: of a blind second look the one from before the first, which nobody shall notice.

    Who was shown the item before the first look was recorded has not seen it either: theirs is the second.
    """
    return revision - 1 if blind and state == "second" else revision


def problem(action: Action, names: Taxonomy) -> str | None:
    """Why ``action`` cannot be, whatever it is about: a Chinese sentence, or None."""
    checks = (*_form(action), *_sense(action, names))
    return next((text for wrong, text in checks if wrong), None)


def told(names: Taxonomy, kind: str, labels: Sequence[str]) -> str:
    """What an answer says, as the end of a Chinese sentence."""
    if kind in LABELLED:
        verb = "确认为" if kind == "confirm" else "改为"
        return verb + "、".join(f"“{name_of(names, label)}”" for label in labels)
    return "标记为“都不对”" if kind == "wrong_unknown" else "标记为“图片有问题”"


def name_of(names: Taxonomy, label_id: str) -> str:
    """The Chinese name of a label, or its id when there is none any more."""
    label = names.by_id.get(label_id)
    return label_id if label is None else label.label_zh


def _form(action: Action) -> Iterator[tuple[bool, str]]:
    yield not _ANSWER_ID.fullmatch(action.answer_id), "答案编号不对，请刷新页面后再试。"
    yield not SHA256.fullmatch(action.content), "图片编号不对，请刷新页面后再试。"
    yield not all(SHA256.fullmatch(other) for other in action.also), "图片编号不对，请刷新页面后再试。"
    yield len(action.also) > MOST_ALSO, f"一次最多应用到 {MOST_ALSO} 张图片。"
    yield action.kind not in KINDS, "不认识这种答案，请刷新页面后再试。"
    yield len(action.comment or "") > _LONGEST_COMMENT, f"备注太长，请不要超过 {_LONGEST_COMMENT} 个字。"
    yield bool(CONTROL.search(action.comment or "")), "备注里有无法保存的字符，请删去后再试。"
    if action.proposal is not None:
        yield from _wish(action.proposal)


def _wish(proposal: Proposal) -> Iterator[tuple[bool, str]]:
    name, others = proposal.label_zh.strip(), (proposal.category_path, proposal.synonyms_zh, proposal.label_en)
    yield not 0 < len(name) <= _LONGEST_NAME, f"新标签要有名称，不超过 {_LONGEST_NAME} 个字。"
    yield max(map(len, others)) > _LONGEST_TEXT, f"新标签的类目、同义词和英文名各不超过 {_LONGEST_TEXT} 个字。"
    texts = (proposal.label_zh, *others)
    yield any(CONTROL.search(text) or "\n" in text for text in texts), "新标签里有无法保存的字符，请删去后再试。"
    path = path_of(proposal.category_path)
    yield bool(path) and not all(path.split(" > ")), "类目请写成“一级 > 二级 > 三级”，中间不要空着。"


def _sense(action: Action, names: Taxonomy) -> Iterator[tuple[bool, str]]:
    labelled = action.said in LABELLED
    yield action.said == "correct" and not action.labels, "请先选一个标签。"
    yield bool(action.labels) and not labelled, "选了“都不对”或“图片有问题”，就不能再选标签。"
    yield len(action.labels) > _MOST_LABELS, f"一张图片最多 {_MOST_LABELS} 个标签。"
    yield len(set(action.labels)) != len(action.labels), "同一个标签选了两次。"
    for label_id in action.labels:
        yield from _usable(label_id, names)
    yield action.reason is not None and action.said != "reject_image", "只有“图片有问题”才需要原因。"
    yield action.reason is not None and action.reason not in REASONS, "不认识这个原因，请刷新页面后再试。"
    yield action.marked and not labelled, "要加入坏例，请先选出正确的标签。"
    yield action.later and action.said != "wrong_unknown", "只有“都不对”才能留到稍后再标。"
    if action.proposal is not None:
        yield _exists(action.proposal, names), f"已经有“{action.proposal.label_zh.strip()}”这个标签了，请直接选它。"


def _usable(label_id: str, names: Taxonomy) -> Iterator[tuple[bool, str]]:
    label = names.by_id.get(label_id)
    yield label is None, "没有这个标签，它可能刚刚被改过；请刷新页面后再选。"
    yield label is not None and not label.enabled, f"标签“{name_of(names, label_id)}”已停用，请另选一个。"


def _exists(proposal: Proposal, names: Taxonomy) -> bool:
    name, path = proposal.label_zh.strip(), path_of(proposal.category_path)
    return any(label.enabled and label.label_zh == name and label.category_path == path for label in names.labels)
