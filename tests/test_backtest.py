"""Answers replayed: who was right, counted apart; what is left out is said; the command as a person runs it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from diff_shop import LABELS, LEARNED, RECENT, DiffShop
from gate_shop import GateShop
from typer.testing import CliRunner

from wwts_ops import backtest, corrections, settings, taxonomy
from wwts_ops.backtest import Backtest, Measures
from wwts_ops.cli import app
from wwts_ops.errors import WwtsError
from wwts_ops.tracking import ModelVersion

MONTH = timedelta(days=30)

Shop = tuple[DiffShop, ModelVersion, ModelVersion]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("backtest")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made = DiffShop(GateShop(settings.load(store=str(folder / "store")), folder))
    old, new = made.register()
    made.write_embeddings(old.backbone_sha256)
    taxonomy.ensure(made.store, ())
    made.record_answers()
    return made, old, new


@pytest.fixture(scope="module")
def found(shop: Shop) -> Backtest:
    return backtest.run(shop[0].gate.settings, shop[2].version, MONTH)


def rights(shop: DiffShop, side: int, numbers: Iterable[int]) -> list[bool]:
    """Whether the champion (0) or the challenger (1) is right on the answers of these contents."""
    return [shop.said(number)[side][0] in RECENT[number][0] for number in numbers]


def check(shop: DiffShop, side: int, measures: Measures, numbers: Iterable[int]) -> None:
    numbers = list(numbers)
    right = rights(shop, side, numbers)
    auto = [shop.said(number)[side][1] == "auto" for number in numbers]
    assert (measures.n, measures.right, measures.auto) == (len(numbers), sum(right), sum(auto))
    assert measures.auto_right == sum(one and live for one, live in zip(right, auto, strict=True))
    assert measures.accuracy == pytest.approx(sum(right) / len(numbers))
    by_label: dict[str, list[bool]] = {}
    for number, one in zip(numbers, right, strict=True):
        by_label.setdefault(RECENT[number][0][0], []).append(one)
    assert measures.macro == pytest.approx(sum(sum(ones) / len(ones) for ones in by_label.values()) / len(by_label))


def test_recent_answers_in_force_are_replayed_against_both(shop: Shop, found: Backtest) -> None:
    """Neither older ones, nor weak, retracted or unlabelled ones; one content has no embedding."""
    assert (found.answers, found.without_embedding, found.champion_without_embedding) == (len(RECENT) + 1, 1, 1)
    assert (found.version, found.champion) == (shop[2].version, shop[1].version)
    everything = found.groups[0]
    check(shop[0], 1, everything.version, RECENT)
    assert everything.champion is not None
    check(shop[0], 0, everything.champion, RECENT)
    old, new = (rights(shop[0], side, RECENT) for side in (0, 1))
    assert found.gained == sum(now and not was for was, now in zip(old, new, strict=True)) > 0
    assert found.lost == sum(was and not now for was, now in zip(old, new, strict=True)) > 0
    assert everything.version.unknown == 1  # a label that no version knows


def test_each_kind_and_category_has_its_row(shop: Shop, found: Backtest) -> None:
    kinds = {group.name: group.version.n for group in found.groups if group.of == "kind"}
    confirmed = {0, 7}
    assert kinds == {"confirm": len(confirmed), "correct": len(RECENT) - len(confirmed)}
    (confirm,) = [group for group in found.groups if (group.of, group.name) == ("kind", "confirm")]
    check(shop[0], 1, confirm.version, confirmed)
    names = taxonomy.current(shop[0].store)
    assert names is not None
    wanted: dict[str, list[int]] = {}
    for number, (labels, _) in RECENT.items():
        label = names.by_id.get(labels[0])
        wanted.setdefault(label.category_path.split(" > ")[0] if label else "", []).append(number)
    rows = {group.name: group.version for group in found.groups if group.of == "category"}
    assert rows.keys() == wanted.keys()
    for name, numbers in wanted.items():
        check(shop[0], 1, rows[name], numbers)


def test_what_was_learned_from_stands_apart(shop: Shop, found: Backtest) -> None:
    assert found.learned == len(LEARNED)
    rows = {group.of: group.version for group in found.groups}
    check(shop[0], 1, rows["learned"], LEARNED)
    check(shop[0], 1, rows["not learned"], RECENT.keys() - LEARNED)
    champion = backtest.run(shop[0].gate.settings, None, MONTH)
    assert (champion.champion, champion.learned, champion.gained) == (None, None, None)
    assert all(group.champion is None and "learned" not in group.of for group in champion.groups)


def test_known_chances_weigh_by_their_inverse(shop: Shop, found: Backtest) -> None:
    weights: Mapping[int, float] = {number: 1 / p for number, (_, p) in RECENT.items() if p is not None}
    total = sum(weights.values())
    live = {number for number in weights if shop[0].said(number)[1][1] == "auto"}
    right = {number for number in weights if rights(shop[0], 1, [number])[0]}
    weighted = found.weighted
    assert weighted is not None
    assert weighted.n == len(weights)
    assert weighted.accuracy == pytest.approx(sum(weights[number] for number in right) / total)
    assert weighted.coverage == pytest.approx(sum(weights[number] for number in live) / total)
    share = sum(weights[number] for number in live & right) / sum(weights[number] for number in live)
    assert weighted.auto_precision == pytest.approx(share)
    assert weighted.effective == pytest.approx(total**2 / sum(weight**2 for weight in weights.values()))
    plain = found.groups[0].version
    assert weighted.accuracy != pytest.approx(plain.accuracy)


def test_a_label_that_was_merged_is_no_mistake(tmp_path: Path, shop: Shop, found: Backtest) -> None:
    """People said ``LABELS[3]`` when there was one, and both versions still have a row of it."""
    gone, into = LABELS[3], LABELS[2]
    copied = copy(shop, tmp_path)
    names = taxonomy.current(copied.store)
    assert names is not None
    taxonomy.edit(copied.store, "小王", {gone: replace(names.by_id[gone], enabled=False, maps_to=into)})
    merged = backtest.run(copied.gate.settings, shop[2].version, MONTH)
    before, after = found.groups[0], merged.groups[0]
    assert before.champion is not None
    assert after.champion is not None
    assert after.version.right == before.version.right > 0
    assert after.champion.right == before.champion.right
    assert (after.version.macro, after.version.unknown) == (pytest.approx(before.version.macro), before.version.unknown)
    assert sum(gone in labels for labels, _ in RECENT.values()) > 1


def test_old_chances_that_are_next_to_none_leave_numbers_finite(tmp_path: Path, shop: Shop) -> None:
    copied = copy(shop, tmp_path)
    for number, chance in ((20, 1e-320), (21, 1e-9)):
        corrections.record(copied.gate.settings, [copied.answer(number, "confirm", sampling_probability=chance)])
    weighted = backtest.run(copied.gate.settings, shop[2].version, MONTH).weighted
    assert weighted is not None
    values = (weighted.effective, weighted.accuracy, weighted.auto_precision, weighted.coverage)
    assert all(value is not None and math.isfinite(value) for value in values)
    # Both stand for a million.
    assert weighted.effective == pytest.approx(2, abs=0.01)


def copy(shop: Shop, folder: Path) -> DiffShop:
    """A shop that a test may change."""
    shutil.copytree(shop[0].store.root, folder / "store")
    shutil.copytree(shop[0].gate.settings.state_dir, folder / "store.state")
    return DiffShop(replace(shop[0].gate, settings=settings.load(store=str(folder / "store"))))


def test_a_shorter_time_has_fewer_answers(shop: Shop) -> None:
    assert backtest.run(shop[0].gate.settings, "2", timedelta(minutes=30)).answers == 0
    assert backtest.run(shop[0].gate.settings, "2", timedelta(days=90)).answers == len(RECENT) + 2


@pytest.mark.parametrize(("text", "wanted"), [("30d", MONTH), ("12h", timedelta(hours=12)), ("4W", timedelta(days=28))])
def test_lengths_of_time(text: str, wanted: timedelta) -> None:
    assert backtest.duration(text) == wanted


@pytest.mark.parametrize("text", ["", "30", "0d", "-3d", "3m", "1.5d", "30d30d", "999999999w"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(WwtsError, match="write hours, days or weeks"):
        backtest.duration(text)


def run(shop: Shop, *arguments: str) -> str:
    store = shop[0].gate.settings.store
    done = CliRunner().invoke(app, ["backtest", *arguments], env={"WWTS_STORE": store}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_command_tells_people_and_machines(shop: Shop, clean_environment: None) -> None:
    value = json.loads(run(shop, shop[2].version, "--json"))
    assert value["answers"] == len(RECENT) + 1
    assert value["groups"][0]["version"]["n"] == len(RECENT)
    told = run(shop, shop[2].version, "--since", "4w")
    assert "all answers" in told
    assert "1 answers without a stored embedding" in told
    assert "Weighted by 1 / sampling probability" in told
    assert "learned from 2 of these answers" in told
    assert "Against the champion" in told
    assert "try a longer --since" in run(shop, "champion", "--since", "1h")
