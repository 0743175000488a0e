"""What a head learns from: answers with their embeddings, split so that no copy flatters the validation.

    frozen answers ─► embeddings ─► less what is held out ─► less what contradicts itself ─► train | validation

Embeddings come from the store; only contents that it lacks are read and embedded. Everything is a function of the
order, the settings and what lies in the store.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from eval import serving
from training import conflicts, old_tags, places, snapshot
from training.catalog_sample import CatalogSample
from training.conflicts import Conflict, Said
from wwts_ops import (
    backfill,
    badcases,
    corrections,
    embeddings,
    holdout,
    neardup,
    published,
    registry,
    taxonomy,
    warehouse,
)
from wwts_ops.errors import WwtsError
from wwts_ops.schemas import PUBLISHED
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.taxonomy import Taxonomy
from wwts_ops.tracking import ModelVersion

__all__ = ["Conflict", "Dataset", "Examples", "Order", "Said", "build", "load", "save"]

log = structlog.get_logger(__name__)

Array = np.ndarray[Any, Any]

#: Why an imported old tag was "shown": nobody looked at the picture.
WEAK: Final = "weak"

FORMAT = 1
#: Answered contents of one shard of what is embedded; never to be changed, or finished shards are about others.
_SHARD: Final = 1000
#: Contents read at once.
_READ_ROWS: Final = 16_384
#: One group in so many goes to validation; a label with fewer groups is wholly in train.
_SHARE: Final = 6


@dataclass(frozen=True)
class Order:
    """What a dataset is made from.

    Attributes:
        snapshot: name of the frozen answers (:func:`training.snapshot.freeze`).
        base: the version that the new head starts from.
        backbone: SHA-256 of the backbone whose embeddings are used; that of ``base``.
        seed: of the split.
        names: by which answers are read; None: those in force.
    """

    snapshot: str
    base: ModelVersion
    backbone: str
    seed: int = 0
    names: Taxonomy | None = None


@dataclass(frozen=True)
class Examples:
    """Rows to learn from or to measure on.

    Attributes:
        vectors: embeddings, ``float16 [n, d]``.
        targets: index into ``Dataset.label_ids``, ``int64 [n]``.
        weights: 1 for an answer, ``weak_weight`` for an imported old tag, ``float32 [n]``.
        groups: near-duplicates, and what may be one scene of one label, ``int64 [n]``; no group is in two of train,
            validation and audit.
        contents: SHA-256 of each row's picture; a view has its original's.
        probability: chance that the picture was shown to a person, 0–1, nan when unknown; ``float64 [n]``.
        shown: why it was shown, such as ``audit`` or ``review``; of an imported old tag :data:`WEAK`.
        view_of: ``int64 [n]``, the row of the original; of an original its own row. Views stand behind all originals;
            the audit has none.
    """

    vectors: Array
    targets: Array
    weights: Array
    groups: Array
    contents: tuple[str, ...]
    probability: Array
    shown: tuple[str, ...]
    view_of: Array

    def __len__(self) -> int:
        """Rows, views included."""
        return len(self.contents)

    @property
    def originals(self) -> Examples:
        """Without views."""
        kept = np.flatnonzero(self.view_of == np.arange(len(self)))
        return Examples(
            vectors=self.vectors[kept],
            targets=self.targets[kept],
            weights=self.weights[kept],
            groups=self.groups[kept],
            contents=tuple(self.contents[row] for row in kept),
            probability=self.probability[kept],
            shown=tuple(self.shown[row] for row in kept),
            view_of=np.arange(len(kept)),
        )


@dataclass(frozen=True)
class Dataset:
    """All that a training reads.

    Attributes:
        label_ids: labels that there is something to learn of, sorted; what ``targets`` point into.
        train: to learn from.
        validation: to choose by: answers only, and no near-duplicate group shared with ``train``.
        audit: answered pictures of the audit holdout. To report on only: nothing is ever chosen by them.
        rehearsal: embeddings of catalog contents without an answer, ``float16 [r, d]``.
        rehearsal_contents: their SHA-256.
        excluded: reason → number of answered contents that are in none of train, validation and audit; ``no_views``
            counts contents of ``train`` all the same.
        conflicts: for people to look at.
        sha256: of all of it.
    """

    label_ids: tuple[str, ...]
    train: Examples
    validation: Examples
    audit: Examples
    rehearsal: Array
    rehearsal_contents: tuple[str, ...]
    excluded: dict[str, int]
    conflicts: tuple[Conflict, ...]
    sha256: str

    def sealed(self) -> Dataset:
        """With the SHA-256 of what it holds now."""
        return replace(self, sha256=_sha256(self))


def build(settings: Settings, order: Order, base: Tagger | None = None) -> Dataset:
    """Makes the dataset of ``order``.

    Args:
        settings: ``holdout_share``, ``rehearsal``, ``weak_weight``, and what reading pictures takes.
        order: from what.
        base: the files of ``order.base``, used only where an embedding is missing; None: fetched from MLflow.

    What is left out, under its first reason in ``excluded``: ``no_label`` (the answer was none), ``unknown_label``,
    ``label_switched_off``, ``weak_ignored`` (``weak_weight`` is 0), ``weak_beyond_limit`` (more old tags than
    :data:`training.old_tags.MOST`), ``not_in_catalog`` (no embedding, and no image to
    make one of), a reason of ``images.REASONS`` or ``changed`` (that image could not be read, or has other bytes by
    now), ``held_out``, ``copies_disagree`` (the same picture has another label), ``weak_against_answer`` (an old tag
    that an answer to a copy contradicts), ``weak_copy_of_validation`` and ``audit_only_label``.

    Raises:
        WwtsError: when the order contradicts itself, nothing is left to learn from, or what the gate holds out cannot
            be told from the rest.
        UnavailableError: when store, database or MLflow do not answer, or the host of the images is away.
    """
    if order.backbone != order.base.backbone_sha256:
        raise WwtsError(
            f"Backbone b{order.backbone[:12]} is not that of {order.base} (b{order.base.backbone_sha256[:12]}); "
            "a head is trained on the embeddings of its own backbone."
        )
    store = Store.of(settings)
    names = order.names or taxonomy.ensure(store, settings.forced_review)
    scene = _Scene(settings, store, order, names, snapshot.read(store, order.snapshot), base)
    _embed_bad_cases(scene)
    pool = _pool(scene)
    chosen = _chosen(scene, pool)
    dataset = _assembled(scene, pool, chosen)
    log.info(
        "dataset_built",
        snapshot=order.snapshot,
        labels=len(dataset.label_ids),
        train=len(dataset.train),
        validation=len(dataset.validation),
        audit=len(dataset.audit),
        rehearsal=len(dataset.rehearsal_contents),
        conflicts=len(dataset.conflicts),
        excluded=dataset.excluded,
        sha256=dataset.sha256,
    )
    return dataset


@dataclass(frozen=True)
class _Scene:
    """What all steps need; ``answers``: all frozen ones."""

    settings: Settings
    store: Store
    order: Order
    names: Taxonomy
    answers: pa.Table
    base: Tagger | None

    @cached_property
    def tagger(self) -> Tagger:
        """The base's files."""
        return self.base or registry.fetch(self.settings, self.order.base)

    @cached_property
    def _old(self) -> tuple[pa.Table, int]:
        """Old tags that are learned from, and how many others there are."""
        found = corrections.weak(self.answers)
        some = old_tags.dealt(found, self.names)
        return some, found.num_rows - some.num_rows

    @cached_property
    def rows(self) -> pa.Table:
        """Answers in force and weak ones, one row a content, by content: the order of all that follows."""
        return pa.concat_tables([corrections.in_force(self.answers), self._old[0]]).sort_by("content_sha256")

    def excluded(self, reasons: Array) -> dict[str, int]:
        """How many contents are left out for each reason, those of old tags that were not even looked at too."""
        counts = Counter({"weak_beyond_limit": self._old[1]})
        counts.update(reason for reason in reasons.tolist() if reason)
        return {reason: count for reason, count in sorted(counts.items()) if count}

    @cached_property
    def contents(self) -> list[str]:
        """Of each row."""
        found: list[str] = self.rows["content_sha256"].to_pylist()
        return found

    @cached_property
    def labels(self) -> list[str | None]:
        """The primary label of each row, or what it was merged into since; None where the answer was none."""
        return [self.names.given(labels[0]) if labels else None for labels in self.rows["labels"].to_pylist()]

    @cached_property
    def weak(self) -> Array:
        """``bool [rows]``."""
        found: Array = self.rows["weak"].to_numpy().astype(bool)
        return found


@dataclass(frozen=True)
class _Pool:
    """All rows, with their embeddings where they have one.

    Attributes:
        reasons: why a row is left out, ``""`` while it is not; ``object [rows]``.
        audit: rows that only report; ``bool [rows]``.
        place: of each row in ``vectors``, -1 where there is none; ``int64 [rows]``.
        vectors: ``float16 [found, d]``.
        sample: of the catalog, what is held out left out.
    """

    reasons: Array
    audit: Array
    place: Array
    vectors: Array
    sample: CatalogSample

    @property
    def left(self) -> Array:
        """Numbers of the rows to learn from."""
        return np.flatnonzero((self.reasons == "") & ~self.audit)

    def of(self, rows: Array) -> Array:
        """The embeddings of ``rows``."""
        found: Array = self.vectors[self.place[rows]]
        return found

    def leave_out(self, rows: Array, reason: str) -> None:
        """Notes why ``rows`` are left out, unless that is known already."""
        self.reasons[rows[self.reasons[rows] == ""]] = reason


# ------------------------------------------------------------------ what there is


def _pool(scene: _Scene) -> _Pool:
    """All answered contents and a sample of the catalog, what is held out marked."""
    settings, store, backbone = scene.settings, scene.store, scene.order.backbone
    unread = _embed_missing(scene)
    found, vectors = embeddings.take(store, backbone, scene.contents)
    answered = set(scene.rows.filter(pc.invert(scene.rows["weak"]))["content_sha256"].to_pylist())
    sample = CatalogSample.of(store, settings, backbone, answered)
    # All at once and never filtered before: a copy of an audit content is known only beside it.
    stored = [content for content, there in zip(scene.contents, found, strict=True) if there]
    contents = [*stored, *sample.rehearsal_contents, *sample.audit_contents]
    every = [array for array in (vectors, sample.rehearsal, sample.audit) if len(array)]
    held = holdout.held_out(store, settings, backbone, contents, np.concatenate(every) if every else vectors)
    pool = _Pool(
        reasons=np.array(_label_reasons(scene), dtype=object),
        audit=np.zeros(len(found), dtype=bool),
        place=np.where(found, np.cumsum(found) - 1, -1),
        vectors=vectors,
        sample=sample.without(held),
    )
    for row in np.flatnonzero(~found):
        pool.leave_out(np.array([row]), unread.get(scene.contents[row], "not_in_catalog"))
    in_held = np.array([content in held for content in scene.contents], dtype=bool)
    in_audit = [holdout.in_audit(content, settings.holdout_share) for content in scene.contents]
    pool.audit[:] = in_held & np.array(in_audit, dtype=bool) & ~scene.weak & (pool.reasons == "")
    pool.leave_out(np.flatnonzero(in_held & ~pool.audit), "held_out")
    return pool


def _label_reasons(scene: _Scene) -> list[str]:
    ignored = scene.settings.weak_weight == 0

    def reason(label_id: str | None, weak: bool) -> str:  # noqa: FBT001 (of a row)
        if label_id is None:
            return "no_label"
        label = scene.names.by_id.get(label_id)
        if label is None:
            return "unknown_label"
        if not label.enabled:
            return "label_switched_off"
        return "weak_ignored" if weak and ignored else ""

    return [reason(label_id, weak) for label_id, weak in zip(scene.labels, scene.weak.tolist(), strict=True)]


def _embed_missing(scene: _Scene) -> dict[str, str]:
    """Embeds what the store lacks of the answered contents and of the audit; content → why it could not be."""
    store, settings, order = scene.store, scene.settings, scene.order
    contents = list(dict.fromkeys([*scene.contents, *_listed_audit(scene)]))
    missing = backfill.missing(store, order.backbone, contents)
    found = places.find(store, missing)
    if not found:
        return {}
    log.info("embedding_answered", missing=len(missing), in_catalog=len(found))
    # Of this snapshot and day: done again it finds the same, and what cannot be read today is tried again tomorrow.
    bound = [order.snapshot, order.backbone, settings.today().isoformat(), *contents]
    digest = hashlib.sha256("\n".join(bound).encode()).hexdigest()
    unread: dict[str, str] = {}
    # Cut by all contents, not by what is missing: after a kill less is, and yet each shard is about the same contents.
    for shard, start in enumerate(range(0, len(contents), _SHARD)):
        some = [content for content in contents[start : start + _SHARD] if content in found]
        if some:
            pairs = [(content, uri) for content in some for uri in found[content].uris]
            table = pa.table(list(zip(*pairs, strict=True)), names=["content_sha256", "uri"])
            done = backfill.embed(store, settings, scene.tagger, table, f"answers-{digest[:12]}", shard)
            unread.update({entry["content_sha256"]: entry["reason"] for entry in done["unreadable"]})
    return unread


def _listed_audit(scene: _Scene) -> list[str]:
    """Published contents of the audit: a copy of one is known only beside its embedding, whoever answered it or not."""
    pointer, share = published.current(scene.store), scene.settings.holdout_share
    found: set[str] = set()
    with warehouse.connect() as con:
        # Streamed: a published part may hold all of a catalog.
        warehouse.view(con, "listed", scene.store, pointer.value["parts"] if pointer else [], PUBLISHED)
        for batch in con.sql("SELECT content_sha256 FROM listed").to_arrow_reader(_READ_ROWS):
            found.update(content for content in batch.column(0).to_pylist() if holdout.in_audit(content, share))
    return sorted(found)


def _embed_bad_cases(scene: _Scene) -> None:
    """Sees to it that all bad cases there ever were can be compared with, by the code packed with the base."""
    store, order = scene.store, scene.order
    ever = dict.fromkeys(case.content_sha256 for case in badcases.ensure(store, scene.names).cases)
    known, _ = badcases.embeddings(store, order.backbone)
    missing = [content for content in ever if content not in set(known)]
    if not missing:
        return
    log.info("embedding_badcases", badcases=len(missing), version=order.base.version)
    made: dict[str, Array] = {}
    subject = serving.Subject(str(order.base), scene.tagger, registry.code(scene.settings, order.base))
    with serving.Serving(subject, scene.names, scene.settings) as served:
        vectors = served.embed(badcases.content(store, content) for content in missing)
        for content, vector in zip(missing, vectors, strict=True):
            if isinstance(vector, serving.Unreadable):
                log.warning("badcase_unreadable", content=content, reason=vector.reason)
            else:
                made[content] = vector
    if made:
        vectors_made = np.stack(list(made.values()))
        badcases.add_embeddings(store, order.backbone, list(made), vectors_made, order.base.code_sha256)


# ------------------------------------------------------------------ what is learned from


@dataclass(frozen=True)
class _Chosen:
    """Numbers of rows, and their near-duplicate groups, for each part of a dataset; and what contradicts itself."""

    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    audit: tuple[Array, Array]
    conflicts: tuple[Conflict, ...]


def _chosen(scene: _Scene, pool: _Pool) -> _Chosen:
    """Groups what is left, leaves out what contradicts itself, and splits the rest by group."""
    rows = pool.left
    groups = neardup.groups(pool.of(rows))
    targets = _numbered(scene, rows)
    clashes = conflicts.clashes(pool.of(rows), groups, targets, scene.weak[rows])
    pool.leave_out(rows[clashes.open], "copies_disagree")
    pool.leave_out(rows[clashes.overruled], "weak_against_answer")
    disagreeing = conflicts.copies(scene.rows.take(pa.array(rows)), groups, clashes.open)
    kept = ~(clashes.open | clashes.overruled)
    rows, targets = rows[kept], targets[kept]
    groups = neardup.joined(groups[kept], neardup.within(pool.of(rows), targets))
    aside = _validation(groups, targets, scene.weak[rows], scene.order.seed)
    pool.leave_out(rows[aside & scene.weak[rows]], "weak_copy_of_validation")
    validation = aside & ~scene.weak[rows]
    audit = np.flatnonzero(pool.audit)
    audit_groups = neardup.groups(pool.of(audit)) + int(groups.max(initial=-1)) + 1
    return _Chosen(
        train=(rows[~aside], groups[~aside]),
        validation=(rows[validation], groups[validation]),
        audit=(audit, audit_groups),
        conflicts=(*conflicts.people(scene.answers, scene.names), *disagreeing),
    )


def _numbered(scene: _Scene, rows: Array) -> Array:
    """A number for each label, ``int64 [rows]``."""
    _, numbers = np.unique(np.array([str(scene.labels[row]) for row in rows], dtype=object), return_inverse=True)
    return numbers.astype(np.int64)


def _validation(groups: Array, targets: Array, weak: Array, seed: int) -> Array:
    """Which rows lie in a group that is chosen for validation: one in six groups of each label, ``bool [n]``.

    Groups are drawn, not rows: each is one unit with one label. A group with several labels, or with nothing but old
    tags, stays in train, and so do all groups of a label that has fewer than six.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    answered = np.unique(np.stack([groups, targets])[:, ~weak], axis=1)
    single = np.bincount(answered[0], minlength=1) == 1 if answered.size else np.zeros(0, dtype=bool)
    units, labels = answered[:, single[answered[0]]]
    enough = np.bincount(labels, minlength=1) >= _SHARE
    units, labels = units[enough[labels]], labels[enough[labels]]
    if not len(units):
        return np.zeros(len(groups), dtype=bool)
    draw = StratifiedShuffleSplit(n_splits=1, test_size=1 / _SHARE, random_state=seed)
    _, drawn = next(draw.split(units, labels))
    found: Array = np.isin(groups, units[drawn])
    return found


def _assembled(scene: _Scene, pool: _Pool, chosen: _Chosen) -> Dataset:
    learned = np.concatenate([chosen.train[0], chosen.validation[0]])
    label_ids = tuple(sorted({str(scene.labels[row]) for row in learned}))
    if not label_ids:
        raise WwtsError(
            f"Nothing can be learned from the answers {scene.order.snapshot}: "
            f"{json.dumps(scene.excluded(pool.reasons), ensure_ascii=False)}. Answer more images, then train again."
        )
    number = {label: place for place, label in enumerate(label_ids)}
    audit, audit_groups = chosen.audit
    known = np.array([scene.labels[row] in number for row in audit], dtype=bool)
    pool.leave_out(audit[~known], "audit_only_label")
    validation = _examples(scene, pool, chosen.validation, number)
    rehearsal = pool.sample.unlike(validation.vectors)
    found = conflicts.attributed(chosen.conflicts, scene.answers, _places(scene.store, chosen.conflicts))
    return Dataset(
        label_ids=label_ids,
        train=_examples(scene, pool, chosen.train, number),
        validation=validation,
        audit=_examples(scene, pool, (audit[known], audit_groups[known]), number),
        rehearsal=rehearsal.rehearsal,
        rehearsal_contents=rehearsal.rehearsal_contents,
        excluded=scene.excluded(pool.reasons),
        conflicts=found,
        sha256="",
    ).sealed()


def _places(store: Store, found: Iterable[Conflict]) -> dict[str, places.Place]:
    return places.find(store, (content for conflict in found for content in conflict.contents))


def _examples(scene: _Scene, pool: _Pool, part: tuple[Array, Array], number: Mapping[str, int]) -> Examples:
    rows, groups = part
    weak = scene.weak[rows]
    table = scene.rows.take(pa.array(rows))
    why = table["shown_because"].to_pylist()
    return Examples(
        vectors=pool.of(rows),
        targets=np.array([number[str(scene.labels[row])] for row in rows], dtype=np.int64),
        weights=np.where(weak, scene.settings.weak_weight, 1).astype(np.float32),
        groups=groups.astype(np.int64),
        contents=tuple(scene.contents[row] for row in rows),
        probability=np.array([np.nan if p is None else p for p in table["sampling_probability"].to_pylist()]),
        shown=tuple(WEAK if old else shown for old, shown in zip(weak.tolist(), why, strict=True)),
        view_of=np.arange(len(rows), dtype=np.int64),
    )


# ------------------------------------------------------------------ on disk

_PARTS = ("train", "validation", "audit")
_TEXTS = ("contents", "shown")
_ARRAYS = tuple(field.name for field in fields(Examples) if field.name not in _TEXTS)


def save(store: Store, key: str, dataset: Dataset) -> None:
    """Writes ``dataset`` into the folder ``key``: arrays, conflicts for people, and last ``dataset.json``."""
    from safetensors.numpy import save as packed

    store.write_bytes(f"{key}/dataset.safetensors", packed(_arrays(dataset)))
    save_conflicts(store, key, dataset.conflicts)
    store.write_json(f"{key}/dataset.json", {"format": FORMAT, "sha256": dataset.sha256, **_texts(dataset)})


def save_conflicts(store: Store, key: str, found: Sequence[Conflict]) -> None:
    """Writes ``conflicts.csv`` into the folder ``key``, in place of the one that is there."""
    store.write_bytes(f"{key}/conflicts.csv", conflicts.to_csv(found, taxonomy.current(store)))


def load(store: Store, key: str) -> Dataset:
    """The dataset in the folder ``key``.

    Raises:
        FileNotFoundError: when there is none, or not all of it yet.
        WwtsError: when it is not what was saved.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as unpacked

    texts = store.read_json(f"{key}/dataset.json")
    try:
        if texts["format"] != FORMAT:
            raise WwtsError(f"{store.path(key)} is a dataset of format {texts['format']}; this version reads {FORMAT}.")
        dataset = _joined(texts, unpacked(store.read_bytes(f"{key}/dataset.safetensors")))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WwtsError(f"{store.path(key)} is damaged ({error}); delete it and build the dataset again.") from error
    if _sha256(dataset) != dataset.sha256:
        raise WwtsError(f"{store.path(key)} is damaged (its SHA-256 differs); delete it and build the dataset again.")
    return dataset


def _arrays(dataset: Dataset) -> dict[str, Array]:
    # safetensors writes the buffer as it lies: of a slice that would be something else.
    found = {f"{part}.{name}": getattr(getattr(dataset, part), name) for part in _PARTS for name in _ARRAYS}
    found["rehearsal"] = dataset.rehearsal
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _texts(dataset: Dataset) -> dict[str, Any]:
    return {
        **{f"{part}.{name}": list(getattr(getattr(dataset, part), name)) for part in _PARTS for name in _TEXTS},
        "label_ids": list(dataset.label_ids),
        "rehearsal_contents": list(dataset.rehearsal_contents),
        "excluded": dataset.excluded,
        "conflicts": [conflict.to_json() for conflict in dataset.conflicts],
    }


def _joined(texts: Mapping[str, Any], arrays: Mapping[str, Array]) -> Dataset:
    def part(name: str) -> Examples:
        values: dict[str, Any] = {field: arrays[f"{name}.{field}"] for field in _ARRAYS}
        values.update({field: tuple(texts[f"{name}.{field}"]) for field in _TEXTS})
        return Examples(**values)

    return Dataset(
        label_ids=tuple(texts["label_ids"]),
        train=part("train"),
        validation=part("validation"),
        audit=part("audit"),
        rehearsal=arrays["rehearsal"],
        rehearsal_contents=tuple(texts["rehearsal_contents"]),
        excluded=dict(texts["excluded"]),
        conflicts=tuple(conflicts.from_json(value) for value in texts["conflicts"]),
        sha256=texts["sha256"],
    )


def _sha256(dataset: Dataset) -> str:
    digest = hashlib.sha256(json.dumps(_texts(dataset), ensure_ascii=False, sort_keys=True).encode())
    for name, array in sorted(_arrays(dataset).items()):
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
