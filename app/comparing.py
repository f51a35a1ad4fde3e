"""Comparisons as records, from the store and the weights: what the pages show and the JSON twin answers.

two references ──> feature_comparison   two features, of one SAE or of two
                   sae_comparison       two SAEs: metrics, and whose features have a match in the other
                   corpus_comparison    one SAE on two corpora: whose densities differ
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from app.comparisons import (
    Comparison,
    CorpusComparison,
    Cosine,
    DensityRow,
    FeatureComparison,
    FeatureSide,
    MatchRow,
    SAEComparison,
    SAESide,
    Together,
)
from app.matches import MatchCache, cosine
from app.points import PointsCache
from app.references import Reference, chosen_indexes
from sae_core.comparison import (
    DensityDifference,
    Match,
    chance_cosine,
    density_differences,
    match_histogram,
    place_among,
    share_matched,
    shared_contexts,
    token_differences,
)
from sae_core.errors import InputError, NotFoundError, WeightsError
from sae_core.records import CoactiveFeature, Feature, FeaturePoint, IndexInfo, SAEInfo
from sae_core.store import Store

Order = Literal["furthest", "frequent"]
MOST_SHARED = 20  # contexts in an answer


def compared(
    store: Store,
    points: PointsCache,
    matches: MatchCache,
    *,
    a: Reference,
    b: Reference,
    least: float,
    order: Order,
    rows: int,
) -> Comparison:
    """The comparison of two references of one kind; lists have at most so many rows."""
    with store.at_one_moment() as now:
        of_a, of_b = now.sae(a.slug), now.sae(b.slug)
        first, second = chosen_indexes(a, b, of_a=of_a, of_b=of_b)
        sides = [
            _feature_side(now, of_one.sae, one.feature_index, index)
            for one, of_one, index in ((a, of_a, first), (b, of_b, second))
            if one.feature_index is not None
        ]
    if len(sides) == 2:
        return _feature_comparison(*sides, saes=(of_a.sae, of_b.sae), indexes=(first, second))
    if a.slug == b.slug and first is not None and second is not None:
        return _corpus_comparison(store, points, of_a.sae, first, second, rows=rows)
    return _sae_comparison(
        store, points, matches, a=(of_a.sae, first), b=(of_b.sae, second), least=least, order=order, rows=rows
    )


def _feature_side(store: Store, sae: SAEInfo, feature_index: int, index: IndexInfo | None) -> FeatureSide:
    if feature_index >= sae.d_sae:
        raise NotFoundError(
            f'The SAE "{sae.slug}" has no feature {feature_index}; its features are 0 to {sae.d_sae - 1}.'
        )
    corpus = index.corpus.name if index else None  # None: the store says what to do
    detail = store.feature(sae.slug, feature_index, corpus=corpus)
    index = index or store.index(sae.slug)
    return FeatureSide(
        reference=str(Reference(slug=sae.slug, feature_index=feature_index, corpus=index.corpus.name)),
        slug=sae.slug,
        corpus=index.corpus.name,
        has_bos=index.corpus.prepend_bos,
        feature=detail.feature,
        examples=detail.examples,
        n_contexts=len({example.context_id for example in detail.examples}),
    )


def _feature_comparison(
    a: FeatureSide,
    b: FeatureSide,
    *,
    saes: tuple[SAEInfo, SAEInfo],
    indexes: tuple[IndexInfo | None, IndexInfo | None],
) -> FeatureComparison:
    texts = {index.corpus.fingerprint for index in indexes if index is not None}
    shared = shared_contexts(a.examples, b.examples) if len(texts) == 1 else None
    same_model = saes[0].model == saes[1].model
    return FeatureComparison(
        a=a,
        b=b,
        cosine=_cosine(saes[0], a.feature, saes[1], b.feature),
        together=_together(a.feature, b.feature) if (a.slug, a.corpus) == (b.slug, b.corpus) else None,
        shared=None if shared is None else tuple(shared[:MOST_SHARED]),
        n_shared=None if shared is None else len(shared),
        differences=token_differences(a.feature, b.feature, same_vocabulary=same_model),
    )


def _cosine(sae_a: SAEInfo, a: Feature, sae_b: SAEInfo, b: Feature) -> Cosine:
    """From the weights, or where they are gone from the list of nearest features."""
    try:
        value = cosine(sae_a, a.feature_index, sae_b, b.feature_index)
    except (WeightsError, InputError) as error:
        known = [near.cosine for near in a.nearest if near.feature_index == b.feature_index]
        if sae_a.slug == sae_b.slug and known:
            return Cosine(value=known[0], source="index")
        return Cosine(value=None, problem=str(error))
    return Cosine(value=value, source="weights", note=" ".join(_notes(sae_a, sae_b)) or None)


def _notes(a: SAEInfo, b: SAEInfo) -> list[str]:
    """What makes a cosine between directions of two SAEs mean less than it seems to."""
    if a.model.model_name != b.model.model_name or a.model.revision != b.model.revision:
        return [
            "They are of different models, whose directions have nothing to do with each other unless one model was "
            "trained from the other."
        ]
    if a.target_hook_name != b.target_hook_name:
        return [
            f"They write at different places, {a.target_hook_name} and {b.target_hook_name}; only along one residual "
            "stream do the same directions mean the same."
        ]
    return []


def _seed_notes(a: SAEInfo, b: SAEInfo, matches: Sequence[Match], *, least: float) -> list[str]:
    """Training begins at directions that follow from the seed and the sizes."""
    seed = a.config.get("seed")
    if seed is None or seed != b.config.get("seed") or (a.d_in, a.d_sae) != (b.d_in, b.d_sae):
        return []
    found = [match for match in matches if match.cosine >= least]
    n_same = sum(match.feature_index == match.other_index for match in found)
    return [
        f"Both were trained from seed {seed} and began at the same directions, so they are more alike than two that "
        f"were not: {n_same:,} of A's {len(found):,} matches have their feature's own number."
    ]


def _together(a: Feature, b: Feature) -> Together | None:
    stored: list[CoactiveFeature] = [c for c in a.coactive if c.feature_index == b.feature_index]
    stored += [c for c in b.coactive if c.feature_index == a.feature_index]
    if not a.coactive and not b.coactive:
        return None
    least = [min(c.jaccard for c in f.coactive) for f in (a, b) if f.coactive]
    return Together(
        jaccard=stored[0].jaccard if stored else None,
        n_together=stored[0].together if stored else None,
        place_of_b=place_among(b.feature_index, a.coactive),
        place_of_a=place_among(a.feature_index, b.coactive),
        at_most=None if stored else min(least),
    )


def _sae_comparison(
    store: Store,
    points: PointsCache,
    matches: MatchCache,
    *,
    a: tuple[SAEInfo, IndexInfo | None],
    b: tuple[SAEInfo, IndexInfo | None],
    least: float,
    order: Order,
    rows: int,
) -> SAEComparison:
    sides = [_sae_side(sae, index) for sae, index in (a, b)]
    try:
        found = matches.matches(store, points, a=a, b=b)
    except (WeightsError, InputError) as error:
        return SAEComparison(
            a=sides[0], b=sides[1], least=least, chance=None, is_sample=False, problem=str(error), notes=(), best=(),
            unmatched_a=(), unmatched_b=(),
        )  # fmt: skip
    known = _Known(store, points, a=a, b=b)
    return SAEComparison(
        a=_sae_side(*a, n_features=found.n_a, matches=found.a, least=least),
        b=_sae_side(*b, n_features=found.n_b, matches=found.b, least=least),
        least=least,
        chance=chance_cosine(min(found.n_a, found.n_b), width=found.width),
        is_sample=found.is_sample,
        problem=None,
        notes=(*_notes(a[0], b[0]), *_seed_notes(a[0], b[0], found.a, least=least)),
        best=known.rows(sorted(found.a, key=lambda m: (-m.cosine, m.feature_index))[:rows]),
        unmatched_a=known.rows(known.unmatched(found.a, least=least, order=order)[:rows]),
        unmatched_b=known.rows(known.unmatched(found.b, least=least, order=order, reverse=True)[:rows], reverse=True),
    )


def _sae_side(
    sae: SAEInfo, index: IndexInfo | None, *, n_features: int = 0, matches: Sequence[Match] = (), least: float = 0.0
) -> SAESide:
    return SAESide(
        reference=str(Reference(slug=sae.slug, corpus=index.corpus.name if index else None)),
        sae=sae,
        index=index,
        n_features=n_features,
        n_looked=len(matches),
        share_matched=share_matched(matches, least=least),
        cosines=match_histogram(matches) if matches else None,
    )


class _Known:
    """Labels and densities of both SAEs' features, for the rows of a list."""

    def __init__(
        self,
        store: Store,
        points: PointsCache,
        *,
        a: tuple[SAEInfo, IndexInfo | None],
        b: tuple[SAEInfo, IndexInfo | None],
    ) -> None:
        self._store = store
        self._slugs = (a[0].slug, b[0].slug)
        none: Mapping[int, FeaturePoint] = {}
        self._points = [none if index is None else points.points(store, index) for _, index in (a, b)]

    def unmatched(self, matches: Sequence[Match], *, least: float, order: Order, reverse: bool = False) -> list[Match]:
        """Those below `least`: the furthest from a match first, or the most frequent."""
        points = self._points[reverse]

        def key(match: Match) -> tuple[float, float, int]:
            density = _density(points, match.feature_index) or 0.0
            return -density if order == "frequent" else 0.0, match.cosine, match.feature_index

        return sorted((match for match in matches if match.cosine < least), key=key)

    def rows(self, matches: Sequence[Match], *, reverse: bool = False) -> tuple[MatchRow, ...]:
        """Of a's features and their matches in b, or in `reverse`."""
        mine, other = (1, 0) if reverse else (0, 1)
        labels = self._store.labels(self._slugs[mine], {m.feature_index for m in matches})
        other_labels = self._store.labels(self._slugs[other], {m.other_index for m in matches})
        return tuple(
            MatchRow(
                feature_index=m.feature_index,
                other_index=m.other_index,
                cosine=m.cosine,
                label=labels[m.feature_index].text if m.feature_index in labels else None,
                other_label=other_labels[m.other_index].text if m.other_index in other_labels else None,
                density=_density(self._points[mine], m.feature_index),
                other_density=_density(self._points[other], m.other_index),
            )
            for m in matches
        )


def _density(points: Mapping[int, FeaturePoint], feature_index: int) -> float | None:
    return points[feature_index].density if feature_index in points else None


def _corpus_comparison(
    store: Store, points: PointsCache, sae: SAEInfo, a: IndexInfo, b: IndexInfo, *, rows: int
) -> CorpusComparison:
    of_a, of_b = points.points(store, a), points.points(store, b)
    found = density_differences(
        of_a.values(), of_b.values(), n_tokens_a=a.corpus.n_tokens, n_tokens_b=b.corpus.n_tokens
    )
    more_on_a, more_on_b = found.more_on_a[:rows], found.more_on_b[:rows]
    wanted = {difference.feature_index for difference in (*more_on_a, *more_on_b)}
    on_a, on_b = (store.feature_rows(sae.slug, wanted, corpus=index.corpus.name) for index in (a, b))

    def row(difference: DensityDifference) -> DensityRow:
        mine, other = on_a[difference.feature_index], on_b[difference.feature_index]
        return DensityRow(
            difference=difference,
            label=mine.feature.label.text if mine.feature.label else None,
            max_a=mine.feature.max_activation,
            max_b=other.feature.max_activation,
            example_a=mine.examples[0] if mine.examples else None,
            example_b=other.examples[0] if other.examples else None,
        )

    return CorpusComparison(
        reference_a=str(Reference(slug=sae.slug, corpus=a.corpus.name)),
        reference_b=str(Reference(slug=sae.slug, corpus=b.corpus.name)),
        sae=sae,
        a=a,
        b=b,
        n_alive_on_both=found.n_alive_on_both,
        n_only_on_a=found.n_only_on_a,
        n_only_on_b=found.n_only_on_b,
        n_dead_on_both=found.n_dead_on_both,
        n_rare=found.n_rare,
        n_alike=found.n_alike,
        n_more_on_a=len(found.more_on_a),
        n_more_on_b=len(found.more_on_b),
        ratios=found.ratios,
        more_on_a=tuple(map(row, more_on_a)),
        more_on_b=tuple(map(row, more_on_b)),
    )
