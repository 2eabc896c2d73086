"""The processes that share the work on one folder, and how they wait for each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from dogbreed.core.errors import DogbreedError

LONGEST_WAIT = timedelta(days=7)


class Group:
    """The processes that share the work on one folder.

    Args:
        rank: Of this process.
        world: Number of processes.
        all_well: Waits for the others, and says whether all is well with all of them.
    """

    def __init__(self, rank: int = 0, world: int = 1, all_well: Callable[[bool], bool] = bool) -> None:
        self.rank, self.world, self._all_well = rank, world, all_well

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold a step that all processes take: where one fails, none goes on, and none waits for it."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, the others must not wait for this process
            problem = error
        if not self._all_well(problem is None):
            raise problem or DogbreedError("another process could not compute its part of the features")


@contextmanager
def patient(otherwise: Callable[[bool], bool]) -> Iterator[Callable[[bool], bool]]:
    """Yield an `all_well` that waits as long as it takes.

    Another run's lock, a download or another machine's share may take hours. NCCL ends a process that waits for one of
    the others for half an hour, the Trainer's limit; Gloo, on the CPU, gets a limit of its own.

    Args:
        otherwise: The `all_well` where no processes are joined by torch.distributed.
    """
    joined = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if not (joined and distributed.is_gloo_available()):
        yield otherwise
        return
    processes: Any = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def all_well(well: bool) -> bool:
        least = torch.tensor(int(well))
        distributed.all_reduce(least, distributed.ReduceOp.MIN, group=processes)
        return bool(least)

    try:
        yield all_well
    finally:
        distributed.destroy_process_group(processes)
