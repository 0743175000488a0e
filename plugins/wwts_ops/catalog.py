"""The catalog as DuckDB sees it tonight: a folder of images, or a manifest (that one also behind ``https://``).

Every source becomes the relation ``raw`` (rows as they were found); SQL then finds the rows that cannot be used
(``broken``, each with its line and reason) and shows the others as ``catalog``. Nothing is looped over row by row
that DuckDB can do, so that a manifest of a million rows is read in under a second and in flat memory.

Two images are the same image only when their whole ids are equal: hashes find suspects, strings decide.
"""

from __future__ import annotations

import os
import stat
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import duckdb
import fsspec
import pyarrow as pa
import structlog

from wwts_ops import manifests, schemas
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.fetch import Fetcher, check_uri
from wwts_ops.images import Rejected
from wwts_ops.manifests import FIELDS, MAX_ID_CHARS, batched, create_table, first_line, quoted
from wwts_ops.settings import Settings
from wwts_ops.storage import s3_options

log = structlog.get_logger(__name__)

#: Suffixes, in lower case, that make a file of a folder an image; a file without a suffix is one too.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif"}
    | {".svg"}
)

#: A manifest behind ``https://`` may be this large (some ten million rows) and take this long.
_MANIFEST_BYTES, _MANIFEST_SECONDS = 2**30, 300.0
_HASH = "hash({})"  # finds suspects only; a test makes all of them collide
_BATCH = 65_536
#: From this many folders of a bucket on, everything below their common one is listed, 1,000 keys a request.
_MAX_LISTINGS = 256
_FINGERPRINT = ("size", "mtime", "etag")
_FINGERPRINT_FIELDS = [schemas.CATALOG.field(name) for name in _FINGERPRINT]
_FILE = pa.schema(
    [
        ("line", pa.int64()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        *_FINGERPRINT_FIELDS,
        ("problem", pa.string()),
    ]
)
_FOUND = pa.schema([("line", pa.int64()), *_FINGERPRINT_FIELDS])
_LISTED = pa.schema([("uri", pa.string()), *_FINGERPRINT_FIELDS])
_SQL_TYPES = dict.fromkeys(FIELDS, "VARCHAR") | {
    "price": "DOUBLE",
    "priority": "INTEGER",
    "size": "BIGINT",
    "mtime": "TIMESTAMP WITH TIME ZONE",
}
#: What a manifest's columns that are no text must hold.
_TYPED = {
    "price": "a number",
    "priority": "a whole number",
    "size": "a number of bytes",
    "mtime": "a date and time, or seconds since 1970",
}
_EXCEL_ERRORS = "('#N/A', '#REF!', '#VALUE!', '#NAME?', '#DIV/0!', '#NULL!', '#NUM!')"
# DuckDB evaluates every part of an AND for every row, but a branch of a CASE only for the rows that reach it: costly
# checks (a regular expression takes 0.1 s a million rows) stand behind cheap ones that let few rows through.
_IF = "CASE WHEN {0} THEN {1} ELSE false END"
# What RFC 3986 calls scheme and authority; empty for a path.
_PREFIX = "CASE WHEN contains({0}, ':') THEN regexp_extract({0}, '^[A-Za-z][A-Za-z0-9+.\\-]*:(//[^/?#]*)?') ELSE '' END"
_IS_RELATIVE = f"""CASE WHEN starts_with({{0}}, '/') OR starts_with({{0}}, 'https://') OR starts_with({{0}}, 's3://')
    THEN false ELSE {_PREFIX} = '' END"""
# Folds the segments of a relative path; '..' stays when it leads out of the root.
_NORMAL = """list_reduce(list_filter(string_split({0}, '/'), lambda s: s NOT IN ('', '.')), lambda path, s:
    CASE WHEN path = '..' THEN '..'
         WHEN s <> '..' THEN CASE WHEN path = '' THEN s ELSE path || '/' || s END
         WHEN path = '' THEN '..'
         ELSE regexp_replace(path, '/?[^/]*$', '') END, '')"""


@dataclass(frozen=True)
class Source:
    """Where the rows came from.

    Attributes:
        catalog: identity of the catalog: absolute path or URL.
        kind: what it is.
        complete: what is absent from it is gone from the shop. False with ``WWTS_CATALOG_MODE=delta``, and
            when an unclosed quote has swallowed rows, so that nobody knows which images they name.
        skipped: files of a folder that are no images by their suffix.
        version: of a local manifest, so that :func:`check_unchanged` sees it replaced.
    """

    catalog: str
    kind: Literal["folder", "manifest"]
    complete: bool
    skipped: int = 0
    version: str = ""


def load(con: duckdb.DuckDBPyConnection, settings: Settings) -> Source:
    """Makes ``catalog`` and ``broken`` in ``con``, a connection that holds nothing else yet.

    ``catalog`` has the columns of :data:`schemas.CATALOG` and ``line`` (BIGINT: the row as a spreadsheet counts it,
    the header being 1; in a folder, the place in the walk). ``broken`` has ``line``, ``image_id`` (null when the row
    does not say) and ``reason``. Sets the connection's time zone to UTC.

    Raises:
        WwtsError: the catalog cannot be used at all; the message says why.
        UnavailableError: the S3 server or the disk did not answer.
    """
    given = settings.catalog.strip()
    if not given:
        raise WwtsError("WWTS_CATALOG is not set; name a folder of images, or a CSV, Parquet or XLSX manifest")
    con.execute("SET TimeZone = 'UTC'")
    con.execute("CREATE TABLE broken (line BIGINT, image_id VARCHAR, reason VARCHAR)")
    name = _identity(given)
    if name.startswith("https://"):
        return _load_manifest(con, name, settings)
    if not name.startswith("s3://") and not os.path.exists(name):
        raise WwtsError(f"WWTS_CATALOG: {name} does not exist; check the path")
    is_manifest = manifests.suffix_of(name) and not os.path.isdir(name)
    return _load_manifest(con, name, settings) if is_manifest else _load_folder(con, name, settings)


def check_unchanged(source: Source) -> None:
    """Looks whether a local manifest is still the file that :func:`load` saw; Parquet is read more than once.

    Raises:
        WwtsError: it was replaced meanwhile.
    """
    if source.version and _version(source.catalog) != source.version:
        raise WwtsError(f"{source.catalog} was replaced while it was read; run again")


def _identity(given: str) -> str:
    if "://" not in given:
        return os.path.abspath(os.path.expanduser(given))
    if given.startswith("https://"):
        # A signature in the query differs every night; the catalog is the same.
        name = given.partition("?")[0]
        if not manifests.suffix_of(name):
            known = ", ".join(manifests.SUFFIXES)
            raise WwtsError(f"WWTS_CATALOG: {name} is no manifest; over https:// only {known} can be read")
        return name
    if not given.startswith("s3://"):
        scheme = given.partition("://")[0]
        raise WwtsError(f"WWTS_CATALOG: {scheme}:// is not supported for a catalog; use a path, s3:// or https://")
    return given.rstrip("/")


# --- which rows can be used ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """SQL over ``raw``: the value of each catalog column, and checks as (condition, sentence)."""

    values: dict[str, str]
    checks: tuple[tuple[str, str], ...]


def _refuse_broken(con: duckdb.DuckDBPyConnection, view: _View) -> None:
    """Puts rows that a check refuses, and the second of two with one image_id, into ``broken``."""
    image_id = view.values["image_id"]
    reason = " ".join(f"WHEN {condition} THEN {sentence}" for condition, sentence in view.checks)
    con.execute(
        f"""CREATE TABLE seen AS SELECT line, {_HASH.format("image_id")} AS id_hash, reason,
            CASE WHEN reason IS NOT NULL THEN left(image_id, {MAX_ID_CHARS}) END AS image_id
        FROM (SELECT line, {image_id} AS image_id, CASE {reason} END AS reason FROM raw)"""
    )
    con.execute("INSERT INTO broken SELECT line, image_id, reason FROM seen WHERE reason IS NOT NULL")
    con.execute("CREATE TABLE suspects AS SELECT id_hash FROM seen WHERE reason IS NULL GROUP BY 1 HAVING count(*) > 1")
    if con.execute("SELECT 1 FROM suspects LIMIT 1").fetchone():
        con.execute(
            f"""INSERT INTO broken SELECT line, image_id, 'image_id is already used in line ' || first FROM (
                SELECT line, {image_id} AS image_id, min(line) OVER (PARTITION BY {image_id}) AS first FROM raw
                WHERE line IN (SELECT line FROM seen WHERE reason IS NULL AND id_hash IN (FROM suspects))
            ) WHERE line > first"""
        )
    con.execute("DROP TABLE suspects")
    con.execute("DROP TABLE seen")


def _show_catalog(con: duckdb.DuckDBPyConnection, view: _View, looked_up: Sequence[str] = ()) -> None:
    """Makes the view ``catalog``; columns ``looked_up`` come from the table ``found``."""
    values = view.values | {name: f"found.{name}" for name in looked_up}
    columns = ", ".join(f"{values[name]} AS {name}" for name in FIELDS)
    join = "LEFT JOIN found ON raw.line = found.line" if looked_up else ""
    con.execute(
        f"""CREATE OR REPLACE VIEW catalog AS SELECT {columns}, raw.line FROM raw {join}
        ANTI JOIN broken ON raw.line = broken.line"""
    )


def _control_check(name: str, value: str) -> tuple[str, str]:
    # JSON escapes what is below a space (and " and \), which makes the text longer.
    longer = (
        f"strlen(to_json({value})) > strlen({value}) + 2 OR contains({value}, chr(127)) OR contains({value}, '\ufffd')"
    )
    condition = _IF.format(longer, rf"regexp_matches({value}, '[\x00-\x1f\x7f\x{{FFFD}}]')")
    return condition, f"'{name} holds a control character, or one that could not be decoded'"


# --- folders ---------------------------------------------------------------------------------------------------------


def _load_folder(con: duckdb.DuckDBPyConnection, name: str, settings: Settings) -> Source:
    if not name.startswith("s3://") and not os.path.isdir(name):
        raise WwtsError(f"WWTS_CATALOG: {name} is neither a folder nor one of {', '.join(manifests.SUFFIXES)}")
    walk = _Walk(name, settings)
    create_table(con, "raw", _FILE, batched(walk.rows(), _FILE))
    present = {"image_id", "uri", *_FINGERPRINT}
    values = {field: f"raw.{field}" if field in present else f"CAST(NULL AS {_SQL_TYPES[field]})" for field in FIELDS}
    too_long = (f"length(raw.image_id) > {MAX_ID_CHARS}", f"'the path is longer than {MAX_ID_CHARS} characters'")
    control = _control_check("the path", "raw.image_id")
    view = _View(values, (("problem IS NOT NULL", "problem"), too_long, control))
    _refuse_broken(con, view)
    _show_catalog(con, view)
    return Source(name, "folder", settings.catalog_mode == "full", walk.skipped)


class _Walk:
    """The images below a folder, in a fixed order."""

    def __init__(self, root: str, settings: Settings) -> None:
        self._root, self._settings = root, settings
        self.skipped = 0

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Rows of ``_FILE``."""
        found = self._objects() if self._root.startswith("s3://") else self._files(self._root)
        for line, (path, size, mtime, etag) in enumerate(found, start=1):
            text, problem = _decoded(path)
            relative = text[len(self._root) :].lstrip("/")
            yield line, unicodedata.normalize("NFC", relative), text, size, mtime, etag, problem

    def _is_image(self, name: str) -> bool:
        if name.startswith("."):
            return False
        suffix = os.path.splitext(name)[1].lower()
        if suffix and suffix not in IMAGE_SUFFIXES:
            self.skipped += 1
            return False
        return True

    def _files(self, folder: str) -> Iterator[tuple[str, int | None, datetime | None, None]]:
        for entry in self._entries(folder):
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and not self._is_ours(entry.path):
                    yield from self._files(entry.path)
            elif self._is_image(entry.name):
                size, mtime, mode = _stat(entry.path)
                if mode is None or stat.S_ISREG(mode):
                    yield entry.path, size, mtime, None

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            if folder != self._root:
                return []  # removed while we walk: its images are gone
            raise WwtsError(f"WWTS_CATALOG: {folder} does not exist; check the path") from None
        except PermissionError as error:
            # Going on would report its images as gone.
            raise WwtsError(f"No permission to list {folder}; allow it, or move it out of the catalog") from error
        except OSError as error:
            raise UnavailableError(f"{folder} could not be listed ({error.strerror}); check the disk") from error

    def _is_ours(self, path: str) -> bool:
        return path in {self._settings.store, str(self._settings.state_dir)}  # thumbnails are no catalog images

    def _objects(self) -> Iterator[tuple[str, int, datetime, str]]:
        is_empty = True
        for path, size, mtime, etag in _s3_list(_s3(self._settings), f"{self._root}/", ""):
            is_empty = False
            parts = path[len(self._root) + 1 :].split("/")
            is_hidden = any(part.startswith(".") for part in parts) or path.startswith(f"{self._settings.store}/")
            if parts[-1] and not is_hidden and self._is_image(parts[-1]):
                yield path, size, mtime, etag
        if is_empty:
            raise WwtsError(f"WWTS_CATALOG: there is nothing below {self._root}/; check bucket and prefix")


def _decoded(path: str) -> tuple[str, str | None]:
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode(errors="surrogateescape").decode(errors="replace"), "the path is not UTF-8; rename it"
    return path, None


def _stat(path: str) -> tuple[int | None, datetime | None, int | None]:
    """Size, mtime (UTC, microseconds) and mode; None for what the file does not say."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None, None  # reading it will say why, and is tried again every night
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    try:
        mtime = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)
    except (OverflowError, ValueError, OSError):
        mtime = None
    return status.st_size, mtime, status.st_mode


# --- S3 --------------------------------------------------------------------------------------------------------------


def _s3(settings: Settings) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", **s3_options(settings.s3_endpoint))


def _s3_list(fs: fsspec.AbstractFileSystem, prefix: str, delimiter: str) -> Iterator[tuple[str, int, datetime, str]]:
    """Objects below ``prefix`` as (uri, bytes, last modified, etag), a page of 1,000 in memory at a time."""
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    more: dict[str, str] = {}
    while True:
        with _s3_told(prefix):
            page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, Delimiter=delimiter, **more)
        for item in page.get("Contents", ()):
            yield f"s3://{bucket}/{item['Key']}", item["Size"], item["LastModified"], item["ETag"].strip('"')
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


@contextmanager
def _s3_told(name: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except FileNotFoundError as error:
        raise WwtsError(f"{name} does not exist; check bucket and name") from error
    except (PermissionError, NoCredentialsError) as error:
        raise WwtsError(f"{name}: access denied; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise UnavailableError(f"{name} could not be read: {first_line(error)}; check WWTS_S3_ENDPOINT") from error


# --- manifests -------------------------------------------------------------------------------------------------------


def _load_manifest(con: duckdb.DuckDBPyConnection, name: str, settings: Settings) -> Source:
    version = "" if "://" in name else _version(name)
    try:
        with _local_copy(name, settings) as path:
            read = manifests.read(con, path, name)
        view = _manifest_view(con, read.columns, _root(name, settings), settings)
        _refuse_broken(con, view)
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        raise WwtsError(f"{name} is damaged ({first_line(error)}); export it again") from error
    except OSError as error:
        raise UnavailableError(f"{name} could not be read: {error.strerror or error}; check the disk") from error
    _show_catalog(con, view)
    if not set(_FINGERPRINT) & set(read.columns):
        _look_up_fingerprints(con, settings)
        _show_catalog(con, view, _FINGERPRINT)
    return Source(name, "manifest", settings.catalog_mode == "full" and read.is_whole, version=version)


def _version(path: str) -> str:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "absent"
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def _local_copy(name: str, settings: Settings) -> Iterator[Path]:
    if "://" not in name:
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="wwts-manifest-") as folder:
        path = Path(folder) / f"manifest{manifests.suffix_of(name)}"
        if name.startswith("https://"):
            path.write_bytes(_download(settings))
        else:
            with _s3_told(name):
                _s3(settings).get_file(name, str(path))
        yield path


def _download(settings: Settings) -> bytes:
    """The manifest behind ``https://``, under the rules for images but with limits of its own."""
    url = settings.catalog.strip()
    if flaw := check_uri(url, settings):
        raise WwtsError(f"WWTS_CATALOG: {flaw}")
    limits = {"max_image_bytes": _MANIFEST_BYTES, "https_timeout": _MANIFEST_SECONDS}
    with Fetcher(settings.model_copy(update=limits)) as fetcher:
        try:
            return fetcher.read(url)
        except Rejected as rejected:
            raise UnavailableError(f"WWTS_CATALOG: {rejected.detail}") from rejected


def _root(name: str, settings: Settings) -> str:
    root = settings.image_root.strip()
    if not root:
        return name.rpartition("/")[0]
    return root.rstrip("/") if "://" in root else os.path.abspath(os.path.expanduser(root)).rstrip("/")


def _manifest_view(con: duckdb.DuckDBPyConnection, columns: Sequence[str], root: str, settings: Settings) -> _View:
    types = {row[0]: row[1] for row in con.execute("DESCRIBE raw").fetchall()}
    values = {name: _value(name, types.get(name)) for name in FIELDS}
    uri = values["uri"]
    if "image_id" not in columns:
        values["image_id"] = uri
    image_id = values["image_id"]
    blank = _IF.format(f"{image_id} < '!'", f"trim({image_id}) = ''")
    checks = (
        ("problem IS NOT NULL", "problem"),
        (f"{uri} IS NULL OR {uri} = ''", "'uri is empty'"),
        (f"{image_id} IS NULL OR {blank}", "'image_id is empty'"),
        *_id_checks("image_id", image_id),
        *(_id_checks("sku_id", values["sku_id"]) if "sku_id" in columns else ()),
        *_uri_checks(uri),
        *_prefix_checks(con, uri, root, settings),
        *((_is_bad(name, types[name]), f"'{name} is not {what}'") for name, what in _TYPED.items() if name in columns),
    )
    path = f"CASE WHEN {_dotted(uri)} THEN {_NORMAL.format(uri)} ELSE {uri} END"
    resolved = f"CASE WHEN {_IS_RELATIVE.format(uri)} THEN {quoted(root + '/')} || {path} ELSE {uri} END"
    return _View(values | {"uri": resolved}, checks)


def _value(name: str, sql_type: str | None) -> str:
    """SQL for the value of column ``name`` of ``raw``, null where it cannot be converted."""
    target = _SQL_TYPES[name]
    if sql_type is None:
        return f"CAST(NULL AS {target})"
    column = f"raw.{name}"
    if name == "mtime" and not sql_type.startswith("TIMESTAMP"):
        seconds = f"TRY_CAST({column} AS DOUBLE)"
        return (
            f"coalesce(TRY_CAST({column} AS {target}), "
            f"CASE WHEN {seconds} BETWEEN 0 AND 4e9 THEN to_timestamp({seconds}) END)"
        )
    return column if sql_type == target else f"TRY_CAST({column} AS {target})"


def _is_bad(name: str, sql_type: str) -> str:
    value = _value(name, sql_type)
    bad = f"{value} IS NULL"
    if name == "price":
        bad = f"NOT coalesce(isfinite({value}), false)"
    elif name in {"priority", "size"}:
        bad = f"({value} IS NULL OR {value} <> TRY_CAST(raw.{name} AS DOUBLE))"  # the cast alone would round
    present = f"trim(raw.{name}) <> ''" if sql_type == "VARCHAR" else f"raw.{name} IS NOT NULL"
    return f"{present} AND {bad}"


def _id_checks(name: str, value: str) -> tuple[tuple[str, str], ...]:
    mangled = "' was mangled by a spreadsheet; format the column as text and export again'"
    scientific = rf"regexp_full_match(trim({value}), '-?[0-9]([.,][0-9]+)?[eE]\+[0-9]+')"
    return (
        (f"length({value}) > {MAX_ID_CHARS}", f"'{name} is longer than {MAX_ID_CHARS} characters'"),
        _control_check(name, value),
        (_IF.format(f"contains({value}, '+')", scientific), f"'{name} ' || {value} || {mangled}"),
        (f"{value} IN {_EXCEL_ERRORS}", f"'{name} is the spreadsheet error ' || {value}"),
    )


def _uri_checks(uri: str) -> tuple[tuple[str, str], ...]:
    leaves = _IF.format(_IS_RELATIVE.format(uri), f"{_NORMAL.format(uri)} IN ('', '..')")
    return (
        _control_check("uri", uri),
        (f"starts_with({uri}, '//')", "'uri begins with //; write https:// before it'"),
        (f"contains({uri}, '\\')", "'uri contains a backslash; write / instead'"),
        (f"{uri} IN {_EXCEL_ERRORS}", f"'uri is the spreadsheet error ' || {uri}"),
        (
            f"starts_with({uri}, 's3://') AND (ends_with({uri}, '/') OR NOT contains(substr({uri}, 6), '/'))",
            "'uri names no object; write s3://bucket/key'",
        ),
        (_IF.format(_dotted(uri), leaves), "'uri leads out of the image root'"),
    )


def _dotted(uri: str) -> str:
    return f"(contains({uri}, './') OR ends_with({uri}, '.'))"


def _prefix_checks(
    con: duckdb.DuckDBPyConnection, uri: str, root: str, settings: Settings
) -> tuple[tuple[str, str], ...]:
    """A check for each scheme and host in the manifest that no image may be read from."""
    listed = " ".join(
        f"WHEN starts_with({uri}, {quoted(f'https://{host}/')}) THEN {quoted(f'https://{host}')}"
        for host in settings.https_hosts  # only because it is quicker than a regular expression
    )
    found = con.execute(
        f"SELECT DISTINCT CASE WHEN {uri} IS NULL THEN '/' {listed} ELSE {_PREFIX.format(uri)} END FROM raw ORDER BY 1"
    ).fetchall()
    samples = {prefix: f"{prefix or root}/…" for (prefix,) in found}
    if all(sample.startswith("/") for sample in samples.values()):
        return ()

    flaws = {prefix: check_uri(sample, settings) for prefix, sample in samples.items()}
    return tuple(
        (f"{_PREFIX.format(uri)} = {quoted(prefix)}" if prefix else _IS_RELATIVE.format(uri), quoted(flaw))
        for prefix, flaw in flaws.items()
        if flaw
    )


# --- fingerprints that the manifest does not give --------------------------------------------------------------------


def _look_up_fingerprints(con: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Makes ``found``: size, mtime and etag by ``line``; what cannot be looked up (``https://``) has no row."""
    create_table(con, "found", _FOUND, _local_fingerprints(con))
    buckets = con.execute(
        """SELECT bucket, list(folder) FROM (SELECT DISTINCT split_part(uri, '/', 3) AS bucket,
            regexp_extract(uri, '^s3://.*/') AS folder FROM catalog WHERE starts_with(uri, 's3://'))
        GROUP BY bucket ORDER BY bucket"""
    ).fetchall()
    if buckets:
        create_table(con, "listed", _LISTED, batched(_listed(buckets, settings), _LISTED))
        con.execute(
            """INSERT INTO found SELECT catalog.line, listed.size, listed.mtime, listed.etag
            FROM catalog JOIN listed ON catalog.uri = listed.uri"""
        )
        con.execute("DROP TABLE listed")


def _local_fingerprints(con: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    present: dict[str, bool] = {}
    with con.cursor() as cursor:
        cursor.execute("SELECT line, uri FROM catalog WHERE starts_with(uri, '/') OR starts_with(uri, 'file://')")
        while rows := cursor.fetchmany(_BATCH):
            found = [_fingerprint(line, uri, present) for line, uri in rows]
            yield pa.table(list(zip(*found, strict=True)), schema=_FOUND)


def _fingerprint(line: int, uri: str, present: dict[str, bool]) -> tuple[Any, ...]:
    path = unquote(uri.removeprefix("file://").removeprefix("localhost")) if uri.startswith("file://") else uri
    folder = os.path.dirname(path)
    if folder not in present:
        present[folder] = os.path.isdir(folder)  # one look a folder, should a whole one be missing
    size, mtime, _ = _stat(path) if present[folder] else (None, None, None)
    return line, size, mtime, None


def _listed(buckets: Sequence[tuple[str, list[str]]], settings: Settings) -> Iterator[tuple[Any, ...]]:
    fs = _s3(settings)
    for bucket, folders in buckets:
        is_deep = len(folders) > _MAX_LISTINGS
        prefixes = [f"{os.path.commonpath(folders)}/".replace("s3:/", "s3://")] if is_deep else sorted(folders)
        try:
            for prefix in prefixes:
                yield from _s3_list(fs, prefix, "" if is_deep else "/")
        except UnavailableError:
            raise
        except WwtsError as error:
            log.warning("bucket_unreadable", bucket=bucket, detail=str(error))  # each image is quarantined with this
