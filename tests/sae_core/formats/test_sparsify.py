"""sparsify's files compute here what they compute there; where they read is their folder's name."""

from pathlib import Path
from typing import Any

import pytest

from sae_core.errors import WeightsError
from sae_core.formats import recognised, sparsify
from sae_core.formats.foreign import ForeignSAE
from sae_core.formats.source import Source
from tests.published import D_SAE, K, agrees, sparsify_files


def read(folder: Path) -> ForeignSAE:
    source = Source(folder)
    assert recognised(source).name == "sparsify"
    return sparsify.read(source)


@pytest.mark.parametrize("skip_connection", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_every_kind_computes_what_it_computed(
    activation: str, transcode: bool, skip_connection: bool, tmp_path: Path
) -> None:
    config = {"activation": activation, "transcode": transcode, "skip_connection": skip_connection}
    computes = sparsify_files(tmp_path, config=config)

    foreign = read(tmp_path)

    agrees(foreign.sae, computes)
    assert (foreign.sae.architecture, foreign.sae.is_transcoder) == (activation, transcode)
    assert (foreign.sae.d_sae, foreign.k, foreign.l0) == (D_SAE, K, K)


@pytest.mark.parametrize(
    "config",
    [{"normalize_decoder": False}, {"num_latents": D_SAE}, {"signed": False}, {"expansion_factor": 3}],
    ids=str,
)
def test_settings_that_change_nothing_change_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    computes = sparsify_files(tmp_path, config=config)

    agrees(read(tmp_path).sae, computes)


@pytest.mark.parametrize(
    ("folder", "transcode", "read_at", "written_at"),
    [
        ("layers.5", False, "blocks.5.hook_resid_post", None),
        ("gpt_neox.layers.5.mlp", False, "blocks.5.hook_mlp_out", None),
        ("h.3.mlp", True, "blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out"),
        ("layers.7", True, "blocks.7.hook_resid_pre", "blocks.7.hook_resid_post"),
        ("layers.2.self_attn", False, "blocks.2.hook_attn_out", None),
        ("somewhere", False, None, None),
    ],
)
def test_the_folder_says_where_it_reads(
    folder: str, transcode: bool, read_at: str | None, written_at: str | None, tmp_path: Path
) -> None:
    sparsify_files(tmp_path / folder, config={"transcode": transcode})

    foreign = read(tmp_path / folder)

    assert (foreign.hook_name, foreign.target_hook_name) == (read_at, written_at)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_latents": 7}, "7 latents and the file has 96"),
        ({"activation": "relu"}, "relu"),
        ({"k": None}, "k is None"),
        ({"k": 5, "activation": "groupmax"}, "equal groups"),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    sparsify_files(tmp_path, config=config)

    with pytest.raises(WeightsError, match=said):
        read(tmp_path)


def test_without_settings_k_is_not_known(tmp_path: Path) -> None:
    sparsify_files(tmp_path)
    (tmp_path / "cfg.json").unlink()

    with pytest.raises(WeightsError, match=r"no cfg\.json"):
        read(tmp_path)
