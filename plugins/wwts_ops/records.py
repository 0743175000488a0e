"""Arrow schemas of what recognising a picture knows nothing of: answers, retagged contents, review items.

Not in :mod:`wwts_ops.schemas`, which is packed with every model version: an older version brings its own.
"""

from __future__ import annotations

import pyarrow as pa

from wwts_ops.schemas import REVIEW_QUEUE, TAGS

#: One row an answer, oldest first; nothing is ever changed in it. What each column means: ``corrections.Answer``.
ANSWERS = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("answer_id", pa.string(), nullable=False),
        pa.field("answered_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("answered_by", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("labels_before", pa.list_(pa.field("element", pa.string())), nullable=False),
        pa.field("labels", pa.list_(pa.field("element", pa.string())), nullable=False),
        pa.field("comment", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("weak", pa.bool_(), nullable=False),
        pa.field("shown_because", pa.string(), nullable=False),
        pa.field("sampling_probability", pa.float64()),
        pa.field("retracts", pa.int64()),
        pa.field("model_version", pa.string()),
        pa.field("confidence", pa.float32()),
    ]
)

#: One row a content that was tagged anew from its stored embedding; columns as in ``TAGS``.
RETAGGED = pa.schema(
    [
        *(TAGS.field(name) for name in ("content_sha256", "tags", "label_id", "label_zh", "confidence")),
        *(TAGS.field(name) for name in ("category_path", "decision", "decision_reason")),
    ]
)

#: One row a content that a person should look at, best use of a look first: as ``REVIEW_QUEUE``, and what the page
#: shows beside it. ``value``: what a look is worth, larger first. ``skus``: published SKUs with the same content.
#: ``near_group``: what looks alike has the same one, null when alone; ``near``: how many others are in it.
#: ``siblings``: other published images of the SKU, one a content, at most 20; ``skus`` of theirs as of the row.
REVIEW_ITEMS = pa.schema(
    [
        *REVIEW_QUEUE,
        pa.field("title", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("skus", pa.int32(), nullable=False),
        pa.field("near_group", pa.string()),
        pa.field("near", pa.int32(), nullable=False),
        pa.field(
            "siblings",
            pa.list_(
                pa.field(
                    "element",
                    pa.struct(
                        [
                            pa.field("image_id", pa.string(), nullable=False),
                            pa.field("content_sha256", pa.string(), nullable=False),
                            pa.field("label_id", pa.string()),
                            pa.field("label_zh", pa.string()),
                            pa.field("confidence", pa.float32()),
                            pa.field("model_version", pa.string()),
                            pa.field("skus", pa.int32(), nullable=False),
                        ]
                    ),
                )
            ),
        ),
    ]
)
