"""Several processes that train together, started by torchrun: who does what, and what they tell each other.

Every rank holds the same buffer of activations, each having made its share of the forward passes. Then either

    data       every rank holds the whole SAE and takes its share of each batch's rows; gradients are added up
    features   every rank holds a slice of the SAE's features and takes all rows; the largest pre-activations are found
               over all slices, exactly, and the slices' reconstructions are added up

so that the losses are those of one process, up to the order in which floats are added. A single process is the case of
one rank, in which nothing is sent.

Tensors travel where they are: by NCCL between GPUs, by gloo between CPUs. Flags and counts that Python decides by
travel by gloo always, so that no GPU is waited for.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sae_core.errors import ConfigError, RanksError

MODES = ("data", "features")
_TIMEOUT = timedelta(minutes=10)


class Ranks:
    """The processes of a job as one of them sees them."""

    def __init__(self, mode: str = "data") -> None:
        self.mode = mode
        self.is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.is_distributed else 0
        self.size = dist.get_world_size() if self.is_distributed else 1
        self._shapes: list[tuple[int, torch.dtype]] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that shows progress and writes what belongs to all."""
        return self.rank == 0

    @property
    def shards_features(self) -> bool:
        return self.size > 1 and self.mode == "features"

    @property
    def shares_rows(self) -> bool:
        return self.size > 1 and self.mode == "data"

    def share_of(self, n: int, rank: int | None = None) -> slice:
        """A rank's part (this one's, unless given) of n things in a row."""
        rank = self.rank if rank is None else rank
        return slice(n * rank // self.size, n * (rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def least(self, value: Tensor) -> Tensor:
        """The smallest over the ranks."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def any(self, mask: Tensor) -> Tensor:
        """True where any rank's mask is."""
        if self.size == 1:
            return mask
        marks = mask.to(torch.uint8)
        dist.all_reduce(marks, dist.ReduceOp.MAX)
        return marks > 0

    def agree(self, value: bool) -> bool:
        """Whether any rank says so."""
        return self.agree_on(value)[0]

    def agree_on(self, *values: bool) -> list[bool]:
        """Of each whether any rank says so, asked at once."""
        return [bool(answer) for answer in self.any(torch.tensor(values)).tolist()]

    def numbers(self, own: int) -> list[int]:
        """Every rank's number, in the order of the ranks."""
        return [int(number) for number in self.gathered(torch.tensor(own))]

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor of the same shape, in the order of the ranks."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def one_by_one(self, tensor: Tensor) -> Iterator[Tensor]:
        """What `gathered` gives, one tensor at a time: for those that are too large together. To be read to its end."""
        for rank in range(self.size):
            part = tensor.contiguous() if rank == self.rank else torch.empty(tensor.shape, dtype=tensor.dtype)
            if self.size > 1:
                part = part.to(tensor.device)
                dist.broadcast(part, rank)
            yield part

    def to_owners(self, rows: Tensor) -> Tensor:
        """Rows (N, w) to the ranks whose `share_of` N they are: of its own n rows each gets all, (size, n, w)."""
        n_own = self._share_sizes(len(rows))[self.rank]
        received = rows.new_empty(self.size * n_own, rows.shape[1])
        dist.all_to_all_single(received, rows.contiguous(), [n_own] * self.size, self._share_sizes(len(rows)))
        return received.view(self.size, n_own, rows.shape[1])

    def from_owners(self, answers: Tensor, n: int) -> Tensor:
        """The way back of `to_owners`: answers (size, n_own, w), one for each asking rank; gives (n, w)."""
        received = answers.new_empty(n, answers.shape[2])
        n_own = answers.shape[1]
        dist.all_to_all_single(received, answers.flatten(0, 1).contiguous(), self._share_sizes(n), [n_own] * self.size)
        return received

    def interleaved(self, own: list[list[Tensor]], n: int) -> list[list[Tensor]]:
        """`n` items of which item i was made by rank i mod size, on every rank. An item is a list of (rows, d).

        Widths and types must be the same in every call: they are sent once.
        """
        if self.size == 1:
            return own
        lengths = torch.zeros(n, dtype=torch.int64)
        for i, item in enumerate(own):
            lengths[self.rank + i * self.size] = len(item[0])
        self.sum(lengths)
        if self._shapes is None:
            self._shapes = self._heard_shapes(own)
        device = own[0][0].device if own else _device()
        items: list[list[Tensor]] = []
        for i, length in enumerate(lengths.tolist()):
            maker = i % self.size
            item = []
            for place, (width, dtype) in enumerate(self._shapes):
                part = (
                    own[i // self.size][place].contiguous()
                    if maker == self.rank
                    else torch.empty(length, width, dtype=dtype, device=device)
                )
                part = part.clone() if part.is_inference() else part
                dist.broadcast(part, maker)
                item.append(part)
            items.append(item)
        return items

    def _heard_shapes(self, own: list[list[Tensor]]) -> list[tuple[int, torch.dtype]]:
        """Width and dtype of an item's tensors; a rank that made none hears them from the first."""
        shapes = [[(part.shape[1], part.dtype) for part in own[0]] if own else None]
        dist.broadcast_object_list(shapes, 0)
        assert shapes[0] is not None
        return shapes[0]

    def _share_sizes(self, n: int) -> list[int]:
        shares = (self.share_of(n, rank) for rank in range(self.size))
        return [share.stop - share.start for share in shares]


class Job:
    """What all processes of a job have besides each other: one place to say why it ended."""

    def __init__(self, ask_turn: Callable[[], int] = lambda: 1) -> None:
        """`ask_turn` gives 1 to the process of the job that asks first, 2 to the next."""
        self._ask_turn = ask_turn

    def say_once(self, sentence: str) -> None:
        """Prints the first sentence that any process has to say; what follows from it in the others is left out."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to those that are left
        try:
            turn = self._ask_turn()
        except RuntimeError:  # whoever counts is gone
            turn = 1
        if turn == 1:
            sys.stderr.write(sentence + "\n")


@contextmanager
def joined_ranks() -> Iterator[Job]:
    """While open, this process is one of those that torchrun started; alone, nothing happens.

    Raises ConfigError if there are fewer GPUs than processes, RanksError if the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Job()
        return
    if torch.cuda.is_available():
        take_gpu()
    try:
        store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
    except dist.DistError as error:
        raise RanksError(
            "The processes of this job cannot reach each other; check --rdzv-endpoint and that the machines may open "
            "connections to one another."
        ) from error
    try:
        yield Job(lambda: int(store.add("saescope", 1)))
    finally:
        dist.destroy_process_group()


@contextmanager
def spoken_by_first() -> Iterator[None]:
    """While open, what torchrun's other processes print is dropped: all of them refuse the same options."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def take_gpu() -> None:
    """Makes the GPU of torchrun's number the one that this process uses. Raises ConfigError if there is none."""
    number, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= n_gpus:
        raise ConfigError(
            f"This machine has only {n_gpus} GPUs for {os.environ.get('LOCAL_WORLD_SIZE', number + 1)} processes; "
            f"start torchrun with --nproc-per-node {n_gpus}."
        )
    torch.cuda.set_device(number)


def _device() -> torch.device:
    """Where a rank's tensors are that made none itself."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
