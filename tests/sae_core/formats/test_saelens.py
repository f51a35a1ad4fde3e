"""SAELens's files compute here what they compute there, under every setting that changes it; old names; exports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_core.errors import WeightsError
from sae_core.formats import recognised, saelens
from sae_core.formats.foreign import ForeignSAE
from sae_core.formats.source import Source
from tests.published import D_IN, D_SAE, K, agrees, model_acts, saelens_files

KINDS = (
    "standard", "gated", "jumprelu", "topk", "transcoder", "skip_transcoder", "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)  # fmt: skip


def read(folder: Path) -> ForeignSAE:
    source = Source(folder)
    assert recognised(source).name == "saelens"
    return saelens.read(source)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_computes_what_it_computed(kind: str, tmp_path: Path) -> None:
    computes = saelens_files(tmp_path, kind)

    foreign = read(tmp_path)

    agrees(foreign.sae, computes)
    is_transcoder = "transcoder" in kind
    assert foreign.hook_name == ("blocks.1.hook_mlp_in" if is_transcoder else "blocks.1.hook_resid_post")
    assert foreign.target_hook_name == "blocks.1.hook_mlp_out"
    assert foreign.sae.is_transcoder is is_transcoder
    assert (foreign.model_name, foreign.context_size, foreign.prepend_bos) == ("tiny", 64, True)
    assert foreign.k == (K if kind == "topk" else None)


SETTINGS: list[dict[str, Any]] = [
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale"},
]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, config) for kind in ("standard", "gated", "jumprelu", "topk") for config in SETTINGS),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
    ],
    ids=str,
)
def test_every_setting_changes_what_it_changes_there(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    plain = saelens_files(tmp_path / "plain", kind)
    computes = saelens_files(tmp_path / "set", kind, config=config)

    agrees(read(tmp_path / "set").sae, computes)

    assert not torch.allclose(plain(model_acts())[0], computes(model_acts())[0])


def test_files_older_than_version_6_have_other_names_for_the_same(tmp_path: Path) -> None:
    computes = saelens_files(tmp_path, "topk")
    (tmp_path / "cfg.json").write_text(
        json.dumps(
            {
                "model_name": "gpt2-small",
                "hook_point": "blocks.8.hook_resid_pre",
                "hook_point_layer": 8,
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
                "d_in": D_IN,
                "d_sae": D_SAE,
                "normalize_activations": False,
                "context_size": 128,
                "prepend_bos": False,
            }
        )
    )

    foreign = read(tmp_path)

    agrees(foreign.sae, computes)
    assert (foreign.hook_name, foreign.k, foreign.prepend_bos) == ("blocks.8.hook_resid_pre", K, False)


def test_a_factor_that_was_not_folded_in_is_asked_for_or_found_beside_the_weights(tmp_path: Path) -> None:
    computes = saelens_files(tmp_path, "standard", config={"normalize_activations": "expected_average_only_in"})
    x, scale = model_acts(), 0.37
    feature_acts, sae_out = computes(x * scale)

    assert "--input-scale" in " ".join(read(tmp_path).doubts)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    foreign = read(tmp_path)

    assert not foreign.doubts and "0.37" in foreign.notes[0]
    torch.testing.assert_close(foreign.sae.encode(x).dense(), feature_acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(foreign.sae(x), sae_out / scale, atol=1e-5, rtol=1e-5)


def test_factors_of_a_finetuning_act_on_the_decoder_if_they_are_used(tmp_path: Path) -> None:
    computes = saelens_files(tmp_path, "standard", config={"finetuning_scaling_factor": True})
    file = tmp_path / "sae_weights.safetensors"
    factors = torch.linspace(0.5, 2, D_SAE)
    save_file({**load_file(file), "scaling_factor": factors}, file)
    x = model_acts()
    feature_acts, sae_out = computes(x)
    W_dec, b_dec = load_file(file)["W_dec"], load_file(file)["b_dec"]

    foreign = read(tmp_path)

    torch.testing.assert_close(foreign.sae.encode(x).dense(), feature_acts)
    torch.testing.assert_close(foreign.sae(x), (feature_acts * factors) @ W_dec + b_dec)
    assert not torch.allclose(sae_out, foreign.sae(x))
    saelens_files(tmp_path, "standard")
    save_file({**load_file(file), "scaling_factor": factors}, file)
    with pytest.raises(WeightsError, match="scaling_factor"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "temporal"}, "temporal"),
        ({"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"normalize_activations": "covariance_whitening"}, "fold it with SAELens"),
    ],
)
def test_what_saescope_cannot_compute_is_refused_by_name(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    saelens_files(tmp_path, "standard", config=config)

    with pytest.raises(WeightsError, match=said):
        read(tmp_path)
