"""The language model: read activations at a hook point, put other activations in their place, unembed.

The only module that registers hooks or knows how a `transformers` architecture names its layers. Hook points carry the
names that published SAEs use:

    blocks.{layer}.hook_resid_pre    the residual stream entering a block
    blocks.{layer}.hook_resid_mid    the same with what attention adds, before the MLP
    blocks.{layer}.hook_resid_post   the residual stream leaving it
    blocks.{layer}.hook_attn_out     what its attention adds
    blocks.{layer}.hook_z            its heads' outputs side by side, before the output projection mixes them
    blocks.{layer}.hook_mlp_in       what its MLP reads, after the norm before it
    blocks.{layer}.hook_mlp_post     its MLP's neurons: what the nonlinearity (in a gated one both halves) gives
    blocks.{layer}.hook_mlp_out      what its MLP adds

All but `z` and `mlp_post` are as wide as the model. Reading stops the forward pass at the hook: later layers cost
nothing.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from sae_core.config import HOOKS
from sae_core.errors import ConfigError, ModelError
from sae_core.placement import first_device, weights_here
from sae_core.prefixes import KeyValues
from sae_core.records import ModelInfo

_HOOK_NAME = re.compile(rf"blocks\.(\d+)\.hook_({'|'.join(HOOKS)})")
# Where a block keeps what it adds to the residual stream; the first path that exists is taken. Gemma 2 and 3 and GLM 4
# normalise after attention and MLP and before adding; BERT keeps both in sub-modules named `output`.
_MLP_PATHS = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp", "output.dense", "feed_forward", "ffn")
_MLP_INPUT_PATHS = ("mlp", "feed_forward", "ffn", "intermediate.dense")
_ATTENTION_PATHS = (
    "attention.output.dense",
    "post_self_attn_layernorm",
    "self_attn",
    "attn",
    "self_attention",
    "attention",
)
# What turns the heads' outputs, and the neurons, into what the block adds: it reads the hook points `z` and `mlp_post`.
_PROJECTION_PATHS = {
    "z": (
        "self_attn.o_proj",
        "attn.c_proj",
        "attention.dense",
        "attention.output.dense",
        "self_attn.dense",
        "self_attention.dense",
        "self_attn.out_proj",
        "attn.attention.out_proj",
        "attn.out_proj",
    ),
    "mlp_post": (
        "mlp.down_proj",
        "mlp.c_proj",
        "mlp.dense_4h_to_h",
        "mlp.fc2",
        "mlp.fc_out",
        "ffn.down_proj",
        "output.dense",
    ),
}
# Between attention and MLP: a block without any such norm runs the two side by side.
_MIDDLE_NORMS = (
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "ln_2",
    "norm_2",
    "attention.output.LayerNorm",
)
# Blocks whose MLP or attention returns its sum with the residual stream, so that what it adds stands nowhere.
_ADDING_INSIDE = frozenset({"BloomBlock", "MptBlock"})
# Log-probabilities are made for so many rows at a time: 16 MB of them, which stay in the cache, but no fewer rows than
# that the one token which the model is run on for each part does not count.
_PART_LOGITS, _PART_ROWS = 1 << 22, 256
_PROJECTED = ("hook_z", "hook_mlp_post")  # of their own width
_FINAL_NORMS = (
    "model.norm",
    "model.language_model.norm",
    "transformer.ln_f",
    "gpt_neox.final_layer_norm",
    "model.final_layernorm",
    "model.decoder.final_layer_norm",
)


Edit = Callable[[Tensor, Tensor], Tensor | None]


class LanguageModel:
    """A `transformers` model for reading, not training: no gradients, eval mode, one device."""

    def __init__(self, module: nn.Module, tokenizer: Any, info: ModelInfo) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.info = info
        self.blocks = _find_blocks(module)

    @property
    def device(self) -> torch.device:
        """Where token ids go and activations come from, also if some of the weights are elsewhere."""
        return first_device(self.module)

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts next tokens; encoders (the BERT family) do not."""
        return self.module.get_output_embeddings() is not None

    @property
    def pad_id(self) -> int:
        """An id to fill batches with; what stands there never counts."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def check_hook(self, hook_name: str) -> None:
        """Raises ConfigError if the model has no such hook point."""
        self._hooked_module(hook_name)

    def width(self, hook_name: str) -> int:
        """How many numbers a token has at the hook. Raises ConfigError if the model has no such hook point."""
        module, _ = self._hooked_module(hook_name)
        if not hook_name.endswith(_PROJECTED):
            return self.info.d_model
        return int(getattr(module, "in_features", 0) or module.weight.shape[0])  # type: ignore[index]

    def activations(self, token_ids: Tensor, attention_mask: Tensor, hook_name: str) -> Tensor:
        """`model_acts` (B, T, d_in) at the hook, float32, for ids and mask (B, T). Runs nothing behind the hook."""
        with self.reading((hook_name,)) as read:
            return read(token_ids, attention_mask)[0].float()

    @torch.inference_mode()
    def hidden_states(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the last block gives behind the final norm (B, T, d_model), float32, for ids and mask (B, T)."""
        states: Tensor = self.module.base_model(input_ids=token_ids, attention_mask=attention_mask)[0]
        return states.float()

    def can_continue(self, hook_name: str, n_tokens: int) -> bool:
        """Whether `continued` may be used for a text of so many tokens: each sees all before it, from layer 0 on."""
        config = self.module.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None) or n_tokens
        return (
            self.is_causal
            and kinds <= {"full_attention", "sliding_attention"}
            and n_tokens <= window
            and not hook_name.startswith("blocks.0.hook_resid_pre")  # read before any layer has keys
        )

    @torch.inference_mode()
    def continued(self, past: KeyValues, token_ids: Tensor, hook_name: str) -> tuple[Tensor, KeyValues]:
        """`model_acts` (n, d_in) float32 of tokens (n,) that follow those of `past`, and the keys and values of all.

        Only what `can_continue` allows. `past` itself stays as it is.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past.layers):
            cache.update(keys, values, layer)

        def capture(acts: Tensor) -> None:
            raise _Captured(acts)

        with self._hooked(hook_name, capture):
            try:
                self.module(input_ids=token_ids.unsqueeze(0), past_key_values=cache, use_cache=True)
            except _Captured as captured:
                layers = tuple((layer.keys, layer.values) for layer in cache.layers)
                return captured.model_acts[0].float(), KeyValues(layers)
        raise ModelError(f"The forward pass never reached {hook_name}; this architecture is not supported there.")

    @contextmanager
    def reading(self, hook_names: Sequence[str]) -> Iterator[Callable[[Tensor, Tensor], list[Tensor]]]:
        """While open, gives a function of ids and mask (B, T): the activations (B, T, d) at every hook, in the
        model's own dtype, from one forward pass that ends at the last of them. Several threads may call it at once.
        """
        seen = local()
        n_hooks = len(set(hook_names))

        def capture_as(hook_name: str) -> Callable[[Tensor], None]:
            def capture(acts: Tensor) -> None:
                is_last = len(seen.acts.keys() | {hook_name}) == n_hooks
                seen.acts[hook_name] = acts if is_last else acts.clone()  # Falcon adds to it in place
                if is_last:
                    raise _AllCaptured

            return capture

        @torch.inference_mode()
        def read(token_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
            seen.acts = {}
            try:
                self._forward(token_ids, attention_mask)
            except _AllCaptured:
                return [seen.acts[name] for name in hook_names]
            missed = next(name for name in hook_names if name not in seen.acts)
            raise ModelError(f"The forward pass never reached {missed}; this architecture is not supported there.")

        with ExitStack() as hooks:
            for name in dict.fromkeys(hook_names):
                hooks.enter_context(self._hooked(name, capture_as(name)))
            yield read

    @torch.inference_mode()
    def predictions(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        *,
        where: Tensor,
        hook_name: str,
        replacements: Sequence[Callable[[Tensor], Tensor] | None],
    ) -> Iterator[tuple[Tensor, ...]]:
        """Log-probabilities (n, vocab) float32 of the next token after the positions `where` (B, T), in their order.

        Each part has one tensor for each of `replacements` at the hook, None being the model as it is. Parts are small:
        what is kept of a forward pass is what the output layer reads, (N, d_model), and only a part of it at a time
        meets the vocabulary, so no (B, T, vocab) ever exists. Only for a model that predicts (`is_causal`).
        """
        if not bool(where.any()):
            return
        head = self.module.get_output_embeddings()
        states = []
        for replace in replacements:
            with self._hooked(hook_name, replace):
                states.append(self._head_input(head, token_ids, attention_mask).to(where.device)[where])
        size = max(_PART_ROWS, _PART_LOGITS // len(head.weight))
        for rows in zip(*(torch.split(kept, size) for kept in states), strict=True):
            yield tuple(self._head_output(head, row).float().log_softmax(dim=1) for row in rows)

    def _head_input(self, head: nn.Module, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the output layer reads, (B, T, d_model)."""

        def capture(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Captured(args[0])

        handle = head.register_forward_pre_hook(capture)
        try:
            self._forward(token_ids, attention_mask)
        except _Captured as captured:
            return captured.model_acts
        finally:
            handle.remove()
        raise ModelError(f"{self.info.architecture} never calls its output layer; this architecture is not supported.")

    def _head_output(self, head: nn.Module, states: Tensor) -> Tensor:
        """Logits (n, vocab) of the states (n, d_model) that the output layer reads.

        What a model does to its logits (Gemma 2 caps them, Granite divides them) stands in its own forward function, so
        that is what runs: on one token, any token, whose state is exchanged for these before the output layer.
        """
        any_token = torch.full((1, 1), self.pad_id, device=states.device)
        handle = head.register_forward_pre_hook(lambda _, args: (states.unsqueeze(0), *args[1:]))
        try:
            logits: Tensor = self._forward(any_token, torch.ones_like(any_token, dtype=torch.bool)).logits
        finally:
            handle.remove()
        return logits[0].to(states.device)

    @torch.inference_mode()
    def unembedding(self) -> Tensor | None:
        """`W_U` (d_model, vocab) with the final norm's gain multiplied in, float32; None for a model without one.

        The final norm is taken as linear: its gain is kept, its division by the token's own scale is left out, and
        where it subtracts the mean (LayerNorm) the mean is subtracted from W_U's columns instead.
        """
        head = self.module.get_output_embeddings()
        if head is None or not hasattr(head, "weight"):
            return None
        with weights_here(head):
            weights: Tensor = head.weight.to(self.device).float()  # (vocab, d_model)
        norm = self.final_norm()
        if norm is None:
            return weights.T.contiguous()
        gain, _, subtracts_mean = self.gain_and_bias(norm, weights.shape[1], head.weight.dtype)
        scaled = weights * gain
        if subtracts_mean:
            scaled = scaled - scaled.mean(dim=1, keepdim=True)
        unembedding: Tensor = scaled.T.contiguous()
        return unembedding

    def final_norm(self) -> nn.Module | None:
        """The norm before the output layer; None where the model has none, or none that is known."""
        return next((m for path in _FINAL_NORMS if (m := _submodule(self.module, path)) is not None), None)

    def gain_and_bias(self, norm: nn.Module, d_model: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, bool]:
        """The norm's gain and bias (d_model), float32, and whether it subtracts the mean."""

        def normed(state: Tensor) -> Tensor:
            given: Tensor = norm(state.to(dtype))
            return given.to(self.device).float()

        signs = torch.ones(d_model, device=self.device)
        signs[1::2] = -1  # mean 0 and mean square 1: both kinds of norm leave it as it is but for gain and bias
        bias = normed(torch.zeros_like(signs))
        gain = (normed(signs) - bias) * signs
        return gain, bias, torch.allclose(normed(torch.ones_like(signs)), bias, atol=1e-2)

    @torch.inference_mode()
    def added_directions(self, hook_name: str, directions: Tensor) -> Tensor:
        """What directions (n, width) at a hook add to the residual stream, (n, d_model) float32.

        At `z` and `mlp_post` that is what the output projection makes of them, with the gain of the norm behind it if
        there is one, whose scale is left out as the final norm's is; elsewhere they are added as they are.
        """
        if not hook_name.endswith(_PROJECTED):
            return directions
        projection, _ = self._hooked_module(hook_name)
        weight = next(projection.parameters())
        dtype = weight.dtype if weight.is_floating_point() else self.module.dtype  # of few bits
        given = directions.to(self.device if weight.device.type == "meta" else weight.device, dtype)
        added: Tensor = (projection(given).float() - projection(torch.zeros_like(given[:1])).float()).to(self.device)
        behind = self._norm_behind(hook_name)
        if behind is not None:
            added = added * self.gain_and_bias(behind, added.shape[1], dtype)[0]
        return added

    @property
    def longest_context(self) -> int | None:
        """How many tokens the model has positions for, where it says so."""
        longest = getattr(self.module.config.get_text_config(), "max_position_embeddings", None)
        return int(longest) if longest else None

    def stream_scale(self, hook_name: str) -> float:
        """What a block multiplies the vectors at the hook by before it adds them to the residual stream: mostly 1.

        0 where it does not add them.
        """
        if hook_name.endswith(("mlp_in", *_PROJECTED)):
            return 0.0
        if hook_name.endswith(("mlp_out", "attn_out")):  # Granite
            return float(getattr(self.module.config.get_text_config(), "residual_multiplier", 1.0))
        return 1.0

    @contextmanager
    def edited(self, hook_names: tuple[str, str], edit: Edit | None) -> Iterator[None]:
        """While open, what `edit` makes of the activations (B, T, d) at two hooks takes the place of the second ones.

        They are one and the same for an SAE; a transcoder reads at the first. The model's own dtype.
        """
        if edit is None:
            yield
            return
        read_at, write_at = hook_names
        seen: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            if read_at != write_at:
                hooks.enter_context(self._hooked(read_at, lambda acts: seen.update(read=acts.clone())))
            hooks.enter_context(self._hooked(write_at, lambda acts: edit(seen.get("read", acts), acts)))
            yield

    @contextmanager
    def before(self, module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """While open, `change` sees a module's first input; what it returns (if anything) takes its place."""

        def on_input(_: nn.Module, args: tuple[Any, ...]) -> Any:
            changed = change(args[0].to(self.device))  # a spread model's modules are on several devices
            return None if changed is None else (changed.to(args[0].device), *args[1:])

        handle = module.register_forward_pre_hook(on_input)
        try:
            yield
        finally:
            handle.remove()

    def run(self, token_ids: Tensor, *, cached: Any = None, keeps: bool = False) -> Any:
        """What the model's own forward function gives for texts of one length (B, T), behind what `cached` holds.

        `keeps` makes it remember their keys and values.
        """
        return self.module(input_ids=token_ids, past_key_values=cached, use_cache=keeps)

    def _forward(self, token_ids: Tensor, attention_mask: Tensor) -> Any:
        # Padding stands behind the text, where no causal model looks: without a mask attention is fused and faster.
        mask = None if self.is_causal or bool(attention_mask.all()) else attention_mask.long()
        options = {"use_cache": False} if self.is_causal else {}
        return self.module(input_ids=token_ids, attention_mask=mask, **options)

    def _hooked_module(self, hook_name: str) -> tuple[nn.Module, bool]:
        """The module to hook and whether its input (not its output) is meant."""
        match = _HOOK_NAME.fullmatch(hook_name)
        if match is None:
            raise ConfigError(f"Hook {hook_name!r} is not known; it reads like blocks.6.hook_resid_post.")
        layer, kind = int(match[1]), match[2]
        if layer >= len(self.blocks):
            raise ConfigError(
                f"{self.info.model_name} has no layer {layer}: it has {len(self.blocks)} blocks, "
                f"numbered 0 to {len(self.blocks) - 1}."
            )
        block = self.blocks[layer]
        if kind in ("resid_pre", "resid_post"):
            return block, kind == "resid_pre"
        if kind == "resid_mid":
            return self._attention_before_mlp(layer), False
        if kind == "mlp_in" or kind in _PROJECTION_PATHS:
            for path in _PROJECTION_PATHS.get(kind, _MLP_INPUT_PATHS):
                if (module := _submodule(block, path)) is not None:
                    return module, True
            raise ConfigError(f"{type(block).__name__} has no {kind}; use resid_pre.")
        paths: tuple[str, ...] = _MLP_PATHS if kind == "mlp_out" else _ATTENTION_PATHS
        if kind == "attn_out" and hasattr(block, "post_feedforward_layernorm"):
            paths = ("post_attention_layernorm",)
        for path in () if type(block).__name__ in _ADDING_INSIDE else paths:
            if (module := _submodule(block, path)) is not None:
                return module, False
        raise ConfigError(f"{type(block).__name__} has no {kind}; use resid_post.")

    def _norm_behind(self, hook_name: str) -> nn.Module | None:
        """The norm between an output projection and the residual stream; None where there is none."""
        added_at = {"hook_z": "hook_attn_out", "hook_mlp_post": "hook_mlp_out"}
        block, _, kind = hook_name.rpartition(".")
        try:
            module, _ = self._hooked_module(f"{block}.{added_at[kind]}")
        except ConfigError:
            return None  # the block adds inside its MLP or attention
        return module if "norm" in type(module).__name__.lower() else None

    def _attention_before_mlp(self, layer: int) -> nn.Module:
        """What adds to `resid_pre` to make `resid_mid`. Raises ConfigError where the MLP does not read their sum."""
        block = self.blocks[layer]
        is_parallel = getattr(block, "use_parallel_residual", False)  # GPT-NeoX keeps the second norm
        if is_parallel or all(_submodule(block, path) is None for path in _MIDDLE_NORMS):
            raise ConfigError(
                f"{type(block).__name__} adds attention and MLP at once and has no resid_mid; use resid_pre."
            )
        return self._hooked_module(f"blocks.{layer}.hook_attn_out")[0]

    @contextmanager
    def _hooked(self, hook_name: str, change: Callable[[Tensor], Tensor | None] | None) -> Iterator[None]:
        """While open, `change` sees the activations at the hook; what it returns (if anything) takes their place."""
        if change is None:
            yield
            return
        module, at_input = self._hooked_module(hook_name)

        def changed_here(acts: Tensor) -> Tensor | None:  # a spread model's blocks are on several devices
            changed = change(acts.to(self.device))
            return None if changed is None else changed.to(acts.device)

        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = changed_here(_input_of(args, kwargs))
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            changed = changed_output(output[0] if isinstance(output, tuple) else output)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        with ExitStack() as handles:
            is_sum = hook_name.endswith("resid_mid")
            changed_output = self._on_sum(hook_name, changed_here, handles) if is_sum else changed_here
            handle = (
                module.register_forward_pre_hook(on_input, with_kwargs=True)
                if at_input
                else module.register_forward_hook(on_output)
            )
            handles.callback(handle.remove)
            yield

    def _on_sum(
        self, hook_name: str, change: Callable[[Tensor], Tensor | None], handles: ExitStack
    ) -> Callable[[Tensor], Tensor | None]:
        """`change` of what attention adds, from one of `resid_mid`, its sum with what the block read."""
        block = self.blocks[int(hook_name.split(".")[1])]
        scale = self.stream_scale(hook_name.replace("resid_mid", "attn_out"))
        read = local()  # several threads may read at once

        def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read.resid_pre = _input_of(args, kwargs)

        def changed_output(attn_out: Tensor) -> Tensor | None:
            resid_mid = read.resid_pre + scale * attn_out
            changed = change(resid_mid)
            return None if changed is None else attn_out + (changed - resid_mid) / scale

        handles.callback(block.register_forward_pre_hook(remember, with_kwargs=True).remove)
        return changed_output


def _find_blocks(module: nn.Module) -> nn.ModuleList:
    n_layers = module.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) == n_layers and "vision" not in name:
            return child
    raise ModelError(f"{type(module).__name__} keeps its blocks in no list that saescope knows; use another model.")


def _input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    acts: Tensor = args[0] if args else kwargs["hidden_states"]
    return acts


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            return None
        module = child
    return module


class _AllCaptured(Exception):
    """Ends a forward pass whose hooks have all been reached."""


class _Captured(Exception):
    """Carries the activations out of the forward pass and ends it."""

    def __init__(self, model_acts: Tensor) -> None:
        super().__init__()
        self.model_acts = model_acts
