"""The DAG that lets answers go live: how it is set up, and what it does when it is really run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dag_chain
import pytest
from overlaid_nights import OverlaidNights
from test_dags import parsed
from written_nights import auto, review

from wwts_ops import publish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(parsed(tmp_path_factory.mktemp("airflow"))["dags"]["publish_tags"])


def test_it_looks_every_five_minutes_one_run_at_a_time(dag: dict[str, Any]) -> None:
    assert dag["timetable"] == "CronTriggerTimetable"
    # Noon of the last day of 2025 in Shanghai.
    at = [run["run_after"] for run in dag["nights"]]
    assert at == [f"2025-12-31T04:{minute:02d}:00+00:00" for minute in (0, 5, 10)]
    assert (dag["max_active_runs"], dag["catchup"]) == (1, False)


def test_an_hour_is_the_shops_hour(tmp_path: Path) -> None:
    found = parsed(tmp_path, WWTS_PUBLISH_SCHEDULE="0 9 * * *", WWTS_DAG_PREFIX="shop_")["dags"]["shop_publish_tags"]
    assert found["nights"][0]["run_after"] == "2026-01-01T01:00:00+00:00"


def test_it_may_be_left_to_people(tmp_path: Path) -> None:
    found = parsed(tmp_path, WWTS_PUBLISH_SCHEDULE="none")["dags"]["publish_tags"]
    assert (found["timetable"], found["nights"]) == ("NullTimetable", [])


def test_what_it_tells_whom(dag: dict[str, Any]) -> None:
    tasks = dag["tasks"]
    assert {name: task["outlets"] for name, task in tasks.items()} == {
        "publish": ["wwts_published_tags"],
        "announce": ["wwts_answers"],
        "note": [],
        "adopt": [],
    }
    assert tasks["announce"]["upstream"] == ["publish"]
    assert tasks["note"]["upstream"] == ["announce"]
    assert {task["decisions"]["UnavailableError"] for task in tasks.values()} == {"retry"}
    assert {task["decisions"]["WwtsError"] for task in tasks.values()} == {"fail"}


@dataclass(frozen=True)
class Ran:
    """The shop after runs without anything new, with three answers, and once more."""

    nights: OverlaidNights
    chain: dag_chain.Chain


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("publish_tags")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WWTS_", "MLFLOW_", "AIRFLOW"))]:
            patch.delenv(name)
        patch.setenv("WWTS_RETRAIN_ANSWERS", "3")
        nights = OverlaidNights(folder, folder / "store")
        names = [f"i{number}" for number in range(5)]
        outcomes = {name: (name, auto("梨", 0.75) if name == "i0" else review("瓶", 0.25)) for name in names}
        nights.tagged(dict.fromkeys(names, "1"), outcomes)
        given = nights.settings(release="live")
        publish.publish(nights.store, given)
        for name in names[:3]:
            nights.answer("correct", name, "shop:juice")
        return Ran(nights, dag_chain.run(given, [("publish_tags", {}), ("publish_tags", {})], folder))


def test_answers_go_live_and_the_training_hears_of_them_once(ran: Ran) -> None:
    assert ran.chain.codes == [0, 0]
    states = ran.nights.states()
    assert states == {
        "i0": ("live", "shop:juice"),
        "i1": ("live", "shop:juice"),
        "i2": ("live", "shop:juice"),
        "i3": ("pending", None),
        "i4": ("pending", None),
    }
    published = [event for event in ran.chain.events if event["event"] == "published"]
    assert [(event["answers"], event["answered"]) for event in published] == [(3, 3)]
    assert ran.nights.store.read_json(publish.TRAININGS) == {"answers": 0, "announced": 3, "sequence": 1}


def test_a_run_without_anything_new_says_so_in_chinese(ran: Ran) -> None:
    said = ran.chain.said()
    assert "没有新的人工更正，无需发布" in said
    assert "还没有积累到 3 条新的人工更正，或已经通知过" in said
