"""MLflow as a server: one way to reach it, its errors told in one sentence, its experiments."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

T = TypeVar("T")

#: What MLflow answers when asked for a version or an alias that is not there, or is no number.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: MLflow's error codes that asking again does not change.
_LASTING = frozenset(
    {"BAD_REQUEST", "CUSTOMER_UNAUTHORIZED", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"}
)


#: Seconds to wait for an answer that only looks something up: a server that hangs costs a night half a minute.
ANSWER_SECONDS = 10
#: Seconds to wait where files go up or down: a server that keeps them in a bucket first moves them there itself.
TRANSFER_SECONDS = 60


@dataclass(frozen=True)
class ModelVersion:
    """A registered version, resolved once a run.

    Attributes:
        name: of the registered model.
        version: MLflow's number, as text.
        sha256: of the tagger (``model_sha256`` of the tags).
        backbone_sha256: which embeddings fit its head.
        code_sha256: of the recognition code packed with it; empty when nobody noted it.
    """

    name: str
    version: str
    sha256: str
    backbone_sha256: str
    code_sha256: str = ""

    def __str__(self) -> str:
        """As people call it."""
        return f"{self.name} version {self.version}"

    @classmethod
    def of(cls, entry: Any) -> ModelVersion:
        """From MLflow's own entity.

        Raises:
            WwtsError: when wwts did not register it.
        """
        tags = entry.tags
        try:
            hashes = tags["model_sha256"], tags["backbone_sha256"], tags.get("code_sha256", "")
        except KeyError as error:
            raise WwtsError(
                f"{entry.name} version {entry.version} was not registered by wwts (no tag {error}); it cannot tag."
            ) from error
        return cls(entry.name, str(entry.version), *hashes)


@contextmanager
def connected(settings: Settings, seconds: int = TRANSFER_SECONDS) -> Iterator[Any]:
    """A client of the configured server, which MLflow's own functions then speak to as well.

    Args:
        settings: which server.
        seconds: that it may take to answer a request, which is asked three times; ``MLFLOW_HTTP_REQUEST_TIMEOUT``
            and ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` come first.

    Raises:
        WwtsError: when MLflow refuses what was asked.
        UnavailableError: when it does not answer as it should.
    """
    # Four minutes of silence otherwise; Airflow tries again later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Nothing phones home from a shop; and its thread has made requests fail.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = settings.resolved_tracking_uri
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        with _borrowed(uri, seconds):
            yield mlflow.MlflowClient(tracking_uri=uri)
    # The causes are left out of the traceback: their own words hold the URI with its password.
    except MlflowException as error:
        if error.error_code in _LASTING:
            raise WwtsError(without_password(f"MLflow at {uri} refuses: {error}")) from None
        raise _unavailable(uri, error) from None
    except (SQLAlchemyError, OSError) as error:
        raise _unavailable(uri, error) from None


def experiment(client: Any, settings: Settings, name: str) -> str:
    """The id of experiment ``name``, made if absent."""
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    location = None
    if settings.resolved_tracking_uri.startswith(("sqlite", "postgresql", "mysql", "mssql")):
        # Without a server MLflow would put artifacts below whatever folder it happens to run in.
        location = (settings.state_dir / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


@dataclass
class _Loan:
    """What MLflow reads of the environment while it is ours: threads borrow it at once, and the last one gives it back.

    Attributes:
        lock: held while it is changed.
        uris: of all who have it now, the newest last.
        before: the variables as the first one found them.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    uris: list[str] = field(default_factory=list)
    before: dict[str, str | None] = field(default_factory=dict)


_LOAN = _Loan()
_URI, _TIMEOUT = "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT"


@contextmanager
def _borrowed(uri: str, seconds: int) -> Iterator[None]:
    """Points MLflow's functions to ``uri`` and says how long they wait, unless somebody else did.

    They read both at every request, and set the first one for child processes; afterwards both are as they were.
    """
    import mlflow

    with _LOAN.lock:
        if not _LOAN.uris:
            _LOAN.before = {name: os.environ.get(name) for name in (_URI, _TIMEOUT)}
            os.environ.setdefault(_TIMEOUT, str(seconds))
        _LOAN.uris.append(uri)
        mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        with _LOAN.lock:
            _LOAN.uris.remove(uri)
            mlflow.set_tracking_uri(_LOAN.uris[-1] if _LOAN.uris else _LOAN.before[_URI])
            if not _LOAN.uris and _LOAN.before[_TIMEOUT] is None:
                del os.environ[_TIMEOUT]


def found(ask: Callable[..., T], *given: Any) -> T | None:
    """What MLflow answers to ``ask`` of ``given``; None when there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*given)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


def entry(client: Any, name: str, version: str) -> Any:
    """MLflow's own record of a version.

    Raises:
        WwtsError: when there is none.
    """
    known = found(client.get_model_version, name, version)
    if known is None:
        raise WwtsError(f"Model {name} has no version {version}; see `wwts models list`.")
    return known


def _unavailable(uri: str, error: Exception) -> UnavailableError:
    return UnavailableError(without_password(f"MLflow at {uri} does not answer as it should: {error}"))


def without_password(text: str) -> str:
    """``text`` without the user, password or token of any URI in it."""
    return re.sub(r"(?i)(password=)[^&\s]*", r"\1***", re.sub(r"://[^/\s]*@", "://***@", text))
