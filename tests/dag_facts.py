"""Prints what Airflow makes of the DAG files, as JSON: run as a program by ``test_dags.py``, in a process of its own.

A process of its own, because importing Airflow reads AIRFLOW_HOME and writes there, and because what parsing imports
can only be told where nothing was imported before.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any


def parse(folder: str) -> dict[str, Any]:
    """Parses ``folder`` and says what was imported for it, how long it took, and what came of it."""
    from airflow.dag_processing.dagbag import DagBag

    before, started = set(sys.modules), time.perf_counter()
    bag = DagBag(folder)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "imported": sorted(set(sys.modules) - before),
        "import_errors": bag.import_errors,
        "dags": {dag_id: facts(dag) for dag_id, dag in bag.dags.items()},
    }


def facts(dag: Any) -> dict[str, Any]:
    """What the tests ask of one DAG."""
    return {
        "owner": dag.owner,
        "tags": sorted(dag.tags),
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "timeout_hours": dag.dagrun_timeout.total_seconds() / 3600,
        "timetable": type(dag.timetable).__name__,
        "nights": nights(dag),
        "params": {name: dag.params.get_param(name).schema for name in dag.params},
        "tasks": {task.task_id: task_facts(task) for task in dag.tasks},
        "serialized": serialized(dag),
    }


def task_facts(task: Any) -> dict[str, Any]:
    """Of one task, or of one that will be mapped."""
    given = task.partial_kwargs if task.is_mapped else vars(task)
    return {
        "mapped": task.is_mapped,
        "pool": task.pool,
        "queue": task.queue,
        "retries": task.retries,
        "retry_seconds": task.retry_delay.total_seconds(),
        "outlets": [outlet.name for outlet in task.outlets],
        "upstream": sorted(task.upstream_task_ids),
        "decisions": decisions(given["retry_policy"]),
    }


def decisions(policy: Any) -> dict[str, str]:
    """What happens after each kind of error."""
    from wwts_ops.errors import UnavailableError, WwtsError

    errors = (WwtsError("bad"), UnavailableError("away"), MemoryError())
    return {type(error).__name__: policy.evaluate(error, 1, 2).action.value for error in errors}


def nights(dag: Any) -> list[dict[str, str]]:
    """The first runs that Airflow's scheduler would make, by the timetable that it would use."""
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables.base import TimeRestriction

    timetable = coerce_to_core_timetable(dag.timetable)
    # As in a first start at noon of the last day of 2025 in Shanghai, 04:00 in UTC.
    restriction = TimeRestriction(earliest=utc(2025, 12, 31, 4), latest=None, catchup=True)
    found: list[dict[str, str]] = []
    last = None
    for _ in range(3):
        last = timetable.next_dagrun_info_v2(last_dagrun_info=last, restriction=restriction)
        if last is None:
            break
        found.append({"run_after": last.run_after.in_timezone("UTC").isoformat(), "key": last.partition_key})
    return found


def utc(*parts: int) -> Any:
    """An instant as Airflow's timetables take it."""
    from airflow.sdk.timezone import coerce_datetime

    return coerce_datetime(datetime(*parts, tzinfo=UTC))  # type: ignore[misc, arg-type]


def serialized(dag: Any) -> bool:
    """Whether the scheduler can store it: a retry policy or a timetable that cannot be serialized fails here."""
    from airflow.serialization.serialized_objects import DagSerialization

    return bool(DagSerialization.serialize_dag(dag))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(parse(sys.argv[1]), default=str) + "\n")
