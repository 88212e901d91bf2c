"""Stage ``scan``: what must be installed; the code of every stage, as DVC can watch it wherever sfd is; whether this is an experiment."""

import json

from sfd.names import weight_file
from sfd.params import Params
from sfd.pipeline.code import Imports, write_code
from sfd.pipeline.inputs import STAGES
from sfd.workspace import Workspace


def check_packages(params: Params) -> None:
    """Stages that need a package come long after others. Raises :class:`UserError` for one that is not installed."""
    for section, source, name in (
        ("encoder", params.encoder.source, params.encoder.name),
        *((f"judges.{number}", judge.source, judge.model) for number, judge in enumerate(params.judges)),
    ):
        if source == "package" and name is not None:
            weight_file(section, name)


def write_stage_codes(workspace: Workspace) -> None:
    """Writes one file per stage: the modules of sfd that it imports, with their digests, and the versions of the libraries."""
    imports = Imports()
    for name, inputs in STAGES.items():
        write_code(workspace.code(name), imports.code(inputs.code))


def write_experiment(workspace: Workspace) -> None:
    """Writes whether `dvc exp run` runs the graph. So `dvc repro` after `dvc exp apply` runs stage `register`, which sets the alias."""
    file = workspace.experiment_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"experiment": workspace.dvc_experiment is not None}) + "\n", encoding="utf-8")
