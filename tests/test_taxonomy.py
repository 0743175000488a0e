"""The taxonomy: the curated Chinese names, what is forced, and versions that nobody overwrites."""

from __future__ import annotations

import csv
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from wwts_ops import taxonomy
from wwts_ops.errors import WwtsError
from wwts_ops.schemas import TAXONOMY
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import ChangedError, Label, Taxonomy

LABELS = taxonomy.embedded_labels()
BY_ID = {label.label_id: label for label in LABELS}
DEFAULT_FORCED = Settings.model_fields["forced_review"].default

#: What English words that mean two things mean in ImageNet, by its glosses (WordNet 3.0), and what others got wrong.
MEANINGS = {
    "n01608432": "鸢",  # kite, the bird of prey
    "n02012849": "鹤",  # crane, the bird
    "n03126707": "起重机",  # crane, the machine
    "n02108089": "拳师犬",  # boxer, the dog
    "n02112137": "松狮犬",  # chow, the dog
    "n02276258": "红蛱蝶",  # admiral, the butterfly
    "n02277742": "眼蝶",  # ringlet, the butterfly
    "n02279972": "帝王蝶",  # monarch, the butterfly
    "n02190166": "苍蝇",
    "n02229544": "蟋蟀",  # cricket, the insect
    "n02509815": "小熊猫",  # lesser panda
    "n02510455": "大熊猫",  # giant panda
    "n02607072": "小丑鱼",
    "n02865351": "波洛领带",
    "n02963159": "开衫",  # cardigan, the garment
    "n02992529": "手机",
    "n03041632": "菜刀",
    "n03180011": "台式电脑",
    "n03337140": "文件柜",  # file, the furniture
    "n03388183": "钢笔",  # fountain pen
    "n03388043": "喷泉",
    "n03483316": "吹风机",
    "n03584829": "熨斗",  # iron, the appliance
    "n03594945": "吉普车",
    "n03642806": "笔记本电脑",  # laptop
    "n03666591": "打火机",
    "n03786901": "研钵",  # mortar, the vessel
    "n03788365": "蚊帐",
    "n03793489": "鼠标",  # mouse, the device
    "n03804744": "钉子",  # nail, the fastener
    "n03929660": "吉他拨片",  # pick, plectrum
    "n03954731": "木工刨",  # plane, carpenter's
    "n04009552": "投影仪",
    "n04019541": "冰球",  # puck
    "n04116512": "橡皮擦",
    "n04118538": "橄榄球",  # rugby ball
    "n04152593": "显示屏",
    "n04254680": "足球",  # soccer ball
    "n04346328": "佛塔",
    "n04350905": "西装",
    "n04367480": "拖把",  # swab, mop
    "n04372370": "开关",
    "n04389033": "坦克",  # tank, army's
    "n04399382": "泰迪熊",
    "n04591157": "领带",
    "n07714990": "西兰花",
    "n07745940": "草莓",
    "n07747607": "橙子",
    "n07753592": "香蕉",
    "n07880968": "墨西哥卷饼",
    "n12620546": "玫瑰果",  # hip, the fruit
    "n13133613": "玉米穗",  # ear, of corn
}
FORCED = {
    "武器": ["n04090263", "n02749479", "n04086273", "n03773504", "n04008634", "n02950826", "n04389033", "n02879718"],
    "医药 > 药品": ["n03937543", "n03742115"],  # pill bottle, medicine chest
    "饮料 > 酒类": ["n07892512", "n04591713", "n02823428", "n04579145", "n07932039"],  # wine, beer, whiskey, eggnog
    "烟草": ["n03666591", "n03729826", "n04443257"],  # lighter, match, tobacco shop
}
#: Near a forced category, by words or by looks, but not of it.
FREE = ["n07745940", "n03642806", "n03388549", "n02786058", "n07930864", "n07920052", "n03063599", "n04254680"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "仓库"))


# ------------------------------------------------------------------ the curated names


def test_a_thousand_labels_in_the_order_of_the_head() -> None:
    ids = [label.label_id for label in LABELS]
    assert len(ids) == len(set(ids)) == 1000
    assert ids == sorted(ids)  # ImageNet heads order their classes by synset
    assert all(name.startswith("imagenet:n") and name[10:].isdigit() and len(name) == 18 for name in ids)


def test_the_order_is_torchvisions() -> None:
    """An independent list of the same classes in the order of the head."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES as CATEGORIES

    # Two names occur twice there; the list tells them apart by a word of its own.
    theirs = ["crane" if name == "crane bird" else name.removesuffix(" tank suit") for name in CATEGORIES]
    assert [label.label_en.casefold() for label in LABELS] == [name.casefold() for name in theirs]


def test_every_label_has_a_chinese_name_of_its_own() -> None:
    names = Counter(label.label_zh for label in LABELS)
    assert [name for name, count in names.items() if count > 1] == []
    assert [name for name in names if name != name.strip()] == []
    assert [name for name in names if not any("\u4e00" <= char <= "\u9fff" for char in name)] == []


def test_every_label_has_three_levels() -> None:
    paths = [label.category_path for label in LABELS]
    assert [path for path in paths if len(path.split(" > ")) != 3] == []
    assert [path for path in paths if not all(part and part == part.strip() for part in path.split(" > "))] == []
    assert [path for path in paths if any(char in path.replace(" > ", "") for char in " >＞/,，|")] == []


def test_synonyms_are_other_words() -> None:
    for label in LABELS:
        synonyms = label.synonyms_zh.split("|") if label.synonyms_zh else []
        assert all(word and word == word.strip() for word in synonyms), label
        assert len(set(synonyms)) == len(synonyms), label
        assert label.label_zh not in synonyms, label


@pytest.mark.parametrize(("synset", "name"), MEANINGS.items())
def test_meanings(synset: str, name: str) -> None:
    assert BY_ID[f"imagenet:{synset}"].label_zh == name


def test_an_ipod_is_no_telephone() -> None:
    ipod = BY_ID["imagenet:n03584254"]
    assert "手机" not in ipod.label_zh + ipod.synonyms_zh + ipod.category_path
    assert "播放器" in ipod.label_zh


@pytest.mark.parametrize(
    ("synset", "first"),
    [
        ("n02099601", "宠物"),
        ("n02123045", "宠物"),
        ("n02129165", "动物"),
        ("n07745940", "生鲜"),
        ("n03642806", "数码"),
        ("n04070727", "家电"),
        ("n03676483", "美妆个护"),
        ("n04120489", "服饰"),
        ("n02701002", "交通工具"),
        ("n03272010", "乐器"),
        ("n09472597", "自然"),
    ],
)
def test_first_levels(synset: str, first: str) -> None:
    assert BY_ID[f"imagenet:{synset}"].category_path.split(" > ")[0] == first


def test_a_file_of_names_lifts_no_rule() -> None:
    before = {"t:a": Label("t:a", "旧名", forced_review=True), "t:b": Label("t:b", "乙", enabled=False)}
    columns = "label_id,label_zh,label_en,synonyms_zh,category_path"
    data = f"{columns}\nt:a,新名,,,\nt:b,乙,,,\nt:c,丙,,,\n".encode()
    flags = {
        label.label_id: (label.label_zh, label.forced_review, label.enabled)
        for label in taxonomy.from_csv(data, before)
    }
    assert flags == {"t:a": ("新名", True, True), "t:b": ("乙", False, False), "t:c": ("丙", False, True)}
    lifted = f"{columns},forced_review,enabled\nt:a,旧名,,,,false,\n".encode()
    assert taxonomy.from_csv(lifted, before) == (Label("t:a", "旧名"),)


@pytest.mark.parametrize(("category", "synset"), [(path, one) for path, many in FORCED.items() for one in many])
def test_the_default_categories_catch(category: str, synset: str) -> None:
    assert taxonomy.embedded(DEFAULT_FORCED).forced_reason(f"imagenet:{synset}") == f"forced_category:{category}"


@pytest.mark.parametrize("synset", FREE)
def test_the_default_categories_let_pass(synset: str) -> None:
    assert f"imagenet:{synset}" in BY_ID
    assert taxonomy.embedded(DEFAULT_FORCED).forced_reason(f"imagenet:{synset}") is None


# ------------------------------------------------------------------ what is forced


def test_label_ids_and_categories_may_be_mixed() -> None:
    names = taxonomy.embedded(("imagenet:n07745940", "武器"))
    assert names.forced_categories == ("武器",)
    assert names.forced_reason("imagenet:n07745940") == "forced_label"
    assert names.forced_reason("imagenet:n04090263") == "forced_category:武器"
    assert names.forced_reason("imagenet:n03937543") is None
    assert [label.label_id for label in names.labels if label.forced_review] == ["imagenet:n07745940"]


@pytest.mark.parametrize("entry", ["医药>药品", "医药  >药品 ", "医药＞药品", "医药 > 药品"])
def test_a_category_is_forced_however_it_is_typed(entry: str) -> None:
    assert taxonomy.embedded((entry,)).forced_reason("imagenet:n03937543") == "forced_category:医药 > 药品"


def test_a_prefix_is_of_levels_not_of_characters() -> None:
    labels = (Label("a", "甲", category_path="武器玩具 > 枪"), Label("b", "乙", category_path="武器 > 枪"))
    names = Taxonomy("t", (*labels, Label("c", "丙", category_path="武器")), ("武器",))
    assert names.forced_reason("a") is None
    assert names.forced_reason("b") == names.forced_reason("c") == "forced_category:武器"
    assert names.forced_reason("unknown") is None


# ------------------------------------------------------------------ CSV


def test_csv_there_and_back() -> None:
    labels = (
        Label("a", "草莓, 红", 'straw"berry', "莓|草莓果", "生鲜 > 水果", forced_review=True),
        Label("b", "=1+1", enabled=False, maps_to="a"),
    )
    data = taxonomy.to_csv(Taxonomy("t", labels))
    assert data.startswith(b"\xef\xbb\xbf")  # else Excel shows mojibake
    assert taxonomy.from_csv(data) == labels
    assert taxonomy.from_csv(taxonomy.to_csv(Taxonomy("t", LABELS))) == LABELS


def sheet(*rows: dict[str, str], lack: str = "") -> str:
    out = io.StringIO()
    fields = [name for name in (*taxonomy.CSV_COLUMNS, "forced_review", "enabled") if name != lack]
    writer = csv.DictWriter(out, fields, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({"label_id": "a", "label_zh": "草莓", **row} for row in rows)
    return out.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_csv_as_chinese_excel_saves_it(encoding: str) -> None:
    [label] = taxonomy.from_csv(sheet({"category_path": "生鲜>水果 ＞ 莓果", "enabled": "FALSE"}).encode(encoding))
    assert label == Label("a", "草莓", category_path="生鲜 > 水果 > 莓果", enabled=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (sheet({}, {}), "'a' is empty or occurs twice"),
        (sheet({"label_id": " "}), "'' is empty or occurs twice"),
        (sheet({"label_zh": " "}), "Label a has no Chinese name"),
        (sheet({"category_path": "生鲜 >  > 莓果"}), "Label a: category_path"),
        (sheet({"category_path": "生鲜 > "}), "Label a: category_path"),
        (sheet({}, {"label_id": "b", "forced_review": "maybe"}), "Line 3: 'maybe' is neither true nor false"),
        (sheet({}, lack="category_path"), r"lacks the column\(s\) category_path"),
        ("", r"lacks the column\(s\) label_id, label_zh"),
        (sheet({"label_zh": "x" * 200_000}), "no CSV, after line 1: field larger"),
    ],
)
def test_a_wrong_label_file_is_told(text: str, said: str) -> None:
    with pytest.raises(WwtsError, match=said):
        taxonomy.from_csv(text.encode())


@pytest.mark.parametrize("data", ["标签".encode("utf-16"), b"\xff\xd8\xff\xe0 a picture \xff"])
def test_a_label_file_that_is_no_text_is_told(data: bytes) -> None:
    with pytest.raises(WwtsError, match="neither UTF-8 nor GB18030"):
        taxonomy.from_csv(data)


def test_a_short_row_has_empty_fields() -> None:
    text = "label_id,label_zh,label_en,synonyms_zh,category_path\na,甲\n"
    assert taxonomy.from_csv(text.encode()) == (Label("a", "甲"),)


# ------------------------------------------------------------------ versions


def test_the_first_night_puts_the_embedded_labels_in_force(store: Store) -> None:
    assert taxonomy.current(store) is None
    first = taxonomy.ensure(store, ("武器", "imagenet:n07745940"))
    assert first.labels == taxonomy.embedded(("imagenet:n07745940",)).labels
    assert first.forced_categories == ("武器",)
    assert taxonomy.current(store) == taxonomy.read(store, first.version) == first
    # From then on the store's word counts, not the setting's.
    assert taxonomy.ensure(store, ("烟草",)) == first


def test_an_edit_is_a_new_version_and_the_old_one_stays(store: Store) -> None:
    first = taxonomy.ensure(store, ("武器",))
    berry = replace(BY_ID["imagenet:n07745940"], label_zh="大草莓", enabled=False)
    second = taxonomy.edit(store, "王", {berry.label_id: berry, "shop:1": Label("shop:1", "礼盒")})
    assert second.version.startswith("t000002-")
    assert taxonomy.current(store) == second
    assert second.by_id["imagenet:n07745940"] == berry
    assert [label.label_id for label in second.labels] == [label.label_id for label in LABELS] + ["shop:1"]
    assert second.forced_categories == ("武器",)
    assert taxonomy.read(store, first.version) == first
    pointer = store.read_json("taxonomy/current.json")
    assert pointer == {"version": second.version, "author": "王", "previous": first.version, "sequence": 2}


def test_two_edits_from_one_version_do_not_lose_one(store: Store) -> None:
    first = taxonomy.ensure(store, ())
    seen = store.read_pointer("taxonomy/current.json")
    theirs = taxonomy.put(store, replace(first, labels=(*first.labels, Label("b", "乙"))), "李", seen)
    with pytest.raises(ChangedError, match="Somebody else"):
        taxonomy.put(store, replace(first, labels=(*first.labels, Label("c", "丙"))), "王", seen)
    assert taxonomy.current(store) == theirs


def test_two_first_nights_agree(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: taxonomy.ensure(store, ("武器",)), range(4)))
    assert found == [taxonomy.current(store)] * 4
    assert store.read_json("taxonomy/current.json")["sequence"] == 1


def test_a_wrong_edit_changes_nothing(store: Store) -> None:
    first = taxonomy.ensure(store, ())
    wrong: list[dict[str, Any]] = [{"label_zh": ""}, {"category_path": "武器>枪械"}, {"category_path": "武器 > "}]
    for change in wrong:
        with pytest.raises(WwtsError, match="n07745940"):
            taxonomy.edit(store, "王", {"imagenet:n07745940": replace(BY_ID["imagenet:n07745940"], **change)})
    assert taxonomy.current(store) == first
    assert len(store.list("taxonomy", ".parquet")) == 1


def test_an_edit_before_the_first_night_is_told(store: Store) -> None:
    with pytest.raises(WwtsError, match="wwts init"):
        taxonomy.edit(store, "王", {})


def test_a_version_knows_what_its_labels_map_to(store: Store) -> None:
    labels = (Label("a", "甲"), Label("b", "乙", enabled=False, maps_to="a"))
    put = taxonomy.put(store, Taxonomy("", labels), "王", None)
    found = taxonomy.read(store, put.version)
    assert found.labels == labels
    assert [found.given(label_id) for label_id in ("a", "b", "unknown")] == ["a", "a", "unknown"]


def test_a_version_from_before_there_were_mappings(store: Store) -> None:
    rows = [{**vars(Label("a", "甲")), "label_en": None}]
    store.write_table("taxonomy/t000001-x/taxonomy.parquet", pa.Table.from_pylist(rows, schema=TAXONOMY))
    assert taxonomy.read(store, "t000001-x").labels == (Label("a", "甲"),)
    text = "label_id,label_zh,label_en,synonyms_zh,category_path,forced_review,enabled\na,甲,,,,false,true\n"
    assert taxonomy.from_csv(text.encode()) == (Label("a", "甲"),)


def test_two_who_make_the_same_change_at_once_get_credit_apart(store: Store) -> None:
    first = taxonomy.ensure(store, ())
    seen = store.read_pointer(taxonomy.POINTER)
    same = replace(first, labels=(*first.labels, Label("b", "乙")))
    theirs = taxonomy.put(store, same, "李", seen)
    with pytest.raises(ChangedError):
        taxonomy.put(store, same, "王", seen)
    table = store.read_table(f"taxonomy/{theirs.version}/taxonomy.parquet")
    assert table.schema.metadata[b"author"].decode() == "李"


def test_an_absent_version(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        taxonomy.read(store, "t000009-000000000000")
