"""A version that passed the gate becomes champion once a person agrees; the same DAG takes it back."""

from __future__ import annotations

from airflow.sdk import Param, dag

from wwts_ops import links, settings
from wwts_ops.dag_defaults import dag_arguments
from wwts_ops.dag_promotion import promotion_tasks, waiting_time

SETTINGS = settings.load()

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
        default=True, type="boolean", title="需要审批", description="上线前等人审批；关闭后不等。回退不需要审批"
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
    dagrun_timeout=waiting_time(SETTINGS),
    params=FORM,
)
def promote_model() -> None:
    """From a recorded verdict to a moved alias."""
    promotion_tasks(SETTINGS)


links.attach("promote_model", promote_model())
