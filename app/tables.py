"""Features and examples of an index as tables, a folder with both: CSV for spreadsheets, Parquet for data frames.

    features    a row for each feature
    examples    a row for each example, by feature, band and rank

In CSV lists are JSON, and text that a spreadsheet would take for a formula has an apostrophe before it. Both are
written some hundred features at a time.
"""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from app.feature_files import harmless
from sae_core.dashboards.reading import each_feature
from sae_core.disk import new_folder
from sae_core.records import RANDOM_BAND, TOP_BAND, FeatureDetail
from sae_core.store import Store

KINDS = ("csv", "parquet")
AT_A_TIME = 200  # features
FEATURES = {
    "feature_index": "int64", "label": "string", "label_kind": "string", "label_author": "string",
    "label_score": "double", "density": "double", "n_active": "int64", "max_activation": "double",
    "mean_activation": "double", "mean_square": "double", "encoder_decoder_cosine": "double", "encoder_norm": "double",
    "decoder_norm": "double", "histogram_edges": "list<double>", "histogram_counts": "list<int64>",
    "band_edges": "list<double>", "band_shares": "list<double>", "promoted_tokens": "list<string>",
    "promoted_weights": "list<double>", "suppressed_tokens": "list<string>", "suppressed_weights": "list<double>",
    "nearest": "list<int64>", "nearest_cosines": "list<double>",
}  # fmt: skip
EXAMPLES = {
    "feature_index": "int64", "band": "string", "rank": "int64", "activation": "double", "position": "int64",
    "copies": "int64", "context_id": "int64", "source": "string", "token_ids": "list<int64>",
    "tokens": "list<string>", "activations": "list<double>",
}  # fmt: skip
Row = dict[str, Any]
Write = Callable[[list[Row]], None]


def export_tables(store: Store, slug: str, folder: Path, *, kind: str, corpus: str | None = None) -> int:
    """Writes both tables into a new folder; returns how many features. Raises NotFoundError and ConfigError."""
    index = store.index(slug, corpus=corpus)
    table = _csv_table if kind == "csv" else _parquet_table
    n_features = 0
    with new_folder(folder) as new, ExitStack() as stack:
        write_features = stack.enter_context(table(new / f"features.{kind}", FEATURES))
        write_examples = stack.enter_context(table(new / f"examples.{kind}", EXAMPLES))
        details = each_feature(store, index)
        while some := list(islice(details, AT_A_TIME)):
            write_features([_feature_row(detail) for detail in some])
            write_examples([row for detail in some for row in _example_rows(detail)])
            n_features += len(some)
        stack.close()  # before the folder takes its place
    return n_features


def _feature_row(detail: FeatureDetail) -> Row:
    feature, label = detail.feature, detail.feature.label
    return {
        "feature_index": feature.feature_index,
        "label": label.text if label else None,
        "label_kind": label.kind if label else None,
        "label_author": label.author if label else None,
        "label_score": label.score if label else None,
        "density": feature.density,
        "n_active": feature.n_active,
        "max_activation": feature.max_activation,
        "mean_activation": feature.mean_activation,
        "mean_square": feature.mean_square,
        "encoder_decoder_cosine": feature.encoder_decoder_cosine,
        "encoder_norm": feature.encoder_norm,
        "decoder_norm": feature.decoder_norm,
        "histogram_edges": list(feature.histogram.edges),
        "histogram_counts": list(feature.histogram.counts),
        "band_edges": list(feature.band_edges),
        "band_shares": list(feature.band_shares),
        "promoted_tokens": [weight.token for weight in feature.promoted_tokens],
        "promoted_weights": [weight.weight for weight in feature.promoted_tokens],
        "suppressed_tokens": [weight.token for weight in feature.suppressed_tokens],
        "suppressed_weights": [weight.weight for weight in feature.suppressed_tokens],
        "nearest": [near.feature_index for near in feature.nearest],
        "nearest_cosines": [near.cosine for near in feature.nearest],
    }


def _example_rows(detail: FeatureDetail) -> Iterator[Row]:
    for example in detail.examples:
        yield {
            "feature_index": example.feature_index,
            "band": {TOP_BAND: "top", RANDOM_BAND: "random"}.get(example.band, str(example.band)),
            "rank": example.rank,
            "activation": example.activation,
            "position": example.position,
            "copies": example.copies or None,
            "context_id": example.context_id,
            "source": example.source,
            "token_ids": list(example.token_ids),
            "tokens": list(example.tokens),
            "activations": list(example.activations),
        }


@contextmanager
def _csv_table(path: Path, columns: dict[str, str]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        yield lambda rows: table.writerows([_cell(row[name]) for name in columns] for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value != value:
        return ""
    return "" if value is None else harmless(value)


def _parquet_table(path: Path, columns: dict[str, str]) -> AbstractContextManager[Write]:
    import pyarrow
    from pyarrow import parquet

    kinds = {"int64": pyarrow.int64(), "double": pyarrow.float64(), "string": pyarrow.string()}
    types = {
        name: pyarrow.list_(kinds[kind[5:-1]]) if kind.startswith("list<") else kinds[kind]
        for name, kind in columns.items()
    }
    schema = pyarrow.schema(list(types.items()))

    @contextmanager
    def open_table() -> Iterator[Write]:
        with parquet.ParquetWriter(path, schema, compression="zstd") as table:
            yield lambda rows: table.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

    return open_table()
