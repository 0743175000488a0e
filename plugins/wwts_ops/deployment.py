"""What a deployment over several machines needs: everything shared, nothing on one machine's disk."""

from __future__ import annotations

import re

from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings

#: Airflow's executors that run tasks on the scheduler's own machine; every other one may use a second machine.
LOCAL_EXECUTORS = frozenset({"LocalExecutor", "SequentialExecutor", "DebugExecutor", "InProcessExecutor"})


def is_distributed(executor: str) -> bool:
    """Whether Airflow's ``[core] executor`` may run tasks on another machine than the scheduler's.

    Takes all forms that Airflow takes: a name, a full class path, ``alias:path``, ``team=name``, a list of them.
    """
    entries = (entry.strip() for entry in re.split(r"[,;]", executor))
    names = (re.split(r"[.:=]", entry) for entry in entries if entry)
    return any(LOCAL_EXECUTORS.isdisjoint(parts) for parts in names)


def refuse_unshared(settings: Settings, executor: str) -> None:
    """Refuses a distributed ``executor`` while something is kept where only one machine sees it.

    Raises:
        WwtsError: one line per setting that is not shared, all of them at once.
    """
    if not is_distributed(executor):
        return
    wrong = [*_store(settings), *_database(settings), *_mlflow(settings)]
    if wrong:
        first = f"{executor} runs tasks on several machines, which must share what they read and write:"
        last = "Set what is named, or use LocalExecutor on one machine."
        raise WwtsError("\n".join([first, *wrong, last]))


def _store(settings: Settings) -> list[str]:
    if settings.store.startswith("s3://"):
        return []
    return [f"WWTS_STORE: {settings.store} is a folder of one machine; use s3://bucket/prefix."]


def _database(settings: Settings) -> list[str]:
    if not settings.resolved_database_url.startswith("sqlite"):
        return []
    return ["WWTS_DATABASE_URL: SQLite is a file of one machine; use postgresql+psycopg://user:password@host/wwts."]


def _mlflow(settings: Settings) -> list[str]:
    if re.match(r"(https?|postgresql|mysql|mssql|databricks|uc)\b", settings.resolved_tracking_uri):
        return []
    return ["MLFLOW_TRACKING_URI: it is a file of one machine; use the address of an MLflow server, http://host:5000."]
