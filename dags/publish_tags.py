"""Answers of people go live within minutes, without tagging: look what is new ► publish ► tell the training.

Beside it, what they marked while they reviewed becomes bad cases.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from wwts_ops import settings
from wwts_ops.dag_defaults import ENOUGH_ANSWERS, PUBLISHED_TAGS, dag_arguments

SETTINGS = settings.load()


@dag(
    **dag_arguments(SETTINGS, "publish_tags"),
    dag_display_name="发布人工答案",
    description="人工答案几分钟内上线，不重新打标；新答案积累到足够数量时，通知重新训练",
    doc_md=__doc__,
    schedule=None
    if SETTINGS.publish_schedule == "none"
    else CronTriggerTimetable(SETTINGS.publish_schedule, timezone=SETTINGS.timezone),
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=SETTINGS.run_timeout_hours),
)
def publish_tags() -> None:
    """From new answers to a new snapshot."""

    # Nothing waits for it: a picture that cannot be read must not hold up what consumers read.
    @task(task_display_name="收录坏例")
    def adopt() -> dict[str, int]:
        from wwts_ops.badcases import marks
        from wwts_ops.storage import Store

        return vars(marks.adopt(Store.of(SETTINGS), SETTINGS))

    @task(outlets=[PUBLISHED_TAGS], task_display_name="发布")
    def publish() -> str:
        from wwts_ops import publish
        from wwts_ops.storage import Store

        published = publish.refresh(Store.of(SETTINGS), SETTINGS)
        if published is None:
            raise AirflowSkipException("没有新的人工答案，无需发布")
        return str(published["snapshot"])

    # The night publishes answers, too: that nothing was left to publish does not mean that nothing is to be told.
    @task(trigger_rule=TriggerRule.NONE_FAILED, outlets=[ENOUGH_ANSWERS], task_display_name="通知训练")
    def announce() -> dict[str, int]:
        from wwts_ops import publish
        from wwts_ops.storage import Store

        waiting = publish.announce(Store.of(SETTINGS), SETTINGS)
        if waiting is None:
            raise AirflowSkipException(f"还没有积累到 {SETTINGS.retrain_answers} 条新的人工答案，或已经通知过")
        return waiting

    # After it: whoever is killed in between tells it twice, never not at all.
    @task(task_display_name="记下已通知")
    def note(waiting: dict[str, int]) -> None:
        from wwts_ops import publish
        from wwts_ops.storage import Store

        publish.announced(Store.of(SETTINGS), waiting["upto"])

    adopt()
    waiting = announce()
    publish() >> waiting >> note(waiting)


publish_tags()
