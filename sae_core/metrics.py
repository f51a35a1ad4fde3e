"""The only definitions of FVU, L0, density, dead, dense and CE recovered.

The pages quote `DEFINITIONS`; training and indexing accumulate with `RunningFVU`; tests hold both against the plain
formulas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "l0": "How many features are active on a token, on average.",
        "fvu": "Fraction of variance unexplained: what of the activations' spread around their mean the SAE does not "
        "reconstruct. 0 is perfect, 1 is no better than the mean.",
        "ce_recovered": "How much of the model's predictive skill survives when the SAE's reconstruction takes the "
        "place of its activations: 1 is all of it, 0 is as bad as putting zeros there.",
        "density": "The share of tokens on which a feature is active.",
        "dead": "A dead feature was active on no token of this corpus.",
        "dense": "A dense feature is active on more tokens than the threshold allows; few such mean one thing.",
    }
)


@dataclass(slots=True)
class RunningFVU:
    """Σ‖x−x̂‖² / Σ‖x−x̄‖², with x̄ the mean over everything that was added. Accumulates in float64.

    Sums are taken around the first batch's mean, so that a large common offset costs no digits.
    """

    n: int = 0
    squared_error: float = 0.0
    _shift: "Tensor | None" = None
    _sum: "Tensor | None" = None
    _squares: float = 0.0

    def add(self, model_acts: "Tensor", squared_error: float) -> None:
        """Adds a batch of vectors (N, d_in) and the sum of their squared reconstruction errors."""
        if self._shift is None or self._sum is None:
            self._shift = model_acts.mean(dim=0)
            self._sum = self._shift.double() * 0
        centred = model_acts - self._shift
        self.n += len(model_acts)
        self.squared_error += squared_error
        self._sum += centred.sum(dim=0).double()
        self._squares += float(centred.square().sum(dim=1).double().sum())

    @property
    def value(self) -> float:
        """FVU so far; NaN if the activations do not vary."""
        if self.n == 0 or self._sum is None:
            return float("nan")
        total = self._squares - float(self._sum.square().sum()) / self.n
        return self.squared_error / total if total > 0 else float("nan")


def ce_recovered(*, loss: float, loss_with_sae: float, loss_with_zeros: float) -> float | None:
    """(H₀ − H_sae) / (H₀ − H) of mean next-token losses in nats; None if zeros do not hurt the model."""
    damage = loss_with_zeros - loss
    return (loss_with_zeros - loss_with_sae) / damage if damage > 0 else None
