"""The MLflow model registry: who is champion, which versions there are, their files in the local cache."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from wwts_ops import cache, database, registration, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger, load
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

CHAMPION = "champion"


@dataclass(frozen=True)
class Listed:
    """A line of `wwts models list`; hashes are empty for versions that wwts did not register.

    ``gate`` is what the gate last said: ``passed``, ``failed``, ``pending``, or nothing yet.
    """

    version: str
    aliases: tuple[str, ...]
    sha256: str
    backbone_sha256: str
    registered: str
    gate: str = ""


@dataclass(frozen=True)
class Resolved:
    """The champion of a night.

    Attributes:
        model: the version.
        away_since: with MLflow away, when it last named this champion (UTC); None when it did so just now.
    """

    model: ModelVersion
    away_since: datetime | None = None


def champion(settings: Settings) -> ModelVersion | None:
    """The version that alias ``champion`` names now, or None.

    Raises:
        UnavailableError: when MLflow does not answer.
    """
    found = _asked(settings)
    _remember(settings, found)
    return found


def champion_or_cached(settings: Settings) -> Resolved:
    """The champion for a night, its files in the cache; with MLflow away, the one that it last named here.

    With an empty registry, the embedded default is registered as champion first.

    Raises:
        UnavailableError: when MLflow does not answer, and none was remembered or its files are not whole.
        WwtsError: when there is no champion, or what MLflow holds is not what was registered.
    """
    try:
        found = _asked(settings)
    except UnavailableError as away:
        return _remembered(settings, away)
    model = found or ensure_champion(settings)
    _remember(settings, model)
    provide(settings, model)
    return Resolved(model)


def exists(settings: Settings) -> bool:
    """Whether there is a registry to ask: looking at a picture should not create one."""
    uri = settings.resolved_tracking_uri
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def versions(settings: Settings) -> list[Listed]:
    """All registered versions, newest first.

    Raises:
        UnavailableError: when MLflow does not answer.
    """
    if not exists(settings):
        return []
    with tracking.connected(settings) as client:
        aliases: dict[str, list[str]] = {}
        for model in client.search_registered_models(f"name='{settings.model_name}'"):
            for alias, version in model.aliases.items():
                aliases.setdefault(str(version), []).append(alias)
        found = client.search_model_versions(f"name='{settings.model_name}'")
        return [
            Listed(
                version=str(entry.version),
                aliases=tuple(sorted(aliases.get(str(entry.version), []))),
                sha256=entry.tags.get("model_sha256", ""),
                backbone_sha256=entry.tags.get("backbone_sha256", ""),
                registered=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
                gate=entry.tags.get("gate", ""),
            )
            for entry in sorted(found, key=lambda entry: -int(entry.version))
        ]


def backbone_names(settings: Settings) -> dict[str, str]:
    """What the backbones of the registered versions are called, by their SHA-256, as their newest thousand runs say.

    Raises:
        UnavailableError: when MLflow does not answer.
    """
    if not exists(settings):
        return {}
    with tracking.connected(settings) as client:
        experiment = client.get_experiment_by_name(registration.EXPERIMENT)
        runs = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
        told = ((run.data.tags.get("backbone_sha256"), run.data.params.get("backbone")) for run in runs)
        return {sha256: name for sha256, name in told if sha256 and name}


def ensure_champion(settings: Settings) -> ModelVersion:
    """The champion; with an empty registry, the embedded default is registered as one first.

    Raises:
        UnavailableError: when MLflow does not answer.
        WwtsError: when versions exist but none is champion: only a person can say which one to use.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    # Two first nights on one machine register one default, not two.
    with cache.locked(settings.state_dir / ".registry.lock"), tracking.connected(settings) as client:
        found = _champion(client, settings.model_name) or _first(client, settings)
    _remember(settings, found)
    return found


def _first(client: Any, settings: Settings) -> ModelVersion:
    versions = sorted(client.search_model_versions(f"name='{settings.model_name}'"), key=lambda v: int(v.version))
    embedded = [entry for entry in versions if registration.EMBEDDED_TAG in entry.tags]
    if len(embedded) != len(versions):
        raise WwtsError(
            f"Model {settings.model_name} has versions but no alias '{CHAMPION}'; "
            "set it in MLflow on the version that should tag."
        )
    if not versions:
        _refuse_an_emptied_registry(settings)
    first = ModelVersion.of(embedded[0]) if embedded else registration.register_embedded(settings)
    client.set_registered_model_alias(settings.model_name, CHAMPION, first.version)
    log.info("champion_set", model=settings.model_name, version=first.version)
    return first


def _refuse_an_emptied_registry(settings: Settings) -> None:
    """The embedded default is for a new shop; one whose MLflow was lost would get it back without any gate."""
    before = _recorded_champion(settings)
    if before is not None:
        raise WwtsError(
            f"MLflow at {tracking.without_password(settings.resolved_tracking_uri)} has no version of "
            f"{settings.model_name}, but version {before} was champion. Restore MLflow or mend MLFLOW_TRACKING_URI; "
            "to begin anew, set another WWTS_MODEL_NAME."
        )


def _recorded_champion(settings: Settings) -> str | None:
    """The champion by our own audit; None when it knows of none, or cannot be asked."""
    if not database.exists(settings):
        return None
    moves = database.alias_moves
    champions = sa.select(moves.c.to_version).where(
        moves.c.model_name == settings.model_name, moves.c.alias == CHAMPION
    )
    try:
        with database.transaction(settings) as connection:
            if not sa.inspect(connection).has_table(moves.name):
                return None
            found: str | None = connection.execute(champions.order_by(moves.c.number.desc()).limit(1)).scalar()
            return found
    except UnavailableError as error:
        log.warning("audit_not_asked", reason=str(error))
        return None


def resolve(settings: Settings, version: str | None) -> ModelVersion:
    """Version number ``version``, or the champion.

    Raises:
        WwtsError: when there is no such version.
        UnavailableError: when MLflow does not answer.
    """
    if version is None:
        return ensure_champion(settings)
    with tracking.connected(settings) as client:
        return ModelVersion.of(tracking.entry(client, settings.model_name, version))


def fetch(settings: Settings, model: ModelVersion) -> Tagger:
    """The tagger's files in the local cache, verified; downloaded when they are not there, or damaged.

    Raises:
        WwtsError: when what MLflow holds is not what was registered; the cache stays as it was.
        UnavailableError: when MLflow does not answer.
    """

    def fill(folder: Path) -> None:
        with tracking.connected(settings) as client:
            _download_tagger(client, model, folder)

    return cache.kept(_tagger_folder(settings, model), lambda folder: _tagger(folder, model), fill)


def provide(settings: Settings, model: ModelVersion) -> None:
    """Puts all that tagging with a version takes into the cache.

    Raises:
        WwtsError: when what MLflow holds is not what was registered.
        UnavailableError: when MLflow does not answer.
    """
    fetch(settings, model)
    if model.code_sha256:
        code(settings, model)


def code(settings: Settings, model: ModelVersion) -> Path:
    """A folder that holds the package ``wwts_ops`` as it was packed with a version: the closure of recognition.

    In the local cache, verified; downloaded when it is not there, or damaged. The running code is not asked for.

    Raises:
        WwtsError: when nobody noted the code's hash, or what MLflow holds is not what was registered.
        UnavailableError: when MLflow does not answer.
    """
    if not model.code_sha256:
        raise WwtsError(f"{model} has no tag code_sha256: nobody knows its code. Register it again.")

    def fill(folder: Path) -> None:
        if model.code_sha256 == registration.code_sha256():
            registration.stage_code(folder)
            return
        with tracking.connected(settings) as client:
            _download_code(client, model, folder)

    return cache.kept(_code_folder(settings, model), lambda folder: _code(folder, model), fill)


def _asked(settings: Settings) -> ModelVersion | None:
    with tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        return _champion(client, settings.model_name)


def _champion(client: Any, name: str) -> ModelVersion | None:
    entry = tracking.found(client.get_model_version_by_alias, name, CHAMPION)
    return None if entry is None else ModelVersion.of(entry)


# ------------------------------------------------------------------ from MLflow


def _download_tagger(client: Any, model: ModelVersion, folder: Path) -> None:
    with _downloaded(client, model) as path:
        found = [entry.parent for entry in path.rglob("tagger.json")]
        if not found:
            raise WwtsError(f"{model} holds no tagger; its upload was cut off. Register it again.")
        shutil.copytree(found[0], folder, dirs_exist_ok=True)
    try:
        load(folder)
    except WwtsError as error:
        # Its own advice is for the cache, which is not what is damaged here.
        what = str(error).replace(f"{folder}/", "").replace(f"{folder}", "it").partition("; delete")[0]
        raise WwtsError(f"MLflow holds damaged files of {model} ({what}); register it again.") from error


def _download_code(client: Any, model: ModelVersion, folder: Path) -> None:
    with _downloaded(client, model, "code") as path:
        package = path / "wwts_ops"
        if not package.is_dir():
            raise WwtsError(f"{model} holds no code; its upload was cut off. Register it again.")
        # What Python compiled of it somewhere else would be run without a look at the source.
        shutil.copytree(package, folder / "wwts_ops", ignore=shutil.ignore_patterns("__pycache__"))


@contextmanager
def _downloaded(client: Any, model: ModelVersion, below: str = "") -> Iterator[Path]:
    """What MLflow holds of a version, or of folder ``below`` of it, for as long as the block lasts.

    Raises:
        WwtsError: when its upload did not end, or its files are gone.
    """
    from mlflow import artifacts

    entry = tracking.entry(client, model.name, model.version)
    # A version can be registered by hand while its files are still on their way. `model_id` is not kept by servers.
    logged = re.fullmatch(r"models:/(m-\w+)", entry.source or "")
    status = client.get_logged_model(logged[1]).status if logged else entry.status
    if status != "READY":
        raise WwtsError(f"{model} is not whole: MLflow calls its upload {status}. Register it again.")
    uri = f"models:/{model.name}/{model.version}"
    # Asked for what is not there, a server says what it also says when it is unwell.
    names = {file.path.rpartition("/")[2] for file in artifacts.list_artifacts(artifact_uri=uri)}
    if not names or below not in ("", *names):
        raise WwtsError(f"{model} has lost its files {below} in MLflow; register it again.")
    with tempfile.TemporaryDirectory(prefix="wwts-fetch-") as folder:
        yield Path(artifacts.download_artifacts(artifact_uri=f"{uri}/{below}".rstrip("/"), dst_path=folder))


# ------------------------------------------------------------------ the cache


def _tagger_folder(settings: Settings, model: ModelVersion) -> Path:
    return settings.state_dir / "models" / model.sha256


def _code_folder(settings: Settings, model: ModelVersion) -> Path:
    return settings.state_dir / "models" / f"code-{model.code_sha256}"


def _tagger(folder: Path, model: ModelVersion) -> Tagger:
    tagger = load(folder)
    if tagger.sha256 != model.sha256:
        raise WwtsError(f"The files of {model} are not those that were registered; register it again.")
    return tagger


def _code(folder: Path, model: ModelVersion) -> Path:
    if registration.code_sha256(folder / "wwts_ops") != model.code_sha256:
        raise WwtsError(f"The code of {model} is not what was registered with it; register it again.")
    return folder


def _is_cached(settings: Settings, model: ModelVersion) -> bool:
    """Whether all that tagging with a version takes is here and whole."""
    if cache.whole(_tagger_folder(settings, model), lambda folder: _tagger(folder, model)) is None:
        return False
    if model.code_sha256 in ("", registration.code_sha256()):
        return True
    return cache.whole(_code_folder(settings, model), lambda folder: _code(folder, model)) is not None


# ------------------------------------------------------------------ MLflow away


def _note(settings: Settings) -> tuple[Store, str]:
    return Store(str(settings.state_dir / "models")), f"champion-{settings.model_name}.json"


def _remember(settings: Settings, found: ModelVersion | None) -> None:
    """Notes what MLflow said last, whatever it was: a night without it must not tag with what was rolled back."""
    store, key = _note(settings)
    if found is None:
        store.delete(key)
        return
    registry = tracking.without_password(settings.resolved_tracking_uri)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    store.write_json(key, {"registry": registry, "model": asdict(found), "resolved_at": now})


def _remembered(settings: Settings, away: UnavailableError) -> Resolved:
    store, key = _note(settings)
    try:
        note = store.read_json(key)
        model, since = ModelVersion(**note["model"]), datetime.fromisoformat(note["resolved_at"])
        same = note["registry"] == tracking.without_password(settings.resolved_tracking_uri)
    except FileNotFoundError:
        raise UnavailableError(f"{away} No champion was confirmed on this machine before.") from away
    except (WwtsError, KeyError, TypeError, ValueError) as error:
        raise UnavailableError(f"{away} {store.path(key)} is damaged, too ({error}).") from away
    if not same or model.name != settings.model_name:
        raise UnavailableError(f"{away} The champion remembered here is that of another registry.") from away
    if not _is_cached(settings, model):
        raise UnavailableError(f"{away} The champion remembered here, {model}, is not whole in the cache.") from away
    log.warning("champion_from_cache", version=model.version, resolved_at=since.isoformat(), why=str(away))
    return Resolved(model, since)
