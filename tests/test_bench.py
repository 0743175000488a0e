"""The benchmarks run; what they measure is for people to read, never for a test to judge."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def _bench(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_speed() -> None:
    printed = _bench("eval.bench", "speed", "--images", "8", "--rounds", "1")
    assert len(re.findall(r"\d\.\d\d×", printed)) == 4


def test_memory() -> None:
    printed = _bench("eval.bench", "memory", "--small", "4", "--large", "8")
    assert re.search(r"ratio\s+\S?\s+\d\.\d{3}", printed)


def test_orchestration() -> None:
    printed = _bench("eval.bench", "orchestration", "--count", "5", "--rounds", "1")
    assert re.search(r"[+-]\d+\.\d%", printed)


def test_planning() -> None:
    assert "MB" in _bench("eval.bench_planning", "1000")
