"""Best matches between the features of two SAEs, computed once and kept: seconds of work that no page repeats.

What is kept stays right: its key is both files, as they are on disk, and both indexes, which say who is alive.
"""

import threading
from collections import OrderedDict
from pathlib import Path

from app.points import PointsCache
from sae_core.comparison import Match, Matches
from sae_core.errors import BusyError, WeightsError
from sae_core.records import IndexInfo, SAEInfo
from sae_core.store import Store
from sae_core.store_check import WEIGHTS_FILE

RESULTS_KEPT = 16  # about 5 MB each for 16,384 features
MOST_WAITING = 4  # requests at a time, so that other pages keep their threads

Key = tuple[tuple[object, ...], ...]


class MatchCache:
    """Computes one at a time; who asks for the same meanwhile gets the same result."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, Matches] = OrderedDict()
        self._computing = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)

    def matches(
        self,
        store: Store,
        points: PointsCache,
        *,
        a: tuple[SAEInfo, IndexInfo | None],
        b: tuple[SAEInfo, IndexInfo | None],
    ) -> Matches:
        """Raises WeightsError or InputError where there is no answer, BusyError where others wait already."""
        key = (_identity(*a), _identity(*b))
        if (known := self._kept.get(key)) is not None:
            return known
        if not self._waiting.acquire(blocking=False):
            raise BusyError("Other SAEs are being compared: try again in a few seconds.")
        try:
            with self._computing:
                if (known := self._kept.get(key)) is not None:
                    return known
                found = _computed(store, points, a=a, b=b)
                self._kept[key] = found
                while len(self._kept) > RESULTS_KEPT:
                    self._kept.popitem(last=False)
                return found
        finally:
            self._waiting.release()


def cosine(a: SAEInfo, feature_a: int, b: SAEInfo, feature_b: int) -> float:
    """Of two features' decoder directions; raises WeightsError or InputError where there is none."""
    from sae_core.matching import Decoder, decoder_cosine  # numpy takes a third of a second

    return decoder_cosine(Decoder(_folder(a)), feature_a, Decoder(_folder(b)), feature_b)


def closest(a: SAEInfo, feature_a: int, b: SAEInfo) -> Match:
    """The feature of b whose decoder direction is closest to this one of a; raises as `cosine` does."""
    from sae_core.matching import Decoder, closest_match

    return closest_match(Decoder(_folder(a)), feature_a, Decoder(_folder(b)))


def _computed(
    store: Store,
    points: PointsCache,
    *,
    a: tuple[SAEInfo, IndexInfo | None],
    b: tuple[SAEInfo, IndexInfo | None],
) -> Matches:
    from sae_core.matching import Decoder, best_matches

    decoders = [Decoder(_folder(sae)) for sae, _ in (a, b)]
    alive = [
        None if index is None else [i for i, point in points.points(store, index).items() if point.density > 0]
        for _, index in (a, b)
    ]
    return best_matches(decoders[0], decoders[1], alive_a=alive[0], alive_b=alive[1])


def _identity(sae: SAEInfo, index: IndexInfo | None) -> tuple[object, ...]:
    path = _folder(sae) / WEIGHTS_FILE
    try:
        stat = path.stat()
    except OSError as error:
        raise _missing(sae) from error
    measured = (None, None) if index is None else (index.index_id, index.created_at)
    return str(path), stat.st_mtime_ns, stat.st_size, *measured


def _folder(sae: SAEInfo) -> Path:
    if not sae.weights_path or not (Path(sae.weights_path) / WEIGHTS_FILE).is_file():
        raise _missing(sae)
    return Path(sae.weights_path)


def _missing(sae: SAEInfo) -> WeightsError:
    return WeightsError(
        f"The weights of {sae.slug} are not in {sae.weights_path or 'any folder'}; put them back to compare directions."
    )
