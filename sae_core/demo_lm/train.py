"""Train the demo language model: text to tokenizer to weights to model card, resumable at any point.

    python -m sae_core.demo_lm.train --minutes 90          # two CPU cores
    python -m sae_core.demo_lm.train --minutes 15 --device cuda

1. Gather and clean the text (`text`), fit a byte-level BPE on a sample of it, store the token stream.
2. Train a `LlamaForCausalLM` by next-token loss. Hidden matrices are updated by Muon (Jordan et al. 2024, in
   `torch.optim`), embeddings and norms by AdamW. Learning rates follow the share of the time budget that is spent:
   warm-up, constant, linear to zero. Windows are short for most of the run and long at its end. Every window starts
   with the BOS token, as every context that saescope shows to a model does.
3. Measure bits per byte on files never trained on, beside what `xz -9e` reaches on the same files.
4. Write weights (bfloat16), tokenizer, config and card.
"""

import argparse
import json
import lzma
import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from sae_core.demo_lm import DEMO_LM_FOLDER
from sae_core.demo_lm.card import write_card
from sae_core.demo_lm.text import SourceText, gather_text, installed_versions

BOS_TOKEN = "<|bos|>"
EOS_TOKEN = "<|eos|>"
VOCAB_SIZE = 6144
# Newlines take the indentation that follows; a word takes the one sign or space before it; digits go by threes.
PRE_TOKEN_PATTERN = r"\n+[ \t]*|[^\s\p{L}\p{N}]?\p{L}+| \p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
SHORT_WINDOW, LONG_WINDOW = 256, 1024  # tokens
LONG_WINDOW_FROM = 0.75  # share of the budget after which windows are long
COOL_DOWN_FROM = 0.25
MUON_LR, ADAM_LR = 0.02, 0.004
PROSE_EPOCHS = 2
EVAL_STRIDE = 512  # tokens


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Bits per byte of the model and of `xz -9e` on one set of files never trained on."""

    name: str
    n_files: int
    n_bytes: int
    loss: float  # nats per token
    bits_per_byte: float
    xz_bits_per_byte: float


def train_tokenizer(texts: list[str], *, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A byte-level BPE that adds BOS to everything it encodes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, bpe.token_to_id(BOS_TOKEN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS_TOKEN, eos_token=EOS_TOKEN, model_max_length=LONG_WINDOW
    )


def new_model(vocab_size: int, *, bos: int, eos: int) -> LlamaForCausalLM:
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


def prepare(work: Path, seed: int) -> tuple[PreTrainedTokenizerFast, np.ndarray, list[SourceText], dict[str, object]]:
    """Tokenizer, shuffled training stream, held-out documents and a description of the data; made once in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    documents = list(gather_text())
    training = [document for document in documents if not document.is_held_out]
    held_out = [document for document in documents if document.is_held_out]
    random.Random(seed).shuffle(training)
    if not (work / "data.json").exists():
        print(f"{len(documents):,} documents, {sum(len(d.text) for d in documents) / 1e6:.0f} MB", flush=True)
        sample: list[str] = []
        size = 0
        for document in training:
            sample.append(document.text)
            size += len(document.text)
            if size > 40_000_000:
                break
        tokenizer = train_tokenizer(sample)
        tokenizer.save_pretrained(work / "tokenizer")
        repeated = [document for document in training for _ in range(PROSE_EPOCHS if document.is_prose else 1)]
        random.Random(seed + 1).shuffle(repeated)
        stream = np.concatenate(
            [
                np.array(ids + [tokenizer.eos_token_id], dtype=np.uint16)
                for start in range(0, len(repeated), 256)
                for ids in tokenizer([document.text for document in repeated[start : start + 256]])["input_ids"]
            ]
        )
        np.save(work / "stream.npy", stream)
        facts = {
            "n_documents": len(training),
            "code_bytes": sum(len(d.text.encode()) for d in training if not d.is_prose),
            "prose_bytes": sum(len(d.text.encode()) for d in training if d.is_prose),
            "prose_epochs": PROSE_EPOCHS,
            "stream_tokens": len(stream),
            "versions": installed_versions(),
        }
        (work / "data.json").write_text(json.dumps(facts, indent=2))
        print(f"{len(stream):,} tokens in the stream", flush=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    return (
        tokenizer,
        np.load(work / "stream.npy", mmap_mode="r"),
        held_out,
        json.loads((work / "data.json").read_text()),
    )


def windows(stream: np.ndarray, *, size: int, bos: int, seed: int, batch: int):
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


def next_token_loss(model: Callable[..., CausalLMOutput], ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of predicting `ids[:, 1:]` from what stands before; `ids` is (B, T + 1)."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T, vocab)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def train(args: argparse.Namespace) -> None:
    """Prepare, train within the time budget (resuming if `--work` has a checkpoint), evaluate and write the folder."""
    torch.manual_seed(args.seed)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer, stream, held_out, facts = prepare(args.work, args.seed)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = new_model(len(tokenizer), bos=bos, eos=eos).to(device)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, nesterov=True, weight_decay=0.02),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    state = {"spent_s": 0.0, "step": 0, "tokens": 0}
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        for optimizer, optimizer_state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        state = saved["state"]
    budget_s = args.minutes * 60
    micro_tokens = 32_768 if device.type == "cuda" else 4_096
    forward = torch.compile(model, dynamic=False) if shutil.which("c++") else model
    feeds: dict[int, object] = {}
    last = time.monotonic()
    saved_at = reported_at = last
    losses: list[float] = []
    model.train()
    while state["spent_s"] < budget_s:
        progress = state["spent_s"] / budget_s
        size = LONG_WINDOW if progress >= LONG_WINDOW_FROM else SHORT_WINDOW
        if size not in feeds:
            feeds[size] = windows(
                stream, size=size, bos=bos, seed=args.seed + state["step"], batch=micro_tokens // size
            )
        share = learning_rate_share(progress)
        for optimizer, lr in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
            optimizer.param_groups[0]["lr"] = lr * share
        n_micro = max(1, args.batch_tokens // micro_tokens)
        for _ in range(n_micro):
            loss = next_token_loss(forward, next(feeds[size]).to(device))
            (loss / n_micro).backward()
            losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        state = {
            "spent_s": state["spent_s"] + min(now - last, 60.0),
            "step": state["step"] + 1,
            "tokens": state["tokens"] + n_micro * micro_tokens,
        }
        if now - reported_at > 20:
            rate = n_micro * micro_tokens / (now - last)
            mean = sum(losses) / len(losses)
            print(f"{progress:6.1%}  step {state['step']:5d}  tokens {state['tokens'] / 1e6:6.2f}M  window {size}"
                  f"  loss {mean:.4f}  {rate:,.0f} tokens/s", flush=True)  # fmt: skip
            losses.clear()
            reported_at = now
        last = now
        if now - saved_at > 300 or state["spent_s"] >= budget_s:
            saved = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "state": state}
            torch.save(saved, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            saved_at = now
    write_folder(args.out, model=model, tokenizer=tokenizer)
    facts = {**facts, **state, "minutes": args.minutes, "device": str(device), "batch_tokens": args.batch_tokens}
    evaluate_folder(args.out, held_out=held_out, facts=facts)


def write_folder(out: Path, *, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights in bfloat16 safetensors, config and tokenizer, as `from_pretrained` reads them."""
    weights = new_model(model.config.vocab_size, bos=model.config.bos_token_id, eos=model.config.eos_token_id)
    weights.load_state_dict(model.state_dict())
    weights.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def evaluate_folder(out: Path, *, held_out: list[SourceText], facts: dict[str, object]) -> None:
    """Measure the saved model on the held-out documents and write its card."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    if torch.cuda.is_available():
        model.to("cuda")
    code = [document for document in held_out if not document.is_prose]
    sets = {
        "standard library files": [document for document in code if document.is_stdlib],
        "dependency files": [document for document in code if not document.is_stdlib],
        "prose (docstrings, READMEs, topics)": [document for document in held_out if document.is_prose],
    }
    results = [measure(name, documents, model=model, tokenizer=tokenizer) for name, documents in sets.items()]
    write_card(out, model=model, results=results, facts=facts)


@torch.inference_mode()
def measure(
    name: str, documents: list[SourceText], *, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> HeldOut:
    """Bits per byte over `documents`, each token predicted from at least `EVAL_STRIDE` tokens where they exist."""
    model.eval()
    rows, counted = [], []
    n_tokens = 0
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        n_tokens += len(ids)
        for start in range(0, max(1, len(ids) - (LONG_WINDOW - EVAL_STRIDE)), EVAL_STRIDE):
            rows.append(ids[start : start + LONG_WINDOW])
            counted.append(0 if start == 0 else LONG_WINDOW - EVAL_STRIDE)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    nats, n_counted = 0.0, 0
    for first in range(0, len(order), 8):
        batch = order[first : first + 8]
        longest = max(len(rows[i]) for i in batch)
        ids = torch.full((len(batch), longest + 1), tokenizer.bos_token_id)
        wanted = torch.zeros((len(batch), longest), dtype=torch.bool)
        for j, i in enumerate(batch):
            ids[j, 1 : len(rows[i]) + 1] = torch.tensor(rows[i])
            wanted[j, counted[i] : len(rows[i])] = True
        ids, wanted = ids.to(model.device), wanted.to(model.device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        nats += losses.view_as(wanted)[wanted].double().sum().item()
        n_counted += int(wanted.sum())
    assert n_counted == n_tokens, (n_counted, n_tokens)
    joined = "".join(document.text for document in documents).encode()
    packed = len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME))
    result = HeldOut(
        name=name,
        n_files=len({document.path for document in documents}),
        n_bytes=len(joined),
        loss=nats / n_tokens,
        bits_per_byte=nats / math.log(2) / len(joined),
        xz_bits_per_byte=8 * packed / len(joined),
    )
    print(result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90, help="training time; the schedule follows it (90)")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens per optimiser step (16,384)")
    parser.add_argument("--device", help="cpu or cuda (what is there)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".cache/demo_lm"), help="token stream and checkpoints")
    parser.add_argument("--out", type=Path, default=DEMO_LM_FOLDER / "weights", help="where the model is written")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
