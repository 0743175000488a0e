"""What Airflow loads as a plugin, and the only file of this package that it may load as one.

Airflow imports it by its bare file name, so it exists a second time under another name: nothing imports it, it holds
no state beyond what it hands to Airflow, and it imports nothing heavy: the pages come with the first request for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from airflow.plugins_manager import AirflowPlugin

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

log = structlog.get_logger(__name__)

_ABSENT = (
    '{"error": {"code": "not_ready", "message": "图片审核页暂时无法打开，原因写在 Airflow api-server 的日志里。"}}'
).encode()


class Pages:
    """The pages, made when first asked for. Schedulers and workers load this plugin too and never ask."""

    def __init__(self) -> None:
        self._app: _App | None = None
        self._lock: asyncio.Lock | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """As ASGI."""
        if scope["type"] != "http":
            return
        if self._app is None:
            self._lock = self._lock or asyncio.Lock()
            async with self._lock:  # two first requests make one application
                self._app = self._app or await asyncio.to_thread(_made)
        if self._app is None:
            await _say_absent(send)
        else:
            await self._app(scope, receive, send)


def _made() -> _App | None:
    """The application; None when something is missing here, which the next request finds out anew."""
    try:
        from wwts_ops import settings
        from wwts_ops.errors import WwtsError
        from wwts_ops.web import app
    except ImportError as error:
        need = "install wwts-ops[worker] where the api-server runs"
        log.warning("review_pages_unavailable", missing=error.name, need=need)
        return None
    try:
        made: _App = app.create(settings.load())
    except WwtsError as error:
        log.warning("review_pages_unavailable", reason=str(error))
        return None
    return made


async def _say_absent(send: _Send) -> None:
    headers = {b"content-type": b"application/json; charset=utf-8", b"cache-control": b"no-store"}
    headers |= {b"x-content-type-options": b"nosniff", b"retry-after": b"30"}
    await send({"type": "http.response.start", "status": 503, "headers": list(headers.items())})
    await send({"type": "http.response.body", "body": _ABSENT})


class WwtsPlugin(AirflowPlugin):  # type: ignore[misc]  # mypy does not follow Airflow
    """Makes wwts-ops known to Airflow."""

    name = "wwts_ops"
    fastapi_apps = [{"app": Pages(), "url_prefix": "/wwts", "name": "wwts-ops"}]  # noqa: RUF012 (Airflow's way)
    # Addresses are relative: Airflow's page has a <base>, which holds below a path prefix too.
    external_views = [  # noqa: RUF012
        {
            "name": "图片审核",
            "href": "wwts/",
            "destination": "nav",
            "url_route": "wwts",
            "icon": "wwts/static/icon.svg",
            "icon_dark_mode": "wwts/static/icon-dark.svg",
            "nav_top_level": True,
        }
    ]
