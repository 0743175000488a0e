"""What became of a mark, the wish that a picture be a bad case: kept with it, and told to who made it.

The refused ones are followed by what it is about and why, ``refused: <about>: <why>``.
"""

from __future__ import annotations

from wwts_ops.images import REASONS

#: It is one now; it was one already.
ADDED, UNCHANGED = "added", "unchanged"
#: It does not become one: the answer was taken back, somebody with the last word said otherwise, another answer counts.
TAKEN_BACK, OVERRULED, WITHDRAWN = "taken_back", "overruled", "withdrawn"
#: It was one until its answer counted no longer; it cannot be one; its picture cannot be read at present.
RETIRED, REFUSED, WAITING = "retired", "refused", "waiting"

_WHY = {
    **REASONS,
    "unreadable_uri": "一周里都读不到原图",
    "changed": "原图已经换成了别的内容",
    "unpublished": "图片已经下架，读不到原图",
    "label": "这个标签已经不在了",
    "case": "它已经是坏例，但正确标签不一样",
}
_OTHER = "原因请管理员查看“收录坏例”任务的日志"


def refused(about: str, why: str) -> str:
    """The outcome of a mark that cannot become a bad case; ``about``: a key of ``images.REASONS`` or another word."""
    return f"{REFUSED}: {about or 'row'}: {why}"


def refusal(outcome: str | None) -> str | None:
    """Why a mark did not become a bad case, as people read it; None when it was not refused."""
    kind, *more = (outcome or "").split(": ", 2)
    return _WHY.get(more[0], _OTHER) if kind == REFUSED and more else None
