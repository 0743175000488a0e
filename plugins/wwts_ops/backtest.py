"""What a version says today of what people answered lately: the real answers, replayed over stored embeddings.

Answers come from what people were shown, which is mostly what a model was unsure of. Where the chance of being shown
is known, shares weighted by its inverse say what they would be over all images; the plain ones say what they are over
these answers alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wwts_ops import corrections, embeddings, registry, shares, taxonomy
from wwts_ops.corrections import LABELLED
from wwts_ops.decisions import AUTO, Decider
from wwts_ops.errors import WwtsError
from wwts_ops.runtime import Scorer
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagdiff import building, learned
from wwts_ops.taxonomy import Taxonomy
from wwts_ops.tracking import ModelVersion

Array = np.ndarray[Any, Any]

_SINCE = re.compile(r"([1-9]\d{0,4})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
#: Embeddings scored at once.
_BATCH = 4096


@dataclass(frozen=True)
class Measures:
    """How right a version is on some answers; shares are 0–1, None where they would be of nothing.

    Attributes:
        n: answers.
        right: those whose answered labels include the version's first one.
        accuracy: of ``n``.
        interval: of ``accuracy``: 95 %, Wilson's score.
        macro: accuracy of each answered label, averaged.
        auto: answers that it would let live by itself.
        auto_right: of these, right ones.
        auto_precision: ``auto_right / auto``.
        coverage: ``auto / n``.
        unknown: answers whose labels it does not know at all.
    """

    n: int
    right: int
    accuracy: float | None
    interval: tuple[float, float] | None
    macro: float | None
    auto: int
    auto_right: int
    auto_precision: float | None
    coverage: float | None
    unknown: int


@dataclass(frozen=True)
class Weighted:
    """The same shares over answers with a known chance of being shown, each counted by its inverse.

    Attributes:
        n: such answers.
        effective: how many equally weighted ones they are worth (Kish).
        accuracy: as in :class:`Measures`, also the others.
        auto_precision: of what would go live by itself.
        coverage: share that would.
    """

    n: int
    effective: float
    accuracy: float | None
    auto_precision: float | None
    coverage: float | None


@dataclass(frozen=True)
class Group:
    """A part of the answers: ``of`` is ``all``, ``kind``, ``category``, ``learned`` or ``not learned``."""

    of: str
    name: str
    version: Measures
    champion: Measures | None


@dataclass(frozen=True)
class Backtest:
    """What a version and the champion say of the answers of a time.

    Attributes:
        version: number of the version.
        champion: of the champion; None when it is the version itself.
        since: ISO, UTC: only answers given after it.
        answers: in force, of kinds with a label, given in that time.
        without_embedding: of these, those that the version has no stored embedding of.
        champion_without_embedding: the same of the champion.
        learned: of ``answers``, those that the version has learned from; None when nobody noted which.
        weighted: of the version.
        champion_weighted: of the champion.
        gained: answers that the version has right and the champion wrong, of those both have an embedding of.
        lost: the other way round.
        groups: all, then by kind, by first-level category of the answered label, and by whether it was learned from.
    """

    version: str
    champion: str | None
    since: str
    answers: int
    without_embedding: int
    champion_without_embedding: int | None
    learned: int | None
    weighted: Weighted | None
    champion_weighted: Weighted | None
    gained: int | None
    lost: int | None
    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def duration(text: str) -> timedelta:
    """From ``30d``, ``12h`` or ``4w``.

    Raises:
        WwtsError: when it is neither.
    """
    found = _SINCE.fullmatch(text.strip().lower())
    if found is None:
        raise WwtsError(f"{text!r} is no length of time; write hours, days or weeks, such as 12h, 30d or 4w.")
    return int(found[1]) * _UNITS[found[2]]


def run(settings: Settings, version: str | None, since: timedelta) -> Backtest:
    """Replays the labelled answers in force that were given within ``since`` against ``version``.

    Args:
        settings: which store, registry and database.
        version: its number; None: the champion.
        since: how far back.

    Raises:
        WwtsError: when there is no such version, or a part of the embeddings is damaged.
        UnavailableError: when MLflow, the database or the store does not answer.
    """
    store = Store.of(settings)
    begin = datetime.now(UTC) - since
    champion = building.champion(settings)
    model = champion if version is None else registry.resolve(settings, version)
    scene = _Scene.of(
        store, settings, _answers(settings, begin), learned.contents(store, learned.training_of(settings, model))
    )
    mine = _replay(store, settings, model, scene)
    theirs = None if model.version == champion.version else _replay(store, settings, champion, scene)
    both = None if theirs is None else mine.found & theirs.found
    return Backtest(
        version=model.version,
        champion=None if theirs is None else champion.version,
        since=begin.isoformat(timespec="seconds"),
        answers=len(scene.contents),
        without_embedding=int((~mine.found).sum()),
        champion_without_embedding=None if theirs is None else int((~theirs.found).sum()),
        learned=None if scene.learned is None else int(scene.learned.sum()),
        weighted=_weighted(scene, mine),
        champion_weighted=None if theirs is None else _weighted(scene, theirs),
        gained=None if theirs is None else int((both & mine.right & ~theirs.right).sum()),
        lost=None if theirs is None else int((both & ~mine.right & theirs.right).sum()),
        groups=tuple(
            Group(of, name, _measures(scene, mine, rows), None if theirs is None else _measures(scene, theirs, rows))
            for of, name, rows in _groups(scene)
        ),
    )


def _answers(settings: Settings, begin: datetime) -> pa.Table:
    found = corrections.in_force(corrections.frozen(settings))
    labelled = pc.is_in(found["kind"], value_set=pa.array(sorted(LABELLED)))
    recent = pc.greater_equal(found["answered_at"], pa.scalar(begin, pa.timestamp("us", "UTC")))
    return found.filter(pc.and_(labelled, recent))


@dataclass(frozen=True)
class _Scene:
    """The answers, column by column, and what they are judged by; ``labels`` as they are given today."""

    contents: list[str]
    labels: list[list[str]]
    kinds: Array
    categories: Array
    probability: Array
    learned: Array | None
    taxonomy: Taxonomy

    @classmethod
    def of(cls, store: Store, settings: Settings, answers: pa.Table, seen: pa.Array | None) -> _Scene:
        names = taxonomy.current(store) or taxonomy.embedded(settings.forced_review)
        # As the versions' own labels are: what was merged since is no mistake.
        labels = building.meant(answers, names)["labels"].to_pylist()
        return cls(
            contents=answers["content_sha256"].to_pylist(),
            labels=labels,
            kinds=np.array(answers["kind"].to_pylist(), dtype=object),
            categories=np.array([_category(names, one[0]) for one in labels], dtype=object),
            probability=answers["sampling_probability"].to_numpy(zero_copy_only=False).astype(float),
            learned=None if seen is None else pc.is_in(answers["content_sha256"], value_set=seen).to_numpy(),
            taxonomy=names,
        )


def _category(names: Taxonomy, label_id: str) -> str:
    label = names.by_id.get(label_id)
    return label.category_path.partition(" > ")[0] if label else ""


@dataclass(frozen=True)
class _Replayed:
    """What one version says; each ``bool [n]`` over all answers, False where it has no embedding."""

    found: Array
    right: Array
    auto: Array
    unknown: Array


def _replay(store: Store, settings: Settings, model: ModelVersion, scene: _Scene) -> _Replayed:
    tagger = registry.fetch(settings, model)
    found, vectors = embeddings.take(store, model.backbone_sha256, scene.contents)
    score, decide = Scorer(tagger), Decider(tagger.label_ids, tagger.thresholds, scene.taxonomy, 1)
    known = frozenset(map(scene.taxonomy.given, tagger.label_ids))
    right, auto = np.zeros(len(found), bool), np.zeros(len(found), bool)
    rows = np.flatnonzero(found)
    for start in range(0, len(rows), _BATCH):
        said = decide.columns(score(vectors[start : start + _BATCH]))
        for row, label, decision in zip(
            rows[start : start + _BATCH], said["label_id"].to_pylist(), said["decision"].to_pylist(), strict=True
        ):
            right[row], auto[row] = label in scene.labels[row], decision == AUTO
    unknown = np.array([known.isdisjoint(labels) for labels in scene.labels], dtype=bool) & found
    return _Replayed(found, right, auto, unknown)


def _groups(scene: _Scene) -> Iterator[tuple[str, str, Array]]:
    """What is measured, with its name and the answers in it."""
    yield "all", "", np.ones(len(scene.contents), bool)
    if scene.learned is not None:
        yield "learned", "", scene.learned
        yield "not learned", "", ~scene.learned
    for of, values in (("kind", scene.kinds), ("category", scene.categories)):
        names, counts = np.unique(values.astype(str), return_counts=True)
        for index in np.lexsort((names, -counts)):
            yield of, str(names[index]), values == names[index]


def _measures(scene: _Scene, replayed: _Replayed, rows: Array) -> Measures:
    chosen = rows & replayed.found
    n, right = int(chosen.sum()), int((chosen & replayed.right).sum())
    auto = chosen & replayed.auto
    live, live_right = int(auto.sum()), int((auto & replayed.right).sum())
    return Measures(
        n=n,
        right=right,
        accuracy=_share(right, n),
        interval=shares.interval(right, n),
        macro=_macro(scene, replayed, chosen),
        auto=live,
        auto_right=live_right,
        auto_precision=_share(live_right, live),
        coverage=_share(live, n),
        unknown=int((chosen & replayed.unknown).sum()),
    )


def _macro(scene: _Scene, replayed: _Replayed, chosen: Array) -> float | None:
    by_label: dict[str, list[bool]] = {}
    for row in np.flatnonzero(chosen):
        by_label.setdefault(scene.labels[row][0], []).append(bool(replayed.right[row]))
    return float(np.mean([np.mean(found) for found in by_label.values()])) if by_label else None


def _weighted(scene: _Scene, replayed: _Replayed) -> Weighted | None:
    """None when no chance of being shown is known."""
    chosen = replayed.found & (scene.probability > 0)
    if not chosen.any():
        return None
    weights = np.where(chosen, 1 / np.maximum(np.where(chosen, scene.probability, 1), shares.LEAST_CHANCE), 0)
    total, auto = weights.sum(), (weights * replayed.auto).sum()
    return Weighted(
        n=int(chosen.sum()),
        effective=float(total**2 / (weights**2).sum()),
        accuracy=_share((weights * replayed.right).sum(), total),
        auto_precision=_share((weights * (replayed.auto & replayed.right)).sum(), auto),
        coverage=_share(auto, total),
    )


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
