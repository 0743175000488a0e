"""Runs one DAG in this process with Airflow's ``dag.test()``; `wwts run` starts it as a child.

A child of its own, because ``dag.test()`` swallows SIGTERM after the first task and decides how logs look.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import Any


def main(dag_id: str, conf: str) -> int:
    """Runs ``dag_id`` with ``conf`` (JSON object); 0 when it succeeded, 1 when it failed, 2 when it cannot start.

    Why it cannot start is told as an event ``refused`` with a ``reason``.
    """
    from airflow.configuration import conf as airflow_conf
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DagRunState, timezone

    bag = DagBag(airflow_conf.get("core", "dags_folder"))
    dag: Any = bag.dags.get(dag_id)
    if dag is None:
        broken = [f"{path} cannot be loaded:\n{error}" for path, error in bag.import_errors.items()]
        return _refuse("\n".join([*broken, f"There is no DAG {dag_id!r}; there are: {', '.join(sorted(bag.dags))}."]))
    form = json.loads(conf)
    wrong = _wrong_form(dag, form) or _waits_for_a_person(dag, form)
    if wrong:
        return _refuse(wrong)
    run = dag.test(run_conf=form, logical_date=timezone.utcnow())
    return 0 if run.state == DagRunState.SUCCESS else 1


def _wrong_form(dag: Any, form: Mapping[str, Any]) -> str | None:
    """What is wrong with the form; Airflow itself ignores a misspelt name, and the run would do something else."""
    from airflow.sdk.exceptions import ParamValidationError

    unknown = sorted(set(form) - set(dag.params))
    if unknown:
        return f"{dag.dag_id} has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(dag.params))}."
    try:
        deepcopy(dag.params).update(form)  # checks each value as it is set
    except ParamValidationError as error:
        return str(error).splitlines()[0]
    return None


def _waits_for_a_person(dag: Any, form: Mapping[str, Any]) -> str | None:
    """Why the run could never end: ``dag.test()`` polls for ever for an approval that nobody can give here."""
    given = {**dag.params.dump(), **form}
    asked_to_promote = given.get("action", "promote") == "promote" and given.get("promote", True)
    if not given.get("require_approval") or not asked_to_promote:
        return None
    without = shlex.quote(json.dumps({**form, "require_approval": False}, ensure_ascii=False))
    return (
        f"{dag.dag_id} waits for a person's approval, which can only be given in Airflow's own page; trigger it there, "
        f"or leave the approval out: --conf {without}."
    )


def _refuse(reason: str) -> int:
    event = {"event": "refused", "level": "error", "logger": "wwts_ops.dagprocess", "reason": reason}
    print(json.dumps(event, ensure_ascii=False), flush=True)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
