"""SAEs whose features are known beforehand, on a tiny seeded model, saved as a training run saves them."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from sae_core.config import TrainConfig
from sae_core.model import LanguageModel
from sae_core.records import SAEInfo
from sae_core.sae import ARCHITECTURES, SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, TopKSAE


def save_sae(sae: SAE, folder: Path, model: LanguageModel, *, layer: int, hook: str, context_size: int) -> SAEInfo:
    """Saves the SAE in `folder` and describes it as `train` would."""
    sae.save(folder)
    config = TrainConfig(
        model=model.info.model_name,
        layer=layer,
        hook=hook,
        corpus=("texts",),
        architecture=sae.architecture,
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


def random_sae(
    d_in: int, d_sae: int, k: int, *, seed: int, architecture: str = "topk", d_out: int | None = None
) -> SAE:
    """An SAE in use, with random weights and biases, nothing of it at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    sae = ARCHITECTURES[architecture](d_in, d_sae, k, d_out=d_out)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        for name, tensor in sae.state_dict().items():
            if name in ("r_mag", "b_mag"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
            elif name == "log_threshold":
                tensor.copy_(torch.rand(tensor.shape, generator=generator).log())
            elif name == "threshold":
                tensor.fill_(0.7)
        sae.normalise_decoder()
    return sae.eval()


def dense_pre_acts(sae: SAE, model_acts: Tensor) -> Tensor:
    """Every pre-activation, (N, d_sae). Only these subtract `b_dec`, and no transcoder does."""
    subtracts = sae.architecture in ("topk", "batchtopk", "matryoshka", "gated") and not sae.is_transcoder
    return (model_acts - sae.b_dec if subtracts else model_acts) @ sae.W_enc + sae.b_enc


def dense_encode(sae: SAE, model_acts: Tensor) -> Tensor:
    """The slow, obvious encoder, `feature_acts` (N, d_sae): every pre-activation, and 0 for what is not active."""
    pre_acts = dense_pre_acts(sae, model_acts)
    if sae.architecture == "topk":
        return pre_acts.relu() * largest(pre_acts, sae.k)
    if isinstance(sae, BatchTopKSAE):
        if sae.training:
            everything = pre_acts.flatten().unsqueeze(0)
            kept = largest(everything, min(sae.k * len(pre_acts), everything.shape[1])).view_as(pre_acts)
        else:
            kept = (pre_acts > sae.threshold).to(pre_acts.dtype)
        return pre_acts.relu() * kept
    if sae.architecture == "relu":
        return pre_acts.relu()
    if isinstance(sae, GatedSAE):
        magnitudes = sae.r_mag.exp() * (pre_acts - sae.b_enc) + sae.b_mag
        return magnitudes.relu() * (pre_acts > 0)
    assert isinstance(sae, JumpReLUSAE)
    return pre_acts * (pre_acts > sae.log_threshold.exp())


def largest(pre_acts: Tensor, k: int) -> Tensor:
    """1 at the k largest of each row, else 0."""
    return torch.zeros_like(pre_acts).scatter_(1, pre_acts.topk(k, dim=1).indices, 1.0)
