"""``sfd preset``: ready parameters."""

from typing import Annotated

import typer

from sfd.cli.project import project_of
from sfd.errors import UserError

presets = typer.Typer(
    no_args_is_help=True, help="Ready parameters: the built-in dataset, the paper's runs, its baselines."
)
PresetName = Annotated[str, typer.Argument(metavar="NAME", help="A name from `sfd preset list`.")]


@presets.command("list")
def list_presets() -> None:
    """List the presets, each with what it is."""
    from sfd.preset import list_presets

    typer.echo(list_presets())


@presets.command("show")
def show_preset(name: PresetName) -> None:
    """Print a preset as a complete params.yaml, with the result it should give and its source."""
    from sfd.preset import render

    typer.echo(render(name).rstrip())


@presets.command("use")
def use_preset(
    context: typer.Context,
    name: PresetName,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a params.yaml of your own; it is kept beside the new one.")
    ] = False,
) -> None:
    """Write a preset to params.yaml. The project's `data`, names and gates stay; other changes of your own need --force."""
    from sfd.preset_use import use

    try:
        file = project_of(context).params_file
    except UserError:
        file = context.obj / "params.yaml"
    typer.echo(use(name, file, force))
