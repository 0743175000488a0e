"""What the review page keeps in the database follows the taxonomy: names and categories of items, people's categories.

An item keeps the label that it was shown with, and goes by that label's name; it stands where the label stands that is
given in its stead, should it be merged or mapped: there its answer will go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import sqlalchemy as sa

from wwts_ops import database
from wwts_ops.database import review_items, review_people
from wwts_ops.taxonomy import Taxonomy

#: Category path now, by label id.
Places = Mapping[str, str]


def hold(connection: sa.Connection) -> None:
    """Until the transaction ends nobody else changes items: what is in force now is what :func:`settle` should go by.

    Whoever reads goes on; on SQLite a transaction is alone in any case.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE review_items IN EXCLUSIVE MODE"))


def settle(connection: sa.Connection, names: Taxonomy) -> None:
    """Gives every item, done or not, the name and category that its label has in ``names``, where it has others.

    To be called after :func:`hold`.
    """
    columns = (review_items.c.label_id, review_items.c.label_zh, review_items.c.category_path)
    places = _places(names)
    changed: dict[str, dict[str, str | None]] = {}
    for label_id, label_zh, path in connection.execute(sa.select(*columns).distinct()):
        if label_id in places:
            now = (names.by_id[label_id].label_zh, places[label_id] or None)
            if now != (label_zh, path or None):
                changed[label_id] = {"label": label_id, "label_zh": now[0], "category_path": now[1]}
    if changed:
        these = review_items.c.label_id == sa.bindparam("label")
        connection.execute(sa.update(review_items).where(these), list(changed.values()))


def follow(connection: sa.Connection, before: Taxonomy, after: Taxonomy) -> None:
    """:func:`settle` in ``after``; and who looked after a category that is empty now looks after where they went."""
    hold(connection)
    settle(connection, after)
    places = _places(before), _places(after)
    rows = connection.execute(sa.select(review_people.c.person, review_people.c.categories)).all()
    for person, chosen in rows:
        now = list(dict.fromkeys(path for one in chosen for path in _moved(one, *places)))
        if now != list(chosen):
            values = {"categories": now, "changed_at": database.now(connection)}
            connection.execute(sa.update(review_people).where(review_people.c.person == person).values(**values))


def _places(names: Taxonomy) -> Places:
    """Where each label stands, or the one that is given in its stead."""
    return {label.label_id: names.by_id.get(label.maps_to, label).category_path for label in names.labels}


def _moved(category: str, before: Places, after: Places) -> Iterable[str]:
    """Where the labels of a category are; the category itself as long as there are any, or never were."""
    if not any(_is_below(path, category) for path in before.values()):
        return [category]
    if any(_is_below(path, category) for path in after.values()):
        return [category]
    return sorted(set(_targets(category, before, after))) or [category]


def _targets(category: str, before: Places, after: Places) -> Iterator[str]:
    for label_id, path in before.items():
        now = after.get(label_id)
        if now and _is_below(path, category):
            # What came with all that is below it is followed as a whole.
            yield now.removesuffix(path[len(category) :]) or now


def _is_below(path: str, category: str) -> bool:
    return path == category or path.startswith(f"{category} > ")
