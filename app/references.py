"""What a comparison is between, as one word in an address: `demo`, `demo/12`, and with a corpus `demo/12@stories`.

A slug has neither / nor @, so the first of each ends it; what follows @ is the corpus's name, whatever is in it.
"""

import re
from dataclasses import dataclass, replace

from app.probing import chosen_index
from sae_core.errors import InputError
from sae_core.records import IndexInfo, SAESummary

_FORM = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,199})(?:/([0-9]{1,10}))?(?:@(.+))?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An SAE or one of its features, on a named corpus or on whichever there is."""

    slug: str
    feature_index: int | None = None
    corpus: str | None = None

    def __str__(self) -> str:
        feature = "" if self.feature_index is None else f"/{self.feature_index}"
        return self.slug + feature + (f"@{self.corpus}" if self.corpus else "")


def reference(text: str) -> Reference:
    """What `text` refers to; raises InputError if it refers to nothing."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        shown = text if len(text) <= 60 else text[:60] + "…"
        raise InputError(
            f"“{shown}” cannot be compared: give an SAE (demo) or one of its features (demo/12), and a corpus behind @ "
            "if it has several (demo/12@stories)."
        )
    slug, feature, corpus = found.groups()
    return Reference(slug=slug, feature_index=None if feature is None else int(feature), corpus=corpus)


def pair(a: str, b: str) -> tuple[Reference, Reference]:
    """Two references of the same kind."""
    first, second = reference(a), reference(b)
    if (first.feature_index is None) != (second.feature_index is None):
        sae = second if second.feature_index is None else first
        raise InputError(f"A feature cannot be compared with an SAE: give a feature of {sae} too, as {sae.slug}/12.")
    return first, second


def chosen_indexes(
    a: Reference, b: Reference, *, of_a: SAESummary, of_b: SAESummary
) -> tuple[IndexInfo | None, IndexInfo | None]:
    """The index of each that is meant; None for an SAE that has none.

    Where a corpus is not named it is the other's, for the same text tells most; of one and the same thing it is a
    corpus that is not the other's. What is left open is the newest. Raises InputError if both are the same.
    """
    is_same = replace(a, corpus=None) == replace(b, corpus=None)
    first = chosen_index(of_a, corpus=a.corpus) if a.corpus else None
    second = chosen_index(of_b, corpus=b.corpus) if b.corpus else None
    if first is None and second is None and not is_same:
        texts = {index.corpus.fingerprint for index in of_b.indexes}
        first = next((i for i in of_a.indexes if i.corpus.fingerprint in texts), None)
    first = first or _beside(second, of_a, is_same=is_same)
    second = second or _beside(first, of_b, is_same=is_same)
    if is_same and (first is None or second is None or first.index_id == second.index_id):
        raise InputError(f"Both are {a}: give two different ones, or two corpora of it behind @.")
    return first, second


def _beside(other: IndexInfo | None, summary: SAESummary, *, is_same: bool) -> IndexInfo | None:
    if other is None:
        return summary.indexes[0] if summary.indexes else None
    if is_same:
        return next((index for index in summary.indexes if index.index_id != other.index_id), None)
    same_text = (index for index in summary.indexes if index.corpus.fingerprint == other.corpus.fingerprint)
    return next(same_text, summary.indexes[0] if summary.indexes else None)
