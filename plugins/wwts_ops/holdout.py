"""What must never enter training, rehearsal, threshold or hyper-parameter choice: one function says it.

Held out are the contents of all bad cases there ever were, the audit holdout (a share of all contents, chosen by hash)
and whatever may be a copy of either (:func:`wwts_ops.neardup.copies`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import structlog

from wwts_ops import badcases, neardup
from wwts_ops.digest import SHA256
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

Array = np.ndarray[Any, Any]

log = structlog.get_logger(__name__)

#: Never to be changed: the audit would be made of other contents, which models have learned from by then.
_SALT: Final = b"wwts audit holdout 1\0"


def in_audit(content_sha256: str, share: float) -> bool:
    """Whether a content belongs to the audit holdout; the same everywhere and for ever.

    Args:
        content_sha256: 64 lower-case hex digits.
        share: of all contents, 0 to 1; a larger one contains the smaller.

    Raises:
        WwtsError: when that is no SHA-256.
    """
    if not SHA256.fullmatch(content_sha256):
        raise WwtsError(f"{content_sha256!r} is no SHA-256 (64 lower-case hex digits) of a content.")
    # Hashed again: so that no choice made elsewhere by the content's own hash is tied to this one.
    digest = hashlib.sha256(_SALT + bytes.fromhex(content_sha256)).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def held_out(
    store: Store, settings: Settings, backbone_sha256: str, contents: Sequence[str], vectors: Array
) -> frozenset[str]:
    """Of ``contents``, those that must never be learned from.

    Give all there is at once, what may be in the audit too: copies of an audit content are found only where that
    content is among ``contents``.

    Args:
        store: holds the bad cases.
        settings: ``holdout_share`` is the audit's share.
        backbone_sha256: of the backbone that made ``vectors``.
        contents: the SHA-256 of each candidate; may hold one twice.
        vectors: their embeddings, float16 ``[n, d]``. An embedding of zeros can be compared with nothing: held out.

    Raises:
        WwtsError: when a bad case has no embedding of this backbone, or an embedding holds NaN or infinite numbers.
    """
    if len(contents) != len(vectors):
        raise WwtsError(f"{len(contents)} contents came with {len(vectors)} embeddings; each needs one of its own.")
    if not contents:
        return frozenset()
    bad, references = _bad_cases(store, backbone_sha256, contents, vectors)
    audit = np.array([in_audit(content, settings.holdout_share) for content in contents])
    reasons: dict[str, Array] = {
        "bad_cases": bad,
        "audit": audit,
        "like_bad_cases": neardup.copies(vectors, references),
        "like_audit": neardup.copies(vectors, vectors[audit]),
        "empty_embeddings": np.all(vectors == 0, axis=1),
    }
    _tell(contents, reasons)
    held = np.logical_or.reduce(list(reasons.values()))
    return frozenset(np.asarray(contents)[held].tolist())


def _bad_cases(store: Store, backbone_sha256: str, contents: Sequence[str], vectors: Array) -> tuple[Array, Array]:
    """Which candidates are bad cases (``bool [n]``), and the embeddings of all bad cases."""
    snapshot = badcases.current(store)
    # Retired ones too: they may come back.
    cases = {case.content_sha256 for case in snapshot.cases} if snapshot else set()
    bad = np.array([content in cases for content in contents])
    cached, embedded = badcases.embeddings(store, backbone_sha256) if cases else ((), vectors[:0])
    missing = cases.difference(cached, contents)
    if missing:
        raise WwtsError(
            f"{len(missing)} of {len(cases)} bad cases have no embedding of backbone {backbone_sha256[:12]}, "
            "so their copies cannot be kept out of training; run evaluate_model for a version with that backbone first."
        )
    if not len(cached):  # and so without a dimension
        return bad, vectors[bad]
    if embedded.shape[1:] != vectors.shape[1:]:
        raise WwtsError(
            f"Embeddings of the shape {vectors.shape} are not of backbone {backbone_sha256[:12]}, "
            f"whose bad cases have {embedded.shape[1]} numbers each; give those of that backbone."
        )
    return bad, np.concatenate([embedded, vectors[bad]])


def _tell(contents: Sequence[str], reasons: dict[str, Array]) -> None:
    """Logs how many were held out, each under its first reason."""
    counts, left = {}, np.ones(len(contents), dtype=bool)
    for reason, found in reasons.items():
        counts[reason] = int((left & found).sum())
        left &= ~found
    kept = int(left.sum())
    # Pictures all alike, or a backbone that sees no difference: whoever trains should know why so little is left.
    tell = log.warning if kept * 2 < len(contents) else log.info
    tell("held_out", candidates=len(contents), **counts, kept=kept)
