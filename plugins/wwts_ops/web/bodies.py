"""What a browser may send: JSON of known shape and limited size, read only once it is known who sends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wwts_ops.review.items import Filters
from wwts_ops.web.security import RefusedError, Viewer

#: Bytes of a body.
LARGEST = 256 * 2**10
#: Numbers of the database are no larger.
LARGEST_NUMBER = 2**63 - 1
#: Most that one request may name: contents, actions, filters.
MOST = 200

Content = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: An id that a browser made, or ours for an answer's further contents.
AnswerId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_:-]{8,120}$")]
Short = Annotated[str, StringConstraints(max_length=200)]
Long = Annotated[str, StringConstraints(max_length=2000)]
Values = Annotated[tuple[Short, ...], Field(max_length=MOST)]
#: As long as the taxonomy lets one be.
CategoryPath = Annotated[str, StringConstraints(max_length=500)]
CategoryPaths = Annotated[tuple[CategoryPath, ...], Field(max_length=MOST)]
Contents = Annotated[tuple[Content, ...], Field(max_length=MOST)]
#: What a page has already, and all that was skipped on it.
Held = Annotated[tuple[Content, ...], Field(max_length=1000)]

T = TypeVar("T", bound="Body")


class Body(BaseModel):
    """A JSON object; a field that is not known is refused, and no value is bent into another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FiltersBody(Body):
    """As ``review.items.Filters``."""

    dates: Values = ()
    categories: CategoryPaths = ()
    labels: Values = ()
    decisions: Values = ()
    reasons: Values = ()
    states: Values = ()

    def filters(self) -> Filters:
        """Of these."""
        return Filters(**dict(self))


class CategoriesBody(Body):
    """Category paths that somebody looks after."""

    categories: CategoryPaths


class TakeBody(Body):
    """Which items somebody wants to look at next."""

    filters: FiltersBody = FiltersBody()
    count: int = Field(ge=1, le=100)
    held: Held = ()


class GridBody(Body):
    """Which grid somebody wants to look at."""

    label_id: Short
    filters: FiltersBody = FiltersBody()
    count: int = Field(50, ge=1, le=50)
    held: Held = ()


class ContentsBody(Body):
    """Contents."""

    contents: Contents


class ProposalBody(Body):
    """A label that somebody missed."""

    label_zh: Short
    category_path: Long = ""
    synonyms_zh: Long = ""
    label_en: Short = ""


class ActionBody(Body):
    """As ``review.answering.Action``."""

    answer_id: AnswerId
    content: Content
    revision: int | None = Field(None, ge=0, le=LARGEST_NUMBER)
    kind: Literal["confirm", "correct", "wrong_unknown", "reject_image"]
    labels: Annotated[tuple[Short, ...], Field(max_length=50)] = ()
    reason: Short | None = None
    comment: Long | None = None
    also: Contents = ()
    shared_ok: bool = False
    badcase: bool = False
    never_regress: bool = False
    later: bool = False
    proposal: ProposalBody | None = None


class AnswersBody(Body):
    """What somebody said, in the order in which they said it."""

    actions: Annotated[tuple[ActionBody, ...], Field(min_length=1, max_length=MOST)]


class UndoBody(Body):
    """Answers that somebody takes back."""

    answer_ids: Annotated[tuple[AnswerId, ...], Field(min_length=1, max_length=MOST)]


class SelectionBody(Body):
    """Which answers to take back in bulk, and (of a take-back) what its preview told; times as ISO 8601 with a zone."""

    person: Short
    since: Short
    until: Short
    label_id: Short | None = None
    upto: int | None = Field(None, ge=0, le=LARGEST_NUMBER)
    at: Short | None = None
    count: int | None = Field(None, ge=0, le=LARGEST_NUMBER)


class DecisionBody(Body):
    """What becomes of a proposed label."""

    decision: Literal["accept", "merge", "refuse"]
    label_id: Short | None = None
    label_zh: Short | None = None
    category_path: Long | None = None


def reading(model: type[T], largest: int = LARGEST) -> Callable[..., Awaitable[T]]:
    """A dependency that reads a body of type ``model``; strangers' bodies are never read.

    A route that changes something depends on its role beside this.
    """

    async def read(request: Request, visitor: Viewer) -> T:
        del visitor  # asked for so that strangers are refused first
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(415, "not_json", "只接受 JSON。")
        raw = await _limited(request, largest)
        try:
            return model.model_validate_json(raw)
        except ValidationError as error:
            raise RefusedError(400, "bad_body", f"请求的内容有误：{_told(error)}。") from error

    return read


async def _limited(request: Request, largest: int) -> bytes:
    length = request.headers.get("content-length", "")
    too_large = RefusedError(413, "too_large", f"请求太大，最多 {largest // 1024:,} KB。")
    if length.isdecimal() and int(length) > largest:
        raise too_large
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > largest:
            raise too_large
    return bytes(data)


def _told(error: ValidationError) -> str:
    """The first fault, and where; never what was sent."""
    first: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "JSON"
    return f"{where[:200]}（{first['type']}）"
