"""sae_vis: `SaeVisData.create` with its own defaults on the same model, tokens and SAE, for the first features.

It knows SAEs of SAELens 5 alone, so it has an environment of its own.
"""

from typing import Any

import numpy as np
import torch
from sae_lens import SAE, SAEConfig
from sae_vis import SaeVisConfig, SaeVisData
from safetensors.torch import load_file
from tokenizers import Tokenizer

from benchmarks.indexing.hooked import hooked_model
from benchmarks.indexing.job import Clock, Job, answer


def work(job: Job) -> dict[str, Any]:
    tokens = torch.from_numpy(np.load(job.tokens).astype(np.int64))
    texts = {number: text for text, number in Tokenizer.from_file(f"{job.folder}/tokenizer.json").get_vocab().items()}
    # It cannot read where the last block ends.
    sae, model = lens_sae(job), hooked_model(job, idle_blocks=1)
    # Without BOS, as saescope leaves it out.
    config = SaeVisConfig(features=list(range(job.n_features)), seqpos_slice=(1, None, None))
    with Clock() as clock:
        data = SaeVisData.create(
            sae=sae, model=model, tokens=tokens, cfg=config, vocab_dict=dict.fromkeys(("embed", "unembed"), texts)
        )
    maxima = [max(data.feature_stats.max[number], 0.0) for number in range(job.n_features)]
    return {"cpu_s": clock.cpu_s, "wall_s": clock.wall_s, "n_features": job.n_features, "maxima": maxima}


def lens_sae(job: Job) -> SAE:
    weights = load_file(f"{job.sae}/sae.safetensors")
    sae = SAE(
        SAEConfig(
            architecture="standard",
            d_in=weights["W_enc"].shape[0],
            d_sae=job.d_sae,
            activation_fn_str="relu",
            apply_b_dec_to_input=False,
            finetuning_scaling_factor=False,
            context_size=128,
            model_name="bench",
            hook_name=f"blocks.{job.layer}.hook_resid_post",
            hook_layer=job.layer,
            hook_head_index=None,
            prepend_bos=True,
            dataset_path="",
            dataset_trust_remote_code=False,
            normalize_activations="none",
            dtype="float32",
            device="cpu",
            sae_lens_training_version=None,
        )
    )
    sae.load_state_dict({name: weights[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")})
    return sae


if __name__ == "__main__":
    answer(work)
