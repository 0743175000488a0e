"""Answering: what one person says of some images becomes answers, opinions, marks and proposals, in one transaction.

Each action is decided by itself, after those before it, and sees what other people did up to the moment at which the
transaction began: from then on nobody else answers until it ends. An action whose id is there already was sent twice,
and says so. One whose item changed since it was shown changes nothing, and says who was first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.corrections import LABELLED, Answer
from wwts_ops.corrections.answers import appending
from wwts_ops.database import corrections, review_opinions
from wwts_ops.errors import WwtsError
from wwts_ops.review import people
from wwts_ops.review.actions import (
    MOST_ACTIONS,
    SHARED_SKUS,
    Action,
    Proposal,
    Result,
    Status,
    problem,
    shown_revision,
    told,
)
from wwts_ops.review.cases import Case, Desk, First, Opinion, Verdict, verdict
from wwts_ops.review.outcomes import OVERRULED
from wwts_ops.review.people import Role
from wwts_ops.review.undoing import history, undo
from wwts_ops.settings import Settings
from wwts_ops.taxonomy import Taxonomy, path_of

__all__ = ["Action", "Proposal", "Result", "answer", "history", "undo"]

_SAVED, _LATER = "已保存。", "已保存，稍后再标。"
_HELD = "已记下，还需要另一位同事确认。"
_AGREED, _DIFFER = "两位意见一致，已保存。", "和同事的意见不一致，会请第三位同事来定。"
_DECIDED = "已按您的意见保存。"


def answer(settings: Settings, names: Taxonomy, person: str, actions: Sequence[Action]) -> list[Result]:
    """Records what ``person`` says, all of it in one transaction; one result an action, in their order.

    Args:
        settings: the database, who reviews, and how long a lease is.
        names: the taxonomy in force.
        person: the Airflow user, who may answer; that is not checked here.
        actions: up to ``MOST_ACTIONS``.

    Raises:
        WwtsError: when they are too many.
        UnavailableError: when the database does not answer; nothing is recorded then.
    """
    if len(actions) > MOST_ACTIONS:
        raise WwtsError(f"一次最多提交 {MOST_ACTIONS} 条答案，请分几次提交。")
    if not actions:
        return []
    with appending(settings) as appender:
        desk = Desk.of(appender, person, settings.lease_minutes)
        desk.load(content for action in actions for content in (action.content, *action.also))
        reviewer = _Reviewer(names, desk, people.role(settings, person), _recorded(appender.connection, actions))
        results = [reviewer.hear(action) for action in actions]
        desk.write()
    return results


def _recorded(connection: sa.Connection, actions: Sequence[Action]) -> dict[str, tuple[str, str]]:
    """Of actions that are recorded already, by answer id: who said it of what."""
    ids = sorted({action.answer_id for action in actions})
    found = {}
    for table, person in ((corrections, corrections.c.answered_by), (review_opinions, review_opinions.c.person)):
        for chunk in database.chunks(ids):
            asked = sa.select(table.c.answer_id, person, table.c.content_sha256)
            rows = connection.execute(asked.where(table.c.answer_id.in_(chunk)))
            found.update({answer_id: (by, content) for answer_id, by, content in rows})
    return found


@dataclass(frozen=True)
class _Look:
    """One answer to one content, and what else the person wants of it."""

    case: Case
    answer: Answer
    action: Action

    @property
    def verdict(self) -> tuple[str, frozenset[str]]:
        return verdict(self.answer.kind, self.answer.labels)

    def wishes(self, began: str) -> dict[str, Any]:
        """What is kept with an opinion."""
        action = self.action
        return {
            "round": began,
            "badcase": action.badcase,
            "never_regress": action.never_regress,
            "later": action.later,
            "also": [f"{action.answer_id}:{other[:16]}" for other in action.also],
        }


@dataclass(frozen=True)
class _Reviewer:
    """Somebody who answers."""

    names: Taxonomy
    desk: Desk
    role: Role
    recorded: dict[str, tuple[str, str]]

    def hear(self, action: Action) -> Result:
        """One action: what it comes to, and what shall be written of it."""
        before = self.recorded.get(action.answer_id)
        if before == (self.desk.person, action.content):
            return _result(action, "already", "这条答案之前已经保存过了。")
        if before is not None:
            return _result(action, "refused", "答案编号和别的答案重复了，请刷新页面后再试。")
        action = self._meant(action)
        wrong = problem(action, self.names)
        if wrong is not None:
            return _result(action, "refused", wrong)
        case = self.desk.cases[action.content]
        return self._hindered(case, action) or self._taken(case, action)

    def _meant(self, action: Action) -> Action:
        """``action`` with the labels that its own were merged into or are mapped to, of which two may be one by now."""
        meant = tuple(self.names.given(label) for label in action.labels)
        twice = len(set(action.labels)) < len(action.labels)
        return replace(action, labels=meant if twice else tuple(dict.fromkeys(meant)))

    def _shown(self, item: Mapping[str, Any]) -> str | None:
        """The label that a ``confirm`` means."""
        label_id = item.get("label_id")
        return None if label_id is None else self.names.given(label_id)

    def _hindered(self, case: Case, action: Action) -> Result | None:
        if case.item is None:
            return _result(action, "refused", "这张图片不在待审列表里，可能已经下架。")
        first = case.first() if case.state in ("second", "disputed") else None
        now = case.item["revision"]
        if case.state == "done" or action.revision not in (
            None,
            now,
            shown_revision(case.state, case.item["blind"], now),
        ):
            return self._late(case, action, first)
        if first is not None and not self._may_look(case, first):
            return _result(action, "refused", "您已经看过这张图片，请留给另一位同事再看一次。")
        wrong = self._labels_missing(case, action) or self._unrelated(case, action)
        if wrong is not None:
            return _result(action, "refused", wrong)
        skus = max(self._skus(case, content) for content in (case.content, *action.also))
        if skus > SHARED_SKUS and not action.shared_ok:
            words = f"有 {skus:,} 个商品共用这张图片，可能是占位图。确定要把答案用到所有这些商品吗？"
            return _result(action, "shared", words)
        return None

    def _may_look(self, case: Case, first: First) -> bool:
        """Nobody's look counts twice; only an admin may decide between their own and another's."""
        looked = {first.person, *(one.person for one in case.later_looks(first.round))}
        return self.desk.person not in looked or (case.state == "disputed" and self.role >= Role.ADMIN)

    def _late(self, case: Case, action: Action, first: First | None) -> Result:
        """Somebody was first, or the night was."""
        if first is not None:
            by = case.later_looks(first.round)[-1:]
            who = by[0].person if by else first.person
            # Not what they said: others shall look without knowing it.
            words = (
                "您已经看过这张图片了。" if who == self.desk.person else f"{who} 刚刚先看过这张图片，您这次的没有记录。"
            )
            return _result(action, "conflict", words, who)
        last = case.in_force
        if last is None or case.state == "open":
            words = "这张图片已经处理完了。" if case.state == "done" else "这张图片刚刚有更新，请再看一眼。"
            return _result(action, "conflict", words)
        said = told(self.names, last.kind, last.labels)
        if last.answered_by == self.desk.person:
            return _result(action, "conflict", f"您已经把这张图片{said}了；要改的话，请先撤销。", self.desk.person)
        words = f"{last.answered_by} 刚刚已经把这张图片{said}，您这次的没有记录，谢谢！"
        return _result(action, "conflict", words, last.answered_by)

    def _labels_missing(self, case: Case, action: Action) -> str | None:
        if action.said != "confirm":
            return None
        shown = self._shown(case.item or {})
        if shown is None:
            return "这张图片没有可以确认的标签，请选一个。"
        if action.labels and action.labels != (shown,):
            return "这张图片的标签刚刚变了，请再看一眼。"
        return problem(replace(action, labels=(shown,)), self.names)

    def _unrelated(self, case: Case, action: Action) -> str | None:
        near, siblings = (case.item or {}).get("near_group"), _siblings(case)
        for content in action.also:
            other = self.desk.cases[content].item
            alike = near is not None and other is not None and other["near_group"] == near
            if content == case.content or not (alike or content in siblings):
                return "选中的图片里，有的和这张已经没有关系了；请刷新后再选。"
        return None

    def _skus(self, case: Case, content: str) -> int:
        item = self.desk.cases[content].item
        found = _siblings(case).get(content, {}) if item is None else item
        return int(found.get("skus") or 1)

    def _taken(self, case: Case, action: Action) -> Result:
        assert case.item is not None, case
        shown = self._shown(case.item) if action.said == "confirm" else None
        labels = action.labels or (() if shown is None else (shown,))
        look = _Look(case, self._answer(action, case.item, labels), action)
        self.recorded[action.answer_id] = (self.desk.person, action.content)
        status, words = self._place(look)
        if action.proposal is not None:
            self.desk.propose(_proposal(action, action.proposal))
        return _result(action, status, words + (self._spread(look) if status == "saved" else _not_spread(action)))

    def _spread(self, look: _Look) -> str:
        """The same answer for the other contents that were clicked, but for those that have one; what to say of it."""
        siblings, done = _siblings(look.case), Counter[Status]()
        for content in dict.fromkeys(look.action.also):
            other = self.desk.cases[content]
            if _is_answered(other):
                continue
            answer_id = f"{look.action.answer_id}:{content[:16]}"
            plain = replace(
                look.action, answer_id=answer_id, content=content, also=(), badcase=False, never_regress=False
            )
            shown = other.item or {"shown_because": "sibling", **siblings[content]}
            status, _ = self._place(_Look(other, self._answer(plain, shown, look.answer.labels), plain))
            done[status] += 1
        left = len(set(look.action.also)) - done.total()
        said = (
            (done["saved"], f"另外 {done['saved']} 张也一并处理了。"),
            (done["held"], f"另外 {done['held']} 张还需要另一位同事确认。"),
            (left, f"有 {left} 张已经有人答过，没有改动。"),
        )
        return "".join(words for count, words in said if count)

    def _answer(self, action: Action, shown: Mapping[str, Any], labels: tuple[str, ...]) -> Answer:
        label_id, kind = shown.get("label_id"), action.said
        if kind in LABELLED:
            kind = "confirm" if labels == (self._shown(shown),) else "correct"
        before = [tag["label_id"] for tag in shown.get("tags") or ()] or ([label_id] if label_id else [])
        return Answer(
            answer_id=action.answer_id,
            answered_at=self.desk.now,
            answered_by=self.desk.person,
            image_id=shown["image_id"],
            content_sha256=action.content,
            kind=kind,
            labels_before=tuple(before),
            labels=labels,
            comment=(action.comment or "").strip() or None,
            reason=action.reason,
            source="page",
            shown_because=shown["shown_because"],
            sampling_probability=shown.get("sampling_probability"),
            model_version=shown.get("model_version"),
            confidence=shown.get("confidence"),
        )

    def _place(self, look: _Look) -> tuple[Status, str]:
        """Which look at its content it is decides what becomes of it."""
        first = look.case.first() if look.case.state in ("second", "disputed") else None
        if first is None:
            return self._first(look)
        second = look.case.later_looks(first.round)[:1]
        return self._third(look, first, second[0]) if second else self._second(look, first)

    def _first(self, look: _Look) -> tuple[Status, str]:
        item = look.case.item or {}
        if item.get("needed") == 2:
            self.desk.opine(look.case, look.answer, 1, look.wishes(look.answer.answer_id))
            self.desk.settle(look.case, "second")
            return "held", _HELD
        self.desk.record(look.case, look.answer)
        if look.action.marked:
            self.desk.mark(look.answer, never_regress=look.action.never_regress)
        self.desk.settle(look.case, "later" if look.action.later else "second" if item.get("blind") else "done")
        return "saved", _LATER if look.action.later else _SAVED

    def _second(self, look: _Look, first: First) -> tuple[Status, str]:
        agrees = self._same(look.verdict, first.verdict)
        mine = self.desk.opine(look.case, look.answer, 2, {**look.wishes(first.round), "agrees": agrees})
        if not agrees:
            self.desk.settle(look.case, "disputed")
            return "held", _DIFFER
        both = [one for one in (first.opinion, mine) if one is not None]
        if first.opinion is not None:
            for one in both:
                self.desk.record(look.case, one.spoken(_free_id(look.case, one)))
        self._mark(both)
        later = look.answer.kind == "wrong_unknown" and any(one.answer["later"] for one in both)
        self.desk.settle(look.case, "later" if later else "done")
        return "saved", _SAVED if first.opinion is None else _AGREED

    def _third(self, look: _Look, first: First, second: Opinion) -> tuple[Status, str]:
        self.desk.record(look.case, look.answer)
        mine = self.desk.opine(look.case, look.answer, 3, look.wishes(first.round))
        opinions = [one for one in (first.opinion, second, mine) if one is not None]
        self._mark([one for one in opinions if self._same(one.verdict, mine.verdict)])
        if first.opinion is None and not self._same(first.verdict, mine.verdict):
            self.desk.unmark([first.answer_id], OVERRULED)
        self.desk.settle(look.case, "later" if look.action.later else "done")
        return "saved", _DECIDED

    def _same(self, one: Verdict, other: Verdict) -> bool:
        """Whether two people agree; a label that one of them named may have been merged since."""
        return self._by_now(one) == self._by_now(other)

    def _by_now(self, said: Verdict) -> Verdict:
        return self.names.given(said[0]), frozenset(map(self.names.given, said[1]))

    def _mark(self, opinions: Sequence[Opinion]) -> None:
        for one in opinions:
            if one.answer["badcase"] or one.answer["never_regress"]:
                self.desk.mark(one.spoken(), never_regress=bool(one.answer["never_regress"]))


def _free_id(case: Case, opinion: Opinion) -> str:
    """Under which id an opinion is recorded: its own, unless an answer of that id was taken back."""
    ids = (opinion.answer_id, *(f"{opinion.answer_id}:again{number}" for number in range(1, 1000)))
    return next(one for one in ids if one not in case.taken)


def _not_spread(action: Action) -> str:
    """What does not hold for one picture yet holds for no other."""
    others = len(set(action.also))
    return f"另外 {others} 张没有一起处理，请单独看。" if others else ""


def _is_answered(case: Case) -> bool:
    """Whether somebody's answer to it counts, or waits for a look by somebody else.

    What is done may have no answer: a retag was sure of it, or it was delisted and came back.
    """
    if case.state in ("open", "later"):
        return False
    return case.in_force is not None or case.state in ("second", "disputed")


def _siblings(case: Case) -> dict[str, Mapping[str, Any]]:
    return {one["content_sha256"]: one for one in (case.item or {}).get("siblings") or ()}


def _proposal(action: Action, proposal: Proposal) -> dict[str, Any]:
    return {
        "proposal_id": action.answer_id,
        "label_zh": proposal.label_zh.strip(),
        "label_en": proposal.label_en.strip(),
        "synonyms_zh": proposal.synonyms_zh.strip(),
        "category_path": path_of(proposal.category_path),
        "content_sha256": action.content,
        "answer_id": action.answer_id,
    }


def _result(action: Action, status: Status, message: str = "", by: str | None = None) -> Result:
    return Result(action.answer_id, action.content, status, message, by)
