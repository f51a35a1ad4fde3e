"""Run a reader's own text: which features are active on which token, and how strongly.

The text is framed and encoded exactly as a context of the index is, so that a probe of an example's own text gives the
example's own activations. `Prober.decompose` looks into one token: what each feature adds to the reconstruction.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sae_core.errors import PromptError, PromptTooLongError
from sae_core.model import LanguageModel, load_model
from sae_core.records import ActiveFeature, Decomposition, ProbeFeature, ProbeResult, ProbeToken, SAEInfo, TokenPart
from sae_core.sae import load_sae
from sae_core.tokens import framing, vocabulary
from sae_core.tokens_text import display_strings

_TINY = 1e-30  # keeps the shares of a zero vector at 0


class Prober:
    """A model and an SAE, loaded and ready for texts."""

    def __init__(self, sae: SAEInfo, *, device: str | None = None, model: LanguageModel | None = None) -> None:
        """`model` shares one that is loaded already. Raises ModelError and WeightsError."""
        self.info = sae
        self.model = model or load_model(sae.model.model_name, dtype=str(sae.config["dtype"]), device=device)
        self.sae = load_sae(Path(sae.weights_path), device=self.model.device)
        prepend_bos = sae.config.get("prepend_bos")
        self.frame = framing(self.model.tokenizer, prepend_bos=prepend_bos if isinstance(prepend_bos, bool) else None)
        self.vocabulary = vocabulary(self.model.tokenizer)

    def probe(self, text: str, *, top_k: int = 10, max_tokens: int = 1024) -> ProbeResult:
        """Active features of each token (the `top_k` strongest) and of the whole text (all, by maximum).

        Raises PromptError for an empty text and PromptTooLongError above `max_tokens`.
        """
        started = time.monotonic()
        ids = self.token_ids(text, max_tokens=max_tokens)
        encoded = self._encode(ids)
        tokens = []
        active: dict[int, dict[int, float]] = {}  # feature -> token position -> activation
        first = len(self.frame.prefix)
        for position, token in enumerate(self.bare_tokens(ids)):
            strongest = [] if token.is_special else encoded[position - first]
            for feature in strongest:
                active.setdefault(feature.feature_index, {})[position] = feature.activation
            tokens.append(replace(token, features=tuple(strongest[:top_k])))
        features = [_over_text(index, activations) for index, activations in active.items()]
        features.sort(key=lambda feature: (-feature.max_activation, feature.feature_index))
        return ProbeResult(
            slug=self.info.slug,
            text=text,
            tokens=tuple(tokens),
            features=tuple(features),
            seconds=time.monotonic() - started,
        )

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
            parts, bias_share, bias_error = self._parts(code.active()[1:], target_acts)
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

    def _parts(self, active: tuple[Tensor, Tensor], target_acts: Tensor) -> tuple[tuple[TokenPart, ...], float, float]:
        """What each active feature adds to the reconstruction of target_acts (d_out); b_dec's share; its error."""
        features, values = (column.tolist() for column in active)
        x = target_acts.double().cpu()
        size = max(float(x @ x), _TINY)
        bias = self.sae.b_dec.double().cpu()
        left = x - bias
        bias_error = float(left @ left) / size
        parts = []
        for feature_index, activation in sorted(zip(features, values, strict=True), key=lambda pair: (-pair[1], pair)):
            added = activation * self.sae.W_dec[feature_index].double().cpu()
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
        ids: list[int] = self.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
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
                features=(),
            )
            for position, token_id in enumerate((*prefix, *ids))
        )

    @torch.inference_mode()
    def _encode(self, ids: list[int]) -> list[list[ActiveFeature]]:
        """The active features of each token, strongest first."""
        framed = torch.tensor([[*self.frame.prefix, *ids, *self.frame.suffix]], device=self.model.device)
        model_acts = self.model.activations(framed, torch.ones_like(framed, dtype=torch.bool), self.info.hook_name)
        first = len(self.frame.prefix)
        code = self.sae.encode(model_acts[0, first : first + len(ids)])
        found: list[list[ActiveFeature]] = [[] for _ in ids]
        for row, feature_index, activation in zip(*(column.tolist() for column in code.active()), strict=True):
            found[row].append(ActiveFeature(feature_index=feature_index, activation=activation))
        for features in found:
            features.sort(key=lambda feature: (feature.activation, feature.feature_index), reverse=True)
        return found


def _chosen(tokens: Sequence[ProbeToken]) -> int:
    """The last token that is not special, as its vector has read the whole text; 0 where all are."""
    return next((i for i in reversed(range(len(tokens))) if not tokens[i].is_special), 0)


def _over_text(feature_index: int, activations: dict[int, float]) -> ProbeFeature:
    strongest = max(activations, key=lambda position: (activations[position], -position))
    return ProbeFeature(
        feature_index=feature_index,
        max_activation=activations[strongest],
        max_position=strongest,
        positions=tuple(activations),
        activations=tuple(activations.values()),
    )
