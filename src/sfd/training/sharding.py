"""Fully sharded training (torch's FSDP2): every process keeps an equal part of all weights, averages and optimizer states.

Weights are gathered block by block while they are needed. Products are those of plain data parallelism, so losses differ by rounding only.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from sfd.processes import world_size


def shard(network: nn.Module, device: torch.device) -> None:
    """Splits the network's weights among all processes, in place and onto ``device``.

    Each entry of a ``ModuleList`` (a transformer's blocks) is gathered by itself, all that is left together.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for part in [part for part in network.modules() if isinstance(part, nn.ModuleList)]:
        for block in part:
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def gather(state: Any, keep: bool) -> Any:
    """Nested state with whole tensors, on the CPU, in the place of sharded ones. All processes must call it.

    Without ``keep``, a process takes part and gets None for them, so that a machine holds the whole state once.
    """

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        gathered = value.full_tensor()
        return gathered.cpu() if keep else None

    return tree_map(whole, state)


def share(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, if ``like`` is sharded; inverse of :func:`gather`."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
