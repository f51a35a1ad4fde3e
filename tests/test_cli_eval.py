"""`saescope eval` as a user meets it: a card, one JSON object, a sentence and an exit code for each error, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import cli
from app.glossary import TERMS
from sae_core.progress import StopRequest
from sae_core.store import Store
from tests.tiny import TEXTS, save_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the SAE "mine" in its database: only for tests that read."""
    from sae_core.loading import load_model
    from sae_core.tokens import vocabulary
    from tests.planted import random_sae, save_sae

    folder = tmp_path_factory.mktemp("home")
    model = load_model(str(save_tiny_model(folder / "model")))
    sae = random_sae(model.info.d_model, 64, 4, seed=1)
    info = save_sae(sae, folder / "runs" / "mine", model, layer=1, hook="resid_post", context_size=32)
    store = Store.open(f"sqlite:///{folder}/saescope.db")
    store.add_sae(info, vocabulary(model.tokenizer))
    store.close()
    return folder


@pytest.fixture(autouse=True)
def own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_HOME", str(home))
    monkeypatch.delenv("SAESCOPE_DATABASE_URL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def eval_arguments(corpus: Path, *more: str) -> list[str]:
    return ["eval", "mine", "--corpus", str(corpus), "--text-field", "body", *more]


def test_the_card_has_every_metric_with_its_name(corpus: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert cli.main(eval_arguments(corpus, "--name", "tiny texts")) == 0
    shown = capsys.readouterr()
    for key in (
        "fvu", "explained_variance", "cosine", "reconstruction_bias", "ce_recovered", "ce_loss", "ce_loss_with_sae",
        "ce_loss_with_zeros", "kl", "l0", "dead", "dense", "encoder_decoder", "density",
    ):  # fmt: skip
        assert re.search(rf"^  {re.escape(TERMS[key].name)} ", shown.out, flags=re.MULTILINE), key
    assert "mine" in shown.out and "blocks.1.hook_resid_post" in shown.out and "on tiny texts:" in shown.out
    assert max(map(len, shown.out.splitlines())) < 200
    assert "evaluating" in shown.err and "100%" in shown.err


def test_json_is_one_object_with_the_same_numbers_as_the_index(
    corpus: Path, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    assert cli.main(eval_arguments(corpus, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    url = f"sqlite:///{tmp_path}/other.db"
    store, own = Store.open(url), Store.open(f"sqlite:///{home}/saescope.db")
    store.add_sae(own.sae("mine").sae, own.vocabulary("mine"))
    assert own.sae("mine").indexes == ()  # an evaluation stores nothing
    own.close()
    index = ["index", *eval_arguments(corpus)[1:], "--database", url]
    assert cli.main(index) == 0
    metrics = store.index("mine").metrics
    store.close()

    assert found["slug"] == "mine" and found["hook_name"] == "blocks.1.hook_resid_post"
    assert found["corpus"]["name"] == "texts.jsonl"
    for name in ("fvu", "explained_variance", "cosine", "l0", "kl", "ce_loss", "ce_tokens", "dead_share"):
        assert found["metrics"][name] == getattr(metrics, name), name
    assert len(found["density_histogram"]["edges"]) == len(found["density_histogram"]["counts"]) + 1


def test_options_say_how_the_text_is_read(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tokens", "300", "--context-size", "16", "--no-bos", "--batch-contexts", "3", "--device", "cpu"]
    assert cli.main(eval_arguments(corpus, "--json", *options)) == 0
    found = json.loads(capsys.readouterr().out)
    assert 300 <= found["corpus"]["n_tokens"] < 316
    assert (found["corpus"]["context_size"], found["corpus"]["prepend_bos"]) == (16, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "nobody", "--corpus", "python-docs"], 'no SAE "nobody"'),
        (["eval", "mine", "--corpus", "/no/such/file.txt"], "no file or folder"),
        (["eval", "mine", "--corpus", "python-docs", "--device", "cuda:99"], "--device cpu"),
        (["eval", "mine", "--corpus", "python-docs", "--tokens", "0"], "tokens is 0"),
        (["eval", "mine", "--corpus", "python-docs", "--batch-contexts", "0"], "batch_contexts is 0"),
    ],
    ids=["sae", "corpus", "device", "tokens", "batch"],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    error = shown.err.strip().splitlines()[-1]
    assert shown.out == ""
    assert error.startswith("saescope: ") and error.endswith(".") and said in error
    assert "Traceback" not in shown.err


def test_a_stop_between_batches_is_exit_code_130(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_core import evaluate

    @contextmanager
    def asked() -> Iterator[StopRequest]:
        request = StopRequest()
        request.was_made = True
        yield request

    monkeypatch.setattr(evaluate, "stop_request", asked)
    assert cli.main(eval_arguments(corpus, "--json")) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("saescope: stopped; there is nothing to show.\n")


@pytest.mark.slow
def test_ctrl_c_stops_a_real_process(corpus: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    large.write_text(corpus.read_text(encoding="utf-8") * 300, encoding="utf-8")
    command = [sys.executable, "-m", "app.cli", *eval_arguments(large, "--json", "--batch-contexts", "1")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    said = ""
    deadline = time.monotonic() + 120
    while "evaluating" not in said and time.monotonic() < deadline:
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, said + errors
    assert out == ""
    assert "Traceback" not in errors
    assert "stopped" in errors


def test_help_reads_on_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in (
        "--corpus",
        "--name",
        "--tokens",
        "--context-size",
        "--bos",
        "--device",
        "--batch-contexts",
        "--json",
    ):
        assert option in shown
    assert "docs/metrics.md" in shown
