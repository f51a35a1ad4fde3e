"""What follows from an SAE's weights alone: promoted tokens, nearest features, cosines."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_core import sparse_cpu

_BLOCK_BYTES = 64 << 20  # of a product made at a time


def logit_attribution(W_dec: Tensor, W_U: Tensor, *, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The n most promoted and n most suppressed tokens of each feature by `W_dec[i] @ W_U`.

    Returns promoted ids and weights, suppressed ids and weights, each (d_sae, n), strongest first, in logits per unit
    of activation. `W_dec` is (d_sae, d_model), `W_U` (d_model, vocab).
    """
    n = min(n, W_U.shape[1])
    parts = []
    for rows in torch.split(W_dec, max(1, _BLOCK_BYTES // (4 * W_U.shape[1]))):
        logits = rows @ W_U  # (rows, vocab)
        promoted_ids, promoted_weights = _largest(logits, n)
        suppressed_ids, suppressed_weights = _largest(logits.neg_(), n)
        parts.append((promoted_ids, promoted_weights, suppressed_ids, -suppressed_weights))
    promoted_ids, promoted_weights, suppressed_ids, suppressed_weights = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    return promoted_ids, promoted_weights, suppressed_ids, suppressed_weights


def nearest_features(W_dec: Tensor, *, n: int) -> tuple[Tensor, Tensor]:
    """Indexes and cosines (d_sae, n) of the features whose decoder directions are closest; exact, never itself."""
    d_sae = len(W_dec)
    n = min(n, d_sae - 1)
    unit = normalize(W_dec, dim=1)
    indices, cosines = [], []
    for start in range(0, d_sae, max(1, _BLOCK_BYTES // (4 * d_sae))):
        rows = unit[start : start + max(1, _BLOCK_BYTES // (4 * d_sae))]
        cosine = rows @ unit.T  # (rows, d_sae)
        own = torch.arange(len(rows), device=rows.device)
        cosine[own, own + start] = -torch.inf
        best, values = _largest(cosine, n)
        indices.append(best)
        cosines.append(values)
    return torch.cat(indices), torch.cat(cosines)


def _largest(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Indexes and values (N, n) of the n largest of each row (N, width), largest first."""
    if rows.device.type != "cpu":
        best = rows.topk(n, dim=1)
        return best.indices, best.values
    indices, values = torch.empty(len(rows), n, dtype=torch.int64), torch.empty(len(rows), n, dtype=rows.dtype)
    sparse_cpu.top_k(rows.detach(), torch.zeros(rows.shape[1], dtype=rows.dtype), n, indices, values)
    order = values.argsort(dim=1, descending=True)
    return indices.gather(1, order), values.gather(1, order)


def encoder_decoder_cosine(W_enc: Tensor, W_dec: Tensor) -> Tensor:
    """Cosine (d_sae,) between what a feature reads (a column of W_enc) and what it writes (a row of W_dec)."""
    return (normalize(W_enc.T, dim=1) * normalize(W_dec, dim=1)).sum(dim=1)
