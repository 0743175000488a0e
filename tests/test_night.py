"""The stages of a night as plain functions, over a small catalog of real photographs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from night_run import BROKEN, COPIES, NAMES

from wwts_ops import night as stages
from wwts_ops import planning, published, settings, summary
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.night import Order
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

if TYPE_CHECKING:
    from night_run import FinishedNight

EXECUTOR = "LocalExecutor"
IMAGES = len(NAMES) + len(COPIES) + len(BROKEN)
TAGGED = sorted([*NAMES.values(), *COPIES])
DAY = date(2026, 3, 1)


class NewYear(Settings):
    """Settings whose clock stands at 02:30 on the second day of 2026 in Shanghai, 18:30 of the first in UTC."""

    def now(self) -> datetime:
        return datetime(2026, 1, 1, 18, 30, tzinfo=UTC).astimezone(ZoneInfo(self.timezone))


@pytest.fixture
def prepared(night: FinishedNight, clean_environment: None, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a shop with a registry and a taxonomy, a catalog of its own, and no night yet."""
    store = tmp_path / "store"
    night.copy_state(store)
    shutil.copytree(night.store / "taxonomy", store / "taxonomy")
    shutil.copytree(night.catalog, tmp_path / "图库")

    def make(**given: Any) -> Settings:
        usual = {"store": str(store), "catalog": str(tmp_path / "图库"), "device": "cpu", "shard_size": 6}
        return settings.load(**{**usual, **given})

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def planned(found: Settings, day: date = DAY, **wanted: Any) -> stages.Night:
    night = stages.plan(found, Order(day, **wanted), EXECUTOR)
    assert night is not None
    return night


def tag_all(found: Settings, night: stages.Night) -> None:
    for shard in night["shards"]:
        stages.tag_shard(found, shard["run_key"], shard["shard"])


def close(found: Settings, night: stages.Night) -> str:
    """What follows the shards, in the DAG's order; the page's path."""
    stages.publish_tags(found)
    stages.route_to_review(found, night["run_keys"])
    page = stages.build_report(found, night)
    stages.finish(found, night["run_keys"])
    return page


# ------------------------------------------------------------------ the form


def test_the_date_of_the_form_comes_first(clean_environment: None) -> None:
    order = stages.order({"date": "2026-02-28"}, "2026-03-01", settings.load())
    assert order == Order(date(2026, 2, 28))


def test_the_partition_comes_next(clean_environment: None) -> None:
    assert stages.order({"date": ""}, "2026-03-01", settings.load()).date == date(2026, 3, 1)


def test_today_is_the_shops_today(clean_environment: None) -> None:
    """At 18:30 on New Year's Day in UTC it is the 2nd in Shanghai, and still the 1st in New York."""
    assert stages.order({}, None, NewYear()).date == date(2026, 1, 2)
    assert stages.order({}, None, NewYear(timezone="America/New_York")).date == date(2026, 1, 1)


@pytest.mark.parametrize("given", ["2026-02-30", "01.03.2026", "yesterday", "2026-03-01T02:00:00", "２０２６-0３-01x"])
def test_a_date_that_is_none_is_refused(clean_environment: None, given: str) -> None:
    with pytest.raises(WwtsError, match="YYYY-MM-DD"):
        stages.order({"date": given}, None, settings.load())
    with pytest.raises(WwtsError, match="YYYY-MM-DD"):
        stages.order({}, given, settings.load())


def test_the_rest_of_the_form(clean_environment: None) -> None:
    form = {"date": "2026-03-01", "catalog": "/图库", "model_version": "3", "limit": 10, "dry_run": True}
    assert stages.order(form, None, settings.load()) == Order(DAY, "/图库", "3", 10, True)
    empty = {"date": "2026-03-01", "catalog": "", "model_version": "", "limit": None, "dry_run": False}
    assert stages.order(empty, None, settings.load()) == Order(DAY)


# ------------------------------------------------------------------ the stages


def test_a_dry_run_writes_nothing(prepared: Callable[..., Settings], tmp_path: Path) -> None:
    before = contents(tmp_path / "store")
    assert stages.plan(prepared(), Order(DAY, dry_run=True), EXECUTOR) is None
    assert contents(tmp_path / "store") == before


def test_a_dry_run_of_a_new_shop_registers_nothing(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    (catalog / "a.jpg").write_bytes(b"x")
    found = make_settings(catalog=str(catalog))
    assert stages.plan(found, Order(DAY, dry_run=True), EXECUTOR) is None
    assert not Path(found.store).exists()
    assert not list(found.state_dir.rglob("mlflow.db"))


def test_a_whole_night(prepared: Callable[..., Settings]) -> None:
    found = prepared(release="live")
    night = planned(found)
    assert json.loads(json.dumps(night)) == night, "what passes between tasks must be plain"
    assert [shard["shard"] for shard in night["shards"]] == list(range(-(-IMAGES // 6)))
    tag_all(found, night)
    page = close(found, night)
    assert Path(page).read_bytes().lower().startswith(b"<!doctype html>")
    store = Store.of(found)
    assert sorted(published.read(store)["image_id"].to_pylist()) == TAGGED
    assert planning.unfinished(store) == []

    pointer = published.current(store)
    again = planned(found, date(2026, 3, 2))
    assert again == {"date": "2026-03-02", "run_keys": [], "shards": []}
    page = close(found, again)
    assert "date=2026-03-02" in page, "an empty night has a page too"
    assert published.current(store) == pointer, "publishing the same again moves nothing"


def test_a_limit_leaves_the_rest_for_the_next_night(prepared: Callable[..., Settings]) -> None:
    found = prepared()
    night = planned(found, limit=4)
    assert planning.read(Store.of(found), night["run_keys"][0]).images == 4
    tag_all(found, night)
    close(found, night)
    rest = planned(found, date(2026, 3, 2))
    assert planning.read(Store.of(found), rest["run_keys"][0]).images == IMAGES - 4


def test_another_catalog_delists_nothing(prepared: Callable[..., Settings], tmp_path: Path) -> None:
    found = prepared()
    first = planned(found)
    tag_all(found, first)
    close(found, first)
    other = tmp_path / "另一个"
    other.mkdir()
    shutil.copyfile(tmp_path / "图库" / "moon.png", other / "只有一张.png")
    night = planned(found, date(2026, 3, 2), catalog=str(other))
    tag_all(found, night)
    close(found, night)
    assert sorted(published.read(Store.of(found))["image_id"].to_pylist()) == sorted([*TAGGED, "只有一张.png"])


def test_one_broken_shard_loses_no_other(prepared: Callable[..., Settings], tmp_path: Path) -> None:
    """A folder stands where shard 1 writes its tags: for real, that shard cannot end."""
    found = prepared()
    night = planned(found)
    (run_key,) = night["run_keys"]
    obstacle = tmp_path / "store" / "tags" / "date=2026-03-01" / f"part-{run_key}-00001.parquet"
    obstacle.mkdir(parents=True)
    for shard in night["shards"]:
        if shard["shard"] == 1:
            with pytest.raises(UnavailableError, match=obstacle.name):
                stages.tag_shard(found, run_key, 1)
        else:
            stages.tag_shard(found, run_key, shard["shard"])
    with pytest.raises(WwtsError, match=run_key):
        close(found, night)
    store = Store.of(found)
    there = set(published.read(store)["image_id"].to_pylist())
    lost = set(planning.read_shard(store, run_key, 1)["image_id"].to_pylist())
    assert there == set(TAGGED) - lost
    assert there

    obstacle.rmdir()
    next_night = planned(found, date(2026, 3, 2))
    assert next_night["run_keys"] == [run_key]
    assert next_night["shards"] == [{"run_key": run_key, "shard": 1}]
    tag_all(found, next_night)
    close(found, next_night)
    assert sorted(published.read(store)["image_id"].to_pylist()) == TAGGED
    assert (tmp_path / "store" / "tags" / "date=2026-03-02").exists() is False, "rows keep the date of their plan"


def test_a_shard_that_is_done_is_not_done_again(prepared: Callable[..., Settings], tmp_path: Path) -> None:
    found = prepared()
    night = planned(found)
    tag_all(found, night)
    before = contents(tmp_path / "store")
    tag_all(found, night)
    assert contents(tmp_path / "store") == before


def test_several_machines_must_share_what_they_write(prepared: Callable[..., Settings], tmp_path: Path) -> None:
    before = contents(tmp_path / "store")
    with pytest.raises(WwtsError, match="WWTS_STORE"):
        stages.plan(prepared(), Order(DAY), "CeleryExecutor")
    assert contents(tmp_path / "store") == before


def test_an_unknown_model_version_is_refused_before_anything_is_planned(prepared: Callable[..., Settings]) -> None:
    found = prepared()
    with pytest.raises(WwtsError, match="99"):
        stages.plan(found, Order(DAY, model_version="99"), EXECUTOR)
    assert planning.claimed(Store.of(found)) == []


def test_a_night_without_one_finished_shard_does_not_say_that_nothing_was_new() -> None:
    told = summary.night({"planned": 5, "report": "页"})
    assert "没有图片完成打标" in told
    assert "没有新图片" not in told
    assert "没有新图片" in summary.night({"planned": 0, "report": "页"})
