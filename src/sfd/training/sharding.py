"""Fully sharded training (torch's FSDP2): every process keeps an equal part of all weights, averages and optimizer states.

Weights are gathered block by block while they are needed. Products are those of plain data parallelism, so losses differ by rounding only.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sfd.processes import rank, world_size

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""States hold whole tensors on the CPU, in process 0 alone. For unsharded networks as well, so that both have checkpoints of one form."""


def sharded_copy(network: nn.Module, device: torch.device, use_bf16: bool, compile_blocks: bool = False) -> nn.Module:
    """A copy of ``network`` that is shared among all processes, on ``device``. All processes must call it.

    The copy has the weights of process 0. No process ever holds all of its weights: they are sent tensor by tensor.
    """
    copied = _without_storage(network)
    shard(copied, device, use_bf16, compile_blocks)
    state = network.state_dict() if rank() == 0 else {}
    copied.to_empty(device=device)
    for mine, theirs in zip(copied.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)  # some are in no state
    set_model_state_dict(copied, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return copied


def _without_storage(network: nn.Module) -> nn.Module:
    """A copy on the meta device: shapes, no values."""
    tensors = [*network.parameters(), *network.buffers()]
    memo: dict[int, object] = {}
    for tensor in tensors:
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)


def shard(network: nn.Module, device: torch.device, use_bf16: bool, compile_blocks: bool) -> None:
    """Splits the network's weights among all processes, in place.

    Each entry of an outermost ``ModuleList`` (a transformer's blocks) is gathered alone, and the rest of the network together. With
    ``use_bf16``, weights are gathered in bf16 and gradients are summed in float32. Inputs keep their type, because times need float32: under
    autocast, each operation casts what it can take in bf16.

    ``compile_blocks``: compile each block by itself. Weights are gathered and given up between the blocks, so that the whole network would not
    be one graph.
    """
    policy = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if use_bf16
        else MixedPrecisionPolicy()
    )
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in list(_blocks(network)):
        if compile_blocks:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The entries of its module lists, but for lists inside entries."""
    for part in network.children():
        if isinstance(part, nn.ModuleList):
            yield from part
        else:
            yield from _blocks(part)


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
