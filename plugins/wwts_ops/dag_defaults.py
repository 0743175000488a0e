"""What all DAG files share: how tasks are retried, whose they are, how the DAGs are named, who hears of a failure."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

import structlog
from airflow.sdk import Asset, ExceptionRetryPolicy, RetryAction, RetryRule

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

log = structlog.get_logger(__name__)

#: Told whenever consumers read another snapshot.
PUBLISHED_TAGS = Asset(name="wwts_published_tags", uri="wwts://published/tags")
#: So many new answers wait that the head should be trained.
ENOUGH_ANSWERS = Asset(name="wwts_answers", uri="wwts://answers/enough")

#: XCom of a task: the model version that it is about, however it ends (see ``wwts_ops.links``).
VERSION = "version"

#: Bad input fails the same way every time; a server that is away, or too little memory, may not.
RETRIES = ExceptionRetryPolicy(
    rules=[
        RetryRule(UnavailableError, RetryAction.RETRY, reason="a server or disk did not answer"),
        RetryRule(WwtsError, RetryAction.FAIL, reason="bad input: trying again cannot help"),
    ]
)

#: What to do when a DAG failed, by its name without a prefix.
_REMEDIES = {
    "tag_catalog": "做完的部分已经发布。请看失败任务的日志，排除原因后清除失败的任务重跑；否则下一夜会先补做剩下的。",
    "publish_tags": "人工答案暂时没有上线，但都在，不会丢。请看失败任务的日志；原因排除后会自动补发，不用重跑。",
    "retrain_head": "现有模型不受影响。请看失败任务的日志，排除原因后清除失败的任务重跑。",
    "evaluate_model": "现有模型不受影响，这次没有门禁结论。请看失败任务的日志，排除原因后重新评测。",
    "promote_model": "请先用 wwts models list 核对当前启用的版本，再看失败任务的日志决定是否重试。",
    "retag_catalog": "人工答案不受影响，只有完整的结果才会上线。请看失败任务的日志，排除原因后清除失败的任务重跑。",
    "remind_reviewers": "今天早上的提醒没有发全。请检查 WWTS_NOTIFY 里的地址和网络。",
}
_REMEDY = "请看失败任务的日志，排除原因后清除失败的任务重跑。"
#: A DAG that runs every five minutes and fails each time is told of once in this time.
_SECONDS_BETWEEN_FAILURES = 3600.0
#: Parts of an address that are as long as this may be a token.
_SECRET_CHARS = 6


def dag_arguments(settings: Settings, name: str) -> dict[str, Any]:
    """Keyword arguments of ``@dag`` for the DAG ``name``: its id, and what every one of ours has."""
    return {
        "dag_id": f"{settings.dag_prefix}{name}",
        "catchup": False,
        "tags": list(settings.tags),
        "on_failure_callback": _teller(settings, name) if settings.notify else None,
        "default_args": {
            "owner": settings.owner,
            "retries": settings.retries,
            "retry_delay": timedelta(seconds=settings.retry_seconds),
            "retry_policy": RETRIES,
        },
    }


def tell(settings: Settings, title: str, text: str) -> None:
    """Sends a message to every address of ``settings.notify``, through Airflow's provider for Apprise.

    Neither the addresses nor any part of them reach a log: they hold tokens.

    Raises:
        UnavailableError: when no address took it: trying again may help.
        WwtsError: when some did not: trying again would tell the others twice.
    """
    failed = [number for number, url in enumerate(settings.notify, 1) if not _sent(url, title, text)]
    if not failed:
        return
    which = "、".join(f"第 {number} 个（{_scheme(settings.notify[number - 1])}）" for number in failed)
    sentence = f"消息没有发到 WWTS_NOTIFY 的{which}地址；请检查地址是否写对、机器人是否还在、网络是否能通。"
    raise UnavailableError(sentence) if len(failed) == len(settings.notify) else WwtsError(sentence)


def _sent(url: str, title: str, text: str) -> bool:
    """Whether ``url`` took the message. The hook itself does not say: Apprise's warnings do."""
    import apprise
    from airflow.providers.apprise.hooks.apprise import AppriseHook

    with _unheard(), apprise.LogCapture(level=apprise.logging.WARNING, fmt="%(message)s") as said:  # type: ignore[no-untyped-call]
        config = apprise.AppriseConfig()
        config.add_config(url, format="text")  # what it cannot read, it warns of
        AppriseHook().notify(text, title=title, config=config)
        warnings = said.getvalue()
    if warnings:
        log.warning("message_not_sent", service=_scheme(url), reason=_without_secrets(warnings, url))
    return not warnings


@contextmanager
def _unheard() -> Iterator[None]:
    """In the block no log gets what Apprise, or the HTTP library that it uses, has to say: it may hold a token.

    Masking it would not do: a masker is asked through a channel that is itself logged, and in some processes of
    Airflow there are two maskers that know nothing of each other.
    """
    nobody = logging.NullHandler()
    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(nobody)  # with none at all, Python would write to standard error
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(nobody)
            logger.propagate = propagate


def _without_secrets(text: str, url: str) -> str:
    """``text`` in one line, without ``url`` or any part of it that may be a token."""
    parts = {piece for part in re.split(r"[/?&=@:#+]+", url.partition("://")[2]) for piece in (part, unquote(part))}
    for secret in (url, *sorted(parts, key=len, reverse=True)):
        if len(secret) >= _SECRET_CHARS:
            text = text.replace(secret, "***")
    return " ".join(text.split())


def _scheme(url: str) -> str:
    found = re.match(r"[A-Za-z0-9]{1,32}(?=://)", url)
    return found.group() if found else "不是地址"


def _teller(settings: Settings, name: str) -> Callable[[Mapping[str, Any]], None]:
    """What Airflow calls when a run of the DAG ``name`` failed; a function whose ``repr`` holds no setting."""

    def tell_failure(context: Mapping[str, Any]) -> None:
        if _told_lately(settings, name):
            return
        dag = context["dag"]
        tell(settings, f"任务失败：{dag.dag_display_name}", failure(settings, name, context))
        with suppress(OSError):  # a second message is better than none
            path = settings.state_dir / "told" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return tell_failure


def _told_lately(settings: Settings, name: str) -> bool:
    try:
        told = (settings.state_dir / "told" / name).stat().st_mtime
    except OSError:
        return False
    return 0 <= time.time() - told < _SECONDS_BETWEEN_FAILURES


def failure(settings: Settings, name: str, context: Mapping[str, Any]) -> str:
    """The message that a run of the DAG ``name`` failed: which, of what date, what to do, where to look.

    Args:
        settings: time zone and address.
        name: of the DAG, without its prefix.
        context: as Airflow gives it; without a task where it knows none.
    """
    dag, run, task = context["dag"], context.get("dag_run"), context.get("ti")
    run_id = run.run_id if run is not None else context.get("run_id", "")
    lines = [f"{dag.dag_display_name}（{dag.dag_id}）{_date(settings, run)}运行失败。"]
    if context.get("reason") == "timed_out":
        lines.append("原因：超过了最长运行时间。")
    elif task is not None:
        lines.append(f"失败的任务：{_display(dag, task.task_id)}。")
    lines.append(_REMEDIES.get(name, _REMEDY))
    if settings.public_url:
        address = settings.public_url.rstrip("/")
        lines.append(f"查看：{address}/dags/{quote(dag.dag_id)}/runs/{quote(str(run_id), safe='')}")
    return "\n".join(lines)


def _date(settings: Settings, run: Any) -> str:
    """The date of a night, or else the moment of the run, in the shop's time zone."""
    if run is None:
        return ""
    if run.partition_key:
        return f" {run.partition_key} 的"
    moment: datetime = run.run_after
    return f" {moment.astimezone(ZoneInfo(settings.timezone)):%Y-%m-%d %H:%M} 的"


def _display(dag: Any, task_id: str) -> str:
    known = dag.task_dict.get(task_id)
    return f"{known.task_display_name}（{task_id}）" if known is not None else task_id
