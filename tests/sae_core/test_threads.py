"""Shares of a job on threads of its own: in order, without gradients, and without touching torch's own threads."""

import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from sae_core.threads import on_all_cores, share_out


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("at_least", [0, 1, 10])
@pytest.mark.parametrize("n", [0, 1, 2, 9, 10, 19, 20, 1000])
def test_shares_are_all_items_in_order_and_none_is_too_small(n: int, at_least: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)

    shares = share_out(n, at_least=at_least)

    assert shares[0].start == 0 and shares[-1].stop == n
    assert all(one.stop == following.start for one, following in pairwise(shares))
    sizes = [share.stop - share.start for share in shares]
    assert len(shares) == 1 or min(sizes) >= at_least
    assert max(sizes) - min(sizes) <= 1
    assert len(shares) == max(1, min(n_threads, n // max(at_least, 1)))


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_items", [0, 1, 2, 20])
def test_results_are_in_the_order_of_the_items(n_items: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)

    assert on_all_cores(lambda item: item * item, range(n_items)) == [item * item for item in range(n_items)]


def test_as_many_items_are_worked_on_at_once_as_there_are_threads() -> None:
    torch.set_num_threads(2)
    both_are_here = threading.Barrier(2)

    places = on_all_cores(lambda _: both_are_here.wait(timeout=30), range(2))  # else the barrier breaks

    assert sorted(places) == [0, 1]


def test_a_worker_has_one_thread_of_torch_and_the_caller_keeps_its_own() -> None:
    for n_threads in (3, 2, 3, 1, 2):
        torch.set_num_threads(n_threads)

        def inside(_: int) -> tuple[int, int, list[slice]]:
            first = torch.get_num_threads()
            torch.ones(100_000).exp()  # what makes a new thread of torch's ask for its count
            return first, torch.get_num_threads(), share_out(100)

        assert on_all_cores(inside, range(6)) == [(1, 1, [slice(0, 100)])] * 6
        assert torch.get_num_threads() == n_threads


def test_a_worker_that_spreads_its_own_work_does_it_itself() -> None:
    torch.set_num_threads(2)

    def outer(item: int) -> list[tuple[int, str]]:
        return on_all_cores(lambda inner: (inner, threading.current_thread().name), [item, item + 1])

    found = on_all_cores(outer, [10, 20])  # waiting for another worker would never end

    assert [[inner for inner, _ in row] for row in found] == [[10, 11], [20, 21]]
    assert all(name.startswith("saescope-core") and row[0][1] == row[1][1] for row in found for _, name in row)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_gradients_are_off_inside_and_as_before_outside(n_threads: int) -> None:
    torch.set_num_threads(n_threads)

    inside = on_all_cores(lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()), range(3))

    assert inside == [(False, False)] * 3
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("n_threads", [1, 2])
def test_inference_mode_holds_inside_too(n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    with torch.inference_mode():
        made_outside = torch.zeros(4)

        on_all_cores(lambda item: made_outside[item].fill_(item), range(4))  # refused outside of the mode

    assert made_outside.tolist() == [0, 1, 2, 3]
    assert on_all_cores(lambda _: torch.is_inference_mode_enabled(), range(2)) == [False, False]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_what_goes_wrong_inside_is_raised_and_the_threads_work_on(n_threads: int) -> None:
    torch.set_num_threads(n_threads)

    with pytest.raises(ZeroDivisionError):
        on_all_cores(lambda item: 1 // item, [1, 0, 2])

    assert on_all_cores(lambda item: 4 // item, [1, 2]) == [4, 2]


def test_several_callers_can_spread_work_at_once() -> None:
    found: dict[int, list[int]] = {}

    def call(number: int) -> None:
        torch.set_num_threads(2)
        found[number] = on_all_cores(lambda item: item + number, range(50))

    callers = [threading.Thread(target=call, args=(1000 * number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)

    assert found == {1000 * number: [item + 1000 * number for item in range(50)] for number in range(4)}
