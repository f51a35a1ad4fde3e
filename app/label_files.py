"""Labels as files that people exchange: JSON lines for programs, CSV for spreadsheets; the same columns in both.

    feature_index, kind (human or automatic), label, author, score, created_at

Only feature_index and label must be there: a label without a kind is a person's, and one without a date yields to any
that is here. How labels are merged says `sae_core.store_labels`.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.feature_files import FORMULA_STARTS
from sae_core.errors import InputError
from sae_core.records import Label
from sae_core.store_labels import UNDATED
from sae_core.store_rows import LABEL_KINDS

COLUMNS = ("feature_index", "kind", "label", "author", "score", "created_at")
SUFFIXES = (".jsonl", ".csv")
MOST_LINE = 1 << 20


def write_labels(labels: Iterable[tuple[int, Label]], path: Path) -> int:
    """Writes them in the form that the file's name says; returns how many."""
    n = 0
    with path.open("w", encoding="utf-8-sig" if _suffix(path) == ".csv" else "utf-8", newline="") as file:
        table = csv.writer(file) if _suffix(path) == ".csv" else None
        if table:
            table.writerow(COLUMNS)
        for feature_index, label in labels:
            row = _row(feature_index, label)
            if table:
                table.writerow(["" if value is None else _escaped(value) for value in row.values()])
            else:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            n += 1
    return n


def read_labels(path: Path) -> Iterator[tuple[int, Label]]:
    """The labels of a file. Raises InputError, naming the line, for one that cannot be used."""
    rows = _csv_rows(path) if _suffix(path) == ".csv" else _json_rows(path)
    try:
        for number, row in rows:
            yield _label(row, f"{path} line {number}")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file that can be read ({error}); save it again.") from error


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is neither .jsonl nor .csv; give the file a name that says which it is.")
    return path.suffix.lower()


def _row(feature_index: int, label: Label) -> dict[str, object]:
    return {
        "feature_index": feature_index,
        "kind": label.kind,
        "label": label.text,
        "author": label.author,
        "score": label.score,
        "created_at": None if label.created_at == UNDATED else label.created_at.isoformat(),
    }


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := file.readline(MOST_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number} is not JSON; every line must be one JSON object.") from error
            if not isinstance(row, dict):
                raise InputError(f"{path} line {number} is no JSON object; every line must be one.")
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        missing = [name for name in ("feature_index", "label") if name not in (table.fieldnames or ())]
        if missing:
            raise InputError(f"{path} has no column {missing[0]}; its first line must name {', '.join(COLUMNS)}.")
        for row in table:
            texts = {name: value for name, value in row.items() if isinstance(name, str)}
            yield table.line_num, {name: _unescaped(value) if value else None for name, value in texts.items()}


def _label(row: Mapping[str, Any], place: str) -> tuple[int, Label]:
    text, kind, author = row.get("label"), row.get("kind") or "human", row.get("author") or ""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place} has no label; write what the feature means, or remove the line.")
    if kind not in LABEL_KINDS:
        raise InputError(f"{place} has the kind {str(kind)[:40]!r}; it must be human or automatic.")
    if not isinstance(author, str):
        raise InputError(f"{place} has an author that is no text; mend the line.")
    return _feature_index(row.get("feature_index"), place), Label(
        text=text,
        kind=kind,
        author=author,
        score=_score(row.get("score"), place),
        created_at=_moment(row.get("created_at"), place),
    )


def _feature_index(value: object, place: str) -> int:
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise InputError(f"{place} has the feature_index {str(value)[:40]!r}; it must be a feature's number.")
    return int(text)


def _score(value: object, place: str) -> float | None:
    if value is None:
        return None
    try:
        score = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{place} has the score {str(value)[:40]!r}; it must be a number, or nothing.")
    return score


def _moment(value: object, place: str) -> datetime:
    if value is None:
        return UNDATED
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError as error:
        raise InputError(
            f"{place} has the created_at {str(value)[:40]!r}; write it as 2026-03-04T05:06:07+00:00, or leave it out."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _escaped(value: object) -> object:
    """No spreadsheet takes it for a formula, and `_unescaped` gives it back as it was."""
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(FORMULA_STARTS) else value


def _unescaped(text: str) -> str:
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(FORMULA_STARTS) else text
