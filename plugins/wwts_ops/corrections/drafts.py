"""Rows of a file of corrections as drafts: what each says, before anybody looks whether there is such an image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from wwts_ops import shares, sheets, taxonomy
from wwts_ops.corrections.answers import KINDS, LABELLED
from wwts_ops.digest import SHA256
from wwts_ops.errors import WwtsError
from wwts_ops.images import REASONS
from wwts_ops.sheets import CONTROL, Form, Row

_LABEL = ("label_id", "label_zh", "label_en", "synonyms_zh", "category_path")
_SAID = ("kind", "comment", "reason", "shown_because", "sampling_probability", "answered_by", "answered_at")
FORM = Form(
    noun="corrections",
    columns=(*sheets.PICTURES, *_LABEL, *_SAID),
    aliases={
        **sheets.PICTURE_ALIASES,
        **sheets.LABEL_ALIASES,
        "正确标签id": "label_id",
        "标签": "label_zh",
        "正确标签": "label_zh",
        "标签名": "label_zh",
        "标签名称": "label_zh",
        "中文名": "label_zh",
        "英文名": "label_en",
        "同义词": "synonyms_zh",
        "类目": "category_path",
        "类目路径": "category_path",
        "类型": "kind",
        "操作": "kind",
        "备注": "comment",
        "说明": "comment",
        "原因": "reason",
        "展示原因": "shown_because",
        "抽样概率": "sampling_probability",
        "操作人": "answered_by",
        "审核人": "answered_by",
        "时间": "answered_at",
        "操作时间": "answered_at",
        "审核时间": "answered_at",
    },
    needed=(sheets.PICTURES, ("label_id", "label_zh", "kind")),
    # About 1 GB of memory.
    max_rows=500_000,
    max_bytes=256 * 2**20,
)

_KINDS_ZH = {
    "确认": "confirm",
    "正确": "confirm",
    "更正": "correct",
    "改正": "correct",
    "纠正": "correct",
    "都不对": "wrong_unknown",
    "标签错误": "wrong_unknown",
    "拒绝": "reject_image",
    "图片不合格": "reject_image",
    "图片有问题": "reject_image",
    "撤回": "retract",
    "撤销": "retract",
}
_MOST = {"uri": 4096, "image_id": 2048, "comment": 4000, "answered_by": 100, "shown_because": 100} | dict.fromkeys(
    _LABEL, 500
)
_MAX_LABELS = 20
#: What a spreadsheet shows where a formula has no value.
_FAILED = frozenset({"#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!"})
#: A long number as a spreadsheet rewrites it: the digits are gone.
_REWRITTEN = re.compile(r"[+-]?\d(\.\d+)?E\+?\d+", re.IGNORECASE)
#: As Excel shows times on Chinese Windows.
_TIMES = ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a row says; None or empty where it says nothing.

    Attributes:
        line: as a spreadsheet counts.
        uri: as written.
        image_id: as written.
        content_sha256: in lower case.
        label_ids: the primary first.
        names: Chinese names, the primary first; of ``label_ids``, where there are some.
        label_en: of a new primary label, as are ``synonyms_zh`` and ``category_path``.
        synonyms_zh: joined by ``|``.
        category_path: levels joined by `` > ``.
        kind: None when the row does not say.
        comment: as written.
        reason: of ``reject_image``.
        shown_because: why the image was shown.
        sampling_probability: 0.000001–1.
        answered_by: who.
        answered_at: UTC.
    """

    line: int
    uri: str | None = None
    image_id: str | None = None
    content_sha256: str | None = None
    label_ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    label_en: str = ""
    synonyms_zh: str = ""
    category_path: str = ""
    kind: str | None = None
    comment: str | None = None
    reason: str | None = None
    shown_because: str | None = None
    sampling_probability: float | None = None
    answered_by: str | None = None
    answered_at: datetime | None = None


class Reader:
    """Makes drafts of rows.

    Args:
        timezone: of times that do not say theirs.
        now: UTC; nobody has answered later.
    """

    def __init__(self, timezone: str, now: datetime) -> None:
        self._zone = ZoneInfo(timezone)
        self._now = now

    def draft(self, row: Row) -> Draft:
        """The draft of a row.

        Raises:
            WwtsError: with all that is wrong with it.
        """
        cells = {name: text if name == "comment" else " ".join(text.split()) for name, text in row.cells.items()}
        if "uri" in cells:
            cells["uri"] = row.cells["uri"]  # two blanks are two
        if "image_id" in cells:
            cells["image_id"] = row.cells["image_id"]
        problems = [row.problem] if row.problem else [text for wrong, text in self._problems(cells) if wrong]
        if problems:
            raise WwtsError("; ".join(problems))
        probability = cells.get("sampling_probability")
        return Draft(
            line=row.line,
            uri=cells.get("uri"),
            image_id=cells.get("image_id"),
            content_sha256=cells["content_sha256"].lower() if "content_sha256" in cells else None,
            label_ids=sheets.parts(cells.get("label_id", "")),
            names=sheets.parts(cells.get("label_zh", "")),
            label_en=cells.get("label_en", ""),
            synonyms_zh="|".join(sheets.parts(cells.get("synonyms_zh", ""))),
            category_path=taxonomy.path_of(cells.get("category_path", "")),
            kind=_kind(cells),
            comment=cells.get("comment"),
            reason=cells.get("reason"),
            shown_because=cells.get("shown_because"),
            sampling_probability=None if probability is None else float(probability),
            answered_by=cells.get("answered_by"),
            answered_at=self._time(cells.get("answered_at")),
        )

    def _problems(self, cells: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
        """What may be wrong, and whether it is."""
        yield not cells.keys() & set(sheets.PICTURES), "it names no image; fill in uri, image_id or content_sha256"
        for name, text in cells.items():
            most = _MOST.get(name, 100)
            yield len(text) > most, f"{name} has {len(text):,} characters; {most:,} are the most"
            failed = text in _FAILED and name != "comment"
            yield failed, f"{name} is {text}, a formula that failed; mend it in the spreadsheet"
            # Line breaks belong into a comment.
            shown = re.sub(r"[\r\n\t]", " ", text) if name == "comment" else text
            yield bool(CONTROL.search(shown)), f"{name} {_plain(text)!r} holds a control character; remove it"
        content = cells.get("content_sha256", "0" * 64)
        yield not SHA256.fullmatch(content.lower()), f"content_sha256 {content[:100]!r} must have 64 hex digits"
        yield from _label_problems(cells)
        yield from self._said_problems(cells)

    def _said_problems(self, cells: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
        reason, probability = cells.get("reason"), cells.get("sampling_probability")
        rejected = _kind(cells) == "reject_image"
        yield reason is not None and not rejected, "only reject_image takes a reason; write it into comment"
        known = ", ".join(REASONS)
        yield rejected and reason is not None and reason not in REASONS, f"reason {reason!r} is none of {known}"
        wrong = probability is not None and not _is_probability(probability)
        yield wrong, f"sampling_probability {probability!r} must be from {shares.LEAST_CHANCE:f} to 1"
        when = cells.get("answered_at")
        try:
            at = self._time(when)
        except (ValueError, OverflowError):
            yield True, f"answered_at {when!r} is no time; write 2026-03-01 14:30"
            return
        yield at is not None and at > self._now + timedelta(days=1), f"answered_at {when} is still to come"

    def _time(self, text: str | None) -> datetime | None:
        """UTC.

        Raises:
            ValueError: it is no time.
            OverflowError: it is none in UTC.
        """
        if text is None:
            return None
        found = _parsed(text)
        if found.year < 1970:
            raise ValueError(f"{found} is before there were shops like this")
        return (found.replace(tzinfo=self._zone) if found.tzinfo is None else found).astimezone(UTC)


def _label_problems(cells: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    kind = _kind(cells)
    yield kind is not None and kind not in KINDS, f"kind {kind!r} is none of {', '.join(KINDS)}"
    lost = next(filter(_REWRITTEN.fullmatch, sheets.parts(cells.get("label_id", ""))), None)
    yield lost is not None, f"label_id {lost} lost its digits in a spreadsheet; enter it again as text"
    ids, names = (sheets.parts(cells.get(column, "")) for column in ("label_id", "label_zh"))
    labelled = kind is None or kind in LABELLED
    yield labelled and kind != "confirm" and not ids + names, "it names no label; fill in label_id or label_zh"
    yield not labelled and bool(ids + names), f"{kind} takes no label; empty label_id and label_zh"
    both = len(ids) > 0 and len(names) not in (0, 1, len(ids))
    yield both, f"label_id names {len(ids)} labels and label_zh {len(names)}; give a name to each, or to the first"
    yield max(len(ids), len(names)) > _MAX_LABELS, f"{_MAX_LABELS} labels are the most"


def _kind(cells: Mapping[str, str]) -> str | None:
    text = cells.get("kind")
    return text and _KINDS_ZH.get(text, text.casefold())


def _is_probability(text: str) -> bool:
    try:
        return shares.LEAST_CHANCE <= float(text) <= 1
    except ValueError:
        return False


def _parsed(text: str) -> datetime:
    if not re.match(r"\d{4}[-/]", text):
        raise ValueError(text)  # 20260301 is a number to most spreadsheets, and so is 46082
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        for form in _TIMES:
            try:
                return datetime.strptime(text, form)
            except ValueError:
                continue
        raise


def _plain(text: str) -> str:
    return CONTROL.sub("�", text)[:100]
