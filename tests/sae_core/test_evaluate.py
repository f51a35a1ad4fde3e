"""Evaluation against brute force: each context alone through the plain transformers model, a dense encode, loops."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_core import evaluate as evaluate_module
from sae_core.config import IndexConfig
from sae_core.errors import ConfigError, CorpusError, WeightsError
from sae_core.evaluate import evaluate, load_subject, measure_predictions, read_contexts
from sae_core.index import build_index
from sae_core.loading import load_model
from sae_core.metrics import cosine_histogram
from sae_core.model import LanguageModel
from sae_core.progress import StopRequest
from sae_core.records import Evaluation, SAEInfo
from sae_core.sae import load_sae
from tests.planted import dense_encode, random_sae, save_sae
from tests.tiny import TEXTS, save_tiny_model

D_SAE, K, CONTEXT_SIZE, LAYER = 48, 6, 24, 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny texts, one with a special token inside, one of a single token."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate([*TEXTS[:40], f"one {'<|bos|>'} two {'<|eos|>'} three", "A"]):
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LanguageModel:
    return load_model(str(tiny_llama))


def make_info(model: LanguageModel, folder: Path, *, is_dead: bool = False) -> SAEInfo:
    """An SAE with random directions, read nearly as they are written, and a dead feature, or nothing but such."""
    sae = random_sae(model.info.d_model, D_SAE, K, seed=5)
    with torch.no_grad():
        sae.W_enc.mul_(0.5).add_(sae.W_dec.T)
        sae.b_enc[7] = -1e6
        sae.b_enc.sub_(1e6 if is_dead else 0)
    return save_sae(sae, folder, model, layer=LAYER, hook="resid_post", context_size=CONTEXT_SIZE)


def config_of(corpus: Path, **changes: Any) -> IndexConfig:
    values: dict[str, Any] = {"slug": "random", "corpus": (str(corpus),), "tokens": None, "batch_contexts": 5}
    return IndexConfig(**{**values, **changes})


@dataclass
class Truth:
    """What a slow measurement of every token that counts finds, in the order of the contexts."""

    x: Tensor  # (N, d) what is reconstructed
    acts: Tensor  # (N, D_SAE) dense feature_acts
    x_hat: Tensor  # (N, d)
    losses: dict[str, list[float]]  # of each predicted token that counts: own, sae, zeros
    kl: list[float]


@contextmanager
def spliced(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        acts = output[0] if isinstance(output, tuple) else output
        changed = change(acts)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with module.register_forward_hook(hook):
        yield


@torch.no_grad()
def measured_slowly(info: SAEInfo, model: LanguageModel, config: IndexConfig, *, target: str = "resid_post") -> Truth:
    """Of all contexts; the SAE reads the residual stream after its block, `target` is what it reconstructs."""
    sae = load_sae(Path(info.weights_path))
    block = model.module.model.layers[LAYER]
    place = block if target == "resid_post" else block.mlp
    subject = load_subject(info, config)
    special = torch.tensor(sorted(subject.frame.special_ids))
    truth: dict[str, list[Tensor]] = {"x": [], "acts": [], "x_hat": []}
    losses: dict[str, list[float]] = {"own": [], "sae": [], "zeros": []}
    kl: list[float] = []
    for context in read_contexts(subject, config, scratch=Path(info.weights_path)):
        ids = torch.from_numpy(context.token_ids)[None]
        counted = ~torch.isin(ids[0], special)  # the only prefix is BOS, which is special
        seen: list[Tensor] = []
        with spliced(place, lambda acts, seen=seen: seen.append(acts[0].clone()) or acts):
            output = model.module(ids, output_hidden_states=True)
        read = output.hidden_states[LAYER + 1][0]
        feature_acts = dense_encode(sae, read)
        x_hat = feature_acts @ sae.W_dec + sae.b_dec
        truth["x"].append(seen[0][counted])
        truth["acts"].append(feature_acts[counted])
        truth["x_hat"].append(x_hat[counted])

        def reconstructed(acts: Tensor, x_hat: Tensor = x_hat, counted: Tensor = counted) -> Tensor:
            return torch.stack([x_hat[t] if counted[t] else acts[0, t] for t in range(len(counted))])[None]

        def zeroed(acts: Tensor, counted: Tensor = counted) -> Tensor:
            return torch.stack([acts[0, t] * (not counted[t]) for t in range(len(counted))])[None]

        logits = {"own": output.logits}
        for name, change in (("sae", reconstructed), ("zeros", zeroed)):
            with spliced(place, change):
                logits[name] = model.module(ids).logits
        log_probs = {name: of[0].double().log_softmax(dim=1) for name, of in logits.items()}
        for t in range(len(counted) - 1):
            if counted[t + 1]:
                for name, of in log_probs.items():
                    losses[name].append(-float(of[t, ids[0, t + 1]]))
                own, other = log_probs["own"][t], log_probs["sae"][t]
                kl.append(float((own.exp() * (own - other)).sum()))
    return Truth(**{name: torch.cat(parts) for name, parts in truth.items()}, losses=losses, kl=kl)


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


@pytest.fixture(scope="module")
def info(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> SAEInfo:
    return make_info(model, tmp_path_factory.mktemp("saes") / "random")


@pytest.fixture(scope="module")
def truth(info: SAEInfo, model: LanguageModel, corpus: Path) -> Truth:
    return measured_slowly(info, model, config_of(corpus))


@pytest.fixture(scope="module")
def evaluation(info: SAEInfo, corpus: Path) -> Evaluation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_module, "CE_CONTEXTS", 10_000)
        found = evaluate(info, config_of(corpus))
    assert found is not None
    return found


def test_reconstruction_metrics_are_their_formulas(evaluation: Evaluation, truth: Truth) -> None:
    x, x_hat = truth.x.double(), truth.x_hat.double()
    fvu = float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum())
    cosines = torch.nn.functional.cosine_similarity(x, x_hat)

    assert evaluation.corpus.n_tokens == len(x)
    assert evaluation.metrics.fvu == pytest.approx(fvu, rel=1e-3)
    assert evaluation.metrics.explained_variance == pytest.approx(1 - fvu, rel=1e-3)
    assert evaluation.metrics.cosine == pytest.approx(float(cosines.mean()), rel=1e-3)
    bias = float(x_hat.square().sum() / (x * x_hat).sum())
    assert evaluation.metrics.reconstruction_bias == pytest.approx(bias, rel=1e-3)


def test_feature_metrics_are_their_formulas(evaluation: Evaluation, truth: Truth, info: SAEInfo) -> None:
    active = truth.acts > 0
    densities = active.double().mean(dim=0)
    sae = load_sae(Path(info.weights_path))
    cosines = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec)
    alive = densities > 0

    metrics = evaluation.metrics
    assert metrics.l0 == pytest.approx(float(active.sum()) / len(active), rel=1e-4)
    assert metrics.dead_share == pytest.approx(float((~alive).double().mean()))
    assert metrics.dead_share > 0
    assert metrics.dense_share == pytest.approx(float((densities > 0.1).double().mean()))
    assert metrics.encoder_decoder_cosine == pytest.approx(float(cosines[alive].mean()), abs=1e-6)
    assert metrics.encoder_decoder_histogram == cosine_histogram(cosines[alive].tolist())
    bins = [0] * 48
    for density in densities[alive].tolist():
        bins[int(8 * (torch.log10(torch.tensor(density)).item() + 6))] += 1
    assert list(evaluation.density_histogram.counts) == bins


def test_losses_and_kl_are_those_of_each_context_alone(evaluation: Evaluation, truth: Truth) -> None:
    metrics = evaluation.metrics
    own, with_sae, with_zeros = (mean(truth.losses[name]) for name in ("own", "sae", "zeros"))

    assert metrics.ce_tokens == len(truth.kl)
    assert metrics.ce_loss == pytest.approx(own, rel=1e-4)
    assert metrics.ce_loss_with_sae == pytest.approx(with_sae, rel=1e-4)
    assert metrics.ce_loss_with_zeros == pytest.approx(with_zeros, rel=1e-4)
    assert metrics.kl == pytest.approx(mean(truth.kl), rel=1e-3)
    assert metrics.kl > 0.01
    recovered = (with_zeros - with_sae) / (with_zeros - own) if with_zeros > own else None
    assert metrics.ce_recovered == (recovered if recovered is None else pytest.approx(recovered, rel=1e-2))


def test_an_index_stores_what_an_evaluation_finds(info: SAEInfo, corpus: Path, tmp_path: Path) -> None:
    found = evaluate(info, config_of(corpus))
    records = build_index(info, config_of(corpus), home=tmp_path)

    assert found is not None and records is not None
    assert records.info.metrics == found.metrics
    assert records.info.corpus == found.corpus
    assert (found.slug, found.hook_name, found.target_hook_name) == ("random", info.hook_name, info.hook_name)


@pytest.mark.parametrize("batch_contexts", [1, 64])
def test_the_size_of_batches_changes_nothing(
    info: SAEInfo, corpus: Path, evaluation: Evaluation, batch_contexts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "CE_CONTEXTS", 10_000)
    again = evaluate(info, config_of(corpus, batch_contexts=batch_contexts))

    assert again is not None
    for name in ("fvu", "cosine", "reconstruction_bias", "l0", "ce_loss", "ce_loss_with_sae", "kl"):
        assert getattr(again.metrics, name) == pytest.approx(getattr(evaluation.metrics, name), rel=1e-4), name


def test_a_transcoder_is_held_against_what_it_stands_for(
    model: LanguageModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "CE_CONTEXTS", 10_000)
    plain = make_info(model, tmp_path / "transcoder")
    info = dataclasses.replace(plain, config={**plain.config, "target_hook": "mlp_out"})
    found = evaluate(info, config_of(corpus, batch_contexts=100))
    truth = measured_slowly(info, model, config_of(corpus), target="mlp_out")

    assert found is not None
    assert found.target_hook_name == "blocks.1.hook_mlp_out"
    x, x_hat = truth.x.double(), truth.x_hat.double()
    fvu = float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum())
    assert found.metrics.fvu == pytest.approx(fvu, rel=1e-3)
    assert found.metrics.ce_tokens == len(truth.kl)
    assert found.metrics.ce_loss_with_sae == pytest.approx(mean(truth.losses["sae"]), rel=1e-4)
    assert found.metrics.ce_loss_with_zeros == pytest.approx(mean(truth.losses["zeros"]), rel=1e-4)
    assert found.metrics.kl == pytest.approx(mean(truth.kl), rel=1e-3)


@pytest.mark.parametrize(
    ("named", "hook_name"),
    [
        ({"target_hook": "attn_out"}, "blocks.1.hook_attn_out"),
        ({"target_hook": "mlp_out", "target_layer": 0}, "blocks.0.hook_mlp_out"),
        ({"target_hook": "blocks.2.hook_attn_out"}, "blocks.2.hook_attn_out"),
        ({"target_hook": None, "target_layer": None}, "blocks.1.hook_resid_post"),
    ],
    ids=["hook", "layer", "whole-name", "none"],
)
def test_the_target_is_where_the_training_says(
    info: SAEInfo, corpus: Path, named: dict[str, object], hook_name: str
) -> None:
    other = dataclasses.replace(info, config={**info.config, **named})
    assert load_subject(other, config_of(corpus)).target_hook_name == hook_name


def test_a_target_that_the_model_does_not_have_is_said(info: SAEInfo, corpus: Path) -> None:
    lost = dataclasses.replace(info, config={**info.config, "target_hook": "mlp_out", "target_layer": 9})
    with pytest.raises(ConfigError, match="no layer 9"):
        load_subject(lost, config_of(corpus))


def test_the_sample_is_spread_over_the_corpus(
    info: SAEInfo, corpus: Path, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven of the contexts, the first of each seventh."""
    monkeypatch.setattr(evaluate_module, "CE_CONTEXTS", 7)
    config = config_of(corpus)
    subject = load_subject(info, config)
    contexts = read_contexts(subject, config, scratch=tmp_path)
    lengths = []
    for context in contexts:
        counted = ~torch.isin(torch.from_numpy(context.token_ids), torch.tensor(sorted(subject.frame.special_ids)))
        lengths.append(int(counted[1:].sum()))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    chosen = [i * len(contexts) // 7 for i in range(7)]
    kl = [truth.kl[t] for i in chosen for t in range(starts[i], starts[i] + lengths[i])]

    predictions = measure_predictions(subject, contexts, batch_contexts=3)

    assert predictions is not None
    assert predictions.n == len(kl)
    assert predictions.kl == pytest.approx(mean(kl), rel=1e-3)


def test_an_sae_that_gives_back_what_it_reads_costs_the_model_nothing(
    model: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    """Twice d_in features, ±each axis, all of which may be active: x̂ = x."""
    d = model.info.d_model
    sae = random_sae(d, 2 * d, 2 * d, seed=0)
    with torch.no_grad():
        axes = torch.cat([torch.eye(d), -torch.eye(d)])
        sae.W_dec.copy_(axes)
        sae.W_enc.copy_(axes.T)
        sae.b_enc.zero_(), sae.b_dec.zero_()
    info = save_sae(sae, tmp_path / "same", model, layer=LAYER, hook="resid_post", context_size=CONTEXT_SIZE)
    found = evaluate(info, config_of(corpus))

    assert found is not None
    metrics = found.metrics
    assert metrics.fvu == pytest.approx(0, abs=1e-9)
    assert metrics.explained_variance == pytest.approx(1)
    assert metrics.cosine == pytest.approx(1)
    assert metrics.reconstruction_bias == pytest.approx(1)
    assert metrics.kl == pytest.approx(0, abs=1e-5)
    assert metrics.ce_loss_with_sae == pytest.approx(metrics.ce_loss, rel=1e-5)
    assert metrics.encoder_decoder_cosine == pytest.approx(1)
    assert metrics.l0 == pytest.approx(d)


def test_an_sae_whose_features_are_all_dead_is_measured(model: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    found = evaluate(make_info(model, tmp_path / "dead", is_dead=True), config_of(corpus))

    assert found is not None
    assert (found.metrics.l0, found.metrics.dead_share, found.metrics.dense_share) == (0, 1, 0)
    assert found.metrics.encoder_decoder_cosine is None
    assert sum(found.density_histogram.counts) == 0
    assert found.metrics.fvu >= 1


def test_a_model_that_predicts_nothing_has_no_losses(corpus: Path, tmp_path: Path) -> None:
    bert = load_model(str(save_tiny_model(tmp_path / "bert-model", "bert")))
    found = evaluate(make_info(bert, tmp_path / "bert"), config_of(corpus))

    assert found is not None
    metrics = found.metrics
    for name in ("ce_recovered", "ce_loss", "ce_loss_with_sae", "ce_loss_with_zeros", "kl", "ce_tokens"):
        assert getattr(metrics, name) is None, name
    assert metrics.cosine is not None and 0 < metrics.fvu < 100


def test_a_corpus_of_single_tokens_predicts_nothing(tmp_path: Path) -> None:
    gpt2 = load_model(str(save_tiny_model(tmp_path / "model", "gpt2")))
    (tmp_path / "letters.jsonl").write_text('{"text": "A"}\n' * 30)
    found = evaluate(make_info(gpt2, tmp_path / "gpt2"), config_of(tmp_path / "letters.jsonl"))

    assert found is not None
    assert (found.metrics.kl, found.metrics.ce_loss, found.metrics.ce_recovered) == (None, None, None)
    assert found.corpus.n_tokens == 30


def test_errors_are_said(info: SAEInfo, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CorpusError, match="no text"):
        evaluate(info, config_of(tmp_path / "empty.txt"))
    (tmp_path / "special.txt").write_text("<|bos|>" * 100)
    with pytest.raises(CorpusError, match="nothing but special tokens"):
        evaluate(info, config_of(tmp_path / "special.txt"))
    with pytest.raises(WeightsError, match="no SAE weights"):
        evaluate(dataclasses.replace(info, weights_path=str(tmp_path / "gone")), config_of(corpus))


def test_a_stop_between_batches_gives_nothing(
    info: SAEInfo, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def asked() -> Iterator[StopRequest]:
        request = StopRequest()
        request.was_made = True
        yield request

    monkeypatch.setattr(evaluate_module, "stop_request", asked)
    assert evaluate(info, config_of(corpus)) is None
    assert build_index(info, config_of(corpus), home=tmp_path) is None
