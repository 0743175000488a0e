"""Our own database: SQLite beside a local store, or PostgreSQL; its tables grow by the migrations beside this file."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event, exc

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

#: Of our own, so that Airflow's or MLflow's migrations in the same database are not taken for ours.
VERSION_TABLE = "wwts_alembic_version"
#: Any number that is ours alone: two upgrades of one PostgreSQL wait for each other by it.
_UPGRADE_LOCK = 0x77777473
_BUSY_S = 30.0
_CONNECT_S = 10
_READING = "wwts_reading"

#: Values that one statement names: PostgreSQL's protocol bears 65,535 parameters, SQLite 32,766.
_NAMED_AT_ONCE = 1000

T = TypeVar("T")

#: SQLSTATEs that are nobody's mistake who asks: a standby or a read-only transaction, tables or columns that a
#: migration under way has not made yet, a right not granted yet.
_PASSING_STATES = ("25", "42P01", "42703", "42501")


class RefusedError(WwtsError):
    """The database refuses what was asked. The message says where the database is: for logs, not for visitors."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Aware UTC times on every database; SQLite itself forgets the zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """To UTC; a time without a zone is a mistake of the caller's."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """From the database, which kept UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()

#: One row a registered model: who moves its aliases now, and what they mean to do. Every change raises ``revision``.
alias_states = sa.Table(
    "alias_states",
    metadata,
    sa.Column("model_name", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("intent", sa.JSON(none_as_null=True)),
    sa.Column("run", sa.Text),
    sa.Column("holder", sa.Text),
    sa.Column("expires_at", UtcDateTime),
    sa.CheckConstraint("state IN ('idle', 'moving')", name="alias_states_state"),
)

#: Every move of an alias there ever was; triggers refuse to change or delete one.
alias_moves = sa.Table(
    "alias_moves",
    metadata,
    sa.Column("model_name", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("moved_at", UtcDateTime, nullable=False),
    sa.Column("alias", sa.Text, nullable=False),
    sa.Column("from_version", sa.Text),
    sa.Column("to_version", sa.Text),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
)

#: Every answer of a person there ever was, as ``records.ANSWERS``; triggers refuse to change or delete one.
corrections = sa.Table(
    "corrections",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("answer_id", sa.Text, nullable=False, unique=True),
    sa.Column("answered_at", UtcDateTime, nullable=False, index=True),
    sa.Column("answered_by", sa.Text, nullable=False),
    sa.Column("image_id", sa.Text),
    sa.Column("content_sha256", sa.Text, nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("labels_before", sa.JSON, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("comment", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("weak", sa.Boolean, nullable=False),
    sa.Column("shown_because", sa.Text, nullable=False),
    sa.Column("sampling_probability", sa.Double),
    sa.Column("retracts", sa.BigInteger, index=True),
    sa.Column("model_version", sa.Text),
    sa.Column("confidence", sa.REAL),
    sa.CheckConstraint(
        "kind IN ('confirm', 'correct', 'wrong_unknown', 'reject_image', 'retract')", name="corrections_kind"
    ),
    sa.Index("corrections_of_person", "answered_by", "number"),
)

_LEASED = sa.text("leased_by IS NOT NULL")

#: What waits for a person, or did: one row a content. Loaded by the night, kept up by whoever answers.
review_items = sa.Table(
    "review_items",
    metadata,
    sa.Column("content_sha256", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False, index=True),
    sa.Column("date", sa.Text, nullable=False),
    sa.Column("image_id", sa.Text, nullable=False),
    sa.Column("sku_id", sa.Text, index=True),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("title", sa.Text),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("label_id", sa.Text, index=True),
    sa.Column("label_zh", sa.Text),
    sa.Column("confidence", sa.REAL),
    sa.Column("category_path", sa.Text),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("decision_reason", sa.Text),
    sa.Column("model_version", sa.Text),
    sa.Column("shown_because", sa.Text, nullable=False),
    sa.Column("sampling_probability", sa.Double, nullable=False),
    sa.Column("copies", sa.Integer, nullable=False),
    sa.Column("skus", sa.Integer, nullable=False),
    sa.Column("near_group", sa.Text, index=True),
    sa.Column("near", sa.Integer, nullable=False),
    sa.Column("siblings", sa.JSON, nullable=False),
    sa.Column("priority", sa.Integer),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("needed", sa.Integer, nullable=False),
    sa.Column("blind", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("leased_by", sa.Text),
    sa.Column("leased_until", UtcDateTime),
    sa.CheckConstraint("state IN ('open', 'later', 'second', 'disputed', 'done')", name="review_items_state"),
    sa.Index("review_items_order", "state", "value"),
    sa.Index("review_items_categories", "state", "category_path"),
    sa.Index("review_items_leases", "leased_by", sqlite_where=_LEASED, postgresql_where=_LEASED),
)

#: Queues of the store that are in ``review_items``, or were once: they are loaded no more.
review_loaded = sa.Table(
    "review_loaded",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("loaded_at", UtcDateTime, nullable=False),
)

#: Looks at an item that do not settle it alone: the first of two that are needed, a blind second one, a third.
review_opinions = sa.Table(
    "review_opinions",
    metadata,
    sa.Column("answer_id", sa.Text, primary_key=True),
    sa.Column("content_sha256", sa.Text, nullable=False, index=True),
    sa.Column("person", sa.Text, nullable=False),
    sa.Column("said_at", UtcDateTime, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("agrees", sa.Boolean),
    sa.Column("withdrawn_at", UtcDateTime),
)

#: What each person wants to see first.
review_people = sa.Table(
    "review_people",
    metadata,
    sa.Column("person", sa.Text, primary_key=True),
    sa.Column("categories", sa.JSON, nullable=False),
    sa.Column("changed_at", UtcDateTime, nullable=False),
)

#: Answers whose picture is to become a bad case, and what came of it.
review_marks = sa.Table(
    "review_marks",
    metadata,
    sa.Column("answer_id", sa.Text, primary_key=True),
    sa.Column("content_sha256", sa.Text, nullable=False),
    sa.Column("image_id", sa.Text),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("never_regress", sa.Boolean, nullable=False),
    sa.Column("person", sa.Text, nullable=False),
    sa.Column("marked_at", UtcDateTime, nullable=False),
    sa.Column("comment", sa.Text),
    sa.Column("done_at", UtcDateTime),
    sa.Column("outcome", sa.Text),
)

#: Labels that people missed, until somebody who may change the taxonomy decides.
label_proposals = sa.Table(
    "label_proposals",
    metadata,
    sa.Column("proposal_id", sa.Text, primary_key=True),
    sa.Column("label_zh", sa.Text, nullable=False),
    sa.Column("label_en", sa.Text, nullable=False),
    sa.Column("synonyms_zh", sa.Text, nullable=False),
    sa.Column("category_path", sa.Text, nullable=False),
    sa.Column("content_sha256", sa.Text),
    sa.Column("answer_id", sa.Text),
    sa.Column("person", sa.Text, nullable=False),
    sa.Column("proposed_at", UtcDateTime, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("label_id", sa.Text),
    sa.Column("decided_by", sa.Text),
    sa.Column("decided_at", UtcDateTime),
    sa.CheckConstraint("state IN ('open', 'accepted', 'merged', 'refused')", name="label_proposals_state"),
)

#: Who changed what on the pages, other than single answers; triggers refuse to change or delete one.
review_events = sa.Table(
    "review_events",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("happened_at", UtcDateTime, nullable=False),
    sa.Column("person", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)


def exists(settings: Settings) -> bool:
    """Whether there is a database to ask."""
    url = _url(settings.resolved_database_url)
    return url.get_backend_name() != "sqlite" or Path(str(url.database)).exists()


@contextmanager
def transaction(settings: Settings) -> Iterator[sa.Connection]:
    """One transaction, committed when the block ends and undone when it fails. On SQLite it is alone from the start.

    Raises:
        UnavailableError: when the database does not answer.
        RefusedError: when it refuses what was asked.
    """
    text = settings.resolved_database_url
    with _told(text), _engine(text).begin() as connection:
        yield connection


@contextmanager
def reading(settings: Settings) -> Iterator[sa.Connection]:
    """One transaction that only reads, and so neither waits for whoever writes nor makes them wait.

    Raises:
        UnavailableError: when the database does not answer.
        RefusedError: when it refuses what was asked.
    """
    text = settings.resolved_database_url
    with _told(text), _engine(text).execution_options(**{_READING: True}).begin() as connection:
        yield connection


@contextmanager
def looking(settings: Settings) -> Iterator[sa.Connection]:
    """As :func:`reading`, with the tables brought up to date first; of empty ones where there is no database yet.

    Looking at what was recorded does not create one.
    """
    if exists(settings):
        upgrade(settings)
        with reading(settings) as connection:
            yield connection
    else:
        with sa.create_engine("sqlite://", poolclass=sa.NullPool).begin() as connection:
            metadata.create_all(connection)
            yield connection


def chunks(values: Sequence[T], size: int | None = None) -> Iterator[Sequence[T]]:
    """``values``, ``size`` at a time; None: as many as one statement may name."""
    step = size or _NAMED_AT_ONCE
    return (values[start : start + step] for start in range(0, len(values), step))


@contextmanager
def _told(text: str) -> Iterator[None]:
    """What the database refuses, in a sentence of ours. The cause is left out: its words may hold the password."""
    engine = _engine(text)
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        raise UnavailableError(f"The database {_shown(engine.url)} does not answer: {_words(error, text)}") from None
    except exc.SQLAlchemyError as error:
        if _is_passing(error):
            raise UnavailableError(f"The database {_shown(engine.url)} cannot now: {_words(error, text)}") from None
        raise RefusedError(f"The database {_shown(engine.url)} refuses: {_words(error, text)}") from None


def _is_passing(error: exc.SQLAlchemyError) -> bool:
    """Whether the same may do later: who was faster, a fail-over or a migration is in the way, not what was asked."""
    orig = getattr(error, "orig", None)
    if isinstance(error, exc.IntegrityError):
        # What our triggers refuse (records that are only added to) is refused for ever; SQLite calls it so too.
        return getattr(orig, "sqlite_errorname", "") != "SQLITE_CONSTRAINT_TRIGGER"
    return str(getattr(orig, "sqlstate", None) or "").startswith(_PASSING_STATES)


def now(connection: sa.Connection) -> datetime:
    """The time that all who share the database agree on, UTC."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)  # a file of this machine
    return connection.execute(sa.select(sa.func.clock_timestamp(type_=UtcDateTime))).scalar_one()


def upgrade(settings: Settings) -> None:
    """Brings the tables to what this code needs; any number of processes may do so at once.

    Raises:
        UnavailableError: when the database does not answer.
        WwtsError: when a newer wwts-ops has already changed the tables.
    """
    url = _url(settings.resolved_database_url)
    with _one_at_a_time(url):
        if url.get_backend_name() == "sqlite":
            _write_ahead(settings)
        with transaction(settings) as connection:
            if _is_current(connection):
                return
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")  # does nothing when somebody else did it while we waited


def _is_current(connection: sa.Connection) -> bool:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return False
    found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()
    unknown = set(found) - set(_revisions())
    if unknown:
        raise WwtsError(
            f"The database is at revision {', '.join(sorted(unknown))}, which this wwts-ops does not know; "
            "a newer one upgraded it. Install that one, or restore the database from before."
        )
    return found == [_revisions()[0]]


@cache
def _revisions() -> tuple[str, ...]:
    """All that this code knows, newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    return config


def _one_at_a_time(url: sa.URL) -> AbstractContextManager[None]:
    return _file_lock(Path(f"{url.database}.lock")) if url.get_backend_name() == "sqlite" else nullcontext()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """SQLite's own lock does not cover the change to a write-ahead log."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = path.open("w")
    except OSError as error:
        raise UnavailableError(f"The database's folder {path.parent} cannot be written to: {error.strerror}") from error
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _write_ahead(settings: Settings) -> None:
    """Readers then never wait for a writer. The file remembers it."""
    text = settings.resolved_database_url
    try:
        # Past SQLAlchemy, which would begin a transaction, and in one it cannot be changed.
        raw = sqlite3.connect(str(_url(text).database), timeout=_BUSY_S)
        raw.execute("PRAGMA journal_mode=WAL")
        raw.close()
    except sqlite3.OperationalError as error:
        raise UnavailableError(f"The database {_shown(_url(text))} does not answer: {error}") from error
    except sqlite3.DatabaseError as error:
        raise WwtsError(f"{_shown(_url(text))} is no SQLite database ({error}); move it away.") from error


@cache
def _engine(text: str) -> sa.Engine:
    url = _url(text)
    backend = url.get_backend_name()
    # A connection lives as long as its transaction: nothing is inherited by a forked task, or stale after a restart.
    if backend == "sqlite":
        engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": _BUSY_S})
        event.listen(engine, "connect", _manual_transactions)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    arguments = {"connect_timeout": _CONNECT_S} | dict(url.query)
    return sa.create_engine(url.set(query={}), poolclass=sa.NullPool, connect_args=arguments)


def _manual_transactions(connection: Any, record: object) -> None:
    """The driver's own begin comes too late: two who read before they write would not wait, but fail."""
    del record
    connection.isolation_level = None


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(_READING) else "BEGIN IMMEDIATE")


def _url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (exc.ArgumentError, ValueError):
        raise WwtsError("WWTS_DATABASE_URL is no SQLAlchemy URL; for example " + _EXAMPLES) from None
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise WwtsError(f"WWTS_DATABASE_URL: {_shown(url)} is neither a file of SQLite nor PostgreSQL; write {_EXAMPLES}")


_EXAMPLES = "sqlite:////folder/wwts.db or postgresql+psycopg://user:password@host/wwts."


def _shown(url: sa.URL) -> str:
    """Where the database is, without who asks it."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return f"{url.get_backend_name()}://{url.host or url.query.get('host', 'localhost')}/{url.database or ''}"


def _words(error: exc.SQLAlchemyError, text: str) -> str:
    """The driver's first line, with every form of the password taken out."""
    url = sa.make_url(text)
    said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    for secret in (url.password, url.query.get("password")):
        if secret:
            said = said.replace(str(secret), "***")
    return said
