"""Which commit a row names: ours, never that of a checkout which merely surrounds the installed package."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from wwts_ops import provenance


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """The module as it lies in a folder of a fresh repository, committed there."""
    monkeypatch.delenv("WWTS_GIT_SHA", raising=False)

    def install(folder: str) -> ModuleType:
        path = tmp_path / folder / "wwts_ops" / "provenance.py"
        path.parent.mkdir(parents=True)
        shutil.copyfile(str(provenance.__file__), path)
        git(tmp_path, "init", "-q")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", "first")
        spec = importlib.util.spec_from_file_location("provenance_of_a_test", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return install


def test_a_checkout_names_its_commit_and_says_when_files_differ(
    installed: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    module = installed("plugins")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert module.git_sha() == commit
    with (tmp_path / "plugins" / "wwts_ops" / "provenance.py").open("a") as file:
        file.write("\n")
    module.git_sha.cache_clear()
    assert module.git_sha() == f"{commit}-dirty"


def test_a_wheel_inside_somebody_elses_checkout_names_no_commit(installed: Callable[[str], ModuleType]) -> None:
    assert installed("venv/lib/python3/site-packages").git_sha() is None


def test_an_image_without_git_names_the_commit_it_was_built_from(
    installed: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WWTS_GIT_SHA", "abc123")
    assert installed("plugins").git_sha() == "abc123"
