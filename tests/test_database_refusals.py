"""What a database refuses, told apart: what may do later, and what never will; where it is stays in the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from database_server import DatabaseServer

from wwts_ops import database
from wwts_ops.database import review_people
from wwts_ops.errors import UnavailableError
from wwts_ops.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
def server(postgresql: DatabaseServer, make_settings: Make) -> Settings:
    return make_settings(database_url=postgresql.database())


def ask(settings: Settings, *asked: str) -> None:
    with database.transaction(settings) as connection:
        for one in asked:
            connection.exec_driver_sql(one)


def test_a_standby_and_a_migration_under_way_may_do_later(server: Settings) -> None:
    for asked in (
        ("SET TRANSACTION READ ONLY", "CREATE TABLE one (n int)"),
        ("SELECT * FROM review_items",),
        ("CREATE TABLE two (n int)", "SELECT m FROM two"),
        ("CREATE TABLE three (n int PRIMARY KEY)", "INSERT INTO three VALUES (1), (1)"),
    ):
        with pytest.raises(UnavailableError):
            ask(server, *asked)


def test_what_is_no_sense_never_will(server: Settings) -> None:
    for asked in (("SELECT 'a'::int",), ("SELEKT 1",), ("SELECT 1 / 0",)):
        with pytest.raises(database.RefusedError):
            ask(server, *asked)


def test_somebody_who_was_faster_in_sqlite_may_be_tried_again(make_settings: Make, tmp_path: Path) -> None:
    settings = make_settings(database_url=f"sqlite:///{tmp_path / 'wwts.db'}")
    database.upgrade(settings)
    with pytest.raises(UnavailableError), database.transaction(settings) as connection:
        connection.execute(sa.insert(review_people).values(person="a", categories=[]))


def test_visitors_are_not_told_where_the_database_is(make_settings: Make, tmp_path: Path) -> None:
    from fastapi import Request

    from wwts_ops.errors import WwtsError
    from wwts_ops.web import app

    path = tmp_path / "wwts.db"
    path.write_bytes(b"no database at all, but text of some length" * 50)
    with pytest.raises(WwtsError) as refused:
        ask(make_settings(database_url=f"sqlite:///{path}"), "SELECT 1")
    assert str(path) in str(refused.value)
    asked = Request({"type": "http", "method": "POST", "path": "/api/answers", "headers": []})
    told = app._told(asked, refused.value)
    assert told.status_code == 400
    assert str(tmp_path).encode() not in told.body
    assert "数据库".encode() in told.body
