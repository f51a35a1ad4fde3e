"""Neuronpedia's bulk files -> an SAE without weights, its index and its labels. Needs no model and loads none.

1. Check every line once, and keep the examples as packed numbers (`spool`); this is what goes on after Ctrl-C.
2. Number the distinct token strings, which become the vocabulary, and the distinct contexts (16 bytes an example).
3. Hand over contexts, features and examples as records, a file at a time.

Tokens and values are as they are in the files, values in half precision as all that the store keeps. What the files do
not have is computed from what they have, and only that: the mean activation and the mean square from the histogram, L0
as the sum of the densities, the number of tokens as firings ÷ density.
"""

import hashlib
import re
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from sae_core.bands import N_BANDS
from sae_core.dashboards import NEURONPEDIA
from sae_core.dashboards.gathered import Gathered
from sae_core.dashboards.neuronpedia_files import (
    BulkFeature,
    explanations,
    features,
)
from sae_core.dashboards.packing import (
    are_octaves_of,
    band_of,
    packed_histogram,
    packed_pairs,
    row_of,
)
from sae_core.dashboards.spool import place_of
from sae_core.errors import CorpusError
from sae_core.progress import StopRequest
from sae_core.records import (
    TOP_BAND,
    Context,
    CorpusInfo,
    IndexInfo,
    IndexMetrics,
    IndexRecords,
    Label,
    ModelInfo,
    PackedExamples,
    PackedFeature,
    SAEInfo,
    Vocabulary,
)

DENSE_THRESHOLD = 0.1
MOST_EXAMPLES = 65_535  # of one feature


class Dashboard:
    """Bulk files, read and checked: what the store is given."""

    def __init__(self, folder: Path, *, home: Path, slug: str | None = None) -> None:
        """Reads features/; raises CorpusError for what cannot be used."""
        self._read = Gathered(folder, home=home, slug=slug)

    @property
    def slug(self) -> str:
        return self._read.slug

    @property
    def n_contexts(self) -> int:
        return self._read.n_contexts

    def gather(self, stop: StopRequest) -> bool:
        """Steps 1 and 2; False if it was asked to stop, then the same again goes on."""
        return self._read.gather(stop)

    def finish(self) -> None:
        """Away with what was kept to go on; call it when the store has everything."""
        self._read.finish()

    @property
    def n_features(self) -> int:
        return len(self._read.seen.maxima)

    # What the store is given

    def sae(self, *, created_at: datetime | None = None) -> SAEInfo:
        """The SAE, without weights."""
        seen = self._read.seen
        assert seen.source is not None
        hook_name = seen.hook_name or seen.source[1]
        numbers = re.findall(r"\d+", hook_name) or ["0"]
        declared = self._read.facts.get("saelensConfig")
        config: dict[str, object] = {
            "format": NEURONPEDIA,
            "imported_from": str(self._read.folder),
            "source": seen.source[1],
        }
        config |= {"saelens": declared} if isinstance(declared, dict) else {}
        return SAEInfo(
            slug=self._read.slug,
            model=ModelInfo(
                model_name=seen.source[0],
                revision=f"{NEURONPEDIA} {self._read.fingerprint()[:16]}",
                architecture="not here",
                n_layers=0,
                d_model=seen.d_in,
            ),
            hook_name=hook_name,
            layer=int(numbers[0]),
            architecture=str(declared.get("architecture", "unknown")) if isinstance(declared, dict) else "unknown",
            d_in=seen.d_in,
            d_sae=max(seen.maxima) + 1,
            k=None,
            n_training_tokens=0,
            weights_path="",
            created_at=created_at or datetime.now(UTC),
            config=config,
        )

    def vocabulary(self) -> Vocabulary:
        """Every token string of the files."""
        return Vocabulary(tokens=tuple(token.encode() for token in self._read.seen.tokens), special_ids=frozenset())

    def records(self) -> IndexRecords:
        """The index: contexts, features and examples, made while they are consumed."""
        return IndexRecords(
            info=self._info(), contexts=self._contexts(), features=self._features(), examples=self._examples()
        )

    def labels(self) -> tuple[list[tuple[int, Label]], int]:
        """The newest explanation of each kind of each feature, and how many others there are."""
        newest: dict[tuple[int, str], Label] = {}
        n_others = 0
        for file in self._read.files["explanations"]:
            for line in explanations(file):
                self._read.check_source(line.source, line.place)
                if line.feature_index not in self._read.seen.maxima or not line.description.strip():
                    continue
                label = Label(
                    text=line.description, kind=line.kind, author=line.author, score=None, created_at=line.created_at
                )
                old = newest.get((line.feature_index, label.kind))
                n_others += old is not None
                if old is None or label.created_at > old.created_at:
                    newest[line.feature_index, label.kind] = label
        return [(feature_index, label) for (feature_index, _), label in newest.items()], n_others

    # Records

    def _info(self) -> IndexInfo:
        seen = self._read.seen
        densities = np.array(list(seen.densities.values()))
        dataset = self._read.facts.get("dataset")
        digest = hashlib.sha256(f"{self._read.fingerprint()} {self._read.n_contexts} {seen.n_tokens}".encode())
        return IndexInfo(
            slug=self._read.slug,
            corpus=CorpusInfo(
                name=NEURONPEDIA,
                fingerprint=digest.hexdigest(),
                sources=(str(dataset) if isinstance(dataset, str) and dataset else str(self._read.folder),),
                context_size=max(self._read.longest, 1),
                prepend_bos=False,  # tokens are shown as they are
                n_documents=0,
                n_contexts=self._read.n_contexts,
                n_tokens=seen.n_tokens,
            ),
            metrics=IndexMetrics(
                l0=float(densities.sum()),
                fvu=float("nan"),
                explained_variance=float("nan"),
                ce_recovered=None,
                dead_share=float((densities == 0).mean()),
                dense_share=float((densities > DENSE_THRESHOLD).mean()),
                dense_threshold=DENSE_THRESHOLD,
            ),
            dtype="as published",
            seed=0,
            seconds=time.monotonic() - self._read.started,
            created_at=datetime.now(UTC),
        )

    def _contexts(self) -> Iterator[Context]:
        for part in self._read.spool.parts(self._read.files["activations"]):
            ids, numbers = self._read.token_ids[part.path], self._read.context_ids[part.path]
            for row in np.flatnonzero(self._read.is_first[part.path]).tolist():
                token_ids = ids[part.token[part.start[row] : part.start[row + 1]]]
                yield Context(
                    context_id=int(numbers[row]),
                    source=place_of(part, row),
                    token_ids=token_ids.astype("<u4").tobytes(),
                )

    def _features(self) -> Iterator[PackedFeature]:
        for file in self._read.files["features"]:
            for feature in features(file):
                yield self._packed_feature(feature)

    def _packed_feature(self, feature: BulkFeature) -> PackedFeature:
        seen = self._read.seen
        number, density = feature.feature_index, seen.densities[feature.feature_index]
        most = self._maximum(number)
        heights, values = np.array(feature.bar_heights, float), np.array(feature.bar_values)
        total = float(heights.sum())
        are_octaves, shares = self._bands(number, most)
        mean_square = float((heights * values**2).sum()) / total if total else 0.0
        return PackedFeature(
            feature_index=number,
            density=density,
            n_active=int(total) or round(density * seen.n_tokens),
            max_activation=most,
            mean_activation=float((heights * values).sum()) / total if total else 0.0,
            encoder_decoder_cosine=float("nan"),
            mean_square=mean_square if are_octaves else None,  # which says that the bands are octaves
            encoder_norm=None,
            decoder_norm=None,
            histogram=packed_histogram(feature.bar_values, feature.bar_heights, most),
            band_shares=struct.pack(f"<{len(shares)}d", *shares),
            promoted_tokens=packed_pairs((seen.tokens[token], weight) for token, weight in feature.promoted),
            suppressed_tokens=packed_pairs((seen.tokens[token], weight) for token, weight in feature.suppressed),
            nearest=packed_pairs(pair for pair in feature.nearest if pair[0] in seen.maxima and pair[0] != number),
            profile=b"",
            sampled_tokens=b"",
            promoted_share=None,
            coactive=b"",
            label=None,
        )

    def _maximum(self, feature_index: int) -> float:
        """As the files say; of a feature whose maximum they do not say, that of its examples."""
        most = self._read.seen.maxima[feature_index]
        if most <= 0:
            for part, first, last in self._read.rows(feature_index):
                most = max(most, float(part.value[part.start[first] : part.start[last]].max(initial=0)))
        return most

    def _bands(self, feature_index: int, most: float) -> tuple[bool, list[float]]:
        """Whether the intervals of a feature's examples are octaves, and the share of its firings in each band."""
        intervals: dict[tuple[float, float], float] = {}
        for part, first, last in self._read.rows(feature_index):
            for low, high, contains in part.bins[first:last].tolist():
                if 0 <= contains < 1:
                    intervals[low, high] = contains
        are_octaves = are_octaves_of(list(intervals), most)
        shares = [0.0] * N_BANDS
        for (low, high), contains in intervals.items():
            shares[band_of(low, high, most, are_octaves=are_octaves) - 1] += contains
        return are_octaves, shares if intervals else []

    def _examples(self) -> Iterator[PackedExamples]:
        for feature_index in sorted(self._read.places):
            most = self._maximum(feature_index)
            are_octaves, _ = self._bands(feature_index, most)
            rows = [
                row_of(part, row, int(self._read.context_ids[part.path][row]), most, are_octaves=are_octaves)
                for part, first, last in self._read.rows(feature_index)
                for row in range(first, last)
            ]
            if len(rows) > MOST_EXAMPLES:
                raise CorpusError(f"Feature {feature_index} has {len(rows):,} examples; at most {MOST_EXAMPLES:,} fit.")
            rows.sort(key=lambda row: (row.band, -row.activation if row.band == TOP_BAND else 0))
            yield PackedExamples(
                feature_index=feature_index,
                bands=bytes(row.band for row in rows),
                context_ids=np.array([row.context_id for row in rows], "<u4").tobytes(),
                positions=np.array([row.position for row in rows], "<u2").tobytes(),
                activations=np.array([row.activation for row in rows], "<f4").tobytes(),
                copies=np.zeros(len(rows), "<u4").tobytes(),
                lengths=np.array([len(row.positions) for row in rows], "<u2").tobytes(),
                active_positions=b"".join(row.positions.astype("<u2").tobytes() for row in rows),
                active_values=b"".join(row.values.astype("<f2").tobytes() for row in rows),
            )
