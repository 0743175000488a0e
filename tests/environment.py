"""The environment without what configures us, MLflow or Airflow: no setting of the developer's own reaches a test."""

from __future__ import annotations

import os

import pytest

SETTINGS = ("WWTS_", "MLFLOW_", "AIRFLOW")
#: Tells the tests themselves where more photographs lie.
PHOTOS = "WWTS_TEST_PHOTOS"


def clean(patch: pytest.MonkeyPatch, *more: str) -> None:
    """Takes the settings, and whatever else begins with one of ``more``, out of this process's environment."""
    for name in os.environ.keys() - plain(*more).keys() - {PHOTOS}:
        patch.delenv(name)


def plain(*more: str) -> dict[str, str]:
    """The environment for another process, without the settings and whatever else begins with one of ``more``."""
    return {name: value for name, value in os.environ.items() if not name.startswith((*SETTINGS, *more))}
