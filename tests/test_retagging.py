"""The champion's head over stored embeddings: the tags of the image path, bit for bit; answers stay on top."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from code_shelf import CAUTIOUS, DAY
from conftest import S3Server
from hypothesis import given, settings
from hypothesis import strategies as st
from retag_shop import TAG_COLUMNS, RetagShop, make_tagger, retag
from structlog.testing import capture_logs

from wwts_ops import (
    backfill,
    corrections,
    embeddings,
    moves,
    promotion,
    publish,
    published,
    registry,
    retagging,
    retags,
    tagger,
    taxonomy,
)
from wwts_ops.corrections import Answer
from wwts_ops.decisions import Decider
from wwts_ops.embeddings import EmbeddingWriter
from wwts_ops.errors import WwtsError
from wwts_ops.records import RETAGGED
from wwts_ops.registry import CHAMPION
from wwts_ops.retagging import Head, Order
from wwts_ops.runtime import Scorer
from wwts_ops.storage import Store
from wwts_ops.tracking import ModelVersion

FIRST, SECOND, OTHER_BACKBONE = 1, 2, 3


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RetagShop]:
    """Two versions of one backbone and one of another, registered once; the first is champion."""
    folder = tmp_path_factory.mktemp("retag")
    heads = [make_tagger(folder / f"{seed}", seed) for seed in (2, 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield RetagShop.made(folder / "shop", *heads, make_tagger(folder / "other", 3, network=1.25))


@pytest.fixture
def shop(clean_environment: None, template: RetagShop, tmp_path: Path) -> RetagShop:
    """A copy, its catalog tagged by the first version."""
    made = template.copied(tmp_path / "shop")
    made.night(made.version(FIRST))
    return made


def by_pixels(shop: RetagShop, number: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What a night of another store, with version ``number``, says of each content of the same catalog."""
    given = {
        "store": str(folder),
        "mlflow_tracking_uri": shop.settings.resolved_tracking_uri,
        "shard_size": 100,  # a shard may be a process of its own
    }
    other = RetagShop(shop.shelf, shop.settings.model_copy(update=given))
    other.settings.state_dir.mkdir()
    (other.settings.state_dir / "models").symlink_to(shop.settings.state_dir / "models")
    other.night(shop.version(number))
    return tags(row for key in other.store.list("tags", ".parquet") for row in other.store.read_table(key).to_pylist())


def by_head(shop: RetagShop) -> dict[str, dict[str, Any]]:
    """What the retag in force says of each content."""
    found = retags.in_force(shop.store)
    assert found is not None
    keys = [retags.part_key(found.key, number) for number in range(found.shards)]
    return tags(row for key in keys for row in shop.store.read_table(key).to_pylist())


def tags(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tag of each content."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        tag = {column: row[column] for column in TAG_COLUMNS}
        assert found.setdefault(row["content_sha256"], tag) == tag, "two images of one content differ"
    return found


def test_the_new_head_gives_the_tags_of_the_image_path_bit_for_bit(shop: RetagShop, tmp_path: Path) -> None:
    before, expected = shop.rows(), by_pixels(shop, SECOND, tmp_path / "pixels")
    second = shop.version(SECOND)
    shop.champion(second)
    pointer = retag(shop.settings)
    assert by_head(shop) == expected, "scores are compared as they are, to the last bit"
    assert expected != tags(before.values())
    assert {tag["decision"] for tag in expected.values()} == {"auto", "review", "forced_review"}
    found = retags.in_force(shop.store)
    assert found is not None
    assert pointer is not None
    assert (pointer["retag"], found.images, found.missing) == (found.key, len(expected), 0)
    for row in shop.rows().values():
        tag = expected[row["content_sha256"]]
        assert (row["decision"], row["decision_reason"]) == (tag["decision"], tag["decision_reason"])
        assert row["state"] == ("live" if tag["decision"] == "auto" else "pending")
        if row["state"] == "live":
            assert {column: row[column] for column in TAG_COLUMNS} == tag
            made = (row["model_version"], row["model_sha256"], row["taxonomy_version"], row["run_id"])
            assert made == (second.version, second.sha256, found.taxonomy_version, found.key)


def test_on_s3_it_is_the_same(
    clean_environment: None,
    template: RetagShop,
    tmp_path: Path,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = template.copied(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    there = here.on_s3(s3_server, database_url=f"sqlite:///{tmp_path / 'wwts.db'}")
    there.settings.state_dir.mkdir(parents=True)
    (there.settings.state_dir / "models").symlink_to(here.settings.state_dir / "models")
    for shop in (here, there):
        shop.night(here.version(FIRST))
    here.champion(here.version(OTHER_BACKBONE))
    for shop in (here, there):
        assert retag(shop.settings) is not None
    rows = [{name: _lasting(row) for name, row in shop.rows().items()} for shop in (here, there)]
    assert rows[0] == rows[1]
    assert by_head(here) == by_head(there)


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from store to store, or from second to second."""
    return {name: value for name, value in row.items() if name not in ("tagged_at", "run_id", "snapshot")}


def test_later_nights_lie_on_top(shop: RetagShop) -> None:
    """The next night is the champion's own; a retag covers only what was planned before it."""
    shop.champion(shop.version(SECOND))
    retag(shop.settings)
    photo = next(Path(shop.settings.catalog).rglob("a1*.jpg"))
    photo.with_name("新的.jpg").write_bytes(photo.read_bytes() + b"1")
    plan = shop.night(shop.version(FIRST), DAY + timedelta(days=1))
    rows = shop.rows()
    assert rows.pop("新的.jpg")["run_id"] == plan.run_key
    found = retags.in_force(shop.store)
    assert {row["run_id"] for row in rows.values() if row["state"] == "live"} == {found.key if found else None}
    assert found is not None
    assert found.sequence == plan.sequence - 1


def test_answers_stay_on_top(shop: RetagShop) -> None:
    shop.champion(shop.version(SECOND))
    before = shop.rows()
    name, row = next(iter(before.items()))
    label = shop.shelf.tagger.label_ids[7]
    said = Answer(
        answer_id="one",
        answered_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        answered_by="小王",
        content_sha256=row["content_sha256"],
        kind="correct",
        source="import",
        shown_because="import",
        labels=(label,),
    )
    corrections.record(shop.settings, [said])
    retag(shop.settings)
    after = shop.rows()
    answered = {image for image, found in after.items() if found["content_sha256"] == row["content_sha256"]}
    assert name in answered
    for image, found in after.items():
        expected = ("human", label, "live") if image in answered else (found["decision"], found["label_id"], "live")
        assert image not in answered or (found["decision"], found["label_id"], found["state"]) == expected
        assert (found["decision"] == "human") == (image in answered)


class TestAgain:
    def test_what_is_whole_is_found_and_only_the_pointer_moves(self, shop: RetagShop) -> None:
        first, second = shop.version(FIRST), shop.version(SECOND)
        published_before: dict[str, Any] = {}
        for model in (first, second):
            shop.champion(model)
            pointer = retag(shop.settings)
            assert pointer is not None
            published_before[model.version] = pointer
        files = _files(shop.store, "retags", "embeddings", "published")
        shop.champion(first)
        planned = retagging.plan(shop.settings)
        assert planned == {"retag": published_before["1"]["retag"], "shards": []}
        pointer = retag(shop.settings)
        assert pointer is not None
        assert pointer["snapshot"] == published_before["1"]["snapshot"]
        after = _files(shop.store, "retags", "embeddings", "published")
        changed = {key for key in after if after[key] != files.get(key)}
        assert changed <= {
            retags.POINTER,
            published.POINTER,
            retags.done_key(planned["retag"]),
        } | {f"published/{entry['snapshot']}/_snapshot.json" for entry in published_before.values()}
        assert {row["model_version"] for row in shop.rows().values() if row["state"] == "live"} == {"1"}

    def test_the_same_again_changes_nothing(self, shop: RetagShop) -> None:
        shop.champion(shop.version(SECOND))
        first, second = retag(shop.settings), retag(shop.settings)
        assert first is not None
        assert second is not None
        assert second["snapshot"] == first["snapshot"]

    def test_new_embeddings_another_taxonomy_or_top_k_make_another(self, shop: RetagShop) -> None:
        shop.champion(shop.version(SECOND))
        keys = {_planned(shop)}
        keys.add(_planned(shop, top_k=2))
        photo = next(Path(shop.settings.catalog).rglob("a1*.jpg"))
        photo.write_bytes(photo.read_bytes() + b"1")
        shop.night(shop.version(SECOND), DAY + timedelta(days=1))
        keys.add(_planned(shop))
        pointer = shop.store.read_pointer("taxonomy/current.json")
        names = taxonomy.read(shop.store, str(pointer.value["version"]))  # type: ignore[union-attr]
        taxonomy.put(shop.store, taxonomy.Taxonomy("", names.labels, ()), "小王", pointer)
        keys.add(_planned(shop))
        assert len(keys) == 4

    def test_a_snapshot_comes_back_with_its_tags(self, shop: RetagShop) -> None:
        before = shop.rows()
        pointer = published.current(shop.store)
        assert pointer is not None
        shop.champion(shop.version(SECOND))
        retag(shop.settings)
        assert shop.rows() != before
        wanted = Order(snapshot=str(pointer.value["snapshot"]))
        assert retagging.restore(shop.settings, Order(wanted.snapshot, dry_run=True)) is None
        assert shop.rows() != before
        back = retagging.restore(shop.settings, wanted)
        assert back is not None
        assert back["snapshot"] == wanted.snapshot
        assert shop.rows() == before


def _planned(shop: RetagShop, **given: Any) -> str:
    planned = retagging.plan(shop.settings.model_copy(update=given))
    assert planned is not None
    return str(planned["retag"])


def _files(store: Store, *folders: str) -> dict[str, int]:
    root = Path(store.root)
    paths = (path for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in paths if not path.name.startswith(".")}


class TestChampion:
    def test_another_champion_meanwhile_is_not_overruled(self, shop: RetagShop) -> None:
        shop.champion(shop.version(SECOND))
        planned = retagging.plan(shop.settings)
        assert planned is not None
        for part in planned["shards"]:
            retagging.retag(shop.settings, part["key"], part["shard"])
        shop.champion(shop.version(FIRST))
        assert retagging.finish(shop.settings, planned["retag"]) is None
        assert retags.in_force(shop.store) is None
        assert {row["model_version"] for row in shop.rows().values()} == {"1"}

    def test_shards_that_are_left_are_named(self, shop: RetagShop) -> None:
        planned = retagging.plan(shop.settings)
        assert planned is not None
        retagging.retag(shop.settings, planned["retag"], 0)
        with pytest.raises(WwtsError, match=r"Shards \[1, 2\] of retag r[0-9a-f]{12} are not done"):
            retagging.finish(shop.settings, planned["retag"])
        assert retags.in_force(shop.store) is None

    def test_versions_that_were_rolled_back_from_are_distrusted(self, shop: RetagShop) -> None:
        """Only those that tagged something, and not once they are champion again."""
        first, second = shop.version(FIRST), shop.version(SECOND)
        self._promote(shop, shop.version(OTHER_BACKBONE))
        promotion.rollback(shop.settings, first.version, "小王", "错得多", "back-1")
        self._promote(shop, second)
        photo = next(Path(shop.settings.catalog).rglob("a1*.jpg"))
        photo.write_bytes(photo.read_bytes() + b"1")
        shop.night(second, DAY + timedelta(days=1))
        assert _distrusted(shop) == ()
        promotion.rollback(shop.settings, first.version, "小王", "错得多", "back-2")
        assert _distrusted(shop) == (second.sha256,)
        self._promote(shop, second)
        assert _distrusted(shop) == ()

    def _promote(self, shop: RetagShop, model: ModelVersion) -> None:
        """Without a gate, which is not what this is about."""
        history = promotion.history(shop.settings)
        wanted = moves.Order(f"promote-{len(history)}", "小王", "promote")
        moves.carry_out(shop.settings, wanted, lambda _: moves.Decided({CHAMPION: model.version}, {}))

    def test_nothing_to_do_is_said_in_one_sentence(
        self, clean_environment: None, template: RetagShop, tmp_path: Path
    ) -> None:
        empty = template.copied(tmp_path / "empty")
        assert "还没有发布过标签" in str(retagging.obstacle(empty.settings))
        empty.night(empty.version(FIRST))
        assert retagging.obstacle(empty.settings) is None
        unknown = empty.settings.model_copy(update={"model_name": "another"})
        assert "another 还没有启用的版本" in str(retagging.obstacle(unknown))
        missing = empty.settings.model_copy(update={"mlflow_tracking_uri": f"sqlite:///{tmp_path / 'none.db'}"})
        assert "还没有启用的版本" in str(retagging.obstacle(missing))
        assert not (tmp_path / "none.db").exists()

    def test_a_dry_run_writes_nothing(self, shop: RetagShop) -> None:
        shop.champion(shop.version(OTHER_BACKBONE))
        before = shop.store.list("")
        with capture_logs() as events:
            assert retagging.survey(shop.settings, Order(dry_run=True)) is None
        assert shop.store.list("") == before
        (event,) = events
        contents = {row["content_sha256"] for row in shop.rows().values()}
        assert (event["event"], event["missing"], event["embedded"]) == ("retag_surveyed", len(contents), 0)


def _distrusted(shop: RetagShop) -> tuple[str, ...]:
    return retags.read(shop.store, _planned(shop)).distrusted


class TestMissing:
    def test_another_backbone_embeds_what_it_lacks_and_the_rest_keeps_its_tags(
        self, shop: RetagShop, tmp_path: Path
    ) -> None:
        expected, before = by_pixels(shop, OTHER_BACKBONE, tmp_path / "pixels"), shop.rows()
        catalog = Path(shop.settings.catalog)
        # The copies of a1 still have its bytes; nobody has those of a3 and a5 any more.
        next(catalog.rglob("a1*.jpg")).unlink()
        (catalog / "a3.png").unlink()
        (catalog / "a5.jpg").write_bytes((catalog / "a9.jpg").read_bytes())
        shop.champion(shop.version(OTHER_BACKBONE))
        with capture_logs() as events:
            pointer = retag(shop.settings)
        assert pointer is not None
        after, lost = shop.rows(), {"a3.png", "a5.jpg"}
        hashes = {before[name]["content_sha256"]: name for name in lost}
        assert by_head(shop) == {sha: tag for sha, tag in expected.items() if sha not in hashes}
        assert {name: _lasting(after[name]) for name in lost} == {name: _lasting(before[name]) for name in lost}
        told = {event["image_hash"]: event["reason"] for event in events if event["event"] == "content_not_embedded"}
        assert {hashes[sha]: reason for sha, reason in told.items()} == {
            "a3.png": "unreadable_uri",
            "a5.jpg": "changed",
        }
        found = retags.in_force(shop.store)
        assert found is not None
        assert found.missing == 2
        assert shop.store.list("thumbnails") == []

    def test_it_is_stable_though_some_can_never_be_embedded(self, shop: RetagShop) -> None:
        (Path(shop.settings.catalog) / "a3.png").unlink()
        shop.champion(shop.version(OTHER_BACKBONE))
        first = retag(shop.settings)
        again = retag(shop.settings)
        assert first is not None
        assert again is not None
        assert again["retag"] == first["retag"]
        assert retagging.survey(shop.settings, Order()) == [], "the one that is left was tried today"

    def test_without_any_embedding_it_fails(self, shop: RetagShop) -> None:
        """The host of the images was away, say: nobody may take that for a re-tagging with nothing to do."""
        shop.champion(shop.version(OTHER_BACKBONE))
        contents = {row["content_sha256"] for row in shop.rows().values()}
        with pytest.raises(WwtsError, match=rf"None of the {len(contents)} published contents has an embedding"):
            retagging.plan(shop.settings)

    def test_embeddings_of_other_contents_are_none(self, shop: RetagShop) -> None:
        other = shop.version(OTHER_BACKBONE)
        shop.champion(other)
        key = embeddings.part_key(other.backbone_sha256, "2026-03-01", "f0123456789ab", 0)
        with shop.store.writing(key) as path, EmbeddingWriter(path, other.backbone_sha256, 4) as writer:
            writer.add("f" * 64, np.ones(4, np.float16))
        shop.store.write_json(backfill.marker_key("f0123456789ab", 0), {})
        with pytest.raises(WwtsError, match="run retag_catalog again"):
            retagging.plan(shop.settings)

    def test_without_anything_published_there_is_nothing_to_retag(
        self, clean_environment: None, template: RetagShop, tmp_path: Path
    ) -> None:
        assert retagging.plan(template.copied(tmp_path / "empty").settings) is None


class TestPackedCode:
    @pytest.fixture
    def shop(self, clean_environment: None, template: RetagShop, tmp_path: Path) -> RetagShop:
        """All in one shard: each is a process of its own."""
        made = template.copied(tmp_path / "shop")
        made.night(made.version(FIRST), shard_size=100)
        return RetagShop(made.shelf, made.settings.model_copy(update={"shard_size": 100}))

    @pytest.mark.parametrize("columns", [True, False], ids=["with columns", "before there were columns"])
    def test_a_version_decides_by_its_own_code(self, shop: RetagShop, tmp_path: Path, columns: bool) -> None:
        older = ("decisions.py", "def columns(", "def _later(")
        doubtful = ("decisions.py", "sure = values[:, 0] >= self.thresholds[first]", "sure = values[:, 0] > 2")
        model = shop.add(shop.shelf.tagger, doubtful if columns else older, CAUTIOUS)
        expected = by_pixels(shop, int(model.version), tmp_path / "pixels")
        assert {tag["decision"] for tag in expected.values()} == {"review"}, "other than ours"
        shop.champion(model)
        with capture_logs() as events:
            retag(shop.settings)
        assert by_head(shop) == expected
        told = [event["event"] for event in events]
        assert told.count("tagging_with_packed_code") == told.count("retag_shard_done") > 0

    def test_missing_embeddings_are_made_by_its_own_code(self, shop: RetagShop, tmp_path: Path) -> None:
        mirrored = (
            "images.py",
            "def content_sha256(data: bytes) -> str:",
            "def content_sha256(data: bytes) -> str:\n    data = b''",
        )
        cached = registry.fetch(shop.settings, shop.version(OTHER_BACKBONE)).folder
        other = tagger.load(Path(shutil.copytree(cached, tmp_path / "other")))
        shop.champion(shop.add(other, mirrored))
        with capture_logs() as events, pytest.raises(WwtsError, match="published contents has an embedding"):
            retag(shop.settings)
        reasons = {event["reason"] for event in events if event["event"] == "content_not_embedded"}
        assert reasons == {"changed"}, "its code hashes otherwise, and ours does not know"


@pytest.fixture(scope="module")
def head(template: RetagShop) -> Head:
    found = template.shelf.tagger
    return Head(Scorer(found), Decider(found.label_ids, found.thresholds, taxonomy.embedded(()), 5))


class TestPart:
    def _embed(self, store: Store, shard: int, contents: list[str], seed: int) -> str:
        numbers = np.random.default_rng(seed)
        key = embeddings.part_key("b" * 64, "2026-03-01", "2026-03-01-0123456789ab", shard)
        with store.writing(key) as path, EmbeddingWriter(path, "b" * 64, 6) as writer:
            for content in contents:
                writer.add(content, numbers.normal(size=6).astype(np.float16))
        return key

    def test_a_content_is_there_once_and_the_lowest_part_counts(self, tmp_path: Path, head: Head) -> None:
        store = Store(str(tmp_path))
        contents = [f"{number:064x}" for number in range(5000)]
        keys = [self._embed(store, 0, contents[:3000], 1), self._embed(store, 1, contents[2000:] + contents[:1], 2)]
        counts = retagging.write_part(store, "both.parquet", keys, head, 2)
        retagging.write_part(store, "first.parquet", keys[:1], head, 2)
        both, first = store.read_table("both.parquet"), store.read_table("first.parquet")
        assert both["content_sha256"].to_pylist() == contents
        assert both.slice(0, 3000).equals(first)
        assert counts["images"] == 5000 == sum(counts[name] for name in ("auto", "review", "forced_review"))
        assert pq.ParquetFile(store.path("both.parquet")).schema_arrow.equals(RETAGGED)

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_threads_and_row_groups_change_no_bit(self, tmp_path: Path, head: Head, threads: int) -> None:
        store = Store(str(tmp_path))
        contents = [f"{number:064x}" for number in range(9001)]
        key = self._embed(store, 0, contents, 3)
        retagging.write_part(store, "part.parquet", [key], head, threads)
        vectors = np.concatenate([group for _, group in embeddings.batches(store, key)])
        decisions = head.decide(head.score(vectors))
        found = store.read_table("part.parquet").to_pylist()
        assert [row["content_sha256"] for row in found] == contents
        for row, decision in zip(found, decisions, strict=True):
            assert row["tags"] == [vars(tag) for tag in decision.tags]
            assert (row["decision"], row["decision_reason"]) == (decision.decision, decision.reason)

    def test_a_damaged_part_is_told_and_nothing_is_left(self, tmp_path: Path, head: Head) -> None:
        store = Store(str(tmp_path))
        key = self._embed(store, 0, ["0" * 64], 1)
        store.write_bytes(key, b"no Parquet")
        with pytest.raises(WwtsError, match=r"part-.*-00000\.parquet is damaged"):
            retagging.write_part(store, "part.parquet", [key], head, 2)
        assert not store.exists("part.parquet")

    @settings(deadline=None)
    @given(st.lists(st.integers(1, 200_000), min_size=1, max_size=300))
    def test_shards_take_every_part_once_and_about_the_same_rows(self, sizes: list[int]) -> None:
        edges = retagging.edges(sizes)
        assert edges[0] == 0
        assert edges[-1] == len(sizes)
        assert all(first < end for first, end in pairwise(edges))
        assert len(edges) - 1 <= 64
        # No shard has more than its share and one part.
        share = sum(sizes) / min(64, max(8, -(-sum(sizes) // 50_000)), len(sizes))
        assert all(sum(sizes[first:end]) <= share + max(sizes) for first, end in pairwise(edges))


def test_publishing_at_night_does_not_lose_it(shop: RetagShop) -> None:
    """Whoever publishes after it does so on top of it."""
    shop.champion(shop.version(SECOND))
    pointer, published_again = retag(shop.settings), publish.publish(shop.store, shop.settings)
    assert pointer is not None
    assert published_again is not None
    assert published_again["snapshot"] == pointer["snapshot"]
