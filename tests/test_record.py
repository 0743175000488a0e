"""What MLflow shows of an evaluation, on a real server: whole, honest when cut off, and safe whatever people wrote."""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import ProxyHandler, build_opener

import pytest
from judged_scene import Entry, Scene, photographs, verdict_of
from move_shop import mlflow_server
from PIL import Image

from eval import description, measures, record
from eval.comparison import Sheet
from eval.gate import Decision
from eval.reports import Reports
from wwts_ops import settings as settings_module
from wwts_ops.badcases.snapshots import content_key
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tracking import ModelVersion
from wwts_ops.verdict import TAG, RuleOutcome, Verdict

CUP, CAT, ROCKET = "imagenet:n07920052", "imagenet:n02123045", "imagenet:n04266014"
EVIL = "<script>alert(1)</script> | `x` ](javascript:alert(2)) ![p](http://evil.example/p.png)\n# @you :octocat: \u202e"
SLICES = ("宠物 🐱", "a/../b//", EVIL)
RULES = (
    RuleOutcome(rule="overall.top1", title="首位准确率", outcome="passed", value="93.0%", threshold="≥ 80.0%"),
    RuleOutcome(rule=f"slice.{EVIL}.top1", title=EVIL, outcome="advisory", value=EVIL, threshold=EVIL, reason=EVIL),
)
LOSES = RuleOutcome(
    rule="never_regress",
    title="不许退步的坏例",
    outcome="failed",
    value="变错 1 条",
    threshold="一条都不许变错",
    reason="丢了不许丢的。",
)
PASSES, FAILS = Decision(True, (), RULES), Decision(False, (LOSES.reason,), (*RULES, LOSES))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


def client(address: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=address, registry_uri=address)


def registered(address: str, note: str | None = None) -> ModelVersion:
    """A version in the registry, without files: the record never looks at them."""
    mlflow = client(address)
    if not mlflow.search_registered_models("name='wwts-tagger'"):
        mlflow.create_registered_model("wwts-tagger")
    run = mlflow.create_run("0").info
    made = mlflow.create_model_version(
        "wwts-tagger", f"{run.artifact_uri}/tagger", run_id=run.run_id, description=note, await_creation_for=0
    )
    mlflow.set_terminated(run.run_id)
    return ModelVersion("wwts-tagger", str(made.version), "2" * 64, "b" * 64)


def make_settings(folder: Path, address: str) -> Settings:
    return settings_module.load(store=str(folder / "store"), mlflow_tracking_uri=address)


def entries() -> list[Entry]:
    """Twelve cases: the challenger loses the first two, of which one may never regress, and wins the third."""
    right, wrong = (CUP, 0.9), (ROCKET, 0.8)
    said = [(right, wrong), (right, (None, 0.0)), (wrong, right), *[(right, right)] * 8, (wrong, (CAT, 0.7))]
    return [
        Entry(photo, CUP, *both, slices=SLICES, never_regress=number == 1, reason=EVIL, owner=EVIL)
        for number, (photo, both) in enumerate(zip(photographs(), said, strict=True))
    ]


def scene(folder: Path, address: str, **more: Any) -> Scene:
    more = {"model": registered(address), **more} if "model" not in more else more
    return Scene(make_settings(folder, address), entries(), **more)


def bare(folder: Path, address: str, **more: Any) -> Scene:
    """Without reports: nothing to draw, so that writing it takes a moment."""
    more = {"model": registered(address), **more} if "model" not in more else more
    return Scene(make_settings(folder, address), [], accuracy=False, p95=None, **more)


def write(of: Scene, decision: Decision) -> Verdict:
    return record.write(of.settings, of.judged, of.reports, decision)


def entry_of(address: str, model: ModelVersion) -> Any:
    return client(address).get_model_version(model.name, model.version)


def runs(address: str, model: ModelVersion) -> list[Any]:
    mlflow = client(address)
    experiment = mlflow.get_experiment_by_name(record.EXPERIMENT)
    found = mlflow.search_runs([experiment.experiment_id]) if experiment else []
    return [run for run in found if run.data.tags["wwts.model_version"] == model.version]


def fetched(url: str) -> bytes:
    with build_opener(ProxyHandler({})).open(url, timeout=30) as answer:
        data: bytes = answer.read()
    return data


@pytest.mark.usefixtures("clean_environment")
class TestWritten:
    @pytest.fixture(scope="class")
    @staticmethod
    def written(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Verdict]:
        made = scene(tmp_path_factory.mktemp("scene"), server, model=registered(server, "老王：双十一之后再上"))
        return made, made.write()

    def test_the_verdict_is_one_tag_and_gate_says_the_same(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, verdict = written
        tags = entry_of(server, made.model).tags
        assert Verdict.from_tag(tags[TAG]) == verdict
        assert not verdict.passed
        assert tags["gate"] == "failed"
        assert (verdict.model_version, verdict.champion_version) == (made.model.version, "1")
        assert (verdict.badcases_sha256, verdict.rules_sha256) == ("a" * 64, "c" * 64)
        assert tags["gate.run_id"] == verdict.run_id
        assert tags["gate.mode"] == "enforced"

    def test_every_rule_has_a_tag_with_its_numbers(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, verdict = written
        tags = entry_of(server, made.model).tags
        mine = {key: value for key, value in tags.items() if key.startswith(record.RULE)}
        assert len(mine) == len(verdict.rules) > 20
        assert mine["gate.rule.never_regress"] == "failed：1 条中变错 1 条（一条都不许变错）"
        (cat,) = (value for key, value in mine.items() if "宠物" in key and ".cases" in key)
        assert cat.startswith("passed：12 条")

    def test_the_run_has_every_number(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, verdict = written
        run = client(server).get_run(verdict.run_id)
        assert run.info.run_name == f"v{made.model.version} vs v1"
        assert run.info.status == "FINISHED"
        metrics = run.data.metrics
        assert metrics["badcases/overall/top1"] == pytest.approx(9 / 12)
        assert metrics["champion/badcases/overall/top1"] == pytest.approx(10 / 12)
        assert (metrics["badcases/overall/wins"], metrics["badcases/overall/losses"]) == (1, 2)
        assert metrics["badcases/overall/top1_low"] < 9 / 12 < metrics["badcases/overall/top1_high"]
        assert metrics["badcases/overall/top1_n"] == metrics["badcases/overall/n"] == 12
        assert metrics["badcases/overall/mcnemar_p"] == pytest.approx(1.0)
        assert metrics["model/megabytes"] == 18.9
        assert metrics["latency/p95_ratio"] == pytest.approx(
            metrics["latency/p95_seconds"] / metrics["champion/latency/p95_seconds"]
        )
        assert [key for key in metrics if key.startswith("badcases/宠物-")]
        assert run.data.params["version"] == made.model.version

    def test_the_run_says_what_it_stands_on(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, verdict = written
        run = client(server).get_run(verdict.run_id)
        tags = run.data.tags
        expected = {
            "model_sha256": "2" * 64,
            "backbone_sha256": "b" * 64,
            "badcases": made.snapshot.name,
            "badcases_sha256": "a" * 64,
            "rules_sha256": "c" * 64,
            "wwts.airflow_run": made.run,
            "wwts.actor": "anna",
            "wwts.mode": "enforced",
            "verdict": "failed",
            "git_sha": verdict.git_sha,
        }
        assert expected.items() <= tags.items()
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == (made.snapshot.name, ("a" * 64)[:36])

    def test_the_artifacts_are_complete_and_whole(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, verdict = written
        mlflow = client(server)
        names = {file.path for file in mlflow.list_artifacts(verdict.run_id)}
        pictures = {"contact-sheet.jpg", "confusions.png", "reliability.png", "latency.png"}
        assert names == pictures | {"report.html", "verdict.json", "accuracy.json", "latency.json", "confusions.csv"}
        read = {name: Path(mlflow.download_artifacts(verdict.run_id, name)).read_bytes() for name in names}
        for name in pictures:
            with Image.open(io.BytesIO(read[name])) as picture:
                picture.load()
        assert Verdict.model_validate_json(read["verdict.json"]) == verdict
        assert read["accuracy.json"].decode() == made.reports.accuracy.model_dump_json(indent=1)
        lines = read["confusions.csv"].decode("utf-8-sig").splitlines()[1:]
        counts = {line.split(",")[2]: line.split(",")[-2:] for line in lines}
        assert counts == {ROCKET: ["1", "2"], CAT: ["1", "0"], "": ["1", "0"]}

    def test_the_description_begins_with_the_verdict(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, _ = written
        text = entry_of(server, made.model).description
        assert text.splitlines()[0] == "## **❌ 未通过门禁**（正式评测）"
        assert f"| 门禁规则 | 当前启用 v1 | 候选 v{made.model.version} | 要求 | 结论 |" in text
        assert "| 首位准确率 | 83.3% | 75.0% | ≥ 10.0% |" in text
        assert "变错 2 条，变对 1 条" in text
        assert text.endswith("老王：双十一之后再上")
        assert len(text) <= 5000

    def test_its_picture_loads_wherever_the_page_is(self, server: str, written: tuple[Scene, Verdict]) -> None:
        """Addresses are relative to the page, which a proxy may serve on another port."""
        made, _ = written
        (address,) = re.findall(r"!\[.*?\]\((.*?)\)", entry_of(server, made.model).description)
        with proxied(server) as (other, _):
            for base in (server, other):
                page = f"{base}/#/models/wwts-tagger/versions/{made.model.version}"
                data = fetched(urljoin(page, address))
                with Image.open(io.BytesIO(data)) as picture:
                    assert picture.format == "JPEG"

    def test_its_link_leads_to_the_run(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, verdict = written
        text = entry_of(server, made.model).description
        (link,) = re.findall(r"(?<!!)\[[^]]*\]\((.*?)\)", text)
        run = client(server).get_run(verdict.run_id)
        assert link == f"#/experiments/{run.info.experiment_id}/runs/{verdict.run_id}"

    def test_nothing_that_people_wrote_is_markup(self, server: str, written: tuple[Scene, Verdict]) -> None:
        made, verdict = written
        run = client(server).get_run(verdict.run_id)
        for text in (entry_of(server, made.model).description, run.data.tags["mlflow.note.content"]):
            assert "<script" not in text
            assert "javascript:" not in text
            assert "evil.example/" not in text
            assert "@you" not in text
            rows = [line for line in text.splitlines() if line.startswith("|")]
            assert {line.count("|") for line in rows} == {6}
            assert len(rows) > 10
        page = Path(client(server).download_artifacts(verdict.run_id, "report.html")).read_text()
        assert "<script" not in page
        assert "&lt;script&gt;" in page


@pytest.mark.usefixtures("clean_environment")
class TestAgain:
    def test_a_dry_run_leaves_the_verdict_in_force_alone(self, server: str, tmp_path: Path) -> None:
        made = bare(tmp_path, server)
        write(made, PASSES)
        before = entry_of(server, made.model)
        rehearsed = bare(tmp_path, server, model=made.model, mode="dry_run")
        verdict = write(rehearsed, FAILS)
        after = entry_of(server, made.model)
        assert after.tags == {**before.tags, "gate.dry_run": "failed"}
        assert after.description == before.description
        assert verdict.mode == "dry_run"
        note = client(server).get_run(verdict.run_id).data.tags["mlflow.note.content"]
        assert note.startswith("## **❌ 未通过门禁**（仅演练")

    def test_the_first_dry_run_leaves_no_verdict(self, server: str, tmp_path: Path) -> None:
        made = bare(tmp_path, server, mode="dry_run")
        write(made, PASSES)
        entry = entry_of(server, made.model)
        assert entry.tags == {"gate.dry_run": "passed"}
        assert not entry.description

    def test_written_again_nothing_of_the_old_verdict_is_left(self, server: str, tmp_path: Path) -> None:
        made = bare(tmp_path, server, model=registered(server, "自己的备注"))
        write(made, FAILS)
        first = entry_of(server, made.model)
        assert "gate.rule.never_regress" in first.tags
        verdict = write(made, PASSES)
        second = entry_of(server, made.model)
        assert second.tags["gate"] == "passed"
        assert Verdict.from_tag(second.tags[TAG]) == verdict
        assert "gate.rule.never_regress" not in second.tags
        assert first.tags.keys() - second.tags.keys() == {"gate.rule.never_regress"}
        assert second.description.count("自己的备注") == 1
        assert "未通过" not in second.description
        assert {run.info.status for run in runs(server, made.model)} == {"FINISHED"}

    def test_what_people_write_below_stays(self, server: str, tmp_path: Path) -> None:
        made = bare(tmp_path, server)
        write(made, FAILS)
        written = entry_of(server, made.model).description
        client(server).update_model_version(made.model.name, made.model.version, f"{written}\n\n**老王**：看过了")
        write(made, PASSES)
        assert entry_of(server, made.model).description.endswith("\n\n**老王**：看过了")

    def test_our_part_is_known_again_without_the_comment_that_ends_it(self, server: str, tmp_path: Path) -> None:
        made = bare(tmp_path, server)
        write(made, PASSES)
        written = re.sub("<!--.*?-->", "", entry_of(server, made.model).description)
        client(server).update_model_version(made.model.name, made.model.version, f"{written}\n\n老王：看过了")
        write(made, FAILS)
        text = entry_of(server, made.model).description
        assert "通过门禁" not in text.replace("未通过门禁", "")
        assert text.endswith("老王：看过了")

    def test_notes_too_long_to_share_the_room_are_kept_with_the_run(self, server: str, tmp_path: Path) -> None:
        notes = "备注。" * 1600
        made = bare(tmp_path, server, model=registered(server, notes))
        verdict = write(made, FAILS)
        text = entry_of(server, made.model).description
        assert len(text) <= 5000
        assert f"已存为评测记录 {verdict.run_id} 的 earlier-description.md" in text
        path = client(server).download_artifacts(verdict.run_id, "earlier-description.md")
        assert Path(path).read_text() == notes


@contextmanager
def proxied(
    target: str, refuses: Callable[[str, str, bytes], bool] = lambda *_: False
) -> Iterator[tuple[str, list[str]]]:
    """The server at ``target`` on another port, and what was asked of it; ``refuses`` says what gets no further."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if refuses(self.command, self.path, body):
                return self._answer(400, b'{"error_code": "BAD_REQUEST", "message": "cut"}', "application/json")
            asked.append(f"{self.command} {self.path}")
            there = http.client.HTTPConnection(urlsplit(target).netloc, timeout=60)
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
            there.request(self.command, self.path, body or None, headers)
            answer = there.getresponse()
            self._answer(answer.status, answer.read(), answer.headers.get("Content-Type", ""))
            there.close()
            return None

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815 (the base class's names)

        def log_message(self, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
    finally:
        listening.shutdown()
        listening.server_close()


def changes(method: str, path: str) -> bool:
    return method != "GET" and "search" not in path


@pytest.mark.usefixtures("clean_environment")
class TestCutOff:
    def test_wherever_it_is_cut_nothing_says_passed_and_the_next_one_mends_it(
        self, server: str, tmp_path: Path
    ) -> None:
        """A version that once passed is judged again and fails; MLflow goes away before each of the writes in turn."""
        made = bare(tmp_path, server)
        passed = write(made, PASSES)
        write(made, FAILS)
        whole = entry_of(server, made.model)
        cuts = 0
        while True:
            self.had_passed(server, made.model, passed)
            if not self.cut(made, server, tmp_path, cuts):
                break
            entry = entry_of(server, made.model)
            if cuts:
                assert entry.tags["gate"] == "pending"
                assert cuts == 1 or TAG not in entry.tags or not Verdict.from_tag(entry.tags[TAG]).passed
                assert cuts < 3 or "✅ 通过门禁" not in entry.description
            else:
                assert Verdict.from_tag(entry.tags[TAG]).passed  # nothing was begun
            cuts += 1
        assert cuts > 10
        ended = entry_of(server, made.model)
        assert ended.tags.keys() == whole.tags.keys()
        assert ended.tags["gate"] == "failed"
        assert {run.info.status for run in runs(server, made.model)} == {"FINISHED", "FAILED"}

    def had_passed(self, server: str, model: ModelVersion, verdict: Verdict) -> None:
        """As an earlier verdict left it."""
        mlflow, at = client(server), (model.name, model.version)
        mlflow.set_model_version_tag(*at, TAG, verdict.model_dump_json())
        mlflow.set_model_version_tag(*at, "gate", "passed")
        mlflow.update_model_version(*at, description.above("## **✅ 通过门禁**（正式评测）", ""))

    def cut(self, made: Scene, server: str, folder: Path, after: int) -> bool:
        """Judges ``made`` as failed while MLflow takes so many changes and then no more; whether it was cut."""
        left = [after]

        def refuses(method: str, path: str, body: bytes) -> bool:
            if changes(method, path):
                left[0] -= 1
            return left[0] < 0

        with proxied(server, refuses) as (address, _):
            second = bare(folder, address, model=made.model)
            try:
                write(second, FAILS)
            except WwtsError:
                return True
        return False

    def test_the_verdict_is_written_after_all_else_and_gate_last(self, server: str, tmp_path: Path) -> None:
        keys: list[str] = []

        def seen(method: str, path: str, body: bytes) -> bool:
            found = re.search(rb'"key": "(gate[^"]*)"', body) if path.endswith("set-tag") else None
            keys.append(found[1].decode() if found else path.rpartition("/")[2] if changes(method, path) else "")
            return False

        with proxied(server, seen) as (address, _):
            write(bare(tmp_path, address, model=registered(server)), PASSES)
        done = [key for key in keys if key]
        assert done[0] == "gate"
        assert done[-2:] == [TAG, "gate"]
        assert done.index("create") < len(done) - 3

    def test_a_run_whose_recording_fails_is_failed(self, server: str, tmp_path: Path) -> None:
        with proxied(server, lambda method, path, body: "log-inputs" in path) as (address, _):
            made = bare(tmp_path, address, model=registered(server))
            with pytest.raises(WwtsError, match="cut"):
                write(made, PASSES)
        (run,) = runs(server, made.model)
        assert run.info.status == "FAILED"
        assert "verdict" not in run.data.tags
        assert entry_of(server, made.model).tags == {"gate": "pending"}

    def test_a_run_that_was_killed_is_failed_by_the_next_attempt_only(self, server: str, tmp_path: Path) -> None:
        dead = {"log-inputs", "runs/update"}
        with proxied(server, lambda method, path, body: any(part in path for part in dead)) as (address, _):
            made = bare(tmp_path, address, model=registered(server), run="it's “1”")
            with pytest.raises(WwtsError):
                write(made, PASSES)
        statuses = lambda: sorted(run.info.status for run in runs(server, made.model))  # noqa: E731
        assert statuses() == ["RUNNING"]
        write(bare(tmp_path, server, model=made.model, run="another"), PASSES)
        assert statuses() == ["FINISHED", "RUNNING"]
        write(bare(tmp_path, server, model=made.model, run="it's “1”"), PASSES)
        assert statuses() == ["FAILED", "FINISHED", "FINISHED"]

    def test_no_server_is_unavailable(self, server: str, tmp_path: Path) -> None:
        with proxied(server) as (address, _):
            made = bare(tmp_path, address, model=registered(server))
        with pytest.raises(UnavailableError):
            write(made, PASSES)


@pytest.mark.usefixtures("clean_environment")
class TestOdd:
    def test_a_lost_picture_ends_nothing(self, server: str, tmp_path: Path) -> None:
        made = scene(tmp_path, server, p95=None)
        content = made.entries[0].case().content_sha256
        Path(Store.of(made.settings).path(content_key(content))).unlink()
        verdict = made.write()
        names = {file.path for file in client(server).list_artifacts(verdict.run_id)}
        assert "contact-sheet.jpg" in names
        assert "latency.png" not in names
        page = Path(client(server).download_artifacts(verdict.run_id, "report.html")).read_text()
        assert page.count("没有图片") == 1

    def test_long_reasons_fit_and_the_verdict_says_where_they_are_whole(self, server: str, tmp_path: Path) -> None:
        decision = of_slices(failed=20, passed=5, reason="这一切片变差了，请补充同类图片；" * 60)
        made = bare(tmp_path, server)
        verdict = write(made, decision)
        entry = entry_of(server, made.model)
        assert len(entry.description) <= 5000
        assert "另有" in entry.description
        told = Verdict.from_tag(entry.tags[TAG])
        assert len(told.reasons) == 20
        assert [rule.rule for rule in told.rules] == [rule.rule for rule in verdict.rules]
        where = f"共 {len(verdict.reasons[0])} 字，全文见 MLflow 运行 {verdict.run_id} 的 verdict.json"
        assert where in told.reasons[0]
        whole = Path(client(server).download_artifacts(verdict.run_id, "verdict.json")).read_text()
        assert Verdict.model_validate_json(whole) == verdict
        assert verdict.reasons == decision.reasons

    def test_more_failures_than_a_tag_can_hold_are_refused_not_cut(self, server: str, tmp_path: Path) -> None:
        made = bare(tmp_path, server)
        with pytest.raises(WwtsError, match="400 rules of the gate did not pass"):
            write(made, of_slices(failed=400, passed=0, reason="差"))
        assert entry_of(server, made.model).tags == {"gate": "pending"}
        assert [run.info.status for run in runs(server, made.model)] == ["FAILED"]

    def test_rules_that_passed_give_way_first_and_are_counted(self) -> None:
        verdict = verdict_of(of_slices(failed=60, passed=400, reason="差"))
        told = record._compact(verdict)
        assert len(told.model_dump_json().encode()) <= 65_535  # MySQL's TEXT
        assert not told.passed
        assert [rule.outcome for rule in told.rules] == ["failed"] * 60 + ["passed"]
        assert told.rules[-1].rule == record.OMITTED
        assert told.rules[-1].value == "另有 400 条规则通过"
        assert Verdict.from_tag(told.model_dump_json()) == told


def of_slices(failed: int, passed: int, reason: str) -> Decision:
    rules = tuple(
        RuleOutcome(
            rule=f"slice.切片 {number} {'长' * 60}.top1",
            title=f"切片 {number}：首位准确率",
            outcome="failed" if number < failed else "passed",
            value="1.0%",
            threshold="≥ 2.0%",
            reason=reason if number < failed else "",
        )
        for number in range(failed + passed)
    )
    return Decision(failed == 0, (reason,) * failed, rules)


HOSTILE = tuple(chr(code) for code in (*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)))


@pytest.mark.parametrize("room", [description.LONGEST, 2_400])
def test_the_description_fits_whatever_it_is_made_of(room: int) -> None:
    """Escapes make a text up to six times as long."""
    text = "".join(HOSTILE) * 40
    rules = tuple(
        RuleOutcome(rule=f"slice.{number}.top1", title=text, outcome="failed", value=text, threshold=text, reason=text)
        for number in range(40)
    )
    shown = description.Shown("1", Sheet(), "contact-sheet.jpg", None, datetime.now(UTC))
    verdict = verdict_of(Decision(False, (text,) * 40, rules))
    made = description.build(verdict, Reports(accuracy=None, latency=None), shown, room)
    assert len(made) <= room
    assert re.search(r"另有 \d+ 条原因，见评测记录", made)
    assert re.search(r"未列出的门禁规则：❌ 未通过 \d+ 条", made)
    assert "contact-sheet.jpg" in made
    assert made.endswith(f"runs/{'f' * 32})")


class TestNames:
    @pytest.mark.parametrize("name", ["overall", "水果", "old_labels", "Schöne Äpfel 2.5", "a-b"])
    def test_a_plain_name_stays(self, name: str) -> None:
        assert measures.safe_names([name]) == {name: name}

    def test_no_two_share_one(self) -> None:
        wanted = [
            "水果 🍎",
            "水果 🍊",
            "水果",
            "水果 ",
            "a/b",
            "a b",
            "Tea",
            "tea",
            "..",
            ".",
            "",
            "长" * 300,
            "长" * 301,
        ]
        wanted.append(f"水果-{hashlib.sha256('水果 🍎'.encode()).hexdigest()[:8]}")
        safe = measures.safe_names(wanted)
        assert len({name.casefold() for name in safe.values()}) == len(wanted)
        assert safe["水果 🍎"].startswith("水果-")
        assert safe["水果"] == "水果"

    def test_mlflow_takes_all_of_them(self) -> None:
        from mlflow.utils.validation import _validate_metric_name, _validate_model_version_tag

        for safe in measures.safe_names([*HOSTILE, *SLICES, "".join(HOSTILE), "长" * 300, "\n", "a\0b", "😀"]).values():
            _validate_metric_name(f"champion/badcases/{safe}/auto_precision_high")
            _validate_model_version_tag(f"gate.rule.{safe}", "x")
