"""A shop whose two models differ on exactly the contents we say, with images, answers and thumbnails to go with it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from gate_shop import KINDS, WRONG, GateShop

from wwts_ops import corrections, images, tracking
from wwts_ops.corrections import Answer
from wwts_ops.embeddings import EmbeddingWriter, part_key
from wwts_ops.schemas import PUBLISHED
from wwts_ops.storage import Store
from wwts_ops.tagger import Head, Tagger, rehead
from wwts_ops.tracking import ModelVersion

LABELS = [label_id for _, label_id in KINDS.values()]
#: What the champion has right of the 48 cases, and what the challenger has.
OLD_RIGHT, NEW_RIGHT = set(range(36)), set(range(6, 48))
#: Contents that only one of the two models is sure enough of: their label has a threshold that no score reaches.
OLD_UNSURE, NEW_UNSURE = LABELS[2], LABELS[1]
#: What the challenger has learned from.
LEARNED = {36, 44}
#: Of :meth:`DiffShop.record_answers`: content, answered labels, chance of being shown, of those given within a month.
RECENT: dict[int, tuple[tuple[str, ...], float | None]] = {
    0: ((LABELS[0],), 0.5),
    7: ((LABELS[0],), 0.25),
    36: ((LABELS[3],), 0.1),
    37: ((LABELS[3],), None),
    38: ((LABELS[3],), 1.0),
    39: ((LABELS[0],), None),
    44: ((LABELS[1], LABELS[3]), None),
    46: (("shop:新品",), None),
}
LABELLED = {**RECENT, 13: ((LABELS[1],), None)}
#: Contents that people answered, with a label or without.
ANSWERED = {*LABELLED, 40}
UNKNOWN_CONTENT = "f" * 64
HOSTILE = '"><script>alert(1)</script>|`*.jpg'
NOW = datetime.now(UTC)


@dataclass(frozen=True)
class DiffShop:
    """48 contents, each shown by none, one or three images; embeddings in two parts that overlap."""

    gate: GateShop

    @cached_property
    def store(self) -> Store:
        return Store.of(self.gate.settings)

    @cached_property
    def contents(self) -> list[str]:
        return [hashlib.sha256(case.path.read_bytes()).hexdigest() for case in self.gate.cases]

    def label(self, number: int) -> str:
        """What is right for content ``number``."""
        return self.gate.cases[number].label_id

    @staticmethod
    def copies(number: int) -> int:
        return (0, 1, 3)[number % 3]

    def said(self, number: int) -> tuple[tuple[str, str], tuple[str, str]]:
        """Label and decision by the champion and by the challenger."""
        pairs = []
        for right, unsure in ((OLD_RIGHT, OLD_UNSURE), (NEW_RIGHT, NEW_UNSURE)):
            label = self.label(number) if number in right else WRONG
            pairs.append((label, "review" if label == unsure else "auto"))
        return pairs[0], pairs[1]

    def head(self, right: Iterable[int], unsure: str) -> Head:
        head = self.gate.head(right)
        thresholds = np.where(np.array(head.label_ids) == unsure, 0.9999, head.thresholds).astype(np.float32)
        return replace(head, thresholds=thresholds)

    def tagger(self, name: str, head: Head) -> Tagger:
        """The shop's backbone with another head."""
        return rehead(self.gate.folder / "taggers" / name, self.gate._blank, head)

    def register(self) -> tuple[ModelVersion, ModelVersion]:
        """The champion, and the challenger that training ``t1`` made."""
        old = self.add(self.tagger("champion", self.head(OLD_RIGHT, OLD_UNSURE)))
        learned = "".join(f"{self.contents[number]}\n" for number in sorted(LEARNED)).encode()
        self.store.write_bytes("trainings/t1/contents.txt", learned)
        tags = {"training": "t1", "training.contents_sha256": hashlib.sha256(learned).hexdigest()}
        new = self.add(self.tagger("challenger", self.head(NEW_RIGHT, NEW_UNSURE)), tags)
        self.set("champion", old.version)
        return old, new

    def add(self, tagger: Tagger, tags: Mapping[str, str] | None = None) -> ModelVersion:
        """A version as registration leaves it, with a run of its own; its files are in the cache, not in MLflow."""
        found = self.gate.settings
        shutil.copytree(tagger.folder, found.state_dir / "models" / tagger.sha256, dirs_exist_ok=True)
        hashes = {"model_sha256": tagger.sha256, "backbone_sha256": tagger.backbone_sha256, "code_sha256": "c" * 64}
        with tracking.connected(found) as client:
            if not client.search_registered_models(f"name='{found.model_name}'"):
                client.create_registered_model(found.model_name)
            experiment = tracking.experiment(client, found, "wwts-models")
            run = client.create_run(experiment).info.run_id
            made = client.create_logged_model(experiment, name="tagger", source_run_id=run)
            client.finalize_logged_model(made.model_id, "READY")
            client.set_terminated(run)
            entry = client.create_model_version(
                found.model_name,
                source=f"models:/{made.model_id}",
                run_id=run,
                model_id=made.model_id,
                tags={**hashes, **(tags or {})},
            )
            return ModelVersion.of(entry)

    def set(self, alias: str, version: str) -> None:
        with tracking.connected(self.gate.settings) as client:
            client.set_registered_model_alias(self.gate.settings.model_name, alias, version)

    def tags(self, version: str) -> dict[str, str]:
        with tracking.connected(self.gate.settings) as client:
            return dict(client.get_model_version(self.gate.settings.model_name, version).tags)

    def write_embeddings(self, backbone_sha256: str) -> None:
        """The second part repeats ten contents of the first with other numbers, which must not count."""
        vectors = self.gate.embeddings
        for run, first, end in (("2026-03-01-aaaaaaaaaaaa", 0, 30), ("2026-03-02-bbbbbbbbbbbb", 20, 48)):
            key = part_key(backbone_sha256, run[:10], run, 0)
            with self.store.writing(key) as path, EmbeddingWriter(path, backbone_sha256, vectors.shape[1]) as writer:
                for number in range(first, end):
                    stale = run.startswith("2026-03-02") and number < 30
                    writer.add(self.contents[number], np.zeros_like(vectors[number]) if stale else vectors[number])

    def publish(self, snapshot: str = "s000001-aaaaaaaaaaaa", release: str = "live") -> None:
        """One row an image; the first image of content 1 has a name that attacks the page."""
        rows = []
        for number, content in enumerate(self.contents):
            for copy in range(self.copies(number)):
                image_id = HOSTILE if (number, copy) == (1, 0) else f"货架/{number:02d}-{copy}.jpg"
                rows.append(self._row(image_id, content, snapshot))
        key = f"published/{snapshot}/part-00000.parquet"
        self.store.write_table(key, pa.Table.from_pylist(rows, schema=PUBLISHED))
        value = {"snapshot": snapshot, "parts": [key], "rows": len(rows), "release": release}
        assert self.store.replace_pointer(
            "published/current.json", value, self.store.read_pointer("published/current.json")
        )

    @staticmethod
    def _row(image_id: str, content: str, snapshot: str) -> dict[str, Any]:
        return {
            "image_id": image_id,
            "uri": image_id,
            "content_sha256": content,
            "decision": "auto",
            "source": "model",
            "run_id": "2026-03-01-aaaaaaaaaaaa",
            "tagged_at": NOW,
            "state": "live",
            "snapshot": snapshot,
        }

    def write_thumbnails(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            rgb = images.decode(self.gate.cases[number].path.read_bytes(), 160, 10**8).rgb
            content = self.contents[number]
            self.store.put(f"thumbnails/{content[:2]}/{content}.jpg", images.thumbnail(rgb, 160))

    def record_answers(self) -> None:
        """All kinds of answers; :data:`LABELLED` and :data:`ANSWERED` say which of them count."""
        corrections.record(
            self.gate.settings,
            [
                self.answer(0, "confirm", sampling_probability=0.5, shown_because="audit"),
                self.answer(7, "confirm", sampling_probability=0.25),
                self.answer(13, "confirm", answered_at=NOW - timedelta(days=60)),
                self.answer(36, "correct", sampling_probability=0.1),
                self.answer(37, "correct"),
                self.answer(38, "correct", sampling_probability=1.0),
                self.answer(39, "correct", labels=(LABELS[0],)),
                self.answer(40, "wrong_unknown"),
                self.answer(41, "correct"),
                self.answer(42, "correct", weak=True, source="import"),
                self.answer(44, "correct", labels=(LABELS[1], LABELS[3])),
                self.answer(46, "correct", labels=("shop:新品",)),
                self.answer(47, "confirm", content_sha256=UNKNOWN_CONTENT, labels=(LABELS[3],)),
            ],
        )
        (row,) = [row for row in corrections.frozen(self.gate.settings).to_pylist() if row["answer_id"] == "41-correct"]
        corrections.record(self.gate.settings, [self.answer(41, "retract", retracts=row["number"])])

    def answer(self, number: int, kind: str, **more: Any) -> Answer:
        """An answer about content ``number``; its label is the right one unless ``more`` says otherwise."""
        given: dict[str, Any] = {
            "answer_id": f"{number}-{kind}",
            "answered_at": NOW - timedelta(hours=1),
            "answered_by": "小王",
            "content_sha256": self.contents[number],
            "kind": kind,
            "labels": (self.label(number),) if kind in corrections.LABELLED else (),
            "source": "page",
            "shown_because": "review",
        }
        return Answer(**given | more)
