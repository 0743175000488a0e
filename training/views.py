"""Further views of answered pictures, for training only: mirrored, cropped otherwise.

Embedded once per content, backbone and recipe of views, and kept in
``views/backbone=b<12>/recipe=v<12>/part-<digest>.parquet``: a row a content, its views behind each other. A picture
that cannot be read, or whose bytes are others by now, has no views. Parts are small and appear whole: killed and
started again, it goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import structlog

from training import dataset as datasets
from training import places
from training.dataset import Dataset, Examples
from training.places import Place
from wwts_ops import embeddings, images
from wwts_ops.backfill import CHANGED
from wwts_ops.embeddings import EmbeddingWriter
from wwts_ops.fetch import Fetcher
from wwts_ops.images import Rejected
from wwts_ops.runtime import Embedder, embedder, one_core
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger
from wwts_ops.tagging import ordered

if TYPE_CHECKING:
    from wwts_ops.backbones.base import Recipe

log = structlog.get_logger(__name__)

Array = np.ndarray[Any, Any]

#: Contents of one part: what a kill can cost, some ten seconds.
_PART: Final = 256
#: Threads a core: while one waits for bytes another decodes.
_THREADS: Final = 2
#: Pictures under way at once: what is read but not written yet.
_WINDOW: Final = 32
#: Draws of a crop that does not fit into the picture, before the whole of it is taken.
_DRAWS: Final = 10


@dataclass(frozen=True)
class Views:
    """Which views; a part of their identity in the store.

    Attributes:
        kinds: one a view: ``mirror`` (of the crop that the night looks at) or ``crop`` (a part drawn by lot, mirrored
            half of the time).
        least: smallest area of a ``crop``, as a share of the picture's.
        aspect: of a ``crop``, width over height lies between one over this and this.
        seed: of the lots; each content and view has its own.
    """

    kinds: tuple[str, ...]
    least: float = 0.35
    aspect: float = 4 / 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be made, with a ValueError."""
        if not set(self.kinds) <= set(_KINDS) or not 0 < self.least <= 1 or not self.aspect >= 1:
            raise ValueError(f"there are no such views: {self}")

    @classmethod
    def of(cls, count: int) -> Views:
        """``count`` views: the mirrored one, then crops."""
        return cls((*("mirror",), *("crop",) * (count - 1))[:count])

    @property
    def sha256(self) -> str:
        """Identity of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def extended(settings: Settings, tagger: Tagger, dataset: Dataset, views: Views | None = None) -> Dataset:
    """``dataset`` with views of its answered pictures but those of the audit, embedded where they are not stored yet.

    Imported old tags get none: nobody looked at those pictures. A view has target, weight, group, content, probability
    and reason of its original; contents without any are counted under ``no_views``.

    Args:
        settings: ``training_views``; threads, device and limits.
        tagger: whose backbone embeds; that of the dataset.
        dataset: without views.
        views: which; None: ``Views.of(settings.training_views)``.

    Raises:
        WwtsError: when stored views are damaged.
        UnavailableError: when the store does not answer.
    """
    views = Views.of(settings.training_views) if views is None else views
    if not views.kinds:
        return dataset
    store = Store.of(settings)
    # Of the validation too: once it was measured on, it is learned from. It is measured on originals alone.
    parts = {"train": dataset.train, "validation": dataset.validation}
    rows = {name: np.flatnonzero([why != datasets.WEAK for why in part.shown]) for name, part in parts.items()}
    contents = {name: [part.contents[row] for row in rows[name]] for name, part in parts.items()}
    embed(settings, tagger, [content for some in contents.values() for content in some], views)
    without = 0
    for name, part in parts.items():
        found, vectors = _taken(store, tagger, views, contents[name])
        parts[name] = _joined(part, rows[name][found], vectors)
        without += int((~found).sum())
    excluded = {**dataset.excluded, "no_views": without}
    return replace(dataset, train=parts["train"], validation=parts["validation"], excluded=excluded).sealed()


def embed(settings: Settings, tagger: Tagger, contents: Sequence[str], views: Views) -> dict[str, int]:
    """Makes and keeps the views of those of ``contents`` that have none stored.

    Returns:
        Counts: ``stored`` (before), ``embedded`` and, by reason, those that could not be: ``not_in_catalog``,
        ``changed`` or one of ``images.REASONS``.

    Raises: as :func:`extended`.
    """
    store = Store.of(settings)
    known = _known(store, tagger, views)
    missing = sorted(set(contents) - known)
    counts = Counter(stored=len(set(contents)) - len(missing))
    if not missing:
        return dict(counts)
    where = places.find(store, missing)
    counts["not_in_catalog"] = len(missing) - len(where)
    log.info("views_started", missing=len(where), kinds=list(views.kinds), backbone=tagger.backbone_sha256[:12])
    with _Maker.opened(settings, tagger, views) as maker:
        items = sorted(where.items())
        for start in range(0, len(items), _PART):
            part = items[start : start + _PART]
            counts += _write(store, maker, part)
            log.info("views_progress", done=start + len(part), of=len(items))
    log.info("views_made", **counts)
    return dict(counts)


# ------------------------------------------------------------------ in the store


def _folder(tagger: Tagger, views: Views) -> str:
    return f"views/backbone=b{tagger.backbone_sha256[:12]}/recipe=v{views.sha256[:12]}"


def _known(store: Store, tagger: Tagger, views: Views) -> set[str]:
    """Contents whose views are stored."""
    keys = store.list(_folder(tagger, views), ".parquet")
    return {content for key in keys for content in store.read_table(key, ["content_sha256"]).column(0).to_pylist()}


def _write(store: Store, maker: _Maker, part: Sequence[tuple[str, Place]]) -> Counter[str]:
    """One part; named by what it was to hold, so that two at once write the same."""
    counts: Counter[str] = Counter()
    digest = hashlib.sha256("\n".join(content for content, _ in part).encode()).hexdigest()
    key = f"{_folder(maker.tagger, maker.views)}/part-{digest[:12]}.parquet"
    dimension = len(maker.views.kinds) * maker.tagger.recipe.dimension
    with (
        store.writing(key) as path,
        EmbeddingWriter(path, maker.tagger.backbone_sha256, dimension) as writer,
    ):
        for (content, _), made in zip(part, maker.made(part), strict=True):
            if isinstance(made, str):
                log.warning("no_views", image_hash=content, reason=made)
                counts[made] += 1
            else:
                writer.add(content, made)
                counts["embedded"] += 1
    return counts


def _taken(store: Store, tagger: Tagger, views: Views, contents: Sequence[str]) -> tuple[Array, Array]:
    """Which of ``contents`` have views, ``bool [n]``, and those, ``float16 [found, views, d]``."""
    count, dimension = len(views.kinds), tagger.recipe.dimension
    place = {content: number for number, content in enumerate(contents)}
    found = np.zeros(len(contents), dtype=bool)
    taken = np.zeros((len(contents), count, dimension), np.float16)
    for key in store.list(_folder(tagger, views), ".parquet"):
        for names, vectors in embeddings.batches(store, key):
            rows = [row for row, name in enumerate(names) if name in place and not found[place[name]]]
            places_ = [place[names[row]] for row in rows]
            found[places_] = True
            taken[places_] = vectors[rows].reshape(-1, count, dimension)
    return found, taken[found]


def _joined(part: Examples, rows: Array, vectors: Array) -> Examples:
    """``part`` with the views ``float16 [rows, views, d]`` of ``rows`` behind it."""
    of = np.concatenate([np.arange(len(part)), np.repeat(rows, vectors.shape[1])])
    return Examples(
        vectors=np.concatenate([part.vectors, vectors.reshape(-1, part.vectors.shape[1])]),
        targets=part.targets[of],
        weights=part.weights[of],
        groups=part.groups[of],
        contents=tuple(part.contents[row] for row in of),
        probability=part.probability[of],
        shown=tuple(part.shown[row] for row in of),
        view_of=of.astype(np.int64),
    )


# ------------------------------------------------------------------ from pictures


@dataclass(frozen=True)
class _Maker:
    """From places to views, with threads."""

    settings: Settings
    tagger: Tagger
    views: Views
    embed: Embedder
    fetcher: Fetcher
    pool: ThreadPoolExecutor

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings, tagger: Tagger, views: Views) -> Iterator[_Maker]:
        threads = _THREADS * (settings.workers or len(os.sched_getaffinity(0)))
        with (
            Fetcher(settings) as fetcher,
            _one_core_meanwhile(),
            ThreadPoolExecutor(threads, "views") as pool,
        ):
            yield cls(settings, tagger, views, embedder(tagger, settings.device), fetcher, pool)

    def made(self, part: Sequence[tuple[str, Place]]) -> Iterator[Array | str]:
        """For each content ``float16 [views × d]``, or why there is none."""
        return ordered(self.pool, self._one, part, window=_WINDOW)

    def _one(self, item: tuple[str, Place]) -> Array | str:
        content, place = item
        data = self._read(content, place)
        if isinstance(data, str):
            return data
        try:
            crops = self._crops(content, data)
        except Rejected as rejected:
            return rejected.reason
        if self.embed.batch_size == 1:
            return np.concatenate([self.embed(crop[np.newaxis])[0] for crop in crops])
        return self.embed(np.stack(crops)).reshape(-1)

    def _read(self, content: str, place: Place) -> bytes | str:
        """The bytes of a content from the first image that still has them, or why none has."""
        reason = "not_in_catalog"
        for uri in place.uris:
            try:
                data = self.fetcher.read(uri)
            except Rejected as rejected:
                reason = rejected.reason
                continue
            if images.content_sha256(data) == content:
                return data
            reason = CHANGED
        return reason

    def _crops(self, content: str, data: bytes) -> list[Array]:
        """The network's inputs, ``uint8 [input, input, 3]`` each."""
        made = []
        for number, kind in enumerate(self.views.kinds):
            lots = np.random.default_rng(_lot(content, number, self.views.seed))
            view = _View(self.tagger.recipe, self.views, self.settings.max_pixels, lots)
            made.append(np.ascontiguousarray(_KINDS[kind](data, view)))
        return made


@contextmanager
def _one_core_meanwhile() -> Iterator[None]:
    """Keeps torch and OpenCV to the calling thread; training in the same process gets its cores back."""
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    one_core()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _lot(content: str, number: int, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{number}\0{content}".encode()).digest()[:16])


@dataclass(frozen=True)
class _View:
    """What one view is made by; ``lots``: its own."""

    recipe: Recipe
    views: Views
    max_pixels: int
    lots: np.random.Generator

    def decoded(self, data: bytes, short_side: int) -> Array:
        """``uint8 [height, width, 3]``."""
        return images.decode(data, short_side, self.max_pixels).rgb


def _mirror(data: bytes, view: _View) -> Array:
    recipe = view.recipe
    mirrored: Array = recipe.crop(view.decoded(data, recipe.short_side))[:, ::-1]
    return mirrored


def _crop(data: bytes, view: _View) -> Array:
    import torch

    recipe, views, lots = view.recipe, view.views, view.lots
    # As many pixels as the smallest crop needs on its short side.
    rgb = view.decoded(data, ceil(recipe.input / sqrt(views.least / views.aspect)))
    top, left, height, width = _box(rgb.shape[0], rgb.shape[1], views, lots)
    piece = torch.from_numpy(np.ascontiguousarray(rgb[top : top + height, left : left + width]))
    pixels = piece.permute(2, 0, 1).unsqueeze(0)
    square = torch.nn.functional.interpolate(pixels, size=(recipe.input, recipe.input), mode="bicubic", antialias=True)
    made: Array = square[0].permute(1, 2, 0).numpy()
    return made[:, ::-1] if lots.random() < 0.5 else made


def _box(height: int, width: int, views: Views, lots: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop: area and aspect are drawn until they fit, as torchvision does."""
    for _ in range(_DRAWS):
        area = height * width * lots.uniform(views.least, 1)
        aspect = views.aspect ** lots.uniform(-1, 1)
        rows, columns = round(sqrt(area / aspect)), round(sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return int(lots.integers(height - rows + 1)), int(lots.integers(width - columns + 1)), rows, columns
    # A long strip: the middle of it, as far from square as may be.
    rows = min(height, round(width * views.aspect))
    columns = min(width, round(height * views.aspect))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


_KINDS: Final[Mapping[str, Callable[[bytes, _View], Array]]] = {"mirror": _mirror, "crop": _crop}
