"""The daily page: one self-contained HTML file in Chinese about one date's runs.

:func:`gather` counts, :func:`render` draws, :func:`build` does both and writes. The page asks nobody for
anything: styles, charts and thumbnails are inside it, and its Content-Security-Policy forbids the rest.
No original is ever opened; a picture without a thumbnail is shown as an empty box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa

from wwts_ops import planning, published, schemas, taxonomy, warehouse, webpage
from wwts_ops.decisions import AUTO, FORCED_REVIEW, REVIEW
from wwts_ops.images import REASONS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

#: How much the page shows: enough for a look over coffee, small enough to mail (about 1.5 MB with every thumbnail).
GRID = 24
FORCED = 12
TOP_LABELS = 20
TOP_CATEGORIES = 20
EXAMPLES = 5
BINS = 10

#: Of the ten bins, ``1e-6`` keeps a float32 0.7 (0.69999999) in the one that begins at 0.7.
_BIN = f"least(floor(confidence::DOUBLE * {BINS} + 1e-6)::INT, {BINS - 1})"
_SPLIT = ", ".join(f"count(*) FILTER (decision = '{name}')" for name in (AUTO, REVIEW, FORCED_REVIEW))
_KEY = "md5_number_lower(content_sha256)"
#: One of each reason, then another of each: twelve bottles of wine would hide the knife.
_TURN = (
    "row_number() OVER (PARTITION BY min(split_part(decision_reason, ';', 1)) "
    f"ORDER BY max(confidence) DESC, min({_KEY}))"
)


@dataclass(frozen=True)
class Split:
    """How many images each decision got."""

    auto: int = 0
    review: int = 0
    forced: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.auto + self.review + self.forced


@dataclass(frozen=True)
class Run:
    """One run of the date. ``seconds`` is the sum over its finished shards."""

    run_key: str
    sequence: int
    catalog: str
    model_name: str
    model_version: str
    taxonomy_version: str
    images: int
    shards: int
    shards_done: int
    images_done: int
    seconds: float


@dataclass(frozen=True)
class Tag:
    """A label with its score, 0–1."""

    label_id: str
    label: str
    score: float


@dataclass(frozen=True)
class Picture:
    """A content of the date that the page shows; ``copies`` images share it.

    ``tags`` has the three best at most. ``skipped`` names the switched-off label that would have been first, if any.
    ``thumbnail`` is a JPEG, or None.
    """

    image_id: str
    content_sha256: str
    decision: str
    reason: str
    skipped: str
    tags: tuple[Tag, ...]
    copies: int
    thumbnail: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True)
class LabelCount:
    """A label and how many images have it as their first."""

    label_id: str
    label: str
    category: str
    split: Split


@dataclass(frozen=True)
class CategoryCount:
    """A top-level category; ``name`` is empty for images without one, None for all the smaller ones together."""

    name: str | None
    split: Split


@dataclass(frozen=True)
class Rejected:
    """An image in quarantine."""

    image_id: str
    detail: str


@dataclass(frozen=True)
class ReasonCount:
    """A reason for quarantine, in Chinese, with the first few images by id."""

    code: str
    text: str
    count: int
    examples: tuple[Rejected, ...]


@dataclass(frozen=True)
class BrokenRow:
    """A manifest row that could not be read; ``line`` counts from 1."""

    line: int
    image_id: str
    reason: str


@dataclass(frozen=True)
class Published:
    """What consumers read now (not: on the page's date).

    ``answered`` images go by what a person said of them, ``older`` by another version than ``model_version``, which
    tags now.
    """

    snapshot: str
    rows: int
    live: int
    pending: int
    answered: int = 0
    model_version: str = ""
    older: int = 0


@dataclass(frozen=True)
class Report:
    """Everything that the page shows. Counts are of rows; one image tagged by two runs of the date counts twice.

    ``bins[i]`` holds confidences in [i/10, (i+1)/10), the last one 1.0 too; ``unscored`` those without any.
    ``started_at``, ``ended_at``: the first and last image tagged; all times are aware, in UTC.
    """

    date: date
    made_at: datetime
    timezone: str = "Asia/Shanghai"
    release: str = "shadow"
    runs: tuple[Run, ...] = ()
    split: Split = Split()
    duplicates: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    labels: tuple[LabelCount, ...] = ()
    distinct_labels: int = 0
    categories: tuple[CategoryCount, ...] = ()
    bins: tuple[Split, ...] = (Split(),) * BINS
    unscored: int = 0
    least_certain: tuple[Picture, ...] = ()
    forced: tuple[Picture, ...] = ()
    sample: tuple[Picture, ...] = ()
    quarantine: tuple[ReasonCount, ...] = ()
    carried_over: int = 0
    delisted: int = 0
    broken_rows: int = 0
    broken: tuple[BrokenRow, ...] = ()
    published: Published | None = None
    notices: tuple[str, ...] = ()

    @property
    def quarantined(self) -> int:
        """Images that could not be read."""
        return sum(reason.count for reason in self.quarantine)

    @property
    def processed(self) -> int:
        """Images tagged or put in quarantine."""
        return self.split.total + self.quarantined

    @property
    def shards_left(self) -> int:
        """Shards without a done-marker; their rows may be missing from the page."""
        return sum(run.shards - run.shards_done for run in self.runs)

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the finished shards, or None when there is none."""
        seconds = sum(run.seconds for run in self.runs)
        return sum(run.images_done for run in self.runs) / seconds if seconds > 0 else None


def build(store: Store, settings: Settings, date: date) -> str:
    """Writes the page of ``date`` and returns its store key.

    Raises:
        UnavailableError: when the store refuses.
    """
    report = gather(store, date, settings.timezone)
    if report.published is None:
        report = replace(report, release=settings.release or "shadow")
    key = f"reports/date={date.isoformat()}/index.html"
    store.write_bytes(key, render(report).encode())
    return key


def gather(store: Store, date: date, timezone: str = "Asia/Shanghai") -> Report:
    """Counts what the runs of ``date`` did; memory does not grow with the length of the tag lists.

    Raises:
        UnavailableError: when the store refuses.
    """
    plans = [plan for plan in planning.claimed(store) if str(plan.date) == date.isoformat()]
    pointer = published.current(store)
    report = replace(
        Report(date, datetime.now(UTC), timezone),
        notices=notices(plans, ZoneInfo(timezone)),
        runs=tuple(_run(store, plan) for plan in plans),
        delisted=sum(plan.delisted for plan in plans),
        published=None if pointer is None else _published(pointer.value),
        release="shadow" if pointer is None else str(pointer.value.get("release", "shadow")),
        **_left_by(plans),
    )
    with warehouse.connect() as con:
        return replace(report, **_Night(con, store, date, [plan.run_key for plan in plans]).counted())


def _run(store: Store, plan: planning.Plan) -> Run:
    prefix = f"runs/{plan.run_key}/"
    markers = [store.read_json(key) for key in store.list(prefix, ".json") if key.startswith(f"{prefix}shard-")]
    return Run(
        plan.run_key,
        plan.sequence,
        plan.catalog,
        plan.model_name,
        plan.model_version,
        plan.taxonomy_version,
        plan.images,
        plan.shards,
        shards_done=len(markers),
        images_done=sum(int(marker["images"]) for marker in markers),
        seconds=sum(float(marker["seconds"]) for marker in markers),
    )


def notices(plans: Iterable[planning.Plan], zone: ZoneInfo) -> tuple[str, ...]:
    """What was out of the ordinary when ``plans`` were made, a Chinese sentence each."""
    away = dict.fromkeys((plan.model_version, plan.away_since) for plan in plans if plan.away_since)
    return tuple(
        f"模型登记服务（MLflow）当晚无法访问，沿用最近一次确认的模型第 {webpage.text(version)} 版"
        f"（{datetime.fromisoformat(since).astimezone(zone):%m-%d %H:%M} 确认）。"
        for version, since in away
    )


def _left_by(plans: Sequence[planning.Plan]) -> dict[str, Any]:
    """What stayed undone: of each catalog its last run says it, for that run saw what the earlier ones had left."""
    last = list({plan.catalog: plan for plan in sorted(plans, key=lambda plan: plan.sequence)}.values())
    broken = [
        BrokenRow(int(row["line"]), str(row["image_id"] or ""), str(row["reason"])) for p in last for row in p.broken
    ]
    return {
        "carried_over": sum(plan.carried_over for plan in last),
        "broken_rows": sum(plan.broken_rows for plan in last),
        "broken": tuple(broken),
    }


def _published(pointer: dict[str, Any]) -> Published:
    # Snapshots of before there were answers say nothing of them.
    version, versions = str(pointer.get("model_version", "")), pointer.get("model_versions", {})
    return Published(
        str(pointer["snapshot"]),
        int(pointer["rows"]),
        int(pointer["live"]),
        int(pointer["pending"]),
        int(pointer.get("answered", 0)),
        version,
        older=sum(int(count) for name, count in versions.items() if name != version),
    )


class _Night:
    """The rows of one date's runs, behind DuckDB."""

    def __init__(self, con: duckdb.DuckDBPyConnection, store: Store, day: date, run_keys: Iterable[str]) -> None:
        self._con = con
        self._store = store
        self._day = day.isoformat()
        self._runs = ", ".join("'" + key.replace("'", "''") + "'" for key in run_keys) or "NULL"
        self._view("tags", schemas.TAGS)
        self._view("quarantine", schemas.QUARANTINE)

    def _view(self, name: str, schema: pa.Schema) -> None:
        keys = self._store.list(f"{name}/date={self._day}", ".parquet")
        warehouse.view(self._con, f"all_{name}", self._store, keys, schema)
        self._con.execute(f"CREATE VIEW {name} AS SELECT * FROM all_{name} WHERE run_id IN ({self._runs})")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return list(self._con.execute(query).fetchall())

    def counted(self) -> dict[str, Any]:
        """All fields of the report that the rows say."""
        quarantine = {"quarantine": self.quarantine()}
        if not self._rows("SELECT 1 FROM tags LIMIT 1"):
            return quarantine
        return {**quarantine, **self.totals(), **self.charts(), **self.pictures()}

    def totals(self) -> dict[str, Any]:
        """Fields ``split``, ``duplicates``, ``distinct_labels``, ``unscored``, ``started_at``, ``ended_at``."""
        duplicates, labels, unscored, first, last, *split = self._rows(
            f"""SELECT count(*) FILTER (source = 'duplicate'), count(DISTINCT label_id),
                count(*) FILTER (confidence IS NULL), epoch_us(min(tagged_at)), epoch_us(max(tagged_at)), {_SPLIT}
                FROM tags"""
        )[0]
        return {
            "split": Split(*split),
            "duplicates": duplicates,
            "distinct_labels": labels,
            "unscored": unscored,
            "started_at": datetime.fromtimestamp(first / 1e6, UTC),
            "ended_at": datetime.fromtimestamp(last / 1e6, UTC),
        }

    def charts(self) -> dict[str, Any]:
        """Fields ``labels``, ``categories``, ``bins``."""
        bins = dict.fromkeys(range(BINS), Split())
        for number, *split in self._rows(f"SELECT {_BIN}, {_SPLIT} FROM tags WHERE confidence IS NOT NULL GROUP BY 1"):
            bins[number] = Split(*split)
        labels = self._rows(
            f"""SELECT label_id, coalesce(min(label_zh), label_id), coalesce(min(category_path), ''), {_SPLIT}
                FROM tags WHERE label_id IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {TOP_LABELS}"""
        )
        categories = self._rows(
            f"""SELECT trim(split_part(coalesce(category_path, ''), '>', 1)), {_SPLIT}
                FROM tags GROUP BY 1 ORDER BY count(*) DESC, 1"""
        )
        return {
            "bins": tuple(bins.values()),
            "labels": tuple(
                LabelCount(label_id, name, category, Split(*split)) for label_id, name, category, *split in labels
            ),
            "categories": _categories([CategoryCount(name, Split(*split)) for name, *split in categories]),
        }

    def pictures(self) -> dict[str, Any]:
        """Fields ``least_certain``, ``forced``, ``sample``: contents first, then one pass for their rows."""
        # md5 only shuffles: an order that nothing about the picture decides, the same each time.
        shuffled = f"min(md5_number_lower('{self._day}' || content_sha256))"
        chosen = {
            "least_certain": self._choose(f"decision = '{REVIEW}'", "min(confidence) NULLS FIRST, 1", GRID),
            "forced": self._choose(f"decision = '{FORCED_REVIEW}'", f"{_TURN}, max(confidence) DESC, 1", FORCED),
            "sample": self._choose("true", f"{shuffled}, 1, 2", GRID),
        }
        shown = self._pictures({key for keys in chosen.values() for key in keys})
        return {name: tuple(shown[key] for key in keys) for name, keys in chosen.items()}

    def _choose(self, condition: str, order: str, limit: int) -> list[tuple[Any, ...]]:
        return self._rows(
            f"SELECT {_KEY}, decision FROM tags WHERE {condition} GROUP BY 1, 2 ORDER BY {order} LIMIT {limit}"
        )

    def _pictures(self, keys: set[tuple[Any, ...]]) -> dict[tuple[Any, ...], Picture]:
        rows = self._rows(
            f"""SELECT {_KEY}, decision, count(*),
                arg_min({{'image_id': image_id, 'content_sha256': content_sha256, 'decision': decision,
                          'reason': coalesce(decision_reason, ''), 'tags': tags[:3]}}, image_id)
                FROM tags WHERE {_KEY} IN ({", ".join(str(key) for key, _ in keys)}) GROUP BY 1, 2"""
        )
        return {
            (key, decision): self._picture(row, copies)
            for key, decision, copies, row in rows
            if (key, decision) in keys
        }

    def _picture(self, row: dict[str, Any], copies: int) -> Picture:
        reason, _, skipped = row.pop("reason").partition(";skipped_off:")
        tags = tuple(Tag(tag["label_id"], tag["label_zh"] or tag["label_id"], tag["score"]) for tag in row.pop("tags"))
        name = self._names.get(skipped, skipped) if skipped else ""
        thumbnail = webpage.thumbnail(self._store, row["content_sha256"])
        return Picture(**row, reason=reason, skipped=name, tags=tags, copies=copies, thumbnail=thumbnail)

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names by label id, for labels that are in no tag because they are switched off."""
        current = taxonomy.current(self._store)
        return {} if current is None else {label.label_id: label.label_zh for label in current.labels}

    def quarantine(self) -> tuple[ReasonCount, ...]:
        """How many images each reason has, and the first few of them."""
        rows = self._rows(
            f"""SELECT reason, count(*), arg_min({{'image_id': image_id, 'detail': detail}}, image_id, {EXAMPLES})
                FROM quarantine GROUP BY 1 ORDER BY 2 DESC, 1"""
        )
        return tuple(
            ReasonCount(
                code,
                REASONS.get(code, code),
                count,
                tuple(Rejected(row["image_id"], row["detail"] or "") for row in examples),
            )
            for code, count, examples in rows
        )


def _categories(found: Sequence[CategoryCount]) -> tuple[CategoryCount, ...]:
    """The largest as they are, the others as one."""
    kept, rest = found[:TOP_CATEGORIES], [category.split for category in found[TOP_CATEGORIES:]]
    if not rest:
        return tuple(kept)
    other = Split(sum(s.auto for s in rest), sum(s.review for s in rest), sum(s.forced for s in rest))
    return (*kept, CategoryCount(None, other))


def render(report: Report) -> str:
    """The page: one HTML document that loads nothing."""
    environment = webpage.environment()
    environment.filters |= {"short": _short, "why": _why}
    zone = ZoneInfo(report.timezone)
    return environment.get_template("report.html.j2").render(
        report=report,
        day=_day(report.date),
        made_at=f"{report.made_at.astimezone(zone):%Y-%m-%d %H:%M}",
        span=_span(report, zone),
        columns=_columns(report.bins),
    )


@dataclass(frozen=True)
class Column:
    """A column of the histogram: its whole and its parts, as heights in percent of the tallest column."""

    low: int
    split: Split
    height: float
    parts: tuple[tuple[str, float, float], ...]


def _columns(bins: Sequence[Split]) -> list[Column]:
    """Columns with parts ``(decision, top, height)``, in percent of the chart, from the top of it."""
    tallest = max(split.total for split in bins) or 1
    columns = []
    for number, split in enumerate(bins):
        top, parts = 100.0, []
        for name, count in (("auto", split.auto), ("review", split.review), ("forced", split.forced)):
            height = round(100 * count / tallest, 3)
            top -= height
            parts.append((name, round(top, 3), height))
        columns.append(Column(number * 100 // BINS, split, 100 * split.total / tallest, tuple(parts)))
    return columns


def _span(report: Report, zone: ZoneInfo) -> str:
    """From the first to the last image; with days when a run was finished on another one."""
    if report.started_at is None or report.ended_at is None:
        return ""
    first, last = report.started_at.astimezone(zone), report.ended_at.astimezone(zone)
    layout = "%H:%M" if first.date() == last.date() == report.date else "%m-%d %H:%M"
    return f"{first:{layout}} – {last:{layout}}"


_WEEKDAYS = "一二三四五六日"


def _day(day: date) -> str:
    return f"{day.year}年{day.month}月{day.day}日 星期{_WEEKDAYS[day.weekday()]}"


def _short(value: int) -> str:
    """A figure above a narrow column."""
    return f"{value:,}" if value < 10_000 else f"{value / 10_000:,.1f}万"


def _why(picture: Picture) -> str:
    """The decision's reason as a sentence."""
    return webpage.decision_reason(picture.reason, picture.skipped)
