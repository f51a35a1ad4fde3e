"""Train the demo language model: text to tokenizer to weights to model card, resumable at any point.

    python -m sae_core.demo_lm.train --minutes 90          # two CPU cores
    python -m sae_core.demo_lm.train --minutes 15 --device cuda
    python -m sae_core.demo_lm.train --evaluate            # measure the shipped weights again, write the card

1. Gather and clean the text (`text`), fit a byte-level BPE on a sample of it, store the token stream (`bpe`).
2. Train a `LlamaForCausalLM` by next-token loss. Hidden matrices are updated by Muon (Jordan et al. 2024, in
   `torch.optim`), embeddings and norms by AdamW. Learning rates follow the share of the time budget that is spent:
   warm-up, constant, linear to zero. Windows are short for most of the run and long at its end. Every window starts
   with the BOS token, as every context that saescope shows to a model does.
3. Write weights (bfloat16), tokenizer and config.
4. Measure bits per byte on files never trained on, beside what `xz -9e` reaches on the same files (`measure`); write
   the card (`card`).
"""

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_core.demo_lm import DEMO_LM_FOLDER
from sae_core.demo_lm.bpe import MAX_TOKENS, Prepared, prepare
from sae_core.demo_lm.card import write_card
from sae_core.demo_lm.measure import measure_all

SHORT_WINDOW, LONG_WINDOW = 256, MAX_TOKENS  # tokens
LONG_WINDOW_FROM = 0.75  # share of the budget after which windows are long
COOL_DOWN_FROM = 0.25
MUON_LR, ADAM_LR = 0.02, 0.004
REPORT_SECONDS, CHECKPOINT_SECONDS = 20.0, 300.0
MICRO_TOKENS = {"cpu": 4_096, "cuda": 32_768}  # per forward and backward pass


@dataclass(frozen=True, slots=True)
class State:
    """How far training is; the schedule follows `spent_s` over the budget."""

    spent_s: float = 0.0
    step: int = 0
    tokens: int = 0


def new_model(vocab_size: int, *, bos: int, eos: int) -> Any:
    """The untrained model: 6 layers, width 256, 4 query heads on 2 key-value heads, tied embeddings."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=LONG_WINDOW,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:  # each block starts as the identity
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def windows(stream: np.ndarray, *, size: int, bos: int, seed: int, batch: int) -> Iterator[torch.Tensor]:
    """Endless batches of windows `(batch, size + 1)`: BOS, then `size` tokens of the stream, in shuffled order."""
    generator = np.random.default_rng(seed)
    while True:
        offset = int(generator.integers(size))
        starts = generator.permutation(np.arange(offset, len(stream) - size, size))
        for first in range(0, len(starts) - batch + 1, batch):
            rows = [np.concatenate([[bos], stream[start : start + size]]) for start in starts[first : first + batch]]
            yield torch.from_numpy(np.stack(rows).astype(np.int64))


def learning_rate_share(progress: float) -> float:
    """Share of the full learning rate at `progress` in 0..1 of the budget."""
    warm_up = min(1.0, progress / 0.01)
    cool_down = min(1.0, (1.0 - progress) / (1.0 - COOL_DOWN_FROM))
    return max(0.0, min(warm_up, cool_down))


def next_token_loss(forward: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of predicting `ids[:, 1:]` from what stands before; `ids` is (B, T + 1)."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = forward(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T, vocab)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


class Training:
    """The model with its optimisers, one step at a time."""

    def __init__(self, data: Prepared, *, device: torch.device, batch_tokens: int, seed: int) -> None:
        tokenizer = data.tokenizer
        self.model = new_model(len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id).to(device)
        self.state = State()
        self._data, self._device, self._seed = data, device, seed
        self._micro_tokens = MICRO_TOKENS[device.type]
        self._n_micro = max(1, batch_tokens // self._micro_tokens)
        self._forward = torch.compile(self.model, dynamic=False) if shutil.which("c++") else self.model
        self._feeds: dict[int, Iterator[torch.Tensor]] = {}
        matrices = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        known = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in known]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, nesterov=True, weight_decay=0.02),
            torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, *, progress: float) -> float:
        """One optimiser step at `progress` in 0..1 of the budget; returns its loss in nats per token."""
        size = LONG_WINDOW if progress >= LONG_WINDOW_FROM else SHORT_WINDOW
        if size not in self._feeds:
            bos, seed = self._data.tokenizer.bos_token_id, self._seed + self.state.step
            batch = self._micro_tokens // size
            self._feeds[size] = windows(self._data.stream, size=size, bos=bos, seed=seed, batch=batch)
        for optimizer, lr in zip(self._optimizers, (MUON_LR, ADAM_LR), strict=True):
            optimizer.param_groups[0]["lr"] = lr * learning_rate_share(progress)
        losses = []
        for _ in range(self._n_micro):
            loss = next_token_loss(self._forward, next(self._feeds[size]).to(self._device))
            (loss / self._n_micro).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        n_tokens = self.state.tokens + self._n_micro * self._micro_tokens
        self.state = dataclasses.replace(self.state, step=self.state.step + 1, tokens=n_tokens)
        return sum(losses) / len(losses)

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "state": dataclasses.asdict(self.state),
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True, map_location=self._device)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.state = State(**saved["state"])


def run(training: Training, *, budget_s: float, checkpoint: Path) -> None:
    """Steps until the budget is spent; saves a checkpoint every few minutes and at the end."""
    training.model.train()
    last = saved_at = reported_at = time.monotonic()
    while training.state.spent_s < budget_s:
        progress = training.state.spent_s / budget_s
        before = training.state.tokens
        loss = training.step(progress=progress)
        now = time.monotonic()
        training.state = dataclasses.replace(training.state, spent_s=training.state.spent_s + now - last)
        if now - reported_at > REPORT_SECONDS:
            state, rate = training.state, (training.state.tokens - before) / (now - last)
            print(
                f"{progress:6.1%}  step {state.step:5d}  tokens {state.tokens / 1e6:6.2f}M  loss {loss:.4f}"
                f"  {rate:,.0f} tokens/s",
                flush=True,
            )
            reported_at = now
        if now - saved_at > CHECKPOINT_SECONDS or training.state.spent_s >= budget_s:
            training.save(checkpoint)
            saved_at = now
        last = now


def write_folder(out: Path, *, model: Any, tokenizer: Any) -> None:
    """Weights in bfloat16 safetensors, config and tokenizer, as `from_pretrained` reads them."""
    weights = new_model(model.config.vocab_size, bos=model.config.bos_token_id, eos=model.config.eos_token_id)
    weights.load_state_dict(model.state_dict())
    weights.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def evaluate_folder(out: Path, data: Prepared, *, facts: dict[str, object], device: torch.device) -> None:
    """Measures the saved model on the held-out files and writes its card."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).to(device)
    results = measure_all(data.held_out, model=model, tokenizer=tokenizer)
    write_card(out, n_parameters=sum(p.numel() for p in model.parameters()), results=results, facts=facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90, help="training time; the schedule follows it (90)")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens per optimiser step (16,384)")
    parser.add_argument("--device", help="cpu or cuda (cuda if it is there)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".cache/demo_lm"), help="token stream and checkpoints")
    parser.add_argument("--out", type=Path, default=DEMO_LM_FOLDER / "weights", help="where the model is written")
    parser.add_argument("--evaluate", action="store_true", help="do not train; measure what --out holds")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = prepare(args.work, seed=args.seed)
    training = Training(data, device=device, batch_tokens=args.batch_tokens, seed=args.seed)
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    if not args.evaluate:
        run(training, budget_s=args.minutes * 60, checkpoint=checkpoint)
        write_folder(args.out, model=training.model, tokenizer=data.tokenizer)
    facts = {**data.facts, **dataclasses.asdict(training.state), "minutes": args.minutes, "device": str(device)}
    evaluate_folder(args.out, data, facts={**facts, "batch_tokens": args.batch_tokens}, device=device)


if __name__ == "__main__":
    main()
