import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sae_core import placement
from sae_core.config import DTYPES, QUANTISED
from sae_core.errors import ModelError
from sae_core.loading import load_model, load_outline
from sae_core.model import LanguageModel
from sae_core.placement import check_weights, weight_bytes, weights_sentence
from sae_core.records import ModelInfo
from tests.tiny import TEXTS, save_tiny_model

Refuses = Callable[..., AbstractContextManager[None]]
CPU = torch.device("cpu")
GB = 1_000_000_000
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama 3.2, whose head is its embedding."""
    return save_tiny_model(tmp_path_factory.mktemp("llama3"), "llama3")


@pytest.fixture(scope="module")
def whole(folder: Path) -> LanguageModel:
    return load_model(str(folder))


def batch(model: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([model.tokenizer.encode(" ".join(TEXTS[20:24]))[:24]])
    return ids, torch.ones_like(ids, dtype=torch.bool)


def predicted(model: LanguageModel) -> torch.Tensor:
    ids, mask = batch(model)
    parts = model.predictions(ids, mask, where=mask, hook_name=HOOK, replacements=[torch.clone])
    return torch.cat([part for (part,) in parts])


# What it takes


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_are_reckoned_from_the_outline_and_said_before_they_are_read(
    dtype: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if dtype in QUANTISED:
        pytest.importorskip("bitsandbytes")
        pytest.importorskip("accelerate")
    reckoned = weight_bytes(load_outline(str(folder), dtype=dtype).module, dtype)

    model = load_model(str(folder), dtype=dtype)

    assert reckoned == sum(parameter.nbytes for parameter in model.module.parameters())
    said = capsys.readouterr().err
    assert f"{folder}: 0.0 million parameters, 0.0 GB in {dtype}; " in said and "are free on cpu." in said


def test_large_models_are_said_in_billions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_bytes", lambda _: 24 * GB)
    with torch.device("meta"):
        module = torch.nn.Linear(40_000, 31_000, bias=False)
    info = ModelInfo(model_name="owner/large", revision="", architecture="", n_layers=1, d_model=1)

    sentence = weights_sentence(info, module, dtype="bfloat16", device=torch.device("cuda"))

    assert sentence == "owner/large: 1.24 billion parameters, 2.5 GB in bfloat16; 24.0 GB are free on cuda."


@pytest.mark.parametrize(
    ("dtype", "device", "spreads", "words"),
    [
        ("float32", "cpu", False, "use --dtype bfloat16 or a smaller model"),
        ("bfloat16", "cuda", False, "use --dtype int8 or --device auto or a smaller model"),
        ("int4", "cpu", False, "use a smaller model"),
        ("float16", "cuda", True, "free on all devices together: use --dtype int8 or a smaller model"),
    ],
)
def test_weights_that_cannot_fit_are_refused_before_they_are_read(
    dtype: str, device: str, spreads: bool, words: str, folder: Path, whole: LanguageModel,
    monkeypatch: pytest.MonkeyPatch, refuses: Refuses,
) -> None:  # fmt: skip
    outline = load_outline(str(folder), dtype=dtype).module
    place = torch.device(device)
    wanted = weight_bytes(outline, dtype)
    monkeypatch.setattr(placement, "free_bytes", lambda _: wanted)
    check_weights(whole.info, outline, dtype=dtype, device=place, spreads=spreads)

    monkeypatch.setattr(placement, "free_bytes", lambda _: wanted - 1)
    with refuses(ModelError, whole.info.model_name, "0.0 GB are free", words):
        check_weights(whole.info, outline, dtype=dtype, device=place, spreads=spreads)


def test_a_model_that_does_not_fit_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr(placement, "free_bytes", lambda _: 1000)
    (folder / "model.safetensors").rename(folder / "away")  # were it read, the sentence would be another one
    try:
        with refuses(ModelError, "--dtype bfloat16"):
            load_model(str(folder))
    finally:
        (folder / "away").rename(folder / "model.safetensors")


# In parts, in few bits, in several places


def test_a_model_in_shards_is_the_same_model(folder: Path, whole: LanguageModel, tmp_path: Path) -> None:
    whole.module.save_pretrained(tmp_path, max_shard_size="20kB")
    whole.tokenizer.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))

    model = load_model(str(tmp_path))

    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    assert torch.equal(model.activations(*batch(model), HOOK), whole.activations(*batch(whole), HOOK))


def test_a_model_of_which_a_shard_is_missing_is_refused(whole: LanguageModel, tmp_path: Path, refuses: Refuses) -> None:
    whole.module.save_pretrained(tmp_path, max_shard_size="20kB")
    whole.tokenizer.save_pretrained(tmp_path)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()

    with refuses(ModelError, str(tmp_path), "cannot be loaded"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.05), ("int4", 0.3)])
def test_a_model_in_few_bits_reads_predicts_and_unembeds(
    dtype: str, error: float, folder: Path, whole: LanguageModel
) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")

    model = load_model(str(folder), dtype=dtype)

    ours, exact = model.activations(*batch(model), HOOK), whole.activations(*batch(whole), HOOK)
    assert model.device == CPU and ours.dtype == torch.float32
    assert 0 < float((ours - exact).norm() / exact.norm()) < error
    kl = (predicted(whole).exp() * (predicted(whole) - predicted(model))).sum(dim=1)
    assert float(kl.mean()) < error
    W_U, exactly = model.unembedding(), whole.unembedding()
    assert W_U is not None and exactly is not None
    torch.testing.assert_close(W_U, exactly, rtol=0.03, atol=0.03)  # the head is not quantised


@pytest.mark.parametrize(
    ("package", "options", "words"),
    [
        ("bitsandbytes", {"dtype": "int8"}, "--dtype int8 needs the package bitsandbytes"),
        ("accelerate", {"dtype": "int4"}, "--dtype int4 needs the package accelerate"),
        ("accelerate", {"device": "auto"}, "--device auto needs the package accelerate"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_has_it(
    package: str, options: dict[str, str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None if name == package else object())

    with refuses(ModelError, words, "saescope[large]"):
        load_model(str(folder), **options)


def test_few_bits_on_a_device_without_them_are_refused(monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda _: object())

    with refuses(ModelError, "--dtype int8 is not for mps", "--device cpu"):
        placement.loading_options("int8", torch.device("mps"), spreads=False, is_quantised=False)


def test_weights_published_in_few_bits_are_told_their_place_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda _: object())

    options = placement.loading_options("bfloat16", CPU, spreads=False, is_quantised=True)

    assert options == {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}


def test_a_spread_model_leaves_room_for_what_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(placement.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(placement, "free_bytes", lambda device: 10 * GB if device.type == "cuda" else 60 * GB)

    def room(beside: int | None) -> dict[int | str, int]:
        options = placement.loading_options(
            "bfloat16", torch.device("cuda"), spreads=True, is_quantised=False, beside_bytes=beside
        )
        assert options["device_map"] == "auto"
        return options["max_memory"]

    assert room(None) == {0: 8 * GB, 1: 8 * GB, "cpu": 60 * GB}
    assert room(3 * GB) == {0: 7 * GB, 1: 7 * GB, "cpu": 60 * GB}
    assert room(30 * GB) == {0: 0, 1: 0, "cpu": 60 * GB}


def test_the_device_auto_loads_the_same_model_where_there_is_no_gpu(folder: Path, whole: LanguageModel) -> None:
    pytest.importorskip("accelerate")

    model = load_model(str(folder), device="auto")

    assert model.device == CPU
    assert torch.equal(model.activations(*batch(model), HOOK), whole.activations(*batch(whole), HOOK))


def test_layers_that_come_in_for_each_pass_give_the_same_numbers(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    folder = str(save_tiny_model(tmp_path / "model", "llama"))  # whose head is not its embedding
    model, whole = load_model(folder), load_model(folder)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    away = {"model.layers.1": "disk", "model.layers.2": "disk", "model.norm": "disk", "lm_head": "disk"}
    accelerate.dispatch_model(model.module, places | away, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.module.lm_head.weight.device.type == model.blocks[2].mlp.up_proj.weight.device.type == "meta"

    assert model.device == CPU
    for hook in ("blocks.1.hook_mlp_in", "blocks.2.hook_attn_out", "blocks.2.hook_resid_post"):
        assert torch.equal(model.activations(*batch(model), hook), whole.activations(*batch(whole), hook))
    assert torch.equal(predicted(model), predicted(whole))
    W_U, exact = model.unembedding(), whole.unembedding()
    assert W_U is not None and exact is not None and torch.equal(W_U, exact)
    assert model.module.lm_head.weight.device.type == "meta"


def test_inputs_go_to_the_first_gpu_that_holds_a_part() -> None:
    spread = SimpleNamespace(hf_device_map={"model.embed_tokens": "cpu", "model.layers.0": 1, "model.layers.1": "disk"})

    assert placement.first_device(spread) == torch.device("cuda", 1)
    assert placement.first_device(SimpleNamespace(hf_device_map={"": "cpu"})) == CPU


def test_a_folder_quantised_elsewhere_is_loaded_as_it_says(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    few = load_model(str(folder), dtype="int8")
    few.module.save_pretrained(tmp_path)
    few.tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["load_in_8bit"]

    model = load_model(str(tmp_path), dtype="bfloat16")

    assert type(model.blocks[0].mlp.up_proj).__name__ == "Linear8bitLt"
    torch.testing.assert_close(
        model.activations(*batch(model), HOOK), few.activations(*batch(few), HOOK), rtol=0.02, atol=0.02
    )
