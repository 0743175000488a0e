"""What the review page refuses: against a real api-server, with Airflow's simple auth manager and with FAB's."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa
from environment import clean
from review_shop import ADMIN, REVIEWERS, VIEWER, ReviewShop
from served_pages import COOKIE, FAB, SIMPLE, Served, serving

from wwts_ops import database, published
from wwts_ops.database import review_items

pytestmark = pytest.mark.slow

REVIEWER = REVIEWERS[0]
#: May do everything in Airflow, and on the page no more than look.
OPERATOR = "运维"
AUDIT_NAME = "0123456789ab-0123456789ab-0123456789ab"
HOSTILE = "<script>document.title = 'taken'</script>"
#: Values of path parameters, so that every route can be asked for.
PLACES = {"content": "0" * 64, "version": "t1", "day": "2026-03-01", "name": AUDIT_NAME, "number": "p-1"}
PLACES |= {"path": "main.js", "suffix": "csv"}
LIST_ROUTES = """
import json
from wwts_ops import settings
from wwts_ops.web import app
routes = app.create(settings.load())._app.routes
print(json.dumps([[method, route.path] for route in routes for method in sorted(getattr(route, "methods", ()))]))
"""


@dataclass(frozen=True)
class Scene:
    """A shop, the server over it, and all that can be asked of it as ``(method, path below the page)``."""

    shop: ReviewShop
    served: Served
    routes: tuple[tuple[str, str], ...]

    @property
    def reads(self) -> list[str]:
        return [path for method, path in self.routes if method == "GET"]

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [one for one in self.routes if one[0] not in ("GET", "HEAD")]

    @property
    def content(self) -> str:
        """One that waits."""
        with database.reading(self.shop.settings) as connection:
            asked = sa.select(review_items.c.content_sha256).order_by(review_items.c.value.desc()).limit(1)
            return str(connection.execute(asked).scalar_one())


@pytest.fixture(scope="module", params=[SIMPLE, FAB])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """FAB's is below a path prefix, as behind a company's proxy, and lets strangers into Airflow itself."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        shop = ReviewShop.made(folder, 40)
        for key in ("reports/date=2026-03-01/index.html", f"tagdiffs/{AUDIT_NAME}/index.html"):
            shop.store.write_bytes(key, f"<!DOCTYPE html><title>日报</title>{HOSTILE}".encode())
        looks, may = ("viewer", "admin") if request.param == SIMPLE else ("Viewer", "Admin")
        users = {**dict.fromkeys((*REVIEWERS, ADMIN, VIEWER), looks), OPERATOR: may}
        more = {} if request.param == SIMPLE else {"AIRFLOW__FAB__AUTH_ROLE_PUBLIC": "Viewer"}
        prefix = "" if request.param == SIMPLE else "/airflow"
        with serving(shop.settings, folder, users, request.param, prefix, more) as served:
            yield Scene(shop, served, routes(served))


def routes(served: Served) -> tuple[tuple[str, str], ...]:
    """As the application itself tells, so that a route that is added later is checked too."""
    command = [sys.executable, "-c", LIST_ROUTES]
    done = subprocess.run(command, env=dict(served.environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 30
    filled = {
        (method, re.sub(r"{(\w+)(:path)?}", lambda part: PLACES[part[1]], path).lstrip("/")) for method, path in found
    }
    return tuple(sorted(filled))


@pytest.fixture
def browse(scene: Scene) -> Iterator[Callable[[str | None], httpx.Client]]:
    """Makes browsers of users."""
    opened: list[httpx.Client] = []

    def make(user: str | None) -> httpx.Client:
        opened.append(scene.served.browser(user))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


Browse = Callable[[str | None], httpx.Client]


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


# ------------------------------------------------------------------ who


def test_strangers_get_nothing(scene: Scene, browse: Browse) -> None:
    stranger = browse(None)
    named = {"", "static/main.js", "api/me", "api/morning", "api/taxonomy", "api/labels/t1"}
    named |= {f"pictures/{'0' * 64}", f"originals/{'0' * 64}", "reports/2026-03-01/", f"tagdiffs/{AUDIT_NAME}/"}
    assert named <= set(scene.reads)
    real = [f"pictures/{scene.content}", f"originals/{scene.content}", "static/icon.svg", "static/js/main.js"]
    got = {path: stranger.get(path).status_code for path in [*scene.reads, *real, "nothing/here", "openapi.json"]}
    assert got == dict.fromkeys(got, 401)
    written = {one: stranger.request(one[0], one[1], json={}).status_code for one in scene.writes}
    assert written == dict.fromkeys(written, 401)
    assert stranger.post("api/answers", content=b"{not json").status_code == 401


@pytest.mark.parametrize("token", ["x", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."])
def test_a_token_that_nobody_signed_is_nobodys(scene: Scene, token: str) -> None:
    ways: list[dict[str, Any]] = [{"cookies": {COOKIE: token}}, {"headers": {"Authorization": f"Bearer {token}"}}]
    for way in ways:
        answer = httpx.get(f"{scene.served.pages}api/me", trust_env=False, timeout=60, **way)
        assert answer.status_code == 401


def test_who_opens_the_page_without_a_session_is_told_where_to_sign_in(scene: Scene, browse: Browse) -> None:
    answer = browse(None).get('reports/"><script>/', headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("text/html")
    # Nothing of the address; one script, which follows Airflow's theme, and by its hash alone.
    (script,) = re.findall("<script>(.*?)</script>", answer.text, re.DOTALL)
    assert answer.text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy(answer)["script-src"] == [f"'sha256-{digest}'"]
    assert policy(answer)["style-src"][0].startswith("'sha256-")
    (href,) = re.findall('href="([^"]+)"', answer.text)
    there = httpx.get(f"http://{urlsplit(scene.served.url).netloc}{href}", trust_env=False, timeout=60)
    assert there.status_code in (302, 307)
    assert "/auth/login" in there.headers["location"]


def test_cookie_and_bearer_token_are_the_same_person(scene: Scene, browse: Browse) -> None:
    assert browse(REVIEWER).get("api/me").json()["user"] == REVIEWER
    bearer = {"Authorization": f"Bearer {scene.served.token(ADMIN)}"}
    with httpx.Client(base_url=scene.served.pages, headers=bearer, trust_env=False, timeout=60) as script:
        assert script.get("api/me").json()["role"] == "admin"
        # No browser adds such a header by itself, so there is no other site to fear.
        assert script.put("api/me/categories", json={"categories": []}).status_code == 200
        script.cookies.set(COOKIE, scene.served.token(ADMIN))
        assert code(script.put("api/me/categories", json={"categories": []})) == "cross_site"


# ------------------------------------------------------------------ what each may


@pytest.mark.parametrize("user", [VIEWER, OPERATOR])
def test_a_viewer_looks_and_writes_nothing(scene: Scene, browse: Browse, user: str) -> None:
    viewer = browse(user)
    assert viewer.get("api/me").json()["role"] == "viewer"
    assert viewer.get(f"pictures/{scene.content}").headers["content-type"] == "image/jpeg"
    assert viewer.get(f"api/items/{scene.content}").json()["item"]["content"] == scene.content
    known = [one for one in scene.writes if "main.js" not in one[1]]
    assert len(known) > 10
    answers = {one: viewer.request(one[0], one[1], json={}) for one in known}
    assert {one: answer.status_code for one, answer in answers.items()} == dict.fromkeys(known, 403)
    assert {code(answer) for answer in answers.values()} == {"not_reviewer", "not_admin"}


def test_a_reviewer_neither_undoes_in_bulk_nor_changes_the_taxonomy(scene: Scene, browse: Browse) -> None:
    reviewer = browse(REVIEWER)
    assert reviewer.put("api/me/categories", json={"categories": []}).status_code == 200
    forbidden = [one for one in scene.writes if re.match("api/(bulk|taxonomy|proposals)/", one[1])]
    assert len(forbidden) >= 6
    for method, path in forbidden:
        assert code(reviewer.request(method, path, json={})) == "not_admin", path
        # The same from an admin is refused for what it says, not for who says it.
        assert browse(ADMIN).request(method, path, json={}).status_code == 400, path


def test_a_reviewer_cannot_run_a_dag_and_who_may_is_no_reviewer(scene: Scene) -> None:
    def trigger(user: str) -> int:
        url = f"{scene.served.url}/api/v2/dags/tag_catalog/dagRuns"
        bearer = {"Authorization": f"Bearer {scene.served.token(user)}"}
        asked = httpx.post(url, json={"logical_date": None}, headers=bearer, trust_env=False, timeout=60)
        return asked.status_code

    assert {user: trigger(user) for user in (REVIEWER, ADMIN, VIEWER)} == {REVIEWER: 403, ADMIN: 403, VIEWER: 403}
    assert trigger(OPERATOR) == 404  # may, but there is none here


# ------------------------------------------------------------------ how it is asked


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {},
    ],
)
def test_another_site_writes_nothing_with_somebodys_cookie(scene: Scene, headers: dict[str, str]) -> None:
    cookies = {COOKIE: scene.served.token(REVIEWER)}
    with httpx.Client(base_url=scene.served.pages, cookies=cookies, trust_env=False, timeout=60) as other:
        answer = other.put("api/me/categories", json={"categories": []}, headers=headers)
        assert (answer.status_code, code(answer)) == (403, "cross_site")


def test_the_page_itself_may_write_where_browsers_do_not_say_the_site(scene: Scene) -> None:
    cookies = {COOKIE: scene.served.token(REVIEWER)}
    origin = {"Origin": f"http://{urlsplit(scene.served.url).netloc}"}
    with httpx.Client(base_url=scene.served.pages, cookies=cookies, trust_env=False, timeout=60) as plain:
        assert plain.put("api/me/categories", json={"categories": []}, headers=origin).status_code == 200


def test_only_json_is_read(scene: Scene, browse: Browse) -> None:
    reviewer = browse(REVIEWER)
    body = b'{"contents": []}'
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""):
        answer = reviewer.post("api/release", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, code(answer)) == (415, "not_json"), kind
    assert reviewer.post("api/release", content=body, headers={"Content-Type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"contents": "x"}',
        b'{"contents": ["../../etc/passwd"]}',
        b'{"contents": [], "more": 1}',
        b'{"contents": [' + b",".join([b'"' + b"0" * 64 + b'"'] * 201) + b"]}",
        b"[" * 100_000,
        b'{"contents": ["\xff"]}',
    ],
)
def test_a_body_of_another_shape_is_refused_without_being_repeated(browse: Browse, body: bytes) -> None:
    answer = browse(REVIEWER).post("api/release", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, code(answer)) == (400, "bad_body")
    assert "passwd" not in answer.text


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(browse: Browse) -> None:
    reviewer, kind = browse(REVIEWER), {"Content-Type": "application/json"}
    large = b'{"contents": []}' + b" " * 2**18
    assert code(reviewer.post("api/release", content=large, headers=kind)) == "too_large"
    pieces = (large[start : start + 10_000] for start in range(0, len(large), 10_000))
    answer = reviewer.post("api/release", content=pieces, headers=kind)
    assert (answer.status_code, code(answer)) == (413, "too_large")


def test_there_is_no_schema_to_read(browse: Browse) -> None:
    admin = browse(ADMIN)
    for path in ("openapi.json", "docs", "docs/oauth2-redirect", "redoc", "api/openapi.json"):
        assert admin.get(path).status_code == 404, path


# ------------------------------------------------------------------ what comes back


def policy(answer: httpx.Response) -> dict[str, list[str]]:
    parts = [part.split() for part in answer.headers["content-security-policy"].split(";")]
    return {part[0]: part[1:] for part in parts}


def test_airflow_may_frame_the_page_and_nothing_else_may_run_in_it(scene: Scene, browse: Browse) -> None:
    reviewer = browse(REVIEWER)
    for path in ("", "api/me", "static/js/main.js", "static/icon.svg", f"pictures/{scene.content}", "nothing/here"):
        answer = reviewer.get(path)
        found = policy(answer)
        assert found["default-src"] == ["'none'"], path
        assert found["script-src"] == found["style-src"] == ["'self'"], path
        assert found["frame-ancestors"] == ["'self'"], path
        assert "unsafe" not in answer.headers["content-security-policy"], path
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["referrer-policy"] == "same-origin", path
        assert answer.headers.get("x-frame-options", "SAMEORIGIN").upper() == "SAMEORIGIN", path
    assert reviewer.get("api/me").headers["cache-control"] == "no-store"
    assert policy(browse(None).get("api/me"))["default-src"] == ["'none'"]


def test_the_page_finds_its_own_files_wherever_airflow_is(scene: Scene, browse: Browse) -> None:
    reviewer = browse(REVIEWER)
    page = reviewer.get("", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    links = [link for link in re.findall(r'(?:src|href)="([^"]+)"', page.text) if not link.startswith("data:")]
    assert len(links) > 3
    for link in links:
        assert not link.startswith(("/", "http")), "an absolute address is wrong below a path prefix"
        assert reviewer.get(link).status_code == 200, link


def test_airflow_shows_the_page_in_its_menu(scene: Scene, browse: Browse) -> None:
    token = {"Authorization": f"Bearer {scene.served.token(OPERATOR)}"}
    url = f"{scene.served.url}/api/v2/plugins"
    plugins = httpx.get(url, headers=token, trust_env=False, timeout=60).json()["plugins"]
    (mine,) = (plugin for plugin in plugins if plugin["name"] == "wwts_ops")
    (view,) = mine["external_views"]
    assert view["destination"] == "nav"
    # Airflow's page has a <base>, which these are joined with.
    for address in (view["href"], view["icon"], view["icon_dark_mode"]):
        assert not address.startswith("/")
        assert browse(REVIEWER).get(f"{scene.served.url}/{address}").status_code == 200


def test_stored_pages_run_nothing(browse: Browse) -> None:
    for path in ("reports/2026-03-01/", f"tagdiffs/{AUDIT_NAME}/"):
        answer = browse(VIEWER).get(path)
        found = policy(answer)
        assert answer.text.endswith(HOSTILE)
        assert found["sandbox"] == []
        assert found["default-src"] == ["'none'"]
        assert "script-src" not in found
        assert found["frame-ancestors"] == ["'self'"]


def test_names_stay_text(scene: Scene, browse: Browse) -> None:
    answer = browse(REVIEWER).get("api/taxonomy")
    assert answer.headers["content-type"] == "application/json"
    names = [label["label_zh"] for label in answer.json()["labels"]]
    assert [name for name in names if "<b>" in name]
    refused = browse(REVIEWER).get(f"api/items/{HOSTILE}")
    assert refused.headers["content-type"] == "application/json"
    assert "<script" not in refused.text


OUTSIDE = (
    "static/../sign_in.html",
    "static/../../settings.py",
    "static/..%2f..%2fsettings.py",
    "static/%2e%2e/%2e%2e/settings.py",
    "static/....//....//settings.py",
    "static//etc/passwd",
    "static/%2fetc%2fpasswd",
    "static/js/main.js%00.css",
    "static/",
    "pictures/..%2f..%2fpublished%2fcurrent.json",
    "pictures/../published/current.json",
    "originals/..%2f..%2f..%2fetc%2fpasswd",
    "originals/%2fetc%2fpasswd",
    "reports/..%2f..%2fpublished/",
    "reports/2026-03-01%2f..%2f..%2ftaxonomy/",
    "reports/2026-13-01/",
    "tagdiffs/../published/",
    "tagdiffs/..%2ftaxonomy/",
    "tagdiffs/./",
    "api/labels/..%2f..%2fpublished",
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_outside(scene: Scene, path: str) -> None:
    place = urlsplit(scene.served.pages)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    # As it is: a client of any comfort would tidy the path up.
    connection.request("GET", place.path + path, headers={"Cookie": f"{COOKIE}={scene.served.token(ADMIN)}"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    assert answer.status in (400, 404), path
    assert answer.getheader("content-type") == "application/json", path
    assert len(data) < 300, path


# ------------------------------------------------------------------ originals


def add_item(shop: ReviewShop, data: bytes, path: Path) -> str:
    """Another item, whose original is ``data`` in the file ``path``."""
    path.write_bytes(data)
    content = hashlib.sha256(data).hexdigest()
    with database.transaction(shop.settings) as connection:
        row = dict(connection.execute(sa.select(review_items).limit(1)).mappings().one())
        row |= {"content_sha256": content, "uri": str(path), "siblings": [], "near_group": None, "state": "done"}
        connection.execute(sa.insert(review_items), [row])
    return content


def test_an_original_is_what_was_tagged_or_nothing(scene: Scene, browse: Browse, tmp_path: Path) -> None:
    reviewer = browse(REVIEWER)
    shown = reviewer.get(f"originals/{scene.content}")
    assert hashlib.sha256(shown.content).hexdigest() == scene.content
    assert shown.headers["content-type"] == "image/jpeg"
    assert "sandbox" in policy(shown)
    picture = tmp_path / "一张.jpg"
    content = add_item(scene.shop, shown.content + b"another", picture)
    assert reviewer.get(f"originals/{content}").status_code == 200
    picture.write_bytes(shown.content)
    assert code(reviewer.get(f"originals/{content}")) == "changed"
    picture.unlink()
    gone = reviewer.get(f"originals/{content}")
    assert code(gone) == "unreadable"
    assert str(tmp_path) not in gone.text


@pytest.mark.parametrize(
    "data",
    [
        b"<html><script>alert(1)</script>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b"%PDF-1.7",
        b"\x00\x00\x00\x1cftypisom....",
        b"RIFF....WAVEfmt ",
        b"",
    ],
)
def test_what_is_no_picture_is_not_served(scene: Scene, browse: Browse, tmp_path: Path, data: bytes) -> None:
    unique = data + str(tmp_path).encode() if data else data
    content = add_item(scene.shop, unique, tmp_path / "x.jpg")
    answer = browse(REVIEWER).get(f"originals/{content}")
    assert (answer.status_code, code(answer)) == (415, "not_shown")


def test_originals_of_what_nobody_was_asked_about_are_not_read(scene: Scene, browse: Browse) -> None:
    reviewer, settings = browse(REVIEWER), scene.shop.settings
    with database.reading(settings) as connection:
        rows = connection.execute(sa.select(review_items.c.content_sha256, review_items.c.siblings)).all()
    known = {row.content_sha256 for row in rows} | {one["content_sha256"] for row in rows for one in row.siblings}
    pictures = {
        hashlib.sha256(file.read_bytes()).hexdigest() for file in (scene.shop.folder / "shop" / "图片").iterdir()
    }
    content = min(pictures - known)
    assert code(reviewer.get(f"originals/{content}")) == "no_item"
    # What stands beside something that people look at may be seen with it.
    by_sku: dict[str, set[str]] = {}
    for one in published.read(scene.shop.store).to_pylist():
        by_sku.setdefault(one["sku_id"], set()).add(one["content_sha256"])
    pair = next(sorted(contents) for contents in by_sku.values() if len(contents) > 1)
    first, second = pair[:2]
    with database.transaction(settings) as connection:
        row = dict(connection.execute(sa.select(review_items).limit(1)).mappings().one())
        connection.execute(sa.delete(review_items).where(review_items.c.content_sha256.in_(pair)))
    assert code(reviewer.get(f"originals/{second}")) == "no_item"
    with database.transaction(settings) as connection:
        connection.execute(sa.insert(review_items), [{**row, "content_sha256": first, "siblings": []}])
    shown = reviewer.get(f"originals/{second}")
    assert hashlib.sha256(shown.content).hexdigest() == second
    assert code(reviewer.get(f"originals/{content}")) == "no_item"
