"""Which runs somebody who does not see everything may know of: a run stands in files, but is its SAE's, which the store
shows or hides, also after it was deleted. One of an SAE that the store never had is as visible as new SAEs are
(`new_saes`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sae_core.access_records import Visibility
from sae_core.errors import NotFoundError
from sae_core.runs import Run
from sae_core.store import Store


def seen_runs(store: Store, runs: Iterable[Run], *, new_saes: Visibility) -> list[Run]:
    """Those that a list may show."""
    known = store.visibilities()
    shown = [run for run in runs if known.get(run.slug, new_saes) == "public"]
    return [_without_hidden(run, known, new_saes=new_saes) for run in shown]


def seen_run(store: Store, run: Run, *, new_saes: Visibility) -> Run:
    """A run that may be shown, which may have been trained together with hidden ones."""
    return _without_hidden(run, store.visibilities(), new_saes=new_saes)


def _without_hidden(run: Run, known: Mapping[str, Visibility], *, new_saes: Visibility) -> Run:
    together = tuple(slug for slug in run.together if known.get(slug, new_saes) == "public" or slug == run.slug)
    return replace(run, together=together if len(together) > 1 else ())


def require_seen_run(store: Store, run_id: str, *, new_saes: Visibility) -> None:
    """Raises NotFoundError, as for a run that is not there, where its SAE is hidden."""
    if store.visibilities().get(run_id.split("~", 1)[0], new_saes) == "private":
        raise NotFoundError("There is no run of this name: the list of runs has those that are here.")
