"""What a sharded SAE needs from the other ranks (`ranks`): exact selection over all slices, sums in both directions.

A rank's code holds entries of its own features (or, sharing rows, of its own rows). What a rank sends per batch of N
tokens: N · k values to choose among and as many bytes of answers (BatchTopK: N · k values to every other rank), and its
part of the sum of the slices' reconstructions (N, d_out).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sae_core.ranks import Ranks
from sae_core.sparse import SparseCode


def add_up(own: Tensor, ranks: Ranks) -> Tensor:
    """The sum of every rank's tensor; the gradient goes to each as it is."""
    return _AddUp.apply(own, ranks) if ranks.shards_features else own  # type: ignore[no-untyped-call]


def same_on_all(parameter: Tensor | None, ranks: Ranks) -> Tensor | None:
    """A parameter that every rank holds whole; the gradients that reach it here on all ranks are added up."""
    if parameter is None or not ranks.shards_features:
        return parameter
    return _SameOnAll.apply(parameter, ranks)  # type: ignore[no-any-return, no-untyped-call]


def over_rows(own: Tensor, ranks: Ranks) -> Tensor:
    """The sum over the ranks that share a batch's rows; the gradient goes to each rank's summand as it is."""
    return _AddUp.apply(own, ranks) if ranks.shares_rows else own  # type: ignore[no-untyped-call]


def largest_of_rows(code: SparseCode, k: int, ranks: Ranks) -> SparseCode:
    """Of each row's entries on all ranks the k largest; this rank's among them. A row has as many entries on each.

    Each row is decided by one rank, to which the others send their values and which answers with what is kept.
    """
    if not ranks.shards_features:
        return code
    own = code.values.detach().view(code.n_rows, -1)  # (N, entries a row)
    widths = ranks.numbers(own.shape[1])
    widest = max(widths)
    if not widest:
        return code
    asked = ranks.to_owners(functional.pad(own, (0, widest - own.shape[1]), value=-torch.inf))
    everything = asked.transpose(0, 1).flatten(1)  # (rows to decide, ranks · widest)
    chosen = everything.topk(min(k, sum(widths)), dim=1, sorted=False).indices
    answers = torch.zeros_like(everything, dtype=torch.uint8).scatter_(1, chosen, 1)
    kept = ranks.from_owners(answers.view(-1, ranks.size, widest).transpose(0, 1), len(own))
    return _kept(code, kept[:, : own.shape[1]].flatten().bool())


def largest_of_batch(code: SparseCode, n: int, ranks: Ranks) -> SparseCode:
    """Of the entries on all ranks the n largest; this rank's among them."""
    if ranks.size == 1:
        return code
    counts = ranks.numbers(len(code.values))
    padded = functional.pad(code.values.detach(), (0, max(counts) - len(code.values)), value=-torch.inf)
    everything = torch.cat(ranks.gathered(padded))
    chosen = everything.topk(min(n, sum(counts)), sorted=False).indices
    kept = torch.zeros(len(everything), dtype=torch.bool, device=everything.device)
    kept[chosen] = True
    first = ranks.rank * max(counts)
    return _kept(code, kept[first : first + len(code.values)])


def _kept(code: SparseCode, kept: Tensor) -> SparseCode:
    offsets = functional.pad(kept.cumsum(0), (1, 0))[code.offsets]
    return SparseCode(offsets, code.indices[kept], code.values[kept], d_sae=code.d_sae)


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum(own.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _SameOnAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(grads[0].clone()), None
