"""What the store no longer needs: shown first, deleted when told to; what anybody may still ask for stays."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from conftest import S3Server
from retag_shop import RetagShop, make_tagger, retag
from typer.testing import CliRunner

from wwts_ops import corrections, database, prune, publish, published, retags, tracking
from wwts_ops.badcases import BadCase, snapshots
from wwts_ops.cli import app
from wwts_ops.corrections import Answer
from wwts_ops.database import review_items
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.prune import Item
from wwts_ops.review import queue
from wwts_ops.schemas import REVIEW_QUEUE
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

FIRST, SECOND, OTHER_BACKBONE = 1, 2, 3
DAYS, LONG_AGO = 30, timedelta(days=40)
#: Contents whose images nobody sells any more.
NOBODYS, ANSWERED, BAD, WAITED_LONG_AGO = (digit * 64 for digit in "abcd")
#: About versions: named by numbers, by the first digits of their taggers' SHA-256, by tags.
EVALUATIONS = {"v2-vs-v1-b000001-x": True, "v3-vs-v1-b000001-x": False, "v1-vs-v3-b000001-x": True, "by hand": True}
TRAININGS = {"t-second": True, "t-nobody": False}
FROZEN = {"a000007-0123456789ab": True, "a000003-0123456789ab": False}


def thumbnail(content: str) -> str:
    return f"thumbnails/{content[:2]}/{content}.jpg"


def people(shop: RetagShop) -> None:
    """An answer, a bad case, and a queue of long ago."""
    when = datetime(2026, 3, 1, tzinfo=UTC)
    said = Answer(
        answer_id="one",
        answered_at=when,
        answered_by="小王",
        content_sha256=ANSWERED,
        kind="confirm",
        source="import",
        shown_because="import",
        labels=(shop.shelf.tagger.label_ids[0],),
    )
    corrections.record(shop.settings, [said])
    case = BadCase(BAD, ("imagenet:n07920052",), (), (), "小王", "", False, False, None, None, when, "小王")
    snapshots.change(shop.store, "小王", lambda cases: (*cases, case))
    row = dict.fromkeys(REVIEW_QUEUE.names) | {"rank": 1, "image_id": "x", "uri": "x", "decision": "review"}
    row |= {"run_id": "x", "copies": 1, "shown_because": "review", "sampling_probability": 1.0, "tags": []}
    row["content_sha256"] = WAITED_LONG_AGO
    table = pa.Table.from_pylist([row], schema=REVIEW_QUEUE)
    shop.store.write_table("review/date=2026-01-01/part-20260101-0123456789ab.parquet", table)


def papers(shop: RetagShop) -> None:
    """What is written about versions, days and contents."""
    store = shop.store
    for name in EVALUATIONS:
        store.write_json(f"evaluations/{name}/accuracy.json", {})
    shas = [shop.version(number).sha256[:12] for number in (FIRST, SECOND, OTHER_BACKBONE)]
    for new in shas[1:]:
        store.write_json(f"tagdiffs/{shas[0]}-{new}-0123456789ab/summary.json", {})
    for name in TRAININGS:
        store.write_json(f"trainings/{name}/order.json", {})
    for name in FROZEN:
        store.write_bytes(f"trainings/answers/{name}.parquet", b"frozen")
    store.write_json("trainings/state.json", {"sequence": 1, "answers": 0})
    for number in (SECOND, OTHER_BACKBONE):
        backbone = shop.version(number).backbone_sha256
        store.write_bytes(f"views/backbone=b{backbone[:12]}/recipe=v0123456789ab/part-a.parquet", b"views")
        store.write_json(f"backfills/answers-{number}/plan.json", {"date": "2026-03-01", "backbone_sha256": backbone})
    # As one of before wrote it: nobody knows which backbone it was.
    store.write_json("backfills/answers-old/plan.json", {"date": "2026-03-01"})
    for day in ("2026-01-01", "2026-03-01"):
        store.write_bytes(f"reports/date={day}/index.html", b"<html>")
    for content in (NOBODYS, ANSWERED, BAD, WAITED_LONG_AGO):
        store.put(thumbnail(content), b"jpeg")
    with tracking.connected(shop.settings) as client:
        for key, value in {"training": "t-second", "training.snapshot": "a000007-0123456789ab"}.items():
            client.set_model_version_tag(shop.settings.model_name, str(SECOND), key, value)


def strays(root: Path) -> None:
    """What a killed process and a lock leave in a folder."""
    (root / "tags" / ".part-x.parquet.abc.tmp").write_bytes(b"half")
    (root / "published" / ".current.json.lock").touch()


def aged(root: Path, by: timedelta) -> None:
    for path in root.rglob("*"):
        then = path.stat().st_mtime - by.total_seconds()
        os.utime(path, (then, then))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RetagShop]:
    """Three versions took turns; the last one and its backbone are gone from MLflow, and all that was long ago."""
    folder = tmp_path_factory.mktemp("prune")
    heads = [make_tagger(folder / f"{seed}", seed) for seed in (2, 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        other = make_tagger(folder / "other", 3, network=1.25)
        shop = RetagShop.made(folder / "shop", *heads, other, thumbnails="all")
        plan = shop.night(shop.version(FIRST))
        queue.route(shop.store, shop.settings, plan)
        for number in (OTHER_BACKBONE, SECOND):
            shop.champion(shop.version(number))
            assert retag(shop.settings) is not None
        people(shop)
        papers(shop)
        publish.publish(shop.store, shop.settings)
        with tracking.connected(shop.settings) as client:
            client.delete_model_version(shop.settings.model_name, str(OTHER_BACKBONE))
        strays(Path(shop.store.root))
        aged(Path(shop.store.root), LONG_AGO)
        yield shop


@pytest.fixture
def shop(clean_environment: None, template: RetagShop, tmp_path: Path) -> RetagShop:
    return template.copied(tmp_path / "shop")


def names(found: tuple[Item, ...]) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for item in found:
        kinds.setdefault(item.kind, set()).add(item.name)
    return kinds


def snapshot_of(store: Store, retag_key: str | None) -> set[str]:
    """Snapshots that were made from a retag."""
    return {str(told["snapshot"]) for told in published.snapshots(store) if told["retag"] == retag_key}


def bytes_of(store: Store) -> dict[str, tuple[int, datetime]]:
    return {key: (file.size, file.modified) for key, file in store.files("").items()}


def expected(shop: RetagShop) -> dict[str, set[str]]:
    """Of the scene above."""
    store = shop.store
    current, in_force = published.current(store), retags.in_force(store)
    assert current is not None
    assert in_force is not None
    (other,) = {key.split("/")[1] for key in store.list("retags", "/plan.json")} - {in_force.key}
    lost = retags.read(store, other)
    gone = lost.model_sha256[:12]
    return {
        "published": {str(told["snapshot"]) for told in published.snapshots(store)} - {str(current.value["snapshot"])},
        "retags": {other},
        "embeddings": {f"backbone=b{lost.backbone_sha256[:12]}"},
        "views": {f"backbone=b{lost.backbone_sha256[:12]}"},
        "backfills": {key.split("/")[1] for key in store.list("backfills", "/plan.json")}
        - {f"answers-{SECOND}", "answers-old"},
        "evaluations": {name for name, kept in EVALUATIONS.items() if not kept},
        "tagdiffs": {key.split("/")[1] for key in store.list("tagdiffs") if f"-{gone}-" in key},
        "trainings": {name for name, kept in (TRAININGS | FROZEN).items() if not kept},
        "reports": {"date=2026-01-01"},
        "review": {"date=2026-01-01"},
        "thumbnails": {""},
        "temporary files": {"tags/.part-x.parquet.abc.tmp"},
    }


class TestSurvey:
    def test_it_names_what_nobody_needs_and_touches_nothing(self, shop: RetagShop) -> None:
        before = bytes_of(shop.store)
        found = prune.survey(shop.settings, DAYS)
        assert names(found) == expected(shop)
        assert all(wanted for wanted in expected(shop).values())
        (thumbnails,) = (item for item in found if item.kind == "thumbnails")
        assert {file.key for file in thumbnails.files} == {thumbnail(NOBODYS), thumbnail(WAITED_LONG_AGO)}
        assert bytes_of(shop.store) == before

    def test_whatever_is_young_stays(self, shop: RetagShop) -> None:
        old = names(prune.survey(shop.settings, LONG_AGO.days + 1))
        assert old.keys() == {"published", "temporary files"}  # those go after a day
        aged(Path(shop.store.root), timedelta(hours=20) - LONG_AGO)
        assert prune.survey(shop.settings, 1) == ()

    def test_of_older_snapshots_the_last_of_each_day_stays(self, shop: RetagShop) -> None:
        store, noon = shop.store, datetime(2026, 3, 20, 4, tzinfo=UTC)  # in Shanghai
        current = published.current(store)
        assert current is not None
        hours = {"a": 1, "b": 20, "c": 35, "d": 37, "e": 42, "f": 61, "g": 24 * 9, "h": 24 * 9 + 1}
        for name, ago in hours.items():
            store.write_json(published.kept_key(name), {**current.value, "snapshot": name})
            then = (noon - timedelta(hours=ago)).timestamp()
            os.utime(store.path(published.kept_key(name)), (then, then))
        gone = names(prune.survey(shop.settings, 8, noon))["published"]
        # All of the last 24 hours; b is the last of yesterday (c goes), d of the day before (e goes), f of another day;
        # none beyond eight days.
        assert gone & hours.keys() == {"c", "e", "g", "h"}
        assert current.value["snapshot"] not in gone
        assert names(prune.survey(shop.settings, 0, noon))["published"] & hours.keys() == hours.keys()

    @pytest.mark.parametrize("kind", ["published", "retags", "embeddings", "trainings", "evaluations"])
    def test_one_young_file_keeps_its_folder(self, shop: RetagShop, kind: str) -> None:
        before = prune.survey(shop.settings, DAYS)
        first = next(item for item in before if item.kind == kind)
        os.utime(shop.store.path(first.files[0].key))
        left = names(prune.survey(shop.settings, DAYS)).get(kind, set())
        assert first.name in names(before)[kind] - left

    def test_a_kept_snapshot_keeps_its_retag_and_its_thumbnails(self, shop: RetagShop) -> None:
        """One can go back to it."""
        (key,) = expected(shop)["retags"]
        (name,) = snapshot_of(shop.store, key)
        os.utime(shop.store.path(f"published/{name}/_snapshot.json"))
        found = names(prune.survey(shop.settings, DAYS))
        assert "retags" not in found
        assert name not in found["published"]
        assert "embeddings" in found  # of these no retag in force is read

    def test_a_version_of_any_model_keeps_its_backbone(self, shop: RetagShop) -> None:
        (key,) = expected(shop)["retags"]
        sha256 = retags.read(shop.store, key).backbone_sha256
        with tracking.connected(shop.settings) as client:
            client.create_registered_model("another")
            client.create_model_version(
                "another", source=Path(shop.settings.store).as_uri(), tags={"backbone_sha256": sha256}
            )
        found = names(prune.survey(shop.settings, DAYS))
        assert found.keys() & {"embeddings", "backfills"} == set()


class TestRefused:
    def test_without_mlflow(self, shop: RetagShop) -> None:
        away = shop.settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"})
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
            prune.survey(away, DAYS)

    def test_with_an_mlflow_that_knows_nothing(self, shop: RetagShop, tmp_path: Path) -> None:
        other = shop.settings.model_copy(update={"mlflow_tracking_uri": f"sqlite:///{tmp_path / 'other.db'}"})
        with pytest.raises(WwtsError, match="MLFLOW_TRACKING_URI"):
            prune.survey(other, DAYS)

    def test_with_the_mlflow_of_another_shop(self, shop: RetagShop) -> None:
        with tracking.connected(shop.settings) as client:
            for number in (FIRST, SECOND):
                client.set_model_version_tag(shop.settings.model_name, str(number), "model_sha256", "e" * 64)
        with pytest.raises(WwtsError, match="no version that tagged anything"):
            prune.survey(shop.settings, DAYS)

    def test_with_a_database_that_lost_answers(self, shop: RetagShop, tmp_path: Path) -> None:
        other = shop.settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'other.db'}"})
        with pytest.raises(WwtsError, match="answers up to number 1"):
            prune.survey(other, DAYS)


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes back to a snapshot meanwhile, so that none need be waited for."""
    monkeypatch.setattr(prune, "GRACE_S", 0.0)


def removed(settings: Settings, now: datetime | None = None) -> tuple[Item, ...]:
    return prune.remove(settings, prune.survey(settings, DAYS, now), DAYS, now)


class TestRemoved:
    def test_what_was_shown_is_gone_and_the_rest_is_as_it_was(self, shop: RetagShop) -> None:
        before, rows, wanted = bytes_of(shop.store), shop.rows(), expected(shop)
        found = removed(shop.settings)
        assert names(found) == wanted
        gone = {file.key for item in found for file in item.files}
        assert bytes_of(shop.store) == {key: told for key, told in before.items() if key not in gone}
        assert shop.rows() == rows
        assert prune.survey(shop.settings, DAYS) == ()
        root = Path(shop.store.root)
        assert [path for path in root.glob("*/**") if path.parent != root and not any(path.iterdir())] == []

    def test_the_shop_goes_on(self, shop: RetagShop) -> None:
        removed(shop.settings)
        pointer = published.current(shop.store)
        assert publish.publish(shop.store, shop.settings) == (pointer and pointer.value)
        shop.champion(shop.version(FIRST))
        assert retag(shop.settings) is not None
        assert {row["model_version"] for row in shop.rows().values()} == {str(FIRST)}

    def test_what_a_killed_one_left_goes_with_the_next(self, shop: RetagShop) -> None:
        wanted = expected(shop)
        for item in prune.survey(shop.settings, DAYS):
            shop.store.delete(item.marker or item.files[0].key)
        left = names(removed(shop.settings))
        assert wanted["published"] == left["published"]
        assert wanted["retags"] == left["retags"]
        assert not any(shop.store.files(f"retags/{name}") for name in wanted["retags"])

    def test_what_is_written_between_showing_and_deleting_stays(self, shop: RetagShop) -> None:
        found = prune.survey(shop.settings, DAYS)
        (report,) = (item for item in found if item.kind == "reports")
        shop.store.write_bytes(report.files[0].key, b"again")
        done = prune.remove(shop.settings, found, DAYS)
        assert "reports" not in names(done)
        assert shop.store.read_bytes(report.files[0].key) == b"again"

    def test_a_publisher_that_goes_back_at_this_very_moment_is_not_undone(
        self, shop: RetagShop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It found the snapshot whole just before its mark went, and moves the pointer just after."""
        monkeypatch.setattr(prune, "GRACE_S", 6.0)
        name = sorted(expected(shop)["published"])[0]
        value = published.kept(shop.store, name)
        assert value is not None

        def go_back() -> None:
            end = time.monotonic() + 300
            while shop.store.exists(published.kept_key(name)) and time.monotonic() < end:
                time.sleep(0.01)
            assert shop.store.replace_pointer(published.POINTER, value, published.current(shop.store))

        other = threading.Thread(target=go_back)
        other.start()
        done = removed(shop.settings)
        other.join()
        assert name not in names(done)["published"]
        assert published.kept(shop.store, name) is not None
        assert published.read(shop.store).num_rows == value["rows"]
        assert shop.store.exists(published.kept_key(name))


def test_on_s3(
    clean_environment: None,
    template: RetagShop,
    tmp_path: Path,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same files, all of them written now: looked at as if in 40 days."""
    here = template.copied(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    there = here.on_s3(s3_server)
    # Snapshots last: of these, the order in which they were written counts.
    keys = sorted(here.store.list(""), key=lambda key: (key.startswith("published/"), key == published.POINTER))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: there.store.put(key, here.store.read_bytes(key)), keys))
    current = published.current(here.store)
    assert current is not None
    there.store.put(current.value["parts"][0], here.store.read_bytes(current.value["parts"][0]))
    wanted = {kind: found for kind, found in expected(here).items() if kind != "temporary files"}
    assert prune.survey(there.settings, DAYS) == ()
    later = datetime.now(UTC) + LONG_AGO
    assert _whole(names(prune.survey(there.settings, DAYS, later))) == _whole(wanted)
    done = removed(there.settings, later)
    assert _whole(names(done)) == _whole(wanted)
    assert prune.survey(there.settings, DAYS, later) == ()
    assert there.rows() == here.rows()


def _whole(found: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without empty kinds."""
    return {kind: which for kind, which in found.items() if which}


#: An item of the review page, as short as can be.
ITEM = {
    "run_id": "x",
    "image_id": "x",
    "uri": "x",
    "tags": [],
    "siblings": [],
    "decision": "review",
    "copies": 1,
    "shown_because": "review",
    "sampling_probability": 1.0,
    "skus": 1,
    "near": 0,
    "value": 1.0,
    "needed": 1,
    "blind": False,
    "revision": 1,
}


def items_of(shop: RetagShop) -> list[str]:
    """States of all, by content."""
    with database.reading(shop.settings) as connection:
        asked = sa.select(review_items.c.state).order_by(review_items.c.content_sha256)
        return list(connection.execute(asked).scalars())


class TestCommand:
    def run(self, shop: RetagShop, *arguments: str) -> str:
        given = {"WWTS_STORE": shop.settings.store, "COLUMNS": "200"}
        done = CliRunner().invoke(app, ["store", "prune", *arguments], env=given, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def test_it_shows_first_and_deletes_when_told(self, shop: RetagShop) -> None:
        before, wanted = bytes_of(shop.store), expected(shop)
        shown = self.run(shop, "--keep-days", "20")
        assert bytes_of(shop.store) == before
        for kind in wanted:
            assert kind in shown
        assert "no registered version has this backbone" in shown
        assert "Nothing was deleted. To delete it: wwts store prune --yes --keep-days 20" in shown
        assert "files were deleted" in self.run(shop, "--yes")
        assert len(bytes_of(shop.store)) < len(before)
        assert "There is nothing to delete" in self.run(shop)

    def test_items_that_were_settled_long_ago_go_and_answers_stay(self, shop: RetagShop) -> None:
        """The youngest of them; what waits, and what was settled of late, stays."""
        self.run(shop, "--yes")
        days = [shop.settings.today() - timedelta(days=number) for number in (50, 50, 20, 20)]
        rows = [
            {**ITEM, "content_sha256": f"{number:064x}", "date": day.isoformat(), "state": state}
            for number, (day, state) in enumerate(zip(days, ("done", "open", "done", "open"), strict=True))
        ]
        with database.transaction(shop.settings) as connection:
            connection.execute(sa.delete(review_items))
            connection.execute(sa.insert(review_items), rows)
        answers = corrections.latest(shop.settings)
        shown = self.run(shop, "--keep-days", "30")
        assert re.search(r"review items\W+1\W", shown)
        assert "Nothing was deleted" in shown
        assert items_of(shop) == ["done", "open", "done", "open"]
        assert "1 settled review items were deleted." in self.run(shop, "--keep-days", "30", "--yes")
        assert items_of(shop) == ["open", "done", "open"]
        assert corrections.latest(shop.settings) == answers > 0
        assert "There is nothing to delete" in self.run(shop, "--keep-days", "30")

    def test_days_are_those_of_the_setting(self, shop: RetagShop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WWTS_KEEP_DAYS", "50")
        shown = self.run(shop)
        assert "temporary files" in shown
        assert "embeddings" not in shown
