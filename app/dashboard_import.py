"""A dashboard from elsewhere into the database: the SAE without weights, its index, its labels."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_core.dashboards import NEURONPEDIA
from sae_core.dashboards.neuronpedia_in import Dashboard
from sae_core.errors import ConflictError, NotFoundError
from sae_core.progress import stop_request
from sae_core.records import SAEInfo
from sae_core.store import Store
from sae_core.store_labels import Merged


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardImport:
    """What came of it."""

    sae: SAEInfo
    n_features: int
    n_contexts: int
    merged: Merged
    n_other_explanations: int

    def lines(self) -> Iterator[str]:
        """For the terminal."""
        n_labels = self.merged.added + self.merged.replaced + self.merged.same
        yield (
            f"Imported {self.sae.slug} (Neuronpedia): {self.n_features:,} features, {self.n_contexts:,} contexts, "
            f"{n_labels:,} explanations. There are no weights, so no text can be probed."
        )
        if self.n_other_explanations:
            yield f"  {self.n_other_explanations:,} older explanations of the same features were left out."
        yield f"Next: saescope serve, then open /saes/{self.sae.slug}"


def import_dashboard(store: Store, folder: Path, *, home: Path, slug: str | None = None) -> DashboardImport | None:
    """Imports bulk files, or the same again; None if it was stopped. Raises CorpusError and ConflictError.

    Labels that are here already are kept (`store_labels`), also when more files have come since.
    """
    dashboard = Dashboard(folder, home=home, slug=slug)
    known = _known(store, dashboard.slug)
    with stop_request() as stop:
        if not dashboard.gather(stop):
            return None
        sae = dashboard.sae()
        labels, n_others = dashboard.labels()
        if known is not None:
            sae = dataclasses.replace(sae, created_at=known.created_at)
        merged = store.add_dashboard(sae, dashboard.vocabulary(), dashboard.records(), labels)
    dashboard.finish()
    return DashboardImport(
        sae=sae,
        n_features=dashboard.n_features,
        n_contexts=dashboard.n_contexts,
        merged=merged,
        n_other_explanations=n_others,
    )


def _known(store: Store, slug: str) -> SAEInfo | None:
    """The same dashboard as it was imported before. Raises ConflictError if the name is another SAE's."""
    try:
        sae = store.sae(slug).sae
    except NotFoundError:
        return None
    if sae.config.get("format") != NEURONPEDIA:
        raise ConflictError(f"There is an SAE {slug} already, which is not this one; give this one another --slug.")
    return sae
