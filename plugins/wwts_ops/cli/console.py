"""What all commands share: the terminal, and settings read once logging is set up."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from wwts_ops import logs
from wwts_ops import settings as settings_module
from wwts_ops.settings import Settings

out = Console(highlight=False, soft_wrap=True)
#: Characters a line of a table that goes into a file or a pipe.
_WIDE = 240


def tables() -> Console:
    """Where tables go: the terminal, at its width, or a file or a pipe, wide enough to be copied from."""
    return out if out.is_terminal else Console(width=_WIDE)


def settings(**overrides: Any) -> Settings:
    """Settings from the environment; log lines then look as they say."""
    found = settings_module.load(**overrides)
    logs.configure(found.log_format)
    return found
