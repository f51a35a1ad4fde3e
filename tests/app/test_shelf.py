"""What the model worker holds: within its budget, the least recently used going first, models shared by their SAEs."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.inference import LoadedProber
from app.inference.shelf import ProberLoader, Shelf, Sizes
from sae_core.errors import OutOfMemoryError
from sae_core.records import SAEInfo
from tests.app.fake_loaders import FakeLoader, Loaded
from tests.factories import make_sae


class Recorder(FakeLoader):
    def __init__(self) -> None:
        self.loaded: list[tuple[str, bool]] = []  # slug, and whether its model was there already

    def load(self, sae: SAEInfo, device: str | None, like: LoadedProber | None) -> Loaded:
        self.loaded.append((sae.slug, like is not None))
        return super().load(sae, device, like)


def sized(slug: str, n_bytes: int = 10, model_name: str = "one") -> SAEInfo:
    sae = make_sae(slug)
    return replace(sae, model=replace(sae.model, model_name=model_name), config={**sae.config, "bytes": n_bytes})


def make_shelf(loader: FakeLoader, budget: int) -> Shelf:
    return Shelf(loader, device=None, max_tokens=9, budget=budget)


def test_saes_of_one_model_share_it_and_its_memory() -> None:
    loader = Recorder()
    shelf = make_shelf(loader, 130)
    for slug in ("a", "b", "c", "a", "b", "c"):
        shelf.prober(sized(slug))
    assert loader.loaded == [("a", False), ("b", True), ("c", True)]


def test_the_least_recently_used_goes_first() -> None:
    loader = Recorder()
    shelf = make_shelf(loader, 130)
    for slug in ("a", "b", "c", "a", "d"):  # b was used longest ago
        shelf.prober(sized(slug))
    loader.loaded.clear()
    for slug in ("a", "c", "d"):
        shelf.prober(sized(slug))
    assert loader.loaded == []
    shelf.prober(sized("other", model_name="two"))  # 110 bytes: room only when all else is gone
    for slug in ("other", "a"):
        shelf.prober(sized(slug, model_name="two" if slug == "other" else "one"))
    assert loader.loaded == [("other", False), ("a", False)]


def test_what_cannot_fit_is_refused_with_the_numbers_and_the_rest_stays() -> None:
    loader = Recorder()
    shelf = make_shelf(loader, 3 * 10**9)
    shelf.prober(sized("a"))
    with pytest.raises(OutOfMemoryError, match=r"SAE large needs 4\.0 GB of memory, and 3\.0 GB may be used"):
        shelf.prober(sized("large", 4 * 10**9))
    shelf.prober(sized("a"))
    assert loader.loaded == [("a", False)]


def test_what_is_loading_is_told() -> None:
    told: list[str | None] = []
    shelf = Shelf(FakeLoader(), device=None, max_tokens=9, tell=told.append)
    shelf.prober(sized("a", 2 * 10**5))
    assert told[-1] is None and "SAE a, 0 MB" in str(told[-2])
    n = len(told)
    shelf.prober(sized("a", 2 * 10**5))
    assert len(told) == n


def test_the_real_loader_knows_sizes_before_loading(tmp_path: Path) -> None:
    (tmp_path / "sae.safetensors").write_bytes(b"x" * 1234)
    sae = make_sae(weights_path=str(tmp_path))
    sae = replace(sae, model=replace(sae.model, model_name="demo"), config={**sae.config, "dtype": "float32"})
    sizes = ProberLoader().sizes(sae)
    from sae_core.loading import load_model

    expected = sum(p.numel() * 4 for p in load_model("demo").module.parameters())
    assert (sizes.model_bytes, sizes.sae_bytes) == (expected, 1234)
    half = ProberLoader().sizes(replace(sae, config={**sae.config, "dtype": "bfloat16"}))
    assert half.model_bytes == expected // 2 and half.model_key != sizes.model_key
    assert isinstance(sizes, Sizes) and (ProberLoader().budget("cpu") or 1) > 0
