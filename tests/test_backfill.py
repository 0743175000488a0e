"""Contents that a backbone never saw: embedded from whatever uri still has their bytes, once, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from code_shelf import make_tagger
from shard_shop import make_broken, make_photos

from wwts_ops import backfill, embeddings, images, settings
from wwts_ops.errors import UnavailableError
from wwts_ops.runtime import OnnxEmbedder
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Tagger

KEY = "f0123456789ab"


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return make_tagger(tmp_path_factory.mktemp("tagger"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("图库")
    make_photos(folder)
    make_broken(folder)
    return folder


@pytest.fixture
def given(clean_environment: None, tmp_path: Path) -> Settings:
    return settings.load(store=str(tmp_path / "store"), device="cpu", workers=2)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wanted(*pairs: tuple[str, Path]) -> pa.Table:
    contents, uris = zip(*pairs, strict=True)
    return pa.table({"content_sha256": list(contents), "uri": [str(uri) for uri in uris]})


def by_hand(tagger: Tagger, path: Path) -> np.ndarray[Any, Any]:
    decoded = images.decode(path.read_bytes(), tagger.recipe.short_side, 10**8)
    return OnnxEmbedder(tagger)(tagger.recipe.crop(decoded.rgb)[np.newaxis])[0]


def test_every_readable_content_is_embedded_once_as_a_night_would(
    given: Settings, tagger: Tagger, photos: Path
) -> None:
    store = Store.of(given)
    found = sorted(path for path in photos.rglob("a*.*") if path.is_file())
    copies = [(sha(path), path) for path in sorted(photos.glob("b*"))]
    done = backfill.embed(store, given, tagger, wanted(*((sha(path), path) for path in found), *copies), KEY, 3)
    assert (done["embedded"], done["unreadable"]) == (len(found), [])
    assert done["part"].endswith(f"/part-{KEY}-00003.parquet")
    (part,) = embeddings.parts(store, tagger.backbone_sha256)
    ((contents, vectors),) = embeddings.batches(store, part)
    assert sorted(contents) == sorted(sha(path) for path in found)
    places = {sha(path): path for path in found}
    for content, vector in zip(contents, vectors, strict=True):
        assert vector.tobytes() == by_hand(tagger, places[content]).tobytes()
    assert backfill.done_parts(store, tagger.backbone_sha256) == [part]
    assert {key.partition("/")[0] for key in store.list("")} == {"embeddings", "backfills"}


def test_what_cannot_be_embedded_is_listed_with_its_reason(given: Settings, tagger: Tagger, photos: Path) -> None:
    other, gone = photos / "a3.png", photos / "nowhere.jpg"
    pairs = [
        ("0" * 64, other),
        ("1" * 64, gone),
        (sha(photos / "c3 网页.jpg"), photos / "c3 网页.jpg"),
        (sha(photos / "c5 炸弹.png"), photos / "c5 炸弹.png"),
    ]
    done = backfill.embed(Store.of(given), given, tagger, wanted(*pairs), KEY, 0)
    assert done["embedded"] == 0
    assert {row["content_sha256"]: (row["uri"], row["reason"]) for row in done["unreadable"]} == {
        "0" * 64: (str(other), "changed"),
        "1" * 64: (str(gone), "unreadable_uri"),
        pairs[2][0]: (str(pairs[2][1]), "not_an_image"),
        pairs[3][0]: (str(pairs[3][1]), "too_many_pixels"),
    }


def test_another_uri_of_the_same_bytes_is_enough(given: Settings, tagger: Tagger, photos: Path) -> None:
    whole = photos / "a5.jpg"
    pairs = [(sha(whole), photos / "a0 nowhere.jpg"), (sha(whole), photos / "a3.png"), (sha(whole), whole)]
    done = backfill.embed(Store.of(given), given, tagger, wanted(*pairs), KEY, 0)
    assert (done["embedded"], done["unreadable"]) == (1, [])


def moved_back(store: Store, key: str = KEY) -> None:
    """As if what could not be reached had been noted yesterday."""
    (note,) = (name for name in store.list(f"backfills/{key}", ".json") if "unreached" in name)
    since = store.read_json(note)["since"]
    store.write_json(note, {"since": dict.fromkeys(since, "2026-01-01")})


def test_while_the_host_of_the_images_is_away_no_shard_is_done(
    given: Settings, tagger: Tagger, photos: Path, tmp_path: Path
) -> None:
    store, host = Store.of(given), tmp_path / "host"
    files = [path for path in sorted(photos.glob("a*.*")) if path.is_file()][:5]
    pairs = [(sha(path), host / path.name) for path in files]
    host.mkdir()
    (host / files[0].name).write_bytes(files[0].read_bytes())
    for _ in range(2):
        with pytest.raises(UnavailableError, match="4 of 5 images of backfill"):
            backfill.embed(store, given, tagger, wanted(*pairs), KEY, 0)
        assert not store.exists(backfill.marker_key(KEY, 0))
    assert backfill.missing(store, tagger.backbone_sha256, [pairs[0][0]]) == [], "what could be read is kept"
    for path in files[1:]:
        (host / path.name).write_bytes(path.read_bytes())
    # Whoever asks now may want only what is missing; what the part holds stays.
    done = backfill.embed(store, given, tagger, wanted(*pairs[1:]), KEY, 0)
    assert (done["embedded"], done["unreadable"]) == (5, [])
    ((contents, vectors),) = embeddings.batches(store, done["part"])
    assert sorted(contents) == sorted(content for content, _ in pairs)
    places = dict(zip((content for content, _ in pairs), files, strict=True))
    assert all(
        vector.tobytes() == by_hand(tagger, places[one]).tobytes()
        for one, vector in zip(contents, vectors, strict=True)
    )


def test_what_was_away_on_an_earlier_day_holds_nothing_up(given: Settings, tagger: Tagger, photos: Path) -> None:
    store = Store.of(given)
    gone = [(digit * 64, photos / f"nowhere {digit}.jpg") for digit in "1234"]
    with pytest.raises(UnavailableError):
        backfill.embed(store, given, tagger, wanted(*gone), KEY, 0)
    moved_back(store)
    done = backfill.embed(store, given, tagger, wanted(*gone), KEY, 0)
    assert {row["reason"] for row in done["unreadable"]} == {"unreadable_uri"}
    assert store.exists(backfill.marker_key(KEY, 0))
    # Nor does another backfill wait for them, but for others it does.
    assert len(backfill.embed(store, given, tagger, wanted(*gone), "another", 0)["unreadable"]) == 4
    fresh = [(digit * 64, photos / f"nowhere {digit}.jpg") for digit in "567"]
    with pytest.raises(UnavailableError, match="3 of 7 images"):
        backfill.embed(store, given, tagger, wanted(*gone, *fresh), "a third", 0)


def test_a_few_dead_uris_are_always_there(given: Settings, tagger: Tagger, photos: Path) -> None:
    gone = [(digit * 64, photos / f"nowhere {digit}.jpg") for digit in "12"]
    whole = photos / "a5.jpg"
    done = backfill.embed(Store.of(given), given, tagger, wanted(*gone, (sha(whole), whole)), KEY, 0)
    assert (done["embedded"], len(done["unreadable"])) == (1, 2)


def test_the_plan_says_which_backbone(given: Settings, tagger: Tagger, photos: Path) -> None:
    store, whole = Store.of(given), photos / "a5.jpg"
    backfill.embed(store, given, tagger, wanted((sha(whole), whole)), KEY, 0)
    plan = {"date": given.today().isoformat(), "backbone_sha256": tagger.backbone_sha256}
    assert store.read_json(backfill.plan_key(KEY)) == plan


def test_a_shard_is_done_once_and_its_part_is_final_only_then(given: Settings, tagger: Tagger, photos: Path) -> None:
    store, whole = Store.of(given), photos / "a5.jpg"
    first = backfill.embed(store, given, tagger, wanted((sha(whole), whole)), KEY, 0)
    assert backfill.embed(store, given, tagger, wanted(("0" * 64, whole)), KEY, 0) == first
    store.delete(backfill.marker_key(KEY, 0))
    assert backfill.done_parts(store, tagger.backbone_sha256) == []


def test_started_again_on_another_day_it_replaces_its_part(given: Settings, tagger: Tagger, photos: Path) -> None:
    store, whole = Store.of(given), photos / "a5.jpg"
    store.write_json(backfill.plan_key(KEY), {"date": "2026-01-31"})
    done = backfill.embed(store, given, tagger, wanted((sha(whole), whole)), KEY, 0)
    assert "/date=2026-01-31/" in done["part"]


def test_missing_contents_are_those_in_no_part(given: Settings, tagger: Tagger, photos: Path) -> None:
    store, whole = Store.of(given), photos / "a5.jpg"
    backfill.embed(store, given, tagger, wanted((sha(whole), whole)), KEY, 0)
    asked = ["f" * 64, sha(whole), "e" * 64, "f" * 64]
    assert backfill.missing(store, tagger.backbone_sha256, asked) == ["f" * 64, "e" * 64]
    assert backfill.missing(store, "0" * 64, [sha(whole)]) == [sha(whole)]
