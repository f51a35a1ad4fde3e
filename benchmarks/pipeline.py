"""What training costs from text to SAE, against its parts; and what several SAEs on one pass cost against one by one.

    python -m benchmarks.pipeline [--quick] [--model demo] [--layer 3]

In rotation, all with as many threads as torch would use by itself:

    forward      the stream of activations, read to the end and thrown away: tokenising, the model, the buffer
    steps        the SAE's steps alone, on activations that lie in memory
    end to end   one SAE from text
    together     six SAEs (k 8, 16, 32 and two architectures) from one pass

The last two are compared with their parts: on one device, forward and steps share the same cores, so that their sum is
what end to end can reach, and more than the slower of the two.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle

import torch

from benchmarks.train import machine
from sae_core.activations import ModelFiller, Place, batches
from sae_core.config import TrainConfig
from sae_core.corpus import iter_documents
from sae_core.fit import Trainee
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.tokens import framing, iter_contexts, shuffled

SIX = [(architecture, k) for architecture in ("topk", "batchtopk") for k in (8, 16, 32)]


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a card and, last, one line of JSON."""
    arguments = _arguments(argv)
    model = load_model(arguments.model)
    tokens = 65_536 if arguments.quick else 524_288
    base = TrainConfig(
        model=arguments.model,
        layer=arguments.layer,
        corpus=tuple(arguments.corpus),
        d_sae=arguments.d_sae,
        tokens=tokens,
        buffer_tokens=min(131_072, tokens),
    )
    held = next(iter(_stream(model, base)))
    parts: dict[str, Callable[[], None]] = {
        "forward": lambda: _train(model, base, []),
        "steps": lambda: _steps(held, base),
        "end to end": lambda: _train(model, base, [_trainee(model, base)]),
        "together": lambda: _train(model, base, [_trainee(model, base, *one) for one in SIX]),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 if arguments.quick else 3):
        for name, part in parts.items():
            started = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    _print_card(median, tokens, base)


def _print_card(median: dict[str, float], tokens: int, base: TrainConfig) -> None:
    slower = max(median["forward"], median["steps"])
    ratios = {
        "end to end / slower part": median["end to end"] / slower,
        "end to end / sum of parts": median["end to end"] / (median["forward"] + median["steps"]),
        "six together / six one by one": median["together"] / (6 * median["end to end"]),
    }
    print(f"Training from text: {base.model} layer {base.layer}, d_sae {base.d_sae:,}, {tokens:,} tokens")
    for name, value in median.items():
        print(f"  {name:<32}{value:8.1f} s {tokens / value:10,.0f} tokens/s")
    for name, value in ratios.items():
        print(f"  {name:<32}{value:8.2f}")
    setting = {"tokens": tokens, "d_sae": base.d_sae, "layer": base.layer, "threads": torch.get_num_threads()}
    result = {
        "bench": "pipeline",
        "unit": "tokens/s",
        "ours": tokens / median["end to end"],
        "parts": {name: tokens / value for name, value in median.items()},
        "ratios": ratios,
        "setting": setting,
        "machine": machine(),
    }
    print(json.dumps(result))


def _stream(model: LanguageModel, config: TrainConfig):  # type: ignore[no-untyped-def]
    frame = framing(model.tokenizer)

    def contexts(epoch: int):  # type: ignore[no-untyped-def]
        documents = iter_documents(config.corpus)
        cut = iter_contexts(documents, model.tokenizer, context_size=config.context_size, frame=frame)
        return shuffled(cut, seed=epoch)

    filler = ModelFiller(
        model, contexts, hook_names=(config.hook_name,), frame=frame, buffer_tokens=config.buffer_tokens
    )
    for batch in batches(filler, batch_tokens=config.batch_tokens, seed=0, start=Place()):
        yield batch.acts[config.hook_name]


def _train(model: LanguageModel, config: TrainConfig, trainees: list[Trainee]) -> None:
    for number, acts in enumerate(_stream(model, config), start=1):
        for trainee in trainees:
            trainee.step(acts)
        if number * config.batch_tokens >= config.tokens:
            return


def _steps(held: torch.Tensor, config: TrainConfig) -> None:
    trainee = Trainee(config, d_in=held.shape[1])
    for acts in cycle([held, held.flip(0)]):
        trainee.step(acts)
        if trainee.is_done:
            return


def _trainee(model: LanguageModel, config: TrainConfig, architecture: str = "topk", k: int = 32) -> Trainee:
    return Trainee(dataclasses.replace(config, architecture=architecture, k=k), d_in=model.info.d_model)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline")
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens, once")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--corpus", nargs="+", default=["python-docs"])
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
