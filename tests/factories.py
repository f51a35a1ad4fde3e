"""Records as the index would write them, without a model: small, the same on every run, and with the awkward parts.

`make_store(url)` is the whole of it: SAE "demo" indexed on the corpora "stories" and then "poems", with labels and a
map, and an SAE "unindexed". The vocabulary cuts Chinese characters and emoji over tokens; some features are dead, some
dense.
"""

import functools
import hashlib
import random
import struct
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sae_core.bands import BINS, N_BANDS, bin_edges
from sae_core.metrics import cosine_histogram
from sae_core.records import (
    MAP_SIDE,
    RANDOM_BAND,
    TOP_BAND,
    CoactiveFeature,
    Context,
    CorpusInfo,
    Feature,
    FeatureMap,
    Histogram,
    IndexInfo,
    IndexMetrics,
    IndexRecords,
    Label,
    ModelInfo,
    NearestFeature,
    PositionShare,
    SAEInfo,
    TokenShare,
    TokenWeight,
    Vocabulary,
)
from sae_core.store import Store
from sae_core.store_rows import PackedExample
from tests.packed import packed, packed_feature

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
N_FEATURES = 300
DENSE_THRESHOLD = 0.1
TEXT = """
the of and to a in he his was that said king wife husband queen ship sea whale night day house door
hand eyes love war peace river old young white black Dr Mr Mrs 2020 42 é naïve Straße Wife WIFE
"""
WORDS = TEXT.split()


@functools.cache
def make_vocabulary() -> Vocabulary:
    """Specials, the 256 single bytes, words with a space before them, and characters that are whole or cut."""
    cut = ["😀".encode()[:3], "😀".encode()[3:], "中".encode()[:2], "中".encode()[2:]]
    whole = ["中文".encode(), "。".encode(), "🐋".encode(), b"<tag>", b"\n\n", b"100%", b"a_b"]
    bytes_ = [bytes([value]) for value in range(256)]
    tokens = [b"<bos>", b"<pad>", *bytes_, *(b" " + word.encode() for word in WORDS), *cut, *whole]
    return Vocabulary(tokens=tuple(tokens), special_ids=frozenset({0, 1}))


def token_ids(text: str, vocabulary: Vocabulary | None = None) -> list[int]:
    """`text` cut greedily into the longest tokens of the vocabulary."""
    known = {token: number for number, token in enumerate((vocabulary or make_vocabulary()).tokens)}
    longest = max(map(len, known))
    data, ids = text.encode(), []
    while data:
        size = next(n for n in range(longest, 0, -1) if data[:n] in known)
        ids.append(known[data[:size]])
        data = data[size:]
    return ids


def make_model(**changes: object) -> ModelInfo:
    values = {"model_name": "demo-lm", "revision": "r1", "architecture": "GPTNeoXForCausalLM", "n_layers": 6}
    return ModelInfo(**({**values, "d_model": 64} | changes))  # type: ignore[arg-type]


def make_sae(slug: str = "demo", **changes: object) -> SAEInfo:
    values: dict[str, object] = {
        "slug": slug,
        "model": make_model(),
        "hook_name": "blocks.3.hook_resid_post",
        "layer": 3,
        "architecture": "topk",
        "d_in": 64,
        "d_sae": N_FEATURES,
        "k": 16,
        "n_training_tokens": 3_000_000_000,
        "weights_path": f"/data/saes/{slug}",
        "created_at": NOW,
        "config": {"k": 16, "corpus": ["stories.txt"], "learning_rate": 0.002},
    }
    return SAEInfo(**(values | changes))  # type: ignore[arg-type]


def make_contexts(*, n: int = 60, size: int = 32, seed: int = 0, source: str = "stories.txt") -> list[Context]:
    """BOS, then words with now and then a whole or cut Chinese character or emoji."""
    rng = random.Random(seed)
    vocabulary = make_vocabulary()
    words = [token_ids(" " + word, vocabulary) for word in WORDS]
    others = [token_ids(text, vocabulary) for text in ("中", "😀", "中文。", "🐋", "語", "<tag>")]
    contexts = []
    for context_id in range(n):
        ids = [0]
        while len(ids) < size:
            ids.extend(rng.choice(others if rng.random() < 0.2 else words))
        packed = struct.pack(f"<{size}I", *ids[:size])
        contexts.append(Context(context_id=context_id, source=f"{source}:{context_id + 1}", token_ids=packed))
    return contexts


def make_features(*, n: int = N_FEATURES, n_tokens: int = 1860, seed: int = 0) -> list[Feature]:
    """Every tenth is dead (3, 13, …), every fiftieth dense (7, 57, …); rare ones share their densities."""
    rng = random.Random(seed)
    vocabulary = make_vocabulary()
    return [_make_feature(number, n=n, n_tokens=n_tokens, rng=rng, vocabulary=vocabulary) for number in range(n)]


def _make_feature(number: int, *, n: int, n_tokens: int, rng: random.Random, vocabulary: Vocabulary) -> Feature:
    def weights(sign: float) -> tuple[TokenWeight, ...]:
        chosen = rng.sample(range(258, len(vocabulary.tokens)), 5)
        return tuple(
            TokenWeight(
                token=vocabulary.tokens[token].decode("utf-8", "replace"),
                token_id=token,
                weight=sign * (2.5 - rank / 4),
            )
            for rank, token in enumerate(chosen)
        )

    def shares() -> tuple[TokenShare, ...]:
        chosen = rng.sample(range(258, len(vocabulary.tokens)), 3)
        return tuple(
            TokenShare(
                token=vocabulary.tokens[token].decode("utf-8", "replace"), token_id=token, count=3 - i, share=0.5 / 2**i
            )
            for i, token in enumerate(chosen)
        )

    n_active = 0 if number % 10 == 3 else n_tokens // 4 if number % 50 == 7 else rng.randrange(1, 40)
    top = 0.0 if n_active == 0 else rng.randrange(4, 80) / 4
    counts = tuple(rng.randrange(9) for _ in range(BINS)) if n_active else ()
    return Feature(
        feature_index=number,
        density=n_active / n_tokens,
        n_active=n_active,
        max_activation=top,
        mean_activation=top / 2,
        encoder_decoder_cosine=rng.randrange(100) / 128,
        histogram=Histogram(edges=bin_edges(top) if n_active else (), counts=counts),
        band_shares=(0.4, 0.3, 0.2, 0.06, 0.04) if n_active else (),
        promoted_tokens=weights(1.0) if n_active else (),
        suppressed_tokens=weights(-1.0) if n_active else (),
        nearest=tuple(NearestFeature(feature_index=(number + step) % n, cosine=0.75 / step) for step in (1, 2, 3)),
        mean_square=top * top / 4,
        encoder_norm=1.5,
        decoder_norm=1.0,
        profile=(PositionShare(first=1, last=1, density=0.125, share=0.25),) if n_active else (),
        n_sampled=min(n_active, 100),
        tokens_on=shares() if n_active else (),
        tokens_before=shares() if n_active else (),
        tokens_after=shares() if n_active else (),
        promoted_share=0.25 if n_active else None,
        coactive=(CoactiveFeature(feature_index=(number + 5) % n, together=17, jaccard=0.5),) if n_active else (),
    )


def make_examples(
    features: Sequence[Feature], contexts: Sequence[Context], *, top: int = 5, per_band: int = 2, seed: int = 0
) -> list[PackedExample]:
    """`top` examples, `per_band` for each band and two random ones of every feature that is alive."""
    rng = random.Random(seed)
    bands = [TOP_BAND] * top + [band for band in range(1, N_BANDS + 1) for _ in range(per_band)] + [RANDOM_BAND] * 2
    examples: list[PackedExample] = []
    for feature in features:
        if feature.n_active == 0:
            continue
        ranks: dict[int, int] = {}
        for band in bands:
            rank = ranks[band] = ranks.get(band, -1) + 1
            context = rng.choice(contexts)
            size = len(context.token_ids) // 4
            peak = feature.max_activation
            if band == TOP_BAND:
                peak *= 1 - rank / 16
            elif band <= N_BANDS:
                peak *= 0.75 * 2.0 ** (band - N_BANDS)
            positions = sorted(rng.sample(range(1, size), min(4, size - 1)))
            position = rng.choice(positions)
            values = [peak if p == position else peak / 4 for p in positions]
            if band == RANDOM_BAND:
                positions, values, peak = [], [], 0.0
            examples.append(
                PackedExample(
                    feature_index=feature.feature_index,
                    context_id=context.context_id,
                    band=band,
                    rank=rank,
                    position=position,
                    activation=peak,
                    copies=1 + rank % 3 if band == TOP_BAND else 0,
                    positions=tuple(positions),
                    values=tuple(values),
                )
            )
    return examples


def make_corpus(name: str = "stories", *, contexts: Sequence[Context], **changes: object) -> CorpusInfo:
    digest = hashlib.sha256(b"".join(context.token_ids for context in contexts)).hexdigest()
    size = len(contexts[0].token_ids) // 4
    values: dict[str, object] = {
        "name": name,
        "fingerprint": digest,
        "sources": (f"{name}.txt",),
        "context_size": size,
        "prepend_bos": True,
        "n_documents": len(contexts),
        "n_contexts": len(contexts),
        "n_tokens": len(contexts) * (size - 1),
    }
    return CorpusInfo(**(values | changes))  # type: ignore[arg-type]


@functools.cache
def make_records(
    slug: str = "demo",
    *,
    corpus: str = "stories",
    n_features: int = N_FEATURES,
    n_contexts: int = 60,
    seed: int = 0,
    created_at: datetime = NOW,
) -> IndexRecords:
    """A finished index. The same `corpus` and `n_contexts` give the same text; `seed` changes the features."""
    contexts = make_contexts(n=n_contexts, seed=sum(corpus.encode()), source=f"{corpus}.txt")
    info = make_corpus(corpus, contexts=contexts)
    features = make_features(n=n_features, n_tokens=info.n_tokens, seed=seed)
    metrics = IndexMetrics(
        l0=15.5,
        fvu=0.1875,
        explained_variance=0.8125,
        cosine=0.90625,
        reconstruction_bias=0.984375,
        ce_recovered=0.96875,
        ce_loss=2.5,
        ce_loss_with_sae=2.75,
        ce_loss_with_zeros=10.5,
        kl=0.21875,
        ce_tokens=1984,
        dead_share=sum(feature.density == 0 for feature in features) / n_features,
        dense_share=sum(feature.density > DENSE_THRESHOLD for feature in features) / n_features,
        dense_threshold=DENSE_THRESHOLD,
        encoder_decoder_cosine=0.59375,
        encoder_decoder_histogram=cosine_histogram(f.encoder_decoder_cosine for f in features if f.n_active),
    )
    return IndexRecords(
        info=IndexInfo(
            slug=slug, corpus=info, metrics=metrics, dtype="float32", seed=seed, seconds=12.5, created_at=created_at
        ),
        contexts=contexts,
        features=[packed_feature(feature) for feature in features],
        examples=packed(make_examples(features, contexts, seed=seed)),
    )


def make_label(text: str = "spouses", *, kind: str = "human", author: str = "ana", score: float | None = None) -> Label:
    return Label(text=text, kind=kind, author=author, score=score, created_at=NOW)


def make_labels() -> dict[int, Label]:
    return {
        0: make_label("words for a spouse"),
        1: make_label("the sea, 海 and ships", kind="automatic", author="describer", score=0.875),
        2: make_label("numbers & <dates>", kind="automatic", author="describer", score=0.5),
    }


def make_map(*, n: int = N_FEATURES, seed: int = 0) -> FeatureMap:
    """Every feature somewhere; the first two in two corners."""
    rng = random.Random(seed)
    xs, ys = ([rng.randrange(MAP_SIDE + 1) for _ in range(n)] for _ in range(2))
    xs[:2], ys[:2] = [0, MAP_SIDE], [0, MAP_SIDE]
    return FeatureMap(xs=tuple(xs), ys=tuple(ys), n_neighbours=3, seed=seed, seconds=1.5, created_at=NOW)


def fill_store(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    store.add_sae(make_sae("unindexed", created_at=NOW + timedelta(hours=1)), make_vocabulary())
    store.add_index(make_records(corpus="stories"))
    store.add_index(make_records(corpus="poems", n_contexts=40, seed=1, created_at=NOW + timedelta(minutes=1)))
    store.add_labels("demo", make_labels())
    store.add_map("demo", make_map())


def make_store(url: str) -> Store:
    """An open store with SAE "demo" on "stories" and, newer, "poems", three labels, a map, and SAE "unindexed"."""
    return _opened(url, is_filled=True)


def make_empty_store(url: str) -> Store:
    """An open store with nothing in it."""
    return _opened(url, is_filled=False)


def _opened(url: str, *, is_filled: bool) -> Store:
    """An SQLite file is a copy of one that was made before: that takes a tenth of the time."""
    _, _, path = url.partition("sqlite:///")
    if path and not Path(path).exists():
        Path(path).write_bytes(_made_before(is_filled))
        return Store.open(url)
    store = Store.open(url)
    if is_filled:
        fill_store(store)
    return store


@functools.cache
def _made_before(is_filled: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saescope.db")
        store = Store.open(f"sqlite:///{path}")
        if is_filled:
            fill_store(store)
        store.close()
        return path.read_bytes()
