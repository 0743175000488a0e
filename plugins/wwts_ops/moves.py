"""Moves of MLflow's aliases: one at a time, finished though killed, each audited once, in our database and in MLflow.

MLflow sets aliases without comparing. So whoever moves them first takes our database's row of the model
(compare-and-set on its revision), and writes into it what they mean to do; only then aliases are moved, read again,
audited and tagged, and the row is given back. Whoever finds the row of somebody who died finishes what it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite

from wwts_ops import database, registration, tracking, verdict
from wwts_ops.database import alias_moves, alias_states
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.registry import CHAMPION
from wwts_ops.settings import Settings

log = structlog.get_logger(__name__)

CHALLENGER, PREVIOUS = "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
#: A move's tag is this and its number, on the version that received the alias, or else on the one that lost it.
TAG = "wwts.move."
#: Who is given as actor when an alias is found elsewhere than it was last audited.
UNKNOWN, OURSELVES = "unknown (moved in MLflow)", "wwts"
#: A move takes seconds, and a request to an MLflow that hangs half a minute.
LEASE = timedelta(minutes=5)
_TRIES = 10

Action = Literal["promote", "rollback", "nominate", "withdraw", "adopt"]


@dataclass(frozen=True)
class Move:
    """One alias from one version to another.

    Attributes:
        number: from 1, without gaps, of each registered model.
        moved_at: UTC; of an adopted move, when it was noticed.
        model_name: of the registered model.
        alias: ``champion``, ``challenger`` or ``previous``.
        from_version: None: the alias was not set.
        to_version: None: the alias was removed.
        actor: who or what moved it.
        action: ``adopt``: somebody moved it in MLflow itself, and it is only recorded.
        evidence: plain JSON: on what grounds; ``run`` is who asked.
    """

    number: int
    moved_at: datetime
    model_name: str
    alias: str
    from_version: str | None
    to_version: str | None
    actor: str
    action: Action
    evidence: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, as tags and the database hold them."""
        return asdict(self) | {"moved_at": self.moved_at.astimezone(UTC).isoformat()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Move:
        """From what :meth:`as_json` gave.

        Raises:
            KeyError, TypeError, ValueError: when it is something else.
        """
        return cls(**{**values, "moved_at": datetime.fromisoformat(values["moved_at"])})


@dataclass(frozen=True)
class Situation:
    """What a decision may look at; nobody else moves an alias between looking and moving.

    Attributes:
        client: of MLflow.
        aliases: each of ``ALIASES`` to its version now, None when it is not set.
        history: every move, oldest first, with those that were found just now.
    """

    client: Any
    aliases: Mapping[str, str | None]
    history: tuple[Move, ...]


@dataclass(frozen=True)
class Order:
    """Who wants what moved.

    Attributes:
        run: token of whoever asks; the same one continues what was begun with it and does nothing twice.
        actor: recorded with every move.
        action: recorded with every move.
        busy: what to raise while somebody else moves aliases; ``UnavailableError`` is tried again by Airflow.
    """

    run: str
    actor: str
    action: Action
    busy: type[WwtsError] = UnavailableError


@dataclass(frozen=True)
class Decided:
    """What a decision comes to.

    Attributes:
        targets: alias to version (None: remove it), in the order in which they are moved.
        evidence: plain JSON values.
    """

    targets: Mapping[str, str | None]
    evidence: dict[str, Any]


def carry_out(settings: Settings, order: Order, decide: Callable[[Situation], Decided]) -> tuple[Move, ...]:
    """Moves what ``decide`` decides, or returns what the same run moved before.

    ``decide`` may be called more than once: again whenever somebody else was faster.

    Raises:
        WwtsError: what ``decide`` raises; ``order.busy`` while somebody else moves aliases.
        UnavailableError: when MLflow or the database does not answer. The same run, started again, finishes it.
    """
    database.upgrade(settings)
    with tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        desk = _Desk(settings, client, order)
        for _ in range(_TRIES):
            row = desk.row()
            if row.state == "moving":
                desk.settle(desk.take_over(row), Intent.of(row.intent))
                continue
            history = desk.history()
            done = tuple(move for move in history if _is_of(move, order))
            if done:
                return done
            intent = desk.intend(history, decide)
            if not intent.moves:
                return ()
            revision = desk.take(row.revision, intent)
            if revision is not None:
                desk.finish(revision, intent)
    raise UnavailableError(f"Others keep moving the aliases of {settings.model_name}; try again in a minute.")


def history(settings: Settings) -> list[Move]:
    """Every audited move of the model's aliases, oldest first.

    Raises:
        UnavailableError: when the database does not answer.
    """
    with database.looking(settings) as connection:
        return _recorded(connection, settings.model_name)


def history_from_tags(settings: Settings) -> list[Move]:
    """The same as :func:`history`, from MLflow alone.

    Raises:
        UnavailableError: when MLflow does not answer.
        WwtsError: when a tag was altered.
    """
    with tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        return _tagged(client, settings.model_name, _read)


@dataclass(frozen=True)
class Intent:
    """The moves that whoever holds the row means to make, numbered; found ones first."""

    moves: tuple[Move, ...]

    @classmethod
    def of(cls, values: Iterable[Mapping[str, Any]]) -> Intent:
        """From the database."""
        return cls(tuple(Move.from_json(entry) for entry in values))

    @property
    def wanted(self) -> tuple[Move, ...]:
        """Those that are still to be made in MLflow, or are made already."""
        return tuple(move for move in self.moves if move.action != "adopt")

    def reached(self, now: Mapping[str, str | None]) -> Intent:
        """Without what was not reached before somebody moved an alias elsewhere: theirs was the later word."""
        if all(now[move.alias] in (move.from_version, move.to_version) for move in self.wanted):
            return self
        kept = [move for move in self.moves if move.action == "adopt" or now[move.alias] == move.to_version]
        first = self.moves[0].number
        return Intent(tuple(replace(move, number=first + index) for index, move in enumerate(kept)))

    def as_json(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [move.as_json() for move in self.moves]


class _Desk:
    """The row of one model, and what its holder does."""

    def __init__(self, settings: Settings, client: Any, order: Order) -> None:
        self._settings, self._client, self._order = settings, client, order
        self._name = settings.model_name
        self._mine = alias_states.c.model_name == self._name

    def row(self) -> sa.Row[Any]:
        """The model's row, made when it is the first time."""
        with database.transaction(self._settings) as connection:
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            values = {"model_name": self._name, "revision": 0, "state": "idle"}
            connection.execute(dialect.insert(alias_states).values(values).on_conflict_do_nothing())
            return connection.execute(sa.select(alias_states).where(self._mine)).one()

    def history(self) -> tuple[Move, ...]:
        """What was recorded; a database that was lost, or is an older copy, gets back what MLflow's tags say."""
        tagged = _tagged(self._client, self._name, _readable)
        with database.transaction(self._settings) as connection:
            connection.execute(sa.select(alias_states).where(self._mine).with_for_update())
            found = _recorded(connection, self._name)
            last = found[-1].number if found else 0
            # Without a gap: a tag that somebody made up must not leap ahead of what comes next.
            lost = [
                move
                for place, move in enumerate(m for m in tagged if m.number > last)
                if move.number == last + place + 1
            ]
            if lost:
                log.warning("audit_restored_from_mlflow", model=self._name, moves=len(lost))
                _record(connection, lost)
        return (*found, *lost)

    def intend(self, history: tuple[Move, ...], decide: Callable[[Situation], Decided]) -> Intent:
        """What is to be done in the situation of now."""
        now = aliases(self._client, self._name)
        found = self._found(history, now)
        decided = decide(Situation(self._client, now, (*history, *found)))
        evidence = {**decided.evidence, "run": self._order.run}
        changed = [(alias, version) for alias, version in decided.targets.items() if now[alias] != version]
        if not changed:
            return Intent(())
        base = Move(
            number=(history[-1].number if history else 0) + len(found) + 1,
            moved_at=datetime.now(UTC),
            model_name=self._name,
            alias="",
            from_version=None,
            to_version=None,
            actor=self._order.actor,
            action=self._order.action,
            evidence=evidence,
        )
        wanted = (
            replace(base, number=base.number + index, alias=alias, from_version=now[alias], to_version=version)
            for index, (alias, version) in enumerate(changed)
        )
        return Intent((*found, *wanted))

    def _found(self, history: tuple[Move, ...], now: Mapping[str, str | None]) -> tuple[Move, ...]:
        """Aliases that are elsewhere than they were last audited, as moves."""
        audited = {move.alias: move.to_version for move in history}
        moved = [alias for alias in ALIASES if now[alias] != audited.get(alias)]
        last = history[-1].number if history else 0
        return tuple(
            Move(
                number=last + number,
                moved_at=datetime.now(UTC),
                model_name=self._name,
                alias=alias,
                from_version=audited.get(alias),
                to_version=now[alias],
                actor=self._mover(alias, audited, now[alias]),
                action="adopt",
                evidence={"run": self._order.run},
            )
            for number, alias in enumerate(moved, 1)
        )

    def _mover(self, alias: str, audited: Mapping[str, str | None], version: str | None) -> str:
        """The first champion is set by `wwts init` or the first night, when it is the embedded default."""
        if alias != CHAMPION or alias in audited or version is None:
            return UNKNOWN
        tags = self._client.get_model_version(self._name, version).tags
        return OURSELVES if registration.EMBEDDED_TAG in tags else UNKNOWN

    def take(self, revision: int, intent: Intent) -> int | None:
        """Takes the idle row; None when somebody else was faster."""
        with database.transaction(self._settings) as connection:
            taken = {
                **self._held(connection),
                "revision": revision + 1,
                "state": "moving",
                "intent": intent.as_json(),
            }
            same = self._mine & (alias_states.c.revision == revision) & (alias_states.c.state == "idle")
            done = connection.execute(sa.update(alias_states).where(same).values(taken))
        return revision + 1 if done.rowcount else None

    def take_over(self, row: sa.Row[Any]) -> int:
        """Takes the row of an earlier try of the same run, or of somebody whose lease ran out.

        Raises:
            WwtsError: ``order.busy`` while it is somebody else's.
        """
        with database.transaction(self._settings) as connection:
            if row.run != self._order.run and row.expires_at > database.now(connection):
                raise self._order.busy(
                    f"{row.holder} is moving the aliases of {self._name} right now, "
                    f"until {row.expires_at:%Y-%m-%d %H:%M:%S} UTC at the latest; try again when that is done."
                )
            taken = {**self._held(connection), "revision": row.revision + 1}
            same = self._mine & (alias_states.c.revision == row.revision)
            done = connection.execute(sa.update(alias_states).where(same).values(taken))
        if not done.rowcount:
            raise UnavailableError(f"Somebody else is finishing an interrupted move of {self._name}; try again.")
        log.info("interrupted_move_taken_over", model=self._name, holder=row.holder, run=row.run)
        return int(row.revision) + 1

    def _held(self, connection: sa.Connection) -> dict[str, Any]:
        order = self._order
        holder = f"{order.actor} ({order.action}, run {order.run})"
        return {"run": order.run, "holder": holder, "expires_at": database.now(connection) + LEASE}

    def settle(self, revision: int, intent: Intent) -> None:
        """Finishes what was interrupted; a promotion only when it had begun to count, or its verdict still stands."""
        now = aliases(self._client, self._name)
        promoted = [move for move in intent.wanted if (move.alias, move.action) == (CHAMPION, "promote")]
        audited = {move.number for move in intent.moves} <= {move.number for move in self._keep(revision)}
        if audited or all(now[CHAMPION] == move.to_version or self._still_judged(move) for move in promoted):
            self.finish(revision, intent)
        else:
            self._abandon(revision, intent, now)

    def _still_judged(self, move: Move) -> bool:
        """Whether the version still has the verdict on which the move was decided."""
        if not is_there(self._client, self._name, move.to_version):
            return False
        text = self._client.get_model_version(self._name, move.to_version).tags.get(verdict.TAG)
        if text is None:
            return False
        found = verdict.Verdict.from_tag(text).model_dump(mode="json")
        stood_on = move.evidence["verdict"]
        return all(found[name] == stood_on[name] for name in ("run_id", "judged_at", "passed"))

    def _abandon(self, revision: int, intent: Intent, now: Mapping[str, str | None]) -> None:
        """Takes back what an interrupted promotion had moved; nothing of it counts, and nothing is audited."""
        for move in intent.wanted:
            self._keep(revision)
            if now[move.alias] == move.to_version != move.from_version:
                self._set(move.alias, move.from_version)
        self._give_back(revision)
        log.warning("interrupted_move_abandoned", model=self._name, moves=intent.as_json())

    def finish(self, revision: int, intent: Intent) -> None:
        """Makes every move of ``intent`` that is not made yet, whoever began it."""
        recorded = {move.number for move in self._keep(revision)}
        if not {move.number for move in intent.moves} <= recorded:
            intent = self._moved(revision, intent)
            with database.transaction(self._settings) as connection:
                self._hold(connection, revision, {"expires_at": database.now(connection) + LEASE})
                _record(connection, intent.moves)
        for move in intent.moves:
            self._tag(revision, move)
        self._give_back(revision)
        for move in intent.moves:
            if move.alias == CHAMPION:
                versions = {"from": move.from_version, "to": move.to_version}
                log.info("champion_moved", model=self._name, **versions, actor=move.actor, action=move.action)

    def _moved(self, revision: int, intent: Intent) -> Intent:
        """Moves the aliases in MLflow, and reads them again."""
        intent = intent.reached(aliases(self._client, self._name))
        self._keep(revision, intent=intent.as_json())
        for move in intent.wanted:
            if aliases(self._client, self._name)[move.alias] == move.to_version:
                continue
            self._keep(revision)
            self._set(move.alias, move.to_version)
        now = aliases(self._client, self._name)
        for move in intent.wanted:
            if now[move.alias] != move.to_version:
                raise UnavailableError(
                    f"Somebody is moving {move.alias} of {self._name} in MLflow itself at this moment: it was set to "
                    f"{move.to_version} and names {now[move.alias]}. Try again."
                )
        return intent

    def _set(self, alias: str, version: str | None) -> None:
        if version is None:
            self._client.delete_registered_model_alias(self._name, alias)
        else:
            self._client.set_registered_model_alias(self._name, alias, version)

    def _give_back(self, revision: int) -> None:
        with database.transaction(self._settings) as connection:
            idle = {"state": "idle", "intent": None, "run": None, "holder": None, "expires_at": None}
            self._hold(connection, revision, {**idle, "revision": revision + 1})

    def _keep(self, revision: int, **values: Any) -> list[Move]:
        """Renews the lease, so that a holder who only slept does not write after somebody took over."""
        with database.transaction(self._settings) as connection:
            self._hold(connection, revision, {"expires_at": database.now(connection) + LEASE, **values})
            return _recorded(connection, self._name)

    def _hold(self, connection: sa.Connection, revision: int, changes: Mapping[str, Any]) -> None:
        """Changes the row, when it is still ours."""
        same = self._mine & (alias_states.c.revision == revision) & (alias_states.c.state == "moving")
        if not connection.execute(sa.update(alias_states).where(same).values(changes)).rowcount:
            raise UnavailableError(
                f"Another process took over this move of {self._name} and finishes it; start it again to see the end."
            )

    def _tag(self, revision: int, move: Move) -> None:
        self._keep(revision)
        key, value = f"{TAG}{move.number:06d}", json.dumps(move.as_json(), ensure_ascii=False, sort_keys=True)
        version = move.to_version or move.from_version
        if not is_there(self._client, self._name, version):
            self._client.set_registered_model_tag(self._name, key, value)  # the version was deleted
            return
        self._client.set_model_version_tag(self._name, version, key, value)
        override = move.evidence.get("override")
        if move.alias == CHAMPION and override:
            for name, text in override.items():
                self._client.set_model_version_tag(self._name, version, f"gate.override.{name}", text)


def _is_of(move: Move, order: Order) -> bool:
    return move.action == order.action and move.evidence.get("run") == order.run


def _record(connection: sa.Connection, moves: Iterable[Move]) -> None:
    rows = [asdict(move) for move in moves]
    if rows:
        connection.execute(sa.insert(alias_moves), rows)


def _recorded(connection: sa.Connection, name: str) -> list[Move]:
    found = sa.select(alias_moves).where(alias_moves.c.model_name == name).order_by(alias_moves.c.number)
    return [Move(**row._mapping) for row in connection.execute(found)]


def aliases(client: Any, name: str) -> dict[str, str | None]:
    """Each of ``ALIASES`` to the version that it names now.

    Raises:
        WwtsError: when there is no such registered model.
    """
    found = _model(client, name)
    if found is None:
        raise WwtsError(f"MLflow has no registered model {name}; run `wwts init`.")
    return {alias: str(found.aliases[alias]) if alias in found.aliases else None for alias in ALIASES}


def _model(client: Any, name: str) -> Any:
    return tracking.found(client.get_registered_model, name)


def is_there(client: Any, name: str, version: str | None) -> bool:
    """Whether MLflow still has that version."""
    return version is not None and tracking.found(client.get_model_version, name, version) is not None


def _tagged(client: Any, name: str, read: Callable[[str, str], Move | None]) -> list[Move]:
    model = _model(client, name)
    if model is None:
        return []
    tags = dict(model.tags)
    token = None
    while True:
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        for entry in page:
            tags |= entry.tags
        token = page.token
        if not token:
            break
    found = [read(key, value) for key, value in tags.items() if key.startswith(TAG)]
    # A version that was copied from another registered model brings that one's tags.
    ours = (move for move in found if move is not None and move.model_name == name)
    return sorted(ours, key=lambda move: move.number)


def _readable(key: str, value: str) -> Move | None:
    """A damaged tag must not stop the way back: what was recorded stands in our database."""
    try:
        return _read(key, value)
    except WwtsError as error:
        log.warning("audit_tag_damaged", reason=str(error))
        return None


def _read(key: str, value: str) -> Move:
    try:
        return Move.from_json(json.loads(value))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WwtsError(f"The tag {key} in MLflow holds no move that can be read; somebody altered it.") from error
