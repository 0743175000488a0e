"""The audit sample: which contents a person looks at though the model is sure, drawn for each run by a hash.

Whoever keeps a thumbnail and whoever asks for the look must draw the same ones; two forms of one rule stand here.
"""

from __future__ import annotations

import hashlib
from typing import Final

_DIGITS: Final = 16


def sampled(run_key: str, content: str, rate: float) -> bool:
    """Whether a content (its SHA-256 in hex) is in the sample of run ``run_key``; ``rate``: 0 none, 1 all."""
    digest = hashlib.sha256(f"audit:{run_key}{content}".encode()).hexdigest()
    return "0" + digest[:_DIGITS] < bound(rate)


def condition(content: str) -> str:
    """:func:`sampled` in DuckDB's SQL, of column ``content``; parameters ``run``, and ``share`` (see :func:`bound`)."""
    return f"'0' || left(sha256('audit:' || $run || {content}), {_DIGITS}) < $share"


def bound(rate: float) -> str:
    """What the hash of a sampled content, a hex digit wider, is below."""
    return f"{int(rate * 16**_DIGITS):0{_DIGITS + 1}x}"
