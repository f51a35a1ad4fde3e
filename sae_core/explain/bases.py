"""A model's neurons and principal components as if they were an SAE: what an SAE's features are to be compared with.

Directions of a space, each of them twice, once for either sign, so that activations are positive:

    neurons       the MLP's neurons in the SAE's layer: the numbers behind its nonlinearity (`mlp_post`)
    coordinates   the coordinates of the vectors that the SAE reads; a residual stream's are no neurons, as nothing in
                  the model computes one of them by itself
    pca           the principal components of the vectors that the SAE reads, on its training corpus

All are `TopKSAE`s without training: `b_dec` is the mean vector, a token's activations are its largest coordinates away
from that mean, as many as the SAE has on average. Thus they are indexed, labelled and scored by the same code.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.config import IndexConfig
from sae_core.errors import ConfigError
from sae_core.evaluate import load_subject, read_contexts
from sae_core.progress import progress_bar
from sae_core.records import SAEInfo
from sae_core.sae import TopKSAE

KINDS = ("neurons", "coordinates", "pca")
NEURONS = "mlp_post"  # the hook point
TOKENS = 100_000  # from which mean and components are estimated
BATCH_CONTEXTS = 32


def make_basis(sae: SAEInfo, kind: str, *, k: int, runs: Path, device: str | None = None) -> SAEInfo:
    """A basis to compare an SAE with, saved in `runs` beside it as SLUG-neurons, SLUG-coordinates or SLUG-pca.

    Raises ConfigError for a transcoder or an SAE whose corpus is not known, and what reading that corpus raises.
    """
    if sae.target_hook_name != sae.hook_name:
        raise ConfigError(f'"{sae.slug}" is a transcoder: it reads one space and writes another; take an SAE.')
    corpus: Any = sae.config.get("corpus")
    if not corpus:
        raise ConfigError(f'It is not known what "{sae.slug}" was trained on; take an SAE that saescope trained.')
    hook_name = f"blocks.{sae.layer}.hook_{NEURONS}" if kind == "neurons" else sae.hook_name
    mean, covariance = _moments(
        sae, hook_name, tuple(corpus), scratch=runs, device=device, with_covariance=kind == "pca"
    )
    d_in = len(mean)
    directions = torch.eye(d_in) if covariance is None else _components(covariance)
    k = max(1, min(k, d_in))
    basis = TopKSAE(d_in, 2 * d_in, k)
    with torch.no_grad():
        basis.W_dec.copy_(torch.cat([directions, -directions]))
        basis.W_enc.copy_(basis.W_dec.T)
        basis.b_dec.copy_(mean)
    info = replace(
        sae,
        slug=f"{sae.slug}-{kind}",
        hook_name=hook_name,
        architecture=kind,
        d_in=d_in,
        d_sae=2 * d_in,
        k=k,
        n_training_tokens=TOKENS,
        weights_path=str(runs / f"{sae.slug}-{kind}"),
        created_at=datetime.now(tz=UTC),
        config={
            **sae.config,
            "basis": kind,
            "basis_of": sae.slug,
            "compared_at": sae.hook_name,  # the SAEs that it stands beside
            "hook": hook_name.rpartition("hook_")[2],
            "d_sae": 2 * d_in,
            "k": k,
        },
    )
    basis.save(Path(info.weights_path))
    return info


def _components(covariance: Tensor) -> Tensor:
    """The principal components as rows, the one with the largest variance first."""
    directions: Tensor = torch.linalg.eigh(covariance)[1]  # columns, by rising variance
    return directions.flip(1).T.float()


@torch.inference_mode()
def _moments(
    sae: SAEInfo,
    hook_name: str,
    corpus: tuple[str, ...],
    *,
    scratch: Path,
    device: str | None,
    with_covariance: bool,
) -> tuple[Tensor, Tensor | None]:
    """Mean (d,) and covariance (d, d) of what stands at the hook, made in double precision."""
    text_field = str(sae.config.get("text_field", "text"))
    config = IndexConfig(slug=sae.slug, corpus=corpus, tokens=TOKENS, text_field=text_field, device=device)
    subject = load_subject(sae, config)
    contexts = read_contexts(subject, config, scratch=scratch)
    d = subject.model.width(hook_name)
    n, total = 0, torch.zeros(d).double()
    squares = torch.zeros(d, d).double() if with_covariance else None
    with (
        progress_bar(total=len(contexts), what="measuring", unit=" contexts") as bar,
        subject.model.reading((hook_name,)) as read,
    ):
        for start in range(0, len(contexts), BATCH_CONTEXTS):
            batch = [contexts[i] for i in range(start, min(start + BATCH_CONTEXTS, len(contexts)))]
            ids, attention, counted = subject.tensors(batch)
            acts = read(ids, attention)[0][counted].cpu().double()
            n += len(acts)
            total += acts.sum(dim=0)
            if squares is not None:
                squares += acts.T @ acts
            bar.update(len(batch))
    mean = total / n
    return mean.float(), None if squares is None else squares / n - mean[:, None] * mean[None, :]
