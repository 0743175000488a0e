"""A file of corrections becomes answers: good rows in one transaction, all others refused with a reason each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from rich.console import Console
from rich.progress import track

from wwts_ops import database, sheets, taxonomy
from wwts_ops.corrections import answers
from wwts_ops.corrections.answers import LABELLED, Answer, Recorded
from wwts_ops.corrections.drafts import FORM, Draft, Reader
from wwts_ops.corrections.known import Image, Known
from wwts_ops.corrections.naming import Names
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.records import ANSWERS
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

SOURCE = "import"
_TRIES = 20
_EPOCH = datetime.fromtimestamp(0, UTC)
_HISTORY = ["number", "answer_id", "answered_at", "answered_by", "image_id", "content_sha256", "kind", "labels"]
_HISTORY += ["source", "weak"]

#: What an answer says, without how: equal ones agree.
Said = tuple[Any, ...]
#: Why a content is in the queue, and with what probability.
Drawn = tuple[str | None, float | None]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Refusal:
    """A row that was not imported: its line as a spreadsheet counts, the header being 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Imported:
    """What an import came to.

    Attributes:
        added: answers.
        unchanged: rows that said nothing new.
        refused: rows that were not imported, by line.
        labels_added: ids of the labels that the file introduced.
        ignored: columns of the file that mean nothing here.
        superseded: of ``unchanged``, those that an import said before and that people changed or took back since.
    """

    added: int
    unchanged: int
    refused: tuple[Refusal, ...]
    labels_added: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    superseded: int = 0


def import_answers(store: Store, settings: Settings, source: Path, author: str) -> Imported:
    """Adds what the rows of ``source`` say to the answers, and the labels that they introduce to the taxonomy.

    The same file again adds nothing, and overrides nothing that was said since.

    Args:
        store: what was tagged, what is published, and the taxonomy.
        settings: the database and where relative uris start.
        source: CSV, TSV, Parquet or XLSX with the columns of ``drafts.FORM``.
        author: who answered, in rows that do not say.

    Raises:
        WwtsError: when the file cannot be read at all, or nothing was ever tagged.
        UnavailableError: when store or database are away, or others write all the time; nothing was added.
    """
    return _import(store, settings, _Order(source, author, weak=False))


def import_weak(store: Store, settings: Settings, source: Path, author: str) -> Imported:
    """As :func:`import_answers`, for old tags, which never override anything."""
    return _import(store, settings, _Order(source, author, weak=True))


@dataclass(frozen=True)
class _Order:
    """What is imported, by whom, and as what; ``now`` is when."""

    source: Path
    author: str
    weak: bool
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class _Wish:
    """A draft whose image and labels are known."""

    draft: Draft
    image: Image
    labels: tuple[str, ...]
    kind: str

    @property
    def said(self) -> Said:
        return _said(self.kind, self.labels)


@dataclass(frozen=True, slots=True)
class _News:
    """A wish that becomes an answer; ``retracts`` is the number of what it takes back."""

    answer_id: str
    wish: _Wish
    retracts: int | None


def _said(kind: str, labels: Sequence[str]) -> Said:
    return ("labels", labels[0], frozenset(labels[1:])) if kind in LABELLED else (kind,)


class _Refusals:
    """The reasons so far, by line."""

    def __init__(self, found: Mapping[int, str] | None = None) -> None:
        self._found = dict(found or {})

    def add(self, line: int, reason: object) -> None:
        """Refuses a row."""
        self._found.setdefault(line, str(reason).rstrip("."))

    def copy(self) -> _Refusals:
        """For a try that may be thrown away."""
        return _Refusals(self._found)

    def sorted(self) -> tuple[Refusal, ...]:
        """All of them, by line."""
        return tuple(Refusal(line, reason) for line, reason in sorted(self._found.items()))


def _import(store: Store, settings: Settings, order: _Order) -> Imported:
    console = Console(stderr=True)
    with console.status(f"Reading {order.source.name}"):
        sheet = sheets.read(order.source, FORM)
        digest = _file_sha256(order.source)
    if not sheet.rows:
        raise WwtsError(f"{order.source} holds no corrections; add rows below its header.")
    refusals = _Refusals()
    reader = Reader(settings.timezone, order.now)
    rows = track(sheet.rows, "Checking rows", console=console, transient=True, disable=not console.is_terminal)
    drafts = list(_kept(((row.line, row) for row in rows), reader.draft, refusals))
    placed: list[tuple[Draft, Image]] = []
    if drafts:
        with console.status(f"Looking up {len(drafts):,} images"):
            known = Known(store, settings, drafts)
            placed = list(
                _kept(((draft.line, draft) for draft in drafts), lambda one: (one, known.image(one)), refusals)
            )
    if not placed:
        return Imported(0, 0, refusals.sorted(), ignored=sheet.ignored)
    with console.status(f"Recording {len(placed):,} rows"):
        done = _Work(store, settings, order, digest, drafts).carry_out(placed, known, refusals)
    return replace(done, ignored=sheet.ignored)


def _kept(pairs: Iterable[tuple[int, T]], make: Callable[[T], U], refusals: _Refusals) -> Iterator[U]:
    """What ``make`` makes of each; a line for which it raises is refused."""
    for line, value in pairs:
        try:
            yield make(value)
        except UnavailableError:
            raise  # no fault of the row's
        except WwtsError as error:
            refusals.add(line, error)


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WwtsError(f"{path} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class _Work:
    """What is to be done where; ``digest`` is the file's, and ``drafts`` are all that could be understood of it."""

    store: Store
    settings: Settings
    order: _Order
    digest: str
    drafts: Sequence[Draft]

    def carry_out(self, placed: Sequence[tuple[Draft, Image]], known: Known, refused: _Refusals) -> Imported:
        """Adds labels, then answers; begins anew while others change what this was decided on."""
        contents = pa.array({image.content_sha256 for _, image in placed}, pa.string())
        images = pa.array({image.image_id for _, image in placed} - {None}, pa.string())
        labels_added: list[str] = []
        for _ in range(_TRIES):
            refusals = refused.copy()
            names = Names(taxonomy.ensure(self.store, self.settings.forced_review), self.drafts)
            wisher = _Wisher(names, known, self.order)
            wishes = list(_kept(((draft.line, (draft, image)) for draft, image in placed), wisher.wish, refusals))
            history = _History(answers.frozen(self.settings), contents, images)
            news = list(self._news(_agreeing(wishes, names, refusals), history, refusals))
            if unknown := names.new(label for one in news for label in one.wish.labels):
                with suppress(taxonomy.ChangedError):
                    labels_added += taxonomy.add(self.store, self.order.author, unknown)
                continue
            drawn = {} if self.order.weak else _drawn(self.settings, [one.wish.image.content_sha256 for one in news])
            recorded = self._record([self._answer(one, known, drawn) for one in news], history.latest, contents)
            if recorded is not None:
                done = refusals.sorted()
                good = len(placed) - (len(done) - len(refused.sorted()))
                unchanged = good - recorded.added
                return Imported(recorded.added, unchanged, done, tuple(labels_added), superseded=history.superseded)
        raise UnavailableError(
            "Others change answers and labels all the time; nothing was added, try again in a minute."
        )

    def _record(self, new: Sequence[Answer], seen: int, contents: pa.Array) -> Recorded | None:
        """Adds the answers, unless others have said something of these contents since ``seen``."""
        if not new:
            return Recorded(0, 0)
        database.upgrade(self.settings)
        with answers.appending(self.settings) as appender:
            since = answers.read(appender.connection, seen) if appender.latest > seen else ANSWERS.empty_table()
            if pc.any(pc.is_in(since["content_sha256"], value_set=contents)).as_py():
                return None
            return appender.add(new)

    def _news(self, groups: Iterable[list[_Wish]], history: _History, refusals: _Refusals) -> Iterator[_News]:
        """One for each content of which something new is said."""
        for group in groups:
            wish = max(group, key=lambda one: one.draft.answered_at or _EPOCH)
            text = f"{self.digest}\n{wish.image.content_sha256}\n{self.order.weak}"
            answer_id = f"{SOURCE}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
            try:
                if not history.holds(answer_id, wish, self.order.weak):
                    yield _News(answer_id, wish, history.retractable(wish))
            except WwtsError as error:
                for one in group:
                    refusals.add(one.draft.line, error)

    def _answer(self, news: _News, known: Known, drawn: Mapping[str, Drawn]) -> Answer:
        wish, draft = news.wish, news.wish.draft
        shown = known.shown(wish.image.content_sha256)
        because, probability = draft.shown_because, draft.sampling_probability
        if because is None and probability is None:
            # Of the queue, though answered in a spreadsheet: thresholds must know that it was picked for being hard.
            because, probability = drawn.get(wish.image.content_sha256, (None, None))
        return Answer(
            answer_id=news.answer_id,
            answered_at=draft.answered_at or self.order.now,
            answered_by=draft.answered_by or self.order.author,
            image_id=wish.image.image_id,
            content_sha256=wish.image.content_sha256,
            kind=wish.kind,
            labels_before=shown.labels,
            labels=wish.labels,
            comment=draft.comment,
            reason=draft.reason,
            source=SOURCE,
            weak=self.order.weak,
            shown_because=because or SOURCE,
            sampling_probability=probability,
            retracts=news.retracts,
            model_version=shown.model_version,
            confidence=shown.confidence,
        )


@dataclass(frozen=True)
class _Wisher:
    """Makes wishes of drafts whose image is known."""

    names: Names
    known: Known
    order: _Order

    def wish(self, pair: tuple[Draft, Image]) -> _Wish:
        """What the draft says.

        Raises:
            WwtsError: when that is nothing that could be an answer.
        """
        draft, image = pair
        if self.order.weak and draft.kind not in (None, *LABELLED):
            raise WwtsError(f"an old tag is a label, not {draft.kind}; import this row without --weak")
        labels = self.names.label_ids(draft)
        published = self.known.shown(image.content_sha256).answer
        if draft.kind == "confirm" and not labels:
            if not published:
                raise WwtsError("nothing is published of it that could be confirmed; fill in label_id or label_zh")
            labels = published
        # What the column of kinds calls right may be the label that the row gives: 正确.
        kind = draft.kind if draft.kind not in (None, "confirm") else "confirm" if labels == published else "correct"
        return _Wish(draft, image, labels, kind)


def _drawn(settings: Settings, contents: Sequence[str]) -> dict[str, Drawn]:
    """How those of ``contents`` came to be in the queue that are, or were, in it."""
    item = database.review_items.c
    asked = sa.select(item.content_sha256, item.shown_because, item.sampling_probability)
    found: dict[str, Drawn] = {}
    with database.looking(settings) as connection:
        for chunk in database.chunks(contents):
            rows = connection.execute(asked.where(item.content_sha256.in_(chunk)))
            found.update({content: (because, probability) for content, because, probability in rows})
    return found


def _agreeing(wishes: Iterable[_Wish], names: Names, refusals: _Refusals) -> Iterator[list[_Wish]]:
    """The wishes of each content; those that contradict each other are refused."""
    groups: dict[str, list[_Wish]] = defaultdict(list)
    for wish in wishes:
        groups[wish.image.content_sha256].append(wish)
    for group in groups.values():
        if len({wish.said for wish in group}) == 1:
            yield group
            continue
        for wish in group:
            other = next(one for one in group if one.said != wish.said)
            says = names.shown(other.labels) or other.kind
            refusals.add(wish.draft.line, f"row {other.draft.line} says {says} of the same picture; keep one of them")


class _History:
    """What was said before of the contents of a file.

    Args:
        table: all answers, schema ``ANSWERS``.
        contents: those of the file.
        images: ids of those that the file names.

    Attributes:
        latest: the highest number.
        superseded: how many were held that people changed or took back since.
    """

    def __init__(self, table: pa.Table, contents: pa.Array, images: pa.Array) -> None:
        self.superseded = 0
        self.latest: int = pc.max(table["number"]).as_py() or 0
        before = table.filter(pc.and_(pc.equal(table["source"], SOURCE), pc.is_in(table["image_id"], value_set=images)))
        self._by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in before.select(_HISTORY).to_pylist():
            self._by_image[row["image_id"]].append(row)
        ours = table.filter(pc.is_in(table["content_sha256"], value_set=contents))
        self._ids = set(ours["answer_id"].to_pylist())
        self._rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in ours.select(_HISTORY).to_pylist():
            self._rows[row["content_sha256"]].append(row)
        self._in_force = {row["content_sha256"]: row for row in answers.in_force(ours).select(_HISTORY).to_pylist()}
        self._weak = {row["content_sha256"]: row for row in answers.weak(ours).select(_HISTORY).to_pylist()}

    def holds(self, answer_id: str, wish: _Wish, weak: bool) -> bool:  # noqa: FBT001
        """Whether this was said already and still counts.

        Raises:
            WwtsError: when something newer was said since.
        """
        content, at = wish.image.content_sha256, wish.draft.answered_at
        in_force, old = self._in_force.get(content), self._weak.get(content) if weak else None
        if any(row and _said(row["kind"], row["labels"]) == wish.said for row in (in_force, old)):
            return True
        if answer_id in self._ids:
            self.superseded += wish.kind != "retract"
            return True
        if in_force and not weak and at and at < in_force["answered_at"]:
            raise WwtsError(
                f"{in_force['answered_by']} answered later than {at:%Y-%m-%d %H:%M} UTC (answer {in_force['number']}); "
                "leave answered_at empty if this is the newer word"
            )
        self._check_picture(wish, weak)
        rows = [row for row in self._rows[content] if row["weak"] == weak]
        before = [row for row in rows if row["source"] == SOURCE and _said(row["kind"], row["labels"]) == wish.said]
        if before and (
            not at or at <= max(row["answered_at"] for row in rows if row["number"] >= before[-1]["number"])
        ):
            raise WwtsError(
                f"an earlier import said so (answer {before[-1]['number']}), and it was changed since; "
                "if it is right again, say in answered_at since when"
            )
        return False

    def _check_picture(self, wish: _Wish, weak: bool) -> None:  # noqa: FBT001
        """Refuses what an earlier import said of the picture that the image had then, of the one it has now."""
        draft = wish.draft
        if draft.content_sha256 or not wish.image.image_id:
            return
        for row in self._by_image[wish.image.image_id]:
            same = row["weak"] == weak and _said(row["kind"], row["labels"]) == wish.said
            newer = draft.answered_at and draft.answered_at > row["answered_at"]
            if same and row["content_sha256"] != wish.image.content_sha256 and not newer:
                raise WwtsError(
                    f"an earlier import said so of another picture that {wish.image.image_id} had then "
                    f"(answer {row['number']}); if it is right for the new one too, say in answered_at since when"
                )

    def retractable(self, wish: _Wish) -> int | None:
        """The number of the answer that the wish takes back.

        Raises:
            WwtsError: there is none.
        """
        if wish.kind != "retract":
            return None
        row = self._in_force.get(wish.image.content_sha256) or self._weak.get(wish.image.content_sha256)
        if row is None:
            raise WwtsError("there is no answer to take back")
        return int(row["number"])
