"""SAEDashboard: `SaeVisRunner` with its own defaults on the same model, tokens and SAE, for the first features."""

from typing import Any

import numpy as np
import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file

from benchmarks.indexing.hooked import hooked_model
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
