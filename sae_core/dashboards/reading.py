"""All features of a stored index with their examples, one after the other, for files that leave saescope."""

from collections.abc import Iterator

from sae_core.progress import progress_bar
from sae_core.records import FeatureDetail, IndexInfo
from sae_core.store import Store


def each_feature(store: Store, index: IndexInfo) -> Iterator[FeatureDetail]:
    """By feature index, the dead ones too, with a progress bar."""
    numbers = [point.feature_index for point in store.feature_points(index.slug, corpus=index.corpus.name)]
    with progress_bar(total=len(numbers), what="writing", unit=" features") as bar:
        for number in numbers:
            yield store.feature(index.slug, number, corpus=index.corpus.name)
            bar.update()
