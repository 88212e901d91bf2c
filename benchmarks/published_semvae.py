"""What does the published SemVAE cost at full size? Its import, and the encoding of features, with random weights in the published layout.

    python benchmarks/published_semvae.py                    # 100 images; nothing is downloaded, 0.5 GB in the temporary folder

Each part runs in a fresh process. Its peak is that of the process's resident memory.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

WIDTH, HEADS, BLOCKS, LATENT, TOKENS, ITERATION = 768, 6, 4, 16, 256, 1_000_000
"""The published sizes, for features of DINOv2 ViT-B/14 at 224 pixels."""
app = typer.Typer(add_completion=False)


@app.command()
def measure(
    num_images: Annotated[int, typer.Option(help="images whose features are encoded and decoded")] = 100,
    batch_size: Annotated[int, typer.Option(help="images at a time")] = 50,
) -> None:
    """Prints seconds and peak memory of both parts."""
    print("| part | seconds | peak memory, GiB |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        file, folder = Path(temporary) / "semantic_vae.pt", Path(temporary) / "semantic_vae"
        run("write", str(file))
        command = ["import", str(file), str(folder), "--kind", "semantic-vae", "--heads", str(HEADS)]
        report("sfd import", *timed(str(Path(sys.executable).with_name("sfd")), *command))
        numbers = run("encode", str(folder), str(num_images), str(batch_size))
        report(f"features of {num_images} images to latents and back", *map(float, numbers.split()))


def run(*arguments: str) -> str:
    """The output of a command of this file, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def timed(*command: str) -> tuple[float, float]:
    """Seconds, and GiB of the largest process that has ended."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def report(part: str, seconds: float, memory: float) -> None:
    """One row of the table."""
    print(f"| {part} | {seconds:.1f} | {memory:.2f} |", flush=True)


@app.command()
def write(file: Path) -> None:
    """A file in the published layout."""
    import torch

    from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig

    torch.manual_seed(0)
    network = SemVae(SemVaeConfig(WIDTH, WIDTH, HEADS, BLOCKS, LATENT))
    torch.save({"model_state_dict": network.state_dict(), "iteration": ITERATION}, file)


@app.command()
def encode(folder: Path, num_images: int, batch_size: int) -> None:
    """Random features to samples of the posterior and back; prints seconds and GiB."""
    import torch

    from sfd.encoders.semantic.encoder import load_semantic
    from sfd.processes import inference_device
    from sfd.seeding import generator

    device = inference_device()
    network, random = load_semantic(folder).to(device), generator(0, "benchmark/semantic")
    started = time.perf_counter()
    for start in range(0, num_images, batch_size):
        count = min(batch_size, num_images - start)
        features = torch.randn(count, TOKENS, WIDTH, generator=random).to(device)
        noise = torch.randn(count, TOKENS, LATENT, generator=random).to(device)
        with torch.no_grad():
            network.decode(network.sample(features, noise)).cpu()
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    app(sys.argv[1:] if sys.argv[1:2] in (["write"], ["encode"]) else ["measure", *sys.argv[1:]])
