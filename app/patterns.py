"""The page Patterns: every component of the site in every state, for those who change them and for the browser's tests.

Its records are constants, so that it needs neither a store nor a model. Nothing links to it but the documentation.
"""

from dataclasses import replace
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from app import charts
from app.examples import STEPS, TokenView, example_groups
from app.explain.background import Work
from app.explain.views import tested
from app.kept import Keeps
from app.list_rows import list_rows
from app.probe_views import FeatureView
from app.rendering import page
from app.walk import Walk, walk_view
from sae_core.bands import bin_edges
from sae_core.explain.records import LabelScore, ReplacedLabel, Trial
from sae_core.records import (
    TOP_BAND,
    CoactiveFeature,
    Decomposition,
    Example,
    Feature,
    FeatureDetail,
    FeaturePoint,
    FeatureRow,
    Histogram,
    Label,
    NearestFeature,
    ProbeToken,
    TokenPart,
    TokenShare,
    TokenWeight,
)

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

SLUG = "pattern"
WORDS = (
    "The", " ship", " sailed", ",\n", "\t", "שלום", " עולם", " مرحبا", " 中文", "。", " 日本語", " 🙂",
    "👩\u200d👩\u200d👧", " naïve", " <b>", "&amp;", "\x07", "\u200b", " ",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 2,
)  # fmt: skip
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
LABELS = (
    Label(text="ships, and the sea: سفينة, 船", kind="human", author="Ana", score=None, created_at=WHEN),
    Label(
        text="words of <b>ships</b>", kind="model", author="llama3.1:8b", score=0.79, created_at=WHEN, certainty=0.8,
        prompt_version="1.0a1b2c3d",
    ),
    Label(text='“ ship”, " sailed"', kind="automatic", author="saescope", score=0.94, created_at=WHEN),
    Label(text="“ship ∗ to”", kind="pattern", author="saescope", score=0.66, created_at=WHEN),
)  # fmt: skip

HISTORY = (ReplacedLabel(text="سفينة <b>", kind="human", author="Ana", created_at=WHEN, replaced_at=WHEN),)


def pattern_tokens(*, chosen: int | None = None) -> tuple[TokenView, ...]:
    """A token on each step of the scale, in as many scripts as there are; the strongest is the peak."""
    return tuple(
        TokenView(
            text=word,
            step=min(i, STEPS),
            is_peak=i == STEPS,
            token_id=i,
            activation=i / 4,
            position=i,
            is_special=i == 0,
            is_chosen=i == chosen,
        )
        for i, word in enumerate(("<bos>", *WORDS))
    )


def pattern_example(rank: int = 0) -> Example:
    return Example(
        feature_index=7,
        context_id=rank,
        source="books/a-very-long-name-of-a-file-that-does-not-fit.txt:1204",
        band=TOP_BAND,
        rank=rank,
        position=3,
        activation=4.0,
        tokens=("<bos>", *WORDS),
        token_ids=tuple(range(len(WORDS) + 1)),
        activations=(0.0, 1.0, 2.5, 4.0, *(i / 5 for i in range(len(WORDS) - 3))),
        copies=5 if rank == 0 else 1,
    )


def pattern_feature() -> Feature:
    edges = bin_edges(4.0)
    weights = tuple(TokenWeight(token=word, token_id=i, weight=2 - i / 5) for i, word in enumerate(WORDS[:8]))
    shares = tuple(
        TokenShare(token=word, token_id=i, count=40 - i, share=0.4 - i / 50) for i, word in enumerate(WORDS[:8])
    )
    return Feature(
        feature_index=7,
        density=0.0017,
        n_active=1234,
        max_activation=4.0,
        mean_activation=1.3,
        encoder_decoder_cosine=0.71,
        histogram=Histogram(edges=edges, counts=tuple(900 // (i + 1) for i in range(len(edges) - 1))),
        promoted_tokens=weights,
        label=LABELS[0],
        band_shares=(0.5, 0.25, 0.15, 0.06, 0.04),
        suppressed_tokens=tuple(TokenWeight(token=w.token, token_id=w.token_id, weight=-w.weight) for w in weights),
        nearest=(
            NearestFeature(feature_index=12, cosine=0.81, label="harbours " * 9),
            NearestFeature(feature_index=3, cosine=0.4),
        ),
        mean_square=2.0,
        n_sampled=100,
        tokens_on=shares,
        tokens_before=shares[:3],
        tokens_after=shares[3:6],
        coactive=(CoactiveFeature(feature_index=12, together=90, jaccard=0.33, label="harbours"),),
    )


def pattern_scores() -> list[LabelScore]:
    """A score of each sort, the second with texts that were answered rightly, wrongly and not at all."""
    trials = tuple(
        Trial(
            context_id=0, first=1, tokens=WORDS[:8], token_ids=tuple(range(8)), origin=origin, truth=truth,
            activations=tuple(float(i % 4) if truth else 0.0 for i in range(8)), marked=(2, 3), answer=answer,
        )
        for origin, truth, answer in (
            ("top", True, True), ("band", True, False), ("random", True, None), ("quiet", False, False),
            ("neighbour", False, True),
        )
    )  # fmt: skip
    score = LabelScore(
        feature_index=7, kind="human", method="detection", text=LABELS[0].text, scorer="llama3.1:8b",
        prompt_version="1.0a1b2c3d", balanced_accuracy=0.79, precision=0.75, recall=0.83, n=14, unparsed=0,
        baseline=0.5, correlation=None, trials=trials[:1], created_at=WHEN,
    )  # fmt: skip
    return [
        score,
        replace(score, kind="model", method="fuzzing", text="what it was called then", unparsed=1, trials=trials),
        replace(score, kind="pattern", text="", precision=None, baseline=None, correlation=0.4, scorer="saescope"),
    ]


def pattern_walk() -> Walk:
    vector = tuple(((i * 37) % 19 - 9) / 3 for i in range(64))
    parts = tuple(
        TokenPart(feature_index=n, activation=4.0 / n, share=0.3 / n - 0.05, error=0.4 / n) for n in range(1, 16)
    )
    token = Decomposition(
        slug=SLUG,
        text="".join(WORDS[:6]),
        tokens=tuple(
            ProbeToken(token=word, token_id=i, is_special=i == 0) for i, word in enumerate(("<bos>", *WORDS[:6]))
        ),
        position=2,
        model_acts=vector,
        target_acts=(),
        sae_out=tuple(value * 0.9 for value in vector),
        bias_share=0.1,
        bias_error=0.8,
        parts=parts,
        error=parts[-1].error,
        seconds=0.02,
    )
    hook = "blocks.3.hook_resid_post"
    return Walk(
        slug=SLUG,
        hook_name=hook,
        target_hook_name=hook,
        corpus="poems",
        fvu=0.106,
        token=token,
        labels={1: LABELS[0].text},
    )


@router.get("/patterns", dependencies=Keeps)
def patterns(request: Request) -> Response:
    feature, examples = pattern_feature(), (pattern_example(), pattern_example(1))
    detail = FeatureDetail(feature=feature, examples=examples, previous=None, following=None, labels=LABELS)
    points = [FeaturePoint(feature_index=i, density=10 ** -(i % 50 / 10), max_activation=i % 7 + 1) for i in range(400)]
    cosines = Histogram(edges=tuple(i / 20 - 1 for i in range(41)), counts=tuple(range(40)))
    found = [
        FeatureView(
            feature_index=7, label=LABELS[0].text, density=0.0017, value=2.1, share=0.6, is_chosen=True, is_pinned=True,
            spark=charts.token_sparkline([0, 1, 2, 0, 1.5], scale=2),
        ),
        FeatureView(
            feature_index=8, label=None, density=None, value=1.2, share=0.3, spark="", is_chosen=False, is_pinned=False
        ),
    ]  # fmt: skip
    return page(
        request, "patterns.html", json_url=None, slug=SLUG, corpus=None, tokens_=pattern_tokens(),
        buttons=pattern_tokens(chosen=2), feature=feature, chart=charts.activation_chart(feature),
        density=charts.density_chart(points), cosines=charts.cosine_chart(cosines),
        heatmap=charts.density_heatmap(points), labels=LABELS, found_rows=found,
        groups=example_groups(feature, examples, signs=True, has_bos=True),
        rows=list_rows([FeatureRow(feature=feature, examples=examples)], has_bos=True),
        tested=tested(detail, pattern_scores(), opened="model-fuzzing"), history=HISTORY,
        work=Work(by="model", is_running=False, problem="The endpoint http://localhost/v1 does not answer."),
        walk=(walk := pattern_walk()), view=walk_view(walk), problem=None,
    )  # fmt: skip
