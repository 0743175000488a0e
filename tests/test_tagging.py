"""One shard: every image once, each content embedded once, the same rows however it is run."""

from __future__ import annotations

import gc
import hashlib
import json
import resource
import shutil
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from shard_shop import COPIES, DATE, PHOTOS, REASONS, Shop, by_id, make_broken, make_photos
from structlog.testing import capture_logs

from wwts_ops import audit, images, planning, tagging
from wwts_ops.errors import UnavailableError
from wwts_ops.runtime import Embedder, Scorer, TorchEmbedder
from wwts_ops.schemas import QUARANTINE, TAGS, embeddings_schema
from wwts_ops.tagger import Tagger
from wwts_ops.tagging import Machine, Shard

FEW = ("a2 猫/Chelsea 🐱.jpg", "a5.jpg", "a6 tiny.png")


class Counting(Embedder):
    """An embedder that counts the crops it is given."""

    def __init__(self, inner: Embedder) -> None:
        self._inner, self._lock = inner, threading.Lock()
        self.batch_size = inner.batch_size
        self.crops = 0

    def __call__(self, crops: Any) -> Any:
        with self._lock:
            self.crops += len(crops)
        return self._inner(crops)


@dataclass
class Night:
    """A shard that was tagged."""

    shop: Shop
    shard: Shard
    done: dict[str, Any]
    crops: int
    events: list[Any] = field(default_factory=list)

    @property
    def tags(self) -> pa.Table:
        return self.shop.part(self.shard, "tags")

    @property
    def quarantine(self) -> pa.Table:
        return self.shop.part(self.shard, "quarantine")


def run(shop: Shop, machine: Machine | None = None, night: date = DATE, **more: Any) -> Night:
    """Plans what is new and tags its one shard; ``c6 gone.jpg`` goes between."""
    plan = shop.plan(night, **more)
    assert plan.shards == 1
    (shop.folder / "c6 gone.jpg").unlink(missing_ok=True)
    return tag(shop, Shard(plan, 0), machine, **more)


def tag(shop: Shop, shard: Shard, machine: Machine | None = None, **more: Any) -> Night:
    machine = machine or shop.machine(**more)
    counting = Counting(machine.embed)
    with capture_logs() as events:
        done = tagging.tag(shop.store, shop.settings(**more), shard, lambda: replace(machine, embed=counting))
    return Night(shop, shard, done, counting.crops, events)


@pytest.fixture(scope="module")
def clean() -> Iterator[None]:
    """No setting of the developer's own reaches the module's shop."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WWTS_WORKERS", "WWTS_THUMBNAILS", "WWTS_TOP_K", "WWTS_THRESHOLD", "WWTS_MAX_PIXELS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def first(clean: None, tmp_path_factory: pytest.TempPathFactory, embedded_tagger: Tagger) -> Night:
    """A night over everything; not to be written to."""
    folder = tmp_path_factory.mktemp("tagging")
    shop = Shop(folder / "图库", folder / "store", embedded_tagger)
    make_photos(shop.folder)
    make_broken(shop.folder)
    return run(shop)


@pytest.fixture
def shop(clean_environment: None, tmp_path: Path, embedded_tagger: Tagger) -> Shop:
    folder = tmp_path / "图库"
    folder.mkdir()
    return Shop(folder, tmp_path / "store", embedded_tagger)


def add(shop: Shop, first: Night, *names: str) -> None:
    for name in names:
        (shop.folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(first.shop.folder / name, shop.folder / name)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def told(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without what may differ between two runs of one plan."""
    return table.drop_columns(["tagged_at", "git_sha"]).to_pylist()


# ------------------------------------------------------------------ rows


def test_every_image_is_in_tags_or_quarantine_exactly_once(first: Night) -> None:
    assert first.tags["image_id"].to_pylist() == sorted([*PHOTOS, *COPIES])
    assert first.quarantine["image_id"].to_pylist() == sorted(REASONS)


def test_parts_are_named_by_the_plan_and_have_the_schema(first: Night) -> None:
    name = f"date=2026-03-01/part-{first.shard.plan.run_key}-00000.parquet"
    backbone = first.shop.tagger.backbone_sha256[:12]
    store = first.shop.store
    assert store.list("tags") == [f"tags/{name}"]
    assert store.list("quarantine") == [f"quarantine/{name}"]
    assert store.list("embeddings") == [f"embeddings/backbone=b{backbone}/{name}"]
    assert first.tags.schema.equals(TAGS)
    assert first.quarantine.schema.equals(QUARANTINE)
    schema = first.shop.embeddings(first.shard).schema
    assert schema.equals(embeddings_schema(1280), check_metadata=True)
    assert "date" not in [*first.tags.column_names, *first.quarantine.column_names, *schema.names]


def test_a_row_says_what_was_tagged_and_by_what(first: Night) -> None:
    tagger = first.shop.tagger
    now = datetime.now(UTC)
    assert first.tags.num_rows == len(PHOTOS) + len(COPIES)
    for name, row in by_id(first.tags).items():
        path = first.shop.folder / name
        assert row["content_sha256"] == sha(path)
        assert (row["uri"], row["sku_id"], row["ocr_text"]) == (str(path), None, None)
        with Image.open(path) as picture:
            assert (row["width"], row["height"]) == picture.size
        scores = [one["score"] for one in row["tags"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        best = row["tags"][0]
        assert (row["label_id"], row["label_zh"], row["confidence"]) == tuple(best.values())
        assert row["decision"] == ("auto" if best["score"] >= 0.6 else "review")
        assert row["decision_reason"] == {"auto": "confident", "review": "low_confidence"}[row["decision"]]
        assert (row["model_name"], row["model_version"], row["taxonomy_version"]) == ("wwts-tagger", "7", "t1")
        assert (row["model_sha256"], row["backbone_sha256"]) == (tagger.sha256, tagger.backbone_sha256)
        assert row["run_id"] == first.shard.plan.run_key
        assert now - timedelta(minutes=10) < row["tagged_at"] <= now


def test_a_known_photograph_gets_its_label(first: Night) -> None:
    rows = by_id(first.tags)
    assert rows["a1 咖啡 ☕.jpg"]["label_id"] == "imagenet:n07920052"  # espresso
    cats = {"imagenet:n02123045", "imagenet:n02123159", "imagenet:n02124075", "imagenet:n02123394"}
    assert rows["a2 猫/Chelsea 🐱.jpg"]["label_id"] in cats


def test_the_marker_counts_what_is_there(first: Night) -> None:
    done = first.shop.store.read_json(first.shard.marker)
    assert done == json.loads(json.dumps(first.done))
    assert (done["images"], done["tagged"], done["quarantined"]) == (19, 12, 7)
    assert done["duplicates"] == len(COPIES)
    decisions = first.tags["decision"].to_pylist()
    assert {name: done[name] for name in ("auto", "review", "forced_review")} == {
        name: decisions.count(name) for name in ("auto", "review", "forced_review")
    }
    assert done["auto"]
    assert done["review"]
    assert done["reasons"] == {reason: list(REASONS.values()).count(reason) for reason in set(REASONS.values())}
    assert {"read", "decode", "embed"} <= set(done["timings"])
    assert done["seconds"] > 0


def test_forced_and_switched_off_labels_of_the_taxonomy_count(shop: Shop, first: Night) -> None:
    add(shop, first, "a1 咖啡 ☕.jpg")
    best, second = (one["label_id"] for one in by_id(first.tags)["a1 咖啡 ☕.jpg"]["tags"][:2])
    machine = shop.machine()
    labels = tuple(
        replace(label, enabled=label.label_id != best, forced_review=label.label_id == second)
        for label in machine.taxonomy.labels
    )
    decide = replace(machine.decide, taxonomy=replace(machine.taxonomy, labels=labels))
    night = run(shop, replace(machine, decide=decide))
    (row,) = night.tags.to_pylist()
    assert (row["label_id"], row["decision"]) == (second, "forced_review")
    assert row["decision_reason"] == f"forced_label;skipped_off:{best}"
    assert night.done["forced_review"] == 1


# ------------------------------------------------------------------ duplicates and embeddings


def test_a_later_copy_in_the_shard_is_a_duplicate(first: Night) -> None:
    rows = by_id(first.tags)
    assert {name for name, row in rows.items() if row["source"] == "duplicate"} == set(COPIES)
    assert {row["source"] for row in rows.values()} == {"model", "duplicate"}
    own = {"image_id", "uri", "source", "tagged_at"}
    for copy, original in COPIES.items():
        assert {k: v for k, v in rows[copy].items() if k not in own} == {
            k: v for k, v in rows[original].items() if k not in own
        }


def test_each_content_is_embedded_and_stored_once(first: Night) -> None:
    assert first.crops == len(PHOTOS)
    table = first.shop.embeddings(first.shard)
    assert table["content_sha256"].to_pylist() == [sha(first.shop.folder / name) for name in sorted(PHOTOS)]
    assert set(table["backbone_sha256"].to_pylist()) == {first.shop.tagger.backbone_sha256}


def test_the_stored_embedding_is_the_models(first: Night) -> None:
    machine = first.shop.machine()
    recipe = first.shop.tagger.recipe
    for row, name in zip(first.shop.embeddings(first.shard).to_pylist(), sorted(PHOTOS), strict=True):
        decoded = images.decode((first.shop.folder / name).read_bytes(), recipe.short_side, 10**8)
        vector = machine.embed(recipe.crop(decoded.rgb)[np.newaxis])[0]
        assert vector.dtype == np.float16
        assert row["embedding"] == vector.astype("<f2").tobytes()


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_retagging_from_the_store_gives_the_same_bits(first: Night, batch: int) -> None:
    score, machine = Scorer(first.shop.tagger), first.shop.machine()
    stored = first.shop.embeddings(first.shard).to_pylist()
    rows = {row["content_sha256"]: row for row in first.tags.to_pylist()}
    for start in range(0, len(stored), batch):
        piece = stored[start : start + batch]
        scores = score(np.stack([np.frombuffer(row["embedding"], "<f2") for row in piece]))
        for row, decision in zip(piece, machine.decide(scores), strict=True):
            written = rows[row["content_sha256"]]
            assert [vars(one) for one in decision.tags] == written["tags"]
            assert (decision.decision, decision.reason) == (written["decision"], written["decision_reason"])


def test_what_an_earlier_run_embedded_costs_no_forward_pass(shop: Shop, first: Night) -> None:
    add(shop, first, *FEW)
    before = run(shop)
    shop.finish(before.shard.plan)
    shutil.copyfile(shop.folder / "a5.jpg", shop.folder / "e1 again.jpg")
    shutil.copyfile(shop.folder / "a5.jpg", shop.folder / "e2 again.jpg")
    add(shop, first, "a9.jpg")
    after = run(shop, night=date(2026, 3, 2))
    rows = by_id(after.tags)
    assert {name: row["source"] for name, row in rows.items()} == {
        "a9.jpg": "model",
        "e1 again.jpg": "duplicate",
        "e2 again.jpg": "duplicate",
    }
    assert after.crops == 1
    assert shop.embeddings(after.shard)["content_sha256"].to_pylist() == [sha(shop.folder / "a9.jpg")]
    old = by_id(before.tags)["a5.jpg"]
    for name in ("e1 again.jpg", "e2 again.jpg"):
        for column in ("tags", "confidence", "decision", "width", "height", "content_sha256"):
            assert rows[name][column] == old[column]


def test_a_content_of_an_unfinished_run_is_not_known(shop: Shop, first: Night) -> None:
    add(shop, first, "a5.jpg")
    run(shop)
    shutil.copyfile(shop.folder / "a5.jpg", shop.folder / "e1 again.jpg")
    after = run(shop, night=date(2026, 3, 2))
    assert after.tags["source"].to_pylist() == ["model"]
    assert after.crops == 1


# ------------------------------------------------------------------ devices, threads, restarts


def test_the_batch_path_gives_the_same_labels_and_decisions(shop: Shop, first: Night) -> None:
    add(shop, first, *PHOTOS, *COPIES, *(name for name in REASONS if name != "c6 gone.jpg"))
    machine = replace(shop.machine(), embed=TorchEmbedder(shop.tagger, "cpu"))
    assert machine.embed.batch_size > 1
    night = run(shop, machine)
    assert night.crops == len(PHOTOS)
    assert night.quarantine["image_id"].to_pylist() == sorted(set(REASONS) - {"c6 gone.jpg"})
    pairs = list(zip(first.tags.to_pylist(), night.tags.to_pylist(), strict=True))
    for left, right in pairs:
        same = ("image_id", "content_sha256", "width", "height", "label_id", "decision", "decision_reason", "source")
        assert [left[name] for name in same] == [right[name] for name in same]
        scores = [{one["label_id"]: one["score"] for one in row["tags"]} for row in (left, right)]
        for label in scores[0].keys() & scores[1].keys():
            # Kernels differ in the last bits of float32, which rounds one number of an embedding in a hundred to the
            # next float16; on 96 shop photographs no score moved by more than 1.4e-5.
            assert scores[0][label] == pytest.approx(scores[1][label], abs=1e-4)


def test_rows_do_not_depend_on_the_number_of_threads(shop: Shop, first: Night, tmp_path: Path) -> None:
    add(shop, first, *PHOTOS, *COPIES, "c2 截断.jpg", "d1 截断 copy.jpg")
    machine = shop.machine()
    other = replace(shop, root=tmp_path / "other")
    one, four = run(shop, machine, workers=1), run(other, machine, workers=4)
    assert one.shard.plan.run_key == four.shard.plan.run_key
    assert told(one.tags) == told(four.tags)
    assert shop.embeddings(one.shard).equals(other.embeddings(four.shard))
    assert one.quarantine.drop_columns(["seen_at"]).equals(four.quarantine.drop_columns(["seen_at"]))


def test_more_images_than_any_queue_holds_stay_in_order(shop: Shop, first: Night) -> None:
    for number in range(300):
        source = sorted(PHOTOS)[number % 3 + 3]
        shutil.copyfile(first.shop.folder / source, shop.folder / f"{number:03d}.jpg")
    night = run(shop, thumbnails="none")
    assert night.tags["image_id"].to_pylist() == [f"{number:03d}.jpg" for number in range(300)]
    assert night.tags["source"].to_pylist() == ["model"] * 3 + ["duplicate"] * 297
    assert night.crops == 3
    done = [event["done"] for event in night.events if event["event"] == "shard_progress"]
    assert done == [64, 128, 192, 256, 300]


def test_a_shard_that_is_done_is_not_done_again(first: Night) -> None:
    root = first.shop.root
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    def machine() -> Machine:
        pytest.fail("loaded a model for nothing")

    assert tagging.tag(first.shop.store, first.shop.settings(), first.shard, machine) == first.done
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def test_a_shard_that_lost_its_marker_gives_the_same_rows(shop: Shop, first: Night) -> None:
    add(shop, first, *FEW, "c2 截断.jpg")
    once = run(shop)
    rows, vectors = told(once.tags), shop.embeddings(once.shard)
    shop.store.delete(once.shard.marker)
    again = tag(shop, once.shard)
    assert told(again.tags) == rows
    assert shop.embeddings(again.shard).equals(vectors)
    assert len(shop.store.list("tags")) == len(shop.store.list("embeddings")) == 1


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes: what a full disk does, without a disk of our own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        # The notes on three contents (2,568 bytes each) fit, their embeddings with a Parquet header do not.
        (3 * 2568 + 100, "The store refused embeddings/.* Free space"),
        (2 * 2568 + 100, "The temporary folder .* Free space"),
    ],
)
def test_a_full_disk_leaves_nothing_and_the_next_run_completes(
    shop: Shop, first: Night, limit: int, sentence: str
) -> None:
    add(shop, first, *FEW)
    shard = Shard(shop.plan(), 0)
    machine = shop.machine()
    with file_size_limit(limit), pytest.raises(UnavailableError, match=sentence):
        tag(shop, shard, machine, thumbnails="none")
    files = [path.relative_to(shop.root).parts for path in shop.root.rglob("*") if path.is_file()]
    assert {parts[0] for parts in files} == {"runs"}
    assert not shop.store.exists(shard.marker)
    assert tag(shop, shard, machine).tags["image_id"].to_pylist() == sorted(FEW)


def test_an_error_in_the_middle_leaves_nothing(shop: Shop, first: Night) -> None:
    add(shop, first, *FEW)
    shard = Shard(shop.plan(), 0)
    machine = shop.machine()

    class Failing(Counting):
        def __call__(self, crops: Any) -> Any:
            if self.crops == 2:
                raise MemoryError
            return super().__call__(crops)

    with pytest.raises(MemoryError):
        tagging.tag(shop.store, shop.settings(workers=1), shard, lambda: replace(machine, embed=Failing(machine.embed)))
    files = [path.relative_to(shop.root).parts for path in shop.root.rglob("*") if path.is_file()]
    assert {parts[0] for parts in files} <= {"runs", "thumbnails"}
    assert not shop.store.exists(shard.marker)
    assert tag(shop, shard, machine).tags.num_rows == 3


# ------------------------------------------------------------------ thumbnails


def test_thumbnails_of_all(shop: Shop, first: Night) -> None:
    add(shop, first, *PHOTOS, *COPIES, "c2 截断.jpg", "d1 截断 copy.jpg")
    run(shop, thumbnails="all")
    assert set(shop.thumbnails()) == {sha(shop.folder / name) for name in PHOTOS}
    for name in PHOTOS:
        digest = sha(shop.folder / name)
        assert shop.thumbnails()[digest].relative_to(shop.root).parts[:2] == ("thumbnails", digest[:2])
        with Image.open(shop.thumbnails()[digest]) as small, Image.open(shop.folder / name) as original:
            assert small.format == "JPEG"
            assert max(small.size) <= 320
            assert max(small.size) <= max(original.size)
            # What a decoder gives at half or a quarter is a little smaller than 320 at times, never tiny.
            assert max(small.size) >= min(256, max(original.size))
            assert small.width / small.height == pytest.approx(original.width / original.height, rel=0.03)


@pytest.mark.parametrize("audit_rate", [0, 0.5, 1])
def test_thumbnails_of_what_a_person_sees_and_of_samples(shop: Shop, first: Night, audit_rate: float) -> None:
    add(shop, first, *PHOTOS, *COPIES, "c2 截断.jpg", "d1 截断 copy.jpg")
    night = run(shop, thumbnails="review", audit_rate=audit_rate)
    rows = night.tags.to_pylist()
    waiting = {row["content_sha256"] for row in rows if row["decision"] != "auto"}
    others = {row["content_sha256"] for row in rows} - waiting
    # One in sixteen of the others, by their content; and all that a person may be asked to look at all the same.
    sampled = {content for content in others if int(content[:8], 16) % 16 == 0}
    audited = {content for content in others if audit.sampled(night.shard.plan.run_key, content, audit_rate)}
    assert waiting
    assert len(audited) in {0: {0}, 1: {len(others)}}.get(audit_rate, range(len(others) + 1))
    assert set(shop.thumbnails()) == waiting | sampled | audited


def test_a_known_content_gets_the_thumbnail_it_has_not(shop: Shop, first: Night) -> None:
    add(shop, first, "a5.jpg")
    shop.finish(run(shop, thumbnails="none").shard.plan)
    assert shop.thumbnails() == {}
    shutil.copyfile(shop.folder / "a5.jpg", shop.folder / "e1.jpg")
    assert run(shop, night=date(2026, 3, 2)).crops == 0
    assert set(shop.thumbnails()) == {sha(shop.folder / "a5.jpg")}


# ------------------------------------------------------------------ broken images


def test_reasons(first: Night) -> None:
    rows = by_id(first.quarantine)
    assert {name: row["reason"] for name, row in rows.items()} == REASONS
    for name, row in rows.items():
        unread = name == "c6 gone.jpg"
        assert row["content_sha256"] == (None if unread else sha(first.shop.folder / name))
        assert row["run_id"] == first.shard.plan.run_key
        assert row["uri"] == str(first.shop.folder / name)
        assert row["seen_at"].tzinfo


def test_a_copy_of_a_rejected_content_is_rejected_alike(first: Night) -> None:
    rows = by_id(first.quarantine)
    original, copy = rows["c2 截断.jpg"], rows["d1 截断 copy.jpg"]
    assert [original[name] for name in ("reason", "detail", "content_sha256")] == [
        copy[name] for name in ("reason", "detail", "content_sha256")
    ]


def test_a_truncated_file_that_is_replaced_is_tagged_the_next_night(shop: Shop, first: Night) -> None:
    add(shop, first, "a5.jpg", "c2 截断.jpg")
    before = run(shop)
    assert before.quarantine["image_id"].to_pylist() == ["c2 截断.jpg"]
    shop.finish(before.shard.plan)
    shutil.copyfile(first.shop.folder / "a9.jpg", shop.folder / "c2 截断.jpg")
    after = run(shop, night=date(2026, 3, 2))
    (row,) = after.tags.to_pylist()
    assert (row["image_id"], row["content_sha256"]) == ("c2 截断.jpg", sha(first.shop.folder / "a9.jpg"))
    assert after.quarantine.num_rows == 0


def test_a_shard_of_broken_images_only(shop: Shop, first: Night) -> None:
    add(shop, first, "c1 空.jpg", "c3 网页.jpg")
    night = run(shop)
    assert (night.tags.num_rows, night.quarantine.num_rows, night.crops) == (0, 2, 0)
    assert shop.embeddings(night.shard).num_rows == 0


# ------------------------------------------------------------------ memory and logs


def test_what_is_kept_of_a_content_is_small_and_its_embedding_is_on_disk() -> None:
    count, dimension = 2000, 1280
    vectors = np.random.default_rng(0).random((4, dimension)).astype(np.float16)
    with tagging._ShardMemory(dimension) as memory:
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(count):
                memory.recall(_seen(number, vectors[number % 4]))
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (after - before) / count < 300
        for number in (0, 1, 1999):
            copy = memory.recall(replace(_seen(number, None), read=replace(_seen(number, None).read, copy=True)))
            assert copy.embedding is not None
            assert copy.embedding.tobytes() == vectors[number % 4].tobytes()
            assert (copy.width, copy.height) == (number + 1, 7)


def _seen(number: int, vector: Any) -> tagging._Seen:
    read = tagging._Read({}, digest=hashlib.sha256(str(number).encode()).digest())
    return tagging._Seen(read, width=number + 1, height=7, embedding=vector)


def test_one_event_an_image(first: Night) -> None:
    def events(name: str) -> list[Any]:
        return [one for one in first.events if one["event"] == name]

    rows = first.tags.to_pylist()
    assert [one["image_hash"] for one in events("image_tagged")] == [row["content_sha256"] for row in rows]
    for event, row in zip(events("image_tagged"), rows, strict=True):
        assert event["log_level"] == "info"
        assert (event["latency_ms"] > 0) == (row["source"] == "model")
        assert (event["decision"], event["label_id"]) == (row["decision"], row["label_id"])
        assert event["score"] == pytest.approx(row["confidence"], abs=1e-4)
        assert event["objects_found"] == sum(one["score"] >= 0.6 for one in row["tags"])
    quarantined = {one["image_id"]: (one["reason"], one["log_level"]) for one in events("image_quarantined")}
    assert quarantined == {name: (reason, "warning") for name, reason in REASONS.items()}
    assert [one["run_id"] for one in events("shard_done")] == [first.shard.plan.run_key]
    json.dumps(first.events, allow_nan=False)


def test_objects_are_counted_by_the_taggers_thresholds(shop: Shop, first: Night) -> None:
    add(shop, first, "a1 咖啡 ☕.jpg")
    tags = by_id(first.tags)["a1 咖啡 ☕.jpg"]["tags"]
    lower = replace(shop.tagger, thresholds=np.full(1000, tags[2]["score"], np.float32))
    night = run(replace(shop, tagger=lower))
    (event,) = (one for one in night.events if one["event"] == "image_tagged")
    assert event["objects_found"] == 3
    assert night.tags["decision"].to_pylist() == ["auto"]


def test_the_plan_is_read_from_the_store(shop: Shop, first: Night) -> None:
    add(shop, first, *FEW)
    plan = shop.plan(shard_size=1)
    assert plan.shards == 3
    middle = tag(shop, Shard(planning.read(shop.store, plan.run_key), 1))
    assert middle.tags["image_id"].to_pylist() == [sorted(FEW)[1]]
    assert middle.done["images"] == 1
