"""What Airflow loads as a plugin, and the only file of this package that it may load as one.

Airflow imports it by its bare file name, so it exists a second time under another name: nothing imports it, it holds
no state, and it imports nothing heavy.
"""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class WwtsPlugin(AirflowPlugin):  # type: ignore[misc]  # mypy does not follow Airflow
    """Makes wwts-ops known to Airflow."""

    name = "wwts_ops"
