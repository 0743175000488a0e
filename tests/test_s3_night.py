"""A whole night on a real S3 server: catalog, store, conditional pointers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Server
from night_process import one_night

from wwts_ops import demo, planning, published, settings
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

pytestmark = pytest.mark.slow

#: Where a row was made, not what it says.
ELSEWHERE = {"uri", "run_id", "tagged_at", "snapshot", "taxonomy_version"}


def _fill(folder: Path) -> None:
    photos = demo.photographs()[:5]
    (folder / "鲜果 🍎").mkdir(parents=True)
    for number, photo in enumerate(photos):
        shutil.copyfile(photo, folder / "鲜果 🍎" / f"{number} 号{photo.suffix}")
    shutil.copyfile(photos[0], folder / f"副本{photos[0].suffix}")
    (folder / "空.jpg").write_bytes(b"")


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
        key = path.relative_to(tmp_path / "catalog").as_posix()
        bucket.write_bytes(key, path.read_bytes())
        # Newest come first, and of two copies the first is no duplicate: both catalogs must tell the same times.
        uploaded = bucket.fs.info(bucket.path(key))["LastModified"].timestamp()
        os.utime(path, (uploaded, uploaded))
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
        one_night(found)
    store = Store.of(remote)
    assert _rows(store) == _rows(Store.of(local))
    assert len(_rows(store)) == 6
    assert not planning.unfinished(store)
    names = {key.split("/")[0] for key in store.list("")}
    assert names >= {"runs", "tags", "embeddings", "quarantine", "published"}
    assert names >= {"thumbnails", "taxonomy", "reports", "review", "releases"}
    assert store.read_bytes("reports/date=2026-03-01/index.html").lower().startswith(b"<!doctype html>")

    # The next night finds nothing new, and nothing is planned, published or counted twice.
    before = published.current(store)
    one_night(remote)
    assert published.current(store) == before
    assert len(planning.claimed(store)) == 1


def test_a_publisher_that_comes_too_late_does_not_undo_the_other(shops: tuple[Settings, Settings]) -> None:
    _, remote = shops
    one_night(remote)
    store = Store.of(remote)
    stale = published.current(store)
    assert stale is not None
    assert store.replace_pointer(published.POINTER, {**stale.value, "snapshot": "newer"}, stale)
    assert not store.replace_pointer(published.POINTER, {**stale.value, "snapshot": "older"}, stale)
    current = published.current(store)
    assert current is not None
    assert (current.value["snapshot"], current.sequence) == ("newer", stale.sequence + 1)
