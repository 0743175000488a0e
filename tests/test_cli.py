"""The `wwts` command, run as a person runs it: real processes, a real night, real files."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openpyxl
import psutil
import pyarrow.parquet as pq
import pytest
from night_run import BROKEN, COPIES, DATE, NAMES, WWTS, FinishedNight, Run, environment, wwts

from wwts_ops import published, settings
from wwts_ops.storage import Store

pytestmark = pytest.mark.slow

THRESHOLD = 0.60
SPREADSHEET_FORMULA = "=1+1.jpg"


def rows(night: FinishedNight, dataset: str) -> list[dict[str, Any]]:
    parts = sorted((night.store / dataset).rglob("*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


# ------------------------------------------------------------------ one night, end to end


def test_every_image_is_tagged_once_or_quarantined_once(night: FinishedNight) -> None:
    tagged, bad = rows(night, "tags"), rows(night, "quarantine")
    assert sorted(row["image_id"] for row in tagged) == sorted([*NAMES.values(), *COPIES])
    assert {row["image_id"]: row["reason"] for row in bad} == BROKEN
    assert len(bad) == len(BROKEN)
    folders = {path.parent.name for path in (night.store / "tags").rglob("*.parquet")}
    assert folders == {f"date={DATE}"}


def test_copies_cost_no_forward_pass_where_their_shard_knows_the_content(night: FinishedNight) -> None:
    """`source=duplicate` follows the plan: the second of a content in one shard, in the plan's order."""
    (plan,) = (night.store / "runs").glob("*/plan.parquet")
    shard_of = {row["image_id"]: row["shard"] for row in pq.ParquetFile(plan).read().to_pylist()}
    order = list(shard_of)
    tagged = {row["image_id"]: row for row in rows(night, "tags")}
    for row in tagged.values():
        earlier = [
            other
            for other in order[: order.index(row["image_id"])]
            if other in tagged
            and shard_of[other] == shard_of[row["image_id"]]
            and tagged[other]["content_sha256"] == row["content_sha256"]
        ]
        assert row["source"] == ("duplicate" if earlier else "model"), row["image_id"]
    embeddings = Counter(row["content_sha256"] for row in rows(night, "embeddings"))
    assert set(embeddings) == {row["content_sha256"] for row in tagged.values()}
    assert embeddings.total() == sum(row["source"] == "model" for row in tagged.values())


def test_the_same_content_has_the_same_tags(night: FinishedNight) -> None:
    tagged = {row["image_id"]: row for row in rows(night, "tags")}
    for copy, original in COPIES.items():
        for column in ("content_sha256", "tags", "label_id", "confidence", "decision", "width", "height"):
            assert tagged[copy][column] == tagged[original][column]


def test_decisions_follow_threshold_and_rules(night: FinishedNight) -> None:
    forced = settings.Settings.model_fields["forced_review"].default
    tagged = rows(night, "tags")
    assert len(tagged) == len(NAMES) + len(COPIES)
    for row in tagged:
        path = row["category_path"]
        must_see = any(path == category or path.startswith(f"{category} > ") for category in forced)
        usual = "auto" if row["confidence"] >= THRESHOLD else "review"
        assert row["decision"] == ("forced_review" if must_see else usual), row
        assert row["label_id"] == row["tags"][0]["label_id"]
        assert [tag["score"] for tag in row["tags"]] == sorted((tag["score"] for tag in row["tags"]), reverse=True)


def test_what_is_seen_is_what_is_there(night: FinishedNight) -> None:
    tagged = {row["image_id"]: row for row in rows(night, "tags")}
    assert "咖啡" in tagged[NAMES["skimage/data/coffee.png"]]["label_zh"]
    assert "猫" in tagged[NAMES["skimage/data/chelsea.png"]]["category_path"]


def test_every_row_says_what_made_it(night: FinishedNight) -> None:
    tagged = rows(night, "tags")
    assert {(row["model_name"], row["model_version"]) for row in tagged} == {("wwts-tagger", "1")}
    for column in ("model_sha256", "backbone_sha256", "taxonomy_version", "run_id"):
        assert len({row[column] for row in tagged}) == 1
        assert tagged[0][column]


def test_only_what_needs_nobody_is_live(night: FinishedNight) -> None:
    table = published.read(Store(str(night.store))).to_pylist()
    decisions = {row["image_id"]: row["decision"] for row in rows(night, "tags")}
    assert sorted(row["image_id"] for row in table) == sorted(decisions)
    for row in table:
        assert row["state"] == ("live" if decisions[row["image_id"]] == "auto" else "pending")
        assert (row["tags"] is None) == (row["state"] == "pending")


def test_the_queue_holds_every_content_that_waits(night: FinishedNight) -> None:
    waiting = {row["content_sha256"] for row in rows(night, "tags") if row["decision"] != "auto"}
    queue = rows(night, "review")
    assert sorted(row["content_sha256"] for row in queue) == sorted(waiting)
    assert [row["rank"] for row in queue] == list(range(1, len(queue) + 1))


def test_the_summary_tells_the_counts_and_the_paths(night: FinishedNight) -> None:
    decisions = Counter(row["decision"] for row in rows(night, "tags"))
    said = night.run.out
    images = len(NAMES) + len(COPIES) + len(BROKEN)
    assert f"发现 {images} 张新图片，1 个非图片文件未处理" in said
    for words, number in (
        ("图片", images),
        ("自动通过", decisions["auto"]),
        ("待审核", decisions["review"]),
        ("强制审核", decisions["forced_review"]),
        ("隔离", len(BROKEN)),
    ):
        assert re.search(rf"^ +{words} +{number}\b", said, re.MULTILINE), (words, number, said)
    page = night.store / "reports" / f"date={DATE}" / "index.html"
    assert str(page) in said
    assert page.is_file()
    (snapshot,) = (path for path in (night.store / "published").iterdir() if path.is_dir())
    assert str(snapshot) in said


def test_the_log_is_one_json_object_a_line(night: FinishedNight) -> None:
    events = night.events
    assert all({"event", "timestamp"} <= set(event) for event in events)
    seen = [event for event in events if event["event"] == "image_tagged"]
    hashes = Counter(row["content_sha256"] for row in rows(night, "tags"))
    assert Counter(event["image_hash"] for event in seen) == hashes
    certain = {row["content_sha256"]: sum(t["score"] >= THRESHOLD for t in row["tags"]) for row in rows(night, "tags")}
    for event in seen:
        assert event["latency_ms"] >= 0
        assert event["objects_found"] == certain[event["image_hash"]]
    bad = [event for event in events if event["event"] == "image_quarantined"]
    assert Counter(event["reason"] for event in bad) == Counter(BROKEN.values())
    assert not [event for event in events if event.get("level") in ("error", "critical")]


def test_a_second_run_finds_nothing_new_and_tells_machines_only_events(night: FinishedNight) -> None:
    before = sorted(path for dataset in ("tags", "embeddings") for path in (night.store / dataset).rglob("*"))
    again = wwts(night.store, "run", "tag_catalog", **night.settings, WWTS_LOG_FORMAT="json")
    assert again.code == 0, again.err
    assert "没有发现新图片" in again.err
    names = {json.loads(line)["event"] for line in again.out.splitlines()}
    assert {"planned", "night_done"} <= names
    assert before == sorted(path for dataset in ("tags", "embeddings") for path in (night.store / dataset).rglob("*"))


def test_a_dry_run_says_what_it_would_do_and_does_nothing(night: FinishedNight, tmp_path: Path) -> None:
    """Of a catalog that has one new image."""
    shutil.copytree(night.store, tmp_path / "store")
    night.copy_state(tmp_path / "store")
    before = contents(tmp_path / "store")
    new = tmp_path / "新图"
    new.mkdir()
    shutil.copyfile(night.catalog / NAMES["skimage/data/coffee.png"], new / "新.png")
    conf = json.dumps({"dry_run": True, "catalog": str(new)})
    run = wwts(tmp_path / "store", "run", "tag_catalog", "--conf", conf, **night.settings)
    assert run.code == 0, run.out
    assert "发现 1 张新图片（仅预演，没有写入任何内容）" in run.out
    assert contents(tmp_path / "store") == before
    (log,) = (tmp_path / "store.state" / "logs").glob("*.jsonl")
    failed = [line for line in log.read_text(encoding="utf-8").splitlines() if "Task failed" in line]
    assert failed == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------ a run that is ended, and a shard that fails


def processes_of(store: Path) -> list[psutil.Process]:
    """Living processes that were started for ``store``."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.status() != psutil.STATUS_ZOMBIE and process.environ().get("WWTS_STORE") == str(store)
        except (psutil.Error, OSError):
            continue
        if mine:
            found.append(process)
    return found


def eventually(condition: Any, seconds: float = 300) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def start(store: Path, **given: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [WWTS, "run", "tag_catalog", "--conf", json.dumps({"date": DATE})],
        env=environment(store, **given),
        cwd=store.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def markers(store: Path) -> list[Path]:
    return sorted((store / "runs").glob("*/shard-*.json"))


def test_term_while_the_database_is_made_leaves_no_process(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with start(store, WWTS_CATALOG=str(tmp_path)) as running:
        assert eventually(lambda: len(processes_of(store)) > 1), "no child was started"
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=300)
    assert running.returncode == 128 + signal.SIGTERM
    assert eventually(lambda: not processes_of(store)), processes_of(store)
    assert list((tmp_path / "store.state" / "airflow-run").glob("run-*")) == []


def test_after_term_and_a_broken_shard_the_next_run_completes(night: FinishedNight, tmp_path: Path) -> None:
    store = tmp_path / "store"
    night.copy_state(store)
    given = {**night.settings, "WWTS_SHARD_SIZE": "1"}
    with start(store, **given) as running:
        assert eventually(lambda: markers(store)), running.communicate(timeout=300)
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=300)
    assert running.returncode == 128 + signal.SIGTERM, said
    assert eventually(lambda: not processes_of(store)), processes_of(store)
    (plan,) = (store / "runs").glob("*/plan.parquet")
    images = len(NAMES) + len(COPIES) + len(BROKEN)
    assert 0 < len(markers(store)) < images
    assert not (store / "published").exists()

    # A folder stands where the last shard writes its tags: for real, that shard cannot end.
    obstacle = store / "tags" / f"date={DATE}" / f"part-{plan.parent.name}-{images - 1:05d}.parquet"
    obstacle.mkdir(parents=True)
    second = wwts(store, "run", "tag_catalog", **given)
    assert second.code == 1
    assert plan.parent.name in second.out, "the sentence names the run"
    assert "Traceback" not in second.out
    assert len(markers(store)) == images - 1
    assert len(published.read(Store(str(store)))) >= images - 1 - len(BROKEN)

    obstacle.rmdir()
    third = wwts(store, "run", "tag_catalog", **given)
    assert third.code == 0, third.out
    assert list((store / "runs").glob("*/plan.parquet")) == [plan]
    table = published.read(Store(str(store)))
    assert sorted(table["image_id"].to_pylist()) == sorted([*NAMES.values(), *COPIES])


# ------------------------------------------------------------------ what cannot start


def refused(run: Run) -> str:
    assert run.code == 2, run
    said = run.out + run.err
    assert "Traceback" not in said
    return said


def test_help_names_every_command() -> None:
    said = subprocess.run([WWTS, "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("run", "up", "init", "doctor", "demo", "recognize", "tags", "taxonomy", "models"):
        assert f" {command} " in said


@pytest.mark.parametrize("conf", ["{limit: 3}", "[1]", '"x"', ""])
def test_conf_that_is_no_json_object(tmp_path: Path, conf: str) -> None:
    assert "--conf" in refused(wwts(tmp_path / "store", "run", "tag_catalog", "--conf", conf))
    assert not (tmp_path / "store.state").exists()


@pytest.mark.parametrize("dag_id", ["../../tag_catalog", "a/b", "[/red]", ""])
def test_a_name_that_no_dag_can_have(tmp_path: Path, dag_id: str) -> None:
    assert "cannot be a DAG's name" in refused(wwts(tmp_path / "store", "run", dag_id))


def test_an_unknown_dag_and_a_form_that_does_not_fit(night: FinishedNight) -> None:
    said = refused(wwts(night.store, "run", "tag_katalog"))
    assert "There is no DAG 'tag_katalog'; there are:" in said
    assert "tag_catalog" in said
    for conf, word in (({"dryrun": True}, "no parameter dryrun"), ({"limit": "viele"}, "limit")):
        assert word in refused(wwts(night.store, "run", "tag_catalog", "--conf", json.dumps(conf)))


def test_every_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    wrong = {
        "WWTS_TIMEZONE": "Asia/Peking",
        "WWTS_THRESHOLD": "60",
        "WWTS_DEVICE": "tpu",
        "WWTS_RELEASE": "yes",
        "WWTS_DEADLINE": "soon",
    }
    said = refused(wwts(tmp_path / "store", "tags", "export", **wrong))
    for name in wrong:
        assert name in said, name


# ------------------------------------------------------------------ recognize


def test_recognize_tells_a_person_what_is_there(night: FinishedNight, tmp_path: Path) -> None:
    coffee, cat = (night.catalog / NAMES[f"skimage/data/{name}.png"] for name in ("coffee", "chelsea"))
    broken, absent = night.catalog / "损坏" / "截断.jpg", tmp_path / "没有.jpg"
    run = wwts(night.store, "recognize", str(coffee), str(absent), str(broken), str(tmp_path), str(cat))
    assert run.code == 1
    assert "Traceback" not in run.err
    assert f"{absent}：无法识别（没有这个文件）" in run.err
    assert f"{broken}：无法识别（文件不完整，请重新上传）" in run.err
    assert f"{tmp_path}：无法识别（这是文件夹，不是图片）" in run.err
    assert str(coffee) in run.out
    assert str(cat) in run.out
    assert run.out.count("首选标签：") == 2
    tagged = {row["image_id"]: row for row in rows(night, "tags")}
    row = tagged[NAMES["skimage/data/coffee.png"]]
    assert f"首选标签：{row['label_zh']}（{row['confidence']:.1%}" in run.out


def test_recognize_tells_machines_the_same_as_the_night(night: FinishedNight, tmp_path: Path) -> None:
    cat, absent = night.catalog / NAMES["skimage/data/chelsea.png"], tmp_path / "没有.jpg"
    run = wwts(night.store, "recognize", "--json", str(cat), str(absent))
    assert run.code == 1
    found, failed = [json.loads(line) for line in run.out.splitlines()]
    assert failed == {"image": str(absent), "error": "没有这个文件"}
    row = {row["image_id"]: row for row in rows(night, "tags")}[NAMES["skimage/data/chelsea.png"]]
    for name in ("label_id", "label_zh", "width", "height", "category_path", "decision", "decision_reason"):
        assert found[name] == row[name]
    assert [tag["label_id"] for tag in found["tags"]] == [tag["label_id"] for tag in row["tags"]]
    assert found["confidence"] == pytest.approx(row["confidence"], abs=1e-6)


def test_a_file_over_the_limit_is_not_read(night: FinishedNight) -> None:
    photo = night.catalog / NAMES["skimage/data/coffee.png"]
    run = wwts(night.store, "recognize", str(photo), WWTS_MAX_IMAGE_BYTES="1000")
    assert run.code == 1
    assert "文件太大" in run.err


# ------------------------------------------------------------------ models


def test_models_list_shows_the_champion(night: FinishedNight, tmp_path: Path) -> None:
    run = wwts(night.store, "models", "list")
    assert run.code == 0
    sha = rows(night, "tags")[0]["model_sha256"]
    (line,) = (line for line in run.out.splitlines() if "champion" in line)
    assert sha[:12] in line
    assert " efficientnet-lite0 " in line
    assert "UTC" not in run.out, "as every other table, in the shop's time zone"
    empty = wwts(tmp_path / "store", "models", "list")
    assert (empty.code, empty.out.startswith("No version of wwts-tagger")) == (0, True)
    assert not (tmp_path / "store.state" / "mlflow.db").exists(), "looking must not create a registry"


# ------------------------------------------------------------------ tags export


def exported(night: FinishedNight, target: Path) -> Path:
    run = wwts(night.store, "tags", "export", str(target))
    assert run.code == 0, run.err
    assert run.out.startswith(f"{len(NAMES) + len(COPIES)} rows")
    assert [path.name for path in target.parent.iterdir()] == [target.name], "something temporary was left"
    return target


def test_export_csv_opens_in_chinese_excel(night: FinishedNight, tmp_path: Path) -> None:
    target = exported(night, tmp_path / "标签.csv")
    assert target.read_bytes().startswith(b"\xef\xbb\xbf")
    with target.open(encoding="utf-8-sig", newline="") as file:
        found = {row["image_id"]: row for row in csv.DictReader(file)}
    table = {row["image_id"]: row for row in published.read(Store(str(night.store))).to_pylist()}
    assert NAMES["skimage/data/chelsea.png"] in found
    assert {row["state"] for row in found.values()} == {row["state"] for row in table.values()}
    # Programs join on it, so it stays as it is; people who open names they do not trust take .xlsx.
    assert SPREADSHEET_FORMULA in found


def test_export_xlsx_holds_no_formula(night: FinishedNight, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(exported(night, tmp_path / "标签.xlsx")).active
    assert sheet is not None
    header = [cell.value for cell in sheet[1]]
    cells = {row[header.index("image_id")].value: row[header.index("image_id")] for row in sheet.iter_rows(min_row=2)}
    assert SPREADSHEET_FORMULA in cells
    assert {cell.data_type for cell in cells.values()} == {"s"}
    assert len(cells) == len(NAMES) + len(COPIES)


def test_export_parquet_is_the_snapshot(night: FinishedNight, tmp_path: Path) -> None:
    target = exported(night, tmp_path / "标签.parquet")
    assert pq.ParquetFile(target).read().equals(published.read(Store(str(night.store))))


def test_export_refuses_what_it_cannot_write(night: FinishedNight, tmp_path: Path) -> None:
    assert ".docx" in refused(wwts(night.store, "tags", "export", str(tmp_path / "标签.docx")))
    assert str(tmp_path / "没有") in refused(wwts(night.store, "tags", "export", str(tmp_path / "没有" / "标签.csv")))
    assert "tag_catalog" in refused(wwts(tmp_path / "store", "tags", "export", str(tmp_path / "标签.csv")))
    assert not (tmp_path / "标签.csv").exists()
