"""`wwts models import`, and the registration beneath it, on a real MLflow: a whole version with its tags, or none."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from environment import clean, plain
from PIL import Image
from tiny_backbone import TINY
from torchvision_checkpoints import LABELS, photo, probabilities, trained, written

from wwts_ops import checkpoint, images, recognition, registration, registry, taxonomy, tracking
from wwts_ops import tagger as taggers
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.registration import Candidate
from wwts_ops.settings import Settings, load
from wwts_ops.storage import Store
from wwts_ops.tagger import Head, Tagger
from wwts_ops.taxonomy import Label

ARCH = "mobilenet_v3_small"
Make = Callable[..., Settings]


def client(settings: Settings) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=settings.resolved_tracking_uri, registry_uri=settings.resolved_tracking_uri)


def versions(settings: Settings) -> list[Any]:
    found = client(settings).search_model_versions(f"name='{settings.model_name}'")
    return sorted(found, key=lambda entry: int(entry.version))


def statuses(settings: Settings) -> list[str]:
    """Of the runs that registered something, oldest first."""
    asked = client(settings)
    experiment = asked.get_experiment_by_name(registration.EXPERIMENT)
    runs = asked.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run.info.status for run in runs]


# ------------------------------------------------------------------ the command


@dataclass(frozen=True)
class Shop:
    """A shop with the embedded default, into which a person imports a checkpoint."""

    settings: Settings
    folder: Path
    network: torch.nn.Module

    def wwts(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        kept = plain()
        return subprocess.run(
            [Path(sysconfig.get_path("scripts"), "wwts"), *map(str, arguments)],
            cwd=self.folder,
            env={**kept, "WWTS_STORE": self.settings.store, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def imported(self, **changes: str) -> subprocess.CompletedProcess[str]:
        given = {
            "family": "torchvision",
            "arch": ARCH,
            "weights": "wwts_model.pth",
            "labels": "labels_zh.txt",
        } | changes
        return self.wwts("models", "import", *(part for name, value in given.items() for part in (f"--{name}", value)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Shop:
    folder = tmp_path_factory.mktemp("import")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        settings = load(store=str(folder / "store"))
    shutil.copytree(embedded_tagger.folder, settings.state_dir / "models" / embedded_tagger.folder.name)
    network = trained(ARCH)
    written(
        folder, {"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}, "epoch": 90}
    )
    return Shop(settings, folder, network)


@pytest.fixture(scope="module")
def first(shop: Shop) -> subprocess.CompletedProcess[str]:
    """The first import, into an empty registry: refused, then done."""
    refused = shop.imported(arch="mobilenet_v3_large")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "mobilenet_v3_large with 7 labels; nothing was registered" in refused.stderr
    assert not registry.exists(shop.settings)
    assert not Path(shop.settings.store).exists()
    return shop.imported()


class TestTheCommand:
    def test_it_tells_the_version_and_what_comes_next(self, first: subprocess.CompletedProcess[str]) -> None:
        assert first.returncode == 0, first.stderr
        assert (
            "version 2 is new: torchvision:mobilenet_v3_small, 7 labels (7 of them new in taxonomy t0" in first.stdout
        )
        assert """wwts run evaluate_model --conf '{"version": "2"}'""" in first.stdout
        assert "'module.' was taken off the front of every name." in first.stdout
        assert "below 'state_dict'" in first.stdout

    def test_it_is_a_version_without_an_alias_beside_the_champion(
        self, shop: Shop, first: subprocess.CompletedProcess[str], embedded_tagger: Tagger
    ) -> None:
        default, new = versions(shop.settings)
        aliases = client(shop.settings).get_registered_model(shop.settings.model_name).aliases
        assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "1"}
        assert default.tags["model_sha256"] == embedded_tagger.sha256
        found = registry.fetch(shop.settings, tracking.ModelVersion.of(new))
        assert {name: new.tags[name] for name in ("model_sha256", "backbone_sha256", "code_sha256")} == {
            "model_sha256": found.sha256,
            "backbone_sha256": found.backbone_sha256,
            "code_sha256": registration.code_sha256(),
        }
        assert "git_sha" in new.tags
        assert found.label_ids == tuple(f"labels_zh:{index}" for index in range(7))
        assert set(found.thresholds) == {np.float32(0.6)}

    def test_its_run_says_where_it_came_from(self, shop: Shop, first: subprocess.CompletedProcess[str]) -> None:
        run = client(shop.settings).get_run(versions(shop.settings)[1].run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["weights"] == "wwts_model.pth"
        assert run.data.params["weights_sha256"] == checkpoint._sha256(shop.folder / "wwts_model.pth")
        assert run.data.params["labels_sha256"] == checkpoint._sha256(shop.folder / "labels_zh.txt")
        assert run.data.params["backbone"] == "torchvision:mobilenet_v3_small"

    def test_it_says_of_a_photograph_what_torchvision_says(
        self, shop: Shop, first: subprocess.CompletedProcess[str], tmp_path: Path
    ) -> None:
        found = registry.fetch(shop.settings, tracking.ModelVersion.of(versions(shop.settings)[1]))
        Image.fromarray(photo("chelsea")).save(tmp_path / "cat.png")
        names = taxonomy.current(Store.of(shop.settings))
        assert names is not None
        data = (tmp_path / "cat.png").read_bytes()
        decision = recognition.Recognizer(found, names, "cpu", top_k=7)(data).decision
        crop = found.recipe.crop(images.decode(data, found.recipe.short_side, 10**8).rgb)
        wanted = probabilities(shop.network, ARCH, crop[None])[0]
        scores = {tag.label_id: tag.score for tag in decision.tags}
        assert scores == pytest.approx({f"labels_zh:{index}": wanted[index] for index in range(7)}, abs=1e-4)
        assert decision.tags[0].label_zh == LABELS[int(wanted.argmax())]

    def test_a_name_that_occurs_twice_is_two_labels(self, shop: Shop, first: subprocess.CompletedProcess[str]) -> None:
        names = taxonomy.current(Store.of(shop.settings))
        assert names is not None
        assert names.by_id["labels_zh:0"].label_zh == names.by_id["labels_zh:2"].label_zh == "苹果"
        assert len(names.labels) == 1007

    def test_the_same_again_registers_nothing(self, shop: Shop, first: subprocess.CompletedProcess[str]) -> None:
        model = tracking.ModelVersion.of(versions(shop.settings)[1])
        request = checkpoint.Request("torchvision", ARCH, shop.folder / "wwts_model.pth", shop.folder / "labels_zh.txt")
        labels = checkpoint.read_labels(request.labels, None)
        ready = checkpoint.Prepared(request, labels, registry.fetch(shop.settings, model), ())
        again = checkpoint.register(shop.settings, ready)
        assert (again.model, again.new_labels, again.existed) == (model, 0, True)
        assert len(versions(shop.settings)) == 2

    def test_other_names_for_labels_in_force_are_refused(
        self, shop: Shop, first: subprocess.CompletedProcess[str], tmp_path: Path
    ) -> None:
        (tmp_path / "labels_zh.txt").write_text("\n".join(("青苹果", *LABELS[1:])), encoding="utf-8")
        before = taxonomy.current(Store.of(shop.settings))
        refused = shop.imported(labels=str(tmp_path / "labels_zh.txt"))
        assert refused.returncode == 2
        assert "labels_zh:0 is 苹果 there and 青苹果 here; choose another --namespace" in refused.stderr
        assert taxonomy.current(Store.of(shop.settings)) == before
        assert len(versions(shop.settings)) == 2

    def test_its_help_says_what_it_takes(self, shop: Shop) -> None:
        told = shop.wwts("models", "import", "--help").stdout
        for words in (
            "--family",
            "--arch",
            "--weights",
            "--labels",
            "--namespace",
            "--threshold",
            "--short-side",
            "--input",
        ):
            assert words in told


# ------------------------------------------------------------------ the labels file


def read(folder: Path, data: bytes | str, name: str = "labels_zh.txt", namespace: str | None = None) -> Any:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return checkpoint.read_labels(folder / name, namespace)


class TestLabels:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_however_it_was_saved(self, encoding: str, end: str, tmp_path: Path) -> None:
        found = read(tmp_path, (f"苹果{end} 香蕉　{end}苹果{end}龘靐{end}{end}  {end}").encode(encoding))
        assert found == (
            Label("labels_zh:0", "苹果"),
            Label("labels_zh:1", "香蕉"),
            Label("labels_zh:2", "苹果"),
            Label("labels_zh:3", "龘靐"),
        )

    @pytest.mark.parametrize(
        ("name", "namespace", "prefix"),
        [
            ("labels.txt", None, "labels"),
            ("我的 标签 (v2).txt", None, "我的-标签-v2"),
            ("...txt", None, "labels"),
            ("a.txt", "shop2026", "shop2026"),
        ],
    )
    def test_namespace(self, name: str, namespace: str | None, prefix: str, tmp_path: Path) -> None:
        assert [label.label_id for label in read(tmp_path, "甲\n乙", name, namespace)] == [f"{prefix}:0", f"{prefix}:1"]

    @pytest.mark.parametrize("namespace", ["", "a b", "a:b", "../x", "a|b", "x" * 61])
    def test_no_namespace(self, namespace: str, tmp_path: Path) -> None:
        with pytest.raises(WwtsError, match="cannot be a namespace"):
            read(tmp_path, "甲\n乙", namespace=namespace)

    def test_ids_of_ones_own(self, tmp_path: Path) -> None:
        found = read(tmp_path, "grocery:44\t苹果\n7\t香蕉\n")
        assert [(label.label_id, label.label_zh) for label in found] == [
            ("grocery:44", "苹果"),
            ("labels_zh:7", "香蕉"),
        ]

    def test_csv_as_the_taxonomy_is_exported(self, tmp_path: Path) -> None:
        labels = (
            Label("a:1", "苹果", "apple", "林檎", "食品 > 水果"),
            Label("a:2", "酒", "wine", "", "饮料 > 酒类", True),
        )
        data = taxonomy.to_csv(taxonomy.Taxonomy("x", labels))
        assert read(tmp_path, data, "labels.csv") == labels

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("甲\n\n乙", "line 2: there must be a name"),
            ("甲\n \t\n乙", "line 2: there must be a name"),
            ("\n甲\n乙", "line 1: there must be a name"),
            ("a:1\t甲\n乙", "line 2: there must be an id, a tab and a name"),
            ("甲\na:1\t乙", "line 2: a name is text"),
            ("a:1\t甲\na:1\t乙", "'a:1' is empty or occurs twice"),
            ("a:1\t甲\na|b:1\t乙", "line 2: 'a|b:1' cannot be a label id"),
            ("a:1\t甲\n\t乙", "line 2: there must be an id"),
            ("甲\n乙\x1b[2J", "line 2: a name is text"),
            ("甲\n" + "乙" * 201, "line 2: a name is text of at most 200"),
            ("甲", "names 1 labels"),
            ("", "has 0 bytes"),
            ("\n\n", "line 1"),
            (b"\xff\xfe\x00\x32", "neither UTF-8 nor GB18030"),
            ("label_id,label_zh\na:1,甲\na:2,乙", "lacks the column"),
        ],
    )
    def test_what_is_refused_by_line(self, text: str | bytes, words: str, tmp_path: Path) -> None:
        with pytest.raises(WwtsError) as caught:
            read(tmp_path, text)
        assert words in str(caught.value)

    def test_a_file_too_large_to_be_one(self, tmp_path: Path) -> None:
        with pytest.raises(WwtsError, match="16,777,216"):
            read(tmp_path, b"x" * (2**24 + 1))
        with pytest.raises(WwtsError, match="names 200,001 labels"):
            read(tmp_path, "甲\n" * 200_001)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(WwtsError, match="is no file"):
            checkpoint.read_labels(tmp_path, None)


class TestLabelsIntoTheTaxonomy:
    def ready(self, labels: tuple[Label, ...]) -> Any:
        request = checkpoint.Request("torchvision", ARCH, Path("w.pth"), Path("l.txt"))
        return checkpoint.Prepared(request, labels, None, ())  # type: ignore[arg-type]

    def test_somebody_else_changing_it_meanwhile_loses_neither(
        self, make_settings: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = make_settings()
        store, edit, theirs = Store.of(settings), taxonomy.edit, [Label("other:1", "西瓜"), Label("other:2", "冬瓜")]

        def late(store: Store, author: str, changes: dict[str, Label]) -> Any:
            if theirs:  # between our reading and our writing
                one = theirs.pop()
                edit(store, "somebody", {one.label_id: one})
                raise taxonomy.ChangedError("they were first")
            return edit(store, author, changes)

        monkeypatch.setattr(taxonomy, "edit", late)
        added, after = checkpoint._put_labels(
            store, settings, self.ready((Label("mine:0", "甲"), Label("mine:1", "乙")))
        )
        assert added == 2
        assert {"mine:0", "mine:1", "other:1", "other:2"} <= after.by_id.keys()
        assert taxonomy.current(store) == after

    def test_what_a_person_made_of_a_label_stays(self, make_settings: Make) -> None:
        settings = make_settings()
        store = Store.of(settings)
        taxonomy.ensure(store, ())
        kept = Label("mine:0", "甲", category_path="食品", forced_review=True)
        before = taxonomy.edit(store, "somebody", {"mine:0": kept})
        assert checkpoint._put_labels(store, settings, self.ready((Label("mine:0", "甲"),))) == (0, before)


# ------------------------------------------------------------------ registration


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    weights = TINY.pretrained()
    ids = tuple(f"shop:{index}" for index in range(4))
    head = Head(ids, np.full(4, 0.5), weights.head_weight.numpy(), weights.head_bias.numpy())
    made = taggers.save(tmp_path_factory.mktemp("tiny") / "tagger", TINY, weights.backbone, head)
    return Candidate(made, tuple(Label(each, "商品") for each in ids), "test", {"why": "test"}, {"number": 7})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One MLflow for all tests of registration: making its tables takes longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        yield load(store=str(tmp_path_factory.mktemp("registration") / "store"))


def logged(settings: Settings) -> Path:
    """The folder of the model that was logged last."""
    found = (settings.state_dir / "mlartifacts").rglob("MLmodel")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


class TestRegistered:
    def test_with_all_its_tags_at_once(self, shared: Settings, tiny: Candidate) -> None:
        model = registration.register(shared, tiny)
        entry = client(shared).get_model_version(model.name, model.version)
        assert (
            entry.tags.items()
            >= {
                "why": "test",
                "model_sha256": tiny.tagger.sha256,
                "backbone_sha256": tiny.tagger.backbone_sha256,
                "code_sha256": registration.code_sha256(),
            }.items()
        )
        assert not entry.aliases
        assert client(shared).get_run(entry.run_id).data.params["number"] == "7"
        assert registration.registered(shared, tiny.tagger.sha256) == model
        assert registration.registered(shared, "0" * 64) is None

    @pytest.mark.parametrize(
        ("name", "cut", "told"),
        [
            ("tagger.json", True, "the tagger"),
            ("tagger.json", False, "the tagger"),
            ("backbone.safetensors", True, "the tagger"),
            ("labels.csv", True, "its label names"),
            ("labels.csv", False, "its label names"),
            ("recognition.py", True, "its code"),
            ("recognition.py", False, "its code"),
            ("mlflow_model.py", False, "the model's description"),
        ],
    )
    def test_what_the_artifact_store_did_not_keep_is_never_registered(
        self, shared: Settings, tiny: Candidate, monkeypatch: pytest.MonkeyPatch, name: str, cut: bool, told: str
    ) -> None:
        before, log = len(versions(shared)), registration._log

        def lossy(*arguments: Any) -> Any:
            done = log(*arguments)
            (path,) = (found for found in logged(shared).rglob(name))
            path.write_bytes(path.read_bytes()[:-1]) if cut else path.unlink()
            return done

        monkeypatch.setattr(registration, "_log", lossy)
        with pytest.raises(UnavailableError, match=f"did not keep what was sent \\({told}\\); nothing was registered"):
            registration.register(shared, tiny)
        assert len(versions(shared)) == before
        assert statuses(shared)[-1] == "FAILED"

    def test_a_model_that_mlflow_does_not_call_ready(
        self, shared: Settings, tiny: Candidate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.entities import LoggedModelStatus

        before, log = len(versions(shared)), registration._log

        def unfinished(*arguments: Any) -> Any:
            done = log(*arguments)
            client(shared).finalize_logged_model(done.model_id, LoggedModelStatus.FAILED)
            return done

        monkeypatch.setattr(registration, "_log", unfinished)
        with pytest.raises(UnavailableError, match="FAILED, not ready; nothing was registered"):
            registration.register(shared, tiny)
        assert len(versions(shared)) == before
        assert statuses(shared)[-1] == "FAILED"

    @pytest.mark.parametrize(
        ("place", "made"),
        [
            ("mlflow.MlflowClient.log_model_artifacts", 0),
            ("wwts_ops.registration._verify", 0),
            ("mlflow.store.model_registry.sqlalchemy_store.SqlAlchemyStore.create_model_version", 0),
            ("mlflow.tracking.fluent.end_run", 1),
        ],
    )
    def test_killed_anywhere_there_is_no_version_or_a_whole_one(
        self, shared: Settings, tiny: Candidate, place: str, made: int
    ) -> None:
        before = len(versions(shared)) if registry.exists(shared) else 0
        module, _, name = place.rpartition(".")
        owner = f"import mlflow, {module.split('.')[0]}\n" if module.count(".") < 2 else ""
        code = f"""
import os, signal, sys
from pathlib import Path
from pkgutil import resolve_name
from wwts_ops import registration, settings, tagger
from wwts_ops.taxonomy import Label
import mlflow
{owner}
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(resolve_name({module!r}), {name!r}, die)
made = tagger.load(Path(sys.argv[1]))
labels = tuple(Label(each, "商品") for each in made.label_ids)
registration.register(settings.load(), registration.Candidate(made, labels, "killed"))
"""
        kept = plain()
        done = subprocess.run(
            [sys.executable, "-c", code, tiny.tagger.folder],
            env={**kept, "WWTS_STORE": shared.store},
            cwd=Path(shared.store).parent,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = versions(shared)
        assert len(found) == before + made
        for entry in found:
            assert {"model_sha256", "backbone_sha256", "code_sha256", "git_sha"} <= entry.tags.keys()
            assert registry.fetch(shared, tracking.ModelVersion.of(entry)).sha256 == tiny.tagger.sha256

    def test_a_run_that_a_killed_process_left_open_is_ended(self, shared: Settings, tiny: Candidate) -> None:
        with tracking.connected(shared) as asked:
            experiment = tracking.experiment(asked, shared, registration.EXPERIMENT)
            open_runs = {
                asked.create_run(experiment, start_time=start).info.run_id: status
                for start, status in ((1, "FAILED"), (None, "RUNNING"))
            }
            with registration._run(asked, experiment, "next"):
                pass
            assert {each: asked.get_run(each).info.status for each in open_runs} == open_runs
            for each in open_runs:
                asked.set_terminated(each)

    def test_within_a_run_of_somebody_elses(self, shared: Settings, tiny: Candidate) -> None:
        import mlflow

        with tracking.connected(shared) as asked:
            experiment = tracking.experiment(asked, shared, "training")
            with mlflow.start_run(experiment_id=experiment) as outer:
                model = registration.register(shared, tiny)
            entry = client(shared).get_model_version(model.name, model.version)
            assert entry.run_id != outer.info.run_id
            assert asked.get_run(entry.run_id).data.tags["mlflow.parentRunId"] == outer.info.run_id
