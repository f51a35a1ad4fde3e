"""What pages and streams show of a run: its numbers in words, what it was told to do, and where to go from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from app import provenance
from app.curves import CURVES, Curve, LineChart, curve_figures, line_chart
from app.numbers import count, date, duration, number, percent
from app.urls import url
from sae_core.errors import NotFoundError
from sae_core.records import SAESummary
from sae_core.runs import (
    LogLine,
    PointsReader,
    Run,
    RunDetail,
    RunPoint,
    RunProgress,
    list_runs,
    log_tail,
    read_detail,
    thinned,
)
from sae_core.store import Store

MOST_POINTS = 1000  # of a curve: more than a screen has columns for
UNRESOLVED_DAYS = 7  # so long the start page reminds of what stopped or failed
UNRESOLVED_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNews:
    """A run as it is now: the record, and what its page shows of it, by the name of the place."""

    run: Run
    share: float | None
    """How far it is with what it does, 0 to 1; None when nobody knows."""
    shown: Mapping[str, str]
    log: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTick:
    """What a stream tells of a run each second: all that changes."""

    run_id: str
    state: str
    problem: str | None
    progress: RunProgress | None
    share: float | None
    shown: Mapping[str, str]
    log: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPoints:
    """Points of a run's curves, behind those that were sent before, or in place of them."""

    replaces: bool
    points: tuple[RunPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """Everything that a run's page shows."""

    news: RunNews
    charts: tuple[tuple[Curve, LineChart], ...]
    title: str
    command: str | None
    settings_rows: list[tuple[str, str]]
    facts: tuple[tuple[str, str], ...]
    summary: SAESummary | None
    """The SAE, once it is in the database."""
    next_url: str | None
    """Where the story goes on: the index that is being made, or the indexed SAE."""


def run_view(store: Store, home: Path, run_id: str) -> RunView:
    """A run's page. Raises NotFoundError."""
    detail = read_detail(home, run_id)
    run = detail.run
    try:
        summary = store.sae(run.slug)
    except NotFoundError:
        summary = None
    return RunView(
        news=_news(run, detail.points[-1:], detail.log),
        charts=tuple((curve, line_chart(curve, detail.points, tokens=n_tokens(run))) for curve in CURVES)
        if run.kind == "training"
        else (),
        title=title(run),
        command=provenance.run_command(run),
        settings_rows=provenance.settings_rows(run.config),
        facts=tuple(_facts(run)),
        summary=summary,
        next_url=_next_url(run, summary, home=home),
    )


def run_news(home: Path, runs: Sequence[Run]) -> list[RunNews]:
    """Runs for a list, with the last that each measured."""
    return [_news(run, _last_point(home, run), ()) for run in runs]


def unfinished(runs: Sequence[Run], *, now: datetime | None = None) -> list[Run]:
    """For the start page: those at work, and the latest that stopped or failed; of a sweep's SAEs one."""
    since = (now or datetime.now(tz=UTC)) - timedelta(days=UNRESOLVED_DAYS)
    one_each = {(run.state, run.together or run.run_id): run for run in reversed(runs)}.values()
    shown = [run for run in runs if run in one_each]
    waiting = [r for r in shown if r.state in ("stopped", "failed") and r.ended_at is not None and r.ended_at > since]
    return [r for r in shown if r.state == "running"] + waiting[:UNRESOLVED_RUNS]


def title(run: Run) -> str:
    if run.kind == "training":
        return f"Training {run.slug}"
    return f"Indexing {run.slug} on {run.corpus}" + (f", part {run.shard}" if run.shard else "")


def run_url(run_id: str, *, follow: bool = False) -> str:
    return url(f"/runs/{run_id}", follow=follow)


def short_detail(home: Path, run_id: str) -> RunDetail:
    """A run with no more points than a curve needs. Raises NotFoundError."""
    detail = read_detail(home, run_id)
    return RunDetail(run=detail.run, points=tuple(thinned(detail.points, MOST_POINTS)), log=detail.log)


def run_figures(home: Path, run_id: str) -> dict[str, dict[str, object]]:
    """A training run's curves as Plotly figures; none of an indexing run. Raises NotFoundError."""
    detail = short_detail(home, run_id)
    return curve_figures(detail.points, tokens=n_tokens(detail.run)) if detail.run.kind == "training" else {}


def n_tokens(run: Run) -> int:
    """How many tokens it trains on, or reads at most."""
    tokens = run.config.get("tokens")
    return tokens if isinstance(tokens, int) and tokens > 0 else 1


def run_tick(home: Path, run: Run, last: tuple[RunPoint, ...]) -> RunTick:
    """`last`: the newest points, as many as a log shows."""
    news = _news(run, last, log_tail(home, run.run_id, last))
    return RunTick(
        run_id=run.run_id, state=run.state, problem=run.problem, progress=run.progress, share=news.share,
        shown=news.shown, log=news.log,
    )  # fmt: skip


def _news(run: Run, last: Sequence[RunPoint], log: tuple[LogLine, ...]) -> RunNews:
    return RunNews(run=run, share=_share(run), shown=_shown(run, last[-1] if last else None), log=log)


def _last_point(home: Path, run: Run) -> Sequence[RunPoint]:
    return PointsReader(home, run.run_id).new()[1][-1:] if run.state == "running" else ()


def _share(run: Run) -> float | None:
    progress = run.progress
    if run.state == "finished":
        return 1.0
    return min(1.0, progress.done / progress.total) if progress and progress.total else None


def _shown(run: Run, last: RunPoint | None) -> dict[str, str]:
    progress, share = run.progress, _share(run)
    shown = {"state": str(run.state), "percent": "" if share is None else f"{math.floor(100 * share)}%"}
    if progress is not None:
        total = "" if progress.total is None else f" of {count(progress.total)}"
        shown["done"] = f"{count(progress.done)}{total} {progress.unit}"
    if run.state == "running":
        shown["what"] = progress.what if progress else "starting"
        if progress and progress.said and not progress.said.startswith("FVU"):
            shown["what"] = progress.said  # "filling the buffer 20%"
        shown["rate"] = f"{count(round(progress.rate))} {progress.unit}/s" if progress and progress.rate else ""
        seconds_left = progress.seconds_left if progress else None
        shown["left"] = "" if seconds_left is None else f"{about(seconds_left)} left"
    if last is not None:
        for name, value, form in (
            ("loss", last.loss, number), ("fvu", last.fvu, number), ("l0", last.l0, number),
            ("dead_share", last.dead_share, percent),
        ):  # fmt: skip
            shown[name] = "–" if value is None else form(value)
    return shown


def about(seconds: float) -> str:
    """A time that is left, in steps that can be read: 25 s, 4 min, 3 h 20 min."""
    if seconds < 90:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _facts(run: Run) -> list[tuple[str, str]]:
    """What it was told to do, for a table: the word, and what stands behind it."""
    config = run.config
    facts = []
    if run.kind == "training":
        target = config.get("target_hook")
        hook = f"blocks.{config.get('layer')}.hook_{config.get('hook')}"
        facts = [
            ("Model", str(config.get("model"))),
            ("Hook", f"{hook}, to {target}" if target else hook),
            ("SAE", f"{config.get('architecture')}, {_counted(config.get('d_sae'))} features, k {config.get('k')}"),
        ]
    facts.append(("Corpus", ", ".join(map(str, config.get("corpus", ())))))
    facts.append(("Tokens", _counted(config.get("tokens")) if config.get("tokens") else "all"))
    if run.processes > 1:
        facts.append(("Processes", str(run.processes)))
    if run.started_at is not None:
        facts.append(("Started", date(run.started_at)))
    if run.ended_at is not None:
        facts.append(("Ended" if run.state != "stopped" else "Stopped", date(run.ended_at)))
    if run.seconds >= 1:
        facts.append(
            ("At work for", duration(round(run.seconds)) + (f", in {run.starts} goes" if run.starts > 1 else ""))
        )
    return [*facts, ("Folder", run.folder)]


def _counted(value: object) -> str:
    return count(value) if isinstance(value, int) else str(value)


def _next_url(run: Run, summary: SAESummary | None, *, home: Path) -> str | None:
    if run.state != "finished":
        return None
    if run.kind == "training":
        for other in list_runs(home):
            if other.kind == "indexing" and other.slug == run.slug and other.state == "running":
                return run_url(other.run_id)
    if summary is None or not summary.indexes:
        return None
    corpora = [index.corpus.name for index in summary.indexes]
    chosen = run.corpus if run.corpus in corpora[1:] else None  # the newest needs no name
    return url(f"/saes/{run.slug}", corpus=chosen)
