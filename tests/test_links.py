"""Links on the page of a task: there where they lead somewhere, in the words of the API, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dag_aftermath
import pytest
from dag_aftermath import Kept
from environment import clean
from test_away import Mlflow
from test_dags import ROOT

from wwts_ops import links, settings
from wwts_ops.settings import Settings

pytestmark = pytest.mark.slow

Make = Callable[..., Settings]
REPORT, VERSION, RUN, DIFF = "日报", "模型版本（MLflow）", "训练记录（MLflow）", "标签变化"
AIRFLOW = "https://airflow.shop.example"

#: DAGs called as ours, with tasks called as ours that return what ours return; and one of somebody else's.
DAGS = """
from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from wwts_ops import links


@dag(dag_id="tag_catalog", schedule=None)
def tag_catalog():
    @task
    def report():
        return "s3://bucket/shop/reports/date=2026-11-23/index.html"

    @task
    def finish():
        return "s3://bucket/shop/reports/date=2026-11-23/index.html"

    report() >> finish()


@dag(dag_id="promote_model", schedule=None, params={"version": "1"})
def promote_model():
    @task
    def prepare(params):
        return {"version": params["version"], "summary": "…", "token": "…"}

    @task
    def move():
        return "1"

    prepare() >> move()


@dag(dag_id="evaluate_model", schedule=None)
def evaluate_model():
    @task
    def prepare():
        raise AirflowSkipException("nothing to do")

    @task
    def judge():
        return None

    prepare() >> judge()


@dag(dag_id="retrain_head", schedule=None)
def retrain_head():
    @task
    def register() -> str:
        return "1"

    @task
    def evaluate():
        return None

    @task
    def gate() -> dict:
        return {"version": "1", "outcome": "failed"}

    @task
    def tag_diff():
        return "1"

    @task.short_circuit
    def promote():
        get_current_context()["ti"].xcom_push(key="version", value="1")
        return False

    @task
    def prepare():
        return None

    @task
    def move():
        return None

    register() >> evaluate() >> gate() >> tag_diff() >> promote() >> prepare() >> move()


@dag(dag_id="shop_promote_model", schedule=None)
def refused():
    @task
    def prepare():
        get_current_context()["ti"].xcom_push(key="version", value="1")
        raise AirflowFailException("it may not go live")

    @task
    def move():
        return None

    prepare() >> move()


@dag(dag_id="somebody_elses", schedule=None)
def somebody_elses():
    @task
    def report():
        return "s3://bucket/shop/reports/date=2026-11-23/index.html"

    report()


for make in (tag_catalog, promote_model, evaluate_model, retrain_head, somebody_elses):
    links.attach(make.function.__name__ if hasattr(make, "function") else make.__name__, make())
links.attach("promote_model", refused())
"""


DAG_IDS = (
    "tag_catalog",
    "promote_model",
    "evaluate_model",
    "retrain_head",
    "shop_promote_model",
    "somebody_elses",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """A real MLflow with a version that was made by a run."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("wwts-training"))
    client.create_registered_model("wwts-tagger")
    client.create_model_version("wwts-tagger", (folder / "artifacts").as_uri(), run_id=run.info.run_id)
    client.set_model_version_tag("wwts-tagger", "1", "tagdiff.summary", '{"folder": "tagdiffs/a-b-c"}')
    client.create_model_version("wwts-tagger", (folder / "artifacts").as_uri())
    found = Mlflow(folder)
    found.start()
    found.run = run.info  # type: ignore[attr-defined]
    yield found
    found.stop()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, server: Mlflow) -> Kept:
    folder = tmp_path_factory.mktemp("links")
    (folder / "dags").mkdir()
    (folder / "dags" / "ours.py").write_text(DAGS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        patch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(folder / "dags"))
        uri = server.uri.replace("http://", "http://anna:s3cret@")
        given = settings.load(store=str(folder / "store"), mlflow_tracking_uri=uri, public_url=f"{AIRFLOW}/")
        steps = [(name, {}) for name in DAG_IDS]
        return dag_aftermath.run(given, steps, folder)


def test_the_report_of_the_night(kept: Kept) -> None:
    assert dict(zip(DAG_IDS, kept.codes, strict=True)) == {**dict.fromkeys(DAG_IDS, 0), "shop_promote_model": 1}
    assert kept.links["tag_catalog"]["report"] == {REPORT: f"{AIRFLOW}/wwts/reports/2026-11-23/"}


def test_the_version_and_the_run_it_came_from(kept: Kept, server: Mlflow) -> None:
    run = server.run  # type: ignore[attr-defined]
    expected = {
        VERSION: f"{server.uri}/#/models/wwts-tagger/versions/1",
        RUN: f"{server.uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}",
    }
    diff = {DIFF: f"{AIRFLOW}/wwts/tagdiffs/a-b-c/"}
    assert kept.links["promote_model"] == {"prepare": {**diff, **expected}, "move": expected}
    trained = kept.links["retrain_head"]
    assert trained["gate"] == trained["register"] == trained["promote"] == expected
    assert trained["tag_diff"] == {**diff, **expected}
    # Refused: whoever looks why finds the version.
    assert kept.links["shop_promote_model"]["prepare"] == {**diff, **expected}
    assert "s3cret" not in json.dumps(kept.links)


def test_nothing_is_shown_where_nothing_came_of_it(kept: Kept) -> None:
    assert kept.links["evaluate_model"]["prepare"] == {VERSION: None, RUN: None}


def test_other_tasks_have_no_links_at_all(kept: Kept) -> None:
    assert kept.links["tag_catalog"]["finish"] == {}
    assert kept.links["somebody_elses"]["report"] == {}


class Returned:
    """A task instance that returned ``value``."""

    task_id = "t"

    def __init__(self, value: Any) -> None:
        self.value = value

    def xcom_pull(self, **_: Any) -> Any:
        return self.value


def link(one: Any, value: Any) -> str:
    return str(one.get_link(SimpleNamespace(), ti_key=Returned(value)))


class TestAddress:
    def test_a_version_that_no_run_made_has_no_run(self, server: Mlflow, environment: Any) -> None:
        environment(MLFLOW_TRACKING_URI=server.uri)
        assert link(links.MlflowRunLink(), "2") == ""
        assert link(links.ModelVersionLink(), "2").endswith("/versions/2")

    def test_an_mlflow_that_knows_no_such_version_is_no_error(self, server: Mlflow, environment: Any) -> None:
        environment(MLFLOW_TRACKING_URI=server.uri)
        assert link(links.MlflowRunLink(), "99") == ""

    def test_an_mlflow_that_is_away_is_no_error(self, environment: Any) -> None:
        environment(MLFLOW_TRACKING_URI="http://127.0.0.1:1", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        assert link(links.MlflowRunLink(), "1") == ""

    def test_a_file_has_no_page(self, environment: Any) -> None:
        environment()
        assert link(links.ModelVersionLink(), "1") == ""
        assert link(links.MlflowRunLink(), "1") == ""

    @pytest.mark.parametrize("value", [None, "", [], {"versions": 1}, {"version": None}, True])
    def test_what_is_no_version(self, environment: Any, value: Any) -> None:
        environment(MLFLOW_TRACKING_URI="http://127.0.0.1:1")
        assert link(links.ModelVersionLink(), value) == ""

    @pytest.mark.parametrize("value", [None, "reports/index.html", "date=javascript:x/", "date=2026-1-1/"])
    def test_what_is_no_report(self, environment: Any, value: Any) -> None:
        environment()
        assert link(links.ReportLink(), value) == ""

    def test_without_an_address_of_airflow_the_link_stays_on_the_server(self, environment: Any) -> None:
        environment()
        assert link(links.ReportLink(), "reports/date=2026-11-23/index.html") == "/wwts/reports/2026-11-23/"


@pytest.fixture
def environment(clean_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    def given(**values: str) -> None:
        monkeypatch.setenv("WWTS_STORE", str(tmp_path / "store"))
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return given


def test_every_dag_of_ours_gives_its_tasks_their_links() -> None:
    """Which tasks those are is checked where a DAG file is parsed: an unknown one is an error there."""
    for name in links.TASKS:
        text = (ROOT / "dags" / f"{name}.py").read_text(encoding="utf-8")
        assert f'\nlinks.attach("{name}", {name}())\n' in text
    given = {one.name for tasks in links.TASKS.values() for ones in tasks.values() for one in ones}
    assert given == {REPORT, VERSION, RUN, DIFF}
