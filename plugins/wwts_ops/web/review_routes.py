"""What reviewers ask for and say: who they are, the queue, answers and what they take back."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from wwts_ops.images import REASONS
from wwts_ops.review import answering, items, opinions, pace, people
from wwts_ops.review.answering import Action, Proposal
from wwts_ops.review.items import Filters, Item
from wwts_ops.review.people import Role
from wwts_ops.settings import Settings
from wwts_ops.taxonomy import Taxonomy
from wwts_ops.web import shown
from wwts_ops.web.bodies import (
    MOST,
    ActionBody,
    AnswersBody,
    CategoriesBody,
    CategoryPath,
    Content,
    ContentsBody,
    GridBody,
    Short,
    TakeBody,
    UndoBody,
    reading,
)
from wwts_ops.web.security import RefusedError, Reviewer, Viewer, Visitor, settings_of

router = APIRouter(prefix="/api")

#: Items that one look at what is alike may list.
_ALIKE = 60
#: Reasons for quarantine, those first that a person can see.
_BY_EYE = ("not_an_image", "corrupt", "truncated", "too_small")
_REASONS = {code: REASONS[code] for code in dict.fromkeys([*_BY_EYE, *REASONS])}

#: States of which everybody may see how many there are; which are only open would tell which of the others are not.
_COUNTED = (items.OPEN, items.LATER)

Asked = Annotated[tuple[Short, ...], Query(max_length=MOST)]
AskedPaths = Annotated[tuple[CategoryPath, ...], Query(max_length=MOST)]


def _filters(
    dates: Asked = (),
    categories: AskedPaths = (),
    labels: Asked = (),
    decisions: Asked = (),
    reasons: Asked = (),
    states: Asked = (),
) -> Filters:
    return Filters(dates, categories, labels, decisions, reasons, states)


# ------------------------------------------------------------------ who looks


@router.get("/me")
def me(request: Request, visitor: Viewer) -> dict[str, Any]:
    """Who is signed in, and what the page needs to know before all else."""
    settings = settings_of(request)
    request.app.state.loader.look()
    known = _known(settings)
    return {
        "user": visitor.name,
        "role": visitor.role.name.lower(),
        "categories": people.categories(settings, visitor.name),
        "timezone": settings.timezone,
        "today": settings.today().isoformat(),
        "taxonomy_version": "" if known is None else known.version,
        "lease_seconds": settings.lease_minutes * 60,
        "reasons": _REASONS,
        "kept_categories": [] if known is None else _categories(known),
    }


@router.put("/me/categories")
def choose(
    request: Request, visitor: Reviewer, body: Annotated[CategoriesBody, Depends(reading(CategoriesBody))]
) -> dict[str, Any]:
    """Remembers what somebody looks after."""
    return {"categories": people.choose(settings_of(request), visitor.name, body.categories)}


def _known(settings: Settings) -> Taxonomy | None:
    """The taxonomy in force; before the first night the page says what it can."""
    try:
        return shown.names(settings)
    except shown.NoTaxonomyError:
        return None


def _categories(known: Taxonomy) -> list[str]:
    """All paths of one or two levels, each after the one that it is below."""
    given = (label for label in known.labels if label.category_path and not label.maps_to)
    levels = [label.category_path.split(" > ") for label in given]
    return sorted({" > ".join(path[:depth]) for path in levels for depth in (1, 2)})


# ------------------------------------------------------------------ the queue


def _allowed(visitor: Visitor, wanted: Filters, told: tuple[str, ...] = (items.LATER,)) -> Filters:
    """With those states only that do not tell who is to give a second look that there was a first."""
    if visitor.role >= Role.ADMIN:
        return wanted
    return dataclasses.replace(wanted, states=tuple(state for state in wanted.states if state in told))


@router.get("/summary")
def summary(request: Request, visitor: Viewer, wanted: Annotated[Filters, Depends(_filters)]) -> dict[str, Any]:
    """What is left, what can be filtered by, and how far everybody has come today."""
    settings, wanted = settings_of(request), _allowed(visitor, wanted, _COUNTED)
    facets = items.facets(settings, visitor.name, wanted)
    return {
        "left": items.left(settings, visitor.name, wanted),
        "facets": {name: [_facet(name, list(found)) for found in values] for name, values in facets.items()},
        **dataclasses.asdict(pace.today(settings, visitor.name)),
    }


def _facet(name: str, found: list[Any]) -> dict[str, Any]:
    value, count = found[0], found[-1]
    if name == "label":
        return {"value": value, "name": found[1] or value, "count": count}
    if name == "reason":
        return {"value": value, "name": shown.reason_name(value), "count": count}
    return {"value": value, "count": count}


@router.post("/take")
def take(request: Request, visitor: Reviewer, body: Annotated[TakeBody, Depends(reading(TakeBody))]) -> dict[str, Any]:
    """The next items, leased to who asks."""
    settings, wanted = settings_of(request), _allowed(visitor, body.filters.filters())
    found = items.take(settings, visitor.name, wanted, body.count, body.held)
    return {"items": shown.items(settings, found), "left": items.left(settings, visitor.name, wanted)}


@router.post("/grid")
def grid(request: Request, visitor: Reviewer, body: Annotated[GridBody, Depends(reading(GridBody))]) -> dict[str, Any]:
    """Items of one predicted label, leased to who asks."""
    settings = settings_of(request)
    found = items.take_label(settings, visitor.name, body.label_id, body.filters.filters(), body.count, body.held)
    return {"items": shown.items(settings, found)}


@router.get("/peek")
def peek(
    request: Request,
    visitor: Viewer,
    wanted: Annotated[Filters, Depends(_filters)],
    count: Annotated[int, Query(ge=1, le=100)] = 20,
    held: Annotated[tuple[Content, ...], Query(max_length=MOST)] = (),
) -> dict[str, Any]:
    """The next items for who only looks: nobody's lease."""
    settings, wanted = settings_of(request), _allowed(visitor, wanted)
    found = items.peek(settings, visitor.name, wanted, count, held)
    return {"items": shown.items(settings, found), "left": items.left(settings, visitor.name, wanted)}


@router.get("/grid")
def peek_grid(
    request: Request,
    visitor: Viewer,
    label_id: Short,
    wanted: Annotated[Filters, Depends(_filters)],
    count: Annotated[int, Query(ge=1, le=50)] = 50,
) -> dict[str, Any]:
    """Items of one predicted label for who only looks."""
    del visitor
    settings = settings_of(request)
    return {"items": shown.items(settings, items.peek_label(settings, label_id, wanted, count))}


@router.post("/renew")
def renew(
    request: Request, visitor: Reviewer, body: Annotated[ContentsBody, Depends(reading(ContentsBody))]
) -> dict[str, Any]:
    """Keeps leases; those that are still the asker's, as they are now: a night or a retag may have changed them."""
    settings = settings_of(request)
    kept = items.renew(settings, visitor.name, body.contents)
    return {"contents": kept, "items": shown.items(settings, items.of_contents(settings, kept))}


@router.post("/release")
def release(
    request: Request, visitor: Reviewer, body: Annotated[ContentsBody, Depends(reading(ContentsBody))]
) -> dict[str, Any]:
    """Gives leases back."""
    items.release(settings_of(request), visitor.name, body.contents)
    return {}


@router.get("/items/{content}")
def one(request: Request, visitor: Viewer, content: Content) -> dict[str, Any]:
    """One item, with what belongs to it."""
    del visitor
    settings = settings_of(request)
    item = items.one(settings, content)
    if item is None:
        raise RefusedError(404, "no_item", "这张图片不在审核队列中。")
    alike = items.alike(settings, item, _ALIKE)
    contents = (content, *(one["content_sha256"] for one in item.siblings), *(one.content_sha256 for one in alike))
    view = shown.View.of(settings, contents)
    return {
        "item": view.items([item])[0],
        "siblings": view.siblings(item),
        "alike": view.items(alike),
        "opinions": _opinions(settings, view.known, item),
    }


def _opinions(settings: Settings, known: Taxonomy, item: Item) -> list[dict[str, Any]] | None:
    """What was said of a disputed item; of any other nobody sees what the first one said."""
    if item.state != "disputed":
        return None
    return [
        {"by": said.person, "kind": said.kind, "labels_zh": shown.named(known, said.labels)}
        for said in opinions.looks(settings, item.content_sha256)
    ]


# ------------------------------------------------------------------ answers


@router.post("/answers")
def answer(
    request: Request, visitor: Reviewer, body: Annotated[AnswersBody, Depends(reading(AnswersBody))]
) -> dict[str, Any]:
    """Records what somebody said; each action has a result of its own."""
    settings = settings_of(request)
    actions = [_action(one) for one in body.actions]
    results = answering.answer(settings, shown.names(settings), visitor.name, actions)
    return {"results": [dataclasses.asdict(result) for result in results]}


def _action(body: ActionBody) -> Action:
    proposal = None if body.proposal is None else Proposal(**dict(body.proposal))
    return Action(**{**dict(body), "proposal": proposal})


@router.post("/undo")
def undo(request: Request, visitor: Reviewer, body: Annotated[UndoBody, Depends(reading(UndoBody))]) -> dict[str, Any]:
    """Takes back the asker's own answers; their items are theirs again."""
    settings = settings_of(request)
    results = answering.undo(settings, visitor.name, body.answer_ids)
    found = items.of_contents(settings, [result.content for result in results if result.content])
    return {"results": [dataclasses.asdict(result) for result in results], "items": shown.items(settings, found)}


@router.get("/history")
def history(
    request: Request,
    visitor: Viewer,
    count: Annotated[int, Query(ge=1, le=500)] = 50,
    everybody: bool = False,  # noqa: FBT001, FBT002 (a query parameter)
) -> dict[str, Any]:
    """The last answers: of the asker, or of everybody."""
    settings = settings_of(request)
    known = _known(settings)
    found = answering.history(settings, None if everybody else visitor.name, count)
    if visitor.role < Role.ADMIN:
        # Whoever is to look at it next must not know what was said.
        found = [row for row in found if row["by"] == visitor.name or not (row["held"] or row["second"])]
    told = [{name: cell for name, cell in row.items() if name != "second"} for row in found]
    return {"answers": [{**row, "labels_zh": _named(known, row["labels"])} for row in told]}


def _named(known: Taxonomy | None, labels: list[str]) -> list[str]:
    return list(labels) if known is None else shown.named(known, labels)
