"""Does the dashboard stay up, quick, and of one size? Many people at once, for a long time.

    python -m benchmarks.soak [--seconds 1800] [--clients 50] [--streams 1000] [--database URL]

1. Plant a database of 4,096 features and serve it with `saescope serve`, in a process of its own, beside a training run
   that is at work for as long as this goes on.
2. Clients, each like a person who reads: a page or its JSON, a second of thought on average, the next; now and then a
   label or a list is written. A request's time is until all of the answer is there.
3. Every few seconds the server's resident memory is looked at. Growth is that of the last quarter over the second
   eighth: what comes before is warming up.
4. Then, with nobody gone, `--streams` listeners open the run's stream of events, and the pages are asked again for a
   tenth of the time.
5. Print a card and, last, one line of JSON. Exit code 1 if there was an error other than 503.

The clients run beside the server, on the same cores.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.observe.metrics import memory_of
from benchmarks import web
from benchmarks.store import SLUG, planted_records, planted_sae, vocabulary
from benchmarks.train import machine
from sae_core.config import TrainConfig
from sae_core.run_log import CONFIG_FILE, RunFiles, recorded
from sae_core.store import Store

FEATURES = 4096
THOUGHT = 1.0  # seconds between a client's requests, on average
WRITES = 0.05  # the share of requests that write
LOOKS = 200  # at the memory


@dataclass
class Seen:
    """What the clients have seen so far."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    cpu_seconds: float = 0.0  # of the server

    def summary(self) -> dict[str, Any]:
        found = sorted(self.seconds)
        p50, p95, p99 = (1000 * found[min(len(found) - 1, int(len(found) * share))] for share in (0.5, 0.95, 0.99))
        return {
            "requests": len(found), "cpu_ms": 1000 * self.cpu_seconds / len(found),
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "statuses": dict(self.statuses),
            "errors": sum(n for status, n in self.statuses.items() if status not in ("200", "503")),
        }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--database", help="an empty one (SQLite in a temporary folder)")
    arguments = parser.parse_args(argv)
    found = soaked(
        arguments.database, seconds=arguments.seconds, clients=arguments.clients, streams=arguments.streams,
        n_features=arguments.features,
    )  # fmt: skip
    print(card(found), end="\n\n")
    print(json.dumps({"bench": "soak", **found, "machine": machine()}))
    return 1 if found["pages"]["errors"] or found["beside_streams"]["errors"] else 0


def soaked(url: str | None, *, seconds: float, clients: int, streams: int, n_features: int) -> dict[str, Any]:
    """The whole of it: what was seen, by part."""
    with TemporaryDirectory(prefix="saescope-soak-") as folder:
        home = Path(folder)
        url = url or f"sqlite:///{home}/saescope.db"
        with closing(Store.open(url)) as store:
            store.add_sae(planted_sae(n_features), vocabulary())
            store.add_index(planted_records(n_features))
        files = RunFiles(home / "runs" / "at-work")
        files.folder.mkdir(parents=True)
        TrainConfig(model="demo", layer=3, corpus=("x",), d_sae=300, k=15).save(files.folder / CONFIG_FILE)
        with web.served(url, home=home) as (address, process), recorded([files], kind="training", processes=1) as log:
            pages, beside, heard = asyncio.run(
                _all(address, process, seconds=seconds, clients=clients, streams=streams, n_features=n_features)
            )
            log.stop()
    early, late = _early_and_late(pages.memory)
    return {
        "seconds": seconds, "clients": clients, "thought_s": THOUGHT, "features": n_features,
        "pages": pages.summary(), "memory_mb": late / 1e6, "memory_growth": late / early - 1,
        "streams": heard, "beside_streams": beside.summary(),
    }  # fmt: skip


async def _all(
    address: str, process: int, *, seconds: float, clients: int, streams: int, n_features: int
) -> tuple[Seen, Seen, int]:
    pages, beside = Seen(), Seen()
    await _people(address, pages, seconds=seconds, clients=clients, n_features=n_features, process=process)
    listening = [asyncio.create_task(_listen(address)) for _ in range(streams)]
    heard = sum(await asyncio.gather(*(_opened(task) for task in listening)))
    await _people(
        address, beside, seconds=max(5, seconds / 10), clients=clients, n_features=n_features, process=process
    )
    for task in listening:
        if task.done() and not task.cancelled() and task.exception() is None:
            task.result()[1].close()
    return pages, beside, heard


async def _people(address: str, seen: Seen, *, seconds: float, clients: int, n_features: int, process: int) -> None:
    end, worked = time.monotonic() + seconds, cpu_of(process)
    people = [asyncio.create_task(_person(address, number, seen, end, n_features)) for number in range(clients)]
    while time.monotonic() < end:
        seen.memory.append(memory_of(process))
        await asyncio.sleep(seconds / LOOKS)
    await asyncio.gather(*people)
    seen.cpu_seconds = cpu_of(process) - worked


def cpu_of(process: int) -> float:
    """Seconds of processor time that it has taken, which other work on the machine does not change."""
    user, system = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(") ", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def _person(address: str, number: int, seen: Seen, end: float, n_features: int) -> None:
    rng = random.Random(number)
    kinds = list(web.pages(n_features).values())
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        await asyncio.sleep(rng.random() * THOUGHT)
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                response = await _ask(client, rng, kinds, n_features)
                status = str(response.status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            seen.statuses[status] += 1
            seen.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(rng.expovariate(1 / THOUGHT))


async def _ask(client: httpx.AsyncClient, rng: random.Random, kinds: list[Any], n_features: int) -> httpx.Response:
    if rng.random() >= WRITES:
        return await client.get(rng.choice(kinds)(rng))
    feature = rng.randrange(n_features)
    if rng.random() < 0.5:
        path = f"/api/saes/{SLUG}/features/{feature}/label"
        return await client.put(path, json={"text": f"label {rng.random()}", "author": "soak"})
    return await client.post("/api/lists", json={"title": f"list {feature}", "author": "soak"})


async def _listen(address: str) -> tuple[bytes, asyncio.StreamWriter]:
    """Opens the stream and waits for its first event; a browser's connection without the browser."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(f"GET /api/runs/at-work/events HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
    return await asyncio.wait_for(reader.readuntil(b"event:"), 120), writer


async def _opened(task: "asyncio.Task[tuple[bytes, asyncio.StreamWriter]]") -> bool:
    try:
        head, _ = await asyncio.shield(task)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    return head.startswith(b"HTTP/1.1 200")


def _early_and_late(memory: list[int]) -> tuple[float, float]:
    n = len(memory)
    return statistics.mean(memory[n // 8 : n // 4] or memory), statistics.mean(memory[3 * n // 4 :] or memory)


def card(found: dict[str, Any]) -> str:
    lines = [f"{found['clients']} clients for {found['seconds']:.0f} s, {found['thought_s']:g} s of thought on average"]
    for name, part in (("pages", found["pages"]), (f"beside {found['streams']} streams", found["beside_streams"])):
        lines.append(
            f"  {name:<22} {part['requests']:>7,} requests   CPU {part['cpu_ms']:.1f} ms each   "
            f"p50 {part['p50_ms']:.0f} ms   p95 {part['p95_ms']:.0f} ms   "
            f"p99 {part['p99_ms']:.0f} ms   errors {part['errors']}   {part['statuses']}"
        )
    lines.append(f"  memory {found['memory_mb']:.0f} MB, growth {found['memory_growth']:+.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
