"""OpenAI's statistics of features on the page of an imported SAE, before there is an index."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file

from app.declared import declared_statistics
from app.main import create_app
from app.settings import Settings
from sae_core.records import SAEInfo
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_sae, make_vocabulary

N = 64
DENSITY = np.linspace(0, 0.2, N, dtype=np.float32)[::-1].copy()


@pytest.fixture
def sae(tmp_path: Path) -> SAEInfo:
    given = {
        "latents_activation_frequency": DENSITY,
        "latents_mean_square": np.arange(N, dtype=np.float32),
        "stats_last_nonzero": np.arange(N, dtype=np.int64) * 100,
    }
    save_file(given, tmp_path / "extras.safetensors")
    return make_sae("theirs", d_sae=N, weights_path=str(tmp_path), config={"format": "openai", "dtype": "float32"})


@pytest.fixture
def client(sae: SAEInfo, tmp_path: Path) -> Iterator[TestClient]:
    store = Store.open(f"sqlite:///{tmp_path}/declared.db")
    store.add_sae(sae, make_vocabulary())
    with TestClient(create_app(Settings(home=tmp_path), store=store, prober=FakeProber())) as client:
        yield client
    store.close()


def test_they_are_shown_as_the_files_have_them(client: TestClient, sae: SAEInfo) -> None:
    found = declared_statistics(sae)
    assert found is not None
    assert (found.n_features, found.n_never, found.longest_silence) == (N, 1, 6300)
    assert found.l0 == pytest.approx(DENSITY.sum()) and found.median_density == pytest.approx(np.median(DENSITY))
    assert [(f.feature_index, f.mean_square) for f in found.densest] == [(i, float(i)) for i in range(8)]
    assert found.densest[0].density == pytest.approx(0.2)

    page = client.get("/saes/theirs").text

    assert "What its files say of its features" in page and "1 never fired" in page and "6,300 batches" in page
    assert '<th scope="row">#0</th><td>20' in page and "mean square of the activation" in page


@pytest.mark.parametrize("what", ["never measured", "another width", "not whole", "another format"])
def test_what_says_nothing_is_left_out(what: str, sae: SAEInfo, client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "extras.safetensors"
    if what == "never measured":
        save_file({"latents_activation_frequency": np.ones(N, dtype=np.float32)}, path)
    elif what == "another width":
        save_file({"latents_activation_frequency": DENSITY[:9].copy()}, path)
    elif what == "not whole":
        path.write_bytes(path.read_bytes()[:50])
    else:
        sae = replace(sae, config={**sae.config, "format": "saelens"})

    assert declared_statistics(sae) is None
    if what != "another format":
        assert "What its files say" not in client.get("/saes/theirs").text
