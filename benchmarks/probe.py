"""How long a probe takes: against the bare forward pass and encode, while one types, and with 32 readers at once.

    fresh      a text of 64 tokens, as `Prober.probe` gives it   against   the model to the hook and the SAE's encode
    typed      one word more in a text of 256 tokens             against   the same text afresh
    together   32 clients of the model worker, each asking again as soon as it is answered   against   one such client
    typing     32 clients who each add a word a second to a text of their own: the latency that each of them sees,
               against   one such client

The two models differ in width: the one that ships, and one of GPT-2's width with random weights, where the arithmetic
is what counts. Times are medians of interleaved repeats.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from app.inference import ModelWorker, ProbeJob
from benchmarks.web import machine
from sae_core.demo_lm import DEMO_LM_FOLDER
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.probe import Prober
from sae_core.records import Prompt, SAEInfo
from sae_core.sae import ARCHITECTURES

D_SAE, K = 4096, 32
CLIENTS, PAUSE_S = 32, 1.0
FRESH_TOKENS, TYPED_TOKENS = 64, 256
WORDS = [
    "the",
    "array",
    "is",
    "returned",
    "with",
    "axes",
    "transposed",
    "and",
    "a",
    "view",
    "of",
    "its",
    "data",
    "when",
    "no",
    "copy",
    "has",
    "to",
    "be",
    "made",
    "for",
    "it",
]


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a card and, last, one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.probe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats of the small model, to see that it works")
    parser.add_argument("--repeats", type=int, default=60, help="of each probe in this process")
    parser.add_argument("--seconds", type=float, default=15.0, help="that each crowd of clients asks for")
    arguments = parser.parse_args(argv)
    repeats, seconds = (5, 2.0) if arguments.quick else (arguments.repeats, arguments.seconds)
    found = {}
    with TemporaryDirectory(prefix="saescope-bench-") as folder:
        for name, model_name in models(Path(folder), only_small=arguments.quick):
            sae = made_sae(Path(folder) / f"{name}-sae", load_model(model_name))
            found[name] = measured(sae, repeats=repeats) | asyncio.run(crowd(sae, seconds=seconds))
    print(card(found), end="\n\n")
    setting = {"d_sae": D_SAE, "k": K, "clients": CLIENTS, "pause_s": PAUSE_S, "threads": torch.get_num_threads()}
    print(json.dumps({"bench": "probe", "unit": "ms", "ours": found, "setting": setting, "machine": machine()}))


def models(folder: Path, *, only_small: bool) -> Iterator[tuple[str, str]]:
    """Names for the card, and what `load_model` takes."""
    yield "demo", "demo"
    if only_small:
        return
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(DEMO_LM_FOLDER / "weights")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=7, num_attention_heads=12, num_key_value_heads=12,
        vocab_size=len(tokenizer), max_position_embeddings=1024,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "wide")
    tokenizer.save_pretrained(folder / "wide")
    yield "768 wide", str(folder / "wide")


def made_sae(folder: Path, model: LanguageModel) -> SAEInfo:
    """A TopK SAE with random directions in the middle of the model: its cost is that of a trained one."""
    torch.manual_seed(0)
    layer, d_model = model.info.n_layers // 2, model.info.d_model
    ARCHITECTURES["topk"](d_model, D_SAE, K).save(folder)
    return SAEInfo(
        slug="random", model=model.info, hook_name=f"blocks.{layer}.hook_resid_post", layer=layer, architecture="topk",
        d_in=d_model, d_sae=D_SAE, k=K, n_training_tokens=0, weights_path=str(folder), created_at=datetime.now(UTC),
        config={"dtype": "float32"},
    )  # fmt: skip


def measured(sae: SAEInfo, *, repeats: int) -> dict[str, float]:
    """One probe at a time, in this process: milliseconds, medians."""
    prober = Prober(sae, device="cpu")
    rng = random.Random(0)
    fresh = [text_of(prober, rng, FRESH_TOKENS) for _ in range(repeats)]
    bare, probed = medians(
        [lambda i: bare_forward(prober, fresh[i]), lambda i: prober.probe(fresh[i])], repeats=repeats
    )
    typed = [text_of(prober, rng, TYPED_TOKENS) for _ in range(repeats)]
    whole, added = medians(
        [
            lambda i: prober.probe(f"{typed[i]} again"),
            lambda i: prober.probed(Prompt(text=f"{typed[i]} again", session="typist")),
        ],
        repeats=repeats,
        before=lambda i: prober.probed(Prompt(text=typed[i], session="typist")),
    )
    return {"bare_ms": bare, "fresh_ms": probed, "fresh_ratio": probed / bare,
            "afresh_ms": whole, "typed_ms": added, "typed_ratio": added / whole}  # fmt: skip


def text_of(prober: Prober, rng: random.Random, n_tokens: int) -> str:
    words = [rng.choice(WORDS) for _ in range(n_tokens)]
    ids = prober.model.tokenizer.encode(" ".join(words), add_special_tokens=False)[:n_tokens]
    return str(prober.model.tokenizer.decode(ids))


@torch.inference_mode()
def bare_forward(prober: Prober, text: str) -> None:
    """What no probe can do without: the model to the hook, and the SAE's encode."""
    ids = torch.tensor([prober.model.tokenizer.encode(text)])
    acts = prober.model.activations(ids, torch.ones_like(ids, dtype=torch.bool), prober.info.hook_name)
    prober.sae.encode(acts[0])


def medians(
    calls: list[Callable[[int], object]], *, repeats: int, before: Callable[[int], object] = lambda i: None
) -> list[float]:
    """Milliseconds of each call, which take turns; `before` each of them comes something that is not timed."""
    for call in calls:
        call(0)
    times: list[list[float]] = [[] for _ in calls]
    for i in range(1, repeats):
        for call, found in zip(calls, times, strict=True):
            before(i)
            started = time.perf_counter()
            call(i)
            found.append(1000 * (time.perf_counter() - started))
    return [statistics.median(found) for found in times]


async def crowd(sae: SAEInfo, *, seconds: float) -> dict[str, float]:
    """Many clients of the model worker, against one."""
    texts = [" ".join(random.Random(i).choices(WORDS, k=FRESH_TOKENS)) for i in range(997)]
    async with working() as worker:
        for text in texts[:3]:
            await worker.answer(ProbeJob(sae=sae, prompt=Prompt(text=text)))
        alone, alone_s = await clients(worker, sae, texts, n=1, seconds=seconds)
        together, together_s = await clients(worker, sae, texts, n=CLIENTS, seconds=seconds)
        one_typing, _ = await typists(worker, sae, texts, n=1, seconds=seconds)
        typing, _ = await typists(worker, sae, texts, n=CLIENTS, seconds=seconds)
    rates = len(alone) / alone_s, len(together) / together_s
    crowds = (alone, together, one_typing, typing)
    alone_ms, together_ms, one_ms, typing_ms = (1000 * statistics.median(found) for found in crowds)
    return {
        "alone_per_s": rates[0], "alone_p50_ms": alone_ms, "together_per_s": rates[1], "together_p50_ms": together_ms,
        "one_typing_p50_ms": one_ms, "typing_p50_ms": typing_ms, "throughput_ratio": rates[1] / rates[0],
        "latency_ratio": typing_ms / one_ms,
    }  # fmt: skip


@asynccontextmanager
async def working() -> AsyncIterator[ModelWorker]:
    """A model worker with room for all clients, its threads waiting as those of a dashboard's worker do.

    `app.inference.process` says how they wait, which is too late where the process has torch already, as this one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    worker = ModelWorker(queue_size=2 * CLIENTS, device="cpu")
    try:
        yield worker
    finally:
        await worker.close()


Asking = Callable[[int, random.Random], Prompt]


async def clients(
    worker: ModelWorker, sae: SAEInfo, texts: list[str], *, n: int, seconds: float
) -> tuple[list[float], float]:
    """`n` of them, each asking for another text as soon as it is answered; see `asked`."""
    return await asked(worker, sae, lambda _, rng: Prompt(text=rng.choice(texts)), n=n, seconds=seconds)


async def typists(
    worker: ModelWorker, sae: SAEInfo, texts: list[str], *, n: int, seconds: float
) -> tuple[list[float], float]:
    """`n` of them, each adding a word a second to a text of its own; see `asked`."""
    written = texts[:n]

    def longer(number: int, rng: random.Random) -> Prompt:
        written[number] += f" {rng.choice(WORDS)}"
        return Prompt(text=written[number], session=str(number))

    for number in range(n):
        await worker.answer(ProbeJob(sae=sae, prompt=longer(number, random.Random(0))))
    return await asked(worker, sae, longer, n=n, seconds=seconds, pause=PAUSE_S)


async def asked(
    worker: ModelWorker, sae: SAEInfo, prompt_of: Asking, *, n: int, seconds: float, pause: float = 0.0
) -> tuple[list[float], float]:
    """The latencies of what `n` clients asked within `seconds`, and how long it took until the last was answered."""
    latencies: list[float] = []
    begun = time.perf_counter()

    async def client(number: int) -> None:
        rng = random.Random(number)
        await asyncio.sleep(rng.random() * pause)
        while (started := time.perf_counter()) < begun + seconds:
            await worker.answer(ProbeJob(sae=sae, prompt=prompt_of(number, rng)))
            latencies.append(time.perf_counter() - started)
            await asyncio.sleep(pause)

    await asyncio.gather(*(client(number) for number in range(n)))
    return latencies, time.perf_counter() - begun


def card(found: dict[str, dict[str, float]]) -> str:
    """The figures for a reader, in lines of at most 80 characters."""
    lines = [f"Probes: an SAE of {D_SAE:,} features, {K} active, on the CPU"]
    for name, of in found.items():
        lines += ["", f"model {name}"]
        for what, mine, against, other, unit, ratio in (
            (f"fresh, {FRESH_TOKENS} tokens", "fresh_ms", "bare model and encode", "bare_ms", "ms", "fresh_ratio"),
            (f"one word more, {TYPED_TOKENS}", "typed_ms", "afresh", "afresh_ms", "ms", "typed_ratio"),
            (f"{CLIENTS} clients at once", "together_per_s", "one", "alone_per_s", "/s", "throughput_ratio"),
            (f"{CLIENTS} clients, typing", "typing_p50_ms", "one, typing", "one_typing_p50_ms", "ms", "latency_ratio"),
        ):
            lines.append(f"  {what:19}{of[mine]:8.1f} {unit}   {against:22}{of[other]:8.1f} {unit}  x{of[ratio]:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
