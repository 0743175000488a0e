"""Nights whose contents a test chooses, answers and retags over them, and in plain Python what must be published then.

:func:`expected` goes through what happened to an image act by act, as a shop lives it; ``overlays.py`` looks at the
highest numbers of each kind. That the two agree is the test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from night_process import Killer
from written_nights import NOON, Nights, Outcome, is_tagged, tag_row

from wwts_ops import corrections, logs, planning, publish, published, records, retags, schemas, settings
from wwts_ops.corrections import Answer
from wwts_ops.errors import UnavailableError
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.planning import Plan
from wwts_ops.retags import Retag
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Label, Taxonomy

ANSWERED_AT = datetime(2026, 3, 5, 8, tzinfo=UTC)
PLANNED_AT = datetime(2026, 3, 4, 12, tzinfo=UTC)
EMPTY = ("tags", "label_id", "label_zh", "confidence", "category_path")
NOT_A_MODELS = ("model_name", "model_version", "model_sha256", "backbone_sha256", "git_sha")
MADE_BY = (*NOT_A_MODELS, "source", "taxonomy_version", "run_id", "tagged_at")


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass
class OverlaidNights(Nights):
    """Nights, and what was done to them. ``acts``: for each image its night's rows, rejections and delistings."""

    acts: list[tuple[int, str, dict[str, Any] | str]] = field(default_factory=list)
    answers: int = 0

    def tagged(self, catalog: Mapping[str, str], outcomes: Mapping[str, tuple[str, Outcome]]) -> Plan:
        """A whole night; ``outcomes``: the content of each image, and what was found."""
        before = self._listed
        plan = self.plan(catalog)
        names = self.images(plan) if plan.shards else []
        rows, bad = [], []
        for name in names:
            content, outcome = outcomes[name]
            if is_tagged(outcome):
                row = tag_row(plan, name, outcome, NOON, {"content_sha256": sha(content)})
                rows.append(row)
                self.acts.append((plan.sequence, name, row))
            else:
                told = {"image_id": name, "uri": f"{name}.jpg", "reason": outcome, "run_id": plan.run_key}
                bad.append({**told, "seen_at": NOON})
                self.acts.append((plan.sequence, name, str(outcome)))
        for number in range(plan.shards):
            self.put(plan, number, "tags", rows, schemas.TAGS)
            self.put(plan, number, "quarantine", bad, schemas.QUARANTINE)
            self.mark(plan, number)
        self.store.write_json(planning.done_key(plan.run_key), {"images": plan.images})
        gone = sorted(before - set(catalog)) if plan.delisted else []
        assert len(gone) == plan.delisted
        self.acts += [(plan.sequence, name, "delisted") for name in gone]
        self._listed = set(catalog)
        return plan

    _listed: set[str] = field(default_factory=set)

    def answer(self, kind: str, content: str, *labels: str, retracts: int | None = None, weak: bool = False) -> int:
        """One answer, through the table; its number."""
        self.answers += 1
        one = Answer(
            answer_id=f"answer-{self.answers}",
            answered_at=ANSWERED_AT + timedelta(minutes=self.answers),
            answered_by="小王",
            content_sha256=sha(content),
            kind=kind,
            labels=labels,
            source="page",
            shown_because="review",
            retracts=retracts,
            weak=weak,
        )
        assert corrections.record(self.settings(), [one]).added == 1
        return self.answers

    def answer_all(self, answers: Sequence[Answer]) -> None:
        """Many; what a retract takes back is there before it."""
        waiting: list[Answer] = []
        for one in answers:
            if one.kind == "retract":
                corrections.record(self.settings(), waiting)
                waiting = []
            waiting.append(one)
        corrections.record(self.settings(), waiting)
        self.answers += len(answers)

    def retag(
        self, sequence: int, parts: Sequence[Mapping[str, Outcome]], distrusted: Sequence[str] = (), version: str = "77"
    ) -> Retag:
        """A whole retag, in force; ``parts``: what each says of contents."""
        made = Retag(
            key=f"r{version:0>12}",
            sequence=sequence,
            model_name="wwts-tagger",
            model_version=version,
            model_sha256=f"{int(version):064x}",
            backbone_sha256="e" * 64,
            code_sha256="c" * 64,
            taxonomy_version="t000009",
            git_sha="9" * 40,
            planned_at=PLANNED_AT.isoformat(),
            parts=("embeddings/a", "embeddings/b"),
            shards=len(parts),
            images=len(set().union(*parts)),
            missing=0,
            distrusted=tuple(distrusted),
        )
        self.store.write_json(retags.plan_key(made.key), made.plain())
        for number, contents in enumerate(parts):
            rows = [retagged_row(content, outcome) for content, outcome in contents.items()]
            table = pa.Table.from_pylist(rows, schema=records.RETAGGED)
            self.store.write_table(retags.part_key(made.key, number), table)
            self.store.write_json(retags.marker_key(made.key, number), {})
        self.store.write_json(retags.done_key(made.key), {})
        assert retags.put_in_force(self.store, made.key, retags.current(self.store))
        return made

    def publish(self, release: str = "live") -> dict[str, Any]:
        """What is then current."""
        pointer = publish.publish(self.store, self.settings(release=release))
        assert pointer is not None
        return pointer

    def rows(self) -> dict[str, dict[str, Any]]:
        """What consumers read, by image."""
        found = published.read(self.store).to_pylist()
        by_id = {row["image_id"]: row for row in found}
        assert len(by_id) == len(found), "an image twice"
        return by_id

    def rows_of(self, sequence: int) -> dict[str, dict[str, Any]]:
        """What one night wrote, by image."""
        return {name: act for number, name, act in self.acts if number == sequence and not isinstance(act, str)}

    def states(self) -> dict[str, tuple[str, str | None]]:
        return {name: (row["state"], row["label_zh"]) for name, row in self.rows().items()}


def retagged_row(content: str, outcome: Outcome) -> dict[str, Any]:
    decision, label, score = outcome
    return {
        "content_sha256": sha(content),
        "tags": [{"label_id": f"r:{label}", "label_zh": label, "score": score}],
        "label_id": f"r:{label}",
        "label_zh": label,
        "confidence": score,
        "category_path": f"重打 > {label}",
        "decision": decision,
        "decision_reason": "retagged",
    }


def publish_dying(root: str, at: int, moment: str) -> None:
    """Publishes, and dies at change number ``at`` of the store; to be run in a process of its own."""
    given = settings.load(store=root)
    Killer(root, at, moment, Path(f"{root}.changes")).install()
    publish.publish(Store.of(given), given)


def publish_for_ever(root: str) -> None:
    """Publishes again and again; to be run in a process of its own."""
    given = settings.load(store=root, release="live")
    logs.configure("json", level=40)
    while True:
        with suppress(UnavailableError):  # Airflow would run the task again
            publish.publish(Store.of(given), given)


@dataclass(frozen=True)
class Scene:
    """All that :func:`expected` is told."""

    acts: Sequence[tuple[int, str, dict[str, Any] | str]]
    answers: Sequence[Mapping[str, Any]] = ()
    retag: Retag | None = None
    parts: Sequence[Mapping[str, Outcome]] = ()
    names: Taxonomy | None = None
    release: str = "live"


def expected(scene: Scene) -> dict[str, dict[str, Any]]:
    """Every image's row, without ``snapshot``: in the order in which things happened, one image after another."""
    standing = answers_in_force(scene.answers)
    fresh: dict[str, Outcome] = {}
    for part in reversed(scene.parts):
        fresh |= {sha(content): outcome for content, outcome in part.items()}
    found = {}
    for image in {name for _, name, _ in scene.acts}:
        acts = [(sequence, act) for sequence, name, act in scene.acts if name == image]
        row = _lived(scene, sorted(acts, key=lambda pair: pair[0]), standing, fresh)
        if row is not None:
            found[image] = row
    return found


def answers_in_force(answers: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By content: the last one that is no weak one, and that nobody took back."""
    taken_back = {one["retracts"] for one in answers if one["kind"] == "retract"}
    return {
        one["content_sha256"]: one
        for one in sorted(answers, key=lambda one: one["number"])
        if not one["weak"] and one["kind"] != "retract" and one["number"] not in taken_back
    }


@dataclass
class _Life:
    """One image, while things happen to it.

    Attributes:
        bare: what the night wrote last.
        now: what is said of it.
        last: what was said of it when it was last live.
    """

    scene: Scene
    standing: Mapping[str, Mapping[str, Any]]
    bare: dict[str, Any] | None = None
    now: dict[str, Any] | None = None
    last: dict[str, Any] | None = None

    def end(self) -> None:
        """It is off the list, unreadable or rejected."""
        self.bare = self.now = self.last = None

    def say(self, now: dict[str, Any], sure: bool) -> None:
        self.now = now
        if sure and self.scene.release == "live":
            self.last = now

    def tag(self, row: dict[str, Any]) -> None:
        """A night wrote ``row``."""
        self.bare = row
        answer = self.standing.get(row["content_sha256"])
        if answer is None:
            retag = self.scene.retag
            distrusted = retag is not None and row["model_sha256"] in retag.distrusted
            self.say(row, row["decision"] == "auto" and not distrusted)
        elif answer["kind"] == "reject_image":
            self.end()
        else:
            if answer["kind"] == "wrong_unknown":
                self.last = None
            self.say(_answered(self.scene, row, answer), bool(answer["labels"]))

    def retag(self, fresh: Mapping[str, Outcome]) -> None:
        """What the night wrote last is said anew."""
        content = None if self.bare is None else self.bare["content_sha256"]
        if content in fresh and content not in self.standing:
            assert self.scene.retag is not None
            assert self.bare is not None
            now = _retagged(self.scene.retag, self.bare, fresh[content])
            self.say(now, now["decision"] == "auto")

    def row(self) -> dict[str, Any] | None:
        """What consumers read in the end."""
        if self.now is None:
            return None
        if self.last is self.now:
            return {**self.now, "state": "live"}
        shown = self.now if self.now["decision"] == "human" else self.last
        if shown is None:
            return {**self.now, **dict.fromkeys(EMPTY), "state": "pending"}
        return {**self.now, **{name: shown[name] for name in (*EMPTY, *MADE_BY)}, "state": "pending"}


def _lived(
    scene: Scene,
    acts: Sequence[tuple[int, dict[str, Any] | str]],
    standing: Mapping[str, Mapping[str, Any]],
    fresh: Mapping[str, Outcome],
) -> dict[str, Any] | None:
    life = _Life(scene, standing)
    upto = -1 if scene.retag is None else scene.retag.sequence
    for _, act in (one for one in acts if one[0] <= upto):
        _happen(life, act)
    life.retag(fresh)
    for _, act in (one for one in acts if one[0] > upto):
        _happen(life, act)
    return life.row()


def _happen(life: _Life, act: dict[str, Any] | str) -> None:
    if not isinstance(act, str):
        life.tag(act)
    elif act not in TRANSIENT_REASONS:
        life.end()


def _retagged(retag: Retag, row: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    content = row["content_sha256"]
    return {
        **row,
        **retagged_row("", outcome),
        "content_sha256": content,
        "model_name": retag.model_name,
        "model_version": retag.model_version,
        "model_sha256": retag.model_sha256,
        "backbone_sha256": retag.backbone_sha256,
        "taxonomy_version": retag.taxonomy_version,
        "git_sha": retag.git_sha,
        "run_id": retag.key,
        "tagged_at": PLANNED_AT,
    }


def _answered(scene: Scene, row: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    by_id = {} if scene.names is None else scene.names.by_id
    said = [by_id.get(label_id) or Label(label_id, label_id) for label_id in answer["labels"]]
    named = {
        "tags": [{"label_id": one.label_id, "label_zh": one.label_zh, "score": 1.0} for one in said],
        "label_id": said[0].label_id if said else None,
        "label_zh": said[0].label_zh if said else None,
        "confidence": 1.0,
        "category_path": (said[0].category_path or None) if said else None,
    }
    return {
        **row,
        **(named if said else dict.fromkeys(EMPTY)),
        **dict.fromkeys(NOT_A_MODELS),
        "decision": "human" if said else "review",
        "decision_reason": answer["kind"],
        "source": "correction",
        "taxonomy_version": None if scene.names is None else scene.names.version,
        "tagged_at": answer["answered_at"],
    }
