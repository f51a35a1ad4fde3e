"""The map: what lies close together in the SAE lies close together in the plane, the same on every run."""

import signal
from typing import Any

import numpy as np
import pytest

from sae_core import feature_map as module
from sae_core.errors import InputError
from sae_core.feature_map import feature_map
from sae_core.records import MAP_SIDE, Neighbours

CLUSTERS, EACH, K = 6, 20, 8


def nearest(directions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The slow, obvious way: all cosines, sorted."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    order = np.argsort(-cosines, axis=1)[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


def packed(indices: np.ndarray, cosines: np.ndarray) -> Neighbours:
    rows = np.zeros(indices.shape, [("feature_index", "<u4"), ("cosine", "<f4")])
    rows["feature_index"], rows["cosine"] = indices, cosines
    return Neighbours(d_sae=len(indices), packed=rows.tobytes())


@pytest.fixture(scope="module")
def neighbours() -> Neighbours:
    """Directions in clusters, feature i in cluster i % CLUSTERS."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, 24))
    directions = np.tile(centres, (EACH, 1)) + 0.4 * rng.normal(size=(CLUSTERS * EACH, 24))
    return packed(*nearest(directions, K))


@pytest.mark.slow
def test_neighbours_lie_together_and_the_map_is_the_same_again(neighbours: Neighbours) -> None:
    made = feature_map(neighbours)
    assert made is not None
    places = np.array([made.xs, made.ys]).T
    assert places.min() == 0 and places.max() == MAP_SIDE
    assert made.n_neighbours == K and made.seed == 0 and made.seconds > 0
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    five = np.argsort(distances, axis=1)[:, :5]
    numbers = np.arange(CLUSTERS * EACH)
    assert (five % CLUSTERS == numbers[:, None] % CLUSTERS).mean() > 0.95
    again = feature_map(neighbours)
    assert again is not None and (again.xs, again.ys) == (made.xs, made.ys)
    other = feature_map(neighbours, seed=1)
    assert other is not None and other.xs != made.xs


@pytest.mark.slow
def test_many_features_are_interpolated(neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TREE_FEATURES", 10)
    monkeypatch.setattr(module, "FINE_STEPS", 50)
    made = feature_map(neighbours)
    assert made is not None and len(set(zip(made.xs, made.ys, strict=True))) == CLUSTERS * EACH


def test_ctrl_c_stops_between_steps(neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    def bar(**_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(total=1, what="", is_shown=False)

    real = module.progress_bar
    monkeypatch.setattr(module, "progress_bar", bar)
    assert feature_map(neighbours) is None


@pytest.mark.parametrize("n", [module.LEAST_FEATURES, 12])
def test_few_features_have_a_map_too(n: int) -> None:
    rng = np.random.default_rng(1)
    made = feature_map(packed(*nearest(rng.normal(size=(n, 4)), 3)))
    assert made is not None and len(made.xs) == len(made.ys) == n


@pytest.mark.parametrize("table", [Neighbours(d_sae=3, packed=b"\0" * 24), Neighbours(d_sae=20, packed=b"")])
def test_too_little_for_a_map_is_said(table: Neighbours) -> None:
    with pytest.raises(InputError, match="at least 5 features"):
        feature_map(table)


def test_proportions_are_kept() -> None:
    places = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0]])
    whole = module._whole_numbers(places)
    assert whole.tolist() == [[0, 16384], [65535, 16384], [65535, 49151]]
    assert module._whole_numbers(np.zeros((2, 2))).tolist() == [[32768, 32768]] * 2
