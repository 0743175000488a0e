"""Where people find things in a browser: pages of Airflow and MLflow, by the addresses that they type."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from wwts_ops.settings import Settings


def airflow(settings: Settings) -> str:
    """Airflow's address without a slash at its end; empty (an address of the same server) when nobody said it."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    from airflow.sdk.configuration import conf

    return urlsplit(str(conf.get("api", "base_url", fallback="") or "")).path.rstrip("/")


def mlflow(settings: Settings) -> str:
    """MLflow's address for a browser, without anybody's password; empty when it is a file or a database."""
    parts = urlsplit(settings.mlflow_public_url or settings.resolved_tracking_uri)
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def report(settings: Settings, day: str) -> str:
    """The page of the night of ``day`` (ISO date)."""
    return f"{airflow(settings)}/wwts/reports/{quote(day)}/"


def tag_diff(settings: Settings, folder: str) -> str:
    """The page of the tag diff that lies in ``folder`` of the store."""
    return f"{airflow(settings)}/wwts/tagdiffs/{quote(folder.rpartition('/')[2])}/"


def model_version(settings: Settings, version: str) -> str:
    """The page of a version in MLflow; empty where that has no pages."""
    server = mlflow(settings)
    return server and f"{server}/#/models/{quote(settings.model_name)}/versions/{quote(version)}"


def run(settings: Settings, found: Any) -> str:
    """The page of a run in MLflow, ``found`` as its client returns it; empty where that has no pages."""
    server = mlflow(settings)
    info = found.info
    return server and f"{server}/#/experiments/{quote(info.experiment_id)}/runs/{quote(info.run_id)}"
