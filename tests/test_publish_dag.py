"""The DAG that lets answers go live: what it does when it is really run."""

from __future__ import annotations

from dataclasses import dataclass

import dag_chain
import pytest
from environment import clean
from overlaid_nights import OverlaidNights
from written_nights import auto, review

from wwts_ops import publish

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ran:
    """The shop after runs without anything new, with three answers, and once more."""

    nights: OverlaidNights
    chain: dag_chain.Chain


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("publish_tags")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        patch.setenv("WWTS_RETRAIN_ANSWERS", "3")
        nights = OverlaidNights(folder, folder / "store")
        names = [f"i{number}" for number in range(5)]
        outcomes = {name: (name, auto("梨", 0.75) if name == "i0" else review("瓶", 0.25)) for name in names}
        nights.tagged(dict.fromkeys(names, "1"), outcomes)
        given = nights.settings(release="live")
        publish.publish(nights.store, given)
        for name in names[:3]:
            nights.answer("correct", name, "shop:juice")
        return Ran(nights, dag_chain.run(given, [("publish_tags", {}), ("publish_tags", {})], folder))


def test_answers_go_live_and_the_training_hears_of_them_once(ran: Ran) -> None:
    assert ran.chain.codes == [0, 0]
    states = ran.nights.states()
    assert states == {
        "i0": ("live", "shop:juice"),
        "i1": ("live", "shop:juice"),
        "i2": ("live", "shop:juice"),
        "i3": ("pending", None),
        "i4": ("pending", None),
    }
    published = [event for event in ran.chain.events if event["event"] == "published"]
    assert [(event["answers"], event["answered"]) for event in published] == [(3, 3)]
    assert ran.nights.store.read_json(publish.TRAININGS) == {"answers": 0, "announced": 3, "sequence": 1}


def test_a_run_without_anything_new_says_so_in_chinese(ran: Ran) -> None:
    said = ran.chain.said()
    assert "没有新的人工答案，无需发布" in said
    assert "还没有积累到 3 条新的人工答案，或已经通知过" in said
