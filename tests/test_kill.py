"""Exactly once: nights that are really killed, and nights started twice, end as an undisturbed one does."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import night_process
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forkserver import CONTEXT

from wwts_ops import demo, registry, settings, storage

pytestmark = pytest.mark.slow

#: What a second run of the same plan may write differently.
VOLATILE = {"tagged_at", "git_sha", "seen_at"}
DATASETS = ("tags", "quarantine", "embeddings", "published", "review")
SECONDS = 600


@dataclass(frozen=True)
class Shop:
    """A catalog, a prepared state (model registered), and what an undisturbed night made of it."""

    folder: Path
    catalog: Path
    state: Path
    changes: tuple[str, ...]
    rows: dict[str, list[dict[str, object]]]

    def store(self, name: str) -> Path:
        store = self.folder / name / "store"
        shutil.copytree(self.state, Path(f"{store}.state"))
        return store


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("kill")
    catalog = folder / "图库 🛒"
    _make_catalog(catalog)
    prepared = settings.load(store=str(folder / "prepared" / "store"), device="cpu")
    registry.ensure_champion(prepared)
    whole = Shop(folder, catalog, prepared.state_dir, (), {})
    store = whole.store("undisturbed")
    assert _run(whole, store, at=0) == 0
    changes = tuple(_trace(store).read_text(encoding="utf-8").splitlines())
    return Shop(folder, catalog, prepared.state_dir, changes, _rows(store))


def _make_catalog(folder: Path) -> None:
    """Twelve real photographs, three copies, two broken files, in a few folders."""
    photos = demo.photographs()[:12]
    for number, photo in enumerate(photos):
        target = folder / f"类目 {number % 3}" / f"照片 {number:02d} 📷{photo.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, target)
    for number in (0, 5, 5):
        shutil.copyfile(photos[number], folder / f"副本 {number}-{len(list(folder.iterdir()))}{photos[number].suffix}")
    (folder / "空.jpg").write_bytes(b"")
    jpeg = next(photo for photo in demo.photographs() if photo.suffix == ".jpg")
    (folder / "截断.jpg").write_bytes(jpeg.read_bytes()[:5000])


def _environment(shop: Shop, store: Path) -> dict[str, str]:
    return {
        "WWTS_STORE": str(store),
        "WWTS_CATALOG": str(shop.catalog),
        "WWTS_DEVICE": "cpu",
        "WWTS_RELEASE": "live",
        "WWTS_SHARD_SIZE": "6",
    }


def _trace(store: Path) -> Path:
    return store.parent / "changes.txt"


def _start(shop: Shop, store: Path, at: int, moment: str = "before") -> BaseProcess:
    arguments = (_environment(shop, store), at, moment, str(_trace(store)))
    process = CONTEXT.Process(target=night_process.main, args=arguments)
    process.start()
    return process


def _run(shop: Shop, store: Path, at: int, moment: str = "before") -> int | None:
    return _end(_start(shop, store, at, moment))


def _end(process: BaseProcess) -> int | None:
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        pytest.fail("a night hangs")
    return process.exitcode


def _parts(store: Path) -> Iterator[Path]:
    for path in sorted(store.rglob("*.parquet")):
        assert not path.name.startswith("."), f"a glob for Parquet files sees the temporary {path}"
        yield path


def _rows(store: Path) -> dict[str, list[dict[str, object]]]:
    """All rows of all datasets, what may differ left out; of what is published, the current snapshot only."""
    current = storage.Store(str(store)).read_pointer("published/current.json")
    assert current is not None
    found: dict[str, list[dict[str, object]]] = {name: [] for name in DATASETS}
    for path in _parts(store):
        dataset = path.relative_to(store).parts[0]
        if dataset not in found or (dataset == "published" and path.parent.name != current.value["snapshot"]):
            continue
        table: pa.Table = pq.ParquetFile(path).read()
        kept = table.drop_columns([name for name in table.column_names if name in VOLATILE])
        # The path is part of a row: the same row in another part would be another row.
        where = str(path.relative_to(store))
        found[dataset] += [{**row, "part": where} for row in kept.to_pylist()]
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


def _check(shop: Shop, store: Path) -> None:
    rows = _rows(store)
    for name in DATASETS:
        assert len(rows[name]) == len(shop.rows[name]), f"{name}: rows lost or doubled"
        for row, expected in zip(rows[name], shop.rows[name], strict=True):
            differs = {key: (row[key], value) for key, value in expected.items() if row[key] != value}
            assert not differs, f"{name} differs from an undisturbed night: {differs}"
    assert len(list((store / "runs" / "_sequence").glob("*.json"))) == 1, "planned twice"
    pages = list((store / "reports").rglob("index.html"))
    assert len(pages) == 1
    assert pages[0].stat().st_size > 1000


def _kinds(changes: tuple[str, ...]) -> dict[str, list[int]]:
    """Numbers of the changes by what they are, so that kills can be spread over all kinds."""
    kinds: dict[str, list[int]] = {}
    for number, change in enumerate(changes, start=1):
        what, _, target = change.partition(" ")
        if what == "link":
            kind = "plan claimed" if "_sequence" in target else "pointer created"
        elif "plan.parquet" in target:
            kind = f"plan {what}"
        elif "/shard-" in target:
            kind = f"marker {what}"
        elif "/published/" in target or target.endswith("/done.json"):
            kind = f"publish {what}"
        elif "/thumbnails/" in target:
            kind = "thumbnail"
        else:
            kind = what
        kinds.setdefault(kind, []).append(number)
    return kinds


def _spread(changes: tuple[str, ...]) -> list[tuple[int, str]]:
    """Of every kind the first change, before it happens, and the last, after it happened."""
    kinds = _kinds(changes).values()
    return sorted(
        {(numbers[0], "before") for numbers in kinds} | {(numbers[-1], "after") for numbers in kinds},
    )


def test_an_undisturbed_night_has_all_rows(shop: Shop) -> None:
    files = {path.relative_to(shop.catalog).as_posix() for path in shop.catalog.rglob("*") if path.is_file()}
    tagged = {row["image_id"] for row in shop.rows["tags"]}
    quarantined = {row["image_id"] for row in shop.rows["quarantine"]}
    assert tagged | quarantined == files
    assert quarantined == {"空.jpg", "截断.jpg"}
    assert {row["image_id"] for row in shop.rows["published"]} == tagged
    contents = {row["content_sha256"] for row in shop.rows["tags"]}
    assert len(contents) == 12
    assert {row["content_sha256"] for row in shop.rows["embeddings"]} == contents
    assert {"plan claimed", "plan rename", "marker rename", "publish rename", "thumbnail", "rename", "write"} <= set(
        _kinds(shop.changes)
    )


def test_killed_anywhere_and_started_again_it_ends_the_same(shop: Shop) -> None:
    kills = _spread(shop.changes)
    assert len(kills) == 2 * len(_kinds(shop.changes)) >= 16, kills
    for number, moment in kills:
        store = shop.store(f"kill-{number}-{moment}")
        assert _run(shop, store, number, moment) == -signal.SIGKILL
        assert all(pq.ParquetFile(path).metadata is not None for path in _parts(store)), "half a file is visible"
        assert _run(shop, store, at=0) == 0
        _check(shop, store)
        shutil.rmtree(store.parent)


def test_killed_again_and_again_it_ends_the_same(shop: Shop) -> None:
    """Ten kills of one and the same night, each start living a little longer."""
    store = shop.store("again")
    for step in range(10):
        assert _run(shop, store, at=3 + step, moment="after") == -signal.SIGKILL
    assert _run(shop, store, at=0) == 0
    _check(shop, store)


def test_two_at_once_and_one_is_killed(shop: Shop) -> None:
    """Two share the work, so one that starts late may be through before its kill: most of these must be killed."""
    ends = []
    for at in (2, 3, 5, 8):
        store = shop.store(f"two-{at}")
        first = _start(shop, store, at=at, moment="after")
        second = _start(shop, store, at=0)
        ends.append(_end(first))
        assert _end(second) == 0
        assert _run(shop, store, at=0) == 0
        _check(shop, store)
    assert set(ends) <= {-signal.SIGKILL, 0}
    assert ends.count(-signal.SIGKILL) >= 2


def test_two_at_once_and_both_are_killed(shop: Shop) -> None:
    store = shop.store("both")
    both = [_start(shop, store, at=at, moment="before") for at in (1, 2)]
    assert [_end(process) for process in both] == [-signal.SIGKILL] * 2
    assert _run(shop, store, at=0) == 0
    _check(shop, store)


def test_two_whole_nights_at_once_do_not_double(shop: Shop) -> None:
    store = shop.store("twins")
    twins = [_start(shop, store, at=0) for _ in range(2)]
    assert [_end(process) for process in twins] == [0, 0]
    _check(shop, store)


def test_an_unfinished_plan_is_finished_before_new_images_are_planned(shop: Shop, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog"
    shutil.copytree(shop.catalog, catalog)
    grown = Shop(tmp_path, catalog, shop.state, shop.changes, {})
    store = grown.store("grown")
    middle = next(number for number, change in enumerate(shop.changes, start=1) if "/shard-00000" in change)
    assert _run(grown, store, at=middle + 8, moment="after") == -signal.SIGKILL
    late = catalog / "新品.png"
    shutil.copyfile(demo.photographs()[12], late)
    os.utime(late)
    assert _run(grown, store, at=0) == 0
    kept = storage.Store(str(store))
    claims = [kept.read_json(key)["run_key"] for key in kept.list("runs/_sequence", ".json")]
    assert len(claims) == 2
    runs = {row["image_id"]: row["run_id"] for row in _rows(store)["published"]}
    assert runs.pop("新品.png") == claims[1]
    assert set(runs.values()) == {claims[0]}
    done = [kept.path(f"runs/{run_key}/done.json") for run_key in claims]
    assert Path(done[0]).stat().st_mtime <= Path(done[1]).stat().st_mtime
