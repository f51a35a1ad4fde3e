"""Loads a language model and its tokenizer from a folder, the hub's cache or the hub, or says why not."""

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae_core.config import DTYPES
from sae_core.demo_lm import DEMO_LM_FOLDER
from sae_core.errors import ConfigError, ModelError
from sae_core.model import LanguageModel
from sae_core.placement import (
    AUTO,
    check_weights,
    computing_dtype,
    loading_options,
    weights_sentence,
)
from sae_core.progress import say_line
from sae_core.records import ModelInfo

DEMO_MODEL = "demo"
_CAUSAL_KINDS = ("ForCausalLM", "LMHead", "ForConditionalGeneration")


def load_model(
    model_name: str, *, dtype: str = "float32", device: str | None = None, beside_bytes: int | None = None
) -> LanguageModel:
    """A model with its tokenizer from a folder, the hub's cache or the hub; `demo` is the model that ships here.

    Says on the terminal how much memory the weights will take, before they are read. The device `auto` spreads a model
    that is larger than the GPU, and leaves `beside_bytes` of it free (None: a fifth). Raises ModelError, in one
    sentence that says what to do, if it is absent, gated, offline, of an unknown kind, or too large for the device.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}.")
    source = str(resolve_model(model_name))
    chosen = choose_device(device)
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading bars would stand between a job's own lines
    with _model_errors(model_name):
        options = _loading_options(source)
        config, loader = _config_and_loader(source, options)
        outline = _outline(config, loader, dtype)
        info = _info(model_name, source, config, outline)
        say_line(weights_sentence(info, outline, dtype=dtype, device=chosen))
        check_weights(info, outline, dtype=dtype, device=chosen, spreads=device == AUTO)
        is_quantised = getattr(config, "quantization_config", None) is not None
        placed = loading_options(
            dtype, chosen, spreads=device == AUTO, is_quantised=is_quantised, beside_bytes=beside_bytes
        )
        with _without_report():
            module, found = loader.from_pretrained(source, output_loading_info=True, **placed, **options)
        _check_complete(model_name, found["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if "device_map" not in placed:
            module.to(chosen)
        _fuse_gelu(module)
    return LanguageModel(module, tokenizer, info)


@contextmanager
def _without_report() -> Iterator[None]:
    """What a file has and lacks is not told as a table on the terminal: `_check_complete` says what matters of it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_complete(model_name: str, missing: Collection[str]) -> None:
    """ModelError if weights are missing, which `transformers` would draw at random; but for a pooler's, unused here."""
    lacking = sorted(name for name in missing if "pooler" not in name)
    if lacking:
        raise ModelError(
            f"{model_name} lacks {len(lacking)} of the model's tensors ({lacking[0]}{', …' if lacking[1:] else ''}), "
            "and random ones in their place would make every number wrong: fetch its files again."
        )


def _fuse_gelu(module: nn.Module) -> None:
    """GPT-2's activation function in one operation instead of eight: the same formula, rounded elsewhere (2e-7).

    On a CPU that saves a fifth of such a model's time.
    """
    from transformers.activations import GELUTanh, NewGELUActivation

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is NewGELUActivation:
                setattr(parent, name, GELUTanh())


def load_outline(model_name: str, *, dtype: str = "float32") -> LanguageModel:
    """The model without weights and tokenizer, for all that can be checked before those are loaded.

    Its parameters are on torch's "meta" device: they have shapes but no memory. Raises ModelError as `load_model` does.
    """
    source = str(resolve_model(model_name))
    with _model_errors(model_name):
        options = _loading_options(source)
        config, loader = _config_and_loader(source, options)
        module = _outline(config, loader, dtype)
    return LanguageModel(module, None, _info(model_name, source, config, module))


def _outline(config: Any, loader: Any, dtype: str) -> nn.Module:
    with torch.device("meta"):
        outline: nn.Module = loader.from_config(config, dtype=computing_dtype(dtype), trust_remote_code=False)
    return outline


def _config_and_loader(source: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """A model's configuration and the class of `transformers` that loads it."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, **options)
    is_causal = any(kind in name for name in (config.architectures or []) for kind in _CAUSAL_KINDS)
    return config, AutoModelForCausalLM if is_causal else AutoModel


def _info(model_name: str, source: str, config: Any, module: nn.Module) -> ModelInfo:
    text_config = config.get_text_config()
    return ModelInfo(
        model_name=model_name,
        revision=_folder_fingerprint(Path(source)) if Path(source).is_dir() else _commit(source, config),
        architecture=type(module).__name__,
        n_layers=text_config.num_hidden_layers,
        d_model=text_config.hidden_size,
    )


def load_tokenizer(model_name: str) -> Any:
    """The model's tokenizer alone; raises ModelError as `load_model` does."""
    source = str(resolve_model(model_name))
    from transformers import AutoTokenizer

    with _model_errors(model_name):
        return AutoTokenizer.from_pretrained(source, **_loading_options(source))


def _loading_options(source: str) -> dict[str, Any]:
    """Options of every `from_pretrained`. Asks the hub once: without an answer only this machine's cache is used.

    By themselves the loaders would ask again and again for most of a minute.
    """
    # Where trust_remote_code is left out, transformers asks at the terminal whether to run a model's own code.
    options: dict[str, Any] = {"trust_remote_code": False}
    if Path(source).is_dir():
        return options
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(source, timeout=10)
    except HfHubHTTPError:
        raise  # the hub's own answer: gated, private or unknown
    except Exception:  # offline, in as many ways as there are networks
        options["local_files_only"] = True
    return options


def choose_device(device: str | None) -> torch.device:
    """The named device, or (also for `auto`) cuda where it is there and else the cpu.

    ConfigError if the named one is not here.
    """
    if device is None or device == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"Device {device!r} is not here; leave out --device, or use --device cpu.") from error
    return chosen


def resolve_model(model_name: str) -> str | Path:
    """The folder behind a name that means one (`demo`, a path), else the name, which is then a hub id."""
    if model_name == DEMO_MODEL:
        return DEMO_LM_FOLDER / "weights"
    path = Path(model_name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(
                f"The folder {model_name} holds no config.json; give the folder that save_pretrained wrote."
            )
        return path
    looks_like_path = model_name.startswith((".", "/", "~")) or model_name.count("/") > 1 or os.sep == "\\"
    if looks_like_path:
        raise ModelError(f"There is no model folder {model_name}; check the path.")
    return model_name


@contextmanager
def _model_errors(model_name: str) -> Iterator[None]:
    """Turns what `transformers` and the hub raise into one sentence that says what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # damaged files make tokenizers and safetensors raise plain Exceptions
        chain = list(_causes(error))
        if any(isinstance(cause, GatedRepoError) for cause in chain):
            sentence = "is gated: accept its licence on its hub page, then run `hf auth login` (or set HF_TOKEN)"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
            sentence = "is not on the hub (or is private): check the name, or run `hf auth login` (or set HF_TOKEN)"
        elif isinstance(error, torch.OutOfMemoryError):
            sentence = "does not fit into the device's memory: use --dtype bfloat16 or --device cpu"
        elif "trust_remote_code" in str(error):
            sentence = "needs program code of its own, which saescope never runs: use a model that transformers knows"
        elif Path(model_name).expanduser().is_dir():
            detail = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            sentence = f"cannot be loaded from its folder ({detail})"
        elif isinstance(error, OSError):
            sentence = "is not on this machine and the hub cannot be reached: check the network, or give a folder"
        else:
            detail = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            sentence = f"cannot be loaded ({detail})"
        raise ModelError(f"The model {model_name} {sentence}.") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _commit(source: str, config: Any) -> str:
    """The commit of a hub's model: as the configuration knows it, or as the hub's cache has filed it."""
    from huggingface_hub import try_to_load_from_cache

    if commit := getattr(config, "_commit_hash", None):
        return str(commit)
    kept = try_to_load_from_cache(source, "config.json")  # …/snapshots/COMMIT/config.json
    return Path(kept).parent.name if isinstance(kept, str) else "unknown"


def _folder_fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and both ends of the weight files: enough to notice that they were replaced."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:40]
