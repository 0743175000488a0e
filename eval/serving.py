"""A tagger in a child process under the code that was packed with it: what is measured is what would be served.

The running process has imported its own code already, so it could only measure another version's weights, not that
version. Parent and child speak through pipes in frames of JSON and bytes (`eval.serving_child`); nothing is pickled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import IO, Any

import numpy as np

from eval import serving_child
from eval.serving_child import Frame, Header
from wwts_ops import registration, registry, taxonomy
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tagger import Tagger
from wwts_ops.taxonomy import Taxonomy
from wwts_ops.tracking import ModelVersion

Array = np.ndarray[Any, Any]

#: Pictures, and rows, of one request: so much lies in the child's memory at once.
_PICTURES, _ROWS = 16, 256
#: Seconds for the child to import and load; for one request. Far beyond what either takes on a busy machine.
_START_S, _ANSWER_S = 300.0, 300.0
#: Seconds for a child to end once it has hung up.
_END_S = 10.0
#: Of what the child said, as much is told when it dies.
_TOLD_LINES, _TOLD_BYTES = 8, 4000
#: Variables that recognising needs none of; some hold passwords, and the packed code is not the running code.
_WITHHELD = ("WWTS_", "MLFLOW_", "AIRFLOW", "AWS_", "PYTHON")


@dataclass(frozen=True)
class Subject:
    """What is to be served.

    Attributes:
        name: as people know it, such as ``wwts-tagger version 3``.
        tagger: its files, verified.
        code: folder with the package ``wwts_ops`` that was packed with it.
    """

    name: str
    tagger: Tagger
    code: Path


@dataclass(frozen=True)
class Unreadable:
    """A picture that the code rejected; ``reason`` as in `wwts_ops.images.REASONS`."""

    reason: str


@dataclass(frozen=True)
class Prediction:
    """What the tagger makes of one embedding.

    Attributes:
        label_ids: the first five tags, best first; fewer when labels are switched off.
        scores: of each, 0–1.
        decision: ``auto``, ``review`` or ``forced_review``.
    """

    label_ids: tuple[str, ...]
    scores: tuple[float, ...]
    decision: str


def of_version(settings: Settings, model: ModelVersion) -> Subject:
    """A registered version, with the code that was packed with it.

    Raises:
        WwtsError: naming the version, when its files or its code are not those that were registered.
        UnavailableError: when MLflow does not answer.
    """
    name = f"{model.name} version {model.version}"
    try:
        return Subject(name, registry.fetch(settings, model), registry.code(settings, model))
    except UnavailableError:
        raise
    except WwtsError as error:
        raise WwtsError(f"{name} cannot be measured: {error}") from error


def embedded(settings: Settings, folder: Path) -> Subject:
    """The embedded default without any registry; the running code is staged into ``folder``."""
    registration.stage_code(folder)
    return Subject("the embedded default", registration.embedded(settings), folder)


class Serving:
    """A child process that serves one tagger; use as a context manager, by one thread at a time.

    Raises (all methods):
        WwtsError: naming the tagger, when it cannot be loaded or its process ends by itself.
        UnavailableError: when its process is killed or does not answer in time.
    """

    #: What the network runs on, such as ``CPU``; known once the child has started.
    device: str = ""

    def __init__(self, subject: Subject, names: Taxonomy, settings: Settings, answer_s: float = _ANSWER_S) -> None:
        self.subject = subject
        self._names, self._settings, self._answer_s = names, settings, answer_s
        self._process: subprocess.Popen[bytes]
        self._said: IO[bytes]
        self._late = False

    def __enter__(self) -> Serving:
        self._said = tempfile.TemporaryFile(prefix="wwts-serving-")
        try:
            self._process = subprocess.Popen(
                # -I: neither the folder it is called from nor the caller's variables change what it imports.
                [sys.executable, "-I", "-B", serving_child.__file__, str(self.subject.code)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env={name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)},
            )
        except OSError:
            self._said.close()
            raise
        try:
            self._load()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            _close(stream)
        self._said.close()

    def embed(self, pictures: Iterable[bytes]) -> Iterator[Array | Unreadable]:
        """``float16 [dimension]`` of each encoded picture, in order; taken from ``pictures`` as they are needed."""
        waiting, dimension = iter(pictures), self.subject.tagger.recipe.dimension
        while batch := list(islice(waiting, _PICTURES)):
            header, (vectors,) = self._ask({"op": "embed"}, batch)
            rejected: dict[str, str] = header["rejected"]
            rows = iter(np.frombuffer(vectors, "<f2").reshape(-1, dimension))
            for place in range(len(batch)):
                reason = rejected.get(str(place))
                yield next(rows) if reason is None else Unreadable(reason)

    def predict(self, vectors: Array) -> list[Prediction]:
        """One prediction a row of ``float16 [n, dimension]``, by the packed head, thresholds and rules."""
        found: list[Prediction] = []
        for start in range(0, len(vectors), _ROWS):
            rows = np.ascontiguousarray(vectors[start : start + _ROWS], dtype="<f2")
            header, _ = self._ask({"op": "predict"}, [rows.tobytes()])
            found += [_prediction(row) for row in header["rows"]]
        return found

    def time(self, picture: bytes) -> float | Unreadable:
        """Seconds from encoded bytes to Chinese tags, by the child's own clock."""
        header, _ = self._ask({"op": "time"}, [picture])
        return Unreadable(header["rejected"]) if "rejected" in header else float(header["seconds"])

    def _load(self) -> None:
        found = self._settings
        header = {
            "op": "load",
            "tagger": str(self.subject.tagger.folder),
            "taxonomy": self._names.version,
            "forced_categories": list(self._names.forced_categories),
            "device": found.device,
            "top_k": found.top_k,
            "max_pixels": found.max_pixels,
        }
        about, _ = self._exchange(header, [taxonomy.to_csv(self._names)], _START_S)
        if about["sha256"] != self.subject.tagger.sha256:
            raise WwtsError(f"{self.subject.name} changed on disk while it was loaded; measure it again.")
        self.device = about["device"]

    def _ask(self, header: Header, blobs: Sequence[bytes]) -> Frame:
        return self._exchange(header, blobs, self._answer_s)

    def _exchange(self, header: Header, blobs: Sequence[bytes], seconds: float) -> Frame:
        """One request and its answer; a child that takes longer is killed, which ends the waiting."""
        assert self._process.stdin
        assert self._process.stdout
        timer = Timer(seconds, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            serving_child.write_frame(self._process.stdin, header, blobs)
            answer = serving_child.read_frame(self._process.stdout)
        except (OSError, EOFError):
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            raise self._died(seconds)
        if "refused" in answer[0]:
            raise WwtsError(f"{self.subject.name} cannot be served: {answer[0]['refused']}")
        return answer

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _died(self, seconds: float) -> WwtsError:
        code = self._exit_code()
        if self._late:
            return UnavailableError(f"{self.subject.name} did not answer within {seconds:g} s; measure it again later.")
        said = self._last_words()
        if code < 0:
            return UnavailableError(
                f"The process that served {self.subject.name} was killed (signal {-code}), perhaps for want of memory; "
                f"measure it again. It said last:\n{said}"
            )
        return WwtsError(
            f"{self.subject.name} does not run under the code packed with it (exit code {code}); "
            f"register it again. It said last:\n{said}"
        )

    def _exit_code(self) -> int:
        """Of a child that has closed its pipes: it may still be writing its traceback, or hang."""
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _last_words(self) -> str:
        end = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, end - _TOLD_BYTES))
        lines = self._said.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_TOLD_LINES:]) or "(nothing)"


def _prediction(row: Header) -> Prediction:
    label_ids, scores = zip(*row["tags"], strict=True) if row["tags"] else ((), ())
    return Prediction(tuple(label_ids), tuple(scores), row["decision"])


def _close(stream: IO[bytes] | None) -> None:
    """Closes a pipe; what a dead child did not read any more is no failure."""
    if stream is None:
        return
    try:
        stream.close()
    except BrokenPipeError:
        return
