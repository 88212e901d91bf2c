"""How much time a sweep needs beyond sampling and scoring: the same work in a bare loop and by `sfd sweep`, in one run.

python benchmarks/sweep.py      # needs `make repro`; leaves params.yaml and the project's results alone
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

GRID = (
    "sample.guidance.scale_texture+sample.guidance.scale_semantic=1.1,1.25,1.5,2.0",
    "sample.guidance.end_texture=0.6,0.8,1.0",
)


def main(rounds: Annotated[int, typer.Option(min=1, help="Of the bare work and a sweep.")] = 3) -> None:
    """Measures the bare work and a sweep in turn, in several rounds; prints the seconds of both, and their ratio."""
    from sfd.tuning.sweep import SPEED, sweep
    from sfd.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        project = Path.cwd()
        for name in ("results", "images"):
            if (project / name).exists():
                (Path(folder) / name).mkdir()
                for inner in (project / name).iterdir():
                    (Path(folder) / name / inner.name).symlink_to(inner)
        shutil.copy(project / "params.yaml", folder)
        os.chdir(folder)
        sweep(Workspace.find(), ["sample.num_steps=1"], num_images=20, metric=SPEED)  # makes MLflow's store
        rows = [measure() for _ in range(rounds)]
    settings, images = rows[0].settings, rows[0].images
    print(f"| {settings} settings of {images} images | seconds | CPU seconds |")
    print("|---|---|---|")
    clocks = [[row.wall for row in rows], [row.cpu for row in rows]]
    for name, place in (("bare sampling and scoring", 0), ("`sfd sweep`, the features of the reference included", 1)):
        cells = [statistics.median(pair[place] for pair in clock) for clock in clocks]
        print(f"| {name} | {cells[0]:.1f} | {cells[1]:.1f} |")
    ratios = [statistics.median(swept / bare for bare, swept in clock) for clock in clocks]
    print(f"| ratio (median of {rounds} rounds) | {ratios[0]:.3f} | {ratios[1]:.3f} |")


class Round(NamedTuple):
    """Seconds and CPU seconds, of the bare loop and of the sweep; the number of settings and the images of each."""

    wall: tuple[float, float]
    cpu: tuple[float, float]
    settings: int
    images: int


def measure() -> Round:
    """The bare work, then the sweep. CPU seconds say more where other programs run beside."""
    from sfd.data.images import Pixels
    from sfd.data.manifest import HELDOUT
    from sfd.evaluation.fidelity import Reference
    from sfd.evaluation.views import choose_mix, judge_images
    from sfd.generation.model import DiffusionModel
    from sfd.pipeline.prepare import open_prepared
    from sfd.pipeline.reference import load_judges
    from sfd.precision import Inference
    from sfd.tuning.grid import make_grid
    from sfd.tuning.scorer import SampleScorer
    from sfd.tuning.sweep import sweep
    from sfd.workspace import Workspace

    workspace = Workspace.find()
    params = workspace.load_params()
    judges = load_judges(workspace, params.judges[:1], Inference.of(params.runtime.evaluate))
    scorer = SampleScorer(workspace, judges, Inference.of(params.runtime.sample))
    model = DiffusionModel.load(workspace.model())
    values = model.condition.plan(params.sample.num_images, params.sample.class_mix)
    heldout = open_prepared(workspace, params).images(HELDOUT)
    wanted = model.condition.columns(values).get("class_index")
    chosen = choose_mix(wanted, heldout.class_indices.tolist(), params.seed, "heldout")
    size = params.runtime.evaluate.batch_size
    reference = Reference.of(judge_images(judges[0], Pixels(heldout), chosen, size))
    settings = make_grid(params, GRID).settings
    scorer.score(model, settings[0].params, values[:50], params.seed, [reference])  # warm
    clocks = [(time.perf_counter(), time.process_time())]
    for setting in settings:
        scorer.score(model, setting.params, values, params.seed, [reference])
    clocks.append((time.perf_counter(), time.process_time()))
    shutil.rmtree(workspace.scores, ignore_errors=True)
    print(sweep(workspace, GRID))
    clocks.append((time.perf_counter(), time.process_time()))
    wall, cpu = ((middle - start, end - middle) for start, middle, end in zip(*clocks, strict=True))
    return Round(wall, cpu, len(settings), len(values))


if __name__ == "__main__":
    typer.run(main)
