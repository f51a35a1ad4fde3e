"""`benchmarks/soak.py` for a short time: nothing fails, memory stays, and streams do not hold up pages."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import soak, store

SECONDS = 30  # and a tenth beside the streams; 30 minutes by hand


@pytest.mark.slow
def test_people_read_and_write_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CONTEXTS", 200)
    with ThreadPoolExecutor(1) as pool:  # the browser tests leave a loop in this thread that runs
        asked = pool.submit(soak.soaked, None, seconds=SECONDS, clients=50, streams=100, n_features=300)
        found = asked.result()
    assert found["pages"]["errors"] == found["beside_streams"]["errors"] == 0
    assert found["pages"]["requests"] > 100 and found["streams"] == 100
    assert found["memory_growth"] < 0.25  # a short time has more of the warming up in it than a long one
    assert "errors 0" in soak.card(found) and "beside 100 streams" in soak.card(found)
