"""What a process has used."""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory_mb() -> float:
    """This process's highest resident memory; ``ru_maxrss`` would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
