"""Measure one SAE on one corpus and keep the evidence of every feature: a single pass of the model, then records.

1. Cut the corpus into contexts (`context_file`).
2. For each batch of contexts: model to the hook, encode, accumulate metrics (`evaluate.CorpusPass`), collect every
   feature's firings (`firings`), and of a sample of tokens all features that are active on them. Each token is read
   once, and nothing is kept that grows with the text.
3. From the collectors: examples, histograms, tokens, co-active features (`evidence`).
4. From the weights alone: promoted and suppressed tokens, nearest features, norms (`directions`).
5. From all of that: a label (`labels`), and a record (`feature_records`).
6. On a sample of contexts: the whole code (`explain.sample`), and how well the model predicts with `sae_out` in place
   of its own activations (`evaluate`).

The pass leaves a checkpoint every minute (`index_folder`) and goes on from it; contexts can be shared out over
processes (`--shard`, or torchrun) whose parts are then merged into exactly what one process would have gathered.
Nothing reaches the store before everything is there.

    torchrun --nproc-per-node 4 -m sae_core.index SLUG --home … --corpus …      then: saescope index SLUG --merge …

needs no database; each process gathers its shard on a GPU of its own.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_core import evidence
from sae_core.arguments import add_index_arguments, index_config
from sae_core.collect import random_keys
from sae_core.config import IndexConfig
from sae_core.context_file import text_keys
from sae_core.corpus import corpus_name
from sae_core.digests import file_sha256
from sae_core.errors import ConfigError, SaescopeError
from sae_core.evaluate import (
    BatchCode,
    CorpusPass,
    Subject,
    context_size,
    corpus_info,
    index_metrics,
    load_subject,
    measure_predictions,
    read_contexts,
)
from sae_core.explain.sample import context_sample, sampled_contexts
from sae_core.feature_records import feature_records
from sae_core.firings import Firings
from sae_core.holding import held
from sae_core.index_folder import IndexFolder, Shard
from sae_core.progress import progress_bar
from sae_core.ranks import take_gpu
from sae_core.records import IndexInfo, IndexRecords, PackedFeature, SAEInfo
from sae_core.run_log import RunFiles, RunLog, recorded
from sae_core.sae import WEIGHTS_FILE
from sae_core.train import trained

COACTIVE_TOKENS = 65_536  # of the sample on which co-activation is counted, at most
COACTIVE_ENTRIES = 2_000_000  # and so many active features on them
# What decides what is gathered from a text.
_DECISIVE = (
    "context_size",
    "prepend_bos",
    "top_examples",
    "band_examples",
    "random_examples",
    "batch_contexts",
    "seed",
)


class Collection:
    """What a pass over the contexts `first` to `done` has gathered."""

    def __init__(self, subject: Subject, config: IndexConfig, *, n_tokens: int) -> None:
        """`n_tokens` is how many the whole corpus has, of which a sample is taken."""
        self.first = self.done = 0
        self.seconds = 0.0
        self.firings = Firings(
            subject.sae.d_sae,
            n_top=config.top_examples,
            per_band=config.band_examples,
            n_random=config.random_examples,
            seed=config.seed,
        )
        wanted = min(COACTIVE_TOKENS, COACTIVE_ENTRIES // max(subject.sae.k, 1))
        self.coactivation = evidence.Coactivation(int(2**64 * max(0.0, 1 - wanted / max(n_tokens, 1))))
        self.corpus_pass = CorpusPass(subject, batch_contexts=config.batch_contexts, take=self._take)

    def _take(self, batch: BatchCode) -> None:
        lengths = np.array([len(context.token_ids) for context in batch.contexts])
        starts = np.cumsum(lengths) - lengths
        row_contexts, positions = batch.row_contexts.numpy(), batch.row_positions.numpy()
        contexts = row_contexts + batch.first_context
        texts = text_keys(batch.contexts)[starts[row_contexts] + positions]
        self.firings.add(batch.rows, batch.features, batch.values, contexts=contexts, positions=positions, texts=texts)
        places = (contexts.astype(np.uint64) << np.uint64(16)) | positions.astype(np.uint64)
        keys = random_keys(np.uint64(self.firings.seed), places, np.uint64(self.firings.d_sae))
        self.coactivation.add(keys, batch.rows.numpy(), batch.features.numpy())

    def state(self, fingerprint: str) -> dict[str, Any]:
        density = self.corpus_pass.density
        return {
            "first": self.first,
            "done": self.done,
            "seconds": self.seconds,
            "fingerprint": fingerprint,
            "firings": self.firings.state(),
            "coactivation": self.coactivation.state(),
            "reconstruction": self.corpus_pass.reconstruction.state(),
            "density": {"counts": density.counts, "n_tokens": density.n_tokens},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.firings.restore(state["firings"])
        self.coactivation.restore(state["coactivation"])
        self.corpus_pass.reconstruction.restore(state["reconstruction"])
        density = self.corpus_pass.density
        density.counts, density.n_tokens = state["density"]["counts"], state["density"]["n_tokens"]
        self.first, self.done, self.seconds = state["first"], state["done"], state["seconds"]

    def merge(self, other: "Collection") -> None:
        """Adds what was gathered from the contexts that follow."""
        self.firings.merge(other.firings)
        self.coactivation.merge(other.coactivation)
        self.corpus_pass.reconstruction.merge(other.corpus_pass.reconstruction)
        self.corpus_pass.density.counts += other.corpus_pass.density.counts
        self.corpus_pass.density.n_tokens += other.corpus_pass.density.n_tokens
        self.done = other.done
        self.seconds += other.seconds


def build_index(
    sae_info: SAEInfo, config: IndexConfig, *, home: Path, keep: Callable[[IndexRecords], object] = lambda records: None
) -> IndexRecords | None:
    """The index of an SAE on a corpus, going on where an earlier call stopped; None if it was asked to stop.

    `keep` stores the records; the job is over when it has. Raises BusyError if another process indexes this SAE, and
    what loading the model and reading the corpus raise.
    """
    with _begun(config, None, home=home) as log:
        job = _Job(sae_info, config, home=home, shard=None)
        collection = job.gathered(log)
        if collection is None:
            return None
        records = job.records(collection)
        keep(records)
        return records


def index_shard(sae_info: SAEInfo, config: IndexConfig, shard: Shard, *, home: Path) -> bool:
    """Gathers one shard of the contexts into a file for `merge_shards`; False if it was asked to stop."""
    with _begun(config, shard, home=home) as log:
        return _Job(sae_info, config, home=home, shard=shard).gathered(log) is not None


def merge_shards(
    sae_info: SAEInfo, config: IndexConfig, *, home: Path, keep: Callable[[IndexRecords], object] = lambda records: None
) -> IndexRecords:
    """The index that one process would have made, from what all shards gathered; `keep` stores it.

    Raises ConfigError if a shard is missing, unfinished, or of another text.
    """
    with _begun(config, None, home=home):
        job = _Job(sae_info, config, home=home, shard=None)
        records = job.records(job.merged())
        keep(records)
        job.folder.remove_parts()
        return records


@contextmanager
def _begun(config: IndexConfig, shard: Shard | None, *, home: Path) -> Iterator[RunLog]:
    """Holds the SAE's folder and keeps the log of the run."""
    corpus = config.name or corpus_name(config.corpus)
    part = (shard.number, shard.count) if shard else None
    files = RunFiles.of_index(home, slug=config.slug, corpus=corpus, shard=part)
    with (
        held(home, slug=config.slug, suffix=shard.suffix if shard else ""),
        recorded([files], kind="indexing", corpus=corpus, config=asdict(config)) as log,
    ):
        yield log


class _Job:
    """An SAE, its model and a corpus, ready for a pass."""

    def __init__(self, sae_info: SAEInfo, config: IndexConfig, *, home: Path, shard: Shard | None) -> None:
        self.config = config
        self.shard = shard
        self.subject = load_subject(sae_info, config)
        settings = {name: getattr(config, name) for name in _DECISIVE}
        settings["context_size"] = context_size(sae_info, config)
        settings["prefix"] = self.subject.frame.prefix
        settings["dtype"] = self.subject.dtype
        settings["weights"] = file_sha256(Path(sae_info.weights_path) / WEIGHTS_FILE)
        settings["model"] = self.subject.model.info.revision
        self.folder = IndexFolder(
            home,
            slug=sae_info.slug,
            corpus=config.name or corpus_name(config.corpus),
            settings=settings,
            shard=shard,
        )
        self.contexts = read_contexts(self.subject, config, scratch=home)

    def gathered(self, log: RunLog) -> Collection | None:
        """The whole pass, or the shard's; None if it was asked to stop, with a checkpoint."""
        first, last = 0, len(self.contexts)
        if self.shard is not None:
            first, last = self.shard.contexts(len(self.contexts), batch_contexts=self.config.batch_contexts)
        collection = self._begun(first, last)
        if collection.done > first:
            log.note(f"goes on from context {collection.done:,} of {last:,}")
        started = saved = time.monotonic()
        before = collection.seconds

        def between(done: int) -> None:
            nonlocal saved
            collection.done = done
            collection.seconds = before + time.monotonic() - started
            if time.monotonic() - saved > self.config.checkpoint_seconds:
                self._save(collection)
                saved = time.monotonic()

        if collection.done < last or first == last:
            done = collection.corpus_pass.run(
                self.contexts, what="indexing", first=collection.done, last=last, between=between
            )
            collection.done = done
            self._save(collection)
        if collection.done >= last:
            return collection
        log.stop()
        return None

    def merged(self) -> Collection:
        """What all shards gathered, together."""
        whole: Collection | None = None
        for state in self.folder.parts():
            part = self._empty()
            expected = whole.done if whole else 0
            if state["first"] != expected or not self._is_prefix(state):
                raise ConfigError(
                    "The shards are not finished, or were made from another text; run them again with the same options."
                )
            part.restore(state)
            if whole is None:
                whole = part
            else:
                whole.merge(part)
        if whole is None or whole.done != len(self.contexts):
            raise ConfigError("The last shard is not finished; run its command again, it goes on where it stopped.")
        self._save(whole)
        return whole

    def records(self, collection: Collection) -> IndexRecords:
        """The index as it goes to the store."""
        subject, config, contexts = self.subject, self.config, self.contexts
        predictions = measure_predictions(subject, contexts, batch_contexts=config.batch_contexts)
        info = IndexInfo(
            slug=subject.info.slug,
            corpus=corpus_info(subject, config, contexts, collection.corpus_pass),
            metrics=index_metrics(subject, collection.corpus_pass, predictions, dense_threshold=config.dense_threshold),
            dtype=subject.dtype,
            seed=config.seed,
            seconds=collection.seconds,
            created_at=datetime.now(tz=UTC),
        )
        sampled = sampled_contexts(contexts, l0=info.metrics.l0)
        return IndexRecords(
            info=info,
            contexts=evidence.context_records(collection.firings, contexts, sampled=sampled),
            features=_counted(
                feature_records(
                    subject,
                    contexts,
                    firings=collection.firings,
                    coactivation=collection.coactivation,
                    n_tokens=info.corpus.n_tokens,
                    config=config,
                    created_at=info.created_at,
                ),
                total=collection.firings.d_sae,
            ),
            examples=evidence.example_records(collection.firings, contexts),
            sample=context_sample(subject, contexts, sampled, batch_contexts=config.batch_contexts),
        )

    def _empty(self) -> Collection:
        n_tokens = int(self.contexts.lengths.sum()) - self.subject.frame.n_special * len(self.contexts)
        return Collection(self.subject, self.config, n_tokens=n_tokens)

    def _begun(self, first: int, last: int) -> Collection:
        """What an earlier pass over the beginning of this text has gathered, or nothing yet."""
        collection = self._empty()
        state = self.folder.load()
        if state is not None and state["first"] == first and state["done"] <= last and self._is_prefix(state):
            collection.restore(state)
            return collection
        collection.first = collection.done = first
        if first:
            collection.corpus_pass.centre_on(self.contexts)
        return collection

    def _is_prefix(self, state: dict[str, Any]) -> bool:
        done = int(state["done"])
        return done <= len(self.contexts) and bool(state["fingerprint"] == self.contexts.fingerprint(done))

    def _save(self, collection: Collection) -> None:
        self.folder.save(collection.state(self.contexts.fingerprint(collection.done)))


def _counted(features: Iterator[PackedFeature], *, total: int) -> Iterator[PackedFeature]:
    """The same, with a progress bar for whoever stores them."""
    with progress_bar(total=total, what="storing", unit=" features") as bar:
        for feature in features:
            yield feature
            bar.update(1)


def main(argv: list[str] | None = None) -> int:
    """One shard of an index without a database: the one of --shard, or of torchrun's process. Returns an exit code."""
    parser = argparse.ArgumentParser(prog="sae_core.index", description="Gather one shard of an SAE's index.")
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="its folder `runs` has the SAE")
    add_index_arguments(parser)
    arguments = parser.parse_args(argv)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        shard = Shard.parse(arguments.shard or f"{rank + 1}/{size}")
        config = index_config(arguments)
        if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
            take_gpu()
        if not index_shard(trained(arguments.home / "runs" / config.slug), config, shard, home=arguments.home):
            return 130
    except SaescopeError as error:
        print(f"sae_core.index: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"Shard {shard.number} of {shard.count} is gathered. When all are: saescope index {config.slug} --merge …")
    return 0


if __name__ == "__main__":
    sys.exit(main())
