"""Who asks, and what is refused: everything on the pages passes here.

Airflow's own auth manager says who somebody is (session cookie or bearer token); ``review.people`` says what they may
do. Rights to DAGs are neither asked for nor given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.core_api.security import get_user
from airflow.configuration import conf
from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wwts_ops.review import people
from wwts_ops.review.people import Role
from wwts_ops.settings import Settings

#: Where Airflow mounts the pages, below its own root.
PREFIX = "/wwts"

#: Airflow may frame the pages, nobody else; they load nothing from elsewhere and run no script but their own.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
#: For documents that were stored, and files of strangers: whatever is in them, it runs nothing and is nobody.
SANDBOX = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SAFE = frozenset({"GET", "HEAD"})
#: In whose name the page writes, percent-encoded: who was signed in when it was opened.
_SPEAKER = "x-wwts-user"


class RefusedError(Exception):
    """A request that is not answered. ``message`` is for the person, ``code`` for the page's own script."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Visitor:
    """Somebody who is signed in to Airflow."""

    name: str
    role: Role


def settings_of(request: Request) -> Settings:
    """The settings that the pages were started with."""
    found: Settings = request.app.state.settings
    return found


def _visitor(request: Request, user: Annotated[Any, Depends(get_user)]) -> Visitor:
    # FAB can let strangers in as a public user; what is shown here is for people with names.
    if getattr(user, "is_anonymous", False) or not user.get_name():
        raise RefusedError(401, "anonymous", "请先登录 Airflow。")
    name = str(user.get_name())
    if request.method not in _SAFE:
        check_origin(request)
        _check_speaker(request, name)
    return Visitor(name, people.role(settings_of(request), name))


#: Whoever is signed in.
Viewer = Annotated[Visitor, Depends(_visitor)]


def _reviewer(visitor: Viewer) -> Visitor:
    if visitor.role < Role.REVIEWER:
        raise RefusedError(403, "not_reviewer", "您只有查看权限；如需作答，请管理员把您的用户名加入 WWTS_REVIEWERS。")
    return visitor


def _admin(visitor: Viewer) -> Visitor:
    if visitor.role < Role.ADMIN:
        raise RefusedError(403, "not_admin", "此操作需要审核管理员（WWTS_REVIEW_ADMINS）权限。")
    return visitor


#: Whoever may answer.
Reviewer = Annotated[Visitor, Depends(_reviewer)]
#: Whoever may change the taxonomy and take back what others answered.
Admin = Annotated[Visitor, Depends(_admin)]


def check_origin(request: Request) -> None:
    """Refuses a write that another site's page may have sent with the cookie of who looks at it.

    Raises:
        RefusedError: 403.
    """
    headers = request.headers
    bearer = headers.get("authorization", "").lower().startswith("bearer ")
    if bearer and COOKIE_NAME_JWT_TOKEN not in request.cookies:
        return  # no browser adds that by itself
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    # Browsers say nothing of the site where a page came over plain http from another machine.
    same = site == "same-origin" if site is not None else origin is not None and _host(origin) in _hosts(request)
    if not same:
        raise RefusedError(403, "cross_site", "此请求不是从本页面发出的，已拒绝。")


def _check_speaker(request: Request, name: str) -> None:
    """Refuses what one person said on a page and the cookie of another, who signed in since, would sign."""
    said = request.headers.get(_SPEAKER)
    if said is not None and unquote(said) != name:
        shown = unquote(said)[:100]
        raise RefusedError(403, "other_person", f"现在登录的是{name}，而这个页面是{shown}打开的；请刷新页面。")


def _hosts(request: Request) -> set[str]:
    """How this server is addressed: as the request says, or, behind a proxy that changes that, as it is configured."""
    configured = (conf.get("api", "base_url", fallback=""), settings_of(request).public_url)
    return {request.headers.get("host", "").lower(), *(_host(address) for address in configured)} - {""}


def _host(address: str) -> str:
    try:
        return urlsplit(address).netloc.lower()
    except ValueError:
        return ""


class Headers:
    """Adds the security headers to every answer that does not bring its own."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] = _HEADERS) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    found.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, headed)
