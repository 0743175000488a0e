"""A tag diff in the store and on the model version: computed once for the same inputs, then found again."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import structlog

from wwts_ops import addresses, corrections, embeddings, moves, published, registry, taxonomy, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagdiff import compare, learned, page
from wwts_ops.tagdiff.facts import TagDiff, Versions
from wwts_ops.taxonomy import Taxonomy
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)

#: Raised whenever the same inputs would give other files.
_FORMAT = 2
#: Folder of the artifacts in the version's MLflow run, and the version's tag.
ARTIFACTS, TAG = "tag_diff", "tagdiff.summary"
_CHANGES, _PAGE, _SUMMARY = "changes.parquet", "index.html", "summary.json"


def told(settings: Settings, version: str) -> str:
    """Markdown on what ``version`` would change, for whoever decides; why not, where nothing can be said.

    Raises:
        UnavailableError: when MLflow, the database or the store does not answer.
    """
    model = registry.resolve(settings, version)
    if not embeddings.parts(Store.of(settings), model.backbone_sha256):
        return page.unembedded(model.backbone_sha256)
    try:
        found = build(settings, version)
        return f"{page.markdown(found)}\n[打开完整的改动对比]({addresses.tag_diff(settings, found.folder)})\n"
    except UnavailableError:
        raise
    except WwtsError as error:
        # The gate decides; that nobody could look beforehand is for the person who approves to weigh.
        log.warning("tag_diff_failed", version=version, reason=str(error))
        return page.failed(str(error))


def build(settings: Settings, version: str | None) -> TagDiff:
    """What would change if ``version`` became champion, over every stored embedding.

    Written to ``tagdiffs/<champion>-<challenger>-<inputs>/`` and attached to the version. With the same inputs (both
    models, taxonomy, embeddings, what is published, answers) it is found again instead.

    Args:
        settings: which store, registry and database.
        version: its number; None: the one that alias ``challenger`` names.

    Raises:
        WwtsError: when there is no such version, it is champion, or what is stored is damaged.
        UnavailableError: when MLflow, the database or the store does not answer.
    """
    store = Store.of(settings)
    scene = _scene(store, settings, version)
    diff = _found(store, scene.folder)
    if diff is None:
        diff = _computed(store, settings, scene)
    _attach(settings, store, scene.new, diff)
    return diff


@dataclass(frozen=True)
class _Scene:
    """What a diff is a function of, by name; read before any of it."""

    old: ModelVersion
    new: ModelVersion
    versions: Versions
    old_parts: tuple[str, ...]
    new_parts: tuple[str, ...]
    published: tuple[str, ...] | None
    training: learned.Training | None

    @property
    def folder(self) -> str:
        """In the store."""
        raw = json.dumps([_FORMAT, asdict(self)], sort_keys=True).encode()
        digest = hashlib.sha256(raw).hexdigest()
        return f"tagdiffs/{self.old.sha256[:12]}-{self.new.sha256[:12]}-{digest[:12]}"


def _scene(store: Store, settings: Settings, version: str | None) -> _Scene:
    old = champion(settings)
    new = registry.resolve(settings, version or _challenger(settings))
    if old.version == new.version:
        raise WwtsError(f"{new} is {registry.CHAMPION} already; there is nothing to compare it with.")
    pointer = published.current(store)
    snapshot: Mapping[str, Any] = {} if pointer is None else pointer.value
    return _Scene(
        old=old,
        new=new,
        versions=Versions(
            model_name=new.name,
            old=old.version,
            new=new.version,
            old_sha256=old.sha256,
            new_sha256=new.sha256,
            same_backbone=old.backbone_sha256 == new.backbone_sha256,
            taxonomy=taxonomy.ensure(store, settings.forced_review).version,
            snapshot=str(snapshot.get("snapshot", "")),
            answers=corrections.latest(settings),
            release=str(snapshot.get("release") or settings.release or "shadow"),
        ),
        old_parts=embeddings.parts(store, old.backbone_sha256),
        new_parts=embeddings.parts(store, new.backbone_sha256),
        published=tuple(snapshot["parts"]) if snapshot else None,
        training=learned.training_of(settings, new),
    )


def champion(settings: Settings) -> ModelVersion:
    """The version that is compared with; unlike a night, a comparison registers none.

    Raises:
        WwtsError: when there is none.
        UnavailableError: when MLflow does not answer.
    """
    found = registry.champion(settings) if registry.exists(settings) else None
    if found is None:
        raise WwtsError(f"No version of {settings.model_name} is {registry.CHAMPION}; run `wwts init` first.")
    return found


def _challenger(settings: Settings) -> str:
    with tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        found = moves.aliases(client, settings.model_name)[moves.CHALLENGER]
    if found is None:
        raise WwtsError(f"No version of {settings.model_name} is {moves.CHALLENGER}; name the version.")
    return found


def meant(answers: pa.Table, names: Taxonomy) -> pa.Table:
    """``answers`` with the labels that are given today where people named one that was merged since.

    Args:
        answers: schema ``ANSWERS``.
        names: in force.
    """
    place = answers.schema.get_field_index("labels")
    given = [list(dict.fromkeys(map(names.given, labels or ()))) for labels in answers["labels"].to_pylist()]
    return answers.set_column(place, answers.schema.field(place), pa.array(given, answers.schema.field(place).type))


def _found(store: Store, folder: str) -> TagDiff | None:
    try:
        return TagDiff.of(store.read_json(f"{folder}/{_SUMMARY}"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise WwtsError(f"{store.path(folder)}/{_SUMMARY} is damaged; delete that folder. ({error})") from error


def _computed(store: Store, settings: Settings, scene: _Scene) -> TagDiff:
    versions = scene.versions
    names = taxonomy.read(store, versions.taxonomy)
    inputs = compare.Inputs(
        old=registry.fetch(settings, scene.old),
        new=registry.fetch(settings, scene.new),
        taxonomy=names,
        old_parts=scene.old_parts,
        new_parts=scene.new_parts,
        published=scene.published,
        answers=meant(corrections.in_force(corrections.frozen(settings, versions.answers)), names),
        learned=learned.contents(store, scene.training),
    )
    with compare.compared(store, inputs) as comparison:
        comparison.write_changes(f"{scene.folder}/{_CHANGES}")
        diff = TagDiff(
            folder=scene.folder,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions,
            by_category=comparison.categories(),
            pairs=comparison.pairs(),
            known=comparison.known(),
            riskiest=comparison.riskiest(),
            **comparison.counts(),
        )
    store.write_bytes(f"{scene.folder}/{_PAGE}", page.render(store, diff, settings.timezone).encode())
    # Last: what has a summary is whole.
    store.write_json(f"{scene.folder}/{_SUMMARY}", diff.to_json())
    log.info("tag_diff_made", folder=diff.folder, images=diff.images, **_told(diff))
    return diff


def _attach(settings: Settings, store: Store, model: ModelVersion, diff: TagDiff) -> None:
    """Puts the files into the version's run, and then the tag that says so on the version."""
    with tracking.connected(settings) as client:
        entry = client.get_model_version(model.name, model.version)
        before = entry.tags.get(TAG, "")
        if f'"folder": "{diff.folder}"' in before:
            return
        if entry.run_id:
            with tempfile.TemporaryDirectory(prefix="wwts-tagdiff-") as folder:
                for name in (_PAGE, _SUMMARY, _CHANGES):
                    with store.open(f"{diff.folder}/{name}") as source, Path(folder, name).open("wb") as target:
                        shutil.copyfileobj(source, target)
                client.log_artifacts(entry.run_id, folder, ARTIFACTS)
        else:
            log.warning("tag_diff_without_run", version=model.version)
        tag = {"folder": diff.folder, "champion": diff.versions.old, "made_at": diff.made_at, **_told(diff)}
        client.set_model_version_tag(model.name, model.version, TAG, json.dumps(tag, ensure_ascii=False))


def _told(diff: TagDiff) -> dict[str, Any]:
    """Its main numbers, of images; of ``known`` contents."""
    names = ("changed_label", "changed_decision", "unseen", "newly_live", "no_longer_live")
    known = {"known": diff.known.n, "known_old_right": diff.known.old_right, "known_new_right": diff.known.new_right}
    return {**{name: getattr(diff, name).images for name in names}, **known}
