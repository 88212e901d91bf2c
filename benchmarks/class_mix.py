"""What another class mix does to a floor: real training images against real held-out ones, of digits with unequal classes.

    python benchmarks/class_mix.py     # in the project, after `make repro`; half a minute on two CPU cores

Five of the ten classes keep a fifth of their images. The judge is that of the default run.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from sfd.class_mix import count_alike, interleave
from sfd.data.images import ManifestImages, Pixels
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.evaluation.fidelity import FeatureStatistics
from sfd.evaluation.views import choose, choose_like, judge_images
from sfd.params import DataParams
from sfd.workspace import Workspace

NUM_IMAGES = 450
KEEP_EVERY = 5


def unequal_digits(workspace: Workspace, folder: Path) -> Prepared:
    """The digits, without four fifths of the images of 5 to 9, prepared in ``folder``."""
    for label in range(10):
        files = sorted((workspace.result("prepare") / "images" / str(label)).iterdir())
        target = folder / "images" / str(label)
        target.mkdir(parents=True)
        for file in files if label < 5 else files[::KEEP_EVERY]:
            shutil.copy(file, target)
    options = workspace.load_params().data.model_dump() | {"source": "folder", "root": str(folder / "images")}
    params = DataParams.model_validate(options)
    prepare(params, 0, folder / "prepare")
    return Prepared.load(params, folder / "prepare")


def features_of(judge: Judge, images: ManifestImages) -> Tensor:
    """Features ``(N, D)`` of all images."""
    return judge_images(judge, Pixels(images), range(len(images)), 100).features


def main(project: Annotated[Path, typer.Option(help="folder of the project")] = Path()) -> None:
    """Prints the floor of each pair of mixes."""
    workspace = Workspace.find(project)
    judge = load_judge(workspace.judge(workspace.load_params().first_judge.name))
    with tempfile.TemporaryDirectory() as folder:
        data = unequal_digits(workspace, Path(folder))
        train, heldout = data.images(TRAIN), data.images(HELDOUT)
        seen = features_of(judge, train), features_of(judge, heldout)
    labels = train.class_indices.tolist(), heldout.class_indices.tolist()

    def show(floor: str, reference: str, rows: tuple[list[int], list[int]]) -> None:
        images, compared = (FeatureStatistics.of(each[chosen]) for each, chosen in zip(seen, rows, strict=True))
        print(f"{floor:<10}{reference:<10}{len(rows[0]):>8}{images.distance(compared):>8.2f}")

    print(f"{'floor':<10}{'reference':<10}{'images':>8}{'fd':>8}")
    number = min(NUM_IMAGES, len(train), len(heldout))
    balanced = interleave([1] * 10, NUM_IMAGES)
    mixed = choose_like(balanced[:number], labels[0], 0, "train"), choose(len(heldout), number, 0, "heldout")
    show("balanced", "natural", mixed)
    natural = interleave(train.class_indices.bincount().tolist(), NUM_IMAGES)
    for name, wanted in (("balanced", balanced), ("natural", natural)):
        alike = wanted[: count_alike(wanted, *labels)]
        show(name, name, (choose_like(alike, labels[0], 0, "train"), choose_like(alike, labels[1], 0, "heldout")))


if __name__ == "__main__":
    typer.run(main)
