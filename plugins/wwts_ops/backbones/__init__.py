"""Backbones by name. A new one is one module beside this file and one line in ``_REGISTRY``, a new family one in
``_FAMILIES``. A name says all of it: ``get(recipe.backbone).recipe == recipe``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from wwts_ops.errors import WwtsError

if TYPE_CHECKING:
    from wwts_ops.backbones.base import Backbone

_REGISTRY = {
    "efficientnet-lite0": "wwts_ops.backbones.efficientnet_lite:LITE0",
    "efficientnet-lite2": "wwts_ops.backbones.efficientnet_lite:LITE2",
}
#: What stands before the colon of a name, and the function that takes what stands behind it.
_FAMILIES = {
    "lite": "wwts_ops.backbones.joined:named",
    "torchvision": "wwts_ops.backbones.torchvision_models:named",
}

#: What a new shop starts with.
DEFAULT = "efficientnet-lite0"


def get(name: str) -> Backbone:
    """The backbone called ``name``; only then is its module (and torch) imported.

    Raises:
        WwtsError: when there is none of that name.
    """
    family, colon, member = name.partition(":")
    if colon and family in _FAMILIES:
        module, attribute = _FAMILIES[family].split(":")
        made: Backbone = getattr(import_module(module), attribute)(member)
        return made
    if name not in _REGISTRY:
        known = ", ".join([*sorted(_REGISTRY), *(f"{family}:…" for family in _FAMILIES)])
        raise WwtsError(f"There is no backbone {name!r}; this version knows {known}.")
    module, attribute = _REGISTRY[name].split(":")
    backbone: Backbone = getattr(import_module(module), attribute)
    return backbone
