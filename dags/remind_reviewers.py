"""The morning's message: what waits for a look and until when, and whether the night went through.

A deadline of Airflow's own (``DeadlineAlert``) is not used for late nights: it counts from a run's logical date, which
a run of ``CronPartitionTimetable`` does not have, or from when a run was queued, which is no time of day; and it
belongs to a run, so that a night that never began would never be late.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from wwts_ops import settings
from wwts_ops.dag_defaults import dag_arguments, tell

SETTINGS = settings.load()


@dag(
    **dag_arguments(SETTINGS, "remind_reviewers"),
    dag_display_name="提醒审核",
    description="每天早上：还有多少图片待审、预计几点审完、昨夜的打标是否按时完成，发到钉钉、企业微信或飞书",
    doc_md=__doc__,
    schedule=None
    if SETTINGS.reminder_schedule == "none"
    else CronTriggerTimetable(SETTINGS.reminder_schedule, timezone=SETTINGS.timezone),
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
)
def remind_reviewers() -> None:
    """From the queue to a message."""

    @task(task_display_name="发送提醒")
    def remind() -> str:
        from wwts_ops.review import figures, message
        from wwts_ops.storage import Store

        if not SETTINGS.notify:
            raise AirflowSkipException("没有设置 WWTS_NOTIFY，不发送提醒")
        ti: Any = get_current_context()["ti"]
        running = ti.get_dr_count(f"{SETTINGS.dag_prefix}tag_catalog", states=["queued", "running"])
        seen = figures.today(SETTINGS, Store.of(SETTINGS), SETTINGS.now())
        text = message.text(seen, SETTINGS, running)
        tell(SETTINGS, message.title(seen), text)
        return text

    remind()


remind_reviewers()
