"""Every feature's record: what the pass gathered of it (`evidence`), what follows from the weights, and a label.

Written as the columns of packed numbers that the store keeps, a block of features at a time: there are a hundred
numbers to a feature, and an object for each would cost more than the pass over the text.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core import directions, evidence
from sae_core.config import IndexConfig
from sae_core.context_file import ContextFile
from sae_core.evaluate import Subject, context_size
from sae_core.evidence import BLOCK_FEATURES, Coactivation
from sae_core.firings import Firings
from sae_core.labels import Grounds, automatic_label
from sae_core.records import PackedFeature
from sae_core.tokens import vocabulary
from sae_core.tokens_text import display_strings

_WEIGHT_ROW = np.dtype([("token_id", "<u4"), ("weight", "<f4")])
_NEAREST_ROW = np.dtype([("feature_index", "<u4"), ("cosine", "<f4")])


def feature_records(
    subject: Subject,
    contexts: ContextFile,
    *,
    firings: Firings,
    coactivation: Coactivation,
    n_tokens: int,
    config: IndexConfig,
    created_at: datetime,
) -> Iterator[PackedFeature]:
    """One record per feature, in order. `n_tokens` is how many the pass read."""
    names = display_strings_of(subject)
    weights = _Weights(subject, config, n_names=len(names))
    n, densities = firings.n.tolist(), (firings.n / max(n_tokens, 1)).tolist()
    maxima, means, mean_squares = (c.tolist() for c in (firings.maxima, firings.means, firings.mean_squares))
    histograms, band_shares = evidence.histograms(firings), evidence.band_shares(firings)
    profiles = evidence.profiles(firings, context_size=context_size(subject.info, config))
    coactive = coactivation.strongest(firings.d_sae)
    for first in range(0, firings.d_sae, BLOCK_FEATURES):
        last = min(first + BLOCK_FEATURES, firings.d_sae)
        promoted_ids = weights.promoted_ids[first:last]
        sampled = evidence.sampled_tokens(firings.sample, contexts, first, last, promoted=promoted_ids)
        for number in range(first, last):
            of_block = number - first
            drawn = sampled.n[of_block]
            promoted_share = sampled.followed[of_block] / drawn if drawn and weights.n_promoted else None
            label = None
            if n[number]:
                grounds = Grounds(
                    density=densities[number],
                    tokens_on=[(_name(names, i), share) for i, _, share in sampled.on.listed(of_block)],
                    tokens_before=[(_name(names, i), count / drawn) for i, count, _ in sampled.before.listed(of_block)],
                    tokens_after=[(_name(names, i), count / drawn) for i, count, _ in sampled.after.listed(of_block)],
                    places=profiles.listed(number),
                    promoted_tokens=[_name(names, i) for i in promoted_ids[of_block].tolist()],
                    promoted_share=promoted_share,
                )
                label = automatic_label(grounds, dense_threshold=config.dense_threshold, created_at=created_at)
            yield PackedFeature(
                feature_index=number,
                density=densities[number],
                n_active=n[number],
                max_activation=maxima[number],
                mean_activation=means[number],
                mean_square=mean_squares[number],
                encoder_decoder_cosine=weights.cosines[number],
                encoder_norm=weights.encoder_norms[number],
                decoder_norm=weights.decoder_norms[number],
                histogram=histograms[number],
                band_shares=band_shares[number],
                promoted_tokens=weights.promoted[number].tobytes(),
                suppressed_tokens=weights.suppressed[number].tobytes(),
                nearest=weights.nearest[number].tobytes(),
                profile=profiles.packed(number),
                sampled_tokens=_packed_samples(sampled, of_block),
                promoted_share=promoted_share,
                coactive=coactive.packed(number),
                label=label,
            )


def display_strings_of(subject: Subject) -> list[str]:
    """Each token of the model's vocabulary alone, as a page shows it."""
    return [display_strings([token])[0] for token in vocabulary(subject.model.tokenizer).tokens]


def _name(names: list[str], token_id: int) -> str:
    return names[token_id] if token_id < len(names) else f"[{token_id}]"


def _packed_samples(sampled: evidence.Sampled, number: int) -> bytes:
    parts = [sampled.n[number].to_bytes(2, "little")]
    for tokens in (sampled.on, sampled.before, sampled.after):
        packed = tokens.packed(number)
        parts += [(len(packed) // evidence.TOKEN_ROW.itemsize).to_bytes(1, "little"), packed]
    return b"".join(parts)


class _Weights:
    """What follows from the weights: of each feature a row of packed numbers."""

    @torch.inference_mode()
    def __init__(self, subject: Subject, config: IndexConfig, *, n_names: int) -> None:
        sae, W_U = subject.sae, subject.model.unembedding()
        nothing = np.zeros((sae.d_sae, 0), _WEIGHT_ROW)
        self.promoted = self.suppressed = nothing
        added = subject.model.added_directions(subject.target_hook_name, sae.W_dec)
        if W_U is not None and len(W_U) == added.shape[1]:
            # The head may be padded beyond the tokenizer's vocabulary; ids that no text has are left out.
            up, up_weights, down, down_weights = directions.logit_attribution(
                added, W_U[:, :n_names], n=config.promoted_tokens
            )
            self.promoted = _rows(_WEIGHT_ROW, up, up_weights)
            self.suppressed = _rows(_WEIGHT_ROW, down, down_weights)
        self.promoted_ids: NDArray[np.int64] = self.promoted["token_id"].astype(np.int64)
        self.n_promoted = self.promoted.shape[1]
        self.nearest = _rows(_NEAREST_ROW, *directions.nearest_features(sae.W_dec, n=config.nearest_features))
        self.cosines = directions.encoder_decoder_cosine(sae.W_enc, sae.W_dec).tolist()
        self.encoder_norms = sae.W_enc.norm(dim=0).tolist()
        self.decoder_norms = sae.W_dec.norm(dim=1).tolist()


def _rows(form: np.dtype[Any], *columns: Tensor) -> NDArray[Any]:
    rows = np.zeros(columns[0].shape, form)
    for name, column in zip(form.names or (), columns, strict=True):
        rows[name] = column.cpu().numpy()
    return rows
