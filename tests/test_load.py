"""`benchmarks/load.py` for a short time: every request is answered, or a probe refused with 503; memory stays, and
streams do not hold up pages.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import load, store

SECONDS, STREAMS = 10, 100  # and 5 seconds beside the streams; 30 minutes and 1,000 by hand


@pytest.mark.slow
def test_people_read_probe_and_write_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CONTEXTS", 200)
    monkeypatch.setattr(load, "THOUGHT", 0.5)
    monkeypatch.setattr(load, "PROBES", 0.3)
    monkeypatch.setenv("SAESCOPE_PROBE_QUEUE", "3")
    with ThreadPoolExecutor(1) as pool:  # the browser tests leave a loop in this thread that runs
        asked = pool.submit(load.measured, None, seconds=SECONDS, clients=30, streams=STREAMS, n_features=300)
        found = asked.result()
    assert found["alone"]["errors"] == found["beside_streams"]["errors"] == 0, load.card(found)
    assert found["alone"]["requests"] > 50 and found["streams"] == STREAMS
    assert {"pages 200", "probes 200", "writes 200"} <= set(found["alone"]["statuses"]), load.card(found)
    for name in load.GAUGES:  # most of a short time is warming up: answers that are kept fill 32 MB
        assert found["memory"][name]["warm_mb"] > 10 and found["memory"][name]["growth"] < 0.75, load.card(found)
    assert f"beside {STREAMS} streams" in load.card(found) and "memory of the worker" in load.card(found)


def test_what_counts_as_an_error() -> None:
    assert [status for status in ("pages 200", "pages 503", "probes 503", "probes 500", "writes 503", "pages ReadError")
            if not load._is_well(status)] == ["pages 503", "probes 500", "writes 503", "pages ReadError"]  # fmt: skip
    assert load._grown([100e6, *[200e6] * 8, *[210e6] * 3])["growth"] == pytest.approx(0.05)
