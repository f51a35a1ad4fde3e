"""Lists as pages print them and as files hold them: an item with its examples in a line each, CSV, JSON lines."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import TypeAdapter

from app.examples import LineView, one_line
from app.feature_files import harmless, joined_tokens
from app.urls import url
from sae_core.records import FeatureList, ListItem, SAEInfo

UNFURLED_LABELS = 6

SAEOf = Callable[[str], SAEInfo]
_ITEM: TypeAdapter[ListItem] = TypeAdapter(ListItem)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemView:
    """An item as the list's page prints it. `href` is empty where there is nothing to open."""

    item: ListItem
    number: int  # its place, from 1
    href: str
    lines: tuple[LineView, ...]


def item_views(found: FeatureList) -> list[ItemView]:
    return [_item_view(item, number=number) for number, item in enumerate(found.items, start=1)]


def item_name(item: ListItem) -> str:
    """What the feature is called: now, else when it was added, else by its number."""
    if item.feature is not None:
        return item.feature.label.text if item.feature.label else f"Feature {item.feature_index}"
    return item.label_then or f"Feature {item.feature_index}"


def unfurled_list(found: FeatureList) -> str:
    """A list in a sentence or two, for where its link is pasted."""
    n = len(found.items)
    names = [item_name(item) for item in found.items]
    shown = ", ".join(names[:UNFURLED_LABELS]) + (f" and {n - UNFURLED_LABELS} more" if n > UNFURLED_LABELS else "")
    features = f"{n} feature{'' if n == 1 else 's'}"
    return " ".join(part for part in (found.description, f"{features}: {shown}." if n else "No feature yet.") if part)


def as_csv(found: FeatureList, *, sae_of: SAEOf, address: str) -> str:
    """For spreadsheets: a row per item, with a byte order mark, and text that no spreadsheet takes for a formula."""
    file = io.StringIO()
    writer = csv.writer(file)
    for number, item in enumerate(found.items, start=1):
        row = _csv_row(item, number=number, sae=_sae(item, sae_of), address=address)
        if number == 1:
            writer.writerow(row)
        writer.writerow(harmless(value) for value in row.values())
    if not found.items:
        writer.writerow(["number"])
    return "\ufeff" + file.getvalue()


def as_json_lines(found: FeatureList, *, sae_of: SAEOf, address: str) -> Iterator[str]:
    """For programs: an object per item, each complete in itself."""
    for number, item in enumerate(found.items, start=1):
        sae = _sae(item, sae_of)
        line = {
            "list_id": found.list_id,
            "list_title": found.title,
            "number": number,
            "url": _address(item, address),
            "model_name": sae.model.model_name if sae else None,
            "model_revision": sae.model.revision if sae else None,
            "hook_name": sae.hook_name if sae else None,
            "sae_architecture": sae.architecture if sae else None,
            **json.loads(_ITEM.dump_json(item)),
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _item_view(item: ListItem, *, number: int) -> ItemView:
    has_bos = item.measured_on is not None and item.measured_on.prepend_bos
    scale = item.feature.max_activation if item.feature else 0.0
    return ItemView(
        item=item,
        number=number,
        href="" if item.problem else _path(item),
        lines=tuple(one_line(example, scale=scale, has_bos=has_bos) for example in item.examples),
    )


def _csv_row(item: ListItem, *, number: int, sae: SAEInfo | None, address: str) -> dict[str, object]:
    feature = item.feature
    label = feature.label if feature else None
    return {
        "number": number,
        "slug": item.slug,
        "feature_index": item.feature_index,
        "label": label.text if label else item.label_then,
        "label_kind": label.kind if label else None,
        "label_author": label.author if label else None,
        "note": item.note,
        "author": item.author,
        "created_at": item.created_at.isoformat(),
        "updated_at": item.updated_at.isoformat(),
        "model_name": sae.model.model_name if sae else None,
        "hook_name": sae.hook_name if sae else None,
        "corpus": item.measured_on.name if item.measured_on else item.corpus,
        "density": feature.density if feature else None,
        "n_active": feature.n_active if feature else None,
        "max_activation": feature.max_activation if feature else None,
        "mean_activation": feature.mean_activation if feature else None,
        "promoted_tokens": joined_tokens(feature.promoted_tokens) if feature else None,
        "suppressed_tokens": joined_tokens(feature.suppressed_tokens) if feature else None,
        "top_example": "".join(item.examples[0].tokens) if item.examples else None,
        "problem": item.problem,
        "url": _address(item, address),
    }


def _path(item: ListItem) -> str:
    return url(f"/saes/{item.slug}/features/{item.feature_index}", corpus=item.corpus)


def _address(item: ListItem, address: str) -> str | None:
    return None if item.problem else address + _path(item)


def _sae(item: ListItem, sae_of: SAEOf) -> SAEInfo | None:
    return None if item.feature is None else sae_of(item.slug)
