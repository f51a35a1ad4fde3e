"""What `benchmarks/train.py` measured, its arithmetic, and how it is printed: a card, and one line of JSON."""

import json
import statistics
import textwrap
from dataclasses import dataclass
from typing import Any

WIDTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """CPU seconds of one optimiser step, as each repeat gave them."""

    repeats: tuple[float, ...]
    batch_rows: int

    @property
    def cpu_s(self) -> float:
        """CPU seconds a step: the median of the repeats."""
        return statistics.median(self.repeats)

    @property
    def rows_per_cpu_s(self) -> float:
        return self.batch_rows / self.cpu_s

    @property
    def spread(self) -> float:
        """How far the repeats lie apart, as a share of their median."""
        return (max(self.repeats) - min(self.repeats)) / self.cpu_s


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """One SAE trained to the end."""

    cpu_s: float
    fvu: float  # on the held-out rows
    dead_share: float  # of features that fired on none of the training rows looked at
    mmcs: float
    found_share: float
    l0: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one run of the benchmark found, by contestant."""

    ours: str  # the name of our own contestant
    step_costs: dict[str, StepCost]
    floors: dict[str, StepCost]
    whole_runs: dict[str, WholeRun]
    failures: dict[str, str]
    setting: dict[str, Any]
    machine: str

    @property
    def floor(self) -> StepCost:
        """The fastest floor."""
        return min(self.floors.values(), key=lambda cost: cost.cpu_s)

    def times_as_fast(self, name: str) -> float:
        """Our rows per CPU second over those of a contestant, from the cost of a step."""
        return self.step_costs[self.ours].rows_per_cpu_s / self.step_costs[name].rows_per_cpu_s

    def times_as_fast_overall(self, name: str) -> float:
        """The same over the whole run, in which all see the same number of rows."""
        return self.whole_runs[name].cpu_s / self.whole_runs[self.ours].cpu_s


def card(report: Report) -> str:
    """The report for a reader, in lines of at most 80 characters."""
    parts = [_head(report), _speed(report), _quality(report)]
    if report.failures:
        parts.append("\n".join(["Failed", *(_failure(*item) for item in report.failures.items())]))
    return "\n".join(line.rstrip() for line in "\n\n".join(parts).splitlines())


def json_line(report: Report) -> str:
    """The report for a program, in the form that all benchmarks share."""
    peers = [name for name in report.step_costs if name != report.ours]
    return json.dumps(
        {
            "bench": "train",
            "unit": "rows/CPU-s",
            "ours": round(report.step_costs[report.ours].rows_per_cpu_s),
            "floor": round(report.floor.rows_per_cpu_s),
            "peers": {name: round(report.step_costs[name].rows_per_cpu_s) for name in peers},
            "quality": {
                name: {
                    "fvu": round(run.fvu, 4),
                    "dead_share": round(run.dead_share, 4),
                    "mmcs": round(run.mmcs, 4),
                    "found_share": round(run.found_share, 4),
                    "l0": round(run.l0, 2),
                    "cpu_s": round(run.cpu_s, 1),
                }
                for name, run in report.whole_runs.items()
            },
            "failed": report.failures,
            "setting": report.setting,
            "machine": report.machine,
        }
    )


def _head(report: Report) -> str:
    s = report.setting
    lines = [
        "Training a TopK SAE: saescope and its peers, all in this one run",
        f"{s['train_rows']:,} rows of {s['d_in']} numbers, {s['held_out_rows']:,} held out, synthetic: "
        f"noise floor FVU {s['noise_floor_fvu']:.3f}",
        f"d_sae {s['d_sae']:,}, k {s['k']}, {s['batch_rows']:,} rows a step, float32, threads: {s['threads']}",
        f"{report.machine}; load average when it began {s['load']:.1f}",
        ", ".join(version for name, version in s["versions"].items() if name not in ("floor", report.ours)),
    ]
    if s["quick"]:
        lines.append(f"QUICK, {s['steps']} steps in all: says that it works, little of speed, nothing of quality.")
    return "\n".join(line for long in lines for line in _wrapped(long))


def _speed(report: Report) -> str:
    s = report.setting
    lines = [
        f"A step: process CPU time, median of {s['repeats']} interleaved repeats of {s['steps_per_repeat']}",
        f"{'':<27}{'ms':>8}{'spread':>9}{'rows/CPU-s':>13}{'of floor':>11}{'ours is':>12}",
    ]
    for name, cost in sorted((report.floors | report.step_costs).items(), key=lambda item: item[1].cpu_s):
        is_peer = name in report.step_costs and name != report.ours
        ratio = f"{report.times_as_fast(name):.2f} x" if is_peer else ""
        lines.append(
            f"{name:<27}{1000 * cost.cpu_s:>8.1f}{cost.spread:>9.0%}{cost.rows_per_cpu_s:>13,.0f}"
            f"{report.floor.cpu_s / cost.cpu_s:>11.0%}{ratio:>12}"
        )
    return "\n".join(lines)


def _quality(report: Report) -> str:
    s = report.setting
    lines = [
        f"The whole run: {s['steps'] * s['batch_rows']:,} rows, {s['steps']} steps in {s['parts']} interleaved parts",
        f"{'':<27}{'CPU s':>8}{'FVU':>8}{'dead':>8}{'MMCS':>8}{'found':>9}{'ours is':>12}",
    ]
    for name, run in sorted(report.whole_runs.items(), key=lambda item: item[1].fvu):
        ratio = f"{report.times_as_fast_overall(name):.2f} x" if name != report.ours else ""
        lines.append(
            f"{name:<27}{run.cpu_s:>8.1f}{run.fvu:>8.3f}{run.dead_share:>8.1%}{run.mmcs:>8.3f}"
            f"{run.found_share:>9.1%}{ratio:>12}"
        )
    explained = (
        f"FVU on the held-out rows; dead: never active on {s['firing_rows']:,} training rows; MMCS: over the "
        f"{s['n_directions']:,} true directions, the mean of the largest cosine with a decoder row; found: those for "
        "which it is above 0.9; 'ours is': so many times as fast. One seed each. default: a peer as it comes; with a "
        f"number: Adam at that learning rate, auxiliary loss, features dead after {s['dead_after_rows']:,} rows."
    )
    return "\n".join([*lines, *_wrapped(explained)])


def _failure(name: str, reason: str) -> str:
    return "\n  ".join(_wrapped(f"{name}: {reason}", WIDTH - 2))


def _wrapped(text: str, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(text, width)
