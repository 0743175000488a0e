"""Runs one DAG in this process with Airflow's ``dag.test()``; `wwts run` starts it as a child.

A child of its own, because ``dag.test()`` swallows SIGTERM after the first task and decides how logs look.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(dag_id: str, conf: str) -> int:
    """Runs ``dag_id`` with ``conf`` (JSON object); 0 when it succeeded, 1 when it failed, 2 when it cannot start."""
    from airflow.configuration import conf as airflow_conf
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DagRunState, timezone

    bag = DagBag(airflow_conf.get("core", "dags_folder"))
    dag: Any = bag.dags.get(dag_id)
    if dag is None:
        for path, error in bag.import_errors.items():
            print(f"{path} cannot be loaded:\n{error}", file=sys.stderr)  # noqa: T201
        print(f"There is no DAG {dag_id!r}; there are: {', '.join(sorted(bag.dags))}.", file=sys.stderr)  # noqa: T201
        return 2
    run = dag.test(run_conf=json.loads(conf), logical_date=timezone.utcnow())
    return 0 if run.state == DagRunState.SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
