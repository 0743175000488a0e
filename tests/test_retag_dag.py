"""The DAG retag_catalog as `wwts run` runs it: all stages, back to a snapshot, a dry run, and nothing to do."""

from __future__ import annotations

from pathlib import Path

import dag_chain
import pytest
from retag_shop import RetagShop, make_tagger

from wwts_ops import published, retags

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(clean_environment: None, tmp_path: Path) -> RetagShop:
    heads = make_tagger(tmp_path / "one", 2), make_tagger(tmp_path / "two", 3, network=1.25)
    return RetagShop.made(tmp_path / "shop", *heads)


def test_all_of_it_in_one_process(shop: RetagShop, tmp_path: Path) -> None:
    nothing = dag_chain.run(shop.settings, [("retag_catalog", {})], tmp_path)
    assert nothing.codes == [0]
    assert "还没有发布过标签" in nothing.said()
    shop.night(shop.version(1))
    first = published.current(shop.store)
    assert first is not None
    shop.champion(shop.version(2))
    snapshot = first.value["snapshot"]
    steps = [("retag_catalog", {"dry_run": True}), ("retag_catalog", {}), ("retag_catalog", {})]
    chain = dag_chain.run(shop.settings, [*steps, ("retag_catalog", {"snapshot": snapshot})], tmp_path)
    assert chain.codes == [0, 0, 0, 0], chain.said()
    (made,) = {key.split("/")[1] for key in shop.store.list("retags", "/plan.json")}
    parts = [shop.store.read_table(key) for key in retags.read(shop.store, made).rows]
    waiting = sum(row["decision"] != "auto" for part in parts for row in part.to_pylist())
    published_in_turn = [event["snapshot"] for event in chain.events if event.get("event") == "published"]
    assert len(published_in_turn) == 2, "the dry run and the second one published nothing new"
    assert published_in_turn[1] == snapshot
    assert [event["missing"] for event in chain.events if event.get("event") == "retag_done"] == [0, 0]
    # What the new head is not sure of waits, with its tags; back at what the night wrote, nothing more is asked for.
    routed = [event for event in chain.events if event.get("event") == "retag_routed_to_review"]
    assert [event["waiting"] for event in routed] == [waiting, waiting]
    assert waiting > 0
    assert "线上读的是各夜打的标签" in chain.said()
    assert retags.in_force(shop.store) is None, "back to what the night wrote"
    assert {row["model_version"] for row in shop.rows().values()} == {"1"}
