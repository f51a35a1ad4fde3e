"""Deleting an SAE: what goes and what stays, the doing of it, and its page and twin, for admins.

The database forgets the SAE with its indexes, labels, scores and map. Lists that hold its features, shared probes and
steerings stay and say that it is gone. Its files (weights, curves, what indexing gathered) stay too unless they are
asked away: from them `saescope train` or `import` brings it back in seconds. Nobody deletes what is being worked on.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict

from app.changes import Fields, Writable, parsed
from app.deps import SettingsDep, Slug, StoreDep
from app.numbers import count
from app.rendering import page
from sae_core.disk import saving
from sae_core.errors import InputError
from sae_core.holding import held_alone
from sae_core.records import SAEContents
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")

FOLDERS = ("runs", "imports", "indexes")  # of the home: each has one of an SAE's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder of the home that is this SAE's alone."""

    path: str
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What hangs on an SAE: what goes with it, what stays, and the files that only go if they are asked away."""

    slug: str
    contents: SAEContents
    folders: tuple[Folder, ...]

    @property
    def n_bytes(self) -> int:
        return sum(folder.n_bytes for folder in self.folders)


class Confirmed(BaseModel):
    """What the page's form sends: the SAE's name, typed, and whether its files go too."""

    model_config = ConfigDict(frozen=True)
    name: str = ""
    files: bool = False


def what_goes(store: Store, slug: str, *, home: Path) -> Deletion:
    """Raises NotFoundError."""
    contents = store.sae_contents(slug)
    folders = (Folder(path=str(path), n_bytes=_size(path)) for path in _folders(home, slug))
    return Deletion(slug=slug, contents=contents, folders=tuple(folders))


def delete(store: Store, slug: str, *, home: Path, files: bool) -> Deletion:
    """Returns what there was. Raises NotFoundError, and BusyError while somebody trains or indexes it."""
    found = what_goes(store, slug, home=home)
    with held_alone(home, slug=slug):
        store.delete_sae(slug)
        if files:
            for path in _folders(home, slug):
                with saving(path):
                    shutil.rmtree(path)
    return found


def sentences(found: Deletion) -> Iterator[str]:
    """What goes and what stays, for the command line and the page."""
    contents = found.contents
    human = f" ({count(contents.n_human_labels)} written by people)" if contents.n_human_labels else ""
    yield (
        f"Goes for good: {_counted(contents.n_indexes, 'index', 'indexes')} with features and examples, "
        f"{_counted(contents.n_labels, 'label', 'labels')}{human}, scores and map."
    )
    left = [
        _counted(contents.n_list_items, "item of lists", "items of lists"),
        _counted(contents.n_probes, "shared probe", "shared probes"),
        _counted(contents.n_steerings, "stored steering", "stored steerings"),
    ]
    yield f"These stay, and say that the SAE is gone: {left[0]}, {left[1]}, {left[2]}."


@router.get("/saes/{slug}/delete")
def delete_page(request: Request, store: StoreDep, settings: SettingsDep, slug: Slug) -> Response:
    return _asked(request, what_goes(store, slug, home=settings.home))


@router.post("/saes/{slug}/delete", dependencies=[Writable])
def delete_from_page(request: Request, store: StoreDep, settings: SettingsDep, slug: Slug, fields: Fields) -> Response:
    confirmed = parsed(Confirmed, fields)
    if confirmed.name.strip() != slug:
        problem = f"Nothing was deleted: what you typed is not {slug}."
        return _asked(request, what_goes(store, slug, home=settings.home), files=confirmed.files, problem=problem)
    delete(store, slug, home=settings.home, files=confirmed.files)
    return RedirectResponse("/", status_code=303)


@api.get("/saes/{slug}/delete", summary="What deleting an SAE would remove, and what would stay")
def get_deletion(store: StoreDep, settings: SettingsDep, slug: Slug) -> Deletion:
    return what_goes(store, slug, home=settings.home)


@api.delete("/saes/{slug}", summary="Delete an SAE; the answer is what there was", dependencies=[Writable])
def delete_sae(
    store: StoreDep,
    settings: SettingsDep,
    slug: Slug,
    files: Annotated[bool, Query(description="also its weights, curves, and what indexing gathered")] = False,
) -> Deletion:
    return delete(store, slug, home=settings.home, files=files)


def _asked(request: Request, found: Deletion, *, files: bool = False, problem: str | None = None) -> Response:
    return page(
        request, "delete.html", status_code=InputError.http_status if problem else 200, found=found,
        sentences=tuple(sentences(found)), files=files, problem=problem, json_url=f"/api/saes/{found.slug}/delete",
    )  # fmt: skip


def _folders(home: Path, slug: str) -> Iterator[Path]:
    """Those of its name that are folders of the home itself, and lead nowhere else."""
    for parent in FOLDERS:
        path = home / parent / slug
        if path.parent == home / parent and path.is_dir() and not path.is_symlink():
            yield path


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # gone meanwhile
            continue
    return total


def _counted(n: int, one: str, many: str) -> str:
    return f"{count(n)} {one if n == 1 else many}"
