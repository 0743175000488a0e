"""What consumers read: one row an image, nothing live that needs a person, nothing lost between publishers."""

from __future__ import annotations

import getpass
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_nights import NOON, Nights, auto, forced, review

from wwts_ops import publish, published
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.schemas import PUBLISHED, QUARANTINE, TAGS
from wwts_ops.tagging import Shard

FROM_THE_LAST_LIVE = ("tags", "label_id", "label_zh", "confidence", "category_path", "source", "model_name")
FROM_THE_LAST_LIVE += ("model_version", "model_sha256", "taxonomy_version", "git_sha", "run_id", "tagged_at")
FROM_THE_NEWEST = ("content_sha256", "width", "decision", "decision_reason")


@pytest.fixture
def nights(clean_environment: None, tmp_path: Path) -> Nights:
    return Nights(tmp_path, tmp_path / "store")


def go(nights: Nights, release: str = "live") -> dict[str, Any]:
    pointer = publish.publish(nights.store, nights.settings(release=release))
    assert pointer is not None
    return pointer


def rows(nights: Nights) -> dict[str, dict[str, Any]]:
    found = published.read(nights.store).to_pylist()
    by_id = {row["image_id"]: row for row in found}
    assert len(by_id) == len(found), "an image twice"
    return by_id


def states(nights: Nights) -> dict[str, tuple[str, str | None]]:
    return {name: (row["state"], row["label_zh"]) for name, row in rows(nights).items()}


def written(nights: Nights, plan: Any) -> Mapping[str, dict[str, Any]]:
    table = nights.store.read_table(Shard(plan, 0).part("tags"))
    return {row["image_id"]: row for row in table.to_pylist()}


# ------------------------------------------------------------------ states


def test_nothing_to_publish(nights: Nights) -> None:
    assert publish.publish(nights.store, nights.settings()) is None
    assert nights.store.read_pointer(publish.POINTER) is None


def test_live_and_pending(nights: Nights) -> None:
    plan = nights.night({"a": "1", "b": "1", "c": "1"}, {"a": auto("红酒"), "b": review("苹果"), "c": forced("步枪")})
    pointer = go(nights)
    assert states(nights) == {"a": ("live", "红酒"), "b": ("pending", None), "c": ("pending", None)}
    assert (pointer["rows"], pointer["live"], pointer["pending"]) == (3, 1, 2)
    found, tags = rows(nights), written(nights, plan)
    assert {name: found["a"][name] for name in TAGS.names} == tags["a"]
    for name in ("b", "c"):
        empty = ("tags", "label_id", "label_zh", "confidence", "category_path")
        assert [found[name][column] for column in empty] == [None] * 5
        others = [column for column in TAGS.names if column not in empty]
        assert [found[name][column] for column in others] == [tags[name][column] for column in others]


def test_the_schema_and_the_pointer(nights: Nights) -> None:
    plan = nights.night({"a": "1", "b": "1"}, {"a": auto("红酒"), "b": "truncated"})
    pointer = go(nights)
    snapshot = pointer["snapshot"]
    assert pointer["parts"] == [f"published/{snapshot}/part-00000.parquet"]
    assert pq.read_schema(nights.store.path(pointer["parts"][0])).equals(PUBLISHED)
    assert {row["snapshot"] for row in rows(nights).values()} == {snapshot}
    told = {name: pointer[name] for name in ("release", "model_name", "model_version", "taxonomy_version")}
    assert told == {
        "release": "live",
        "model_name": "wwts-tagger",
        "model_version": plan.model_version,
        "taxonomy_version": plan.taxonomy_version,
    }
    assert nights.store.read_json(publish.POINTER) == {**pointer, "sequence": 1}
    assert datetime.now(UTC) - datetime.fromisoformat(pointer["published_at"]) < timedelta(minutes=5)


def test_rows_are_sorted(nights: Nights) -> None:
    names = ["b", "a", "中", "é", "Z", "😀", "0"]
    nights.night(dict.fromkeys(names, "1"), {name: auto("x") for name in names})
    go(nights)
    assert published.read(nights.store)["image_id"].to_pylist() == sorted(names, key=str.encode)


def test_shadow_and_live_are_recorded_once_each(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒")})
    for release, expected in (
        ("shadow", ("pending", None)),
        ("shadow", ("pending", None)),
        ("live", ("live", "红酒")),
        ("live", ("live", "红酒")),
        ("shadow", ("pending", None)),
    ):
        go(nights, release)
        assert states(nights) == {"a": expected}
    acts = [nights.store.read_json(key) for key in nights.store.list("releases")]
    assert [(act["before"], act["release"]) for act in acts] == [
        (None, "shadow"),
        ("shadow", "live"),
        ("live", "shadow"),
    ]
    for act in acts:
        assert datetime.now(UTC) - datetime.fromisoformat(act["at"]) < timedelta(minutes=5)
        assert act["by"].startswith(f"{getpass.getuser()}@")


def test_a_run_without_the_setting_leaves_the_shop_as_it_is(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒")})
    for release, expected in (
        (None, ("pending", None)),
        ("live", ("live", "红酒")),
        (None, ("live", "红酒")),
        ("shadow", ("pending", None)),
        (None, ("pending", None)),
    ):
        go(nights, release)
        assert states(nights) == {"a": expected}
    assert len(nights.store.list("releases")) == 3


def test_a_release_is_recorded_by_a_user_without_a_name(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒")})
    if os.getuid() != 0:
        pytest.skip("needs root, to be a user that /etc/passwd does not know")
    for path in (nights.folder, *nights.folder.rglob("*")):
        os.chown(path, 54321, 54321)
    code = f"""if True:
        import os
        from wwts_ops import publish, settings
        from wwts_ops.storage import Store
        os.setgid(54321); os.setuid(54321)
        publish.record_release(Store({str(nights.root)!r}), settings.load(release="live"))"""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("LOGNAME", "USER", "LNAME", "USERNAME")
    }
    # pytest keeps its folders to the user that made them; the child needs to pass through.
    parents = [parent for parent in nights.folder.parents if "pytest" in str(parent)]
    for parent in parents:
        parent.chmod(0o711)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd="/")
    assert nights.store.read_json("releases/000001.json")["by"].startswith("uid 54321@")


# ------------------------------------------------------------------ one night after another


def test_a_pending_image_keeps_its_last_live_tag(nights: Nights) -> None:
    first = nights.night({"a": "1"}, {"a": auto("红酒")})
    go(nights)
    second = nights.night({"a": "2"}, {"a": review("葡萄汁", 0.4)})
    pointer = go(nights)
    (row,) = rows(nights).values()
    assert row["state"] == "pending"
    old, new = written(nights, first)["a"], written(nights, second)["a"]
    assert {name: row[name] for name in FROM_THE_LAST_LIVE} == {name: old[name] for name in FROM_THE_LAST_LIVE}
    assert {name: row[name] for name in FROM_THE_NEWEST} == {name: new[name] for name in FROM_THE_NEWEST}
    assert old["model_sha256"] != new["model_sha256"]
    assert (pointer["live"], pointer["pending"]) == (0, 1)
    # The third night is sure again.
    nights.night({"a": "3"}, {"a": auto("葡萄汁")})
    go(nights)
    assert states(nights) == {"a": ("live", "葡萄汁")}


def test_the_last_live_tag_outlives_several_uncertain_nights(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("旧")})
    nights.night({"a": "2"}, {"a": auto("红酒")})
    nights.night({"a": "3"}, {"a": review("x")})
    nights.night({"a": "4"}, {"a": forced("y")})
    go(nights)
    assert states(nights) == {"a": ("pending", "红酒")}


def test_what_made_the_last_live_tag_is_not_mixed_with_the_newest(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒")}, git_sha=None)
    nights.night({"a": "2"}, {"a": review("葡萄汁")})
    go(nights)
    assert rows(nights)["a"]["git_sha"] is None


def test_the_highest_sequence_counts_and_not_the_clock(nights: Nights) -> None:
    first = nights.plan({"a": "1"})
    second = nights.plan({"a": "2"})
    nights.write(second, {"a": auto("新")}, at=NOON)
    go(nights)
    # The older plan is finished later, and by a clock that runs ahead.
    nights.write(first, {"a": auto("旧")}, at=NOON + timedelta(days=9))
    go(nights)
    assert states(nights) == {"a": ("live", "新")}


def test_delisted_and_relisted(nights: Nights) -> None:
    nights.night({"a": "1", "b": "1"}, {"a": auto("红酒"), "b": auto("苹果")})
    go(nights)
    gone = nights.night({"b": "1"}, {})
    assert (gone.delisted, gone.shards) == (1, 0)
    go(nights)
    assert states(nights) == {"b": ("live", "苹果")}
    back = nights.plan({"a": "1", "b": "1"})
    go(nights)
    assert states(nights) == {"b": ("live", "苹果")}
    nights.write(back, {"a": review("葡萄汁")})
    go(nights)
    # What was live before it was taken off the list is not live again by itself.
    assert states(nights) == {"a": ("pending", None), "b": ("live", "苹果")}


def test_unreadable_bytes_leave_what_is_published(nights: Nights) -> None:
    nights.night({"a": "1", "b": "1"}, {"a": auto("红酒"), "b": "empty"})
    go(nights)
    assert set(rows(nights)) == {"a"}
    nights.night({"a": "2", "b": "1"}, {"a": "truncated"})
    go(nights)
    assert rows(nights) == {}
    nights.night({"a": "3", "b": "2"}, {"a": review("葡萄汁"), "b": auto("苹果")})
    go(nights)
    assert states(nights) == {"a": ("pending", None), "b": ("live", "苹果")}


def test_a_uri_that_cannot_be_reached_tonight_changes_nothing(nights: Nights) -> None:
    (transient, *_) = sorted(TRANSIENT_REASONS)
    nights.night({"a": "1", "b": "1", "c": "1"}, {"a": auto("红酒"), "b": review("苹果"), "c": transient})
    go(nights)
    before = states(nights)
    nights.night({"a": "2", "b": "2", "c": "1"}, dict.fromkeys("abc", transient))
    go(nights)
    assert states(nights) == before == {"a": ("live", "红酒"), "b": ("pending", None)}


def test_an_undone_shards_part_is_invisible(nights: Nights) -> None:
    plan = nights.plan({"a": "1", "b": "1", "c": "1"}, shard_size=1)
    outcomes = {name: auto(name) for name in "abc"}
    for number in range(3):
        nights.write_parts(plan, number, outcomes)
    nights.mark(plan, 0)
    nights.mark(plan, 2)
    first = go(nights)
    assert set(rows(nights)) == {"a", "c"}
    nights.mark(plan, 1)
    assert go(nights)["snapshot"] != first["snapshot"]
    assert set(rows(nights)) == {"a", "b", "c"}


def test_a_plan_that_owns_no_number_is_invisible(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒")})
    lost = nights.plan({"a": "2"})
    nights.write(lost, {"a": auto("新")})
    nights.store.delete("runs/_sequence/000002.json")
    claims = [
        key for key in nights.store.list("runs/_sequence") if lost.run_key in nights.store.read_bytes(key).decode()
    ]
    for key in claims:
        nights.store.delete(key)
    go(nights)
    assert states(nights) == {"a": ("live", "红酒")}


# ------------------------------------------------------------------ snapshots and pointer


def test_publishing_twice_changes_nothing(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒")})
    first = go(nights)
    pointer = nights.store.read_bytes(publish.POINTER)
    assert go(nights)["snapshot"] == first["snapshot"]
    assert nights.store.read_bytes(publish.POINTER) == pointer
    assert len(nights.store.list("published", ".parquet")) == 1


def test_a_snapshot_written_again_has_the_same_bytes(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than one slice, and more than one row group.
    monkeypatch.setattr(publish, "_SORTED_ROWS", 700)
    names = [f"{number:04d}" for number in range(2000)]
    nights.night(dict.fromkeys(names, "1"), {name: auto(name) if name > "0500" else review("x") for name in names})
    first = go(nights)
    data = nights.store.read_bytes(first["parts"][0])
    assert published.read(nights.store)["image_id"].to_pylist() == names
    nights.store.delete(first["parts"][0])
    nights.store.delete(publish.POINTER)
    assert go(nights)["parts"] == first["parts"]
    assert nights.store.read_bytes(first["parts"][0]) == data


def test_every_night_and_release_is_another_snapshot(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒")})
    names = [go(nights, "shadow")["snapshot"], go(nights, "live")["snapshot"]]
    nights.night({"a": "2"}, {"a": auto("红酒")})
    names.append(go(nights, "live")["snapshot"])
    assert len(set(names)) == 3
    assert max(names) == names[-1]
    assert nights.store.read_json(publish.POINTER)["sequence"] == 3
    # The older ones stay, for who is reading them.
    assert len(nights.store.list("published", ".parquet")) == 3


def test_two_publishers_at_once_lose_nothing(nights: Nights) -> None:
    names = [f"i{number:02d}" for number in range(16)]
    plan = nights.plan(dict.fromkeys(names, "1"), shard_size=1)
    for number in range(plan.shards):
        nights.write_parts(plan, number, {name: auto(name) for name in names})
    code = f"""if True:
        import sys
        from wwts_ops import planning, publish, settings
        from wwts_ops.errors import UnavailableError
        from wwts_ops.storage import Store
        from wwts_ops.tagging import Shard
        store = Store({str(nights.root)!r})
        given = settings.load(store=store.root, release="live")
        plan = planning.read(store, {plan.run_key!r})
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(int(sys.argv[1]), plan.shards, 2):
            store.write_json(Shard(plan, number).marker, {{"images": 1}})
            while True:
                try:
                    publish.publish(store, given)
                    break
                except UnavailableError:
                    continue  # Airflow would run the task again
        """
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.communicate("\n", timeout=600)
    assert [process.returncode for process in both] == [0, 0]
    assert set(rows(nights)) == set(names)
    acts = [nights.store.read_json(key)["release"] for key in nights.store.list("releases")]
    assert acts == ["live"]


@pytest.mark.parametrize("name", ["[商店] 什么?* 图{a,b}", "source=oss", "uri=1"])
def test_the_stores_folder_may_have_any_name(clean_environment: None, tmp_path: Path, name: str) -> None:
    nights = Nights(tmp_path, tmp_path / name / "store")
    nights.night({"a": "1", "b": "1"}, {"a": auto("红酒"), "b": review("苹果")})
    nights.night({"a": "1", "b": "1", "c": "1"}, {"c": "truncated"})
    nights.night({"a": "1", "c": "1"}, {})
    go(nights)
    assert states(nights) == {"a": ("live", "红酒")}
    assert rows(nights)["a"]["source"] == "model"


def test_columns_in_duckdb(nights: Nights) -> None:
    nights.night({"a": "1"}, {"a": auto("红酒", 0.75)})
    part = nights.store.path(go(nights)["parts"][0])
    (found,) = duckdb.sql(f"SELECT image_id, tags[1].label_zh, tags[1].score FROM '{part}'").fetchall()
    assert found == ("a", "红酒", 0.75)


# ------------------------------------------------------------------ memory


def test_the_memory_of_a_large_shop(nights: Nights) -> None:
    count, size = 200_000, 20_000
    names = [f"img-{number:06d}" for number in range(count)]
    plan = nights.plan(dict.fromkeys(names, "1"), shard_size=size)
    for number in range(plan.shards):
        table = _many(nights.images(plan, number), plan)
        nights.store.write_table(Shard(plan, number).part("tags"), table)
        nights.store.write_table(Shard(plan, number).part("quarantine"), QUARANTINE.empty_table())
        nights.mark(plan, number)
    # Not getrusage, whose peak a child inherits from whoever started it.
    code = f"""if True:
        import json, re
        from pathlib import Path
        from wwts_ops import publish, settings
        from wwts_ops.storage import Store
        given = settings.load(store={str(nights.root)!r}, release="live")
        pointer = publish.publish(Store.of(given), given)
        peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
        print(json.dumps([pointer["rows"], pointer["live"], peak]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, live, peak = json.loads(done.stdout.splitlines()[-1])
    assert (found, live) == (count, count // 2)
    assert peak < 600, f"{peak:.0f} MB"


def _many(names: list[str], plan: Any) -> pa.Table:
    """Rows as a tagger makes them: five tags, and hashes that do not compress."""
    count = len(names)
    labels = [f"imagenet:n{number:08d}" for number in range(1000)]
    picked = np.random.default_rng(0).integers(0, 1000, 5 * count)
    tags = pa.StructArray.from_arrays(
        [
            pa.array([labels[index] for index in picked]),
            pa.array([f"标签{index}" for index in picked]),
            pa.array(np.random.default_rng(1).random(5 * count, dtype=np.float32)),
        ],
        fields=list(TAGS.field("tags").type.value_type),
    )
    columns: dict[str, Any] = {
        "image_id": names,
        "uri": [f"https://img.example/{name}.jpg" for name in names],
        "content_sha256": [hashlib.sha256(name.encode()).hexdigest() for name in names],
        "tags": pa.ListArray.from_arrays(pa.array(range(0, 5 * count + 1, 5), pa.int32()), tags),
        "label_id": [labels[index] for index in picked[::5]],
        "label_zh": ["标签"] * count,
        "confidence": np.random.default_rng(2).random(count, dtype=np.float32),
        "category_path": ["饮料 > 酒类 > 红酒"] * count,
        "decision": list(itertools.islice(itertools.cycle(["auto", "review"]), count)),
        "source": ["model"] * count,
        "model_sha256": ["a" * 64] * count,
        "backbone_sha256": ["b" * 64] * count,
        "git_sha": ["c" * 40] * count,
        "run_id": [plan.run_key] * count,
        "tagged_at": [NOON] * count,
    }
    empty = pa.nulls(count)
    return pa.Table.from_arrays(
        [pa.array(columns[one.name], one.type) if one.name in columns else empty.cast(one.type) for one in TAGS],
        schema=TAGS,
    )
