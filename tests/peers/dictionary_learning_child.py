"""Runs in dictionary_learning's own environment; what it does and where is as in `saelens_child`."""

import json
import sys
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

D_SAE, K = 1024, 16
GROUPS = [D_SAE // 4, D_SAE // 4, D_SAE // 2]
PLAIN = (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder)


def cases(d_in):
    for kind in PLAIN:
        yield kind.__name__, kind(d_in, D_SAE), {}
    for kind in (AutoEncoderTopK, BatchTopKSAE):
        yield kind.__name__, kind(d_in, D_SAE, K), {"k": K}
    yield "BatchTopKSAE-unset", BatchTopKSAE(d_in, D_SAE, K), {"k": K}
    yield "MatryoshkaBatchTopKSAE", MatryoshkaBatchTopKSAE(d_in, D_SAE, K, GROUPS), {"k": K}


def compute(dictionary, inputs):
    found = {}
    with torch.no_grad():
        for batch, x in inputs.items():
            found[f"{batch}.feature_acts"] = dictionary.encode(x).contiguous()
            found[f"{batch}.sae_out"] = dictionary(x).contiguous()
    return found


@torch.no_grad()
def fill(dictionary, name):
    for key, tensor in dictionary.state_dict().items():
        noise = torch.randn(tensor.shape, generator=GENERATOR)
        if key == "threshold" and not name.endswith("unset"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.is_floating_point() and key != "threshold":
            tensor.copy_(noise / INPUT_ROOT if tensor.ndim == 2 else 0.3 * noise)


def build(folder, inputs):
    d_in = next(iter(inputs.values())).shape[1]
    for name, dictionary, options in cases(d_in):
        fill(dictionary, name)
        trainer = {"dict_class": type(dictionary).__name__, "activation_dim": d_in, "dict_size": D_SAE, **options}
        trainer |= {"layer": 3, "lm_name": "demo", "submodule_name": "resid_post_layer_3"}
        (folder / name).mkdir(parents=True)
        torch.save(dictionary.state_dict(), folder / name / "ae.pt")
        (folder / name / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        dictionary, _ = load_dictionary(str(folder / name), "cpu")
        save_file(compute(dictionary, inputs), folder / f"{name}.safetensors")


def load(folder, inputs):
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        dictionary, _ = load_dictionary(str(path), "cpu")
        save_file(compute(dictionary, inputs), folder / f"{path.name}.safetensors")


GENERATOR = torch.Generator().manual_seed(0)
what, root = sys.argv[1], Path(sys.argv[2])
batches = load_file(root / "inputs.safetensors")
INPUT_ROOT = next(iter(batches.values())).shape[1] ** 0.5
{"build": build, "load": load}[what](root / what, batches)
