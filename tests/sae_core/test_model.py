import contextlib
import functools
import json
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_core import model as model_module
from sae_core.config import HOOKS
from sae_core.directions import logit_attribution
from sae_core.errors import ConfigError, ModelError
from sae_core.loading import choose_device, load_model, load_outline, load_tokenizer, resolve_model
from sae_core.model import LanguageModel
from sae_core.records import ModelInfo
from tests.tiny import (
    CAUSAL_KINDS,
    CAUSAL_KINDS_WITH_HOOKS,
    D_MODEL,
    HOOKS_OF,
    KINDS_WITH_HOOKS,
    MODEL_KINDS,
    N_LAYERS,
    TEXTS,
    save_tiny_model,
)

Refuses = Callable[..., AbstractContextManager[None]]
CLASSES = {
    "llama": "LlamaForCausalLM",
    "llama3": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gemma3_vision": "Gemma3ForConditionalGeneration",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "bert": "BertModel",
}
# What each kind of block calls the modules whose outputs it adds to the residual stream.
GEMMAS = ("gemma2", "gemma3", "gemma3_vision")
ATTENTION = {"gpt2": "attn", "gpt_neox": "attention"} | dict.fromkeys(GEMMAS, "post_attention_layernorm")
MLP = dict.fromkeys(GEMMAS, "post_feedforward_layernorm")
# What turns heads' outputs and neurons into what a block adds.
PROJECTIONS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "bert": ("attention.output.dense", "output.dense"),
}
FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gemma3_vision": "model.language_model.norm",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    """The tiny model of a kind, loaded once: only for tests that leave it as it is."""

    @functools.cache
    def load(kind: str) -> LanguageModel:
        return load_model(str(save_tiny_model(tmp_path_factory.mktemp(kind), kind)))

    return load


@pytest.fixture
def llama(loaded: Callable[[str], LanguageModel]) -> LanguageModel:
    return loaded("llama")


def encoded(model: LanguageModel, texts: list[str], *, length: int = 24) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, length) of the texts, each cut to `length` tokens and padded behind if it has fewer."""
    rows = [model.tokenizer.encode(text, verbose=False)[:length] for text in texts]
    ids = torch.full((len(rows), length), model.pad_id)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = True
    return ids, mask


def full_batch(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Four contexts without padding, longer than the windows of the models that have sliding ones."""
    return encoded(model, [" ".join(TEXTS[start : start + 4]) for start in (0, 4, 20, 30)])


@torch.no_grad()
def plain_forward(model: LanguageModel, ids: Tensor, mask: Tensor) -> Any:
    return model.module(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)


def submodule(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path)


def final_norm(model: LanguageModel, kind: str) -> nn.Module:
    return submodule(model.module, FINAL_NORM.get(kind, "model.norm"))


@torch.no_grad()
def outputs_of(model: LanguageModel, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """What a module gives in a plain forward pass."""
    seen = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    with module.register_forward_hook(keep):
        plain_forward(model, ids, mask)
    return seen[0]


def next_token_losses(
    model: LanguageModel, ids: Tensor, mask: Tensor, *, hook_name: str, replace: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Cross-entropy (B, T-1) of each next token, from the model's predictions."""
    where = torch.ones_like(mask)
    where[:, -1] = False
    parts = model.predictions(ids, mask, where=where, hook_name=hook_name, replacements=[replace])
    log_probs = torch.cat([part for (part,) in parts])
    return -log_probs.gather(1, ids[:, 1:].reshape(-1, 1)).view(len(ids), -1)


def n_hooks(model: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.module.modules())


# Loading


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_every_kind_of_model_loads_with_its_numbers(kind: str, loaded: Callable[[str], LanguageModel]) -> None:
    model = loaded(kind)

    assert (model.info.architecture, model.info.n_layers, model.info.d_model) == (CLASSES[kind], N_LAYERS, D_MODEL)
    assert len(model.blocks) == N_LAYERS
    assert model.is_causal is (kind != "bert")
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.device == torch.device("cpu")


@torch.no_grad()
def test_gpt2_gives_the_numbers_of_transformers_own_and_gradients_too(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "gpt2")
    model, own = load_model(str(folder)), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = full_batch(model)
    numbers = plain_forward(model, ids, mask)
    expected = own(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    for mine, theirs in zip(numbers.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(numbers.logits, expected.logits, rtol=1e-5, atol=1e-5)
    x = torch.linspace(-6, 6, 1001).requires_grad_()
    acts = [module.get_submodule("transformer.h.0.mlp.act") for module in (model.module, own)]
    assert type(acts[0]) is not type(acts[1])
    with torch.enable_grad():
        gradients = [torch.autograd.grad(act(x).sum(), x)[0] for act in acts]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=5e-6)


def test_the_revision_of_a_folder_changes_with_its_weights(tmp_path: Path, llama: LanguageModel) -> None:
    same = load_model(str(save_tiny_model(tmp_path / "same", "llama")))
    other = load_model(str(save_tiny_model(tmp_path / "other", "llama", seed=1)))

    assert same.info.revision == llama.info.revision
    assert len(same.info.revision) == 40
    assert other.info.revision != llama.info.revision


def test_a_tokenizer_alone_is_that_of_the_model(llama: LanguageModel) -> None:
    alone = load_tokenizer(llama.info.model_name)

    assert alone(TEXTS)["input_ids"] == llama.tokenizer(TEXTS)["input_ids"]


def test_the_name_demo_means_the_model_that_ships() -> None:
    assert Path(resolve_model("demo")).name == "weights"
    assert Path(resolve_model("demo")).parent.name == "demo_lm"


def test_a_folder_may_be_named_from_the_home_folder(
    tmp_path: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(llama.info.model_name, tmp_path / "model")

    assert load_model("~/model").info.revision == llama.info.revision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_model_gives_nearly_the_same_activations_in_float32(dtype: str, llama: LanguageModel) -> None:
    half = load_model(llama.info.model_name, dtype=dtype)
    ids, mask = full_batch(llama)
    hook_name = "blocks.1.hook_resid_post"

    ours, exact = half.activations(ids, mask, hook_name), llama.activations(ids, mask, hook_name)

    assert next(half.module.parameters()).dtype == getattr(torch, dtype)
    assert ours.dtype == torch.float32
    assert 0 < float((ours - exact).norm() / exact.norm()) < 0.03
    losses = next_token_losses(half, ids, mask, hook_name=hook_name, replace=None)
    plain = next_token_losses(llama, ids, mask, hook_name=hook_name, replace=None)
    assert float(losses.mean()) == pytest.approx(float(plain.mean()), rel=0.02)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_an_outline_is_the_model_without_its_numbers(kind: str, loaded: Callable[[str], LanguageModel]) -> None:
    model = loaded(kind)

    outline = load_outline(model.info.model_name, dtype="bfloat16")

    assert outline.info == model.info
    assert {p.device.type for p in outline.module.parameters()} == {"meta"}
    sizes = [sum(p.nbytes for p in module.parameters()) for module in (model.module, outline.module)]
    assert sizes[0] == 2 * sizes[1]
    for hook in HOOKS_OF[kind]:
        name = f"blocks.{N_LAYERS - 1}.hook_{hook}"
        assert outline.width(name) == model.activations(*full_batch(model), name).shape[2]
    with pytest.raises(ConfigError, match=f"no layer {N_LAYERS}"):
        outline.check_hook(f"blocks.{N_LAYERS}.hook_resid_post")


def test_a_model_that_is_not_there_has_no_outline(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(ModelError, "There is no model folder", "check the path"):
        load_outline(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "of-the-future"}')
    with refuses(ModelError, str(tmp_path)):
        load_outline(str(tmp_path))


@pytest.mark.parametrize(("kind", "is_tied"), [("llama", False), ("llama3", True), ("qwen2", True), ("gemma3", True)])
def test_tied_embeddings_stay_tied_and_count_once(
    kind: str, is_tied: bool, loaded: Callable[[str], LanguageModel]
) -> None:
    module = loaded(kind).module
    embedded, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight

    assert (embedded.data_ptr() == head.data_ptr()) is is_tied
    own = [sum(p.numel() for p in m.parameters()) for m in (module, load_outline(loaded(kind).info.model_name).module)]
    assert own[0] == own[1] == module.num_parameters()


# Reading activations


@pytest.mark.parametrize("layer", range(N_LAYERS))
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_residual_stream_is_that_of_the_plain_forward(
    kind: str, layer: int, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    hidden_states = plain_forward(model, ids, mask).hidden_states

    before = model.activations(ids, mask, f"blocks.{layer}.hook_resid_pre")
    after = model.activations(ids, mask, f"blocks.{layer}.hook_resid_post")

    torch.testing.assert_close(before, hidden_states[layer], atol=1e-5, rtol=1e-5)
    if layer == N_LAYERS - 1 and kind != "bert":  # transformers gives the last one behind the final norm
        after = final_norm(model, kind)(after)
    torch.testing.assert_close(after, hidden_states[layer + 1], atol=1e-5, rtol=1e-5)
    assert before.shape == (*ids.shape, D_MODEL)
    assert float(before.std(dim=1).mean()) > 0.1  # else every comparison here would be easy


@pytest.mark.parametrize("layer", range(N_LAYERS))
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_attention_and_mlp_outputs_are_what_a_block_adds(
    kind: str, layer: int, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    block = model.blocks[layer]

    acts = {hook: model.activations(ids, mask, f"blocks.{layer}.hook_{hook}") for hook in HOOKS_OF[kind]}

    torch.testing.assert_close(
        acts["attn_out"], outputs_of(model, submodule(block, ATTENTION.get(kind, "self_attn")), ids, mask)
    )
    torch.testing.assert_close(acts["mlp_out"], outputs_of(model, submodule(block, MLP.get(kind, "mlp")), ids, mask))
    torch.testing.assert_close(
        acts["resid_pre"] + acts["attn_out"] + acts["mlp_out"], acts["resid_post"], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_attention_and_mlp_outputs_of_bert_are_what_its_norms_read(
    layer: int, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded("bert")
    ids, mask = full_batch(model)
    block = model.blocks[layer]

    acts = {hook: model.activations(ids, mask, f"blocks.{layer}.hook_{hook}") for hook in HOOKS}

    torch.testing.assert_close(acts["resid_mid"], acts["resid_pre"] + acts["attn_out"])
    between = submodule(block, "attention.output.LayerNorm")(acts["resid_mid"])
    expected = submodule(block, "output.LayerNorm")(between + acts["mlp_out"])
    torch.testing.assert_close(acts["resid_post"], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def inputs_of(model: LanguageModel, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """What a module reads in a plain forward pass."""
    seen = []
    with module.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        plain_forward(model, ids, mask)
    return seen[0]


@pytest.mark.parametrize("layer", range(N_LAYERS))
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_heads_outputs_and_neurons_are_what_the_output_projections_of_a_plain_forward_read(
    kind: str, layer: int, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    block = model.blocks[layer]
    of_heads, of_neurons = (
        submodule(block, path) for path in PROJECTIONS.get(kind, ("self_attn.o_proj", "mlp.down_proj"))
    )

    heads, neurons = (model.activations(ids, mask, f"blocks.{layer}.hook_{hook}") for hook in ("z", "mlp_post"))

    assert torch.equal(heads, inputs_of(model, of_heads, ids, mask))
    assert torch.equal(neurons, inputs_of(model, of_neurons, ids, mask))
    assert neurons.shape[2] == {"gpt2": 4 * D_MODEL}.get(kind, 2 * D_MODEL)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2"])
def test_neurons_are_the_nonlinearity_of_the_gate_times_its_other_half(
    kind: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    mlp = submodule(model.blocks[1], "mlp")
    with torch.no_grad():
        read = model.activations(ids, mask, "blocks.1.hook_mlp_in")
        expected = mlp.act_fn(mlp.gate_proj(read)) * mlp.up_proj(read)

    torch.testing.assert_close(model.activations(ids, mask, "blocks.1.hook_mlp_post"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL_KINDS if kind != "gpt_neox"])
def test_the_residual_stream_between_attention_and_mlp_is_what_the_mlps_norm_reads(
    kind: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    norm = {"gpt2": "ln_2"} | dict.fromkeys(GEMMAS, "pre_feedforward_layernorm")
    read = inputs_of(model, submodule(model.blocks[1], norm.get(kind, "post_attention_layernorm")), ids, mask)

    between = model.activations(ids, mask, "blocks.1.hook_resid_mid")

    assert torch.equal(between, read)
    other = torch.randn(*ids.shape, D_MODEL, generator=torch.Generator().manual_seed(0))
    seen = []
    with (
        torch.no_grad(),
        model.edited(("blocks.1.hook_resid_mid",) * 2, lambda _, __: other),
        model.blocks[1].register_forward_hook(lambda *called: seen.append(called[2])),
    ):
        plain_forward(model, ids, mask)
        mlp_out = outputs_of(model, submodule(model.blocks[1], MLP.get(kind, "mlp")), ids, mask)
    after = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(after, other + mlp_out, atol=1e-4, rtol=1e-4)  # it takes both ways on


def test_blocks_whose_attention_and_mlp_run_side_by_side_have_nothing_between(
    loaded: Callable[[str], LanguageModel], refuses: Refuses
) -> None:
    with refuses(ConfigError, "GPTNeoXLayer", "at once", "use resid_pre"):
        loaded("gpt_neox").check_hook("blocks.1.hook_resid_mid")


@torch.no_grad()
@pytest.mark.parametrize("hook", ["z", "mlp_post"])
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_a_direction_before_the_output_projection_adds_what_the_block_is_seen_to_add(
    kind: str, hook: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    name, out = f"blocks.1.hook_{hook}", "attn_out" if hook == "z" else "mlp_out"
    direction = torch.randn(2, model.width(name), generator=torch.Generator().manual_seed(1))
    module = {"attn_out": ATTENTION.get(kind, "self_attn"), "mlp_out": MLP.get(kind, "mlp")}[out]

    def with_acts(value: Tensor) -> Tensor:
        with model.edited((name, name), lambda _, acts: value.expand_as(acts)):
            return outputs_of(model, submodule(model.blocks[1], module), ids, mask)[0, 0]

    added = model.added_directions(name, direction)

    assert added.shape == (2, D_MODEL)
    for row, own in zip(added, direction, strict=True):
        seen = with_acts(own) - with_acts(torch.zeros_like(own))
        scale = 1.0
        if kind in GEMMAS:  # the norm behind divides by a size of its own
            scale = float((seen @ row) / (row @ row))
        torch.testing.assert_close(seen, scale * row, atol=1e-4, rtol=1e-4)
    stream = torch.randn(2, D_MODEL)
    assert model.added_directions("blocks.1.hook_mlp_out", stream) is stream


@pytest.mark.parametrize(("kind", "hook"), KINDS_WITH_HOOKS)
def test_padding_behind_a_text_changes_nothing(kind: str, hook: str, loaded: Callable[[str], LanguageModel]) -> None:
    model = loaded(kind)
    texts = [TEXTS[0], TEXTS[17], " ".join(TEXTS[20:24]), TEXTS[1]]
    ids, mask = encoded(model, texts, length=30)
    assert mask.sum(dim=1).unique().numel() > 2

    together = model.activations(ids, mask, f"blocks.1.hook_{hook}")

    for row in range(len(texts)):
        length = int(mask[row].sum())
        alone = model.activations(ids[row : row + 1, :length], mask[row : row + 1, :length], f"blocks.1.hook_{hook}")
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("hook", "n_started"), [("resid_pre", 1), ("attn_out", 2), ("mlp_out", 2), ("resid_post", 2)])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "bert"])
def test_reading_runs_nothing_behind_the_hook(
    kind: str, hook: str, n_started: int, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    started: list[int] = []
    head_calls: list[int] = []
    head = model.module.get_output_embeddings()

    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            # On the attention, as the hook at `resid_pre` stands before the block itself.
            attention = submodule(block, {"bert": "attention"}.get(kind, ATTENTION.get(kind, "self_attn")))
            stack.enter_context(attention.register_forward_pre_hook(lambda *_, layer=layer: started.append(layer)))
        if head is not None:
            stack.enter_context(head.register_forward_pre_hook(lambda *_: head_calls.append(1)))
        model.activations(*full_batch(model), f"blocks.1.hook_{hook}")

    assert started == list(range(n_started))
    assert head_calls == []


def test_activations_depend_on_no_later_token(llama: LanguageModel) -> None:
    ids, mask = full_batch(llama)
    changed = ids.clone()
    changed[:, 12:] = (ids[:, 12:] + 1) % 500

    one, other = (llama.activations(batch, mask, "blocks.2.hook_resid_post") for batch in (ids, changed))

    torch.testing.assert_close(one[:, :12], other[:, :12], atol=1e-5, rtol=1e-5)
    assert float((one[:, 12:] - other[:, 12:]).abs().mean()) > 0.1


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_one_pass_reads_any_hooks_in_the_order_they_are_named_in(
    kind: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    names = [f"blocks.{layer}.hook_{hook}" for layer in (2, 0, 1) for hook in HOOKS_OF[kind]]
    passes: list[int] = []

    with (
        model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1)),
        model.reading([*names, names[0]]) as read,
    ):
        together = read(ids, mask)

    assert len(passes) == 1
    assert len(together) == len(names) + 1
    for name, acts in zip([*names, names[0]], together, strict=True):
        assert torch.equal(acts.float(), model.activations(ids, mask, name)), name


def test_what_a_block_changes_in_place_is_read_as_it_was() -> None:
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=1
    )
    info = ModelInfo(model_name="falcon", revision="", architecture="FalconForCausalLM", n_layers=2, d_model=32)
    falcon = LanguageModel(transformers.FalconForCausalLM(config), None, info)  # adds to its MLP's output in place
    ids = torch.arange(22).view(2, 11)
    mask = torch.ones_like(ids, dtype=torch.bool)

    with falcon.reading(["blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"]) as read:
        mlp_out, _ = read(ids, mask)

    assert torch.equal(mlp_out, falcon.activations(ids, mask, "blocks.0.hook_mlp_out"))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_several_threads_read_at_once_each_its_own_text(kind: str, loaded: Callable[[str], LanguageModel]) -> None:
    model = loaded(kind)
    names = ["blocks.0.hook_mlp_in", "blocks.2.hook_resid_pre"]
    batches = [encoded(model, [" ".join(TEXTS[start : start + 3])], length=20) for start in range(40)]
    expected = [[model.activations(*batch, name) for name in names] for batch in batches]
    before = n_hooks(model)

    with model.reading(names) as read, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: read(*batch), batches))

    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a.float(), b) for a, b in zip(ours, theirs, strict=True))
    assert n_hooks(model) == before


@pytest.mark.parametrize("layer", range(N_LAYERS))
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_what_an_mlp_reads_is_what_gives_its_output(
    kind: str, layer: int, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    block = model.blocks[layer]

    with model.reading([f"blocks.{layer}.hook_mlp_in", f"blocks.{layer}.hook_mlp_out"]) as read:
        mlp_in, mlp_out = read(ids, mask)

    with torch.no_grad():
        if kind == "bert":
            computed = submodule(block, "output.dense")(submodule(block, "intermediate")(mlp_in))
        else:
            computed = submodule(block, "mlp")(mlp_in)
        if kind in GEMMAS:  # which normalise what they add
            computed = submodule(block, "post_feedforward_layernorm")(computed)
    torch.testing.assert_close(computed, mlp_out, atol=1e-5, rtol=1e-5)
    resid_pre = model.activations(ids, mask, f"blocks.{layer}.hook_resid_pre")
    assert float((mlp_in - resid_pre).abs().mean()) > 1e-2


def test_reading_in_half_precision_gives_the_models_own_numbers(llama: LanguageModel) -> None:
    half = load_model(llama.info.model_name, dtype="bfloat16")
    ids, mask = full_batch(half)

    with half.reading(["blocks.1.hook_resid_post"]) as read:
        (acts,) = read(ids, mask)

    assert acts.dtype == torch.bfloat16
    assert torch.equal(acts.float(), half.activations(ids, mask, "blocks.1.hook_resid_post"))


# Hooks


def test_no_hook_stays_after_reading_or_replacing(llama: LanguageModel) -> None:
    ids, mask = full_batch(llama)
    before = n_hooks(llama)

    for hook in HOOKS:
        llama.activations(ids, mask, f"blocks.0.hook_{hook}")
        next_token_losses(llama, ids, mask, hook_name=f"blocks.0.hook_{hook}", replace=torch.zeros_like)

    assert n_hooks(llama) == before


def test_no_hook_stays_after_an_error(llama: LanguageModel) -> None:
    ids, mask = full_batch(llama)
    before = n_hooks(llama)
    plain = next_token_losses(llama, ids, mask, hook_name="blocks.0.hook_resid_pre", replace=None)

    def fail(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    for hook in HOOKS:
        with pytest.raises(ZeroDivisionError):
            next_token_losses(llama, ids, mask, hook_name=f"blocks.1.hook_{hook}", replace=fail)
        with pytest.raises(IndexError):
            llama.activations(ids + 10_000, mask, f"blocks.1.hook_{hook}")

    assert n_hooks(llama) == before
    again = next_token_losses(llama, ids, mask, hook_name="blocks.0.hook_resid_pre", replace=None)
    assert torch.equal(again, plain)


def test_a_hook_that_the_forward_pass_never_reaches_is_reported(tmp_path: Path, refuses: Refuses) -> None:
    model = load_model(str(save_tiny_model(tmp_path, "llama")))
    blocks = list(model.blocks)
    submodule(model.module, "model").layers = nn.ModuleList(blocks[:2])
    model.blocks = nn.ModuleList(blocks)

    with refuses(ModelError, "blocks.2.hook_resid_post"):
        model.activations(*full_batch(model), "blocks.2.hook_resid_post")


@pytest.mark.parametrize(
    "hook_name",
    [
        "",
        "resid_post",
        "blocks.1.resid_post",
        "blocks.1.hook_q",
        "blocks.-1.hook_resid_post",
        "blocks.1.hook_resid_post ",
    ],
)
def test_a_hook_name_that_is_none_is_refused(hook_name: str, llama: LanguageModel, refuses: Refuses) -> None:
    with refuses(ConfigError, f"{hook_name!r}", "blocks.6.hook_resid_post"):
        llama.check_hook(hook_name)


@pytest.mark.parametrize("layer", [3, 99])
def test_a_layer_that_does_not_exist_is_refused(layer: int, llama: LanguageModel, refuses: Refuses) -> None:
    with refuses(ConfigError, f"no layer {layer}", "3 blocks", "0 to 2"):
        llama.check_hook(f"blocks.{layer}.hook_resid_post")


@pytest.mark.parametrize(("kind", "hook"), KINDS_WITH_HOOKS)
def test_every_kind_has_every_hook_in_every_block(kind: str, hook: str, loaded: Callable[[str], LanguageModel]) -> None:
    for layer in range(N_LAYERS):
        loaded(kind).check_hook(f"blocks.{layer}.hook_{hook}")


def test_blocks_that_add_the_residual_inside_have_no_outputs_to_read(refuses: Refuses) -> None:
    config = transformers.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2)
    info = ModelInfo(model_name="bloom", revision="", architecture="BloomForCausalLM", n_layers=2, d_model=16)
    bloom = LanguageModel(transformers.BloomForCausalLM(config), None, info)

    bloom.check_hook("blocks.1.hook_resid_post")
    for hook in ("mlp_out", "attn_out"):
        with refuses(ConfigError, hook, "use resid_post"):
            bloom.check_hook(f"blocks.1.hook_{hook}")


# Predictions and replacement


@pytest.mark.parametrize("part", [1, 3 * 512, 1 << 24], ids=["one-by-one", "in-threes", "at-once"])
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_predictions_are_those_of_the_plain_forward_wherever_they_are_asked_for(
    kind: str, part: int, loaded: Callable[[str], LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "_PART_LOGITS", part)
    monkeypatch.setattr(model_module, "_PART_ROWS", 1)
    model = loaded(kind)
    ids, mask = encoded(model, [TEXTS[0], TEXTS[3], TEXTS[2]], length=12)
    where = torch.zeros_like(mask)
    where[0, 3:7], where[1, 0], where[2, 5:] = True, True, mask[2, 5:]

    parts = list(
        model.predictions(
            ids,
            mask,
            where=where,
            hook_name="blocks.1.hook_mlp_out",
            replacements=[None, torch.zeros_like, torch.clone],
        )
    )

    own, zeroed, same = (torch.cat(column) for column in zip(*parts, strict=True))
    plain = plain_forward(model, ids, mask).logits.double().log_softmax(dim=2)[where]
    torch.testing.assert_close(own.double(), plain, atol=1e-4, rtol=1e-5)
    assert torch.equal(own, same)
    assert float((own - zeroed).abs().max()) > 1e-2
    assert len(parts) == (1 if part > 1e6 else math.ceil(len(own) / max(1, part // own.shape[1])))


def test_the_vocabulary_meets_only_a_part_of_the_text_at_a_time(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, sizes = llama.module.get_output_embeddings(), []
    monkeypatch.setattr(model_module, "_PART_LOGITS", 5 * len(head.weight))
    monkeypatch.setattr(model_module, "_PART_ROWS", 1)
    ids, mask = full_batch(llama)
    before = n_hooks(llama)

    with head.register_forward_hook(lambda _, __, logits: sizes.append(logits.numel())):
        losses = next_token_losses(llama, ids, mask, hook_name="blocks.1.hook_resid_post", replace=torch.zeros_like)

    assert len(sizes) == math.ceil(losses.numel() / 5)
    assert max(sizes) == 5 * len(head.weight)
    assert n_hooks(llama) == before


def test_nothing_is_predicted_where_nothing_is_asked_for(llama: LanguageModel) -> None:
    ids, mask = full_batch(llama)
    nowhere = torch.zeros_like(mask)

    assert list(
        llama.predictions(ids, mask, where=nowhere, hook_name="blocks.1.hook_resid_post", replacements=[None])
    ) == []  # fmt: skip


@torch.no_grad()
def slow_losses(model: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    logits = plain_forward(model, ids, mask).logits.double()
    return torch.tensor(
        [
            [-float(logits[row, t].log_softmax(dim=0)[ids[row, t + 1]]) for t in range(ids.shape[1] - 1)]
            for row in range(len(ids))
        ]
    )


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_losses_are_those_of_the_plain_forward(kind: str, loaded: Callable[[str], LanguageModel]) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)

    losses = next_token_losses(model, ids, mask, hook_name="blocks.1.hook_resid_post", replace=None)

    torch.testing.assert_close(losses, slow_losses(model, ids, mask), atol=1e-4, rtol=1e-5)


def test_losses_of_padded_texts_are_those_of_each_text_alone(llama: LanguageModel) -> None:
    ids, mask = encoded(llama, [TEXTS[0], TEXTS[16], TEXTS[17]], length=30)

    together = next_token_losses(llama, ids, mask, hook_name="blocks.1.hook_resid_post", replace=torch.zeros_like)

    for row in range(3):
        length = int(mask[row].sum())
        alone = next_token_losses(
            llama,
            ids[row : row + 1, :length],
            mask[row : row + 1, :length],
            hook_name="blocks.1.hook_resid_post",
            replace=torch.zeros_like,
        )
        torch.testing.assert_close(together[row, : length - 1], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "hook"), CAUSAL_KINDS_WITH_HOOKS)
def test_replacing_activations_by_themselves_changes_nothing_and_by_zeros_does(
    kind: str, hook: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    hook_name = f"blocks.1.hook_{hook}"
    seen = []

    def same(model_acts: Tensor) -> Tensor:
        seen.append(model_acts.clone())
        return model_acts.clone()

    plain = next_token_losses(model, ids, mask, hook_name=hook_name, replace=None)
    unchanged = next_token_losses(model, ids, mask, hook_name=hook_name, replace=same)
    zeroed = next_token_losses(model, ids, mask, hook_name=hook_name, replace=torch.zeros_like)

    assert torch.equal(unchanged, plain)
    assert len(seen) == 1 and torch.equal(seen[0], model.activations(ids, mask, hook_name))
    assert float((zeroed - plain).abs().mean()) > 1e-3


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_what_replaces_a_blocks_output_is_what_the_next_block_reads(
    kind: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    other = torch.randn(*ids.shape, D_MODEL, generator=torch.Generator().manual_seed(0))

    leaving = next_token_losses(model, ids, mask, hook_name="blocks.0.hook_resid_post", replace=lambda _: other)
    entering = next_token_losses(model, ids, mask, hook_name="blocks.1.hook_resid_pre", replace=lambda _: other)

    assert torch.equal(leaving, entering)


# Unembedding


@torch.no_grad()
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_the_unembedding_gives_the_models_logits_of_the_normalised_residual(
    kind: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    ids, mask = full_batch(model)
    resid = model.activations(ids, mask, f"blocks.{N_LAYERS - 1}.hook_resid_post").flatten(0, 1)
    logits = plain_forward(model, ids, mask).logits.flatten(0, 1)
    if kind == "gemma2":  # undo its soft cap
        cap = model.module.config.final_logit_softcapping
        logits = cap * (logits / cap).atanh()
    subtracts_mean = kind in ("gpt2", "gpt_neox")
    centred = resid - resid.mean(dim=1, keepdim=True) if subtracts_mean else resid
    scale = (centred.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()

    W_U = model.unembedding()

    assert W_U is not None and W_U.shape == (D_MODEL, model.module.config.get_text_config().vocab_size)
    missing = logits - (resid * scale) @ W_U  # the norm's bias through the head: the same on every token
    missing = missing - missing.mean(dim=0)
    missing = missing - missing.mean(dim=1, keepdim=True)
    assert float(missing.abs().max()) < 2e-3 * float(logits.std())
    if subtracts_mean:
        torch.testing.assert_close((torch.ones(D_MODEL) @ W_U), torch.zeros(W_U.shape[1]), atol=1e-4, rtol=0)


def test_a_direction_alone_before_the_final_norm_gives_the_logits_that_the_unembedding_says(
    llama: LanguageModel,
) -> None:
    ids, mask = full_batch(llama)
    W_U = llama.unembedding()
    assert W_U is not None
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(3))

    losses = next_token_losses(
        llama, ids, mask, hook_name="blocks.2.hook_resid_post", replace=lambda acts: (5 * direction).expand_as(acts)
    )

    logits = direction / direction.square().mean().sqrt() @ W_U
    torch.testing.assert_close(losses, -logits.log_softmax(dim=0)[ids[:, 1:]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_logit_attribution_is_the_sum_over_the_residual_stream(
    kind: str, loaded: Callable[[str], LanguageModel]
) -> None:
    model = loaded(kind)
    norm, head = final_norm(model, kind), model.module.get_output_embeddings()
    gains = [float(gain) + (1 if kind in GEMMAS else 0) for gain in norm.weight]  # Gemma stores them less 1
    W_U = model.unembedding()
    assert W_U is not None
    direction = torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(4))

    promoted_ids, promoted, suppressed_ids, suppressed = logit_attribution(direction, W_U, n=8)

    mean = float(direction.mean()) if kind in ("gpt2", "gpt_neox") else 0.0  # LayerNorm takes it away
    slow = [
        sum((float(x) - mean) * gain * float(w) for x, gain, w in zip(direction[0], gains, row, strict=True))
        for row in head.weight
    ]
    order = sorted(range(len(slow)), key=lambda token: slow[token])
    assert promoted_ids[0].tolist() == order[:-9:-1]
    assert suppressed_ids[0].tolist() == order[:8]
    for ids, weights in ((promoted_ids, promoted), (suppressed_ids, suppressed)):
        assert weights[0].tolist() == pytest.approx([slow[token] for token in ids[0]], rel=1e-4, abs=1e-5)


def test_a_model_without_a_head_has_no_unembedding(loaded: Callable[[str], LanguageModel]) -> None:
    assert loaded("bert").unembedding() is None


# Bad input


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere-at-all", "a/b/c"):
        with refuses(ModelError, name, "check the path"):
            load_model(name)
        with refuses(ModelError, name, "check the path"):
            load_tokenizer(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    for load in (load_model, load_tokenizer):
        with refuses(ModelError, str(tmp_path), "no config.json"):
            load(str(tmp_path))


@pytest.fixture
def damaged(tmp_path: Path, llama: LanguageModel) -> Path:
    """A copy of a whole model, for tests that break it."""
    return Path(shutil.copytree(llama.info.model_name, tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.json", b"no json"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "a-kind-of-the-future"}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{half"),
        ("model.safetensors", None),
        ("tokenizer.json", b'{"half":'),
        ("tokenizer.json", b'{"added_tokens": []}'),
        ("tokenizer.json", None),
    ],
    ids=[
        "config-garbage",
        "config-list",
        "unknown-kind",
        "config-of-wrong-type",
        "weights-empty",
        "weights-half-written",
        "weights-missing",
        "tokenizer-half-written",
        "tokenizer-without-model",
        "tokenizer-missing",
    ],
)
def test_a_damaged_folder_is_refused(name: str, data: bytes | None, damaged: Path, refuses: Refuses) -> None:
    if data is None:
        (damaged / name).unlink()
        if name == "tokenizer.json":
            (damaged / "tokenizer_config.json").unlink()
    else:
        (damaged / name).write_bytes(data)

    with refuses(ModelError, str(damaged), "cannot be loaded"):
        load_model(str(damaged))


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "model.norm.weight"])
def test_a_model_without_some_of_its_weights_is_refused(
    name: str, damaged: Path, refuses: Refuses, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(damaged / "model.safetensors")
    del tensors[name]
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    with refuses(ModelError, f"lacks 1 of the model's tensors ({name})", "fetch its files again"):
        load_model(str(damaged))
    assert "REPORT" not in capfd.readouterr().err


def test_a_bert_without_its_pooler_loads_without_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(save_tiny_model(tmp_path / "model", "bert")))
    assert "REPORT" not in capfd.readouterr().err


def test_weights_of_another_shape_are_refused(damaged: Path, refuses: Refuses) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))

    with refuses(ModelError, str(damaged), "cannot be loaded"):
        load_model(str(damaged))


def test_a_models_own_program_code_is_never_run_nor_asked_about(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    config = json.loads((damaged / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoModel": "own.Model"}
    (damaged / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (damaged / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")

    with refuses(ModelError, str(damaged), "never runs"):
        load_model(str(damaged))

    assert asked == []
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 sets it


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "not a name"])
def test_an_unknown_model_is_refused_at_once_when_offline(
    name: str, load: Callable[[str], Any], refuses: Refuses
) -> None:
    started = time.monotonic()

    with refuses(ModelError, name, "give a folder"):
        load(name)

    assert time.monotonic() - started < 5  # with retries it would be half a minute


def hub_error(kind: type[GatedRepoError | RepositoryNotFoundError], status: int) -> OSError:
    """What transformers raises when the hub answers with this status."""
    response = httpx.Response(status, request=httpx.Request("HEAD", "https://huggingface.co/owner/name"))
    error = OSError("You are trying to access a gated repo.\nMake sure to have access to it.")
    error.__cause__ = kind("Access denied.\nAsk for it.", response=response)
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub_error(GatedRepoError, 403), ["is gated", "hf auth login"]),
        (hub_error(RepositoryNotFoundError, 404), ["not on the hub", "check the name"]),
        (OSError("We couldn't connect\nto the hub."), ["hub cannot be reached", "give a folder"]),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), ["memory", "--dtype bfloat16"]),
        (ValueError("Unrecognized configuration class\nfor this model"), ["Unrecognized configuration class"]),
        (ImportError("needs `sentencepiece`\nto be installed"), ["needs `sentencepiece`"]),
        (RuntimeError(""), ["RuntimeError"]),
    ],
    ids=["gated", "not-found", "no-network", "out-of-memory", "unknown-kind", "missing-package", "silent"],
)
def test_what_the_hub_and_transformers_raise_becomes_one_sentence(
    error: Exception, words: list[str], monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)

    for load in (load_model, load_tokenizer):
        with refuses(ModelError, "owner/name", *words):
            load("owner/name")


def test_an_unknown_dtype_is_refused(llama: LanguageModel, refuses: Refuses) -> None:
    with refuses(ConfigError, "'float64'", "float32, bfloat16, float16"):
        load_model(llama.info.model_name, dtype="float64")


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "", "cpu:x"])
def test_a_device_that_is_not_here_is_refused(device: str, llama: LanguageModel, refuses: Refuses) -> None:
    with refuses(ConfigError, f"{device!r}", "--device cpu"):
        load_model(llama.info.model_name, device=device)


@pytest.mark.parametrize(("has_cuda", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_device_is_the_gpu_where_there_is_one(
    has_cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module.torch.cuda, "is_available", lambda: has_cuda)

    assert choose_device(None) == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")
