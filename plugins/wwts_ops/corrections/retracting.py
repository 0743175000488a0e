"""Taking answers back: what counted before them counts again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from wwts_ops.corrections import answers
from wwts_ops.corrections.answers import Answer, Recorded
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings

_PREFIX = re.compile(r"[0-9a-f]{6,64}")


def retract(settings: Settings, contents: Sequence[str], author: str, comment: str | None = None) -> Recorded:
    """Takes back the answer that counts of each content, all or none; without one, the old tag that does.

    Args:
        settings: the database.
        contents: hex digits with which a ``content_sha256`` begins, at least six.
        author: who takes them back.
        comment: why.

    Raises:
        WwtsError: when there is nothing to take back, or digits fit several contents.
        UnavailableError: when the database does not answer.
    """
    table = answers.frozen(settings)
    counting = pa.concat_tables([answers.in_force(table), answers.weak(table)]).to_pylist()
    now = datetime.now(UTC)
    rows = {row["number"]: row for row in (_one(counting, prefix.lower()) for prefix in contents)}
    return answers.record(
        settings,
        [
            Answer(
                answer_id=f"retract:{number}",  # of two at once, one does
                answered_at=now,
                answered_by=author,
                image_id=row["image_id"],
                content_sha256=row["content_sha256"],
                kind="retract",
                labels_before=tuple(row["labels"]),
                comment=comment,
                source="command",
                weak=row["weak"],
                shown_because="retract",
                retracts=number,
            )
            for number, row in rows.items()
        ],
    )


def _one(counting: Iterable[dict[str, Any]], prefix: str) -> dict[str, Any]:
    if not _PREFIX.fullmatch(prefix):
        raise WwtsError(f"{prefix!r} is no content: give the first six or more hex digits of its SHA-256.")
    found = [row for row in counting if row["content_sha256"].startswith(prefix)]
    if len(found) > 1:
        raise WwtsError(f"{prefix!r} is the beginning of {len(found):,} contents; give more digits.")
    if not found:
        raise WwtsError(f"No answer of a content {prefix} is in force; see `wwts corrections list`.")
    return found[0]
