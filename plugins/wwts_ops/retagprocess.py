"""Does one shard of a re-tagging under the code packed with a model version; :mod:`wwts_ops.packed` starts it."""

from __future__ import annotations

import sys

from wwts_ops import shardprocess


def main(overlay: str, contract: str, stage: str, key: str, shard: str) -> int:
    """Does shard ``shard`` of stage ``stage``: ``embed`` of backfill ``key``, or ``retag`` of retag ``key``.

    ``overlay``, ``contract`` and the value are as in :func:`wwts_ops.shardprocess.work`.
    """

    def task(given: dict[str, object]) -> None:
        from wwts_ops import retagging, settings

        stages = {"embed": retagging.embed_here, "retag": retagging.retag_here}
        stages[stage](settings.load(**given), key, int(shard))

    return shardprocess.work(overlay, contract, task)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
