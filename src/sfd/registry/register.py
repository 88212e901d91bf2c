"""Stage ``register``: registers a self-contained model version, with tags that say how it was measured, and an alias."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sfd.data.prepare import SUMMARY_NAME
from sfd.errors import UserError
from sfd.generation.model import read_model_folder
from sfd.generation.samples import sampled_in
from sfd.generation.settings import Settings, write_settings
from sfd.models.conditions import Condition
from sfd.network_files import read_config
from sfd.params import Params
from sfd.pipeline.code import Imports
from sfd.pipeline.inputs import STAGES, digest_path, published_fingerprint, stage_fingerprint
from sfd.pipeline.stage import Stage, stage
from sfd.registry.load import open_registry, set_default_store
from sfd.registry.requests import MODELS_OWN_PROMPT, MODELS_OWN_TAU
from sfd.registry.smoke import as_rows, choose_labels, column_of, run_smoke
from sfd.registry.versions import (
    DATA,
    DIGEST,
    DIGEST_OF_DATA,
    MEASURED,
    METRIC,
    REGISTRATION_NAME,
    SMOKE,
    Registration,
    find_registered,
    find_versions,
    read_registration,
)
from sfd.tracking import EXPERIMENT, import_mlflow, now_ms
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
CODE = Path(__file__).parents[1]
"""The package, which a version carries."""


def register_again(workspace: Workspace) -> str:
    """Registers the results, as stage ``register`` left them, in the store that is in use now; returns one line that says so.

    Raises:
        UserError: the stage has not run, or results or code have changed since; or as :func:`register` does.
    """
    registration = read_registration(workspace)
    if registration is None:
        raise UserError("the results have not been registered before; run `dvc repro register`")
    with stage("register", workspace=workspace) as current:
        found = register_results(current, registration)
    return f"models:/{found.name}@{current.params.register_.alias} is version {found.version}"


def register_results(current: Stage, expected: Registration | None = None) -> "ModelVersion":
    """The body of stage ``register``: makes a version of the results, or finds the one that was made of them, and moves the alias.

    An experiment's version gets no alias, and a tag with the experiment's name.

    Args:
        expected: what must be registered, and nothing else; None: whatever the results are.

    Raises:
        UserError: as :func:`register` does; the samples were drawn otherwise than the version would draw; or the results are not those that
            are expected.
    """
    workspace, params = current.workspace, current.params
    _check_samples(workspace, params)
    tags = describe(current.upstream("evaluate"), current.upstream("prepare"))
    folders = model_folders(workspace, params)
    sample = Settings.of(params.sample, params.runtime.sample.batch_size, sampled_in(workspace.result("sample")))
    registration = Registration(workspace.model_name(params.register_), digest_results(folders, sample, tags))
    if expected not in (None, registration):
        raise UserError(
            "results, code or register.name changed since stage `register` ran; run `dvc repro`, which registers what is there now"
        )
    current.log_artifacts(workspace.params_file)
    if not params.register_.other_data:
        _check_data(workspace, registration.name, tags)
    version = register(workspace, registration, sample, folders, tags, current.require_run_id(), current.out)
    with open_registry(workspace) as store:
        if workspace.dvc_experiment is None:  # last, so that a version that has it is complete and answers by itself
            store.set_registered_model_alias(registration.name, params.register_.alias, version)
        return store.get_model_version(registration.name, version)


def model_folders(workspace: Workspace, params: Params) -> dict[str, Path]:
    """What goes into a version, by name: ``diffusion``, ``texture_vae``, with AutoGuidance ``weak_model``, and ``text_encoder`` of a model that
    is told words."""
    folders = {
        "diffusion": workspace.sampled_model(params),
        "texture_vae": workspace.result("texture_vae") / "model",
    }
    if params.sample.guidance.weak_model is not None:
        folders["weak_model"] = workspace.resolve(params.sample.guidance.weak_model)
    if _condition(folders).words is not None:
        folders["text_encoder"] = workspace.text_encoder
    return folders


def register(
    workspace: Workspace,
    registration: Registration,
    sample: Settings,
    folders: dict[str, Path],
    tags: dict[str, str],
    run_id: str,
    out: Path,
) -> str:
    """Makes a version, or finds the one that was made of the same; writes ``registration.json``; returns the version's number.

    Killed at any point and run again, it ends with one version: MLflow makes it in one step, with its tags, after the artifact has
    answered by itself; and it is looked up by its digest before.

    Args:
        folders: see :func:`model_folders`.
        tags: of the version, see :func:`describe`.
        run_id: the run that the model belongs to.

    Raises:
        UserError: the store refuses or is away, or the artifact does not answer in a process of its own.
    """
    found, name = find_registered(workspace, registration), registration.name
    if found is not None:
        version = found.version
    else:
        model_id = log_model(workspace, sample, folders, run_id, registration.digest)
        _log_metrics(workspace, run_id, model_id, tags)
        condition = _condition(folders)
        smoke = run_smoke(workspace, f"models:/{model_id}", "the model", choose_labels(condition), column_of(condition))
        named = {} if workspace.dvc_experiment is None else {EXPERIMENT: workspace.dvc_experiment.name}
        facts = {SMOKE: smoke.to_tag(), DIGEST: registration.digest}
        version = create_version(workspace, name, model_id, tags | facts | named)
    (out / REGISTRATION_NAME).write_text(json.dumps(asdict(registration), indent=2) + "\n", encoding="utf-8")
    return version


def digest_results(folders: dict[str, Path], sample: Settings, tags: dict[str, str]) -> str:
    """sha256 of what a version is made of: weights, settings, scores, and the code for which DVC would make it again."""
    facts = {
        "folders": {name: digest_path(folder) for name, folder in folders.items()},
        "sample": sample.model_dump(mode="json", exclude={"batch_size"}),
        "tags": tags,
        "code": Imports().code(STAGES["register"].code),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_data(workspace: Workspace, name: str, tags: dict[str, str]) -> None:
    """Raises :class:`UserError` if the model has versions, and all of them were made from other images."""
    earlier = [version for version in find_versions(workspace, name) if DIGEST_OF_DATA in version.data]
    if not earlier or any(version.data[DIGEST_OF_DATA] == tags[DATA + DIGEST_OF_DATA] for version in earlier):
        return
    last = earlier[0]
    raise UserError(
        f"{last} of model `{name}` was made from other images ({last.data['num_images']} in {last.data['num_classes']} classes, digest "
        f"{last.data[DIGEST_OF_DATA][:12]}) than these results ({tags[DATA + 'num_images']} in {tags[DATA + 'num_classes']}, digest "
        f"{tags[DATA + DIGEST_OF_DATA][:12]}); give register.name another name, or set register.other_data to true"
    )


def _check_samples(workspace: Workspace, params: Params) -> None:
    """Raises :class:`UserError` if the samples that were scored were drawn otherwise than the version would draw.

    DVC sees what changed in params.yaml and in results, but not in a folder elsewhere, such as that of AutoGuidance's weak model.
    """
    if published_fingerprint(workspace, "sample") != stage_fingerprint(workspace, "sample", params):
        raise UserError(
            f"{workspace.result('sample')} was drawn with other options or another weak model than those of section `sample` now, so its "
            "scores are not those of this version: run `dvc repro -f -s sample`, then `dvc repro`"
        )


def _condition(folders: dict[str, Path]) -> Condition:
    return read_model_folder(folders["diffusion"])[0].condition


def log_model(workspace: Workspace, sample: Settings, folders: dict[str, Path], run_id: str, digest: str) -> str:
    """Logs the model to a run; returns its id. A whole model of the same digest that the run has already is taken instead.

    Args:
        folders: see :func:`model_folders`.

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
    condition = _condition(folders)
    with open_registry(workspace) as store, TemporaryDirectory() as temporary:
        experiment = store.get_run(run_id).info.experiment_id
        for model in store.search_logged_models([experiment], f"tags.`sfd.{DIGEST}` = '{digest}'"):
            if model.source_run_id == run_id and str(model.status) == "READY":
                return str(model.model_id)
        settings = Path(temporary) / "sample.json"
        write_settings(settings, sample)
        set_default_store(workspace)
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={name: str(folder) for name, folder in folders.items()} | {"sample": str(settings)},
                code_paths=[str(CODE)],
                pip_requirements=[f"{name}=={installed(name).split('+')[0]}" for name in _requirements(folders)],
                signature=_signature(condition),
                input_example=pd.DataFrame(as_rows(choose_labels(condition)[:1], column_of(condition))),
                tags={f"sfd.{DIGEST}": digest},
            )
    return str(info.model_id)


def _requirements(folders: dict[str, Path]) -> tuple[str, ...]:
    """Packages that a version of these networks needs."""
    words = folders.get("text_encoder")
    if words is None or read_config(words)["kind"] != "transformers":
        return REQUIREMENTS
    return (*REQUIREMENTS, "transformers", "tokenizers")


def _log_metrics(workspace: Workspace, run_id: str, model_id: str, tags: dict[str, str]) -> None:
    """The scores of the evaluation as metrics of the logged model, so that MLflow's table of models can sort by them."""
    from mlflow.entities import Metric

    scores = {key.removeprefix(METRIC): float(value) for key, value in tags.items() if key.startswith(METRIC)}
    time = now_ms()
    with open_registry(workspace) as store:
        store.log_batch(
            run_id, [Metric(key, value, time, 0, model_id=model_id, run_id=run_id) for key, value in scores.items()]
        )


def create_version(workspace: Workspace, name: str, model_id: str, tags: dict[str, str]) -> str:
    """Registers a logged model together with the version's tags, in one step; returns the version's number."""
    import_mlflow()
    from mlflow import MlflowException

    set_default_store(workspace)
    with open_registry(workspace) as store:
        try:
            store.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run_id = store.get_logged_model(model_id).source_run_id
        created = store.create_model_version(name, f"models:/{model_id}", run_id, tags, model_id=model_id)
        return str(created.version)


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
    """Columns and parameters. Where there is nothing to choose, a label is let through, so that the model refuses it in words.

    A model that is told words has the column ``prompt`` in the label's place, and the parameter ``negative_prompt``.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    is_asked = condition.choices is not None or condition.words is not None
    inputs = Schema([ColSpec(DataType.string, column_of(condition), required=is_asked), ColSpec(DataType.long, "seed")])
    words = [] if condition.words is None else [ParamSpec("negative_prompt", DataType.string, MODELS_OWN_PROMPT)]
    params = ParamSchema(
        [
            ParamSpec("num_steps", DataType.long, 0),
            ParamSpec("scale_texture", DataType.double, 0.0),
            ParamSpec("scale_semantic", DataType.double, 0.0),
            ParamSpec("tau", DataType.double, MODELS_OWN_TAU),
            *words,
        ]
    )
    return ModelSignature(inputs, Schema([ColSpec(DataType.binary, "png")]), params)
