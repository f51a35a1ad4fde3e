"""Runs in SAELens's own environment: makes SAEs of every class as it saves them, or loads what was exported to it.

    python saelens_child.py build FOLDER      python saelens_child.py load FOLDER

FOLDER/inputs.safetensors holds batches of model_acts. Every SAE is a folder below FOLDER/build or FOLDER/load; beside
it, as NAME.safetensors, goes what SAELens computes with it: {batch}.feature_acts and {batch}.sae_out.
"""

import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from safetensors.torch import load_file, save_file

D_SAE, K = 1024, 16
TRANSCODERS = {
    "transcoder": (Transcoder, TranscoderConfig),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
    "jumprelu_skip_transcoder": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
}
KINDS = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": K}),
}


def cases(d_in):
    for name, (kind, config, options) in KINDS.items():
        yield name, kind(config(d_in=d_in, d_sae=D_SAE, **options))
        yield f"{name}-no-b_dec", kind(config(d_in=d_in, d_sae=D_SAE, apply_b_dec_to_input=False, **options))
        for norm in ("layer_norm", "constant_norm_rescale"):
            yield f"{name}-{norm}", kind(config(d_in=d_in, d_sae=D_SAE, normalize_activations=norm, **options))
        yield f"{name}-scale-folded", kind(config(d_in=d_in, d_sae=D_SAE, **options))
        if name != "topk":
            yield f"{name}-norms-folded", kind(config(d_in=d_in, d_sae=D_SAE, **options))
    options = {"k": K, "rescale_acts_by_decoder_norm": True}
    yield "topk-rescaled", TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=D_SAE, **options))
    for name, (kind, config) in TRANSCODERS.items():
        yield name, kind(config(d_in=d_in, d_sae=D_SAE, d_out=d_in, apply_b_dec_to_input=False))
    yield "batchtopk", BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=D_SAE, k=K))
    widths = {"matryoshka_widths": [D_SAE // 4, D_SAE // 2, D_SAE]}
    yield (
        "matryoshka",
        MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(d_in=d_in, d_sae=D_SAE, k=K, **widths)),
    )


@torch.no_grad()
def fill(sae):
    """Nothing is left at its initial value."""
    for name, tensor in sae.state_dict().items():
        noise = torch.randn(tensor.shape, generator=GENERATOR, dtype=torch.float32)
        if name in ("threshold", "topk_threshold"):
            tensor.copy_(0.5 + noise.abs())
        else:
            tensor.copy_(noise / tensor.shape[-1 if name != "W_enc" else 0] ** 0.5 if tensor.ndim == 2 else 0.3 * noise)


def compute(sae, inputs):
    found = {}
    with torch.no_grad():
        for batch, x in inputs.items():
            found[f"{batch}.feature_acts"] = sae.encode(x).contiguous()
            found[f"{batch}.sae_out"] = sae(x).contiguous()
    return found


def build(folder, inputs):
    d_in = next(iter(inputs.values())).shape[1]
    for name, sae in cases(d_in):
        fill(sae)
        if name.endswith("scale-folded"):
            sae.fold_activation_norm_scaling_factor(0.31)
        if name.endswith("norms-folded"):
            sae.fold_W_dec_norm()
        sae.cfg.metadata.model_name = "demo"
        sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_in" if "transcoder" in name else "blocks.3.hook_resid_post"
        if "transcoder" in name:
            sae.cfg.metadata.hook_name_out = "blocks.3.hook_mlp_out"
        if hasattr(sae, "save_inference_model"):
            sae.save_inference_model(folder / name)
            sae = SAE.load_from_disk(folder / name)  # BatchTopK is another SAE from here on
        else:
            sae.save_model(folder / name)
        save_file(compute(sae, inputs), folder / f"{name}.safetensors")


def load(folder, inputs):
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        save_file(compute(SAE.load_from_disk(path), inputs), folder / f"{path.name}.safetensors")


GENERATOR = torch.Generator().manual_seed(0)
what, root = sys.argv[1], Path(sys.argv[2])
{"build": build, "load": load}[what](root / what, load_file(root / "inputs.safetensors"))
