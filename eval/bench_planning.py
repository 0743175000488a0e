"""How long a plan takes and how much memory: ``python -m eval.bench_planning [ROWS]`` (default: a million).

Each line plans a manifest against as many known rows, in a fresh process whose peak memory is read when it ends
(so Python and all imports count). One row in a thousand is new. Not a test: nothing here has a time limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import duckdb

from eval.memory import peak_memory_mb

HOST = "img.shop.example"
#: One image in this many was not there the night before.
NEW = 1000
PIN = ("wwts-tagger", "1", "0" * 64, "0" * 64, "1")


def main() -> None:
    """Prints one line a manifest: seconds of the plan, seconds of the process, peak RSS."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="wwts-bench-") as folder:
        print(f"{rows:,} manifest rows against {rows - rows // NEW:,} known rows, {rows // NEW:,} of them new")  # noqa: T201
        print(f"{'manifest':34}{'plan s':>8}{'process s':>11}{'CPU s':>8}{'peak RSS MB':>13}{'new':>8}")  # noqa: T201
        for case in _cases(Path(folder), rows):
            _child("commit", case / "store", case / "yesterday")
            result, seconds, cpu, peak = _child("propose", case / "store", case / "today")
            plan = f"{result['seconds']:>8.2f}{seconds:>11.2f}{cpu:>8.2f}{peak:>13.0f}{result['images']:>8,}"
            print(f"{case.name:34}{plan}", flush=True)  # noqa: T201


def _cases(folder: Path, rows: int) -> list[Path]:
    """A folder a case, with a manifest in ``yesterday`` and one in ``today``."""
    urls = f"'https://{HOST}/products/' || i // 1000 || '/' || i || '.jpg'"
    missing = "'/no-such-folder/' || i // 1000 || '/' || i || '.jpg'"
    kinds = {
        "Parquet, with etags": (urls, ", md5(i::VARCHAR) AS etag", "parquet"),
        "Parquet, https, no fingerprint": (urls, "", "parquet"),
        "Parquet, local, files absent": (missing, "", "parquet"),
        "CSV, with etags": (urls, ", md5(i::VARCHAR) AS etag", "csv"),
    }
    cases = []
    for name, (uri, more, kind) in kinds.items():
        case = folder / name
        case.mkdir()
        for day, condition in (("yesterday", f"i % {NEW} <> 7"), ("today", "true")):
            (case / day).mkdir()
            _write(case / day / f"manifest.{kind}", f"{uri} AS uri{more} FROM range({rows}) t(i) WHERE {condition}")
        cases.append(case)
    return cases


def _write(path: Path, columns: str) -> None:
    with duckdb.connect() as con:
        con.execute(
            f"""COPY (SELECT 'img/' || lpad(i::VARCHAR, 8, '0') AS image_id,
            'SKU' || lpad((i // 4)::VARCHAR, 9, '0') AS sku_id, '商品标题' || i AS title, '类目' || i % 50 AS category,
            i % 3 AS priority, {columns}) TO '{path}'"""
        )


def _child(action: str, store: Path, manifest: Path) -> tuple[dict[str, float], float, float, float]:
    """Runs one action in a process of its own: what it printed, its seconds, its CPU seconds (which other work does not
    stretch) and its peak RSS in MB.
    """
    command = [sys.executable, "-m", "eval.bench_planning", action, str(store), str(next(manifest.iterdir()))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "WWTS_HTTPS_HOSTS": HOST}) as process:
        started = time.perf_counter()
        out = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{action} failed with exit code {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    told = json.loads(out)
    return told, time.perf_counter() - started, cpu, told["peak_mb"]


def _act(action: str, folder: str, manifest: str) -> None:
    from wwts_ops import planning, settings
    from wwts_ops.storage import Store

    chosen = settings.load(store=folder, catalog=manifest, catalog_mode="delta")
    store = Store.of(chosen)
    started = time.perf_counter()
    proposal = planning.propose(store, chosen, planning.Request(date(2026, 1, 2), planning.Pin(*PIN)))
    seconds = time.perf_counter() - started
    if action == "commit":
        planning.commit(store, proposal)
        store.write_json(planning.done_key(proposal.plan.run_key), {"images": 0, "images_per_second": 0.0})
    print(json.dumps({"seconds": seconds, "images": proposal.plan.images, "peak_mb": peak_memory_mb()}))  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) == 4:
        _act(*sys.argv[1:])
    else:
        main()
