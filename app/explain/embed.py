"""`saescope label --embed`: vectors of an SAE's labels, so that they can be searched by meaning."""

import sys

from sae_core.progress import progress_bar, stop_request
from sae_core.store import Store

STOPPED = 130
STORED_AT_ONCE = 1024  # labels


def embed_labels(store: Store, slug: str, model_name: str, *, device: str | None) -> int:
    """Makes the vectors that are missing, or all by another model than before; returns the command's exit code."""
    store.sae(slug)  # an unknown name is an error before anything is loaded
    from sae_core.embedding import Embedder

    embedder = Embedder(model_name, device=device)
    store.start_label_vectors(slug, embedder.info)
    missing = list(store.labels_without_vectors(slug).items())
    with stop_request() as stop, progress_bar(total=len(missing), what="embedding", unit=" labels") as bar:
        for start in range(0, len(missing), STORED_AT_ONCE):
            texts = dict(missing[start : start + STORED_AT_ONCE])
            found = embedder.embedded(list(texts.values()))
            store.add_label_vectors(slug, embedder.info, texts, found.vectors)
            bar.update(len(texts))
            if stop.was_made:
                print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
                return STOPPED
    now = store.label_vectors(slug)
    n = now.n_vectors if now else 0
    print(f"{n:,} labels can be searched by meaning, {len(missing):,} of them made vectors of now ({model_name}).")
    if not n:
        print(f"No feature has a label yet: index the SAE, or run `saescope label {slug} --patterns`.", file=sys.stderr)
    return 0
