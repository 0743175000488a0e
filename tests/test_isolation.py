"""A version that works only here is caught: it is loaded and run by itself, in a process that has nothing of ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from environment import clean
from packaging.requirements import Requirement

from wwts_ops import isolation, registration, registry, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tagger import Tagger
from wwts_ops.tracking import ModelVersion

pytestmark = pytest.mark.slow

Broken = Callable[[Callable[[Path], object]], str]


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger
) -> Iterator[tuple[Settings, ModelVersion]]:
    from wwts_ops import settings

    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        made = settings.load(store=str(tmp_path_factory.mktemp("isolation") / "店 store"))
        shutil.copytree(embedded_tagger.folder, made.state_dir / "models" / embedded_tagger.folder.name)
        yield made, registry.ensure_champion(made)


@pytest.fixture
def files(registered: tuple[Settings, ModelVersion]) -> Iterator[Path]:
    """The logged files, to be changed for one check."""
    (found,) = (registered[0].state_dir / "mlartifacts").rglob("MLmodel")
    folder, kept = found.parent, found.parent.with_name("kept")
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


@pytest.fixture
def broken(registered: tuple[Settings, ModelVersion], files: Path) -> Broken:
    """Changes the logged files for one check, and says why it failed."""
    settings, model = registered

    def check(change: Callable[[Path], object]) -> str:
        change(files)
        with pytest.raises(
            WwtsError, match=f"Version {model.version} of {model.name} does not work by itself"
        ) as caught:
            isolation.check(settings, model)
        assert not isinstance(caught.value, UnavailableError)
        return str(caught.value)

    return check


def code(folder: Path) -> Path:
    return folder / "code" / "wwts_ops" / "recognition.py"


def edit(path: Path, text: str) -> None:
    path.write_text(text + path.read_text(encoding="utf-8").replace("from __future__ import annotations\n", ""))


class TestCheck:
    def test_the_embedded_default_works_by_itself(self, registered: tuple[Settings, ModelVersion]) -> None:
        isolation.check(*registered)

    @pytest.mark.parametrize("name", ["structlog", "airflow", "wwts_ops.settings"])
    def test_code_that_needs_more_than_its_requirements(self, broken: Broken, name: str) -> None:
        """All of these are installed here, so that it would work here."""
        assert f"No module named '{name}'" in broken(lambda folder: edit(code(folder), f"import {name}\n"))

    def test_code_that_hides_such_an_import_in_a_function(self, broken: Broken) -> None:
        hidden = "def __getattr__(name):\n    import structlog\n"
        call = f"{hidden}__getattr__('x')\n"
        assert "No module named 'structlog'" in broken(lambda folder: edit(code(folder), call))

    def test_code_that_is_missing(self, broken: Broken) -> None:
        assert "wwts_ops.decisions" in broken(lambda folder: (folder / "code/wwts_ops/decisions.py").unlink())

    @pytest.mark.parametrize("name", ["backbone.onnx", "head.safetensors"])
    def test_an_artifact_that_was_cut_off(self, broken: Broken, name: str) -> None:
        def cut(folder: Path) -> None:
            (path,) = folder.rglob(name)
            path.write_bytes(path.read_bytes()[:-100])

        assert f"{name} is not the file that was saved" in broken(cut)

    def test_another_tagger_than_the_registered_one(self, registered: tuple[Settings, ModelVersion]) -> None:
        settings, model = registered
        other = ModelVersion(model.name, model.version, "f" * 64, model.backbone_sha256)
        with pytest.raises(WwtsError, match="its tagger is not the one that was registered"):
            isolation.check(settings, other)

    def test_no_tagger_at_all(self, broken: Broken) -> None:
        assert "holds no tagger" in broken(lambda folder: next(folder.rglob("tagger.json")).unlink())

    def test_no_label(self, broken: Broken) -> None:
        def mute(folder: Path) -> None:
            path = folder / "mlflow_model.py"
            path.write_text(path.read_text().replace("if not decision.tags:", "if True:"))

        assert "found no label" in broken(mute)

    @pytest.mark.parametrize(
        "load",
        [
            "import pickle\npickle.loads(pickle.dumps(1))\n",
            "import pickle, pathlib, _pickle\n_pickle.loads(pickle.dumps(pathlib.Path))\n",
        ],
    )
    def test_code_that_loads_a_pickle(self, broken: Broken, load: str) -> None:
        assert "a pickle was to be loaded" in broken(lambda folder: edit(code(folder), load))

    @pytest.mark.parametrize(
        ("end", "told"),
        [
            ("import time\ntime.sleep(600)\n", "within 5 seconds"),
            ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "was killed"),
        ],
    )
    def test_a_process_that_hangs_or_is_killed_is_tried_again(
        self,
        registered: tuple[Settings, ModelVersion],
        files: Path,
        monkeypatch: pytest.MonkeyPatch,
        end: str,
        told: str,
    ) -> None:
        """A busy or small machine says nothing of the model."""
        monkeypatch.setattr(isolation, "TIME_LIMIT_S", 5.0 if "sleep" in end else isolation.TIME_LIMIT_S)
        edit(code(files), end)
        with pytest.raises(UnavailableError, match=told):
            isolation.check(*registered)

    @pytest.mark.parametrize(
        ("before", "after", "told"),
        [
            ("numpy==", "numpy==0.", "is installed as"),
            ("numpy==", "nothing-like-it==", "is not installed"),
            ("numpy==", "numpy>=", "exact versions"),
            ("numpy==", "=== ", "cannot be read"),
        ],
    )
    def test_requirements_that_are_not_what_is_here(self, broken: Broken, before: str, after: str, told: str) -> None:
        def change(folder: Path) -> None:
            path = folder / "requirements.txt"
            path.write_text(path.read_text().replace(before, after))

        assert told in broken(change)

    def test_no_credential_reaches_the_model(self, broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        tell = "import os\nraise SystemExit('has ' + ','.join(sorted(os.environ)) + ' in ' + os.getcwd())\n"
        told = broken(lambda folder: edit(code(folder), tell))
        assert "has " in told
        assert "AWS" not in told
        assert "PYTHONPATH" not in told
        assert os.getcwd() not in told


def test_a_pickled_model_is_refused(registered: tuple[Settings, ModelVersion]) -> None:
    """As somebody logs one by hand: with the right tags, and the tagger beside it."""
    import mlflow
    from mlflow.pyfunc import PythonModel

    settings, first = registered
    tagger = registry.fetch(settings, first)
    with (
        tracking.connected(settings) as client,
        mlflow.start_run(experiment_id=tracking.experiment(client, settings, registration.EXPERIMENT)),
    ):
        logged = mlflow.pyfunc.log_model(
            name="tagger",
            python_model=PythonModel(),
            artifacts={"tagger": str(tagger.folder)},
            pip_requirements=[f"mlflow=={metadata.version('mlflow')}"],
        )
        tags = {"model_sha256": tagger.sha256, "backbone_sha256": tagger.backbone_sha256}
        model = ModelVersion.of(mlflow.register_model(logged.model_uri, settings.model_name, tags=tags))
    with pytest.raises(WwtsError, match="using pickle is disallowed"):
        isolation.check(settings, model)


class TestClosure:
    def test_it_holds_what_the_requirements_need_and_no_more(self) -> None:
        found = isolation.closure([Requirement(f"mlflow=={metadata.version('mlflow')}")])
        assert {"mlflow", "mlflow-skinny", "pandas", "numpy", "sqlalchemy", "python-dateutil"} <= found.names
        assert found.names.isdisjoint({"apache-airflow", "structlog", "torch", "wwts-ops", "pytest"})

    def test_extras_bring_more(self) -> None:
        plain = isolation.closure([Requirement("psycopg")])
        with_binary = isolation.closure([Requirement("psycopg[binary]")])
        assert with_binary.names - plain.names == {"psycopg-binary"}

    def test_all_that_is_wrong_is_told_at_once(self) -> None:
        with pytest.raises(WwtsError, match=r"no-such-thing==1 is not installed; numpy==0\.1 is installed as"):
            isolation.closure([Requirement("numpy==0.1"), Requirement("no-such-thing==1")])
