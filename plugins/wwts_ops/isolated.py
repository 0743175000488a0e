"""Run by itself (``python -I -S isolated.py ORDER``): loads a model with nothing but its own code and requirements.

Nothing of ours is imported: whatever this process has comes from the model. See ``wwts_ops.isolation``.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn


class Closure(DistributionFinder):
    """Finds modules of the standard library, of the packed code, and of the admitted distributions; no others.

    What is not admitted is simply not there, as in an environment that was made from the requirements alone.
    """

    def __init__(self, standard: Sequence[str], packed: str, files: Iterable[str], names: Iterable[str]) -> None:
        self._standard, self._packed = tuple(standard), packed
        self._files, self._names = frozenset(files), frozenset(names)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the interpreter asks; ``path`` is None for modules that are in no package."""
        spec = PathFinder.find_spec(name, path, target)
        # A namespace package is a list of folders: what is in them is asked for one by one.
        if spec is None or spec.origin is None or self._admits(spec.origin):
            return spec
        return None

    def _admits(self, origin: str) -> bool:
        if origin in self._files or Path(origin).is_relative_to(self._packed):
            return True
        return "site-packages" not in origin and any(Path(origin).is_relative_to(place) for place in self._standard)

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008 (the base class's)
    ) -> Iterable[Distribution]:
        """Versions and plug-ins of the admitted distributions only."""
        found = MetadataPathFinder.find_distributions(context)
        return (entry for entry in found if _canonical(entry.metadata["Name"]) in self._names)


def main(order: Path) -> None:
    """Predicts one picture and writes the row as JSON.

    Args:
        order: JSON with ``standard``, ``sites``, ``files``, ``names``, ``model``, ``picture`` and ``answer``.
    """
    given = json.loads(order.read_text(encoding="utf-8"))
    packed = str(Path(given["model"], "code"))
    guard = Closure(given["standard"], packed, given["files"], given["names"])
    sys.path[:] = [packed, *given["standard"], *given["sites"]]
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, guard]
    _forbid_pickle()
    row = _predict(given["model"], Path(given["picture"]).read_bytes())
    Path(given["answer"]).write_text(json.dumps(row), encoding="utf-8")


def _predict(model: str, picture: bytes) -> dict[str, Any]:
    import mlflow
    import pandas as pd

    rows = mlflow.pyfunc.load_model(model).predict(pd.DataFrame({"image": [picture]}))
    (row,) = json.loads(rows.to_json(orient="records"))
    found: dict[str, Any] = row
    return found


class _NoUnpickler:
    def __init__(self, *_: object, **__: object) -> None:
        _refuse()


def _refuse(*_: object, **__: object) -> NoReturn:
    raise pickle.UnpicklingError("a pickle was to be loaded, which is forbidden: it runs whatever is in it")


def _watch(event: str, _: object) -> None:
    """By whatever way a pickle names code, the interpreter tells it here, and nobody can undo that."""
    if event == "pickle.find_class":
        _refuse()


def _forbid_pickle() -> None:
    pickle.load = pickle.loads = _refuse
    pickle.Unpickler = _NoUnpickler  # type: ignore[assignment, misc]
    sys.addaudithook(_watch)


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
