"""What people answered becomes a better head: answers ► dataset ► training ► version ► gate ► tag diff ► live."""

from __future__ import annotations

from typing import Any

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from wwts_ops import links, settings
from wwts_ops.dag_defaults import ENOUGH_ANSWERS, VERSION, dag_arguments
from wwts_ops.dag_promotion import promotion_tasks, waiting_time

SETTINGS = settings.load()
#: Where the work of a training is done.
WORKER = {"pool": SETTINGS.pool, "queue": SETTINGS.queue}

FORM = {
    "promote": Param(
        default=False, type="boolean", title="训练后上线", description="通过门禁后上线新版本；关闭则只训练、评测并登记"
    ),
    "require_approval": Param(
        default=True, type="boolean", title="需要审批", description="上线前等人审批；只在“训练后上线”打开时有意义"
    ),
    "min_new_answers": Param(
        1,
        type="integer",
        minimum=1,
        title="最少新答案数",
        description="自上次训练以来，答案有变化（含撤回）的图片少于这个数就跳过",
    ),
    "force": Param(
        default=False,
        type="boolean",
        title="强制训练",
        description="没有新答案、已经训练过，或者只有旧标签，也训练一次",
    ),
    "backbone": Param(
        None,
        type=["null", "string"],
        title="骨干网络",
        description="留空则沿用当前启用的模型的骨干网络；填写名称就换成它，缺少的特征会先补算。"
        "每次都从最初的分类头开始，重新学习全部答案",
    ),
    "badcases": Param(
        None,
        type=["null", "string"],
        title="坏例快照",
        description="评测要用的坏例快照的名称；留空用这次训练所排除的那份",
    ),
    "seed": Param(0, type="integer", minimum=0, title="随机种子", description="答案和种子相同，训练结果就相同"),
}


def trained() -> tuple[Any, Any]:
    """Adds the tasks from answers to a registered version; what the first one returns, and the last one."""

    @task(task_display_name="冻结答案")
    def snapshot() -> dict[str, Any]:
        from training import retrain

        order = retrain.prepare(SETTINGS, get_current_context()["params"])
        if order is None:
            raise AirflowSkipException("没有足够的新答案，或者用这些答案训练的版本已经启用：不训练")
        return order

    @task(**WORKER, task_display_name="整理数据集")
    def dataset(order: dict[str, Any]) -> None:
        from training import retrain
        from training.order import Order

        retrain.build_dataset(SETTINGS, Order(**order))

    @task(**WORKER, task_display_name="训练")
    def train(order: dict[str, Any]) -> None:
        from training import retrain
        from training.order import Order

        retrain.train(SETTINGS, Order(**order))

    @task(task_display_name="登记")
    def register(order: dict[str, Any]) -> str:
        from training import retrain
        from training.order import Order

        return retrain.register(SETTINGS, Order(**order))

    order = snapshot()
    version = register(order)
    dataset(order) >> train(order) >> version
    return order, version


def judged(order: Any, version: Any) -> Any:
    """Adds the tasks of the gate, which are those of `evaluate_model`, and of the comparison; the last one."""

    @task(task_display_name="准备评测")
    def evaluate(order: dict[str, Any], version: str) -> dict[str, Any]:
        from eval import evaluate as stages

        # Those that were kept out of the training: a case that was added since may be one that it learned from.
        badcases = get_current_context()["params"]["badcases"] or order["badcases"]
        return vars(stages.prepare(SETTINGS, version, badcases))

    @task(**WORKER, task_display_name="准确率")
    def accuracy(evaluation: dict[str, Any]) -> None:
        from eval import evaluate as stages

        stages.measure_accuracy(SETTINGS, stages.Order(**evaluation))

    # The whole pool: nothing else of ours may use the machine that is being timed.
    @task(**WORKER, pool_slots=SETTINGS.pool_slots, task_display_name="延迟")
    def latency(evaluation: dict[str, Any]) -> None:
        from eval import evaluate as stages

        stages.measure_latency(SETTINGS, stages.Order(**evaluation))

    @task(task_display_name="门禁")
    def gate(evaluation: dict[str, Any]) -> dict[str, str]:
        from training import retrain
        from wwts_ops import rollout

        context = get_current_context()
        asked = rollout.person(context), rollout.run(context)
        return {"version": evaluation["version"], "outcome": retrain.judge(SETTINGS, evaluation, *asked)}

    @task(**WORKER, task_display_name="标签变化")
    def tag_diff(order: dict[str, Any], version: str) -> str:
        from training import retrain
        from training.order import Order

        retrain.tag_diff(SETTINGS, Order(**order), version)
        return version

    evaluation = evaluate(order, version)
    compared = tag_diff(order, version)
    accuracy(evaluation) >> latency(evaluation) >> gate(evaluation) >> compared
    return compared


@dag(
    **dag_arguments(SETTINGS, "retrain_head"),
    dag_display_name="用人工答案训练分类头",
    description="冻结人工答案，训练新的分类头，登记为新版本，过门禁，对比全库标签的变化；可选审批后上线",
    doc_md=__doc__,
    schedule=[ENOUGH_ANSWERS]
    if SETTINGS.retrain_schedule == "none"
    else AssetOrTimeSchedule(
        timetable=CronTriggerTimetable(SETTINGS.retrain_schedule, timezone=SETTINGS.timezone), assets=[ENOUGH_ANSWERS]
    ),
    max_active_runs=1,
    dagrun_timeout=waiting_time(SETTINGS),
    params=FORM,
)
def retrain_head() -> None:
    """One training, from frozen answers to a judged version, or a champion."""

    @task.short_circuit(task_display_name="是否上线")
    def promote(version: str) -> bool:
        from wwts_ops import rollout

        context = get_current_context()
        context["ti"].xcom_push(key=VERSION, value=version)
        return rollout.goes_on(SETTINGS, context["params"], version)

    order, version = trained()
    judged(order, version) >> (wanted := promote(version))
    wanted >> promotion_tasks(SETTINGS, version)


links.attach("retrain_head", retrain_head())
