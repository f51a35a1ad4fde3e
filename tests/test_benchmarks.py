"""The benchmarks' own arithmetic, pipe and printing, with fake contestants: no peers, no network, no training."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import environments, train
from benchmarks.card import Report, StepCost, WholeRun, card, json_line
from benchmarks.contestant import Contestant, ContestantFailed, Field, Job
from benchmarks.peers.child import Finished, batch_indices, serve
from sae_core.synthetic import SyntheticActs, synthetic_acts

# A contestant whose steps cost what it is told, that writes down when it begins and ends, and that dies at one request.
FAKE = """
import json, os, sys, time
import numpy as np
name, cpu_s, diary, dies_at = sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
answers = os.fdopen(int(sys.argv[-1]), "w")
print("a peer that prints when it is imported")
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    do = request.pop("do")
    with open(diary, "a") as file:
        file.write(f"{name} {do} {request.get('steps', '')} begins\\n")
    if number == dies_at:
        raise ValueError("no more")
    if do == "start":
        job, answer = request, {"version": f"{name} 1.0", "torch": TORCH}
    elif do == "run":
        answer = {"cpu_s": cpu_s * request["steps"]}
    else:
        folder = request["folder"]
        np.save(f"{folder}/sae_out.npy", np.load(job["held_out"]) * 0.5)
        np.save(f"{folder}/fired.npy", np.arange(job["d_sae"]) % 4)
        np.save(f"{folder}/W_dec.npy", np.eye(job["d_sae"], 8, dtype=np.float32))
        answer = {"l0": 2.5}
    with open(diary, "a") as file:
        file.write(f"{name} {do} {request.get('steps', '')} ends\\n")
    answers.write(json.dumps(answer) + "\\n")
    answers.flush()
""".replace("TORCH", repr(torch.__version__))


def fake_command(name: str, diary: Path, *, cpu_s: float = 1.0, dies_at: int = -1) -> list[str]:
    return [sys.executable, "-c", FAKE, name, str(cpu_s), str(diary), str(dies_at)]


def fake(name: str, folder: Path, *, cpu_s: float = 1.0, dies_at: int = -1) -> Contestant:
    command = fake_command(name, folder / "diary", cpu_s=cpu_s, dies_at=dies_at)
    return Contestant(command, cwd=folder, environment=os.environ, log=folder / f"{name}.log")


def job(folder: Path, **changes: object) -> Job:
    values: dict[str, object] = {
        "train": str(folder / "train.npy"),
        "held_out": str(folder / "held_out.npy"),
        "variant": "default",
        "d_sae": 8,
        "k": 2,
        "batch_rows": 4,
        "steps": 10,
        "dead_after_rows": 8,
        "firing_rows": 12,
        "seed": 0,
        "order_seed": 1,
        "threads": torch.get_num_threads(),
    }
    return Job(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def field() -> Iterator[Field]:
    with Field() as field:
        yield field


# --- Contestants -----------------------------------------------------------------------------------------------------


def test_contestants_take_turns_and_never_work_at_the_same_time(field: Field, tmp_path: Path) -> None:
    for name in "abc":
        field.enter(name, fake(name, tmp_path), job(tmp_path))
    for name in field.rotation(3):
        assert field.ask(name, "run", steps=2) == {"cpu_s": 2.0}
    lines = (tmp_path / "diary").read_text().splitlines()
    assert [line.removesuffix("begins") for line in lines[::2]] == [line.removesuffix("ends") for line in lines[1::2]]
    runs = [line.split()[0] for line in lines if "run" in line and "begins" in line]
    assert "".join(runs) == "abc" + "bca" + "cab"


def test_a_contestant_that_dies_leaves_with_its_last_words_and_the_rest_goes_on(field: Field, tmp_path: Path) -> None:
    field.enter("sound", fake("sound", tmp_path), job(tmp_path))
    field.enter("frail", fake("frail", tmp_path, dies_at=1), job(tmp_path))
    answers = {name: field.ask(name, "run", steps=1) for name in ("frail", "sound")}
    assert answers == {"frail": None, "sound": {"cpu_s": 1.0}}
    assert field.failures == {"frail": "ValueError: no more"}
    assert list(field.rotation(1)) == ["sound"]
    assert field.ask("frail", "run", steps=1) is None


def test_a_command_that_cannot_run_says_why(field: Field, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import a_peer_that_is_not_there"]
    contestant = Contestant(command, cwd=tmp_path, environment=os.environ, log=tmp_path / "log")
    assert field.enter("absent", contestant, job(tmp_path)) is None
    assert "a_peer_that_is_not_there" in field.failures["absent"]


def test_silence_is_a_failure(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    silent = Contestant(command, cwd=tmp_path, environment=os.environ, log=tmp_path / "log", timeout_s=0.2)
    with pytest.raises(ContestantFailed, match="no answer to 'start'"):
        silent.ask("start")
    silent.close()


# --- The contestants' own side ---------------------------------------------------------------------------------------


class Copying:
    """An entrant that reconstructs with features 0 and 3, whatever it is trained on."""

    def __init__(self, job: Job, rows: torch.Tensor) -> None:
        self.steps = 0

    def run(self, steps: int) -> None:
        self.steps += steps

    def finished(self) -> Finished:
        assert self.steps == 5
        return Finished(lambda rows: (rows * 0.5, torch.tensor([0, 3]).repeat(len(rows))), torch.eye(8))


def test_serve_answers_every_request_and_leaves_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    np.save(tmp_path / "held_out.npy", held_out)
    np.save(tmp_path / "train.npy", np.zeros((40, 8), dtype=np.float32))
    requests = [
        {"do": "run", "steps": 1},
        {"do": "start", **{name: getattr(job(tmp_path), name) for name in Job.__slots__}},
        {"do": "run", "steps": 5},
        {"do": "finish", "folder": str(tmp_path)},
    ]
    ours, theirs = os.pipe()
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    monkeypatch.setattr("sys.argv", ["child", str(theirs)])
    with torch.random.fork_rng():
        serve(Copying, version="copying 1.0")
    with os.fdopen(ours) as pipe:
        early, started, ran, finished = (json.loads(pipe.readline()) for _ in requests)
    assert "error" in early
    assert started == {"version": "copying 1.0", "torch": torch.__version__}
    assert ran["cpu_s"] >= 0
    assert finished == {"l0": 2.0}
    np.testing.assert_allclose(np.load(tmp_path / "sae_out.npy"), held_out / 2)
    assert np.load(tmp_path / "fired.npy").tolist() == [12, 0, 0, 12, 0, 0, 0, 0]
    assert np.load(tmp_path / "W_dec.npy").shape == (8, 8)


def test_every_contestant_sees_each_row_once_an_epoch_in_the_same_order(tmp_path: Path) -> None:
    batches = batch_indices(14, job(tmp_path))
    epochs = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    assert all(len(set(epoch.tolist())) == 12 for epoch in epochs)
    assert not torch.equal(*epochs)
    again = batch_indices(14, job(tmp_path, seed=7))
    assert torch.equal(epochs[0], torch.cat([next(again) for _ in range(3)]))


# --- Arithmetic and printing -----------------------------------------------------------------------------------------


def cost(*repeats: float) -> StepCost:
    return StepCost(repeats=repeats, batch_rows=4096)


def whole_run(cpu_s: float, fvu: float = 0.2) -> WholeRun:
    return WholeRun(cpu_s=cpu_s, fvu=fvu, dead_share=0.01, mmcs=0.9, found_share=0.8, l0=32.0)


@pytest.fixture
def report() -> Report:
    return Report(
        ours="ours",
        step_costs={"ours": cost(0.2, 0.1, 0.9), "dictionary_learning default": cost(0.8, 0.8, 0.8)},
        floors={"floor float32": cost(0.1), "floor bfloat16": cost(0.05)},
        whole_runs={"ours": whole_run(80.0, fvu=0.13), "dictionary_learning default": whole_run(400.0)},
        failures={"sparsify": "could not be installed: No matching distribution found for " + "x" * 60 + " y" * 40},
        setting={
            "d_in": 256,
            "d_sae": 4096,
            "k": 32,
            "batch_rows": 4096,
            "train_rows": 180_000,
            "held_out_rows": 20_000,
            "n_directions": 2048,
            "noise_floor_fvu": 0.026,
            "threads": 1,
            "repeats": 3,
            "steps_per_repeat": 4,
            "steps": 488,
            "parts": 8,
            "firing_rows": 100_000,
            "dead_after_rows": 249_856,
            "quick": True,
            "load": 0.3,
            "versions": {"floor": "torch 2", "ours": "saescope 1", "dictionary_learning": "dictionary-learning 0.1.0"},
        },
        machine="A processor, 2 CPUs",
    )


def test_a_step_costs_the_median_of_its_repeats(report: Report) -> None:
    assert report.step_costs["ours"].cpu_s == 0.2
    assert report.step_costs["ours"].rows_per_cpu_s == pytest.approx(4096 / 0.2)
    assert report.step_costs["ours"].spread == pytest.approx(0.8 / 0.2)
    assert report.times_as_fast("dictionary_learning default") == pytest.approx(4.0)
    assert report.times_as_fast_overall("dictionary_learning default") == pytest.approx(5.0)
    assert report.floor is report.floors["floor bfloat16"]


def test_the_card_fits_80_columns_and_says_what_was_measured(report: Report) -> None:
    text = card(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text == "\n".join(line.rstrip() for line in text.splitlines())
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    step, overall = [line.split() for line in text.splitlines() if line.startswith("dictionary_learning default ")]
    assert step == ["dictionary_learning", "default", "800.0", "0%", "5,120", "6%", "4.00", "x"]
    assert overall == ["dictionary_learning", "default", "400.0", "0.200", "1.0%", "0.900", "80.0%", "5.00", "x"]
    assert lines["floor bfloat16"].split()[-1] == "100%"
    assert "QUICK" in text
    assert "dictionary-learning 0.1.0" in text
    assert "saescope 1" not in text
    assert "sparsify: could not be installed" in text


def test_the_json_line_has_the_form_that_all_benchmarks_share(report: Report) -> None:
    line = json_line(report)
    assert "\n" not in line
    found = json.loads(line)
    assert list(found) == ["bench", "unit", "ours", "floor", "peers", "quality", "failed", "setting", "machine"]
    assert (found["bench"], found["ours"], found["floor"]) == ("train", 20480, 81920)
    assert found["peers"] == {"dictionary_learning default": 5120}
    assert found["quality"]["ours"]["fvu"] == 0.13
    assert found["quality"].keys() == {"ours", "dictionary_learning default"}


# --- All together ----------------------------------------------------------------------------------------------------


def test_a_run_with_fake_contestants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """saelens fails in the middle, sparsify cannot be installed; the rest is measured and printed."""
    seconds = {"floor": 0.01, "ours": 0.02, "saelens": 0.2, "dictionary_learning": 0.1}

    def python_of(recipe: environments.Recipe) -> Path:
        if recipe.name == "sparsify":
            raise environments.EnvironmentFailed("no network")
        return Path(sys.executable)

    def command(python: Path, entry: train.Entry) -> list[str]:
        dies_at = 6 if entry.module == "saelens" else -1
        return fake_command(entry.module, tmp_path / "diary", cpu_s=seconds[entry.module], dies_at=dies_at)

    monkeypatch.setattr(train, "python_of", python_of)
    monkeypatch.setattr(train, "command", command)
    monkeypatch.setattr(train, "TRAIN_ROWS", 64)
    monkeypatch.setattr(train, "HELD_OUT_ROWS", 32)
    monkeypatch.setattr(train, "synthetic_acts", small_acts)
    train.main(["--quick"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["ours"] == round(4096 / 0.02)
    assert found["floor"] == round(4096 / 0.01)
    assert found["peers"]["dictionary_learning 1e-3"] == round(4096 / 0.1)
    assert found["quality"]["ours"]["cpu_s"] == round(16 * 0.02, 1)
    assert found["quality"]["ours"]["l0"] == 2.5
    assert found["quality"]["ours"]["dead_share"] == 0.25
    assert 0.2 < found["quality"]["ours"]["fvu"] < 0.35  # half of each row is missing, a quarter of its square
    assert found["failed"] == {
        "sparsify": "could not be installed: no network",
        "saelens default": "ValueError: no more",
        "saelens 1e-3": "ValueError: no more",
        "saelens 3e-3": "ValueError: no more",
    }
    assert "saelens default" not in found["quality"]
    assert "saelens default" in found["peers"]  # the cost of a step was measured before


def small_acts(n_rows: int, *, seed: int) -> SyntheticActs:
    return synthetic_acts(n_rows, d_in=8, n_directions=16, mean_active=2.0, seed=seed)


def test_the_data_is_seeded_unlike_the_models() -> None:
    assert len({train.DATA_SEED, train.MODEL_SEED, train.ORDER_SEED}) == 3


def test_a_peer_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--peers", "sparsify,nobody"])
    assert "no such peer: nobody" in capsys.readouterr().err


# --- Environments ----------------------------------------------------------------------------------------------------


def test_an_environment_is_made_once_and_again_for_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []

    def run(command: list[str], log: object) -> None:
        commands.append(" ".join(command))
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()

    monkeypatch.setattr(environments, "_run", run)
    monkeypatch.setattr(environments, "torch_version", lambda: "2.99.0+cpu")
    recipe = environments.Recipe(name="peer", requirement="peer==1.0", uninstall=("torchvision",))
    python = environments.python_of(recipe, cache=tmp_path)
    assert python == tmp_path / "peer" / "bin" / "python"
    _, torch_install, peer_install, uninstall = commands
    assert "whl/cpu torch==2.99.0+cpu" in torch_install
    assert "--constraint" in peer_install
    assert (tmp_path / "peer" / "constraints.txt").read_text() == "torch==2.99.0+cpu\n"
    assert uninstall.endswith("uninstall --yes torchvision")
    environments.python_of(recipe, cache=tmp_path)
    assert len(commands) == 4
    environments.python_of(environments.Recipe(name="peer", requirement="peer==2.0"), cache=tmp_path)
    assert len(commands) == 7


def test_the_reason_for_a_failed_installation_is_pips_last_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "torch_version", lambda: "2.99.0")
    code = "print('ERROR: first'); print('ERROR: No matching distribution'); print('notice'); raise SystemExit(1)"
    with (tmp_path / "log").open("w") as log, pytest.raises(environments.EnvironmentFailed, match=r"^No matching"):
        environments._run([sys.executable, "-c", code], log)
