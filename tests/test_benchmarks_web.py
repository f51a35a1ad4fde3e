"""`benchmarks/web.py` on little: it serves a planted database, asks for every kind of page, and adds up what it saw."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import store, web


@pytest.mark.slow
def test_every_kind_of_page_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CONTEXTS", 200)
    with ThreadPoolExecutor(1) as pool:  # the browser tests leave a loop in this thread that runs
        found = pool.submit(web.measured, f"sqlite:///{tmp_path}/planted.db", "sqlite", 60, 10).result()
    assert list(found["pages"]) == list(web.pages(60))
    for page in found["pages"].values():
        assert 0 < page["p50_ms"] <= page["p95_ms"] <= page["p99_ms"]
        assert page["pages_per_s"] > 0 and page["kilobytes"] > 0.2
    text = web.card([found])
    assert "sqlite, 60 features, 8 clients" in text and "feature, embedded" in text


def test_a_summary_is_of_all_requests() -> None:
    found = web.summary([(0.1 * i, 0.001 * i, 1000 * i) for i in range(1, 100)])
    assert found["pages_per_s"] == pytest.approx(10)
    assert (found["p50_ms"], found["kilobytes"]) == pytest.approx((50, 50))
    assert found["p95_ms"] == pytest.approx(95)
