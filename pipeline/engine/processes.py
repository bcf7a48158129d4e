"""Several processes that train one network, as torchrun starts them: each takes its part of every batch.

`torchrun --nproc-per-node 2 -m pipeline.train autoencoder`: the rows are dealt in one order, whatever the number of
processes, gradients are averaged over the rows of the whole batch, and the first process alone leaves traces.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.engine.run import Loss


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    >>> Processes(rank=1, count=2).part(torch.arange(5)).tolist(), Processes().part(torch.arange(5)).tolist()
    ([3, 4], [0, 1, 2, 3, 4])
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Processes:
        """As they have joined; one where none has."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Does this one write, and tell?"""
        return self.rank == 0

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """This process' part of rows; all of them where there are fewer than processes."""
        return rows if len(rows) < self.count else rows.tensor_split(self.count)[self.rank]

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def of_the_first(self, value: float, device: torch.device) -> float:
        """The first process' value: what all decide by."""
        told = torch.tensor(value, dtype=torch.float64, device=device)
        if self.count > 1:
            distributed.broadcast(told, 0)
        return float(told)


class _Step(nn.Module):
    """The loss of a batch as a module's forward pass, which is what gradients are averaged after."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        return self.loss(batch_BF, epoch, noise)


def shared_loss(network: nn.Module, loss: Loss, processes: Processes) -> Loss:
    """The loss whose gradients are averaged over processes; with one process the loss as it is."""
    if processes.count == 1:
        return loss
    return DistributedDataParallel(_Step(network, loss), broadcast_buffers=False)


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun has started beside this one, on a GPU each where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes.here()
    finally:
        distributed.destroy_process_group()
