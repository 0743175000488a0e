"""A version is tagged with under the code it was packed with: rolling it back rolls back the code too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from code_shelf import CAUTIOUS, DAY, Shelf, decisions, environment, make_tagger
from night_process import one_night
from structlog.testing import capture_logs

from wwts_ops import night, packed, planning, registration, registry
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.planning import Plan
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.tracking import ModelVersion

#: Needs a person at every image, told by its reason: what CAUTIOUS code says where ours says ``confident``.
CAREFUL, SURE = ("review", "low_confidence"), ("auto", "confident")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return make_tagger(tmp_path_factory.mktemp("tagger"))


@pytest.fixture
def shelf(clean_environment: None, tmp_path: Path, tagger: Tagger) -> Shelf:
    made = Shelf(tmp_path, tagger)
    made.fill_catalog()
    return made


@pytest.fixture
def tagged(shelf: Shelf) -> Callable[..., tuple[Settings, Plan]]:
    """Tags the catalog with a version whose packed code has changes."""

    def tag(*changes: Any, **given: Any) -> tuple[Settings, Plan]:
        found = shelf.settings(forced_review=(), **given)
        plan = shelf.plan(shelf.plant(*changes), found)
        night.tag_shard(found, plan.run_key, 0)
        return found, plan

    return tag


class TestOverlay:
    def test_the_packed_files_replace_ours_and_nothing_compiled_comes_along(self, shelf: Shelf) -> None:
        found, model = shelf.settings(), shelf.plant(CAUTIOUS)
        code = registry.code(found, model) / "wwts_ops"
        (code / "__pycache__").mkdir()
        (code / "__pycache__" / "decisions.cpython-311.pyc").write_bytes(b"another")
        folder = packed.overlay(found, model)
        ours = Path(packed.__file__).parent
        assert (folder / "wwts_ops" / "decisions.py").read_bytes() == (code / "decisions.py").read_bytes()
        assert (folder / "wwts_ops" / "decisions.py").read_bytes() != (ours / "decisions.py").read_bytes()
        assert (folder / "wwts_ops" / "night.py").read_bytes() == (ours / "night.py").read_bytes()
        assert (folder / "wwts_ops" / "data" / "labels_zh.csv").exists()
        assert not list(folder.rglob("__pycache__"))

    def test_it_is_made_once_and_again_when_damaged(self, shelf: Shelf) -> None:
        found, model = shelf.settings(), shelf.plant(CAUTIOUS)
        folder = packed.overlay(found, model)
        made = folder.stat().st_ino
        assert packed.overlay(found, model) == folder
        assert folder.stat().st_ino == made
        (folder / "wwts_ops" / "decisions.py").write_text("# cut off", encoding="utf-8")
        with capture_logs() as events:
            assert packed.overlay(found, model) == folder
        assert "if False" in (folder / "wwts_ops" / "decisions.py").read_text(encoding="utf-8")
        assert [event["event"] for event in events] == ["cache_damaged"]

    def test_only_other_code_differs(self, shelf: Shelf) -> None:
        assert packed.differs(shelf.plant(CAUTIOUS))
        assert not packed.differs(ModelVersion("m", "1", "a", "b", registration.code_sha256()))
        assert not packed.differs(ModelVersion("m", "1", "a", "b")), "nobody noted its code"


class TestShard:
    def test_other_code_decides_and_what_it_says_is_handed_on(self, tagged: Any) -> None:
        with capture_logs() as events:
            found, plan = tagged(CAUTIOUS, thumbnails="none")
        assert decisions(found, plan.run_key) == {(*CAREFUL, "3")}
        assert Store.of(found).list("thumbnails") == [], "the settings in force, not those of the environment"
        told = [event["event"] for event in events]
        assert told[0] == "tagging_with_packed_code"
        assert told.count("image_tagged") == plan.images
        assert told[-1] == "shard_done"
        assert {event["log_level"] for event in events} == {"info"}
        with capture_logs() as events:
            assert night.tag_shard(found, plan.run_key, 0)["images"] == plan.images
        assert events == [], "a shard that is done starts no process"

    def test_a_plan_that_does_not_know_its_code_is_tagged_here(self, shelf: Shelf) -> None:
        """As plans of the releases before this one."""
        found = shelf.settings(forced_review=())
        model = shelf.plant(CAUTIOUS)
        plan = shelf.plan(ModelVersion(model.name, "3", model.sha256, model.backbone_sha256), found)
        with capture_logs() as events:
            night.tag_shard(found, plan.run_key, 0)
        assert decisions(found, plan.run_key) == {(*SURE, "3")}
        assert "tagging_with_packed_code" not in [event["event"] for event in events]

    def test_code_that_does_not_fit_is_refused_in_one_sentence(self, tagged: Any) -> None:
        renamed = ("decisions.py", "class Decider", "class Chooser")
        with pytest.raises(WwtsError, match=r"wwts-tagger version 3 .*Decider.*Register it again.*deploy") as caught:
            tagged(renamed)
        assert not isinstance(caught.value, UnavailableError)

    def test_code_that_fits_only_until_it_is_used_is_refused_too(self, tagged: Any) -> None:
        with pytest.raises(WwtsError, match=r"does not fit this release \(TypeError: decode\(\)"):
            tagged(("images.py", "max_pixels: int", "max_side: int, max_pixels: int"))

    def test_code_that_writes_other_columns_is_refused(self, tagged: Any) -> None:
        with pytest.raises(WwtsError, match="it writes other columns"):
            tagged(("schemas.py", 'pa.field("width", pa.int32()', 'pa.field("breadth", pa.int32()'))

    @pytest.mark.parametrize("kind", [UnavailableError, WwtsError])
    def test_what_it_refuses_is_refused_here(self, tagged: Any, kind: type[WwtsError]) -> None:
        """Airflow tries the one again and not the other."""
        raising = f"    from wwts_ops.errors import {kind.__name__}\n    raise {kind.__name__}('盘满了')\n    available"
        with pytest.raises(WwtsError, match=r"^盘满了$") as caught:
            tagged(("runtime.py", "    available", raising))
        assert type(caught.value) is kind

    def test_a_process_that_is_killed_is_no_bad_input(self, tagged: Any) -> None:
        """The kernel does so when memory runs out, and another time may do."""
        dying = "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n    available"
        with pytest.raises(subprocess.CalledProcessError, match="SIGKILL"):
            tagged(("runtime.py", "    available", dying))

    def test_it_ends_when_whoever_started_it_is_killed(self, shelf: Shelf) -> None:
        found = shelf.settings()
        sleeping = "    import time\n    time.sleep(600)\n    available"
        plan = shelf.plan(shelf.plant(("runtime.py", "    available", sleeping)), found)
        code = "import sys\nfrom wwts_ops import night, settings\nnight.tag_shard(settings.load(), sys.argv[1], 0)"
        parent = subprocess.Popen(
            [sys.executable, "-c", code, plan.run_key], env=environment(found), stderr=subprocess.DEVNULL
        )
        try:
            child = _child(parent, seconds=300)
        finally:
            parent.kill()
            parent.wait()
        child.wait(300)
        assert not child.is_running()


def _child(parent: subprocess.Popen[bytes], seconds: float) -> psutil.Process:
    """The process that ``parent`` started, once it runs our code."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = psutil.Process(parent.pid).children()
        if found and found[0].num_threads() > 1:
            return found[0]
        time.sleep(0.1)
    pytest.fail("it started no process")


class TestPlan:
    def test_one_of_an_earlier_release_is_read_without_its_code(self, shelf: Shelf) -> None:
        plan = shelf.plan(shelf.plant(CAUTIOUS), shelf.settings())
        header = json.loads(plan.to_json())
        assert header["code_sha256"] == plan.code_sha256
        del header["code_sha256"], header["away_since"]
        assert Plan.from_json(json.dumps(header)) == replace(plan, code_sha256="", away_since="")


class TestRollback:
    def test_the_alias_moves_the_code_with_it(self, shelf: Shelf) -> None:
        """Two versions of the same weights, registered in a real MLflow by two releases."""
        from mlflow import MlflowClient

        found = shelf.settings(forced_review=())
        labels = registration._embedded_labels(found)
        wanted = tuple(label for label in labels if label.label_id in shelf.tagger.label_ids)
        first = registration.register(found, registration.Candidate(shelf.tagger, wanted, "this release"))
        shelf.register(found, CAUTIOUS)
        second = registry.resolve(found, "2")
        assert first.sha256 == second.sha256
        assert first.code_sha256 == registration.code_sha256() != second.code_sha256

        client = MlflowClient(found.resolved_tracking_uri)
        expected = {1: SURE, 2: CAREFUL}
        for number, version in enumerate((1, 2, 1)):
            client.set_registered_model_alias(found.model_name, "champion", version)
            photo = next((shelf.folder / "图库").rglob("a1*.jpg"))
            photo.write_bytes(photo.read_bytes() + b"%d" % number)  # bytes behind the picture: another content
            for path in (shelf.folder / "图库").rglob("*.*"):
                os.utime(path, (1_700_000_000 + number,) * 2)
            (run_key,) = one_night(found, DAY + timedelta(days=number))["run_keys"]
            assert decisions(found, run_key) == {(*expected[version], str(version))}
            pinned = planning.read(Store.of(found), run_key)
            assert pinned.code_sha256 == {1: first, 2: second}[version].code_sha256

        shutil.rmtree(found.state_dir / "models")
        assert registration.code_sha256(registry.code(found, second) / "wwts_ops") == second.code_sha256
        assert "if False" in (registry.code(found, second) / "wwts_ops" / "decisions.py").read_text(encoding="utf-8")
