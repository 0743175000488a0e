"""The gate through its DAGs, on a real MLflow, at the shipped rules with more patience: what is blocked and taken back.

One shop, seven versions made to measure (``gate_shop.py``), one chain of runs; each test looks at one promise.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dag_chain
import pytest
import yaml
from environment import clean
from gate_shop import KINDS, VIEWS, GateShop
from night_run import WWTS, environment, wwts

import eval as evaluation
from wwts_ops import settings, tracking
from wwts_ops.verdict import TAG, Verdict
from wwts_ops.warehouse import connect

pytestmark = pytest.mark.slow

#: The champion is right on all but the last three views of each kind; numbers of cases, kind by kind.
RIGHT = [number for number in range(len(KINDS) * VIEWS) if number % VIEWS < VIEWS - 3]
ALL = list(range(len(KINDS) * VIEWS))
#: A case that may never regress, and the champion has it right.
NEVER = 2 * VIEWS
#: Four cases of the first kind that the champion has right, and the three that it has not.
LOST, NOT_WON = {4, 5, 6, 7}, {9, 10, 11}
DAYS = {"甲": "2026-03-01", "乙": "2026-03-02", "丙": "2026-03-03"}


@dataclass(frozen=True)
class Proof:
    """The shop after all runs of the chain."""

    shop: GateShop
    chain: dag_chain.Chain
    codes: dict[str, int]

    def verdict(self, name: str) -> Verdict:
        """What the gate recorded of a version."""
        return Verdict.from_tag(self.tags(name)[TAG])

    def tags(self, name: str) -> dict[str, str]:
        with tracking.connected(self.shop.settings) as client:
            found = client.get_model_version(self.shop.settings.model_name, self.shop.versions[name].version)
            return dict(found.tags)

    def aliases(self) -> dict[str, str]:
        with tracking.connected(self.shop.settings) as client:
            model = client.get_registered_model(self.shop.settings.model_name)
            return {alias: str(version) for alias, version in model.aliases.items()}

    def night(self, name: str) -> dict[str, tuple[Any, ...]]:
        """By content, the tags that one night wrote, bit for bit."""
        day = DAYS[name]
        pattern = f"{self.shop.settings.store}/tags/date={day}/*.parquet"
        with connect() as con:
            rows = con.execute(
                "SELECT content_sha256, label_id, confidence, decision, tags::VARCHAR, model_version "
                f"FROM read_parquet('{pattern}')"
            ).fetchall()
        assert len(rows) == len(ALL)
        return {row[0]: row[1:] for row in rows}


def failing(verdict: Verdict) -> set[str]:
    return {rule.rule for rule in verdict.rules if rule.outcome in ("failed", "insufficient")}


def _rules(folder: Path) -> Path:
    """Those that are shipped, with more patience: while other tests run, equal models may differ by half in speed."""
    rules = yaml.safe_load(Path(evaluation.__file__).with_name("gate.yaml").read_text(encoding="utf-8"))
    rules["latency"] |= {"max_p95_seconds": 10.0, "max_p95_ratio": 3.0}
    target = folder / "gate.yaml"
    target.write_text(yaml.safe_dump(rules, allow_unicode=True), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> GateShop:
    """Seven versions; the first is champion because somebody said so in MLflow."""
    folder = tmp_path_factory.mktemp("门禁 🚦")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        found = settings.load(
            store=str(folder / "store"), release="live", device="cpu", dag_prefix="", gate_rules=str(_rules(folder))
        )
    made = GateShop(found, folder)
    made.register("champion", made.head(RIGHT))
    with tracking.connected(found) as client:
        client.set_registered_model_alias(found.model_name, "champion", "1")
    made.register("random", made.random_head())
    made.register("regresses", made.head(set(ALL) - {NEVER}))
    made.register("loses a slice", made.head(set(ALL) - LOST - NOT_WON))
    made.register("slow", made.head(ALL), rounds=100)
    made.register("equal", made.head(RIGHT, threshold=0.55))
    made.register("better", made.head(ALL[:-1]))
    return made


@pytest.fixture(scope="module")
def proof(shop: GateShop) -> Proof:
    """Everything that happens, in the order in which it happens."""
    done = wwts(Path(shop.settings.store), "badcases", "import", str(shop.write_cases()))
    assert done.code == 0, done.err
    number = {name: model.version for name, model in shop.versions.items()}
    tag = {name: ("tag_catalog", {"catalog": str(shop.catalog(name)), "date": day}) for name, day in DAYS.items()}
    unasked = {"require_approval": False}
    steps: dict[str, dag_chain.Step] = {
        "night before": tag["甲"],
        **{f"evaluate {name}": ("evaluate_model", {"version": number[name]}) for name in number if name != "champion"},
        "rehearse": ("evaluate_model", {"version": number["random"], "dry_run": True}),
        "promote random": ("promote_model", {"version": number["random"], **unasked}),
        "promote better": ("promote_model", {"version": number["better"], **unasked}),
        "night after": tag["乙"],
        "promote equal late": ("promote_model", {"version": number["equal"], **unasked}),
        "roll back": ("promote_model", {"action": "rollback"}),
        "night again": tag["丙"],
        "roll back twice": ("promote_model", {"action": "rollback"}),
        "override": (
            "promote_model",
            {"version": number["random"], "override_reason": "演练 🚒", "override_by": "老王", **unasked},
        ),
        "roll back the override": ("promote_model", {"action": "rollback", "version": "1"}),
    }
    chain = dag_chain.run(shop.settings, list(steps.values()), shop.folder)
    return Proof(shop, chain, dict(zip(steps, chain.codes, strict=True)))


def test_evaluating_succeeds_whatever_the_verdict(proof: Proof) -> None:
    failed = [step for step, code in proof.codes.items() if code and step.startswith(("evaluate", "night", "rehearse"))]
    assert failed == [], [event for event in proof.chain.events if event.get("level") in ("error", "critical")][:2]


def test_a_random_head_is_blocked_with_reasons(proof: Proof) -> None:
    verdict = proof.verdict("random")
    assert not verdict.passed
    assert proof.tags("random")["gate"] == "failed"
    assert {"overall.top1", "overall.non_inferiority", "never_regress"} <= failing(verdict)
    assert all(max(reason) >= "一" for reason in verdict.reasons)
    assert proof.codes["promote random"] == 1
    assert "never_regress" in proof.chain.said()


def test_a_better_head_that_breaks_one_case_is_blocked(proof: Proof) -> None:
    assert failing(proof.verdict("regresses")) == {"never_regress"}


def test_a_head_that_is_worse_on_one_slice_is_blocked(proof: Proof) -> None:
    (first, *_) = KINDS
    failed = failing(proof.verdict("loses a slice"))
    assert failed
    assert all(rule.startswith(f"slice.{first}.") for rule in failed), failed


def test_a_slow_tagger_is_blocked_by_p95(proof: Proof) -> None:
    failed = failing(proof.verdict("slow"))
    assert "p95_ratio" in failed
    assert failed <= {"p95", "p95_ratio"}


def test_an_equal_and_a_better_one_pass(proof: Proof) -> None:
    assert failing(proof.verdict("equal")) == failing(proof.verdict("better")) == set()
    assert proof.verdict("equal").passed
    assert proof.tags("better")["gate"] == "passed"
    assert proof.codes["promote better"] == 0


def test_a_rehearsal_leaves_the_verdict_alone(proof: Proof) -> None:
    assert proof.tags("random")["gate.dry_run"] == "failed"
    assert proof.verdict("random").mode == "enforced"


def test_the_next_night_uses_what_was_promoted(proof: Proof) -> None:
    before, after = proof.night("甲"), proof.night("乙")
    assert {row[-1] for row in before.values()} == {"1"}
    assert {row[-1] for row in after.values()} == {proof.shop.versions["better"].version}
    changed = {sha for sha in before if before[sha][0] != after[sha][0]}
    assert len(changed) == len(ALL) - 1 - len(RIGHT)


def test_what_was_compared_with_another_champion_is_not_promoted(proof: Proof) -> None:
    assert proof.codes["promote equal late"] == 1


def test_a_rollback_restores_exactly_the_old_tags(proof: Proof) -> None:
    assert proof.codes["roll back"] == 0
    assert proof.night("丙") == proof.night("甲") != proof.night("乙")


def test_a_second_rollback_finds_nothing_to_go_back_to(proof: Proof) -> None:
    assert proof.codes["roll back twice"] == 1


def test_what_failed_goes_live_only_under_a_name_and_a_reason(proof: Proof) -> None:
    assert (proof.codes["promote random"], proof.codes["override"]) == (1, 0)
    tags = proof.tags("random")
    assert (tags["gate.override.by"], tags["gate.override.reason"]) == ("老王", "演练 🚒")
    assert tags["gate"] == "failed"


def test_history_is_the_same_from_the_database_and_from_mlflow(proof: Proof) -> None:
    from wwts_ops import promotion

    moves = promotion.history(proof.shop.settings)
    assert moves == promotion.history_from_tags(proof.shop.settings)
    champions = [(move.action, move.to_version) for move in moves if move.alias == "champion"]
    number = {name: model.version for name, model in proof.shop.versions.items()}
    expected = [
        ("adopt", "1"),
        ("promote", number["better"]),
        ("rollback", "1"),
        ("promote", number["random"]),
        ("rollback", "1"),
    ]
    assert sorted(champions) == sorted(expected)
    told = wwts(Path(proof.shop.settings.store), "models", "history")
    assert told.code == 0
    assert "老王" in told.out


@pytest.fixture(scope="module")
def race(proof: Proof) -> Iterator[tuple[Proof, dict[str, subprocess.Popen[str]]]]:
    """Two promotions at the same moment, each of a version that passed against the champion of now."""
    store = Path(proof.shop.settings.store)
    running = {}
    for name in ("equal", "better"):
        conf = f'{{"version": "{proof.shop.versions[name].version}", "require_approval": false}}'
        running[name] = subprocess.Popen(
            [WWTS, "run", "promote_model", "--conf", conf],
            env=environment(store, WWTS_RETRY_SECONDS="0"),
            cwd=store.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    yield proof, running
    for process in running.values():
        process.kill()


def test_two_promotions_at_once_end_with_one_winner_and_one_refusal(
    race: tuple[Proof, dict[str, subprocess.Popen[str]]],
) -> None:
    proof, running = race
    said = {name: process.communicate()[0] for name, process in running.items()}
    codes = {name: process.returncode for name, process in running.items()}
    assert sorted(codes.values()) == [0, 1], said
    (winner,) = [name for name, code in codes.items() if code == 0]
    (loser,) = [name for name, code in codes.items() if code == 1]
    assert proof.aliases()["champion"] == proof.shop.versions[winner].version
    assert "Traceback" not in said[loser]
    assert proof.shop.versions[winner].version in said[loser] or "promotion" in said[loser]


def test_a_run_that_would_wait_for_ever_is_refused(proof: Proof) -> None:
    done = wwts(Path(proof.shop.settings.store), "run", "promote_model", "--conf", '{"version": "2"}')
    assert done.code == 2
    assert "require_approval" in done.out + done.err
