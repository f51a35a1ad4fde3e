"""Does the dashboard stay up, quick, and of one size? Many people at once, for a minute or for half an hour.

    python -m benchmarks.load [--seconds 60] [--clients 50] [--streams 1000] [--writes 0.05] [--database URL]

1. Plant a database of 4,096 features and an SAE of the model that ships, and serve both with `saescope serve`, in a
   process of its own with its model worker, beside a training run that is at work for as long as this goes on. A page
   of each kind is read before the clock starts: a server that has just begun first puts its templates together.
2. Clients, each like a person: a page, a second of thought on average, the next; now and then a text is probed, or a
   label or a list written. A request's time is until all of the answer is there.
3. Every few seconds the resident memory of server and worker is looked at: at the start, after warming up (the second
   eighth of the time) and at the end (the last quarter). Growth is that of the end over what was warm.
   With SAESCOPE_WORKERS=2 each look is at the one that answers, so the mean is of all.
4. Then, with nobody gone, `--streams` listeners open the run's stream of events, and the same is asked again for a
   tenth of the time.
5. Print a card and, last, one line of JSON. Exit code 1 if there was an error: any answer but 200, and but 503 to a
   probe, which a full queue gives.

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
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.server import allow_files
from benchmarks import web
from benchmarks.probe import WORDS, made_sae
from benchmarks.store import SLUG, planted_records, planted_sae, vocabulary
from benchmarks.train import machine
from sae_core import tokens
from sae_core.config import TrainConfig
from sae_core.loading import load_model
from sae_core.run_log import CONFIG_FILE, RunFiles, recorded
from sae_core.store import Store

FEATURES = 4096
THOUGHT = 1.0  # seconds between a client's requests, on average
PROBES, WRITES = 0.1, 0.05  # of all requests
LOOKS = 200  # at the memory
KINDS = ("pages", "probes", "writes")
GAUGES = {"server": "saescope_memory_bytes", "worker": "saescope_model_memory_bytes"}


@dataclass
class Seen:
    """What the clients have seen: seconds and statuses by kind of request, and bytes of memory by process."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    statuses: Counter[str] = field(default_factory=Counter)
    memory: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in GAUGES})
    cpu_seconds: float = 0.0  # of the server

    def summary(self) -> dict[str, Any]:
        n = sum(map(len, self.seconds.values()))
        return {
            "requests": n, "cpu_ms": 1000 * self.cpu_seconds / max(1, n), "statuses": dict(self.statuses),
            "errors": sum(n for status, n in self.statuses.items() if not _is_well(status)),
            **{kind: _percentiles(found) for kind, found in self.seconds.items() if found},
        }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.load", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--writes", type=float, default=WRITES, help="share of all requests (0.05)")
    parser.add_argument("--database", help="an empty one (SQLite in a temporary folder)")
    arguments = parser.parse_args(argv)
    found = measured(
        arguments.database, seconds=arguments.seconds, clients=arguments.clients, streams=arguments.streams,
        n_features=arguments.features, writes=arguments.writes,
    )  # fmt: skip
    print(card(found), end="\n\n")
    print(json.dumps({"bench": "load", "unit": "ms", **found, "machine": machine()}))
    return 1 if found["alone"]["errors"] or found["beside_streams"]["errors"] else 0


def measured(
    url: str | None, *, seconds: float, clients: int, streams: int, n_features: int, writes: float = WRITES
) -> dict[str, Any]:
    """The whole of it: what was seen, by part."""
    allow_files(streams + clients + 200)
    with TemporaryDirectory(prefix="saescope-load-") as folder:
        home = Path(folder)
        url = url or f"sqlite:///{home}/saescope.db"
        model = load_model("demo")
        with closing(Store.open(url)) as store:
            store.add_sae(planted_sae(n_features), vocabulary())
            store.add_index(planted_records(n_features))
            store.add_sae(made_sae(home / "sae", model), tokens.vocabulary(model.tokenizer))
        files = RunFiles(home / "runs" / "at-work")
        files.folder.mkdir(parents=True)
        TrainConfig(model="demo", layer=3, corpus=("x",), d_sae=300, k=15).save(files.folder / CONFIG_FILE)
        with web.served(url, home=home) as (address, process), recorded([files], kind="training", processes=1) as log:
            _warm(address, n_features)
            crowd = _Crowd(address, process, clients=clients, n_features=n_features, writes=writes)
            alone, beside, heard = asyncio.run(crowd.stay(seconds=seconds, streams=streams))
            log.stop()
    return {
        "seconds": seconds, "clients": clients, "thought_s": THOUGHT, "writes": writes, "features": n_features,
        "streams": heard,
        "alone": alone.summary(), "memory": {name: _grown(found) for name, found in alone.memory.items()},
        "beside_streams": beside.summary(),
    }  # fmt: skip


def _warm(address: str, n_features: int) -> None:
    """Somebody was there before: the model is loaded, and every process has made a page of each kind."""
    httpx.post(f"{address}/api/saes/random/probe", json={"text": "warm"}, timeout=120).raise_for_status()
    rng = random.Random(n_features)
    for _ in range(2 * int(os.environ.get("SAESCOPE_WORKERS", "1"))):
        for address_of in web.pages(n_features).values():  # over a connection each: any process may take it
            httpx.get(address + address_of(rng), timeout=60).raise_for_status()


class _Crowd:
    """People at one dashboard."""

    def __init__(self, address: str, process: int, *, clients: int, n_features: int, writes: float) -> None:
        self._address, self._process = address, process
        self._shares = 1 - PROBES - writes, PROBES, writes
        self._clients, self._n_features = clients, n_features
        self._pages = list(web.pages(n_features).values())

    async def stay(self, *, seconds: float, streams: int) -> tuple[Seen, Seen, int]:
        """What they see alone, what beside the streams, and how many of those were opened."""
        alone = await self._people(seconds)
        listening = [asyncio.create_task(_listen(self._address)) for _ in range(streams)]
        heard = sum(await asyncio.gather(*(_opened(task) for task in listening)))
        beside = await self._people(max(5, seconds / 10))
        for task in listening:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result()[1].close()
        return alone, beside, heard

    async def _people(self, seconds: float) -> Seen:
        seen, worked, end = Seen(), cpu_of(self._process), time.monotonic() + seconds
        people = [asyncio.create_task(self._person(number, seen, end)) for number in range(self._clients)]
        async with self._client() as client:
            while time.monotonic() < end:
                for name, n_bytes in _memory((await client.get("/metrics")).text).items():
                    seen.memory[name].append(n_bytes)
                await asyncio.sleep(max(0.5, seconds / LOOKS))
        await asyncio.gather(*people)
        seen.cpu_seconds = cpu_of(self._process) - worked
        return seen

    def _client(self) -> httpx.AsyncClient:
        # There is no TLS, and to read the certificates for it would hold up all others for 30 ms each.
        return httpx.AsyncClient(base_url=self._address, timeout=60, verify=False)

    async def _person(self, number: int, seen: Seen, end: float) -> None:
        rng = random.Random(number)
        async with self._client() as client:
            await asyncio.sleep(rng.random() * THOUGHT)
            while time.monotonic() < end:
                (kind,) = rng.choices(KINDS, self._shares)
                began = time.perf_counter()
                try:
                    status = str((await self._ask(client, rng, kind, number)).status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                seen.statuses[f"{kind} {status}"] += 1
                seen.seconds[kind].append(time.perf_counter() - began)
                await asyncio.sleep(rng.expovariate(1 / THOUGHT))

    async def _ask(self, client: httpx.AsyncClient, rng: random.Random, kind: str, number: int) -> httpx.Response:
        if kind == "pages":
            return await client.get(rng.choice(self._pages)(rng))
        if kind == "probes":
            body = {"text": " ".join(rng.choices(WORDS, k=40)), "session": str(number)}
            return await client.post("/api/saes/random/probe", json=body)
        feature = rng.randrange(self._n_features)
        if rng.random() < 0.5:
            path = f"/api/saes/{SLUG}/features/{feature}/label"
            return await client.put(path, json={"text": f"label {rng.random()}", "author": "load"})
        return await client.post("/api/lists", json={"title": f"list {feature}", "author": "load"})


def cpu_of(process: int) -> float:
    """Seconds of processor time that it has taken, which other work on the machine does not change; with several server
    processes (SAESCOPE_WORKERS) that of all, their model workers included."""
    processes = [process, *(_below(process) if int(os.environ.get("SAESCOPE_WORKERS", "1")) > 1 else ())]
    return sum(sum(map(int, _stat(one)[11:13])) for one in processes) / os.sysconf("SC_CLK_TCK")


def _below(process: int) -> Iterator[int]:
    """The processes that it started, and those that they did."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="ascii").split()):
            yield child
            yield from _below(child)


def _stat(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(") ", 1)[1].split()


def _memory(metrics: str) -> dict[str, float]:
    found = dict(line.split() for line in metrics.splitlines() if line.startswith(tuple(GAUGES.values())))
    return {name: float(found[gauge]) for name, gauge in GAUGES.items()}


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


def _is_well(status: str) -> bool:
    return status.endswith(" 200") or status == "probes 503"


def _percentiles(seconds: list[float]) -> dict[str, float]:
    found = sorted(seconds)
    return {
        f"p{percent}_ms": 1000 * found[min(len(found) - 1, len(found) * percent // 100)] for percent in (50, 95, 99)
    }


def _grown(memory: list[float]) -> dict[str, float]:
    n = len(memory)
    warm, end = statistics.mean(memory[n // 8 : n // 4] or memory), statistics.mean(memory[3 * n // 4 :] or memory)
    return {"start_mb": memory[0] / 1e6, "warm_mb": warm / 1e6, "end_mb": end / 1e6, "growth": end / warm - 1}


def card(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    lines = [f"{found['clients']} clients for {found['seconds']:g} s, {found['thought_s']:g} s of thought on average"]
    for name, part in (("alone", found["alone"]), (f"beside {found['streams']} streams", found["beside_streams"])):
        statuses = ", ".join(f"{status}: {n:,}" for status, n in sorted(part["statuses"].items()))
        lines.append(
            f"  {name}: {part['requests']:,} requests, CPU {part['cpu_ms']:.1f} ms each, errors {part['errors']} "
            f"({statuses})"
        )
        for kind in KINDS:
            if kind in part:
                shown = "   ".join(f"{name.removesuffix('_ms')} {value:8.1f} ms" for name, value in part[kind].items())
                lines.append(f"    {kind:<7} {shown}")
    for name, grown in found["memory"].items():
        lines.append(
            f"  memory of the {name}: {grown['start_mb']:.0f} MB at the start, {grown['warm_mb']:.0f} warm, "
            f"{grown['end_mb']:.0f} at the end: {grown['growth']:+.1%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
