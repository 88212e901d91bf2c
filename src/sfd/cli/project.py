"""The project that a command works on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfd.workspace import Workspace

ParamsFile = Annotated[
    Path | None, typer.Option("--file", help="The params file to read; without it, that of the project.")
]


def project_of(context: typer.Context) -> "Workspace":
    """The project that ``--project`` or the working folder lies in. Raises :class:`UserError` if there is none."""
    from sfd.workspace import Workspace

    return Workspace.find(context.obj)
