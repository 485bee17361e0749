"""The processes that train one policy together, as an algorithm sees them: sums and means over all of them.

Every process holds the whole policy and a share of each batch. What is drawn at random is drawn for the whole batch in every
process, so that a photo's noise does not depend on how many there are, and gradients are averaged before a step: several
processes take the step that one would take with the same batch, but for the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: the main one may be waiting for a server, or looking at held-out photos."""


class World(Protocol):
    """Attributes: ``rank`` of this process, 0 for the main one, and ``size``, how many there are."""

    rank: int
    size: int

    def mean(self, value: float) -> float:
        """The mean of every process's number."""
        ...

    def total(self, value: float) -> float:
        """Their sum."""
        ...

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of every process's tensor in order of rank; they may differ in number."""
        ...

    def average_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Set every parameter's gradient to its mean over the processes; one without counts as 0."""
        ...

    def share(self, parameters: Sequence[torch.Tensor]) -> None:
        """Set every parameter to what the main process has: what was drawn at random when they were made may differ."""
        ...

    def from_main(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns in the main process; the others wait for it."""
        ...


class Alone:
    """`World` of one process."""

    rank, size = 0, 1

    def mean(self, value: float) -> float:
        """The number."""
        return value

    def total(self, value: float) -> float:
        """The number."""
        return value

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        return values

    def average_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Nothing."""

    def share(self, parameters: Sequence[torch.Tensor]) -> None:
        """Nothing."""

    def from_main(self, compute: Callable[[], T]) -> T:
        """What it returns."""
        return compute()


class Processes:
    """`World` of the processes that ``accelerate launch`` or ``torchrun`` started; `join_world` makes it."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def mean(self, value: float) -> float:
        """See `World`."""
        return self.total(value) / self.size

    def total(self, value: float) -> float:
        """See `World`."""
        each: list[float] = [0.0] * self.size
        distributed.all_gather_object(each, value)
        return sum(each)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """See `World`."""
        each: list[Any] = [None] * self.size
        distributed.all_gather_object(each, values.cpu())
        return torch.cat(each).to(values.device)

    def average_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """See `World`; all gradients travel as one tensor."""
        each = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten().float() for gradient in each])
        distributed.all_reduce(flat)
        flat /= self.size
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def share(self, parameters: Sequence[torch.Tensor]) -> None:
        """See `World`."""
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)

    def from_main(self, compute: Callable[[], T]) -> T:
        """See `World`."""
        held: list[Any] = [compute() if self.rank == 0 else None]
        distributed.broadcast_object_list(held, src=0)
        result: T = held[0]
        return result


ALONE: World = Alone()


def join_world(device: torch.device) -> tuple[World, torch.device]:
    """The world this process belongs to, and its own device: of several processes, the GPU of its local rank, or the CPU."""
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    if state.num_processes == 1:
        return ALONE, device
    return Processes(), state.device
