"""`python -m benchmarks.recipes`: the tables of docs/recipes, computed from the models' shapes and from measured rates.

Nothing is run and nothing is fetched: each model is built without memory from its published shape. For one token

    the model to the hook    2 · parameters of the blocks up to it       (attention's own products are left out)
    the SAE in training      2 · d_in · d_sae · TRAIN_FACTOR
    the SAE in indexing      2 · d_in · d_sae · INDEX_FACTOR, and the model to the hook times INDEX_FACTOR

multiplications and additions. The factors are docs/performance.md's: a step took 1.6 times the encoder's product, an
index 1.5 to 2.3 times the model and that product. So is the rate of a CPU core. No GPU was measured: GPU_RATE is a
round number to scale by.
"""

from dataclasses import dataclass
from typing import Any

import torch

from sae_core.config import TrainConfig
from sae_core.memory import training_bytes
from sae_core.placement import weight_bytes

TRAIN_FACTOR, INDEX_FACTOR = 1.6, 2.0
CORE_RATE = 30_952 * 2 * 256 * 4096  # operations a second: the floor of docs/performance.md
GPU_RATE = 100e12
EXAMPLES, EXAMPLE_BYTES = 45, 120  # kept of a feature; docs/performance.md
BUFFER_TOKENS = 262_144


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model, where it is read, and an SAE of a usual size for it."""

    name: str
    kind: str  # transformers' model_type
    layer: int
    d_sae: int
    shape: dict[str, Any]
    tokens: int = 200_000_000
    index_tokens: int = 10_000_000
    dtype: str = "bfloat16"


def _shape(d: int, n: int, ffn: int, heads: int, kv: int, head: int, vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": d, "num_hidden_layers": n, "intermediate_size": ffn, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": head, "vocab_size": vocab, "tie_word_embeddings": tied,
    }  # fmt: skip


def _neox(d: int, n: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": d, "num_hidden_layers": n, "intermediate_size": 4 * d, "num_attention_heads": heads,
        "vocab_size": 50_304,
    }  # fmt: skip


RECIPES: dict[str, tuple[Recipe, ...]] = {
    "llama": (
        Recipe("meta-llama/Llama-3.2-1B", "llama", 8, 32_768, _shape(2048, 16, 8192, 32, 8, 64, 128_256, True)),
        Recipe("meta-llama/Llama-3.2-3B", "llama", 14, 49_152, _shape(3072, 28, 8192, 24, 8, 128, 128_256, True)),
        Recipe("meta-llama/Llama-3.1-8B", "llama", 16, 65_536, _shape(4096, 32, 14_336, 32, 8, 128, 128_256, False)),
    ),
    "gemma": (
        Recipe("google/gemma-2-2b", "gemma2", 12, 36_864, _shape(2304, 26, 9216, 8, 4, 256, 256_000, True)),
        Recipe("google/gemma-2-9b", "gemma2", 20, 57_344, _shape(3584, 42, 14_336, 16, 8, 256, 256_000, True)),
        Recipe("google/gemma-3-1b-pt", "gemma3_text", 13, 18_432, _shape(1152, 26, 6912, 4, 1, 256, 262_144, True)),
    ),
    "qwen": (
        Recipe("Qwen/Qwen2.5-0.5B", "qwen2", 12, 14_336, _shape(896, 24, 4864, 14, 2, 64, 151_936, True)),
        Recipe("Qwen/Qwen2.5-7B", "qwen2", 14, 57_344, _shape(3584, 28, 18_944, 28, 4, 128, 152_064, False)),
        Recipe("Qwen/Qwen3-0.6B", "qwen3", 14, 16_384, _shape(1024, 28, 3072, 16, 8, 128, 151_936, True)),
        Recipe("Qwen/Qwen3-4B", "qwen3", 18, 40_960, _shape(2560, 36, 9728, 32, 8, 128, 151_936, True)),
    ),
    "pythia": (
        Recipe("EleutherAI/pythia-70m", "gpt_neox", 3, 8_192, _neox(512, 6, 8), 20_000_000, 2_000_000, "float32"),
        Recipe("EleutherAI/pythia-410m", "gpt_neox", 12, 16_384, _neox(1024, 24, 16)),
        Recipe("EleutherAI/pythia-1.4b", "gpt_neox", 12, 32_768, _neox(2048, 24, 16)),
    ),
    "gpt2": (
        Recipe(
            "openai-community/gpt2", "gpt2", 6, 12_288, {"n_embd": 768, "n_layer": 12, "n_head": 12},
            20_000_000, 2_000_000, "float32",
        ),
        Recipe("openai-community/gpt2-xl", "gpt2", 24, 25_600, {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    ),
    "mistral": (
        Recipe("mistralai/Mistral-7B-v0.3", "mistral", 16, 65_536, _shape(4096, 32, 14_336, 32, 8, 128, 32_768, False)),
    ),
    "bert": (
        Recipe(
            "google-bert/bert-base-cased", "bert", 6, 12_288,
            {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 28_996}, 20_000_000, 2_000_000, "float32",
        ),
    ),
}  # fmt: skip

HEAD = (
    "| model | `--layer` | `--d-sae` | parameters | weights | training needs | GFLOP a token | training | "
    "on a core | index | database |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(family: str) -> str:
    """The table of one page, as Markdown."""
    return "\n".join([HEAD, *map(row, RECIPES[family])])


def row(recipe: Recipe) -> str:
    module = _outline(recipe)
    n, d = sum(p.numel() for p in module.parameters()), module.config.get_text_config().hidden_size
    weights = weight_bytes(module, recipe.dtype)
    to_hook = 2.0 * sum(p.numel() for block in _blocks(module)[: recipe.layer + 1] for p in block.parameters())
    encoder = 2.0 * d * recipe.d_sae
    training = to_hook + TRAIN_FACTOR * encoder
    indexing = INDEX_FACTOR * (to_hook + encoder)
    device = torch.device("cuda")
    config = TrainConfig(
        model=recipe.name, layer=recipe.layer, corpus=("-",), d_sae=recipe.d_sae, k=64, tokens=recipe.tokens,
        batch_tokens=8192, dtype=recipe.dtype, buffer_tokens=BUFFER_TOKENS,
    )  # fmt: skip
    needed = training_bytes([config], d_model=d, device=device, buffer_tokens=BUFFER_TOKENS, model_bytes=weights)
    database = recipe.d_sae * EXAMPLES * EXAMPLE_BYTES
    cells = (
        recipe.name, recipe.layer, f"{recipe.d_sae:,}", f"{n / 1e9:.2f} B", _gb(weights), _gb(needed),
        f"{training / 1e9:.2f}", f"{_tokens(recipe.tokens)}: {_time(training * recipe.tokens / GPU_RATE)}",
        _time(training * recipe.tokens / CORE_RATE),
        f"{_tokens(recipe.index_tokens)}: {_time(indexing * recipe.index_tokens / GPU_RATE)}", _gb(database),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def _outline(recipe: Recipe) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.for_model(recipe.kind, **recipe.shape)
    with torch.device("meta"):
        return (AutoModel if recipe.kind == "bert" else AutoModelForCausalLM).from_config(config)


def _blocks(module: Any) -> list[Any]:
    n = module.config.get_text_config().num_hidden_layers
    return next(list(m) for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n)


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _tokens(n: int) -> str:
    return f"{n // 1_000_000}M"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds >= 36_000 else f"{seconds / 3600:.1f} h"


def main() -> None:
    for family in RECIPES:
        print(f"## {family}\n\n{table(family)}\n")


if __name__ == "__main__":
    main()
