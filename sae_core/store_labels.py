"""All labels of an SAE at once, other people's labels merged into them, and what a person's label took the place of.
One of each kind stands at a feature.

A label that comes in, of the kind that a feature has already:

    is the same but for its date                     nothing changes
    was written later than the one that is here      takes its place
    was written earlier, at the same time, or nobody
    knows when                                       the one that is here stays

So the order in which files are merged does not matter, and a file that is merged twice changes nothing the second time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import sqlalchemy as sa

from sae_core import store_meaning, store_search
from sae_core.errors import NotFoundError
from sae_core.explain.records import ReplacedLabel
from sae_core.labels import KINDS
from sae_core.records import Label
from sae_core.schema import label_history, labels
from sae_core.store_rows import label_record, label_row

UNDATED = datetime(1970, 1, 1, tzinfo=UTC)  # of a label of which nobody knows when it was written
_HISTORY_OF = (
    sa.select(label_history)
    .where(
        label_history.c.sae_id == sa.bindparam("sae_id"), label_history.c.feature_index == sa.bindparam("feature_index")
    )
    .order_by(label_history.c.history_id.desc())
)
_OWN = sa.select(labels).where(labels.c.sae_id == sa.bindparam("sae_id"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """How many labels came in, and what became of them."""

    added: int
    replaced: int
    kept: int  # another one stays: it is newer, or as old
    same: int


def iter_labels(connection: sa.Connection, sae_id: int) -> Iterator[tuple[int, Label]]:
    """Every label of an SAE with its feature, by feature, the one that is shown first."""
    rank = sa.case({kind: number for number, kind in enumerate(KINDS)}, value=labels.c.kind)
    ordered = _OWN.order_by(labels.c.feature_index, rank)
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
    for kind in KINDS:
        own_kind = {index: label for (index, its_kind), label in changed.items() if its_kind == kind}
        upsert_labels(connection, own_kind, sae_id=sae_id, d_sae=d_sae)
    added = len(here) - len(before)
    return Merged(added=added, replaced=len(changed) - added, kept=n_came - n_same - len(changed), same=n_same)


def _as_stored(feature_index: int, label: Label) -> Label:
    """The label as it will be read again."""
    row = label_row(feature_index, label, sae_id=0)
    return replace(label, text=row["text"], author=row["author"], score=row["score"], certainty=row["certainty"])


def _says_the_same(one: Label, other: Label) -> bool:
    return replace(one, created_at=UNDATED) == replace(other, created_at=UNDATED)


def upsert_labels(connection: sa.Connection, new: Mapping[int, Label], *, sae_id: int, d_sae: int) -> None:
    with store_meaning.following(connection, sae_id, new):
        _upsert(connection, new, sae_id=sae_id, d_sae=d_sae)
    store_search.refresh_labels(connection, sae_id, list(new))


def _upsert(connection: sa.Connection, new: Mapping[int, Label], *, sae_id: int, d_sae: int) -> None:
    for feature_index, label in new.items():
        if not 0 <= feature_index < d_sae:
            raise NotFoundError(f"There is no feature {feature_index}; this SAE's features are 0 to {d_sae - 1}.")
        row = label_row(feature_index, label, sae_id=sae_id)
        if label.kind == "human":
            _remember(connection, sae_id, feature_index, unless=row["text"], at=label.created_at)
        same = [labels.c[key] == row[key] for key in ("sae_id", "feature_index", "kind")]
        connection.execute(sa.delete(labels).where(*same))
        connection.execute(sa.insert(labels).values(row))


def remove_label(connection: sa.Connection, feature_index: int, *, sae_id: int) -> None:
    """A person's: the others stay. Nothing happens where there is none."""
    same = (labels.c.sae_id == sae_id, labels.c.feature_index == feature_index, labels.c.kind == "human")
    if connection.execute(sa.select(labels.c.kind).where(*same)).first() is not None:
        _remember(connection, sae_id, feature_index, unless=None, at=datetime.now(UTC))
    with store_meaning.following(connection, sae_id, [feature_index]):
        connection.execute(sa.delete(labels).where(*same))
    store_search.refresh_labels(connection, sae_id, [feature_index])


def _remember(connection: sa.Connection, sae_id: int, feature_index: int, *, unless: str | None, at: datetime) -> None:
    """Keeps the label that is shown now, unless it reads the same as what comes."""
    own = (labels.c.sae_id == sae_id, labels.c.feature_index == feature_index)
    rows = connection.execute(sa.select(labels).where(*own)).mappings().all()
    if not rows:
        return
    shown = min(rows, key=lambda row: KINDS.index(row["kind"]))
    if shown["text"] != unless:
        kept = {name: shown[name] for name in ("sae_id", "feature_index", "kind", "text", "author", "created_at")}
        connection.execute(sa.insert(label_history).values(kept | {"replaced_at": at}))


def history_of(connection: sa.Connection, sae_id: int, feature_index: int) -> tuple[ReplacedLabel, ...]:
    """What a person's label replaced, the last first."""
    rows = connection.execute(_HISTORY_OF, {"sae_id": sae_id, "feature_index": feature_index}).mappings()
    return tuple(ReplacedLabel(**{name: row[name] for name in ReplacedLabel.__dataclass_fields__}) for row in rows)
