"""`saescope basis`: a model's neurons or principal components, to be indexed and labelled as an SAE's features are."""

import argparse
from contextlib import closing

from app.settings import Settings
from sae_core.arguments import add_device_argument, count
from sae_core.store import Store

KINDS = ("neurons", "coordinates", "pca")  # as in sae_core.explain.bases, which loads torch

BASIS = """\
Make something to compare an SAE with: the neurons of the MLP in its layer (neurons), the coordinates of the vectors
that it reads (coordinates; those of a residual stream are no neurons), or their principal components (pca). Either sign
of each is a feature, the k largest of a token are active. It is indexed, browsed, labelled and scored like an SAE, as
SLUG-neurons, SLUG-coordinates or SLUG-pca; the page of label scores shows what the SAE bought."""


def add_basis_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("slug", metavar="SLUG", help="the SAE, as `train` named it")
    how = parser.add_argument_group("which basis")
    how.add_argument(
        "--kind",
        choices=KINDS,
        nargs="+",
        default=["neurons", "pca"],
        help="one or more: neurons, coordinates, pca (neurons and pca)",
    )
    how.add_argument("--k", type=count, metavar="N", help="features active on a token (as the SAE has)")
    add_device_argument(how)


def run_basis(arguments: argparse.Namespace, *, settings: Settings) -> int:
    """The command; returns its exit code."""
    from sae_core.explain.bases import make_basis

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
