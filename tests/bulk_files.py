"""Neuronpedia's bulk files as its own tools write them, small and made by hand."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OWN = {"modelId": "gpt2-small", "layer": "6-res-jb"}
TOKENS = ["<|endoftext|>", "The", " king", "'s", " 海", "\n", " wife"]
N_TOKENS = 2000  # firings ÷ density of every feature


def feature_row(index: int, /, **changes: Any) -> Row:
    """A feature that is active on 100 of 2,000 tokens, with ten bins from 0 to 5."""
    row = OWN | {
        "index": str(index),
        "maxActApprox": 5.0,
        "frac_nonzero": 0.05,
        "pos_str": [" wife", "海"],
        "pos_values": [1.5, 0.25],
        "neg_str": [" sea"],
        "neg_values": [-0.75],
        "topkCosSimIndices": [index, index + 1],
        "topkCosSimValues": [1.0, 0.5],
        "freq_hist_data_bar_values": [0.25 + 0.5 * i for i in range(10)],
        "freq_hist_data_bar_heights": [40, 20, 10, 8, 7, 5, 4, 3, 2, 1],
        "hookName": "blocks.6.hook_resid_pre",
        "vector": [0.0, 1.0, 0.0],
    }
    return row | changes


def dead_row(index: int) -> Row:
    bars = {"freq_hist_data_bar_values": [], "freq_hist_data_bar_heights": []}
    return feature_row(index, maxActApprox=0, frac_nonzero=0, **bars)


def example_row(index: int, /, *, peak: float, band: tuple[float, float, float] = (-1, -1, -1), **changes: Any) -> Row:
    """An example that peaks on " king"."""
    values = [0, 0, peak, peak / 4, 0, 0, peak / 2]
    row = OWN | {
        "id": f"{index}-{peak}",
        "index": str(index),
        "tokens": TOKENS,
        "values": values,
        "maxValue": peak,
        "maxValueTokenIndex": 2,
        "minValue": 0,
        "binMin": band[0],
        "binMax": band[1],
        "binContains": band[2],
        "qualifyingTokenIndex": 2,
        "dfaValues": [],
    }
    return row | changes


def explanation_row(index: int, text: str, /, **changes: Any) -> Row:
    row = OWN | {
        "id": f"e{index}",
        "index": str(index),
        "description": text,
        "authorId": "someone",
        "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini",
        "createdAt": "2024-06-01T10:00:00.000Z",
    }
    return row | changes


def write_batch(folder: Path, kind: str, number: int, rows: Iterable[Row | str]) -> Path:
    """Rows as they are, or lines that are no rows."""
    path = folder / kind / f"batch-{number}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return path


def write_bulk_files(folder: Path) -> Path:
    """Twelve features in batches numbered 2 and 10; 3 and 11 are dead; explanations of some."""
    for number, indexes in ((2, range(6)), (10, range(6, 12))):
        alive = [index for index in indexes if index not in (3, 11)]
        write_batch(folder, "features", number, [feature_row(i) if i in alive else dead_row(i) for i in indexes])
        examples: list[Row] = []
        for i in alive:
            examples += [example_row(i, peak=5.0 - rank) for rank in range(3)]
            examples += [example_row(i, peak=0.5 + band, band=(band, band + 1, 0.3)) for band in range(5)]
        write_batch(folder, "activations", number, examples)
    write_batch(
        folder,
        "explanations",
        0,
        [
            explanation_row(0, "an older one", createdAt="2024-01-01T00:00:00.000Z"),
            explanation_row(0, "royal persons"),
            explanation_row(1, "said by 人", explanationModelName=None, typeName=None, authorId="ana"),
        ],
    )
    return folder
