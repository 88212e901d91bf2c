"""``sfd models``: the versions in the model registry; and ``sfd store``: the embedded store that may hold it."""

from typing import Annotated

import typer

from sfd.cli.project import project_of

models = typer.Typer(
    no_args_is_help=True, help="The versions in the model registry: compare them, and choose the one in use."
)
Version = Annotated[str, typer.Argument(metavar="VERSION", help="A version's number or alias.")]


@models.command("list")
def list_models(context: typer.Context) -> None:
    """List the versions with their aliases and main metrics."""
    from sfd.registry.lineage import list_versions

    typer.echo(list_versions(project_of(context)))


@models.command("show")
def show_model(
    context: typer.Context,
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Number or alias; without it, the champion.")
    ] = None,
) -> None:
    """Say where a version comes from, how good it is, and how to rebuild it."""
    from sfd.registry.lineage import show_version

    typer.echo(show_version(project_of(context), version))


@models.command("compare")
def compare_models(context: typer.Context, first: Version, second: Version) -> None:
    """Compare the metrics and parameters of two versions."""
    from sfd.registry.lineage import compare_versions

    typer.echo(compare_versions(project_of(context), first, second))


@models.command()
def promote(
    context: typer.Context,
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Number or alias; without it, `register.alias`.")
    ] = None,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote in spite of failing gates; the reason is kept.")
    ] = None,
) -> None:
    """Make a version the champion if it passes the gates of params.yaml; exit 1 if it does not."""
    from sfd.registry import promotion

    try:
        typer.echo(promotion.promote(project_of(context), version, force))
    except promotion.PromotionRefused as reason:
        typer.echo(f"refused: {reason}", err=True)
        raise typer.Exit(1) from None


@models.command()
def rollback(
    context: typer.Context,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="A former champion: number or alias; without it, the one before the present one."
        ),
    ] = None,
) -> None:
    """Make a former champion the champion again; each rollback goes one promotion further back."""
    from sfd.registry import promotion

    typer.echo(promotion.rollback(project_of(context), to))


store = typer.Typer(no_args_is_help=True, help="The embedded MLflow store, `mlruns`.")


@store.command()
def relocate(context: typer.Context) -> None:
    """Make the store of a copied or moved project use its own artifacts, instead of those in the folder it came from."""
    from sfd import tracking

    typer.echo(tracking.relocate(tracking.tracking_uri(project_of(context))))
