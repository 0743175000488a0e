"""One training after another on a real shop: through its DAG in one process, and stage by stage in killed processes."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dag_chain
import numpy as np
import pytest
from code_shelf import environment
from environment import clean
from PIL import Image
from retrain_shop import LABELS, RetrainShop, patient_rules

from eval import evaluate
from training import lineage, retrain, snapshot
from training.order import Order
from wwts_ops import badcases, corrections, holdout, promotion, registry, settings, taxonomy, tracking
from wwts_ops.cli import badcases as cli_badcases
from wwts_ops.errors import WwtsError
from wwts_ops.tagger import Tagger
from wwts_ops.verdict import TAG, Verdict

pytestmark = pytest.mark.slow

GO = {"promote": True, "require_approval": False}
FORM = {"force": False, "min_new_answers": 1, "backbone": None, "seed": 0}
#: The embedded default, and the version that the DAG trains, twice.
DEFAULT, TRAINED = "1", "2"
#: The label whose answers are taken back after the promotion.
TAKEN_BACK = "shop:launch"
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Story:
    """The shop after a chain of runs; ``codes`` and ``order`` by what each run was for."""

    shop: RetrainShop
    chain: dag_chain.Chain
    codes: dict[str, int]
    order: Order

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.chain.events

    def artifact(self, name: str) -> bytes:
        """Of the run that registered the trained version."""
        with tracking.connected(self.shop.settings) as client:
            (entry,) = (entry for entry in self.shop.versions() if str(entry.version) == TRAINED)
            model = client.get_logged_model(entry.source.removeprefix("models:/"))
            return Path(client.download_artifacts(model.source_run_id, f"training/{name}")).read_bytes()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Iterator[RetrainShop]:
    folder = tmp_path_factory.mktemp("训练 🎓")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        patch.setenv("WWTS_GATE_RULES", str(patient_rules(folder)))
        found = settings.load(
            store=str(folder / "store"), catalog=str(folder / "图库"), release="live", device="cpu", training_views=1
        )
        patch.setenv("WWTS_TRAINING_VIEWS", "1")
        shutil.copytree(embedded_tagger.folder, found.state_dir / "models" / embedded_tagger.folder.name)
        yield RetrainShop.made(found, folder)


@pytest.fixture(scope="module")
def story(shop: RetrainShop) -> Story:
    """Judged by the starter set alone, then by all bad cases, then nothing new; and a run that would wait for ever."""
    (starter,) = {key.split("/")[1] for key in shop.store.list("badcases", ".parquet") if "/b000001-" in key}
    steps: dict[str, dag_chain.Step] = {
        "blocked": ("retrain_head", {**GO, "badcases": starter}),
        "promoted": ("retrain_head", {**GO, "force": True}),
        "nothing new": ("retrain_head", {}),
        "waits": ("retrain_head", {"promote": True, "seed": 3}),
    }
    chain = dag_chain.run(shop.settings, list(steps.values()), shop.folder)
    (ordered, *_) = (event for event in chain.events if event["event"] == "training_ordered")
    order = Order(**shop.store.read_json(f"trainings/{ordered['training']}/order.json"))
    return Story(shop, chain, dict(zip(steps, chain.codes, strict=True)), order)


def test_the_whole_way_in_one_process_ends_with_the_right_exit_codes(story: Story) -> None:
    assert story.codes == {"blocked": 0, "promoted": 0, "nothing new": 0, "waits": 2}


def test_what_the_gate_refused_is_not_promoted_and_no_failure(story: Story) -> None:
    first = next(event for event in story.events if event["event"] == "judged")
    assert not first["passed"]
    (skipped,) = (event for event in story.events if event["event"] == "promotion_skipped")
    assert skipped["version"] == TRAINED
    assert skipped["reason"].startswith(f"版本 {TRAINED} 未通过门禁（人工添加的坏例")
    assert not [event for event in story.events if event["event"] == "promotion_refused"]


def test_what_passed_is_champion(story: Story) -> None:
    aliases = story.shop.aliases()
    assert (aliases["champion"], aliases["previous"]) == (TRAINED, DEFAULT)
    assert Verdict.from_tag(story.shop.versions()[-1].tags[TAG]).passed


def test_a_training_that_runs_twice_is_registered_once(story: Story) -> None:
    """By force trained again from the same, it ends the same."""
    ordered = [event["training"] for event in story.events if event["event"] == "training_ordered"]
    assert ordered == [story.order.training, f"{story.order.training}-2"]
    assert [event["event"] for event in story.events].count("training_started") == 2
    assert [event["event"] for event in story.events].count("training_recorded") == 1
    assert [str(entry.version) for entry in story.shop.versions()] == [DEFAULT, TRAINED]


def test_without_new_answers_nothing_is_trained(story: Story) -> None:
    (skipped,) = (event for event in story.events if event["event"] == "training_skipped")
    assert (skipped["new"], skipped["least"]) == (0, 1)
    assert snapshot.used(story.shop.store) == story.order.latest == len(story.shop.catalog)


def test_a_run_that_would_wait_for_a_person_says_how_not_to(story: Story) -> None:
    (refused,) = (event["reason"] for event in story.events if event["event"] == "refused")
    assert """--conf '{"promote": true, "seed": 3, "require_approval": false}'""" in refused


def test_the_catalog_is_compared_before_anyone_says_yes(story: Story) -> None:
    names = [event["event"] for event in story.events]
    assert names.index("tags_compared") < names.index("promotion_prepared")


def test_all_of_a_training_is_in_one_run(story: Story) -> None:
    shop, made = story.shop, story.shop.versions()[-1]
    with tracking.connected(shop.settings) as client:
        run_id = client.get_logged_model(made.source.removeprefix("models:/")).source_run_id
        run = client.get_run(run_id)
        files = {entry.path.removeprefix("training/") for entry in client.list_artifacts(run_id, "training")}
    assert run.info.status == "FINISHED"
    assert run.data.params["snapshot"] == story.order.snapshot
    assert {name for name in run.data.params if name.startswith("chosen.")}
    assert {name for name in run.data.metrics if name.startswith("validation.")}
    tables = {"thresholds.csv", "conflicts.csv", "learning_curve.csv", "confusions.csv", "contents.txt", "hashes.json"}
    assert tables | {"learning_curve.png"} <= files
    digests = {given.dataset.name: given.dataset.digest for given in run.inputs.dataset_inputs}
    assert digests[story.order.snapshot] == story.order.snapshot_sha256[:36]


def test_the_learning_curve_has_five_seeds_and_a_picture(story: Story) -> None:
    rows = list(csv.DictReader(io.StringIO(story.artifact("learning_curve.csv").decode("utf-8-sig"))))
    assert len({row["seed"] for row in rows}) == 5
    with Image.open(io.BytesIO(story.artifact("learning_curve.png"))) as picture:
        assert picture.format == "PNG"


def test_thresholds_are_listed_by_label_and_no_name_is_a_formula(story: Story) -> None:
    rows = list(csv.DictReader(io.StringIO(story.artifact("thresholds.csv").decode("utf-8-sig"))))
    names = {row["label_id"]: row["label_zh"] for row in rows}
    assert names["shop:coins"] == "古钱币"
    assert names["shop:launch"] == "'=火箭发射"


def test_the_version_says_what_it_was_made_from(story: Story) -> None:
    tags, told = story.shop.versions()[-1].tags, story.shop.versions()[-1].description
    frozen = snapshot.freeze(story.shop.settings)
    assert tags["training"] == story.order.training
    assert (tags["training.snapshot"], tags["training.snapshot_sha256"]) == (frozen.name, frozen.sha256)
    assert tags["training.base_version"] == DEFAULT
    assert tags["training.base_sha256"] == story.shop.versions()[0].tags["model_sha256"]
    assert set(tags["training.new_label_ids"].split(",")) == set(LABELS)
    hashes = json.loads(story.artifact("hashes.json"))
    assert hashes["contents.txt"] == hashlib.sha256(story.artifact("contents.txt")).hexdigest()
    assert tags["training.contents_sha256"] == hashes["contents.txt"]
    # The gate's verdict stands above, and what the training wrote is kept below it.
    assert told.index("通过门禁") < told.index("用人工答案训练")
    assert told.count("用人工答案训练") == 1
    assert "古钱币" in told


def test_nothing_that_is_held_out_was_learned_from(story: Story) -> None:
    shop = story.shop
    learned = story.artifact("contents.txt").decode().split()
    assert shop.store.read_bytes(story.order.key("contents.txt")) == story.artifact("contents.txt")
    assert set(learned) <= {tile.content for tile in shop.catalog}
    assert not [content for content in learned if holdout.in_audit(content, shop.settings.holdout_share)]
    cases = badcases.current(shop.store)
    assert cases is not None
    assert {case.content_sha256 for case in cases.cases}.isdisjoint(learned)


def test_the_model_carries_the_names_of_its_new_labels(story: Story) -> None:
    made = story.shop.versions()[-1]
    with tracking.connected(story.shop.settings):
        from mlflow.artifacts import download_artifacts

        rows = Path(download_artifacts(f"models:/{made.name}/{made.version}/artifacts/labels.csv")).read_text(
            "utf-8-sig"
        )
    names = {row["label_id"]: row["label_zh"] for row in csv.DictReader(io.StringIO(rows))}
    assert {label_id: names[label_id] for label_id in LABELS} == {key: name for key, (_, name) in LABELS.items()}
    assert len(names) == 1000 + len(LABELS)


# ------------------------------------------------------------------ stage by stage


def stage(shop: RetrainShop, name: str, order: Order, at: int, moment: str) -> int:
    """Runs one stage in a process that is killed at change number ``at`` of the store; its exit code."""
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom night_process import Killer\n"
        "from training import retrain\nfrom training.order import Order\nfrom wwts_ops import settings\n"
        "stage, order, at, moment = sys.argv[1:]\nfound = settings.load()\n"
        "Killer(found.store, int(at), moment, Path(found.store + '.trace')).install()\n"
        "getattr(retrain, stage)(found, Order(**json.loads(order)))\n"
    )
    command = [sys.executable, "-c", code, name, json.dumps(vars(order)), str(at), moment]
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if name.startswith("WWTS_")}
    env = {**environment(shop.settings), **kept, "PYTHONPATH": path}
    return subprocess.run(command, env=env, capture_output=True, check=False).returncode


@dataclass(frozen=True)
class Second:
    """A training after the promotion, from answers of which those of one label were taken back."""

    shop: RetrainShop
    order: Order
    version: str


@pytest.fixture(scope="module")
def second(story: Story) -> Second:
    """Killed in its first stages and started again; nobody has judged its version."""
    shop, found = story.shop, story.shop.settings
    corrections.retract(found, [tile.content for tile in shop.catalog if tile.label_id == TAKEN_BACK], "小李")
    order = Order(**(retrain.prepare(found, FORM) or {}))
    assert stage(shop, "build_dataset", order, 2, "after") == -signal.SIGKILL
    retrain.build_dataset(found, order)
    # A file is three changes: the head is there, and no marker yet.
    assert stage(shop, "train", order, 3, "after") == -signal.SIGKILL
    assert not shop.store.exists(order.key("trained.json"))
    (head,) = heads(shop, order)
    retrain.train(found, order)
    assert heads(shop, order) == [head]
    return Second(shop, order, retrain.register(found, order))


def heads(shop: RetrainShop, order: Order) -> list[str]:
    """Keys of the heads of a training; each names its SHA-256."""
    return [key for key in shop.store.list(f"trainings/{order.training}/", ".safetensors") if "/head-" in key]


def test_a_champion_that_learned_the_answers_is_no_start_to_learn_them_again(story: Story) -> None:
    """From scratch, after the promotion: the same start, the same bits, the same version."""
    shop, found, order = story.shop, story.shop.settings, story.order
    assert shop.aliases()["champion"] == TRAINED
    again = Order(**(retrain.prepare(found, {**FORM, "force": True}) or {}))
    assert again.training == f"{order.training}-3"
    assert (again.base_version, again.base_sha256) == (DEFAULT, order.base_sha256)
    retrain.build_dataset(found, again)
    retrain.train(found, again)
    assert retrain.prepare(found, FORM) == vars(again), "begun, it is gone on with"
    assert [shop.store.read_bytes(key) for key in heads(shop, again)] == [
        shop.store.read_bytes(key) for key in heads(shop, order)
    ]
    assert retrain.register(found, again) == TRAINED
    retrain.tag_diff(found, again, TRAINED)
    assert shop.store.read_json(again.key("compared.json")) == {"version": TRAINED, "tagdiff": None}


def test_what_is_live_is_not_trained_again_and_what_was_rolled_back_only_when_forced(story: Story) -> None:
    found, force = story.shop.settings, {**FORM, "force": True}
    assert story.shop.store.read_json(story.order.key("compared.json"))["version"] == TRAINED
    assert retrain.prepare(found, {**FORM, **GO}) is None
    promotion.rollback(found, None, "小王", "试一试", "back")
    try:
        # It passed and is not champion; yet somebody had a reason to go back.
        assert retrain.prepare(found, {**FORM, **GO}) is None
        assert retrain.prepare(found, {**force, **GO}) is not None
    finally:
        promotion.rollback(found, TRAINED, "小王", "试过了", "forth")


def test_a_training_that_was_not_compared_is_gone_on_with_and_too_few_answers_begin_none(story: Story) -> None:
    shop, found = story.shop, story.shop.settings
    begun = retrain.prepare(found, {**FORM, "force": True, "seed": 9})
    assert begun is not None
    few = {**FORM, "min_new_answers": 50}
    assert retrain.prepare(found, {**few, "seed": 8}) is None
    assert retrain.prepare(found, {**few, "seed": 9}) == begun
    shop.store.write_json(Order(**begun).key("compared.json"), {"version": "99"})
    assert retrain.prepare(found, {**few, "seed": 9}) is None


def test_the_start_of_a_line_of_trainings_is_found_or_said_to_be_gone(story: Story) -> None:
    found = story.shop.settings.model_copy(update={"model_name": "line"})
    first, after = {"model_sha256": "a", "backbone_sha256": "b"}, {"backbone_sha256": "b"}
    lines = [
        first,
        {**after, "model_sha256": "c", "training.base_version": "1", "training.base_sha256": "a"},
        {**after, "model_sha256": "d", "training.base_version": "2", "training.base_sha256": "c"},
    ]
    with tracking.connected(found) as client:
        client.create_registered_model("line")
        run = client.create_run("0").info
        for tags in lines:
            client.create_model_version("line", f"{run.artifact_uri}/tagger", run.run_id, tags, await_creation_for=0)
    third = registry.resolve(found, "3")
    assert lineage.root(found, third) == registry.resolve(found, "1")
    assert lineage.root(found, registry.resolve(found, "1")).version == "1"
    with tracking.connected(found) as client:
        client.delete_model_version("line", "2")
    with pytest.raises(WwtsError, match="Version 2 of line, which line version 3 was trained from, is no longer in"):
        lineage.root(found, third)


def test_what_was_taken_back_is_unlearned(story: Story, second: Second) -> None:
    shop, order = second.shop, second.order
    taken = [tile for tile in shop.catalog if tile.label_id == TAKEN_BACK]
    assert order.new == len(taken)
    assert (order.base_version, order.base_sha256) == (DEFAULT, story.order.base_sha256)
    labels = retrain.trained(shop.store, order).head.label_ids
    assert set(labels[1000:]) == set(LABELS) - {TAKEN_BACK}
    assert {tile.content for tile in taken}.isdisjoint(
        shop.store.read_bytes(order.key("contents.txt")).decode().split()
    )


def test_killed_in_any_stage_and_started_again_it_is_registered_once(second: Second) -> None:
    shop, found, order = second.shop, second.shop.settings, second.order
    assert retrain.register(found, order) == second.version
    trained = [str(entry.version) for entry in shop.versions() if entry.tags.get("training") == order.training]
    assert trained == [second.version]
    assert snapshot.used(shop.store) == order.latest


def test_a_version_that_was_promoted_by_hand_before_it_was_compared_needs_no_comparison(second: Second) -> None:
    shop, found, order = second.shop, second.shop.settings, second.order
    assert retrain.prepare(found, FORM) == vars(order)
    champion(found, second.version)
    try:
        assert retrain.prepare(found, FORM) is None
        retrain.tag_diff(found, order, second.version)
        assert shop.store.read_json(order.key("compared.json")) == {"version": second.version, "tagdiff": None}
        assert retrain.prepare(found, FORM) is None
    finally:
        champion(found, TRAINED)
        shop.store.delete(order.key("compared.json"))


def champion(found: settings.Settings, version: str) -> None:
    """As by hand, on MLflow's own page."""
    with tracking.connected(found) as client:
        client.set_registered_model_alias(found.model_name, "champion", version)


def test_a_label_that_was_switched_off_or_on_since_is_another_training(second: Second) -> None:
    """And a new name alone is none."""
    store, found = second.shop.store, second.shop.settings

    def ordered(**changes: Any) -> Order:
        names = taxonomy.current(store)
        assert names is not None
        label = dataclasses.replace(names.by_id["shop:coins"], **changes)
        taxonomy.edit(store, "小王", {"shop:coins": label})
        return Order(**(retrain.prepare(found, {**FORM, "force": True, "seed": 11}) or {}))

    first, off, named, on = ordered(), ordered(enabled=False), ordered(label_zh="硬币"), ordered(enabled=True)
    assert first.training != off.training == named.training
    assert on.training == first.training
    excluded = []
    for order in (off, on):
        # Whatever is in force by now: a training that was begun ends by what it began with.
        retrain.build_dataset(found, order)
        excluded.append(retrain.dataset(store, order).excluded.get("label_switched_off", 0))
    assert excluded[0] > 0 == excluded[1]


def test_old_tags_alone_are_trained_from_only_by_force(second: Second, tmp_path: Path) -> None:
    shop = second.shop
    found = shop.settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/旧标签.db"})
    fresh = RetrainShop(found, shop.folder)
    with pytest.raises(WwtsError, match="There are no answers to train from"):
        retrain.prepare(found, {**FORM, "force": True})
    fresh.answer(shop.catalog, weak=True)
    assert retrain.prepare(found, {**FORM, "min_new_answers": 0}) is None
    order = Order(**(retrain.prepare(found, {**FORM, "force": True}) or {}))
    retrain.build_dataset(found, order)
    made = retrain.dataset(shop.store, order)
    assert (order.answers, len(made.validation), set(made.train.shown)) == (0, 0, {"weak"})
    assert len(made.train) > 0
    retrain.train(found, order)
    told = retrain.trained(shop.store, order)
    assert {one["how"] for one in told.thresholds} == {"unproven"}


def test_of_two_heads_at_once_both_go_on_with_the_first(second: Second) -> None:
    store, order = second.shop.store, second.order
    first = retrain.trained(store, order)
    late = dataclasses.replace(first.head, bias=first.head.bias + 1)
    retrain._save(store, order, dataclasses.replace(first, head=late))
    assert np.array_equal(retrain.trained(store, order).head.bias, first.head.bias)


def test_of_two_datasets_at_once_one_is_whole(second: Second) -> None:
    found = second.shop.settings
    order = Order(**(retrain.prepare(found, {**FORM, "force": True, "seed": 5}) or {}))
    # As if the catalog had grown between the two.
    given = [found.model_copy(update={"rehearsal": size}) for size in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: retrain.build_dataset(one, order), given))
    assert len(retrain.dataset(second.shop.store, order).rehearsal) in (1, 2)


def test_with_promote_a_version_that_passed_goes_on_to_its_promotion(second: Second) -> None:
    shop, found = second.shop, second.shop.settings
    shop.store.write_json(second.order.key("compared.json"), {"version": second.version})
    assert retrain.prepare(found, {**FORM, **GO}) is None, "nobody judged it"
    with tracking.connected(found) as client:
        client.set_model_version_tag(found.model_name, second.version, "gate", "passed")
    assert retrain.prepare(found, {**FORM, **GO}) == vars(second.order)
    assert retrain.prepare(found, FORM) is None


def test_a_version_is_not_judged_by_what_it_learned(second: Second) -> None:
    shop, found = second.shop, second.shop.settings
    lesson = shop.store.read_bytes(second.order.key("contents.txt")).decode().split()[0]
    shop.curate([tile for tile in shop.catalog if tile.content == lesson])
    told = rf"version {second.version} has learned from 1 of the \d+ bad cases of b.*: {lesson[:12]} \([^)]+\.png\)"
    with pytest.raises(WwtsError, match=told):
        evaluate.prepare(found, second.version, None)
    (warned,) = cli_badcases._learned(found, badcases.current(shop.store))
    assert warned.startswith(f"wwts-tagger version {second.version} has learned from 1 of them")
    assert lesson[:12] in warned
    assert evaluate.prepare(found, second.version, second.order.badcases).badcases == second.order.badcases
    assert evaluate.prepare(found, TRAINED, None).champion_version == TRAINED


def test_an_unknown_backbone_is_refused_by_name(story: Story) -> None:
    with pytest.raises(WwtsError, match="no-such-net"):
        retrain.prepare(story.shop.settings, {**FORM, "force": True, "backbone": "no-such-net"})
