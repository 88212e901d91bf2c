"""Our training step, forward pass and loader beside those of the published code (github.com/yuemingPAN/SFD), timed in turn.

    git clone https://github.com/yuemingPAN/SFD /tmp/SFD
    pip install --target /tmp/einops einops                                     # which the published code imports
    PYTHONPATH=/tmp/einops python benchmarks/published_step.py /tmp/SFD         # S/1, batch 4: about 5 minutes on two CPU cores
    PYTHONPATH=/tmp/einops python benchmarks/published_step.py /tmp/SFD --size XL --batch-size 32 --compile --published-bf16     # on a GPU

The published side computes in float32, as its `inference.py` does (with TF32 on a GPU), and its blocks are under `torch.compile`, which needs
a C++ compiler; `--eager` takes that away. Its `run_train.sh` asks accelerate for bf16: `--published-bf16` gives its training step that
autocast, and belongs to a fair comparison of trainings wherever the device has bf16.
Its step is that of its `train.py`: losses, backward pass, AdamW, the average of the weights parameter by parameter. Ours is the loop of
stage `diffusion`; `--fp32` keeps it from bf16. Before anything is timed, both sides get the same weights and draws, and must give the same
losses, velocities (in float32) and images of the data set.
"""

import copy
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from plain_training import Done, build, quartiles
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

TOLERANCE = 1e-3
"""Largest relative difference of a loss, and of a velocity against the largest one; float32."""
WARM_UP = 2
GRID, TEXTURE, SEMANTIC, FEATURES, CLASSES = 16, 32, 16, 768, 1000
SHARDS, SHARD_IMAGES = 4, 250


def identity(function: Any = None, **_options: object) -> Any:
    """Takes the place of ``torch.compile`` for ``--eager``."""
    return function if function is not None else identity


def import_published(folder: Path, eager: bool) -> tuple[Any, Any, Any]:
    """Its models, its transport and its data set. Ends the program if the folder is not a checkout."""
    if not (folder / "models" / "lightningdit.py").is_file():
        raise SystemExit(f"{folder} is no checkout of the published code: models/lightningdit.py is missing")
    sys.path.insert(0, str(folder))
    everything: Any = torch
    compiler = everything.compile
    everything.compile = identity if eager else compiler
    try:
        from dataset.img_latent_dataset import ImgLatentDataset  # type: ignore[import-not-found]
        from models.lightningdit import LightningDiT_models  # type: ignore[import-not-found]
        from transport import create_transport  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"the published code needs the package {error.name}: install it, see the head of this file"
        ) from None
    finally:
        everything.compile = compiler
        sys.path.remove(str(folder))
    return LightningDiT_models, create_transport, ImgLatentDataset


class Published:
    """The published side: network, loss, optimizer and average, as its `train.py` sets them up for SFD."""

    def __init__(self, models: Any, create_transport: Any, size: str, ours: nn.Module, device: torch.device) -> None:
        self.network = models[f"LightningDiT-{size}/1"](
            input_size=GRID,
            in_channels=TEXTURE + SEMANTIC,
            num_classes=CLASSES,
            class_dropout_prob=0.1,
            use_qknorm=True,
            use_swiglu=True,
            use_rope=True,
            use_rmsnorm=True,
            use_repa=True,
            repa_dino_version="dinov2_vitb14_reg",
            repa_depth=2,
            semantic_chans=SEMANTIC,
            semfirst_delta_t=0.3,
        ).to(device)
        self.network.load_state_dict(ours.state_dict())
        self.transport = create_transport(
            "Linear",
            "velocity",
            use_cosine_loss=True,
            use_lognorm=True,
            semantic_weight=2.0,
            semantic_chans=SEMANTIC,
            semfirst_delta_t=0.3,
        )
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0, betas=(0.9, 0.999))
        self.network.train()

    def losses(self, data: Any) -> dict[str, Tensor]:
        """The three terms of a batch, means over it."""
        maps = data.features.mT.unflatten(-1, (GRID, GRID))
        terms = self.transport.training_losses(
            self.network, data.latents, {"y": data.class_indices}, use_repa=True, feature_dino=maps
        )
        return {
            ours: terms[theirs].mean()
            for ours, theirs in (("velocity", "loss"), ("cosine", "cos_loss"), ("repa", "repa_loss"))
        }

    def losses_of(self, data: Any, x0: Tensor, u: Tensor) -> dict[str, Tensor]:
        """The terms with given noise and progress, and no class dropped."""
        drawn, dropout = self.transport.sample, self.network.y_embedder.dropout_prob
        self.transport.sample = lambda x1, *_: (u, x0, x1)
        self.network.y_embedder.dropout_prob = 0.0
        try:
            return self.losses(data)
        finally:
            self.transport.sample, self.network.y_embedder.dropout_prob = drawn, dropout

    def step(self, data: Any, bf16: bool) -> float:
        """One step; the loss is read at once, as there. ``bf16``: under autocast, which accelerate puts around the network."""
        with torch.autocast(data.latents.device.type, torch.bfloat16, enabled=bf16):
            losses = self.losses(data)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        kept = dict(self.average.named_parameters())
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                kept[name].mul_(0.9999).add_(parameter.data, alpha=1e-4)
        return losses["velocity"].item()


def check_losses(task: Any, published: Published, data: Any, device: torch.device) -> float:
    """The largest relative difference of a term. Ends the program if the two sides differ."""
    from sfd.diffusion.schedule import OffsetSchedule
    from sfd.training.diffusion import DiffusionDraws

    random = torch.Generator().manual_seed(1)
    x0 = torch.randn(data.latents.shape, generator=random).to(device)
    u = torch.randn(len(x0), generator=random).sigmoid().to(device)
    one = torch.ones_like(u)
    with torch.no_grad():
        task.network.train()
        ours = task.losses(task.network, data, DiffusionDraws(x0, *OffsetSchedule(0.3).times(u), one, one, dropout=one))
        theirs = published.losses_of(data, x0, u)
    largest = max(abs(float(ours[name] / theirs[name]) - 1) for name in theirs)
    if set(ours) != set(theirs) or largest > TOLERANCE:
        raise SystemExit(f"the losses differ: ours {ours}, published {theirs}")
    return largest


def time_training(
    task: Any,
    training: Any,
    runtime: Any,
    published: Published,
    published_bf16: bool,
    data: Any,
    pairs: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Seconds of each step of both sides. The published side takes its step after ours has ended."""
    from sfd.training.loop import train

    seconds: dict[str, list[float]] = {"ours": [], "published": []}
    last, started = WARM_UP + pairs, time.perf_counter()

    def after_ours(_metrics: dict[str, float], step: int) -> None:
        nonlocal started
        between = time.perf_counter()
        seconds["ours"].append(between - started)
        published.step(data, published_bf16)
        wait(device)
        seconds["published"].append(time.perf_counter() - between)
        if step == last:
            raise Done
        started = time.perf_counter()

    with tempfile.TemporaryDirectory() as work, suppress(Done):
        train(task, training, 0, Path(work), "bench", after_ours, runtime)
    return {side: values[WARM_UP:] for side, values in seconds.items()}


def time_forward(
    ours: Any, published: nn.Module, data: Any, bf16: bool, compiled: bool, pairs: int, device: torch.device
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each forward pass, as for sampling; and the largest difference of the velocities in float32 against the largest velocity."""
    from sfd.precision import tf32

    ours.eval()
    published.eval()
    t_tex, t_sem = (torch.full((len(data.latents),), t, device=device) for t in (0.3, 0.6))
    labels = data.class_indices

    called = torch.compile(ours) if compiled else ours

    def our_pass() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            velocity: Tensor = called(data.latents, t_tex, t_sem, labels).velocity
        return velocity.float()

    def their_pass(exact: bool = False) -> Tensor:
        with tf32(not exact, device):  # which inference.py allows
            velocity: Tensor = published(data.latents, (t_tex, t_sem), labels)
        return velocity

    with torch.no_grad():
        expected = their_pass(exact=True)
        difference = float(
            (ours(data.latents, t_tex, t_sem, labels).velocity - expected).abs().max() / expected.abs().max()
        )
        if difference > TOLERANCE:
            raise SystemExit(f"the velocities differ by {difference:.1e} of the largest one")
        return in_pairs(our_pass, their_pass, pairs, device), difference


def in_pairs(
    ours: Callable[[], object], published: Callable[[], object], pairs: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call of both, in turn."""
    seconds: dict[str, list[float]] = {"ours": [], "published": []}
    for _ in range(WARM_UP + pairs):
        for side, call in (("ours", ours), ("published", published)):
            started = time.perf_counter()
            call()
            wait(device)
            seconds[side].append(time.perf_counter() - started)
    return {side: values[WARM_UP:] for side, values in seconds.items()}


def wait(device: torch.device) -> None:
    """Until the GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def write_both(folder: Path) -> None:
    """The same random images' latents and features in both layouts: two views; theirs has latents in float32 and features in float16."""
    from sfd.data.latents import STATISTICS, ChannelStatistics, LatentsIndex
    from sfd.data.shards import Shard, write_index, write_shards

    random = torch.Generator().manual_seed(0)
    bounds = [(n * SHARD_IMAGES, (n + 1) * SHARD_IMAGES) for n in range(SHARDS)]
    (folder / "published").mkdir()

    def make(start: int, end: int) -> Shard:
        rows = (end - start, 2)
        latents = torch.randn(*rows, TEXTURE + SEMANTIC, GRID, GRID, generator=random).half()
        features = torch.randn(*rows, GRID * GRID, FEATURES, generator=random).half()
        labels = torch.randint(CLASSES, rows[:1], generator=random)
        theirs = {"labels": labels}
        for view, ending in enumerate(("", "_flip")):
            texture, semantic = latents[:, view].float().split([TEXTURE, SEMANTIC], dim=1)
            theirs |= {f"latents{ending}": texture.contiguous(), f"latents_sv{ending}": semantic.contiguous()}
            theirs[f"feats_dino{ending}"] = features[:, view].mT.unflatten(-1, (GRID, GRID)).contiguous()
        save_file(theirs, folder / "published" / f"latents_{start:06d}.safetensors")
        return {"latents": latents, "features": features, "labels": labels}

    write_shards(folder / "ours", bounds, make, range(len(bounds)))
    names = [str(index) for index in range(CLASSES)]
    write_index(
        folder / "ours", bounds, LatentsIndex(2, GRID, TEXTURE, SEMANTIC, FEATURES, names, [1] * CLASSES, {}, 1)
    )
    ChannelStatistics(torch.zeros(TEXTURE + SEMANTIC), torch.ones(TEXTURE + SEMANTIC)).save(
        folder / "ours" / STATISTICS
    )
    for name, channels in (("latents", TEXTURE), ("latents_sv", SEMANTIC)):
        statistics_of = {"mean": torch.zeros(1, channels, 1, 1), "std": torch.ones(1, channels, 1, 1)}
        torch.save(statistics_of, folder / "published" / f"{name}_stats.pt")


def time_loader(data_set: Any, batch_size: int, workers: int, pairs: int) -> dict[str, list[float]]:
    """Seconds per batch of both loaders, with features, after both have given the same images."""
    from sfd.data.batches import read_batches
    from sfd.data.latents import LatentDataset
    from sfd.training.order import SeededBatchSampler

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_both(folder)
        published, ours = (
            data_set(str(folder / "published"), latent_norm=True, latent_sv_norm=True),
            LatentDataset(folder / "ours", True),
        )
        check_images(ours, published)
        order = SeededBatchSampler(0, "bench", len(ours), batch_size, 0, WARM_UP + pairs, slice(0, batch_size))
        theirs = endless(
            DataLoader(
                published,
                batch_size,
                shuffle=True,
                num_workers=workers,
                drop_last=True,
                pin_memory=torch.cuda.is_available(),
            )
        )
        with read_batches(ours, order, workers) as batches:
            return in_pairs(partial(next, batches), partial(next, theirs), pairs, torch.device("cpu"))


def endless(loader: Any) -> Iterator[object]:
    """Its batches, again and again."""
    while True:
        yield from loader


def check_images(ours: Any, published: Any) -> None:
    """Ends the program unless image n of the published data set is one of our two views of it."""
    for index in (0, SHARD_IMAGES, SHARDS * SHARD_IMAGES - 1):
        latent, label, features = published[index]
        both = ours.__getitems__([2 * index, 2 * index + 1])
        same = [
            torch.equal(both.latents[view], latent) and torch.equal(both.features[view].float(), features.flatten(1).T)
            for view in (0, 1)
        ]
        if not any(same) or int(label) != int(both.class_indices[0]):
            raise SystemExit(f"the loaders give different latents for image {index}")


def report(name: str, seconds: dict[str, list[float]]) -> None:
    """A row of the table. Each ratio compares two that followed one another."""
    ratios = [theirs / ours for theirs, ours in zip(seconds["published"], seconds["ours"], strict=True)]
    low, high = quartiles(ratios)
    medians = [f"{1e3 * statistics.median(seconds[side]):.1f}" for side in ("published", "ours")]
    print(
        f"| {name} | {medians[0]} | {medians[1]} | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} |",
        flush=True,
    )


def main(
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="A checkout of the published code.")],
    size: Annotated[Literal["S", "B", "L", "XL", "1p0B", "1p6B"], typer.Option(help="Size of the backbone.")] = "S",
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    pairs: Annotated[int, typer.Option(min=1, help="Timed calls of each side, of each kind.")] = 12,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of both loaders.")] = 0,
    loader_batch: Annotated[int, typer.Option(min=1, help="Images per batch of both loaders.")] = 64,
    fp32: Annotated[bool, typer.Option("--fp32", help="Ours in float32, too.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Ours with torch.compile.")] = False,
    eager: Annotated[bool, typer.Option("--eager", help="The published side without its torch.compile.")] = False,
    published_bf16: Annotated[
        bool,
        typer.Option("--published-bf16", help="The published training step under autocast, as its run_train.sh asks."),
    ] = False,
) -> None:
    """Checks that both sides compute the same, times them in turn, and prints the table."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    models, create_transport, data_set = import_published(folder.resolve(), eager)
    task, training, runtime = build(size, batch_size, WARM_UP + pairs + 1, not fp32, compiled, GRID)
    task.network.to(device)
    published = Published(models, create_transport, size, task.network, device)
    data = type(task.dataset.batch)(*(value.to(device) for value in task.dataset.batch))
    losses = check_losses(task, published, data, device)
    forward, velocities = time_forward(task.network, published.network, data, not fp32, compiled, pairs, device)
    published.network.train()
    print("| per call, ms | published | ours | published / ours | quartiles |\n|---|---|---|---|---|")
    ours = f"ours {'float32' if fp32 else 'bf16'}{' compiled' * compiled}"
    kinds = {
        name: f"{size}/1, batch {batch_size}, published {name}{' eager' * eager}, {ours}"
        for name in ("float32", "bf16")
    }
    seconds = time_training(task, training, runtime, published, published_bf16, data, pairs, device)
    report(f"training step, {kinds['bf16' if published_bf16 else 'float32']}", seconds)
    report(f"forward pass, {kinds['float32']}", forward)
    report(
        f"loader with features, batch {loader_batch}, {workers} workers",
        time_loader(data_set, loader_batch, workers, pairs),
    )
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"\n{machine} of {os.cpu_count()} cores, torch {torch.__version__}, {datetime.date.today()}; in float32 the losses differ by {losses:.1e} "
        f"and the velocities by {velocities:.1e} (relative); {pairs} pairs"
    )


if __name__ == "__main__":
    typer.run(main)
