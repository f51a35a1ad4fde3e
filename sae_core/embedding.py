"""Texts as vectors, by a local embedding model of `transformers`: what a search by meaning compares.

1. The model is loaded as every other one is: a folder, the hub's cache or the hub.
2. A text's vector is the mean of the model's last hidden states over the text's tokens, the special ones included and
   padding left out, divided by its length. This is how the sentence-transformers' own models are trained (Reimers &
   Gurevych 2019, arXiv 1908.10084); one that was trained to pool otherwise (on [CLS], or on the last token) works less
   well here.
3. Vectors are kept as float16, in which a cosine is right to about 0.001.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_core.errors import ModelError
from sae_core.explain.records import Embedded, EmbeddingModel
from sae_core.loading import load_model, resolve_model

LONGEST = 256  # tokens of a text; labels have about ten
BATCH = 64


class Embedder:
    """An embedding model, loaded."""

    def __init__(self, model_name: str, *, device: str | None = None) -> None:
        """Raises ModelError, in one sentence, for what is no model or not here."""
        self._model = load_model(model_name, device=device)
        info = self._model.info
        self.info = EmbeddingModel(model_name=full_name(model_name), revision=info.revision, width=info.d_model)

    def embedded(self, texts: Sequence[str]) -> Embedded:
        """The vectors of these texts, in their order."""
        halves = self.vectors(texts).to(torch.float16).cpu().numpy().astype("<f2", copy=False)
        return Embedded(model=self.info, vectors=tuple(row.tobytes() for row in halves))

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(n, width), float32, of unit length."""
        parts = [self._batch(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, self.info.width)

    def _batch(self, texts: Sequence[str]) -> Tensor:
        model = self._model
        longest = min(LONGEST, model.longest_context or LONGEST)
        rows = [model.tokenizer.encode(text, truncation=True, max_length=longest, verbose=False) for text in texts]
        ids = torch.full((len(rows), max(1, *map(len, rows))), model.pad_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[number, : len(row)] = 1
        states = model.hidden_states(ids.to(model.device), mask.to(model.device))  # (B, T, width)
        weights = mask.to(states.device).unsqueeze(2)
        means = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
        if not bool(torch.isfinite(means).all()):
            raise ModelError(f"The model {self.info.model_name} gives vectors that are not finite; use another one.")
        return normalize(means, dim=1)


def full_name(model_name: str) -> str:
    """A folder by its whole path, so that another process finds it; all else as it is."""
    source = resolve_model(model_name)
    return model_name if isinstance(source, str) or model_name == "demo" else str(source.absolute())
