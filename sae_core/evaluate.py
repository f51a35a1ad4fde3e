"""Measure how good an SAE is on a corpus: one pass of the model, then its predictions on a sample of contexts.

1. Load model and SAE (`load_subject`), cut the corpus into contexts (`read_contexts`).
2. For each batch of contexts: model to the hook, encode, decode, accumulate (`CorpusPass`). Each token is read once.
3. On a sample of contexts: what the model predicts with `sae_out` in place of what it stands for, and with zeros
   (`measure_predictions`).
4. All of it as the numbers that `metrics` defines (`index_metrics`).

`saescope eval` prints the result; `index` makes the same pass, and keeps the evidence of every feature beside it.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from sae_core import directions
from sae_core.config import IndexConfig
from sae_core.context_file import ContextFile
from sae_core.corpus import corpus_name, iter_documents
from sae_core.dashboards import check_has_weights
from sae_core.disk import saving
from sae_core.errors import CorpusError, WeightsError
from sae_core.loading import load_model
from sae_core.metrics import (
    RunningDensity,
    RunningPredictions,
    RunningReconstruction,
    cosine_histogram,
    density_histogram,
    explained_variance,
    mean_encoder_decoder,
)
from sae_core.model import LanguageModel
from sae_core.progress import progress_bar, stop_request
from sae_core.records import CorpusInfo, Evaluation, IndexMetrics, SAEInfo
from sae_core.sae import SAE, load_sae
from sae_core.tokens import Framing, TokenContext, check_corpus, framing, iter_contexts, padded

CE_CONTEXTS = 64  # contexts, spread over the corpus, on which CE and KL are measured


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: an SAE and its model, loaded, and how texts are framed for them."""

    info: SAEInfo
    model: LanguageModel
    sae: SAE
    frame: Framing
    dtype: str  # of the model's forward pass

    @property
    def hook_name(self) -> str:
        """Where the SAE reads."""
        return self.info.hook_name

    @property
    def target_hook_name(self) -> str:
        """Where stands what the SAE reconstructs."""
        return self.info.target_hook_name

    def tensors(self, contexts: list[TokenContext]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask, and which tokens count, each (B, T), on the model's device."""
        ids, attention, counted = (
            torch.from_numpy(array).to(self.model.device)
            for array in padded(contexts, pad_id=self.model.pad_id, frame=self.frame)
        )
        return ids, attention, counted

    def activations(self, ids: Tensor, attention: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """What the SAE reads (N, d_in) and what it should give (N, d_out), of the tokens that count."""
        with self.model.reading((self.hook_name, self.target_hook_name)) as read:
            model_acts, target_acts = (acts[counted].float() for acts in read(ids, attention))
        return model_acts, target_acts


def load_subject(sae_info: SAEInfo, config: IndexConfig) -> Subject:
    """Loads the SAE's model and the SAE. Raises ModelError, WeightsError, and ConfigError for an unknown hook."""
    check_has_weights(sae_info)
    dtype = str(sae_info.config["dtype"])
    model = load_model(sae_info.model.model_name, dtype=dtype, device=config.device)
    sae = load_sae(Path(sae_info.weights_path), device=model.device)
    if sae.d_in != (width := model.width(sae_info.hook_name)):
        raise WeightsError(
            f"The SAE reads {sae.d_in} numbers a token but {sae_info.model.model_name} gives {width} there."
        )
    prepend_bos = config.prepend_bos
    if prepend_bos is None:
        prepend_bos = sae_info.config.get("prepend_bos")  # type: ignore[assignment]
    subject = Subject(sae_info, model, sae, framing(model.tokenizer, prepend_bos=prepend_bos), dtype)
    model.check_hook(subject.target_hook_name)
    return subject


def read_contexts(subject: Subject, config: IndexConfig, *, scratch: Path) -> ContextFile:
    """The corpus as contexts on disk, cut as the SAE was trained unless the configuration says otherwise.

    Raises CorpusError if it has not a single context's worth of tokens.
    """
    size = context_size(subject.info, config)
    with saving(scratch):
        contexts = ContextFile(_contexts(subject, config, size), folder=scratch)
    check_corpus(contexts, context_size=size, frame=subject.frame)
    return contexts


def _contexts(subject: Subject, config: IndexConfig, size: int) -> Iterator[TokenContext]:
    """Contexts until there are as many tokens as are asked for."""
    documents = iter_documents(config.corpus, text_field=config.text_field)
    n_tokens = 0
    with progress_bar(total=config.tokens, what="reading") as bar:
        for context in iter_contexts(documents, subject.model.tokenizer, context_size=size, frame=subject.frame):
            yield context
            n_own = len(context.token_ids) - subject.frame.n_special
            n_tokens += n_own
            bar.update(n_own if config.tokens is None else min(n_own, config.tokens - bar.n))
            if config.tokens is not None and n_tokens >= config.tokens:
                break


@dataclass(frozen=True, slots=True)
class BatchCode:
    """The active entries of a batch of N tokens, on the CPU, and where in the corpus the tokens stand."""

    contexts: list[TokenContext]
    first_context: int  # the number of the first of these
    row_contexts: Tensor  # (N,) each token's context, 0 the batch's first
    row_positions: Tensor  # (N,) and its position in it
    rows: Tensor  # (E,) of the entries: which token, ascending
    features: Tensor  # (E,)
    values: Tensor  # (E,)


class CorpusPass:
    """The one pass of the model over a corpus, or a part of it, and what it accumulates."""

    def __init__(
        self, subject: Subject, *, batch_contexts: int, take: Callable[[BatchCode], None] | None = None
    ) -> None:
        """`take` is shown every batch's active entries, in the order of the contexts."""
        self.reconstruction = RunningReconstruction()
        self.density = RunningDensity(torch.zeros(subject.sae.d_sae, dtype=torch.int64))
        self._subject, self._batch_contexts, self._take = subject, batch_contexts, take

    def run(
        self,
        contexts: ContextFile,
        *,
        what: str,
        first: int = 0,
        last: int | None = None,
        between: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Reads contexts first..last (the latter not included); returns where it came to, if it was asked to stop.

        `what` names it in the progress bar; `between` is told, after each batch, how many contexts are done. Raises
        CorpusError if no token of the corpus counts.
        """
        last = len(contexts) if last is None else last
        n_special = self._subject.frame.n_special
        n_tokens = contexts.lengths - n_special
        done = first
        with (
            stop_request() as stop,
            progress_bar(total=int(n_tokens[:last].sum()), done=int(n_tokens[:first].sum()), what=what) as bar,
        ):
            while done < last:
                batch = [contexts[i] for i in range(done, min(done + self._batch_contexts, last))]
                self.add(batch, first_context=done)
                done += len(batch)
                bar.update(int(n_tokens[done - len(batch) : done].sum()))
                between(done)
                if stop.was_made:
                    break
        if done == len(contexts) and self.density.n_tokens == 0 and first == 0:
            raise CorpusError("The corpus has nothing but special tokens; give files with text in them.")
        return done

    @torch.inference_mode()
    def centre_on(self, contexts: ContextFile) -> None:
        """Takes variances around the mean of the corpus's first batch, as a pass that begins there does."""
        batch = [contexts[i] for i in range(min(self._batch_contexts, len(contexts)))]
        _, target_acts = self._subject.activations(*self._subject.tensors(batch))
        self.reconstruction.centre_on(target_acts)

    @torch.inference_mode()
    def add(self, batch: list[TokenContext], *, first_context: int) -> None:
        """Adds a batch, whose first context has this number."""
        ids, attention, counted = self._subject.tensors(batch)
        model_acts, target_acts = self._subject.activations(ids, attention, counted)
        code = self._subject.sae.encode(model_acts)
        self.reconstruction.add(target_acts, self._subject.sae.decode(code))
        rows, features, values = (column.cpu() for column in code.active())
        self.density.add(features, len(model_acts))
        if self._take is not None:
            row_contexts, row_positions = counted.cpu().nonzero(as_tuple=True)  # (N,), in the order of model_acts
            self._take(BatchCode(batch, first_context, row_contexts, row_positions, rows, features, values.float()))


@torch.inference_mode()
def measure_predictions(subject: Subject, contexts: ContextFile, *, batch_contexts: int) -> RunningPredictions | None:
    """CE and KL on up to `CE_CONTEXTS` contexts spread over the corpus; None for a model that predicts nothing.

    Only tokens that count are replaced, as only they were trained on, and only they count where they are predicted.
    """
    if not subject.model.is_causal:
        return None
    n = min(CE_CONTEXTS, len(contexts))
    chosen = [contexts[i * len(contexts) // n] for i in range(n)]
    predictions = RunningPredictions()
    with progress_bar(total=sum(len(context.token_ids) for context in chosen), what="predicting") as bar:
        for _, batch in _batches(chosen, batch_contexts):
            _add_predictions(predictions, subject, batch)
            bar.update(sum(len(context.token_ids) for context in batch))
    return predictions if predictions.n else None


def _add_predictions(predictions: RunningPredictions, subject: Subject, batch: list[TokenContext]) -> None:
    ids, attention, counted = subject.tensors(batch)
    model_acts = None  # what the SAE reads where it replaces: seen there
    if subject.hook_name != subject.target_hook_name:
        model_acts, _ = subject.activations(ids, attention, counted)

    def with_sae(acts: Tensor) -> Tensor:
        read = acts[counted].float() if model_acts is None else model_acts
        replaced = acts.clone()
        replaced[counted] = subject.sae.decode(subject.sae.encode(read)).to(acts.dtype)
        return replaced

    def with_zeros(acts: Tensor) -> Tensor:
        return acts.masked_fill(counted.unsqueeze(2), 0)

    before_counted = torch.zeros_like(counted)
    before_counted[:, :-1] = counted[:, 1:]
    parts = subject.model.predictions(
        ids,
        attention,
        where=before_counted,
        hook_name=subject.target_hook_name,
        replacements=(None, with_sae, with_zeros),
    )
    token_ids = ids[:, 1:][counted[:, 1:]]  # (N',), what came after the positions `before_counted`
    done = 0
    for own, spliced, zeroed in parts:
        predictions.add(token_ids[done : done + len(own)], own=own, with_sae=spliced, with_zeros=zeroed)
        done += len(own)


def index_metrics(
    subject: Subject, corpus_pass: CorpusPass, predictions: RunningPredictions | None, *, dense_threshold: float
) -> IndexMetrics:
    """Everything that was accumulated, as a record."""
    density, reconstruction = corpus_pass.density, corpus_pass.reconstruction
    cosines = directions.encoder_decoder_cosine(subject.sae.W_enc, subject.sae.W_dec).cpu()  # (d_sae,)
    return IndexMetrics(
        l0=density.l0,
        fvu=reconstruction.fvu,
        explained_variance=explained_variance(reconstruction.fvu),
        cosine=reconstruction.cosine,
        reconstruction_bias=reconstruction.reconstruction_bias,
        ce_recovered=predictions.ce_recovered if predictions else None,
        ce_loss=predictions.ce_loss if predictions else None,
        ce_loss_with_sae=predictions.ce_loss_with_sae if predictions else None,
        ce_loss_with_zeros=predictions.ce_loss_with_zeros if predictions else None,
        kl=predictions.kl if predictions else None,
        ce_tokens=predictions.n if predictions else None,
        dead_share=density.dead_share,
        dense_share=density.dense_share(dense_threshold),
        dense_threshold=dense_threshold,
        encoder_decoder_cosine=mean_encoder_decoder(cosines, density.counts),
        encoder_decoder_histogram=cosine_histogram(cosines[density.counts > 0].tolist()),
    )


def corpus_info(subject: Subject, config: IndexConfig, contexts: ContextFile, corpus_pass: CorpusPass) -> CorpusInfo:
    """The corpus as it was read."""
    return CorpusInfo(
        name=config.name or corpus_name(config.corpus),
        fingerprint=contexts.fingerprint(),
        sources=config.corpus,
        context_size=context_size(subject.info, config),
        prepend_bos=bool(subject.frame.prefix),
        n_documents=contexts.n_documents,
        n_contexts=len(contexts),
        n_tokens=corpus_pass.density.n_tokens,
    )


def evaluate(sae_info: SAEInfo, config: IndexConfig) -> Evaluation | None:
    """How good an SAE is on a corpus; None if it was asked to stop.

    Of the configuration counts what says which text is read and how. Raises ModelError, WeightsError, CorpusError.
    """
    started = time.monotonic()
    subject = load_subject(sae_info, config)
    contexts = read_contexts(subject, config, scratch=Path(tempfile.gettempdir()))
    corpus_pass = CorpusPass(subject, batch_contexts=config.batch_contexts)
    if corpus_pass.run(contexts, what="evaluating") < len(contexts):
        return None
    predictions = measure_predictions(subject, contexts, batch_contexts=config.batch_contexts)
    return Evaluation(
        slug=sae_info.slug,
        model=subject.model.info,
        hook_name=subject.hook_name,
        target_hook_name=subject.target_hook_name,
        corpus=corpus_info(subject, config, contexts, corpus_pass),
        metrics=index_metrics(subject, corpus_pass, predictions, dense_threshold=config.dense_threshold),
        density_histogram=density_histogram(corpus_pass.density.densities.tolist()),
        dtype=subject.dtype,
        seconds=time.monotonic() - started,
        created_at=datetime.now(tz=UTC),
    )


def context_size(sae_info: SAEInfo, config: IndexConfig) -> int:
    """Tokens per context: as given, or as the SAE was trained."""
    return config.context_size or int(str(sae_info.config.get("context_size", 128)))


def _batches(contexts: list[TokenContext], size: int) -> Iterator[tuple[int, list[TokenContext]]]:
    """Runs of `size` contexts, with the number of the first."""
    for start in range(0, len(contexts), size):
        yield start, contexts[start : start + size]
