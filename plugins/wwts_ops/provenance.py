"""Which code and who made something: recorded with tags, model versions and acts."""

from __future__ import annotations

import getpass
import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def git_sha() -> str | None:
    """The commit of the running code, ``-dirty`` appended when tracked files differ from it; None outside a checkout.

    ``WWTS_GIT_SHA`` comes first: an image that was built without its ``.git`` carries the commit there.
    """
    given = os.environ.get("WWTS_GIT_SHA")
    if given:
        return given
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None  # installed from a wheel, perhaps into somebody's checkout: that commit is not ours
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git on this machine: the row says so by having no commit
    return done.stdout.strip() or None


def user() -> str:
    """Who runs this process, for records of what was decided."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name; OSError from Python 3.13 on
        return f"uid {os.getuid()}"
