"""A tagger in a child process: the numbers are those of its own packed code, and nothing it does harms the caller."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import served_taggers
from served_taggers import LABELS, NAMES, photographs, subject

from eval import serving_child
from eval.serving import Serving, Subject, Unreadable
from wwts_ops import images
from wwts_ops.decisions import Decider
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.runtime import OnnxEmbedder, Scorer
from wwts_ops.settings import Settings
from wwts_ops.tagger import Tagger
from wwts_ops.taxonomy import Taxonomy

Make = Callable[..., Settings]

#: Recognisers that a version might have been packed with.
_RECOGNIZER = """
import os, signal, sys, time
from wwts_ops.images import Rejected
class Recognizer:
    def __init__(self, *given): pass
    def __call__(self, data):
        {body}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return served_taggers.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Tagger) -> Subject:
    """With the running code, as it is."""
    return subject(tiny, tmp_path_factory.mktemp("code"))


def recognizer(body: str) -> str:
    return _RECOGNIZER.format(body=body)


def serve(made: Subject, settings: Settings, names: Taxonomy = NAMES, answer_s: float = 60) -> Serving:
    return Serving(made, names, settings, answer_s)


def living(pid: int) -> bool:
    try:
        # Where nobody asks for its exit code, a process that has ended stays a zombie.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class TestTheSameAsInOneProcess:
    def test_embeddings_and_what_is_rejected(self, whole: Subject, tiny: Tagger, make_settings: Make) -> None:
        photos = list(photographs(37))
        sent = [*photos[:20], b"<html>", *photos[20:36], photos[36][:400]]
        with serve(whole, make_settings(device="cpu")) as served:
            found = list(served.embed(sent))
        embed, recipe = OnnxEmbedder(tiny), tiny.recipe
        for place, (data, got) in enumerate(zip(sent, found, strict=True)):
            if place in (20, 37):
                continue
            crop = recipe.crop(images.decode(data, recipe.short_side, 10**8).rgb)
            assert not isinstance(got, Unreadable)
            assert got.dtype == np.float16
            np.testing.assert_array_equal(got, embed(crop[None])[0])
        assert (found[20], found[37]) == (Unreadable("not_an_image"), Unreadable("truncated"))

    def test_predictions(self, whole: Subject, tiny: Tagger, make_settings: Make) -> None:
        vectors = np.random.default_rng(3).normal(size=(600, 6)).astype(np.float16)
        expected = Decider(tiny.label_ids, tiny.thresholds, NAMES, 5)(Scorer(tiny)(vectors))
        with serve(whole, make_settings(device="cpu", top_k=1)) as served:
            found = served.predict(vectors)
            assert served.predict(vectors[:0]) == []
        assert len({one.decision for one in found}) == 2
        for got, wanted in zip(found, expected, strict=True):
            assert got.label_ids == tuple(tag.label_id for tag in wanted.tags)
            assert got.scores == tuple(tag.score for tag in wanted.tags)
            assert got.decision == wanted.decision

    def test_the_rules_in_force_are_those_it_is_given(self, whole: Subject, make_settings: Make) -> None:
        labels = (replace(NAMES.labels[0], enabled=False), replace(NAMES.labels[1], category_path="酒"))
        names = Taxonomy("t2", (*labels, *NAMES.labels[2:]), ("酒",))
        vectors = np.random.default_rng(4).normal(size=(200, 6)).astype(np.float16)
        with serve(whole, make_settings(device="cpu"), names) as served:
            found = served.predict(vectors)
        first = {one.label_ids[0]: one.decision for one in found}
        assert LABELS[0] not in {label_id for one in found for label_id in one.label_ids}
        assert first[LABELS[1]] == "forced_review"
        assert "forced_review" not in {decision for label_id, decision in first.items() if label_id != LABELS[1]}

    def test_a_limit_of_pixels_and_a_clock(self, whole: Subject, make_settings: Make) -> None:
        (photo,) = photographs(1)
        with serve(whole, make_settings(device="cpu", max_pixels=200 * 160)) as served:
            seconds = served.time(photo)
            assert isinstance(seconds, float)
            assert seconds > 0
            assert served.device == "CPU"
        with serve(whole, make_settings(device="cpu", max_pixels=200 * 160 - 1)) as served:
            assert served.time(photo) == Unreadable("too_many_pixels")
            assert list(served.embed([photo])) == [Unreadable("too_many_pixels")]


class TestItsOwnCode:
    def test_what_was_packed_is_what_answers(self, tiny: Tagger, tmp_path: Path, make_settings: Make) -> None:
        made = subject(tiny, tmp_path / "code", recognition=recognizer("raise Rejected('too_small', 'packed')"))
        decisions = tmp_path / "code" / "wwts_ops" / "decisions.py"
        text = decisions.read_text(encoding="utf-8")
        decisions.write_text(text.replace('"auto", "review"', '"packed", "review"'), encoding="utf-8")
        (photo,) = photographs(1)
        with serve(made, make_settings(device="cpu")) as served:
            assert served.time(photo) == Unreadable("too_small")
            vectors = np.random.default_rng(3).normal(size=(100, 6)).astype(np.float16)
            assert {one.decision for one in served.predict(vectors)} == {"packed", "review"}

    def test_without_packed_code_the_running_code_does_not_answer_for_it(
        self, tiny: Tagger, tmp_path: Path, make_settings: Make
    ) -> None:
        made = Subject("shelf version 7", tiny, tmp_path)
        with pytest.raises(WwtsError, match=r"shelf version 7 does not run under the code packed with it") as caught:
            serve(made, make_settings(device="cpu")).__enter__()
        assert "not imported from" in str(caught.value)

    def test_a_module_that_was_not_packed_is_missing(self, tiny: Tagger, tmp_path: Path, make_settings: Make) -> None:
        made = subject(tiny, tmp_path / "code")
        (tmp_path / "code" / "wwts_ops" / "decisions.py").unlink()
        with (
            pytest.raises(WwtsError, match=r"No module named 'wwts_ops.decisions'"),
            serve(made, make_settings()) as one,
        ):
            one.predict(np.zeros((1, 6), np.float16))

    def test_nothing_is_written_beside_it(self, whole: Subject) -> None:
        assert list(whole.code.rglob("__pycache__")) == []


class TestMisbehaving:
    @pytest.mark.parametrize(
        ("body", "kind", "told"),
        [
            ("raise RuntimeError('lens cap on')", WwtsError, "exit code 1.*RuntimeError: lens cap on"),
            ("sys.exit(7)", WwtsError, "exit code 7"),
            ("os.kill(os.getpid(), signal.SIGKILL)", UnavailableError, "killed .signal 9."),
            ("time.sleep(600)", UnavailableError, "did not answer within 2 s"),
        ],
    )
    def test_a_child_that_dies_is_told_by_name(
        self, tiny: Tagger, tmp_path: Path, make_settings: Make, body: str, kind: type, told: str
    ) -> None:
        made = subject(tiny, tmp_path / "code", recognition=recognizer(body))
        with serve(made, make_settings(device="cpu"), answer_s=2 if "sleep" in body else 300) as served:
            pid = served._process.pid
            with pytest.raises(WwtsError, match=f"(?s)shelf version 7.*{told}|{told}.*shelf version 7") as caught:
                served.time(b"x")
        assert type(caught.value) is kind
        assert not psutil.pid_exists(pid)

    def test_what_it_prints_is_no_answer(self, tiny: Tagger, tmp_path: Path, make_settings: Make) -> None:
        body = "os.write(1, b'noise' * 50_000); print('noise' * 50_000); sys.stdout.flush()"
        made = subject(tiny, tmp_path / "code", recognition=recognizer(body))
        with serve(made, make_settings(device="cpu")) as served:
            assert isinstance(served.time(b"x"), float)
            assert isinstance(served.time(b"x"), float)

    def test_it_sees_no_password(
        self, tiny: Tagger, tmp_path: Path, make_settings: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WWTS_DATABASE_URL", "postgresql+psycopg://u:secret@h/d")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        made = subject(tiny, tmp_path / "code", recognition=recognizer("raise RuntimeError(dict(os.environ))"))
        with serve(made, make_settings(device="cpu")) as served, pytest.raises(WwtsError, match="PATH") as caught:
            served.time(b"x")
        assert "secret" not in str(caught.value)

    def test_damaged_files_are_refused_by_name(self, tmp_path: Path, make_settings: Make) -> None:
        made = subject(served_taggers.save(tmp_path / "tagger"), tmp_path / "code")
        path = tmp_path / "tagger" / "head.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
        with pytest.raises(WwtsError, match=r"shelf version 7 cannot be served: .*head.safetensors is not the file"):
            serve(made, make_settings(device="cpu")).__enter__()

    def test_an_error_of_the_caller_ends_it_too(self, whole: Subject, make_settings: Make) -> None:
        served = serve(whole, make_settings(device="cpu"))
        with pytest.raises(KeyError), served:
            raise KeyError
        assert not psutil.pid_exists(served._process.pid)

    def test_it_ends_with_its_parent_however_that_ends(self, whole: Subject, make_settings: Make) -> None:
        code = (
            "import os, signal, sys, time\nfrom pathlib import Path\n"
            "from eval.serving import Serving, Subject\nfrom wwts_ops import settings, tagger, taxonomy\n"
            "made = Subject('shelf version 7', tagger.load(Path(sys.argv[1])), Path(sys.argv[2]))\n"
            "with Serving(made, taxonomy.embedded(()), settings.load(device='cpu')) as served:\n"
            "    print(served._process.pid, flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        command = [sys.executable, "-c", code, str(whole.tagger.folder), str(whole.code)]
        parent = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert parent.returncode == -signal.SIGKILL, parent.stderr
        end = time.monotonic() + 300
        while living(int(parent.stdout)):
            assert time.monotonic() < end
            time.sleep(0.05)


class TestFrames:
    def test_they_come_back(self) -> None:
        stream = io.BytesIO()
        frames = [({"op": "测"}, [b"", b"\0" * 70_000]), ({}, [])]
        for header, blobs in frames:
            serving_child.write_frame(stream, header, blobs)
        stream.seek(0)
        assert [serving_child.read_frame(stream) for _ in range(3)] == [*frames, None]

    def test_one_cut_anywhere_is_none(self) -> None:
        stream = io.BytesIO()
        serving_child.write_frame(stream, {"op": "x"}, [b"abc", b"d"])
        for length in range(1, len(stream.getvalue())):
            with pytest.raises(EOFError):
                serving_child.read_frame(io.BytesIO(stream.getvalue()[:length]))
