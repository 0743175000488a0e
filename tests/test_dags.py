"""The DAG files as Airflow sees them: what parsing imports, and how the night is set up."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from environment import plain

ROOT = Path(__file__).resolve().parents[1]
DAG_FILES = sorted((ROOT / "dags").glob("*.py"))
HEAVY = {
    "cv2",
    "duckdb",
    "matplotlib",
    "mlflow",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "PIL",
    "pyarrow",
    "simplejpeg",
    "skimage",
    "sklearn",
    "torch",
    "torchvision",
}
#: All that a DAG file may import where it is parsed.
LIGHT = {"__future__", "airflow", "collections", "datetime", "typing", "wwts_ops"}
_LONGEST = 12
TOKEN = "a-secret-of-the-group"


def parsed(home: Path, **given: str) -> dict[str, Any]:
    """What a fresh process finds in ``dags/`` (see ``dag_facts.py``), with settings ``given``."""
    kept = plain()
    environment = {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "WWTS_STORE": str(home / "store"),
        **given,
    }
    command = [sys.executable, "-P", str(ROOT / "tests" / "dag_facts.py"), str(ROOT / "dags")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not (home / "store").exists(), "parsing wrote to the store"
    return dict(found)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs with no setting given."""
    return parsed(tmp_path_factory.mktemp("airflow"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs with every setting that reaches them given."""
    return parsed(
        tmp_path_factory.mktemp("airflow"),
        WWTS_DAG_PREFIX="shop_",
        WWTS_OWNER="运营",
        WWTS_TAGS="标签，夜间",
        WWTS_SCHEDULE="none",
        WWTS_POOL="gpu0",
        WWTS_QUEUE="gpu-machines",
        WWTS_RETRIES="5",
        WWTS_RETRY_SECONDS="7",
        WWTS_RUN_TIMEOUT_HOURS="1.5",
        WWTS_PUBLISH_SCHEDULE="0 9 * * *",
    )


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs that Airflow may start by itself, left to people; and failures are told."""
    left = dict.fromkeys(("WWTS_PUBLISH_SCHEDULE", "WWTS_REMINDER_SCHEDULE", "WWTS_RETRAIN_SCHEDULE"), "none")
    return parsed(tmp_path_factory.mktemp("airflow"), WWTS_NOTIFY=f"json://127.0.0.1:1/{TOKEN}", **left)


def test_every_file_parses(usual: dict[str, Any]) -> None:
    assert usual["import_errors"] == {}
    assert "tag_catalog" in usual["dags"]
    assert all(dag["serialized"] for dag in usual["dags"].values())


def test_parsing_imports_nothing_heavy(usual: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Why all files parse in a fraction of a second; the seconds themselves are `make bench`'s to judge."""
    imported = {name.partition(".")[0] for name in usual["imported"]}
    assert "wwts_ops" in imported
    assert imported & HEAVY == set()
    with capsys.disabled():
        sys.stdout.write(f"\n{len(DAG_FILES)} DAG file(s) parsed in {usual['seconds']:.2f} s\n")


def test_tasks_of_ours_are_not_imported_by_parsing(usual: dict[str, Any]) -> None:
    loaded = {name for name in usual["imported"] if name.startswith("wwts_ops")}
    assert loaded <= {
        "wwts_ops",
        *(f"wwts_ops.{name}" for name in ("settings", "addresses", "errors", "dag_defaults", "dag_promotion", "links")),
    }


def test_defaults_of_the_night(usual: dict[str, Any]) -> None:
    dag = usual["dags"]["tag_catalog"]
    assert dag["owner"] == "wwts"
    assert dag["tags"] == ["wwts"]
    assert dag["catchup"] is False
    assert dag["max_active_runs"] == 1
    assert dag["timeout_hours"] == 12
    assert dag["tasks"]["tag_shard"]["pool"] == "wwts_gpu"


def test_the_stages_follow_each_other(usual: dict[str, Any]) -> None:
    tasks = usual["dags"]["tag_catalog"]["tasks"]
    order = [name for name in ("plan", "tag_shard", "publish", "route_to_review", "report") if name in tasks]
    assert order == ["plan", "tag_shard", "publish", "route_to_review", "report"]
    for before, after in pairwise(order):
        assert before in tasks[after]["upstream"], f"{after} does not wait for {before}"
    assert [name for name, task in tasks.items() if task["mapped"]] == ["tag_shard"]


def test_downstream_dags_can_wait_for_the_published_tags(usual: dict[str, Any]) -> None:
    tasks = usual["dags"]["tag_catalog"]["tasks"]
    assert {name: task["outlets"] for name, task in tasks.items() if task["outlets"]} == {
        "publish": ["wwts_published_tags"]
    }


def test_a_night_belongs_to_the_date_in_shanghai(usual: dict[str, Any]) -> None:
    """02:00 on New Year's Day in Shanghai is 18:00 of the old year in UTC."""
    nights = usual["dags"]["tag_catalog"]["nights"]
    assert nights[:2] == [
        {"run_after": "2025-12-31T18:00:00+00:00", "key": "2026-01-01"},
        {"run_after": "2026-01-01T18:00:00+00:00", "key": "2026-01-02"},
    ]


def test_a_night_in_another_time_zone(tmp_path: Path) -> None:
    dag = parsed(tmp_path, WWTS_TIMEZONE="America/New_York", WWTS_SCHEDULE="30 23 * * *")["dags"]["tag_catalog"]
    # Noon of the 31st in Shanghai is 23:00 of the 30th in New York, half an hour before its night.
    assert dag["nights"][0] == {"run_after": "2025-12-31T04:30:00+00:00", "key": "2025-12-30"}


def test_bad_input_is_not_retried_and_an_absent_server_is(usual: dict[str, Any]) -> None:
    for name, task in usual["dags"]["tag_catalog"]["tasks"].items():
        assert task["decisions"]["WwtsError"] == "fail", name
        assert task["decisions"]["UnavailableError"] == "retry", name
        assert task["decisions"]["MemoryError"] == "default", name
    assert usual["dags"]["tag_catalog"]["tasks"]["tag_shard"]["retries"] == 2


def test_settings_reach_the_dag(own: dict[str, Any]) -> None:
    assert [dag_id for dag_id in own["dags"] if not dag_id.startswith("shop_")] == []
    dag = own["dags"]["shop_tag_catalog"]
    assert dag["owner"] == "运营"
    assert dag["tags"] == sorted(["标签", "夜间"])
    assert dag["timetable"] == "NullTimetable"
    assert dag["nights"] == []
    assert dag["timeout_hours"] == 1.5
    shard = dag["tasks"]["tag_shard"]
    assert (shard["pool"], shard["queue"]) == ("gpu0", "gpu-machines")
    assert (shard["retries"], shard["retry_seconds"]) == (5, 7)


def test_the_form_speaks_chinese(usual: dict[str, Any]) -> None:
    params = usual["dags"]["tag_catalog"]["params"]
    assert set(params) == {"catalog", "date", "model_version", "limit", "dry_run"}
    for name, schema in params.items():
        assert any("一" <= sign <= "鿿" for sign in schema["title"]), name
        # Airflow's form refuses to start a run while a text that may not be null is empty.
        assert schema["type"] == "boolean" or "null" in schema["type"], name


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.name)
def test_a_dag_file_holds_no_logic(path: Path) -> None:
    """Imports at module level are light, and no function is long enough to decide anything."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {name.partition(".")[0] for name in _module_imports(tree)} <= LIGHT
    for function in _innermost(tree):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= _LONGEST, f"{path.name}: {function.name} has {lines} lines; move it into wwts_ops"
        loops = [node for node in ast.walk(function) if isinstance(node, ast.For | ast.While | ast.Try)]
        assert not loops, f"{path.name}: {function.name} has logic of its own; move it into wwts_ops"


def _module_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _innermost(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Task bodies: functions that hold no other function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not any(
            isinstance(inner, ast.FunctionDef) for inner in ast.walk(node) if inner is not node
        ):
            yield node


# ------------------------------------------------------------------ the other DAGs


def test_answers_are_looked_for_every_five_minutes_one_run_at_a_time(usual: dict[str, Any]) -> None:
    dag = usual["dags"]["publish_tags"]
    assert dag["timetable"] == "CronTriggerTimetable"
    # Noon of the last day of 2025 in Shanghai.
    at = [run["run_after"] for run in dag["nights"]]
    assert at == [f"2025-12-31T04:{minute:02d}:00+00:00" for minute in (0, 5, 10)]
    assert (dag["max_active_runs"], dag["catchup"]) == (1, False)


def test_an_hour_of_publishing_is_the_shops_hour(own: dict[str, Any]) -> None:
    assert own["dags"]["shop_publish_tags"]["nights"][0]["run_after"] == "2026-01-01T01:00:00+00:00"


def test_publishing_may_be_left_to_people(by_hand: dict[str, Any]) -> None:
    found = by_hand["dags"]["publish_tags"]
    assert (found["timetable"], found["nights"]) == ("NullTimetable", [])


def test_whom_publishing_tells(usual: dict[str, Any]) -> None:
    tasks = usual["dags"]["publish_tags"]["tasks"]
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


def test_people_are_reminded_at_half_past_seven_in_the_shop(usual: dict[str, Any]) -> None:
    dag = usual["dags"]["remind_reviewers"]
    # Noon of the last day of 2025 in Shanghai: the next morning's.
    assert dag["nights"][0]["run_after"] == "2025-12-31T23:30:00+00:00"
    assert (dag["timetable"], dag["max_active_runs"], dag["catchup"]) == ("CronTriggerTimetable", 1, False)


def test_the_reminder_may_be_left_out_and_parses_with_addresses(by_hand: dict[str, Any]) -> None:
    assert by_hand["import_errors"] == {}
    assert by_hand["dags"]["remind_reviewers"]["nights"] == []
    assert TOKEN not in json.dumps(by_hand)
    assert not {name.partition(".")[0] for name in by_hand["imported"]} & {"apprise", "requests"}


def test_the_training_goes_through_every_stage(usual: dict[str, Any]) -> None:
    dag = usual["dags"]["retrain_head"]
    tasks = dag["tasks"]
    order = ["snapshot", "dataset", "train", "register", "evaluate", "accuracy", "latency", "gate", "tag_diff"]
    for before, after in zip(order, [*order[1:], "promote"], strict=True):
        assert before in tasks[after]["upstream"], f"{after} does not wait for {before}"
    assert {name for name, task in tasks.items() if task["outlets"]} == {"move"}
    assert tasks["move"]["outlets"] == ["wwts_champion"]
    assert tasks["prepare"]["upstream"] == ["promote", "register"]
    assert dag["timetable"] == "AssetOrTimeSchedule"
    # Five o'clock of a Monday in Shanghai, from the last day of 2025 on.
    assert dag["nights"][0]["run_after"] == "2026-01-04T21:00:00+00:00"
    for name, schema in dag["params"].items():
        assert any("一" <= sign <= "鿿" for sign in schema["title"]), name


def test_both_promotions_have_the_same_tasks(by_hand: dict[str, Any]) -> None:
    dags = by_hand["dags"]
    promotion = dags["promote_model"]["tasks"]
    assert set(promotion) == {"prepare", "choose", "approve", "move"}
    assert promotion["move"]["upstream"] == ["approve", "choose", "prepare"]
    shared = {name: dags["retrain_head"]["tasks"][name] for name in promotion if name != "prepare"}
    assert shared == {name: task for name, task in promotion.items() if name != "prepare"}
    assert dags["retrain_head"]["nights"] == []
