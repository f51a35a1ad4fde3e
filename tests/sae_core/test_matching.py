"""Decoder directions beside each other: blocks and samples give what one plain product gives."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_core import matching
from sae_core.errors import InputError, WeightsError
from sae_core.matching import Decoder, best_matches, decoder_cosine

Refuses = Callable[..., AbstractContextManager[None]]


def saved(folder: Path, W_dec: np.ndarray[Any, Any]) -> Decoder:
    folder.mkdir(exist_ok=True)
    save_file({"W_dec": W_dec, "b_dec": np.zeros(1, dtype=np.float32)}, folder / "sae.safetensors")
    return Decoder(folder)


@pytest.fixture
def weights() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(70, 12)), rng.normal(size=(90, 12))
    b[10:40] = a[:30] * 3 + 0.2 * rng.normal(size=(30, 12))  # norms count for nothing
    return a.astype(np.float32), b.astype(np.float32)


def cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> list[list[float]]:
    return [[float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in b] for x in a]


@pytest.mark.parametrize("rows", [7, 2048])
def test_best_matches_are_those_of_all_cosines(
    tmp_path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(matching, "BLOCK_ROWS", rows)
    a, b = saved(tmp_path / "a", weights[0]), saved(tmp_path / "b", weights[1])
    found, table = best_matches(a, b), np.array(cosines(*weights))
    assert [m.feature_index for m in found.a] == list(range(70))
    assert [m.other_index for m in found.a] == table.argmax(axis=1).tolist()
    assert [m.cosine for m in found.a] == pytest.approx(table.max(axis=1), abs=1e-5)
    assert [m.other_index for m in found.b] == table.argmax(axis=0).tolist()
    assert [m.cosine for m in found.b] == pytest.approx(table.max(axis=0), abs=1e-5)
    assert (found.width, found.n_a, found.n_b, found.is_sample) == (12, 70, 90, False)


@pytest.mark.parametrize("rows", [7, 2048])
def test_dead_features_neither_look_for_a_match_nor_are_one(
    tmp_path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(matching, "BLOCK_ROWS", rows)
    a, b = saved(tmp_path / "a", weights[0]), saved(tmp_path / "b", weights[1])
    alive_a, alive_b = [0, 3, 29, 69], [5, 13, 80, 39]
    found, table = best_matches(a, b, alive_a=alive_a, alive_b=alive_b), np.array(cosines(*weights))
    for match in found.a:
        best = max(alive_b, key=lambda j: table[match.feature_index, j])
        assert (match.other_index, match.cosine) == (best, pytest.approx(table[match.feature_index, best], abs=1e-5))
    assert [m.feature_index for m in found.a] == alive_a
    assert [m.feature_index for m in found.b] == sorted(alive_b)


def test_too_much_work_becomes_an_even_sample_and_then_a_refusal(
    tmp_path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    a, b = saved(tmp_path / "a", weights[0]), saved(tmp_path / "b", weights[1])
    monkeypatch.setattr(matching, "LEAST_SAMPLE", 10)
    whole, some = best_matches(a, b), best_matches(a, b, most_work=12 * 160 * 20)
    assert some.is_sample and (some.n_a, some.n_b, len(some.a), len(some.b)) == (70, 90, 20, 20)
    for few, all_of_them in ((some.a, whole.a), (some.b, whole.b)):
        known = {m.feature_index: m for m in all_of_them}
        for match in few:
            same = known[match.feature_index]
            assert (match.other_index, match.cosine) == (same.other_index, pytest.approx(same.cosine, abs=1e-6))
    assert (some.a[0].feature_index, some.a[-1].feature_index) == (0, 69)
    gaps = np.diff([m.feature_index for m in some.b])
    assert set(gaps.tolist()) <= {4, 5}
    with refuses(InputError, "70", "90", "12", "most_work"):
        best_matches(a, b, most_work=12 * 160 * 9)


def test_cosine_of_two_features(tmp_path: Path, weights: Any, refuses: Refuses) -> None:
    a, b = saved(tmp_path / "a", weights[0]), saved(tmp_path / "b", weights[1])
    assert decoder_cosine(a, 3, b, 13) == pytest.approx(cosines(*weights)[3][13], abs=1e-6)
    assert decoder_cosine(a, 3, a, 3) == pytest.approx(1, abs=1e-6)
    with refuses(WeightsError, "no feature 70", "index"):
        decoder_cosine(a, 70, b, 0)
    with refuses(InputError, "12", "8", "no cosine"):
        decoder_cosine(a, 0, saved(tmp_path / "c", np.ones((4, 8), dtype=np.float32)), 0)


def test_half_precision_and_zero_rows(tmp_path: Path) -> None:
    rows = np.array([[3, 4], [0, 0], [1, 0]], dtype=np.float16)
    decoder = saved(tmp_path / "half", rows)
    assert decoder.unit_rows(0, 3).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [1, 0]]
    assert decoder_cosine(decoder, 0, decoder, 1) == 0


def test_weights_that_cannot_be_read(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(WeightsError, "nowhere", "put them back"):
        Decoder(tmp_path / "nowhere")
    (tmp_path / "sae.safetensors").write_bytes(b"nonsense")
    with refuses(WeightsError, "cannot be read"):
        Decoder(tmp_path)
    save_file({"other": np.zeros((2, 2), dtype=np.float32)}, tmp_path / "sae.safetensors")
    with refuses(WeightsError, "cannot be read"):
        Decoder(tmp_path)
    with refuses(WeightsError, "cannot be read"):
        saved(tmp_path, np.zeros(5, dtype=np.float32))


def test_an_sae_without_an_alive_feature_matches_nothing(tmp_path: Path, weights: Any, refuses: Refuses) -> None:
    a = saved(tmp_path / "a", weights[0])
    with refuses(InputError, "no feature that is alive"):
        best_matches(a, a, alive_a=[], alive_b=[1])


def test_what_an_sae_saves_is_what_is_read(tmp_path: Path) -> None:
    import torch

    from sae_core.sae import TopKSAE

    torch.manual_seed(0)
    sae = TopKSAE(6, 20, 2)
    sae.save(tmp_path)
    assert np.allclose(Decoder(tmp_path).unit_rows(0, 20), sae.W_dec.detach().numpy(), atol=1e-6)
