"""An SAE's map as the store keeps it, and what a map is made from: the nearest features of every feature.

Functions of an open connection, called by the store (`store`) alone.
"""

import struct
from collections.abc import Sequence
from itertools import chain

import sqlalchemy as sa

from sae_core.errors import InputError
from sae_core.labels import KINDS
from sae_core.records import MAP_SIDE, FeatureMap, LabelText, Neighbours
from sae_core.schema import features, labels, maps


def neighbours_of(connection: sa.Connection, index: sa.RowMapping) -> Neighbours:
    """Raises InputError if the index holds too few nearest features for a map."""
    query = sa.select(features.c.nearest).where(features.c.index_id == index["index_id"])
    rows = connection.scalars(query.order_by(features.c.feature_index)).all()
    sizes = {len(row) for row in rows}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(
            f'The index of "{index["slug"]}" on "{index["name"]}" holds no nearest features, from which a map is made; '
            f"run `saescope index {index['slug']} --corpus … --nearest-features 20`."
        )
    return Neighbours(d_sae=len(rows), packed=b"".join(rows))


def upsert_map(connection: sa.Connection, made: FeatureMap, *, sae: sa.RowMapping) -> None:
    if not len(made.xs) == len(made.ys) == sae["d_sae"]:
        raise InputError(f"This map has {len(made.xs)} places, not the {sae['d_sae']} of the SAE's features.")
    connection.execute(sa.delete(maps).where(maps.c.sae_id == sae["sae_id"]))
    row = {
        "sae_id": sae["sae_id"],
        "places": _packed(made.xs, made.ys),
        "n_neighbours": int(made.n_neighbours),
        "seed": int(made.seed),
        "seconds": float(made.seconds),
        "created_at": made.created_at,
    }
    connection.execute(sa.insert(maps).values(row))


def map_of(connection: sa.Connection, sae_id: int) -> FeatureMap | None:
    row = connection.execute(sa.select(maps).where(maps.c.sae_id == sae_id)).mappings().one_or_none()
    if row is None:
        return None
    numbers = struct.unpack(f"<{len(row['places']) // 2}H", row["places"])
    return FeatureMap(
        xs=numbers[::2],
        ys=numbers[1::2],
        n_neighbours=row["n_neighbours"],
        seed=row["seed"],
        seconds=row["seconds"],
        created_at=row["created_at"],
    )


def label_texts_of(connection: sa.Connection, sae: sa.RowMapping) -> list[LabelText]:
    """What every labelled feature is called, by feature index: by the first of `KINDS` that it has."""
    query = sa.select(labels.c.feature_index, labels.c.kind, labels.c.text, labels.c.score)
    texts: dict[int, tuple[int, str]] = {}
    scores: dict[int, float | None] = {}
    for number, kind, text, score in connection.execute(query.where(labels.c.sae_id == sae["sae_id"])):
        rank = KINDS.index(kind)
        if number not in texts or rank < texts[number][0]:
            texts[number] = rank, text
        if kind == "automatic":
            scores[number] = score
    return [LabelText(feature_index=i, text=texts[i][1], confidence=scores.get(i)) for i in sorted(texts)]


def _packed(xs: Sequence[int], ys: Sequence[int]) -> bytes:
    if any(not 0 <= place <= MAP_SIDE for place in chain(xs, ys)):
        raise InputError(f"A map's places go from 0 to {MAP_SIDE} in both directions.")
    return struct.pack(f"<{2 * len(xs)}H", *chain.from_iterable(zip(xs, ys, strict=True)))
