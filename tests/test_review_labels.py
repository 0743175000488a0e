"""What the search box in the browser searches: every label that may be given, with its pinyin."""

from __future__ import annotations

import pytest

from wwts_ops import taxonomy
from wwts_ops.review import labels
from wwts_ops.settings import Settings
from wwts_ops.taxonomy import Label, Taxonomy

NAMES = Taxonomy(
    "t1",
    (
        Label("t:wine", "红酒", "wine", "葡萄酒|红酒🍷", "饮料 > 酒类"),
        Label("t:off", "停售", enabled=False, category_path="饮料"),
        Label("t:mapped", "干红", maps_to="t:wine", category_path="饮料"),
        Label("t:knife", "Knife", "knife", "", "厨具", forced_review=True),
        Label("t:plain", "杯子", category_path="家居"),
    ),
    ("饮料 > 酒类",),
)


def test_a_row_a_label_that_may_be_given_in_the_order_of_the_taxonomy() -> None:
    assert labels.index(NAMES) == [
        ("t:wine", "红酒", "wine", "葡萄酒|红酒🍷", "饮料 > 酒类", "hong jiu|pu tao jiu|hong jiu", "f"),
        ("t:knife", "Knife", "knife", "", "厨具", "", "f"),
        ("t:plain", "杯子", "", "", "家居", "bei zi", ""),
    ]


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("红酒", "hong jiu"),
        ("绿茶", "lv cha"),
        ("重庆火锅", "chong qing huo guo"),
        ("银行卡", "yin hang ka"),
        ("红酒 500ml", "hong jiu 500ml"),
        ("T恤（男）", "t xu nan"),
        ("iPhone手机壳", "iphone shou ji ke"),
        ("草莓🍓", "cao mei"),
        ("strawberry", ""),
        ("|;", ""),
        ("", ""),
    ],
)
def test_a_name_as_it_is_typed(name: str, typed: str) -> None:
    assert labels.pinyin(name) == typed


def test_every_embedded_label_can_be_typed() -> None:
    rows = labels.index(taxonomy.embedded(Settings.model_fields["forced_review"].default))
    assert len(rows) == 1000
    for label_id, label_zh, _, synonyms, _, pinyin, _ in rows:
        first = pinyin.split("|")[0]
        assert first.isascii(), label_id
        assert first.replace(" ", "").isalnum(), label_id
        chinese = sum("\u4e00" <= char <= "\u9fff" for char in label_zh)
        assert len(first.split()) >= chinese, (label_zh, pinyin)
        assert pinyin.count("|") <= (synonyms.count("|") + 1 if synonyms else 0), label_id
