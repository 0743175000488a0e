"""Is a server well? Asked by ``wwts up`` while it waits and by every health check of ``docker-compose.yml``.

``python -m wwts_ops.health URL [COMPONENT…]`` exits 0 when URL answers and, for Airflow's
``/api/v2/monitor/health``, every named component is healthy. Airflow's own ``airflow jobs check`` says the
same for the price of a whole Airflow import, several seconds of a core at every check.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx

#: Where Airflow's api-server tells how all the parts are, without a password.
AIRFLOW_PATH = "/api/v2/monitor/health"
#: Where MLflow's server answers ``OK``.
MLFLOW_PATH = "/health"
#: The parts that :data:`AIRFLOW_PATH` tells about.
AIRFLOW_COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")


def answer(url: str, timeout: float = 3.0) -> dict[str, Any] | None:
    """What ``url`` answers: its JSON object, ``{}`` for any other text, None when it does not answer 200.

    Args:
        url: http(s) address; proxies of the environment are not used, these servers are our own.
        timeout: seconds to wait, for connecting and for the answer each.
    """
    try:
        response = httpx.get(url, timeout=timeout, trust_env=False)
    except httpx.HTTPError:
        return None
    if response.status_code != httpx.codes.OK:
        return None
    try:
        value = response.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def unwell(report: Mapping[str, Any], components: Sequence[str], since: datetime | None = None) -> list[str]:
    """The ``components`` that an Airflow health ``report`` does not call healthy.

    With ``since`` (aware), a heartbeat from before it does not count: a part that was killed is called healthy
    by its old heartbeat for half a minute more.
    """
    return [name for name in components if not _is_well(name, report.get(name), since)]


def _is_well(name: str, part: object, since: datetime | None) -> bool:
    if not isinstance(part, dict) or part.get("status") != "healthy":
        return False
    beat = part.get(f"latest_{name}_heartbeat")
    return since is None or not isinstance(beat, str) or datetime.fromisoformat(beat) >= since


def main(arguments: Sequence[str]) -> int:
    """The health check itself: exit status 0 when well; otherwise 1, with the reason on stderr."""
    if not arguments:
        sys.stderr.write("usage: python -m wwts_ops.health URL [COMPONENT…]\n")
        return 2
    url, *components = arguments
    report = answer(url)
    if report is None:
        sys.stderr.write(f"{url} does not answer\n")
        return 1
    missing = unwell(report, components)
    if missing:
        sys.stderr.write(f"{url} does not call healthy: {', '.join(missing)}\n")
    return int(bool(missing))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
