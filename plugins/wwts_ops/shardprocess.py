"""Tags one shard under the code packed with a model version; :mod:`wwts_ops.packed` starts it, from an overlay.

Settings come as a line of JSON on standard input; its end means that whoever started this process is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path


def main(overlay: str, contract: str, run_key: str, shard: str) -> int:
    """Tags shard ``shard`` of plan ``run_key``; otherwise as :func:`work`."""

    def tag(given: dict[str, object]) -> None:
        from wwts_ops import night, settings

        night.tag_here(settings.load(**given), run_key, int(shard))

    return work(overlay, contract, tag)


def work(overlay: str, contract: str, task: Callable[[dict[str, object]], object]) -> int:
    """Does ``task`` with the settings that come on standard input.

    Args:
        overlay: the folder that all of our code must come from.
        contract: :func:`wwts_ops.packed.contract` of the release that asks.
        task: imports what it needs only when it is called.

    Returns:
        0 when it is done; 1 when not, after an event that says why.
    """
    with open(0, "rb", buffering=0, closefd=False) as given:
        line = given.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        return _checked(json.loads(line), Path(overlay), contract, task)
    except (ImportError, AttributeError, TypeError, NameError, SyntaxError) as error:
        # What code of another release that no longer fits ends with.
        traceback.print_exc()
        return _refuse("unfit", f"{type(error).__name__}: {error}")


def _checked(
    given: dict[str, object], overlay: Path, contract: str, task: Callable[[dict[str, object]], object]
) -> int:
    import wwts_ops
    from wwts_ops import logs, packed
    from wwts_ops.errors import UnavailableError, WwtsError

    if not Path(wwts_ops.__file__).is_relative_to(overlay):
        return _refuse("unfit", f"{wwts_ops.__file__} was loaded instead of {overlay}")
    if packed.contract() != contract:
        return _refuse("unfit", "it writes other columns")
    logs.configure("json")
    try:
        task(given)
    except UnavailableError as error:
        return _refuse("unavailable", str(error))
    except WwtsError as error:
        return _refuse("refused", str(error))
    return 0


def _refuse(kind: str, reason: str) -> int:
    event = {"event": "shard_refused", "level": "error", "kind": kind, "reason": reason}
    print(json.dumps(event, ensure_ascii=False), flush=True)  # noqa: T201
    return 1


def _end_with_parent() -> None:
    """Ends this process, wherever it is, when the pipe's other end is closed: every write is whole or absent."""
    # Not through sys.stdin, whose lock would be held when Python shuts down.
    while os.read(0, 1):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
