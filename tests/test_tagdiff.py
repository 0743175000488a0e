"""What a new model would change: counted apart from what we know by construction, shown safely, found again."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from diff_shop import ANSWERED, HOSTILE, LABELLED, LABELS, LEARNED, UNKNOWN_CONTENT, DiffShop
from gate_shop import WRONG, GateShop
from scipy.stats import norm
from tiny_backbone import TINY

from wwts_ops import settings, tagdiff, taxonomy, tracking, webpage
from wwts_ops.embeddings import EmbeddingWriter, part_key
from wwts_ops.errors import WwtsError
from wwts_ops.tagdiff import Category, Change, TagDiff
from wwts_ops.tagger import Head, save
from wwts_ops.tracking import ModelVersion

THUMBNAILS = range(0, 48, 2)


@dataclass(frozen=True)
class Scene:
    """The shop, its two versions, and what :func:`tagdiff.build` said of them."""

    shop: DiffShop
    old: ModelVersion
    new: ModelVersion
    diff: TagDiff

    @property
    def found(self) -> settings.Settings:
        return self.shop.gate.settings

    def page(self) -> str:
        return self.shop.store.read_bytes(self.diff.page).decode()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("tagdiff")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shop = DiffShop(GateShop(settings.load(store=str(folder / "store")), folder))
    old, new = shop.register()
    shop.write_embeddings(old.backbone_sha256)
    shop.write_thumbnails(THUMBNAILS)
    shop.publish()
    shop.record_answers()
    return Scene(shop, old, new, tagdiff.build(shop.gate.settings, new.version))


@dataclass(frozen=True)
class Expected:
    """What changes of one content, known by how the two heads were made."""

    number: int
    images: int
    old: tuple[str, str]
    new: tuple[str, str]

    @property
    def relabelled(self) -> bool:
        return self.old[0] != self.new[0]

    @property
    def redecided(self) -> bool:
        return self.old[1] != self.new[1]

    @property
    def changed(self) -> bool:
        return self.relabelled or self.redecided

    @property
    def unseen(self) -> bool:
        return self.changed and self.new[1] == "auto"


def expected(shop: DiffShop) -> Iterator[Expected]:
    """Contents whose answer, if any, does not stand above the models."""
    for number in range(48):
        if number not in ANSWERED:
            yield Expected(number, shop.copies(number), *shop.said(number))


def counted(rows: list[Expected]) -> tagdiff.Count:
    return tagdiff.Count(sum(row.images for row in rows), len(rows))


# ------------------------------------------------------------------ numbers


def test_changes_are_counted_in_images_and_contents(scene: Scene) -> None:
    rows, diff = list(expected(scene.shop)), scene.diff
    assert (diff.images, diff.contents) == (sum(scene.shop.copies(number) for number in range(48)), 48)
    assert diff.answered == tagdiff.Count(sum(scene.shop.copies(number) for number in ANSWERED), len(ANSWERED))
    assert diff.missing == tagdiff.Count(0, 0)
    assert diff.changed_label == counted([row for row in rows if row.relabelled])
    assert diff.changed_decision == counted([row for row in rows if row.redecided])
    assert diff.changed == counted([row for row in rows if row.changed])
    assert diff.unseen == counted([row for row in rows if row.unseen])
    assert diff.newly_live == counted([row for row in rows if (row.old[1], row.new[1]) == ("review", "auto")])
    assert diff.no_longer_live == counted([row for row in rows if (row.old[1], row.new[1]) == ("auto", "review")])
    assert min(diff.changed_label.images, diff.newly_live.images, diff.no_longer_live.images) > 0


def test_categories_are_counted_before_and_after(scene: Scene) -> None:
    names = taxonomy.current(scene.shop.store)
    assert names is not None

    def top(label_id: str) -> str:
        return names.by_id[label_id].category_path.split(" > ")[0]

    before, after, live, relabelled = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in expected(scene.shop):
        before[top(row.old[0])] += row.images
        after[top(row.new[0])] += row.images
        live[top(row.new[0])] += row.images * (row.new[1] == "auto")
        for name in {top(row.old[0]), top(row.new[0])}:
            relabelled[name] += row.images * row.relabelled
    found = {one.name: one for one in scene.diff.by_category}
    assert found.keys() == before.keys() | after.keys()
    for name, one in found.items():
        assert (one.before, one.after) == (before[name], after[name])
        assert (one.live_after, one.relabelled) == (live[name], relabelled[name])
    assert top(WRONG) in found


def test_pairs_of_labels_are_the_most_frequent_ones(scene: Scene) -> None:
    names = taxonomy.current(scene.shop.store)
    assert names is not None
    pairs = Counter[tuple[str, str]]()
    for row in expected(scene.shop):
        if row.relabelled:
            pairs[names.by_id[row.old[0]].label_zh, names.by_id[row.new[0]].label_zh] += row.images
    assert [((pair.old, pair.new), pair.images) for pair in scene.diff.pairs] == pairs.most_common()


def test_known_changes_say_who_was_right(scene: Scene) -> None:
    old = new = n = learned = rest_old = rest_new = 0
    for number, (labels, _) in LABELLED.items():
        (was, _), (now, _) = scene.shop.said(number)
        if was == now:
            continue
        n, old, new = n + 1, old + (was in labels), new + (now in labels)
        learned += number in LEARNED
        if number not in LEARNED:
            rest_old, rest_new = rest_old + (was in labels), rest_new + (now in labels)
    known = scene.diff.known
    assert (known.n, known.old_right, known.new_right) == (n, old, new)
    assert (known.learned, known.unlearned_old_right, known.unlearned_new_right) == (learned, rest_old, rest_new)
    assert 0 < old < new < n
    # Wilson's score, from its formula.
    z, share = norm.ppf(0.975), new / n
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert known.interval == pytest.approx([(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)])


# ------------------------------------------------------------------ risk


def test_risk_puts_what_nobody_sees_first(scene: Scene) -> None:
    rows = [row for row in expected(scene.shop) if row.changed and row.images]
    found = scene.diff.riskiest
    numbers = [scene.shop.contents.index(change.content_sha256) for change in found]
    assert sorted(numbers) == sorted(row.number for row in rows)
    keys = [(not change.unseen, -change.images, -(change.old.score or 0)) for change in found]
    assert keys == sorted(keys)
    by_number = {row.number: row for row in rows}
    for number, change in zip(numbers, found, strict=True):
        row = by_number[number]
        assert (change.old.label_id, change.old.decision) == row.old
        assert (change.new.label_id, change.new.decision) == row.new
        assert (change.unseen, change.images) == (row.unseen, row.images)
    assert {True, False} == {change.unseen for change in found}


def test_every_change_is_in_the_table(scene: Scene) -> None:
    table = pq.read_table(scene.shop.store.path(f"{scene.diff.folder}/changes.parquet"))
    changed = {number for number in range(48) if scene.shop.said(number)[0] != scene.shop.said(number)[1]}
    assert {scene.shop.contents.index(content) for content in table["content_sha256"].to_pylist()} == changed
    answered = {row["content_sha256"] for row in table.to_pylist() if row["answered"]}
    assert answered == {scene.shop.contents[number] for number in ANSWERED & changed}
    shown = [change.content_sha256 for change in scene.diff.riskiest]
    listed = [r["content_sha256"] for r in table.to_pylist() if r["answered"] is None and r["images"]]
    assert listed == shown


# ------------------------------------------------------------------ the page


class Page(HTMLParser):
    """What a browser makes of it: tags with their attributes, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_page_shows_the_riskiest_with_their_pictures(scene: Scene) -> None:
    page = Page(scene.page())
    pictures = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    wanted = [
        c.content_sha256 for c in scene.diff.riskiest if scene.shop.contents.index(c.content_sha256) in THUMBNAILS
    ]
    stored = [scene.shop.store.read_bytes(f"thumbnails/{content[:2]}/{content}.jpg") for content in wanted]
    assert [base64.b64decode(picture.partition(",")[2]) for picture in pictures] == stored
    assert stored
    assert sum(text == "没有缩略图" for text in page.texts) == len(scene.diff.riskiest) - len(stored)
    for number in (scene.diff.changed_label.images, scene.diff.unseen.images):
        assert f"{number:,}" in page.texts


def test_page_loads_nothing_and_runs_nothing(scene: Scene) -> None:
    text = scene.page()
    page = Page(text)
    assert HOSTILE in page.texts
    assert not {"script", "iframe", "object", "link-stylesheet"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in {"src", "href"}]
    assert all((value or "").startswith(("data:", "#")) for value in addresses)
    (policy,) = [
        attrs["content"] or "" for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy


# ------------------------------------------------------------------ Markdown


def cell_texts(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_has_the_numbers_and_eight_categories_at_most(scene: Scene) -> None:
    many = tuple(Category(f"类目{number}", 9, 8, 7, 6, 5, 4) for number in range(20))
    told = tagdiff.markdown(replace(scene.diff, by_category=many))
    assert [row[0] for row in cell_texts(told)[2:]] == [f"类目{number}" for number in range(8)]
    assert f"**标签会变**：{scene.diff.changed_label.images:,} 张图片" in told
    known = scene.diff.known
    assert f"{known.n} 个有人工答案可以对照；其中 {known.learned} 个候选模型训练时学过" in told
    rest = f"原来对 {known.unlearned_old_right} 个，换后对 {known.unlearned_new_right} 个"
    assert f"其余 {known.n - (known.learned or 0)} 个里，{rest}" in told


def test_markdown_stays_what_it_is_whatever_a_category_is_called(scene: Scene) -> None:
    hostile = "a|b](http://x) <img src=x> `c` **d**\n# e"
    told = tagdiff.markdown(replace(scene.diff, by_category=(Category(hostile, 1, 1, 1, 1, 1, 1),)))
    (row,) = cell_texts(told)[2:]
    assert row[0].replace("\\", "").replace("\u200b", "") == hostile.replace("\n", "\ufffd")
    assert not re.search(r"(?<!\\)[`*<\[\]#]", row[0])


@pytest.mark.parametrize("name", ["https://evil.cn/a", "www.evil.cn", "WWW.evil.cn", "wang@evil.cn", "x www.a.cn"])
def test_no_name_becomes_a_link_by_itself(name: str) -> None:
    """As GitHub Flavored Markdown finds them: a scheme or www with a host behind it, an address of mail."""
    found = re.compile(r"(?:https?://|www\.)[\w-]|\w@[\w-]", re.IGNORECASE)
    told = webpage.cell(name)
    assert found.search(name)
    assert not found.search(told)
    assert told.replace("\u200b", "") == name


def test_no_entity_spells_a_link() -> None:
    assert webpage.cell("https&colon;//evil.cn &#58;") == "https\\&colon;//evil.cn \\&\\#58;"


# ------------------------------------------------------------------ on the version, and found again


def test_version_carries_page_table_and_numbers(scene: Scene) -> None:
    import mlflow

    with tracking.connected(scene.found) as client:
        entry = client.get_model_version(scene.new.name, scene.new.version)
        names = {Path(file.path).name for file in client.list_artifacts(entry.run_id, tagdiff.ARTIFACTS)}
        got = mlflow.artifacts.download_artifacts(run_id=entry.run_id, artifact_path=f"{tagdiff.ARTIFACTS}/index.html")
    assert names == {"index.html", "summary.json", "changes.parquet"}
    assert Path(got).read_text(encoding="utf-8") == scene.page()
    assert f'"unseen": {scene.diff.unseen.images}' in entry.tags[tagdiff.TAG]
    assert scene.diff.folder in entry.tags[tagdiff.TAG]


def test_the_same_question_is_not_computed_again(scene: Scene) -> None:
    path = Path(scene.shop.store.path(scene.diff.page))
    before = path.stat().st_mtime_ns
    assert tagdiff.build(scene.found, scene.new.version) == scene.diff
    assert path.stat().st_mtime_ns == before


@pytest.fixture
def copied(scene: Scene, tmp_path: Path) -> Scene:
    """A copy that a test may change."""
    shutil.copytree(scene.shop.store.root, tmp_path / "store")
    shutil.copytree(scene.found.state_dir, tmp_path / "store.state")
    gate = replace(scene.shop.gate, settings=settings.load(store=str(tmp_path / "store")))
    return Scene(DiffShop(gate), scene.old, scene.new, scene.diff)


def test_what_was_killed_before_its_end_is_made_again(copied: Scene) -> None:
    whole = Page(copied.page())
    copied.shop.store.delete(f"{copied.diff.folder}/summary.json")
    copied.shop.store.write_bytes(copied.diff.page, b"<html>")
    again = tagdiff.build(copied.found, copied.new.version)
    assert replace(again, made_at="") == replace(copied.diff, made_at="")
    assert Page(copied.page()).tags == whole.tags


def test_another_answer_is_another_diff(copied: Scene) -> None:
    first = copied.diff.riskiest[0]
    number = copied.shop.contents.index(first.content_sha256)
    from wwts_ops import corrections

    corrections.record(copied.found, [copied.shop.answer(number, "correct", answer_id="later")])
    diff = tagdiff.build(copied.found, copied.new.version)
    assert diff.folder != copied.diff.folder
    assert first.content_sha256 not in {change.content_sha256 for change in diff.riskiest}
    assert diff.answered.contents == copied.diff.answered.contents + 1
    assert diff.folder in copied.shop.tags(copied.new.version)[tagdiff.TAG]


def test_a_label_that_was_merged_is_no_mistake(copied: Scene) -> None:
    """People said ``LABELS[3]`` when there was one, and both models still have a row of it."""
    gone, into = LABELS[3], LABELS[2]
    names = taxonomy.current(copied.shop.store)
    assert names is not None
    taxonomy.edit(copied.shop.store, "小王", {gone: replace(names.by_id[gone], enabled=False, maps_to=into)})
    before, known = copied.diff.known, tagdiff.build(copied.found, copied.new.version).known
    # No label of the answers changes between these two, so every change that was known still is.
    assert (known.n, known.old_right, known.new_right) == (before.n, before.old_right, before.new_right)
    assert sum(gone in labels for labels, _ in LABELLED.values()) > 1


def test_learned_contents_that_were_altered_are_unknown(copied: Scene) -> None:
    copied.shop.store.write_bytes("trainings/t1/contents.txt", b"")
    copied.shop.store.delete(f"{copied.diff.folder}/summary.json")
    assert tagdiff.build(copied.found, copied.new.version).known.learned is None


# ------------------------------------------------------------------ other backbones, and what is refused


def test_another_backbone_is_compared_by_content(copied: Scene) -> None:
    """It has 40 of the 48 contents, and says the right label of four in five of them."""
    shop, labels = copied.shop, (*LABELS, WRONG)
    head = Head(labels, np.full(5, 0.6, np.float32), np.eye(5, 6, dtype=np.float32) * 9, np.zeros(5, np.float32))
    tagger = save(Path(copied.found.store).parent / "other", TINY, TINY.network().state_dict(), head)
    model = shop.add(tagger)
    assert "没有改动对比" in tagdiff.told(copied.found, model.version)
    key = part_key(tagger.backbone_sha256, "2026-03-03", "2026-03-03-cccccccccccc", 0)
    with shop.store.writing(key) as path, EmbeddingWriter(path, tagger.backbone_sha256, 6) as writer:
        for number in reversed(range(40)):
            writer.add(shop.contents[number], np.eye(6, dtype=np.float16)[number // 12 if number % 5 else 4])
    diff = tagdiff.build(copied.found, model.version)
    rows = [
        replace(row, new=(shop.label(row.number) if row.number % 5 else WRONG, "auto"))
        for row in expected(shop)
        if row.number < 40
    ]
    assert diff.contents == 40
    listed = [number for number in range(40, 48) if shop.copies(number)]
    assert diff.missing == tagdiff.Count(sum(map(shop.copies, listed)), len(listed))
    assert diff.changed_label.images > 0
    assert diff.changed_label == counted([row for row in rows if row.relabelled])
    assert diff.newly_live == counted([row for row in rows if (row.old[1], row.new[1]) == ("review", "auto")])
    assert not diff.versions.same_backbone
    assert "没有比较" in tagdiff.markdown(diff)
    assert "缺少其中一个模型所需的特征向量" in shop.store.read_bytes(diff.page).decode()


def test_whoever_decides_is_led_to_the_page(copied: Scene) -> None:
    found = copied.found.model_copy(update={"public_url": "https://airflow.shop.example/"})
    assert f"(https://airflow.shop.example/wwts/{copied.diff.folder}/)" in tagdiff.told(found, copied.new.version)


def test_a_damaged_part_is_told_to_whoever_decides(copied: Scene) -> None:
    shop = copied.shop
    key = part_key(copied.old.backbone_sha256, "2026-03-04", "2026-03-04-dddddddddddd", 0)
    shop.store.write_bytes(key, b"no parquet")
    with pytest.raises(WwtsError, match="2026-03-04-dddddddddddd"):
        tagdiff.build(copied.found, copied.new.version)
    told = tagdiff.told(copied.found, copied.new.version)
    assert "没有改动对比" in told
    assert "dddddddddddd" in told
    assert "](" not in told, "the page that is there is of other facts"


def test_the_challenger_is_taken_when_nobody_names_a_version(copied: Scene) -> None:
    with pytest.raises(WwtsError, match="is challenger"):
        tagdiff.build(copied.found, None)
    copied.shop.set("challenger", copied.new.version)
    assert tagdiff.build(copied.found, None) == copied.diff


def test_the_champion_and_unknown_versions_are_refused(scene: Scene) -> None:
    with pytest.raises(WwtsError, match="is champion already"):
        tagdiff.build(scene.found, scene.old.version)
    with pytest.raises(WwtsError, match="no version 99"):
        tagdiff.build(scene.found, "99")


def test_before_anything_is_published_a_content_counts_as_one_image(copied: Scene) -> None:
    copied.shop.store.delete("published/current.json")
    diff = tagdiff.build(copied.found, copied.new.version)
    assert diff.images == diff.contents == 48
    assert diff.changed_label.images == copied.diff.changed_label.contents
    assert "都按一张算" in copied.shop.store.read_bytes(diff.page).decode()


def test_json_comes_back_as_it_was(scene: Scene) -> None:
    value: dict[str, Any] = scene.shop.store.read_json(f"{scene.diff.folder}/summary.json")
    assert TagDiff.of(value) == scene.diff
    assert isinstance(TagDiff.of(value).riskiest[0], Change)
    with pytest.raises(ValueError, match="images"):
        TagDiff.of({**value, "images": "many"})
    assert UNKNOWN_CONTENT not in str(value)
