"""The parts of `benchmarks/index.py` and `benchmarks/store.py` that compute, on little."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import index, store
from sae_core.loading import load_model
from sae_core.sae import load_sae


def test_planted_features_are_stored_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CONTEXTS", 200)
    monkeypatch.setattr(store, "PAGES", 20)
    found = store._one(f"sqlite:///{tmp_path}/planted.db", 60)
    assert (found["features"], found["examples"]) == (60, 60 * 45)
    assert 0 < found["page_p50_ms"] <= found["page_p95_ms"]
    assert found["bytes_an_example"] > 20
    text = store.card({"sqlite": {"small": found}})
    assert "60 features: 2,700 examples" in text and "bytes an example" in text


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_the_contestants_sae_has_the_l0_that_is_said(architecture: str, tmp_path: Path) -> None:
    tokens = index.write_model_and_tokens(tmp_path, 16_384)
    case = index.Case(architecture=architecture, d_sae=512, tokens=16_384)
    job = index.write_job(tmp_path / "job", case, tmp_path, tokens, n_features=7)
    ids = torch.from_numpy(np.load(job.tokens).astype(np.int64))
    assert ids.shape == (128, 128) and (ids[:, 0] == 0).all()
    model = load_model(job.folder)
    with torch.inference_mode(), model.reading(("blocks.1.hook_resid_post",)) as read:
        (acts,) = read(ids, torch.ones_like(ids, dtype=torch.bool))
        code = load_sae(Path(job.sae)).encode(acts[:, 1:].reshape(-1, index.D_MODEL))
    assert float((code.values > 0).sum()) / code.n_rows == pytest.approx(32, rel=0.1)


def test_the_card_and_the_json_say_what_was_measured() -> None:
    ours = {
        "cpu_s": 12.0, "store_s": 1.0, "peak_gib": 1.0, "database_bytes": 1000, "n_examples": 10,
        "features_checked": 64, "features_wrong": 0,
    }  # fmt: skip
    result = {
        "case": "relu",
        "floor": {"cpu_s": 10.0, "forward_s": 6.0, "encode_s": 4.0},
        "ours": ours,
        "peers": {
            name: {"cpu_s": s / 16, "whole_cpu_s": s, "n_features": 256, "peak_gib": 2, "maxima_agree": 0.9}
            for name, s in (("saedashboard", 480.0), ("sae_vis", 2400.0))
        },
    }
    page = {
        "features": 5,
        "examples": 9,
        "seconds": 1.0,
        "bytes_an_example": 50.0,
        "page_p50_ms": 1.0,
        "page_p95_ms": 2,
        "list_p50_ms": 3.0,
        "searches_p50_ms": {"a word": 4.0},
    }
    planted = {"sqlite": {"small": page}}
    wide = {"d_sae": 9, "entries": 8, "collected_s": 7.0, "examples": 6, "examples_s": 5.0, "peak_gib": 4.0}
    text = index.card([result], wide, planted)
    assert "SAEDashboard        480 s  saescope is 40 x as fast" in text
    assert "sae_vis            2400 s  saescope is 200 x as fast" in text
    assert "1.20 x the floor" in text and "100 bytes an example" in text
    assert "a list 3.0 ms" in text and "searches, ms: a word 4.0" in text
    found = json.loads(json.dumps(index.as_json([result], wide, planted)))
    assert (found["bench"], found["ours"], found["floor"]) == ("index", 12, 10)
    assert found["peers"] == {"saedashboard": 480, "sae_vis": 2400}
    assert found["quality"] == {"features_wrong": [0]}
