"""The demo model's card: data, size, steps, held-out loss beside xz, and the command that reproduces it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_core.demo_lm.measure import HeldOut

CARD_FILE = "README.md"


def write_card(out: Path, *, n_parameters: int, results: Sequence[HeldOut], facts: Mapping[str, Any]) -> None:
    """Writes the card beside the weights in `out`."""
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    rows = "\n".join(
        f"| {r.name} | {r.n_files} | {r.n_bytes:,} | {r.loss:.3f} | **{r.bits_per_byte:.3f}** "
        f"| {r.xz_bits_per_byte:.3f} |"
        for r in results
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    epochs = facts["tokens"] / facts["stream_tokens"]
    (out / CARD_FILE).write_text(
        f"""\
---
license: apache-2.0
language: [en, code]
library_name: transformers
---

# The saescope demo model

A small `LlamaForCausalLM` (RMSNorm, SwiGLU, RoPE, grouped-query attention) for trying saescope without a network. It
has read Python's standard library and the packages that saescope installs: sources, docstrings, READMEs, help topics.
It completes such text plausibly and knows nothing else.

| | |
|---|---|
| size | {n_parameters / 1e6:.2f}M parameters, {size / 1e6:.1f} MB in bfloat16 |
| shape | 6 layers, width 256, 4 query heads on 2 key-value heads, MLP 640, tied embeddings, contexts to 1,024 tokens |
| tokenizer | byte-level BPE of 6,144 tokens, adds `<|bos|>` by itself |
| data | {facts["n_documents"]:,} documents: {facts["code_bytes"] / 1e6:.0f} MB of code, \
{facts["prose_bytes"] / 1e6:.0f} MB of prose read {facts["prose_epochs"]} times; \
{facts["stream_tokens"] / 1e6:.1f}M tokens |
| training | {facts["step"]:,} steps of {facts["batch_tokens"]:,} tokens, {facts["tokens"] / 1e6:.1f}M tokens \
({epochs:.2f} of the stream), {facts["spent_s"] / 60:.0f} minutes on {facts["device"]}; \
Muon and AdamW, bfloat16 autocast |

## Held-out loss

One file in fifty, chosen by a hash of its path and never trained on; files most of whose lines stand in another file
were removed before. A token is predicted from the up to 1,023 tokens before it, and from at least 512 where they exist.
`xz -9e` compresses the same files joined together.

| files never trained on | files | bytes | loss (nats per token) | bits per byte | xz -9e, bits per byte |
|---|---|---|---|---|---|
{rows}

## Reproduce

    python -m sae_core.demo_lm.train --minutes {facts["minutes"]:g}

The text is what the machine's own Python carries, so another set of packages gives another model. Here: {versions}.

## Licences

The text stays where it was; the weights were trained on code under the licences of Python and of these packages.
"""
    )
