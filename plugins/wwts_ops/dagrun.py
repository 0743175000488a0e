"""`wwts run`: one DAG in one process, with progress on the terminal and an exit code that tells how it went."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from wwts_ops import servers, summary
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings

Event = dict[str, Any]

#: Homes of runs that were killed are removed after a day.
_STALE_SECONDS = 86_400
_SECONDS_BETWEEN_LINES = 5.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Whose events are progress; everybody else writes lines.
_OURS = ("wwts_ops", "eval.", "training.")
#: The ``logger`` of lines that the child wrote as plain text.
_CHILD = "wwts_ops.dagrun.child"


def run(settings: Settings, dag_id: str, conf: Mapping[str, Any]) -> int:
    """Runs ``dag_id`` with the form filled in from ``conf``.

    Returns:
        0 when it succeeded, 1 when it failed, 2 when it could not start, 128 + n when signal n ended it.

    Raises:
        WwtsError: when ``dag_id`` cannot be the name of a DAG.
    """
    if not re.fullmatch(r"[\w.-]+", dag_id):
        raise WwtsError(f"{dag_id!r} cannot be a DAG's name; try tag_catalog.")
    with _signals(_exit):
        return _run(settings, dag_id, conf)


def _run(settings: Settings, dag_id: str, conf: Mapping[str, Any]) -> int:
    # Machines that read events on standard output get nothing else there.
    console = Console(highlight=False, stderr=settings.log_format == "json")
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
        self._rest: list[str] = []
        self._told: list[str] = []
        self._night: Event | None = None
        self._planned: Event | None = None
        self._said_at = 0.0

    def phase(self, text: str) -> None:
        """Says what is going on now."""
        self.progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(text)

    def take(self, event: Event) -> None:
        """Takes in one event of the child."""
        if self._echo:
            sys.stdout.buffer.write(_line(event))
            sys.stdout.flush()
        ours = str(event.get("logger", "")).startswith(_OURS)
        handle = getattr(self, f"_on_{event['event']}", None) if ours else None
        if handle:
            handle(event)
        elif event.get("level") in ("error", "critical") and (message := _raised(event)):
            self._errors.append(message)
        elif event.get("level") in ("error", "critical") or event.get("logger") == _CHILD:
            self._rest.append(str(event["event"]))
            del self._rest[:-20]

    def _on_refused(self, event: Event) -> None:
        self._errors.append(event["reason"])

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
        self.phase(summary.published(event))

    def _on_retag_surveyed(self, event: Event) -> None:
        told = summary.retag_surveyed(event)
        if event["dry_run"]:
            self._told.append(f"\n{told}")
        self.phase(told)

    def _on_retag_done(self, event: Event) -> None:
        self._told.append(summary.retag_done(event))

    def _on_night_done(self, event: Event) -> None:
        self._night = event

    def _on_training_skipped(self, event: Event) -> None:
        self._told.append(summary.training_skipped(event))

    def _on_training_ordered(self, event: Event) -> None:
        self.phase(summary.training_ordered(event))

    def _on_dataset_ready(self, event: Event) -> None:
        self.phase(summary.dataset_ready(event))

    def _on_head_trained(self, event: Event) -> None:
        self.phase(summary.head_trained(event))

    def _on_training_registered(self, event: Event) -> None:
        self._told.append(summary.training_registered(event))
        self.phase(f"已登记为版本 {event['version']}，正在准备评测…")

    def _on_tags_compared(self, event: Event) -> None:
        self._told.append(summary.tags_compared(event))

    def _on_evaluating(self, event: Event) -> None:
        self.phase(f"正在评测候选版本 {event['version']}（对比当前启用的版本 {event['champion']}）…")

    def _on_accuracy_measured(self, _: Event) -> None:
        self.phase("准确率已测完，正在测量延迟…")

    def _on_judged(self, event: Event) -> None:
        self._told.append(summary.verdict(event))

    def _on_promotion_skipped(self, event: Event) -> None:
        self._told.append(summary.promotion_skipped(event))

    def _on_promotion_prepared(self, event: Event) -> None:
        if event["override_by"]:
            why = f"由 {event['override_by']} 强制上线，理由：{event['override_reason']}"
            self._told.append(f"\n版本 {event['version']} 未通过门禁，{why}")
        self.phase(f"版本 {event['version']} 已核对，正在切换…")

    def _on_rollout_done(self, event: Event) -> None:
        done = "已回退" if event["action"] == "rollback" else "已上线"
        self._told.append(
            f"\n{done}：当前启用的模型现在是版本 {event['version']}（champion）。"
            "从下一次打标起生效；已有的标签由 retag_catalog（全库重新打标）更新。"
        )

    def conclude(self, dag_id: str, code: int, log_path: Path) -> None:
        """Says how it went."""
        for text in self._told:
            self._console.print(text, markup=False, soft_wrap=True)
        if self._night:
            self._console.print(summary.night(self._night), markup=False, soft_wrap=True)
        elif self._planned and self._planned.get("dry_run"):
            self._console.print(summary.planned(self._planned) + "（仅预演，没有写入任何内容）")
        if code == 0:
            self._console.print(f"✓ {dag_id} 完成。日志：{log_path}", markup=False, soft_wrap=True)
            return
        for message in dict.fromkeys(self._errors or self._rest):
            self._console.print(message, style="red", markup=False, soft_wrap=True)
        ending = f"✗ {dag_id} 没有完成（退出码 {code}）。日志：{log_path}"
        self._console.print(ending, markup=False, soft_wrap=True)


def _event(raw: bytes) -> Event:
    """One line of the child's output; plain text, such as MLflow's own words, becomes an event too."""
    try:
        event = json.loads(raw)
    except ValueError:
        event = None
    if isinstance(event, dict) and "event" in event:
        return event
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"timestamp": now, "level": "info", "event": raw.decode(errors="replace").rstrip(), "logger": _CHILD}


def _line(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode(errors="replace") + b"\n"


def _raised(event: Event) -> str | None:
    """The exception that an event tells of, in one line; our own sentences go without the name of their class."""
    details = event.get("error_detail") or event.get("exception")
    if not isinstance(details, list) or not details:
        return None
    kind, told = details[0].get("exc_type", ""), details[0].get("exc_value", "")
    return told if kind in ("WwtsError", "UnavailableError") else f"{kind}: {told}"


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
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, _: FrameType | None) -> None:
        caught.append(number)
        for child in started:
            _kill(child)

    # Handled before the child is there: a signal in between is remembered, and no child outlives us.
    with _signals(end):
        child = subprocess.Popen(
            command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        started.append(child)
        with child:
            if caught:
                _kill(child)
            code = _followed(child, log, follower)
    if caught:
        return 128 + caught[0]
    return 128 - code if code < 0 else code


def _followed(child: subprocess.Popen[bytes], log: IO[bytes], follower: Follower) -> int:
    assert child.stdout is not None
    try:
        for raw in child.stdout:
            event = _event(raw)
            log.write(_line(event))
            follower.take(event)
        return child.wait()
    finally:
        _kill(child)  # when our own output is gone, say: nobody would see how it ends


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends the child's whole session. Every write is whole or absent, so nothing needs time to tidy up."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, signals that ask us to end go to ``handler``."""
    before = {number: signal.signal(number, handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _exit(number: int, _: FrameType | None) -> None:
    """Leaves all blocks, so that what they opened is closed and removed."""
    raise SystemExit(128 + number)


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
