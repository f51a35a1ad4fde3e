"""Train a TopK SAE with saescope and with its peers: what a step costs, and what a whole run yields.

    python -m benchmarks.train [--quick] [--no-peers] [--peers saelens,sparsify] [--threads 1]

1. Make synthetic activations whose true features are known (`sae_core/synthetic.py`).
2. Start every contestant in a process of its own: the floor, ours, each peer as it comes and tuned to the run at two
   learning rates. A peer's environment is made if it is not there (`benchmarks/environments.py`).
3. Step cost: in rotation, each takes a few optimiser steps; process CPU time, median of the repeats.
4. Whole run: all start anew; in rotation, each takes a part of its steps, until all have seen the same 2.0M rows in the
   same order. Then held-out FVU, dead features and recovered truth of each, by saescope's own definitions.
5. Print a card and, last, one line of JSON.

Only one contestant works at a time. They take about 1 GB of memory each, and there are 12 of them with all peers.
"""

import argparse
import dataclasses
import os
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.card import Report, StepCost, WholeRun, card, json_line
from benchmarks.contestant import Contestant, Field, Job
from benchmarks.environments import ROOT, EnvironmentFailed, Recipe, python_of
from sae_core.metrics import RunningFVU
from sae_core.synthetic import SyntheticActs, recovery, synthetic_acts

OURS = "ours"
PEERS = {
    "saelens": Recipe(name="saelens", requirement="sae-lens==6.54.12"),
    "sparsify": Recipe(name="sparsify", requirement="eai-sparsify==1.3.3"),
    # It needs torchvision for nothing, and the one from PyPI, built for another PyTorch, stops every import.
    "dictionary_learning": Recipe(
        name="dictionary_learning", requirement="dictionary-learning==0.1.0", uninstall=("torchvision",)
    ),
}
# Tuned at more than one learning rate: ours was chosen on such data, and nothing else moves the FVU as much.
VARIANTS = ("default", "1e-3", "3e-3")
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "SPARSIFY_DISABLE_TRITON": "1",  # without a GPU it fails wherever Triton is installed
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "WANDB_MODE": "disabled",  # SAELens imports it
}
TRAIN_ROWS, HELD_OUT_ROWS, D_SAE, K, BATCH_ROWS = 180_000, 20_000, 4096, 32, 4096
# No two may be the same: `synthetic_acts` says why.
DATA_SEED, MODEL_SEED, ORDER_SEED = 1729, 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long a run of the benchmark is."""

    repeats: int  # of the step cost
    steps_per_repeat: int
    steps: int  # of the whole run
    parts: int  # that the whole run is taken in
    firing_rows: int  # training rows on which features are looked for that never fire


FULL = Scale(repeats=7, steps_per_repeat=4, steps=488, parts=8, firing_rows=100_000)
QUICK = Scale(repeats=3, steps_per_repeat=1, steps=16, parts=2, firing_rows=20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contestant: a module of `benchmarks.peers`, whose Python runs it, and which of its settings."""

    module: str
    recipe: Recipe | None  # None: runs in this Python
    variant: str = "default"


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    scale = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="saescope-bench-") as name, Field() as field:
        folder = Path(name)
        load = os.getloadavg()[0]
        _say("making the rows")
        acts = written_rows(folder)
        job = base_job(folder, scale, threads=arguments.threads)
        jobs, versions = enter_all(field, entries(arguments.peers, arguments.variants), job, folder)
        costs = measured_steps(field, scale)
        floors = {name: costs.pop(name) for name in list(costs) if name.startswith("floor")}
        whole_runs = measured_runs(field, {name: jobs[name] for name in costs}, acts, folder, scale)
    if OURS not in whole_runs or not floors:
        sys.exit(f"bench train: no result of its own to compare with: {field.failures}")
    report = Report(
        ours=OURS,
        step_costs=costs,
        floors=floors,
        whole_runs=whole_runs,
        failures=field.failures,
        setting=_setting(acts, scale, job) | {"versions": versions, "quick": arguments.quick, "load": round(load, 2)},
        machine=machine(),
    )
    print(card(report), end="\n\n")
    print(json_line(report))


def entries(peers: list[str], variants: Sequence[str] = VARIANTS) -> dict[str, Entry]:
    """Every contestant by its name: floors, ours, and the variants of each of the named peers.

    Ours stands there a second time, tuned to a low FVU, as the default wants the truth recovered too.
    """
    floors = {f"floor {dtype}": Entry(module="floor", recipe=None, variant=dtype) for dtype in ("float32", "bfloat16")}
    of_peers = {
        f"{peer} {variant}": Entry(module=peer, recipe=PEERS[peer], variant=variant)
        for peer in peers
        for variant in variants
    }
    ours = {
        OURS: Entry(module="ours", recipe=None),
        "ours for low FVU": Entry(module="ours", recipe=None, variant="low FVU"),
    }
    return floors | ours | of_peers


def written_rows(folder: Path) -> SyntheticActs:
    """The synthetic rows, also written into the folder for the contestants to read."""
    acts = synthetic_acts(TRAIN_ROWS + HELD_OUT_ROWS, seed=DATA_SEED)
    np.save(folder / "train.npy", acts.rows[:TRAIN_ROWS].numpy())
    np.save(folder / "held_out.npy", acts.rows[TRAIN_ROWS:].numpy())
    return acts


def base_job(folder: Path, scale: Scale, *, threads: int) -> Job:
    return Job(
        train=str(folder / "train.npy"),
        held_out=str(folder / "held_out.npy"),
        variant="default",
        d_sae=D_SAE,
        k=K,
        batch_rows=BATCH_ROWS,
        steps=scale.steps,
        dead_after_rows=scale.steps * BATCH_ROWS // 8,
        firing_rows=scale.firing_rows,
        seed=MODEL_SEED,
        order_seed=ORDER_SEED,
        threads=threads,
    )


def enter_all(field: Field, wanted: dict[str, Entry], base: Job, folder: Path) -> tuple[dict[str, Job], dict[str, str]]:
    """Starts all contestants whose environment is there or can be made; their jobs, and their versions by module."""
    jobs, versions = {}, {}
    pythons: dict[str, Path | None] = {}
    for name, entry in wanted.items():
        if entry.module not in pythons:
            pythons[entry.module] = _python(field, entry)
        python = pythons[entry.module]
        if python is None:
            continue
        _say(f"starting {name}")
        jobs[name] = dataclasses.replace(base, variant=entry.variant)
        log = folder / f"{name}.log"
        contestant = Contestant(command(python, entry), cwd=ROOT, environment=environment(base.threads), log=log)
        if started := field.enter(name, contestant, jobs[name]):
            versions[entry.module] = started["version"]
            if started["torch"] != torch.__version__:
                field.fail(name, f"runs on torch {started['torch']}, not on {torch.__version__} as saescope does")
    return jobs, versions


def command(python: Path, entry: Entry) -> list[str]:
    return [str(python), "-m", f"benchmarks.peers.{entry.module}"]


def environment(threads: int) -> dict[str, str]:
    """What contestants find in their environment variables."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return inherited | ENVIRONMENT | counts


def _python(field: Field, entry: Entry) -> Path | None:
    """The Python that runs the entry's module; None, with the failure in the field, if it cannot be had."""
    try:
        return python_of(entry.recipe) if entry.recipe else Path(sys.executable)
    except EnvironmentFailed as failure:
        field.fail(entry.module, f"could not be installed: {failure}")
        return None


def measured_steps(field: Field, scale: Scale) -> dict[str, StepCost]:
    """What an optimiser step costs each contestant, early in training."""
    for name in field.rotation(1):
        field.ask(name, "run", steps=scale.steps_per_repeat)  # memory and caches as in the middle of a run
    seconds: dict[str, list[float]] = defaultdict(list)
    for name in field.rotation(scale.repeats):
        _say(f"step cost: {name}")
        if answer := field.ask(name, "run", steps=scale.steps_per_repeat):
            seconds[name].append(answer["cpu_s"] / scale.steps_per_repeat)
    return {name: StepCost(repeats=tuple(seconds[name]), batch_rows=BATCH_ROWS) for name in field.contestants}


def measured_runs(
    field: Field, jobs: dict[str, Job], acts: SyntheticActs, folder: Path, scale: Scale
) -> dict[str, WholeRun]:
    """Trains every contestant that has a job from the start to the end, and measures what it learned."""
    for name in set(field.contestants) - set(jobs):
        field.leave(name)
    for name, job in jobs.items():
        field.ask(name, "start", **dataclasses.asdict(job))
    seconds: dict[str, float] = defaultdict(float)
    for part in range(scale.parts):
        steps = (part + 1) * scale.steps // scale.parts - part * scale.steps // scale.parts
        for name in field.rotation(1, first=part):
            _say(f"whole run, part {part + 1} of {scale.parts}: {name}")
            if answer := field.ask(name, "run", steps=steps):
                seconds[name] += answer["cpu_s"]
    return {
        name: whole_run(acts, folder, cpu_s=seconds[name], l0=answer["l0"])
        for name in list(field.contestants)
        if (answer := field.ask(name, "finish", folder=str(folder)))
    }


def whole_run(acts: SyntheticActs, folder: Path, *, cpu_s: float, l0: float) -> WholeRun:
    """The metrics of the SAE whose arrays are in the folder."""
    held_out = acts.rows[TRAIN_ROWS:]
    sae_out, fired, W_dec = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("sae_out", "fired", "W_dec")
    )
    fvu = RunningFVU()
    fvu.add(held_out, float((held_out - sae_out).double().square().sum()))
    found = recovery(W_dec, acts.directions)
    return WholeRun(
        cpu_s=cpu_s,
        fvu=fvu.value,
        dead_share=float((fired == 0).double().mean()),
        mmcs=found.mmcs,
        found_share=found.found_share,
        l0=l0,
    )


def machine() -> str:
    """Processor, its count, system and Python, in one line."""
    names = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "").splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{processor}, {os.cpu_count()} CPUs, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _setting(acts: SyntheticActs, scale: Scale, job: Job) -> dict[str, object]:
    return {
        "d_in": acts.rows.shape[1],
        "d_sae": D_SAE,
        "k": K,
        "batch_rows": BATCH_ROWS,
        "train_rows": TRAIN_ROWS,
        "held_out_rows": HELD_OUT_ROWS,
        "n_directions": len(acts.directions),
        "noise_floor_fvu": round(acts.noise_floor_fvu, 5),
        "dead_after_rows": job.dead_after_rows,
        "threads": job.threads,
        **dataclasses.asdict(scale),
    }


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description="Train a TopK SAE with saescope and with its peers, and compare."
    )
    parser.add_argument("--quick", action="store_true", help="a few steps only: shows that it works")
    parser.add_argument("--no-peers", action="store_true", help="measure saescope and the floor alone")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, comma-separated (default: %(default)s)")
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help="which settings of the peers, comma-separated (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of every contestant (default: 1)")
    arguments = parser.parse_args(argv)
    arguments.peers = [] if arguments.no_peers else [name for name in arguments.peers.split(",") if name]
    arguments.variants = [name for name in arguments.variants.split(",") if name]
    if unknown := [name for name in arguments.variants if name not in VARIANTS]:
        parser.error(f"no such settings: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    if unknown := [name for name in arguments.peers if name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return arguments


def _say(what: str) -> None:
    print(f"bench train: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
