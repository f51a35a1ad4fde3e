"""Train one SAE from batches of activations, wherever they come from.

1. Scale inputs so that their mean norm is √d_in (a transcoder's targets: √d_out); start `b_dec` at the mean of the
   first batch, `W_enc` at `W_decᵀ`.
2. For each batch: the architecture's loss (`losses`).
3. AuxK, for the TopK family, if asked for: features that have not fired for `dead_after_tokens` reconstruct what is
   left of the error, and that loss counts with `aux_coefficient`.
4. One step of Adam along the gradient set to length 1 (`optimise`); rows of `W_dec` keep unit norm.
5. Raise the bias of features that have not fired for `dead_after_tokens`, until they fire and get
   a gradient of the loss itself.
6. At the end, fold the scales into the weights.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_core import losses, optimise, select
from sae_core.config import PENALISED, TrainConfig
from sae_core.errors import ConfigError, TrainingError
from sae_core.ranks import Ranks
from sae_core.sae import ARCHITECTURES, SAE, JumpReLUSAE

AUXILIARY = ("topk", "batchtopk", "matryoshka")  # have an auxiliary loss for dead features
SHARDABLE = ("topk", "batchtopk")  # can be spread over ranks by features
_FIRST_SPARSITY = 0.1  # where steering the L1 penalty to k starts
_START_FACTOR = 4.0  # L0 at the start of architectures without a k of their own, in units of k
START_ROWS = 1024  # on which that is set
_STEERING_PACE = 20.0  # over the whole run, in factors of e per factor of e that L0 is off


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Means over the steps since the last reading."""

    tokens: int
    fvu: float
    l0: float
    dead_share: float
    loss: float


class Trainee:
    """An SAE in training, with everything that decides its next step."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        d_in: int,
        d_out: int | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
    ) -> None:
        """`d_out` is the width of a transcoder's targets. With `ranks` that shard features, this is one slice."""
        self.config = config
        self.ranks = ranks or Ranks()
        check_ranks(config, self.ranks)
        self._features = self.ranks.share_of(config.d_sae) if self.ranks.shards_features else slice(0, config.d_sae)
        d_sae = self._features.stop - self._features.start
        self.sae: SAE = ARCHITECTURES[config.architecture](d_in, d_sae, config.k, d_out=d_out)
        self._start_weights()
        self.sae.to(device)
        self.sae.ranks = self.ranks
        self.sae.selects_in_bfloat16 = select.bfloat16_is_faster(torch.device(device))
        self.optimizer = optimise.adam(config, self.sae)
        self.n_tokens = 0
        self.tokens_since_fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self._scales: tuple[float, float] | None = None  # of inputs and targets
        self._n_dead: Tensor | None = None  # features on all ranks, after the last step
        self._sparsity = _FIRST_SPARSITY if config.sparsity is None and config.architecture in PENALISED else 1.0
        if config.sparsity is not None:
            self._sparsity = config.sparsity
        self._start_reading()

    @property
    def is_done(self) -> bool:
        return self.n_tokens >= self.config.tokens

    @property
    def dead_after_tokens(self) -> int:
        """Tokens without firing after which a feature counts as dead while training."""
        return self.config.dead_after_tokens or max(self.config.tokens // 64, 4 * self.config.batch_tokens)

    def step(self, model_acts: Tensor, targets: Tensor | None = None) -> None:
        """One step on model_acts (N, d_in) and, for a transcoder, targets (N, d_out).

        Raises TrainingError if they hold NaN or infinity; the weights are then as they were before.
        """
        if self._scales is None:
            self._start(model_acts, targets)
        assert self._scales is not None
        x = model_acts * self._scales[0]
        y = x if targets is None else targets * self._scales[1]
        variance = torch.linalg.vector_norm(y - y.mean(dim=0)).square()
        self._check(variance if targets is None else variance + x.sum())
        variance = variance.clamp_min(1e-12)
        if self.ranks.shares_rows:
            rows = self.ranks.share_of(len(x))
            x, y = x[rows], y[rows]
        terms = losses.Terms(variance, self._sparsity * self._sparsity_share(), self.config.multi_topk)
        outcome = losses.outcome(self.sae, x, y, terms)
        loss = outcome.loss
        squared_error = outcome.squared_error.detach()
        if self.config.aux_coefficient and self.config.architecture in AUXILIARY:
            dead = (self.tokens_since_fired >= self.dead_after_tokens).nonzero().squeeze(1)
            if self._any_is_dead(dead):
                loss = loss + self.config.aux_coefficient * losses.aux_loss(self.sae, x, outcome.error, dead)
        self._check(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.ranks.shares_rows:
            for parameter in self.sae.parameters():
                if parameter.grad is not None:
                    self.ranks.sum(parameter.grad)
        optimise.move(
            self.sae,
            self.optimizer,
            rate=optimise.learning_rate(self.config) * optimise.learning_rate_share(self.config, self.n_tokens),
            keeps_unit_norm=self.config.architecture != "relu",
            total_of=self.ranks.sum if self.ranks.shards_features else None,
        )
        n = len(model_acts)
        fired = self.ranks.any(outcome.fired) if self.ranks.shares_rows else outcome.fired
        self.n_tokens += n
        self.tokens_since_fired.add_(n).masked_fill_(fired, 0)
        n_dead = (self.tokens_since_fired >= self.dead_after_tokens).sum()
        own = torch.stack((squared_error, loss.detach(), outcome.n_active.to(loss.dtype), n_dead.to(loss.dtype)))
        squared_error, loss, n_active, self._n_dead = self._over_ranks(own)
        self._lift_dead()
        self._steer(n_active, n)
        self._n_read += n
        self._n_steps += 1
        self._sums += torch.stack((squared_error, variance, n_active, loss))

    def _over_ranks(self, own: Tensor) -> Tensor:
        """Squared error, loss, active and dead features over all ranks; where each has the whole of one, as it is."""
        if self.ranks.shares_rows:
            own[:3] = self.ranks.sum(own[:3].clone())
        if self.ranks.shards_features:
            own[2:] = self.ranks.sum(own[2:].clone())
        return own

    def _any_is_dead(self, dead: Tensor) -> bool:
        """Whether this rank's features, or those of others, are dead; what the last step counted is known to all."""
        if not self.ranks.shards_features:
            return len(dead) > 0
        if self._n_dead is None:
            self._n_dead = self.ranks.sum(torch.tensor(float(len(dead)), device=dead.device))
        return bool(self._n_dead)

    def read_metrics(self) -> StepMetrics | None:
        """Means over the steps since the last reading; None if there were none."""
        if not self._n_steps:
            return None
        squared_error, variance, n_active, loss = self._sums.tolist()
        is_dead = (self.tokens_since_fired >= self.dead_after_tokens).float()
        n_dead = is_dead.sum() if not self.ranks.shards_features else self.ranks.sum(is_dead.sum())
        metrics = StepMetrics(
            tokens=self.n_tokens,
            fvu=squared_error / variance if variance > 0 else math.nan,
            l0=n_active / self._n_read,
            dead_share=float(n_dead) / self.config.d_sae,
            loss=loss / self._n_steps,
        )
        self._start_reading()
        return metrics

    def finished(self) -> SAE:
        """The SAE as it stands, in the units of model_acts."""
        self.optimizer.zero_grad(set_to_none=True)  # makes room
        sae = self._whole().eval().requires_grad_(False)
        if self.config.architecture == "relu":
            sae.fold_decoder_norms()
        if self._scales is not None:
            sae.fold_input_scale(*self._scales)
        return sae

    def _whole(self) -> SAE:
        """A copy of the SAE, put together from the ranks' slices on the first; the others get its shape only."""
        d_out = self.sae.d_out if self.sae.is_transcoder else None
        with torch.device("meta"):
            kind = ARCHITECTURES[self.config.architecture]
            whole = kind(self.sae.d_in, self.config.d_sae, self.config.k, d_out=d_out)
        if self.ranks.is_first or not self.ranks.shards_features:
            whole.to_empty(device="cpu")
        own = self.sae.state_dict()
        with torch.no_grad():
            for name, tensor in whole.state_dict().items():
                if self.ranks.shards_features and name not in ("b_dec", "threshold"):
                    rows = tensor.T if name == "W_enc" else tensor
                    own_rows = own[name].T if name == "W_enc" else own[name]
                    for rank, part in enumerate(self.ranks.one_by_one(own_rows)):
                        rows[self.ranks.share_of(len(rows), rank)] = part
                else:
                    tensor.copy_(own[name])
        return whole

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on bit for bit: save it, or copy it, before the next step changes it."""
        return {
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "n_tokens": self.n_tokens,
            "tokens_since_fired": self.tokens_since_fired,
            "scales": self._scales,
            "sparsity": self._sparsity,
            "reading": (self._sums, self._n_read, self._n_steps),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.n_tokens = state["n_tokens"]
        self.tokens_since_fired = state["tokens_since_fired"]
        self._scales = state["scales"]
        self._sparsity = state["sparsity"]
        self._n_dead = None
        self._sums, self._n_read, self._n_steps = state["reading"]

    @torch.no_grad()
    def _start_weights(self) -> None:
        """Random unit directions; those of a feature depend on the seed and its own number only, not on the slice."""
        sae, config = self.sae, self.config
        d_in, d_out = sae.W_enc.shape[0], sae.W_dec.shape[1]
        directions = _directions(self._features, d_in, seed=2 * config.seed)
        sae.W_enc.T.copy_(directions)
        sae.W_dec.copy_(
            _directions(self._features, d_out, seed=2 * config.seed + 1) if sae.is_transcoder else directions
        )

    @torch.no_grad()
    def _start(self, model_acts: Tensor, targets: Tensor | None) -> None:
        """The scales and the decoder's bias from the first batch."""
        goal = model_acts if targets is None else targets
        scale, target_scale = (
            math.sqrt(acts.shape[1]) / float(acts.norm(dim=1).mean().clamp_min(1e-12)) for acts in (model_acts, goal)
        )
        if not (scale > 0 and target_scale > 0):  # infinity has made it 0
            raise TrainingError(_NOT_FINITE.format(batch=1))
        self._scales = (scale, target_scale)
        self.sae.b_dec.copy_(goal.mean(dim=0) * target_scale)
        if self.config.architecture not in AUXILIARY:
            self._start_sparse(model_acts[:START_ROWS] * scale)

    def _start_sparse(self, x: Tensor) -> None:
        """Sets b_enc (for JumpReLU the thresholds) so that L0 on the rows x starts at 4k, the same for each feature.

        With zeros half of all features would start active on every token: as many times slower, and far from k.
        """
        share = min(0.5, _START_FACTOR * self.config.k / self.config.d_sae)
        pre_acts = self.sae.pre_acts(x)  # (rows, d_sae)
        bound = pre_acts.kthvalue(max(1, round((1 - share) * len(x))), dim=0).values
        if isinstance(self.sae, JumpReLUSAE):
            self.sae.log_threshold.copy_(bound.clamp_min(losses.JUMP_WIDTH).log())
        else:
            self.sae.b_enc.sub_(bound)

    def _check(self, number: Tensor) -> None:
        """Before anything moves; on a GPU only now and then, since looking means waiting for it."""
        batch = self.n_tokens // self.config.batch_tokens + 1
        if (number.device.type == "cpu" or batch % 64 == 1) and not math.isfinite(float(number)):
            raise TrainingError(_NOT_FINITE.format(batch=batch))

    def _sparsity_share(self) -> float:
        warmup = self.config.sparsity_warmup_share * self.config.tokens
        return min(1.0, (self.n_tokens + self.config.batch_tokens) / warmup) if warmup else 1.0

    @torch.no_grad()
    def _lift_dead(self) -> None:
        """Raises the encoder bias of dead features by some learning rates; the loss settles what becomes of them."""
        if self.config.bias_lift:
            rate = optimise.learning_rate(self.config) * optimise.learning_rate_share(self.config, self.n_tokens)
            is_dead = self.tokens_since_fired >= self.dead_after_tokens
            self.sae.b_enc.add_(is_dead, alpha=self.config.bias_lift * rate)

    def _steer(self, n_active: Tensor, n: int) -> None:
        """Moves the L1 penalty's weight so that L0 comes to k, unless a weight was given."""
        if self.config.sparsity is None and self.config.architecture in PENALISED:
            off = math.log(max(float(n_active) / n, 1e-3) / self.config.k)
            pace = min(0.1, _STEERING_PACE * n / self.config.tokens)
            self._sparsity *= math.exp(pace * max(-1.0, min(1.0, off)))

    def _start_reading(self) -> None:
        self._sums = torch.zeros(4, device=self.tokens_since_fired.device)
        self._n_read = self._n_steps = 0


def _directions(features: slice, d: int, *, seed: int) -> Tensor:
    """Unit vectors (features, d), drawn in blocks that each have a generator of their own."""
    first, last = features.start // _BLOCK, -(-features.stop // _BLOCK)
    drawn = []
    for block in range(first, last):
        generator = np.random.default_rng((seed, block))  # torch's would take no more than 32 bits of both
        drawn.append(torch.from_numpy(generator.standard_normal((_BLOCK, d), np.float32)))
    rows = torch.cat(drawn)[features.start - first * _BLOCK :][: features.stop - features.start]
    return torch.nn.functional.normalize(rows, dim=1)


def check_ranks(config: TrainConfig, ranks: Ranks) -> None:
    """Raises ConfigError if these processes cannot train this SAE together."""
    if ranks.size == 1:
        return
    if ranks.shards_features and config.architecture not in SHARDABLE:
        raise ConfigError(
            f"Features of the architecture {config.architecture} cannot be sharded; use --shard data, "
            f"or one of the architectures {', '.join(SHARDABLE)}."
        )
    if ranks.shards_features and config.multi_topk:
        raise ConfigError("Features cannot be sharded with --multi-topk; use --shard data, or leave it out.")
    if ranks.shards_features and config.d_sae % ranks.size:
        raise ConfigError(f"d_sae ({config.d_sae}) must be a multiple of the number of processes ({ranks.size}).")
    if ranks.shares_rows and config.batch_tokens % ranks.size:
        raise ConfigError(
            f"batch_tokens ({config.batch_tokens}) must be a multiple of the number of processes ({ranks.size})."
        )


_BLOCK = 16  # features whose initial directions come from one generator
_NOT_FINITE = (
    "Batch {batch} of the activations holds NaN or infinity; load the model in another --dtype (bfloat16 has the range "
    "of float32, float16 has not), or leave out the text that does it."
)
