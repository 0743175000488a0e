"""Changes to the taxonomy: what each does, what is refused, who made which version, and spreadsheets of labels."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import item_table
import openpyxl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from wwts_ops import database, events, taxonomy
from wwts_ops.errors import UnavailableError
from wwts_ops.review import items, people
from wwts_ops.review.items import Filters
from wwts_ops.schemas import TAXONOMY
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Label, Taxonomy
from wwts_ops.taxonomy_changes import (
    Add,
    Change,
    Difference,
    Enable,
    FaultError,
    Force,
    ForceCategory,
    Map,
    Merge,
    Move,
    MoveCategory,
    Rename,
    Synonyms,
    apply,
    bounds,
    by,
    check,
    diff,
    edited,
    history,
    labelsheet,
    new_id,
    preview,
    write,
)

APPLE = Label("t:apple", "苹果", "apple", "红富士|平果", "生鲜 > 水果 > 仁果")
PEAR = Label("t:pear", "梨", "pear", "雪梨", "生鲜 > 水果 > 仁果")
JUICE = Label("t:juice", "苹果汁", category_path="饮料 > 果汁")
WINE = Label("t:wine", "红酒", "wine", "葡萄酒", "饮料 > 酒类")
KNIFE = Label("t:knife", "水果刀", category_path="厨具", forced_review=True)
GONE = Label("t:gone", "停售品", category_path="饮料 > 果汁", enabled=False)
NAMES = Taxonomy("t000001-x", (APPLE, PEAR, JUICE, WINE, KNIFE, GONE), ("饮料 > 酒类",))


def done(*changes: Change, names: Taxonomy = NAMES) -> Taxonomy:
    after = edited(names, changes)
    check(names, after)
    return after


def changed(after: Taxonomy, before: Taxonomy = NAMES) -> dict[str, Label]:
    """The labels that are other than before."""
    return {one.label_id: one for one in after.labels if before.by_id.get(one.label_id) != one}


# ------------------------------------------------------------------ what each does


def test_a_label_is_added_at_the_end_with_an_id_of_its_own() -> None:
    after = done(Add(label_zh=" 桃🍑 ", category_path="生鲜>水果 ＞ 核果", synonyms_zh="水蜜桃｜桃🍑| 水蜜桃"))
    [made] = changed(after).values()
    assert made == Label(new_id(NAMES, "桃🍑"), "桃🍑", "", "水蜜桃", "生鲜 > 水果 > 核果")
    assert after.labels[-1] is made
    again = done(Add(label_zh="桃🍑", category_path="生鲜 > 干果"), names=after)
    assert len({one.label_id for one in again.labels}) == len(NAMES.labels) + 2
    assert done(Add(label_id="my:1", label_zh="桃", category_path="生鲜", forced_review=True)).forced_reason("my:1")


def test_a_renamed_label_keeps_its_id_and_what_was_not_named() -> None:
    after = done(Rename(label_id="t:apple", label_zh="大苹果"))
    assert changed(after) == {"t:apple": replace(APPLE, label_zh="大苹果")}
    assert [one.label_id for one in after.labels] == [one.label_id for one in NAMES.labels]
    assert changed(done(Rename(label_id="t:apple", label_en="Malus"))) == {"t:apple": replace(APPLE, label_en="Malus")}


def test_synonyms_are_replaced() -> None:
    after = done(Synonyms(label_id="t:apple", synonyms_zh="蛇果| |苹果"))
    assert changed(after) == {"t:apple": replace(APPLE, synonyms_zh="蛇果")}
    assert changed(done(Synonyms(label_id="t:apple", synonyms_zh=""))) == {"t:apple": replace(APPLE, synonyms_zh="")}


def test_labels_move() -> None:
    after = done(Move(label_ids=("t:apple", "t:juice"), category_path="甲"))
    assert {one.label_id: one.category_path for one in changed(after).values()} == {"t:apple": "甲", "t:juice": "甲"}


def test_a_category_moves_with_all_below_it_and_stays_forced() -> None:
    after = done(MoveCategory(category_path="饮料", to="食品 > 饮品"))
    assert {one.label_id: one.category_path for one in changed(after).values()} == {
        "t:juice": "食品 > 饮品 > 果汁",
        "t:wine": "食品 > 饮品 > 酒类",
        "t:gone": "食品 > 饮品 > 果汁",
    }
    assert after.forced_categories == ("食品 > 饮品 > 酒类",)
    assert after.forced_reason("t:wine") == "forced_category:食品 > 饮品 > 酒类"


def test_a_category_of_the_same_first_characters_stays() -> None:
    names = replace(NAMES, labels=(*NAMES.labels, Label("t:tea", "茶具", category_path="饮料器具")))
    assert done(MoveCategory(category_path="饮料", to="甲"), names=names).by_id["t:tea"].category_path == "饮料器具"


def test_a_merged_label_is_off_and_its_names_are_synonyms_of_the_other() -> None:
    after = done(Merge(label_ids=("t:pear",), into="t:apple"))
    assert changed(after) == {
        "t:pear": replace(PEAR, enabled=False, maps_to="t:apple"),
        "t:apple": replace(APPLE, synonyms_zh="红富士|平果|梨|雪梨"),
    }
    assert after.given("t:pear") == after.given("t:apple") == "t:apple"


def test_what_mapped_to_a_merged_label_maps_to_the_other() -> None:
    first = done(Merge(label_ids=("t:pear",), into="t:apple"))
    after = done(Merge(label_ids=("t:apple",), into="t:juice"), names=first)
    assert {after.given(label_id) for label_id in ("t:pear", "t:apple", "t:juice")} == {"t:juice"}
    assert after.by_id["t:juice"].synonyms_zh == "苹果|红富士|平果|梨|雪梨"


def test_several_labels_merge_at_once() -> None:
    after = done(Merge(label_ids=("t:pear", "t:juice", "t:pear"), into="t:apple"))
    assert after.by_id["t:apple"].synonyms_zh == "红富士|平果|梨|雪梨|苹果汁"
    assert [after.given(label_id) for label_id in ("t:pear", "t:juice")] == ["t:apple", "t:apple"]


def test_a_label_maps_and_no_longer() -> None:
    after = done(Map(label_id="t:pear", maps_to="t:apple"))
    assert changed(after) == {"t:pear": replace(PEAR, maps_to="t:apple")}
    assert done(Map(label_id="t:pear", maps_to=""), names=after) == NAMES


@pytest.mark.parametrize(
    "change", [Map(label_id="t:wine", maps_to="t:juice"), Merge(label_ids=("t:knife",), into="t:juice")]
)
def test_what_a_person_always_looked_at_is_not_let_through_by_another_name(change: Change) -> None:
    assert NAMES.forced_reason("t:juice") is None
    assert done(change).forced_reason("t:juice") == "forced_label"


FORCED_JUICE = Difference("t:juice", "苹果汁", "forced_by", "", "forced_category:饮料 > 酒类")


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_a_sheet_that_maps_a_forced_label_forces_the_other(enabled: str) -> None:
    sheet = f"{HEADER}t:wine,红酒,wine,葡萄酒,饮料 > 酒类,,{enabled},t:juice\n"
    after = labelsheet.edit(sheet.encode(), "a.csv")(NAMES)
    check(NAMES, after)
    assert after.forced_reason("t:juice") == "forced_category:饮料 > 酒类"
    assert FORCED_JUICE in diff(NAMES, after)


def test_what_is_forced_after_it_was_mapped_forces_the_other() -> None:
    free = done(ForceCategory(category_path="饮料 > 酒类", forced_review=False))
    mapped = done(Map(label_id="t:wine", maps_to="t:juice"), names=free)
    assert mapped.forced_reason("t:juice") is None
    after = done(ForceCategory(category_path="饮料 > 酒类", forced_review=True), names=mapped)
    assert FORCED_JUICE in diff(mapped, after)
    own = done(Force(label_ids=("t:wine",), forced_review=True), names=mapped)
    assert own.forced_reason("t:juice") == "forced_label"
    assert own.forced_reason("t:apple") is None
    assert done(Map(label_id="t:wine", maps_to=""), names=own).forced_reason("t:juice") is None


def test_a_label_that_stands_for_a_forced_one_is_not_let_through() -> None:
    mapped = done(Map(label_id="t:wine", maps_to="t:juice"))
    lifted = done(Force(label_ids=("t:juice",), forced_review=False), names=mapped)
    assert lifted.forced_reason("t:juice") == "forced_category:饮料 > 酒类"


def test_labels_of_which_one_maps_to_the_other_merge() -> None:
    first = done(Map(label_id="t:wine", maps_to="t:pear"))
    after = done(Merge(label_ids=("t:wine", "t:pear"), into="t:juice"), names=first)
    assert changed(after) == {
        "t:wine": replace(WINE, enabled=False, maps_to="t:juice"),
        "t:pear": replace(PEAR, enabled=False, maps_to="t:juice", forced_review=True),
        "t:juice": replace(JUICE, synonyms_zh="红酒|葡萄酒|梨|雪梨", forced_review=True),
    }


def test_labels_and_categories_are_forced_and_no_longer() -> None:
    after = done(
        Force(label_ids=("t:apple", "t:knife"), forced_review=False), Enable(label_ids=("t:gone",), enabled=True)
    )
    assert changed(after) == {"t:knife": replace(KNIFE, forced_review=False), "t:gone": replace(GONE, enabled=True)}
    after = done(ForceCategory(category_path="生鲜>水果", forced_review=True))
    assert after.forced_categories == ("饮料 > 酒类", "生鲜 > 水果")
    assert after.forced_reason("t:apple") == "forced_category:生鲜 > 水果"
    assert done(ForceCategory(category_path="饮料 > 酒类", forced_review=False)).forced_reason("t:wine") is None


def test_changes_are_made_one_after_the_other() -> None:
    """So that two labels can exchange their names."""
    swap = [Rename(label_id="t:apple", label_zh="梨"), Rename(label_id="t:pear", label_zh="苹果")]
    assert {one.label_id: one.label_zh for one in changed(done(*swap)).values()} == {"t:apple": "梨", "t:pear": "苹果"}


def test_changes_come_as_json() -> None:
    reader: TypeAdapter[Any] = TypeAdapter(tuple[Change, ...])
    text = (
        '[{"op": "merge", "label_ids": ["t:pear"], "into": "t:apple"}, {"op": "map", "label_id": "t:a", "maps_to": ""}]'
    )
    assert reader.validate_json(text) == (Merge(label_ids=("t:pear",), into="t:apple"), Map(label_id="t:a", maps_to=""))
    for wrong in ('[{"op": "drop"}]', '[{"op": "map", "label_id": "a"}]', '[{"op": "move", "label_ids": []}]'):
        with pytest.raises(ValueError, match="validation error"):
            reader.validate_json(wrong)


# ------------------------------------------------------------------ what is refused


REFUSED: list[tuple[str, Sequence[Change], str, str]] = [
    ("unknown_label", [Rename(label_id="t:x", label_zh="甲")], "There is no label t:x", "没有编号为 t:x 的标签"),
    ("unknown_label", [Map(label_id="t:apple", maps_to="t:x")], "no label t:x", "t:x"),
    ("unknown_category", [MoveCategory(category_path="饮", to="甲")], "No label stands in category 饮", "没有类目“饮”"),
    ("unknown_category", [ForceCategory(category_path="乙", forced_review=True)], "category 乙", "没有类目“乙”"),
    ("twice", [Add(label_id="t:apple", label_zh="甲", category_path="甲")], "t:apple is taken", "已被使用"),
    ("bad_id", [Add(label_id="a b", label_zh="甲", category_path="甲")], "'a b' will not do", "“a b”不可用"),
    ("no_name", [Rename(label_id="t:apple", label_zh=" ")], "has no Chinese name", "没有中文名"),
    ("bad_text", [Rename(label_id="t:apple", label_zh="苹\n果")], "label_zh holds a control", "中文名含有控制字符"),
    ("bad_text", [Rename(label_id="t:apple", label_zh="果" * 101)], "longer than 100", "超过 100 个字"),
    ("bad_text", [Synonyms(label_id="t:apple", synonyms_zh="甲\x00乙")], "synonyms_zh", "同义词"),
    ("bad_path", [Move(label_ids=("t:apple",), category_path="甲 > 乙 > 丙 > 丁")], "one to three levels", "一到三级"),
    ("bad_path", [Move(label_ids=("t:apple",), category_path="甲 > > 丙")], "none empty", "每级都不能为空"),
    ("bad_path", [MoveCategory(category_path="生鲜", to="甲 > 乙")], "甲 > 乙 > 水果 > 仁果", "甲 > 乙 > 水果 > 仁果"),
    ("bad_path", [MoveCategory(category_path="生鲜", to=" ")], "' '", "写法不对"),
    ("below_itself", [MoveCategory(category_path="饮料", to="饮料 > 甲")], "below itself", "不能移到它自己下面"),
    ("no_category", [Move(label_ids=("t:apple",), category_path="")], "in no category", "不属于任何类目"),
    ("no_category", [Add(label_zh="甲", category_path=" ")], "甲 shop:", "不属于任何类目"),
    ("duplicate", [Rename(label_id="t:pear", label_zh="苹果")], "苹果 twice (t:apple, t:pear)", "重名标签“苹果”"),
    ("duplicate", [Add(label_zh="Ｗine", category_path="丁"), Add(label_zh="wine", category_path="丁")], "丁", "“丁”"),
    (
        "duplicate",
        [Enable(label_ids=("t:gone",), enabled=True), Rename(label_id="t:juice", label_zh="停售品")],
        "twice",
        "重名",
    ),
    ("maps_to_itself", [Map(label_id="t:apple", maps_to="t:apple")], "cannot map to itself", "它自己"),
    ("maps_to_itself", [Merge(label_ids=("t:pear", "t:apple"), into="t:apple")], "itself", "它自己"),
    ("maps_to_off", [Map(label_id="t:apple", maps_to="t:gone")], "停售品 t:gone, which is switched off", "后者已停用"),
    (
        "maps_to_off",
        [Map(label_id="t:pear", maps_to="t:apple"), Enable(label_ids=("t:apple",), enabled=False)],
        "梨 t:pear maps to 苹果 t:apple",
        "“梨 t:pear”映射到“苹果 t:apple”",
    ),
    (
        "maps_to_mapped",
        [Map(label_id="t:pear", maps_to="t:apple"), Map(label_id="t:juice", maps_to="t:pear")],
        "which itself maps to another",
        "直接映射到最终的标签",
    ),
    (
        "cycle",
        [Map(label_id="t:pear", maps_to="t:apple"), Map(label_id="t:apple", maps_to="t:pear")],
        "in a circle",
        "成了循环",
    ),
    (
        "cycle",
        [Merge(label_ids=("t:pear",), into="t:apple"), Merge(label_ids=("t:apple",), into="t:pear")],
        "in a circle",
        "成了循环",
    ),
]


@pytest.mark.parametrize(("code", "changes", "english", "chinese"), REFUSED)
def test_what_a_taxonomy_must_not_hold_is_refused(
    code: str, changes: Sequence[Change], english: str, chinese: str
) -> None:
    with pytest.raises(FaultError) as caught:
        done(*changes)
    assert caught.value.code == code
    assert english in caught.value.english
    assert chinese in str(caught.value)


def test_what_was_there_before_is_let_be() -> None:
    """A store of long ago may hold what would be refused now; all else can still be changed."""
    old = (
        Label("t:1", "杯子", category_path="家居"),
        Label("t:2", "杯子", category_path="家居"),
        Label("t:3", "没有类目"),
        Label("t:4", "深", category_path="一 > 二 > 三 > 四"),
        Label("t:5", "甲", category_path="乙", maps_to="t:nowhere"),
    )
    names = Taxonomy("t1", old)
    assert done(Rename(label_id="t:3", label_zh="还是没有"), names=names).by_id["t:3"].label_zh == "还是没有"
    assert done(Move(label_ids=("t:2",), category_path="餐具"), names=names)
    assert done(Enable(label_ids=("t:1",), enabled=False), names=names)
    with pytest.raises(FaultError, match="重名标签“杯子”"):
        done(Add(label_zh="杯子", category_path="家居"), names=names)
    with pytest.raises(FaultError, match="不属于任何类目"):
        done(Add(label_zh="又一个", category_path=""), names=names)


def test_a_name_may_stand_in_two_categories_and_be_that_of_a_label_that_is_off() -> None:
    assert done(Add(label_zh="苹果", category_path="数码 > 手机"))
    assert done(Add(label_zh="停售品", category_path="饮料 > 果汁"))
    merged = done(Add(label_id="t:2", label_zh="苹果", category_path="甲"), Merge(label_ids=("t:2",), into="t:apple"))
    assert done(Move(label_ids=("t:2",), category_path=APPLE.category_path), names=merged)


def test_the_embedded_labels_have_no_fault() -> None:
    check(Taxonomy("nothing", ()), taxonomy.embedded(Settings.model_fields["forced_review"].default))


# ------------------------------------------------------------------ what changed


def test_a_diff_names_every_field_that_changed() -> None:
    after = done(
        Rename(label_id="t:apple", label_zh="大苹果"),
        Merge(label_ids=("t:knife",), into="t:pear"),
        Add(label_id="t:new", label_zh="新", category_path="甲"),
        ForceCategory(category_path="饮料 > 酒类", forced_review=False),
    )
    assert diff(NAMES, after) == [
        Difference("t:apple", "大苹果", "label_zh", "苹果", "大苹果"),
        Difference("t:pear", "梨", "synonyms_zh", "雪梨", "雪梨|水果刀"),
        Difference("t:pear", "梨", "forced_review", "false", "true"),
        Difference("t:pear", "梨", "forced_by", "", "forced_label"),
        Difference("t:wine", "红酒", "forced_by", "forced_category:饮料 > 酒类", ""),
        Difference("t:knife", "水果刀", "enabled", "true", "false"),
        Difference("t:knife", "水果刀", "maps_to", "", "t:pear"),
        Difference("t:new", "新", "added", "", "甲"),
        Difference("", "", "forced_category", "饮料 > 酒类", ""),
    ]
    assert [(row.label_id, row.field) for row in diff(after, NAMES)][-2:] == [
        ("t:new", "removed"),
        ("", "forced_category"),
    ]
    assert diff(NAMES, NAMES) == []


def test_a_move_out_of_a_forced_category_is_told() -> None:
    rows = diff(NAMES, done(Move(label_ids=("t:wine",), category_path="食品")))
    assert [(row.field, row.after) for row in rows] == [("category_path", "食品"), ("forced_by", "")]


@pytest.mark.parametrize("hidden", ["\u200b", "\ufeff", "\u00ad", "\u202e", "\u200d"])
def test_what_nobody_sees_makes_no_other_name(hidden: str) -> None:
    for name in (f"梨{hidden}", f"{hidden} 梨"):
        with pytest.raises(FaultError, match="重名"):
            done(Add(label_zh=name, category_path=f"生鲜{hidden} > 水果 > 仁果"))
    stored = replace(PEAR, label_id="t:again", label_zh=f"梨{hidden}")
    with pytest.raises(FaultError, match="重名"):
        check(NAMES, replace(NAMES, labels=(*NAMES.labels, stored)))


def test_emoji_stay_whole() -> None:
    (label,) = changed(done(Rename(label_id="t:pear", label_zh="👨‍👩‍👧套餐❤️"))).values()
    assert label.label_zh == "👨‍👩‍👧套餐❤️"


# ------------------------------------------------------------------ what waits


def waiting(shop: Settings, *labels: Label) -> None:
    """An item of each of ``labels``, by number from 1."""
    names = [{name: getattr(one, name) for name in ("label_id", "label_zh", "category_path")} for one in labels]
    item_table.load(shop, *(item_table.row(number, **one) for number, one in enumerate(names, 1)))


def test_what_waits_goes_where_its_label_goes(database_url: str, make_settings: Callable[..., Settings]) -> None:
    shop = make_settings(database_url=database_url)
    store = Store.of(shop)
    taxonomy.put(store, NAMES, "小李", None)
    waiting(shop, APPLE, JUICE, WINE, Label("t:unknown", "没有的", category_path="生鲜"), PEAR)
    item_table.change(shop, 5, state="done")
    changes = [
        MoveCategory(category_path="生鲜", to="鲜食"),
        Rename(label_id="t:apple", label_zh="大苹果"),
        Map(label_id="t:wine", maps_to="t:juice"),
        Move(label_ids=("t:pear",), category_path="鲜食 > 梨"),
    ]
    apply(store, shop, "小王", None, changes)
    found = [item_table.item(shop, number) for number in range(1, 6)]
    assert [(one.label_id, one.label_zh, one.category_path, one.revision) for one in found] == [
        ("t:apple", "大苹果", "鲜食 > 水果 > 仁果", 1),
        ("t:juice", "苹果汁", "饮料 > 果汁", 1),
        ("t:wine", "红酒", "饮料 > 果汁", 1),
        ("t:unknown", "没有的", "生鲜", 1),
        ("t:pear", "梨", "鲜食 > 梨", 1),
    ]
    assert items.left(shop, "小李", Filters(categories=("鲜食",))) == 1
    assert ("鲜食", 1) in items.facets(shop, "小李", Filters())["category"]


@pytest.mark.parametrize(
    ("chosen", "change", "then"),
    [
        (("生鲜", "厨具"), MoveCategory(category_path="生鲜", to="鲜食"), ("鲜食", "厨具")),
        (("生鲜 > 水果",), MoveCategory(category_path="生鲜", to="鲜食"), ("鲜食 > 水果",)),
        (("生鲜", "饮料"), MoveCategory(category_path="生鲜", to="饮料"), ("饮料",)),
        # Some of it stayed.
        (("饮料",), Move(label_ids=("t:wine",), category_path="酒"), ("饮料",)),
        (("饮料 > 酒类",), Move(label_ids=("t:wine",), category_path="酒"), ("酒",)),
        (("饮料 > 酒类",), Map(label_id="t:wine", maps_to="t:juice"), ("饮料 > 果汁",)),
        (("没有的",), MoveCategory(category_path="生鲜", to="鲜食"), ("没有的",)),
        ((), MoveCategory(category_path="生鲜", to="鲜食"), ()),
    ],
)
def test_who_looks_after_a_category_goes_with_it(
    store: Store, found: Settings, chosen: tuple[str, ...], change: Change, then: tuple[str, ...]
) -> None:
    database.upgrade(found)
    people.choose(found, "小李", chosen)
    apply(store, found, "小王", None, [change])
    assert people.categories(found, "小李") == then


def test_an_imported_sheet_moves_what_waits_too(store: Store, found: Settings) -> None:
    database.upgrade(found)
    waiting(found, WINE)
    people.choose(found, "小李", ["饮料"])
    sheet = labelsheet.to_csv(NAMES).decode("utf-8-sig").replace("饮料 > ", "饮品 > ")
    write(store, found, "小王", None, labelsheet.edit(sheet.encode(), "标签.csv"))
    assert people.categories(found, "小李") == ("饮品",)
    assert items.left(found, "小李", Filters(categories=("饮品",))) == 1


# ------------------------------------------------------------------ versions


@pytest.fixture
def found(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def store(found: Settings) -> Store:
    made = Store.of(found)
    taxonomy.put(made, NAMES, "小李", None)
    return made


def in_force(store: Store) -> Taxonomy:
    names = taxonomy.current(store)
    assert names is not None
    return names


def test_a_change_is_a_version_with_its_author_its_date_and_what_changed(store: Store, found: Settings) -> None:
    first = in_force(store)
    started = datetime.now(UTC)
    applied = apply(store, found, "小王", first.version, [Rename(label_id="t:apple", label_zh="大苹果")])
    assert in_force(store) == applied.after
    assert applied.before == first
    newest, oldest = history(store, 10)
    assert (newest.version, newest.author, newest.previous) == (applied.after.version, "小王", first.version)
    assert (newest.labels, newest.counts) == (6, {"label_zh": 1})
    assert started - timedelta(seconds=1) <= newest.made_at <= datetime.now(UTC)
    assert (oldest.version, oldest.author, oldest.previous, oldest.counts) == (first.version, "小李", None, {})
    [event] = events.recent(found, 10)
    assert (event.person, event.action, event.subject) == ("小王", events.CHANGED_TAXONOMY, newest.version)
    assert event.detail["previous"] == first.version
    assert event.detail["differences"] == [vars(row) for row in applied.differences]


def test_history_needs_no_pointer_but_the_last(store: Store, found: Settings) -> None:
    """All names of people and versions stand with the versions, also those of labels that answers brought along."""
    taxonomy.add(store, "导入的人", [Label("t:new", "新", category_path="甲")])
    apply(store, found, "小王", None, [Enable(label_ids=("t:new",), enabled=False)])
    told = [(one.author, one.counts) for one in history(store, 10)]
    assert told == [("小王", {"enabled": 1}), ("导入的人", {"added": 1}), ("小李", {})]
    assert [one.author for one in history(store, 2)] == ["小王", "导入的人"]


def test_history_of_a_store_from_before(store: Store, found: Settings) -> None:
    """Versions of releases that noted nothing in them: the pointer knows the last author, files know when."""
    pointer = store.read_pointer(taxonomy.POINTER)
    versions = ["t000002-aaaaaaaaaaaa", "t000003-bbbbbbbbbbbb"]
    for version, name in zip(versions, ("青苹果", "红苹果"), strict=True):
        rows = [{k: v for k, v in vars(one).items() if k != "maps_to"} for one in (replace(APPLE, label_zh=name), PEAR)]
        table = pa.Table.from_pylist(rows, schema=TAXONOMY).replace_schema_metadata({"forced_categories": "饮料"})
        store.write_table(f"taxonomy/{version}/taxonomy.parquet", table)
        value = {"version": version, "author": f"谁{name}", "previous": pointer.value["version"] if pointer else None}
        assert store.replace_pointer(taxonomy.POINTER, value, pointer)
        pointer = store.read_pointer(taxonomy.POINTER)
    assert in_force(store).labels == (replace(APPLE, label_zh="红苹果"), PEAR)
    newest, middle, oldest = history(store, 10)
    assert (newest.version, newest.author, newest.counts) == (versions[1], "谁红苹果", {"label_zh": 1})
    assert (middle.version, middle.author, middle.previous) == (versions[0], "", oldest.version)
    assert abs(middle.made_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert oldest.author == "小李"
    applied = apply(store, found, "小王", versions[1], [Map(label_id="t:pear", maps_to="t:apple")])
    assert applied.after.forced_categories == ("饮料",)
    assert in_force(store).given("t:pear") == "t:apple"


def test_no_history_before_the_first_night(tmp_path: Path, found: Settings) -> None:
    empty = Store(str(tmp_path / "empty"))
    assert history(empty, 5) == []
    with pytest.raises(FaultError, match="还没有标签体系"):
        apply(empty, found, "小王", None, [Enable(label_ids=("t:apple",), enabled=False)])


def test_a_change_of_what_is_no_longer_in_force_is_refused(store: Store, found: Settings) -> None:
    first = in_force(store)
    apply(store, found, "小王", first.version, [Rename(label_id="t:apple", label_zh="大苹果")])
    for change in (apply, lambda *given: preview(given[0], given[3], by(given[4]))):
        with pytest.raises(FaultError, match="刚才有人修改了") as caught:
            change(store, found, "小张", first.version, [Rename(label_id="t:pear", label_zh="大梨")])
        assert caught.value.code == "changed"
    assert in_force(store).by_id["t:pear"] == PEAR
    assert len(events.recent(found, 10)) == 1


def test_of_two_who_save_at_once_one_is_told(store: Store, found: Settings) -> None:
    version = in_force(store).version

    def save(person: str) -> str:
        try:
            return apply(store, found, person, version, [Rename(label_id="t:apple", label_zh="大苹果")]).after.version
        except FaultError as fault:
            return fault.code

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(save, ["甲", "乙", "丙", "丁"]))
    assert told.count("changed") == 3
    winner = "甲乙丙丁"[next(place for place, one in enumerate(told) if one != "changed")]
    assert [one.author for one in history(store, 10)] == [winner, "小李"]
    assert [event.person for event in events.recent(found, 10)] == [winner]


def test_a_change_of_nothing_makes_no_version(store: Store, found: Settings) -> None:
    version = in_force(store).version
    with pytest.raises(FaultError, match="没有任何改动"):
        apply(store, found, "小王", version, [Rename(label_id="t:apple", label_zh="苹果")])
    assert preview(store, version, by([Enable(label_ids=("t:gone",), enabled=False)])).differences == ()
    assert in_force(store).version == version


def test_a_preview_writes_nothing(store: Store, found: Settings) -> None:
    before = store.files("taxonomy")
    seen = preview(store, None, by([Merge(label_ids=("t:pear",), into="t:apple")]))
    assert [row.field for row in seen.differences] == ["synonyms_zh", "enabled", "maps_to"]
    assert store.files("taxonomy") == before
    assert events.recent(found, 10) == []


def test_nothing_changes_where_nobody_can_write_down_who_did_it(store: Store, found: Settings, tmp_path: Path) -> None:
    """As a database that does not answer: a folder of its that cannot be made."""
    (tmp_path / "file").write_text("")
    away = found.model_copy(update={"database_url": f"sqlite:///{tmp_path}/file/wwts.db"})
    version = in_force(store).version
    with pytest.raises(UnavailableError):
        apply(store, away, "小王", version, [Rename(label_id="t:apple", label_zh="大苹果")])
    assert in_force(store).version == version


#: Code of a release before `maps_to`, as it was packed with versions: what it does with a taxonomy.
READ_AS_BEFORE = """
import sys
import pyarrow.parquet as pq
columns = ["label_id", "label_zh", "label_en", "synonyms_zh", "category_path", "forced_review", "enabled"]
table = pq.ParquetFile(sys.argv[1]).read()
print(len(table.select(columns).to_pylist()), (table.schema.metadata or {}).get(b"forced_categories", b"").decode())
"""


def test_code_that_was_packed_before_reads_a_version_of_now(store: Store, found: Settings) -> None:
    apply(store, found, "小王", None, [Merge(label_ids=("t:pear",), into="t:apple")])
    path = store.path(f"taxonomy/{in_force(store).version}/taxonomy.parquet")
    out = subprocess.run([sys.executable, "-c", READ_AS_BEFORE, path], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "6 饮料 > 酒类"
    assert TAXONOMY.names == [name for name in vars(APPLE) if name != "maps_to"], "what packed code must agree on"


# ------------------------------------------------------------------ spreadsheets

WILD = (
    Label("t:1", "=1+1", "-x", "+a|@b", "甲", forced_review=True),
    Label("t:2", "'引号", "'=2", "＝3", "甲 > 乙", enabled=False),
    Label("t:3", '逗,号"引', "007", "1e5", "丙", maps_to="t:1"),
    Label("t:4", "🍓草莓", "TRUE", "2026-01-02", "丙 > 丁 > 戊"),
    Label("t:5", "''''=多", "#N/A", "", "丙"),
)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_labels_go_out_to_a_spreadsheet_and_come_back(suffix: str) -> None:
    names = Taxonomy("t1", WILD)
    data = written(names, suffix)
    assert diff(names, labelsheet.edit(data, f"标签{suffix}")(names)) == []
    assert labelsheet.edit(data, f"标签{suffix}")(Taxonomy("t1", ())).labels == WILD


def written(names: Taxonomy, suffix: str) -> bytes:
    return {".csv": labelsheet.to_csv, ".xlsx": labelsheet.to_xlsx}[suffix](names)


@given(st.text(alphabet="='-+@＝a苹 \t", max_size=6))
def test_any_name_comes_back_from_csv(name: str) -> None:
    names = Taxonomy("t1", (Label("t:1", f"x{name}x", label_en=name.strip(), category_path="甲"),))
    assert labelsheet.edit(labelsheet.to_csv(names), "a.csv")(names) == names


def test_no_cell_of_csv_is_a_formula_and_excel_knows_its_letters() -> None:
    data = labelsheet.to_csv(Taxonomy("t1", WILD))
    assert data.startswith(b"\xef\xbb\xbf")
    cells = [cell for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) for cell in row]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "＝"))] == []
    assert "'=1+1" in cells


def test_every_cell_of_xlsx_is_a_text() -> None:
    book = openpyxl.load_workbook(io.BytesIO(labelsheet.to_xlsx(Taxonomy("t1", WILD))))
    sheet = book.active
    assert sheet is not None
    rows = list(sheet.iter_rows(min_row=2))
    assert {cell.data_type for row in rows for cell in row if cell.value is not None} == {"s"}
    assert [row[1].value for row in rows] == [label.label_zh for label in WILD]
    assert rows[0][1].quotePrefix, "a formula would run once somebody edits the cell"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_sheet_as_chinese_excel_saves_it(encoding: str) -> None:
    """Other headers, TRUE and 是, full-width arrows; what it leaves out stays."""
    text = "编号,中文名,英文名,同义词,类目,启用\r\nt:apple,大苹果,,红富士,生鲜＞水果,否\r\nt:new,新,,,甲,是\r\n"
    text = text.replace(",", "\t") if encoding == "utf-16" else text
    after = labelsheet.edit(text.encode(encoding), "标签.CSV")(NAMES)
    assert changed(after) == {
        "t:apple": Label("t:apple", "大苹果", "", "红富士", "生鲜 > 水果", enabled=False),
        "t:new": Label("t:new", "新", category_path="甲"),
    }


HEADER = "label_id,label_zh,label_en,synonyms_zh,category_path,forced_review,enabled,maps_to\n"


def test_a_sheet_lifts_no_rule_unless_it_says_so() -> None:
    names = done(Merge(label_ids=("t:pear",), into="t:apple"))
    quiet = "t:pear,梨,pear,雪梨,生鲜 > 水果 > 仁果,,,\nt:knife,水果刀,,,厨具,,,\n"
    assert diff(names, labelsheet.edit(f"{HEADER}{quiet}".encode(), "a.csv")(names)) == []
    told = "t:pear,梨,pear,雪梨,生鲜 > 水果 > 仁果,,true,无\nt:knife,水果刀,,,厨具,FALSE,,\n"
    after = labelsheet.edit(f"{HEADER}{told}".encode(), "a.csv")(names)
    assert (after.by_id["t:pear"], after.by_id["t:knife"].forced_review) == (PEAR, False)


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b" " * (65 * 2**20))
    return out.getvalue()


def swapped(part: str, old: bytes, new: bytes) -> bytes:
    """A sheet of labels with a change that a spreadsheet program would not make."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(labelsheet.to_xlsx(NAMES))) as archive,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as changed_archive,
    ):
        assert old in archive.read(part)
        for name in archive.namelist():
            data = archive.read(name)
            changed_archive.writestr(name, data.replace(old, new, 1) if name == part else data)
    return out.getvalue()


def with_rows(rows: bytes) -> bytes:
    return swapped("xl/worksheets/sheet1.xml", b"</sheetData>", rows + b"</sheetData>")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (with_rows(b"<row/>" * 100_001), "file_shape"),
        (with_rows(b'<row r="99999999999"/>'), "file_shape"),
        (with_rows(b'<row r="inf"/>'), "file_shape"),
        (with_rows(b"<row>" + b"<c/>" * 65 + b"</row>"), "file_shape"),
        (with_rows(b'<row><c r="XFD1"/></row>'), "file_shape"),
        (with_rows(b'<row><other r="BM1"/></row>'), "file_shape"),
        (with_rows(b'<row r="no"/>'), "file_unreadable"),
        (with_rows(b'<row><c r="ZZZZ1"/></row>'), "file_unreadable"),
        (with_rows(b"<row><row/><c/></row>"), "file_unreadable"),
        (with_rows((b"<row>" + b"<c/>" * 60 + b"</row>") * 20_000), "file_large"),
        (swapped("xl/styles.xml", b"</cellXfs>", b"<xf/>" * 100_000 + b"</cellXfs>"), "file_large"),
        (swapped("xl/workbook.xml", b"<workbook", b'<!DOCTYPE a [<!ENTITY b "c">]><workbook'), "file_large"),
    ],
)
def test_a_sheet_that_would_keep_the_server_busy_is_refused_before_it_is_read(
    data: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(data) < 100_000
    monkeypatch.setattr(openpyxl, "load_workbook", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(FaultError) as caught:
        labelsheet.edit(data, "a.xlsx")
    assert caught.value.code == code


def test_a_sheet_of_empty_rows_and_columns_is_read() -> None:
    data = with_rows(b"<row/>" * 99_000 + b"<row>" + b"<c/>" * 64 + b"</row>")
    assert labelsheet.edit(data, "a.xlsx")(NAMES) == NAMES


@pytest.mark.parametrize(
    ("name", "data", "code", "english"),
    [
        ("a.txt", b"", "file_kind", "a.txt has another suffix"),
        ("../../a", b"", "file_kind", "suffix"),
        ("a.\x00csv", b"", "file_kind", "suffix"),
        ("a.xlsx", b"PK\x03\x04 half an archive", "file_unreadable", "a.xlsx is no whole XLSX file"),
        ("a.csv", b"\xff\xd8\xff\xe0 a picture \xff", "file_unreadable", "a.csv is neither UTF-8 nor GB18030"),
        ("a.csv", b"label_id,label_zh\nt:a,x\n", "file_unreadable", "a.csv needs a column label_en"),
        ("a.csv", b" " * (bounds.LARGEST + 1), "file_large", "larger than 6 MiB"),
        ("a.xlsx", bomb(), "file_large", "unpacks to far more"),
        ("a.csv", f"{HEADER}t:a,甲,,,乙,maybe,,\n".encode(), "file_flag", "Row 2: 'maybe' is neither"),
        ("a.csv", f"{HEADER}t:a,甲,,,乙,,,\nt:a,丙,,,乙,,,\n".encode(), "file_twice", "Row 3: label t:a"),
        ("a.csv", f"{HEADER},甲,,,乙,,,\n".encode(), "file_id", "Row 2 has no label_id"),
        ("a.csv", f"{HEADER}t:a,甲\n".encode(), "file_row", "Row 2: the row has 2 columns"),
    ],
)
def test_a_wrong_sheet_is_told_in_both_languages(name: str, data: bytes, code: str, english: str) -> None:
    with pytest.raises(FaultError) as caught:
        labelsheet.edit(data, name)(NAMES)
    assert caught.value.code == code
    assert english in caught.value.english
    assert "/" not in caught.value.english.replace(name, ""), "no path of this machine"
    assert any("\u4e00" <= char <= "\u9fff" for char in str(caught.value))


def test_a_sheet_that_brings_in_a_fault_is_refused(store: Store, found: Settings) -> None:
    data = f"{HEADER}t:pear,苹果,,,生鲜 > 水果 > 仁果,,,\n".encode()
    with pytest.raises(FaultError, match="重名标签“苹果”"):
        write(store, found, "小王", None, labelsheet.edit(data, "a.csv"))
    assert in_force(store).by_id["t:pear"] == PEAR
