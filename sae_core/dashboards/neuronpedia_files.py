"""Neuronpedia's bulk files, read line by line and checked: gzipped JSON, a row of its database on every line.

    features/batch-N.jsonl.gz       statistics, histogram, promoted and suppressed tokens of a feature
    activations/batch-N.jsonl.gz    an example: tokens as strings, a value for each, the interval it was drawn from
    explanations/batch-N.jsonl.gz   what people and models say that a feature means (also explanations-NAME/)
    source.jsonl, model.jsonl       optional: the corpus and the SAE that they were made with

Files are read in the order of their numbers. No line is held longer than until the next one is read.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_core.config import LONGEST_CONTEXT
from sae_core.errors import CorpusError
from sae_core.labels import AUTHOR

MOST_LINE_BYTES = 64 << 20
_MOST_INDEX = 2**31 - 1
_BATCH = re.compile(r"batch-(\d+)\.jsonl(?:\.gz)?")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line stands, for what is said of it."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name} line {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkFeature:
    """A line of features/."""

    place: Place
    source: tuple[str, str]  # modelId and layer (as "6-res-jb"), the same on all lines
    feature_index: int
    density: float | None
    max_activation: float | None
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    nearest: tuple[tuple[int, float], ...]
    bar_values: tuple[float, ...]  # of the histogram: the middle of each bin
    bar_heights: tuple[int, ...]
    hook_name: str | None
    d_in: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkExample:
    """A line of activations/. `bin_contains` is below 0 for a top example."""

    place: Place
    source: tuple[str, str]
    feature_index: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    position: int  # of the token that it was chosen for
    bin_min: float
    bin_max: float
    bin_contains: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkExplanation:
    """A line of explanations/."""

    place: Place
    source: tuple[str, str]
    feature_index: int
    description: str
    author: str
    kind: str  # of the label that it becomes
    created_at: datetime


def batches(folder: Path, kind: str) -> list[Path]:
    """The files of a kind in the order of their numbers; of explanations those of all subfolders of that name."""
    folders = sorted(path for path in folder.glob(f"{kind}*") if path.is_dir()) if folder.is_dir() else []
    if kind != "explanations":
        folders = [path for path in folders if path.name == kind]
    found = [(int(m[1]), path) for own in folders for path in own.iterdir() if (m := _BATCH.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def is_bulk_folder(path: Path) -> bool:
    """Whether these are Neuronpedia's bulk files: features in batches."""
    return path.is_dir() and bool(batches(path, "features"))


def facts(folder: Path) -> dict[str, Any]:
    """What source.jsonl says of the whole; empty without it."""
    path = folder / "source.jsonl"
    if not path.is_file():
        return {}
    return next((dict(row) for _, row in rows(path)), {})


def features(path: Path) -> Iterator[BulkFeature]:
    """The features of one file. Raises CorpusError, naming the line, for one that is not as it should be."""
    for place, row in rows(path):
        read = _Reader(place, row)
        values, heights = read.numbers("freq_hist_data_bar_values"), read.numbers("freq_hist_data_bar_heights")
        if len(values) != len(heights) or any(height < 0 for height in heights):
            raise read.wrong("freq_hist_data_bar_values and freq_hist_data_bar_heights do not belong together")
        vector = row.get("vector")
        yield BulkFeature(
            place=place,
            source=read.source(),
            feature_index=read.index(),
            density=read.share("frac_nonzero"),
            max_activation=read.number("maxActApprox"),
            promoted=read.pairs("pos_str", "pos_values"),
            suppressed=read.pairs("neg_str", "neg_values"),
            nearest=read.neighbours("topkCosSimIndices", "topkCosSimValues"),
            bar_values=values,
            bar_heights=tuple(int(height) for height in heights),
            hook_name=str(row["hookName"]) if row.get("hookName") else None,
            d_in=len(vector) if isinstance(vector, list) else 0,
        )


def examples(path: Path) -> Iterator[BulkExample]:
    """The examples of one file, as `features` has them."""
    for place, row in rows(path):
        read = _Reader(place, row)
        tokens, values = row.get("tokens"), read.numbers("values")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise read.wrong("tokens is no list of strings")
        if len(tokens) != len(values):
            raise read.wrong(f"{len(tokens)} tokens have {len(values)} values")
        if len(tokens) > LONGEST_CONTEXT:
            raise read.wrong(f"it has {len(tokens):,} tokens, and an example has room for {LONGEST_CONTEXT:,}")
        position = row.get("qualifyingTokenIndex")
        if not isinstance(position, int) or not 0 <= position < len(values):
            position = values.index(max(values))
        yield BulkExample(
            place=place,
            source=read.source(),
            feature_index=read.index(),
            tokens=tuple(map(_whole, tokens)),
            values=values,
            position=position,
            bin_min=read.number("binMin") or 0.0,
            bin_max=read.number("binMax") or 0.0,
            bin_contains=-1.0 if (contains := read.number("binContains")) is None else contains,
        )


def explanations(path: Path) -> Iterator[BulkExplanation]:
    """The explanations of one file, as `features` has them."""
    for place, row in rows(path):
        read = _Reader(place, row)
        description = row.get("description")
        if not isinstance(description, str):
            raise read.wrong("description is no text")
        by = [row.get(name) for name in ("explanationModelName", "typeName", "authorId")]
        kind = _kind(*by[:2])
        named = [_whole(value) for value in by if isinstance(value, str) and value]
        yield BulkExplanation(
            place=place,
            source=read.source(),
            feature_index=read.index(),
            description=_whole(description),
            author=AUTHOR if kind == PATTERN else named[0] if named else NOBODY,
            kind=kind,
            created_at=_moment(row.get("createdAt")),
        )


def _kind(model: Any, method: Any) -> str:
    """A language model's if one is named, else of the method that is named, else a person's."""
    if model:
        return "model"
    if method:
        return PATTERN if method == PATTERN else "automatic"
    return "human"


PATTERN = "pattern"  # as what kind of method such labels are written
NOBODY = "neuronpedia"  # who said so where the files do not say


def rows(path: Path) -> Iterator[tuple[Place, Row]]:
    """The lines of a file as JSON objects. Raises CorpusError if it is damaged or holds something else."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MOST_LINE_BYTES):
                number += 1
                place = Place(path, number)
                if len(line) == MOST_LINE_BYTES:
                    raise CorpusError(f"{place} is longer than {MOST_LINE_BYTES >> 20} MB; this is no bulk file.")
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise CorpusError(f"{place} is not JSON; fetch the file again.") from error
                if not isinstance(row, dict):
                    raise CorpusError(f"{place} is no JSON object; every line must be one.")
                yield place, row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(
            f"{path.parent.name}/{path.name} is cut short or damaged after line {number}; fetch it again."
        ) from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}.") from error


class _Reader:
    """One line's values, each in the type it should have."""

    def __init__(self, place: Place, row: Row) -> None:
        self._place, self._row = place, row

    def wrong(self, what: str) -> CorpusError:
        return CorpusError(f"{self._place} cannot be used: {what}; fetch the file again, or leave it out.")

    def source(self) -> tuple[str, str]:
        names = self._row.get("modelId"), self._row.get("layer")
        if not all(isinstance(name, str) and name for name in names):
            raise self.wrong("it names no modelId and layer")
        return str(names[0]), str(names[1])

    def index(self) -> int:
        value = self._row.get("index")
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if not text.isascii() or not text.isdigit() or int(text) > _MOST_INDEX:
            raise self.wrong(f"its index is {str(value)[:40]!r}, not a feature's number")
        return int(text)

    def number(self, name: str) -> float | None:
        value = self._row.get(name)
        if value is None:
            return None
        if not _is_number(value):
            raise self.wrong(f"{name} is {str(value)[:40]!r}, not a number")
        return float(value)

    def share(self, name: str) -> float | None:
        value = self.number(name)
        if value is not None and not 0 <= value <= 1:
            raise self.wrong(f"{name} is {value}, not a share between 0 and 1")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self._row.get(name) or []
        if not isinstance(values, list):
            raise self.wrong(f"{name} is no list")
        if set(map(type, values)) <= {int, float} and _is_finite(values):  # most lines; a sum is made at once
            return tuple(map(float, values))
        for value in values:
            if not _is_number(value):
                raise self.wrong(f"{name} holds {str(value)[:40]!r}, which is no number")
        return tuple(map(float, values))

    def pairs(self, names: str, weights: str) -> tuple[tuple[str, float], ...]:
        tokens, values = self._row.get(names) or [], self.numbers(weights)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise self.wrong(f"{names} is no list of strings")
        if len(tokens) != len(values):
            raise self.wrong(f"{names} and {weights} are not equally long")
        return tuple(zip(map(_whole, tokens), values, strict=True))

    def neighbours(self, indices: str, cosines: str) -> tuple[tuple[int, float], ...]:
        numbers, values = self.numbers(indices), self.numbers(cosines)
        if len(numbers) != len(values) or any(n != int(n) or not 0 <= n <= _MOST_INDEX for n in numbers):
            raise self.wrong(f"{indices} and {cosines} do not belong together")
        return tuple((int(number), cosine) for number, cosine in zip(numbers, values, strict=True))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return _is_finite([value])


def _is_finite(values: list[float]) -> bool:
    try:
        return math.isfinite(sum(values))
    except OverflowError:  # an integer that no float holds
        return False


@lru_cache(maxsize=1 << 16)
def _whole(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _moment(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return datetime.fromtimestamp(0, tz=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
