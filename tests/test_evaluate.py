"""Measuring versions on bad cases, on a real MLflow: each by its own code, embeddings shared where that is allowed."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_taggers
import yaml
from code_shelf import Shelf, environment
from environment import clean
from night_process import one_night
from served_taggers import photographs
from shard_shop import PHOTOS
from structlog.testing import capture_logs

from eval import evaluate
from eval.evaluate import Order
from eval.reports import AccuracyReport, CaseResult, LatencyReport
from wwts_ops import badcases, images, registration, registry, taxonomy
from wwts_ops.badcases import BadCase, Snapshot
from wwts_ops.decisions import Decider
from wwts_ops.errors import WwtsError
from wwts_ops.registration import Candidate
from wwts_ops.runtime import OnnxEmbedder, Scorer
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Head, Tagger
from wwts_ops.verdict import Verdict

LABELS = tuple(label.label_id for label in taxonomy.embedded_labels()[:6])
#: Another head; the champion again; another head from a release that reads pictures otherwise; the embedded default.
OTHER, EQUAL, RELEASE, EMBEDDED = "2", "3", "4", "5"
#: Pictures upside down, and PNG files refused.
_ANOTHER_RELEASE = (
    "images.py",
    "    kind = _kind(data)\n    if kind",
    '    kind = _kind(data)\n    if kind == "PNG":\n        raise Rejected("unsupported_format", "PNG")\n'
    "    if short_side > 0:\n"
    '        found = _decode_jpeg(data, short_side, max_pixels) if kind == "JPEG" else '
    "_decode_with_pillow(data, kind, short_side, max_pixels)\n"
    "        return Decoded(np.ascontiguousarray(found.rgb[::-1]), found.width, found.height)\n    if kind",
)


def head(seed: int) -> Head:
    numbers = np.random.default_rng(seed)
    return Head(LABELS, np.full(6, 0.4), numbers.normal(size=(6, 6)) / 2, numbers.normal(size=6))


@dataclass(frozen=True)
class Shop:
    """Version 1 is champion, and there are others: see the constants above."""

    settings: Settings
    taggers: tuple[Tagger, Tagger]
    alone: str
    snapshot: Snapshot

    @cached_property
    def store(self) -> Store:
        return Store.of(self.settings)

    @cached_property
    def cases(self) -> dict[str, BadCase]:
        return {case.content_sha256: case for case in self.snapshot.active}

    def accuracy(self, order: Order) -> AccuracyReport:
        return AccuracyReport.model_validate_json(self.store.read_bytes(order.accuracy_key))

    def vectors(self, data: bytes, turned: slice = slice(None)) -> Any:
        """What the tiny backbone makes of a picture, here and now."""
        tagger = self.taggers[0]
        rgb = images.decode(data, tagger.recipe.short_side, 10**8).rgb[turned]
        return OnnxEmbedder(tagger)(tagger.recipe.crop(np.ascontiguousarray(rgb))[None])

    def expected(self, tagger: Tagger, content: str, turned: slice = slice(None)) -> CaseResult:
        """What ``tagger`` makes of a case, computed in this process."""
        names = taxonomy.current(self.store)
        assert names is not None
        vectors = self.vectors(badcases.content(self.store, content), turned)
        (found,) = Decider(tagger.label_ids, tagger.thresholds, names, 5)(Scorer(tagger)(vectors))
        first, case = found.tags[0], self.cases[content]
        return CaseResult(
            content_sha256=content,
            label_id=first.label_id,
            confidence=first.score,
            top5=tuple(tag.label_id for tag in found.tags),
            decision=found.decision,
            right=first.label_id in case.accepted and first.label_id not in case.forbidden,
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Iterator[Shop]:
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        folder = tmp_path_factory.mktemp("shop")
        taggers = [served_taggers.save(folder / f"tagger-{seed}", wanted=head(seed)) for seed in (1, 2)]
        shelf = Shelf(folder, taggers[1])
        shelf.fill_catalog()
        found = shelf.settings(top_k=3, max_delist_share=1.0)
        labels = taxonomy.embedded_labels()[:6]
        first = registration.register(found, Candidate(taggers[0], labels, "first"))
        _client(found).set_registered_model_alias(found.model_name, "champion", first.version)
        one_night(found, date(2026, 3, 1))
        with pytest.raises(WwtsError) as alone:
            evaluate.prepare(found, None, None)
        registration.register(found, Candidate(taggers[1], labels, "another head"))
        registration.register(found, Candidate(taggers[0], labels, "the same again"))
        shelf.register(found, _ANOTHER_RELEASE)
        shutil.copytree(embedded_tagger.folder, found.state_dir / "models" / embedded_tagger.folder.name)
        registration.register_embedded(found)
        imported = badcases.import_cases(Store.of(found), found, _sheet(folder), "王芳")
        yield Shop(found, (taggers[0], taggers[1]), str(alone.value), imported.snapshot)


def _client(found: Settings) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=found.resolved_tracking_uri, registry_uri=found.resolved_tracking_uri)


def _sheet(folder: Path) -> Path:
    """Cases of the catalog's photographs (embedded by the night) and of others; one of them may never regress."""
    uris = [str(folder / "图库" / name) for name in PHOTOS]
    for number, data in enumerate(photographs(24)):
        path = folder / "更多" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        uris.append(str(path))
    rows = [
        {
            "uri": uri,
            "label_id": "|".join({LABELS[number % 6], LABELS[number % 4]}),
            "forbidden": LABELS[4] if number % 6 != 4 else "",
            "slice": "小图" if number % 2 else "",
            "never_regress": "true" if number == 3 else "",
        }
        for number, uri in enumerate(uris)
    ]
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "cases.csv"


class TestPrepare:
    def test_the_newest_version_and_the_snapshot_in_force(self, shop: Shop) -> None:
        order = evaluate.prepare(shop.settings, None, None)
        assert (order.version, order.champion_version, order.badcases) == (EMBEDDED, "1", shop.snapshot.name)
        assert order.evaluation.startswith(f"v5-vs-v1-{shop.snapshot.name}-2")
        assert Order(**json.loads(json.dumps(dataclasses.asdict(order)))) == order

    def test_a_version_and_a_snapshot_by_name(self, shop: Shop) -> None:
        (first,) = (key.split("/")[1] for key in shop.store.list("badcases") if "/b000001-" in key)
        order = evaluate.prepare(shop.settings, OTHER, first)
        assert (order.version, order.badcases) == (OTHER, first)

    def test_what_is_not_there(self, shop: Shop) -> None:
        with pytest.raises(WwtsError, match="has no version 9"):
            evaluate.prepare(shop.settings, "9", None)
        with pytest.raises(WwtsError, match="no snapshot 'b000009-000000000000'"):
            evaluate.prepare(shop.settings, None, "b000009-000000000000")
        assert "has no version besides champion 1" in shop.alone

    def test_a_set_without_a_case_in_force(self, shop: Shop, tmp_path: Path) -> None:
        found = shop.settings.model_copy(
            update={
                "store": str(tmp_path / "store"),
                "mlflow_tracking_uri": shop.settings.resolved_tracking_uri,
            }
        )
        store = Store.of(found)
        names = taxonomy.ensure(store, ())
        for case in badcases.ensure(store, names).active:
            badcases.retire(store, "王芳", case.content_sha256, "试验")
        with pytest.raises(WwtsError, match=r"Every bad case .* is retired"):
            evaluate.prepare(found, OTHER, None)


class TestAccuracy:
    @pytest.fixture(scope="class")
    @staticmethod
    def measured(shop: Shop) -> tuple[Order, list[Any]]:
        """The first evaluation: what it ordered and what it logged."""
        order = evaluate.prepare(shop.settings, OTHER, None)
        with capture_logs() as events:
            evaluate.measure_accuracy(shop.settings, order)
        return order, list(events)

    def test_both_give_what_they_would_give_here(self, shop: Shop, measured: tuple[Order, list[Any]]) -> None:
        report = shop.accuracy(measured[0])
        assert [one.content_sha256 for one in report.challenger_results] == list(shop.cases)
        for results, tagger in ((report.champion_results, 0), (report.challenger_results, 1)):
            for one in results:
                assert one == shop.expected(shop.taggers[tagger], one.content_sha256)
        assert {one.right for one in report.challenger_results} == {True, False}
        assert {one.decision for one in report.challenger_results + report.champion_results} >= {"auto", "review"}

    def test_the_report_says_what_it_stands_on(self, shop: Shop, measured: tuple[Order, list[Any]]) -> None:
        report = shop.accuracy(measured[0])
        assert (report.badcases, report.badcases_sha256) == (shop.snapshot.name, shop.snapshot.sha256)
        assert (report.cases, report.curated) == (len(shop.cases), 33)
        assert report.cases > report.curated
        (kept,) = (case for case in shop.snapshot.active if case.never_regress and not case.starter)
        assert kept.content_sha256 in report.never_regress
        assert report.groups["overall"] == report.cases == report.paired["overall"].n
        assert report.groups["小图"] == 16
        assert report.groups["new_labels"] == 0
        assert set(report.groups) == set(report.challenger) == set(report.champion) == set(report.paired)
        tagger = shop.taggers[1]
        size = sum(path.stat().st_size for path in tagger.folder.iterdir())
        model = report.challenger_model
        assert (model.version, model.sha256, model.labels) == (OTHER, tagger.sha256, 6)
        assert model.megabytes == pytest.approx(size / 1e6)
        right = sum(one.right for one in report.challenger_results)
        assert report.challenger["overall"].top1.value == pytest.approx(right / report.cases)

    def test_the_nights_embeddings_are_used_and_the_champion_shares(
        self, shop: Shop, measured: tuple[Order, list[Any]]
    ) -> None:
        (event,) = (event for event in measured[1] if event["event"] == "badcases_embedded")
        assert event["stored"] == len(PHOTOS)
        assert event["embedded"] == len(shop.cases) - len(PHOTOS)

    def test_again_it_embeds_nothing_and_writes_the_same_bytes(
        self, shop: Shop, measured: tuple[Order, list[Any]]
    ) -> None:
        before = shop.store.read_bytes(measured[0].accuracy_key)
        with capture_logs() as events:
            evaluate.measure_accuracy(shop.settings, measured[0])
        assert [event["embedded"] for event in events if event["event"] == "badcases_embedded"] == [0]
        assert shop.store.read_bytes(measured[0].accuracy_key) == before

    def test_another_code_measures_by_its_own_and_leaves_the_kept_embeddings_alone(
        self, shop: Shop, measured: tuple[Order, list[Any]]
    ) -> None:
        champion = registry.resolve(shop.settings, "1")
        mine = champion.backbone_sha256, champion.code_sha256
        before = badcases.embeddings(shop.store, *mine)
        assert len(before[0]) == len(shop.cases)
        order = evaluate.prepare(shop.settings, RELEASE, None)
        with capture_logs() as events:
            evaluate.measure_accuracy(shop.settings, order)
        embedded = {event["version"]: event["embedded"] for event in events if event["event"] == "badcases_embedded"}
        assert embedded == {RELEASE: len(shop.cases), "1": 0}
        after = badcases.embeddings(shop.store, *mine)
        assert after[0] == before[0]
        np.testing.assert_array_equal(after[1], before[1])
        report, second = shop.accuracy(order), shop.accuracy(measured[0])
        assert report.champion_results == second.champion_results
        for one in report.challenger_results:
            if badcases.content(shop.store, one.content_sha256).startswith(b"\x89PNG"):
                continue
            assert one == shop.expected(shop.taggers[1], one.content_sha256, slice(None, None, -1))
        assert report.challenger_results != second.challenger_results

        self.check_that_what_its_code_cannot_read_is_wrong(shop, report)

    def check_that_what_its_code_cannot_read_is_wrong(self, shop: Shop, report: AccuracyReport) -> None:
        contents = [one.content_sha256 for one in report.challenger_results]
        pngs = {one for one in contents if badcases.content(shop.store, one).startswith(b"\x89PNG")}
        assert len(pngs) >= 2
        unread = [one for one in report.challenger_results if one.label_id is None]
        assert {one.content_sha256 for one in unread} == pngs
        assert not any(one.right or one.top5 or one.confidence is not None for one in unread)
        assert report.cases == report.challenger["overall"].n == len(shop.cases)

    def test_another_backbone_with_labels_of_its_own(self, shop: Shop, embedded_tagger: Tagger) -> None:
        order = evaluate.prepare(shop.settings, EMBEDDED, None)
        evaluate.measure_accuracy(shop.settings, order)
        report = shop.accuracy(order)
        assert report.challenger_model.backbone_sha256 == embedded_tagger.backbone_sha256
        assert report.champion_model.backbone_sha256 == shop.taggers[0].backbone_sha256
        assert report.challenger_model.labels == 1000
        # Photographs of things that it knows, of which the six random labels of the champion say nothing.
        new = {case.content_sha256 for case in shop.snapshot.active if not set(case.accepted) & set(LABELS)}
        assert report.groups["new_labels"] == len(new) > 10
        assert report.challenger["new_labels"].top1.value > 0.5
        assert report.champion["new_labels"].top1.value == 0
        contents, vectors = badcases.embeddings(shop.store, embedded_tagger.backbone_sha256)
        assert set(contents) == set(shop.cases)
        assert vectors.shape[1] == embedded_tagger.recipe.dimension


class TestLatency:
    def test_both_on_pictures_of_the_cases(self, shop: Shop) -> None:
        order = evaluate.prepare(shop.settings, RELEASE, None)
        with capture_logs() as events:
            evaluate.measure_latency(shop.settings, order)
        report = LatencyReport.model_validate_json(shop.store.read_bytes(order.latency_key))
        data = [badcases.content(shop.store, content) for content in shop.cases]
        assert len(data) <= 100
        assert report.images == sum(not one.startswith(b"\x89PNG") for one in data)
        assert report.champion is not None
        rounds = [event["done"] for event in events if event["event"] == "latency_progress"]
        assert rounds == list(range(1, len(rounds) + 1))
        assert 5 <= len(rounds) <= 40
        assert len(report.champion.samples) == len(report.challenger.samples) == len(rounds) * report.images

    def test_the_command_measures_a_version_beside_the_champion(self, shop: Shop) -> None:
        command = [sys.executable, "-m", "eval.benchmark", "--image-dir", shop.settings.catalog, "--threshold", "600"]
        asked = ["--version", OTHER, "--repeats", "1", "--count", "4"]
        given = {**environment(shop.settings), "COLUMNS": "100"}
        done = subprocess.run([*command, *asked], env=given, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "wwts-tagger version 2" in done.stdout
        assert "wwts-tagger version 1 (champion)" in done.stdout


class TestJudge:
    @pytest.fixture(scope="class")
    @staticmethod
    def equal(shop: Shop) -> Order:
        """Measured on all cases, not yet for time."""
        order = evaluate.prepare(shop.settings, EQUAL, None)
        evaluate.measure_accuracy(shop.settings, order)
        return order

    @pytest.fixture
    @staticmethod
    def lenient(shop: Shop, tmp_path: Path) -> Settings:
        """Rules whose floors a random head reaches; what compares with the champion is as shipped, but for time."""
        rules = yaml.safe_load(files("eval").joinpath("gate.yaml").read_text(encoding="utf-8"))
        rules["overall"].update(min_top1=0.0, min_top5=0.0, min_auto_precision=0.0, max_ece=1.0)
        rules["slices"]["default"].update(min_cases=1, min_top1=0.0)
        rules["slices"]["by_name"]["old_labels"]["min_top1"] = 0.0
        rules["latency"].update(max_p95_seconds=60.0, max_p95_ratio=100.0)
        (tmp_path / "gate.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
        return shop.settings.model_copy(update={"gate_rules": str(tmp_path / "gate.yaml")})

    def aliases(self, shop: Shop) -> dict[str, str]:
        aliases = _client(shop.settings).get_registered_model(shop.settings.model_name).aliases
        return {alias: str(version) for alias, version in aliases.items()}

    def test_an_equal_version_passes_and_is_named_challenger_unless_rehearsed(
        self, shop: Shop, lenient: Settings, equal: Order
    ) -> None:
        order = equal
        evaluate.measure_latency(lenient, order)
        rehearsed = evaluate.judge(lenient, order, "dry_run", "王芳", "manual__1")
        assert (rehearsed.passed, rehearsed.reasons) == (True, ())
        assert "challenger" not in self.aliases(shop)
        with capture_logs() as events:
            verdict = evaluate.judge(lenient, order, "enforced", "王芳", "manual__2")
        assert (verdict.passed, verdict.model_version, verdict.champion_version) == (True, EQUAL, "1")
        assert verdict.rules_sha256 == hashlib.sha256(Path(lenient.gate_rules).read_bytes()).hexdigest()
        assert self.aliases(shop)["challenger"] == EQUAL
        tags = _client(lenient).get_model_version(lenient.model_name, EQUAL).tags
        assert Verdict.from_tag(tags["gate.verdict"]) == verdict
        (told,) = (event for event in events if event["event"] == "judged")
        assert told["passed"] is True
        assert (told["version"], told["champion"], told["mode"]) == (EQUAL, "1", "enforced")
        assert (told["reasons"], told["run_id"], told["badcases"]) == ([], verdict.run_id, order.badcases)
        assert {rule["rule"] for rule in told["rules"]} >= {"p95_ratio", "overall.non_inferiority", "never_regress"}
        json.dumps(told)

    def test_what_was_not_measured_fails(self, shop: Shop, lenient: Settings, equal: Order) -> None:
        order = dataclasses.replace(equal, evaluation="not-timed")
        shop.store.write_bytes(order.accuracy_key, shop.store.read_bytes(equal.accuracy_key))
        verdict = evaluate.judge(lenient, order, "dry_run", "王芳", "manual__3")
        failed = {rule.rule for rule in verdict.rules if rule.outcome == "failed"}
        assert not verdict.passed
        assert failed >= {"p95", "p95_ratio"}
        assert "overall.non_inferiority" not in failed

    def test_a_damaged_report_is_told(self, shop: Shop, equal: Order) -> None:
        order = dataclasses.replace(equal, evaluation="damaged")
        shop.store.write_bytes(order.accuracy_key, b'{"badcases": 1')
        with pytest.raises(WwtsError, match=r"accuracy.json is damaged"):
            evaluate.judge(shop.settings, order, "dry_run", "王芳", "manual__4")

    def test_a_report_on_other_files_is_refused(self, shop: Shop, equal: Order) -> None:
        order, report = dataclasses.replace(equal, evaluation="altered"), shop.accuracy(equal)
        other = report.challenger_model.model_copy(update={"sha256": "0" * 64})
        altered = report.model_copy(update={"challenger_model": other})
        shop.store.write_bytes(order.accuracy_key, altered.model_dump_json().encode())
        with pytest.raises(WwtsError, match=f"version {EQUAL} is no longer what was measured"):
            evaluate.judge(shop.settings, order, "dry_run", "王芳", "manual__5")


class TestDamaged:
    def test_a_version_is_named(self, shop: Shop) -> None:
        model = registry.resolve(shop.settings, OTHER)
        shutil.rmtree(shop.settings.state_dir / "models" / model.sha256, ignore_errors=True)
        heads = (shop.settings.state_dir / "mlartifacts").rglob("head.safetensors")
        wanted = (shop.taggers[1].folder / "head.safetensors").read_bytes()
        whole = [path for path in heads if path.read_bytes() == wanted]
        assert len(whole) == 2
        for path in whole:
            path.write_bytes(wanted[:-1] + bytes([wanted[-1] ^ 1]))
        order = evaluate.prepare(shop.settings, OTHER, None)
        try:
            for stage in (evaluate.measure_accuracy, evaluate.measure_latency):
                with pytest.raises(WwtsError, match=r"wwts-tagger version 2 cannot be measured: .*head.safetensors"):
                    stage(shop.settings, order)
        finally:
            for path in whole:
                path.write_bytes(wanted)
        assert not shop.store.exists(order.accuracy_key)
        assert not shop.store.exists(order.latency_key)
