"""`wwts taxonomy`: one process as a person runs it, all others in this one."""

from __future__ import annotations

import csv
from pathlib import Path

import openpyxl
import pytest
from night_run import wwts as process
from typer.testing import CliRunner

from wwts_ops import taxonomy
from wwts_ops.cli import app
from wwts_ops.errors import WwtsError
from wwts_ops.provenance import user
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy

pytestmark = pytest.mark.slow

STRAWBERRY, ORANGE, LEMON = "imagenet:n07745940", "imagenet:n07747607", "imagenet:n07749582"


def in_force(store: Path) -> Taxonomy:
    found = taxonomy.current(Store(str(store)))
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _bare(clean_environment: None) -> None:
    """No setting of the developer's own."""


def wwts(store: Path, *arguments: str) -> str:
    """What the command says."""
    given = {"WWTS_STORE": str(store), "COLUMNS": "200"}
    done = CliRunner().invoke(app, ["taxonomy", *arguments], env=given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(store: Path, *arguments: str) -> str:
    """Why the command does nothing."""
    with pytest.raises(WwtsError) as caught:
        wwts(store, *arguments)
    line = str(caught.value)
    assert not any("\u4e00" <= char <= "\u9fff" for char in line.replace("草莓", "").replace("橙子", ""))
    return line


def test_labels_are_added_merged_moved_and_looked_up(tmp_path: Path) -> None:
    store = tmp_path / "store"
    said = wwts(store, "add", "草莓酱", "--category", "食品>果酱", "--id", "shop:jam", "--forced")
    assert "shop:jam" in said
    assert "is in force" in said
    wwts(store, "merge", STRAWBERRY, LEMON, "--into", ORANGE)
    wwts(store, "move", ORANGE, "shop:jam", "--to", "甲 > 乙")
    wwts(store, "move-category", "甲", "--to", "丙")
    wwts(store, "force-category", "丙")
    names = in_force(store)
    assert [names.given(one) for one in (STRAWBERRY, LEMON)] == [ORANGE, ORANGE]
    assert {"草莓", "柠檬"} <= set(names.by_id[ORANGE].synonyms_zh.split("|"))
    assert [names.by_id[one].category_path for one in (ORANGE, "shop:jam")] == ["丙 > 乙", "丙 > 乙"]
    assert names.forced_reason(ORANGE) == "forced_category:丙"

    listed = wwts(store, "list", "草莓")
    assert "shop:jam" in listed
    assert f"off, → {ORANGE}" in listed
    assert "3 of 1,001 labels" in listed, "the one that is off, and the one that has its name for a synonym, too"
    shown = wwts(store, "show", ORANGE)
    assert STRAWBERRY in shown
    assert LEMON in shown
    history = wwts(store, "history")
    assert [line.split()[0][:7] for line in history.splitlines() if line.startswith(" t0")] == [
        f"t00000{number}" for number in (6, 5, 4, 3, 2, 1)
    ]
    assert user() in history
    assert "forced_category" in wwts(store, "diff")
    first = next(line.split()[0] for line in history.splitlines() if line.startswith(" t000001"))
    assert "shop:jam" in wwts(store, "diff", first)


def test_a_label_is_forced_as_long_as_a_forced_one_maps_to_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert " forced" not in wwts(store, "list", ORANGE)
    wwts(store, "set", STRAWBERRY, "--forced")
    wwts(store, "map", STRAWBERRY, "--to", ORANGE)
    wwts(store, "set", ORANGE, "--unforced")
    assert " forced" in wwts(store, "list", ORANGE)
    assert "forced_label" in wwts(store, "show", ORANGE)
    wwts(store, "map", STRAWBERRY, "--to", "none")
    assert " forced" not in next(line for line in wwts(store, "list", ORANGE).splitlines() if ORANGE in line)


def test_labels_go_to_excel_and_back(tmp_path: Path) -> None:
    store, sheet = tmp_path / "store", tmp_path / "标签.xlsx"
    wwts(store, "export", str(sheet))
    book = openpyxl.load_workbook(sheet)
    rows = book.active
    assert rows is not None
    [row] = [row for row in rows.iter_rows(min_row=2) if row[0].value == STRAWBERRY]
    row[1].value, row[6].value = "鲜草莓", False
    book.save(sheet)
    before = in_force(store)
    dry = wwts(store, "import", str(sheet), "--dry-run")
    assert "2 changes" in dry
    assert in_force(store) == before
    wwts(store, "import", str(sheet))
    after = in_force(store)
    assert (after.by_id[STRAWBERRY].label_zh, after.by_id[STRAWBERRY].enabled) == ("鲜草莓", False)
    assert [one for one in after.labels if one != before.by_id[one.label_id]] == [after.by_id[STRAWBERRY]]


def test_a_sheet_of_some_labels_leaves_the_others(tmp_path: Path) -> None:
    store, sheet = tmp_path / "store", tmp_path / "标签.csv"
    wwts(store, "export", str(sheet))
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf"), "Excel takes it for UTF-8"
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        labels = list(csv.DictReader(file))
    assert len(labels) == 1000
    first, second = labels[0]["label_id"], labels[1]["label_id"]
    wwts(store, "set", first, "--name", "新名字", "--category", "甲 > 乙 > 丙", "--forced", "--off")
    after = in_force(store)
    changed = after.by_id[first]
    assert (changed.label_zh, changed.category_path) == ("新名字", "甲 > 乙 > 丙")
    assert (changed.forced_review, changed.enabled) == (True, False)

    labels[1]["label_zh"] = "从表格来"
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, labels[1])
        writer.writeheader()
        writer.writerow(labels[1])
    wwts(store, "import", str(sheet))
    imported = in_force(store)
    assert imported.by_id[second].label_zh == "从表格来"
    assert imported.by_id[first] == changed
    assert len(imported.labels) == 1000
    assert imported.version > after.version


def test_what_is_refused_is_told_in_english(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert "cannot map to itself" in refused(store, "map", STRAWBERRY, "--to", STRAWBERRY)
    assert "changes nothing" in refused(store, "set", STRAWBERRY, "--name", "草莓")
    assert "there is one version only" in refused(store, "diff").lower()
    assert "no version 't9'" in refused(store, "diff", "t9")
    assert "nonsuch" in refused(store, "show", "nonsuch")
    assert "nonsuch" in refused(store, "set", "nonsuch", "--off")
    assert "neither of .csv, .xlsx" in refused(store, "export", str(tmp_path / "a.ods"))
    binary, absent = tmp_path / "a.csv", tmp_path / "no" / "a.csv"
    binary.write_bytes(bytes(range(128, 256)) * 4)
    assert str(binary) in refused(store, "import", str(binary))
    assert str(absent) in refused(store, "import", str(absent))
    assert str(absent.parent) in refused(store, "export", str(absent))


def test_a_process_says_why_in_one_line(tmp_path: Path) -> None:
    run = process(tmp_path / "store", "taxonomy", "map", STRAWBERRY, "--to", STRAWBERRY)
    assert run.code == 2
    [line] = [line for line in run.err.splitlines() if line]
    assert line.startswith("wwts: ")
    assert "cannot map to itself" in line
