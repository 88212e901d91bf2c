"""How much time a study needs beyond sampling and scoring: the same work in a bare loop and by the tuner, in one run.

python benchmarks/tuner_overhead.py      # needs `make repro`; leaves params.yaml and the project's studies alone
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import typer
import yaml

TRIALS, ROUNDS = 3, 3


def main() -> None:
    """Measures bare work and the tuner in turn, in several rounds; prints the seconds per trial of both, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path.cwd()
        tree = yaml.safe_load((project / "params.yaml").read_text())
        for name in ("results", "images"):
            if (project / name).exists():
                (Path(folder) / name).symlink_to(project / name)
        shutil.copytree(project / "src", Path(folder) / "src")
        os.chdir(folder)
        rows = [measure(tree, number) for number in range(ROUNDS)]
    bare, tuned = (statistics.median(row[n] for row in rows) for n in (0, 1))
    print(f"| {TRIALS} trials of {tree['tune']['repeats']} x {tree['tune']['num_images']} images | seconds per trial |")
    print("|---|---|")
    print(f"| bare sampling and scoring | {bare:.2f} |")
    print(f"| by the tuner | {tuned:.2f} |")
    print(f"| ratio (median of {ROUNDS} rounds) | {statistics.median(t / b for b, t in rows):.3f} |")


def measure(tree: dict[str, Any], number: int) -> tuple[float, float]:
    """Seconds per trial: of the trials' work in a bare loop, and of a study, from the start of its first trial to the end of its last."""
    from sfd.tuning.evaluator import STUDY, CandidateEvaluator
    from sfd.tuning.queue import Queue, run
    from sfd.tuning.study import open_study
    from sfd.tuning.trials import Trials
    from sfd.workspace import Workspace

    # One value for the key that changes the cost of a trial, so that both sides do the same work.
    tree["tune"]["space"].pop("sample.num_steps", None)
    tree["sample"]["num_steps"] = 10
    tree["tune"] |= {"study": f"round-{number}", "trials": TRIALS, "pruner": "none"}
    workspace = Workspace(Path())
    workspace.params_file.write_text(yaml.safe_dump(tree, sort_keys=False))
    params = workspace.load_params()
    evaluator = CandidateEvaluator(workspace, params)
    assert evaluator.trained is not None
    evaluator.score(evaluator.trained, params, STUDY, 0)  # warm
    started = time.perf_counter()
    for _ in range(TRIALS):
        for repeat in range(params.tune.repeats):
            evaluator.score(evaluator.trained, params, STUDY, repeat)
    bare = time.perf_counter() - started
    queue: Queue = open_study(workspace, params)
    queue.fill(TRIALS)
    objective = Trials(workspace, params, evaluator, queue.study.user_attrs["id"], None)
    started = time.perf_counter()
    run(queue, objective, deadline=time.monotonic() + 3600.0)
    return bare / TRIALS, (time.perf_counter() - started) / TRIALS


if __name__ == "__main__":
    typer.run(main)
