"""How alike copies and other photographs are: ``python -m eval.bench_neardup PHOTOS``.

PHOTOS is a folder of photographs with a folder a product. Copies are made as shops and platforms make them, and go
through the same decoding and the same embedded default as a night's images. This is what the constants of
``wwts_ops.neardup`` rest on.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from rich.console import Console
from rich.table import Table

from wwts_ops import images, neardup, registration, runtime, settings

Array = np.ndarray[Any, Any]

THRESHOLDS = (0.70, 0.75, 0.80, 0.85, 0.90, 0.925, 0.95, 0.975)
_MAX_PIXELS = 100_000_000
_SEED = 20_260_301

out = Console(highlight=False, width=140)


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    """``picture`` as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _cropped(picture: Image.Image, share: float) -> Image.Image:
    left, top = round(picture.width * share), round(picture.height * share)
    return picture.crop((left, top, picture.width - left, picture.height - top))


def _written(picture: Image.Image, text: str, place: tuple[float, float], size: float) -> Image.Image:
    """Half-transparent white text with a dark edge; place and size as shares of the picture."""
    layer = Image.new("RGBA", picture.size)
    font = ImageFont.load_default(picture.height * size)
    at = (picture.width * place[0], picture.height * place[1])
    ImageDraw.Draw(layer).text(at, text, (255, 255, 255, 150), font, "mm", stroke_width=1, stroke_fill=(0, 0, 0, 90))
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _badge(picture: Image.Image) -> Image.Image:
    done = picture.copy()
    width, height = picture.size
    draw = ImageDraw.Draw(done)
    draw.rectangle((0, height * 0.86, width, height), (214, 20, 32))
    draw.text((width / 2, height * 0.93), "SALE  -30 %  TODAY", "white", ImageFont.load_default(height * 0.08), "mm")
    return done


def _reposted(picture: Image.Image) -> Image.Image:
    return _written(_cropped(_scaled(picture, 0.7), 0.03), "shop.example", (0.5, 0.5), 0.12)


#: Name to what is done with a photograph.
COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 95": lambda picture: jpeg(picture, 95),
    "JPEG, quality 75": lambda picture: jpeg(picture, 75),
    "JPEG, quality 60": lambda picture: jpeg(picture, 60),
    "half the size": lambda picture: jpeg(_scaled(picture, 0.5)),
    "twice the size": lambda picture: jpeg(_scaled(picture, 2.0)),
    "3 % off each side": lambda picture: jpeg(_cropped(picture, 0.03)),
    "5 % off each side": lambda picture: jpeg(_cropped(picture, 0.05)),
    "15 % brighter": lambda picture: jpeg(ImageEnhance.Brightness(picture).enhance(1.15)),
    "25 % darker": lambda picture: jpeg(ImageEnhance.Brightness(picture).enhance(0.75)),
    "text in a corner": lambda picture: jpeg(_written(picture, "shop.example", (0.75, 0.92), 0.07)),
    "watermark across": lambda picture: jpeg(_written(picture, "shop.example", (0.5, 0.5), 0.15)),
    "sale banner": lambda picture: jpeg(_badge(picture)),
    "white frame of 5 %": lambda picture: jpeg(ImageOps.expand(picture, round(picture.width * 0.05), "white")),
    "mirrored": lambda picture: jpeg(ImageOps.mirror(picture)),
    "reposted: all of it": lambda picture: jpeg(_reposted(picture), 60),
}


class Eye:
    """The embedded default, from bytes to embeddings."""

    def __init__(self, folder: Path) -> None:
        tagger = registration.embedded(settings.load(store=str(folder / "store")))
        runtime.one_core()
        self._recipe, self._embed = tagger.recipe, runtime.OnnxEmbedder(tagger)

    def __call__(self, files: Iterable[bytes]) -> Array:
        """``float16 [n, d]``."""
        with ThreadPoolExecutor(2) as pool:
            return np.concatenate(list(pool.map(self._one, files)))

    def _one(self, data: bytes) -> Array:
        decoded = images.decode(data, self._recipe.short_side, _MAX_PIXELS)
        return self._embed(self._recipe.crop(decoded.rgb)[None])


def main(
    photos: Annotated[Path, typer.Argument(help="folder of photographs: kind of product / product / photograph")],
    base: Annotated[int, typer.Option(help="photographs that copies are made of")] = 400,
    store: Annotated[Path, typer.Option(help="where the embedded default is kept")] = Path(".wwts/bench"),
) -> None:
    """Prints what copies and what other photographs are at each similarity, and what a holdout of 5 % takes."""
    paths = sorted(photos.rglob("*.jpg"))
    eye = Eye(store)
    everything = eye(path.read_bytes() for path in paths)
    chance = random.Random(_SEED)  # noqa: S311 (the same photographs every time, no secret)
    chosen = sorted(chance.sample(range(len(paths)), min(base, len(paths))))
    copied = {name: eye(make(_open(paths[one])) for one in chosen) for name, make in COPIES.items()}
    columns = ("5 %", "median", *(f"≥ {threshold}" for threshold in THRESHOLDS))
    out.print(_table(f"copies of {len(chosen)} photographs", columns, _copy_rows(everything[chosen], copied)))
    out.print(_table(f"{len(paths)} photographs", columns, _other_rows(everything, paths)))
    out.print(_table("chains", ("groups", "largest"), _chain_rows(everything)))
    pictures = [_open(paths[one]) for one in chosen]
    kinds = chance.choices(list(COPIES), k=len(chosen)), chance.choices(list(COPIES), k=len(chosen))
    twice = eye(_twice(*each) for each in zip(pictures, *kinds, strict=True))
    once = np.stack([copied[kind][number] for number, kind in enumerate(kinds[0])])
    out.print(_table("5 % held out", ("share",), _holdout_rows(everything, chosen, once, twice)))


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _twice(picture: Image.Image, first: str, second: str) -> bytes:
    with Image.open(io.BytesIO(COPIES[first](picture))) as copy:
        return COPIES[second](copy)


def _table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _unit(vectors: Array) -> Array:
    plain = vectors.astype(np.float32)
    unit: Array = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    return unit


def _row(name: str, similarities: Array) -> tuple[str, ...]:
    told = (f"{value:.3f}" for value in np.quantile(similarities, (0.05, 0.5)))
    return name, *told, *(f"{(similarities >= threshold).mean():.1%}" for threshold in THRESHOLDS)


def _copy_rows(originals: Array, copied: dict[str, Array]) -> Iterable[tuple[str, ...]]:
    for name, vectors in copied.items():
        yield _row(name, (_unit(originals) * _unit(vectors)).sum(axis=1))


def _other_rows(everything: Array, paths: Sequence[Path]) -> Iterable[tuple[str, ...]]:
    """The similarity of each photograph to the one most like it."""
    unit = _unit(everything)
    products = unit @ unit.T
    np.fill_diagonal(products, -1)
    product = np.array([str(path.parent.name) for path in paths])
    kind = np.array([str(path.parent.parent.name) for path in paths])
    same, related = product[:, None] == product, kind[:, None] == kind
    yield _row("most like one of the same product", np.where(same, products, -1).max(axis=1))
    yield _row("most like one of another product", np.where(same, -1, products).max(axis=1))
    yield _row("most like one of another kind of product", np.where(same | related, -1, products).max(axis=1))


def _chain_rows(everything: Array) -> Iterable[tuple[str, ...]]:
    for threshold in THRESHOLDS:
        sizes = np.bincount(neardup.groups(everything, threshold))
        yield f"≥ {threshold}", f"{len(sizes):,}", f"{sizes.max():,}"


def _holdout_rows(everything: Array, chosen: list[int], once: Array, twice: Array) -> Iterable[tuple[str, ...]]:
    """Ten draws of 5 %: of the photographs alone, then of those that have copies, with all copies around."""
    chance = np.random.default_rng(_SEED)
    found, chained = [], []
    numbers = neardup.groups(everything, neardup.SIMILARITY)
    for _ in range(10):
        drawn = chance.random(len(everything)) < 0.05
        found.append(neardup.copies(everything, everything[drawn]).mean())
        chained.append(np.isin(numbers, numbers[drawn]).mean())
    yield "photographs held out, themselves included", f"{np.mean(found):.1%}"
    yield "the same with chains at SIMILARITY", f"{np.mean(chained):.1%}"
    crowd, start = np.concatenate([everything, once, twice]), len(everything)
    shares = []
    for _ in range(10):
        copied = chance.choice(len(chosen), round(0.05 * len(everything)), replace=False)
        held = neardup.copies(crowd, everything[chosen][copied])
        shares.append((held[start + copied].mean(), held[start + len(chosen) + copied].mean()))
    for name, share in zip(("copies held out", "copies of copies held out"), np.mean(shares, axis=0), strict=True):
        yield name, f"{share:.1%}"


if __name__ == "__main__":
    typer.run(main)
