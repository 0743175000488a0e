"""The champion's head over all stored embeddings, after every promotion and rollback; or back to an older snapshot.

choose ─► survey ─► embed_missing[] ─► plan ─► retag[] ─► publish ─► route_to_review
     └──► restore ──────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from wwts_ops import settings
from wwts_ops.dag_defaults import PUBLISHED_TAGS, dag_arguments
from wwts_ops.dag_promotion import CHAMPION

SETTINGS = settings.load()
DRY_RUN = "仅预演：没有写入任何内容"

FORM = {
    "snapshot": Param(
        None,
        type=["null", "string"],
        title="回到某个快照",
        description="快照的名字（见 wwts tags snapshots）；留空用当前启用的模型重新打标。之后的人工答案始终保留",
    ),
    "dry_run": Param(default=False, type="boolean", title="仅预演", description="只说明会做什么，不写入任何内容"),
}


@task.branch(task_display_name="核对")
def choose() -> str:
    """Back to a snapshot, or on to the champion's tags; or nothing, and why."""
    from wwts_ops import retagging

    wanted = retagging.order(get_current_context()["params"])
    if wanted.snapshot is not None:
        return "restore"
    if reason := retagging.obstacle(SETTINGS):
        raise AirflowSkipException(reason)
    return "survey"


@task(outlets=[PUBLISHED_TAGS], task_display_name="回到快照")
def restore() -> str:
    """Lets consumers read an older snapshot again."""
    from wwts_ops import retagging

    published = retagging.restore(SETTINGS, retagging.order(get_current_context()["params"]))
    if published is None:
        raise AirflowSkipException(DRY_RUN)
    return str(published["snapshot"])


@task(task_display_name="查找缺少的特征")
def survey() -> list[dict[str, Any]]:
    """Lists the contents that the champion's backbone has not embedded."""
    from wwts_ops import retagging

    missing = retagging.survey(SETTINGS, retagging.order(get_current_context()["params"]))
    if missing is None:
        raise AirflowSkipException(DRY_RUN)
    return missing


@task(pool=SETTINGS.pool, queue=SETTINGS.queue, task_display_name="补算特征", map_index_template="{{ part }}")
def embed_missing(part: dict[str, Any]) -> None:
    """Embeds some of them."""
    from wwts_ops import retagging

    get_current_context()["part"] = f"{part['key']} / {part['shard']}"  # type: ignore[typeddict-unknown-key]
    retagging.embed_missing(SETTINGS, part["key"], part["shard"])


# With nothing missing the mapped task is skipped, and `missing` an empty list; it is None when nobody looked.
@task(trigger_rule=TriggerRule.NONE_FAILED, task_display_name="计划")
def plan(missing: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Freezes what is to be tagged anew."""
    from wwts_ops import retagging

    if missing is None:
        raise AirflowSkipException("无需重新打标")
    planned = retagging.plan(SETTINGS)
    if planned is None:
        raise AirflowSkipException("没有已存的特征，无法重新打标")
    get_current_context()["ti"].xcom_push(key="retag", value=planned["retag"])
    return list(planned["shards"])


@task(pool=SETTINGS.pool, queue=SETTINGS.queue, task_display_name="重新打标", map_index_template="{{ part }}")
def retag(part: dict[str, Any]) -> None:
    """Tags some of it."""
    from wwts_ops import retagging

    get_current_context()["part"] = f"{part['key']} / {part['shard']}"  # type: ignore[typeddict-unknown-key]
    retagging.retag(SETTINGS, part["key"], part["shard"])


# A retag that is whole already has no shards left: the mapped task is skipped, and only pointers move.
@task(trigger_rule=TriggerRule.NONE_FAILED, outlets=[PUBLISHED_TAGS], task_display_name="发布")
def publish(shards: list[dict[str, Any]] | None) -> str:
    """Puts the new tags in force, answers on top."""
    from wwts_ops import retagging

    if shards is None:
        raise AirflowSkipException("没有重新打标，无需发布")
    published = retagging.finish(SETTINGS, get_current_context()["ti"].xcom_pull(task_ids="plan", key="retag"))
    if published is None:
        raise AirflowSkipException("重新打标期间启用的模型又换了，由换上的模型自己的重新打标来发布")
    return str(published["snapshot"])


@task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, task_display_name="送审")
def route_to_review() -> int:
    """Asks people for a look at what the tags in force are not sure of."""
    from wwts_ops import retagging

    waiting = retagging.route(SETTINGS)
    if waiting is None:
        raise AirflowSkipException("线上读的是各夜打的标签，没有重新打标的内容要送审")
    return waiting


@dag(
    **dag_arguments(SETTINGS, "retag_catalog"),
    dag_display_name="全库重新打标",
    description="模型上线或回退后自动运行：用已存的特征给全部图片重新打标，不再读取图片；人工答案始终优先",
    doc_md=__doc__,
    schedule=[CHAMPION],
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=SETTINGS.run_timeout_hours),
    params=FORM,
)
def retag_catalog() -> None:
    """From another champion to another snapshot."""
    missing = survey()
    planned = plan(missing)
    published, restored = publish(planned), restore()
    choose() >> [missing, restored]
    embed_missing.expand(part=missing) >> planned
    retag.expand(part=planned) >> published
    [published, restored] >> route_to_review()


retag_catalog()
