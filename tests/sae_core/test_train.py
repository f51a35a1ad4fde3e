"""Training: it learns, resumes exactly where it was, and says what is wrong with its input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sae_core import train as training
from sae_core.config import TrainConfig
from sae_core.errors import ConfigError, CorpusError, DiskFullError, WeightsError
from sae_core.sae import TopKSAE, load_sae
from sae_core.train import train
from tests.tiny import TEXTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def config(tiny_llama: Path, corpus: Path) -> TrainConfig:
    return TrainConfig(
        model=str(tiny_llama),
        layer=1,
        corpus=(str(corpus),),
        d_sae=64,
        k=4,
        tokens=4096,
        context_size=32,
        batch_tokens=128,
        buffer_tokens=1024,
    )


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_leaves_weights_config_and_metrics(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, tokens=16_384)
    info = train(config, runs=tmp_path, slug="one")
    assert info is not None
    folder = tmp_path / "one"
    sae = load_sae(folder)
    assert (sae.d_in, sae.d_sae, sae.k) == (info.d_in, 64, 4)
    assert TrainConfig.load(folder / "config.json") == config
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    last = metrics_of(folder)[-1]
    assert last["tokens"] == 16_384
    assert last["fvu"] < 0.7
    assert last["l0"] <= 4
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.slow
def test_the_saved_sae_reads_the_models_own_activations(config: TrainConfig, tmp_path: Path) -> None:
    from sae_core.activations import counted_activations
    from sae_core.corpus import iter_documents
    from sae_core.model import load_model
    from sae_core.tokens import framing, iter_contexts

    info = train(dataclasses.replace(config, tokens=16_384), runs=tmp_path, slug="one")
    assert info is not None
    model = load_model(config.model)
    frame = framing(model.tokenizer)
    contexts = list(iter_contexts(iter_documents(config.corpus), model.tokenizer, context_size=32, frame=frame))
    acts = counted_activations(model, contexts, hook_name=info.hook_name, frame=frame)
    error = (acts - load_sae(tmp_path / "one")(acts)).square().sum()
    assert error / (acts - acts.mean(dim=0)).square().sum() < 0.7


def test_the_same_configuration_again_trains_nothing_anew(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config, runs=tmp_path, slug="one")
    written = (tmp_path / "one" / "sae.safetensors").stat().st_mtime_ns
    assert train(config, runs=tmp_path, slug="one") == first
    assert (tmp_path / "one" / "sae.safetensors").stat().st_mtime_ns == written


def test_a_stopped_run_goes_on_from_its_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step, seen = training.step, []

    def step_then_interrupt(*args: object, **kwargs: object) -> None:
        real_step(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(1)
        if len(seen) == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training, "step", step_then_interrupt)
    assert train(config, runs=tmp_path, slug="one") is None
    assert (tmp_path / "one" / "checkpoint.pt").exists()
    assert not (tmp_path / "one" / "sae.safetensors").exists()
    assert train(config, runs=tmp_path, slug="one") is not None
    assert len(seen) == 4096 // 128  # no step was done twice, none was left out
    assert [line["tokens"] for line in metrics_of(tmp_path / "one")] == [1280, 4096]


@pytest.mark.slow
def test_kill_minus_nine_loses_no_more_than_the_time_since_the_last_checkpoint(
    config: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, tokens=2_000_000, checkpoint_seconds=0.2)
    config.save(tmp_path / "job.json")
    code = (
        "import sys; from pathlib import Path\n"
        "from sae_core.config import TrainConfig; from sae_core.train import train\n"
        "train(TrainConfig.load(Path(sys.argv[1])), runs=Path(sys.argv[2]), slug='one')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "job.json"), str(tmp_path / "runs")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "runs" / "one" / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    process.wait()
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["n_tokens"] >= 128
    sae = TopKSAE(32, 64, 4)
    optimizer = torch.optim.Adam(sae.parameters())
    progress = training._load_checkpoint(checkpoint.parent, sae, optimizer)
    assert progress is not None
    assert progress.n_tokens == saved["n_tokens"]


def test_a_half_written_checkpoint_is_said_plainly(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    config.save(folder / "config.json")
    (folder / "checkpoint.pt").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(WeightsError, match="damaged"):
        train(config, runs=tmp_path, slug="one")


def test_another_configuration_under_the_same_name_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    train(config, runs=tmp_path, slug="one")
    with pytest.raises(ConfigError, match=r"another k, seed; give this one another --slug"):
        train(dataclasses.replace(config, k=2, seed=1), runs=tmp_path, slug="one")


def test_a_layer_that_does_not_exist_is_said_before_training(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no layer 9"):
        train(dataclasses.replace(config, layer=9), runs=tmp_path, slug="one")


@pytest.mark.parametrize(
    ("text", "said"), [("", "no text"), ("Too short.", "fewer than one context")], ids=["empty", "short"]
)
def test_too_little_text_is_said(config: TrainConfig, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(CorpusError, match=said):
        train(dataclasses.replace(config, corpus=(str(tmp_path / "a.txt"),)), runs=tmp_path, slug="one")


def test_a_full_disk_leaves_the_older_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, checkpoint_seconds=0.0)
    real_save, saves = torch.save, []

    def save_until_full(state: object, file: object) -> None:
        saves.append(1)
        if len(saves) == 4:
            raise OSError(28, "No space left on device")
        real_save(state, file)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", save_until_full)
    with pytest.raises(DiskFullError, match="make room and run the same command again"):
        train(config, runs=tmp_path, slug="one")
    monkeypatch.undo()
    assert torch.load(tmp_path / "one" / "checkpoint.pt", weights_only=True)["n_tokens"] == 3 * 128
    assert train(config, runs=tmp_path, slug="one") is not None


def test_dead_features_are_revived_by_the_auxiliary_loss(config: TrainConfig) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(config, dead_after_tokens=512, tokens=1 << 20)
    x = torch.randn(256, 32)
    shares = {}
    for coefficient in (0.0, 1 / 32):
        torch.manual_seed(1)
        sae = TopKSAE(32, 64, 4)
        with torch.no_grad():
            sae.b_enc[:32] = -100  # half the features can never be among the k largest
        optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
        progress = training._start(sae, x)
        with torch.no_grad():
            sae.b_enc[:32] = -3
        used = dataclasses.replace(config, aux_coefficient=coefficient)
        log = training.MetricsLog(Path(os.devnull))
        for _ in range(150):
            training.step(used, sae, optimizer, torch.randn(256, 32), progress, log)
        shares[coefficient] = float((progress.tokens_since_fired >= 512).float().mean())
    assert shares[0.0] > 0.2
    assert shares[1 / 32] < shares[0.0] / 2


def test_the_step_follows_the_plain_dense_gradient(config: TrainConfig) -> None:
    torch.manual_seed(0)
    sae = TopKSAE(16, 32, 4)
    x = torch.randn(64, 16)
    dense = TopKSAE(16, 32, 4)
    dense.load_state_dict(sae.state_dict())
    code = sae.encode(x)
    loss = (x - sae.decode(code)).square().sum() / (x - x.mean(dim=0)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    pre_acts = (x - dense.b_dec) @ dense.W_enc + dense.b_enc
    mask = torch.zeros_like(pre_acts).scatter_(1, pre_acts.topk(4, dim=1).indices, 1.0)
    plain = ((pre_acts.relu() * mask) @ dense.W_dec + dense.b_dec - x).square().sum()
    (plain / (x - x.mean(dim=0)).square().sum()).backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(sae.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    training.normalise_gradient(sae)
    total = sum(float(p.grad.square().sum()) for p in sae.parameters() if p.grad is not None)
    assert total == pytest.approx(1.0, rel=1e-4)


def test_the_learning_rate_rises_holds_and_falls_to_zero(config: TrainConfig) -> None:
    shares = [training.learning_rate_share(config, n) for n in range(0, config.tokens + 1, config.batch_tokens)]
    assert shares[0] < 1
    assert max(shares) == 1
    assert shares[-1] == 0
    assert shares == sorted(shares[: shares.index(1)]) + shares[shares.index(1) :]


@pytest.mark.parametrize(
    ("model", "hook", "slug"),
    [
        ("demo", "resid_post", "demo-l1-64"),
        ("meta-llama/Llama-3.2-1B", "mlp_out", "llama-3.2-1b-l1-mlp_out-64"),
        ("./my model/", "resid_post", "my-model-l1-64"),
    ],
)
def test_slugs_are_made_from_model_layer_and_width(config: TrainConfig, model: str, hook: str, slug: str) -> None:
    assert training.default_slug(dataclasses.replace(config, model=model, hook=hook)) == slug
