"""What our pages share: a template environment, and how they write numbers, texts and pictures.

A page is one HTML document that loads nothing: styles and pictures are inside it, it runs no script, and its
Content-Security-Policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import jinja2

from wwts_ops.storage import Store

#: Text of a catalog that is longer is shown without its middle (characters).
LONGEST_TEXT = 160
#: Larger "thumbnails" are none of ours (a 320 px JPEG has 10–40 KB) and are left out (bytes).
LARGEST_THUMBNAIL = 400_000
#: Thumbnails read at once: from a bucket each takes a round trip.
_READERS = 8

#: Control characters, and the marks that turn the direction of the text that follows, become a visible sign.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")


#: What Markdown takes for more than text; an entity could spell a link.
_MARKUP = re.compile(r"[\\|`*_~\[\]<>#&]")
#: What makes an address a link without any markup (GitHub Flavored Markdown, "Autolinks").
_LINK = re.compile("://|www|@", re.IGNORECASE)


def environment() -> jinja2.Environment:
    """Templates of this package: whatever is put in is escaped, and what is missing is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("wwts_ops"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "large": large,
        "percent": percent,
        "score": score,
        "text": text,
        "data_uri": data_uri,
        "csp_hash": csp_hash,
    }
    return made


def number(value: int) -> str:
    """With separators of thousands."""
    return f"{value:,}"


def large(value: int) -> str:
    """A figure in large type: from a hundred thousand on in 万, whose last digit still counts a thousand."""
    return f"{value:,}" if value < 100_000 else f"{value / 10_000:,.1f} 万"


def percent(part: int, whole: int) -> str:
    """A share; one that is neither nothing nor all never reads as 0 % or 100 %."""
    if not 0 < part < whole:
        return "100%" if part else "0%"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f}%"


def score(value: float) -> str:
    """A score (0–1) in percent, rounded down: what is below a threshold must not read as reaching it."""
    # 3e-5 undoes float32, whose 0.7 is 0.69999999.
    return f"{int(value * 1000 + 3e-5) / 10:.1f}%"


def text(value: str, longest: int = LONGEST_TEXT) -> str:
    """Text of a catalog as a person may safely see it: no control characters, no more than ``longest`` of it."""
    if len(value) > longest:
        half = longest // 2
        value = f"{value[:half]}…{value[-half:]}"
    return value.translate(_CONTROLS)


def cell(value: str) -> str:
    """Text that stays in its cell of a Markdown table, and makes no link, picture or markup."""
    escaped = _MARKUP.sub(r"\\\g<0>", " ".join(value.split()))
    # A space of no width: an address reads as it is written, and is none.
    return _LINK.sub("\\g<0>\u200b", escaped) or "—"


def data_uri(jpeg: bytes) -> str:
    """A picture as an address that loads nothing."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def csp_hash(css: str) -> str:
    """What a Content-Security-Policy calls the one style, or the one script, that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()}"


def thumbnails(store: Store, contents: Iterable[str]) -> dict[str, bytes]:
    """The stored thumbnails of ``contents``; those that are absent, or no JPEG of a thumbnail's size, are left out.

    Raises:
        UnavailableError: when the store refuses.
    """
    wanted = list(contents)
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda content: thumbnail(store, content), wanted)
        return {content: data for content, data in zip(wanted, found, strict=True) if data is not None}


def thumbnail(store: Store, content_sha256: str) -> bytes | None:
    """The stored thumbnail, or None when there is none or it is no JPEG of a thumbnail's size."""
    try:
        data = store.read_bytes(thumbnail_key(content_sha256))
    except FileNotFoundError:
        return None
    return data if data.startswith(b"\xff\xd8\xff") and len(data) <= LARGEST_THUMBNAIL else None


def thumbnail_key(content_sha256: str) -> str:
    """Where a thumbnail is stored."""
    return f"thumbnails/{content_sha256[:2]}/{content_sha256}.jpg"


def decision_reason(reason: str, skipped: str = "") -> str:
    """A reason of ``decisions.Decision`` (without what follows ``;``) as a Chinese sentence.

    ``skipped`` is the name of the switched-off label that would have been first, if any.
    """
    kind, _, path = reason.partition(":")
    sentences = {
        "confident": "置信度达标",
        "low_confidence": "置信度不足",
        "unlisted_label": "标签体系里没有这个标签",
        "forced_label": "按规定，该标签必须人工审核",
        "forced_category": f"按规定，“{text(path, 40)}”类目必须人工审核" if path else "按规定，该类目必须人工审核",
    }
    sentence = sentences.get(kind, text(reason, 40))
    return f"{sentence}（首选标签“{text(skipped, 30)}”已停用）" if skipped else sentence
