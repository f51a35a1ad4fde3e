"""Train SAEs on a model's activations: one, or many on the same pass through the model; resumable at any step.

1. Claim each SAE's folder `runs/{slug}` (`run_folder`); those that are done are left alone.
2. Check corpus, hooks and memory before anything takes long.
3. Read batches of activations at every hook that is needed (`activations`), from the model or from a cache on disk.
4. Let each SAE take its step on each batch (`fit`); save checkpoints; stop when asked to, at the end of a step.
5. Save the weights.

An SAE comes out the same, bit for bit on the CPU, whether it was trained alone or with others, at one stretch or after
being stopped or killed: the stream of batches depends on the text and `data_seed` alone, weights on `seed` alone.

    torchrun --nproc-per-node 8 -m sae_core.train --model … --layer … --corpus … [--shard features]

trains on several GPUs or machines (`ranks`).
"""

import argparse
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch

from sae_core.activation_cache import ActivationCache, CachingFiller
from sae_core.activations import Batch, Filler, ModelFiller, Place, Watch, batches
from sae_core.arguments import add_train_arguments, train_config
from sae_core.config import TrainConfig, check_slug
from sae_core.corpus import iter_documents
from sae_core.errors import ConfigError, ModelError, NotFoundError, OutOfMemoryError, RanksError, SaescopeError
from sae_core.fit import Trainee, check_ranks
from sae_core.loading import choose_device, load_model, load_outline
from sae_core.memory import check_memory, is_out_of_memory
from sae_core.model import LanguageModel
from sae_core.placement import AUTO, weight_bytes
from sae_core.progress import StopRequest, progress_bar, say, stop_request
from sae_core.ranks import MODES, Ranks, joined_ranks, spoken_by_first
from sae_core.records import ModelInfo, SAEInfo
from sae_core.run_folder import RunFolder
from sae_core.run_log import CONFIG_FILE, RunFiles, RunLog, recorded
from sae_core.sae import WEIGHTS_FILE
from sae_core.tokens import Framing, TokenContext, check_corpus, framing, iter_contexts, shuffled

# What SAEs that are trained on one pass must have in common: it decides which batches there are.
_SHARED = (
    "model", "dtype", "device", "corpus", "text_field", "context_size", "prepend_bos", "tokens", "batch_tokens",
    "buffer_tokens", "data_seed", "cache_activations",
)  # fmt: skip


def train(config: TrainConfig, *, runs: Path, slug: str | None = None, shard: str = "data") -> SAEInfo | None:
    """Trains, or goes on where an earlier call with the same configuration stopped. None if it was asked to stop.

    Raises ConfigError if the run exists with another configuration or cannot fit into memory, and what loading the
    model and reading the corpus raise.
    """
    infos = train_together({slug or default_slug(config): config}, runs=runs, shard=shard)
    return None if infos is None else infos[0]


def train_together(configs: dict[str, TrainConfig], *, runs: Path, shard: str = "data") -> list[SAEInfo] | None:
    """Trains several SAEs, by slug, on one pass through their model. None if it was asked to stop.

    With torchrun's processes `shard` says what they share: "data" (rows of each batch) or "features".
    """
    ranks = Ranks(shard)
    _check_shared(list(configs.values()))
    part = (ranks.rank, ranks.size) if ranks.shards_features else None
    folders = {slug: RunFolder(runs / check_slug(slug), config, shard=part) for slug, config in configs.items()}
    pending = {slug: config for slug, config in configs.items() if not folders[slug].is_done}
    for config in pending.values():
        check_ranks(config, ranks)
    config = next(iter(configs.values()))
    device = choose_device(config.device)
    if not pending:
        outline = load_outline(config.model, dtype=config.dtype)
        return [
            _info(folders[slug].path, own, outline.info, d_in=outline.width(own.hook_name))
            for slug, own in configs.items()
        ]
    files = [RunFiles(folders[slug].path) for slug in pending] if ranks.is_first else []
    with (
        recorded(files, kind="training", together=list(pending), processes=ranks.size) as log,
        _said_plainly(ranks),
        closing(_Source(list(pending.values()), device, runs=runs, ranks=ranks)) as source,
    ):
        trainees = [_Run(folders[slug], _trainee(own, source, device, ranks)) for slug, own in pending.items()]
        with _said_plainly(ranks), stop_request() as stop:
            _run(trainees, source, stop=stop, ranks=ranks, log=log)
        if not all(run.trainee.is_done for run in trainees):
            log.stop()
            return None
        for run in trainees:
            whole = run.trainee.finished()
            if ranks.is_first:
                run.folder.save_weights(whole)
    return [
        _info(folders[slug].path, own, source.info, d_in=source.width(own.hook_name)) for slug, own in configs.items()
    ]


def default_slug(config: TrainConfig) -> str:
    """Model, layer, hook, architecture and width, the usual ones left out: `demo-l3-4096`, `llama-l8-mlp_out-16384`."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(config.model).name.lower()).strip("-._")
    hook = "" if config.hook == "resid_post" else f"-{config.hook}"
    target = f"-to-{config.target_hook}" if config.target_hook else ""
    kind = "" if config.architecture == "topk" else f"-{config.architecture}"
    return f"{name or 'model'}-l{config.layer}{hook}{target}{kind}-{config.d_sae}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    folder: RunFolder
    trainee: Trainee


class _Source:
    """Where batches come from: the model, or what is kept of its activations."""

    def __init__(self, configs: list[TrainConfig], device: torch.device, *, runs: Path, ranks: Ranks) -> None:
        config = configs[0]
        self.config = config
        self.buffer_tokens = min(config.buffer_tokens, max(2 * config.batch_tokens, config.tokens))
        self.n_batches = math.ceil(config.tokens / config.batch_tokens)
        names = (name for own in configs for name in (own.hook_name, own.target_hook_name) if name is not None)
        self.hook_names = tuple(dict.fromkeys(names))
        cache = None
        if config.cache_activations:
            cache = ActivationCache(runs.parent / "activations", config, self.hook_names, self.buffer_tokens)
        kept = cache.model_info() if cache and self._is_kept(cache) else None
        outline = None
        try:
            outline = load_outline(config.model, dtype=config.dtype)
        except ModelError:
            if not kept:
                raise
            self.info = kept  # the model is not here any more, and need not be
        else:
            self.info = outline.info
        self._outline, self._widths = outline, cache.widths() if cache and not outline else {}
        widest = max(map(self.width, self.hook_names))
        needs_model = ranks.agree(kept is None or kept.revision != self.info.revision)
        weights = weight_bytes(outline.module, config.dtype) if needs_model and outline else 0
        spreads = config.device == AUTO
        beside = check_memory(
            [_own_part(own, ranks) for own in configs],
            d_model=widest,
            device=device,
            buffer_tokens=self.buffer_tokens,
            model_bytes=min(weights, 1) if spreads else weights,  # if it is spread it takes what is left
        )

        def from_model() -> Filler:
            place = AUTO if spreads else str(device)
            model = load_model(config.model, dtype=config.dtype, device=place, beside_bytes=beside)
            return self._from_model(model, ranks)

        self.filler: Filler
        if cache is None:
            self.filler = from_model()
        elif needs_model:
            if ranks.is_first:
                cache.remember(self.info)
            filler = from_model()
            self.filler = CachingFiller(cache, lambda: filler, device=device, ranks=ranks)
        else:
            self.filler = CachingFiller(cache, from_model, device=device, ranks=ranks)

    def width(self, hook_name: str) -> int:
        """How many numbers a token has there. Raises ConfigError if the model has no such hook point."""
        return self._outline.width(hook_name) if self._outline else self._widths.get(hook_name, self.info.d_model)

    def batches(self, start: Place, watch: Watch) -> Iterator[Batch]:
        """Batches from the buffer that begins at `start`."""
        config = self.config
        return batches(self.filler, batch_tokens=config.batch_tokens, seed=config.data_seed, start=start, watch=watch)

    def close(self) -> None:
        self.filler.close()

    def _is_kept(self, cache: ActivationCache) -> bool:
        return cache.holds(self.n_batches, batch_tokens=self.config.batch_tokens)

    def _from_model(self, model: LanguageModel, ranks: Ranks) -> ModelFiller:
        config = self.config
        frame = framing(model.tokenizer, prepend_bos=config.prepend_bos)
        in_order = iter_contexts(
            iter_documents(config.corpus, text_field=config.text_field),
            model.tokenizer,
            context_size=config.context_size,
            frame=frame,
        )
        check_corpus(in_order, context_size=config.context_size, frame=frame)
        return ModelFiller(
            model,
            lambda epoch: _contexts(config, model, frame, epoch),
            hook_names=self.hook_names,
            frame=frame,
            buffer_tokens=self.buffer_tokens,
            ranks=ranks,
        )


def _contexts(config: TrainConfig, model: LanguageModel, frame: Framing, epoch: int) -> Iterable[TokenContext]:
    documents = iter_documents(config.corpus, text_field=config.text_field)
    contexts = iter_contexts(documents, model.tokenizer, context_size=config.context_size, frame=frame)
    return shuffled(contexts, seed=config.data_seed + epoch)


def _own_part(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """What one rank holds of the SAE."""
    if not ranks.shards_features:
        return config
    return dataclasses.replace(config, d_sae=max(config.k, config.d_sae // ranks.size))


def _trainee(config: TrainConfig, source: _Source, device: torch.device, ranks: Ranks) -> Trainee:
    """An SAE for vectors of the width that those at its hook have; a transcoder gives those at its target."""
    d_out = source.width(config.target_hook_name) if config.target_hook_name else None
    return Trainee(config, d_in=source.width(config.hook_name), d_out=d_out, device=device, ranks=ranks)


def _run(runs: Sequence[_Run], source: _Source, *, stop: StopRequest, ranks: Ranks, log: RunLog) -> None:
    """Steps until all tokens are seen or a stop is asked for; leaves checkpoints unless all are done."""
    config = source.config
    places = [run.folder.load_checkpoint(run.trainee) or Place() for run in runs]
    if all(run.trainee.is_done for run in runs):
        return  # stopped, or out of disk, before the weights were saved
    place = min(places, key=lambda place: place.n_batches)
    total = source.n_batches * config.batch_tokens
    done = min(run.trainee.n_tokens for run in runs)
    if done:
        log.note(f"goes on from {done:,} tokens")
    saved_at = time.monotonic()
    is_saved = True
    measured = ""
    what = "training" if len(runs) == 1 else f"training {len(runs)} SAEs"

    def save() -> None:
        for run in runs:
            if ranks.is_first or ranks.shards_features:
                run.folder.save_checkpoint(run.trainee, place)
        log.note(f"checkpoint at {min(run.trainee.n_tokens for run in runs):,} tokens")

    with progress_bar(total=total, done=done, what=what, is_shown=ranks.is_first) as bar:
        watch = Watch(lambda: stop.was_made, lambda text: say(bar, text or measured))
        for batch in source.batches(place, watch):
            place = batch.place
            behind = [run for run in runs if run.trainee.n_tokens // config.batch_tokens == batch.number]
            if not behind:
                continue
            for run in behind:
                _step(run.trainee, batch)
            is_saved = False
            bar.update(config.batch_tokens)
            is_done = batch.number + 1 >= source.n_batches
            is_stopped, is_due, is_read = ranks.agree_on(
                stop.was_made,
                time.monotonic() - saved_at > config.checkpoint_seconds,
                ranks.is_first and any(run.folder.metrics_are_due for run in runs),
            )
            if is_read or is_done:
                read = [run.trainee.read_metrics() for run in runs]  # by every rank: sharded features are counted
                if ranks.is_first:
                    said = [run.folder.write_metrics(metrics) for run, metrics in zip(runs, read, strict=True)]
                    measured = said[-1]
                    say(bar, measured)
            if is_stopped or (is_due and not is_done):
                save()
                saved_at, is_saved = time.monotonic(), True
            if is_stopped or is_done:
                break
        else:  # stopped while a buffer was filled
            if not is_saved:
                save()


def _step(trainee: Trainee, batch: Batch) -> None:
    config = trainee.config
    targets = None if config.target_hook_name is None else batch.acts[config.target_hook_name]
    trainee.step(batch.acts[config.hook_name], targets)


def _check_shared(configs: list[TrainConfig]) -> None:
    differing = [name for name in _SHARED if len({getattr(config, name) for config in configs}) > 1]
    if differing:
        raise ConfigError(
            f"SAEs that are trained together must have the same {', '.join(differing)}; train these one by one."
        )


@contextmanager
def _said_plainly(ranks: Ranks) -> Iterator[None]:
    """Turns running out of memory and losing a process into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _out_of_memory() from error
        if ranks.size > 1 and isinstance(error, torch.distributed.DistError | torch.distributed.DistBackendError):
            raise _rank_lost() from error
        if ranks.size > 1 and any(word in str(error) for word in ("Connection", "gloo", "NCCL", "Timed out", "peer")):
            raise _rank_lost() from error
        raise


def _out_of_memory() -> OutOfMemoryError:
    return OutOfMemoryError(
        "Memory ran out while training: lower --batch-tokens, --buffer-tokens or --d-sae, or use --dtype bfloat16, "
        "under another --slug; or end other programs and run the same command again, it goes on from its checkpoint."
    )


def _rank_lost() -> RanksError:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which torchrun sends to those that are left: the reason comes first
    return RanksError(
        "Another process of this job ended or cannot be reached, so this one stops too; start the same command again, "
        "it goes on from the last checkpoint."
    )


def trained(folder: Path) -> SAEInfo:
    """The SAE of a finished run's folder. Raises NotFoundError if there is none."""
    if not (folder / CONFIG_FILE).exists() or not (folder / WEIGHTS_FILE).exists():
        raise NotFoundError(f"There is no trained SAE in {folder}; train it first, or name another --home.")
    config = TrainConfig.load(folder / CONFIG_FILE)
    outline = load_outline(config.model, dtype=config.dtype)
    return _info(folder, config, outline.info, d_in=outline.width(config.hook_name))


def _info(folder: Path, config: TrainConfig, model: ModelInfo, *, d_in: int) -> SAEInfo:
    weights = folder / WEIGHTS_FILE
    created = weights.stat().st_mtime if weights.exists() else time.time()
    return SAEInfo(
        slug=folder.name,
        model=model,
        hook_name=config.hook_name,
        layer=config.layer,
        architecture=config.architecture,
        d_in=d_in,
        d_sae=config.d_sae,
        k=config.k,
        n_training_tokens=config.tokens,
        weights_path=str(folder.resolve()),
        created_at=datetime.fromtimestamp(created, tz=UTC),
        config=dataclasses.asdict(config),
    )


def main() -> int:
    """`torchrun … -m sae_core.train`, and the same without torchrun: trains into HOME/runs; returns an exit code."""
    parser = argparse.ArgumentParser(
        prog="sae_core.train", description="Train one SAE with all of torchrun's processes."
    )
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="its folder `runs` gets the SAE")
    parser.add_argument(
        "--shard", choices=MODES, default="data", help="what the processes share out: rows or the SAE's features (data)"
    )
    add_train_arguments(parser)
    with spoken_by_first():
        arguments = parser.parse_args()
    try:
        with joined_ranks() as job:
            try:
                return _main(arguments)
            except SaescopeError as error:
                job.say_once(f"saescope: {error}")
                return error.exit_code
    except SaescopeError as error:  # the ranks never met
        print(f"saescope: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _main(arguments: argparse.Namespace) -> int:
    config = train_config(arguments)
    slug = arguments.slug or default_slug(config)
    info = train(config, runs=arguments.home / "runs", slug=slug, shard=arguments.shard)
    if info is None:
        return 130
    if Ranks().is_first:
        print(f"The SAE is in {info.weights_path}. The same options to `saescope train` put it into the database.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
