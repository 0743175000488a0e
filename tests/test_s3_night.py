"""A whole night on a real S3 server: catalog, store, conditional pointers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Server

from wwts_ops import demo, night, planning, published, settings
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

pytestmark = pytest.mark.slow

#: Where a row was made, not what it says.
ELSEWHERE = {"uri", "run_id", "tagged_at", "snapshot", "taxonomy_version", "source"}


def _fill(folder: Path) -> None:
    photos = demo.photographs()[:5]
    (folder / "鲜果 🍎").mkdir(parents=True)
    for number, photo in enumerate(photos):
        shutil.copyfile(photo, folder / "鲜果 🍎" / f"{number} 号{photo.suffix}")
    shutil.copyfile(photos[0], folder / f"副本{photos[0].suffix}")
    (folder / "空.jpg").write_bytes(b"")


def _one_night(found: Settings) -> None:
    planned = night.plan(found, night.order({"date": "2026-03-01"}, None, found), "LocalExecutor")
    assert planned is not None
    for shard in planned["shards"]:
        night.tag_shard(found, shard["run_key"], shard["shard"])
    night.publish_tags(found)
    night.route_to_review(found, planned["run_keys"])
    night.build_report(found, planned)
    night.finish(found, planned["run_keys"])


def _rows(store: Store) -> list[dict[str, Any]]:
    rows = published.read(store).to_pylist()
    return sorted(({k: v for k, v in row.items() if k not in ELSEWHERE} for row in rows), key=lambda r: r["image_id"])


@pytest.fixture
def shops(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, Settings]:
    """The same catalog in a folder and in a bucket; stores likewise."""
    monkeypatch.chdir(tmp_path)
    _fill(tmp_path / "catalog")
    base = f"s3://{s3_server.bucket}/night-{tmp_path.name}"
    bucket = Store(f"{base}/catalog", s3_server.endpoint)
    for path in (tmp_path / "catalog").rglob("*.*"):
        bucket.write_bytes(path.relative_to(tmp_path / "catalog").as_posix(), path.read_bytes())
    shared = {"release": "live", "device": "cpu", "mlflow_tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    local = settings.load(catalog=str(tmp_path / "catalog"), store=str(tmp_path / "store"), **shared)
    remote = settings.load(
        catalog=f"{base}/catalog",
        store=f"{base}/store",
        s3_endpoint=s3_server.endpoint,
        database_url=f"sqlite:///{tmp_path}/wwts.db",
        **shared,
    )
    return local, remote


def test_a_night_on_s3_gives_the_rows_of_a_night_in_a_folder(shops: tuple[Settings, Settings]) -> None:
    local, remote = shops
    for found in shops:
        _one_night(found)
    store = Store.of(remote)
    assert _rows(store) == _rows(Store.of(local))
    assert len(_rows(store)) == 6
    # Which of two copies comes first depends on the minute each was uploaded; that one is a duplicate does not.
    assert sorted(published.read(store)["source"].to_pylist()) == ["duplicate", *["model"] * 5]
    assert not planning.unfinished(store)
    names = {key.split("/")[0] for key in store.list("")}
    assert names >= {"runs", "tags", "embeddings", "quarantine", "published"}
    assert names >= {"thumbnails", "taxonomy", "reports", "review", "releases"}
    assert store.read_bytes("reports/date=2026-03-01/index.html").lower().startswith(b"<!doctype html>")

    # The next night finds nothing new, and nothing is planned, published or counted twice.
    before = published.current(store)
    _one_night(remote)
    assert published.current(store) == before
    assert len(planning.claimed(store)) == 1


def test_a_publisher_that_comes_too_late_does_not_undo_the_other(shops: tuple[Settings, Settings]) -> None:
    _, remote = shops
    _one_night(remote)
    store = Store.of(remote)
    stale = published.current(store)
    assert stale is not None
    assert store.replace_pointer(published.POINTER, {**stale.value, "snapshot": "newer"}, stale)
    assert not store.replace_pointer(published.POINTER, {**stale.value, "snapshot": "older"}, stale)
    current = published.current(store)
    assert current is not None
    assert (current.value["snapshot"], current.sequence) == ("newer", stale.sequence + 1)
