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
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.bands import N_BANDS
from sae_core.config import check_slug
from sae_core.dashboards import NEURONPEDIA
from sae_core.dashboards.neuronpedia_files import (
    BulkFeature,
    batches,
    examples,
    explanations,
    facts,
    features,
)
from sae_core.dashboards.packing import (
    are_octaves_of,
    band_of,
    context_hash,
    packed_histogram,
    packed_pairs,
    row_of,
)
from sae_core.dashboards.spool import Part, Spool, place_of
from sae_core.errors import CorpusError
from sae_core.progress import StopRequest, progress_bar
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
MOST_TOKENS = 4_000_000  # distinct strings; the largest vocabularies have a quarter million
MOST_EXAMPLES = 65_535  # of one feature
MOST_ESTIMATES = 10_001  # features from which the number of tokens is told


@dataclass(slots=True)
class _Seen:
    """What is known once all lines of features/ have been read."""

    source: tuple[str, str] | None = None
    maxima: dict[int, float] = field(default_factory=dict)  # by feature index
    densities: dict[int, float] = field(default_factory=dict)
    hook_name: str | None = None
    d_in: int = 0
    n_tokens: int = 0
    tokens: dict[str, int] = field(default_factory=dict)  # every token string, numbered


class Dashboard:
    """Bulk files, read and checked: what the store is given."""

    def __init__(self, folder: Path, *, home: Path, slug: str | None = None) -> None:
        """Reads features/; raises CorpusError for what cannot be used."""
        self._folder, self._started = folder, time.monotonic()
        self._files = {kind: batches(folder, kind) for kind in ("features", "activations", "explanations")}
        for kind in ("features", "activations"):
            if not self._files[kind]:
                raise CorpusError(f"{folder} has no {kind}/batch-N.jsonl.gz; fetch them, or give the folder above.")
        self._facts = facts(folder)
        self._seen = self._read_features()
        assert self._seen.source is not None
        model_name, layer = self._seen.source
        self.slug = check_slug(slug or re.sub(r"[^a-z0-9._-]+", "-", f"{model_name}-{layer}".lower()).strip("-._"))
        self._spool_folder = home / "imports" / f"{self.slug}.partly"
        self._spool = Spool(self._spool_folder)
        self._places: dict[int, list[tuple[Path, int, int]]] = {}  # of a feature: part, first and last row
        self._token_ids: dict[Path, NDArray[np.uint32]] = {}  # of a part: global ids of its tokens
        self._context_ids: dict[Path, NDArray[np.int64]] = {}
        self._is_first: dict[Path, NDArray[np.bool_]] = {}
        self.n_contexts = 0
        self._longest = 0

    def gather(self, stop: StopRequest) -> bool:
        """Steps 1 and 2; False if it was asked to stop, then the same again goes on."""
        files = self._files["activations"]
        with progress_bar(total=len(files), what="reading", unit=" files") as bar:
            for file in files:
                if stop.was_made:
                    return False
                if not self._spool.holds(file):
                    self._spool.add(file, self._checked(file))
                bar.update()
        self._number()
        return True

    def finish(self) -> None:
        """Away with what was kept to go on; call it when the store has everything."""
        shutil.rmtree(self._spool_folder, ignore_errors=True)

    @property
    def n_features(self) -> int:
        return len(self._seen.maxima)

    # What the store is given

    def sae(self, *, created_at: datetime | None = None) -> SAEInfo:
        """The SAE, without weights."""
        seen = self._seen
        assert seen.source is not None
        hook_name = seen.hook_name or seen.source[1]
        numbers = re.findall(r"\d+", hook_name) or ["0"]
        declared = self._facts.get("saelensConfig")
        config = {"format": NEURONPEDIA, "imported_from": str(self._folder), "source": seen.source[1]}
        config |= {"saelens": declared} if isinstance(declared, dict) else {}
        return SAEInfo(
            slug=self.slug,
            model=ModelInfo(
                model_name=seen.source[0],
                revision=f"{NEURONPEDIA} {self._fingerprint()[:16]}",
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
        return Vocabulary(tokens=tuple(token.encode() for token in self._seen.tokens), special_ids=frozenset())

    def records(self) -> IndexRecords:
        """The index: contexts, features and examples, made while they are consumed."""
        return IndexRecords(
            info=self._info(), contexts=self._contexts(), features=self._features(), examples=self._examples()
        )

    def labels(self) -> tuple[list[tuple[int, Label]], int]:
        """The newest explanation of each kind of each feature, and how many others there are."""
        newest: dict[tuple[int, str], Label] = {}
        n_others = 0
        for file in self._files["explanations"]:
            for line in explanations(file):
                self._check_source(line.source, line.place)
                if line.feature_index not in self._seen.maxima or not line.description.strip():
                    continue
                kind = "automatic" if line.is_automatic else "human"
                label = Label(
                    text=line.description, kind=kind, author=line.author, score=None, created_at=line.created_at
                )
                old = newest.get((line.feature_index, kind))
                n_others += old is not None
                if old is None or label.created_at > old.created_at:
                    newest[line.feature_index, kind] = label
        return [(feature_index, label) for (feature_index, _), label in newest.items()], n_others

    # Reading

    def _read_features(self) -> _Seen:
        seen = _Seen()
        prompts, length = self._facts.get("num_prompts"), self._facts.get("num_tokens_in_prompt")
        if isinstance(prompts, int) and isinstance(length, int) and prompts > 0 and length > 0:
            seen.n_tokens = prompts * length
        estimates: list[float] = []
        for file in self._files["features"]:
            for feature in features(file):
                seen.source = seen.source or feature.source
                self._check_source(feature.source, feature.place, seen=seen)
                if feature.feature_index in seen.maxima:
                    raise CorpusError(
                        f"{feature.place} is feature {feature.feature_index} once more; leave one of the two files out."
                    )
                density = feature.density
                n_active = sum(feature.bar_heights)
                if density is None and n_active and not seen.n_tokens:
                    raise CorpusError(f"{feature.place} has no frac_nonzero, so its density cannot be told.")
                density = (n_active / seen.n_tokens if n_active else 0.0) if density is None else density
                seen.densities[feature.feature_index] = min(density, 1.0)
                seen.maxima[feature.feature_index] = feature.max_activation or 0.0
                seen.hook_name = seen.hook_name or feature.hook_name
                seen.d_in = seen.d_in or feature.d_in
                if feature.density and n_active and len(estimates) < MOST_ESTIMATES:
                    estimates.append(n_active / density)
                for token, _ in (*feature.promoted, *feature.suppressed):
                    seen.tokens.setdefault(token, len(seen.tokens))
        if not seen.maxima:
            raise CorpusError(f"{self._folder}/features holds no feature; fetch the files again.")
        if estimates:  # firings ÷ density: what the numbers themselves say goes before what is declared
            seen.n_tokens = round(float(np.median(estimates)))
        return seen

    def _checked(self, file: Path) -> Iterator[Any]:
        for example in examples(file):
            self._check_source(example.source, example.place)
            if example.feature_index not in self._seen.maxima:
                raise CorpusError(
                    f"{example.place} is of feature {example.feature_index}, which features/ does not have; fetch the "
                    "missing files of features."
                )
            yield example

    def _check_source(self, source: tuple[str, str], place: object, *, seen: _Seen | None = None) -> None:
        expected = (seen or self._seen).source
        if source != expected:
            assert expected is not None
            raise CorpusError(
                f"{place} is of {'/'.join(source)} and the lines before of {'/'.join(expected)}; import one at a time."
            )

    def _number(self) -> None:
        tokens, hashes, paths = self._seen.tokens, [], []
        for part in self._spool.parts(self._files["activations"]):
            ids = np.array([tokens.setdefault(token, len(tokens)) for token in part.tokens], np.uint32)
            if len(tokens) > MOST_TOKENS:
                raise CorpusError(
                    f"The files hold over {MOST_TOKENS:,} different tokens; these are no tokens of a model."
                )
            self._token_ids[part.path] = ids
            whole = ids[part.token]
            own = [context_hash(whole[a:b]) for a, b in pairwise(part.start.tolist())]
            hashes.append(np.array(own, "S16"))
            paths.append((part.path, len(part)))
            self._longest = max(self._longest, int(np.diff(part.start).max(initial=0)))
            self._note_places(part)
        keys = np.concatenate([np.zeros(0, "S16"), *hashes])
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        numbers = np.empty(len(first), np.int64)
        numbers[np.argsort(first)] = np.arange(len(first))  # contexts are numbered as they first come
        is_first = np.zeros(len(keys), np.bool_)
        is_first[first] = True
        self.n_contexts, start = len(first), 0
        for path, n in paths:
            self._context_ids[path] = numbers[inverse[start : start + n]]
            self._is_first[path] = is_first[start : start + n]
            start += n

    def _note_places(self, part: Part) -> None:
        order = np.flatnonzero(np.diff(part.feature_index)) + 1
        bounds = [0, *order.tolist(), len(part)]
        for first, last in pairwise(bounds):
            self._places.setdefault(int(part.feature_index[first]), []).append((part.path, first, last))

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for token in self._seen.tokens:
            digest.update(token.encode() + b"\0")
        return digest.hexdigest()

    # Records

    def _info(self) -> IndexInfo:
        seen = self._seen
        densities = np.array(list(seen.densities.values()))
        dataset = self._facts.get("dataset")
        digest = hashlib.sha256(f"{self._fingerprint()} {self.n_contexts} {seen.n_tokens}".encode())
        return IndexInfo(
            slug=self.slug,
            corpus=CorpusInfo(
                name=NEURONPEDIA,
                fingerprint=digest.hexdigest(),
                sources=(str(dataset) if isinstance(dataset, str) and dataset else str(self._folder),),
                context_size=max(self._longest, 1),
                prepend_bos=False,  # tokens are shown as they are
                n_documents=0,
                n_contexts=self.n_contexts,
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
            seconds=time.monotonic() - self._started,
            created_at=datetime.now(UTC),
        )

    def _contexts(self) -> Iterator[Context]:
        for part in self._spool.parts(self._files["activations"]):
            ids, numbers = self._token_ids[part.path], self._context_ids[part.path]
            for row in np.flatnonzero(self._is_first[part.path]).tolist():
                token_ids = ids[part.token[part.start[row] : part.start[row + 1]]]
                yield Context(
                    context_id=int(numbers[row]),
                    source=str(place_of(part, row)),
                    token_ids=token_ids.astype("<u4").tobytes(),
                )

    def _features(self) -> Iterator[PackedFeature]:
        for file in self._files["features"]:
            for feature in features(file):
                yield self._packed_feature(feature)

    def _packed_feature(self, feature: BulkFeature) -> PackedFeature:
        seen = self._seen
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
        most = self._seen.maxima[feature_index]
        if most <= 0:
            for part, first, last in self._rows(feature_index):
                most = max(most, float(part.value[part.start[first] : part.start[last]].max(initial=0)))
        return most

    def _rows(self, feature_index: int) -> Iterator[tuple[Part, int, int]]:
        for path, first, last in self._places.get(feature_index, ()):
            yield self._spool.part(path), first, last

    def _bands(self, feature_index: int, most: float) -> tuple[bool, list[float]]:
        """Whether the intervals of a feature's examples are octaves, and the share of its firings in each band."""
        intervals: dict[tuple[float, float], float] = {}
        for part, first, last in self._rows(feature_index):
            for low, high, contains in part.bins[first:last].tolist():
                if 0 <= contains < 1:
                    intervals[low, high] = contains
        are_octaves = are_octaves_of(list(intervals), most)
        shares = [0.0] * N_BANDS
        for (low, high), contains in intervals.items():
            shares[band_of(low, high, most, are_octaves=are_octaves) - 1] += contains
        return are_octaves, shares if intervals else []

    def _examples(self) -> Iterator[PackedExamples]:
        for feature_index in sorted(self._places):
            most = self._maximum(feature_index)
            are_octaves, _ = self._bands(feature_index, most)
            rows = [
                row_of(part, row, int(self._context_ids[part.path][row]), most, are_octaves=are_octaves)
                for part, first, last in self._rows(feature_index)
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
