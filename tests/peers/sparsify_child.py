"""Runs in sparsify's own environment; what it does and where is as in `saelens_child`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

K = 16
CASES = {
    "topk": {},
    "topk-free-decoder": {"normalize_decoder": False},
    "topk-skip": {"skip_connection": True},
    "transcoder": {"transcode": True},
    "skip-transcoder": {"transcode": True, "skip_connection": True},
    "groupmax": {"activation": "groupmax"},
    "latents": {"num_latents": 1024},
}


def compute(sae, inputs):
    found = {}
    with torch.no_grad():
        for batch, x in inputs.items():
            out = sae(x)
            acts = torch.zeros(len(x), sae.num_latents)
            found[f"{batch}.feature_acts"] = acts.scatter_(1, out.latent_indices, out.latent_acts)
            found[f"{batch}.sae_out"] = out.sae_out.contiguous()
    return found


def build(folder, inputs):
    d_in = next(iter(inputs.values())).shape[1]
    for name, options in CASES.items():
        sae = SparseCoder(d_in, SparseCoderConfig(k=K, expansion_factor=4, **options))
        with torch.no_grad():
            for parameter in sae.parameters():
                noise = torch.randn(parameter.shape, generator=GENERATOR)
                parameter.copy_(noise / d_in**0.5 if parameter.ndim == 2 else 0.3 * noise)
        sae.save_to_disk(folder / name / "layers.3.mlp")
        save_file(compute(sae, inputs), folder / f"{name}.safetensors")


def load(folder, inputs):
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        (written,) = path.rglob("cfg.json")  # in a folder named after the module, or in none
        save_file(compute(SparseCoder.load_from_disk(written.parent), inputs), folder / f"{path.name}.safetensors")


GENERATOR = torch.Generator().manual_seed(0)
what, root = sys.argv[1], Path(sys.argv[2])
{"build": build, "load": load}[what](root / what, load_file(root / "inputs.safetensors"))
