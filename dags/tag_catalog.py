"""The night: plan ► tag shards ► publish ► route to review ► report."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import CronPartitionTimetable, Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from wwts_ops import links, settings
from wwts_ops.dag_defaults import PUBLISHED_TAGS, dag_arguments

SETTINGS = settings.load()

# Optional texts are null, not "": Airflow's form takes an empty text for a missing required one and refuses to start.
FORM = {
    "catalog": Param(None, type=["null", "string"], title="图库", description="文件夹或清单的路径；留空用默认图库"),
    "date": Param(None, type=["null", "string"], format="date", title="日期", description="留空为今天（按店铺时区）"),
    "model_version": Param(
        None, type=["null", "string"], title="模型版本", description="留空用当前启用的模型（champion）"
    ),
    "limit": Param(None, type=["null", "integer"], minimum=1, title="最多处理图片数", description="留空不限"),
    "dry_run": Param(default=False, type="boolean", title="仅预演", description="只说明会做什么，不写入任何内容"),
}


@dag(
    **dag_arguments(SETTINGS, "tag_catalog"),
    dag_display_name="每夜打标",
    description="新图片 → 中文标签：计划、打标、发布、送审、日报",
    doc_md=__doc__,
    schedule=None
    if SETTINGS.schedule == "none"
    else CronPartitionTimetable(SETTINGS.schedule, timezone=SETTINGS.timezone, key_format="%Y-%m-%d"),
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=SETTINGS.run_timeout_hours),
    params=FORM,
)
def tag_catalog() -> None:
    """One night, from new images to published tags."""

    @task(task_display_name="计划")
    def plan() -> list[dict[str, Any]]:
        from airflow.sdk.configuration import conf

        from wwts_ops import night

        context = get_current_context()
        wanted = night.order(context["params"], context.get("partition_key"), SETTINGS)
        planned = night.plan(SETTINGS, wanted, conf.get("core", "executor"))
        if planned is None:
            raise AirflowSkipException("仅预演：没有写入任何内容")
        context["ti"].xcom_push(key="night", value=planned)
        return planned["shards"]

    @task(pool=SETTINGS.pool, queue=SETTINGS.queue, task_display_name="打标", map_index_template="{{ part }}")
    def tag_shard(part: dict[str, Any]) -> None:
        from wwts_ops import night

        get_current_context()["part"] = f"{part['run_key']} / {part['shard']}"  # type: ignore[typeddict-unknown-key]
        night.tag_shard(SETTINGS, part["run_key"], part["shard"])

    # One broken shard never loses the others: what is done is published, then `finish` fails the run.
    # `shards` is what plan() returned, None when it failed or was skipped; an XCom of another key would be an error.
    @task(trigger_rule=TriggerRule.ALL_DONE, outlets=[PUBLISHED_TAGS], task_display_name="发布")
    def publish(shards: list[dict[str, Any]] | None) -> None:
        from wwts_ops import night

        if shards is None:
            raise AirflowSkipException("没有计划，无需发布")
        night.publish_tags(SETTINGS)

    @task(task_display_name="送审")
    def route_to_review(planned: dict[str, Any]) -> int:
        from wwts_ops import night

        return night.route_to_review(SETTINGS, planned["run_keys"])

    @task(task_display_name="日报")
    def report(planned: dict[str, Any]) -> str:
        from wwts_ops import night

        return night.build_report(SETTINGS, planned)

    @task(task_display_name="收尾")
    def finish(planned: dict[str, Any]) -> None:
        from wwts_ops import night

        night.finish(SETTINGS, planned["run_keys"])

    shards = plan()
    planned = shards["night"]
    tagged = tag_shard.expand(part=shards)
    published, routed, paged = publish(shards), route_to_review(planned), report(planned)
    [shards, tagged] >> published >> routed >> paged >> finish(planned)


links.attach("tag_catalog", tag_catalog())
