"""The first two steps of `neuronpedia_in`: every line checked, the examples on disk, tokens and contexts numbered."""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_core.config import check_slug
from sae_core.dashboards.neuronpedia_files import BulkExample, batches, examples, facts, features
from sae_core.dashboards.packing import context_hash
from sae_core.dashboards.spool import Part, Spool
from sae_core.errors import CorpusError
from sae_core.progress import StopRequest, progress_bar

MOST_TOKENS = 4_000_000  # distinct strings; the largest vocabularies have a quarter million
MOST_ESTIMATES = 10_001  # features from which the number of tokens is told


@dataclass(slots=True)
class Seen:
    """What is known once all lines of features/ have been read."""

    source: tuple[str, str] | None = None
    maxima: dict[int, float] = field(default_factory=dict)  # by feature index
    densities: dict[int, float] = field(default_factory=dict)
    hook_name: str | None = None
    d_in: int = 0
    n_tokens: int = 0
    tokens: dict[str, int] = field(default_factory=dict)  # every token string, numbered


class Gathered:
    """Bulk files of one SAE, by line and by number."""

    def __init__(self, folder: Path, *, home: Path, slug: str | None = None) -> None:
        """Reads features/; raises CorpusError for what cannot be used."""
        self.folder, self.started = folder, time.monotonic()
        self.files = {kind: batches(folder, kind) for kind in ("features", "activations", "explanations")}
        for kind in ("features", "activations"):
            if not self.files[kind]:
                raise CorpusError(f"{folder} has no {kind}/batch-N.jsonl.gz; fetch them, or give the folder above.")
        self.facts = facts(folder)
        self.seen = self._read_features()
        assert self.seen.source is not None
        model_name, layer = self.seen.source
        self.slug = check_slug(slug or re.sub(r"[^a-z0-9._-]+", "-", f"{model_name}-{layer}".lower()).strip("-._"))
        self._spool_folder = home / "imports" / f"{self.slug}.partly"
        self.spool = Spool(self._spool_folder)
        self.places: dict[int, list[tuple[Path, int, int]]] = {}  # of a feature: part, first and last row
        self.token_ids: dict[Path, NDArray[np.uint32]] = {}  # of a part: global ids of its tokens
        self.context_ids: dict[Path, NDArray[np.int64]] = {}
        self.is_first: dict[Path, NDArray[np.bool_]] = {}
        self.n_contexts = 0
        self.longest = 0

    def gather(self, stop: StopRequest) -> bool:
        """Steps 1 and 2; False if it was asked to stop, then the same again goes on."""
        files = self.files["activations"]
        with progress_bar(total=len(files), what="reading", unit=" files") as bar:
            for file in files:
                if stop.was_made:
                    return False
                if not self.spool.holds(file):
                    self.spool.add(file, self._checked(file))
                bar.update()
        self._number()
        return True

    def finish(self) -> None:
        """Away with what was kept to go on; call it when the store has everything."""
        shutil.rmtree(self._spool_folder, ignore_errors=True)

    def _read_features(self) -> Seen:
        seen = Seen()
        prompts, length = self.facts.get("num_prompts"), self.facts.get("num_tokens_in_prompt")
        if isinstance(prompts, int) and isinstance(length, int) and prompts > 0 and length > 0:
            seen.n_tokens = prompts * length
        estimates: list[float] = []
        for file in self.files["features"]:
            for feature in features(file):
                seen.source = seen.source or feature.source
                self.check_source(feature.source, feature.place, seen=seen)
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
            raise CorpusError(f"{self.folder}/features holds no feature; fetch the files again.")
        if estimates:  # firings ÷ density: what the numbers themselves say goes before what is declared
            seen.n_tokens = round(float(np.median(estimates)))
        return seen

    def _checked(self, file: Path) -> Iterator[BulkExample]:
        for example in examples(file):
            self.check_source(example.source, example.place)
            if example.feature_index not in self.seen.maxima:
                raise CorpusError(
                    f"{example.place} is of feature {example.feature_index}, which features/ does not have; fetch the "
                    "missing files of features."
                )
            yield example

    def check_source(self, source: tuple[str, str], place: object, *, seen: Seen | None = None) -> None:
        expected = (seen or self.seen).source
        if source != expected:
            assert expected is not None
            raise CorpusError(
                f"{place} is of {'/'.join(source)} and the lines before of {'/'.join(expected)}; import one at a time."
            )

    def _number(self) -> None:
        tokens, hashes, paths = self.seen.tokens, [], []
        for part in self.spool.parts(self.files["activations"]):
            ids = np.array([tokens.setdefault(token, len(tokens)) for token in part.tokens], np.uint32)
            if len(tokens) > MOST_TOKENS:
                raise CorpusError(
                    f"The files hold over {MOST_TOKENS:,} different tokens; these are no tokens of a model."
                )
            self.token_ids[part.path] = ids
            whole = ids[part.token]
            own = [context_hash(whole[a:b]) for a, b in pairwise(part.start.tolist())]
            hashes.append(np.array(own, "S16"))
            paths.append((part.path, len(part)))
            self.longest = max(self.longest, int(np.diff(part.start).max(initial=0)))
            self._note_places(part)
        keys = np.concatenate([np.zeros(0, "S16"), *hashes])
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        numbers = np.empty(len(first), np.int64)
        numbers[np.argsort(first)] = np.arange(len(first))  # contexts are numbered as they first come
        is_first = np.zeros(len(keys), np.bool_)
        is_first[first] = True
        self.n_contexts, start = len(first), 0
        for path, n in paths:
            self.context_ids[path] = numbers[inverse[start : start + n]]
            self.is_first[path] = is_first[start : start + n]
            start += n

    def _note_places(self, part: Part) -> None:
        order = np.flatnonzero(np.diff(part.feature_index)) + 1
        bounds = [0, *order.tolist(), len(part)]
        for first, last in pairwise(bounds):
            self.places.setdefault(int(part.feature_index[first]), []).append((part.path, first, last))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for token in self.seen.tokens:
            digest.update(token.encode() + b"\0")
        return digest.hexdigest()

    def rows(self, feature_index: int) -> Iterator[tuple[Part, int, int]]:
        for path, first, last in self.places.get(feature_index, ()):
            yield self.spool.part(path), first, last
