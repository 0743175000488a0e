"""The pages as one application below ``/wwts``: what Airflow's api-server mounts."""

from __future__ import annotations

import threading
import time
from html import escape
from pathlib import Path

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from wwts_ops import database, webpage
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.review import items
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.web import morning_routes, pictures, review_routes, security, taxonomy_routes
from wwts_ops.web.security import RefusedError, Viewer

log = structlog.get_logger(__name__)

_STATIC = Path(__file__).with_name("static")
_SIGN_IN = Path(__file__).with_name("sign_in.html")
_THEME = _STATIC / "js" / "theme.js"
#: Inside that page, as the script is that knows Airflow's theme: strangers are given no files.
_STYLE = (
    "body{font:16px/1.6 system-ui,sans-serif;margin:0;background:#fbfaf7;color:#1b1d21}"
    "main{max-width:30rem;margin:15vh auto;padding:0 1.5rem}h1{font-size:1.5rem}.soft{opacity:.75;font-size:.9rem}"
    "a{display:inline-block;padding:.4rem 1.2rem;border-radius:7px;font-weight:600;text-decoration:none;"
    "background:#1f7a72;color:#fff}"
    "[data-theme=dark]{color-scheme:dark}[data-theme=dark] body{background:#14161a;color:#eceae4}"
    "[data-theme=dark] a{background:#43ada2;color:#0d1c1a}"
)
#: Seconds for which what the night wrote is taken as read.
_LOOK_S = 60.0
_EVERY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Loader:
    """Takes what nights of older versions left in the store into the queue, now and then."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._at = 0.0

    def look(self) -> None:
        """Looks, unless somebody just did or is at it."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._at == 0.0 or time.monotonic() - self._at > _LOOK_S:
                items.sync(Store.of(self._settings), self._settings)
                self._at = time.monotonic()
        finally:
            self._lock.release()


def create(settings: Settings) -> ASGIApp:
    """The application; makes or upgrades our tables.

    Raises:
        UnavailableError: when the database does not answer.
    """
    database.upgrade(settings)
    # Nothing tells strangers what there is to ask for.
    app = FastAPI(title="wwts", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.settings = settings
    app.state.store = Store.of(settings)
    app.state.fetcher = pictures.fetcher(settings)
    app.state.loader = Loader(settings)
    _add_pages(app)
    _add_errors(app)
    return security.Headers(app)


def _add_pages(app: FastAPI) -> None:
    static = StaticFiles(directory=_STATIC)

    @app.get("/")
    def shell(visitor: Viewer) -> Response:
        """The page; all its addresses are relative, wherever Airflow is mounted."""
        del visitor
        return HTMLResponse((_STATIC / "index.html").read_bytes())

    @app.get("/static/{path:path}")
    async def asset(request: Request, visitor: Viewer, path: str) -> Response:
        """Scripts, styles and icons; browsers ask each time whether they changed."""
        del visitor
        found = await static.get_response(path, request.scope)
        found.headers["Cache-Control"] = "private, no-cache"
        return found

    for router in (review_routes.router, morning_routes.router, taxonomy_routes.router, pictures.router):
        app.include_router(router)

    @app.api_route("/{path:path}", methods=_EVERY_METHOD)
    def nothing(visitor: Viewer, path: str) -> Response:
        """Strangers are not told what there is, and what is not."""
        del visitor, path
        raise RefusedError(404, "nothing_here", "没有这个地址。")


# ------------------------------------------------------------------ what goes wrong


def _add_errors(app: FastAPI) -> None:
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(WwtsError, _told)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    if error.status == 401:
        return _stranger(request)
    return _error(error.status, error.code, error.message)


def _http(request: Request, error: Exception) -> Response:
    """Of Airflow's sign-in (a bad token is a 403 there), and of static files."""
    assert isinstance(error, HTTPException)
    if error.status_code in (401, 403):
        return _stranger(request)
    return _error(error.status_code, "http", "没有这个地址。" if error.status_code == 404 else "无法处理这个请求。")


def _invalid(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)
    where = ".".join(str(part) for part in error.errors()[0]["loc"])
    return _error(400, "bad_request", f"请求的内容有误：{where[:200]}。")


def _told(request: Request, error: Exception) -> Response:
    log.warning("page_request_failed", path=request.url.path, reason=str(error))
    if isinstance(error, UnavailableError):
        return _error(503, "unavailable", "数据库或存储暂时没有响应，请稍后再试。")
    if isinstance(error, database.RefusedError):  # its words say where the database is
        return _error(400, "database", "数据库没有接受这次请求，原因已记入日志，请联系管理员。")
    return _error(400, "refused", str(error))


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def _stranger(request: Request) -> Response:
    """A way to sign in where a page was asked for, else a plain refusal."""
    if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
        return _error(401, "anonymous", "登录已过期或尚未登录，请先登录 Airflow。")
    root = str(request.scope.get("root_path", "")).removesuffix(security.PREFIX)
    href = escape(f"{root}/api/v2/auth/login?next={root}{security.PREFIX}/")
    inside = {"href": href, "style": _STYLE, "theme": _THEME.read_text(encoding="utf-8")}
    text = _SIGN_IN.read_text(encoding="utf-8")
    for name, value in inside.items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    policy = security.POLICY
    for kind, name in (("style", "style"), ("script", "theme")):
        policy = policy.replace(f"{kind}-src 'self'", f"{kind}-src '{webpage.csp_hash(inside[name])}'")
    return HTMLResponse(text, 401, headers={"Content-Security-Policy": policy})
