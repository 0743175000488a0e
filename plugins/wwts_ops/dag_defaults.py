"""What all DAG files share: how tasks are retried, whose they are, how the DAGs are named."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, ExceptionRetryPolicy, RetryAction, RetryRule

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

#: Told whenever consumers read another snapshot.
PUBLISHED_TAGS = Asset(name="wwts_published_tags", uri="wwts://published/tags")
#: So many new answers wait that the head should be trained.
ENOUGH_ANSWERS = Asset(name="wwts_answers", uri="wwts://answers/enough")

#: Bad input fails the same way every time; a server that is away, or too little memory, may not.
RETRIES = ExceptionRetryPolicy(
    rules=[
        RetryRule(UnavailableError, RetryAction.RETRY, reason="a server or disk did not answer"),
        RetryRule(WwtsError, RetryAction.FAIL, reason="bad input: trying again cannot help"),
    ]
)


def dag_arguments(settings: Settings, name: str) -> dict[str, Any]:
    """Keyword arguments of ``@dag`` for the DAG ``name``: its id, and what every one of ours has."""
    return {
        "dag_id": f"{settings.dag_prefix}{name}",
        "catchup": False,
        "tags": list(settings.tags),
        "default_args": {
            "owner": settings.owner,
            "retries": settings.retries,
            "retry_delay": timedelta(seconds=settings.retry_seconds),
            "retry_policy": RETRIES,
        },
    }
