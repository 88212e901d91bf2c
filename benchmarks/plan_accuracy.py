"""Does a plan keep its promise? Plans a project for a folder of images, runs its graph, and compares the seconds of each stage.

    python benchmarks/plan_accuracy.py emoji64 --hours 0.5

The time of a stage is that between two of DVC's lines, so it has the start of Python in it. Nothing else should run on the machine.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer


def main(
    images: Annotated[Path, typer.Argument(help="folder of images")],
    hours: Annotated[float, typer.Option(help="for the plan")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="folder for the project; without it, one that is deleted")] = None,
) -> None:
    """Prints a row per stage, and the sum."""
    with tempfile.TemporaryDirectory() as temporary:
        project = out or Path(temporary) / "project"
        subprocess.run(["sfd", "init", str(project), "--images", str(images), "--hours", str(hours)], check=True)
        planned = json.loads((project / "plan.json").read_text(encoding="utf-8"))["costs"]
        took = run(project)
    print("| stage | planned, s | took, s |\n|---|---|---|")
    for stage, cost in planned.items():
        print(f"| `{stage}` | {cost['seconds']:.0f} | {took[stage]:.0f} |")
    total = sum(cost["seconds"] for cost in planned.values())
    print(f"| all | {total:.0f} | {sum(took.values()):.0f} |")
    print(f"\nThe run took {sum(took.values()) / total:.2f} times as long as planned.")


def run(project: Path) -> dict[str, float]:
    """Runs the graph; returns the seconds of each stage. Raises :class:`SystemExit` if it fails."""
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(["dvc", "repro"], cwd=project, env=unbuffered, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    starts: dict[str, float] = {}
    for line in process.stdout:
        found = re.match(r"Running stage '(\w+)'", line)
        if found:
            starts[found[1]] = time.monotonic()
    if process.wait():
        raise SystemExit(f"dvc repro ended with status {process.returncode}")
    ends = [*list(starts.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(starts.items(), ends, strict=True)}


if __name__ == "__main__":
    typer.run(main)
