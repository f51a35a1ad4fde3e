"""The index against brute force: every number from the plain transformers forward and a dense encode."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from sae_core.bands import N_BANDS
from sae_core.config import IndexConfig
from sae_core.errors import CorpusError, WeightsError
from sae_core.evaluate import load_subject, read_contexts
from sae_core.index import build_index
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.records import RANDOM_BAND, TOP_BAND, Context, Feature, IndexRecords, PackedFeature, SAEInfo
from sae_core.store_rows import PackedExample
from sae_core.tokens import vocabulary
from tests.factories import NOW
from tests.packed import plain, plain_feature
from tests.planted import dense_encode, random_sae, save_sae, token_detectors
from tests.tiny import TEXTS

D_SAE, K, CONTEXT_SIZE = 48, 6, 32
AnyFeature = TypeVar("AnyFeature", Feature, PackedFeature)


@dataclasses.dataclass
class Built:
    """An index with what it was made from, and the dense truth about it."""

    info: SAEInfo
    records: IndexRecords
    contexts: list[Context]
    all_ids: list[list[int]]  # the tokens of every context of the corpus
    features: list[Feature]
    examples: list[PackedExample]
    acts: torch.Tensor  # (n_tokens, D_SAE) dense feature_acts of every token that counts
    where: list[tuple[int, int]]  # (context, position) of each row of acts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LanguageModel:
    return load_model(str(tiny_llama))


@pytest.fixture(scope="module")
def built(model: LanguageModel, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("home")
    sae = random_sae(model.info.d_model, D_SAE, K, seed=5)
    with torch.no_grad():
        sae.b_enc[7] = -1e6  # a dead feature
    info = save_sae(sae, folder / "random", model, layer=1, hook="resid_post", context_size=CONTEXT_SIZE)
    config = IndexConfig(slug="random", corpus=(str(corpus),), tokens=None, batch_contexts=5, nearest_features=3)
    records = build_index(info, config, home=folder)
    assert records is not None
    contexts, features = list(records.contexts), plain_features(records, model)
    acts, where = [], []
    corpus_contexts = read_contexts(load_subject(info, config), config, scratch=folder)
    for number, context in enumerate(corpus_contexts):
        ids = context.token_ids
        with torch.inference_mode():
            hidden = model.module(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states[2][0]
            acts.append(dense_encode(sae, hidden[1:]))  # token 0 is BOS
        where += [(number, position) for position in range(1, len(ids))]
    all_ids = [context.token_ids.tolist() for context in corpus_contexts]
    return Built(info, records, contexts, all_ids, features, plain(records.examples), torch.cat(acts), where)


def test_statistics_equal_those_of_the_dense_activations(built: Built) -> None:
    active = built.acts > 0
    for i, feature in enumerate(built.features):
        values = built.acts[:, i][active[:, i]]
        assert feature.feature_index == i
        assert feature.n_active == len(values)
        assert feature.density == pytest.approx(len(values) / len(built.acts))
        if len(values):
            assert feature.max_activation == pytest.approx(float(values.max()), rel=1e-3)
            assert feature.mean_activation == pytest.approx(float(values.mean()), rel=1e-3)
    assert built.features[7].n_active == 0
    assert built.features[7].max_activation == 0


def test_metrics_of_the_whole_equal_their_formulas(built: Built) -> None:
    metrics = built.records.info.metrics
    assert built.records.info.corpus.n_tokens == len(built.acts)
    assert metrics.l0 == pytest.approx(float((built.acts > 0).sum() / len(built.acts)), rel=1e-4)
    dead = float(((built.acts > 0).sum(dim=0) == 0).float().mean())
    assert metrics.dead_share == pytest.approx(dead)
    assert dead > 0
    dense = float(((built.acts > 0).float().mean(dim=0) > metrics.dense_threshold).float().mean())
    assert metrics.dense_share == pytest.approx(dense)
    assert metrics.fvu > 0
    assert metrics.ce_recovered is None or metrics.ce_recovered < 1


def text_around(ids: list[int], position: int) -> tuple[int, ...]:
    padded = [-1] * 8 + ids + [-1]
    return tuple(padded[position : position + 10])


def test_top_examples_are_the_contexts_with_the_largest_peaks_each_text_once(built: Built) -> None:
    ids_of = built.all_ids
    for i in range(D_SAE):
        peaks: dict[int, tuple[float, int]] = {}
        for (context, position), value in zip(built.where, built.acts[:, i].tolist(), strict=True):
            if value > peaks.get(context, (0.0, 0))[0]:
                peaks[context] = (value, position)
        strongest = sorted(((value, -context, position) for context, (value, position) in peaks.items()), reverse=True)
        texts: dict[tuple[int, ...], float] = {}
        for value, context, position in strongest:
            texts.setdefault(text_around(ids_of[-context], position), value)
        expected = list(texts.values())[:20]
        top = [e for e in built.examples if e.feature_index == i and e.band == TOP_BAND]
        assert [e.rank for e in top] == list(range(len(expected)))
        assert [e.activation for e in top] == pytest.approx(expected, rel=1e-3)
        assert len({e.context_id for e in top}) == len(top)
        for example in top:
            copies = [text_around(ids, position) for ids in ids_of for position in range(len(ids))]
            assert example.copies == copies.count(text_around(ids_of[example.context_id], example.position)) >= 1


def test_every_examples_activations_equal_the_plain_forward_and_dense_encode(built: Built) -> None:
    truth = {place: row for row, place in enumerate(built.where)}
    for example in built.examples:
        expected = {
            position: float(built.acts[row, example.feature_index])
            for (context, position), row in truth.items()
            if context == example.context_id and built.acts[row, example.feature_index] > 0
        }
        assert list(example.positions) == sorted(expected)
        assert list(example.values) == pytest.approx([expected[p] for p in example.positions], rel=1e-3)
        assert example.activation == pytest.approx(expected[example.position], rel=1e-3)


def test_band_samples_lie_in_their_bands_and_shares_are_exact(built: Built) -> None:
    for i, feature in enumerate(built.features):
        values = built.acts[:, i][built.acts[:, i] > 0].numpy()
        edges = feature.band_edges
        for band in range(1, N_BANDS + 1):
            low, high = edges[band - 1], edges[band]
            count = int(((values >= low) & (values < high)).sum())
            on_edge = (
                int((np.abs(values / max(low, 1e-30) - 1) < 1e-4).sum()) + int((np.abs(values / high - 1) < 1e-4).sum())
                if len(values)
                else 0
            )
            assert abs(feature.band_shares[band - 1] * max(len(values), 1) - count) <= on_edge + 1e-6
            sample = [e for e in built.examples if e.feature_index == i and e.band == band]
            assert abs(len(sample) - min(5, count)) <= on_edge
            assert all(low <= e.activation < high for e in sample)
        if len(values):
            assert sum(feature.histogram.counts) == len(values)
            reference, _ = np.histogram(values, bins=np.array(feature.histogram.edges))
            assert np.abs(np.array(feature.histogram.counts) - reference).sum() <= 4  # values on an edge
        else:
            assert feature.histogram.counts == ()


def test_random_firings_are_firings_and_as_many_as_there_are_up_to_ten(built: Built) -> None:
    for i, feature in enumerate(built.features):
        sample = [e for e in built.examples if e.feature_index == i and e.band == RANDOM_BAND]
        assert len(sample) == min(10, feature.n_active)
        assert len({(e.context_id, e.position) for e in sample}) == len(sample)


def test_contexts_are_those_that_examples_point_at_and_those_of_the_sample(built: Built) -> None:
    numbers = [c.context_id for c in built.contexts]
    assert built.records.sample is not None
    sampled = np.frombuffer(built.records.sample.context_ids, "<u4").tolist()
    assert numbers == sorted({e.context_id for e in built.examples} | set(sampled))
    assert built.records.info.corpus.n_contexts >= len(numbers)
    assert {Path(c.source).suffix for c in built.contexts} == {".txt"}
    assert max(len(c.token_ids) // 4 for c in built.contexts) <= CONTEXT_SIZE


def test_tokens_at_before_and_after_are_those_of_all_firings_where_all_are_sampled(built: Built) -> None:
    ids_of = built.all_ids
    n_checked = 0
    for i, feature in enumerate(built.features):
        rows = built.acts[:, i].nonzero().squeeze(1).tolist()
        assert feature.n_sampled == min(len(rows), 100)
        if not 0 < len(rows) <= 100:
            continue
        n_checked += 1
        total = float(built.acts[rows, i].sum())
        for name, step in (("tokens_on", 0), ("tokens_before", -1), ("tokens_after", 1)):
            counts: Counter[int] = Counter()
            sums: Counter[int] = Counter()
            for row in rows:
                context, position = built.where[row]
                if position + step < len(ids_of[context]):
                    token = ids_of[context][position + step]
                    counts[token] += 1
                    sums[token] += float(built.acts[row, i])  # type: ignore[assignment]
            shown = getattr(feature, name)
            assert len(shown) == min(8, len(counts))
            assert [t.count for t in shown] == [counts[t.token_id] for t in shown]
            assert [t.share for t in shown] == pytest.approx([sums[t.token_id] / total for t in shown], rel=1e-3)
            key = (lambda t: t.share) if step == 0 else (lambda t: t.count)
            assert [key(t) for t in shown] == sorted((key(t) for t in shown), reverse=True)
        after = [built.where[row] for row in rows]
        promoted = {t.token_id for t in feature.promoted_tokens}
        followed = sum(p + 1 < len(ids_of[c]) and ids_of[c][p + 1] in promoted for c, p in after)
        assert feature.promoted_share == pytest.approx(followed / len(rows))
    assert n_checked >= 2


def test_coactive_features_are_those_with_the_largest_jaccard_index(built: Built) -> None:
    active = (built.acts > 0).double()
    together = active.T @ active
    counts = active.sum(dim=0)
    jaccard = together / (counts[:, None] + counts[None] - together).clamp_min(1)
    jaccard.fill_diagonal_(0)
    jaccard[together < 3] = 0
    for i, feature in enumerate(built.features):
        expected = jaccard[i].sort(descending=True).values[:10]
        assert [c.jaccard for c in feature.coactive] == pytest.approx(expected[expected > 0].tolist())
        for coactive in feature.coactive:
            assert coactive.together == int(together[i, coactive.feature_index])


def test_profile_is_the_density_by_position(built: Built) -> None:
    positions = np.array([position for _, position in built.where])
    for i, feature in enumerate(built.features):
        if not feature.n_active:
            assert feature.profile == ()
            continue
        active = (built.acts[:, i] > 0).numpy()
        for place in feature.profile:
            there = (positions >= place.first) & (positions <= place.last)
            assert place.density == pytest.approx(active[there].mean())
            assert place.share == pytest.approx((active & there).sum() / active.sum())
        assert sum(place.share for place in feature.profile) == pytest.approx(1)


def test_planted_features_are_found_on_the_tokens_they_were_planted_on(
    model: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    stream = [i for text in TEXTS for i in model.tokenizer.encode(text, add_special_tokens=False)]
    frequent = [i for i, _ in sorted({i: stream.count(i) for i in set(stream)}.items(), key=lambda kv: -kv[1])][:12]
    sae = token_detectors(model, frequent)
    info = save_sae(sae, tmp_path / "planted", model, layer=0, hook="resid_pre", context_size=CONTEXT_SIZE)
    config = IndexConfig(slug="planted", corpus=(str(corpus),), tokens=None)
    records = build_index(info, config, home=tmp_path)
    assert records is not None
    contexts, features = list(records.contexts), plain_features(records, model)
    ids_of = {c.context_id: np.frombuffer(c.token_ids, dtype="<u4") for c in contexts}
    all_contexts = read_contexts(load_subject(info, config), config, scratch=tmp_path)
    everything = np.concatenate([context.token_ids[1:] for context in all_contexts])
    examples = plain(records.examples)
    for feature, token_id in zip(features, frequent, strict=True):
        assert feature.n_active == int((everything == token_id).sum()) > 0
        mine = [e for e in examples if e.feature_index == feature.feature_index]
        assert mine
        assert all(ids_of[e.context_id][e.position] == token_id for e in mine)


def test_special_tokens_never_count(built: Built) -> None:
    assert all(e.position > 0 for e in built.examples)
    assert all(0 not in e.positions for e in built.examples)


def plain_features(records: IndexRecords, model: LanguageModel) -> list[Feature]:
    tokens = vocabulary(model.tokenizer)
    return [plain_feature(feature, tokens) for feature in records.features]


def without_times(features: Iterable[AnyFeature]) -> list[AnyFeature]:
    """Labels say when they were made."""
    return [dataclasses.replace(f, label=f.label and dataclasses.replace(f.label, created_at=NOW)) for f in features]


def test_two_builds_give_the_same_records(built: Built, model: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    config = IndexConfig(slug="random", corpus=(str(corpus),), tokens=None, batch_contexts=5, nearest_features=3)
    again = build_index(built.info, config, home=tmp_path)
    assert again is not None
    assert list(again.contexts) == built.contexts
    assert without_times(plain_features(again, model)) == without_times(built.features)
    assert plain(again.examples) == built.examples
    assert again.info.corpus == built.records.info.corpus


def test_it_reads_no_more_tokens_than_asked(built: Built, corpus: Path, tmp_path: Path) -> None:
    records = build_index(built.info, IndexConfig(slug="random", corpus=(str(corpus),), tokens=200), home=tmp_path)
    assert records is not None
    assert 200 <= records.info.corpus.n_tokens < 200 + CONTEXT_SIZE


def test_promoted_tokens_and_nearest_features_follow_from_the_weights(built: Built, model: LanguageModel) -> None:
    from sae_core.sae import load_sae

    W_dec = load_sae(Path(built.info.weights_path)).W_dec
    unembedding = model.unembedding()
    assert unembedding is not None
    for i in (0, 11, D_SAE - 1):
        logits = W_dec[i] @ unembedding
        feature = built.features[i]
        assert [t.token_id for t in feature.promoted_tokens] == logits.argsort(descending=True)[:10].tolist()
        assert [t.token_id for t in feature.suppressed_tokens] == logits.argsort()[:10].tolist()
        cosine = torch.nn.functional.cosine_similarity(W_dec[i][None], W_dec)
        cosine[i] = -2
        assert [n.feature_index for n in feature.nearest] == cosine.argsort(descending=True)[:3].tolist()


def test_an_empty_corpus_and_lost_weights_are_said(built: Built, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CorpusError, match="no text"):
        build_index(built.info, IndexConfig(slug="random", corpus=(str(tmp_path / "empty.txt"),)), home=tmp_path)
    lost = dataclasses.replace(built.info, weights_path=str(tmp_path / "gone"))
    with pytest.raises(WeightsError, match="no SAE weights"):
        build_index(lost, IndexConfig(slug="random", corpus=("python-docs",), tokens=100), home=tmp_path)


def test_the_sample_holds_the_whole_code_of_its_contexts(built: Built) -> None:
    sample = built.records.sample
    assert sample is not None
    numbers = np.frombuffer(sample.context_ids, "<u4").tolist()
    assert set(numbers) <= {context.context_id for context in built.contexts}
    starts, places = np.frombuffer(sample.starts, "<u4"), np.frombuffer(sample.places, "<u4")
    values = np.frombuffer(sample.activations, "<f2")
    assert len(starts) == D_SAE + 1
    rows = {where: row for row, where in enumerate(built.where)}
    found = torch.zeros_like(built.acts)
    for i in range(D_SAE):
        for at in range(starts[i], starts[i + 1]):
            found[rows[numbers[places[at] >> 16], int(places[at] & 0xFFFF)], i] = float(values[at])
    sampled = torch.tensor([where[0] in numbers for where in built.where])
    torch.testing.assert_close(found[sampled], built.acts[sampled].float(), rtol=1e-3, atol=1e-3)
