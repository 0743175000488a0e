"""Which content an image has, as far as the shop has ever tagged it, and what is published of that content."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wwts_ops import planning, published, warehouse
from wwts_ops.corrections.drafts import Draft
from wwts_ops.errors import WwtsError
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.planning import Plan
from wwts_ops.schemas import PUBLISHED, QUARANTINE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagging import done_shards

#: Column and value by which an image is looked for.
Key = tuple[str, str]

_COLUMNS = ("image_id", "uri", "content_sha256")
_WANTED = pa.schema([("key", pa.string()), ("value", pa.string())])


@dataclass(frozen=True, slots=True)
class Image:
    """What a draft is about; ``image_id`` is None when only the content was named."""

    image_id: str | None
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What consumers read of a content: label ids best first, and what made them; empty when they read nothing."""

    labels: tuple[str, ...] = ()
    model_version: str | None = None
    confidence: float | None = None

    @property
    def answer(self) -> tuple[str, ...]:
        """What there is to confirm: all that a person answered, or the first of what a model gave."""
        return self.labels if self.model_version is None else self.labels[:1]


@dataclass(frozen=True, slots=True)
class _Found:
    image_id: str
    content_sha256: str
    several: bool
    rejected: str | None


class Known:
    """The images that drafts name, looked up all at once.

    Args:
        store: holds what was tagged and published.
        settings: where relative uris start.
        drafts: nothing else can be asked for.

    Raises:
        WwtsError: when no night has tagged anything yet.
    """

    def __init__(self, store: Store, settings: Settings, drafts: Sequence[Draft]) -> None:
        plans = planning.claimed(store)
        shards = [shard for plan in plans for shard in done_shards(store, plan)]
        if not shards:
            raise WwtsError(f"Nothing is tagged in {store.root} yet; run the DAG tag_catalog first.")
        self._roots = _roots(settings, plans)
        keys = {key for draft in drafts for candidates in self._named(draft).values() for key in candidates}
        with warehouse.connect() as con:
            warehouse.view(con, "tags", store, [shard.part("tags") for shard in shards], TAGS)
            warehouse.view(con, "quarantine", store, [shard.part("quarantine") for shard in shards], QUARANTINE)
            con.execute("CREATE TABLE runs (run_id VARCHAR, sequence BIGINT)")
            con.executemany("INSERT INTO runs VALUES (?, ?)", [(plan.run_key, plan.sequence) for plan in plans])
            _load(con, keys)
            self._found, self._transient = _look_up(con)
            self._shown = _published(con, store, {found.content_sha256 for found in self._found.values()})

    def image(self, draft: Draft) -> Image:
        """What ``draft`` is about.

        Raises:
            WwtsError: when that is unknown, unreadable or not one thing.
        """
        images = {column: self._one(column, keys) for column, keys in self._named(draft).items()}
        contents = {column: found.content_sha256 for column, found in images.items()}
        if len(set(contents.values())) > 1:
            each = " and ".join(f"{column} content {content[:12]}" for column, content in contents.items())
            raise WwtsError(f"its columns mean different pictures: {each}; keep the one you looked at")
        shown = images.get("image_id") or images.get("uri")
        return Image(shown.image_id if shown else None, next(iter(contents.values())))

    def shown(self, content_sha256: str) -> Shown:
        """What consumers read of that content."""
        return self._shown.get(content_sha256, Shown())

    def _one(self, column: str, keys: Sequence[Key]) -> _Found:
        what = f"{column} {keys[0][1]!r}"
        found = next((self._found[key] for key in keys if key in self._found), None)
        if found is None:
            reason = next((self._transient[key] for key in keys if key in self._transient), None)
            if reason is not None:
                raise WwtsError(f"{what} could not be read so far ({reason}); every night tries again")
            raise WwtsError(f"{what} is no image that was ever tagged here; check it, or run tag_catalog first")
        if found.rejected is not None:
            raise WwtsError(f"{what} is in quarantine ({found.rejected}) and has no tag to correct")
        if found.several:
            raise WwtsError(f"{what} is several images with different contents; name the image_id")
        return found

    def _named(self, draft: Draft) -> dict[str, list[Key]]:
        """For each column that is filled in, what it may mean, likeliest first."""
        named: dict[str, list[Key]] = {}
        if draft.image_id is not None:
            named["image_id"] = [("image_id", text) for text in _as_written(draft.image_id)]
        if draft.uri is not None:
            named["uri"] = [key for text in _as_written(draft.uri) for key in self._uris(text)]
        if draft.content_sha256 is not None:
            named["content_sha256"] = [("content_sha256", draft.content_sha256)]
        return named

    def _uris(self, text: str) -> list[Key]:
        if "://" in text:
            return [("uri", text)]
        path = os.path.normpath(text)
        if os.path.isabs(path):
            inside = [os.path.relpath(path, root) for root in self._roots if path.startswith(f"{root}/")]
            return [("uri", text), ("uri", path), *(("image_id", _nfc(name)) for name in inside)]
        # A manifest without ids has the uri as id, as it was written; a folder has paths within it.
        here = [("uri", f"{root}/{path}") for root in self._roots]
        return [("uri", text), *here, ("image_id", text), ("image_id", _nfc(path))]


def content_of(store: Store, settings: Settings, image_id: str) -> str:
    """The content that an image shows, as it was tagged last.

    Raises:
        WwtsError: when it is unknown or unreadable.
    """
    draft = Draft(line=0, image_id=image_id)
    return Known(store, settings, [draft]).image(draft).content_sha256


def _as_written(text: str) -> list[str]:
    """``text``, and if it may be a path of Windows, as it is here."""
    return list(dict.fromkeys((text, text.replace("\\", "/"))))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _roots(settings: Settings, plans: Iterable[Plan]) -> list[str]:
    """What a relative uri may start from: newest catalog first, each as a folder and as the folder of a manifest."""
    given = settings.image_root.strip().rstrip("/")
    if given and "://" not in given:
        given = os.path.abspath(os.path.expanduser(given))
    catalogs = dict.fromkeys(plan.catalog for plan in reversed(list(plans)))
    roots = [given, *(root for name in catalogs for root in (name, name.rpartition("/")[0]))]
    return [root for root in dict.fromkeys(roots) if root]


def _load(con: Any, keys: Iterable[Key]) -> None:
    columns = list(zip(*keys, strict=True)) or [(), ()]
    con.register("asked", pa.table([pa.array(cells, pa.string()) for cells in columns], schema=_WANTED))
    con.execute("CREATE TABLE wanted AS FROM asked")
    con.unregister("asked")


def _look_up(con: Any) -> tuple[dict[Key, _Found], dict[Key, str]]:
    """By key what was tagged last and whether it was rejected since, and what could only not be read so far."""
    transient = ", ".join(f"'{reason}'" for reason in sorted(TRANSIENT_REASONS))
    found: dict[Key, _Found] = {}
    waiting: dict[Key, str] = {}
    for column in _COLUMNS:
        rows = con.execute(_sql(column, transient)).fetchall()
        for value, image_id, content, several, rejected, unread in rows:
            if content is not None or rejected is not None:
                found[column, value] = _Found(image_id or "", content or "", bool(several), rejected)
            else:
                waiting[column, value] = unread
    return found, waiting


def _sql(column: str, transient: str) -> str:
    """The newest tags of each wanted value of ``column``, and the reason of a later quarantine.

    The highest plan sequence counts. Only wanted rows are ever kept, so that memory grows with the file and not with
    the catalog.
    """
    return f"""
        WITH asked AS MATERIALIZED (SELECT value FROM wanted WHERE key = '{column}'),
        tagged AS (
            SELECT value, sequence, image_id, content_sha256, lowest <> highest AS several FROM (
                SELECT t.{column} AS value, sequence, image_id, content_sha256,
                    min(content_sha256) OVER w AS lowest, max(content_sha256) OVER w AS highest
                FROM tags t JOIN runs USING (run_id) WHERE t.{column} IN (FROM asked)
                WINDOW w AS (PARTITION BY t.{column}, sequence)
            ) QUALIFY row_number() OVER (PARTITION BY value ORDER BY sequence DESC, image_id) = 1
        ), unread AS (
            SELECT q.{column} AS value,
                max(sequence) FILTER (reason NOT IN ({transient})) AS sequence,
                arg_max(reason, sequence) FILTER (reason NOT IN ({transient})) AS rejected,
                arg_max(reason, sequence) FILTER (reason IN ({transient})) AS waiting
            FROM quarantine q JOIN runs USING (run_id) WHERE q.{column} IN (FROM asked) GROUP BY 1
        )
        SELECT coalesce(t.value, u.value), image_id, content_sha256, several,
            if(u.sequence > coalesce(t.sequence, 0), rejected, NULL), waiting
        FROM tagged t FULL JOIN unread u ON t.value = u.value
    """


def _published(con: Any, store: Store, contents: Iterable[str]) -> Mapping[str, Shown]:
    pointer = published.current(store)
    if pointer is None:
        return {}
    con.register("contents", pa.table({"content_sha256": pa.array(sorted(contents), pa.string())}))
    warehouse.view(con, "published", store, pointer.value["parts"], PUBLISHED)
    rows = con.execute(
        """SELECT content_sha256, [tag.label_id for tag in tags], model_version, confidence FROM published
        WHERE content_sha256 IN (SELECT content_sha256 FROM contents)
        QUALIFY row_number() OVER (PARTITION BY content_sha256 ORDER BY image_id) = 1"""
    ).fetchall()
    return {content: Shown(tuple(labels or ()), model, confidence) for content, labels, model, confidence in rows}
