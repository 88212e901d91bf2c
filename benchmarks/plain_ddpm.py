"""The same folder and the same hours for a plain pixel diffusion model: lucidrains' denoising-diffusion-pytorch with its own defaults.

    pip install denoising-diffusion-pytorch                     # in an environment of its own; it is no dependency of this project
    python benchmarks/plain_ddpm.py train emoji64 ddpm --hours 1.5        # its Trainer at 64 pixels, then 1,000 samples
    python benchmarks/plain_ddpm.py score PROJECT ddpm/samples            # both by the project's judge, against its held-out images

Defaults are those of its README: ``Unet(dim=64, dim_mults=(1, 2, 4, 8))``, 1,000 time steps, batch 16, learning rate 1e-4. Its own
number of steps, 700,000, is replaced by the hours. Samples are drawn by DDIM after the hours are over, in as many steps as
``--sampling-steps`` says (its README: 250). Stopped by Ctrl-C, the same command goes on: the hours count training alone.

Two distances, Frechet's and the kernel's of KID. Noise and plain colours are scored, too: they say how far pictures of nothing are.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from PIL import Image

SIDE, CHUNK_STEPS, SAMPLE_BATCH = 64, 20, 50
SAVE_SECONDS = 300
SEED = 0
T = TypeVar("T")

app = typer.Typer(add_completion=False)


@app.command()
def train(
    images: Annotated[Path, typer.Argument(help="folder of images, of any depth")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    hours: Annotated[float, typer.Option(help="hours of training")] = 1.5,
    num_samples: Annotated[int, typer.Option(help="images to draw afterwards")] = 1000,
    sampling_steps: Annotated[int, typer.Option(help="DDIM steps per image")] = 250,
) -> None:
    """Trains for the hours and draws samples."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    model = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=torch.cuda.is_available())
    diffusion = GaussianDiffusion(model, image_size=SIDE, timesteps=1000, sampling_timesteps=sampling_steps)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        diffusion,
        str(images),
        train_num_steps=0,
        calculate_fid=False,
        save_and_sample_every=10**9,
        results_folder=str(out / "checkpoints"),
        amp=torch.cuda.is_available(),
    )
    _train_for(trainer, hours * 3600, out / "trained.json")
    print(f"{trainer.step} steps of batch {trainer.batch_size} in {hours} h")
    seconds = _draw(trainer.ema.ema_model.eval(), num_samples, out / "samples")
    print(f"{num_samples} samples: the last ones in {seconds:.0f} s")


def _train_for(trainer: Any, seconds: float, record: Path) -> None:
    """Trains until it has trained for these seconds, this time and before; saves every few minutes.

    Args:
        trainer: lucidrains' ``Trainer``.
        seconds: of training in all.
        record: JSON file with the seconds of the saved checkpoint.
    """
    spent = 0.0
    if record.exists():
        spent = json.loads(record.read_text())["seconds"]
        trainer.load("last")
    torch.manual_seed(SEED + trainer.step)
    saved = spent
    while spent < seconds:
        start = time.monotonic()
        trainer.train_num_steps = trainer.step + CHUNK_STEPS
        trainer.train()
        spent += time.monotonic() - start
        if spent - saved > SAVE_SECONDS or spent >= seconds:
            trainer.save("last")
            record.write_text(json.dumps({"seconds": spent, "steps": trainer.step}))
            saved = spent


def _draw(model: Any, count: int, folder: Path) -> float:
    """Draws the samples that the folder lacks, and returns the seconds that it took."""
    folder.mkdir(exist_ok=True)
    start = time.monotonic()
    for numbers in _batches(list(range(count))):
        files = [folder / f"{number:06d}.png" for number in numbers]
        if all(file.exists() for file in files):
            continue
        torch.manual_seed(SEED + numbers[0])
        with torch.inference_mode():
            drawn = model.sample(batch_size=len(numbers))
        pixels = (drawn.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for file, image in zip(files, pixels, strict=True):
            Image.fromarray(image).save(file)
    return time.monotonic() - start


@app.command()
def score(
    project: Annotated[Path, typer.Argument(help="a finished project on the same images")],
    samples: Annotated[Path, typer.Argument(help="the other model's samples")],
) -> None:
    """Prints Frechet and kernel distances to the project's held-out images: of both models' samples, training images, noise, plain colours."""
    from sfd.data.images import ManifestImages, Pixels, to_tensor_uint8
    from sfd.data.manifest import HELDOUT, TRAIN
    from sfd.encoders.judges.judge import load_judge
    from sfd.evaluation.fidelity import FeatureStatistics, extract
    from sfd.evaluation.kernel import kernel_distance
    from sfd.evaluation.views import choose, judge_images
    from sfd.params import load_params
    from sfd.pipeline.prepare import open_prepared
    from sfd.workspace import Workspace

    workspace = Workspace.find(project)
    data = open_prepared(workspace, load_params(workspace.params_file))
    judge = load_judge(workspace.judge(workspace.load_params().first_judge.name))
    files = {
        "ours": sorted((workspace.result("sample") / "images").glob("*.png")),
        "plain": sorted(samples.glob("*.png")),
    }
    heldout, training = data.images(HELDOUT), data.images(TRAIN)
    count = min(len(heldout), len(training), *map(len, files.values()))

    def real(images: ManifestImages, purpose: str) -> torch.Tensor:
        rows = choose(len(images), count, SEED, purpose)
        return judge_images(judge, Pixels(images), rows, SAMPLE_BATCH).features

    reference = real(heldout, "heldout")
    statistics = FeatureStatistics.of(reference)
    print(f"judge {judge.name}, {count} images in each set")
    print(f"{'':<16} Frechet  kernel")

    def show(name: str, features: torch.Tensor) -> None:
        frechet, kernel = FeatureStatistics.of(features).distance(statistics), kernel_distance(features, reference)
        print(f"{name:<16} {frechet:<8.4g} {kernel:.4g}")

    def judged(batches: Iterator[torch.Tensor]) -> torch.Tensor:
        return extract(judge, (batch.to(judge.device) for batch in batches)).features

    show("training images", real(training, "train"))

    random = torch.Generator().manual_seed(SEED)
    for name, side in (("noise", SIDE), ("plain colours", 1)):
        shapes = ((len(some), 3, side, side) for some in _batches(list(range(count))))
        drawn = (torch.randint(256, shape, generator=random, dtype=torch.uint8) for shape in shapes)
        show(name, judged(values.expand(-1, -1, SIDE, SIDE) for values in drawn))
    for name, paths in files.items():
        pictures = ([Image.open(path).convert("RGB") for path in some] for some in _batches(paths[:count]))
        show(name, judged(to_tensor_uint8(some) for some in pictures))


def _batches(values: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(values), SAMPLE_BATCH):
        yield values[start : start + SAMPLE_BATCH]


if __name__ == "__main__":
    app()
