"""A catalog of which the tests know every image, and `wwts` as a person runs it: in a process of its own."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sysconfig
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from environment import plain
from PIL import Image

WWTS = Path(sysconfig.get_path("scripts"), "wwts")
DATE = "2026-03-01"
#: Names such as a shop's folders have; the last would be a formula in a spreadsheet.
NAMES = {
    "skimage/data/coffee.png": "饮料/咖啡 ☕/意式 浓缩.png",
    "skimage/data/chelsea.png": "宠物 🐱/Chelsea 猫.png",
    "skimage/data/astronaut.png": "人物/宇航员.png",
    "skimage/data/rocket.jpg": "火箭🚀.jpg",
    "skimage/data/camera.png": "摄影/a b/相机.png",
    "skimage/data/moon.png": "moon.png",
    "skimage/data/coins.png": "收藏/古钱币.png",
    "skimage/data/motorcycle_left.png": "车辆/摩托车.png",
    "skimage/data/retina.jpg": "医疗/眼底.jpg",
    "skimage/data/hubble_deep_field.jpg": "=1+1.jpg",
}
COPIES = {
    "重复/咖啡 副本.png": "饮料/咖啡 ☕/意式 浓缩.png",
    "重复/再来一份.png": "饮料/咖啡 ☕/意式 浓缩.png",
    "重复/火箭.jpg": "火箭🚀.jpg",
}
BROKEN = {
    "损坏/空.jpg": "empty",
    "损坏/截断.jpg": "truncated",
    "损坏/网页.jpg": "not_an_image",
    "损坏/炸弹💣.png": "too_many_pixels",
}


@dataclass(frozen=True)
class Run:
    """One `wwts` command that ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class FinishedNight:
    """One night over :func:`make_catalog`, as `wwts run tag_catalog` left it. Not to be written to: use :meth:`copy`.

    Attributes:
        catalog: the folder of images.
        store: what the night wrote.
        run: what the command said.
        date: the partition.
    """

    catalog: Path
    store: Path
    run: Run
    date: str = DATE
    settings: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The log's lines; fails when one is no JSON object."""
        (log,) = self.state.glob("logs/tag_catalog-*.jsonl")
        return [dict(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]

    @property
    def state(self) -> Path:
        """What is local to this machine: MLflow's and Airflow's databases, the tagger's files."""
        return self.store.with_name(f"{self.store.name}.state")

    def copy_state(self, store: Path) -> None:
        """Gives ``store`` a model registry and an Airflow database, so that its first night is quick."""
        target = store.with_name(f"{store.name}.state")
        shutil.copytree(self.state, target, ignore=shutil.ignore_patterns("logs", "run-*"))


def make_catalog(folder: Path) -> Path:
    """Ten photographs of installed packages, three copies, four broken files, and one file that is no image's."""
    packages = Path(sysconfig.get_path("purelib"))
    for source, name in NAMES.items():
        _copy(packages / source, folder / name)
    for name, original in COPIES.items():
        _copy(folder / original, folder / name)
    broken = folder / "损坏"
    broken.mkdir()
    (broken / "空.jpg").write_bytes(b"")
    (broken / "网页.jpg").write_text("<!doctype html><title>404</title>页面不存在", encoding="utf-8")
    with Image.open(packages / "skimage/data/rocket.jpg") as photo:
        photo.convert("RGB").save(broken / "截断.jpg", quality=90)
    whole = (broken / "截断.jpg").read_bytes()
    (broken / "截断.jpg").write_bytes(whole[: len(whole) // 2])
    (broken / "炸弹💣.png").write_bytes(_png_header(60_000, 60_000))
    (folder / "说明.txt").write_text("这不是图片", encoding="utf-8")
    return folder


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1024))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def environment(store: Path, **settings: str) -> dict[str, str]:
    """The environment of a `wwts` command: nothing of the developer's own settings, but ``settings``."""
    kept = plain("PYTEST_")
    return {**kept, "WWTS_STORE": str(store), "WWTS_DEVICE": "cpu", "COLUMNS": "200", **settings}


def wwts(store: Path, *arguments: str, **settings: str) -> Run:
    """Runs `wwts` with ``arguments``, its store at ``store``, and waits for its end."""
    done = subprocess.run(
        [WWTS, *arguments],
        env=environment(store, **settings),
        cwd=store.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def first_night(folder: Path) -> FinishedNight:
    """A real first night below ``folder``: embedded default, live, one shard for six images."""
    catalog, store = make_catalog(folder / "图库"), folder / "store"
    settings = {"WWTS_CATALOG": str(catalog), "WWTS_RELEASE": "live", "WWTS_SHARD_SIZE": "6"}
    run = wwts(store, "run", "tag_catalog", "--conf", json.dumps({"date": DATE}), **settings)
    return FinishedNight(catalog, store, run, settings=settings)
