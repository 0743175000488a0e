"""Items and answers as the pages get them: plain JSON, names beside ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from wwts_ops import taxonomy, webpage
from wwts_ops.errors import WwtsError
from wwts_ops.review.actions import shown_revision
from wwts_ops.review.items import Item
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy
from wwts_ops.web import pictures

#: Tags of an item that are shown: one key each.
_SHOWN_TAGS = 5
_KEPT_VERSIONS = 4


class NoTaxonomyError(WwtsError):
    """Before the first night there is none."""


def names(settings: Settings) -> Taxonomy:
    """The taxonomy in force.

    Raises:
        NoTaxonomyError: before the first night.
        UnavailableError: when the store refuses.
    """
    pointer = Store.of(settings).read_pointer(taxonomy.POINTER)
    if pointer is None:
        raise NoTaxonomyError("还没有标签体系：请先运行 wwts init，或等第一个夜间任务完成。")
    return version(settings, str(pointer.value["version"]))


def version(settings: Settings, name: str) -> Taxonomy:
    """One version of the taxonomy, which never changes: read once.

    Raises:
        FileNotFoundError: when there is none of that name.
    """
    return read(settings.store, settings.s3_endpoint, name)


@lru_cache(maxsize=_KEPT_VERSIONS)
def read(root: str, s3_endpoint: str, name: str) -> Taxonomy:
    """One version, of the store at ``root``; errors as in :func:`version`."""
    return taxonomy.read(Store(root, s3_endpoint), name)


@dataclass(frozen=True)
class View:
    """What items are shown with.

    Attributes:
        known: what labels are called now.
        there: contents that have a picture.
    """

    known: Taxonomy
    there: Set[str]

    @classmethod
    def of(cls, settings: Settings, contents: Iterable[str]) -> View:
        """Of ``contents``, asked for all at once; errors as in :func:`names`."""
        return cls(names(settings), pictures.present(Store.of(settings), list(contents)))

    def items(self, found: Iterable[Item]) -> list[dict[str, Any]]:
        """Items as the page shows them, in the given order."""
        return [_item(one, self.known, one.content_sha256 in self.there) for one in found]

    def siblings(self, item: Item) -> list[dict[str, Any]]:
        """The SKU's other images, those of other contents."""
        return [
            {
                "image_id": one["image_id"],
                "content": one["content_sha256"],
                "label_id": one["label_id"],
                "label_zh": name_of(self.known, one["label_id"], one["label_zh"]),
                "confidence": one["confidence"],
                "has_picture": one["content_sha256"] in self.there,
            }
            for one in item.siblings
        ]


def items(settings: Settings, found: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as the page shows them, in the given order; errors as in :func:`names`."""
    return View.of(settings, [one.content_sha256 for one in found]).items(found)


def _item(item: Item, known: Taxonomy, has_picture: bool) -> dict[str, Any]:  # noqa: FBT001 (a field)
    reason, _, skipped = (item.decision_reason or "").partition(";skipped_off:")
    return {
        "content": item.content_sha256,
        "revision": shown_revision(item.state, item.blind, item.revision),
        "image_id": item.image_id,
        "sku_id": item.sku_id,
        "title": item.title,
        "date": item.date,
        "tags": [_tag(tag, known) for tag in item.tags[:_SHOWN_TAGS]],
        "label_id": item.label_id,
        "label_zh": name_of(known, item.label_id, item.label_zh),
        "confidence": item.confidence,
        "category_path": item.category_path,
        "decision": item.decision,
        "reason": item.decision_reason,
        "reason_zh": webpage.decision_reason(reason, name_of(known, skipped) or "") if reason else "",
        "shown_because": item.shown_because,
        "copies": item.copies,
        "skus": item.skus,
        "near": item.near,
        "siblings": len(item.siblings),
        "needed": item.needed,
        # Who gives the blind second answer must not know that there is a first one.
        "state": "open" if item.blind and item.state == "second" else item.state,
        "has_picture": has_picture,
        "model_version": item.model_version,
    }


def _tag(tag: Mapping[str, Any], known: Taxonomy) -> dict[str, Any]:
    label = known.by_id.get(tag["label_id"])
    return {
        "label_id": tag["label_id"],
        "label_zh": name_of(known, tag["label_id"], tag["label_zh"]),
        "score": tag["score"],
        "category_path": "" if label is None else label.category_path,
    }


def name_of(known: Taxonomy, label_id: str | None, told: str | None = None) -> str | None:
    """What a label is called now; else what it was called when it was given, else its id."""
    if not label_id:
        return told
    label = known.by_id.get(label_id)
    return told or label_id if label is None else label.label_zh


def named(known: Taxonomy, labels: Iterable[str]) -> list[str]:
    """Names of several labels."""
    return [name_of(known, label_id) or label_id for label_id in labels]


def reason_name(code: str) -> str:
    """A decision's reason, as a filter calls it."""
    return webpage.decision_reason(code)
