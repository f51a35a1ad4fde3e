"""How much memory a training run will need, said before anything large is loaded.

    per SAE     weights, gradients, Adam's two moments: 4 × 4 bytes × d_sae · (d_in + d_out + 2)
    once        as much as the widest SAE's weights, for what is made of gradients
    per core    (on a GPU once) a slice of pre-activations, twice, and a forward pass of the model
    per batch   inputs, error, gradients (N, d): six of them, and for each group; 60 bytes for each entry of a code
    per hook    the buffer, in the model's own precision, and the passes that are being copied into it
    the model   its weights

A token has k entries, and d_in / 2 more while the auxiliary loss revives features. ReLU, gated and JumpReLU SAEs have
several times as many at first, which takes three dense products of some rows to find.
"""

import torch

from sae_core import select
from sae_core.activations import FORWARD_TOKENS
from sae_core.config import TrainConfig
from sae_core.errors import ConfigError
from sae_core.fit import AUXILIARY, START_ROWS
from sae_core.free_memory import free_bytes, gigabytes
from sae_core.sae import MatryoshkaSAE

_BASE_BYTES = 300 << 20  # Python, torch and transformers themselves
_ENTRY_BYTES = 60
_FORWARD_WIDTHS = 20  # numbers that a forward pass holds per token, in widths of the model
_PASSES = 8  # whose activations wait to be copied into the buffer
_CONTEXTS_HELD = 24_576  # tokenised, shuffled or waiting
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2, "int4": 2}  # of activations


def check_memory(
    configs: list[TrainConfig], *, d_model: int, device: torch.device, buffer_tokens: int, model_bytes: int
) -> int:
    """Bytes that training these SAEs together needs, as `training_bytes` has them.

    Raises ConfigError, with the numbers, if they cannot fit into the device's memory.
    """
    wanted = training_bytes(
        configs, d_model=d_model, device=device, buffer_tokens=buffer_tokens, model_bytes=model_bytes
    )
    free = free_bytes(device)
    if free is not None and wanted > free:
        raise ConfigError(
            f"Training needs about {gigabytes(wanted)} of memory and {gigabytes(free)} are free on {device.type}: "
            "lower --d-sae, --batch-tokens or --buffer-tokens, train fewer SAEs at once, or load the model with "
            "--dtype bfloat16."
        )
    return wanted


def training_bytes(
    configs: list[TrainConfig], *, d_model: int, device: torch.device, buffer_tokens: int, model_bytes: int
) -> int:
    """Bytes that training these SAEs together needs at most, by the formulas above. `model_bytes` are its weights'."""
    shared = configs[0]
    item = _ITEM_BYTES[shared.dtype]
    on_cpu = device.type == "cpu"
    n_cores = torch.get_num_threads() if on_cpu else 1
    n_hooks = len({name for config in configs for name in (config.hook_name, config.target_hook_name) if name})
    widest = max(config.d_sae for config in configs)
    saes = sum(16 * config.d_sae * (2 * d_model + 2) for config in configs) + 4 * widest * 2 * d_model
    slices = 2 * n_cores * max(select.CPU_SLICE_BYTES if on_cpu else select.GPU_SLICE_BYTES, 4 * widest)
    n_groups = max(len(MatryoshkaSAE.GROUP_SHARES) if c.architecture == "matryoshka" else 0 for c in configs)
    entries = max(_entries(config, d_model) for config in configs)
    batch = shared.batch_tokens * (6 * (1 + n_groups) * 4 * d_model + _ENTRY_BYTES * entries)
    batch += max(0 if config.architecture in AUXILIARY else 12 * START_ROWS * config.d_sae for config in configs)
    total = saes + slices + batch + model_bytes + n_hooks * buffer_tokens * d_model * item
    if shared.cache_activations:
        total += (n_hooks + 1) * buffer_tokens * d_model * 2
    if model_bytes:
        pass_tokens = FORWARD_TOKENS.get(device.type, 8_192)
        total += n_cores * pass_tokens * _FORWARD_WIDTHS * d_model * item
        total += n_hooks * (max(_PASSES, n_cores) if on_cpu else 1) * pass_tokens * d_model * item
    if on_cpu:
        total += _BASE_BYTES + _CONTEXTS_HELD * shared.context_size * 8
    return total


def _entries(config: TrainConfig, d_model: int) -> int:
    """The most entries that a token's code has."""
    if config.architecture not in AUXILIARY:
        return 6 * config.k
    k = config.k * (5 if config.multi_topk else 2 if config.architecture != "topk" else 1)
    return k + (d_model // 2 if config.aux_coefficient else 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, numpy or a driver says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
