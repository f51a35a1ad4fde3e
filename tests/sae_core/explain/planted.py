"""An SAE of planted features: it is known which words each fires on, and every text around a firing."""

import random
import struct
from dataclasses import replace
from itertools import groupby

from sae_core.bands import N_BANDS, band_edges
from sae_core.explain.records import PackedSample
from sae_core.records import RANDOM_BAND, TOP_BAND, Context, IndexRecords
from sae_core.store import Store
from sae_core.store_rows import PackedExample
from tests.factories import WORDS, make_features, make_records, make_sae, make_vocabulary, token_ids
from tests.packed import packed, packed_feature

N_FEATURES = 12
SIZE = 40
PLANTED = ("sea", "king", "whale", "peace")  # the words of features 0 to 3; 4 fires after "old", the rest at random
AFTER = "old"


def make_texts(*, n: int = 120, seed: int = 3) -> list[list[str]]:
    """The words of each context, one token each."""
    rng = random.Random(seed)
    plain = [word for word in dict.fromkeys(WORDS) if len(token_ids(" " + word)) == 1]
    return [[rng.choice(plain) for _ in range(SIZE - 1)] for _ in range(n)]


def firing(feature_index: int, words: list[str], at: int) -> float:
    """The activation of a planted feature on a word; it rises with the place, so that bands fill."""
    strength = 0.5 + 7.0 * ((at * 7) % SIZE) / SIZE
    if feature_index < len(PLANTED):
        return strength if words[at] == PLANTED[feature_index] else 0.0
    if feature_index == len(PLANTED):
        return strength if at and words[at - 1] == AFTER else 0.0
    return strength if random.Random(f"{feature_index} {words[: at + 1]}").random() < 0.02 else 0.0


def planted_records(*, slug: str = "planted", with_sample: bool = True) -> IndexRecords:
    """Examples as the pass would keep them, of a corpus of random words, and a sample of every third context."""
    base = make_records("demo", n_features=N_FEATURES, n_contexts=5)
    texts = make_texts()
    contexts = [_context(number, words) for number, words in enumerate(texts)]
    acts = [  # position 0 is BOS
        [[0.0, *(firing(feature, words, at) for at in range(len(words)))] for words in texts]
        for feature in range(N_FEATURES)
    ]
    features, examples = [], []
    for number, feature in enumerate(make_features(n=N_FEATURES)):
        places = [(c, p, v) for c, row in enumerate(acts[number]) for p, v in enumerate(row) if v]
        top = max((value for _, _, value in places), default=0.0)
        density = len(places) / (len(texts) * (SIZE - 1))
        features.append(replace(feature, density=density, n_active=len(places), max_activation=top))
        examples += _examples(number, places, acts[number])
    sampled = list(range(0, len(texts), 3))
    return replace(
        base,
        info=replace(base.info, slug=slug),
        contexts=contexts,
        features=[packed_feature(feature) for feature in features],
        examples=packed(examples),
        sample=_sample(acts, sampled) if with_sample else None,
    )


def planted_store(url: str, *, with_sample: bool = True) -> Store:
    store = Store.open(url)
    store.add_sae(make_sae("planted", d_sae=N_FEATURES), make_vocabulary())
    store.add_index(planted_records(with_sample=with_sample))
    return store


def _context(number: int, words: list[str]) -> Context:
    ids = [0, *(token_ids(" " + word)[0] for word in words)]
    return Context(context_id=number, source=f"planted.txt:{number}", token_ids=struct.pack(f"<{len(ids)}I", *ids))


def _examples(feature_index: int, places: list[tuple[int, int, float]], acts: list[list[float]]) -> list[PackedExample]:
    best = {c: (c, p, v) for c, p, v in sorted(places, key=lambda place: place[2])}  # one place a context
    edges = band_edges(max((v for _, _, v in places), default=0.0))
    kept = [(TOP_BAND, place) for place in sorted(best.values(), key=lambda place: -place[2])[:20]]
    for band in range(1, N_BANDS + 1):
        inside = [place for place in places if edges[band - 1] <= place[2] < edges[band]]
        kept += [(band, place) for place in inside[:5]]
    kept += [(RANDOM_BAND, place) for place in random.Random(feature_index).sample(places, min(10, len(places)))]
    found = []
    for band, own in groupby(kept, key=lambda pair: pair[0]):
        for rank, (_, (c, p, v)) in enumerate(own):
            active = [(at, value) for at, value in enumerate(acts[c]) if value]
            positions, values = zip(*active, strict=True)
            found.append(PackedExample(feature_index, band, rank, c, p, v, 1, positions, values))
    return found


def _sample(acts: list[list[list[float]]], numbers: list[int]) -> PackedSample:
    starts, places, values = [0], [], []
    for own in acts:
        for n, number in enumerate(numbers):
            for position, value in enumerate(own[number]):
                if value:
                    places.append(n << 16 | position)
                    values.append(value)
        starts.append(len(places))
    return PackedSample(
        context_ids=struct.pack(f"<{len(numbers)}I", *numbers),
        starts=struct.pack(f"<{len(starts)}I", *starts),
        places=struct.pack(f"<{len(places)}I", *places),
        activations=struct.pack(f"<{len(values)}e", *values),
    )
