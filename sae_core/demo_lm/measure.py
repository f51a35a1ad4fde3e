"""Bits per byte of the demo model on files never trained on, beside what `xz -9e` makes of the same files."""

import lzma
import math
from dataclasses import dataclass
from typing import Any

import torch

from sae_core.demo_lm.bpe import MAX_TOKENS
from sae_core.demo_lm.text import SourceText

STRIDE = (
    512  # tokens by which windows of MAX_TOKENS move on; each token has at least as many before it where they exist
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The model and `xz -9e` on one set of files never trained on."""

    name: str
    n_files: int
    n_bytes: int
    loss: float  # nats per token
    bits_per_byte: float
    xz_bits_per_byte: float


@dataclass(frozen=True, slots=True)
class _Window:
    ids: list[int]
    counted_from: int  # tokens before this one were counted in the window before


def measure_all(held_out: list[SourceText], *, model: Any, tokenizer: Any) -> list[HeldOut]:
    """Standard library files, files of installed packages, and prose, each measured by itself."""
    sets = {
        "standard library files": [d for d in held_out if d.is_stdlib and not d.is_prose],
        "files of installed packages": [d for d in held_out if not d.is_stdlib and not d.is_prose],
        "prose (docstrings, READMEs, help topics)": [d for d in held_out if d.is_prose],
    }
    return [measure(name, documents, model=model, tokenizer=tokenizer) for name, documents in sets.items()]


@torch.inference_mode()
def measure(name: str, documents: list[SourceText], *, model: Any, tokenizer: Any) -> HeldOut:
    """Bits per byte over `documents`; every token but BOS is predicted once."""
    model.eval()
    encoded = [tokenizer.encode(document.text, add_special_tokens=False, verbose=False) for document in documents]
    windows = sorted((w for ids in encoded for w in _windows(ids)), key=lambda window: len(window.ids))
    nats, n_counted = 0.0, 0
    for first in range(0, len(windows), 8):
        batch = windows[first : first + 8]
        longest = max(len(window.ids) for window in batch)
        ids = torch.full((len(batch), longest + 1), tokenizer.bos_token_id)
        counted = torch.zeros((len(batch), longest), dtype=torch.bool)
        for row, window in enumerate(batch):
            ids[row, 1 : len(window.ids) + 1] = torch.tensor(window.ids)
            counted[row, window.counted_from : len(window.ids)] = True
        ids, counted = ids.to(model.device), counted.to(model.device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        nats += losses.view_as(counted)[counted].double().sum().item()
        n_counted += int(counted.sum())
    assert n_counted == sum(map(len, encoded)), "every token must be predicted exactly once"
    joined = "".join(document.text for document in documents).encode()
    return HeldOut(
        name=name,
        n_files=len({document.path for document in documents}),
        n_bytes=len(joined),
        loss=nats / n_counted,
        bits_per_byte=nats / math.log(2) / len(joined),
        xz_bits_per_byte=8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / len(joined),
    )


def _windows(ids: list[int]) -> list[_Window]:
    overlap = MAX_TOKENS - STRIDE
    starts = range(0, max(1, len(ids) - overlap), STRIDE)
    return [_Window(ids[start : start + MAX_TOKENS], overlap if start else 0) for start in starts]
