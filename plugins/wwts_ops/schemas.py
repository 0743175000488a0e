"""Arrow schemas of what recognition reads and writes, and of the files around it; packed with every model version.

What recognition knows nothing of (answers, what the review page shows) has its schemas in :mod:`wwts_ops.records`.
``date`` is a partition folder only, never a column.
"""

from __future__ import annotations

import pyarrow as pa

TAG = pa.struct(
    [
        pa.field("label_id", pa.string(), nullable=False),
        pa.field("label_zh", pa.string()),
        pa.field("score", pa.float32(), nullable=False),
    ]
)

#: One row an image of the catalog, as found tonight. ``size`` in bytes, ``mtime`` UTC; both null when unknown.
CATALOG = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sku_id", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("category", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("priority", pa.int32()),
        pa.field("size", pa.int64()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("etag", pa.string()),
    ]
)

#: One row an image that a run will tag (``action=tag``) or has found gone (``action=delist``, ``shard=-1``).
PLAN = pa.schema([pa.field("action", pa.string(), nullable=False), pa.field("shard", pa.int32()), *CATALOG])

#: One row an image tagged in a run. ``tags`` best first; scores 0–1; ``tagged_at`` UTC.
TAGS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sku_id", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("tags", pa.list_(pa.field("element", TAG))),
        pa.field("label_id", pa.string()),
        pa.field("label_zh", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("category_path", pa.string()),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("decision_reason", pa.string()),
        pa.field("ocr_text", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("model_name", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("model_sha256", pa.string()),
        pa.field("backbone_sha256", pa.string()),
        pa.field("taxonomy_version", pa.string()),
        pa.field("git_sha", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("tagged_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

#: The tags of every listed image, as consumers read them.
PUBLISHED = pa.schema([*TAGS, pa.field("state", pa.string(), nullable=False), pa.field("snapshot", pa.string())])

#: One row an image that could not be read, and why.
QUARANTINE = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sku_id", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("content_sha256", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("seen_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

#: One row a content and backbone. ``embedding``: little-endian float16, ``dimension`` in the schema metadata.
EMBEDDINGS = pa.schema(
    [
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("backbone_sha256", pa.string(), nullable=False),
        pa.field("embedding", pa.binary(), nullable=False),
    ]
)

#: What a person should look at, best use of a look first; ``rank`` from 1.
REVIEW_QUEUE = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),
        *(TAGS.field(name) for name in ("image_id", "sku_id", "uri", "content_sha256", "tags", "label_id", "label_zh")),
        *(TAGS.field(name) for name in ("confidence", "category_path", "decision", "decision_reason", "run_id")),
        pa.field("copies", pa.int32(), nullable=False),
        pa.field("priority", pa.int32()),
        pa.field("shown_because", pa.string(), nullable=False),
        pa.field("sampling_probability", pa.float64(), nullable=False),
    ]
)

#: A taxonomy: names, paths and rules of every label. ``category_path`` is ``一级 > 二级 > 三级``. Code that was packed
#: with a version reads these columns whatever release wrote them, so it must agree on them with that release.
TAXONOMY = pa.schema(
    [
        pa.field("label_id", pa.string(), nullable=False),
        pa.field("label_zh", pa.string(), nullable=False),
        pa.field("label_en", pa.string()),
        pa.field("synonyms_zh", pa.string()),
        pa.field("category_path", pa.string()),
        pa.field("forced_review", pa.bool_(), nullable=False),
        pa.field("enabled", pa.bool_(), nullable=False),
    ]
)

#: ``TAXONOMY`` as it is written now: releases that know no ``maps_to`` neither wrote it nor miss it.
MAPPED_TAXONOMY = pa.schema([*TAXONOMY, pa.field("maps_to", pa.string())])

#: One row a bad case, in the order they were added; ``retired_*`` are null while it is in force. Times are UTC.
BADCASES = pa.schema(
    [
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("accepted", pa.list_(pa.field("element", pa.string())), nullable=False),
        pa.field("forbidden", pa.list_(pa.field("element", pa.string())), nullable=False),
        pa.field("slices", pa.list_(pa.field("element", pa.string())), nullable=False),
        pa.field("owner", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("never_regress", pa.bool_(), nullable=False),
        pa.field("starter", pa.bool_(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("added_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("added_by", pa.string(), nullable=False),
        pa.field("retired_at", pa.timestamp("us", tz="UTC")),
        pa.field("retired_by", pa.string()),
        pa.field("retired_reason", pa.string()),
    ]
)


def embeddings_schema(dimension: int) -> pa.Schema:
    """The embeddings schema that says how many float16 one row holds."""
    return EMBEDDINGS.with_metadata({"dimension": str(dimension), "dtype": "float16"})
