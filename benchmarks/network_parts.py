"""What the parts of the backbone cost, each beside another way to compute the same. Both ways run in turn, in one process.

    python benchmarks/network_parts.py                       # S/1 of 256 tokens, batch 4, bf16 where the processor or GPU has it
    python benchmarks/network_parts.py --size XL --batch-size 64 --dtype float32

Weights are random. The times are medians; ratio: the other way divided by ours.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from sfd.models.blocks import RMSNorm
from sfd.models.embeddings import RotaryEmbedding
from sfd.processes import inference_device
from sfd.sizes import SIZES

Call = Callable[[], object]
app = typer.Typer(add_completion=False)


@app.command()
def compare(
    size: Annotated[str, typer.Option(help="size of the model")] = "S",
    grid: Annotated[int, typer.Option(help="tokens along one side")] = 16,
    batch_size: Annotated[int, typer.Option(help="images")] = 4,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32, of the matrix products")] = "bfloat16",
    repeats: Annotated[int, typer.Option(help="timed calls of each way")] = 40,
) -> None:
    """Prints a table: milliseconds of each way, and their ratio."""
    width, depth, heads = SIZES[size]
    device, computing = inference_device(), getattr(torch, dtype)
    torch.manual_seed(0)
    heads_shape = (batch_size, heads, grid**2, width // heads)
    pairs = {
        f"QK-norm of {heads_shape}: weight in the input's type / in float32": norms(heads_shape, device, computing),
        f"rotation of {heads_shape}: tables in the input's type / in float32": rotations(
            heads_shape, grid, device, computing
        ),
        f"adaLN of {depth} blocks: one product each / one for all, weights stacked before": modulations(
            width, depth, batch_size, device, computing, stacked_before=True
        ),
        f"adaLN of {depth} blocks: one product each / one for all, weights stacked in the call": modulations(
            width, depth, batch_size, device, computing, stacked_before=False
        ),
    }
    print(
        f"| {size}, {grid**2} tokens, batch {batch_size}, {dtype} on {device} | ours, ms | the other way, ms | ratio |"
    )
    print("|---|---|---|---|")
    for name, (ours, other) in pairs.items():
        seconds = in_turn(ours, other, repeats, device)
        print(f"| {name} | {seconds[0] * 1e3:.2f} | {seconds[1] * 1e3:.2f} | {seconds[1] / seconds[0]:.2f} |")


@torch.no_grad()
def in_turn(ours: Call, other: Call, repeats: int, device: torch.device) -> list[float]:
    """Median seconds of both, called in turn after three calls each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(3 + repeats):
        for call, taken in zip((ours, other), seconds, strict=True):
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[3:]) for taken in seconds]


def norms(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Call, Call]:
    """RMSNorm of queries; with a weight of another type torch computes it operation by operation."""
    ours, other = (norm(shape[-1], eps=1e-6).to(device) for norm in (RMSNorm, nn.RMSNorm))
    x = torch.randn(shape, device=device).to(dtype)
    return lambda: ours(x), lambda: other(x)


def rotations(shape: tuple[int, ...], grid: int, device: torch.device, dtype: torch.dtype) -> tuple[Call, Call]:
    """Rotation of queries; with tables in float32 the result is float32, and cast."""
    rope = RotaryEmbedding(shape[-1], grid).to(device)
    x = torch.randn(shape, device=device).to(dtype)
    ours, other = rope(dtype), rope(torch.float32)
    return lambda: ours.turn(x), lambda: other.turn(x).to(dtype)


def modulations(
    width: int, depth: int, batch_size: int, device: torch.device, dtype: torch.dtype, stacked_before: bool
) -> tuple[Call, Call]:
    """The modulation of all blocks from one condition."""
    layers = [nn.Linear(width, 6 * width, device=device, dtype=dtype) for _ in range(depth)]
    condition = torch.randn(batch_size, width, device=device, dtype=dtype)

    def stack() -> tuple[Tensor, Tensor]:
        return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])

    before = stack()

    def together() -> Tensor:
        weight, bias = before if stacked_before else stack()
        return linear(silu(condition), weight, bias)

    return lambda: [layer(silu(condition)) for layer in layers], together


if __name__ == "__main__":
    app()
