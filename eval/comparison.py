"""Two models on the same bad cases, case by case: what was lost, what was won, what is mistaken for what."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wwts_ops import taxonomy

if TYPE_CHECKING:
    from eval.reports import AccuracyReport, CaseResult
    from wwts_ops.badcases import BadCase
    from wwts_ops.storage import Store

#: Cases that a person looks through before deciding.
SHOWN = 40
#: Of these, how many may be won ones when more were lost than fit.
_WON_AT_LEAST = 12
#: Names of right labels that are written out.
_NAMES = 3


@dataclass(frozen=True)
class Names:
    """Names by label id; a label without one is called by its id."""

    chinese_by_id: Mapping[str, str]
    latin_by_id: Mapping[str, str]

    def chinese(self, label_id: str | None) -> str:
        """As people read it."""
        return "无标签" if label_id is None else self.chinese_by_id.get(label_id) or label_id

    def latin(self, label_id: str | None) -> str:
        """In ASCII, for pictures on a machine without a Chinese font."""
        if label_id is None:
            return "no label"
        name = self.latin_by_id.get(label_id) or label_id
        return name if name.isascii() else label_id

    def right(self, case: BadCase) -> str:
        """What is right for ``case``, in Chinese: its accepted labels, or else what it must not be called."""
        labels = _joined([self.chinese(label) for label in case.accepted or case.forbidden], "／")
        return labels if case.accepted else f"不是{labels}"

    def pair(self, confusion: Confusion) -> tuple[str, str]:
        """What is right and what was said, in Chinese."""
        said = self.chinese(confusion.predicted)
        return (f"不是{said}" if confusion.truth is None else self.chinese(confusion.truth), said)

    def pair_latin(self, confusion: Confusion) -> tuple[str, str]:
        """As :meth:`pair`, in ASCII."""
        said = self.latin(confusion.predicted)
        return (f"not {said}" if confusion.truth is None else self.latin(confusion.truth), said)

    def right_latin(self, case: BadCase) -> str:
        """As :meth:`right`, in ASCII."""
        labels = _joined([self.latin(label) for label in case.accepted or case.forbidden], "/")
        return labels if case.accepted else f"not {labels}"


@dataclass(frozen=True)
class Changed:
    """A case that exactly one of the two models has right."""

    case: BadCase
    champion: CaseResult
    challenger: CaseResult

    @property
    def lost(self) -> bool:
        """Whether it is the champion that has it right."""
        return self.champion.right


@dataclass(frozen=True)
class Sheet:
    """What is shown of the changed cases, and how many there are.

    Attributes:
        lost: shown; those that may never regress first.
        won: shown.
        lost_total: of all.
        won_total: of all.
    """

    lost: tuple[Changed, ...] = ()
    won: tuple[Changed, ...] = ()
    lost_total: int = 0
    won_total: int = 0

    @property
    def shown(self) -> tuple[Changed, ...]:
        """In the order of their numbers, which begin with 1."""
        return (*self.lost, *self.won)


@dataclass(frozen=True)
class Confusion:
    """How often cases of one label are taken for another.

    Attributes:
        truth: the first right label; None where a case only says what it is not.
        predicted: None where there was no label at all.
        challenger: cases that it takes so.
        champion: cases that it takes so.
    """

    truth: str | None
    predicted: str | None
    challenger: int
    champion: int


def names(store: Store) -> Names:
    """Of the taxonomy in force, and of the embedded labels that it does not know.

    Raises:
        UnavailableError: when the store refuses.
    """
    current = taxonomy.current(store)
    labels = [*taxonomy.embedded_labels(), *(current.labels if current else ())]
    return Names(
        {label.label_id: label.label_zh for label in labels}, {label.label_id: label.label_en for label in labels}
    )


def sheet(report: AccuracyReport | None, cases: Iterable[BadCase], shown: int = SHOWN) -> Sheet:
    """The cases that one of the two models alone has right; lost ones have the larger part of the room."""
    if report is None:
        return Sheet()
    changed = sorted(_changed(report, cases), key=_importance)
    lost = [one for one in changed if one.lost]
    won = [one for one in changed if not one.lost]
    room = max(shown - len(won), shown - _WON_AT_LEAST)
    kept = tuple(lost[:room])
    return Sheet(kept, tuple(won[: shown - len(kept)]), len(lost), len(won))


def confusions(report: AccuracyReport | None, cases: Iterable[BadCase]) -> tuple[Confusion, ...]:
    """Every mistake of the challenger, most frequent first; a case with several right labels counts as its first."""
    if report is None:
        return ()
    truths = {case.content_sha256: next(iter(case.accepted), None) for case in cases}
    mine, theirs = (_mistakes(results, truths) for results in (report.challenger_results, report.champion_results))
    pairs = sorted(mine, key=lambda pair: (-mine[pair], theirs[pair], pair[0] or "", pair[1] or ""))
    return tuple(Confusion(*pair, mine[pair], theirs[pair]) for pair in pairs)


def confusions_csv(found: Sequence[Confusion], known: Names) -> bytes:
    """All of ``found`` as CSV with a byte-order mark, which Chinese Excel needs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["truth", "truth_zh", "predicted", "predicted_zh", "challenger", "champion"])
    for one in found:
        truth, predicted = known.pair(one)
        texts = (one.truth or "", truth, one.predicted or "", predicted)
        writer.writerow([*map(_no_formula, texts), one.challenger, one.champion])
    return out.getvalue().encode("utf-8-sig")


def _changed(report: AccuracyReport, cases: Iterable[BadCase]) -> Iterable[Changed]:
    by_content = {case.content_sha256: case for case in cases}
    champion = {result.content_sha256: result for result in report.champion_results}
    for result in report.challenger_results:
        other, case = champion.get(result.content_sha256), by_content.get(result.content_sha256)
        if other is not None and case is not None and other.right != result.right:
            yield Changed(case, other, result)


def _importance(one: Changed) -> tuple[bool, float, str]:
    sure = one.challenger.confidence or 0.0
    return not one.case.never_regress, -sure, one.case.content_sha256


def _mistakes(
    results: Iterable[CaseResult], truths: Mapping[str, str | None]
) -> Counter[tuple[str | None, str | None]]:
    return Counter(
        (truths[result.content_sha256], result.label_id)
        for result in results
        if not result.right and result.content_sha256 in truths
    )


def _joined(found: Sequence[str], mark: str) -> str:
    more = f"{mark}…" if len(found) > _NAMES else ""
    return mark.join(found[:_NAMES]) + more


def _no_formula(text: str) -> str:
    """A spreadsheet runs a cell that begins like a formula (OWASP, "CSV Injection")."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
