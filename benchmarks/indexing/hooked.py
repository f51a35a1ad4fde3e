"""The Hugging Face model carried over into TransformerLens, so that peers compute the same activations."""

from dataclasses import replace

import torch
from sae_lens import HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2LMHeadModel

from benchmarks.indexing.job import Job


def hooked_model(job: Job, *, idle_blocks: int = 0) -> HookedSAETransformer:
    """With so many blocks on top that add nothing."""
    hf = GPT2LMHeadModel.from_pretrained(job.folder)
    c = hf.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer + idle_blocks,
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
    state = convert_gpt2_weights(hf, replace(config, n_layers=c.n_layer))
    state.setdefault("unembed.b_U", torch.zeros(config.d_vocab))
    for name, weights in model.state_dict().items():
        if name not in state and name.startswith("blocks."):
            state[name] = weights if name.endswith("mask") or "IGNORE" in name else torch.zeros_like(weights)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model.eval()
