"""Who may sign in to the Airflow of ``docker-compose.yml``: ``python -m wwts_ops.logins``, before Airflow starts.

Airflow itself would make up the passwords that are missing, and print them into the api-server's log.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from wwts_ops.errors import WwtsError

#: What Airflow's simple auth manager knows, the fewest rights first.
ROLES = ("viewer", "user", "op", "admin")


def write(path: Path, users: str, given: Mapping[str, str]) -> list[str]:
    """Gives everybody a password: one of ``given``, the one that is in ``path``, or a new one.

    Args:
        path: JSON, names to passwords; made (mode 0600) or replaced as a whole.
        users: ``name:role`` separated by commas, as Airflow takes them.
        given: passwords that somebody chose, by name.

    Returns:
        The names for which a new one was made.

    Raises:
        WwtsError: when ``users`` or what is in ``path`` cannot be read.
    """
    names = _names(users)
    try:
        before = {str(name): str(password) for name, password in json.loads(path.read_text("utf-8")).items()}
    except FileNotFoundError:
        before = {}
    except (ValueError, AttributeError) as error:
        raise WwtsError(f"{path} holds no passwords that can be read; mend it, or remove it for new ones.") from error
    known = {**before, **given}
    new = [name for name in names if name not in known]
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({**known, **{name: secrets.token_urlsafe(12) for name in new}}, file, ensure_ascii=False, indent=1)
    os.replace(made, path)
    return new


def _names(users: str) -> list[str]:
    names = []
    for user in filter(None, (part.strip() for part in users.split(","))):
        name, _, role = user.partition(":")
        if not name or role not in ROLES:
            raise WwtsError(f"AIRFLOW_USERS: {user!r} is not name:role with one of the roles {', '.join(ROLES)}.")
        names.append(name)
    return names


def main() -> int:
    """Writes the file that Airflow reads; ``admin`` has the password of ``AIRFLOW_ADMIN_PASSWORD``."""
    path = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    users = os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"]
    try:
        new = write(path, users, {"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]})
    except WwtsError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    if new:
        print(f"New passwords for {', '.join(new)} are in {path}.")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
