"""`benchmarks/probe.py` on little: it measures what its card says."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import probe
from sae_core.loading import load_model


@pytest.mark.slow
def test_every_figure_of_the_card_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "D_SAE", 256)
    monkeypatch.setattr(probe, "CLIENTS", 3)
    monkeypatch.setattr(probe, "PAUSE_S", 0.01)
    monkeypatch.setattr(probe, "TYPED_TOKENS", 24)
    sae = probe.made_sae(tmp_path / "sae", load_model("demo"))
    found = probe.measured(sae, repeats=2) | asyncio.run(probe.crowd(sae, seconds=0.2))
    assert all(value > 0 for value in found.values())
    assert found["fresh_ratio"] == pytest.approx(found["fresh_ms"] / found["bare_ms"])
    text = probe.card({"demo": found})
    assert "model demo" in text and "3 clients, typing" in text and max(map(len, text.splitlines())) <= 80


def test_the_texts_have_the_tokens_that_the_card_names(tmp_path: Path) -> None:
    import random

    from sae_core.probe import Prober

    prober = Prober(probe.made_sae(tmp_path / "sae", load_model("demo")))
    text = probe.text_of(prober, random.Random(0), 64)
    assert abs(sum(not token.is_special for token in prober.probe(text).tokens) - 64) <= 1
