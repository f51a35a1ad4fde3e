"""A stored index -> Neuronpedia's bulk files, which `neuronpedia_in` and Neuronpedia's own importer read.

    columns by their names in its database, 1,024 features a batch, the same features in the same batch of each kind

Top examples have no interval (−1), samples of a band have its edges and its share of firings, and random firings the
whole range, which holds all of them. Values are those that are stored, in half precision; the one of the token that an
example was chosen for is exact.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from sae_core.dashboards import NEURONPEDIA
from sae_core.dashboards.neuronpedia_files import PATTERN
from sae_core.dashboards.reading import each_feature
from sae_core.disk import new_folder
from sae_core.records import RANDOM_BAND, TOP_BAND, Example, Feature, FeatureDetail, IndexInfo, Label, SAEInfo
from sae_core.store import Store

BATCH_FEATURES = 1024
NO_INTERVAL = -1.0
Row = dict[str, Any]


def export_dashboard(store: Store, slug: str, folder: Path, *, corpus: str | None = None) -> int:
    """Writes one index into a new folder; returns how many features. Raises NotFoundError and ConfigError."""
    sae, index = store.sae(slug).sae, store.index(slug, corpus=corpus)
    own = {"modelId": model_id(sae), "layer": source_id(sae)}
    n_features = 0
    with new_folder(folder) as new:
        for name, row in _facts(sae, index, own).items():
            (new / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        details = each_feature(store, index)
        for number, batch in enumerate(iter(lambda: list(islice(details, BATCH_FEATURES)), [])):
            _write_batch(new, number, batch, sae, own, corpus_name=index.corpus.name)
            n_features += len(batch)
    return n_features


def model_id(sae: SAEInfo) -> str:
    """As Neuronpedia spells models: the name without its owner, in small letters."""
    if sae.config.get("format") == NEURONPEDIA:
        return sae.model.model_name
    return re.sub(r"[^a-z0-9._-]+", "-", Path(sae.model.model_name).name.lower()).strip("-") or "model"


def source_id(sae: SAEInfo) -> str:
    """A layer and a name, as `6-res-jb`."""
    return str(sae.config["source"]) if sae.config.get("format") == NEURONPEDIA else f"{sae.layer}-{sae.slug}"


def _facts(sae: SAEInfo, index: IndexInfo, own: Row) -> dict[str, Row]:
    release = {"name": sae.slug, "description": f"{sae.slug}, from saescope"}
    corpus = index.corpus
    return {
        "release": release,
        "model": {"id": own["modelId"], "displayName": sae.model.model_name, "layers": sae.model.n_layers},
        "sourceset": {"modelId": own["modelId"], "name": sae.slug, "releaseName": release["name"]},
        "source": {
            "id": own["layer"],
            "modelId": own["modelId"],
            "setName": sae.slug,
            "dataset": ", ".join(corpus.sources),
            "num_prompts": corpus.n_contexts,
            "num_tokens_in_prompt": corpus.context_size,
        },
    }


def _write_batch(
    folder: Path, number: int, details: list[FeatureDetail], sae: SAEInfo, own: Row, *, corpus_name: str
) -> None:
    kinds = ("features", "activations", "explanations")
    with ExitStack() as stack:
        files = {}
        for kind in kinds:
            (folder / kind).mkdir(exist_ok=True)
            path = folder / kind / f"batch-{number}.jsonl.gz"
            files[kind] = stack.enter_context(gzip.open(path, "wt", encoding="utf-8", compresslevel=6))
        for detail in details:
            key = {**own, "index": str(detail.feature.feature_index)}
            rows: dict[str, Iterable[Row]] = {
                "features": [_feature_row(detail.feature, sae, key)],
                "activations": _example_rows(detail, key, corpus_name=corpus_name),
                "explanations": [_explanation_row(label, key) for label in detail.labels],
            }
            for kind, of_kind in rows.items():
                files[kind].writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in of_kind)


def _feature_row(feature: Feature, sae: SAEInfo, key: Row) -> Row:
    edges = feature.histogram.edges
    return key | {
        "hookName": sae.hook_name,
        "maxActApprox": feature.max_activation,
        "frac_nonzero": feature.density,
        "pos_str": [weight.token for weight in feature.promoted_tokens],
        "pos_values": [weight.weight for weight in feature.promoted_tokens],
        "neg_str": [weight.token for weight in feature.suppressed_tokens],
        "neg_values": [weight.weight for weight in feature.suppressed_tokens],
        "topkCosSimIndices": [near.feature_index for near in feature.nearest],
        "topkCosSimValues": [near.cosine for near in feature.nearest],
        "freq_hist_data_bar_values": [(low + high) / 2 for low, high in pairwise(edges)],
        "freq_hist_data_bar_heights": list(feature.histogram.counts),
        "hasVector": False,
        "vector": [],
    }


def _example_rows(detail: FeatureDetail, key: Row, *, corpus_name: str) -> Iterator[Row]:
    for example in detail.examples:
        values = list(example.activations)
        values[example.position] = example.activation
        low, high, contains = _interval(detail.feature, example)
        yield (
            {"id": f"{key['modelId']}/{key['layer']}/{key['index']}/{example.band}-{example.rank}"}
            | key
            | {
                "tokens": list(example.tokens),
                "values": values,
                "maxValue": max(values),
                "maxValueTokenIndex": values.index(max(values)),
                "minValue": min(values),
                "binMin": low,
                "binMax": high,
                "binContains": contains,
                "qualifyingTokenIndex": example.position,
                "dataSource": corpus_name,
            }
        )


def _interval(feature: Feature, example: Example) -> tuple[float, float, float]:
    if example.band == TOP_BAND:
        return NO_INTERVAL, NO_INTERVAL, NO_INTERVAL
    if example.band == RANDOM_BAND:
        return 0.0, feature.max_activation, 1.0
    low, high = feature.band_edges[example.band - 1 : example.band + 1]
    shares = feature.band_shares
    return low, high, min(shares[example.band - 1] if len(shares) >= example.band else 0.0, 1 - 1e-6)


def _explanation_row(label: Label, key: Row) -> Row:
    method = {"automatic": label.author, PATTERN: PATTERN}.get(label.kind)
    return (
        {"id": f"{key['modelId']}/{key['layer']}/{key['index']}/{label.kind}"}
        | key
        | {
            "description": label.text,
            "authorId": label.author if label.kind == "human" else None,
            "typeName": "saescope" if label.kind == "model" else method,
            "explanationModelName": label.author if label.kind == "model" else None,
            "createdAt": label.created_at.isoformat(),
        }
    )
