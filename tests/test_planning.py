"""Plans: what is new, in which order, and who owns the next number."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wwts_ops import catalog, planning, settings
from wwts_ops.errors import WwtsError
from wwts_ops.planning import Pin, Plan, Request
from wwts_ops.schemas import PLAN, QUARANTINE
from wwts_ops.settings import Settings
from wwts_ops.storage import Store, s3_options

PIN = Pin("wwts-tagger", "1", "a" * 64, "b" * 64, "1")
NIGHT = date(2026, 1, 2)

Rows = dict[str, str]


@dataclass
class Shop:
    """A catalog, a store, and nights."""

    folder: Path
    root: str
    options: dict[str, Any]

    @property
    def store(self) -> Store:
        return Store.of(self.settings())

    def settings(self, **more: Any) -> Settings:
        return settings.load(**{"store": self.root, "catalog": str(self.folder / "list.csv"), **self.options, **more})

    def list(self, rows: Rows, name: str = "list.csv") -> None:
        """Writes a manifest of image id and etag."""
        lines = "".join(f"{image_id},/photos/{image_id}.jpg,{etag}\n" for image_id, etag in rows.items())
        (self.folder / name).write_text("image_id,uri,etag\n" + lines)

    def propose(self, limit: int | None = None, **more: Any) -> planning.Proposal:
        return planning.propose(self.store, self.settings(**more), Request(NIGHT, PIN, limit))

    def night(self, limit: int | None = None, *, rejected: Rows | None = None, **more: Any) -> planning.Proposal:
        """Plans, commits and finishes a run in which ``rejected`` images went to quarantine."""
        proposal = self.propose(limit, **more)
        assert planning.commit(self.store, proposal) == proposal.plan
        self.finish(proposal.plan, rejected or {})
        return proposal

    def finish(self, plan: Plan, rejected: Rows | None = None, **done: Any) -> None:
        self.quarantine(plan, rejected or {})
        self.store.write_json(planning.done_key(plan.run_key), {"images": 1, "images_per_second": 1.0, **done})

    def quarantine(self, plan: Plan, rejected: Rows) -> None:
        rows = [
            {"image_id": image_id, "uri": "x", "reason": reason, "run_id": plan.run_key, "seen_at": datetime.now(UTC)}
            for image_id, reason in rejected.items()
        ]
        table = pa.Table.from_pylist(rows, schema=QUARANTINE)
        self.store.write_table(f"quarantine/date={plan.date}/part-{plan.run_key}-00000.parquet", table)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path, str(tmp_path / "store"), {})


def found(proposal: planning.Proposal, action: str = "tag") -> list[str]:
    return [row["image_id"] for row in proposal.table.to_pylist() if row["action"] == action]


# --- what is new -----------------------------------------------------------------------------------------------------


def test_first_night_takes_all_and_the_second_nothing(shop: Shop) -> None:
    shop.list({"红酒 🍷": "1", "b": "1"})
    first = shop.night()
    assert found(first) == ["b", "红酒 🍷"]
    assert first.table.schema == PLAN
    assert not first.is_empty
    second = shop.propose()
    assert second.is_empty
    assert second.plan.known_runs == (first.plan.run_key,)


def test_changed_and_new_images(shop: Shop) -> None:
    shop.list({"a": "1", "b": "1", "c": ""})
    shop.night()
    shop.list({"a": "2", "b": "", "c": "1", "d": "1"})
    # b's etag is unknown tonight, which says nothing; c's has become known.
    assert found(shop.night()) == ["a", "c", "d"]
    shop.list({"a": "2", "b": "1", "c": "", "d": "1"})
    assert shop.propose().is_empty


def test_changed_uri(shop: Shop) -> None:
    shop.list({"a": "1"})
    shop.night()
    (shop.folder / "list.csv").write_text("image_id,uri,etag\na,/elsewhere/a.jpg,1\n")
    assert found(shop.propose()) == ["a"]


def test_replaced_file_of_a_folder(shop: Shop) -> None:
    photos = shop.folder / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (photos / name).write_bytes(b"one")
    shop.night(catalog=str(photos))
    assert shop.propose(catalog=str(photos)).is_empty
    (photos / "a.jpg").write_bytes(b"longer")
    status = (photos / "b.jpg").stat()
    os.utime(photos / "b.jpg", ns=(0, status.st_mtime_ns + 1000))
    assert sorted(found(shop.propose(catalog=str(photos)))) == ["a.jpg", "b.jpg"]


def test_images_of_an_unfinished_plan_are_taken_care_of(shop: Shop) -> None:
    shop.list({"a": "1"})
    plan = planning.commit(shop.store, shop.propose())
    assert plan is not None
    shop.quarantine(plan, {"a": "unreadable_uri"})
    assert shop.propose().is_empty
    assert shop.propose().plan.known_runs == ()
    assert planning.unfinished(shop.store) == [plan]


def test_transient_rejection_is_tried_again_and_a_permanent_one_is_not(shop: Shop) -> None:
    shop.list({"a": "1", "b": "1", "c": "1"})
    shop.night(rejected={"a": "unreadable_uri", "b": "truncated"})
    assert found(shop.night()) == ["a"]
    # The first run's rejection is no longer the latest word.
    assert shop.propose().is_empty
    shop.list({"a": "1", "b": "2", "c": "1"})
    assert found(shop.propose()) == ["b"]


def test_latest_is_by_sequence_over_many_plans(shop: Shop) -> None:
    for etag in ("1", "2", "1", "3"):
        shop.list({"a": etag, "b": "1"})
        assert "a" in found(shop.night())
    shop.list({"a": "1", "b": "1"})
    assert found(shop.propose()) == ["a"]
    shop.list({"a": "3", "b": "1"})
    assert shop.propose().is_empty


def test_colliding_hashes_hide_no_image(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (catalog, planning):
        monkeypatch.setattr(module, "_HASH", "(strlen({}) * 0)")
    shop.list({"a": "1", "b": "1", "c": "1"})
    shop.night()
    shop.list({"a": "1", "b": "2", "c": "1", "d": "1"})
    assert found(shop.night()) == ["b", "d"]
    assert shop.propose().is_empty


def test_orphan_plan_does_not_exist(shop: Shop) -> None:
    shop.list({"a": "1"})
    proposal = shop.propose()
    planning._write(shop.store, proposal)
    assert planning.claimed(shop.store) == []
    assert found(shop.propose()) == ["a"]
    assert shop.propose().plan == proposal.plan


# --- delisting -------------------------------------------------------------------------------------------------------

TEN = {f"image-{n}": "1" for n in range(10)}


def test_what_is_missing_is_delisted_and_may_come_back(shop: Shop) -> None:
    shop.list(TEN)
    shop.night()
    shop.list({name: etag for name, etag in TEN.items() if name not in {"image-3", "image-7"}})
    gone = shop.night()
    assert found(gone, "delist") == ["image-3", "image-7"]
    assert found(gone) == []
    assert (gone.plan.delisted, gone.plan.shards, gone.plan.images) == (2, 0, 0)
    assert planning.read_shard(shop.store, gone.plan.run_key, planning.DELISTED)["uri"].to_pylist() == [
        "/photos/image-3.jpg",
        "/photos/image-7.jpg",
    ]
    assert shop.propose().is_empty
    shop.list(TEN)
    assert found(shop.propose()) == ["image-3", "image-7"]


def test_broken_row_is_not_gone(shop: Shop) -> None:
    shop.list(TEN)
    shop.night()
    text = (shop.folder / "list.csv").read_text()
    text = text.replace("/photos/image-3.jpg", "http://shop.example/3.jpg").replace("image-4,", "image-4,too,many,")
    (shop.folder / "list.csv").write_text(text)
    proposal = shop.propose()
    assert proposal.is_empty
    assert proposal.plan.broken_rows == 2
    assert [(row["line"], row["image_id"]) for row in proposal.plan.broken] == [(5, "image-3"), (6, "image-4")]


@pytest.mark.parametrize("more", [{"catalog_mode": "delta"}, {"limit": 100}])
def test_a_part_of_the_catalog_delists_nothing(shop: Shop, more: dict[str, Any]) -> None:
    shop.list(TEN)
    shop.night()
    shop.list({"image-1": "1"})
    assert shop.propose(**more).is_empty


def test_an_image_that_another_catalog_gave_again_is_still_delisted_by_its_own(shop: Shop) -> None:
    shop.list({f"{n}": "1" for n in range(10)})
    shop.night()
    shop.list({"7": "2"}, "fixed.csv")
    fixed = str(shop.folder / "fixed.csv")
    assert found(shop.night(catalog=fixed, catalog_mode="delta")) == ["7"]
    shop.list({**{f"{n}": "1" for n in range(10) if n != 7}})
    gone = shop.night()
    assert (found(gone), found(gone, "delist")) == ([], ["7"])
    # From now on it is nobody's: not delisted twice, and new again when it comes back.
    assert shop.propose().is_empty
    shop.list({f"{n}": "1" for n in range(10)})
    assert found(shop.propose()) == ["7"]


def test_another_catalog_delists_nothing(shop: Shop) -> None:
    shop.list(TEN)
    shop.night()
    shop.list({"other": "1"}, "other.csv")
    proposal = shop.night(catalog=str(shop.folder / "other.csv"))
    assert (found(proposal), proposal.plan.delisted) == (["other"], 0)


def test_manifest_that_would_delist_too_much_is_refused(shop: Shop) -> None:
    shop.list(TEN)
    shop.night()
    shop.list(dict(list(TEN.items())[:7]))
    with pytest.raises(WwtsError, match=r"would delist 3 of 10 images \(30%\).*WWTS_CATALOG_MODE=delta"):
        shop.propose()
    assert shop.propose(max_delist_share=0.3).plan.delisted == 3


def test_unclosed_quote_delists_nothing(shop: Shop) -> None:
    shop.list(TEN)
    shop.night()
    text = (shop.folder / "list.csv").read_text()
    (shop.folder / "list.csv").write_text(text.replace("/photos/image-8", '"/photos/image-8'))
    assert shop.propose().plan.delisted == 0


def test_small_folder_may_change_but_not_vanish(shop: Shop) -> None:
    photos = shop.folder / "photos"
    photos.mkdir()
    for n in range(30):
        (photos / f"{n}.jpg").write_bytes(b"x")
    shop.night(catalog=str(photos))
    for n in range(20):
        (photos / f"{n}.jpg").unlink()
    assert shop.propose(catalog=str(photos)).plan.delisted == 20
    (photos / "20.jpg").unlink()
    with pytest.raises(WwtsError, match=r"would delist 21 of 30 images.*mounted"):
        shop.propose(catalog=str(photos))


def test_emptied_folder_is_a_failed_mount(shop: Shop) -> None:
    photos = shop.folder / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    shop.night(catalog=str(photos))
    (photos / "a.jpg").unlink()
    with pytest.raises(WwtsError, match="would delist 1 of 1 images"):
        shop.propose(catalog=str(photos))


# --- order, capacity, shards -----------------------------------------------------------------------------------------


def test_priority_first_newest_next(shop: Shop) -> None:
    (shop.folder / "list.csv").write_text(
        "image_id,uri,priority,mtime\n"
        "a,/a,,2026-01-01\nb,/b,1,2025-01-01\nc,/c,1,2025-06-01\nd,/d,5,\ne,/e,,\nf,/f,1,\ng,/g,,2026-01-01\n"
    )
    assert found(shop.propose()) == ["d", "c", "b", "f", "a", "g", "e"]


def test_limit_carries_the_rest_over(shop: Shop) -> None:
    shop.list(TEN)
    first = shop.night(limit=4)
    assert found(first) == [f"image-{n}" for n in range(4)]
    assert first.plan.carried_over == 6
    assert found(shop.night()) == [f"image-{n}" for n in range(4, 10)]


@pytest.mark.parametrize(
    ("now", "fits"),
    [
        (datetime(2026, 1, 2, 2, 0, 0), 60),  # an hour at one image a minute, in whole shards of 15
        (datetime(2026, 1, 2, 2, 47, 0), 15),  # never less than one shard
        (datetime(2026, 1, 2, 3, 0, 0), 100),  # tomorrow's
    ],
)
def test_deadline(shop: Shop, monkeypatch: pytest.MonkeyPatch, now: datetime, fits: int) -> None:
    monkeypatch.setattr(Settings, "now", lambda self: now.replace(tzinfo=ZoneInfo("Asia/Shanghai")))
    shop.list({f"{n:03}": "1" for n in range(100)})
    more = {"deadline": time(3, 0), "shard_size": 15, "images_per_second": 1 / 60}
    plan = shop.propose(**more).plan
    assert (plan.images, plan.carried_over) == (fits, 100 - fits)
    assert shop.propose(limit=5, **more).plan.images == 5


def test_what_earlier_nights_left_undone_takes_its_time_first(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 2, 2, 0, 0, tzinfo=ZoneInfo("Asia/Shanghai"))
    monkeypatch.setattr(Settings, "now", lambda self: now)
    shop.list({f"{n:03}": "1" for n in range(40)})
    first = planning.commit(shop.store, shop.propose(shard_size=10))
    assert first is not None
    shop.store.write_json(f"runs/{first.run_key}/shard-00002.json", {"images": 10})
    shop.list({f"{n:03}": "1" for n in range(140)})
    more = {"deadline": time(3, 0), "shard_size": 10, "images_per_second": 1 / 60}
    # An hour holds 60 images at one a minute; 30 of the first plan are left.
    assert shop.propose(**more).plan.images == 30
    assert shop.propose(**more | {"deadline": time(2, 20)}).plan.images == 0, "20 minutes do not even hold the rest"


def test_speed_is_learned_from_the_last_large_runs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 2, 2, 0, 0, tzinfo=ZoneInfo("Asia/Shanghai"))
    monkeypatch.setattr(Settings, "now", lambda self: now)
    # The first is too long ago, the small one says nothing; the median of 1, 1, 1, 2, 3, 3, 3 is 2 a second.
    for number, (images, speed) in enumerate([(500, 0.1), *[(100, s) for s in (1, 1, 1, 2, 3, 3, 3)], (99, 99.0)]):
        shop.list({f"{number}": "1"})
        plan = planning.commit(shop.store, shop.propose(catalog_mode="delta"))
        assert plan is not None
        shop.finish(plan, images=images, images_per_second=float(speed))
    shop.list({f"new-{n}": "1" for n in range(500)})
    assert shop.propose(deadline=time(2, 1), shard_size=1, catalog_mode="delta").plan.images == 120


def test_shards_are_contiguous_and_read_alone(shop: Shop) -> None:
    shop.list({f"{n:02}": "1" for n in range(10)})
    plan = shop.night(shard_size=4).plan
    assert plan.shards == 3
    shards = [planning.read_shard(shop.store, plan.run_key, n) for n in range(3)]
    assert [shard["image_id"].to_pylist() for shard in shards] == [
        ["00", "01", "02", "03"],
        ["04", "05", "06", "07"],
        ["08", "09"],
    ]
    assert shards[0].schema == PLAN
    assert pq.ParquetFile(shop.store.path(planning.plan_key(plan.run_key))).num_row_groups == 3
    assert planning.read_shard(shop.store, plan.run_key, planning.DELISTED).num_rows == 0


def test_never_more_than_128_shards(shop: Shop) -> None:
    shop.list({f"{n:04}": "1" for n in range(300)})
    proposal = shop.propose(shard_size=1)
    assert proposal.plan.shards == 100
    assert proposal.table["shard"].to_pylist()[:4] == [0, 0, 0, 1]


# --- plans in the store ----------------------------------------------------------------------------------------------


def test_same_inputs_same_run_key(shop: Shop) -> None:
    shop.list({"a": "1", "b": "1"})
    one, two = shop.propose(), shop.propose()
    assert one.plan == two.plan
    assert one.plan.run_key.startswith("2026-01-02-")
    others = [
        planning.propose(shop.store, shop.settings(), Request(NIGHT, replace(PIN, model_version="2"))),
        planning.propose(shop.store, shop.settings(), Request(date(2026, 1, 3), PIN)),
        shop.propose(limit=1),
    ]
    shop.list({"a": "1", "b": "2"})
    others.append(shop.propose())
    assert len({one.plan.run_key, *(other.plan.run_key for other in others)}) == 5


def test_header_survives(shop: Shop) -> None:
    shop.list({"a": "1", "": "1"})
    plan = shop.night().plan
    assert planning.read(shop.store, plan.run_key) == plan
    assert planning.claimed(shop.store) == [plan]
    assert plan.broken == ({"line": 3, "image_id": None, "reason": "image_id is empty"},)
    assert Plan.from_json(plan.to_json()) == plan


def test_absent_and_damaged_plans_are_told(shop: Shop) -> None:
    with pytest.raises(WwtsError, match="does not exist"):
        planning.read(shop.store, "2026-01-01-000000000000")
    shop.store.write_bytes(planning.plan_key("x"), b"PAR1 half")
    with pytest.raises(WwtsError, match="is damaged"):
        planning.read(shop.store, "x")
    shop.store.write_table(planning.plan_key("y"), PLAN.empty_table())
    with pytest.raises(WwtsError, match="no header"):
        planning.read(shop.store, "y")


def test_unfinished_plans_come_by_sequence(shop: Shop) -> None:
    plans = []
    for day, name in ((3, "a"), (1, "b"), (2, "c")):
        shop.list({name: "1"})
        proposal = planning.propose(shop.store, shop.settings(catalog_mode="delta"), Request(date(2026, 1, day), PIN))
        assert planning.commit(shop.store, proposal)
        plans.append(proposal.plan)
    assert [plan.sequence for plan in plans] == [1, 2, 3]
    shop.finish(plans[1])
    assert planning.unfinished(shop.store) == [plans[0], plans[2]]
    assert planning.claimed(shop.store) == plans


def test_slower_starter_with_another_plan_leaves_nothing(shop: Shop) -> None:
    shop.list({"a": "1"})
    slow = shop.propose()
    shop.list({"b": "1"})
    quick = shop.propose()
    assert planning.commit(shop.store, quick) == quick.plan
    assert planning.commit(shop.store, slow) is None
    assert planning.claimed(shop.store) == [quick.plan]
    assert shop.store.list("runs") == [
        f"runs/{quick.plan.run_key}/plan.parquet",
        "runs/_sequence/00000001.json",
    ]
    assert not Path(shop.store.path(f"runs/{slow.plan.run_key}")).exists()


def test_slower_starter_with_the_same_plan_keeps_it(shop: Shop) -> None:
    shop.list({"a": "1"})
    proposal = shop.propose()
    assert planning.commit(shop.store, proposal) == proposal.plan
    assert planning.commit(shop.store, proposal) is None
    assert planning.unfinished(shop.store) == [proposal.plan]
    assert planning.read_shard(shop.store, proposal.plan.run_key, 0)["image_id"].to_pylist() == ["a"]


START = """
import sys
from datetime import date
from wwts_ops import planning, settings
from wwts_ops.storage import Store
chosen = settings.load(store=sys.argv[1], catalog=sys.argv[2])
store = Store.of(chosen)
proposal = planning.propose(store, chosen, planning.Request(date(2026, 1, 2), planning.Pin(*"mvsbt")))
print("ready", flush=True)
sys.stdin.readline()
print(planning.commit(store, proposal) is not None, proposal.plan.run_key, flush=True)
"""


@pytest.mark.parametrize("lists", [["list.csv"] * 3, ["one.csv", "two.csv", "three.csv"]])
def test_of_starters_at_once_one_wins(shop: Shop, lists: list[str]) -> None:
    for name in lists:
        shop.list({f"of {name}": "1"}, name)
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", START, shop.root, str(shop.folder / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in lists
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    answers = [starter.communicate(timeout=300)[0].split() for starter in starters]
    winners = [run_key for won, run_key in answers if won == "True"]
    assert len(winners) == 1
    assert [plan.run_key for plan in planning.claimed(shop.store)] == winners
    assert [key for key in shop.store.list("runs") if key.endswith(".parquet")] == [planning.plan_key(winners[0])]


# --- S3 --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nights_on_s3(s3_server: Any, tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3", **s3_options(s3_server.endpoint))
    root = f"s3://{s3_server.bucket}/planning"
    photos = f"{root}/photos"
    more = {"s3_endpoint": s3_server.endpoint, "database_url": "sqlite://", "catalog": photos}
    shop = Shop(tmp_path, f"{root}/store", more)
    for n in range(6):
        fs.pipe_file(f"{photos}/红酒/{n}.jpg", b"x")
    first = shop.night(rejected={"红酒/2.jpg": "unreadable_uri", "红酒/3.jpg": "empty"})
    assert first.plan.images == 6
    fs.pipe_file(f"{photos}/红酒/4.jpg", b"longer")
    fs.rm_file(f"{photos}/红酒/5.jpg")
    slow = shop.propose(limit=1)
    second = shop.night()
    assert sorted(found(second)) == ["红酒/2.jpg", "红酒/4.jpg"]
    assert found(second, "delist") == ["红酒/5.jpg"]
    assert planning.commit(shop.store, slow) is None
    assert planning.claimed(shop.store) == [first.plan, second.plan]
    assert planning.unfinished(shop.store) == []
    assert planning.read_shard(shop.store, second.plan.run_key, planning.DELISTED)["image_id"].to_pylist() == [
        "红酒/5.jpg"
    ]
    assert shop.propose().is_empty
