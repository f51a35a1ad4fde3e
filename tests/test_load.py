"""Under many readers at once every request is answered, or refused with 503: nothing else goes wrong."""

from pathlib import Path

import pytest

from benchmarks import load, store


@pytest.mark.slow
def test_no_error_but_503_under_clients_that_mix_pages_and_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CONTEXTS", 200)
    monkeypatch.setenv("SAESCOPE_PROBE_QUEUE", "4")
    monkeypatch.setattr(load, "PAUSE_S", 0.1)
    found = load.measured(tmp_path, n_clients=20, seconds=6, n_features=60)
    assert set(found["statuses"]) <= {"pages 200", "probes 200", "probes 503"}, found
    assert found["statuses"]["pages 200"] > 20 and found["statuses"]["probes 200"] > 5
    assert "20 clients for 6 s" in load.card(found)
