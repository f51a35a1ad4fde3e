"""A dashboard that others reach: tokens of each role, and an SAE HIDDEN beside the factories' that is private."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from sae_core.access_records import ROLES, Role
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_label, make_records, make_sae, make_store, make_vocabulary
from tests.run_logs import training

HIDDEN, UNKNOWN = "veiled-sae", "nobody-sae"  # one that is private, and one that never was
SECRET_LABEL = "a secret that only editors read"
Client = Callable[..., TestClient]


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Private HIDDEN, unlisted "unindexed", public "demo"; a list of both; tokens named after their roles."""
    opened = make_store(f"sqlite:///{tmp_path_factory.mktemp('access')}/saescope.db")
    opened.add_sae(make_sae(HIDDEN), make_vocabulary())
    opened.add_index(make_records(HIDDEN))
    opened.add_labels(HIDDEN, {0: make_label(SECRET_LABEL)})
    list_id = opened.add_list(title="Both")
    opened.add_list_item(list_id, "demo", 0, note="seen by all")
    opened.add_list_item(list_id, HIDDEN, 0, note=SECRET_LABEL)
    opened.set_visibility(HIDDEN, "private")
    opened.set_visibility("unindexed", "unlisted")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def secrets(filled: Store) -> dict[Role, str]:
    return {role: filled.accounts.create_token(role, role) for role in ROLES}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With runs of the public, the private and the unlisted SAE."""
    for slug in ("demo", HIDDEN, "unindexed"):
        with training(tmp_path, slug):
            pass
    return tmp_path


@pytest.fixture
def app(filled: Store, home: Path) -> FastAPI:
    return create_app(Settings(home=home, host="0.0.0.0"), store=filled, prober=FakeProber())


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Somebody without a token."""
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as opened:
        yield opened


@pytest.fixture
def as_role(client: TestClient, secrets: dict[Role, str]) -> Client:
    """A client that sends the token of a role."""

    def make(role: Role) -> TestClient:
        headers = {"authorization": f"Bearer {secrets[role]}"}
        return TestClient(client.app, raise_server_exceptions=False, follow_redirects=False, headers=headers)

    return make
