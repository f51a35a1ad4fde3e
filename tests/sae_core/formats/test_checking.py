"""The self-check: what is right is left alone, and of what is wrong the convention is named that mends it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from app import cli
from sae_core.formats.checking import Check, self_check
from sae_core.formats.importing import ImportConfig, import_sae
from sae_core.loading import load_model
from sae_core.store import Store
from tests.tiny import D_MODEL, TEXTS, save_tiny_model

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def mean(model: str, corpus: str) -> Tensor:
    """Of the model's vectors at the hook."""
    loaded = load_model(model)
    ids = torch.tensor([loaded.tokenizer(Path(corpus).read_text(encoding="utf-8"))["input_ids"][:400]])
    return loaded.activations(ids, torch.ones_like(ids, dtype=torch.bool), HOOK)[0].mean(dim=0)


def two_sided(folder: Path, b_dec: Tensor, *, overshoots_beyond: float | None = None, **config: Any) -> Path:
    """SAELens's files of an SAE with a feature for each direction either way: it gives back what it reads."""
    both = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])  # (2 D_MODEL, D_MODEL)
    W_enc, W_dec, b_enc = both.T, both, torch.zeros(2 * D_MODEL)
    if overshoots_beyond is not None:
        W_enc, W_dec = torch.cat([W_enc, W_enc], dim=1), torch.cat([W_dec, 10 * W_dec])
        b_enc = torch.cat([b_enc, b_enc - overshoots_beyond])
    folder.mkdir(parents=True)
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    settings = {"architecture": "standard", "d_in": D_MODEL, "d_sae": len(W_dec), "apply_b_dec_to_input": True}
    settings |= {"metadata": {"hook_name": HOOK, "sae_lens_version": "6.0.0"}, **config}
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder


def checked(path: Path, model: str, corpus: str, *, declared_l0: float | None = None, home: Path) -> Check:
    imported = import_sae(ImportConfig(path=path, origin=str(path), model=model), home=home)
    return self_check(imported.info, corpus=(corpus,), declared_l0=declared_l0, device="cpu")


def test_what_is_right_is_left_alone(model: str, corpus: str, mean: Tensor, tmp_path: Path) -> None:
    check = checked(two_sided(tmp_path / "sae", mean), model, corpus, declared_l0=30, home=tmp_path)

    assert check.looks_right and not check.suspects
    assert check.fvu == pytest.approx(0, abs=1e-6) and check.l0 == pytest.approx(D_MODEL)
    assert check.n_tokens > 500


def test_a_bias_that_is_not_subtracted_is_suspected(model: str, corpus: str, mean: Tensor, tmp_path: Path) -> None:
    path = two_sided(tmp_path / "sae", 4 * mean + 4, apply_b_dec_to_input=False)

    check = checked(path, model, corpus, home=tmp_path)

    assert not check.looks_right and check.fvu > 1
    assert check.suspects[0].startswith("bias subtraction (b_dec is not subtracted from the input): FVU 0.000")


def test_an_input_that_should_be_normalised_is_suspected(model: str, corpus: str, tmp_path: Path) -> None:
    """Trained where numbers are about 1: beyond 4, where hardly any were, it overshoots eleven times."""
    loud = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        loud.get_input_embeddings().weight.mul_(8)
    loud.save_pretrained(tmp_path / "loud")
    for file in Path(model).glob("*token*"):
        shutil.copy(file, tmp_path / "loud")
    path = two_sided(tmp_path / "sae", torch.zeros(D_MODEL), overshoots_beyond=4.0)

    check = checked(path, str(tmp_path / "loud"), corpus, home=tmp_path)

    assert not check.looks_right and check.fvu > 1
    assert any(suspect.startswith("normalisation (as if") and "FVU 0.0" in suspect for suspect in check.suspects)
    right = two_sided(
        tmp_path / "right", torch.zeros(D_MODEL), overshoots_beyond=4.0, normalize_activations="layer_norm"
    )
    assert checked(right, str(tmp_path / "loud"), corpus, home=tmp_path / "other").looks_right


def test_too_many_features_are_said_though_the_fvu_is_fine(
    model: str, corpus: str, mean: Tensor, tmp_path: Path
) -> None:
    check = checked(two_sided(tmp_path / "sae", mean), model, corpus, declared_l0=2, home=tmp_path)

    assert not check.looks_right and check.fvu < 0.01


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAESCOPE_DATABASE_URL", raising=False)
    return tmp_path / "home"


def run(*words: str) -> int:
    return cli.main(list(words))


def test_the_command_imports_checks_and_exports(
    model: str, corpus: str, mean: Tensor, own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two_sided(tmp_path / "sae", mean)

    assert run("import", str(path), "--model", model, "--slug", "mine", "--check-corpus", corpus) == 0

    said = capsys.readouterr()
    assert "Imported mine (saelens): relu, 64 features, blocks.1.hook_resid_post" in said.out
    assert (
        "FVU 0.000" in said.out and f"saescope index mine --corpus {corpus}" in said.out and "saescope:" not in said.err
    )
    store = Store.open(f"sqlite:///{own_home}/saescope.db")
    info = store.sae("mine").sae
    store.close()
    assert (info.k, info.n_training_tokens, info.config["format"]) == (None, 0, "saelens")

    assert run("export", "mine", "--format", "saelens", "--output", str(tmp_path / "out")) == 0
    assert "Written:" in capsys.readouterr().out
    assert (tmp_path / "out" / "cfg.json").exists()
    assert run("export", "mine", "--format", "sparsify", "--output", str(tmp_path / "other")) == 2
    assert "TopK SAEs only" in capsys.readouterr().err
    assert run("export", "--format", "saelens") == 2
    assert "Name the SAE" in capsys.readouterr().err
    assert run("export", "mine", "--format", "saelens", "--features", "1") == 2
    assert "takes a whole SAE" in capsys.readouterr().err


def test_the_command_says_what_to_suspect_and_ends_with_1(
    model: str, corpus: str, mean: Tensor, own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two_sided(tmp_path / "sae", 4 * mean + 4, apply_b_dec_to_input=False)
    words = ("import", str(path), "--model", model, "--slug", "mine", "--check-corpus", corpus)

    assert run(*words) == 1

    error = capsys.readouterr().err
    assert "FVU above 1" in error and "Suspect its bias subtraction" in error and "Traceback" not in error
    (path / "cfg.json").write_text((path / "cfg.json").read_text().replace("false", "true"))
    assert run(*words) == 2
    assert "--replace" in capsys.readouterr().err
    assert run(*words, "--replace") == 0


def test_without_the_models_weights_an_import_is_not_checked_and_says_so(
    model: str, corpus: str, mean: Tensor, own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two_sided(tmp_path / "sae", mean)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in Path(model).iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())

    assert run("import", str(path), "--model", str(bare), "--check-corpus", corpus) == 0

    assert "not checked" in capsys.readouterr().err


def test_bad_imports_are_one_sentence_and_exit_code_2(
    model: str, own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((3, 2)))
    for words, expected in (
        (("/no/such/file",), "no file or folder"),
        ((str(tmp_path / "params.npz"),), "none of the formats"),
        ((str(tmp_path / "params.npz"), "--format", "csv"), "csv"),
    ):
        assert run("import", *words, "--model", model) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("saescope: ") and expected in error and len(error.splitlines()) == 1


def test_an_import_takes_no_trained_saes_name(
    model: str, corpus: str, mean: Tensor, own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two_sided(tmp_path / "sae", mean)
    words = ("import", str(path), "--model", model, "--slug", "mine", "--no-check")
    assert run(*words, "--home", str(tmp_path / "first")) == 0
    (tmp_path / "second").mkdir()
    (tmp_path / "first" / "saescope.db").rename(tmp_path / "second" / "saescope.db")
    capsys.readouterr()

    assert run(*words, "--home", str(tmp_path / "second")) == 2

    assert "another --slug" in capsys.readouterr().err
    assert not (tmp_path / "second" / "imports").exists()
