"""Stage ``register``: a self-contained model version with an alias."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfd.errors import UserError
from sfd.params import RegisterParams, SampleParams
from sfd.tracking import client, tracking_uri

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
    params: RegisterParams, sample: SampleParams, folders: dict[str, Path], metrics: Path, run_id: str, out: Path
) -> "ModelVersion":
    """Logs the model to the stage's run, registers it, moves the alias, and writes ``version.json``.

    Args:
        folders: artifacts by name: ``diffusion`` and ``texture_vae``.
        metrics: ``metrics.json`` of the evaluation; its values become tags of the version.

    Raises:
        UserError: the model needs files that a registered version cannot carry (AutoGuidance's weak model), or the store refuses.
    """
    import mlflow
    import pandas as pd

    if sample.guidance.weak_model is not None:
        raise UserError(
            "a registered model cannot carry sample.guidance.weak_model yet; set guidance.kind to `cfg` or `none` to register"
        )
    settings = out / "sample.json"
    settings.write_text(sample.model_dump_json())
    label = json.loads((folders["diffusion"] / "config.json").read_text())["classes"][0]
    mlflow.set_tracking_uri(tracking_uri())
    try:
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={name: str(folder) for name, folder in folders.items()} | {"sample": str(settings)},
                code_paths=[str(Path(__file__).parents[1])],
                pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in REQUIREMENTS],
                signature=_signature(),
                input_example=pd.DataFrame({"label": [label], "seed": [0]}),
                registered_model_name=params.name,
            )
    except mlflow.MlflowException as error:
        raise UserError(
            f"MLflow at {tracking_uri()} did not take the model: {' '.join(str(error).split())[:300]}; run `dvc repro` again when it does"
        ) from error
    store = client()
    created = store.get_model_version(params.name, str(info.registered_model_version))
    for name, value in json.loads(metrics.read_text()).items():
        store.set_model_version_tag(params.name, created.version, f"metric.{name}", str(value))
    store.set_registered_model_alias(params.name, params.alias, created.version)
    facts = {
        "name": params.name,
        "version": str(created.version),
        "alias": params.alias,
        "tracking_uri": tracking_uri(),
    }
    (out / "version.json").write_text(json.dumps(facts, indent=2) + "\n")
    return created


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    inputs = Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.long, "seed")])
    params = ParamSchema(
        [
            ParamSpec("num_steps", DataType.long, 0),
            ParamSpec("scale_texture", DataType.double, 0.0),
            ParamSpec("scale_semantic", DataType.double, 0.0),
        ]
    )
    return ModelSignature(inputs, Schema([ColSpec(DataType.binary, "png")]), params)
