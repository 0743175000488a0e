"""Runs DAGs one after another in one process, as `wwts run` would each: Airflow's start is paid once.

Run as a program: the argument is a JSON list of ``[dag_id, conf]``; the last line is the JSON list of exit codes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Step = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Chain:
    """What a chain of runs said.

    Attributes:
        codes: of each step; 0 is a success.
        events: every line that was JSON.
    """

    codes: list[int]
    events: list[dict[str, Any]]

    def said(self) -> str:
        """All of it, to search in."""
        return json.dumps(self.events, ensure_ascii=False)


def run(settings: Any, steps: Sequence[Step], folder: Path) -> Chain:
    """Runs ``steps`` with ``settings`` in a fresh process."""
    import airflow_template

    from wwts_ops import dagrun, servers

    airflow_template.lay(settings)
    with dagrun._home(settings) as home:
        environment = {**servers.airflow_environment(settings, home), "AIRFLOW__LOGGING__JSON_LOGS": "True"}
        environment |= {"WWTS_RETRY_SECONDS": "0", "WWTS_RELEASE": "live", "WWTS_DEVICE": "cpu"}
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(steps)],
            env={**os.environ, **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    events = [json.loads(line) for line in lines[:-1] if line.startswith("{")]
    return Chain(json.loads(lines[-1]), events)


if __name__ == "__main__":
    from wwts_ops import dagprocess

    codes = [dagprocess.main(dag_id, json.dumps(conf)) for dag_id, conf in json.loads(sys.argv[1])]
    sys.stdout.write(f"\n{json.dumps(codes)}\n")
