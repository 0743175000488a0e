"""What must not go live late: promotions whose grounds went away while they were interrupted, waiting or forgotten."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from move_shop import Shop, ended

from wwts_ops import badcases, promotion, provenance, registry, rollout, taxonomy
from wwts_ops.errors import WwtsError
from wwts_ops.promotion import Override, Proposal
from wwts_ops.storage import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def shop(clean_environment: None, tracking_uri: str, tmp_path: Path) -> Shop:
    return Shop.made(tracking_uri, f"sqlite:///{tmp_path / 'wwts.db'}", tmp_path)


def order(action: str, run: str = "promote_model/r1") -> rollout.Order:
    return rollout.Order(action, None, require_approval=False, override=None, actor="anna", run=run)


def interrupted(shop: Shop, proposal: Proposal, at: int) -> bool:
    """Kills a promotion after its ``at``-th write; whether it has begun by then and not moved the champion yet."""
    ended(shop.process("p1", proposal, at=at))
    return shop.state() == "moving" and shop.aliases()["champion"] == "1"


def test_an_interrupted_promotion_is_given_up_when_its_version_failed_meanwhile(
    clean_environment: None, tracking_uri: str, tmp_path: Path
) -> None:
    """Whoever comes next finds the row of somebody who died before the champion was moved."""
    given_up = 0
    for at in range(3, 13, 2):
        shop = Shop.made(tracking_uri, f"sqlite:///{tmp_path / f'{at}.db'}", tmp_path)
        proposal, other = shop.propose("2"), shop.propose("3")
        if not interrupted(shop, proposal, at):
            continue
        given_up += 1
        shop.fail("2")
        shop.expire()
        promotion.promote(shop.settings, other, "bob", None, "p2")
        assert shop.aliases() == {"champion": "3", "previous": "1"}
        assert shop.champions() == [("adopt", "1"), ("promote", "3")]
        assert shop.state() == "idle"
    assert given_up > 1


def test_the_same_run_does_not_finish_what_failed_meanwhile(shop: Shop) -> None:
    proposal = shop.propose("2")
    assert any(interrupted(shop, proposal, at) for at in range(3, 13, 2))
    shop.fail("2")
    with pytest.raises(WwtsError, match="2"):
        promotion.promote(shop.settings, proposal, "anna", None, "p1")
    assert shop.aliases() == {"champion": "1"}


def test_a_verdict_on_other_bad_cases_than_those_in_force_is_out_of_date(shop: Shop) -> None:
    store = Store.of(shop.settings)
    snapshot = badcases.ensure(store, taxonomy.ensure(store, ()))
    shop.judge("2")
    with pytest.raises(WwtsError, match=f"现在生效的是 {snapshot.name}"):
        promotion.propose(shop.settings, "2", Override("anna", "because"))
    shop.judge("2", badcases=snapshot.name, badcases_sha256=snapshot.sha256)
    assert promotion.propose(shop.settings, "2", None).version == "2"
    badcases.retire(store, "anna", snapshot.active[0].content_sha256, "a wrong label")
    with pytest.raises(WwtsError, match="重新运行“评测模型”"):
        promotion.propose(shop.settings, "2", None)


@pytest.mark.parametrize("reason", ["长" * 1001, "half a \ud83d", "a bell \x07"])
def test_an_override_that_no_tag_could_hold_is_refused_before_anything_moves(shop: Shop, reason: str) -> None:
    shop.fail("2")
    with pytest.raises(WwtsError, match="各不超过 1000 字"):
        promotion.propose(shop.settings, "2", Override("anna", reason))


def test_a_version_written_with_zeros_is_the_version(shop: Shop) -> None:
    shop.judge("2")
    assert promotion.propose(shop.settings, "02", None).version == "2"
    with pytest.raises(WwtsError, match="champion already"):
        promotion.propose(shop.settings, "01", None)


def test_a_cleared_run_is_another_act(shop: Shop) -> None:
    """Airflow runs its tasks again under the same run; what it did the first time is done no second time unnoticed."""
    prepared = {"version": "2", "summary": "", "token": "r1#a", "proposal": asdict(shop.propose("2"))}
    assert rollout.move(shop.settings, order("promote"), prepared, None) == "2"
    assert rollout.move(shop.settings, order("promote"), prepared, None) == "2"  # the same task, tried again
    back = rollout.prepare(shop.settings, order("rollback"))
    assert rollout.move(shop.settings, order("rollback"), back, None) == "1"
    with pytest.raises(WwtsError, match="Trigger a new run"):
        rollout.move(shop.settings, order("promote"), prepared, None)
    assert shop.aliases()["champion"] == "1"
    assert back["token"] != rollout.prepare(shop.settings, order("rollback"))["token"]


def test_a_damaged_tag_does_not_stop_the_way_back(shop: Shop) -> None:
    shop.promote("2")
    shop.tag("1", "wwts.move.000003", "oops")
    promotion.rollback(shop.settings, None, "anna", "", "r1")
    assert shop.aliases()["champion"] == "1"
    with pytest.raises(WwtsError, match="altered"):
        promotion.history_from_tags(shop.settings)


def test_a_version_that_fails_is_no_challenger_any_more(shop: Shop) -> None:
    promotion.nominate(shop.settings, shop.judge("2"), "anna", "e1")
    failed = shop.fail("3")
    assert promotion.withdraw(shop.settings, failed, "anna", "e2") is None
    assert shop.aliases()["challenger"] == "2"
    assert promotion.withdraw(shop.settings, shop.fail("2"), "anna", "e3") is not None
    assert "challenger" not in shop.aliases()
    assert [move.action for move in shop.history()] == ["adopt", "nominate", "withdraw"]


def test_an_emptied_mlflow_does_not_make_the_embedded_default_champion(shop: Shop, tmp_path: Path) -> None:
    shop.promote("2")
    elsewhere = shop.settings.model_copy(update={"mlflow_tracking_uri": f"sqlite:///{tmp_path / 'other.db'}"})
    with pytest.raises(WwtsError, match="version 2 was champion"):
        registry.ensure_champion(elsewhere)
    assert registry.versions(elsewhere) == []


def context(user: str | None, **form: object) -> dict[str, object]:
    """What Airflow hands to a task, as far as the form and its sender go."""
    empty = {"action": "promote", "version": None, "require_approval": True, "override_by": None, "override_reason": ""}
    run = SimpleNamespace(dag_id="promote_model", run_id="r1", triggering_user_name=user)
    return {"params": {**empty, **form}, "dag_run": run}


@pytest.mark.parametrize("nobody", [None, "", "dag_test"])
def test_an_override_without_a_person_is_refused(nobody: str | None) -> None:
    """`wwts run` runs as Airflow's own user ``dag_test``, who answers for nothing."""
    with pytest.raises(WwtsError, match="override_by is empty"):
        rollout.order(context(nobody, override_reason="急"))
    named = rollout.order(context(nobody, override_reason="急", override_by="老王"))
    assert named.override == Override("老王", "急")
    assert named.actor == provenance.user()


def test_whoever_signed_in_to_airflow_answers_for_an_override() -> None:
    assert rollout.order(context("anna", override_reason="急")).override == Override("anna", "急")
    with pytest.raises(WwtsError, match="override_reason is empty"):
        rollout.order(context("anna", override_by="老王"))


def test_only_a_promotion_waits_for_a_person() -> None:
    assert rollout.order(context("anna")).needs_approval
    assert not rollout.order(context("anna", require_approval=False)).needs_approval
    assert not rollout.order(context("anna", action="rollback")).needs_approval
