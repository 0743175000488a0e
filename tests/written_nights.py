"""Nights as a shard leaves them, written by hand: plans are real, and what was found is what a test says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from wwts_ops import planning, settings
from wwts_ops.planning import Pin, Plan, Request
from wwts_ops.schemas import QUARANTINE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import Shard

#: Outcomes of an image: a decision with its label and score, or the reason of a rejection.
Outcome = tuple[str, str, float] | str
NOON = datetime(2026, 3, 1, 4, tzinfo=UTC)


def auto(label: str, score: float = 0.9) -> Outcome:
    return ("auto", label, score)


def review(label: str, score: float = 0.3) -> Outcome:
    return ("review", label, score)


def forced(label: str, score: float = 0.9) -> Outcome:
    return ("forced_review", label, score)


@dataclass
class Nights:
    """A manifest, a store, and nights whose results are given; each with a tagger of its own version."""

    folder: Path
    root: Path
    version: int = 0

    @property
    def store(self) -> Store:
        return Store(str(self.root))

    def settings(self, **more: Any) -> Settings:
        given = {"store": str(self.root), "catalog": str(self.folder / "list.csv"), "max_delist_share": 1.0}
        return settings.load(**{**given, **more})

    def plan(self, catalog: Mapping[str, str], priority: Mapping[str, int] | None = None, **more: Any) -> Plan:
        """Plans the first night, or the next, over ``catalog`` (image id to etag)."""
        lines = (f"{name},{name}.jpg,{etag},{(priority or {}).get(name, '')}\n" for name, etag in catalog.items())
        (self.folder / "list.csv").write_text("image_id,uri,etag,priority\n" + "".join(lines), encoding="utf-8")
        self.version += 1
        pin = Pin("wwts-tagger", str(self.version), f"{self.version:064x}", "b" * 64, f"t{self.version:06d}")
        given = self.settings(**more)
        proposal = planning.propose(self.store, given, Request(date(2026, 3, 1), pin))
        plan = planning.commit(self.store, proposal)
        assert plan is not None
        return plan

    def images(self, plan: Plan, shard: int = 0) -> list[str]:
        names: list[str] = planning.read_shard(self.store, plan.run_key, shard)["image_id"].to_pylist()
        return names

    def write(self, plan: Plan, outcomes: Mapping[str, Outcome], at: datetime = NOON, **columns: Any) -> None:
        """Parts and marker of every shard of ``plan``, and the run's end."""
        for number in range(plan.shards):
            self.write_parts(plan, number, outcomes, at, **columns)
            self.mark(plan, number)
        self.store.write_json(planning.done_key(plan.run_key), {"images": plan.images})

    def write_parts(
        self, plan: Plan, number: int, outcomes: Mapping[str, Outcome], at: datetime = NOON, **columns: Any
    ) -> None:
        names = self.images(plan, number)
        tags = [tag_row(plan, name, outcomes[name], at, columns) for name in names if is_tagged(outcomes[name])]
        rejected = [
            {"image_id": name, "uri": f"{name}.jpg", "reason": outcomes[name], "run_id": plan.run_key, "seen_at": at}
            for name in names
            if not is_tagged(outcomes[name])
        ]
        self.put(plan, number, "tags", tags, TAGS)
        self.put(plan, number, "quarantine", rejected, QUARANTINE)

    def put(self, plan: Plan, number: int, dataset: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        self.store.write_table(Shard(plan, number).part(dataset), pa.Table.from_pylist(list(rows), schema=schema))

    def mark(self, plan: Plan, number: int) -> None:
        self.store.write_json(Shard(plan, number).marker, {"images": 1})

    def night(self, catalog: Mapping[str, str], outcomes: Mapping[str, Outcome], **columns: Any) -> Plan:
        """Plans and writes in one."""
        plan = self.plan(catalog)
        self.write(plan, outcomes, **columns)
        return plan


def is_tagged(outcome: Outcome) -> bool:
    return not isinstance(outcome, str)


def tag_row(plan: Plan, name: str, outcome: Outcome, at: datetime, columns: Mapping[str, Any]) -> dict[str, Any]:
    decision, label, score = outcome
    tags = [
        {"label_id": f"t:{label}", "label_zh": label, "score": score},
        {"label_id": "t:rest", "label_zh": "其他", "score": score / 4},
    ]
    return {
        "image_id": name,
        "sku_id": f"sku-{name}",
        "uri": f"{name}.jpg",
        "content_sha256": hashlib.sha256(f"{name} {plan.sequence}".encode()).hexdigest(),
        "width": 100 + plan.sequence,
        "height": 50,
        "tags": tags if label else [],
        "label_id": f"t:{label}" if label else None,
        "label_zh": label or None,
        "confidence": score if label else None,
        "category_path": f"类 > {label}" if label else None,
        "decision": decision,
        "decision_reason": f"reason-{plan.sequence}",
        "ocr_text": None,
        "source": "model",
        "model_name": plan.model_name,
        "model_version": plan.model_version,
        "model_sha256": plan.model_sha256,
        "backbone_sha256": plan.backbone_sha256,
        "taxonomy_version": plan.taxonomy_version,
        "git_sha": f"{plan.sequence:040x}",
        "run_id": plan.run_key,
        "tagged_at": at + timedelta(seconds=1),
        **columns,
    }
