"""The folder of one training run, `runs/{slug}`: configuration, metrics, checkpoints, and the weights when it is done.

config.json                     written first; once anything is trained another one under the same name is refused
metrics.jsonl                   a line every few seconds; a run that goes on drops those behind its checkpoint
run.jsonl, progress.json        what happened and how far it is, for those who look (`run_log`)
checkpoint-{tokens}.pt          the newest two while training; with sharded features one per rank, `-rank{i}of{n}`
sae.safetensors, sae.json       when done; the checkpoints are gone then
"""

import dataclasses
import json
import math
import os
import pickle
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sae_core.activations import Place
from sae_core.config import TrainConfig
from sae_core.disk import saving
from sae_core.errors import ConfigError, WeightsError
from sae_core.fit import StepMetrics, Trainee
from sae_core.memory import is_out_of_memory
from sae_core.run_log import CONFIG_FILE, METRICS_FILE, measured
from sae_core.sae import SAE, SHAPE_FILE, WEIGHTS_FILE

_METRICS_SECONDS = 2.0
_KEPT_CHECKPOINTS = 2
# What torch and `restore` raise for a file that is cut short or holds something else.
_DAMAGE = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, OSError, pickle.PickleError,
)  # fmt: skip
# What a run may be continued with another of: none of these changes what is trained, but for rounding.
_MAY_DIFFER = ("device", "checkpoint_seconds", "cache_activations")


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path, config: TrainConfig, *, shard: tuple[int, int] | None = None) -> None:
        """Makes the folder, or checks that it is a run of this very configuration. `shard` is (rank, size).

        Raises ConfigError if something of another configuration was trained there, with what differs.
        """
        self.path = path
        self._suffix = f"-rank{shard[0]}of{shard[1]}" if shard else ""
        self._shard_count = shard[1] if shard else 1
        self._wrote_metrics_at = time.monotonic()
        with saving(path):
            path.mkdir(parents=True, exist_ok=True)
            if self._is_begun:
                _check_same(path, config)
                if self.is_done:
                    self._remove_checkpoints()  # which a run was killed before it could
                self._check_ranks()
            else:
                new = path / f"{CONFIG_FILE}.{os.getpid()}.new"  # every rank may write it
                try:
                    config.save(new)
                    new.replace(path / CONFIG_FILE)
                finally:
                    new.unlink(missing_ok=True)

    @property
    def is_done(self) -> bool:
        return (self.path / WEIGHTS_FILE).exists() and (self.path / SHAPE_FILE).exists()

    @property
    def _is_begun(self) -> bool:
        return self.is_done or any(self.path.glob("checkpoint-*.pt"))

    @property
    def metrics_are_due(self) -> bool:
        return time.monotonic() - self._wrote_metrics_at > _METRICS_SECONDS

    def write_metrics(self, metrics: StepMetrics | None) -> str:
        """Appends a line; returns it in a few words for the progress bar."""
        seconds = time.monotonic() - self._wrote_metrics_at
        self._wrote_metrics_at = time.monotonic()
        if metrics is None:
            return ""
        line = {**asdict(metrics), "seconds": seconds}
        at = round(time.time(), 3)
        with saving(self.path), (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**{name: _rounded(value) for name, value in line.items()}, "at": at}) + "\n")
        return measured(fvu=metrics.fvu, l0=metrics.l0, dead_share=metrics.dead_share)

    def save_checkpoint(self, trainee: Trainee, place: Place) -> None:
        """Writes the trainee's state, whole or not at all, and removes all but the newest checkpoints."""
        path = self.path / f"checkpoint-{trainee.n_tokens:015d}{self._suffix}.pt"
        new = path.with_suffix(".new")
        with saving(self.path):
            for abandoned in self.path.glob(f"checkpoint-*{self._suffix}.new"):  # by a run that was killed
                abandoned.unlink(missing_ok=True)
            try:
                with new.open("wb") as file:
                    torch.save({"trainee": trainee.state(), "place": asdict(place)}, file)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)
            for damaged in self.path.glob(f"checkpoint-*{self._suffix}.pt"):  # which this run could not go on from
                if damaged.name > path.name:
                    damaged.unlink(missing_ok=True)
            for _, kept in self._checkpoints()[-_KEPT_CHECKPOINTS:][:1]:
                for old in self.path.glob(f"checkpoint-*{self._suffix}.pt"):  # also those that other ranks removed
                    if old.name < kept.name:
                        old.unlink(missing_ok=True)

    def load_checkpoint(self, trainee: Trainee) -> Place | None:
        """Brings the trainee to the newest checkpoint that can be read; None if there is none.

        Raises WeightsError if there are checkpoints and none can be read.
        """
        found = self._checkpoints()
        if len(set(trainee.ranks.numbers(len(found)))) > 1:
            raise ConfigError(
                f"The processes of this job see different files in {self.path}; "
                "give all machines the same --home, on a disk that they share."
            )
        for _, path in reversed(found):
            place = _restored(trainee, path)
            if not trainee.ranks.agree(place is None):  # all ranks go on from the same one
                self._drop_metrics_behind(trainee)
                return place
        if found:
            raise WeightsError(
                f"The checkpoints in {self.path} are damaged or cannot be read; remove that folder to train from the "
                "start."
            )
        self._drop_metrics_behind(trainee)
        return None

    def save_weights(self, sae: SAE) -> None:
        """Writes the finished SAE and removes the checkpoints."""
        with saving(self.path):
            sae.save(self.path)
            self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        for pattern in ("checkpoint-*.pt", "checkpoint-*.new"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def _drop_metrics_behind(self, trainee: Trainee) -> None:
        """Removes what a killed run measured after its last checkpoint: it will be measured again."""
        path = self.path / METRICS_FILE
        if not trainee.ranks.is_first or not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _tokens_of(line) <= trainee.n_tokens]
        if len(kept) < len(lines):
            new = path.with_suffix(".new")
            with saving(self.path):
                try:
                    new.write_text("".join(kept), encoding="utf-8")
                    new.replace(path)
                finally:
                    new.unlink(missing_ok=True)

    def _check_ranks(self) -> None:
        for path in self.path.glob("checkpoint-*.pt"):
            shards = re.search(r"-rank\d+of(\d+)\.pt$", path.name)
            n_shards = int(shards[1]) if shards else 1
            if n_shards != self._shard_count:
                raise ConfigError(
                    f"The run {self.path.name} was begun "
                    + (f"with --shard features and {n_shards} processes" if shards else "without --shard features")
                    + f"; go on with that, or remove the folder {self.path} to train anew."
                )

    def _checkpoints(self) -> list[tuple[int, Path]]:
        """Tokens and path of this shard's checkpoints that all shards have, oldest first."""
        found = []
        for path in self.path.glob(f"checkpoint-*{self._suffix}.pt"):
            match = re.fullmatch(r"checkpoint-(\d+)(-rank\d+of\d+)?\.pt", path.name)
            if match is None or (match[2] or "") != self._suffix:
                continue
            others = [
                self.path / f"checkpoint-{match[1]}-rank{rank}of{self._shard_count}.pt"
                for rank in range(self._shard_count)
            ]
            if self._shard_count == 1 or all(other.exists() for other in others):
                found.append((int(match[1]), path))
        return sorted(found)


def _restored(trainee: Trainee, checkpoint: Path) -> Place | None:
    """Brings the trainee to the checkpoint; None, and a trainee in no state, if it is damaged."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=trainee.sae.W_dec.device)
        trainee.restore(state["trainee"])
        return Place(**state["place"])
    except _DAMAGE as error:
        if is_out_of_memory(error):
            raise
        return None  # half-written by a machine that lost power: the one before it is whole


def _tokens_of(line: str) -> float:
    """The count in a line of metrics; infinite if the line is half-written."""
    try:
        return float(json.loads(line)["tokens"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def _check_same(path: Path, config: TrainConfig) -> None:
    try:
        known = TrainConfig.load(path / CONFIG_FILE)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path / CONFIG_FILE} is not a training configuration; remove the folder {path} and train anew."
        ) from error
    differing = [
        f"{field.name} ({_shown(getattr(known, field.name))} there, {_shown(getattr(config, field.name))} here)"
        for field in dataclasses.fields(config)
        if getattr(known, field.name) != getattr(config, field.name) and field.name not in _MAY_DIFFER
    ]
    if differing:
        raise ConfigError(
            f"The run {path.name} exists with another {', '.join(differing)}; "
            f"give this one another --slug, or remove the folder {path}."
        )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _rounded(value: float) -> float | None:
    """To six digits; JSON has no word for what is not a number."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
