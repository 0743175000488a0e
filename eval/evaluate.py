"""Measures a version against the champion on a snapshot of bad cases, and lets the gate judge: the stages of the DAG.

    prepare ─► measure_accuracy ─► measure_latency ─► judge

What passes between stages is an :class:`Order` of plain values; what they measure lies in the store below
``evaluations/<evaluation>/``. Each stage can be killed and done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog
from pydantic import ValidationError

from eval import gate, latency, metrics, record, serving
from eval.reports import AccuracyReport, CaseResult, LatencyReport, Metrics, Model, Paired, Reports
from eval.serving import Serving, Subject, Unreadable
from wwts_ops import badcases as bad_cases
from wwts_ops import lessons, planning, promotion, registry, taxonomy
from wwts_ops.badcases import BadCase, Snapshot
from wwts_ops.embeddings import KnownContents
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy
from wwts_ops.tracking import ModelVersion
from wwts_ops.verdict import Mode, Verdict

log = structlog.get_logger(__name__)

Array = np.ndarray[Any, Any]
Report = TypeVar("Report", AccuracyReport, LatencyReport)


@dataclass(frozen=True)
class Order:
    """One evaluation, resolved once; plain values, so that it travels between tasks as JSON.

    Attributes:
        evaluation: its id, and its folder below ``evaluations/``.
        version: which version is judged.
        champion_version: what it is compared with.
        badcases: name of the snapshot.
        taxonomy: version in force when it was ordered.
    """

    evaluation: str
    version: str
    champion_version: str
    badcases: str
    taxonomy: str

    @property
    def accuracy_key(self) -> str:
        """Store key of the :class:`AccuracyReport`."""
        return f"evaluations/{self.evaluation}/accuracy.json"

    @property
    def latency_key(self) -> str:
        """Store key of the :class:`LatencyReport`."""
        return f"evaluations/{self.evaluation}/latency.json"


@dataclass(frozen=True)
class _Scene:
    """What all of one evaluation's measuring needs."""

    settings: Settings
    store: Store
    names: Taxonomy
    snapshot: Snapshot
    challenger: ModelVersion
    champion: ModelVersion

    @classmethod
    def of(cls, settings: Settings, order: Order) -> _Scene:
        store = Store.of(settings)
        return cls(
            settings=settings,
            store=store,
            names=taxonomy.read(store, order.taxonomy),
            snapshot=bad_cases.read(store, order.badcases),
            challenger=registry.resolve(settings, order.version),
            champion=registry.resolve(settings, order.champion_version),
        )

    @property
    def contents(self) -> tuple[str, ...]:
        return tuple(case.content_sha256 for case in self.snapshot.active)

    @property
    def ever(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(case.content_sha256 for case in self.snapshot.cases))

    def serve(self, subject: Subject) -> Serving:
        return Serving(subject, self.names, self.settings)


def prepare(settings: Settings, version: str | None, badcases: str | None) -> Order:
    """Resolves what is to be measured, once.

    Args:
        settings: of the process.
        version: MLflow's number; None: the newest registered version that is not champion.
        badcases: name of a snapshot; None: the one in force.

    Raises:
        WwtsError: when there is no such version, no other than the champion, no such snapshot, no case in it, or the
            version has learned from a case.
        UnavailableError: when MLflow or the store do not answer.
    """
    champion = registry.resolve(settings, None)
    model = registry.resolve(settings, version or _newest(settings, champion))
    store = Store.of(settings)
    names = taxonomy.ensure(store, settings.forced_review)
    snapshot = bad_cases.read(store, badcases) if badcases else bad_cases.ensure(store, names)
    if not snapshot.active:
        raise WwtsError(f"Every bad case of {snapshot.name} is retired; import some with `wwts badcases import`.")
    if model.version != champion.version:
        _refuse_lessons(settings, model, snapshot)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    return Order(
        evaluation=f"v{model.version}-vs-v{champion.version}-{snapshot.name}-{stamp}",
        version=model.version,
        champion_version=champion.version,
        badcases=snapshot.name,
        taxonomy=names.version,
    )


def measure_accuracy(settings: Settings, order: Order) -> None:
    """Measures both versions on every active case, and writes the report; done again, it writes the same bytes.

    Raises:
        WwtsError: naming the version that cannot be measured.
        UnavailableError: when MLflow or the store do not answer, or a version's process is killed.
    """
    scene = _Scene.of(settings, order)
    log.info(
        "evaluating",
        evaluation=order.evaluation,
        version=order.version,
        champion=order.champion_version,
        badcases=order.badcases,
        cases=len(scene.snapshot.active),
    )
    challenger, champion = _both(scene)
    report = _accuracy(scene, challenger, champion)
    _write(scene.store, order.accuracy_key, report)
    overall = report.challenger["overall"].top1.value, report.champion["overall"].top1.value
    log.info("accuracy_measured", cases=report.cases, challenger_top1=overall[0], champion_top1=overall[1])


def measure_latency(settings: Settings, order: Order) -> None:
    """Measures both versions in turns on pictures of up to 100 active cases, and writes the report.

    Raises: as :func:`measure_accuracy`.
    """
    scene = _Scene.of(settings, order)
    pictures = [bad_cases.content(scene.store, one) for one in latency.evenly(scene.contents, latency.PICTURES)]
    models = {"challenger": scene.challenger, "champion": scene.champion}
    subjects = {name: serving.of_version(settings, model) for name, model in models.items()}
    with ExitStack() as stack:
        servings = {name: stack.enter_context(scene.serve(subject)) for name, subject in subjects.items()}
        report = latency.measure(servings, pictures, seconds=latency.SECONDS)
    _write(scene.store, order.latency_key, report)
    champion = report.champion.p95 if report.champion else None
    log.info("latency_measured", challenger_p95=report.challenger.p95, champion_p95=champion, hardware=report.hardware)


def judge(settings: Settings, order: Order, mode: Mode, actor: str, run: str) -> Verdict:
    """Lets the gate decide, records the verdict in MLflow, and names the version challenger when it passed.

    Args:
        settings: of the process.
        order: what was measured; a report that is missing fails the rules that stand on it.
        mode: ``dry_run`` moves no alias.
        actor: who asked for it.
        run: Airflow's id of the run.

    Raises:
        WwtsError: when a report or the rules are damaged, or a version is no longer the one that was measured.
        UnavailableError: when MLflow, store or database do not answer.
    """
    scene = _Scene.of(settings, order)
    reports = Reports(
        accuracy=_read(scene.store, order.accuracy_key, AccuracyReport),
        latency=_read(scene.store, order.latency_key, LatencyReport),
    )
    _check_measured(scene, reports.accuracy)
    rules, rules_sha256 = gate.load(Path(settings.gate_rules) if settings.gate_rules else None)
    decision = gate.decide(reports, rules)
    judged = record.Judged(
        model=scene.challenger,
        champion=scene.champion,
        snapshot=scene.snapshot,
        rules_sha256=rules_sha256,
        mode=mode,
        actor=actor,
        run=run,
    )
    verdict = record.write(settings, judged, reports, decision)
    if mode == "enforced":
        (promotion.nominate if verdict.passed else promotion.withdraw)(settings, verdict, actor, run)
    log.info(
        "judged",
        version=verdict.model_version,
        champion=verdict.champion_version,
        passed=verdict.passed,
        mode=verdict.mode,
        reasons=list(verdict.reasons),
        rules=[rule.model_dump() for rule in verdict.rules],
        run_id=verdict.run_id,
        badcases=verdict.badcases,
    )
    return verdict


def _refuse_lessons(settings: Settings, model: ModelVersion, snapshot: Snapshot) -> None:
    """What a version has learned by heart says nothing of it: such cases were curated after its training."""
    cases = lessons.found(settings, model, snapshot)
    if cases:
        raise WwtsError(
            f"{model} has learned from {len(cases)} of the {len(snapshot.active)} bad cases of {snapshot.name}, so "
            f"they cannot judge it: {lessons.named(cases)}. Run retrain_head with force, which keeps them out, and "
            "evaluate that version; or take back what should be none with `wwts badcases retire`."
        )


def _newest(settings: Settings, champion: ModelVersion) -> str:
    others = (line.version for line in registry.versions(settings) if line.sha256 and line.version != champion.version)
    newest = next(others, None)
    if newest is None:
        raise WwtsError(
            f"Model {settings.model_name} has no version besides champion {champion.version}; "
            "register one (`wwts models import`) or name the version to evaluate."
        )
    return newest


# ------------------------------------------------------------------ accuracy


@dataclass(frozen=True)
class _Side:
    """One version on all active cases, in their order."""

    model: Model
    labels: tuple[str, ...]
    results: tuple[CaseResult, ...]

    def of(self, cases: Iterable[BadCase]) -> list[CaseResult]:
        """The results of ``cases``."""
        by_content = {result.content_sha256: result for result in self.results}
        return [by_content[case.content_sha256] for case in cases]


def _both(scene: _Scene) -> tuple[_Side, _Side]:
    """Both versions; where backbone and code are the same, their embeddings are too."""
    first, second = scene.challenger, scene.champion
    vectors: Mapping[str, Array] | None = None
    sides = []
    for model in (first, second):
        subject = serving.of_version(scene.settings, model)
        same = (model.backbone_sha256, model.code_sha256) == (first.backbone_sha256, first.code_sha256)
        with scene.serve(subject) as served:
            if vectors is None or not same:
                vectors = _embeddings(scene, model, served)
            results = _results(scene.snapshot.active, vectors, served)
        sides.append(_Side(_model(model, subject), subject.tagger.label_ids, results))
    return sides[0], sides[1]


def _embeddings(scene: _Scene, model: ModelVersion, served: Serving) -> dict[str, Array]:
    """``float16 [dimension]`` of each case that can be read: cached, from the night's store, else made now.

    Of retired cases too: what is held out from training is compared with all cases there ever were.
    Only what the code packed with the version made: another one may decode or crop otherwise.
    """
    cached = _cached(scene, model)
    found = {**cached, **_tagged(scene, model, set(scene.ever) - set(cached))}
    missing = [content for content in scene.ever if content not in found]
    made = served.embed(bad_cases.content(scene.store, content) for content in missing)
    for content, vector in zip(missing, made, strict=True):
        if isinstance(vector, Unreadable):
            log.warning("badcase_unreadable", version=model.version, content=content, reason=vector.reason)
        else:
            found[content] = vector
    new = [content for content in found if content not in cached]
    if new:
        vectors = np.stack([found[content] for content in new])
        bad_cases.add_embeddings(scene.store, model.backbone_sha256, new, vectors, model.code_sha256)
    log.info("badcases_embedded", version=model.version, embedded=len(missing), stored=len(scene.ever) - len(missing))
    return found


def _cached(scene: _Scene, model: ModelVersion) -> dict[str, Array]:
    contents, vectors = bad_cases.embeddings(scene.store, model.backbone_sha256, model.code_sha256)
    wanted = set(scene.ever)
    return {content: vector for content, vector in zip(contents, vectors, strict=True) if content in wanted}


def _tagged(scene: _Scene, model: ModelVersion, contents: Iterable[str]) -> dict[str, Array]:
    """Those that finished nights have embedded."""
    wanted = sorted(contents)
    if not wanted:
        return {}
    unfinished = {plan.run_key for plan in planning.unfinished(scene.store)}
    finished = [
        plan.run_key
        for plan in planning.claimed(scene.store)
        if plan.run_key not in unfinished and plan.code_sha256 == model.code_sha256
    ]
    known = KnownContents(scene.store, model.backbone_sha256, finished)
    found = ((content, known.get(content)) for content in wanted)
    return {content: vector for content, vector in found if vector is not None}


def _results(cases: Sequence[BadCase], vectors: Mapping[str, Array], served: Serving) -> tuple[CaseResult, ...]:
    readable = [case.content_sha256 for case in cases if case.content_sha256 in vectors]
    rows = served.predict(np.stack([vectors[content] for content in readable])) if readable else []
    predicted = dict(zip(readable, rows, strict=True))
    return tuple(_result(case, predicted.get(case.content_sha256)) for case in cases)


def _result(case: BadCase, found: serving.Prediction | None) -> CaseResult:
    """A case that the model's code cannot read is one that it gets wrong."""
    first = found.label_ids[0] if found and found.label_ids else None
    return CaseResult(
        content_sha256=case.content_sha256,
        label_id=first,
        confidence=found.scores[0] if found and found.scores else None,
        top5=found.label_ids if found else (),
        decision=found.decision if found else "review",
        right=metrics.is_right(case, first),
    )


def _model(model: ModelVersion, subject: Subject) -> Model:
    size = sum(path.stat().st_size for path in subject.tagger.folder.rglob("*") if path.is_file())
    return Model(
        version=model.version,
        sha256=model.sha256,
        backbone_sha256=model.backbone_sha256,
        labels=len(subject.tagger.label_ids),
        megabytes=size / 1e6,
    )


def _accuracy(scene: _Scene, challenger: _Side, champion: _Side) -> AccuracyReport:
    active = scene.snapshot.active
    groups = metrics.groups(active, champion.labels, challenger.labels)

    def measures(side: _Side) -> dict[str, Metrics]:
        return {name: metrics.measure(cases, side.of(cases)) for name, cases in groups.items()}

    def pairs() -> dict[str, Paired]:
        return {name: metrics.compare(challenger.of(cases), champion.of(cases)) for name, cases in groups.items()}

    return AccuracyReport(
        badcases=scene.snapshot.name,
        badcases_sha256=scene.snapshot.sha256,
        cases=len(active),
        curated=sum(not case.starter for case in active),
        groups={name: len(cases) for name, cases in groups.items()},
        never_regress=tuple(case.content_sha256 for case in active if case.never_regress),
        challenger_model=challenger.model,
        champion_model=champion.model,
        challenger=measures(challenger),
        champion=measures(champion),
        paired=pairs(),
        challenger_results=challenger.results,
        champion_results=champion.results,
    )


# ------------------------------------------------------------------ reports in the store


def _write(store: Store, key: str, report: AccuracyReport | LatencyReport) -> None:
    store.write_bytes(key, report.model_dump_json(indent=1).encode())


def _read(store: Store, key: str, kind: type[Report]) -> Report | None:
    try:
        data = store.read_bytes(key)
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise WwtsError(f"{store.path(key)} is damaged (no report); evaluate the version again.") from error


def _check_measured(scene: _Scene, report: AccuracyReport | None) -> None:
    if report is None:
        return
    for measured, model in ((report.challenger_model, scene.challenger), (report.champion_model, scene.champion)):
        if (measured.version, measured.sha256) != (model.version, model.sha256):
            raise WwtsError(
                f"{model.name} version {model.version} is no longer what was measured; evaluate the version again."
            )
