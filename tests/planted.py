"""SAEs whose features are known beforehand, on a tiny seeded model, saved as a training run saves them."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import torch

from sae_core.config import TrainConfig
from sae_core.model import LanguageModel
from sae_core.records import SAEInfo
from sae_core.sae import TopKSAE


def save_sae(sae: TopKSAE, folder: Path, model: LanguageModel, *, layer: int, hook: str, context_size: int) -> SAEInfo:
    """Saves the SAE in `folder` and describes it as `train` would."""
    sae.save(folder)
    config = TrainConfig(
        model=model.info.model_name,
        layer=layer,
        hook=hook,
        corpus=("texts",),
        d_sae=sae.d_sae,
        k=sae.k,
        context_size=context_size,
    )
    return SAEInfo(
        slug=folder.name,
        model=model.info,
        hook_name=config.hook_name,
        layer=layer,
        architecture=sae.architecture,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        k=sae.k,
        n_training_tokens=1,
        weights_path=str(folder),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        config=dataclasses.asdict(config),
    )


def token_detectors(model: LanguageModel, token_ids: list[int]) -> TopKSAE:
    """An SAE of the embeddings (`blocks.0.hook_resid_pre`) whose feature i is active on token_ids[i] and nothing else.

    Feature i reads the token's own embedding direction and needs 90% of its length to be active.
    """
    embeddings = model.module.get_input_embeddings().weight.detach().float()[token_ids]  # (F, d_in)
    norms = embeddings.norm(dim=1)
    sae = TopKSAE(embeddings.shape[1], len(token_ids), min(4, len(token_ids)))
    with torch.no_grad():
        sae.W_dec.copy_(embeddings / norms.unsqueeze(1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.copy_(-0.9 * norms)
    return sae


def random_sae(d_in: int, d_sae: int, k: int, *, seed: int) -> TopKSAE:
    """An SAE with random weights and biases."""
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(d_in, d_sae, k)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        sae.normalise_decoder()
    return sae


def dense_encode(sae: TopKSAE, model_acts: torch.Tensor) -> torch.Tensor:
    """The slow, obvious encoder: every pre-activation, all but the k largest set to 0, (N, d_sae)."""
    pre_acts = (model_acts - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = torch.zeros_like(pre_acts).scatter_(1, pre_acts.topk(sae.k, dim=1).indices, 1.0)
    return pre_acts.relu() * kept
