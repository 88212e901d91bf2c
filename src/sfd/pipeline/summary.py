"""What a finished run gave, and where it is."""

import json

from sfd.errors import UserError
from sfd.names import FLOORS, main_distance
from sfd.workspace import Workspace

SHOWN = ("class_accuracy", "precision", "recall", "memorised_fraction", "num_images")


def summarise(workspace: Workspace) -> str:
    """Where sample grid, metrics and registered model are, and the metrics that matter most beside their floors.

    Raises:
        UserError: the graph has not been run to its end.
    """
    grid = workspace.result("sample") / "grid.png"
    metrics_file = workspace.result("evaluate") / "metrics.json"
    version_file = workspace.result("register") / "version.json"
    for file in (grid, metrics_file, version_file):
        if not file.is_file():
            raise UserError(f"{file} is missing, so the graph has not been run to its end; run `dvc repro`")
    metrics: dict[str, float] = json.loads(metrics_file.read_text(encoding="utf-8"))
    version: dict[str, str | None] = json.loads(version_file.read_text(encoding="utf-8"))
    distance = main_distance(metrics)
    floors = ", ".join(f"{name} {metrics[f'fd_{name}']:.3f}" for name in reversed(FLOORS))
    numbers = ", ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)
    address = f"models:/{version['name']}" + (f"@{version['alias']}" if version["alias"] else f"/{version['version']}")
    steps = [f"{step:,}" for step in workspace.kept_steps()]
    kept = [f"steps    weights after {', '.join(steps)} steps: `sample.step`, `sfd evaluate-steps`"] if steps else []
    return "\n".join(
        [
            f"samples  {grid} ({grid.parent / 'images'}: one PNG each)",
            f"metrics  {metrics_file}: {distance} {metrics[distance]:.3f} (floors: {floors}), {numbers}",
            f"model    {address} (version {version['version']}) at {version['tracking_uri']}; `make ui` shows it",
            *kept,
        ]
    )
