"""The project that a command works on."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sfd.workspace import Workspace


def project_of(context: typer.Context) -> "Workspace":
    """The project that ``--project`` or the working folder lies in. Raises :class:`UserError` if there is none."""
    from sfd.workspace import Workspace

    return Workspace.find(context.obj)
