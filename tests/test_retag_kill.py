"""A re-tagging that is killed anywhere and started again ends the same; two at once do no harm."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from forkserver import CONTEXT
from retag_shop import TAG_COLUMNS, RetagShop, make_tagger, retag_and_die

from wwts_ops import embeddings, retags
from wwts_ops.storage import Store

pytestmark = pytest.mark.slow

SECONDS = 600
#: Every so many changes of the store one kill, in turn just before and just after it.
STEP = 6


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RetagShop]:
    """The catalog is tagged by the first version; champion is one of another backbone: all is to be embedded, too."""
    folder = tmp_path_factory.mktemp("kill")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        taggers = make_tagger(folder / "one", 2), make_tagger(folder / "two", 3, network=1.25)
        shop = RetagShop.made(folder / "shop", *taggers)
        shop.night(shop.version(1))
        shop.champion(shop.version(2))
        yield shop


def start(shop: RetagShop, at: int = 0, moment: str = "before") -> BaseProcess:
    given = {**shop.settings.model_dump(), "MLFLOW_TRACKING_URI": shop.settings.mlflow_tracking_uri}
    trace = Path(shop.settings.store).with_name("changes.txt")
    process = CONTEXT.Process(target=retag_and_die, args=(given, at, moment, str(trace)))
    process.start()
    return process


def end(process: BaseProcess) -> int | None:
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        pytest.fail("a re-tagging hangs")
    return process.exitcode


def result(shop: RetagShop) -> tuple[Any, ...]:
    """All that it came to: what consumers read, the retag in force, every embedding."""
    store = Store.of(shop.settings)
    found = retags.in_force(store)
    assert found is not None
    rows = {name: [row[column] for column in (*TAG_COLUMNS, "state", "run_id")] for name, row in shop.rows().items()}
    for part in Path(store.root).rglob("*.parquet"):
        assert not part.name.startswith("."), f"a glob for Parquet files sees the temporary {part}"
    vectors = [
        (contents, group.tobytes())
        for key in embeddings.parts(store, found.backbone_sha256)
        for contents, group in embeddings.batches(store, key)
    ]
    return rows, found.key, found.images, found.missing, found.parts, vectors, store.list("retags", ".parquet")


@pytest.fixture(scope="module")
def undisturbed(template: RetagShop, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Any, ...], list[str]]:
    """What one that nobody kills comes to, and its changes of the store."""
    shop = template.copied(tmp_path_factory.mktemp("whole") / "shop")
    assert end(start(shop)) == 0
    return result(shop), Path(shop.settings.store).with_name("changes.txt").read_text(encoding="utf-8").splitlines()


def test_killed_anywhere_and_started_again_it_ends_the_same(
    template: RetagShop, undisturbed: tuple[tuple[Any, ...], list[str]], tmp_path: Path
) -> None:
    expected, changes = undisturbed
    assert any("/backfills/" in change for change in changes)
    assert any("retags/current" in change for change in changes)
    for turn, at in enumerate(range(1, len(changes) + 1, STEP)):
        shop = template.copied(tmp_path / str(at))
        assert end(start(shop, at, ("before", "after")[turn % 2])) == -signal.SIGKILL, changes[at - 1]
        assert end(start(shop)) == 0
        assert result(shop) == expected, f"killed at {changes[at - 1]}"


def test_two_at_once_do_no_harm(
    template: RetagShop, undisturbed: tuple[tuple[Any, ...], list[str]], tmp_path: Path
) -> None:
    shop = template.copied(tmp_path / "two")
    assert [end(process) for process in [start(shop), start(shop)]] == [0, 0]
    assert result(shop) == undisturbed[0]
    assert multiprocessing.active_children() == []
