"""Any model version against the bad cases and the champion, on demand: accuracy ► latency ► the gate's verdict."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from wwts_ops import links, settings
from wwts_ops.dag_defaults import dag_arguments

SETTINGS = settings.load()

FORM = {
    "version": Param(
        None, type=["null", "string"], title="模型版本", description="MLflow 中的版本号；留空则评测最新登记的候选模型"
    ),
    "badcases": Param(
        None, type=["null", "string"], title="坏例快照", description="要用的坏例快照的名称；留空用最新的"
    ),
    "dry_run": Param(default=False, type="boolean", title="仅演练", description="照常评测并记录结论，但不作为上线依据"),
}


@dag(
    **dag_arguments(SETTINGS, "evaluate_model"),
    dag_display_name="评测模型",
    description="候选模型与当前启用的模型在坏例上逐条对比，再测延迟，最后给出门禁结论",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=SETTINGS.run_timeout_hours),
    params=FORM,
)
def evaluate_model() -> None:
    """One version, from its number to a verdict on its page in MLflow."""

    @task(task_display_name="准备")
    def prepare() -> dict[str, Any]:
        from eval import evaluate

        form = get_current_context()["params"]
        return vars(evaluate.prepare(SETTINGS, form["version"], form["badcases"]))

    @task(pool=SETTINGS.pool, queue=SETTINGS.queue, task_display_name="准确率")
    def accuracy(order: dict[str, Any]) -> None:
        from eval import evaluate

        evaluate.measure_accuracy(SETTINGS, evaluate.Order(**order))

    # The whole pool: nothing else of ours may use the machine that is being timed.
    @task(pool=SETTINGS.pool, pool_slots=SETTINGS.pool_slots, queue=SETTINGS.queue, task_display_name="延迟")
    def latency(order: dict[str, Any]) -> None:
        from eval import evaluate

        evaluate.measure_latency(SETTINGS, evaluate.Order(**order))

    @task(task_display_name="门禁")
    def judge(order: dict[str, Any]) -> dict[str, str]:
        from eval import evaluate
        from wwts_ops import rollout

        context = get_current_context()
        mode = "dry_run" if context["params"]["dry_run"] else "enforced"
        verdict = evaluate.judge(SETTINGS, evaluate.Order(**order), mode, rollout.person(context), rollout.run(context))
        return {"version": verdict.model_version, "outcome": "passed" if verdict.passed else "failed"}

    order = prepare()
    accuracy(order) >> latency(order) >> judge(order)


links.attach("evaluate_model", evaluate_model())
