"""The best k per group by a key, from a stream: one mechanism for top examples and unbiased samples.

    group = feature,          key = activation   the examples that activate it most
    group = (feature, band),  key = random       an unbiased sample of each activation band
    group = feature,          key = random       random firings

A candidate that cannot enter is rejected by one comparison with its group's threshold, so that after warm-up almost
nothing moves. Knows nothing of language or of SAEs.
"""

import torch
from torch import Tensor


class BestK:
    """Keeps, for each of `n_groups`, the `k` candidates with the largest keys, each with a payload of integers."""

    def __init__(self, *, n_groups: int, k: int, payload_size: int) -> None:
        self.k = k
        self.keys = torch.full((n_groups, k), -torch.inf)  # descending in each row; -inf where a group has fewer
        self.payload = torch.zeros(n_groups, k, payload_size, dtype=torch.int64)
        self.thresholds = torch.full((n_groups,), -torch.inf)  # a key must be above it to enter

    def offer(self, groups: Tensor, keys: Tensor, payload: Tensor) -> None:
        """Offers M candidates: groups (M,) int64, keys (M,) float32, payload (M, payload_size) int64.

        Of equal keys the earlier offered stays.
        """
        enters = (keys > self.thresholds[groups]).nonzero().squeeze(1)
        if len(enters) == 0:
            return
        groups, keys, payload = groups[enters], keys[enters], payload[enters]
        by_key = keys.argsort(descending=True, stable=True)
        order = by_key[groups[by_key].argsort(stable=True)]  # by group, then by descending key
        touched, counts = torch.unique_consecutive(groups[order], return_counts=True)
        row = torch.repeat_interleave(torch.arange(len(touched)), counts)
        column = torch.arange(len(order)) - (counts.cumsum(0) - counts)[row]  # rank among the group's candidates
        kept = column < self.k
        order, row, column = order[kept], row[kept], column[kept]
        new_keys = self.keys.new_full((len(touched), self.k), -torch.inf)
        new_payload = self.payload.new_zeros(len(touched), self.k, self.payload.shape[2])
        new_keys[row, column] = keys[order]
        new_payload[row, column] = payload[order]
        merged_keys = torch.cat([self.keys[touched], new_keys], dim=1)  # (touched, 2k), earlier ones first
        merged_payload = torch.cat([self.payload[touched], new_payload], dim=1)
        best_keys, best = merged_keys.sort(dim=1, descending=True, stable=True)
        self.keys[touched] = best_keys[:, : self.k]
        chosen = best[:, : self.k].unsqueeze(2).expand(-1, -1, payload.shape[1])
        self.payload[touched] = merged_payload.gather(1, chosen)
        self.thresholds[touched] = self.keys[touched, -1]

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Everything kept: groups (M,), ranks (M,) from 0, payload (M, payload_size); by group, then by rank."""
        groups, ranks = torch.isfinite(self.keys).nonzero(as_tuple=True)
        return groups, ranks, self.payload[groups, ranks]
