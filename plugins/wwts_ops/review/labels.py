"""All labels that may be given, as the search box in the browser reads them."""

from __future__ import annotations

from functools import lru_cache

from wwts_ops import sheets
from wwts_ops.taxonomy import Label, Taxonomy

#: ``label_id, label_zh, label_en, synonyms_zh, category_path, pinyin, flags``. Synonyms and pinyin hold one entry a
#: name, joined by ``|``; pinyin has its syllables apart and no tones (``hong jiu|pu tao jiu``), the label's own first,
#: and skips names without a Chinese character. Flags: ``f`` where a person always looks.
LabelRow = tuple[str, str, str, str, str, str, str]


def index(names: Taxonomy) -> list[LabelRow]:
    """The enabled labels that map to no other, in the order of the taxonomy.

    20,000 take some seconds, and those whose names an earlier version had no time.
    """
    return [_row(names, label) for label in names.labels if label.enabled and not label.maps_to]


@lru_cache(maxsize=100_000)
def pinyin(name: str) -> str:
    """How a name is typed: ``红酒 500ml`` → ``hong jiu 500ml``; empty where no character of it is Chinese."""
    from pypinyin import Style, lazy_pinyin

    if name.isascii():
        return ""
    # ü as v, as everybody types it.
    syllables = lazy_pinyin(name, style=Style.NORMAL, v_to_u=False, errors=_kept)
    return " ".join(" ".join(syllables).casefold().split())


def _kept(other: str) -> str:
    """Of what is not Chinese, letters and digits; signs and emoji are not typed."""
    return "".join(char if char.isascii() and char.isalnum() else " " for char in other)


def _row(names: Taxonomy, label: Label) -> LabelRow:
    spoken = (pinyin(name) for name in (label.label_zh, *sheets.parts(label.synonyms_zh)))
    return (
        label.label_id,
        label.label_zh,
        label.label_en,
        label.synonyms_zh,
        label.category_path,
        "|".join(filter(None, spoken)),
        "f" if names.forced_reason(label.label_id) else "",
    )
