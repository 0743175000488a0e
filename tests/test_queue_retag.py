"""A retag asks again: what the new head is not sure of waits with its tags, and what it is sure of waits no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from overlaid_nights import OverlaidNights, sha
from written_nights import Outcome, auto, forced, review

from wwts_ops import database, publish, published, retagging, retags
from wwts_ops.database import review_items, review_loaded, review_opinions
from wwts_ops.embeddings import EmbeddingWriter, part_key
from wwts_ops.planning import Plan
from wwts_ops.records import RETAGGED, REVIEW_ITEMS
from wwts_ops.retags import Retag
from wwts_ops.review import items, queue
from wwts_ops.settings import Settings

#: What a night says of each content.
FIRST = {"sure": auto("梨"), "unsure": review("梨"), "still": review("梨"), "gun": forced("枪")}
#: What the head after it says.
SECOND: dict[str, Outcome] = {
    "sure": auto("苹果", 0.75),
    "unsure": auto("苹果"),
    "still": review("苹果", 0.5),
    "gun": forced("步枪", 0.75),
}


@pytest.fixture
def nights(clean_environment: None, tmp_path: Path) -> OverlaidNights:
    return OverlaidNights(tmp_path, tmp_path / "store")


def settings(nights: OverlaidNights, **more: Any) -> Settings:
    return nights.settings(release="live", second_looks=0, **more)


def night(nights: OverlaidNights, contents: Mapping[str, Outcome], *, audit_rate: float = 0, etag: str = "1") -> Plan:
    """One image a content, all in one night, published and routed."""
    catalog = {f"img-{name}": etag for name in contents}
    plan = nights.tagged(catalog, {f"img-{name}": (name, outcome) for name, outcome in contents.items()})
    publish.publish(nights.store, settings(nights))
    queue.route(nights.store, settings(nights, audit_rate=audit_rate), plan)
    return plan


def retag(nights: OverlaidNights, contents: Mapping[str, Outcome], sequence: int = 1, version: str = "77") -> Retag:
    """A retag that is published and routed, through the stage of the DAG."""
    made = nights.retag(sequence, [contents], version=version)
    publish.publish(nights.store, settings(nights))
    waiting = retagging.route(settings(nights))
    assert waiting == nights.store.read_table(queue_of(nights, made)).num_rows
    return made


def queue_of(nights: OverlaidNights, made: Retag) -> str:
    return f"review/date={settings(nights).today()}/part-{made.key}.parquet"


def item(nights: OverlaidNights, content: str) -> items.Item | None:
    return items.one(settings(nights), sha(content))


def told(nights: OverlaidNights, *contents: str) -> dict[str, tuple[Any, ...]]:
    """State, why it is shown, label, version and run of items."""
    found = {content: item(nights, content) for content in contents}
    return {
        content: (one.state, one.shown_because, one.label_zh, one.model_version, one.run_id)
        for content, one in found.items()
        if one is not None
    }


def change(nights: OverlaidNights, content: str, **values: Any) -> None:
    with database.transaction(settings(nights)) as connection:
        connection.execute(sa.update(review_items).where(review_items.c.content_sha256 == sha(content)).values(values))


def test_what_waits_is_what_the_new_head_is_not_sure_of_with_its_tags(nights: OverlaidNights) -> None:
    plan = night(nights, FIRST)
    assert told(nights, *FIRST) == {
        "unsure": ("open", "review", "梨", "1", plan.run_key),
        "still": ("open", "review", "梨", "1", plan.run_key),
        "gun": ("open", "forced_review", "枪", "1", plan.run_key),
    }
    before = item(nights, "still")
    made = retag(nights, SECOND)
    assert told(nights, *FIRST) == {
        "unsure": ("done", "review", "梨", "1", made.key),
        "still": ("open", "review", "苹果", "77", made.key),
        "gun": ("open", "forced_review", "步枪", "77", made.key),
    }
    after = item(nights, "still")
    assert before is not None
    assert after is not None
    assert after.revision == before.revision + 1
    assert after.date == settings(nights).today().isoformat()
    assert (after.image_id, after.sku_id, after.uri) == ("img-still", "sku-img-still", "img-still.jpg")
    assert after.confidence == 0.5
    rows = nights.store.read_table(queue_of(nights, made))
    assert rows.schema.equals(REVIEW_ITEMS)
    assert [row["image_id"] for row in rows.to_pylist()] == ["img-gun", "img-still"]


def test_what_was_sure_and_is_not_any_more_is_asked_for(nights: OverlaidNights) -> None:
    """Its published row keeps the last live tag, and says nothing of the retag's."""
    night(nights, {"sure": auto("梨")})
    made = retag(nights, {"sure": review("苹果")})
    (row,) = published.read(nights.store).to_pylist()
    assert (row["label_zh"], row["decision"], row["state"]) == ("梨", "review", "pending")
    assert told(nights, "sure") == {"sure": ("open", "review", "苹果", "77", made.key)}


def test_a_sample_of_a_night_stays_one_and_a_retag_draws_none(nights: OverlaidNights) -> None:
    plan = night(nights, {"sure": auto("梨"), "shaken": auto("梨")}, audit_rate=1)
    assert told(nights, "sure", "shaken") == dict.fromkeys(
        ("sure", "shaken"), ("open", "audit", "梨", "1", plan.run_key)
    )
    change(nights, "sure", sampling_probability=0.125)
    made = retag(nights, {"sure": auto("苹果"), "shaken": review("苹果")})
    assert told(nights, "sure", "shaken") == {
        "sure": ("open", "audit", "苹果", "77", made.key),
        "shaken": ("open", "review", "苹果", "77", made.key),
    }
    chances = {content: one.sampling_probability for content in ("sure", "shaken") if (one := item(nights, content))}
    assert chances == {"sure": 0.125, "shaken": 1}
    night(nights, {"sure": auto("梨"), "shaken": auto("梨"), "new": auto("梨")})
    retag(nights, {"sure": auto("桃"), "new": auto("桃")}, sequence=2, version="78")
    assert item(nights, "new") is None


def test_what_people_said_is_not_asked_again(nights: OverlaidNights) -> None:
    night(nights, FIRST)
    nights.answer("correct", "still", "t:桃")
    retag(nights, SECOND)
    assert told(nights, "still")["still"][0] == "done"
    assert told(nights, "still")["still"][3] == "1"


def test_what_two_people_are_at_is_not_taken_from_them(nights: OverlaidNights) -> None:
    night(nights, {"unsure": forced("枪"), "still": review("梨")})
    change(nights, "unsure", state="second", needed=2)
    with database.transaction(settings(nights)) as connection:
        said = {"answer_id": "x", "content_sha256": sha("unsure"), "person": "小李", "place": 1, "answer": {}}
        connection.execute(sa.insert(review_opinions).values(**said, said_at=settings(nights).now()))
    retag(nights, SECOND)
    assert told(nights, "unsure")["unsure"][:2] == ("second", "forced_review")


def test_again_it_changes_nothing(nights: OverlaidNights) -> None:
    night(nights, FIRST)
    made = retag(nights, SECOND)
    rows = nights.store.read_table(queue_of(nights, made))
    before = [item(nights, content) for content in FIRST]
    assert retagging.route(settings(nights)) == 2
    assert [item(nights, content) for content in FIRST] == before
    assert nights.store.read_table(queue_of(nights, made)).equals(rows)


def test_a_night_that_is_routed_again_brings_no_old_tag_back(nights: OverlaidNights) -> None:
    plan = night(nights, FIRST)
    retag(nights, SECOND)
    before = [item(nights, content) for content in FIRST]
    assert queue.route(nights.store, settings(nights, audit_rate=1), plan) == 0
    assert [item(nights, content) for content in FIRST] == before


def test_a_later_night_is_asked_for_by_itself(nights: OverlaidNights) -> None:
    night(nights, FIRST)
    plan = night(nights, {**FIRST, "late": review("梨")})
    made = retag(nights, {**SECOND, "late": auto("苹果")})
    assert told(nights, "late") == {"late": ("open", "review", "梨", "2", plan.run_key)}
    assert told(nights, "still") == {"still": ("open", "review", "苹果", "77", made.key)}


def test_back_to_the_version_before_within_the_day(nights: OverlaidNights) -> None:
    """Whatever the names of retags: what consumers read is what people see, and what a head was sure of waits again."""
    night(nights, FIRST)
    for version, back in (("90", "80"), ("91", "99")):
        retag(nights, SECOND, version=version)
        assert told(nights, "unsure")["unsure"][0] == "done"
        made = retag(nights, FIRST, version=back)
        assert told(nights, *FIRST) == {
            "unsure": ("open", "review", "梨", back, made.key),
            "still": ("open", "review", "梨", back, made.key),
            "gun": ("open", "forced_review", "枪", back, made.key),
        }


def test_a_database_that_was_lost_gets_what_is_in_force(nights: OverlaidNights) -> None:
    night(nights, FIRST)
    retag(nights, {content: review("坏") for content in FIRST}, version="76")
    made = retag(nights, SECOND)
    with database.transaction(settings(nights)) as connection:
        connection.execute(sa.delete(review_items))
        connection.execute(sa.delete(review_loaded))
    items.sync(nights.store, settings(nights))
    assert told(nights, "still", "gun") == {
        "still": ("open", "review", "苹果", "77", made.key),
        "gun": ("open", "forced_review", "步枪", "77", made.key),
    }
    items.sync(nights.store, settings(nights))
    assert told(nights, "still")["still"][4] == made.key


def test_it_is_worth_what_the_plan_says_and_shown_beside_what_looks_alike(nights: OverlaidNights) -> None:
    for number in (1, 2):  # of two plans the later one counts
        plan = nights.plan({"a": str(number), "b": "1"}, {"a": number})
        nights.write(plan, {"a": auto("梨"), "b": auto("梨")})
    publish.publish(nights.store, settings(nights))
    contents = {row["image_id"]: row["content_sha256"] for row in published.read(nights.store).to_pylist()}
    backbone = "e" * 64
    with (
        nights.store.writing(part_key(backbone, "2026-03-01", "x", 0)) as path,
        EmbeddingWriter(path, backbone, 4) as writer,
    ):
        for number, content in enumerate(contents.values()):
            writer.add(content, np.array([1, 0.1 * number, 0, 0], np.float16))
    made = nights.retag(2, [{}])
    rows = [
        {"content_sha256": content, "tags": [], "decision": "review", "confidence": 0.5}
        for content in contents.values()
    ]
    nights.store.write_table(retags.part_key(made.key, 0), pa.Table.from_pylist(rows, schema=RETAGGED))
    publish.publish(nights.store, settings(nights))
    assert retagging.route(settings(nights)) == 2
    found = {name: items.one(settings(nights), content) for name, content in contents.items()}
    first, second = found["a"], found["b"]
    assert first is not None
    assert second is not None
    assert (first.priority, second.priority) == (2, None)
    assert first.near_group == second.near_group is not None
    assert first.near_group.startswith(made.key)
    assert (first.value, second.value) == (0.5 * 1.5 * 4, 0.5 * 1.5)


def test_without_a_retag_in_force_there_is_nothing_to_route(nights: OverlaidNights) -> None:
    assert retagging.route(settings(nights)) is None
    night(nights, FIRST)
    assert retagging.route(settings(nights)) is None
    assert nights.store.list("review") == [key for key in nights.store.list("review") if "part-2026" in key]
