"""The sparse autoencoder: encode, decode, save, load.

TopK SAE (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093):

    pre_acts     = (model_acts − b_dec) @ W_enc + b_enc              (N, d_sae)
    feature_acts = ReLU(the k largest of pre_acts, the others 0)     (N, d_sae), kept as a SparseCode (N, k)
    sae_out      = feature_acts @ W_dec + b_dec                      (N, d_in)

Rows of `W_dec` have unit norm, also in the saved weights, so that an activation is the length of what the feature adds
to `sae_out`, in the units of the model's own activations. The scale that training divides its inputs by is folded into
the biases when it is done (`fold_input_scale`): whoever loads the weights feeds them the model's vectors as they are.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_core import sparse
from sae_core.errors import WeightsError

WEIGHTS_FILE = "sae.safetensors"
SHAPE_FILE = "sae.json"


class SparseCode(NamedTuple):
    """The active features of N tokens: `indices` (N, k) int64 and `values` (N, k); a value of 0 is inactive."""

    indices: Tensor
    values: Tensor


class TopKSAE(nn.Module):
    """A TopK sparse autoencoder with `d_sae` features of which at most `k` are active on a token."""

    architecture = "topk"

    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        super().__init__()
        self.k = k
        directions = nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
        self.W_dec = nn.Parameter(directions)
        # (d_in, d_sae) in the memory order of (d_sae, d_in), which `sparse` is fastest with; tied at the start.
        self.W_enc = nn.Parameter(directions.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    def encode(self, model_acts: Tensor) -> SparseCode:
        """The sparse code of model_acts (N, d_in)."""
        indices, pre_acts = sparse.select(model_acts - self.b_dec, self.W_enc, self.b_enc, self.k)
        return SparseCode(indices, pre_acts.relu())

    def decode(self, code: SparseCode) -> Tensor:
        """`sae_out` (N, d_in) of a sparse code."""
        return sparse.decode(code.indices, code.values, self.W_dec) + self.b_dec

    def forward(self, model_acts: Tensor) -> Tensor:
        """`sae_out` for model_acts of any shape (…, d_in)."""
        flat = model_acts.reshape(-1, self.d_in)
        return self.decode(self.encode(flat)).view_as(model_acts)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Sets every decoder row to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Turns an SAE of `model_acts · scale` into the same SAE of `model_acts`; activations shrink by `scale`."""
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)

    def save(self, folder: Path) -> None:
        """Writes weights and shape into `folder`, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.named_parameters()}
        shape = {"architecture": self.architecture, "d_in": self.d_in, "d_sae": self.d_sae, "k": self.k}
        save_file(tensors, folder / f"{WEIGHTS_FILE}.new")
        (folder / f"{SHAPE_FILE}.new").write_text(json.dumps(shape, indent=2) + "\n")
        for name in (WEIGHTS_FILE, SHAPE_FILE):
            (folder / f"{name}.new").replace(folder / name)


def load_sae(folder: Path, *, device: torch.device | str = "cpu") -> TopKSAE:
    """The SAE that `save` wrote into `folder`; raises WeightsError if it is not there or not whole."""
    try:
        shape = json.loads((folder / SHAPE_FILE).read_text())
        tensors = load_file(folder / WEIGHTS_FILE)
        d_in, d_sae, k = (int(shape[name]) for name in ("d_in", "d_sae", "k"))
        sae = TopKSAE(d_in, d_sae, k)
        for name, parameter in sae.named_parameters():
            if tensors[name].shape != parameter.shape or not 1 <= k <= d_sae:
                raise ValueError(f"{name} does not fit {SHAPE_FILE}")
            parameter.data.copy_(tensors[name])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"There are no SAE weights in {folder}; train the SAE again, or check --home.") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"The SAE weights in {folder} are damaged; train the SAE again.") from error
    return sae.to(device).requires_grad_(False)
