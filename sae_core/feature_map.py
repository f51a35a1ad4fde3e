"""Decoder directions in the plane: from every feature's nearest features, as an index keeps them, to places on a map.

1. Take the nearest features of each (`Neighbours`): the exact ones by the cosine of decoder directions.
2. Weigh them as t-SNE does, each feature's own so that about a third to a half of them count (its perplexity).
3. Begin with the spectral layout of that graph, so that the map is the same each time and its whole means something.
4. Move every feature towards its neighbours and away from all others (t-SNE, https://jmlr.org/papers/v9/vandermaaten08a;
   repulsion by Barnes and Hut's tree, or where there are many by interpolation, https://arxiv.org/abs/1712.09005).

Needs no weights, no model and no torch. The library is openTSNE; docs/decisions/0009 says why.
"""

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.errors import InputError
from sae_core.progress import progress_bar, stop_request
from sae_core.records import MAP_SIDE, FeatureMap, Neighbours

SEED = 0
ROUGH_STEPS, FINE_STEPS = 100, 250  # with the attraction of neighbours exaggerated, and as it is
EXAGGERATION = 12
TREE_FEATURES = 10_000  # up to so many features, repulsion is read from a tree
LEAST_FEATURES = 5
STEPS_BETWEEN_LOOKS = 10

_NEIGHBOUR = np.dtype([("feature_index", "<u4"), ("cosine", "<f4")])
_Places = NDArray[np.float64]


def feature_map(neighbours: Neighbours, *, seed: int = SEED) -> FeatureMap | None:
    """The map; None if it was asked to stop. The same neighbours and seed give the same map on the same machine.

    Raises InputError if there are too few features for one.
    """
    if neighbours.d_sae < LEAST_FEATURES or neighbours.per_feature < 1:
        raise InputError(f"A map needs at least {LEAST_FEATURES} features, and each with a nearest one.")
    started = time.monotonic()
    places = _places(neighbours, seed=seed)
    if places is None:
        return None
    xs, ys = _whole_numbers(places).T
    return FeatureMap(
        xs=tuple(xs.tolist()),
        ys=tuple(ys.tolist()),
        n_neighbours=neighbours.per_feature,
        seed=seed,
        seconds=time.monotonic() - started,
        created_at=datetime.now(tz=UTC),
    )


def _places(neighbours: Neighbours, *, seed: int) -> _Places | None:
    """(d_sae, 2)."""
    from openTSNE import TSNEEmbedding, initialization
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    k = neighbours.per_feature
    table = np.frombuffer(neighbours.packed, _NEIGHBOUR).reshape(neighbours.d_sae, k)
    distances = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * table["cosine"].astype(np.float64)))  # of unit vectors
    graph = PrecomputedNeighbors(table["feature_index"].astype(np.int64), distances)
    affinities = PerplexityBasedNN(perplexity=max(1.0, k / 2), knn_index=graph)
    with stop_request() as stop, progress_bar(total=ROUGH_STEPS + FINE_STEPS, what="mapping", unit=" steps") as bar:
        places: Any = TSNEEmbedding(
            initialization.spectral(affinities.P, random_state=seed),
            affinities,
            negative_gradient_method="bh" if neighbours.d_sae <= TREE_FEATURES else "fft",
            n_jobs=1,  # the same sums in the same order
            random_state=seed,
        )

        def looked(*_: object) -> bool:
            bar.update(STEPS_BETWEEN_LOOKS)
            return stop.was_made

        for steps, exaggeration in ((ROUGH_STEPS, EXAGGERATION), (FINE_STEPS, 1)):
            places = places.optimize(
                steps,
                exaggeration=exaggeration,
                momentum=0.8,
                learning_rate="auto",
                callbacks=looked,
                callbacks_every_iters=STEPS_BETWEEN_LOOKS,
            )
            if stop.was_made:
                return None
    return np.asarray(places)


def _whole_numbers(places: _Places) -> NDArray[np.int64]:
    """From 0 to MAP_SIDE both ways, with the proportions kept and the whole in the middle."""
    low, high = places.min(axis=0), places.max(axis=0)
    side = float((high - low).max()) or 1.0
    return np.rint(MAP_SIDE * (0.5 + (places - (low + high) / 2) / side)).clip(0, MAP_SIDE).astype(np.int64)
