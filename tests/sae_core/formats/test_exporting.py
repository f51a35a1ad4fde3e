"""What is exported loads again and computes the same; a round trip through saescope changes no number of a file."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_core.errors import ConfigError
from sae_core.formats.exporting import export_sae
from sae_core.formats.hook_points import module_path, our_hook_name
from sae_core.formats.importing import ImportConfig, import_sae
from sae_core.records import ModelInfo, SAEInfo
from sae_core.sae import ARCHITECTURES, SAE, load_sae
from tests import planted
from tests.published import D_IN, D_SAE, DICTIONARIES, K, dictionary_files, model_acts, saelens_files, sparsify_files
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def trained(folder: Path, architecture: str, d_out: int | None = None) -> SAEInfo:
    """An SAE as a training run leaves it."""
    sae = planted.random_sae(D_IN, D_SAE, K, seed=3, architecture=architecture, d_out=d_out)
    sae.save(folder)
    hook = "mlp_in" if d_out else "resid_post"
    return SAEInfo(
        slug="mine",
        model=ModelInfo(model_name="tiny", revision="", architecture="", n_layers=3, d_model=D_IN),
        hook_name=f"blocks.1.hook_{hook}",
        layer=1,
        architecture=architecture,
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        n_training_tokens=1,
        weights_path=str(folder),
        created_at=datetime.now(UTC),
        config={
            "model": "tiny",
            "context_size": 64,
            "prepend_bos": True,
            **({"target_hook": "mlp_out"} if d_out else {}),
        },
    )


def imported(path: Path, model: str, home: Path) -> SAEInfo:
    return import_sae(ImportConfig(path=path, origin=str(path), model=model, layer=1), home=home).info


def same(first: SAE, second: SAE) -> None:
    x = model_acts()
    torch.testing.assert_close(first.encode(x).dense(), second.encode(x).dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first(x), second(x), atol=1e-5, rtol=1e-5)


FORMATS_OF = {
    "topk": ("saelens", "sparsify", "dictionary_learning"),
    **dict.fromkeys(("batchtopk", "matryoshka", "jumprelu", "gated", "relu"), ("saelens", "dictionary_learning")),
}


@pytest.mark.parametrize(
    ("architecture", "format"), [(name, format) for name in ARCHITECTURES for format in FORMATS_OF[name]]
)
def test_what_was_trained_here_comes_back_the_same(architecture: str, format: str, model: str, tmp_path: Path) -> None:
    info = trained(tmp_path / "run", architecture)

    export_sae(info, format, tmp_path / "layers.1")
    back = imported(tmp_path / "layers.1", model, tmp_path / "home")

    same(load_sae(tmp_path / "run"), load_sae(Path(back.weights_path)))
    assert (back.hook_name, back.config["format"]) == (info.hook_name, format)


@pytest.mark.parametrize(
    ("architecture", "format"), [("relu", "saelens"), ("jumprelu", "saelens"), ("topk", "sparsify")]
)
def test_transcoders_come_back_the_same(architecture: str, format: str, model: str, tmp_path: Path) -> None:
    info = trained(tmp_path / "run", architecture, d_out=D_IN)

    export_sae(info, format, tmp_path / "layers.1.mlp")
    back = imported(tmp_path / "layers.1.mlp", model, tmp_path / "home")

    same(load_sae(tmp_path / "run"), load_sae(Path(back.weights_path)))
    assert (back.hook_name, back.target_hook_name) == ("blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out")


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk", "jumprelu_skip_transcoder"])
def test_saelens_files_come_back_to_the_bit(kind: str, model: str, tmp_path: Path) -> None:
    saelens_files(tmp_path / "there", kind)

    export_sae(imported(tmp_path / "there", model, tmp_path / "home"), "saelens", tmp_path / "back")

    same_files(tmp_path / "there", tmp_path / "back", "sae_weights.safetensors", "cfg.json")


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify_files_come_back_to_the_bit(activation: str, transcode: bool, model: str, tmp_path: Path) -> None:
    there = tmp_path / "there" / "layers.1.mlp"
    sparsify_files(there, config={"activation": activation, "transcode": transcode, "skip_connection": transcode})

    export_sae(imported(there, model, tmp_path / "home"), "sparsify", tmp_path / "back")

    same_files(there, tmp_path / "back" / "layers.1.mlp", "sae.safetensors", "cfg.json", but={"num_latents": D_SAE})


@pytest.mark.parametrize(
    ("architecture", "hook_name", "expected"),
    [
        ("LlamaForCausalLM", "blocks.3.hook_resid_post", "layers.3"),
        ("LlamaForCausalLM", "blocks.3.hook_attn_out", "layers.3.self_attn"),
        ("GPT2LMHeadModel", "blocks.11.hook_resid_post", "h.11"),
        ("GPT2LMHeadModel", "blocks.11.hook_mlp_out", "h.11.mlp"),
        ("GPTNeoXForCausalLM", "blocks.2.hook_attn_out", "layers.2.attention"),
        ("BertModel", "blocks.0.hook_resid_post", "encoder.layer.0"),
        ("LlamaForCausalLM", "blocks.3.hook_resid_pre", None),
        ("LlamaForCausalLM", "blocks.3.hook_z", None),
        ("LlamaForCausalLM", "embed", None),
    ],
)
def test_what_a_module_puts_out_is_named_after_it_and_read_back(
    architecture: str, hook_name: str, expected: str | None
) -> None:
    path = module_path(hook_name, architecture)
    assert path == expected
    assert path is None or our_hook_name(path) == hook_name


def test_where_a_sparsify_folder_cannot_say_what_it_reads_that_is_said(tmp_path: Path) -> None:
    info = replace(trained(tmp_path / "run", "topk"), hook_name="blocks.1.hook_resid_pre")

    notes = export_sae(info, "sparsify", tmp_path / "out")

    assert any("blocks.1.hook_resid_pre" in note for note in notes)
    assert (tmp_path / "out" / "sae.safetensors").is_file()


def test_a_folder_of_sparsify_needs_no_word_of_where_it_reads(model: str, tmp_path: Path) -> None:
    info = trained(tmp_path / "run", "topk")
    export_sae(info, "sparsify", tmp_path / "any-name")
    back = import_sae(ImportConfig(path=tmp_path / "any-name", origin="x", model=model), home=tmp_path / "home").info
    assert back.hook_name == info.hook_name


@pytest.mark.parametrize("dict_class", [name for name in DICTIONARIES if name != "AutoEncoder"])
def test_dictionaries_come_back_to_the_bit(dict_class: str, model: str, tmp_path: Path) -> None:
    dictionary_files(tmp_path / "there", dict_class)
    there = torch.load(tmp_path / "there" / "ae.pt")

    export_sae(imported(tmp_path / "there", model, tmp_path / "home"), "dictionary_learning", tmp_path / "back")

    back = torch.load(tmp_path / "back" / "ae.pt")
    assert back.keys() == there.keys()
    assert all(torch.equal(back[name], there[name]) and back[name].dtype == there[name].dtype for name in there)
    trainers = [json.loads((tmp_path / at / "config.json").read_text())["trainer"] for at in ("there", "back")]
    assert trainers[1] == {**trainers[0], "lm_name": model}


def test_a_dictionary_with_a_decoder_of_any_norms_comes_back_the_same(model: str, tmp_path: Path) -> None:
    dictionary_files(tmp_path / "there", "AutoEncoder")

    first = imported(tmp_path / "there", model, tmp_path / "home")
    export_sae(first, "dictionary_learning", tmp_path / "back")
    second = imported(tmp_path / "back", model, tmp_path / "other")

    assert second.config["format"] == "dictionary_learning"
    same(load_sae(Path(first.weights_path)), load_sae(Path(second.weights_path)))


def same_files(there: Path, back: Path, weights: str, config: str, but: dict[str, object] | None = None) -> None:
    before, after = load_file(there / weights), load_file(back / weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    settings, returned = (json.loads((at / config).read_text()) for at in (there, back))
    settings.pop("metadata", None)
    returned.pop("metadata", None)
    assert returned == {**settings, **(but or {})}


@pytest.mark.parametrize(
    ("architecture", "d_out", "format", "said"),
    [
        ("gated", None, "sparsify", "TopK SAEs only"),
        ("topk", D_IN, "dictionary_learning", "no transcoders"),
        ("topk", D_IN, "saelens", "ReLU and JumpReLU only"),
        ("topk", None, "gemma", "choose one of saelens"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    architecture: str, d_out: int | None, format: str, said: str, tmp_path: Path
) -> None:
    info = trained(tmp_path / "run", architecture, d_out)

    with pytest.raises(ConfigError, match=said):
        export_sae(info, format, tmp_path / "out")

    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    info = trained(tmp_path / "run", "topk")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")

    with pytest.raises(ConfigError, match="not empty"):
        export_sae(info, "saelens", tmp_path / "out")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
