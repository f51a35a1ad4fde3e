"""The dashboard under many readers: clients that mix pages and probes, against one server with its model worker.

Every answer must be 200, or 503 where the queue is full; measured is how long pages take meanwhile. The probes go to a
random SAE of the model that ships, the pages to a planted index.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.probe import WORDS, made_sae
from benchmarks.store import planted_records, planted_sae, vocabulary
from benchmarks.web import machine, pages, served
from sae_core import tokens
from sae_core.loading import load_model
from sae_core.store import Store

CLIENTS, SECONDS = 50, 60.0
FEATURES = 4096
PROBES = 0.3  # of all requests
PAUSE_S = 0.5  # between an answer and the next request, on average


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a card and, last, one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    arguments = parser.parse_args(argv)
    with TemporaryDirectory(prefix="saescope-bench-") as folder:
        found = measured(Path(folder), n_clients=arguments.clients, seconds=arguments.seconds)
    print(card(found), end="\n\n")
    print(json.dumps({"bench": "load", "unit": "ms", "ours": found, "machine": machine()}))


def measured(folder: Path, *, n_clients: int, seconds: float, n_features: int = FEATURES) -> dict[str, Any]:
    """A dashboard in its own process, asked by `n_clients` for `seconds`."""
    url = f"sqlite:///{folder}/load.db"
    model = load_model("demo")
    with closing(Store.open(url)) as store:
        store.add_sae(planted_sae(n_features), vocabulary())
        store.add_index(planted_records(n_features))
        store.add_sae(made_sae(folder / "sae", model), tokens.vocabulary(model.tokenizer))
    with served(url, home=folder) as (address, _):
        httpx.post(f"{address}/api/saes/random/probe", json={"text": "warm"}, timeout=120).raise_for_status()
        return asyncio.run(crowd(address, n_clients=n_clients, seconds=seconds, n_features=n_features))


async def crowd(address: str, *, n_clients: int, seconds: float, n_features: int) -> dict[str, Any]:
    """How often each status came, and how long pages and probes took."""
    times: dict[str, list[float]] = {"pages": [], "probes": []}
    statuses: Counter[str] = Counter()
    ends = time.perf_counter() + seconds
    kinds = list(pages(n_features).values())

    async def client(number: int) -> None:
        rng = random.Random(number)
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            while time.perf_counter() < ends:
                await asyncio.sleep(rng.uniform(0, 2 * PAUSE_S))
                began = time.perf_counter()
                if rng.random() < PROBES:
                    kind, body = "probes", {"text": " ".join(rng.choices(WORDS, k=40)), "session": str(number)}
                    response = await http.post("/api/saes/random/probe", json=body)
                else:
                    kind = "pages"
                    response = await http.get(rng.choice(kinds)(rng))
                times[kind].append(1000 * (time.perf_counter() - began))
                statuses[f"{kind} {response.status_code}"] += 1

    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return {
        "clients": n_clients, "seconds": seconds, "statuses": dict(statuses),
        **{f"{kind}_{name}_ms": value for kind, found in times.items() for name, value in _percentiles(found).items()},
    }  # fmt: skip


def _percentiles(found: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(found, n=100)
    return {"p50": cuts[49], "p95": cuts[94]}


def card(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    statuses = ", ".join(f"{name}: {count:,}" for name, count in sorted(found["statuses"].items()))
    return "\n".join(
        [
            f"{found['clients']} clients for {found['seconds']:g} s, {PROBES:.0%} of their requests probes",
            f"  pages   p50 {found['pages_p50_ms']:8.1f} ms   p95 {found['pages_p95_ms']:8.1f} ms",
            f"  probes  p50 {found['probes_p50_ms']:8.1f} ms   p95 {found['probes_p95_ms']:8.1f} ms",
            f"  answers {statuses}",
        ]
    )


if __name__ == "__main__":
    main()
