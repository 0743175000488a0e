"""What is new in the catalog, frozen into a plan that makes a run repeatable.

Layout: ``runs/<run_key>/plan.parquet`` holds the rows (sorted, one row group a shard) and the header; the file
``runs/_sequence/<number>.json`` names the plan that owns that number. It is created exclusively, so that of two
starters one wins; a plan that owns no number does not exist. ``runs/<run_key>/done.json`` ends a run.

The *latest* plan row of an image, by sequence and not by clock, says what the catalog was when we last looked.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from wwts_ops import catalog, digest
from wwts_ops.catalog import Source
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.manifests import FIELDS, create_table, first_line, quoted
from wwts_ops.schemas import PLAN
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

log = structlog.get_logger(__name__)

#: The ``shard`` of rows with ``action=delist``.
DELISTED = -1
#: A mapped Airflow task is costly past a few hundred entries; shards grow instead.
MAX_SHARDS = 128

#: DuckDB spills beyond the first; a million rows against a million then take about 250 MB and a second. What cannot
#: be done so (a join of very long ids, say) is done again with more.
_MEMORY_MB = (125, 1_000, 8_000)
#: What sorting takes of memory; the plan's rows are in memory anyhow.
_ROWS_PER_MB = 1_000
_METADATA = b"wwts"
_MAX_REPORTED = 100
#: A folder that loses no more images than this is not mistaken for a failed mount.
_SMALL_LOSS = 20
#: Runs, and images in a run, from which the speed of a night is learned.
_SPEED_RUNS, _SPEED_IMAGES = 7, 100
_FINGERPRINT = ("size", "mtime", "etag")
_HASH = "hash({})"  # finds suspects only; a test makes all of them collide
#: A folder above the store may be called `uri=1`: that is no column of ours.
_PLAIN = "hive_partitioning = false"
_PART = re.compile(r"part-(?P<run_key>.+)-\d+\.parquet")


@dataclass(frozen=True)
class Pin:
    """The model version and the taxonomy version that a run uses.

    Attributes:
        code_sha256: of the recognition code packed with the version; empty when nobody noted it.
        away_since: with MLflow away, when it last named this version champion (ISO, UTC); empty when it answered.
    """

    model_name: str
    model_version: str
    model_sha256: str
    backbone_sha256: str
    taxonomy_version: str
    code_sha256: str = ""
    away_since: str = ""


@dataclass(frozen=True)
class Request:
    """What a starter asks for.

    Attributes:
        date: the run's date in the shop's time zone.
        pin: what to tag with.
        limit: at most this many images; nothing is delisted then.
    """

    date: date
    pin: Pin
    limit: int | None = None


@dataclass(frozen=True)
class Plan:
    """The header of a plan.

    Attributes:
        run_key: ``<date>-<12 hex>`` of the SHA-256 over header and rows.
        sequence: place among all plans, from 1.
        date: ISO date.
        catalog: identity of the catalog: absolute path or URL.
        complete: the catalog could delist.
        known_runs: run keys that were finished when this was planned: their contents are known.
        shards: number of shards, numbered from 0.
        images: rows with ``action=tag``.
        delisted: rows with ``action=delist``.
        carried_over: new images that did not fit; the next night finds them again.
        broken_rows: rows that could not be used.
        broken: the first 100 of them, as ``line``, ``image_id`` and ``reason``.
        skipped: files of a folder that are no images.

    What the run uses (``model_name`` and so on) is as in :class:`Pin`.
    """

    run_key: str
    sequence: int
    date: str
    catalog: str
    complete: bool
    model_name: str
    model_version: str
    model_sha256: str
    backbone_sha256: str
    taxonomy_version: str
    known_runs: tuple[str, ...]
    shards: int
    images: int
    delisted: int
    carried_over: int
    broken_rows: int
    broken: tuple[dict[str, Any], ...]
    skipped: int
    # Plans of earlier releases do not have these.
    code_sha256: str = ""
    away_since: str = ""

    def to_json(self) -> str:
        """As stored in the Parquet metadata."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The header that :meth:`to_json` wrote.

        Raises:
            ValueError: it did not.
        """
        fields = json.loads(text)
        try:
            return cls(**{**fields, "known_runs": tuple(fields["known_runs"]), "broken": tuple(fields["broken"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the header of a plan: {error}") from error


@dataclass(frozen=True)
class Proposal:
    """A plan that nobody has committed yet: the header, and rows of :data:`schemas.PLAN` in order."""

    plan: Plan
    table: pa.Table

    @property
    def is_empty(self) -> bool:
        """Nothing to tag and nothing to delist."""
        return not self.plan.images + self.plan.delisted


def plan_key(run_key: str) -> str:
    """The store key of a plan."""
    return f"runs/{run_key}/plan.parquet"


def done_key(run_key: str) -> str:
    """The store key whose presence says that a run is finished."""
    return f"runs/{run_key}/done.json"


def commit(store: Store, proposal: Proposal) -> Plan | None:
    """Makes ``proposal`` a plan, unless another starter was quicker.

    Returns:
        The plan, or None when its number is taken: propose again, for what is new may have changed. The other
        starter may also have committed this very plan; it then is among :func:`unfinished`.

    Raises:
        UnavailableError: the store refuses.
    """
    plan = proposal.plan
    _write(store, proposal)
    claim = _claim_key(plan.sequence)
    if store.create(claim, json.dumps({"run_key": plan.run_key}).encode()):
        return plan
    if store.read_json(claim)["run_key"] != plan.run_key:
        # The digest covers the sequence, so nobody can ever claim this plan: it is ours to remove.
        store.delete(plan_key(plan.run_key))
        if store.is_local:
            _remove_empty(Path(store.path(plan_key(plan.run_key))).parent)
    return None


def claimed(store: Store) -> list[Plan]:
    """All plans, by sequence."""
    return _headers(store, [run_key for _, run_key in _claims(store)])


def unfinished(store: Store) -> list[Plan]:
    """Plans whose run has not ended, by sequence: finish them before planning anew."""
    run_keys = [run_key for _, run_key in _claims(store)]
    done = _finished(store, run_keys)
    return _headers(store, [run_key for run_key in run_keys if run_key not in done])


def read(store: Store, run_key: str) -> Plan:
    """The header of a plan.

    Raises:
        WwtsError: there is no such plan, or it is damaged.
    """
    key = plan_key(run_key)
    with _opened(store, key) as file:
        return _header(pq.ParquetFile(file).schema_arrow, store.path(key))


def read_shard(store: Store, run_key: str, shard: int) -> pa.Table:
    """The rows of one shard (:data:`DELISTED` for the delisted ones), in order; only their row group is read.

    Raises:
        WwtsError: there is no such plan, or it is damaged.
    """
    with _opened(store, plan_key(run_key)) as file:
        return pq.read_table(file, filters=[("shard", "=", shard)]).replace_schema_metadata(None)


@contextmanager
def _opened(store: Store, key: str) -> Iterator[Any]:
    try:
        with store.open(key) as file:
            yield file
    except FileNotFoundError as error:
        raise WwtsError(f"{store.path(key)} does not exist; check the run key") from error
    except pa.ArrowInvalid as error:
        raise WwtsError(f"{store.path(key)} is damaged; restore it from a backup") from error
    except OSError as error:
        raise UnavailableError(f"{store.path(key)} could not be read: {error}") from error


def _header(schema: pa.Schema, path: str) -> Plan:
    try:
        return Plan.from_json((schema.metadata or {})[_METADATA])
    except (KeyError, ValueError) as error:
        raise WwtsError(f"{path} is damaged (no header); restore it from a backup") from error


def _headers(store: Store, run_keys: Sequence[str]) -> list[Plan]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda run_key: read(store, run_key), run_keys))


def _claim_key(sequence: int) -> str:
    return f"runs/_sequence/{sequence:08d}.json"


def _claims(store: Store) -> list[tuple[int, str]]:
    """Sequence and run key of all plans, by sequence."""
    keys = store.list("runs/_sequence", ".json")
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(store.read_json, keys))
    return [(int(Path(key).stem), str(value["run_key"])) for key, value in zip(keys, values, strict=True)]


def _finished(store: Store, run_keys: Sequence[str]) -> set[str]:
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda run_key: store.exists(done_key(run_key)), run_keys))
    return {run_key for run_key, is_done in zip(run_keys, done, strict=True) if is_done}


def _write(store: Store, proposal: Proposal) -> None:
    schema = PLAN.with_metadata({_METADATA: proposal.plan.to_json()})
    table = proposal.table.replace_schema_metadata(schema.metadata)
    with (
        store.writing(plan_key(proposal.plan.run_key)) as path,
        # The other columns hardly repeat: a dictionary of them would only slow down readers.
        pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["action", "category"]) as writer,
    ):
        for start, length in _runs_of_shards(table):
            writer.write_table(table.slice(start, length), row_group_size=length)


def _runs_of_shards(table: pa.Table) -> Iterator[tuple[int, int]]:
    shards = table["shard"].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    return ((start, end - start) for start, end in pairwise(edges) if end > start)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        log.debug("folder_kept", folder=str(folder), detail=str(error))  # an empty folder more does no harm


@dataclass(frozen=True)
class _History:
    """What the store knows of earlier runs."""

    claims: tuple[tuple[int, str], ...]
    finished: frozenset[str]

    @property
    def next_sequence(self) -> int:
        return max((sequence for sequence, _ in self.claims), default=0) + 1


def propose(store: Store, settings: Settings, request: Request) -> Proposal:
    """Looks what a run would do; writes nothing. The same catalog and store give the same ``run_key``.

    Raises:
        WwtsError: the catalog cannot be used, or it would delist too much.
        UnavailableError: a disk or server did not answer.
    """
    claims = tuple(_claims(store))
    history = _History(claims, frozenset(_finished(store, [run_key for _, run_key in claims])))
    for memory in _MEMORY_MB[:-1]:
        try:
            return _propose(store, settings, request, history, memory)
        except duckdb.OutOfMemoryException as error:
            log.info("planning_again", memory_mb=memory, detail=first_line(error))
    return _propose(store, settings, request, history, _MEMORY_MB[-1])


def _propose(store: Store, settings: Settings, request: Request, history: _History, memory: int) -> Proposal:
    with _engine(memory) as (con, scratch):
        source = catalog.load(con, settings)
        source = replace(source, complete=source.complete and request.limit is None)
        _load_history(con, store, history, scratch)
        _compare(con, source)
        _check_delisted(con, source, settings)
        found = _count(con, "difference WHERE line IS NOT NULL")
        con.execute(f"SET memory_limit = '{memory + found // _ROWS_PER_MB}MB'")
        table = _rows(con, settings, min(found, *_capacities(store, settings, request, history)))
        header = _describe(con, source, request, history)
        catalog.check_unchanged(source)
    images = pc.sum(pc.equal(table["action"], "tag")).as_py() or 0
    plan = replace(
        header,
        images=images,
        shards=(pc.max(table["shard"]).as_py() if images else DELISTED) + 1,
        delisted=table.num_rows - images,
        carried_over=found - images,
    )
    # The header holds the sequence: a plan's number is part of its digest.
    return Proposal(replace(plan, run_key=f"{plan.date}-{digest.sha256(plan.to_json().encode(), table)[:12]}"), table)


@contextmanager
def _engine(memory: int) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """An in-memory DuckDB that spills beyond ``memory`` MB, and a folder for copies."""
    with tempfile.TemporaryDirectory(prefix="wwts-plan-") as folder:
        config = {
            "memory_limit": f"{memory}MB",
            "threads": 2,  # each more takes memory of its own
            "temp_directory": f"{folder}/spill",
            "preserve_insertion_order": False,
            "python_enable_replacements": False,
        }
        with duckdb.connect(config=config) as con:
            yield con, Path(folder)


def _load_history(con: duckdb.DuckDBPyConnection, store: Store, history: _History, scratch: Path) -> None:
    """Makes ``latest`` (the latest plan row of every image, with run and catalog) and ``retry`` (image and run)."""
    paths = _local_paths(store, [plan_key(run_key) for _, run_key in history.claims], scratch)
    runs = [
        (sequence, run_key, _catalog_of(path), path)
        for (sequence, run_key), path in zip(history.claims, paths, strict=True)
    ]
    con.execute("CREATE TABLE runs (sequence BIGINT, run_key VARCHAR, catalog VARCHAR, filename VARCHAR)")
    if paths:
        con.executemany("INSERT INTO runs VALUES (?, ?, ?, ?)", runs)  # Arrow would import pandas (40 MB)
        scan = f"read_parquet([{', '.join(map(quoted, paths))}], {_PLAIN}, filename = true, file_row_number = true)"
        con.execute(f"CREATE VIEW planned AS SELECT * FROM {scan} JOIN runs USING (filename)")
    else:
        create_table(con, "planned_rows", PLAN, [])
        con.execute("CREATE VIEW planned AS SELECT *, 0 AS file_row_number FROM planned_rows, runs")
    _supersede(con)
    _load_transient(con, store, history, scratch)


def _catalog_of(path: str) -> str:
    # An open file: from a path, Arrow would load its own S3 client (30 MB).
    with open(path, "rb") as file:
        return _header(pq.read_schema(file), path).catalog


def _supersede(con: duckdb.DuckDBPyConnection) -> None:
    """Makes ``latest`` from ``planned``.

    Most images stand in one plan only, which an unequal hash proves; only the others are compared by name.
    """
    con.execute(
        f"""CREATE TABLE suspects AS SELECT {_HASH.format("image_id")} AS id_hash FROM planned
        GROUP BY 1 HAVING count(*) > 1"""
    )
    if _count(con, "suspects"):
        con.execute(
            f"""CREATE TABLE superseded AS SELECT sequence, file_row_number FROM (
                SELECT sequence, file_row_number, max(sequence) OVER (PARTITION BY image_id) AS newest FROM planned
                WHERE {_HASH.format("image_id")} IN (FROM suspects)
            ) WHERE sequence < newest"""
        )
        without = "ANTI JOIN superseded USING (sequence, file_row_number)"
    else:
        without = ""
    con.execute(f"CREATE VIEW latest AS SELECT * FROM planned {without}")
    con.execute("DROP TABLE suspects")


def _load_transient(con: duckdb.DuckDBPyConnection, store: Store, history: _History, scratch: Path) -> None:
    con.execute("CREATE TABLE retry (image_id VARCHAR, run_key VARCHAR)")
    keys = [key for key in store.list("quarantine", ".parquet") if _run_of(key) in history.finished]
    paths = _local_paths(store, keys, scratch)
    if paths:
        reasons = ", ".join(quoted(reason) for reason in sorted(TRANSIENT_REASONS))
        con.execute(
            f"""INSERT INTO retry SELECT DISTINCT image_id, run_id
            FROM read_parquet([{", ".join(map(quoted, paths))}], {_PLAIN}) WHERE reason IN ({reasons})"""
        )


def _run_of(key: str) -> str | None:
    match = _PART.fullmatch(key.rpartition("/")[2])
    return match["run_key"] if match else None


def _local_paths(store: Store, keys: Sequence[str], scratch: Path) -> list[str]:
    """Local files of ``keys``: DuckDB's own S3 reader would be a download, and it takes [, ? and * for patterns."""
    if store.is_local and not any(sign in store.root for sign in "[]?*"):
        return [store.path(key) for key in keys]
    paths = [scratch / "copies" / key for key in keys]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    if store.is_local:
        for key, path in zip(keys, paths, strict=True):
            path.symlink_to(store.path(key))
    elif paths:
        try:
            store.fs.get([store.path(key) for key in keys], [str(path) for path in paths])
        except OSError as error:
            raise UnavailableError(f"{store.root} could not be read: {error}; try again") from error
    return [str(path) for path in paths]


def _compare(con: duckdb.DuckDBPyConnection, source: Source) -> None:
    """Makes ``difference``: ``line`` of what is new or changed; for what is gone its plan row, and no ``line``.

    A fingerprint that is unknown tonight is no change. What is present but broken is not gone.
    """
    changed = " OR ".join(f"(t.{name} IS NOT NULL AND t.{name} IS DISTINCT FROM k.{name})" for name in _FINGERPRINT)
    # Little of the known rows is kept, because all of it is in memory at once.
    known = f"""SELECT image_id, uri, size, mtime, etag, sequence, file_row_number, action = 'delist' AS was_gone,
        action = 'tag' AND ({_is_listed(con, source)}) AS is_listed, {{is_retry}} AS is_retry FROM latest"""
    if _count(con, "retry"):
        known = known.format(is_retry="retry.image_id IS NOT NULL") + " LEFT JOIN retry USING (image_id, run_key)"
    else:
        known = known.format(is_retry="false")
    con.execute(
        f"""CREATE TABLE difference AS SELECT line, sequence, file_row_number,
            CASE WHEN line IS NULL THEN k.image_id END AS gone_id
        FROM (SELECT line, image_id, uri, size, mtime, etag FROM catalog) t
        {"FULL" if source.complete else "LEFT"} JOIN ({known}) k ON t.image_id = k.image_id
        WHERE CASE WHEN line IS NULL THEN is_listed
            ELSE k.image_id IS NULL OR was_gone OR is_retry OR t.uri IS DISTINCT FROM k.uri OR {changed} END"""
    )
    con.execute("DELETE FROM difference WHERE gone_id IN (SELECT image_id FROM broken)")


def _is_listed(con: duckdb.DuckDBPyConnection, source: Source) -> str:
    """SQL over ``latest``: the image is one of this catalog's, though another may have given it again since."""
    here = f"catalog = {quoted(source.catalog)}"
    if not _count(con, f"runs WHERE NOT ({here})"):
        return here
    return f"""{here} OR image_id IN (
        SELECT image_id FROM planned WHERE {here} AND image_id IN (SELECT image_id FROM latest WHERE NOT ({here}))
        GROUP BY image_id HAVING arg_max(action, sequence) = 'tag'
    )"""


def _check_delisted(con: duckdb.DuckDBPyConnection, source: Source, settings: Settings) -> None:
    """Refuses a catalog that looks like a mistake.

    Raises:
        WwtsError: more than ``WWTS_MAX_DELIST_SHARE`` of what it listed before is gone.
    """
    gone = _count(con, "difference WHERE line IS NULL")
    if not gone:
        return
    listed = _count(con, f"latest WHERE action = 'tag' AND ({_is_listed(con, source)})")
    if gone <= settings.max_delist_share * listed:
        return
    if source.kind == "folder" and gone <= _SMALL_LOSS and _count(con, "catalog"):
        return
    what = "check the manifest" if source.kind == "manifest" else "check that the folder is mounted and whole"
    raise WwtsError(
        f"{source.catalog} would delist {gone:,} of {listed:,} images ({gone / listed:.0%}), more than the "
        f"{settings.max_delist_share:.0%} that WWTS_MAX_DELIST_SHARE allows; {what}. If the images are gone indeed, "
        "raise WWTS_MAX_DELIST_SHARE for one night; if it lists only what is new, set WWTS_CATALOG_MODE=delta."
    )


def _capacities(store: Store, settings: Settings, request: Request, history: _History) -> list[int]:
    """At most how many images fit; one reason an item."""
    most = [sys.maxsize] if request.limit is None else [request.limit]
    if settings.deadline is not None:
        seconds = (_next(settings.now(), settings.deadline) - settings.now()).total_seconds()
        # What earlier nights left undone comes first.
        left = sum(_images_left(store, run_key) for _, run_key in history.claims if run_key not in history.finished)
        fit = _images_per_second(store, settings, history) * seconds - left
        # Whole shards, so that two starters a second apart plan the same; at least one, or nights could stand still.
        most.append(max(0 if left else 1, int(fit / settings.shard_size)) * settings.shard_size)
    return most


def _images_left(store: Store, run_key: str) -> int:
    """Images of an unfinished plan in shards without a marker."""
    markers = [key for key in store.list(f"runs/{run_key}", ".json") if "/shard-" in key]
    return read(store, run_key).images - sum(int(store.read_json(key)["images"]) for key in markers)


def _next(now: datetime, deadline: time) -> datetime:
    """The first moment after ``now`` when clocks there show ``deadline``, in UTC."""
    days = (datetime.combine(now.date() + timedelta(days=n), deadline, now.tzinfo) for n in (0, 1, 2))
    return next(moment for day in days if (moment := day.astimezone(UTC)) > now)


def _images_per_second(store: Store, settings: Settings, history: _History) -> float:
    """Median speed of the last runs that were large enough to tell."""
    speeds: list[float] = []
    for _, run_key in reversed(history.claims):
        if run_key in history.finished and len(speeds) < _SPEED_RUNS:
            done = store.read_json(done_key(run_key))
            if done.get("images", 0) >= _SPEED_IMAGES and done.get("images_per_second"):
                speeds.append(float(done["images_per_second"]))
    return statistics.median(speeds) if speeds else settings.images_per_second


def _rows(con: duckdb.DuckDBPyConnection, settings: Settings, images: int) -> pa.Table:
    """The plan's rows: the first ``images`` of what is new in shards, then what is gone."""
    fields = ", ".join(FIELDS)
    new = con.sql(
        f"""SELECT 'tag' AS action, {fields} FROM catalog
        WHERE line IN (SELECT line FROM difference WHERE line IS NOT NULL)
        ORDER BY priority DESC NULLS LAST, mtime DESC NULLS LAST, image_id LIMIT {images}"""
    ).to_arrow_table()
    gone = con.sql(
        f"""SELECT 'delist' AS action, {fields} FROM planned JOIN difference USING (sequence, file_row_number)
        WHERE line IS NULL ORDER BY image_id"""
    ).to_arrow_table()
    size = max(settings.shard_size, -(-new.num_rows // MAX_SHARDS))
    shards = np.concatenate([np.arange(new.num_rows) // size, np.full(gone.num_rows, DELISTED)]).astype(np.int32)
    rows = pa.concat_tables([new, gone], promote_options="permissive").append_column("shard", pa.array(shards))
    return rows.select(PLAN.names).cast(PLAN)


def _describe(con: duckdb.DuckDBPyConnection, source: Source, request: Request, history: _History) -> Plan:
    """The header without what the rows say."""
    broken = con.execute(f"SELECT line, image_id, reason FROM broken ORDER BY ALL LIMIT {_MAX_REPORTED}").fetchall()
    return Plan(
        run_key="",
        sequence=history.next_sequence,
        date=request.date.isoformat(),
        catalog=source.catalog,
        complete=source.complete,
        **asdict(request.pin),
        known_runs=tuple(run_key for _, run_key in history.claims if run_key in history.finished),
        shards=0,
        images=0,
        delisted=0,
        carried_over=0,
        broken_rows=_count(con, "broken"),
        broken=tuple({"line": line, "image_id": image_id, "reason": reason} for line, image_id, reason in broken),
        skipped=source.skipped,
    )


def _count(con: duckdb.DuckDBPyConnection, rows: str) -> int:
    return int(con.execute(f"SELECT count(*) FROM {rows}").fetchall()[0][0])
