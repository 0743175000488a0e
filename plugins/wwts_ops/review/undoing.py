"""Taking answers of the page back, and what became of their images before that: again as if they had not been given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.corrections.answers import appending, retracted
from wwts_ops.database import corrections, review_items, review_marks, review_opinions
from wwts_ops.errors import WwtsError
from wwts_ops.review.actions import MOST_ACTIONS, MOST_ALSO, Result
from wwts_ops.review.cases import Case, Desk, Opinion, Said
from wwts_ops.review.outcomes import ADDED, TAKEN_BACK, UNCHANGED, refusal
from wwts_ops.settings import Settings

_AGAIN = re.compile(r":again\d+$")
#: How the answers begin that came of an accepted proposal (``review.proposals``); then the id of what proposed it.
_PROPOSED = "proposal:"
_MADE = {
    ADDED: "它的图片已经收为坏例，会随下一次发布自动撤下。",
    UNCHANGED: "它的图片原来就是坏例，仍会保留。",
}


def undo(settings: Settings, person: str, answer_ids: Sequence[str]) -> list[Result]:
    """Takes back what ``person`` answered on the page, newest first, all of it in one transaction.

    An answer goes with those that it gave to other contents, with its bad case if that is not made yet, and with the
    label it proposed if nobody decided on that; if somebody did, with the answers that came of it (the label stays).
    What it was about waits again, leased to ``person``.

    Returns:
        One result an id, in the given order: ``saved`` (taken back), ``already`` (it was before) or ``refused``.

    Raises:
        WwtsError: when they are too many.
        UnavailableError: when the database does not answer; nothing is taken back then.
    """
    if len(answer_ids) > MOST_ACTIONS:
        raise WwtsError(f"一次最多撤销 {MOST_ACTIONS} 条答案，请分几次撤销。")
    if not answer_ids:
        return []
    with appending(settings) as appender:
        desk = Desk.of(appender, person, settings.lease_minutes)
        given = _given(appender.connection, answer_ids)
        parts = {row["answer_id"]: _parts(appender.connection, row) for row in given}
        desk.load(content for contents in parts.values() for content in contents.values())
        results = {row["answer_id"]: _undone(desk, row, parts[row["answer_id"]]) for row in given}
        desk.write()
    unknown = "没有找到这条答案，可能还没有保存。"
    return [results.get(one) or Result(one, "", "refused", unknown) for one in answer_ids]


def remove(desk: Desk, case: Case, answer_id: str, comment: str | None = None) -> bool:
    """Takes back what one answer said of one content; False when nothing of it stood.

    Where several people looked, what the others said stays: a first of two waits for a second again, two who differ
    for a third.
    """
    opinion = next((one for one in case.opinions if one.answer_id == answer_id), None)
    gone = _recorded(case, answer_id)
    if opinion is None and not gone:
        return False
    desk.retract(case, gone, comment)
    if opinion is not None:
        desk.withdraw(case, opinion)
    state = _after_look(desk, case, opinion, comment) if opinion else _after_answer(desk, case, gone[-1])
    if state is not None:
        desk.settle(case, state, _holder(desk, case, state))
    return True


def close(desk: Desk, answer_ids: Iterable[str]) -> None:
    """What was wanted with these answers, besides the answers, is wanted no longer."""
    ids = list(answer_ids)
    desk.unmark(ids, TAKEN_BACK)
    desk.unpropose(ids)


def history(settings: Settings, person: str | None, count: int) -> list[dict[str, Any]]:
    """The last answers on the page, newest first: of ``person``, or (None) of everybody.

    Returns:
        Up to ``count`` of: ``number`` (None while it waits for somebody else), ``answer_id``, ``answered_at``,
        ``kind``, ``labels``, ``content``, ``image_id``, ``comment``, ``reason``, ``by``, ``held`` (it waits for
        somebody else), ``second`` (somebody is to look without knowing it), ``retracted``, ``no_badcase`` (why its
        picture did not become a bad case, Chinese, or None). Answers that one look gave to other contents are not
        listed beside it.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.looking(settings) as connection:
        answered = [_line(dict(row), row["number"]) for row in connection.execute(_answered(person, count)).mappings()]
        looked = [_look_line(dict(row)) for row in connection.execute(_looked(person, count)).mappings()]
        refused = _refusals(connection, [line["answer_id"] for line in (*answered, *looked)])
    standing = {line["answer_id"] for line in looked if not line["retracted"]}
    # What two had agreed on and one took back: the other's look waits again, and is not gone.
    known = {line["answer_id"] for line in answered if not (line["retracted"] and line["answer_id"] in standing)}
    lines = [line for line in answered if line["answer_id"] in known]
    lines += [line for line in looked if line["answer_id"] not in known]
    lines = [{**line, "no_badcase": refused.get(line["answer_id"])} for line in lines]
    return sorted(lines, key=lambda line: (line["answered_at"], line["number"] or 0), reverse=True)[:count]


def _given(connection: sa.Connection, answer_ids: Sequence[str]) -> list[dict[str, Any]]:
    """What is known of answers of the page that stood once, newest first."""
    ids = sorted(set(answer_ids))
    found: dict[str, dict[str, Any]] = {}
    columns = (corrections.c.answer_id, corrections.c.answered_by, corrections.c.content_sha256)
    asked = sa.select(*columns, corrections.c.number, corrections.c.answered_at)
    page = (corrections.c.source == "page") & (corrections.c.kind != "retract")
    for row in connection.execute(asked.where(corrections.c.answer_id.in_(ids), page)).mappings():
        found[row["answer_id"]] = {**row, "also": []}
    for row in connection.execute(sa.select(review_opinions).where(review_opinions.c.answer_id.in_(ids))).mappings():
        one = found.setdefault(row["answer_id"], {"number": 0, "answered_at": row["said_at"]})
        also = row["answer"].get("also", [])
        one |= {name: row[name] for name in ("answer_id", "content_sha256")}
        one |= {"answered_by": row["person"], "also": also}
    return sorted(found.values(), key=lambda row: (row["answered_at"], row["number"]), reverse=True)


def _parts(connection: sa.Connection, row: Mapping[str, Any]) -> dict[str, str]:
    """The answer itself and those that it gave to other contents: answer id to content."""
    parts = {row["answer_id"]: row["content_sha256"]}
    for table in (corrections, review_opinions):
        asked = sa.select(table.c.answer_id, table.c.content_sha256)
        if row["also"]:
            asked = asked.where(table.c.answer_id.in_(row["also"]))
        else:
            asked = asked.where(table.c.answer_id.startswith(f"{row['answer_id']}:", autoescape=True))
            if table is corrections:  # they were written with it, right after it
                last = row["number"] + 2 * MOST_ALSO
                asked = asked.where(table.c.number.between(row["number"] + 1, last))
        found = connection.execute(asked).all()
        parts |= {first_id(part): content for part, content in found if part.startswith(f"{row['answer_id']}:")}
    return parts


def first_id(answer_id: str) -> str:
    """The id under which an answer was first recorded."""
    return _AGAIN.sub("", answer_id)


def origin(answer_id: str) -> str:
    """The id of the action of which an answer came: by itself, to another content, recorded anew or by a proposal."""
    return answer_id.removeprefix(_PROPOSED).partition(":")[0]


def _undone(desk: Desk, row: Mapping[str, Any], parts: Mapping[str, str]) -> Result:
    answer_id, content = row["answer_id"], row["content_sha256"]
    if row["answered_by"] != desk.person:
        return Result(answer_id, content, "refused", f"这是 {row['answered_by']} 的答案，只能由本人撤销。")
    done = [remove(desk, desk.cases[of], part) for part, of in parts.items()]
    if not any(done):
        return Result(answer_id, content, "already", "这条答案之前已经撤销了。")
    close(desk, [answer_id])
    others = sum(done[1:])
    words = f"已撤销，另外 {others} 张也一并撤销了。" if others else "已撤销。"
    return Result(answer_id, content, "saved", words + _made(desk, answer_id))


def _made(desk: Desk, answer_id: str) -> str:
    """What becomes of its bad case, if there is one already."""
    asked = sa.select(review_marks.c.outcome).where(review_marks.c.answer_id == answer_id)
    return _MADE.get(desk.appender.connection.execute(asked).scalar() or "", "")


def _recorded(case: Case, answer_id: str) -> list[Said]:
    """What stands of an answer, itself last; before it, what came of the label that it proposed."""
    again, proposed = f"{answer_id}:again", f"{_PROPOSED}{origin(answer_id)}:"
    found = [one for one in case.said if one.answer_id == answer_id or one.answer_id.startswith((again, proposed))]
    return sorted(found, key=lambda one: not one.answer_id.startswith(proposed))


def _after_look(desk: Desk, case: Case, gone: Opinion, comment: str | None) -> str | None:
    """The state once that opinion is withdrawn; None: as it is."""
    mates = [one for one in case.opinions if one.round == gone.round]
    alone = len(mates) == 1 and (case.item or {}).get("needed") == 2
    if _answered_since(case, gone, mates) or (any(one.place == 3 for one in mates) and not alone):
        return (
            None  # somebody answered anew, or a third decided: that stands, unless two are needed and no other is left
        )
    looked = {one.answer_id for one in mates}
    blind = gone.round not in looked and any(one.answer_id == gone.round for one in case.said)
    if len(mates) + blind == 2:
        desk.unmark((one.answer_id for one in mates), TAKEN_BACK)
        desk.remark([gone.round])
        return "disputed"
    if not mates:
        return "second" if blind else _waiting(case)
    # One of two is left, and waits for a second again; what both had agreed on is in force no longer.
    (left,) = mates
    desk.retract(case, _recorded(case, left.answer_id), comment)
    desk.unmark([left.answer_id], TAKEN_BACK)
    if left.place > 1:
        desk.move(case, left, 1)
    return "second"


def _answered_since(case: Case, gone: Opinion, mates: Sequence[Opinion]) -> bool:
    """Whether somebody answered after the round of ``gone``."""
    own = {one.number for mate in mates for one in _recorded(case, mate.answer_id)}
    answered = any(one.answered_at > gone.said_at and one.number not in own for one in case.said)
    return answered or any(one.round != gone.round and one.said_at > gone.said_at for one in case.opinions)


def _after_answer(desk: Desk, case: Case, gone: Said) -> str | None:
    """The state once an answer that was no opinion is taken back; None: as it is."""
    for mate in case.later_looks(gone.answer_id):  # they were compared with what is gone
        desk.withdraw(case, mate)
    answered = any(one.answered_at > gone.answered_at for one in case.said)
    if answered or any(one.said_at > gone.answered_at for one in case.opinions):
        return None
    return _waiting(case)


def _waiting(case: Case) -> str:
    counts = case.in_force
    return "later" if counts is not None and counts.kind == "wrong_unknown" else "open"


def _holder(desk: Desk, case: Case, state: str) -> str | None:
    """Who has the item now: whoever took the answer back, if they may look, and nobody else is looking."""
    item = case.item or {}
    until = item.get("leased_until")
    if item.get("leased_by") and until is not None and until > desk.now:
        return str(item["leased_by"])
    return desk.person if desk.lease and state in ("open", "later") else None


def _answered(person: str | None, count: int) -> sa.Select[Any]:
    columns = (corrections, retracted().label("retracted"), sa.false().label("held"), _second(corrections))
    asked = sa.select(*columns).where(
        corrections.c.source == "page",
        corrections.c.kind != "retract",
        ~corrections.c.answer_id.contains(":"),
    )
    if person is not None:
        asked = asked.where(corrections.c.answered_by == person)
    return asked.order_by(corrections.c.number.desc()).limit(count)


def _looked(person: str | None, count: int) -> sa.Select[Any]:
    waits = review_items.c.state.in_(("second", "disputed")) & review_opinions.c.withdrawn_at.is_(None)
    joined = review_opinions.outerjoin(review_items, review_items.c.content_sha256 == review_opinions.c.content_sha256)
    held = sa.func.coalesce(waits, sa.false()).label("held")
    asked = sa.select(review_opinions, held, _second(review_opinions)).select_from(joined)
    asked = asked.where(~review_opinions.c.answer_id.contains(":"))
    if person is not None:
        asked = asked.where(review_opinions.c.person == person)
    return asked.order_by(review_opinions.c.said_at.desc()).limit(count)


def _refusals(connection: sa.Connection, answer_ids: Sequence[str]) -> dict[str, str | None]:
    """Why pictures of those answers did not become bad cases, of marks that are decided on."""
    found: dict[str, str | None] = {}
    for chunk in database.chunks(sorted(set(answer_ids))):
        asked = sa.select(review_marks.c.answer_id, review_marks.c.outcome)
        rows = connection.execute(asked.where(review_marks.c.answer_id.in_(chunk)))
        found |= {answer_id: refusal(outcome) for answer_id, outcome in rows}
    return found


def _second(said: sa.Table) -> sa.Label[bool]:
    """Whether a content of ``said`` waits for somebody who must not know what was said."""
    item = review_items.alias()
    this = sa.select(item.c.content_sha256).where(item.c.content_sha256 == said.c.content_sha256)
    return this.where(item.c.state == "second").exists().label("second")


def _line(row: Mapping[str, Any], number: int | None) -> dict[str, Any]:
    names = (
        "answer_id",
        "answered_at",
        "kind",
        "labels",
        "image_id",
        "comment",
        "reason",
        "held",
        "second",
        "retracted",
    )
    line = {name: row[name] for name in names}
    return {"number": number, **line, "content": row["content_sha256"], "by": row["answered_by"]}


def _look_line(row: Mapping[str, Any]) -> dict[str, Any]:
    given = {"answered_at": row["said_at"], "answered_by": row["person"]}
    return _line({**row["answer"], **row, **given, "retracted": row["withdrawn_at"] is not None}, None)
