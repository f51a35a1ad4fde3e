"""Examples of bulk files as packed numbers on disk: what was read and checked once is not read again.

    NAME-PART.npz    some thousand examples: token ids by a list of the part's own tokens, values, interval, position
    NAME.json        written when a whole file is in: which file it was (size, time), and how many parts it made

An import that was stopped goes on with the first file that has no NAME.json, or another one than it says.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.dashboards.neuronpedia_files import BulkExample, Place
from sae_core.disk import saving

PART_EXAMPLES = 20_000


@dataclass(frozen=True, slots=True)
class Part:
    """Examples in the order of their file; the arrays with a number for each token are laid end to end."""

    path: Path
    tokens: tuple[str, ...]  # that stand in this part
    feature_index: NDArray[np.uint32]  # (n,)
    line: NDArray[np.uint32]  # (n,)
    position: NDArray[np.uint16]  # (n,)
    bins: NDArray[np.float64]  # (n, 3): binMin, binMax, binContains
    start: NDArray[np.int64]  # (n + 1,)
    token: NDArray[np.uint32]  # (sum of lengths,): index into `tokens`
    value: NDArray[np.float32]  # (sum of lengths,)

    def __len__(self) -> int:
        return len(self.feature_index)


class Spool:
    """The parts of an import in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: tuple[Path, Part] | None = None

    def holds(self, file: Path) -> bool:
        """Whether all of this file is in, as it is now."""
        return self._note(file) is not None

    def add(self, file: Path, examples: Iterable[BulkExample]) -> None:
        """Writes a file's examples. Nothing counts before all of them are there."""
        signature = _signature(file)
        iterator, n_parts = iter(examples), 0
        with saving(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            while some := list(islice(iterator, PART_EXAMPLES)):
                _replace(self._part_path(file, n_parts), lambda path, some=some: _save(path, some))  # type: ignore[misc]
                n_parts += 1
            note = json.dumps({**signature, "parts": n_parts})
            _replace(self._note_path(file), lambda path: path.write_text(note))

    def parts(self, files: Iterable[Path]) -> Iterator[Part]:
        """The parts of these files, which must all be in, in order; one at a time is in memory."""
        for file in files:
            note = self._note(file)
            assert note is not None, file
            for number in range(note["parts"]):
                yield self.part(self._part_path(file, number))

    def part(self, path: Path) -> Part:
        if self._loaded is None or self._loaded[0] != path:
            with np.load(path, allow_pickle=False) as held:
                arrays: dict[str, Any] = {name: held[name] for name in held.files}
            tokens = tuple(json.loads(arrays.pop("tokens").tobytes()))
            self._loaded = path, Part(path=path, tokens=tokens, **arrays)
        return self._loaded[1]

    def _note(self, file: Path) -> dict[str, Any] | None:
        try:
            note: dict[str, Any] = json.loads(self._note_path(file).read_text())
        except (OSError, ValueError):
            return None
        is_same = {name: note.get(name) for name in ("size", "modified")} == _signature(file)
        return note if is_same and isinstance(note.get("parts"), int) else None

    def _part_path(self, file: Path, number: int) -> Path:
        return self._folder / f"{file.name.split('.')[0]}-{number}.npz"

    def _note_path(self, file: Path) -> Path:
        return self._folder / f"{file.name.split('.')[0]}.json"


def place_of(part: Part, row: int) -> Place:
    """The line that an example came from."""
    return Place(Path("activations") / f"{part.path.stem.rpartition('-')[0]}.jsonl.gz", int(part.line[row]))


def _save(path: Path, examples: list[BulkExample]) -> None:
    known: dict[str, int] = {}
    ids = [known.setdefault(token, len(known)) for example in examples for token in example.tokens]
    lengths = [len(example.tokens) for example in examples]
    bins = [(example.bin_min, example.bin_max, example.bin_contains) for example in examples]
    with path.open("wb") as file:
        np.savez(
            file,
            tokens=np.frombuffer(json.dumps(list(known)).encode(), np.uint8),
            feature_index=np.array([example.feature_index for example in examples], np.uint32),
            line=np.array([example.place.number for example in examples], np.uint32),
            position=np.array([example.position for example in examples], np.uint16),
            bins=np.array(bins, np.float64).reshape(-1, 3),
            start=np.cumsum([0, *lengths]).astype(np.int64),
            token=np.array(ids, np.uint32),
            value=np.array([value for example in examples for value in example.values], np.float32),
        )


def _replace(path: Path, write: Any) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _signature(file: Path) -> dict[str, int]:
    status = file.stat()
    return {"size": status.st_size, "modified": status.st_mtime_ns}
