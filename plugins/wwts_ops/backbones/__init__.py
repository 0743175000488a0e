"""Backbones by name. A new one is one module beside this file and one line in ``_REGISTRY``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from wwts_ops.errors import WwtsError

if TYPE_CHECKING:
    from wwts_ops.backbones.base import Backbone

_REGISTRY = {
    "efficientnet-lite0": "wwts_ops.backbones.efficientnet_lite:LITE0",
}

#: What a new shop starts with.
DEFAULT = "efficientnet-lite0"


def get(name: str) -> Backbone:
    """The backbone called ``name``; only then is its module (and torch) imported.

    Raises:
        WwtsError: when there is none of that name.
    """
    if name not in _REGISTRY:
        raise WwtsError(f"There is no backbone {name!r}; this version knows {', '.join(sorted(_REGISTRY))}.")
    module, attribute = _REGISTRY[name].split(":")
    backbone: Backbone = getattr(import_module(module), attribute)
    return backbone
