"""Train a TopK SAE on a model's activations, resumable at any step.

Gao et al. 2024 (arXiv 2406.04093), with the gradient normalised to length 1:

1. Scale inputs so that their mean norm is √d_in; start `b_dec` at the mean of the first batch, `W_enc` at `W_decᵀ`.
2. For each batch from the shuffled stream: encode, decode, loss = Σ‖x−x̂‖² / Σ‖x−x̄‖² of the batch.
3. AuxK: features that have not fired for `dead_after_tokens` reconstruct what is left of the error, with the d_in/2
   largest of their pre-activations; that loss counts with `aux_coefficient`.
4. Take out of W_dec's gradient what would only change row norms, normalise the whole gradient to 1, step Adam (learning
   rate warms up, holds, falls to zero), set W_dec's rows back to unit norm.
5. Fold the input scale into the biases and save.

`runs/{slug}` holds `config.json`, `metrics.jsonl` (a line every few seconds), `checkpoint.pt` while training, and the
weights when done.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core import sparse
from sae_core.activations import ActivationStream
from sae_core.config import TrainConfig, check_slug
from sae_core.corpus import iter_documents
from sae_core.disk import saving
from sae_core.errors import ConfigError, CorpusError, WeightsError
from sae_core.metrics import RunningFVU
from sae_core.model import LanguageModel, load_model
from sae_core.progress import StopRequest, progress_bar, stop_request
from sae_core.records import SAEInfo
from sae_core.sae import WEIGHTS_FILE, TopKSAE
from sae_core.tokens import Framing, TokenContext, framing, iter_contexts, shuffled

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
_METRICS_SECONDS = 5.0


@dataclass(slots=True)
class Progress:
    """How far training is, beyond weights and optimiser state."""

    n_tokens: int
    n_contexts: int  # contexts read when the current buffer was full
    input_scale: float
    tokens_since_fired: Tensor  # (d_sae,) int64


def train(config: TrainConfig, *, runs: Path, slug: str | None = None) -> SAEInfo | None:
    """Trains, or goes on where an earlier call with the same configuration stopped. None if it was asked to stop.

    Raises ConfigError if the run exists with another configuration, and what loading the model and reading the corpus
    raise.
    """
    folder = runs / check_slug(slug or default_slug(config))
    _claim(folder, config)
    torch.manual_seed(config.seed)
    model = load_model(config.model, dtype=config.dtype, device=config.device)
    model.check_hook(config.hook_name)
    if (folder / WEIGHTS_FILE).exists():
        return _info(folder, config, model)
    frame = framing(model.tokenizer, prepend_bos=config.prepend_bos)
    check_corpus(_contexts(config, model, frame, 0), context_size=config.context_size, frame=frame)
    sae = TopKSAE(model.info.d_model, config.d_sae, config.k).to(model.device)
    optimizer = torch.optim.Adam(
        sae.parameters(), lr=learning_rate(config), betas=(0.9, 0.999), eps=6.25e-10, fused=model.device.type != "mps"
    )
    progress = _load_checkpoint(folder, sae, optimizer)
    stream = ActivationStream(
        model,
        lambda epoch: _contexts(config, model, frame, epoch),
        hook_name=config.hook_name,
        frame=frame,
        batch_tokens=config.batch_tokens,
        buffer_tokens=min(config.buffer_tokens, max(2 * config.batch_tokens, config.tokens)),
        seed=config.seed,
        skip_contexts=progress.n_contexts if progress else 0,
    )
    with stop_request() as stop:
        progress = _run(config, sae, optimizer, stream, progress, folder=folder, stop=stop)
    if progress.n_tokens < config.tokens:
        return None
    sae.fold_input_scale(progress.input_scale)
    with saving(folder):
        sae.save(folder)
        info = _info(folder, config, model)
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return info


def _whole_steps(config: TrainConfig) -> int:
    return math.ceil(config.tokens / config.batch_tokens) * config.batch_tokens


def default_slug(config: TrainConfig) -> str:
    """Model, layer, hook and width: `demo-l3-4096`, `llama-3.2-1b-l8-mlp_out-16384`."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(config.model).name.lower()).strip("-._")
    hook = "" if config.hook == "resid_post" else f"-{config.hook}"
    return f"{name or 'model'}-l{config.layer}{hook}-{config.d_sae}"


def learning_rate(config: TrainConfig) -> float:
    """Adam's full learning rate: as given, or 3e-3 at 4,096 features, falling with the square root of the width."""
    return config.learning_rate or 3e-3 / math.sqrt(max(config.d_sae, 1024) / 4096)


def learning_rate_share(config: TrainConfig, n_tokens: int) -> float:
    """Share of the full learning rate after `n_tokens`: linear up, constant, linear to zero."""
    done = n_tokens / config.tokens
    rising = (done + config.batch_tokens / config.tokens) / config.warmup_share if config.warmup_share else 1.0
    falling = (1 - done) / config.decay_share if config.decay_share else 1.0
    return max(0.0, min(1.0, rising, falling))


def check_corpus(contexts: Iterable[TokenContext], *, context_size: int, frame: Framing) -> None:
    """Raises CorpusError unless the corpus has at least one context's worth of tokens; reads no more than that."""
    wanted = context_size - frame.n_special
    n_tokens = 0
    for context in contexts:
        n_tokens += len(context.token_ids) - frame.n_special
        if n_tokens >= wanted:
            return
    if n_tokens == 0:
        raise CorpusError("The corpus holds no text; give files with text in them.")
    raise CorpusError(
        f"The corpus has {n_tokens} tokens, fewer than one context of {context_size}; "
        "give more text, or lower --context-size."
    )


def _contexts(config: TrainConfig, model: LanguageModel, frame: Framing, epoch: int) -> Iterable[TokenContext]:
    documents = iter_documents(config.corpus, text_field=config.text_field)
    contexts = iter_contexts(documents, model.tokenizer, context_size=config.context_size, frame=frame)
    return shuffled(contexts, seed=config.seed + epoch)


def _run(
    config: TrainConfig,
    sae: TopKSAE,
    optimizer: torch.optim.Optimizer,
    stream: ActivationStream,
    progress: Progress | None,
    *,
    folder: Path,
    stop: StopRequest,
) -> Progress:
    """Steps until all tokens are seen or a stop is asked for; leaves a checkpoint unless it is done."""
    saved_at = time.monotonic()
    with (
        progress_bar(total=_whole_steps(config), done=progress.n_tokens if progress else 0, what="training") as bar,
        MetricsLog(folder / METRICS_FILE) as log,
    ):
        for model_acts in stream:
            if progress is None:
                progress = _start(sae, model_acts)
            progress.n_contexts = stream.n_contexts
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config) * learning_rate_share(config, progress.n_tokens)
            step(config, sae, optimizer, model_acts * progress.input_scale, progress, log)
            bar.update(len(model_acts))
            if log.is_due:
                bar.set_postfix_str(log.write(progress.n_tokens, dead_share=_dead_share(config, progress)))
            is_done = progress.n_tokens >= config.tokens
            if stop.was_made or is_done or time.monotonic() - saved_at > config.checkpoint_seconds:
                _save_checkpoint(folder, sae, optimizer, progress)
                saved_at = time.monotonic()
            if stop.was_made or is_done:
                log.write(progress.n_tokens, dead_share=_dead_share(config, progress))
                break
    assert progress is not None
    return progress


@torch.no_grad()
def _start(sae: TopKSAE, model_acts: Tensor) -> Progress:
    """The input scale and decoder bias from the first batch."""
    scale = math.sqrt(sae.d_in) / float(model_acts.norm(dim=1).mean())
    sae.b_dec.copy_(model_acts.mean(dim=0) * scale)
    fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=model_acts.device)
    return Progress(n_tokens=0, n_contexts=0, input_scale=scale, tokens_since_fired=fired)


def step(
    config: TrainConfig,
    sae: TopKSAE,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    progress: Progress,
    log: "MetricsLog",
) -> None:
    """One optimiser step on scaled activations x (N, d_in); updates `progress` and `log`."""
    code = sae.encode(x)
    error = x - sae.decode(code)
    squared_error = error.square().sum()
    variance = (x - x.mean(dim=0)).square().sum()
    loss = squared_error / variance
    dead = progress.tokens_since_fired >= dead_after_tokens(config)
    if config.aux_coefficient and bool(dead.any()):
        loss = loss + config.aux_coefficient * aux_loss(sae, x, error.detach(), dead)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        grad, rows = sae.W_dec.grad, sae.W_dec
        assert grad is not None
        grad -= (grad * rows).sum(dim=1, keepdim=True) * rows
        normalise_gradient(sae)
        optimizer.step()
        sae.normalise_decoder()
        fired = code.indices[code.values > 0]
        progress.tokens_since_fired += len(x)
        progress.tokens_since_fired[fired] = 0
        progress.n_tokens += len(x)
        log.add(x, squared_error=float(squared_error), loss=float(loss), l0=len(fired) / len(x))


def dead_after_tokens(config: TrainConfig) -> int:
    """Tokens without firing after which a feature counts as dead while training."""
    return config.dead_after_tokens or max(config.tokens // 16, 4 * config.batch_tokens)


def aux_loss(sae: TopKSAE, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Σ‖e−ê‖² / Σ‖e‖², with ê the dead features' reconstruction of the error e (N, d_in)."""
    chosen = dead.nonzero().squeeze(1)
    k_aux = min(len(chosen), max(1, sae.d_in // 2))
    indices, pre_acts = sparse.select(x - sae.b_dec, sae.W_enc.T[chosen].T, sae.b_enc[chosen], k_aux)
    reconstruction = sparse.decode(indices, pre_acts.relu(), sae.W_dec[chosen])
    return (error - reconstruction).square().sum() / error.square().sum().clamp_min(1e-12)


def normalise_gradient(sae: TopKSAE) -> None:
    """Scales the gradient of all parameters together to length 1, so that Adam's scale does not lag behind it."""
    grads = [parameter.grad for parameter in sae.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    for grad in grads:
        grad.div_(norm.clamp_min(1e-12))


def _dead_share(config: TrainConfig, progress: Progress) -> float:
    return float((progress.tokens_since_fired >= dead_after_tokens(config)).double().mean())


class MetricsLog:
    """Metrics over the steps since the last line, appended to a JSONL file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._reset()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._fvu = RunningFVU()
        self._losses: list[float] = []
        self._l0: list[float] = []

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._since > _METRICS_SECONDS

    def add(self, x: Tensor, *, squared_error: float, loss: float, l0: float) -> None:
        self._fvu.add(x, squared_error)
        self._losses.append(loss)
        self._l0.append(l0)

    def write(self, n_tokens: int, *, dead_share: float) -> str:
        """Writes a line and starts anew; returns it in a few words for the progress bar."""
        if not self._losses:
            return ""
        line = {
            "tokens": n_tokens,
            "fvu": self._fvu.value,
            "l0": sum(self._l0) / len(self._l0),
            "dead_share": dead_share,
            "loss": sum(self._losses) / len(self._losses),
            "tokens_per_second": self._fvu.n / max(time.monotonic() - self._since, 1e-9),
        }
        self._file.write(json.dumps({name: _rounded(value) for name, value in line.items()}) + "\n")
        self._file.flush()
        self._reset()
        return f"FVU {line['fvu']:.3f}  L0 {line['l0']:.1f}  dead {line['dead_share']:.1%}"


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _claim(folder: Path, config: TrainConfig) -> None:
    """Makes the run's folder, or checks that it is a run of this very configuration."""
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG_FILE
        if not path.exists():
            config.save(path)
            return
    try:
        known = TrainConfig.load(path)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a training configuration; remove the folder {folder} and train anew."
        ) from error
    differing = [
        field.name
        for field in dataclasses.fields(config)
        if getattr(known, field.name) != getattr(config, field.name)
        and field.name not in ("device", "checkpoint_seconds")
    ]
    if differing:
        raise ConfigError(
            f"The run {folder.name} exists with another {', '.join(differing)}; "
            f"give this one another --slug, or remove the folder {folder}."
        )


def _save_checkpoint(folder: Path, sae: TopKSAE, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    state = {"sae": sae.state_dict(), "optimizer": optimizer.state_dict(), **dataclasses.asdict(progress)}
    path = folder / CHECKPOINT_FILE
    with saving(folder):
        with path.with_suffix(".new").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".new").replace(path)


def _load_checkpoint(folder: Path, sae: TopKSAE, optimizer: torch.optim.Optimizer) -> Progress | None:
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=sae.W_dec.device)
        sae.load_state_dict(state.pop("sae"))
        optimizer.load_state_dict(state.pop("optimizer"))
        return Progress(**state)
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
        raise WeightsError(f"The checkpoint {path} is damaged; remove it to train from the start.") from error


def _info(folder: Path, config: TrainConfig, model: LanguageModel) -> SAEInfo:
    weights = folder / WEIGHTS_FILE
    return SAEInfo(
        slug=folder.name,
        model=model.info,
        hook_name=config.hook_name,
        layer=config.layer,
        architecture=TopKSAE.architecture,
        d_in=model.info.d_model,
        d_sae=config.d_sae,
        k=config.k,
        n_training_tokens=config.tokens,
        weights_path=str(folder.resolve()),
        created_at=datetime.fromtimestamp(weights.stat().st_mtime, tz=UTC),
        config=dataclasses.asdict(config),
    )
