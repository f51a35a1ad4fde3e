"""Finding the weights, and files that are cut short, flipped, hostile or of something else: one sentence each."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_core.errors import WeightsError
from sae_core.formats import read_source, source
from sae_core.formats.source import Source
from tests.published import dictionary_files, gemma_scope_files, saelens_files, sparsify_files


def test_one_sae_below_a_folder_is_found_and_of_several_one_must_be_named(tmp_path: Path) -> None:
    sparsify_files(tmp_path / "run" / "layers.1")
    assert Source(tmp_path).weights == tmp_path / "run" / "layers.1" / "sae.safetensors"

    sparsify_files(tmp_path / "run" / "layers.2.mlp")
    with pytest.raises(WeightsError, match=r"holds 2 SAEs; give the path of one of them: run/layers\.1, run/layers\.2"):
        Source(tmp_path)


def test_what_lies_beside_the_weights_is_not_taken_for_them(tmp_path: Path) -> None:
    saelens_files(tmp_path, "standard")
    save_file({"sparsity": torch.zeros(3)}, tmp_path / "sparsity.safetensors")
    (tmp_path / "trainer_state.pt").write_bytes(b"state")

    assert Source(tmp_path).weights.name == "sae_weights.safetensors"


@pytest.mark.parametrize(
    ("path", "said"),
    [("nothing", "no file or folder"), ("empty", "no SAE weights"), ("notes.txt", "no weights file")],
)
def test_where_nothing_is_that_is_said(path: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no weights")

    with pytest.raises(WeightsError, match=said):
        Source(tmp_path / path)


KINDS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda folder: saelens_files(folder, "jumprelu"),
    "pt": lambda folder: dictionary_files(folder, "JumpReluAutoEncoder"),
    "npz": gemma_scope_files,
}


def read(folder: Path) -> None:
    read_source(Source(folder))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_short_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    file = Source(tmp_path).weights
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    with pytest.raises(WeightsError, match=r"damaged|holds"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["pt", "npz"])
def test_a_flipped_bit_in_an_archive_is_noticed(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    file = Source(tmp_path).weights
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)

    with pytest.raises(WeightsError, match="damaged"):
        read(tmp_path)


def test_flipped_bits_anywhere_in_a_safetensors_header_never_end_in_a_stack_trace(tmp_path: Path) -> None:
    saelens_files(tmp_path, "jumprelu")
    file = Source(tmp_path).weights
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    refused = 0
    for at in range(0, 8 + length, 3):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        file.write_bytes(data)
        try:
            read(tmp_path)
        except WeightsError:
            refused += 1
    assert refused > (8 + length) // 3 * 0.8  # a shape may stay one, and a blank may be a digit


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    saelens_files(folder, "standard")
    tensors = {"W_enc": torch.ones(32, 96), "W_dec": torch.ones(96, 32), "b_dec": torch.ones(32)}
    save_file({**tensors, "b_enc": torch.full((96,), float("nan"))}, folder / "sae_weights.safetensors")

    with pytest.raises(WeightsError, match=r"b_enc .* not finite"):
        read(folder)


class Harmful:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_needs_more_than_tensors_is_refused_with_the_reason(how: str, tmp_path: Path) -> None:
    path = tmp_path / "ae.pt"
    harmful = {"config": Harmful()}
    if how == "torch":
        torch.save(harmful, path)
    else:
        path.write_bytes(pickle.dumps(harmful, protocol=2))

    with pytest.raises(WeightsError, match=r"could run programs \(it asks for \S*system\)"):
        read(path)
    assert not Path("harmed").exists()


def test_an_array_of_objects_is_refused_unread(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))

    with pytest.raises(WeightsError, match="pickle"):
        read(tmp_path)


def test_a_file_that_claims_more_than_there_is_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saelens_files(tmp_path, "standard")
    monkeypatch.setattr(source, "free_bytes", lambda device: 10_000)

    with pytest.raises(WeightsError, match="would need"):
        read(tmp_path)


def test_an_array_whose_header_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", header.getvalue() + b"1234")

    with pytest.raises(WeightsError, match="damaged"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"d_in": ' + "[" * 100_000, "\x80"])
def test_settings_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    saelens_files(tmp_path, "standard")
    (tmp_path / "cfg.json").write_text(text, encoding="latin-1")

    with pytest.raises(WeightsError, match="fetch it again"):
        read(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"d_in": "32"}, {"d_sae": 7}, {"architecture": []}, {"architecture": {}}, {"metadata": "none"}, {"k": "many"}],
    ids=str,
)
def test_settings_of_another_kind_are_refused_or_do_no_harm(changed: dict[str, object], tmp_path: Path) -> None:
    saelens_files(tmp_path, "topk")
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, **changed}))

    if "metadata" in changed:
        read(tmp_path)
    else:
        with pytest.raises(WeightsError):
            read(tmp_path)
