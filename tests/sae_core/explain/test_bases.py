"""A model's neurons and principal components as SAEs: what they are, against numpy, and that they index."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_core.config import IndexConfig
from sae_core.errors import ConfigError
from sae_core.evaluate import load_subject, read_contexts
from sae_core.explain.bases import make_basis
from sae_core.index import build_index
from sae_core.loading import load_model
from sae_core.records import SAEInfo
from sae_core.sae import load_sae
from tests.planted import random_sae, save_sae
from tests.tiny import TEXTS


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> SAEInfo:
    folder = tmp_path_factory.mktemp("bases")
    (folder / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    model = load_model(str(tiny_llama))
    sae = random_sae(model.info.d_model, 48, 6, seed=5)
    info = save_sae(sae, folder / "mine", model, layer=1, hook="resid_post", context_size=32)
    info.config["corpus"] = (str(folder / "texts.txt"),)  # type: ignore[index]
    return info


def vectors(info: SAEInfo, tmp_path: Path) -> np.ndarray:
    """Everything that the SAE reads on its corpus, in one array."""
    config = IndexConfig(slug=info.slug, corpus=info.config["corpus"], tokens=None)  # type: ignore[arg-type]
    subject = load_subject(info, config)
    contexts = read_contexts(subject, config, scratch=tmp_path)
    return np.concatenate([subject.activations(*subject.tensors([c]))[0].detach().numpy() for c in contexts])


@pytest.mark.parametrize("kind", ["coordinates", "pca"])
def test_a_basis_says_the_largest_coordinates_away_from_the_mean(trained: SAEInfo, tmp_path: Path, kind: str) -> None:
    info = make_basis(trained, kind, k=5, runs=tmp_path)
    sae, acts = load_sae(Path(info.weights_path)), vectors(trained, tmp_path)
    d = trained.d_in
    assert (info.slug, info.architecture, info.d_sae, info.k) == (f"{trained.slug}-{kind}", kind, 2 * d, 5)
    centred = acts - acts.mean(axis=0)
    directions = np.eye(d) if kind == "coordinates" else np.linalg.svd(centred, full_matrices=False)[2]
    found = sae.W_dec.detach().numpy()
    assert np.abs(np.sum(found[:d] * directions, axis=1)) == pytest.approx(np.ones(d), abs=0.02)
    assert found[d:] == pytest.approx(-found[:d])
    code = sae.encode(torch.from_numpy(acts[:50])).dense().detach().numpy()
    coordinates = centred[:50] @ found[:d].T
    for row, own in zip(code, coordinates, strict=True):
        largest = np.sort(np.argsort(-np.abs(own))[:5])
        active = np.flatnonzero(row)
        assert np.array_equal(np.sort(active % d), largest)
        assert row[active] == pytest.approx(np.abs(own[active % d]), abs=1e-4)


def test_neurons_are_what_the_mlps_last_matrix_reads_in_a_plain_forward(trained: SAEInfo, tmp_path: Path) -> None:
    info = make_basis(trained, "neurons", k=4, runs=tmp_path)
    config = IndexConfig(slug=info.slug, corpus=info.config["corpus"], tokens=None)  # type: ignore[arg-type]
    subject = load_subject(info, config)
    contexts = read_contexts(subject, config, scratch=tmp_path)
    seen: list[torch.Tensor] = []
    with (
        torch.no_grad(),
        subject.model.blocks[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
    ):
        for context in contexts:
            ids, _, counted = subject.tensors([context])
            subject.model.module(input_ids=ids)
            seen[-1] = seen[-1][counted]
    neurons = torch.cat(seen)

    assert (info.hook_name, info.d_in, info.d_sae) == ("blocks.1.hook_mlp_post", 64, 128)
    assert info.config["compared_at"] == trained.hook_name == "blocks.1.hook_resid_post"
    away = (neurons - neurons.double().mean(dim=0)).float()
    code = load_sae(Path(info.weights_path)).encode(neurons[:50]).dense()
    for row, own in zip(code, away[:50], strict=True):
        largest = own.abs().topk(4).indices
        expected = torch.zeros(128).index_put((largest + 64 * (own[largest] < 0),), own[largest].abs())
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)

    records = build_index(info, config, home=tmp_path)
    assert records is not None
    W_U = subject.model.unembedding()
    W_out = subject.model.blocks[1].mlp.down_proj.weight
    assert W_U is not None
    first = next(iter(records.features))
    logits = W_out[:, 0] @ W_U  # neuron 0, upwards
    promoted = np.frombuffer(first.promoted_tokens, [("token_id", "<u4"), ("weight", "<f4")])["token_id"]
    assert promoted.tolist() == logits.topk(len(promoted)).indices.tolist()


def test_it_is_indexed_like_an_sae(trained: SAEInfo, tmp_path: Path) -> None:
    info = make_basis(trained, "pca", k=trained.d_in, runs=tmp_path)
    config = IndexConfig(slug=info.slug, corpus=info.config["corpus"], tokens=None)  # type: ignore[arg-type]
    records = build_index(info, config, home=tmp_path)
    assert records is not None and records.sample is not None
    assert records.info.metrics.fvu < 1e-6  # all coordinates are kept
    assert len(list(records.contexts)) > 0 and len(list(records.features)) == 2 * trained.d_in


def test_what_has_no_basis_is_said(trained: SAEInfo, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="not known what"):
        make_basis(replace(trained, config={}), "pca", k=3, runs=tmp_path)
    with pytest.raises(ConfigError, match="transcoder"):
        make_basis(replace(trained, config={"target_hook": "mlp_out"}), "pca", k=3, runs=tmp_path)
