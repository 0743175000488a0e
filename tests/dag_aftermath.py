"""Runs DAGs one after another in one process, then tells what Airflow has kept of them.

Run as a program: the argument is a JSON list of ``[dag_id, conf, changes]``, changes of the environment that stay; one
line of its output is JSON, see :class:`Kept`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Step = tuple[str, Mapping[str, Any]] | tuple[str, Mapping[str, Any], Mapping[str, str]]


@dataclass(frozen=True)
class Kept:
    """What was left behind.

    Attributes:
        codes: of each step; 0 is a success.
        links: by DAG and task, what the API answers when the page asks for the links of the last run.
        database: all of Airflow's own database, as bytes in which to search.
        said: everything that was written to standard output and error.
    """

    codes: list[int]
    links: dict[str, dict[str, dict[str, str | None]]]
    database: bytes
    said: str


def run(settings: Any, steps: Sequence[Step], folder: Path, **environment: str) -> Kept:
    """Runs ``steps`` with ``settings`` in a fresh process, with ``environment`` on top."""
    import airflow_template

    from wwts_ops import dagrun, servers

    airflow_template.lay(settings)
    with dagrun._home(settings) as home:
        whole = {**servers.airflow_environment(settings, home), "AIRFLOW__LOGGING__JSON_LOGS": "True"}
        whole |= {"WWTS_RETRY_SECONDS": "0", **environment}
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(steps)],
            env={**os.environ, **whole},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
        told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"codes"')))
        database = b"".join(path.read_bytes() for path in sorted(home.glob("airflow.db*")))
    return Kept(told["codes"], told["links"], database, done.stdout + done.stderr)


def shown_links() -> dict[str, dict[str, dict[str, str | None]]]:
    """The links of all task instances there are, from the function behind the API."""
    from airflow.api_fastapi.core_api.routes.public.extra_links import get_extra_links
    from airflow.models.dagbag import DBDagBag
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found: dict[str, dict[str, dict[str, str | None]]] = {}
    with create_session() as session:
        bag = DBDagBag()
        for ti in session.scalars(select(TaskInstance)).all():
            answer = get_extra_links(ti.dag_id, ti.run_id, ti.task_id, session, bag, ti.map_index)
            found.setdefault(ti.dag_id, {})[ti.task_id] = dict(answer.extra_links)
    return found


if __name__ == "__main__":
    from wwts_ops import dagprocess

    codes = []
    for dag_id, conf, *changes in json.loads(sys.argv[1]):
        os.environ.update(*changes)
        codes.append(dagprocess.main(dag_id, json.dumps(conf)))
    sys.stdout.write(f"\n{json.dumps({'codes': codes, 'links': shown_links()})}\n")
