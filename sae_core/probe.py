"""Run a reader's own text: which features are active on which token, and how strongly.

The text is framed and encoded exactly as a context of the index is, so that a probe of an example's own text gives the
example's own activations.
"""

import time
from pathlib import Path

import torch

from sae_core.errors import PromptError, PromptTooLongError
from sae_core.model import LanguageModel, load_model
from sae_core.records import ActiveFeature, ProbeFeature, ProbeResult, ProbeToken, SAEInfo
from sae_core.sae import load_sae
from sae_core.tokens import framing, vocabulary
from sae_core.tokens_text import display_strings


class Prober:
    """A model and an SAE, loaded and ready for texts."""

    def __init__(self, sae: SAEInfo, *, device: str | None = None, model: LanguageModel | None = None) -> None:
        """`model` shares one that is loaded already. Raises ModelError and WeightsError."""
        self.info = sae
        self.model = model or load_model(sae.model.model_name, dtype=str(sae.config["dtype"]), device=device)
        self._sae = load_sae(Path(sae.weights_path), device=self.model.device)
        prepend_bos = sae.config.get("prepend_bos")
        self._frame = framing(self.model.tokenizer, prepend_bos=prepend_bos if isinstance(prepend_bos, bool) else None)
        self._vocabulary = vocabulary(self.model.tokenizer)

    def probe(self, text: str, *, top_k: int = 10, max_tokens: int = 1024) -> ProbeResult:
        """Active features of each token (the `top_k` strongest) and of the whole text (all, by maximum).

        Raises PromptError for an empty text and PromptTooLongError above `max_tokens`.
        """
        started = time.monotonic()
        if not text.strip():
            raise PromptError("The prompt is empty; type some text.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError("The prompt has half of a character (a lone surrogate); remove it.")
        ids = self.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if len(ids) > max_tokens:
            raise PromptTooLongError(
                f"The prompt has {len(ids):,} tokens, over the limit of {max_tokens:,}; shorten it."
            )
        encoded = self._encode(ids)
        tokens = []
        active: dict[int, dict[int, float]] = {}  # feature -> token position -> activation
        texts = display_strings([self._vocabulary.tokens[i] for i in (*self._frame.prefix, *ids)])
        first = len(self._frame.prefix)
        for position, token_id in enumerate(self._frame.prefix):
            tokens.append(ProbeToken(token=texts[position], token_id=token_id, is_special=True, features=()))
        for row, token_id in enumerate(ids):
            is_special = token_id in self._frame.special_ids
            strongest = [] if is_special else encoded[row]
            for feature in strongest:
                active.setdefault(feature.feature_index, {})[first + row] = feature.activation
            tokens.append(
                ProbeToken(
                    token=texts[first + row],
                    token_id=token_id,
                    is_special=is_special,
                    features=tuple(strongest[:top_k]),
                )
            )
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
    def _encode(self, ids: list[int]) -> list[list[ActiveFeature]]:
        """The active features of each token, strongest first."""
        framed = torch.tensor([[*self._frame.prefix, *ids, *self._frame.suffix]], device=self.model.device)
        model_acts = self.model.activations(framed, torch.ones_like(framed, dtype=torch.bool), self.info.hook_name)
        first = len(self._frame.prefix)
        code = self._sae.encode(model_acts[0, first : first + len(ids)])
        found: list[list[ActiveFeature]] = [[] for _ in ids]
        for row, feature_index, activation in zip(*(column.tolist() for column in code.active()), strict=True):
            found[row].append(ActiveFeature(feature_index=feature_index, activation=activation))
        for features in found:
            features.sort(key=lambda feature: (feature.activation, feature.feature_index), reverse=True)
        return found


def _over_text(feature_index: int, activations: dict[int, float]) -> ProbeFeature:
    strongest = max(activations, key=lambda position: (activations[position], -position))
    return ProbeFeature(
        feature_index=feature_index,
        max_activation=activations[strongest],
        max_position=strongest,
        positions=tuple(activations),
        activations=tuple(activations.values()),
    )
