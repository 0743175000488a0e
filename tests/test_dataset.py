"""What a head learns from: proved by hash and by cosine that nothing held out and no copy gets where it must not."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import skimage
from answered_shop import BACKBONE, BASE, LABELS, OFF, AnsweredShop, content, copy_of, cosines, labelled, many, vector
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from PIL import Image
from shard_shop import Shop

from training import dataset, old_tags, snapshot
from training.catalog_sample import CatalogSample
from training.dataset import WEAK, Dataset, Order
from wwts_ops import badcases, holdout, images, neardup, publish, registration, tagging, taxonomy
from wwts_ops.errors import WwtsError
from wwts_ops.schemas import PUBLISHED
from wwts_ops.tagger import Tagger
from wwts_ops.tagging import Shard
from wwts_ops.taxonomy import Label
from wwts_ops.tracking import ModelVersion


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> AnsweredShop:
    """Of everything something: answers, old tags, copies of what is held out, contradictions, a catalog."""
    made = AnsweredShop(tmp_path_factory.mktemp("shop"), {"rehearsal": 1000, "weak_weight": 0.25})
    assert made.names
    bad_contents, bad_vectors = made.bad
    plain = many(120, "普通", 0)
    audited = {content("审计 1", audit=True): vector(500), content("审计 2", audit=True): vector(501)}
    copied = {content(f"副本 {place}"): copy_of(one, place, 0.9) for place, one in enumerate(audited.values())}
    stolen = {content("坏例的副本"): copy_of(bad_vectors[0], 7)}
    # Of a picture of the audit that nobody has answered.
    copied |= {content("副本 3"): copy_of(vector(2500), 11, 0.9)}
    catalog = many(100, "目录", 2000) | {content("目录审计", audit=True): vector(2500)}
    catalog |= {
        content("目录审计的副本"): copy_of(vector(2500), 8, 0.9),
        content("目录里坏例的副本"): copy_of(bad_vectors[1], 9),
        content("审计答案的副本"): copy_of(vector(500), 10),
    }
    pairs = {content(f"双 {place}"): copy_of(one, 50 + place) for place, one in enumerate(list(plain.values())[:60])}
    odd = {content("打架"): copy_of(plain[content("普通 100")], 90), content("全零"): 0 * vector(1)}
    old = {content(f"旧 {number}"): vector(3000 + number) for number in range(6)}
    old |= {content("旧的副本"): copy_of(plain[content("普通 101")], 91)}
    everything = plain | audited | copied | stolen | catalog | pairs | odd | old
    made.embed(everything)
    told = labelled(plain)
    made.answers(told)
    # Copies of answered pictures, with the same label: they must not be split from them.
    made.answers(dict(zip(pairs, told.values(), strict=False)), sampling_probability=0.5, shown_because="audit")
    made.answers(dict.fromkeys([*audited, *copied, *stolen, content("全零"), bad_contents[2]], LABELS[0]))
    made.answer(content("打架"), next(label for label in LABELS if label != told[content("普通 100")]))
    made.answer(content("没有标签"), None)
    made.answer(content("不知道的标签"), "shop:没有这个")
    made.answer(content("停售的"), OFF)
    made.answer(content("不在目录里"), LABELS[0])
    made.answers(dict.fromkeys([content(f"旧 {number}") for number in range(6)], LABELS[1]), weak=True)
    wrong = next(label for label in LABELS if label != told[content("普通 101")])
    made.answers({content("旧的副本"): wrong, content("普通 1"): wrong}, weak=True)
    return made


@pytest.fixture(scope="module")
def built(shop: AnsweredShop) -> Dataset:
    return dataset.build(shop.settings, shop.order())


def learned(built: Dataset) -> dict[str, np.ndarray]:
    """Every content that a training sees, with its embedding."""
    rehearsed = zip(built.rehearsal_contents, built.rehearsal, strict=True)
    pairs = [
        (one, row)
        for part in (built.train, built.validation)
        for one, row in zip(part.contents, part.vectors, strict=True)
    ]
    return dict([*pairs, *rehearsed])


def test_nothing_held_out_and_no_copy_of_it_is_learned_from(shop: AnsweredShop, built: Dataset) -> None:
    bad_contents, bad_vectors = shop.bad
    audit = {content(name, audit=True): seed for name, seed in (("审计 1", 500), ("审计 2", 501), ("目录审计", 2500))}
    found = learned(built)
    assert len(found) > 250  # of the 280 that are plain
    assert found.keys().isdisjoint({*bad_contents, *audit})
    assert not any(holdout.in_audit(one, shop.settings.holdout_share) for one in found)
    held = np.concatenate([bad_vectors, [vector(seed) for seed in audit.values()]])
    assert cosines(np.stack(list(found.values())), held).max() < neardup.SIMILARITY
    copies = (
        "副本 0",
        "副本 1",
        "副本 3",
        "坏例的副本",
        "目录审计的副本",
        "目录里坏例的副本",
        "审计答案的副本",
        "全零",
    )
    assert found.keys().isdisjoint(content(name) for name in copies)


def test_answered_audit_pictures_are_there_to_report_on(built: Dataset) -> None:
    assert set(built.audit.contents) == {content("审计 1", audit=True), content("审计 2", audit=True)}
    assert [built.label_ids[target] for target in built.audit.targets] == [LABELS[0]] * 2
    assert np.array_equal(
        built.audit.vectors[0], vector(500 + (built.audit.contents[0] == content("审计 2", audit=True)))
    )


def test_no_picture_of_validation_is_in_train_or_rehearsed_nor_a_copy_of_it(built: Dataset) -> None:
    assert set(built.train.contents).isdisjoint(built.validation.contents)
    others = np.concatenate([built.train.vectors, built.rehearsal])
    assert cosines(built.validation.vectors, others).max() < neardup.SAME
    groups = [set(part.groups.tolist()) for part in (built.train, built.validation, built.audit)]
    assert sum(len(one) for one in groups) == len(set.union(*groups))


def test_every_row_is_what_was_answered_and_stored(shop: AnsweredShop, built: Dataset) -> None:
    told = {row["content_sha256"]: row for row in snapshot.read(shop.store, shop.order().snapshot).to_pylist()}
    told |= {
        content("普通 1"): {**told[content("普通 1")], "labels": [labelled(many(120, "普通", 0))[content("普通 1")]]}
    }
    for part in (built.train, built.validation):
        for place, one in enumerate(part.contents):
            assert built.label_ids[part.targets[place]] == told[one]["labels"][0]
    train = built.train
    number = train.contents.index(content("普通 5"))
    assert np.array_equal(train.vectors[number], vector(5))
    assert (train.weights[number], train.shown[number]) == (1, "review")
    assert np.isnan(train.probability[number])
    paired = next(place for place, one in enumerate(train.contents) if train.shown[place] == "audit")
    assert train.probability[paired] == 0.5
    assert train.view_of.tolist() == list(range(len(train)))


def test_old_tags_count_less_and_only_in_train(built: Dataset) -> None:
    weak = {content(f"旧 {number}") for number in range(6)}
    found = {one for one, why in zip(built.train.contents, built.train.shown, strict=True) if why == WEAK}
    assert found == weak
    assert {float(built.train.weights[built.train.contents.index(one)]) for one in weak} == {0.25}
    assert weak.isdisjoint(built.validation.contents)


def test_whatever_is_left_out_is_counted(shop: AnsweredShop, built: Dataset) -> None:
    assert built.excluded == {
        "no_label": 1,
        "unknown_label": 1,
        "label_switched_off": 1,
        "not_in_catalog": 2,  # and a bad case, of which only the bad cases' own store has an embedding
        "held_out": 5,
        "copies_disagree": 2,
        "weak_against_answer": 1,
    }
    frozen = snapshot.freeze(shop.settings)
    parts = len(built.train) + len(built.validation) + len(built.audit)
    assert parts + sum(built.excluded.values()) == frozen.answers + frozen.weak


def test_contradicting_copies_are_listed(built: Dataset) -> None:
    (conflict,) = built.conflicts
    assert conflict.kind == "copies"
    assert set(conflict.contents) == {content("打架"), content("普通 100")}
    assert len({said.label_id for said in conflict.said}) == 2
    assert {said.by for said in conflict.said} == {"小王"}


def test_a_sixth_of_the_groups_of_every_label_validates(built: Dataset) -> None:
    every = Counter(built.train.targets[built.train.weights == 1].tolist()) + Counter(built.validation.targets.tolist())
    validating = Counter(built.validation.targets.tolist())
    assert set(every) == {0, 1, 2}
    assert all(0.1 < validating[target] / every[target] < 0.25 for target in every)


def test_the_same_order_gives_the_same_dataset_and_another_seed_another_split(
    shop: AnsweredShop, built: Dataset
) -> None:
    again, other = (dataset.build(shop.settings, shop.order(seed)) for seed in (0, 1))
    assert again.sha256 == built.sha256
    assert other.sha256 != built.sha256
    assert other.validation.contents != built.validation.contents
    everything = {*built.train.contents, *built.validation.contents}
    assert {*other.train.contents, *other.validation.contents} == everything


def test_what_was_saved_is_found_again(shop: AnsweredShop, built: Dataset) -> None:
    dataset.save(shop.store, "trainings/练习/dataset", built)
    loaded = dataset.load(shop.store, "trainings/练习/dataset")
    assert (loaded.sha256, loaded.conflicts, loaded.excluded) == (built.sha256, built.conflicts, built.excluded)
    for part in ("train", "validation", "audit"):
        for name, value in vars(getattr(built, part)).items():
            np.testing.assert_array_equal(getattr(getattr(loaded, part), name), value)
    np.testing.assert_array_equal(loaded.rehearsal, built.rehearsal)
    table = shop.store.read_bytes("trainings/练习/dataset/conflicts.csv").decode("utf-8-sig")
    assert "几乎相同的图，标签不同" in table
    assert content("打架") in table


def test_a_damaged_dataset_is_refused(shop: AnsweredShop, built: Dataset) -> None:
    dataset.save(shop.store, "trainings/坏/dataset", built)
    value = shop.store.read_json("trainings/坏/dataset/dataset.json")
    value["train.contents"][0] = content("别的")
    shop.store.write_json("trainings/坏/dataset/dataset.json", value)
    with pytest.raises(WwtsError, match="its SHA-256 differs"):
        dataset.load(shop.store, "trainings/坏/dataset")
    shop.store.write_bytes("trainings/坏/dataset/dataset.safetensors", b"\x08")
    with pytest.raises(WwtsError, match="is damaged"):
        dataset.load(shop.store, "trainings/坏/dataset")
    with pytest.raises(FileNotFoundError):
        dataset.load(shop.store, "trainings/没有/dataset")


# ------------------------------------------------------------------ smaller shops


def test_a_label_with_few_answers_is_wholly_in_train(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    rare, common = many(5, "少", 0), many(12, "多", 100)
    shop.embed(rare | common)
    shop.answers(dict.fromkeys(rare, LABELS[0]) | dict.fromkeys(common, LABELS[1]))
    built = dataset.build(shop.settings, shop.order())
    assert set(rare) < set(built.train.contents)
    assert len(built.validation) == 2
    assert built.label_ids == tuple(sorted(LABELS[:2]))


def test_answers_too_few_to_validate_all_train(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given = many(3, "少", 0)
    shop.embed(given)
    shop.answers(labelled(given))
    built = dataset.build(shop.settings, shop.order())
    assert sorted(built.train.contents) == sorted(given)
    assert (len(built.validation), len(built.audit), len(built.rehearsal)) == (0, 0, 0)


def test_an_old_tag_is_no_reason_not_to_rehearse(tmp_path: Path) -> None:
    """Of a shop whose whole catalog has old tags, nothing would be left."""
    shop = AnsweredShop(tmp_path)
    given, old = many(3, "新", 0), many(5, "旧", 100)
    shop.embed(given | old)
    shop.answers(labelled(given))
    shop.answers(labelled(old), weak=True)
    built = dataset.build(shop.settings, shop.order())
    assert set(built.rehearsal_contents) == set(old) < set(built.train.contents)


def test_old_tags_without_weight_are_left_out(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path, {"weak_weight": 0})
    given, old = many(3, "新", 0), many(5, "旧", 100)
    shop.embed(given | old)
    shop.answers(labelled(given))
    shop.answers(labelled(old), weak=True)
    built = dataset.build(shop.settings, shop.order())
    assert built.excluded == {"weak_ignored": 5}
    assert sorted(built.train.contents) == sorted(given)


def test_of_very_many_old_tags_some_of_each_label_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_tags, "MOST", 12)
    shop = AnsweredShop(tmp_path)
    given, rare, merged, common = many(2, "新", 0), many(3, "少", 100), many(20, "改名", 200), many(40, "多", 300)
    shop.embed(given | rare | merged | common)
    assert shop.names
    old_name = Label("shop:旧名", "旧名", enabled=False, maps_to=LABELS[2])
    taxonomy.edit(shop.store, "小王", {old_name.label_id: old_name})
    shop.answers(dict.fromkeys(given, LABELS[0]))
    shop.answers(dict.fromkeys(common, LABELS[2]) | dict.fromkeys(merged, old_name.label_id), weak=True)
    shop.answers(dict.fromkeys(rare, LABELS[1]), weak=True)
    built = dataset.build(shop.settings, shop.order())
    assert built.excluded == {"weak_beyond_limit": 63 - 12}
    assert set(given) <= set(built.train.contents)
    # What was merged is one label: three of the rare one, and of the other what is left.
    assert len(set(rare) & set(built.train.contents)) == 3
    assert len((set(common) | set(merged)) & set(built.train.contents)) == 9
    assert dataset.build(shop.settings, shop.order()).sha256 == built.sha256
    # By hash, not by place: of what comes later as much gets in, and most of the others stay.
    more = many(40, "后来", 400)
    shop.embed(more, name="20260302-000000000002")
    shop.answers(dict.fromkeys(more, LABELS[2]), weak=True)
    later = set(dataset.build(shop.settings, shop.order()).train.contents)
    assert 0 < len(later & set(more)) < 9


def test_a_copy_with_an_old_tag_never_leaks_into_train(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given = many(30, "新", 0)
    old = {content(f"旧副本 {place}"): copy_of(one, place) for place, one in enumerate(given.values())}
    shop.embed(given | old)
    shop.answers(dict.fromkeys(given, LABELS[0]))
    shop.answers(dict.fromkeys(old, LABELS[0]), weak=True)
    built = dataset.build(shop.settings, shop.order())
    assert len(built.validation) == 5
    assert built.excluded == {"weak_copy_of_validation": 5}
    assert cosines(built.validation.vectors, built.train.vectors).max() < neardup.SAME


def test_what_is_rehearsed_is_no_copy_of_validation(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given = many(30, "新", 0)
    copies = {content(f"未答副本 {place}"): copy_of(one, place) for place, one in enumerate(given.values())}
    shop.embed(given | copies)
    shop.answers(dict.fromkeys(given, LABELS[0]))
    built = dataset.build(shop.settings, shop.order())
    assert (len(built.validation), len(built.rehearsal)) == (5, 25)
    assert cosines(built.rehearsal, built.validation.vectors).max() < neardup.SAME


def test_a_label_that_only_the_audit_has_is_not_learned(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given, audited = many(3, "新", 0), {content("审", audit=True): vector(9)}
    shop.embed(given | audited)
    shop.answers(dict.fromkeys(given, LABELS[0]) | dict.fromkeys(audited, LABELS[1]))
    built = dataset.build(shop.settings, shop.order())
    assert (built.label_ids, built.excluded) == ((LABELS[0],), {"audit_only_label": 1})


def test_a_label_switched_on_again_is_learned(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given = many(2, "新", 0)
    shop.embed(given)
    shop.answers(dict(zip(given, (LABELS[0], OFF), strict=True)))
    order = shop.order()
    assert dataset.build(shop.settings, order).label_ids == (LABELS[0],)
    taxonomy.edit(shop.store, "小王", {OFF: replace(shop.names.by_id[OFF], enabled=True)})
    assert set(dataset.build(shop.settings, order).label_ids) == {LABELS[0], OFF}


def test_an_order_keeps_the_taxonomy_that_it_names(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given = many(2, "新", 0)
    shop.embed(given)
    shop.answers(dict(zip(given, (LABELS[0], OFF), strict=True)))
    order = replace(shop.order(), names=shop.names)
    built = dataset.build(shop.settings, order)
    taxonomy.edit(shop.store, "小王", {OFF: replace(shop.names.by_id[OFF], enabled=True)})
    assert dataset.build(shop.settings, order).sha256 == built.sha256


def test_answers_that_come_later_are_not_in_it(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given = many(6, "新", 0)
    shop.embed(given)
    first, *others = given
    number = shop.answer(first, LABELS[0])
    shop.answers(dict.fromkeys(others, LABELS[1]))
    before = shop.order()
    built = dataset.build(shop.settings, before)
    shop.answer(first, None, kind="retract", retracts=number)
    assert dataset.build(shop.settings, before).sha256 == built.sha256
    assert first not in dataset.build(shop.settings, shop.order()).train.contents


def test_answers_of_nothing_to_learn_say_so(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    given = many(2, "新", 0)
    shop.embed(given)
    shop.answers(dict.fromkeys(given, OFF))
    with pytest.raises(WwtsError, match=r'Nothing can be learned from the answers a000002-.*"label_switched_off": 2'):
        dataset.build(shop.settings, shop.order())


def test_a_base_of_another_backbone_is_refused(tmp_path: Path) -> None:
    shop = AnsweredShop(tmp_path)
    order = Order(shop.order().snapshot, replace(BASE, backbone_sha256="cd" * 32), BACKBONE)
    with pytest.raises(WwtsError, match="Backbone babababababab is not that of wwts-tagger version 1"):
        dataset.build(shop.settings, order)


# ------------------------------------------------------------------ pictures

_SKIMAGE = Path(skimage.__file__).parent / "data"
#: Unlike each other and unlike every bad case of the starter set.
ORDINARY = ("brick.png", "grass.png", "moon.png", "page.png", "cell.png")


def photographs(folder: Path) -> dict[str, str]:
    """Files, none of them in the audit; content by name."""
    folder.mkdir()
    found = {}
    for name in ORDINARY:
        with Image.open(_SKIMAGE / name) as opened:
            picture = opened.convert("RGB")
        for number in range(1000):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=90, comment=str(number))
            found[f"货架 {name}.jpg"] = images.content_sha256(file.getvalue())
            if not holdout.in_audit(found[f"货架 {name}.jpg"], 0.05):
                break
        (folder / f"货架 {name}.jpg").write_bytes(file.getvalue())
    return found


def test_what_the_store_lacks_is_embedded_once_and_nothing_else_is_read(
    tmp_path: Path, embedded_tagger: Tagger
) -> None:
    contents = photographs(tmp_path / "货架")
    brick, grass, moon, page, cell = (tmp_path / "货架" / name for name in contents)
    # A second image with the same bytes, which stays where it is when the first one goes.
    shutil.copyfile(brick, brick.with_name("另一处.jpg"))
    shop = Shop(tmp_path / "货架", tmp_path / "store", embedded_tagger)
    shard = Shard(shop.plan(), 0)
    tagging.tag(shop.store, shop.settings(), shard, shop.machine)
    night = shop.embeddings(shard).to_pylist()
    for key in shop.store.list("embeddings", ".parquet"):
        shop.store.delete(key)
    brick.unlink()
    page.unlink()
    cell.write_bytes(moon.read_bytes())
    answered = AnsweredShop(tmp_path, {"device": "cpu"}, name="store")
    taxonomy.ensure(shop.store, ())
    answered.answers(dict.fromkeys(contents.values(), "imagenet:n07730033"))

    code = registration.code_sha256()
    base = ModelVersion("wwts-tagger", "", embedded_tagger.sha256, embedded_tagger.backbone_sha256, code)
    order = Order(snapshot.freeze(answered.settings).name, base, base.backbone_sha256)
    built = dataset.build(answered.settings, order, embedded_tagger)

    kept = {contents[path.name] for path in (brick, grass, moon)}
    assert set(built.train.contents) == kept
    assert built.excluded == {"changed": 1, "unreadable_uri": 1}
    by_content = {row["content_sha256"]: row["embedding"] for row in night}
    for one, row in zip(built.train.contents, built.train.vectors, strict=True):
        assert row.tobytes() == by_content[one]
    # The bad cases were embedded by the code packed with the base, for all trainings to come.
    ever = badcases.current(shop.store)
    assert ever is not None
    assert set(badcases.embeddings(shop.store, base.backbone_sha256, code)[0]) == {
        case.content_sha256 for case in ever.cases
    }
    shutil.rmtree(tmp_path / "货架")
    assert dataset.build(answered.settings, order, embedded_tagger).sha256 == built.sha256


def test_copies_of_the_audit_are_known_to_a_backbone_that_never_saw_it(tmp_path: Path, embedded_tagger: Tagger) -> None:
    """A picture of the audit that nobody answered has no embedding yet, and its answered copy must not be learned."""
    contents = photographs(tmp_path / "货架")
    with Image.open(_SKIMAGE / "brick.png") as opened:
        original = opened.convert("RGB")
    for number in range(1000):
        file = io.BytesIO()
        original.save(file, "JPEG", quality=85, comment=f"审计 {number}")
        audited = images.content_sha256(file.getvalue())
        if holdout.in_audit(audited, 0.05):
            break
    (tmp_path / "货架" / "审计.jpg").write_bytes(file.getvalue())
    shop = Shop(tmp_path / "货架", tmp_path / "store", embedded_tagger)
    shard = Shard(shop.plan(), 0)
    tagging.tag(shop.store, shop.settings(), shard, shop.machine)
    publish.publish(shop.store, shop.settings())
    for key in shop.store.list("embeddings", ".parquet"):
        shop.store.delete(key)
    answered = AnsweredShop(tmp_path, {"device": "cpu"}, name="store")
    taxonomy.ensure(shop.store, ())
    answered.answers(dict.fromkeys(contents.values(), "imagenet:n07730033"))

    code = registration.code_sha256()
    base = ModelVersion("wwts-tagger", "", embedded_tagger.sha256, embedded_tagger.backbone_sha256, code)
    built = dataset.build(
        answered.settings, Order(snapshot.freeze(answered.settings).name, base, base.backbone_sha256), embedded_tagger
    )
    copied = contents["货架 brick.png.jpg"]
    assert set(built.train.contents) == set(contents.values()) - {copied}
    assert built.excluded == {"held_out": 1}
    assert audited not in built.rehearsal_contents


def test_what_is_published_is_read_in_batches(tmp_path: Path) -> None:
    shop, given = AnsweredShop(tmp_path), many(3, "新", 0)
    every = (hashlib.sha256(f"目录 {number}".encode()).hexdigest() for number in range(60_000))
    # Of the audit's pictures one would be read.
    listed = [one for one in every if not holdout.in_audit(one, 0.05)]
    shop.embed(given)
    shop.answers(labelled(given))
    order = shop.order()
    fields = [pa.field(field.name, field.type) for field in PUBLISHED]
    columns = {"content_sha256": pa.array(listed)}
    nothing = {field.name: pa.nulls(len(listed), field.type) for field in fields}
    shop.store.write_table("published/s1/part-0.parquet", pa.table(nothing | columns, pa.schema(fields)))
    pointer = {"snapshot": "s1", "parts": ["published/s1/part-0.parquet"], "rows": len(listed), "release": "live"}
    assert shop.store.replace_pointer("published/current.json", pointer, None)
    before = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counted)
    try:
        built = dataset.build(shop.settings, order)
    finally:
        pa.set_memory_pool(before)
    assert len(built.train) == 3
    assert counted.max_memory() < 64 * len(listed) / 2


# ------------------------------------------------------------------ the sample of the catalog


@limits(max_examples=25, deadline=None)
@given(count=st.integers(0, 60), most=st.integers(0, 30), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_the_rehearsal_does_not_depend_on_parts(
    tmp_path_factory: pytest.TempPathFactory, count: int, most: int, cuts: list[int]
) -> None:
    shop = AnsweredShop(tmp_path_factory.mktemp("catalog"), {"rehearsal": most})
    vectors = many(count, "目录", 0)
    contents = list(vectors)
    for shard, (start, end) in enumerate(zip([0, *sorted(cuts)], [*sorted(cuts), count], strict=True)):
        shop.embed({one: vectors[one] for one in contents[start:end]}, shard=shard)
    # In a later part again, with another embedding, which must not count.
    shop.embed({one: vector(10**5) for one in contents[:10]}, name="20270101-000000000001")
    answered = set(contents[::3])
    found = CatalogSample.of(shop.store, shop.settings, BACKBONE, answered)

    def rank(one: str) -> bytes:
        return hashlib.sha256(b"wwts rehearsal 1\0" + bytes.fromhex(one)).digest()

    expected = sorted(set(contents) - answered, key=rank)[:most]
    assert list(found.rehearsal_contents) == expected
    assert all(np.array_equal(row, vectors[one]) for one, row in zip(expected, found.rehearsal, strict=True))


def test_excluded_is_plain_json(built: Dataset) -> None:
    assert json.loads(json.dumps(built.excluded)) == built.excluded
