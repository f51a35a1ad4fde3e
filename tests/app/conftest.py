"""A dashboard over the factories' store, with a stand-in for the model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """SAE "demo" on "poems" (newer) and "stories", and an SAE "unindexed"; nobody writes to it."""
    opened = make_store(f"sqlite:///{tmp_path_factory.mktemp('store')}/saescope.db")
    yield opened
    opened.close()


@pytest.fixture
def prober() -> FakeProber:
    return FakeProber()


@pytest.fixture
def app(store: Store, prober: FakeProber, tmp_path: Path) -> FastAPI:
    return create_app(Settings(home=tmp_path, max_body_bytes=20_000), store=store, prober=prober)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened
