"""A shop with versions of one tiny backbone: nights that really tag, and a champion that changes; see `code_shelf`."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from code_shelf import DAY, Change, Shelf
from conftest import S3Server
from night_process import Killer
from tiny_backbone import TINY

from wwts_ops import night, planning, publish, published, registry, retagging, tagger, taxonomy, tracking
from wwts_ops.planning import Pin, Plan, Request
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Head, Tagger
from wwts_ops.tracking import ModelVersion

#: What the tag of a published image is, and what made it.
TAG_COLUMNS = ["tags", "label_id", "label_zh", "confidence", "category_path", "decision", "decision_reason"]


#: Of the twelve labels: a person always sees these.
FORCED = (4, 10)


def label_ids() -> tuple[str, ...]:
    return tuple(label.label_id for label in taxonomy.embedded_labels()[::83])[:12]


def make_tagger(folder: Path, seed: int, network: float = 1.0) -> Tagger:
    """A head of its own over the tiny backbone, sure of some images; another ``network`` makes another backbone."""
    ids, numbers = label_ids(), np.random.default_rng(seed)
    weight = numbers.normal(size=(len(ids), TINY.recipe.dimension))
    weights = {name: value * network for name, value in TINY.network().state_dict().items()}
    # Centred, or one label would win everywhere: all embeddings point the same way, more or less.
    head = Head(ids, np.full(len(ids), 0.6), (weight - weight.mean(0)) * 10 / network, np.zeros(len(ids)))
    return tagger.save(folder, TINY, weights, head)


@dataclass(frozen=True)
class RetagShop:
    """A shelf whose versions are registered in a real MLflow, by their numbers."""

    shelf: Shelf
    settings: Settings

    @classmethod
    def made(cls, folder: Path, *taggers: Tagger, **given: Any) -> RetagShop:
        """With a version of each tagger, the first of them champion, that tagged nothing yet."""
        shelf = Shelf(folder, taggers[0])
        forced = tuple(label_ids()[number] for number in FORCED)
        usual = {"forced_review": forced, "release": "live", "thumbnails": "none", "workers": 2, "shard_size": 3}
        shop = cls(shelf, shelf.settings(**{**usual, **given}))
        shelf.fill_catalog()
        with tracking.connected(shop.settings) as client:
            client.create_registered_model(shop.settings.model_name)
        first, *_ = [shop.add(found) for found in taggers]
        shop.champion(first)
        return shop

    @property
    def store(self) -> Store:
        return Store.of(self.settings)

    def add(self, found: Tagger, *changes: Change) -> ModelVersion:
        """Registers a version whose files lie in the cache, the running code packed, with ``changes``."""
        planted = Shelf(self.shelf.folder, found).plant(*changes)
        tags = {"model_sha256": planted.sha256, "backbone_sha256": planted.backbone_sha256}
        tags["code_sha256"] = planted.code_sha256
        with tracking.connected(self.settings) as client:
            made = client.create_logged_model(tracking.experiment(client, self.settings, "retag"), name="tagger")
            client.finalize_logged_model(made.model_id, "READY")
            entry = client.create_model_version(
                self.settings.model_name, source=f"models:/{made.model_id}", model_id=made.model_id, tags=tags
            )
        return ModelVersion.of(entry)

    def version(self, number: int) -> ModelVersion:
        return registry.resolve(self.settings, str(number))

    def champion(self, model: ModelVersion) -> None:
        """As somebody does on MLflow's own page."""
        with tracking.connected(self.settings) as client:
            client.set_registered_model_alias(self.settings.model_name, "champion", model.version)

    def night(self, model: ModelVersion, day: date = DAY, **given: Any) -> Plan:
        """Tags what is new with ``model``, and publishes."""
        found = self.settings.model_copy(update=given)
        names = taxonomy.ensure(self.store, found.forced_review)
        pin = Pin(model.name, model.version, model.sha256, model.backbone_sha256, names.version, model.code_sha256)
        plan = planning.commit(self.store, planning.propose(self.store, found, Request(day, pin)))
        assert plan is not None
        for shard in range(plan.shards):
            night.tag_shard(found, plan.run_key, shard)
        publish.publish(self.store, found)
        night.finish(found, [plan.run_key])
        return plan

    def rows(self) -> dict[str, dict[str, Any]]:
        """What consumers read, by image."""
        rows = {row["image_id"]: row for row in published.read(self.store).to_pylist()}
        assert len(rows) == published.read(self.store).num_rows
        return rows

    def copied(self, folder: Path) -> RetagShop:
        """The same shop in another folder, MLflow, the model cache and the catalog with it."""
        shutil.copytree(self.shelf.folder, folder)
        shelf = Shelf(folder, self.shelf.tagger)
        own = shelf.settings()
        given = {"store": own.store, "catalog": own.catalog, "database_url": ""}
        return RetagShop(shelf, self.settings.model_copy(update=given))

    def on_s3(self, server: S3Server, **given: Any) -> RetagShop:
        """The same catalog and registry, with an empty store on S3."""
        own = {
            "store": f"s3://{server.bucket}/shop-{uuid.uuid4().hex}",
            "s3_endpoint": server.endpoint,
            "database_url": self.settings.resolved_database_url,
            "mlflow_tracking_uri": self.settings.resolved_tracking_uri,
        }
        return RetagShop(self.shelf, self.settings.model_copy(update={**own, **given}))


def retag(settings: Settings) -> dict[str, Any] | None:
    """All stages in a row, as the DAG runs them; the published pointer."""
    missing = retagging.survey(settings, retagging.Order())
    for part in missing or ():
        retagging.embed_missing(settings, part["key"], part["shard"])
    planned = retagging.plan(settings)
    if planned is None:
        return None
    for part in planned["shards"]:
        retagging.retag(settings, part["key"], part["shard"])
    return retagging.finish(settings, planned["retag"])


def retag_and_die(settings: dict[str, Any], at: int, moment: str, trace: str) -> None:
    """A process that kills itself at its change number ``at`` of the store."""
    found = Settings(**settings)
    Killer(found.store, at, moment, Path(trace)).install()
    retag(found)
