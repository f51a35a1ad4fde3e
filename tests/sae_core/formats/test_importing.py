"""From a published file to an SAE of the home: where it reads, its name, what is remembered, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_core.errors import ConfigError, WeightsError
from sae_core.formats import hook_points, importing
from sae_core.formats.exporting import export_sae
from sae_core.formats.importing import ImportConfig, Imported, import_sae
from sae_core.sae import load_sae
from tests.published import (
    agrees,
    dictionary_files,
    gemma_scope_files,
    model_acts,
    openai_files,
    saelens_files,
    sparsify_files,
)
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def bring(path: Path, model: str, **options: Any) -> Imported:
    return import_sae(ImportConfig(path=path, origin=str(path), model=model, **options), home=path.parent / "home")


def test_an_import_is_an_sae_of_the_home_and_says_where_it_is_from(model: str, tmp_path: Path) -> None:
    computes = saelens_files(tmp_path / "there", "topk", config={"rescale_acts_by_decoder_norm": True})
    before = {path: path.read_bytes() for path in (tmp_path / "there").iterdir()}

    imported = bring(tmp_path / "there", model)

    info = imported.info
    agrees(load_sae(Path(info.weights_path)), computes)
    assert (info.slug, info.hook_name, info.layer, info.k) == ("tiny-l1-saelens-96", "blocks.1.hook_resid_post", 1, 6)
    assert info.weights_path == str(tmp_path / "home" / "imports" / info.slug)
    config = info.config
    assert (config["format"], config["imported_from"]) == ("saelens", str(tmp_path / "there"))
    assert (config["context_size"], config["prepend_bos"], len(str(config["sha256"]))) == (64, True, 64)
    remembered = json.loads((Path(info.weights_path) / "import.json").read_text())
    assert remembered["original_config"] == json.loads((tmp_path / "there" / "cfg.json").read_text())
    assert remembered["notes"] == list(imported.notes) and "folded" in imported.notes[0]
    assert {path: path.read_bytes() for path in (tmp_path / "there").iterdir()} == before


def test_the_same_import_again_changes_nothing_and_another_of_the_name_is_refused(model: str, tmp_path: Path) -> None:
    saelens_files(tmp_path / "there", "standard")
    first = bring(tmp_path / "there", model, slug="mine")
    weights = Path(first.info.weights_path) / "sae.safetensors"
    made_at = weights.stat().st_mtime_ns

    (tmp_path / "there").rename(tmp_path / "moved")
    again = bring(tmp_path / "moved", model, slug="mine")

    assert again.info.weights_path == first.info.weights_path and weights.stat().st_mtime_ns == made_at
    saelens_files(tmp_path / "other", "standard", seed=5)
    with pytest.raises(ConfigError, match=r"import mine exists with another sha256; .*another --slug"):
        bring(tmp_path / "other", model, slug="mine")
    with pytest.raises(ConfigError, match="another layer"):
        bring(tmp_path / "moved", model, slug="mine", layer=2)

    replaced = bring(tmp_path / "moved", model, slug="mine", layer=2, replaces=True)

    assert replaced.info.layer == 2
    assert json.loads((weights.parent / "import.json").read_text())["settings"]["layer"] == 2
    assert [path.name for path in weights.parent.parent.iterdir()] == ["mine"]


def test_an_import_that_is_killed_leaves_nothing_under_its_name(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resid_post_mlp" / "1.pt"
    openai_files(path, "TopK")

    def killed(*_: object) -> None:
        assert list((path.parent / "home" / "imports").glob(".mine*/sae.safetensors"))  # half of it is written
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(importing, "save_file", killed)
        bring(path, model, slug="mine")

    assert not list((path.parent / "home" / "imports").iterdir())
    assert bring(path, model, slug="mine").info.slug == "mine"


def test_the_user_may_say_another_place_and_is_told_what_the_files_declare(model: str, tmp_path: Path) -> None:
    saelens_files(tmp_path / "there", "standard")

    imported = bring(tmp_path / "there", model, layer=2, hook="mlp_out")

    assert imported.info.hook_name == "blocks.2.hook_mlp_out"
    assert any("declare blocks.1.hook_resid_post" in note for note in imported.notes)


def test_a_transcoder_moves_with_its_layer(model: str, tmp_path: Path) -> None:
    saelens_files(tmp_path / "there", "jumprelu_transcoder")

    for options, target in (({}, 1), ({"layer": 2}, 2), ({"layer": 0, "target_layer": 2}, 2)):
        info = bring(tmp_path / "there", model, slug=f"to-{target}-{len(options)}", **options).info
        assert (info.hook_name, info.target_hook_name) == (
            f"blocks.{options.get('layer', 1)}.hook_mlp_in",
            f"blocks.{target}.hook_mlp_out",
        )


def test_files_that_look_like_an_saes_are_a_transcoder_if_the_user_says_what_they_predict(
    model: str, tmp_path: Path
) -> None:
    computes = gemma_scope_files(tmp_path / "there")

    info = bring(tmp_path / "there", model, layer=1, hook="mlp_in", target_hook="mlp_out").info

    sae = load_sae(Path(info.weights_path))
    agrees(sae, computes)
    assert sae.is_transcoder and info.target_hook_name == "blocks.1.hook_mlp_out"
    saelens_files(tmp_path / "sae", "standard")
    with pytest.raises(ConfigError, match="is an SAE"):
        bring(tmp_path / "sae", model, target_hook="mlp_out")


def test_an_input_scale_that_the_user_knows_is_folded_and_the_doubt_is_gone(model: str, tmp_path: Path) -> None:
    computes = saelens_files(
        tmp_path / "there", "jumprelu", config={"normalize_activations": "expected_average_only_in"}
    )
    x, scale = model_acts(), 0.4
    feature_acts, sae_out = computes(x * scale)

    assert bring(tmp_path / "there", model, slug="without").doubts
    imported = bring(tmp_path / "there", model, input_scale=scale)

    sae = load_sae(Path(imported.info.weights_path))
    assert not imported.doubts and "0.4" in imported.notes[-1]
    torch.testing.assert_close(sae.encode(x).dense(), feature_acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), sae_out / scale, atol=1e-5, rtol=1e-5)
    saelens_files(tmp_path / "normed", "topk", config={"normalize_activations": "layer_norm"})
    with pytest.raises(ConfigError, match="normalises every token"):
        bring(tmp_path / "normed", model, input_scale=scale)


def test_statistics_without_a_place_are_kept_beside_the_sae(model: str, tmp_path: Path) -> None:
    openai_files(tmp_path / "resid_post_mlp" / "1.pt", "TopK")

    info = bring(tmp_path / "resid_post_mlp" / "1.pt", model).info

    assert (Path(info.weights_path) / "extras.safetensors").exists()
    assert info.config["input_norm"] == "layer_norm"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ConfigError, "do not say which layer"),
        ({"layer": 9}, ConfigError, "has no layer 9"),
        ({"layer": -1}, ConfigError, "numbered from 0"),
        ({"layer": 1, "hook": "hook_q"}, ConfigError, "hook_q"),
        ({"layer": 1, "hook": "mlp_post"}, WeightsError, "gives 64 at blocks.1.hook_mlp_post"),
        ({"layer": 1, "dtype": "int3"}, ConfigError, "int3"),
        ({"layer": 1, "slug": "No Good"}, ConfigError, "slug"),
        ({"layer": 1, "input_scale": -1.0}, ConfigError, "above 0"),
        ({"layer": 1, "format": "csv"}, ConfigError, "csv"),
        ({"layer": 1, "format": "openai"}, WeightsError, "do not fit what OpenAI"),
    ],
    ids=str,
)
def test_what_cannot_be_imported_so_is_one_sentence(
    options: dict[str, Any], error: type[Exception], said: str, model: str, tmp_path: Path
) -> None:
    gemma_scope_files(tmp_path / "there")

    with pytest.raises(error, match=said):
        bring(tmp_path / "there", model, **options)

    assert not (tmp_path / "home" / "imports").exists()


def test_a_hook_point_that_saescope_has_not_is_named(model: str, tmp_path: Path) -> None:
    saelens_files(tmp_path / "there", "standard", config={"metadata": {"hook_name": "blocks.1.attn.hook_q"}})

    with pytest.raises(ConfigError, match=r"blocks\.1\.attn\.hook_q"):
        bring(tmp_path / "there", model)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("attn.hook_z", "z"), ("hook_resid_mid", "resid_mid"), ("mlp.hook_post", "mlp_post")]
)
def test_an_sae_of_heads_of_neurons_or_between_the_two_reads_there(theirs: str, ours: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    if ours == "mlp_post":  # as many neurons as the files' vectors have numbers
        narrow = {**json.loads((folder / "config.json").read_text()), "intermediate_size": 32, "hidden_size": 48}
        (folder / "config.json").write_text(json.dumps(narrow))
    declared = {
        "metadata": {"hook_name": f"blocks.1.{theirs}"},
        "reshape_activations": "hook_z" if ours == "z" else "none",
    }
    saelens_files(tmp_path / "there", "standard", config=declared)

    info = bring(tmp_path / "there", str(folder)).info

    assert (info.hook_name, info.d_in, info.config["hook"]) == (f"blocks.1.hook_{ours}", 32, ours)
    assert info.model.d_model == (48 if ours == "mlp_post" else 32)
    export_sae(info, "saelens", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (written["metadata"]["hook_name"], written["reshape_activations"]) == (
        f"blocks.1.{theirs}",
        "hook_z" if ours == "z" else "none",
    )


def test_another_models_sae_is_refused_with_the_models_name(model: str, tmp_path: Path) -> None:
    saelens_files(tmp_path / "there", "standard")
    folder = save_tiny_model(tmp_path / "wide", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 64}))

    with pytest.raises(WeightsError, match=r"reads 32 numbers a token and .* gives 64.* trained on tiny"):
        bring(tmp_path / "there", str(folder))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.3.hook_resid_pre", "blocks.3.hook_resid_pre"),
        ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_in"),
        ("blocks.3.mlp.hook_out", "blocks.3.hook_mlp_out"),
        ("blocks.3.hook_out", "blocks.3.hook_resid_post"),
        ("model.layers.12", "blocks.12.hook_resid_post"),
        ("model.layers.12.output", "blocks.12.hook_resid_post"),
        ("transformer.h.3.mlp", "blocks.3.hook_mlp_out"),
        ("gpt_neox.layers.3.attention", "blocks.3.hook_attn_out"),
        ("model.layers.7.pre_feedforward_layernorm.output", "blocks.7.hook_mlp_in"),
        ("model.layers.7.post_feedforward_layernorm.output", "blocks.7.hook_mlp_out"),
        ("resid_post_layer_3", "blocks.3.hook_resid_post"),
        ("attention_out_layer_3", "blocks.3.hook_attn_out"),
        ("blocks.3.attn.hook_z", "blocks.3.hook_z"),
        ("blocks.3.hook_resid_mid", "blocks.3.hook_resid_mid"),
        ("blocks.3.mlp.hook_post", "blocks.3.hook_mlp_post"),
        ("model.layers.7.self_attn.o_proj.input", "blocks.7.hook_z"),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h.input", "blocks.3.hook_mlp_post"),
        ("blocks.3.attn.hook_q", None),
        ("layers.3.mlp.act", None),
        ("blocks.3.hook_resid_post.hook_x", None),
        (7, None),
    ],
)
def test_other_tools_names_of_hook_points(theirs: object, ours: str | None) -> None:
    assert hook_points.our_hook_name(theirs) == ours


def test_two_formats_of_one_sae_have_two_names(model: str, tmp_path: Path) -> None:
    sparsify_files(tmp_path / "layers.1")
    dictionary_files(tmp_path / "trainer_0", "AutoEncoderTopK")

    slugs = {bring(path, model).info.slug for path in (tmp_path / "layers.1", tmp_path / "trainer_0")}

    assert slugs == {"tiny-l1-sparsify-96", "tiny-l1-dictionary_learning-96"}
