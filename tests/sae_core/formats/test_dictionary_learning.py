"""dictionary_learning's files compute here what they compute there, class by class."""

import json
from pathlib import Path

import pytest
import torch

from sae_core.errors import WeightsError
from sae_core.formats import dictionary_learning, recognised
from sae_core.formats.foreign import ForeignSAE
from sae_core.formats.source import Source
from sae_core.sae import BatchTopKSAE
from tests.published import DICTIONARIES, K, agrees, dictionary_files


def read(path: Path) -> ForeignSAE:
    source = Source(path)
    assert recognised(source).name == "dictionary_learning"
    return dictionary_learning.read(source)


@pytest.mark.parametrize("dict_class", DICTIONARIES)
def test_every_class_computes_what_it_computed(dict_class: str, tmp_path: Path) -> None:
    computes = dictionary_files(tmp_path, dict_class)

    foreign = read(tmp_path)

    agrees(foreign.sae, computes)
    assert (foreign.hook_name, foreign.model_name, foreign.context_size) == ("blocks.1.hook_resid_post", "tiny", 64)
    assert foreign.k == (K if "TopK" in dict_class else None)


@pytest.mark.parametrize("dict_class", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_set_lets_all_through_and_is_doubted(dict_class: str, tmp_path: Path) -> None:
    computes = dictionary_files(tmp_path, dict_class, threshold=-1.0)

    foreign = read(tmp_path)

    agrees(foreign.sae, computes)
    assert "threshold" in foreign.doubts[0]


def test_a_checkpoint_stands_in_a_folder_of_its_own_or_in_a_trainers_whole_state(tmp_path: Path) -> None:
    computes = dictionary_files(tmp_path, "BatchTopKSAE")
    state = torch.load(tmp_path / "ae.pt")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_500.pt")
    torch.save({"step": 500, "ae": state, "optimizer": {"lr": 0.1}}, tmp_path / "checkpoints" / "ae_1000.pt")

    for name in ("ae_500.pt", "ae_1000.pt"):
        foreign = read(tmp_path / "checkpoints" / name)
        assert isinstance(foreign.sae, BatchTopKSAE)
        agrees(foreign.sae, computes)


def test_topk_without_settings_is_topk_and_jumprelu_without_is_not_known(tmp_path: Path) -> None:
    computes = dictionary_files(tmp_path / "topk", "AutoEncoderTopK")
    (tmp_path / "topk" / "config.json").unlink()
    foreign = read(tmp_path / "topk")
    agrees(foreign.sae, computes)
    assert foreign.hook_name is None

    dictionary_files(tmp_path / "old", "AutoEncoderTopK")
    state = torch.load(tmp_path / "old" / "ae.pt")
    torch.save(
        {name: tensor for name, tensor in state.items() if name not in ("k", "threshold")}, tmp_path / "old/ae.pt"
    )
    agrees(read(tmp_path / "old").sae, computes)
    (tmp_path / "old" / "config.json").unlink()
    with pytest.raises(WeightsError, match="says k"):
        dictionary_learning.read(Source(tmp_path / "old"))


@pytest.mark.parametrize("k", [0, -3, 2.5, "many"])
def test_a_k_that_is_no_count_is_refused(k: object, tmp_path: Path) -> None:
    dictionary_files(tmp_path, "AutoEncoderTopK")
    state = torch.load(tmp_path / "ae.pt")
    del state["k"]
    torch.save(state, tmp_path / "ae.pt")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {**config["trainer"], "k": k}}))

    with pytest.raises(WeightsError, match="k is"):
        read(tmp_path)
