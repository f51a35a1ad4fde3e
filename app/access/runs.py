"""Which runs somebody who does not see everything may know of: a run stands in files, but is its SAE's, which the store
shows or hides. One whose SAE is not in the store yet is as visible as new SAEs are (`new_saes`).
"""

from collections.abc import Iterable

from sae_core.errors import NotFoundError
from sae_core.runs import Run
from sae_core.store import Store


def seen_runs(store: Store, runs: Iterable[Run], *, new_saes: str) -> list[Run]:
    """Those that a list may show."""
    listed, hidden = {summary.sae.slug for summary in store.saes()}, store.hidden_slugs()
    shows_new = new_saes == "public"
    return [
        run
        for run in runs
        if run.slug in listed or (shows_new and run.slug not in hidden and not _is_stored(store, run.slug))
    ]


def require_seen_run(store: Store, run_id: str, *, new_saes: str) -> None:
    """Raises NotFoundError, as for a run that is not there, where its SAE is hidden."""
    slug = run_id.split("~", 1)[0]
    if slug in store.hidden_slugs() or (new_saes == "private" and not _is_stored(store, slug)):
        raise NotFoundError("There is no run of this name: the list of runs has those that are here.")


def _is_stored(store: Store, slug: str) -> bool:
    try:
        store.sae(slug)
    except NotFoundError:
        return False
    return True
