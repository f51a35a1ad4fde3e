"""Planted databases: how fast an index's examples are stored, how much room one takes, how fast a feature page reads.

The features are made up, with as many examples each as an index keeps of a busy one (20 top ones, 5 in each of 5 bands)
and three active tokens around each. A page is the data of a feature page (`Store.feature`): another feature each time,
with its labels, neighbours and all examples.
"""

import json
import random
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_core.bands import BINS, N_BANDS, band_counts, bin_edges
from sae_core.records import (
    CoactiveFeature,
    Context,
    CorpusInfo,
    Feature,
    Histogram,
    IndexInfo,
    IndexMetrics,
    IndexRecords,
    Label,
    ModelInfo,
    NearestFeature,
    PackedExamples,
    PositionShare,
    SAEInfo,
    TokenShare,
    TokenWeight,
    Vocabulary,
)
from sae_core.store import Store

CONTEXTS, CONTEXT_SIZE, VOCABULARY = 40_000, 128, 6144
BANDS = bytes([0] * 20 + [band for band in range(1, N_BANDS + 1) for _ in range(5)])
EXAMPLES = len(BANDS)  # of each feature
AROUND = 3  # active tokens around each
PAGES = 400
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLUG = "planted"


def measured(folder: Path, *, quick: bool, postgresql: str | None = None) -> dict[str, Any]:
    """Bulk load of a million examples, and pages at two sizes, on each database that is there."""
    sizes = {"loaded": 2_000, "small": 500, "large": 4_000}
    if not quick:
        sizes = {"loaded": -(-1_000_000 // EXAMPLES), "small": 10_000, "large": 1_000_000}
    found: dict[str, Any] = {"examples_per_feature": EXAMPLES}
    url = f"sqlite:///{folder}/planted-{{}}.db"
    found["sqlite"] = {name: _one(url.format(name), n) for name, n in sizes.items()}
    if postgresql:
        # One after the other in the same database: each replaces the one before.
        found["postgresql"] = {name: _one(postgresql, n) for name, n in sizes.items()}
    return found


def _one(url: str, n_features: int) -> dict[str, Any]:
    with closing(Store.open(url)) as store:
        store.add_sae(planted_sae(n_features), vocabulary())
        records = planted_records(n_features)
        started = time.perf_counter()
        store.add_index(records)
        seconds = time.perf_counter() - started
        made = _seconds_of_making(n_features)
        rng = random.Random(0)
        times = []
        for _ in range(PAGES):
            number = rng.randrange(n_features)
            began = time.perf_counter()
            detail = store.feature(SLUG, number)
            times.append(time.perf_counter() - began)
            assert len(detail.examples) == EXAMPLES
    size = Path(url.removeprefix("sqlite:///")).stat().st_size if url.startswith("sqlite") else None
    n_examples = n_features * EXAMPLES
    return {
        "features": n_features,
        "examples": n_examples,
        "seconds": seconds - made,  # the records are made up while they are stored
        "bytes_an_example": None if size is None else size / n_examples,
        "page_p50_ms": 1000 * statistics.median(times),
        "page_p95_ms": 1000 * statistics.quantiles(times, n=20)[-1],
    }


def _seconds_of_making(n_features: int) -> float:
    records = planted_records(n_features)
    started = time.perf_counter()
    for part in (records.contexts, records.features, records.examples):
        for _ in part:
            pass
    return time.perf_counter() - started


def vocabulary() -> Vocabulary:
    return Vocabulary(tokens=tuple(f" t{i}".encode() for i in range(VOCABULARY)), special_ids=frozenset({0}))


def planted_sae(n_features: int) -> SAEInfo:
    return SAEInfo(
        slug=SLUG,
        model=ModelInfo(model_name="planted", revision="1", architecture="none", n_layers=2, d_model=128),
        hook_name="blocks.1.hook_resid_post",
        layer=1,
        architecture="topk",
        d_in=128,
        d_sae=n_features,
        k=32,
        n_training_tokens=0,
        weights_path="",
        created_at=NOW,
    )


def planted_records(n_features: int) -> IndexRecords:
    """An index of so many features, made up one by one as it is read."""
    metrics = IndexMetrics(
        l0=32.0,
        fvu=0.1,
        explained_variance=0.9,
        ce_recovered=None,
        dead_share=0.0,
        dense_share=0.0,
        dense_threshold=0.1,
    )
    corpus = CorpusInfo(
        name="planted",
        fingerprint="planted",
        sources=("planted",),
        context_size=CONTEXT_SIZE,
        prepend_bos=True,
        n_documents=1,
        n_contexts=CONTEXTS,
        n_tokens=CONTEXTS * (CONTEXT_SIZE - 1),
    )
    info = IndexInfo(slug=SLUG, corpus=corpus, metrics=metrics, dtype="float32", seed=0, seconds=0.0, created_at=NOW)
    return IndexRecords(info=info, contexts=_contexts(), features=_features(n_features), examples=_examples(n_features))


def _contexts() -> Iterator[Context]:
    rng = random.Random(1)
    for number in range(CONTEXTS):
        ids = struct.pack(f"<{CONTEXT_SIZE}I", 0, *rng.choices(range(1, VOCABULARY), k=CONTEXT_SIZE - 1))
        yield Context(context_id=number, source=f"document {number // 20}", token_ids=ids)


def _features(n_features: int) -> Iterator[Feature]:
    rng = random.Random(2)
    counts = tuple(rng.randrange(500) for _ in range(BINS))
    n_active = sum(counts)
    tokens = [TokenWeight(token=f" t{i}", token_id=i, weight=1.0) for i in range(10)]
    shares = [TokenShare(token=f" t{i}", token_id=i, count=9, share=0.05) for i in range(8)]
    label = Label(text="“t1”, “t2”", kind="automatic", author="saescope", score=0.8, created_at=NOW)
    template = Feature(
        feature_index=0,
        density=0.0,
        n_active=n_active,
        max_activation=24.0,
        mean_activation=3.0,
        mean_square=12.0,
        encoder_decoder_cosine=0.7,
        encoder_norm=1.0,
        decoder_norm=1.0,
        histogram=Histogram(edges=bin_edges(24.0), counts=counts),
        band_shares=tuple(count / n_active for count in band_counts(counts)),
        profile=tuple(PositionShare(first=i, last=i, density=0.1, share=0.1) for i in range(9)),
        promoted_tokens=tuple(tokens),
        suppressed_tokens=tuple(tokens),
        nearest=(),
        n_sampled=100,
        tokens_on=tuple(shares),
        tokens_before=tuple(shares),
        tokens_after=tuple(shares),
        promoted_share=0.1,
        label=label,
    )
    for number in range(n_features):
        others = [(number * 31 + 7 * i) % n_features for i in range(20)]
        yield replace(
            template,
            feature_index=number,
            density=rng.random() * 0.01,
            nearest=tuple(NearestFeature(feature_index=other, cosine=0.5) for other in others),
            coactive=tuple(CoactiveFeature(feature_index=other, together=9, jaccard=0.2) for other in others[:10]),
        )


def _examples(n_features: int) -> Iterator[PackedExamples]:
    rng = random.Random(3)
    positions = struct.pack(f"<{EXAMPLES}H", *[64] * EXAMPLES)
    activations = struct.pack(f"<{EXAMPLES}f", *[2.0] * EXAMPLES)
    copies = struct.pack(f"<{EXAMPLES}I", *[1] * EXAMPLES)
    lengths = struct.pack(f"<{EXAMPLES}H", *[AROUND] * EXAMPLES)
    active = struct.pack(f"<{EXAMPLES * AROUND}H", *[62, 64, 65] * EXAMPLES)
    values = struct.pack(f"<{EXAMPLES * AROUND}e", *[1.0, 2.0, 1.0] * EXAMPLES)
    for number in range(n_features):
        contexts = struct.pack(f"<{EXAMPLES}I", *rng.choices(range(CONTEXTS), k=EXAMPLES))
        yield PackedExamples(
            feature_index=number,
            bands=BANDS,
            context_ids=contexts,
            positions=positions,
            activations=activations,
            copies=copies,
            lengths=lengths,
            active_positions=active,
            active_values=values,
        )


def card(found: dict[str, Any]) -> str:
    """What `measured` found, as lines of text."""
    lines = []
    for engine in ("sqlite", "postgresql"):
        for case in found.get(engine, {}).values():
            size = "" if case["bytes_an_example"] is None else f", {case['bytes_an_example']:.0f} bytes an example"
            lines.append(
                f"{engine:<11}{case['features']:>10,} features: {case['examples']:,} examples stored in "
                f"{case['seconds']:.1f} s{size}; a page p50 {case['page_p50_ms']:.1f} ms, "
                f"p95 {case['page_p95_ms']:.1f} ms"
            )
    return "\n".join(lines)


def main() -> None:
    """The planted databases alone: prints their card and their JSON. Arguments: [--quick] [POSTGRESQL_URL]."""
    import sys
    import tempfile

    arguments = [argument for argument in sys.argv[1:] if argument != "--quick"]
    with tempfile.TemporaryDirectory(prefix="saescope-bench-") as folder:
        found = measured(Path(folder), quick="--quick" in sys.argv, postgresql=arguments[0] if arguments else None)
    print(card(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
