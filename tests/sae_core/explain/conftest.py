"""An index of planted features, made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_core.explain.bench import Bench
from sae_core.store import Store
from tests.sae_core.explain.planted import planted_store


@pytest.fixture(scope="session")
def planted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its database, to be copied."""
    path = tmp_path_factory.mktemp("planted") / "saescope.db"
    planted_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def planted(planted_file: Path) -> Iterator[Store]:
    """The same, for tests that only read."""
    store = Store.open(f"sqlite:///{planted_file}")
    yield store
    store.close()


@pytest.fixture
def bench(planted: Store) -> Bench:
    return Bench(planted, "planted")
