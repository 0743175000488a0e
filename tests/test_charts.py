"""Pictures and page of an evaluation: readable with and without a Chinese font, whatever people wrote and measured."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged_scene import Entry, Scene, photographs, verdict_of
from PIL import Image

from eval import charts, comparison, contact_sheet, fonts, markdown, page
from eval.comparison import Changed, Confusion, Names, Sheet
from eval.fonts import Font
from eval.reports import CaseResult, Latency, LatencyReport
from wwts_ops import settings
from wwts_ops.badcases import BadCase

CUP, CAT, ROCKET = "imagenet:n07920052", "imagenet:n02123045", "imagenet:n04266014"
EVIL = "<script>alert(1)</script>|`x`$\\frac{1}$ 🍎\n\u202e=1+1"
NAMES = Names({CUP: "意式浓缩咖啡", CAT: EVIL, ROCKET: "导弹" * 20}, {CUP: "espresso", CAT: EVIL, ROCKET: "missile"})


@pytest.fixture(scope="module", params=["chinese", "latin"])
def font(request: pytest.FixtureRequest) -> Font:
    found = fonts.best() if request.param == "chinese" else fonts.latin()
    if request.param == "chinese" and not found.is_chinese:
        pytest.skip("needs a font with Chinese (apt install fonts-noto-cjk)")
    return found


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """matplotlib only warns of a letter that its font does not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def result(content: str, label: str | None, *, right: bool, sure: float = 0.9) -> CaseResult:
    confidence = None if label is None else sure
    top5 = () if label is None else (label,)
    return CaseResult(
        content_sha256=content, label_id=label, confidence=confidence, top5=top5, decision="auto", right=right
    )


def case(content: str, *accepted: str, **more: Any) -> BadCase:
    given: dict[str, Any] = {
        "forbidden": (),
        "slices": (),
        "owner": "",
        "reason": "",
        "never_regress": False,
        "starter": False,
        "image_id": None,
        "uri": None,
        "added_at": datetime(2026, 3, 1, tzinfo=UTC),
        "added_by": "小王",
    }
    return BadCase(content_sha256=content, accepted=accepted, **{**given, **more})


def changed(content: str, *, lost: bool, sure: float = 0.9, **more: Any) -> Changed:
    said = result(content, CUP, right=lost), result(content, ROCKET, right=not lost, sure=sure)
    return Changed(case(content, CUP if lost else ROCKET, **more), *said)


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def thumbnail(colour: str, size: tuple[int, int] = (320, 200)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


class TestContactSheet:
    def test_every_case_has_its_picture_in_its_place(self, font: Font) -> None:
        """Six lost and one won: two rows of four, a heading, one more row."""
        colours = ["red", "lime", "blue", "yellow", "cyan", "magenta", "black"]
        cases = [changed(colour, lost=colour != "black") for colour in colours]
        sheet = Sheet(tuple(cases[:6]), tuple(cases[6:]), 6, 1)
        drawn = opened(contact_sheet.draw(sheet, {colour: thumbnail(colour) for colour in colours}, NAMES, font))
        pixels = np.asarray(drawn).astype(int)
        places = {}
        for colour in colours:
            wanted = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0].astype(int)
            ys, xs = np.nonzero(np.abs(pixels - wanted).sum(axis=2) < 40)
            places[colour] = (round(float(np.median(xs))), round(float(np.median(ys))))
        red, lime, blue, yellow, cyan, magenta, black = (places[colour] for colour in colours)
        rows = [red, lime, blue, yellow], [cyan, magenta], [black]
        for row in rows:
            assert [x for x, _ in row] == sorted(x for x, _ in row)
            assert max(y for _, y in row) - min(y for _, y in row) <= 2
            assert abs(row[0][0] - red[0]) <= 2
        assert red[1] + 186 < cyan[1] < cyan[1] + 186 < black[1]
        assert drawn.width <= 830  # MLflow shows it at its own size, in a column that wide

    def test_a_case_without_a_picture_or_a_label_is_drawn_too(self, font: Font) -> None:
        gone = Changed(case("a", CUP, CAT, ROCKET, CUP), result("a", CUP, right=True), result("a", None, right=False))
        only_forbidden = Changed(
            case("b", forbidden=(CAT,)), result("b", CUP, right=True), result("b", CAT, right=False)
        )
        drawn = opened(contact_sheet.draw(Sheet((gone, only_forbidden), (), 2, 0), {}, NAMES, font))
        assert drawn.format == "JPEG"

    def test_what_may_never_regress_is_marked(self, font: Font) -> None:
        plain, marked = (
            opened(
                contact_sheet.draw(Sheet((changed("a", lost=True, never_regress=never),), (), 1, 0), {}, NAMES, font)
            )
            for never in (False, True)
        )
        crimson = np.array([163, 36, 76])
        count = [int((np.abs(np.asarray(one).astype(int) - crimson).sum(axis=2) < 30).sum()) for one in (plain, marked)]
        assert count[1] > count[0] + 500

    def test_texts_never_leave_their_tile(self, font: Font) -> None:
        long = Names({CUP: "很长的名字" * 50, ROCKET: "W" * 500}, {CUP: "W" * 500, ROCKET: "W" * 500})
        tile = opened(contact_sheet.draw(Sheet((changed("a", lost=True),), (), 1, 0), {}, long, font))
        names = np.asarray(tile.convert("L"))[46 + 186 :, :]  # below heading and photograph
        dark = np.nonzero(names < 140)[1]
        assert len(dark) > 0
        assert dark.max() <= 14 + 186


class TestCharts:
    def test_latency_of_both_and_of_one_alone(self, font: Font) -> None:
        one = Latency(
            p50=0.05, p95=0.06, p99=0.07, images_per_second=20, p95_repeats=(0.06,), samples=(0.05, 0.06, 5.0)
        )
        same = one.model_copy(update={"samples": (0.05,), "p99": 0.05})
        for champion in (one, same, None, one.model_copy(update={"samples": ()})):
            report = LatencyReport(images=3, hardware="", challenger=same, champion=champion)
            assert opened(charts.latency(report, font)).format == "PNG"

    @pytest.mark.parametrize(
        "said",
        [
            [(0.9, True)],
            [(0.9, False), (0.1, False)],
            [(1.0, True), (0.0, False), (0.5, True)],
            [(1.0000001, True)],
            [(None, False)],
            [],
        ],
    )
    def test_reliability_of_few_of_one_kind_and_of_none(
        self, said: list[tuple[float | None, bool]], font: Font, tmp_path: Path
    ) -> None:
        made = Scene(
            settings.load(store=str(tmp_path / "store")), [Entry(photographs()[0], CUP, (CUP, 0.5), (CUP, 0.5))]
        )
        results = tuple(
            result(str(number), None if sure is None else CUP, right=right, sure=sure or 0.0)
            for number, (sure, right) in enumerate(said)
        )
        report = made.reports.accuracy
        assert report is not None
        report = report.model_copy(update={"challenger_results": results, "champion_results": results[:1]})
        assert opened(charts.reliability(report, font)).format == "PNG"

    def test_confusions_whatever_the_labels_are_called(self, font: Font) -> None:
        found = [
            Confusion(CUP, CAT, 12, 3),
            Confusion(CAT, None, 5, 0),
            Confusion(None, ROCKET, 1, 1),
            Confusion("unknown:$x$", "未知", 1, 0),
        ]
        few, many = (opened(charts.confusions(found * times, NAMES, font)) for times in (1, 9))
        assert few.format == "PNG"
        assert few.height < many.height < 3 * few.height  # the first twelve only


class TestFonts:
    def test_a_letter_that_the_font_lacks_becomes_a_box(self) -> None:
        latin = fonts.latin()
        assert latin.writable("Café 🍎\n x") == "Café □ x"
        assert not latin.is_chinese

    def test_the_chinese_one_has_every_letter_that_is_drawn(self) -> None:
        found = fonts.best()
        if not found.is_chinese:
            pytest.skip("needs a font with Chinese (apt install fonts-noto-cjk)")
        words = "".join(charts._ENGLISH) + "".join(vars(contact_sheet._CHINESE).values()) + "✓×…▼▲→（）0123456789%"
        assert found.writable(words) == " ".join(words.split())

    def test_the_latin_one_has_every_english_letter_that_is_drawn(self) -> None:
        words = "".join(charts._ENGLISH.values()) + "".join(vars(contact_sheet._ENGLISH).values()) + "✓×…▼▲→0123456789%"
        assert fonts.latin().writable(words) == " ".join(words.split())


class TestComparison:
    def accuracy(self, tmp_path: Path, entries: list[Entry]) -> tuple[Any, tuple[BadCase, ...]]:
        made = Scene(settings.load(store=str(tmp_path / "store")), entries, p95=None)
        return made.reports.accuracy, made.snapshot.cases

    def entries(self) -> list[Entry]:
        right, wrong = (CUP, 0.9), (CAT, 0.6)
        said = [(right, wrong)] * 5 + [(wrong, right)] * 5 + [(right, right), (wrong, wrong)]
        return [
            Entry(photo, CUP, champion, challenger, never_regress=number in (3, 8))
            for number, (photo, (champion, challenger)) in enumerate(zip(photographs(), said, strict=True))
        ]

    def test_lost_first_and_among_them_those_that_may_never_regress(self, tmp_path: Path) -> None:
        report, cases = self.accuracy(tmp_path, self.entries())
        sheet = comparison.sheet(report, cases)
        assert (sheet.lost_total, sheet.won_total) == (5, 5)
        assert [one.lost for one in sheet.shown] == [True] * 5 + [False] * 5
        assert [one.case.never_regress for one in sheet.lost] == [True, False, False, False, False]
        assert sheet.won[0].case.never_regress
        unchanged = {cases[10].content_sha256, cases[11].content_sha256}
        assert unchanged.isdisjoint(one.case.content_sha256 for one in sheet.shown)

    def test_the_won_ones_keep_a_part_of_the_room(self) -> None:
        """Forty fit: of 60 lost and 30 won, 28 and 12; of 60 lost and 3 won, 37 and 3."""
        for won, expected in ((30, (28, 12)), (3, (37, 3)), (0, (40, 0))):
            one = changed("a", lost=True)
            other = changed("b", lost=False)
            cases = [case(f"{kind}{number}", CUP) for kind, many in (("l", 60), ("w", won)) for number in range(many)]
            right = {True: one.champion, False: other.champion}

            class Report:
                champion_results = tuple(
                    right[c.content_sha256[0] == "l"].model_copy(update={"content_sha256": c.content_sha256})
                    for c in cases
                )
                challenger_results = tuple(
                    said.model_copy(update={"right": not said.right}) for said in champion_results
                )

            sheet = comparison.sheet(Report, cases)  # type: ignore[arg-type]
            assert (len(sheet.lost), len(sheet.won)) == expected
            assert (sheet.lost_total, sheet.won_total) == (60, won)

    def test_confusions_count_both_models_and_the_frequent_stand_first(self, tmp_path: Path) -> None:
        entries = self.entries()
        entries[0] = Entry(photographs()[0], CUP, (CUP, 0.9), (None, 0.0))
        found = comparison.confusions(*self.accuracy(tmp_path, entries))
        assert found == (Confusion(CUP, CAT, 5, 6), Confusion(CUP, None, 1, 0))

    def test_the_csv_runs_nothing_in_a_spreadsheet(self) -> None:
        names = Names({"=a": "=HYPERLINK(1)", "b": "@sum", "c": '+1\n,"x'}, {})
        found = (Confusion("=a", "b", 2, 1), Confusion("c", None, 1, 0), Confusion(None, "-d", 1, 0))
        data = comparison.confusions_csv(found, names)
        assert data.startswith(b"\xef\xbb\xbf")
        head, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        assert head == ["truth", "truth_zh", "predicted", "predicted_zh", "challenger", "champion"]
        assert rows[0] == ["'=a", "'=HYPERLINK(1)", "b", "'@sum", "2", "1"]
        assert rows[1] == ["c", "'+1\n,\"x", "", "无标签", "1", "0"]
        assert rows[2] == ["", "不是-d", "'-d", "'-d", "1", "0"]


class TestMarkdown:
    @given(st.text(max_size=200))
    def test_it_is_shown_as_it_is_written(self, value: str) -> None:
        escaped = markdown.text(value, 200)
        assert html.unescape(escaped) == markdown.shown(value, 200)
        rest = re.sub(r"&#\d+;", " ", escaped)
        assert not set(rest) & set("!\"#$&'()*+/:;<=>?@[\\]^_`{|}~¨\n\r")
        assert not re.search(r"(?<!\d)\.|\.(?!\d)|(?<!\w)-|-(?!\w)", rest)

    @pytest.mark.parametrize("value", ["1.5%", "P95", "b000001-1a2b", "水果 2.5 元", "a, b"])
    def test_plain_text_stays_readable(self, value: str) -> None:
        assert markdown.text(value) == value

    def test_the_middle_of_a_long_text_gives_way(self) -> None:
        assert markdown.text("a" * 50 + "b" * 50, 21) == "a" * 10 + "…" + "b" * 10


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class TestPage:
    @pytest.fixture
    def rendered(self, tmp_path: Path) -> str:
        entries = [
            Entry(photo, CUP, (CUP, 0.9), (CAT if number % 2 else CUP, 0.8), (EVIL,), number == 1, EVIL, EVIL)
            for number, photo in enumerate(photographs())
        ]
        made = Scene(settings.load(store=str(tmp_path / "store")), entries)
        accuracy, decision = made.reports.accuracy, made.decision
        verdict = verdict_of(decision, mode="dry_run", reasons=(*decision.reasons, EVIL))
        sheet = comparison.sheet(accuracy, made.snapshot.cases)
        shown = {one.case.content_sha256: thumbnail("red") for one in sheet.shown[1:]}
        facts = page.Facts(
            verdict, made.reports, sheet, comparison.confusions(accuracy, made.snapshot.cases), NAMES, datetime.now(UTC)
        )
        return page.render(facts, shown, {"latency": charts.latency(made.reports.latency, fonts.latin())})  # type: ignore[arg-type]

    def test_it_loads_nothing_and_runs_nothing(self, rendered: str) -> None:
        found = _Page(rendered)
        assert {tag for tag, _ in found.tags}.isdisjoint({"script", "iframe", "object", "form", "base"})
        sources = [attrs["src"] for tag, attrs in found.tags if tag == "img"]
        assert len(sources) == 6  # five of six lost cases have a thumbnail, and there is one chart
        assert all(source and source.startswith("data:image/") for source in sources)
        assert not [attrs for _, attrs in found.tags if any(name.startswith("on") for name in attrs)]
        (policy,) = (
            attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy"
        )
        assert policy is not None
        assert policy.startswith("default-src 'none'; img-src data:; ")
        (css,) = re.findall(r"<style>(.*?)</style>", rendered, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}'" in policy

    def test_it_says_the_verdict_and_shows_hostile_text_as_text(self, rendered: str) -> None:
        text = "".join(_Page(rendered).text)
        assert "✗ 未通过门禁" in text
        assert "仅演练，不作为上线依据" in text
        assert "▼ 变错 6 条" in text
        assert "<script>alert(1)</script>" in text
        assert "\u202e" not in text
        assert text.count("没有图片") == 1
        assert "不许退步" in text
