"""Files of corrections, the same on SQLite and on a real PostgreSQL: good rows count once, each bad one says why."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import review_table
import structlog
from forkserver import CONTEXT
from import_shop import FRUIT, LABELS, ImportShop, content_of
from typer.testing import CliRunner
from written_nights import NOON, Nights, auto, review, tag_row

from wwts_ops import corrections, database, planning, taxonomy
from wwts_ops.cli import app
from wwts_ops.corrections import Imported, answers
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.planning import Pin, Request
from wwts_ops.schemas import QUARANTINE, TAGS
from wwts_ops.taxonomy import Label


@pytest.fixture
def shop(clean_environment: None, database_url: str, tmp_path: Path) -> ImportShop:
    """A published night of ``FRUIT``."""
    made = ImportShop(tmp_path / "店 1", database_url)
    made.night(FRUIT)
    made.publish()
    return made


def reasons(done: Imported) -> dict[int, str]:
    return {refusal.line: refusal.reason for refusal in done.refused}


class TestWhichImage:
    def test_it_is_found(self, shop: ImportShop) -> None:
        rows = [
            ("a.jpg", "", ""),
            ("./x/../a.jpg", "", ""),
            (shop.uri("a"), "", ""),
            (f"{shop.folder}/./a.jpg", "", ""),
            ("", "a", ""),
            ("", "", content_of("a")),
            ("", "", content_of("a").upper()),
            ("a.jpg", "a", content_of("a")),
        ]
        done = shop.bring("uri,image_id,content_sha256,label_id", *((*row, "t:梨") for row in rows))
        assert done == Imported(1, 7, ())
        (row,) = shop.answers()
        assert (row["content_sha256"], row["image_id"]) == (content_of("a"), "a")

    def test_a_content_alone_is_no_image(self, shop: ImportShop) -> None:
        shop.bring("content_sha256,label_id", (content_of("a"), "t:梨"))
        assert [row["image_id"] for row in shop.answers()] == [None]

    def test_names_in_any_script(self, shop: ImportShop) -> None:
        shop.bring("uri,label_zh", ("图片/丁 🍎.jpg", "桃🍑"))
        assert shop.in_force() == {content_of("图片/丁 🍎"): ("correct", ["t:桃"])}

    def test_a_path_as_windows_writes_it(self, shop: ImportShop) -> None:
        done = shop.bring("image_id,uri,label_id", ("图片\\丁 🍎", "", "t:桃"))
        assert (done.added, set(shop.in_force())) == (1, {content_of("图片/丁 🍎")})

    def test_in_a_folder_of_images(self, shop: ImportShop, tmp_path: Path) -> None:
        folder = tmp_path / "照片"
        (folder / "子").mkdir(parents=True)
        (folder / "子" / "e\u0301.jpg").touch()  # as macOS writes é
        pin = Pin("wwts-tagger", "9", "9" * 64, "b" * 64, "t000001")
        found = shop.settings.model_copy(update={"catalog": str(folder)})
        plan = planning.commit(
            shop.nights.store, planning.propose(shop.nights.store, found, Request(date.today(), pin))
        )
        assert plan is not None
        (image_id,) = shop.nights.images(plan)
        (uri,) = planning.read_shard(shop.nights.store, plan.run_key, 0)["uri"].to_pylist()
        row = tag_row(plan, image_id, auto("梨"), NOON, {"uri": uri, "content_sha256": content_of("é")})
        shop.nights.put(plan, 0, "tags", [row], TAGS)
        shop.nights.put(plan, 0, "quarantine", [], QUARANTINE)
        shop.nights.mark(plan, 0)
        relative, absolute = "子/é.jpg", f"{folder}/子/é.jpg"
        assert shop.bring("uri,label_id", (relative, "t:桃")) == Imported(1, 0, ())
        assert shop.bring("uri,label_id", (absolute, "t:桃")) == Imported(0, 1, ())
        assert shop.in_force() == {content_of("é"): ("correct", ["t:桃"])}

    def test_the_newest_bytes_count_and_what_was_once_tagged_is_known(self, shop: ImportShop) -> None:
        shop.night({"b": auto("梨")}, {"a": "1", "副本a": "1", "b": "2", "c": "1", "图片/丁 🍎": "1"})
        shop.bring("image_id,content_sha256,label_id", ("b", "", "t:桃"), ("", content_of("b"), "t:苹果"))
        assert shop.in_force() == {
            content_of("b", "2"): ("correct", ["t:桃"]),
            content_of("b", "1"): ("correct", ["t:苹果"]),
        }

    def test_several_columns_must_mean_the_same(self, shop: ImportShop) -> None:
        header = "uri,image_id,content_sha256,label_id"
        done = shop.bring(
            header,
            ("a.jpg", "a", content_of("a"), "t:梨"),
            ("b.jpg", "c", "", "t:梨"),
            ("", "c", content_of("b"), "t:梨"),
        )
        assert done.added == 1
        assert set(reasons(done)) == {3, 4}
        assert all("mean different pictures" in reason for reason in reasons(done).values())

    def test_what_could_not_be_read_is_refused(self, shop: ImportShop) -> None:
        shop.night(
            {"b": "truncated", "neu": "corrupt", "weg": "unreadable_uri"},
            {"a": "1", "副本a": "1", "b": "2", "c": "1", "图片/丁 🍎": "1", "neu": "1", "weg": "1"},
        )
        done = shop.bring("image_id,label_id", ("b", "t:梨"), ("neu", "t:梨"), ("weg", "t:梨"), ("fehlt", "t:梨"))
        assert shop.answers() == []
        found = reasons(done)
        assert "in quarantine (truncated)" in found[2]
        assert "in quarantine (corrupt)" in found[3]
        assert "every night tries again" in found[4]
        assert "'fehlt' is no image that was ever tagged" in found[5]

    def test_before_the_first_night(self, clean_environment: None, tmp_path: Path) -> None:
        shop = ImportShop(tmp_path / "new", f"sqlite:///{tmp_path / 'wwts.db'}")
        with pytest.raises(WwtsError, match="Nothing is tagged"):
            shop.bring("image_id,label_id", ("a", "t:梨"))


class TestWhichLabel:
    def test_it_is_found(self, shop: ImportShop) -> None:
        cases = [
            ("t:梨", "", ["t:梨"]),
            ("", "梨", ["t:梨"]),
            ("", " 雪梨 ", ["t:梨"]),
            ("t:梨", "梨", ["t:梨"]),
            ("t:梨", "雪梨", ["t:梨"]),
            ("t:杯2", "杯子", ["t:杯2"]),
            ("t:梨|t:杯1｜t:桃", "", ["t:梨", "t:杯1", "t:桃"]),
            ("", "梨|桃🍑", ["t:梨", "t:桃"]),
            ("t:梨|t:桃", "梨|桃🍑", ["t:梨", "t:桃"]),
            ("t:梨|t:桃", "梨", ["t:梨", "t:桃"]),
        ]
        shop.night({str(number): auto("桃") for number in range(len(cases))})
        rows = [(str(number), label_id, label_zh) for number, (label_id, label_zh, _) in enumerate(cases)]
        assert shop.bring("image_id,label_id,label_zh", *rows) == Imported(len(cases), 0, ())
        assert shop.in_force() == {
            content_of(str(number)): ("correct", labels) for number, (_, _, labels) in enumerate(cases)
        }

    def test_or_refused(self, shop: ImportShop) -> None:
        cases = [
            ("", "杯子", "several labels (t:杯1, t:杯2)"),
            ("", "香蕉", "no label is called '香蕉'"),
            ("t:香蕉", "", "fill in label_zh to make it"),
            ("T:苹果", "苹果", "'t:苹果' is written almost like it"),
            ("t:停", "", "switched off"),
            ("t:梨|t:停", "", "switched off"),
            ("", "停售品", "switched off"),
            ("t:梨", "苹果", "label_id 't:梨' is '梨', not '苹果'"),
            ("t:梨|t:桃|t:苹果", "梨|桃🍑", "label_id names 3 labels and label_zh 2"),
            ("", "", "it names no label"),
        ]
        rows = [("a", label_id, label_zh) for label_id, label_zh, _ in cases]
        done = shop.bring("image_id,label_id,label_zh", *rows, ("b", "t:桃", ""))
        found = reasons(done)
        assert [line for line, (_, _, told) in enumerate(cases, 2) if told not in found[line]] == []
        assert len(found) == len(cases)
        assert shop.in_force() == {content_of("b"): ("correct", ["t:桃"])}
        assert set(shop.labels()) == {"t:苹果", "t:梨", "t:桃", "t:杯1", "t:杯2", "t:停"}


class TestNewLabels:
    HEADER = "image_id,label_id,label_zh,synonyms_zh,category_path"

    def test_a_new_product_line(self, shop: ImportShop) -> None:
        done = shop.bring(
            self.HEADER,
            ("a", "t:榴莲", "榴莲", "金枕|猫山王", "食品＞水果>热带"),
            ("b", "t:榴莲", "", "", ""),
            ("c", "", "榴莲", "", ""),
            ("图片/丁 🍎", "t:芒果", "", "", ""),
            ("fehlt", "t:芒果", "芒果", "", ""),
        )
        assert (done.added, done.labels_added, set(reasons(done))) == (4, ("t:榴莲", "t:芒果"), {6})
        assert shop.labels()["t:榴莲"] == Label("t:榴莲", "榴莲", "", "金枕|猫山王", "食品 > 水果 > 热带")
        assert list(shop.in_force().values()) == [("correct", ["t:榴莲"])] * 3 + [("correct", ["t:芒果"])]

    @pytest.mark.parametrize(
        ("label_id", "name", "path", "told"),
        [
            ("6.90123E+12", "可乐", "", "lost its digits in a spreadsheet"),
            ("t:新", "#N/A", "", "label_zh is #N/A, a formula that failed"),
            ("商品", "可乐", "甲 > 乙 > 丙 > 丁", "one to three levels"),
            ("imagenet:n1", "可乐", "", "must not begin with imagenet:"),
            ("t:新", "可" * 101, "", "longer than 100 characters"),
        ],
    )
    def test_what_could_be_no_label(self, shop: ImportShop, label_id: str, name: str, path: str, told: str) -> None:
        done = shop.bring("image_id,label_id,label_zh,category_path", ("a", label_id, name, path))
        assert told in reasons(done)[2]
        assert set(shop.labels()) == {label.label_id for label in LABELS}

    def test_a_number_that_lost_digits(self, shop: ImportShop) -> None:
        path = shop.file("image_id,label_id,label_zh", ("a", 690123456789012345, "可乐"), suffix=".xlsx")
        assert "a spreadsheet loses digits" in reasons(shop.bring_file(path))[2]

    def test_rows_must_agree(self, shop: ImportShop) -> None:
        done = shop.bring(
            self.HEADER,
            ("a", "t:榴莲", "榴莲", "", "食品 > 水果"),
            ("b", "t:榴莲", "榴梿", "", "食品 > 水果"),
            ("c", "t:芒果", "芒果", "", "食品"),
        )
        assert done.labels_added == ("t:芒果",)
        assert set(reasons(done)) == {2, 3}
        assert all("label_zh '榴梿' and '榴莲'" in reason for reason in reasons(done).values())
        assert "t:榴莲" not in shop.labels()

    def test_a_path_with_an_empty_level_is_refused(self, shop: ImportShop) -> None:
        done = shop.bring(self.HEADER, ("a", "t:榴莲", "榴莲", "", "食品 > > 水果"))
        assert "one to three levels, none empty" in reasons(done)[2]

    def test_a_label_that_no_good_row_names_is_not_made(self, shop: ImportShop) -> None:
        done = shop.bring(self.HEADER, ("fehlt", "t:榴莲", "榴莲", "", ""))
        assert (done.added, done.labels_added) == (0, ())
        assert "t:榴莲" not in shop.labels()

    def test_what_somebody_made_meanwhile_stays_as_it_is(
        self, shop: ImportShop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Just before ours is added, another person adds the same id under another name."""
        add = taxonomy.add

        def late(*arguments: Any) -> tuple[str, ...]:
            monkeypatch.setattr(taxonomy, "add", add)
            add(shop.nights.store, "wang", [Label("t:榴莲", "麝香猫果")])
            return add(*arguments)

        monkeypatch.setattr(taxonomy, "add", late)
        done = shop.bring(self.HEADER, ("a", "t:榴莲", "榴莲", "", ""), ("b", "t:芒果", "芒果", "", ""))
        assert shop.labels()["t:榴莲"].label_zh == "麝香猫果"
        assert "is '麝香猫果', not '榴莲'" in reasons(done)[2]
        assert (done.added, done.labels_added) == (1, ("t:芒果",))


class TestAgain:
    def test_the_same_file_adds_nothing(self, shop: ImportShop) -> None:
        path = shop.file("image_id,label_id", ("a", "t:梨"), ("b", "t:桃"))
        assert shop.bring_file(path) == Imported(2, 0, ())
        assert shop.bring_file(path, "wang") == Imported(0, 2, ())
        assert len(shop.answers()) == 2

    def test_an_old_file_overrides_nothing_newer(self, shop: ImportShop) -> None:
        path = shop.file("image_id,label_id", ("a", "t:梨"), ("b", "t:桃"))
        shop.bring_file(path)
        shop.answer("a", "t:苹果")
        corrections.retract(shop.settings, [content_of("b")], "wang")
        assert shop.bring_file(path) == Imported(0, 2, (), superseded=2)
        assert shop.in_force() == {content_of("a"): ("correct", ["t:苹果"])}

    def test_nor_does_it_say_anything_of_a_picture_that_came_since(self, shop: ImportShop) -> None:
        path = shop.file("image_id,label_id", ("a", "t:梨"), ("b", "t:桃"))
        shop.bring_file(path)
        shop.night({"a": auto("苹果")}, {"a": "2", "副本a": "1", "b": "1", "c": "1", "图片/丁 🍎": "1"})
        done = shop.bring_file(path)
        assert (done.added, done.unchanged) == (0, 1)
        assert "said so of another picture that a had then (answer 1)" in reasons(done)[2]
        assert shop.bring("image_id,label_id", ("a", "t:苹果")).added == 1, "it is something else"
        later = f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%d %H:%M:%S}+00:00"
        assert shop.bring("image_id,label_id,answered_at", ("a", "t:梨", later)).added == 1
        assert shop.in_force()[content_of("a", "2")] == ("correct", ["t:梨"])

    def test_nor_does_it_with_further_rows(self, shop: ImportShop) -> None:
        shop.bring("image_id,label_id", ("a", "t:梨"), ("b", "t:桃"))
        shop.answer("a", "t:苹果")
        corrections.retract(shop.settings, [content_of("b")], "wang")
        done = shop.bring("image_id,label_id", ("a", "t:梨"), ("b", "t:桃"), ("c", "t:梨"))
        assert done.added == 1
        assert set(reasons(done)) == {2, 3}
        assert all("an earlier import said so" in reason for reason in reasons(done).values())
        assert shop.in_force() == {content_of("a"): ("correct", ["t:苹果"]), content_of("c"): ("correct", ["t:梨"])}

    def test_unless_it_says_that_it_is_newer(self, shop: ImportShop) -> None:
        shop.bring("image_id,label_id", ("a", "t:梨"))
        shop.answer("a", "t:苹果", answered_at=datetime.now(UTC))
        later = f"{datetime.now(UTC).replace(microsecond=0):%Y-%m-%d %H:%M:%S}+00:00"
        before = shop.bring("image_id,label_id,answered_at", ("a", "t:桃", "2020-01-01 10:00"))
        assert "wang answered later than 2020-01-01 02:00 UTC" in reasons(before)[2]
        shop.answer("a", "t:苹果", answered_at=NOON)
        done = shop.bring("image_id,label_id,answered_at", ("a", "t:桃", later))
        assert done.added == 1
        assert shop.in_force()[content_of("a")] == ("correct", ["t:桃"])

    def test_what_is_in_force_already_adds_nothing(self, shop: ImportShop) -> None:
        shop.answer("a", "t:梨", "t:桃", "t:苹果")
        assert shop.bring("image_id,label_id", ("副本a", "t:梨|t:苹果|t:桃")) == Imported(0, 1, ())
        assert shop.bring("image_id,label_id", ("副本a", "t:桃|t:苹果|t:梨")) == Imported(1, 0, ())


class TestOneFile:
    def test_rows_that_contradict_each_other_are_both_refused(self, shop: ImportShop) -> None:
        done = shop.bring("image_id,label_id", ("a", "t:梨"), ("b", "t:桃"), ("副本a", "t:苹果"), ("a", "t:梨"))
        assert done.added == 1
        assert reasons(done) == {
            2: "row 4 says 苹果 t:苹果 of the same picture; keep one of them",
            4: "row 2 says 梨 t:梨 of the same picture; keep one of them",
            5: "row 4 says 苹果 t:苹果 of the same picture; keep one of them",
        }
        assert shop.in_force() == {content_of("b"): ("correct", ["t:桃"])}

    def test_copies_of_one_picture_are_one_answer(self, shop: ImportShop) -> None:
        done = shop.bring("image_id,label_id,label_zh", ("a", "t:梨", ""), ("副本a", "", "雪梨"))
        assert done == Imported(1, 1, ())
        assert len(shop.answers()) == 1


class TestWhatIsSaid:
    def test_every_column(self, shop: ImportShop) -> None:
        shop.bring(
            "图片ID,正确标签,备注,展示原因,抽样概率,操作人,时间,颜色",
            ("a", "梨", "第一行\n第二行", "audit", "0.05", "老王 🚒", "2026/3/1 9:05", "红"),
        )
        (row,) = shop.answers()
        assert (row["comment"], row["shown_because"], row["sampling_probability"]) == ("第一行\n第二行", "audit", 0.05)
        assert (row["answered_by"], row["answered_at"]) == ("老王 🚒", datetime(2026, 3, 1, 1, 5, tzinfo=UTC))

    def test_what_is_left_out(self, shop: ImportShop) -> None:
        before = datetime.now(UTC)
        assert shop.bring("image_id,label_id,颜色", ("a", "t:梨", "红")).ignored == ("颜色",)
        (row,) = shop.answers()
        assert (row["kind"], row["source"], row["shown_because"]) == ("correct", "import", "import")
        assert (row["answered_by"], row["sampling_probability"], row["weak"]) == ("li", None, False)
        assert before <= row["answered_at"] <= datetime.now(UTC)

    def test_what_consumers_read_before(self, shop: ImportShop) -> None:
        shop.bring("image_id,label_id", ("a", "t:苹果"), ("b", "t:桃"))
        first, second = shop.answers()
        assert (first["kind"], first["labels_before"]) == ("confirm", ["t:苹果", "t:rest"])
        assert (second["kind"], second["labels_before"]) == ("correct", ["t:梨", "t:rest"])
        assert (first["model_version"], first["confidence"]) == ("1", pytest.approx(0.9))

    def test_what_waits_for_a_person_was_read_by_nobody(self, clean_environment: None, tmp_path: Path) -> None:
        shop = ImportShop(tmp_path / "s", f"sqlite:///{tmp_path / 'wwts.db'}")
        shop.night({"a": review("苹果")})
        shop.publish()
        done = shop.bring("image_id,kind,label_id", ("a", "confirm", ""))
        assert "nothing is published of it" in reasons(done)[2]
        shop.bring("image_id,label_id", ("a", "t:苹果"))
        assert [(row["kind"], row["labels_before"]) for row in shop.answers()] == [("correct", [])]

    def test_every_kind(self, shop: ImportShop) -> None:
        shop.answer("c", "t:梨")
        shop.bring(
            "image_id,kind,label_id,reason",
            ("a", "confirm", "", ""),
            ("b", "都不对", "", ""),
            ("图片/丁 🍎", "reject_image", "", "not_an_image"),
            ("c", "retract", "", ""),
        )
        assert shop.in_force() == {
            content_of("a"): ("confirm", ["t:苹果"]),
            content_of("b"): ("wrong_unknown", []),
            content_of("图片/丁 🍎"): ("reject_image", []),
        }
        assert [(row["retracts"], row["reason"]) for row in shop.answers()[-2:]] == [(None, "not_an_image"), (1, None)]

    def test_right_with_another_label_is_a_correction(self, shop: ImportShop) -> None:
        """A column of kinds says 正确 beside the right label as easily as of the tag that was shown."""
        shop.bring("image_id,label_id,类型", ("a", "t:桃", "正确"), ("b", "t:梨", "正确"))
        assert shop.in_force() == {content_of("a"): ("correct", ["t:桃"]), content_of("b"): ("confirm", ["t:梨"])}

    def test_of_the_queue_though_answered_in_a_spreadsheet(self, shop: ImportShop) -> None:
        database.upgrade(shop.settings)
        queue = review_table.Table(shop.settings)
        assert queue.put("a 1") == content_of("a")
        queue.put("b 1", shown_because="audit", sampling_probability=0.02)
        rows = [(name, "t:桃", "") for name in "abc"]
        shop.bring("image_id,label_id,shown_because", *rows, ("图片/丁 🍎", "t:桃", "spot check"))
        shown = [(row["shown_because"], row["sampling_probability"]) for row in shop.answers()]
        assert shown == [("review", 1.0), ("audit", 0.02), ("import", None), ("spot check", None)]

    def test_a_file_that_takes_back_does_so_once(self, shop: ImportShop) -> None:
        shop.answer("a", "t:梨")
        shop.answer("a", "t:桃")
        path = shop.file("image_id,kind", ("a", "retract"))
        assert shop.bring_file(path) == Imported(1, 0, ())
        assert shop.bring_file(path) == Imported(0, 1, ())
        more = shop.bring("image_id,kind", ("a", "retract"), ("b", "retract"))
        assert "an earlier import said so" in reasons(more)[2]
        assert reasons(more)[3] == "there is no answer to take back"
        assert shop.in_force() == {content_of("a"): ("correct", ["t:梨"])}

    def test_what_makes_no_sense_is_refused(self, shop: ImportShop) -> None:
        cases = [
            ("kind", "maybe", "none of confirm, correct"),
            ("kind", "wrong_unknown", "takes no label"),
            ("reason", "ugly", "only reject_image takes a reason"),
            ("sampling_probability", "5%", "from 0.000001 to 1"),
            ("sampling_probability", "1e-320", "from 0.000001 to 1"),
            ("sampling_probability", "nan", "from 0.000001 to 1"),
            ("answered_at", "46082", "is no time"),
            ("answered_at", "2999-01-01", "still to come"),
            ("answered_at", "9999-12-31T23:59:59-08:00", "is no time"),
            ("answered_by", "x" * 101, "100 are the most"),
            ("comment", "a\x00b", "control character"),
            ("content_sha256", "abc", "64 hex digits"),
        ]
        columns = list(dict.fromkeys(column for column, _, _ in cases))
        rows = [("a", "t:梨", *(text if one == column else "" for one in columns)) for column, text, _ in cases]
        done = shop.bring(",".join(["image_id", "label_id", *columns]), *rows, ("b", "t:梨", *[""] * len(columns)))
        found = reasons(done)
        assert [line for line, (_, _, told) in enumerate(cases, 2) if told not in found[line]] == []
        assert (len(found), len(shop.answers())) == (len(cases), 1)

    @pytest.mark.parametrize("above", ["sep=;\n", "\n\n", "；；\n".replace("；", ";")])
    def test_what_stands_above_the_header(self, shop: ImportShop, above: str) -> None:
        path = shop.folder / "oben.csv"
        path.write_text(f"{above}image_id;label_id\na;t:梨\nfehlt;t:梨\n", encoding="utf-8")
        done = shop.bring_file(path)
        assert (done.added, set(reasons(done))) == (1, {above.count("\n") + 3})

    def test_no_image_no_cells(self, shop: ImportShop) -> None:
        path = shop.folder / "krumm.csv"
        path.write_text("image_id,label_id\n\n,t:梨\na,t:梨,mehr\n\nb,t:桃\n", encoding="utf-8")
        done = shop.bring_file(path)
        assert (done.added, set(reasons(done))) == (1, {3, 4})
        assert "names no image" in reasons(done)[3]
        assert "the row has 3 columns, the header has 2" in reasons(done)[4]


class TestOldTags:
    def test_they_never_override(self, shop: ImportShop) -> None:
        shop.answer("a", "t:桃")
        done = shop.bring_weak(
            "image_id,label_id,label_zh", ("a", "t:梨", ""), ("b", "t:旧", "旧标签"), ("c", "t:梨", "")
        )
        assert (done.added, done.labels_added) == (3, ("t:旧",))
        table = corrections.frozen(shop.settings)
        assert shop.in_force() == {content_of("a"): ("correct", ["t:桃"])}
        assert {row["content_sha256"]: row["labels"] for row in corrections.weak(table).to_pylist()} == {
            content_of("b"): ["t:旧"],
            content_of("c"): ["t:梨"],
        }
        assert {row["source"] for row in table.to_pylist() if row["weak"]} == {"import"}

    def test_again_they_add_nothing(self, shop: ImportShop) -> None:
        shop.answer("a", "t:桃")
        assert shop.bring_weak("image_id,label_id", ("a", "t:桃"), ("b", "t:梨")) == Imported(1, 1, ())
        assert shop.bring_weak("image_id,label_id", ("a", "t:桃"), ("b", "t:梨"), ("c", "t:梨")) == Imported(1, 2, ())

    def test_the_same_file_as_answers(self, shop: ImportShop) -> None:
        path = shop.file("image_id,label_id", ("b", "t:桃"))
        corrections.import_weak(shop.nights.store, shop.settings, path, "li")
        assert shop.bring_file(path) == Imported(1, 0, ())
        assert shop.in_force() == {content_of("b"): ("correct", ["t:桃"])}

    def test_they_can_be_taken_back(self, shop: ImportShop) -> None:
        shop.bring_weak("image_id,label_id", ("a", "t:桃"), ("b", "t:梨"))
        shop.answer("b", "t:苹果")
        assert shop.bring("image_id,kind", ("a", "retract"), ("b", "retract")).added == 2
        assert shop.in_force() == {}
        weak = corrections.weak(corrections.frozen(shop.settings))
        assert weak["content_sha256"].to_pylist() == [content_of("b")]

    def test_they_are_labels(self, shop: ImportShop) -> None:
        done = shop.bring_weak("image_id,kind", ("a", "wrong_unknown"))
        assert "an old tag is a label" in reasons(done)[2]


class TestFormats:
    HEADER = "uri,label_zh,comment"
    ROWS = (("a.jpg", "桃🍑", "好"), ("图片/丁 🍎.jpg", "梨", ""))

    @pytest.mark.parametrize(
        ("suffix", "encoding"),
        [
            (".csv", "utf-8-sig"),
            (".csv", "utf-8"),
            (".csv", "gb18030"),
            (".csv", "utf-16"),
            (".tsv", "utf-8"),
            (".parquet", ""),
            (".xlsx", ""),
        ],
    )
    def test_all_say_the_same(self, clean_environment: None, tmp_path: Path, suffix: str, encoding: str) -> None:
        shop = ImportShop(tmp_path / "店", f"sqlite:///{tmp_path / 'wwts.db'}")
        shop.night(FRUIT)
        path = shop.file(self.HEADER, *self.ROWS, suffix=suffix, encoding=encoding)
        assert shop.bring_file(path) == Imported(2, 0, ())
        assert shop.in_force() == {
            content_of("a"): ("correct", ["t:桃"]),
            content_of("图片/丁 🍎"): ("correct", ["t:梨"]),
        }

    @pytest.mark.parametrize(
        ("name", "data", "told"),
        [
            ("a.csv", b"", "needs a column uri, image_id or content_sha256"),
            ("a.csv", b"uri,title\na,b\n", "needs a column label_id, label_zh or kind"),
            ("a.csv", b"uri,label_id\n", "holds no corrections"),
            ("a.csv", b'uri,label_id\n"a,b\n', "is no CSV"),
            ("a.csv", b"uri,label_id\n\xff\xff,b\n", "neither UTF-8 nor GB18030"),
            ("a.parquet", b"PAR1", "no whole Parquet"),
            ("a.xlsx", b"PK", "no whole XLSX"),
            ("a.txt", b"x", "corrections come in .csv, .tsv, .parquet, .xlsx."),
        ],
    )
    def test_what_cannot_be_read(
        self, clean_environment: None, tmp_path: Path, name: str, data: bytes, told: str
    ) -> None:
        shop = ImportShop(tmp_path / "店", f"sqlite:///{tmp_path / 'wwts.db'}")
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WwtsError, match=re.escape(told)):
            shop.bring_file(tmp_path / name)


class TestAtOnce:
    def test_imports_of_one_file_are_one(self, shop: ImportShop) -> None:
        shop.night({str(number): auto("梨") for number in range(100)})
        rows = [(str(number), "t:新", "新品 🆕") for number in range(100)]
        path = shop.file("image_id,label_id,label_zh", *rows)
        with ProcessPoolExecutor(3, mp_context=CONTEXT) as pool:
            done = list(pool.map(_import, [(shop.folder, shop.database_url, path)] * 3))
        assert sum(added for added, _, _ in done) == 100
        assert [refused for _, _, refused in done] == [0, 0, 0]
        assert len(shop.answers()) == len(shop.in_force()) == 100

    def test_different_files_that_say_the_same_are_one_answer_each(self, shop: ImportShop) -> None:
        shop.night({str(number): auto("梨") for number in range(30)})
        paths = [
            shop.file("image_id,label_id,label_zh,comment", *((str(one), "t:新", "新品", who) for one in range(30)))
            for who in ("li", "wang", "zhao")
        ]
        with ProcessPoolExecutor(3, mp_context=CONTEXT) as pool:
            done = list(pool.map(_import, [(shop.folder, shop.database_url, path) for path in paths]))
        assert sorted(added for added, _, _ in done) == [0, 0, 30]
        assert len(shop.answers()) == 30

    def test_an_answer_that_comes_between_is_seen(self, shop: ImportShop, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody answers after the import has read what was said, and before it writes."""
        appending = answers.appending
        monkeypatch.setattr(answers, "appending", lambda *_: (_ for _ in ()).throw(AssertionError("not yet")))

        def late(settings: Any) -> Any:
            monkeypatch.setattr(answers, "appending", appending)
            shop.answer("a", "t:梨")
            return appending(settings)

        monkeypatch.setattr(answers, "appending", late)
        assert shop.bring("image_id,label_id", ("a", "t:梨"), ("b", "t:桃")) == Imported(1, 1, ())
        assert len(shop.answers()) == 2


def _import(work: tuple[Path, str, Path]) -> tuple[int, int, int]:
    folder, url, path = work
    done = _opened(folder, url).bring_file(path)
    return done.added, done.unchanged, len(done.refused)


def _opened(folder: Path, url: str) -> ImportShop:
    shop = object.__new__(ImportShop)
    shop.folder, shop.database_url = folder, url
    shop.nights = Nights(folder, folder / "store")
    return shop


class TestAway:
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_an_import_killed_while_it_writes(self, shop: ImportShop, moment: str) -> None:
        path = shop.file("image_id,label_id,label_zh", ("a", "t:新", "新品"), ("b", "t:桃", ""))
        process = CONTEXT.Process(target=_killed, args=(shop.folder, shop.database_url, path, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert shop.answers() == []
        done = shop.bring_file(path)
        assert (done.added, done.refused) == (2, ())
        assert shop.labels()["t:新"].label_zh == "新品"

    def test_a_locked_database(self, clean_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database, "_BUSY_S", 0.2)
        shop = ImportShop(tmp_path / "店", f"sqlite:///{tmp_path / 'wwts.db'}")
        shop.night(FRUIT)
        path = shop.file("image_id,label_id", ("a", "t:梨"))
        database.upgrade(shop.settings)
        with database.transaction(shop.settings), pytest.raises(UnavailableError, match="locked"):
            shop.bring_file(path)
        assert shop.bring_file(path) == Imported(1, 0, ())


def _killed(folder: Path, url: str, path: Path, moment: str) -> None:
    add = answers.Appender.add

    def dying(appender: Any, new: Any) -> Any:
        if moment == "after":
            add(appender, new)
        os.kill(os.getpid(), signal.SIGKILL)

    answers.Appender.add = dying  # type: ignore[method-assign, assignment]
    _opened(folder, url).bring_file(path)


class TestCommand:
    @pytest.fixture
    def run(self, shop: ImportShop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, str]]]:
        monkeypatch.setenv("WWTS_STORE", str(shop.nights.root))
        monkeypatch.setenv("WWTS_DATABASE_URL", shop.database_url)

        def run(*arguments: str) -> tuple[int, str]:
            done = CliRunner().invoke(app, ["corrections", *arguments])
            if isinstance(done.exception, WwtsError):
                return 2, str(done.exception)
            return done.exit_code, done.output

        yield run
        structlog.reset_defaults()  # they write to the runner's terminal, which is closed by now

    def test_import(self, shop: ImportShop, run: Callable[..., tuple[int, str]]) -> None:
        path = shop.file("image_id,label_id,label_zh,颜色", ("a", "t:新", "新品", ""), ("fehlt", "t:梨", "", "红"))
        code, said = run("import", str(path))
        assert code == 0
        assert "Columns that mean nothing here: 颜色" in said
        assert "New labels (1): t:新" in said
        assert "Row 3 refused: image_id 'fehlt' is no image that was ever tagged here" in said
        assert "1 answers added, 0 rows unchanged, 1 row refused." in said
        assert run("import", str(path))[0] == 0

    def test_import_of_nothing(self, shop: ImportShop, run: Callable[..., tuple[int, str]]) -> None:
        code, said = run("import", str(shop.file("image_id,label_id", ("fehlt", "t:梨"))))
        assert (code, "0 answers added" in said) == (1, True)
        code, said = run("import", str(shop.folder / "none.csv"))
        assert (code, "is no file" in said) == (1, True)

    def test_old_tags(self, shop: ImportShop, run: Callable[..., tuple[int, str]]) -> None:
        code, said = run("import", "--weak", str(shop.file("image_id,label_id", ("a", "t:梨"))))
        assert (code, "1 old tags added" in said) == (0, True)
        assert shop.in_force() == {}

    def test_list(self, shop: ImportShop, run: Callable[..., tuple[int, str]]) -> None:
        shop.bring_weak("image_id,label_id", ("b", "t:梨"))
        shop.answer("a", "t:梨")
        shop.answer("a", "t:桃", comment="[red]不是[/red]")
        code, said = run("list")
        assert code == 0
        lines = [line for line in said.splitlines() if re.match(r" *\d+ ", line)]
        assert [line.split()[0] for line in lines[:3]] == ["3", "2", "1"]
        assert "in force" in lines[0]
        assert "[red]不是[/red]" in lines[0]
        assert "superseded" in lines[1]
        assert "old tag" in lines[2]
        assert "3 answers in all; in force of 1 contents, and old tags of 1 more." in said

    def test_retract(self, shop: ImportShop, run: Callable[..., tuple[int, str]]) -> None:
        shop.answer("a", "t:梨")
        shop.answer("b", "t:梨")
        assert run("retract", content_of("a")[:8], "--comment", "错了") == (0, "1 taken back.\n")
        assert run("retract", "--image", "b") == (0, "1 taken back.\n")
        assert shop.in_force() == {}
        assert [row["comment"] for row in shop.answers()] == [None, None, "错了", None]

    def test_nothing_to_retract(self, shop: ImportShop, run: Callable[..., tuple[int, str]]) -> None:
        for arguments, told in (
            ((), "Name contents"),
            (("abc",), "six or more hex digits"),
            (("0" * 12,), "No answer of a content"),
            (("--image", "fehlt"), "is no image that was ever tagged"),
        ):
            code, said = run("retract", *arguments)
            assert (code, told in said) == (2, True), said
        assert shop.answers() == []
