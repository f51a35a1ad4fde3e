"""What the server counts, in the text format that Prometheus reads (its exposition format, version 0.0.4).

Latency is the time until an answer begins: a stream of events lasts as long as somebody listens.
"""

import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from pathlib import Path
from typing import Protocol, runtime_checkable

from fastapi import Request

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


@runtime_checkable
class Worker(Protocol):
    """What can be told of a model worker; a stand-in need not tell it."""

    def n_pending(self) -> int: ...
    def process_id(self) -> int | None: ...


class Metrics:
    """Counts of this process since it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()
        self._began = time.time()
        self.in_flight = 0

    def began(self, request: Request, status: int, seconds: float) -> None:
        """Counts an answer that begins. By route, not by address, and known methods, so that this stays bounded."""
        route = getattr(request.scope.get("route"), "path", None) or _other(request)
        method = request.method if request.method in METHODS else "other"
        with self._lock:
            self._requests[method, route, status] += 1
            buckets = self._latencies.setdefault(route, [0] * (len(BUCKETS) + 1))
            buckets[bisect_left(BUCKETS, seconds)] += 1
            self._seconds[route] += seconds  # type: ignore[assignment]

    def text(self, inference: object) -> str:
        """All of it. `inference`: the model worker."""
        with self._lock:
            requests = sorted(self._requests.items())
            latencies = sorted((route, list(found), self._seconds[route]) for route, found in self._latencies.items())
        lines = _head("saescope_requests_total", "counter", "Requests that were answered.")
        lines += [
            f'saescope_requests_total{{method="{method}",route="{_escaped(route)}",status="{status}"}} {n}'
            for (method, route, status), n in requests
        ]
        lines += _head("saescope_request_seconds", "histogram", "Seconds until the answer began.")
        for route, buckets, seconds in latencies:
            lines += _histogram(_escaped(route), buckets, seconds)
        gauges = {
            "saescope_requests_in_flight": ("Requests under way, streams of events included.", self.in_flight),
            "saescope_memory_bytes": ("Resident memory of this process.", memory_of(os.getpid())),
            "saescope_start_time_seconds": ("When this process began.", self._began),
        }
        if isinstance(inference, Worker):
            worker = inference.process_id()
            gauges["saescope_model_queue"] = ("Probes that wait or run.", inference.n_pending())
            gauges["saescope_model_up"] = ("Whether the model worker's process is there.", int(worker is not None))
            gauges["saescope_model_memory_bytes"] = (
                "Resident memory of the model worker.",
                memory_of(worker) if worker is not None else 0,
            )
        for name, (meaning, value) in gauges.items():
            lines += [*_head(name, "gauge", meaning), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def memory_of(process_id: int) -> int:
    """Resident bytes; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{process_id}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _other(request: Request) -> str:
    return "/static" if "/static/" in request.url.path else "other"


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]


def _histogram(route: str, buckets: list[int], seconds: float) -> list[str]:
    lines, n = [], 0
    for bound, own in zip([*map(str, BUCKETS), "+Inf"], buckets, strict=True):
        n += own
        lines.append(f'saescope_request_seconds_bucket{{route="{route}",le="{bound}"}} {n}')
    lines.append(f'saescope_request_seconds_sum{{route="{route}"}} {seconds:.6f}')
    lines.append(f'saescope_request_seconds_count{{route="{route}"}} {n}')
    return lines


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
