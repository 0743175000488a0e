"""Our own database, the same on SQLite and on a real PostgreSQL: made once however many begin, append-only, told."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from environment import plain

import wwts_ops
from wwts_ops import database
from wwts_ops.database import alias_moves, alias_states
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

Make = Callable[..., Settings]
ROW = {
    "model_name": "m",
    "number": 1,
    "moved_at": datetime(2026, 3, 1, 2, 0, 0, 123456, tzinfo=UTC),
    "alias": "champion",
    "from_version": None,
    "to_version": "1",
    "actor": "老王 🚒",
    "action": "promote",
    "evidence": {"理由": "好", "n": None},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, make_settings: Make, tmp_path: Path) -> Settings:
    """Settings of a database with nothing in it."""
    if request.param == "sqlite":
        return make_settings(database_url=f"sqlite:///{tmp_path / '100% 库' / 'wwts.db'}")
    return make_settings(database_url=request.getfixturevalue("postgresql").database())


@pytest.fixture
def ready(empty: Settings) -> Settings:
    database.upgrade(empty)
    with database.transaction(empty) as connection:
        connection.execute(sa.insert(alias_moves).values(ROW))
    return empty


def rows(settings: Settings) -> list[dict[str, Any]]:
    with database.transaction(settings) as connection:
        return [dict(row._mapping) for row in connection.execute(sa.select(alias_moves))]


class TestUpgrade:
    def test_it_makes_what_the_code_expects(self, empty: Settings) -> None:
        database.upgrade(empty)
        with database.transaction(empty) as connection:
            context = MigrationContext.configure(connection, opts={"version_table": database.VERSION_TABLE})
            assert compare_metadata(context, database.metadata) == []

    def test_again_it_keeps_everything(self, ready: Settings) -> None:
        before = rows(ready)
        database.upgrade(ready)
        assert rows(ready) == before == [ROW]

    def test_several_processes_at_once(self, empty: Settings) -> None:
        code = "from wwts_ops import database, settings\ndatabase.upgrade(settings.load())\n"
        kept = plain()
        given = {"WWTS_STORE": empty.store, "WWTS_DATABASE_URL": empty.database_url}
        running = [
            subprocess.Popen([sys.executable, "-c", code], env={**kept, **given}, stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        told = [process.communicate()[1] for process in running]
        assert [process.returncode for process in running] == [0] * 4, told
        with database.transaction(empty) as connection:
            assert connection.execute(sa.text(f"SELECT count(*) FROM {database.VERSION_TABLE}")).scalar_one() == 1

    def test_tables_of_others_in_the_same_database_are_left_alone(self, empty: Settings) -> None:
        """Airflow and MLflow keep their own revision in `alembic_version`."""
        if not database.exists(empty):
            Path(str(sa.make_url(empty.database_url).database)).parent.mkdir()
        with database.transaction(empty) as connection:
            connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
            connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
        database.upgrade(empty)
        with database.transaction(empty) as connection:
            assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() == ["theirs"]

    def test_a_database_that_a_newer_wwts_upgraded(self, ready: Settings) -> None:
        with database.transaction(ready) as connection:
            connection.execute(sa.text(f"UPDATE {database.VERSION_TABLE} SET version_num = '9999'"))
        with pytest.raises(WwtsError, match="revision 9999, which this wwts-ops does not know"):
            database.upgrade(ready)

    def test_looking_makes_no_file(self, make_settings: Make) -> None:
        settings = make_settings()
        assert not database.exists(settings)
        assert not settings.state_dir.exists()

    def test_sqlite_writes_ahead(self, make_settings: Make) -> None:
        settings = make_settings()
        database.upgrade(settings)
        with database.transaction(settings) as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"

    def test_migrations_are_found_in_a_wheel(self, tmp_path: Path) -> None:
        """From the files that a wheel holds, elsewhere, without this checkout."""
        source = Path(wwts_ops.__file__).parent
        with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as wheel:
            for path in source.rglob("*"):
                wheel.write(path, path.relative_to(source.parent))
        zipfile.ZipFile(tmp_path / "wheel.zip").extractall(tmp_path / "site")
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from wwts_ops import database, settings\n"
            "assert database.__file__.startswith(sys.argv[1]), database.__file__\n"
            "database.upgrade(settings.load(store=sys.argv[2]))\n"
        )
        command = [sys.executable, "-I", "-c", code, str(tmp_path / "site"), str(tmp_path / "store")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "store.state" / "wwts.db").exists()


class TestAppendOnly:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE alias_moves SET actor = 'nobody'",
            "DELETE FROM alias_moves",
            "DELETE FROM alias_moves WHERE number = 1",
            "TRUNCATE alias_moves",
            "INSERT OR REPLACE INTO alias_moves SELECT model_name, number, moved_at, alias, from_version, to_version, "
            "'nobody', action, evidence FROM alias_moves",
            "INSERT INTO alias_moves SELECT model_name, number, moved_at, alias, from_version, to_version, "
            "'nobody', action, evidence FROM alias_moves WHERE true "
            "ON CONFLICT (model_name, number) DO UPDATE SET actor = 'nobody'",
        ],
    )
    def test_what_was_written_stays(self, ready: Settings, statement: str) -> None:
        sqlite = ready.database_url.startswith("sqlite")
        unknown = statement.startswith("TRUNCATE" if sqlite else "INSERT OR")
        told = "syntax error" if unknown else "append-only"
        with pytest.raises(WwtsError, match=told), database.transaction(ready) as connection:
            connection.execute(sa.text(statement))
        assert rows(ready) == [ROW]

    def test_a_number_is_given_once(self, ready: Settings) -> None:
        with pytest.raises(WwtsError), database.transaction(ready) as connection:
            connection.execute(sa.insert(alias_moves).values(ROW | {"actor": "nobody"}))
        assert rows(ready) == [ROW]

    def test_a_state_is_idle_or_moving(self, ready: Settings) -> None:
        with pytest.raises(WwtsError), database.transaction(ready) as connection:
            connection.execute(sa.insert(alias_states).values(model_name="m", revision=0, state="asleep"))


class TestTransaction:
    def test_a_failure_undoes_it(self, ready: Settings) -> None:
        with pytest.raises(WwtsError), database.transaction(ready) as connection:
            connection.execute(sa.insert(alias_moves), [ROW | {"number": 2}, ROW])
        assert rows(ready) == [ROW]

    def test_times_come_back_in_utc(self, ready: Settings) -> None:
        shanghai = datetime(2026, 3, 1, 10, tzinfo=timezone(timedelta(hours=8)))
        with database.transaction(ready) as connection:
            connection.execute(sa.insert(alias_moves).values(ROW | {"number": 2, "moved_at": shanghai}))
        assert rows(ready)[1]["moved_at"] == shanghai
        assert {row["moved_at"].tzinfo for row in rows(ready)} == {UTC}

    def test_a_time_without_a_zone_is_a_mistake(self, ready: Settings) -> None:
        with pytest.raises(WwtsError, match="no time zone"), database.transaction(ready) as connection:
            connection.execute(sa.insert(alias_moves).values(ROW | {"number": 2, "moved_at": datetime(2026, 3, 1)}))

    def test_the_clock_is_of_now(self, ready: Settings) -> None:
        with database.transaction(ready) as connection:
            first, second = database.now(connection), database.now(connection)
        assert first.tzinfo is not None
        assert first <= second
        assert abs(second - datetime.now(UTC)) < timedelta(minutes=1)


class TestRefused:
    @pytest.mark.parametrize("form", ["postgresql+psycopg://anna:{0}@{1}/wwts", "postgresql://{1}/wwts?password={0}"])
    def test_a_server_that_is_away_is_tried_again(self, make_settings: Make, form: str) -> None:
        secret = f"s3cret-{uuid.uuid4().hex}"
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))  # taken, but nobody listens
            address = f"127.0.0.1:{held.getsockname()[1]}"
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1.*/wwts does not answer") as caught:
                database.upgrade(make_settings(database_url=form.format(secret, address)))
        assert secret not in str(caught.value)
        assert caught.value.__suppress_context__

    @pytest.mark.parametrize("url", ["mysql://anna:s3cret@host/wwts", "sqlite://", "sqlite:///:memory:", "s3cret"])
    def test_what_is_no_database_of_ours(self, make_settings: Make, url: str) -> None:
        with pytest.raises(WwtsError, match="WWTS_DATABASE_URL") as caught:
            database.upgrade(make_settings(database_url=url))
        assert "s3cret" not in str(caught.value)
        assert not isinstance(caught.value, UnavailableError)

    def test_a_file_that_is_no_database(self, make_settings: Make, tmp_path: Path) -> None:
        (tmp_path / "wwts.db").write_bytes(b"no database, but long enough to be looked at" * 100)
        with pytest.raises(WwtsError, match="is no SQLite database"):
            database.upgrade(make_settings(database_url=f"sqlite:///{tmp_path / 'wwts.db'}"))

    def test_a_folder_that_cannot_be_made(self, make_settings: Make, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UnavailableError, match="cannot be written to"):
            database.upgrade(make_settings(database_url=f"sqlite:///{tmp_path / 'file' / 'wwts.db'}"))
