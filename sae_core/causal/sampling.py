"""From logits to a token: temperature, top-p, and one random number for all columns.

All columns of a run are drawn with the same number at each step, so that two columns differ because their
distributions do: where these are equal the texts are.
"""

import torch
from torch import Tensor


def sample(logits: Tensor, *, temperature: float, top_p: float, draw: float) -> Tensor:
    """One token id for each row of logits (B, vocab). `draw` in [0, 1) decides; at temperature 0 it is the likeliest.

    The tokens are laid out by falling probability, those kept whose forerunners have less than top_p together (Holtzman
    et al. 2019, arXiv 1904.09751), and the one taken on which `draw` falls.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    wide = logits.float() if logits.device.type == "mps" else logits.double()
    probabilities, ids = (wide / temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
    sums = probabilities.cumsum(dim=1)
    kept = probabilities * (sums - probabilities < top_p)
    sums = kept.cumsum(dim=1)
    places = torch.searchsorted(sums, draw * sums[:, -1:], right=True)
    n_kept = (kept > 0).sum(dim=1, keepdim=True)
    return ids.gather(1, places.minimum(n_kept - 1))[:, 0]
