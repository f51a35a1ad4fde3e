"""The pages of lists, and the forms that change lists and labels: each leads on to the page that shows the change."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from app.changes import Fields, Writable, author_of, parsed, seen_at
from app.deps import FeatureIndex, Slug, StoreDep, VersionDep, checked_slug
from app.export import exported_list, feature_numbers
from app.kept import Keeps
from app.list_views import as_csv, as_json_lines, item_views, unfurled_list
from app.lists_api import (
    ItemId,
    LabelChange,
    ListChange,
    ListId,
    ListTexts,
    NewItem,
    NewItems,
    NoteChange,
    added,
    added_many,
    labelled,
)
from app.rendering import absolute, page
from app.urls import url
from sae_core.errors import InputError
from sae_core.store_lists import MAX_CHARACTERS, MAX_ITEMS

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

Format = Literal["csv", "jsonl", "html"]
MEDIA_TYPES = {"csv": "text/csv", "jsonl": "application/x-ndjson", "html": "text/html"}


@router.get("/lists", dependencies=Keeps)
def lists_page(request: Request, store: StoreDep) -> Response:
    return page(request, "lists.html", lists=store.lists(), author=author_of(request), most=MAX_CHARACTERS)


@router.post("/lists", dependencies=[Writable])
def add_list(store: StoreDep, fields: Fields) -> Response:
    asked = parsed(ListTexts, fields)
    list_id = store.add_list(title=asked.title, description=asked.description, author=asked.author)
    return seen_at(f"/lists/{list_id}", author=asked.author)


@router.post("/lists/add", dependencies=[Writable])
def add_to_any_list(store: StoreDep, fields: Fields) -> Response:
    """From a feature's page, and back to it: into a new list with this `title`, or into the list `list_id`."""
    asked = parsed(NewItem, fields)
    list_id = _chosen_list(fields)
    if not list_id:
        store.feature(
            checked_slug(asked.slug), asked.feature_index, corpus=asked.corpus
        )  # before a list is made for it
        list_id = store.add_list(title=fields.get("title", ""), author=asked.author)
    added(store, list_id, asked)
    address = url(f"/saes/{asked.slug}/features/{asked.feature_index}", corpus=asked.corpus)
    return seen_at(f"{address}#lists", author=asked.author)


def _chosen_list(fields: dict[str, str]) -> str | None:
    """Whoever typed a title wants a new list, whatever list is still selected beside it."""
    return None if fields.get("title", "").strip() else fields.get("list_id")


@router.post("/lists/add-features", dependencies=[Writable])
def add_features_to_any_list(store: StoreDep, fields: Fields) -> Response:
    """From a map, and on to the list: into a new one with this `title`, or into `list_id`."""
    asked = parsed(NewItems, fields)
    list_id = _chosen_list(fields)
    if not list_id:
        last = max(feature_numbers(asked.features, what="features"))
        store.feature(checked_slug(asked.slug), last, corpus=asked.corpus)  # before a list is made for them
        list_id = store.add_list(title=fields.get("title", ""), author=asked.author)
    added_many(store, list_id, asked)
    return seen_at(f"/lists/{list_id}#items", author=asked.author)


@router.get("/lists/{list_id}", dependencies=Keeps)
def list_page(request: Request, store: StoreDep, list_id: ListId) -> Response:
    found = store.feature_list(list_id)
    return page(
        request, "list.html", found=found, rows=item_views(found), here=f"/lists/{list_id}", saes=store.saes(),
        author=author_of(request), most=MAX_CHARACTERS, is_full=len(found.items) >= MAX_ITEMS,
        description=unfurled_list(found), permalink=absolute(request, f"/lists/{list_id}"),
    )  # fmt: skip


@router.post("/lists/{list_id}", dependencies=[Writable])
def change_list(store: StoreDep, list_id: ListId, fields: Fields) -> Response:
    asked = parsed(ListChange, fields)
    store.change_list(list_id, title=asked.title, description=asked.description, version=asked.version)
    return seen_at(f"/lists/{list_id}")


@router.post("/lists/{list_id}/delete", dependencies=[Writable])
def delete_list(store: StoreDep, list_id: ListId) -> Response:
    store.delete_list(list_id)
    return seen_at("/lists")


@router.post("/lists/{list_id}/items", dependencies=[Writable])
def add_item(store: StoreDep, list_id: ListId, fields: Fields) -> Response:
    asked = parsed(NewItem, fields)
    item_id = added(store, list_id, asked)
    return seen_at(f"/lists/{list_id}#item-{item_id}", author=asked.author)


@router.post("/lists/{list_id}/items/{item_id}", dependencies=[Writable])
def change_item(store: StoreDep, list_id: ListId, item_id: ItemId, fields: Fields) -> Response:
    """The button that was pressed says in `do` what is asked for."""
    match fields.get("do"):
        case "up" | "down" as direction:
            store.move_list_item(list_id, item_id, by=-1 if direction == "up" else 1)
        case "remove":
            store.delete_list_item(list_id, item_id)
            return seen_at(f"/lists/{list_id}#items")
        case "note":
            asked = parsed(NoteChange, fields)
            store.change_list_note(list_id, item_id, note=asked.note, author=asked.author, version=asked.version)
            return seen_at(f"/lists/{list_id}#item-{item_id}", author=asked.author)
        case _:
            raise InputError("The form does not say what to do with the item; use the buttons on the list's page.")
    return seen_at(f"/lists/{list_id}#item-{item_id}")


@router.get("/lists/{list_id}/export")
def export(
    request: Request, store: StoreDep, version: VersionDep, list_id: ListId, format: Annotated[Format, Query()]
) -> Response:
    found = store.feature_list(list_id)
    headers = {"Content-Disposition": f'attachment; filename="list-{found.list_id}.{format}"'}
    sae_of = lru_cache(lambda slug: store.sae(slug).sae)
    parts: Iterator[str] = iter(())
    address = absolute(request, "")
    match format:
        case "csv":
            parts = iter([as_csv(found, sae_of=sae_of, address=address)])
        case "jsonl":
            parts = as_json_lines(found, sae_of=sae_of, address=address)
        case "html":
            parts = exported_list(store, found, version=version)
    return StreamingResponse(parts, media_type=MEDIA_TYPES[format], headers=headers)


@router.post("/saes/{slug}/features/{feature_index}/label", dependencies=[Writable])
def change_label(store: StoreDep, slug: Slug, feature_index: FeatureIndex, fields: Fields) -> Response:
    asked = parsed(LabelChange, fields)
    if fields.get("do") == "remove":
        store.delete_label(slug, feature_index)
    else:
        labelled(store, slug, feature_index, asked)
    corpus = fields.get("corpus") or None
    return seen_at(url(f"/saes/{slug}/features/{feature_index}", corpus=corpus), author=asked.author)
