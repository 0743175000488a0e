"""`wwts run`: one DAG in one process, with progress on the terminal and an exit code that tells how it went."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from wwts_ops import servers, summary
from wwts_ops.settings import Settings

Event = dict[str, Any]

#: Homes of runs that were killed are removed after a day.
_STALE_SECONDS = 86_400
_SECONDS_BETWEEN_LINES = 5.0


def run(settings: Settings, dag_id: str, conf: Mapping[str, Any]) -> int:
    """Runs ``dag_id`` with the form filled in from ``conf``.

    Returns:
        0 when it succeeded, 1 when it failed, 2 when it could not start, 128 + n when signal n ended it.
    """
    console = Console(highlight=False)
    logs = settings.state_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log_path = logs / f"{dag_id}-{datetime.now().strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl"
    with _home(settings) as home, log_path.open("wb") as log, _follower(settings, console) as follower:
        environment = {
            **servers.airflow_environment(settings, home),
            "AIRFLOW__LOGGING__JSON_LOGS": "True",
            "PYTHONUNBUFFERED": "1",
        }
        # A person waits: what may pass is tried again at once, not after a minute.
        environment.setdefault("WWTS_RETRY_SECONDS", "1")
        follower.phase("正在启动 Airflow…")
        code = _child(
            [sys.executable, "-m", "wwts_ops.dagprocess", dag_id, json.dumps(conf)], environment, log, follower
        )
    follower.conclude(dag_id, code, log_path)
    return code


class Follower:
    """Turns the events of a run into progress, and keeps what its end needs to tell."""

    def __init__(self, console: Console, settings: Settings) -> None:
        self._console, self._echo = console, settings.log_format == "json"
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self.progress.add_task("", total=None, start=False)
        self._done: dict[tuple[str, int], int] = {}
        self._total = 0
        self._errors: list[str] = []
        self._plain: list[str] = []
        self._night: Event | None = None
        self._planned: Event | None = None
        self._said_at = 0.0

    def phase(self, text: str) -> None:
        """Says what is going on now."""
        self.progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(text)

    def line(self, raw: bytes) -> None:
        """Takes in one line of the child's output."""
        if self._echo:
            sys.stdout.buffer.write(raw)
            sys.stdout.flush()
        try:
            event = json.loads(raw)
        except ValueError:
            self._plain.append(raw.decode(errors="replace").rstrip())
            del self._plain[:-20]
            return
        if isinstance(event, dict):
            handle = getattr(self, f"_on_{event.get('event')}", None)
            if handle:
                handle(event)
            elif event.get("level") in ("error", "critical"):
                self._errors.extend(_messages(event))

    def _on_registering_embedded_default(self, event: Event) -> None:
        self.phase(f"首次运行：正在登记内置模型 {event['model']}…")

    def _on_planned(self, event: Event) -> None:
        self._planned, self._total = event, int(event["images"])
        self.phase(summary.planned(event))

    def _on_shard_started(self, event: Event) -> None:
        self._done.setdefault((event["run_id"], event["shard"]), 0)

    def _on_shard_progress(self, event: Event) -> None:
        self._done[event["run_id"], event["shard"]] = int(event["done"])
        done = sum(self._done.values())
        total = max(self._total, done)
        if not self.progress.tasks[self._task].started:
            self.progress.start_task(self._task)
        self.progress.update(self._task, description="正在打标", completed=done, total=total)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said_at > _SECONDS_BETWEEN_LINES:
            self._said_at = now
            self._console.print(f"正在打标 {done:,} / {total:,}")

    def _on_published(self, event: Event) -> None:
        self.phase(f"已发布快照 {event['snapshot']}，正在生成日报…")

    def _on_night_done(self, event: Event) -> None:
        self._night = event

    def conclude(self, dag_id: str, code: int, log_path: Path) -> None:
        """Says how it went."""
        if self._night:
            self._console.print(summary.night(self._night), markup=False, soft_wrap=True)
        elif self._planned and self._planned.get("dry_run"):
            self._console.print(summary.planned(self._planned) + "（仅预演，没有写入任何内容）")
        if code == 0:
            self._console.print(f"[green]✓[/] {dag_id} 完成。日志：{log_path}", soft_wrap=True)
            return
        for message in dict.fromkeys(self._errors or self._plain):
            self._console.print(message, style="red", markup=False, soft_wrap=True)
        self._console.print(f"[red]✗[/] {dag_id} failed (exit code {code}). Log: {log_path}", soft_wrap=True)


def _messages(event: Event) -> Iterator[str]:
    details = event.get("error_detail") or event.get("exception") or []
    for detail in details if isinstance(details, list) else []:
        yield f"{detail.get('exc_type', '')}: {detail.get('exc_value', '')}".strip(": ")
        return
    yield str(event.get("event"))


@contextmanager
def _follower(settings: Settings, console: Console) -> Iterator[Follower]:
    follower = Follower(console, settings)
    if console.is_terminal and settings.log_format != "json":
        with follower.progress:
            yield follower
    else:
        yield follower


def _child(command: list[str], environment: Mapping[str, str], log: IO[bytes], follower: Follower) -> int:
    """Runs ``command`` in a session of its own, so that a signal to us ends all of it."""
    caught: list[int] = []
    with subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as child:

        def end(number: int, _: FrameType | None) -> None:
            caught.append(number)
            # Every write is whole or absent, so nothing needs time to tidy up.
            os.killpg(child.pid, signal.SIGKILL)

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            assert child.stdout is not None
            for raw in child.stdout:
                log.write(raw)
                follower.line(raw)
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if caught:
        return 128 + caught[0]
    return 128 - code if code < 0 else code


@contextmanager
def _home(settings: Settings) -> Iterator[Path]:
    """An AIRFLOW_HOME for one run: two runs at once, or one that was killed, then know nothing of each other."""
    base = settings.state_dir / "airflow-run"
    base.mkdir(parents=True, exist_ok=True)
    _remove_stale(base)
    template = _template(settings, base)
    home = Path(tempfile.mkdtemp(prefix="run-", dir=base))
    try:
        shutil.copyfile(template, home / "airflow.db")
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _template(settings: Settings, base: Path) -> Path:
    """A migrated, empty Airflow database of the installed version, made once."""
    from importlib.metadata import version

    home = base / f"template-{version('apache-airflow')}"
    with (base / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            servers.migrate(servers.airflow_environment(settings, home))
            (home / "ready").touch()
    return home / "airflow.db"


def _remove_stale(base: Path) -> None:
    for home in base.glob("run-*"):
        if time.time() - home.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(home, ignore_errors=True)
