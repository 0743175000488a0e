"""`wwts taxonomy`, run as a person runs it."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest
from night_run import Run, wwts

from wwts_ops import taxonomy
from wwts_ops.provenance import user
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy

pytestmark = pytest.mark.slow

STRAWBERRY, ORANGE, LEMON = "imagenet:n07745940", "imagenet:n07747607", "imagenet:n07749582"


def in_force(store: Path) -> Taxonomy:
    found = taxonomy.current(Store(str(store)))
    assert found is not None
    return found


def well(run: Run) -> str:
    assert run.code == 0, run.err
    return run.out


def refused(run: Run) -> str:
    """The one line that says why."""
    assert run.code == 2
    [line] = [line for line in run.err.splitlines() if line]
    assert line.startswith("wwts: ")
    assert not any("\u4e00" <= char <= "\u9fff" for char in line.replace("草莓", "").replace("橙子", ""))
    return line


def test_labels_are_added_merged_moved_and_looked_up(tmp_path: Path) -> None:
    store = tmp_path / "store"
    said = well(wwts(store, "taxonomy", "add", "草莓酱", "--category", "食品>果酱", "--id", "shop:jam", "--forced"))
    assert "shop:jam" in said
    assert "is in force" in said
    well(wwts(store, "taxonomy", "merge", STRAWBERRY, LEMON, "--into", ORANGE))
    well(wwts(store, "taxonomy", "move", ORANGE, "shop:jam", "--to", "甲 > 乙"))
    well(wwts(store, "taxonomy", "move-category", "甲", "--to", "丙"))
    well(wwts(store, "taxonomy", "force-category", "丙"))
    names = in_force(store)
    assert [names.given(one) for one in (STRAWBERRY, LEMON)] == [ORANGE, ORANGE]
    assert {"草莓", "柠檬"} <= set(names.by_id[ORANGE].synonyms_zh.split("|"))
    assert [names.by_id[one].category_path for one in (ORANGE, "shop:jam")] == ["丙 > 乙", "丙 > 乙"]
    assert names.forced_reason(ORANGE) == "forced_category:丙"

    listed = well(wwts(store, "taxonomy", "list", "草莓"))
    assert "shop:jam" in listed
    assert f"off, → {ORANGE}" in listed
    assert "3 of 1,001 labels" in listed, "the one that is off, and the one that has its name for a synonym, too"
    shown = well(wwts(store, "taxonomy", "show", ORANGE))
    assert STRAWBERRY in shown
    assert LEMON in shown
    history = well(wwts(store, "taxonomy", "history"))
    assert [line.split()[0][:7] for line in history.splitlines() if line.startswith(" t0")] == [
        f"t00000{number}" for number in (6, 5, 4, 3, 2, 1)
    ]
    assert user() in history
    assert "forced_category" in well(wwts(store, "taxonomy", "diff"))
    first = next(line.split()[0] for line in history.splitlines() if line.startswith(" t000001"))
    assert "shop:jam" in well(wwts(store, "taxonomy", "diff", first))


def test_labels_go_to_excel_and_back(tmp_path: Path) -> None:
    store, sheet = tmp_path / "store", tmp_path / "标签.xlsx"
    well(wwts(store, "taxonomy", "export", str(sheet)))
    book = openpyxl.load_workbook(sheet)
    rows = book.active
    assert rows is not None
    [row] = [row for row in rows.iter_rows(min_row=2) if row[0].value == STRAWBERRY]
    row[1].value, row[6].value = "鲜草莓", False
    book.save(sheet)
    before = in_force(store)
    dry = well(wwts(store, "taxonomy", "import", str(sheet), "--dry-run"))
    assert "2 changes" in dry
    assert in_force(store) == before
    well(wwts(store, "taxonomy", "import", str(sheet)))
    after = in_force(store)
    assert (after.by_id[STRAWBERRY].label_zh, after.by_id[STRAWBERRY].enabled) == ("鲜草莓", False)
    assert [one for one in after.labels if one != before.by_id[one.label_id]] == [after.by_id[STRAWBERRY]]


def test_what_is_refused_is_told_in_english(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert "cannot map to itself" in refused(wwts(store, "taxonomy", "map", STRAWBERRY, "--to", STRAWBERRY))
    assert "changes nothing" in refused(wwts(store, "taxonomy", "set", STRAWBERRY, "--name", "草莓"))
    assert "there is one version only" in refused(wwts(store, "taxonomy", "diff")).lower()
    assert "no version 't9'" in refused(wwts(store, "taxonomy", "diff", "t9"))
    assert "nonsuch" in refused(wwts(store, "taxonomy", "show", "nonsuch"))
    assert "neither of .csv, .xlsx" in refused(wwts(store, "taxonomy", "export", str(tmp_path / "a.ods")))
