"""How fast a tagger is as it is served: ``python -m eval.benchmark --image-dir DIR --threshold 0.3``.

One picture at a time, bytes in and Chinese tags out, warm, on one core. Exits 1 when the 95th percentile is over the
threshold, 2 when it cannot measure, else 0. The gate measures by the same code (`eval.latency`).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eval import latency, serving
from eval.reports import LatencyReport
from eval.serving import Serving, Subject
from wwts_ops import logs, registry, taxonomy
from wwts_ops import settings as settings_module
from wwts_ops.catalog import IMAGE_SUFFIXES
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

out = Console(highlight=False)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class _Pictures:
    """What was found in a folder; ``skipped`` files could not be read or are too large."""

    data: list[bytes]
    skipped: int


def main() -> None:
    """Entry point: what cannot be measured is one sentence and exit code 2, never a traceback."""
    try:
        app()
    except WwtsError as error:
        print(f"eval.benchmark: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


@app.command(help=__doc__)
def benchmark(
    image_dir: Annotated[Path, typer.Option(help="folder of typical images; folders in it are searched too")],
    threshold: Annotated[float, typer.Option(help="seconds that the 95th percentile may take")],
    count: Annotated[int, typer.Option(min=1, help="images, evenly spread over the folder")] = latency.PICTURES,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; the median of their percentiles counts")] = 3,
    version: Annotated[
        str, typer.Option(help="a registered version, measured in turns with the champion; default: the champion")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="the report as JSON, for machines")] = False,  # noqa: FBT002
) -> None:
    """Measures, prints and judges."""
    logs.configure("json", level=40)
    if not threshold > 0:
        raise WwtsError(f"--threshold must be seconds above 0, not {threshold:g}.")
    found = settings_module.load()
    pictures = _pictures(image_dir, count, found.max_image_bytes)
    with tempfile.TemporaryDirectory(prefix="wwts-benchmark-") as scratch:
        subjects = _subjects(found, version, Path(scratch))
        report = _measure(found, subjects, pictures, repeats)
    if as_json:
        print(report.model_dump_json(indent=1))  # noqa: T201
    else:
        _show(report, subjects, pictures, count)
    raise typer.Exit(_judge(report, threshold, as_json=as_json))


def _pictures(folder: Path, count: int, limit: int) -> _Pictures:
    if not folder.is_dir():
        raise WwtsError(f"--image-dir: {folder} is no folder; name one that holds typical images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise WwtsError(f"--image-dir: {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    chosen = latency.evenly(paths, count)
    data = list(_read(chosen, limit))
    if not data:
        raise WwtsError(f"--image-dir: none of the {len(chosen)} images in {folder} can be opened; see to its access.")
    return _Pictures(data, len(chosen) - len(data))


def _read(paths: Sequence[Path], limit: int) -> Iterator[bytes]:
    """The bytes of each that can be opened and is no larger than the night would take."""
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            print(f"eval.benchmark: {path} is skipped: {error.strerror}", file=sys.stderr)  # noqa: T201
            continue
        if len(data) <= limit:
            yield data


def _subjects(found: Settings, version: str, scratch: Path) -> dict[str, Subject]:
    """What is measured, by the names that `latency.measure` knows."""
    champion = registry.champion(found) if registry.exists(found) else None
    if not version:
        return {"challenger": serving.of_version(found, champion) if champion else serving.embedded(found, scratch)}
    if champion is None:
        raise WwtsError(f"There is no champion to measure version {version} beside; run `wwts init` first.")
    asked = serving.of_version(found, registry.resolve(found, version))
    return {"challenger": asked, "champion": serving.of_version(found, champion)}


def _measure(found: Settings, subjects: dict[str, Subject], pictures: _Pictures, repeats: int) -> LatencyReport:
    # Whoever only measures puts no taxonomy in force.
    names = taxonomy.current(Store.of(found)) or taxonomy.embedded(found.forced_review)
    with ExitStack() as stack:
        servings = {name: stack.enter_context(Serving(subject, names, found)) for name, subject in subjects.items()}
        return latency.measure(servings, pictures.data, repeats)


def _show(report: LatencyReport, subjects: dict[str, Subject], pictures: _Pictures, wanted: int) -> None:
    table = Table("tagger", "P50, ms", "P95, ms", "P99, ms", "images/s", title="One picture at a time")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measured in (("challenger", report.challenger), ("champion", report.champion)):
        if measured is None:
            continue
        numbers = (f"{seconds * 1000:.1f}" for seconds in (measured.p50, measured.p95, measured.p99))
        title = subjects[name].name + (" (champion)" if name == "champion" else "")
        table.add_row(title, *numbers, f"{measured.images_per_second:.1f}")
    out.print(table)
    repeats = len(report.challenger.p95_repeats)
    skipped = len(pictures.data) + pictures.skipped - report.images
    fewer = f" of {wanted} wanted" if report.images < wanted else ""
    unread = f", {skipped} unreadable left out" if skipped else ""
    out.print(f"{report.images} images{fewer}{unread}, {repeats} repeats, medians", markup=False)
    out.print(report.hardware, markup=False, soft_wrap=True)


def _judge(report: LatencyReport, threshold: float, *, as_json: bool) -> int:
    p95 = report.challenger.p95
    over = p95 > threshold
    line = f"P95 of {p95:.3f} s is {'over' if over else 'within'} the threshold of {threshold:g} s."
    print(line, file=sys.stderr if as_json or over else sys.stdout)
    return 1 if over else 0


if __name__ == "__main__":
    main()
