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


@presets.command("check")
def check_preset(context: typer.Context, name: PresetName) -> None:
    """List what a preset needs and what this machine has: files, disk, memory, hubs. Status 1 if anything is missing."""
    from sfd.planning.needs import check_preset as check
    from sfd.workspace import Workspace

    try:
        workspace = project_of(context)
        own = workspace.load_params()
    except UserError:  # outside of a project, or in one whose parameters `preset use` would replace
        workspace, own = Workspace(context.obj), None
    said, is_complete = check(name, workspace, own)
    typer.echo(said)
    if not is_complete:
        raise typer.Exit(1)


@presets.command("published")
def show_published() -> None:
    """Print every value of every ImageNet preset beside the published one, with the reason where it differs; and published results."""
    from sfd.published.table import page

    typer.echo(page())


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
