"""Labels that people missed: accepted, merged or refused, once, with the pictures they were made for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from environment import clean
from review_shop import ADMIN, ReviewShop

from wwts_ops import corrections, database, events, taxonomy, taxonomy_changes
from wwts_ops.corrections import Answer
from wwts_ops.database import label_proposals, review_items
from wwts_ops.errors import WwtsError
from wwts_ops.review import proposals
from wwts_ops.review.proposals import Decided, Given
from wwts_ops.settings import Settings
from wwts_ops.taxonomy_changes import Merge

LI, ZHANG = "小李", "小张"
_NUMBERS = count(1)


class Wishes:
    """A shop in which people miss labels."""

    def __init__(self, shop: ReviewShop) -> None:
        self.shop = shop
        database.upgrade(shop.settings)

    @property
    def settings(self) -> Settings:
        return self.shop.settings

    def propose(self, name: str, contents: list[str], path: str = "食品 > 生鲜 > 果蔬", **more: Any) -> str:
        """Answers `wrong_unknown` for ``contents``, the first of which it was said of; the proposal's id."""
        number = next(_NUMBERS)
        first, *others = (f"answer-{number}", *(f"answer-{number}:{content[:16]}" for content in contents[1:]))
        for answer_id, content in zip([first, *others], contents, strict=True):
            self.say(answer_id, content)
        row = {
            "proposal_id": f"p-{number}",
            "label_zh": name,
            "label_en": "",
            "synonyms_zh": "",
            "category_path": path,
            "content_sha256": contents[0],
            "answer_id": first,
            "person": LI,
            "proposed_at": self.settings.now(),
            "state": "open",
        }
        with database.transaction(self.settings) as connection:
            connection.execute(sa.insert(label_proposals).values(**{**row, **more}))
        return f"p-{number}"

    def say(self, answer_id: str, content: str, by: str = LI, **more: Any) -> None:
        given: dict[str, Any] = {"kind": "wrong_unknown", "labels_before": ("shop:f1",), **more}
        one = Answer(
            answer_id=answer_id,
            answered_at=self.settings.now(),
            answered_by=by,
            content_sha256=content,
            image_id="img-1",
            source="page",
            shown_because="audit",
            sampling_probability=0.02,
            model_version="7",
            confidence=0.25,
            **given,
        )
        corrections.record(self.settings, [one])

    def decide(self, proposal_id: str, decision: str, admin: str = ADMIN, **given: Any) -> Decided:
        return proposals.decide(self.settings, self.shop.store, admin, proposal_id, decision, **Given(**given))

    def waiting(self) -> list[str]:
        return [one.proposal_id for one in proposals.open_(self.settings)]

    def in_force(self) -> dict[str, dict[str, Any]]:
        rows = corrections.in_force(corrections.frozen(self.settings)).to_pylist()
        return {row["content_sha256"]: row for row in rows}

    def contents(self, wanted: int) -> list[str]:
        """Contents that nobody has spoken of."""
        with database.reading(self.settings) as connection:
            asked = sa.select(review_items.c.content_sha256).where(review_items.c.state == "open")
            found = connection.execute(asked.order_by(review_items.c.content_sha256).limit(wanted)).scalars().all()
        assert len(found) == wanted
        return list(found)

    def state(self, content: str) -> str:
        """Of an item."""
        with database.reading(self.settings) as connection:
            asked = sa.select(review_items.c.state).where(review_items.c.content_sha256 == content)
            return str(connection.execute(asked).scalar_one())

    def labels(self) -> dict[str, taxonomy.Label]:
        found = taxonomy.current(self.shop.store)
        assert found is not None
        return found.by_id


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def wishes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wishes]:
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        more = {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgresql").schema()}
        yield Wishes(ReviewShop.made(tmp_path_factory.mktemp("proposals"), items=60, **more))


def test_an_accepted_label_is_in_the_taxonomy_and_on_the_pictures(wishes: Wishes) -> None:
    contents = wishes.contents(3)
    proposal = wishes.propose("阳光玫瑰🍇", contents, synonyms_zh="晴王|香印")
    assert wishes.waiting() == [proposal]
    decided = wishes.decide(proposal, "accept")
    assert (decided.state, decided.answers) == ("accepted", 3)
    label = wishes.labels()[decided.label_id or ""]
    assert (label.label_zh, label.synonyms_zh, label.category_path) == ("阳光玫瑰🍇", "晴王|香印", "食品 > 生鲜 > 果蔬")
    for content in contents:
        row = wishes.in_force()[content]
        assert (row["kind"], row["labels"], row["answered_by"]) == ("correct", [decided.label_id], LI)
        shown = (row["shown_because"], row["sampling_probability"], row["model_version"], row["confidence"])
        assert shown == ("audit", 0.02, "7", 0.25)
        assert row["source"] == "proposal"
    assert wishes.waiting() == []


def test_it_is_written_down_who_decided(wishes: Wishes) -> None:
    proposal = wishes.propose("羊角蜜", wishes.contents(1))
    decided = wishes.decide(proposal, "accept")
    with database.reading(wishes.settings) as connection:
        row = connection.execute(sa.select(label_proposals).where(label_proposals.c.proposal_id == proposal)).one()
    assert (row.state, row.label_id, row.decided_by) == ("accepted", decided.label_id, ADMIN)
    assert row.decided_at is not None
    event = next(one for one in events.recent(wishes.settings, 5) if one.action == events.DECIDED_PROPOSAL)
    assert (event.person, event.subject) == (ADMIN, proposal)
    told = {"decision": "accepted", "label_zh": "羊角蜜", "label_id": decided.label_id, "person": LI, "answers": 1}
    assert event.detail == told


def test_name_and_place_may_be_bettered(wishes: Wishes) -> None:
    proposal = wishes.propose("大苹果", wishes.contents(1), path="")
    decided = wishes.decide(proposal, "accept", label_zh="蛇果", category_path="食品 > 生鲜")
    label = wishes.labels()[decided.label_id or ""]
    assert (label.label_zh, label.category_path) == ("蛇果", "食品 > 生鲜")


def test_merged_means_that_the_label_was_there(wishes: Wishes) -> None:
    content = wishes.contents(1)
    proposal = wishes.propose("红富士", content)
    before = wishes.labels()
    assert wishes.decide(proposal, "merge", label_id="shop:f0") == Decided(proposal, "merged", "shop:f0", 1)
    assert wishes.in_force()[content[0]]["labels"] == ["shop:f0"]
    assert wishes.labels() == before


def test_merged_with_a_label_that_was_merged_itself(wishes: Wishes) -> None:
    contents = wishes.contents(2)
    first, second = wishes.propose("银杏果", contents[:1]), wishes.propose("白果", contents[1:])
    wishes.decide(first, "accept")
    (label,) = wishes.in_force()[contents[0]]["labels"]
    taxonomy_changes.apply(wishes.shop.store, wishes.settings, ADMIN, None, [Merge(label_ids=(label,), into="shop:f0")])
    assert not wishes.labels()[label].enabled
    assert wishes.decide(second, "merge", label_id=label) == Decided(second, "merged", "shop:f0", 1)
    assert wishes.in_force()[contents[1]]["labels"] == ["shop:f0"]


@pytest.mark.parametrize("label_id", [None, "shop:nothing"])
def test_merging_with_no_label_is_refused(wishes: Wishes, label_id: str | None) -> None:
    proposal = wishes.propose("某某", wishes.contents(1))
    with pytest.raises(WwtsError, match="请选择一个正在使用的标签"):
        wishes.decide(proposal, "merge", **({} if label_id is None else {"label_id": label_id}))
    assert proposal in wishes.waiting()
    wishes.decide(proposal, "refuse")


def test_a_refused_one_leaves_the_picture_to_whoever_knows_it(wishes: Wishes) -> None:
    refused, merged = wishes.contents(2)
    proposals = {content: wishes.propose("看不清", [content]) for content in (refused, merged)}
    assert [wishes.state(content) for content in proposals] == ["done", "done"]
    proposal = proposals[refused]
    assert wishes.decide(proposal, "refuse") == Decided(proposal, "refused", None, 0)
    assert wishes.in_force()[refused]["kind"] == "wrong_unknown"
    wishes.decide(proposals[merged], "merge", label_id="shop:f2")
    assert [wishes.state(content) for content in proposals] == ["later", "done"]


def test_what_somebody_has_corrected_since_stays(wishes: Wishes) -> None:
    contents = wishes.contents(2)
    proposal = wishes.propose("水蜜桃", contents)
    wishes.say(f"later-{proposal}", contents[1], by=ZHANG, kind="correct", labels=("shop:f2",))
    assert wishes.decide(proposal, "accept").answers == 1
    assert wishes.in_force()[contents[1]]["labels"] == ["shop:f2"]


def test_an_answer_whose_id_only_begins_alike_is_another(wishes: Wishes) -> None:
    mine, other = wishes.contents(2)
    proposal = wishes.propose("桑葚", [mine], answer_id="answer_x")
    wishes.say("answer_x", mine)
    wishes.say("answerzx:other", other)  # _ stands for any character in a LIKE
    assert wishes.decide(proposal, "accept").answers == 1
    assert wishes.in_force()[other]["kind"] == "wrong_unknown"


def test_a_duplicate_name_is_refused_and_the_proposal_waits(wishes: Wishes) -> None:
    proposal = wishes.propose("香蕉🍌", wishes.contents(1))
    with pytest.raises(WwtsError):
        wishes.decide(proposal, "accept")
    assert proposal in wishes.waiting()
    assert wishes.decide(proposal, "merge", label_id="shop:f1").answers == 1


def test_nobody_decides_twice(wishes: Wishes) -> None:
    proposal = wishes.propose("火龙果", wishes.contents(1))
    wishes.decide(proposal, "refuse")
    with pytest.raises(WwtsError, match=f"已由 {ADMIN} 处理（不采纳）"):
        wishes.decide(proposal, "accept", admin="别人")
    assert "火龙果" not in {label.label_zh for label in wishes.labels().values()}
    with pytest.raises(WwtsError, match="没有这条"):
        wishes.decide("p-none", "accept")
    with pytest.raises(WwtsError, match="没有“maybe”这种处理方式"):
        wishes.decide(proposal, "maybe")


def test_two_at_once_make_one_label_and_one_decision(wishes: Wishes) -> None:
    content = wishes.contents(1)
    proposal = wishes.propose("释迦果", content)

    def accept(admin: str) -> str:
        try:
            return wishes.decide(proposal, "accept", admin=admin).state
        except WwtsError:
            return "late"

    with ThreadPoolExecutor(2) as pool:
        states = sorted(pool.map(accept, ["主管", "店长"]))
    assert states == ["accepted", "late"]
    assert [label.label_zh for label in wishes.labels().values()].count("释迦果") == 1
    rows = corrections.frozen(wishes.settings).to_pylist()
    assert [row["kind"] for row in rows if row["content_sha256"] == content[0]] == ["wrong_unknown", "correct"]


def test_a_decision_that_was_cut_off_can_be_made_again(wishes: Wishes) -> None:
    """The label was added, then the process was killed: nothing was recorded."""
    content = wishes.contents(1)
    proposal = wishes.propose("莲雾", content)
    before = wishes.decide(proposal, "accept")
    with database.transaction(wishes.settings) as connection:
        this = label_proposals.c.proposal_id == proposal
        connection.execute(sa.update(label_proposals).where(this).values(state="open", decided_by=None))
    again = wishes.decide(proposal, "accept")
    assert again.label_id == before.label_id
    assert [label.label_zh for label in wishes.labels().values()].count("莲雾") == 1
