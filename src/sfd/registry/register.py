"""Stage ``register``: registers a self-contained model version, with tags that say how it was measured, and an alias."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfd.data.prepare import SUMMARY_NAME
from sfd.errors import UserError
from sfd.generation.model import read_model_folder
from sfd.generation.settings import Settings, write_settings
from sfd.models.conditions import Condition
from sfd.params import RegisterParams
from sfd.registry.requests import MODELS_OWN_TAU
from sfd.registry.smoke import as_rows, choose_labels, run_smoke
from sfd.registry.versions import DATA, MEASURED, METRIC, SMOKE
from sfd.tracking import EXPERIMENT, client, import_mlflow, tracking_uri
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "diffusers",
    "timm",
    "accelerate",
    "torchdiffeq",
    "safetensors",
    "pydantic",
    "pandas",
    "pillow",
    "numpy",
    "tqdm",
)
"""What the model needs to answer, at the versions that it was tested with here."""


def register(
    workspace: Workspace,
    params: RegisterParams,
    sample: Settings,
    folders: dict[str, Path],
    tags: dict[str, str],
    run_id: str,
    out: Path,
) -> "ModelVersion":
    """Makes a version, draws its smoke images, moves the alias, and writes ``version.json``.

    The alias moves last, so that a version that has it is complete and answers by itself. An experiment's version gets none, and a tag
    with the experiment's name.

    Args:
        folders, run_id, out: see :func:`make_version`.
        tags: of the version, see :func:`describe`.

    Raises:
        UserError: as :func:`make_version` does; or the registered version does not answer in a process of its own.
    """
    # As seen from the project's root, so that the result does not depend on the working folder; and now, for MLflow changes the environment.
    uri = tracking_uri(Workspace(Path()))
    created = make_version(workspace, params.name, sample, folders, run_id, out)
    store, labels = client(workspace), choose_labels(_condition(folders))
    for key, value in (tags | {SMOKE: run_smoke(workspace, params.name, created, labels).to_tag()}).items():
        store.set_model_version_tag(params.name, created, key, value)
    experiment = workspace.dvc_experiment
    if experiment is None:
        store.set_registered_model_alias(params.name, params.alias, created)
    else:
        store.set_model_version_tag(params.name, created, EXPERIMENT, experiment.name)
    written = {
        "name": params.name,
        "version": created,
        "alias": None if experiment else params.alias,
        "tracking_uri": uri,
    }
    (out / "version.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return store.get_model_version(params.name, created)


def _condition(folders: dict[str, Path]) -> Condition:
    return read_model_folder(folders["diffusion"])[0].condition


def make_version(
    workspace: Workspace, name: str, sample: Settings, folders: dict[str, Path], run_id: str, out: Path
) -> str:
    """Logs the model to a run and registers it; returns the version's number.

    Args:
        folders: artifacts by name: ``diffusion``, ``texture_vae``, and with AutoGuidance ``weak_model``.
        out: where the settings are written as ``sample.json``.

    Raises:
        UserError: the weak model's folder does not come with AutoGuidance alone, or the store refuses.
    """
    import_mlflow()
    import mlflow
    import pandas as pd

    if ("weak_model" in folders) != (sample.guidance.kind == "autoguidance"):
        raise UserError(
            f"sample.guidance.kind is `{sample.guidance.kind}`, but a weak model goes into the version with `autoguidance`, and only then: "
            "correct sample.guidance.kind and sample.guidance.weak_model"
        )
    settings = out / "sample.json"
    write_settings(settings, sample)
    condition = _condition(folders)
    mlflow.set_tracking_uri(tracking_uri(workspace))
    try:
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={name: str(folder) for name, folder in folders.items()} | {"sample": str(settings)},
                code_paths=[str(Path(__file__).parents[1])],
                pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in REQUIREMENTS],
                signature=_signature(condition),
                input_example=pd.DataFrame(as_rows(choose_labels(condition)[:1])),
                registered_model_name=name,
            )
    except mlflow.MlflowException as error:
        raise UserError(
            f"MLflow at {tracking_uri(workspace)} did not take the model: {' '.join(str(error).split())[:300]}; run `dvc repro` again when it does"
        ) from error
    return str(info.registered_model_version)


def describe(evaluated: Path, prepared: Path) -> dict[str, str]:
    """Tags that say how good a version is, how that was measured, and on what data; from the folders of those stages."""
    summary = json.loads((prepared / SUMMARY_NAME).read_text(encoding="utf-8"))
    summary["num_classes"] = len(summary.pop("classes"))
    facts = {
        METRIC: json.loads((evaluated / "metrics.json").read_text(encoding="utf-8")),
        MEASURED: json.loads((evaluated / "measurement.json").read_text(encoding="utf-8")),
        DATA: summary,
    }
    return {prefix + key: str(value) for prefix, values in facts.items() for key, value in values.items()}


def _signature(condition: Condition) -> Any:
    """Columns and parameters. Where there is nothing to choose, a label is let through, so that the model refuses it in words."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    inputs = Schema(
        [ColSpec(DataType.string, "label", required=condition.choices is not None), ColSpec(DataType.long, "seed")]
    )
    params = ParamSchema(
        [
            ParamSpec("num_steps", DataType.long, 0),
            ParamSpec("scale_texture", DataType.double, 0.0),
            ParamSpec("scale_semantic", DataType.double, 0.0),
            ParamSpec("tau", DataType.double, MODELS_OWN_TAU),
        ]
    )
    return ModelSignature(inputs, Schema([ColSpec(DataType.binary, "png")]), params)
