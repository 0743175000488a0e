"""A migrated, empty Airflow database, made once a test session: further ones are copies, not seconds of work."""

from __future__ import annotations

import fcntl
import shutil
from importlib.metadata import version
from pathlib import Path

from wwts_ops import servers, settings
from wwts_ops.settings import Settings

#: A folder of the whole session, all its workers; ``conftest.py`` says which.
_SHARED: list[Path] = []


def share(folder: Path) -> None:
    """Keeps the template in ``folder``."""
    _SHARED[:] = [folder]


def lay(found: Settings) -> None:
    """Puts the template where `wwts run` looks for one of its own."""
    home = found.state_dir / "airflow-run" / f"template-{version('apache-airflow')}"
    if not (home / "ready").exists():
        put(home)
        (home / "ready").touch()


def put(home: Path) -> None:
    """Puts ``airflow.db`` into the AIRFLOW_HOME ``home``, as ``servers.migrate`` makes it for settings of ours."""
    [shared] = _SHARED
    made = shared / "airflow-template"
    made.mkdir(exist_ok=True)
    with (made / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (made / "ready").exists():
            _make(made)
            (made / "ready").touch()
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(made / "home" / "airflow.db", home / "airflow.db")


def _make(folder: Path) -> None:
    found = settings.load(store=str(folder / "store"))
    servers.migrate(servers.airflow_environment(found, folder / "home"))
