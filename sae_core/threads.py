"""Work on the CPU's cores: one Python thread per core, each running single-threaded torch.

torch's own threads meet at a barrier after every operation, and wait there, spinning, for the slowest: beside other
work on the same cores that makes them several times slower. Whole shares of a job need no barriers but the last. As
many threads are used as torch would (`torch.get_num_threads()`, so OMP_NUM_THREADS counts).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier, Lock, local
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_lock = Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_inside = local()  # `is_worker` is set in the threads of a pool


def share_out(n: int, *, at_least: int = 1) -> list[slice]:
    """`n` items as one slice per core, in order; fewer slices where they would hold fewer than `at_least`."""
    n_shares = max(1, min(_n_threads(), n // max(at_least, 1)))
    bounds = [n * i // n_shares for i in range(n_shares + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def on_all_cores(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function` of every item, in order, spread over the cores. Gradients are off, as their mode is per thread."""
    n_threads = _n_threads()
    if n_threads == 1 or len(items) <= 1:
        with torch.no_grad():
            return [function(item) for item in items]
    is_inference = torch.is_inference_mode_enabled()

    def without_gradients(item: T) -> R:
        with torch.inference_mode(is_inference), torch.no_grad():
            return function(item)

    return list(_pool(n_threads).map(without_gradients, items))


def _n_threads() -> int:
    return 1 if getattr(_inside, "is_worker", False) else torch.get_num_threads()


def _pool(n_threads: int) -> ThreadPoolExecutor:
    with _lock:
        if n_threads not in _pools:
            _pools[n_threads] = _started(n_threads)
        return _pools[n_threads]


def _started(n_threads: int) -> ThreadPoolExecutor:
    """A pool whose threads all run, each with one thread of torch's.

    Setting a thread's count also sets what other threads get when they first ask, so each asks before it sets its own,
    and it is set back when all have.
    """
    all_started = Barrier(n_threads + 1)

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        _inside.is_worker = True
        all_started.wait()

    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="saescope-core")
    for _ in range(n_threads):
        pool.submit(start)
    all_started.wait()
    torch.set_num_threads(n_threads)
    return pool
