"""What MLflow shows of an evaluation: a run with all it measured, and the verdict on the version's own page.

MLflow has no transactions, so the order is what keeps a killed recording honest: first the version is marked
``pending`` and its old verdict is taken away, then everything is written, then the verdict as one tag, and ``gate``
last. Until then nothing on the version says that it passed; done again, it ends the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import structlog

from eval import charts, comparison, contact_sheet, description, fonts, measures, page
from wwts_ops import badcases, images, provenance, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.storage import Store
from wwts_ops.verdict import TAG, Mode, RuleOutcome, Verdict

if TYPE_CHECKING:
    from eval.comparison import Confusion, Names, Sheet
    from eval.gate import Decision
    from eval.reports import Reports
    from wwts_ops.badcases import Snapshot
    from wwts_ops.settings import Settings
    from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

EXPERIMENT = "wwts-evaluations"
#: Tags of a model version; ``GATE`` is ``pending``, ``passed`` or ``failed``.
GATE, DRY_RUN, RULE = "gate", "gate.dry_run", "gate.rule."
#: Stands for the rules that passed in a verdict too long for its tag.
OMITTED = "omitted"
SHEET = "contact-sheet.jpg"
#: Entities that MLflow takes in one request, of at most 1,000 and a megabyte.
_BATCH = 500
#: Bytes of the verdict's tag: MySQL's TEXT, which holds model versions' tags there, ends at 65,535.
_VERDICT_LONGEST = 60_000
_REASON_LONGEST = 200
#: Pixels of the longer side of a thumbnail.
_THUMBNAIL = 320


@dataclass(frozen=True)
class Judged:
    """What was judged, by what, and on whose behalf.

    Attributes:
        model: the version judged.
        champion: the version it was compared with.
        snapshot: the bad cases.
        rules_sha256: of the rules' file.
        mode: ``enforced`` or ``dry_run``.
        actor: who asked for it.
        run: Airflow's id of the run; empty outside Airflow.
    """

    model: ModelVersion
    champion: ModelVersion
    snapshot: Snapshot
    rules_sha256: str
    mode: Mode
    actor: str
    run: str


def write(settings: Settings, judged: Judged, reports: Reports, decision: Decision) -> Verdict:
    """Records ``decision`` as a run and, unless it is a dry run, on the model version.

    Raises:
        UnavailableError: when MLflow or the store do not answer; the version then says ``pending``, never ``passed``.
        WwtsError: when MLflow refuses.
    """
    with tracking.connected(settings) as client:
        version = _Version(client, judged.model)
        version.begin(judged.mode)
        experiment = tracking.experiment(client, settings, EXPERIMENT)
        _bury(client, experiment, judged)
        with _run(client, experiment, judged) as run_id:
            verdict = _verdict(judged, decision, run_id)
            tag = _compact(verdict).model_dump_json()
            shown = _log(settings, _Logged(client, experiment, judged, reports, verdict, version.notes))
        version.end(verdict, shown, tag)
    log.info("verdict_recorded", version=judged.model.version, passed=verdict.passed, mode=verdict.mode, run_id=run_id)
    return verdict


class _Version:
    """The page of a model version: its description and tags."""

    def __init__(self, client: Any, model: ModelVersion) -> None:
        self._client = client
        self._at = (model.name, model.version)
        entry = client.get_model_version(*self._at)
        self._tags: Mapping[str, str] = entry.tags
        #: What people wrote into the description; ours stands above it.
        self.notes = description.notes(entry.description or "")

    def begin(self, mode: Mode) -> None:
        if mode == "dry_run":
            self._set(DRY_RUN, "pending")
            return
        self._set(GATE, "pending")
        if TAG in self._tags:
            self._client.delete_model_version_tag(*self._at, TAG)
        waiting = "## ⏳ 正在写入门禁结论…"
        if len(waiting) <= description.room(self.notes):
            self._describe(description.above(waiting, self.notes))

    def end(self, verdict: Verdict, shown: str, tag: str) -> None:
        outcome = "passed" if verdict.passed else "failed"
        if verdict.mode == "dry_run":
            self._set(DRY_RUN, outcome)
            return
        self._describe(description.above(shown, description.kept(self.notes, verdict.run_id)))
        tags = {**_rule_tags(verdict), **_facts(verdict)}
        for stale in {key for key in self._tags if key.startswith(RULE)} - tags.keys():
            self._client.delete_model_version_tag(*self._at, stale)
        for key, value in tags.items():
            if self._tags.get(key) != value:  # a request each
                self._set(key, value)
        self._set(TAG, tag)
        self._set(GATE, outcome)

    def _describe(self, whole: str) -> None:
        self._client.update_model_version(*self._at, whole)

    def _set(self, key: str, value: str) -> None:
        self._client.set_model_version_tag(*self._at, key, value)


@contextmanager
def _run(client: Any, experiment: str, judged: Judged) -> Iterator[str]:
    """A run that ends as finished, or as failed when anything in it does."""
    name = f"v{judged.model.version} vs v{judged.champion.version}"
    run_id = str(client.create_run(experiment, run_name=name, tags=_run_tags(judged)).info.run_id)
    try:
        yield run_id
    except BaseException:
        with suppress(Exception):  # MLflow may be what failed; that error is the one to tell
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _bury(client: Any, experiment: str, judged: Judged) -> None:
    """Marks as failed what a killed attempt of the same Airflow run left running."""
    if not judged.run:
        return
    same = {"wwts.airflow_run", "wwts.model_name", "wwts.model_version", "wwts.mode"}
    ours = {key: value for key, value in _run_tags(judged).items() if key in same}
    for found in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if ours.items() <= found.data.tags.items():
            client.set_terminated(found.info.run_id, "FAILED")


def _run_tags(judged: Judged) -> dict[str, str]:
    return {
        "mlflow.user": judged.actor,
        "mlflow.source.name": "wwts evaluate_model",
        "mlflow.source.git.commit": provenance.git_sha() or "",
        "git_sha": provenance.git_sha() or "",
        "model_sha256": judged.model.sha256,
        "backbone_sha256": judged.model.backbone_sha256,
        "champion_sha256": judged.champion.sha256,
        "badcases": judged.snapshot.name,
        "badcases_sha256": judged.snapshot.sha256,
        "rules_sha256": judged.rules_sha256,
        "wwts.model_name": judged.model.name,
        "wwts.model_version": judged.model.version,
        "wwts.champion_version": judged.champion.version,
        "wwts.airflow_run": judged.run,
        "wwts.actor": judged.actor,
        "wwts.mode": judged.mode,
    }


def _params(judged: Judged) -> dict[str, str]:
    return {
        "model": judged.model.name,
        "version": judged.model.version,
        "champion_version": judged.champion.version,
        "badcases": judged.snapshot.name,
        "rules_sha256": judged.rules_sha256,
        "mode": judged.mode,
    }


@dataclass(frozen=True)
class _Logged:
    """What goes into one run."""

    client: Any
    experiment: str
    judged: Judged
    reports: Reports
    verdict: Verdict
    notes: str


def _log(settings: Settings, logged: _Logged) -> str:
    """Fills the run and returns the description, which the run shows too."""
    seen = _seen(settings, logged)
    made_at = logged.verdict.judged_at.astimezone(ZoneInfo(settings.timezone))
    shown = description.build(
        logged.verdict,
        logged.reports,
        description.Shown(
            logged.experiment,
            seen.sheet,
            SHEET if seen.sheet.shown else "",
            None if fonts.best().is_chinese else seen.names,
            made_at,
        ),
        description.room(description.kept(logged.notes, logged.verdict.run_id)),
    )
    _log_numbers(logged)
    _log_inputs(logged)
    with tempfile.TemporaryDirectory(prefix="wwts-record-") as folder:
        for name, data in _files(logged, seen, made_at).items():
            Path(folder, name).write_bytes(data)
        logged.client.log_artifacts(logged.verdict.run_id, folder)
    _log_verdict(logged, shown)
    return shown


@dataclass(frozen=True)
class _Seen:
    """What people look at: changed cases with their thumbnails, confusions, and the names of labels."""

    sheet: Sheet
    confusions: tuple[Confusion, ...]
    thumbnails: Mapping[str, bytes]
    names: Names


def _seen(settings: Settings, logged: _Logged) -> _Seen:
    store, cases = Store.of(settings), logged.judged.snapshot.active
    accuracy = logged.reports.accuracy
    sheet = comparison.sheet(accuracy, cases)
    contents = [one.case.content_sha256 for one in sheet.shown]
    found = {content: _thumbnail(store, settings, content) for content in contents}
    thumbnails = {content: data for content, data in found.items() if data is not None}
    return _Seen(sheet, comparison.confusions(accuracy, cases), thumbnails, comparison.names(store))


def _thumbnail(store: Store, settings: Settings, content: str) -> bytes | None:
    """A small JPEG of a case; None when its picture is lost or damaged, which ends no evaluation."""
    try:
        rgb = images.decode(badcases.content(store, content), _THUMBNAIL, settings.max_pixels).rgb
    except UnavailableError:
        raise
    except (WwtsError, images.Rejected) as error:
        log.warning("case_without_picture", content_sha256=content, error=str(error))
        return None
    return images.thumbnail(rgb, _THUMBNAIL)


def _log_numbers(logged: _Logged) -> None:
    from mlflow.entities import Metric, Param

    now = int(logged.verdict.judged_at.timestamp() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in measures.flat(logged.reports).items()]
    params = [Param(key, value) for key, value in _params(logged.judged).items()]
    run_id = logged.verdict.run_id
    logged.client.log_batch(run_id, metrics=metrics[:_BATCH], params=params)
    for start in range(_BATCH, len(metrics), _BATCH):
        logged.client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def _log_inputs(logged: _Logged) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    snapshot = logged.judged.snapshot
    # MLflow keeps 36 characters of a digest; the tag badcases_sha256 has them all.
    dataset = Dataset(snapshot.name, snapshot.sha256[:36], "wwts", f"badcases/{snapshot.name}")
    given = DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])
    logged.client.log_inputs(logged.verdict.run_id, [given])


def _log_verdict(logged: _Logged, shown: str) -> None:
    from mlflow.entities import RunTag

    outcome = "passed" if logged.verdict.passed else "failed"
    logged.client.log_batch(
        logged.verdict.run_id, tags=[RunTag("verdict", outcome), RunTag("mlflow.note.content", shown)]
    )


def _files(logged: _Logged, seen: _Seen, made_at: datetime) -> dict[str, bytes]:
    """Artifacts by name."""
    font, accuracy, latency = fonts.best(), logged.reports.accuracy, logged.reports.latency
    files = {"verdict.json": logged.verdict.model_dump_json(indent=1).encode()}
    if description.kept(logged.notes, logged.verdict.run_id) != logged.notes:
        files[description.NOTES_FILE] = logged.notes.encode()
    if seen.sheet.shown:
        files[SHEET] = contact_sheet.draw(seen.sheet, seen.thumbnails, seen.names, font)
    if seen.confusions:
        files["confusions.png"] = charts.confusions(seen.confusions, seen.names, font)
        files["confusions.csv"] = comparison.confusions_csv(seen.confusions, seen.names)
    if accuracy is not None:
        files["accuracy.json"] = accuracy.model_dump_json(indent=1).encode()
        files["reliability.png"] = charts.reliability(accuracy, font)
    if latency is not None:
        files["latency.json"] = latency.model_dump_json(indent=1).encode()
    if latency is not None and latency.challenger.samples:
        files["latency.png"] = charts.latency(latency, font)
    pictures = {name.removesuffix(".png"): data for name, data in files.items() if name.endswith(".png")}
    facts = page.Facts(logged.verdict, logged.reports, seen.sheet, seen.confusions, seen.names, made_at)
    files["report.html"] = page.render(facts, seen.thumbnails, pictures).encode()
    return files


def _verdict(judged: Judged, decision: Decision, run_id: str) -> Verdict:
    return Verdict(
        passed=decision.passed,
        mode=judged.mode,
        reasons=decision.reasons,
        rules=decision.rules,
        model_version=judged.model.version,
        model_sha256=judged.model.sha256,
        champion_version=judged.champion.version,
        champion_sha256=judged.champion.sha256,
        badcases=judged.snapshot.name,
        badcases_sha256=judged.snapshot.sha256,
        rules_sha256=judged.rules_sha256,
        run_id=run_id,
        git_sha=provenance.git_sha() or "",
        judged_at=datetime.now(UTC),
    )


def _rule_tags(verdict: Verdict) -> dict[str, str]:
    safe = measures.safe_names(rule.rule for rule in verdict.rules)
    return {RULE + safe[rule.rule]: _outcome(rule) for rule in verdict.rules}


def _outcome(rule: RuleOutcome) -> str:
    wanted = f"（{rule.threshold}）" if rule.threshold else ""
    return f"{rule.outcome}：{rule.value or '未测得'}{wanted}"


def _facts(verdict: Verdict) -> dict[str, str]:
    return {
        "gate.mode": verdict.mode,
        "gate.run_id": verdict.run_id,
        "gate.badcases": verdict.badcases,
        "gate.champion": verdict.champion_version,
        "gate.rules_sha256": verdict.rules_sha256,
        "gate.git_sha": verdict.git_sha,
        "gate.judged_at": verdict.judged_at.isoformat(timespec="seconds"),
    }


def _compact(verdict: Verdict) -> Verdict:
    """``verdict``, shortened where MLflow's tag could not hold it; it then says so, and verdict.json has it whole."""
    if _bytes(verdict) <= _VERDICT_LONGEST:
        return verdict
    where = f"见 MLflow 运行 {verdict.run_id} 的 verdict.json"
    against = [rule for rule in verdict.rules if rule.outcome != "passed"]
    for longest in (_REASON_LONGEST, _REASON_LONGEST // 4):
        reasons = tuple(_cut(reason, longest, where) for reason in verdict.reasons)
        short = [rule.model_copy(update={"reason": _cut(rule.reason, longest, where)}) for rule in against]
        for rules in (short + [rule for rule in verdict.rules if rule.outcome == "passed"], short):
            left = len(verdict.rules) - len(rules)
            value = f"另有 {left} 条规则通过"
            omitted = [RuleOutcome(rule=OMITTED, title="其余门禁规则", outcome="passed", value=value, threshold=where)]
            made = verdict.model_copy(update={"reasons": reasons, "rules": (*rules, *(omitted if left else ()))})
            if _bytes(made) <= _VERDICT_LONGEST:
                return made
    raise WwtsError(
        f"{len(against)} rules of the gate did not pass: more than MLflow's tag {TAG} can hold. "
        "Use fewer slices of bad cases, or take the slices' own rules out of the gate's file."
    )


def _bytes(verdict: Verdict) -> int:
    return len(verdict.model_dump_json().encode())


def _cut(reason: str, longest: int, where: str) -> str:
    return reason if len(reason) <= longest else f"{reason[:longest]}…（共 {len(reason)} 字，全文{where}）"
