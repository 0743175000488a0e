"""Changes to the taxonomy as people make them, on the page, at a terminal or in a spreadsheet.

A change makes another :class:`wwts_ops.taxonomy.Taxonomy` of one; faults that it brings in are refused; and what it
makes becomes a new version, with its author and what changed.
"""

from wwts_ops.taxonomy_changes import labelsheet
from wwts_ops.taxonomy_changes.checks import check
from wwts_ops.taxonomy_changes.difference import Difference, counts, diff
from wwts_ops.taxonomy_changes.edits import (
    Add,
    Change,
    Edit,
    Enable,
    Force,
    ForceCategory,
    Map,
    Merge,
    Move,
    MoveCategory,
    Rename,
    Synonyms,
    edited,
    new_id,
)
from wwts_ops.taxonomy_changes.faults import FaultError
from wwts_ops.taxonomy_changes.history import Version, history
from wwts_ops.taxonomy_changes.writing import Applied, apply, by, preview, write

__all__ = [
    "Add",
    "Applied",
    "Change",
    "Difference",
    "Edit",
    "Enable",
    "FaultError",
    "Force",
    "ForceCategory",
    "Map",
    "Merge",
    "Move",
    "MoveCategory",
    "Rename",
    "Synonyms",
    "Version",
    "apply",
    "by",
    "check",
    "counts",
    "diff",
    "edited",
    "history",
    "labelsheet",
    "new_id",
    "preview",
    "write",
]
