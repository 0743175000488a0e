"""A real MLflow server, a real PostgreSQL, versions that need no files, and processes that promote and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from conftest import free_ports
from environment import plain
from forkserver import CONTEXT

from wwts_ops import database, moves, promotion, settings, tracking, verdict
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.promotion import Move, Proposal
from wwts_ops.settings import Settings
from wwts_ops.verdict import RuleOutcome, Verdict

SECONDS = 600
RULES = (
    RuleOutcome(rule="overall.top1", title="首位准确率", outcome="passed", value="0.93", threshold="≥ 0.80"),
    RuleOutcome(
        rule="p95_ratio", title="P95 | 之比", outcome="advisory", value="1.4", threshold="≤ 1.3", reason="慢了 | 一点"
    ),
)
FAILED = RuleOutcome(
    rule="never_regress", title="不许退步", outcome="failed", value="1", threshold="0", reason="丢了一张不能丢的图"
)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """An MLflow server with nothing in it; yields its address."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    kept = plain()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=8)) as client:
        while process.poll() is None:
            try:
                if client.get(f"{address}/health").status_code == 200:
                    return
            except httpx.TransportError:
                continue
    raise AssertionError(f"MLflow ended with {process.returncode}")


@dataclass(frozen=True)
class Shop:
    """A registered model of three versions, the first of them champion because somebody said so in MLflow."""

    settings: Settings

    @classmethod
    def made(cls, tracking_uri: str, database_url: str, folder: Path) -> Shop:
        name = f"shop-{uuid.uuid4().hex[:8]}"
        found = settings.load(
            store=str(folder / name / "store"),
            database_url=database_url,
            mlflow_tracking_uri=tracking_uri,
            model_name=name,
        )
        shop = cls(found)
        (folder / name).mkdir()
        database.upgrade(found)
        with tracking.connected(found) as client:
            client.create_registered_model(name)
        for _ in range(3):
            shop.add()
        shop.set("champion", "1")
        return shop

    @cached_property
    def name(self) -> str:
        return self.settings.model_name

    @staticmethod
    def sha256(version: str) -> str:
        return (version * 64)[:64]

    def add(self, status: str = "READY", tags: dict[str, str] | None = None) -> str:
        """Registers a version of a model that has no files; its upload ended as ``status`` says."""
        with tracking.connected(self.settings) as client:
            made = client.create_logged_model(tracking.experiment(client, self.settings, "moves"), name="tagger")
            if status != "PENDING":
                client.finalize_logged_model(made.model_id, status)
            entry = client.create_model_version(self.name, source=f"models:/{made.model_id}", model_id=made.model_id)
            version = str(entry.version)
            ours = {"model_sha256": self.sha256(version), "backbone_sha256": "b" * 64, "code_sha256": "c" * 64}
            for key, value in (ours if tags is None else tags).items():
                client.set_model_version_tag(self.name, version, key, value)
        return version

    def set(self, alias: str, version: str | None) -> None:
        """As somebody does on MLflow's own page."""
        with tracking.connected(self.settings) as client:
            if version is None:
                client.delete_registered_model_alias(self.name, alias)
            else:
                client.set_registered_model_alias(self.name, alias, version)

    def tag(self, version: str, key: str, value: str) -> None:
        with tracking.connected(self.settings) as client:
            client.set_model_version_tag(self.name, version, key, value)

    def tags(self, version: str) -> dict[str, str]:
        with tracking.connected(self.settings) as client:
            return dict(client.get_model_version(self.name, version).tags)

    def delete(self, version: str) -> None:
        with tracking.connected(self.settings) as client:
            client.delete_model_version(self.name, version)

    def aliases(self) -> dict[str, str]:
        with tracking.connected(self.settings) as client:
            return {alias: str(to) for alias, to in client.get_registered_model(self.name).aliases.items()}

    def judge(self, version: str, champion: str = "1", **changes: Any) -> Verdict:
        """Records a verdict as the gate does."""
        values: dict[str, Any] = {
            "passed": True,
            "mode": "enforced",
            "reasons": (),
            "rules": RULES,
            "model_version": version,
            "model_sha256": self.sha256(version),
            "champion_version": champion,
            "champion_sha256": self.sha256(champion),
            "badcases": "b000001-0123456789ab",
            "badcases_sha256": "d" * 64,
            "rules_sha256": "e" * 64,
            "run_id": "r" * 32,
            "git_sha": "abc",
            "judged_at": datetime.now(UTC),
        }
        made = Verdict(**values | changes)
        self.tag(version, verdict.TAG, made.model_dump_json())
        return made

    def fail(self, version: str) -> Verdict:
        return self.judge(version, passed=False, reasons=("丢了一张不能丢的图",), rules=(*RULES, FAILED))

    def propose(self, version: str) -> Proposal:
        self.judge(version, self.aliases()["champion"])
        return promotion.propose(self.settings, version, None)

    def promote(self, version: str, run: str | None = None) -> tuple[Move, ...]:
        return promotion.promote(self.settings, self.propose(version), "anna", None, run or f"to-{version}")

    def champions(self) -> list[tuple[str, str | None]]:
        return [(move.action, move.to_version) for move in self.history() if move.alias == "champion"]

    def history(self) -> list[Move]:
        """The audit, which is always the same from both places, and without gaps."""
        found = promotion.history(self.settings)
        assert promotion.history_from_tags(self.settings) == found
        assert [move.number for move in found] == list(range(1, len(found) + 1))
        return found

    def state(self) -> str | None:
        """Of the row that promotions take; None before the first."""
        with database.transaction(self.settings) as connection:
            mine = database.alias_states.c.model_name == self.name
            return connection.execute(sa.select(database.alias_states.c.state).where(mine)).scalar_one_or_none()

    def expire(self) -> None:
        """As if whoever holds the row had been silent for longer than the lease."""
        with database.transaction(self.settings) as connection:
            long_ago = datetime.now(UTC) - timedelta(hours=1)
            mine = database.alias_states.c.model_name == self.name
            connection.execute(sa.update(database.alias_states).where(mine).values(expires_at=long_ago))

    # -------------------------------------------------------------- in other processes

    def process(self, run: str, proposal: Proposal, **how: Any) -> BaseProcess:
        """A process that promotes; ``how`` as :class:`Fate` takes it."""
        given = self.settings
        values = {name: getattr(given, name) for name in ("store", "database_url", "mlflow_tracking_uri", "model_name")}
        made = CONTEXT.Process(target=_promote, args=(values, run, proposal, Fate(**how)))
        made.start()
        return made


@dataclass(frozen=True)
class Fate:
    """What becomes of a process that promotes.

    Attributes:
        signal: that it sends itself after its ``at``-th write, to our database or to MLflow.
        at: 0: none does.
        barrier: that it waits at before it begins.
        answer: file for how it ended.
    """

    signal: int = signal.SIGKILL
    at: int = 0
    barrier: Any = None
    answer: Path | None = None


def ended(process: BaseProcess) -> int | None:
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError("a process that promotes does not end")
    return process.exitcode


def _promote(values: dict[str, Any], run: str, proposal: Proposal, fate: Fate) -> None:
    for name in os.environ.keys() - plain().keys():
        del os.environ[name]
    os.environ["WWTS_GIT_SHA"] = "of a test"
    found = settings.load(**values)
    _meet(fate)
    if fate.barrier:
        fate.barrier.wait(SECONDS)
    try:
        done = promotion.promote(found, proposal, f"actor of {run}", "carol", run)
        told = {"moved": [move.number for move in done]}
    except UnavailableError as error:
        told = {"unavailable": str(error)}
    except WwtsError as error:
        told = {"refused": str(error)}
    if fate.answer:
        fate.answer.write_text(json.dumps(told), encoding="utf-8")


def _meet(fate: Fate) -> None:
    """Counts the writes of this process, and signals it after the fated one."""
    import mlflow

    left = fate.at

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), fate.signal)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            done = function(*arguments, **named)
            count()
            return done

        return call

    for name in ("set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag"):
        setattr(mlflow.MlflowClient, name, counted(getattr(mlflow.MlflowClient, name)))

    plain = database.transaction

    @contextmanager
    def transaction(given: Settings) -> Iterator[sa.Connection]:
        with plain(given) as connection:
            yield connection
        count()

    database.transaction = transaction  # type: ignore[assignment]
    assert moves.database.transaction is transaction
