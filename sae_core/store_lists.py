"""Lists of features: their rows, read and written inside the transactions that `store` opens.

A list outlives the SAEs that it names. An item holds a slug and the moment when its SAE was made, so that it can be
told from another SAE that has taken the slug since; such an item, and one whose SAE is gone, says so and shows nothing
else.

Writes run one at a time (`store_engine`): who adds at the same moment as somebody else loses nothing. Who sends back an
order, a title, a description or a note says which version of it they have seen, and is refused if it is an older one.
"""

import secrets
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from sae_core.errors import ConflictError, InputError, NotFoundError
from sae_core.records import ListItem, ListSummary
from sae_core.schema import list_items, lists, saes
from sae_core.search_terms import clean_text
from sae_core.store_viewer import hidden_slugs

ANONYMOUS = "anonymous"
MAX_ITEMS = 300  # of a list: about what a page can show
MAX_CHARACTERS = {"title": 120, "description": 4000, "note": 2000, "name": 80}
_ID_LETTERS = "23456789abcdefghijkmnpqrstuvwxyz"  # none that looks like another
_ID_LENGTH = 14  # 70 random bits


# Made once: to put a query together costs SQLAlchemy more than to run it.
_hidden: sa.BindParameter[list[str]] = sa.bindparam("hidden", expanding=True)
_COUNTS = (
    sa.select(list_items.c.list_id, sa.func.count().label("n_items"))
    .where(list_items.c.slug.not_in(_hidden))
    .group_by(list_items.c.list_id)
    .subquery()
)
_SUMMARIES = (
    sa.select(lists, sa.func.coalesce(_COUNTS.c.n_items, 0).label("n_items"))
    .select_from(lists.outerjoin(_COUNTS, lists.c.list_id == _COUNTS.c.list_id))
    .order_by(lists.c.updated_at.desc(), lists.c.list_id)
)
_SUMMARY_OF = _SUMMARIES.where(lists.c.list_id == sa.bindparam("list_id"))
_SUMMARIES_HOLDING = _SUMMARIES.where(
    lists.c.list_id.in_(
        sa.select(list_items.c.list_id).where(
            list_items.c.slug == sa.bindparam("slug"),
            list_items.c.feature_index == sa.bindparam("feature_index"),
            list_items.c.sae_created_at == sa.bindparam("made"),
        )
    )
)

_newest = sa.select(lists).order_by(lists.c.updated_at.desc(), lists.c.list_id).limit(sa.bindparam("limit")).subquery()
_NEWEST_SUMMARIES = sa.select(
    _newest,
    sa.select(sa.func.count())
    .where(list_items.c.list_id == _newest.c.list_id, list_items.c.slug.not_in(_hidden))
    .scalar_subquery()
    .label("n_items"),
).order_by(_newest.c.updated_at.desc(), _newest.c.list_id)


def clean_author(name: str) -> str:
    """A person's name as it is stored: "anonymous" where none was given."""
    return _checked("name", " ".join(name.split())) or ANONYMOUS


def random_id() -> str:
    """For an address: short, and not to be guessed."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


def insert_list(connection: sa.Connection, *, title: str, description: str, author: str) -> str:
    """Returns the new list's id."""
    list_id = random_id()
    now = datetime.now(UTC)
    row = {"list_id": list_id, "author": clean_author(author), "created_at": now, "updated_at": now, "version": 1}
    connection.execute(sa.insert(lists).values(row | _texts(title=title, description=description)))
    return list_id


def update_list(connection: sa.Connection, list_id: str, *, title: str, description: str, version: int | None) -> None:
    _check_version(_list_row(connection, list_id), version)
    _touch(connection, list_id, **_texts(title=title, description=description))


def remove_list(connection: sa.Connection, list_id: str) -> None:
    _list_row(connection, list_id)
    connection.execute(sa.delete(lists).where(lists.c.list_id == list_id))


def insert_item(
    connection: sa.Connection,
    list_id: str,
    *,
    sae: sa.RowMapping,
    feature_index: int,
    corpus: str | None,
    label: str | None,
    note: str,
    author: str,
) -> int:
    """At the end of the list; returns the new item's id. `sae`: a row of `saes`."""
    new = insert_items(
        connection, list_id, sae=sae, labels={feature_index: label}, corpus=corpus, note=note, author=author
    )  # fmt: skip
    if not new:
        raise ConflictError(f"Feature {feature_index} of {sae['slug']} is in this list already; change its note there.")
    return new[0]


def insert_items(
    connection: sa.Connection,
    list_id: str,
    *,
    sae: sa.RowMapping,
    labels: Mapping[int, str | None],
    corpus: str | None,
    note: str,
    author: str,
) -> list[int]:
    """The features that `labels` names, at the end of the list in that order, but for those that are in it already;
    returns the new items' ids."""
    _list_row(connection, list_id)
    there = _item_rows(connection, list_id)
    known = {_place(row) for row in there if row["sae_created_at"] == sae["created_at"]}
    new = [feature_index for feature_index in labels if (sae["slug"], feature_index, corpus) not in known]
    room = MAX_ITEMS - len(there)
    if new and room <= 0:
        raise InputError(f"A list has at most {MAX_ITEMS} features, and this one is full; make another.")
    if len(new) > room:
        raise InputError(f"A list has at most {MAX_ITEMS} features, and this one has room for {room}; add fewer.")
    now = datetime.now(UTC)
    first = max((row["position"] for row in there), default=-1) + 1
    item_ids = []
    for position, feature_index in enumerate(new, start=first):
        row = {
            "list_id": list_id,
            "position": position,
            "slug": sae["slug"],
            "sae_created_at": sae["created_at"],
            "feature_index": feature_index,
            "corpus": corpus,
            "label": labels[feature_index],
            "note": _checked("note", note),
            "author": clean_author(author),
            "created_at": now,
            "updated_at": now,
            "version": 1,
        }
        key = connection.execute(sa.insert(list_items).values(row)).inserted_primary_key
        assert key is not None
        item_ids.append(int(key[0]))
    if new:
        _touch(connection, list_id)
    return item_ids


def update_note(
    connection: sa.Connection, list_id: str, item_id: int, *, note: str, author: str, version: int | None
) -> None:
    row = _item_row(connection, list_id, item_id)
    if version is not None and version != row["version"]:
        raise ConflictError(
            f"{row['author']} has changed this note since you opened it; copy yours, reload the list, put it in again."
        )
    now = datetime.now(UTC)
    changed = {
        "note": _checked("note", note),
        "author": clean_author(author),
        "updated_at": now,
        "version": row["version"] + 1,
    }
    connection.execute(sa.update(list_items).where(list_items.c.item_id == item_id).values(changed))
    connection.execute(sa.update(lists).where(lists.c.list_id == list_id).values(updated_at=now))


def remove_item(connection: sa.Connection, list_id: str, item_id: int) -> None:
    _item_row(connection, list_id, item_id)
    connection.execute(sa.delete(list_items).where(list_items.c.item_id == item_id))
    _touch(connection, list_id)


def move_item(connection: sa.Connection, list_id: str, item_id: int, *, by: int) -> None:
    """By so many places, as far as the list goes; from where it is now, so that no version needs to be asked for."""
    _item_row(connection, list_id, item_id)
    order = [row["item_id"] for row in _item_rows(connection, list_id)]
    at = order.index(item_id)
    order.insert(max(0, min(len(order) - 1, at + by)), order.pop(at))
    _write_order(connection, list_id, order)


def order_items(connection: sa.Connection, list_id: str, order: Sequence[int], *, version: int) -> None:
    """`order`: the ids of all items."""
    _check_version(_list_row(connection, list_id), version)
    there = {row["item_id"] for row in _item_rows(connection, list_id)}
    if len(order) != len(there) or set(order) != there:
        raise InputError("An order names every item of the list once; reload the list and order it again.")
    _write_order(connection, list_id, order)


def list_summaries(
    connection: sa.Connection,
    *,
    list_id: str | None = None,
    holding: tuple[sa.RowMapping, int] | None = None,
    limit: int | None = None,
) -> list[ListSummary]:
    """The lists, last changed first: all or so many of them, the one of this id, or those that hold a feature of an
    SAE's row."""
    hidden = {"hidden": hidden_slugs(connection)}
    if holding is not None:
        sae, feature_index = holding
        its = hidden | {"slug": sae["slug"], "made": sae["created_at"], "feature_index": feature_index}
        rows = connection.execute(_SUMMARIES_HOLDING, its).mappings()
    elif list_id is not None:
        rows = connection.execute(_SUMMARY_OF, hidden | {"list_id": clean_text(list_id)}).mappings()
    elif limit is not None:
        rows = connection.execute(_NEWEST_SUMMARIES, hidden | {"limit": limit}).mappings()
    else:
        rows = connection.execute(_SUMMARIES, hidden).mappings()
    return [ListSummary(**row) for row in rows]


def one_summary(connection: sa.Connection, list_id: str) -> ListSummary:
    found = list_summaries(connection, list_id=list_id)
    if not found:
        raise NotFoundError(_UNKNOWN)
    return found[0]


def bare_items(connection: sa.Connection, list_id: str) -> list[ListItem]:
    """A list's items in order, with a problem where the SAE is not there, or is another one now; else to be filled.
    Items of SAEs that are hidden from the viewer are left out."""
    hidden = hidden_slugs(connection)
    rows = [row for row in _item_rows(connection, list_id) if row["slug"] not in hidden]
    slugs = {row["slug"] for row in rows}
    query = sa.select(saes.c.slug, saes.c.created_at).where(saes.c.slug.in_(slugs))
    made: dict[str, datetime] = {row["slug"]: row["created_at"] for row in connection.execute(query).mappings()}
    return [_item_record(row, made=made) for row in rows]


def _item_record(row: sa.RowMapping, *, made: Mapping[str, datetime]) -> ListItem:
    slug, now = row["slug"], made.get(row["slug"])
    problem = None
    if now is None:
        problem = f'The SAE "{slug}" has been deleted, and with it what this feature was.'
    elif now != row["sae_created_at"]:
        problem = (
            f'The SAE "{slug}" has been replaced since this was added: its feature {row["feature_index"]} is another.'
        )
    names = ("item_id", "slug", "feature_index", "corpus", "note", "author", "created_at", "updated_at", "version")
    return ListItem(**{name: row[name] for name in names}, label_then=row["label"], problem=problem)


_UNKNOWN = "There is no such list: it may have been deleted. /lists has those that are here."


def _list_row(connection: sa.Connection, list_id: str) -> sa.RowMapping:
    row = connection.execute(sa.select(lists).where(lists.c.list_id == clean_text(list_id))).mappings().one_or_none()
    if row is None:
        raise NotFoundError(_UNKNOWN)
    return row


def _item_rows(connection: sa.Connection, list_id: str) -> Sequence[sa.RowMapping]:
    query = sa.select(list_items).where(list_items.c.list_id == list_id)
    return connection.execute(query.order_by(list_items.c.position, list_items.c.item_id)).mappings().all()


def _item_row(connection: sa.Connection, list_id: str, item_id: int) -> sa.RowMapping:
    _list_row(connection, list_id)
    wanted = (list_items.c.list_id == list_id, list_items.c.item_id == item_id)
    row = connection.execute(sa.select(list_items).where(*wanted)).mappings().one_or_none()
    if row is None:
        raise NotFoundError("This item is not in the list any more; reload the list to see what is.")
    return row


def _place(row: sa.RowMapping) -> tuple[str, int, str | None]:
    return row["slug"], row["feature_index"], row["corpus"]


def _check_version(row: sa.RowMapping, version: int | None) -> None:
    if version is not None and version != row["version"]:
        raise ConflictError("Somebody has changed this list since you opened it; reload it and make your change again.")


def _write_order(connection: sa.Connection, list_id: str, order: Collection[int]) -> None:
    places = [{"key": item_id, "place": place} for place, item_id in enumerate(order)]
    if places:
        statement = sa.update(list_items).where(list_items.c.item_id == sa.bindparam("key"))
        connection.execute(statement.values(position=sa.bindparam("place")), places)
    _touch(connection, list_id)


def _touch(connection: sa.Connection, list_id: str, **changed: str) -> None:
    values = changed | {"updated_at": datetime.now(UTC), "version": lists.c.version + 1}
    connection.execute(sa.update(lists).where(lists.c.list_id == list_id).values(values))


def _texts(*, title: str, description: str) -> dict[str, str]:
    title = _checked("title", " ".join(title.split()))
    if not any(unicodedata.category(letter)[0] in "LNPS" for letter in title):  # something that can be seen
        raise InputError("The list has no title; write what it collects.")
    return {"title": title, "description": _checked("description", description)}


def _checked(name: str, text: str) -> str:
    text, most = clean_text(text).replace("\r\n", "\n").strip(), MAX_CHARACTERS[name]
    if len(text) > most:
        raise InputError(f"The {name} has {len(text):,} characters and may have {most:,}; shorten it.")
    return text
