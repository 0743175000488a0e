"""The starter set: photographs that installed packages carry, so that the gate has something to judge by on day one."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from wwts_ops.badcases.snapshots import BadCase, ChangedError, Snapshot, content_key, current, now, put
from wwts_ops.images import content_sha256
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy

_LOG = logging.getLogger(__name__)
_AUTHOR = "wwts"
#: The slice that holds all of it.
SLICE = "starter"


def ensure(store: Store, taxonomy: Taxonomy) -> Snapshot:
    """The snapshot in force.

    At first the starter set, as far as its packages are installed and ``taxonomy`` has its labels; that may be nothing.
    """
    found = current(store)
    if found is not None:
        return found
    made = list(_cases(taxonomy))
    for case, data in made:
        store.write_bytes(content_key(case.content_sha256), data)
    try:
        return put(store, _AUTHOR, tuple(case for case, _ in made), expected=None)
    except ChangedError:
        # Another process began at the same moment and was first.
        return ensure(store, taxonomy)


def _cases(taxonomy: Taxonomy) -> Iterator[tuple[BadCase, bytes]]:
    """The starter cases with their bytes."""
    text = files("wwts_ops").joinpath("data/starter_badcases.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    photos = {photo: _photo(photo, sha256) for photo, sha256 in {row["photo"]: row["sha256"] for row in rows}.items()}
    moment = now()
    for row in rows:
        photo = photos[row["photo"]]
        if photo is None:
            continue
        labels = tuple(row["label_id"].split("|"))
        if not taxonomy.by_id.keys() >= set(labels):
            _LOG.warning("Starter case %s is left out: the taxonomy lacks %s", row["photo"], row["label_id"])
            continue
        data = _view(photo, row["view"])
        yield _case(row, labels, data, moment), data


def _case(row: Mapping[str, str], labels: tuple[str, ...], data: bytes, moment: datetime) -> BadCase:
    return BadCase(
        content_sha256=content_sha256(data),
        accepted=labels,
        forbidden=(),
        slices=(SLICE,),
        owner=_AUTHOR,
        reason=row["reason"],
        never_regress=row["never_regress"] == "true",
        starter=True,
        image_id=None,
        uri=None,
        added_at=moment,
        added_by=_AUTHOR,
    )


def _view(photo: bytes, view: str) -> bytes:
    """The photograph as ``view`` says.

    ``view`` is empty (the file as it is) or several of ``crop:left/top/right/bottom`` (pixels), ``mirror`` and
    ``light:percent``, in that order.
    """
    if not view:
        return photo
    with Image.open(io.BytesIO(photo)) as opened:
        picture = opened.convert("RGB")
    for step in view.split():
        picture = _step(picture, *step.partition(":")[::2])
    # Uncompressed, so that no version of a compressor changes the bytes, by which a case is known.
    out = io.BytesIO()
    picture.save(out, "BMP")
    return out.getvalue()


def _step(picture: Image.Image, name: str, value: str) -> Image.Image:
    if name == "crop":
        left, top, right, bottom = (int(part) for part in value.split("/"))
        return picture.crop((left, top, right, bottom))
    if name == "mirror":
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if name == "light":
        return picture.point([min(255, level * int(value) // 100) for level in range(256)] * 3)
    raise ValueError(f"{name!r} is no view")


def _photo(photo: str, sha256: str) -> bytes | None:
    """The bytes of ``photo`` (package/path); None when the package has not that very photograph."""
    package, _, rest = photo.partition("/")
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0], rest) if places else None
    if path is None or not path.is_file():
        _LOG.warning("Starter cases of %s are left out: the package does not have it", photo)
        return None
    data = path.read_bytes()
    if content_sha256(data) != sha256:
        _LOG.warning("Starter cases of %s are left out: the package has another picture there", photo)
        return None
    return data
