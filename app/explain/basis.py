"""What `saescope basis` does: neurons or principal components, to be indexed and labelled as an SAE's features are."""

import argparse
from contextlib import closing

from app.settings import Settings
from sae_core.explain.bases import make_basis
from sae_core.store import Store


def run_basis(arguments: argparse.Namespace, *, settings: Settings) -> int:
    """The command; returns its exit code."""
    with closing(Store.open(settings.database_url)) as store:
        summary = store.sae(arguments.slug)
        l0 = summary.indexes[0].metrics.l0 if summary.indexes else None
        k = arguments.k or summary.sae.k or round(l0 or 32)
        for kind in arguments.kind:
            info = make_basis(summary.sae, kind, k=k, runs=settings.home / "runs", device=arguments.device)
            store.add_sae(info, store.vocabulary(arguments.slug))
            print(f"{info.slug}: {info.d_sae} features, {info.k} of them active on a token.")
    print("Next, for each: saescope index NAME --corpus …, then saescope label NAME --patterns")
    return 0
