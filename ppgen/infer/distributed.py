"""Many processes that train one model on `torch.distributed`: who they are, what they share, and what they agree on.

With W ranks, rank r takes the r-th contiguous share of the rows of each global batch. A loss is a mean over rows, so
that the loss of the global batch of n rows, and its gradient, is the mean over ranks weighted by their n_r rows,

    L = sum_r n_r / n L_r .

A `Ranks` is the process group as training sees it; without a group it is one rank, and costs nothing.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn  # imported after a group was made, its default arguments would keep that group alive
from torch import Tensor

from ppgen.tracing.plates import sharded_plates

__all__ = ["Ranks", "check_launch", "initialize", "joined", "launched_ranks", "shares"]

PORTS = 15000, 20000  # the first port, and how many, of jobs that name none


class Ranks:
    """The processes that train together, and what this one does of the current step.

    Args:
        alone: whether this process trains by itself even if there is a process group.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        rows: the rows of this rank's share of the current batch.
        whole: the rows of the current global batch.
        plates: the names of the plates that have one row for each row of a batch.
        buffers: the tensors that steps change besides parameters; after each step they are the mean over ranks.
    """

    def __init__(self, *, alone: bool = False) -> None:
        grouped = not alone and dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        self.rows = self.whole = 1
        self.plates: tuple[str, ...] = ()
        self.buffers: list[Tensor] = []
        self._wanted: dict[str, bool] = {}
        self._agreed: dict[str, bool] = {}

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files."""
        return self.rank == 0

    @property
    def weight(self) -> float:
        """The share of this rank in the current global batch."""
        return self.rows / self.whole

    def begin_step(self, rows: int | None, whole: int | None) -> None:
        """Notes the rows of the next step.

        Args:
            rows: those of this rank; None for programs without data, of which each rank counts alike.
            whole: those of the global batch.
        """
        self._agreed = {}
        self.see(rows, whole)

    def see(self, rows: int | None, whole: int | None) -> None:
        """Notes the rows that the programs see, in a step or elsewhere; arguments as for `begin_step`."""
        self.rows, self.whole = (1, self.size) if rows is None or whole is None else (rows, whole)

    @contextmanager
    def shard(self) -> Iterator[None]:
        """Programs that run inside ``with`` see plates of the size of the global batch, of which this is a share."""
        if self.size == 1 or not self.plates:
            yield
            return
        with sharded_plates(self.plates, self.rows, self.whole):
            yield

    def seed(self, *numbers: int) -> int:
        """A seed of a random stream of this rank's own; the first number itself on one rank.

        Args:
            *numbers: what the seed depends on besides the rank.
        """
        if self.size == 1:
            return numbers[0]
        return int(np.random.SeedSequence([*numbers, self.rank, self.size]).generate_state(1, np.uint64)[0] >> 1)

    def any(self, name: str, wanted: bool) -> bool:
        """Whether a rank wants something that all have to do together, such as to stop.

        The wish travels with the next step's gradients, so that with many ranks it is granted one step later.

        Args:
            name: what is wanted, one of `WISHES`.
            wanted: whether this rank wants it.
        """
        if self.size == 1:
            return wanted
        self._wanted[name] = self._wanted.get(name, False) or wanted
        return self._agreed.get(name, False)

    def wishes(self) -> list[float]:
        """The wishes of this rank as numbers, which `grant` takes back as their sums over ranks."""
        wished = [float(self._wanted.get(name, False)) for name in WISHES]
        self._wanted = {}
        return wished

    def grant(self, sums: Sequence[float]) -> None:
        """Notes what the ranks agreed on, until the next step.

        Args:
            sums: the sums of `wishes` over the ranks.
        """
        for name, count in zip(WISHES, sums, strict=True):
            self._agreed[name] = self._agreed.get(name, False) or count > 0

    def sum(self, numbers: Tensor) -> Tensor:
        """Adds a tensor over the ranks, in place.

        Args:
            numbers: the tensor.
        """
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def mean(self, value: float, rows: int, whole: int) -> float:
        """The mean over rows of a number that each rank has for its rows.

        Args:
            value: this rank's number.
            rows: its rows; without rows the number does not count.
            whole: the rows of all ranks.
        """
        if self.size == 1:
            return value
        weighted = value * rows / whole if rows else 0.0
        return float(self.sum(torch.tensor([weighted], dtype=torch.float64, device=_device()))[0])

    def gather(self, value: Any) -> list[Any]:
        """One object of each rank, in their order, on all ranks.

        Args:
            value: this rank's object, which is pickled.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Gives tensors the values that they have on rank 0, in place.

        Args:
            tensors: the same on each rank, in the same order.
        """
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in tensors:
                values = tensor.detach().contiguous()
                dist.broadcast(values, 0)
                tensor.copy_(values)

    def wait(self) -> None:
        """Waits until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a process group is no process group."""
        return vars(self) | {"rank": 0, "size": 1}


WISHES = ("stop", "interrupt", "checkpoint")  # what `Ranks.any` is asked


def shares(rows: int, ranks: int, *, single: bool = False) -> list[tuple[int, int]]:
    """Contiguous shares of the rows of a batch, one for each rank, as (start, stop).

    They differ by at most one row. Neither batch norm nor an unbiased metric is defined for one row, so that a batch
    with fewer than two rows a rank goes to fewer ranks, and the shares of the others are empty.

    Args:
        rows: the number of rows.
        ranks: the number of ranks.
        single: whether shares of one row are wanted, as with a batch size of one.
    """
    used = max(1, min(ranks, rows if single else rows // 2))
    bounds = [rows * r // used for r in range(used + 1)] + [rows] * (ranks - used)
    return list(pairwise(bounds))


def launched_ranks() -> int:
    """The number of processes that torchrun or a SLURM job step started together, by their environment; 1 if none."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "SLURM_PROCID" in os.environ:  # a batch script has it too, but is no step
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return 1


def check_launch(distribute: str | None) -> None:
    """Checks that processes that were started together train together, unless they are to train alone.

    Args:
        distribute: what they share, or None.

    Raises:
        ValueError: if they have no process group; the message has the line that makes one.
    """
    if distribute is not None and launched_ranks() > 1 and not dist.is_initialized():
        raise ValueError(
            f"fit: this is one of {launched_ranks()} processes that have no process group, so that each would train on "
            "all data by itself. Join them, `from ppgen.infer.distributed import initialize; initialize()`, or give "
            "distribute=None if each is to train by itself"
        )


def initialize() -> bool:
    """Joins the processes that torchrun or a SLURM job step started, if there are several that have not been joined.

    On GPUs each process takes the one of its local rank.

    Returns:
        Whether it made a process group, which `torch.distributed.destroy_process_group` ends.

    Raises:
        ValueError: if SLURM's list of hosts is missing.
    """
    if launched_ranks() == 1 or dist.is_initialized():
        return False
    if "RANK" not in os.environ:
        _environment_from_slurm()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return True


@contextmanager
def joined() -> Iterator[Ranks]:
    """Joins the processes that were started together, if there are several, and leaves them at the end of ``with``."""
    made = initialize()
    try:
        yield Ranks()
    finally:
        if made:
            dist.destroy_process_group()


def _environment_from_slurm() -> None:
    """Sets torchrun's environment variables from those of a SLURM job step; variables that are set stay."""
    job = os.environ
    hosts = job.get("SLURM_STEP_NODELIST") or job.get("SLURM_JOB_NODELIST") or job.get("SLURM_NODELIST")
    if not hosts and "MASTER_ADDR" not in job:
        raise ValueError("SLURM_PROCID is set, but SLURM_NODELIST is not: set MASTER_ADDR to the first host")
    first, number = PORTS
    values = {
        "RANK": job["SLURM_PROCID"],
        "WORLD_SIZE": job["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": job.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": _first_host(hosts or ""),
        "MASTER_PORT": str(first + int(job.get("SLURM_JOB_ID", "0")) % number),
    }
    for name, value in values.items():
        job.setdefault(name, value)


def _first_host(hosts: str) -> str:
    """The first of SLURM's hosts, such as "gpu03" of "gpu[03-05,07],cpu1"."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", hosts)
    return "".join(part or "" for part in match.groups()) if match else hosts


def _device() -> torch.device:
    """Where the group adds up tensors."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
