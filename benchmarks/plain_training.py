"""Our training step beside a plain one, which is textbook code for the same network, loss, optimizer and average. Both are timed in turn.

    python benchmarks/plain_training.py                                        # S/1, batch 8, float32: two CPU cores, about 3 minutes
    python benchmarks/plain_training.py --size XL --batch-size 64 --bf16       # on a GPU
    python benchmarks/plain_training.py --compile                              # ours compiled, as on clusters

The plain side is written as a reader of the paper would write it: attention as two matrix products around a softmax, rotary angles
computed again in every block, norms and SwiGLU operation by operation, AdamW and the averaged weights as loops over parameters. Before
anything is timed, both sides take three steps from the same weights and draws, and must report the same losses.
"""

import copy
import datetime
import math
import os
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

CHECKED_STEPS, WARM_UP = 3, 2
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative difference of a loss. bf16 rounds to 3 digits, and the two sides round at different places."""


class PlainNorm(nn.Module):
    """``x / rms(x) * weight``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + 1e-6)
        return x / scale * self.weight


def turn(x: Tensor, grid: int) -> Tensor:
    """Rotary embedding of ``x`` ``(B, heads, N, D)``: half of a head by the row, half by the column, pairs of neighbours."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(0, half, 2, device=x.device).float() / half)
    position = torch.arange(grid * grid, device=x.device)
    angles = torch.cat([(position // grid)[:, None] * frequencies, (position % grid)[:, None] * frequencies], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., 0::2], x[..., 1::2]
    turned = torch.empty_like(x)
    turned[..., 0::2] = a * cos - b * sin
    turned[..., 1::2] = b * cos + a * sin
    return turned


class PlainBlock(nn.Module):
    """A transformer block with adaLN-zero; submodules carry the names of the published weights."""

    def __init__(self, width: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        hidden = int(2 / 3 * 4 * width)
        self.norm1, self.norm2 = PlainNorm(width), PlainNorm(width)
        self.attn = nn.ModuleDict(
            {
                "qkv": nn.Linear(width, 3 * width),
                "q_norm": PlainNorm(width // num_heads),
                "k_norm": PlainNorm(width // num_heads),
                "proj": nn.Linear(width, width),
            }
        )
        self.mlp = nn.ModuleDict({"w12": nn.Linear(width, 2 * hidden), "w3": nn.Linear(hidden, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.attn["qkv"](x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(dim=2))
        q, k = turn(self.attn["q_norm"](q), self.grid), turn(self.attn["k_norm"](k), self.grid)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        mixed = torch.softmax(scores, dim=-1) @ v
        out: Tensor = self.attn["proj"](mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        a, b = self.mlp["w12"](self.norm2(x) * (1 + scale2) + shift2).chunk(2, dim=-1)
        out: Tensor = x + gate2 * self.mlp["w3"](a * torch.sigmoid(a) * b)
        return out


class PlainBackbone(nn.Module):
    """LightningDiT of patch 1 with two times and a REPA projection, written plainly."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        width, depth = config.hidden_size, config.depth

        def small_mlp(out: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(256, out), nn.SiLU(), nn.Linear(out, out))

        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(config.in_channels, width, 1)})
        self.t_embedder_sem = nn.ModuleDict({"mlp": small_mlp(width // 2)})
        self.t_embedder_tex = nn.ModuleDict({"mlp": small_mlp(width // 2)})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(len(config.condition.choices) + 1, width)})
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2, width), requires_grad=False)
        self.blocks = nn.ModuleList([PlainBlock(width, config.num_heads, config.grid) for _ in range(depth)])
        self.final_layer = nn.ModuleDict(
            {
                "norm_final": PlainNorm(width),
                "linear": nn.Linear(width, config.in_channels),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )
        inner = config.repa_width
        layers = [nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU()]
        self.repa_projector = nn.Sequential(*layers, nn.Linear(inner, config.feature_dim))

    @staticmethod
    def time(t: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, device=t.device) / 128)
        return torch.cat([torch.cos(t[:, None] * frequencies), torch.sin(t[:, None] * frequencies)], dim=-1)

    def forward(self, x: Tensor, t_tex: Tensor, t_sem: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, side, _ = x.shape
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        times = [self.t_embedder_sem["mlp"](self.time(t_sem)), self.t_embedder_tex["mlp"](self.time(t_tex))]
        condition = torch.cat(times, dim=-1) + self.y_embedder["embedding_table"](y)
        projection = tokens
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition)
            if depth == self.config.repa_depth:
                projection = self.repa_projector(tokens)
        shift, scale = self.final_layer["adaLN_modulation"](condition).unsqueeze(1).chunk(2, dim=-1)
        out = self.final_layer["linear"](self.final_layer["norm_final"](tokens) * (1 + scale) + shift)
        return out.transpose(1, 2).reshape(batch, channels, side, side), projection


class PlainTrainer:
    """The whole step on given draws: loss, backward pass, AdamW and the average."""

    def __init__(
        self, ours: nn.Module, config: Any, loss: Any, training: Any, device: torch.device, bf16: bool
    ) -> None:
        self.network = PlainBackbone(config).to(device)
        missing, extra = self.network.load_state_dict(ours.state_dict(), strict=False)
        if missing or any("feat_rope" not in key for key in extra):
            raise SystemExit(f"the two networks have different parameters: {missing} {extra}")
        self.average = copy.deepcopy(self.network)
        self.config, self.loss, self.training, self.device, self.bf16 = config, loss, training, device, bf16
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.trained]
        self.count = 0

    def losses(self, data: Any, noise: Any, dropout: float) -> dict[str, Tensor]:
        x1, labels, features = data
        x0, t_tex, t_sem, drop = noise.x0, noise.t_tex, noise.t_sem, noise.dropout
        semantic = self.config.semantic_channels
        texture = x1.shape[1] - semantic
        labels = labels.clone()
        labels[drop < dropout] = len(self.config.condition.choices)  # the null class
        t = torch.cat([t_tex[:, None].repeat(1, texture), t_sem[:, None].repeat(1, semantic)], dim=1)[:, :, None, None]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            velocity, projection = self.network(t * x1 + (1 - t) * x0, t_tex, t_sem, labels)
        velocity, target = velocity.float(), x1 - x0
        weight = torch.ones(x1.shape[1], device=x1.device)
        weight[texture:] = self.loss.semantic_weight
        square = (velocity - target) ** 2 * weight[None, :, None, None]
        return {
            "velocity": square.mean(),
            "cosine": (1 - self.cosine(velocity, target, 1, 0.1)).mean(),
            "repa": (1 - self.cosine(projection.float(), features, -1, 1e-8)).mean(),
        }

    @staticmethod
    def cosine(a: Tensor, b: Tensor, dim: int, shortest: float) -> Tensor:
        length_a, length_b = (torch.sqrt((x * x).sum(dim=dim, keepdim=True)).clamp(min=shortest) for x in (a, b))
        return (a / length_a * (b / length_b)).sum(dim=dim)

    def step(self, batch: tuple[Tensor, ...], noise: tuple[Tensor, ...], dropout: float) -> dict[str, float]:
        """One step; returns the losses as numbers, as a script that prints them does."""
        data = tuple(value.clone().to(self.device) for value in batch)
        for p in self.trained:
            p.grad = None
        losses = self.losses(data, noise, dropout)
        weights = {
            "velocity": self.loss.velocity_weight,
            "cosine": self.loss.cosine_weight,
            "repa": self.loss.repa_weight,
        }
        torch.stack([weights[name] * value for name, value in losses.items()]).sum().backward()
        self.count += 1
        with torch.no_grad():
            for p, (first, second) in zip(self.trained, self.moments, strict=True):
                self.adam(p, first, second)
            for kept, p in zip(self.average.parameters(), self.network.parameters(), strict=True):
                kept.copy_(self.training.ema_decay * kept + (1 - self.training.ema_decay) * p)
        return {name: value.item() for name, value in losses.items()}

    def adam(self, p: Tensor, first: Tensor, second: Tensor) -> None:
        """AdamW without weight decay."""
        assert p.grad is not None
        first.mul_(0.9).add_(0.1 * p.grad)
        second.mul_(self.training.beta2).add_((1 - self.training.beta2) * p.grad * p.grad)
        step = first / (1 - 0.9**self.count)
        p.sub_(self.training.learning_rate * step / (torch.sqrt(second / (1 - self.training.beta2**self.count)) + 1e-8))


class Done(Exception):
    """Ends our loop before its last step, which would write a checkpoint."""


def main(
    size: Annotated[str, typer.Option(help="Size of the backbone: tiny, S, B, L, XL.")] = "S",
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each side.")] = 12,
    bf16: Annotated[bool, typer.Option("--bf16", help="Both sides under bf16 autocast.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Ours with torch.compile.")] = False,
    grid: Annotated[int, typer.Option(min=1, help="Tokens along one side.")] = 16,
) -> None:
    """Checks that both sides compute the same losses, times them in turn, and prints the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from sfd.training.loop import train

    last = CHECKED_STEPS + WARM_UP + steps
    task, training, runtime = build(size, batch_size, last + 1, bf16, compiled, grid)
    plain = PlainTrainer(task.network, task.network.config, task.loss, training, device, bf16)
    batch = task.dataset.batch
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    largest, started = 0.0, time.perf_counter()

    def after_ours(metrics: dict[str, float], step: int) -> None:
        """Takes the plain side's step after our loop has finished the same step and waited for the device."""
        nonlocal largest, started
        between = time.perf_counter()
        seconds["ours"].append(between - started)
        noise = task.noise(step - 1, batch_size, device)
        found = plain.step(batch, noise, task.class_dropout)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds["plain"].append(time.perf_counter() - between)
        if step <= CHECKED_STEPS:
            largest = max(largest, *(abs(found[name] - metrics[name]) / metrics[name] for name in found))
            if largest > TOLERANCE[torch.bfloat16 if bf16 else torch.float32]:
                raise SystemExit(f"the two sides differ at step {step}: plain {found}, ours {metrics}")
        if step == last:
            raise Done
        started = time.perf_counter()

    with tempfile.TemporaryDirectory() as work, suppress(Done):
        train(task, training, 0, Path(work), "bench", after_ours, runtime)
    report(
        seconds,
        largest,
        f"{size}/1, batch {batch_size}, {'bf16' if bf16 else 'float32'}{', compiled' * compiled}",
        device,
    )


def build(size: str, batch_size: int, num_steps: int, bf16: bool, compiled: bool, grid: int) -> tuple[Any, Any, Any]:
    """Our task on one random batch, the training's parameters, which are those of the paper, and how it runs."""
    from sfd.bench.networks import LatentShape
    from sfd.bench.workloads import OneBatch
    from sfd.diffusion.schedule import OffsetSchedule
    from sfd.models.backbone import Facts, build_backbone, config_from_params
    from sfd.models.conditions import ClassCondition
    from sfd.params import LossParams, ModelParams, TrainingParams, TrainingRuntime
    from sfd.seeding import generator
    from sfd.training.diffusion import DiffusionTask

    shape = LatentShape(grid, texture_channels=32, semantic_channels=16, feature_dim=768, num_classes=1000)
    loss = LossParams.model_validate({})
    facts = Facts(
        grid=grid,
        texture_channels=shape.texture_channels,
        semantic_channels=shape.semantic_channels,
        feature_dim=shape.feature_dim,
        condition=ClassCondition.numbered(shape.num_classes),
        two_times=True,
        repa_depth=loss.repa_depth,
        repa_width=loss.repa_width,
        repa_projector=loss.repa_projector,
    )
    config = config_from_params(ModelParams.model_validate({"size": size}), facts)
    random = generator(0, "bench/backbone")
    network = build_backbone(config).initialise(random)
    with torch.no_grad():  # no weight is zero, so that the comparison of the losses sees all of them
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    task = DiffusionTask(network, OneBatch(shape, batch_size, True, 0), loss, OffsetSchedule(0.3), 0.1, 0)
    precision = "bf16" if bf16 else "fp32"
    params = TrainingParams.model_validate({"num_steps": num_steps, "batch_size": batch_size, "precision": precision})
    return task, params, TrainingRuntime(log_every=1, checkpoint_every=num_steps, compile=compiled, num_workers=0)


def report(seconds: dict[str, list[float]], largest: float, what: str, device: torch.device) -> None:
    """Prints medians, quartiles and the ratio. Each ratio compares two steps that were taken one after the other."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    timed = {side: values[CHECKED_STEPS + WARM_UP :] for side, values in seconds.items()}
    ratios = [plain / ours for plain, ours in zip(timed["plain"], timed["ours"], strict=True)]
    print(f"| training step, {what} | median ms | quartiles |")
    print("|---|---|---|")
    for side, values in (("plain", timed["plain"]), ("ours", timed["ours"])):
        low, high = quartiles([1e3 * value for value in values])
        print(f"| {side} | {1e3 * statistics.median(values):.1f} | {low:.1f} to {high:.1f} |")
    low, high = quartiles(ratios)
    print(
        f"| plain / ours, median of {len(ratios)} pairs | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} |"
    )
    print(f"\n{name} of {os.cpu_count()} cores, torch {torch.__version__}, {datetime.date.today()}; ", end="")
    print(f"losses of the first {CHECKED_STEPS} steps differ by at most {largest:.1e} (relative)")


def quartiles(values: list[float]) -> tuple[float, float]:
    """Lower and upper quartile."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


if __name__ == "__main__":
    typer.run(main)
