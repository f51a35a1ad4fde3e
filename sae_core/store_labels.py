"""All labels of an SAE at once, and other people's labels merged into them. One of each kind stands at a feature.

A label that comes in, of the kind that a feature has already:

    says the same, with the same author and score    nothing changes
    was written later than the one that is here      takes its place
    was written earlier, at the same time, or nobody
    knows when                                       the one that is here stays

So the order in which files are merged does not matter, and a file that is merged twice changes nothing the second time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import sqlalchemy as sa

from sae_core.records import Label
from sae_core.schema import labels
from sae_core.store_rows import label_record, label_row
from sae_core.store_writes import upsert_labels

UNDATED = datetime(1970, 1, 1, tzinfo=UTC)  # of a label of which nobody knows when it was written
_OWN = sa.select(labels).where(labels.c.sae_id == sa.bindparam("sae_id"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """How many labels came in, and what became of them."""

    added: int
    replaced: int
    kept: int  # another one stays: it is newer, or as old
    same: int


def iter_labels(connection: sa.Connection, sae_id: int) -> Iterator[tuple[int, Label]]:
    """Every label of an SAE with its feature, by feature, a person's first."""
    ordered = _OWN.order_by(labels.c.feature_index, labels.c.kind.desc())
    for row in connection.execute(ordered, {"sae_id": sae_id}).mappings():
        yield row["feature_index"], label_record(row)


def merge_labels(connection: sa.Connection, new: Iterable[tuple[int, Label]], *, sae_id: int, d_sae: int) -> Merged:
    """Raises NotFoundError for a feature that the SAE does not have, and InputError for a label without text."""
    here = {(index, label.kind): label for index, label in iter_labels(connection, sae_id)}
    before = dict(here)
    n_came = n_same = 0
    for feature_index, label in new:
        n_came += 1
        own = _as_stored(feature_index, label)
        known = here.get((feature_index, own.kind))
        if known is not None and _says_the_same(known, own):
            n_same += 1
        elif known is None or known.created_at < own.created_at:
            here[feature_index, own.kind] = own
    changed = {key: label for key, label in here.items() if before.get(key) != label}
    for kind in ("automatic", "human"):
        own_kind = {index: label for (index, its_kind), label in changed.items() if its_kind == kind}
        upsert_labels(connection, own_kind, sae_id=sae_id, d_sae=d_sae)
    added = len(here) - len(before)
    return Merged(added=added, replaced=len(changed) - added, kept=n_came - n_same - len(changed), same=n_same)


def _as_stored(feature_index: int, label: Label) -> Label:
    """The label as it will be read again."""
    row = label_row(feature_index, label, sae_id=0)
    return replace(label, text=row["text"], author=row["author"], score=row["score"])


def _says_the_same(one: Label, other: Label) -> bool:
    return (one.text, one.author, one.score) == (other.text, other.author, other.score)
