"""What the parts of the backbone cost, each beside another way to compute the same; and what options of the training save.

    python benchmarks/network_parts.py parts                 # S/1 of 256 tokens, batch 4, products in bf16
    python benchmarks/network_parts.py parts --size XL --batch-size 64 --dtype float32
    python benchmarks/network_parts.py steps                 # checkpointing, TREAD and SPRINT: time, memory, operations of a step
    python benchmarks/network_parts.py steps --size XL --batch-size 64

Weights are random, times are medians. `parts` runs both ways in turn in one process; ratio: the other way divided by ours. `steps` runs the
forward and the backward pass of each option in a process of its own. Its memory is the peak less what was there before the first step: on a CPU
the process's, on a GPU torch's. Times on a CPU are those of the processor.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils._pytree import tree_map_only

from sfd.bench.measure import count_flops, peak_memory_gib, reset_peak_memory, time_steps
from sfd.models.blocks import RMSNorm
from sfd.models.conditions import ClassCondition
from sfd.models.embeddings import RotaryEmbedding
from sfd.models.lightningdit import LightningDiT
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.models.tokens import Route, SparseDeep, TokenRouting
from sfd.processes import inference_device
from sfd.seeding import generator
from sfd.sizes import SIZES, ModelSize

Call = Callable[[], object]
Type = Literal["bfloat16", "float32"]
app = typer.Typer(add_completion=False)


@app.command()
def parts(
    size: Annotated[ModelSize, typer.Option(help="size of the model")] = "S",
    grid: Annotated[int, typer.Option(min=1, help="tokens along one side")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="images")] = 4,
    dtype: Annotated[Type, typer.Option(help="of the matrix products")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="timed calls of each way")] = 40,
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
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(3 + repeats):
        for call, taken in zip((ours, other), seconds, strict=True):
            started = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - started)
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


CHECKPOINTING = ("none", "selective", "block")
TOKENS = ("all tokens", "TREAD, half", "SPRINT, a quarter")
OPTIONS = [*((TOKENS[0], kind) for kind in CHECKPOINTING), *((tokens, "none") for tokens in TOKENS[1:])]


@app.command()
def steps(
    size: Annotated[ModelSize, typer.Option(help="size of the model")] = "S",
    grid: Annotated[int, typer.Option(min=1, help="tokens along one side")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="images")] = 4,
    dtype: Annotated[Type, typer.Option(help="of the matrix products")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="timed steps of each option")] = 10,
) -> None:
    """Prints a table: milliseconds, memory and operations of a step with each option."""
    shown = f"{size}, {grid**2} tokens, batch {batch_size}, {dtype} on {inference_device()}"
    print(f"| {shown} | checkpointing | ms per step | memory, MiB | GFLOP | time |")
    print("|---|---|---|---|---|---|")
    first = None
    for tokens, checkpointing in OPTIONS:
        arguments = [tokens, checkpointing, size, str(grid), str(batch_size), dtype, str(repeats)]
        done = subprocess.run([sys.executable, __file__, "one", *arguments], stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        first = first or found["seconds"]
        print(
            f"| {tokens} | {checkpointing} | {found['seconds'] * 1e3:.0f} | {found['memory_gib'] * 1024:.0f} | {found['flops'] / 1e9:.0f} | "
            f"x {found['seconds'] / first:.2f} |"
        )


@app.command(hidden=True)
def one(tokens: str, checkpointing: str, size: str, grid: int, batch_size: int, dtype: str, repeats: int) -> None:
    """Prints the numbers of one option as JSON."""
    device, random = inference_device(), generator(0, "benchmark/step")
    network = LightningDiT(shape_of(size, grid, tokens)).initialise(random).to(device)
    network.checkpoint_activations(checkpointing)  # type: ignore[arg-type]  # one of CHECKPOINTING
    config = network.config
    inputs = [torch.randn(batch_size, config.in_channels, grid, grid, generator=random), *torch.rand(2, batch_size)]
    inputs = [value.to(device) for value in (*inputs, config.condition.batch([0] * batch_size))]
    more = {"route": route_of(tokens, config, batch_size, random)} if tokens != TOKENS[0] else {}
    more = {name: tree_map_only(Tensor, lambda part: part.to(device), route) for name, route in more.items()}

    def step() -> None:
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            velocity = network(*inputs, **more).velocity
        velocity.float().square().mean().backward()
        network.zero_grad()

    before = peak_memory_gib()
    reset_peak_memory()
    seconds = statistics.median(step_seconds(step, repeats, device))
    print(json.dumps({"seconds": seconds, "memory_gib": peak_memory_gib() - before, "flops": count_flops(step)}))


def step_seconds(step: Call, repeats: int, device: torch.device) -> list[float]:
    """Seconds of each step after two others: of the GPU, or of the processor, so that other programs on the machine do not decide."""
    if device.type == "cuda":
        return list(time_steps(step, repeats))
    seconds = []
    for _ in range(2 + repeats):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return seconds[2:]


def shape_of(size: str, grid: int, tokens: str) -> LightningDiTConfig:
    """A model of the published channels."""
    width, depth, heads = SIZES[size]
    ends: dict[str, Any] = {"first_blocks": 2, "last_blocks": 2} if tokens == TOKENS[2] else {}
    condition = ClassCondition.numbered(1000)
    return LightningDiTConfig(grid, 48, width, depth, heads, condition, semantic_channels=16, two_times=True, **ends)


def route_of(tokens: str, config: LightningDiTConfig, batch_size: int, random: torch.Generator) -> Route:
    """What the middle blocks see, with the papers' settings."""
    if tokens == TOKENS[1]:
        routing: TokenRouting | SparseDeep = TokenRouting(config.grid**2, 0.5, 2, 4)
    else:
        routing = SparseDeep(config.grid, 1, 0.1, 1, 2, 2)
    drawn = routing.draw(0, batch_size, random)
    return Route(drawn.kept, routing.first_blocks, routing.last_blocks, drawn.without_deep)


if __name__ == "__main__":
    app()
