"""SAEs on the hub: which files are fetched, and every way in which that fails; the hub itself is not asked."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_core.errors import ConfigError, WeightsError
from sae_core.formats.hub import Address, fetched, hub_address

SCOPE = [f"layer_{n}/width_16k/average_l0_{l0}/params.npz" for n in (3, 12) for l0 in (41, 82)]
LENS = ["README.md", "blocks.1/cfg.json", "blocks.1/sae_weights.safetensors", "blocks.1/sparsity.safetensors"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("owner/repo", Address("owner/repo", "", None)),
        ("owner/repo/layer_3/width_16k", Address("owner/repo", "layer_3/width_16k", None)),
        ("owner/repo/layers.3.mlp/@v1.0", Address("owner/repo", "layers.3.mlp", "v1.0")),
        ("./owner/repo", None),
        ("/owner/repo", None),
        ("~/owner/repo", None),
        ("weights.pt", None),
        ("owner/re po", None),
    ],
)
def test_an_address_is_what_is_no_path(text: str, address: Address | None) -> None:
    assert hub_address(text) == address


def test_a_folder_that_is_here_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert hub_address("owner/repo") is None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], list[tuple[str, str]]]:
    """Puts a repository with these files on a hub of ours; gives the list of what is fetched from it."""

    def put(names: list[str]) -> list[tuple[str, str]]:
        asked: list[tuple[str, str]] = []
        info = SimpleNamespace(sha="1f2e", siblings=[SimpleNamespace(rfilename=name) for name in names])

        def download(repo: str, name: str, *, revision: str) -> str:
            asked.append((name, revision))
            return str(tmp_path / repo / name)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo, **options: info)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return asked

    return put


def test_only_the_sae_and_its_settings_are_fetched_of_one_revision(hub: Any, tmp_path: Path) -> None:
    asked = hub(LENS)

    path = fetched(Address("owner/repo", "", None))

    assert path == tmp_path / "owner" / "repo" / "blocks.1" / "sae_weights.safetensors"
    assert asked == [("blocks.1/sae_weights.safetensors", "1f2e"), ("blocks.1/cfg.json", "1f2e")]


@pytest.mark.parametrize("inner", ["layer_12/width_16k/average_l0_82", "layer_12/width_16k/average_l0_82/params.npz"])
def test_a_folder_or_file_of_many_is_fetched(inner: str, hub: Any) -> None:
    asked = hub(SCOPE)

    fetched(Address("owner/repo", inner, None))

    assert [name for name, _ in asked] == ["layer_12/width_16k/average_l0_82/params.npz"]


def test_settings_above_checkpoints_are_fetched_too(hub: Any) -> None:
    asked = hub(["L1/hyperparams.json", "L1/checkpoints/final.safetensors"])

    fetched(Address("owner/repo", "L1", None))

    assert [name for name, _ in asked] == ["L1/checkpoints/final.safetensors", "L1/hyperparams.json"]


@pytest.mark.parametrize(
    ("inner", "error", "said"),
    [
        ("", ConfigError, r"owner/repo holds 4 SAEs; name one of them, as owner/repo/FOLDER: layer_12/"),
        ("layer_3", ConfigError, "holds 2 SAEs"),
        ("layer_7", WeightsError, "no SAE weights in owner/repo/layer_7"),
        ("layer_1", WeightsError, "no SAE weights in owner/repo/layer_1"),
    ],
)
def test_of_many_one_must_be_named(inner: str, error: type[Exception], said: str, hub: Any) -> None:
    asked = hub(SCOPE)

    with pytest.raises(error, match=said):
        fetched(Address("owner/repo", inner, None))
    assert not asked


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/api"))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (GatedRepoError("gated", response=answer(403)), "accept its licence"),
        (RepositoryNotFoundError("none", response=answer(404)), "no path here, and not on the hub"),
        (RevisionNotFoundError("none", response=answer(404)), "no revision v1"),
        (EntryNotFoundError("none"), "gone from the hub"),
        (HfHubHTTPError("busy", response=answer(503)), "answered 503"),
        (ConnectionError("no route to host\nat all"), r"cannot be reached \(no route to host\)"),
        (TimeoutError(), r"cannot be reached \(TimeoutError\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_says_becomes_one_sentence(
    raised: Exception, said: str, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise raised

    hub(LENS)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    with pytest.raises(WeightsError, match=said) as caught:
        fetched(Address("owner/repo", "", "v1"))
    assert "\n" not in str(caught.value)

    hub(LENS)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)  # a download that breaks off
    with pytest.raises(WeightsError, match=said):
        fetched(Address("owner/repo", "", "v1"))
