"""The speed of a tagger as it is served: what is counted, that both take their turns, and the command's answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import served_taggers
from environment import plain
from served_taggers import NAMES, SLOW, photographs, subject

from eval import latency
from eval.reports import LatencyReport
from eval.serving import Serving, Unreadable
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tagger import Tagger

Make = Callable[..., Settings]


class Clock:
    """Stands for a tagger whose times are known: those it is given, one after another, once warm."""

    device = "CPU"

    def __init__(self, name: str, log: list[tuple[str, bytes]], times: Sequence[float] = ()) -> None:
        self.name, self._log, self._times = name, log, iter(times)

    def time(self, picture: bytes) -> float | Unreadable:
        self._log.append((self.name, picture))
        return Unreadable("truncated") if picture == b"broken" else next(self._times, 1.0)


class TestWhatIsCounted:
    def test_medians_over_repeats_of_percentiles(self) -> None:
        rounds = np.random.default_rng(0).gamma(2, 0.01, size=(3, 40))
        rounds[1] *= 50  # while somebody else used the machine
        report = latency.measure({"challenger": Clock("a", [], [0.0] * 40 + rounds.ravel().tolist())}, _pictures(40), 3)
        found = report.challenger
        for value, share in ((found.p50, 0.5), (found.p95, 0.95), (found.p99, 0.99)):
            assert value == pytest.approx(sorted(np.quantile(rounds, share, axis=1))[1])
        assert found.p95_repeats == pytest.approx(np.quantile(rounds, 0.95, axis=1))
        assert found.samples == tuple(rounds.ravel().tolist())
        assert found.images_per_second == pytest.approx(sorted(40 / rounds.sum(axis=1))[1])
        assert (report.images, report.champion) == (40, None)

    def test_both_take_turns_and_who_is_first_changes(self) -> None:
        log: list[tuple[str, bytes]] = []
        pictures = _pictures(3)
        latency.measure({"challenger": Clock("a", log), "champion": Clock("b", log)}, pictures, 2)
        warm, timed = log[:6], log[6:]
        assert {(name, picture) for name, picture in warm} == {(name, one) for name in "ab" for one in pictures}
        turns = [timed[start : start + 2] for start in range(0, 12, 2)]
        assert [turn[0][1] for turn in turns] == [*pictures, *pictures]
        assert all(turn[0][1] == turn[1][1] for turn in turns)
        assert ["".join(name for name, _ in turn) for turn in turns] == ["ab", "ba", "ab", "ba", "ab", "ba"]

    def test_what_one_cannot_read_is_left_out_for_both(self) -> None:
        log: list[tuple[str, bytes]] = []
        both = {"challenger": Clock("a", log), "champion": Clock("b", log)}
        report = latency.measure(both, [b"one", b"broken", b"two"], 1)
        assert report.champion is not None
        assert (report.images, len(report.challenger.samples), len(report.champion.samples)) == (2, 2, 2)
        with pytest.raises(WwtsError, match="None of the 1 pictures can be read"):
            latency.measure(both, [b"broken"], 1)

    def test_the_report_is_the_same_after_json(self) -> None:
        report = latency.measure({"challenger": Clock("a", [])}, _pictures(2), 2)
        assert LatencyReport.model_validate_json(report.model_dump_json()) == report

    @pytest.mark.parametrize(("total", "count"), [(10, 3), (10, 10), (3, 10), (1000, 100), (101, 100), (7, 1)])
    def test_evenly(self, total: int, count: int) -> None:
        chosen = latency.evenly(range(total), count)
        assert len(chosen) == min(total, count)
        gaps = np.diff(chosen)
        assert (gaps >= 1).all()
        assert len(chosen) < 2 or gaps.max() - gaps.min() <= 1

    def test_the_hardware_names_this_machine(self) -> None:
        cores = len(os.sched_getaffinity(0))
        told = latency.hardware("CPU")
        assert f"{cores} core" in told
        assert latency.hardware("NVIDIA X") == f"NVIDIA X, {told}"


def _pictures(count: int) -> list[bytes]:
    return [f"picture {number}".encode() for number in range(count)]


def test_a_slow_network_is_slow_beside_the_other_in_the_same_run(tmp_path: Path, make_settings: Make) -> None:
    settings = make_settings(device="cpu")
    slow = subject(served_taggers.save(tmp_path / "slow", SLOW), tmp_path / "code")
    quick = subject(served_taggers.save(tmp_path / "quick"), tmp_path / "code")
    with Serving(slow, NAMES, settings) as challenger, Serving(quick, NAMES, settings) as champion:
        report = latency.measure({"challenger": challenger, "champion": champion}, list(photographs(6)), 2)
    assert report.champion is not None
    # Some hundred times the arithmetic: no noise of a shared machine makes up for it.
    assert report.challenger.p95 > 3 * report.champion.p95
    assert report.challenger.p50 > 3 * report.champion.p50


class TestCommand:
    @pytest.fixture(scope="class")
    @staticmethod
    def shop(tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Path:
        """A store that knows the embedded default and no registry, and a folder of pictures."""
        folder = tmp_path_factory.mktemp("shop")
        models = folder / "store.state" / "models"
        shutil.copytree(embedded_tagger.folder, models / embedded_tagger.folder.name)
        for number, data in enumerate(photographs(6)):
            target = folder / "pictures" / f"架 {number % 2}" / f"{number}.JPG"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        (folder / "pictures" / "notes.txt").write_text("no picture")
        (folder / "pictures" / "z.jpg").write_bytes(b"cut")
        (folder / "empty").mkdir()
        return folder

    def run(self, shop: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = plain()
        return subprocess.run(
            [sys.executable, "-m", "eval.benchmark", *arguments],
            env={**kept, "WWTS_STORE": str(shop / "store"), "WWTS_DEVICE": "cpu", "COLUMNS": "100", **environment},
            cwd=shop,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def test_within_the_threshold(self, shop: Path) -> None:
        done = self.run(shop, "--image-dir", "pictures", "--threshold", "1000", "--repeats", "2")
        assert done.returncode == 0, done.stderr
        assert "6 images of 100 wanted, 1 unreadable left out, 2 repeats" in " ".join(done.stdout.split())
        assert "is within the threshold of 1000 s." in done.stdout
        assert max(len(line) for line in done.stdout.splitlines()) <= 100
        assert "the embedded default" in done.stdout
        assert not (shop / "store.state" / "mlflow.db").exists()
        assert not (shop / "store").exists()

    def test_over_the_threshold_and_as_json(self, shop: Path) -> None:
        done = self.run(shop, "--image-dir", "pictures", "--threshold", "0.00001", "--repeats", "1", "--json")
        assert done.returncode == 1, done.stderr
        report = LatencyReport.model_validate(json.loads(done.stdout))
        assert report.images == 6
        assert f"P95 of {report.challenger.p95:.3f} s is over the threshold of 1e-05 s." in done.stderr

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (("--image-dir", "gone", "--threshold", "1"), "gone is no folder"),
            (("--image-dir", "empty", "--threshold", "1"), "empty holds no images"),
            (("--image-dir", "pictures", "--threshold", "0"), "--threshold must be"),
            (("--image-dir", "pictures", "--threshold", "nan"), "--threshold must be"),
            (
                ("--image-dir", "pictures", "--threshold", "1", "--version", "3"),
                "no champion to measure version 3 beside",
            ),
            (("--image-dir", "pictures", "--threshold", "1", "--count", "0"), "--count"),
            (("--image-dir", "pictures"), "--threshold"),
        ],
    )
    def test_what_cannot_be_measured(self, shop: Path, given: Sequence[str], told: str) -> None:
        done = self.run(shop, *given)
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_wrong_setting(self, shop: Path) -> None:
        done = self.run(shop, "--image-dir", "pictures", "--threshold", "1", WWTS_DEVICE="toaster")
        assert done.returncode == 2
        assert "WWTS_DEVICE" in done.stderr
