"""What a finished run gave, and where it is."""

import json

from sfd.errors import UserError
from sfd.names import ENDINGS, FLOORS, WORD_METRICS, main_distance, too_few
from sfd.registry.versions import REGISTRATION_NAME, find_registered, read_registration
from sfd.tracking import Store
from sfd.workspace import Workspace

SHOWN = ("fdr", "class_accuracy", "precision", "recall", "memorised_fraction", *WORD_METRICS, "num_images")


def summarise(workspace: Workspace) -> str:
    """Where sample grid, metrics and registered model are, and the metrics that matter most beside their floors.

    Raises:
        UserError: the graph has not been run to its end.
    """
    grid = workspace.result("sample") / "grid.png"
    metrics_file = workspace.result("evaluate") / "metrics.json"
    for file in (grid, metrics_file, workspace.result("register") / REGISTRATION_NAME):
        if not file.is_file():
            raise UserError(f"{file} is missing, so the graph has not been run to its end; run `dvc repro`")
    metrics: dict[str, float] = json.loads(metrics_file.read_text(encoding="utf-8"))
    measured = json.loads((metrics_file.parent / "measurement.json").read_text(encoding="utf-8"))
    distance = main_distance(metrics, measured["judge"])
    floors = ", ".join(f"{name} {metrics[f'fd_{name}']:.3f}" for name in reversed(FLOORS))
    numbers = ", ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)
    flagged = [f"{key} {said}" for key in (distance, *SHOWN) if (said := too_few(key, metrics))]
    beside = {
        key: [ending for ending in ENDINGS[key] if f"{key}_{ending}" in metrics] for key in ENDINGS if key in metrics
    }
    words = [
        f"words    {key}: " + ", ".join(f"{ending} {metrics[f'{key}_{ending}']:.4g}" for ending in endings)
        for key, endings in beside.items()
        if endings
    ]
    few = [f"flagged  {', '.join(flagged)}: no gate on them passes; `evaluate.min_images`"] if flagged else []
    steps = [f"{step:,}" for step in workspace.kept_steps()]
    kept = [f"steps    weights after {', '.join(steps)} steps: `sample.step`, `sfd evaluate-steps`"] if steps else []
    return "\n".join(
        [
            f"samples  {grid} ({grid.parent / 'images'}: one PNG each)",
            f"metrics  {metrics_file}: {distance} {metrics[distance]:.3f} (floors: {floors}), {numbers}",
            *words,
            *few,
            f"model    {_describe_version(workspace)}",
            *kept,
        ]
    )


def _describe_version(workspace: Workspace) -> str:
    """The version of the results in the store that is asked now; what to do where it has none."""
    registration, alias = read_registration(workspace), workspace.load_params().register_.alias
    assert registration is not None  # checked above
    store = Store(workspace).name
    try:
        version = find_registered(workspace, registration)
    except UserError as error:
        return f"{registration.name}, whose version is not known: {error}"
    if version is None:
        return f"{registration.name} at {store} has no version of these results; `sfd register` makes it"
    if alias not in version.aliases:
        return (
            f"models:/{version.name}/{version.version} at {store}, without the alias `{alias}`; `sfd register` gives it"
        )
    shown = f"; `mlflow ui --backend-store-uri {store}` shows it" if store.startswith("sqlite:") else ""
    return f"models:/{version.name}@{alias} (version {version.version}) at {store}{shown}"
