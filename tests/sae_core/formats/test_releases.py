"""The formats of single releases: Gemma Scope, Llama Scope, OpenAI, Goodfire, Qwen; from their published layouts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_core.errors import WeightsError
from sae_core.formats import FORMATS, recognised
from sae_core.formats.foreign import ForeignSAE
from sae_core.formats.source import Source
from tests.published import (
    D_SAE,
    DICTIONARIES,
    K,
    agrees,
    dictionary_files,
    gemma_scope_files,
    llama_scope_files,
    model_acts,
    openai_files,
    saelens_files,
    sparsify_files,
    tensors,
    turned_files,
)


def read(path: Path, name: str) -> ForeignSAE:
    source = Source(path)
    assert recognised(source).name == name
    return FORMATS[name].read(source)


@pytest.mark.parametrize(
    ("path", "hook_name", "target_hook_name"),
    [
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "blocks.12.hook_resid_post", None),
        ("gemma-scope-9b-pt-mlp/layer_3/width_16k/average_l0_82", "blocks.3.hook_mlp_out", None),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_82", "blocks.3.hook_z", None),
        ("models--google--gemma-scope-2b-pt-mlp/snapshots/1f/layer_2/average_l0_82", "blocks.2.hook_mlp_out", None),
    ],
)
def test_gemma_scope_says_by_its_path_where_it_reads(
    path: str, hook_name: str | None, target_hook_name: str | None, tmp_path: Path
) -> None:
    computes = gemma_scope_files(tmp_path / path)

    foreign = read(tmp_path / path, "gemma_scope")

    agrees(foreign.sae, computes)
    assert (foreign.hook_name, foreign.target_hook_name, foreign.l0) == (hook_name, target_hook_name, 82)


def test_gemma_scopes_embeddings_are_read_as_the_model_multiplies_them(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    computes = gemma_scope_files(folder)
    root = model_acts().shape[1] ** 0.5

    foreign = read(folder, "gemma_scope")

    feature_acts, sae_out = computes(model_acts() / root)
    torch.testing.assert_close(foreign.sae.encode(model_acts()).dense(), feature_acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(foreign.sae(model_acts()), sae_out * root, atol=1e-4, rtol=1e-5)
    assert foreign.hook_name == "blocks.0.hook_resid_pre"


@pytest.mark.parametrize("skips", [False, True])
def test_gemma_scope_2_has_small_letters_settings_and_skip_connections(skips: bool, tmp_path: Path) -> None:
    computes = gemma_scope_files(tmp_path, is_second=True, skips=skips)

    foreign = read(tmp_path, "gemma_scope")

    agrees(foreign.sae, computes)
    assert foreign.hook_name == ("blocks.1.hook_mlp_in" if skips else "blocks.1.hook_resid_post")
    assert foreign.target_hook_name == ("blocks.1.hook_mlp_out" if skips else None)
    assert foreign.sae.is_transcoder is skips


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"sparsity_include_decoder_norm": True},
        {"hook_point_out": "blocks.1.hook_mlp_out", "dataset_average_activation_norm": {"in": 9.0, "out": 2.5}},
        {"jump_relu_threshold": None},
    ],
    ids=str,
)
def test_llama_scopes_scales_are_folded(config: dict[str, Any], tmp_path: Path) -> None:
    computes = llama_scope_files(tmp_path, config=config)

    foreign = read(tmp_path, "llama_scope")

    agrees(foreign.sae, computes)
    assert foreign.sae.is_transcoder is ("hook_point_out" in config)
    assert (foreign.hook_name, foreign.l0) == ("blocks.1.hook_resid_post", 50)
    assert "folded" in foreign.notes[0] and "threshold" in foreign.doubts[0]


@pytest.mark.parametrize("norm", [0, "much", True, None])
def test_a_norm_that_is_no_number_is_refused(norm: object, tmp_path: Path) -> None:
    llama_scope_files(tmp_path, config={"dataset_average_activation_norm": {"in": norm}})

    with pytest.raises(WeightsError, match="must be a number"):
        read(tmp_path, "llama_scope")


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openais_file_normalises_with_topk_and_keeps_its_statistics(
    activation: str, is_tied: bool, tmp_path: Path
) -> None:
    path = tmp_path / "resid_post_mlp_v5_32k" / "autoencoders" / "7.pt"
    computes = openai_files(path, activation, is_tied=is_tied)

    foreign = read(path, "openai")

    agrees(foreign.sae, computes)
    assert foreign.hook_name == "blocks.7.hook_resid_post"
    assert foreign.k == (K if activation == "TopK" else None)
    assert set(foreign.extras) == {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}


def test_openais_other_activations_are_refused(tmp_path: Path) -> None:
    openai_files(tmp_path / "1.pt", "Tanh")

    with pytest.raises(WeightsError, match="Tanh"):
        read(tmp_path / "1.pt", "openai")


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("goodfire", "Llama-3.1-8B-Instruct-SAE-l19.pth"),
        ("qwen_scope", "SAE-Res-Qwen3-1.7B-Base-W32K-L0_6/layer19.sae.pt"),
    ],
)
def test_matrices_that_are_turned_are_turned_back(kind: str, path: str, tmp_path: Path) -> None:
    computes = turned_files(tmp_path / path, kind)

    foreign = read(tmp_path / path, kind)

    agrees(foreign.sae, computes)
    assert foreign.hook_name == "blocks.19.hook_resid_post"
    assert foreign.k == (K if kind == "qwen_scope" else None)


def test_qwens_k_stands_in_the_folders_name_alone(tmp_path: Path) -> None:
    turned_files(tmp_path / "layer3.sae.pt", "qwen_scope")

    with pytest.raises(WeightsError, match="do not say k"):
        read(tmp_path, "qwen_scope")


def test_each_file_is_recognised_as_its_own_format_whatever_it_is_called(tmp_path: Path) -> None:
    made: dict[str, list[Path]] = {name: [] for name in FORMATS}

    def into(format: str) -> Path:
        made[format].append(tmp_path / f"some-{sum(map(len, made.values()))}")
        return made[format][-1]

    for kind in ("standard", "gated", "jumprelu", "topk", "skip_transcoder"):
        saelens_files(into("saelens"), kind)
    for skips in (False, True):
        sparsify_files(into("sparsify"), config={"skip_connection": skips})
        gemma_scope_files(into("gemma_scope"), is_second=skips)
    for dict_class in DICTIONARIES:
        dictionary_files(into("dictionary_learning"), dict_class)
    for threshold in (0.5, None):
        llama_scope_files(into("llama_scope"), config={"jump_relu_threshold": threshold})
    for activation in ("TopK", "ReLU"):
        openai_files(into("openai") / "any.pt", activation)
    for kind in ("goodfire", "qwen_scope"):
        turned_files(into(kind) / "any.pt", kind)

    for name, folders in made.items():
        assert folders
        for folder in folders:
            file = Source(folder).weights
            renamed = file.rename(file.with_name("weights" + file.suffix))
            assert recognised(Source(renamed)).name == name


def test_what_no_format_has_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    torch.save({"wte": torch.zeros(3, 4), "b": torch.zeros(3)}, tmp_path / "model.pt")

    with pytest.raises(WeightsError, match=r"holds b, wte, with no settings beside it"):
        recognised(Source(tmp_path))


def test_thresholds_are_kept_to_the_last_bit(tmp_path: Path) -> None:
    gemma_scope_files(tmp_path)

    foreign = read(tmp_path, "gemma_scope")

    assert torch.equal(foreign.sae.threshold, tensors()["threshold"])  # type: ignore[attr-defined]
    assert foreign.sae.d_sae == D_SAE
