"""The picture of each draft: found, read whole, decoded once, and known by its hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import track

from wwts_ops import published
from wwts_ops.badcases.drafts import Draft, Faults
from wwts_ops.badcases.snapshots import BadCase, content
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.fetch import Fetcher
from wwts_ops.images import Rejected, content_sha256, decode
from wwts_ops.settings import Settings
from wwts_ops.storage import Store

_THREADS = 8
#: Published images of one content that are tried.
_COPIES = 5
#: Decoding is a test here; nothing is made of the pixels.
_SHORT_SIDE = 224


@dataclass(frozen=True)
class Picture:
    """Where a draft's bytes came from; they lie in the spool unless the store has them (``stored``)."""

    content_sha256: str
    uri: str | None
    image_id: str | None
    stored: bool = False


@dataclass(frozen=True)
class _Listed:
    """A row of the published snapshot."""

    image_id: str
    uri: str
    content_sha256: str


class _NoPictureError(WwtsError):
    """A picture that cannot be had; ``about`` as in :class:`Fault`."""

    def __init__(self, text: str, about: str) -> None:
        super().__init__(text)
        self.about = about


class Finder:
    """Finds the pictures of drafts.

    Args:
        store: holds the pictures of known cases, and what is published.
        settings: what may be read, and how much of it.
        cases: all cases there are; their pictures are not read again.
        spool: an empty local folder; each new content becomes a file named by its SHA-256.
    """

    def __init__(self, store: Store, settings: Settings, cases: Sequence[BadCase], spool: Path) -> None:
        self._store = store
        self._settings = settings
        self._known = {case.content_sha256: case for case in cases}
        self._spool = spool
        self._listed: Mapping[str, list[_Listed]] = {}

    def find(self, drafts: Sequence[Draft], faults: Faults) -> list[tuple[Draft, Picture]]:
        """Each draft with its picture; those without one go to ``faults``."""
        self._listed = self._look_up(drafts)
        found: list[tuple[Draft, Picture]] = []
        console = Console(stderr=True)
        pool = ThreadPoolExecutor(_THREADS)
        try:
            with Fetcher(self._settings) as fetcher:
                named = [draft for draft in drafts if draft.uri or draft.image_id or draft.content_sha256]
                tries = [(draft, pool.submit(self._picture, draft, fetcher)) for draft in named]
                shown = track(
                    tries, "Reading pictures", console=console, transient=True, disable=not console.is_terminal
                )
                for draft, trial in shown:
                    try:
                        found.append((draft, trial.result()))
                    except UnavailableError:
                        raise  # no fault of the row's
                    except _NoPictureError as error:
                        faults.add(draft.number, draft.place, str(error), error.about)
                    except WwtsError as error:
                        faults.add(draft.number, draft.place, str(error))
        finally:
            # After Ctrl-C the pictures that nobody waits for any more are not read.
            pool.shutdown(cancel_futures=True)
        return found

    def _picture(self, draft: Draft, fetcher: Fetcher) -> Picture:
        expected = draft.content_sha256
        if expected in self._known:
            content(self._store, expected)
            known = self._known[expected]
            return Picture(expected, draft.uri or known.uri, draft.image_id or known.image_id, stored=True)
        if draft.uri is not None:
            return self._read(fetcher, _Listed(draft.image_id or "", draft.uri, expected or ""))
        *others, last = self._published(draft)
        for listed in others:
            with suppress(WwtsError):  # another image of the same bytes may still be there
                return self._read(fetcher, listed)
        return self._read(fetcher, last)

    def _published(self, draft: Draft) -> list[_Listed]:
        """The published images that a draft without a uri means, at least one."""
        wanted = draft.image_id or draft.content_sha256 or ""
        what = f"image_id {wanted!r}" if draft.image_id else f"content_sha256 {wanted}"
        found = self._listed.get(wanted, [])
        if not found:
            raise _NoPictureError(f"{what} is not published; name its uri instead", "unpublished")
        if draft.content_sha256 not in (None, found[0].content_sha256):
            raise WwtsError(f"{what} is published with content {found[0].content_sha256}, not {draft.content_sha256}")
        return found[:_COPIES]

    def _read(self, fetcher: Fetcher, listed: _Listed) -> Picture:
        try:
            data = fetcher.read(listed.uri)
            sha256 = content_sha256(data)
            if listed.content_sha256 not in ("", sha256):
                raise _NoPictureError(
                    f"the bytes at {listed.uri} have changed: content {listed.content_sha256} is now {sha256}; "
                    "look at the picture, and name its uri alone if it still shows the label",
                    "changed",
                )
            decode(data, _SHORT_SIDE, self._settings.max_pixels)
        except Rejected as error:
            raise _NoPictureError(_why(listed.uri, error), error.reason) from error
        try:
            (self._spool / sha256).write_bytes(data)
        except OSError as error:
            raise UnavailableError(f"{self._spool} cannot be written: {error.strerror}; free space there.") from error
        return Picture(sha256, listed.uri, listed.image_id or None)

    def _look_up(self, drafts: Sequence[Draft]) -> Mapping[str, list[_Listed]]:
        """The published rows that drafts without a uri mean, by image_id or content."""
        open_drafts = [draft for draft in drafts if draft.uri is None and draft.content_sha256 not in self._known]
        found: dict[str, list[_Listed]] = defaultdict(list)
        if not open_drafts or published.current(self._store) is None:
            return found
        ids = {draft.image_id for draft in open_drafts if draft.image_id}
        contents = {draft.content_sha256 for draft in open_drafts if not draft.image_id}
        wanted = pa.array(sorted(ids), pa.string()), pa.array(sorted(filter(None, contents)), pa.string())
        for batch in published.batches(self._store):
            hits = pc.or_(
                pc.is_in(batch.column("image_id"), value_set=wanted[0]),
                pc.is_in(batch.column("content_sha256"), value_set=wanted[1]),
            )
            for row in batch.select(["image_id", "uri", "content_sha256"]).filter(hits).to_pylist():
                listed = _Listed(**row)
                if listed.image_id in ids:
                    found[listed.image_id].append(listed)
                if listed.content_sha256 in contents:
                    found[listed.content_sha256].append(listed)
        return found


def _why(uri: str, error: Rejected) -> str:
    if error.reason in ("unreadable_uri", "too_large"):
        return error.detail  # a sentence with the uri in it
    return f"{uri} cannot be used as a picture ({error})"
