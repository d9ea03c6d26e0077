"""Several processes, started by `accelerate launch`: one graft in all of them, gradients averaged, the frozen
trunk spread.

The graft is small and stands whole in every process. The trunk takes no gradient; with `shard` each process
keeps only its share of every block's weights and gathers the block while it runs (PyTorch's `fully_shard`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

if TYPE_CHECKING:
    from regraft.training.trainer import Task


def processes() -> PartialState:
    """Which of how many processes this is, as the launcher says."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())


def same_everywhere(graft: nn.Module, accelerator: Accelerator) -> None:
    """Every process starts with the first one's parameters."""
    if accelerator.num_processes > 1:
        with torch.no_grad():
            for parameter in graft.parameters():
                parameter.copy_(broadcast(parameter.detach().clone()))


def mean_over(value: float, accelerator: Accelerator) -> float:
    """A number's mean over the processes."""
    if accelerator.num_processes == 1:
        return value
    found = accelerator.reduce(
        torch.tensor(value, device=accelerator.device, dtype=torch.float64), reduction="mean"
    )
    return float(found)  # pyright: ignore[reportArgumentType]


def anywhere(flags: Tensor) -> Tensor:
    """What is true in any process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return flags
    found = flags.int()
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found.bool()


def average(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Gradients averaged over the processes; of sparse ones the rows of all are put together."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            parameter.grad = _together(gradient.coalesce(), accelerator)
        else:
            parameter.grad = accelerator.reduce(gradient, reduction="mean")  # pyright: ignore[reportAttributeAccessIssue]


def _together(gradient: Tensor, accelerator: Accelerator) -> Tensor:
    """The mean of sparse gradients, whose numbers of rows may differ: padded with empty rows to the
    longest."""
    places, values = gradient.indices()[0], gradient.values()
    longest = int(accelerator.gather(torch.tensor([len(places)], device=places.device)).max())  # pyright: ignore
    places = nn.functional.pad(places, (0, longest - len(places)))
    values = nn.functional.pad(values, (0, 0, 0, longest - len(values)))
    every, rows = accelerator.gather(places[None]), accelerator.gather(values[None])
    assert isinstance(every, Tensor)
    assert isinstance(rows, Tensor)
    mean = rows.flatten(0, 1) / accelerator.num_processes
    return torch.sparse_coo_tensor(every.flatten()[None], mean, gradient.shape, is_coalesced=False).coalesce()


@contextmanager
def trunk_spread(task: Task, accelerator: Accelerator, shard: bool) -> Iterator[None]:
    """Spread every block of the trunk over the processes, if that was asked for; they stay so, and take no
    gradients.

    Raises:
        ValueError: there is one process only, so there is nothing to spread over.
    """
    if not shard and accelerator.distributed_type != DistributedType.FSDP:
        yield
        return
    if accelerator.num_processes == 1:
        raise ValueError(
            "there is one process, so nothing to spread the trunk over: start with `accelerate launch`"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in task.blocks():
        block.requires_grad_(False)
        fully_shard(block, mesh=mesh)
    yield
