"""A shop of a few tagged images and labels, and files of corrections in every format."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl import Workbook
from written_nights import NOON, Nights, Outcome, auto, is_tagged, tag_row

from wwts_ops import corrections, planning, publish, taxonomy
from wwts_ops.corrections import Answer, Imported
from wwts_ops.planning import Plan
from wwts_ops.schemas import QUARANTINE, TAGS
from wwts_ops.settings import Settings
from wwts_ops.taxonomy import Label, Taxonomy

LABELS = (
    Label("t:苹果", "苹果", "apple", "红富士|平果", "食品 > 水果"),
    Label("t:梨", "梨", "pear", "雪梨", "食品 > 水果"),
    Label("t:桃", "桃🍑", category_path="食品 > 水果"),
    Label("t:杯1", "杯子"),
    Label("t:杯2", "杯子"),
    Label("t:停", "停售品", enabled=False),
)
Row = Sequence[Any]


def content_of(name: str, etag: str = "1") -> str:
    return hashlib.sha256(f"{name} {etag}".encode()).hexdigest()


@dataclass
class ImportShop:
    """Images lie in ``folder``; each etag is another content. The taxonomy is ``LABELS``."""

    folder: Path
    database_url: str
    nights: Nights = field(init=False)
    files: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.nights = Nights(self.folder, self.folder / "store")
        taxonomy.put(self.nights.store, Taxonomy("made", LABELS), "li", None)

    @property
    def settings(self) -> Settings:
        return self.nights.settings(database_url=self.database_url, release="live")

    def night(self, outcomes: Mapping[str, Outcome], catalog: Mapping[str, str] | None = None) -> Plan:
        """One night over the images (name to etag, all of the outcomes by default)."""
        listed = dict(catalog or dict.fromkeys(outcomes, "1"))
        plan = self.nights.plan(listed)
        for number in range(plan.shards):
            names = self.nights.images(plan, number)
            tags = [
                tag_row(plan, name, outcomes[name], NOON, self._where(name, listed[name]))
                for name in names
                if is_tagged(outcomes[name])
            ]
            said = {"run_id": plan.run_key, "seen_at": NOON}
            rejected = [
                {"image_id": name, "uri": self.uri(name), "reason": outcomes[name], **said}
                for name in names
                if not is_tagged(outcomes[name])
            ]
            self.nights.put(plan, number, "tags", tags, TAGS)
            self.nights.put(plan, number, "quarantine", rejected, QUARANTINE)
            self.nights.mark(plan, number)
        self.nights.store.write_json(planning.done_key(plan.run_key), {"images": plan.images})
        return plan

    def publish(self) -> None:
        publish.publish(self.nights.store, self.settings)

    def uri(self, name: str) -> str:
        return f"{self.folder}/{name}.jpg"

    def _where(self, name: str, etag: str) -> dict[str, Any]:
        # 副本 of an image is the same bytes.
        return {"uri": self.uri(name), "content_sha256": content_of(name.removeprefix("副本"), etag)}

    def file(self, header: str, *rows: Row, suffix: str = ".csv", encoding: str = "utf-8-sig") -> Path:
        """A file with these columns (joined by commas) and rows."""
        self.files += 1
        path = self.folder / f"答案 {self.files}{suffix}"
        names = header.split(",")
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]), path)
        elif suffix == ".xlsx":
            book = Workbook()
            for row in (names, *rows):
                book.worksheets[0].append(list(row))
            book.save(path)
        else:
            text = io.StringIO()
            writer = csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([names, *rows])
            path.write_bytes(text.getvalue().encode(encoding))
        return path

    def bring(self, header: str, *rows: Row, author: str = "li") -> Imported:
        """Imports a file with these columns and rows."""
        return self.bring_file(self.file(header, *rows), author)

    def bring_file(self, path: Path, author: str = "li") -> Imported:
        return corrections.import_answers(self.nights.store, self.settings, path, author)

    def bring_weak(self, header: str, *rows: Row) -> Imported:
        return corrections.import_weak(self.nights.store, self.settings, self.file(header, *rows), "li")

    def answers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = corrections.frozen(self.settings).to_pylist()
        return found

    def in_force(self) -> dict[str, tuple[str, list[str]]]:
        """Kind and labels that count, by content."""
        rows = corrections.in_force(corrections.frozen(self.settings)).to_pylist()
        return {row["content_sha256"]: (row["kind"], row["labels"]) for row in rows}

    def answer(self, name: str, *labels: str, **more: Any) -> None:
        """An answer given on the page, now."""
        given: dict[str, Any] = {"answered_at": NOON, "answered_by": "wang", "source": "page", "kind": "correct"}
        given |= {"shown_because": "review", "labels": labels, "content_sha256": content_of(name)} | more
        corrections.record(self.settings, [Answer(answer_id=f"page {len(self.answers())}", **given)])

    def labels(self) -> dict[str, Label]:
        found = taxonomy.current(self.nights.store)
        assert found is not None
        return found.by_id


FRUIT: dict[str, Outcome] = {
    "a": auto("苹果"),
    "副本a": auto("苹果"),
    "b": auto("梨"),
    "c": auto("桃"),
    "图片/丁 🍎": auto("梨"),
}
