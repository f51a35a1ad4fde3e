"""What `saescope label` does: names features, by patterns or a language model, tests the names, says the cost first."""

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from contextlib import closing

from app.explain.embed import embed_labels
from app.export import feature_numbers
from app.settings import Settings
from sae_core.errors import ConfigError, NotFoundError
from sae_core.explain.bench import VERSION, Bench, pattern_scores
from sae_core.explain.client import Client, Endpoint
from sae_core.explain.job import Estimate, Labelling, Prices, Progress
from sae_core.progress import progress_bar, say, stop_request
from sae_core.store import Store

STOPPED = 130
STORED_AT_ONCE = 25  # features whose patterns are stored in one go


def run_label(arguments: argparse.Namespace, *, settings: Settings) -> int:
    """The command; returns its exit code."""
    if arguments.max_cost is not None and not (arguments.price_in or arguments.price_out):
        raise ConfigError("--max-cost needs the prices of a million tokens: give --price-in and --price-out too.")
    with closing(Store.open(settings.database_url)) as store:
        if arguments.embed:
            if arguments.patterns or arguments.features or arguments.top or arguments.random or arguments.unlabelled:
                raise ConfigError("--embed makes vectors of all labels that there are; give it alone.")
            return embed_labels(store, arguments.slug, arguments.embed, device=settings.device)
        bench = Bench(store, arguments.slug, corpus=arguments.corpus)
        features = _chosen(bench, arguments)
        if arguments.patterns:
            return _by_patterns(bench, features)
        return asyncio.run(_by_model(bench, features, arguments, settings=settings))


def _chosen(bench: Bench, arguments: argparse.Namespace) -> list[int]:
    """The features that are asked for and that are active on the corpus."""
    chosen = bench.alive
    if arguments.features is not None:
        d_sae = bench.store.sae(bench.slug).sae.d_sae
        wanted = feature_numbers(arguments.features, most=d_sae)
        if unknown := [number for number in wanted if number >= d_sae]:
            raise NotFoundError(f"There is no feature {unknown[0]}; this SAE's features are 0 to {d_sae - 1}.")
        alive = set(bench.alive)
        chosen = [number for number in wanted if number in alive]
    elif not (arguments.top or arguments.random or arguments.unlabelled or arguments.patterns):
        raise ConfigError(
            "Say which features to ask about: --features 1,5,9-12, --top 100, --random 100, --unlabelled."
        )
    if arguments.unlabelled:
        labels = bench.store.labels(bench.slug, chosen)
        chosen = [n for n in chosen if n not in labels or labels[n].kind not in ("human", "model")]
    if arguments.random is not None:
        chosen = random.Random(0).sample(chosen, min(arguments.random, len(chosen)))
    return chosen[: arguments.top]


def _by_patterns(bench: Bench, features: Sequence[int]) -> int:
    scored = bench.store.scored_texts(bench.slug, corpus=bench.corpus)
    left = [n for n in features if scored.get((n, "pattern", "detection"), ("", "", None))[2] != VERSION]
    found = []
    with stop_request() as stop, progress_bar(total=len(left), what="labelling", unit=" features") as bar:
        for start in range(0, len(left), STORED_AT_ONCE):
            labels, scores = {}, []
            for number in left[start : start + STORED_AT_ONCE]:
                label, own = pattern_scores(bench, number)
                scores += own
                if label is not None:
                    labels[number] = label
            bench.store.add_labels(bench.slug, labels)
            bench.store.add_scores(bench.slug, scores, corpus=bench.corpus)
            found += [s for s in scores if (s.kind, s.method) == ("pattern", "detection")]
            bar.update(len(left[start : start + STORED_AT_ONCE]))
            if stop.was_made:
                print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
                return STOPPED
    print(f"{len(features) - len(left)} features were done before; {len(left)} more now, {len(found)} of them tested.")
    if found:
        mean = sum(score.balanced_accuracy for score in found) / len(found)
        baselines = [score.baseline for score in found if score.baseline is not None]
        beside = f", other features' patterns {sum(baselines) / len(baselines):.2f}" if baselines else ""
        print(f"Mean score (balanced accuracy): patterns {mean:.2f}{beside}.")
    return 0


async def _by_model(bench: Bench, features: Sequence[int], arguments: argparse.Namespace, *, settings: Settings) -> int:
    endpoint = endpoint_of(
        settings, base_url=arguments.base_url, model=arguments.model, concurrency=arguments.concurrency
    )
    prices = Prices(asked=arguments.price_in, answered=arguments.price_out)
    async with Client(endpoint) as client:
        job = Labelling(bench, client, prices=prices, max_cost=arguments.max_cost)
        estimate = job.estimate(features)
        print(_estimated(estimate, arguments), flush=True)
        if arguments.estimate or not estimate.features:
            return 0
        left = job.unfinished(features)
        with stop_request() as stop, progress_bar(total=len(left), what="labelling", unit=" features") as bar:

            def tell(n: int) -> None:
                bar.update(n)
                cost = f"  cost {_shown_cost(job.progress.cost)}" if prices != Prices() else ""
                say(bar, f"  {job.progress.requests} requests{cost}")

            is_done = await job.run(left, tell=tell, stop=lambda: stop.was_made)
    print(_summary(job.progress))
    for problem in job.progress.problems[:5]:
        print(problem, file=sys.stderr)
    if not is_done:
        print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
        return STOPPED
    if job.progress.stopped_by_cost:
        print(f"saescope: stopped at the cost that was allowed, {arguments.max_cost:g}.", file=sys.stderr)
        return 1
    return 0


def endpoint_of(
    settings: Settings, *, base_url: str | None = None, model: str | None = None, concurrency: int | None = None
) -> Endpoint:
    """The endpoint that is set. Raises ConfigError if there is none."""
    if not (base_url or settings.llm_base_url):
        raise ConfigError(
            "No language model is set: give its endpoint in SAESCOPE_LLM_BASE_URL, as in http://localhost:11434/v1, "
            "or take --patterns, which needs none."
        )
    return Endpoint(
        base_url=base_url or settings.llm_base_url,
        model=model or settings.llm_model,
        key=settings.llm_key,
        timeout=settings.llm_timeout,
        concurrency=concurrency or settings.llm_concurrency,
    )


def _estimated(estimate: Estimate, arguments: argparse.Namespace) -> str:
    cost = _shown_cost(estimate.cost) if arguments.price_in or arguments.price_out else "not known without --price-in"
    return (
        f"{estimate.done} features are done; {estimate.features} take about {estimate.requests:,} requests, "
        f"{estimate.prompt_tokens:,} tokens of questions and {estimate.answer_tokens:,} of answers. Cost: {cost}."
    )


def _shown_cost(cost: float) -> str:
    return f"{cost:.2f}" if cost >= 1 else f"{cost:.4f}"


def _summary(progress: Progress) -> str:
    return (
        f"{progress.labelled} labels and {progress.scored} scores in {progress.requests} requests, "
        f"{progress.prompt_tokens:,} tokens asked, {progress.answer_tokens:,} answered; "
        f"{len(progress.problems)} features without a label."
    )
