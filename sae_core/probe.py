"""Run a reader's own text: which features are active on which token, and how strongly.

The text is framed and encoded exactly as a context of the index is, so that a probe of an example's own text gives the
example's own activations. Texts of a session continue from what they share with the one before (`prefixes`); other
texts that come together are run as one batch. `Prober.decompose` looks into one token: what each feature adds to the
reconstruction. `Prober.predict` gives the model's own predictions.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sae_core.dashboards import check_has_weights
from sae_core.errors import ModelError, PromptError, PromptTooLongError, SaescopeError
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.prefixes import ActiveRow, KeyValues, Prefix, Prefixes
from sae_core.records import (
    Decomposition,
    Predictions,
    ProbeResult,
    ProbeToken,
    Prompt,
    SAEInfo,
    TokenPart,
    TokenPrediction,
)
from sae_core.sae import load_sae
from sae_core.sparse import SparseCode
from sae_core.tokens import framing, vocabulary, without_prefix
from sae_core.tokens_text import display_strings

_TINY = 1e-30  # keeps the shares of a zero vector at 0
_BATCH_TOKENS = 4096  # of one forward pass, padding included
_LIKELIEST = 10  # next tokens given for each token


class Prober:
    """A model and an SAE, loaded and ready for texts."""

    def __init__(self, sae: SAEInfo, *, device: str | None = None, model: LanguageModel | None = None) -> None:
        """`model` shares one that is loaded already. Raises ModelError and WeightsError."""
        check_has_weights(sae)
        self.info = sae
        self.model = model or load_model(sae.model.model_name, dtype=str(sae.config["dtype"]), device=device)
        self.sae = load_sae(Path(sae.weights_path), device=self.model.device)
        prepend_bos = sae.config.get("prepend_bos")
        self.frame = framing(self.model.tokenizer, prepend_bos=prepend_bos if isinstance(prepend_bos, bool) else None)
        self.vocabulary = vocabulary(self.model.tokenizer)
        self._prefixes = Prefixes()
        self._predicted: tuple[list[int], Predictions] | None = None  # what `predict` was asked last

    def probe(self, text: str, *, max_tokens: int = 1024) -> ProbeResult:
        """All active features of each token that is not special.

        Raises PromptError for an empty text and PromptTooLongError above `max_tokens`.
        """
        return self.probed(Prompt(text=text), max_tokens=max_tokens)

    def probed(self, prompt: Prompt, *, max_tokens: int = 1024) -> ProbeResult:
        """The same as asked by `prompt`."""
        result = self.probe_all([prompt], max_tokens=max_tokens)[0]
        if isinstance(result, SaescopeError):
            raise result
        return result

    def probe_all(self, prompts: Sequence[Prompt], *, max_tokens: int = 1024) -> list[ProbeResult | SaescopeError]:
        """Each prompt's result or error; those that continue no earlier text are run together."""
        results: dict[int, ProbeResult | SaescopeError] = {}
        fresh: list[tuple[int, list[int]]] = []
        for at, prompt in enumerate(prompts):
            started = time.monotonic()
            try:
                ids = self.token_ids(prompt.text, max_tokens=max_tokens)
                if prompt.session is None or not self._can_continue(ids):
                    fresh.append((at, ids))
                    continue
                rows, n_computed = self._continued(prompt.session, ids)
                results[at] = self._result(prompt, ids, rows, n_computed=n_computed, started=started)
            except SaescopeError as error:
                results[at] = error
        for batch in _batches(fresh, most=_BATCH_TOKENS):
            started = time.monotonic()
            for (at, ids), found in zip(batch, self._encoded([ids for _, ids in batch]), strict=True):
                if found is None:
                    results[at] = ModelError(_NOT_FINITE)
                else:
                    results[at] = self._result(prompts[at], ids, found, n_computed=len(found), started=started)
        return [results[at] for at in range(len(prompts))]

    def _result(
        self, prompt: Prompt, ids: list[int], rows: Sequence[ActiveRow], *, n_computed: int, started: float
    ) -> ProbeResult:
        tokens = [
            token
            if token.is_special and not prompt.special
            else replace(token, feature_indexes=features, activations=activations)
            for token, (features, activations) in zip(self.bare_tokens(ids), rows, strict=True)
        ]
        return ProbeResult(
            slug=self.info.slug,
            text=prompt.text,
            tokens=tuple(tokens),
            n_computed=n_computed,
            seconds=time.monotonic() - started,
        )

    def predict(self, text: str, *, max_tokens: int = 1024) -> Predictions:
        """What the model expects after each token of a text, and how unexpected each token was.

        Raises PromptError for a model that predicts nothing, and what `probe` raises.
        """
        started = time.monotonic()
        if not self.model.is_causal:
            raise PromptError(f"The model {self.model.info.model_name} reads both ways and predicts no next tokens.")
        ids = [*self.frame.prefix, *self.token_ids(text, max_tokens=max_tokens)]
        if self._predicted is not None and self._predicted[0] == ids:  # another token of the same text
            return replace(self._predicted[1], text=text)
        found: list[TokenPrediction] = []
        surprise: float | None = None
        token_ids = torch.tensor([ids], device=self.model.device)
        everywhere = torch.ones_like(token_ids, dtype=torch.bool)
        parts = self.model.predictions(
            token_ids, everywhere, where=everywhere, hook_name=self.info.hook_name, replacements=[None]
        )
        for (log_probs,) in parts:
            likeliest = log_probs.topk(min(_LIKELIEST, log_probs.shape[1]), dim=1)
            for row, (values, indices) in enumerate(zip(*(t.tolist() for t in likeliest), strict=True)):
                found.append(
                    TokenPrediction(
                        surprise=surprise,
                        next_tokens=tuple(display_strings([self.vocabulary.tokens[i]])[0] for i in indices),
                        probabilities=tuple(math.exp(value) for value in values),
                    )
                )
                if len(found) < len(ids):
                    surprise = -float(log_probs[row, ids[len(found)]]) / math.log(2)
        predictions = Predictions(text=text, tokens=tuple(found), seconds=time.monotonic() - started)
        self._predicted = ids, predictions
        return predictions

    @torch.inference_mode()
    def decompose(self, text: str, *, token: int | None = None, max_tokens: int = 1024) -> Decomposition:
        """How the SAE puts the vector of one token together; by default of the last one that is not special.

        Raises PromptError and PromptTooLongError as `probe` does, and PromptError for a token that is not there.
        """
        started = time.monotonic()
        ids = self.token_ids(text, max_tokens=max_tokens)
        tokens = self.bare_tokens(ids)
        position = _chosen(tokens) if token is None else token
        if position >= len(tokens):
            raise PromptError(f"The text has tokens 0 to {len(tokens) - 1}, and no token {position}; pick one of them.")
        framed = torch.tensor([[*self.frame.prefix, *ids, *self.frame.suffix]], device=self.model.device)
        with self.model.reading((self.info.hook_name, self.info.target_hook_name)) as read:
            mask = torch.ones_like(framed, dtype=torch.bool)
            model_acts, target_acts = (acts[0, position].float() for acts in read(framed, mask))
        is_special = tokens[position].is_special
        code = self.sae.encode(model_acts.unsqueeze(0))
        parts: tuple[TokenPart, ...] = ()
        bias_share = bias_error = None
        if not is_special:
            parts, bias_share, bias_error = self._parts(code, target_acts)
        return Decomposition(
            slug=self.info.slug,
            text=text,
            tokens=tokens,
            position=position,
            model_acts=tuple(model_acts.tolist()),
            target_acts=tuple(target_acts.tolist()) if self.sae.is_transcoder else (),
            sae_out=() if is_special else tuple(self.sae.decode(code)[0].tolist()),
            bias_share=bias_share,
            bias_error=bias_error,
            parts=parts,
            error=parts[-1].error if parts else bias_error,
            seconds=time.monotonic() - started,
        )

    def _parts(self, code: SparseCode, target_acts: Tensor) -> tuple[tuple[TokenPart, ...], float, float]:
        """What each active feature adds to the reconstruction of target_acts (d_out); b_dec's share; its error.

        With b_dec counts what no feature has to do with: a token's mean, and what a skip connection adds.
        """
        features, values = (column.tolist() for column in code.active()[1:])
        x = target_acts.double().cpu()
        size = max(float(x @ x), _TINY)
        scale = 1.0 if code.row_scale is None else float(code.row_scale)
        bias = scale * self.sae.b_dec.double().cpu()
        if code.row_offset is not None:
            bias = bias + code.row_offset[0].double().cpu()
        left = x - bias
        bias_error = float(left @ left) / size
        parts = []
        for feature_index, activation in sorted(zip(features, values, strict=True), key=lambda pair: (-pair[1], pair)):
            added = scale * activation * self.sae.W_dec[feature_index].double().cpu()
            left = left - added
            parts.append(
                TokenPart(
                    feature_index=feature_index,
                    activation=activation,
                    share=float(added @ x) / size,
                    error=float(left @ left) / size,
                )
            )
        return tuple(parts), float(bias @ x) / size, bias_error

    def token_ids(self, text: str, *, max_tokens: int) -> list[int]:
        """The ids of a text that can be run, without the frame."""
        if not text.strip():
            raise PromptError("The prompt is empty; type some text.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError("The prompt has half of a character (a lone surrogate); remove it.")
        encoded = self.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        ids = without_prefix(encoded, self.frame)
        if not ids:
            raise PromptError("The prompt is only a start token; type some text.")
        if len(ids) > max_tokens:
            raise PromptTooLongError(
                f"The prompt has {len(ids):,} tokens, over the limit of {max_tokens:,}; shorten it."
            )
        return ids

    def bare_tokens(self, ids: list[int]) -> tuple[ProbeToken, ...]:
        """The tokens in their frame's prefix, without features."""
        prefix = self.frame.prefix
        texts = display_strings([self.vocabulary.tokens[i] for i in (*prefix, *ids)])
        return tuple(
            ProbeToken(
                token=texts[position],
                token_id=token_id,
                is_special=position < len(prefix) or token_id in self.frame.special_ids,
            )
            for position, token_id in enumerate((*prefix, *ids))
        )

    def _can_continue(self, ids: Sequence[int]) -> bool:
        return self.model.can_continue(self.info.hook_name, len(self.frame.prefix) + len(ids))

    @torch.inference_mode()
    def _continued(self, session: str, ids: Sequence[int]) -> tuple[list[ActiveRow], int]:
        """The active features of each token, prefix included, and how many tokens were run for it."""
        framed = (*self.frame.prefix, *ids)
        known = self._prefixes.take(session) or Prefix(token_ids=(), key_values=KeyValues(()), rows=())
        n = known.shared_with(framed)
        rows, key_values = list(known.rows[:n]), known.key_values.first(n)
        if n < len(framed):
            new = torch.tensor(framed[n:], device=self.model.device)
            model_acts, key_values = self.model.continued(key_values, new, self.info.hook_name)
            if not bool(model_acts.isfinite().all()):
                raise ModelError(_NOT_FINITE)
            rows += self._rows(model_acts)
        self._prefixes.keep(session, Prefix(token_ids=framed, key_values=key_values, rows=tuple(rows)))
        return rows, len(framed) - n

    @torch.inference_mode()
    def _encoded(self, texts: Sequence[list[int]]) -> list[list[ActiveRow] | None]:
        """The active features of each token of each text, prefix included; None where the model gave no numbers."""
        framed = [[*self.frame.prefix, *ids, *self.frame.suffix] for ids in texts]
        lengths = [len(self.frame.prefix) + len(ids) for ids in texts]
        longest = max(len(ids) for ids in framed)
        token_ids = torch.full((len(framed), longest), self.model.pad_id)
        mask = torch.zeros_like(token_ids, dtype=torch.bool)
        for row, ids in enumerate(framed):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        acts = self.model.activations(
            token_ids.to(self.model.device), mask.to(self.model.device), self.info.hook_name
        )  # (B, T, d_in)
        rows = self._rows(torch.cat([acts[row, :n] for row, n in enumerate(lengths)]))
        found: list[list[ActiveRow] | None] = []
        for row, n in enumerate(lengths):
            own, rows = rows[:n], rows[n:]
            found.append(own if bool(acts[row, :n].isfinite().all()) else None)
        return found

    def _rows(self, model_acts: Tensor) -> list[ActiveRow]:
        """The active features of model_acts (N, d_in), the strongest first."""
        rows, features, values = self.sae.encode(model_acts).active()
        strongest = torch.argsort(values, descending=True, stable=True)
        order = strongest[torch.argsort(rows[strongest], stable=True)]
        ends: list[int] = torch.bincount(rows, minlength=len(model_acts)).cumsum(0).tolist()
        sorted_features, sorted_values = features[order].tolist(), values[order].tolist()
        starts = [0, *ends[:-1]]
        return [(tuple(sorted_features[a:b]), tuple(sorted_values[a:b])) for a, b in zip(starts, ends, strict=True)]


_NOT_FINITE = (
    "The model's numbers on this text are not finite, so no feature can be read: its dtype may be too narrow for it; "
    "train and probe with --dtype float32."
)


def _batches(fresh: Sequence[tuple[int, list[int]]], *, most: int) -> list[list[tuple[int, list[int]]]]:
    """The texts in batches of `most` tokens with padding, those of like length together."""
    batches: list[list[tuple[int, list[int]]]] = []
    for item in sorted(fresh, key=lambda item: len(item[1])):
        if not batches or (len(batches[-1]) + 1) * len(item[1]) > most:
            batches.append([])
        batches[-1].append(item)
    return batches


def _chosen(tokens: Sequence[ProbeToken]) -> int:
    """The last token that is not special, as its vector has read the whole text; 0 where all are."""
    return next((i for i in reversed(range(len(tokens))) if not tokens[i].is_special), 0)
