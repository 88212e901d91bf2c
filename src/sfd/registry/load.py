"""A version of the model registry, ready to draw images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sfd.errors import UserError
from sfd.tracking import Store, StoreAway, client, import_mlflow, tracking_uri
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from sfd.generation.images import ImageGenerator
    from sfd.generation.settings import Settings


@dataclass(frozen=True)
class RegisteredModel:
    """A version that draws images. ``sample``: the settings that it was registered and scored with."""

    name: str
    version: str
    images: "ImageGenerator"
    sample: "Settings"


@contextmanager
def open_registry(workspace: Workspace, missing: str = "") -> Iterator["MlflowClient"]:
    """A client of the store and its registry. An error of the store within the block becomes a :class:`UserError` of one line.

    ``missing``: the message if the store does not have what the block asks for.

    Raises:
        UserError: the store does not answer, or refuses.
    """
    import_mlflow()
    from mlflow import MlflowException

    store = Store(workspace)
    _check_away(store)
    try:
        yield client(workspace)
    except MlflowException as error:
        _check_away(store)
        if missing and error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(
                f"{missing} at {store.name}; `sfd models list` shows what there is, `sfd models promote` makes a champion"
            ) from None
        raise UserError(f"MLflow at {store.name} refuses: {store.describe(error)}") from None


def set_default_store(workspace: Workspace) -> None:
    """Makes the project's store MLflow's process-wide one, in which it looks up `models:/` addresses, whatever store a client has."""
    import mlflow

    uri = tracking_uri(workspace)
    if mlflow.get_tracking_uri() != uri:  # setting it changes the environment, which other threads may read
        mlflow.set_tracking_uri(uri)


def _check_away(store: Store) -> None:
    """Raises :class:`UserError` if the reason for an error is that the server went away meanwhile."""
    try:
        store.probe()
    except StoreAway as error:
        raise UserError(f"MLflow at {store.name} is away ({error}); start it, or correct MLFLOW_TRACKING_URI") from None


def find_version(workspace: Workspace, name: str, which: str) -> "ModelVersion":
    """The version of a registered model by its number or an alias.

    Raises:
        UserError: the store does not answer, or has no such model, version or alias.
    """
    what = f"version {which}" if which.isdecimal() else f"alias `{which}`"
    with open_registry(workspace, f"there is no {what} of model `{name}`") as registry:
        if which.isdecimal():
            return registry.get_model_version(name, which)
        return registry.get_model_version_by_alias(name, which)


@contextmanager
def download_version(workspace: Workspace, name: str, version: str) -> Iterator[dict[str, Path]]:
    """Downloads the artifacts of a version for the block: name to file or folder.

    Raises:
        UserError: the store does not answer or has no such version; or the version is not one of ours.
    """
    import_mlflow()
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    set_default_store(workspace)
    with TemporaryDirectory() as temporary:
        with open_registry(workspace, f"there is no version {version} of model `{name}`"):
            where = download_artifacts(f"models:/{name}/{version}", dst_path=temporary)
        paths = Model.load(where).flavors["python_function"].get("artifacts", {})
        if not {"diffusion", "texture_vae", "sample"} <= paths.keys():
            raise UserError(f"version {version} of model `{name}` is not one that stage `register` made")
        yield {artifact: Path(where) / entry["path"] for artifact, entry in paths.items()}


def load_registered(workspace: Workspace, name: str, which: str) -> RegisteredModel:
    """Loads a version by its number or an alias: weights, schedule, statistics, decoder and precision as they were registered.

    Raises:
        UserError: as :func:`find_version` and :meth:`ImageGenerator.load` do; or the version is not one of ours.
    """
    from sfd.generation.images import ImageGenerator
    from sfd.generation.settings import read_settings
    from sfd.precision import Inference

    version = str(find_version(workspace, name, which).version)
    with download_version(workspace, name, version) as folders:
        sample = read_settings(folders["sample"])
        images = ImageGenerator.load(
            folders["diffusion"],
            folders["texture_vae"],
            folders.get("weak_model"),
            sample.other_networks,
            Inference.recorded(sample.precision),
            folders.get("text_encoder"),
        )
    return RegisteredModel(name, version, images, sample)
