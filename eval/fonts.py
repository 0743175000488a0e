"""The font that pictures are lettered with: one with Chinese, if this machine has any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: What a font must have to be taken: all that our pictures say, and some everyday names.
_PROBE = "正确标签当前启用候选变错变对不许退步可信度张例次延迟毫秒实际准确率混淆桂圆龙眼饼干酸奶酱油"
#: Quiet sans-serif families first, as the pages have them; parts of file names, in lower case.
_PREFERRED = ("notosanscjk", "notosanssc", "sourcehansans", "pingfang", "msyh", "microhei", "zenhei", "simhei")
_HEAVY = ("bold", "black", "light", "thin", "serif", "mono", "demi")
#: Stands for a character that the font does not have, such as an emoji.
_MISSING = "□"


@dataclass(frozen=True)
class Font:
    """A face of a font file, the code points that it has, and whether simplified Chinese is among them."""

    path: str
    face: int
    characters: frozenset[int]
    is_chinese: bool

    def writable(self, text: str) -> str:
        """``text`` on one line, with a box for every character that this font does not have."""
        one_line = " ".join(text.split())
        return "".join(letter if ord(letter) in self.characters else _MISSING for letter in one_line)


@cache
def best() -> Font:
    """A font that has simplified Chinese; on a machine without any, the Latin one."""
    from matplotlib.font_manager import findSystemFonts

    found = (_with_chinese(path) for path in sorted(findSystemFonts(), key=_rank))
    return next((font for font in found if font is not None), None) or latin()


@cache
def latin() -> Font:
    """The font that matplotlib brings along; it has no Chinese."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    path = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    return Font(path, 0, frozenset(FT2Font(path).get_charmap()), is_chinese=False)


def _rank(path: str) -> tuple[bool, int, str]:
    name = Path(path).name.lower().replace("-", "").replace("_", "")
    place = next((number for number, part in enumerate(_PREFERRED) if part in name), len(_PREFERRED))
    return any(part in name for part in _HEAVY), place, path


def _with_chinese(path: str) -> Font | None:
    """The face of ``path`` that draws letters as mainland China does, when it has them."""
    from matplotlib.ft2font import FT2Font

    try:
        faces = [FT2Font(path, face_index=number) for number in range(FT2Font(path).num_faces)]
        face = next((n for n, font in enumerate(faces) if font.family_name.endswith((" SC", " CN"))), 0)
        characters = frozenset(faces[face].get_charmap())
    except (RuntimeError, OSError):  # a broken font file, or one that FreeType does not know, is none of our business
        return None
    complete = all(ord(letter) in characters for letter in _PROBE)
    return Font(path, face, characters, is_chinese=True) if complete else None
