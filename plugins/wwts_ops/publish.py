"""What consumers read: one snapshot with one row an image, and the pointer that names it.

A snapshot is a function of what the done shards wrote, what plans delisted, the retag in force, the answers of people,
and whether the shop is live. So publishing twice gives the same snapshot, and of two publishers at once none loses the
other's update. The pointer is read before anything else: whoever moves it knows all that the one before knew.
"""

from __future__ import annotations

import hashlib
import json
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from wwts_ops import corrections, overlays, planning, published, retags, taxonomy, warehouse
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.overlays import Overlay
from wwts_ops.planning import Plan
from wwts_ops.provenance import user
from wwts_ops.published import POINTER
from wwts_ops.records import ANSWERS
from wwts_ops.retags import Retag
from wwts_ops.schemas import PUBLISHED, QUARANTINE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Pointer, Store
from wwts_ops.tagging import Shard, done_shards

log = structlog.get_logger(__name__)

_ATTEMPTS = 5
SHADOW = "shadow"
#: Rows sorted at once: about 200 MB.
_SORTED_ROWS = 100_000
#: Of which answers trainings have used (``answers``), and heard (``announced``); numbers, both.
TRAININGS = "trainings/state.json"


@dataclass(frozen=True)
class _Layers:
    """What lies over the rows of nights: the retag in force, and the answers up to a number, by whose names.

    ``distrusted``: whose tags are never the last live one.
    """

    retag: Retag | None
    distrusted: tuple[str, ...]
    answers: int
    names: str | None

    @property
    def told(self) -> dict[str, Any]:
        """The same, as the pointer says it."""
        key, own = (None, ()) if self.retag is None else (self.retag.key, self.retag.distrusted)
        # What a retag says itself is told by its key.
        distrusted = None if self.distrusted == tuple(sorted(own)) else list(self.distrusted)
        said = {"retag": key, "answers": self.answers, "answers_taxonomy_version": self.names}
        return {**said, "distrusted": distrusted}

    def covered(self, pointer: dict[str, Any]) -> bool:
        """Whether what consumers read has them all."""
        return all(pointer.get(name, 0 if name == "answers" else None) == told for name, told in self.told.items())


@dataclass(frozen=True)
class _Inputs:
    """All that a snapshot is a function of."""

    plans: tuple[Plan, ...]
    shards: tuple[Shard, ...]
    release: str
    layers: _Layers

    @property
    def snapshot(self) -> str:
        """Sorts by plan, and differs whenever the rows can."""
        parts = [self.release, *(shard.marker for shard in self.shards), *(plan.run_key for plan in self.plans)]
        # Without any, the name is the one that it was before there were answers and retags.
        parts += [f"{name}={told}" for name, told in self.layers.told.items() if told]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"s{self.plans[-1].sequence:06d}-{digest[:12]}"


def publish(store: Store, settings: Settings) -> dict[str, Any] | None:
    """Publishes what all done shards found, the retag in force over it, answers on top; None without any plan.

    Returns:
        The pointer: ``snapshot``, ``parts``, ``rows``, ``live``, ``pending``, ``answered`` (images with an answer),
        ``release``, ``model_name``, ``model_version`` and ``taxonomy_version`` (of the newest plan or retag),
        ``model_versions`` (rows by the version whose tag they have), ``retag`` (key), ``answers`` (the highest number),
        ``answers_taxonomy_version`` (whose names answered labels have), ``distrusted`` (``model_sha256`` of versions
        whose tags are never the last live one; None: as ``retag`` says), ``published_at``.

    Raises:
        UnavailableError: when the database does not answer, or other publishers were faster five times in a row.
        WwtsError: when the database has fewer answers than consumers read already.
    """
    release = record_release(store, settings)
    for _ in range(_ATTEMPTS):
        pointer = published.current(store)
        inputs = _inputs(store, settings, release)
        if not inputs.plans:
            return None
        _refuse_lost_answers(store, pointer, inputs.layers)
        if pointer is not None and pointer.value["snapshot"] == inputs.snapshot:
            return pointer.value
        value = _kept(store, inputs) or _write(store, settings, inputs)
        if pointer is not None:
            published.keep(store, pointer)
        if store.replace_pointer(POINTER, value, pointer):
            told = ("snapshot", "rows", "live", "pending", "answered", "release", "retag", "answers")
            log.info("published", **{name: value[name] for name in told})
            return value
    raise UnavailableError("Other publishers moved the pointer five times meanwhile; run the task again.")


def refresh(store: Store, settings: Settings) -> dict[str, Any] | None:
    """Publishes when answers, their names or the retag in force are not yet what consumers read: a look at pointers.

    Returns:
        The pointer as :func:`publish`; None when nothing is new, or nothing was published yet.

    Raises:
        UnavailableError, WwtsError: as :func:`publish`.
    """
    pointer = published.current(store)
    if pointer is None or _layers(store, settings).covered(pointer.value):
        return None
    return publish(store, settings)


def restore(store: Store, settings: Settings, snapshot: str) -> dict[str, Any]:
    """Lets consumers read the model's tags of ``snapshot`` again: puts its retag in force and publishes.

    Answers and nights that came later stay on top, and a version that was rolled back from since stays distrusted,
    unless its own retag is gone back to; without any of these it is ``snapshot`` itself, and only pointers move.

    Returns:
        The pointer as :func:`publish`.

    Raises:
        WwtsError: when that snapshot, or the retag that it was made from, no longer exists.
        UnavailableError: as :func:`publish`, and when others put retags in force as fast as this one.
    """
    found = published.kept(store, snapshot)
    if found is None:
        raise WwtsError(
            f"There is no snapshot {snapshot} in {store.root}; `wwts tags snapshots` lists those there are."
        )
    key = found.get("retag")
    for _ in range(_ATTEMPTS):
        before = retags.current(store)
        if (None if before is None else before.value["retag"]) == key or _put_back(store, key, before):
            break
    else:
        raise UnavailableError("Others put retags in force at this moment; run the command again.")
    value = publish(store, settings)
    if value is None:
        raise WwtsError(f"There is no plan in {store.root} any more; restore its folder runs/ from a backup.")
    log.info("tags_restored", wanted=snapshot, snapshot=value["snapshot"], retag=key, by=user())
    return value


def _put_back(store: Store, key: str | None, before: Pointer | None) -> bool:
    distrusted = set(retags.standing(store)[1])
    if key is not None:
        distrusted.discard(retags.read(store, key).model_sha256)
    return retags.put_in_force(store, key, before, distrusted)


def is_current(store: Store, settings: Settings) -> bool:
    """Whether consumers read all that is there; not when another process has just finished one more shard."""
    pointer = published.current(store)
    inputs = _inputs(store, settings, _last_release(store) or SHADOW)
    return not inputs.plans or (pointer is not None and pointer.value["snapshot"] == inputs.snapshot)


def record_release(store: Store, settings: Settings) -> str:
    """Writes down that the shop went live, or back to shadow: who, when, from what.

    A process without ``WWTS_RELEASE`` changes nothing: a run by hand in a bare shell must not take a shop offline.

    Returns:
        ``shadow`` or ``live``: what is in force now.

    Raises:
        UnavailableError: when others record releases as fast as this one.
    """
    for _ in range(_ATTEMPTS):
        number = len(store.list("releases", ".json")) + 1
        before = _last_release(store)
        release = settings.release or before or SHADOW
        if before == release:
            return release
        act = {
            "release": release,
            "before": before,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "by": f"{user()}@{socket.gethostname()}",
        }
        # Of two that record the same act at once, one does.
        if store.create(f"releases/{number:06d}.json", json.dumps(act, ensure_ascii=False).encode()):
            log.info("release_recorded", **act)
            return release
    raise UnavailableError("Others switch WWTS_RELEASE at this moment; agree on one and run the task again.")


def _last_release(store: Store) -> str | None:
    keys = store.list("releases", ".json")
    return str(store.read_json(keys[-1])["release"]) if keys else None


def announce(store: Store, settings: Settings) -> dict[str, int] | None:
    """Whether a training should hear now that enough answers wait for it; :func:`announced` notes that it has.

    Returns:
        ``new``: contents whose answer in force changed since the last that trainings used or were told of; ``upto``:
        the highest number. None while they are fewer than ``WWTS_RETRAIN_ANSWERS``.

    Raises:
        UnavailableError: when the database does not answer.
    """
    pointer = store.read_pointer(TRAININGS)
    state = {} if pointer is None else pointer.value
    since = max(state.get("answers", 0), state.get("announced", 0))
    upto = corrections.latest(settings)
    if upto - since < settings.retrain_answers:
        return None
    new = corrections.changed(corrections.frozen(settings, upto), since)
    return {"new": new, "upto": upto} if new >= settings.retrain_answers else None


def announced(store: Store, upto: int) -> None:
    """Notes that a training was told of all answers up to ``upto``.

    Raises:
        UnavailableError: when others note theirs as fast as this one.
    """
    for _ in range(_ATTEMPTS):
        pointer = store.read_pointer(TRAININGS)
        state = {"answers": 0, "announced": 0} | ({} if pointer is None else pointer.value)
        if state["announced"] >= upto or store.replace_pointer(TRAININGS, {**state, "announced": upto}, pointer):
            return
    raise UnavailableError(f"Others change {TRAININGS} at this moment; run the task again.")


def _inputs(store: Store, settings: Settings, release: str) -> _Inputs:
    plans = tuple(planning.claimed(store))
    shards = tuple(shard for plan in plans for shard in done_shards(store, plan))
    return _Inputs(plans, shards, release, _layers(store, settings))


def _layers(store: Store, settings: Settings) -> _Layers:
    answers = corrections.latest(settings)
    names = taxonomy.current(store) if answers else None
    return _Layers(*retags.standing(store), answers, names.version if names else None)


def _refuse_lost_answers(store: Store, pointer: Pointer | None, layers: _Layers) -> None:
    """A database that was lost, or is another one, must not take from consumers what people said."""
    there = 0 if pointer is None else int(pointer.value.get("answers", 0))
    if there > layers.answers:
        raise WwtsError(
            f"What is published holds answers up to number {there}, and the database only up to {layers.answers}: "
            "it is another one, or has lost some. Set WWTS_DATABASE_URL or restore the database from a backup; to "
            f"publish without them all the same, delete {store.path(POINTER)}."
        )


def _kept(store: Store, inputs: _Inputs) -> dict[str, Any] | None:
    """The pointer to a snapshot that is there whole, as of now."""
    found = published.kept(store, inputs.snapshot)
    if found is None:
        return None
    # One of before there were answers does not say that it has none.
    return {"answered": 0, "model_versions": {}, **found, **inputs.layers.told, "published_at": _now()}


def _now() -> str:
    # Finer than a second, for snapshots are listed in this order, and two small ones can be made within one.
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _write(store: Store, settings: Settings, inputs: _Inputs) -> dict[str, Any]:
    snapshot = inputs.snapshot
    key = f"published/{snapshot}/part-00000.parquet"
    with warehouse.connect() as con:
        _lay_nights(con, store, inputs)
        overlays.lay(con, store, _overlay(store, settings, inputs))
        rows = warehouse.write(store, key, overlays.rows(con, snapshot, _SORTED_ROWS), PUBLISHED)
        counts = overlays.counts(con)
    if rows != counts.pop("images"):
        # Nobody reads it: neither the pointer nor a _snapshot.json names it.
        raise WwtsError(f"{snapshot} would hold an image twice: a shard's part or the retag is damaged; tag it anew.")
    value = {
        "snapshot": snapshot,
        "parts": [key],
        "rows": rows,
        **counts,
        "pending": rows - counts["live"],
        "release": inputs.release,
        **_made_by(inputs),
        **inputs.layers.told,
        "published_at": _now(),
    }
    # Last: a snapshot that has this is whole, and going back to it is to move the pointer.
    store.write_json(published.kept_key(snapshot), value)
    return value


def _overlay(store: Store, settings: Settings, inputs: _Inputs) -> Overlay:
    layers = inputs.layers
    answers = ANSWERS.empty_table()
    if layers.answers:
        answers = corrections.in_force(corrections.frozen(settings, layers.answers))
    names = None if layers.names is None else taxonomy.read(store, layers.names)
    return Overlay(layers.retag, layers.distrusted, answers, names, inputs.release)


def _made_by(inputs: _Inputs) -> dict[str, str]:
    """What tags now: the newest plan's model, or that of a retag since."""
    newest, retag = inputs.plans[-1], inputs.layers.retag
    made: Plan | Retag = newest if retag is None or newest.sequence > retag.sequence else retag
    return {name: str(getattr(made, name)) for name in ("model_name", "model_version", "taxonomy_version")}


def _lay_nights(con: Any, store: Store, inputs: _Inputs) -> None:
    warehouse.view(con, "tags", store, [shard.part("tags") for shard in inputs.shards], TAGS)
    warehouse.view(con, "quarantine", store, [shard.part("quarantine") for shard in inputs.shards], QUARANTINE)
    con.execute("CREATE TABLE runs (run_id VARCHAR, sequence BIGINT, model_version VARCHAR)")
    runs = [(plan.run_key, plan.sequence, plan.model_version) for plan in inputs.plans]
    con.executemany("INSERT INTO runs VALUES (?, ?, ?)", runs)
    con.execute("CREATE TABLE gone (image_id VARCHAR, sequence BIGINT)")
    for plan in inputs.plans:
        if plan.delisted:
            _add_delisted(con, store, plan)


def _add_delisted(con: Any, store: Store, plan: Plan) -> None:
    gone = planning.read_shard(store, plan.run_key, planning.DELISTED).select(["image_id"])
    con.register("delisted", gone)
    con.execute("INSERT INTO gone SELECT image_id, ? FROM delisted", [plan.sequence])
    con.unregister("delisted")
