"""Text of people in Markdown that MLflow shows: whatever it says, it is shown as it is written.

MLflow renders with Showdown in its GitHub flavour, which beyond Markdown turns ``@name`` and bare addresses into links
and ``:word:`` into pictures from elsewhere, and then lets a list of HTML tags through. A numeric character reference is
the one escape that none of this sees through.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Everything in ASCII that is neither letter, digit, space nor one of the harmless ``, %``; and Showdown's own ``¨``.
_MEANING = re.compile(r"[!-$&-+\-./:-@\[-`{-~¨]")
#: Within a word or a number these mean nothing.
_HARMLESS = re.compile(r"(?<=\d)\.(?=\d)|(?<=[^\W_])-(?=[^\W_])")
#: Control characters, and the marks that turn the direction of the text that follows, become a visible sign.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")


def text(value: str, longest: int = 80) -> str:
    """``value`` on one line, without its middle when it has more than ``longest`` characters, and escaped."""
    line = shown(value, longest)
    kept = {match.start() for match in _HARMLESS.finditer(line)}
    return _MEANING.sub(lambda found: found[0] if found.start() in kept else f"&#{ord(found[0])};", line)


def shown(value: str, longest: int) -> str:
    """``value`` as a person may safely see it: on one line, no control characters, at most ``longest`` of it."""
    line = " ".join(value.split())
    if len(line) > longest:
        half = (longest - 1) // 2
        line = f"{line[:half]}…{line[-half:]}"
    return line.translate(_CONTROLS)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are escaped already."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
