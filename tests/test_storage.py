"""The store's promises, on a real folder and on a real S3 server: whole or absent, one winner, nothing lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.parts import PartWriter
from wwts_ops.settings import load
from wwts_ops.storage import Store

KEY = "tags/date=2026-03-08/部件-🍓 一.parquet"
POINTER = "published/current.json"
NOT_OBJECTS = [b"", b"{", b"[]", b"null", b'"sequence"', b'[["sequence", 1]]', b"7", b"\xff\xfe\x00"]
NO_SEQUENCE = [b"{}", b'{"sequence": "many"}', b'{"sequence": null}']


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "仓库 store"))
    server = request.getfixturevalue("s3_server")
    return Store(f"s3://{server.bucket}/测试-{uuid.uuid4().hex[:8]}", server.endpoint)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "仓库 store"))


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What ``act(0)``, ``act(1)``... return when all begin at the same moment."""
    gate = threading.Barrier(count)

    def one(number: int) -> Any:
        gate.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def files_below(store: Store) -> set[str]:
    """Every file of a local store, hidden ones too, locks aside."""
    found = (path for path in Path(store.root).rglob("*") if path.is_file())
    return {str(path.relative_to(store.root)) for path in found if path.suffix != ".lock"}


# ------------------------------------------------------------------ plain reading and writing


def test_a_settings_store_is_opened(tmp_path: Path) -> None:
    store = Store.of(load(store=str(tmp_path / "数据")))
    store.write_bytes("a", b"1")
    assert (tmp_path / "数据" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("write", [Store.write_bytes, Store.put, Store.create])
def test_what_was_written_is_read(store: Store, write: Callable[[Store, str, bytes], Any]) -> None:
    assert not store.exists(KEY)
    write(store, KEY, "一\n🍓".encode())
    assert store.exists(KEY)
    assert store.read_bytes(KEY) == "一\n🍓".encode()
    with store.open(KEY) as file:
        file.seek(4)
        assert file.read() == "🍓".encode()
    assert store.list("tags") == [KEY]
    store.delete(KEY)
    assert not store.exists(KEY)
    assert store.list("tags") == []


@pytest.mark.parametrize("write", [Store.write_bytes, Store.put])
def test_a_second_write_replaces(store: Store, write: Callable[[Store, str, bytes], Any]) -> None:
    write(store, KEY, b"a long first content")
    write(store, KEY, b"second")
    assert store.read_bytes(KEY) == b"second"


def test_tables_and_json(store: Store) -> None:
    table = pa.table({"名": ["草莓", None], "分": [0.5, 0.25]})
    store.write_table(KEY, table)
    store.write_json("a.json", {"名": "草莓"})
    assert store.read_table(KEY).equals(table)
    assert store.read_table(KEY, ["分"]).column_names == ["分"]
    assert store.read_json("a.json") == {"名": "草莓"}


def test_an_absent_key(store: Store) -> None:
    for read in (store.read_bytes, store.read_json, store.read_table):
        with pytest.raises(FileNotFoundError):
            read("no/such.parquet")
    with pytest.raises(FileNotFoundError), store.open("no/such.parquet"):
        pass
    store.delete("no/such.parquet")
    assert store.read_pointer("no/such.json") is None
    assert store.list("no") == []


def test_a_list_is_sorted_and_of_that_folder_only(store: Store) -> None:
    inside = ["tags/a.json", "tags/b.parquet", "tags/中/a.parquet"]
    for key in (*reversed(inside), "tags/.b.parquet", "tags2/c.parquet", "tags.parquet"):
        store.put(key, b"1")
    assert store.list("tags") == inside
    assert store.list("tags", ".parquet") == inside[1:]


def test_deleting_at_once_is_no_error(store: Store) -> None:
    for _ in range(5):
        store.put(KEY, b"1")
        at_once(4, lambda _: store.delete(KEY))
        assert not store.exists(KEY)


def test_others_may_read_what_a_restrictive_umask_wrote(local: Store) -> None:
    before = os.umask(0o077)
    try:
        local.write_bytes("a", b"1")
        local.put("b", b"1")
        local.create("c", b"1")
        local.replace_pointer("d", {}, None)
        local.replace_pointer("d", {}, local.read_pointer("d"))
    finally:
        os.umask(before)
    assert {Path(local.path(key)).stat().st_mode & 0o777 for key in "abcd"} == {0o644}


# ------------------------------------------------------------------ whole or absent


def test_a_failed_block_leaves_what_was_there(store: Store) -> None:
    store.write_bytes(KEY, b"old")
    seen = []

    def fail() -> None:
        with store.writing(KEY) as path:
            seen.append(path)
            path.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.read_bytes(KEY) == b"old"
    assert not seen[0].exists()


def test_a_reader_never_sees_half(store: Store) -> None:
    contents = [bytes([letter]) * size for letter, size in ((97, 300_000), (98, 17), (99, 90_000))]
    store.write_bytes(KEY, contents[0])
    done = threading.Event()

    def write() -> None:
        try:
            for turn in range(30):
                store.write_bytes(KEY, contents[turn % 3])
        finally:
            done.set()

    def read() -> set[bytes]:
        seen = set()
        while not done.is_set():
            seen.add(store.read_bytes(KEY))
        return seen

    with ThreadPoolExecutor(3) as pool:
        writer, readers = pool.submit(write), [pool.submit(read) for _ in range(2)]
        writer.result()
        assert all(reader.result() <= set(contents) for reader in readers)


HALF = """
import sys, time
from wwts_ops.storage import Store
with Store(sys.argv[1], sys.argv[2]).writing(sys.argv[3]) as path:
    with path.open("wb") as file:
        file.write(b"PAR1 half")
        file.flush()
        print(path, flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("old", [None, b"old"])
def test_kill_9_while_writing(store: Store, old: bytes | None) -> None:
    if old:
        store.write_bytes(KEY, old)
    process = child(HALF, store, KEY)
    assert process.stdout
    left = Path(process.stdout.readline().strip())
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert left.read_bytes() == b"PAR1 half"  # else the kill came too early or too late to tell anything
    assert left.name.startswith(".")
    assert left.suffix != ".parquet"
    assert store.list("tags") == ([KEY] if old else [])
    assert store.exists(KEY) == bool(old)
    store.write_bytes(KEY, b"new")
    assert store.read_bytes(KEY) == b"new"
    left.unlink()


def child(code: str, store: Store, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, store.root, store._s3_endpoint, *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


# ------------------------------------------------------------------ full disks


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing past ``size`` bytes of a file fails with EFBIG, as past the end of a disk with ENOSPC."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


BIG = os.urandom(300_000)
BIG_TABLE = pa.table({"a": [BIG]})


def write_part(store: Store, key: str) -> None:
    """So few rows that all are written when the block ends."""
    with PartWriter(store, key, BIG_TABLE.schema) as part:
        part.add({"a": BIG})


WRITES: dict[str, Callable[[Store, str], Any]] = {
    "write_bytes": lambda store, key: store.write_bytes(key, BIG),
    "write_json": lambda store, key: store.write_json(key, {"a": BIG.hex()}),
    "write_table": lambda store, key: store.write_table(key, BIG_TABLE),
    "put": lambda store, key: store.put(key, BIG),
    "part": write_part,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_told_and_loses_nothing(local: Store, name: str) -> None:
    local.write_bytes(KEY, b"old")
    with files_limited_to(100_000), pytest.raises(UnavailableError, match=r"部件-🍓 一\.parquet.*too large"):
        WRITES[name](local, KEY)
    assert local.read_bytes(KEY) == b"old"
    assert files_below(local) == {KEY}
    WRITES[name](local, KEY)
    assert local.read_bytes(KEY) != b"old"


def test_a_full_disk_while_creating(local: Store) -> None:
    with files_limited_to(100_000), pytest.raises(UnavailableError, match="claim"):
        local.create("claim", BIG)
    assert files_below(local) == set()
    assert local.create("claim", BIG)


def test_a_full_disk_while_moving_a_pointer(local: Store) -> None:
    local.replace_pointer(POINTER, {"snapshot": "s1"}, None)
    before = local.read_pointer(POINTER)
    with files_limited_to(100_000), pytest.raises(UnavailableError, match="current"):
        local.replace_pointer(POINTER, {"snapshot": BIG.hex()}, before)
    assert local.read_pointer(POINTER) == before
    assert local.replace_pointer(POINTER, {"snapshot": "s2"}, before)


@pytest.mark.parametrize("name", [*WRITES, "create"])
def test_a_file_system_without_space(tmp_path: Path, name: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs to be root and allowed to mount a tmpfs")
    try:
        store = Store(str(tmp_path))
        store.write_bytes(KEY, b"old")
        write = WRITES.get(name) or (lambda store, key: store.create(f"{key}2", BIG))
        with pytest.raises(UnavailableError, match=r"部件-🍓 一\.parquet.*No space left"):
            write(store, KEY)
        assert store.read_bytes(KEY) == b"old"
        assert files_below(store) == {KEY}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_where_a_folder_should_be(local: Store) -> None:
    local.write_bytes("tags", b"a file")
    for write in WRITES.values():
        with pytest.raises(UnavailableError, match=r"tags/a\.parquet.*not a folder"):
            write(local, "tags/a.parquet")
    assert local.read_bytes("tags") == b"a file"


# ------------------------------------------------------------------ one winner


def test_of_many_threads_one_creates(store: Store) -> None:
    for round_ in range(3):
        key = f"runs/声明-{round_}.json"
        won = at_once(8, lambda number, key=key: store.create(key, f"我是 {number}".encode()))
        assert won.count(True) == 1
        assert won.count(False) == 7
        assert store.read_bytes(key) == f"我是 {won.index(True)}".encode()


def test_of_many_threads_one_moves_the_pointer(store: Store) -> None:
    assert store.replace_pointer(POINTER, {"by": "first"}, None)
    for round_ in range(5):
        seen = store.read_pointer(POINTER)
        won = at_once(8, lambda number, seen=seen: store.replace_pointer(POINTER, {"by": number}, seen))
        assert won.count(True) == 1
        assert won.count(False) == 7
        after = store.read_pointer(POINTER)
        assert after
        assert after.value == {"by": won.index(True), "sequence": round_ + 2}


def test_no_update_is_lost(store: Store) -> None:
    """Threads that each add their names, reading again whenever somebody else was faster."""

    def add_mine(number: int) -> None:
        for turn in range(4):
            while True:
                seen = store.read_pointer(POINTER)
                names = seen.value["names"] if seen else []
                if store.replace_pointer(POINTER, {"names": [*names, f"{number}-{turn}"]}, seen):
                    break

    at_once(5, add_mine)
    last = store.read_pointer(POINTER)
    assert last
    assert sorted(last.value["names"]) == sorted(f"{number}-{turn}" for number in range(5) for turn in range(4))
    assert last.sequence == 20


RACER = """
import sys
from wwts_ops.storage import Store
store, name = Store(sys.argv[1], sys.argv[2]), sys.argv[3]
seen = store.read_pointer("published/current.json")
for act in (lambda: store.create("runs/claim.json", name.encode()),
            lambda: store.replace_pointer("published/current.json", {"by": name}, seen)):
    print("ready", flush=True)
    sys.stdin.readline()
    print(act(), flush=True)
"""


def test_of_several_processes_one_wins(store: Store) -> None:
    store.replace_pointer(POINTER, {"by": "first"}, None)
    racers = [child(RACER, store, str(number)) for number in range(4)]
    try:
        claimed, moved = (told_at_once(racers) for _ in range(2))
    finally:
        for racer in racers:
            racer.communicate(timeout=300)
    assert sorted(claimed) == sorted(moved) == ["False", "False", "False", "True"]
    assert store.read_bytes("runs/claim.json") == str(claimed.index("True")).encode()
    assert store.read_json(POINTER) == {"by": str(moved.index("True")), "sequence": 2}


def told_at_once(racers: list[subprocess.Popen[str]]) -> list[str]:
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    return [racer.stdout.readline().strip() for racer in racers if racer.stdout]


# ------------------------------------------------------------------ pointers


def test_a_pointer_grows(store: Store) -> None:
    seen = None
    for number in (1, 2, 3):
        assert store.replace_pointer(POINTER, {"snapshot": "甲", "sequence": 99}, seen)
        seen = store.read_pointer(POINTER)
        assert seen
        assert seen.sequence == number


def test_a_stale_pointer_is_refused(store: Store) -> None:
    store.replace_pointer(POINTER, {"by": "first"}, None)
    stale = store.read_pointer(POINTER)
    assert store.replace_pointer(POINTER, {"by": "second"}, stale)
    assert not store.replace_pointer(POINTER, {"by": "late"}, stale)
    assert not store.replace_pointer(POINTER, {"by": "newcomer"}, None)
    assert store.read_json(POINTER)["by"] == "second"


def test_a_pointer_that_is_gone_is_not_put_back(store: Store) -> None:
    store.replace_pointer(POINTER, {}, None)
    seen = store.read_pointer(POINTER)
    store.delete(POINTER)
    assert not store.replace_pointer(POINTER, {}, seen)
    assert store.read_pointer(POINTER) is None


def test_a_pointer_can_be_read_while_it_moves(store: Store) -> None:
    store.replace_pointer(POINTER, {"text": "x"}, None)
    done = threading.Event()

    def move() -> None:
        try:
            for turn in range(40):
                assert store.replace_pointer(POINTER, {"text": "x" * turn}, store.read_pointer(POINTER))
        finally:
            done.set()

    def read() -> list[int]:
        seen = []
        while not done.is_set():
            pointer = store.read_pointer(POINTER)
            assert pointer
            seen.append(pointer.sequence)
        return seen

    with ThreadPoolExecutor(3) as pool:
        mover, readers = pool.submit(move), [pool.submit(read) for _ in range(2)]
        mover.result()
        for reader in readers:
            assert reader.result() == sorted(reader.result())
    last = store.read_pointer(POINTER)
    assert last
    assert last.sequence == 41


@pytest.mark.parametrize("data", [*NOT_OBJECTS, *NO_SEQUENCE])
def test_a_damaged_pointer_is_told(store: Store, data: bytes) -> None:
    store.write_bytes(POINTER, data)
    with pytest.raises(WwtsError, match=r"published/current\.json is damaged") as told:
        store.read_pointer(POINTER)
    assert not isinstance(told.value, UnavailableError)  # trying again would not mend it


@pytest.mark.parametrize("data", NOT_OBJECTS)
def test_damaged_json_is_told(local: Store, data: bytes) -> None:
    local.write_bytes("a.json", data)
    with pytest.raises(WwtsError, match=r"a\.json is damaged"):
        local.read_json("a.json")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no Parquet at all, but longer than a footer"])
def test_a_damaged_table_is_told(store: Store, data: bytes) -> None:
    store.write_bytes(KEY, data)
    with pytest.raises(WwtsError, match=r"部件-🍓 一\.parquet is damaged"):
        store.read_table(KEY)


# ------------------------------------------------------------------ S3 only


def test_a_server_that_does_not_answer_is_told(s3_server: Any) -> None:
    # "412" in address and key: an early version took every such message for a lost race, and so for another's success.
    store = Store("s3://bucket/prefix", "http://127.0.0.1:1/412")
    acts: list[Callable[[], Any]] = [
        lambda: store.create("run-412.json", b""),
        lambda: store.read_pointer("run-412.json"),
        lambda: store.write_bytes("run-412.json", b""),
        lambda: store.list("run-412.json"),
    ]
    with ThreadPoolExecutor(len(acts)) as pool:
        for waiting in [pool.submit(act) for act in acts]:
            with pytest.raises(UnavailableError, match=r"run-412\.json.*Could not connect"):
                waiting.result()


def test_a_missing_bucket_is_told(s3_server: Any) -> None:
    store = Store("s3://no-such-bucket-here/prefix", s3_server.endpoint)
    for read in (store.read_bytes, store.read_pointer):
        with pytest.raises(UnavailableError, match=r"a\.json.*bucket does not exist"):
            read("a.json")


def test_wrong_credentials_are_told(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = Store(f"s3://{s3_server.bucket}/prefix", s3_server.endpoint)
    with pytest.raises(UnavailableError, match=r"a\.json"):
        store.write_bytes("a.json", b"1")
    with pytest.raises(UnavailableError, match=r"a\.json"):
        store.create("a.json", b"1")
    with pytest.raises(UnavailableError, match=r"a\.json"):
        store.read_bytes("a.json")
