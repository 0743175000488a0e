"""Labels that people missed: who may change the taxonomy accepts them, says which label is meant, or refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from wwts_ops import database, events, taxonomy, taxonomy_changes
from wwts_ops.corrections import Answer
from wwts_ops.corrections.answers import Appender, appending, in_force_rows
from wwts_ops.database import corrections, label_proposals, review_items
from wwts_ops.errors import WwtsError
from wwts_ops.review.loading import DONE, LATER
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy_changes import Add

#: What may become of a proposal, and the state it then is in.
_STATES = {"accept": "accepted", "merge": "merged", "refuse": "refused"}
_NAMED = {"accepted": "采纳", "merged": "并入已有标签", "refused": "不采纳"}
#: Where these answers are said to come from: they are nobody's work on the page.
SOURCE = "proposal"


@dataclass(frozen=True)
class Proposal:
    """A label that somebody missed, and waits for a decision; ``proposed_at`` UTC."""

    proposal_id: str
    label_zh: str
    label_en: str
    synonyms_zh: str
    category_path: str
    content_sha256: str | None
    person: str
    proposed_at: datetime


class Given(TypedDict, total=False):
    """What a decision says besides.

    Attributes:
        label_id: of ``merge``: the label that is meant, which must be in force.
        label_zh: of ``accept``: a better name.
        category_path: of ``accept``: a better place.
    """

    label_id: str
    label_zh: str
    category_path: str


@dataclass(frozen=True)
class Decided:
    """What became of a proposal.

    Attributes:
        proposal_id: of the proposal.
        state: ``accepted``, ``merged`` or ``refused``.
        label_id: the label that the pictures now have; None when it was refused.
        answers: pictures that got it.
    """

    proposal_id: str
    state: str
    label_id: str | None
    answers: int


def open_(settings: Settings) -> list[Proposal]:
    """Proposals that nobody has decided upon, oldest first.

    Raises:
        UnavailableError: when the database does not answer.
    """
    columns = (label_proposals.c[name] for name in Proposal.__dataclass_fields__)
    asked = sa.select(*columns).where(label_proposals.c.state == "open")
    with database.looking(settings) as connection:
        rows = connection.execute(asked.order_by(label_proposals.c.proposed_at, label_proposals.c.proposal_id))
        return [Proposal(**row) for row in rows.mappings()]


def decide(
    settings: Settings,
    store: Store,
    admin: str,
    proposal_id: str,
    decision: str,
    **given: Unpack[Given],
) -> Decided:
    """Decides upon a proposal. The pictures it was made for get the label, as answers of who proposed it; where it is
    refused, they wait for somebody who knows the right one.

    A decision that was cut off can be made again: the label it had added is found by its id.

    Args:
        settings: the database.
        store: holds the taxonomy.
        admin: who decides.
        proposal_id: which one.
        decision: ``accept``: the label is added; ``merge``: another label is meant; ``refuse``.
        given: see :class:`Given`.

    Raises:
        WwtsError: when it is unknown or decided upon, or the taxonomy refuses the label.
        UnavailableError: when the database or the store does not answer.
    """
    if decision not in _STATES:
        raise WwtsError(f"没有“{decision}”这种处理方式。")
    database.upgrade(settings)
    with database.reading(settings) as connection:
        proposal = _open_one(connection, proposal_id)
    label_id: str | None
    if decision == "accept":
        label_id = _added(store, settings, admin, proposal | given)
    else:
        label_id = _known(store, given.get("label_id")) if decision == "merge" else None
    with appending(settings) as appender:
        proposal = _open_one(appender.connection, proposal_id)
        return _record(appender, admin, proposal, Decided(proposal_id, _STATES[decision], label_id, 0))


def _open_one(connection: sa.Connection, proposal_id: str) -> dict[str, Any]:
    asked = sa.select(label_proposals).where(label_proposals.c.proposal_id == proposal_id)
    row = connection.execute(asked).mappings().one_or_none()
    if row is None:
        raise WwtsError("没有这条新标签提议；请刷新页面。")
    if row["state"] != "open":
        raise WwtsError(f"这条新标签提议已由 {row['decided_by']} 处理（{_NAMED[row['state']]}）。")
    return dict(row)


def _added(store: Store, settings: Settings, admin: str, proposal: Mapping[str, Any]) -> str:
    """The id of the label made of the proposal, which always gets the same one."""
    label_id = f"shop:{hashlib.sha256(proposal['proposal_id'].encode()).hexdigest()[:12]}"
    names = taxonomy.current(store)
    if names is not None and label_id in names.by_id:
        return names.given(label_id)
    change = Add(
        label_id=label_id,
        label_zh=proposal["label_zh"],
        label_en=proposal["label_en"],
        synonyms_zh=proposal["synonyms_zh"],
        category_path=proposal["category_path"],
    )
    taxonomy_changes.apply(store, settings, admin, None, [change])
    return label_id


def _known(store: Store, label_id: str | None) -> str:
    names = taxonomy.current(store)
    # One that was merged itself stands for the one that it was merged into.
    label = None if names is None else names.by_id.get(names.given(label_id or ""))
    if label is None or not label.enabled:
        raise WwtsError("请选择一个正在使用的标签来合并。")
    return label.label_id


def _record(appender: Appender, admin: str, proposal: dict[str, Any], decided: Decided) -> Decided:
    connection = appender.connection
    now = database.now(connection)
    counting = _counting(connection, proposal)
    answers = [] if decided.label_id is None else [_answer(row, proposal, decided.label_id, now) for row in counting]
    appender.add(answers)
    if decided.label_id is None:
        # Somebody else may know the right one.
        these = review_items.c.content_sha256.in_([row.content_sha256 for row in counting])
        waits = {"state": LATER, "revision": review_items.c.revision + 1}
        connection.execute(sa.update(review_items).where(these, review_items.c.state == DONE).values(**waits))
    said = {"state": decided.state, "label_id": decided.label_id, "decided_by": admin, "decided_at": now}
    this = label_proposals.c.proposal_id == decided.proposal_id
    connection.execute(sa.update(label_proposals).where(this).values(**said))
    detail = {
        "decision": decided.state,
        "label_zh": proposal["label_zh"],
        "label_id": decided.label_id,
        "person": proposal["person"],
        "answers": len(answers),
    }
    events.record(connection, admin, events.DECIDED_PROPOSAL, decided.proposal_id, detail)
    return Decided(decided.proposal_id, decided.state, decided.label_id, len(answers))


def _counting(connection: sa.Connection, proposal: dict[str, Any]) -> Sequence[Any]:
    """Of every picture of which what the proposer said still counts, that answer."""
    said = proposal["answer_id"]
    if said is None:
        return []
    given = corrections.alias()
    counting = in_force_rows().with_only_columns(sa.func.max(corrections.c.number))
    counting = counting.where(corrections.c.content_sha256 == given.c.content_sha256)
    asked = sa.select(given).where(
        sa.or_(given.c.answer_id == said, given.c.answer_id.startswith(f"{said}:", autoescape=True)),
        given.c.kind == "wrong_unknown",
        given.c.number == counting.scalar_subquery(),
    )
    return connection.execute(asked).all()


def _answer(row: Any, proposal: dict[str, Any], label_id: str, now: datetime) -> Answer:
    """The label, for the picture of ``row``."""
    return Answer(
        answer_id=f"proposal:{proposal['proposal_id']}:{row.content_sha256[:16]}",
        answered_at=now,
        answered_by=proposal["person"],
        image_id=row.image_id,
        content_sha256=row.content_sha256,
        kind="correct",
        labels_before=tuple(row.labels_before),
        labels=(label_id,),
        comment=row.comment,
        source=SOURCE,
        shown_because=row.shown_because,
        sampling_probability=row.sampling_probability,
        model_version=row.model_version,
        confidence=row.confidence,
    )
