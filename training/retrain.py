"""One training from frozen answers to a judged version: the stages of ``retrain_head``.

    prepare ─► build_dataset ─► train ─► register ─► (the gate's own stages) ─► judge ─► tag_diff

What passes between stages is an :class:`Order` of plain values; what they make lies in the store below
``trainings/<training>/``. A training is named by all that it is made from, and each stage ends with a marker: killed
anywhere and started again, it goes on where it was, and ends the same. Files are named by their SHA-256 and a marker is
made once: of two that do the same at the same time, both go on with what the first one made.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import structlog

from training import conflicts, lineage, places, views
from training import dataset as datasets
from training import snapshot as snapshots
from training.order import Made, Order
from training.order import key as order_key
from wwts_ops import badcases, moves, registration, registry, taxonomy
from wwts_ops.badcases import marks
from wwts_ops.errors import WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagdiff import learned
from wwts_ops.tagger import Head, Tagger, rehead
from wwts_ops.taxonomy import Label
from wwts_ops.tracking import ModelVersion

if TYPE_CHECKING:
    from training.conflicts import Conflict
    from training.dataset import Dataset
    from training.train import Trained

log = structlog.get_logger(__name__)

#: Raised whenever the code would make another dataset or head from the same.
_FORMAT = 2
#: Settings that a training depends on.
_SETTINGS = ("target_precision", "rehearsal", "weak_weight", "training_views", "holdout_share", "threshold")


# ------------------------------------------------------------------ stages


def prepare(settings: Settings, form: Mapping[str, Any]) -> dict[str, Any] | None:
    """Freezes the answers and says what is to be trained from them; None when there is nothing to train.

    Args:
        settings: of the process.
        form: ``force`` (trains however few answers are new, from old tags alone too, and again what was trained
            already), ``min_new_answers``, ``backbone`` (None: the champion's), ``seed`` and ``promote``.

    Returns:
        The fields of an :class:`Order`.

    Raises:
        WwtsError: when there is no answer at all, no such backbone, or no longer what the champion began with.
        UnavailableError: when database, store or MLflow do not answer.
    """
    store = Store.of(settings)
    # What a person marked as a bad case is held out of the training from which it would be learned.
    marks.adopt(store, settings)
    frozen = snapshots.freeze(settings)
    source = _source(settings, store, form, frozen)
    training = _last_begun(settings, store, source.training(frozen), form)
    reason = _nothing_to_do(settings, store, training, form, frozen)
    if reason:
        least = int(form.get("min_new_answers") or 1)
        log.info("training_skipped", reason=reason, new=frozen.new, least=least, answers=frozen.answers)
        return None
    if not frozen.answers and not frozen.weak:
        raise WwtsError("There are no answers to train from; import some with `wwts corrections import`.")
    order = _order(settings, frozen, source, training)
    # Of two that begin the same training, both go on with the first one's order.
    store.create(order.key("order.json"), json.dumps(asdict(order), ensure_ascii=False, indent=1).encode())
    order = Order(**store.read_json(order.key("order.json")))
    log.info(
        "training_ordered",
        training=order.training,
        answers=order.answers,
        new=order.new,
        base_version=order.base_version,
        backbone=order.backbone,
    )
    return asdict(order)


def _last_begun(settings: Settings, store: Store, first: str, form: Mapping[str, Any]) -> str:
    """The id of the last training that was begun from the same; with ``force``, after one that ended, a further one.

    Made from the same it ends the same, but for what the store holds and the code does by now.
    """
    training = first
    for number in itertools.count(2):
        further = f"{first}-{number}"
        again = form.get("force") and _ended(settings, store, training) is not None
        if not again and not store.exists(order_key(further, "order.json")):
            break
        training = further
    return training


def _nothing_to_do(
    settings: Settings, store: Store, training: str, form: Mapping[str, Any], frozen: snapshots.Snapshot
) -> str | None:
    """Why a run would do nothing; None when it has something to begin or to go on with."""
    if form.get("force"):
        return None
    version = _ended(settings, store, training)
    if version is None and store.exists(order_key(training, "order.json")):
        return None
    line = next((line for line in registry.versions(settings) if line.version == version), None)
    if line and registry.CHAMPION in line.aliases:
        return f"version {version}, trained from these answers, is champion"
    # Not what somebody went back from: that one goes live again only when a person names it.
    if line and form.get("promote") and line.gate == "passed" and not _was_champion(settings, line.version):
        return None
    if frozen.answers:
        return "too few new answers" if frozen.new < int(form.get("min_new_answers") or 1) else None
    only_old = "there are old tags and no answer; with force a head is trained from those alone"
    return only_old if frozen.weak else "there are no answers"


def _ended(settings: Settings, store: Store, training: str) -> str | None:
    """The version of a training that came to its end, short of a promotion, or that somebody promoted before that."""
    try:
        return str(store.read_json(order_key(training, "compared.json"))["version"])
    except FileNotFoundError:
        champion = registry.champion(settings) if registry.exists(settings) else None
    made = learned.training_of(settings, champion) if champion else None
    return champion.version if champion and made and made.id == training else None


def _was_champion(settings: Settings, version: str) -> bool:
    return any((move.alias, move.to_version) == (registry.CHAMPION, version) for move in moves.history(settings))


def build_dataset(settings: Settings, order: Order) -> None:
    """Makes what is learned from, unless it is there.

    Raises:
        WwtsError: when the answers cannot be learned from; with the reason.
        UnavailableError: when store or MLflow do not answer.
    """
    store = Store.of(settings)
    if not store.exists(order.key("dataset.json")):
        base = _base(settings, order)
        wanted = datasets.Order(order.snapshot, base, order.backbone_sha256, order.seed, _names(settings, order))
        made = views.extended(settings, registry.fetch(settings, base), datasets.build(settings, wanted))
        datasets.save(store, order.dataset_key(made.sha256), made)
        store.create(order.key("dataset.json"), json.dumps({"sha256": made.sha256}).encode())
    made = dataset(store, order)
    log.info(
        "dataset_ready",
        training=order.training,
        labels=len(made.label_ids),
        train=len(set(made.train.contents)),
        validation=len(set(made.validation.contents)),
        rehearsal=len(made.rehearsal),
        excluded=made.excluded,
        conflicts=len(made.conflicts),
    )


def dataset(store: Store, order: Order) -> Dataset:
    """What is learned from.

    Raises:
        FileNotFoundError: before :func:`build_dataset`.
        WwtsError: when it is not what was saved.
    """
    return datasets.load(store, order.dataset_key(store.read_json(order.key("dataset.json"))["sha256"]))


def train(settings: Settings, order: Order) -> None:
    """Trains the head, unless it is there.

    Raises:
        WwtsError: when the dataset cannot be learned from; with the reason.
        UnavailableError: when store or MLflow do not answer.
    """
    store = Store.of(settings)
    made = dataset(store, order)
    if not store.exists(order.key("trained.json")):
        from training import train as trainer

        base = registry.fetch(settings, _base(settings, order))
        log.info("training_started", training=order.training, labels=len(made.label_ids), examples=len(made.train))
        found = trainer.train(made, base, settings, order.seed, _names(settings, order))
        _save(store, order, replace(found, suspects=_attributed(store, order, found.suspects)))
    found = trained(store, order)
    datasets.save_conflicts(store, order.dataset_key(made.sha256), (*made.conflicts, *found.suspects))
    told = {"labels": len(found.head.label_ids), "on": found.validation.get("on"), **_numbers(found.validation)}
    log.info("head_trained", training=order.training, **told)


def register(settings: Settings, order: Order) -> str:
    """Registers the head as a version without alias and records the training in its MLflow run; its number.

    Done again, it finds the version that it registered before. The answers count as used from here on.

    Raises:
        WwtsError: when MLflow refuses, or the base is no longer what it was.
        UnavailableError: when store or MLflow do not answer.
    """
    from training import record

    store = Store.of(settings)
    base = registry.fetch(settings, _base(settings, order))
    made = Made(
        order=order,
        dataset=dataset(store, order),
        trained=trained(store, order),
        base_labels=base.label_ids,
    )
    # Before there is a version: whoever measures one leaves out what it learned from.
    store.write_bytes(order.key("contents.txt"), made.contents)
    with tempfile.TemporaryDirectory(prefix="wwts-retrain-") as folder:
        tagger = rehead(Path(folder, "tagger"), base, made.trained.head)
        model = registration.registered(settings, tagger.sha256) or registration.register(
            settings,
            registration.Candidate(
                tagger=tagger,
                labels=_labels(settings, store, made.trained.head.label_ids),
                origin=f"retrain_head {order.training}",
                tags=record.tags(made),
                params=record.params(made),
            ),
        )
    record.write(settings, model, made)
    snapshots.mark_used(store, order.latest)
    log.info("training_registered", training=order.training, version=model.version, new_labels=len(made.new_labels))
    return model.version


def judge(settings: Settings, evaluation: Mapping[str, Any], actor: str, run: str) -> str:
    """Lets the gate decide on what its own stages measured; ``passed`` or ``failed``.

    Args:
        settings: of the process.
        evaluation: the fields of an :class:`eval.evaluate.Order`.
        actor: who asked for it.
        run: Airflow's id of the run.

    Raises: as :func:`eval.evaluate.judge`.
    """
    from eval import evaluate

    verdict = evaluate.judge(settings, evaluate.Order(**evaluation), "enforced", actor, run)
    return "passed" if verdict.passed else "failed"


def tag_diff(settings: Settings, order: Order, version: str) -> None:
    """Compares the version of a training with the champion over the whole catalog, unless it is champion by now.

    Raises: as :func:`wwts_ops.tagdiff.build`.
    """
    from wwts_ops import tagdiff

    store = Store.of(settings)
    champion = registry.champion(settings)
    if champion and champion.version == version:
        # Somebody promoted it by hand, or it was trained again and ended the same: nothing would change.
        store.write_json(order.key("compared.json"), {"version": version, "tagdiff": None})
        log.info("tags_not_compared", version=version, reason="it is champion already")
        return
    found = tagdiff.build(settings, version)
    # The last thing that a training owes: until then a run without new answers goes on with it.
    store.write_json(order.key("compared.json"), {"version": version, "tagdiff": found.folder})
    log.info(
        "tags_compared",
        version=version,
        images=found.images,
        changed_label=found.changed_label.images,
        changed_decision=found.changed_decision.images,
        newly_live=found.newly_live.images,
        no_longer_live=found.no_longer_live.images,
    )


# ------------------------------------------------------------------ what it is made from


@dataclass(frozen=True)
class _Source:
    """What a training is made from, besides the answers.

    Attributes:
        base: the version that the head starts from; None: the backbone as it comes, registered or not.
        tagger: of that.
        seed: of everything that is drawn by lot.
        badcases: what is kept out of it.
        taxonomy: version in force.
        rules: digest of what that says of the labels that are answered or known to the base.
        settings: those that it depends on.
    """

    base: ModelVersion | None
    tagger: Tagger
    seed: int
    badcases: badcases.Snapshot
    taxonomy: str
    rules: str
    settings: dict[str, float]

    def training(self, frozen: snapshots.Snapshot) -> str:
        """The id of a training: the same for the same, and no other."""
        made_from = [_FORMAT, frozen.sha256, self.tagger.sha256, self.seed, self.badcases.sha256, self.settings]
        made_from.append(self.rules)
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        return f"h{frozen.latest:06d}-{digest[:12]}"


def _source(settings: Settings, store: Store, form: Mapping[str, Any], frozen: snapshots.Snapshot) -> _Source:
    """What the champion's trainings began with; a backbone that was asked for, with the head it comes with."""
    wanted = form.get("backbone")
    base = None if wanted else lineage.root(settings, registry.resolve(settings, None))
    tagger = registry.fetch(settings, base) if base else registration.embedded(settings, wanted)
    names = taxonomy.ensure(store, settings.forced_review)
    answered = pc.unique(pc.list_flatten(snapshots.read(store, frozen.name)["labels"])).to_pylist()
    return _Source(
        base=base,
        tagger=tagger,
        seed=int(form.get("seed") or 0),
        # In force before anything is learned: whatever they hold stays out of it.
        badcases=badcases.ensure(store, names),
        taxonomy=names.version,
        rules=_rules(names, {*answered, *tagger.label_ids}),
        settings={name: float(getattr(settings, name)) for name in _SETTINGS},
    )


def _rules(names: taxonomy.Taxonomy, label_ids: set[str]) -> str:
    """SHA-256 of what each label stands for, and whether that is given: a new name alone is no reason to train."""
    given = {label_id: names.given(label_id) for label_id in label_ids}
    known = {label_id: names.by_id.get(meant) for label_id, meant in given.items()}
    told = sorted((label_id, given[label_id], label and label.enabled) for label_id, label in known.items())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _order(settings: Settings, frozen: snapshots.Snapshot, source: _Source, training: str) -> Order:
    # A version of its own: whoever embeds or compares fetches it by its number.
    base = source.base or registration.register_backbone(settings, source.tagger.recipe.backbone).model
    return Order(
        training=training,
        snapshot=frozen.name,
        snapshot_sha256=frozen.sha256,
        latest=frozen.latest,
        answers=frozen.answers,
        new=frozen.new,
        base_version=base.version,
        base_sha256=base.sha256,
        backbone=source.tagger.recipe.backbone,
        backbone_sha256=base.backbone_sha256,
        seed=source.seed,
        badcases=source.badcases.name,
        taxonomy=source.taxonomy,
        settings=source.settings,
        ordered_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _base(settings: Settings, order: Order) -> ModelVersion:
    """The version that an order starts from.

    Raises:
        WwtsError: when it is another by now.
    """
    model = registry.resolve(settings, order.base_version)
    if model.sha256 != order.base_sha256:
        raise WwtsError(f"{model}, which training {order.training} starts from, was replaced; trigger a new run.")
    return model


def _names(settings: Settings, order: Order) -> taxonomy.Taxonomy:
    """The taxonomy by which an order's answers are read.

    Raises:
        WwtsError: when there is none of that name.
    """
    store = Store.of(settings)
    if not order.taxonomy:
        return taxonomy.ensure(store, settings.forced_review)
    try:
        return taxonomy.read(store, order.taxonomy)
    except FileNotFoundError:
        raise WwtsError(f"There is no taxonomy {order.taxonomy}, by which training {order.training} began.") from None


def _labels(settings: Settings, store: Store, label_ids: tuple[str, ...]) -> tuple[Label, ...]:
    """Names of a head's labels, each with its own flag: categories that a person must see stay in the store."""
    names = taxonomy.ensure(store, settings.forced_review)
    known = {**{label.label_id: label for label in taxonomy.embedded_labels()}, **names.by_id}
    found = (known.get(label_id) or Label(label_id, label_id) for label_id in label_ids)
    return tuple(replace(label, forced_review=names.forced_reason(label.label_id) is not None) for label in found)


# ------------------------------------------------------------------ heads in the store


def _save(store: Store, order: Order, found: Trained) -> None:
    """The head first, under its SHA-256, then the marker, which names it, unless another one was quicker."""
    from safetensors.numpy import save

    head = found.head
    tensors = {"weight": head.weight, "bias": head.bias, "thresholds": head.thresholds}
    # safetensors takes the buffer as it lies: of a transposed array that would be another matrix.
    data = save({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    store.write_bytes(_head_key(order, sha256), data)
    told = {
        "head_sha256": sha256,
        "label_ids": list(head.label_ids),
        "chosen": found.chosen,
        "validation": found.validation,
        "curve": found.curve,
        "confusions": found.confusions,
        "thresholds": found.thresholds,
        "suspects": [suspect.to_json() for suspect in found.suspects],
    }
    store.create(order.key("trained.json"), json.dumps(_plain(told), ensure_ascii=False, indent=1).encode())


def _head_key(order: Order, sha256: str) -> str:
    return order.key(f"head-{sha256[:12]}.safetensors")


def trained(store: Store, order: Order) -> Trained:
    """What came of the training.

    Raises:
        FileNotFoundError: before :func:`train`.
        WwtsError: when the head in the store is another one.
    """
    from safetensors.numpy import load

    from training.train import Trained

    told = store.read_json(order.key("trained.json"))
    data = store.read_bytes(_head_key(order, told["head_sha256"]))
    if hashlib.sha256(data).hexdigest() != told["head_sha256"]:
        raise WwtsError(f"{store.path(order.key(''))} holds another head than was trained; delete it and train again.")
    tensors = load(data)
    return Trained(
        head=Head(tuple(told["label_ids"]), tensors["thresholds"], tensors["weight"], tensors["bias"]),
        suspects=tuple(conflicts.from_json(value) for value in told["suspects"]),
        **{name: told[name] for name in ("chosen", "validation", "curve", "confusions", "thresholds")},
    )


def _attributed(store: Store, order: Order, found: tuple[Conflict, ...]) -> tuple[Conflict, ...]:
    """Suspects with who said it, and where the pictures are."""
    where = places.find(store, (content for conflict in found for content in conflict.contents))
    return conflicts.attributed(found, snapshots.read(store, order.snapshot), where)


def _plain(value: Any) -> Any:
    """JSON values: NumPy's numbers become Python's, and what is no number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {f"validation_{name}": value for name, value in values.items() if isinstance(value, int | float)}
