"""The same folder and the same hours for a plain pixel diffusion model: lucidrains' denoising-diffusion-pytorch with its own defaults.

    pip install denoising-diffusion-pytorch                     # in an environment of its own; it is no dependency of this project
    python benchmarks/plain_ddpm.py train emoji64 ddpm --hours 1.5        # its Trainer at 64 pixels, then 1,000 samples
    python benchmarks/plain_ddpm.py score PROJECT ddpm/samples            # both by the project's judge, against its held-out images

Defaults are those of its README: ``Unet(dim=64, dim_mults=(1, 2, 4, 8))``, 1,000 time steps, batch 16, learning rate 1e-4. Its own
number of steps, 700,000, is replaced by the hours. Samples are drawn by DDIM after the hours are over, in as many steps as
``--sampling-steps`` says (its README: 250).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from PIL import Image

SIDE, CHUNK_STEPS, SAMPLE_BATCH = 64, 20, 50
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

    torch.manual_seed(SEED)
    model = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=torch.cuda.is_available())
    diffusion = GaussianDiffusion(model, image_size=SIDE, timesteps=1000, sampling_timesteps=sampling_steps)
    out.mkdir(parents=True)
    trainer = Trainer(
        diffusion,
        str(images),
        train_num_steps=0,
        calculate_fid=False,
        save_and_sample_every=10**9,
        results_folder=str(out / "checkpoints"),
        amp=torch.cuda.is_available(),
    )
    end = time.monotonic() + hours * 3600
    while time.monotonic() < end:
        trainer.train_num_steps += CHUNK_STEPS
        trainer.train()
    trainer.save("last")
    print(f"{trainer.step} steps of batch {trainer.batch_size} in {hours} h")
    draw = trainer.ema.ema_model.eval()
    (out / "samples").mkdir()
    start = time.monotonic()
    for numbers in _batches(list(range(num_samples))):
        with torch.inference_mode():
            drawn = draw.sample(batch_size=len(numbers))
        pixels = (drawn.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for number, image in zip(numbers, pixels, strict=True):
            Image.fromarray(image).save(out / "samples" / f"{number:06d}.png")
    print(f"{num_samples} samples in {time.monotonic() - start:.0f} s")


@app.command()
def score(
    project: Annotated[Path, typer.Argument(help="a finished project on the same images")],
    samples: Annotated[Path, typer.Argument(help="the other model's samples")],
) -> None:
    """Prints the Frechet distance of both models' samples, and of training images, to the project's held-out images."""
    from sfd.data.images import ManifestImages, Pixels, to_tensor_uint8
    from sfd.data.manifest import HELDOUT, TRAIN
    from sfd.encoders.judges.judge import load_judge
    from sfd.evaluation.fidelity import FeatureStatistics, extract
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

    def real(images: ManifestImages, purpose: str) -> FeatureStatistics:
        rows = choose(len(images), count, SEED, purpose)
        return FeatureStatistics.of(judge_images(judge, Pixels(images), rows, SAMPLE_BATCH).features)

    reference = real(heldout, "heldout")
    print(f"judge {judge.name}, {count} images in each set")
    print(f"{'training images':<16} {real(training, 'train').distance(reference):.4f}")
    for name, paths in files.items():
        pictures = ([Image.open(path).convert("RGB") for path in some] for some in _batches(paths[:count]))
        features = extract(judge, (to_tensor_uint8(some).to(judge.device) for some in pictures)).features
        print(f"{name:<16} {FeatureStatistics.of(features).distance(reference):.4f}")


def _batches(values: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(values), SAMPLE_BATCH):
        yield values[start : start + SAMPLE_BATCH]


if __name__ == "__main__":
    app()
