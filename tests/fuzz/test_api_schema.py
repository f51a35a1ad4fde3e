"""Every operation of the OpenAPI schema, asked with whatever fits it: never a 5xx but the 503 of a busy model, and an
error that is a sentence. Beside what the schema allows, what it forbids: other types, other bounds, other encodings.
"""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.fake_prober import FakeProber
from tests.factories import make_store

EXAMPLES = 12  # of each operation, in each mode
LONGEST_QUERY = 60_000
ENDLESS = "/events"  # a stream of a run at work ends with the run
bounded = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("fuzz")
    store = make_store(f"sqlite:///{folder}/saescope.db")
    app = create_app(Settings(home=Path(folder)), store=store, prober=FakeProber())
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as opened:
        yield opened
    store.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client, at odd bodies
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_breaks_the_server(client: TestClient, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith(ENDLESS):
            continue

        @bounded
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case) -> None:
            check(client, case)

        try:
            ask()
        except Unsatisfiable:  # where nothing can be given, nothing can be given wrongly
            assert mode is GenerationMode.NEGATIVE, operation.label
        else:
            asked.add(operation.label)
    assert len(asked) > 15


def check(client: TestClient, case: Case) -> None:
    sent = case.as_transport_kwargs(base_url="http://testserver")
    parts = ("method", "url", "headers", "params", "json", "data")
    known = {name: sent[name] for name in parts if sent.get(name) is not None}
    if len(urlencode(known.get("params") or {}, doseq=True)) > LONGEST_QUERY:
        return  # the client itself refuses it
    try:
        response = client.request(**known)
    except (UnicodeEncodeError, ValueError):
        return  # a header or an address that no client can send
    told = (known, response.status_code, response.text[:300])
    assert response.status_code < 500 or response.status_code == 503, told
    if response.status_code >= 400 and case.operation.path.startswith("/api"):
        answer = response.json()
        assert set(answer) == {"error", "status"} and answer["error"].endswith("."), told
