"""An evaluation made to measure: real photographs as bad cases, two models that are right on those we say."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage
from PIL import Image

from eval import gate, metrics, record, reports, rules
from wwts_ops.badcases import BadCase, Snapshot
from wwts_ops.badcases.snapshots import content_key
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tracking import ModelVersion
from wwts_ops.verdict import Verdict

CHAMPION = ModelVersion("wwts-tagger", "1", "1" * 64, "b" * 64)
CHALLENGER = ModelVersion("wwts-tagger", "2", "2" * 64, "b" * 64)


@dataclass(frozen=True)
class Entry:
    """A case, and what each model says of it."""

    photo: bytes
    label_id: str
    champion: tuple[str | None, float]
    challenger: tuple[str | None, float]
    slices: tuple[str, ...] = ()
    never_regress: bool = False
    reason: str = ""
    owner: str = "小王"
    forbidden: tuple[str, ...] = ()

    def case(self) -> BadCase:
        return BadCase(
            content_sha256=hashlib.sha256(self.photo).hexdigest(),
            accepted=(self.label_id,) if self.label_id else (),
            forbidden=self.forbidden,
            slices=self.slices,
            owner=self.owner,
            reason=self.reason,
            never_regress=self.never_regress,
            starter=False,
            image_id=None,
            uri=None,
            added_at=datetime(2026, 3, 1, tzinfo=UTC),
            added_by="小王",
        )


@dataclass
class Scene:
    """A store with the cases in it, and the reports of an evaluation on them."""

    settings: Settings
    entries: Sequence[Entry]
    p95: tuple[float, float] | None = (0.050, 0.048)
    accuracy: bool = True
    mode: Any = "enforced"
    run: str = "manual__2026-03-01"
    model: ModelVersion = CHALLENGER
    champion: ModelVersion = CHAMPION
    snapshot: Snapshot = field(init=False)

    def __post_init__(self) -> None:
        cases = tuple(entry.case() for entry in self.entries)
        self.snapshot = Snapshot("b000001-aaaaaaaaaaaa", "a" * 64, cases)
        store = Store.of(self.settings)
        for entry, case in zip(self.entries, cases, strict=True):
            store.write_bytes(content_key(case.content_sha256), entry.photo)

    @property
    def judged(self) -> record.Judged:
        return record.Judged(self.model, self.champion, self.snapshot, "c" * 64, self.mode, "anna", self.run)

    @property
    def reports(self) -> reports.Reports:
        return reports.Reports(
            accuracy=self._accuracy() if self.accuracy else None, latency=self._latency() if self.p95 else None
        )

    @property
    def decision(self) -> gate.Decision:
        return gate.decide(self.reports, rules.load(None)[0])

    def write(self) -> Any:
        return record.write(self.settings, self.judged, self.reports, self.decision)

    def _accuracy(self) -> reports.AccuracyReport:
        cases = list(self.snapshot.active)
        champion = [self._result(entry, *entry.champion) for entry in self.entries]
        challenger = [self._result(entry, *entry.challenger) for entry in self.entries]
        labels = {label for entry in self.entries for label in (entry.label_id,)}
        groups = metrics.groups(cases, labels, labels)

        def of(results: Sequence[reports.CaseResult], group: list[BadCase]) -> list[reports.CaseResult]:
            wanted = {case.content_sha256 for case in group}
            return [result for result in results if result.content_sha256 in wanted]

        return reports.AccuracyReport(
            badcases=self.snapshot.name,
            badcases_sha256=self.snapshot.sha256,
            cases=len(cases),
            curated=len(cases),
            groups={name: len(group) for name, group in groups.items()},
            never_regress=tuple(case.content_sha256 for case in cases if case.never_regress),
            challenger_model=_model(self.model, 18.9),
            champion_model=_model(self.champion, 18.6),
            challenger={name: metrics.measure(group, of(challenger, group)) for name, group in groups.items()},
            champion={name: metrics.measure(group, of(champion, group)) for name, group in groups.items()},
            paired={
                name: metrics.compare(of(challenger, group), of(champion, group)) for name, group in groups.items()
            },
            challenger_results=tuple(challenger),
            champion_results=tuple(champion),
        )

    def _result(self, entry: Entry, label_id: str | None, confidence: float) -> reports.CaseResult:
        case = entry.case()
        return reports.CaseResult(
            content_sha256=case.content_sha256,
            label_id=label_id,
            confidence=None if label_id is None else confidence,
            top5=() if label_id is None else (label_id,),
            decision="auto" if confidence >= 0.6 else "review",
            right=metrics.is_right(case, label_id),
        )

    def _latency(self) -> reports.LatencyReport:
        assert self.p95 is not None
        champion, challenger = (_times(p95, seed) for seed, p95 in enumerate(self.p95))
        return reports.LatencyReport(
            images=100, hardware="8 核 CPU, ONNX Runtime", challenger=challenger, champion=champion
        )


def _model(model: ModelVersion, megabytes: float) -> reports.Model:
    return reports.Model(
        version=model.version,
        sha256=model.sha256,
        backbone_sha256=model.backbone_sha256,
        labels=1000,
        megabytes=megabytes,
    )


def _times(p95: float, seed: int) -> reports.Latency:
    spread = np.random.default_rng(seed).gamma(3.0, 1.0, 500)
    samples = p95 * (0.7 + 0.3 * spread / np.quantile(spread, 0.95))
    p50, mid, p99 = (float(np.quantile(samples, share)) for share in (0.5, 0.95, 0.99))
    return reports.Latency(
        p50=p50,
        p95=mid,
        p99=p99,
        images_per_second=1 / float(samples.mean()),
        p95_repeats=(mid,) * 5,
        samples=tuple(float(one) for one in samples),
    )


@cache
def photographs() -> list[bytes]:
    """Twelve small JPEGs, all of them different."""
    found = []
    for name in ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png"):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as opened:
            whole = opened.convert("RGB").resize((300, 220))
        for left in (0, 40, 80):
            out = io.BytesIO()
            whole.crop((left, 0, left + 200, 220)).save(out, "JPEG", quality=85)
            found.append(out.getvalue())
    return found


def verdict_of(decision: gate.Decision, **changes: Any) -> Verdict:
    """A verdict as the gate records it."""
    given: dict[str, Any] = {
        "passed": decision.passed,
        "mode": "enforced",
        "reasons": decision.reasons,
        "rules": decision.rules,
        "model_version": "2",
        "model_sha256": "2" * 64,
        "champion_version": "1",
        "champion_sha256": "1" * 64,
        "badcases": "b000001-aaaaaaaaaaaa",
        "badcases_sha256": "a" * 64,
        "rules_sha256": "c" * 64,
        "run_id": "f" * 32,
        "git_sha": "",
        "judged_at": datetime.now(UTC),
    }
    return Verdict(**given | changes)
