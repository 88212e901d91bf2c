"""Texture VAEs on a folder of images: how well do held-out images survive, and how long does it take to make one?

    python benchmarks/texture_vaes.py emoji64                              # every row
    python benchmarks/texture_vaes.py emoji64 --only pca-16 --only pca-24  # some of them
    python benchmarks/texture_vaes.py emoji64 --pictures tables            # keeps a picture of each

Each row is stage `texture_vae` of a project of its own on the same prepared images. Median PSNR and mean SSIM are of up to 1,000 held-out
images, beside those of as many principal components.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

TRAINING = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "decay": "cosine",
    "beta2": 0.99,
    "ema_decay": 0.99,
    "max_grad_norm": 1.0,
}


def pca(channels: int, num_steps: int = 0) -> dict[str, Any]:
    """Principal components of 8 x 8 pixels, with a network on top if there are steps to train it."""
    training = TRAINING | {"num_steps": num_steps} if num_steps else None
    return {"source": "pca", "block_size": 8, "latent_channels": channels, "training": training}


def vae(num_steps: int) -> dict[str, Any]:
    """An f8 autoencoder of 16 channels."""
    shape = {"channels": [32, 64, 128, 128], "layers_per_block": 1, "latent_channels": 16, "kl_weight": 1e-6}
    return {"source": "train", "training": TRAINING | {"num_steps": num_steps, "batch_size": 16}} | shape


ROWS = {
    **{f"pca-{channels}": pca(channels) for channels in (8, 12, 16, 24, 32)},
    **{f"pca-{channels}, {steps} steps": pca(channels, steps) for channels in (16, 24) for steps in (1000, 2500, 5000)},
    "vae-16, 2000 steps": vae(2000),
}


def main(
    images: Annotated[Path, typer.Argument(help="folder of class folders")],
    only: Annotated[list[str] | None, typer.Option(help="row to measure; repeat it for several")] = None,
    image_size: Annotated[int, typer.Option(help="side of the images, a multiple of 8, pixels")] = 64,
    pictures: Annotated[Path | None, typer.Option(help="folder for a picture of each row")] = None,
) -> None:
    """Prints one row per texture VAE."""
    unknown = set(only or []) - ROWS.keys()
    if unknown:
        raise SystemExit(f"error: no row {', '.join(sorted(unknown))}; choose {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        subprocess.run(["sfd", "init", str(project), "--no-git"], check=True, stdout=subprocess.DEVNULL)
        tree = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
        tree["data"] |= {"source": "folder", "root": str(images.resolve()), "image_size": image_size, "mirror": True}
        tree["data"]["duplicates"] = "drop"
        tree["encoder"]["input_size"] = image_size  # patches of 8 pixels, on the grid of the latents
        tree["quality"] = dict.fromkeys(tree["quality"])  # a row below its yardstick is a result, too
        for stage in ("scan", "prepare"):
            run(project, tree, stage)
        print("| texture VAE | seconds | PSNR, dB | linear | SSIM | linear |\n|---|---|---|---|---|---|")
        for name in only or ROWS:
            print(measure(project, tree, name, pictures), flush=True)


def measure(project: Path, tree: dict[str, Any], name: str, pictures: Path | None) -> str:
    """The table's row of one texture VAE."""
    start = time.monotonic()
    run(project, tree | {"texture_vae": tree["texture_vae"] | ROWS[name]}, "texture_vae")
    seconds = time.monotonic() - start
    result = project / "results/texture_vae"
    quality = json.loads((result / "quality.json").read_text(encoding="utf-8"))
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.copy(result / "reconstructions.png", pictures / f"{name.replace(', ', '-').replace(' ', '-')}.png")
    values = (
        f"{quality['psnr']:.2f} | {quality['linear_psnr']:.2f} | {quality['ssim']:.3f} | {quality['linear_ssim']:.3f}"
    )
    return f"| {name} | {seconds:.0f} | {values} |"


def run(project: Path, tree: dict[str, Any], stage: str) -> None:
    """Runs one stage with these parameters."""
    (project / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, f"stages/{stage}.py"], cwd=project, check=True)


if __name__ == "__main__":
    typer.run(main)
