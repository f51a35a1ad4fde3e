"""Measure one SAE on one corpus: a single pass of the model, then records for the store.

1. Cut the corpus into contexts.
2. For each batch of contexts: model to the hook, encode, accumulate metrics, offer each context's peaks to the top
   examples, append the active entries to a file (`evidence`). Each token is read once.
3. From that file, without the model: exact histograms, samples of five activation bands and of random firings, and the
   activations of every chosen context.
4. From the weights alone: promoted and suppressed tokens, nearest features (`directions`).
5. On a sample of contexts: how well the model predicts with `sae_out` in place of its own activations.

Nothing reaches the store before everything is there.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from sae_core import directions, evidence
from sae_core.collect import BestK
from sae_core.config import IndexConfig
from sae_core.corpus import corpus_name, iter_documents
from sae_core.disk import saving
from sae_core.errors import WeightsError
from sae_core.metrics import RunningFVU, ce_recovered
from sae_core.model import LanguageModel, load_model
from sae_core.progress import progress_bar, stop_request
from sae_core.records import (
    N_BANDS,
    Context,
    CorpusInfo,
    Feature,
    Histogram,
    IndexInfo,
    IndexMetrics,
    IndexRecords,
    NearestFeature,
    SAEInfo,
    TokenWeight,
)
from sae_core.sae import TopKSAE, load_sae
from sae_core.tokens import Framing, TokenContext, fingerprint, framing, iter_contexts, padded, vocabulary
from sae_core.tokens_text import display_strings
from sae_core.train import check_corpus

CE_CONTEXTS = 64  # contexts on which CE recovered is measured


def build_index(sae_info: SAEInfo, config: IndexConfig, *, scratch: Path) -> IndexRecords | None:
    """The index of an SAE on a corpus; None if it was asked to stop. `scratch` is where large temporary files go."""
    started = time.monotonic()
    model = load_model(sae_info.model.model_name, dtype=str(sae_info.config["dtype"]), device=config.device)
    sae = load_sae(Path(sae_info.weights_path), device=model.device)
    if sae.d_in != model.info.d_model:
        raise WeightsError(
            f"The SAE reads {sae.d_in} numbers a token but {sae_info.model.model_name} gives {model.info.d_model}."
        )
    frame, contexts = read_contexts(sae_info, config, model)
    with saving(scratch):
        code = evidence.CodeFile(scratch)
        try:
            corpus_pass = CorpusPass(model, sae, frame, hook_name=sae_info.hook_name, config=config, code=code)
            if not corpus_pass.run(contexts):
                return None
            counts, banded, randoms = evidence.draw_samples(
                code,
                corpus_pass.maxima,
                per_band=config.band_examples,
                n_random=config.random_examples,
                seed=config.seed,
            )
            chosen = evidence.choose(
                top=corpus_pass.top,
                banded=banded,
                randoms=randoms,
                contexts=contexts,
                n_top=config.top_examples,
            )
            examples = evidence.packed_examples(code, chosen, d_sae=sae.d_sae)
        finally:
            code.close()
    metrics = corpus_pass.metrics(ce=measure_ce(model, sae, frame, contexts, hook_name=sae_info.hook_name))
    info = IndexInfo(
        slug=sae_info.slug,
        corpus=CorpusInfo(
            name=config.name or corpus_name(config.corpus),
            fingerprint=fingerprint(contexts),
            sources=config.corpus,
            context_size=_context_size(sae_info, config),
            prepend_bos=bool(frame.prefix),
            n_documents=len({context.source for context in contexts}),
            n_contexts=len(contexts),
            n_tokens=corpus_pass.n_tokens,
        ),
        metrics=metrics,
        dtype=str(sae_info.config["dtype"]),
        seed=config.seed,
        seconds=time.monotonic() - started,
        created_at=datetime.now(tz=UTC),
    )
    return IndexRecords(
        info=info,
        contexts=_context_records(contexts),
        features=feature_records(model, sae, corpus_pass, counts, config=config),
        examples=examples,
    )


def read_contexts(sae_info: SAEInfo, config: IndexConfig, model: LanguageModel) -> tuple[Framing, list[TokenContext]]:
    """The corpus as contexts, cut as the SAE was trained unless the configuration says otherwise."""
    prepend_bos = config.prepend_bos
    if prepend_bos is None:
        prepend_bos = sae_info.config.get("prepend_bos")  # type: ignore[assignment]
    frame = framing(model.tokenizer, prepend_bos=prepend_bos)
    context_size = _context_size(sae_info, config)
    documents = iter_documents(config.corpus, text_field=config.text_field)
    stream = iter_contexts(documents, model.tokenizer, context_size=context_size, frame=frame)
    contexts: list[TokenContext] = []
    n_tokens = 0
    for context in stream:
        contexts.append(context)
        n_tokens += len(context.token_ids) - frame.n_special
        if config.tokens is not None and n_tokens >= config.tokens:
            break
    check_corpus(contexts, context_size=context_size, frame=frame)
    return frame, contexts


class CorpusPass:
    """The one pass of the model over the corpus, and what it accumulates per feature."""

    def __init__(
        self,
        model: LanguageModel,
        sae: TopKSAE,
        frame: Framing,
        *,
        hook_name: str,
        config: IndexConfig,
        code: evidence.CodeFile,
    ) -> None:
        self.n_tokens = 0
        self.counts = torch.zeros(sae.d_sae, dtype=torch.int64)
        self.maxima = torch.zeros(sae.d_sae)
        self.sums = torch.zeros(sae.d_sae, dtype=torch.float64)
        # Twice as many as are shown, since those with the same text fall out at the end.
        self.top = BestK(n_groups=sae.d_sae, k=2 * config.top_examples, payload_size=2)
        self._fvu = RunningFVU()
        self._model, self._sae, self._frame, self._hook_name = model, sae, frame, hook_name
        self._config, self._code = config, code

    @property
    def densities(self) -> Tensor:
        return self.counts.double() / max(self.n_tokens, 1)

    def run(self, contexts: list[TokenContext]) -> bool:
        """Whether the pass came to its end (and was not asked to stop)."""
        size = self._config.batch_contexts
        total = sum(len(context.token_ids) - self._frame.n_special for context in contexts)
        with stop_request() as stop, progress_bar(total=total, what="indexing") as bar:
            for start in range(0, len(contexts), size):
                n_before = self.n_tokens
                self._add(contexts[start : start + size], first_context=start)
                bar.update(self.n_tokens - n_before)
                if stop.was_made:
                    return False
        return True

    def metrics(self, *, ce: float | None) -> IndexMetrics:
        threshold = self._config.dense_threshold
        return IndexMetrics(
            l0=float(self.counts.sum()) / self.n_tokens,
            fvu=self._fvu.value,
            ce_recovered=ce,
            dead_share=float((self.counts == 0).double().mean()),
            dense_share=float((self.densities > threshold).double().mean()),
            dense_threshold=threshold,
        )

    @torch.inference_mode()
    def _add(self, batch: list[TokenContext], *, first_context: int) -> None:
        ids, attention, counted = (
            torch.from_numpy(array) for array in padded(batch, pad_id=self._model.pad_id, frame=self._frame)
        )
        device = self._model.device
        acts = self._model.activations(ids.to(device), attention.to(device), self._hook_name)  # (B, T, d_in)
        model_acts = acts[counted.to(device)]  # (N, d_in)
        code = self._sae.encode(model_acts)
        error = model_acts - self._sae.decode(code)
        self._fvu.add(model_acts, float(error.square().sum()))
        self.n_tokens += len(model_acts)
        row_context, row_position = counted.nonzero(as_tuple=True)  # (N,), in the order of model_acts
        values = code.values.float().cpu()
        row, column = (values > 0).nonzero(as_tuple=True)
        entries = evidence.Entries(
            contexts=row_context[row] + first_context,
            positions=row_position[row],
            features=code.indices.cpu()[row, column],
            values=values[row, column],
        )
        self.counts += torch.bincount(entries.features, minlength=len(self.counts))
        self.sums.index_add_(0, entries.features, entries.values.double())
        self.maxima.scatter_reduce_(0, entries.features, entries.values, "amax")
        evidence.offer_peaks(self.top, entries, d_sae=len(self.counts))
        self._code.append(entries)


def measure_ce(
    model: LanguageModel, sae: TopKSAE, frame: Framing, contexts: list[TokenContext], *, hook_name: str
) -> float | None:
    """CE recovered on up to `CE_CONTEXTS` contexts spread over the corpus; None for a model that predicts nothing.

    Only tokens that count are replaced, as only they were trained on.
    """
    if not model.is_causal:
        return None
    chosen = contexts[:: max(1, len(contexts) // CE_CONTEXTS)][:CE_CONTEXTS]
    sums = {"own": 0.0, "sae": 0.0, "zeros": 0.0}
    for start in range(0, len(chosen), 16):
        ids, attention, counted = (
            torch.from_numpy(array).to(model.device)
            for array in padded(chosen[start : start + 16], pad_id=model.pad_id, frame=frame)
        )
        where = counted.unsqueeze(2)

        def with_sae(acts: Tensor, where: Tensor = where) -> Tensor:
            return torch.where(where, sae(acts.float()).to(acts.dtype), acts)

        def with_zeros(acts: Tensor, where: Tensor = where) -> Tensor:
            return acts.masked_fill(where, 0)

        for name, replace in (("own", None), ("sae", with_sae), ("zeros", with_zeros)):
            losses = model.next_token_losses(ids, attention, hook_name=hook_name, replace=replace)
            sums[name] += float(losses[counted[:, 1:]].double().sum())
    return ce_recovered(loss=sums["own"], loss_with_sae=sums["sae"], loss_with_zeros=sums["zeros"])


@dataclass(frozen=True, slots=True)
class _Directions:
    promoted: list[tuple[TokenWeight, ...]]
    suppressed: list[tuple[TokenWeight, ...]]
    nearest: list[tuple[NearestFeature, ...]]
    cosines: list[float]


@torch.inference_mode()
def feature_records(
    model: LanguageModel,
    sae: TopKSAE,
    corpus_pass: CorpusPass,
    counts: evidence.FiringCounts,
    *,
    config: IndexConfig,
) -> Iterator[Feature]:
    """One record per feature, in order."""
    known = _directions(model, sae, config)
    densities, maxima = corpus_pass.densities.tolist(), corpus_pass.maxima.tolist()
    means = (corpus_pass.sums / corpus_pass.counts.clamp_min(1)).tolist()
    band_shares = (counts.bands.double() / corpus_pass.counts.clamp_min(1).unsqueeze(1)).tolist()
    histograms = counts.histogram.tolist()
    n_bins = evidence.HISTOGRAM_BINS
    for feature_index, n_active in enumerate(corpus_pass.counts.tolist()):
        top = maxima[feature_index]
        edges = tuple(top * i / n_bins for i in range(n_bins + 1))
        yield Feature(
            feature_index=feature_index,
            density=densities[feature_index],
            n_active=n_active,
            max_activation=top,
            mean_activation=means[feature_index],
            encoder_decoder_cosine=known.cosines[feature_index],
            histogram=Histogram(edges=edges, counts=tuple(histograms[feature_index]))
            if n_active
            else Histogram(edges=(), counts=()),
            band_shares=tuple(band_shares[feature_index]) if n_active else (0.0,) * N_BANDS,
            promoted_tokens=known.promoted[feature_index],
            suppressed_tokens=known.suppressed[feature_index],
            nearest=known.nearest[feature_index],
        )


def _directions(model: LanguageModel, sae: TopKSAE, config: IndexConfig) -> _Directions:
    nothing: list[tuple[TokenWeight, ...]] = [()] * sae.d_sae
    W_U = model.unembedding()
    promoted, suppressed = nothing, nothing
    if W_U is not None and len(W_U) == sae.d_in:
        names = [display_strings([token])[0] for token in vocabulary(model.tokenizer).tokens]
        # The head may be padded beyond the tokenizer's vocabulary; ids that no text has are left out.
        up, up_weights, down, down_weights = directions.logit_attribution(
            sae.W_dec, W_U[:, : len(names)], n=config.promoted_tokens
        )
        promoted = _token_weights(up, up_weights, names)
        suppressed = _token_weights(down, down_weights, names)
    near, cosines = directions.nearest_features(sae.W_dec, n=config.nearest_features)
    nearest = [
        tuple(NearestFeature(feature_index=i, cosine=c) for i, c in zip(row_indexes, row_cosines, strict=True))
        for row_indexes, row_cosines in zip(near.tolist(), cosines.tolist(), strict=True)
    ]
    own = directions.encoder_decoder_cosine(sae.W_enc, sae.W_dec).tolist()
    return _Directions(promoted, suppressed, nearest, own)


def _token_weights(ids: Tensor, weights: Tensor, names: list[str]) -> list[tuple[TokenWeight, ...]]:
    return [
        tuple(TokenWeight(token=names[i], token_id=i, weight=w) for i, w in zip(row_ids, row_weights, strict=True))
        for row_ids, row_weights in zip(ids.tolist(), weights.tolist(), strict=True)
    ]


def _context_size(sae_info: SAEInfo, config: IndexConfig) -> int:
    return config.context_size or int(str(sae_info.config.get("context_size", 128)))


def _context_records(contexts: list[TokenContext]) -> Iterator[Context]:
    for number, context in enumerate(contexts):
        yield Context(context_id=number, source=context.source, token_ids=context.token_ids.astype("<u4").tobytes())
