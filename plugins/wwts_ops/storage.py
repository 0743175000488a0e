"""The store: a folder or ``s3://bucket/prefix``, with writes that are whole or absent.

Three kinds of write, each atomic on both:

- :meth:`Store.writing` replaces a file (local: temporary name, fsync, rename; S3: one PUT);
- :meth:`Store.create` makes a file that must not exist (local: hard link; S3: ``If-None-Match: *``);
- :meth:`Store.replace_pointer` moves a small JSON pointer that nobody else moved meanwhile
  (local: under a file lock; S3: ``If-Match``).

Temporary names start with ``.`` and do not end in ``.parquet``, so that no glob ever reads half a file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

#: Reads of a pointer that somebody moves between our two requests, before it counts as unavailable.
_POINTER_READS = 20


@dataclass(frozen=True)
class Pointer:
    """A small JSON document that names what is current, and the version it was read at."""

    value: dict[str, Any]
    version: str

    @property
    def sequence(self) -> int:
        """Grows by one with every replacement."""
        return int(self.value.get("sequence", 0))


@dataclass(frozen=True)
class File:
    """A file of the store, as a listing tells.

    Attributes:
        key: names it.
        size: bytes.
        modified: when it was last written; UTC.
        hidden: a temporary file or a lock.
    """

    key: str
    size: int
    modified: datetime
    hidden: bool


def s3_options(endpoint: str) -> dict[str, Any]:
    """Options of ``s3fs`` for an S3-compatible ``endpoint`` (empty: AWS's own)."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    return {**options, "endpoint_url": endpoint} if endpoint else options


class Store:
    """Files below one root, named by ``/``-separated keys.

    Raises (all methods):
        UnavailableError: when disk or server refuse; the message names the key.
    """

    def __init__(self, root: str, s3_endpoint: str = "") -> None:
        self.root = root.rstrip("/")
        self.is_local = "://" not in root
        self._s3_endpoint = s3_endpoint

    @classmethod
    def of(cls, settings: Settings) -> Store:
        """The store that ``settings`` name."""
        return cls(settings.store, settings.s3_endpoint)

    @cached_property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The fsspec file system below the root."""
        if self.is_local:
            return fsspec.filesystem("file")
        return fsspec.filesystem("s3", **s3_options(self._s3_endpoint))

    def path(self, key: str) -> str:
        """The full path or URL of ``key``, as pandas or DuckDB take it."""
        return f"{self.root}/{key}"

    def exists(self, key: str) -> bool:
        """Whether ``key`` is there, whole."""
        with _told(key):
            return bool(self.fs.exists(self.path(key)))

    def read_bytes(self, key: str) -> bytes:
        """All bytes of ``key``.

        Raises:
            FileNotFoundError: when it is absent.
        """
        with _told(key):
            return bytes(self.fs.cat_file(self.path(key)))

    def read_json(self, key: str) -> dict[str, Any]:
        """The JSON object in ``key``.

        Raises:
            WwtsError: when it is not JSON.
        """
        return _object(self.read_bytes(key), self.path(key))

    def read_table(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """The Parquet file ``key`` as a table.

        Raises:
            FileNotFoundError: when it is absent.
            WwtsError: when it is not Parquet.
        """
        try:
            with self.open(key) as file:
                return pq.ParquetFile(file).read(columns=columns)
        except pa.ArrowInvalid as error:
            raise WwtsError(f"{self.path(key)} is damaged (no Parquet); restore it from a backup.") from error

    @contextmanager
    def open(self, key: str) -> Iterator[Any]:
        """``key`` opened for reading bytes at random places.

        Raises:
            FileNotFoundError: when it is absent.
        """
        # Arrow's own file where it can be: its threads call into a Python file, and one that still does so when a
        # short command ends has aborted the process.
        with _told(key), pa.OSFile(self.path(key)) if self.is_local else self.fs.open(self.path(key), "rb") as file:
            yield file

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """Keys below folder ``prefix`` that end in ``suffix``, sorted; temporary ones left out."""
        return sorted(key for key in self._found(prefix) if key.endswith(suffix) and not _is_hidden(key))

    def files(self, prefix: str) -> dict[str, File]:
        """All files below folder ``prefix`` by their keys, temporary ones too."""
        return {
            key: File(key, int(entry["size"]), _when(entry), _is_hidden(key))
            for key, entry in self._found(prefix).items()
        }

    def _found(self, prefix: str) -> dict[str, dict[str, Any]]:
        with _told(prefix):
            found = self.fs.find(self.path(prefix), detail=True)
        start = len(self.fs._strip_protocol(self.root)) + 1
        # Some S3 servers keep an empty folder, and it is found where no file is.
        return {str(path)[start:]: entry for path, entry in found.items() if entry["type"] == "file"}

    def delete(self, key: str) -> None:
        """Removes ``key`` if it is there."""
        with _told(key), suppress(FileNotFoundError):
            self.fs.rm_file(self.path(key))

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A local path to write to; what was written becomes ``key`` when the block ends without an error."""
        with _told(key), self._temporary(key) as temporary:
            yield temporary
            self._publish(temporary, key)

    def _publish(self, temporary: Path, key: str) -> None:
        if self.is_local:
            _sync(temporary)
            rename(temporary, Path(self.path(key)))
        else:
            self.fs.put_file(str(temporary), self.path(key))

    def write_bytes(self, key: str, data: bytes) -> None:
        """Replaces ``key``."""
        with self.writing(key) as path:
            path.write_bytes(data)

    def put(self, key: str, data: bytes) -> None:
        """Replaces ``key`` quickly: never half for a reader, but not yet safe from a power cut (thumbnails)."""
        with _told(key):
            if not self.is_local:
                self.fs.pipe_file(self.path(key), data)
                return
            with self._temporary(key) as temporary:
                temporary.write_bytes(data)
                os.replace(temporary, self.path(key))

    def write_json(self, key: str, value: dict[str, Any]) -> None:
        """Replaces ``key`` with a JSON object."""
        self.write_bytes(key, _json(value))

    def write_table(self, key: str, table: pa.Table) -> None:
        """Replaces ``key`` with a zstd Parquet file."""
        with self.writing(key) as path:
            pq.write_table(table, path, compression="zstd")

    def create(self, key: str, data: bytes) -> bool:
        """Makes ``key`` with ``data``; False when it was there already, which leaves it as it was."""
        with _told(key):
            if not self.is_local:
                return self._put_if(key, data, IfNoneMatch="*")
            with self._temporary(key) as temporary:
                temporary.write_bytes(data)
                _sync(temporary)
                try:
                    link(temporary, Path(self.path(key)))
                except FileExistsError:
                    return False
                return True

    def _put_if(self, key: str, data: bytes, **condition: str) -> bool:
        """One PUT under a condition; False when it does not hold."""
        try:
            self.fs.pipe_file(self.path(key), data, **condition)
        except OSError as error:
            # What was expected is another by now, or gone.
            if _code(error) in {"PreconditionFailed", "NoSuchKey"}:
                return False
            raise
        return True

    def read_pointer(self, key: str) -> Pointer | None:
        """The pointer ``key``, or None when there is none yet.

        Raises:
            WwtsError: when it is not a JSON object with a sequence.
        """
        try:
            data, version = self._read_local(key) if self.is_local else self._read_s3(key)
        except FileNotFoundError:
            return None
        pointer = Pointer(_object(data, self.path(key)), version)
        if not isinstance(pointer.value.get("sequence"), int):
            raise WwtsError(f"{self.path(key)} is damaged (no sequence); restore it from a backup.")
        return pointer

    def _read_local(self, key: str) -> tuple[bytes, str]:
        data = self.read_bytes(key)
        return data, hashlib.sha256(data).hexdigest()

    def _read_s3(self, key: str) -> tuple[bytes, str]:
        from s3fs.utils import FileExpired

        for _ in range(_POINTER_READS):
            # Expired: somebody moved it between the request for its version and the one for its bytes.
            with _told(key), suppress(FileExpired), self.fs.open(self.path(key), "rb") as file:
                return file.read(), str(file.details["ETag"])
        raise UnavailableError(f"{self.path(key)} is replaced faster than it can be read; run again later.")

    def replace_pointer(self, key: str, value: dict[str, Any], expected: Pointer | None) -> bool:
        """Moves pointer ``key`` to ``value``, its sequence one up; False when it is no longer ``expected``."""
        data = _json({**value, "sequence": (expected.sequence if expected else 0) + 1})
        if expected is None:
            return self.create(key, data)
        with _told(key):
            if self.is_local:
                return self._replace_local(key, data, expected)
            return self._put_if(key, data, IfMatch=expected.version)

    def _replace_local(self, key: str, data: bytes, expected: Pointer) -> bool:
        lock = self._make_parent(key) / f".{os.path.basename(key)}.lock"
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            current = self.read_pointer(key)
            if current is None or current.version != expected.version:
                return False
            self.write_bytes(key, data)
            return True

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """An empty hidden file, beside ``key`` where that is local; gone when the block ends."""
        folder = self._make_parent(key) if self.is_local else None
        handle, name = tempfile.mkstemp(prefix=f".{os.path.basename(key)}.", suffix=".tmp", dir=folder)
        try:
            if self.is_local:
                os.fchmod(handle, 0o644)  # consumers are other users
            os.close(handle)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _make_parent(self, key: str) -> Path:
        parent = Path(self.path(key)).parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is a file, not a folder") from error
        return parent


def rename(source: Path, target: Path) -> None:
    """Moves ``source`` over ``target``, durably."""
    os.replace(source, target)
    _sync(target.parent)


def link(source: Path, target: Path) -> None:
    """Gives ``source`` the further name ``target``, durably; FileExistsError when that is taken."""
    os.link(source, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_hidden(key: str) -> bool:
    return key.rsplit("/", 1)[-1].startswith(".")


def _when(entry: dict[str, Any]) -> datetime:
    """When a listed file was last written: disks and servers say it in their own ways."""
    said = entry["mtime"] if "mtime" in entry else entry["LastModified"]
    return said if isinstance(said, datetime) else datetime.fromtimestamp(said, UTC)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1).encode()


def _object(data: bytes, path: str) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(data)
        if isinstance(value, dict):
            return value
    raise WwtsError(f"{path} is damaged (no JSON object); restore it from a backup.")


def _code(error: Exception) -> str:
    """The S3 server's own word for what went wrong; empty for a disk's."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _refusals() -> tuple[type[Exception], ...]:
    """What disks and servers raise; the servers' families are no OSError, and loaded only where there is one."""
    if "s3fs" not in sys.modules:
        return (OSError,)
    from aiohttp import ClientError as BodyError
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, BotoCoreError, ClientError, BodyError)


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Turns what disk or server say into one sentence with the key in it."""
    try:
        yield
    except _refusals() as error:
        if isinstance(error, FileNotFoundError | FileExistsError) and _code(error) != "NoSuchBucket":
            raise
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnavailableError(
            f"The store refused {key}: {what}. Free space or restore access, then run again."
        ) from error


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` at once, unless another process was first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        try:
            os.rename(folder, target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
