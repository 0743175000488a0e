"""What a snapshot says of each image, in SQL: what nights wrote, a retag over it, answers of people on top.

All of it is by content. A row that a night wrote of a content with an answer says what the person said, an older row
too: when an image's bytes are replaced and the model is not sure of the new ones, the last live tag of the image is
the person's, and not what that person took back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wwts_ops import warehouse
from wwts_ops.decisions import AUTO, REVIEW
from wwts_ops.images import TRANSIENT_REASONS
from wwts_ops.records import RETAGGED
from wwts_ops.retags import Retag
from wwts_ops.schemas import TAGS
from wwts_ops.storage import Store
from wwts_ops.taxonomy import Taxonomy

#: The decision of a person who named a label, and the source of everything that a person said.
HUMAN, CORRECTION = "human", "correction"
#: Answers that name a label, that take every label away, and that take the image itself away.
LABELLED, WRONG_UNKNOWN, REJECTED = ("confirm", "correct"), "wrong_unknown", "reject_image"

_NAMES = pa.schema([(name, pa.string()) for name in ("label_id", "given_id", "label_zh", "category_path")])
_LABELLED = ", ".join(f"'{kind}'" for kind in LABELLED)

#: What a pending row takes over from its last live one: the tag, and what made it.
_TAG_COLUMNS = (
    "tags",
    "label_id",
    "label_zh",
    "confidence",
    "category_path",
    "source",
    "model_name",
    "model_version",
    "model_sha256",
    "backbone_sha256",
    "taxonomy_version",
    "git_sha",
    "run_id",
    "tagged_at",
)
#: Of those, what a row says of its making even when it has no tag yet.
_ALWAYS = frozenset(TAGS.names) - {"tags", "label_id", "label_zh", "confidence", "category_path"}

#: Where a column of a content with an answer comes from; the others are the night's, the run among them.
_ANSWERED = {
    "tags": "a.tags",
    "label_id": "a.tags[1].label_id",
    "label_zh": "a.tags[1].label_zh",
    "confidence": "a.tags[1].score",
    "category_path": "a.category_path",
    "decision": f"if(a.tags IS NULL, '{REVIEW}', '{HUMAN}')",
    "decision_reason": "a.kind",
    "source": f"'{CORRECTION}'",
    "model_name": "NULL",
    "model_version": "NULL",
    "model_sha256": "NULL",
    "backbone_sha256": "NULL",
    "taxonomy_version": "a.taxonomy_version",
    "git_sha": "NULL",
    "tagged_at": "a.answered_at",
}
#: The same of a content that was tagged anew: its tag, and what made it.
_MADE: tuple[str, ...] = ("model_name", "model_version", "model_sha256", "backbone_sha256")
_MADE += ("taxonomy_version", "git_sha", "run_id", "tagged_at")
_RETAGGED = {name: f"g.{name}" for name in RETAGGED.names if name != "content_sha256"}
_RETAGGED |= {name: f"(SELECT {name} FROM made)" for name in _MADE}


@dataclass(frozen=True)
class Overlay:
    """What lies over the rows of nights.

    Attributes:
        retag: the one in force, or None.
        distrusted: ``model_sha256`` of versions whose tags are never the last live one.
        answers: those in force, one a content; schema ``ANSWERS``.
        names: the taxonomy by whose names answered labels go; None: by their ids.
        release: ``live`` or ``shadow``, in which nothing is live.
    """

    retag: Retag | None
    distrusted: tuple[str, ...]
    answers: pa.Table
    names: Taxonomy | None
    release: str


def lay(con: Any, store: Store, overlay: Overlay) -> None:
    """Makes table ``placed``: what each image's row will be made of, by ``place`` in the order of ``image_id``.

    ``con`` has ``tags``, ``quarantine``, ``runs`` (``run_id``, ``sequence``, ``model_version``) and ``gone``
    (``image_id``, ``sequence``).
    """
    _lay_answers(con, overlay)
    _lay_retag(con, store, overlay)
    _choose(con, overlay)
    con.execute("CREATE TABLE placed AS SELECT *, row_number() OVER (ORDER BY image_id) AS place FROM chosen")


def _lay_answers(con: Any, overlay: Overlay) -> None:
    """Table ``answered``: of each content with an answer its kind and tags (null: no tag at all)."""
    names = overlay.names
    con.register("names", pa.Table.from_pylist([] if names is None else list(_named(names)), schema=_NAMES))
    con.register("answers", overlay.answers.select(["number", "content_sha256", "kind", "labels", "answered_at"]))
    con.execute(
        f"""
        CREATE TABLE answered AS
        WITH one_by_one AS (
            SELECT number, unnest(labels) AS label_id, generate_subscripts(labels, 1) AS place
            FROM answers WHERE kind IN ({_LABELLED})
        ), given AS (
            -- Two labels of one answer may have become one since.
            SELECT
                number, coalesce(n.given_id, o.label_id) AS label_id, min(place) AS place,
                any_value(coalesce(n.label_zh, o.label_id)) AS label_zh, any_value(n.category_path) AS category_path
            FROM one_by_one o LEFT JOIN names n USING (label_id) GROUP BY ALL
        ), tagged AS (
            SELECT
                number,
                list({{'label_id': label_id, 'label_zh': label_zh, 'score': 1.0::FLOAT}} ORDER BY place) AS tags,
                nullif(max(category_path) FILTER (place = 1), '') AS category_path
            FROM given GROUP BY number
        )
        SELECT content_sha256, kind, tags, category_path, answered_at, ?::VARCHAR AS taxonomy_version
        FROM answers LEFT JOIN tagged USING (number)
        """,
        [None if names is None else names.version],
    )


def _named(names: Taxonomy) -> Iterator[dict[str, str]]:
    """Each label, by the name and path of what it was merged into or is mapped to."""
    for label in names.labels:
        given = names.by_id.get(names.given(label.label_id), label)
        yield {
            "label_id": label.label_id,
            "given_id": given.label_id,
            "label_zh": given.label_zh,
            "category_path": given.category_path,
        }


def lay_retagged(con: Any, store: Store, retag: Retag | None) -> None:
    """View ``retagged`` with the number of each row's ``part``, and table ``retag_index``.

    The latter says of each content which part counts, and its decision there.
    """
    con.register("no_part", RETAGGED.empty_table())
    views = ["SELECT -1 AS part, * FROM no_part"]
    for number, key in enumerate(() if retag is None else retag.rows):
        warehouse.view(con, f"retagged_{number}", store, [key], RETAGGED)
        views.append(f"SELECT {number} AS part, * FROM retagged_{number}")
    con.execute(f"CREATE VIEW retagged AS {' UNION ALL '.join(views)}")
    con.execute(
        "CREATE TABLE retag_index AS SELECT content_sha256, min(part) AS part, arg_min(decision, part) AS decision "
        "FROM retagged GROUP BY content_sha256"
    )


def _lay_retag(con: Any, store: Store, overlay: Overlay) -> None:
    """What :func:`lay_retagged` lays, and table ``made``: what made those tags."""
    lay_retagged(con, store, overlay.retag)
    con.execute(
        "CREATE TABLE made AS SELECT ?::VARCHAR AS model_name, ?::VARCHAR AS model_version, ?::VARCHAR AS model_sha256,"
        " ?::VARCHAR AS backbone_sha256, ?::VARCHAR AS taxonomy_version, ?::VARCHAR AS git_sha, ?::VARCHAR AS run_id,"
        " ?::TIMESTAMPTZ AS tagged_at, ?::BIGINT AS sequence, ?::VARCHAR[] AS distrusted",
        [*_made(overlay.retag), list(overlay.distrusted)],
    )


def _made(retag: Retag | None) -> list[Any]:
    if retag is None:
        return [None] * 8 + [-1]
    made = [retag.model_name, retag.model_version, retag.model_sha256, retag.backbone_sha256, retag.taxonomy_version]
    return [*made, retag.git_sha, retag.key, retag.planned_at, retag.sequence]


def _choose(con: Any, overlay: Overlay) -> None:
    """Table ``chosen``: for every listed image, the run of its newest tags and the run of its last live ones.

    The highest plan sequence counts, not the latest clock. Delisting, unreadable bytes and a rejection by a person end
    what was live; a uri that could not be reached tonight says nothing of the bytes, and changes nothing. A retag is
    an act of its own between the nights that it covers and those that follow: it says anew what each image's newest
    row of the former says.
    """
    transient = ", ".join(f"'{reason}'" for reason in sorted(TRANSIENT_REASONS))
    live = "true" if overlay.release == "live" else "false"
    con.execute(
        f"""
        CREATE TABLE chosen AS
        WITH said AS (
            SELECT
                t.image_id,
                r.sequence,
                a.kind,
                -- 0: not tagged anew; 1: anew, for a person to look at; 2: anew, and live
                CASE
                    WHEN a.kind IS NOT NULL OR g.part IS NULL THEN 0
                    WHEN g.decision = '{AUTO}' AND {live} THEN 2
                    ELSE 1
                END AS anew,
                {live} AND CASE
                    WHEN a.kind IS NOT NULL THEN a.tags IS NOT NULL
                    ELSE t.decision = '{AUTO}' AND NOT coalesce(list_contains(m.distrusted, t.model_sha256), false)
                END AS live
            FROM tags t JOIN runs r USING (run_id) CROSS JOIN made m
            LEFT JOIN answered a ON a.content_sha256 = t.content_sha256
            LEFT JOIN retag_index g ON g.content_sha256 = t.content_sha256 AND r.sequence <= m.sequence
        ), events AS (
            SELECT image_id, sequence, kind IS DISTINCT FROM '{REJECTED}' AS tagged, kind, anew, live FROM said
            UNION ALL
            SELECT image_id, sequence, false, NULL, 0, false FROM quarantine JOIN runs USING (run_id)
            WHERE reason NOT IN ({transient})
            UNION ALL
            SELECT image_id, sequence, false, NULL, 0, false FROM gone
        ), latest AS (
            SELECT
                image_id,
                max(e.sequence) FILTER (tagged) AS newest,
                max(e.sequence) FILTER (tagged AND kind IS NOT NULL) AS answered,
                max(e.sequence) FILTER (tagged AND kind IN ({_LABELLED})) AS labelled,
                max(e.sequence) FILTER (tagged AND e.sequence <= m.sequence) AS covered,
                arg_max(anew, e.sequence) FILTER (tagged AND e.sequence <= m.sequence) AS anew,
                max(e.sequence) FILTER (live AND e.sequence > m.sequence) AS live_after,
                max(e.sequence) FILTER (live AND e.sequence <= m.sequence) AS live_before,
                max(e.sequence) FILTER (live AND kind IS NOT NULL AND e.sequence > m.sequence) AS person_after,
                max(e.sequence) FILTER (live AND kind IS NOT NULL AND e.sequence <= m.sequence) AS person_before,
                coalesce(max(e.sequence) FILTER (NOT tagged), 0) AS ended,
                coalesce(max(e.sequence) FILTER (NOT tagged OR kind = '{WRONG_UNKNOWN}'), 0) AS emptied
            FROM events e CROSS JOIN made m GROUP BY image_id
        ), alive AS (
            SELECT * REPLACE (if(live_after > emptied, live_after, NULL) AS live_after)
            FROM latest WHERE newest > ended
        ), lived AS (
            SELECT
                *,
                coalesce(newest = covered AND anew > 0, false) AS newest_anew,
                CASE
                    WHEN live_after IS NOT NULL THEN live_after
                    WHEN anew = 2 AND covered > emptied THEN covered
                    WHEN live_before > emptied THEN live_before
                END AS live,
                coalesce(anew = 2 AND covered > emptied AND live_after IS NULL, false) AS live_anew
            FROM alive
        ), shown AS (
            -- What a person said is shown while the shop is in shadow, too, though it is not live.
            SELECT *, coalesce(live, if(labelled = newest, newest, NULL)) AS shown FROM lived
        )
        SELECT
            image_id,
            n.run_id AS newest_run,
            newest_anew,
            s.run_id AS shown_run,
            live_anew AS shown_anew,
            coalesce(live = newest AND live_anew = newest_anew, false) AS is_live,
            coalesce(answered = newest, false) AS is_answered,
            -- of most images: then one look at the rows of nights and of the retag is enough
            coalesce(shown = newest AND live_anew = newest_anew, false) AS is_same,
            CASE
                WHEN live_anew OR (shown IS NULL AND newest_anew) THEN m.model_version
                WHEN shown IS NULL AND NOT is_answered THEN n.model_version
                WHEN NOT coalesce(shown IN (labelled, person_after, person_before), false) THEN s.model_version
            END AS version
        FROM shown CROSS JOIN made m
        JOIN runs n ON n.sequence = newest
        LEFT JOIN runs s ON s.sequence = shown
        """
    )


def rows(con: Any, snapshot: str, size: int) -> Iterator[Any]:
    """Relations over ``placed`` in the published schema, by ``image_id``, ``size`` rows at a time.

    The order makes two publishers of one snapshot write the same bytes: a reader of the first one's file does not
    notice the second's. Sorted at once, all rows of a large shop would not fit.
    """
    count = con.sql("SELECT count(*) FROM placed").fetchall()[0][0]
    for start in range(1, count + 1, size):
        yield con.sql(_slice_sql(snapshot, start, start + size - 1))


def counts(con: Any) -> dict[str, Any]:
    """Of ``placed``: all ``images``, those ``live``, those ``answered``, and how many go by each model version."""
    asked = "SELECT count(*), count(*) FILTER (is_live), count(*) FILTER (is_answered) FROM placed"
    images, live, answered = con.sql(asked).fetchall()[0]
    by_version = "SELECT version, count(*) FROM placed WHERE version IS NOT NULL GROUP BY 1"
    versions = dict(con.sql(by_version).fetchall())
    return {"images": images, "live": live, "answered": answered, "model_versions": versions}


def _slice_sql(snapshot: str, first: int, last: int) -> str:
    """Live rows as they are, pending ones with their last live tag."""
    # Pending: what is known of the image and why it waits is new, the tag is the last live one's, or none. Of a live
    # image both are the same row.
    columns = ", ".join(_column(name) for name in TAGS.names)
    return f"""
        WITH c AS MATERIALIZED (FROM placed WHERE place BETWEEN {first} AND {last}),
        n AS ({_said("newest", "true")}),
        l AS ({_said("shown", "NOT c.is_same")})
        SELECT {columns}, if(n.is_live, 'live', 'pending') AS state, '{snapshot}' AS snapshot
        FROM n LEFT JOIN l USING (place)
        ORDER BY n.place
    """


def _said(which: str, condition: str) -> str:
    """The ``newest`` or ``shown`` rows of those of a slice that fulfil a condition, with what lies over them."""
    columns = ", ".join(_overlaid(name) for name in TAGS.names)
    return f"""
        SELECT c.place, c.is_live, c.is_same, c.shown_run, {columns}
        FROM c JOIN tags t ON t.image_id = c.image_id AND t.run_id = c.{which}_run
        LEFT JOIN answered a ON a.content_sha256 = t.content_sha256
        LEFT JOIN retag_index i ON i.content_sha256 = if(c.{which}_anew, t.content_sha256, NULL)
        LEFT JOIN retagged g ON g.content_sha256 = i.content_sha256 AND g.part = i.part
        WHERE {condition}
    """


def _overlaid(name: str) -> str:
    choices = [
        f"WHEN {there} IS NOT NULL THEN {source[name]}"
        for there, source in (("a.kind", _ANSWERED), ("g.part", _RETAGGED))
        if name in source
    ]
    return f"CASE {' '.join(choices)} ELSE t.{name} END AS {name}" if choices else f"t.{name}"


def _column(name: str) -> str:
    if name not in _TAG_COLUMNS:
        return f"n.{name}"
    # Never column by column: a commit that is unknown must not be another tag's.
    same = "n.is_same OR n.shown_run IS NULL" if name in _ALWAYS else "n.is_same"
    return f"if({same}, n.{name}, l.{name}) AS {name}"
