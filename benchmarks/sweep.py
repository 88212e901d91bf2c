"""How much time a sweep needs beyond sampling and scoring: the same work in a bare loop and by `sfd sweep`, in one run.

python benchmarks/sweep.py      # needs `make repro`; leaves params.yaml and the project's results alone
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

GRID = (
    "sample.guidance.scale_texture+sample.guidance.scale_semantic=1.1,1.25,1.5,2.0",
    "sample.guidance.end_texture=0.6,0.8,1.0",
)


def main(rounds: Annotated[int, typer.Option(min=1, help="Of the bare work and a sweep.")] = 3) -> None:
    """Measures the bare work and a sweep in turn, in several rounds; prints the seconds of both, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path.cwd()
        for name in ("results", "images"):
            if (project / name).exists():
                (Path(folder) / name).mkdir()
                for inner in (project / name).iterdir():
                    (Path(folder) / name / inner.name).symlink_to(inner)
        shutil.copy(project / "params.yaml", folder)
        os.chdir(folder)
        rows = [measure() for _ in range(rounds)]
    print(f"| {int(rows[0][2])} settings of {int(rows[0][3])} images | seconds |")
    print("|---|---|")
    print(f"| bare sampling and scoring | {statistics.median(row[0] for row in rows):.1f} |")
    print(f"| `sfd sweep`, the features of the reference included | {statistics.median(row[1] for row in rows):.1f} |")
    print(f"| ratio (median of {rounds} rounds) | {statistics.median(row[1] / row[0] for row in rows):.3f} |")


def measure() -> tuple[float, float, int, int]:
    """Seconds of the bare loop, seconds of the sweep, the number of settings and the images of each."""
    from sfd.data.manifest import HELDOUT
    from sfd.evaluation.fidelity import Reference, extract
    from sfd.evaluation.views import ImageBatches, choose_mix
    from sfd.generation.model import DiffusionModel
    from sfd.pipeline.prepare import open_prepared
    from sfd.pipeline.reference import load_judges
    from sfd.tuning.grid import make_grid
    from sfd.tuning.scorer import SampleScorer
    from sfd.tuning.sweep import sweep
    from sfd.workspace import Workspace

    workspace = Workspace.find()
    params = workspace.load_params()
    judges = load_judges(workspace, params.judges[:1])
    scorer, model = SampleScorer(workspace, judges), DiffusionModel.load(workspace.model())
    values = model.condition.plan(params.sample.num_images, params.sample.class_mix)
    heldout = open_prepared(workspace, params).images(HELDOUT)
    wanted = model.condition.columns(values).get("class_index")
    chosen = choose_mix(wanted, heldout.class_indices.tolist(), params.seed, "heldout")
    batches = ImageBatches(params.runtime.evaluate.batch_size, judges[0])
    reference = Reference.of(extract(judges[0], batches.of_images(heldout, chosen)))
    settings = make_grid(params, GRID).settings
    scorer.score(model, settings[0].params, values[:50], params.seed, [reference])  # warm
    started = time.perf_counter()
    for setting in settings:
        scorer.score(model, setting.params, values, params.seed, [reference])
    bare = time.perf_counter() - started
    shutil.rmtree(workspace.scores, ignore_errors=True)
    started = time.perf_counter()
    print(sweep(workspace, GRID))
    return bare, time.perf_counter() - started, len(settings), len(values)


if __name__ == "__main__":
    typer.run(main)
