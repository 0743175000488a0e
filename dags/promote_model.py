"""A version that passed the gate becomes champion once a person agrees; the same DAG takes it back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, Param, TriggerRule, dag, get_current_context, task

from wwts_ops import settings
from wwts_ops.dag_defaults import dag_arguments

SETTINGS = settings.load()
CHAMPION = Asset(name="wwts_champion", uri="wwts://models/champion")

FORM = {
    "action": Param(
        "promote",
        enum=["promote", "rollback"],
        title="操作",
        description="promote：上线；rollback：回退到以前启用过的版本",
    ),
    "version": Param(
        None,
        type=["null", "string"],
        title="模型版本",
        description="MLflow 中的版本号；留空时，上线用候选模型（challenger），回退用上一个启用的模型（previous）",
    ),
    "require_approval": Param(
        default=True, type="boolean", title="需要审批", description="上线前等人审批；关闭后不等。回退从不等审批"
    ),
    "override_reason": Param(
        None,
        type=["null", "string"],
        title="强制上线的理由",
        description="只在候选模型未通过门禁、仍要上线时填写；理由和责任人一起永久留档",
    ),
    "override_by": Param(
        None, type=["null", "string"], title="强制上线的责任人", description="留空则记为触发这次运行的用户"
    ),
}


@dag(
    **dag_arguments(SETTINGS, "promote_model"),
    dag_display_name="上线或回退模型",
    description="上线：核对门禁结论，等人审批，再切换当前启用的模型。回退：操作选 rollback，触发一次即可",
    doc_md=__doc__,
    schedule=None,
    # A rollback must not wait for a promotion that waits for a person.
    max_active_runs=16,
    dagrun_timeout=timedelta(hours=SETTINGS.approval_hours + SETTINGS.run_timeout_hours),
    params=FORM,
)
def promote_model() -> None:
    """From a recorded verdict to a moved alias."""

    @task(task_display_name="核对")
    def prepare() -> dict[str, Any]:
        from wwts_ops import rollout

        return rollout.prepare(SETTINGS, rollout.order(get_current_context()))

    @task.branch(task_display_name="是否需要审批")
    def choose() -> str:
        from wwts_ops import rollout

        return "approve" if rollout.order(get_current_context()).needs_approval else "move"

    approve = ApprovalOperator(
        task_id="approve",
        task_display_name="审批",
        subject="上线候选模型：版本 {{ ti.xcom_pull(task_ids='prepare')['version'] }}？",
        body="{{ ti.xcom_pull(task_ids='prepare')['summary'] }}",
        defaults=ApprovalOperator.REJECT,
        response_timeout=timedelta(hours=SETTINGS.approval_hours),
        assigned_users=[{"id": name, "name": name} for name in SETTINGS.approvers] or None,
    )

    # A skipped approval is one that nobody asked for; a refused one skips this task.
    @task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, outlets=[CHAMPION], task_display_name="切换")
    def move(prepared: dict[str, Any]) -> str:
        from wwts_ops import rollout

        context = get_current_context()
        approval = context["ti"].xcom_pull(task_ids="approve")
        return rollout.move(SETTINGS, rollout.order(context), prepared, approval)

    prepared = prepare()
    chosen = choose()
    moved = move(prepared)
    prepared >> chosen >> [approve, moved]
    approve >> moved


promote_model()
