"""The contact sheet: thumbnails of what a version lost and won, each with what is right and what the two models said.

A JPEG on paper of its own, so that it reads the same in a light and in a dark page; as wide as MLflow's page of a
version leaves room for, because that page shows a picture at its own size, however wide. Without a Chinese font its
words are English: the numbers on the pictures then lead to the Chinese names in the text beside it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from eval.comparison import Changed, Names, Sheet
    from eval.fonts import Font
    from eval.reports import CaseResult

#: Pixels.
_COLUMNS, _TILE, _GAP, _MARGIN = 4, 186, 18, 14
_WIDTH = 2 * _MARGIN + _COLUMNS * _TILE + (_COLUMNS - 1) * _GAP
_LINE, _SMALL, _NORMAL, _HEADING = 21, 12, 14, 18
_TILE_HEIGHT = _TILE + 6 + 3 * _LINE
_HEADING_HEIGHT = 46
_BADGE = 21
_QUALITY = 88

#: Colours of the daily page; lost and won differ in lightness and by a sign too, for eyes that see no red or green.
_PAPER, _INK, _SOFT, _WELL, _RULE = "#fbfaf7", "#1b1d21", "#6d727b", "#f1eee7", "#d8d4ca"
_LOST, _WON = "#a3244c", "#17655e"


@dataclass(frozen=True)
class _Words:
    lost: str
    won: str
    of: str
    right: str
    champion: str
    challenger: str
    never_regress: str
    no_picture: str


_CHINESE = _Words(
    "▼ 变错 {} 条：当前启用的模型判对，候选判错",
    "▲ 变对 {} 条：当前启用的模型判错，候选判对",
    "（图中 {} 条）",
    "正确",
    "启用",
    "候选",
    "不许退步",
    "没有图片",
)
_ENGLISH = _Words(
    "▼ Lost: {} (right with the version in use, wrong with the new one)",
    "▲ Won: {} (wrong with the version in use, right with the new one)",
    ", {} shown",
    "right",
    "was",
    "now",
    "never regress",
    "no picture",
)


def draw(sheet: Sheet, thumbnails: Mapping[str, bytes], names: Names, font: Font) -> bytes:
    """The sheet as JPEG.

    Args:
        sheet: at least one case.
        thumbnails: small JPEGs by content; what has none gets an empty frame.
        names: of the labels.
        font: letters of a font without Chinese give an English sheet.
    """
    return _Drawing(thumbnails, names, font).draw(sheet)


class _Drawing:
    def __init__(self, thumbnails: Mapping[str, bytes], names: Names, font: Font) -> None:
        self._thumbnails = thumbnails
        self._names = names
        self._font = font
        self._words = _CHINESE if font.is_chinese else _ENGLISH

    @cached_property
    def _sizes(self) -> dict[int, Any]:
        return {
            size: ImageFont.truetype(self._font.path, size, index=self._font.face)
            for size in (_SMALL, _NORMAL, _HEADING)
        }

    def draw(self, sheet: Sheet) -> bytes:
        parts = [
            (self._words.lost, _LOST, sheet.lost, sheet.lost_total),
            (self._words.won, _WON, sheet.won, sheet.won_total),
        ]
        parts = [part for part in parts if part[2]]
        heights = [_HEADING_HEIGHT + -(-len(shown) // _COLUMNS) * (_TILE_HEIGHT + _GAP) for _, _, shown, _ in parts]
        self._picture = Image.new("RGB", (_WIDTH, sum(heights) + _MARGIN), _PAPER)
        self._pen = ImageDraw.Draw(self._picture)
        top, number = 0, 1
        for (heading, colour, shown, total), height in zip(parts, heights, strict=True):
            more = self._words.of.format(len(shown)) if total > len(shown) else ""
            self._heading(top, heading.format(total) + more, colour)
            self._tiles(top + _HEADING_HEIGHT, shown, number)
            top, number = top + height, number + len(shown)
        out = io.BytesIO()
        self._picture.save(out, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)
        return out.getvalue()

    def _heading(self, top: int, text: str, colour: str) -> None:
        self._pen.text((_MARGIN, top + 10), text, font=self._sizes[_HEADING], fill=colour)

    def _tiles(self, top: int, shown: Sequence[Changed], number: int) -> None:
        for place, one in enumerate(shown):
            row, column = divmod(place, _COLUMNS)
            left = _MARGIN + column * (_TILE + _GAP)
            self._tile(left, top + row * (_TILE_HEIGHT + _GAP), one, number + place)

    def _tile(self, left: int, top: int, one: Changed, number: int) -> None:
        self._pen.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), fill=_WELL)
        self._photo(left, top, one.case.content_sha256)
        self._badge(left, top, str(number), _INK)
        if one.case.never_regress:
            self._badge(left, top + _TILE - _BADGE, self._words.never_regress, _LOST if one.lost else _WON)
        chinese = self._font.is_chinese
        right = self._names.right(one.case) if chinese else self._names.right_latin(one.case)
        y = top + _TILE + 6
        self._row(left, y, (self._words.right, right, ""), _INK)
        said = ((self._words.champion, one.champion), (self._words.challenger, one.challenger))
        for place, (who, result) in enumerate(said, 1):
            colour = _WON if result.right else _LOST
            self._row(left, y + place * _LINE, (who, self._label(result), _percent(result)), colour)

    def _label(self, result: CaseResult) -> str:
        name = self._names.chinese if self._font.is_chinese else self._names.latin
        return ("✓ " if result.right else "× ") + name(result.label_id)

    def _photo(self, left: int, top: int, content: str) -> None:
        data = self._thumbnails.get(content)
        if data is None:
            font = self._sizes[_SMALL]
            middle = (left + _TILE // 2, top + _TILE // 2)
            self._pen.text(middle, self._words.no_picture, font=font, fill=_SOFT, anchor="mm")
            return
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as photo:
            scale = _TILE / max(photo.size)
            size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
            small = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        self._picture.paste(small, (left + (_TILE - size[0]) // 2, top + (_TILE - size[1]) // 2))

    def _badge(self, left: int, top: int, text: str, colour: str) -> None:
        font = self._sizes[_SMALL]
        width = round(font.getlength(text)) + 14
        self._pen.rectangle((left, top, left + width - 1, top + _BADGE - 1), fill=colour)
        self._pen.text((left + 7, top + _BADGE // 2), text, font=font, fill="#ffffff", anchor="lm")

    def _row(self, left: int, top: int, texts: tuple[str, str, str], colour: str) -> None:
        """One line: who, what, how sure; what does not fit is shortened."""
        who, what, sure = texts
        small, normal = self._sizes[_SMALL], self._sizes[_NORMAL]
        base = top + 16
        self._pen.text((left, base), who, font=small, fill=_SOFT, anchor="ls")
        start = left + max(round(small.getlength(word)) for word in (self._words.champion, self._words.right)) + 7
        self._pen.text((left + _TILE, base), sure, font=small, fill=_SOFT, anchor="rs")
        room = left + _TILE - start - (round(small.getlength(sure)) + 5 if sure else 0)
        self._pen.text((start, base), self._fitting(what, room), font=normal, fill=colour, anchor="ls")

    def _fitting(self, text: str, room: int) -> str:
        normal = self._sizes[_NORMAL]
        text = self._font.writable(text)
        if normal.getlength(text) <= room:
            return text
        while text and normal.getlength(f"{text}…") > room:
            text = text[:-1]
        return f"{text}…"


def _percent(result: CaseResult) -> str:
    """Rounded down, as the daily page has scores."""
    return "" if result.confidence is None else f"{int(result.confidence * 100 + 3e-5)}%"
