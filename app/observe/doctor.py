"""`saescope doctor`: looks at an installation and says in plain words what is wrong with it. Loads no model."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from app.server import files_problem
from app.settings import Settings
from sae_core.errors import SaescopeError
from sae_core.store import Store

LEAST_FREE = 2e9  # bytes of disk: an index of a million tokens takes less
NEEDED = ("fastapi", "sqlalchemy", "torch", "transformers", "uvicorn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; a problem says what to do."""

    is_well: bool
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything in turn; what cannot be looked at, because what it needs is missing, is left out."""
    yield from _packages()
    yield from _home(settings.home)
    problem = files_problem(settings)
    yield _problem(problem) if problem else _well(f"The system allows {settings.max_connections:,} connections.")
    try:
        store = Store.open(settings.database_url)
    except SaescopeError as error:
        yield _problem(str(error))
        return
    with closing(store):
        yield from _database(store, settings)
        yield from _access(store, settings)


def _packages() -> Iterator[Finding]:
    versions = {}
    for name in NEEDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield _problem(f"The package {name} is not installed; install saescope again: make install.")
    yield _well("Packages: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")


def _home(home: Path) -> Iterator[Finding]:
    if not home.is_dir():
        yield _problem(f"The home {home} is not there; the first `saescope train` or `saescope serve` makes it.")
        return
    if not os.access(home, os.W_OK | os.X_OK):
        yield _problem(f"The home {home} cannot be written to; give its folder to the user who runs saescope.")
    free = shutil.disk_usage(home).free
    say = _well if free >= LEAST_FREE else _problem
    advice = "" if free >= LEAST_FREE else "; make room before you train or index"
    yield say(f"The home {home} has {free / 1e9:.1f} GB free{advice}.")


def _database(store: Store, settings: Settings) -> Iterator[Finding]:
    saes = store.saes()
    indexed = sum(bool(summary.indexes) for summary in saes)
    kind = "SQLite" if settings.database_url.startswith("sqlite") else "PostgreSQL"
    yield _well(f"The database ({kind}) answers, is of this version, and has {len(saes)} SAEs, {indexed} indexed.")
    for summary in saes:
        sae = summary.sae
        if not Path(sae.weights_path).exists():
            yield _problem(
                f"The weights of {sae.slug} are not at {sae.weights_path}: its pages work, but no text can be probed; "
                "put them back there."
            )
        model = Path(sae.model.model_name)
        if model.is_absolute() and not model.is_dir():
            yield _problem(f"The model of {sae.slug} is not at {model}: no text can be probed; put it back there.")


def _access(store: Store, settings: Settings) -> Iterator[Finding]:
    if settings.insecure:
        yield _problem(
            f"Whoever reaches {settings.host} may do everything (SAESCOPE_INSECURE); leave that out, and make tokens."
        )
    elif not settings.needs_login:
        yield _well(f"The server listens on {settings.host}, which only this machine reaches, and asks for no token.")
    else:
        admins = [t for t in store.accounts.tokens() if t.revoked_at is None and t.role == "admin"]
        if admins:
            yield _well(f"The server asks for a token; {len(admins)} of those in use are an admin's.")
        else:
            yield _problem("No admin has a token; make one: saescope token create NAME --role admin.")
    if settings.visitors and settings.needs_login:
        public = [summary.sae.slug for summary in store.saes() if summary.visibility == "public"]
        yield _well(f"People without a token see {len(public)} SAEs: {', '.join(public) or 'none'}.")


def _well(text: str) -> Finding:
    return Finding(is_well=True, text=text)


def _problem(text: str) -> Finding:
    return Finding(is_well=False, text=text)
