"""The only definitions of what is measured of an SAE: how well it reconstructs, what its model still predicts, and how
its features are spread.

The pages quote `DEFINITIONS`, `docs/metrics.md` says more. Training, indexing and evaluation accumulate with the
`Running…` classes, which take a corpus batch by batch and give what the formula gives over all of it at once; tests
hold each against the plain formula. Nothing here imports torch, so that the pages can read this module.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sae_core.records import Histogram

if TYPE_CHECKING:
    from torch import Tensor

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "l0": "How many features are active on a token, on average.",
        "fvu": "Fraction of variance unexplained: what of the activations' spread around their mean the SAE does not "
        "reconstruct. 0 is perfect, 1 is no better than the mean.",
        "explained_variance": "1 − FVU: what of the activations' spread around their mean the SAE does reconstruct. "
        "The mean is taken over the whole corpus, not over batches.",
        "cosine": "How alike in direction a reconstruction and the vector that it stands for are, on average over "
        "tokens: 1 is the same direction, 0 a right angle.",
        "reconstruction_bias": "How long reconstructions are, against the length at which they would fit best. 1 is "
        "right; below 1 they are too short, which is what an L1 penalty does (shrinkage).",
        "ce_recovered": "How much of the model's predictive skill survives when the SAE's reconstruction takes the "
        "place of its activations: 1 is all of it, 0 is as bad as putting zeros there.",
        "ce_loss": "The model's own loss on this text: how many nats of surprise the next token is, on average. Lower "
        "is better.",
        "ce_loss_with_sae": "The model's loss when the SAE's reconstruction takes the place of its activations.",
        "ce_loss_with_zeros": "The model's loss when zeros take the place of its activations.",
        "kl": "How far the model's predictions move when the SAE's reconstruction takes the place of its activations, "
        "in nats per token. 0 is not at all. The loss looks at the token that came, this at all that might have.",
        "density": "The share of tokens on which a feature is active.",
        "dead": "A dead feature was active on no token of this corpus.",
        "dense": "A dense feature is active on more tokens than the threshold allows; few such mean one thing.",
        "encoder_decoder": "The cosine between the direction that a feature reads and the direction that it writes. "
        "Near 1: it detects what it represents. Near 0: it reads a sign of something and writes something else.",
    }
)

LEAST_EXPONENT = -6  # log10 of the left end of density histograms; rarer features stand in the first bin
BINS_PER_DECADE = 8
COSINE_BINS = 40  # from −1 to 1
_TINY = 1e-30  # keeps the cosine of a zero vector at 0


@dataclass(slots=True)
class Total:
    """A sum of float64 numbers or tensors whose rounding errors are summed up beside it (TwoSum, Knuth 1969), so that
    the order of the terms does not show in its value, and totals of two parts add up to the total of the whole."""

    _sum: Any = 0.0
    _error: Any = 0.0

    def add(self, term: Any) -> None:
        total = self._sum + term
        taken = total - self._sum
        self._error = self._error + ((self._sum - (total - taken)) + (term - taken))
        self._sum = total

    def merge(self, other: "Total") -> None:
        self.add(other._sum)
        self._error = self._error + other._error

    @property
    def value(self) -> Any:
        return self._sum + self._error


@dataclass(slots=True)
class RunningFVU:
    """Σ‖x−x̂‖² / Σ‖x−x̄‖², with x̄ the mean over everything that was added. Accumulates in float64.

    Sums are taken around `shift`, the first batch's mean unless another is given, so that a large common offset costs
    no digits.
    """

    n: int = 0
    shift: "Tensor | None" = None
    _squared_error: Total = field(default_factory=Total)
    _sum: Total = field(default_factory=Total)
    _squares: Total = field(default_factory=Total)

    def add(self, model_acts: "Tensor", squared_error: float) -> None:
        """Adds a batch of vectors (N, d_in) and the sum of their squared reconstruction errors."""
        if self.shift is None:
            self.shift = model_acts.mean(dim=0)
        centred = model_acts - self.shift
        self.n += len(model_acts)
        self._squared_error.add(squared_error)
        self._sum.add(centred.sum(dim=0).cpu().double())  # on the CPU, as not every GPU has float64
        self._squares.add(float(centred.square().sum(dim=1).cpu().double().sum()))

    @property
    def squared_error(self) -> float:
        return float(self._squared_error.value)

    @property
    def value(self) -> float:
        """FVU so far; NaN if the activations do not vary."""
        if self.n == 0:
            return float("nan")
        total = float(self._squares.value) - float(self._sum.value.square().sum()) / self.n
        return self.squared_error / total if total > 0 else float("nan")


def explained_variance(fvu: float) -> float:
    """1 − FVU, with FVU's mean over the whole set: what SAELens since version 6 calls explained_variance."""
    return 1 - fvu


@dataclass(slots=True)
class RunningReconstruction:
    """How well `sae_out` stands for the activations it reconstructs, over everything that was added.

    fvu                   as `RunningFVU`
    cosine                mean over tokens of x·x̂ / (‖x‖ ‖x̂‖)
    reconstruction_bias   Σ‖x̂‖² / Σ x·x̂, the γ that minimises Σ‖x̂/γ − x‖² (Rajamanoharan et al. 2024, arXiv
                          2404.16014, eq. 10)
    """

    _fvu: RunningFVU = field(default_factory=RunningFVU)
    _cosines: Total = field(default_factory=Total)
    _squared_norm: Total = field(default_factory=Total)  # Σ‖x̂‖²
    _dot: Total = field(default_factory=Total)  # Σ x·x̂

    def add(self, target_acts: "Tensor", sae_out: "Tensor") -> None:
        """Adds a batch of vectors and their reconstructions, both (N, d) float32."""
        squared_norm = sae_out.square().sum(dim=1).cpu().double()  # (N,)
        dot = (target_acts * sae_out).sum(dim=1).cpu().double()
        lengths = (target_acts.square().sum(dim=1).cpu().double() * squared_norm).sqrt().clamp_min(_TINY)
        self._fvu.add(target_acts, float((target_acts - sae_out).square().sum(dim=1).cpu().double().sum()))
        self._cosines.add(float((dot / lengths).sum()))
        self._squared_norm.add(float(squared_norm.sum()))
        self._dot.add(float(dot.sum()))

    def centre_on(self, first_acts: "Tensor") -> None:
        """Takes sums around the mean of these vectors (N, d), so that parts of a corpus can be merged: those that are
        have the same."""
        self._fvu.shift = first_acts.mean(dim=0)

    def state(self) -> dict[str, Any]:
        """All of it as numbers and tensors, for `restore`."""
        fvu = self._fvu
        totals = [(total._sum, total._error) for total in self._totals()]
        return {"n": fvu.n, "shift": fvu.shift, "totals": totals}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._fvu.n, self._fvu.shift = state["n"], state["shift"]
        for total, (so_far, error) in zip(self._totals(), state["totals"], strict=True):
            total._sum, total._error = so_far, error

    def _totals(self) -> tuple[Total, ...]:
        fvu = self._fvu
        return (fvu._squared_error, fvu._sum, fvu._squares, self._cosines, self._squared_norm, self._dot)

    def merge(self, other: "RunningReconstruction") -> None:
        """Adds what another, centred on the same vectors, was given."""
        self._fvu.n += other._fvu.n
        for own, its in zip(self._totals(), other._totals(), strict=True):
            own.merge(its)

    @property
    def fvu(self) -> float:
        return self._fvu.value

    @property
    def cosine(self) -> float | None:
        return float(self._cosines.value) / self._fvu.n if self._fvu.n else None

    @property
    def reconstruction_bias(self) -> float | None:
        """None where it has no meaning: no scale of such reconstructions fits better than nothing."""
        dot = float(self._dot.value)
        return float(self._squared_norm.value) / dot if dot > 0 else None


@dataclass(slots=True)
class RunningDensity:
    """On how many tokens each feature is active. `counts` is (d_sae,) int64 on the CPU, zeros at the start."""

    counts: "Tensor"
    n_tokens: int = 0

    def add(self, features: "Tensor", n_tokens: int) -> None:
        """Adds a batch of `n_tokens` tokens: the feature (M,) int64 of each activation above 0, on the CPU."""
        self.counts += features.bincount(minlength=len(self.counts))
        self.n_tokens += n_tokens

    @property
    def densities(self) -> "Tensor":
        """The share of tokens on which each feature is active, (d_sae,) float64."""
        return self.counts.double() / max(self.n_tokens, 1)

    @property
    def l0(self) -> float:
        """Mean number of active features per token."""
        return float(self.counts.sum()) / max(self.n_tokens, 1)

    @property
    def dead_share(self) -> float:
        """Share of features that were active on no token."""
        return float((self.counts == 0).double().mean())

    def dense_share(self, threshold: float) -> float:
        """Share of features with a density above `threshold`."""
        return float((self.densities > threshold).double().mean())


@dataclass(slots=True)
class RunningPredictions:
    """What the model predicts as it is, with the SAE's reconstruction in place, and with zeros; in nats per token."""

    n: int = 0  # predicted tokens
    _own: float = 0.0
    _with_sae: float = 0.0
    _with_zeros: float = 0.0
    _kl: float = 0.0

    def add(self, token_ids: "Tensor", *, own: "Tensor", with_sae: "Tensor", with_zeros: "Tensor") -> None:
        """Adds N predictions: the tokens (N,) that came, and log-probabilities (N, vocab) float32 of all tokens."""
        self.n += len(token_ids)
        self._own += cross_entropy_sum(own, token_ids)
        self._with_sae += cross_entropy_sum(with_sae, token_ids)
        self._with_zeros += cross_entropy_sum(with_zeros, token_ids)
        self._kl += float(kl_divergence(own, with_sae).cpu().double().sum())

    @property
    def ce_loss(self) -> float:
        return self._own / max(self.n, 1)

    @property
    def ce_loss_with_sae(self) -> float:
        return self._with_sae / max(self.n, 1)

    @property
    def ce_loss_with_zeros(self) -> float:
        return self._with_zeros / max(self.n, 1)

    @property
    def kl(self) -> float:
        """Mean KL(model ‖ model with reconstruction)."""
        return self._kl / max(self.n, 1)

    @property
    def ce_recovered(self) -> float | None:
        return ce_recovered(
            loss=self.ce_loss, loss_with_sae=self.ce_loss_with_sae, loss_with_zeros=self.ce_loss_with_zeros
        )


def cross_entropy_sum(log_probs: "Tensor", token_ids: "Tensor") -> float:
    """Σ −log p(token) in nats, for log-probabilities (N, vocab) and the tokens (N,) that came."""
    return -float(log_probs.gather(1, token_ids.unsqueeze(1)).cpu().double().sum())


def kl_divergence(own: "Tensor", other: "Tensor") -> "Tensor":
    """KL(own ‖ other) = Σ_v p(v) (log p(v) − log q(v)) in nats, (N,), for log-probabilities (N, vocab)."""
    return (own - other).mul_(own.exp()).sum(dim=1)


def ce_recovered(*, loss: float, loss_with_sae: float, loss_with_zeros: float) -> float | None:
    """(H₀ − H_sae) / (H₀ − H) of mean next-token losses in nats; None if zeros do not hurt the model."""
    damage = loss_with_zeros - loss
    return (loss_with_zeros - loss_with_sae) / damage if damage > 0 else None


def mean_encoder_decoder(cosines: "Tensor", counts: "Tensor") -> float | None:
    """Mean encoder·decoder cosine (d_sae,) over the features that are active somewhere; None if all are dead."""
    alive = cosines[counts > 0]
    return float(alive.double().mean()) if len(alive) else None


def density_histogram(densities: Iterable[float]) -> Histogram:
    """How many features have which log10 density, dead ones left out; bins are eighths of a decade from 1e-6 to 1."""
    counts = [0] * (-LEAST_EXPONENT * BINS_PER_DECADE)
    for density in densities:
        if density > 0:
            place = math.floor(BINS_PER_DECADE * (math.log10(density) - LEAST_EXPONENT))
            counts[min(max(place, 0), len(counts) - 1)] += 1
    edges = (LEAST_EXPONENT + i / BINS_PER_DECADE for i in range(len(counts) + 1))
    return Histogram(edges=tuple(edges), counts=tuple(counts))


def cosine_histogram(cosines: Iterable[float]) -> Histogram:
    """How many of these cosines lie where between −1 and 1, in 40 bins."""
    counts = [0] * COSINE_BINS
    for cosine in cosines:
        if not math.isnan(cosine):
            counts[min(max(math.floor((cosine + 1) * COSINE_BINS / 2), 0), COSINE_BINS - 1)] += 1
    edges = (2 * i / COSINE_BINS - 1 for i in range(COSINE_BINS + 1))
    return Histogram(edges=tuple(edges), counts=tuple(counts))
