"""Real files of the real libraries: what they compute is what saescope computes, both ways, to 1e-5 in float32.

That is the largest difference of any two numbers, beside the largest number where that is above 1: float32 has seven
digits, and sums of hundreds of terms, made in another order, differ in the last one or two.

For each library a process in an environment of its own (`make test-peers` installs them, minutes, once) makes an SAE of
every class it saves and says what it computes on random vectors and on the demo model's. Here each is imported and
compared; then each is exported again, beside SAEs of every architecture of ours, and the library computes with those.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.environments import python_of
from benchmarks.train import PEERS
from sae_core.corpus import iter_documents
from sae_core.errors import ConfigError
from sae_core.formats.exporting import export_sae
from sae_core.formats.importing import ImportConfig, import_sae
from sae_core.loading import load_model, load_outline
from sae_core.records import SAEInfo
from sae_core.sae import ARCHITECTURES, SAE, load_sae
from sae_core.tokens import framing, iter_contexts, padded
from tests import planted

pytestmark = pytest.mark.peers

MOST = 1e-5
N_ROWS, D_SAE, K = 128, 1024, 16
ENVIRONMENTS = os.environ.get("SAESCOPE_PEERS")  # a folder of environments that are there already
Differences = dict[str, tuple[float, float]]


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    """model_acts: random ones, and the demo model's, at the hook of its demo SAE."""
    model = load_model("demo")
    frame = framing(model.tokenizer, prepend_bos=None)
    contexts = iter_contexts(iter_documents(("python-docs",)), model.tokenizer, context_size=N_ROWS + 1, frame=frame)
    ids, mask, counted = (torch.from_numpy(a) for a in padded([next(iter(contexts))], pad_id=model.pad_id, frame=frame))
    acts = model.activations(ids, mask, "blocks.3.hook_resid_post")[counted]
    generator = torch.Generator().manual_seed(11)
    return {"random": torch.randn(N_ROWS, acts.shape[1], generator=generator), "real": acts.contiguous()}


@pytest.fixture(scope="module", params=["saelens", "sparsify", "dictionary_learning"])
def peer(request: pytest.FixtureRequest, inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> "Peer":
    peer = Peer(request.param, tmp_path_factory.mktemp(request.param), inputs)
    peer.run("build")
    return peer


class Peer:
    """A library in its environment, and a folder for what goes to and fro."""

    def __init__(self, name: str, folder: Path, inputs: dict[str, Tensor]) -> None:
        self.name, self.folder, self.inputs = name, folder, inputs
        self._python = Path(ENVIRONMENTS) / name / "bin/python" if ENVIRONMENTS else python_of(PEERS[name])
        save_file(inputs, folder / "inputs.safetensors")
        (folder / "load").mkdir()
        (folder / "build").mkdir()

    def run(self, what: str) -> None:
        child = Path(__file__).with_name(f"{self.name}_child.py")
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        environment |= {"SPARSIFY_DISABLE_TRITON": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        command = [str(self._python), str(child), what, str(self.folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    def built(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "build").glob("*.safetensors"))

    def imported(self, case: str) -> SAEInfo:
        path = self.folder / "build" / case
        config = ImportConfig(path=path, origin=str(path), model="demo", slug=case.lower())
        return import_sae(config, home=self.folder / "home").info

    def differences(self, sae: SAE, computed: Path) -> Differences:
        """The largest difference of feature_acts and sae_out on each batch, and the largest number."""
        theirs = load_file(computed)
        found = {}
        for batch, x in self.inputs.items():
            code = sae.requires_grad_(False).encode(x)
            for what, ours in (("feature_acts", code.dense()), ("sae_out", sae.decode(code))):
                expected = theirs[f"{batch}.{what}"]
                assert expected.shape == ours.shape and bool((expected != 0).any())
                found[f"{batch}.{what}"] = (largest(ours - expected), largest(expected))
        return found


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def test_what_the_library_saved_computes_the_same_here(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for case in peer.built():
        info = peer.imported(case)
        found[case] = peer.differences(load_sae(Path(info.weights_path)), peer.folder / "build" / f"{case}.safetensors")
    with capsys.disabled():
        show(f"{peer.name} to saescope", found)
    assert len(found) >= 7
    check(found)


def test_what_saescope_exports_computes_the_same_there(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    ours: dict[str, SAE] = {}
    model = load_outline("demo").info
    for case in peer.built():  # there and back
        info = peer.imported(case)
        ours[f"back-{case}"] = load_sae(Path(info.weights_path))
        export_sae(info, peer.name, peer.folder / "load" / f"back-{case}")
    for architecture in ARCHITECTURES:
        for d_out in (None, model.d_model):
            name = f"{architecture}{'-transcoder' if d_out else ''}"
            run = peer.folder / "runs" / name
            sae = planted.random_sae(model.d_model, D_SAE, K, seed=1, architecture=architecture, d_out=d_out)
            sae.save(run)
            info = SAEInfo(
                slug=name, model=model, hook_name="blocks.3.hook_mlp_in" if d_out else "blocks.3.hook_resid_post",
                layer=3, architecture=architecture, d_in=model.d_model, d_sae=D_SAE, k=K, n_training_tokens=1,
                weights_path=str(run), created_at=datetime.now(UTC),
                config={"model": "demo", **({"target_hook": "mlp_out"} if d_out else {})},
            )  # fmt: skip
            try:
                export_sae(info, peer.name, peer.folder / "load" / name)
            except ConfigError as error:
                print(f"{name}: {error}", file=sys.stderr)
            else:
                ours[name] = sae
    peer.run("load")
    found = {case: peer.differences(sae, peer.folder / "load" / f"{case}.safetensors") for case, sae in ours.items()}
    with capsys.disabled():
        show(f"saescope to {peer.name}", found)
    assert len(found) > len(peer.built())
    check(found)


def show(title: str, found: dict[str, Differences]) -> None:
    print(f"\n{title}: largest difference (feature_acts, sae_out) on random and on real activations")
    for case, differences in found.items():
        print(f"  {case:40s}" + "".join(f"{d:9.1e} of {size:<6.4g}" for d, size in differences.values()))


def check(found: dict[str, Differences]) -> None:
    too_far = {
        (case, what): difference
        for case, differences in found.items()
        for what, (difference, size) in differences.items()
        if difference > MOST * max(1.0, size)
    }
    assert not too_far
