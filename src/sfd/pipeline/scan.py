"""Stage ``scan``: what must be there before other stages run; the code of every stage, as DVC can watch it wherever sfd is; whether this is
an experiment."""

import json

from sfd.errors import UserError
from sfd.names import weight_file
from sfd.params import Params, parse_yaml
from sfd.pipeline.code import Imports, write_code
from sfd.pipeline.inputs import STAGES, upstream_of
from sfd.workspace import Workspace

GRAPH_NAME = "dvc.yaml"


def check_packages(params: Params) -> None:
    """Stages that need a package come long after others. Raises :class:`UserError` for one that is not installed."""
    for section, source, name in (
        ("encoder", params.encoder.source, params.encoder.name),
        *((f"judges.{number}", judge.source, judge.model) for number, judge in enumerate(params.judges)),
    ):
        if source == "package" and name is not None:
            weight_file(section, name)


def check_stages(workspace: Workspace, params: Params) -> None:
    """A project keeps the graph of the version of sfd that made it.

    Raises:
        UserError: a stage of ``dvc.yaml`` reads the result of one that is not among its dependencies, so DVC would not run that one before.
    """
    file = workspace.root / GRAPH_NAME
    if not file.is_file():  # stages can be run without DVC
        return
    tree = parse_yaml(file.read_text(encoding="utf-8"), str(file), accept_ambiguous=True) or {}
    graph = tree.get("stages", {})
    for name in (name for name in STAGES if name in graph):
        named = {str(dep).split("/")[1] for dep in graph[name].get("deps", []) if str(dep).startswith("results/")}
        missing = [read for read in upstream_of(name, params) if read not in named]
        if missing:
            raise UserError(
                f"{file} is of another version of sfd: its stage `{name}` does not name results/{missing[0]}, which it reads; make a project with "
                "`sfd init NEW`, and copy dvc.yaml, tune/dvc.yaml and stages/ from there"
            )


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
