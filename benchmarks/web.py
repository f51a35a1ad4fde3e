"""How fast the dashboard answers: its pages under eight clients, with 4,096 and with a million features.

    python -m benchmarks.web [--quick] [--requests 400]

1. Plant databases (`benchmarks/store.py`) on SQLite and, where its package is installed, on PostgreSQL.
2. Serve each with `saescope serve` in a process of its own.
3. For every kind of page: eight clients ask for it, each another feature every time, over connections that stay open,
   as a browser keeps them. A request's time is to the first byte of the answer, and all of it is read.
4. Print a card and, last, one line of JSON: pages a second, p50, p95 and p99 in milliseconds, and the bytes of a page
   as they travel (compressed).

The clients run beside the server on the same cores, so their work is in the figures too. No peer publishes such
figures; SAEDashboard writes a file of about 390 KB for each feature, to be opened one by one.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.store import SLUG, planted_records, planted_sae, postgresql, vocabulary, word
from benchmarks.train import machine
from sae_core.store import Store

CLIENTS = 8
SIZES = {"small": 4096, "large": 1_000_000}
QUICK_SIZES = {"small": 300, "large": 1000}
PERCENTILES = (50, 95, 99)


def pages(n_features: int) -> dict[str, Callable[[random.Random], str]]:
    """By name: the address of a page of that kind."""
    here = f"/saes/{SLUG}"

    def number(rng: random.Random) -> int:
        return rng.randrange(n_features)

    return {
        "home": lambda _: "/",
        "SAE": lambda _: here,
        "features": lambda _: f"{here}/features",
        "features, searched": lambda rng: f"{here}/features?q={word(rng.randrange(2, 3000))}",
        "features, as a table": lambda _: f"{here}/features?view=table&sort=-max",
        "feature": lambda rng: f"{here}/features/{number(rng)}",
        "feature, embedded": lambda rng: f"{here}/features/{number(rng)}?embed=1",
        "feature, JSON": lambda rng: f"/api{here}/features/{number(rng)}",
        "two features": lambda rng: "/compare?a={0}/{1}&b={0}/{2}".format(SLUG, *rng.sample(range(n_features), 2)),
        "search of all SAEs": lambda rng: f"/search?q={word(rng.randrange(2, 3000))}",
        "glossary": lambda _: "/glossary",
    }


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a card and, last, one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.web", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small databases and few requests, to see that it works")
    parser.add_argument("--requests", type=int, default=400, help="of each kind of page")
    arguments = parser.parse_args(argv)
    n_requests = 40 if arguments.quick else arguments.requests
    found = []
    with TemporaryDirectory(prefix="saescope-bench-") as folder:
        for n_features in (QUICK_SIZES if arguments.quick else SIZES).values():
            found.append(measured(f"sqlite:///{folder}/{n_features}.db", "sqlite", n_features, n_requests))
            with postgresql() as url:
                if url:
                    found.append(measured(url, "postgresql", n_features, n_requests))
    print(card(found), end="\n\n")
    print(json.dumps({"bench": "web", "unit": "ms to the first byte", "clients": CLIENTS, "ours": found,
                      "machine": machine()}))  # fmt: skip


def measured(url: str, engine: str, n_features: int, n_requests: int) -> dict[str, Any]:
    """One database: planted, served, asked."""
    _say(f"planting {n_features:,} features in {engine}")
    with closing(Store.open(url)) as store:
        store.add_sae(planted_sae(n_features), vocabulary())
        store.add_index(planted_records(n_features))
    with TemporaryDirectory(prefix="saescope-bench-") as home, served(url, home=Path(home)) as (address, _):
        found = {}
        for name, address_of in pages(n_features).items():
            rng = random.Random(name)
            asyncio.run(asked(address, [address_of(rng) for _ in range(CLIENTS)]))  # warm
            found[name] = summary(asyncio.run(asked(address, [address_of(rng) for _ in range(n_requests)])))
    return {"engine": engine, "features": n_features, "pages": found}


@contextmanager
def served(url: str, *, home: Path) -> Iterator[tuple[str, int]]:
    """The address of a dashboard over this database, and its process."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    environment = os.environ | {"SAESCOPE_DATABASE_URL": url, "SAESCOPE_HOME": str(home)}
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(address):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the server at {address} does not answer")
            time.sleep(0.1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(20)


async def asked(address: str, paths: list[str]) -> list[tuple[float, float, int]]:
    """Of each request: when it was answered, seconds to the first byte, and bytes as they travelled."""
    waiting = iter(paths)
    times: list[tuple[float, float, int]] = []

    async def client() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            for path in waiting:
                began = time.perf_counter()
                async with http.stream("GET", path) as response:
                    first = time.perf_counter() - began
                    n_bytes = 0
                    async for part in response.aiter_raw():
                        n_bytes += len(part)
                    if response.status_code != 200:
                        raise RuntimeError(f"{path} was answered with {response.status_code}")
                times.append((time.perf_counter(), first, n_bytes))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return [(ended - began, first, n_bytes) for ended, first, n_bytes in times]


def summary(times: list[tuple[float, float, int]]) -> dict[str, float]:
    cuts = statistics.quantiles([1000 * first for _, first, _ in times], n=100)
    return {
        "pages_per_s": len(times) / max(ended for ended, _, _ in times),
        **{f"p{percent}_ms": cuts[percent - 1] for percent in PERCENTILES},
        "kilobytes": statistics.median(n_bytes for _, _, n_bytes in times) / 1000,
    }


def card(found: list[dict[str, Any]]) -> str:
    """What was measured, as lines of text."""
    lines = []
    for case in found:
        lines.append(f"{case['engine']}, {case['features']:,} features, {CLIENTS} clients")
        lines.append(f"  {'page':<22}{'pages/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'kB':>8}")
        for name, page in case["pages"].items():
            numbers = "".join(f"{page[key]:>9.1f}" for key in ("pages_per_s", "p50_ms", "p95_ms", "p99_ms"))
            lines.append(f"  {name:<22}{numbers}{page['kilobytes']:>8.1f}")
    return "\n".join(lines)


def _answers(address: str) -> bool:
    try:
        return httpx.get(address + "/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
