"""Where a language model's weights go and in what precision: reckoned, shown and checked before any of them is read.

    float32, bfloat16, float16   all weights as they are, on one device
    int8, int4                   the linear layers of the blocks in 8 or 4 bits (bitsandbytes), the rest in bfloat16
    --device auto                one layer after the other goes to the GPUs until they are full, the rest into main
                                 memory, from where it visits the GPU in every pass (accelerate's device map)

`int8` and `int4` give other activations than the weights as they are, so they are part of an SAE's provenance.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sae_core.config import QUANTISED
from sae_core.errors import ModelError
from sae_core.free_memory import free_bytes, gigabytes
from sae_core.records import ModelInfo

AUTO = "auto"
_BITS = {"int8": 8, "int4": 4}
_LEFT_SHARE = 0.2  # of a GPU that is filled up, for activations and the SAE


def computing_dtype(dtype: str) -> torch.dtype:
    """In what a model of this dtype computes, and its activations come."""
    kind: torch.dtype = getattr(torch, "bfloat16" if dtype in QUANTISED else dtype)
    return kind


def weight_bytes(module: nn.Module, dtype: str) -> int:
    """Bytes of the weights of a model, or of its outline, once they are loaded in this dtype."""
    small = set()
    if dtype in QUANTISED:
        head = module.get_output_embeddings()  # type: ignore[operator]
        linear = (m for m in module.modules() if isinstance(m, nn.Linear) and m is not head)
        small = {id(layer.weight) for layer in linear}
    bits = 8 * computing_dtype(dtype).itemsize
    return sum(p.numel() * (_BITS[dtype] if id(p) in small else bits) // 8 for p in module.parameters())


def weights_sentence(info: ModelInfo, module: nn.Module, *, dtype: str, device: torch.device) -> str:
    """`meta-llama/Llama-3.2-1B: 1.24 billion parameters, 2.5 GB in bfloat16; 11.3 GB are free on cuda.`"""
    n = sum(parameter.numel() for parameter in module.parameters())
    size = f"{n / 1e9:.2f} billion" if n >= 1e8 else f"{n / 1e6:.1f} million"
    free = free_bytes(device)
    room = "" if free is None else f"; {gigabytes(free)} are free on {device.type}"
    return f"{info.model_name}: {size} parameters, {gigabytes(weight_bytes(module, dtype))} in {dtype}{room}."


def check_weights(
    info: ModelInfo, module: nn.Module, *, dtype: str, device: torch.device, spreads: bool = False
) -> None:
    """Raises ModelError, with the numbers and what to do, if the weights cannot fit on the device.

    `spreads`: also what the other GPUs and main memory have counts.
    """
    wanted, free = weight_bytes(module, dtype), sum(_room(0).values()) if spreads else free_bytes(device)
    if free is None or wanted <= free:
        return
    ways = {
        "float32": "--dtype bfloat16",
        "bfloat16": "--dtype int8",
        "float16": "--dtype int8",
        "int8": "--dtype int4",
    }
    spread = "--device auto" if device.type == "cuda" and not spreads else None
    others = [way for way in (ways.get(dtype), spread) if way]
    place = "all devices together" if spreads else device.type
    raise ModelError(
        f"The model {info.model_name} needs {gigabytes(wanted)} in {dtype} and {gigabytes(free)} are free on "
        f"{place}: use {' or '.join([*others, 'a smaller model'])}, or end other programs."
    )


def loading_options(
    dtype: str, device: torch.device, *, spreads: bool, is_quantised: bool, beside_bytes: int | None = None
) -> dict[str, Any]:
    """What `from_pretrained` is told of precision and place; none of place means that the model is moved afterwards.

    `is_quantised`: the weights were published in few bits, with all that transformers must know of it.
    `beside_bytes` are left free on each GPU over which a model is spread; None: a fifth of it. Raises ModelError where
    a package that this needs is not installed.
    """
    options: dict[str, Any] = {"dtype": computing_dtype(dtype)}
    if spreads:
        _require("accelerate", "--device auto")
        options |= {"device_map": "auto", "max_memory": _room(beside_bytes)}
    elif dtype in QUANTISED or is_quantised:
        _require("accelerate", f"--dtype {dtype}")
        options["device_map"] = {"": str(device)}
    if dtype in QUANTISED and not is_quantised:
        options["quantization_config"] = _in_few_bits(dtype, device)
    return options


def first_device(module: Any) -> torch.device:
    """Where a model's inputs go and an SAE beside it belongs."""
    places = getattr(module, "hf_device_map", None) or {}
    for place in places.values():
        if place not in ("cpu", "disk"):
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    if places:
        return torch.device("cpu")
    device: torch.device = next(module.parameters()).device
    return device


@contextmanager
def weights_here(module: nn.Module) -> Iterator[None]:
    """While open, a module's own weights can be read, also those that are brought in for each pass only."""
    if all(parameter.device.type != "meta" for parameter in module.parameters(recurse=False)):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def _in_few_bits(dtype: str, device: torch.device) -> Any:
    from transformers import BitsAndBytesConfig

    _require("bitsandbytes", f"--dtype {dtype}")
    if device.type not in ("cuda", "cpu"):
        raise ModelError(f"--dtype {dtype} is not for {device.type}: use --dtype bfloat16, or --device cpu.")
    if dtype == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _room(beside_bytes: int | None) -> dict[int | str, int]:
    """Bytes of weights that each GPU, and main memory, may hold."""
    room: dict[int | str, int] = {}
    for number in range(torch.cuda.device_count()):
        free = free_bytes(torch.device("cuda", number)) or 0
        room[number] = max(0, int((1 - _LEFT_SHARE) * free) if beside_bytes is None else free - beside_bytes)
    return room | {"cpu": free_bytes(torch.device("cpu")) or 1 << 60}


def _require(package: str, option: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{option} needs the package {package}: pip install 'saescope[large]'.")
