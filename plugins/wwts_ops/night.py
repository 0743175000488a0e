"""The stages of a night, each a function of settings and what the stage before it returned.

What passes between stages is small and plain (run keys, shard numbers), never rows or images: those lie in the store.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from wwts_ops import deployment, packed, planning, publish, published, registry, report, tagging, taxonomy
from wwts_ops.errors import WwtsError
from wwts_ops.planning import Pin, Request
from wwts_ops.review import queue
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import Machine, Shard
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

Night = dict[str, Any]

#: Airflow maps no task over more than 1,024 entries; what unfinished plans leave beyond that waits a night.
_MAX_MAPPED = 1000


@dataclass(frozen=True)
class Order:
    """What one night is asked to do; the form of a manual trigger.

    Attributes:
        date: partition of everything it writes.
        catalog: instead of ``WWTS_CATALOG``.
        model_version: instead of the champion.
        limit: images at most.
        dry_run: only say what would be done.
    """

    date: dt.date
    catalog: str | None = None
    model_version: str | None = None
    limit: int | None = None
    dry_run: bool = False


def order(params: Mapping[str, Any], partition_key: str | None, settings: Settings) -> Order:
    """Reads the form. The date is the parameter's, else the partition's, else today in the shop's time zone.

    Raises:
        WwtsError: when the date is none.
    """
    given = str(params.get("date") or partition_key or settings.today().isoformat())
    try:
        date = dt.date.fromisoformat(given)
    except ValueError as error:
        raise WwtsError(f"{given!r} is no date; write it as YYYY-MM-DD.") from error
    version, limit = params.get("model_version"), params.get("limit")
    return Order(
        date=date,
        catalog=str(params["catalog"]) if params.get("catalog") else None,
        model_version=str(version) if version else None,
        limit=int(limit) if limit else None,
        dry_run=bool(params.get("dry_run")),
    )


def plan(settings: Settings, wanted: Order, executor: str) -> Night | None:
    """Freezes what is new into a plan and lists the shards to do: of unfinished plans first.

    Returns:
        ``date``, ``run_keys`` and ``shards`` (each ``run_key`` and ``shard``); None on a dry run.
    """
    deployment.refuse_unshared(settings, executor)
    if wanted.catalog:
        settings = settings.model_copy(update={"catalog": wanted.catalog})
    store = Store.of(settings)
    if wanted.dry_run:
        # Whoever only looks registers no model and puts no taxonomy in force.
        request = Request(date=wanted.date, pin=Pin("", "", "", "", ""), limit=wanted.limit)
        _log_proposal(planning.propose(store, settings, request), wanted)
        return None
    request = Request(date=wanted.date, pin=_pin(store, settings, wanted), limit=wanted.limit)
    proposal = planning.propose(store, settings, request)
    while not proposal.is_empty and planning.commit(store, proposal) is None:
        # Another starter planned at the same moment: what it planned is no longer new.
        proposal = planning.propose(store, settings, request)
    _log_proposal(proposal, wanted)
    open_plans = planning.unfinished(store)
    todo = [
        {"run_key": one.run_key, "shard": number}
        for one in open_plans
        for number in sorted(set(range(one.shards)) - {shard.number for shard in tagging.done_shards(store, one)})
    ]
    run_keys = [one.run_key for one in open_plans]
    return {"date": wanted.date.isoformat(), "run_keys": run_keys, "shards": todo[:_MAX_MAPPED]}


def _pin(store: Store, settings: Settings, wanted: Order) -> Pin:
    """What to tag with. A version whose files are not whole is refused here, before a plan is bound to it."""
    if wanted.model_version is None:
        found = registry.champion_or_cached(settings)
    else:
        found = registry.Resolved(registry.resolve(settings, wanted.model_version))
        registry.provide(settings, found.model)
    model, away = found.model, found.away_since
    names = taxonomy.ensure(store, settings.forced_review)
    return Pin(
        model.name,
        model.version,
        model.sha256,
        model.backbone_sha256,
        names.version,
        model.code_sha256,
        "" if away is None else away.isoformat(),
    )


def _log_proposal(proposal: planning.Proposal, wanted: Order) -> None:
    found = proposal.plan
    for row in found.broken:
        log.warning("manifest_row_broken", line=row["line"], image_id=row["image_id"], reason=row["reason"])
    log.info(
        "planned",
        run_id=None if proposal.is_empty else found.run_key,
        date=found.date,
        images=found.images,
        delisted=found.delisted,
        carried_over=found.carried_over,
        broken_rows=found.broken_rows,
        skipped=found.skipped,
        dry_run=wanted.dry_run,
    )


def tag_shard(settings: Settings, run_key: str, shard: int) -> dict[str, Any]:
    """Tags one shard of one plan; see :func:`wwts_ops.tagging.tag`.

    With a version that other code was packed with, a process of its own does so, under that code.
    """
    store = Store.of(settings)
    frozen = planning.read(store, run_key)
    model = _model(frozen)
    if not packed.differs(model) or store.exists(Shard(frozen, shard).marker):
        return tag_here(settings, run_key, shard)
    packed.run(settings, model, run_key, shard)
    return store.read_json(Shard(frozen, shard).marker)


def tag_here(settings: Settings, run_key: str, shard: int) -> dict[str, Any]:
    """Tags one shard of one plan under the running code, whatever was packed with the version."""
    store = Store.of(settings)
    frozen = planning.read(store, run_key)
    model = _model(frozen)
    return tagging.tag(
        store, settings, Shard(frozen, shard), lambda: _machine(settings, model, frozen.taxonomy_version)
    )


def _model(frozen: planning.Plan) -> ModelVersion:
    return ModelVersion(
        frozen.model_name,
        frozen.model_version,
        frozen.model_sha256,
        frozen.backbone_sha256,
        frozen.code_sha256,
    )


@lru_cache(maxsize=1)
def _machine(settings: Settings, model: ModelVersion, taxonomy_version: str) -> Machine:
    """Loaded once a process: shards of one night share it."""
    names = taxonomy.read(Store.of(settings), taxonomy_version)
    return Machine.of(registry.fetch(settings, model), names, settings)


def publish_tags(settings: Settings) -> dict[str, Any] | None:
    """Publishes what is done; see :func:`wwts_ops.publish.publish`."""
    return publish.publish(Store.of(settings), settings)


def route_to_review(settings: Settings, run_keys: Iterable[str]) -> int:
    """Writes the review queue of each run; how many contents wait in all."""
    store = Store.of(settings)
    return sum(queue.route(store, settings, planning.read(store, run_key)) for run_key in run_keys)


def build_report(settings: Settings, night: Night) -> str:
    """Builds the page of the night's date, and of older dates whose plans were finished tonight; the page's path."""
    store = Store.of(settings)
    plans = [planning.read(store, run_key) for run_key in night["run_keys"]]
    for older in sorted({one.date for one in plans} - {night["date"]}):
        report.build(store, settings, dt.date.fromisoformat(older))
    page = store.path(report.build(store, settings, dt.date.fromisoformat(night["date"])))
    tonight = [one for one in plans if one.date == night["date"]]
    told = report.notices(tonight, ZoneInfo(settings.timezone))
    log.info("night_done", **_sums(store, plans), report=page, notices=told, **_published(store))
    return page


def finish(settings: Settings, run_keys: Iterable[str]) -> None:
    """Marks the runs whose shards are all done: their contents count as known from now on.

    The last stage, so that a night that is killed before it goes through publishing, queue and page again.

    Raises:
        WwtsError: after everything else, when shards are left; it names their runs.
    """
    store = Store.of(settings)
    run_keys = list(run_keys)
    plans = [planning.read(store, run_key) for run_key in run_keys]
    done_by_run = {plan_.run_key: tagging.done_shards(store, plan_) for plan_ in plans}
    if not publish.is_current(store, settings):
        # Another process finished a shard after this one had published; it may be gone by now.
        publish_tags(settings)
        route_to_review(settings, run_keys)
    left = []
    for plan_ in plans:
        done = done_by_run[plan_.run_key]
        if len(done) < plan_.shards:
            left.append(plan_.run_key)
            continue
        results = [store.read_json(shard.marker) for shard in done]
        images, seconds = sum(result["images"] for result in results), sum(result["seconds"] for result in results)
        speed = round(images / seconds, 2) if seconds else 0.0
        told = {"images": images, "seconds": round(seconds, 3), "images_per_second": speed}
        store.write_json(planning.done_key(plan_.run_key), told)
        log.info("run_finished", run_id=plan_.run_key, **told)
    if left:
        raise WwtsError(
            f"Some shards of {', '.join(left)} failed; see the logs of tag_shard. What is done is published, "
            "and the next run does the rest first."
        )


def _sums(store: Store, plans: Iterable[planning.Plan]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    seconds = 0.0
    for plan_ in plans:
        counts.update(
            planned=plan_.images,
            delisted=plan_.delisted,
            carried_over=plan_.carried_over,
            broken_rows=plan_.broken_rows,
        )
        for shard in tagging.done_shards(store, plan_):
            done = store.read_json(shard.marker)
            reasons.update(done.pop("reasons"))
            seconds += done.pop("seconds")
            del done["timings"]
            counts.update(done)
    speed = round(counts["images"] / seconds, 1) if seconds else None
    return {**counts, "reasons": dict(reasons), "images_per_second": speed}


def _published(store: Store) -> dict[str, Any]:
    pointer = published.current(store)
    if pointer is None:
        return {"published": None}
    names = ("rows", "live", "pending", "release", "snapshot")
    folder = store.path(f"published/{pointer.value['snapshot']}")
    return {"published": folder, **{f"published_{name}": pointer.value[name] for name in names}}
