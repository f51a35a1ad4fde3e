"""How much memory a run will need: against what one takes, and against formulas one term at a time."""

import dataclasses
import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_core import free_memory, memory, train
from sae_core.config import ARCHITECTURES, TrainConfig
from sae_core.errors import ConfigError
from sae_core.free_memory import free_bytes
from sae_core.memory import check_memory, is_out_of_memory, training_bytes
from tests.runs import small_config, write_corpus

Refuses = Callable[..., AbstractContextManager[None]]
CPU = torch.device("cpu")
GB = 10**9


def config_of(**values: Any) -> TrainConfig:
    return TrainConfig(**{"model": "m", "layer": 0, "corpus": ("c",), **values})


def bytes_of(*configs: TrainConfig, d_model: int = 768, device: str = "cuda", model_bytes: int = 0) -> int:
    return training_bytes(
        list(configs),
        d_model=d_model,
        device=torch.device(device),
        buffer_tokens=configs[0].buffer_tokens,
        model_bytes=model_bytes,
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"d_sae": 4096 + 65_536}, 65_536 * (16 * (2 * 768 + 2) + 8 * 768)),
        ({"buffer_tokens": 262_144 + 100_000}, 100_000 * 768 * 4),
        ({"target_hook": "mlp_out"}, 262_144 * 768 * 4),
        ({"cache_activations": True}, 2 * 262_144 * 768 * 2),
        ({"dtype": "bfloat16"}, -262_144 * 768 * 2),
        ({"k": 64}, 4096 * 60 * 32),
        ({"aux_coefficient": 1 / 32}, 4096 * 60 * 384),
        ({"architecture": "batchtopk"}, 4096 * 60 * 32),
        ({"architecture": "matryoshka"}, 4096 * (60 * 32 + 5 * 6 * 4 * 768)),
        ({"architecture": "relu"}, 4096 * 60 * 5 * 32 + 12 * 1024 * 4096),
        ({"seed": 1}, 0),
    ],
    ids=str,
)
def test_each_setting_counts_for_what_it_costs(change: dict[str, Any], expected: int) -> None:
    usual = config_of()

    assert bytes_of(dataclasses.replace(usual, **change)) - bytes_of(usual) == expected


def test_several_saes_share_buffer_and_batch_but_not_weights() -> None:
    one, other = config_of(), config_of(layer=1, k=8)

    extra = bytes_of(one, other) - bytes_of(one)

    assert extra == 16 * 4096 * (2 * 768 + 2) + 262_144 * 768 * 4
    assert bytes_of(one, config_of(k=8)) - bytes_of(one) == 16 * 4096 * (2 * 768 + 2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_models_weights_count_where_it_is_needed(device: str) -> None:
    with_model = bytes_of(config_of(), device=device, model_bytes=3 * GB)

    assert 3 * GB < with_model - bytes_of(config_of(), device=device) < 4.5 * GB


def test_a_training_that_fits_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bytes_of(config_of(), device="cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda _: wanted)

    check_memory([config_of()], d_model=768, device=CPU, buffer_tokens=262_144, model_bytes=0)


def test_a_training_that_does_not_fit_is_refused_with_numbers(
    monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 4 * GB)

    with refuses(ConfigError, "needs about 33.5 GB of memory", "4.0 GB are free on cpu", "--d-sae", "--dtype bfloat16"):
        check_memory([config_of(d_sae=1 << 20)], d_model=768, device=CPU, buffer_tokens=262_144, model_bytes=0)


def test_where_free_memory_cannot_be_told_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: None)

    check_memory([config_of(d_sae=1 << 30)], d_model=768, device=CPU, buffer_tokens=262_144, model_bytes=0)


# What is free


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 10 GB available and no limits."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {10 * GB // 1024} kB\n")
    monkeypatch.setattr(free_memory, "_PROC", tmp_path)
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    return tmp_path


def limit(machine: Path, maximum: str, current: int, files: int) -> None:
    (machine / "memory.max").write_text(maximum + "\n")
    (machine / "memory.current").write_text(f"{current}\n")
    (machine / "memory.stat").write_text(f"anon 5\nactive_file {files // 2}\ninactive_file {files // 2}\n")


def test_free_is_what_the_machine_has_available(machine: Path) -> None:
    assert free_bytes(CPU) == pytest.approx(10 * GB, abs=1024)


@pytest.mark.parametrize(
    ("maximum", "current", "files", "expected"),
    [
        ("max", 9 * GB, 0, 10 * GB),
        (str(4 * GB), 1 * GB, 0, 3 * GB),
        (str(4 * GB), 4 * GB, 3 * GB, 3 * GB),  # files that were read are given up for what comes
        (str(4 * GB), 4 * GB, 0, 0),
        (str(40 * GB), 1 * GB, 0, 10 * GB),
    ],
    ids=["no-limit", "limit", "full-of-files", "full", "limit-above-the-machine"],
)
def test_a_containers_limit_counts(machine: Path, maximum: str, current: int, files: int, expected: int) -> None:
    limit(machine, maximum, current, files)

    assert free_bytes(CPU) == pytest.approx(expected, abs=1024)


def test_another_system_than_linux_is_asked_what_it_has_at_all(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "meminfo").unlink()
    monkeypatch.setattr(free_memory.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)

    assert free_bytes(CPU) == 4_096_000


# Running out


def test_what_torch_and_python_raise_when_memory_runs_out_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)

    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not is_out_of_memory(ValueError("out of memory"))


# What a run takes


def kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are read from Linux's /proc")
def test_the_estimate_is_about_what_a_run_takes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    config = small_config(
        tiny_llama, write_corpus(tmp_path / "corpus"), d_sae=1 << 17, batch_tokens=512,
        buffer_tokens=1024, tokens=1024, k=16,
    )  # fmt: skip
    estimates = []
    monkeypatch.setattr(
        train, "check_memory", lambda *args, **kwargs: estimates.append(training_bytes(*args, **kwargs))
    )
    train.train(small_config(tiny_llama, tmp_path / "corpus", tokens=128), runs=tmp_path, slug="imports-and-compiles")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = kilobytes("VmRSS")

    train.train(config, runs=tmp_path, slug="measured")

    taken = 1024 * (kilobytes("VmHWM") - before)
    assert 0.7 * taken <= estimates[-1] <= 3 * taken, (estimates[-1], taken)


def test_every_architecture_has_an_estimate() -> None:
    assert all(bytes_of(config_of(architecture=name)) >= bytes_of(config_of()) for name in ARCHITECTURES)
