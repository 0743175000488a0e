"""What all commands share: the terminal, and settings read once logging is set up."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from wwts_ops import logs
from wwts_ops import settings as settings_module
from wwts_ops.settings import Settings

out = Console(highlight=False, soft_wrap=True)


def settings(**overrides: Any) -> Settings:
    """Settings from the environment; log lines then look as they say."""
    found = settings_module.load(**overrides)
    logs.configure(found.log_format)
    return found
