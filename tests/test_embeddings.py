"""The embedding store: what was written is found, by its whole hash, in the runs that count."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wwts_ops import backfill, embeddings
from wwts_ops.embeddings import EmbeddingWriter, KnownContents, part_key
from wwts_ops.errors import WwtsError
from wwts_ops.storage import Store

BACKBONE = hashlib.sha256(b"a backbone").hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()
RUN, LATER = "2026-03-08-0123456789ab", "2026-03-09-0123456789ab"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "仓库"))
    server = request.getfixturevalue("s3_server")
    return Store(f"s3://{server.bucket}/{request.node.name}-{random.SystemRandom().getrandbits(32):x}", server.endpoint)


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def vector(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float16)


def write(store: Store, run: str, shard: int, rows: Mapping[str, Any], backbone: str = BACKBONE, date: str = "") -> str:
    """One part of 2-number embeddings, below the run's own date unless told otherwise."""
    key = part_key(backbone, date or run[:10], run, shard)
    with store.writing(key) as path, EmbeddingWriter(path, backbone, 2) as writer:
        for content, embedding in rows.items():
            writer.add(content, embedding)
    return key


def test_the_part_says_what_it_holds(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    key = write(store, RUN, 7, {sha(n): vector(n, -0.5) for n in range(2500)})
    assert key == f"embeddings/backbone=b{BACKBONE[:12]}/date=2026-03-08/part-{RUN}-00007.parquet"
    file = pq.ParquetFile(store.path(key))
    assert file.schema_arrow.field("embedding").type == pa.binary()
    assert file.schema_arrow.metadata[b"dimension"] == b"2"
    assert file.metadata.row_group(0).column(2).compression == "UNCOMPRESSED"
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [1024, 1024, 452]
    rows = file.read().to_pylist()
    assert [row["content_sha256"] for row in rows] == [sha(n) for n in range(2500)]
    assert {row["backbone_sha256"] for row in rows} == {BACKBONE}
    assert rows[1]["embedding"] == b"\x00\x3c\x00\xb8"  # 1.0 and -0.5 as little-endian halves, by IEEE 754


def test_what_was_written_is_found(store: Store) -> None:
    rows = {sha(n): vector(n, -n) for n in range(5)}
    write(store, RUN, 0, rows)
    known = KnownContents(store, BACKBONE, [RUN])
    assert len(known) == 5
    for content, expected in rows.items():
        found = known.get(content)
        assert found is not None
        assert found.dtype == np.dtype("<f2")
        assert found.tolist() == expected.tolist()
    assert known.get(sha(99)) is None


@pytest.mark.parametrize("count", [1023, 1024, 1025, 2048])
def test_around_the_ends_of_a_row_group(tmp_path: Path, count: int) -> None:
    store = Store(str(tmp_path))
    write(store, RUN, 0, {sha(n): vector(n, 0) for n in range(count)})
    known = KnownContents(store, BACKBONE, [RUN])
    assert len(known) == count
    for number in {0, 1022, count - 1, min(1023, count - 1), min(1024, count - 1)}:
        found = known.get(sha(number))
        assert found is not None
        assert found.tolist() == [number, 0]


def test_more_row_groups_than_are_kept_in_memory(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    numbers = list(range(12_000))
    for shard in range(3):
        part = numbers[shard * 4000 : (shard + 1) * 4000]
        write(store, RUN, shard, {sha(n): vector(n // 100, n % 100) for n in part})
    known = KnownContents(store, BACKBONE, [RUN])
    for number in random.Random(1).sample(numbers, 300):
        found = known.get(sha(number))
        assert found is not None
        assert found.tolist() == [number // 100, number % 100]


def test_two_contents_with_the_same_first_8_bytes(store: Store) -> None:
    first, second, third = ("0123456789abcdef" + tail * 48 for tail in "012")
    write(store, RUN, 0, {second: vector(2, 2), sha(1): vector(9, 9)})
    write(store, RUN, 1, {first: vector(1, 1)})
    known = KnownContents(store, BACKBONE, [RUN])
    found = [known.get(content) for content in (first, second)]
    assert [one.tolist() for one in found if one is not None] == [[1, 1], [2, 2]]
    assert known.get(third) is None


@pytest.mark.parametrize("digits", ["0" * 16, "f" * 16, "7" + "f" * 15, "8" + "0" * 15])
def test_prefixes_at_the_ends_of_the_range(tmp_path: Path, digits: str) -> None:
    store = Store(str(tmp_path))
    content = digits + "a" * 48
    write(store, RUN, 0, {sha(1): vector(1, 1), content: vector(2, 2), sha(3): vector(3, 3)})
    known = KnownContents(store, BACKBONE, [RUN])
    found = known.get(content)
    assert found is not None
    assert found.tolist() == [2, 2]
    assert known.get(digits + "b" * 48) is None


def test_of_duplicates_the_lowest_part_name_counts(store: Store) -> None:
    # The folder's date must not decide: it sorts the other way round here. Neither may the order of writing.
    write(store, LATER, 0, {sha(1): vector(30, 0)}, date="2026-01-01")
    write(store, RUN, 2, {sha(1): vector(20, 0)})
    write(store, RUN, 1, {sha(5): vector(0, 0), sha(1): vector(10, 0)})
    for runs in ([RUN, LATER], [LATER, RUN]):
        found = KnownContents(store, BACKBONE, runs).get(sha(1))
        assert found is not None
        assert found.tolist() == [10, 0]
    found = KnownContents(store, BACKBONE, [LATER]).get(sha(1))
    assert found is not None
    assert found.tolist() == [30, 0]


def test_only_the_wanted_runs_and_backbone_count(store: Store) -> None:
    write(store, RUN, 0, {sha(1): vector(1, 1)})
    write(store, LATER, 0, {sha(2): vector(2, 2)})
    write(store, RUN, 0, {sha(3): vector(3, 3)}, backbone=OTHER)
    known = KnownContents(store, BACKBONE, [RUN, "2026-03-08-no-such-run"])
    assert len(known) == 1
    assert known.get(sha(1)) is not None
    assert known.get(sha(2)) is None
    assert known.get(sha(3)) is None


def test_nothing_is_known_on_the_first_night(store: Store) -> None:
    known = KnownContents(store, BACKBONE, [])
    assert len(known) == 0
    assert known.get(sha(1)) is None
    write(store, RUN, 0, {})
    assert KnownContents(store, BACKBONE, [RUN]).get(sha(1)) is None


def test_a_block_that_fails_leaves_no_part(store: Store) -> None:
    def fail() -> None:
        with store.writing("embeddings/a.parquet") as path, EmbeddingWriter(path, BACKBONE, 2) as writer:
            writer.add(sha(1), vector(1, 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.list("embeddings") == []


def test_a_damaged_part_is_told(store: Store) -> None:
    key = write(store, RUN, 0, {sha(1): vector(1, 1)})
    store.write_bytes(key, b"no Parquet")
    with pytest.raises(WwtsError, match=r"part-.*-00000\.parquet is damaged"):
        KnownContents(store, BACKBONE, [RUN])


def test_all_parts_of_a_backbone_by_name(store: Store) -> None:
    keys = [write(store, LATER, 0, {}, date="2026-01-01"), write(store, RUN, 1, {}), write(store, RUN, 0, {})]
    write(store, RUN, 0, {}, backbone=OTHER)
    assert embeddings.parts(store, BACKBONE) == (keys[2], keys[1], keys[0])
    assert embeddings.parts(store, "f" * 64) == ()


def test_a_part_comes_back_in_row_groups(store: Store) -> None:
    rows = {sha(n): vector(n, -n) for n in range(2500)}
    key = write(store, RUN, 0, rows)
    found = list(embeddings.batches(store, key))
    assert [len(contents) for contents, _ in found] == [1024, 1024, 452]
    assert [content for contents, _ in found for content in contents] == list(rows)
    assert np.array_equal(np.concatenate([vectors for _, vectors in found]), np.stack(list(rows.values())))
    assert list(embeddings.batches(store, write(store, LATER, 0, {}))) == []


def test_taken_in_the_order_that_was_asked_for(store: Store) -> None:
    write(store, RUN, 0, {sha(n): vector(n, 0) for n in range(1500)})
    write(store, LATER, 0, {sha(n): vector(n, 1) for n in range(1400, 1600)})
    wanted = [1599, 3, 9999, 1450, 3, 1024, 1023]
    found, vectors = embeddings.take(store, BACKBONE, [sha(n) for n in wanted])
    assert found.tolist() == [True, True, False, True, True, True, True]
    assert vectors.dtype == np.float16
    # 1450 lies in both: the lowest part name counts.
    assert vectors.tolist() == [[1599, 1], [3, 0], [1450, 0], [3, 0], [1024, 0], [1023, 0]]
    assert backfill.missing(store, BACKBONE, [sha(n) for n in [9999, *wanted, 7777]]) == [sha(9999), sha(7777)]


def test_nothing_is_taken_where_nothing_is(store: Store) -> None:
    found, vectors = embeddings.take(store, BACKBONE, [sha(1)])
    assert (found.tolist(), len(vectors)) == ([False], 0)
    found, vectors = embeddings.take(store, BACKBONE, [])
    assert (len(found), len(vectors)) == (0, 0)


@pytest.mark.parametrize("read", [embeddings.batches, lambda store, _: embeddings.take(store, BACKBONE, [sha(1)])])
def test_damage_is_told_by_whoever_reads(tmp_path: Path, read: Any) -> None:
    store = Store(str(tmp_path))
    key = write(store, RUN, 0, {sha(1): vector(1, 1)})
    store.write_bytes(key, b"no Parquet")
    with pytest.raises(WwtsError, match=r"part-.*-00000\.parquet is damaged"):
        list(read(store, key))
