"""Two heads over every stored embedding: what changes, for how many images, and what of it matters most.

Embeddings are read a row group at a time, what each head says of them goes to disk, and DuckDB, which spills beyond
a fixed memory, joins it with what is published. So memory does not grow with the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wwts_ops import embeddings, shares, warehouse
from wwts_ops.corrections import LABELLED
from wwts_ops.decisions import AUTO, FORCED_REVIEW, Decider
from wwts_ops.records import RETAGGED
from wwts_ops.runtime import Scorer
from wwts_ops.schemas import PUBLISHED
from wwts_ops.storage import Store
from wwts_ops.tagdiff.facts import Category, Change, Count, Known, Pair, Side
from wwts_ops.tagger import Tagger
from wwts_ops.taxonomy import Taxonomy

#: Changes that the page shows, and pairs of labels.
RISKIEST, PAIRS = 200, 20
#: The order of risk: what goes live with nobody looking first, then by the images touched, then by how sure the old
#: model was. The content only makes it the same each time.
RISK = "unseen DESC, images DESC, old_confidence DESC NULLS LAST, content_sha256"

_SAID = ("label_id", "label_zh", "confidence", "category_path", "decision", "decision_reason")
_SCORED = pa.schema(
    [
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),
        *(RETAGGED.field(name) for name in _SAID),
    ]
)
#: One row a content whose label or decision changes; ``old_*`` by the champion, ``new_*`` by the challenger.
CHANGES = pa.schema(
    [
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("answered", pa.string()),
        pa.field("unseen", pa.bool_(), nullable=False),
        *(RETAGGED.field(name).with_name(f"{side}_{name}") for side in ("old", "new") for name in _SAID),
    ]
)

_RELABELLED = "old_label_id IS DISTINCT FROM new_label_id"
_REDECIDED = "old_decision <> new_decision"
_TOP = "trim(split_part(coalesce({}_category_path, ''), '>', 1))"


@dataclass(frozen=True)
class Inputs:
    """All that a diff is a function of.

    Attributes:
        old: the champion.
        new: the challenger.
        taxonomy: in force.
        old_parts: keys of the embeddings of the champion's backbone, by name.
        new_parts: of the challenger's.
        published: keys of the parts by which images are counted; None: nothing was published yet.
        answers: in force, with labels as they are given by ``taxonomy``; schema ``ANSWERS``.
        learned: contents that the challenger has learned from; None when nobody noted them.
    """

    old: Tagger
    new: Tagger
    taxonomy: Taxonomy
    old_parts: tuple[str, ...]
    new_parts: tuple[str, ...]
    published: tuple[str, ...] | None
    answers: pa.Table
    learned: pa.Array | None = None


@contextmanager
def compared(store: Store, inputs: Inputs) -> Iterator[Comparison]:
    """What both models say of every content that both have an embedding of, until the block ends.

    Raises:
        WwtsError: when a part is damaged.
    """
    with TemporaryDirectory(prefix="wwts-tagdiff-") as name, warehouse.connect() as con:
        folder = Path(name)
        if inputs.old.backbone_sha256 == inputs.new.backbone_sha256:
            _say(store, inputs, inputs.old_parts, {"old": inputs.old, "new": inputs.new}, folder)
        else:
            _say(store, inputs, inputs.old_parts, {"old": inputs.old}, folder)
            _say(store, inputs, inputs.new_parts, {"new": inputs.new}, folder)
        for side in ("old", "new"):
            _load(con, side, folder / f"{side}.parquet")
        _join(con, store, inputs)
        yield Comparison(con, store, inputs)


def _say(store: Store, inputs: Inputs, parts: Sequence[str], sides: dict[str, Tagger], folder: Path) -> None:
    """Writes what each of ``sides`` says of all embeddings in ``parts``."""
    with ExitStack() as stack:
        speakers = [_Speaker(tagger, inputs.taxonomy, folder / f"{side}.parquet") for side, tagger in sides.items()]
        for speaker in speakers:
            stack.enter_context(speaker.writer)
        place = 0
        for key in parts:
            for contents, vectors in embeddings.batches(store, key):
                for speaker in speakers:
                    speaker.say(contents, vectors, place)
                place += len(contents)


class _Speaker:
    """A model that writes what it says of embeddings."""

    def __init__(self, tagger: Tagger, taxonomy: Taxonomy, path: Path) -> None:
        self._score = Scorer(tagger)
        # The first label decides; those after it change nothing that is compared.
        self._decide = Decider(tagger.label_ids, tagger.thresholds, taxonomy, 1)
        self.writer = pq.ParquetWriter(path, _SCORED, compression="zstd")

    def say(self, contents: list[str], vectors: np.ndarray[Any, Any], place: int) -> None:
        """Adds ``float16 [n, dimension]`` of ``contents``, the first of which stands at ``place`` of all."""
        if not contents:
            return
        said = self._decide.columns(self._score(vectors))
        places = pa.array(np.arange(place, place + len(contents)), pa.int64())
        columns = [pa.array(contents, pa.string()), places, *(said.column(name) for name in _SAID)]
        self.writer.write_table(pa.Table.from_arrays(columns, schema=_SCORED))


def _load(con: duckdb.DuckDBPyConnection, side: str, path: Path) -> None:
    """View ``side``: what a model said, once a content; of several embeddings the one in the first part counts."""
    con.read_parquet(str(path)).create_view(f"{side}_said")
    con.execute(
        f"""CREATE TABLE {side}_again AS
        SELECT content_sha256, min(place) AS first FROM {side}_said GROUP BY 1 HAVING count(*) > 1"""
    )
    con.execute(
        f"""CREATE VIEW {side} AS SELECT {side}_said.* FROM {side}_said
        LEFT JOIN {side}_again USING (content_sha256) WHERE first IS NULL OR first = place"""
    )


def _join(con: duckdb.DuckDBPyConnection, store: Store, inputs: Inputs) -> None:
    """Views ``listed``, ``answers``, ``learned`` and ``judged``; tables ``changes`` and ``totals``."""
    if inputs.published is None:
        con.execute(
            "CREATE VIEW listed AS SELECT content_sha256, 1 AS images, NULL::VARCHAR AS image_id FROM old "
            "SEMI JOIN new USING (content_sha256)"
        )
    else:
        warehouse.view(con, "published", store, inputs.published, PUBLISHED)
        con.execute(
            """CREATE TABLE listed AS SELECT content_sha256, count(*) AS images, min(image_id) AS image_id
            FROM published GROUP BY 1"""
        )
    con.register("answers", inputs.answers.select(["content_sha256", "kind", "labels"]))
    learned = pa.array([], pa.string()) if inputs.learned is None else inputs.learned
    con.register("learned", pa.table({"content_sha256": learned}))
    sides = ", ".join(f"{side}.{name} AS {side}_{name}" for side in ("old", "new") for name in _SAID)
    con.execute(
        f"""CREATE VIEW judged AS
        SELECT content_sha256, image_id, coalesce(images, 0)::BIGINT AS images, kind AS answered,
            {sides}, new_decision = '{AUTO}' AND ({_RELABELLED} OR {_REDECIDED}) AS unseen
        FROM old JOIN new USING (content_sha256)
        LEFT JOIN listed USING (content_sha256) LEFT JOIN answers USING (content_sha256)"""
    )
    con.execute(f"CREATE TABLE changes AS SELECT * FROM judged WHERE {_RELABELLED} OR {_REDECIDED}")
    con.execute(
        f"""CREATE TABLE totals AS
        SELECT {_TOP.format("old")} AS old_top, {_TOP.format("new")} AS new_top,
            old_decision = '{AUTO}' AS old_live, new_decision = '{AUTO}' AS new_live,
            {_RELABELLED} AS relabelled, {_REDECIDED} AS redecided,
            old_decision = '{FORCED_REVIEW}' AND new_decision <> '{FORCED_REVIEW}' AS unforced,
            answered IS NOT NULL AS answered,
            sum(images) AS images, count(*) AS contents
        FROM judged GROUP BY ALL"""
    )


class Comparison:
    """What both models say, behind DuckDB."""

    def __init__(self, con: duckdb.DuckDBPyConnection, store: Store, inputs: Inputs) -> None:
        self._con, self._store, self._inputs = con, store, inputs

    def write_changes(self, key: str) -> int:
        """Writes every change (schema ``CHANGES``), riskiest first; how many contents they are."""
        rows = self._con.sql(f"SELECT {', '.join(CHANGES.names)} FROM changes ORDER BY {RISK}")
        return warehouse.write(self._store, key, [rows], CHANGES)

    def counts(self) -> dict[str, Any]:
        """The numbers of a :class:`~wwts_ops.tagdiff.facts.TagDiff`."""
        whole = self._count("true")
        open_ = "NOT answered AND"
        return {
            "images": whole.images,
            "contents": whole.contents,
            "missing": self._missing(),
            "answered": self._count("answered"),
            "changed_label": self._count(f"{open_} relabelled"),
            "changed_decision": self._count(f"{open_} redecided"),
            "changed": self._count(f"{open_} (relabelled OR redecided)"),
            "unseen": self._count(f"{open_} (relabelled OR redecided) AND new_live"),
            "newly_live": self._count(f"{open_} new_live AND NOT old_live"),
            "no_longer_live": self._count(f"{open_} old_live AND NOT new_live"),
            "unforced": self._count(f"{open_} unforced"),
        }

    def _count(self, condition: str) -> Count:
        query = f"SELECT coalesce(sum(images), 0), coalesce(sum(contents), 0) FROM totals WHERE {condition}"
        images, contents = self._rows(query)[0]
        return Count(int(images), int(contents))

    def _missing(self) -> Count:
        images, contents = self._rows(
            """SELECT coalesce(sum(images), 0), count(*) FROM listed
            ANTI JOIN (SELECT content_sha256 FROM old SEMI JOIN new USING (content_sha256)) USING (content_sha256)"""
        )[0]
        return Count(int(images), int(contents))

    def categories(self) -> tuple[Category, ...]:
        """Every first-level category, most changed first."""
        found = self._rows(
            """WITH ends AS (
                SELECT old_top AS name, images, true AS old, old_top = new_top AS new, old_live, new_live,
                    relabelled, redecided FROM totals WHERE NOT answered
                UNION ALL
                SELECT new_top, images, false, true, false, new_live, relabelled, redecided
                FROM totals WHERE NOT answered AND old_top <> new_top
            )
            SELECT name, coalesce(sum(images) FILTER (old), 0), coalesce(sum(images) FILTER (new), 0),
                coalesce(sum(images) FILTER (old AND old_live), 0), coalesce(sum(images) FILTER (new AND new_live), 0),
                coalesce(sum(images) FILTER (relabelled), 0), coalesce(sum(images) FILTER (redecided), 0)
            FROM ends GROUP BY name
            ORDER BY sum(images) FILTER (relabelled OR redecided) DESC NULLS LAST, sum(images) DESC, name"""
        )
        return tuple(Category(name, *map(int, numbers)) for name, *numbers in found)

    def pairs(self) -> tuple[Pair, ...]:
        """The most frequent changes of label."""
        found = self._rows(
            f"""SELECT coalesce(min(old_label_zh), ''), coalesce(min(new_label_zh), ''), sum(images), count(*),
                coalesce(sum(images) FILTER (unseen), 0)
            FROM changes WHERE answered IS NULL AND {_RELABELLED}
            GROUP BY old_label_id, new_label_id
            ORDER BY sum(images) DESC, count(*) DESC, old_label_id, new_label_id LIMIT {PAIRS}"""
        )
        return tuple(Pair(old, new, *map(int, numbers)) for old, new, *numbers in found)

    def known(self) -> Known:
        """How often the change was one to the right label, where an answer in force says which that is."""
        kinds = ", ".join(f"'{kind}'" for kind in sorted(LABELLED))
        n, old, new, learned, rest_old, rest_new = self._rows(
            f"""SELECT count(*), count(*) FILTER (o), count(*) FILTER (n), count(*) FILTER (l),
                count(*) FILTER (o AND NOT l), count(*) FILTER (n AND NOT l)
            FROM (
                SELECT coalesce(list_contains(labels, old_label_id), false) AS o,
                    coalesce(list_contains(labels, new_label_id), false) AS n,
                    content_sha256 IN (SELECT content_sha256 FROM learned) AS l
                FROM changes JOIN answers USING (content_sha256) WHERE answered IN ({kinds}) AND {_RELABELLED}
            )"""
        )[0]
        interval = shares.interval(new, n)
        if self._inputs.learned is None:
            return Known(n, old, new, interval)
        return Known(n, old, new, interval, learned, rest_old, rest_new)

    def riskiest(self) -> tuple[Change, ...]:
        """At most :data:`RISKIEST` changes in the order of :data:`RISK`; contents that no image shows are left out."""
        sides = ", ".join(f"{side}_{name}" for side in ("old", "new") for name in _SAID)
        found = self._rows(
            f"""SELECT content_sha256, image_id, images, unseen, {sides} FROM changes
            WHERE answered IS NULL AND images > 0 ORDER BY {RISK} LIMIT {RISKIEST}"""
        )
        return tuple(_change(*row) for row in found)

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return list(self._con.execute(query).fetchall())


def _change(content: str, image_id: str | None, images: int, unseen: bool, *said: Any) -> Change:  # noqa: FBT001 (a row)
    old, new = said[: len(_SAID)], said[len(_SAID) :]
    return Change(content, image_id, images, unseen, Side(*old), Side(*new))
