"""What steering does to the model's vectors, for a batch of columns that are written at the same time.

    add      h ← h + dose · value · W_dec[i]
    clamp    h ← h + dose · δ · W_dec[i], with δ such that the encoder reads `value` where dose is 1

The encoder reads a feature's own direction only in part (W_enc[:, i] · W_dec[i] is often near ½), so δ is the missing
activation over that product; where several features are clamped, the δ solve the small linear system of all of them.
An SAE that normalises what it reads is clamped in steps, as its readings are not linear; its directions are scaled as
its reconstructions are. A clamp to 0 leaves tokens alone on which the feature is not active. A transcoder's encoder
reads another place than the one that is changed: there δ = value − activation, so that what the feature writes is
value · W_dec[i].

All changes are differences, so the reconstruction's error stays in the stream and cannot undo them. The control is
changed by as much, on each token, as its own pushes would change it, but in one random direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_core.causal.records import Measured, Push
from sae_core.errors import PromptError
from sae_core.input_norm import INPUT_NORMS
from sae_core.sae import SAE

CLAMP_STEPS = 40  # for an SAE that normalises what it reads
LEAST_READ = 0.02  # of its own direction that an encoder must read for a clamp: below, δ would be fifty times as long


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnEdit:
    """How one column is changed; without pushes, or with a dose of 0, not at all."""

    pushes: tuple[Push, ...] = ()
    dose: float = 1.0
    is_control: bool = False

    @property
    def changes(self) -> bool:
        return bool(self.dose) and any(push.value or push.mode == "clamp" for push in self.pushes)


class Tally:
    """Means over the tokens that were changed in one column."""

    def __init__(self, features: Sequence[int]) -> None:
        self._features = features
        self._n = 0
        self._norms = self._ratios = 0.0
        self._before = torch.zeros(len(features), dtype=torch.float64)
        self._after = torch.zeros(len(features), dtype=torch.float64)

    def add(self, *, before: Tensor, after: Tensor, push: Tensor, stream: Tensor) -> None:
        """`before` and `after` (n, F); `push` and `stream` (n, d): the change, and what was changed."""
        norms = push.norm(dim=1).cpu().double()
        self._n += len(norms)
        self._norms += float(norms.sum())
        self._ratios += float((norms / stream.norm(dim=1).cpu().double().clamp_min(1e-12)).sum())
        self._before += before.cpu().double().sum(dim=0)
        self._after += after.cpu().double().sum(dim=0)

    @property
    def push_norm(self) -> float | None:
        return self._norms / self._n if self._n else None

    @property
    def push_ratio(self) -> float | None:
        return self._ratios / self._n if self._n else None

    def measured(self, *, reads_back: bool) -> tuple[Measured, ...]:
        if not self._n:
            return ()
        means = zip(self._features, (self._before / self._n).tolist(), (self._after / self._n).tolist(), strict=True)
        return tuple(
            Measured(feature_index=i, before=before, after=after if reads_back else None) for i, before, after in means
        )


class Edits:
    """The edit of a batch whose rows are columns; `where` says on which of the tokens about to be run."""

    def __init__(self, sae: SAE, columns: Sequence[ColumnEdit], *, seed: int) -> None:
        """Raises PromptError for a clamp that the encoder would not notice."""
        self.columns = columns
        self.where: Tensor | None = None  # (B, n); None: on all of them
        self.tallies = [Tally([push.feature_index for push in column.pushes]) for column in columns]
        self._sae = sae
        noise = torch.randn(sae.d_out, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self._random = (noise / noise.norm()).float().to(sae.W_dec.device)
        for column in columns:
            self._check_clamps(column)

    def __call__(self, read: Tensor, write: Tensor) -> Tensor | None:
        """`write` (B, n, d_out) as it is after the change; `read` (B, n, d_in) is what the encoder sees."""
        if not any(column.changes for column in self.columns):
            return None
        edited = write.clone()
        wheres = torch.ones_like(write[..., 0], dtype=torch.bool) if self.where is None else self.where
        for row, (column, where) in enumerate(zip(self.columns, wheres, strict=True)):
            if column.changes and bool(where.any()):
                h = write[row, where].float()
                push = self._push(column, read[row, where].float(), h, tally=self.tallies[row])
                edited[row, where] = (h + push).to(write.dtype)
        return edited

    def _push(self, column: ColumnEdit, x: Tensor, h: Tensor, *, tally: Tally) -> Tensor:
        """The change (n, d_out) of vectors h, where the encoder reads x; notes what it did."""
        features = torch.tensor([push.feature_index for push in column.pushes], device=h.device)
        before = self._activations(x, features)
        push = self._added(column, x, h)
        clamped = [i for i, one in enumerate(column.pushes) if one.mode == "clamp"]
        if clamped:
            push = push + self._clamped(column, clamped, x, push)
        push = column.dose * push
        if column.is_control:
            push = push.norm(dim=1, keepdim=True) * self._random
        after = before if self._sae.is_transcoder else self._activations(h + push, features)
        tally.add(before=before, after=after, push=push, stream=h)
        return push

    def _added(self, column: ColumnEdit, x: Tensor, h: Tensor) -> Tensor:
        push = torch.zeros_like(h)
        for one in column.pushes:
            if one.mode == "add":
                push = push + one.value * self._sae.W_dec[one.feature_index].float()
        return push * self._scale(x)

    def _scale(self, x: Tensor) -> Tensor | float:
        """What a token's reconstruction is multiplied with, (n, 1)."""
        scale = INPUT_NORMS[self._sae.input_norm](x).scale
        return 1.0 if scale is None else scale

    def _clamped(self, column: ColumnEdit, clamped: Sequence[int], x: Tensor, added: Tensor) -> Tensor:
        """What the clamps add to x once the other pushes have been added."""
        features = torch.tensor([column.pushes[i].feature_index for i in clamped], device=x.device)
        values = torch.tensor([column.pushes[i].value for i in clamped], device=x.device).expand(len(x), -1)
        if self._sae.is_transcoder:
            return (values - self._activations(x, features)) @ self._sae.W_dec[features].float()
        first = x + added
        readings = self._sae.readings(first, features)
        stays = (values == 0) & (self._activations(first, features) == 0)
        goals = torch.where(stays, readings, values)
        slopes, scale = self._sae.slopes(features).float(), self._scale(x)
        pushed = first
        for _ in range(1 if isinstance(scale, float) else CLAMP_STEPS):
            gaps = goals - self._sae.readings(pushed, features)
            missing = torch.linalg.solve(slopes, gaps, left=False)
            pushed = pushed + scale * (missing @ self._sae.W_dec[features].float())
        return pushed - first

    def _activations(self, x: Tensor, features: Tensor) -> Tensor:
        """What the encoder reads of these features, (n, F)."""
        rows, indices, values = self._sae.encode(x).active()
        found = x.new_zeros(len(x), len(features))
        for column, feature_index in enumerate(features.tolist()):
            is_it = indices == feature_index
            found[rows[is_it], column] = values[is_it]
        return found

    def _check_clamps(self, column: ColumnEdit) -> None:
        clamped = [push.feature_index for push in column.pushes if push.mode == "clamp"]
        if not clamped or self._sae.is_transcoder:
            return
        slopes = self._sae.slopes(torch.tensor(clamped, device=self._sae.W_dec.device)).cpu().double()
        weakest = float(torch.linalg.svdvals(slopes).min())
        if weakest < LEAST_READ or bool((slopes.diagonal() < LEAST_READ).any()):
            names = ", ".join(str(feature_index) for feature_index in clamped)
            raise PromptError(
                f"Feature {names} cannot be clamped: the encoder hardly notices its direction; add it instead."
                if len(clamped) == 1
                else f"Features {names} cannot be clamped together: the encoder cannot tell them apart; clamp fewer."
            )
