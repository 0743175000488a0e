"""The tasks of a promotion, as `promote_model` and `retrain_head` both have them: checked, agreed to, carried out.

    prepare ─► choose ─► [approve ─►] move

Parsed with every DAG file that uses it: only light imports here, the work's own are in the bodies.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, TriggerRule, get_current_context, task

from wwts_ops.dag_defaults import VERSION
from wwts_ops.settings import Settings

if TYPE_CHECKING:
    from wwts_ops.rollout import Order

#: Told whenever another version became champion.
CHAMPION = Asset(name="wwts_champion", uri="wwts://models/champion")


def waiting_time(settings: Settings) -> timedelta:
    """How long a run may take that may have to wait for a person."""
    return timedelta(hours=settings.approval_hours + settings.run_timeout_hours)


def promotion_tasks(settings: Settings, version: Any = None) -> Any:
    """Adds the tasks of a promotion to the DAG that is being defined.

    The form of that DAG needs ``require_approval``, and may have ``action``, ``version``, ``override_reason`` and
    ``override_by`` (:class:`wwts_ops.rollout.Order`).

    Args:
        settings: of the process.
        version: what an earlier task returned: the version to promote, instead of the form's.

    Returns:
        The first task, for earlier ones to come before it.
    """
    prepared = _prepare(settings)(version)
    chosen = _choose()()
    approve = _approval(settings)
    moved = _move(settings)(prepared)
    prepared >> chosen >> [approve, moved]
    approve >> moved
    return prepared


def _order(version: str | None = None) -> Order:
    """What this run is asked to do."""
    from wwts_ops import rollout

    context = get_current_context()
    form = {"action": "promote", **context["params"], **({"version": version} if version else {})}
    return rollout.order({**context, "params": form})


def _prepare(settings: Settings) -> Any:
    def prepare(version: str | None) -> dict[str, Any]:
        from wwts_ops import rollout

        order = _order(version)
        if order.version:  # refused or not, the task's page leads to it
            get_current_context()["ti"].xcom_push(key=VERSION, value=order.version)
        return rollout.prepare(settings, order)

    return task(task_display_name="核对")(prepare)


def _choose() -> Any:
    def choose() -> str:
        return "approve" if _order().needs_approval else "move"

    return task.branch(task_display_name="是否需要审批")(choose)


def _approval(settings: Settings) -> Any:
    return ApprovalOperator(
        task_id="approve",
        task_display_name="审批",
        subject="上线候选模型：版本 {{ ti.xcom_pull(task_ids='prepare')['version'] }}？",
        body="{{ ti.xcom_pull(task_ids='prepare')['summary'] }}",
        defaults=ApprovalOperator.REJECT,
        response_timeout=timedelta(hours=settings.approval_hours),
        assigned_users=[{"id": name, "name": name} for name in settings.approvers] or None,
    )


def _move(settings: Settings) -> Any:
    def move(prepared: dict[str, Any]) -> str:
        from wwts_ops import rollout

        approval = get_current_context()["ti"].xcom_pull(task_ids="approve")
        return rollout.move(settings, _order(), prepared, approval)

    # A skipped approval is one that nobody asked for; a refused one skips this task.
    rule = TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
    return task(trigger_rule=rule, outlets=[CHAMPION], task_display_name="切换")(move)
