"""Links on the page of a task in Airflow: to the MLflow run, to the model version, to the night's report.

Airflow shows them for the operators of which a DAG says so, and computes them on the worker when the task ends. A
plugin's list could only give them to every ``@task`` function of everybody's DAGs, and its links would be computed in
the api-server; :func:`attach` gives them to the few tasks of ours that lead somewhere. Imported where DAG files are
parsed, so nothing heavy may be imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import structlog
from airflow.sdk.bases.operatorlink import BaseOperatorLink

from wwts_ops import settings
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
        return f"{_airflow(given)}/wwts/reports/{found.group(1)}/" if found else ""


class ModelVersionLink(_Link):
    """From a task that made or judged a version, or put it in force, to its page in MLflow."""

    @property
    def name(self) -> str:
        """As the button says."""
        return "模型版本（MLflow）"

    def address(self, given: Settings, ti: Any) -> str:
        """See :class:`_Link`."""
        version, server = _version(ti), _mlflow(given)
        return f"{server}/#/models/{quote(given.model_name)}/versions/{quote(version)}" if version and server else ""


class MlflowRunLink(_Link):
    """From the same tasks to the run in MLflow that the version came from: its training, with its figures."""

    @property
    def name(self) -> str:
        """As the button says."""
        return "训练记录（MLflow）"

    def address(self, given: Settings, ti: Any) -> str:
        """See :class:`_Link`."""
        version, server = _version(ti), _mlflow(given)
        if not version or not server:
            return ""
        from wwts_ops import tracking

        with tracking.connected(given, tracking.ANSWER_SECONDS) as client:
            run_id = client.get_model_version(given.model_name, version).run_id
            if not run_id:
                return ""
            experiment = client.get_run(run_id).info.experiment_id
        return f"{server}/#/experiments/{quote(experiment)}/runs/{quote(run_id)}"


_MODEL = (ModelVersionLink(), MlflowRunLink())
#: Which tasks lead somewhere: by the DAG's name without a prefix, then by task.
TASKS: Mapping[str, Mapping[str, tuple[BaseOperatorLink, ...]]] = {
    "tag_catalog": {"report": (ReportLink(),)},
    "retrain_head": {
        "register": _MODEL,
        "evaluate": _MODEL,
        "prepare": _MODEL,
        "move": _MODEL,
    },
    "evaluate_model": {"prepare": _MODEL},
    "promote_model": {"prepare": _MODEL, "move": _MODEL},
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
    """The model version that a task returned: itself, or in a record of several things."""
    found = _returned(ti)
    version = found.get("version") if isinstance(found, Mapping) else found
    return version if isinstance(version, str) and version.isdecimal() else ""


def _airflow(given: Settings) -> str:
    """Airflow's address without a slash at its end; empty (an address of the same server) when nobody said it."""
    if given.public_url:
        return given.public_url.rstrip("/")
    from airflow.sdk.configuration import conf

    return urlsplit(str(conf.get("api", "base_url", fallback="") or "")).path.rstrip("/")


def _mlflow(given: Settings) -> str:
    """MLflow's address for a browser, without anybody's password; empty when it is a file or a database."""
    parts = urlsplit(given.mlflow_public_url or given.resolved_tracking_uri)
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
