"""MLflow away: the night goes on with the champion it knows and says so; what is not whole is never used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from code_shelf import CAUTIOUS, DAY, Shelf, decisions, make_tagger
from conftest import _healthy, free_ports
from environment import clean, plain
from night_process import one_night
from structlog.testing import capture_logs

from wwts_ops import night, planning, registration, registry, summary, taxonomy, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tracking import ModelVersion

NOTICE = "模型登记服务（MLflow）当晚无法访问"


@dataclass
class Mlflow:
    """A real server, which keeps the artifacts too, that can be stopped and started."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def start(self) -> None:
        if self.process:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", str(self.artifacts)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        kept = plain()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert _healthy(self.process, f"{self.uri}/health"), (self.folder / "log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Whoever asks is heard and not answered within a second: stopping for good and starting takes longer."""
        assert self.process
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
            os.killpg(self.process.pid, signal.SIGSTOP)
            try:
                yield
            finally:
                os.killpg(self.process.pid, signal.SIGCONT)


@dataclass(frozen=True)
class Shop:
    """A shelf, its server, and version 1 as champion."""

    shelf: Shelf
    server: Mlflow

    def settings(self, **given: Any) -> Settings:
        return self.shelf.settings(**{"mlflow_tracking_uri": self.server.uri, "forced_review": (), **given})

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.server.uri)

    def photograph(self, number: int) -> None:
        """One more photograph in the catalog."""
        folder = self.shelf.folder / "图库"
        photo = next(folder.rglob("a1*.jpg"))
        (folder / f"new {number}.jpg").write_bytes(photo.read_bytes() + b"%d" % number)

    def forget(self) -> None:
        """Empties the cache."""
        shutil.rmtree(self.settings().state_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("away")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        made = Shop(Shelf(folder, make_tagger(folder / "tagger")), Mlflow(folder))
        made.shelf.fill_catalog()
        made.server.start()
        try:
            known = {label.label_id: label for label in taxonomy.embedded_labels()}
            labels = tuple(known[label_id] for label_id in made.shelf.tagger.label_ids)
            registration.register(made.settings(), registration.Candidate(made.shelf.tagger, labels, "first"))
            made.client().set_registered_model_alias("wwts-tagger", "champion", "1")
            yield made
        finally:
            made.server.stop()


@pytest.fixture(autouse=True)
def usual(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers, and one try where there is none: what happens then is not how often it was tried."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shop.server.start()
    shop.client().set_registered_model_alias("wwts-tagger", "champion", "1")


class TestNight:
    def test_it_goes_on_with_the_champion_it_knows_and_says_so(self, shop: Shop) -> None:
        found, store = shop.settings(), Store(str(shop.shelf.folder / "store"))
        before = datetime.now(UTC).replace(microsecond=0)
        one_night(found, DAY)
        page = store.path(f"reports/date={DAY}/index.html")
        assert NOTICE not in Path(page).read_text(encoding="utf-8")

        shop.server.stop()
        shop.photograph(1)
        next_day = DAY + timedelta(days=1)
        with capture_logs() as events:
            (run_key,) = one_night(found, next_day)["run_keys"]
        assert decisions(found, run_key) == {("auto", "confident", "1")}

        (warning,) = (event for event in events if event["event"] == "champion_from_cache")
        assert (warning["log_level"], warning["version"]) == ("warning", "1")
        assert "does not answer" in warning["why"]
        since = datetime.fromisoformat(warning["resolved_at"])
        assert before <= since <= datetime.now(UTC)
        assert planning.read(store, run_key).away_since == since.isoformat()
        told = f"{since.astimezone(ZoneInfo('Asia/Shanghai')):%m-%d %H:%M} 确认"
        page = store.path(f"reports/date={next_day}/index.html")
        text = Path(page).read_text(encoding="utf-8")
        assert NOTICE in text
        assert f"沿用最近一次确认的模型第 1 版（{told}）" in text
        (done,) = (event for event in events if event["event"] == "night_done")
        (line,) = (line for line in summary.night(done).splitlines() if NOTICE in line)
        assert told in line

        shop.server.start()
        shop.photograph(2)
        with capture_logs() as events:
            (run_key,) = one_night(found, DAY + timedelta(days=2))["run_keys"]
        assert planning.read(store, run_key).away_since == ""
        assert "champion_from_cache" not in [event["event"] for event in events]
        (done,) = (event for event in events if event["event"] == "night_done")
        assert NOTICE not in summary.night(done)

    def test_it_is_not_waited_for_as_long_as_mlflow_would(self, shop: Shop) -> None:
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT as PATIENCE

        usual = PATIENCE.get()
        with tracking.connected(shop.settings(), tracking.ANSWER_SECONDS):
            assert PATIENCE.get() == tracking.ANSWER_SECONDS < usual
        assert PATIENCE.get() == usual

    def test_with_nothing_remembered_it_stops_and_plans_nothing(self, shop: Shop, tmp_path: Path) -> None:
        found = shop.settings(store=str(tmp_path / "store"))
        with (
            shop.server.away(),
            pytest.raises(UnavailableError, match="No champion was confirmed on this machine"),
        ):
            night.plan(found, night.Order(DAY), "LocalExecutor")
        assert planning.claimed(Store.of(found)) == []

    def test_a_version_that_was_asked_for_waits(self, shop: Shop) -> None:
        registry.champion_or_cached(shop.settings())
        with shop.server.away(), pytest.raises(UnavailableError, match="does not answer"):
            night.plan(shop.settings(), night.Order(DAY, model_version="1"), "LocalExecutor")

    def test_only_the_night_goes_on(self, shop: Shop) -> None:
        """Evaluation and promotion stand on what MLflow says now."""
        registry.champion_or_cached(shop.settings())
        for ask in (registry.champion, registry.ensure_champion, lambda found: registry.resolve(found, None)):
            with shop.server.away(), pytest.raises(UnavailableError):
                ask(shop.settings())


def _damage(shop: Shop) -> None:
    (shop.settings().state_dir / "models" / shop.shelf.tagger.sha256 / "head.safetensors").write_bytes(b"")


def _drop_code(shop: Shop) -> None:
    """As if the version had come with other code, which was never fetched."""
    note = shop.settings().state_dir / "models" / "champion-wwts-tagger.json"
    note.write_text(note.read_text().replace(registration.code_sha256(), "0" * 64))


def _cut_off(shop: Shop) -> None:
    note = shop.settings().state_dir / "models" / "champion-wwts-tagger.json"
    note.write_text(note.read_text()[:20])


class TestRemembered:
    @pytest.mark.parametrize(
        ("harm", "told"), [(_damage, "not whole"), (_drop_code, "not whole"), (_cut_off, "damaged, too")]
    )
    def test_only_what_is_whole(self, shop: Shop, harm: Callable[[Shop], None], told: str) -> None:
        registry.champion_or_cached(shop.settings())
        harm(shop)
        with shop.server.away(), pytest.raises(UnavailableError, match=told):
            registry.champion_or_cached(shop.settings())
        assert registry.champion_or_cached(shop.settings()).away_since is None, "mended once MLflow is back"
        with shop.server.away():
            assert registry.champion_or_cached(shop.settings()).model.version == "1"

    def test_what_mlflow_said_last_counts_whoever_asked(self, shop: Shop) -> None:
        """A champion that was rolled back must not come back because MLflow is away."""
        registry.champion_or_cached(shop.settings())
        shop.client().delete_registered_model_alias("wwts-tagger", "champion")
        assert registry.champion(shop.settings()) is None
        with shop.server.away(), pytest.raises(UnavailableError, match="No champion was confirmed"):
            registry.champion_or_cached(shop.settings())

    def test_another_servers_champion_does_not_count(self, shop: Shop) -> None:
        registry.champion_or_cached(shop.settings())
        uri = f"http://127.0.0.1:{free_ports(1)[0]}"
        with pytest.raises(UnavailableError, match="that of another registry"):
            registry.champion_or_cached(shop.settings(mlflow_tracking_uri=uri))


class TestCache:
    def test_damaged_files_are_fetched_again_or_told(self, shop: Shop) -> None:
        model = registry.resolve(shop.settings(), "1")
        registry.provide(shop.settings(), model)
        _damage(shop)
        with (
            shop.server.away(),
            pytest.raises(UnavailableError, match=f"{model.sha256} is damaged.*MLflow at .* does not answer"),
        ):
            registry.fetch(shop.settings(), model)
        with capture_logs() as events:
            assert registry.fetch(shop.settings(), model).sha256 == model.sha256
        assert [event["event"] for event in events] == ["cache_damaged"]
        assert registry.fetch(shop.settings(), model).sha256 == model.sha256


class TestHalfUploaded:
    @pytest.fixture
    def pending(self, shop: Shop) -> ModelVersion:
        """A version that somebody registered while its files were still on their way."""
        client = shop.client()
        whole = client.get_model_version("wwts-tagger", "1")
        model = client.create_logged_model(client.get_experiment_by_name(registration.EXPERIMENT).experiment_id, "half")
        made = client.create_model_version(
            "wwts-tagger", f"models:/{model.model_id}", model_id=model.model_id, tags=whole.tags
        )
        client.log_model_artifacts(model.model_id, str(shop.shelf.tagger.folder))
        return ModelVersion.of(made)

    def test_is_refused_and_never_cached(self, shop: Shop, pending: ModelVersion) -> None:
        """Its hashes are right, and its files too: nobody said that they are all there."""
        shop.forget()
        for ask in (registry.fetch, registry.provide):
            with pytest.raises(WwtsError, match=f"version {pending.version} is not whole: .* PENDING") as caught:
                ask(shop.settings(), pending)
            assert not isinstance(caught.value, UnavailableError)
        models = shop.settings().state_dir / "models"
        assert [path.name for path in models.iterdir()] == [".lock"]

    def test_as_champion_no_plan_is_bound_to_it(self, shop: Shop, pending: ModelVersion, tmp_path: Path) -> None:
        shop.client().set_registered_model_alias("wwts-tagger", "champion", pending.version)
        found = shop.settings(store=str(tmp_path / "store"))
        with pytest.raises(WwtsError, match="not whole"):
            night.plan(found, night.Order(DAY), "LocalExecutor")
        with shop.server.away(), pytest.raises(UnavailableError, match="not whole in the cache"):
            night.plan(found, night.Order(DAY), "LocalExecutor")
        assert planning.claimed(Store.of(found)) == []

    @pytest.mark.parametrize("name", ["tagger.json", "head.safetensors", "backbone.onnx"])
    @pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 50)], ids=["missing", "truncated"])
    def test_files_that_are_not_whole(self, shop: Shop, name: str, harm: Callable[[Path], None]) -> None:
        model = registry.resolve(shop.settings(), "1")
        (path,) = shop.server.artifacts.rglob(f"artifacts/artifacts/**/{name}")
        with _harmed(path, harm):
            shop.forget()
            with pytest.raises(WwtsError, match=r"wwts-tagger version 1 .*egister it again") as caught:
                registry.fetch(shop.settings(), model)
            assert not isinstance(caught.value, UnavailableError)
            assert not (shop.settings().state_dir / "models" / model.sha256).exists()
        assert registry.fetch(shop.settings(), model).sha256 == model.sha256

    def test_code_that_is_not_whole(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        model = registry.resolve(shop.settings(), "1")
        monkeypatch.setattr(registration, "RECOGNITION", ("errors.py",))  # a release whose code is another
        (path,) = shop.server.artifacts.rglob("code/wwts_ops/decisions.py")
        for harm in (Path.unlink, lambda path: os.truncate(path, 50), lambda path: shutil.rmtree(path.parents[1])):
            with _harmed(path, harm):
                shop.forget()
                with pytest.raises(WwtsError, match="version 1") as caught:
                    registry.code(shop.settings(), model)
                assert not isinstance(caught.value, UnavailableError)
                assert not (shop.settings().state_dir / "models" / f"code-{model.code_sha256}").exists()
        folder = registry.code(shop.settings(), model)
        assert registration.code_sha256(folder / "wwts_ops") == model.code_sha256
        assert CAUTIOUS[1] in (folder / "wwts_ops" / "decisions.py").read_text(encoding="utf-8")


@contextmanager
def _harmed(path: Path, harm: Callable[[Path], None]) -> Iterator[None]:
    """Harms a file or its folder on the server's disk for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as name:
        kept = shutil.copytree(path.parent, Path(name) / "kept")
        try:
            harm(path)
            yield
        finally:
            shutil.copytree(kept, path.parent, dirs_exist_ok=True)
