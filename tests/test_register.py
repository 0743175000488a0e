"""`wwts models register`: weights that packages carry become a version, which only the gate makes champion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from code_shelf import CAUTIOUS, changed, environment
from environment import clean
from typer.testing import CliRunner

import wwts_ops
from wwts_ops import backbones, registration, registry, settings, tracking
from wwts_ops.cli import app
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tagger import Tagger

#: The smallest that there is.
SMALL = "lite:lite0@64"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Iterator[Settings]:
    """An empty registry, the default's files in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        made = settings.load(store=str(tmp_path_factory.mktemp("register") / "store"))
        patch.setenv("WWTS_STORE", made.store)
        shutil.copytree(embedded_tagger.folder, made.state_dir / "models" / embedded_tagger.folder.name)
        yield made


def register(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["models", "register", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def entry(shop: Settings, version: str) -> Any:
    with tracking.connected(shop) as client:
        return client.get_model_version(shop.model_name, version)


@pytest.fixture(scope="module")
def told(shop: Settings) -> str:
    """What the first registration of the small one said, in an empty registry."""
    return register(SMALL)


def test_it_is_a_version_without_an_alias_beside_the_default(shop: Settings, told: str) -> None:
    second, first = registry.versions(shop)
    assert (first.version, first.aliases, second.version, second.aliases) == ("1", ("champion",), "2", ())
    assert "wwts-tagger version 2 is new" in told
    assert SMALL in told
    assert """wwts run evaluate_model --conf '{"version": "2"}'""" in told
    found = registry.fetch(shop, registry.resolve(shop, "2"))
    assert found.recipe == backbones.get(SMALL).recipe
    assert len(found.label_ids) == 1000


def test_it_never_becomes_champion_by_itself(shop: Settings, told: str) -> None:
    """The mark of what a new shop starts with would make it so, once the alias is lost."""
    assert registration.EMBEDDED_TAG in entry(shop, "1").tags
    assert registration.EMBEDDED_TAG not in entry(shop, "2").tags


def test_again_it_is_the_same_version(shop: Settings, told: str) -> None:
    assert "wwts-tagger version 2 was registered before, with this code" in register(SMALL)
    default = register()
    assert "wwts-tagger version 1 was registered before" in default
    assert "It is the champion." in default
    assert [found.version for found in registry.versions(shop)] == ["2", "1"]


def test_after_a_code_change_the_same_weights_are_a_new_version(shop: Settings, told: str, tmp_path: Path) -> None:
    copy = tmp_path / "release"
    shutil.copytree(Path(wwts_ops.__file__).parent, copy / "wwts_ops", ignore=shutil.ignore_patterns("__pycache__"))
    changed(copy / "wwts_ops", CAUTIOUS)
    command = [sys.executable, "-P", "-c", "from wwts_ops.cli import main; main()", "models", "register", SMALL]
    given = {**environment(shop), "PYTHONPATH": str(copy)}
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is new" in done.stdout
    # What MLflow does is no error: on standard error, Airflow's log of a task would call it one.
    assert not [line for line in done.stderr.splitlines() if " INFO mlflow" in line or "version of this model" in line]
    assert "Created version" not in done.stderr
    newest = registry.versions(shop)[0]
    before, after = entry(shop, "2").tags, entry(shop, newest.version).tags
    assert after["model_sha256"] == before["model_sha256"]
    assert after["code_sha256"] != before["code_sha256"]
    assert newest.aliases == ()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("resnest", r"no backbone 'resnest'.*efficientnet-lite2.*lite:"),
        ("lite:lite7@224", r"'lite7@224' is no view"),
        ("torchvision:resnet50", r"comes without weights.*wwts models import"),
    ],
)
def test_a_name_that_cannot_be_registered_is_told(shop: Settings, told: str, name: str, word: str) -> None:
    before = registry.versions(shop)
    with pytest.raises(WwtsError, match=word):
        registration.register_backbone(shop, name)
    assert registry.versions(shop) == before


def test_the_setting_is_what_a_new_shop_starts_with(clean_environment: None, tmp_path: Path) -> None:
    with pytest.raises(WwtsError, match="no backbone 'resnest'"):
        registration.embedded(settings.load(store=str(tmp_path / "store"), backbone="resnest"))
