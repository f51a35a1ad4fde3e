"""The command line as a user meets it: real processes where it matters, a sentence and an exit code for each error."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app import cli
from sae_core.store import Store
from tests.tiny import TEXTS, save_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAESCOPE_DATABASE_URL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def train_arguments(model_folder: Path, corpus_file: Path, **changed: object) -> list[str]:
    options: dict[str, object] = {
        "model": model_folder,
        "layer": 1,
        "corpus": corpus_file,
        "text-field": "body",
        "d-sae": 64,
        "k": 4,
        "tokens": "4k",
        "context-size": 32,
        "batch-tokens": 128,
        "buffer-tokens": 1024,
        "slug": "mine",
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    return ["train", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


@pytest.mark.slow
def test_train_index_and_serve_from_commands_to_a_feature_page(
    model_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(train_arguments(model_folder, corpus)) == 0
    assert "saescope index mine --corpus" in capsys.readouterr().out
    assert cli.main(["index", "mine", "--corpus", str(corpus), "--text-field", "body"]) == 0
    assert "FVU" in capsys.readouterr().out
    with running("serve") as address:
        assert httpx.get(f"{address}/saes/mine/map").status_code == 200  # the index's last step
        saes = httpx.get(f"{address}/api/saes").json()["items"]
        assert [sae["sae"]["slug"] for sae in saes] == ["mine"]
        page = httpx.get(f"{address}/saes/mine/features/random", follow_redirects=True)
        assert page.status_code == 200
        feature_index = int(page.url.path.rsplit("/", 1)[1])
        detail = httpx.get(f"{address}/api/saes/mine/features/{feature_index}").json()
        example = max(detail["examples"], key=lambda e: (e["activation"], -e["rank"]))
        text = "".join(example["tokens"][1:])
        probe = httpx.post(f"{address}/api/saes/mine/probe", json={"text": text, "top_k": 4}, timeout=60)
        assert probe.status_code == 200, probe.text


@pytest.mark.slow
def test_training_again_and_indexing_again_replace_nothing_they_should_not(
    model_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(train_arguments(model_folder, corpus)) == 0
    index = ["index", "mine", "--corpus", str(corpus), "--text-field", "body"]
    assert cli.main(index) == 0
    assert cli.main(train_arguments(model_folder, corpus)) == 0
    assert cli.main([*index, "--name", "other"]) == 0
    assert cli.main(index) == 0
    from sae_core.store import Store

    store = Store.open(f"sqlite:///{os.environ['SAESCOPE_HOME']}/saescope.db")
    assert sorted(i.corpus.name for i in store.sae("mine").indexes) == ["other", "texts.jsonl"]
    made = store.feature_map("mine")
    assert made is not None and len(made.xs) == store.sae("mine").sae.d_sae
    capsys.readouterr()
    assert cli.main(["map", "mine", "--seed", "3"]) == 0
    assert "/saes/mine/map" in capsys.readouterr().out
    new = store.feature_map("mine")
    assert new is not None and new.seed == 3 and new.xs != made.xs
    store.close()


def test_a_map_of_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["map", "nope"]) == 2
    assert 'no SAE "nope"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "/no/such/model"}, "no model folder /no/such/model"),
        ({"model": "nobody/nothing"}, "nobody/nothing"),
        ({"layer": 12}, "no layer 12"),
        ({"layer": -1}, "numbered from 0"),
        ({"hook": "resid_middle"}, "resid_middle"),
        ({"d_sae": 0}, "d_sae is 0"),
        ({"k": 65}, "k (65) is above d_sae (64)"),
        ({"corpus": "/no/such/file.txt"}, "no file or folder"),
        ({"text_field": "nope"}, "--text-field"),
        ({"device": "cuda:99"}, "--device cpu"),
        ({"dtype": "float64"}, "float64"),
        ({"slug": "No Good"}, "slug"),
        ({"context_size": 20_000}, "fewer than one context"),
    ],
    ids=lambda value: "-".join(f"{k}" for k in value) if isinstance(value, dict) else "",
)
def test_bad_training_input_is_one_sentence_and_exit_code_2(
    model_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, object], said: str
) -> None:
    assert cli.main(train_arguments(model_folder, corpus, **changed)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("saescope: ")
    assert said in error
    assert error.endswith(".")
    assert "Traceback" not in error


def test_an_unknown_sae_is_said(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["index", "nobody", "--corpus", str(corpus)]) == 2
    assert "nobody" in capsys.readouterr().err


def test_binary_garbage_as_a_corpus_is_said(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    garbage = tmp_path / "garbage.bin"
    garbage.write_bytes(bytes(range(256)) * 20)
    assert cli.main(train_arguments(model_folder, garbage)) == 2
    assert "not UTF-8 text" in capsys.readouterr().err


def test_a_busy_port_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("serve", "demo"):
            assert cli.main([command, "--port", str(port)]) == 1
            assert f"Port {port} is taken" in capsys.readouterr().err


def test_a_database_that_cannot_be_reached_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql://someone:secret@127.0.0.1:9/nowhere"
    assert cli.main(["serve", "--port", "0", "--database", url]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "secret" not in error


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["index"],
        ["serve"],
        ["basis"],
        ["label"],
        ["export"],
        ["db"],
        ["demo"],
        ["token"],
        ["visibility"],
        ["doctor"],
    ],
    ids=lambda c: "-".join(c) or "all",
)
def test_help_reads_on_its_own(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "saescope" in text
    assert len(text) > 300


@pytest.mark.parametrize(
    ("text", "number"),
    [("10M", 10_000_000), ("500k", 500_000), ("1.5B", 1_500_000_000), ("1_000", 1000), ("1,000,000", 10**6), ("7", 7)],
)
def test_counts_are_read_as_people_write_them(text: str, number: int) -> None:
    assert cli.count(text) == number


def test_a_list_with_commas_is_no_number() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="several are separated by blanks"):
        cli.count("8,16")


def test_a_count_that_is_none_is_refused(model_folder: Path, corpus: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(train_arguments(model_folder, corpus, tokens="many"))
    assert stopped.value.code == 2


@pytest.mark.slow
def test_ctrl_c_stops_training_and_the_same_command_goes_on(model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli", *train_arguments(model_folder, corpus, tokens="20k")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "home" / "runs" / "mine" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, 0)
    assert "Traceback" not in errors
    if process.returncode == 130:
        assert "the same command goes on from here" in errors
        run = tmp_path / "home" / "runs" / "mine"
        assert [*run.glob("checkpoint-*.pt"), *run.glob("*.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["tokens"] for line in metrics.read_text().splitlines()][-1] == 20_096


def test_ctrl_c_between_training_and_the_database_loses_nothing(
    model_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Store, "add_sae", interrupted)
        assert cli.main(train_arguments(model_folder, corpus)) == 130
    assert capsys.readouterr().err.endswith("saescope: stopped; the same command goes on from here.\n")
    assert cli.main(train_arguments(model_folder, corpus)) == 0
    assert "The SAE is ready" in capsys.readouterr().out


def test_shards_of_an_index_are_merged_by_commands(
    model_folder: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(train_arguments(model_folder, corpus)) == 0
    index = ["index", "mine", "--corpus", str(corpus), "--text-field", "body"]
    assert cli.main([*index, "--shard", "1/2"]) == 0
    assert cli.main([*index, "--merge"]) == 2
    assert "--shard 2/2" in capsys.readouterr().err
    # The second without a database, as torchrun would start it.
    home = str(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-m", "sae_core.index", *index[1:], "--home", home],
        cwd=ROOT,
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Shard 2 of 2 is gathered" in done.stdout
    assert cli.main([*index, "--merge"]) == 0
    assert "FVU" in capsys.readouterr().out
    store = Store.open(f"sqlite:///{home}/saescope.db")
    merged = store.feature("mine", 1)
    assert cli.main(index) == 0  # what was merged is all that there is to gather
    again = store.feature("mine", 1)
    store.close()
    assert again.examples == merged.examples and again.feature.n_active == merged.feature.n_active > 0
    assert cli.main([*index, "--merge", "--shard", "1/2"]) == 2
    assert cli.main([*index, "--shard", "3/2"]) == 2


def test_the_database_is_checked_and_upgraded(
    model_folder: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["db", "upgrade"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert cli.main(train_arguments(model_folder, corpus)) == 0
    assert cli.main(["index", "mine", "--corpus", str(corpus), "--text-field", "body"]) == 0
    assert cli.main(["db", "check"]) == 0
    assert "Everything is as it was written." in capsys.readouterr().out
    (weights,) = (tmp_path / "home").rglob("sae.safetensors")
    weights.unlink()
    assert cli.main(["db", "check"]) == 1
    assert "The weights of the SAE mine are not in" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["db", "forget"])


class running:
    """A saescope server as a process of its own, on a free port; gives its address."""

    def __init__(self, *command: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "app.cli", *command, "--port", str(self.port)]

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        address = f"http://127.0.0.1:{self.port}"
        assert address in line
        return address

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=20) in (0, 130)
