"""The prepared images of a project."""

from sfd.data.prepared import Prepared
from sfd.params import Params
from sfd.workspace import Workspace


def open_prepared(workspace: Workspace, params: Params) -> Prepared:
    """The result of stage ``prepare``. Raises :class:`UserError` if the manifest is missing or breaks its schema."""
    return Prepared.load(workspace.resolve_paths(params.data), workspace.result("prepare"))
