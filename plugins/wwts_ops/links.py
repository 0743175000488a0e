"""Links on the page of a task in Airflow: to MLflow's run and version, to the night's report, to the tag diff.

Airflow shows them for the operators of which a DAG says so, and computes them on the worker when the task ends. A
plugin's list could only give them to every ``@task`` function of everybody's DAGs, and its links would be computed in
the api-server; :func:`attach` gives them to the few tasks of ours that lead somewhere. Imported where DAG files are
parsed, so nothing heavy may be imported here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import structlog
from airflow.sdk.bases.operatorlink import BaseOperatorLink

from wwts_ops import addresses, settings
from wwts_ops.dag_defaults import VERSION
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings

log = structlog.get_logger(__name__)

_DATE = re.compile(r"date=(\d{4}-\d{2}-\d{2})/")


class _Link(BaseOperatorLink):  # type: ignore[misc]  # mypy does not follow Airflow
    """A link that is empty, and so not shown, where there is nothing to link to."""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address; ``ti_key`` is the task instance itself when Airflow asks on a worker."""
        del operator
        try:
            return self.address(settings.load(), ti_key)
        except WwtsError as error:
            log.warning("no_link", link=self.name, reason=str(error))
            return ""

    def address(self, given: Settings, ti: Any) -> str:
        """The address for the task instance ``ti``, or nothing.

        Raises:
            WwtsError: when what has to be asked does not answer.
        """
        raise NotImplementedError


class ReportLink(_Link):
    """From the task that built the page of a night to the page."""

    @property
    def name(self) -> str:
        """As the button says."""
        return "日报"

    def address(self, given: Settings, ti: Any) -> str:
        """See :class:`_Link`."""
        found = _DATE.search(str(_returned(ti) or ""))
        return addresses.report(given, found.group(1)) if found else ""


class ModelVersionLink(_Link):
    """From a task that made or judged a version, or put it in force, to its page in MLflow."""

    @property
    def name(self) -> str:
        """As the button says."""
        return "模型版本（MLflow）"

    def address(self, given: Settings, ti: Any) -> str:
        """See :class:`_Link`."""
        version = _version(ti)
        return addresses.model_version(given, version) if version else ""


class MlflowRunLink(_Link):
    """From the same tasks to the run in MLflow that the version came from: its training, with its figures."""

    @property
    def name(self) -> str:
        """As the button says."""
        return "训练记录（MLflow）"

    def address(self, given: Settings, ti: Any) -> str:
        """See :class:`_Link`."""
        version = _version(ti)
        if not version or not addresses.mlflow(given):
            return ""
        from wwts_ops import tracking

        with tracking.connected(given, tracking.ANSWER_SECONDS) as client:
            run_id = client.get_model_version(given.model_name, version).run_id
            return addresses.run(given, client.get_run(run_id)) if run_id else ""


class TagDiffLink(_Link):
    """From the task that compared the tags of a version with the champion's to the page that shows them."""

    @property
    def name(self) -> str:
        """As the button says."""
        return "标签变化"

    def address(self, given: Settings, ti: Any) -> str:
        """See :class:`_Link`."""
        version = _version(ti)
        if not version:
            return ""
        from wwts_ops import tagdiff, tracking

        with tracking.connected(given, tracking.ANSWER_SECONDS) as client:
            noted = client.get_model_version(given.model_name, version).tags.get(tagdiff.TAG)
        return addresses.tag_diff(given, json.loads(noted)["folder"]) if noted else ""


_MODEL = (ModelVersionLink(), MlflowRunLink())
#: Which tasks lead somewhere: by the DAG's name without a prefix, then by task.
TASKS: Mapping[str, Mapping[str, tuple[BaseOperatorLink, ...]]] = {
    "tag_catalog": {"report": (ReportLink(),)},
    "retrain_head": {
        "register": _MODEL,
        "evaluate": _MODEL,
        "gate": _MODEL,
        "tag_diff": (TagDiffLink(), *_MODEL),
        "promote": _MODEL,
        "prepare": (TagDiffLink(), *_MODEL),
        "move": _MODEL,
    },
    "evaluate_model": {"prepare": _MODEL, "judge": _MODEL},
    "promote_model": {"prepare": (TagDiffLink(), *_MODEL), "move": _MODEL},
}


def attach(name: str, dag: Any) -> None:
    """Gives the tasks of ``dag``, called ``name`` without its prefix, their links.

    Raises:
        KeyError: when ``TASKS`` names a task that is not there.
    """
    for task_id, links in TASKS.get(name, {}).items():
        dag.task_dict[task_id].operator_extra_links = links


def _returned(ti: Any) -> Any:
    """What the task returned; None when it failed, was skipped or returned nothing."""
    return ti.xcom_pull(task_ids=ti.task_id, key="return_value")


def _version(ti: Any) -> str:
    """The model version that a task returned, itself or in a record of several things, or named before it ended."""
    found = _returned(ti)
    if isinstance(found, Mapping):
        found = found.get("version")
    elif not isinstance(found, str):
        found = ti.xcom_pull(task_ids=ti.task_id, key=VERSION)
    return found if isinstance(found, str) and found.isdecimal() else ""
