"""Where the picture of a content lies: its image in the catalog, found again by its SHA-256."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from wwts_ops import planning, published, warehouse
from wwts_ops.schemas import PUBLISHED, TAGS
from wwts_ops.storage import Store

#: Images of one content that are told: one of these will still have its bytes.
_MOST: Final = 8


@dataclass(frozen=True)
class Place:
    """Images whose bytes are, or were, one content.

    Attributes:
        image_id: of the first of ``uris``; None where the catalog never held the content.
        uris: where its bytes are likely to be, the likeliest first; at most eight.
    """

    image_id: str | None
    uris: tuple[str, ...]

    @property
    def uri(self) -> str | None:
        """The likeliest."""
        return self.uris[0] if self.uris else None


NOWHERE: Final = Place(None, ())


def find(store: Store, contents: Iterable[str]) -> dict[str, Place]:
    """Where those of ``contents`` lie that the catalog holds or has held.

    What is published comes first, then what nights have written, the latest first: an older row may be of an image
    whose bytes were replaced since.
    """
    wanted = sorted(set(contents))
    if not wanted:
        return {}
    pointer = published.current(store)
    plans = planning.claimed(store)
    runs = {"run_id": [plan.run_key for plan in plans], "sequence": [plan.sequence for plan in plans]}
    with warehouse.connect() as con:
        con.register("wanted", pa.table({"content_sha256": pa.array(wanted, pa.string())}))
        con.register("runs", pa.table(runs, pa.schema([("run_id", pa.string()), ("sequence", pa.int64())])))
        warehouse.view(con, "listed", store, pointer.value["parts"] if pointer else [], PUBLISHED)
        warehouse.view(con, "tags", store, store.list("tags", ".parquet"), TAGS)
        rows = con.sql(_SQL, params={"most": _MOST}).fetchall()
    return {content: Place(image_id, tuple(uris)) for content, image_id, uris in rows}


_SQL = """
    WITH seen AS (
        SELECT content_sha256, image_id, uri, 9223372036854775807 AS sequence FROM listed
        UNION ALL
        SELECT content_sha256, image_id, uri, sequence FROM tags JOIN runs USING (run_id)
    ), placed AS (
        SELECT content_sha256, uri, min(image_id) AS image_id, max(sequence) AS sequence
        FROM seen SEMI JOIN wanted USING (content_sha256) GROUP BY content_sha256, uri
    ), ranked AS (
        SELECT *, row_number() OVER (PARTITION BY content_sha256 ORDER BY sequence DESC, image_id, uri) AS rank
        FROM placed
    )
    SELECT content_sha256, first(image_id ORDER BY rank), list(uri ORDER BY rank)
    FROM ranked WHERE rank <= $most GROUP BY content_sha256
"""
