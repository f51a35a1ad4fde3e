"""Sparse autoencoders: encode, decode, save, load; one class per architecture around one core.

    pre_acts     = (model_acts − b_dec) @ W_enc + b_enc      (N, d_sae)
    feature_acts = what the architecture keeps of them       (N, d_sae), as a `SparseCode`
    sae_out      = feature_acts @ W_dec + b_dec              (N, d_out)

What each keeps:

    relu        ReLU(pre_acts)                                             Conerly et al. 2024, transformer-circuits.pub
    gated       where pre_acts > 0: ReLU(exp(r_mag) · (pre_acts − b_enc) + b_mag)   Rajamanoharan et al. 2404.16014
    jumprelu    pre_acts where they exceed the feature's threshold         Rajamanoharan et al. 2407.14435
    topk        the k largest of a token, if positive                      Gao et al. 2406.04093
    batchtopk   the k · N largest of a batch of N tokens; in use, those    Bussmann et al. 2412.06410
                above one threshold that gives k on average
    matryoshka  the same, its features trained in nested groups            Bussmann et al. 2503.17547
    groupmax    the largest of each of k groups of features, if positive   EleutherAI/sparsify

Where the paper reads model_acts without subtracting b_dec (relu, jumprelu), and in a transcoder, whose b_dec lives in
another space than its inputs, nothing is subtracted. A transcoder reads one hook point and predicts another
(Dunefsky et al. 2406.11944); for an SAE the two are the same.

What is trained here has rows of `W_dec` of unit norm, so that an activation is the length of what the feature adds to
`sae_out`, in the units of the model's own activations: whoever loads the weights feeds them the model's vectors as they
are. What was trained elsewhere (`formats`) computes what it computed there, whatever its norms, and may also have

    subtracts_b_dec   the other choice than its architecture's
    input_norm        model_acts are normalised token by token, and what comes out is scaled back (`input_norm`)
    W_skip            sae_out has model_acts @ W_skip.T added to it (skip transcoders, Paulo et al. 2501.18823)
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_core import select, sparse
from sae_core.errors import WeightsError
from sae_core.input_norm import INPUT_NORMS
from sae_core.ranks import Ranks
from sae_core.shards import add_up, largest_of_batch, largest_of_rows, same_on_all
from sae_core.sparse import SparseCode

WEIGHTS_FILE = "sae.safetensors"
SHAPE_FILE = "sae.json"


class SAE(nn.Module):
    """The core that all architectures share. `k` is the number of features per token that it is built for."""

    architecture: ClassVar[str]
    subtracts_b_dec: bool = True  # of the architecture; an SAE that was trained elsewhere may differ
    features_compete: ClassVar[bool] = False  # whether a feature is active depends on the others' pre-activations

    def __init__(self, d_in: int, d_sae: int, k: int, *, d_out: int | None = None) -> None:
        """`d_out` makes a transcoder, even where it equals `d_in`."""
        super().__init__()
        self.k = k
        self.is_transcoder = d_out is not None
        self.input_norm = "none"  # one of INPUT_NORMS
        self.selects_in_bfloat16 = False  # see `select`; training may set it
        self.ranks = Ranks()  # training may spread features or rows over several
        directions = nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
        # (d_in, d_sae) in the memory order of (d_sae, d_in), which `sparse` is fastest with; tied at the start.
        self.W_enc = nn.Parameter(directions.T)
        if d_out is None:
            self.W_dec = nn.Parameter(directions.clone())
        else:
            self.W_dec = nn.Parameter(nn.functional.normalize(torch.randn(d_sae, d_out), dim=1))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.W_dec.shape[1]))
        self.register_parameter("W_skip", None)  # (d_out, d_in)
        self.W_skip: nn.Parameter | None

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def encoder_bias(self) -> Tensor | None:
        """What is subtracted from model_acts before they are encoded; None for nothing."""
        return self.b_dec if self.subtracts_b_dec and not self.is_transcoder else None

    def centred(self, model_acts: Tensor) -> Tensor:
        """What the encoder multiplies, (N, d_in); `b_dec`'s gradient goes through `sparse.pre_acts_at` instead."""
        x = INPUT_NORMS[self.input_norm](model_acts).x
        return x if self.encoder_bias is None else x - self.encoder_bias.detach()

    def encode(self, model_acts: Tensor) -> SparseCode:
        """The sparse code of model_acts (N, d_in)."""
        x = self.centred(model_acts)
        return self._with_rows(self._code(x, self._select(x)), model_acts)

    def _with_rows(self, code: SparseCode, model_acts: Tensor) -> SparseCode:
        """The code, with what `decode` needs to know of each token beside its features."""
        norm = INPUT_NORMS[self.input_norm](model_acts)
        if not self.is_transcoder:  # whose targets were never normalised
            code.row_scale, code.row_offset = norm.scale, norm.offset
        if self.W_skip is not None:
            skipped = model_acts @ self.W_skip.T
            code.row_offset = skipped if code.row_offset is None else code.row_offset + skipped
        return code

    def _code(self, x: Tensor, code: SparseCode) -> SparseCode:
        """The entries that were selected for centred x, with their activations as values: differentiable."""
        values = sparse.pre_acts_at(code, x, self.W_enc, self.b_enc, same_on_all(self.encoder_bias, self.ranks))
        return code.with_values(self._activation(values, code))

    def pre_acts(self, model_acts: Tensor) -> Tensor:
        """All pre-activations of model_acts (N, d_in), (N, d_sae): dense, with a dense gradient."""
        x = INPUT_NORMS[self.input_norm](model_acts).x
        centred = x if self.encoder_bias is None else x - self.encoder_bias
        return centred @ self.W_enc + self.b_enc

    def readings(self, model_acts: Tensor, features: Tensor) -> Tensor:
        """What the activations (N, F) of some features (F,) are where these are active; linear in model_acts (N, d_in).

        Where they are not, these are numbers below the feature's threshold, or too small to be among the largest.
        """
        return self.centred(model_acts) @ self.W_enc[:, features] + self.b_enc[features]

    def slopes(self, features: Tensor) -> Tensor:
        """How much `readings` of features i grow by one unit along the decoder directions of features j: (F_j, F_i)."""
        return self.W_dec[features] @ self.W_enc[:, features]

    def decode(self, code: SparseCode) -> Tensor:
        """`sae_out` (N, d_out) of a sparse code that `encode` made."""
        sae_out = add_up(sparse.decode(code, self.W_dec), self.ranks) + self.b_dec
        if code.row_scale is not None:
            sae_out = sae_out * code.row_scale
        return sae_out if code.row_offset is None else sae_out + code.row_offset

    def forward(self, model_acts: Tensor) -> Tensor:
        """`sae_out` (…, d_out) for model_acts (…, d_in)."""
        flat = model_acts.reshape(-1, self.d_in)
        return self.decode(self.encode(flat)).view(*model_acts.shape[:-1], self.d_out)

    def _select(self, x: Tensor) -> SparseCode:
        """Entries that may be active for centred x (N, d_in), with their pre-activations as values."""
        return select.above(x, self.W_enc, self.b_enc, torch.zeros_like(self.b_enc))

    def _activation(self, pre_acts: Tensor, code: SparseCode) -> Tensor:
        """Activations (E,) of the code's entries from their pre-activations."""
        return pre_acts.relu()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Sets every decoder row to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def fold_decoder_norms(self) -> None:
        """Gives decoder rows unit norm without changing `sae_out`: activations grow by the norms.

        ValueError where features compete: other ones would win.
        """
        if self.features_compete:
            raise ValueError(f"The decoder norms of the architecture {self.architecture} cannot be folded.")
        norms = self.W_dec.norm(dim=1).clamp_min(1e-8)
        self.W_dec.div_(norms.unsqueeze(1))
        self.W_enc.mul_(norms)
        self._scale_activations(norms)

    @torch.no_grad()
    def fold_input_scale(self, scale: float, target_scale: float | None = None) -> None:
        """Turns an SAE of `model_acts · scale` into the same SAE of `model_acts`; activations shrink by `scale`.

        `target_scale` is that of a transcoder's targets.
        """
        target_scale = target_scale or scale
        self.W_enc.mul_(scale / target_scale)
        self._scale_activations(self.b_enc.new_tensor(1 / target_scale))
        self.b_dec.div_(target_scale)

    @torch.no_grad()
    def fold_scale_keeping_activations(self, scale: float) -> None:
        """Turns an SAE of `model_acts · scale` into one of `model_acts` with the same activations; W_dec shrinks."""
        self.W_enc.mul_(scale)
        self.W_dec.div_(scale)
        self.b_dec.div_(scale)

    def _scale_activations(self, factor: Tensor) -> None:
        """Scales what is added to or compared with pre-activations; `factor` is a scalar or (d_sae,)."""
        self.b_enc.mul_(factor)

    def save(self, folder: Path) -> None:
        """Writes weights and shape into `folder`, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        shape: dict[str, object] = {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "k": self.k,
        }
        if self.is_transcoder:
            shape["d_out"] = self.d_out
        if self.subtracts_b_dec != type(self).subtracts_b_dec:
            shape["subtracts_b_dec"] = self.subtracts_b_dec
        if self.input_norm != "none":
            shape["input_norm"] = self.input_norm
        save_file(tensors, folder / f"{WEIGHTS_FILE}.new")
        (folder / f"{SHAPE_FILE}.new").write_text(json.dumps(shape, indent=2) + "\n")
        for name in (WEIGHTS_FILE, SHAPE_FILE):
            (folder / f"{name}.new").replace(folder / name)


class TopKSAE(SAE):
    """The k largest pre-activations of a token are active, if they are positive (Gao et al. 2024)."""

    architecture = "topk"
    features_compete = True

    def encode_top(self, model_acts: Tensor, k: int) -> SparseCode:
        """The sparse code of model_acts (N, d_in) with another k."""
        x = self.centred(model_acts)
        return self._with_rows(self._code(x, self._select_top(x, k)), model_acts)

    def _select(self, x: Tensor) -> SparseCode:
        return self._select_top(x, self.k)

    def _select_top(self, x: Tensor, k: int) -> SparseCode:
        own = select.top_k(x, self.W_enc, self.b_enc, min(k, self.d_sae), in_bfloat16=self.selects_in_bfloat16)
        return largest_of_rows(own, k, self.ranks)


class BatchTopKSAE(SAE):
    """k features a token on average: the largest of a whole batch in training, those above `threshold` in use.

    Bussmann et al. 2024: the threshold is the mean, over training batches, of the smallest activation that was kept.
    """

    architecture = "batchtopk"
    features_compete = True

    def __init__(self, d_in: int, d_sae: int, k: int, *, d_out: int | None = None) -> None:
        super().__init__(d_in, d_sae, k, d_out=d_out)
        self.register_buffer("threshold", torch.zeros(()))
        self.threshold: Tensor

    def _select(self, x: Tensor) -> SparseCode:
        if self.training:
            n = self.k * len(x) * (self.ranks.size if self.ranks.shares_rows else 1)
            own = select.top_of_batch(x, self.W_enc, self.b_enc, n, in_bfloat16=self.selects_in_bfloat16)
            return largest_of_batch(own, n, self.ranks)
        return select.above(x, self.W_enc, self.b_enc, self.threshold.expand(self.d_sae).contiguous())

    def _scale_activations(self, factor: Tensor) -> None:
        super()._scale_activations(factor)
        self.threshold.mul_(factor)


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK whose first features reconstruct by themselves: nested groups (Bussmann et al. 2025)."""

    architecture = "matryoshka"
    GROUP_SHARES: ClassVar[tuple[float, ...]] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

    @property
    def group_ends(self) -> tuple[int, ...]:
        """The number of features in each nested group, ascending."""
        return tuple(sorted({max(1, round(share * self.d_sae)) for share in self.GROUP_SHARES}))


class ReLUSAE(SAE):
    """All positive pre-activations are active; an L1 penalty keeps them few (Conerly et al. 2024)."""

    architecture = "relu"
    subtracts_b_dec = False


class GatedSAE(SAE):
    """One product decides which features are active, a rescaled one how strongly (Rajamanoharan et al. 2024)."""

    architecture = "gated"

    def __init__(self, d_in: int, d_sae: int, k: int, *, d_out: int | None = None) -> None:
        super().__init__(d_in, d_sae, k, d_out=d_out)
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))

    def encode_gates(self, model_acts: Tensor) -> tuple[SparseCode, SparseCode]:
        """The open gates' pre-activations, and the code of the same entries."""
        x = self.centred(model_acts)
        open_gates = self._select(x)
        pre_acts = sparse.pre_acts_at(open_gates, x, self.W_enc, self.b_enc, self.encoder_bias)
        gates = open_gates.with_values(pre_acts)
        return gates, gates.with_values(self._activation(pre_acts, gates))

    def readings(self, model_acts: Tensor, features: Tensor) -> Tensor:
        pre_acts = super().readings(model_acts, features)
        return self.r_mag[features].exp() * (pre_acts - self.b_enc[features]) + self.b_mag[features]

    def slopes(self, features: Tensor) -> Tensor:
        return super().slopes(features) * self.r_mag[features].exp()

    def _activation(self, pre_acts: Tensor, code: SparseCode) -> Tensor:
        at = code.indices
        return (self.r_mag[at].exp() * (pre_acts - self.b_enc[at]) + self.b_mag[at]).relu()

    def _scale_activations(self, factor: Tensor) -> None:
        super()._scale_activations(factor)
        self.b_mag.mul_(factor)


class JumpReLUSAE(SAE):
    """Pre-activations above a threshold of the feature's own are active (Rajamanoharan et al. 2024)."""

    architecture = "jumprelu"
    subtracts_b_dec = False

    def __init__(self, d_in: int, d_sae: int, k: int, *, d_out: int | None = None) -> None:
        super().__init__(d_in, d_sae, k, d_out=d_out)
        self.log_threshold = nn.Parameter(torch.full((d_sae,), 1e-3).log())
        self.register_buffer("fixed_threshold", None)  # (d_sae,): of one trained elsewhere, to the last bit
        self.fixed_threshold: Tensor | None

    @property
    def threshold(self) -> Tensor:
        """(d_sae,), positive; of one trained elsewhere it may be 0."""
        return self.log_threshold.exp() if self.fixed_threshold is None else self.fixed_threshold

    def encode_near_threshold(self, model_acts: Tensor, margin: float) -> SparseCode:
        """Pre-activations that are positive and no more than `margin` below their threshold."""
        x = self.centred(model_acts)
        bounds = (self.threshold.detach() - margin).clamp_min(0)
        code = select.above(x, self.W_enc, self.b_enc, bounds)
        return code.with_values(sparse.pre_acts_at(code, x, self.W_enc, self.b_enc, self.encoder_bias))

    def _select(self, x: Tensor) -> SparseCode:
        return select.above(x, self.W_enc, self.b_enc, self.threshold.detach())

    def _activation(self, pre_acts: Tensor, code: SparseCode) -> Tensor:
        return pre_acts

    def _scale_activations(self, factor: Tensor) -> None:
        super()._scale_activations(factor)
        if self.fixed_threshold is None:
            self.log_threshold.add_(factor.log())
        else:
            self.fixed_threshold.mul_(factor)


ARCHITECTURES: dict[str, type[SAE]] = {
    cls.architecture: cls for cls in (TopKSAE, BatchTopKSAE, MatryoshkaSAE, JumpReLUSAE, GatedSAE, ReLUSAE)
}


class GroupMaxSAE(SAE):
    """The largest pre-activation of each of k groups of neighbouring features, if positive: sparsify's, read only."""

    architecture = "groupmax"
    features_compete = True
    _ROWS: ClassVar[int] = 1024  # whose pre-activations are made at a time

    def _select(self, x: Tensor) -> SparseCode:
        size = self.d_sae // self.k
        starts = torch.arange(0, self.d_sae, size, device=x.device)
        largest = [
            (rows @ self.W_enc + self.b_enc).view(len(rows), self.k, size).max(dim=2)
            for rows in torch.split(x, self._ROWS)
        ]
        indices = torch.cat([found.indices + starts for found in largest])  # (N, k)
        return SparseCode.of_rows(indices, torch.cat([found.values for found in largest]), d_sae=self.d_sae)


# What is read and never trained here.
_FOREIGN: dict[str, type[SAE]] = {GroupMaxSAE.architecture: GroupMaxSAE}

# Tensors that not every SAE has, and their shapes.
_OPTIONAL: dict[str, Callable[[SAE], tuple[int, ...]]] = {
    "W_skip": lambda sae: (sae.d_out, sae.d_in),
    "fixed_threshold": lambda sae: (sae.d_sae,),
}


def sae_of(shape: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SAE:
    """An SAE in float32 of the shape that `save` writes and of tensors by the names of its own.

    Raises ValueError, KeyError or TypeError if they do not fit.
    """
    d_in, d_sae, k = (int(shape[name]) for name in ("d_in", "d_sae", "k"))
    with torch.device("meta"):
        sae = (ARCHITECTURES | _FOREIGN)[shape["architecture"]](d_in, d_sae, k, d_out=shape.get("d_out"))
    sae.subtracts_b_dec = bool(shape.get("subtracts_b_dec", sae.subtracts_b_dec))
    sae.input_norm = shape.get("input_norm", "none")
    if not 1 <= k <= d_sae or sae.input_norm not in INPUT_NORMS:
        raise ValueError("k or input_norm")
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    expected |= {name: of(sae) for name, of in _OPTIONAL.items() if name in tensors}
    if "fixed_threshold" in expected:
        expected.pop("log_threshold", None)
        sae.register_parameter("log_threshold", None)
    for name, size in expected.items():
        tensor = tensors[name].to(torch.float32)
        if tuple(tensor.shape) != size:
            raise ValueError(f"{name} does not fit")
        if name == "W_enc":
            tensor = tensor.T.contiguous().T  # in the memory order that `sparse` is fastest with
        is_buffer = name in sae._buffers
        setattr(sae, name, tensor if is_buffer else nn.Parameter(tensor))
    return sae.requires_grad_(False).eval()


def load_sae(folder: Path, *, device: torch.device | str = "cpu") -> SAE:
    """The SAE that `save` wrote into `folder`; raises WeightsError if it is not there or not whole."""
    try:
        shape = json.loads((folder / SHAPE_FILE).read_text())
        return sae_of(shape, load_file(folder / WEIGHTS_FILE)).to(device)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"There are no SAE weights in {folder}; train the SAE again, or check --home.") from error
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise WeightsError(f"The SAE weights in {folder} are damaged; train the SAE again.") from error
