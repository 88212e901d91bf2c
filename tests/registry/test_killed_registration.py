"""A registration that is killed at any moment and run again ends with one version and one logged model."""

import time

import pytest
import yaml
from mlflow import MlflowClient
from support import Project, finished_project

pytestmark = pytest.mark.long
MOMENTS_S = [0.2 * number for number in range(1, 11)]
"""A registration takes about two and a half seconds."""


def unregistered(factory: pytest.TempPathFactory) -> Project:
    """A finished project whose model has no version under its name, `killed`."""
    project = finished_project(factory).copy_to(factory.mktemp("killed") / "project")
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["register"]["name"] = "killed"
    project.write_params(params)
    return project


def test_a_registration_that_is_killed_again_and_again_ends_with_one_version(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    project = unregistered(tmp_path_factory)
    killed = 0
    for moment in MOMENTS_S:
        process = project.start("python", "stages/register.py", forked=True)
        time.sleep(moment)
        process.kill()
        process.communicate()
        killed += process.returncode == -9
    assert killed > 0
    status, output = project.run("python", "stages/register.py")
    assert status == 0, output
    client = MlflowClient(f"sqlite:///{project.folder}/mlruns/mlflow.db")
    (version,) = client.search_model_versions("name = 'killed'")
    assert (
        version.tags["digest"] and client.get_model_version_by_alias("killed", "candidate").version == version.version
    )
    (experiment,) = client.search_experiments(filter_string="name = 'sfd'")
    made = client.search_logged_models([experiment.experiment_id], f"tags.`sfd.digest` = '{version.tags['digest']}'")
    assert version.source == f"models:/{next(m for m in made if str(m.status) == 'READY').model_id}"
    status, output = project.run("sfd", "models", "promote", "1", "--force", "a test")
    assert status == 0, output


def test_a_registration_that_was_killed_after_its_model_was_logged_takes_that_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    project = unregistered(tmp_path_factory)
    status, output = project.run("python", "-c", KILLED_BEFORE_ITS_VERSION)
    assert status != 0 and "the model is logged" in output
    status, output = project.run("python", "stages/register.py")
    assert status == 0, output
    assert not (project.folder / "mlflow.db").exists()
    (version,) = MlflowClient(f"sqlite:///{project.folder}/mlruns/mlflow.db").search_model_versions("name = 'killed'")
    assert version.tags["digest"]


KILLED_BEFORE_ITS_VERSION = """
import os, runpy
from sfd.registry import register

def killed(*_):
    print("the model is logged", flush=True)
    os.kill(os.getpid(), 9)

register.create_version = killed
runpy.run_path("stages/register.py")
"""
