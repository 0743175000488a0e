"""The demo: a catalog of photographs that installed packages carry, and one night over it."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import shutil
import struct
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from wwts_ops import dagrun, settings
from wwts_ops.errors import WwtsError

#: Real photographs in scikit-image, scikit-learn and matplotlib, with the name a shop might file them under.
_PHOTOS = {
    "skimage/data/astronaut.png": "人物/宇航员",
    "skimage/data/brick.png": "建材/红砖墙",
    "skimage/data/camera.png": "摄影/摄影师",
    "skimage/data/chelsea.png": "宠物/猫 Chelsea 🐱",
    "skimage/data/clock_motion.png": "家居/挂钟",
    "skimage/data/coffee.png": "饮料/咖啡 ☕",
    "skimage/data/coins.png": "收藏/古钱币",
    "skimage/data/grass.png": "园艺/草坪",
    "skimage/data/gravel.png": "建材/碎石",
    "skimage/data/hubble_deep_field.jpg": "图书/星空",
    "skimage/data/moon.png": "图书/月球",
    "skimage/data/motorcycle_left.png": "车辆/摩托车",
    "skimage/data/retina.jpg": "医疗/眼底照片",
    "skimage/data/rocket.jpg": "图书/火箭发射",
    "sklearn/datasets/images/china.jpg": "旅游/颐和园",
    "sklearn/datasets/images/flower.jpg": "鲜花/大丽花",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": "人物/格蕾丝·霍珀",
}
_CROPS = 20
_COPIES = 15
_SEED = 20_260_000
_READY = ".ready"


def run(catalog: str, folder: Path) -> int:
    """Makes the demo catalog unless ``catalog`` names one, and runs ``tag_catalog`` over it; its exit code."""
    console = Console(highlight=False)
    folder = folder.absolute()
    if catalog:
        catalog = catalog if "://" in catalog else str(Path(catalog).expanduser().absolute())
        # A store of its own: a stranger's catalog and ours must not delist each other's images.
        folder = folder / hashlib.sha256(catalog.encode()).hexdigest()[:8]
    else:
        catalog = str(make_catalog(folder / "catalog", console))
    os.environ.update(WWTS_CATALOG=catalog, WWTS_STORE=str(folder / "store"))
    # A real shop starts in shadow; here one wants to see tags go live at once.
    os.environ.setdefault("WWTS_RELEASE", "live")
    console.print(f"图库：{catalog}", markup=False)
    found = settings.load()
    code = dagrun.run(found, f"{found.dag_prefix}tag_catalog", {})
    if code == 0:
        console.print(f"\n接着打开审核页：WWTS_STORE={_shown(folder / 'store')} make up", markup=False, soft_wrap=True)
    return code


def _shown(folder: Path) -> str:
    """As one types it into a shell: without what leads to where one is."""
    return shlex.quote(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))


def make_catalog(folder: Path, console: Console) -> Path:
    """A few hundred photographs, copies and broken files in ``folder``; the same every time, made once."""
    if (folder / _READY).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    chance = random.Random(_SEED)  # noqa: S311 (the same pictures every time, no secret)
    made: list[Path] = []
    for source, name in track(_photos(), "正在准备演示图片", console=console, transient=True):
        made += _variants(source, folder / name, chance)
    for number, original in enumerate(chance.sample(made, _COPIES), start=1):
        target = folder / "重复图片" / f"副本 {number:02d}{original.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, target)
    _break(folder / "损坏文件", made[0])
    (folder / _READY).touch()
    return folder


def photographs() -> list[Path]:
    """The photographs of installed packages.

    Raises:
        WwtsError: when none of those packages is installed.
    """
    return [path for path, _ in _photos()]


def _photos() -> list[tuple[Path, str]]:
    found = []
    for place, name in _PHOTOS.items():
        package, _, rest = place.partition("/")
        spec = find_spec(package)
        path = Path(spec.submodule_search_locations[0], rest) if spec and spec.submodule_search_locations else None
        if path and path.is_file():
            found.append((path, name))
    if not found:
        raise WwtsError("The demo needs scikit-image, scikit-learn or matplotlib: pip install 'wwts-ops[demo]'.")
    return found


def _variants(source: Path, target: Path, chance: random.Random) -> Iterator[Path]:
    """The photograph itself, then crops of it in the formats a shop's photographs come in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    original = target.with_name(target.name + source.suffix)
    shutil.copyfile(source, original)
    yield original
    with Image.open(source) as opened:
        photo = opened.convert("RGB")
    for number in range(_CROPS):
        share = chance.uniform(0.6, 0.98)
        width, height = round(photo.width * share), round(photo.height * share)
        left, top = chance.randint(0, photo.width - width), chance.randint(0, photo.height - height)
        crop = photo.crop((left, top, left + width, top + height))
        if number % 5 == 0:
            # As large as a phone's or a camera's original.
            crop = crop.resize((width * 1600 // max(width, height), height * 1600 // max(width, height)))
        path = target.with_name(f"{target.name}-{number:02d}{chance.choice(['.jpg', '.jpg', '.jpg', '.png', '.webp'])}")
        crop.save(path, quality=chance.randint(70, 95))  # PNG takes no notice of it
        yield path


def _break(folder: Path, photo: Path) -> None:
    """Files such as every real catalog holds: none of them is a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(photo) as opened:
        whole = folder / "截断的照片.jpg"
        opened.convert("RGB").save(whole, quality=90)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "空文件.jpg").write_bytes(b"")
    (folder / "其实是网页.jpg").write_text("<!doctype html><title>404</title>页面不存在", encoding="utf-8")
    (folder / "其实是PDF.png").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n")
    (folder / "解压炸弹💣.png").write_bytes(_bomb())


def _bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1024)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
