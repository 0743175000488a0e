"""The bad cases: curated pictures with their right labels, by which the gate judges a model.

``badcases/<snapshot>/cases.parquet`` never changes once written; ``badcases/current.json`` names the one in force. A
copy of every picture lies in ``badcases/contents/``, so that a case outlives its catalog image. Nothing is ever
removed: what is retired stays in all later snapshots, with who retired it and why.
"""

from wwts_ops.badcases.importing import Imported, import_cases
from wwts_ops.badcases.snapshots import BadCase, Snapshot, content, current, read, retire
from wwts_ops.badcases.starter import ensure
from wwts_ops.badcases.vectors import add_embeddings, embeddings

__all__ = [
    "BadCase",
    "Imported",
    "Snapshot",
    "add_embeddings",
    "content",
    "current",
    "embeddings",
    "ensure",
    "import_cases",
    "read",
    "retire",
]
