"""Lists and people's labels below `/api`: the same facts and changes as on the pages, as records."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from app.changes import Writable
from app.deps import LARGEST_INDEX, CorpusParams, FeatureIndex, Name, Slug, StoreDep, checked_slug
from app.export import feature_numbers
from sae_core.records import FeatureDetail, FeatureList, Label, ListSummary
from sae_core.store import Store
from sae_core.store_lists import MAX_ITEMS, clean_author

router = APIRouter(prefix="/api")

ListId = Annotated[str, Path(max_length=40, description="as in the list's address")]
ItemId = Annotated[int, Path(ge=0, le=LARGEST_INDEX)]
Version = Annotated[int | None, Field(default=None, description="the one you saw; an older one is refused with 409")]
Text = Annotated[str, Field(default="")]


class Change(BaseModel):
    model_config = ConfigDict(frozen=True)


class ListTexts(Change):
    """A list's title and description."""

    title: str = Field(description="what it collects")
    description: Text
    author: str = Field(default="", description='your name; "anonymous" when empty')


class ListChange(Change):
    """A list's new title and description."""

    title: str
    description: Text
    version: Version


class NewItem(Change):
    """A feature for a list."""

    slug: str = Field(max_length=200)
    feature_index: int = Field(ge=0, le=LARGEST_INDEX)
    corpus: Name = Field(default=None, description="on which it is shown; default the newest index")
    note: Text
    author: Text


class NewItems(Change):
    """Several features of one SAE for a list."""

    slug: str = Field(max_length=200)
    features: str = Field(max_length=4000, description="numbers and ranges: 1,5,9-12")
    corpus: Name = Field(default=None, description="on which they are shown; default the newest index")
    note: Text
    author: Text


class NoteChange(Change):
    """An item's new note."""

    note: str
    author: Text
    version: Version


class Order(Change):
    """The ids of all items of a list, in their new order."""

    items: list[int] = Field(max_length=MAX_ITEMS)
    version: int = Field(description="of the list that was put in order; an older one is refused with 409")


class LabelChange(Change):
    """What a person says a feature means."""

    text: str = Field(max_length=300)
    author: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """All lists, last changed first; `next` is always null."""

    items: tuple[ListSummary, ...]
    next: str | None = None


@router.get("/lists", summary="All lists")
def lists(store: StoreDep) -> Lists:
    return Lists(items=tuple(store.lists()))


@router.post("/lists", summary="Make a list", dependencies=[Writable])
def add_list(store: StoreDep, asked: ListTexts) -> FeatureList:
    return store.feature_list(store.add_list(title=asked.title, description=asked.description, author=asked.author))


@router.get("/lists/{list_id}", summary="A list with its features and notes")
def feature_list(store: StoreDep, list_id: ListId) -> FeatureList:
    return store.feature_list(list_id)


@router.put("/lists/{list_id}", summary="Change a list's title and description", dependencies=[Writable])
def change_list(store: StoreDep, list_id: ListId, asked: ListChange) -> FeatureList:
    store.change_list(list_id, title=asked.title, description=asked.description, version=asked.version)
    return store.feature_list(list_id)


@router.delete("/lists/{list_id}", summary="Delete a list; the answer is what it was", dependencies=[Writable])
def delete_list(store: StoreDep, list_id: ListId) -> FeatureList:
    found = store.feature_list(list_id)
    store.delete_list(list_id)
    return found


@router.post("/lists/{list_id}/items", summary="Add a feature to a list", dependencies=[Writable])
def add_item(store: StoreDep, list_id: ListId, asked: NewItem) -> FeatureList:
    added(store, list_id, asked)
    return store.feature_list(list_id)


@router.post("/lists/{list_id}/features", summary="Add several features to a list", dependencies=[Writable])
def add_items(store: StoreDep, list_id: ListId, asked: NewItems) -> FeatureList:
    """Those that are in it already stay as they are."""
    added_many(store, list_id, asked)
    return store.feature_list(list_id)


@router.put("/lists/{list_id}/items/{item_id}", summary="Change an item's note", dependencies=[Writable])
def change_note(store: StoreDep, list_id: ListId, item_id: ItemId, asked: NoteChange) -> FeatureList:
    store.change_list_note(list_id, item_id, note=asked.note, author=asked.author, version=asked.version)
    return store.feature_list(list_id)


@router.delete("/lists/{list_id}/items/{item_id}", summary="Take an item out of a list", dependencies=[Writable])
def delete_item(store: StoreDep, list_id: ListId, item_id: ItemId) -> FeatureList:
    store.delete_list_item(list_id, item_id)
    return store.feature_list(list_id)


@router.put("/lists/{list_id}/order", summary="Put a list in order", dependencies=[Writable])
def order_list(store: StoreDep, list_id: ListId, asked: Order) -> FeatureList:
    store.order_list(list_id, asked.items, version=asked.version)
    return store.feature_list(list_id)


@router.put("/saes/{slug}/features/{feature_index}/label", summary="Say what a feature means", dependencies=[Writable])
def put_label(
    store: StoreDep, slug: Slug, feature_index: FeatureIndex, query: CorpusParams, asked: LabelChange
) -> FeatureDetail:
    labelled(store, slug, feature_index, asked)
    return store.feature(slug, feature_index, corpus=query.corpus)


@router.delete(
    "/saes/{slug}/features/{feature_index}/label", summary="Take a person's label away", dependencies=[Writable]
)
def delete_label(store: StoreDep, slug: Slug, feature_index: FeatureIndex, query: CorpusParams) -> FeatureDetail:
    store.feature(slug, feature_index, corpus=query.corpus)  # an unknown feature is an error here too
    store.delete_label(slug, feature_index)
    return store.feature(slug, feature_index, corpus=query.corpus)


def added(store: Store, list_id: str, asked: NewItem) -> int:
    """Adds the item; returns its id."""
    return store.add_list_item(
        list_id, checked_slug(asked.slug), asked.feature_index, corpus=asked.corpus, note=asked.note,
        author=asked.author,
    )  # fmt: skip


def added_many(store: Store, list_id: str, asked: NewItems) -> int:
    """Adds the items; returns how many were not in the list already."""
    return store.add_list_items(
        list_id, checked_slug(asked.slug), feature_numbers(asked.features, what="features", most=MAX_ITEMS),
        corpus=asked.corpus, note=asked.note, author=asked.author,
    )  # fmt: skip


def labelled(store: Store, slug: str, feature_index: int, asked: LabelChange) -> None:
    label = Label(
        text=" ".join(asked.text.split()), kind="human", author=clean_author(asked.author), score=None,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    store.add_labels(slug, {feature_index: label})
