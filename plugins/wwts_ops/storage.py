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
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings


@dataclass(frozen=True)
class Pointer:
    """A small JSON document that names what is current, and the version it was read at."""

    value: dict[str, Any]
    version: str

    @property
    def sequence(self) -> int:
        """Grows by one with every replacement."""
        return int(self.value.get("sequence", 0))


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
        try:
            return dict(json.loads(self.read_bytes(key)))
        except ValueError as error:
            raise WwtsError(f"{self.path(key)} is damaged (no JSON object); restore it from a backup") from error

    def read_table(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """The Parquet file ``key`` as a table."""
        with _told(key), self.open(key) as file:
            return pq.ParquetFile(file).read(columns=columns)

    def open(self, key: str) -> Any:
        """``key`` opened for reading bytes at random places."""
        return self.fs.open(self.path(key), "rb")

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """Keys below folder ``prefix`` that end in ``suffix``, sorted; temporary ones left out."""
        with _told(prefix):
            found = self.fs.find(self.path(prefix))
        start = len(self.fs._strip_protocol(self.root)) + 1
        keys = (str(path)[start:] for path in found)
        return sorted(key for key in keys if key.endswith(suffix) and not key.rsplit("/", 1)[-1].startswith("."))

    def delete(self, key: str) -> None:
        """Removes ``key`` if it is there."""
        with _told(key):
            if self.fs.exists(self.path(key)):
                self.fs.rm_file(self.path(key))

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A local path to write to; what was written becomes ``key`` when the block ends without an error."""
        folder = self._make_parent(key) if self.is_local else None
        handle, name = tempfile.mkstemp(prefix=f".{os.path.basename(key)}.", suffix=".tmp", dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            with _told(key):
                yield temporary
                self._publish(temporary, key)
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, key: str) -> None:
        if self.is_local:
            _sync(temporary)
            temporary.chmod(0o644)
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
            if self.is_local:
                temporary = self._make_parent(key) / f".{os.path.basename(key)}.{uuid.uuid4().hex}.tmp"
                temporary.write_bytes(data)
                os.replace(temporary, self.path(key))
            else:
                self.fs.pipe_file(self.path(key), data)

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
            if self.is_local:
                return self._create_local(key, data)
            try:
                self.fs.pipe_file(self.path(key), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _precondition_failed(error):
                    return False
                raise
            return True

    def _create_local(self, key: str, data: bytes) -> bool:
        temporary = self._make_parent(key) / f".{os.path.basename(key)}.{uuid.uuid4().hex}.tmp"
        try:
            temporary.write_bytes(data)
            _sync(temporary)
            link(temporary, Path(self.path(key)))
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def read_pointer(self, key: str) -> Pointer | None:
        """The pointer ``key``, or None when there is none yet."""
        try:
            if self.is_local:
                data = self.read_bytes(key)
                version = hashlib.sha256(data).hexdigest()
            else:
                with _told(key), self.fs.open(self.path(key), "rb") as file:
                    version = str(file.details["ETag"])
                    data = file.read()
        except FileNotFoundError:
            return None
        try:
            return Pointer(dict(json.loads(data)), version)
        except ValueError as error:
            raise WwtsError(f"{self.path(key)} is damaged (no JSON object); restore it from a backup") from error

    def replace_pointer(self, key: str, value: dict[str, Any], expected: Pointer | None) -> bool:
        """Moves pointer ``key`` to ``value``, its sequence one up; False when it is no longer ``expected``."""
        data = _json({**value, "sequence": (expected.sequence if expected else 0) + 1})
        if expected is None:
            return self.create(key, data)
        with _told(key):
            if self.is_local:
                return self._replace_local(key, data, expected)
            try:
                self.fs.pipe_file(self.path(key), data, IfMatch=expected.version)
            except OSError as error:
                if _precondition_failed(error):
                    return False
                raise
            return True

    def _replace_local(self, key: str, data: bytes, expected: Pointer) -> bool:
        lock = self._make_parent(key) / f".{os.path.basename(key)}.lock"
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            current = self.read_pointer(key)
            if current is None or current.version != expected.version:
                return False
            self.write_bytes(key, data)
            return True

    def _make_parent(self, key: str) -> Path:
        parent = Path(self.path(key)).parent
        with _told(key):
            parent.mkdir(parents=True, exist_ok=True)
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


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1).encode()


def _precondition_failed(error: OSError) -> bool:
    return error.errno == errno.EEXIST or "precondition" in str(error).lower() or "412" in str(error)


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Turns what disk or server say into one sentence with the key in it."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, WwtsError):
        raise
    except OSError as error:
        if _precondition_failed(error):
            raise
        what = error.strerror or str(error) or type(error).__name__
        raise UnavailableError(
            f"The store refused {key}: {what}. Free space or restore access, then run again."
        ) from error
