"""The registry on a real MLflow: one default however many begin at once, and nothing but what was registered."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, ClassVar

import pytest
import skimage.data
from environment import clean, plain

from wwts_ops import registration, registry, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tagger import Tagger
from wwts_ops.tracking import ModelVersion

Make = Callable[..., Settings]


def client(settings: Settings) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=settings.resolved_tracking_uri, registry_uri=settings.resolved_tracking_uri)


def versions(settings: Settings) -> list[str]:
    return [str(found.version) for found in client(settings).search_model_versions(f"name='{settings.model_name}'")]


def child(settings: Settings, code: str, **environment: str) -> subprocess.Popen[str]:
    """Another process of ours with the settings of a test."""
    kept = plain()
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from wwts_ops import registration, registry, settings\nfound = settings.load()\n{code}",
        ],
        env={**kept, "WWTS_STORE": settings.store, **environment},
        cwd=Path(settings.store).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def foreign_version(settings: Settings) -> Any:
    """A version that somebody registered without us."""
    mlflow = client(settings)
    mlflow.create_registered_model(settings.model_name)
    return mlflow.create_model_version(settings.model_name, source=Path(settings.store).parent.as_uri())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Iterator[Settings]:
    """A registry with the embedded default in it, shared by the tests that only read it."""
    from wwts_ops import settings

    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        made = settings.load(store=str(tmp_path_factory.mktemp("registry") / "store"))
        shutil.copytree(embedded_tagger.folder, made.state_dir / "models" / embedded_tagger.folder.name)
        registry.ensure_champion(made)
        yield made


@pytest.fixture
def artifacts(first: Settings) -> Path:
    """The folder of the logged model."""
    (found,) = (first.state_dir / "mlartifacts").rglob("MLmodel")
    return found.parent


class TestFirstNight:
    def test_the_default_is_version_1_and_champion_with_its_hashes(
        self, first: Settings, embedded_tagger: Tagger
    ) -> None:
        version = client(first).get_model_version_by_alias(first.model_name, "champion")
        assert str(version.version) == "1"
        assert version.tags["model_sha256"] == embedded_tagger.sha256
        assert version.tags["backbone_sha256"] == embedded_tagger.backbone_sha256
        assert version.tags["git_sha"] == (registration.git_sha() or "")
        assert registry.champion(first) == ModelVersion(
            first.model_name,
            "1",
            embedded_tagger.sha256,
            embedded_tagger.backbone_sha256,
            version.tags["code_sha256"],
        )

    def test_the_second_call_registers_nothing(self, first: Settings) -> None:
        assert registry.ensure_champion(first) == registry.resolve(first, "1") == registry.resolve(first, None)
        assert versions(first) == ["1"]

    def test_it_is_listed(self, first: Settings, embedded_tagger: Tagger) -> None:
        (line,) = registry.versions(first)
        assert (line.version, line.aliases, line.sha256) == ("1", ("champion",), embedded_tagger.sha256)

    def test_two_processes_at_once_register_one_and_say_nothing_alarming(self, seeded_settings: Make) -> None:
        settings = seeded_settings()
        loud = {"PYTHONWARNINGS": "default::UserWarning"}
        both = [child(settings, "print('got', registry.ensure_champion(found))", **loud) for _ in range(2)]
        told = [process.communicate(timeout=600) for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        answers = {line for out, _ in told for line in out.splitlines() if line.startswith("got")}
        assert len(answers) == 1
        assert not [err for _, err in told if "WARNING mlflow" in err or "UserWarning" in err], told
        assert versions(settings) == ["1"]

    def test_a_kill_before_the_alias_is_mended_by_the_next_call(self, seeded_settings: Make) -> None:
        settings = seeded_settings()
        killed = child(
            settings,
            "import mlflow, os, signal\n"
            "mlflow.MlflowClient.set_registered_model_alias = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "registry.ensure_champion(found)",
        )
        _, told = killed.communicate(timeout=600)
        assert killed.returncode == -signal.SIGKILL, told
        assert versions(settings) == ["1"]
        assert registry.champion(settings) is None
        assert registry.ensure_champion(settings).version == "1"
        assert versions(settings) == ["1"]
        assert client(settings).get_model_version_by_alias(settings.model_name, "champion").version == 1

    def test_the_environment_is_left_as_it_was(self, make_settings: Make) -> None:
        """MLflow sets its variable for child processes; the next settings would read it as given by a person."""
        settings = make_settings()
        assert registry.champion(settings) is None
        assert "MLFLOW_TRACKING_URI" not in os.environ
        assert make_settings(store="elsewhere").resolved_tracking_uri != settings.resolved_tracking_uri

    def test_the_environment_is_left_as_it_was_by_two_at_once(self, make_settings: Make, tmp_path: Path) -> None:
        """The one that began later ends later, and must not put back what the other one had set."""
        one, other = (tracking.connected(make_settings(store=str(tmp_path / name))) for name in ("one", "other"))
        before = dict(os.environ)
        one.__enter__()
        during = os.environ["MLFLOW_TRACKING_URI"]
        other.__enter__()
        one.__exit__(None, None, None)
        assert os.environ["MLFLOW_TRACKING_URI"] not in (during, "")
        other.__exit__(None, None, None)
        left = {name: value for name, value in os.environ.items() if before.get(name) != value}
        assert not left.keys() & {"MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT"}

    def test_looking_makes_no_registry(self, make_settings: Make) -> None:
        settings = make_settings()
        assert not registry.exists(settings)
        assert registry.versions(settings) == []
        assert not settings.state_dir.exists()


class TestRefused:
    def test_versions_of_others_without_an_alias(self, make_settings: Make) -> None:
        settings = make_settings()
        foreign_version(settings)
        with pytest.raises(WwtsError, match="wwts-tagger has versions but no alias 'champion'") as caught:
            registry.ensure_champion(settings)
        assert not isinstance(caught.value, UnavailableError)
        assert versions(settings) == ["1"]

    def test_a_champion_that_wwts_did_not_register(self, make_settings: Make) -> None:
        settings = make_settings()
        version = foreign_version(settings).version
        client(settings).set_registered_model_alias(settings.model_name, "champion", version)
        for asked in (None, str(version)):
            with pytest.raises(WwtsError, match="version 1 was not registered by wwts"):
                registry.resolve(settings, asked)
        assert [line.sha256 for line in registry.versions(settings)] == [""]

    @pytest.mark.parametrize("version", ["2", "0", "-1", "latest", "1.5", ""])
    def test_a_version_that_is_not_there(self, first: Settings, version: str) -> None:
        with pytest.raises(WwtsError, match=f"wwts-tagger has no version {version}; see") as caught:
            registry.resolve(first, version)
        assert not isinstance(caught.value, UnavailableError)

    @pytest.mark.parametrize("name", ["it's", "a/b"])
    def test_a_name_that_mlflow_does_not_take(self, seeded_settings: Make, name: str) -> None:
        with pytest.raises(WwtsError, match="WWTS_MODEL_NAME"):
            seeded_settings(model_name=name)


class TestFetched:
    def test_into_an_empty_cache(self, first: Settings, embedded_tagger: Tagger) -> None:
        shutil.rmtree(first.state_dir / "models" / embedded_tagger.sha256, ignore_errors=True)
        found = registry.fetch(first, registry.ensure_champion(first))
        assert found.sha256 == embedded_tagger.sha256
        assert found.folder == first.state_dir / "models" / embedded_tagger.sha256
        assert [path.name for path in found.folder.parent.glob(".*")] == [".lock"]

    @pytest.mark.parametrize(
        "name", ["backbone.onnx", "backbone.safetensors", "head.safetensors", "tagger.json", "tagger.json.sha256"]
    )
    def test_an_altered_artifact_is_refused_until_it_is_mended(
        self, first: Settings, artifacts: Path, name: str, embedded_tagger: Tagger
    ) -> None:
        model = registry.ensure_champion(first)
        shutil.rmtree(first.state_dir / "models" / embedded_tagger.sha256, ignore_errors=True)
        (path,) = artifacts.rglob(name)
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:] if len(whole) > 100 else b"0" + whole[1:])
        try:
            with pytest.raises(
                WwtsError, match=f"version 1 .*{name.removesuffix('.sha256')} is not the file that was saved"
            ):
                registry.fetch(first, model)
        finally:
            path.write_bytes(whole)
        assert registry.fetch(first, model).sha256 == embedded_tagger.sha256

    def test_another_tagger_in_its_place_is_refused(self, first: Settings, embedded_tagger: Tagger) -> None:
        other = ModelVersion(first.model_name, "1", "0" * 64, embedded_tagger.backbone_sha256)
        with pytest.raises(WwtsError, match="version 1 are not those that were registered"):
            registry.fetch(first, other)
        assert not (first.state_dir / "models" / ("0" * 64)).exists()

    def test_a_half_uploaded_model_is_told(self, first: Settings, artifacts: Path, embedded_tagger: Tagger) -> None:
        model = registry.ensure_champion(first)
        shutil.rmtree(first.state_dir / "models" / embedded_tagger.sha256, ignore_errors=True)
        (path,) = artifacts.rglob("tagger.json")
        path.rename(path.with_suffix(".away"))
        try:
            with pytest.raises(WwtsError, match="holds no tagger"):
                registry.fetch(first, model)
        finally:
            path.with_suffix(".away").rename(path)

    def test_a_damaged_cache_of_a_version_that_is_gone_stays_and_is_told(
        self, make_settings: Make, embedded_tagger: Tagger
    ) -> None:
        settings = make_settings()
        model = ModelVersion("m", "1", embedded_tagger.sha256, embedded_tagger.backbone_sha256)
        cached = settings.state_dir / "models" / model.sha256
        shutil.copytree(embedded_tagger.folder, cached)
        (cached / "head.safetensors").write_bytes(b"")
        with pytest.raises(WwtsError, match="Model m has no version 1"):
            registry.fetch(settings, model)
        assert cached.exists()

    def test_the_embedded_default_is_the_same_in_every_process(
        self, make_settings: Make, embedded_tagger: Tagger
    ) -> None:
        """Else two machines on one registry would tag with two models of one name."""
        process = child(make_settings(), "print(registration.embedded(found).sha256)")
        out, told = process.communicate(timeout=600)
        assert out.split()[-1:] == [embedded_tagger.sha256], told


class _Answers(BaseHTTPRequestHandler):
    status: ClassVar[int]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 (the base class's name)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    handler = type("Handler", (_Answers,), {"status": status, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], handler.asked
    finally:
        server.shutdown()
        server.server_close()


class TestServer:
    def test_nobody_there(self, make_settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))  # taken, but nobody listens
            uri = f"http://anna:s3cr%2Fet@127.0.0.1:{held.getsockname()[1]}"
            with pytest.raises(UnavailableError, match="does not answer") as caught:
                registry.champion(make_settings(mlflow_tracking_uri=uri))
        assert "s3cr" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)
        assert caught.value.__suppress_context__  # the cause, which a traceback would show, holds the password
        assert "s3cr" not in "".join(capsys.readouterr())

    def test_it_is_asked_three_times_not_for_four_minutes(self, make_settings: Make) -> None:
        with answering(503) as (port, asked), pytest.raises(UnavailableError):
            registry.champion(make_settings(mlflow_tracking_uri=f"http://127.0.0.1:{port}"))
        assert len(asked) == 3

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refusal_is_not_asked_again(self, make_settings: Make, status: int) -> None:
        with answering(status) as (port, asked), pytest.raises(WwtsError, match="refuses") as caught:
            registry.champion(make_settings(mlflow_tracking_uri=f"http://anna:s3cret@127.0.0.1:{port}"))
        assert not isinstance(caught.value, UnavailableError)
        assert len(asked) == 1
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("http://anna:p@ss@host:5000/x failed", "http://***@host:5000/x failed"),
            ("https://token@host", "https://***@host"),
            ("postgresql+psycopg://u:p@h/db and http://h/a@b", "postgresql+psycopg://***@h/db and http://h/a@b"),
            ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=u&password=***&x=1"),
            ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ],
    )
    def test_no_password_is_shown(self, text: str, shown: str) -> None:
        assert tracking.without_password(text) == shown

    def test_a_database_that_cannot_be_opened(self, make_settings: Make, tmp_path: Path) -> None:
        (tmp_path / "mlflow.db").write_bytes(b"no database, but long enough to be looked at" * 100)
        process = child(
            make_settings(),
            "from wwts_ops.errors import UnavailableError\n"
            "import mlflow.store.db.utils as utils\n"
            "utils.MAX_RETRY_COUNT = 1\n"  # MLflow's own patience is 100 seconds
            "try: registry.champion(found)\n"
            "except UnavailableError as error: print('told', error)",
            MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}",
        )
        out, told = process.communicate(timeout=600)
        assert "told MLflow at sqlite" in out, told


# Run with -I: no variable, no user site, and the working folder is not on the path.
_ALONE = """
import importlib.util, json, os, sys
sys.path[:] = [entry for entry in sys.path if not os.path.isdir(os.path.join(entry, "wwts_ops"))]
assert importlib.util.find_spec("wwts_ops") is None
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
"""
_PREDICT = """
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
given = [open(path, "rb").read() for path in sys.argv[3:]] + [b"no picture"]
rows = json.loads(model.predict(pd.DataFrame({"image": given})).to_json(orient="records"))  # as its server answers
import wwts_ops
print(json.dumps({"rows": rows, "code": wwts_ops.__file__}))
"""
_IMPORTS = """
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from wwts_ops import recognition, tagger, taxonomy
at_import = sorted(sys.modules)
labels = taxonomy.from_csv(Path(sys.argv[3]).read_bytes())
recognize = recognition.Recognizer(tagger.load(Path(sys.argv[2])), taxonomy.Taxonomy("packed", labels))
found = recognize(Path(sys.argv[4]).read_bytes())
ours = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("wwts_ops")}
label = found.decision.tags[0].label_zh
print(json.dumps({"import": at_import, "use": sorted(sys.modules), "ours": ours, "label": label}))
"""
_FORBIDDEN = {"airflow", "fsspec", "s3fs", "sqlalchemy", "pydantic_settings", "structlog", "duckdb", "typer", "rich"}


def alone(code: str, *arguments: object, folder: Path) -> Any:
    command = [sys.executable, "-I", "-c", _ALONE + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("jpegs")
    for name in ("coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg", quality=92)
    return [folder / "coffee.jpg", folder / "chelsea.jpg"]


class TestPacked:
    def test_it_predicts_without_our_code_installed_and_without_pickle(
        self, first: Settings, jpegs: list[Path], artifacts: Path, tmp_path: Path
    ) -> None:
        found = alone(_PREDICT, first.resolved_tracking_uri, f"models:/{first.model_name}/1", *jpegs, folder=tmp_path)
        coffee, cat, broken = found["rows"]
        assert coffee["label_zh"] == "意式浓缩咖啡"
        assert coffee["decision"] == "auto"
        assert coffee["error"] is None
        assert "猫" in cat["label_zh"]
        assert broken["error"] == "not_an_image"
        assert broken["label_id"] is None
        assert Path(found["code"]).is_relative_to(artifacts / "code")
        assert not [
            path for path in artifacts.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
        ]

    def test_the_code_stands_alone_and_pulls_in_none_of_the_operations(
        self, artifacts: Path, jpegs: list[Path], tmp_path: Path
    ) -> None:
        (tagger,) = (path.parent for path in artifacts.rglob("tagger.json"))
        labels = artifacts / "artifacts" / "labels.csv"
        found = alone(_IMPORTS, artifacts / "code", tagger, labels, jpegs[0], folder=tmp_path)
        assert found["label"] == "意式浓缩咖啡"
        assert {name.split(".")[0] for name in found["import"]} & _FORBIDDEN == set()
        assert not [name for name in found["use"] if name.split(".")[0] in _FORBIDDEN - {"fsspec"}]
        assert all(Path(path).is_relative_to(artifacts / "code") for path in found["ours"].values())

    def test_the_code_is_the_recognition_closure_and_nothing_else(self, artifacts: Path) -> None:
        source = Path(registry.__file__).parent
        packed = {str(path.relative_to(artifacts / "code" / "wwts_ops")) for path in self.modules(artifacts / "code")}
        assert packed == set(registration.RECOGNITION)
        assert packed >= {f"backbones/{path.name}" for path in source.glob("backbones/*.py")}
        for name in packed:
            assert (artifacts / "code" / "wwts_ops" / name).read_bytes() == (source / name).read_bytes()
        names = {path.name for path in artifacts.rglob("*") if "__pycache__" not in path.parts}
        assert not names & {".env", ".env.example", "airflow_plugin.py", ".git", "settings.py", "registry.py"}

    def test_the_code_s_hash_is_that_of_what_is_packed(self, first: Settings, artifacts: Path) -> None:
        names = sorted(registration.RECOGNITION)
        command = ["sha256sum", *names]
        listed = subprocess.run(command, cwd=artifacts / "code" / "wwts_ops", capture_output=True, check=True).stdout
        version = client(first).get_model_version(first.model_name, "1")
        assert version.tags["code_sha256"] == hashlib.sha256(listed).hexdigest()

    def test_requirements_are_pinned_and_cover_every_import(self, artifacts: Path) -> None:
        lines = (artifacts / "requirements.txt").read_text().split()
        assert all(line.count("==") == 1 and "*" not in line for line in lines)
        pinned = {line.split("==")[0].lower() for line in lines}
        distributions = packages_distributions()
        imported = set()
        for path in (*self.modules(artifacts / "code"), artifacts / "mlflow_model.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {name.name.split(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    imported.add(node.module.split(".")[0])
        foreign = imported - set(sys.stdlib_module_names) - {"wwts_ops"}
        assert foreign >= {"torch", "onnxruntime", "cv2", "PIL", "numpy"}
        for name in foreign:
            assert {found.lower() for found in distributions[name]} & pinned, name

    def test_what_a_person_must_see_is_flagged_in_the_packed_names(self, artifacts: Path) -> None:
        from wwts_ops import taxonomy

        labels = taxonomy.from_csv((artifacts / "artifacts" / "labels.csv").read_bytes())
        forced = {label.label_id for label in labels if label.forced_review}
        assert {"imagenet:n02749479", "imagenet:n04086273", "imagenet:n07892512"} <= forced  # rifle, revolver, red wine
        assert "imagenet:n07920052" not in forced  # espresso
        assert len(labels) == 1000

    def modules(self, folder: Path) -> list[Path]:
        return sorted(folder.rglob("*.py"))
