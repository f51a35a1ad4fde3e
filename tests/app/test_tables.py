import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from app import tables
from app.tables import EXAMPLES, FEATURES, export_tables
from sae_core.errors import NotFoundError
from sae_core.records import RANDOM_BAND, TOP_BAND
from sae_core.store import Store
from tests.factories import N_FEATURES


def read(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    """A table's rows in Python's own types."""
    if kind == "parquet":
        rows: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
        return rows
    types: dict[str, Callable[[str], Any]] = {"int64": int, "double": float, "string": str}
    columns = FEATURES if name == "features" else EXAMPLES
    with (folder / f"{name}.csv").open(encoding="utf-8-sig", newline="") as file:
        return [
            {key: None if cell == "" else types.get(columns[key], json.loads)(cell) for key, cell in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_tables_say_what_the_store_says(
    kind: str, demo_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "AT_A_TIME", 70)

    assert export_tables(demo_store, "demo", tmp_path / "out", kind=kind, corpus="stories") == N_FEATURES

    features, examples = (read(tmp_path / "out", name, kind) for name in ("features", "examples"))
    assert list(features[0]) == list(FEATURES) and list(examples[0]) == list(EXAMPLES)
    assert [row["feature_index"] for row in features] == list(range(N_FEATURES))
    n_compared = 0
    for row in features[::29]:
        detail = demo_store.feature("demo", row["feature_index"], corpus="stories")
        feature, label = detail.feature, detail.feature.label
        assert row["label"] == (label.text if label else None) and row["density"] == pytest.approx(feature.density)
        assert (row["label_score"] is None) == (label is None or label.score is None)
        for name in ("n_active", "max_activation", "mean_square", "encoder_norm"):
            assert row[name] == pytest.approx(getattr(feature, name))
        assert row["promoted_tokens"] == [weight.token for weight in feature.promoted_tokens]
        assert row["histogram_counts"] == list(feature.histogram.counts)
        assert row["nearest"] == [near.feature_index for near in feature.nearest]
        own = [example for example in examples if example["feature_index"] == row["feature_index"]]
        assert len(own) == len(detail.examples)
        for found, example in zip(own, detail.examples, strict=True):
            names = {TOP_BAND: "top", RANDOM_BAND: "random"}
            assert found["band"] == names.get(example.band, str(example.band))
            assert found["tokens"] == list(example.tokens) and found["token_ids"] == list(example.token_ids)
            assert found["activations"] == pytest.approx(example.activations)
            assert (found["rank"], found["position"]) == (example.rank, example.position)
            n_compared += 1
    assert n_compared > 50


def test_what_is_not_a_number_is_empty(tmp_path: Path) -> None:
    assert tables._cell(math.nan) == "" and tables._cell(None) == "" and tables._cell("=1") == "'=1"


def test_an_unknown_sae_leaves_nothing_behind(demo_store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        export_tables(demo_store, "nobody", tmp_path / "out", kind="csv")

    assert list(tmp_path.iterdir()) == []
