"""The daily page says what the night did: its numbers are held against the rows the store was built from."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_store
from PIL import Image
from report_store import DATE, DRINKS, Bad, Night, Row

from wwts_ops import report, settings, taxonomy
from wwts_ops.images import REASONS
from wwts_ops.storage import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROWS = report_store.random_rows(1, 400)
BAD = [
    *(Bad(f"坏/{n:02d}.jpg", "truncated", f"ends after {n} bytes") for n in range(9)),
    Bad("坏/空.png", "empty"),
    Bad("坏/x.png", "reason_of_tomorrow"),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "仓库 store"))


def page_of(store: Store, **given: object) -> str:
    key = report.build(store, settings.load(store=store.root, **given), DATE)
    assert key == "reports/date=2026-03-08/index.html"
    return store.read_bytes(key).decode()


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.css, self._inside = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.css += data
        else:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def split_of(rows: list[Row]) -> report.Split:
    count = Counter(row.decision for row in rows)
    return report.Split(count["auto"], count["review"], count["forced_review"])


def test_totals_are_those_of_the_rows(store: Store) -> None:
    report_store.write(store, Night(1, ROWS, BAD, shards=3, seconds=7.5))
    found = report.gather(store, DATE)
    assert found.split == split_of(ROWS)
    assert found.split.total == len(ROWS)
    assert found.duplicates == sum(row.image_id.count(".jpg") == 2 for row in ROWS) > 100
    assert found.quarantined == len(BAD)
    assert found.processed == len(ROWS) + len(BAD)
    assert found.images_per_second == pytest.approx((len(ROWS) + len(BAD)) / 22.5)
    assert found.distinct_labels == len({row.tags[0][0] for row in ROWS})
    assert found.started_at == report_store.START
    assert found.ended_at == report_store.START + timedelta(seconds=len(ROWS[::3]) - 1)
    assert (found.unscored, found.shards_left) == (0, 0)


def test_confidence_bins_put_an_edge_into_the_bin_that_it_begins(store: Store) -> None:
    report_store.write(store, Night(1, ROWS))
    bins: dict[int, list[Row]] = defaultdict(list)
    for row in ROWS:
        bins[min(round(row.tags[0][2] * 100) // 10, 9)].append(row)
    assert report.gather(store, DATE).bins == tuple(split_of(bins[number]) for number in range(10))


def test_labels_are_counted_by_id_not_by_name(store: Store) -> None:
    report_store.write(store, Night(1, ROWS))
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in ROWS:
        by_label[row.tags[0][0]].append(row)
    order = sorted(by_label, key=lambda label: (-len(by_label[label]), label))[:20]
    found = report.gather(store, DATE).labels
    assert [label.label_id for label in found] == order
    assert [label.split for label in found] == [split_of(by_label[label]) for label in order]
    assert sum(label.label == "仙鹤" for label in found) == 2


def test_categories_are_top_levels_and_the_small_ones_are_one(store: Store) -> None:
    rows = [*ROWS, replace(ROWS[0], image_id="无类目.jpg", category="")]
    report_store.write(store, Night(1, rows))
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row.category.split(" > ")[0]].append(row)
    order = sorted(by_name, key=lambda name: (-len(by_name[name]), name))
    assert len(order) > 20
    found = report.gather(store, DATE).categories
    assert [(category.name, category.split) for category in found[:-1]] == [
        (name, split_of(by_name[name])) for name in order[:20]
    ]
    rest = list(itertools.chain.from_iterable(by_name[name] for name in order[20:]))
    assert (found[-1].name, found[-1].split) == (None, split_of(rest))


def test_least_certain_are_the_lowest_of_review_each_content_once(store: Store) -> None:
    report_store.write(store, Night(1, ROWS))
    contents = {row.sha256: row for row in reversed(ROWS) if row.decision == "review"}
    lowest = sorted(row.tags[0][2] for row in contents.values())[:24]
    found = report.gather(store, DATE).least_certain
    assert [picture.tags[0].score for picture in found] == pytest.approx(lowest)
    assert len({picture.content_sha256 for picture in found}) == 24
    assert {picture.decision for picture in found} == {"review"}
    assert max(picture.copies for picture in found) > 1
    for picture in found:
        same = [row for row in ROWS if row.sha256 == picture.content_sha256]
        assert picture.copies == len(same)
        assert picture.image_id == min(row.image_id for row in same)
        assert [(tag.label_id, tag.label) for tag in picture.tags] == [tag[:2] for tag in same[0].tags[:3]]


def test_sample_is_in_the_order_of_a_hash_and_blind_to_the_rest(store: Store) -> None:
    report_store.write(store, Night(1, ROWS))

    def place(content: str) -> int:
        digest = hashlib.md5(f"{DATE}{content}".encode()).digest()
        return int.from_bytes(digest[8:], "little")

    expected = sorted({row.sha256 for row in ROWS}, key=place)[:24]
    found = report.gather(store, DATE).sample
    assert [picture.content_sha256 for picture in found] == expected
    assert len({picture.decision for picture in found}) > 1


def test_forced_reviews_show_every_reason(store: Store) -> None:
    wine = [
        Row(f"酒{n}", f"酒{n}", (("w", "红酒", 0.99),), DRINKS, "forced_review", "forced_category:饮料 > 酒类")
        for n in range(30)
    ]
    knife = Row("刀", "刀", (("k", "菜刀", 0.2),), "厨具 > 刀具", "forced_review", "forced_label")
    report_store.write(store, Night(1, [*wine, knife]))
    found = report.gather(store, DATE).forced
    assert len(found) == 12
    assert "刀" in {picture.image_id for picture in found}
    text = Page(page_of(store)).text
    assert "按规定，“饮料 > 酒类”类目必须人工审核" in text
    assert "按规定，该标签必须人工审核" in text


def test_quarantine_has_chinese_reasons_and_five_examples(store: Store) -> None:
    report_store.write(store, Night(1, ROWS[:5], BAD))
    found = report.gather(store, DATE).quarantine
    assert [(reason.code, reason.count) for reason in found] == [
        ("truncated", 9),
        ("empty", 1),
        ("reason_of_tomorrow", 1),
    ]
    assert found[0].text == REASONS["truncated"]
    assert [(e.image_id, e.detail) for e in found[0].examples] == [(bad.image_id, bad.detail) for bad in BAD[:5]]
    assert REASONS["truncated"] in Page(page_of(store)).text


def test_several_runs_of_a_date_are_one_page(store: Store) -> None:
    second = report_store.random_rows(2, 50)
    early = {"carried_over": 300, "delisted": 4, "broken_rows": 2, "broken": [_broken(5), _broken(6)]}
    late = {"carried_over": 7, "delisted": 1, "broken_rows": 1, "broken": [_broken(5)]}
    report_store.write(store, Night(1, ROWS, BAD, header=early))
    report_store.write(store, Night(2, second, shards=1, seconds=30, header=late))
    report_store.write(store, Night(3, [], shards=0, header={"catalog": "另一个目录", "carried_over": 20}))
    found = report.gather(store, DATE)
    assert [run.sequence for run in found.runs] == [1, 2, 3]
    assert found.split == split_of([*ROWS, *second])
    assert found.images_per_second == pytest.approx((len(ROWS) + len(BAD) + len(second)) / 50)
    assert found.delisted == 5
    # The later run of a catalog saw what the earlier had left over; another catalog's comes on top.
    assert found.carried_over == 27
    assert (found.broken_rows, found.broken) == (1, (report.BrokenRow(5, "图5", "没有 uri"),))


def _broken(line: int) -> dict[str, object]:
    return {"line": line, "image_id": f"图{line}", "reason": "没有 uri"}


def test_other_dates_and_unclaimed_runs_stay_out(store: Store) -> None:
    report_store.write(store, Night(1, report_store.random_rows(3, 30), BAD, day=DATE - timedelta(days=1)))
    report_store.write(store, Night(2, ROWS))
    report_store.write(store, Night(4, report_store.random_rows(5, 30), BAD))
    store.delete("runs/_sequence/000000000004.json")
    found = report.gather(store, DATE)
    assert found.split == split_of(ROWS)
    assert found.quarantined == 0
    assert [run.sequence for run in found.runs] == [2]


def test_night_without_anything_says_so(store: Store) -> None:
    found = report.gather(store, DATE)
    assert (found.processed, found.runs, found.images_per_second, found.published) == (0, (), None, None)
    page = Page(page_of(store))
    assert "今天没有新图片" in page.text
    assert "2026年3月8日 星期日" in page.text
    assert "运行编号" not in page.text


def test_night_that_only_delisted_says_both(store: Store) -> None:
    report_store.write(store, Night(1, shards=0, header={"delisted": 12}))
    text = Page(page_of(store)).text
    assert "今天没有新图片" in text
    assert "下架 12 张" in text


def test_unfinished_run_is_told(store: Store) -> None:
    report_store.write(store, Night(1, ROWS, shards=4, shards_done=1))
    found = report.gather(store, DATE)
    assert found.split == split_of(ROWS[::4])
    assert found.shards_left == 3
    assert "还有 3 批没有处理完" in Page(page_of(store)).text


def test_run_that_has_not_finished_a_shard_is_no_quiet_night(store: Store) -> None:
    report_store.write(store, Night(1, ROWS, shards_done=0))
    text = Page(page_of(store)).text
    assert "还没有结果" in text
    assert "今天没有新图片" not in text


def test_night_of_broken_files_only(store: Store) -> None:
    report_store.write(store, Night(1, [], BAD))
    page = Page(page_of(store))
    assert "全部无法处理，已隔离" in page.text
    assert not page.all("figure")


def test_image_without_any_label(store: Store) -> None:
    row = Row("全停用.jpg", "c", (), "", "review", "low_confidence;skipped_off:imagenet:n03063599")
    report_store.write(store, Night(1, [row]))
    taxonomy.ensure(store, ())
    found = report.gather(store, DATE)
    assert (found.unscored, found.labels, sum(split.total for split in found.bins)) == (1, (), 0)
    name = {label.label_id: label.label_zh for label in taxonomy.embedded_labels()}["imagenet:n03063599"]
    text = Page(page_of(store)).text
    assert f"首选标签“{name}”已停用" in text
    assert "没有可用的标签" in text


def test_published_state_and_release(store: Store) -> None:
    report_store.write(store, Night(1, ROWS[:9]))
    assert "试运行 · 标签不上线" in page_of(store)
    assert "试运行" not in page_of(store, release="live")
    report_store.publish(store, "live", 123_456, 78)
    found = report.gather(store, DATE)
    assert found.published == report.Published("s000007-2026-03-08", 123_534, 123_456, 78, model_version="1")
    # What is published decides, not what the setting would have the next night do.
    page = page_of(store, release="shadow")
    assert "试运行" not in page
    assert "12.3 万" in page
    assert "共收录 123,534 张" in page


def test_what_people_said_and_what_an_older_version_said(store: Store) -> None:
    report_store.write(store, Night(1, ROWS[:9]))
    report_store.publish(store, "live", 123_456, 78)
    text = Page(page_of(store)).text
    assert "人工答案" not in text
    assert "其他版本的标签" not in text
    pointer = store.read_json("published/current.json")
    counts = {"answered": 12_345, "model_version": "3", "model_versions": {"1": 1_000, "2": 234, "3": 99_999}}
    store.write_json("published/current.json", {**pointer, **counts})
    found = report.gather(store, DATE).published
    assert found is not None
    assert (found.answered, found.model_version, found.older) == (12_345, "3", 1_234)
    text = Page(page_of(store)).text
    assert "有 12,345 张以人工答案为准" in text
    assert "有 1,234 张的结果出自其他版本的模型（目前用第 3 版打标）" in text


def test_times_are_the_shops(store: Store) -> None:
    report_store.write(store, Night(1, ROWS[:9]))
    assert "02:00 – 02:00" in Page(page_of(store)).text
    assert "03-07 18:00 – 03-07 18:00" in Page(page_of(store, timezone="UTC")).text


def test_score_below_a_threshold_never_reads_as_reaching_it(store: Store) -> None:
    low = Row("低.jpg", "低", (("a", "苹果", 0.59999),), "生鲜", "review", "low_confidence")
    even = Row("平.jpg", "平", (("a", "苹果", 0.7),), "生鲜", "auto", "confident")
    report_store.write(store, Night(1, [low, even]))
    text = Page(page_of(store)).text
    assert "59.9%" in text
    assert "60.0%" not in text
    assert "70.0%" in text


def test_rare_decision_is_never_nought_percent(store: Store) -> None:
    rows = [replace(ROWS[0], decision="auto", reason="confident", image_id=f"{n}") for n in range(5000)]
    report_store.write(store, Night(1, [*rows, replace(ROWS[0], decision="review", image_id="x")]))
    text = Page(page_of(store)).text
    assert "99.9%" in text
    assert "0.1%" in text


HOSTILE = (
    "<script>alert(1)</script>.jpg",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "'; } body { display: none } {{ 7*7 }} {% raw %}",
    "\u202egpj.exe\u2066",
    "a\x00b\x1b[31m\r\n",
    "👩‍👩‍👧‍👦🍎.jpg",
    "مرحبا.jpg",
    "长" * 5000,
)


def test_hostile_texts_are_shown_as_text(store: Store) -> None:
    rows = [
        Row(text, text, ((f"id{text}", text, 0.3), ("b", text, 0.2)), f"{text} > x", decision, reason + text)
        for text in HOSTILE
        for decision, reason in (("review", ""), ("forced_review", "forced_category:"))
    ]
    header = {
        "catalog": HOSTILE[1],
        "model_version": HOSTILE[0],
        "taxonomy_version": HOSTILE[0],
        "broken_rows": len(HOSTILE),
        "broken": [{"line": 1, "image_id": text, "reason": text} for text in HOSTILE],
    }
    report_store.write(store, Night(1, rows, [Bad(text, "empty", text) for text in HOSTILE], header=header))
    html = page_of(store)
    page = Page(html)
    plain = _tags(page_of_plain_night(store))
    assert _tags(html) <= plain
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    shown = set(page.texts)
    assert {"<script>alert(1)</script>.jpg", "👩‍👩‍👧‍👦🍎.jpg", "مرحبا.jpg", "a�b�[31m��"} <= shown
    assert {HOSTILE[1], HOSTILE[2]} <= shown
    # A path has no words: it is broken at the end of a line, not after its first Chinese character.
    assert '<bdi class="path" title="مرحبا.jpg">' in html
    assert ".path { word-break: break-all; }" in html
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", html)
    assert len(html) < 600_000


def page_of_plain_night(store: Store) -> str:
    plain = Store(f"{store.root}-plain")
    report_store.write(plain, Night(1, ROWS, BAD, header={"broken_rows": 1, "broken": [_broken(1)]}))
    pictured = next(row for row in ROWS if row.decision == "review")
    report_store.write_thumbnail(plain, pictured, Image.new("RGB", (40, 40)))
    return page_of(plain)


def _tags(html: str) -> set[str]:
    return {name for name, _ in Page(html).elements}


def test_page_asks_nobody_for_anything(store: Store) -> None:
    page = Page(page_of_plain_night(store))
    assert not {"script", "iframe", "object", "embed", "base", "form", "video", "audio", "source"} & {
        name for name, _ in page.elements
    }
    for name, attributes in page.elements:
        for attribute in ("src", "href", "srcset", "data", "poster", "action", "xlink:href", "background", "ping"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("data:", "#")), (name, attribute, value)
        assert "style" not in attributes
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {str(link["href"])[1:] for link in page.all("a")} <= targets
    assert not re.search(r"url\(|@import|https?:|//", page.css)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.css.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_charts_have_words(store: Store) -> None:
    html = page_of_plain_night(store)
    assert "40% 到 50%：" in re.search(r"<desc[^>]*>(.*?)</desc>", html, re.S).group(1)  # type: ignore[union-attr]
    for chart in Page(html).all("svg"):
        assert {"aria-hidden", "aria-label", "aria-labelledby"} & set(chart)


def test_thumbnails_are_inside_and_a_missing_one_is_a_box(store: Store) -> None:
    rows = [
        Row(f"{n}.jpg", f"{n}", (("a", "宇航员", 0.3 + n / 100),), "人物", "review", "low_confidence") for n in range(6)
    ]
    pictures = report_store.photographs()
    sent = [report_store.write_thumbnail(store, row, picture) for row, picture in zip(rows[:4], pictures, strict=True)]
    store.write_bytes(f"thumbnails/{rows[4].sha256[:2]}/{rows[4].sha256}.jpg", b"<svg onload=alert(1)>")
    report_store.write(store, Night(1, rows))
    assert [picture.thumbnail for picture in report.gather(store, DATE).least_certain] == [*sent, None, None]
    page = Page(page_of(store))
    shown = [base64.b64decode(str(image["src"]).removeprefix("data:image/jpeg;base64,")) for image in page.all("img")]
    assert sorted(shown) == sorted(sent * 2)
    assert page.text.count("没有缩略图") == 4


def test_same_store_gives_the_same_page(store: Store) -> None:
    report_store.write(store, Night(1, ROWS, BAD))
    first = report.gather(store, DATE)
    assert report.render(first) == report.render(replace(report.gather(store, DATE), made_at=first.made_at))


def chromium(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    return subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", *quiet),
            *("--enable-logging=stderr", "--virtual-time-budget=2000", f"--user-data-dir={home}", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        env={**os.environ, "HOME": str(home)},
    )


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; `apt-get install chromium` to see the page in a browser")
    return lambda *arguments: chromium(tmp_path / "chromium", *arguments)


def test_browser_shows_the_page_and_complains_of_nothing(
    store: Store, tmp_path: Path, browse: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    report_store.write(store, Night(1, ROWS, BAD))
    for row, picture in zip(ROWS, itertools.cycle(report_store.photographs()), strict=False):
        report_store.write_thumbnail(store, row, picture)
    page_of(store)
    url = Path(store.path("reports/date=2026-03-08/index.html")).as_uri()
    dom = browse("--dump-dom", url)
    assert f"{len(ROWS) + len(BAD):,}" in Page(dom.stdout).text
    assert "CONSOLE" not in dom.stderr
    shots = []
    for name, width, scheme in (("light", 1280, 1), ("dark", 1280, 0), ("narrow", 500, 1)):
        file = tmp_path / f"{name}.png"
        browse(
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},1600",
            f"--screenshot={file}",
            url,
        )
        with Image.open(file) as shot:
            shots.append(shot.convert("RGB"))
            assert shot.width == width
    light, dark, narrow = shots
    # The page's paper, and far more colours on it than text has: bars and photographs.
    assert (light.getpixel((5, 5)), dark.getpixel((5, 5))) == ((0xFB, 0xFA, 0xF7), (0x14, 0x16, 0x1A))
    assert min(len(shot.getcolors(1 << 24)) for shot in (light, dark, narrow)) > 10_000


def test_browser_would_complain(tmp_path: Path, browse: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    page = tmp_path / "bad.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    page.write_text(f"<!DOCTYPE html>{policy}<style>p {{ color: red }}</style><p>x")
    assert "CONSOLE" in browse("--dump-dom", page.as_uri()).stderr


def test_shop_photographs(store: Store) -> None:
    folder = report_store.grocery()
    if folder is None:
        pytest.skip("no shop photographs: set WWTS_TEST_PHOTOS to a folder with labels_zh.csv and val/")
    report_store.shop_night(store, folder)
    found = report.gather(store, DATE)
    assert found.split.total > 280
    pictures = [*found.least_certain, *found.forced, *found.sample]
    assert len(pictures) == 60
    assert sum(picture.thumbnail is not None for picture in pictures) > 50
    assert len(page_of(store)) < 4_000_000


def test_another_date_of_the_same_rows_shuffles_anew(store: Store) -> None:
    report_store.write(store, Night(1, ROWS))
    report_store.write(store, Night(2, ROWS, day=date(2026, 3, 9)))
    days = [report.gather(store, day).sample for day in (DATE, date(2026, 3, 9))]
    assert {p.content_sha256 for p in days[0]} != {p.content_sha256 for p in days[1]}
