"""What a new model would change across the whole catalog, before anyone says yes."""

from wwts_ops.tagdiff.building import ARTIFACTS, TAG, build, told
from wwts_ops.tagdiff.facts import Category, Change, Count, Known, Pair, Side, TagDiff, Versions
from wwts_ops.tagdiff.page import markdown

__all__ = [
    "ARTIFACTS",
    "TAG",
    "Category",
    "Change",
    "Count",
    "Known",
    "Pair",
    "Side",
    "TagDiff",
    "Versions",
    "build",
    "markdown",
    "told",
]
