"""Models from a hub, in a process of its own: the hub's client reads where it is and the token when it is imported."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import COMMIT, TOKEN, FakeHub, fake_hub
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.slow

LOAD = """
import sys
from sae_core.errors import ModelError
from sae_core.loading import load_model
for name in sys.argv[1:]:
    try:
        model = load_model(name)
        print(name, "is", model.info.revision, len(model.tokenizer))
    except ModelError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """One model for everybody, one behind a licence, and one whose gate nobody with this token passes."""
    folder = save_tiny_model(tmp_path_factory.mktemp("llama3"), "llama3")
    with fake_hub({"owner/open": folder}, {"meta/gated": folder}) as hub:
        yield hub


def said(hub: FakeHub, tmp_path: Path, *names: str, **environment: str) -> list[str]:
    """What loading each model prints."""
    for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        environment.setdefault(variable, "")
    settings = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names], env=settings, capture_output=True, text=True, timeout=600, check=True
    )
    return done.stdout.splitlines()


def test_open_gated_and_missing_models_without_a_token(hub: FakeHub, tmp_path: Path) -> None:
    first, gated, missing = said(hub, tmp_path, "owner/open", "meta/gated", "nobody/nothing")

    assert first.startswith(f"owner/open is {COMMIT} ")
    assert gated == (
        "The model meta/gated is gated: accept its licence on its hub page, then run `hf auth login` (or set HF_TOKEN)."
    )
    assert missing == (
        "The model nobody/nothing is not on the hub (or is private): check the name, or run `hf auth login` "
        "(or set HF_TOKEN)."
    )


def test_the_token_opens_the_gate_and_another_does_not(hub: FakeHub, tmp_path: Path) -> None:
    hub.asked.clear()

    assert said(hub, tmp_path / "a", "meta/gated", HF_TOKEN=TOKEN)[0].startswith(f"meta/gated is {COMMIT} ")
    assert {token for path, token in hub.asked if path.startswith("/meta")} == {f"Bearer {TOKEN}"}
    assert "is gated: accept its licence" in said(hub, tmp_path / "b", "meta/gated", HF_TOKEN="hf_wrong")[0]


def test_a_folder_asks_no_hub_and_what_was_fetched_once_is_there_offline(hub: FakeHub, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "folder", "gpt2")
    said(hub, tmp_path, "owner/open")
    hub.asked.clear()

    own, kept, gated = said(hub, tmp_path, str(folder), "owner/open", "meta/gated", HF_HUB_OFFLINE="1")

    assert own.startswith(f"{folder} is ") and kept.startswith(f"owner/open is {COMMIT} ")
    assert "is not on this machine and the hub cannot be reached" in gated
    assert said(hub, tmp_path, str(folder)) == [own]
    assert hub.asked == []
