"""The parts of gpu_check.py. Each is called with a function that keeps a row at once, so that a part that is stopped leaves what it found.

    python benchmarks/gpu_check_parts.py PART FILE [--cpu]

Checks compare the GPU with the CPU: the largest difference by the largest value, or the root mean square of the difference by that of the
values. Limits: float32 without TF32 1e-4 for a network and 1e-3 after many layers or steps; bf16, which rounds to three digits, 5e-2.
"""

import copy
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

FLOAT32_LIMIT, DEEP_LIMIT, BF16_LIMIT = 1e-4, 1e-3, 5e-2
IMAGES_LIMIT = 0.1
"""Of pictures drawn in bf16 by a network that has hardly learnt, against those drawn in float32 on the CPU."""
LOSS_LIMIT = 0.3
"""Of the last loss of a short training: its draws are those of the device, and it may compute in bf16."""
CHANNELS, SEMANTIC, FEATURES, CLASSES = 48, 16, 768, 1000


@dataclass(frozen=True)
class Bench:
    """Where a part runs, and how it reports. ``tiny``: sizes of seconds on a CPU."""

    file: Path
    device: torch.device
    tiny: bool

    def row(self, kind: str, **values: object) -> None:
        """Keeps a row."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind} | values) + "\n")

    def check(self, name: str, value: float, limit: float) -> None:
        """Keeps a comparison. NaN is never within a limit."""
        self.row("check", name=name, value=value, limit=limit, ok=bool(value <= limit))

    def seconds(self, call: Callable[[], object], steps: int, warm_up: int = 2) -> float:
        """Median time of a call."""
        taken = []
        for _ in range(warm_up + (1 if self.tiny else steps)):
            started = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[warm_up:])

    def speed(self, name: str, call: Callable[[], object], batch: int, dtype: str, flops: int, steps: int = 10) -> None:
        """Measures and keeps images per second. ``flops``: operations of one call."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds(call, steps)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        self.row(
            "speed",
            name=name,
            images_per_second=batch / seconds,
            batch_size=batch,
            dtype=dtype,
            flops_per_second=flops / seconds,
            peak_memory_gib=peak,
        )

    def wait(self) -> None:
        """Until the GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference by the largest value."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def deviation(found: Tensor, expected: Tensor) -> float:
    """The root mean square of the difference by that of the values."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- the machine ---


def machine(bench: Bench) -> None:
    """Names, and the ceilings of matrix products."""
    on_gpu = bench.device.type == "cuda"
    bench.row("fact", name="device", value=torch.cuda.get_device_name() if on_gpu else "CPU")
    if on_gpu:
        bench.row("fact", name="memory, GiB", value=round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1))
    bench.row("fact", name="torch", value=torch.__version__)
    size = 256 if bench.tiny else 8192
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        if name == "tf32" and not on_gpu:
            continue
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = torch.randn(2, size, size, device=bench.device).to(dtype).unbind()
        bench.row(
            "ceiling", name=name, flops_per_second=2 * size**3 / bench.seconds(partial(torch.mm, a, b), 15, warm_up=5)
        )


# --- the backbone and its samplers: torch alone ---


def backbone(size: str, grid: int, seed: int = 0) -> Any:
    """A LightningDiT with two times and a REPA projector; no weight is zero."""
    from sfd.models.conditions import ClassCondition
    from sfd.models.lightningdit import LightningDiT
    from sfd.models.lightningdit_config import LightningDiTConfig
    from sfd.sizes import SIZES

    width, depth, heads = SIZES[size]
    condition = ClassCondition.numbered(CLASSES)
    config = LightningDiTConfig(
        grid,
        CHANNELS,
        width,
        depth,
        heads,
        condition,
        semantic_channels=SEMANTIC,
        two_times=True,
        repa_depth=2,
        repa_width=256 if size == "tiny" else 2048,
        feature_dim=FEATURES,
    )
    random = torch.Generator().manual_seed(seed)
    network = LightningDiT(config).initialise(random)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return network


def inputs(grid: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, two times and classes."""
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(batch, CHANNELS, grid, grid, generator=random), torch.rand(batch, generator=random)
    classes = torch.randint(CLASSES, (batch,), generator=random)
    return x.to(device), (0.5 * t).to(device), t.to(device), classes.to(device)


def loss_of(network: Any, given: tuple[Tensor, ...]) -> Tensor:
    """A loss that all weights take part in."""
    output = network(*given, with_projection=True)
    loss: Tensor = output.velocity.float().square().mean() + output.projection.float().square().mean()
    return loss


def network(bench: Bench) -> None:
    """Outputs and gradients of the backbone against the CPU: float32, bf16, compiled."""
    grid, batch = (4, 2) if bench.tiny else (16, 4)
    torch.backends.cuda.matmul.allow_tf32 = False
    reference, here = backbone("tiny", grid), backbone("tiny", grid).to(bench.device)
    given, local = inputs(grid, batch, torch.device("cpu")), inputs(grid, batch, bench.device)
    expected = reference(*given).velocity
    bench.check("velocity, float32", difference(here(*local).velocity, expected), FLOAT32_LIMIT)
    loss_of(reference, given).backward()
    loss_of(here, local).backward()
    gradients = [
        (p.grad, q.grad) for p, q in zip(here.parameters(), reference.parameters(), strict=True) if q.grad is not None
    ]
    bench.check("gradients, float32", max(difference(ours, theirs) for ours, theirs in gradients), DEEP_LIMIT)
    with torch.autocast(bench.device.type, torch.bfloat16):
        bench.check("velocity, bf16", difference(here(*local).velocity, expected), BF16_LIMIT)
        here.zero_grad()
        loss_of(here, local).backward()
    here_flat, flat = (
        torch.cat([p.grad.flatten().cpu() for p in each.parameters() if p.grad is not None])
        for each in (here, reference)
    )
    bench.check("gradients, bf16", deviation(here_flat, flat), BF16_LIMIT)
    compiled: Any = torch.compile(here)
    with torch.no_grad():
        bench.check("velocity, compiled, float32", difference(compiled(*local).velocity, expected), FLOAT32_LIMIT)
        with torch.autocast(bench.device.type, torch.bfloat16):
            bench.check("velocity, compiled, bf16", difference(compiled(*local).velocity, expected), BF16_LIMIT)


def samplers(bench: Bench) -> None:
    """Every sampler, guided by a second network, against the CPU."""
    from sfd.diffusion.guidance import GuidanceScales, guided_velocity
    from sfd.diffusion.sampling import Sampler
    from sfd.diffusion.schedule import OffsetSchedule
    from sfd.names import SAMPLERS, load

    torch.backends.cuda.matmul.allow_tf32 = False
    grid = 4
    pair = [backbone("tiny", grid, seed).eval().requires_grad_(False) for seed in (0, 1)]
    noise, _, _, classes = inputs(grid, 2, torch.device("cpu"))

    def draw(name: str, device: torch.device) -> Tensor:
        strong, weak = (copy.deepcopy(each).to(device) for each in pair)
        told = classes.to(device)
        velocity = guided_velocity(
            lambda x, t_tex, t_sem: strong(x, t_tex, t_sem, told).velocity,
            lambda x, t_tex, t_sem: weak(x, t_tex, t_sem, told).velocity,
            GuidanceScales(1.5, 1.5),
            SEMANTIC,
        )
        return Sampler(load(SAMPLERS, name), num_steps=5)(velocity, noise.to(device), OffsetSchedule(0.3), SEMANTIC)

    for name in SAMPLERS:
        try:
            bench.check(
                f"{name}, guided, float32",
                difference(draw(name, bench.device), draw(name, torch.device("cpu"))),
                DEEP_LIMIT,
            )
        except ModuleNotFoundError as error:
            bench.row("fact", name=name, value=f"not run: needs {error.name}")


def processes(bench: Bench) -> None:
    """Two processes with one GPU, by gloo: the gradients of half a batch each, averaged, against those of the whole batch."""
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(half_a_batch, (str(bench.device), folder), nprocs=2)
        found = torch.load(Path(folder) / "gradients.pt", weights_only=True)
    whole = backbone("tiny", 4).to(bench.device)
    loss_of(whole, inputs(4, 4, bench.device)).backward()
    expected = {name: p.grad.cpu() for name, p in whole.named_parameters() if p.grad is not None}
    bench.check(
        "gradients of two processes", max(difference(found[name], expected[name]) for name in expected), DEEP_LIMIT
    )


def half_a_batch(rank: int, device: str, folder: str) -> None:
    """One of two processes; the first writes its gradients."""
    import torch.distributed as distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.backends.cuda.matmul.allow_tf32 = False
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    made = backbone("tiny", 4).to(device)
    shared = DistributedDataParallel(made)
    mine = tuple(value[2 * rank : 2 * rank + 2] for value in inputs(4, 4, torch.device(device)))
    loss_of(shared, mine).backward()
    if rank == 0:
        torch.save(
            {name: p.grad.cpu() for name, p in made.named_parameters() if p.grad is not None},
            Path(folder) / "gradients.pt",
        )
    distributed.destroy_process_group()


def pair(bench: Bench) -> None:
    """AutoGuidance: one evaluation of XL and of B in bf16, as a sampler takes it, eager and compiled."""
    grid, batch = (4, 2) if bench.tiny else (16, 64)
    sizes = ("tiny", "tiny") if bench.tiny else ("XL", "B")
    local = inputs(grid, batch, bench.device)
    both = [backbone(size, grid).to(bench.device).eval().requires_grad_(False) for size in sizes]
    flops = sum(count(each, local) for each in both)
    for how in ("eager", "compiled"):
        called = [torch.compile(each) if how == "compiled" else each for each in both]

        def guided(called: list[Any] = called) -> Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16):
                strong, weak = (each(*local).velocity.float() for each in called)
            return torch.lerp(weak, strong, 1.5)

        with torch.no_grad():
            bench.speed(f"guided velocity, {'/1 and '.join(sizes)}/1, {how}", guided, batch, "bf16", flops)


def count(network: nn.Module, given: tuple[Tensor, ...]) -> int:
    """Floating-point operations of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*given)
    return int(counter.get_total_flops())


# --- networks of other packages ---


def encoders(bench: Bench) -> None:
    """The vision encoder and a judge of timm, with random weights: against the CPU, then their speed."""
    import timm

    for name, size, batch in (("vit_base_patch14_reg4_dinov2", 224, 128), ("inception_v3", 299, 256)):
        torch.manual_seed(0)
        options = {"img_size": size} if name.startswith("vit") else {}
        made = timm.create_model(name, pretrained=False, **options).eval().requires_grad_(False)
        images = torch.rand(1 if bench.tiny else batch, 3, size, size)
        few = images[:2]
        expected = made.forward_features(few)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        made.to(bench.device)
        bench.check(
            f"{name}, float32", deviation(made.forward_features(few.to(bench.device)).cpu(), expected), DEEP_LIMIT
        )
        local = images.to(bench.device)
        flops = count(made, (local,))
        made.to(memory_format=torch.channels_last)

        def features(made: Any = made, local: Tensor = local) -> Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16):
                found: Tensor = made.forward_features(local)
            return found

        with torch.no_grad():
            bench.check(f"{name}, bf16", deviation(features()[:2].float().cpu(), expected), BF16_LIMIT)
            bench.speed(f"features of {name}", features, len(images), "bf16", flops)


def vae(bench: Bench) -> None:
    """The f16d32 autoencoder with random weights: against the CPU, then its speed in both directions."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    made = AutoencoderKL(
        block_out_channels=[32, 32, 32, 32, 32] if bench.tiny else [128, 128, 256, 256, 512],
        down_block_types=["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=32,
    )
    made.eval().requires_grad_(False)
    side, batch = (32, 1) if bench.tiny else (256, 32)
    images = 2 * torch.rand(batch, 3, side, side) - 1
    expected = made.encode(images[:1]).latent_dist.mean
    decoded = made.decode(expected).sample
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    made.to(bench.device)
    bench.check(
        "encode, float32",
        deviation(made.encode(images[:1].to(bench.device)).latent_dist.mean.cpu(), expected),
        DEEP_LIMIT,
    )
    bench.check("decode, float32", deviation(made.decode(expected.to(bench.device)).sample.cpu(), decoded), DEEP_LIMIT)
    latents = expected.to(bench.device).repeat(batch, 1, 1, 1)
    local = images.to(bench.device)
    made.to(memory_format=torch.channels_last)

    def encode() -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            found: Tensor = made.encode(local).latent_dist.mean
        return found

    def decode() -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            found: Tensor = made.decode(latents).sample
        return found

    for name, call in (("encode", encode), ("decode", decode)):
        with FlopCounterMode(display=False) as counter:
            call()
        bench.speed(name, call, batch, "bf16", int(counter.get_total_flops()))


# --- the stages, and `sfd bench` ---

SHORT = {"num_steps": 24, "batch_size": 16, "warmup_steps": 0}
SMALL: dict[str, Any] = {
    "encoder": {"training": SHORT},
    "texture_vae": {"training": SHORT},
    "judges": [{"training": SHORT}, {"training": SHORT}],
    "semantic": {"training": SHORT},
    "diffusion": {"training": SHORT},
    "features": {"max_images": 200},
    "evaluate": {"kid_subsets": 4, "kid_subset_size": 20},
    "sample": {"num_images": 60},
    "quality": {
        "images_per_class": None,
        "scored_images": None,
        "encoder_accuracy": None,
        "psnr_gain": None,
        "explained_variance": None,
        "judge_accuracy": None,
    },
    "runtime": {
        "encoder": {"log_every": 8},
        "texture_vae": {"log_every": 8},
        "judge": {"log_every": 8},
        "semantic": {"log_every": 8},
        "diffusion": {"log_every": 8, "grid_every": 24, "heldout_every": 24, "grid_images": 10},
    },
}
IN_ONE_PROCESS = "import runpy, sys\nfor name in sys.argv[1:]: runpy.run_path(f'stages/{name}.py')"
USING = ("features", "latents", "sample", "reference", "evaluate")
TRAINING = ("encoder", "texture_vae", "semantic", "diffusion")


def stages(bench: Bench) -> None:
    """The whole graph on the CPU. Then its stages on the GPU: those that use networks with the CPU's, and those that train."""
    from sfd.pipeline.inputs import COMMANDS, STAGES

    made = [name for name in STAGES if name not in (*COMMANDS, "register")]
    with tempfile.TemporaryDirectory() as name:
        cpu, gpu = Path(name) / "cpu", Path(name) / "gpu"
        make_small_project(cpu)
        run_stages(cpu, ("scan", *made), "")
        # The store of runs belongs to the folder that it was made in.
        shutil.copytree(cpu, gpu, symlinks=True, ignore=shutil.ignore_patterns("mlruns"))
        visible = "" if bench.device.type == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        run_stages(gpu, USING, visible)
        compare_results(bench, gpu / "results", cpu / "results")
        run_stages(gpu, TRAINING, visible)
        for stage in TRAINING:
            found, expected = (last_loss(each / "results" / stage / "curves.csv") for each in (gpu, cpu))
            bench.check(f"last loss of {stage}", abs(found / expected - 1), LOSS_LIMIT)


def make_small_project(folder: Path) -> None:
    """A project on the built-in digits with trainings of a few steps."""
    from sfd.preset_use import with_changes
    from sfd.scaffold import first_params, make_project

    text = with_changes(first_params("check"), SMALL)
    make_project(folder, "check", {"params.yaml": text}, False)


def run_stages(project: Path, names: tuple[str, ...], visible: str) -> None:
    """Runs stages in one process that sees these GPUs. Ends this one with the last line of a stage that fails."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": visible,
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlruns/mlflow.db",
    }
    command = [sys.executable, "-c", IN_ONE_PROCESS, *names]
    done = subprocess.run(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"stages {names}: no message")


def compare_results(bench: Bench, found: Path, expected: Path) -> None:
    """Features, latents, images and scores."""
    from PIL import Image
    from safetensors.torch import load_file

    for stage, key in (("features", "features"), ("latents", "latents")):
        ours, theirs = (
            torch.cat(
                [
                    load_file(file)[key].flatten().float()
                    for file in sorted((each / stage / "shards").glob("*.safetensors"))
                    if key in load_file(file)
                ]
            )
            for each in (found, expected)
        )
        bench.check(f"{key} of stage {stage}", deviation(ours, theirs), BF16_LIMIT)
    ours, theirs = (
        torch.stack(
            [
                torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
                for file in sorted((each / "sample" / "images").glob("*.png"))
            ]
        )
        for each in (found, expected)
    )
    bench.check("images of stage sample", deviation(ours, theirs), IMAGES_LIMIT)
    scores, known = (
        json.loads((each / "evaluate" / "metrics.json").read_text(encoding="utf-8")) for each in (found, expected)
    )
    distance = next(key for key in known if key.startswith("fd_"))
    bench.check(f"{distance} of stage evaluate", abs(scores[distance] / known[distance] - 1), IMAGES_LIMIT)


def last_loss(file: Path) -> float:
    """The last total of a loss curve."""
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    column = head.split(",").index("total")
    totals = [float(cells[column]) for cells in (line.split(",") for line in lines) if cells[column]]
    return totals[-1] if totals else math.nan


def measured(bench: Bench, job: str) -> None:
    """A job of ``sfd bench``: SFD-XL of the paper, or the digits where sizes are tiny."""
    from sfd.bench.report import BenchOptions
    from sfd.bench.report import bench as run

    preset = "digits" if bench.tiny else "imagenet256-sfd-xl"
    batch, steps = (
        (4, 1) if bench.tiny else {"train": (64, 10), "sample": (32, 1), "latents": (64, 5), "load": (256, 10)}[job]
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "numbers.json"
        device: Any = "cpu" if bench.device.type == "cpu" else "cuda"
        run(BenchOptions(job, None, device, batch, steps, job != "sample", preset), target)  # type: ignore[arg-type]
        rows = json.loads(target.read_text(encoding="utf-8"))["measured"]
    for row in rows:
        flops = row["flops_per_step"] / row["step_seconds_median"] if row["flops_per_step"] else None
        bench.row(
            "speed",
            name=f"sfd bench {row['name']}"
            + (f", {row['network_evaluations']} evaluations" if row["network_evaluations"] else ""),
            images_per_second=row["images_per_second"],
            batch_size=row["batch_size"],
            dtype={"bfloat16": "bf16"}.get(row["dtype"], row["dtype"]),
            flops_per_second=flops,
            peak_memory_gib=row["peak_memory_gib"],
        )


PARTS: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "network": network,
    "samplers": samplers,
    "processes": processes,
    "encoders": encoders,
    "stages": stages,
    "pair": pair,
    "vae": vae,
    **{job: partial(measured, job=job) for job in ("train", "sample", "latents", "load")},
}


if __name__ == "__main__":
    part, file, *rest = sys.argv[1:]
    is_tiny = rest == ["--cpu"]
    if is_tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    PARTS[part](Bench(Path(file), torch.device("cpu") if is_tiny else torch.device("cuda", 0), is_tiny))
