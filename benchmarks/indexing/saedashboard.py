"""SAEDashboard: `SaeVisRunner` with its own defaults on the same model, tokens and SAE, for the first features.

The Hugging Face model is carried over into TransformerLens, so that both compute the same activations.
"""

from typing import Any

import numpy as np
import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2LMHeadModel

from benchmarks.indexing.job import Clock, Job, answer


def work(job: Job) -> dict[str, Any]:
    tokens = torch.from_numpy(np.load(job.tokens).astype(np.int64))
    model = hooked_model(job)
    config = SaeVisConfig(
        hook_point=f"blocks.{job.layer}.hook_resid_post",
        features=list(range(job.n_features)),
        ignore_tokens={int(tokens[0, 0])},  # BOS, as saescope leaves it out
        verbose=False,
    )
    with Clock() as clock:
        data = SaeVisRunner(config).run(encoder=lens_sae(job), model=model, tokens=tokens)
    maxima = [
        max((max(seq.feat_acts) for seq in feature.sequence_data.seq_group_data[0].seq_data), default=0.0)
        for _, feature in sorted(data.feature_data_dict.items())
    ]
    return {"cpu_s": clock.cpu_s, "wall_s": clock.wall_s, "n_features": job.n_features, "maxima": maxima}


def hooked_model(job: Job) -> HookedSAETransformer:
    hf = GPT2LMHeadModel.from_pretrained(job.folder)
    c = hf.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer,
        d_model=c.n_embd,
        n_ctx=c.n_positions,
        d_head=c.n_embd // c.n_head,
        n_heads=c.n_head,
        d_mlp=4 * c.n_embd,
        d_vocab=c.vocab_size,
        act_fn="gelu_new",
        eps=c.layer_norm_epsilon,
        normalization_type="LN",
        device="cpu",
    )
    model = HookedSAETransformer(config)  # tokens are given as ids, so no tokenizer is needed
    state = convert_gpt2_weights(hf, config)
    state.setdefault("unembed.b_U", torch.zeros(config.d_vocab))
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model.eval()


def lens_sae(job: Job) -> SAE[Any]:
    weights = load_file(f"{job.sae}/sae.safetensors")
    if job.architecture == "topk":
        sae: SAE[Any] = TopKSAE(
            TopKSAEConfig(d_in=weights["W_enc"].shape[0], d_sae=job.d_sae, k=job.k, rescale_acts_by_decoder_norm=True)
        )
    else:
        config = StandardSAEConfig(d_in=weights["W_enc"].shape[0], d_sae=job.d_sae, apply_b_dec_to_input=False)
        sae = StandardSAE(config)
    state = {name: weights[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    sae.load_state_dict(state)
    sae.cfg.metadata.hook_name = f"blocks.{job.layer}.hook_resid_post"
    return sae


if __name__ == "__main__":
    answer(work)
