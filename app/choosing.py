"""What could be compared with what has been chosen: the form's suggestions.

Of an SAE: its other corpora, then the other SAEs. Of a feature: those nearest to it and active with it, and in every
other SAE of the same width the feature whose decoder direction is closest.
"""

from collections.abc import Sequence
from itertools import groupby

from app.comparisons import Choice, Choices
from app.matches import closest
from app.references import Reference, reference
from sae_core.errors import InputError, WeightsError
from sae_core.records import SAESummary
from sae_core.store import Store

NEAREST, COACTIVE = 10, 5
MOST_SAES = 20  # in which the closest feature is looked for
MOST_NUMBERS = 10**8  # of a decoder that is read for it


def choices(store: Store, *, a: str | None, b: str | None) -> Choices:
    """Suggestions for the other of `a` and `b`; for the first of both where neither is given."""
    given = a or b
    if given is None:
        return Choices(a=None, b=None, items=tuple(_sae_choices(store.saes(), beside=None)))
    chosen = reference(given)
    summary = store.sae(chosen.slug)  # or it is not here
    if chosen.feature_index is None:
        items = _sae_choices(store.saes(), beside=chosen)
    else:
        items = _feature_choices(store, summary, chosen, chosen.feature_index)
    return Choices(a=a, b=b, items=tuple(items))


def grouped(found: Sequence[Choice]) -> list[tuple[str, list[Choice]]]:
    """By what they are to what is chosen, in their order."""
    return [(title, list(own)) for title, own in groupby(found, key=lambda choice: choice.group)]


def _sae_choices(summaries: Sequence[SAESummary], *, beside: Reference | None) -> list[Choice]:
    own, others = [], []
    for summary in summaries:
        sae = summary.sae
        names = [index.corpus.name for index in summary.indexes]
        if beside is not None and sae.slug == beside.slug:
            newest = beside.corpus or next(iter(names), None)
            own += [
                Choice(
                    reference=str(Reference(slug=sae.slug, corpus=index.corpus.name)),
                    group="The same SAE on another corpus",
                    fact=f"{index.corpus.n_tokens:,} tokens",
                )
                for index in summary.indexes
                if index.corpus.name != newest
            ]
        else:
            fact = f"{sae.d_sae:,} features, {sae.architecture}, {sae.model.model_name} at {sae.hook_name}"
            others.append(
                Choice(
                    reference=str(Reference(slug=sae.slug)),
                    group="Another SAE" if beside else "Begin with an SAE",
                    fact=fact if names else fact + ", not indexed",
                )
            )
    return own + others


def _feature_choices(store: Store, summary: SAESummary, chosen: Reference, feature_index: int) -> list[Choice]:
    slug, corpus = chosen.slug, chosen.corpus
    feature = store.feature(slug, feature_index, corpus=corpus).feature

    def own(group: str, other: int, fact: str, label: str | None) -> Choice:
        there = Reference(slug=slug, feature_index=other, corpus=corpus)
        return Choice(reference=str(there), group=group, fact=fact, label=label)

    elsewhere = [
        index.corpus for index in summary.indexes if index.corpus.name != (corpus or summary.indexes[0].corpus.name)
    ]
    return [
        *(
            own("Nearest in this SAE", n.feature_index, f"cosine {n.cosine:.2f}", n.label)
            for n in feature.nearest[:NEAREST]
        ),
        *(
            own("Active with it", c.feature_index, f"Jaccard {c.jaccard:.2f}", c.label)
            for c in feature.coactive[:COACTIVE]
        ),
        *_closest_elsewhere(store, summary, feature_index),
        *(
            Choice(
                reference=str(Reference(slug=slug, feature_index=feature_index, corpus=other.name)),
                group="The same feature on another corpus",
                fact=f"{other.n_tokens:,} tokens",
            )
            for other in elsewhere
        ),
    ]


def _closest_elsewhere(store: Store, summary: SAESummary, feature_index: int) -> list[Choice]:
    sae = summary.sae
    found: list[tuple[float, Choice]] = []
    others = [other.sae for other in store.saes() if other.sae.slug != sae.slug and other.indexes]
    for other in others[:MOST_SAES]:
        if other.d_sae * other.d_in > MOST_NUMBERS:
            continue
        try:
            match = closest(sae, feature_index, other)
        except (WeightsError, InputError):
            continue  # one SAE without a suggestion
        label = store.labels(other.slug, [match.other_index]).get(match.other_index)
        choice = Choice(
            reference=str(Reference(slug=other.slug, feature_index=match.other_index)),
            group="Closest direction in other SAEs",
            fact=f"cosine {match.cosine:.2f}",
            label=label.text if label else None,
        )
        found.append((match.cosine, choice))
    return [choice for _, choice in sorted(found, key=lambda pair: -pair[0])]
