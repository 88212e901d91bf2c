"""Flux2 with sharded weights: lists inside its blocks are no blocks of their own, and gradients are those of the whole network."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from sfd.models.conditions import ClassCondition
from sfd.models.flux2 import Flux2
from sfd.models.flux2_config import Flux2Config
from sfd.seeding import generator
from sfd.training.sharding import sharded_copy

CONFIG = Flux2Config(3, 5, 2, 1, 2, ClassCondition.numbered(3), head_width=16, semantic_channels=2, two_times=True)


def gradients(network: torch.nn.Module) -> dict[str, Tensor]:
    random = generator(1, "test/inputs")
    x, times = torch.randn(3, 5, 3, 3, generator=random), torch.rand(2, 3, generator=random)
    network(x, *times, torch.arange(3)).velocity.square().mean().backward()
    return {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in network.named_parameters()}


def compare(folder: Path) -> None:
    """In a process of its own."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    whole, random = Flux2(CONFIG), generator(0, "test/weights")
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    sharded = sharded_copy(whole, torch.device("cpu"), use_bf16=False)
    expected = gradients(whole)
    for kind in ("none", "block"):
        sharded.checkpoint_activations(kind)
        sharded.zero_grad()
        torch.testing.assert_close(gradients(sharded), expected, rtol=1e-4, atol=1e-6)
    print("the same")
    torch.distributed.destroy_process_group()


def test_sharded_weights_have_the_gradients_of_the_whole_network(tmp_path: Path) -> None:
    from support import environment  # not in the process that runs this file as a script

    command = ["python", __file__, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment() | {"RANK": "0", "WORLD_SIZE": "1"})
    assert run.returncode == 0 and "the same" in run.stdout, run.stderr


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
