"""What the store and the review page no longer need, and taking it away.

Kept, whatever its age: what consumers read and may go back to, embeddings that a registered version can be tried on,
answers, bad cases, taxonomies, tags, runs and quarantine (a snapshot is made of these), trainings and evaluations of
registered versions. Everything else is kept for some days; of snapshots, which every answer makes one of, all of the
last 24 hours, and before that the last one of each day. The age of a folder is that of its youngest file, by the clock
of the disk or server that holds it: what a night writes at this moment is never old.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import structlog

from wwts_ops import badcases, corrections, planning, published, registry, retags, tracking, warehouse
from wwts_ops.errors import WwtsError
from wwts_ops.planning import Plan
from wwts_ops.review import items
from wwts_ops.schemas import PUBLISHED, REVIEW_QUEUE
from wwts_ops.settings import Settings
from wwts_ops.storage import File, Store

log = structlog.get_logger(__name__)

#: A process that still writes to a temporary file would have done so within this time.
_STRAY = timedelta(days=1)
#: Published snapshots are all kept for so long.
_FRESH = timedelta(days=1)
#: Seconds between taking a folder's completeness mark away and its other files: whoever has just looked at the mark
#: moves a pointer within milliseconds, and that is looked at again.
GRACE_S = 3.0
_PAGE = 1000
_THREADS = 16
_EVALUATION = re.compile(r"v(\d+)-vs-v(\d+)-.*")
_TAGDIFF = re.compile(r"([0-9a-f]{12})-([0-9a-f]{12})-[0-9a-f]{12}")
_THUMBNAIL = re.compile(r"thumbnails/[0-9a-f]{2}/([0-9a-f]{64})\.jpg")


@dataclass(frozen=True)
class Item:
    """What is deleted whole or stays whole.

    Attributes:
        kind: the store's folder that it lies in, or ``temporary files``.
        name: of it there.
        reason: why nobody needs it.
        files: all of it.
        marker: key of the file that says it is whole, where there is one.
    """

    kind: str
    name: str
    reason: str
    files: tuple[File, ...]
    marker: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)

    @property
    def newest(self) -> datetime:
        """When its youngest file was written."""
        return max(file.modified for file in self.files)


@dataclass(frozen=True)
class _Version:
    """A registered version, of whatever registered model."""

    name: str
    version: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class _Facts:
    """What decides what is needed; what was written since ``before`` is kept, and it is ``now``."""

    store: Store
    settings: Settings
    versions: tuple[_Version, ...]
    plans: tuple[Plan, ...]
    unfinished: tuple[Plan, ...]
    before: datetime
    now: datetime

    @cached_property
    def files(self) -> Mapping[str, tuple[File, ...]]:
        """All of the store by its top folder, listed once."""
        groups = defaultdict(list)
        for key, file in self.store.files("").items():
            groups[key.partition("/")[0]].append(file)
        return {kind: tuple(files) for kind, files in groups.items()}

    @cached_property
    def numbers(self) -> set[str]:
        """Version numbers of the shop's model."""
        return {one.version for one in self.versions if one.name == self.settings.model_name}

    def tagged(self, tag: str) -> set[str]:
        """The values that ``tag`` has on registered versions."""
        return {one.tags[tag] for one in self.versions if one.tags.get(tag)}

    @cached_property
    def backbones(self) -> set[str]:
        """Names of the folders of embeddings that are needed."""
        running = {plan.backbone_sha256 for plan in (*self.unfinished, *self.plans[-1:])}
        retag = retags.in_force(self.store)
        running |= {retag.backbone_sha256} if retag else set()
        return {f"backbone=b{sha256[:12]}" for sha256 in self.tagged("backbone_sha256") | running}


def survey(settings: Settings, keep_days: int, now: datetime | None = None) -> tuple[Item, ...]:
    """What could be deleted; nothing is.

    Args:
        settings: which store, registry and database.
        keep_days: days for which everything is kept.
        now: UTC; the time if it is not given.

    Raises:
        UnavailableError: when MLflow, the database or the store does not answer.
        WwtsError: when MLflow or the database is not the one that this store was made with.
    """
    moment = now or datetime.now(UTC)
    facts = _facts(settings, moment - timedelta(days=keep_days), moment)
    snapshots, kept = _snapshots(facts)
    found = [*snapshots, *_retags(facts, kept), *_embeddings(facts), *_of_versions(facts)]
    reports, _ = _dated(facts, "reports")
    queues, waiting = _dated(facts, "review")
    found += [*reports, *queues, *_thumbnails(facts, kept, waiting)]
    gone = {file.key for item in found for file in item.files}
    return (*found, *(item for item in _strays(facts, moment - _STRAY) if item.name not in gone))


def remove(settings: Settings, found: Sequence[Item], keep_days: int, now: datetime | None = None) -> tuple[Item, ...]:
    """Deletes those of ``found`` that are still not needed; what was deleted.

    Killed anywhere, the next one deletes what is left. Raises: as :func:`survey`.
    """
    store = Store.of(settings)
    again = {(item.kind, item.name): {file.key for file in item.files} for item in survey(settings, keep_days, now)}
    doomed = [_still(item, again.get((item.kind, item.name), set())) for item in found]
    marks = {key: store.read_bytes(key) for item in doomed if (key := _mark(item))}
    for key in marks:
        store.delete(key)
    if marks:
        time.sleep(GRACE_S)
    removed = []
    for item in doomed:
        if (key := _mark(item)) and item.name in _pointed(store):
            store.create(key, marks[key])
            log.warning("prune_spared", kind=item.kind, name=item.name)
        elif item.files:
            _delete(store, item)
            removed.append(item)
    log.info("pruned", items=len(removed), bytes=sum(item.size for item in removed))
    return tuple(removed)


def survey_looked_at(settings: Settings, keep_days: int, now: datetime | None = None) -> int:
    """How many items of the review page were settled and are of nights before that; answers are no part of them.

    Raises:
        UnavailableError: when the database does not answer.
    """
    return items.forgettable(settings, _day(settings, keep_days, now))


def forget_looked_at(settings: Settings, keep_days: int, now: datetime | None = None) -> int:
    """Deletes those items; how many. Raises: as :func:`survey_looked_at`."""
    count = items.forget(settings, _day(settings, keep_days, now))
    log.info("review_items_forgotten", items=count)
    return count


def _day(settings: Settings, keep_days: int, now: datetime | None) -> str:
    """The first day of the shop that is kept whole."""
    before = (now or datetime.now(UTC)) - timedelta(days=keep_days)
    return before.astimezone(ZoneInfo(settings.timezone)).date().isoformat()


# ------------------------------------------------------------------ what is needed


def _facts(settings: Settings, before: datetime, now: datetime) -> _Facts:
    versions = tuple(_versions(settings)) if registry.exists(settings) else ()
    store = Store.of(settings)
    plans = tuple(planning.claimed(store))
    known = {one.tags.get("model_sha256") for one in versions}
    if not versions or (plans and known.isdisjoint({plan.model_sha256 for plan in plans})):
        raise WwtsError(
            f"MLflow at {tracking.without_password(settings.resolved_tracking_uri)} has no version that tagged "
            f"anything in {store.root}, so nobody can say what is still needed; mend MLFLOW_TRACKING_URI. "
            "Nothing was deleted."
        )
    pointer = published.current(store)
    read, there = int(pointer.value.get("answers", 0)) if pointer else 0, corrections.latest(settings)
    if read > there:
        raise WwtsError(
            f"What is published holds answers up to number {read}, and the database only up to {there}: it is another "
            "one, or has lost some. Set WWTS_DATABASE_URL or restore the database. Nothing was deleted."
        )
    return _Facts(store, settings, versions, plans, tuple(planning.unfinished(store)), before, now)


def _versions(settings: Settings) -> Iterator[_Version]:
    """Of all registered models: two shops' models may stand on one backbone, and one shop may rename its model."""
    with tracking.connected(settings) as client:
        token = None
        while True:
            page = client.search_model_versions("", max_results=_PAGE, page_token=token)
            yield from (_Version(entry.name, str(entry.version), dict(entry.tags)) for entry in page)
            token = page.token
            if not token:
                return


def _pointed(store: Store) -> set[str]:
    """The snapshot and the retag that pointers name at this moment."""
    named = [(published.current(store), "snapshot"), (published.current(store), "retag")]
    named.append((retags.current(store), "retag"))
    return {str(pointer.value[name]) for pointer, name in named if pointer and pointer.value.get(name)}


# ------------------------------------------------------------------ each kind


def _snapshots(facts: _Facts) -> tuple[list[Item], list[Item]]:
    """Published snapshots to prune and to keep."""
    reason = "it is not what consumers read, nor its day's last"
    groups = _folders(facts, "published", reason, published.kept_key)
    pointed = _pointed(facts.store)
    in_order = sorted(groups, key=lambda item: (item.newest, item.name in pointed))
    zone = ZoneInfo(facts.settings.timezone)
    last = {item.newest.astimezone(zone).date(): item.name for item in in_order if item.newest >= facts.before}
    needed = {*pointed, *last.values(), *(item.name for item in in_order[-1:])}
    return _divided(groups, lambda item: item.name in needed, max(facts.before, facts.now - _FRESH))


def _retags(facts: _Facts, snapshots: Iterable[Item]) -> list[Item]:
    groups = _folders(facts, "retags", "neither consumers nor a kept snapshot read it", retags.done_key)
    needed = _pointed(facts.store) | {str(_told(facts.store, item).get("retag")) for item in snapshots}
    return _divided(groups, lambda item: item.name in needed, facts.before)[0]


def _told(store: Store, snapshot: Item) -> Mapping[str, Any]:
    """What a snapshot says of itself; one that is not whole says nothing."""
    key = _mark(snapshot)
    return store.read_json(key) if key else {}


def _embeddings(facts: _Facts) -> list[Item]:
    """Embeddings of backbones, those of further views too, and the notes of backfills that made them."""
    reason = "no registered version has this backbone"
    groups = [item for kind in ("embeddings", "views") for item in _folders(facts, kind, reason)]
    pruned, _ = _divided(groups, lambda item: item.name in facts.backbones, facts.before)
    names = {item.name for item in pruned if item.kind == "embeddings"}
    fills = _folders(facts, "backfills", "its embeddings are no longer needed")
    needed = [item for item in fills if _backbone(facts.store, item) not in names]
    return [*pruned, *_divided(fills, lambda item: item in needed, facts.before)[0]]


def _backbone(store: Store, backfill: Item) -> str | None:
    """The folder of embeddings that a backfill writes to; None when it does not say."""
    key = f"backfills/{backfill.name}/plan.json"
    if key not in {file.key for file in backfill.files}:
        return None
    sha256 = store.read_json(key).get("backbone_sha256")
    return f"backbone=b{sha256[:12]}" if sha256 else None


def _of_versions(facts: _Facts) -> list[Item]:
    """What was written about versions that are gone."""
    shas = {sha256[:12] for sha256 in facts.tagged("model_sha256")}
    trainings, frozen = facts.tagged("training"), facts.tagged("training.snapshot")

    def judged(item: Item) -> bool:
        found = _EVALUATION.fullmatch(item.name)
        return found is None or found[1] in facts.numbers

    def compared(item: Item) -> bool:
        found = _TAGDIFF.fullmatch(item.name)
        return found is None or {found[1], found[2]} <= shas

    gone = "the version that it is about is gone"
    evaluations = _divided(_folders(facts, "evaluations", gone), judged, facts.before)[0]
    tagdiffs = _divided(_folders(facts, "tagdiffs", gone), compared, facts.before)[0]
    groups = _folders(facts, "trainings", "no registered version came of it")
    learned = [item for item in groups if item.name != "answers"]
    answers = [
        Item("trainings", Path(file.key).stem, "no registered version learned from it", (file,))
        for item in groups
        if item.name == "answers"
        for file in item.files
        if not file.hidden
    ]
    return [
        *evaluations,
        *tagdiffs,
        *_divided(learned, lambda item: item.name in trainings, facts.before)[0],
        *_divided(answers, lambda item: item.name in frozen, facts.before)[0],
    ]


def _dated(facts: _Facts, kind: str) -> tuple[list[Item], list[Item]]:
    """Days of ``kind`` to prune and to keep; the last one stays, however long ago it was."""
    groups = _folders(facts, kind, "it is of a day long past")
    last = max((item.name for item in groups), default="")
    return _divided(groups, lambda item: item.name == last, facts.before)


def _thumbnails(facts: _Facts, snapshots: Sequence[Item], queues: Sequence[Item]) -> list[Item]:
    """One item of all thumbnails that no kept page can ask for."""
    files = {file.key: file for file in facts.files.get("thumbnails", ()) if file.modified < facts.before}
    named = [(found[1], key) for key in files if (found := _THUMBNAIL.fullmatch(key))]
    if not named:
        return []
    old = pa.table({"content_sha256": [content for content, _ in named], "key": [key for _, key in named]})
    with warehouse.connect() as con:
        con.register("thumbnails", old)
        con.register("people", _answered(facts))
        warehouse.view(con, "published", facts.store, _parquet(snapshots), PUBLISHED)
        warehouse.view(con, "queues", facts.store, _parquet(queues), REVIEW_QUEUE)
        needed = " UNION ALL ".join(f"SELECT content_sha256 FROM {name}" for name in ("people", "published", "queues"))
        unseen = con.sql(f"SELECT key FROM thumbnails ANTI JOIN ({needed}) USING (content_sha256) ORDER BY key")
        gone = tuple(files[key] for (key,) in unseen.fetchall())
    reason = "no kept snapshot, review queue, bad case or answer shows it"
    return [Item("thumbnails", "", reason, gone)] if gone else []


def _answered(facts: _Facts) -> pa.Table:
    """Contents that people said something about, in answers or as bad cases."""
    cases = badcases.current(facts.store)
    answers = corrections.frozen(facts.settings)["content_sha256"].to_pylist()
    contents = {*answers, *(case.content_sha256 for case in (cases.cases if cases else ()))}
    return pa.table({"content_sha256": pa.array(sorted(contents), pa.string())})


def _strays(facts: _Facts, before: datetime) -> list[Item]:
    """Temporary files of killed processes; locks stay, since somebody may hold one."""
    files = chain.from_iterable(facts.files.values())
    stray = [file for file in files if file.hidden and file.key.endswith(".tmp") and file.modified < before]
    return [Item("temporary files", file.key, "a process that was killed left it", (file,)) for file in stray]


# ------------------------------------------------------------------ files


def _folders(facts: _Facts, kind: str, reason: str, marker: Callable[[str], str] | None = None) -> list[Item]:
    """The folders in folder ``kind``, by name; pointers and other files beside them are no folders."""
    groups = defaultdict(list)
    for file in facts.files.get(kind, ()):
        parts = file.key.split("/")
        if len(parts) > 2:
            groups[parts[1]].append(file)
    return [
        Item(kind, name, reason, tuple(files), marker(name) if marker else None)
        for name, files in sorted(groups.items())
    ]


def _divided(items: Iterable[Item], needed: Callable[[Item], bool], before: datetime) -> tuple[list[Item], list[Item]]:
    """Those that can go, and those that stay because they are needed or young."""
    gone: list[Item] = []
    kept: list[Item] = []
    for item in items:
        (kept if item.newest >= before or needed(item) else gone).append(item)
    return gone, kept


def _parquet(items: Iterable[Item]) -> list[str]:
    files = chain.from_iterable(item.files for item in items)
    return [file.key for file in files if file.key.endswith(".parquet") and not file.hidden]


def _still(item: Item, keys: set[str]) -> Item:
    """``item`` without what is needed by now."""
    return replace(item, files=tuple(file for file in item.files if file.key in keys))


def _mark(item: Item) -> str | None:
    """The key that says that ``item`` is whole, when it is."""
    return item.marker if item.marker in {file.key for file in item.files} else None


def _delete(store: Store, item: Item) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(store.delete, [file.key for file in item.files]))
    if not store.is_local:
        return
    top = Path(store.path("")).absolute()
    for folder in sorted(
        {parent for file in item.files for parent in Path(store.path(file.key)).parents}, reverse=True
    ):
        # The store's own folders stay, and those where something else lies.
        if top in folder.parent.parents:
            with suppress(OSError):
                folder.rmdir()
