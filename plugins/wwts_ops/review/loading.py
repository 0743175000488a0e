"""What nights ask for becomes items of the database, and what is published no more waits no longer.

Of two nights that ask for one content the later date counts, on one date the greater run key: in whatever order they
are routed, again and again, the same stands there in the end. A retag is routed while it is in force, and says anew
what was there; of nights those of later dates lie on top of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
import structlog

from wwts_ops import database, published, retags, taxonomy, warehouse
from wwts_ops.corrections import answers
from wwts_ops.database import corrections, review_items, review_loaded
from wwts_ops.records import REVIEW_ITEMS
from wwts_ops.review import people
from wwts_ops.schemas import PUBLISHED
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy_changes import followers

log = structlog.get_logger(__name__)

#: States of an item: waits; somebody said "wrong, label it later"; was answered once, and somebody else is to look;
#: two people said different things; settled, or published no more.
OPEN, LATER, SECOND, DISPUTED, DONE = "open", "later", "second", "disputed", "done"
WAITING: Final = (LATER, DISPUTED, SECOND, OPEN)
#: Those that nobody's look has settled half-way.
FRESH: Final = (OPEN, LATER)
#: Rows of a queue that are loaded at a time.
_CHUNK = 1000
_FRESH_COLUMNS = pa.schema(
    [
        ("content_sha256", pa.string()),
        ("revision", pa.int64()),
        ("run_id", pa.string()),
        ("shown_because", pa.string()),
        ("sampling_probability", pa.float64()),
    ]
)

Row = Mapping[str, Any]
#: What an item looked like to who decides upon it: its revision, and who asked for it last.
Seen = tuple[int, str]


def load(settings: Settings, rows: pa.Table, date: str) -> int:
    """Makes items of ``rows`` (schema ``records.REVIEW_ITEMS``), which a run of ``date`` asks for; how many changed.

    A content with an answer in force is left as it is. What is there from an older run is replaced, and stays with
    whoever holds it and in its state; what is done without an answer in force waits again. All of it or nothing.

    Raises:
        UnavailableError: when the database does not answer.
    """
    return _load(settings, rows, date)


def load_part(store: Store, settings: Settings, key: str) -> int:
    """:func:`load` of a part of the store, some rows at a time: people who answer meanwhile wait for those alone.

    Killed half-way, it is loaded again: by the run, which is not finished, or by :func:`sync`.

    Raises:
        UnavailableError: when the database or the store does not answer.
    """
    changed, waiting = 0, None
    for table in _tables(store, key):
        if waiting is not None:
            changed += _load(settings, waiting, _date(key))
        waiting = table
    if waiting is None and not database.exists(settings):
        return 0  # nothing to look at should not make one
    return changed + _load(settings, waiting or REVIEW_ITEMS.empty_table(), _date(key), _run(key))


def sync(store: Store, settings: Settings) -> int:
    """Loads every queue in ``store`` that never was loaded: those of before there were items; how many changed.

    To be called before anything else of here: it makes the tables, too. One look when nothing is new. What was loaded
    once is not loaded again, whatever became of its items: replaced by a later run, or forgotten.

    Raises:
        UnavailableError: when the database or the store does not answer.
    """
    database.upgrade(settings)
    runs = _queues(store)
    if not runs:
        return 0
    with database.reading(settings) as connection:
        loaded = set(connection.execute(sa.select(review_loaded.c.run_id)).scalars())
    changed = sum(load_part(store, settings, runs[run]) for run in sorted(runs.keys() - loaded))
    if changed:
        close_unlisted(store, settings)
        log.info("review_items_synced", changed=changed)
    return changed


def _queues(store: Store) -> dict[str, str]:
    """The last queue of each night and of the retag that is published, by who asked."""
    runs = {_run(key): key for key in store.list("review", ".parquet")}
    pointer = published.current(store)
    retag = None if pointer is None else pointer.value.get("retag")
    return {run: key for run, key in runs.items() if run == retag or not retags.is_key(run)}


def _tables(store: Store, key: str) -> Iterator[pa.Table]:
    """A queue, some rows at a time; nothing of an empty one."""
    with store.open(key) as file:
        yield from (pa.Table.from_batches([batch]) for batch in pq.ParquetFile(file).iter_batches(_CHUNK))


def _run(key: str) -> str:
    return key.rpartition("/part-")[2].removesuffix(".parquet")


def _date(key: str) -> str:
    return key.split("/")[1].removeprefix("date=")


def close_unlisted(store: Store, settings: Settings) -> int:
    """Ends the wait of contents that no published image has: delisted, or their bytes replaced; how many.

    A night that finds such a content again routes it again.

    Raises:
        UnavailableError: when the database or the store does not answer.
    """
    pointer = published.current(store)
    if pointer is None or not database.exists(settings):
        return 0
    database.upgrade(settings)
    with database.reading(settings) as connection:
        rows = connection.execute(_SEEN.where(review_items.c.state.in_(WAITING)))
        waiting = {row.content_sha256: (row.revision, row.run_id) for row in rows}
    with warehouse.connect() as con:
        warehouse.view(con, "published", store, pointer.value["parts"], PUBLISHED)
        con.register("waiting", pa.table({"content_sha256": pa.array(list(waiting), pa.string())}))
        found = con.sql("SELECT content_sha256 FROM waiting ANTI JOIN published USING (content_sha256)").fetchall()
    closed = _close_all(settings, {content: waiting[content] for (content,) in found}, {})
    if closed:
        log.info("review_items_closed", reason="published no more", contents=closed)
    return closed


def fresh(settings: Settings) -> pa.Table:
    """What waits and nobody has looked at: ``content_sha256``, ``revision``, ``run_id``, and how it came to be shown.

    Raises:
        UnavailableError: when the database does not answer.
    """
    columns = [review_items.c[name] for name in _FRESH_COLUMNS.names]
    with database.reading(settings) as connection:
        rows = connection.execute(sa.select(*columns).where(review_items.c.state.in_(FRESH))).mappings()
        return pa.Table.from_pylist([dict(row) for row in rows], schema=_FRESH_COLUMNS)


def close(settings: Settings, seen: Mapping[str, Seen], run_id: str, date: str) -> int:
    """Ends the wait of contents that a later run is sure of; how many. What changed since it was seen so stays.

    Raises:
        UnavailableError: when the database does not answer.
    """
    return _close_all(settings, seen, {"run_id": run_id, "date": date})


def _close_all(settings: Settings, seen: Mapping[str, Seen], said: Row) -> int:
    chunks = database.chunks(sorted(seen))
    return sum(_close(settings, {content: seen[content] for content in chunk}, said) for chunk in chunks)


def _close(settings: Settings, seen: Mapping[str, Seen], said: Row) -> int:
    """Settles items that nobody touched, and no run asked for, since they were seen so."""
    with database.transaction(settings) as connection:
        # Not whole rows: to read their lists takes longer than all the rest.
        rows = connection.execute(_held(_SEEN, seen))
        same = [row.content_sha256 for row in rows if (row.revision, row.run_id) == seen[row.content_sha256]]
        these = review_items.c.content_sha256.in_(same)
        connection.execute(sa.update(review_items).where(these).values(state=DONE, **said, **_turned()))
    return len(same)


def forgettable(settings: Settings, before: str) -> int:
    """How many items :func:`forget` would delete.

    Raises:
        UnavailableError: when the database does not answer.
    """
    return len(_forgettable(settings, before))


def forget(settings: Settings, before: str) -> int:
    """Deletes what is done of nights before a date (ISO), but for what was answered since, and how many.

    Answers and opinions stay. An answer that is taken back later opens nothing any more: keep items for as long as
    mornings are taken back.

    Raises:
        UnavailableError: when the database does not answer.
    """
    count = 0
    for chunk in database.chunks(_forgettable(settings, before)):
        with database.transaction(settings) as connection:
            _locked(connection, chunk)
            these = review_items.c.content_sha256.in_(chunk)
            count += connection.execute(sa.delete(review_items).where(these, *_old(settings, before))).rowcount
    return count


def _forgettable(settings: Settings, before: str) -> list[str]:
    with database.looking(settings) as connection:
        asked = sa.select(review_items.c.content_sha256).where(*_old(settings, before))
        return sorted(connection.execute(asked).scalars())


def _old(settings: Settings, before: str) -> tuple[sa.ColumnElement[bool], ...]:
    since = datetime.fromisoformat(before).replace(tzinfo=ZoneInfo(settings.timezone))
    said = sa.exists().where(
        corrections.c.content_sha256 == review_items.c.content_sha256, corrections.c.answered_at >= since
    )
    return review_items.c.state == DONE, review_items.c.date < before, ~said


def _turned() -> dict[str, Any]:
    """What changes with every state."""
    return {"revision": review_items.c.revision + 1, "leased_by": None, "leased_until": None}


def _locked(connection: sa.Connection, contents: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of those of ``contents`` that are there, held; in one order, so that no two wait for each other."""
    return [dict(row) for row in connection.execute(_held(sa.select(review_items), contents)).mappings()]


_SEEN = sa.select(review_items.c.content_sha256, review_items.c.revision, review_items.c.run_id)


def _held(asked: sa.Select[Any], contents: Iterable[str]) -> sa.Select[Any]:
    asked = asked.where(review_items.c.content_sha256.in_(list(contents)))
    return asked.order_by(review_items.c.content_sha256).with_for_update()


def _load(settings: Settings, table: pa.Table, date: str, loaded: str | None = None) -> int:
    """``loaded``: of which run this is the last that there was to load."""
    database.upgrade(settings)
    changed = 0
    # Nobody answers or loads meanwhile: what is not answered now is not answered when its item appears.
    with answers.appending(settings) as appender:
        for batch in table.to_batches(_CHUNK):
            rows = [_whole(row) for row in batch.to_pylist()]
            changed += _load_rows(appender.connection, settings, rows, date)
        if loaded is not None:
            _mark(appender.connection, loaded)
            _settle_names(appender.connection, settings)
    return changed


def _settle_names(connection: sa.Connection, settings: Settings) -> None:
    """A night names what it asks for as the taxonomy did when it began; since then somebody may have changed it."""
    followers.hold(connection)
    known = taxonomy.current(Store.of(settings))
    if known is not None:
        followers.settle(connection, known)


def _mark(connection: sa.Connection, run: str) -> None:
    marker = {"loaded_at": database.now(connection)}
    marked = connection.execute(sa.update(review_loaded).where(review_loaded.c.run_id == run).values(**marker))
    if not marked.rowcount:
        connection.execute(sa.insert(review_loaded).values(run_id=run, **marker))


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` with what a queue of before there were items did not say."""
    if "value" in row:
        return row
    doubt = max(0.01, 1 - (row["confidence"] or 0))
    forced = 1e9 if row["decision"] == "forced_review" else 0
    value = doubt * row["copies"] * 2 ** max(-8, min(8, row["priority"] or 0)) + forced
    return dict.fromkeys(REVIEW_ITEMS.names) | row | {"value": value, "skus": row["copies"], "near": 0}


def _load_rows(connection: sa.Connection, settings: Settings, rows: Sequence[Row], date: str) -> int:
    contents = [row["content_sha256"] for row in rows]
    there = {row["content_sha256"]: row for row in _locked(connection, contents)}
    answered = answers.standing(connection, contents)
    new, changed = [], []
    for row in rows:
        content = row["content_sha256"]
        if content in answered:
            continue
        wanted = _columns(settings, row, date)
        if content not in there:
            new.append({**wanted, "state": OPEN, "revision": 1})
        elif (update := _replaced(there[content], wanted)) is not None:
            changed.append({**update, "content": content})
    if new:
        connection.execute(sa.insert(review_items), new)
    for update in changed:
        content = update.pop("content")
        connection.execute(sa.update(review_items).where(review_items.c.content_sha256 == content).values(**update))
    return len(new) + len(changed)


def _columns(settings: Settings, row: Row, date: str) -> dict[str, Any]:
    content = row["content_sha256"]
    needed = settings.forced_answers if row["decision"] == "forced_review" else 1
    digest = hashlib.sha256(f"second:{content}".encode()).digest()
    # Whoever is alone on the list would leave it waiting for nobody.
    alone = len(people.staff(settings)) == 1
    blind = needed == 1 and not alone and int.from_bytes(digest[:8]) < settings.second_looks * 2**64
    kept = {name: cell for name, cell in row.items() if name in review_items.c}
    lists = {"tags": row["tags"] or [], "siblings": row["siblings"] or []}
    return {**kept, **lists, "date": date, "needed": needed, "blind": blind}


#: A run says the same tag of a content whenever it is routed; the rest may grow with its shards.
_OF_THE_RUN = frozenset({"tags", "confidence"})


def _replaced(before: Row, wanted: Row) -> dict[str, Any] | None:
    """What changes in an item when a run asks for its content, None when nothing does."""
    if _outdated(before, wanted):
        return None
    if before["state"] == DONE:
        # Without an answer in force: its content was published no more, or a head was sure of it. Now it is not.
        return {**wanted, "state": OPEN, **_turned()}
    if wanted["run_id"] != before["run_id"]:
        # Who said something of this very tag, and whose words are on their way, shall not be told to look again.
        same = before["state"] in FRESH and wanted["label_id"] == before["label_id"]
        update = {**wanted, "revision": review_items.c.revision + (0 if same else 1)}
    else:
        update = {name: cell for name, cell in wanted.items() if name not in _OF_THE_RUN and cell != before[name]}
    if before["state"] not in FRESH:
        # Who looked already did so under these.
        update = {name: cell for name, cell in update.items() if name not in ("needed", "blind")}
    return update or None


def _outdated(before: Row, wanted: Row) -> bool:
    """Whether what is there was asked for after what is wanted now."""
    if retags.is_key(wanted["run_id"]):
        return False
    if retags.is_key(before["run_id"]):
        # A night of its day or before: one that was there already is routed again.
        return bool(wanted["date"] <= before["date"])
    if before["state"] == DONE:
        return bool(wanted["date"] < before["date"])
    return bool((wanted["date"], wanted["run_id"]) < (before["date"], before["run_id"]))
