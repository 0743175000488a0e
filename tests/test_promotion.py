"""Promotion on a real MLflow server, with SQLite and PostgreSQL: killed, raced, refused, taken back, and audited."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import httpx
import psutil
import pytest
from database_server import DatabaseServer
from forkserver import CONTEXT
from move_shop import Shop, ended, mlflow_server
from night_run import wwts

from wwts_ops import promotion, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.promotion import Override

pytestmark = pytest.mark.slow

Make = Callable[[], Shop]


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow without a server, which answers faster."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('库 🗄') / 'wwts.db'}"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, sqlite: str) -> str:
    """One for all tests: models are told apart by their names."""
    return sqlite if request.param == "sqlite" else str(request.getfixturevalue("postgresql").database())


@pytest.fixture
def either(clean_environment: None, tracking_uri: str, database_url: str, tmp_path: Path) -> Shop:
    """A shop on SQLite, then on PostgreSQL."""
    return Shop.made(tracking_uri, database_url, tmp_path)


@pytest.fixture
def on_sqlite(clean_environment: None, tracking_uri: str, sqlite: str, tmp_path: Path) -> Make:
    return lambda: Shop.made(tracking_uri, sqlite, tmp_path)


@pytest.fixture
def shop(clean_environment: None, tracking_uri: str, sqlite: str, tmp_path: Path) -> Shop:
    return Shop.made(tracking_uri, sqlite, tmp_path)


PROMOTED = [
    ("champion", None, "1", "adopt"),
    ("previous", None, "1", "promote"),
    ("champion", "1", "2", "promote"),
]


def moved(shop: Shop) -> list[tuple[str, str | None, str | None, str]]:
    return [(move.alias, move.from_version, move.to_version, move.action) for move in shop.history()]


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(WwtsError) as caught:
        call(*arguments)
    assert not isinstance(caught.value, UnavailableError)
    return str(caught.value)


class TestPromote:
    def test_a_nominated_version_becomes_champion(self, either: Shop) -> None:
        move = promotion.nominate(either.settings, either.judge("2"), "evaluate_model", "e1")
        assert move is not None
        assert (move.alias, move.from_version, move.to_version, move.action) == ("challenger", None, "2", "nominate")
        proposal = promotion.propose(either.settings, None, None)
        assert (proposal.version, proposal.champion_version) == ("2", "1")
        done = promotion.promote(either.settings, proposal, "anna", "carol", "p1")
        assert either.aliases() == {"champion": "2", "previous": "1"}
        nominated = ("challenger", None, "2", "nominate")
        assert moved(either) == [PROMOTED[0], nominated, *PROMOTED[1:], ("challenger", "2", None, "promote")]
        assert [move.number for move in done] == [3, 4, 5]

    def test_the_evidence_is_kept(self, either: Shop) -> None:
        judged = either.judge("2")
        proposal = promotion.propose(either.settings, "2", None)
        promotion.promote(either.settings, proposal, "anna", "carol", "p1")
        move = next(move for move in either.history() if move.action == "promote" and move.alias == "champion")
        kept = move.evidence
        assert (move.actor, kept["approved_by"], kept["run"], kept["override"]) == ("anna", "carol", "p1", None)
        assert kept["verdict"]["run_id"] == judged.run_id
        assert kept["verdict"]["badcases"] == judged.badcases
        assert kept["verdict"]["badcases_sha256"] == judged.badcases_sha256
        assert kept["verdict"]["rules_sha256"] == judged.rules_sha256
        assert kept["verdict"]["passed"] is True
        (tag,) = [json.loads(value) for key, value in either.tags("2").items() if key == f"wwts.move.{move.number:06d}"]
        assert tag["evidence"] == kept

    def test_a_proposal_survives_json(self, shop: Shop) -> None:
        """Airflow passes it from task to task."""
        proposal = shop.propose("2")
        assert promotion.Proposal(**json.loads(json.dumps(vars(proposal)))) == proposal

    def test_the_same_run_again_does_nothing(self, either: Shop) -> None:
        proposal = either.propose("2")
        first = promotion.promote(either.settings, proposal, "anna", None, "p1")
        assert promotion.promote(either.settings, proposal, "anna", None, "p1") == first
        assert moved(either) == PROMOTED

    def test_a_challenger_that_is_another_version_stays(self, shop: Shop) -> None:
        promotion.nominate(shop.settings, shop.judge("3"), "evaluate_model", "e1")
        shop.promote("2")
        assert shop.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}

    def test_what_somebody_moved_in_mlflow_is_adopted(self, either: Shop) -> None:
        either.promote("2")
        either.set("champion", "3")
        either.set("previous", None)
        either.set("challenger", "2")
        promotion.rollback(either.settings, "1", "anna", "", "r1")
        by_hand = [move for move in either.history()[3:] if move.action == "adopt"]
        assert {(move.alias, move.from_version, move.to_version) for move in by_hand} == {
            ("champion", "2", "3"),
            ("previous", "1", None),
            ("challenger", None, "2"),
        }
        assert {move.actor for move in by_hand} == {"unknown (moved in MLflow)"}

    def test_a_first_champion_that_is_the_embedded_default_was_set_by_us(self, shop: Shop) -> None:
        shop.tag("1", "wwts.embedded", "true")
        shop.promote("2")
        assert shop.history()[0].actor == "wwts"

    def test_a_lost_database_is_filled_again_from_mlflow(self, either: Shop, tmp_path: Path) -> None:
        either.promote("2")
        before = either.history()
        moved_house = Shop(either.settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'new.db'}"}))
        assert promotion.history(moved_house.settings) == []
        promotion.rollback(moved_house.settings, None, "anna", "", "r1")
        assert moved_house.history()[: len(before)] == before
        assert moved_house.champions() == [("adopt", "1"), ("promote", "2"), ("rollback", "1")]

    def test_a_move_of_a_version_deleted_meanwhile_is_kept_on_the_model(self, shop: Shop) -> None:
        promotion.nominate(shop.settings, shop.judge("3"), "evaluate_model", "e1")
        # MLflow removes the alias with the version, and the version's tags.
        shop.delete("3")
        shop.promote("2")
        adopted = [move for move in promotion.history_from_tags(shop.settings) if move.alias == "challenger"]
        assert [(move.from_version, move.to_version, move.action) for move in adopted] == [("3", None, "adopt")]


class TestRefused:
    def test_without_a_verdict_not_even_with_an_override(self, shop: Shop) -> None:
        for override in (None, Override("bob", "urgent")):
            assert "was never judged" in refusal(promotion.propose, shop.settings, "2", override)

    def test_what_failed_with_its_reasons(self, shop: Shop) -> None:
        shop.fail("2")
        told = refusal(promotion.propose, shop.settings, "2", None)
        assert "丢了一张不能丢的图" in told
        assert told.endswith("未通过的门禁规则：不许退步")

    def test_a_training_that_asked_for_its_promotion_beforehand_leaves_it_out(self, shop: Shop) -> None:
        """The gate's no is a result, told in a sentence; who asks for the version by its number is refused."""
        failed = shop.fail("2")
        told = promotion.hindrance(shop.settings, "2")
        assert told is not None
        assert "版本 2 未通过门禁（不许退步）" in told
        assert "版本 2 不能上线" in refusal(promotion.propose, shop.settings, failed.model_version, None)
        shop.promote("3")
        assert "已经是当前启用" in str(promotion.hindrance(shop.settings, "3"))
        shop.judge("2", champion="3")
        assert promotion.hindrance(shop.settings, "2") is None

    def test_a_version_that_nobody_judged_is_no_result(self, shop: Shop) -> None:
        assert "never judged" in refusal(promotion.hindrance, shop.settings, "2")

    @pytest.mark.parametrize("override", [None, Override("bob", "urgent")])
    def test_a_dry_run_permits_nothing(self, shop: Shop, override: Override | None) -> None:
        shop.judge("2", mode="dry_run")
        assert "来自演练" in refusal(promotion.propose, shop.settings, "2", override)

    @pytest.mark.parametrize("override", [None, Override("bob", "urgent")])
    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"model_sha256": "f" * 64}, "不是现在登记的这个模型"),
            ({"model_version": "3"}, "不是现在登记的这个模型"),
            ({"champion_version": "3"}, "对比的是版本 3，而现在启用的是版本 1"),
            ({"champion_sha256": "f" * 64}, "SHA-256 后来变了"),
        ],
    )
    def test_a_verdict_about_something_else(
        self, shop: Shop, changes: dict[str, str], told: str, override: Override | None
    ) -> None:
        shop.judge("2", **changes)
        assert told in refusal(promotion.propose, shop.settings, "2", override)

    def test_a_verdict_that_cannot_be_read(self, shop: Shop) -> None:
        shop.tag("2", "gate.verdict", '{"passed": true}')
        assert "no verdict that can be read" in refusal(promotion.propose, shop.settings, "2", None)

    @pytest.mark.parametrize(("by", "reason"), [("", "urgent"), ("bob", " "), ("", "")])
    def test_an_override_without_name_or_reason(self, shop: Shop, by: str, reason: str) -> None:
        shop.fail("2")
        assert "强制上线要写明" in refusal(promotion.propose, shop.settings, "2", Override(by, reason))

    @pytest.mark.parametrize("status", ["PENDING", "FAILED"])
    def test_a_half_uploaded_version(self, shop: Shop, status: str) -> None:
        version = shop.add(status)
        shop.judge(version)
        assert "not uploaded to its end" in refusal(promotion.propose, shop.settings, version, None)

    def test_a_version_that_wwts_did_not_register(self, shop: Shop) -> None:
        version = shop.add(tags={})
        shop.judge(version)
        assert "was not registered by wwts" in refusal(promotion.propose, shop.settings, version, None)

    @pytest.mark.parametrize(("version", "told"), [("1", "is champion already"), ("9", "has no version 9")])
    def test_a_version_that_is_champion_or_not_there(self, shop: Shop, version: str, told: str) -> None:
        assert told in refusal(promotion.propose, shop.settings, version, None)

    def test_nobody_is_challenger(self, shop: Shop) -> None:
        assert "No version" in refusal(promotion.propose, shop.settings, None, None)

    def test_what_changed_while_a_person_thought(self, shop: Shop) -> None:
        late, again, failed = shop.propose("2"), shop.propose("3"), shop.propose("3")
        assert "judged again" in refusal(promotion.promote, shop.settings, again, "anna", "carol", "p1")
        shop.fail("3")
        assert "不许退步" in refusal(promotion.promote, shop.settings, failed, "anna", "carol", "p2")
        shop.promote("3")
        told = refusal(promotion.promote, shop.settings, late, "anna", "carol", "p3")
        assert "现在启用的是版本 3" in told
        assert shop.aliases() == {"champion": "3", "previous": "1"}
        assert shop.champions() == [("adopt", "1"), ("promote", "3")]

    def test_a_nomination_of_what_failed_or_only_rehearsed(self, shop: Shop) -> None:
        for verdict in (shop.fail("2"), shop.judge("2", mode="dry_run"), shop.judge("2", model_sha256="f" * 64)):
            refusal(promotion.nominate, shop.settings, verdict, "evaluate_model", "e1")
        assert shop.aliases() == {"champion": "1"}

    def test_a_second_nomination_and_one_of_the_champion_move_nothing(self, shop: Shop) -> None:
        assert promotion.nominate(shop.settings, shop.judge("2"), "evaluate_model", "e1")
        assert promotion.nominate(shop.settings, shop.judge("2"), "evaluate_model", "e2") is None
        assert promotion.nominate(shop.settings, shop.judge("1"), "evaluate_model", "e3") is None
        assert shop.aliases() == {"champion": "1", "challenger": "2"}


class TestOverride:
    def test_it_is_recorded_on_the_version_and_in_the_audit(self, shop: Shop) -> None:
        shop.fail("2")
        proposal = promotion.propose(shop.settings, "2", Override("老王", "演练 🚒 | 下午回退"))
        promotion.promote(shop.settings, proposal, "anna", None, "p1")
        override = shop.history()[-1].evidence["override"]
        assert (override["by"], override["reason"]) == ("老王", "演练 🚒 | 下午回退")
        tags = shop.tags("2")
        assert {name: tags[f"gate.override.{name}"] for name in ("by", "reason", "at")} == override
        assert "老王" in promotion.in_short(shop.history()[-1])

    def test_it_is_not_used_for_what_passed(self, shop: Shop) -> None:
        shop.judge("2")
        proposal = promotion.propose(shop.settings, "2", Override("bob", "to be sure"))
        assert (proposal.override_by, proposal.override_reason) == (None, None)
        promotion.promote(shop.settings, proposal, "anna", None, "p1")
        assert not [key for key in shop.tags("2") if key.startswith("gate.override")]


class TestSummary:
    def test_a_person_sees_what_is_decided(self, shop: Shop) -> None:
        shop.fail("2")
        proposal = promotion.propose(shop.settings, "2", Override("bob", "[x](http://evil) <b>"))
        told, rules = proposal.summary, proposal.rules
        for text in ("当前启用**：版本 1", "候选**：版本 2", "b000001-0123456789ab", "bob", "丢了一张不能丢的图"):
            assert text in told
        rows = [line for line in rules.splitlines() if line.startswith("| ")]
        assert [row.split(" | ")[1] for row in rows[2:]] == ["不许退步", "P95 \\| 之比", "首位准确率"]
        assert [row[2:4].strip("\u2060") for row in rows[2:]] == ["❌", "⚠\ufe0f", "✅"]
        assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
        assert "理由：\\[x\\](http://\u200bevil) \\<b\\>" in told

    def test_without_pages_of_mlflow_the_evaluation_is_named(self, shop: Shop) -> None:
        assert "MLflow 运行 `rrrr" in shop.propose("2").summary
        assert "](" not in shop.propose("2").summary

    def test_it_links_to_the_version_and_the_evaluation(self, shop: Shop) -> None:
        with tracking.connected(shop.settings) as client:
            run = client.create_run(tracking.experiment(client, shop.settings, "moves")).info
        shop.judge("2", run_id=run.run_id)
        found = shop.settings.model_copy(update={"mlflow_public_url": "https://mlflow.shop.example/"})
        told = promotion.propose(found, "2", None).summary
        assert f"(https://mlflow.shop.example/#/models/{shop.name}/versions/2)" in told
        assert f"(https://mlflow.shop.example/#/experiments/{run.experiment_id}/runs/{run.run_id})" in told

    def test_it_says_that_a_version_was_rolled_back(self, shop: Shop) -> None:
        assert "被回退" not in shop.propose("2").summary
        shop.promote("2")
        promotion.rollback(shop.settings, None, "anna", "", "r1")
        assert "被回退" in shop.propose("2").summary


class TestRollback:
    def test_twice_goes_back_twice_and_never_forward(self, either: Shop) -> None:
        either.promote("2")
        either.promote("3")
        promotion.rollback(either.settings, None, "anna", "too many wrong tags", "r1")
        assert either.aliases() == {"champion": "2", "previous": "1"}
        assert either.history()[-2].evidence["reason"] == "too many wrong tags"
        promotion.rollback(either.settings, None, "anna", "", "r2")
        assert either.aliases() == {"champion": "1"}
        told = refusal(promotion.rollback, either.settings, None, "anna", "", "r3")
        assert "nothing to go back to" in told
        assert either.aliases() == {"champion": "1"}

    def test_to_a_version_and_forward_again(self, shop: Shop) -> None:
        shop.promote("2")
        shop.promote("3")
        promotion.rollback(shop.settings, "1", "anna", "", "r1")
        assert shop.aliases() == {"champion": "1"}
        promotion.rollback(shop.settings, "3", "anna", "", "r2")
        assert shop.aliases() == {"champion": "3", "previous": "1"}
        shop.promote("2", "again")
        assert shop.aliases() == {"champion": "2", "previous": "3"}

    def test_a_version_promoted_again_is_not_gone_back_to(self, shop: Shop) -> None:
        shop.promote("2")
        shop.promote("1", "back by the gate")
        promotion.rollback(shop.settings, None, "anna", "", "r1")
        assert shop.aliases() == {"champion": "2"}

    def test_going_back_by_hand_counts_as_going_back(self, shop: Shop) -> None:
        shop.promote("2")
        shop.set("champion", "1")
        shop.promote("3")
        promotion.rollback(shop.settings, None, "anna", "", "r1")
        assert shop.aliases() == {"champion": "1"}

    def test_a_deleted_version_is_skipped(self, shop: Shop) -> None:
        shop.promote("2")
        shop.promote("3")
        shop.delete("1")
        promotion.rollback(shop.settings, None, "anna", "", "r1")
        assert shop.aliases() == {"champion": "2"}
        told = refusal(promotion.rollback, shop.settings, "1", "anna", "", "r2")
        assert "has no version 1" in told

    def test_what_never_was_champion_is_refused(self, shop: Shop) -> None:
        shop.promote("2")
        told = refusal(promotion.rollback, shop.settings, "3", "anna", "", "r1")
        assert "never was champion; promote it" in told
        shop.set("previous", "3")
        assert "never was" in refusal(promotion.rollback, shop.settings, None, "anna", "", "r2")
        assert "already" in refusal(promotion.rollback, shop.settings, "2", "anna", "", "r3")

    def test_the_same_run_again_goes_back_once(self, shop: Shop) -> None:
        shop.promote("2")
        shop.promote("3")
        first = promotion.rollback(shop.settings, None, "anna", "", "r1")
        assert promotion.rollback(shop.settings, None, "anna", "", "r1") == first
        assert shop.aliases()["champion"] == "2"


class TestKilled:
    """A promotion has some thirty writes; it is killed after them, one by one, and ends the same."""

    @pytest.fixture
    def on_postgresql(
        self, clean_environment: None, tracking_uri: str, postgresql: DatabaseServer, tmp_path: Path
    ) -> Make:
        url = postgresql.database()
        return lambda: Shop.made(tracking_uri, url, tmp_path)

    @staticmethod
    def killed(make: Make, each: int) -> Iterator[tuple[Shop, promotion.Proposal, promotion.Proposal]]:
        for at in range(each, 100, each):
            shop = make()
            proposal, other = shop.propose("2"), shop.propose("3")
            code = ended(shop.process("p1", proposal, at=at))
            if code == 0:
                assert at > 15  # it was not over before it began
                return
            assert code == -signal.SIGKILL
            yield shop, proposal, other

    def test_anywhere_and_started_again_it_ends_the_same(self, on_sqlite: Make) -> None:
        for shop, proposal, _ in self.killed(on_sqlite, each=1):
            promotion.promote(shop.settings, proposal, "actor of p1", "carol", "p1")
            assert shop.aliases() == {"champion": "2", "previous": "1"}
            assert moved(shop) == PROMOTED
            assert shop.state() == "idle"

    def test_anywhere_and_another_comes_late_it_is_finished_first(self, on_postgresql: Make) -> None:
        interrupted = 0
        for shop, _, other in self.killed(on_postgresql, each=3):
            if shop.state() != "moving":
                continue
            interrupted += 1
            told = refusal(promotion.promote, shop.settings, other, "bob", None, "p2")
            assert "actor of p1 (promote, run p1) is moving" in told
            shop.expire()
            told = refusal(promotion.promote, shop.settings, other, "bob", None, "p2")
            assert "现在启用的是版本 2" in told
            assert shop.aliases() == {"champion": "2", "previous": "1"}
            assert moved(shop) == PROMOTED
            assert shop.state() == "idle"
        assert interrupted > 3


class TestAtOnce:
    def test_two_processes_end_with_one_winner_and_one_clear_refusal(
        self, clean_environment: None, server: str, database_url: str, tmp_path: Path
    ) -> None:
        for number in range(2):
            shop = Shop.made(server, database_url, tmp_path)
            barrier = CONTEXT.Barrier(2)
            answers = {version: tmp_path / f"{number}-{version}.json" for version in ("2", "3")}
            proposals = {version: shop.propose(version) for version in answers}
            both = [
                shop.process(f"to-{version}", proposals[version], barrier=barrier, answer=answer)
                for version, answer in answers.items()
            ]
            assert [ended(process) for process in both] == [0, 0]
            told = {version: json.loads(answer.read_text(encoding="utf-8")) for version, answer in answers.items()}
            (winner,) = [version for version in told if "moved" in told[version]]
            (loser,) = [version for version in told if "refused" in told[version]]
            assert shop.aliases() == {"champion": winner, "previous": "1"}
            assert shop.champions() == [("adopt", "1"), ("promote", winner)]
            busy, late = (
                f"actor of to-{winner} (promote, run to-{winner}) is moving",
                f"现在启用的是版本 {winner}",
            )
            assert busy in told[loser]["refused"] or late in told[loser]["refused"]

    def test_one_that_slept_past_its_lease_writes_nothing_more(self, on_sqlite: Make, tmp_path: Path) -> None:
        """Stopped before it moves anything, it wakes up when all was done and undone by others."""
        for at in range(3, 30):
            shop, answer = on_sqlite(), tmp_path / f"{at}.json"
            proposal, other = shop.propose("2"), shop.propose("3")
            asleep = shop.process("p1", proposal, at=at, signal=signal.SIGSTOP, answer=answer)
            while psutil.Process(asleep.pid).status() != psutil.STATUS_STOPPED:
                assert asleep.is_alive()
            if shop.state() == "moving":
                break
            asleep.kill()
        assert shop.aliases() == {"champion": "1"}
        shop.expire()
        assert "现在启用的是版本 2" in refusal(promotion.promote, shop.settings, other, "bob", None, "p2")
        promotion.rollback(shop.settings, None, "bob", "", "r1")
        os.kill(asleep.pid or 0, signal.SIGCONT)
        assert ended(asleep) == 0
        assert "took over" in json.loads(answer.read_text(encoding="utf-8"))["unavailable"]
        assert shop.aliases() == {"champion": "1"}
        assert shop.champions() == [("adopt", "1"), ("promote", "2"), ("rollback", "1")]

    def test_a_rollback_while_another_moves_is_tried_again_later(self, shop: Shop) -> None:
        shop.promote("2")
        self.interrupted(shop, shop.propose("3"), "previous", "2")
        with pytest.raises(UnavailableError, match="is moving the aliases"):
            promotion.rollback(shop.settings, None, "anna", "", "r1")

    def test_what_somebody_set_in_mlflow_meanwhile_is_left(self, shop: Shop) -> None:
        proposal = shop.propose("2")
        self.interrupted(shop, proposal, "previous", "1")
        shop.set("champion", "3")
        told = refusal(promotion.promote, shop.settings, proposal, "actor of p1", "carol", "p1")
        assert "theirs was left as it is" in told
        assert shop.aliases() == {"champion": "3", "previous": "1"}
        assert moved(shop) == PROMOTED[:2]
        told = refusal(promotion.promote, shop.settings, proposal, "anna", "carol", "p2")
        assert "现在启用的是版本 3" in told
        assert shop.state() == "idle"

    def test_an_interrupted_promotion_whose_verdict_fell_is_taken_back(self, shop: Shop) -> None:
        proposal, other = shop.propose("2"), shop.propose("3")
        self.interrupted(shop, proposal, "previous", "1")
        shop.fail("2")
        shop.expire()
        promotion.promote(shop.settings, other, "bob", None, "p2")
        assert shop.aliases() == {"champion": "3", "previous": "1"}
        assert shop.champions() == [("adopt", "1"), ("promote", "3")]
        told = refusal(promotion.promote, shop.settings, proposal, "actor of p1", "carol", "p1")
        assert "现在启用的是版本 3" in told

    def test_what_was_audited_already_stays_whatever_came_after(self, on_sqlite: Make) -> None:
        """Killed between the audit and its tags; then somebody moved the alias, and the version was judged again."""
        for at in range(10, 60):
            shop = on_sqlite()
            proposal = shop.propose("2")
            assert ended(shop.process("p1", proposal, at=at)) == -signal.SIGKILL
            if promotion.history(shop.settings):
                break
        assert shop.state() == "moving"
        shop.set("champion", "3")
        shop.fail("2")
        promotion.promote(shop.settings, proposal, "actor of p1", "carol", "p1")
        assert moved(shop) == PROMOTED
        assert shop.aliases() == {"champion": "3", "previous": "1"}

    @staticmethod
    def interrupted(shop: Shop, proposal: promotion.Proposal, alias: str, version: str) -> None:
        """Promotes in a process that is killed as soon as ``alias`` names ``version``."""
        before = shop.aliases()
        for at in range(1, 60):
            assert ended(shop.process("p1", proposal, at=at)) == -signal.SIGKILL
            if shop.aliases() != before:
                break
        assert shop.aliases() == before | {alias: version}
        assert shop.state() == "moving"


class _Failing(BaseHTTPRequestHandler):
    """Passes requests on to MLflow until it has passed ``left`` changes of aliases and tags; then it is away."""

    target: ClassVar[str]
    left: ClassVar[int]

    def do_GET(self) -> None:
        changes = self.command != "GET" and ("alias" in self.path or "set-tag" in self.path)
        if type(self).left <= 0 and (changes or self.left < 0):
            type(self).left = -1
            self.send_error(503)
            return
        type(self).left -= int(changes)
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = {name: self.headers[name] for name in ("Content-Type",) if name in self.headers}
        with httpx.Client(trust_env=False, timeout=60) as client:
            answer = client.request(self.command, self.target + self.path, content=data, headers=kept)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 (the base class's names)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def failing(target: str, after: int) -> Iterator[str]:
    handler = type("Handler", (_Failing,), {"target": target, "left": after})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class TestAway:
    #: Changes that MLflow takes: before the first, between `previous` and `champion`, among the tags.
    AFTER = (0, 1, 3)

    def test_mlflow_goes_away_at_any_write_and_a_retry_finishes(
        self, clean_environment: None, server: str, sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for after in self.AFTER:
            shop = Shop.made(server, sqlite, tmp_path)
            proposal = shop.propose("2")
            with failing(server, after) as address:
                behind = shop.settings.model_copy(update={"mlflow_tracking_uri": address})
                with pytest.raises(UnavailableError, match="does not answer"):
                    promotion.promote(behind, proposal, "anna", None, "p1")
            promotion.promote(shop.settings, proposal, "anna", None, "p1")
            assert shop.aliases() == {"champion": "2", "previous": "1"}
            assert moved(shop) == PROMOTED
            assert shop.state() == "idle"

    def test_a_database_that_is_away_moves_nothing(self, shop: Shop) -> None:
        proposal = shop.propose("2")
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))  # taken, but nobody listens
            url = f"postgresql+psycopg://anna:s3cret@127.0.0.1:{held.getsockname()[1]}/wwts"
            away = shop.settings.model_copy(update={"database_url": url})
            for call in (
                lambda: promotion.promote(away, proposal, "anna", None, "p1"),
                lambda: promotion.rollback(away, None, "anna", "", "r1"),
                lambda: promotion.history(away),
            ):
                with pytest.raises(UnavailableError, match=r"127\.0\.0\.1.* does not answer") as caught:
                    call()
                assert "s3cret" not in str(caught.value)
        assert shop.aliases() == {"champion": "1"}


def test_the_command_shows_the_history_newest_first(shop: Shop) -> None:
    assert command(shop) == f"No alias of {shop.name} was moved yet.\n"
    shop.fail("2")
    proposal = promotion.propose(shop.settings, "2", Override("老王", "[bold]演练[/bold]"))
    promotion.promote(shop.settings, proposal, "anna", "carol", "p1")
    lines = [line for line in command(shop).splitlines() if " → " in line][1:]
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    for text in ("champion", "1 → 2", "promote", "anna", "老王: [bold]演练[/bold]", "approved by carol", "run p1"):
        assert text in lines[0]
    shop_time = shop.history()[-1].moved_at.astimezone(ZoneInfo("Asia/Shanghai"))
    assert f"{shop_time:%Y-%m-%d %H:%M}" in lines[0]
    assert command(shop, "--from-mlflow") == command(shop)


def command(shop: Shop, *arguments: str) -> str:
    given = shop.settings
    done = wwts(
        Path(given.store),
        "models",
        "history",
        *arguments,
        WWTS_DATABASE_URL=given.database_url,
        WWTS_MODEL_NAME=given.model_name,
        MLFLOW_TRACKING_URI=given.mlflow_tracking_uri,
    )
    assert done.code == 0, done.err
    return done.out
