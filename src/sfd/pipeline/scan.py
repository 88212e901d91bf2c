"""Stage ``scan``: the code of every stage, as DVC can watch it wherever sfd is installed."""

from sfd.pipeline.code import Imports, write_code
from sfd.pipeline.inputs import STAGES
from sfd.workspace import Workspace


def write_stage_codes(workspace: Workspace) -> None:
    """Writes one file per stage: the modules of sfd that it imports, with their digests, and the versions of the libraries."""
    imports = Imports()
    for name, inputs in STAGES.items():
        write_code(workspace.code(name), imports.code(inputs.code))
