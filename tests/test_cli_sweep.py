"""`saescope sweep` and the options of training as a user meets them."""

import json
from pathlib import Path

import pytest

from app import cli
from app.pareto import pareto
from sae_core.arguments import sweep_configs
from sae_core.config import TrainConfig
from sae_core.errors import ConfigError
from sae_core.store import Store
from sae_core.train import default_slug
from tests.tiny import TEXTS, save_tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("SAESCOPE_HOME", str(home))
    monkeypatch.delenv("SAESCOPE_DATABASE_URL", raising=False)
    return home


def sweep(model: Path, corpus: Path, *more: str) -> list[str]:
    options = (
        f"--layer 1 --tokens 4k --context-size 32 --batch-tokens 128 --buffer-tokens 1024 --d-sae 64 {' '.join(more)}"
    )
    return ["sweep", "--model", str(model), "--corpus", str(corpus), *options.split()]


def configs_of(*more: str) -> dict[str, TrainConfig]:
    arguments = cli.make_parser().parse_args(sweep(Path("m"), Path("c"), *more))
    return sweep_configs(arguments, named=default_slug)


@pytest.mark.slow
def test_a_sweep_trains_enters_and_compares_every_combination(
    model_folder: Path, corpus: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = sweep(model_folder, corpus, "--k 2 4 --architecture topk jumprelu --slug mine")
    assert cli.main(command) == 0
    table = capsys.readouterr().out.strip().splitlines()
    slugs = ["mine-topk-k2", "mine-topk-k4", "mine-jumprelu-k2", "mine-jumprelu-k4"]
    assert [line.split("|")[1].strip() for line in table[2:]] == slugs
    store = Store.open(f"sqlite:///{own_home}/saescope.db")
    assert {summary.sae.slug: summary.sae.architecture for summary in store.saes()} == {
        slug: slug.split("-")[1] for slug in slugs
    }
    measured = pareto(store, store.sae("mine-topk-k2"), None)
    assert measured is not None and {point.slug for point in measured.items} == set(slugs)
    assert [point.slug for point in measured.items if point.is_this] == ["mine-topk-k2"]
    store.close()
    l0 = {line.split("|")[1].strip(): float(line.split("|")[7]) for line in table[2:]}
    assert l0["mine-topk-k2"] <= 2 < l0["mine-topk-k4"] <= 4

    weights = {slug: (own_home / "runs" / slug / "sae.safetensors").stat().st_mtime_ns for slug in slugs}
    assert cli.main([*command, "--json"]) == 0  # trains nothing anew
    lines = [json.loads(line) for line in capsys.readouterr().out.strip().splitlines()]
    assert [line["slug"] for line in lines] == slugs
    assert {slug: (own_home / "runs" / slug / "sae.safetensors").stat().st_mtime_ns for slug in slugs} == weights


def test_slugs_of_a_sweep_are_the_name_and_what_varies() -> None:
    assert list(configs_of("--k 2 4 --seed 0 1")) == [
        "m-l1-64-k2-s0",
        "m-l1-64-k2-s1",
        "m-l1-64-k4-s0",
        "m-l1-64-k4-s1",
    ]
    assert list(configs_of("--architecture topk gated")) == ["m-l1-64-topk", "m-l1-64-gated"]
    assert list(configs_of("--architecture relu gated --slug x")) == ["x-relu", "x-gated"]


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--k names a value twice"):
        configs_of("--k 2 2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--architecture sparse", "architecture 'sparse' is not known"),
        ("--target-layer 2", "name the hook that the transcoder predicts"),
        ("--sparsity 0.1", "topk has k"),
        ("--architecture gated --multi-topk", "multi_topk is for the architecture topk"),
    ],
)
def test_options_that_do_not_fit_together_are_said(
    options: str, said: str, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--model", "demo", "--layer", "1", "--corpus", str(corpus), *options.split()]) == 2
    assert said in capsys.readouterr().err
