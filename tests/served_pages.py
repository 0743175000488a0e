"""A real api-server with our plugin, its users signed in: for tests that need one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import airflow_template
import httpx
from conftest import free_ports

from wwts_ops import servers
from wwts_ops.settings import Settings

START_S = 240
COOKIE = "_token"
SIMPLE, FAB = "simple", "fab"
NOTHING: Mapping[str, str] = MappingProxyType({})
FAB_MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"

#: All users at once: each `airflow users create` would take eight seconds.
CREATE_USERS = """
import json, sys
from airflow.providers.fab.www.app import create_app
app = create_app(enable_plugins=False)
with app.app_context():
    manager = app.appbuilder.sm
    manager.sync_roles()
    for name, (role, password) in json.loads(sys.argv[1]).items():
        made = manager.add_user(name, name, "x", f"{name}@example.com", manager.find_role(role), password)
        assert made, name
"""


@dataclass
class Served:
    """A running api-server.

    Attributes:
        url: Airflow's root, without a slash at its end.
        environment: of the server and of what asks its database.
        log: what it says.
        passwords: by user.
        process: replaced by :meth:`start`.
    """

    url: str
    environment: Mapping[str, str]
    log: Path
    passwords: Mapping[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = None
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def pages(self) -> str:
        """Where the review page is."""
        return f"{self.url}/wwts/"

    def start(self) -> None:
        """Starts the server, on the same port as before, and waits until it answers."""
        command = ["-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=dict(self.environment),
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        limit = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < limit, self.log.read_text(errors="replace")[-3000:]
            try:
                httpx.get(f"{self.url}/api/v2/version", trust_env=False, timeout=30).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """Ends it at once, whatever it is doing."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def token(self, user: str) -> str:
        """A bearer token of ``user``, which is the session cookie ``_token`` too."""
        if user not in self.tokens:
            login = {"username": user, "password": self.passwords[user]}
            answer = httpx.post(f"{self.url}/auth/token", json=login, trust_env=False, timeout=60)
            assert answer.status_code == 201, answer.text
            self.tokens[user] = str(answer.json()["access_token"])
        return self.tokens[user]

    def browser(self, user: str | None = None) -> httpx.Client:
        """A client that asks as a browser on the page does: with the cookie, and saying where it comes from."""
        headers = {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{urlsplit(self.url).netloc}"}
        cookies = {} if user is None else {COOKIE: self.token(user)}
        return httpx.Client(base_url=self.pages, headers=headers, cookies=cookies, trust_env=False, timeout=60)


@contextmanager
def serving(
    settings: Settings,
    folder: Path,
    users: Mapping[str, str],
    auth: str = SIMPLE,
    prefix: str = "",
    more: Mapping[str, str] = NOTHING,
) -> Iterator[Served]:
    """A server over what ``settings`` name, until the block ends.

    Args:
        settings: of the shop; who may review is in them.
        folder: an empty one for Airflow.
        users: name to Airflow role (simple: ``admin``, ``op``, ``user``, ``viewer``; FAB: ``Admin``, ``Viewer``, …).
        auth: ``simple`` or ``fab``, the auth manager.
        prefix: path that Airflow is at, such as ``/airflow``.
        more: further variables of its environment.
    """
    home = folder / "home"
    environment = servers.airflow_environment(settings, home)
    passwords = {name: f"{name}-password" for name in users}
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}{prefix}"
    dags = folder / "dags"
    dags.mkdir()
    environment |= {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__API__BASE_URL": f"{url}/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in users.items()),
        **more,
    }
    Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).write_text(json.dumps(passwords))
    if auth == FAB:
        environment["AIRFLOW__CORE__AUTH_MANAGER"] = FAB_MANAGER
    if auth == FAB:
        # It has tables of its own.
        servers.migrate(environment)
        accounts = {name: (role, passwords[name]) for name, role in users.items()}
        command = [sys.executable, "-c", CREATE_USERS, json.dumps(accounts)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        airflow_template.put(home)
    served = Served(url, environment, folder / "api-server.log", passwords, port)
    try:
        served.start()
        yield served
    finally:
        served.kill()
