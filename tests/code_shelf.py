"""Versions whose packed code is not the code that runs: a tiny tagger, a few photographs, and changed modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from environment import plain
from shard_shop import make_photos
from tiny_backbone import TINY

import wwts_ops
from wwts_ops import planning, registration, settings, tagger, taxonomy
from wwts_ops.planning import Pin, Plan, Request
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Head, Tagger
from wwts_ops.tracking import ModelVersion

DAY = date(2026, 3, 1)
#: Module, its text, another text: code that lets nothing through without a person, whatever the threshold.
CAUTIOUS = ("decisions.py", "if scores[first] >= self.thresholds[first]", "if False")

Change = tuple[str, str, str]


def changed(package: Path, *changes: Change) -> None:
    """Replaces text in files of a copy of the package."""
    for name, old, new in changes:
        path = package / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{name} has changed; find another place to change"
        path.write_text(text.replace(old, new), encoding="utf-8")


def make_tagger(folder: Path) -> Tagger:
    """A tiny network and six labels, each sure of whatever it says."""
    labels = tuple(label.label_id for label in taxonomy.embedded_labels()[:6])
    numbers = np.random.default_rng(3)
    head = Head(labels, np.zeros(6), numbers.normal(size=(6, TINY.recipe.dimension)), numbers.normal(size=6))
    return tagger.save(folder, TINY, TINY.network().state_dict(), head)


@dataclass(frozen=True)
class Shelf:
    """A shop below ``folder`` with one tagger."""

    folder: Path
    tagger: Tagger

    def settings(self, **given: Any) -> Settings:
        usual = {"store": str(self.folder / "store"), "catalog": str(self.folder / "图库"), "device": "cpu"}
        return settings.load(**{**usual, **given})

    def fill_catalog(self) -> None:
        make_photos(self.folder / "图库")

    def plant(self, *changes: Change) -> ModelVersion:
        """A version in the cache, as if fetched: running code with ``changes`` packed; MLflow knows nothing of it."""
        models = self.settings().state_dir / "models"
        packed = self.folder / "planted"
        registration.stage_code(packed)
        changed(packed / "wwts_ops", *changes)
        sha = registration.code_sha256(packed / "wwts_ops")
        shutil.copytree(packed, models / f"code-{sha}", dirs_exist_ok=True)
        shutil.rmtree(packed)
        shutil.copytree(self.tagger.folder, models / self.tagger.sha256, dirs_exist_ok=True)
        return ModelVersion("wwts-tagger", "3", self.tagger.sha256, self.tagger.backbone_sha256, sha)

    def plan(self, model: ModelVersion, found: Settings) -> Plan:
        """A plan over the whole catalog, pinned to ``model``."""
        store = Store.of(found)
        names = taxonomy.ensure(store, ())
        pin = Pin(model.name, model.version, model.sha256, model.backbone_sha256, names.version, model.code_sha256)
        made = planning.commit(store, planning.propose(store, found, Request(DAY, pin)))
        assert made is not None
        assert made.shards == 1
        return made

    def register(self, found: Settings, *changes: Change) -> None:
        """Registers the tagger in MLflow from a process that runs a copy of our code with ``changes``."""
        copy = self.folder / "release"
        ours = Path(wwts_ops.__file__).parent
        shutil.copytree(ours, copy / "wwts_ops", ignore=shutil.ignore_patterns("__pycache__"))
        changed(copy / "wwts_ops", *changes)
        code = (
            "import sys\nfrom pathlib import Path\nimport wwts_ops\n"
            "from wwts_ops import registration, settings, tagger, taxonomy\n"
            "assert Path(wwts_ops.__file__).is_relative_to(sys.argv[2])\n"
            "found = tagger.load(Path(sys.argv[1]))\n"
            "labels = tuple(one for one in taxonomy.embedded_labels() if one.label_id in found.label_ids)\n"
            "registration.register(settings.load(), registration.Candidate(found, labels, 'another release'))\n"
        )
        command = [sys.executable, "-P", "-c", code, str(self.tagger.folder), str(copy)]
        done = subprocess.run(
            command, env={**environment(found), "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        shutil.rmtree(copy)


def environment(found: Settings) -> Mapping[str, str]:
    """For another process of ours with the settings of a test."""
    kept = plain()
    given = {"WWTS_STORE": found.store, "WWTS_CATALOG": found.catalog, "WWTS_DEVICE": found.device}
    return {**kept, **given, "MLFLOW_TRACKING_URI": found.resolved_tracking_uri}


def decisions(found: Settings, run_key: str) -> set[tuple[str, str, str]]:
    """The distinct decisions of a run with their reasons and model versions."""
    store = Store.of(found)
    (key,) = (key for key in store.list("tags", ".parquet") if run_key in key)
    rows = store.read_table(key).to_pylist()
    assert rows
    return {(row["decision"], row["decision_reason"], row["model_version"]) for row in rows}
